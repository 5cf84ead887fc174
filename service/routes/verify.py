"""POST /v1/verify."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service import bodies
from service.routes.contract import body, returns
from service.schemas import VERIFY_ANSWER, VERIFY_EXAMPLES, VerifyRequest, VerifyResponse

router = APIRouter(tags=["compute"])


@router.post(
    "/v1/verify",
    operation_id="verify",
    summary="Judge an output made elsewhere: pass, fail or inconclusive",
    response_class=Response,
    responses=returns(VerifyResponse, 400, 403, 408, 413, 415, 422, 429, 500, 503, example=VERIFY_ANSWER),
    openapi_extra=body(VerifyRequest, VERIFY_EXAMPLES),
)
async def verify(request: Request) -> Response:
    """The verdict on what a kernel returned, by a gate that is tested in the same answer, with reasons, places and figures."""
    return await bodies.answered(request, "verify")
