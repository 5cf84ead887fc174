"""pydantic in and out. Requests are validated strictly; responses are documented here and built by engine.encode.

Tensors stay `Any` for pydantic, which would take a second over a million numbers: tensors.py reads them. What the doors
accept is in the schema all the same.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, TypeAdapter
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


def _without_default(schema: dict[str, Any]) -> None:
    """Left out is not the same as the one value that may be given."""
    del schema["default"]


_ROUNDING = "How a value that the dtype cannot hold exactly is rounded; left out, such a value is refused."


class JsonTensor(Strict):
    """Numbers, nested in the shape or flat in row-major order, exact in the dtype unless rounding is asked for."""

    dtype: DType
    shape: Shape
    data: Numbers
    rounding: Annotated[Literal["nearest"], Field(description=_ROUNDING, json_schema_extra=_without_default)] = "nearest"


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

    family: Annotated[Name, Field(description="its name")]
    rows: Annotated[int, Field(ge=1, description="rows of logits")]
    n: Annotated[int, Field(ge=1, description="logits per row")]
    seed: Annotated[int, Field(ge=0, le=2**63 - 1, description="the same seed gives the same logits")]


Op = Annotated[Name, Field(description="What is computed: see /v1/ops.")]
Logits = Annotated[MaybeTensor, Field(description="Rank 1 to 4; the last axis is reduced. A bare list is float64.")]
_TARGETS = (
    "Class indices (the logits' shape without the last axis), or distributions (the logits' shape), which evaluate rounds to "
    "each format, as it does the logits. input_rounding does not count them."
)
_GRAD_OUTPUT = "For softmax_vjp; the logits' shape. evaluate rounds it to each format too; input_rounding does not count it."
TargetsField = Annotated[AnyTargets, Field(description=_TARGETS)]
GradOutput = Annotated[MaybeTensor, Field(description=_GRAD_OUTPUT)]
_AXIS = "The axis that is reduced: only the last one, as -1 or as the logits' rank - 1."
Axis = Annotated[int, Field(description=_AXIS)]
NonFinite = Annotated[Literal["ieee"], Field(description="What rows with NaN or infinite logits mean: see /v1/ops.")]
DEFAULT_FORMATS = ["float16", "float32", "float64"]
_FORMATS = "See /v1/formats. The three IEEE ones if null."
Formats = Annotated[Annotated[list[Name], Field(min_length=1, max_length=16)] | None, Field(description=_FORMATS)]
_VARIANTS = (
    "See /v1/variants; also with the op's name in front, or with parameters: tiled(tile=64). All of the op if left out, but for "
    "those that need params which are not given."
)
Variants = Annotated[Annotated[list[Name], Field(min_length=1, max_length=64)] | None, Field(description=_VARIANTS)]
_INCLUDE = "Elements, and rank_inversions, only on request."
Include = Annotated[list[Literal["values", "truth", "ranks"]], Field(max_length=3, description=_INCLUDE)]


_ACCUMULATOR = "The format in which sums are added: terms are rounded to it, the total back. Each format its own if null."
_EXP = (
    "numpy: NumPy's; correct: exp and exp2 correctly rounded; exp2: exp(a) as exp2(a log2 e), the product rounded and exp2 "
    "correctly rounded."
)
_SUBNORMALS = "flush: subnormal operands and results of every step become zeros of their sign."
_FMA = "Whether a * b + c is rounded once, where a variant asks for it."
_OUTPUT_FORMAT = "The format that results are rounded to at last, and measured in. Each format itself if null."
_OVERFLOW = "saturate: in the 8-bit formats overflow gives the largest number; else infinity, or NaN in float8_e4m3fn."


Booleans = TypeAliasType("Booleans", "Annotated[list[bool | Booleans], Field(min_length=1)]")
_SCALE = "Above 0, the inverse of a temperature: the logits are multiplied by it."
_SOFTCAP = "Above 0: z = softcap tanh(scale x / softcap). Not of derivatives."
_MASK = "The logits' shape, or one for each of the n logits: true where a logit is kept, false where it is -inf, whatever it was."
_SINK = "One more logit, not scaled, in every sum and no output: 0 makes softmax1 of softmax."
_LABEL_SMOOTHING = "a, 0 to 1: targets w_i ((1 - a) y_i + a / n)."
_WEIGHTS = "w: a weight for each class, finite and at least 0."
_IGNORE_INDEX = "Rows with this class index have loss 0 and gradient 0, and no part in a mean."
_Z_LOSS = "At least 0: that many squares of the log-sum-exp are added to the loss."
_REDUCTION = "sum, or mean: over the rows, or over the weights of their targets. Of a gradient: what it is the gradient of."


class Params(Strict):
    """What an op is told beside its tensors, all exact: see /v1/ops for those that it takes."""

    scale: Annotated[float, Field(description=_SCALE)] = 1.0
    softcap: Annotated[float | None, Field(description=_SOFTCAP)] = None
    mask: Annotated[Any, _Documented(Booleans | None), Field(description=_MASK)] = None
    sink: Annotated[float | None, Field(description=_SINK)] = None
    label_smoothing: Annotated[float, Field(description=_LABEL_SMOOTHING)] = 0.0
    weights: Annotated[MaybeTensor, Field(description=_WEIGHTS)] = None
    ignore_index: Annotated[int | None, Field(description=_IGNORE_INDEX)] = None
    z_loss: Annotated[float, Field(description=_Z_LOSS)] = 0.0
    reduction: Annotated[Literal["none", "sum", "mean"], Field(description=_REDUCTION)] = "none"


class ProblemRequest(Strict):
    """An op and its input tensors."""

    op: Op
    logits: Logits = None
    inputs: Annotated[Inputs | None, Field(description="A seeded family instead of logits: see /v1/inputs.")] = None
    targets: TargetsField = None
    grad_output: GradOutput = None
    params: Annotated[Params | None, Field(description="What else the op is told; null: nothing.")] = None
    axis: Axis = -1


class EvaluateRequest(ProblemRequest):
    """Run built-in variants of an op and measure them. Exactly one of logits and inputs is given.

    The logits are rounded to each format first, and the truth is that of the rounded ones.
    """

    nonfinite: NonFinite = "ieee"
    formats: Formats = DEFAULT_FORMATS
    variants: Variants = None
    summation: Annotated[Name, Field(description="See /v1/summations.")] = "numpy"
    accumulator: Annotated[Name | None, Field(description=_ACCUMULATOR)] = None
    exp: Annotated[Literal["numpy", "correct", "exp2"], Field(description=_EXP)] = "numpy"
    subnormals: Annotated[Literal["gradual", "flush"], Field(description=_SUBNORMALS)] = "gradual"
    fma: Annotated[bool, Field(description=_FMA)] = False
    output_format: Annotated[Name | None, Field(description=_OUTPUT_FORMAT)] = None
    overflow: Annotated[Literal["format", "saturate"], Field(description=_OVERFLOW)] = "format"
    include: Include = []
    worst: Annotated[int, Field(ge=0, description="How many of the worst elements are listed, at most the limit max_worst.")] = 8


class TruthRequest(ProblemRequest):
    """The certified truth of one problem in one format. Exactly one of logits and inputs is given.

    The logits are taken exactly as given, and only the result is rounded to the format. Give them in that format
    ({"dtype": "float16", "shape": [3], "rounding": "nearest", "data": [...]}) for the truth that evaluate judges by.
    """

    nonfinite: NonFinite = "ieee"
    format: Annotated[Name, Field(description="The result is rounded to it, the logits are not. See /v1/formats.")]
    digits: Annotated[int, Field(ge=1, description="Significant decimal digits, at most the limit max_digits.")] = 30


_OUTPUT = "What was computed, with its dtype (a bare list has none): the format in which it is judged. Of the op's output shape."
_GATE = (
    "A policy and its parameters, null: bound; see /v1/policies. With any parameter of `bound`, only the bound so declared counts."
)
_NONFINITE = (
    "ieee: a row with NaN, +Infinity or only -Infinity has no truth but NaN. masked_zero, masked_uniform: rows of only -Infinity "
    "are 0 or 1/n (log_softmax: -Infinity, -log n). strict: such rows, and outputs that are not finite, are a failure."
)
_REFERENCE = "Another output, with its dtype, audited by the same truth."
_VERIFY_INCLUDE = (
    "elements: the truth, correctly rounded; ranks: rank_inversions. Invariants that must hold beside the gate: row_sums, order "
    "(x_i > x_j but c_i < c_j), argmax. repro: the smallest case found that has the verdict, to take home."
)


class Gate(BaseModel):
    """A policy, with its parameters beside it."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, Annotated[Any, _Documented(float | Annotated[str, Field(max_length=64)])]]

    policy: Annotated[Name, Field(description="its name", examples=["bound"])] = "bound"


_SAMPLE = (
    "Judge only some rows, chosen as README says; null: all. What nonfinite strict forbids, and repeated runs, are looked at in "
    "all rows, and digests are of all."
)


class Sample(Strict):
    """How many rows are judged."""

    rows: Annotated[int, Field(ge=1, le=2**53, description="rows that are judged; as many as there are, or more: all")]
    seed: Annotated[int, Field(ge=0, le=2**53, description="the same tensors and seed give the same rows")] = 0


DeclaredTensor = TypeAliasType("DeclaredTensor", JsonTensor | Base64Tensor | BitsTensor)
AnyDeclared = Annotated[Any, _Documented(DeclaredTensor)]
MaybeDeclared = Annotated[Any, _Documented(DeclaredTensor | None)]
AnyAxis = Annotated[int, Field(description="The axis that is reduced, of all tensors of the logits' shape.")]


class VerifyRequest(ProblemRequest):
    """Judge an output made elsewhere. Tensors are taken exactly as they are given. Exactly one of logits and inputs is given."""

    output: Annotated[AnyDeclared, Field(description=_OUTPUT)]
    reference: Annotated[MaybeDeclared, Field(description=_REFERENCE)] = None
    outputs: Annotated[
        list[AnyDeclared], Field(max_length=16, description="Repeated runs, which must have the same bits as output.")
    ] = []
    gate: Annotated[Gate | None, Field(description=_GATE)] = None
    nonfinite: Annotated[Literal["ieee", "masked_zero", "masked_uniform", "strict"], Field(description=_NONFINITE)] = "ieee"
    axis: AnyAxis = -1
    include: Annotated[
        list[Literal["elements", "ranks", "row_sums", "order", "argmax", "repro"]], Field(max_length=6, description=_VERIFY_INCLUDE)
    ] = []
    worst: Annotated[int, Field(ge=0, description="How many of the worst elements are listed, at most the limit max_worst.")] = 8
    sample: Annotated[Sample | None, Field(description=_SAMPLE)] = None


def _digits(value: object) -> object:
    """Python's underscores and blanks are no part of a number in a query."""
    if isinstance(value, str) and not re.fullmatch("-?[0-9]+", value):
        raise ValueError("it must be an integer, in digits")
    return value


class ThresholdsQuery(BaseModel):
    """The parameters of /v1/thresholds."""

    model_config = ConfigDict(extra="forbid")

    op: Annotated[Name, Field(description="What is computed: see /v1/ops.", examples=["softmax"])]
    variant: Annotated[Name, Field(description="See /v1/variants; with parameters: chosen_shift(c=-80).", examples=["naive"])]
    format: Annotated[Name, Field(description="See /v1/formats.", examples=["float16"])]
    n: Annotated[
        int, BeforeValidator(_digits), Field(ge=1, description="Logits per row, at most the limit max_threshold_n.", examples=[2])
    ] = 2
    summation: Annotated[Name, Field(description="See /v1/summations.")] = "numpy"
    accumulator: Annotated[Name | None, Field(description=_ACCUMULATOR)] = None
    exp: Annotated[Literal["numpy", "correct", "exp2"], Field(description=_EXP)] = "numpy"
    subnormals: Annotated[Literal["gradual", "flush"], Field(description=_SUBNORMALS)] = "gradual"
    fma: Annotated[bool, Field(description=_FMA)] = False
    output_format: Annotated[Name | None, Field(description=_OUTPUT_FORMAT)] = None
    overflow: Annotated[Literal["format", "saturate"], Field(description=_OVERFLOW)] = "format"


class ToleranceRequest(ProblemRequest):
    """Which tolerance to use for an op and a format: on given logits, or, without logits and inputs, on any row of n. What says
    something of logits (targets, grad_output, params, another axis) is refused without them.

    The fields from compute on are the parameters of the policy `bound` (see /v1/policies); with none of them, what its default
    takes for granted: arithmetic in float32 or wider.
    """

    format: Annotated[Name, Field(description="Of the output. See /v1/formats.")]
    n: Annotated[int | None, Field(ge=1, le=2**24, description="Logits in a row; null where logits are given.")] = None
    compute: Annotated[Name | None, Field(description="Format of the arithmetic.")] = None
    accumulator: Annotated[Name | None, Field(description="Format in which sums are added.")] = None
    summation: Annotated[Name | None, Field(description="How sums are added: parallel, or one of /v1/summations.")] = None
    exp: Annotated[Name | None, Field(description="Exponential: exp2, numpy or correct.")] = None
    exp_ulp: Annotated[float | None, Field(description="What an exponential may be off by, ULP.")] = None
    log_ulp: Annotated[float | None, Field(description="What a logarithm may be off by, ULP.")] = None
    subnormals: Annotated[Name | None, Field(description="gradual or flush.")] = None
    algorithm: Annotated[Name | None, Field(description="A variant that has a bound; with logits only.")] = None
    factor: Annotated[float | None, Field(description="Multiplies the bound.")] = None


REQUESTS: tuple[type[BaseModel], ...] = (EvaluateRequest, TruthRequest, VerifyRequest, ToleranceRequest)


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
    "params": {
        "summary": "A mean loss with smoothed labels, weighted classes and an ignored row, in float16",
        "value": {
            "op": "cross_entropy",
            "logits": [[2, 1, 0], [0, 3, 1], [5, 5, 5]],
            "targets": [0, 2, -100],
            "params": {"label_smoothing": 0.1, "weights": [1, 2, 0.5], "ignore_index": -100, "reduction": "mean"},
            "formats": ["float16"],
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
    "softmax1": {
        "summary": "softmax1 of capped logits: a sink of 0",
        "value": {"op": "softmax", "logits": [1, -2, 40], "params": {"sink": 0, "softcap": 30}, "format": "float32", "digits": 20},
    },
}


TOLERANCE_EXAMPLES: dict[str, dict[str, Any]] = {
    "vocabulary": {
        "summary": "A float32 softmax over a vocabulary, whatever the logits",
        "value": {"op": "softmax", "format": "float32", "n": 128256},
    },
    "half": {
        "summary": "A bfloat16 log-softmax that adds in float16, on given logits",
        "value": {"op": "log_softmax", "format": "bfloat16", "logits": [[1, 2, 3, 4], [0, 0, 0, 0]], "accumulator": "float16"},
    },
}


VERIFY_EXAMPLES: dict[str, dict[str, Any]] = {
    "overflow": {
        "summary": "A kernel without the maximum: NaN, and what made it",
        "value": {
            "op": "softmax",
            "logits": [[1000, 1001, 1002]],
            "output": {"dtype": "float32", "shape": [1, 3], "data": ["NaN", "NaN", "NaN"]},
        },
    },
    "right": {
        "summary": "A right output, by base64",
        "value": {
            "op": "softmax",
            "logits": {"dtype": "float32", "shape": [2], "data": [0, 0]},
            "output": {"dtype": "float32", "shape": [2], "encoding": "base64", "data": "AAAAPwAAAD8="},
            "include": ["row_sums", "argmax"],
        },
    },
    "gate": {
        "summary": "A gate of your own: at most 4 ULP",
        "value": {
            "op": "log_softmax",
            "logits": [[10000, 10000]],
            "output": {"dtype": "float32", "shape": [1, 2], "rounding": "nearest", "data": [-0.693359375, -0.693359375]},
            "gate": {"policy": "max_ulp", "ulps": 4},
            "worst": 1,
        },
    },
    "repro": {
        "summary": "A kernel that writes nothing, and a case to take home",
        "value": {
            "op": "softmax",
            "logits": [[1, 2, 3, 4], [7, 8, -3, -4]],
            "output": {"dtype": "float32", "shape": [2, 4], "data": [[0, 0, 0, 0], [0, 0, 0, 0]]},
            "include": ["repro"],
        },
    },
}


# Answers to EVALUATE_ANSWERED and to the first example of the truth.
EVALUATE_ANSWERED: dict[str, Any] = {
    "op": "softmax",
    "logits": [[0, -12]],
    "formats": ["float16"],
    "variants": ["shifted"],
    "include": ["values", "truth", "ranks"],
    "worst": 1,
}
EVALUATE_ANSWER: dict[str, Any] = {
    "op": "softmax",
    "rows": 1,
    "n": 2,
    "logits_digest": "sha256:c7caf378dae3d1af4b818b9dec16e4db08f4672d55310cc65abaa4908b7b058d",
    "nonfinite": "ieee",
    "engine": {"version": "0.1.0", "schema": 1, "fingerprint": "numpy 2.4.6 X86_V2+X86_V3"},
    "outcomes": [
        {
            "variant": "shifted",
            "format": "float16",
            "summation": "numpy",
            "arithmetic": {
                "accumulator": "float16",
                "exp": "numpy",
                "subnormals": "gradual",
                "fma": False,
                "output_format": "float16",
                "overflow": "infinity",
            },
            "status": "accurate",
            "metrics": {
                "n": 2,
                "compared": 2,
                "max_ulp": 0.08214444307043323,
                "argmax_ulp": 1,
                "mean_ulp": 0.047364234924316406,
                "p50_ulp": 0.01271896423326053,
                "p99_ulp": 0.08282729019748383,
                "max_ulp_ordinal": 0,
                "correctly_rounded": 2,
                "max_rel": 0.0007968833352682836,
                "argmax_rel": 1,
                "max_rel_normal": 6.1442123533289594e-06,
                "max_abs": 6.144174602214225e-06,
                "bias_ulp": -0.03478050231933594,
                "nan_count": 0,
                "nan_unexpected": 0,
                "nan_missing": 0,
                "inf_count": 0,
                "overflow_count": 0,
                "zero_count": 0,
                "underflow_count": 0,
                "underflow_premature": 0,
                "false_zero_count": 0,
                "subnormal_count": 1,
                "special_mismatch": 0,
                "sum_defect": 6.139278411865234e-06,
                "step_overflow_count": 0,
                "step_underflow_count": 2,
                "step_invalid_count": 0,
                "kl": {"worst": 2.0827367608333702e-11, "mean": 2.0827367608333702e-11, "worst_row": 0},
                "total_variation": {"worst": 3.0745359254069626e-06, "mean": 3.0745359254069626e-06, "worst_row": 0},
                "argmax_preserved": 1,
                "rank_inversions": 0,
                "backward_error": {"worst": 0.0, "mean": 0.0, "worst_row": 0},
                "error_over_bound": 0.02869219404431078,
            },
            "worst": [
                {
                    "index": [0, 1],
                    "logit": -12.0,
                    "got": 6.139278411865234e-06,
                    "expected": "6.1441746022147178e-6",
                    "ulp": 0.08214449882507324,
                    "rel": 0.0007968833670020103,
                    "bound": 1.7064537978244648e-07,
                    "bound_ulp": 2.8629543960121375,
                }
            ],
            "faults": [
                {
                    "step": "exp",
                    "kind": "underflow",
                    "count": 1,
                    "first_index": [0, 1],
                    "detail": (
                        "exp(-12) is below the smallest normal float16, 6.103515625e-05"
                        ", and became the subnormal 6.139278411865234e-06"
                    ),
                    "chain": [],
                },
                {
                    "step": "divide",
                    "kind": "underflow",
                    "count": 1,
                    "first_index": [0, 1],
                    "detail": (
                        "6.139278411865234e-06 / 1 is below the smallest normal float16, 6.103515625e-05"
                        ", and became the subnormal 6.139278411865234e-06"
                    ),
                    "chain": [0],
                },
            ],
            "bound": {
                "rule": "p_i (expm1(th_i + H + u') + eps) / (1 - eps) + underflow; th_i = v (kappa abs(x_i - m) + c)",
                "unit_roundoff": 0.00048828125,
                "reference": "shifted",
                "exceeded": 0,
                "unjudged": 0,
                "unbounded": 0,
                "vacuous": 0,
                "condition": 0.00014746019045315322,
                "condition_row": 0,
            },
            "input_rounding": {"changed": 0, "max_abs": 0.0, "logit_shift": 0.0},
            "certificate": {"relative_bound_log2": -83.0, "tiers": {"T3": 2}, "coverage": 1.0},
            "values": [[1.0, 6.139278411865234e-06]],
            "truth": [[1.0, 6.139278411865234e-06]],
        }
    ],
}
VERIFY_ANSWER: dict[str, Any] = {
    "verdict": "fail",
    "op": "log_softmax",
    "rows": 1,
    "n": 2,
    "logits_dtype": "float64",
    "format": "float32",
    "findings": [
        {
            "kind": "beyond",
            "detail": "2 of 2 elements are beyond the gate max_ulp; row 0, class 0: got -0.693359, truth -0.693147, "
            "off by 3560 ULP",
            "index": [0, 0],
            "count": 2,
        },
        {
            "kind": "offset",
            "detail": "row 0: every element is 0.0002122 too small: the logarithm of the sum is too large",
            "row": 0,
        },
        {
            "kind": "algorithm",
            "detail": "it is bit for bit what log_softmax gives, with correctly rounded primitives, by subtractive "
            "(in float32, sums pairwise; or float32, sums warp; or float32, sums pairwise in float64; or "
            "float32, sums pairwise, subnormals flushed; or 5 more), or by log_of_softmax, shifted, "
            "log1p, log_with_eps (in float16, sums pairwise; or float16, sums sequential): 10000 - "
            "10000.693359375 is -0.693359375: 14 of 24 bits cancelled, and what earlier steps may have "
            "rounded weighs 2^14 times as much",
            "variants": [
                "subtractive in float32, sums pairwise",
                "subtractive in float32, sums warp",
                "subtractive in float32, sums pairwise in float64",
                "subtractive in float32, sums pairwise, subnormals flushed",
                "subtractive in float32, sums pairwise, of logits rounded to bfloat16",
                "subtractive in float32, sums pairwise, of logits rounded to float16",
                "subtractive in float32, sums sequential",
                "subtractive in float32, sums sequential in bfloat16",
                "subtractive in float32, sums sequential in float16",
                "log_of_softmax in float16, sums pairwise",
                "shifted in float16, sums pairwise",
                "log1p in float16, sums pairwise",
                "log_with_eps in float16, sums pairwise",
                "log_of_softmax in float16, sums sequential",
                "shifted in float16, sums sequential",
                "log1p in float16, sums sequential",
                "log_with_eps in float16, sums sequential",
            ],
        },
    ],
    "metrics": {
        "n": 2,
        "compared": 2,
        "max_ulp": 3560.031954795122,
        "argmax_ulp": 0,
        "mean_ulp": 3560.03125,
        "p50_ulp": 3596.8044244445173,
        "p99_ulp": 3596.8044244445173,
        "max_ulp_ordinal": 3560,
        "correctly_rounded": 0,
        "max_rel": 0.0003061318663712953,
        "argmax_rel": 0,
        "max_rel_normal": 0.0003061318663712953,
        "max_abs": 0.00021219444005460275,
        "bias_ulp": -3560.03125,
        "nan_count": 0,
        "nan_unexpected": 0,
        "nan_missing": 0,
        "inf_count": 0,
        "overflow_count": 0,
        "zero_count": 0,
        "underflow_count": 0,
        "underflow_premature": 0,
        "false_zero_count": 0,
        "subnormal_count": 0,
        "special_mismatch": 0,
        "sum_defect": 0.0002121719284067236,
        "step_overflow_count": None,
        "step_underflow_count": None,
        "step_invalid_count": None,
        "kl": {"worst": 2.2511642328026937e-08, "mean": 2.2511642328026937e-08, "worst_row": 0},
        "total_variation": None,
        "argmax_preserved": 1,
        "rank_inversions": None,
        "backward_error": None,
        "error_over_bound": 97.62673639680725,
    },
    "worst": [
        {
            "index": [0, 0],
            "logit": 10000.0,
            "got": -0.693359375,
            "expected": "-6.9314718055994531e-1",
            "ulp": 3560.03125,
            "rel": 0.0003061317838728428,
            "bound": 2.1735279482491554e-06,
            "bound_ulp": 36.4657478698129,
        }
    ],
    "bound": {
        "rule": "E + u (abs(T) + E), E = u abs(x_i - m) + A, A = H - log1p(-eps) + k_l u (log S + that)",
        "unit_roundoff": 5.960464477539063e-08,
        "reference": "shifted",
        "exceeded": 2,
        "unjudged": 0,
        "unbounded": 0,
        "vacuous": 0,
        "condition": 14426.950408889634,
        "condition_row": 0,
    },
    "gate": {
        "policy": "max_ulp",
        "ulps": 4.0,
        "rule": "ULP error <= ulps",
        "declared": None,
        "self_test": {"caught": ["zeros", "negated", "half", "narrowed"], "missed": [], "equivalent": ["uniform", "rolled"]},
        "vacuous_fraction": 0.0,
    },
    "nonfinite": "ieee",
    "certificate": {"relative_bound_log2": -96.0, "tiers": {"T3": 2}, "coverage": 1.0},
    "digests": {
        "logits": "sha256:0b0c8c4d4ff6ca467812faa7b7c71e04f834c8f63b2db030c8269301aaacfc90",
        "output": "sha256:b03b73ed2a1e0cd6f93f61514f9a217e16468dab30c01df4e22f53e458944ec9",
    },
    "engine": {"version": "0.1.0", "schema": 1, "fingerprint": "numpy 2.4.6 X86_V2+X86_V3+X86_V4+AVX512_ICL"},
}
TRUTH_ANSWER: dict[str, Any] = {
    "op": "logsumexp",
    "format": "float64",
    "digits": 20,
    "rounded": {"dtype": "float64", "shape": [], "data": 4.248354255291589e-18},
    "decimal": "4.2483542552915889863e-18",
    "hex": "0x1.39792499b1a242654ee5e8ed775f4032c04p-58",
    "radius_log2": -125,
    "certificate": {"relative_bound_log2": -125.0, "tiers": {"T3": 1}, "coverage": 1.0},
    "logits_digest": "sha256:8d09fb0992f8b851f87c7b8bdd1646e93c6a0934310cfbe29bd0372370c7826a",
    "nonfinite": "ieee",
    "engine": {"version": "0.1.0", "schema": 1, "fingerprint": "numpy 2.4.6 X86_V2+X86_V3"},
}


TOLERANCE_ANSWER: dict[str, Any] = {
    "op": "log_softmax",
    "format": "bfloat16",
    "n": 4,
    "rows": 2,
    "declared": {
        "algorithm": "shifted",
        "compute": "float32",
        "accumulator": "float16",
        "summation": "parallel",
        "exp_ulp": 2.0,
        "log_ulp": 2.0,
        "exponent_roundings": 3,
        "subnormals": "gradual",
    },
    "ulp": 9.669050111163914,
    "rtol": 0.003906369209289551,
    "atol": 0.017165321421580608,
    "typical": 1.3862943611198906,
    "missed": 0.01628853125437927,
    "zeros_pass": False,
    "self_test": {"caught": ["zeros", "uniform", "rolled", "negated", "half", "narrowed"], "missed": [], "equivalent": []},
    "engine": {"version": "0.1.0", "schema": 1, "fingerprint": "numpy 2.4.6 X86_V2+X86_V3"},
}

THRESHOLDS_ANSWERED = {"op": "softmax", "variant": "naive", "format": "float16"}
THRESHOLDS_ANSWER: dict[str, Any] = {
    "op": "softmax",
    "variant": "naive",
    "format": "float16",
    "n": 2,
    "summation": "numpy",
    "arithmetic": {
        "accumulator": "float16",
        "exp": "numpy",
        "subnormals": "gradual",
        "fma": False,
        "output_format": "float16",
        "overflow": "infinity",
    },
    "engine": {"version": "0.1.0", "schema": 1, "fingerprint": "numpy 2.4.6 X86_V2+X86_V3"},
    "limits": [
        {
            "name": "equal_logits_up",
            "value": 10.390625,
            "next": 10.3984375,
            "result": 0.0,
            "kind": "zero",
            "beyond": (
                "2 of 2 elements are 0, and no NaN tells of it: a sum of terms from 32800 to 32800 exceeds the "
                "largest float16, 65504"
            ),
            "search": "exhaustive",
            "checked": 31744,
            "sharp": True,
        },
        {
            "name": "equal_logits_down",
            "value": -17.328125,
            "next": -17.34375,
            "result": "NaN",
            "kind": "nan",
            "beyond": (
                "2 of 2 elements are NaN: exp(-17.34375) is below half the smallest float16 subnormal, "
                "5.960464477539063e-08, and became 0; 0 / 0 is not a number (invalid): numerator and denominator are "
                "both 0"
            ),
            "search": "exhaustive",
            "checked": 31744,
            "sharp": True,
        },
        {
            "name": "finite_logits",
            "value": 11.0859375,
            "next": 11.09375,
            "result": "NaN",
            "kind": "nan",
            "beyond": (
                "2 of 2 elements are NaN: exp(11.09375) exceeds the largest float16, 65504; the largest safe logit "
                "is 11.0859375; inf / inf is not a number (invalid): numerator and denominator both overflowed"
            ),
            "search": "exhaustive",
            "checked": 31744,
            "sharp": True,
        },
        {
            "name": "finite_log_gap",
            "value": 17.328125,
            "next": 17.34375,
            "result": 0.0,
            "kind": "zero",
            "beyond": (
                "the result is 0: exp(-17.34375) is below half the smallest float16 subnormal, 5.960464477539063e-08, and became 0"
            ),
            "search": "exhaustive",
            "checked": 31744,
            "sharp": True,
        },
        {
            "name": "ones",
            "value": 65519.0,
            "next": 65520.0,
            "result": "Infinity",
            "kind": "infinite",
            "beyond": ("the sum of 65520 ones overflows"),
            "search": "bisection",
            "checked": 2000,
            "sharp": True,
        },
    ],
}


class RowFigure(BaseModel):
    """A figure taken per row."""

    worst: Annotated[SafeFloat, Field(description="the largest")]
    mean: Annotated[SafeFloat, Field(description="the mean over the rows that have a truth")]
    worst_row: Annotated[Index, Field(description="the row of the largest, the first where several are equal")]


_MAX_ULP_ORDINAL = "largest distance between c and R, counted in representable numbers"
_SPECIAL_MISMATCH = (
    "special mismatches: one of c and R is NaN, c is infinite and R is not or has the other sign, or T is infinite and c is not T"
)
_UNDERFLOW_COUNT = "c is 0, T finite and not 0; R may be 0 too, so that c is right"
_UNDERFLOW_PREMATURE = "c is 0, T finite and not 0, R not 0: a zero that is wrong"
_SUM_DEFECT = "worst row: softmax abs(sum c - 1), log_softmax abs(sum exp c - 1), cross_entropy_grad abs(sum c); summed exactly"
_KL = "softmax, log_softmax: generalised Kullback-Leibler divergence of the truth from c, in nats, never negative"
_ARGMAX_PRESERVED = (
    "rows in which c at a largest T is the largest c, ties included; null for logsumexp and cross_entropy, which have one number a "
    "row"
)
_RANK_INVERSIONS = 'softmax, log_softmax: pairs with x_i > x_j and c_i < c_j; only with include: ["ranks"]'
_BACKWARD_ERROR = "softmax: the smallest change of the logits that explains c up to a constant factor, where R is normal"

_ERROR_OVER_BOUND = (
    "largest abs(c - T) / bound of the declared algorithm: at most 1 if the code is what it is declared to be; null: no bound"
)


class Metrics(BaseModel):
    """What was measured. null: the figure has no value here.

    T: the exact truth; c: the computed value; R: the truth correctly rounded to the format. Maxima and sum_defect have 40
    significant bits; means, figures of rows and those in `worst` 20 (a mean of ULP errors no finer than 2^-20).
    """

    n: Annotated[int, Field(description="elements")]
    compared: Annotated[int, Field(description="elements that enter the maxima and means")]
    max_ulp: Annotated[SafeFloat | None, Field(description="largest ULP error, abs(c - T) / ulp(T)")]
    argmax_ulp: Annotated[int | None, Field(description="its index in the flattened output, the first where several are equal")]
    mean_ulp: Annotated[SafeFloat | None, Field(description="mean ULP error")]
    p50_ulp: Annotated[SafeFloat | None, Field(description="median ULP error, as the upper edge of its bin (0, 2^-10, 2^(k/64))")]
    p99_ulp: Annotated[SafeFloat | None, Field(description="99th percentile, likewise")]
    max_ulp_ordinal: Annotated[SafeInt | None, Field(description=_MAX_ULP_ORDINAL)]
    correctly_rounded: Annotated[int, Field(description="elements, out of n, with c = R (signs of zero apart) or both NaN")]
    max_rel: Annotated[SafeFloat | None, Field(description="largest abs(c - T) / abs(T); T = 0 gives 0 or infinity, c = 0 gives 1")]
    argmax_rel: Annotated[int | None, Field(description="its index in the flattened output")]
    max_rel_normal: Annotated[SafeFloat | None, Field(description="max_rel where abs(R) is at least the smallest normal number")]
    max_abs: Annotated[SafeFloat | None, Field(description="largest abs(c - T)")]
    bias_ulp: Annotated[SafeFloat | None, Field(description="mean of the signed ULP error")]
    nan_count: Annotated[int, Field(description="c is NaN")]
    nan_unexpected: Annotated[int, Field(description="c is NaN and R is not")]
    nan_missing: Annotated[int, Field(description="R is NaN and c is not")]
    inf_count: Annotated[int, Field(description="c is infinite")]
    overflow_count: Annotated[int, Field(description="c is infinite and R is finite")]
    zero_count: Annotated[int, Field(description="c is 0")]
    underflow_count: Annotated[int, Field(description=_UNDERFLOW_COUNT)]
    underflow_premature: Annotated[int, Field(description=_UNDERFLOW_PREMATURE)]
    false_zero_count: Annotated[int, Field(description="c is 0, T finite, abs(R) at least the smallest normal number")]
    subnormal_count: Annotated[int, Field(description="c is subnormal")]
    special_mismatch: Annotated[int, Field(description=_SPECIAL_MISMATCH)]
    sum_defect: Annotated[SafeFloat | None, Field(description=_SUM_DEFECT)]
    step_overflow_count: Annotated[int | None, Field(description="overflows over all steps of the algorithm")]
    step_underflow_count: Annotated[int | None, Field(description="underflows, likewise")]
    step_invalid_count: Annotated[int | None, Field(description="invalid operations (such as inf / inf), likewise")]
    kl: Annotated[RowFigure | None, Field(description=_KL)]
    total_variation: Annotated[RowFigure | None, Field(description="softmax: sum abs(c - T) / 2")]
    argmax_preserved: Annotated[int | None, Field(description=_ARGMAX_PRESERVED)]
    rank_inversions: Annotated[int | None, Field(description=_RANK_INVERSIONS)]
    backward_error: Annotated[RowFigure | None, Field(description=_BACKWARD_ERROR)]
    error_over_bound: Annotated[SafeFloat | None, Field(description=_ERROR_OVER_BOUND)]


_LOGIT = "the logit there, in the format, before params; null for logsumexp, cross_entropy and softmax_jacobian"


class Worst(BaseModel):
    """One of the worst elements."""

    index: Annotated[list[Index], Field(description="its position in the output, one index for each axis")]
    logit: Annotated[SafeFloat | None, Field(description=_LOGIT)]
    got: Annotated[SafeFloat, Field(description="the computed value")]
    expected: Annotated[str, Field(description="the truth to 17 significant digits")]
    ulp: Annotated[SafeFloat | None, Field(description="ULP error; null for a special mismatch")]
    rel: Annotated[SafeFloat | None, Field(description="relative error; null for a special mismatch")]
    bound: Annotated[SafeFloat | None, Field(description="the declared algorithm's bound of abs(got - truth) there; null: none")]
    bound_ulp: Annotated[SafeFloat | None, Field(description="the same in ULP of the truth: what ulp may be at most")]


_KIND = "overflow, underflow, invalid, divide_by_zero (IEEE 754), stalled, absorbed, cancelled or mismatched: digits lost"
_CHAIN = "places in this list, from 0, of the faults that led to the first of them"


class Fault(BaseModel):
    """A step of the algorithm that broke, all its calls taken together, in the order they first occurred."""

    step: Annotated[str, Field(description="exp, sum, divide, ...; result for an absorbed one")]
    kind: Annotated[str, Field(description=_KIND)]
    count: Annotated[int, Field(description="elements of that step's results")]
    first_index: Annotated[list[Index], Field(description="the first of them, as a position in the result of the step")]
    detail: Annotated[str, Field(description="one sentence on the first of them")]
    chain: Annotated[list[int], Field(description=_CHAIN)]


_EXCEEDED = "elements beyond the reference's bound; special mismatches, which have no error, are not among them"
_CONDITION = (
    "largest condition number of a row, relative to the largest logit; "
    "null for softmax_jacobian, softmax_vjp, and params without bound"
)


class Bound(BaseModel):
    """What error theory allows: the bounds of the declared algorithm, and of the reference that tells accurate from inaccurate."""

    rule: Annotated[str, Field(description="the declared algorithm's bound of an element, in words")]
    unit_roundoff: Annotated[float, Field(description="u, 2^-precision of the format, or of output_format if that is larger")]
    reference: Annotated[
        str, Field(description="the op's stable variant, by whose bound in the same arithmetic a status is decided")
    ]
    exceeded: Annotated[int, Field(description=_EXCEEDED)]
    unjudged: Annotated[int, Field(description="compared elements for which the reference has no bound")]
    unbounded: Annotated[int, Field(description="compared elements for which the declared algorithm has no bound")]
    vacuous: Annotated[int, Field(description="compared elements, not 0, whose declared bound is as large as they are")]
    condition: Annotated[SafeFloat | None, Field(description=_CONDITION)]
    condition_row: Annotated[int | None, Field(description="the first row that has it, counted over all rows from 0")]


_LOGIT_SHIFT = "(largest - smallest signed change) / 2 of the worst row: what softmax sees of it, blind to a shift of the whole row"


class InputRounding(BaseModel):
    """What rounding the logits (not the targets, not grad_output) to the format changed."""

    changed: Annotated[int, Field(description="logits that changed")]
    max_abs: Annotated[SafeFloat, Field(description="largest change of one; infinite where a logit became infinite or NaN")]
    logit_shift: Annotated[SafeFloat, Field(description=_LOGIT_SHIFT)]


_RELATIVE_BOUND_LOG2 = "log2 of the widest relative radius of a truth, those far below the format's numbers apart; null: all exact"


_TIERS = (
    "elements by the tier that decided what they are: T0, T1, T2 in NumPy, T3 in mpmath; a maximum or a decimal may be refined by "
    "finer ones"
)


class Certificate(BaseModel):
    """How the truth was proven."""

    relative_bound_log2: Annotated[float | None, Field(description=_RELATIVE_BOUND_LOG2)]
    tiers: Annotated[dict[str, int], Field(description=_TIERS)]
    coverage: Annotated[float, Field(description="share of the elements whose truth is proven: 1, or there is no answer")]


class Engine(BaseModel):
    """Who answered."""

    version: Annotated[str, Field(description="of the package")]
    schema_: Annotated[int, Field(alias="schema", description="number of the form and meaning of answers")]
    fingerprint: Annotated[str, Field(description="NumPy's version and the processor features it uses")]


Elements = TypeAliasType("Elements", "SafeFloat | list[Elements]")
Texts = TypeAliasType("Texts", "str | list[Texts]")


_STATUS = (
    "unstable: a special mismatch; or a 0 where R is a normal number, beyond the bound of the reference; or a softmax row whose "
    "sum is further than 1/2 from 1 than that of R. inaccurate: else an element beyond the bound. unbounded: else an element for "
    "which there is no bound. accurate: all are within. An element whose truth is NaN is right if it is NaN."
)
_SHA = "dtype name, 0, shape as JSON without spaces ([2,3]), 0, little-endian bytes"
_DIGEST = f"SHA-256 of the logits as given: {_SHA}"


class Arithmetic(BaseModel):
    """The axes of an arithmetic as they were, every name told."""

    accumulator: Annotated[str, Field(description="the format in which sums were added")]
    exp: Literal["numpy", "correct", "exp2"]
    subnormals: Literal["gradual", "flush"]
    fma: bool
    output_format: Annotated[str, Field(description="the format of the result, in which it was measured")]
    overflow: Annotated[Literal["infinity", "nan", "saturate"], Field(description="what became of what overflowed the format")]


class Outcome(BaseModel):
    """One variant in one format, measured against the truth."""

    variant: Annotated[str, Field(description="its name without that of the op")]
    format: str
    summation: str
    arithmetic: Arithmetic
    status: Annotated[Literal["accurate", "unbounded", "inaccurate", "unstable"], Field(description=_STATUS)]
    metrics: Metrics
    worst: Annotated[list[Worst], Field(description="special mismatches first, then by ULP error; exact elements are left out")]
    faults: list[Fault]
    bound: Bound
    input_rounding: InputRounding
    certificate: Certificate
    values: Annotated[Elements | None, Field(description="the output; only on request")] = None
    truth: Annotated[Elements | None, Field(description="the truth, correctly rounded; only on request")] = None


class VerdictFinding(BaseModel):
    """One reason for the verdict, or what is worth knowing beside it; fields that it has no use for are left out."""

    kind: Annotated[str, Field(description="see README, Findings")]
    detail: Annotated[str, Field(description="one sentence")]
    row: Annotated[int | None, Field(description="number of the row, from 0")] = None
    index: Annotated[list[Index] | None, Field(description="position in the output as it was posted")] = None
    count: Annotated[int | None, Field(description="elements, or rows, that it is true of")] = None
    variants: Annotated[list[str], Field(description="built-in variants, with their arithmetic, that make the same output")] = []


class SelfTest(BaseModel):
    """What the gate makes of broken outputs: zeros, uniform, rolled by one, negated, half the row, cast to a narrower format."""

    caught: list[str]
    missed: Annotated[list[str], Field(description="every element within the tolerance")]
    equivalent: Annotated[list[str], Field(description="as good as the truth on these rows, and not counted")]


_VACUOUS = "share of the elements, not 0, whose tolerance is as large as they are"


class GateAnswer(BaseModel):
    """The gate, with the parameters as they were given beside the policy, and what it is worth on this input."""

    model_config = ConfigDict(extra="allow")

    policy: str
    rule: Annotated[str, Field(description="in words")]
    declared: Annotated[dict[str, Any] | None, Field(description="the arithmetic whose bound counts; null: the gate is no bound")]
    self_test: SelfTest
    vacuous_fraction: Annotated[float | None, Field(description=_VACUOUS)]


class ToleranceResponse(BaseModel):
    """What no right implementation of the declaration is off by more than."""

    op: str
    format: str
    n: int
    rows: Annotated[int | None, Field(description="rows it was taken from; null: it holds for any row of n logits")]
    declared: Annotated[dict[str, Any], Field(description="the arithmetic that it is said of")]
    ulp: Annotated[float | None, Field(description="ULP error; null: a result may be so near to 0 that no number will do")]
    rtol: Annotated[SafeFloat, Field(description="abs(c - T) <= rtol abs(T) + atol; Infinity: error theory allows anything")]
    atol: SafeFloat
    typical: Annotated[float, Field(description="size of a result: the median of those given, or that of a row of equal logits")]
    missed: Annotated[SafeFloat, Field(description="the largest relative error of a result of that size that still passes")]
    zeros_pass: Annotated[bool, Field(description="whether an output of zeros passes rtol and atol there")]
    self_test: Annotated[SelfTest | None, Field(description="the same of other broken outputs; null without logits")]
    engine: Engine


class Sampled(BaseModel):
    """The rows that were judged."""

    rows: Annotated[int, Field(description="how many were")]
    of: Annotated[int, Field(description="how many there are")]
    seed: int
    strata: Annotated[
        dict[str, int], Field(description="how many each stratum gave: see README, A sample; all: nothing was left out")
    ]


class Wrong(BaseModel):
    """One of the worst elements of a case, that whose truth was kept first."""

    index: Annotated[list[Index], Field(description="position in the case")]
    posted: Annotated[list[Index], Field(description="position in the output as it was posted")]
    got: Annotated[str, Field(description="all decimals of the output")]
    truth: Annotated[str, Field(description="25 significant digits, the last within 1")]
    ulp: Annotated[SafeFloat | None, Field(description="ULP error; null where the output or the truth is no number")]


Ranges = list[Annotated[list[Index], Field(min_length=2, max_length=2)]]


class Repro(BaseModel):
    """The worst row, without the columns that its verdict does not need; only note and judged where nothing is minimised."""

    note: Annotated[str, Field(description="what was kept, or why nothing is")]
    judged: Annotated[int, Field(description="elements, as the budget of the search counts them")]
    rows: Annotated[Ranges | None, Field(description="first and last of each run of rows that were kept")] = None
    columns: Annotated[Ranges | None, Field(description="the same of the columns")] = None
    dropped: Annotated[int | None, Field(description="columns")] = None
    minimal: Annotated[bool | None, Field(description="no column more can be dropped; false: the budget was spent before")] = None
    elements: Annotated[list[Wrong], Field(description="the worst ones, in decimals")] = []
    safetensors: Annotated[str | None, Field(description="repro.safetensors in base64; left out above max_body_bytes")] = None
    script: Annotated[str | None, Field(description="repro.py, which asks for the verdict on that file")] = None


class VerifyResponse(BaseModel):
    """The verdict on an output, why, where, and how far from the truth it is."""

    verdict: Literal["pass", "fail", "inconclusive"]
    op: str
    rows: Annotated[int, Field(description="rows of logits")]
    n: Annotated[int, Field(description="logits per row")]
    logits_dtype: str
    format: Annotated[str, Field(description="the output's")]
    findings: list[VerdictFinding]
    metrics: Metrics
    worst: Annotated[list[Worst], Field(description="special mismatches first, then by ULP error; exact elements are left out")]
    bound: Annotated[Bound, Field(description="of the default gate, or of what was declared")]
    gate: GateAnswer
    nonfinite: Annotated[str, Field(description="as asked for")]
    certificate: Certificate
    digests: Annotated[dict[str, str], Field(description=f"SHA-256 of each tensor as it was given, class indices as int64: {_SHA}")]
    engine: Engine
    reference: Annotated[Metrics | None, Field(description="the figures of the reference, where one was given")] = None
    sample: Annotated[
        Sampled | None, Field(description="the rows judged, where some were asked for: metrics, worst and bound are of these")
    ] = None
    truth: Annotated[Elements | None, Field(description="the truth, correctly rounded; only on request")] = None
    repro: Annotated[Repro | None, Field(description="the smallest case found that has the verdict; only on request")] = None


class EvaluateResponse(BaseModel):
    """Formats outermost, variants within."""

    op: str
    rows: Annotated[int, Field(description="rows of logits")]
    n: Annotated[int, Field(description="logits per row")]
    logits_digest: Annotated[str, Field(description=_DIGEST)]
    nonfinite: Annotated[str, Field(description="as asked for")]
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
    hex: Annotated[Texts, Field(description="the midpoint of the enclosure, exact, as a hex float of as many digits as it takes")]
    radius_log2: Annotated[
        int | None, Field(description="log2 of the relative radius of the worst element; null where all are exact")
    ]
    certificate: Certificate
    logits_digest: Annotated[str, Field(description=_DIGEST)]
    nonfinite: Annotated[str, Field(description="as asked for")]
    engine: Engine


_LIMIT_VALUE = "the last number, or count, up to which it holds; null where it always or never does"
_LIMIT_NEXT = "the one after it, at which it does not hold; null: it always holds"
_LIMIT_SEARCH = "exhaustive: all numbers were tried; bisection: a spread, sections and neighbours; theorem: none had to be"
_LIMIT_CHECKED = "numbers tried, of a bisection those next to the limit, on both sides"
_LIMIT_SHARP = "whether it holds for none of the numbers beyond that were tried, and enough were; if not, `beyond` says why"


class Limit(BaseModel):
    """How far one thing holds."""

    name: Annotated[str, Field(description="what is asked: see README, Limits")]
    value: Annotated[SafeFloat | None, Field(description=_LIMIT_VALUE)]
    next: Annotated[SafeFloat | None, Field(description=_LIMIT_NEXT)]
    result: Annotated[SafeFloat | None, Field(description="what comes out there, of one element")]
    kind: Annotated[Literal["nan", "infinite", "zero", "stalled"] | None, Field(description="what that is")]
    beyond: Annotated[str, Field(description="the same in words, with the step that broke; or that it always holds")]
    search: Annotated[Literal["exhaustive", "bisection", "theorem"], Field(description=_LIMIT_SEARCH)]
    checked: Annotated[int, Field(description=_LIMIT_CHECKED)]
    sharp: Annotated[bool, Field(description=_LIMIT_SHARP)]


class ThresholdsResponse(BaseModel):
    """The limits of a variant in one arithmetic, for rows of n logits."""

    op: str
    variant: Annotated[str, Field(description="its name without that of the op")]
    format: str
    n: int
    summation: str
    arithmetic: Arithmetic
    engine: Engine
    limits: list[Limit]


_POINTER = "JSON pointer into the body (for a tensor in a file: to its place there), or the name of a header or parameter"


class Error(BaseModel):
    """One thing that is wrong."""

    pointer: Annotated[str, Field(description=_POINTER)]
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


class VariantParameter(BaseModel):
    """What a variant can be told in its name."""

    type: Literal["number", "integer", "format"]
    default: float | str
    low: float | None = None
    high: float | None = None


class VariantRow(BaseModel):
    """A built-in variant."""

    op: str
    name: str
    formula: str
    source: Annotated[str, Field(description="where the formula is from")]
    hazard: Annotated[str, Field(description="what goes wrong, and where")]
    issues: Annotated[list[str], Field(description="reports of software that shipped it so: owner/repository#number")]
    stable: Annotated[bool, Field(description="whether it is one to be recommended")]
    axes: Annotated[list[str], Field(description="what of the arithmetic changes its result")]
    claims: Annotated[list[str], Field(description="what it is tested to keep, in every format")]
    params: Annotated[list[str], Field(description="params that it sees to in its own way; the others are seen to around it")]
    needs: Annotated[list[str], Field(description="params without which it cannot be run, and is not in the default")]
    parameters: Annotated[dict[str, VariantParameter], Field(description="given in the name, as in tiled(tile=64)")]
    bound: Annotated[str, Field(description="its a-priori error bound")]


class VariantsResponse(BaseModel):
    """The built-in variants."""

    variants: list[VariantRow]


class FormatsResponse(BaseModel):
    """The formats."""

    formats: list[dict[str, Any]]


class SummationsResponse(BaseModel):
    """How a variant may add."""

    summations: list[dict[str, Any]]


class InputsResponse(BaseModel):
    """The seeded input families and their parameters."""

    inputs: list[dict[str, Any]]


class PoliciesResponse(BaseModel):
    """The policies of verify, with their parameters and sources."""

    policies: list[dict[str, Any]]


class HealthResponse(BaseModel):
    """live or ready."""

    status: str
