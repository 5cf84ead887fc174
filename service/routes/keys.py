"""Keys over HTTP, for those who hold one of scope admin."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse

from service import bodies, run_schemas
from service.access import new_key
from service.routes.contract import json_body, returns, storing
from service.store import Store, now
from service.tasks import parse

router = APIRouter(prefix="/v1/keys", tags=["operation"], default_response_class=JSONResponse)
_STATUSES = (404, 408, 413, 415, 422, 500)


@router.get("", operation_id="list_keys", summary="Keys", responses=returns(run_schemas.KeysResponse, *_STATUSES))
async def list_keys(request: Request) -> JSONResponse:
    """Every key by time, revoked and expired ones too; what a key is nobody can tell any more."""
    with storing():
        return JSONResponse({"keys": await asyncio.to_thread(request.app.state.store.listed_keys)})


@router.post(
    "",
    status_code=201,
    operation_id="add_key",
    summary="Make a key",
    responses=returns(run_schemas.NewKeyResponse, *_STATUSES, success=201),
    openapi_extra=json_body(run_schemas.KeyRequest, run_schemas.KEY_EXAMPLES),
)
async def add_key(request: Request) -> JSONResponse:
    """The key is in this answer, and nowhere else ever."""
    limits = request.app.state.settings.limits
    asked = parse(run_schemas.KeyRequest, await bodies.collected(request), limits)
    key, row = new_key(asked.name, asked.scope, asked.days)
    with storing():
        await asyncio.to_thread(request.app.state.store.add_key, row)
    told = {name: row[name] for name in ("id", "name", "scope", "at", "expires")}
    return JSONResponse({**told, "revoked": None, "key": key}, 201, {"Cache-Control": "no-store"})


@router.delete(
    "/{key}", status_code=204, operation_id="revoke_key", summary="Revoke a key", responses=returns(None, *_STATUSES, success=204)
)
async def revoke_key(request: Request, key: Annotated[str, Path(pattern=r"^[0-9a-f]{12}$", max_length=12)]) -> Response:
    """From now on it is none."""
    store: Store = request.app.state.store
    with storing():
        await asyncio.to_thread(store.revoke, key, now())
    return Response(status_code=204)
