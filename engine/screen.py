"""What one fast tier of the truth shows of an output, block by block of rows: exact counts, and figures with their doubts.

T = hi + lo is known to within a radius; with c the output, r = (c - hi) - lo and e = r / ulp(T) are off by that radius and by a few
roundings, 2^-50 of themselves. A count is exact because an element whose count could change within the radius is left open:

    binade of T          T within the radius of a power of two (but for a probability beside 1: it is below)
    R = RN(T)            T within the radius of a midpoint, but where T is beside an exact one on the side that lo shows
    ULP error            a radius above OPEN ulp, or above 2^-20 of T; a difference that overflows
    error 0              where T may be a number of the format (equal logits) or cancel to 0, and c is within OPEN of it;
                         elsewhere T is irrational (Lindemann-Weierstrass), so that an error is 0 for no output

Sums carry the sum of the radii and 2^-36 of themselves for the order of addition. Of the maxima the elements are kept that could be
the largest. Percentile bins are counted by the low and by the high end of each error. Everything can be merged with what the next
rows show, in their order; survey.Survey resolves what is open.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, cached_property, partial, reduce
from math import factorial, inf
from typing import Any

import numpy as np

from engine import formats, ops
from engine.bounds import Allowed, Conditioned, Tolerance
from engine.figures import MAXIMUM_BITS, MEAN_BITS, bin_numbers, edge, edges_of, fixed
from engine.formats import Format
from engine.model import Array
from engine.truth import dd, fast
from engine.truth.fast import CHUNK, FLOOR, Block, Buffers, Part, Tier

FIRST_BIN = -640
OPEN = 2.0**-23
"""An element whose ULP error is not known to so many ulps is left to a finer tier."""
SEEN = 2.0**-12
"""ULPs beside which that is nothing."""
SMALL = 2.0**-8
"""Up to here the logarithm and the exponential are taken as their series, which ends below 2^-32 of itself; after the first tier up
to 2^-4 and below 2^-44."""
_EXPONENT = np.array(0x7FF0000000000000)
_MANTISSA = np.array((1 << 52) - 1)
_SUB = np.array(45)
"""Bits dropped for the sub-bins of the percentiles: 128 of them in each octave."""
_FIRST = np.array((1023 - 11) << 7)
_COUNT = 31 << 7
_TOP = 2.0**20
_LOG = 2.0**-32
"""Relative error of what goes through the logarithm here."""
_LOST = 2.0**-1018
"""What underflow, and FLOOR, may have made of a truth."""
_SUM = 2.0**-36
"""Relative error of a sum of at most 2^14 numbers of one sign, and of the few operations before it."""

Sum = tuple[Fraction, Any]
"""A value and what it may be off by, infinite where nothing is known."""


@dataclass
class Candidates:
    """Indices that may have the largest value, with their values and what these may be off by."""

    keep: int = 1
    slack: float = 2.0**-38
    least: float = 0.0
    best: Array = field(default_factory=lambda: np.empty(0))
    index: list[Array] = field(default_factory=list)
    value: list[Array] = field(default_factory=list)
    radius: list[Array] = field(default_factory=list)

    def offer(self, values: Array, radius: Callable[[], Array | float], top: float, index: Any) -> None:
        """Values >= 0 (any shape; -inf: out of the question), what they may be off by (of the values' shape, or one number), the
        most that one of them may be, and index(flat positions): their indices."""
        if not top >= self.least:
            return
        flat, reach = values.reshape(-1), np.asarray(radius())
        reach = reach.reshape(-1) if reach.ndim else reach
        if not self.index and flat.size > self.keep:
            self._raise(float(np.partition(flat - reach, -self.keep)[-self.keep]))
        chosen = np.flatnonzero((flat + reach >= self.least) & (flat > -inf))
        found, near = flat[chosen], np.broadcast_to(reach, flat.shape)[chosen]
        self.index.append(index(chosen))
        self.value.append(found)
        self.radius.append(near)
        self.best = np.concatenate([self.best, found - near])
        if self.best.size > self.keep:
            self.best = np.partition(self.best, -self.keep)[-self.keep :]
        if self.best.size == self.keep:
            self._raise(float(self.best.min()))

    def _raise(self, lower: float) -> None:
        self.least = max(self.least, lower - abs(lower) * self.slack)

    def pruned(self) -> tuple[Array, Array, Array]:
        """Indices, values and radii of those that remain, in the order of the indices."""
        if not self.index:
            return np.empty(0, np.int64), np.empty(0), np.empty(0)
        index, value, radius = (np.concatenate(rows) for rows in (self.index, self.value, self.radius))
        with np.errstate(over="ignore", invalid="ignore"):
            if index.size >= self.keep:
                self._raise(float(np.partition(value - radius, -self.keep)[-self.keep]))
            kept = value + radius >= self.least
        order = np.argsort(index[kept], kind="stable")
        return index[kept][order], value[kept][order], radius[kept][order]

    def settle(self, bits: int) -> Array:
        """Of those whose figure is told to `bits` bits keep the largest, of equal ones the first; the indices of the others."""
        index, value, radius = self.pruned()
        told = fixed(value, radius, bits)
        known = np.flatnonzero(~np.isnan(told))
        chosen = known[np.lexsort((index[known], -told[known]))[: self.keep]]
        rest = np.flatnonzero(np.isnan(told))
        if chosen.size == self.keep:
            with np.errstate(over="ignore"):
                rest = rest[(value[rest] + radius[rest]) * (1 + 2.0 ** (1 - bits)) >= told[chosen[-1]]]
        kept = np.concatenate([chosen, rest])
        self.index, self.value, self.radius = [index[kept]], [value[kept]], [radius[kept]]
        return index[rest]

    def replace(self, indices: Array, finer: Candidates) -> None:
        """Take what a finer tier says of these indices instead, which may be that they are out of the question."""
        own, others = self.pruned(), finer.pruned()
        kept, taken = ~np.isin(own[0], indices), np.isin(others[0], indices)
        self.index, self.value, self.radius = ([a[kept], b[taken]] for a, b in zip(own, others, strict=True))
        self.least = max(self.least, finer.least)

    def merge(self, other: Candidates) -> None:
        """Take the other's candidates too."""
        self.least = max(self.least, other.least)
        self.index += other.index
        self.value += other.value
        self.radius += other.radius


@dataclass
class Partial:
    """What one part of an output has shown; parts are merged in the order of their rows.

    low, high: counts by percentile bin, from FIRST_BIN on. tiers, relative: by tier, the elements it decided and what T may be off
    by at most, relatively. open_elements, open_rows: what no tier decided, excluded from every figure of elements, or of rows.
    split: elements that T2 counts in two bins, and these.
    """

    counts: Counter[str] = field(default_factory=Counter)
    sums: dict[str, Sum] = field(default_factory=dict)
    low: Array = field(default_factory=lambda: np.zeros(1, np.int64))
    high: Array = field(default_factory=lambda: np.zeros(1, np.int64))
    ordinal: int = 0
    most: dict[str, Candidates] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)
    open_elements: list[int] = field(default_factory=list)
    open_rows: set[int] = field(default_factory=set)
    far_rows: list[int] = field(default_factory=list)
    split: list[tuple[int, int, int]] = field(default_factory=list)
    open_defects: list[int] = field(default_factory=list)
    open_bounds: list[int] = field(default_factory=list)
    open_sizes: list[int] = field(default_factory=list)
    open_voids: list[int] = field(default_factory=list)
    open_shorts: list[int] = field(default_factory=list)
    apart_rows: list[int] = field(default_factory=list)
    undecided_argmax: list[int] = field(default_factory=list)
    mismatch: list[int] = field(default_factory=list)
    condition: Conditioned = (0.0, 0)
    tiers: Counter[str] = field(default_factory=Counter)
    relative: dict[str, float] = field(default_factory=dict)

    def bin(self, low: Array, high: Array, count: int = 1) -> None:
        """Count errors > 0 in their percentile bins: in those of the least and of the most that they may be."""
        self.low, self.high = (
            _grown(bins, np.bincount(numbers - FIRST_BIN, minlength=1) * count)
            for bins, numbers in ((self.low, low), (self.high, high))
        )

    def add(self, name: str, value: float | Fraction, error: float | Fraction) -> None:
        """Add to a sum, exactly; a value beyond binary64 leaves it open for good."""
        total, doubt = self.sums.get(name, (Fraction(0), Fraction(0)))
        known: tuple[Any, ...] = (value, error, doubt)
        finite = all(abs(part) < inf for part in known)
        self.sums[name] = (total + Fraction(value), doubt + Fraction(error)) if finite else (total, inf)

    def mark(self, name: str, index: int) -> None:
        """Remember the smallest index of that name."""
        self.first[name] = min(index, self.first.get(name, index))

    def merge(self, other: Partial) -> Partial:
        """Take the figures of the rows that follow."""
        self.counts.update(other.counts)
        for name, (value, error) in other.sums.items():
            self.add(name, value, error)
        self.low, self.high = _grown(self.low, other.low), _grown(self.high, other.high)
        self.ordinal = max(self.ordinal, other.ordinal)
        for name, candidates in other.most.items():
            self.most.setdefault(name, Candidates(candidates.keep, candidates.slack)).merge(candidates)
        for name, index in other.first.items():
            self.mark(name, index)
        for name in _LISTS:
            getattr(self, name).extend(getattr(other, name))
        self.open_rows |= other.open_rows
        self.condition = max(self.condition, other.condition)
        self.tiers.update(other.tiers)
        for name, most in other.relative.items():
            self.relative[name] = max(most, self.relative.get(name, 0.0))
        return self


def _grown(a: Array, b: Array) -> Array:
    """Sum of counts of any two lengths."""
    long, short = (a, b) if a.size >= b.size else (b, a)
    total = long.copy()
    total[: short.size] += short
    return total


_LISTS = (
    "open_elements", "far_rows", "split", "open_defects", "open_bounds", "open_sizes", "open_voids", "open_shorts", "apart_rows",
    "undecided_argmax", "mismatch",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Work:
    """Some rows of an output to be measured. logits: (rows, n); extra: targets or grad_output of these rows, or None.

    output: (rows, width), of the format; rows: their numbers, ascending; keep: how many of the largest ULP errors are wanted;
    chosen: the tolerance of the declared algorithm, and that by which it is judged; gated: whether the latter is looked at too;
    ambiguity: ULPs within which nothing is taken as decided, if more than the tier's own; only: flat indices of the whole output
    of the elements that are looked at, ascending, if not all.
    """

    op: str
    format: str
    tier: Tier
    logits: Array
    extra: Array | None
    output: Array
    rows: Array
    keep: int
    chosen: tuple[Tolerance, Tolerance]
    ambiguity: float = 0.0
    only: Array | None = None
    gated: bool = False

    def of(self, rows: Array, tier: Tier, ambiguity: float, only: Array | None = None) -> Work:
        """Some of the rows, by their numbers, at another tier."""
        at = np.searchsorted(self.rows, rows)
        extra = None if self.extra is None else self.extra[at]
        return Work(
            self.op, self.format, tier, self.logits[at], extra, self.output[at], rows, self.keep, self.chosen, ambiguity, only,
            self.gated,
        )  # fmt: skip


def screen(work: Work) -> Partial:
    """What one tier shows of some rows; many elements or rows that it leaves open are taken to the finer ones."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # garbage overflows, and is then left open
        partial = _Screen(work).run()
        partial.tiers[work.tier.name] = partial.counts["n"]
        for step, tier in enumerate(fast.TIERS[fast.TIERS.index(work.tier) + 1 :], 2):
            finer = _Finer(work, partial, tier, work.ambiguity**step)
            finer.rows()
            finer.elements()
            finer.maxima()
        return partial


FEW = 16
"""Elements, for each 2^13 of their rows, that are not worth a screen of these rows: each costs 500 times as much alone."""


class _Finer:
    """What a finer tier shows of the elements and the rows that were left open."""

    def __init__(self, work: Work, partial: Partial, tier: Tier, ambiguity: float) -> None:
        self.work, self.p, self.tier, self.ambiguity = work, partial, tier, ambiguity

    def _run(self, rows: Array, only: Array | None = None) -> Partial:
        return _Screen(self.work.of(rows, self.tier, self.ambiguity, only)).run()

    def rows(self) -> None:
        """Figures of rows, and whether they keep their argmax."""
        p = self.p
        if p.open_rows:
            found = self._run(np.array(sorted(p.open_rows)))
            p.open_rows = found.open_rows
            for name in _FIGURES_OF_ROWS:
                if name in found.sums:
                    p.add(name, *found.sums[name])
                p.most[name].merge(found.most[name])
                if f"{name} infinite" in found.first:
                    p.mark(f"{name} infinite", found.first[f"{name} infinite"])
        if p.undecided_argmax:
            found = self._run(np.array(sorted(p.undecided_argmax)))
            p.undecided_argmax = found.undecided_argmax
            p.counts["argmax_preserved"] += found.counts["argmax_preserved"]
        for name in _FIGURES_OF_ROWS:
            unknown = p.most[name].settle(MEAN_BITS)
            if unknown.size > FEW:
                found = self._run(np.sort(unknown))
                p.most[name].replace(np.setdiff1d(unknown, list(found.open_rows)), found.most[name])
                p.most[name].settle(MEAN_BITS)
        p.most["sum_defect"].settle(MAXIMUM_BITS)

    def _few(self, indices: Array) -> bool:
        """Whether they had better be looked at alone."""
        width = self.work.output.shape[1]
        rows = len(set((indices // width).tolist()))
        alone: int = FEW * max(1, rows * width >> 13)
        return indices.size <= alone

    def _elements(self, indices: Array) -> Partial:
        only = np.unique(indices)
        return self._run(np.unique(only // self.work.output.shape[1]), only)

    def elements(self) -> None:
        """Everything that is counted or summed over elements."""
        p = self.p
        asked = np.array(p.open_elements, np.int64)
        if self._few(asked):
            return
        p.open_elements = []
        found = self._elements(asked)
        decided = asked.size - len(found.open_elements)
        p.tiers[self.work.tier.name] -= decided
        p.tiers[self.tier.name] += decided
        p.merge(found)

    def maxima(self) -> None:
        """The candidates for the maxima over elements."""
        unknown = {name: self.p.most[name].settle(MAXIMUM_BITS) for name in _MAXIMA}
        unknown = {name: indices for name, indices in unknown.items() if not self._few(indices)}
        if not unknown:
            return
        found = self._elements(np.concatenate(list(unknown.values())))
        for name, indices in unknown.items():
            finer = found.most[name]
            self.p.most[name].replace(np.setdiff1d(indices, found.open_elements), finer)
            self.p.most[name].settle(MAXIMUM_BITS)


class _Screen:
    """One pass over the rows of a Work."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.op = ops.OPS[work.op]
        self.fmt: Format = formats.FORMATS[work.format]
        self.width = work.output.shape[1]
        self.n = work.logits.shape[1]
        self.up = fast.UP if self.fmt.precision == 53 else 0
        self.buffers = Buffers()
        self.partial = Partial()
        for name in _MAXIMA:
            self.partial.most[name] = Candidates(work.keep if name == "ulp" else 1)
        for name in _ROW_FIGURES:
            self.partial.most[name] = Candidates(1, 2.0**-18)
        self.doubt = max(OPEN, 2 * work.ambiguity)
        self.finite = True
        self.careful = work.tier is not fast.first_tier(self.fmt.precision)
        self.ledger = _Ledger(work, self.partial, self.up)

    def run(self) -> Partial:
        work = self.work
        rows = len(work.logits)
        step = max(1, CHUNK // max(self.n, self.width))
        for start in range(0, rows, step):
            self._block(np.arange(start, min(start + step, rows)))
        if work.only is None:
            self.ledger.close()
        return self.partial

    # rows

    def _block(self, rows: Array) -> None:
        work = self.work
        whole = slice(int(rows[0]), int(rows[-1]) + 1)
        logits, output = work.logits[whole], work.output[whole]
        extra = None if work.extra is None else work.extra[whole]
        block = Block(work.op, work.tier, self.up, logits, extra, self.buffers)
        live = np.isfinite(block.maximum.reshape(-1))
        far = self._far(block, live)
        if far.any():
            self.partial.far_rows += work.rows[rows[far]].tolist()
        special = ~live
        if special.any():
            top = block.maximum.reshape(-1)
            kinds = ((np.isnan(top), np.nan), (top == np.inf, self.op.infinite), (top == -np.inf, self.op.fully_masked))
            for chosen, value in kinds:
                if chosen.any():
                    self._special(output[chosen], value, rows[chosen])
        usual = live & ~far
        if not usual.any():
            return
        if not usual.all():
            extra = None if extra is None else extra[usual]
            block = Block(work.op, work.tier, self.up, logits[usual], extra, self.buffers)
            rows, output = rows[usual], output[usual]
        block.prepare()
        _Rows(self, block, work.rows[rows], output).run()

    def wanted(self, rows: Array) -> Array | None:
        """Of the elements of these rows (by number) those that are looked at, (rows, width); None: all."""
        only, width = self.work.only, self.width
        if only is None:
            return None
        found = np.zeros((rows.size, width), bool)
        chosen = only[np.searchsorted(only, rows[0] * width) : np.searchsorted(only, (rows[-1] + 1) * width)]
        found[np.searchsorted(rows, chosen // width), chosen % width] = True
        return found

    def _far(self, block: Block, live: Array) -> Array:
        """Rows whose numbers leave the range the fast tiers are proven for."""
        size = np.maximum(np.abs(block.maximum), np.abs(block.minimum))
        weighted = block.extra is not None and block.extra.ndim == 2
        if (
            not weighted
            and self.n <= fast.LONGEST
            and self.op.output != "jacobian"
            and (not block.logarithmic or bool((size < fast.HUGE).all()))
        ):
            return np.zeros(len(live), bool)
        return np.asarray(live & ~fast.within(self.op.name, block.logits, block.extra))

    def _special(self, output: Array, value: float, rows: Array) -> None:
        """Rows whose every truth is NaN or an infinity."""
        counts = self.partial.counts
        c = formats.widen(output)
        self.raw(c)
        nan = np.isnan(c)
        right = nan if np.isnan(value) else c == value
        counts["n"] += c.size
        counts["correctly_rounded"] += int(right.sum())
        counts["nan_missing" if np.isnan(value) else "nan_unexpected"] += int((~nan).sum() if np.isnan(value) else nan.sum())
        counts["special_mismatch"] += int((~right).sum())
        if np.isnan(value):
            counts["untrue_rows"] += len(rows)
        numbers = self.work.rows[rows]
        self.partial.open_defects += numbers.tolist()
        self.mismatches(np.flatnonzero(~right.reshape(-1)), lambda at: numbers[at // self.width] * self.width + at % self.width)

    def raw(self, c: Array) -> int:
        """Counts that need no truth; returns the number of zeros. Afterwards `finite` says whether all of c is."""
        counts = self.partial.counts if self.work.only is None else Counter[str]()
        least, most = float(c.min()), float(c.max())
        self.finite = -inf < least <= most < inf
        self.size = max(-least, most) if self.finite else inf
        if not self.finite:
            counts["nan_count"] += int(np.isnan(c).sum())
            counts["inf_count"] += int(np.isinf(c).sum())
            counts["negative_inf"] += int((c == -inf).sum())
        elif least >= self.fmt.smallest_normal or most <= -self.fmt.smallest_normal:
            return 0
        zeros = c.size - int(np.count_nonzero(c))
        counts["zero_count"] += zeros
        counts["subnormal_count"] += int(np.count_nonzero(np.abs(c) < self.fmt.smallest_normal)) - zeros
        return zeros

    def mismatches(self, at: Array, index: Any) -> None:
        """Remember the first special mismatches."""
        if at.size:
            found = self.partial.mismatch
            found += np.sort(index(at))[: self.work.keep].tolist()
            found.sort()
            del found[self.work.keep :]


_FIGURED = ("softmax", "log_softmax")
"""Ops with figures of rows."""
_SUMMED = (*_FIGURED, "cross_entropy_grad")
"""Ops with a sum_defect."""
_TOGETHER = 4096
_FIGURES_OF_ROWS = ("kl", "total_variation", "backward_error")
_ROW_FIGURES = (*_FIGURES_OF_ROWS, "sum_defect")
_MAXIMA = ("ulp", "rel", "normal", "abs", "bound")
_SIGNS = {"softmax": 1, "cross_entropy": 1, "log_softmax": -1}


_ROW_STARTS = dict.fromkeys(("kl", "variation", "weight", "normals", "sum", "sum low", "grain", "holes", "rounded", "margin"), 0.0)
_ROW_STARTS |= dict.fromkeys(("high", "high ratio", "top", "key", "at most"), -inf)
_ROW_STARTS |= dict.fromkeys(("low", "low ratio", "at least"), inf)


class _Rows:
    """The figures of one block of ordinary rows."""

    def __init__(self, screen: _Screen, block: Block, rows: Array, output: Array) -> None:
        self.screen, self.block, self.rows, self.output = screen, block, rows, output
        self.fmt, self.b, self.p = screen.fmt, screen.buffers, screen.partial
        self.name = screen.op.name
        self.axis = block.axis
        self.up = 2.0**screen.up
        self.low_binade = self.fmt.smallest_normal * self.up
        self.sign = _SIGNS.get(self.name, 0)
        self.figures = self.name in _FIGURED
        self.defects = self.name in _SUMMED
        per_row = block.shape(1)
        self.least = self._least()
        self.rational = self.least == block.maximum  # there, and only there, a truth can be a number of the format
        self.some_rational = bool(self.rational.any())
        self.row: dict[str, Array] = {name: np.full(per_row, start) for name, start in _ROW_STARTS.items()}
        self.endless, self.broken, self.void, self.unsummed, self.apart = (np.zeros(per_row, bool) for _ in range(5))
        self.wanted = screen.wanted(rows)
        self.constant = self._constant()
        self.small, self.cut = (SMALL, _LOG) if not screen.careful else (2.0**-4, 2.0**-44)
        self.careful = screen.careful

    def _least(self) -> Array:
        """The smallest finite logit of each row."""
        block = self.block
        if not block.masks:
            return block.minimum
        x = block.logits.astype(np.float64)
        return block.per_row(np.where(np.isinf(x), np.inf, x).min(axis=1))

    def index(self, part: Part) -> Any:
        """Flat positions of a part to flat indices of the output."""
        count, width = part.stop - part.start, self.screen.width
        rows = self.rows

        def place(at: Array) -> Array:
            row, column = (at % len(rows), at // len(rows)) if self.axis == 0 else (at // count, at % count)
            return np.asarray(rows[row] * width + (column + part.start))

        return place

    def run(self) -> None:
        for part in self.block.parts():
            self._part(part)
        if self.wanted is None:
            found = self.allowed.condition()
            first = self.rows[found == found.max()].min()
            self.p.condition = max(self.p.condition, (float(found.max()), -int(first)))
            self._finish()

    # one part

    def _part(self, part: Part) -> None:
        """Everything that one part shows. Below, T and c are taken times the sign of T, and times 2^up."""
        c = self._loaded(part)
        cell = _Cells(part, c, self._magnitude(part, c), self.index(part))
        if not self.figures and self.screen.op.output != "rows" and self.wanted is None:
            self._truth_tops(cell)
        self._odd(cell)
        self._binade(cell)
        self._errors(cell)
        self._rounded(cell)
        self._open(cell)
        self._zeros(cell)
        self._count(cell)
        self._beyond(cell)
        if self.figures and self.wanted is None:
            self._row_figures(cell)
        self._vacuous(cell)
        self._rank(cell)

    def _loaded(self, part: Part) -> Array:
        c = self.b("c", part.hi.shape)
        np.copyto(c, self.block.laid(self.output[:, part.start : part.stop]))
        self.zeros = self.screen.raw(c)
        if self.wanted is None:
            self.p.counts["n"] += c.size
            if self.defects:
                self._sum_outputs(c)
            if self.figures:
                self._tops_by_logits(c, part)
        self.raw = c if self.figures and self.screen.size < 2.0**400 else c.copy()
        if self.up != 1:
            np.multiply(c, self.up, c)
        return c

    def _magnitude(self, part: Part, c: Array) -> tuple[Array, Array | None, Array | int]:
        """|T| as a + lo, and the sign of T; c is multiplied by it."""
        a, lo = part.hi, part.lo
        sign: Array | int = self.sign
        if self.sign == -1:
            for values in (a, c) if lo is None else (a, c, lo):
                np.negative(values, values)
            if lo is not None and (flat := (self.block.log_size == 0) & ~self.rational).any():
                np.copyto(lo, FLOOR, where=flat & (lo == 0))  # the logarithm has underflown: T is just beyond x - m
        elif self.sign == 0:
            sign = np.copysign(1.0, a)
            for values in (a, c) if lo is None else (a, c, lo):
                np.multiply(values, sign, values)
        return a, lo, sign

    def _odd(self, cell: _Cells) -> None:
        """Elements with an infinity or a NaN in them: counted here, then taken out as if both numbers were 1."""
        a = cell.a
        infinite = cell.part.masked if self.name in ("log_softmax", "cross_entropy") else None
        self._exact_truths(cell)
        wild = None if self.screen.finite else ~np.isfinite(self.raw)
        over = self._overflowing(a)
        marked = [mask for mask in (infinite, wild, over) if mask is not None]
        others = None if self.wanted is None else ~self.block.laid(self.wanted[:, cell.part.start : cell.part.stop])
        if marked:
            odd = reduce(np.logical_or, marked)
            at = np.flatnonzero(odd if others is None else odd & ~others)
            if at.size:
                self._count_odd(cell, at, infinite, over)
        if others is not None:
            self._leave_out(cell, np.flatnonzero(others))
        if cell.gone is not None:
            self._set(cell, 0.0, cell.gone)
        if not a.all():
            np.copyto(a, FLOOR, where=a == 0)
        self._scale(cell)

    @staticmethod
    def _set(cell: _Cells, value: Array | float, where: Array) -> None:
        """Set |T|."""
        np.copyto(cell.a, value, where=where)
        if cell.lo is not None:
            np.copyto(cell.lo, 0.0, where=where)

    def _scale(self, cell: _Cells) -> None:
        """What the bound multiplies for the doubt of c - T: |T|, 0 where that is exact, its smaller part where that is known."""
        cell.scale = cell.a
        fine = cell.part.fine
        if fine is None and cell.sure is None and cell.gone is None:
            return
        cell.scale = cell.a.copy()
        if fine is not None:
            if self.block.log_size is not None:  # an underflown logarithm
                lost = (fine.rest == 0) & ~self._of_rows(self.rational, cell, fine.at)
                fine = fine._replace(rest=np.where(lost, FLOOR, fine.rest))
            cell.fine = fine
            cell.scale.reshape(-1)[fine.at] = np.abs(fine.rest) * 1.02
        for exact in (cell.sure, cell.gone):
            if exact is not None:
                cell.scale[exact] = 0.0

    def _leave_out(self, cell: _Cells, at: Array) -> None:
        """Take elements out of everything, as if both numbers were 1."""
        if cell.gone is not None:
            cell.gone.reshape(-1)[at] = False
        if cell.sure is not None:
            cell.sure.reshape(-1)[at] = False
        for values, value in ((cell.a, 1.0), (cell.c, 1.0), (cell.lo, 0.0)):
            if values is not None:
                values.reshape(-1)[at] = value
        cell.odd = np.union1d(cell.odd, at) if cell.odd.size else at  # in order

    def _exact_truths(self, cell: _Cells) -> None:
        """Truths that are numbers: behind masks, and in rows of equal logits."""
        masked = cell.part.masked
        if masked is not None and not self.block.logarithmic:
            cell.gone, cell.sure = masked & (cell.a == 0), masked & (cell.a != 0)
            if not self.weighted:
                self._set(cell, self.up, cell.sure)  # -1 behind a mask
        if self.constant is not None:
            cell.gone = self._also(cell.gone, np.broadcast_to(self.constant, cell.a.shape))
        if self.some_rational:
            self._rational_truths(cell)

    def _rational_truths(self, cell: _Cells) -> None:
        """In rows of k equal logits: where k is a power of two, and 0, or the logit, where k is 1."""
        a, masked, count = cell.a, cell.part.masked, self._finite_logits()
        if self.name == "logsumexp":
            single = self.rational & (count == 1)
            cell.sure, cell.gone = single & (a != 0), single & (a == 0)
        elif self.block.logarithmic:
            cell.gone = self.rational & (a == 0)
        elif self.name != "softmax_vjp" and not self.weighted:
            told = self.rational & ((count.astype(np.int64) & (count.astype(np.int64) - 1)) == 0)
            told = np.broadcast_to(told, a.shape) if masked is None else told & ~masked
            self._told(cell, told, count)

    def _told(self, cell: _Cells, told: Array, count: Array) -> None:
        """Set the truths that are exact: 1/k, 1/k - 1, or -1/k^2 and 1/k (1 - 1/k)."""
        part, share = cell.part, self.up / count
        value = np.broadcast_to(share, told.shape).copy()
        if self.name == "softmax_jacobian":
            column = np.arange(part.start, part.stop)
            diagonal = self.block.laid((column // self.block.n == column % self.block.n)[None, :])
            value = np.where(diagonal, share - share / count, value / count)
        elif self.name == "cross_entropy_grad":
            target = self.block.per_row(self._targets())
            column = self.block.laid(np.arange(part.start, part.stop)[None, :])
            value = np.where(column == target, self.up - share, value)
        self._set(cell, value, told)
        cell.sure = self._also(cell.sure, told & (value > 0))
        cell.gone = self._also(cell.gone, told & (value == 0))

    def _targets(self) -> Array:
        assert self.block.extra is not None
        return self.block.extra

    @property
    def weighted(self) -> bool:
        """Whether a distribution or a grad_output comes with the logits."""
        return self.block.extra is not None and self.block.extra.ndim == 2

    def _finite_logits(self) -> Array:
        """How many logits of each row are finite."""
        block = self.block
        if not block.masks:
            return np.full(block.shape(1), float(block.n))
        return block.per_row(np.isfinite(block.logits.astype(np.float64)).sum(axis=1).astype(np.float64))

    def _constant(self) -> Array | None:
        """Rows whose grad_output is one number wherever the logit is finite: their every vjp is 0."""
        if self.name != "softmax_vjp":
            return None
        finite, g = self.block.logits.astype(np.float64) > -inf, self._targets().astype(np.float64)
        most, least = np.where(finite, g, -inf).max(axis=1), np.where(finite, g, inf).min(axis=1)
        return self.block.per_row(most == least) if (most == least).any() else None

    @staticmethod
    def _also(mask: Array | None, more: Array) -> Array:
        return more.copy() if mask is None else mask | more

    def _overflowing(self, a: Array) -> Array | None:
        """Where the truth rounds to infinity, or may."""
        if self.fmt.precision == 53 or self.name in ("softmax", "softmax_jacobian"):
            return None
        limit = (2 - self.fmt.unit_roundoff) * 2.0**self.fmt.emax
        return a >= limit * (1 - 2.0**-20) if float(a.max()) >= limit * (1 - 2.0**-20) else None

    def _count_odd(self, cell: _Cells, at: Array, infinite: Array | None, over: Array | None) -> None:
        counts = self.p.counts
        c = cell.c.reshape(-1)[at]
        c = np.where(np.isfinite(self.raw.reshape(-1)[at]) & np.isinf(c), 0.0, c)  # only scaling made it infinite
        none = np.zeros(at.shape, bool)
        endless = none if infinite is None else infinite.reshape(-1)[at]
        beyond = none if over is None else over.reshape(-1)[at] & ~endless
        limit = (2 - self.fmt.unit_roundoff) * 2.0**self.fmt.emax if over is not None else inf
        near = beyond & ((np.abs(cell.a.reshape(-1)[at] - limit) <= limit * 2.0**-19) | np.isfinite(c))
        sure = beyond & ~near
        unbounded = endless | sure
        nan = np.isnan(c)
        right = unbounded & (c == inf)
        counts["nan_unexpected"] += int(nan.sum()) * (self.wanted is None)  # those left open have been counted before
        counts["overflow_count"] += int((~unbounded & ~near & np.isinf(c)).sum())
        counts["correctly_rounded"] += int(right.sum())
        infinite_too = at[right & sure]
        counts["exact"] += infinite_too.size
        counts["compared"] += infinite_too.size
        counts["normal"] += infinite_too.size
        if infinite_too.size:
            self.p.mark("compared", int(cell.place(infinite_too).min()))
        wrong = ~right & ~near
        counts["special_mismatch"] += int(wrong.sum())
        self.screen.mismatches(at[wrong], cell.place)
        if near.any():
            self.p.open_elements += cell.place(at[near]).tolist()
            self._open_row(cell, at[near])
        a = cell.a.reshape(-1)[at]
        lost = np.isinf(c) & ~(right & endless)
        self._flag(self.endless, cell, at[lost])
        self._flag(self.broken, cell, at[lost & (a >= self.low_binade)])
        self._open_row(cell, at[lost & (np.abs(a - self.low_binade) < self.low_binade / 8)])
        self._flag(self.apart, cell, at[wrong])
        self._leave_out(cell, at)

    def _flag(self, rows: Array, cell: _Cells, at: Array) -> None:
        """Flag the rows of flat positions."""
        row = at % len(self.rows) if self.axis == 0 else at // cell.c.shape[1]
        rows.reshape(-1)[row] = True

    def _binade(self, cell: _Cells) -> None:
        """2^floor(log2 |T|), not below that of the smallest normal number, decided where T is near a power of two."""
        power, mantissa = self.b("power", cell.a.shape, np.int64), self.b("j", cell.a.shape, np.int64)
        bits = cell.a.view(np.int64)
        np.bitwise_and(bits, _MANTISSA, mantissa)
        reach = int(self.screen.doubt * 2.0 ** (53 - self.fmt.precision) + self.block.bound * 2.0**52) + 2
        near = int(mantissa.min()) < reach or int(mantissa.max()) >= (1 << 52) - reach
        at = np.flatnonzero((mantissa < reach) | (mantissa >= (1 << 52) - reach)) if near else None
        np.bitwise_and(bits, _EXPONENT, power)
        np.maximum(power, np.array(self.low_binade).view(np.int64), out=power)
        cell.power = power
        if at is not None:
            self._settle_binades(cell, at, bits.reshape(-1)[at])

    def _settle_binades(self, cell: _Cells, at: Array, bits: Array) -> None:
        nearest = (bits + (1 << 51)) & _EXPONENT
        keep = nearest > np.array(self.low_binade).view(np.int64)
        at, nearest = at[keep], nearest[keep]
        if not at.size:
            return
        edge = nearest.view(np.float64)
        beside = cell.a.reshape(-1)[at] - edge
        if cell.lo is not None:
            beside = beside + cell.lo.reshape(-1)[at]
        below = beside < 0
        doubt = self._radius(cell, at)
        open_ = np.abs(beside) <= np.maximum(doubt, edge * (self.screen.work.ambiguity * 2.0 ** (1 - self.fmt.precision)))
        open_ &= ~self._exact(cell, at)
        if self.name == "softmax" or (self.name == "cross_entropy_grad" and not self.weighted):
            # a probability is below 1, and so is 1 less one, but where a row has a single finite logit
            one = (edge == self.up) & ~self._of_rows(self.rational, cell, at) & ~self._exact(cell, at)
            below |= one
            open_ &= ~one
        cell.power.reshape(-1)[at] = np.where(below, nearest - (1 << 52), nearest)
        cell.hard.append(at[open_])

    def _of_rows(self, values: Array, cell: _Cells, at: Array) -> Array:
        """A figure of the rows, for flat positions of a part."""
        row = at % len(self.rows) if self.axis == 0 else at // cell.a.shape[1]
        return np.asarray(values.reshape(-1)[row])

    def _exact(self, cell: _Cells, at: Array) -> Array:
        """Which flat positions have a truth that is known exactly."""
        found = np.zeros(at.shape, bool)
        for exact in (cell.sure, cell.gone):
            if exact is not None:
                found |= exact.reshape(-1)[at]
        return found

    @staticmethod
    def _exact_errors(cell: _Cells) -> Array:
        """Where the truth is exact and its difference from the output is too."""
        found = np.zeros(cell.c.shape, bool)
        if cell.sure is not None:
            found |= cell.sure & (dd.two_sum(cell.c, -cell.a)[1] == 0)
        return found if cell.gone is None else found | cell.gone

    def _radius(self, cell: _Cells, at: Array) -> Array:
        """What T may be off by, for flat positions."""
        radius = cell.part.radius
        if radius is None:
            return np.asarray(self.block.bound * cell.a.reshape(-1)[at])
        return np.asarray(radius.reshape(-1)[at])

    def _doubt(self, cell: _Cells, at: Array) -> Array:
        """What c - T may be off by, but for roundings, for flat positions."""
        if cell.part.radius is None:
            return np.asarray(self.block.bound * cell.scale.reshape(-1)[at])
        return np.where(self._exact(cell, at), 0.0, cell.part.radius.reshape(-1)[at])

    def _doubts(self, cell: _Cells) -> Array:
        """The same for all."""
        if cell.part.radius is None:
            return np.asarray(self.block.bound * cell.scale)
        return np.where(cell.scale > 0, cell.part.radius, 0.0)

    def _errors(self, cell: _Cells) -> None:
        """c - T, and the same in ulps."""
        shape = cell.a.shape
        inverse = self.b("head", shape).view(np.int64)
        np.subtract(np.array((2046 + self.fmt.precision - 1) << 52, np.uint64).view(np.int64), cell.power, inverse)
        cell.inverse = inverse.view(np.float64)
        cell.r, cell.e = self.b("q", shape), self.b("rest", shape)
        np.subtract(cell.c, cell.a, cell.r)
        if cell.lo is not None:
            np.subtract(cell.r, cell.lo, cell.r)
        self._refine(cell)
        np.multiply(cell.r, cell.inverse, cell.e)
        cell.delta = np.divide(cell.r, cell.a, out=self.b("back", shape))
        cell.share = np.abs(cell.delta, out=self.b("d", shape))
        cell.most = float(cell.share.max())

    def _refine(self, cell: _Cells) -> None:
        """c - T where T is 0, or better known as the difference from an exact number."""
        if cell.gone is not None:
            np.copyto(cell.r, cell.c, where=cell.gone)
        fine = cell.fine
        if fine is not None:
            c, used = cell.c.reshape(-1)[fine.at], ~np.isin(fine.at, cell.odd)
            # what is near to each other first: else c - base, of the size of rest, would lose as much as low
            r, lost = dd.two_sum((c - fine.base) - fine.rest, -fine.low)
            cell.r.reshape(-1)[fine.at[used]] = (r + (lost - fine.spill))[used]

    def _rounded(self, cell: _Cells) -> None:
        """R = RN(T), decided where T is near a midpoint."""
        a, precision = cell.a, self.fmt.precision
        rounded, magic, step = self.b("a", a.shape), self.b("t", a.shape), self.b("w", a.shape)
        if precision == 53:
            np.copyto(rounded, a)
            if float(a.min()) < self.low_binade:
                np.copyto(rounded, (a + self.low_binade) - self.low_binade, where=a < self.low_binade)
        else:
            np.multiply(cell.power.view(np.float64), 1.5 * 2.0 ** (53 - precision), magic)
            np.add(a, magic, rounded)
            np.subtract(rounded, magic, rounded)
        np.subtract(a, rounded, step)
        if cell.lo is not None:
            np.add(step, cell.lo, step)
        np.multiply(step, cell.inverse, step)
        np.abs(step, step)
        cell.rounded = rounded
        if float(step.max()) >= 0.5 - self.screen.doubt:
            self._settle_halves(cell, np.flatnonzero(step >= 0.5 - self.screen.doubt), step)

    def _settle_halves(self, cell: _Cells, at: Array, step: Array) -> None:
        a, rounded, inverse = (values.reshape(-1)[at] for values in (cell.a, cell.rounded, cell.inverse))
        size = step.reshape(-1)[at]
        rest = a - rounded
        doubt = np.maximum(self._radius(cell, at) * inverse * (1 + 2.0**-20), self.screen.work.ambiguity)
        over = size > 0.5
        open_ = np.abs(size - 0.5) <= doubt
        low = np.zeros_like(a) if cell.lo is None else cell.lo.reshape(-1)[at]
        if self.block.log_size is not None and not self.screen.work.ambiguity:
            # T is beside an exact midpoint, on the side that its low part shows
            tie = np.abs(rest) * inverse == 0.5
            known = tie & (np.abs(low) > 1.01 * self.block.bound * self._of_rows(self.block.log_size, cell, at))
            open_ &= ~known
            over = np.where(tie, (low > 0) == (rest > 0), over)
        exact = self._exact(cell, at)  # a tie is rounded to even above
        open_, over = open_ & ~exact, over & ~exact
        away = np.where(rest + low > 0, 1.0, -1.0) if self.block.log_size is None else np.sign(rest + np.where(rest == 0, low, 0.0))
        cell.rounded.reshape(-1)[at] = np.where(over, rounded + away / inverse, rounded)
        cell.hard.append(at[open_])

    def _open(self, cell: _Cells) -> None:
        """What is left to a finer tier, taken out of the ULP figures."""
        a, c, radius = cell.a, cell.c, cell.part.radius
        size = cell.size = np.abs(cell.e, out=self.b("low", a.shape))
        if float(a.min()) < 2.0**-960:
            deep = np.flatnonzero((a < 2.0**-960) & (c != 0) & (cell.scale > 0))
            endless = self._endless(cell, deep)
            cell.deep, deep = deep[endless], deep[~endless]
            cell.hard.append(deep)
            self._open_row(cell, deep)
        if radius is not None:
            # of a zero in the output the relative error is 1 whatever T is, if T is not 0, as only a vjp may be by cancellation
            blurred = (radius > 2.0**-20 * a) & (c != 0)
            if cell.part.live is not None:
                blurred |= (a <= np.maximum(radius, FLOOR)) & ~cell.part.live
            blurred.reshape(-1)[cell.deep] = False
            cell.hard.append(np.flatnonzero((blurred | (radius * cell.inverse > OPEN)) & (cell.scale > 0)))
        if self.some_rational and self.weighted and not self.block.logarithmic:
            cell.hard.append(np.flatnonzero((size <= self.screen.doubt) & self.rational & (cell.scale > 0)))
        cell.top = float(size.max())
        if not cell.top < inf:
            wild = np.flatnonzero(~np.isfinite(size))
            cell.hard.append(wild)
            self._open_row(cell, wild)
        hard = np.unique(np.concatenate(cell.hard)) if cell.hard else np.empty(0, np.int64)
        if cell.odd.size:
            hard = np.setdiff1d(hard, cell.odd)
        if not hard.size:
            return
        cell.open = hard
        if self.wanted is None and self.figures:
            self._flag(self.row["holes"], cell, hard)
        self.p.open_elements += cell.place(hard).tolist()
        self._open_row(cell, hard[a.reshape(-1)[hard] < 4 * self.low_binade])
        cell.e.reshape(-1)[hard] = 0.0
        size.reshape(-1)[hard] = 0.0
        cell.top = float(size.max())

    def _endless(self, cell: _Cells, at: Array) -> Array:
        """Which outputs are more than 2^1100 times their truths, by the logits: log2 p_j is at most (x_j - m)/log 2."""
        live = cell.part.live
        if self.block.logarithmic or (self.weighted and live is None):
            return np.zeros(at.shape, bool)
        count = cell.a.shape[1]
        row, column = (at % count, at // count) if self.axis == 0 else (at // count, at % count)
        column, n = column + cell.part.start, self.block.n
        gap = self.block.logits[row, column // n if self.name == "softmax_jacobian" else column].astype(np.float64)
        gap = gap - self.block.maximum.reshape(-1)[row]
        if self.name == "softmax_jacobian":
            other = self.block.logits[row, column % n].astype(np.float64) - self.block.maximum.reshape(-1)[row]
            gap = np.where(gap < 0, gap + other * (column // n != column % n), 0.0)
        found = np.asarray(np.log2(np.abs(cell.c.reshape(-1)[at]) / self.up) - gap * 1.4426)
        if live is None:
            return found > 1110
        most = np.abs(self._targets()[row].astype(np.float64)).max(axis=1, initial=1.0)  # abs(g - G) is at most twice that
        return np.asarray(live.reshape(-1)[at] & (found - np.log2(most) > 1111))

    def _open_row(self, cell: _Cells, at: Array) -> None:
        if at.size and self.figures and self.wanted is None:
            self.p.open_rows |= set((cell.place(at) // self.screen.width).tolist())

    def _count(self, cell: _Cells) -> None:
        """What is summed or counted over elements."""
        p, size = self.p, cell.size
        same = np.equal(cell.c, cell.rounded)
        same.reshape(-1)[cell.open] = False
        cell.same = same
        out = cell.odd.size + cell.open.size
        p.counts["compared"] += size.size - out
        p.counts["correctly_rounded"] += int(np.count_nonzero(same)) - cell.odd.size
        total = float(np.add.reduce(size, axis=None))
        if cell.scale is cell.a and cell.part.radius is None:
            doubt = (size.size - out) * self.block.bound * 2.0**self.fmt.precision
        else:
            eps = self._doubts(cell) * cell.inverse
            eps.reshape(-1)[cell.open] = eps.reshape(-1)[cell.odd] = 0.0
            doubt = float(eps.sum()) * (1 + _SUM)
        slack = total * _SUM
        if self.careful:  # the sum is exact then, but every error is itself rounded, if not that from an exact truth
            known = cell.sure is not None or cell.gone is not None
            rounded = np.where(self._exact_errors(cell), 0.0, size) if known else size
            slack = float(np.add.reduce(rounded, axis=None)) * 2.0**-50
        p.add("size", total_of(size) if self.careful else total, doubt + slack)
        p.counts["normal"] += self._normals(cell)
        if p.first.get("compared", inf) > self.rows[0] * self.screen.width:
            whole = np.ones(size.size, bool)
            whole[cell.odd] = whole[cell.open] = False
            if whole.any():
                p.mark("compared", int(cell.place(np.flatnonzero(whole)).min()))
        signed = cell.e if isinstance(cell.sign, int) else cell.e * cell.sign
        bias = total_of(signed) if self.careful else float(np.add.reduce(signed, axis=None))
        p.add("signed", -bias if self.sign < 0 else bias, doubt + slack)
        self._bins(cell, out)
        self._ordinals(cell)

    def _normals(self, cell: _Cells) -> int:
        if cell.normal is None and not cell.open.size:
            return cell.rounded.size - cell.odd.size
        normal = cell.rounded >= self.low_binade
        normal.reshape(-1)[cell.open] = False
        return int(np.count_nonzero(normal)) - cell.odd.size

    def _bins(self, cell: _Cells, out: int) -> None:
        """Counts in the percentile bins: a table tells the bin but for the side of the one edge that may lie in a sub-bin.

        What has been taken out, and is 0 here, is not counted.
        """
        p, shape = self.p, cell.size.shape
        if cell.sure is not None or cell.gone is not None:
            cell.exact = self._exactly(cell)
        exact = 0 if cell.exact is None else int(np.count_nonzero(cell.exact))
        p.counts["exact"] += exact
        sub, threshold, number = self.b("j", shape, np.int64), self.b("t", shape), self.b("number", shape, np.int64)
        np.right_shift(cell.size.view(np.int64), _SUB, sub)
        np.subtract(sub, _FIRST, sub)
        base, edges = _sub_bins()
        edges.take(sub, None, threshold, "clip")
        base.take(sub, None, number, "clip")
        np.subtract(cell.size, threshold, threshold)
        np.add(number, threshold > 0, number)
        found = np.bincount(number.reshape(-1))
        found[0] -= out + exact
        p.low, p.high = _grown(p.low, found), _grown(p.high, found)
        np.abs(threshold, threshold)
        near = OPEN + cell.top * 2.0**-50
        if cell.top > _TOP or float(threshold.min()) <= near:
            chosen = ((threshold <= near) | (cell.size > _TOP)).reshape(-1)
            chosen[cell.odd] = chosen[cell.open] = False
            at = np.flatnonzero(chosen if cell.exact is None else chosen & ~cell.exact.reshape(-1))
            values = cell.size.reshape(-1)[at]
            doubt = self._doubt(cell, at) * cell.inverse.reshape(-1)[at] + values * 2.0**-50
            if cell.sure is not None or cell.gone is not None:
                doubt = np.where(self._exact_errors(cell).reshape(-1)[at], 0.0, doubt)
            if cell.deep.size:  # T is all but 0: an error just below c, or just above -c
                deep = np.isin(at, cell.deep)
                values = np.where(deep & (cell.c.reshape(-1)[at] < 0), values * (1 + 2.0**-50), values)
                doubt = np.where(deep, 0.0, doubt)
            values, doubt = self._beside_edges(cell, at, values, doubt)
            taken = -np.bincount(number.reshape(-1)[at], minlength=1)
            p.low, p.high = _grown(p.low, taken), _grown(p.high, taken)
            ends = bin_numbers(np.maximum(values - doubt, FLOOR)), bin_numbers(np.maximum(values + doubt, FLOOR))
            p.bin(*ends)
            if self.screen.work.tier is fast.T2:
                apart = ends[0] != ends[1]
                p.split += zip(cell.place(at[apart]).tolist(), *(end[apart].tolist() for end in ends), strict=True)

    def _beside_edges(self, cell: _Cells, at: Array, values: Array, doubt: Array) -> tuple[Array, Array]:
        """Where c less the exact part of T is on an edge of a bin, the small part of T shows the side."""
        if cell.fine is not None:
            base, low, rest = (np.zeros(at.shape) for _ in range(3))
            found, where, which = np.intersect1d(at, cell.fine.at, return_indices=True)
            if found.size:
                for part, given in ((base, cell.fine.base), (low, cell.fine.low), (rest, cell.fine.rest)):
                    part[where] = given[which]
                known = (rest != 0) & (low == 0)
                values, doubt = self._sided(cell, at, known, (base, rest), values, doubt)
        if self.block.log_size is not None and cell.lo is not None:
            low = cell.lo.reshape(-1)[at]
            known = np.abs(low) > 1.01 * self.block.bound * self._of_rows(self.block.log_size, cell, at)
            values, doubt = self._sided(cell, at, known, (cell.a.reshape(-1)[at], low), values, doubt)
        return values, doubt

    @staticmethod
    def _sided(
        cell: _Cells, at: Array, known: Array, truth: tuple[Array, Array], values: Array, doubt: Array
    ) -> tuple[Array, Array]:
        """Errors just beside an edge of a bin, told by the sign of the small part of the truth where that is known."""
        head, spill = dd.two_sum(cell.c.reshape(-1)[at], -truth[0])
        size = np.abs(head) * cell.inverse.reshape(-1)[at]
        known = known & (spill == 0) & (size > 0) & (np.abs(size - values) <= OPEN)
        known &= edges_of(bin_numbers(np.maximum(size, FLOOR))) == size
        beside = np.where(np.sign(truth[1]) != np.sign(head), size * (1 + 2.0**-50), size)
        return np.where(known, beside, values), np.where(known, 0.0, doubt)

    def _exactly(self, cell: _Cells) -> Array:
        """Where a truth that is known exactly is the output: 0, or -y behind a mask, or a number of _exact_truths."""
        known = cell.sure if cell.gone is None else self._also(cell.sure, cell.gone)
        same: Array = np.zeros(cell.c.shape, bool) if known is None else known & (cell.r == 0)
        same.reshape(-1)[cell.odd] = same.reshape(-1)[cell.open] = False
        return same

    def _ordinals(self, cell: _Cells) -> None:
        """The largest distance in representable numbers, of those that can exceed what is known.

        A distance of D + 1 steps takes an error of D + 1/2 ulp at least, unless c is in a lower binade than T.
        """
        power = cell.power.view(np.float64)
        least = self.p.ordinal + 0.4
        below = np.less(cell.c, power)
        some = bool(below.any())
        if some and cell.normal is not None:
            below &= power > self.low_binade
        if cell.top < least and not some:
            return
        at = np.flatnonzero((below | (cell.size >= least)) & ~cell.same)
        if cell.open.size:
            at = np.setdiff1d(at, cell.open)
        if at.size:
            got, want = (
                formats.ordinals((values.reshape(-1)[at] / self.up).astype(self.fmt.dtype), self.fmt)
                for values in (cell.c, cell.rounded)
            )
            apart = np.maximum(got, want).view(np.uint64) - np.minimum(got, want).view(np.uint64)
            self.p.ordinal = max(self.p.ordinal, int(apart.max()))

    def _zeros(self, cell: _Cells) -> None:
        """Zeros in the output, and which numbers are normal."""
        cell.normal = None if float(cell.rounded.min()) >= self.low_binade else cell.rounded >= self.low_binade
        if cell.odd.size:
            cell.normal = cell.rounded >= self.low_binade
            cell.normal.reshape(-1)[cell.odd] = False
        cell.zero = None
        if not self.zeros:
            return
        zero = cell.c == 0
        if cell.gone is not None:
            zero &= ~cell.gone
        counts = self.p.counts
        zero.reshape(-1)[cell.open] = False
        counts["underflow_count"] += int(np.count_nonzero(zero))
        at = np.flatnonzero(zero)
        if not at.size:
            return
        cell.zero = zero
        want = cell.rounded.reshape(-1)[at]
        counts["underflow_premature"] += int(np.count_nonzero(want))
        normal = at[want >= self.low_binade]
        counts["false_zero_count"] += normal.size
        self.p.mark("rel", int(cell.place(at).min()))
        if normal.size:
            self.p.mark("normal", int(cell.place(normal).min()))

    @cached_property
    def allowed(self) -> Allowed:
        """The bounds of these rows."""
        return Allowed(self.screen.work.chosen, self.block.logits, self.block.extra)

    def _bounds(self, which: int, cell: _Cells) -> Array:
        """A tolerance, in the block's layout, times 2^up; infinite where there is none."""
        tolerance, part = self.screen.work.chosen[which], cell.part
        found = np.ascontiguousarray(self.block.laid(self.allowed.part(which, part.start, part.stop)))
        found = found if self.up == 1 else found * self.up
        if tolerance.absolute or tolerance.relative:
            absolute, share = tolerance.absolute * self.up, tolerance.relative * cell.a
            found = np.maximum(found, np.maximum(absolute, share) if tolerance.larger else absolute + share)
        if not tolerance.ulps:
            return found
        ulps = tolerance.ulps / cell.inverse
        if tolerance.outside:
            power = cell.power.view(np.float64)
            ulps[(np.abs(cell.c) < power) & (power > self.low_binade)] /= 2
        return np.maximum(found, ulps)

    def _out(self, cell: _Cells, mask: Array) -> Array:
        """A mask without what has been taken out."""
        mask.reshape(-1)[cell.odd] = mask.reshape(-1)[cell.open] = False
        return mask

    def _beyond(self, cell: _Cells) -> None:
        """Elements beyond the tolerance by which is judged, and zeros inside it; what is too close to it is left open."""
        tolerance, value = self._bounds(1, cell), np.abs(cell.r)
        cell.judge = tolerance
        if not float(tolerance.max()) < inf:
            self.p.counts["unjudged"] += int(np.count_nonzero(self._out(cell, tolerance == inf)))
        over = self._out(cell, (value > tolerance * (1 - 2.0**-10)) | self._small(cell))
        unsure_at = at = np.flatnonzero(over)
        if at.size:
            gap, limit = value.reshape(-1)[at], tolerance.reshape(-1)[at]
            near = (1.1 + 1.1 * self.screen.work.chosen[1].relative) * self._doubt(cell, at) + gap * 2.0**-40 + limit * 2.0**-30
            gap = gap - limit
            unsure_at, sure = at[np.abs(gap) <= near], at[gap > near]
            self.p.open_bounds += cell.place(unsure_at).tolist()
            over.reshape(-1)[at[gap <= near]] = False
            self.p.counts["beyond"] += sure.size
            if sure.size:
                self.p.mark("beyond", int(cell.place(sure).min()))
            if cell.zero is not None:
                lost = cell.zero.reshape(-1)[sure] & (cell.rounded.reshape(-1)[sure] >= self.low_binade)
                self.p.counts["lost"] += int(lost.sum())
        if cell.zero is not None:
            inside = cell.zero & (cell.rounded >= self.low_binade) & ~over
            inside.reshape(-1)[unsure_at] = False
            found = np.flatnonzero(inside)
            if found.size:
                self.p.counts["absorbed"] += found.size
                self.p.mark("absorbed", int(cell.place(found).min()))

    def _small(self, cell: _Cells) -> Array | bool:
        """Elements whose tolerance is so small that what T may be off by counts beside it."""
        if self.screen.work.chosen[1].ulps >= SEEN:
            return False
        small = np.asarray(cell.judge * cell.inverse < SEEN)
        return small if cell.gone is None else small & ~cell.gone

    def _vacuous(self, cell: _Cells) -> None:
        """Elements without a bound of the declared algorithm, and those whose tolerance is as large as they are."""
        alike = self.screen.work.chosen[0] == self.screen.work.chosen[1]
        own = cell.own = cell.judge if alike else self._bounds(0, cell)
        counts = self.p.counts
        counts["bounded"] += own.size - cell.odd.size - cell.open.size
        if not float(own.max()) < inf:
            unbounded = int(np.count_nonzero(self._out(cell, own == inf)))
            counts["unbounded"] += unbounded
            counts["bounded"] -= unbounded
        counts["vacuous"] += self._void(cell, own, 0.0, self.p.open_sizes)
        if self.screen.work.gated:
            counts["void"] += self._void(cell, cell.judge, self.screen.work.chosen[1].relative, self.p.open_voids)
            counts["null"] += int(np.count_nonzero(self._out(cell, cell.gone.copy()))) if cell.gone is not None else 0
            self._short(cell)

    def _void(self, cell: _Cells, tolerance: Array, relative: float, unknown: list[int]) -> int:
        """How many elements, not 0, have a tolerance as large as they are, and not for want of a bound."""
        wide = tolerance >= cell.a * (1 - 2.0**-20)
        if not float(tolerance.max()) < inf:
            wide &= tolerance < inf
        wide = self._out(cell, wide)
        if cell.gone is not None:
            wide &= ~cell.gone
        at = np.flatnonzero(wide)
        size, bound = cell.a.reshape(-1)[at], tolerance.reshape(-1)[at]
        unsure = np.abs(bound - size) <= (1 + relative) * self._radius(cell, at) + (size + bound) * 2.0**-40
        unknown += cell.place(at[unsure]).tolist()
        return int(np.count_nonzero(bound[~unsure] > size[~unsure]))

    def _short(self, cell: _Cells) -> None:
        """Whether a tolerance is below half an ulp where the truth is not 0."""
        tolerance = self.screen.work.chosen[1]
        if tolerance.ulps >= 0.5 or "short" in self.p.first:
            return
        small = self._out(cell, cell.judge * cell.inverse <= 0.5 * (1 + 2.0**-30))
        if cell.gone is not None:
            small &= ~cell.gone
        at = np.flatnonzero(small)
        sure = cell.judge.reshape(-1)[at] * cell.inverse.reshape(-1)[at] < 0.5 * (1 - 2.0**-30)
        if sure.any():
            self.p.mark("short", int(cell.place(at[sure]).min()))
        else:
            self.p.open_shorts += cell.place(at).tolist()

    def _rank(self, cell: _Cells) -> None:
        """Candidates for the maxima: every element but what is open, odd, or known to be exact."""
        part, size, share = cell.part, cell.size, cell.share
        difference = np.abs(cell.r, out=self.b("w", cell.r.shape))
        for at in (cell.odd, cell.open):
            for values in (size, share, difference):
                values.reshape(-1)[at] = -inf
        if cell.exact is not None:
            for values in (size, share, difference):
                values[cell.exact] = -inf
        if part.radius is None and cell.scale is cell.a:
            bound = self.block.bound
            ulp, rel, seen, absolute = bound * 2.0**self.fmt.precision, bound, bound, bound * float(cell.a.max())
        else:
            used = np.where(size > -inf, self._doubts(cell), 0.0)
            ulp, rel, absolute = (float(v.max()) for v in (used * cell.inverse, used / cell.a, used))
            seen = float(np.where(cell.a > 2.0**-960, used / cell.a, 0.0).max())
        name = self.screen.work.tier.name
        self.p.relative[name] = max(self.p.relative.get(name, 0.0), seen)
        ulp += _LOST * float(cell.inverse.max())
        top = max(float(size.max()), 0.0)
        self.p.most["ulp"].offer(size, partial(self._around, cell), top * (1 + 2.0**-49) + ulp, cell.place)
        self._offer("abs", difference, absolute + _LOST, cell)
        self._rank_bounds(cell, difference)
        self._rank_shares(cell, rel)

    def _rank_bounds(self, cell: _Cells, difference: Array) -> None:
        """Errors over their bounds, where there is one."""
        own, share = cell.own, self.b("back", difference.shape)
        np.divide(difference, own, share)
        if not float(own.max()) < inf:
            share[own == inf] = -inf
        top = max(float(share.max()), 0.0)
        doubt = float(((self._doubts(cell) + _LOST) / own).max())
        self.p.most["bound"].offer(share, partial(self._beside, cell, share), top * (1 + 2.0**-48) + doubt, cell.place)

    def _beside(self, cell: _Cells, share: Array) -> Array:
        """What every error over its bound may be off by."""
        return np.asarray((self._doubts(cell) + _LOST) / cell.own + np.maximum(share, 0.0) * 2.0**-49)

    def _around(self, cell: _Cells) -> Array:
        """What every ULP error may be off by."""
        return np.asarray((self._doubts(cell) + _LOST) * cell.inverse + np.maximum(cell.size, 0.0) * 2.0**-50)

    def _rank_shares(self, cell: _Cells, rel: float) -> None:
        """Relative errors: of a 0 where T is not 0 it is 1, and infinite where T is 0 and the output is not."""
        share = cell.share
        if cell.gone is not None:
            wild = np.flatnonzero(cell.gone & (cell.c != 0))
            if wild.size:
                self.p.mark("infinite", int(cell.place(wild).min()))
            share[cell.gone] = -inf
        if cell.zero is not None:
            share[cell.zero] = -inf
        deep = np.setdiff1d(cell.deep, np.concatenate([cell.odd, cell.open])) if cell.deep.size else cell.deep
        if deep.size:
            self.p.mark("infinite", int(cell.place(deep).min()))
            share.reshape(-1)[deep] = -inf
        beyond = np.flatnonzero(share == inf)  # binary64, and so the 40 bits that are given: of truths that are tiny numbers
        if beyond.size:
            self.p.mark("infinite", int(cell.place(beyond).min()))
            share.reshape(-1)[beyond] = -inf
        self._offer("rel", share, rel, cell)
        if cell.normal is not None:
            share[~cell.normal] = -inf
        self._offer("normal", share, rel, cell)

    def _offer(self, name: str, values: Array, radius: float, cell: _Cells) -> None:
        top = max(float(values.max()), 0.0)
        radius = radius * (1.01 if name == "abs" else 1.01 * (1 + top)) + top * 2.0**-50
        self.p.most[name].offer(values, lambda: radius, top + radius, cell.place)

    # figures of rows

    def _sum_outputs(self, c: Array) -> None:
        """Exact heads and the rest of the sum of a row's outputs, or of their exponentials."""
        if self.name == "log_softmax":
            self._sum_exponentials(c)
            return
        grain = _GRAIN
        if self.screen.size > 2.0:
            most = np.abs(c).max(axis=self.axis, keepdims=True)
            self.unsummed |= ~(most < 2.0**900)
            coarse = np.ldexp(0.5, np.frexp(np.clip(np.where(most < 2.0**900, most, 1.0), 1.0, None))[1])
            np.maximum(self.row["grain"], coarse, out=self.row["grain"])
            grain = _GRAIN * coarse
        head, rest = self.b("q", c.shape), self.b("rest", c.shape)
        np.add(c, grain, head)
        np.subtract(head, grain, head)
        np.subtract(c, head, rest)
        self.row["sum"] += np.add.reduce(head, axis=self.axis, keepdims=True)
        self.row["sum low"] += np.add.reduce(rest, axis=self.axis, keepdims=True)

    def _sum_exponentials(self, c: Array) -> None:
        x, e = self.b("x", c.shape), self.b("back", c.shape)
        scale, power = fast.UNIT_SCALE, np.zeros((1, 1), np.int64)
        most = np.maximum.reduce(c, axis=self.axis, keepdims=True)
        if not float(most.max()) <= 8.0:
            self.unsummed |= ~(most <= 700.0)
            power = np.where((most > 8.0) & (most <= 700.0), most * 1.4427, 0.0).astype(np.int64)
            np.maximum(self.row["grain"], power + 1.0, out=self.row["grain"])
            scale = scale - (power << 52)
        np.clip(np.where(np.isnan(c), 0.0, c), -700.0, 700.0, out=x)
        low = None
        if self.block.tier is fast.T0:
            fast.exp_t0(x, None, scale, e, self.b)
        else:
            low = self.b("exp low", c.shape)
            fast.exp_t1(x, None, scale, e, low, self.b)
        head, *rest = fast.sum_pieces(e, low, fast.T0 if low is None else fast.T1, self.axis, self.b)
        self.row["sum"] += np.ldexp(head, power - fast.BIAS)
        for piece in rest:
            self.row["sum low"] += np.ldexp(piece, power - fast.BIAS)

    def _row_figures(self, cell: _Cells) -> None:
        row, axis = self.row, self.axis
        if self.name == "log_softmax":
            row["kl"] += self._row_sum(self._log_terms(cell))
            return
        difference = np.abs(cell.r, out=self.b("w", cell.r.shape))
        row["rounded"] += np.add.reduce(cell.rounded, axis=axis, keepdims=True)
        row["variation"] += self._row_sum(difference)
        row["kl"] += self._row_sum(self._terms(cell))
        row["weight"] += 1.0 if cell.scale is cell.a else np.add.reduce(cell.scale, axis=axis, keepdims=True) / self.up
        self._spread(cell)

    def _row_sum(self, values: Array) -> Array:
        """The sum of each row; after the first tier in runs of 128, whatever NumPy's order is."""
        if not self.careful or values.shape[self.axis] <= 256:
            return np.asarray(np.add.reduce(values, axis=self.axis, keepdims=True))
        runs = np.add.reduceat(values, np.arange(0, values.shape[self.axis] - 127, 128), axis=self.axis)
        return np.asarray(np.add.reduce(runs, axis=self.axis, keepdims=True))

    def _spread(self, cell: _Cells) -> None:
        """The extremes of (c - T)/T and of c/T over normal truths."""
        row, normal = self.row, cell.normal
        high, low = self._extremes(cell, cell.delta)
        if cell.most > 0.5:
            nothing = cell.c <= 0
            self._flag(self.broken, cell, np.flatnonzero(nothing if normal is None else nothing & normal))
            high_ratio, low_ratio = self._extremes(cell, cell.c / cell.a)
        else:
            high_ratio, low_ratio = 1 + high, 1 + low
        for name, most in (("high", high), ("high ratio", high_ratio)):
            np.maximum(row[name], most, out=row[name])
        for name, least in (("low", low), ("low ratio", low_ratio)):
            np.minimum(row[name], least, out=row[name])
        row["normals"] += cell.c.shape[self.axis] if normal is None else np.add.reduce(normal, axis=self.axis, keepdims=True)

    def _extremes(self, cell: _Cells, values: Array) -> tuple[Array, Array]:
        high = low = values
        if cell.normal is not None:
            high, low = np.where(cell.normal, values, -inf), np.where(cell.normal, values, inf)
        return (
            np.maximum.reduce(high, axis=self.axis, keepdims=True), np.minimum.reduce(low, axis=self.axis, keepdims=True)
        )  # fmt: skip

    def _terms(self, cell: _Cells) -> Array:
        """T (delta - log1p(delta)) = r delta (1/2 - delta/3 + ...), 0 where R = 0."""
        delta = cell.delta
        term = self.b("t", delta.shape)
        most, small = cell.most, self.small
        large = None if most <= small else np.flatnonzero(~(cell.share <= small))
        _series(delta, min(most, small), _LOG_SERIES, self.cut, term)
        np.multiply(term, delta, term)
        np.multiply(term, cell.r, term)
        if large is not None:
            self._large_terms(cell, large, term)
        return term

    def _large_terms(self, cell: _Cells, at: Array, term: Array) -> None:
        flat = term.reshape(-1)
        flat[at] = 0.0
        used = at[cell.rounded.reshape(-1)[at] != 0]
        c, a = cell.c.reshape(-1)[used], cell.a.reshape(-1)[used]
        void = c <= 0
        if void.any():
            self._flag(self.void, cell, used[void])
        used, ratio, a = used[~void], c[~void] / a[~void], a[~void]
        wild = ~((ratio > 2.0**-900) & (ratio < 2.0**900))
        self._open_row(cell, used[wild])
        used, ratio, a = used[~wild], ratio[~wild], a[~wild]
        flat[used] = a * ((ratio - 1) - _log(ratio))

    def _log_terms(self, cell: _Cells) -> Array:
        """p (expm1(w) - w), w = c - T."""
        assert cell.part.p is not None
        w = self.b("back", cell.r.shape)
        np.multiply(cell.r, -1 / self.up, w)
        term = self.b("t", w.shape)
        most, small = max(float(w.max()), -float(w.min())), self.small
        large = None if most <= small else np.flatnonzero(~(np.abs(w) <= small))  # most may be NaN
        _series(w, min(most, small), _EXP_SERIES, self.cut, term)
        np.multiply(term, w, term)
        np.multiply(term, w, term)
        np.multiply(term, cell.part.p, term)
        if large is not None:
            part, p = w.reshape(-1)[large], cell.part.p.reshape(-1)[large]
            c = cell.c.reshape(-1)[large] / -self.up
            lost = p < 2.0**-900  # to underflow; there it is exp(c), or nothing to speak of
            with_p = p * (_exp(np.clip(part, -700.0, 600.0)) - 1 - part)
            term.reshape(-1)[large] = np.where(lost, _exp(np.clip(c, -700.0, 600.0)), with_p)
            self._open_row(cell, large[~(np.where(lost, c, part) <= 600.0)])
        return term

    def _tops_by_logits(self, c: Array, part: Part) -> None:
        """The largest output of each row, and the largest where the logit is the row's maximum."""
        row = self.row
        x = self.block.load(self.block.logits, part.start, part.stop, "x")
        at = np.flatnonzero(x == self.block.maximum)
        place = at % len(self.rows) if self.axis == 0 else at // c.shape[1]
        np.maximum.at(row["at most"].reshape(-1), place, c.reshape(-1)[at])
        np.maximum(row["top"], np.maximum.reduce(c, axis=self.axis, keepdims=True), out=row["top"])
        row["at least"] = row["at most"]

    def _tops(self, c: Array, key: Array, margin: Array | float) -> None:
        """Largest output of each row, and those at the largest keys: logits where they order the truth, else the truth itself.

        Keys within `margin` of the largest may be the largest.
        """
        row, axis = self.row, self.axis
        most = np.maximum.reduce(key, axis=axis, keepdims=True)
        chosen = key >= most - margin
        spread = self.b("s chosen", c.shape)
        for name, fill, extreme in (("at most", -inf, np.maximum), ("at least", inf, np.minimum)):
            np.copyto(spread, fill)
            np.copyto(spread, c, where=chosen)
            found = extreme.reduce(spread, axis=axis, keepdims=True)
            both = margin + row["margin"]
            ahead, behind = most > row["key"] + both, most < row["key"] - both
            row[name] = np.where(ahead, found, np.where(behind, row[name], extreme(row[name], found)))
        np.maximum(row["key"], most, out=row["key"])
        np.maximum(row["margin"], margin, out=row["margin"])
        np.maximum(row["top"], np.maximum.reduce(c, axis=axis, keepdims=True), out=row["top"])

    def _truth_tops(self, cell: _Cells) -> None:
        """The same by the truth, for the ops whose truth the logits do not order."""
        key = cell.part.hi * cell.sign if not isinstance(cell.sign, int) else cell.part.hi
        share = 4 * self.block.bound + (0.0 if cell.part.lo is None else 2.0**-51)  # the key is the head alone
        margin = share * np.abs(key).max(axis=self.axis, keepdims=True)
        if cell.part.radius is not None:
            margin = margin + 2 * cell.part.radius.max(axis=self.axis, keepdims=True)
        equal = self.rational & (not self.weighted)  # there equal truths have equal keys
        if self.constant is not None:
            equal = equal | self.constant
            key = np.where(self.constant, 0.0, key)
        self._tops(self.raw, key, np.where(equal, 0.0, margin))
        self.row["at least"] = np.where(equal, self.row["at most"], self.row["at least"])

    # the end of a block

    def _finish(self) -> None:
        """Hand the rows over, to be closed with those of other blocks: a small array costs as much as a large one."""
        block = self.block
        found = {**self.row, "most": block.maximum, "least": self.least}
        found |= {"endless": self.endless, "broken": self.broken, "void": self.void, "unsummed": self.unsummed, "apart": self.apart}
        if block.log_size is not None:
            found["log"] = block.log_size
        self.screen.ledger.append({"rows": self.rows, **{name: values.reshape(-1) for name, values in found.items()}})


class _Ledger:
    """Rows of many blocks, turned into sums and candidates together."""

    def __init__(self, work: Work, partial: Partial, up: int) -> None:
        self.p, self.name, self.n, self.up = partial, work.op, work.logits.shape[1], 2.0**up
        self.tier, self.bound = work.tier, fast.bound(work.tier, work.op)
        careful = work.tier is not fast.first_tier(formats.FORMATS[work.format].precision)
        self.log, self.sum = (2.0**-40, 2.0**-44) if careful else (_LOG, _SUM)
        self.careful, self.fmt, self.work = careful, formats.FORMATS[work.format], work
        self.kept: list[dict[str, Array]] = []
        self.count = 0

    def append(self, rows: dict[str, Array]) -> None:
        """Take the rows of a block."""
        self.kept.append(rows)
        self.count += rows["rows"].size
        if self.count >= _TOGETHER:
            self.close()

    def close(self) -> None:
        """Rows into sums and candidates."""
        if not self.kept:
            return
        self.row = {name: np.concatenate([rows[name] for rows in self.kept]) for name in self.kept[0]}
        self.kept, self.count = [], 0
        if ops.OPS[self.name].output != "rows":
            self._preserved()
        if self.name in _SUMMED:
            self._defects()
        if self.name in _FIGURED:
            self._figures()

    def _figures(self) -> None:
        p, rows, row = self.p, self.row["rows"], self.row
        if self.name == "softmax":
            wild = ~((row["low ratio"] > 2.0**-900) & (row["high ratio"] < 2.0**900)) & (row["normals"] > 0) & ~row["broken"]
            p.open_rows |= set(rows[wild].tolist())
        shut = np.isin(rows, list(p.open_rows)) if p.open_rows else np.zeros(rows.shape, bool)
        for name, (value, doubt, void) in self._figures_of_rows().items():
            if (void & ~shut).any():
                p.mark(f"{name} infinite", int(rows[void & ~shut].min()))
            used = ~(void | shut)
            value, doubt, where = value[used], doubt[used], rows[used]
            if value.size:
                total = total_of(value) if self.careful and np.isfinite(value).all() else float(value.sum())
                p.add(name, total, float(doubt.sum()) * (1 + _SUM) + float(value.sum()) * self.sum)
                p.most[name].offer(value, partial(np.asarray, doubt), float((value + doubt).max()), where.__getitem__)

    def _figures_of_rows(self) -> dict[str, tuple[Array, Array, Array]]:
        """(value, what it may be off by, whether it is infinite) of each row, in units of 1."""
        row, bound = self.row, self.bound
        if self.name == "log_softmax":
            kl, reach = row["kl"], bound * row["log"] / self.up
            if self.tier is not fast.T2:  # log S is off by what S is, relatively: by Tier.exp and little more, however large it is
                reach = np.minimum(reach, 1.01 * bound)
            share = fast.TIERS[0].bound * 2
            single = (row["most"] == row["least"]) & (row["log"] == 0)
            lost = np.where((kl < 2.0**-740) & ~(single & (row["at most"] == 0)), 2.0**-800, 0.0)  # what underflows
            return {"kl": (kl, reach * np.sqrt(2.1 * kl) * 1.1 + kl * (self.log + share) + reach**2 + lost, row["endless"])}
        variation, kl = row["variation"] / self.up, row["kl"] / self.up
        value, some = variation / 2, row["weight"] > 0
        lost = np.where(some, self.n * _LOST, 0.0)
        weight = np.minimum(row["weight"] * (1 + 2.0**-20), 1.0)
        blur = np.where(some, 1.1 * bound * variation + 2.0**-900, 0.0)
        return {
            "total_variation": (value, bound * 0.51 * weight + value * self.sum + lost, row["endless"]),
            "kl": (kl, blur + kl * (self.log + bound), row["void"] | row["endless"]),
            "backward_error": (*self._backward(), row["broken"]),
        }

    def _backward(self) -> tuple[Array, Array]:
        """Half the spread of log(c/T): by 1 + delta, or by c/T itself where an output is far below its truth."""
        row = self.row
        some = (row["normals"] > 1) & ~row["broken"]
        high, low = np.where(some, row["high"], 0.0), np.where(some, row["low"], 0.0)
        far = low < -0.5
        few, many = np.where(far & some, row["low ratio"], 1.0), np.where(far & some, row["high ratio"], 1.0)
        few, many = (np.clip(ratio, 2.0**-900, 2.0**900) for ratio in (few, many))
        high, low = np.where(far, 0.0, high), np.where(far, 0.0, low)
        near = _log1p((high - low) / (1 + low))
        logs = _log(many), _log(few)
        value = np.where(far, logs[0] - logs[1], near) / 2
        doubt = self.bound * 1.1 * (row["weight"] > 0) + value * self.log
        doubt += 2.0**-52 * (np.abs(high) / (1 + high) + np.abs(low) / (1 + low)) + far * 2.0**-50 * (
            1 + np.abs(logs[0]) + np.abs(logs[1])
        )
        alike = some & (row["high"] == row["low"])
        alike[alike] = self._alike(row["rows"][alike])
        return np.where(alike, 0.0, value), np.where(some & ~alike, doubt, 0.0)

    def _alike(self, rows: Array) -> Array:
        """Which rows have equal logits and equal outputs, wherever the logit is finite: there c/T is one number."""
        at = np.searchsorted(self.work.rows, rows)
        logits, outputs = (values[at].astype(np.float64) for values in (self.work.logits, self.work.output))
        finite = logits > -inf
        same = np.ones(rows.shape, bool)
        for values in (logits, outputs):
            same &= np.where(finite, values, -inf).max(axis=1) == np.where(finite, values, inf).min(axis=1)
        return same

    def _defects(self) -> None:
        """abs(sum c - 1), abs(sum c) or abs(sum exp c - 1) of each row."""
        p, n, row, rows = self.p, self.n, self.row, self.row["rows"]
        total = row["sum"] + row["sum low"]
        value = np.abs((row["sum"] - (self.name != "cross_entropy_grad")) + row["sum low"])
        if self.name == "log_softmax":
            doubt = total * (2.0**-51 if self.tier is fast.T0 else 2.0**-78) + value * 2.0**-50 + n * 2.0**-90
            doubt += np.where(row["grain"] > 1, total * 2.0**-50, 0.0)
        else:
            grain = np.maximum(row["grain"], 1.0)
            doubt = n * grain * np.where((grain > 1) & (n > CHUNK), 2.0**-50, 2.0**-74)
            doubt += np.where(np.abs(total) > 1024 * grain, np.abs(total) * 2.0**-30, 0.0)
        shut = row["unsummed"]
        p.open_defects += rows[shut].tolist()
        if not shut.all():
            kept = rows[~shut]
            p.most["sum_defect"].offer(value[~shut], lambda: doubt[~shut], float((value + doubt)[~shut].max()), kept.__getitem__)
        if self.name == "softmax":
            beside = value - np.abs(row["rounded"] / self.up - 1) - 0.5
            slack = 2.0**-30 * (1 + value) + np.where(
                row["holes"] > 0, 4 * self.fmt.unit_roundoff + n * self.fmt.smallest_normal, 0.0
            )
            counted = ~row["apart"]
            p.counts["apart"] += int((counted & ~shut & (beside > slack)).sum())
            p.apart_rows += rows[counted & (shut | (np.abs(beside) <= slack))].tolist()

    def _preserved(self) -> None:
        row = self.row
        yes, maybe = row["at least"] == row["top"], row["at most"] == row["top"]
        self.p.counts["argmax_preserved"] += int(yes.sum())
        self.p.undecided_argmax += row["rows"][maybe & ~yes].tolist()


@dataclass(eq=False)
class _Cells:
    """The elements of one part, in the block's layout. a + lo: abs(T); c and r = c - T: times the sign of T; all times 2^up."""

    part: Part
    c: Array
    magnitude: tuple[Array, Array | None, Array | int]
    place: Any
    hard: list[Array] = field(default_factory=list)
    odd: Array = field(default_factory=lambda: np.empty(0, np.int64))
    open: Array = field(default_factory=lambda: np.empty(0, np.int64))
    deep: Array = field(default_factory=lambda: np.empty(0, np.int64))
    own: Array = field(default_factory=lambda: np.empty(0))
    judge: Array = field(default_factory=lambda: np.empty(0))
    gone: Array | None = None
    sure: Array | None = None
    exact: Array | None = None
    zero: Array | None = None
    normal: Array | None = None
    scale: Array = field(default_factory=lambda: np.empty(0))
    fine: fast.Fine | None = None
    top: float = 0.0
    most: float = 0.0

    def __post_init__(self) -> None:
        self.a, self.lo, self.sign = self.magnitude
        self.power = self.inverse = self.r = self.e = self.rounded = self.size = self.same = self.delta = self.share = self.a


# ---- small functions -------------------------------------------------------------------------------------------------

_GRAIN = np.array(1.5 * 2.0**17)


def total_of(values: Array) -> Fraction:
    """Exact sum of finite numbers: heads on coarser and then finer grids, whose sums are exact, until nothing is left."""
    total, rest = Fraction(0), values
    while (top := float(np.abs(rest).max())) > 0:
        if top >= 2.0**900:
            return total + sum((Fraction(value) for value in rest.reshape(-1).tolist()), Fraction(0))
        grain = np.ldexp(1.5, int(np.frexp(top)[1]) + rest.size.bit_length() + 1)
        head = (rest + grain) - grain
        total += Fraction(float(head.sum()))
        rest = rest - head
    return total


@cache
def _sub_bins() -> tuple[Array, Array]:
    """Of 128 sub-bins an octave, narrower than the bins: the bin of the lower end, from FIRST_BIN on, and the nearest edge.

    The first sub-bin stands for all below 2^-11, the last for all above 2^20.
    """
    ends = ((np.arange(_COUNT + 1) + int(_FIRST)) << int(_SUB)).view(np.float64)
    low = bin_numbers(ends[:-1] * (1 + 2.0**-50))
    edges = np.array([[edge(int(k) + way) for way in (-1, 0, 1)] for k in low])
    middle = (ends[:-1] + ends[1:]) / 2
    nearest = edges[np.arange(_COUNT), np.abs(edges - middle[:, None]).argmin(axis=1)]
    inside = (nearest > ends[:-1]) & (nearest < ends[1:])
    base = np.where(inside | (nearest >= ends[1:]), low, low - 1) - FIRST_BIN
    nearest[0], base[0] = 1.0, 0
    return base, nearest


def _series(x: Array, most: float, coefficients: tuple[float, ...], cut: float, out: Array) -> None:
    """The polynomial, without what is below `cut` of it for abs(x) <= most."""
    used = next((k for k in range(1, len(coefficients)) if most**k < cut / 2), len(coefficients))
    np.copyto(out, coefficients[used - 1])
    for coefficient in coefficients[used - 2 :: -1] if used > 1 else ():
        np.multiply(out, x, out)
        np.add(out, coefficient, out)


_LOG_SERIES = tuple((-1) ** k / (k + 2) for k in range(12))
"""Of (x - log(1 + x)) / x^2."""
_EXP_SERIES = tuple(1 / factorial(k + 2) for k in range(12))
"""Of (exp(x) - 1 - x) / x^2."""


def _exp(x: Array) -> Array:
    """exp, to 2^-51.9; abs(x) <= 700."""
    out = np.empty_like(x)
    fast.exp_t0(x, None, np.array(fast.UNIT_SCALE - (fast.BIAS << 52)), out, Buffers())
    return out


def _log(x: Array) -> Array:
    """log of numbers from 2^-1000 to 2^1000, off by less than 2^-51 (1 + abs(log x)): two Newton steps by our exp from a guess.

    The second makes up for a guess that is off by as much as 2^-8: what it leaves is below 2^-66.
    """
    found = np.log(x)
    for _ in range(2):
        rest = x * _exp(-found) - 1
        found = found + rest * (1 - rest / 2)
    return np.asarray(found)


def _log1p(x: Array) -> Array:
    """log(1 + x), x >= 0, to 2^-33 relatively."""
    out = np.empty_like(x)
    _series(x, SMALL, tuple((-1) ** k / (k + 1) for k in range(6)), 2.0**-46, out)
    out *= x
    large = x > SMALL
    if large.any():
        out[large] = _log(1 + x[large])
    return out


def exponential_sum(c: Array) -> tuple[float, float] | None:
    """Sum of exp(c_j) less 1 for one row of outputs, and what it may be off by; None where one is above 8.

    Below -1000 an exponential is taken as exp(-1000) or less, which nothing here is fine enough to see.
    """
    if not float(c.max()) <= 8.0:
        return None
    totals = []
    for start in range(0, c.size, CHUNK):
        x = np.maximum(c[start : start + CHUNK], -700.0)
        hi, lo, k = dd.exp(x, np.zeros_like(x))
        totals.append(fast.tree(np.ldexp(hi, k), np.ldexp(lo, k), 0))
    hi, lo = fast.chained(totals)
    total, rest = dd.add(hi, lo, np.full_like(hi, -1.0), np.zeros_like(hi))
    return float(total[0] + rest[0]), float(hi[0]) * 2.0**-99 + abs(float(total[0])) * 2.0**-52
