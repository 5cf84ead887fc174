"""How a figure is rounded, so that it is the same from every tier, split and processor.

A figure is known as an interval of integers over 2^exp and reported once both ends round to the same number, otherwise
what is behind it is refined. Sums of errors can be rational though the errors are not (the errors of a softmax row, if of
one sign, add up to sum c - 1), and then lie exactly between two figures: a value within 2^-256 of itself from such a
midpoint counts as the midpoint, ties to even. Beyond binary64 a figure is infinite, below it 0.
"""

from __future__ import annotations

from bisect import bisect_left
from fractions import Fraction
from math import inf, isqrt, ldexp

import numpy as np

from engine.model import Array

MAXIMUM_BITS = 40
MEAN_BITS = 20
ULP_STEP = -20
"""log2 of the finest step of an ULP mean, in ulps."""
TIE_BITS = 256
BIN_FLOOR = -10
"""log2 of the upper edge of the first percentile bin above 0, in ulps."""

Interval = tuple[int, int]


def significant(num: int, den: int, exp: int, bits: int, step: int | None = None) -> float:
    """num / den * 2^exp to `bits` significant bits, nearest even, no finer than 2^step; as a float.

    den > 0. Beyond binary64: infinite; below it: 0.
    """
    if num == 0:
        return 0.0
    size = abs(num)
    top = size.bit_length() - den.bit_length() + exp
    if top > 1100 or top < -1200:
        return (inf if num > 0 else -inf) if top > 0 else 0.0
    if (size << max(0, exp - top)) < (den << max(0, top - exp)):
        top -= 1
    unit = top - bits + 1 if step is None else max(top - bits + 1, step)
    shift = exp - unit
    quotient, rest = divmod(size << shift, den) if shift >= 0 else divmod(size, den << -shift)
    twice = 2 * rest - (den if shift >= 0 else den << -shift)
    quotient += twice > 0 or (twice == 0 and quotient & 1)
    return times_power(quotient if num > 0 else -quotient, unit)


def fix(lo: int, hi: int, den: int, exp: int, bits: int, step: int | None = None) -> float | None:
    """The figure of a value in [lo, hi] / den * 2^exp as `significant` rounds it; None where the interval does not tell.

    Within 2^-256 of itself from a midpoint a value counts as that midpoint, ties to even.
    """

    def rounded(man: int) -> float:
        return significant(man, den, exp - TIE_BITS, bits, step)

    wide_lo, wide_hi = (lo << TIE_BITS) - abs(lo), (hi << TIE_BITS) + abs(hi)
    low, high = rounded(wide_lo), rounded(wide_hi)
    if low == high:
        return low
    if lo <= 0 <= hi or (hi - lo) << TIE_BITS > min(abs(lo), abs(hi)) or inf in (high, -low):
        return None
    middle = (Fraction(low) + Fraction(high)) / 2
    return significant(middle.numerator, middle.denominator, 0, bits, step)


def fixed(values: Array, doubts: Array, bits: int) -> Array:
    """Numbers >= 0 known to within `doubts` to so many significant bits, nearest even; NaN where both ends do not agree.

    0 stays 0 where there is no doubt. Numbers above 2^1000, or below 2^-900 though not 0, are not told.
    """
    reach = doubts * (1 + 2.0**-40) + values * 2.0**-52
    with np.errstate(invalid="ignore", over="ignore"):
        ends = (values - reach, values + reach)
        man, exp = zip(*(np.frexp(end) for end in ends), strict=True)
        low, high = (np.ldexp(np.rint(np.ldexp(m, bits)), e - bits) for m, e in zip(man, exp, strict=True))
        told = (low == high) & (ends[0] > 2.0**-900) & (ends[1] < 2.0**1000)
    return np.where(told | ((values == 0) & (doubts == 0)), high, np.nan)


def times_power(man: float, exp: int) -> float:
    """man 2^exp as a float, infinite beyond binary64."""
    try:
        return ldexp(man, exp)
    except OverflowError:
        return inf if man > 0 else -inf


def _bin_table() -> list[int]:
    """2^(j/64) in units of 2^-52 to the nearest, j = 0..63: the bin edges' significands, by integer square roots."""
    table = []
    for j in range(64):
        value = 1 << (j + 64 * 128)
        for _ in range(6):
            value = isqrt(value)
        table.append((value + (1 << 75)) >> 76)
    return table


_BINS = _bin_table()
_EDGES = np.array([man * 2.0**-52 for man in _BINS])


def bin_edge(num: int, exp: int) -> float:
    """Upper edge of the percentile bin of num * 2^exp >= 0: 0, 2^-10, or the binary64 number nearest to 2^(k/64)."""
    if num == 0:
        return 0.0
    top = num.bit_length() - 1 + exp
    if top < BIN_FLOOR or (top == BIN_FLOOR and num & (num - 1) == 0):
        return 2.0**BIN_FLOOR
    shift = 53 - num.bit_length()
    scaled = num << shift if shift >= 0 else -(-num >> -shift)
    j = bisect_left(_BINS, scaled)
    return times_power(_BINS[j], top - 52) if j < 64 else times_power(1, top + 1)


def bin_numbers(values: Array) -> Array:
    """Numbers k of the percentile bins of positive binary64 numbers: the bin ends at 2^(k/64); -640 is the first."""
    fraction, exponent = np.frexp(values)
    places = np.searchsorted(_EDGES, fraction * 2, side="left")
    return np.asarray(np.maximum(64 * (exponent.astype(np.int64) - 1) + places, 64 * BIN_FLOOR))


def edges_of(numbers: Array) -> Array:
    """Upper edges of the bins of these numbers, within binary64."""
    return np.asarray(np.ldexp(_EDGES[numbers & 63], numbers >> 6))


def edge(number: int) -> float:
    """Upper edge of the bin of that number; of the zeros below the first, 0."""
    if number < 64 * BIN_FLOOR:
        return 0.0
    octave, place = divmod(number, 64)
    return times_power(_BINS[place], octave - 52)


def absolute(lo: int, hi: int) -> Interval:
    """Bounds of |v| for a v in [lo, hi]."""
    if lo >= 0:
        return lo, hi
    return (-hi, -lo) if hi <= 0 else (0, max(-lo, hi))
