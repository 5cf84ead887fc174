"""Certified truth by mpmath, the judge of last resort. The only importer of mpmath.

Every element of an output is written T = q + r: q an exact rational, r either exactly 0 or a real number of known sign
that is computed to a proven relative accuracy, with no cancellation left to luck. With m the row maximum, k the number
of logits equal to it, d_j = x_j - m (exact), s = sum over d_j < 0 of exp(d_j), S = k + s and L' = log S:

    softmax             q = 1/k, r = -s/(k S) at the maxima;  q = 0, r = exp(d_i)/S elsewhere
    log_softmax         q = d_i, r = -L'
    logsumexp           q = m, r = L'
    cross_entropy       q = sum y_i (m - x_i), r = Y L', Y = sum y_i (a class index: y one-hot)
    cross_entropy_grad  q = Y/k - y_i, r = -Y s/(k S) at the maxima;  q = -y_i, r = Y exp(d_i)/S elsewhere
    softmax_jacobian    see _jacobian;  softmax_vjp: see _vjp

A loss with a squares of logsumexp has q + a m^2 and r = L' (Y + 2 a m + a L'), its gradient the same C = Y + 2 a m in place of Y
(_sloped). A sum over rows has the sum of their q, and of their r (enclose_sum). Either may be multiplied by an exact rational.

A-priori bound, working precision P, v = 2^-P. mpmath's exp and log are taken to be off by at most 64 v
relatively; its documentation promises all but the last bit and 0.5003 ulp is the worst seen, so 64 is the margin. Every
other step is integer arithmetic truncated at 1 unit in P bits or better:

    exp(d_j)   64 v
    s          64 v + 1 v        (n truncations or omissions of 2^-(P + 8 + log2 n) of the largest term; all terms positive)
    S          66 v              (s <= S)
    L', k = 1  64 v + 65 v       (log1p(s): the relative condition s / ((1 + s) log1p s) is at most 1)
    L', k > 1  64 v + 66 v / log 2
    products and quotients of at most six of these: below 2^10 v.

So with P = bits + GUARD, GUARD = 16, every r has a relative error below 2^-(bits + 6). Where q and r have opposite
signs and come close, the width of the enclosure shows it and P is raised until it is below 2^-bits again.

Sticky rule: where r is smaller than 2^-P of q and q is a multiple of that unit, the enclosure is a stand-in: from 1/4 to
3/4 of the unit beside q, on the side of r. T lies between q and the end of that unit, so the stand-in is within 2^-bits
of it, and every decision on a grid no finer than the unit (rounding to the format, binade) is the one T itself gives.
Without it log_softmax([1, -2^24]) in float32 would need 24 million bits. It is not for sums, or for comparisons on a finer
grid: `hull` makes an enclosure of it that truly holds T.

That raising the precision ends is a theorem (Lindemann-Weierstrass): apart from the exact rational cases,
which are handled as such, T is irrational, so it is never a midpoint of two numbers of a format. Of squares of logsumexp
none is known: there the cap may be reached.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import floor, frexp, gcd, isqrt, log2, log10
from typing import Any, NamedTuple

import numpy as np
from mpmath import libmp

from engine.errors import Undecided
from engine.model import Array

GUARD = 16
_LARGE = 10
"""log2 of the arguments of exp that are reduced here."""
_TWO_53 = 2.0**53
MAX_PRECISION = 8192
MAX_ROW_BITS = 1 << 28

Factor = tuple[int, int, int]
"""An exact positive rational as (num, den, exp): num / den * 2^exp."""
ONE: Factor = (1, 1, 0)
Real = tuple[int, int]
"""A positive real as (man, exp): man * 2^exp, to a relative accuracy stated where it is made."""


class StandIn(NamedTuple):
    """The enclosure of the sticky rule: for decisions, not for sums."""

    lo: int
    hi: int
    exp: int


Enclosure = tuple[int, int, int] | float
"""(lo, hi, exp): lo * 2^exp <= T <= hi * 2^exp; or a StandIn; or exactly nan, inf or -inf."""
ZERO: Enclosure = (0, 0, 0)


class _Wide(Exception):
    """An enclosure came out too wide for the precision it was computed at."""


@dataclass(frozen=True)
class Scaled:
    """Exact integers in one power-of-two unit: value_i = man_i * 2^exp."""

    man: list[int]
    exp: int


def scaled(values: Array) -> Scaled:
    """The exact integers of finite numbers (any format; all embed in float64)."""
    parts = [frexp(value) for value in values.astype(np.float64).tolist()]
    unit = min((exp for fraction, exp in parts if fraction), default=0)
    return Scaled([int(fraction * _TWO_53) << (exp - unit) if fraction else 0 for fraction, exp in parts], unit - 53)


@dataclass(frozen=True)
class Row:
    """The finite logits of one row: deltas d_j = x_j - m in units of 2^exp, the maximum m in the same unit."""

    deltas: list[int]
    maximum: int
    exp: int

    @staticmethod
    def of(logits: Array) -> Row:
        return Row.over(scaled(logits))

    @staticmethod
    def over(x: Scaled) -> Row:
        """The row of exact logits."""
        top = max(x.man)
        return Row([m - top for m in x.man], top, x.exp)

    @cached_property
    def counts(self) -> Counter[int]:
        """How often each delta occurs."""
        return Counter(self.deltas)


class _Table(dict[int, Real]):
    """exp(d * 2^unit) by d, to P bits."""

    def __init__(self, unit: int, precision: int) -> None:
        self._unit = unit
        self._precision = precision

    def __missing__(self, delta: int) -> Real:
        self[delta] = found = _exp(delta, self._unit, self._precision)
        return found


class Exponentials:
    """exp(d_j), s, S and L' of one row at one working precision, each computed once and only if asked for.

    factor: by which every result is multiplied.
    """

    def __init__(self, row: Row, precision: int, factor: Factor = ONE) -> None:
        self.row = row
        self.precision = precision
        self.factor = factor
        self.ties = row.counts[0]

    @cached_property
    def exp(self) -> _Table:
        """exp(d) for every delta d < 0, each computed when it is asked for."""
        return _Table(self.row.exp, self.precision)

    @cached_property
    def tail(self) -> Real | None:
        """s, or None where it is exactly 0 (all logits equal).

        Terms below 2^-(P + 8 + log2 n) of the largest are left out: together less than 2^-(P + 8) of s.
        """
        counts = self.row.counts
        below = [d for d in counts if d]
        if not below:
            return None
        places = (self.precision + 8 + len(self.row.deltas).bit_length()) * 7 // 10 + 1  # more than log 2 times that
        least = max(below) - (places << -self.row.exp if self.row.exp < 0 else (places >> self.row.exp) + 1)
        terms = [(d, self.exp[d]) for d in below if d >= least]
        return _sum_positive([(man * counts[d], exp) for d, (man, exp) in terms], self.precision)

    @cached_property
    def total(self) -> Real:
        """S = k + s, in units of 2^-(P + 8)."""
        unit = self.precision + 8
        return (self.ties << unit) + (_at(self.tail, -unit) if self.tail else 0), -unit

    @cached_property
    def log_total(self) -> Real | None:
        """L' = log(k + s), or None where it is exactly 0 (one finite logit)."""
        if self.tail is None:
            return None if self.ties == 1 else self._log((self.ties, 0))
        if self.ties > 1:
            return self._log(self.total)
        man, exp = self.tail
        return self.tail if man.bit_length() + exp < -self.precision else self._log((man + (1 << -exp), exp))

    def _log(self, value: Real) -> Real:
        _, man, exp, _ = libmp.mpf_log(libmp.from_man_exp(*value), self.precision, "n")
        return int(man), int(exp)

    @cached_property
    def small(self) -> bool:
        """Whether s < 1/2, so that the maxima are best written as a rational and a rest."""
        return self.tail is None or self.tail[0].bit_length() + self.tail[1] < 0

    def product(self, above: Sequence[Real], below: Sequence[Real] = ()) -> Real:
        """Product of positive reals over another, truncated to P + 8 bits: at most one unit of error an operation."""
        value = _multiply(above, self.precision + 8)
        return self.quotient(value, _multiply(below, self.precision + 8)) if below else value

    def quotient(self, above: Real, below: Real) -> Real:
        """One positive real over another, truncated to P + 8 bits or more."""
        (man, exp), (low, low_exp) = above, below
        shift = max(0, self.precision + 8 + low.bit_length() - man.bit_length())
        return (man << shift) // low, exp - low_exp - shift


def _exp(man: int, exp: int, precision: int) -> Real:
    """exp(man 2^exp), off by at most 64 2^-P relatively.

    A large argument is reduced by a multiple k of log 2, taken to so many bits that k log 2 is off by less than 2^-(P +
    8): mpmath would raise e to an integer power instead, hundreds of times slower.
    """
    size = man.bit_length() + exp
    if size <= _LARGE:
        _, value, unit, _ = libmp.mpf_exp(libmp.from_man_exp(man, exp), precision, "n")
        return int(value), int(unit)
    places = precision + size + 16
    log_2 = _fixed_log(2, places)
    x = man << (exp + places) if exp + places >= 0 else man >> -(exp + places)
    k, rest = divmod(x, log_2)
    _, value, unit, _ = libmp.mpf_exp(libmp.from_man_exp(rest, -places), precision, "n")
    return int(value), int(unit) + k


def _fixed_log(base: int, places: int) -> int:
    """log 2 or log 10 in units of 2^-places, off by less than 2."""
    log = libmp.mpf_ln2 if base == 2 else libmp.mpf_ln10
    _, man, exp, _ = log(places + 8, "n")
    return _at((int(man), int(exp)), -places)


def _multiply(factors: Sequence[Real], keep: int) -> Real:
    man, exp = 1, 0
    for factor, factor_exp in factors:
        man, exp = man * factor, exp + factor_exp
        extra = man.bit_length() - keep
        if extra > 0:
            man, exp = man >> extra, exp + extra
    return man, exp


def _at(value: Real, unit: int) -> int:
    """value truncated to a multiple of 2^unit, as an integer. The shift is cut off where nothing is left."""
    man, exp = value
    shift = exp - unit
    if shift >= 0:
        return man << shift
    return man >> min(-shift, man.bit_length() + 1)


def _sum_positive(terms: Sequence[Real], precision: int) -> Real:
    """Sum of positive terms, at least one, in one fixed unit, 2^-(P + 8 + log2 n) of the largest."""
    top = max(man.bit_length() + exp for man, exp in terms)
    unit = top - precision - 8 - len(terms).bit_length()
    return sum(_at(term, unit) for term in terms), unit


def _top(man: int, exp: int) -> int:
    return abs(man).bit_length() + exp


class Signed(NamedTuple):
    """An enclosed signed real that is not 0: lo * 2^exp <= value <= hi * 2^exp."""

    lo: int
    hi: int
    exp: int

    @property
    def sign(self) -> int:
        return (self.lo > 0) - (self.hi < 0)


def _signed_sum(terms: Sequence[tuple[int, Real]], precision: int) -> Signed | None:
    """sum of c_v e_v for exact integers c_v; None where every c_v is 0, so that the sum is exactly 0.

    Each e_v is off by at most 2^(10 - P) relatively. Raises _Wide where the sign is not decided.
    """
    terms = [(c, e) for c, e in terms if c]
    if not terms:
        return None
    top = max(_top(c * man, exp) for c, (man, exp) in terms)
    unit = top - precision - 8 - len(terms).bit_length()
    total = error = 0
    for c, (man, exp) in terms:
        part = _at((abs(c) * man, exp), unit)
        total += part if c > 0 else -part
        error += (part >> (precision - 10)) + 2
    if abs(total) <= error:
        raise _Wide
    return Signed(total - error, total + error, unit)


def _combine(q: tuple[int, int, int], r: Signed | None, precision: int, bits: int, factor: Factor = ONE) -> Enclosure:
    """The enclosure of T = (q + r) factor, q = num / den * 2^exp. Raises _Wide where it would be wider than 2^-bits of T.

    Beside a q that r cannot move by 2^-P (`_beside`) it is at most three units of 2^-P wide, which is less.
    """
    if factor != ONE:
        q, r = _product_of(q, factor), r and _times(r, factor, precision)
    num, den, exp = q
    if r is None:
        return rational(num, den, exp, bits)
    if num == 0:
        return _narrow(r.lo, r.hi, r.exp, bits)
    top_q = _top(num, exp) - den.bit_length()
    top_r = max(_top(r.lo, r.exp), _top(r.hi, r.exp))
    if top_r < top_q - precision:
        return _beside(num, den, exp, r.sign, top_q - precision)
    unit = max(top_q, top_r) - precision - 4
    floor_q, rest = _divide(num, den, exp - unit)
    lo, hi = outward(*r, unit)
    return _narrow(floor_q + lo, floor_q + (rest != 0) + hi, unit, bits)


def _product_of(q: tuple[int, int, int], factor: Factor) -> tuple[int, int, int]:
    return q[0] * factor[0], q[1] * factor[1], q[2] + factor[2]


def _times(r: Signed, factor: Factor, precision: int) -> Signed:
    """An enclosure times an exact factor, made wider by at most 2^-(P + 8) of itself."""
    num, den, exp = factor
    lo, hi = r.lo * num, r.hi * num
    shift = max(0, precision + 10 + den.bit_length() - min(abs(lo), abs(hi)).bit_length())
    return Signed((lo << shift) // den, -(-(hi << shift) // den), r.exp + exp - shift)


def _divide(num: int, den: int, shift: int) -> tuple[int, int]:
    """floor(num / den * 2^shift), and a rest that is 0 only where that is exact."""
    return divmod(num << shift, den) if shift >= 0 else divmod(num, den << -shift)


def outward(lo: int, hi: int, exp: int, unit: int) -> tuple[int, int]:
    """[lo, hi] * 2^exp in units of 2^unit, rounded outward; shifts are cut off where nothing but the sign is left."""
    shift = exp - unit
    if shift >= 0:
        return lo << shift, hi << shift
    shift = min(-shift, max(abs(lo), abs(hi)).bit_length() + 1)
    return lo >> shift, -(-hi >> shift)


def _narrow(lo: int, hi: int, exp: int, bits: int) -> Enclosure:
    if lo <= 0 <= hi or (hi - lo) << bits > min(abs(lo), abs(hi)):
        raise _Wide
    return lo, hi, exp


def rational(num: int, den: int, exp: int, bits: int) -> Enclosure:
    """An exact rational: itself where dyadic, else its neighbours at a width below 2^-bits."""
    if num == 0:
        return ZERO
    common = gcd(num, den)
    num, den = num // common, den // common
    if den & (den - 1) == 0:
        return num, num, exp - den.bit_length() + 1
    shift = max(0, bits + 2 + den.bit_length() - abs(num).bit_length())
    floor = (num << shift) // den
    return floor, floor + 1, exp - shift


def _beside(num: int, den: int, exp: int, sign: int, unit: int) -> Enclosure:
    """The sticky stand-in: strictly beside q, within 2^unit of it, on the side of the rest.

    Only a q that is a multiple of 2^unit can lie on a boundary coarser than that; any other is merely enclosed.
    """
    floor, rest = _divide(num, den, exp - unit)
    if rest:
        return floor - 1, floor + 2, unit
    return StandIn(4 * floor + 2 * sign - 1, 4 * floor + 2 * sign + 1, unit - 2)


def hull(e: tuple[int, int, int]) -> tuple[int, int, int]:
    """An enclosure that truly holds T: a stand-in is widened to reach from q to a whole unit beyond it."""
    return (e.lo - 1, e.hi + 1, e.exp) if isinstance(e, StandIn) else e


# ---- the ops: each gives the enclosures of one row -------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """One row of a problem: finite logits, and the target or grad_output entries that go with them, all exact.

    columns: the flat columns of the output that are wanted, None for all. z_loss: man 2^exp, that many squares of the
    log-sum-exp are added to a loss with weights. factor: by which the results are multiplied at last.
    """

    row: Row
    weights: Scaled | None = None
    weight_sum: int = 0
    target: int | None = None
    grad_output: Scaled | None = None
    columns: Sequence[int] | None = None
    z_loss: tuple[int, int] = (0, 0)
    factor: Factor = ONE

    def chosen(self, values: Sequence[Any]) -> Sequence[Any]:
        """The values of the columns that are wanted: all where none are named."""
        return values if self.columns is None else [values[column] for column in self.columns]


Evaluate = Callable[[Inputs, Exponentials, int], list[Enclosure]]


def _ball(value: Real, sign: int, precision: int) -> Signed:
    """A positive real off by at most 2^(10 - P) relatively, with its sign."""
    man, exp = value
    if man.bit_length() < precision:
        man, exp = man << precision, exp - precision
    error = (man >> (precision - 10)) + 1
    return Signed(man - error, man + error, exp) if sign > 0 else Signed(-man - error, -man + error, exp)


def _probability(delta: int, e: Exponentials, bits: int, scale: int = 1, exp: int = 0, minus: int = 0) -> Enclosure:
    """scale * 2^exp * p - minus * 2^exp for the p of that delta: softmax (1, 0, 0) and cross_entropy_grad (Y, unit, y)."""
    precision = e.precision
    if not scale:
        return _combine((-minus, 1, exp), None, precision, bits, e.factor)
    if delta == 0 and e.small:
        q = (scale - minus * e.ties, e.ties, exp)
        rest = e.tail and _ball(e.product([(scale, exp), e.tail], [(e.ties, 0), e.total]), -1, precision)
        return _combine(q, rest, precision, bits, e.factor)
    if scale == 1 and not minus and not exp and e.factor == ONE:
        return _narrow(*_ball(e.quotient(e.exp[delta] if delta else (1, 0), e.total), 1, precision), bits)
    part = e.product([(scale, exp)] if delta == 0 else [(scale, exp), e.exp[delta]], [e.total])
    return _combine((-minus, 1, exp), _ball(part, 1, precision), precision, bits, e.factor)


def _softmax(inputs: Inputs, e: Exponentials, bits: int) -> list[Enclosure]:
    deltas = inputs.chosen(inputs.row.deltas)
    table = {delta: _probability(delta, e, bits) for delta in set(deltas)}
    return [table[delta] for delta in deltas]


def _log_rest(e: Exponentials, sign: int, scale: Real = (1, 0)) -> Signed | None:
    return e.log_total and _ball(e.product([e.log_total, scale]), sign, e.precision)


def _log_softmax(inputs: Inputs, e: Exponentials, bits: int) -> list[Enclosure]:
    deltas, rest = inputs.chosen(inputs.row.deltas), _log_rest(e, -1)
    table = {delta: _combine((delta, 1, inputs.row.exp), rest, e.precision, bits, e.factor) for delta in set(deltas)}
    return [table[delta] for delta in deltas]


def _logsumexp(inputs: Inputs, e: Exponentials, bits: int) -> list[Enclosure]:
    return [_combine(*_logsumexp_parts(inputs, e), e.precision, bits, e.factor)]


def _cross_entropy(inputs: Inputs, e: Exponentials, bits: int) -> list[Enclosure]:
    return [_combine(*_cross_entropy_parts(inputs, e), e.precision, bits, e.factor)]


Parts = tuple[tuple[int, int, int], Signed | None]
"""q and r of one number a row."""


def _logsumexp_parts(inputs: Inputs, e: Exponentials) -> Parts:
    row = inputs.row
    return (row.maximum, 1, row.exp), _log_rest(e, 1)


def _cross_entropy_parts(inputs: Inputs, e: Exponentials) -> Parts:
    """With a z-loss of weight a: q + a m^2, and r = L' (Y + 2 a m + a L')."""
    row, weights = inputs.row, inputs.weights
    if weights is None:
        assert inputs.target is not None
        return (-row.deltas[inputs.target], 1, row.exp), _log_rest(e, 1)
    q = -sum(y * delta for y, delta in zip(weights.man, row.deltas, strict=True)), row.exp + weights.exp
    if not inputs.z_loss[0]:
        rest = _log_rest(e, 1, (inputs.weight_sum, weights.exp)) if inputs.weight_sum else None
        return (q[0], 1, q[1]), rest
    man, exp = inputs.z_loss
    q = _dyadic_sum(q, (man * row.maximum**2, exp + 2 * row.exp))
    log, inner = e.log_total, _slope(inputs, e, 1)
    rest = inner and log and _scale(inner, 0, [log], [(1, 0)], e)
    return (q[0], 1, q[1]), rest


def _dyadic_sum(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    unit = min(a[1], b[1])
    return (a[0] << (a[1] - unit)) + (b[0] << (b[1] - unit)), unit


def _slope(inputs: Inputs, e: Exponentials, times: int) -> Signed | None:
    """Y + 2 a m + times a L', a the weight of the z-loss; None where exactly 0, which L', irrational or 0, never makes it else."""
    man, exp = inputs.z_loss
    lead, unit = _slope_lead(inputs)
    exact = Signed(lead, lead, unit) if lead else None
    rest = e.log_total and _ball(e.product([e.log_total, (times * man, exp)]), 1, e.precision)
    return _add(exact, rest, e.precision) if exact and rest else exact or rest


def _slope_lead(inputs: Inputs) -> tuple[int, int]:
    """Y + 2 a m, exact."""
    assert inputs.weights is not None
    man, exp = inputs.z_loss
    return _dyadic_sum((inputs.weight_sum, inputs.weights.exp), (2 * man * inputs.row.maximum, exp + inputs.row.exp))


def _cross_entropy_grad(inputs: Inputs, e: Exponentials, bits: int) -> list[Enclosure]:
    weights = inputs.weights
    assert weights is not None
    pairs = inputs.chosen(list(zip(inputs.row.deltas, weights.man, strict=True)))
    if inputs.z_loss[0]:
        table = {(d, y): _sloped(d, y, inputs, e, bits) for d, y in set(pairs)}
    else:
        table = {(d, y): _probability(d, e, bits, inputs.weight_sum, weights.exp, y) for d, y in set(pairs)}
    return [table[pair] for pair in pairs]


def _sloped(delta: int, y: int, inputs: Inputs, e: Exponentials, bits: int) -> Enclosure:
    """p (C + 2 a L') - y, C = Y + 2 a m. At the maxima q = C/k - y, r = (2 a k L' - C s)/(k S)."""
    assert inputs.weights is not None
    (lead, unit), exp, k = _slope_lead(inputs), inputs.weights.exp, e.ties
    if delta or not e.small:
        slope = _slope(inputs, e, 2)
        rest = slope and _scale(slope, 0, [e.exp[delta]] if delta else [(1, 0)], [e.total], e)
        return _combine((-y, 1, exp), rest, e.precision, bits, e.factor)
    man, place = inputs.z_loss
    rise = e.log_total and _ball(e.product([e.log_total, (2 * k * man, place)]), 1, e.precision)
    fall = _ball(e.product([e.tail, (abs(lead), unit)]), -lead, e.precision) if e.tail and lead else None
    rest = _add(rise, fall, e.precision) if rise and fall else rise or fall
    rest = rest and _scale(rest, 0, [(1, 0)], [(k, 0), e.total], e)
    num, unit = _dyadic_sum((lead, unit), (-k * y, exp))
    return _combine((num, k, unit), rest, e.precision, bits, e.factor)


def _jacobian(inputs: Inputs, e: Exponentials, bits: int) -> list[Enclosure]:
    deltas = inputs.row.deltas
    places = inputs.chosen(range(len(deltas) ** 2))
    pairs = [(i == j, *sorted((deltas[i], deltas[j]), reverse=True)) for i, j in (divmod(place, len(deltas)) for place in places)]
    table = {key: _diagonal(key[1], e, bits) if key[0] else _off_diagonal(key[1], key[2], e, bits) for key in set(pairs)}
    return [table[key] for key in pairs]


def _diagonal(delta: int, e: Exponentials, bits: int) -> Enclosure:
    """p (1 - p). At the maxima (k - 1 + s)/S^2 = (k - 1)/k^2 - s (k (k - 2) + (k - 1) s)/(k^2 S^2); elsewhere e (S - e)/S^2."""
    k, precision = e.ties, e.precision
    if delta:
        others = e.total[0] - _at(e.exp[delta], e.total[1])
        part = e.product([e.exp[delta], (others, e.total[1])], [e.total, e.total])
        return _combine((0, 1, 0), _ball(part, 1, precision), precision, bits, e.factor)
    if e.tail is None:
        return _combine((k - 1, k * k, 0), None, precision, bits, e.factor)
    if k == 1:
        return _combine((0, 1, 0), _ball(e.product([e.tail], [e.total, e.total]), 1, precision), precision, bits, e.factor)
    if not e.small:
        others = e.total[0] - (1 << -e.total[1])
        return _combine(
            (0, 1, 0), _ball(e.product([(others, e.total[1])], [e.total, e.total]), 1, precision), precision, bits, e.factor
        )
    man, exp = e.tail
    factor = e.product([e.tail, (k - 1, 0)]) if k == 2 else _sum_positive([(k * (k - 2), 0), (man * (k - 1), exp)], precision)
    part = e.product([e.tail, factor], [(k * k, 0), e.total, e.total])
    return _combine((k - 1, k * k, 0), _ball(part, -1, precision), precision, bits, e.factor)


def _off_diagonal(a: int, b: int, e: Exponentials, bits: int) -> Enclosure:
    """-p_i p_j. At two maxima -1/S^2 = -1/k^2 + s (2 k + s)/(k^2 S^2)."""
    precision = e.precision
    if a == b == 0 and e.small:
        rest = None
        if e.tail is not None:
            factor = _sum_positive([(2 * e.ties, 0), e.tail], precision)
            rest = _ball(e.product([e.tail, factor], [(e.ties * e.ties, 0), e.total, e.total]), 1, precision)
        return _combine((-1, e.ties * e.ties, 0), rest, precision, bits, e.factor)
    above = [e.exp[d] for d in (a, b) if d] or [(1, 0)]
    return _combine((0, 1, 0), _ball(e.product(above, [e.total, e.total]), -1, precision), precision, bits, e.factor)


def _vjp(inputs: Inputs, e: Exponentials, bits: int) -> list[Enclosure]:
    """T_i = exp(d_i) ((g_i - mu)/S + tau/S^2), mu the mean of g over the maxima.

    With the logits grouped by equal d, n_v of them with gradients summing to G_v: tau = sum_v exp(d_v) (n_v mu - G_v),
    a signed sum from which the groups with mean mu drop out exactly. Everything below is multiplied by k to keep k mu
    an integer: M = k mu, A_i = k g_i - M, K tau = sum_v exp(d_v) (n_v M - k G_v).
    """
    grad, deltas, precision = inputs.grad_output, inputs.row.deltas, e.precision
    assert grad is not None
    sums: Counter[int] = Counter()
    for delta, g in zip(deltas, grad.man, strict=True):
        sums[delta] += g
    shifts = {d: count * sums[0] - e.ties * sums[d] for d, count in inputs.row.counts.items() if d}
    tau = _signed_sum([(c, e.exp[d]) for d, c in shifts.items()], precision)
    pairs = inputs.chosen(list(zip(deltas, grad.man, strict=True)))
    table = {}
    for delta, g in set(pairs):
        lead = e.ties * g - sums[0]
        if delta == 0 and e.small:
            rest = _vjp_rest(lead, tau, shifts, e)
            rest = rest and _scale(rest, grad.exp, [(1, 0)], [(e.ties**2, 0), e.total, e.total], e)
            table[delta, g] = _combine((lead, e.ties**2, grad.exp), rest, precision, bits, e.factor)
        else:
            inner = _vjp_inner(lead, tau, e)
            above = [e.exp[delta]] if delta else [(1, 0)]
            rest = inner and _scale(inner, grad.exp, above, [(e.ties, 0), e.total, e.total], e)
            table[delta, g] = _combine((0, 1, 0), rest, precision, bits, e.factor)
    return [table[pair] for pair in pairs]


def _vjp_inner(lead: int, tau: Signed | None, e: Exponentials) -> Signed | None:
    """k ((g_i - mu) S + tau) = A_i S + k tau, None where exactly 0."""
    if not lead:
        return tau
    main = _ball(e.product([(abs(lead), 0), e.total]), lead, e.precision)
    return main if tau is None else _add(main, tau, e.precision)


def _vjp_rest(lead: int, tau: Signed | None, shifts: dict[int, int], e: Exponentials) -> Signed | None:
    """k^2 S^2 (T_i - (g_i - mu)/k) at a maximum: k (k tau) - A_i (k s + s^2), None where exactly 0.

    Where these cancel, the terms linear in exp(d_v) are taken together: their coefficients are k ((n_v M - k G_v) - A_i
    n_v), and groups where that is 0 drop out exactly, so that the s^2 term decides where all do.
    """
    k, tail = e.ties, e.tail
    scaled_tau = tau and Signed(k * tau.lo, k * tau.hi, tau.exp)
    if not lead or tail is None:
        return scaled_tau
    spread = _sum_positive([(k * tail[0], tail[1]), e.product([tail, tail])], e.precision)
    main = _ball(e.product([(abs(lead), 0), spread]), -lead, e.precision)
    try:
        return main if scaled_tau is None else _add(main, scaled_tau, e.precision)
    except _Wide:
        linear = _signed_sum([(k * (c - lead * e.row.counts[d]), e.exp[d]) for d, c in shifts.items()], e.precision)
    square = _ball(e.product([(abs(lead), 0), tail, tail]), -lead, e.precision)
    return square if linear is None else _add(linear, square, e.precision)


def _add(a: Signed, b: Signed, precision: int) -> Signed:
    unit = max(_top(a.lo, a.exp), _top(a.hi, a.exp), _top(b.lo, b.exp), _top(b.hi, b.exp)) - precision - 8
    (alo, ahi), (blo, bhi) = outward(*a, unit), outward(*b, unit)
    if alo + blo <= 0 <= ahi + bhi:
        raise _Wide
    return Signed(alo + blo, ahi + bhi, unit)


def _scale(value: Signed, exp: int, above: Sequence[Real], below: Sequence[Real], e: Exponentials) -> Signed:
    """value * 2^exp * above / below, the factors positive and off by at most 2^(9 - P) together."""
    factor = _ball(e.product(above, below), 1, e.precision)
    ends = sorted((value.lo * factor.lo, value.lo * factor.hi, value.hi * factor.lo, value.hi * factor.hi))
    return Signed(ends[0], ends[-1], value.exp + factor.exp + exp)


EVALUATE: dict[str, Evaluate] = {
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "logsumexp": _logsumexp,
    "cross_entropy": _cross_entropy,
    "cross_entropy_grad": _cross_entropy_grad,
    "softmax_jacobian": _jacobian,
    "softmax_vjp": _vjp,
}


def enclose(op: str, inputs: Inputs, bits: int) -> list[Enclosure]:
    """Enclosures of one row of an op, each of relative width below 2^-bits (or exact, or a sticky stand-in).

    Raises Undecided where that takes more than MAX_PRECISION bits, or, after a first attempt, more than MAX_ROW_BITS over
    the distinct logits of the row. (Asked for more than half of MAX_PRECISION, the cap is twice what is asked for.)
    """
    precision, count = bits + GUARD, len(inputs.row.counts)
    cap = max(MAX_PRECISION, 2 * precision)
    while True:
        try:
            return EVALUATE[op](inputs, Exponentials(inputs.row, precision, inputs.factor), bits)
        except _Wide:
            finer = min(2 * precision, cap)
        if finer == precision or finer * count > MAX_ROW_BITS:
            raise Undecided(
                f"{op} of a row of {len(inputs.row.deltas)} logits is undecided at {precision} bits: "
                "its exact value lies too close to a boundary "
                f"(caps: {cap} bits, {MAX_ROW_BITS} bits over a row)"
            )
        precision = finer


PARTS: dict[str, Callable[[Inputs, Exponentials], Parts]] = {"logsumexp": _logsumexp_parts, "cross_entropy": _cross_entropy_parts}


def enclose_sum(op: str, rows: Sequence[Inputs], factor: Factor, bits: int) -> Enclosure:
    """The enclosure of the sum over rows, at least one, of an op of one number a row, times the factor (the rows' own count not).

    q and r of the rows are added, the q exactly: the rests of a plain loss are positive, so the sticky rule holds for their sum,
    and nothing cancels. With a z-loss they may differ in sign. As enclose raises, of all rows together.
    """
    precision, count = bits + GUARD, sum(len(inputs.row.counts) for inputs in rows)
    cap = max(MAX_PRECISION, 2 * precision)
    while True:
        try:
            parts = [PARTS[op](inputs, Exponentials(inputs.row, precision)) for inputs in rows]
            whole = (0, 0)
            for (num, _, exp), _ in parts:
                whole = _dyadic_sum(whole, (num, exp))
            rest = _sum_of([r for _, r in parts if r is not None], precision)
            return _combine((whole[0], 1, whole[1]), rest, precision, bits, factor)
        except _Wide:
            finer = min(2 * precision, cap)
        if finer == precision or finer * count > MAX_ROW_BITS:
            raise Undecided(f"the sum of {op} over {len(rows)} rows is undecided at {precision} bits")
        precision = finer


def _sum_of(rests: Sequence[Signed], precision: int) -> Signed | None:
    if not rests:
        return None
    unit = max(max(_top(r.lo, r.exp), _top(r.hi, r.exp)) for r in rests) - precision - 8 - len(rests).bit_length()
    ends = [outward(*r, unit) for r in rests]
    lo, hi = sum(end[0] for end in ends), sum(end[1] for end in ends)
    if lo <= 0 <= hi:
        raise _Wide
    return Signed(lo, hi, unit)


def tanh(num: int, den: int, places: int) -> int:
    """tanh(num / den), den > 0, in units of 2^-places, off by less than 4: (E - 1)/(E + 1), E = exp(2 num / den), odd in num.

    The absolute error is at most half the relative one of E, whose exponent is off by 2^-(places + 8) and which has that many bits.
    Where 2/(E + 1) is below a unit the result is a unit less than 1 or 1.
    """
    if num < 0:
        return -tanh(-num, den, places)
    if num // den > places:  # 2 exp(-2 places) is less than a unit
        return 1 << places
    man = _divide(2 * num, den, places + 8)[0]
    if not man:
        return 0
    value, exp = _exp(man, -places - 8, places + 16)
    unit = -places - 16
    e = _at((value, exp), unit)
    return ((e - (1 << -unit)) << places) // (e + (1 << -unit))


# ---- decimals and hex, for people ------------------------------------------------------------------------------------


def decimal(enclosure: Enclosure, digits: int) -> str:
    """An enclosure as `digits` significant decimal digits, the last within 1 of the truth, or one of the three specials.

    The enclosure must be narrower than 10^-digits / 8 relatively. Powers of ten are taken exactly by integers, or, for
    exponents beyond 2^16, by mpmath with 64 + 2 log2(exponent) guard bits.
    """
    if isinstance(enclosure, float):
        return special_name(enclosure)
    man, exp = enclosure[0] + enclosure[1], enclosure[2] - 1
    if man == 0:
        return "0." + "0" * (digits - 1) + "e+0" if digits > 1 else "0e+0"
    power = _decimal_exponent(abs(man), exp)
    number = _times_power_of_ten(abs(man), exp, digits - 1 - power, 4 * digits)
    while number >= 10**digits:
        power += 1
        number = _times_power_of_ten(abs(man), exp, digits - 1 - power, 4 * digits)
    text = str(number)
    point = f".{text[1:]}" if digits > 1 else ""
    return f"{'-' if man < 0 else ''}{text[0]}{point}e{power:+d}"


def _decimal_exponent(man: int, exp: int) -> int:
    """floor(log10(man 2^exp)), or 1 less."""
    size = man.bit_length()
    top = log2(man >> (size - 53)) + (size - 53) if size > 53 else log2(man)
    if abs(exp) < 1 << 30:  # top + exp is off by less than 2^-20
        return floor((top + exp) * log10(2) - 1e-5)
    guard = 64 + abs(exp).bit_length()
    log_2, log_10 = _fixed_log(2, guard), _fixed_log(10, guard)
    return ((int(top * 1024) - 1 + (exp << 10)) * log_2 // (log_10 << 10)) - (exp > 0)


def _times_power_of_ten(man: int, exp: int, power: int, bits: int) -> int:
    """man * 2^exp * 10^power, a number of at most that many bits, to the nearest integer; beyond 2^16, to 2^-60 more."""
    if abs(exp) + 4 * abs(power) < 1 << 16:
        num, den = (man * 10**power, 1) if power >= 0 else (man, 10**-power)
        return (_divide(num, den, exp + 1)[0] + 1) >> 1
    places = man.bit_length() + bits + 64 + abs(power).bit_length()
    logarithm = exp * _fixed_log(2, places) + power * _fixed_log(10, places)  # of 2^exp 10^power, a number of `bits` bits
    factor = _exp(logarithm, -places, man.bit_length() + bits + 64)
    return (_at((man * factor[0], factor[1]), -1) + 1) >> 1


def hexadecimal(enclosure: Enclosure) -> str:
    """The exact midpoint of an enclosure as a hex float of any length, or one of the three specials."""
    if isinstance(enclosure, float):
        return special_name(enclosure)
    man, exp = enclosure[0] + enclosure[1], enclosure[2] - 1
    if man == 0:
        return "0x0p+0"
    size = abs(man)
    exp += size.bit_length() - 1
    rest = size - (1 << (size.bit_length() - 1))
    digits = -(-(size.bit_length() - 1) // 4)
    text = f"{rest << (4 * digits - size.bit_length() + 1):0{digits}x}".rstrip("0") if digits else ""
    return f"{'-' if man < 0 else ''}0x1{'.' + text if text else ''}p{exp:+d}"


def special_name(value: float) -> str:
    """ "NaN", "Infinity" or "-Infinity"."""
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


# ---- tables for truth.dd -----------------------------------------------------------------------------------------------


def log_of_two(bits: int) -> int:
    """log 2 in units of 2^-bits, off by less than 2."""
    return _fixed_log(2, bits)


def roots_of_two(count: int, bits: int) -> list[int]:
    """2^(j/count), j = 0..count-1, in units of 2^-bits, off by less than 2^10; count: a power of two.

    Square roots of 2 down to 2^(1/count), by integers, and a product for every j: each loses less than a unit in 2^-(bits + 32).
    """
    unit = bits + 32
    roots = [2 << unit]
    while 1 << len(roots) <= count:
        roots.append(isqrt(roots[-1] << unit))
    table = [1 << unit]
    for root in reversed(roots[1:]):
        table += [(value * root) >> unit for value in table]
    return [value >> 32 for value in table]


# ---- certified exp and log for the figures ---------------------------------------------------------------------------


def exp_enclosure(man: int, exp: int, bits: int) -> tuple[int, int, int]:
    """exp(man 2^exp) within relative 2^-bits: (lo, hi, exp)."""
    ball = _ball(_exp(man, exp, bits + GUARD), 1, bits + GUARD)
    return ball.lo, ball.hi, ball.exp


def log_enclosure(num: int, den: int, bits: int) -> tuple[int, int, int]:
    """log(num / den) for positive integers, within relative 2^-bits of itself: (lo, hi, exp); (0, 0, 0) for log 1.

    The quotient is taken to as many further bits as it has leading zeros beside 1, so that log keeps its relative
    accuracy there (the condition of log at 1 + t is below 2/t for t small, and 1/log 2 elsewhere).
    """
    if num == den:
        return 0, 0, 0
    near = max(0, den.bit_length() - abs(num - den).bit_length()) + 2
    precision = bits + GUARD
    shift = precision + near + max(0, den.bit_length() - num.bit_length()) + 4
    _, value, unit, _ = libmp.mpf_log(libmp.from_man_exp((num << shift) // den, -shift), precision, "n")
    ball = _ball((abs(int(value)), unit), 1 if num > den else -1, precision)
    return ball.lo, ball.hi, ball.exp
