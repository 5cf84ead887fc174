"""Certified truth of a problem in a format: enclosures, correctly rounded values, and the certificate.

T0, T1 and T2 are truth.fast's, many rows at a time; T3 is mpmath, which decides what they leave open.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, floor, frexp, ldexp, log2
from typing import Any

import numpy as np

from engine import formats, ops
from engine import plain as reduction
from engine.errors import Undecided
from engine.formats import Format
from engine.model import NO_PARAMS, Array, Certificate, Problem
from engine.truth import fast
from engine.truth.exact import (
    MAX_PRECISION,
    ZERO,
    Enclosure,
    Inputs,
    Row,
    Scaled,
    StandIn,
    decimal,
    enclose,
    exp_enclosure,
    hexadecimal,
    hull,
    log_enclosure,
    outward,
    scaled,
    special_name,
)

__all__ = [
    "MAX_PRECISION",
    "Enclosure",
    "Resolved",
    "StandIn",
    "Truth",
    "certified",
    "decimal",
    "exp_enclosure",
    "hexadecimal",
    "hull",
    "log_enclosure",
    "nearly",
    "outward",
    "special_name",
]

FAST_TIERS = fast.TIERS[1:]
"""T1, T2: what single elements are taken to before mpmath."""
FAST_BITS = (75, 95)
"""Bits that these give an element which does not cancel."""
SERVED_BITS = 78
FIGURE_BITS = 72
"""Bits beyond the format's precision, so that an ULP error is known to 2^-72 ulp before anything must be refined."""


@dataclass(frozen=True)
class Resolved:
    """One row of truth with every rounding decided, element by element in C order.

    ordinals: of RN_F(T), None where that is NaN: where T is, and where T overflows a format without infinity; such an
    element has no error, and its enclosure here is NaN too. tops: floor(log2|T|), None where T is 0, NaN or infinite.
    """

    enclosures: list[Enclosure]
    ordinals: list[int | None]
    tops: list[int | None]


class Truth:
    """The exact result of a problem whose tensors are stored in `fmt`, row by row, computed when asked for.

    shape: of the output. rows: number of rows. width: output elements per row (n, 1, or n * n). Of a problem without params; of
    any, `certified` makes one. shown: the logits as given, a row each. sums: whether it is known what an output's rows sum to.
    numbers: those of the rows, where they are some of more.
    """

    sums = True
    numbers: Array | None = None

    def __init__(self, problem: Problem, fmt: Format) -> None:
        assert problem.params is NO_PARAMS or isinstance(self, Parametrised)
        self.op = ops.check(problem)
        self.problem = problem
        self.fmt = fmt
        n = problem.logits.shape[-1]
        self.shape = ops.output_shape(problem)
        self.rows = problem.logits.size // n
        self.width = self.op.width(n)
        self.bits = max(SERVED_BITS, fmt.precision + FIGURE_BITS)
        self._n = n
        self.raw_logits = self.shown = problem.logits.reshape(self.rows, n)
        self._targets = _by_row(problem.targets, self.rows, not ops.is_index(problem))
        self._grad_output = _by_row(problem.grad_output, self.rows, True)
        self.ambiguity = 0.0
        self._cells: tuple[dict[int, Enclosure | None], ...] = tuple({} for _ in FAST_TIERS)
        self._exact: dict[int, tuple[int, Enclosure]] = {}
        self._expected: dict[int, set[int]] = {}
        self._decided: dict[int, tuple[int | None, int | None]] = {}
        self._used: dict[int, str] = {}
        self._resolved: dict[int, Resolved] = {}
        self._finest: dict[int, tuple[int, list[Enclosure]]] = {}

    def number(self, index: int) -> int:
        """What a row is called where people read of it."""
        return index if self.numbers is None else int(self.numbers[index])

    def logits(self, index: int) -> Array:
        """The logits of one row, as float64."""
        return formats.widen(self.raw_logits[index])

    def companion(self, rows: Any) -> Array | None:
        """The targets or the grad_output of some rows."""
        given = self._grad_output if self._targets is None else self._targets
        return None if given is None else np.asarray(given[rows])

    def row(self, index: int, bits: int) -> list[Enclosure]:
        """Enclosures of relative width below 2^-bits; see truth.exact for what the sticky stand-in means."""
        known = self._finest.get(index)
        if known is None or known[0] < bits:
            known = (bits, self._enclose(index, bits))
            self._finest[index] = known
        return known[1]

    def untrue(self, index: int) -> bool:
        """Whether the row has no truth: T is NaN in every element, or in none."""
        first = self.row(index, self.bits)[0]
        return isinstance(first, float) and first != first

    def resolved(self, index: int) -> Resolved:
        """The row with rounding and binade of every element decided, at `self.bits` or more where that took more."""
        if index not in self._resolved:
            self._resolved[index] = self._resolve(index)
        return self._resolved[index]

    # single elements, by the cheapest tier that tells

    def cell(self, index: int, bits: int) -> Enclosure:
        """One element's enclosure, of relative width below 2^-bits; of a sticky stand-in see truth.exact."""
        for level, offered in enumerate(FAST_BITS):
            if bits <= offered and (found := self._fast_cell(level, index)) is not None and _narrower(found, bits):
                return found
        return self.exact_cell(index, max(bits, self.bits))

    def decided(self, index: int) -> tuple[int | None, int | None]:
        """(ordinal of RN_F(T), floor(log2|T|)) of one element, as Resolved has them."""
        if index not in self._decided:
            self._decided[index] = self._decide_cell(index)
        return self._decided[index]

    def prefetch(self, indices: Iterable[int], level: int = 0) -> None:
        """Compute the rows of these elements at a fast tier, many at a time."""
        known = self._cells[level]
        wanted = sorted({index for index in indices if index not in known})
        known.update(dict.fromkeys(wanted))
        for index, found in enclosures(self, FAST_TIERS[level], wanted):
            known[index] = found

    def _told(self, level: int, found: Enclosure) -> tuple[int | None, int | None] | None:
        """What a fast tier's enclosure decides; a forced ambiguity shrinks from tier to tier, so that each has something to do."""
        return _decide(_blurred(found, self.ambiguity ** (level + 2), self.fmt), self.fmt)

    def prepare(self, indices: Sequence[int]) -> None:
        """Take elements to the fast tiers, many at a time: all to the first, to the next those that it does not decide."""
        self.expect(indices)
        self.prefetch(indices)
        rest = []
        for index in indices:
            found = self._cells[0][index]
            if found is None or not _narrower(found, FAST_BITS[0]) or self._told(0, found) is None:
                rest.append(index)
        self.prefetch(rest, 1)

    def tiers(self) -> Mapping[int, str]:
        """The finest tier of each element that was looked at by itself."""
        return self._used

    def part(self, rows: Sequence[int]) -> Problem:
        """The problem of some rows."""
        given = (self._targets, self._grad_output)
        targets, grad_output = (None if values is None else values[list(rows)] for values in given)
        return Problem(self.op.name, self.raw_logits[list(rows)], targets, grad_output)

    def _fast_cell(self, level: int, index: int) -> Enclosure | None:
        if index not in self._cells[level]:
            self.prefetch([index], level)
        self._note(index, level)
        return self._cells[level][index]

    def _note(self, index: int, level: int) -> None:
        name = (*(tier.name for tier in FAST_TIERS), "T3")[level]
        self._used[index] = max(self._used.get(index, ""), name)

    def exact_cell(self, index: int, bits: int) -> Enclosure:
        """One element by the exact path."""
        known = self._exact.get(index)
        if known is None or known[0] < bits:
            row, column = divmod(index, self.width)
            columns = sorted(self._expected.get(row, set()) | {column})
            for place, found in zip(columns, self._enclose(row, bits, columns), strict=True):
                self._exact[row * self.width + place] = (bits, found)
            known = self._exact[index]
        self._note(index, len(FAST_TIERS))
        return known[1]

    def expect(self, indices: Iterable[int]) -> None:
        """Elements that may be asked for: the exact path takes those of a row together."""
        for index in indices:
            row, column = divmod(index, self.width)
            self._expected.setdefault(row, set()).add(column)

    def _decide_cell(self, index: int) -> tuple[int | None, int | None]:
        for level in range(len(FAST_TIERS)):
            found = self._fast_cell(level, index)
            if found is not None and (decided := self._told(level, found)) is not None:
                return decided
        bits = self.bits
        while (decided := _decide(self.exact_cell(index, bits), self.fmt)) is None:
            if bits >= MAX_PRECISION:
                row, column = divmod(index, self.width)
                raise Undecided(f"the rounding of element {column} of row {row} to {self.fmt.name} is undecided at {bits} bits")
            bits = min(2 * bits, MAX_PRECISION)
        return decided

    @cached_property
    def probabilities(self) -> Truth:
        """The softmax of the same logits: itself, where it is one."""
        return self if self.op.name == "softmax" else Truth(Problem("softmax", self.problem.logits), self.fmt)

    def rounded(self) -> Array:
        """The correctly rounded result: an array of the format, shape `shape`."""
        found = [o for index in range(self.rows) for o in self.resolved(index).ordinals]
        values = formats.from_ordinals(np.array([0 if o is None else o for o in found], dtype=np.int64), self.fmt)
        values[np.array([o is None for o in found], dtype=bool)] = np.nan
        return values.reshape(self.shape)

    def certificate(self) -> Certificate:
        """How it was proven. The bound is null where every element is exact."""
        exact = all(_is_exact(e) for index in range(self.rows) for e in self.row(index, self.bits))
        return Certificate(None if exact else float(-self.bits), {"T3": self.rows * self.width}, 1.0)

    def _resolve(self, index: int) -> Resolved:
        bits, enclosures = self.bits, list(self.row(index, self.bits))
        found = [_decide(e, self.fmt) for e in enclosures]
        while open_ := [i for i, f in enumerate(found) if f is None]:
            if bits >= MAX_PRECISION:
                raise Undecided(f"the rounding of element {open_[0]} of row {index} to {self.fmt.name} is undecided at {bits} bits")
            bits = min(2 * bits, MAX_PRECISION)
            finer = self._enclose(index, bits)
            for i in open_:
                enclosures[i], found[i] = finer[i], _decide(finer[i], self.fmt)
        decided = [f for f in found if f is not None]
        known = [float("nan") if f[0] is None else e for e, f in zip(enclosures, decided, strict=True)]
        return Resolved(known, [ordinal for ordinal, _ in decided], [top for _, top in decided])

    def _enclose(self, index: int, bits: int, columns: Sequence[int] | None = None) -> list[Enclosure]:
        """A row, or some columns of it."""
        x = self.logits(index)
        finite = np.isfinite(x)
        if finite.all():
            return self._enclose_finite(index, x, finite, bits, columns)
        count = self.width if columns is None else len(columns)
        if np.isnan(x).any():
            return [float("nan")] * count
        if (x == np.inf).any():
            return [self.op.infinite] * count
        if not finite.any():
            return [self.op.fully_masked] * count
        found = self._enclose_finite(index, x, finite, bits)
        return found if columns is None else [found[column] for column in columns]

    def _enclose_finite(
        self, index: int, x: Array, finite: Array, bits: int, columns: Sequence[int] | None = None
    ) -> list[Enclosure]:
        target, weights = self._target(index)
        masked = ~finite
        if self.op.name == "cross_entropy" and (
            (weights is not None and (weights[masked] > 0).any()) or (target is not None and masked[target])
        ):
            return [float("inf")]
        row = Row.of(x[finite])
        whole = None if weights is None else scaled(weights)
        inputs = Inputs(
            row,
            weights=None if whole is None else _select(whole, finite),
            weight_sum=0 if whole is None else sum(whole.man),
            target=None if target is None else int(finite[:target].sum()),
            grad_output=None if self._grad_output is None else scaled(formats.widen(self._grad_output[index])[finite]),
            columns=columns,
        )
        found = enclose(self.op.name, inputs, bits)
        if self.op.output == "rows" or finite.all():
            return found
        fill = self._masked(whole)
        return _spread(found, fill, finite) if self.op.output == "logits" else _spread_square(found, finite)

    def _target(self, index: int) -> tuple[int | None, Array | None]:
        """Class index and weights of one row: the loss takes either, the gradient always weights (one-hot)."""
        if self._targets is None:
            return None, None
        entry = self._targets[index]
        if entry.ndim:
            return None, formats.widen(entry)
        if self.op.name == "cross_entropy":
            return int(entry), None
        weights = np.zeros(self._n)
        weights[int(entry)] = 1.0
        return None, weights

    def _masked(self, weights: Scaled | None) -> list[Enclosure]:
        """The exact values where the logit is -inf, as if every logit were."""
        if self.op.name == "log_softmax":
            return [float("-inf")] * self._n
        if self.op.name == "cross_entropy_grad" and weights is not None:
            return [(-y, -y, weights.exp) if y else ZERO for y in weights.man]
        return [ZERO] * self._n


def enclosures(truth: Truth, tier: fast.Tier, indices: Sequence[int]) -> Iterator[tuple[int, Enclosure]]:
    """Elements (flat indices, ascending) of a problem at a fast tier, those that it is proven for."""
    up = fast.UP if truth.fmt.precision == 53 else 0
    columns: dict[int, list[int]] = {}
    for index in indices:
        columns.setdefault(index // truth.width, []).append(index % truth.width)
    rows = list(columns)
    step = max(1, fast.CHUNK // max(truth.raw_logits.shape[1], truth.width))
    for start in range(0, len(rows), step):
        yield from _enclosures_of(truth, tier, up, rows[start : start + step], columns)


def _enclosures_of(
    truth: Truth, tier: fast.Tier, up: int, rows: Sequence[int], columns: dict[int, list[int]]
) -> Iterator[tuple[int, Enclosure]]:
    chosen = np.array(rows)
    chosen = chosen[fast.within(truth.op.name, truth.raw_logits[chosen], truth.companion(chosen))]
    if not chosen.size:
        return
    block = fast.Block(truth.op.name, tier, up, truth.raw_logits[chosen], truth.companion(chosen), fast.Buffers())
    block.prepare()
    for part in block.parts():
        radius = np.abs(part.hi) * block.bound if part.radius is None else part.radius
        for place, row in enumerate(chosen.tolist()):
            for column in columns[row]:
                if part.start <= column < part.stop:
                    at = (column - part.start, place) if block.axis == 0 else (place, column - part.start)
                    if part.masked is None or not part.masked[at]:
                        low = 0.0 if part.lo is None else float(part.lo[at])
                        yield row * truth.width + column, _interval(float(part.hi[at]), low, float(radius[at]), up)


def nearly(truth: Truth, rows: range) -> Array:
    """T of some rows, (rows, width), to about 2^-50 of itself: no truth, but what is like one. NaN or infinite where T is."""
    logits, companion = truth.raw_logits[rows.start : rows.stop], truth.companion(slice(rows.start, rows.stop))
    found = np.empty((len(rows), truth.width))
    plain = not isinstance(truth, Parametrised)
    quick = fast.within(truth.op.name, logits, companion) if plain else np.zeros(len(rows), bool)
    far = _FAR.get(truth.op.name)
    step = max(1, fast.CHUNK // max(logits.shape[1], truth.width))
    chosen = np.flatnonzero(quick)
    for some in (chosen[start : start + step] for start in range(0, chosen.size, step)):
        extra = None if companion is None else companion[some]
        block = fast.Block(truth.op.name, fast.TIERS[1], 0, logits[some], extra, fast.Buffers())
        block.prepare()
        for part in block.parts():
            hi = part.hi if part.masked is None or far is None else np.where(part.masked, far, part.hi)
            found[some, part.start : part.stop] = hi.T if block.axis == 0 else hi
    for row in np.flatnonzero(~quick).tolist():
        found[row] = [e if isinstance(e, float) else _middle(e) for e in truth.row(rows.start + row, truth.bits)]
    return found


_FAR = {"log_softmax": float("-inf"), "cross_entropy": float("inf")}
"""What is infinite where a logit is -inf, by op; the fast tiers tell only where that is."""


def _middle(e: tuple[int, int, int]) -> float:
    """Of an enclosure, in binary64."""
    lo, hi, exp = hull(e)
    man = lo + hi
    drop = max(man.bit_length() - 64, 0)
    try:
        return ldexp(man >> drop, exp + drop - 1)
    except OverflowError:
        return float("inf") if man > 0 else float("-inf")


def _interval(hi: float, lo: float, radius: float, up: int) -> tuple[int, int, int]:
    """(hi + lo +- radius) 2^-up in integers; two units beyond for the rounding of the radius itself."""
    unit = max(frexp(max(abs(hi), radius))[1] - 128, -1074)
    man = int(ldexp(hi, -unit)) + floor(ldexp(lo, -unit))
    reach = ceil(ldexp(radius, -unit) * (1 + 2.0**-30)) + 2
    return man - reach, man + reach, unit - up


def _narrower(e: Enclosure, bits: int) -> bool:
    assert not isinstance(e, float)
    lo, hi, _ = e
    return (lo > 0 or hi < 0) and (hi - lo) << bits <= min(abs(lo), abs(hi))


def _blurred(e: Enclosure, ulps: float, fmt: Format) -> Enclosure:
    """An enclosure widened by some ulps, so that what is near a boundary goes on to the next tier."""
    if isinstance(e, float) or not ulps:
        return e
    lo, hi, exp = e
    top = max(abs(lo), abs(hi)).bit_length() + exp
    shift = formats.ulp_exponent(top, fmt) + int(log2(ulps)) - exp
    pad = 1 << shift if shift > 0 else 1
    return lo - pad, hi + pad, exp


def _by_row(values: Array | None, rows: int, last_axis: bool) -> Array | None:
    if values is None:
        return None
    return np.asarray(values.reshape(rows, -1) if last_axis else values.reshape(rows))


def _select(whole: Scaled, finite: Array) -> Scaled:
    return Scaled([m for m, keep in zip(whole.man, finite.tolist(), strict=True) if keep], whole.exp)


def _spread(found: Sequence[Enclosure], fill: list[Enclosure], finite: Array) -> list[Enclosure]:
    rest = iter(found)
    return [next(rest) if keep else value for keep, value in zip(finite.tolist(), fill, strict=True)]


def _spread_square(found: Sequence[Enclosure], finite: Array) -> list[Enclosure]:
    rest = iter(found)
    keep = finite.tolist()
    return [next(rest) if a and b else ZERO for a in keep for b in keep]


def _is_exact(e: Enclosure) -> bool:
    return isinstance(e, float) or e[0] == e[1]


def _decide(e: Enclosure, fmt: Format) -> tuple[int | None, int | None] | None:
    """(ordinal of RN_F(T), None if that is NaN; floor(log2|T|)) where the enclosure decides both, else None."""
    if isinstance(e, float):
        return (None if e != e else _number(formats.infinity(e, fmt), fmt)), None
    lo, hi, exp = e
    if lo <= 0 <= hi and lo != hi:
        return None
    if lo == hi:
        return _number(formats.round_ordinal(lo, exp, fmt), fmt), (abs(lo).bit_length() + exp - 1 if lo else None)
    found = formats.round_between(lo, hi, exp, fmt)
    return found and (_number(found[0], fmt), found[1])


def _number(ordinal: int, fmt: Format) -> int | None:
    """The ordinal of a rounding, None where overflow made it NaN."""
    return None if formats.is_nan(ordinal, fmt) else ordinal


def certified(problem: Problem, fmt: Format) -> Truth:
    """The truth of any problem: of the same one without params, if there is one, else by the exact path. Raises InvalidProblem."""
    ops.check(problem)
    same = reduction.plain(problem)
    if same is None:
        return Parametrised(problem, fmt)
    truth = Truth(same, fmt)
    truth.shown = problem.logits.reshape(truth.raw_logits.shape)
    return truth


from engine.truth.parametrised import Parametrised  # noqa: E402  it is a Truth
