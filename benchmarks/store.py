"""10,000 stored runs of 200 cases, on SQLite and PostgreSQL: list, compare, history plot, upload.

    python benchmarks/run.py --only store

The baseline of every figure is `GET /health/live` of the same service, asked in between. Runs are put into the store as the
service puts them, but many in a transaction; every one has its rows and its document.
"""

from __future__ import annotations

import http.client
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
import engine
from service import runs
from service.check import Result
from service.store import NewMove, NewRun, Row, Store, new_id, now
from tests import postgres

ROOT = Path(__file__).parent.parent
RUNS, CASES, ROUNDS = 10_000, 200, 300
GOALS = {"list": 100, "compare": 100, "history plot": 100, "upload": 150}


def results(rng: random.Random) -> dict[str, Result]:
    """What 200 cases came to."""
    x = np.zeros((1, 4), np.float32)
    measured = engine.measure(engine.Problem("softmax", x), np.full((1, 4), 0.25, np.float32))
    inputs, asked = {"logits": f"sha256:{'a' * 64}"}, {"op": "softmax", "gate": {"policy": "bound"}, "format": "float32"}
    found = {}
    for i in range(CASES):
        figures = {**engine.figures_of(measured.metrics), "max_ulp": 0.5 + rng.randrange(4) / 8}
        output = f"sha256:{rng.getrandbits(256):064x}"
        entry = engine.Entry(engine.SCHEMA, "numpy 2.4.6 X86_V3", inputs, asked, output, "pass", figures)
        found[f"attention[format=float32,case={i}]"] = Result(entry, "worst at [0, 1]: got 0.25, truth 0.25", tags=("fast",))
    return found


def fill(store: Store, count: int) -> str:
    """Keep so many runs, the first of which is the baseline; its id."""
    rng = random.Random(1)
    some = [results(rng) for _ in range(20)]
    lines = [runs.lines(one) for one in some]
    rows = [[Row(name, row.entry.figures["max_ulp"], row.entry.verdict) for name, row in one.items()] for one in some]
    told = {"version": engine.VERSION, "schema": engine.SCHEMA, "fingerprint": "numpy 2.4.6 X86_V3"}
    first = ""
    for start in range(0, count, 100):
        with store._writing() as connection:  # a hundred in a transaction, since 10,000 of them are synchronised with the disk
            for i in range(start, min(start + 100, count)):
                head = {"id": new_id("run"), "project": "p", "branch": ("main", "fix")[i % 4 == 3], "started_from": "main"}
                head |= {"commit": f"{i:040x}", "testbed": "t4", "at": now()}
                document = runs.document({**head, "environment": {}, "engine": told}, lines[i % 20])
                store._add_run(
                    connection, NewRun(**head, fingerprint="fp", cases=rows[i % 20], document=document), store._keep(document)
                )
                first = first or head["id"]
    store.add(move=NewMove("p", "default", "main", first, "first", "me", now()))
    return first


@contextmanager
def serving(folder: Path, url: str) -> Iterator[http.client.HTTPConnection]:
    """The service over that store."""
    given = {"settings": {"port": 8191, "data_dir": str(folder), "database_url": url, "workers": 2}, "limits": {}}
    command = [sys.executable, str(ROOT / "tests/service/launch.py"), json.dumps(given)]
    process = subprocess.Popen(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                connection = http.client.HTTPConnection("127.0.0.1", 8191, timeout=30)
                connection.request("GET", "/health/ready")
                if connection.getresponse().read() == b'{"status":"ready"}':
                    break
            except OSError:
                pass
            time.sleep(0.05)
        yield http.client.HTTPConnection("127.0.0.1", 8191, timeout=30)
    finally:
        process.terminate()
        process.wait()


def measured(kind: str, url: str) -> Iterator[str]:
    """A row for each question."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(url, Path(folder))
        store.open()
        began = time.perf_counter()
        fill(store, RUNS)
        filled = time.perf_counter() - began
        rng = random.Random(2)
        ids = [row["id"] for row in store.runs("p", limit=2000)[0]]
        fresh = [runs.posted(results(rng)) for _ in range(8)]
        names = store.cases("p")
        store.close()
        with serving(Path(folder), url) as connection:

            def ask(method: str, path: str, body: Any = None, status: int = 200) -> float:
                text = None if body is None else json.dumps(body).encode()
                before = time.perf_counter()
                connection.request(method, path, text, {"Content-Type": "application/json"} if body is not None else {})
                answer = connection.getresponse()
                answer.read()
                taken = time.perf_counter() - before
                assert answer.status == status, answer.status
                return 1000 * taken

            def history() -> float:
                case = rng.choice(names).replace("[", "%5B").replace("]", "%5D").replace("=", "%3D").replace(",", "%2C")
                return ask("GET", f"/v1/projects/p/history?case={case}&branch=main&format=svg")

            def upload() -> float:
                cases = rng.choice(fresh)
                return ask("POST", "/v1/projects/p/check", {"branch": "main", "commit": "c", "cases": cases}, 201)

            questions: dict[str, Callable[[], float]] = {
                "live": lambda: ask("GET", "/health/live"),
                "list": lambda: ask("GET", f"/v1/projects/p/runs?branch=main&cursor={rng.randrange(100, RUNS):x}"),
                "compare": lambda: ask("POST", "/v1/projects/p/baselines/default/compare", {"run_id": rng.choice(ids)}, 201),
                "history plot": history,
                "upload": upload,
            }
            taken: dict[str, list[float]] = {name: [] for name in questions}
            for place in range(ROUNDS + 5):
                for name, question in questions.items():
                    found = question()
                    if place >= 5:
                        taken[name].append(found)
    alone = statistics.median(taken["live"])
    for name, goal in GOALS.items():
        times = sorted(taken[name])
        p50, p99 = statistics.median(times), times[math.ceil(0.99 * len(times)) - 1]
        wanted = f"p99 <= {goal} ms{'' if p99 <= goal else ', missed'}"
        yield f"| {kind} | {name} | {p50:.1f} | {p99:.1f} | {p50 / alone:.0f} | {wanted} |"
    yield f"| {kind} | fill, runs a second | {RUNS / filled:.0f} | | | |"


def tables() -> Iterator[str]:
    """On SQLite, and on PostgreSQL where it is installed."""
    yield f"## Store: {RUNS:,} runs of {CASES} cases\n"
    yield "| database | request | p50, ms | p99, ms | p50, times that of /health/live | goal |\n|---|---|---|---|---|---|"
    yield from measured("SQLite", "")
    if not postgres.missing():
        cluster = postgres.Cluster(fast=False)
        try:
            yield from measured("PostgreSQL", cluster.url())
        finally:
            cluster.remove()
    yield ""
