"""Double-double arithmetic on arrays, with its exp and log.

A double-double is a pair (hi, lo) of binary64 arrays of one shape, its value hi + lo, normalised: hi = RN(hi + lo). Only + - * /
rounded to nearest, integer operations and look-ups are used, never a mathematical library or a fused multiply-add, so that the
bits are the same on every processor.

u = 2^-53. "Multiple of 2^-g" counts bits: a multiple of 2^-g below 2^(53 - g) in magnitude is a binary64 number, so that a sum
which must be one is exact. grid_g(x) = (x + M) - M, M = 1.5 2^(52 - g), is the multiple of 2^-g nearest to x.

exp, |xh| <= 1400, |xl| <= ulp(xh) <= 2^-42
-------------------------------------------
With C = log 2 / 8192 = C1 + C2 + C3s + C4 (29 bits, multiple of 2^-42; 28 bits, multiple of 2^-75, below 2^-47.4; multiple of
2^-93 below 2^-79.2; binary64, below 2^-94.7, off by 2^-147):

    t    the integer nearest to RN(xh / C), |t| < 2^24; xh / C is off by at most 2^-27, so |x - t C| <= R,
         R = C/2 + 2^-27 C + 2^-42 < 2^-14.528
    x = t C + r; t C1, t C2, t C3s are exact (53, 52 and 38 bits), |t C2| < 2^-23.4, |t C3s| < 2^-55.2, |t C4| < 2^-70.7
    d    = xh - t C1, exact. t != 0: then |xh| > 2^-15, both are multiples of 2^-67 and of ulp(xh), and |d| < 2^53 ulp(xh),
         because |d| < 2^-14.5 and |xh| > 2^-14 as soon as |t| >= 2. t = 0: d = xh
    a    = grid_40(RN(d - t C2)), |a| < 2^-14.528: a multiple of 2^-40, 26 bits
    b    = ((d - a) - t C2) - t C3s, exact: multiples of 2^-67, 2^-75 and 2^-93, below 2^-23, 2^-40.9 and 2^-40.9
         (t = 0: xh - a, exact too); |b| < 2^-40.99
    so r = a + b + xl - t C4 but for t 2^-147 < 2^-123; beta = b + xl - t C4, |beta| < 2^-40.4

    exp(r) = 1 + a + a^2/2 + beta + beta (a + beta/2) + r^3/6 + r^4/24 + r^5/120 + r^6/720, cut off below 2^-113.9
    a^2/2  exact: 51 bits, multiple of 2^-81, below 2^-30.05
    r^3/6  a1 = grid_27(a), 13 bits; a2 = r - a1, |a2| < 2^-27.9; 1/6 = K + k, K = 683/4096, |k| < 2^-13.5:
           a1^3 K  exact (38 + 10 bits), multiple of 2^-93, below 2^-46.1; so b' = b + a1^3 K is exact
           a1^3 k + a2 (r^2 + r a1 + a1^2)/6, below 2^-57.1 and 2^-57.9
    so exp(r) = 1 + a + a^2/2 + b' + xl + small, |small| < 2^-54.4
    w    = grid_56(a^2/2 + b' + xl), |w| < 2^-30: 26 bits
    v    = (((a^2/2 - w) + b') + xl) + small. The first two sums are exact (multiples of 2^-81 and 2^-93 below 2^-40; where t = 0
         and xh has finer bits, |xl| < 2^-66 and the second is below 2^-56.9), the last two are below 2^-56.9 and 2^-54.1
    so exp(r) = 1 + a + w + v

Errors up to here, in 2^-108 (half a unit of a number below 2^-e counts u 2^-e): beta (a + beta/2), below 2^-54.9, by four
roundings, of which the first is of a number below 2^-42: 3.9; a1^3 k: 1.0; a2 (...)/6, nine: 1.3; r^4/24 ..., below 2^-62.6: 0.1;
the four sums in `small`: three below 2^-56.3 and one below 2^-54.4: 0.3 + 2.5; v: 0.5 + 0.5 + 1.9; cut off: 0.1. Together 12.1.

    exp(x) = 2^k T exp(r), t = 8192 k + j, T = 2^(j/8192) = Th + Tl, Th a multiple of 2^-52 in [1, 2), Tl <= u, off by 2^-106 u
    Th   = h + m: 27 bits, a multiple of 2^-26; a multiple of 2^-52 below 2^-26
    h a, m a, h w are exact (53, 52 and 53 bits): multiples of 2^-66, 2^-92 and 2^-82
    H    = RN(Th + RN(h a + RN(h w + m a)))
    G    = (((Th - H) + h a) + h w) + m a, exact: multiples of 2^-53, 2^-66, 2^-82, 2^-92 below 2^-13, 2^-28, 2^-40, 2^-51
    rest = Th v + (m w + Tl ((a + w) + v)), |rest| < T 2^-53.7
    lo   = (G + Tl) + rest, hi + lo = H + lo by Fast2Sum

Errors relative to T, in 2^-108: Th v: 1.9 for the product; m w, below 2^-56: 0.3; the sums in `rest`: 0.3 + 2.5; Tl and its
product: under 0.1. |G| <= u H (1 + 2^-10) and |Tl| <= u, so G + Tl is below 2^-52 T (1 + 2^-9): 8.1; lo below 2^-51.3 T: 13.0.
Together 26, with those before 38.1, over exp(r) > 1 - 2^-14.5: below 38.2 2^-108 = 2^-102.7.

log1p, 0 <= s < 2^61
--------------------
1 + s = 2^e m, m in [1, 2); j the last row with Th <= m; log(1 + s) = (8192 e + j) C + 2 artanh(z), z = (m - T)/(m + T). No row
is guessed and nothing is iterated: no first approximation has to be trusted.

    m    = p + q + s', p + q = 2^-e (1 + sh) by 2Sum, s' = 2^-e sl; |q| <= 2^-53, |s'| <= 2^-53
    n    = m - T = (p - Th) + (q + s' - Tl) - Tll, where T = Th + Tl + Tll to 2^-158. p - Th is exact (Sterbenz); q + s' - Tl by two 2Sums
         whose errors are below 2^-105, and again 2Sum with p - Th: the roundings are u^2 of n and 2^-158 beside a
         logarithm of at least C; where T = 1 and e = 0 the sum is s, and n = s (1 + 3 u^2)
    d    = n + 2 T: 3 u^2
    z    = n/d: 15.1 u^2 (Joldes et al.); |z| < C/2 (1 + 2^-30) < 2^-14.52
    2 artanh(z) = 2 (z + z z^2 (1/3 + z^2/5 + z^4/7)), cut off below z^9 2/9: 2^-119 of itself; the bracket in double-double,
         all but its leading 1/3 in binary64: the second term is off by 2^-80 of itself, and is below 2^-30.6 of the first
         3 u^2 for the sum
    t C  = Fast2Sum(t C1, t C2) + t C3: exact, exact, rounding of t C3 (u 2^-65 of t C) and of the low part (u^2 of t C)
    the sum of the two, both >= 0 (m may lie 2^-52 below T: then n is -2^-52 at worst, a part in 2^38 of t C): 3 u^2
Together n 3, d 3, z 15.1, artanh 3.1, sum 3: 28 u^2 < 2^-101.1, in relative terms, for every s > 2^-900 (no product underflows).
For s < 2^-110 the value is s itself, to 2^-111: so it holds for every s, subnormal and 0 too.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from math import ldexp
from typing import NamedTuple

import numpy as np

from engine.model import Array
from engine.truth import exact

Pair = tuple[Array, Array]

EXP_BOUND = 2.0**-102.7
"""Relative error of exp."""
LOG_BOUND = 2.0**-101
"""Relative error of log1p."""
ROWS = 8192
_PLACES = 13
"""log2 of ROWS."""
_UNITS = 220
"""The table is made of integers in units of 2^-_UNITS."""
_SPLITTER = 2.0**27 + 1
_TINY = 2.0**-110

_MAGIC = 1.5 * 2.0**52
_MAGIC_BITS = 0x4338 << 48
_GRID_27, _GRID_40, _GRID_56 = (1.5 * 2.0 ** (52 - g) for g in (27, 40, 56))
_HEAD = -(1 << 26)
"""Mask of a number in [1, 2) that keeps its multiple of 2^-26."""
_SIXTH_HEAD = 683 / 4096
_SIXTH_REST = -1 / 12288
_THIRD = (1 / 3, float(Fraction(1, 3) - Fraction(1 / 3)))


# ---- the table -------------------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """log 2 / 8192 in short pieces, and 2^(j/8192) by j, as columns of shape (8192,).

    step: the binary64 nearest to log 2 / 8192 = c1 + c2 + c3, c1 of 29 and c2 of 28 bits, c3 the binary64 nearest to the
    rest; also = c1 + c2 + c3_short + c4. 2^(j/8192) = hi + lo + lowest, each the binary64 nearest to what is left, and
    = head30 + tail30, head30 of 30 bits, tail30 the binary64 nearest to the rest.
    """

    step: float
    c1: float
    c2: float
    c3: float
    c3_short: float
    c4: float
    hi: Array
    lo: Array
    lowest: Array
    head30: Array
    tail30: Array


@cache
def table() -> Table:
    """The constants and the table, made on first use."""
    powers = exact.roots_of_two(ROWS, _UNITS)
    heads = [_short(value, _UNITS - 29) for value in powers]
    columns = zip(*(_floats(value, 3, _UNITS) for value in powers), strict=True)
    hi, lo, lowest = (_frozen(column) for column in columns)
    head30 = _frozen([ldexp(value, -_UNITS) for value in heads])
    tail30 = _frozen([ldexp(value - head, -_UNITS) for value, head in zip(powers, heads, strict=True)])
    return Table(*_constants(), hi, lo, lowest, head30, tail30)


def _constants() -> tuple[float, float, float, float, float, float]:
    """step, c1, c2, c3, c3_short, c4."""
    unit = _UNITS + _PLACES
    step = exact.log_of_two(_UNITS)
    c1 = _short(step, step.bit_length() - 29)
    c2 = _short(step - c1, abs(step - c1).bit_length() - 28)
    c3 = step - c1 - c2
    c3_short = _short(c3, unit - 93)
    return (
        ldexp(step, -unit), ldexp(c1, -unit), ldexp(c2, -unit), ldexp(c3, -unit), ldexp(c3_short, -unit), ldexp(c3 - c3_short, -unit)
    )  # fmt: skip


def _short(value: int, places: int) -> int:
    """The multiple of 2^places nearest to value."""
    return (value + (1 << (places - 1))) >> places << places


def _floats(value: int, count: int, unit: int) -> list[float]:
    """value 2^-unit as a sum of so many binary64 numbers, each the nearest to what is left."""
    parts = []
    for _ in range(count):
        part = float(value)
        value -= int(part)
        parts.append(ldexp(part, -unit))
    return parts


def _frozen(values: object) -> Array:
    column = np.array(values, np.float64)
    column.setflags(write=False)
    return column


# ---- arithmetic ------------------------------------------------------------------------------------------------------


def two_sum(a: Array, b: Array) -> Pair:
    """a + b exactly, barring overflow (2Sum; Knuth, TAOCP 2, 4.2.2)."""
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def fast_two_sum(a: Array, b: Array) -> Pair:
    """a + b exactly where |a| >= |b|, a = 0, or a is a multiple of ulp(b) (Fast2Sum; Dekker 1971, doi 10.1007/BF01397083)."""
    total = a + b
    return total, b - (total - a)


def two_prod(a: Array, b: Array) -> Pair:
    """a b exactly, for |a|, |b| < 2^995 and a product that is 0 or between 2^-969 and 2^1021 (Dekker 1971, Veltkamp's splitting).

    Below 2^-969 the error of the product is off by at most 2^-1073.
    """
    product = a * b
    a1, a2 = _split(a)
    b1, b2 = _split(b)
    return product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2


def _split(a: Array) -> Pair:
    """a = head + rest, 26 bits each."""
    scaled = _SPLITTER * a
    head = scaled - (scaled - a)
    return head, a - head


def add(ah: Array, al: Array, bh: Array, bl: Array) -> Pair:
    """a + b to 3 u^2 (1 + 2^-50) of itself, whatever the signs (Joldes, Muller, Popescu 2017, doi 10.1145/3121432, algorithm 6)."""
    hi, lo = two_sum(ah, bh)
    low, rest = two_sum(al, bl)
    hi, lo = fast_two_sum(hi, lo + low)
    return fast_two_sum(hi, rest + lo)


def mul(ah: Array, al: Array, bh: Array, bl: Array) -> Pair:
    """a b to 7 u^2, in the range of two_prod (the same, algorithm 10)."""
    hi, lo = two_prod(ah, bh)
    return fast_two_sum(hi, lo + (ah * bl + al * bh))


def div(ah: Array, al: Array, bh: Array, bl: Array) -> Pair:
    """a / b to 15.1 u^2, b != 0, in the range of two_prod (the same, algorithm 17)."""
    quotient = ah / bh
    hi, lo = two_prod(bh, quotient)
    hi, rest = fast_two_sum(hi, bl * quotient)
    hi, lo = fast_two_sum(hi, rest + lo)
    return fast_two_sum(quotient, ((ah - hi) + (al - lo)) / bh)


# ---- exp -------------------------------------------------------------------------------------------------------------


def exp(xh: Array, xl: Array) -> tuple[Array, Array, Array]:
    """exp(xh + xl) = (hi + lo) 2^k to EXP_BOUND, hi in (0.9999, 2.0001), for |xh| <= 1400, |xl| <= ulp(xh); k is int64."""
    t, j, k = _steps(xh)
    a, b = _reduced(xh, t)
    w, v = _powers(a, b, xl, t * table().c4)
    return *_times_row(table().hi.take(j), table().lo.take(j), a, w, v), k


def _steps(x: Array) -> tuple[Array, Array, Array]:
    """t, and t = 8192 k + j."""
    shifted = x * (1 / table().step) + _MAGIC
    bits = shifted.view(np.int64)
    return shifted - _MAGIC, bits & (ROWS - 1), (bits - _MAGIC_BITS) >> _PLACES


def _reduced(x: Array, t: Array) -> Pair:
    """x - t (C1 + C2 + C3s) = a + b exactly, a a multiple of 2^-40."""
    c = table()
    d, step = x - t * c.c1, t * c.c2
    a = ((d - step) + _GRID_40) - _GRID_40
    return a, ((d - a) - step) - t * c.c3_short


def _powers(a: Array, b: Array, xl: Array, last: Array) -> Pair:
    """w, v with exp(a + b + xl - last) = 1 + a + w + v."""
    beta = b + (xl - last)
    r = a + beta
    square = r * r
    a1 = (a + _GRID_27) - _GRID_27
    square_1 = a1 * a1
    cube_1 = square_1 * a1
    small = cube_1 * _SIXTH_REST + ((a - a1) + beta) * ((square + r * a1) + square_1) * (1 / 6)
    small += square * square * (1 / 24 + r * (1 / 120 + r * (1 / 720)))
    small = (small - last) + beta * (a + 0.5 * beta)
    half = 0.5 * (a * a)
    b = b + cube_1 * _SIXTH_HEAD
    w = (((half + b) + xl) + _GRID_56) - _GRID_56
    return w, (((half - w) + b) + xl) + small


def _times_row(th: Array, tl: Array, a: Array, w: Array, v: Array) -> Pair:
    """(th + tl) (1 + a + w + v)."""
    head = (th.view(np.int64) & _HEAD).view(np.float64)
    mid = th - head
    first, second, third = head * a, head * w, mid * a
    hi = th + (first + (second + third))
    exactly = (((th - hi) + first) + second) + third
    return fast_two_sum(hi, (exactly + tl) + (th * v + (mid * w + tl * ((a + w) + v))))


# ---- log -------------------------------------------------------------------------------------------------------------


def log1p(sh: Array, sl: Array) -> Pair:
    """log(1 + sh + sl) to LOG_BOUND of itself, for a pair with 0 <= s < 2^61, subnormal too."""
    t, row, m = _row_below(sh, sl)
    n = _difference(*m, *row)
    doubled = 2.0 * row[0], 2.0 * row[1]
    hi, lo = add(*_multiple(t), *_twice_artanh(*div(*n, *add(*doubled, *n))))
    tiny = sh < _TINY
    return np.where(tiny, sh, hi), np.where(tiny, sl, lo)


def _row_below(sh: Array, sl: Array) -> tuple[Array, tuple[Array, Array, Array], tuple[Array, Array, Array]]:
    """t, T and m with 1 + s = 2^(t / 8192) m / T, T the last row not above m."""
    c = table()
    p, q = two_sum(np.ones_like(sh), sh)
    e = (p.view(np.int64) >> 52) - 1023
    down = ((1023 - e) << 52).view(np.float64)
    p = p * down
    j = c.hi.searchsorted(p, "right") - 1
    return (e * ROWS + j).astype(np.float64), (c.hi.take(j), c.lo.take(j), c.lowest.take(j)), (p, q * down, sl * down)


def _difference(p: Array, q: Array, s: Array, th: Array, tl: Array, lowest: Array) -> Pair:
    """p + q + s - (th + tl + lowest), normalised."""
    low, rest = two_sum(q, s)
    low, spill = two_sum(low, -tl)
    hi, lo = two_sum(p - th, low)
    return fast_two_sum(hi, lo + ((rest + spill) - lowest))


def _twice_artanh(zh: Array, zl: Array) -> Pair:
    """2 artanh(z) for |z| < 2^-14.5."""
    square = mul(zh, zl, zh, zl)
    third = fast_two_sum(np.full_like(zh, _THIRD[0]), _THIRD[1] + square[0] * (1 / 5 + square[0] * (1 / 7)))
    hi, lo = add(zh, zl, *mul(*mul(*square, *third), zh, zl))
    return 2.0 * hi, 2.0 * lo


def _multiple(t: Array) -> Pair:
    """t log 2 / 8192."""
    c = table()
    hi, lo = fast_two_sum(t * c.c1, t * c.c2)
    return fast_two_sum(hi, lo + t * c.c3)
