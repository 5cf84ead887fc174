"""How a route says in OpenAPI what it takes and returns: the body is validated in a child process, out of FastAPI's sight."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from service.errors import KINDS, MEDIA_TYPE, Finding, Problem
from service.tasks import ASK_LESS

REF = "#/components/schemas/{model}"


def body(model: type[BaseModel], examples: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The openapi_extra of a route that takes this model as JSON."""
    schema = {"$ref": REF.format(model=model.__name__)}
    parts = {"request": {**schema, "description": _REQUEST_PART}, "tensors": {**_FILE, "description": _TENSORS_PART}}
    parts |= {name: {**_FILE, "description": f"{name} alone, as .npy or .safetensors"} for name in ("logits", "targets")}
    multipart = {"type": "object", "required": ["request"], "properties": parts, "additionalProperties": _FILE}
    content: dict[str, Any] = {
        "application/json": {"schema": schema, "examples": examples},
        "multipart/form-data": {"schema": multipart, "encoding": {"request": {"contentType": "application/json"}}},
        "application/octet-stream": {"schema": {**_FILE, "description": _BINARY}},
    }
    return {"requestBody": {"required": True, "content": content}}


_FILE = {"type": "string", "format": "binary"}
_REQUEST_PART = "The request without the tensors that come in files."
_TENSORS_PART = "A .safetensors or .npz file whose tensors are named logits, output, targets, ..., mask, weights, outputs.0, ..."
_BINARY = (
    "The JSON request, as long as the header Inference-Header-Content-Length says, then little-endian tensors, in the order in "
    'which the JSON names them, each as {"dtype", "shape", "parameters": {"binary_data_size"}} in place of its data.'
)


def returns(model: type[BaseModel] | None, *statuses: int, example: Any = None) -> dict[int | str, dict[str, Any]]:
    """The responses of a route: the model, and a problem document for each of the statuses and for a Host not served (400)."""
    success: dict[str, Any] = {"description": "OK"} | ({"model": model} if model else {})
    if example is not None:
        success["content"] = {"application/json": {"example": example}}
    return {200: success, **{status: problem(status) for status in sorted({400, *statuses})}}


_FLOAT17 = (
    "unknown format 'float17'; known: float16, bfloat16, float32, float64, float8_e4m3fn, float8_e5m2; did you mean 'float16'?"
)
_TOO_LONG = f"estimated at 39.6 s, above the limit estimate_seconds = 20; {ASK_LESS['evaluate']}"
_EXAMPLES = {
    row.status: row
    for row in (
        Problem("malformed", "the body is not JSON: Expecting value at line 1, column 1"),
        Problem(
            "origin-not-allowed", "origin 'http://example.org' is not this service; browsers may write from its own pages only"
        ),
        Problem("body-timeout", "the body was not complete within body_seconds = 30"),
        Problem("too-long", _TOO_LONG),
        Problem("unsupported-media-type", "this route takes application/json in UTF-8, not 'text/plain'"),
        Problem("unknown-name", _FLOAT17, (Finding("/formats/0", _FLOAT17),)),
        Problem("too-many-requests", "64 requests are waiting already (the limit max_waiting)"),
        Problem("process-died", "the process that computed this request died; no other request is affected"),
        Problem("not-ready", "no computing process is up yet"),
    )
}


def problem(status: int) -> dict[str, Any]:
    """The documented answer of one error status."""
    kinds = [(kind, title) for kind, (row, title) in KINDS.items() if row == status]
    example = json.loads(_EXAMPLES[status].document("/v1/evaluate", "example-1"))
    media = {"schema": {"$ref": REF.format(model="Problem")}, "example": example}
    described: dict[str, Any] = {"description": "; ".join(title for _, title in kinds), "content": {MEDIA_TYPE: media}}
    if status in (429, 503):
        told = "seconds; absent where a retry would end in the same way (a deadline)" if status == 503 else "seconds"
        described["headers"] = {"Retry-After": {"description": told, "schema": {"type": "integer"}}}
    return described
