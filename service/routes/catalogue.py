"""The catalogue: what exists, read from the engine's registries."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

import engine
from service.errors import engine_errors
from service.routes.contract import returns
from service.schemas import FormatsResponse, InputsResponse, OpsResponse, PoliciesResponse, SummationsResponse, VariantsResponse

router = APIRouter(prefix="/v1", tags=["catalogue"], default_response_class=JSONResponse)


@router.get("/ops", operation_id="list_ops", summary="The ops, and every limit", responses=returns(OpsResponse, 422))
async def ops(request: Request) -> JSONResponse:
    """What each op is, and the limits that requests meet here."""
    return JSONResponse({"ops": engine.catalogue("ops"), "limits": asdict(request.app.state.settings.limits)})


@router.get("/variants", operation_id="list_variants", summary="The built-in variants", responses=returns(VariantsResponse, 422))
async def variants(op: Annotated[str | None, Query(max_length=64, description="Only those of this op.")] = None) -> JSONResponse:
    """Every implementation of an op that evaluate can run."""
    if op is not None:
        with engine_errors("op"):
            engine.output_shape(engine.Problem(op, np.zeros(1)))  # looks the op up
    return _listed("variants", [row for row in engine.catalogue("variants") if op in (None, row["op"])])


@router.get("/formats", operation_id="list_formats", summary="The floating-point formats", responses=returns(FormatsResponse, 422))
async def formats() -> JSONResponse:
    """Precision, range and aliases of each format."""
    return _listed("formats", engine.catalogue("formats"))


@router.get(
    "/summations", operation_id="list_summations", summary="How a variant may add", responses=returns(SummationsResponse, 422)
)
async def summations() -> JSONResponse:
    """The strategies of summation."""
    return _listed("summations", engine.catalogue("summations"))


@router.get("/inputs", operation_id="list_inputs", summary="The seeded input families", responses=returns(InputsResponse, 422))
async def inputs() -> JSONResponse:
    """The families and their parameters."""
    return _listed("inputs", engine.catalogue("inputs"))


@router.get("/policies", operation_id="list_policies", summary="The policies of verify", responses=returns(PoliciesResponse, 422))
async def policies() -> JSONResponse:
    """Named rules of tolerance: what each compares, its parameters, and where it is from."""
    return _listed("policies", engine.catalogue("policies"))


def _listed(name: str, rows: list[dict[str, Any]]) -> JSONResponse:
    return JSONResponse({name: rows})
