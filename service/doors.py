"""The doors for files: multipart/form-data, and the binary extension of the Open Inference Protocol. The body lies on disk, mapped.

Each ends in the JSON of the request with arrays in the places of its tensors. They look into the mapped body: nothing is copied
but what is packed, and nothing is allocated on a header's word. Whatever is wrong is a Problem.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from service import files
from service.errors import Finding, Problem, place, quoted, shown
from service.settings import Limits
from service.tensors import Array, Malformed, document

PARTS = 64
"""Parts of a multipart body at most."""
LONGEST_HEAD = 8192
"""Bytes of the headers of one part at most."""
FIELDS = ("logits", "output", "targets", "grad_output", "reference")
PARAMS = ("mask", "weights")
_KNOWN = f"{', '.join((*FIELDS, *PARAMS))}, outputs.0, outputs.1, ..."
_NAME = re.compile("|".join((*FIELDS, *PARAMS, r"outputs\.(?:0|[1-9][0-9]?)")))
_PIECE = 2**20  # bytes searched at a time
_BINARY_KEYS = {"name", "dtype", "datatype", "shape", "parameters"}


@dataclass(frozen=True)
class Door:
    """How a body on disk is to be read. kind: "multipart" or "binary"; boundary of the first; bytes of the JSON of the second."""

    kind: str
    path: str
    boundary: str = ""
    header: int = 0


def opened(door: Door, limits: Limits) -> dict[str, Any]:
    """The request behind a door. Raises Problem (malformed, invalid or too-large), MemoryError where it cannot be mapped."""
    body = files.mapped(Path(door.path))
    return _multipart(body, door.boundary.encode(), limits) if door.kind == "multipart" else _binary(body, door.header, limits)


def _told(text: memoryview, what: str, limits: Limits) -> dict[str, Any]:
    """The JSON of the request."""
    if len(text) > limits.max_body_bytes:
        raise Problem("too-large", f"{what} is larger than max_body_bytes = {limits.max_body_bytes}; send its tensors as files")
    try:
        told = document(bytes(text))
    except Malformed as error:
        raise Problem("malformed", f"{what} {error}") from None
    if not isinstance(told, dict):
        raise _refused("", f"{what} is a JSON object, not {shown(told)}")
    return told


def _refused(name: str, detail: str) -> Problem:
    return Problem("invalid", detail, (Finding(_pointer(name), detail),))


def _pointer(name: str) -> str:
    """Where in the request a tensor of that name belongs."""
    if not _NAME.fullmatch(name):
        return ""
    return place(["params", name] if name in PARAMS else name.split("."))


def _fitting(name: str, array: Array, limits: Limits) -> Array:
    """The array, if it is not too large; of its dtype and rank tensors.py sees to."""
    if array.size > limits.max_file_elements:
        rule = f"above the limit max_file_elements = {limits.max_file_elements}; send fewer rows"
        detail = f"{name} has {array.size} elements, {rule}"
        raise Problem("too-large", detail, (Finding(_pointer(name), detail),))
    return array


# ---- multipart/form-data (RFC 7578) ------------------------------------------------------------------------------------


def _multipart(body: memoryview, boundary: bytes, limits: Limits) -> dict[str, Any]:
    text: memoryview | None = None
    arrays: dict[str, Array] = {}
    for name, filename, content in _parts(body, boundary):
        if name == "request":
            if text is not None:
                raise _refused("", "two parts are named request; send one")
            text = content
            continue
        for key, array in _tensors(name, filename, content, limits).items():
            if key in arrays:
                raise _refused(key, f"the tensor {key} is there twice; send it once")
            arrays[key] = array
    if text is None:
        rule = 'it is the JSON of the request without its tensors, such as {"op": "softmax"}'
        raise _refused("", f"the part request is missing: {rule}")
    told = _told(text, "the part request", limits)
    _put_in_place(told, arrays)
    return told


def _parts(body: memoryview, boundary: bytes) -> Iterator[tuple[str, str, memoryview]]:
    """Name, file name and content of each part, found by the boundary alone. The first line of the body is the boundary."""
    line = b"--" + boundary
    at, count = len(line), 0
    if bytes(body[:at]) != line:
        raise _malformed(f"does not begin with {quoted(line.decode())}, the boundary that Content-Type names")
    while (end := bytes(body[at : at + 2])) != b"--":
        if end != b"\r\n":
            raise _malformed("is cut short, or has a boundary that is not followed by the end of the line")
        if count == PARTS:
            raise _malformed(f"has more than {PARTS} parts; send tensors together, as one .safetensors file")
        head = _find(body[: at + LONGEST_HEAD], b"\r\n\r\n", at)
        if head < 0:
            raise _malformed(f"has a part whose headers do not end within {LONGEST_HEAD} bytes")
        stop = _find(body, b"\r\n" + line, head + 2)
        if stop < 0:
            raise _malformed("is cut short: there is no boundary after the last part")
        yield *_named(bytes(body[at + 2 : head])), body[head + 4 : stop]
        at, count = stop + 2 + len(line), count + 1
    if bytes(body[at + 2 :][:3]) not in (b"", b"\r\n"):
        raise _malformed("goes on after its last boundary")


def _find(body: memoryview, wanted: bytes, start: int) -> int:
    """Where the bytes are first, or -1; piece by piece, as a view cannot be searched and the body is not copied."""
    for number, at in enumerate(range(start, len(body), _PIECE)):
        if (found := bytes(body[at : at + _PIECE + len(wanted) - 1]).find(wanted)) >= 0:
            return at + found
        if number % 16 == 15:
            files.release(body.obj)
    return -1


def _malformed(what: str) -> Problem:
    return Problem("malformed", f"the multipart body {what}")


_TEXT = r'"(?:[^"\\\r\n]|\\.)*"|[^\s;"\\]+'
_PARAMETER = re.compile(rf"[ \t]*;[ \t]*([a-z*-]+)=({_TEXT})[ \t]*", re.IGNORECASE)


def parameters(header: str) -> tuple[str, dict[str, str]]:
    """The value and the parameters of a header such as Content-Type, names in lower case; none where they are not well written."""
    value, semicolon, rest = header.partition(";")
    rest, found, at = semicolon + rest, {}, 0
    while match := _PARAMETER.match(rest, at):
        name, text = match[1].lower(), match[2]
        if name in found:
            break
        found[name] = re.sub(r"\\(.)", r"\1", text[1:-1]) if text[0] == '"' else text
        at = match.end()
    return value.strip().lower(), found if at == len(rest) else {}


def _named(head: bytes) -> tuple[str, str]:
    """The name of a part and that of its file, if it has one, by its headers (RFC 7578, section 4.2; 4.7 forbids encodings)."""
    found: dict[str, str] = {}
    for line in head.decode("utf-8", "replace").split("\r\n") if head else ():
        field, colon, value = line.partition(":")
        if not (colon and re.fullmatch(r"[!-9;-~]+", field)) or field.lower() in found:
            raise _malformed(f"has a part with the header {quoted(line)}; each is a name, a colon and a value, and is there once")
        found[field.lower()] = value.strip()
    if found.get("content-transfer-encoding", "binary").lower() not in ("binary", "8bit", "7bit"):
        raise _malformed("has a part with a Content-Transfer-Encoding; send its bytes as they are")
    kind, named = parameters(found.get("content-disposition", ""))
    if kind != "form-data" or "name" not in named:
        raise _malformed('has a part without a name; its header is Content-Disposition: form-data; name="logits"')
    return named["name"], named.get("filename", "")


def _tensors(name: str, filename: str, content: memoryview, limits: Limits) -> dict[str, Array]:
    """The tensors of one part: those of a file named tensors, else the one of that name."""
    whole = name == "tensors"
    if not whole and not _NAME.fullmatch(name):
        raise _refused("", f"a part named {quoted(name)} is not known; there are request, tensors, and {_KNOWN}")
    suffix = PurePath(filename).suffix.lower()
    suffix = suffix if suffix in files.SUFFIXES else files.kind(content)
    if whole and suffix == ".npy":
        raise _refused("", f"an .npy file holds one tensor and does not say which; name its part {_KNOWN}")
    try:
        found = files.tensors(content, suffix, _all_known if whole else _only(name))
    except ValueError as error:
        called = f"the file {quoted(filename)}" if filename else f"the part {name}"
        raise _refused(name, f"{called}: {files.first_line(error)}") from None
    return {key if whole else name: _fitting(key if whole else name, array, limits) for key, array in found.items()}


def _all_known(names: Sequence[str]) -> Sequence[str]:
    """All tensors of a file, each of which must be one of a request."""
    if unknown := [name for name in names if not _NAME.fullmatch(name)]:
        raise ValueError(f"a tensor named {quoted(unknown[0])} is not known; there are {_KNOWN}")
    if not names:
        raise ValueError("there is no tensor in it")
    return names


def _only(name: str) -> files.Chooser:
    """The tensor of a file that holds one, or has one of that name."""

    def choose(names: Sequence[str]) -> Sequence[str]:
        if len(names) != 1 and name not in names:
            raise ValueError(f"there are {len(names)} tensors in it, and none is named {name}; send one")
        return [name] if name in names else names

    return choose


def _put_in_place(told: dict[str, Any], arrays: dict[str, Array]) -> None:
    """Write the arrays into the request."""
    runs = sorted((int(name.removeprefix("outputs.")), array) for name, array in arrays.items() if name.startswith("outputs."))
    if [number for number, _ in runs] != list(range(len(runs))):
        raise Problem("invalid", _GAP, (Finding("/outputs", _GAP),))
    given: dict[str, Any] = {name: array for name, array in arrays.items() if not name.startswith("outputs.")}
    for name, value in (given | ({"outputs": [array for _, array in runs]} if runs else {})).items():
        holder: Any = told
        if name in PARAMS:
            holder = told["params"] = {} if told.get("params") is None else told["params"]
        if not isinstance(holder, dict):
            continue  # what it is instead is said where the request is validated
        if holder.get(name) not in ((None, []) if name == "outputs" else (None,)):
            detail = f"{name} is in the JSON and in a file; give it once"
            raise Problem("invalid", detail, (Finding(_pointer(name) or f"/{name}", detail),))
        holder[name] = value


_GAP = "repeated runs are named outputs.0, outputs.1 and so on, without a gap"


# ---- application/octet-stream (Open Inference Protocol, binary tensor data extension) -----------------------------------


def _binary(body: memoryview, length: int, limits: Limits) -> dict[str, Any]:
    """JSON of that length, then the bytes of the tensors in the order in which it names them."""
    if length > len(body):
        detail = f"Inference-Header-Content-Length is {length}, and the body has {len(body)} bytes"
        raise Problem("malformed", detail, (Finding("Inference-Header-Content-Length", detail),))
    told, rest = _told(body[:length], "the JSON header", limits), body[length:]
    for name, value, put in _places(told):
        if isinstance(value, dict) and "parameters" in value:
            if not _NAME.fullmatch(name):
                raise _refused("", f"{quoted(name)} is no tensor of a request; there are {_KNOWN}")
            array, rest = _taken(name, value, rest)
            put(_fitting(name, array, limits))
    if len(rest):
        rule = "binary_data_size tells how many each tensor has"
        raise _refused("", f"{len(rest)} bytes are left after the tensors that the JSON header names; {rule}")
    return told


def _places(told: dict[str, Any]) -> Iterator[tuple[str, Any, Callable[[Array], None]]]:
    """Name, value and setter of each place for a tensor, in the order of the JSON."""
    for key, value in list(told.items()):
        if key == "outputs" and isinstance(value, list):
            yield from ((f"outputs.{i}", item, _setter(value, i)) for i, item in enumerate(value))
        elif key == "params" and isinstance(value, dict):
            yield from ((inner, item, _setter(value, inner)) for inner, item in list(value.items()) if inner in PARAMS)
        else:
            yield key, value, _setter(told, key)


def _setter(holder: Any, key: object) -> Callable[[Array], None]:
    def put(array: Array) -> None:
        holder[key] = array

    return put


def _taken(name: str, value: dict[str, Any], rest: memoryview) -> tuple[Array, memoryview]:
    """A tensor of the first bytes of the rest, and what is left."""
    if unknown := value.keys() - _BINARY_KEYS:
        rule = "is no field of a binary tensor; known here: dtype, shape, parameters"
        raise _refused(name, f"{name}: {quoted(min(unknown))} {rule}")
    if value.get("name", name) != name or ("dtype" in value and value.get("datatype", value["dtype"]) != value["dtype"]):
        rule = "a name is that of its field, and of dtype and datatype one will do"
        raise _refused(name, f"{name} has another name, or two dtypes; {rule}")
    parameters = value["parameters"]
    if isinstance(parameters, dict) and (unknown := parameters.keys() - {"binary_data_size"}):
        raise _refused(name, f"{name}: {quoted(min(unknown))} is no parameter of a binary tensor; known here: binary_data_size")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if type(size) is not int or not 0 < size <= len(rest):
        rule = f"it is the number of its bytes, and {len(rest)} are left"
        raise _refused(name, f"binary_data_size of {name} is {shown(size)}; {rule}")
    try:
        stored = files.dtype(str(value.get("dtype", value.get("datatype"))))
        return files.viewed(rest[:size], stored, files.extents(value.get("shape"))), rest[size:]
    except ValueError as error:
        raise _refused(name, f"{name}: {files.first_line(error)}") from None
