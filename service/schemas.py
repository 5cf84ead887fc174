"""pydantic in and out. Requests are validated strictly; responses are documented here and built by engine.encode.

Tensors stay `Any` for pydantic, which would take a second over a million numbers: tensors.py reads them. What the doors
accept is in the schema all the same.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from typing_extensions import TypeAliasType

from service.tensors import HEX_FLOAT

Special = Literal["NaN", "Infinity", "-Infinity"]
HexFloat = Annotated[str, Field(pattern=f"^{HEX_FLOAT}$", max_length=64)]
SafeFloat = TypeAliasType("SafeFloat", float | Special)
SafeInt = Annotated[int | str, Field(description="An integer; above 2^53 its decimal digits as a string.")]
Name = Annotated[str, Field(min_length=1, max_length=64)]
Index = Annotated[int, Field(ge=0)]


class Strict(BaseModel):
    """No coercion, no unknown field."""

    model_config = ConfigDict(extra="forbid", strict=True)


Number = TypeAliasType("Number", float | Special | HexFloat)
Numbers = TypeAliasType("Numbers", "Annotated[list[Number | Numbers], Field(min_length=1)]")
Integers = TypeAliasType("Integers", "Annotated[list[int | Integers], Field(min_length=1)]")
BitPatterns = TypeAliasType("BitPatterns", "Annotated[list[BitPattern | BitPatterns], Field(min_length=1)]")
BitPattern = Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern="^[0-9]{1,20}$")]
Shape = Annotated[list[Annotated[int, Field(ge=1)]], Field(max_length=4)]
DType = Annotated[Name, Field(description="A format, or an alias of one in any case.", examples=["float32"])]


class JsonTensor(Strict):
    """Numbers, nested in the shape or flat in row-major order, exact in the dtype unless rounding is asked for."""

    dtype: DType
    shape: Shape
    data: Numbers
    rounding: Literal["nearest"] = "nearest"


class Base64Tensor(Strict):
    """Little-endian bytes in row-major order."""

    dtype: DType
    shape: Shape
    encoding: Literal["base64"]
    data: str


class BitsTensor(Strict):
    """Bit patterns as unsigned integers, or as decimal strings where they exceed 2^53."""

    dtype: DType
    shape: Shape
    encoding: Literal["bits"]
    data: BitPatterns


class _Documented:
    """Any for validation, the given type in the schema."""

    def __init__(self, documented: Any) -> None:
        self.documented = documented

    def __get_pydantic_json_schema__(self, _core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(TypeAdapter(self.documented).core_schema)


Tensor = TypeAliasType("Tensor", Numbers | JsonTensor | Base64Tensor | BitsTensor)
Targets = TypeAliasType("Targets", int | Integers | Numbers | JsonTensor | Base64Tensor | BitsTensor)
MaybeTensor = Annotated[Any, _Documented(Tensor | None)]
AnyTargets = Annotated[Any, _Documented(Targets | None)]


class Inputs(BaseModel):
    """A seeded input family instead of logits (/v1/inputs lists them); further fields are its parameters."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, Annotated[Any, _Documented(float | Annotated[str, Field(max_length=64)])]]

    family: Name
    rows: Annotated[int, Field(ge=1)]
    n: Annotated[int, Field(ge=1, description="logits per row")]
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)]


Op = Annotated[Name, Field(description="What is computed: see /v1/ops.")]
Logits = Annotated[MaybeTensor, Field(description="Rank 1 to 4; the last axis is reduced. A bare list is float64.")]
_TARGETS = "Class indices (the logits' shape without the last axis), or distributions (the logits' shape)."
TargetsField = Annotated[AnyTargets, Field(description=_TARGETS)]
GradOutput = Annotated[MaybeTensor, Field(description="For softmax_vjp; the logits' shape.")]
_AXIS = "The axis that is reduced: only the last one, as -1 or as the logits' rank - 1."
Axis = Annotated[int, Field(description=_AXIS)]
NonFinite = Annotated[Literal["ieee"], Field(description="What rows with NaN or infinite logits mean: see /v1/ops.")]
DEFAULT_FORMATS = ["float16", "float32", "float64"]
_FORMATS = "See /v1/formats. The three IEEE ones if null."
Formats = Annotated[Annotated[list[Name], Field(min_length=1, max_length=16)] | None, Field(description=_FORMATS)]
_VARIANTS = "See /v1/variants; with or without the op's name in front. All of the op if left out."
Variants = Annotated[Annotated[list[Name], Field(min_length=1, max_length=64)] | None, Field(description=_VARIANTS)]
_INCLUDE = "Elements, and rank_inversions, only on request."
Include = Annotated[list[Literal["values", "truth", "ranks"]], Field(max_length=3, description=_INCLUDE)]


class ProblemRequest(Strict):
    """An op and its input tensors."""

    op: Op
    logits: Logits = None
    inputs: Inputs | None = None
    targets: TargetsField = None
    grad_output: GradOutput = None
    axis: Axis = -1
    nonfinite: NonFinite = "ieee"


class EvaluateRequest(ProblemRequest):
    """Run built-in variants of an op and measure them. Exactly one of logits and inputs is given."""

    formats: Formats = DEFAULT_FORMATS
    variants: Variants = None
    summation: Annotated[Name, Field(description="See /v1/summations.")] = "numpy"
    include: Include = []
    worst: Annotated[int, Field(ge=0, description="How many of the worst elements are listed, at most the limit max_worst.")] = 8


class TruthRequest(ProblemRequest):
    """The certified truth of one problem in one format. Exactly one of logits and inputs is given."""

    format: Annotated[Name, Field(description="The result is rounded to it; the logits are taken as they are. See /v1/formats.")]
    digits: Annotated[int, Field(ge=1, description="Significant decimal digits, at most the limit max_digits.")] = 30


REQUESTS: tuple[type[BaseModel], ...] = (EvaluateRequest, TruthRequest)


# Shown in the docs, run by the tests; the first is the one on the page.
EVALUATE_EXAMPLES: dict[str, dict[str, Any]] = {
    "overflow": {
        "summary": "Overflow: naive softmax of [1000, 1001, 1002] is NaN",
        "value": {
            "op": "softmax",
            "logits": [[1000, 1001, 1002]],
            "formats": ["float16", "float32", "float64"],
            "variants": ["naive", "shifted"],
            "include": ["values", "truth"],
        },
    },
    "masked_row": {
        "summary": "A masked row: -inf, written as a string, has probability 0 exactly",
        "value": {
            "op": "softmax",
            "logits": [[1.5, "-Infinity", 0.5, "-Infinity"]],
            "formats": ["float16"],
            "include": ["values", "truth"],
        },
    },
    "gradient": {
        "summary": "Cross-entropy gradient: the chain rule makes 0/0 where the fused form is right",
        "value": {
            "op": "cross_entropy_grad",
            "logits": [[0, 200, -300], [2, 1, 0]],
            "targets": [2, 0],
            "formats": ["float32"],
            "include": ["values", "truth"],
        },
    },
    "family": {
        "summary": "A seeded family of inputs instead of logits",
        "value": {
            "op": "logsumexp",
            "inputs": {"family": "gaussian", "rows": 4, "n": 16, "seed": 1, "sigma": 4},
            "formats": ["bfloat16", "float32"],
            "summation": "sequential",
        },
    },
}

TRUTH_EXAMPLES: dict[str, dict[str, Any]] = {
    "tiny": {
        "summary": "logsumexp near 0, to 20 digits",
        "value": {"op": "logsumexp", "logits": [0, -40], "format": "float64", "digits": 20},
    },
    "loss": {
        "summary": "A cross-entropy of 1e-44, far below what -log(p) can see",
        "value": {"op": "cross_entropy", "logits": [[100, 0], [0, 1]], "targets": [0, 1], "format": "bfloat16", "digits": 30},
    },
}


class RowFigure(BaseModel):
    """A figure taken per row."""

    worst: SafeFloat
    mean: SafeFloat
    worst_row: Index


class Metrics(BaseModel):
    """What was measured. null: the figure has no value here."""

    n: Annotated[int, Field(description="elements")]
    compared: Annotated[int, Field(description="elements that enter the numeric figures")]
    max_ulp: Annotated[SafeFloat | None, Field(description="largest ULP error, against the unrounded truth")]
    argmax_ulp: Annotated[int | None, Field(description="its flat index in C order")]
    mean_ulp: SafeFloat | None
    p50_ulp: SafeFloat | None
    p99_ulp: SafeFloat | None
    max_ulp_ordinal: Annotated[SafeInt | None, Field(description="largest distance counted in representable numbers")]
    correctly_rounded: Annotated[int, Field(description="elements equal to the correctly rounded truth")]
    max_rel: Annotated[SafeFloat | None, Field(description="largest relative error")]
    argmax_rel: int | None
    max_rel_normal: Annotated[SafeFloat | None, Field(description="the same where the rounded truth is normal")]
    max_abs: Annotated[SafeFloat | None, Field(description="largest absolute error")]
    bias_ulp: Annotated[SafeFloat | None, Field(description="signed mean ULP error")]
    nan_count: int
    nan_unexpected: int
    nan_missing: int
    inf_count: int
    overflow_count: Annotated[int, Field(description="infinite where the rounded truth is finite")]
    zero_count: int
    underflow_count: int
    underflow_premature: int
    false_zero_count: Annotated[int, Field(description="zero where the rounded truth is normal")]
    subnormal_count: int
    special_mismatch: int
    sum_defect: Annotated[SafeFloat | None, Field(description="distance of a row's sum from what it should be, worst row")]
    step_overflow_count: int | None
    step_underflow_count: int | None
    step_invalid_count: int | None
    kl: Annotated[RowFigure | None, Field(description="generalised Kullback-Leibler divergence, nats")]
    total_variation: RowFigure | None
    argmax_preserved: Annotated[int | None, Field(description="rows whose largest output is where the truth's is")]
    rank_inversions: Annotated[int | None, Field(description='only with include: ["ranks"]')]
    backward_error: Annotated[RowFigure | None, Field(description="smallest change of the logits that explains the output")]


class Worst(BaseModel):
    """One of the worst elements."""

    index: list[Index]
    logit: SafeFloat | None
    got: SafeFloat
    expected: Annotated[str, Field(description="the truth to 17 significant digits")]
    ulp: SafeFloat | None
    rel: SafeFloat | None


class Fault(BaseModel):
    """A step that broke."""

    step: str
    kind: Annotated[str, Field(description="overflow, underflow, invalid or divide_by_zero")]
    count: int
    first_index: list[Index]
    detail: str


class Bound(BaseModel):
    """The rule that tells accurate from inaccurate."""

    rule: str
    unit_roundoff: float
    coefficient: Annotated[SafeFloat | None, Field(description="the widest row's (n + 4 + 2 (x_max - x_min)) u")]
    exceeded: int


class InputRounding(BaseModel):
    """What rounding the inputs to the format changed."""

    changed: int
    max_abs: SafeFloat
    logit_shift: SafeFloat


class Certificate(BaseModel):
    """How the truth was proven."""

    relative_bound_log2: float | None
    tiers: dict[str, int]
    coverage: float


class Engine(BaseModel):
    """Who answered."""

    version: str
    schema_: Annotated[int, Field(alias="schema")]
    fingerprint: str


Elements = TypeAliasType("Elements", "SafeFloat | list[Elements]")
Texts = TypeAliasType("Texts", "str | list[Texts]")


class Outcome(BaseModel):
    """One variant in one format, measured against the truth."""

    variant: str
    format: str
    summation: str
    status: Literal["accurate", "inaccurate", "unstable"]
    metrics: Metrics
    worst: list[Worst]
    faults: list[Fault]
    bound: Bound
    input_rounding: InputRounding
    certificate: Certificate
    values: Elements | None = None
    truth: Elements | None = None


class EvaluateResponse(BaseModel):
    """Formats outermost, variants within."""

    op: str
    rows: int
    n: int
    logits_digest: str
    nonfinite: str
    engine: Engine
    outcomes: list[Outcome]


class RoundedTensor(BaseModel):
    """The correctly rounded truth."""

    dtype: str
    shape: list[int]
    data: Elements


class TruthResponse(BaseModel):
    """The certified truth: rounded, in decimals, and as the exact midpoint of its enclosure."""

    op: str
    format: str
    digits: int
    rounded: RoundedTensor
    decimal: Annotated[Texts, Field(description="the last digit is within 1")]
    hex: Texts
    radius_log2: Annotated[int | None, Field(description="relative radius of the worst element; null where all are exact")]
    certificate: Certificate
    logits_digest: str
    nonfinite: str
    engine: Engine


class Error(BaseModel):
    """One thing that is wrong."""

    pointer: Annotated[str, Field(description="JSON pointer into the body, or the name of a header or parameter")]
    detail: str


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    errors: list[Error]
    request_id: str


class OpsResponse(BaseModel):
    """The ops, and the limits a request meets."""

    ops: list[dict[str, Any]]
    limits: dict[str, float]


class VariantsResponse(BaseModel):
    """The built-in variants."""

    variants: list[dict[str, Any]]


class FormatsResponse(BaseModel):
    """The formats."""

    formats: list[dict[str, Any]]


class SummationsResponse(BaseModel):
    """How a variant may add."""

    summations: list[dict[str, Any]]


class InputsResponse(BaseModel):
    """The seeded input families and their parameters."""

    inputs: list[dict[str, Any]]


class HealthResponse(BaseModel):
    """live or ready."""

    status: str
