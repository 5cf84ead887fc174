"""Projects: runs, baselines, comparisons, history. Runs are checked in a computing process and kept by a thread."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse

import engine
from service import bodies, check_reports, history, run_schemas, runs
from service.access import Holder
from service.errors import Finding, Problem
from service.routes.contract import acceptable, json_body, returns, storing
from service.store import Conflict, NewComparison, NewMove, NewRun, Row, Store, Told, new_id, now
from service.suite import PolicyTable
from service.tasks import parse

router = APIRouter(prefix="/v1/projects", tags=["runs"], default_response_class=JSONResponse)

KEY = "Idempotency-Key"
_SMALL = 65536  # bytes of a body that is parsed here
_SHOWN = 20  # cases of a comparison that its first answer names

Project = Annotated[str, Path(pattern=rf"^{run_schemas.ID}$", max_length=100, description="Made by its first run.")]
Name = Annotated[
    str, Path(pattern=rf"^{run_schemas.ID}$", max_length=100, description="Of the baseline; `default`, where nobody says so.")
]
Branch = Annotated[str | None, Query(pattern=rf"^{run_schemas.BRANCH}$", max_length=200, description="Only of this branch.")]
Cursor = Annotated[str | None, Query(pattern=r"^[0-9a-f]{1,15}$", max_length=15, description="The `next` of the page before.")]
Limit = Annotated[int, Query(ge=1, le=200, description="Rows of a page.")]
_WRITES = (404, 408, 409, 413, 415, 422, 500)
_READS = (404, 422, 500)


# ---- runs ---------------------------------------------------------------------------------------------------------------------


@router.get("", operation_id="list_projects", summary="Projects", responses=returns(run_schemas.ProjectsResponse, *_READS))
async def projects(request: Request) -> JSONResponse:
    """Every project, with the verdict on its newest run."""
    return JSONResponse({"projects": await _read(request, Store.projects)})


@router.post(
    "/{project}/runs",
    status_code=201,
    operation_id="add_run",
    summary="Store a run",
    responses=returns(run_schemas.RunAdded, *_WRITES, success=201),
    openapi_extra=json_body(run_schemas.RunRequest, run_schemas.RUN_EXAMPLES, KEY),
)
async def add_run(request: Request, project: Project) -> Response:
    """Keeps what a suite's cases came to, or runs the suite; whole, for ever, and once for one Idempotency-Key."""
    body = await bodies.collected(request, "max_run_bytes")
    async with _once(request, body) as once:
        if once.before is None:
            posted = await _posted(request, "run", body, project)
            told = once.told(201, {**posted.row(), "report": f"/v1/reports/{posted.new.id}"})
            once.before = await _write(request, lambda store: store.add(posted.new, told=once.kept(told)) or told)
        return once.answer(f"/v1/projects/{project}/runs/{{id}}")


@router.get(
    "/{project}/runs", operation_id="list_runs", summary="Runs, newest first", responses=returns(run_schemas.RunsResponse, *_READS)
)
async def list_runs(
    request: Request, project: Project, branch: Branch = None, cursor: Cursor = None, limit: Limit = 50
) -> JSONResponse:
    """A page of runs; `next` is the cursor of the page after it, null on the last."""
    rows, more = await _read(request, lambda store: store.runs(project, branch, _before(cursor), limit))
    return JSONResponse({"runs": rows, "next": _next(more)})


@router.get("/{project}/runs/{run}", operation_id="read_run", summary="A run", responses=returns(run_schemas.RunResponse, *_READS))
async def read_run(
    request: Request, project: Project, run: Annotated[str, Path(pattern=rf"^{run_schemas.RUN}$", max_length=64)]
) -> Response:
    """A run as it was kept: its header, and what each case came to."""
    found = await _read(request, lambda store: runs.plain(store.run(project, run)[1]))
    return JSONResponse(found)


@router.post(
    "/{project}/check",
    status_code=201,
    operation_id="check",
    summary="Store a run and compare it with its baseline",
    responses=returns(run_schemas.ComparisonResponse, *_WRITES, success=201),
    openapi_extra=json_body(run_schemas.CheckRequest, run_schemas.CHECK_EXAMPLES, KEY),
)
async def check(request: Request, project: Project) -> Response:
    """One call for CI: what `softgauge check --url` asks. The run, its cases and the verdict are kept together, or not at all."""
    body = await bodies.collected(request, "max_run_bytes")
    async with _once(request, body) as once:
        if once.before is None:
            posted = await _posted(request, "check", body, project)
            asked = posted.asked
            treatments = asked["policy"] or PolicyTable().model_dump()
            holder = _holder(request)

            def keep(store: Store) -> Told:
                known = store.has_project(project)
                pointer = store.baseline(project, asked["baseline"], posted.branch, asked["started_from"]) if known else None
                was = store.run(project, pointer["run"])[1] if pointer else None
                made = _compared(project, posted.kept(), was, asked["baseline"], pointer, treatments, asked["partial"], {})
                told = once.told(201, made.answer)
                move = None
                if treatments["new"] == "create" and pointer is None and not runs.failing(posted.kept()):
                    reason = "created, as the policy of the suite says"
                    move = NewMove(project, asked["baseline"], posted.branch, posted.new.id, reason, holder.name, posted.new.at)
                return store.add(posted.new, made.new, move, once.kept(told), first=True) or told

            once.before = await _write(request, keep)
        return once.answer("/v1/reports/{id}")


# ---- baselines ----------------------------------------------------------------------------------------------------------------


@router.get(
    "/{project}/baselines",
    operation_id="list_baselines",
    summary="Moves of baselines, newest first",
    responses=returns(run_schemas.MovesResponse, *_READS),
)
async def list_baselines(request: Request, project: Project, cursor: Cursor = None, limit: Limit = 50) -> JSONResponse:
    """Where each baseline was moved to, by whom, when and why."""
    rows, more = await _read(request, lambda store: store.moves(project, None, _before(cursor), limit))
    return JSONResponse({"moves": rows, "next": _next(more)})


@router.get(
    "/{project}/baselines/{name}",
    operation_id="read_baseline",
    summary="Where a baseline points to",
    responses=returns(run_schemas.BaselineResponse, *_READS),
)
async def read_baseline(
    request: Request,
    project: Project,
    name: Name,
    branch: Annotated[str, Query(pattern=rf"^{run_schemas.BRANCH}$", max_length=200)] = "main",
) -> JSONResponse:
    """That of a branch: its own, or else that of the branch it started from."""
    found = await _read(request, lambda store: store.baseline(project, name, branch))
    if found is None:
        way = f"PUT /v1/projects/{project}/baselines/{name} sets it"
        raise Problem(
            "not-found", f"branch {branch!r} of project {project!r} has no baseline {name!r}, nor has one it started from; {way}"
        )
    return JSONResponse({"name": name, **found})


@router.put(
    "/{project}/baselines/{name}",
    operation_id="move_baseline",
    summary="Point a baseline to a run",
    responses=returns(run_schemas.MoveRow, *_WRITES),
    openapi_extra=json_body(run_schemas.MoveRequest, run_schemas.MOVE_EXAMPLES, KEY),
)
async def move_baseline(request: Request, project: Project, name: Name) -> Response:
    """The pointer's history is kept. To undo a move, move it back to `was`."""
    body = await _small(request)
    asked = parse(run_schemas.MoveRequest, body, request.app.state.settings.limits)
    holder = _holder(request)
    async with _once(request, body) as once:
        if once.before is None:

            def keep(store: Store) -> Told:
                row, document = _run(store, project, asked.run_id)
                if failing := runs.failing(runs.read(document)):
                    names = f"{', '.join(failing[:8])}{' and others' * (len(failing) > 8)}"
                    said = f"{names}: fails its gate, and no baseline excuses that"
                    raise Problem("invalid", f"run {asked.run_id}: {said}", (Finding("/run_id", said),))
                branch, at = asked.branch or row["branch"], now()
                while True:  # until nobody else moved it between the look and the move
                    was = store.own_pointer(project, name, branch)
                    expected = asked.expected if asked.expected is not None else was or ""
                    move = NewMove(project, name, branch, row["id"], asked.reason, holder.name, at, expected)
                    moved = {"branch": branch, "run": row["id"], "was": was, "reason": asked.reason, "by": holder.name, "at": at}
                    told = once.told(200, {"name": name, **moved})
                    try:
                        return store.add(move=move, told=once.kept(told)) or told
                    except Conflict:
                        if asked.expected is not None:
                            raise

            once.before = await _write(request, keep)
        return once.answer()


@router.post(
    "/{project}/baselines/{name}/compare",
    status_code=201,
    operation_id="compare",
    summary="Compare a run with a baseline",
    responses=returns(run_schemas.ComparisonResponse, *_WRITES, success=201),
    openapi_extra=json_body(run_schemas.CompareRequest, run_schemas.COMPARE_EXAMPLES, KEY),
)
async def compare(request: Request, project: Project, name: Name) -> Response:
    """By the run's own rules, or by others; the comparison is kept."""
    body = await _small(request)
    asked = parse(run_schemas.CompareRequest, body, request.app.state.settings.limits)
    async with _once(request, body) as once:
        if once.before is None:

            def keep(store: Store) -> Told:
                row, document = _run(store, project, asked.run_id)
                pointer = store.baseline(project, name, row["branch"])
                was = store.run(project, pointer["run"])[1] if pointer else None
                treatments = (asked.policy or PolicyTable()).model_dump()
                kept = runs.read(document)
                made = _compared(project, kept, was, name, pointer, treatments, asked.partial, asked.rules)
                told = once.told(201, made.answer)
                return store.add(comparison=made.new, told=once.kept(told)) or told

            once.before = await _write(request, keep)
        return once.answer("/v1/reports/{id}")


# ---- history ------------------------------------------------------------------------------------------------------------------

_KINDS = ("application/json", "text/csv", "image/svg+xml")


@router.get(
    "/{project}/history",
    operation_id="read_history",
    summary="A case over its runs",
    responses=returns(run_schemas.CaseHistory | run_schemas.CaseNames, *_READS, 406, also=_KINDS[1:]),
)
async def read_history(
    request: Request,
    project: Project,
    case: Annotated[
        str | None, Query(pattern=r"^[ -~]*$", max_length=320, description="Its name; left out: the names of all.")
    ] = None,
    branch: Branch = None,
    last: Annotated[int, Query(ge=1, le=1000, description="Runs.")] = 200,
    form: Annotated[
        Literal["json", "csv", "svg"] | None, Query(alias="format", description="Rather than Accept, for links.")
    ] = None,
) -> Response:
    """The largest ULP error of a case over the last runs, oldest first: JSON, CSV, or a plot as SVG, by Accept."""
    kind = acceptable(request, _KINDS) if form is None else _KINDS[("json", "csv", "svg").index(form)]
    if case is None:
        return JSONResponse({"cases": await _read(request, lambda store: store.cases(project))})
    points = await _read(request, lambda store: store.history(project, case, branch, last))
    if kind == "text/csv":
        return Response(history.table_csv({case: points}), media_type="text/csv; charset=utf-8", headers=_ATTACHED)
    if kind == "image/svg+xml":
        return Response(history.plot(case, points), media_type=kind, headers=_DRAWN)
    return JSONResponse(engine.encode({"case": case, "points": points}))


@router.get(
    "/{project}/badge",
    operation_id="read_badge",
    summary="The last verdict as a badge",
    responses=returns(None, *_READS, also=("image/svg+xml",)),
)
async def read_badge(request: Request, project: Project, branch: Branch = None) -> Response:
    """SVG: the verdict of the newest comparison."""
    row = await _read(request, lambda store: store.last_comparison(project, branch))
    return Response(history.badge("softgauge", row["verdict"] if row else "none yet"), media_type="image/svg+xml", headers=_DRAWN)


_DRAWN = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'", "Cache-Control": "no-cache", "Vary": "Accept"}
_ATTACHED = {"Content-Disposition": 'attachment; filename="history.csv"', "Vary": "Accept"}


# ---- below --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Posted:
    """A run that was posted and checked. asked: what else was said."""

    new: NewRun
    asked: Mapping[str, Any]

    @property
    def branch(self) -> str:
        return self.new.branch

    def kept(self) -> runs.Kept:
        return runs.read(self.new.document)

    def row(self) -> dict[str, Any]:
        told = {key: getattr(self.new, key) for key in ("id", "project", "branch", "commit", "testbed", "fingerprint", "at")}
        return {**told, "cases": len(self.new.cases)}


async def _posted(request: Request, task: str, body: bytes, project: str) -> _Posted:
    made = await bodies.computed(request, task, body)
    return await asyncio.to_thread(_new_run, made, project)


def _new_run(made: bytes, project: str) -> _Posted:
    """What a computing process made of a body, as it is to be kept."""
    first, *cases = made.split(b"\n")
    asked = json.loads(first)
    named = {key: asked[key] for key in ("branch", "started_from", "commit", "testbed")}
    told = {"id": new_id("run"), "project": project, **named, "at": now()}
    document = runs.document({**told, "environment": asked["environment"], "engine": asked["engine"]}, cases)
    rows = [Row(name, row.entry.figures.get("max_ulp"), row.entry.verdict) for name, row in runs.read(document).results.items()]
    return _Posted(NewRun(**told, fingerprint=asked["engine"]["fingerprint"], cases=rows, document=document), asked)


@dataclass(frozen=True)
class _Made:
    new: NewComparison
    answer: Mapping[str, Any]


def _compared(
    project: str,
    kept: runs.Kept,
    was: bytes | None,
    name: str,
    pointer: Mapping[str, Any] | None,
    treatments: Mapping[str, str],
    partial: bool,
    rules: Mapping[str, run_schemas.RulesModel],
) -> _Made:
    """A comparison, as it is to be kept and as it is told."""
    about = {"name": name, **(pointer or {"branch": kept.head["branch"]})}
    answer = runs.compared(kept, runs.read(was) if was else None, about, treatments, partial, rules)
    run, at = kept.head["id"], now()
    new = NewComparison(
        new_id("cmp"), project, run, name, pointer["run"] if pointer else None, answer["verdict"], at, json.dumps(answer).encode()
    )
    counting = [case for case in answer["cases"] if case["status"] not in ("unchanged", "no_worse")]
    told = {
        "id": new.id,
        "run": run,
        "baseline": pointer and {"name": name, **pointer},
        "verdict": answer["verdict"],
        "counts": answer["counts"],
        "cases": [
            {"case": case["case"], "status": case["status"], "counts": case["counts"], "why": check_reports.sentences(case)[:4]}
            for case in counting[:_SHOWN]
        ],
        "report": f"/v1/reports/{new.id}",
    }
    return _Made(new, told)


@dataclass
class _Once:
    """A write that is done once for its Idempotency-Key. before: the answer, given now or then."""

    holder: str
    key: str | None
    request: str
    before: Told | None = None

    def told(self, status: int, answer: Mapping[str, Any]) -> Told:
        return Told(self.holder, self.key or "", self.request, status, json.dumps(answer), now())

    def kept(self, told: Told) -> Told | None:
        """What is to be kept of an answer: all of it where there is a key by which it can be asked for again."""
        return told if self.key is not None else None

    def answer(self, location: str | None = None) -> Response:
        assert self.before is not None
        headers = {"Location": location.format(**json.loads(self.before.body))} if location else {}
        return Response(self.before.body, self.before.status, headers, "application/json")


@contextlib.asynccontextmanager
async def _once(request: Request, body: bytes) -> AsyncIterator[_Once]:
    """The same key and the same request: the same answer. Raises Problem: another request, or the first is not answered yet."""
    given = request.headers.get(KEY)
    digest = hashlib.sha256(b"\0".join((request.method.encode(), request.url.path.encode(), body))).hexdigest()
    once = _Once(_holder(request).id, given, digest)
    if given is None:
        yield once
        return
    if not re.fullmatch(r"[!-~]{1,255}", given):
        raise Problem("invalid", f"{KEY}: 1 to 255 printable characters of ASCII", (Finding(KEY, "1 to 255 printable characters"),))
    running: set[tuple[str, str]] = request.app.state.running
    mine = (once.holder, given)
    if mine in running:
        detail = f"the request with this {KEY} is not answered yet; ask again in a moment"
        raise Problem("conflict", detail, (Finding(KEY, detail),), {"Retry-After": "1"})
    running.add(mine)
    try:
        once.before = await _read(request, lambda store: store.told(once.holder, given, digest))
        yield once
    finally:
        running.discard(mine)


async def _small(request: Request) -> bytes:
    body = await bodies.collected(request)
    if len(body) > _SMALL:
        raise Problem("too-large", f"the body has {len(body)} bytes; this route takes {_SMALL}")
    return body


def _run(store: Store, project: str, run: str) -> tuple[dict[str, Any], bytes]:
    """A run that a body names."""
    store.branches(project)  # raises where there is no such project
    with storing("/run_id"):
        return store.run(project, run)


def _holder(request: Request) -> Holder:
    found: Holder = request.scope["state"]["holder"]
    return found


async def _read(request: Request, what: Callable[[Store], Any]) -> Any:
    """What the store tells. Raises Problem."""
    with storing():
        return await asyncio.to_thread(what, request.app.state.store)


_write = _read
"""A write goes on where the client leaves: a thread cannot be stopped, and what it keeps is whole."""


def _before(cursor: str | None) -> int | None:
    return int(cursor, 16) if cursor is not None else None


def _next(more: int | None) -> str | None:
    return f"{more:x}" if more is not None else None
