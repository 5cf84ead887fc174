"""verify(problem, output): pass, fail or inconclusive, and why; the gate is tested in the same answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import fsum
from typing import Any

import numpy as np

from engine import bounds, formats, ops, policies, sampling
from engine.bounds import Tolerance
from engine.diagnosis import Posted, findings, where
from engine.errors import InvalidProblem, UnknownName, quoted
from engine.measurement import Allowances, Measurement, Tolerated
from engine.metrics import measure as measure_exactly
from engine.metrics import worst as worst_of
from engine.model import (
    NO_PARAMS,
    Array,
    Bound,
    Certificate,
    Finding,
    Gate,
    Gated,
    Metrics,
    Problem,
    Sample,
    Sampled,
    SelfTest,
    Verdict,
    Worst,
)
from engine.mutants import mutants, mutate
from engine.outcome import MAX_WORST, changes_much, digest, is_fast, this_engine
from engine.parameters import Value
from engine.policies import Policy
from engine.survey import Map, Survey
from engine.truth import Truth, certified, nearly

NONFINITE = ("ieee", "masked_zero", "masked_uniform", "strict")
INVARIANTS = ("row_sums", "order", "argmax")
INCLUDE = ("elements", "ranks", *INVARIANTS)
FIRST_BLOCK = 1 << 10
"""Elements of the rows by which a gate is tested first; where they do not tell, four times as many follow."""


def verify(
    problem: Problem,
    output: Array,
    gate: Gate = Gate(),  # noqa: B008  frozen
    nonfinite: str = "ieee",
    reference: Array | None = None,
    outputs: Sequence[Array] = (),
    include: Collection[str] = (),
    worst: int = 8,
    map: Map = map,
    audit: int = 0,
    axis: int = -1,
    sample: Sample | None = None,
) -> Verdict:
    """Judge an output made elsewhere against the certified truth of a problem, its tensors taken exactly as stored.

    output: of the op's output shape; its dtype is the format it is judged in. gate: a policy (engine.policies) with its
    parameters. nonfinite: what rows without a truth must be. reference: another output, in any format, audited by the same truth.
    outputs: repeated runs, which must have the same bits. include: "elements" (the truth, correctly rounded, in the answer),
    "ranks" (the figure), and invariants that must hold beside the gate: "row_sums", "order", "argmax". worst, map, audit and
    errors as for evaluate. axis: the one that is reduced, of tensors of the logits' shape as they are given. sample: how many of
    the rows are judged (engine.sampling), all if None; what "strict" forbids and repeated runs are looked at in all of them.

    In this order: a special mismatch, or what `nonfinite` forbids: fail. The gate lets zeros through: inconclusive, but an element
    beyond both the gate and what any arithmetic in use does (policies.wide): fail. An allclose tolerance below half an ulp:
    inconclusive, unless an element is beyond that. Violated, but all within that: inconclusive. Violated: fail. Else pass.
    """
    judged = Ruling(problem, output, gate, nonfinite, reference, outputs, include, worst, map, audit, axis, sample)
    ruled, place, truth, drawn = judged.ruled, judged.place, judged.truth, judged.drawn
    verdict, kind = judged.decided
    bad = ruled.worst()
    why = [_reason(kind, ruled, bad, place)] if kind else []
    posted = Posted(judged.case.truth, judged.case.output, ruled.seen.metrics, bad if verdict != "pass" else ())
    beside = [] if judged.audited is None else [_of_reference(judged.audited)]
    told = None if sample is None else drawn.told if drawn else sampling.everything(truth.rows, sample)
    return Verdict(
        verdict=verdict,
        op=problem.op,
        rows=drawn.told.of if drawn else truth.rows,
        n=judged.problem.logits.shape[-1],
        logits_dtype=formats.of(problem.logits).name,
        format=truth.fmt.name,
        findings=(*judged.demands, *why, *findings(posted), *beside, *_of_sample(told)),
        metrics=place.metrics(ruled.seen.metrics),
        worst=tuple(replace(row, index=place(judged.case.flat(row))) for row in ruled.seen.worst),
        bound=place.bound(ruled.bound),
        gate=Gated(gate.policy, judged.given, judged.policy.rule, _declared(ruled), judged.self_test(), ruled.vacuous_fraction),
        nonfinite=nonfinite,
        certificate=replace(ruled.seen.certificate, coverage=1.0 if drawn is None else drawn.told.rows / drawn.told.of),
        digests=judged.digests,
        engine=this_engine(),
        reference=judged.audited and place.metrics(judged.audited),
        truth=judged.turn.back(truth.rounded()) if "elements" in include else None,
        sample=told,
    )


class Ruling:
    """A verdict before it is put in words: an output beside its truth, its gate, and what else was asked of it.

    Arguments and errors are those of `verify`. decided: the verdict, and the kind of its reason; demands: what fails whatever the
    gate says; drawn: the rows that are judged, None: all.
    """

    def __init__(
        self,
        problem: Problem,
        output: Array,
        gate: Gate,
        nonfinite: str,
        reference: Array | None,
        outputs: Sequence[Array],
        include: Collection[str],
        worst: int,
        map: Map = map,
        audit: int = 0,
        axis: int = -1,
        sample: Sample | None = None,
    ) -> None:
        self.policy, self.given = policies.find(gate)
        _check(problem.op, include, nonfinite, worst)
        posted, self.turn = problem, Turn(problem, axis, copied=sample is None)
        problem, turned = self.turn.problem(problem), self.turn.output(output, "output")
        self.digests = _digests(posted, ops.is_index(problem), output, reference)
        shape = ops.output_shape(problem)
        turned = _fitting(turned, shape, "output")
        others = None if reference is None else _fitting(self.turn.output(reference, "reference"), shape, "reference")
        self.drawn = drawn = None if sample is None else _drawn(problem, turned, sample, nonfinite, include)
        width = ops.OPS[problem.op].width(problem.logits.shape[-1])
        self.place = place = _Place(self.turn, shape, width, None if drawn is None else drawn.rows)
        forbidden = list(_strict(problem, turned, nonfinite, place))
        if drawn is not None:
            others = None if others is None else drawn.output(others, problem)
            problem, turned = drawn.problem(problem), drawn.output(turned, problem)
        self.problem, self.truth = problem, certified(problem, formats.of(output))
        settled, judged, masked = _settled(problem, turned, nonfinite, place)
        truth = self.truth if settled is problem else certified(settled, self.truth.fmt)
        self.case = case = _Case(judged, truth, changes_much(settled, self.truth), map)
        self.truth.numbers = truth.numbers = place.numbers
        self.audited = None if others is None else _audited(settled, others, map)
        ranks = "ranks" in include or "order" in include
        self.ruled = _Ruled(case, self.policy, self.given, self.audited, ranks=ranks, count=worst, audit=audit)
        seen = self.ruled.seen
        self.demands = [
            *_special(case, seen, place), *masked, *forbidden, *_repeated(output, outputs),
            *_invariants(include, case, seen),
        ]  # fmt: skip
        self._blocks, self._fates = _Blocks(case), dict[str, str]()

    @cached_property
    def decided(self) -> tuple[str, str]:
        """The verdict, and the kind of its reason."""
        if self.demands:
            return "fail", "beyond" if self.ruled.broken else ""
        return _decided(self.ruled, lambda: self.fate("zeros") == "missed")

    def fate(self, name: str) -> str:
        """What the gate makes of a mutant of the truth. One is caught by one row, which is looked for from the first on."""
        if name not in self._fates:
            self._fates[name] = _fate(name, self._blocks, self.policy, self.given, self.audited)
        return self._fates[name]

    def self_test(self) -> SelfTest:
        """What it makes of each."""
        found: dict[str, list[str]] = {"caught": [], "missed": [], "equivalent": []}
        for name in mutants(self.case.truth.fmt):
            found[self.fate(name)].append(name)
        return SelfTest(**{fate: tuple(names) for fate, names in found.items()})


def _drawn(problem: Problem, output: Array, sample: Sample, nonfinite: str, include: Collection[str]) -> sampling.Drawn | None:
    """The rows that are judged, None: all."""
    found = sampling.draw(problem, output, sample, nonfinite)
    if found and "elements" in include:
        raise InvalidProblem('include "elements" is the truth of all rows, and a sample has some: leave one of the two out')
    return found


def _of_sample(told: Sampled | None) -> Iterator[Finding]:
    """What a sample leaves open."""
    if told and told.rows < told.of:
        detail = f"{told.rows} of {told.of} rows were judged: verdict and figures are of these, and say nothing sure of the others"
        yield Finding("sample", detail, count=told.rows)


def _declared(ruled: _Ruled) -> dict[str, Value] | None:
    """What the bound of a gate is that of."""
    if ruled.policy.kind != "bound":
        return None
    k = ruled.tolerance.declared[0]
    return {
        "algorithm": k.variant.removeprefix(f"{ruled.case.op}/"),
        "compute": k.format,
        "accumulator": k.accumulator,
        "summation": k.summation,
        "exp_ulp": k.exp_ulps,
        "log_ulp": k.log_ulps,
        "exponent_roundings": k.kappa,
        "subnormals": "flush" if k.flush else "gradual",
        "factor": ruled.tolerance.factor,
    }


def estimate_verdict(problem: Problem, output: Array, axis: int = -1, sample: Sample | None = None) -> float:
    """Seconds that verify may take on one slow core, of an output that fails: a planning figure, from element counts alone."""
    problem = Turn(problem, axis, copied=False).problem(problem)
    op = ops.check(problem)
    n: int = problem.logits.shape[-1]
    rows: int = problem.logits.size // n
    judged = rows if sample is None else min(rows, sample.rows)
    size = judged * (n + op.width(n))
    look = 0.0 if judged == rows else 3e-8 * rows * (n + op.width(n))
    fast = problem.params is NO_PARAMS and is_fast(op.name, formats.of(output), size)
    return 0.9 + look + (1e-6 * size if fast else 6e-4 * size * (2 if op.name == "log_softmax" else 1))


def _digests(problem: Problem, is_index: bool, output: Array, reference: Array | None) -> dict[str, str]:
    """Of the tensors as they were posted; class indices, which have no format, as int64."""
    targets = problem.targets
    tensors = {
        "logits": problem.logits,
        "output": output,
        "targets": targets.astype(np.int64) if is_index and targets is not None else targets,
        "grad_output": problem.grad_output,
        "reference": reference,
    }
    return {name: digest(tensor) for name, tensor in tensors.items() if tensor is not None}


def _fitting(output: Array, shape: tuple[int, ...], name: str) -> Array:
    """An output of that shape; one number may be a list of one. Raises InvalidProblem for another shape."""
    if shape == () and output.shape == (1,):
        return output.reshape(())
    if output.shape != shape:
        mean = "; a number for each row, not their mean (reduction none)" if shape and output.size == 1 else ""
        raise InvalidProblem(f"{name} has shape {list(output.shape)}; for these logits it must be {list(shape)}{mean}")
    return output


def _audited(problem: Problem, reference: Array, map: Map) -> Metrics:
    """The figures of a reference against the same truth, in its own format."""
    truth = certified(problem, formats.of(reference))
    case = _Case(reference, truth, changes_much(problem, truth), map)
    return case.seen(case.tight, case.tight).metrics


def _of_reference(m: Metrics) -> Finding:
    """What the audit of a reference found."""
    if m.special_mismatch:
        return Finding(
            "reference", f"your reference is itself wrong: {m.special_mismatch} elements are NaN or infinite, or are not"
        )
    ulps = "has no element to compare" if m.max_ulp is None else f"is itself {m.max_ulp:.3g} ULP off here"
    return Finding("reference", f"your reference {ulps}")


def _check(op: str, include: Collection[str], nonfinite: str, worst: int) -> None:
    for name in include:
        if name not in INCLUDE:
            raise UnknownName(f"unknown include {quoted(name)}; known: {', '.join(INCLUDE)}")
    if nonfinite not in NONFINITE:
        raise UnknownName(f"unknown nonfinite policy {quoted(nonfinite)}; known: {', '.join(NONFINITE)}")
    if not 0 <= worst <= MAX_WORST:
        raise InvalidProblem(f"worst is {worst}; it must be 0 to {MAX_WORST}")
    for name, known in _HAVE.items():
        if name in include and op not in known:
            raise InvalidProblem(f"include {name!r} is for {' and '.join(known)}; {op} has no such invariant: leave it out")


_HAVE: Mapping[str, tuple[str, ...]] = {
    "row_sums": ("softmax", "log_softmax", "cross_entropy_grad"),
    "order": ("softmax", "log_softmax"),
    "argmax": ("softmax", "log_softmax"),
}


# ---- the tensors, as they are judged -----------------------------------------------------------------------------------


class Turn:
    """The reduced axis brought to the end, and back. copied: whether tensors are then laid out anew."""

    def __init__(self, problem: Problem, axis: int, copied: bool = True) -> None:
        rank = problem.logits.ndim
        if not -rank <= axis < max(rank, 1):
            raise InvalidProblem(f"axis is {axis}; logits of rank {rank} have axes {-rank} to {rank - 1}")
        self.axis, self._shape, self._copied = axis % max(rank, 1), problem.logits.shape, copied
        self.plain = self.axis == rank - 1
        self.whole = ops.OPS[problem.op].output == "logits"

    def _moved(self, tensor: Array) -> Array:
        moved = np.moveaxis(tensor, self.axis, -1) if tensor.shape == self._shape else tensor
        return np.ascontiguousarray(moved) if self._copied else moved

    def problem(self, problem: Problem) -> Problem:
        """With the axis at the end."""
        if self.plain:
            return problem
        params = problem.params if problem.params.mask is None else replace(problem.params, mask=self._moved(problem.params.mask))
        targets, grad_output = problem.targets, problem.grad_output
        targets = None if targets is None else self._moved(targets)
        grad_output = None if grad_output is None else self._moved(grad_output)
        return Problem(problem.op, self._moved(problem.logits), targets, grad_output, params)

    def output(self, output: Array, name: str) -> Array:
        """An output of the posted shape."""
        return self._moved(_fitting(output, self._shape, name)) if self.whole and not self.plain else output

    def back(self, values: Array) -> Array:
        """What has the shape of the output, as it was posted."""
        return values if not self.whole or self.plain else np.moveaxis(values, -1, self.axis)

    def index(self, index: tuple[int, ...]) -> tuple[int, ...]:
        """Where an element of the turned output was posted; of its shape, the posted one."""
        return index if not self.whole or self.plain else (*index[: self.axis], index[-1], *index[self.axis : -1])


def _settled(problem: Problem, output: Array, nonfinite: str, place: _Place) -> tuple[Problem, Array, list[Finding]]:
    """Fully masked rows as the `nonfinite` policy wants them: what is left to be judged by numbers, and what it forbids.

    masked_uniform: they are rows of zeros, whose truth is what is wanted. masked_zero: they are looked at here, and go on as rows
    of zeros with the right output, so that in every figure they count as right.
    """
    masked = _masked(problem) if nonfinite in _MASKED and problem.op in _FIXED else np.zeros(0, bool)
    if not masked.any():
        return problem, output, []
    gone = masked[..., None]
    mask = None if problem.params.mask is None else problem.params.mask | gone
    params = problem.params if mask is None else replace(problem.params, mask=mask)
    zeros = Problem(problem.op, np.where(gone, np.zeros((), problem.logits.dtype), problem.logits), params=params)
    if nonfinite == "masked_uniform":
        return zeros, output, []
    wanted, said = _FIXED[problem.op]
    rows = np.flatnonzero(masked)
    wrong = rows[(formats.widen(output[masked]) != wanted).any(axis=-1)]
    fmt = formats.of(output)
    ordinal, _ = certified(Problem(problem.op, np.zeros(problem.logits.shape[-1])), fmt).decided(0)
    right = formats.from_ordinals(np.array([ordinal]), fmt)[0]
    found = []
    if wrong.size:
        first = place.row(int(wrong[0]))
        detail = f"{wrong.size} rows whose logits are all -Infinity are not {said} everywhere; the first is row {first}"
        found = [Finding("masked", detail, row=first, count=int(wrong.size))]
    return zeros, np.where(gone, right, output), found


_MASKED = ("masked_zero", "masked_uniform")
_FIXED: Mapping[str, tuple[float, str]] = {"softmax": (0.0, "0"), "log_softmax": (-np.inf, "-Infinity")}
"""What masked_zero wants of a fully masked row, by op."""


def _masked(problem: Problem) -> Array:
    """Rows whose logits are all -inf, or masked."""
    gone = [(sampling.kept(problem, rows) == -np.inf).all(axis=1) for rows in sampling.blocks(problem)]
    return np.concatenate(gone).reshape(problem.logits.shape[:-1])


def _strict(problem: Problem, output: Array, nonfinite: str, place: _Place) -> Iterator[Finding]:
    """What the strict policy forbids, in all rows."""
    if nonfinite != "strict":
        return
    batch = problem.logits.shape[:-1]
    found: dict[str, list[int]] = {"a NaN": [], "an Infinity": []}
    for rows in sampling.blocks(problem):
        x = formats.widen(sampling.some(problem.logits, batch, rows))
        for what, told in (("a NaN", np.isnan(x)), ("an Infinity", x == np.inf)):
            found[what] += rows[told.any(axis=1)].tolist()
    found["nothing but -Infinity"] = np.flatnonzero(_masked(problem)).tolist()
    for what, numbers in found.items():
        if numbers:
            detail = f"{len(numbers)} rows of logits have {what}; the first is row {numbers[0]}"
            yield Finding("strict", detail, row=numbers[0], count=len(numbers))
    wild, first, start = 0, None, 0
    parts = (sampling.some(output, batch, rows) for rows in sampling.blocks(problem)) if output.ndim else iter((output,))
    for part in parts:
        some = np.flatnonzero(~np.isfinite(formats.widen(part)))
        if some.size and first is None:
            first = place.posted(start + int(some[0]))
        wild, start = wild + some.size, start + part.size
    if wild:
        yield Finding("strict", f"{wild} elements of the output are not finite", index=first, count=wild)


def _repeated(output: Array, outputs: Sequence[Array]) -> Iterator[Finding]:
    """Repeated runs that are not the same bits. Raises InvalidProblem for another shape or format."""
    for number, other in enumerate(outputs):
        if other.shape != output.shape or other.dtype != output.dtype:
            what = f"outputs.{number} is {formats.of(other).name} {list(other.shape)}"
            raise InvalidProblem(f"{what}; repeated runs are as the output is, {formats.of(output).name} {list(output.shape)}")
        a, b, apart, first = _bits(output), _bits(other), 0, -1
        for start in range(0, a.size, KEPT):
            some = np.flatnonzero(a[start : start + KEPT] != b[start : start + KEPT])
            first = start + int(some[0]) if some.size and not apart else first
            apart += some.size
        if apart:
            index = tuple(int(i) for i in np.unravel_index(first, output.shape)) if output.shape else ()
            detail = f"run {number} differs from the output in {apart} of {output.size} elements: the same input, other bits"
            yield Finding("reproducibility", detail, index=index, count=apart)


def _bits(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")


# ---- what is seen of an output -----------------------------------------------------------------------------------------


class _Seen:
    """An output beside two tolerances, of its own algorithm and the one that judges. Figures are made when they are asked for."""

    def __init__(self, found: Measurement | Survey, ranks: bool, count: int) -> None:
        self._found, self._ranks, self._count = found, ranks, count

    @cached_property
    def metrics(self) -> Metrics:
        """Every figure."""
        found = self._found
        return found.metrics(self._ranks) if isinstance(found, Survey) else measure_exactly(found, self._ranks)

    @cached_property
    def worst(self) -> tuple[Worst, ...]:
        """The worst elements."""
        found = self._found
        return found.worst(self._count) if isinstance(found, Survey) else worst_of(found, self._count)

    @cached_property
    def tolerated(self) -> Tolerated:
        """What the tolerance that judges says."""
        return self._found.tolerated()

    @cached_property
    def bound(self) -> Bound:
        """What that says of it, where it is a bound."""
        return self._found.bound()

    @property
    def certificate(self) -> Certificate:
        """How its figures were made."""
        found = self._found
        return found.certificate() if isinstance(found, Survey) else found.truth.certificate()

    @property
    def special(self) -> bool:
        """Whether an element is NaN or infinite and should not be, or the reverse; beside overflow to NaN either is right."""
        return self._found.specials > self._found.beside_overflow

    @property
    def rounded(self) -> bool:
        """Whether every element is correctly rounded."""
        return self._found.rounded == self._found.output.size

    @cached_property
    def near(self) -> bool:
        """Whether every element has a bound and is within it, by its own algorithm."""
        over = self._found.error_over_bound()
        return over is not None and over <= 1 and not self._found.unbounded


class _Case:
    """An output and the truth in its format, to be looked at as often as needed. changed: whether params leave no bound known."""

    def __init__(self, output: Array, truth: Truth, changed: bool, map: Map) -> None:
        self.output, self.truth, self.changed, self.map = np.asarray(output, order="C"), truth, changed, map
        self.op = truth.op.name

    def of(self, tolerance: Tolerance) -> Tolerance:
        """A tolerance whose bounds, with these params, may not be known."""
        return replace(tolerance, declared=tuple(replace(k, params=self.changed) for k in tolerance.declared))

    @cached_property
    def tight(self) -> Tolerance:
        """What the default gate allows."""
        return self.of(policies.tight(self.op, self.truth.fmt))

    @cached_property
    def wide(self) -> Tolerance:
        """What some arithmetic in use may do."""
        return self.of(policies.wide(self.op, self.truth.fmt))

    def flat(self, row: Worst) -> int:
        """The flat index of one of the worst."""
        return int(np.ravel_multi_index(row.index, self.truth.shape)) if self.truth.shape else 0

    def seen(self, own: Tolerance, judge: Tolerance, ranks: bool = False, count: int = 0, audit: int = 0) -> _Seen:
        """By the fast tiers, or by the exact path alone: the figures are the same."""
        truth = self.truth
        allowances = Allowances(truth, own, judge)
        size = truth.rows * max(truth.width, truth.raw_logits.shape[1])
        if truth.problem.params is not NO_PARAMS or not is_fast(self.op, truth.fmt, size):
            return _Seen(Measurement(self.output, truth, allowances), ranks, count)
        fresh = Truth(truth.problem, truth.fmt)
        fresh.shown = truth.shown
        survey = Survey(self.output, fresh, count, self.map, allowances=allowances, gated=True)
        survey.audit(audit, truth)
        return _Seen(survey, ranks, count)


# ---- ruling ------------------------------------------------------------------------------------------------------------


class _Ruled:
    """An output beside a gate, and beside what any arithmetic in use may do, which is looked at where that decides."""

    def __init__(
        self, case: _Case, policy: Policy, given: Mapping[str, Value], audited: Metrics | None, ranks: bool, count: int, audit: int
    ) -> None:
        self.case, self.policy = case, policy
        self.default = policy.kind == "bound" and not given
        self.tolerance = case.of(policy.tolerance(case.op, case.truth.fmt, given))
        own = self.tolerance if policy.kind == "bound" else case.tight
        self.seen = case.seen(own, own, ranks, count, audit)
        self.bound = self.seen.bound
        self.tolerated = self.seen.tolerated if policy.kind == "bound" else case.seen(own, self.tolerance).tolerated
        self.broken = self.tolerated.beyond > 0 if policy.broken is None else policy.broken(self.seen.metrics, audited, given)

    @property
    def vacuous_fraction(self) -> float | None:
        """Of the elements whose truth is not 0."""
        told = self.tolerated
        return told.vacuous / told.nonzero if told.nonzero else None

    @cached_property
    def beyond_wide(self) -> Tolerated:
        """Beside what any arithmetic in use does."""
        return self.case.seen(self.case.wide, self.case.wide).tolerated

    @cached_property
    def beyond_both(self) -> bool:
        """Whether an element is beyond the gate and beyond that."""
        if not self.beyond_wide.beyond or not self.tolerated.beyond:
            return False
        both = replace(self.tolerance, declared=(*self.tolerance.declared, *self.case.wide.declared))
        return self.default or self.case.seen(self.case.wide, both).tolerated.beyond > 0

    def worst(self) -> list[int]:
        """Flat indices of what is worst: special mismatches, then what is beyond the gate, by ULP error."""
        m, named = self.seen.metrics, [self.case.flat(row) for row in self.seen.worst]
        if m.argmax_ulp is not None and not named:
            named = [m.argmax_ulp]
        first = self.tolerated.first
        return list(dict.fromkeys([*named, *([] if first is None else [first])]))


def _decided(ruled: _Ruled, lets_zeros_through: Callable[[], bool]) -> tuple[str, str]:
    """The verdict, and the kind of its reason: rules 2 to 6."""
    told, kind = ruled.tolerated, ruled.policy.kind
    if kind == "demand" or (ruled.broken and kind == "reference"):
        return ("fail", "beyond") if ruled.broken else ("pass", "")
    if kind == "reference":  # its errors may be as large as the truth, or no numbers
        return ("inconclusive", "vacuous") if lets_zeros_through() else ("pass", "")
    if not (kind == "bound" and told.unjudged) and lets_zeros_through():
        return ("fail", "beyond") if ruled.beyond_both else ("inconclusive", "vacuous")
    if kind == "allclose" and told.short:
        return ("fail", "beyond") if ruled.beyond_wide.beyond else ("inconclusive", "short")
    if told.beyond and ruled.default:
        return ("fail", "beyond") if ruled.beyond_wide.beyond else ("inconclusive", "between")
    if told.beyond and kind == "allclose" and not ruled.beyond_wide.beyond and not ruled.beyond_wide.unjudged:
        return "inconclusive", "stricter"
    if told.beyond:
        return "fail", "beyond"
    return ("inconclusive", "unbounded") if told.unjudged else ("pass", "")


# ---- the gate, tested --------------------------------------------------------------------------------------------------


class _Blocks:
    """The rows of a case in blocks that grow, with results near the truth, each made once."""

    def __init__(self, case: _Case) -> None:
        self._case, self.changed = case, case.changed
        self._made: list[tuple[Truth, Array]] = []

    def __iter__(self) -> Iterator[tuple[Truth, Array]]:
        yield from self._made
        for rows in self._rest():
            truth = self._case.truth
            part = truth if len(rows) == truth.rows else Truth(truth.part(rows), truth.fmt)
            self._made.append((part, nearly(truth, rows)))
            yield self._made[-1]

    def _rest(self) -> Iterator[range]:
        truth = self._case.truth
        start = sum(part.rows for part, _ in self._made)
        whole = truth.problem.params is not NO_PARAMS
        while start < truth.rows:
            wanted = FIRST_BLOCK * 4 ** len(self._made)
            count = truth.rows if whole else max(1, min(truth.rows - start, wanted // truth.width, KEPT // truth.width))
            yield range(start, start + count)
            start += count


KEPT = 1 << 20
"""Elements of a block at most."""


def _fate(name: str, blocks: _Blocks, policy: Policy, given: Mapping[str, Value], audited: Metrics | None) -> str:
    """caught, missed or equivalent."""
    caught = apart = False
    for truth, right in blocks:
        broken = mutate(name, right, truth, range(truth.rows)).reshape(truth.shape)
        case = _Case(broken, truth, blocks.changed, map)
        seen = case.seen(case.tight, case.of(policy.tolerance(case.op, truth.fmt, given)))
        outside = policy.broken(seen.metrics, audited, given) if policy.broken else seen.tolerated.beyond > 0
        caught = caught or seen.special or outside
        apart = apart or seen.special or not (seen.near or seen.rounded)
        if caught and apart:
            return "caught"
    return "missed" if apart else "equivalent"


# ---- in words ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where an element of what is judged was posted. shape: of the output with the reduced axis at the end; width: its elements for
    a row; numbers: of the rows that are judged, None: all."""

    turn: Turn
    shape: tuple[int, ...]
    width: int
    numbers: Array | None

    def row(self, row: int) -> int:
        """The number of a row that is judged."""
        return row if self.numbers is None else int(self.numbers[row])

    def __call__(self, flat: int) -> tuple[int, ...]:
        row, column = divmod(flat, self.width)
        return self.posted(self.row(row) * self.width + column)

    def posted(self, flat: int) -> tuple[int, ...]:
        """The index of an element of the whole output."""
        index = np.unravel_index(flat, self.shape) if self.shape else ()
        return self.turn.index(tuple(int(i) for i in index))

    def metrics(self, metrics: Metrics) -> Metrics:
        """With flat indices of the output as it was posted, and numbers of rows."""
        if (self.turn.plain and self.numbers is None) or not self.shape:
            return metrics
        shape = self.turn.index(self.shape)
        named = {name: getattr(metrics, name) for name in ("argmax_ulp", "argmax_rel")}
        flat = {name: None if at is None else int(np.ravel_multi_index(self(at), shape)) for name, at in named.items()}
        of_rows = {name: getattr(metrics, name) for name in ("kl", "total_variation", "backward_error")}
        found = {name: told and replace(told, worst_row=self.row(told.worst_row)) for name, told in of_rows.items()}
        changed: dict[str, Any] = {**flat, **found}
        return replace(metrics, **changed)

    def bound(self, bound: Bound) -> Bound:
        """With the number of the row."""
        return bound if bound.condition_row is None else replace(bound, condition_row=self.row(bound.condition_row))


def _special(case: _Case, seen: _Seen, place: _Place) -> Iterator[Finding]:
    """Elements that are NaN or infinite where the truth is not, or the reverse."""
    m = seen.metrics
    if not seen.special:
        return
    some = [worst for worst in seen.worst if worst.ulp is None]
    detail = f"{m.special_mismatch} of {m.n} elements are NaN or infinite and should not be, or the reverse"
    index = None
    if some:
        flat = case.flat(some[0])
        detail += f"; {where(case.truth, flat)}: got {_number(some[0].got)}, truth {_number(float(some[0].expected))}"
        index = place(flat)
    yield Finding("special", detail, index=index, count=m.special_mismatch)


def _number(value: float) -> str:
    """Short, for a sentence."""
    return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(repr(value), f"{value:.6g}")


def _reason(kind: str, ruled: _Ruled, bad: Sequence[int], place: _Place) -> Finding:
    """The sentence of a verdict that is no pass."""
    told, m, n = ruled.tolerated, ruled.seen.metrics, ruled.seen.metrics.n
    worst = _worst(ruled, bad)
    index, count = place(bad[0]) if bad else None, told.beyond or None
    name = ruled.policy.name
    if kind == "beyond":
        some = f"{told.beyond} of {n} elements are beyond the gate {name}" if told.beyond else f"the gate {name} does not hold"
        return Finding(kind, f"{some}{worst}", index=index, count=count)
    if kind == "between":
        explained = _cheapest(ruled)
        detail = (
            f"{told.beyond} of {n} elements are beyond what a right implementation does that computes in float32 or wider{worst}"
        )
        return Finding(kind, f"{detail}; {explained}", index=index, count=count)
    if kind == "stricter":
        detail = f"{told.beyond} of {n} elements are beyond {name}, but all are within what error theory allows arithmetic in use"
        return Finding(kind, f"{detail}: the gate is stricter here than any stable algorithm{worst}", index=index, count=count)
    if kind == "vacuous" and ruled.policy.kind == "reference":
        detail = f"the gate {name} lets an output of zeros through: what the reference is off by is as large as the truth, or no"
        return Finding(kind, f"{detail} number; a pass would say nothing")
    if kind == "vacuous":
        share = f"{ruled.vacuous_fraction:.3g}" if ruled.vacuous_fraction is not None else "all"
        detail = f"the gate {name} lets an output of zeros through: of the elements that are not 0, {share} (as a share) have a"
        return Finding(kind, f"{detail} tolerance as large as they are; a pass would say nothing", count=told.vacuous)
    if kind == "short":
        detail = f"the tolerance of {name} is below half an ULP of {ruled.case.truth.fmt.name} for some elements"
        return Finding(kind, f"{detail}: not even the correctly rounded result can be sure to pass")
    detail = f"{told.unjudged} of {n} elements have no bound here: {_no_bound(ruled)}"
    return Finding(kind, detail + ("" if m.max_ulp is None else f"; the largest error is {m.max_ulp:.4g} ULP"), count=told.unjudged)


def _no_bound(ruled: _Ruled) -> str:
    """Why."""
    if ruled.case.changed:
        return "no bound is known with these params; name a tolerance of your own (max_ulp, allclose)"
    return "error theory allows this arithmetic anything on such rows; name a tolerance of your own (max_ulp, allclose)"


def _worst(ruled: _Ruled, bad: Sequence[int]) -> str:
    """The worst element in words."""
    for row in ruled.seen.worst:
        flat = ruled.case.flat(row)
        if flat in bad and row.ulp is not None:
            place = where(ruled.case.truth, flat)
            return f"; {place}: got {_number(row.got)}, truth {float(row.expected):.6g}, off by {row.ulp:.4g} ULP"
    return ""


_DECLARATIONS = (
    ("float32 sums in sequence", {"summation": "sequential"}),
    ("subnormals flushed to zero", {"subnormals": "flush"}),
    ("{fmt} sums", {"accumulator": "{fmt}", "summation": "pairwise"}),
    ("{fmt} sums in sequence", {"accumulator": "{fmt}", "summation": "sequential"}),
    ("arithmetic wholly in {fmt}, sums pairwise", {"compute": "{fmt}", "summation": "pairwise"}),
    ("arithmetic wholly in {fmt}, sums in sequence", {"compute": "{fmt}", "summation": "sequential"}),
)
"""What an output between the two tolerances of the default gate may be consistent with, the cheapest first."""


def _cheapest(ruled: _Ruled) -> str:
    """The first declaration whose bound the output is within."""
    case, name = ruled.case, ruled.case.truth.fmt.name
    for said, given in _DECLARATIONS:
        told = {key: value.format(fmt=name) for key, value in given.items()}
        tolerance = case.of(policies.POLICIES["bound"].tolerance(case.op, case.truth.fmt, told))
        found = case.seen(tolerance, tolerance).tolerated
        if not found.beyond and not found.unjudged:
            declared = ", ".join(f'"{key}": "{value}"' for key, value in told.items())
            return f"{said.format(fmt=name)} may err so much: declare it ({declared}) if that is meant"
    return "no one declaration allows it, only several together"


def _invariants(include: Collection[str], case: _Case, seen: _Seen) -> Iterator[Finding]:
    """What was asked to hold beside the gate, and does not."""
    m = seen.metrics
    if "argmax" in include and m.argmax_preserved is not None:
        live = _live(case.truth)
        if m.argmax_preserved < live:
            lost = live - m.argmax_preserved
            yield Finding("argmax", f"{lost} of {live} rows have their largest result where the truth has not", count=lost)
    if "order" in include and m.rank_inversions:
        detail = f"{m.rank_inversions} pairs of logits x_i > x_j have results in the other order"
        yield Finding("order", detail, count=m.rank_inversions)
    if "row_sums" in include:
        yield from _row_sums(case)


def _live(truth: Truth) -> int:
    """The rows that have a truth."""
    if truth.problem.params is not NO_PARAMS:  # a mask, or a softcap, says which
        return sum(not truth.untrue(row) for row in range(truth.rows))
    with np.errstate(invalid="ignore"):  # of bfloat16, a NaN beside an infinity is a warning
        return int(np.isfinite(formats.widen(truth.raw_logits.max(axis=1))).sum())


def _row_sums(case: _Case) -> Iterator[Finding]:
    """Rows whose sum is farther off than the errors that a right implementation may make there can add up to."""
    truth, wrong, first = case.truth, 0, None
    if case.changed:
        raise InvalidProblem("include 'row_sums': what rounding explains is not known with these params; leave it out")
    target = {"softmax": 1.0, "log_softmax": 1.0, "cross_entropy_grad": 0.0}[case.op]
    flat = case.output.reshape(truth.rows, -1)
    for row in range(truth.rows):
        c = formats.widen(flat[row])
        c = np.exp(c) if case.op == "log_softmax" else c
        if not np.isfinite(c).all() or not np.isfinite(truth.logits(row).max()):
            continue
        allowed = bounds.allowed((case.tight,), truth.raw_logits[row], truth.companion(row), truth.width)[0]
        if case.op == "log_softmax":
            allowed = c * np.expm1(np.minimum(allowed, 700.0))
        least = np.maximum(allowed, truth.fmt.unit_roundoff * np.abs(c) + truth.fmt.smallest_subnormal)
        if abs(fsum(c) - target) > fsum(least) * (1 + 2.0**-20) + 2.0**-50:
            wrong, first = wrong + 1, row if first is None else first
    if first is not None:
        total = fsum(np.exp(formats.widen(flat[first])) if case.op == "log_softmax" else formats.widen(flat[first]))
        detail = f"{wrong} of {truth.rows} rows do not add up to {target:g} within what rounding explains"
        detail += f"; row {truth.number(first)} adds up to {total:.6g}"
        yield Finding("row_sums", detail, row=truth.number(first), count=wrong)
