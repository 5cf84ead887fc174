"""The edge of the service: what every request meets before its handler, and what every answer carries.

Pure ASGI: a request id, the Host and Origin checks, security headers, one log line and the metrics for all requests;
and, for handlers that compute, the watch on a client that leaves.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import time
from collections.abc import Awaitable, Iterable, Iterator
from typing import Any, TypeVar
from uuid import uuid4

import h11
from prometheus_client import CollectorRegistry, Counter, Histogram, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.compute import Pool
from service.errors import MEDIA_TYPE, Finding, Problem, quoted
from service.settings import Settings

LOG = logging.getLogger("softgauge.access")
ERRORS = logging.getLogger("softgauge.error")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_READS = ("GET", "HEAD", "OPTIONS")
_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"), (b"x-frame-options", b"DENY"))
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 100)
_GONE = 499  # in logs and metrics only: the client left before the answer

Result = TypeVar("Result")


class ClientGone(Exception):
    """Nobody is there to be answered."""


class Meters(Collector):
    """The metrics of one app, in a registry of its own."""

    def __init__(self, pool: Pool) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("softgauge_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry)
        self.seconds = Histogram(
            "softgauge_request_seconds", "Time to answer.", ("route",), buckets=_BUCKETS, registry=self.registry
        )
        self._counts = pool.counts
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """What the pool counts, when it is asked for."""
        counts = self._counts
        yield CounterMetricFamily("softgauge_process_restarts", "Computing processes replaced.", counts.restarts)
        yield GaugeMetricFamily("softgauge_requests_waiting", "Requests waiting for a computing process.", counts.waiting)
        yield GaugeMetricFamily("softgauge_processes_busy", "Computing processes at work.", counts.busy)


class Guard:
    """The outermost middleware. Sets scope["state"]["request_id"]."""

    def __init__(self, app: ASGIApp, settings: Settings, meters: Meters) -> None:
        self._app, self._meters = app, meters
        self._hosts = frozenset(settings.hosts())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        else:  # there are no websockets here; a close before accept is a 403
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        headers = Headers(scope=scope)
        request_id = _request_id(headers.get("x-request-id", ""))
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_HEADERS, (b"x-request-id", request_id.encode())]
                if (budgets := scope["state"].get("budgets")) is not None:
                    message["headers"] += budgets.headers()
            await send(message)

        try:
            self._check_host(headers)
            _check_origin(scope["method"], headers)
            await self._app(scope, receive, answer)
        except Problem as problem:
            await respond(problem, scope)(scope, receive, answer)
        except ClientGone:
            pass  # without an answer there is no status, and the record says _GONE
        except Exception:  # noqa: BLE001 - the last place where a problem document can be made; it is logged
            ERRORS.exception("unexpected", extra={"request_id": request_id})
            if not status:
                internal = Problem("internal", "an unexpected error; the log has it under this request id")
                await respond(internal, scope)(scope, receive, answer)
        finally:
            self._record(scope, request_id, status or _GONE, time.perf_counter() - started)

    def _check_host(self, headers: Headers) -> None:
        """DNS rebinding: a page elsewhere must not reach a service on this machine under its own name."""
        given = headers.get("host", "")
        name = re.sub(r":[0-9]*$", "", given).lower()
        if name not in self._hosts and "*" not in self._hosts:
            detail = f"host {quoted(name)} is not served here; add it to SOFTGAUGE_ALLOWED_HOSTS"
            raise Problem("host-not-allowed", detail, (Finding("Host", detail),))

    def _record(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in (*_READS, "POST", "PUT", "DELETE", "PATCH") else "other"
        self._meters.requests.labels(method, route, status).inc()
        self._meters.seconds.labels(route).observe(seconds)
        line = {
            "request_id": request_id,
            "method": method,
            "path": scope["path"][:256],
            "status": status,
            "ms": round(seconds * 1e3, 2),
        }
        LOG.info("request", extra=line)


class Protocol(H11Protocol):
    """uvicorn's, but what is no HTTP at all, and so never comes to the Guard, gets a problem document as well."""

    def send_400_response(self, msg: str) -> None:
        """Answer and close. uvicorn calls this while it handles h11's error, which says more than `msg`."""
        state = self.conn.our_state
        if state in (h11.IDLE, h11.SEND_RESPONSE):  # else an answer has begun, and there is no room for another
            scope = self.scope if state is h11.SEND_RESPONSE else None  # the request with a broken body
            request_id = _request_id(Headers(raw=self.headers).get("x-request-id", "") if scope else "")
            path = scope["path"] if scope else ""
            reason = quoted(str(sys.exc_info()[1] or msg))
            detail = f"this is no request of HTTP/1.1: {reason}; the client, or a proxy before this service, is at fault"
            self._write(Problem("malformed", detail), path, request_id)
            LOG.info("no HTTP: %s", reason, extra={"request_id": request_id, "path": path[:256], "status": 400})
        self.transport.close()

    def _write(self, problem: Problem, path: str, request_id: str) -> None:
        body = problem.document(path[:64], request_id)
        headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        headers += [*_HEADERS, (b"x-request-id", request_id.encode())]
        response = h11.Response(status_code=problem.status, headers=headers, reason=b"Bad Request")
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")


def respond(problem: Problem, scope: Scope) -> Response:
    """The problem document as an answer to the request of that scope."""
    body = problem.document(scope["path"][:64], scope["state"]["request_id"])
    return Response(body, problem.status, problem.headers, MEDIA_TYPE)


def request_id(request: Request) -> str:
    """The id that the Guard gave the request."""
    found: str = request.scope["state"]["request_id"]
    return found


def _request_id(given: str) -> str:
    return given if _REQUEST_ID.fullmatch(given) else uuid4().hex


def _check_origin(method: str, headers: Headers) -> None:
    """A page of another site may not post here."""
    origin = headers.get("origin")
    if origin is None or method in _READS:
        return
    if origin.lower() not in (f"{scheme}://{headers.get('host', '').lower()}" for scheme in ("http", "https")):
        detail = f"origin {quoted(origin)} is not this service; browsers may write from its own pages only"
        raise Problem("origin-not-allowed", detail, (Finding("Origin", detail),))


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """The result of the work, which is cancelled at once if the client leaves (the Guard ends the request then).

    To be called when the body is read.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        await _cancelled((task, gone))


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _cancelled(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel what is not done, and wait for it."""
    open_tasks = [task for task in tasks if not task.done()]
    for task in open_tasks:
        task.cancel()
    if open_tasks:
        await asyncio.wait(open_tasks)
