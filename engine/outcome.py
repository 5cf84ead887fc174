"""evaluate(problem, ...): run built-in variants and measure them against the truth. certify(problem, ...): the truth itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from math import ceil, log2
from typing import Any

import numpy as np

from engine import bounds, formats, ops
from engine import params as around
from engine.arithmetic import PLAIN, Arithmetic
from engine.bounds import Tolerance
from engine.errors import InvalidProblem, UnknownName, quoted
from engine.faults import explain
from engine.formats import FORMATS, IEEE, Format
from engine.measurement import Allowances, Cells, Measurement
from engine.metrics import measure as measure_exactly
from engine.metrics import position, status_of, sums_apart
from engine.metrics import worst as worst_of
from engine.model import (
    NO_PARAMS,
    Array,
    Axes,
    Bound,
    Certificate,
    Engine,
    Evaluation,
    Fault,
    InputRounding,
    Measured,
    Metrics,
    Outcome,
    Problem,
    Step,
    TruthAnswer,
    Worst,
)
from engine.plain import plain
from engine.recorder import Recorder
from engine.summation import SUMMATIONS
from engine.survey import Map, Survey
from engine.truth import SERVED_BITS, Truth, certified, decimal, hexadecimal
from engine.variants import Variant, find, of_op

VERSION = "0.1.0"
SCHEMA = 1
INCLUDE = ("values", "truth", "ranks")
MAX_WORST = 32
FAST_FROM = 512
"""Elements from which the fast tiers are quicker than the exact path."""
AT_MOST_ONE = ("softmax", "softmax_jacobian")
"""Ops whose truth overflows no format: the fast tiers, which take overflow for infinity, are right for these in every format."""
MAX_DIGITS = 4_000

Progress = Callable[[int, int], None]


def evaluate(
    problem: Problem,
    formats: Sequence[str] = IEEE,
    variants: Sequence[str] | None = None,
    summation: str = "numpy",
    include: Collection[str] = (),
    worst: int = 8,
    progress: Progress | None = None,
    map: Map = map,
    audit: int = 0,
    axes: Axes = PLAIN,
) -> Evaluation:
    """Run variants of an op on its logits rounded to each format, and measure every outcome against the certified truth.

    problem: tensors of any format; logits, distributions and grad_output are rounded to each format first, once.
    formats: names or aliases. variants: names such as "naive", "softmax/naive" or "tiled(tile=64)", all of the op if None, but for
    those that need params which are not given.
    summation: a name in SUMMATIONS. include: any of "values", "truth" (arrays in the outcomes) and "ranks" (the
    rank_inversions figure). worst: how many of the worst elements to name, 0 to 32. progress: called with (done, total)
    outcomes. map: how parts of the measuring (by rows) are run, a callable like the builtin; the answer does not depend on
    it. audit: logits of a sample that the exact path judges again, 0 for none. axes: what else of the arithmetic is varied;
    with an output format results are rounded to it once and measured in it.
    Raises UnknownName, InvalidProblem, Undecided, Disagreement.
    """
    op = ops.check(problem)
    rows = _chosen_formats(formats)
    chosen = _chosen_variants(problem, variants)
    _check_options(summation, include, worst)
    total = len(rows) * len(chosen)
    outcomes = []
    judge = partial(_judge, ranks="ranks" in include, count=worst, map=map, audit=audit)
    arithmetics = [partial(Arithmetic, fmt, summation, axes=axes) for fmt in rows]
    for arithmetic in arithmetics:
        arithmetic()  # refuses what there is not, before anything is computed
    for outcome in _outcomes(problem, arithmetics, chosen, include, judge):
        outcomes.append(outcome)
        if progress:
            progress(len(outcomes), total)
    n = problem.logits.shape[-1]
    return Evaluation(op.name, problem.logits.size // n, n, digest(problem.logits), "ieee", this_engine(), tuple(outcomes))


def run_variant(problem: Problem, format: str, variant: str, summation: str = "numpy", axes: Axes = PLAIN) -> tuple[Problem, Array]:
    """The output of one variant, and the problem as it was computed: its tensors rounded to the format, once.

    Arguments and errors are those of evaluate, which measures such an output against the truth of such a problem. The output's
    dtype is that of the output format.
    """
    ops.check(problem)
    (fmt,), (chosen,) = _chosen_formats([format]), _chosen_variants(problem, [variant])
    k = Arithmetic(fmt, summation, axes=axes)
    stored = stored_in(problem, fmt)
    return stored, around.run(chosen, stored, k)


def measure(
    problem: Problem, output: Array, include: Collection[str] = (), worst: int = 8, map: Map = map, audit: int = 0
) -> Measured:
    """Measure an output made elsewhere against the certified truth of a problem, its tensors taken exactly as stored.

    output: of the op's output shape; its dtype is the format it is measured in. include: "ranks" for the rank_inversions
    figure. worst, map, audit and errors as for evaluate.
    """
    ops.check(problem)
    _check_options("numpy", include, worst)
    truth = certified(problem, formats.of(output))
    if output.shape != truth.shape:
        mean = "; a number for each row, not their mean (reduction none)" if truth.op.output == "rows" and output.size == 1 else ""
        raise InvalidProblem(f"output has shape {list(output.shape)}; for these logits it must be {list(truth.shape)}{mean}")
    declared = replace(bounds.stable(problem.op, truth.fmt), params=changes_much(problem, truth))
    allowances = Allowances(truth, Tolerance((declared,)))
    judged = _judge(output, truth, allowances, ranks="ranks" in include, count=worst, map=map, audit=audit)
    return Measured(
        op=problem.op,
        rows=truth.rows,
        n=problem.logits.shape[-1],
        logits_dtype=formats.of(problem.logits).name,
        logits_shape=problem.logits.shape,
        format=truth.fmt.name,
        nonfinite="ieee",
        engine=this_engine(),
        metrics=judged.metrics,
        worst=judged.worst,
        bound=judged.bound,
        certificate=judged.certificate,
    )


def certify(problem: Problem, format: str, digits: int = 30) -> TruthAnswer:
    """The certified truth of a problem, its tensors taken exactly as stored.

    format: that of the correctly rounded values. digits: significant digits of the decimals, 1 to 4,000, the last
    within 1. The enclosures' relative radius is 2^-78 or better, and 10^-digits or better. Raises as evaluate does.
    """
    ops.check(problem)
    if not 1 <= digits <= MAX_DIGITS:
        raise InvalidProblem(f"digits is {digits}; it must be 1 to {MAX_DIGITS}")
    fmt = FORMATS[formats.find(format).name]
    truth = certified(problem, fmt)
    bits = max(SERVED_BITS, truth.bits, ceil(digits * log2(10)) + 8)
    found = [e for row in range(truth.rows) for e in truth.row(row, bits)]
    certificate = truth.certificate()
    return TruthAnswer(
        op=problem.op,
        format=fmt.name,
        digits=digits,
        rounded=truth.rounded(),
        decimal=_nested([decimal(e, digits) for e in found], truth.shape),
        hex=_nested([hexadecimal(e) for e in found], truth.shape),
        radius_log2=None if certificate.relative_bound_log2 is None else -bits,
        certificate=replace(certificate, relative_bound_log2=certificate.relative_bound_log2 and float(-bits)),
        logits_digest=digest(problem.logits),
        nonfinite="ieee",
        engine=this_engine(),
    )


def digest(tensor: Array) -> str:
    """ "sha256:" over dtype name, 0, shape as JSON without spaces, 0, little-endian C-order bytes."""
    shape = "[" + ",".join(str(extent) for extent in tensor.shape) + "]"
    name = tensor.dtype.name if tensor.dtype.kind in "iu" else formats.of(tensor).name  # a distribution may be of integers
    found = sha256(f"{name}\0{shape}\0".encode())
    for block in np.nditer(tensor, ("external_loop", "buffered", "zerosize_ok"), order="C", buffersize=formats.BLOCK):
        found.update(np.asarray(block).tobytes())
    return f"sha256:{found.hexdigest()}"


def this_engine() -> Engine:
    """Package version, answer schema, and the fingerprint: NumPy's version and the processor features it uses."""
    return Engine(VERSION, SCHEMA, fingerprint())


def fingerprint() -> str:
    """What the bits of built-in variants depend on: NumPy's version and the SIMD targets it dispatches to here."""
    simd = np.show_config(mode="dicts")["SIMD Extensions"]
    return f"numpy {np.__version__} {'+'.join([*simd['baseline'], *simd.get('found', [])])}"


def estimate(
    problem: Problem,
    formats: Sequence[str] = IEEE,
    variants: Sequence[str] | None = None,
    include: Collection[str] = (),
    summation: str = "numpy",
    axes: Axes = PLAIN,
) -> float:
    """Seconds that evaluate may take on one slow core: a planning figure, from element counts alone.

    Raises what evaluate would of its formats, variants, summation and axes. Rows for which the fast tiers are not proven, and
    figures that none of them decides, take a hundred times as long. With params it looks at the elements: what is exactly a problem
    without them is measured as that.
    """
    op = ops.check(problem)
    n: int = problem.logits.shape[-1]
    rows: int = problem.logits.size // n
    outputs = rows * op.width(n)
    named = _chosen_variants(problem, variants)
    chosen, steps = len(named), sum(row.steps for row in named)
    pieces = sum(row.pieces(n) for row in named)
    quick = chosen * (2e-2 + 8e-7 * (problem.logits.size + outputs))
    truth = 1.5e-5 * (problem.logits.size + outputs) * (2 if op.name == "log_softmax" else 1) * _dearer(problem)
    slow = truth + (5e-5 * outputs + 2e-4 * rows) * chosen
    size = rows * max(n, op.width(n)) if "truth" not in include else 0
    total = 5e-4
    for fmt in _chosen_formats(formats):
        k = Arithmetic(fmt, summation, axes=axes)
        fast = k.fmt.precision >= k.output_format.precision and is_fast(op.name, k.output_format, size)
        if problem.params is not NO_PARAMS:
            fast = fast and plain(stored_in(problem, k.fmt)) is not None
        total += (quick if fast else slow) + chosen * _extra(k, problem.logits.size, outputs, rows)
        total += steps * n * (2e-5 + 2e-8 * rows) + pieces * (2e-4 + 4e-9 * problem.logits.size)
    return total


def _extra(k: Arithmetic, logits: int, outputs: int, rows: int) -> float:
    """Seconds that a variant's own arithmetic takes beyond NumPy's: a pass of Python for a term, or an integer for an element."""
    columns = 0.0 if k.summation in ("numpy", "pairwise", "exact") else logits / rows
    emulated = k.axes.subnormals == "flush" or k.fmt.overflow != "infinity"
    integers = k.fmt.precision > 24 and (k.axes.exp != "numpy" or k.axes.fma)
    exact = 1e-6 * logits * (k.summation == "exact")
    return 2 * columns * (1e-4 if emulated else 1e-5) + 2e-5 * integers * (logits + outputs) + exact


def estimate_truth(problem: Problem, digits: int = 30) -> float:
    """Seconds that certify may take on one slow core; the cost of a digit grows with their number."""
    op = ops.check(problem)
    n = problem.logits.shape[-1]
    elements: int = problem.logits.size + problem.logits.size // n * op.width(n)
    return 5e-4 + elements * (2.5e-5 + 1e-8 * digits + 4e-10 * digits**2) * _dearer(problem)


def _dearer(problem: Problem) -> float:
    """How many times as long the exact path takes with params: a hyperbolic tangent for a softcap, longer integers otherwise."""
    params = problem.params
    return (1.5 if params.softcap is not None else 1.0) * (1.5 if ops.given_params(params) else 1.0)


# ---- choosing --------------------------------------------------------------------------------------------------------


def _chosen_formats(names: Sequence[str]) -> list[Format]:
    if not names:
        raise InvalidProblem(f"formats is empty; name at least one of {', '.join(FORMATS)}")
    return list(dict.fromkeys(formats.find(name) for name in names))


def _chosen_variants(problem: Problem, names: Sequence[str] | None) -> list[Variant]:
    known = [row for row in of_op(problem.op) if row.fits(problem.params)]
    if names is None:
        return known
    if not names:
        raise InvalidProblem(
            f"variants is empty; name at least one of {', '.join(row.name for row in known)}, or leave it out for all"
        )
    chosen = [find(problem.op, name) for name in names]
    for row in chosen:
        row.check(problem.params)
    return list({row.name: row for row in chosen}.values())


def _check_options(summation: str, include: Collection[str], count: int) -> None:
    SUMMATIONS[summation]
    for name in include:
        if name not in INCLUDE:
            raise UnknownName(f"unknown include {quoted(name)}; known: {', '.join(INCLUDE)}")
    if not 0 <= count <= MAX_WORST:
        raise InvalidProblem(f"worst is {count}; it must be 0 to {MAX_WORST}")


# ---- one outcome -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Judged:
    """An output's figures, whichever path gave them."""

    metrics: Metrics
    worst: tuple[Worst, ...]
    bound: Bound
    status: str
    absorbed: tuple[Fault, ...]
    certificate: Certificate


def _outcomes(
    problem: Problem, arithmetics: Sequence[_New], chosen: Sequence[Variant], include: Collection[str], judge: _Judge
) -> Iterator[Outcome]:
    for arithmetic in arithmetics:
        k = arithmetic()
        stored = stored_in(problem, k.fmt)
        truth = certified(stored, k.output_format)
        rounding = _input_rounding(problem.logits, stored.logits)
        for variant in chosen:
            yield _outcome(variant, stored, truth, arithmetic, include, rounding, judge)


_Judge = Callable[[Array, Truth, Allowances], _Judged]
_New = Callable[..., Arithmetic]
"""An arithmetic with a recorder of its own, or with none."""


def _outcome(
    variant: Variant,
    stored: Problem,
    truth: Truth,
    arithmetic: _New,
    include: Collection[str],
    rounding: InputRounding,
    judge: _Judge,
) -> Outcome:
    recorder = Recorder()
    k = arithmetic(recorder=recorder)
    output = around.run(variant, stored, k)
    own = bounds.declared(variant.key, k.fmt, k.summation, k.axes)
    reference = replace(own, variant=bounds.reference(variant.op))
    if stored.params is not NO_PARAMS:
        same, silent = truth.problem if truth.problem.params is NO_PARAMS else None, arithmetic()
        given = around.exactly(stored, same, silent)
        reference = replace(reference, params=given is None)
        known = given is not None and same is not None and around.unchanged(variant, output, stored, same, given, silent)
        own = replace(own, params=not known)
    judged = judge(output, truth, Allowances(truth, Tolerance((own,)), Tolerance((reference,))))
    return Outcome(
        variant=variant.name,
        format=k.fmt.name,
        summation=k.summation,
        arithmetic=k.axes,
        status=judged.status,
        metrics=_with_steps(judged.metrics, recorder.steps),
        worst=judged.worst,
        faults=(*explain(recorder.steps, k.axes.subnormals == "flush"), *judged.absorbed),
        bound=judged.bound,
        input_rounding=rounding,
        certificate=judged.certificate,
        values=output if "values" in include else None,
        truth=truth.rounded() if "truth" in include else None,
    )


def _judge(output: Array, truth: Truth, allowances: Allowances, *, ranks: bool, count: int, map: Map, audit: int) -> _Judged:
    """By the fast tiers, or, where there is little to do, by the exact path alone: the figures are the same.

    An output finer than the arithmetic goes to the exact path.
    """
    size = truth.rows * max(truth.width, truth.raw_logits.shape[1])
    coarser = FORMATS[allowances.chosen[0].declared[0].format].precision < truth.fmt.precision
    if coarser or truth.problem.params is not NO_PARAMS or not is_fast(truth.op.name, truth.fmt, size):
        return _exactly(output, truth, ranks, count, allowances)
    fresh = Truth(truth.problem, truth.fmt)
    fresh.shown = truth.shown
    survey = Survey(output, fresh, count, map, allowances=allowances)
    survey.audit(audit, truth)
    metrics = survey.metrics(ranks)
    absorbed, first = survey.absorbed()
    return _Judged(
        metrics,
        survey.worst(count),
        survey.bound(),
        survey.status(),
        _absorbed_fault(absorbed, first, survey.cells, truth),
        survey.certificate(),
    )


def is_fast(op: str, fmt: Format, size: int) -> bool:
    """Whether the fast tiers measure so many elements: they are quicker, and a truth that overflows the format is infinite."""
    return size >= FAST_FROM and (fmt.overflow == "infinity" or op in AT_MOST_ONE)


def _exactly(output: Array, truth: Truth, ranks: bool, count: int, allowances: Allowances | None = None) -> _Judged:
    measured = Measurement(output, truth, allowances)
    return _Judged(
        measure_exactly(measured, ranks),
        worst_of(measured, count),
        measured.bound(),
        _status(measured),
        _absorbed(measured),
        truth.certificate(),
    )


def stored_in(problem: Problem, fmt: Format) -> Problem:
    """The problem with its real tensors rounded to a format; only logits saturate."""
    logits, fmt = formats.round_array(problem.logits, fmt), replace(fmt, saturating=False)
    targets = problem.targets
    if targets is not None and not ops.is_index(problem):
        targets = formats.round_array(targets, fmt)
        if not np.isfinite(targets).all():
            raise InvalidProblem(
                f"a target overflows {fmt.name}, whose largest number is {fmt.largest}; scale the distribution down"
            )
    grad_output = problem.grad_output
    if grad_output is not None:
        grad_output = formats.round_array(grad_output, fmt)
        if not np.isfinite(grad_output).all():
            raise InvalidProblem(f"grad_output overflows {fmt.name}, whose largest number is {fmt.largest}; scale it down")
    return Problem(problem.op, logits, targets, grad_output, problem.params)


def changes_much(problem: Problem, truth: Truth) -> bool:
    """Whether params make a right output, elsewhere, differ by more than the bound without them: all but those that are exact."""
    params, exact = problem.params, truth.problem.params is NO_PARAMS
    if not exact or any(name not in ("scale", "mask", "ignore_index") for name in ops.given_params(params)):
        return bool(ops.given_params(params))
    if params.scale == 1:
        return False
    logits, scale = truth.problem.logits, np.array(params.scale)
    held = all(np.array_equal(formats.widen(formats.round_array(a, truth.fmt)), formats.widen(a), True) for a in (logits, scale))
    return problem.op in around.DERIVATIVES or not held


def _input_rounding(logits: Array, stored: Array) -> InputRounding:
    """What rounding did to the logits; differences are exact in binary64 but for the last subtraction of a shift."""
    n = logits.shape[-1]
    before, after = logits.reshape(-1, n), stored.reshape(-1, n)
    changed, largest, shift = 0, 0.0, 0.0
    for rows in _spans(len(before), formats.BLOCK // n):
        parts = [_changes(before[rows, columns], after[rows, columns]) for columns in _spans(n, formats.BLOCK)]
        counts, most, least = (np.array(found) for found in zip(*parts, strict=True))
        most, least = most.max(axis=0), least.min(axis=0)
        changed += int(counts.sum())
        largest = max(largest, float(most.max()), -float(least.min()))
        shift = max(shift, float((most - least).max()) / 2) if largest < np.inf else np.inf
    return InputRounding(changed, largest, shift)


def _changes(before: Array, after: Array) -> tuple[int, Array, Array]:
    """How many elements changed, and the most and the least that one of each row did; NaN counts as unchanged."""
    before, after = formats.widen(before), formats.widen(after)
    changed = (before != after) & ~np.isnan(before)
    difference = np.zeros(before.shape)
    np.subtract(after, before, out=difference, where=changed)
    difference[np.isnan(difference)] = np.inf  # what overflows a format without infinity
    return int(np.count_nonzero(changed)), difference.max(axis=-1), difference.min(axis=-1)


def _spans(length: int, step: int) -> Iterator[slice]:
    """0 to length, `step` at a time or one by one."""
    for start in range(0, length, max(1, step)):
        yield slice(start, start + max(1, step))


def _with_steps(metrics: Metrics, steps: Sequence[Step]) -> Metrics:
    def count(kind: str) -> int:
        return sum(step.count for step in steps if step.kind == kind)

    return replace(
        metrics, step_overflow_count=count("overflow"), step_underflow_count=count("underflow"), step_invalid_count=count("invalid")
    )


def _status(measured: Measurement) -> str:
    """unstable, inaccurate, unbounded or accurate: the words of the README, \"What a status means\"."""
    kinds, beyond = measured.kinds, measured.beyond
    lost = any(kinds.got[i] == 0 and kinds.normal[i] for i in beyond)
    unstable = bool(kinds.mismatch.any()) or lost or sums_apart(measured)
    return status_of(unstable, len(beyond), measured.unjudged)


def _absorbed(measured: Measurement) -> tuple[Fault, ...]:
    """Zeros where the truth is a normal number but still inside the bound: a fault of their own."""
    kinds = measured.kinds
    zero = (kinds.got == 0) & ~kinds.got_nan & kinds.normal & kinds.compared
    zero[measured.beyond] = False
    return _absorbed_fault(int(zero.sum()), int(np.argmax(zero)), measured, measured.truth)


def _absorbed_fault(count: int, index: int, cells: Cells, truth: Truth) -> tuple[Fault, ...]:
    if not count:
        return ()
    expected = cells.expected(index, 5)
    detail = (
        f"the result is 0 where the truth is {expected}, a normal {truth.fmt.name}: it was absorbed,"
        " which the bound of the stable variant does not exclude"
    )
    return (Fault("result", "absorbed", count, position(index, truth.shape), detail),)


def _nested(flat: list[str], shape: tuple[int, ...]) -> Any:
    if not shape:
        return flat[0]
    array = np.empty(len(flat), dtype=object)
    array[:] = flat
    return array.reshape(shape).tolist()
