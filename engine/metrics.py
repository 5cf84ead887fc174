"""Outcome figures from a measurement: every name of model.Metrics (README, "Metrics").

Per-row figures and sums are enclosed like the errors behind them and rounded as engine.figures says.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from math import inf

import numpy as np

from engine import formats
from engine.figures import MAXIMUM_BITS, MEAN_BITS, Interval, absolute, fix, significant, times_power
from engine.measurement import Cells, Measurement, more
from engine.model import Array, Metrics, RowFigure, Worst
from engine.truth import MAX_PRECISION, Enclosure, Truth, decimal, exp_enclosure, hull, log_enclosure, outward

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
    ends = [_at_point(size, places, bits, series, direct) for size in (lo, hi)]
    unit = min(exp for _, _, exp in ends)
    lows, highs = ([end[k] << (end[2] - unit) for end in ends] for k in (0, 1))
    return 0 if lo <= 0 <= hi else max(0, min(lows)), max(highs), unit


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


class Rows:
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
        rows = [row for row in range(truth.rows) if not truth.untrue(row)]
        if not rows:
            return None
        terms = {row: self.term(row, row_term) for row in rows}
        fixed = {row: fix_term(term) for row, term in terms.items()}
        worst = max(v for v in fixed.values() if v is not None)
        mean = self._mean(terms, row_term)
        return RowFigure(worst, mean, next(row for row, v in fixed.items() if v == worst))

    def term(self, row: int, row_term: Callable[[int, int], Term | float]) -> Term | float:
        bits = self.truth.bits
        while fix_term(term := row_term(row, bits)) is None:
            bits, _ = more(bits, "a row's figure")
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
            bits, _ = more(bits, "a mean over rows")
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
        if self.m.got[index] <= 0:
            return inf
        value = formats.exact(self.m.got[index], self.m.fmt)
        places = bits + 64 + _smaller(value, t)
        low, high = _quotient(value, t, places)
        one = 1 << places
        series = _excess_log if bits == self.truth.bits else None
        f = _convex(low - one, high - one, places, bits, series, _direct_log)
        return t[0] * f[0], t[1] * f[1], t[2] + f[2]

    def _log_term(self, index: int, t: Enclosure, p: Enclosure, bits: int) -> Term:
        if isinstance(t, float):
            return 0, 0, 0
        assert not isinstance(p, float)
        p = hull(p)
        man, exp = formats.exact(self.m.got[index], self.m.fmt)
        unit = min(max(min(exp, t[2]), self.m.ulp_exponent(index) - 2 * bits), 0)
        (c_lo, c_hi), (t_lo, t_hi) = outward(man, man, exp, unit), outward(*t, unit)
        w = (c_lo - t_hi, c_hi - t_lo, unit)
        sizes = abs(w[0]), abs(w[1])
        if (max(sizes) if w[0] <= 0 <= w[1] else min(sizes)) >> (8 - unit):
            return _far_log_term((man, exp), w, p, bits)
        series = _excess_exp if bits == self.truth.bits else None
        f = _convex(w[0], w[1], -unit, bits, series, _direct_exp)
        return p[0] * f[0], p[1] * f[1], p[2] + f[2]

    def total_variation(self, row: int, bits: int) -> Term | float:
        """sum |c - T| / 2 over one row."""
        if self._infinite(row):
            return inf
        errors = [self.m.absolute_error(index, bits, True) for index in self.m.row_slice(row)]
        unit = self.m.subnormal_exponent - self.m.width(bits) - 1
        return sum(lo for lo, _ in errors), sum(hi for _, hi in errors), unit

    def backward_error(self, row: int, bits: int) -> Term | float:
        """Half the spread of log(c / T) over the elements of one row whose R is normal."""
        m = self.m
        chosen = [i for i in m.row_slice(row) if m.kinds.normal[i]]
        if any(m.got[i] <= 0 or m.got[i] == m.fmt.infinity_ordinal for i in chosen):
            return inf
        pairs = {(formats.exact(m.got[i], m.fmt), hull(m.enclosure(i, bits))) for i in chosen}
        if len(pairs) < 2:
            return 0, 0, 0
        places = bits + 64 + max(_smaller(*pair) for pair in pairs)
        ratios = [_quotient(*pair, places) for pair in pairs]
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


def _smaller(value: tuple[int, int], t: tuple[int, int, int]) -> int:
    """By how many binary places value is smaller than t, at least 0."""
    return max(0, t[1].bit_length() + t[2] - value[0].bit_length() - value[1])


def _quotient(value: tuple[int, int], t: tuple[int, int, int], places: int) -> Interval:
    """Bounds of value / t in units of 2^-places, both positive."""
    (man, unit), (lo, hi, exp) = value, t
    shift = unit - exp + places
    num, scale = (man << shift, 0) if shift >= 0 else (man, -shift)
    return num // (hi << scale), -(-num // (lo << scale))


def fix_term(term: Term | float) -> float | None:
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
    if name not in ("softmax", "log_softmax", "cross_entropy_grad") or m.kinds.got_nan.any() or not m.truth.sums:
        return None
    limit = fmt.infinity_ordinal
    infinite = [o for o in m.got if abs(o) == limit and not (name == "log_softmax" and o == -limit)]
    if infinite:
        return None if name == "cross_entropy_grad" else inf
    rows = [[m.got[i] for i in m.row_slice(row)] for row in range(m.truth.rows)]
    if name == "log_softmax":
        return max(exp_sum_defect(row, fmt) for row in rows)
    unit = fmt.emin - fmt.precision + 1
    one = 1 << -unit if name == "softmax" else 0
    return max(significant(abs(row_sum(row, fmt) - one), 1, unit, MAXIMUM_BITS) for row in rows)


def exp_sum_defect(row: Sequence[int], fmt: formats.Format) -> float:
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
            (lo, hi), exp = absolute(lo, hi), unit
        if (defect := fix(lo, hi, 1, exp, MAXIMUM_BITS)) is not None:
            return defect
        bits, _ = more(bits, "the sum of exp(c)")
    return float(abs(whole))


def sums_apart(m: Measurement) -> bool:
    """Whether a softmax row's sum_defect exceeds that of the correctly rounded row by 1/2."""
    truth, kinds, fmt = m.truth, m.kinds, m.fmt
    if truth.op.name != "softmax":
        return False
    one = 1 << (fmt.precision - 1 - fmt.emin)
    for row in range(truth.rows):
        part = slice(row * truth.width, (row + 1) * truth.width)
        if kinds.want_nan[part].any() or kinds.mismatch[part].any():
            continue
        got, want = (abs(row_sum(values[part].tolist(), fmt) - one) for values in (kinds.got, kinds.want))
        if 2 * (got - want) > one:
            return True
    return False


def status_of(unstable: bool, beyond: int, unjudged: int) -> str:
    """The word for an outcome: elements beyond the bound of the op's stable variant, and elements for which that has none."""
    if unstable:
        return "unstable"
    return "inaccurate" if beyond else "unbounded" if unjudged else "accurate"


# ---- everything together ---------------------------------------------------------------------------------------------


def counts(m: Measurement) -> dict[str, int]:
    """What is counted over the elements of a measurement."""
    k, fmt = m.kinds, m.fmt
    got_size, want_size = np.abs(k.got), np.abs(k.want)
    zero = (k.got == 0) & ~k.got_nan
    truthful = ~(k.want_nan | k.truth_infinite | k.truth_zero)
    infinite = got_size == fmt.infinity_ordinal
    found = {
        "n": k.got.size,
        "compared": len(m.compared),
        "correctly_rounded": m.rounded,
        "nan_count": k.got_nan.sum(),
        "nan_unexpected": (k.got_nan & ~k.want_nan).sum(),
        "nan_missing": (~k.got_nan & k.want_nan).sum(),
        "inf_count": infinite.sum(),
        "overflow_count": (infinite & ~k.want_nan & (want_size < fmt.infinity_ordinal)).sum(),
        "zero_count": zero.sum(),
        "underflow_count": (zero & truthful).sum(),
        "underflow_premature": (zero & truthful & (want_size > 0)).sum(),
        "false_zero_count": (zero & truthful & k.normal).sum(),
        "subnormal_count": ((got_size > 0) & (got_size < fmt.normal_ordinal)).sum(),
        "special_mismatch": m.specials,
    }
    return {name: int(count) for name, count in found.items()}


def measure(m: Measurement, ranks: bool = False) -> Metrics:
    """Every figure of a measurement; the step counts, which only a built-in variant has, are left None."""
    some = bool(m.compared)
    top, rel, rel_normal = (m.max_ulp(), m.max_rel(normal=False), m.max_rel(normal=True)) if some else (None, None, None)
    rows = Rows(m) if m.truth.op.name in ("softmax", "log_softmax") else None
    softmax = rows if m.truth.op.name == "softmax" else None
    return Metrics(
        **counts(m),
        max_ulp=top and top[0],
        argmax_ulp=top and top[1],
        mean_ulp=m.mean_ulp() if some else None,
        p50_ulp=m.percentile_ulp(50) if some else None,
        p99_ulp=m.percentile_ulp(99) if some else None,
        max_ulp_ordinal=_max_ordinal(m) if some else None,
        max_rel=rel and rel[0],
        argmax_rel=rel and rel[1],
        max_rel_normal=rel_normal and rel_normal[0],
        max_abs=m.max_abs() if some else None,
        bias_ulp=m.bias_ulp() if some else None,
        sum_defect=_sum_defect(m),
        step_overflow_count=None,
        step_underflow_count=None,
        step_invalid_count=None,
        kl=rows.figure(rows.kl) if rows else None,
        total_variation=softmax.figure(softmax.total_variation) if softmax else None,
        argmax_preserved=None if m.truth.op.output == "rows" else sum(preserved(m, row) for row in range(m.truth.rows)),
        rank_inversions=_rank_inversions(m) if rows and ranks else None,
        backward_error=softmax.figure(softmax.backward_error) if softmax and m.truth.sums else None,
        error_over_bound=m.error_over_bound() if some else None,
    )


def _max_ordinal(m: Measurement) -> int:
    want: list[int] = m.kinds.want.tolist()
    return max(abs(m.got[i] - want[i]) for i in m.compared)


def _ordered_rows(m: Measurement) -> Iterator[tuple[Array, Array, Array]]:
    """(logits, ordinals of the output, whether it is NaN) of every row that has a truth."""
    for row in range(m.truth.rows):
        part = slice(row * m.truth.width, (row + 1) * m.truth.width)
        if not m.truth.untrue(row):
            yield m.truth.logits(row), m.kinds.got[part], m.kinds.got_nan[part]


def preserved(m: Measurement, row: int) -> bool:
    """Whether the output at a maximum of the truth is the output's maximum; false for a row without truth or with a NaN."""
    part = slice(row * m.truth.width, (row + 1) * m.truth.width)
    if m.kinds.got_nan[part].any() or m.truth.untrue(row):
        return False
    got = m.kinds.got[part]
    if m.truth.op.name in ("softmax", "log_softmax"):
        x = m.truth.logits(row)
        return bool((got[x == x.max()] == got.max()).any())
    return any(got[column] == got.max() for column in _largest(m.truth, row))


def _largest(truth: Truth, row: int) -> list[int]:
    """The columns of a row's largest truth.

    Elements of equal logits (and targets, and gradients) share one enclosure, the same object, or are equal exact
    numbers; others are told apart, unless the cap does not part them.
    """
    bits = truth.bits
    while True:
        found = [e for e in truth.row(row, bits) if not isinstance(e, float)]
        unit = max(max(abs(lo), abs(hi)).bit_length() + exp for lo, hi, exp in found) - bits
        ends = [outward(*hull(e), unit) for e in found]
        most = max(lo for lo, _ in ends)
        columns = [column for column, (_, hi) in enumerate(ends) if hi >= most]
        kinds = {found[c] if found[c][0] == found[c][1] else id(found[c]) for c in columns}
        if len(kinds) == 1 or bits >= MAX_PRECISION:
            return columns
        bits, _ = more(bits, "")


def _rank_inversions(m: Measurement) -> int:
    """Pairs of a row with x_i > x_j and c_i < c_j."""
    return sum(inversions(x[~nan].tolist(), got[~nan].tolist()) for x, got, nan in _ordered_rows(m))


def inversions(x: Sequence[float], got: Sequence[int]) -> int:
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
    return tuple(describe(m, index, index in mismatches) for index in mismatches + chosen)


def position(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A flat index in C order as a position in an array of that shape."""
    return tuple(int(i) for i in np.unravel_index(index, shape)) if shape else ()


def _expected(m: Cells, index: int) -> str:
    """T to 17 significant digits, also where it overflows a format without infinity, so that R is NaN."""
    text = m.expected(index, 17)
    if text != "NaN":
        return text
    row, column = divmod(index, m.truth.width)
    return decimal(m.truth.row(row, m.truth.bits)[column], 17)


def describe(m: Cells, index: int, mismatch: bool) -> Worst:
    """One element for a list of the worst."""
    row, column = divmod(index, m.truth.width)
    logits = m.truth.op.output == "logits"
    bound = m.bound_of(index)
    return Worst(
        index=position(index, m.truth.shape),
        logit=float(m.truth.shown[row][column]) if logits else None,
        got=float(m.output.reshape(-1)[index]),
        expected=_expected(m, index),
        ulp=None if mismatch else m.ulp(index),
        rel=None if mismatch else m.rel(index),
        bound=bound,
        bound_ulp=None if bound is None else times_power(bound, -m.ulp_exponent(index)),
    )
