"""Where engine functions run: warm child processes, each with a deadline, a memory limit and one request at a time.

A child that dies, hangs or eats memory costs its own request a problem document and no other request anything. Pipes carry
frames (lengths, a JSON header, raw bytes), never pickle. `python -m service.compute` is the child.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import resource
import signal
import struct
import sys
import traceback
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import engine
from service.doors import Door, opened
from service.errors import Problem, from_fields
from service.settings import Limits, Settings
from service.split import ONE_THREAD, die_with_parent
from service.tasks import ASK_LESS, TASKS, warm

LOG = logging.getLogger("softgauge.compute")

_LENGTHS = struct.Struct("<II")
_LONGEST_BACKOFF = 10.0  # seconds between starts of a child that does not come up
_LONGEST_WORD = 1024  # characters of what a process says outside of its frames that a line of the log repeats
_ROOT = str(Path(__file__).resolve().parent.parent)

Frame = tuple[dict[str, Any], bytes]
Body = bytes | Door
"""A JSON text, or what lies on disk."""
Write = Callable[..., None]
Spend = Callable[[float], None]


class ChildDied(Exception):
    """The process ended while something was expected of it."""


@dataclass
class Counts:
    """What /metrics shows of the pool."""

    restarts: int = 0
    waiting: int = 0
    busy: int = 0


def _packed(header: dict[str, Any], body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return _LENGTHS.pack(len(text), len(body)) + text + body


class Child:
    """One process, seen from the service."""

    def __init__(self, process: asyncio.subprocess.Process, limits: Limits) -> None:
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise ValueError("a child speaks through pipes")
        self._process, self._in, self._out, self._limits = process, process.stdin, process.stdout, limits
        self._words = asyncio.create_task(_overhear(process.stderr, process.pid))
        self._dismissed = False
        self.served = 0

    @classmethod
    async def start(cls, settings: Settings) -> Child:
        """A process that has answered one tiny request. Raises ChildDied, OSError or TimeoutError."""
        path = os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH"))))
        process = await asyncio.create_subprocess_exec(
            *settings.worker_command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": path},
        )
        child = cls(process, settings.limits)
        try:
            async with asyncio.timeout(settings.worker_start_seconds):
                memory = settings.worker_memory_bytes
                await child._send({"limits": asdict(settings.limits), "memory": memory, "parent": os.getpid()})
                await child._receive()
        except BaseException:
            child.kill()
            await child.ended()
            raise
        return child

    @property
    def alive(self) -> bool:
        """Whether the process has neither ended nor been told to."""
        return self._process.returncode is None and not self._dismissed

    async def ended(self) -> None:
        """Wait for the end of the process, and for its last words."""
        await self._process.wait()
        await asyncio.wait((self._words,))

    async def answer(self, task: str, body: Body, request_id: str, heavy: asyncio.Semaphore) -> bytes:
        """The answer's bytes. Raises Problem, or ChildDied if the process died before it took the request.

        What the answer must not tell goes to the log, under the request's id. A request estimated to be heavy goes on only
        under `heavy`, at once or not at all. Whatever else ends this call, a cancellation above all, kills the process.
        """
        self.served += 1
        taken, estimate, known = False, 0.0, {"request_id": request_id, "pid": self._process.pid}
        try:
            async with contextlib.AsyncExitStack() as held, asyncio.timeout(self._limits.deadline_seconds) as deadline:
                door = {} if isinstance(body, bytes) else {"door": asdict(body)}
                await self._send({"task": task, **door}, body if isinstance(body, bytes) else b"")
                await self._receive()
                taken = True
                header, answer = await self._receive()
                if header["frame"] == "estimate":
                    estimate = float(header["seconds"])
                    deadline.reschedule(asyncio.get_running_loop().time() + _deadline(estimate, self._limits))
                    if header["waits"]:
                        if go := not heavy.locked():
                            await held.enter_async_context(heavy)  # before anything else can run, so that none is told twice
                        await self._send({"go": go})
                    header, answer = await self._receive()
        except TimeoutError:
            self.kill()
            raise _late(task, estimate, self._limits) from None
        except ChildDied:
            self.kill()
            if not taken:
                raise
            await self.ended()
            LOG.error("a computing process died under a request: exit status %s", self._process.returncode, extra=known)
            raise _died() from None
        except BaseException:
            self.kill()
            raise
        if header["frame"] == "problem":
            if header["last"]:
                self.kill()
            if failure := header.get("failure"):
                LOG.error("%s", failure["message"], extra={**known, "traceback": failure["traceback"]})
            raise from_fields(header)
        return answer

    def retire(self) -> None:
        """Let the process end by itself: it stops at the end of its input."""
        self._dismissed = True
        self._in.close()

    def kill(self) -> None:
        """End the process at once."""
        self._dismissed = True
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def _send(self, header: dict[str, Any], body: bytes = b"") -> None:
        try:
            self._in.write(_packed(header, body))
            await self._in.drain()
        except (ConnectionError, RuntimeError):  # uvloop says RuntimeError for a pipe that closed before
            raise ChildDied from None

    async def _receive(self) -> Frame:
        try:
            header, body = _LENGTHS.unpack(await self._out.readexactly(_LENGTHS.size))
            return json.loads(await self._out.readexactly(header)), await self._out.readexactly(body) if body else b""
        except (asyncio.IncompleteReadError, ConnectionError):
            raise ChildDied from None


async def _overhear(spoken: asyncio.StreamReader, pid: int) -> None:
    """What a process writes outside of its frames (what a library prints, a last word) becomes lines of the log."""
    while True:
        try:
            line = await spoken.readline()
        except ValueError:
            line = b"a line too long to repeat"
        if not line:
            return
        text = line.decode(errors="backslashreplace").rstrip()[:_LONGEST_WORD]
        LOG.warning("a computing process wrote: %s", text, extra={"pid": pid})


def _deadline(estimate: float, limits: Limits) -> float:
    """Seconds."""
    return max(limits.deadline_seconds, limits.deadline_factor * estimate)


def _late(task: str, estimate: float, limits: Limits) -> Problem:
    """A retry would meet the same deadline: there is no Retry-After."""
    seconds = _deadline(estimate, limits)
    rule = f"deadline_seconds = {seconds:g}"
    if seconds > limits.deadline_seconds:
        rule = f"deadline_factor = {limits.deadline_factor:g} times the estimate of {estimate:.3g} s"
    return Problem("deadline", f"the computation was stopped at its deadline of {seconds:.3g} s, {rule}; {ASK_LESS[task]}")


def _died() -> Problem:
    return Problem("process-died", "the process that computed this request died; no other request is affected")


def _failed() -> Problem:
    return Problem("internal", "the computation failed; the log says how, under this request id")


def _greedy(task: str, memory: int) -> Problem:
    detail = f"the computation needs more memory than worker_memory_bytes = {memory} allows one process; {ASK_LESS[task]}"
    return Problem("too-much-memory", detail)


class Pool:
    """A child for each worker and one more, each started again when it ends.

    Heavy requests take no more children than there are workers, so that light ones never wait for them.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._idle: asyncio.Queue[Child] = asyncio.Queue()
        self._children: set[Child] = set()
        self._slots: list[asyncio.Task[None]] = []
        self._heavy = asyncio.Semaphore(settings.workers)
        self.counts = Counts()

    @property
    def ready(self) -> bool:
        """Whether a child is up."""
        return any(child.alive for child in self._children)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Pool]:
        """The pool with its children, which end with it."""
        self._slots = [asyncio.create_task(self._slot()) for _ in range(self._settings.workers + 1)]
        try:
            yield self
        finally:
            for slot in self._slots:
                slot.cancel()
            await asyncio.gather(*self._slots, return_exceptions=True)

    async def answer(self, task: str, body: Body, request_id: str = "", spend: Spend = lambda seconds: None) -> bytes:
        """The bytes of the answer, from the next free child. Raises Problem. Cancelling this kills the child.

        spend: told the seconds that a child was busy with it, however it ended.
        """
        for _ in range(self._settings.workers + 2):
            try:
                return await self._attempt(task, body, request_id, spend)
            except ChildDied:  # it was dead before it took the request, which may well ask another
                LOG.warning("a computing process died while idle; trying another", extra={"request_id": request_id})
        raise _died()

    async def _attempt(self, task: str, body: Body, request_id: str, spend: Spend) -> bytes:
        child = await self._free_child()
        self.counts.busy += 1
        clock = asyncio.get_running_loop()
        started = clock.time()
        try:
            return await child.answer(task, body, request_id, self._heavy)
        finally:
            self.counts.busy -= 1
            spend(clock.time() - started)
            self._offer(child)

    async def _free_child(self) -> Child:
        """A child that is up, at once or after a bounded wait."""
        limits = self._settings.limits
        while not self._idle.empty():
            if (child := self._idle.get_nowait()).alive:
                return child
        if self.counts.waiting >= limits.max_waiting:
            raise self._busy(f"{limits.max_waiting} requests are waiting already (the limit max_waiting)")
        self.counts.waiting += 1
        try:
            async with asyncio.timeout(limits.wait_seconds):
                while not (child := await self._idle.get()).alive:
                    pass
                return child
        except TimeoutError:
            raise self._busy(f"no process became free within wait_seconds = {limits.wait_seconds:g}") from None
        finally:
            self.counts.waiting -= 1

    def _busy(self, detail: str) -> Problem:
        if not self.ready:
            return Problem("not-ready", "no process is up yet", headers={"Retry-After": "2"})
        return Problem("too-many-requests", detail, headers={"Retry-After": "2"})

    def _offer(self, child: Child) -> None:
        if child.served >= self._settings.worker_requests:
            child.retire()
        elif child.alive:
            self._idle.put_nowait(child)

    async def _slot(self) -> None:
        """Keep one child up. One that ends before it has served anything is started again more and more slowly."""
        backoff = 0.0
        while True:
            await asyncio.sleep(backoff)
            served = await self._one_life()
            self.counts.restarts += 1
            backoff = 0.0 if served else min(max(0.1, 2 * backoff), _LONGEST_BACKOFF)

    async def _one_life(self) -> bool:
        """From the start of a child to its end; whether it served a request."""
        try:
            child = await Child.start(self._settings)
        except (ChildDied, OSError) as error:  # TimeoutError is an OSError
            LOG.warning("a computing process did not come up: %r", error)
            return False
        self._children.add(child)
        self._offer(child)
        try:
            await child.ended()
        finally:
            self._children.discard(child)
            child.kill()
            await child.ended()
        return child.served > 0


def _read_frame(pipe: BinaryIO) -> Frame | None:
    """The next frame, or None at the end of the input."""
    lengths = pipe.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    header, body = _LENGTHS.unpack(lengths)
    return json.loads(pipe.read(header)), pipe.read(body)


def _confine(parent: int, memory: int) -> int:
    """Die with the parent, stay below the memory limit (which is returned), leave the processor to the event loop first."""
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the parent, which lets requests finish
    os.nice(10)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    allowed = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return allowed


def _own_stdout() -> BinaryIO:
    """The pipe to the parent, moved away from fd 1: what a library prints goes to stderr and harms no frame."""
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return pipe


def _announce(seconds: float, limits: Limits, requests: BinaryIO, write: Write) -> None:
    """Tell the estimate; a heavy request then waits for the word to go on. Raises Problem if that is a no."""
    waits = seconds > limits.light_seconds
    write({"frame": "estimate", "seconds": seconds, "waits": waits})
    if waits and not ((word := _read_frame(requests)) and word[0]["go"]):
        detail = (
            f"as many requests above light_seconds = {limits.light_seconds:g} as may be are under way (this one: {seconds:.3g} s); "
            "try again, or ask for less at a time"
        )
        raise Problem("too-many-requests", detail, headers={"Retry-After": "5"})


def _answer(header: dict[str, Any], body: bytes, limits: Limits, memory: int, requests: BinaryIO, write: Write) -> bool:
    """Run one task and write its answer or its problem; whether the process is still fit for the next one."""
    write({"frame": "taken"})
    task = header["task"]
    try:
        given = opened(Door(**header["door"]), limits) if "door" in header else body
        answer = TASKS[task](given, limits, lambda seconds: _announce(seconds, limits, requests, write))
    except Problem as problem:
        write({"frame": "problem", "last": False, **problem.fields()})
    except MemoryError:
        write({"frame": "problem", "last": True, **_greedy(task, memory).fields()})
        return False
    except Exception as error:  # noqa: BLE001 - the parent logs it, and this process ends
        disagree = isinstance(error, engine.Disagreement)
        message = f"two tiers disagree about the truth: {error}" if disagree else "a computation failed"
        failure = {"message": message, "traceback": traceback.format_exc()}
        write({"frame": "problem", "last": True, "failure": failure, **_failed().fields()})
        return False
    else:
        write({"frame": "answer"}, answer)
    return True


def main() -> None:
    """The child: one request after the other until the input ends."""
    pipe, requests = _own_stdout(), sys.stdin.buffer

    def write(header: dict[str, Any], body: bytes = b"") -> None:
        pipe.write(_packed(header, body))
        pipe.flush()

    start = _read_frame(requests)
    if start is None:
        return
    memory = _confine(start[0]["parent"], start[0]["memory"])
    limits = Limits(**start[0]["limits"])
    warm()
    gc.freeze()  # so that only what requests leave is looked through
    write({"frame": "ready"})
    fit = True
    while fit and (request := _read_frame(requests)):
        fit = _answer(request[0], request[1], limits, memory, requests, write)
        if "door" in request[0]:
            gc.collect()  # an error holds itself, and with it the mapped file


if __name__ == "__main__":
    main()
