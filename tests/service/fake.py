"""A stand-in for the service: it reads a verify request by other code than the client's, and judges it roughly.

What arrives is kept in `seen`; `replies` are given in place of a verdict, first in, first out.
"""

import io
import json
import re
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import ml_dtypes
import numpy as np
import safetensors

DTYPES = {f"{kind.upper()}{8 * size}": f"<{kind}{size}" for kind in "iuf" for size in (1, 2, 4, 8) if (kind, size) != ("f", 1)}
DTYPES |= {"BF16": ml_dtypes.bfloat16, "F8_E5M2": ml_dtypes.float8_e5m2, "F8_E4M3": ml_dtypes.float8_e4m3fn, "BOOL": "?"}


@dataclass
class Fake:
    """url: where it listens. seen: {path, headers, body, request, tensors} of each POST."""

    url: str = ""
    seen: list = field(default_factory=list)
    replies: list = field(default_factory=list)

    @property
    def last(self):
        return self.seen[-1]


def parts(content_type, body):
    """{name: (headers, data)} of a multipart body: RFC 2046 5.1.1 to the letter."""
    boundary = re.fullmatch(r"multipart/form-data; boundary=([0-9A-Za-z'()+_,./:=?-]{1,70})", content_type)[1].encode()
    opening, *middle, closing = (b"\r\n" + body).split(b"\r\n--" + boundary)
    assert (opening, closing) == (b"", b"--\r\n")
    found = {}
    for part in middle:
        head, data = part.removeprefix(b"\r\n").split(b"\r\n\r\n", 1)
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        name = re.match(r'form-data; name="([\w.]+)"', headers["Content-Disposition"])[1]
        assert name not in found
        found[name] = (headers, data)
    return found


def read_safetensors(data):
    """{name: array}, by the official reader."""
    found = {}
    for name, row in safetensors.deserialize(data):
        found[name] = np.frombuffer(row["data"], DTYPES[row["dtype"]]).reshape(row["shape"])
    return found


def read(content_type, body):
    """The JSON and the tensors of a request."""
    found = parts(content_type, body)
    headers, request = found.pop("request")
    assert headers["Content-Type"] == "application/json"
    if "tensors" in found:
        headers, data = found.pop("tensors")
        assert 'filename="tensors.safetensors"' in headers["Content-Disposition"]
        tensors = read_safetensors(data)
    else:
        tensors = {name: np.load(io.BytesIO(data)) for name, (_, data) in found.items()}
        found = {}
    assert not found
    return json.loads(request), tensors


def rough(op, logits, targets):
    """The result in float64, along the last axis."""
    x = logits.astype("float64")
    lse = x.max(-1, keepdims=True) + np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
    if op == "cross_entropy":
        return (lse - np.take_along_axis(x, targets[..., None].astype("int64"), -1))[..., 0]
    return {"softmax": np.exp(x - lse), "log_softmax": x - lse}[op]


def judged(request, tensors):
    """An answer of the shape of /v1/verify, good to 2 %."""
    truth, got = rough(request["op"], tensors["logits"], tensors.get("targets")), tensors["output"].astype("float64")
    assert got.shape == truth.shape
    far = np.abs(got - truth) > 0.02 * np.abs(truth)
    worst = [
        {"index": list(map(int, at)), "logit": float(tensors["logits"][tuple(at)[:2]]), "got": float(got[tuple(at)])}
        | {"expected": f"{truth[tuple(at)]:.16e}", "ulp": 8388608.0, "rel": 1.0}
        for at in np.argwhere(far)[:8]
    ]
    findings = [{"kind": "beyond", "detail": f"{far.sum()} of {far.size} elements are off"}] if far.any() else []
    gate = request.get("gate", {"policy": "bound"})
    self_test = {"caught": ["zeros", "uniform"], "missed": ["half"], "equivalent": []}
    return {
        "verdict": "fail" if far.any() else "pass",
        "findings": findings,
        "metrics": {},
        "worst": worst,
        "gate": {**gate, "self_test": self_test, "vacuous_fraction": 0.0},
        "digests": {"logits": "sha256:" + "1" * 64, "output": "sha256:" + "2" * 64},
    }


class _Handler(BaseHTTPRequestHandler):
    fake = Fake()

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.reply(200, {}, b"{}")

    def do_POST(self):
        fake = self.fake
        if fake.replies and callable(fake.replies[0]):  # a wrong behaviour, on the bare connection
            return fake.replies.pop(0)(self)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        fake.seen.append({"path": self.path, "headers": self.headers, "body": body})
        if fake.replies:
            return self.reply(*fake.replies.pop(0))
        request, tensors = read(self.headers["Content-Type"], body)
        fake.seen[-1].update(request=request, tensors=tensors)
        answer = json.dumps(judged(request, tensors)).encode()
        return self.reply(200, {"Content-Type": "application/json"}, answer)

    def reply(self, status, headers, body):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(body)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def running():
    """A Fake that listens on a free port of this machine."""
    fake = Fake()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": fake}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        fake.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":  # `python fake.py --host 127.0.0.1 --port N`: what `softgauge serve` is to a test
    port = int(sys.argv[sys.argv.index("--port") + 1])
    ThreadingHTTPServer(("127.0.0.1", port), _Handler).serve_forever()
