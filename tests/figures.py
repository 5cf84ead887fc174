"""The figures worked out a second time, from their definitions, by the judge's balls and rational arithmetic.

A figure is a function of the working precision; `settle` raises it until the figure's rounding is certain, or the figure is
proven to be as good as a midpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from typing import Any

from flint import arb, ctx, fmpq

from tests.judge import (
    FORMATS,
    INF,
    Element,
    Target,
    enclose,
    ends,
    floor_log2,
    infinity_ordinal,
    power,
    round_fraction,
    rounded,
    sided,
)

NEAR = power(-20000)  # stands for a rest that is smaller still, where only its sign can matter
MAXIMUM, MEAN, STEP = 40, 20, power(-20)
LAST = 1 << 14  # bits


def significant(value: Fraction, bits: int, step: Fraction = Fraction(0)) -> float:
    """value to so many significant bits, nearest even, never finer than step; beyond binary64 infinite, below it 0."""
    if value == 0:
        return 0.0
    unit = max(power(floor_log2(value) - bits + 1), step)
    kept = round(value / unit) * unit
    return float(kept) if abs(kept) < power(1024) else INF if kept > 0 else -INF


def settle(figure: Callable[[int], Element | None], finish: Callable[[Fraction], float]) -> float:
    """finish(figure), once it is the same at both ends of the figure's ball. None as a figure: not known at this precision."""
    prec = 128
    while prec <= LAST:
        with ctx.workprec(prec):
            value = figure(prec)
        if isinstance(value, float):
            return value
        if isinstance(value, arb) and value > arb(2) ** 5000:
            return INF
        if value is not None:
            low, high = (finish(end) for end in ((value, value) if isinstance(value, Fraction) else ends(value)))
            if low == high:
                return low
            if finish is not edge and _is_midpoint(value, middle := (Fraction(low) + Fraction(high)) / 2):
                return finish(middle)
        prec *= 2
    raise AssertionError("the judge could not settle a figure")


def _is_midpoint(value: Element, middle: Fraction) -> bool:
    """Sums of irrational errors can be rational, and ties: what lies within 2^-256 of a midpoint counts as that midpoint."""
    return all(abs(end - middle) <= abs(middle) * power(-256) for end in (ends(value) if isinstance(value, arb) else (value,)))


def to_maximum(value: Fraction) -> float:
    return significant(value, MAXIMUM)


def to_mean(value: Fraction) -> float:
    return significant(value, MEAN)


def to_ulp_mean(value: Fraction) -> float:
    return significant(value, MEAN, STEP)


def edge(error: Fraction) -> float:
    """Upper edge of the percentile bin of an error that is not 0: 2^-10, then 2^(k/64) as a binary64."""
    if error <= power(-10):
        return 2.0**-10
    k = 64 * floor_log2(error)
    while _root(k) < error:
        k += 1
    return _root(k)


@cache
def _root(k: int) -> float:
    """2^(k/64) as a binary64."""
    if k >= 64 * 1024:
        return INF
    with ctx.workprec(200):
        low, high = ends((arb(2).log() * k / 64).exp()) if k % 64 else (power(k // 64),) * 2
    (ordinal,) = {round_fraction(end, "float64") for end in (low, high)}
    man, binade = ordinal & ((1 << 52) - 1), ordinal >> 52
    return math.ldexp((1 << 52) + man, binade - 1075)


@dataclass(frozen=True)
class Cell:
    """One element: where it stands, the output c, the ordinal of R (nan: NaN) and its truth at a precision."""

    c: float
    R: float
    T: Callable[[int], Element]
    fmt: str

    @property
    def infinity(self) -> int:
        return infinity_ordinal(self.fmt)

    @property
    def ordinal(self) -> int:
        return round_fraction(Fraction(self.c), self.fmt) if math.isfinite(self.c) else int(math.copysign(self.infinity, self.c))

    @property
    def normal(self) -> bool:
        return not math.isnan(self.R) and abs(self.R) >= 1 << (FORMATS[self.fmt][0] - 1)

    @cached_property
    def special(self) -> float | None:
        """T itself where it is NaN or infinite."""
        value = self.T(128)
        return value if isinstance(value, float) else None

    @cached_property
    def zero(self) -> bool:
        return self.T(128) == 0 and isinstance(self.T(128), Fraction)

    @property
    def mismatch(self) -> bool:
        if math.isnan(self.c) or math.isnan(self.R):
            return math.isnan(self.c) != math.isnan(self.R)
        if self.special is not None:
            return self.c != self.special
        return math.isinf(self.c) and self.ordinal != self.R

    @property
    def compared(self) -> bool:
        return self.special is None and not self.mismatch and not math.isnan(self.R)

    def signed(self, prec: int, unit: bool = True) -> Element | None:
        """(c - T) / ulp(T), or c - T."""
        if math.isinf(self.c):
            return Fraction(0)
        value = self.T(prec)
        size = self.ulp(value) if unit else Fraction(1)
        if size is None:
            return None
        if isinstance(value, Fraction):
            return (Fraction(self.c) - value) / size
        return (arb(self.c) - value) * arb(_exponent(size))

    def ulp(self, value: Element) -> Fraction | None:
        """2^(max(floor log2|T|, emin) - p + 1), that of the top binade beyond it; None where the ball leaves a choice."""
        precision, emin, emax = FORMATS[self.fmt]
        sizes = [abs(end) for end in ((value, value) if isinstance(value, Fraction) else ends(value))]
        if not isinstance(value, Fraction) and value.contains(0):
            sizes.append(Fraction(0))
        tops = {min(max(floor_log2(size), emin), emax) if size else emin for size in sizes}
        return power(tops.pop() - precision + 1) if len(tops) == 1 else None

    def relative(self, prec: int) -> Element | None:
        value = self.T(prec)
        if math.isinf(self.c):
            return Fraction(0)
        if isinstance(value, Fraction):
            return abs(Fraction(self.c) - value) / abs(value) if value else (Fraction(0) if self.c == 0 else INF)
        if self.c == 0:
            return Fraction(1)
        if max(map(abs, ends(value))) < power(-3000):
            return INF
        return None if value.contains(0) else abs((arb(self.c) - value) / value)

    @cached_property
    def ulps(self) -> float:
        return settle(lambda prec: _abs(self.signed(prec)), to_maximum)

    @cached_property
    def bin(self) -> float:
        """The percentile bin: a ball stands for an irrational truth, from which no c is at distance 0."""
        if self.signed(128) == 0:
            return 0.0
        value = self.T(LAST)
        if self.c and not isinstance(value, Fraction) and max(map(abs, ends(value))) < power(-3000):
            beside = power(-3000) if (value > 0) == (self.c > 0) else -power(-3000)  # T is that small: only its side counts
            return edge((abs(Fraction(self.c)) - beside) / power(FORMATS[self.fmt][1] - FORMATS[self.fmt][0] + 1))
        return settle(lambda prec: _abs(self.signed(prec)), edge)

    @cached_property
    def rel(self) -> float:
        return settle(self.relative, to_maximum)


def _exponent(size: Fraction) -> tuple[int, int]:
    """1 / size for a power of two, as an exact (man, exp)."""
    return 1, -floor_log2(size)


def _abs(value: Element | None) -> Element | None:
    return None if value is None else abs(value)


def _ball(value: Element) -> arb:
    return arb(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _total(values: Sequence[Element | None]) -> Element | None:
    if any(value is None for value in values):
        return None
    if all(isinstance(value, Fraction) for value in values):
        return sum(values, Fraction(0))
    return sum((_ball(value) for value in values), arb(0))


def cells(
    op: str, fmt: str, problem: Sequence[tuple[Sequence[float], Target]], output: Sequence[Sequence[float]]
) -> list[list[Cell]]:
    """The elements by row; problem: (logits, target) a row."""
    return [_row(op, fmt, logits, target, got) for (logits, target), got in zip(problem, output, strict=True)]


def _row(op: str, fmt: str, logits: Sequence[float], target: Target, got: Sequence[float]) -> list[Cell]:
    beside = sided(op, logits, target)

    @cache
    def at(prec: int) -> list[Element]:
        found = enclose(op, logits, target, prec)
        return [value if part is None else part[0] + part[1] * NEAR for value, part in zip(found, beside, strict=True)]

    wanted = rounded(op, logits, target, fmt)
    assert None not in wanted
    return [Cell(c, R, lambda prec, k=k: at(prec)[k], fmt) for k, (c, R) in enumerate(zip(got, wanted, strict=True))]


def expected(
    op: str, fmt: str, problem: Sequence[tuple[Sequence[float], Target]], output: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """Every figure but the step counts, by its name; the rows' figures as tuples (worst, mean, worst_row)."""
    by_row = cells(op, fmt, problem, output)
    flat = [cell for row in by_row for cell in row]
    return _counts(flat) | _errors(flat) | _rows(op, problem, by_row)


def _counts(flat: list[Cell]) -> dict[str, Any]:
    normal = 1 << (FORMATS[flat[0].fmt][0] - 1)
    nan = [math.isnan(cell.c) for cell in flat]
    wanted_nan = [math.isnan(cell.R) for cell in flat]
    zero = [cell for cell in flat if cell.c == 0 and cell.special is None and not cell.zero]
    numbers = [cell for cell in flat if not math.isnan(cell.c)]
    return {
        "n": len(flat),
        "compared": sum(cell.compared for cell in flat),
        "correctly_rounded": sum(a and b for a, b in zip(nan, wanted_nan, strict=True))
        + sum(cell.ordinal == cell.R for cell in numbers),
        "nan_count": sum(nan),
        "nan_unexpected": sum(a and not b for a, b in zip(nan, wanted_nan, strict=True)),
        "nan_missing": sum(b and not a for a, b in zip(nan, wanted_nan, strict=True)),
        "inf_count": sum(math.isinf(cell.c) for cell in flat),
        "overflow_count": sum(math.isinf(cell.c) and abs(cell.R) < cell.infinity for cell in flat),
        "zero_count": sum(cell.c == 0 for cell in flat),
        "underflow_count": len(zero),
        "underflow_premature": sum(cell.R != 0 for cell in zero),
        "false_zero_count": sum(cell.normal and cell.special is None for cell in flat if cell.c == 0),
        "subnormal_count": sum(0 < abs(cell.ordinal) < normal for cell in numbers),
        "special_mismatch": sum(cell.mismatch for cell in flat),
    }


def _errors(flat: list[Cell]) -> dict[str, Any]:
    used = [(k, cell) for k, cell in enumerate(flat) if cell.compared]
    names = (
        "max_ulp",
        "argmax_ulp",
        "mean_ulp",
        "p50_ulp",
        "p99_ulp",
        "max_ulp_ordinal",
        "max_rel",
        "argmax_rel",
        "max_rel_normal",
        "max_abs",
        "bias_ulp",
    )
    if not used:
        return dict.fromkeys(names)
    ulps, rels = [cell.ulps for _, cell in used], [cell.rel for _, cell in used]
    edges = sorted(cell.bin for _, cell in used)
    count = len(used)
    return {
        "max_ulp": max(ulps),
        "argmax_ulp": used[ulps.index(max(ulps))][0],
        "mean_ulp": settle(lambda prec: _mean([_abs(cell.signed(prec)) for _, cell in used]), to_ulp_mean),
        "bias_ulp": settle(lambda prec: _mean([cell.signed(prec) for _, cell in used]), to_ulp_mean),
        "p50_ulp": edges[math.ceil(Fraction(count, 2)) - 1],
        "p99_ulp": edges[math.ceil(Fraction(99 * count, 100)) - 1],
        "max_ulp_ordinal": max(abs(cell.ordinal - cell.R) for _, cell in used),
        "max_rel": max(rels),
        "argmax_rel": used[rels.index(max(rels))][0],
        "max_rel_normal": max((cell.rel for _, cell in used if cell.normal), default=None),
        "max_abs": max(settle(lambda prec, cell=cell: _abs(cell.signed(prec, unit=False)), to_maximum) for _, cell in used),
    }


def _mean(values: Sequence[Element | None]) -> Element | None:
    total = _total(values)
    return None if total is None else total / len(values)


def _rows(op: str, problem: Sequence[tuple[Sequence[float], Target]], by_row: list[list[Cell]]) -> dict[str, Any]:
    outputs = [[cell.c for cell in row] for row in by_row]
    some_nan = any(math.isnan(c) for row in outputs for c in row)
    lit = [(k, x, row) for k, ((x, _), row) in enumerate(zip(problem, by_row, strict=True)) if not math.isnan(row[0].R)]
    kl = {"softmax": _kl_softmax, "log_softmax": _kl_log_softmax}.get(op)
    ranked = op in ("softmax", "log_softmax")
    return {
        "sum_defect": None if some_nan else _sum_defect(op, outputs),
        "kl": None if some_nan or kl is None else _figure([(k, kl(x, row)) for k, x, row in lit]),
        "total_variation": None if some_nan or op != "softmax" else _figure([(k, _variation(row)) for k, _, row in lit]),
        "backward_error": None if some_nan or op != "softmax" else _figure([(k, _backward(row)) for k, _, row in lit]),
        "argmax_preserved": _preserved(op, problem, lit)
        if len(by_row[0]) > 1 or op not in ("logsumexp", "cross_entropy")
        else None,
        "rank_inversions": sum(_inversions(x, row) for _, x, row in lit) if ranked else None,
    }


RowFigure = Callable[[int], Element | None]


def _figure(rows: list[tuple[int, RowFigure]]) -> tuple[float, float, int] | None:
    if not rows:
        return None
    values = [settle(figure, to_mean) for _, figure in rows]

    def mean(prec: int) -> Element | None:
        found = [figure(prec) for _, figure in rows]
        return INF if any(isinstance(value, float) for value in found) else _mean(found)

    return max(values), settle(mean, to_mean), rows[values.index(max(values))][0]


def _kl_softmax(x: Sequence[float], row: list[Cell]) -> RowFigure:
    """sum over R != 0 of T log(T/c) - T + c, which is T (delta - log1p(delta)) for c = T (1 + delta)."""
    used = [cell for cell in row if cell.R != 0]

    def figure(prec: int) -> Element | None:
        if any(math.isinf(cell.c) for cell in row) or any(cell.c <= 0 for cell in used):
            return INF
        if all(isinstance(cell.T(prec), Fraction) and cell.T(prec) == Fraction(cell.c) for cell in used):
            return Fraction(0)
        T = [_ball(cell.T(prec)) for cell in used]
        return sum((t * (t / cell.c).log() - t + cell.c for t, cell in zip(T, used, strict=True)), arb(0))

    return figure


def _kl_log_softmax(x: Sequence[float], row: list[Cell]) -> RowFigure:
    """sum T (expm1(w) - w) with w = c - l and T the probability."""

    def figure(prec: int) -> Element | None:
        if any(math.isinf(cell.c) and cell.c != cell.special for cell in row):
            return INF
        used = [(p, cell) for p, cell in zip(enclose("softmax", x, None, prec), row, strict=True) if cell.special is None]
        if all(isinstance(cell.T(prec), Fraction) and cell.T(prec) == Fraction(cell.c) for _, cell in used):
            return Fraction(0)
        total = arb(0)
        for p, cell in used:
            w = arb(cell.c) - _ball(cell.T(prec))
            # T e^w = e^c, where e^w alone may be beyond all bounds
            total += _ball(p) * (w.expm1() - w) if abs(w) < 1 else arb(cell.c).exp() - _ball(p) * (1 + w)
        return total

    return figure


def _variation(row: list[Cell]) -> RowFigure:
    def figure(prec: int) -> Element | None:
        if any(math.isinf(cell.c) for cell in row):
            return INF
        total = _total([_abs(cell.signed(prec, unit=False)) for cell in row])
        return None if total is None else total / 2

    return figure


def _backward(row: list[Cell]) -> RowFigure:
    """(max w - min w) / 2 with w = log(c / T), over the elements whose R is normal."""
    used = [cell for cell in row if cell.normal]

    def figure(prec: int) -> Element | None:
        if any(cell.c <= 0 or math.isinf(cell.c) for cell in used):
            return INF
        ratios = [Fraction(cell.c) / t if isinstance(t := cell.T(prec), Fraction) else arb(cell.c) / t for cell in used]
        if len(used) < 2 or (all(isinstance(r, Fraction) for r in ratios) and len(set(ratios)) == 1):
            return Fraction(0)
        w = [_ball(ratio).log() for ratio in ratios]
        top, bottom = w[0], w[0]
        for v in w:
            top, bottom = top.max(v), bottom.min(v)
        return (top - bottom) / 2

    return figure


def _sum_defect(op: str, outputs: list[list[float]]) -> float | None:
    infinite = any(math.isinf(c) and not (op == "log_softmax" and c < 0) for row in outputs for c in row)
    if op not in ("softmax", "log_softmax", "cross_entropy_grad"):
        return None
    if infinite:
        return None if op == "cross_entropy_grad" else INF
    if op == "log_softmax":
        return max(settle(_exp_defect(row), to_maximum) for row in outputs)
    one = 1 if op == "softmax" else 0
    return max(to_maximum(abs(sum(map(Fraction, row)) - one)) for row in outputs)


def _exp_defect(row: list[float]) -> Callable[[int], Element]:
    def figure(prec: int) -> Element:
        finite = [c for c in row if c != -INF]
        if not any(finite):
            return abs(Fraction(len(finite) - 1))
        return abs(sum((arb(c).exp() for c in finite), arb(0)) - 1)

    return figure


def _preserves(x: Sequence[float], row: list[Cell]) -> bool:
    c = [cell.c for cell in row]
    return not any(map(math.isnan, c)) and any(ci == max(c) for xi, ci in zip(x, c, strict=True) if xi == max(x))


@dataclass(frozen=True)
class Between:
    """Equal to every number from low to high: what the balls leave open."""

    low: int
    high: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, int) and self.low <= other <= self.high


def _preserved(
    op: str, problem: Sequence[tuple[Sequence[float], Target]], lit: Sequence[tuple[int, Any, list[Cell]]]
) -> int | Between:
    if op in ("softmax", "log_softmax"):
        return sum(_preserves(x, row) for _, x, row in lit)
    kept = [_keeps(op, x, problem[k][1], [cell.c for cell in row]) for k, x, row in lit]
    return Between(sum(map(all, kept)), sum(map(any, kept)))


def _keeps(op: str, x: Sequence[float], target: Target, c: list[float]) -> list[bool]:
    """As _preserves, one for each element that may be the largest truth; what 8192 bits do not part counts as equal."""
    if any(map(math.isnan, c)):
        return [False]
    for prec in (256, LAST, 1 << 18):
        with ctx.workprec(prec):
            truths = enclose(op, x, target, prec)
            balls = [arb(fmpq(t.numerator, t.denominator)) if isinstance(t, Fraction) else t for t in truths]
            near = arb(2) ** -8192
            at = [k for k, ball in enumerate(balls) if not any(other - ball > abs(ball) * near for other in balls)]
        if len(at) == 1:
            break
    return [c[k] == max(c) for k in at]


def _inversions(x: Sequence[float], row: list[Cell]) -> int:
    pairs = [(xi, cell.c) for xi, cell in zip(x, row, strict=True)]
    return sum(xi > xj and ci < cj for xi, ci in pairs for xj, cj in pairs)
