"""GET /v1/reports/{id}: what is to be said of a run or a comparison, in the form that is asked for."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response

from service import check_reports, history, run_schemas, runs
from service.routes.contract import acceptable, returns, storing
from service.store import Store

router = APIRouter(tags=["runs"])

KINDS = {
    "application/json": None,
    "text/markdown": check_reports.markdown,
    "text/plain": check_reports.text,
    "application/junit+xml": check_reports.junit,
    "application/sarif+json": check_reports.sarif,
    "image/svg+xml": check_reports.svg,
}


@router.get(
    "/v1/reports/{report}",
    operation_id="read_report",
    summary="The report on a run or a comparison",
    response_class=Response,
    responses=returns(run_schemas.ReportResponse, 404, 406, 422, 500, also=tuple(KINDS)[1:]),
)
async def read_report(
    request: Request,
    report: Annotated[
        str, Path(pattern=r"^(run|cmp)-[0-9a-f]{32}$", max_length=36, description="The id of a run or of a comparison.")
    ],
    view: Annotated[Literal["cases", "badge"], Query(description="Of the SVG.")] = "cases",
) -> Response:
    """JSON, Markdown, text, JUnit, SARIF or SVG, by Accept. It never changes."""
    kind = acceptable(request, tuple(KINDS))
    with storing():
        answer = await asyncio.to_thread(_answer, request.app.state.store, report)
    headers = {"Vary": "Accept", "ETag": f'"{report}-{view}"', "Cache-Control": "private, max-age=86400"}
    if kind == "image/svg+xml":
        headers["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'"
        if view == "badge":
            return Response(history.badge("softgauge", answer["verdict"]), media_type=kind, headers=headers)
    writer = KINDS[kind]
    text = json.dumps({"id": report, **answer}) if writer is None else writer(answer)
    return Response(text, media_type=f"{kind}; charset=utf-8" if kind.startswith("text/") else kind, headers=headers)


def _answer(store: Store, report: str) -> dict[str, Any]:
    if report.startswith("cmp-"):
        found: dict[str, Any] = json.loads(store.comparison(report)[1])
        return found
    return runs.judged(runs.read(store.run(None, report)[1]))
