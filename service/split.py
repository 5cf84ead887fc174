"""Parts of one computation over child processes: a callable like the builtin map, in order, with few parts on their way."""

from __future__ import annotations

import ctypes
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from typing import Protocol, TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_AHEAD = 2  # parts on their way for each process: one computed, one ready when that is done
_LOOK = 1.0  # seconds between looks at the processes while a part is waited for
_DIED = "a process that computed a part died, perhaps for want of memory; try fewer processes"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class SplitError(Exception):
    """A process ended before its part was done."""


class Map(Protocol):
    """The builtin map, of one iterable."""

    def __call__(self, function: Callable[[Part], Result], parts: Iterable[Part], /) -> Iterator[Result]: ...


@contextmanager
def split(processes: int) -> Iterator[Map]:
    """A map that runs a module's function in so many child processes; with one it is the builtin, and no process starts.

    Its results come in order, and no more than two parts for each process are on their way, so that memory stays flat.
    It raises what the function raised, or SplitError. The processes start with the first part and end with the block; if
    that ends in an error they are killed.
    """
    if processes == 1:
        yield map
        return
    children = _Children()
    executor = ProcessPoolExecutor(processes, get_context("spawn"), _start, (os.getpid(),))
    try:
        with _environment(ONE_THREAD):
            yield partial(_in_order, executor, children, _AHEAD * processes)
    except BaseException:
        for child in children.alive():
            child.kill()
        # Without this the executor could wait for ever for the rest of a result that was cut short.
        executor._result_queue._writer.close()  # type: ignore[attr-defined]  # no public way
        raise
    finally:
        executor.shutdown(cancel_futures=True)


class _Children:
    """The processes that were started since."""

    def __init__(self) -> None:
        self._others = active_children()
        self._seen: set[BaseProcess] = set()

    def alive(self) -> set[BaseProcess]:
        """Those that have not ended."""
        alive = {child for child in active_children() if child not in self._others}
        self._seen |= alive
        return alive

    def lost(self) -> bool:
        """Whether one that was alive is no more."""
        return bool(self._seen - self.alive())


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends; end here if the parent is gone already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before the line above
        os._exit(1)


def _start(parent: int) -> None:
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the parent


def _in_order(
    executor: ProcessPoolExecutor, children: _Children, most: int, function: Callable[[Part], Result], parts: Iterable[Part]
) -> Iterator[Result]:
    pending: deque[Future[Result]] = deque()
    try:
        for part in parts:
            pending.append(_submitted(executor, function, part))
            children.alive()
            if len(pending) == most:
                yield _result(pending.popleft(), children)
        while pending:
            yield _result(pending.popleft(), children)
    except BrokenExecutor:
        raise SplitError(_DIED) from None


def _result(future: Future[Result], children: _Children) -> Result:
    """The result of a part. An executor does not see that a process died in the middle of writing one: look now and then."""
    while not wait((future,), timeout=_LOOK).done:
        if children.lost():
            raise SplitError(_DIED)
    return future.result()


def _submitted(executor: ProcessPoolExecutor, function: Callable[[Part], Result], part: Part) -> Future[Result]:
    """The part's future. A process that this starts inherits the blocked Ctrl-C, so that it is silent from its first line."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        return executor.submit(function, part)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """The variables set for what starts meanwhile; NumPy's threads are counted when it is imported."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
