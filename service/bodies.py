"""The bodies of requests: their type, size and time, and where they wait for a computing process, unparsed.

JSON waits in memory. What may be large is written to a file without a name in a folder of the service's own: it is gone when the
request ends, however it ends, and when the service does, killed or not. Nothing here blocks the event loop, or looks into a body.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TypeVar

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from service.compute import Body
from service.doors import Door, parameters
from service.errors import Finding, Problem, quoted
from service.guard import ERRORS, ClientGone, request_id, unless_gone
from service.settings import Limits, Settings

Result = TypeVar("Result")

FOLDER = "uploads"
"""In the folder for data."""
JSON, MULTIPART, BINARY = "application/json", "multipart/form-data", "application/octet-stream"
LENGTH = "Inference-Header-Content-Length"
_PREFIX = "body-"
_PIECE = 2**20  # bytes gathered before they are written
_CLOSE = {"Connection": "close"}  # of a body that is not read to its end


async def answered(request: Request, task: str) -> Response:
    """The answer of a computing process to a request with a body. Raises Problem."""
    async with _received(request) as body:
        return Response(await computed(request, task, body), media_type=JSON)


async def computed(request: Request, task: str, body: Body) -> bytes:
    """What a computing process makes of a body, at the cost of whoever asks. Raises Problem."""
    budgets = request.scope["state"].get("budgets")
    spend = [budgets.spend] if budgets is not None else []
    return await unless_gone(request, request.app.state.pool.answer(task, body, request_id(request), *spend))


async def collected(request: Request, most: str = "max_body_bytes") -> bytes:
    """A JSON body, which nothing has looked into. most: the limit on its size. Raises Problem."""
    _check_json(request.headers, f"{JSON} in UTF-8")
    _check_encoding(request.headers)
    limits: Limits = request.app.state.settings.limits
    return await _collected(request, limits, _Most(most, getattr(limits, most)))


class Spool:
    """Bodies on disk, together of bounded size. taken: their bytes."""

    def __init__(self, settings: Settings) -> None:
        self._folder, self._most = Path(settings.data_dir) / FOLDER, settings.limits.max_spooled_bytes
        self.taken = 0

    def clear(self) -> None:
        """Remove what a killed service can have left where the file system gives every file a name for a moment."""
        with contextlib.suppress(OSError):
            for path in self._folder.glob(f"{_PREFIX}*"):
                path.unlink(missing_ok=True)

    @contextlib.asynccontextmanager
    async def file(self) -> AsyncIterator[_Spooled]:
        """An empty body, which ends with the block. Raises Problem where there is no room for it."""
        with contextlib.ExitStack() as held:
            try:
                body = _Spooled(self, await _in_thread(self._opened))
            except OSError as error:
                raise _no_room(error) from None
            held.callback(body.close)
            yield body

    def _opened(self) -> IO[bytes]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return tempfile.TemporaryFile(prefix=_PREFIX, dir=self._folder, buffering=0)

    def take(self, size: int) -> None:
        """Count bytes that are to be written. Raises Problem above the limit."""
        self.taken += size
        if self.taken > self._most:
            detail = f"the bodies on disk have reached max_spooled_bytes = {self._most} together; try again later"
            raise Problem("too-many-requests", detail, headers={"Retry-After": "5", **_CLOSE})


class _Spooled:
    """One body on disk. size: its bytes."""

    def __init__(self, spool: Spool, file: IO[bytes]) -> None:
        self._spool, self._file = spool, file
        self._gathered: list[bytes] = []
        self.size = self._written = 0

    @property
    def path(self) -> str:
        """Where a process of the same user opens the file, which has no other name."""
        return f"/proc/{os.getpid()}/fd/{self._file.fileno()}"

    async def add(self, piece: bytes) -> None:
        """Raises Problem."""
        self.size += len(piece)
        self._spool.take(len(piece))
        self._gathered.append(piece)
        if self.size - self._written >= _PIECE:
            await self.write()

    async def write(self) -> None:
        """Write what is gathered. Raises Problem."""
        data, self._gathered, self._written = b"".join(self._gathered), [], self.size
        try:
            await _in_thread(lambda: _write(self._file, data))
        except OSError as error:
            raise _no_room(error) from None

    def close(self) -> None:
        """Nothing is left of it."""
        self._spool.taken -= self.size
        self._file.close()


def _write(file: IO[bytes], data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _no_room(error: OSError) -> Problem:
    ERRORS.error("a body could not be written to the folder for data: %s", error)
    detail = "the body could not be written to disk: SOFTGAUGE_DATA_DIR names the folder, and the log says what is wrong with it"
    return Problem("no-room", detail, headers={"Retry-After": "30", **_CLOSE})


async def _in_thread(function: Callable[[], Result]) -> Result:
    """The function's result. A cancellation waits for its end, as it may use what is closed next."""
    work = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait((work,))
        work.exception()  # nobody else will ask for it
        raise


@dataclass(frozen=True)
class _Most:
    """The limit on a body's size."""

    name: str
    size: int

    def exceeded(self, headers: dict[str, str] | None = None) -> Problem:
        """With the ways out."""
        if self.name == "max_run_bytes":
            return Problem(
                "too-large", f"the body is larger than {self.name} = {self.size}; send fewer cases at a time", headers=headers
            )
        doors = "" if self.name == "max_multipart_bytes" else "multipart/form-data takes tensors in files; "
        reads = "`softgauge evaluate` and `verify` read files of up to 2^31 elements, packed ones and JSON of up to 256 MiB"
        detail = f"the body is larger than {self.name} = {self.size}; {doors}without a server, {reads}"
        return Problem("too-large", detail, headers=headers)


def _most(kind: str, limits: Limits) -> _Most:
    name = {MULTIPART: "max_multipart_bytes", BINARY: "max_binary_bytes"}.get(kind, "max_body_bytes")
    return _Most(name, getattr(limits, name))


@contextlib.asynccontextmanager
async def _received(request: Request) -> AsyncIterator[Body]:
    """The body, which ends with the block. Raises Problem."""
    limits: Limits = request.app.state.settings.limits
    kind, given = parameters(request.headers.get("content-type", ""))
    if kind not in (MULTIPART, BINARY):
        _check_json(request.headers)
    _check_encoding(request.headers)
    if kind not in (MULTIPART, BINARY):
        yield await _collected(request, limits)
        return
    door = _door(kind, given.get("boundary", ""), request.headers, limits)
    async with request.app.state.spool.file() as body:
        arriving = _arriving(request, _most(kind, limits), limits, limits.body_bytes_per_second)
        async with contextlib.aclosing(arriving) as pieces:
            async for piece in pieces:
                await body.add(piece)
        await body.write()
        yield replace(door, path=body.path)


def _door(kind: str, boundary: str, headers: Headers, limits: Limits) -> Door:
    """How the body is to be read, by its headers; where it lies is not yet known."""
    if kind == MULTIPART:
        if not re.fullmatch(r"[ -~]{0,69}[!-~]", boundary):
            detail = f"{MULTIPART} needs the parameter boundary in Content-Type, of 1 to 70 characters of ASCII"
            raise Problem("unsupported-media-type", detail, (Finding("Content-Type", detail),))
        return Door("multipart", "", boundary)
    length = headers.get(LENGTH, "")
    if not re.fullmatch("[0-9]{1,18}", length):
        given = f"not {quoted(length)}" if length else "and it is missing"
        detail = f"{BINARY} needs the header {LENGTH}, the number of bytes of JSON before those of the tensors, {given}"
        raise Problem("malformed", detail, (Finding(LENGTH, detail),))
    if int(length) > limits.max_body_bytes:
        rule = f"above max_body_bytes = {limits.max_body_bytes}; send its tensors as bytes after it"
        raise Problem("too-large", f"the JSON header has {length} bytes, {rule}", (Finding(LENGTH, f"{length} bytes, {rule}"),))
    return Door("binary", "", header=int(length))


_ALL = f"{JSON} in UTF-8, {MULTIPART} or {BINARY}"


def _check_json(headers: Headers, taken: str = _ALL) -> None:
    kind, _, rest = headers.get("content-type", "").partition(";")
    charset = rest.replace(" ", "").replace('"', "").lower()
    if kind.strip().lower() != JSON or charset not in ("", "charset=utf-8"):
        given = quoted(headers.get("content-type", "an unnamed type"))
        detail = f"this route takes {taken}, not {given}"
        raise Problem("unsupported-media-type", detail, (Finding("Content-Type", detail),))


def _check_encoding(headers: Headers) -> None:
    encodings = ", ".join(headers.getlist("content-encoding"))
    if encodings.strip().lower() not in ("", "identity"):
        detail = f"content encoding {quoted(encodings)} is not taken; send the body as it is"
        raise Problem("unsupported-media-type", detail, (Finding("Content-Encoding", detail),))


async def _collected(request: Request, limits: Limits, most: _Most | None = None) -> bytes:
    """A JSON body."""
    async with contextlib.aclosing(_arriving(request, most or _most(JSON, limits), limits)) as pieces:
        parts = [piece async for piece in pieces]
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def _arriving(request: Request, most: _Most, limits: Limits, rate: float = float("inf")) -> AsyncGenerator[bytes, None]:
    """The body piece by piece, in time: for each so many bytes that have come it has a second more. Raises Problem."""
    declared, size, more = request.headers.get("content-length", ""), 0, True
    if declared.isdigit() and (len(declared) > 18 or int(declared) > most.size):
        raise most.exceeded()
    state, clock = request.app.state, asyncio.get_running_loop()
    if state.receiving >= limits.max_receiving:
        detail = f"{limits.max_receiving} bodies are on their way already (the limit max_receiving)"
        raise Problem("too-many-requests", detail, headers={"Retry-After": "2", **_CLOSE})
    state.receiving += 1
    started = clock.time()
    try:
        while more:
            async with asyncio.timeout_at(started + limits.body_seconds + size / rate):
                message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece, more = message.get("body", b""), message.get("more_body", False)
            size += len(piece)
            if size > most.size:
                raise most.exceeded(_CLOSE)
            yield piece
    except TimeoutError:
        longer = f", and a second more for each body_bytes_per_second = {rate:g} that came" if rate < float("inf") else ""
        detail = f"the body was not complete within body_seconds = {limits.body_seconds:g}{longer}"
        raise Problem("body-timeout", detail, headers=_CLOSE) from None
    finally:
        state.receiving -= 1
