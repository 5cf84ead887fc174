"""Tensors in files: .npy, .npz and .safetensors, for the command line and for the doors of the service.

A file is mapped, not read, and an array looks into the mapping: what is never touched costs nothing, and of a large file what was
touched is soon given back. Only what is packed, and what is in another byte order, is copied. Nothing is unpickled and nothing is
allocated on a header's word. Whatever is wrong with the bytes is a ValueError.
"""

from __future__ import annotations

import errno
import io
import json
import math
import mmap
import re
import sys
import threading
import time
import weakref
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import engine
from service.errors import quoted

Array = NDArray[Any]
Chooser = Callable[[Sequence[str]], Sequence[str]]
"""The names of the tensors of a file -> those that are wanted. What it raises passes."""

SUFFIXES = (".npy", ".npz", ".safetensors")
LARGEST_READ = 256 * 2**20
"""Bytes of a file that is read because it cannot be mapped, and of the packed members of an .npz, unpacked and taken together."""
LARGEST_RATIO = 100
"""Of the bytes of a member of an .npz, unpacked to packed."""
LARGEST_RESIDENT = 32 * 2**20
"""Bytes of a mapped file from which on pages that were looked at do not stay resident."""
LONGEST_HEADER = 2**20
"""Bytes of the header of an .npy or a .safetensors file, and of the list of an .npz's members."""
_PIECE = 2**20  # bytes unpacked or summed at a time
_MOST_AXES = 32
_MOST_DIGITS = 20  # of an integer in a header
_PAUSE = 0.02  # seconds; what is read meanwhile stays resident
_INTEGERS = {"I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64", "U8": "uint8", "U16": "uint16", "U32": "uint32"}
_BESIDE = {*_INTEGERS.values(), "bool"}  # dtypes of class indices and masks; no format
_SAFE = {**_INTEGERS, "BOOL": "bool", "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_SAFE |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}

if sys.byteorder != "little":  # bytes are handed to NumPy as they are
    raise ImportError("softgauge needs a little-endian machine")


def mapped(path: Path) -> memoryview:
    """The bytes of a file. Raises OSError, MemoryError, or ValueError for one that cannot be mapped and is too large to be read."""
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        try:
            return _resident(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) if size else memoryview(b"")
        except OSError as error:  # memory is short, or the file system maps nothing
            if error.errno == errno.ENOMEM:
                raise MemoryError(f"{path} has {size} bytes to map") from None
        if size > LARGEST_READ:
            raise ValueError(f"{size} bytes; a file has at most {LARGEST_READ}")
        file.seek(0)
        return memoryview(file.read(size))


def _resident(file: mmap.mmap) -> memoryview:
    """Its bytes. Of a large one a thread, which ends with it, gives the pages back to the kernel's cache again and again."""
    if len(file) > LARGEST_RESIDENT:
        threading.Thread(target=_release, args=(weakref.ref(file),), daemon=True).start()
    return memoryview(file)


def _release(mapping: weakref.ref[mmap.mmap]) -> None:
    while (file := mapping()) is not None:
        release(file)
        del file
        time.sleep(_PAUSE)


def release(file: object) -> None:
    """Give back the pages of a mapped file. What of them is touched again comes from the kernel's cache."""
    if isinstance(file, mmap.mmap):
        file.madvise(mmap.MADV_DONTNEED)


def kind(raw: memoryview) -> str:
    """Which of the suffixes a file should have, by its first bytes."""
    head = bytes(raw[:6])
    return ".npy" if head == np.lib.format.MAGIC_PREFIX else ".npz" if head[:2] == b"PK" else ".safetensors"


def tensors(raw: memoryview, suffix: str, choose: Chooser) -> dict[str, Array]:
    """The chosen tensors of a file, by name; the one of an .npy file has no name, and is not chosen. Raises ValueError."""
    if suffix == ".npy":
        return {"": npy(raw)}
    return _npz(raw, choose) if suffix == ".npz" else _safetensors(raw, choose)


def dtype(name: str) -> np.dtype[Any]:
    """Of a format, an integer or bool, by any of its names. Raises ValueError."""
    if name.lower() in _BESIDE:
        return np.dtype(name.lower())
    try:
        return engine.find_format(name).dtype
    except engine.UnknownName as error:
        raise ValueError(str(error)) from None


def viewed(raw: memoryview, kind: np.dtype[Any], shape: Sequence[int]) -> Array:
    """Little-endian bytes in row-major order as an array. Raises ValueError."""
    if math.prod(shape) * kind.itemsize != len(raw):
        raise ValueError(f"{len(raw)} bytes are not shape {_told(shape)} of {kind}")
    return _checked(np.frombuffer(raw, kind).reshape(shape))


def extents(value: object) -> tuple[int, ...]:
    """A shape from JSON or from a header. Raises ValueError."""
    listed = value if isinstance(value, list | tuple) else None
    if listed is None or len(listed) > _MOST_AXES or any(type(extent) is not int or extent < 1 for extent in listed):
        told = "its shape" if listed is None else f"shape {_told(listed)}"
        raise ValueError(f"{told} is none: that is a list of at most {_MOST_AXES} integers, and every extent is at least 1")
    return tuple(listed)


def _told(shape: Sequence[object]) -> str:
    """A shape as an error may name it."""
    return str(list(shape[:8]))[:64]


def _checked(array: Array) -> Array:
    """A byte of another value than 0 and 1 is no boolean: NumPy would give it back as it is."""
    if array.dtype == np.bool_ and array.view(np.uint8).max() > 1:
        raise ValueError("a boolean is a byte of 0 or 1")
    return array


def npy(raw: memoryview) -> Array:
    """The array in the bytes of an .npy file (numpy.lib.format, versions 1.0 and 2.0). Raises ValueError."""
    stream = io.BytesIO(raw[: LONGEST_HEADER + 12])
    if bytes(raw[:6]) != np.lib.format.MAGIC_PREFIX:
        raise ValueError("it does not begin as an .npy file does; numpy.save writes one")
    try:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f".npy version {version[0]}.{version[1]}; known: 1.0, 2.0")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, stored = read(stream)
    except ValueError as error:
        raise ValueError(first_line(error)) from None
    except Exception as error:  # noqa: BLE001  a broken header makes NumPy's reader raise anything
        raise ValueError(f"its header cannot be read: {first_line(error)}") from None
    if stored.kind not in "fiub" or stored.itemsize > 8:
        known = "float16, float32, float64, and integers for targets (bfloat16, 8 bits: .safetensors)"
        raise ValueError(f"dtype {str(stored)[:64]}; known: {known}")
    shape, data = extents(shape), raw[stream.tell() :]
    if math.prod(shape) * stored.itemsize != len(data):
        raise ValueError(f"the file has {len(data)} bytes of data, which is not shape {_told(shape)} of {stored}")
    flat = _checked(np.frombuffer(data, stored)).astype(stored.newbyteorder("="), copy=False)
    return flat.reshape(shape, order="F" if fortran else "C")


def first_line(error: Exception) -> str:
    """What an error of a library says, in one line, the same every time: without addresses in memory."""
    return _ADDRESS.sub("", str(error).splitlines()[0])[:200] if str(error) else type(error).__name__


_ADDRESS = re.compile(" at 0x[0-9a-f]+")


def _named(name: str) -> str:
    """A name in a file as an error may repeat it: whoever made the file chose it, and a terminal obeys some characters."""
    return name if re.fullmatch(r"[\w., -]{1,64}", name, re.ASCII) else quoted(name)


# ---- .npz ------------------------------------------------------------------------------------------------------------


class _Bytes(io.RawIOBase):
    """The bytes as a file. No read is longer than the longest header, as none has to be but that of a bomb's list of members."""

    def __init__(self, raw: memoryview) -> None:
        self._raw, self._at = raw, 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._raw)}[whence]
        if start + offset < 0:
            raise OSError("before the first byte")
        self._at = start + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        part = self._raw[self._at :] if size < 0 else self._raw[self._at : self._at + size]
        if len(part) > LONGEST_HEADER:
            raise ValueError(f"the list of its members has {len(part)} bytes, above {LONGEST_HEADER}; save fewer tensors")
        self._at += len(part)
        return bytes(part)


def _npz(raw: memoryview, choose: Chooser) -> dict[str, Array]:
    """Members that are not packed are looked at where they are."""
    try:
        archive = zipfile.ZipFile(_Bytes(raw))
    except ValueError:
        raise
    except Exception as error:  # noqa: BLE001  a broken archive makes zipfile raise anything
        raise ValueError(f"no .npz file: {first_line(error)}") from None
    stored = [member for member in archive.infolist() if member.filename.endswith(".npy")]
    members = {member.filename.removesuffix(".npy"): member for member in stored}
    if len(members) < len(stored):
        twice = Counter(member.filename for member in stored).most_common(1)[0][0]
        raise ValueError(f"two members of the same name, {twice[:64]!r}; save each tensor under a name of its own")
    wanted = {name: members[name] for name in choose(list(members))}
    packed = [member for member in wanted.values() if member.compress_type != zipfile.ZIP_STORED]
    for member in packed:
        size = min(member.compress_size, len(raw))  # which an archive that lies may say to be anything
        if member.file_size > LARGEST_RATIO * size:
            rule = f"unpacks to more than {LARGEST_RATIO} times its {size} bytes"
            raise ValueError(f"{_named(member.filename)} {rule}; save it with numpy.savez, uncompressed")
    if (total := sum(member.file_size for member in packed)) > LARGEST_READ:
        names = _named(", ".join(member.filename for member in packed))
        rule = f"unpacks to {total} bytes; at most {LARGEST_READ} are read"
        raise ValueError(f"{names} {rule}; save it with numpy.savez, uncompressed")
    return {name: _member(archive, raw, member) for name, member in wanted.items()}


def _member(archive: zipfile.ZipFile, raw: memoryview, member: zipfile.ZipInfo) -> Array:
    try:
        data = _in_place(raw, member) if member.compress_type == zipfile.ZIP_STORED else _unpacked(archive, member)
        return npy(data)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  as above
        raise ValueError(f"{_named(member.filename)}: {first_line(error)}") from None


def _in_place(raw: memoryview, member: zipfile.ZipInfo) -> memoryview:
    """The bytes of a member that is not packed (APPNOTE.TXT 4.3.7: 30 bytes, a name and an extra field come before them)."""
    at, size = member.header_offset, member.file_size
    head = bytes(raw[at : at + 30])
    if len(head) < 30 or head[:4] != b"PK\x03\x04" or member.flag_bits & 1 or member.compress_size != size:
        raise ValueError("its local header is broken, or it is encrypted")
    start = at + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    data, total = raw[start : start + size], 0
    for piece in range(0, len(data), _PIECE):
        total = zlib.crc32(data[piece : piece + _PIECE], total)
    if len(data) < size or total != member.CRC:
        raise ValueError("it is cut short, or its CRC-32 is wrong")
    return data


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> memoryview:
    """No more bytes than are told of it."""
    data = bytearray()
    with archive.open(member) as stream:
        while len(data) <= member.file_size and (piece := stream.read(_PIECE)):
            data += piece
    if len(data) != member.file_size:
        raise ValueError("it has not the size that is told of it")
    return memoryview(data).toreadonly()


# ---- .safetensors ----------------------------------------------------------------------------------------------------


def _safetensors(raw: memoryview, choose: Chooser) -> dict[str, Array]:
    """8 bytes of length, a JSON header, data without holes or overlaps (github.com/huggingface/safetensors, "Format")."""
    length = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or length > len(raw) - 8:
        raise ValueError(f"{len(raw)} bytes are too few for a .safetensors file and the header that they begin with")
    if length > LONGEST_HEADER:
        raise ValueError(f"its header has {length} bytes, above {LONGEST_HEADER}")
    try:
        header = json.loads(bytes(raw[8 : 8 + length]).decode(), object_pairs_hook=_unique, parse_int=_integer)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"its header is no JSON: {first_line(error)}") from None
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    header.pop("__metadata__", None)
    data = raw[8 + length :]
    spans = {name: _span(name, told) for name, told in header.items()}
    end = 0
    for start, stop in sorted(spans.values()):
        if start != end:
            raise ValueError(f"its tensors are not one after the other: bytes {min(start, end)} to {max(start, end)} of the data")
        end = stop
    if end != len(data):
        raise ValueError(f"its tensors take {end} bytes, and there are {len(data)}")
    found = {}
    for name in choose(sorted(spans)):
        try:
            stored = np.dtype(engine.FORMATS[row].dtype if (row := _SAFE[header[name]["dtype"]]) in engine.FORMATS else row)
            found[name] = viewed(data[slice(*spans[name])], stored, extents(header[name]["shape"]))
        except KeyError:
            raise ValueError(f"{_named(name)} is {_named(header[name]['dtype'])}; known: {', '.join(_SAFE)}") from None
        except ValueError as error:
            raise ValueError(f"{_named(name)}: {error}") from None
    return found


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"its header has an integer of {len(digits)} digits")
    return int(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("its header names something twice")
    return found


def _span(name: str, told: Any) -> tuple[int, int]:
    """First byte and end of a tensor's data."""
    if not isinstance(told, dict) or told.keys() != {"dtype", "shape", "data_offsets"} or not isinstance(told["dtype"], str):
        raise ValueError(f"{_named(name)} is told by dtype, shape and data_offsets, and by nothing else")
    offsets = told["data_offsets"]
    if not isinstance(offsets, list) or len(offsets) != 2 or any(type(end) is not int for end in offsets):
        raise ValueError(f"data_offsets of {_named(name)} are two integers")
    start, stop = offsets
    if not 0 <= start <= stop:
        raise ValueError(f"data_offsets of {_named(name)} are not in order")
    return start, stop
