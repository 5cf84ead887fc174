"""The doors for files: multipart/form-data and the binary extension of the Open Inference Protocol, both spooled to disk, mapped
and opened in the computing process. Each ends in the JSON of the request and named arrays of formats' own dtypes.

Nothing is copied: an array looks into the mapped body, unless its bytes are out of line. Nothing is allocated on a header's word.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import Any

from service import files
from service.errors import Finding, Problem, quoted, shown
from service.settings import Limits
from service.tensors import Array, Malformed, document

_LEAST = '{"op": "softmax"}'
PARTS = 64
"""Parts of a multipart body at most."""
LONGEST_HEAD = 8192
"""Bytes of the headers of one part at most."""
_NAME = re.compile(r"logits|output|targets|grad_output|reference|mask|weights|outputs\.(0|[1-9][0-9]?)")
_NAMES = "logits, output, targets, grad_output, reference, mask, weights, outputs.0, outputs.1, ..."


@dataclass(frozen=True)
class Door:
    """How a spooled body is to be read. kind: "multipart" or "binary"; path: of the file; boundary, or bytes of the JSON header."""

    kind: str
    path: str
    boundary: str = ""
    header: int = 0


@dataclass(frozen=True)
class Opened:
    """A request: its JSON text, and the tensors that came beside it."""

    text: bytes
    arrays: Mapping[str, Array] = field(default_factory=dict)


def opened(door: Door, limits: Limits) -> Opened:
    """The request behind a door. Raises Problem: malformed, invalid or too-large."""
    with Path(door.path).open("rb") as file:
        try:
            body = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except ValueError:  # an empty file
            body = memoryview(b"")
    return _multipart(body, door.boundary.encode(), limits) if door.kind == "multipart" else _binary(body, door.header, limits)


# ---- multipart/form-data (RFC 7578) --------------------------------------------------------------------------------------


def _multipart(body: memoryview, boundary: bytes, limits: Limits) -> Opened:
    text: bytes | None = None
    arrays: dict[str, Array] = {}
    for message, content in _parts(body, boundary):
        name = str(message.get_param("name", "", "content-disposition"))
        if name == "request":
            if text is not None:
                raise _refused("request", "two parts are named request; send one")
            if len(content) > limits.max_body_bytes:
                raise Problem("too-large", f"the part request is larger than max_body_bytes = {limits.max_body_bytes}")
            text = bytes(content)
            continue
        for key, array in _tensors(name, str(message.get_filename() or ""), content, limits).items():
            if key in arrays:
                raise _refused(key, f"the tensor {key} is there twice; send it once")
            arrays[key] = array
    if text is None:
        raise _refused(
            "request", f"the part request is missing: it is the JSON of the request without its tensors, such as {_LEAST}"
        )
    return Opened(text, arrays)


def _parts(body: memoryview, boundary: bytes) -> list[tuple[Message, memoryview]]:
    """Headers and contents, by the boundary alone."""
    whole = body.obj if isinstance(body.obj, mmap.mmap) else bytes(body)
    line = b"--" + boundary
    if not whole[: len(line)] == line:
        raise Problem("malformed", f"the body does not begin with its boundary {quoted(boundary.decode('latin-1'))}")
    found: list[tuple[Message, memoryview]] = []
    at = len(line)
    while whole[at : at + 2] != b"--":
        if whole[at : at + 2] != b"\r\n" or len(found) == PARTS:
            many = f"has more than {PARTS} parts" if len(found) == PARTS else "has a boundary without a line of its own"
            raise Problem("malformed", f"the multipart body {many}")
        head = whole.find(b"\r\n\r\n", at, at + LONGEST_HEAD)
        stop = whole.find(b"\r\n" + line, at)
        if head < 0 or stop < 0 or stop < head:
            what = "is cut short: there is no boundary after the last part" if stop < 0 else "has a part whose headers do not end"
            raise Problem("malformed", f"the multipart body {what}")
        found.append((BytesHeaderParser().parsebytes(bytes(whole[at + 2 : head])), body[head + 4 : stop]))
        at = stop + 2 + len(line)
    return found


def _tensors(name: str, filename: str, content: memoryview, limits: Limits) -> dict[str, Array]:
    """The tensors of one part: all of a file named tensors, else the one of that name."""
    whole = name == "tensors"
    if not whole and not _NAME.fullmatch(name):
        raise _refused("", f"a part named {quoted(name)} is not known; there are request, tensors, and {_NAMES}")
    try:
        found = files.tensors(content, Path(filename).suffix.lower())
    except ValueError as error:
        raise _refused(name, f"the file {quoted(filename)}: {error}") from None
    if not whole:
        if len(found) > 1 and name not in found:
            raise _refused(name, f"the file has {len(found)} tensors and none is named {name}; name the part tensors")
        found = {name: found.get(name, next(iter(found.values())))}
    for key, array in found.items():
        if not _NAME.fullmatch(key):
            raise _refused("", f"a tensor named {quoted(key)} is not known; there are {_NAMES}")
        _fits(key, array, limits)
    return found


def _fits(name: str, array: Array, limits: Limits) -> None:
    if array.size > limits.max_file_elements:
        detail = (
            f"{name} has {array.size} elements, above the limit max_file_elements = {limits.max_file_elements}; send fewer rows"
        )
        raise Problem("too-large", detail, (Finding(_pointer(name), detail),))
    if array.ndim > limits.max_rank:
        raise _refused(name, f"{name} has rank {array.ndim}; the rank is at most {limits.max_rank}: merge axes")


def _refused(name: str, detail: str) -> Problem:
    return Problem("invalid", detail, (Finding(_pointer(name), detail),))


def _pointer(name: str) -> str:
    named = f"params/{name}" if name in ("mask", "weights") else name.replace(".", "/")
    return f"/{named}" if named and _NAME.fullmatch(name) else ""


# ---- application/octet-stream ------------------------------------------------------------------------------------------


def _binary(body: memoryview, length: int, limits: Limits) -> Opened:
    """JSON of that length, then the bytes of the tensors in the order in which it names them."""
    if length > len(body):
        raise Problem("malformed", f"Inference-Header-Content-Length is {length}, and the body has {len(body)} bytes")
    if length > limits.max_body_bytes:
        raise Problem("too-large", f"the JSON header is larger than max_body_bytes = {limits.max_body_bytes}")
    text = bytes(body[:length])
    try:
        told = document(text)
    except Malformed as error:
        raise Problem("malformed", f"the JSON header {error}") from None
    if not isinstance(told, dict):
        raise _refused("", f"the JSON header is an object, not {shown(told)}")
    rest, arrays = body[length:], {}
    named: list[tuple[str, Any, Any]] = [(name, told, name) for name in told]
    named += [(f"outputs.{i}", told["outputs"], i) for i, _ in enumerate(_listed(told))]
    for name, holder, key in named:
        value = holder[key]
        if isinstance(value, dict) and "parameters" in value:
            array, rest = _taken(name, value, rest)
            _fits(name, array, limits)
            arrays[name] = array
            holder[key] = None
    if len(rest):
        raise _refused(
            "", f"{len(rest)} bytes are left after the tensors that the JSON header names; binary_data_size tells of each"
        )
    if isinstance(told.get("outputs"), list):
        told["outputs"] = [value for value in told["outputs"] if value is not None]
    return Opened(json.dumps({name: value for name, value in told.items() if value is not None}).encode(), arrays)


def _listed(told: dict[str, Any]) -> list[Any]:
    outputs = told.get("outputs")
    return outputs if isinstance(outputs, list) else []


def _taken(name: str, value: dict[str, Any], rest: memoryview) -> tuple[Array, memoryview]:
    """A tensor of the first bytes of the rest, and what is left."""
    if not _NAME.fullmatch(name):
        raise _refused("", f"{quoted(name)} is no tensor of a request; there are {_NAMES}")
    parameters, shape = value["parameters"], value.get("shape")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if type(size) is not int or not 0 < size <= len(rest):
        raise _refused(
            name, f"binary_data_size of {name} is {shown(size)}; it is the number of its bytes, and {len(rest)} are left"
        )
    if not isinstance(shape, list) or len(shape) > 8 or any(type(extent) is not int or extent < 1 for extent in shape):
        raise _refused(name, f"shape of {name} is {shown(shape)}; it is a list of integers, each at least 1")
    try:
        dtype = files.dtype(str(value.get("dtype", value.get("datatype"))))
        return files.viewed(rest[:size], dtype, tuple(shape)), rest[size:]
    except ValueError as error:
        raise _refused(name, f"{name}: {error}") from None
