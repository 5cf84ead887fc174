"""The doors for files: what comes through them, and what hostile bytes do."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.doors import Door, opened
from service.errors import Problem
from service.settings import Limits
from tests.service.test_files import npy, npz, stored

X = np.array([[0.0, 1.0, 2.0], [3.0, 1.0, -1.0]], np.float32)
P = np.array([[0.09003057, 0.24472848, 0.66524094], [0.86681336, 0.11731043, 0.01587624]], np.float32)


def form(*parts, boundary="b"):
    """A multipart body of (name, filename or None, content)."""
    text = b""
    for name, filename, content in parts:
        named = f'; filename="{filename}"' if filename else ""
        text += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + content + b"\r\n"
    return text + f"--{boundary}--\r\n".encode()


def headed(head):
    """A multipart body of one part with these headers."""
    return b"--b\r\n" + head + b"\r\n\r\n{}\r\n--b--\r\n"


NAMED = b"Content-Disposition: form-data; name=request"
REQUEST = ("request", None, b'{"op": "softmax"}')


@pytest.fixture
def through(tmp_path):
    def open_it(body, kind="multipart", limits=None, **door):
        path = tmp_path / "body"
        path.write_bytes(body)
        given = {"boundary": "b"} if kind == "multipart" else {}
        return opened(Door(kind, str(path), **(given | door)), limits or Limits())

    return open_it


def refused(open_it, body, kind, words, **door):
    with pytest.raises(Problem, match=words) as caught:
        open_it(body, **door)
    assert caught.value.kind == kind


# ---- what comes through ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        [("tensors", "t.safetensors", stored({"logits": X, "output": P}))],
        [("tensors", "t.npz", npz(logits=X, output=P))],
        [("logits", "x.npy", npy(X)), ("output", "y.npy", npy(P))],
        [("logits", "", npy(X)), ("output", "y", stored({"whatever": P}))],
    ],
)
def test_every_file_gives_the_same_tensors(through, parts):
    found = through(form(REQUEST, *parts))
    assert found.pop("op") == "softmax"
    assert {name: (a.dtype, a.tolist()) for name, a in found.items()} == {
        "logits": (X.dtype, X.tolist()),
        "output": (P.dtype, P.tolist()),
    }


def test_every_tensor_comes_to_its_place(through):
    tensors = {"targets": np.array([1, 2], np.uint8), "mask": np.array([True, False]), "weights": X[0]}
    request = ("request", None, b'{"params": {"scale": 2}}')
    found = through(
        form(request, ("tensors", "t.safetensors", stored(tensors)), *((f"outputs.{i}", "", npy(P + i)) for i in (1, 0)))
    )
    assert list(found) == ["params", "targets", "outputs"]
    assert {name: np.asarray(value).tolist() for name, value in found["params"].items()} == {
        "scale": 2,
        "mask": [True, False],
        "weights": X[0].tolist(),
    }
    assert [array.tolist() for array in found["outputs"]] == [P.tolist(), (P + 1).tolist()]
    assert "mask" in through(form(REQUEST, ("mask", "", npy(np.array([True])))))["params"]


def test_the_binary_layout(through):
    told = {
        "op": "softmax",
        "logits": {"dtype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": X.nbytes}},
        "output": {"datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": P.nbytes}},
        "params": {"mask": {"datatype": "BOOL", "shape": [2], "parameters": {"binary_data_size": 2}}},
        "outputs": [
            {"dtype": "INT64", "shape": [1, 2], "parameters": {"binary_data_size": 16}},
            {"dtype": "float32", "shape": [2, 3], "parameters": {"binary_data_size": P.nbytes}},
        ],
    }
    text = json.dumps(told).encode()
    found = through(
        text + X.tobytes() + P.tobytes() + b"\1\0" + np.array([1, 2]).tobytes() + P.tobytes(), kind="binary", header=len(text)
    )
    assert list(found) == ["op", "logits", "output", "params", "outputs"]
    arrays = [found["logits"], found["output"], found["params"]["mask"], *found["outputs"]]
    assert [array.tolist() for array in arrays] == [X.tolist(), P.tolist(), [True, False], [[1, 2]], P.tolist()]
    assert [array.dtype for array in arrays[:3]] == [np.float32, np.float32, bool]


def test_parts_may_have_any_headers_and_any_way_to_write_a_name(through):
    text = b"--b\r\ncontent-disposition:form-data;NAME=request\r\nX: 1\r\n\r\n{}\r\n"
    text += (
        b'--b\r\nContent-Type: x/y\r\nContent-Disposition: form-data ; filename="a\\"b.npy"; name="logits"\r\n\r\n'
        + npy(X)
        + b"\r\n--b--"
    )
    assert through(text)["logits"].tolist() == X.tolist()


def test_what_looks_like_a_boundary_is_data(through):
    held = np.frombuffer(b"\r\n--a\r\n--B--\n--b-" + b"\r\n--" * 3, np.uint8)
    assert through(form(REQUEST, ("mask", "", npy(held))))["params"]["mask"].tobytes() == held.tobytes()


def test_a_boundary_is_found_wherever_it_lies(through, monkeypatch):
    for piece in range(1, 12):
        monkeypatch.setattr("service.doors._PIECE", piece)
        assert through(form(REQUEST, ("logits", "x.npy", npy(X))))["logits"].tolist() == X.tolist()


# ---- what does not -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "filename", "raw", "words"),
    [
        ("logits", "x.npy", b"", "the file 'x.npy': it does not begin as an .npy file does"),
        ("logits", "", b"", "the part logits: 0 bytes are too few for a .safetensors file"),
        ("logits", "x.npz", b"PK", "the file 'x.npz': no .npz file"),
        ("tensors", "t.npz", npz(weird=X), "a tensor named 'weird' is not known"),
        ("tensors", "t.npz", npz(**{"outputs.01": X}), "a tensor named 'outputs.01' is not known"),
        ("tensors", "t.npz", npz(), "there is no tensor in it"),
        ("tensors", "x.npy", npy(X), "name its part"),
        ("logits", "t.npz", npz(a=X, b=X), "there are 2 tensors in it, and none is named logits"),
        ("logits", "x" * 1000, npy(X)[:-1], "the file 'x{60}...: the file has 23 bytes of data"),
    ],
)
def test_hostile_files_are_refused_in_words(through, name, filename, raw, words):
    refused(through, form(REQUEST, (name, filename, raw)), "invalid", words)


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b"", "malformed", "does not begin with '--b', the boundary"),
        (b"--x\r\n", "malformed", "does not begin with '--b', the boundary"),
        (b"preamble\r\n" + form(REQUEST), "malformed", "does not begin with '--b', the boundary"),
        (b"--b", "malformed", "cut short"),
        (b"--b--\r\n", "invalid", "the part request is missing"),
        (b"--b--\r\nepilogue", "malformed", "goes on after its last boundary"),
        (form(REQUEST)[:-12], "malformed", "cut short"),
        (form(REQUEST)[:-3], "malformed", "cut short"),
        (form(REQUEST, boundary="bb"), "malformed", "not followed by the end of the line"),
        (headed(b"a: " + b"x" * 10_000), "malformed", "headers do not end within 8192 bytes"),
        (headed(b"a: b\r\n" * 4000), "malformed", "headers do not end within 8192 bytes"),
        (headed(b"a: b\r\na: c"), "malformed", "the header 'a: c'; each is a name, a colon and a value, and is there once"),
        (headed(b"a b: c"), "malformed", "the header 'a b: c'"),
        (headed(b" a: c"), "malformed", "the header ' a: c'"),
        (headed(b"nothing"), "malformed", "the header 'nothing'"),
        (headed(b"\xff: nothing"), "malformed", "the header "),
        (headed(b""), "malformed", "a part without a name"),
        (headed(b"Content-Disposition: form-data"), "malformed", "a part without a name"),
        (headed(b"Content-Disposition: attachment; name=logits"), "malformed", "a part without a name"),
        (headed(b"Content-Disposition: form-data; name=a; name=b"), "malformed", "a part without a name"),
        (headed(b'Content-Disposition: form-data; name="a'), "malformed", "a part without a name"),
        (headed(b"Content-Disposition: form-data; name=a" + b" " * 7000 + b"x"), "malformed", "a part without a name"),
        (headed(NAMED + b"\r\nContent-Transfer-Encoding: base64"), "malformed", "send its bytes as they are"),
        (form(*[("logits", "x.npy", npy(X))] * 64, REQUEST), "invalid", "is there twice"),
        (form(*[REQUEST] * 10_000), "invalid", "two parts are named request"),
        (form(*[(f"outputs.{i % 100}", "x.npy", npy(X)) for i in range(65)]), "malformed", "more than 64 parts"),
        (form(REQUEST, REQUEST), "invalid", "two parts are named request"),
        (form(REQUEST, ("logits", "x.npy", npy(X)), ("logits", "y.npy", npy(X))), "invalid", "is there twice"),
        (form(REQUEST, ("tensors", "t.npz", npz(logits=X)), ("logits", "y.npy", npy(X))), "invalid", "is there twice"),
        (form(("request", None, b'{"logits": [1]}'), ("logits", "y.npy", npy(X))), "invalid", "in the JSON and in a file"),
        (form(("request", None, b'{"outputs": [[1]]}'), ("outputs.0", "", npy(X))), "invalid", "in the JSON and in a file"),
        (form(REQUEST, ("outputs.1", "x.npy", npy(X))), "invalid", "without a gap"),
        (form(REQUEST, ("weird", "x.npy", npy(X))), "invalid", "a part named 'weird' is not known"),
        (form(REQUEST, ("w" * 5000, "x.npy", npy(X))), "invalid", "a part named 'w{60}... is not known"),
        (form(("request", None, b"[]")), "invalid", "the part request is a JSON object, not a list of 0 items"),
        (form(("request", None, b"{")), "malformed", "the part request is not JSON"),
        (form(("request", None, b"\xff")), "malformed", "the part request is not UTF-8"),
        (form(("request", None, b"[" * 100_000)), "malformed", "the part request is nested too deeply"),
        (form(("request", None, b" " * (4 * 2**20 + 1))), "too-large", "max_body_bytes"),
    ],
)
def test_hostile_forms_are_refused_in_words(through, body, kind, words):
    refused(through, body, kind, words)


def test_more_elements_than_the_limit_are_413(through):
    refused(
        through,
        form(REQUEST, ("logits", "x.npy", npy(X))),
        "too-large",
        "max_file_elements = 5",
        limits=Limits(max_file_elements=5),
    )


def part(**told):
    return {"dtype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}} | told


@pytest.mark.parametrize(
    ("told", "data", "kind", "words"),
    [
        ([], b"", "invalid", "the JSON header is a JSON object, not a list of 0 items"),
        ({"logits": part()}, b"", "invalid", "and 0 are left"),
        ({"logits": part()}, b"\0" * 25, "invalid", "1 bytes are left"),
        ({"logits": part(parameters={"binary_data_size": 20})}, b"\0" * 20, "invalid", "20 bytes are not shape"),
        ({"logits": part(parameters={"binary_data_size": True})}, b"\0" * 24, "invalid", "binary_data_size of logits is true"),
        ({"logits": part(parameters=1)}, b"\0" * 24, "invalid", "binary_data_size of logits is null"),
        ({"logits": part(shape=[2, "3"])}, b"\0" * 24, "invalid", "logits: shape .* is none"),
        ({"logits": part(shape="x")}, b"\0" * 24, "invalid", "logits: its shape is none"),
        ({"logits": part(data=[1])}, b"\0" * 24, "invalid", "logits: 'data' is no field of a binary tensor"),
        ({"logits": {"parameters": {"binary_data_size": 24}}}, b"\0" * 24, "invalid", "unknown format 'none'"),
        ({"outputs": [part(), part()]}, b"\0" * 47, "invalid", "binary_data_size of outputs.1 is 24; it is .* and 23 are left"),
        ({"params": {"mask": part(dtype="bool")}}, b"\2" * 24, "invalid", "mask: 24 bytes are not shape"),
        ({"params": {"mask": part(dtype="bool", shape=[24])}}, b"\2" * 24, "invalid", "a byte of 0 or 1"),
        ({"logits": part(parameters={"binary_data_size": 24, "x": 1})}, b"\0" * 24, "invalid", "logits: 'x' is no parameter of a"),
        ({"logits": part(name="output")}, b"\0" * 24, "invalid", "logits has another name"),
        ({"logits": part(datatype="FP64")}, b"\0" * 24, "invalid", "or two dtypes"),
        ({"logits": part(parameters={"binary_data_size": -24})}, b"\0" * 24, "invalid", "is -24"),
        ({"logits": part(parameters={"binary_data_size": 10**30})}, b"\0" * 24, "invalid", "is an integer of 100 bits"),
        ({"logits": part(dtype="FP33")}, b"\0" * 24, "invalid", "unknown format 'fp33'"),
        ({"gate": part()}, b"\0" * 24, "invalid", "'gate' is no tensor"),
    ],
)
def test_hostile_binary_bodies_are_refused_in_words(through, told, data, kind, words):
    text = json.dumps(told).encode()
    refused(lambda body: through(body, kind="binary", header=len(text)), text + data, kind, words)


def test_a_header_that_lies_about_its_length_is_refused(through):
    refused(lambda body: through(body, kind="binary", header=99), b"{}", "malformed", "is 99, and the body has 2 bytes")
    refused(lambda body: through(body, kind="binary", header=1), b"{}", "malformed", "the JSON header")
    small = Limits(max_body_bytes=1)
    refused(lambda body: through(body, kind="binary", header=2, limits=small), b"{}", "too-large", "max_body_bytes")


def test_where_a_fault_lies(through):
    for body, pointer in (
        (form(REQUEST, ("logits", "x.npy", b"")), "/logits"),
        (form(REQUEST, ("mask", "x.npy", b"")), "/params/mask"),
        (form(REQUEST, ("outputs.0", "x.npy", b"")), "/outputs/0"),
        (form(REQUEST, ("tensors", "x.npz", b"")), ""),
        (form(REQUEST, ("outputs.3", "x.npy", npy(X))), "/outputs"),
    ):
        with pytest.raises(Problem) as caught:
            through(body)
        assert [row.pointer for row in caught.value.errors] == [pointer]


def test_large_tensors_are_mapped_and_not_held(tmp_path):
    """Two tensors of 100 million bytes, whose bytes are out of line."""
    path, head = tmp_path / "body", stored({}, {"x": {"dtype": "BF16", "shape": [50, 10**6], "data_offsets": [0, 10**8]}}, b"")
    with path.open("wb") as file:
        file.write(form(REQUEST)[: -len("--b--\r\n")])
        for name in ("logits", "output"):
            part_head = f'--b\r\nContent-Disposition: form-data; name="{name}"'.encode()
            out_of_line = (file.tell() + len(part_head) + 4 + len(head)) % 2 == 0
            file.write(part_head + b" " * out_of_line + b"\r\n\r\n" + head)
            file.seek(10**8, 1)
            file.write(b"\r\n")
        file.write(b"--b--")
    tracemalloc.start()
    found = opened(Door("multipart", str(path), "b"), Limits())
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["logits"].shape == found["output"].shape == (50, 10**6)
    assert [found[name].flags.aligned for name in ("logits", "output")] == [False, False]
    assert most < 8 * 2**20


# ---- fuzz --------------------------------------------------------------------------------------------------------------

TOLD = {"op": "softmax", "logits": part(), "outputs": [part()], "params": {"weights": part()}}
BINARY = json.dumps(TOLD).encode()
WHOLE = [
    (form(REQUEST, ("tensors", "t.npz", npz(logits=X, output=P))), {"boundary": "b"}),
    (form(REQUEST, ("logits", "x.npy", npy(X)), ("output", "", stored({"x": P}))), {"boundary": "b"}),
    (BINARY + X.tobytes() * 3, {"header": len(BINARY)}),
]
QUIETLY = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}


@st.composite
def mutated(draw):
    """A body with some bytes changed, cut out or put in, and its door."""
    raw, door = draw(st.sampled_from(WHOLE))
    raw = bytearray(raw)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(raw)))
        raw[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8) | st.sampled_from([b"\r\n", b"--b", b'"', b";", b":"]))
    return bytes(raw), door


def survives(tmp_path_factory, body):
    raw, door = body
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.write_bytes(raw)
    found = None
    try:
        opened(Door("multipart" if "boundary" in door else "binary", str(path), **door), Limits())
    except Problem as problem:
        found = problem
    assert found is None or found.status in (400, 413, 422)
    assert found is None or len(found.document("/", "x")) < 16_384


def test_what_is_mutated_is_valid(tmp_path):
    for raw, door in WHOLE:
        (tmp_path / "body").write_bytes(raw)
        assert "logits" in opened(Door("multipart" if "boundary" in door else "binary", str(tmp_path / "body"), **door), Limits())


@settings(max_examples=200, **QUIETLY)
@given(body=mutated())
def test_no_body_raises_anything_but_a_problem(tmp_path_factory, body):
    survives(tmp_path_factory, body)


@pytest.mark.soak
@settings(max_examples=50_000, **QUIETLY)
@given(body=mutated())
def test_no_body_raises_anything_but_a_problem_at_length(tmp_path_factory, body):
    survives(tmp_path_factory, body)
