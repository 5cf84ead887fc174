"""The pages for people: `/` with the real result of the example, and `/docs`. Nothing inline, nothing from elsewhere."""

from __future__ import annotations

import asyncio
import json
import logging
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, select_autoescape

from service.compute import Pool
from service.schemas import EVALUATE_EXAMPLES

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
