"""The nouns as frozen dataclasses: what goes in and what comes out. No behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Params:
    """What an op is told beside its tensors; each op takes some of them (engine.ops), and all are exact real numbers.

    The op is that of the logits z: z_i = scale x_i, or softcap tanh(scale x_i / softcap), which is +-softcap for an infinite x_i;
    then -inf wherever mask is false, whatever x_i is. scale: above 0, the inverse of a temperature. softcap: above 0, or None.
    mask: booleans, the logits' shape or (n,), true where a logit is kept; or None. sink: one more logit, not scaled, that is in
    every sum and no output; or None.

    The loss is that of the targets q_i = w_i ((1 - a) y_i + a / n), y one-hot for a class index, a = label_smoothing, 0 to 1, w =
    weights, shape (n,), finite and >= 0, or None for 1, as torch.nn.functional.cross_entropy has it: sum q_i (L - z_i) + z_loss
    L^2, z_loss >= 0. ignore_index: a row with this class index has loss 0 and gradient 0; or None. reduction: "none", "sum", or
    "mean": the sum over the number of rows, or, for class indices, over the sum of their w_t, ignored rows apart in either. A mean
    over nothing is NaN. Derivatives are those by x of what the reduction gives.
    """

    scale: float = 1.0
    softcap: float | None = None
    mask: Array | None = None
    sink: float | None = None
    label_smoothing: float = 0.0
    weights: Array | None = None
    ignore_index: int | None = None
    z_loss: float = 0.0
    reduction: str = "none"


NO_PARAMS = Params()


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything needed to repeat a measurement but the format: an op and its input tensors.

    logits: shape B + (n,), rank 1 to 4, any format's dtype; the last axis is reduced.
    targets: class indices (integers, shape B) or distributions (floats, the logits' shape, finite, >= 0); or None.
    grad_output: the logits' shape, finite; or None. params: what else the op is told.
    """

    op: str
    logits: Array
    targets: Array | None = None
    grad_output: Array | None = None
    params: Params = NO_PARAMS


@dataclass(frozen=True)
class Axes:
    """What of an arithmetic can be varied beside its format and its summation; the defaults are what NumPy does.

    accumulator: the format in which sums are added, whose terms are rounded to it and whose total is rounded back; None: the
    arithmetic's own. exp: "numpy"; "correct", exp and exp2 correctly rounded; "exp2", exp(a) as exp2(a log2 e), the product
    rounded and exp2 correctly. subnormals: "gradual"; "flush", subnormal operands and results of every step become zeros of
    their sign. fma: a * b + c is rounded once, where a variant asks for it. output_format: the format that a result is
    rounded to at last, and measured in; None: the arithmetic's own. overflow: "format", by the rule of each format;
    "saturate", in the 8-bit formats to the largest number. In an answer every name is told, and overflow is "infinity",
    "nan" or "saturate".
    """

    accumulator: str | None = None
    exp: str = "numpy"
    subnormals: str = "gradual"
    fma: bool = False
    output_format: str | None = None
    overflow: str = "format"


@dataclass(frozen=True)
class RowFigure:
    """A figure taken per row: the worst row's value, the mean over the rows, the first row that is worst."""

    worst: float
    mean: float
    worst_row: int


@dataclass(frozen=True)
class Metrics:
    """The figures of one outcome (README, "Metrics"). None: the figure has no value here."""

    n: int
    compared: int
    max_ulp: float | None
    argmax_ulp: int | None
    mean_ulp: float | None
    p50_ulp: float | None
    p99_ulp: float | None
    max_ulp_ordinal: int | None
    correctly_rounded: int
    max_rel: float | None
    argmax_rel: int | None
    max_rel_normal: float | None
    max_abs: float | None
    bias_ulp: float | None
    nan_count: int
    nan_unexpected: int
    nan_missing: int
    inf_count: int
    overflow_count: int
    zero_count: int
    underflow_count: int
    underflow_premature: int
    false_zero_count: int
    subnormal_count: int
    special_mismatch: int
    sum_defect: float | None
    step_overflow_count: int | None
    step_underflow_count: int | None
    step_invalid_count: int | None
    kl: RowFigure | None
    total_variation: RowFigure | None
    argmax_preserved: int | None
    rank_inversions: int | None
    backward_error: RowFigure | None
    error_over_bound: float | None


@dataclass(frozen=True)
class Worst:
    """One of the worst elements. index: position in the output; expected: truth to 17 significant digits, or a special.

    bound: the declared algorithm's bound of abs(got - truth) there, and that in ULP; None where there is none.
    """

    index: tuple[int, ...]
    logit: float | None
    got: float
    expected: str
    ulp: float | None
    rel: float | None
    bound: float | None
    bound_ulp: float | None


@dataclass(frozen=True)
class Step:
    """What one call of one Arithmetic operation did wrong.

    name: exp, sum, divide, ...; kind: overflow, underflow, invalid or divide_by_zero (IEEE 754 clause 7), or absorbed, stalled,
    cancelled or mismatched (engine.recorder). count: elements; first_index: position of the first in the step's result; operands,
    result: the values there. format: the one that the step's result is in. chain: the numbers of the steps that led to the first.
    """

    name: str
    kind: str
    count: int
    first_index: tuple[int, ...]
    operands: tuple[float, ...]
    result: float
    format: str
    chain: tuple[int, ...] = ()


@dataclass(frozen=True)
class Fault:
    """A step that broke, all calls of that step taken together, with one plain sentence.

    chain: the places, in the list of faults, of those that led to the first of its elements.
    """

    step: str
    kind: str
    count: int
    first_index: tuple[int, ...]
    detail: str
    chain: tuple[int, ...] = ()


@dataclass(frozen=True)
class Bound:
    """What error theory allows here, and what lies beyond it (engine.bounds).

    rule: the declared algorithm's bound in words, of which error_over_bound is the largest part that was used; unit_roundoff: u
    of the arithmetic, or of the output format if that is larger. reference: the op's stable variant, by whose bound in the same
    arithmetic `inaccurate` is decided; exceeded: elements beyond that; unjudged: elements for which it has none. unbounded:
    elements for which the declared algorithm has no bound; vacuous: elements that are not 0 and whose bound is as large as they
    are. Only compared elements with a finite output count. condition: the largest condition number of a row, relative to the
    largest logit, and condition_row the first row that has it, counted over all rows; None where none is defined.
    """

    rule: str
    unit_roundoff: float
    reference: str
    exceeded: int
    unjudged: int
    unbounded: int
    vacuous: int
    condition: float | None
    condition_row: int | None


@dataclass(frozen=True)
class InputRounding:
    """What rounding the logits to the format changed: count, largest absolute change, worst row's (max - min) / 2."""

    changed: int
    max_abs: float
    logit_shift: float


@dataclass(frozen=True)
class Certificate:
    """How the truth was proven: log2 of the worst relative bound used (None: all exact), elements by tier, share covered."""

    relative_bound_log2: float | None
    tiers: Mapping[str, int]
    coverage: float


@dataclass(frozen=True, eq=False)
class Outcome:
    """One variant in one format measured against the truth. arithmetic: the axes as they were, every name told."""

    variant: str
    format: str
    summation: str
    arithmetic: Axes
    status: str
    metrics: Metrics
    worst: tuple[Worst, ...]
    faults: tuple[Fault, ...]
    bound: Bound
    input_rounding: InputRounding
    certificate: Certificate
    values: Array | None = None
    truth: Array | None = None


@dataclass(frozen=True)
class Engine:
    """Who answered: package version, schema number of the answer, fingerprint of NumPy and the processor features in use."""

    version: str
    schema: int
    fingerprint: str


@dataclass(frozen=True, eq=False)
class Measured:
    """An output made elsewhere, measured against the truth. format: the output's, in which it was measured.

    Digests are not among it: they take a tenth of the time that a measurement takes, and `digest` gives them.
    """

    op: str
    rows: int
    n: int
    logits_dtype: str
    logits_shape: tuple[int, ...]
    format: str
    nonfinite: str
    engine: Engine
    metrics: Metrics
    worst: tuple[Worst, ...]
    bound: Bound
    certificate: Certificate


@dataclass(frozen=True)
class Sample:
    """How many rows of an output are to be judged, at least 1, and what else they depend on but the tensors (engine.sampling)."""

    rows: int
    seed: int = 0


@dataclass(frozen=True)
class Sampled:
    """Rows that were judged, of how many. strata: how many each gave (engine.sampling), "all" where nothing was left out."""

    rows: int
    of: int
    seed: int
    strata: Mapping[str, int]


@dataclass(frozen=True)
class Gate:
    """A policy (engine.policies) with its parameters."""

    policy: str = "bound"
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """One reason for a verdict, or what is worth knowing beside it, in a sentence.

    kind: one of engine.verdict's. row, index: where, in the output as it was posted; count: elements or rows that it is true of.
    variants: the built-in ones whose own output is, or nearly is, what was posted, each with its arithmetic.
    """

    kind: str
    detail: str
    row: int | None = None
    index: tuple[int, ...] | None = None
    count: int | None = None
    variants: tuple[str, ...] = ()


@dataclass(frozen=True)
class SelfTest:
    """What a gate makes of broken outputs (engine.mutants), by name. equivalent: as good as the truth here, and not counted."""

    caught: tuple[str, ...]
    missed: tuple[str, ...]
    equivalent: tuple[str, ...]


@dataclass(frozen=True)
class Gated:
    """A gate as it was applied. rule: in words; declared: the arithmetic whose bound it is, if it is one; vacuous_fraction: share
    of the elements whose truth is not 0 that have a tolerance as large as they are; None where every truth is 0.
    """

    policy: str
    parameters: Mapping[str, Any]
    rule: str
    declared: Mapping[str, Any] | None
    self_test: SelfTest
    vacuous_fraction: float | None


@dataclass(frozen=True, eq=False)
class Verdict:
    """An output made elsewhere, judged. format: the output's; digests: of the tensors as they were posted; reference: figures of
    the reference against the same truth, where one was posted; truth: correctly rounded, where it was asked for. sample: which rows
    were judged, where that was asked for: everything but rows, digests and repeated runs is of these, under their own numbers."""

    verdict: str
    op: str
    rows: int
    n: int
    logits_dtype: str
    format: str
    findings: tuple[Finding, ...]
    metrics: Metrics
    worst: tuple[Worst, ...]
    bound: Bound
    gate: Gated
    nonfinite: str
    certificate: Certificate
    digests: Mapping[str, str]
    engine: Engine
    reference: Metrics | None = None
    truth: Array | None = None
    sample: Sampled | None = None


@dataclass(frozen=True)
class Allowance:
    """What no right implementation of a declaration is off by more than: by abs(c - T) <= rtol abs(T) + atol, and by ULPs.

    format: of the output. rows: those it was taken from, None: any row of n logits. ulp: None where a result may be so near to 0
    that no number of ULPs will do. typical: the size of a result, the median of those given, of any row that of n equal logits;
    missed: the relative error of such a one that still passes, so that nothing smaller is seen. zeros_pass: whether an output of
    zeros does, there or on the given logits. self_test: what else does, where logits are given. Infinity: error theory allows
    anything.
    """

    op: str
    format: str
    n: int
    rows: int | None
    declared: Mapping[str, Any]
    ulp: float | None
    rtol: float
    atol: float
    typical: float
    missed: float
    zeros_pass: bool
    self_test: SelfTest | None
    engine: Engine


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The answer to evaluate: one outcome per format and variant, formats outermost."""

    op: str
    rows: int
    n: int
    logits_digest: str
    nonfinite: str
    engine: Engine
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, eq=False)
class TruthAnswer:
    """The answer to truth: correctly rounded values, decimals, exact midpoints in hex, worst relative radius (log2)."""

    op: str
    format: str
    digits: int
    rounded: Array
    decimal: Any
    hex: Any
    radius_log2: int | None
    certificate: Certificate
    logits_digest: str
    nonfinite: str
    engine: Engine


@dataclass(frozen=True)
class Limit:
    """One limit of a variant (engine.limits).

    value: the last number, or count, up to which it holds; next: the one after it, at which it does not. Both None: it always
    holds; only value: it never does. result: what comes out at next; kind: "nan", "infinite", "zero" or "stalled"; beyond: in
    words, with the step that broke. search: "exhaustive", "bisection" or "theorem"; checked: numbers tried, of a bisection those
    on both sides of the limit. sharp: whether none that was tried beyond the limit holds.
    """

    name: str
    value: float | None
    next: float | None
    result: float | None
    kind: str | None
    beyond: str
    search: str
    checked: int
    sharp: bool


@dataclass(frozen=True)
class Thresholds:
    """The limits of a variant in an arithmetic for rows of n logits. arithmetic: the axes as they were, every name told."""

    op: str
    variant: str
    format: str
    n: int
    summation: str
    arithmetic: Axes
    engine: Engine
    limits: tuple[Limit, ...]


@dataclass(frozen=True)
class Algorithm:
    """What one algorithm of an experiment did. overflows: rows whose result is not finite.

    max_error, mean_error: in units of Experiment.unit, over the rows whose basic log-sum-exp is finite; mean_error_of_all: over
    all rows whose own result is. least_sum, largest_sum: of the probabilities of those rows, None for a log-sum-exp. None, too,
    where there is no such row.
    """

    name: str
    variant: str
    overflows: int
    max_error: float | None
    mean_error: float | None
    mean_error_of_all: float | None
    least_sum: float | None
    largest_sum: float | None


@dataclass(frozen=True)
class Experiment:
    """An experiment in one format: rows of n logits; unit: what errors are counted in; survived: rows whose basic log-sum-exp is
    finite."""

    format: str
    rows: int
    n: int
    unit: float
    subnormals: str
    survived: int
    algorithms: tuple[Algorithm, ...]
