"""Tensors in the bytes of a file: .npy, .npz and .safetensors, each by its header alone. Whatever is wrong is a ValueError.

Nothing is unpickled, nothing is allocated on a header's word, and an array looks into the bytes unless they are out of line.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections import Counter
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

import engine

Array = NDArray[Any]

LARGEST_UNPACKED = 256 * 2**20
"""Bytes of the members of an .npz, unpacked, at most."""
LARGEST_RATIO = 100
"""Of the bytes of a member of an .npz, unpacked to packed."""
LONGEST_HEADER = 2**20
"""Bytes of the header of a .safetensors file at most."""
_INTEGERS = {"I8": "i1", "I16": "i2", "I32": "i4", "I64": "i8", "U8": "u1", "U16": "u2", "U32": "u4", "U64": "u8", "BOOL": "?"}


def tensors(raw: memoryview, suffix: str) -> dict[str, Array]:
    """All tensors of a file, by name; of an .npy file the one, under its suffix. suffix: of its name, or empty: it is looked at."""
    known = suffix if suffix in (".npy", ".npz", ".safetensors") else _kind(raw)
    if known == ".npy":
        return {".npy": npy(raw)}
    return npz(raw) if known == ".npz" else safetensors(raw)


def _kind(raw: memoryview) -> str:
    """By the first bytes."""
    head = bytes(raw[:6])
    return ".npy" if head == np.lib.format.MAGIC_PREFIX else ".npz" if head[:4] == b"PK\x03\x04" else ".safetensors"


def dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of a format, of bool or of an integer, by any of its names."""
    if name.upper() in _INTEGERS or name.lower() in ("bool", *(f"{s}int{b}" for s in ("", "u") for b in (8, 16, 32, 64))):
        return np.dtype(_INTEGERS.get(name.upper(), name.lower()))
    try:
        return engine.find_format(name).dtype
    except engine.UnknownName as error:
        raise ValueError(str(error)) from None


def viewed(raw: memoryview, kind: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Little-endian bytes in row-major order as an array of its own byte order."""
    if math.prod(shape) * kind.itemsize != len(raw):
        raise ValueError(f"{len(raw)} bytes are not shape {list(shape)[:8]} of {kind}")
    return _checked(np.require(np.frombuffer(raw, dtype=kind.newbyteorder("<")), kind, "A").reshape(shape))


def _checked(array: Array) -> Array:
    """Booleans are 0 or 1, and integers are those of targets."""
    if array.dtype == bool and array.size and array.view(np.uint8).max() > 1:
        raise ValueError("a boolean is a byte of 0 or 1")
    if array.dtype.kind in "iu":
        if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
            raise ValueError(f"{array.max()} is no class index")
        return array.astype(np.int64)
    return array


def npy(raw: memoryview) -> Array:
    """The array in an .npy file's bytes."""
    stream = BytesIO(bytes(raw[: 2**16 + 12]))
    if bytes(raw[:6]) != np.lib.format.MAGIC_PREFIX:
        raise ValueError("it does not begin as an .npy file does; numpy.save writes one")
    try:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f".npy version {version[0]}.{version[1]}; known: 1.0, 2.0")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, kind = header(stream)
    except ValueError:
        raise
    except Exception as error:  # noqa: BLE001  a broken header makes NumPy's parser raise anything
        raise ValueError(
            f"its header cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from None
    if kind.kind not in "fiub" or kind.itemsize > 8:
        known = "float16, float32, float64, and integers for targets (bfloat16, 8 bits: .safetensors)"
        raise ValueError(f"dtype {str(kind)[:64]}; known: {known}")
    if len(shape) > 32 or any(extent < 1 for extent in shape):
        raise ValueError(f"shape {list(shape)[:8]}; every extent is at least 1")
    data = raw[stream.tell() :]
    if math.prod(shape) * kind.itemsize != len(data):
        raise ValueError(f"the file has {len(data)} bytes of data, which is not shape {list(shape)[:8]} of {kind}")
    flat = np.require(np.frombuffer(data, dtype=kind), kind.newbyteorder("="), "A")
    return _checked(flat.reshape(shape, order="F" if fortran else "C"))


def npz(raw: memoryview) -> dict[str, Array]:
    """The arrays in an .npz file's bytes, each member bounded before it is unpacked."""
    try:
        with zipfile.ZipFile(BytesIO(bytes(raw))) as archive:
            members = archive.infolist()
            names = [member.filename.removesuffix(".npy") for member in members]
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                raise ValueError(f"two members are named {twice[0][:64]!r}")
            if sum(member.file_size for member in members) > LARGEST_UNPACKED:
                raise ValueError(f"its members have more than {LARGEST_UNPACKED} bytes, unpacked")
            return {name: _member(archive, member) for name, member in zip(names, members, strict=True)}
    except ValueError:
        raise
    except Exception as error:  # noqa: BLE001  a broken archive makes zipfile raise anything
        raise ValueError(f"it is no .npz file: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:100] if str(error) else type(error).__name__


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    if not member.filename.endswith(".npy"):
        raise ValueError(f"member {member.filename[:64]!r} is no .npy file")
    if member.file_size > LARGEST_RATIO * max(member.compress_size, 1):
        raise ValueError(f"member {member.filename[:64]!r} is packed more than {LARGEST_RATIO} to 1")
    with archive.open(member) as file:
        data = file.read(member.file_size + 1)
    if len(data) != member.file_size:
        raise ValueError(f"member {member.filename[:64]!r} has not the size that is told of it")
    return npy(memoryview(data))


def safetensors(raw: memoryview) -> dict[str, Array]:
    """The tensors in a .safetensors file's bytes: an 8-byte length, a JSON header, and data without holes or overlaps."""
    length = int.from_bytes(raw[:8], "little") if len(raw) >= 8 else len(raw) + 1
    if not 2 <= length <= min(LONGEST_HEADER, len(raw) - 8):
        raise ValueError("it does not begin as a .safetensors file does: 8 bytes of length, then a JSON header of at most 1 MiB")
    try:
        header = json.loads(bytes(raw[8 : 8 + length]).decode(), object_pairs_hook=_unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"its header is not JSON: {str(error)[:100]}") from None
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    header.pop("__metadata__", None)
    data, found, spans = raw[8 + length :], {}, []
    for name, told in header.items():
        start, stop = _span(name, told, len(data))
        spans.append((start, stop))
        found[name] = viewed(data[start:stop], dtype(_NAMES.get(told["dtype"], told["dtype"])), tuple(told["shape"]))
    if not found:
        raise ValueError("it holds no tensor")
    ends = [0, *(stop for _, stop in sorted(spans))]
    if [start for start, _ in sorted(spans)] != ends[:-1] or ends[-1] != len(data):
        raise ValueError("its tensors do not fill its data one after the other: there are holes, overlaps or bytes left over")
    return found


_NAMES = {
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("its header names something twice")
    return found


def _span(name: str, told: Any, size: int) -> tuple[int, int]:
    """First byte and end of a tensor's data."""
    if not isinstance(told, dict) or set(told) != {"dtype", "shape", "data_offsets"} or not isinstance(told["dtype"], str):
        raise ValueError(f"tensor {name[:64]!r} is told by dtype, shape and data_offsets, and by nothing else")
    shape, offsets = told["shape"], told["data_offsets"]
    if not isinstance(shape, list) or len(shape) > 32 or any(type(extent) is not int or extent < 1 for extent in shape):
        raise ValueError(f"shape of tensor {name[:64]!r}; every extent is an integer of at least 1")
    if not isinstance(offsets, list) or len(offsets) != 2 or any(type(end) is not int for end in offsets):
        raise ValueError(f"data_offsets of tensor {name[:64]!r} are two integers")
    if not 0 <= offsets[0] <= offsets[1] <= size:
        raise ValueError(f"data_offsets of tensor {name[:64]!r} lie outside of the file")
    return offsets[0], offsets[1]
