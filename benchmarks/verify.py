"""A verdict over HTTP beside the same one in this process: what the way there and back costs, by each door, as Markdown.

run.py calls this with a service that is idle. Bodies are made beforehand, connections are kept, and the requests of a door and
`engine.verify` take turns.
"""

from __future__ import annotations

import base64
import io
import json
import statistics
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from functools import partial

import numpy as np

import engine
from service.settings import Limits

ROUNDS = 5
SECONDS = 1.0  # of each measurement, each round
Load = Callable[[int, bytes, int, float], list[float]]
Array = np.ndarray


def problem(rows: int, n: int) -> tuple[Array, Array]:
    """Float32 logits, and their softmax as a right kernel gives it."""
    x = engine.generate("gaussian", rows, n, 1, sigma=4.0).astype(np.float32)
    wide = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    return x, (wide / wide.sum(axis=1, keepdims=True)).astype(np.float32)


def tables(port: int, clients: Executor, load: Load) -> Iterator[str]:
    """One row a door; the goal is that of a million float32."""
    small, large = problem(32, 1000), problem(1000, 1000)
    rows: list[tuple[str, tuple[Array, Array], bytes, str]] = [
        ("32 x 1000 float32, .safetensors", small, form({"tensors": safetensors(*small)}), ""),
        ("32 x 1000 float32, .npy", small, form(dict(zip(("logits", "output"), map(npy, small), strict=True))), ""),
        ("32 x 1000 float32, JSON, base64", small, document(*map(encoded, small)), ""),
        ("32 x 1000 float32, JSON, numbers", small, document(*map(listed, small)), ""),
        ("1000 x 1000 float32, .npy", large, form(dict(zip(("logits", "output"), map(npy, large), strict=True))), "p50 <= 60 ms"),
        ("1000 x 1000 float32, .safetensors", large, form({"tensors": safetensors(*large)}), ""),
    ]
    yield "## Verify: a right softmax, the default gate, one client\n"
    yield "| what | body, MB | p50 ms | engine.verify here, p50 ms | share of transport | goal |\n|---|---|---|---|---|---|"
    for name, tensors, sent, goal in rows:
        asked, alone = [], []
        judge = partial(engine.verify, engine.Problem("softmax", tensors[0]), tensors[1], audit=Limits().audit_logits)
        clients.submit(load, port, sent, 1, 0.5).result()  # warm
        judge()
        for _ in range(ROUNDS):
            asked += clients.submit(load, port, sent, 1, SECONDS).result()
            alone += _repeated(judge, SECONDS)
        p50, own = (1000 * statistics.median(taken) for taken in (asked, alone))
        yield f"| {name} | {len(sent) / 1e6:.2f} | {p50:.1f} | {own:.1f} | {max(0.0, 1 - own / p50):.0%} | {goal} |"
    yield ""


def _repeated(run: Callable[[], object], seconds: float) -> list[float]:
    until, taken = time.perf_counter() + seconds, []
    while (start := time.perf_counter()) < until:
        run()
        taken.append(time.perf_counter() - start)
    return taken


# The bodies


def npy(tensor: Array) -> bytes:
    """A .npy file."""
    stream = io.BytesIO()
    np.save(stream, tensor)
    return stream.getvalue()


def safetensors(x: Array, c: Array) -> bytes:
    """A .safetensors file of float32 logits and output."""
    size = x.nbytes
    told = {"logits": {"dtype": "F32", "shape": x.shape, "data_offsets": [0, size]}}
    told["output"] = {"dtype": "F32", "shape": c.shape, "data_offsets": [size, 2 * size]}
    header = json.dumps(told).encode()
    return struct.pack("<Q", len(header)) + header + x.tobytes() + c.tobytes()


def encoded(tensor: Array) -> dict[str, object]:
    """Its bytes in base64."""
    data = base64.b64encode(tensor.tobytes()).decode()
    return {"dtype": "float32", "shape": tensor.shape, "encoding": "base64", "data": data}


def listed(tensor: Array) -> dict[str, object]:
    """Its elements as numbers."""
    return {"dtype": "float32", "shape": tensor.shape, "data": tensor.tolist()}


def document(logits: object, output: object) -> bytes:
    """A request in JSON."""
    return _posted("application/json", json.dumps({"op": "softmax", "logits": logits, "output": output}).encode())


def form(files: Mapping[str, bytes]) -> bytes:
    """A request in multipart/form-data."""
    parts = {"request": b'{"op": "softmax"}', **files}
    head = '--b\r\nContent-Disposition: form-data; name="{0}"; filename="{0}"\r\n\r\n'
    body = b"".join(head.format(name).encode() + content + b"\r\n" for name, content in parts.items()) + b"--b--\r\n"
    return _posted("multipart/form-data; boundary=b", body)


def _posted(kind: str, body: bytes) -> bytes:
    head = f"POST /v1/verify HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
