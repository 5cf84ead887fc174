"""The doors for files: what comes through them, and what hostile bytes do."""

import io
import json
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service import files
from service.doors import Door, opened
from service.errors import Problem
from service.settings import Limits

X = np.array([[0.0, 1.0, 2.0], [3.0, 1.0, -1.0]], np.float32)
P = np.array([[0.09003057, 0.24472848, 0.66524094], [0.86681336, 0.11731043, 0.01587624]], np.float32)


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def form(*parts, boundary="b"):
    """A multipart body of (name, filename or None, content)."""
    text = b""
    for name, filename, content in parts:
        named = f'; filename="{filename}"' if filename else ""
        text += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + content + b"\r\n"
    return text + f"--{boundary}--\r\n".encode()


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
        [("tensors", "t.safetensors", safetensors.numpy.save({"logits": X, "output": P}))],
        [("tensors", "t.npz", npz(logits=X, output=P))],
        [("logits", "x.npy", npy(X)), ("output", "y.npy", npy(P))],
        [("logits", "", npy(X)), ("output", "y", safetensors.numpy.save({"whatever": P}))],
    ],
)
def test_every_file_gives_the_same_tensors(through, parts):
    found = through(form(REQUEST, *parts))
    assert json.loads(found.text) == {"op": "softmax"}
    assert {name: (a.dtype, a.tolist()) for name, a in found.arrays.items()} == {
        "logits": (X.dtype, X.tolist()),
        "output": (P.dtype, P.tolist()),
    }


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float16", "float64"])
def test_every_format_keeps_its_bits(through, dtype):
    held = np.arange(6).reshape(2, 3).astype(getattr(ml_dtypes, dtype, dtype))
    found = through(form(REQUEST, ("tensors", "t.safetensors", stored({"logits": held})))).arrays["logits"]
    assert found.dtype == held.dtype
    assert found.tobytes() == held.tobytes()


CODES = {"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float16": "F16", "float32": "F32"}
CODES |= {"float64": "F64", "int64": "I64", "uint8": "U8", "bool": "BOOL"}


def stored(tensors, header=None, data=None):
    """A .safetensors file, written by hand; header, data: instead of what is right."""
    told, raw = {}, b""
    for name, array in tensors.items():
        told[name] = {
            "dtype": CODES[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [len(raw), len(raw) + array.nbytes],
        }
        raw += array.tobytes()
    text = json.dumps(told if header is None else header).encode()
    return struct.pack("<Q", len(text)) + text + (raw if data is None else data)


def test_targets_are_int64_and_masks_booleans(through):
    tensors = {"targets": np.array([1, 2], np.uint8), "mask": np.array([True, False])}
    found = through(form(REQUEST, ("tensors", "t.safetensors", stored(tensors)))).arrays
    assert (found["targets"].dtype, found["mask"].dtype) == (np.int64, bool)


def test_arrays_of_other_orders_are_read(through):
    for array in (np.asfortranarray(X), X.astype(">f4")):
        found = through(form(REQUEST, ("logits", "x.npy", npy(array)))).arrays["logits"]
        assert (found.dtype, found.tolist()) == (np.float32, X.tolist())


def test_the_binary_layout(through):
    told = {
        "op": "softmax",
        "logits": {"dtype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": X.nbytes}},
        "output": {"datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": P.nbytes}},
        "outputs": [{"dtype": "float32", "shape": [2, 3], "parameters": {"binary_data_size": P.nbytes}}],
    }
    text = json.dumps(told).encode()
    found = through(text + X.tobytes() + P.tobytes() + P.tobytes(), kind="binary", header=len(text))
    assert json.loads(found.text) == {"op": "softmax", "outputs": []}
    assert {name: a.tolist() for name, a in found.arrays.items()} == {
        "logits": X.tolist(),
        "output": P.tolist(),
        "outputs.0": P.tolist(),
    }


# ---- what does not -----------------------------------------------------------------------------------------------------


def bomb():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("logits.npy", npy(np.zeros(10**6, np.float32)))
    return stream.getvalue()


def twice():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("logits.npy", npy(X))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("logits.npy", npy(X))
    return stream.getvalue()


def headed(shape, descr="<f4", fortran=False, data=b"\0" * 24):
    """An .npy file whose header says so."""
    text = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


F32 = {"dtype": "F32", "shape": [6]}
HOSTILE = [
    ("x.npz", bomb(), "packed more than 100 to 1"),
    ("x.npz", twice(), "two members are named 'logits'"),
    ("x.npz", npz(logits=X)[:-30], "it is no .npz file"),
    ("x.npy", headed("(1000000000000,)"), "24 bytes of data, which is not shape"),
    ("x.npy", headed("(0, 1000000000000000000)"), "every extent is at least 1"),
    ("x.npy", headed("(3,)", "|O"), "dtype object"),
    ("x.npy", headed("(3,)", "<c8"), "dtype complex64"),
    ("x.npy", headed("(3,)", [("a", "<f4"), ("b", "<f4")]), "dtype"),
    ("x.npy", headed("(6,)", data=b"\0" * 25), "25 bytes of data"),
    ("x.npy", headed("(6,)", data=b"\0" * 23), "23 bytes of data"),
    ("x.npy", b"\x93NUMPY\x03\x00" + b"\0" * 64, "known: 1.0, 2.0"),
    ("x.npy", b"\x93NUMPY", "EOF|read"),
    ("x.npy", b"hello, I am no array at all", "does not begin as an .npy file does"),
    ("x.npy", headed("__import__('os').system('true')"), "malformed node"),
    ("x.safetensors", b"", "does not begin as a .safetensors file does"),
    ("x.safetensors", struct.pack("<Q", 2**60) + b"{}", "does not begin as a .safetensors file does"),
    ("x.safetensors", stored({}), "holds no tensor"),
    ("x.safetensors", struct.pack("<Q", 4) + b"nope", "is not JSON"),
    ("x.safetensors", struct.pack("<Q", 100_000) + b"[" * 100_000, "is not JSON"),
    ("x.safetensors", struct.pack("<Q", 2) + b"[]", "no JSON object"),
    ("x.safetensors", struct.pack("<Q", 16) + b'{"a": 1, "a": 2}', "names something twice"),
    ("x.safetensors", stored({}, {"logits": {**F32, "data_offsets": [8, 32]}}, b"\0" * 32), "holes, overlaps"),
    ("x.safetensors", stored({}, {"logits": {**F32, "data_offsets": [0, 24]}}, b"\0" * 25), "left over"),
    ("x.safetensors", stored({}, {"logits": {**F32, "data_offsets": [0, 25]}}, b"\0" * 24), "outside of the file"),
    ("x.safetensors", stored({}, {n: {**F32, "data_offsets": [0, 24]} for n in "ab"}, b"\0" * 24), "overlaps"),
    ("x.safetensors", stored({}, {"logits": {**F32, "data_offsets": [-1, 24]}}, b"\0" * 24), "outside of the file"),
    ("x.safetensors", stored({}, {"logits": {**F32, "shape": [True], "data_offsets": [0, 24]}}, b"\0" * 24), "every extent"),
    ("x.safetensors", stored({}, {"logits": {**F32, "dtype": "F9", "data_offsets": [0, 24]}}, b"\0" * 24), "unknown format 'f9'"),
    ("x.safetensors", stored({}, {"logits": {**F32, "x": 1, "data_offsets": [0, 24]}}, b"\0" * 24), "by nothing else"),
    ("x.safetensors", stored({}, {"logits": {**F32, "data_offsets": [0]}}, b"\0" * 24), "two integers"),
    ("x.safetensors", stored({}, {"mask": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]}}, b"\2"), "a byte of 0 or 1"),
    (
        "x.safetensors",
        stored({}, {"targets": {"dtype": "U64", "shape": [1], "data_offsets": [0, 8]}}, b"\xff" * 8),
        "is no class index",
    ),
]


@pytest.mark.parametrize(("name", "raw", "words"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_files_are_refused_in_words(through, name, raw, words):
    refused(through, form(REQUEST, ("tensors" if name != "x.npy" else "logits", name, raw)), "invalid", words)


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b"", "malformed", "does not begin with its boundary"),
        (b"--x\r\n", "malformed", "does not begin with its boundary"),
        (b"--b", "malformed", "without a line of its own"),
        (b"--b--\r\n", "invalid", "the part request is missing"),
        (form(REQUEST)[:-12], "malformed", "cut short"),
        (b"--b\r\n" + b"a: " + b"x" * 10_000 + b"\r\n\r\nz\r\n--b--", "malformed", "headers do not end"),
        (form(*[("logits", "x.npy", npy(X))] * 70), "malformed", "more than 64 parts"),
        (form(REQUEST, REQUEST), "invalid", "two parts are named request"),
        (form(REQUEST, ("logits", "x.npy", npy(X)), ("logits", "y.npy", npy(X))), "invalid", "is there twice"),
        (form(REQUEST, ("tensors", "t.npz", npz(logits=X)), ("logits", "y.npy", npy(X))), "invalid", "is there twice"),
        (form(REQUEST, ("weird", "x.npy", npy(X))), "invalid", "a part named 'weird' is not known"),
        (form(REQUEST, ("tensors", "t.npz", npz(weird=X))), "invalid", "a tensor named 'weird' is not known"),
        (form(REQUEST, ("logits", "t.npz", npz(a=X, b=X))), "invalid", "has 2 tensors and none is named logits"),
        (form(REQUEST, ("logits", "x.npy", npy(X.reshape(1, 1, 1, 2, 3)))), "invalid", "the rank is at most 4"),
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
        ([], b"", "invalid", "is an object"),
        ({"logits": part()}, b"", "invalid", "and 0 are left"),
        ({"logits": part()}, b"\0" * 25, "invalid", "1 bytes are left"),
        ({"logits": part(parameters={"binary_data_size": 20})}, b"\0" * 20, "invalid", "20 bytes are not shape"),
        ({"logits": part(parameters={"binary_data_size": True})}, b"\0" * 24, "invalid", "binary_data_size of logits is true"),
        ({"logits": part(parameters=1)}, b"\0" * 24, "invalid", "binary_data_size of logits is null"),
        ({"logits": part(shape=[2, "3"])}, b"\0" * 24, "invalid", "shape of logits"),
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


# ---- fuzz --------------------------------------------------------------------------------------------------------------

SEEDS = [npy(X), npz(logits=X, output=P), stored({"logits": X, "targets": np.array([1, 2])})]


@st.composite
def mutated(draw):
    """A valid file with some bytes changed, cut out or put in."""
    raw = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(raw)))
        raw[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(raw)


def parse(raw, suffix):
    try:
        found = files.tensors(memoryview(raw), suffix)
    except ValueError:
        return
    assert sum(array.nbytes for array in found.values()) <= 8 * len(raw) + 100 * len(raw)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated(), st.sampled_from(["", ".npy", ".npz", ".safetensors"]))
@example(b"", "")
def test_no_bytes_raise_anything_but_a_value_error(raw, suffix):
    parse(raw, suffix)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 220))
def test_no_body_raises_anything_but_a_problem(tmp_path_factory, raw, header):
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    for body, door in (
        (form(REQUEST, ("logits", "x.npy", raw)) + raw, Door("multipart", str(path), "b")),
        (b"--b\r\n" + raw, Door("multipart", str(path), "b")),
        (raw, Door("binary", str(path), header=header)),
    ):
        path.write_bytes(body)
        try:
            opened(door, Limits())
        except Problem:
            continue


@pytest.mark.soak
@settings(max_examples=50_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated(), st.sampled_from(["", ".npy", ".npz", ".safetensors"]))
def test_no_bytes_raise_anything_but_a_value_error_at_length(raw, suffix):
    parse(raw, suffix)
