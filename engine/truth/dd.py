"""Double-double arithmetic on arrays, with its exp and log.

A double-double is a pair (hi, lo) of binary64 arrays of one shape, its value hi + lo, normalised: hi = RN(hi + lo). Only + - * /
rounded to nearest, integer operations and look-ups are used, never a mathematical library or a fused multiply-add, so that the
bits are the same on every processor.

u = 2^-53. A sum or product that must be a multiple of 2^-g below 2^(53 - g) in magnitude is a binary64 number, so exact.
grid_g(x) = (x + M) - M, M = 1.5 2^(52 - g), is the multiple of 2^-g nearest to x.

exp, |xh| <= 1400, |xl| <= ulp(xh) <= 2^-42
-------------------------------------------
With C = log 2 / 8192 = C1 + C2 + C3s + C4 (29 bits, multiple of 2^-42; 28 bits, multiple of 2^-75, below 2^-47.4; multiple of
2^-93 below 2^-79.2; binary64, below 2^-94.7, off by 2^-148):

    t    the integer nearest to RN(xh / C), |t| < 2^24; xh / C is off by at most 2^-27, so |x - t C| <= R,
         R = C/2 + 2^-27 C + 2^-42 < 2^-14.528
    x = t C + r; t C1, t C2, t C3s are exact (53, 52 and 38 bits), |t C2| < 2^-23.4, |t C3s| < 2^-55.2, |t C4| < 2^-70.7
    d    = xh - t C1, exact. t != 0: then |xh| > 2^-15, both are multiples of ulp(xh), 2^-67 or more, and |d| < 2^53 ulp(xh),
         because |d| < 2^-14.5, and |xh| > 2^-14 as soon as |t| >= 2. t = 0: d = xh
    a    = grid_40(RN(d - t C2)), |a| < 2^-14.528: 26 bits
    b    = ((d - a) - t C2) - t C3s, exact: multiples of 2^-67, 2^-75 and 2^-93 below 2^-23, 2^-40.9 and 2^-40.9
         (t = 0: xh - a, exact too); |b| < 2^-40.99
    so r = a + beta, beta = b + xl - t C4, |beta| < 2^-40.4, but for 2^24 2^-148

    exp(r) = 1 + a + a^2/2 + beta + beta (a + beta/2) + r^3/6 + r^4/24 + r^5/120 + r^6/720, cut off below 2^-113.9
    a^2/2  exact: 51 bits, multiple of 2^-81, below 2^-30.05
    r^3/6  a1 = grid_27(a), 13 bits; a2 = r - a1, |a2| < 2^-27.9; 1/6 = K + k, K = 683/4096, |k| < 2^-13.5:
           a1^3 K  exact (38 + 10 bits), multiple of 2^-93, below 2^-46.1
           a1^3 k + a2 (r^2 + r a1 + a1^2)/6, below 2^-57.1 and 2^-57.9
    b'   = b + a1^3 K, exact (t = 0 and a1 != 0: then b is a multiple of 2^-81)
    so exp(r) = 1 + a + a^2/2 + b' + xl + small, |small| < 2^-54.4
    w    = grid_56(a^2/2 + b' + xl), |w| < 2^-30: 26 bits
    v    = (((a^2/2 - w) + b') + xl) + small. The first two sums are exact (multiples of 2^-81 and 2^-93 below 2^-40; where t = 0
         xh may have finer bits, but then |xl| <= 2^-67 and the second is below 2^-56.9); the last two are below 2^-56.9 and 2^-54.1
    so exp(r) = 1 + a + w + v

Errors up to here, in 2^-108, so that the rounding of a number below 2^-e counts 2^(55 - e): beta (a + beta/2), below 2^-54.9, three
roundings and one of a number below 2^-42: 3.6; a1^3 k, two: 0.5; a2 (...)/6, nine: 1.3; r^4/24 ..., below 2^-62.6: 0.1; the sums
in `small`, three below 2^-56.4 and one below 2^-54.4: 1.2 + 1.6; v: 0.3 + 0.3 + 1.9; cut off: 0.1. Together 10.9.

    exp(x) = 2^k T exp(r), t = 8192 k + j, T = 2^(j/8192) = Th + Tl, Th a multiple of 2^-52 in [1, 2), |Tl| <= u, off by 2^-107
    Th   = h + m: a multiple of 2^-26, 27 bits; a multiple of 2^-52 below 2^-26, 26 bits
    h a, m a, h w are exact (53, 52 and 53 bits): multiples of 2^-66, 2^-92 and 2^-82
    H    = RN(Th + RN(h a + RN(h w + m a)))
    G    = (((Th - H) + h a) + h w) + m a, exact: multiples of 2^-53, 2^-66, 2^-82, 2^-92 below 2^-13, 2^-28, 2^-40, 2^-51
    rest = Th v + (m w + Tl ((a + w) + v)), |rest| < T 2^-53.7
    hi + lo = H + ((G + Tl) + rest), by Fast2Sum

Errors relative to T, in 2^-108: Tl 2; Th v: 1.9; m w, below 2^-56: 0.5; the sums in `rest`, below 2^-55.9 and T 2^-53.7: 0.6 + 2.5;
|G| <= u H (1 + 2^-10), so G + Tl is below T 2^-52 (1 + 2^-9): 8.1; with `rest` below T 2^-51.6: 10.6. Together 26.2; with those
before 37.1, over exp(r) > 1 - 2^-14.5: below 37.2 2^-108 < 2^-102.7.

log1p, 0 <= s < 2^61
--------------------
1 + s = 2^e m, m in [1, 2); j the last row with Th <= RN(m); t = 8192 e + j; log(1 + s) = t C + 2 artanh(z), z = (m - T)/(m + T).
Nothing is guessed or iterated, so no first approximation has to be trusted.

    m    = p + q + s': p + q = 2^-e (1 + sh) by 2Sum, s' = 2^-e sl; |q| and |s'| <= 2^-53
    n    = m - T, T = Th + Tl + Tll to 2^-159: p - Th is exact (Sterbenz), q + s' - Tl by two 2Sums with rests below 2^-104, both
         together by 2Sum; what is rounded are sums of rests: 2 u^2 of n, and 2^-154 beside a logarithm of C or more.
         Where T = 1 and e = 0, n is s: |q| <= sh, no cancellation, 3 u^2
    d    = n + 2 (Th + Tl): 3.5 u^2
    z    = n/d: 15.1 u^2; |z| < C/2 (1 + 2^-30) < 2^-14.52
    2 artanh(z) = 2 (z + z z^2 (1/3 + z^2/5 + z^4/7)), cut off below 2^-119 of itself. The second term is below 2^-30.6 of the
         first, off by 2^-79 of itself (in the bracket all but 1/3 is a binary64 number below 2^-31): with the sum 3.1 u^2
    t C  = Fast2Sum(t C1, t C2) + t C3, |t| < 2^19: exact products; the sum of the low parts and t C3: 1.1 u^2
    log1p = the sum of the two: 3 u^2. Both are >= 0, but that m may lie 2^-51 below T, a part in 2^37 of t C then.

Together 3 + 3.5 + 15.1 + 3.1 + 3 = 27.7, below 28 u^2 < 2^-101.1, relative to log1p(s), for s >= 2^-110, where nothing underflows.
Below that s itself is within 2^-111: so the bound holds for every s, subnormal or 0 too.
"""

from __future__ import annotations

from collections.abc import Callable
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
LOG_BOUND = 2.0**-101.1
"""Relative error of log1p."""
ROWS = 8192
_PLACES = 13
"""log2 of ROWS."""
_UNITS = 220
"""The table is made of integers in units of 2^-_UNITS."""
_CHUNK = 4096
"""Elements worked on at once: intermediate arrays that stay in the cache, and below what the allocator hands back each time."""
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

    def real(value: int) -> float:
        return ldexp(value, -unit)

    return real(step), real(c1), real(c2), real(c3), real(c3_short), real(c3 - c3_short)


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
    hi, lo, k = np.empty(xh.shape), np.empty(xh.shape), np.empty(xh.shape, np.int64)
    _in_chunks(_exp, (xh, xl), (hi, lo, k))
    return hi, lo, k


def _in_chunks(kernel: Callable[[Array, Array], tuple[Array, ...]], pair: Pair, results: tuple[Array, ...]) -> None:
    """Fill contiguous arrays with what a kernel makes of a pair, both taken as flat."""
    high, low = (part.reshape(-1) for part in pair)
    flat = [result.reshape(-1) for result in results]
    for start in range(0, high.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        for result, found in zip(flat, kernel(high[part], low[part]), strict=True):
            result[part] = found


def _exp(xh: Array, xl: Array) -> tuple[Array, Array, Array]:
    c = table()
    t, j, k = _steps(xh)
    a, b = _reduced(xh, t)
    w, v = _powers(a, b, xl, t * c.c4)
    return *_times_row(c.hi.take(j), c.lo.take(j), a, w, v), k


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
    hi, lo = np.empty(sh.shape), np.empty(sh.shape)
    _in_chunks(_log1p, (sh, sl), (hi, lo))
    return hi, lo


def _log1p(sh: Array, sl: Array) -> Pair:
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
    """p + q + s - (th + tl + lowest), normalised; th next to p."""
    low, rest = two_sum(q, s)
    low, spill = two_sum(low, -tl)
    hi, lo = two_sum(p - th, low)
    return two_sum(hi, lo + ((rest + spill) - lowest))


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
