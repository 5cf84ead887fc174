"""How a variant adds: the strategies, each a function that sums the last axis of an array in an accumulator's arithmetic.

A strategy other than `numpy` is written out, one rounded operation after the other: np.sum and np.cumsum are never used to
imitate an order, because what they do depends on the format and on the axis (float16 is accumulated in float32 along the
last axis, not along the others).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from engine.formats import Format, from_ordinals, round_array, round_ordinal, widen
from engine.model import Array
from engine.registry import Registry

LANES = 32
"""Threads of a warp."""
BLOCK = 128
"""Terms that NumPy's pairwise sum adds by its eight accumulators before it halves."""


class Adder(NamedTuple):
    """The accumulator's arithmetic, as far as a sum needs it: a + b and a - b on arrays of the format, each rounded once."""

    fmt: Format
    add: Callable[[Array, Array], Array]
    sub: Callable[[Array, Array], Array]


Add = Callable[[Array, Adder], Array]


@dataclass(frozen=True)
class Summation:
    """One way to add. add: an array of shape B + (n,), n >= 1, to its row sums of shape B, both in the adder's format."""

    name: str
    description: str
    add: Add


SUMMATIONS: Registry[Summation] = Registry("summation")


def plain(fmt: Format) -> Adder:
    """The format's own addition, as NumPy has it: for every format here rounded once (see engine.arithmetic)."""
    return Adder(fmt, np.add, np.subtract)


def summation(name: str, description: str) -> Callable[[Add], Add]:
    """Register the decorated function as a strategy of that name."""

    def register(add: Add) -> Add:
        SUMMATIONS.add(name, Summation(name, description, add))
        return add

    return register


@summation(
    "numpy",
    "what NumPy's add.reduce does along a contiguous row: pairwise; float16 accumulates in float32; bfloat16 and the 8-bit formats"
    " in order",
)
def _numpy(terms: Array, k: Adder) -> Array:
    # Along any axis but a contiguous last one NumPy adds in another order, so the layout is part of the strategy.
    return np.asarray(np.add.reduce(np.ascontiguousarray(terms), axis=-1))


@summation("sequential", "from the first term to the last, every partial sum rounded to the format")
def _sequential(terms: Array, k: Adder) -> Array:
    columns = _columns(terms)
    return _rows(_in_order(columns, k), terms)


@summation("reverse", "from the last term to the first, every partial sum rounded")
def _reverse(terms: Array, k: Adder) -> Array:
    return _rows(_in_order(_columns(terms)[::-1], k), terms)


@summation("pairwise", "a tree: neighbours in pairs, then the sums in pairs, a term left over goes up as it is")
def _pairwise(terms: Array, k: Adder) -> Array:
    level = _columns(terms)
    while len(level) > 1:
        even = len(level) & ~1
        level = np.concatenate((k.add(level[0:even:2], level[1:even:2]), level[even:]))
    return _rows(level[0], terms)


@summation("blocked", "what NumPy does in float32 and float64, written out: halves down to 128 terms, then eight accumulators")
def _blocked(terms: Array, k: Adder) -> Array:
    return _rows(_halved(_columns(terms), k), terms)


def _halved(columns: Array, k: Adder) -> Array:
    """numpy/_core/src/umath/loops_utils.h.src, pairwise_sum."""
    n = len(columns)
    if n < 8:
        return _in_order(columns, k)
    if n <= BLOCK:
        whole = n - n % 8
        lanes = _in_order(columns[:whole].reshape(whole // 8, 8, -1), k)
        pairs = k.add(lanes[0::2], lanes[1::2])
        total = k.add(k.add(pairs[0], pairs[1]), k.add(pairs[2], pairs[3]))
        return _in_order([total, *columns[whole:]], k)
    half = n // 2 - n // 2 % 8
    return k.add(_halved(columns[:half], k), _halved(columns[half:], k))


@summation("warp", "32 lanes, lane l adding the terms l, l + 32, ... in order, then a tree: lane l takes l + 16, l + 8, ..., l + 1")
def _warp(terms: Array, k: Adder) -> Array:
    columns = _columns(terms)
    missing = -len(columns) % LANES
    padded = np.concatenate((columns, np.zeros((missing, columns.shape[1]), columns.dtype)))  # x + 0 is x
    lanes = _in_order(padded.reshape(-1, LANES, columns.shape[1]), k)
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = k.add(lanes[:half], lanes[half:])
    return _rows(lanes[0], terms)


@summation("kahan", "in order, what each addition lost being subtracted from the next term (Kahan 1965, doi 10.1145/363707.363723)")
def _kahan(terms: Array, k: Adder) -> Array:
    total, *rest = _columns(terms)
    lost = np.zeros_like(total)
    for term in rest:
        due = k.sub(term, lost)
        grown = k.add(total, due)
        lost = k.sub(k.sub(grown, total), due)
        total = grown
    return _rows(total, terms)


@summation("neumaier", "in order, what the additions lost being summed beside and added at the end (doi 10.1002/zamm.19740540106)")
def _neumaier(terms: Array, k: Adder) -> Array:
    total, *rest = _columns(terms)
    lost = np.zeros_like(total)
    for term in rest:
        grown = k.add(total, term)
        larger = np.abs(widen(total)) >= np.abs(widen(term))
        big, small = np.where(larger, total, term), np.where(larger, term, total)
        lost = k.add(lost, k.add(k.sub(big, grown), small))
        total = grown
    return _rows(k.add(total, lost), terms)


@summation("exact", "the exact sum, rounded once")
def _exact(terms: Array, k: Adder) -> Array:
    rows = widen(terms).reshape(-1, terms.shape[-1])
    finite = np.isfinite(rows)
    special = np.logical_not(finite.all(axis=1))
    totals = [round_ordinal(*_total(row), k.fmt) for row in np.where(finite, rows, 0.0)]
    found = from_ordinals(np.array(totals, dtype=np.int64), k.fmt)
    found[special] = round_array(np.add.reduce(rows[special], axis=-1), k.fmt)
    return np.asarray(found.reshape(terms.shape[:-1]))


def _total(row: Array) -> tuple[int, int]:
    """The exact sum of finite binary64 numbers as integers (man, exp).

    By exponent: halves of 27 and 26 bits of the significands, of which int64 holds the sums of 2^36.
    """
    fraction, exponent = np.frexp(row)
    man = np.ldexp(fraction, 53).astype(np.int64)
    least = int(exponent.min())
    sums: Array = np.zeros((2, int(exponent.max()) - least + 1), np.int64)
    np.add.at(sums[0], exponent - least, man >> 26)
    np.add.at(sums[1], exponent - least, man & ((1 << 26) - 1))
    high, low = (sum(part << at for at, part in enumerate(each) if part) for each in sums.tolist())
    return (high << 26) + low, least - 53


def _columns(terms: Array) -> Array:
    """The terms with their axis first, shape (n, rows), contiguous: a copy, so that no sum shares memory with them."""
    return np.array(terms.reshape(-1, terms.shape[-1]).T, order="C")


def _rows(total: Array, terms: Array) -> Array:
    return np.array(total).reshape(terms.shape[:-1])


def _in_order(parts: Iterator[Array] | Array | list[Array], k: Adder) -> Array:
    """The first part plus the second plus the third ..."""
    total, *rest = parts
    for part in rest:
        total = k.add(total, part)
    return np.asarray(total)
