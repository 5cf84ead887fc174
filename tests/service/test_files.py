"""Tensors in files: what is read, that it is not copied, and that no bytes do harm."""

import errno
import io
import json
import mmap
import struct
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service import files

X = np.array([[0.0, 1.0, 2.0], [3.0, 1.0, -1.0]], np.float32)
Y = np.array([[1, 2]], np.int64)


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(save=np.savez, **arrays):
    stream = io.BytesIO()
    save(stream, **arrays)
    return stream.getvalue()


CODES = {"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float16": "F16", "float32": "F32"}
CODES |= {"float64": "F64", "int64": "I64", "uint8": "U8", "bool": "BOOL"}


def stored(tensors, header=None, data=None):
    """A .safetensors file, written by hand; header, data: instead of what is right."""
    told, raw = {}, b""
    for name, array in tensors.items():
        ends = [len(raw), len(raw) + array.nbytes]
        told[name] = {"dtype": CODES[str(array.dtype)], "shape": list(array.shape), "data_offsets": ends}
        raw += array.tobytes()
    text = json.dumps(told if header is None else header).encode()
    return struct.pack("<Q", len(text)) + text + (raw if data is None else data)


def read(raw, suffix, choose=lambda names: names):
    return files.tensors(memoryview(raw), suffix, choose)


def resident(path):
    """Bytes of a file that are in this process's memory, mapped."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    return sum(int(next(row for row in lines if row.startswith("Rss:")).split()[1]) for line in lines if line.endswith(str(path)))


def soon(condition):
    until = time.monotonic() + 5
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    return condition()


def test_what_is_read_of_a_large_file_does_not_stay_in_memory(monkeypatch, tmp_path):
    """And nothing of that is left when the file is not used any more."""
    monkeypatch.setattr(files, "LARGEST_RESIDENT", 2**20)
    threads, content = threading.active_count(), np.arange(2**18).tobytes()
    (tmp_path / "large").write_bytes(content)
    (tmp_path / "small").write_bytes(content[: 2**20])
    large, small = files.mapped(tmp_path / "large"), files.mapped(tmp_path / "small")
    assert (bytes(large), bytes(small)) == (content, content[: 2**20])
    assert soon(lambda: resident(tmp_path / "large") == 0)
    assert resident(tmp_path / "small") > 0
    assert bytes(large) == content
    del large
    assert soon(lambda: threading.active_count() == threads)


# What is read


@pytest.mark.parametrize(
    ("suffix", "raw"),
    [
        (".npz", npz(x=X, y=Y)),
        (".npz", npz(np.savez_compressed, x=X, y=Y)),
        (".safetensors", stored({"x": X, "y": Y})),
        (".safetensors", safetensors.numpy.save({"x": X, "y": Y}, {"written by": "the official library"})),
    ],
)
def test_all_tensors_of_a_file_or_some(suffix, raw):
    assert files.kind(memoryview(raw)) == suffix
    found = read(raw, suffix)
    assert {name: (array.dtype, array.tolist()) for name, array in found.items()} == {
        "x": (X.dtype, X.tolist()),
        "y": (Y.dtype, Y.tolist()),
    }
    assert list(read(raw, suffix, lambda names: names[1:])) == ["y"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float16", "float64", "int64", "uint8", "bool"])
def test_every_dtype_keeps_its_bits(dtype):
    held = np.arange(2).reshape(1, 2).astype(getattr(ml_dtypes, dtype, dtype))
    found = read(stored({"x": held}), ".safetensors")["x"]
    assert (found.dtype, found.shape, found.tobytes()) == (held.dtype, held.shape, held.tobytes())


@pytest.mark.parametrize("array", [X, np.asfortranarray(X), X.astype(">f4"), X[:, 0], np.float32(3), Y, X > 0])
def test_an_npy_file_of_any_order(array):
    found = read(npy(array), ".npy")[""]
    assert (found.dtype, found.shape, found.tolist()) == (array.dtype.newbyteorder("="), array.shape, array.tolist())


def test_versions_of_npy():
    stream = io.BytesIO()
    np.lib.format.write_array(stream, X, version=(2, 0))
    assert read(stream.getvalue(), ".npy")[""].tolist() == X.tolist()


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
@pytest.mark.parametrize("shift", [0, 1])
def test_nothing_is_copied_also_where_bytes_are_out_of_line(tmp_path, suffix, shift):
    raw = {".npy": npy(X), ".npz": npz(x=X), ".safetensors": stored({"x": X})}[suffix]
    (tmp_path / "file").write_bytes(b"\0" * shift + raw)
    (found,) = files.tensors(files.mapped(tmp_path / "file")[shift:], suffix, lambda names: names).values()
    assert found.tolist() == X.tolist()
    assert not found.flags.writeable
    while isinstance(found, np.ndarray):
        assert not found.flags.owndata
        found = found.base
    assert isinstance(found.obj, mmap.mmap)


def test_a_file_that_cannot_be_mapped_is_read(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(npy(X))
    (tmp_path / "empty").write_bytes(b"")
    assert files.mapped(tmp_path / "empty") == b""

    def unmappable(*_, **__):
        raise OSError(number, "no")

    monkeypatch.setattr(mmap, "mmap", unmappable)
    number = errno.ENODEV
    assert files.npy(files.mapped(tmp_path / "x")).tolist() == X.tolist()
    monkeypatch.setattr(files, "LARGEST_READ", 100)
    with pytest.raises(ValueError, match="152 bytes; a file has at most 100"):
        files.mapped(tmp_path / "x")
    number = errno.ENOMEM
    with pytest.raises(MemoryError, match="152 bytes to map"):
        files.mapped(tmp_path / "x")


# What is not


def headed(shape, descr="<f4", fortran=False, data=b"\0" * 24):
    """An .npy file whose header says so."""
    text = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def packed(content, *names, method=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            with archive.open(info, "w") as member:
                member.write(content)
    return stream.getvalue()


def bomb():
    return packed(npy(np.zeros(10**6, np.float32)), "x.npy")


def packed_size(raw):
    """Of the first member, as it is written."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        return struct.pack("<I", archive.infolist()[0].compress_size)


def twice():
    with pytest.warns(UserWarning, match="Duplicate name"):
        return packed(npy(X), "x.npy", "x.npy")


def changed(raw, *changes):
    """The bytes with others instead of some, which are there."""
    for before, after in changes:
        assert before in raw
        raw = raw.replace(before, after)
    return raw


SIZE = struct.pack("<I", len(npy(X)))
F32 = {"dtype": "F32", "shape": [6]}
HOSTILE = [
    (".npz", bomb(), "x.npy unpacks to more than 100 times its"),
    (".npz", changed(bomb(), (struct.pack("<I", 4_000_128), SIZE)), "Bad CRC-32"),
    (".npz", changed(bomb(), (packed_size(bomb()), b"\xff\xff\xff\x7f")), "x.npy unpacks to more than 100 times its"),
    (".npz", twice(), "two members of the same name, 'x.npy'"),
    (".npz", npz(x=X)[:-30], "no .npz file: File is not a zip file"),
    (".npz", b"PK\x03\x04" * 100, "no .npz file: File is not a zip file"),
    (".npz", packed(b"", *map(str, range(30_000))), "the list of its members has [0-9]+ bytes, above 1048576"),
    (".npz", changed(npz(x=X), (b"NUMPY", b"NUMPX")), "CRC-32 is wrong"),
    (".npz", changed(npz(np.savez_compressed, x=X), (struct.pack("<I", zipfile.crc32(npy(X))), b"abcd")), "Bad CRC-32"),
    (".npz", changed(npz(x=X), (b"PK\x03\x04", b"PK\x03\x05")), "its local header is broken"),
    (".npz", changed(npz(x=X), (SIZE, b"\xff\xff\xff\x7f")), "its local header is broken|Corrupt|cut short"),
    (".npz", npz(x=np.array([None])), "x.npy: dtype object"),
    (".npz", packed(npy(X), "x.npy", method=zipfile.ZIP_LZMA)[:40] + b"\xff" * 40, "no .npz file"),
    (".npy", headed("(1000000000000,)"), "24 bytes of data, which is not shape"),
    (".npy", headed("(0, 1000000000000000000)"), "every extent is at least 1"),
    (".npy", headed("(-6,)"), "every extent is at least 1"),
    (".npy", headed("(True,)"), "every extent is at least 1"),
    (".npy", headed("(1000000000000000000, 1000000000000000000)"), "24 bytes of data"),
    (".npy", headed(str((1,) * 33)), "at most 32 integers"),
    (".npy", headed("(3,)", "|O"), "dtype object"),
    (".npy", headed("(3,)", "<c8"), "dtype complex64"),
    (".npy", headed("(3,)", "<U2"), "dtype <U2"),
    (".npy", headed("(3,)", "<M8[s]"), "dtype datetime64"),
    (".npy", headed("(3,)", [("a", "<f4"), ("b", "<f4")]), "dtype"),
    (".npy", headed("(6,)", data=b"\0" * 25), "25 bytes of data"),
    (".npy", headed("(6,)", data=b"\0" * 23), "23 bytes of data"),
    (".npy", headed("(24,)", "|b1", data=b"\2" * 24), "a byte of 0 or 1"),
    (".npy", b"\x93NUMPY\x03\x00" + b"\0" * 64, "known: 1.0, 2.0"),
    (".npy", b"\x93NUMPY\x02\x00\xff\xff\xff\x7f", "EOF|read|large"),
    (".npy", b"\x93NUMPY", "EOF|read"),
    (".npy", b"hello, I am no array at all", "does not begin as an .npy file does"),
    (".npy", headed("__import__('os').system('true')"), "malformed node or string on line 1: <ast.Call object>"),
    (".npy", headed("(" * 50), "header"),
    (".safetensors", b"", "0 bytes are too few"),
    (".safetensors", struct.pack("<Q", 2**60) + b"{}", "10 bytes are too few"),
    (".safetensors", struct.pack("<Q", 2**20 + 1) + b" " * 2**21, "its header has 1048577 bytes, above 1048576"),
    (".safetensors", struct.pack("<Q", 4) + b"nope", "is no JSON"),
    (".safetensors", struct.pack("<Q", 2) + b"\xff\xff", "is no JSON"),
    (".safetensors", struct.pack("<Q", 100_000) + b"[" * 100_000, "nested too deeply"),
    (".safetensors", struct.pack("<Q", 8000) + b"{" + b'"a":' + b"1" * 7994 + b"}", "an integer of 7994 digits"),
    (".safetensors", struct.pack("<Q", 2) + b"[]", "no JSON object"),
    (".safetensors", struct.pack("<Q", 16) + b'{"a": 1, "a": 2}', "names something twice"),
    (".safetensors", stored({}, {"x": {**F32, "data_offsets": [8, 32]}}, b"\0" * 32), "one after the other: bytes 0 to 8"),
    (".safetensors", stored({}, {"x": {**F32, "data_offsets": [0, 24]}}, b"\0" * 25), "take 24 bytes, and there are 25"),
    (".safetensors", stored({}, {"x": {**F32, "data_offsets": [0, 24]}}, b"\0" * 23), "take 24 bytes, and there are 23"),
    (".safetensors", stored({}, {n: {**F32, "data_offsets": [0, 24]} for n in "ab"}, b"\0" * 24), "one after the other"),
    (".safetensors", stored({}, {"x": {**F32, "data_offsets": [24, 0]}}, b"\0" * 24), "not in order"),
    (".safetensors", stored({}, {"x": {**F32, "data_offsets": [-1, 24]}}, b"\0" * 24), "not in order"),
    (".safetensors", stored({}, {"x": {**F32, "shape": [True], "data_offsets": [0, 24]}}, b"\0" * 24), "every extent"),
    (".safetensors", stored({}, {"x": {**F32, "shape": 6, "data_offsets": [0, 24]}}, b"\0" * 24), "x: its shape is none"),
    (".safetensors", stored({}, {"x": {**F32, "shape": [5], "data_offsets": [0, 24]}}, b"\0" * 24), "x: 24 bytes are not"),
    (".safetensors", stored({}, {"x": {**F32, "dtype": "F9", "data_offsets": [0, 24]}}, b"\0" * 24), "x is F9; known: I8"),
    (
        ".safetensors",
        stored({}, {"x": {**F32, "dtype": "\x1b]0;", "data_offsets": [0, 24]}}, b"\0" * 24),
        r"x is '\\x1b\]0;'; known",
    ),
    (".safetensors", stored({}, {"\x1b[31m": {**F32, "x": 1, "data_offsets": [0, 24]}}, b"\0" * 24), r"'\\x1b\[31m' is told by"),
    (
        ".safetensors",
        stored({}, {"x": {**F32, "shape": [10**19] * 9, "data_offsets": [0, 24]}}, b"\0" * 24),
        r"shape .{64} of float32",
    ),
    (".npz", packed(b"", "\x1b[31m.npy"), r"'\\x1b\[31m.npy': "),
    (".safetensors", stored({}, {"x": {**F32, "x": 1, "data_offsets": [0, 24]}}, b"\0" * 24), "by nothing else"),
    (".safetensors", stored({}, {"x": {**F32, "data_offsets": [0]}}, b"\0" * 24), "two integers"),
    (".safetensors", stored({}, {"x": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]}}, b"\2"), "a byte of 0 or 1"),
]


@pytest.mark.parametrize(("suffix", "raw", "words"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_files_are_refused_in_words_and_cost_nothing(suffix, raw, words):
    with pytest.raises(ValueError, match=words) as caught, bounded(raw):
        read(raw, suffix)
    assert len(str(caught.value)) < 700


def test_what_is_unpacked_is_bounded_all_together(monkeypatch):
    monkeypatch.setattr(files, "LARGEST_READ", 400)
    noise = np.random.default_rng(0).random(20)
    raw = npz(np.savez_compressed, x=noise, y=noise)
    with pytest.raises(ValueError, match=r"x.npy, y.npy unpacks to 576 bytes; at most 400 are read"):
        read(raw, ".npz")
    assert read(raw, ".npz", lambda names: names[:1])["x"].tolist() == noise.tolist()
    assert list(read(npz(x=noise, y=noise), ".npz")) == ["x", "y"]


def test_too_little_memory_is_no_fault_of_the_file(monkeypatch):
    def short(_):
        raise MemoryError

    monkeypatch.setattr(files, "npy", short)
    with pytest.raises(MemoryError):
        read(npz(x=X), ".npz")


# Fuzz

SEEDS = {
    ".npy": [npy(X), npy(Y > 1), npy(np.asfortranarray(X))],
    ".npz": [npz(x=X, y=Y), npz(np.savez_compressed, x=X, y=X)],
    ".safetensors": [stored({"x": X, "y": Y}), safetensors.numpy.save({"x": X, "z": Y})],
}


class bounded:
    """Fails where the memory taken meanwhile is beyond that of what a packed file may hold."""

    def __init__(self, raw):
        self.most = 110 * len(raw) + 8 * 2**20

    def __enter__(self):
        tracemalloc.start()

    def __exit__(self, *_):
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < self.most


@st.composite
def mutated(draw):
    """A suffix, and a file with some bytes changed, cut out or put in."""
    suffix = draw(st.sampled_from(sorted(SEEDS)))
    raw = bytearray(draw(st.sampled_from(SEEDS[suffix])))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(raw)))
        raw[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8) | st.just(b"\xff" * 8) | st.just(b"\0" * 8))
    return suffix, bytes(raw)


def survives(raw, suffix):
    with bounded(raw):
        try:
            found = read(raw, suffix)
        except ValueError:
            return
    for array in found.values():
        assert array.dtype.kind in "fiubV"
        assert array.size > 0
        assert np.array(array).nbytes == array.nbytes  # every element is there to be read


QUIETLY = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}


@settings(max_examples=200, **QUIETLY)
@given(mutated())
@example((".npy", b""))
@example((".npz", b""))
def test_no_bytes_raise_anything_but_a_value_error(file):
    survives(file[1], file[0])


@pytest.mark.soak
@settings(max_examples=50_000, **QUIETLY)
@given(mutated())
def test_no_bytes_raise_anything_but_a_value_error_at_length(file):
    survives(file[1], file[0])
