"""The nouns as frozen dataclasses: what goes in and what comes out. No behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything needed to repeat a measurement but the format: an op and its input tensors.

    logits: shape B + (n,), rank 1 to 4, any format's dtype; the last axis is reduced.
    targets: class indices (integers, shape B) or distributions (floats, the logits' shape, finite, >= 0); or None.
    grad_output: the logits' shape, finite; or None.
    """

    op: str
    logits: Array
    targets: Array | None = None
    grad_output: Array | None = None


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


@dataclass(frozen=True)
class Worst:
    """One of the worst elements. index: position in the output; expected: truth to 17 significant digits, or a special."""

    index: tuple[int, ...]
    logit: float | None
    got: float
    expected: str
    ulp: float | None
    rel: float | None


@dataclass(frozen=True)
class Step:
    """What one call of one Arithmetic operation did wrong.

    name: exp, sum, divide, ...; kind: overflow, underflow, invalid or divide_by_zero (IEEE 754 clause 7).
    count: elements; first_index: position of the first in the step's result; operands, result: the values there.
    """

    name: str
    kind: str
    count: int
    first_index: tuple[int, ...]
    operands: tuple[float, ...]
    result: float


@dataclass(frozen=True)
class Fault:
    """A step that broke, all calls of that step taken together, with one plain sentence."""

    step: str
    kind: str
    count: int
    first_index: tuple[int, ...]
    detail: str


@dataclass(frozen=True)
class Bound:
    """The rule by which `inaccurate` was decided: its text, u, the widest row's (n + 4 + 2 range) u, elements beyond it."""

    rule: str
    unit_roundoff: float
    coefficient: float
    exceeded: int


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
    """One variant in one format measured against the truth."""

    variant: str
    format: str
    summation: str
    status: str
    metrics: Metrics
    worst: tuple[Worst, ...]
    faults: tuple[Fault, ...]
    bound: Bound
    input_rounding: InputRounding
    certificate: Certificate
    values: Array | None = None
    truth: Array | None = None


@dataclass(frozen=True, eq=False)
class Measured:
    """An output made elsewhere, measured against the truth."""

    metrics: Metrics
    worst: tuple[Worst, ...]
    bound: Bound
    certificate: Certificate


@dataclass(frozen=True)
class Engine:
    """Who answered: package version, schema number of the answer, fingerprint of NumPy and the processor features in use."""

    version: str
    schema: int
    fingerprint: str


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
