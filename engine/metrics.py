"""Outcome figures from (output, truth): every name of DESIGN 4 but error_over_bound.

All arithmetic is on integers. An error is an interval in units of 2^-W ulp; a figure is reported once both ends of its
interval round to the same number (40 significant bits for maxima and sum_defect, 20 for means, per-row figures and the
figures in `worst`), otherwise the truth behind it is refined. Sums of errors can be rational though the errors are not
(the errors of a softmax row of one sign add up to sum c - 1), and then lie exactly between two figures: a value proven
to be within 2^-256 of such a midpoint counts as the midpoint, ties to even. So a figure does not depend on the tier, the
split or the processor. Beyond binary64 a figure is infinite, below it 0.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from heapq import nlargest
from itertools import groupby
from math import inf, isqrt, ldexp

import numpy as np

from engine import formats
from engine.bounds import Tolerance
from engine.errors import InvalidProblem, Undecided
from engine.model import Array, Metrics, RowFigure, Worst
from engine.truth import MAX_PRECISION, Enclosure, StandIn, Truth, decimal, exp_enclosure, hull, log_enclosure

MAXIMUM_BITS = 40
MEAN_BITS = 20
ULP_STEP = -20
"""log2 of the finest step of an ULP mean, in ulps."""
TIE_BITS = 256
"""How close to a midpoint of two figures, in bits of itself, a value counts as that midpoint."""
SLACK = 24
"""W = bits - precision + SLACK: fine enough to keep the sticky stand-in of the truth (its unit is GUARD + 6 below)."""
BIN_FLOOR = -10

Interval = tuple[int, int]
Figure = Callable[[int, int, bool], Interval | None]
"""figure(index, bits, loose) of one element; None: infinite, or beyond binary64."""


# ---- rounding a figure -----------------------------------------------------------------------------------------------


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
    return _scale(quotient if num > 0 else -quotient, unit)


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


def _scale(man: int, exp: int) -> float:
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
    return _scale(_BINS[j], top - 52) if j < 64 else _scale(1, top + 1)


# ---- the elements ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kinds:
    """What every element is, as arrays over the flat output."""

    got: Array
    got_nan: Array
    want: Array
    want_nan: Array
    truth_infinite: Array
    truth_zero: Array
    mismatch: Array
    compared: Array
    normal: Array


class Measurement:
    """One output against its truth; figures are computed on first use.

    output: array of truth.fmt, shape truth.shape. Raises InvalidProblem for another dtype or shape.
    """

    def __init__(self, output: Array, truth: Truth) -> None:
        if output.dtype != truth.fmt.dtype or output.shape != truth.shape:
            raise InvalidProblem(f"output is {output.dtype} {list(output.shape)}; it must be {truth.fmt.name} {list(truth.shape)}")
        self.truth = truth
        self.fmt = truth.fmt
        self.output = np.ascontiguousarray(output)
        self.kinds = self._kinds()
        self._got: list[int] = self.kinds.got.tolist()
        self.compared: list[int] = np.flatnonzero(self.kinds.compared).tolist()
        self._base: dict[int, Interval] = {}
        loose = {index: self.signed_ulp(index, truth.bits, True) for index in self.compared}
        decisive = {index: self.signed_ulp(index, truth.bits) for index in self.compared if self._delicate(index)}
        self._base, self._loose = loose | decisive, {index: loose[index] for index in decisive}

    def _kinds(self) -> _Kinds:
        fmt, truth = self.fmt, self.truth
        resolved = [truth.resolved(row) for row in range(truth.rows)]
        found = [o for row in resolved for o in row.ordinals]
        want_nan = np.array([o is None for o in found], dtype=bool)
        want = np.array([0 if o is None else o for o in found], dtype=np.int64)
        special = np.array([isinstance(e, float) for row in resolved for e in row.enclosures], dtype=bool)
        zero = np.array([top is None for row in resolved for top in row.tops], dtype=bool) & ~special
        got = formats.ordinals(self.output, fmt).reshape(-1)
        got_nan = np.isnan(formats.widen(self.output.reshape(-1)))
        got_infinite = (np.abs(got) == fmt.infinity_ordinal) & ~got_nan
        truth_infinite = special & ~want_nan
        mismatch = (got_nan != want_nan) | (~got_nan & ~want_nan & (got != want) & (truth_infinite | got_infinite))
        return _Kinds(
            np.where(got_nan, 0, got), got_nan, want, want_nan, truth_infinite, zero, mismatch,
            ~(special | mismatch), (np.abs(want) >= fmt.normal_ordinal) & ~want_nan,
        )  # fmt: skip

    def _ulp_exponent(self, index: int) -> int:
        row, column = divmod(index, self.truth.width)
        top = self.truth.resolved(row).tops[column]
        return formats.ulp_exponent(self.fmt.emin if top is None else top, self.fmt)

    def _delicate(self, index: int) -> bool:
        """Whether the loose enclosure of the error may differ from the decisive one."""
        e = self._enclosure(index, self.truth.bits)
        return isinstance(e, StandIn) or _top(e) < self._ulp_exponent(index) - self._width(self.truth.bits) + 2

    def _enclosure(self, index: int, bits: int) -> tuple[int, int, int]:
        row, column = divmod(index, self.truth.width)
        e = self.truth.resolved(row).enclosures[column] if bits <= self.truth.bits else self.truth.row(row, bits)[column]
        assert not isinstance(e, float)
        return e

    def _width(self, bits: int) -> int:
        return bits - self.fmt.precision + SLACK

    def _truth(self, index: int, bits: int, unit: int, loose: bool) -> Interval:
        """T in units of 2^unit. Unless loose, a T below one unit is replaced by a stand-in of its sign, as in truth.exact."""
        e = self._enclosure(index, bits)
        lo, hi, exp = hull(e) if loose else e
        t_lo, t_hi = outward(lo, hi, exp, unit)
        if lo > 0 and not t_lo and not loose:
            return 1, max(t_hi, 2)
        return (min(t_lo, -2), -1) if hi < 0 and not t_hi and not loose else (t_lo, t_hi)

    def signed_ulp(self, index: int, bits: int, loose: bool = False) -> Interval:
        """(c - T) / ulp(T) in units of 2^-W; W = bits - precision + SLACK.

        Loose: a true enclosure, for sums and for comparing elements. Otherwise one that decides as the true value does.
        """
        if bits == self.truth.bits and index in self._base:
            return self._loose.get(index, self._base[index]) if loose else self._base[index]
        got = self._got[index]
        if abs(got) == self.fmt.infinity_ordinal:
            return 0, 0
        unit = self._ulp_exponent(index) - self._width(bits)
        man, exp = formats.exact(got, self.fmt)
        c_lo, c_hi = outward(man, man, exp, unit)
        t_lo, t_hi = self._truth(index, bits, unit, loose)
        return c_lo - t_hi, c_hi - t_lo

    def _ulp(self, index: int, bits: int, loose: bool) -> Interval:
        return _absolute(*self.signed_ulp(index, bits, loose))

    def _relative(self, index: int, bits: int, loose: bool) -> Interval | None:
        """|c - T| / |T| in units of 2^-(W + precision); None where it is infinite or beyond binary64."""
        got, e = self._got[index], self._enclosure(index, bits)
        lo, hi, exp = hull(e) if loose else e
        places = self._width(bits) + self.fmt.precision
        if lo == hi == 0:
            return None if got else (0, 0)
        if got == 0:
            return 1 << places, 1 << places
        if abs(got) == self.fmt.infinity_ordinal:
            return 0, 0
        if lo < 0:
            lo, hi, got = -hi, -lo, -got
        man, unit = formats.exact(got, self.fmt)
        if man.bit_length() + unit - hi.bit_length() - exp > 1100:
            return None
        num, scale = (man << (unit - exp), 0) if unit >= exp else (man, exp - unit)
        near, far = _absolute(num - (hi << scale), num - (lo << scale))
        return (near << places) // (hi << scale), -((-far << places) // (lo << scale))

    def absolute_error(self, index: int, bits: int, loose: bool) -> Interval:
        """|c - T| in units of 2^-W times the smallest subnormal."""
        shift = self._ulp_exponent(index) - self.subnormal_exponent
        lo, hi = self._ulp(index, bits, loose)
        return lo << shift, hi << shift

    @property
    def subnormal_exponent(self) -> int:
        """log2 of the smallest subnormal."""
        return self.fmt.emin - self.fmt.precision + 1

    @property
    def _ulp_unit(self) -> int:
        return -self._width(self.truth.bits)

    @property
    def _relative_unit(self) -> int:
        return self._ulp_unit - self.fmt.precision

    # ---- maxima ----

    def _maximum(self, indices: Sequence[int], figure: Figure, exp: int) -> tuple[float, int]:
        """The largest figure fixed to 40 bits, and the first index that has it; `exp` is its unit at the base precision."""
        found = [(index, figure(index, self.truth.bits, True)) for index in indices]
        best = max(inf if interval is None else interval[0] for _, interval in found)
        # all that may round to the same 40 bits as the largest, or to infinity as it does
        huge = 1 << (1023 - exp)
        least = huge if best >= huge else int(best) - (int(best) >> (MAXIMUM_BITS - 1))
        fixed = [(self._fixed(index, figure, exp), index) for index, interval in found if interval is None or interval[1] >= least]
        top = max(value for value, _ in fixed)
        return top, next(index for value, index in fixed if value == top)

    def _fixed(self, index: int, figure: Figure, exp: int, digits: int = MAXIMUM_BITS) -> float:
        """One element's figure to `digits` significant bits, refining its truth until both ends agree."""
        bits = self.truth.bits
        while (interval := figure(index, bits, True)) is not None:
            if (fixed := fix(*interval, 1, exp, digits)) is not None:
                return fixed
            bits, grown = _more(bits, "an error")
            exp -= grown
        return inf

    def max_ulp(self) -> tuple[float, int]:
        """The largest ULP error and its flat index."""
        return self._maximum(self.compared, self._ulp, self._ulp_unit)

    def ranked(self, count: int) -> list[int]:
        """Flat indices of the `count` largest ULP errors, equal to 40 bits being a tie that the first index wins; no exact ones."""
        bounds = [(i, *self._ulp(i, self.truth.bits, True)) for i in self.compared]
        lows = nlargest(count, (lo for _, lo, _ in bounds))
        least = lows[-1] - (lows[-1] >> (MAXIMUM_BITS - 1)) if len(lows) == count > 0 else 0
        fixed = [(-self._fixed(i, self._ulp, self._ulp_unit), i) for i, _, hi in bounds if hi and hi >= least]
        return [i for _, i in sorted(fixed)[:count]]

    def max_rel(self, normal: bool) -> tuple[float, int] | None:
        """The largest relative error and its flat index, over all compared elements or over those with a normal R."""
        chosen = [i for i in self.compared if not normal or self.kinds.normal[i]]
        return self._maximum(chosen, self._relative, self._relative_unit) if chosen else None

    def max_abs(self) -> float:
        """The largest absolute error."""
        return self._maximum(self.compared, self.absolute_error, self.subnormal_exponent + self._ulp_unit)[0]

    def ulp(self, index: int) -> float:
        """One element's ULP error to 20 significant bits."""
        return self._fixed(index, self._ulp, self._ulp_unit, MEAN_BITS)

    def rel(self, index: int) -> float:
        """One element's relative error to 20 significant bits."""
        return self._fixed(index, self._relative, self._relative_unit, MEAN_BITS)

    # ---- means and percentiles ----

    def _refined(self, figure: Callable[[list[Interval], int], float | None], loose: bool) -> float:
        """figure(signed ULP errors of all compared elements, their unit) at the first precision that decides it."""
        bits = self.truth.bits
        while (value := figure([self.signed_ulp(i, bits, loose) for i in self.compared], -self._width(bits))) is None:
            bits, _ = _more(bits, "a mean")
        return value

    def mean_ulp(self) -> float:
        """The mean ULP error."""
        return self._refined(lambda found, exp: _mean([_absolute(lo, hi) for lo, hi in found], exp), loose=True)

    def bias_ulp(self) -> float:
        """The signed mean ULP error."""
        return self._refined(_mean, loose=True)

    def percentile_ulp(self, percent: int) -> float:
        """Nearest-rank percentile of the ULP errors, as the upper edge of its bin."""
        rank = -(-percent * len(self.compared) // 100) - 1

        def edge(found: list[Interval], exp: int) -> float | None:
            sizes = [_absolute(lo, hi) for lo, hi in found]
            # hi > 0 only where c != T (an enclosure that is not a point holds no number of a format): then the bin is not 0
            low = sorted(max(lo, 1) if hi else 0 for lo, hi in sizes)[rank]
            upper = bin_edge(sorted(hi for _, hi in sizes)[rank], exp)
            return upper if bin_edge(low, exp) == upper else None

        return self._refined(edge, loose=False)

    # ---- tolerances ----

    def beyond(self, tolerances: Sequence[Tolerance]) -> list[int]:
        """Flat indices of the compared elements whose error exceeds their row's tolerance, one tolerance a row."""
        return [i for i in self.compared if self._exceeds(i, tolerances[i // self.truth.width])]

    def _exceeds(self, index: int, tolerance: Tolerance) -> bool:
        if tolerance.normal_only and not self.kinds.normal[index]:
            return False
        bits = self.truth.bits
        while (verdict := self._compare(index, tolerance, bits)) is None:
            bits, _ = _more(bits, "a comparison with the bound")
        return verdict

    def _compare(self, index: int, tolerance: Tolerance, bits: int) -> bool | None:
        """Whether |c - T| > absolute + relative |T|, all in units of 2^-W ulp; None where the enclosure does not tell."""
        unit = self._ulp_exponent(index) - self._width(bits)
        t_lo, t_hi = _absolute(*self._truth(index, bits, unit, False))
        e_lo, e_hi = self._ulp(index, bits, False)
        a, r = tolerance.absolute, tolerance.relative
        num, den = _units(a.numerator, a.denominator, unit)
        scale = den * r.denominator
        base = num * r.denominator
        if e_hi * scale <= base + t_lo * r.numerator * den:
            return False
        return True if e_lo * scale > base + t_hi * r.numerator * den else None

    # ---- rows ----

    def row_slice(self, row: int) -> range:
        """Flat indices of one row of the output."""
        return range(row * self.truth.width, (row + 1) * self.truth.width)


def _mean(intervals: Sequence[Interval], exp: int) -> float | None:
    low, high = sum(lo for lo, _ in intervals), sum(hi for _, hi in intervals)
    return fix(low, high, len(intervals), exp, MEAN_BITS, ULP_STEP)


def _units(num: int, den: int, unit: int) -> tuple[int, int]:
    """num / den in units of 2^unit, as a quotient of integers."""
    return (num, den << unit) if unit >= 0 else (num << -unit, den)


def _top(e: tuple[int, int, int]) -> int:
    return min(abs(e[0]), abs(e[1])).bit_length() + e[2]


def _absolute(lo: int, hi: int) -> Interval:
    if lo >= 0:
        return lo, hi
    return (-hi, -lo) if hi <= 0 else (0, max(-lo, hi))


def outward(lo: int, hi: int, exp: int, unit: int) -> Interval:
    """[lo, hi] * 2^exp in units of 2^unit, rounded outward; shifts are cut off where nothing but the sign is left."""
    shift = exp - unit
    if shift >= 0:
        return lo << shift, hi << shift
    shift = min(-shift, max(abs(lo), abs(hi)).bit_length() + 1)
    return lo >> shift, -(-hi >> shift)


def _more(bits: int, what: str) -> tuple[int, int]:
    """Twice the precision, and by how much it grew; Undecided past the cap."""
    if bits >= MAX_PRECISION:
        raise Undecided(f"{what} is undecided at {bits} bits: it lies too close to a boundary of its rounding")
    finer = min(2 * bits, MAX_PRECISION)
    return finer, finer - bits


# ---- figures of a row ------------------------------------------------------------------------------------------------

Term = tuple[int, int, int]
"""A non-negative term of a sum: lo * 2^exp <= value <= hi * 2^exp."""


def _sum(terms: Sequence[Term], bits: int) -> Term:
    """Sum of non-negative terms in units of 2^-bits of the largest, rounded outward."""
    used = [t for t in terms if t[1]]
    if not used:
        return 0, 0, 0
    unit = max(hi.bit_length() + exp for _, hi, exp in used) - bits - len(used).bit_length()
    ends = [outward(lo, hi, exp, unit) for lo, hi, exp in used]
    return sum(lo for lo, _ in ends), sum(hi for _, hi in ends), unit


def _excess_log(size: int, places: int) -> tuple[int, int]:
    """d - log1p(d) for |d| < 2^-8, d = size * 2^-places: (man, exp), off by less than 2^-56 relatively.

    d^2 (1/2 - d/3 + d^2/4 - ...): nine terms leave out less than d^2 2^-73; the bracket is held in units of 2^-64.
    """
    return _square_series(size, places, [(-1) ** k * (1 << 64) // (k + 2) for k in range(9)])


def _excess_exp(size: int, places: int) -> tuple[int, int]:
    """expm1(w) - w for |w| < 2^-8: w^2 (1/2! + w/3! + w^2/4! + ...), as above."""
    coefficients, factorial = [], 1
    for k in range(9):
        factorial *= k + 2 if k else 2
        coefficients.append((1 << 64) // factorial)
    return _square_series(size, places, coefficients)


def _square_series(size: int, places: int, coefficients: Sequence[int]) -> tuple[int, int]:
    x = size << (64 - places) if places <= 64 else size >> (places - 64)
    bracket = 0
    for coefficient in reversed(coefficients):
        bracket = ((bracket * x) >> 64) + coefficient
    return size * size * bracket, -2 * places - 64


Series = Callable[[int, int], tuple[int, int]]
Direct = Callable[[int, int, int], Term]


def _convex(lo: int, hi: int, places: int, bits: int, series: Series | None, direct: Direct) -> Term:
    """Enclosure of a convex f with f(0) = f'(0) = 0 over [lo, hi] * 2^-places.

    By `series` near 0, where one is given (it is good to 2^-50), else by `direct` at `bits`.
    """
    near, away = (lo, hi) if lo > 0 else (hi, lo) if hi < 0 else (0, max(lo, hi, key=abs))
    low, high = (_at_point(size, places, bits, series, direct) for size in (near, away))
    unit = min(low[2], high[2])
    return max(low[0], 0) << (low[2] - unit), high[1] << (high[2] - unit), unit


def _at_point(size: int, places: int, bits: int, series: Series | None, direct: Direct) -> Term:
    if size == 0:
        return 0, 0, 0
    if series is None or abs(size) >> max(0, places - 8):
        return direct(size, places, bits)
    man, exp = series(size, places)
    error = (man >> 50) + 1
    return man - error, man + error, exp


def _direct_log(size: int, places: int, bits: int) -> Term:
    """d - log1p(d), d > -1, by subtraction: 2 log2(1/d) + 2 of the bits cancel."""
    lo, hi, exp = log_enclosure((1 << places) + size, 1 << places, bits)
    unit = min(exp, -places)
    d = size << (-places - unit)
    return d - (hi << (exp - unit)), d - (lo << (exp - unit)), unit


def _direct_exp(size: int, places: int, bits: int) -> Term:
    """expm1(w) - w by subtraction."""
    lo, hi, exp = exp_enclosure(size, -places, bits)
    unit = max(hi.bit_length() + exp, abs(size).bit_length() - places, 1) - bits - 32
    (e_lo, e_hi), (w_lo, w_hi), (one_lo, one_hi) = (
        outward(*end, unit) for end in ((lo, hi, exp), (size, size, -places), (1, 1, 0))
    )
    return e_lo - one_hi - w_hi, e_hi - one_lo - w_lo, unit


class _Rows:
    """Per-row figures of softmax and log_softmax: kl, total_variation, backward_error."""

    def __init__(self, measured: Measurement) -> None:
        self.m = measured
        self.truth = measured.truth
        self.log = measured.truth.op.name == "log_softmax"
        self.probabilities = measured.truth.probabilities

    def figure(self, row_term: Callable[[int, int], Term | float]) -> RowFigure | None:
        """Worst, mean and worst row of row_term(row, bits), an enclosure or inf, over the rows that have a truth."""
        m, truth = self.m, self.truth
        if m.kinds.got_nan.any():
            return None
        rows = [row for row in range(truth.rows) if not m.kinds.want_nan[row * truth.width]]
        if not rows:
            return None
        terms = {row: self._term(row, row_term) for row in rows}
        fixed = {row: _fix_term(term) for row, term in terms.items()}
        worst = max(v for v in fixed.values() if v is not None)
        mean = self._mean(terms, row_term)
        return RowFigure(worst, mean, next(row for row, v in fixed.items() if v == worst))

    def _term(self, row: int, row_term: Callable[[int, int], Term | float]) -> Term | float:
        bits = self.truth.bits
        while _fix_term(term := row_term(row, bits)) is None:
            bits, _ = _more(bits, "a row's figure")
        return term

    def _mean(self, terms: dict[int, Term | float], row_term: Callable[[int, int], Term | float]) -> float:
        bits = self.truth.bits
        while True:
            finite = [t for t in terms.values() if not isinstance(t, float)]
            if len(finite) < len(terms):
                return inf
            lo, hi, exp = _sum(finite, bits)
            if (mean := fix(lo, hi, len(terms), exp, MEAN_BITS)) is not None:
                return mean
            bits, _ = _more(bits, "a mean over rows")
            terms = {row: row_term(row, bits) for row in terms}

    def _pairs(self, row: int, bits: int) -> Iterator[tuple[int, Enclosure, Enclosure]]:
        """(flat index, T, p) over a row."""
        truths = [e if isinstance(e, float) else hull(e) for e in self.truth.row(row, bits)]
        return zip(self.m.row_slice(row), truths, self.probabilities.row(row, bits) if self.log else truths, strict=True)

    def _infinite(self, row: int) -> bool:
        """Whether an output of the row is infinite, the exact -inf of a masked log-probability apart."""
        k, part = self.m.kinds, slice(row * self.truth.width, (row + 1) * self.truth.width)
        infinite = np.abs(k.got[part]) == self.m.fmt.infinity_ordinal
        return bool((infinite & ~(k.truth_infinite[part] & (k.got[part] == k.want[part]))).any())

    def kl(self, row: int, bits: int) -> Term | float:
        """Generalised Kullback-Leibler divergence of the truth from the output over one row, nats."""
        if self._infinite(row):
            return inf
        terms = []
        for index, t, p in self._pairs(row, bits):
            term = self._log_term(index, t, p, bits) if self.log else self._softmax_term(index, t, bits)
            if isinstance(term, float):
                return term
            terms.append(term)
        return _sum(terms, bits)

    def _softmax_term(self, index: int, t: Enclosure, bits: int) -> Term | float:
        assert not isinstance(t, float)
        if not self.m.kinds.want[index]:
            return 0, 0, 0
        if self.m._got[index] <= 0:
            return inf
        lo, hi, exp = t
        man, unit = formats.exact(self.m._got[index], self.m.fmt)
        places = bits + 64
        shift = unit - exp + places
        one = 1 << places
        num, scale = (man << shift, 0) if shift >= 0 else (man, -shift)
        series = _excess_log if bits == self.truth.bits else None
        f = _convex(num // (hi << scale) - one, -(-num // (lo << scale)) - one, places, bits, series, _direct_log)
        return lo * f[0], hi * f[1], exp + f[2]

    def _log_term(self, index: int, t: Enclosure, p: Enclosure, bits: int) -> Term:
        if isinstance(t, float):
            return 0, 0, 0
        assert not isinstance(p, float)
        p = hull(p)
        man, exp = formats.exact(self.m._got[index], self.m.fmt)
        unit = min(max(min(exp, t[2]), self.m._ulp_exponent(index) - 2 * bits), 0)
        (c_lo, c_hi), (t_lo, t_hi) = outward(man, man, exp, unit), outward(*t, unit)
        w = (c_lo - t_hi, c_hi - t_lo, unit)
        if min(abs(w[0]), abs(w[1])) >> (8 - unit):
            return _far_log_term((man, exp), w, p, bits)
        series = _excess_exp if bits == self.truth.bits else None
        f = _convex(w[0], w[1], -unit, bits, series, _direct_exp)
        return p[0] * f[0], p[1] * f[1], p[2] + f[2]

    def total_variation(self, row: int, bits: int) -> Term | float:
        """sum |c - T| / 2 over one row."""
        if self._infinite(row):
            return inf
        errors = [self.m.absolute_error(index, bits, True) for index in self.m.row_slice(row)]
        unit = self.m.subnormal_exponent - self.m._width(bits) - 1
        return sum(lo for lo, _ in errors), sum(hi for _, hi in errors), unit

    def backward_error(self, row: int, bits: int) -> Term | float:
        """Half the spread of log(c / T) over the elements of one row whose R is normal."""
        m = self.m
        chosen = [i for i in m.row_slice(row) if m.kinds.normal[i]]
        if any(m._got[i] <= 0 or m._got[i] == m.fmt.infinity_ordinal for i in chosen):
            return inf
        pairs = {(m._got[i], hull(m._enclosure(i, bits))) for i in chosen}
        if len(pairs) < 2:
            return 0, 0, 0
        ratios = [_quotient(formats.exact(got, m.fmt), t, bits + 64) for got, t in pairs]
        most = (max(lo for lo, _ in ratios), max(hi for _, hi in ratios))
        least = (min(lo for lo, _ in ratios), min(hi for _, hi in ratios))
        low = log_enclosure(most[0], least[1], bits) if most[0] > least[1] else (0, 0, 0)
        high = log_enclosure(most[1], least[0], bits)
        unit = min(low[2], high[2])
        return low[0] << (low[2] - unit), high[1] << (high[2] - unit), unit - 1


def _far_log_term(c: tuple[int, int], w: tuple[int, int, int], p: tuple[int, int, int], bits: int) -> Term:
    """p (expm1(w) - w) as exp(c) - p (1 + w), where |w| >= 2^8 and exp(w) itself may be known to no digit."""
    corners = [a * b for a in p[:2] for b in w[:2]]
    parts = [exp_enclosure(*c, bits), (-p[1], -p[0], p[2]), (-max(corners), -min(corners), p[2] + w[2])]
    unit = max(max(abs(lo), abs(hi)).bit_length() + exp for lo, hi, exp in parts) - bits - 32
    ends = [outward(*part, unit) for part in parts]
    return max(0, sum(lo for lo, _ in ends)), sum(hi for _, hi in ends), unit


def _quotient(value: tuple[int, int], t: tuple[int, int, int], places: int) -> Interval:
    """Bounds of value / t in units of 2^-places, both positive."""
    (man, unit), (lo, hi, exp) = value, t
    shift = unit - exp + places
    num, scale = (man << shift, 0) if shift >= 0 else (man, -shift)
    return num // (hi << scale), -(-num // (lo << scale))


def _fix_term(term: Term | float) -> float | None:
    """A row's figure to 20 bits, None where its enclosure does not decide it."""
    return term if isinstance(term, float) else fix(term[0], term[1], 1, term[2], MEAN_BITS)


# ---- sums of the output ----------------------------------------------------------------------------------------------


def row_sum(ordinals: Sequence[int], fmt: formats.Format) -> int:
    """Exact sum of finite numbers given as ordinals, in units of the smallest subnormal."""
    unit = fmt.emin - fmt.precision + 1
    return sum(man << (exp - unit) for man, exp in (formats.exact(o, fmt) for o in ordinals))


def _sum_defect(m: Measurement) -> float | None:
    """abs(sum c - 1), abs(sum exp c - 1) or abs(sum c), worst row, to 40 bits."""
    name, fmt = m.truth.op.name, m.fmt
    if name not in ("softmax", "log_softmax", "cross_entropy_grad") or m.kinds.got_nan.any():
        return None
    limit = fmt.infinity_ordinal
    infinite = [o for o in m._got if abs(o) == limit and not (name == "log_softmax" and o == -limit)]
    if infinite:
        return None if name == "cross_entropy_grad" else inf
    rows = [[m._got[i] for i in m.row_slice(row)] for row in range(m.truth.rows)]
    if name == "log_softmax":
        return max(_exp_sum_defect(row, fmt) for row in rows)
    unit = fmt.emin - fmt.precision + 1
    one = 1 << -unit if name == "softmax" else 0
    return max(significant(abs(row_sum(row, fmt) - one), 1, unit, MAXIMUM_BITS) for row in rows)


def _exp_sum_defect(row: Sequence[int], fmt: formats.Format) -> float:
    """abs(sum exp(c) - 1) of one row to 40 bits; entries of -inf contribute 0, a 0 contributes exactly 1."""
    finite = [formats.exact(o, fmt) for o in row if o != -fmt.infinity_ordinal]
    whole = sum(man == 0 for man, _ in finite) - 1
    others = [(man, exp) for man, exp in finite if man]
    bits = 128
    while others:
        lo, hi, exp = _sum([exp_enclosure(man, unit, bits) for man, unit in others], bits)
        if whole:
            unit = max(exp, -bits)
            lo, hi = (a + b for a, b in zip(outward(lo, hi, exp, unit), outward(whole, whole, 0, unit), strict=True))
            (lo, hi), exp = _absolute(lo, hi), unit
        if (defect := fix(lo, hi, 1, exp, MAXIMUM_BITS)) is not None:
            return defect
        bits, _ = _more(bits, "the sum of exp(c)")
    return float(abs(whole))


# ---- everything together ---------------------------------------------------------------------------------------------


def measure(m: Measurement, ranks: bool = False) -> Metrics:
    """Every figure of DESIGN 4 of a measurement; the step counts, which only a built-in variant has, are left None."""
    k, fmt = m.kinds, m.fmt
    got_size, want_size = np.abs(k.got), np.abs(k.want)
    zero = (k.got == 0) & ~k.got_nan
    truthful = ~(k.want_nan | k.truth_infinite | k.truth_zero)
    infinite = got_size == fmt.infinity_ordinal
    exact = ((k.got == k.want) & ~k.got_nan & ~k.want_nan) | (k.got_nan & k.want_nan)
    some = bool(m.compared)
    top, rel, rel_normal = (m.max_ulp(), m.max_rel(normal=False), m.max_rel(normal=True)) if some else (None, None, None)
    rows = _Rows(m) if m.truth.op.name in ("softmax", "log_softmax") else None
    softmax = rows if m.truth.op.name == "softmax" else None
    return Metrics(
        n=k.got.size,
        compared=len(m.compared),
        max_ulp=top and top[0],
        argmax_ulp=top and top[1],
        mean_ulp=m.mean_ulp() if some else None,
        p50_ulp=m.percentile_ulp(50) if some else None,
        p99_ulp=m.percentile_ulp(99) if some else None,
        max_ulp_ordinal=_max_ordinal(m) if some else None,
        correctly_rounded=int(exact.sum()),
        max_rel=rel and rel[0],
        argmax_rel=rel and rel[1],
        max_rel_normal=rel_normal and rel_normal[0],
        max_abs=m.max_abs() if some else None,
        bias_ulp=m.bias_ulp() if some else None,
        nan_count=int(k.got_nan.sum()),
        nan_unexpected=int((k.got_nan & ~k.want_nan).sum()),
        nan_missing=int((~k.got_nan & k.want_nan).sum()),
        inf_count=int(infinite.sum()),
        overflow_count=int((infinite & ~k.want_nan & (want_size < fmt.infinity_ordinal)).sum()),
        zero_count=int(zero.sum()),
        underflow_count=int((zero & truthful).sum()),
        underflow_premature=int((zero & truthful & (want_size > 0)).sum()),
        false_zero_count=int((zero & k.normal).sum()),
        subnormal_count=int(((got_size > 0) & (got_size < fmt.normal_ordinal)).sum()),
        special_mismatch=int(k.mismatch.sum()),
        sum_defect=_sum_defect(m),
        step_overflow_count=None,
        step_underflow_count=None,
        step_invalid_count=None,
        kl=rows.figure(rows.kl) if rows else None,
        total_variation=softmax.figure(softmax.total_variation) if softmax else None,
        argmax_preserved=_argmax_preserved(m) if rows else None,
        rank_inversions=_rank_inversions(m) if rows and ranks else None,
        backward_error=softmax.figure(softmax.backward_error) if softmax else None,
    )


def _max_ordinal(m: Measurement) -> int:
    want: list[int] = m.kinds.want.tolist()
    return max(abs(m._got[i] - want[i]) for i in m.compared)


def _ordered_rows(m: Measurement) -> Iterator[tuple[Array, Array, Array]]:
    """(logits, ordinals of the output, whether it is NaN) of every row that has a truth."""
    for row in range(m.truth.rows):
        part = slice(row * m.truth.width, (row + 1) * m.truth.width)
        if not m.kinds.want_nan[part].any():
            yield m.truth.logits(row), m.kinds.got[part], m.kinds.got_nan[part]


def _argmax_preserved(m: Measurement) -> int:
    """Rows where the output at a maximum of the logits is the output's maximum."""
    return sum(bool(not nan.any() and (got[x == x.max()] == got.max()).any()) for x, got, nan in _ordered_rows(m))


def _rank_inversions(m: Measurement) -> int:
    """Pairs of a row with x_i > x_j and c_i < c_j."""
    return sum(_inversions(x[~nan].tolist(), got[~nan].tolist()) for x, got, nan in _ordered_rows(m))


def _inversions(x: Sequence[float], got: Sequence[int]) -> int:
    count = 0
    below: list[int] = []
    pairs = sorted(zip(x, got, strict=True))
    for _, group in groupby(pairs, key=lambda pair: pair[0]):
        values = [value for _, value in group]
        count += sum(len(below) - bisect_right(below, value) for value in values)
        for value in values:
            insort(below, value)
    return count


def worst(m: Measurement, count: int) -> tuple[Worst, ...]:
    """The `count` worst elements: special mismatches first, in C order, then by ULP error; exact ones are left out."""
    mismatches = np.flatnonzero(m.kinds.mismatch)[:count].tolist()
    chosen = m.ranked(count - len(mismatches))
    return tuple(_worst(m, index, index in mismatches) for index in mismatches + chosen)


def _worst(m: Measurement, index: int, mismatch: bool) -> Worst:
    row, column = divmod(index, m.truth.width)
    logits = m.truth.op.output == "logits"
    return Worst(
        index=tuple(int(i) for i in np.unravel_index(index, m.truth.shape)) if m.truth.shape else (),
        logit=float(m.truth.logits(row)[column]) if logits else None,
        got=float(m.output.reshape(-1)[index]),
        expected=decimal(m.truth.resolved(row).enclosures[column], 17),
        ulp=None if mismatch else m.ulp(index),
        rel=None if mismatch else m.rel(index),
    )
