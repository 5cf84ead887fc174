"""The pages for people: `/` with the real result of the example, `/docs`, `/projects`. Nothing inline, nothing from elsewhere."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from functools import cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Query, Request
from fastapi import Path as Route
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, select_autoescape

from service import check_reports, history, run_schemas, runs
from service.compute import Pool
from service.routes.contract import storing
from service.schemas import EVALUATE_EXAMPLES
from service.store import Store

LOG = logging.getLogger("softgauge.pages")
HERE = Path(__file__).parent

_CSP = (
    "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {"Content-Security-Policy": _CSP, "Cache-Control": "no-cache"}
_FIRST_TRY = 0.2  # seconds between attempts to compute the example

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


class Example:
    """The result of the example, computed once by a child process. outcomes is None until then."""

    def __init__(self) -> None:
        self.request: dict[str, Any] = EVALUATE_EXAMPLES["overflow"]["value"]
        self.answer: dict[str, Any] | None = None

    async def compute(self, pool: Pool) -> None:
        """Ask until a child answers; other requests go first as long as all are busy."""
        delay = _FIRST_TRY
        while self.answer is None:
            try:
                self.answer = json.loads(await pool.answer("evaluate", json.dumps(self.request).encode()))
            except Exception as error:  # noqa: BLE001 - the page waits for the example for ever if this task ends
                LOG.warning("the example is not computed yet: %r", error)
                await asyncio.sleep(delay)
                delay = min(2 * delay, 60)


@cache
def _template(name: str) -> Template:
    loader = FileSystemLoader(HERE / "templates")
    return Environment(
        loader=loader, autoescape=select_autoescape(), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template(name)


@router.get("/")
async def home(request: Request) -> HTMLResponse:
    """What this is, with the example's real result."""
    example: Example = request.app.state.example
    outcomes = example.answer["outcomes"] if example.answer else None
    page = _template("home.html").render(outcomes=outcomes, request=json.dumps(example.request), host=request.url.netloc)
    return HTMLResponse(page, headers=_HEADERS)


@router.get("/docs")
async def docs() -> HTMLResponse:
    """Swagger UI, from this server alone."""
    return HTMLResponse(_template("docs.html").render(), headers=_HEADERS)


# ---- projects -----------------------------------------------------------------------------------------------------------------

_CASES = 20  # of a page
_POINTS = 100  # of a plot
_TOLD = 12  # cases of the last verdict

Project = Annotated[str, Route(pattern=rf"^{run_schemas.ID}$", max_length=100)]
Branch = Annotated[str | None, Query(pattern=rf"^({run_schemas.BRANCH})?$", max_length=200)]


@router.get("/projects")
async def projects(request: Request) -> HTMLResponse:
    """Every project, with its last verdict."""
    with storing():
        rows = await asyncio.to_thread(request.app.state.store.projects)
    return HTMLResponse(_template("projects.html").render(projects=rows, host=request.url.netloc), headers=_HEADERS)


@router.get("/projects/{project}")
async def project(
    request: Request, project: Project, branch: Branch = None, page: Annotated[int, Query(ge=1, le=10_000)] = 1
) -> HTMLResponse:
    """The last verdict of a project, the history of each case, the moves of its baselines."""
    with storing():
        shown = await asyncio.to_thread(_project, request.app.state.store, project, branch or None, page)
    return HTMLResponse(_template("project.html").render(host=request.url.netloc, **shown), headers=_HEADERS)


def _project(store: Store, name: str, branch: str | None, page: int) -> dict[str, Any]:
    """What the page shows. Raises StoreError."""
    here, api = f"/projects/{quote(name, safe='')}", f"/v1/projects/{quote(name, safe='')}"
    of_branch = {"branch": branch} if branch is not None else {}
    branches = [{**row, "link": f"{here}?{urlencode({'branch': row['name']})}"} for row in store.branches(name)]
    newest, _ = store.runs(name, branch, limit=1)
    names = _worst_first(runs.read(store.run(name, newest[0]["id"])[1])) if newest else []
    pages = max(1, math.ceil(len(names) / _CASES))
    chosen = names[(page - 1) * _CASES : page * _CASES]
    pointer = store.baseline(name, "default", branch or newest[0]["branch"]) if newest else None
    cases = []
    for case in chosen:
        points = store.history(name, case, branch, _POINTS)
        drawn = history.plot(case, points, pointer["run"] if pointer else None, standalone=False)
        csv = f"{api}/history?{urlencode({'case': case, 'format': 'csv', **of_branch})}"
        rows = [{**point, "size": history.shown(point["max_ulp"])} for point in reversed(points)]
        cases.append({"name": case, "plot": drawn, "rows": rows, "csv": csv})
    links = [{"number": n, "link": f"{here}?{urlencode({**of_branch, 'page': n})}"} for n in range(1, pages + 1)]
    return {
        "project": name,
        "branch": branch,
        "branches": branches,
        "last": _last(store, name, branch),
        "cases": cases,
        "moves": store.moves(name)[0],
        "page": page,
        "pages": pages,
        "links": {"all": here, "pages": links},
    }


def _worst_first(kept: runs.Kept) -> list[str]:
    """The cases of a run: those without a finite error first, then by error."""

    def size(name: str) -> float:
        found = kept.results[name].entry.figures.get("max_ulp")
        return math.inf if found is None or math.isnan(found) else float(found)

    return sorted(kept.results, key=lambda name: (-size(name), name))


def _last(store: Store, name: str, branch: str | None) -> dict[str, Any] | None:
    """The newest comparison in words."""
    row = store.last_comparison(name, branch)
    if row is None:
        return None
    answer = json.loads(store.comparison(row["id"])[1])
    counting = [case for case in answer["cases"] if case["counts"]]
    told = [{"name": case["case"], "status": case["status"], "said": check_reports.sentences(case)} for case in counting[:_TOLD]]
    said = check_reports.headline(answer).partition(": ")[2]
    return {**row, "said": said, "cases": told, "more": len(counting) - len(told)}
