"""Certified truth in NumPy at three accuracies: the tiers T0, T1 and T2, each with a proven bound.

For rows of a finite maximum m, without NaN, that are within(); n <= 2^24. Only + - * / rounded to nearest, integer operations and
look-ups are used, as in engine.truth.dd, and np.add.reduce, whose order the bounds leave open. u = 2^-53, C = log 2 / 8192. A truth
T is given as 2^up T = hi + lo, off by at most bound(tier, op) |hi|, or by Part.radius. That holds where |hi| >= 2^-960; a smaller
hi only says that 2^up T is smaller too.

Exponentials, e = exp(x) 2^(900 - K) or exp(x - m) 2^900
--------------------------------------------------------
Directly where |m| <= LIMIT and no x, clamped to m - SPAN, is below -LIMIT: K = floor(t/8192) of m itself, and t rises with x, so
2^900 (1 - 2^-14) < max e < 2^901 (1 + 2^-14). Otherwise of d + low, the exact TwoDiff of x and m: |low| <= ulp(d)/2 <= 2^-43. A d
below -SPAN, or one that overflows, is taken as -SPAN, low as 0: e is then 2^-1875 of the largest instead of less, 2^24 times which
is nothing in any sum, and its quotient underflows to 0. Of a masked logit hi = 0, and lo < 2^-1027. SPAN/log 2 < 1877, so the
scaling is exact but for a lo below 2^-1022, by 2^-1074: nothing in a sum, nor in an e whose quotient is above 2^-960.

    t    the integer nearest to RN(x/C), |t| < 2^24; x/C is off by at most 2^-27, so r = x + low - t C is at most R = C/2 (1 +
         2^-26) + 2^-43 < 2^-14.528. t C1, t C2 and a = x - t C1 are exact (see dd); |t C2| < 2^-23.4, |t C3| < 2^-55.2. exp(x) =
         2^k T exp(r), t = 8192 k + j, T = 2^(j/8192)
    T0   r = a - t (C2 + C3) + low: two roundings below 2^-14 and one of a product, 2^-66.9. exp(r) = 1 + r + r^2 (1/2 + r/6), cut
         off below 2^-62.6. The bracket times r^2: 2^-81; plus r: 2^-68; times T: 2^-67.5; T itself: 2^-53; the last sum: half an
         ulp, u at most. Together 2^-52 (1 + 2^-10.2) < 2^-51.998
    T1   s = RN(a - t C2), its error exactly (Fast2Sum; where |a| < |t C2|, both are multiples of 2^-75 below 2^-23.3 and s is
         exact). b = that less t C3, plus low: 2^-95.9. So r = s + b; z = RN(s + b), off by 2^-68. exp(r) - 1 = s + w, w = b + z^2
         (1/2 + z (1/6 + C^2/640 + z/24)): C^2/640 stands for r^5/120 but for (C/2)^5/480. In units of 2^-84: z for r, 2^-68 R, 2.8;
         cut off 5.5; 1/2 + .. 1.9; times z 1.4, and again 1; plus b 1. s = s' + rest, s' a multiple of 2^-37 of 23 bits; the rest
         goes to w, 1; |w| < 2^-30. head30 s' is exact (53 bits), head30 + s' head30 is Fast2Sum. Relative to T: w head30 2; tail30
         itself 1; tail30 + z tail30 1 (no |tail30| comes within 2^-44.5 of 2^-30); with w head30 3.9; the last sum is Fast2Sum.
         14.6 + 7.9, over exp(r): 22.5 units = 2^-79.5
    T2   dd.exp, 2^-102.7. In every tier exp(0) 2^900 comes out exact: a subtracted maximum adds no error to the sum

Tier.exp: 2^-51.98, 2^-79.4, 2^-102.6.

The sum S of a row
------------------
At most CHUNK = 2^14 numbers at once. Adding and subtracting 1.5 2^917 leaves the multiple of 2^865 nearest to e, 2^36 of them or
so, and 2^50 in the sum: exact, in any order. What is left, below 2^864, is cut at 2^828 in the same way (T2: what is then left,
below 2^827, and lo, below 2^848.1, are added by 2Sum, and cut at 2^813). The remainders v are summed plainly, which is off by u
n^2/2 max |v|, or u n sum |v|, in any order:

    T0   |v| <= 2^827: 2^801 a chunk, 2^-89 S for 2^10 chunks
    T1   |v| <= 2^827 + lo, sum |lo| <= u S: 2^-89 S + 2^-92 S, and u^2 S to add lo
    T2   |v| <= 2^812 and a little: 2^786.1 a chunk, 2^-104 S = 4 u^2 S for 2^10 chunks

The pieces of one chunk are added by 2Sum and their errors plainly, u^2 S, u^2 S and 3 u^2 S; those of several chunks exactly, then
rounded to a pair, u^2/2 S. Together total = 2^-88.9, 2^-88.8 and 4.5 u^2. Tier.total states 2^-87, 2^-88, 2^-100.

Quotients e/S
-------------
The divisor is D = 2^-up S; one Newton step, its residual exact by two_prod, gives 1/D to u (1 + 2^-50).

    T0   hi times that: 2 u
    T1   p = hi/D to 2^-51.4, head = p to 27 bits, |p - head| <= 2^-27 p. D = first + second + third: 26 bits, 26 bits, the rest.
         head first and head second are exact, and so is taking them from hi: with the binades of p and D as unit, multiples of
         2^-53 and 2^-78 below 2^-23 and 2^-25.9. third, its product and lo: 2^-102. The whole residual, below 2^-27 (1 + 2^-22) p
         D, is rounded, multiplied by 1/D, and rounded: 3 u 2^-27 = 2^-78.41. head + that is Fast2Sum
    T2   dd.div, 15.1 u^2

Tier.quotient: 2^-52, 2^-78.3, 2^-101. Tier.bound, of a softmax: exp + (exp + total) + quotient, and their products.

log S and 1 - p
---------------
L = log S of exponentials with the maximum subtracted, S = 1 + s: s is exact from S where s <= 1, and 2 u^2 S off above, where L >
0.69. s is known to exp s + total S, and s <= (1 + s) log(1 + s), so L is known to exp + total / log(1 + near) + dd.LOG_BOUND where
s >= near: T0 2^-51.98 + 2^-68.9; T1 22.5 + 0.6 units of 2^-84; T2 9.9 + 74.3 + 27.7 = 112 u^2. Below near the other exponentials
are summed anew, against their own maximum, times dd.exp of the gap (clamped at -SPAN): s is known to exp + total + 17 u^2, L to
that and dd.LOG_BOUND; L = s below 2^-900. Tier.log: 2^-51.9, 2^-79.3, and 2^-98 = 256 u^2, of which a sum of weights takes 79.

1 - p = (S - e)/S where that is 1/16 or more: the error of e itself cancels, so 2 exp + 17 total + 18.1 u^2, below Tier.bound (T2:
114.3 of 117 u^2). Else s/(1 + s), s as above but of the others than this element, and 0 where there are none.

A p within 2^-30 of 1 is given as 1 and the share of the others besides (Part.fine): s/(1 + s) as above, exp + total + 17 u^2 and
the division, below Tier.bound of itself; and a 1 - p so near to 1 as 1 and p. Where they underflow, 2^-1020 stands for them.

The ops
-------
Weights and products are added as trees of dd.add: 3 u^2 for each of 24 levels, 72 u^2 of the sum of the magnitudes. 2^-98 = 256 u^2
covers that with a division and a product.

log_softmax         (x - m) - L by 2Sum; neither is positive, so 3 u^2 beside the error of L. Where x - m < -1024, Part.fine leaves
                    the two apart: x - m is exact
logsumexp           m + L by 2Sum: Tier.log L + 2^-100 |hi|
cross_entropy       (m - x_t) + L, neither negative. Soft: sum y (m - x) + L sum y, no term negative: T0 rounds twice, 2 u <
                    Tier.log; else 7 + 72 u^2. Products below 2^-969 lose 2^-1073: nothing, for m - x < 1 makes L > 0.3, and
                    otherwise y (m - x) >= 2^-900
cross_entropy_grad  p or p - 1 by index. Soft: e/(S/Y) - y by 2Sum, Y = sum y: p (bound + 2^-98) + 2^-100 |hi|, the latter also for
                    a p that underflows, y being 0 or 2^-900 or more
softmax_jacobian    -p_i p_j and p_i (1 - p_i), both factors times 2^(up/2): 2 bound and a product, 7 u^2 or (T0) u, both below 0.2
                    bound. A factor may lose 2^-1074 beside one of 2^(up/2): TINY 2^(up/2)
softmax_vjp         p (g - G), G = sum g e / S, known to doubt = (bound + 2^-98; T0: 2^-53) sum |g| p; g - G by 2Sum: p (|g - G|
                    (bound + 2^-98) + doubt), and for factors that underflow, both times 2^(up/2), 2^-1070 of either and TINY. Not
                    0, and of the sign of g - G, where that is farther from 0 than it may be off by, for p > 0

Ranges, so that nothing exceeds 2^1023, nor a factor of an exact product 2^995: logits below HUGE where the op is LOGARITHMIC (2
HUGE 2^(20 + 24 + UP)); weights 0 or in [2^-900, 2^20], the largest above 2^-60 (S/Y < 2^(925 + 60)); g 0 or in [2^-300, 2^90]
(2^(901 + 24 + 90)). UP = 600 lifts the least that binary64 can show, 2^-1075, to 2^-475.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import fsum
from typing import Any, NamedTuple

import numpy as np

from engine.model import Array
from engine.truth import dd

CHUNK = 16384
"""Elements worked on at once: what the buffers of a block hold."""
KEPT = 65536
"""Longest row whose exponentials are kept between the sum and the quotient; a longer one computes them twice."""
LONGEST = 1 << 24
"""Longest row that the bounds are proven for."""
SHORT = 64
"""Rows shorter than this are laid out as columns."""
BESIDE = 2.0**-30
"""Probabilities so near to 1 are known by what is missing to 1 as well."""
LIMIT = 1024.0
SPAN = 1300.0
BIAS = 900
UP = 600
HUGE = 2.0**370
FLOOR = 2.0**-1020
TINY = 2.0**-1040
"""What products of scaled numbers may lose to underflow, and far more."""
STEPS = 8192
_PLACES = 13
_MAGIC = 1.5 * 2.0**52
_MAGIC_BITS = int(np.float64(_MAGIC).view(np.int64))

add, subtract, multiply = np.add, np.subtract, np.multiply

Pair = tuple[Array, Array | None]


class Tier(NamedTuple):
    """Relative errors: of an exponential, of the exact sum of exponentials, added by a quotient; of log(sum exp(x_j - m)).

    grains: how often the sum is cut. near: where what is left beside one element is less than that, it is summed anew.
    """

    name: str
    exp: float
    total: float
    quotient: float
    log: float
    grains: int
    near: float

    @property
    def bound(self) -> float:
        """Relative error of a softmax."""
        return (2 * self.exp + self.total + self.quotient) * (1 + 2.0**-20)

    def __reduce__(self) -> tuple[Callable[[str], Tier], tuple[str]]:
        """In another process it is the tier of that name there, not its double: `is` tells tiers apart."""
        return _named, (self.name,)


def _named(name: str) -> Tier:
    return next(tier for tier in TIERS if tier.name == name)


T0 = Tier("T0", 2.0**-51.98, 2.0**-87, 2.0**-52, 2.0**-51.9, 2, 2.0**-20)
T1 = Tier("T1", 2.0**-79.4, 2.0**-88, 2.0**-78.3, 2.0**-79.3, 2, 2.0**-4)
T2 = Tier("T2", 2.0**-102.6, 2.0**-100, 2.0**-101, 2.0**-98, 3, 2.0**-4)
TIERS = (T0, T1, T2)


class _Constants(NamedTuple):
    inverse: Array
    magic: Array
    mask: Array
    shift: Array
    c1: Array
    c2: Array
    c3: Array
    c23: Array
    sixth: Array
    half: Array
    fourth: Array
    third: Array
    grain: Array
    head: Array
    head30: Array
    tail30: Array


@cache
def _constants() -> _Constants:
    t = dd.table()
    scalars = (1 / t.step, _MAGIC, t.c1, t.c2, t.c3, t.c2 + t.c3, 1 / 6, 0.5, 1 / 24, 1 / 6 + t.step**2 / 640, 1.5 * 2.0**15)
    inverse, magic, c1, c2, c3, c23, sixth, half, fourth, third, grain = (np.array(value) for value in scalars)
    mask, shift = np.array(STEPS - 1), np.array(52 - _PLACES)
    return _Constants(
        inverse, magic, mask, shift, c1, c2, c3, c23, sixth, half, fourth, third, grain, t.hi, t.head30, t.tail30
    )  # fmt: skip


class Buffers:
    """Arrays by name that are written again and again, one block after the other."""

    def __init__(self) -> None:
        self._store: dict[str, Array] = {}
        self._views: dict[tuple[str, tuple[int, ...]], Array] = {}

    def __call__(self, name: str, shape: tuple[int, ...], kind: Any = np.float64) -> Array:
        """An array of that shape, its contents whatever they were."""
        view = self._views.get((name, shape))
        if view is None:
            size = int(np.prod(shape))
            if name not in self._store or self._store[name].size < size:
                self._store[name] = np.empty(max(size, CHUNK), kind)
                self._views = {key: kept for key, kept in self._views.items() if key[0] != name}
            view = self._views[name, shape] = self._store[name][:size].reshape(shape)
        return view


# ---- exponentials ----------------------------------------------------------------------------------------------------


def _reduced(x: Array, scale: Array, b: Buffers) -> tuple[Array, Array]:
    """t, the multiple of log 2 / 8192 nearest to x, and 2^k as bits (with the row's scale); table rows are left in `j`."""
    k, shape = _constants(), x.shape
    t, j, power = b("t", shape), b("j", shape, np.int64), b("power", shape, np.int64)
    multiply(x, k.inverse, t)
    add(t, k.magic, t)
    bits = t.view(np.int64)
    np.bitwise_and(bits, k.mask, j)
    subtract(bits, j, power)
    np.left_shift(power, k.shift, power)
    add(power, scale, power)
    subtract(t, k.magic, t)
    return t, power.view(np.float64)


def exp_t0(x: Array, low: Array | None, scale: Array, out: Array, b: Buffers) -> None:
    """exp(x + low) 2^900 / 2^K in one binary64, `scale` carrying 900 - K; |x| <= 1300."""
    k, shape = _constants(), x.shape
    t, power = _reduced(x, scale, b)
    head, a, w = b("head", shape), b("a", shape), b("w", shape)
    k.head.take(b("j", shape, np.int64), None, head, "clip")
    multiply(t, k.c1, a)
    subtract(x, a, a)
    multiply(t, k.c23, t)
    subtract(a, t, a)
    if low is not None:
        add(a, low, a)
    multiply(a, k.sixth, w)
    add(w, k.half, w)
    multiply(w, a, w)
    multiply(w, a, w)
    add(w, a, w)
    multiply(w, head, w)
    add(w, head, w)
    multiply(w, power, out)


def exp_t1(x: Array, low: Array | None, scale: Array, hi: Array, lo: Array, b: Buffers) -> None:
    """The same as hi + lo."""
    k, shape = _constants(), x.shape
    t, power = _reduced(x, scale, b)
    j, head, tail, a, s, z, w = (b(name, shape, kind) for name, kind in _T1_BUFFERS)
    k.head30.take(j, None, head, "clip")
    k.tail30.take(j, None, tail, "clip")
    # r = s + a: s = RN(x - t C1 - t C2), a its error and the rest
    multiply(t, k.c1, a)
    subtract(x, a, a)
    multiply(t, k.c2, z)
    subtract(a, z, s)
    subtract(a, s, a)
    subtract(a, z, a)
    multiply(t, k.c3, t)
    subtract(a, t, a)
    if low is not None:
        add(a, low, a)
    # w = a + z^2 (1/2 + z (third + z / 24)), so that exp(r) - 1 = s + w
    add(s, a, z)
    multiply(z, k.fourth, w)
    add(w, k.third, w)
    multiply(w, z, w)
    add(w, k.half, w)
    multiply(w, z, w)
    multiply(w, z, w)
    add(w, a, w)
    # s = a + (rest, to w), a a multiple of 2^-37: head30 * a is exact
    add(s, k.grain, a)
    subtract(a, k.grain, a)
    subtract(s, a, s)
    add(w, s, w)
    add(a, w, z)
    multiply(a, head, a)
    add(head, a, t)
    subtract(t, head, s)
    subtract(a, s, a)  # the error of t
    multiply(w, head, w)
    multiply(z, tail, z)
    add(z, a, z)
    add(z, tail, z)
    add(z, w, z)
    add(t, z, a)
    subtract(a, t, t)
    subtract(z, t, z)
    multiply(a, power, hi)
    multiply(z, power, lo)


_T1_BUFFERS: Sequence[tuple[str, Any]] = (
    ("j", np.int64), ("head", np.float64), ("tail", np.float64), ("a", np.float64), ("s", np.float64), ("z", np.float64),
    ("w", np.float64),
)  # fmt: skip


def exp_t2(x: Array, low: Array | None, exponent: Array, hi: Array, lo: Array) -> None:
    """The same in double-double; exponent: 900 - K."""
    head, tail, k = dd.exp(x, np.zeros_like(x) if low is None else low)
    power = ((k + exponent + 1023) << 52).view(np.float64)
    multiply(head, power, hi)
    multiply(tail, power, lo)


# ---- sums ------------------------------------------------------------------------------------------------------------

_GRAINS = tuple(np.array(1.5 * 2.0**e) for e in (BIAS + 17, BIAS - 20, BIAS - 35))


def sum_pieces(hi: Array, lo: Array | None, tier: Tier, axis: int, b: Buffers) -> list[Array]:
    """The sum of one chunk of rows as a few numbers a row, all but the last exact."""
    q, rest = b("q", hi.shape), b("rest", hi.shape)
    found: list[Array] = []
    for i, grain in enumerate(_GRAINS[: tier.grains]):
        source = hi if i == 0 else rest
        if i == 2:
            source = _with_low(rest, lo, b)
        add(source, grain, q)
        subtract(q, grain, q)
        found.append(add.reduce(q, axis=axis, keepdims=True))
        subtract(source, q, rest)
    if lo is not None:
        add(rest, b("spill", hi.shape) if tier is T2 else lo, rest)
    return [*found, add.reduce(rest, axis=axis, keepdims=True)]


def _with_low(rest: Array, lo: Array | None, b: Buffers) -> Array:
    assert lo is not None
    total, spill = dd.two_sum(rest, lo)
    np.copyto(b("spill", rest.shape), spill)
    np.copyto(rest, total)
    return rest


def _gather(pieces: Sequence[Array]) -> tuple[Array, Array]:
    """The sum of pieces as a pair; those of a single long row are added exactly."""
    if len(pieces) > 4:
        parts = [piece.item() for piece in pieces]
        total = fsum(parts)
        return np.full((1, 1), total), np.full((1, 1), fsum([*parts, -total]))
    hi, lo = pieces[0], np.zeros_like(pieces[0])
    for piece in pieces[1:]:
        hi, error = dd.two_sum(hi, piece)
        lo = lo + error
    return dd.fast_two_sum(hi, lo)


# ---- rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Columns start..stop of the truth of a block's rows, times 2^up: T = hi + lo to Block.bound, or to `radius` where given.

    masked: where the logit is -inf, so that T is exact. p: the softmax, for log_softmax. fine: where |T| is better known as
    the difference from an exact number. live: where hi is not 0 and has the sign of T, which is not 0, whatever the radius says.
    """

    start: int
    stop: int
    hi: Array
    lo: Array | None
    radius: Array | None = None
    masked: Array | None = None
    p: Array | None = None
    fine: Fine | None = None
    live: Array | None = None


class Fine(NamedTuple):
    """At flat positions `at` 2^up |T| = (base + low) + (rest + spill): base + low is exact, the rest known to Block.bound of it."""

    at: Array
    base: Array
    low: Array
    rest: Array
    spill: Array


def _joined(a: Fine | None, b: Fine | None) -> Fine | None:
    """Both."""
    if a is None or b is None:
        return b if a is None else a
    return Fine(*(np.concatenate(pair) for pair in zip(a, b, strict=True)))


class _Divisor(NamedTuple):
    """A positive pair, one a row; `first` and `second` its leading 26-bit pieces, `third` the rest; its reciprocal in binary64."""

    hi: Array
    lo: Array
    first: Array
    second: Array
    third: Array
    inverse: Array

    @staticmethod
    def of(hi: Array, lo: Array) -> _Divisor:
        """hi + lo normalised."""
        first = (hi.view(np.int64) & np.int64(-1 << 27)).view(np.float64)
        rest = hi - first
        second = (rest.view(np.int64) & np.int64(-1 << 27)).view(np.float64)
        guess = 1.0 / hi
        product, error = dd.two_prod(guess, hi)
        inverse = guess + guess * ((1.0 - product) - (error + guess * lo))
        return _Divisor(hi, lo, first, second, (rest - second) + lo, inverse)


def _refined(p: Array, hi: Array, lo: Array, divisor: _Divisor, b: Buffers, name: str) -> tuple[Array, Array]:
    """(hi + lo) / divisor from its first approximation p: 27 bits of p, and the exact residual over the divisor."""
    low, head, product = b(f"{name} lo", p.shape), b("head", p.shape), b("z", p.shape)
    multiply(p, 67108865.0, head)  # Veltkamp's splitting
    subtract(head, p, product)
    subtract(head, product, head)
    multiply(head, divisor.first, product)
    subtract(hi, product, low)
    multiply(head, divisor.second, product)
    subtract(low, product, low)
    multiply(head, divisor.third, product)
    subtract(lo, product, product)
    add(low, product, low)
    multiply(low, divisor.inverse, low)
    add(head, low, p)
    subtract(p, head, head)
    subtract(low, head, low)
    return p, low


UNIT_SCALE = np.array((((1023 + BIAS) << 52) - (_MAGIC_BITS << (52 - _PLACES))) & (2**64 - 1), np.uint64).view(np.int64)
"""The scale of exp_t0 that gives exp(x) 2^900."""


def within(op: str, logits: Array, extra: Array | None) -> Array:
    """Rows (a mask) that the tiers are proven for: a finite maximum, no NaN, and no number out of the ranges of the docstring."""
    x = logits.astype(np.float64)
    top = x.max(axis=1)
    good = np.isfinite(top)
    if op in LOGARITHMIC:
        good &= np.where(np.isinf(x), 0.0, np.abs(x)).max(axis=1) < HUGE
    if logits.shape[1] > LONGEST or (op == "softmax_jacobian" and logits.shape[1] > CHUNK):
        good[:] = False
    if extra is not None and extra.ndim == 2:
        size = np.abs(extra.astype(np.float64))
        low, high = (2.0**-300, 2.0**90) if op == "softmax_vjp" else (2.0**-900, 2.0**20)
        least = -1.0 if op == "softmax_vjp" else 2.0**-60
        good &= ~(((size > high) | ((size < low) & (size > 0))).any(axis=1) | ~(size.max(axis=1) > least))
    return np.asarray(good)


def first_tier(precision: int) -> Tier:
    """The tier by which an output of so many significand bits is looked at first."""
    return T1 if precision == 53 else T0


def bound(tier: Tier, op: str) -> float:
    """Relative error of the op's elements at a tier, where none is stated for each."""
    return tier.log if op in LOGARITHMIC else tier.bound


LOGARITHMIC = ("log_softmax", "logsumexp", "cross_entropy")


class Block:
    """Rows of finite maximum, without NaN, of one op: their truth at one tier, column chunk by column chunk.

    logits: shape (rows, n), any float dtype; extra: targets or grad_output of these rows, or None; up: the truth is scaled
    by 2^up. More than CHUNK elements only in a single row.
    """

    def __init__(self, op: str, tier: Tier, up: int, logits: Array, extra: Array | None, b: Buffers) -> None:
        self.op, self.tier, self.up, self.extra, self.b = op, tier, up, extra, b
        self.logits = logits
        self.rows, self.n = logits.shape
        self.axis = 0 if self.n < SHORT and self.rows > 1 else 1
        self.logarithmic = op in LOGARITHMIC
        self.bound = bound(tier, op)
        size = CHUNK if self.rows == 1 else self.n
        self.chunks = [(start, min(start + size, self.n)) for start in range(0, self.n, size)]
        self._limits()
        self.log_size: Array | None = None

    def prepare(self) -> None:
        """Sum the exponentials. The maxima must be finite."""
        self.direct = not self.logarithmic and bool((np.abs(self.maximum) <= LIMIT).all()) and self._reach() >= -LIMIT
        self.sum = self._sum()

    # layout

    def shape(self, count: int) -> tuple[int, int]:
        """Shape of an array of `count` columns of these rows."""
        return (count, self.rows) if self.axis == 0 else (self.rows, count)

    def laid(self, values: Array) -> Array:
        """Values of shape (rows, count) in the block's layout."""
        return values.T if self.axis == 0 else values

    def per_row(self, values: Array) -> Array:
        """Values of shape (rows,), to be broadcast."""
        return values.reshape(self.shape(1))

    def load(self, values: Array, start: int, stop: int, name: str) -> Array:
        """Columns of a (rows, n) array as float64, in the block's layout."""
        out = self.b(name, self.shape(stop - start))
        np.copyto(out, self.laid(values[:, start:stop]))
        return out

    def _limits(self) -> None:
        most, least = [], []
        for start, stop in self.chunks:
            x = self.load(self.logits, start, stop, "x")
            most.append(np.maximum.reduce(x, axis=self.axis, keepdims=True))
            least.append(np.minimum.reduce(x, axis=self.axis, keepdims=True))
        self.maximum: Array = most[0] if len(most) == 1 else np.maximum.reduce(most)
        self.minimum: Array = least[0] if len(least) == 1 else np.minimum.reduce(least)
        self.masks = bool((self.minimum == -np.inf).any())
        with np.errstate(over="ignore", invalid="ignore"):
            spread = self.maximum - self.minimum
            self.wide = not bool((spread <= SPAN).all())

    def _reach(self) -> float:
        return float(np.maximum(self.minimum, self.maximum - SPAN).min())

    # exponentials

    def shifted(self, start: int, stop: int) -> tuple[Array, Array]:
        """x - m as an unevaluated sum; the low part is 0 where the difference is infinite."""
        x = self.load(self.logits, start, stop, "x")
        d, low = self.b("d", x.shape), self.b("low", x.shape)
        back = self.b("back", x.shape)
        m = self.maximum
        with np.errstate(over="ignore", invalid="ignore"):
            subtract(x, m, d)  # TwoDiff (Knuth)
            subtract(d, x, back)
            subtract(d, back, low)
            subtract(x, low, low)
            add(back, m, back)
            subtract(low, back, low)
        if self.wide:
            low[~np.isfinite(low)] = 0.0
        return d, low

    def _argument(self, start: int, stop: int) -> Pair:
        """What exp is taken of, clamped; the maximum comes off in the exponent where it can."""
        if self.direct:
            x = self.load(self.logits, start, stop, "x")
            return (np.maximum(x, self.maximum - SPAN, out=x) if self.wide else x), None
        d, low = self.shifted(start, stop)
        if self.wide:
            clamped, kept = self.b("clamped", d.shape), self.b("kept", d.shape)
            np.copyto(kept, low)
            kept[d < -SPAN] = 0.0
            d, low = np.maximum(d, -SPAN, out=clamped), kept
        return d, (low if low.any() else None)

    def _store(self, name: str, start: int, stop: int) -> Array:
        """Where the exponentials of a chunk are kept."""
        if self.n > KEPT or len(self.chunks) == 1:
            return self.b(name, self.shape(stop - start))
        return self.b(f"{name} row", (1, self.n))[:, start:stop]

    def exponentials(self, start: int, stop: int, fresh: bool = True) -> Pair:
        """exp(x_j) 2^(900 - K) of a chunk, K = 0 where the maximum was subtracted."""
        hi = self._store("hi", start, stop)
        lo = None if self.tier is T0 else self._store("lo", start, stop)
        if not fresh and self.n <= KEPT:
            return hi, lo
        x, low = self._argument(start, stop)
        if lo is None:
            exp_t0(x, low, self._scale, hi, self.b)
        elif self.tier is T1:
            exp_t1(x, low, self._scale, hi, lo, self.b)
        else:
            exp_t2(x, low, BIAS - self.exponent, hi, lo)
        if self.masks and not self.logarithmic:
            gone = self.masked(start, stop)
            assert gone is not None
            hi[gone] = 0.0
        return hi, lo

    def masked(self, start: int, stop: int) -> Array | None:
        """Where the logits of a chunk are -inf, None where nowhere."""
        return self.laid(self.logits[:, start:stop]) == -np.inf if self.masks else None

    def _sum(self) -> tuple[Array, Array]:
        steps = self.maximum * _constants().inverse + _MAGIC if self.direct else np.full(self.shape(1), _MAGIC)
        self.exponent = (steps.view(np.int64) - _MAGIC_BITS) >> _PLACES
        self._scale = UNIT_SCALE - (self.exponent << 52)
        pieces: list[Array] = []
        for start, stop in self.chunks:
            found = sum_pieces(*self.exponentials(start, stop), self.tier, self.axis, self.b)
            pieces.extend(found)
        return _gather(pieces)

    # quotients

    def _divisor(self, scale: tuple[Array, Array] | None = None) -> _Divisor:
        """What exponentials are divided by to give 2^up p, or 2^up p Y for a scale Y (a pair of one value a row)."""
        hi, lo = self.sum
        if scale is not None:
            hi, lo = dd.div(hi, lo, *scale)
        down = 2.0**-self.up
        return _Divisor.of(hi * down, lo * down)

    def quotient(self, e: Pair, divisor: _Divisor, name: str = "p") -> Pair:
        """exp(x_i) over the divisor, normalised, in the block's buffers."""
        hi, lo = e
        p = self.b(f"{name} hi", hi.shape)
        multiply(hi, divisor.inverse, p)
        if lo is None:
            return p, None
        if self.tier is T2:
            return dd.div(hi, lo, divisor.hi, divisor.lo)
        return _refined(p, hi, lo, divisor, self.b, name)

    # the ops

    def parts(self) -> Iterator[Part]:
        """The truth, column chunk by column chunk; each is only good until the next is asked for."""
        yield from _PARTS[self.op](self)

    def _softmax(self) -> Iterator[Part]:
        divisor = self._divisor()
        for start, stop in self.chunks:
            hi, lo = self.quotient(self.exponentials(start, stop, False), divisor)
            yield Part(start, stop, hi, lo, masked=self.masked(start, stop), fine=self._beside_one(hi, start))

    def _beside_one(self, p: Array, start: int) -> Fine | None:
        """Probabilities within BESIDE of 1, as 1 less the share of the others."""
        least = 2.0**self.up * (1 - BESIDE)
        if float(p.max()) < least:
            return None
        at = np.flatnonzero(p >= least)
        row, column = (at % self.rows, at // self.rows) if self.axis == 0 else (at // p.shape[1], at % p.shape[1])
        hi, lo, k = (values[np.argsort(np.argsort(row))] for values in self._others_of(row, column + start))
        some = hi > 0
        hi, lo = np.ldexp(hi, k + self.up), np.ldexp(lo, k + self.up)
        whole = dd.add(np.ones_like(hi), np.zeros_like(hi), hi * 2.0**-self.up, lo * 2.0**-self.up)
        hi, lo = dd.div(hi, lo, *whole)
        return Fine(at, np.full(at.shape, 2.0**self.up), np.zeros(at.shape), -np.where(some, np.maximum(hi, FLOOR), 0.0), -lo)

    def _others_of(self, rows: Array, columns: Array) -> tuple[Array, Array, Array]:
        """`others` of one column in each of some rows, in the order of the rows."""
        chosen = np.zeros(self.rows, bool)
        chosen[rows] = True
        return self.others(chosen, columns[np.argsort(rows)])

    def _log_softmax(self) -> Iterator[Part]:
        log_hi, log_lo = self.log_total()
        divisor = self._divisor()
        unscale = 2.0**-self.up
        for start, stop in self.chunks:
            p, _ = self.quotient((self.exponentials(start, stop, False)[0], None), divisor, "soft")
            if self.up:
                multiply(p, unscale, p)
            d, low = self.shifted(start, stop)
            masked = self.masked(start, stop)
            hi, lo = self._minus_log(d, low, log_hi, log_lo)
            yield Part(start, stop, hi, lo, masked=masked, p=p, fine=self._far_below(d, low, log_hi, log_lo))

    def _far_below(self, d: Array, low: Array, log_hi: Array, log_lo: Array) -> Fine | None:
        """Where x - m is far beyond the logarithm: -(x - m), which is exact, and the logarithm."""
        if not self.wide:
            return None
        at = np.flatnonzero(d < -(2.0 ** (self.up + 10)))
        row = at % self.rows if self.axis == 0 else at // d.shape[1]
        logs = (values.reshape(-1)[row] for values in (log_hi, log_lo))
        return Fine(at, -d.reshape(-1)[at], -low.reshape(-1)[at], *logs)

    def _minus_log(self, d: Array, low: Array, log_hi: Array, log_lo: Array) -> tuple[Array, Array]:
        """2^up (d + low) less the logarithm, by TwoSum (Knuth)."""
        hi, lo, back = self.b("p hi", d.shape), self.b("p lo", d.shape), self.b("back", d.shape)
        if self.up:
            multiply(d, 2.0**self.up, d)
            multiply(low, 2.0**self.up, low)
        if self.masks:
            d[d == -np.inf] = 0.0
        subtract(d, log_hi, hi)
        subtract(hi, d, back)
        subtract(hi, back, lo)
        subtract(d, lo, lo)
        add(back, log_hi, back)
        subtract(lo, back, lo)
        add(lo, low, lo)
        subtract(lo, log_lo, lo)
        return hi, lo

    def log_total(self) -> tuple[Array, Array]:
        """2^up log(sum exp(x_j - m)), for blocks that subtract the maximum; relative bound Tier.log."""
        hi, lo = (part * 2.0**-BIAS for part in self.sum)
        rest, error = dd.two_sum(hi, np.full_like(hi, -1.0))
        rest, error = dd.fast_two_sum(rest, error + lo)
        up = 2.0**self.up
        log_hi, log_lo = dd.log1p(rest, error)
        log_hi, log_lo = log_hi * up, log_lo * up
        near = (rest < self.tier.near).reshape(-1)
        if near.any():
            tail_hi, tail_lo = self.rest(near)
            log_hi.reshape(-1)[near], log_lo.reshape(-1)[near] = tail_hi, tail_lo
        self.log_size = log_hi
        return log_hi, log_lo

    def rest(self, chosen: Array) -> tuple[Array, Array]:
        """2^up log(1 + s) of rows with one maximum, s the sum of the others over it; 0 where there are none."""
        hi, lo, k = self.others(chosen, None)
        tiny = k < -900
        shift = np.where(tiny, 0, k)
        log_hi, log_lo = dd.log1p(np.ldexp(hi, shift), np.ldexp(lo, shift))
        hi, lo = np.where(tiny, hi, log_hi), np.where(tiny, lo, log_lo)
        shift = np.where(tiny, k, 0) + self.up
        return np.ldexp(hi, shift), np.ldexp(lo, shift)

    def others(self, chosen: Array, column: Array | None) -> tuple[Array, Array, Array]:
        """(hi, lo, k): the sum of exp(x_j - x_t) over j != t is (hi + lo) 2^k, for chosen rows; t: the maximum, or `column`.

        hi = 0 where no other logit is finite.
        """
        x = self.logits[chosen].astype(np.float64)
        rows = np.arange(len(x))
        column = x.argmax(axis=1) if column is None else column
        top = x[rows, column]
        x[rows, column] = -np.inf
        hi, lo, k = np.zeros(len(x)), np.zeros(len(x)), np.zeros(len(x), np.int64)
        some = x.max(axis=1) > -np.inf
        live = np.flatnonzero(some)
        for start in range(0, live.size, max(1, CHUNK // self.n)):
            part = live[start : start + max(1, CHUNK // self.n)]
            block = Block("logsumexp", self.tier, 0, x[part], None, Buffers())
            block.prepare()
            sum_hi, sum_lo = (piece.reshape(-1) * 2.0**-BIAS for piece in block.sum)
            with np.errstate(over="ignore", invalid="ignore"):
                gap, low = dd.two_sum(block.maximum.reshape(-1), -top[part])
            far = gap < -SPAN
            head, tail, k[part] = dd.exp(np.where(far, -SPAN, gap), np.where(far, 0.0, low))
            hi[part], lo[part] = dd.mul(sum_hi, sum_lo, head, tail)
        return hi, lo, k

    def _logsumexp(self) -> Iterator[Part]:
        log_hi, log_lo = self.log_total()
        hi, lo = dd.two_sum(self.maximum * 2.0**self.up, log_hi)
        hi, lo = dd.fast_two_sum(hi, lo + log_lo)
        yield Part(0, 1, hi, lo, self.bound * log_hi + 2.0**-100 * np.abs(hi))

    def _cross_entropy(self) -> Iterator[Part]:
        assert self.extra is not None
        log_hi, log_lo = self.log_total()
        if self.extra.ndim == 1:
            target = self.logits[np.arange(self.rows), self.extra].astype(np.float64)
            masked = np.isinf(target)
            gap, low = dd.two_sum(self.maximum.reshape(-1), -np.where(masked, 0.0, target))
            q_hi, q_lo = self.per_row(gap) * 2.0**self.up, self.per_row(low) * 2.0**self.up
            gone = self.per_row(masked)
        else:
            q_hi, q_lo, weight, spill, gone = self._expected_gap()
            log_hi, log_lo = dd.mul(log_hi, log_lo, weight, spill)
        hi, lo = dd.two_sum(q_hi, log_hi)
        hi, lo = dd.fast_two_sum(hi, lo + (q_lo + log_lo))
        yield Part(0, 1, hi, lo, masked=gone if gone.any() else None)

    def _expected_gap(self) -> tuple[Array, Array, Array, Array, Array]:
        """2^up sum y_i (m - x_i) and sum y_i as pairs, and where the former is infinite."""
        assert self.extra is not None
        gaps, weights = [], []
        gone = np.zeros(self.shape(1), bool)
        for start, stop in self.chunks:
            y = self.load(self.extra, start, stop, "y")
            d, low = self.shifted(start, stop)
            if self.masks:
                infinite = d == -np.inf
                gone |= (infinite & (y > 0)).any(axis=self.axis, keepdims=True)
                d[infinite] = 0.0
            gaps.append(tree(*self._products(y, d, low), self.axis))
            weights.append(tree(y, np.zeros_like(y), self.axis))
        (hi, lo), (weight, spill) = chained(gaps), chained(weights)
        return -hi * 2.0**self.up, -lo * 2.0**self.up, weight, spill, gone

    def _products(self, y: Array, hi: Array, lo: Array | None) -> tuple[Array, Array]:
        """y (hi + lo): rounded twice in T0, in double-double above."""
        if self.tier is T0 or lo is None:
            return y * hi, np.zeros_like(y)
        return dd.mul(y, np.zeros_like(y), hi, lo)

    def _cross_entropy_grad(self) -> Iterator[Part]:
        assert self.extra is not None
        if self.extra.ndim == 1:
            yield from self._less_one()
            return
        weight = chained(
            [tree(y, np.zeros_like(y), self.axis) for y in (self.load(self.extra, *c, "y").copy() for c in self.chunks)]
        )
        divisor = self._divisor(weight)
        for start, stop in self.chunks:
            p, low = self.quotient(self.exponentials(start, stop, False), divisor)
            y = self.load(self.extra, start, stop, "y")
            multiply(y, -(2.0**self.up), y)
            hi, lo = dd.two_sum(p, y)
            if low is not None:
                hi, lo = dd.fast_two_sum(hi, lo + low)
            yield Part(start, stop, hi, lo, p * (self.bound + 2.0**-98) + 2.0**-100 * np.abs(hi), self.masked(start, stop))

    def _less_one(self) -> Iterator[Part]:
        """The softmax, less 1 at the target."""
        assert self.extra is not None
        divisor = self._divisor()
        rows = np.arange(self.rows)
        for start, stop in self.chunks:
            e = self.exponentials(start, stop, False)
            hi, lo = self.quotient(e, divisor)
            here = (self.extra >= start) & (self.extra < stop)
            fine, masked = None, self.masked(start, stop)
            if here.any():
                column = self.extra[here] - start
                place = (column, rows[here]) if self.axis == 0 else (rows[here], column)
                p = hi[place], np.zeros(column.shape) if lo is None else lo[place]
                at = (e[0][place], np.zeros(column.shape) if e[1] is None else e[1][place])
                found = self._share_of_others(at, here, self.extra[here])
                hi[place] = -found[0]
                if lo is not None:
                    lo[place] = -found[1]
                seen = np.ones(column.shape, bool) if masked is None else ~masked[place]
                fine = self._beside_minus_one(np.ravel_multi_index(place, hi.shape), found[0], p, seen)
            yield Part(start, stop, hi, lo, masked=masked, fine=_joined(self._beside_one(hi, start), fine))

    def _beside_minus_one(self, at: Array, share: Array, p: tuple[Array, Array], seen: Array) -> Fine:
        """Shares of the others within BESIDE of 1, as 1 less the probability."""
        near = (share >= 2.0**self.up * (1 - BESIDE)) & seen
        base = np.full(int(near.sum()), 2.0**self.up)
        return Fine(at[near], base, np.zeros_like(base), -np.maximum(p[0][near], FLOOR), -p[1][near])

    def _share_of_others(self, at: tuple[Array, Array], chosen: Array, column: Array) -> tuple[Array, Array]:
        """2^up (1 - p) of one element in each of the chosen rows, whose exponentials are `at`."""
        total, rest = (part.reshape(-1)[chosen] for part in self.sum)
        hi, lo = dd.add(total, rest, -at[0], -at[1])
        hi, lo = dd.div(hi, lo, total, rest)
        near = hi < 2.0**-4
        if near.any():
            which = np.flatnonzero(chosen)[near]
            rest_hi, rest_lo, k = self.others(which, column[near])
            rest_hi, rest_lo = np.ldexp(rest_hi, k + self.up), np.ldexp(rest_lo, k + self.up)
            whole = dd.add(np.ones_like(rest_hi), np.zeros_like(rest_hi), rest_hi * 2.0**-self.up, rest_lo * 2.0**-self.up)
            hi[near], lo[near] = dd.div(rest_hi, rest_lo, *whole)
        up = np.where(near, 1.0, 2.0**self.up)
        return hi * up, lo * up

    def _jacobian(self) -> Iterator[Part]:
        e = self.exponentials(0, self.n, False)
        p = self.quotient(e, self._divisor())
        half = 2.0 ** -(self.up // 2)
        p = p[0] * half, None if p[1] is None else p[1] * half
        diagonal = self._diagonal(e)
        step = max(1, CHUNK // self.n)
        masked = self.masked(0, self.n)
        for first in range(0, self.n, step):
            last = min(first + step, self.n)
            hi, lo = (None if part is None else -part for part in self._outer(p, first, last))
            assert hi is not None
            for part, value in ((hi, diagonal[0]), (lo, diagonal[1])):
                if part is not None and value is not None:
                    self._set_diagonal(part, value, first, last)
            gone = None if masked is None else self._cross(masked, masked, np.logical_or, first, last)
            radius = np.abs(hi) * (2.2 * self.tier.bound) + TINY * 2.0 ** (self.up // 2)
            yield Part(first * self.n, last * self.n, hi, lo, radius, gone)

    def _cross(self, a: Array, b: Array, ufunc: Any, first: int, last: int) -> Array:
        """ufunc of a_i and b_j for first <= i < last and every j, laid out as (.., i n + j)."""
        if self.axis == 0:
            return np.asarray(ufunc(a[first:last, None, :], b[None, :, :])).reshape(-1, self.rows)
        return np.asarray(ufunc(a[:, first:last, None], b[:, None, :])).reshape(self.rows, -1)

    def _outer(self, p: Pair, first: int, last: int) -> Pair:
        if p[1] is None:
            return self._cross(p[0], p[0], np.multiply, first, last), None
        one = np.ones_like(p[0])
        left = [self._cross(part, one, np.multiply, first, last) for part in (p[0], p[1])]
        right = [self._cross(one, part, np.multiply, first, last) for part in (p[0], p[1])]
        return dd.mul(*left, *right)

    def _diagonal(self, e: Pair) -> tuple[Array, Array | None]:
        """2^up p (1 - p), shape of a row."""
        share_hi, share_lo = np.empty(e[0].shape), np.empty(e[0].shape)
        every = np.ones(self.rows, bool)
        low = np.zeros_like(e[0]) if e[1] is None else e[1]
        for i in range(self.n):
            at = (e[0][i], low[i]) if self.axis == 0 else (e[0][:, i], low[:, i])
            found = self._share_of_others(at, every, np.full(self.rows, i))
            place = (i, slice(None)) if self.axis == 0 else (slice(None), i)
            share_hi[place], share_lo[place] = found
        half = 2.0 ** -(self.up // 2)
        hi, lo = dd.div(e[0], low, *(part * half for part in self.sum))
        hi, lo = dd.mul(share_hi * half, share_lo * half, hi, lo)
        return hi, None if e[1] is None else lo

    def _set_diagonal(self, part: Array, value: Array, first: int, last: int) -> None:
        i = np.arange(first, last)
        place = (i - first) * self.n + i
        if self.axis == 0:
            part[place] = value[i]
        else:
            part[:, place] = value[:, i]

    def _vjp(self) -> Iterator[Part]:
        assert self.extra is not None
        sums, sizes = [], np.zeros(self.shape(1))
        for start, stop in self.chunks:
            g = self.load(self.extra, start, stop, "y")
            hi, lo = self._products(g, *self.exponentials(start, stop, False))
            sums.append(tree(hi, lo, self.axis))
            sizes += np.abs(hi).sum(axis=self.axis, keepdims=True)
        half = 2.0 ** (self.up // 2)  # a mean of tiny numbers must not underflow
        total_hi, total_lo = self.sum
        mean, spill = dd.div(*chained(sums), total_hi / half, total_lo / half)
        relative = 1.01 * (self.bound + (2.0**-53 if self.tier is T0 else 2.0**-98))
        doubt = relative * (sizes / (total_hi / half)) + 2.0**-1070
        divisor = self._divisor()
        for start, stop in self.chunks:
            p, low = self.quotient(self.exponentials(start, stop, False), divisor)
            g = self.load(self.extra, start, stop, "y")
            if self.up:
                for values, scale in ((g, half), (p, 1 / half), *([] if low is None else [(low, 1 / half)])):
                    np.multiply(values, scale, values)
            gap, rest = dd.two_sum(g, np.broadcast_to(-mean, g.shape))
            gap, rest = dd.fast_two_sum(gap, rest - spill)
            hi, lo = dd.mul(p, np.zeros_like(p) if low is None else low, gap, rest)
            radius = p * (np.abs(gap) * (self.bound + 2.0**-98) + doubt) + (np.abs(gap) * 2.0**-1070 + TINY)
            part = Part(start, stop, hi, lo, radius, self.masked(start, stop))
            yield replace(part, live=self._live(part, gap, doubt))

    def _live(self, part: Part, gap: Array, doubt: Array) -> Array:
        """Where p (g - G) is not 0, for p is not and g - G is farther from 0 than it may be off by; there hi gets its sign."""
        live = np.abs(gap) * (1 - 2.0**-40) > doubt
        if part.masked is not None:
            live &= ~part.masked
        np.copyto(part.hi, np.copysign(np.maximum(np.abs(part.hi), FLOOR), gap), where=live & (np.abs(part.hi) < FLOOR))
        return live


_PARTS = {
    "softmax": Block._softmax,
    "log_softmax": Block._log_softmax,
    "logsumexp": Block._logsumexp,
    "cross_entropy": Block._cross_entropy,
    "cross_entropy_grad": Block._cross_entropy_grad,
    "softmax_jacobian": Block._jacobian,
    "softmax_vjp": Block._vjp,
}


def tree(hi: Array, lo: Array, axis: int) -> tuple[Array, Array]:
    """The sum along an axis, kept as an extent of 1, by halving: depth d costs 3 d 2^-106 of the sum of magnitudes."""
    hi, lo = np.moveaxis(hi, axis, 0), np.moveaxis(lo, axis, 0)
    while len(hi) > 1:
        half = len(hi) // 2
        top = dd.add(hi[:half], lo[:half], hi[half : 2 * half], lo[half : 2 * half])
        hi, lo = (np.concatenate([part, odd[2 * half :]]) for part, odd in zip(top, (hi, lo), strict=True))
    return np.moveaxis(hi, 0, axis), np.moveaxis(lo, 0, axis)


def chained(pairs: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """The sum of the sums of chunks."""
    hi, lo = (np.stack(column) for column in zip(*pairs, strict=True))
    hi, lo = tree(hi, lo, 0)
    return hi[0], lo[0]
