"""How a route says in OpenAPI what it takes and returns: the body is validated in a child process, out of FastAPI's sight."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from service.errors import KINDS, MEDIA_TYPE

REF = "#/components/schemas/{model}"


def body(model: type[BaseModel], examples: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The openapi_extra of a route that takes this model as JSON."""
    media = {"schema": {"$ref": REF.format(model=model.__name__)}, "examples": examples}
    return {"requestBody": {"required": True, "content": {"application/json": media}}}


def returns(model: type[BaseModel] | None, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """The responses of a route: the model, and a problem document for each of the statuses and for a Host not served (400)."""
    success: dict[str, Any] = {"description": "OK"} | ({"model": model} if model else {})
    return {200: success, **{status: problem(status) for status in sorted({400, *statuses})}}


def problem(status: int) -> dict[str, Any]:
    """The documented answer of one error status."""
    kinds = [(kind, title) for kind, (row, title) in KINDS.items() if row == status]
    kind, title = kinds[0]
    example = {
        "type": f"urn:softgauge:problem:{kind}",
        "title": title,
        "status": status,
        "detail": "what is wrong, which rule it breaks, and the way out",
        "instance": "/v1/evaluate",
        "errors": [],
        "request_id": "c6dc3b0f26d84b51a6f6a3b9d3a0f6a1",
    }
    media = {"schema": {"$ref": REF.format(model="Problem")}, "example": example}
    described: dict[str, Any] = {"description": "; ".join(title for _, title in kinds), "content": {MEDIA_TYPE: media}}
    if status in (429, 503):
        described["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
    return described
