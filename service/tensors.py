"""The doors by which tensors arrive: JSON numbers, base64, bits. Each ends in an array of a format's own dtype.

Written by hand and not with pydantic: a million numbers are checked by their set of types, and the first few faults are
named by their place. Whatever is wrong raises BadTensor; a value is never guessed.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import engine
from service.errors import place, quoted, shown

Array = NDArray[Any]

SPECIALS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
HEX_FLOAT = r"[+-]?0[xX]([0-9a-fA-F]+)(?:\.([0-9a-fA-F]*))?[pP]([+-]?[0-9]{1,6})"
INTEGERS: dict[str, np.dtype[Any]] = {"int32": np.dtype(np.int32), "int64": np.dtype(np.int64)}

_LARGEST = f'give at most {sys.float_info.max!r}, or the string "Infinity"'

if sys.byteorder != "little":  # the base64 door hands bytes to NumPy as they are
    raise ImportError("softgauge needs a little-endian machine")


class Bounds(Protocol):
    """The limits a tensor meets (settings.Limits has them)."""

    @property
    def max_rank(self) -> int: ...
    @property
    def max_elements(self) -> int: ...
    @property
    def max_errors(self) -> int: ...
    @property
    def max_string(self) -> int: ...


class BadTensor(Exception):
    """findings: (JSON pointer, what is wrong) pairs, at least one. oversize: it is only too large."""

    def __init__(self, *findings: tuple[str, str], oversize: bool = False) -> None:
        super().__init__("; ".join(detail for _, detail in findings))
        self.findings = findings
        self.oversize = oversize


class Malformed(Exception):
    """What is wrong with a JSON text, as the predicate of a sentence."""


def document(text: bytes) -> object:
    """RFC 8259, but no duplicate names. Bare NaN, Infinity and 1e999 become non-finite floats. Raises Malformed."""
    try:
        return json.loads(text.decode(), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise Malformed(f"is not UTF-8: byte {error.start} does not fit") from None
    except RecursionError:
        raise Malformed("is nested too deeply: tensors have at most 4 levels") from None
    except json.JSONDecodeError as error:
        raise Malformed(f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except ValueError:
        raise Malformed(f"has an integer of more than {sys.get_int_max_str_digits()} digits, which no field takes") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise Malformed(f"has an object with two members of the same name, {shown(twice)}; leave one out")
    return found


@dataclass(frozen=True)
class _Cells:
    """Flat items and where each came from."""

    items: list[Any]
    shape: tuple[int, ...]
    place: Callable[[int], str]


def read(value: object, pointer: str, bounds: Bounds) -> Array:
    """A tensor of numbers: float64 from a bare list, else the dtype it declares. Raises BadTensor."""
    if isinstance(value, np.ndarray):
        return _of_file(value, pointer, bounds)
    if isinstance(value, dict):
        return _declared(value, pointer, bounds, integers=False)
    return _floats(_flatten(value, pointer, bounds), bounds)


def _of_file(array: Array, pointer: str, bounds: Bounds, integers: str = "", least_rank: int = 1) -> Array:
    """An array that came in a file, of a format. integers: kinds of dtype that do beside, and become int64."""
    if not least_rank <= array.ndim <= bounds.max_rank:
        rule = f"the rank is {least_rank} to {bounds.max_rank}: merge or add axes"
        raise BadTensor((pointer, f"a tensor of rank {array.ndim}; {rule}"))
    if array.dtype.kind not in "iub":
        return array
    if array.dtype.kind not in integers or array.dtype == np.uint64:
        known = f"{', '.join(engine.FORMATS)}{', and integers up to int64' * bool(integers)}"
        raise BadTensor((pointer, f"{array.dtype} is no dtype here; known: {known}"))
    return array.astype(np.int64, copy=False)


def read_declared(value: dict[str, Any] | Array, pointer: str, bounds: Bounds) -> Array:
    """A tensor object of numbers, of any rank. Raises BadTensor."""
    if isinstance(value, np.ndarray):
        return _of_file(value, pointer, bounds, least_rank=0)
    return _declared(value, pointer, bounds, integers=False, least_rank=0)


def read_targets(value: object, pointer: str, bounds: Bounds, logits_shape: tuple[int, ...]) -> Array:
    """Targets for logits of that shape: int64 class indices (the shape without the last axis) or weights. Raises BadTensor."""
    if isinstance(value, np.ndarray):
        return _of_file(value, pointer, bounds, "iu", least_rank=0)
    if isinstance(value, dict):
        return _declared(value, pointer, bounds, integers=True)
    if not isinstance(value, list):
        return _integers(_Cells([value], (), lambda _: pointer), np.dtype(np.int64), bounds)
    cells = _flatten(value, pointer, bounds)
    if cells.shape == logits_shape[:-1]:
        return _integers(cells, np.dtype(np.int64), bounds)
    return _floats(cells, bounds)


def read_booleans(value: object, pointer: str, bounds: Bounds) -> Array:
    """Nested lists of true and false, or an array of them. Raises BadTensor."""
    if isinstance(value, np.ndarray):
        if value.dtype != bool:
            rule = "is no dtype of a mask; that is bool, true where a logit is kept"
            raise BadTensor((pointer, f"{value.dtype} {rule}"))
        return value
    cells = _flatten(value, pointer, bounds)

    def convert(item: object) -> bool:
        if type(item) is not bool:
            raise ValueError(f"{shown(item)} is no boolean: a mask is of true and false, true where a logit is kept")
        return item

    items = cells.items if set(map(type, cells.items)) == {bool} else _each(cells, convert, bounds)
    return np.array(items, dtype=bool).reshape(cells.shape)


def _declared(value: dict[str, Any], pointer: str, bounds: Bounds, *, integers: bool, least_rank: int | None = None) -> Array:
    """A tensor object: {dtype, shape, data} and perhaps encoding or rounding."""
    door = value.get("encoding")
    if "encoding" in value and door not in ("base64", "bits"):
        rule = "is no encoding: base64 and bits are; leave it out for JSON numbers"
        raise BadTensor((f"{pointer}/encoding", f"{shown(door)} {rule}"))
    _check_keys(value, "encoding" if door else "rounding", pointer, bounds)
    dtype = _dtype(value["dtype"], f"{pointer}/dtype", integers=integers)
    least = (0 if integers else 1) if least_rank is None else least_rank
    shape = _shape(value["shape"], f"{pointer}/shape", bounds, least_rank=least)
    if door == "base64":
        return _base64(value["data"], dtype, shape, f"{pointer}/data")
    cells = _matching(_flatten(value["data"], f"{pointer}/data", bounds), shape, f"{pointer}/data")
    if door == "bits":
        return _bits(cells, dtype, bounds)
    if dtype.name in INTEGERS:
        return _integers(cells, dtype, bounds)
    return _stored(cells, dtype, _rounding(value, pointer), bounds)


def _check_keys(value: dict[str, Any], optional: str, pointer: str, bounds: Bounds) -> None:
    needed = ("dtype", "shape", "data")
    if unknown := [key for key in value if key not in (*needed, optional)]:
        rule = f"is no field of this tensor; known here: dtype, shape, data, {optional}"
        raise BadTensor(*((pointer + place([key]), f"{shown(key)} {rule}") for key in unknown[: bounds.max_errors]))
    for key in needed:
        if key not in value:
            raise BadTensor((f"{pointer}/{key}", f"{key} is missing: a tensor object needs dtype, shape and data"))


def _dtype(name: object, pointer: str, *, integers: bool) -> np.dtype[Any]:
    if not isinstance(name, str):
        raise BadTensor((pointer, f"{shown(name)} is no dtype: that is the name of a format, such as float32"))
    if integers and name.lower() in INTEGERS:
        return INTEGERS[name.lower()]
    try:
        fmt = engine.find_format(name)
    except engine.UnknownName as error:
        raise BadTensor((pointer, str(error))) from None
    return fmt.dtype


def _shape(value: object, pointer: str, bounds: Bounds, *, least_rank: int) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise BadTensor((pointer, f"{shown(value)} is no shape: that is a list of integers, such as [2, 3]"))
    if not least_rank <= len(value) <= bounds.max_rank:
        raise BadTensor(
            (pointer, f"a shape of rank {len(value)}; the rank is {least_rank} to {bounds.max_rank}: merge or add axes")
        )
    for index, extent in enumerate(value):
        if type(extent) is not int or extent < 1:
            rule = "is no extent: shape is a list of integers, and every extent is at least 1"
            raise BadTensor((f"{pointer}/{index}", f"{shown(extent)} {rule}"))
    if (elements := math.prod(value)) > bounds.max_elements:
        raise _oversize(elements, pointer, bounds)
    return tuple(value)


def _oversize(elements: int, pointer: str, bounds: Bounds) -> BadTensor:
    rule = f"a tensor has at most max_elements = {bounds.max_elements} elements, not {shown(elements)}; send fewer rows at a time"
    return BadTensor((pointer, rule), oversize=True)


def _rounding(value: dict[str, Any], pointer: str) -> bool:
    """Whether values may be rounded to the declared dtype."""
    if value.get("rounding", "nearest") != "nearest":
        rule = 'is no rounding: "nearest" is the only one; left out, every value must be exact'
        raise BadTensor((f"{pointer}/rounding", f"{shown(value['rounding'])} {rule}"))
    return "rounding" in value


def _flatten(value: object, pointer: str, bounds: Bounds) -> _Cells:
    """The leaves of nested lists of equal lengths, level by level. Raises BadTensor for ragged, empty or deep ones."""
    if not isinstance(value, list):
        raise BadTensor(
            (pointer, f"{shown(value)} is no tensor: expected a list of numbers, or an object with dtype, shape and data")
        )
    shape, level = [len(value)], value
    while level and list in (kinds := set(map(type, level))):
        if kinds != {list}:
            odd = next(i for i, item in enumerate(level) if type(item) is not type(level[0]))
            detail = f"ragged: {shown(level[odd])} beside {shown(level[0])}; make every row a list of the same length"
            raise BadTensor((_place(pointer, odd, shape), detail))
        lengths = list(map(len, level))
        odd = next((i for i, length in enumerate(lengths) if length != lengths[0]), -1)
        if odd >= 0:
            detail = f"ragged: {lengths[odd]} items where the first list has {lengths[0]}; give every list as many"
            raise BadTensor((_place(pointer, odd, shape), detail))
        shape.append(lengths[0])
        if len(shape) > bounds.max_rank:
            raise BadTensor((pointer, f"the rank is 1 to {bounds.max_rank}; this is nested deeper: merge axes"))
        level = list(chain.from_iterable(level))
    if not level:
        raise BadTensor((pointer, "an empty list is no tensor: give one number at least"))
    if len(level) > bounds.max_elements:
        raise _oversize(len(level), pointer, bounds)
    return _Cells(level, tuple(shape), lambda i: _place(pointer, i, shape))


def _place(pointer: str, index: int, shape: list[int]) -> str:
    """JSON pointer of the flat index in nested lists of that shape."""
    return pointer + "".join(f"/{part}" for part in np.unravel_index(index, shape))


def _matching(cells: _Cells, shape: tuple[int, ...], pointer: str) -> _Cells:
    """The cells under the declared shape: nested in it, or flat in row-major order."""
    if cells.shape not in (shape, (math.prod(shape),)):
        filled = f"do not fill the declared shape {list(shape)}: give {math.prod(shape)} numbers, flat or nested in it"
        raise BadTensor((pointer, f"data of shape {list(cells.shape)} {filled}"))
    return _Cells(cells.items, shape, cells.place)


def _each(cells: _Cells, convert: Callable[[Any], Any], bounds: Bounds) -> list[Any]:
    """Every item converted, one by one; a ValueError names what is wrong. Raises BadTensor with the first few."""
    done: list[Any] = []
    findings: list[tuple[str, str]] = []
    for index, item in enumerate(cells.items):
        try:
            done.append(convert(item))
        except ValueError as error:
            findings.append((cells.place(index), str(error)))
            if len(findings) >= bounds.max_errors:
                break
    if findings:
        raise BadTensor(*findings)
    return done


def _floats(cells: _Cells, bounds: Bounds) -> Array:
    """The cells as binary64."""
    if set(map(type, cells.items)) <= {int, float}:
        try:
            quick = np.array(cells.items, dtype=np.float64)
        except OverflowError:
            quick = np.array(np.nan)
        if (np.abs(quick) < 1 << 53).all():
            return quick.reshape(cells.shape)
    return np.array(_each(cells, lambda item: _number(item, bounds.max_string), bounds), dtype=np.float64).reshape(cells.shape)


def _stored(cells: _Cells, dtype: np.dtype[Any], rounding: bool, bounds: Bounds) -> Array:
    """The cells in the declared dtype; each must be exact there unless rounding is asked for."""
    wide = _floats(cells, bounds)
    rounded = engine.round_array(wide, engine.find_format(dtype.name))
    back = rounded.astype(np.float64)
    inexact = np.flatnonzero(~((back == wide) | (np.isnan(back) & np.isnan(wide))))
    if inexact.size and not rounding:
        advice = f'is no {dtype.name}; give the exact value, or "rounding": "nearest"'
        raise BadTensor(*((cells.place(int(i)), f"{float(wide.flat[i])!r} {advice}") for i in inexact[: bounds.max_errors]))
    return rounded


def _number(item: object, longest: int) -> float:
    """One JSON item as binary64. Raises ValueError."""
    if type(item) is float:
        if not math.isfinite(item):
            rule = 'is not a finite number; non-finite ones are the strings "NaN", "Infinity" and "-Infinity"'
            raise ValueError(f"{shown(item)} {rule}")
        return item
    if type(item) is int:
        try:
            value = float(item)
        except OverflowError:
            raise ValueError(f"{shown(item)} is beyond the largest float64; {_LARGEST}") from None
        if value != item:  # rounding it here and again to the dtype would round twice
            raise ValueError(f"{quoted(str(item))} is no binary64 number; give one that is, such as {value!r}")
        return value
    if type(item) is str:
        return _numeric_string(item, longest)
    raise ValueError(f"{shown(item)} is not a number; numbers, the three non-finite strings and hex floats are")


def _numeric_string(text: str, longest: int) -> float:
    """NaN, Infinity, -Infinity, or a hex float that binary64 holds exactly."""
    if text in SPECIALS:
        return SPECIALS[text]
    if len(text) > longest:
        raise ValueError(f"{shown(text)} is too long: numeric strings have at most max_string = {longest} characters")
    match = re.fullmatch(HEX_FLOAT, text)
    if not match:
        raise ValueError(f'{quoted(text)} is not a number, "NaN", "Infinity", "-Infinity" or a hex float such as "0x1.8p+1"')
    try:
        value = float.fromhex(text)
    except OverflowError:
        raise ValueError(f"{quoted(text)} is beyond the largest float64; {_LARGEST}") from None
    whole, part, exponent = match.groups(default="")
    man = int(whole + part, 16)
    if man and not value:
        raise ValueError(f"{quoted(text)} underflows: the smallest float64 is 0x1p-1074; give that, or 0")
    if _reduced(man, int(exponent) - 4 * len(part)) != _reduced(*_integral(abs(value))):
        raise ValueError(f"{quoted(text)} is no float64: it needs more bits than there are; the nearest is {value.hex()}")
    return value


def _integral(value: float) -> tuple[int, int]:
    """Integers (man, exp) with value = man * 2^exp."""
    man, exp = math.frexp(value)
    return int(man * 2**53), exp - 53


def _reduced(man: int, exp: int) -> tuple[int, int]:
    """man * 2^exp with man odd; (0, 0) for zero."""
    if man == 0:
        return 0, 0
    shift = (man & -man).bit_length() - 1
    return man >> shift, exp + shift


def _integers(cells: _Cells, dtype: np.dtype[Any], bounds: Bounds) -> Array:
    """Class indices. A fraction, a boolean or a number beyond the dtype is refused."""
    info = np.iinfo(dtype)

    def convert(item: object) -> int:
        if type(item) is not int:
            raise ValueError(f"{shown(item)} is no class index: class indices are integers from 0 to n - 1")
        if not info.min <= item <= info.max:
            raise ValueError(f"{shown(item)} is a class index beyond {dtype.name}; class indices are 0 to n - 1")
        return item

    return np.array(_each(cells, convert, bounds), dtype=dtype).reshape(cells.shape)


def _bits(cells: _Cells, dtype: np.dtype[Any], bounds: Bounds) -> Array:
    """Bit patterns as unsigned integers, or as decimal strings for those above 2^53."""
    width = dtype.itemsize * 8

    def convert(item: object) -> int:
        if type(item) is str and item.isascii() and item.isdigit() and len(item) <= 20:
            item = int(item)
        if type(item) is not int:
            raise ValueError(f"{shown(item)} is no bit pattern: that is an unsigned integer, or its decimal digits as a string")
        if not 0 <= item < 1 << width:
            raise ValueError(f"{shown(item)} is no bit pattern of {dtype.name}: those are 0 to {(1 << width) - 1}")
        return item

    return np.array(_each(cells, convert, bounds), dtype=f"u{dtype.itemsize}").view(dtype).reshape(cells.shape)


def _base64(text: object, dtype: np.dtype[Any], shape: tuple[int, ...], pointer: str) -> Array:
    """Little-endian bytes in C order."""
    if not isinstance(text, str):
        raise BadTensor((pointer, f"{shown(text)} is no base64: such data are a string"))
    wanted = math.prod(shape) * dtype.itemsize
    if len(text) != 4 * -(-wanted // 3):
        counted = f"{wanted} bytes in base64 are {4 * -(-wanted // 3)} characters, not {len(text)}"
        raise BadTensor((pointer, f"shape {list(shape)} of {dtype.name} does not match: {counted}"))
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        odd = re.search("[^A-Za-z0-9+/]", text.rstrip("="))
        what = f"{shown(odd[0])} at character {odd.start()}" if odd else f"the padding of {shown(text[-4:])}"
        raise BadTensor((pointer, f"{what} is not base64 (RFC 4648, section 4, with padding)")) from None
    if len(raw) != wanted:
        raise BadTensor((pointer, f"{len(raw)} bytes where shape {list(shape)} of {dtype.name} has {wanted}"))
    if (canonical := base64.b64encode(raw).decode()) != text:
        ends = f"the end {shown(text[-4:])} has bits that are no part of a byte; write {shown(canonical[-4:])}"
        raise BadTensor((pointer, f"not canonical base64 (RFC 4648, section 3.5): {ends}"))
    return np.frombuffer(raw, dtype=dtype).reshape(shape)
