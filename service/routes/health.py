"""Whether the service lives, whether it can compute, and its metrics."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service.errors import Problem
from service.routes.contract import returns, storing
from service.schemas import HealthResponse

router = APIRouter(tags=["operation"], default_response_class=JSONResponse)


@router.get("/health/live", operation_id="live", summary="The service answers", responses=returns(HealthResponse, free=True))
async def live() -> JSONResponse:
    """Says nothing about the computing processes."""
    return JSONResponse({"status": "live"})


@router.get(
    "/health/ready",
    operation_id="ready",
    summary="A computing process is up, and so is the database",
    responses=returns(HealthResponse, 503, free=True),
)
async def ready(request: Request) -> JSONResponse:
    """503 until a computing process has answered its first, tiny request, and while the database that is named does not answer."""
    if not request.app.state.pool.ready:
        raise Problem("not-ready", "no computing process is up yet", headers={"Retry-After": "2"})
    if request.app.state.settings.database_url:  # without the embedded one, what computes is served all the same
        with storing():
            await asyncio.to_thread(request.app.state.store.ping)
    return JSONResponse({"status": "ready"})


_TEXT = {"description": "Prometheus text", "content": {"text/plain": {"schema": {"type": "string"}}}}


@router.get(
    "/metrics",
    operation_id="metrics",
    summary="Prometheus metrics",
    response_class=PlainTextResponse,
    responses=returns(None) | {200: _TEXT},
)
async def metrics(request: Request) -> PlainTextResponse:
    """Requests by route and status, their duration, and the state of the computing processes."""
    return PlainTextResponse(generate_latest(request.app.state.meters.registry), media_type=CONTENT_TYPE_LATEST)
