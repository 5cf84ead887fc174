"""What is fast and how fast, as Markdown: requests a second, memory of the idle service, the truth beside mpmath and scipy.

    python benchmarks/run.py
    python benchmarks/run.py --only truth

Every figure stands beside its baseline, measured in turn with it, round by round, on the same machine. The service runs as
`softgauge serve` with two workers; all clients are coroutines of one other process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import itertools
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import mpmath
import numpy as np

import engine
from engine.arithmetic import Arithmetic
from engine.truth import Truth
from engine.variants import of_op

ROUNDS = 5
SECONDS = 2.0  # of each measurement, each round
CLIENTS = (1, 16)
FORMATS = ["float16", "float32", "float64"]
WIDE = ["float16", "bfloat16", "float32", "float64"]
ROW = engine.generate("gaussian", 1, 1000, 0, sigma=4.0)
VARIANTS = ["naive", "shifted"]
LOGITS = engine.generate("gaussian", 1, 10, 0, sigma=4.0)
SMALL = {"op": "softmax", "logits": LOGITS.tolist(), "formats": FORMATS, "variants": VARIANTS}
LARGE = {"op": "softmax", "inputs": {"family": "gaussian", "rows": 4, "n": 1000, "seed": 0}, "formats": FORMATS}


def request(path: str, body: dict[str, object] | None = None) -> bytes:
    """The bytes of one request on a connection that is kept."""
    if body is None:
        return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


EVALUATE, LIVE, BUSY = request("/v1/evaluate", SMALL), request("/health/live"), request("/v1/evaluate", LARGE)


# The clients


def load(port: int, sent: bytes, clients: int, seconds: float, background: bytes = b"") -> list[float]:
    """Seconds of each request, sent again and again by so many clients; four more clients send the background."""
    return asyncio.run(_load(port, sent, clients, seconds, background))


async def _load(port: int, sent: bytes, clients: int, seconds: float, background: bytes) -> list[float]:
    until = time.perf_counter() + seconds
    behind = [asyncio.create_task(_client(port, background, until + 1.0, 0.0)) for _ in range(4 if background else 0)]
    if behind:
        await asyncio.sleep(0.5)
    pause = 0.005 if behind else 0.0  # in front of a load, one looks now and then instead of adding to it
    rounds = await asyncio.gather(*(_client(port, sent, until, pause) for _ in range(clients)))
    for task in behind:
        task.cancel()
    await asyncio.gather(*behind, return_exceptions=True)
    return list(itertools.chain.from_iterable(rounds))


async def _client(port: int, sent: bytes, until: float, pause: float) -> list[float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    taken = []
    try:
        while (start := time.perf_counter()) < until:
            writer.write(sent)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(head.decode())
            await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
            taken.append(time.perf_counter() - start)
            await asyncio.sleep(pause)
    finally:
        writer.close()
    return taken


# The service


@contextlib.contextmanager
def service() -> Iterator[tuple[int, int]]:
    """(process id, port) of a service that has computed its page's example and is idle."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "service.cli", "serve", "--port", str(port)]
    env = {**os.environ, "SOFTGAUGE_WORKERS": "2"}
    process = subprocess.Popen(command, cwd=Path(__file__).parent.parent, env=env, stderr=subprocess.DEVNULL)
    try:
        _wait(process, port)
        yield process.pid, port
    finally:
        process.terminate()
        process.wait(20)


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    while process.poll() is None:
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/")
            if b"not computed yet" not in connection.getresponse().read():
                return
        time.sleep(0.1)
    raise RuntimeError("the service did not start")


# The figures


def evaluates(port: int, clients: Executor) -> Iterator[str]:
    """Requests a second and their latency, beside transport alone and the engine alone."""
    kinds = {"POST /v1/evaluate": EVALUATE, "GET /health/live": LIVE}
    found: dict[tuple[str, int], list[list[float]]] = {key: [] for key in itertools.product(kinds, CLIENTS)}
    alone: list[float] = []
    clients.submit(load, port, EVALUATE, 16, 1.0).result()  # warm
    for _ in range(ROUNDS):
        for (kind, count), rounds in found.items():
            rounds.append(clients.submit(load, port, kinds[kind], count, SECONDS).result())
        alone += repeated(lambda: engine.evaluate(engine.Problem("softmax", LOGITS), FORMATS, VARIANTS), SECONDS)
    yield "## Evaluate: softmax of 10 logits, three formats, two variants\n"
    yield "| what | clients | requests/s | p50 ms | p99 ms | goal |\n|---|---|---|---|---|---|"
    goals = {("POST /v1/evaluate", 1): "p50 <= 25 ms", ("POST /v1/evaluate", 16): ">= 150 requests/s"}
    for (kind, count), rounds in found.items():
        rate = statistics.median(len(taken) / SECONDS for taken in rounds)
        yield f"| {kind} | {count} | {rate:.0f} | {_latencies(itertools.chain(*rounds))} | {goals.get((kind, count), '')} |"
    yield f"| engine.evaluate in one process | - | {len(alone) / sum(alone):.0f} | {_latencies(alone)} | |\n"


def liveness(port: int, clients: Executor) -> Iterator[str]:
    """Latency of /health/live while every computing process is busy."""
    idle, busy = [], []
    for _ in range(ROUNDS):
        idle += clients.submit(load, port, LIVE, 1, SECONDS).result()
        busy += clients.submit(load, port, LIVE, 1, SECONDS, BUSY).result()
    yield "## /health/live, one client\n"
    yield "| while | requests | p50 ms | p99 ms | goal |\n|---|---|---|---|---|"
    yield f"| nothing else runs | {len(idle)} | {_latencies(idle)} | |"
    yield f"| both processes compute, two more requests wait | {len(busy)} | {_latencies(busy)} | p99 <= 15 ms |\n"


def truths() -> Iterator[str]:
    """Time of the certified truth of softmax beside exp, sum and divide by mpmath at the same working precision."""
    fmt = engine.find_format("float64")
    yield "## The certified truth: softmax of float64 logits, sigma 10\n"
    yield "| n | truth, us an element | plain mpmath loop, us an element | ratio | goal |\n|---|---|---|---|---|"
    for n, rows in ((10, 200), (1000, 4), (32_000, 1)):
        logits = engine.generate("gaussian", rows, n, 1, sigma=10.0)
        context = mpmath.MPContext()
        context.prec = Truth(engine.Problem("softmax", logits), fmt).bits + 16
        ours, theirs = [], []
        for _ in range(ROUNDS + 2):
            ours.append(_seconds(lambda x=logits: _certified(x, fmt)) / logits.size)
            theirs.append(_seconds(lambda x=logits, c=context: [_plain(row, c) for row in x.tolist()]) / logits.size)
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        yield f"| {n} | {statistics.median(ours) * 1e6:.1f} | {statistics.median(theirs) * 1e6:.1f} | {ratio:.2f} | <= 1.5 |"
    yield ""


def _certified(logits: np.ndarray, fmt: engine.Format) -> None:
    truth = Truth(engine.Problem("softmax", logits), fmt)
    for row in range(truth.rows):
        truth.resolved(row)


def _plain(row: Sequence[float], context: mpmath.MPContext) -> list[object]:
    terms = [context.exp(x) for x in row]
    total = sum(terms, context.zero)
    return [term / total for term in terms]


def catalogue() -> Iterator[str]:
    """All variants of an op on one row in four formats, beside the same variants run and not judged."""
    yield "## The catalogue: evaluate of one row of 1000 logits, all variants, float16, bfloat16, float32, float64\n"
    yield "| op | variants | evaluate, s | the variants alone, s | ratio | goal |\n|---|---|---|---|---|---|"
    for op, goal in (("softmax", "<= 1 s"), ("log_softmax", ""), ("logsumexp", "")):
        rounds = [(_seconds(partial(_judged, op)), _seconds(partial(_unjudged, op))) for _ in range(ROUNDS)]
        ours, alone = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(judged / unjudged for judged, unjudged in rounds)
        yield f"| {op} | {len(of_op(op))} | {ours:.2f} | {alone:.2f} | {ratio:.1f} | {goal} |"
    yield ""


def _judged(op: str) -> None:
    engine.evaluate(engine.Problem(op, ROW), WIDE)


def _unjudged(op: str) -> None:
    for name in WIDE:
        fmt = engine.FORMATS[name]
        x = engine.round_array(ROW, fmt)
        for row in of_op(op):
            row.run(x, Arithmetic(fmt))


def memory(parent: int) -> Iterator[str]:
    """Resident and proportional memory of each process of the idle service."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    figures = {f"computing process {i}": _memory(pid) for i, pid in enumerate(children, 1)}
    figures = {"service": _memory(str(parent)), **figures}
    yield "## Memory of the idle service\n"
    yield "| process | RSS MiB | PSS MiB |\n|---|---|---|"
    for name, (rss, pss) in figures.items():
        yield f"| {name} | {rss:.0f} | {pss:.0f} |"
    rss, pss = (sum(column) for column in zip(*figures.values(), strict=True))
    yield f"| all | {rss:.0f} | {pss:.0f} |\n"


def _memory(pid: str) -> tuple[float, float]:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return int(lines["Rss"].split()[0]) / 1024, int(lines["Pss"].split()[0]) / 1024


def repeated(run: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each run, again and again for that long."""
    until = time.perf_counter() + seconds
    taken = []
    while time.perf_counter() < until:
        taken.append(_seconds(run))
    return taken


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _latencies(seconds: Iterable[float]) -> str:
    """p50 and p99 in milliseconds, nearest rank, as two cells."""
    ordered = sorted(seconds)
    return " | ".join(f"{1000 * ordered[-(-len(ordered) * share // 100) - 1]:.1f}" for share in (50, 99))


def machine() -> str:
    """The processor, the load before the run, and the versions that matter."""
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    versions = f"CPython {platform.python_version()}, numpy {np.__version__}, mpmath {mpmath.__version__} ({mpmath.libmp.BACKEND})"
    load_before = f"load average before the run {os.getloadavg()[0]:.2f}"
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores; {versions}; {load_before}.\n"


def verdicts(port: int, clients: Executor) -> Iterator[str]:
    """The table of verify.py."""
    import verify

    yield from verify.tables(port, clients, load)


def reached() -> Iterator[str]:
    """The tables of truth.py, which is imported here so that the clients' process need not load scipy."""
    import truth

    yield from truth.tables()


def checks() -> Iterator[str]:
    """The table of check.py."""
    import check

    yield from check.tables()


Served = Callable[[int, int, Executor], Iterator[str]]

SERVED: dict[str, Served] = {
    "memory": lambda parent, _port, _clients: memory(parent),
    "evaluate": lambda _parent, port, clients: evaluates(port, clients),
    "live": lambda _parent, port, clients: liveness(port, clients),
    "verify": lambda _parent, port, clients: verdicts(port, clients),
}


def stores() -> Iterator[str]:
    """The table of store.py, which takes minutes to fill its databases."""
    import store

    yield from store.tables()


ALONE: dict[str, Callable[[], Iterator[str]]] = {
    "catalogue": catalogue,
    "mpmath": truths,
    "truth": reached,
    "check": checks,
    "store": stores,
}


ASKED = ("store",)
"""Parts that are run only where they are asked for: they take long."""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="What is fast and how fast, as Markdown.")
    parser.add_argument("--only", choices=[*SERVED, *ALONE], help="one part alone")
    only = parser.parse_args().only
    print(machine(), flush=True)
    for line in itertools.chain(
        _served(only), *(part() for name, part in ALONE.items() if only == name or (only is None and name not in ASKED))
    ):
        print(line, flush=True)


def _served(only: str | None) -> Iterator[str]:
    """The parts that ask a service, which is started for them."""
    parts = [part for name, part in SERVED.items() if only in (None, name)]
    if not parts:
        return
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as clients, service() as (parent, port):
        clients.submit(time.sleep, 1.0).result()
        for part in parts:
            yield from part(parent, port, clients)


if __name__ == "__main__":
    main()
