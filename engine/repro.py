"""minimise(problem, output, verdict): the smallest case found that still has the verdict, to take home.

Of many rows one is kept that has the verdict by itself, and of its columns those that can not be dropped: without them the verdict
would be another, or the truth of the worst element would move by more than an eighth of the error there, and no longer say what was
wrong. Where the output is no number there is no error, and the truth moves by an eighth of itself at most: what overflowed in a
sum still does.

Columns are taken by what they weigh in the truth, the heaviest first, as many as that rule needs; of these, delta debugging drops
what it can (ddmin: Zeller and Hildebrandt, doi 10.1109/32.988498). The work is bounded by elements judged, and what is found is the
same for the same input.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from math import frexp, isfinite
from typing import Any

import numpy as np

from engine import formats, ops
from engine.errors import InvalidProblem, Undecided
from engine.measurement import Cells
from engine.metrics import describe
from engine.model import NO_PARAMS, Array, Gate, Problem, Verdict
from engine.outcome import is_fast
from engine.plain import plain
from engine.truth import FAST_TIERS, Enclosure, Truth, certified, decimal, enclosures, hull, outward, special_name
from engine.verdict import INVARIANTS, Ruling, Turn

BUDGET = 1 << 19
"""Elements judged."""
SECONDS = 1.5
"""That they take at most on one slow core: a planning figure."""
LEAST = 1 << 13
"""Elements that a judgement counts for at least: as many take as long as what it does once."""
SLOWER = 300
"""Times as long as the fast tiers the exact path takes to judge an element."""
GLANCE = 16
"""A look at the truth of one element takes that part of a judgement; one by the exact path takes so many times as long."""
LONGEST = 1 << 10
"""Elements of a row that the exact path looks at though a fast tier has."""
SHARE = 8
"""The truth of the worst element moves by at most this part of its error."""
DIGITS = 25
"""Of the truth in decimals: no more than the finest of the fast tiers has."""
BITS = 92
NAMED = 8
"""Elements that are told in decimals at most."""
CANDIDATES = 4
"""Rows that are tried before halves of all of them."""


@dataclass(frozen=True)
class Wrong:
    """One of the worst elements of a case. posted: where it is in the output as it was posted; got: all digits of the number that
    the output is; truth: to 25 significant digits, the last within 1."""

    index: tuple[int, ...]
    posted: tuple[int, ...]
    got: str
    truth: str
    ulp: float | None


@dataclass(frozen=True, eq=False)
class Case:
    """A problem of shape (rows, columns), and what is judged: output of shape (rows, columns), (rows,), (rows, columns, columns),
    or (1,) for a sum or mean over the rows. rows, columns: their numbers in what was posted."""

    problem: Problem
    output: Array
    reference: Array | None
    outputs: tuple[Array, ...]
    rows: Array
    columns: Array


@dataclass(frozen=True, eq=False)
class Repro:
    """What there is to take home; case is None where nothing is, and the note says why. n: columns of what was posted;
    minimal: whether no column more could be dropped; judged: elements, as the budget counts them."""

    note: str
    case: Case | None = None
    n: int = 0
    minimal: bool = False
    judged: int = 0
    elements: tuple[Wrong, ...] = ()


def minimise(
    problem: Problem,
    output: Array,
    verdict: Verdict,
    reference: Array | None = None,
    outputs: Sequence[Array] = (),
    include: Collection[str] = (),
    axis: int = -1,
    budget: int = BUDGET,
) -> Repro:
    """The smallest case found that has this verdict of `verify`, of which problem, output and the others are the arguments.

    budget: elements judged at most, but for one row, which is judged in any case. Raises what `verify` raises.
    """
    if verdict.verdict == "pass":
        return Repro("the verdict is pass: nothing is minimised")
    turn = Turn(problem, axis)
    turned = turn.problem(problem)
    shape = turned.logits.shape
    whole = _laid_out(turned, turn.output(output, "output"), reference, outputs, turn)
    search = _Search(whole, verdict, [name for name in include if name in INVARIANTS], budget)
    found = search.rows(_candidates(verdict, whole, turn, shape[:-1]))
    if found is None:
        rule = f"within the budget of {budget} elements judged no row was found that has the verdict by itself"
        return Repro(f"{rule}: nothing is minimised", judged=search.judged)
    spot = _Spot.of(found[0], _element(found[1]))
    case, ruling, minimal = search.columns(*found, spot)
    first = spot.among(np.searchsorted(found[0].columns, case.columns))
    elements = tuple(_wrong(ruling, first, _Posted(turn, shape, case)))
    got = float(case.output.reshape(-1)[first])
    return Repro(_said(whole, case, minimal, budget, got), case, len(whole.columns), minimal, search.judged, elements)


def _said(whole: Case, case: Case, minimal: bool, budget: int, got: float) -> str:
    """What was kept. got: the worst element of the output."""
    n, dropped = len(whole.columns), len(whole.columns) - len(case.columns)
    some = f"row {case.rows[0]}" if len(case.rows) == 1 else f"{len(case.rows)} rows"
    some += f" of {len(whole.rows)}" * (len(whole.rows) > 1)
    if not dropped:
        told = f"{some}, whole: none of its {n} columns can be dropped" if minimal else f"{some}, whole"
    else:
        told = f"{some}, {dropped} of {n} columns dropped"
    share = "its error" if isfinite(got) else "itself"
    rule = f"the verdict holds, and the truth of the worst element moved by at most 1/8 of {share}"
    spent = f"; the budget of {budget} elements judged was spent, so more may be left than need be"
    return f"{told}; {rule}{spent * (not minimal)}"


# ---- the tensors -------------------------------------------------------------------------------------------------------


def _laid_out(problem: Problem, output: Array, reference: Array | None, outputs: Sequence[Array], turn: Turn) -> Case:
    """What was posted, its reduced axis at the end, as a case of all rows and columns."""
    n = problem.logits.shape[-1]
    rows, whole = problem.logits.size // n, ops.OPS[problem.op].output
    shape = {"logits": (rows, n), "rows": (rows,), "jacobian": (rows, n, n)}[whole]
    shape = (1,) if whole == "rows" and problem.params.reduction != "none" else shape
    params, targets, grad_output = problem.params, problem.targets, problem.grad_output
    if params.mask is not None and params.mask.ndim > 1:
        params = replace(params, mask=params.mask.reshape(rows, n))
    if targets is not None:
        targets = targets.reshape(rows) if ops.is_index(problem) else targets.reshape(rows, n)
    if grad_output is not None:
        grad_output = grad_output.reshape(rows, n)
    flat = Problem(problem.op, problem.logits.reshape(rows, n), targets, grad_output, params)
    beside = None if reference is None else turn.output(reference, "reference").reshape(shape)
    others = tuple(turn.output(other, "outputs").reshape(shape) for other in outputs)
    return Case(flat, output.reshape(shape), beside, others, np.arange(rows), np.arange(n))


def _cut(case: Case, rows: Array, columns: Array) -> Case:
    """Some rows and columns of a case, by their places in it."""
    op, p = case.problem.op, case.problem
    kind = "whole" if len(case.output) != len(case.rows) else ops.OPS[op].output
    both = np.ix_(rows, columns)
    index: Any = {"logits": both, "rows": rows, "jacobian": np.ix_(rows, columns, columns), "whole": slice(None)}[kind]
    params, targets = p.params, p.targets
    if params.mask is not None:
        params = replace(params, mask=params.mask[both] if params.mask.ndim > 1 else params.mask[columns])
    if params.weights is not None:
        params = replace(params, weights=params.weights[columns])
    if targets is not None and ops.is_index(p):
        gone = ops.ignored(p)[rows]
        place = np.zeros(len(case.columns), np.int64)
        place[columns] = np.arange(len(columns))
        targets = np.where(gone, -1, place[np.where(gone, 0, targets[rows])])
        if params.ignore_index is not None:
            params = replace(params, ignore_index=-1 if gone.any() else None)
    elif targets is not None:
        targets = targets[both]
    grad_output = None if p.grad_output is None else p.grad_output[both]
    params = params if ops.given_params(params) else NO_PARAMS
    cut = Problem(op, p.logits[both], targets, grad_output, params)
    reference = None if case.reference is None else case.reference[index]
    others = tuple(other[index] for other in case.outputs)
    return Case(cut, case.output[index], reference, others, case.rows[rows], case.columns[columns])


@dataclass(frozen=True)
class _Posted:
    """Where an element of a case is in the output as it was posted. shape: of the logits, the reduced axis at the end."""

    turn: Turn
    shape: tuple[int, ...]
    case: Case

    def __call__(self, index: tuple[int, ...]) -> tuple[int, ...]:
        if len(self.case.output) != len(self.case.rows) or not index:
            return ()
        row = np.unravel_index(int(self.case.rows[index[0]]), self.shape[:-1]) if len(self.shape) > 1 else ()
        return self.turn.index((*map(int, row), *(int(self.case.columns[i]) for i in index[1:])))


def _candidates(verdict: Verdict, whole: Case, turn: Turn, shape: tuple[int, ...]) -> list[int]:
    """Rows that may have the verdict by themselves, the likeliest first."""
    if len(whole.rows) == 1 or whole.problem.params.reduction != "none":
        return []

    def row(index: tuple[int, ...]) -> int:
        turned = tuple(np.delete(index, turn.axis)) if turn.whole else index
        return int(np.ravel_multi_index(tuple(int(i) for i in turned[: len(shape)]), shape))

    named = [finding.row if finding.index is None else row(finding.index) for finding in verdict.findings]
    named += [row(element.index) for element in verdict.worst]
    return list(dict.fromkeys(number for number in named if number is not None))[:CANDIDATES]


# ---- the search --------------------------------------------------------------------------------------------------------


class _Spent(Exception):
    """The budget is."""


class _Search:
    """Cases of a whole that have its verdict. judged: elements so far."""

    def __init__(self, whole: Case, verdict: Verdict, include: Sequence[str], budget: int) -> None:
        self._whole, self._wanted, self._include, self._budget = whole, verdict.verdict, include, budget
        self._gate, self._nonfinite = Gate(verdict.gate.policy, verdict.gate.parameters), verdict.nonfinite
        self.judged = 0

    def _spend(self, elements: int) -> None:
        if self.judged + elements > self._budget:
            raise _Spent
        self.judged += elements

    def _ruling(self, case: Case, spend: bool = True) -> Ruling | None:
        """Of a case that has the verdict; None for one that has not."""
        cost = _cost(case)
        if spend:
            self._spend(cost)
        else:
            self.judged += cost
        try:
            found = Ruling(
                case.problem, case.output, self._gate, self._nonfinite, case.reference, case.outputs, self._include, NAMED
            )  # fmt: skip
            return found if found.decided[0] == self._wanted else None
        except (InvalidProblem, Undecided):
            return None

    def rows(self, candidates: Sequence[int]) -> tuple[Case, Ruling] | None:
        """A row that has the verdict, or as few rows as halving finds; None where the budget was spent before."""
        whole, columns = self._whole, np.arange(len(self._whole.columns))
        if len(whole.rows) == 1 or whole.problem.params.reduction != "none":
            ruling = self._ruling(whole, spend=False)
            return None if ruling is None else (whole, ruling)
        try:
            for row in candidates:
                case = _cut(whole, np.array([row]), columns)
                if (ruling := self._ruling(case, spend=row != candidates[0])) is not None:
                    return case, ruling
            return self._halved(columns)
        except _Spent:
            return None

    def _halved(self, columns: Array) -> tuple[Case, Ruling] | None:
        """Half of the rows, half of these, ..., as long as one of both has the verdict."""
        rows, found = np.arange(len(self._whole.rows)), None
        while len(rows) > 1:
            if self.judged + len(rows) // 2 * len(columns) > self._budget:
                raise _Spent
            for half in np.array_split(rows, 2):
                case = _cut(self._whole, half, columns)
                if (ruling := self._ruling(case)) is not None:
                    rows, found = half, (case, ruling)
                    break
            else:
                break
        return found

    def columns(self, case: Case, ruling: Ruling, spot: _Spot) -> tuple[Case, Ruling, bool]:
        """The case without the columns that can be dropped, and whether all were that can be. spot: the worst element."""
        best = (case, ruling)

        def holds(columns: Sequence[int]) -> bool:
            nonlocal best
            some = _cut(case, np.arange(len(case.rows)), np.array(sorted(columns)))
            found = self._ruling(some)
            if found is not None:
                best = (some, found)
            return found is not None

        try:
            near = _Near(case, spot, self._spend)
            order, must = near.order()
            kept = order[: _least(lambda count: near(order[:count]), must, len(order))]
            while len(kept) < len(order) and not holds(kept):
                kept = order[: 2 * len(kept)]
            _reduce(kept, must, lambda columns: near(columns) and holds(columns))
        except _Spent:
            return *best, False
        return *best, True


def _cost(case: Case) -> int:
    """Of judging a case, in elements."""
    op, fmt, n = ops.OPS[case.problem.op], formats.of(case.output), len(case.columns)
    size = len(case.rows) * max(n, op.width(n))
    fast = plain(case.problem) is not None and is_fast(op.name, fmt, size)
    return LEAST + size * (1 if fast else SLOWER)


def _element(ruling: Ruling) -> int:
    """The flat index of the element whose truth must say what was wrong."""
    shape = ruling.truth.shape
    demanded = [finding.index for finding in ruling.demands if finding.index is not None]
    if demanded and shape:
        return int(np.ravel_multi_index(demanded[0], shape))
    return next(iter(ruling.ruled.worst()), 0)


def _least(good: Callable[[int], bool], low: int, high: int) -> int:
    """The smallest count from low to high that is good, if every larger one is; high is taken to be."""
    count = low
    while count < high and not good(count):
        low, count = count + 1, min(2 * count, high)
    while low < count:
        middle = (low + count) // 2
        low, count = (low, middle) if good(middle) else (middle + 1, count)
    return count


def _reduce(kept: Sequence[int], must: int, fits: Callable[[Sequence[int]], bool]) -> None:
    """Leave out what can be: large pieces first, then smaller ones, the lightest columns first, until no single one can be.

    The first `must` stay. What fits is remembered by the caller's `fits`.
    """
    first, rest = list(kept[:must]), list(kept[must:])[::-1]
    size = max(1, len(rest) // 2)
    while rest:
        before, start = len(rest), 0
        while start < len(rest):
            trial = rest[:start] + rest[start + size :]
            if fits(first + trial):
                rest = trial
            else:
                start += size
        if size == 1 and len(rest) == before:
            return
        size = max(1, size // 2)


@dataclass(frozen=True)
class _Spot:
    """One element of the output of a case. own: the columns that it is of."""

    row: int
    own: tuple[int, ...]

    @staticmethod
    def of(case: Case, element: int) -> _Spot:
        """By its flat index."""
        n, op = len(case.columns), ops.OPS[case.problem.op]
        if op.output == "rows":
            return _Spot(element, ())
        row, column = divmod(element, op.width(n))
        return _Spot(row, (column,) if op.output == "logits" else divmod(column, n))

    def among(self, columns: Array) -> int:
        """Its flat index where only these columns are left."""
        at = self.row
        for own in self.own:
            at = at * len(columns) + int(np.searchsorted(columns, own))
        return at


class _Near:
    """Whether the truth of one element of a case stays where it is when columns are dropped."""

    def __init__(self, case: Case, spot: _Spot, spend: Callable[[int], None]) -> None:
        self._case, self._spot, self._spend = case, spot, spend
        self._fmt = formats.of(case.output)
        element = spot.among(np.arange(len(case.columns)))
        self._true = list(_enclosures(certified(case.problem, self._fmt), element, spend))[-1]
        values = [case.output, *case.outputs]
        self._got = [float(value.reshape(-1)[element]) for value in values]

    def order(self) -> tuple[list[int], int]:
        """The columns, those that must stay first, then by what they weigh; and how many must."""
        p = self._case.problem
        must = list(self._spot.own)
        if ops.is_index(p):
            assert p.targets is not None
            must += p.targets[~ops.ignored(p)].tolist()
        weight = _weight(self._case)
        by_weight = np.argsort(-weight, kind="stable").tolist()
        order = list(dict.fromkeys([*must, *by_weight]))
        return order, max(1, len(set(must)))

    def __call__(self, columns: Sequence[int]) -> bool:
        chosen = np.array(sorted(columns))
        case = _cut(self._case, np.arange(len(self._case.rows)), chosen)
        try:
            for found in _enclosures(certified(case.problem, self._fmt), self._spot.among(chosen), self._spend):
                if (told := self._stays(found)) is not None:
                    return told
        except (InvalidProblem, Undecided):
            pass
        return False

    def _stays(self, found: Enclosure) -> bool | None:
        """None where the enclosure is too wide to tell."""
        true = self._true
        if isinstance(true, float) or isinstance(found, float):
            return isinstance(true, float) and isinstance(found, float) and special_name(true) == special_name(found)
        top = max([_top(true), *(frexp(c)[1] for c in self._got if isfinite(c) and c)])
        if _top(found) > top + SHARE:
            return False
        unit = top - 64 - self._fmt.precision
        low, high = outward(*hull(true), unit)
        least, most = outward(*hull(found), unit)
        errors = [_error(c, low, high, unit) for c in self._got]
        moved = max(0, least - high, low - most), max(most - low, high - least)
        if SHARE * moved[1] <= max(error for error, _ in errors):
            return True
        return False if SHARE * moved[0] > max(error for _, error in errors) else None


def _error(got: float, low: int, high: int, unit: int) -> tuple[int, int]:
    """The least and the largest that the output may be off by, in units of 2^unit; where it is no number, the truth's own size."""
    ends = (0, 0)
    if isfinite(got):
        above, below = got.as_integer_ratio()
        ends = outward(above, above, 1 - below.bit_length(), unit)
    return max(0, low - ends[1], ends[0] - high), max(high - ends[0], ends[1] - low)


def _top(e: tuple[int, int, int]) -> int:
    """An exponent of 2 above an enclosure."""
    lo, hi, exp = hull(e)
    return max(abs(lo), abs(hi)).bit_length() + exp


def _enclosures(truth: Truth, index: int, spend: Callable[[int], None]) -> Iterator[Enclosure]:
    """One element, by a fast tier, by the next, by the exact path, the narrowest last."""
    n = truth.raw_logits.shape[1]
    size = max(n, truth.width)
    if truth.problem.params is NO_PARAMS:
        told = None
        for tier in FAST_TIERS:
            spend(max(size, LEAST) // GLANCE)
            told = dict(enclosures(truth, tier, [index])).get(index)
            if told is not None:
                yield told
        if told is not None and size > LONGEST:
            return
        x = truth.logits(index // truth.width)
        if not (np.isfinite(x).any() and (x < np.inf).all()):
            size = 1
    spend(max(size * (len(truth.raw_logits) // truth.rows) * GLANCE, LEAST // GLANCE))
    yield truth.exact_cell(index, max(BITS, truth.bits))


def _weight(case: Case) -> Array:
    """How much the truth depends on each column, from 0 to 1, more where one decides: an order to try them in, and no truth."""
    p, params = case.problem, case.problem.params
    with np.errstate(all="ignore"):
        x = formats.widen(p.logits) * params.scale
        x = x if params.softcap is None else params.softcap * np.tanh(x / params.softcap)
        x = x if params.mask is None else np.where(params.mask, x, -np.inf)
        e = np.exp(x - x.max(axis=1, keepdims=True))
        found = e / e.sum(axis=1, keepdims=True)
        found = np.where(np.isnan(x) | (x == np.inf), 2.0, np.nan_to_num(found))
        if p.grad_output is not None:
            found = np.maximum(found, _share(np.abs(formats.widen(p.grad_output)) * found))
        if p.targets is not None and not ops.is_index(p):
            y = formats.widen(p.targets)
            found = np.maximum(found, np.maximum(_share(y), _share(y * np.nan_to_num(np.abs(x - x.max(axis=1, keepdims=True))))))
    return np.asarray(found.max(axis=0))


def _share(values: Array) -> Array:
    """Of the sum of their row; 0 where there is none."""
    return np.asarray(np.nan_to_num(values / values.sum(axis=1, keepdims=True)))


# ---- in decimals -------------------------------------------------------------------------------------------------------


def _wrong(ruling: Ruling, first: int, place: _Posted) -> Iterator[Wrong]:
    """The worst elements of a case: that whose truth was kept, then the others. first: its flat index."""
    truth, worst = ruling.case.truth, list(ruling.ruled.seen.worst)
    named = [int(np.ravel_multi_index(row.index, truth.shape)) if truth.shape else 0 for row in worst]
    if worst and first not in named:
        cells = Cells(ruling.case.output, truth, [first])
        special = isinstance(truth.cell(first, BITS), float) or not np.isfinite(cells.output.reshape(-1)[first])
        worst, named = [describe(cells, first, bool(special)), *worst[: NAMED - 1]], [first, *named]
    truth.expect(named)
    for row, at in sorted(zip(worst, named, strict=False), key=lambda pair: pair[1] != first):
        got = str(Decimal(row.got)) if isfinite(row.got) else special_name(row.got)
        yield Wrong(row.index, place(row.index), got, decimal(truth.cell(at, BITS), DIGITS), row.ulp)
