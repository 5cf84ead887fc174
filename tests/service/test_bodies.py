"""Bodies on their way to a computing process: the doors for files over HTTP, limits, and what is left on disk (nothing)."""

import contextlib
import json
import os
import resource
import socket
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from service.bodies import FOLDER
from service.settings import Limits
from tests.service.test_compute import children, eventually
from tests.service.test_doors import form, part
from tests.service.test_files import bomb, npy, npz, stored
from tests.service.test_guard import raw, recorded

X = np.random.default_rng(1).normal(0, 4, (8, 100)).astype(np.float32)
P = np.exp(X - X.max(axis=1, keepdims=True))
P /= P.sum(axis=1, keepdims=True)
TENSORS = {
    "evaluate": {"logits": X},
    "truth": {"logits": X},
    "verify": {"logits": X, "output": P, "outputs.0": P},
}
ASKED = {
    "evaluate": {"op": "softmax", "formats": ["float32"], "variants": ["shifted"]},
    "truth": {"op": "softmax", "format": "float16", "digits": 10},
    "verify": {"op": "softmax"},
}
ROUTES = sorted(ASKED)
MULTIPART = {"Content-Type": "multipart/form-data; boundary=b"}
BINARY = {"Content-Type": "application/octet-stream"}


def declared(array, **how):
    return {"dtype": str(array.dtype), "shape": list(array.shape), **(how or {"data": array.tolist()})}


def as_json(route):
    tensors = {name: declared(array) for name, array in TENSORS[route].items() if name != "outputs.0"}
    return ASKED[route] | tensors | ({"outputs": [declared(P)]} if route == "verify" else {})


def request(route):
    return ("request", None, json.dumps(ASKED[route]).encode())


def binary(told, *tensors):
    """Headers and body of the binary layout."""
    text = json.dumps(told).encode()
    headers = {**BINARY, "Inference-Header-Content-Length": str(len(text))}
    return headers, text + b"".join(array.tobytes() for array in tensors)


def by_size(array):
    return declared(array, parameters={"binary_data_size": array.nbytes})


def head(length, *more, path="/v1/evaluate", kind="multipart/form-data; boundary=b"):
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", *more)
    return ("\r\n".join(lines) + (f"\r\nContent-Length: {length}" if length else "") + "\r\n\r\n").encode()


def on_disk(client):
    """Files without a name that the service holds open."""
    found = []
    for descriptor in os.listdir(folder := f"/proc/{client.process.pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"{folder}/{descriptor}"))
    return [path for path in found if path.startswith(str(client.uploads))]


def sizes(client):
    """Of these files, in bytes."""
    found = []
    for descriptor in os.listdir(folder := f"/proc/{client.process.pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"{folder}/{descriptor}").startswith(str(client.uploads)):
                found.append(os.stat(f"{folder}/{descriptor}").st_size)
    return found


# What comes through


@pytest.mark.parametrize("route", ROUTES)
def test_every_door_gives_the_same_answer(service, route):
    tensors = TENSORS[route]
    bodies = {
        "npz": form(request(route), ("tensors", "t.npz", npz(**tensors))),
        "packed npz": form(request(route), ("tensors", "t.npz", npz(np.savez_compressed, **tensors))),
        "safetensors": form(request(route), ("tensors", "t.safetensors", stored(tensors))),
        "npy": form(request(route), *((name, f"{name}.npy", npy(array)) for name, array in tensors.items())),
        "out of line": form(
            ("request", None, request(route)[2] + b" "), *((name, "", npy(array)) for name, array in tensors.items())
        ),
    }
    answer = service.post(f"/v1/{route}", json=as_json(route))
    assert answer.status_code == 200, answer.text
    for body in bodies.values():
        assert service.post(f"/v1/{route}", content=body, headers=MULTIPART).content == answer.content
    told = ASKED[route] | {name: by_size(array) for name, array in tensors.items() if name != "outputs.0"}
    told |= {"outputs": [by_size(P)]} if route == "verify" else {}
    headers, body = binary(told, *tensors.values())
    assert service.post(f"/v1/{route}", content=body, headers=headers).content == answer.content


def test_a_client_library_sends_it_too(service):
    files = {"request": (None, request("verify")[2]), "logits": ("x.npy", npy(X)), "output": ("y.npy", npy(P))}
    assert service.post("/v1/verify", files=files).json()["verdict"] == "pass"


def test_a_body_in_chunks_is_taken(service):
    body = form(request("truth"), ("logits", "x.npy", npy(X)))
    pieces = [b"%x\r\n%s\r\n" % (len(body[i : i + 100]), body[i : i + 100]) for i in range(0, len(body), 100)]
    assert b" 200 " in raw(service, head(0, "Transfer-Encoding: chunked", path="/v1/truth"), *pieces, b"0\r\n\r\n")


def test_more_than_json_may_hold_comes_in_a_file(service):
    x = np.zeros((3, 700_000), np.float16)
    assert x.size > Limits().max_elements
    asked = ("request", None, json.dumps({**ASKED["evaluate"], "op": "logsumexp"}).encode())
    answer = service.post("/v1/evaluate", content=form(asked, ("logits", "x.npy", npy(x))), headers=MULTIPART)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["rows"], answer.json()["n"]) == x.shape


# What does not

REQUEST = request("evaluate")
ONE = ("request", None, b'{"op": "softmax", "params": 1}')
GOOD = ("logits", "x.npy", npy(X))
TOLD = ASKED["evaluate"] | {"logits": by_size(X)}
REFUSED = {
    "another boundary": (form(REQUEST, GOOD, boundary="c"), 400, "malformed", ()),
    "nothing": (b"", 400, "malformed", ()),
    "no end": (form(REQUEST, GOOD)[:-8], 400, "malformed", ()),
    "10,000 parts": (form(REQUEST, *[("outputs.0", "", b"")] * 10_000), 422, "invalid", ["/outputs/0"]),
    "10,000 parts of any name": (form(REQUEST, *[("request", None, b"{}")] * 10_000), 422, "invalid", [""]),
    "huge headers": (b"--b\r\nX: " + b"x" * 10**6 + b"\r\n\r\n{}\r\n--b--\r\n", 400, "malformed", ()),
    "no request": (form(GOOD), 422, "invalid", [""]),
    "no logits": (form(REQUEST), 422, "invalid", ["/logits"]),
    "a part twice": (form(REQUEST, GOOD, GOOD), 422, "invalid", ["/logits"]),
    "an unknown part": (form(REQUEST, GOOD, ("x", "x.npy", npy(X))), 422, "invalid", [""]),
    "a part of another route": (form(REQUEST, GOOD, ("output", "x.npy", npy(X))), 422, "invalid", ["/output"]),
    "a reference of another route": (form(REQUEST, GOOD, ("outputs.0", "", npy(X))), 422, "invalid", ["/outputs"]),
    "a mask of no object": (form(ONE, GOOD, ("mask", "", npy(X > 0))), 422, "invalid", ["/params"]),
    "no mask": (form(REQUEST, GOOD, ("mask", "", npy(X))), 422, "invalid", ["/params/mask"]),
    "a bomb": (form(REQUEST, ("logits", "x.npz", bomb())), 422, "invalid", ["/logits"]),
    "a dtype": (form(REQUEST, ("logits", "x.npy", npy(X.astype(np.int32)))), 422, "invalid", ["/logits"]),
    "a rank": (form(REQUEST, ("logits", "x.npy", npy(X.reshape(1, 2, 2, 2, 100)))), 422, "invalid", ["/logits"]),
    "no rank": (form(REQUEST, ("logits", "x.npy", npy(X[0, 0]))), 422, "invalid", ["/logits"]),
    "an unknown op": (form(("request", None, b'{"op": "softmin"}'), GOOD), 422, "unknown-name", ["/op"]),
    "no JSON": (form(("request", None, b"{"), GOOD), 400, "malformed", ()),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_forms_are_refused(service, is_problem, name):
    body, status, kind, pointers = REFUSED[name]
    found = is_problem(service.post("/v1/evaluate", content=body, headers=MULTIPART), status, kind)
    assert [row["pointer"] for row in found["errors"]] == list(pointers)


def test_targets_are_integers_that_an_index_can_be(service, is_problem):
    asked = ("request", None, json.dumps({**ASKED["evaluate"], "op": "cross_entropy", "variants": ["fused"]}).encode())
    for targets, status in ((np.arange(8, dtype=np.uint8), 200), (np.arange(8, dtype=np.uint64), 422), (X > 0, 422)):
        answer = service.post("/v1/evaluate", content=form(asked, GOOD, ("targets", "", npy(targets))), headers=MULTIPART)
        assert answer.status_code == status, answer.text
    assert answer.json()["errors"][0]["pointer"] == "/targets"


@pytest.mark.parametrize(
    ("told", "tensors", "headers", "status", "pointers"),
    [
        (TOLD, [X], {"Inference-Header-Content-Length": ""}, 400, ["Inference-Header-Content-Length"]),
        (TOLD, [X], {"Inference-Header-Content-Length": "-1"}, 400, ["Inference-Header-Content-Length"]),
        (TOLD, [X], {"Inference-Header-Content-Length": "9" * 18}, 413, ["Inference-Header-Content-Length"]),
        (TOLD, [X], {"Inference-Header-Content-Length": "9" * 19}, 400, ["Inference-Header-Content-Length"]),
        (TOLD, [X], {"Inference-Header-Content-Length": "4000000"}, 400, ["Inference-Header-Content-Length"]),
        (TOLD, [X], {"Inference-Header-Content-Length": "10"}, 400, []),
        (TOLD, [], {}, 422, ["/logits"]),
        (TOLD, [X[:-1]], {}, 422, ["/logits"]),
        (TOLD, [X, X], {}, 422, [""]),
        (TOLD | {"logits": by_size(X) | {"shape": [8, 99]}}, [X], {}, 422, ["/logits"]),
        (TOLD | {"logits": by_size(X) | {"shape": [8, 10**18]}}, [X], {}, 422, ["/logits"]),
        (TOLD | {"logits": by_size(X) | {"dtype": "fp8"}}, [X], {}, 422, ["/logits"]),
        (TOLD | {"logits": by_size(X) | {"dtype": "int32"}}, [X], {}, 422, ["/logits"]),
        (TOLD | {"output": by_size(X)}, [X, X], {}, 422, ["/output"]),
        (TOLD | {"logits": part()}, [np.zeros(6, np.float32)], {"Content-Encoding": "gzip"}, 415, ["Content-Encoding"]),
    ],
)
def test_hostile_binary_bodies_are_refused(service, is_problem, told, tensors, headers, status, pointers):
    right, body = binary(told, *tensors)
    found = is_problem(service.post("/v1/evaluate", content=body, headers=right | headers), status)
    assert [row["pointer"] for row in found["errors"]] == pointers


@pytest.mark.parametrize("value", ["", "; boundary=", '; boundary="', "; boundary=a; boundary=b", "; charset=x"])
def test_a_form_without_a_boundary_is_415(service, is_problem, value):
    found = is_problem(service.post("/v1/verify", content=b"", headers={"Content-Type": f"multipart/form-data{value}"}), 415)
    assert found["errors"][0]["pointer"] == "Content-Type"


def test_a_quoted_boundary_is_read(service):
    headers = {"Content-Type": 'Multipart/Form-Data; x=y; boundary="a b"'}
    body = form(request("truth"), ("logits", "x.npy", npy(X)), boundary="a b")
    assert service.post("/v1/truth", content=body, headers=headers).status_code == 200


# Limits


@pytest.fixture(scope="module")
def small(start):
    """A service that keeps little, and waits briefly for what is slow."""
    limits = {"max_multipart_bytes": 4_000_000, "max_binary_bytes": 10_000, "max_spooled_bytes": 5_000_000}
    with start(limits=limits | {"max_file_elements": 1000, "body_seconds": 1.0, "body_bytes_per_second": 500_000}) as client:
        yield client


@pytest.mark.parametrize(("kind", "most"), [("multipart/form-data; boundary=b", 4_000_000), ("application/octet-stream", 10_000)])
def test_too_large_is_413_before_the_body_is_sent_and_while_it_is(small, kind, most):
    more = ("Inference-Header-Content-Length: 5",)
    got = raw(small, head(most + 1, *more, kind=kind))
    assert b" 413 " in got
    assert f"_bytes = {most}".encode() in got
    chunk = b"%x\r\n" % (most // 2 + 1) + b" " * (most // 2 + 1) + b"\r\n"
    assert b" 413 " in raw(small, head(0, "Transfer-Encoding: chunked", *more, kind=kind), chunk, chunk)
    assert eventually(lambda: not on_disk(small))


def test_a_tensor_of_too_many_elements_is_413(small, is_problem):
    body = form(REQUEST, ("logits", "x.npy", npy(np.zeros((2, 501)))))
    found = is_problem(small.post("/v1/evaluate", content=body, headers=MULTIPART), 413, "too-large")
    assert "max_file_elements = 1000" in found["detail"]
    assert found["errors"][0]["pointer"] == "/logits"


@contextlib.contextmanager
def uploading(client, length, sent, *more):
    """A connection with a part of a body on its way."""
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as connection:
        connection.sendall(head(length, *more) + b" " * sent)
        yield connection


def test_bodies_on_disk_are_bounded_together(small, is_problem):
    body = b"--b\r\n" + b" " * 3_800_000
    with uploading(small, 3_900_000, 3_000_000) as connection:
        assert eventually(lambda: any(size > 1_200_000 for size in sizes(small)))
        answer = small.post("/v1/evaluate", content=body, headers=MULTIPART)
        is_problem(answer, 429, "too-many-requests")
        assert "max_spooled_bytes = 5000000" in answer.json()["detail"]
        assert answer.headers["retry-after"]
        connection.close()
    assert eventually(lambda: not on_disk(small))
    is_problem(small.post("/v1/evaluate", content=body, headers=MULTIPART), 400, "malformed")


def test_a_body_that_stops_is_408_and_one_that_flows_is_not(small):
    started = time.monotonic()
    with uploading(small, 1000, 10) as connection:
        got = connection.makefile("rb").read()  # to its end: the service closes the connection
    assert b" 408 " in got
    assert b"body_seconds = 1, and a second more for each body_bytes_per_second = 500000 that came" in got
    assert 0.9 < time.monotonic() - started < 2.5
    body = form(REQUEST) + b" " * 1_500_000
    pieces = [body[i : i + 500_000] for i in range(0, len(body), 500_000)]
    started = time.monotonic()
    assert b" 400 " in raw(small, head(len(body)), *pieces, pause=0.6)
    assert time.monotonic() - started > 1.5


# What is left


def test_a_client_that_leaves_leaves_nothing(service):
    with uploading(service, 10**8, 3_000_000, "X-Request-ID: left-there"):
        assert eventually(lambda: on_disk(service))
        assert all(path.endswith(" (deleted)") for path in on_disk(service))
        assert os.listdir(service.uploads) == []
    assert recorded(service, "left-there") == 499
    assert eventually(lambda: not on_disk(service))


def test_a_request_leaves_nothing_in_the_service_or_its_processes(service):
    for body, status in ((form(REQUEST, GOOD), 200), (form(REQUEST, ("logits", "x.npz", bomb())), 422), (form(REQUEST), 422)):
        for _ in range(6):
            assert service.post("/v1/evaluate", content=body, headers=MULTIPART).status_code == status
    assert on_disk(service) == []
    assert eventually(lambda: not any(FOLDER in mapped(pid) for pid in children(service)))


def mapped(pid):
    with open(f"/proc/{pid}/maps") as maps:
        return maps.read()


def test_a_process_that_dies_with_a_file_leaves_nothing(start, misbehaving, is_problem):
    with start(worker_command=misbehaving) as client:
        body = form(("request", None, b'{"op": "die"}'), GOOD)
        is_problem(client.post("/v1/evaluate", content=body, headers=MULTIPART), 500, "process-died")
        assert on_disk(client) == []


def test_a_killed_service_leaves_nothing_and_the_next_one_removes_what_another_did(start, tmp_path):
    with start(data_dir=str(tmp_path)) as client, uploading(client, 10**8, 3_000_000):
        assert eventually(lambda: on_disk(client))
        client.process.kill()
        client.process.wait()
        assert os.listdir(client.uploads) == []
    (client.uploads / "body-left").write_bytes(b"x")
    (client.uploads / "another").write_bytes(b"x")
    with start(data_dir=str(tmp_path)) as client:
        assert os.listdir(client.uploads) == ["another"]


def test_where_nothing_can_be_written_json_is_served_all_the_same(start, tmp_path, is_problem):
    (tmp_path / "file").write_text("")
    with start(data_dir=str(tmp_path / "file")) as client:
        answer = client.post("/v1/evaluate", content=form(REQUEST, GOOD), headers=MULTIPART)
        assert "SOFTGAUGE_DATA_DIR" in is_problem(answer, 503, "no-room")["detail"]
        assert answer.headers["retry-after"]
        assert str(tmp_path) not in answer.text
        assert str(tmp_path) in client.log.read_text()
        assert client.post("/v1/evaluate", json=as_json("evaluate")).status_code == 200


def test_a_full_disk_is_no_failure_of_the_service(start, is_problem):
    with start() as client:
        body = form(REQUEST, ("logits", "x.npy", npy(np.zeros((100, 3000), np.float32))))
        before = resource.prlimit(client.process.pid, resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))
        is_problem(client.post("/v1/evaluate", content=body, headers=MULTIPART), 503, "no-room")
        assert "File too large" in client.log.read_text()
        resource.prlimit(client.process.pid, resource.RLIMIT_FSIZE, before)
        assert on_disk(client) == []
        assert client.post("/v1/evaluate", content=body, headers=MULTIPART).status_code == 200


# Memory


def peak(pid, what="VmHWM"):
    """KiB."""
    with open(f"/proc/{pid}/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(what))


def sent_by_curl(client, tmp_path, rows):
    """The answer to rows of 32000 bfloat16, and an output, from files with nothing in them; the op is what is wrong."""
    for name in ("logits", "output"):
        header = stored({}, {name: {"dtype": "BF16", "shape": [rows, 32000], "data_offsets": [0, rows * 64000]}}, b"")
        with (tmp_path / f"{name}.safetensors").open("wb") as file:
            file.write(header)
            file.truncate(len(header) + rows * 64000)
    parts = [f"-F{name}=@{tmp_path}/{name}.safetensors" for name in ("logits", "output")]
    url = f"{client.base_url}/v1/verify"
    done = subprocess.run(["curl", "-s", '-Frequest={"op": "softmin"}', *parts, url], capture_output=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("rows", [600, pytest.param(4096, marks=pytest.mark.soak)])
def test_memory_stays_flat(start, tmp_path, rows):
    """The event loop's, whatever comes; the computing process's in test_doors.py."""
    with start() as client:
        before = peak(client.process.pid)
        assert sent_by_curl(client, tmp_path, rows)["errors"][0]["pointer"] == "/op"
        assert peak(client.process.pid) - before < 24 * 1024


def test_the_loop_answers_others_while_a_body_comes(start, tmp_path):
    with start() as client, ThreadPoolExecutor(1) as threads:
        sent, taken = threads.submit(sent_by_curl, client, tmp_path, 2000), []
        while not sent.done():
            started = time.perf_counter()
            assert client.get("/health/live").status_code == 200
            taken.append(time.perf_counter() - started)
            time.sleep(0.005)
    assert len(taken) > 5
    assert statistics.median(taken) < 0.05
