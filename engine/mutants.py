"""Broken outputs by which a gate is tested: what comes out when a kernel writes nothing, or the wrong thing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import log

import numpy as np

from engine import formats
from engine.formats import FORMATS, Format
from engine.model import Array
from engine.truth import Truth

NARROWER = {
    "float64": "float32",
    "float32": "bfloat16",
    "bfloat16": "float8_e5m2",
    "float16": "float8_e5m2",
}
"""The format through which an output is cast; the 8-bit ones have no narrower one."""

Mutate = Callable[[Array, Truth, range], Array]


def _uniform(_right: Array, truth: Truth, rows: range) -> Array:
    """As if all logits of a row were equal."""
    n, op, given = truth.raw_logits.shape[1], truth.op.name, truth.companion(slice(rows.start, rows.stop))
    if op == "softmax":
        return np.full((len(rows), n), 1 / n)
    if op == "log_softmax":
        return np.full((len(rows), n), -log(n))
    if op == "softmax_jacobian":
        return np.broadcast_to(((np.eye(n) - 1 / n) / n).reshape(1, -1), (len(rows), n * n)).copy()
    if given is None:
        return np.full((len(rows), 1), log(n))
    y = given[:, None] == np.arange(n) if given.ndim == 1 else formats.widen(given)  # an ignored row may have no class
    whole = y.sum(axis=1, keepdims=True)
    if op == "cross_entropy":
        return np.asarray(whole * log(n))
    return np.asarray((y - whole / n) / n if op == "softmax_vjp" else whole / n - y)


def _half(right: Array, _truth: Truth, _rows: range) -> Array:
    """The second half of every row is not written; of results of one number a row, the second half of the rows."""
    found = right.copy()
    if right.shape[1] > 1:
        found[:, right.shape[1] // 2 :] = 0.0
    else:
        found[len(right) // 2 :] = 0.0
    return found


def _rolled(right: Array, _truth: Truth, _rows: range) -> Array:
    return np.roll(right, 1, axis=1 if right.shape[1] > 1 else 0)


MUTANTS: Mapping[str, Mutate] = {
    "zeros": lambda right, _truth, _rows: np.zeros_like(right),
    "uniform": _uniform,
    "rolled": _rolled,
    "negated": lambda right, _truth, _rows: -right,
    "half": _half,
    "narrowed": lambda right, _truth, _rows: right,
}
"""By name: of results near the truth, (rows, width) of binary64, the broken ones."""


def mutants(fmt: Format) -> tuple[str, ...]:
    """The names of those that there are for a format."""
    return tuple(name for name in MUTANTS if name != "narrowed" or fmt.name in NARROWER)


def mutate(name: str, right: Array, truth: Truth, rows: range) -> Array:
    """A mutant of some rows, an array of the truth's format, (rows, width); where the truth is not finite it is kept.

    right: results near the truth of these rows, binary64.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # weights may add up to more than binary64 holds
        broken = np.where(np.isfinite(right), MUTANTS[name](right, truth, rows), right)
    if name == "narrowed":
        broken = formats.widen(formats.round_array(broken, FORMATS[NARROWER[truth.fmt.name]]))
        broken = np.where(np.isfinite(right), broken, right)
    return formats.round_array(broken, truth.fmt)
