"""POST /v1/evaluate."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service import bodies
from service.routes.contract import body, returns
from service.schemas import EVALUATE_ANSWER, EVALUATE_EXAMPLES, EvaluateRequest, EvaluateResponse

router = APIRouter(tags=["compute"])


@router.post(
    "/v1/evaluate",
    operation_id="evaluate",
    summary="Run built-in variants and measure them against certified truth",
    response_class=Response,
    responses=returns(EvaluateResponse, 400, 403, 408, 413, 415, 422, 429, 500, 503, example=EVALUATE_ANSWER),
    openapi_extra=body(EvaluateRequest, EVALUATE_EXAMPLES),
)
async def evaluate(request: Request) -> Response:
    """One outcome for each format and variant: its status, every metric, the worst elements, and which step broke."""
    return await bodies.answered(request, "evaluate")
