"""How a route says in OpenAPI what it takes and returns: the body is validated in a child process, out of FastAPI's sight."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import Request
from pydantic import BaseModel

from service import doors
from service.errors import KINDS, MEDIA_TYPE, Finding, Problem, quoted
from service.store import Conflict, Full, KeyReused, Missing, StoreError, Unavailable
from service.tasks import ASK_LESS

LOG = logging.getLogger("softgauge.error")

REF = "#/components/schemas/{model}"


def body(model: type[BaseModel], examples: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The openapi_extra of a route that takes this model, as JSON or through the doors for files."""
    schema = {"$ref": REF.format(model=model.__name__)}
    names = [name for name in doors.FIELDS if name in model.model_fields]
    repeated = ["outputs.0"] if "outputs" in model.model_fields else []
    parts = {"request": {**schema, "description": _REQUEST_PART}, "tensors": {**_FILE, "description": _TENSORS_PART}}
    parts |= {name: {**_FILE, "description": _part(name)} for name in (*names, *doors.PARAMS, *repeated)}
    multipart = {"type": "object", "required": ["request"], "properties": parts}
    shown, asked = [name for name in names if name in _SHOWN], {"op": "softmax"}
    asked |= {"format": "float16"} if "format" in model.model_fields else {}
    content: dict[str, Any] = {
        "application/json": {"schema": schema, "examples": examples},
        "multipart/form-data": {
            "schema": multipart,
            "encoding": {"request": {"contentType": "application/json"}},
            "examples": {"files": {"summary": "A file for each tensor", "value": _form_shown(asked, shown)}},
        },
        "application/octet-stream": {
            "schema": {**_FILE, "description": _BINARY},
            "examples": {"binary": {"summary": _BINARY_SHOWN, "value": _binary_shown(asked, shown)[1]}},
        },
    }
    length = {"name": "Inference-Header-Content-Length", "in": "header", "required": False, "description": _LENGTH}
    length |= {"schema": {"type": "integer", "minimum": 0}, "example": _binary_shown(asked, shown)[0]}
    return {"requestBody": {"required": True, "content": content}, "parameters": [length]}


# Bytes that are printable, so that they can be shown: 2.125, 3.13, 4.27, and their softmax in 8 bits.
_SHOWN: dict[str, tuple[str, list[int], str]] = {"logits": ("float16", [1, 3], "@@BBDD"), "output": ("float8_e5m2", [1, 3], "-3:")}


def _form_shown(asked: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The parts of a form, a file by what it holds."""
    return {"request": asked, **{name: f"(the bytes of {name}.npy or {name}.safetensors)" for name in names}}


def _binary_shown(asked: dict[str, Any], names: Sequence[str]) -> tuple[int, str]:
    """The length of the JSON, and the body."""
    sizes = {name: {"parameters": {"binary_data_size": len(_SHOWN[name][2])}} for name in names}
    told = json.dumps(asked | {name: {"dtype": _SHOWN[name][0], "shape": _SHOWN[name][1], **sizes[name]} for name in names})
    return len(told), told + "".join(_SHOWN[name][2] for name in names)


def _part(name: str) -> str:
    more = " (outputs.1 and so on likewise)" if name == "outputs.0" else ""
    of = f"`{name}` of `params`" if name in doors.PARAMS else f"`{name}`"
    return f"{of} alone, as .npy or .safetensors{more}"


_FILE = {"type": "string", "format": "binary"}
_REQUEST_PART = "The request without the tensors that come in files."
_TENSORS_PART = "A .safetensors or .npz file whose tensors have the names of the parts below."
_BINARY = (
    "The JSON request, as long as the header Inference-Header-Content-Length says, then little-endian tensors, in the order in "
    'which the JSON names them, each as {"dtype", "shape", "parameters": {"binary_data_size"}} in place of its data.'
)
_BINARY_SHOWN = "Tensors whose bytes happen to be printable; Inference-Header-Content-Length is the length of the JSON"
_LENGTH = "Bytes of the JSON at the beginning of an application/octet-stream body, which needs it; else ignored."


async def only_known(request: Request) -> None:
    """Raises Problem for a parameter of the query that the route does not have, or that is there twice."""
    described = request.app.openapi()["paths"][request.scope["route"].path][request.method.lower()]
    known = [row["name"] for row in described.get("parameters", []) if row["in"] == "query"]
    given = [name for name, _ in request.query_params.multi_items()]
    for name in given:
        rule = "is there twice; give it once"
        if name not in known:
            rule = f"is none of this route, which takes {', '.join(known) or 'none'}"
        if name not in known or given.count(name) > 1:
            detail = f"the parameter {quoted(name)} {rule}"
            raise Problem("invalid", detail, (Finding(name[:64], detail),))


def json_body(model: type[BaseModel], examples: dict[str, dict[str, Any]], key: str | None = None) -> dict[str, Any]:
    """The openapi_extra of a route that takes this model as JSON alone. key: the header that makes it a write done once."""
    schema = {"$ref": REF.format(model=model.__name__)}
    told: dict[str, Any] = {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema, "examples": examples}}}
    }
    if key is not None:
        header = {"name": key, "in": "header", "required": False, "description": _ONCE, "example": "9f1c7a52"}
        told["parameters"] = [{**header, "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]*$"}}]
    return told


_ONCE = "A name of the client's own for this request: where it is asked again, the answer is the same, and nothing is done twice."


def acceptable(request: Request, kinds: Sequence[str]) -> str:
    """Which of the kinds the client would rather have, the first where it does not say (RFC 9110, 12.5.1). Raises Problem."""
    given = ",".join(request.headers.getlist("accept")) or "*/*"
    wanted = [_range(part) for part in given.split(",")[:32]]
    best, chosen = 0.0, None
    for kind in kinds:
        fits = [row for row in wanted if row[0] in (kind, "*/*", f"{kind.partition('/')[0]}/*")]
        quality = max(fits, key=lambda row: row[0].count("*") * -1)[1] if fits else 0.0  # the most specific counts
        if quality > best:
            best, chosen = quality, kind
    if chosen is None:
        detail = f"this is to be had as {', '.join(kinds)}, not as {quoted(given)}"
        raise Problem("not-acceptable", detail, (Finding("Accept", detail),))
    return chosen


def _range(part: str) -> tuple[str, float]:
    """A media range, and its quality."""
    kind, _, rest = part.partition(";")
    quality = re.search(r"(?:^|;)\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*(?:;|$)", rest)
    return kind.strip().lower(), min(1.0, float(quality[1])) if quality else 1.0


_STORE_KINDS: tuple[tuple[type[StoreError], str], ...] = (
    (Missing, "not-found"),
    (Conflict, "conflict"),
    (KeyReused, "invalid"),
    (Full, "no-room"),
    (Unavailable, "store-unavailable"),
)


@contextlib.contextmanager
def storing(named: str | None = None) -> Iterator[None]:
    """Turns what the store raises into its problem. named: the field of a body that names what is looked for. Raises Problem."""
    try:
        yield
    except StoreError as error:
        kind = next((kind for parent, kind in _STORE_KINDS if isinstance(error, parent)), None)
        if kind is None:  # what was kept is not what it was
            raise
        if kind == "not-found" and named is not None:
            raise Problem("invalid", str(error), (Finding(named, str(error)),)) from None
        headers = {"Retry-After": "5"} if kind in ("no-room", "store-unavailable") else {}
        if headers:
            LOG.error("%s: %s", error, error.reason)
        place = (Finding("Idempotency-Key", str(error)),) if kind == "invalid" else ()
        raise Problem(kind, str(error), place, headers) from None


_OF_KEYS = (401, 403, 429, 503)


def returns(
    model: Any, *statuses: int, example: Any = None, success: int = 200, also: Sequence[str] = (), free: bool = False
) -> dict[int | str, dict[str, Any]]:
    """The responses of a route: the model, and a problem document for each of the statuses, for a Host not served (400), and for
    what a key can meet.

    success: the status of the first; also: media types that it has beside JSON; free: no key is ever needed.
    """
    told: dict[str, Any] = {"description": {200: "OK", 201: "Created", 204: "Done"}[success]} | ({"model": model} if model else {})
    content: dict[str, Any] = {kind: {"schema": {"type": "string"}} for kind in also}
    if example is not None:
        content["application/json"] = {"example": example}
    told |= {"content": content} if content else {}
    return {success: told, **{status: problem(status) for status in sorted({400, *(() if free else _OF_KEYS), *statuses})}}


_FLOAT17 = (
    "unknown format 'float17'; known: float16, bfloat16, float32, float64, float8_e4m3fn, float8_e5m2; did you mean 'float16'?"
)
_TOO_LONG = f"estimated at 39.6 s, above the limit estimate_seconds = 20; {ASK_LESS['evaluate']}"
_EXAMPLES = {
    row.status: row
    for row in (
        Problem("malformed", "the body is not JSON: Expecting value at line 1, column 1"),
        Problem("unauthorized", "this needs a key: Authorization: Bearer sg_...; `softgauge keys create` makes one"),
        Problem("not-found", "no project 'attention'; there are softmax, xent; a project is made by its first run"),
        Problem("not-acceptable", "this is to be had as application/json, text/markdown, not as 'text/html'"),
        Problem("conflict", "the request with this Idempotency-Key is not answered yet; ask again in a moment"),
        Problem(
            "origin-not-allowed", "origin 'http://example.org' is not this service; browsers may write from its own pages only"
        ),
        Problem("body-timeout", "the body was not complete within body_seconds = 30"),
        Problem("too-long", _TOO_LONG),
        Problem(
            "unsupported-media-type",
            "this route takes application/json in UTF-8, multipart/form-data or application/octet-stream, not 'text/plain'",
        ),
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
