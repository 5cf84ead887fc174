# SPDX-License-Identifier: Apache-2.0
"""Asks a Softgauge service whether an output of softmax, cross-entropy and the like is right; nothing but the standard library.

One file for Python 3.9 and newer: copy it into any repository as softgauge.py, or install Softgauge, which brings it along.

    import softgauge
    softgauge.assert_verdict("softmax", logits, output)

Tensors, as logits, output and so on:
  * NumPy arrays, also of ml_dtypes; PyTorch tensors on any device; JAX, CuPy and TensorFlow arrays; whatever has __array__ or
    the buffer protocol and says its dtype;
  * (data, dtype, shape): raw bytes, little-endian, in row-major order, of one of the dtypes below; so bfloat16 and fp8 enter
    without any library. (data, dtype) will do for an array of unsigned integers as wide, which hold the bits;
  * (numbers, dtype): nested lists. A number that the dtype cannot hold is refused, not rounded. Bare nested lists are float64,
    or int64 if every number is an integer and they are targets; an output has to say its dtype.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import math
import os
import secrets
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from numbers import Integral, Real
from typing import IO, Any, NamedTuple, Union
from urllib.parse import urlsplit

__all__ = ["ServiceError", "UnexpectedVerdict", "assert_verdict", "call", "report", "serving", "verify"]

DEFAULT_URL = "http://127.0.0.1:8000"
VERDICTS = ("pass", "fail", "inconclusive")
TRIES = 5  # of a request that a busy service puts off
LONGEST_WAIT = 60.0  # seconds; a service that asks for a longer one is not waited for

if sys.byteorder != "little":  # bytes are sent as they lie in memory
    raise ImportError("softgauge needs a little-endian machine")


class _Format(NamedTuple):
    code: str  # its name in safetensors
    size: int  # bytes
    letter: str  # of struct; the number's leading bytes are this format's. Empty: none is


_FORMATS = {
    "float64": _Format("F64", 8, "d"),
    "float32": _Format("F32", 4, "f"),
    "float16": _Format("F16", 2, "e"),
    "bfloat16": _Format("BF16", 2, "f"),
    "float8_e5m2": _Format("F8_E5M2", 1, "e"),
    "float8_e4m3fn": _Format("F8_E4M3", 1, ""),
    "int64": _Format("I64", 8, "q"),
    "int32": _Format("I32", 4, "i"),
    "int16": _Format("I16", 2, "h"),
    "int8": _Format("I8", 1, "b"),
    "uint64": _Format("U64", 8, "Q"),
    "uint32": _Format("U32", 4, "I"),
    "uint16": _Format("U16", 2, "H"),
    "uint8": _Format("U8", 1, "B"),
    "bool": _Format("BOOL", 1, ""),
}
_NAMES = {**{name: name for name in _FORMATS}, **{row.code.lower(): name for name, row in _FORMATS.items()}}
_OF_LETTER = {**{row.letter: name for name, row in reversed(_FORMATS.items())}, "l": "int64", "L": "uint64"}  # a 64-bit C long
_SPECIALS = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
Buffer = Union[bytes, memoryview]


class _Tensor(NamedTuple):
    """data: len() is the number of bytes; they are in row-major order."""

    dtype: str
    shape: tuple[int, ...]
    data: Buffer


class ServiceError(Exception):
    """No verdict was reached. status: that of the HTTP answer, None if there was none. errors: {pointer, detail} each."""

    def __init__(self, title: str, detail: str, status: int | None = None, errors: Sequence[Mapping[str, str]] = ()) -> None:
        rows = (f"{row.get('pointer')}: {row.get('detail')}" for row in errors if row.get("detail") != detail)
        more = "".join(f"\n  {row}" for row in rows if row != detail)
        super().__init__(f"{title}{f' ({status})' if status else ''}: {detail}{more}")
        self.status, self.title, self.detail, self.errors = status, title, detail, list(errors)


class UnexpectedVerdict(AssertionError):
    """The verdict is another than expected. answer: all that the service said."""

    def __init__(self, text: str, answer: dict[str, Any]) -> None:
        super().__init__(text)
        self.answer = answer


def assert_verdict(
    op: str, logits: object, output: object, *, expect: str | Collection[str] = "pass", **options: Any
) -> dict[str, Any]:
    """Ask for a verdict on an output, and raise unless it is the one expected. Returns the service's answer.

    expect: "pass", "fail" or "inconclusive", or several of them. options: those of `verify`, such as targets, gate and url.
    Raises UnexpectedVerdict, an AssertionError that says what a colleague would, and what `verify` raises.
    """
    __tracebackhide__ = True  # pytest shows the line that called this
    expected = (expect,) if isinstance(expect, str) else tuple(expect)
    if not expected or not set(expected) <= set(VERDICTS):
        raise ValueError(f"expect={expect!r} is no verdict: {', '.join(VERDICTS)} are")
    answer = verify(op, logits, output, **options)
    if answer["verdict"] not in expected:
        headline = f"{op}: the verdict is {answer['verdict']}, not {' or '.join(expected)}"
        raise UnexpectedVerdict(f"{headline}\n{report(answer)}", answer)
    return answer


def verify(
    op: str,
    logits: object,
    output: object,
    *,
    targets: object = None,
    grad_output: object = None,
    reference: object = None,
    outputs: Sequence[object] = (),
    params: Mapping[str, object] | None = None,
    gate: str | Mapping[str, object] = "bound",
    nonfinite: str = "ieee",
    axis: int = -1,
    include: Sequence[str] = (),
    worst: int = 8,
    sample: int | Mapping[str, int] | None = None,
    url: str | None = None,
    key: str | None = None,
    timeout: float = 300.0,
) -> dict[str, Any]:
    """The answer of POST /v1/verify, as parsed JSON: verdict, findings, metrics, worst, gate, digests and so on.

    op, targets, grad_output, reference, outputs, params, gate, nonfinite, axis, include, worst: as the service's documentation has
    them; gate may be the name of a policy alone; mask and weights of params may be (data, dtype, shape) too. What is a tensor is
    told at the top of this file.
    sample: how many rows are judged, or {"rows": 64, "seed": 1}; None: all.
    url: of the service; by default what SOFTGAUGE_URL says, else http://127.0.0.1:8000. No proxy is asked.
    key: sent as bearer; by default what SOFTGAUGE_KEY says, else none.
    timeout: seconds that may pass without a byte from the service. One that is busy is asked again as it bids, four times at most.
    Raises ValueError or TypeError for what cannot be sent, ServiceError for what ends without a verdict.
    """
    told = dict(params or {})
    beside = [(name, told.pop(name), None) for name in ("mask", "weights") if _is_declared(told.get(name))]
    given = [
        ("logits", logits, "float64"),
        ("output", output, None),
        *((f"outputs.{i}", item, None) for i, item in enumerate(outputs)),
        ("targets", targets, "int64" if _integral(targets) else "float64"),
        ("grad_output", grad_output, "float64"),
        ("reference", reference, "float64"),
        *beside,
    ]
    needed = ("logits", "output")
    tensors = {name: _tensor(name, value, bare) for name, value, bare in given if value is not None or name in needed}
    request = {"op": op, "gate": {"policy": gate} if isinstance(gate, str) else _plain("gate", gate)}
    request.update(nonfinite=nonfinite, axis=_plain("axis", axis))
    if told:
        request["params"] = _plain("params", told)
    if include:
        request["include"] = list(include)
    if worst != 8:
        request["worst"] = _plain("worst", worst)
    if sample is not None:
        request["sample"] = _plain("sample", sample if isinstance(sample, Mapping) else {"rows": sample})
    kind, body = _multipart(json.dumps(request, allow_nan=False).encode(), tensors)
    headers = {"Content-Type": kind, "Accept": "application/json", **_bearer(key)}
    url = _checked_url(url)
    found = _read(url, *_asked(url, "POST", "/v1/verify", headers, body, timeout))
    if not isinstance(found, dict) or found.get("verdict") not in VERDICTS:
        raise ServiceError("No verdict", f"what answers at {url} is no Softgauge service with /v1/verify")
    return found


def call(
    method: str,
    path: str,
    request: object = None,
    *,
    url: str | None = None,
    key: str | None = None,
    once: str | None = None,
    timeout: float = 60.0,
) -> Any:
    """What any route of a service answers in JSON, such as call("GET", "/v1/projects").

    request: the body, of plain data. once: an Idempotency-Key of 1 to 255 characters: where no answer comes, the request is sent
    again, and the service does nothing twice. The rest is as for verify, and so is what is raised.
    """
    body = [] if request is None else [json.dumps(request, allow_nan=False).encode()]
    headers = {"Accept": "application/json", **_bearer(key)}
    headers.update({"Content-Type": "application/json"} if body else {})
    headers.update({"Idempotency-Key": once} if once is not None else {})
    url = _checked_url(url)
    return _read(url, *_asked(url, method, path, headers, body, timeout, repeated=once is not None or method == "GET"))


def _bearer(key: str | None) -> dict[str, str]:
    """The header that says who asks."""
    key = (key or os.environ.get("SOFTGAUGE_KEY") or "").strip()  # one read from a file ends with a newline
    if not (key.isascii() and (key + " ").isprintable()):
        raise ValueError("the key has characters that no header takes: give it as the service has it, in one line of ASCII")
    return {"Authorization": f"Bearer {key}"} if key else {}


def report(answer: Mapping[str, Any]) -> str:
    """An answer in words: findings, worst elements, what the gate catches, how many rows were judged if not all, digests."""
    lines = [f"  {row['detail']}" for row in answer.get("findings") or ()]
    if worst := answer.get("worst"):
        lines += ["worst elements:", *(f"  {_element(row)}" for row in worst[:4])]
    if gate := answer.get("gate"):
        lines.append(_gate(gate))
    if sample := answer.get("sample"):
        lines.append(f"sample: {sample['rows']} of {sample['of']} rows, seed {sample['seed']}")
    lines += [f"{name} {digest}" for name, digest in (answer.get("digests") or {}).items()]
    return "\n".join(lines)


def _gate(gate: Mapping[str, Any]) -> str:
    """The policy, its parameters, and which wrong outputs it tells from right ones."""
    tested = gate.get("self_test") or {}
    ours = ("policy", "rule", "declared", "self_test", "vacuous_fraction")
    others = (f"{name}={value}" for name, value in gate.items() if name not in ours)
    caught = "; ".join(f"{word} {', '.join(tested[word])}" for word in ("caught", "missed") if tested.get(word))
    return " ".join(["gate", str(gate.get("policy")), *others]) + (f": {caught}" if caught else "")


def _element(row: Mapping[str, Any]) -> str:
    """One of the worst elements: where, from what, got, truth, how far."""
    logit = "" if row.get("logit") is None else f" (logit {row['logit']})"
    far = (f"{_short(row[name])} {unit}" for name, unit in (("ulp", "ULP"), ("rel", "relative")) if row.get(name) is not None)
    return f"{row['index']}{logit}: got {row['got']}, truth {row['expected']}; " + (", ".join(far) or "no distance")


def _short(figure: object) -> str:
    return f"{figure:.4g}" if isinstance(figure, float) else str(figure)


@contextlib.contextmanager
def serving(command: Sequence[str] = ("softgauge", "serve"), seconds: float = 60.0) -> Iterator[str]:
    """A service of one's own on a free port of this machine, for the length of the block. Yields its URL.

    command: what starts it (`--host` and `--port` follow). seconds: how long it may take. Raises ServiceError if it does not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stdout=log, stderr=log)
        except OSError as error:
            detail = f"{command[0]!r} cannot be started ({error}); install Softgauge, or name the URL of a service"
            raise ServiceError("No service", detail) from None
        try:
            _await(process, url, seconds, log)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await(process: subprocess.Popen[bytes], url: str, seconds: float, log: IO[bytes]) -> None:
    """Return once the service is ready. Raises ServiceError, with what it said, if it ends or takes longer."""
    deadline = time.monotonic() + seconds
    while not _is_ready(url):
        if process.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            said = log.read()[-2000:].decode(errors="replace")
            raise ServiceError("No service", f"the command did not start one within {seconds:g} s; it said: {said}")
        time.sleep(0.1)


# ---- tensors ----------------------------------------------------------------------------------------------------------


def _tensor(name: str, value: Any, bare: str | None) -> _Tensor:
    """What was given as that tensor. bare: the dtype of numbers without one; None: refuse them."""
    if _is_declared(value):
        return _declared(name, *value)
    if _is_numbers(value):
        if bare is None:
            raise ValueError(f"{name} is of bare numbers: say their dtype, as in {name}=(numbers, 'float32')")
        return _from_numbers(name, value, bare)
    found = _array(name, value)
    if found.dtype not in _FORMATS:
        raise ValueError(f"{name} is of dtype {found.dtype}; known: {', '.join(_FORMATS)}")
    return found


def _is_declared(value: Any) -> bool:
    return isinstance(value, tuple) and 2 <= len(value) <= 3 and isinstance(value[1], str)


def _is_numbers(value: object) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, Real) and not hasattr(value, "dtype"))


def _declared(name: str, data: Any, dtype: str, shape: Sequence[int] | None = None) -> _Tensor:
    """Bytes, an array of bits, or numbers, whose dtype (and shape) is told."""
    kind = _NAMES.get(dtype.lower())
    if kind is None:
        raise ValueError(f"{name} is declared {dtype!r}, which is no dtype; known: {', '.join(_FORMATS)}")
    if isinstance(data, (bytes, bytearray, memoryview)) and shape is not None:
        found = _Tensor(kind, tuple(shape), _flat(memoryview(data)))
    elif _is_numbers(data):
        found = _from_numbers(name, data, kind)
    else:
        found = _array(name, data)
        if found.dtype not in (kind, f"uint{8 * _FORMATS[kind].size}") and (found.dtype != "uint8" or shape is None):
            raise ValueError(f"{name} is of dtype {found.dtype}, which holds no bits of {kind}: convert it, or give raw bytes")
    extents = found.shape if shape is None else tuple(int(extent) for extent in shape)
    wanted = math.prod(extents) * _FORMATS[kind].size
    if len(found.data) != wanted or min(extents, default=0) < 0:
        raise ValueError(f"{name} has {len(found.data)} bytes; {kind} of shape {list(extents)} has {wanted}")
    return _Tensor(kind, extents, found.data)


def _array(name: str, value: Any) -> _Tensor:
    """An array or tensor of some library, told by what it can do and never by an import; copied only where it must be."""
    if hasattr(value, "detach"):  # PyTorch; uint8 is the dtype of what .byte() gives
        flat = value.detach().cpu().contiguous().reshape(-1)
        dtype = str(value.dtype).rpartition(".")[2]
        return _Tensor(dtype, tuple(value.shape), _flat(memoryview(flat.view(flat[:0].byte().dtype).numpy())))
    if hasattr(value, "__cuda_array_interface__") and hasattr(value, "get"):  # CuPy
        value = value.get()
    if not hasattr(value, "__array_interface__") and hasattr(value, "__array__"):  # JAX, TensorFlow
        value = value.__array__()
    if hasattr(value, "__array_interface__"):  # NumPy. In a view of bytes, as types of ml_dtypes have no buffer
        if value.dtype.hasobject:
            raise TypeError(f"{name} is an array of objects, not of numbers")
        if value.dtype.str.startswith(">"):
            value = value.astype(value.dtype.newbyteorder("<"))
        whole = value if value.flags.c_contiguous else value.copy()
        return _Tensor(value.dtype.name, tuple(value.shape), _flat(memoryview(whole.reshape(-1).view("uint8"))))
    try:
        view = memoryview(value)
    except TypeError:
        raise TypeError(f"{name} is a {type(value).__name__}: give an array, (data, dtype, shape) or nested lists") from None
    dtype = _OF_LETTER.get(view.format.lstrip("@=<"), f"buffer format {view.format!r}")
    bare = isinstance(value, (bytes, bytearray, memoryview)) and view.itemsize == 1
    if bare or (dtype in _FORMATS and _FORMATS[dtype].size != view.itemsize):
        raise ValueError(f"{name} does not say its dtype: give (data, dtype, shape)")
    return _Tensor(dtype, tuple(view.shape or ()), _flat(view))


def _flat(view: memoryview) -> Buffer:
    """The bytes of a buffer in row-major order, not copied where they lie so."""
    try:
        return view.cast("B")
    except (TypeError, ValueError):
        return view.tobytes()


def _from_numbers(name: str, value: Any, dtype: str) -> _Tensor:
    """Nested lists, or one number, each stored exactly."""
    row = _FORMATS[dtype]
    if not row.letter:
        raise ValueError(
            f"{name} is of numbers, which this file does not write as {dtype}: give its bytes, as in (data, {dtype!r}, shape)"
        )
    level, shape = [value], []
    while level and isinstance(level[0], (list, tuple)):
        shape.append(len(level[0]))
        if any(not isinstance(item, (list, tuple)) or len(item) != shape[-1] for item in level):
            raise ValueError(f"{name} is ragged: make every row a list of the same length")
        level = list(chain.from_iterable(level))
    return _Tensor(dtype, tuple(shape), b"".join(_stored(name, item, dtype) for item in level))


def _stored(name: str, item: Any, dtype: str) -> bytes:
    """The bytes of one number. Raises ValueError where the dtype does not hold it."""
    row = _FORMATS[dtype]
    if isinstance(item, bool) or not isinstance(item, Real):
        raise ValueError(f"{name} has {item!r:.64}, which is no number")
    try:
        raw = struct.pack(f"<{row.letter}", item)
        exact = struct.unpack(f"<{row.letter}", raw)[0] == item or item != item
    except (struct.error, OverflowError):
        raw, exact = b"", False
    if not exact or any(raw[: -row.size]):
        raise ValueError(f"{name} has {item!r:.64}, which {dtype} does not hold exactly: round it first")
    return raw[-row.size :]


def _integral(value: object) -> bool:
    """Whether bare numbers are all integers."""
    if isinstance(value, (list, tuple)):
        return all(map(_integral, value))
    return isinstance(value, Integral)


# ---- what is sent -----------------------------------------------------------------------------------------------------


def _plain(name: str, value: Any) -> Any:
    """JSON data of a gate or of params: arrays in base64, booleans in lists, what is not finite as one of the three strings."""
    if isinstance(value, Mapping):
        return {key: _plain(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not _is_declared(value):
        return [_plain(name, item) for item in value]
    if value is None or isinstance(value, (str, bool)):
        return value
    if hasattr(value, "dtype") and not tuple(value.shape):
        return _plain(name, value.item())
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        figure = float(value)
        return _SPECIALS.get(str(figure), figure)
    if hasattr(value, "tolist") and "bool" in str(getattr(value, "dtype", "")):
        return value.tolist()
    found = _tensor(name, value, None)
    data = base64.b64encode(found.data).decode()
    return {"dtype": found.dtype, "shape": list(found.shape), "encoding": "base64", "data": data}


def file_of(tensors: Mapping[str, object], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file: of tensors, each as `verify` takes an output, and of metadata, which it begins with."""
    return b"".join(_safetensors({name: _tensor(name, value, None) for name, value in tensors.items()}, metadata))


def _safetensors(tensors: Mapping[str, _Tensor], metadata: Mapping[str, str] | None = None) -> list[Buffer]:
    """The parts of a safetensors file (the format: https://github.com/huggingface/safetensors): wide formats first, so that all
    are aligned."""
    rows = sorted(tensors.items(), key=lambda item: -_FORMATS[item[1].dtype].size)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in rows:
        start, end = end, end + len(tensor.data)
        header[name] = {"dtype": _FORMATS[tensor.dtype].code, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return [struct.pack("<Q", len(text)), text, *(tensor.data for _, tensor in rows)]


def _multipart(request: bytes, tensors: Mapping[str, _Tensor]) -> tuple[str, list[Buffer]]:
    """The content type and the body (RFC 7578), in parts: those of the tensors are the memory they lie in."""
    boundary = secrets.token_hex(16)  # 128 random bits, so nowhere in the tensors
    disposition = "Content-Disposition: form-data; name="
    opening = (
        f'--{boundary}\r\n{disposition}"request"\r\nContent-Type: application/json\r\n\r\n',
        f'\r\n--{boundary}\r\n{disposition}"tensors"; filename="tensors.safetensors"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n",
        f"\r\n--{boundary}--\r\n",
    )
    first, second, last = (text.encode() for text in opening)
    length, header, *data = _safetensors(tensors)
    return f"multipart/form-data; boundary={boundary}", [b"".join((first, request, second, length, header)), *data, last]


# ---- HTTP -------------------------------------------------------------------------------------------------------------


def _checked_url(url: str | None) -> str:
    found = (url or os.environ.get("SOFTGAUGE_URL") or DEFAULT_URL).rstrip("/")
    if "@" in found.partition("//")[2].partition("/")[0]:  # and nothing of it goes into a log
        raise ValueError("the URL of the service names a user: give the key by key= or SOFTGAUGE_KEY instead")
    try:
        parts = urlsplit(found)
        right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.query and not parts.fragment
    except ValueError:  # of a port that is none, or half an IPv6 address
        right = False
    if not right:
        raise ValueError(f"{found!r} is no URL of a service, such as {DEFAULT_URL}")
    return found


def _connection(url: str, timeout: float) -> tuple[http.client.HTTPConnection, str]:
    """A connection, and what stands before /v1 in paths."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    # Without a port http.client would look for one in the host, and find the last digits of an IPv6 address.
    return kind(parts.hostname or "", parts.port or kind.default_port, timeout=timeout), parts.path


def _asked(
    url: str,
    method: str,
    path: str,
    headers: dict[str, str],
    body: Sequence[Buffer],
    timeout: float,
    repeated: bool = False,
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Status, headers and body of an answer; a service that is busy is asked again when it says. Raises ServiceError.

    repeated: one that does not answer is asked again too, since nothing is done twice.
    """
    headers = {**headers, **({"Content-Length": str(sum(map(len, body)))} if body else {})}
    for again in reversed(range(TRIES)):
        try:
            status, said, text = _exchange(url, method, path, headers, body, timeout)
        except (OSError, http.client.HTTPException) as error:
            if not again or not repeated:
                raise _silence(url, error, timeout) from None
            time.sleep(2.0 ** (TRIES - 2 - again))  # 1, 2, 4, 8 s
            continue
        wait = said.get("Retry-After", "")
        if status not in (429, 503, *((409,) if repeated else ())) or not again or not wait.isdecimal() or int(wait) > LONGEST_WAIT:
            break
        time.sleep(int(wait))
    return status, said, text


def _silence(url: str, error: Exception, timeout: float) -> ServiceError:
    """Why there was no answer."""
    if isinstance(error, socket.timeout):  # TimeoutError from Python 3.10 on
        return ServiceError("No answer", f"{url} was silent for {timeout:g} s; give a longer timeout, or post fewer rows at a time")
    if isinstance(error, ConnectionRefusedError):
        advice = "start one with `softgauge serve`, or name another by url= or SOFTGAUGE_URL"
        return ServiceError("No service", f"nothing listens at {url}; {advice}")
    return ServiceError("No answer", f"{url}: {type(error).__name__} {error}".rstrip())


def _pieces(body: Sequence[Buffer]) -> Iterator[memoryview]:
    """The body in pieces of at most 1 MiB, so that the timeout is that of a piece."""
    for part in body:
        view = memoryview(part)
        yield from (view[start : start + (1 << 20)] for start in range(0, len(view), 1 << 20))


def _exchange(
    url: str, method: str, path: str, headers: Mapping[str, str], body: Sequence[Buffer], timeout: float
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """One request and its answer: status, headers, body."""
    connection, prefix = _connection(url, timeout)
    with contextlib.closing(connection):
        connection.connect()
        # A service that refuses a body answers before it has all of it, and that answer is wanted.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request(method, f"{prefix}{path}", _pieces(body) if body else None, headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def _read(url: str, status: int, headers: http.client.HTTPMessage, text: bytes) -> Any:
    """The answer, or ServiceError of a problem document (RFC 9457) or of whatever else it is."""
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        found = None
    if 200 <= status < 300 and found is not None:
        return found
    if headers.get_content_type() == "application/problem+json" and isinstance(found, dict):
        raise ServiceError(found.get("title", "Refused"), found.get("detail", ""), status, found.get("errors", ()))
    if 300 <= status < 400:
        raise ServiceError("Redirected", f"{url} points to {headers.get('Location')}, which is not followed; give that URL", status)
    raise ServiceError("No verdict", f"what answers at {url} is no Softgauge service", status)


def _is_ready(url: str) -> bool:
    connection, prefix = _connection(url, 5.0)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", f"{prefix}/health/ready")
        return connection.getresponse().status == 200
    return False
