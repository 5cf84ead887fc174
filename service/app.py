"""create_app(settings): the composition root. `python -m service.app` writes openapi.json."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from fastapi.telemetry import TelemetryConfig
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

import engine
from service import access, logs, pages, run_schemas, schemas
from service.bodies import Spool
from service.compute import Pool
from service.errors import Finding, Problem, from_status, misfit
from service.guard import ERRORS, Guard, Meters, Protocol, respond
from service.routes import catalogue, evaluate, health, keys, projects, reports, thresholds, tolerance, truth, verify
from service.routes.contract import REF, only_known
from service.settings import Settings, SettingsError, check_binding, is_loopback, secret
from service.store import StoreError, of

OPENAPI_FILE = Path(__file__).with_name("openapi.json")
_MAX_HEADER_BYTES = 65536
_GRACE = 10  # seconds that requests in flight have on shutdown
_DESCRIPTION = """Tells how far a softmax or cross-entropy computation is from the certified truth, and why.

Non-finite numbers travel as the strings "NaN", "Infinity" and "-Infinity", both ways. Every error is a problem document
(RFC 9457). The limits are in the answer of `/v1/ops`."""
_TAGS = [
    {
        "name": "compute",
        "description": "Judge outputs made elsewhere; run built-in variants and measure them; compute the truth; find limits.",
    },
    {"name": "catalogue", "description": "What exists: ops, variants, formats, summations, policies, input families."},
    {"name": "runs", "description": "Runs of suites, baselines, comparisons, reports and history, by project."},
    {"name": "operation", "description": "Health, metrics and keys."},
]
_KEYS = """A key that `softgauge keys create` made, of the scope that is named: read, write (which may read) or admin (which may do
everything). On loopback none is needed."""
_NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "auto_configure": False,
}  # no outbound requests at all


def create_app(settings: Settings) -> FastAPI:
    """The application. Its child processes start and end with its lifespan."""
    pool = Pool(settings)
    app = FastAPI(
        title="Softgauge",
        version=engine.VERSION,
        description=_DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        openapi_tags=_TAGS,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
        telemetry=_NO_TELEMETRY,
        dependencies=[Depends(access.authorise)],
    )
    app.state.receiving = 0  # bodies on their way
    app.state.spool = Spool(settings)
    app.state.store, app.state.budgets, app.state.running = of(settings), access.Budgets(settings.limits), set()
    app.state.settings, app.state.pool, app.state.meters, app.state.example = settings, pool, Meters(pool), pages.Example()
    computing = (evaluate.router, verify.router, tolerance.router, truth.router, thresholds.router, catalogue.router)
    for router in (*computing, projects.router, reports.router, keys.router):
        app.include_router(router, dependencies=[Depends(only_known)])
    for router in (health.router, pages.router):
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=pages.HERE / "static"), name="static")
    app.add_middleware(Guard, settings=settings, meters=app.state.meters)
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(HTTPException, _on_status)
    app.add_exception_handler(RequestValidationError, _on_parameters)
    app.openapi = lambda: openapi(app)  # type: ignore[method-assign]  # FastAPI's own way to extend the document
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.spool.clear()
    async with app.state.pool.running() as pool:
        example = asyncio.create_task(app.state.example.compute(pool))
        yield
        example.cancel()
    app.state.store.close()


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return respond(error, request.scope)


async def _on_status(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    ways = {404: "nothing is at this path; /docs lists what there is", 405: f"{request.method[:64]} is not taken here"}
    problem = from_status(error.status_code, ways.get(error.status_code, str(error.detail)))
    problem.headers.update(error.headers or {})
    return respond(problem, request.scope)


async def _on_parameters(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    limit = request.app.state.settings.limits.max_errors
    findings = tuple(Finding(str(row["loc"][-1])[:64], misfit(row)) for row in error.errors()[:limit])
    return respond(Problem("invalid", "; ".join(f"{row.pointer}: {row.detail}" for row in findings), findings), request.scope)


def openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI 3.1 document: FastAPI's, with the models that only child processes see."""
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        models = [(model, "validation") for model in (*schemas.REQUESTS, *run_schemas.REQUESTS)] + [
            (schemas.Problem, "serialization")
        ]
        _, definitions = models_json_schema(models, ref_template=REF)  # type: ignore[arg-type]  # a list of literal pairs
        components = document.setdefault("components", {})
        components.setdefault("schemas", {}).update(definitions["$defs"])
        for model in schemas.REQUESTS:
            components["schemas"][model.__name__]["properties"]["op"]["enum"] = [row["name"] for row in engine.catalogue("ops")]
        document["servers"] = [{"url": "/"}]
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": _KEYS}}
        for operations in document["paths"].values():
            for operation in operations.values():
                scope = access.ACCESS.get(operation["operationId"], "admin")
                operation["security"] = [] if scope is None else [{"key": [scope]}, {}]
        shown = document["paths"]["/v1/verify"]["post"]["responses"]["200"]["content"]["application/json"]
        shown["example"] = schemas.VERIFY_ANSWER  # FastAPI leaves out the nulls of an example
        app.openapi_schema = document
    return app.openapi_schema


def written_openapi() -> str:
    """The text of service/openapi.json."""
    return json.dumps(create_app(Settings()).openapi(), indent=1, ensure_ascii=False) + "\n"


def serve(settings: Settings) -> None:
    """Listen until told to stop. Raises SettingsError for an address that may not be listened on."""
    logs.to_stderr()
    check_binding(settings, _prepared(settings))
    app = create_app(settings)
    gc.freeze()  # so that only what requests leave is looked through
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        http=Protocol,  # h11's: it bounds the size of headers; httptools reads them without end
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        timeout_graceful_shutdown=_GRACE,
    )


def _prepared(settings: Settings) -> bool:
    """Bring the store up to date and put the operator's key into it; whether there is a key then. Raises SettingsError.

    On loopback, where keys are not needed, what computes is served without a store too: it is tried again with each request.
    """
    store = of(settings)
    try:
        store.open()
        if settings.admin_key_file is not None:
            access.admit_first_key(store, secret("admin_key_file", settings.admin_key_file))
        return access.has_keys(store)
    except StoreError as error:
        where = "SOFTGAUGE_DATABASE_URL" if settings.database_url else "SOFTGAUGE_DATA_DIR"
        detail = f"{error}: {error.reason}; {where} says where runs are kept"
        if not is_loopback(settings.host):
            raise SettingsError(detail) from None
        ERRORS.error("nothing can be kept: %s", detail)
        return False
    except ValueError as error:
        raise SettingsError(f"SOFTGAUGE_ADMIN_KEY_FILE: {error}") from None
    finally:
        store.close()


if __name__ == "__main__":
    OPENAPI_FILE.write_text(written_openapi())
