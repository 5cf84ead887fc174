"""Tolerances derived from the input: how far a sound algorithm may be from the truth on one row.

Until a-priori bounds of each algorithm come, `inaccurate` is decided by the stated interim rule: with n logits of
range x_max - x_min (finite ones), u = 2^-precision and T the truth,

    softmax, softmax_jacobian   |c - T| <= (n + 4 + 2 (x_max - x_min)) u |T|  where RN(T) is normal
    every other op              |c - T| <= (n + 4 + 2 (x_max - x_min) + 2 |T|) u

It is read off the leading terms of Blanchard, Higham, Higham (doi 10.1093/imanum/draa038), theorems 4.2 and 4.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from engine.formats import Format
from engine.model import Array

RELATIVE = "max_rel_normal of a row at most (n + 4 + 2 (x_max - x_min)) u"
ABSOLUTE = "absolute error at most (n + 4 + 2 (x_max - x_min) + 2 abs(T)) u"


@dataclass(frozen=True)
class Tolerance:
    """An element is beyond where |c - T| > absolute + relative |T|; with normal_only, only where RN(T) is normal."""

    absolute: Fraction
    relative: Fraction
    normal_only: bool


def rule(op: str) -> str:
    """The sentence of the interim rule for an op."""
    return RELATIVE if _is_relative(op) else ABSOLUTE


def tolerance(op: str, logits: Array, fmt: Format, n: int | None = None) -> Tolerance:
    """The interim rule for one row of logits, shape (n,), in exact rational numbers; n: if `logits` are not all of the row."""
    finite = logits[np.isfinite(logits)]
    spread = Fraction(float(finite.max())) - Fraction(float(finite.min())) if finite.size else Fraction(0)
    u = Fraction(1, 2**fmt.precision)
    coefficient = ((logits.size if n is None else n) + 4 + 2 * spread) * u
    if _is_relative(op):
        return Tolerance(Fraction(0), coefficient, True)
    return Tolerance(coefficient, 2 * u, False)


def _is_relative(op: str) -> bool:
    return op in ("softmax", "softmax_jacobian")
