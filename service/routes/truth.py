"""POST /v1/truth."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service import bodies
from service.routes.contract import body, returns
from service.schemas import TRUTH_ANSWER, TRUTH_EXAMPLES, TruthRequest, TruthResponse

router = APIRouter(tags=["compute"])


@router.post(
    "/v1/truth",
    operation_id="truth",
    summary="The correctly rounded result, its exact enclosure and its decimals",
    response_class=Response,
    responses=returns(TruthResponse, 400, 403, 408, 413, 415, 422, 429, 500, 503, example=TRUTH_ANSWER),
    openapi_extra=body(TruthRequest, TRUTH_EXAMPLES),
)
async def truth(request: Request) -> Response:
    """Proven, not estimated: what cannot be decided within the precision cap is refused."""
    return await bodies.answered(request, "truth")
