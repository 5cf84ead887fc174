"""POST /v1/tolerance."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service import bodies
from service.routes.contract import body, returns
from service.schemas import TOLERANCE_ANSWER, TOLERANCE_EXAMPLES, ToleranceRequest, ToleranceResponse

router = APIRouter(tags=["compute"])


@router.post(
    "/v1/tolerance",
    operation_id="tolerance",
    summary="Which tolerance to use: what no right implementation exceeds",
    response_class=Response,
    responses=returns(ToleranceResponse, 400, 403, 408, 413, 415, 422, 429, 500, 503, example=TOLERANCE_ANSWER),
    openapi_extra=body(ToleranceRequest, TOLERANCE_EXAMPLES),
)
async def tolerance(request: Request) -> Response:
    """ULP, rtol and atol for a declared arithmetic, on given logits or on any row; what they miss, and whether zeros pass."""
    return await bodies.answered(request, "tolerance")
