"""Exact limits of a variant in an arithmetic: the last logit, gap or count up to which its results can be used at all.

Each limit is sought among the numbers v of the format (QUESTIONS has them in words), on rows with one number in them:

equal_logits_up, equal_logits_down: n logits v, from 0 upwards, or downwards. No result may be NaN or infinite, nor 0 where the
    exact one, a rational number in every op but logsumexp, does not round to 0. Where that fails for 0 already, the search begins
    at a number found for which it holds: less or plus the variant's own parameters, else of those tried the one nearest to 0.
finite_logits: the same upwards, where zeros may be.
finite_log_gap: n - 1 logits 0 and one of -v, v >= 0. The logarithm of its probability is finite: the probability is not 0, the
    log-probability and the loss are finite.
zero_loss_gap: a logit v >= 0 and n - 1 logits 0. The loss of that class, its log-probability, its gradient is finite and not 0.
ones: not numbers of the format but counts up to LONGEST. The sum of so many ones is finite, and what was added before has not
    stalled: twice as many ones but two give another sum than one less.

They tell where results are lost, not where they lose digits, which evaluate does.

How it is sought. All numbers of a format are tried if that takes at most BUDGET elements of arithmetic, weighted by how slow it is;
so in formats of 8 and 16 bits, for rows that are not too long. Else the numbers tried are a spread over the whole format, a search
by sections from the first of them that fails, and up to NEIGHBOURS on each side of the limit. A limit is the last number before the
first that was seen to fail; where a number beyond it is seen to do well again, `sharp` is false, and `beyond` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from math import isinf, isnan, log, log2

import numpy as np

from engine import ops
from engine.arithmetic import PLAIN, Arithmetic
from engine.errors import InvalidProblem, quoted
from engine.faults import explain
from engine.formats import Format, find, from_ordinals, ordinals, round_array, widen
from engine.model import Array, Axes, Fault, Limit, Thresholds
from engine.outcome import this_engine
from engine.recorder import Recorder
from engine.variants import Variant
from engine.variants import find as find_variant

LONGEST = 1 << 20
"""Logits of a row, and ones of a sum, at most."""
WIDEST = 1 << 22
"""Elements of the output for one row, at most: a Jacobian has n^2."""
BUDGET = 1 << 26
"""Elements that the search for one limit works on at most, about, where all numbers are tried; half as many where they are not."""
NEIGHBOURS = 1000
"""Numbers tried on each side of a limit where not all can be, at most."""
LEAST = 256
"""Numbers that are tried on each side of a limit, and in a spread, at least; where that takes too long, no limit is told."""
_BLOCK = 1 << 20
_FEW = 512
"""Sums of ones that are always made."""
_ROUNDS = 16
_PASS = 60.0
"""Elements that a step of Python costs as much as."""

QUESTIONS = {
    "equal_logits_up": "the largest logit up to which n equal ones have finite results, and 0 only where the exact one rounds to 0",
    "equal_logits_down": "the lowest such logit",
    "finite_logits": "the largest logit up to which n equal ones have finite results, zeros or not",
    "finite_log_gap": "the largest gap g up to which a logit of -g beside zeros has a probability whose logarithm is finite",
    "zero_loss_gap": "the largest gap g up to which the right class, a logit of g beside zeros, has a loss or gradient not 0",
    "ones": "the largest count up to which a sum of ones neither stalls nor overflows",
}
"""What each limit answers."""


@dataclass(frozen=True)
class _Family:
    """Rows with a number in them. sign: whether it grows or falls; place: its column and that of the target; None: it is in all."""

    name: str
    sign: int
    place: int | None
    ops: Sequence[str] = tuple(ops.OPS)


_FAMILIES = (
    _Family("equal_logits_up", 1, None),
    _Family("equal_logits_down", -1, None),
    _Family("finite_logits", 1, None),
    _Family("finite_log_gap", -1, -1, ("softmax", "log_softmax", "cross_entropy")),
    _Family("zero_loss_gap", 1, 0, ("log_softmax", "cross_entropy", "cross_entropy_grad")),
)


def thresholds(op: str, variant: str, format: str, n: int = 2, summation: str = "numpy", axes: Axes = PLAIN) -> Thresholds:
    """The limits of one variant, such as "naive" or "chosen_shift(c=-80)", in one format, for rows of n logits.

    summation, axes: as for evaluate. Of targets the class index is taken, of an incoming gradient the same class's unit vector.
    Raises UnknownName, and InvalidProblem where n is not from 1 to LONGEST or a row's output has more than WIDEST elements.
    """
    row, arithmetic = _chosen(op, variant, format, n, summation, axes)
    k = arithmetic()
    limits = [_limit(_anchored(_Trial(family, row, arithmetic, n))) for family in _families(row.op, n)]
    limits += [_ones(partial(_totals, k, row), k)] if _adds(row) else []
    return Thresholds(row.op, row.name, k.fmt.name, n, k.summation, k.axes, this_engine(), tuple(limits))


def estimate_thresholds(op: str, variant: str, format: str, n: int = 2, summation: str = "numpy", axes: Axes = PLAIN) -> float:
    """Seconds that thresholds may take on one slow core: a planning figure. Raises what thresholds does."""
    row, arithmetic = _chosen(op, variant, format, n, summation, axes)
    k = arithmetic()
    trials = [_Trial(family, row, arithmetic, n) for family in _families(row.op, n)]
    work = sum(trial.cost * trial.planned for trial in trials)
    if _adds(row) and not _never_stalls(k):
        sums = 6 * NEIGHBOURS * 2.0 ** (k.accumulator.fmt.precision + 3)
        work += min(BUDGET, sums) * _weight_of_sum(k) * _SUMMING.get(k.summation, 0.5)
    return 2e-2 + 4e-8 * work


def _chosen(op: str, variant: str, format: str, n: int, summation: str, axes: Axes) -> tuple[Variant, Callable[..., Arithmetic]]:
    """What is asked for, if there is such a thing."""
    row = find_variant(op, variant)
    arithmetic = partial(Arithmetic, find(format), summation, axes=axes)
    arithmetic()
    if type(n) is not int or not 1 <= n <= LONGEST:
        raise InvalidProblem(f"n is {quoted(n)}; a row has 1 to {LONGEST} logits here")
    if (width := ops.OPS[row.op].width(n)) > WIDEST:
        raise InvalidProblem(f"n is {n}, and the {row.op} of such a row has {width} elements; ask for n with at most {WIDEST}")
    return row, arithmetic


def _families(op: str, n: int) -> list[_Family]:
    """Those that an op has; a gap takes two logits."""
    return [family for family in _FAMILIES if op in family.ops and (n > 1 or family.place is None)]


# ---- how dear it is --------------------------------------------------------------------------------------------------


def _weight(k: Arithmetic) -> float:
    """How many times as long an element takes as in NumPy's own 16-bit arithmetic."""
    emulated = k.axes.subnormals == "flush" or k.fmt.bits == 8 or k.output_format.bits == 8
    integers = k.fmt.precision > 24 and k.axes.fma
    rounded = k.axes.exp != "numpy" or k.axes.fma
    others = (k.axes.output_format != k.fmt.name) + (k.axes.accumulator != k.fmt.name)
    return 1 + 15 * emulated + 1600 * integers + 15 * rounded + 6 * others + 3 * (k.summation == "exact")


def _weight_of_sum(k: Arithmetic) -> float:
    """The same of an addition."""
    emulated = k.axes.subnormals == "flush" or k.accumulator.fmt.bits == 8
    return 1 + 15 * emulated + 3 * (k.summation == "exact")


_SUMMING = {"kahan": 2.0, "neumaier": 2.0, "blocked": 2.0, "exact": 4.0}
"""How dear the sums of ones are, for the same number of them."""


def _in_order(k: Arithmetic) -> bool:
    """Whether a sum takes a step of Python for every term."""
    return k.summation not in ("numpy", "pairwise", "exact")


# ---- one limit among the numbers of a format -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Trial:
    """One search among the numbers of a format. anchor: the ordinal at which it begins, which is its point 0."""

    family: _Family
    variant: Variant
    arithmetic: Callable[..., Arithmetic]
    n: int
    anchor: int = 0

    @property
    def size(self) -> int:
        """Logits or output elements of a row, whichever are more."""
        return max(self.n, ops.OPS[self.variant.op].width(self.n))

    @property
    def together(self) -> int:
        """Rows that are worked on at once."""
        return max(1, _BLOCK // self.size)

    @property
    def cost(self) -> float:
        """Weighted elements that a row takes, among `together` of them."""
        k = self.arithmetic()
        passes = self.variant.steps + _in_order(k) + 12 * self.variant.pieces(self.n) / self.n
        return self.size * _weight(k) * (1 + passes * _PASS / self.together)

    @property
    def affordable(self) -> int:
        """Points on each side of a limit, and of a spread, that are tried where not all are."""
        return max(LEAST, min(NEIGHBOURS, int(BUDGET / self.cost / 6)))

    @property
    def exhaustive(self) -> bool:
        """Whether all points are tried."""
        return self.count <= max(6 * LEAST, BUDGET / self.cost)

    @property
    def ways(self) -> int:
        """Points that cut a section."""
        return min(self.together, 63)

    @property
    def planned(self) -> float:
        """Points that the search tries, about."""
        return self.count if self.exhaustive else 3 * self.affordable + self.ways * (1 + log2(self.count) / log2(self.ways + 1))

    @property
    def end(self) -> int:
        """One more than the largest ordinal: that of the largest number, or of the largest that the output format does not exceed,
        where the exact result grows with it.
        """
        k = self.arithmetic()
        grows = self.variant.op == "logsumexp" or (self.family.name == "finite_log_gap" and self.variant.op != "softmax")
        if not grows or k.output_format.largest >= k.fmt.largest:
            return k.fmt.infinity_ordinal
        most = round_array(np.array([k.output_format.largest]), k.fmt)
        return int(ordinals(most, k.fmt)[0]) + int(widen(most)[0] <= k.output_format.largest)

    @property
    def count(self) -> int:
        """Points, from the anchor to the last number."""
        return self.end - self.family.sign * self.anchor

    def ordinals(self, points: Array) -> Array:
        """Of those points, which are more than an int64 has where the anchor is far on the other side of 0: modulo 2^64."""
        steps = points.astype(np.uint64)
        steps = steps if self.family.sign > 0 else ~steps + np.uint64(1)
        return (steps + np.array([self.anchor]).view(np.uint64)).view(np.int64)

    def outputs(self, points: Array, recorder: Recorder | None = None) -> Array:
        """Results (r, width) for those points, in binary64."""
        k = self.arithmetic(recorder=recorder)
        v = from_ordinals(self.ordinals(points), k.fmt)[:, None]
        place = (self.family.place or 0) % self.n
        there = np.arange(self.n) == place
        x = np.array(np.broadcast_to(v, (len(v), self.n)) if self.family.place is None else np.where(there, v, v.dtype.type(0)))
        tensors = {"targets": np.full(len(v), place), "grad_output": np.array(np.broadcast_to(there, x.shape), k.fmt.dtype)}
        found = k.deliver(self.variant.run(x, *(tensors[name] for name in ops.OPS[self.variant.op].tensors), k))
        return widen(found).reshape(len(v), -1)

    def holds(self, points: Array) -> Array:
        """For which of those points it does; so many rows at a time that memory stays flat."""
        step = self.together
        return np.concatenate([self.judged(self.outputs(points[at : at + step])) for at in range(0, len(points), step)])

    def judged(self, found: Array) -> Array:
        """Which rows of results are as they must be."""
        if self.family.place is None:
            wrong = ~np.isfinite(found)
            if self.family.name != "finite_logits":
                wrong |= (found == 0) & self.nonzero()
            return np.asarray(~wrong.any(axis=1))
        here = self.at(found)
        may_be_zero = self.family.name == "finite_log_gap" and self.variant.op != "softmax"
        return np.asarray(np.isfinite(here) & ((here != 0) | may_be_zero))

    def at(self, found: Array) -> Array:
        """The results that the question is about, of one class: of an op with one number a row that number."""
        return found[:, (self.family.place or 0) % found.shape[1]]

    def number(self, point: int) -> float:
        """The number of a point, as it is told: a logit with its sign, a gap without."""
        v = float(widen(from_ordinals(self.ordinals(_points([point])), self.arithmetic().fmt))[0])
        return v if self.family.place is None else abs(v)

    def nonzero(self) -> Array:
        """Where the correctly rounded result for n equal logits is not 0; nowhere, where it is not told."""
        n, op = self.n, self.variant.op
        least = Fraction(self.arithmetic().output_format.smallest_subnormal) / 2
        own, other = (size > least for size in _EXACT[op](n))
        there = np.eye(n, dtype=bool).reshape(-1) if op == "softmax_jacobian" else np.arange(ops.OPS[op].width(n)) == 0
        return np.where(there, own, other)


_EXACT: dict[str, Callable[[int], tuple[Fraction, Fraction]]] = {
    "softmax": lambda n: (Fraction(1, n), Fraction(1, n)),
    "log_softmax": lambda n: (Fraction(n - 1), Fraction(n - 1)),
    "logsumexp": lambda n: (Fraction(0), Fraction(0)),
    "cross_entropy": lambda n: (Fraction(n - 1), Fraction(n - 1)),
    "cross_entropy_grad": lambda n: (1 - Fraction(1, n), Fraction(1, n)),
    "softmax_jacobian": lambda n: (Fraction(n - 1, n * n), Fraction(1, n * n) if n > 1 else Fraction(0)),
    "softmax_vjp": lambda n: (Fraction(n - 1, n * n), Fraction(1, n * n)),
}
"""Size of the results for n equal logits, at the class or diagonal, and elsewhere; for log n stands n - 1, which is 0 with it."""


def _anchored(trial: _Trial) -> _Trial:
    """The trial from where it holds: from 0, from a parameter, from the number nearest to 0 that was tried."""
    if trial.family.place is not None:
        return trial
    told = [value for value in trial.variant.told.values() if isinstance(value, float)]
    hints = ordinals(
        round_array(np.array([0.0, *(-value for value in told), *told]), trial.arithmetic().fmt), trial.arithmetic().fmt
    )
    hints = hints[np.abs(hints) < trial.end]
    good = trial.holds(trial.family.sign * hints)
    if not good.any():
        each = trial.end - 1 if trial.exhaustive else min(trial.affordable, trial.end - 1)
        hints = np.array([sign * ((trial.end - 1) * i // each) for i in range(1, each + 1) for sign in (1, -1)])
        good = trial.holds(trial.family.sign * hints)
    return replace(trial, anchor=int(hints[np.argmax(good)])) if good.any() else trial


def _limit(trial: _Trial) -> Limit:
    k, count = trial.arithmetic(), trial.count
    found = _exhausted(trial.holds, count) if trial.exhaustive else _searched(trial.holds, count, trial.affordable, trial.ways)
    few = found.search == "bisection" and trial.affordable < NEIGHBOURS
    if found.last == count - 1:
        every = f"it holds for every number of {k.fmt.name}"
        every += f" from {trial.number(0):g} on" * bool(trial.anchor)
        every += f" up to {trial.number(count - 1):g}" * (trial.end < k.fmt.infinity_ordinal)
        every += f" that was tried, {found.checked} of {count}: others may fail" * few
        return Limit(trial.family.name, None, None, None, None, every, found.search, found.checked, not few)
    recorder = Recorder()
    outputs = trial.outputs(_points([found.last + 1]), recorder)
    kind, text = _told(trial, outputs, explain(recorder.steps, k.axes.subnormals == "flush"))
    value, following = None if found.last < 0 else trial.number(found.last), trial.number(found.last + 1)
    if trial.family.name == "zero_loss_gap" and kind == "zero" and _is_tiny(following, trial.n, k.output_format):
        text += "; the exact one rounds to 0 too"
    if found.again is not None:
        text += f"; not so for all that lies beyond: {_shortest(trial.number(found.again))} does well again"
        text += ", and more may fail before it, where not all were tried" * (found.search == "bisection")
    text += f"; only {found.checked} numbers were tried, of {count}: a smaller one may fail" * few
    result, sharp = float(trial.at(outputs)[0]), found.again is None and not few
    return Limit(trial.family.name, value, following, result, kind, text, found.search, found.checked, sharp)


def _is_tiny(gap: float, n: int, fmt: Format) -> bool:
    """Whether (n - 1) exp(-gap), than which the loss and the gradient are smaller, is surely below half the smallest number."""
    return log(n - 1) - gap < log(fmt.smallest_subnormal) - log(2) - 1e-6


def _shortest(value: float) -> str:
    return repr(value).removesuffix(".0")


def _told(trial: _Trial, found: Array, faults: Sequence[Fault]) -> tuple[str, str]:
    """What comes out where it does not hold, and which step broke first."""
    found = found if trial.family.place is None else trial.at(found)
    kinds = (("nan", "NaN", np.isnan(found)), ("infinite", "infinite", np.isinf(found)), ("zero", "0", found == 0))
    kind, name, where = next(row for row in kinds if row[2].any())
    text = f"the result is {name}" if where.size == 1 else f"{int(where.sum())} of {where.size} elements are {name}"
    why = _why(kind, faults)
    silent = ", and no NaN tells of it" * (kind == "zero" and any(fault.kind == "overflow" for fault in why))
    said = "; ".join(fault.detail for fault in why) or "no step was seen to break: its digits were rounded away"
    return kind, f"{text}{silent}: {said}"


def _why(kind: str, faults: Sequence[Fault]) -> list[Fault]:
    """The faults to tell: the first, and the one that made a NaN; of a zero without an overflow the last, at which it arose."""
    hard = [fault for fault in faults if fault.kind in ("overflow", "underflow", "divide_by_zero", "invalid")]
    if kind == "nan":
        return [*hard[:1], *(fault for fault in hard[1:] if fault.kind == "invalid")][:2]
    if kind == "zero":
        return [fault for fault in hard if fault.kind == "overflow"][:1] or hard[-1:] or list(faults)[-1:]
    return hard[:1] or list(faults)[:1]


# ---- searching -------------------------------------------------------------------------------------------------------

Holds = Callable[[Array], Array]


@dataclass(frozen=True)
class _Found:
    """last: the last point before the first that fails, -1 if there is none; again: the last one tried beyond that holds."""

    last: int
    search: str
    checked: int
    again: int | None


def _points(given: Iterable[int]) -> Array:
    return np.fromiter(given, np.uint64)


def _exhausted(holds: Holds, count: int) -> _Found:
    """Every point from 0 to count - 1."""
    points = _points(range(count))
    good = holds(points)
    last = count - 1 if good.all() else int(np.argmin(good)) - 1
    return _Found(last, "exhaustive", count, _again(points, good, last))


def _searched(holds: Holds, count: int, each: int, ways: int) -> _Found:
    """A spread of points, sections from the first that fails, and neighbours."""
    spread = _points((count - 1) * i // each for i in range(each + 1))
    good = holds(spread)
    if good.all():
        last = count - 1
    else:
        first = int(np.argmin(good))
        last = _section(holds, int(spread[first - 1]) if first else -1, int(spread[first]), ways)
    return _confirmed(holds, last, count, each, [(spread, good)])


def _section(holds: Holds, low: int, high: int, ways: int) -> int:
    """A point that holds before one that does not, between low, which does (or is -1), and high, which does not."""
    while high - low > 1:
        parts = min(ways + 1, high - low)
        points = _points(low + (high - low) * i // parts for i in range(1, parts))
        good = holds(points)
        first = len(points) if good.all() else int(np.argmin(good))
        low, high = int(points[first - 1]) if first else low, int(points[first]) if first < len(points) else high
    return low


def _confirmed(holds: Holds, last: int, count: int, each: int, tried: list[tuple[Array, Array]]) -> _Found:
    """The neighbours of a limit, which moves down to before the first of them that fails, whose neighbours are next."""
    for _ in range(_ROUNDS):
        near = _points(range(max(0, last - each + 1), min(count, last + each + 1)))
        good = holds(near)
        tried.append((near, good))
        if good[near <= last].all():
            break
        last = int(near[np.argmin(good)]) - 1
    points, good = (np.concatenate(parts) for parts in zip(*tried, strict=True))
    return _Found(last, "bisection", len(near), _again(points, good, last))


def _again(points: Array, good: Array, last: int) -> int | None:
    """The last point beyond the limit that holds."""
    beyond = points[good & (points > last)]
    return int(beyond.max()) if beyond.size else None


# ---- sums of ones ----------------------------------------------------------------------------------------------------


def _adds(variant: Variant) -> bool:
    """Whether the variant has a sum at all."""
    return "accumulator" in variant.axes


def _never_stalls(k: Arithmetic) -> bool:
    """Whether integers up to 2 LONGEST are numbers of the accumulator, where every order adds them exactly, and not too large."""
    return bool(2**k.accumulator.fmt.precision >= 2 * LONGEST <= k.fmt.largest)


def _ones(totals: Callable[[Array], Array], k: Arithmetic) -> Limit:
    """How many ones may be added. totals: counts to sums."""
    if _never_stalls(k):
        integers = f"integers up to {2 * LONGEST} are numbers of {k.accumulator.fmt.name}"
        text = f"it holds for every count up to {LONGEST}: {integers}, so every order adds so many ones exactly"
        return Limit("ones", None, None, None, None, text, "theorem", 0, True)

    def holds(points: Array) -> Array:
        """Points are counts less 1, so that they begin at 0."""
        before, now, twice = np.split(totals(np.concatenate((points, points + 1, 2 * points))), 3)
        return np.asarray(np.isfinite(now) & ((before != twice) | (points == 0)))

    few = _points(range(_FEW))
    good = holds(few)
    high = int(np.argmin(good)) if not good.all() else 2 * _FEW - 1
    while _FEW <= high < LONGEST and holds(_points([high]))[0]:
        high = 2 * high + 1
    if high >= LONGEST:
        text = f"it holds for every count up to {_FEW} and for powers of two up to {LONGEST}; no others were tried"
        return Limit("ones", None, None, None, None, text, "bisection", _FEW + (LONGEST // _FEW).bit_length() - 1, True)
    last = high - 1 if high < _FEW else _section(holds, high // 2, high, max(1, min(31, _BLOCK // 4 // high)))
    dear = max(1, last) * _weight_of_sum(k) * (1 if k.summation == "numpy" else 8)
    found = _confirmed(holds, last, LONGEST, max(1, min(NEIGHBOURS, int(BUDGET / dear))), [(few, good)])
    return _ones_told(found, totals)


def _ones_told(found: _Found, totals: Callable[[Array], Array]) -> Limit:
    value, following = found.last + 1, found.last + 2
    total, total_after, twice = (float(each) for each in totals(_points([value, following, 2 * value])))
    if isnan(total_after) or isinf(total_after):
        kind, text = "infinite" if isinf(total_after) else "nan", f"the sum of {following} ones overflows"
    else:
        kind, text = "stalled", f"the sum of {value} ones is {total:g}, and so is that of twice as many, {twice:g}: it stands still"
    text += "" if found.again is None else f"; not so for all that lies beyond: {found.again + 1} does well again"
    sharp = found.again is None
    return Limit("ones", float(value), float(following), total_after, kind, text, found.search, found.checked, sharp)


def _totals(k: Arithmetic, variant: Variant, counts: Array) -> Array:
    """The sums of so many ones each, in binary64, as the variant adds; of none 0.

    Zeros in front change no sum that is made in order, so that several can be made at once.
    """
    recurs = "summation" not in variant.axes

    def summed(rows: Array) -> Array:
        return widen(k.recurrence(np.ones_like(rows), rows) if recurs else k.sum(rows))

    longest = int(counts.max(initial=1))
    if not (recurs or k.summation in ("sequential", "reverse", "kahan", "neumaier")):
        return np.array([float(summed(np.ones((1, int(n)), k.fmt.dtype))[0]) if n else 0.0 for n in counts])
    step = max(1, 16 * _BLOCK // longest)
    blocks = (counts[at : at + step, None] for at in range(0, len(counts), step))
    return np.concatenate([summed((np.arange(longest) >= longest - block).astype(k.fmt.dtype)) for block in blocks])
