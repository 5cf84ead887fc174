"""Correctly rounded exp, exp2 and fma: one rounding from the exact value, the same bits on every processor.

What is judged must not see the judge, so this shares nothing with engine.truth: narrow formats go through binary64
with a proven error (+, -, * and rint only, never NumPy's exp) and a rounding test, and what that leaves open, and all of
float64, through integers of as many bits as it takes.

The narrow path: x = k log 2 + r, |r| < 0.35, and a polynomial of degree 13. r is off by less than 2^-53 (k log 2 in two
parts, the first times k exact), the truncated series by 2^-57 of exp(r), Horner's scheme by 3 units of 2^-53: together
below 2^-50 of the result. The test takes 2^-47.
"""

from __future__ import annotations

from functools import lru_cache
from math import frexp

import numpy as np

from engine.formats import Format, from_ordinals, round_array, round_between, round_ordinal, widen
from engine.model import Array

_LOG2_E = float.fromhex("0x1.71547652b82fep+0")
_LN2 = float.fromhex("0x1.62e42fefa39efp-1")
_LN2_HIGH = float.fromhex("0x1.62e42fefa0000p-1")
"""The first 37 bits of log 2: times an integer of 16 bits it is exact."""
_LN2_LOW = float.fromhex("0x1.cf79abc9e3b39p-40")
_FAR = 700.0
"""Beyond it exp and exp2 overflow every format of at most 24 bits, or vanish there."""
_DOUBT = 2.0**-47
_SQUARINGS = 8


def exp(values: Array, fmt: Format) -> Array:
    """e^x of numbers of a format, correctly rounded to it: same shape, overflow by its rule."""
    return _rounded(values, fmt, binary=False)


def exp2(values: Array, fmt: Format) -> Array:
    """2^x, likewise."""
    return _rounded(values, fmt, binary=True)


def _rounded(values: Array, fmt: Format, binary: bool) -> Array:
    wide = widen(values)
    result = np.empty(wide.shape, fmt.dtype)
    open_ = np.isfinite(wide)
    result[~open_] = round_array(np.where(wide[~open_] == -np.inf, 0.0, wide[~open_]), fmt)
    if fmt.precision <= 24:
        near = _near(np.clip(np.where(open_, wide, 0.0), -_FAR, _FAR), binary)
        low, high = (round_array(near * (1 + side * _DOUBT), fmt) for side in (-1, 1))
        told = open_ & (widen(low) == widen(high))
        result[told] = low[told]
        open_ &= ~told
    if open_.any():
        each, place = np.unique(wide[open_], return_inverse=True)
        found = np.array([_ordinal(x, fmt, binary) for x in each.tolist()], dtype=np.int64)
        result[open_] = from_ordinals(found, fmt)[place]
    return result


def _near(x: Array, binary: bool) -> Array:
    """e^x or 2^x in binary64, off by less than 2^-50 relatively; |x| <= 700."""
    k = np.rint(x if binary else x * _LOG2_E)
    r = (x - k) * _LN2 if binary else (x - k * _LN2_HIGH) - k * _LN2_LOW
    total = np.ones(x.shape)
    for n in range(13, 0, -1):
        total = 1.0 + total * r / n
    return np.ldexp(total, k.astype(np.int64))


def _ordinal(x: float, fmt: Format, binary: bool) -> int:
    """The ordinal of RN(e^x) or RN(2^x) of a finite x."""
    if binary and x.is_integer() and abs(x) < 1 << 20:
        return round_ordinal(1, int(x), fmt)  # the only exact powers, so the only ones that may be midpoints
    if abs(x) < 2.0 ** -(fmt.precision + 2):
        return round_ordinal(1, 0, fmt)  # |e^x - 1| < 2^-(p + 1), half the smaller gap beside 1
    if x >= fmt.emax + 2 or x <= fmt.emin - fmt.precision - 1:  # e^x and 2^x are at least 2^x above 0, at most below
        return fmt.overflow_ordinal if x > 0 else 0
    fraction, exponent = frexp(x)
    bits = fmt.precision + 40
    while (found := round_between(*_enclosed(int(fraction * 2**53), exponent - 53, binary, bits), fmt)) is None:
        bits *= 2  # ends: e^x and 2^x are irrational here, so never midpoints
    return found[0]


def _enclosed(man: int, exp: int, binary: bool, bits: int) -> tuple[int, int, int]:
    """(lo, hi, unit): e^x or 2^x, x = man 2^exp, strictly within a relative 2^-bits.

    r in [0, log 2) is divided by 2^8, its series summed and squared eight times. In units of 2^-places the series is off by
    less than 2^6 (a unit for each of at most 60 steps, and those of r itself), and eight squarings of a number below 2 make
    that less than 2^15 of a result of at least 1.
    """
    places = bits + 20
    log_2 = _log_2(places + 16)  # k < 2^11 of them are off by less than 2^-4 units
    if binary:
        x = _shifted(man, exp + places + 16)
        k, rest = x >> (places + 16), x & ((1 << (places + 16)) - 1)
        r = rest * log_2 >> (places + 32)
    else:
        k, rest = divmod(_shifted(man, exp + places + 16), log_2)
        r = rest >> 16
    r >>= _SQUARINGS
    term = total = 1 << places
    n = 0
    while term:
        n += 1
        term = (term * r >> places) // n
        total += term
    for _ in range(_SQUARINGS):
        total = total * total >> places
    return total - (1 << 16), total + (1 << 16), k - places


def _shifted(man: int, shift: int) -> int:
    return man << shift if shift >= 0 else man >> -shift


@lru_cache(maxsize=64)
def _log_2(bits: int) -> int:
    """log 2 in units of 2^-bits, off by less than 2: 18 atanh(1/26) - 2 atanh(1/4801) + 8 atanh(1/8749)."""
    places = bits + 16
    return sum(c * _atanh_inverse(n, places) for c, n in ((18, 26), (-2, 4801), (8, 8749))) >> 16


def _atanh_inverse(n: int, places: int) -> int:
    """atanh(1/n), off by less than a unit of 2^-places for each of its terms."""
    power, total, odd = (1 << places) // n, 0, 1
    while power:
        total += power // odd
        power, odd = power // (n * n), odd + 2
    return total


def fma(a: Array, b: Array, c: Array, fmt: Format) -> Array:
    """a b + c of numbers of a format, exact product and sum, rounded once; the operands broadcast.

    Up to 24 bits the product is exact in binary64, and the sum is rounded there to odd: so the second rounding is the only
    one (Boldo and Melquiond, doi 10.1109/TC.2007.70819). float64 takes integers.
    """
    x, y, z = np.broadcast_arrays(widen(a), widen(b), widen(c))
    if fmt.precision <= 24:
        return round_array(_sum_to_odd(x * y, z), fmt)
    plain = np.array(x * y + z)
    finite = np.isfinite(x) & np.isfinite(y) & np.isfinite(z)
    plain[finite] = [
        _fused(*triple, fmt) for triple in zip(x[finite].tolist(), y[finite].tolist(), z[finite].tolist(), strict=True)
    ]
    return plain


def _sum_to_odd(a: Array, b: Array) -> Array:
    """a + b in binary64; where that is inexact, the neighbour of the exact sum whose last bit is 1."""
    total = a + b
    back = total - a
    error = (a - (total - back)) + (b - back)  # exact (Knuth), the numbers being far from the ends of binary64
    inexact = np.isfinite(total) & (error != 0)
    even = (total.view(np.int64) & 1) == 0
    return np.where(inexact & even, np.nextafter(total, np.copysign(np.inf, error)), total)


def _fused(a: float, b: float, c: float, fmt: Format) -> float:
    (p, q, r), (i, j, k) = zip(*((int(m * 2**53), e - 53) for m, e in map(frexp, (a, b, c))), strict=True)
    unit = min(i + j, k)
    man = (p * q << (i + j - unit)) + (r << (k - unit))
    if not man:
        return a * b + c if p * q == 0 else 0.0  # the sign of a zero is that of the plain sum
    found = float(from_ordinals(np.array([round_ordinal(man, unit, fmt)]), fmt)[0])
    return found if found or man > 0 else -0.0
