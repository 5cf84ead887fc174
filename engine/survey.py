"""The figures of one output by the fast tiers of the truth: each is the one that the exact path gives, bit for bit.

A figure is an exact count, or is rounded from an interval only once both ends agree (engine.figures). What one tier leaves open
goes up one: single elements through measurement.Cells (T1, T2, then mpmath), the rows that may be the worst through a screen of
their own and then the exact path, a mean or a percentile by screening everything at the next tier, and at last by the exact path
altogether.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import reduce
from math import ceil, floor, inf, log2
from typing import Any

import numpy as np

from engine import bounds, formats, metrics
from engine.errors import Disagreement
from engine.figures import (
    MAXIMUM_BITS,
    MEAN_BITS,
    ULP_STEP,
    Interval,
    absolute,
    bin_edge,
    bin_numbers,
    edge,
    fix,
    fixed,
    significant,
)  # fmt: skip
from engine.measurement import Allowances, Cells, Measurement, Tolerated
from engine.model import Array, Bound, Certificate, Metrics, RowFigure, Worst
from engine.screen import FIRST_BIN, Partial, Work, exponential_sum, screen, total_of
from engine.truth import FAST_BITS, Truth, enclosures, fast, hull, outward

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
PART = 1 << 20
"""Elements of one part of the work."""
Real = float | Fraction
LONGEST_AUDIT = 1 << 17
"""Logits of the longest row that an audit recomputes."""


class _Open(Exception):
    """A figure that this tier does not decide."""


class Survey:
    """What an output is, figure by figure, from blocks of rows merged in their order.

    output: array of truth.fmt, shape truth.shape. keep: how many of the worst elements are wanted. map: how the parts are
    run. ambiguity: ULPs within which the fast tiers decide nothing, to force what hardly ever happens. allowances: as for
    Measurement. gated: whether `tolerated` will be asked for.
    """

    def __init__(
        self,
        output: Array,
        truth: Truth,
        keep: int = 8,
        map: Map = map,
        ambiguity: float = 0.0,
        allowances: Allowances | None = None,
        gated: bool = False,
    ) -> None:
        self.truth, self.fmt, self.op = truth, truth.fmt, truth.op
        self.output = np.ascontiguousarray(output)
        self._flat = self.output.reshape(truth.rows, truth.width)
        chosen = allowances.chosen if allowances else (bounds.Tolerance((bounds.stable(truth.op.name, truth.fmt),)),)
        self.allowances = Allowances(truth, *chosen)
        self._keep, self._map, self._ambiguity, self.gated = keep, map, ambiguity, gated
        truth.ambiguity = ambiguity
        self._exact: Measurement | None = None
        self._take(fast.TIERS.index(fast.first_tier(truth.fmt.precision)))

    # ---- taking it ----

    def _work(self, level: int, rows: slice, first: int) -> Work:
        truth = self.truth
        return Work(
            self.op.name, self.fmt.name, fast.TIERS[level], truth.raw_logits[rows], truth.companion(rows), self._flat[rows],
            np.arange(first, first + len(self._flat[rows])), max(1, self._keep), self.allowances.chosen, self._ambiguity,
            gated=self.gated,
        )  # fmt: skip

    def _take(self, level: int) -> None:
        """Screen everything at a tier; what it leaves open goes to the finer ones, element by element, row by row."""
        self.level = level
        self.partial: Partial = reduce(Partial.merge, self._map(screen, self._works(level)))
        p = self.partial
        self._classes_open = self._classes(sorted(set(p.open_elements)))
        opened = [members[0] for members in self._classes_open]
        self.cells = Cells(self.output, self.truth, opened, self.allowances)
        for members in self._classes_open:
            self._settle(members)
        self._settled = Counter[str]()
        for members in self._classes_open:
            self._settled[self.truth.tiers()[members[0]]] += len(members)
        near, sizes, voids, shorts = (
            self._classes(sorted(set(found))) for found in (p.open_bounds, p.open_sizes, p.open_voids, p.open_shorts)
        )
        self.truth.prefetch(members[0] for kind in (near, sizes, voids, shorts) for members in kind)
        for members in near:
            self._judge(members)
        for members in sizes:
            p.counts["vacuous"] += len(members) * self.cells.vacuous(members[0])
        for members in voids:
            p.counts["void"] += len(members) * self.cells.vacuous(members[0], 1)
        for members in shorts:
            self._short(members)
        self._alone = _Far(self, sorted(p.open_rows)) if p.open_rows and self.op.name in ("softmax", "log_softmax") else None
        self.far = _Far(self, p.far_rows) if p.far_rows else None
        if self.far:
            self.far.fold(self)

    def _works(self, level: int, rows: Iterable[int] | None = None) -> Iterator[Work]:
        """The parts of the work: everything, or some rows one by one."""
        truth = self.truth
        step = max(1, PART // max(truth.width, truth.raw_logits.shape[1])) if rows is None else 1
        for first in range(0, truth.rows, step) if rows is None else rows:
            yield self._work(level, slice(first, first + step), first)

    def _settle(self, members: list[int]) -> None:
        """Count elements that the screen left open, all of one class; their truth is finite."""
        p, cells, index, count = self.partial, self.cells, members[0], len(members)
        want, top = self.truth.decided(index)
        assert want is not None
        got, limit = cells.ordinal(index), self.fmt.infinity_ordinal
        nan = bool(np.isnan(formats.widen(self.output.reshape(-1)[index : index + 1]))[0])
        if nan or (got != want and abs(got) == limit):
            p.counts["special_mismatch"] += count
            p.counts["overflow_count"] += count * (not nan and abs(want) < limit)
            p.mismatch += members
            return
        p.counts["compared"] += count
        p.mark("compared", index)
        p.counts["correctly_rounded"] += count * (got == want)
        p.counts["underflow_count"] += count * (got == 0 and top is not None)
        p.ordinal = max(p.ordinal, abs(got - want))
        if got == 0:
            p.counts["underflow_premature"] += count * (want != 0)
            p.counts["false_zero_count"] += count * cells.normal(index)
        p.counts["normal"] += count * cells.normal(index)
        bits = cells.bits
        if not _one_sided(cells.signed_ulp(index, bits)):  # it may be exact, which only the exact path tells
            bits = cells.exact_bits
        unit = -cells.width(bits)
        loose = cells.signed_ulp(index, bits, True)
        for name, (low, high) in (("size", absolute(*loose)), ("signed", loose)):
            p.add(name, *_centred((low * count, high * count), unit))
        self.bin(cells.signed_ulp(index, bits), unit, count)
        if abs(got) < limit:
            self._judge(members)
            self._allow(members)

    def bin(self, error: Interval, unit: int, count: int = 1) -> None:
        """Count an error, an interval in units of 2^unit ulp, in its percentile bins."""
        low, high = absolute(*error)
        self.partial.counts["exact"] += count * (not high)
        if high:
            edges = (bin_edge(size, unit) for size in (max(low, 1), high))
            least, most = (np.array([64 << 10]) if edge == inf else bin_numbers(np.array([edge])) for edge in edges)
            self.partial.bin(least, most, count)

    def _judge(self, members: list[int]) -> None:
        """Elements of one class against the bound of the op's stable variant."""
        index, count, counts = members[0], len(members), self.partial.counts
        beyond = self.cells.exceeds(index)
        zero = self.cells.ordinal(index) == 0 and self.cells.normal(index)
        counts["beyond"] += count * beyond
        if beyond:
            self.partial.mark("beyond", index)
        counts["lost"] += count * (beyond and zero)
        if zero and not beyond:
            counts["absorbed"] += count
            self.partial.mark("absorbed", index)

    def _allow(self, members: list[int]) -> None:
        """What the bounds of elements of one class are."""
        index, count, counts = members[0], len(members), self.partial.counts
        none = self.allowances.own(index) == inf
        counts["unbounded" if none else "bounded"] += count
        counts["unjudged"] += count * (self.allowances.judge(index) == inf)
        counts["vacuous"] += count * self.cells.vacuous(index)
        if self.gated:
            counts["null"] += count * (self.truth.decided(index)[1] is None)
            counts["void"] += count * self.cells.vacuous(index, 1)
            self._short(members)

    def _short(self, members: list[int]) -> None:
        """Whether the tolerance of elements of one class is below half an ulp."""
        if self.cells.short(members[0]):
            self.partial.mark("short", members[0])

    # ---- figures ----

    def metrics(self, ranks: bool = False) -> Metrics:
        """Every figure, as metrics.measure gives them."""
        while self._exact is None:
            try:
                return self._metrics(ranks)
            except _Open:
                if self.level + 1 < len(fast.TIERS):
                    self._take(self.level + 1)
                else:
                    self._exact = Measurement(self.output, self.truth, self.allowances)
        return metrics.measure(self._exact, ranks)

    def _metrics(self, ranks: bool) -> Metrics:
        counts = self.partial.counts
        compared = counts["compared"]
        some = compared > 0
        top, rel, normal, most = (self._most(name) if some else None for name in ("ulp", "rel", "normal", "abs"))
        figures = self.op.name in ("softmax", "log_softmax")
        softmax = self.op.name == "softmax"
        return Metrics(
            n=counts["n"],
            compared=compared,
            max_ulp=top and top[0],
            argmax_ulp=top and top[1],
            mean_ulp=self._mean("size", compared) if some else None,
            p50_ulp=self._percentile(50, compared) if some else None,
            p99_ulp=self._percentile(99, compared) if some else None,
            max_ulp_ordinal=self.partial.ordinal if some else None,
            correctly_rounded=counts["correctly_rounded"],
            max_rel=rel and rel[0],
            argmax_rel=rel and rel[1],
            max_rel_normal=normal and normal[0],
            max_abs=most and most[0],
            bias_ulp=self._mean("signed", compared) if some else None,
            sum_defect=self._sum_defect(),
            kl=self._row_figure("kl") if figures else None,
            total_variation=self._row_figure("total_variation") if softmax else None,
            backward_error=self._row_figure("backward_error") if softmax else None,
            error_over_bound=self.error_over_bound(),
            argmax_preserved=None if self.op.output == "rows" else self._argmax_preserved(),
            rank_inversions=self._rank_inversions() if figures and ranks else None,
            step_overflow_count=None,
            step_underflow_count=None,
            step_invalid_count=None,
            **{name: counts[name] for name in _COUNTS},
        )

    def _mean(self, name: str, count: int) -> float:
        value, doubt = self.partial.sums.get(name, (0.0, 0.0))
        return _fixed_mean(value, doubt, count, ULP_STEP)

    def _percentile(self, percent: int, count: int) -> float:
        """Nearest rank, where the low and the high ends of the errors agree on its bin."""
        rank = -(-percent * count // 100) - self.partial.counts["exact"]
        if rank <= 0:
            return 0.0
        if self.level + 1 == len(fast.TIERS):
            self._join()
        places = {int(np.searchsorted(np.cumsum(counts), rank)) for counts in (self.partial.low, self.partial.high)}
        place = places.pop()
        if places:
            raise _Open
        return edge(place + FIRST_BIN)

    def _told(self, name: str) -> tuple[list[tuple[float, int]], list[int]]:
        """The largest figure that the screen tells to 40 bits and its first index, and the elements that may have a larger one."""
        candidates = self.partial.most[name]
        candidates.settle(MAXIMUM_BITS)
        index, value, radius = candidates.pruned()
        figures = fixed(value, radius, MAXIMUM_BITS)
        if name == "abs" and self.fmt.precision == 53:  # the screen has it times 2^UP
            figures = np.where(figures > 2.0 ** (fast.UP - 1000), np.ldexp(figures, -fast.UP), np.nan)
        known = ~np.isnan(figures)
        pairs = zip(figures[known].tolist(), index[known].tolist(), strict=True)
        return list(pairs), self._besides(name, index[~known].tolist(), 1)

    def _join(self) -> None:
        """Give the elements that the last tier counts in two bins the one that they belong to."""
        p, places = self.partial, {index: bins for index, *bins in self.partial.split}
        p.split = []
        classes = self._classes(sorted(places))
        cells = Cells(self.output, self.truth, [members[0] for members in classes], self.allowances)
        for members in classes:
            for index in members:
                for counts, place in zip((p.low, p.high), places[index], strict=True):
                    counts[place - FIRST_BIN] -= 1
            for bits in (*FAST_BITS, cells.exact_bits, 4 * cells.exact_bits):
                (low, high), unit = absolute(*cells.signed_ulp(members[0], bits)), -cells.width(bits)
                if bin_edge(max(low, 1), unit) == bin_edge(high, unit):
                    break
            self.bin((low, high), unit, len(members))  # in two bins, if there is no end to it

    def _besides(self, name: str, indices: list[int], count: int) -> list[int]:
        """Some candidates, and those that the screen does not know of."""
        lost = set(self.partial.mismatch)
        used = [i for members in self._classes_open for i in members[:count] if i not in lost]
        return sorted({*self._distinct(indices, count), *used, *(self.far.candidates(name) if self.far else ())})

    def _distinct(self, indices: list[int], count: int) -> list[int]:
        """The first few of each class."""
        return sorted(index for members in self._classes(indices) for index in members[:count])

    def _classes(self, indices: list[int]) -> list[list[int]]:
        """Elements sorted into classes whose truths and errors are equal: equal rows, logit, output and weight."""
        n, width = self.truth.raw_logits.shape[1], self.truth.width
        if width != n or len(indices) < 64:
            return [[index] for index in indices]
        flat = np.array(indices)
        row, column = flat // width, flat % width
        keys = [self._kinds(row), self.truth.raw_logits[row, column], formats.ordinals(self._flat[row, column], self.fmt)]
        companion = self.truth.companion(slice(None))
        if companion is not None:
            keys.append(companion[row, column] if companion.ndim == 2 else companion[row] == column)
        table = np.array([_bits(key) for key in keys])
        _, group = np.unique(table, axis=1, return_inverse=True)
        order = np.lexsort((flat, group.reshape(-1)))
        cuts = np.flatnonzero(np.diff(group.reshape(-1)[order])) + 1
        return [members.tolist() for members in np.split(flat[order], cuts)]

    def _kinds(self, row: Array) -> Array:
        """A number for each row that equal rows of the problem share."""
        rows, place = np.unique(row, return_inverse=True)
        known: dict[bytes, int] = {}
        kinds = []
        for r in rows.tolist():
            companion = self.truth.companion(r)
            key = self.truth.raw_logits[r].tobytes() + (b"" if companion is None else np.asarray(companion).tobytes())
            kinds.append(known.setdefault(key, len(known)))
        return np.array(kinds)[place.reshape(-1)]

    def _most(self, name: str) -> tuple[float, int] | None:
        """The largest figure to 40 bits and its first index; None where no element has it."""
        told, chosen = self._told(name)
        if name == "normal":
            if not self.partial.counts["normal"]:
                return None
            chosen = [i for i in chosen if self.cells.normal(i)]
        found = [self.cells.largest("rel" if name == "normal" else name, chosen)] if chosen else []
        found += told
        found += [(1.0, self.partial.first[name])] if name in ("rel", "normal") and name in self.partial.first else []
        found += [(inf, self.partial.first["infinite"])] if name == "rel" and "infinite" in self.partial.first else []
        top = max((value for value, _ in found), default=0.0)
        if not top:
            return 0.0, self.partial.first["compared"]
        return top, min(index for value, index in found if value == top)

    def error_over_bound(self) -> float | None:
        """The largest error over its bound to 40 bits; None where no element has a bound."""
        if not self.partial.counts["bounded"]:
            return None
        told, chosen = self._told("bound")
        limit = self.fmt.infinity_ordinal
        known = [i for i in chosen if self.allowances.own(i) < inf and abs(self.cells.ordinal(i)) < limit]
        found = [self.cells.largest("bound", known)[0]] if known else []
        return max([*found, *(value for value, _ in told)], default=0.0)

    beside_overflow = 0  # where overflow is NaN, no truth is so large: the exact path has the other ops

    @property
    def specials(self) -> int:
        """Elements that are NaN or infinite where the truth is not, or the reverse."""
        return self.partial.counts["special_mismatch"]

    @property
    def rounded(self) -> int:
        """Elements that are correctly rounded."""
        return self.partial.counts["correctly_rounded"]

    @property
    def unbounded(self) -> int:
        """Elements for which the declared algorithm has no bound."""
        return self.partial.counts["unbounded"]

    def worst(self, count: int) -> tuple[Worst, ...]:
        """The `count` worst elements, as metrics.worst gives them."""
        if self._exact is not None:
            return metrics.worst(self._exact, count)
        mismatches = sorted(set(self.partial.mismatch))[:count]
        likely = self.partial.most["ulp"].pruned()[0].tolist()
        cells = Cells(self.output, self.truth, self._besides("ulp", likely, count), self.allowances)
        chosen = cells.ranked(count - len(mismatches))
        return tuple(metrics.describe(cells, index, index in mismatches) for index in mismatches + chosen)

    def _row_figure(self, name: str) -> RowFigure | None:
        p = self.partial
        rows = self.truth.rows - p.counts["untrue_rows"]
        if p.counts["nan_count"] or not rows:
            return None
        single = self._alone.rows(name) if self._alone else {}
        single |= self.far.rows(name) if self.far else {}
        void = [row for row, (value, _) in single.items() if value == inf]
        void += [p.first[f"{name} infinite"]] if f"{name} infinite" in p.first else []
        p.most[name].settle(MEAN_BITS)
        index, values, doubts = p.most[name].pruned()
        terms = single | dict(zip(index.tolist(), zip(values.tolist(), doubts.tolist(), strict=True), strict=True))
        terms = {row: term for row, term in terms.items() if term[0] != inf}
        worst, worst_row = self._worst_row(name, terms) if terms or not void else (0.0, 0)
        if void:  # a figure beside the largest number is infinite too, once it is rounded
            return RowFigure(inf, inf, min(void + [worst_row] * (worst == inf)))
        value, doubt = p.sums.get(name, (0.0, 0.0))
        for term in single.values():
            value, doubt = value + term[0], doubt + term[1] + abs(float(value)) * 2.0**-51
        mean = abs(_fixed_mean(value, doubt, rows, None))  # of what may be off to below 0 it is -0
        return RowFigure(worst, mean, worst_row)

    def _worst_row(self, name: str, terms: Mapping[int, tuple[Real, Real]]) -> tuple[float, int]:
        """The largest of some rows' figures to 20 bits and its first row; those it could be are refined till they are fixed."""
        least = max(value - doubt for value, doubt in terms.values()) * (1 - 2.0**-19)
        fixed = {}
        for row, (value, doubt) in sorted(terms.items()):
            if value + doubt >= least:
                levels = iter(range(self.level + 1, len(fast.TIERS)))
                while (figure := _fixed(value, doubt, MEAN_BITS)) is None:
                    finer = self._row(name, row, next(levels, None))
                    if isinstance(finer, float):
                        figure = finer
                        break
                    value, doubt = finer
                fixed[row] = figure
        top = max(fixed.values())
        return top, min(row for row, figure in fixed.items() if figure == top)

    def _row(self, name: str, row: int, level: int | None) -> tuple[Real, Real] | float:
        """A row's figure and what it may be off by, at a tier; or, where there is none, to 20 bits by the exact path, for which a
        figure beside the middle of two such numbers is no less plain."""
        if level is not None:
            part = screen(next(self._works(level, [row])))
            if not (part.open_rows or part.far_rows):
                return (inf, 0.0) if f"{name} infinite" in part.first else part.sums[name]
        return _Far(self, [row]).figure(name)

    def _sum_defect(self) -> float | None:
        p, name = self.partial, self.op.name
        if name not in ("softmax", "log_softmax", "cross_entropy_grad") or p.counts["nan_count"]:
            return None
        if p.counts["inf_count"] > (p.counts["negative_inf"] if name == "log_softmax" else 0):
            return None if name == "cross_entropy_grad" else inf
        candidates = p.most["sum_defect"]
        rest = candidates.settle(MAXIMUM_BITS)
        _, value, radius = candidates.pruned()
        told = fixed(value, radius, MAXIMUM_BITS)
        others = {self._flat[row].tobytes(): row for row in {*rest.tolist(), *p.open_defects, *p.far_rows}}
        return float(max([*told[~np.isnan(told)].tolist(), *map(self._row_defect, others.values())]))

    def _row_defect(self, row: int) -> float:
        """One row's sum_defect to 40 bits."""
        c = formats.widen(self._flat[row])
        if self.op.name == "log_softmax":
            term = exponential_sum(c)
            found = term and _fixed(abs(term[0]), term[1], MAXIMUM_BITS)
            return (
                metrics.exp_sum_defect(formats.ordinals(self._flat[row], self.fmt).tolist(), self.fmt) if found is None else found
            )
        total = total_of(c) - (self.op.name == "softmax")
        return significant(abs(total.numerator), total.denominator, 0, MAXIMUM_BITS)

    def _argmax_preserved(self) -> int:
        undecided = self.partial.undecided_argmax
        some: int = _Far(self, undecided).preserved() if undecided else 0
        return self.partial.counts["argmax_preserved"] + some

    def _rank_inversions(self) -> int:
        count = 0
        for row in range(self.truth.rows):
            x = self.truth.logits(row)
            if np.isfinite(x.max()):
                nan = np.isnan(formats.widen(self._flat[row]))
                got = formats.ordinals(self._flat[row], self.fmt)
                count += metrics.inversions(x[~nan].tolist(), got[~nan].tolist())
        return int(count)

    # ---- verdict and proof ----

    def tolerated(self) -> Tolerated:
        """What the tolerance by which it is judged says, of an output that was surveyed as gated."""
        counts, first = self.partial.counts, self.partial.first
        beyond, nonzero = counts["beyond"], counts["compared"] - counts["null"]
        return Tolerated(
            beyond, first["beyond"] if beyond else None, counts["unjudged"], nonzero, counts["void"], "short" in first
        )  # fmt: skip

    def bound(self) -> Bound:
        """What the bounds say of it."""
        counts = self.partial.counts
        condition = max([self.partial.condition, *(self.allowances.condition(row) for row in self.partial.far_rows)])
        return self.allowances.told(counts["beyond"], counts["unjudged"], counts["unbounded"], counts["vacuous"], condition)

    def status(self) -> str:
        """unstable, inaccurate, unbounded or accurate."""
        counts = self.partial.counts
        unstable = counts["special_mismatch"] or counts["lost"] or counts["apart"] or self._apart()
        return metrics.status_of(bool(unstable), counts["beyond"], counts["unjudged"])

    def _apart(self) -> bool:
        rows = self.partial.apart_rows + (self.partial.far_rows if self.op.name == "softmax" else [])
        return any(metrics.sums_apart(_Far(self, [row]).measured) for row in rows)

    def absorbed(self) -> tuple[int, int]:
        """How many zeros lie inside the bound where the truth is normal, and the first."""
        return self.partial.counts["absorbed"], self.partial.first.get("absorbed", 0)

    def certificate(self) -> Certificate:
        """The tiers by the elements they decided, and the worst bound among them."""
        if self._exact is not None:
            return self.truth.certificate()
        tiers = Counter(self.partial.tiers)
        tiers[fast.TIERS[self.level].name] -= self._settled.total()
        tiers.update(self._settled)
        tiers["T3"] += len(self.partial.far_rows) * self.truth.width
        found = {name: count for name, count in sorted(tiers.items()) if count}
        asked = dict.fromkeys(self._settled, 2.0 ** -FAST_BITS[0]) | {"T3": 2.0**-self.truth.bits}  # of single elements
        worst = max(max(self.partial.relative.get(name, 0.0), asked.get(name, 0.0)) for name in found)
        return Certificate(ceil(100 * log2(worst)) / 100 if worst else None, found, 1.0)

    def audit(self, budget: int, judge: Truth | None = None) -> None:
        """Recompute a sample by the exact path (of `judge`, if it is kept) and compare: at most `budget` logits, or one row.

        Raises Disagreement with a reproducer where an enclosure of the fast tier does not meet the exact one.
        """
        n, width = self.truth.raw_logits.shape[1], self.truth.width
        if not budget or n > LONGEST_AUDIT:
            return
        stream = np.random.default_rng(self.truth.rows * 1_000_003 + n)
        rows = stream.integers(0, self.truth.rows, max(1, budget // n))
        sample = sorted({int(row) * width + int(stream.integers(0, width)) for row in rows})
        tier, judge = fast.TIERS[self.level], judge or Truth(self.truth.problem, self.fmt)
        for index, found in enclosures(self.truth, tier, sample):
            exact = judge.exact_cell(index, judge.bits)
            if not _meet(found, exact if isinstance(exact, float) else hull(exact)):
                x = [float(v).hex() for v in self.truth.logits(index // width).tolist()]
                where = f"element {index} of {self.op.name} in {self.fmt.name}"
                raise Disagreement(f"{tier.name} and the exact path disagree on {where}: {found}, {exact}; logits {x}")


_COUNTS = (
    "nan_count", "nan_unexpected", "nan_missing", "inf_count", "overflow_count", "zero_count", "underflow_count",
    "underflow_premature", "false_zero_count", "subnormal_count", "special_mismatch",
)  # fmt: skip


class _Far:
    """Some rows by the exact path, where the fast tiers are not proven or did not decide."""

    def __init__(self, survey: Survey, rows: Sequence[int]) -> None:
        truth = survey.truth
        self._rows, self._width = sorted(set(rows)), truth.width
        sub = Truth(truth.part(self._rows), truth.fmt)
        output = survey.output.reshape(truth.rows, -1)[self._rows].reshape(sub.shape)
        self.measured = Measurement(output, sub, survey.allowances.of(sub))

    def whole(self, index: int) -> int:
        """An index of these rows as one of the whole output."""
        row, column = divmod(index, self._width)
        return self._rows[row] * self._width + column

    def rows(self, name: str) -> dict[int, tuple[float, float]]:
        """A figure of the rows that have a truth: (value, what it may be off by)."""
        found = {place: self._term(name, place) for place in range(len(self._rows)) if not self._untrue(place)}
        return {self._rows[place]: (inf, 0.0) if isinstance(t, float) else _rounded(t[:2], t[2]) for place, t in found.items()}

    def figure(self, name: str) -> float:
        """The same of the first row, to 20 bits."""
        found = metrics.fix_term(self._term(name, 0))
        assert found is not None
        return found

    def _term(self, name: str, place: int) -> metrics.Term | float:
        of_rows = metrics.Rows(self.measured)
        term = {"kl": of_rows.kl, "total_variation": of_rows.total_variation, "backward_error": of_rows.backward_error}[name]
        return of_rows.term(place, term)

    def _untrue(self, place: int) -> bool:
        return bool(self.measured.kinds.want_nan[place * self._width])

    def preserved(self) -> int:
        """How many rows keep their argmax."""
        return sum(metrics.preserved(self.measured, place) for place in range(len(self._rows)))

    def candidates(self, name: str) -> list[int]:
        """The element with the largest figure, or those with the largest ULP errors."""
        m = self.measured
        if not m.compared:
            return []
        if name == "ulp":
            return [self.whole(index) for index in m.ranked(32)]
        chosen = [i for i in m.compared if name != "normal" or m.normal(i)]
        if name == "bound":
            chosen = [i for i in m.bounded if m.allowances.own(i) < inf]
        return [self.whole(m.largest("rel" if name == "normal" else name, chosen)[1])] if chosen else []

    def fold(self, survey: Survey) -> None:
        """Add the elements to what was screened."""
        m, p = self.measured, survey.partial
        p.counts.update(metrics.counts(m))
        p.counts["negative_inf"] += m.got.count(-m.fmt.infinity_ordinal)
        p.counts["untrue_rows"] += int(m.kinds.want_nan[:: self._width].sum())
        p.counts["argmax_preserved"] += self.preserved() if survey.op.output != "rows" else 0
        unit = -m.width(m.bits)
        loose = [m.signed_ulp(i, m.bits, True) for i in m.compared]
        for name, found in (("size", [absolute(*e) for e in loose]), ("signed", loose)):
            p.add(name, *_centred((sum(lo for lo, _ in found), sum(hi for _, hi in found)), unit))
        for index in m.compared:
            survey.bin(m.signed_ulp(index, m.bits), unit)
        p.ordinal = max([p.ordinal, *(abs(m.got[i] - int(m.kinds.want[i])) for i in m.compared)])
        p.counts["normal"] += sum(m.normal(i) for i in m.compared)
        if m.compared:
            p.mark("compared", self.whole(m.compared[0]))
        beyond = set(m.beyond)
        zeros = [i for i in m.compared if m.got[i] == 0 and m.normal(i)]
        p.counts.update(beyond=len(beyond), unjudged=m.unjudged, unbounded=m.unbounded, vacuous=m.voids(0))
        p.counts["bounded"] += len(m.bounded) - m.unbounded
        if beyond:
            p.mark("beyond", self.whole(m.beyond[0]))
        p.counts["lost"] += sum(i in beyond for i in zeros)
        inside = [self.whole(i) for i in zeros if i not in beyond]
        p.counts["absorbed"] += len(inside)
        if inside:
            p.mark("absorbed", min(inside))
        p.mismatch += [self.whole(i) for i in np.flatnonzero(m.kinds.mismatch).tolist()]
        if survey.gated:
            told = m.tolerated()
            p.counts.update(null=len(m.compared) - told.nonzero, void=told.vacuous)
            if told.short:
                p.mark("short", self.whole(m.compared[0]))


def _bits(key: Array) -> Array:
    """Numbers as integers that are equal where the numbers are; zeros of both signs are one."""
    return key.astype(np.int64) if key.dtype.kind in "biu" else (formats.widen(key) + 0.0).view(np.int64)


# ---- intervals of floats ---------------------------------------------------------------------------------------------


def _one_sided(error: Interval) -> bool:
    return error[0] > 0 or error[1] < 0


def _centred(interval: Interval, exp: int) -> tuple[Fraction, Fraction]:
    """An interval of integers over 2^exp as a value and what it may be off by."""
    lo, hi = (Fraction(end) * Fraction(2) ** exp for end in interval)
    return (lo + hi) / 2, (hi - lo) / 2


def _binary64(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return inf


def _rounded(interval: Interval, exp: int) -> tuple[float, float]:
    """The same in binary64; (inf, 0) beyond it."""
    top = max(abs(end) for end in interval).bit_length() + exp
    if top > 1024 or top < -1000:
        return (inf, 0.0) if top > 0 else (0.0, 2.0**-1000)
    centre, reach = _centred(interval, exp)
    value = _binary64(centre)
    return value, float(reach) * (1 + 2.0**-50) + abs(value) * 2.0**-52 + 2.0**-1074


def _fixed(value: Real, doubt: Real, bits: int) -> float | None:
    """A value >= 0 known to within `doubt`, to some significant bits; None where that does not tell."""
    return _fix(value, doubt, 1, bits, None, 0)


def _fix(value: Real, doubt: Real, count: int, bits: int, step: int | None, floor_: int | None) -> float | None:
    if not (doubt < inf and (isinstance(value, Fraction) or abs(value) < inf)):
        return None
    centre, reach = Fraction(value), Fraction(doubt) * Fraction(1 << 60, (1 << 60) - 1)
    lo, hi = centre - reach, centre + reach
    unit = -1200
    low, high = floor(lo * Fraction(2) ** -unit), ceil(hi * Fraction(2) ** -unit)
    if floor_ is not None:
        low = max(low, floor_)
    return fix(low, high, count, unit, bits, step)


def _fixed_mean(value: Real, doubt: Real, count: int, step: int | None) -> float:
    """The mean of a sum known to within `doubt`. Raises _Open."""
    found = _fix(value, doubt, count, MEAN_BITS, step, None)
    if found is None:
        raise _Open
    return found


def _meet(found: Any, exact: Any) -> bool:
    """Whether two enclosures have a number in common, or are but a unit of the coarser one apart."""
    unit = max(found[2], exact[2])
    a, b = (outward(e[0], e[1], e[2], unit) for e in (found, exact))
    return bool(a[0] <= b[1] and b[0] <= a[1])
