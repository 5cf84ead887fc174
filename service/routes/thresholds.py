"""GET /v1/thresholds."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service import bodies
from service.routes.contract import returns
from service.schemas import THRESHOLDS_ANSWER, ThresholdsQuery, ThresholdsResponse

router = APIRouter(tags=["compute"])


@router.get(
    "/v1/thresholds",
    operation_id="thresholds",
    summary="Exact limits of a variant in a format",
    response_class=Response,
    responses=returns(ThresholdsResponse, 413, 422, 429, 500, 503, example=THRESHOLDS_ANSWER),
)
async def thresholds(request: Request, query: Annotated[ThresholdsQuery, Query()]) -> Response:
    """The last logit, gap or count up to which results can be used, and what comes out at the next, tried and not estimated."""
    return Response(await bodies.computed(request, "thresholds", query.model_dump_json().encode()), media_type=bodies.JSON)
