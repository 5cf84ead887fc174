"""Policies: named rules of tolerance, each a row; a gate is one of them with its parameters.

The default, `bound`, asks what error theory allows a right implementation on this very input (engine.bounds). `max_ulp`,
`faithful` and `correctly_rounded` are demands. The others are what test-suites in use compare with, made of rtol and atol,
"expected" being the truth itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from engine import bounds, variants
from engine.bounds import Declared, Tolerance
from engine.errors import InvalidProblem, UnknownName, quoted
from engine.formats import FORMATS, Format
from engine.model import Gate, Metrics
from engine.parameters import Choice, FormatName, Number, Parameter, Value
from engine.registry import Registry
from engine.summation import SUMMATIONS

HALF = 0.5
"""ULPs below which no tolerance of the default gate falls: what is correctly rounded passes."""
DEFAULT_ULPS = 2.0
"""ULPs that exp and log may be off by under the default gate: CUDA's expf has 2, glibc's and NumPy's are below."""

Given = Mapping[str, Value]
Make = Callable[[str, Format, Given], Tolerance]
Broken = Callable[[Metrics, Metrics | None, Given], bool]
"""Whether a demand is broken, by the figures of an output and of the reference."""


@dataclass(frozen=True)
class Policy:
    """A rule of tolerance. kind: "bound", "demand" or "allclose"; or "reference", which compares with the errors of another output.

    tolerance(op, format of the output, parameters): what an element may be off by. broken: where figures decide, not that alone.
    needs: parameters that have no default. pairs: rtol and atol by format, where they differ.
    """

    name: str
    kind: str
    rule: str
    source: str
    tolerance: Make
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    broken: Broken | None = None
    pairs: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def check(self, given: Mapping[str, object], partly: bool = False) -> dict[str, Value]:
        """The parameters that were given, checked; partly: though others are needed. Raises UnknownName, InvalidProblem."""
        known = ", ".join(self.parameters) or "none"
        for name in given:
            if name not in self.parameters:
                raise UnknownName(f"policy {self.name} has no parameter {quoted(name)}; known: {known}")
        for name in self.needs:
            if name not in given and not partly:
                raise InvalidProblem(f"policy {self.name} needs {name}: {self.rule}")
        return {name: self.parameters[name].check(name, value) for name, value in given.items()}


POLICIES: Registry[Policy] = Registry("policy")


# ---- the default gate ------------------------------------------------------------------------------------------------


def _wider(fmt: Format) -> Format:
    """The wider of the output's format and float32."""
    return fmt if fmt.precision > 24 else FORMATS["float32"]


def tight(op: str, fmt: Format) -> Tolerance:
    """What the default gate allows an output in that format: the bound of the op's stable variant, computing in the wider of the
    format and float32, exp and log to 2 ulp, exp2 domain or not, summed by any number of threads; never less than half an ulp."""
    compute = _wider(fmt).name
    return Tolerance((_declared(op, compute, compute, fmt.name, "parallel"),), ulps=HALF)


def wide(op: str, fmt: Format) -> Tolerance:
    """What some arithmetic in use may still do: the largest of the bounds of float32 summed in sequence with subnormals flushed, of
    arithmetic wholly in the output's format summed pairwise, and of `tight`, which allows short rows more than those. One that
    overflows on a row excuses nothing there, and the flush is that of the computing format: no processor flushes what it rounds to
    16 bits, or a softmax of zeros would be excused."""
    compute = _wider(fmt).name
    sums = _declared(op, compute, compute, fmt.name, "sequential", flush=True)
    return Tolerance((sums, _declared(op, fmt.name, fmt.name, fmt.name, "pairwise"), *tight(op, fmt).declared), ulps=HALF)


def _declared(op: str, compute: str, accumulator: str, output: str, summation: str, flush: bool = False) -> Declared:
    return Declared(
        bounds.reference(op), compute, accumulator, output, summation, DEFAULT_ULPS, DEFAULT_ULPS, 3, flush, delivered=True
    )  # fmt: skip


def _bound(op: str, fmt: Format, given: Given) -> Tolerance:
    """The default, or the bound of what is declared."""
    if not given:
        return tight(op, fmt)
    compute = str(given.get("compute", _wider(fmt).name))
    algorithm = str(given.get("algorithm", bounds.REFERENCE[op]))
    exp = given.get("exp", "exp2")
    k = Declared(
        variant=_bounded(op, algorithm),
        format=compute,
        accumulator=str(given.get("accumulator", compute)),
        output=fmt.name,
        summation=str(given.get("summation", "parallel")),
        exp_ulps=float(given.get("exp_ulp", HALF if exp == "correct" else DEFAULT_ULPS)),
        log_ulps=float(given.get("log_ulp", DEFAULT_ULPS)),
        kappa=3 if exp == "exp2" else 1,
        flush=given.get("subnormals", "gradual") == "flush",
    )
    return Tolerance((k,), factor=float(given.get("factor", 1.0)), ulps=HALF)


def _bounded(op: str, algorithm: str) -> str:
    """The key of a variant that has a bound."""
    row = variants.find(op, algorithm)
    if row.name.partition("(")[0] not in (known := bounds.bounded(op)):
        raise InvalidProblem(
            f"algorithm {quoted(row.name)} has no bound: {bounds.rule(row.key)}; of {op} these have: {', '.join(known)}"
        )
    return row.key


POLICIES.add(
    "bound",
    Policy(
        "bound",
        "bound",
        "abs(c - T) <= what error theory allows a right implementation on this input (the bound of the op's stable variant), never "
        "less than half an ulp; with any parameter, what it allows the algorithm so declared",
        "Blanchard, Higham and Higham, doi 10.1093/imanum/draa038; derived line by line in engine/bounds.py",
        _bound,
        {
            "factor": Number(1.0, 0.0, 1e6),
            "algorithm": Choice("the op's stable variant"),
            "exp": Choice("exp2", ("numpy", "correct", "exp2")),
            "exp_ulp": Number(DEFAULT_ULPS, HALF, 1e6),
            "log_ulp": Number(DEFAULT_ULPS, HALF, 1e6),
            "compute": FormatName("float32"),
            "accumulator": FormatName("float32"),
            "summation": Choice("parallel", ("parallel", *SUMMATIONS)),
            "subnormals": Choice("gradual", ("gradual", "flush")),
        },
    ),
)


# ---- demands ---------------------------------------------------------------------------------------------------------

for _row in (
    Policy(
        "max_ulp", "demand", "ULP error <= ulps", "Muller et al., Handbook of Floating-Point Arithmetic, 2.3",
        lambda _op, _fmt, given: Tolerance(ulps=float(given["ulps"])), {"ulps": Number(1.0, 0.0, 1e15)}, ("ulps",),
    ),
    Policy(
        "faithful", "demand", "one of the two neighbours of the truth: ULP error < 1, and < 1/2 in the binade below",
        "Handbook of Floating-Point Arithmetic, 2.2",
        lambda *_: Tolerance(ulps=1.0, outside=True),
    ),
    Policy(
        "correctly_rounded", "demand", "the truth, correctly rounded", "IEEE 754-2019, clause 4.3", lambda *_: Tolerance(ulps=HALF),
        broken=lambda found, _reference, _given: found.correctly_rounded < found.n,
    ),
    Policy(
        "numpy.ulp", "demand", "at most maxulp representable numbers between output and truth, rounded",
        "numpy.testing.assert_array_max_ulp",
        lambda _op, _fmt, given: Tolerance(ulps=float(given.get("maxulp", 1.0)) + HALF), {"maxulp": Number(1.0, 0.0, 1e15)},
        broken=lambda found, _reference, given: (found.max_ulp_ordinal or 0) > float(given.get("maxulp", 1.0)),
    ),
):  # fmt: skip
    POLICIES.add(_row.name, _row)


# ---- rtol and atol ---------------------------------------------------------------------------------------------------


def _allclose(_op: str, _fmt: Format, given: Given) -> Tolerance:
    return Tolerance(relative=float(given["rtol"]), absolute=float(given["atol"]))


_SUM = "abs(c - T) <= atol + rtol abs(T)"
_TOLERANCE = Number(0.0, 0.0, 1e300)
POLICIES.add(
    "allclose",
    Policy(
        "allclose", "allclose", _SUM, "numpy.allclose, with rtol and atol of your own", _allclose,
        {"rtol": _TOLERANCE, "atol": _TOLERANCE}, ("rtol", "atol"),
    ),
)  # fmt: skip

_E4M3, _E5M2 = "float8_e4m3fn", "float8_e5m2"
_EVERY = tuple(FORMATS)


def _table(name: str, source: str, pairs: Mapping[str, tuple[float, float]], larger: bool = False) -> None:
    """A policy of fixed (rtol, atol) by format of the output."""

    def tolerance(_op: str, fmt: Format, _given: Given) -> Tolerance:
        if fmt.name not in pairs:
            raise InvalidProblem(
                f"policy {name} has no tolerance for {fmt.name}; it has one for {', '.join(pairs)}; allclose takes any"
            )
        relative, absolute = pairs[fmt.name]
        return Tolerance(relative=relative, absolute=absolute, larger=larger)

    rule = "abs(c - T) <= max(atol, rtol abs(T))" if larger else _SUM
    POLICIES.add(name, Policy(name, "allclose", f"{rule}, by format", source, tolerance, pairs=pairs))


def _same(formats: tuple[str, ...], relative: float, absolute: float) -> dict[str, tuple[float, float]]:
    return dict.fromkeys(formats, (relative, absolute))


_TORCH = {"float16": (1e-3, 1e-5), "bfloat16": (1.6e-2, 1e-5), "float32": (1.3e-6, 1e-5), "float64": (1e-7, 1e-7)}
_table("torch.assert_close", "torch/testing/_comparison.py@003029b", _TORCH)
_table("numpy.allclose", "numpy.allclose, its defaults", _same(_EVERY, 1e-5, 1e-8))
_table("numpy.assert_allclose", "numpy.testing.assert_allclose, its defaults", _same(_EVERY, 1e-7, 0.0))
_JAX = {"float16": 1e-3, "bfloat16": 1e-2, "float32": 1e-6, "float64": 1e-15, _E4M3: 1e-1, _E5M2: 1e-1}
_table("jax.default", "jax/_src/public_test_util.py, default_tolerance", {name: (t, t) for name, t in _JAX.items()})
_JAX_GRAD = {"float16": 1e-2, "bfloat16": 1e-1, "float32": 2e-3, "float64": 1e-5}
_table("jax.grad", "jax/_src/public_test_util.py, default_gradient_tolerance", {name: (t, t) for name, t in _JAX_GRAD.items()})
_TF = {"float16": 1e-3, "bfloat16": 1e-2, "float32": 1e-6, "float64": 1e-6}
_table(
    "tf.assertAllCloseAccordingToType", "tensorflow/python/framework/test_util.py", {name: (t, t) for name, t in _TF.items()}
)  # fmt: skip
_table("onnx.backend", "onnx/backend/test/runner", _same(("float16", "bfloat16", "float32", "float64"), 1e-3, 1e-7))
_ORT = {"float16": (1e-3, 2.5e-3), "bfloat16": (1e-2, 2e-2), "float32": (1e-4, 1e-5), "float64": (1e-5, 1e-5)}
_table("ort.cpu", "onnxruntime/test/unittest_util/checkers.cc@102e952", _ORT)
_TE = _TORCH | {_E4M3: (0.125, 0.0675), _E5M2: (0.25, 0.125)}
_table("te.dtype_tols", "TransformerEngine tests/pytorch/utils.py@009e651", _TE)
_table(
    "liger.ce", "Liger-Kernel test/transformers/test_cross_entropy.py@ead96b6", {"bfloat16": (5e-2, 1e-8), "float32": (1e-6, 1e-8)}
)
_table(
    "liger.softmax", "Liger-Kernel test/transformers/test_softmax.py@ead96b6", {"bfloat16": (5e-2, 5e-2), "float32": (1e-5, 1e-5)}
)  # fmt: skip
_table("xnnpack", "XNNPACK@75db3c0, softmax tests", {"float16": (5e-3, 1e-4), "float32": (1e-5, 0.0)}, larger=True)
_FLASH = {"float32": (1e-5, 1e-6), "float16": (1e-3, 1e-4), "bfloat16": (1e-3, 1e-4)}
_table(
    "flash.ce",
    "flash-attention tests/losses/test_cross_entropy.py@0251105; of the loss the float32 row, whatever its format",
    _FLASH,
)


def _normwise(op: str, fmt: Format, given: Given) -> Tolerance:
    if f"{op}/normwise" not in bounds.NORMWISE:
        raise InvalidProblem(f"policy bhh.bound is for softmax and logsumexp, not for {quoted(op)}; take bound")
    compute = str(given.get("compute", fmt.name))
    k = Declared(f"{op}/normwise", compute, compute, fmt.name, "sequential", HALF, HALF)
    return Tolerance((k,), factor=float(given.get("factor", 1.0)))


POLICIES.add(
    "bhh.bound",
    Policy(
        "bhh.bound", "allclose", "abs(c - T) <= factor u (n + 3) max T of the row; of logsumexp factor u (abs(T) + n + 1)",
        "Blanchard, Higham and Higham, doi 10.1093/imanum/draa038, theorems 3.2 and 3.3: norm-wise, to first order", _normwise,
        {"factor": Number(1.0, 0.0, 1e6), "compute": FormatName("that of the output")},
    ),
)  # fmt: skip


# ---- of a reference --------------------------------------------------------------------------------------------------


def _farther(found: Metrics, reference: Metrics | None, given: Given) -> bool:
    """Whether the largest error is more than so many times the reference's. Raises InvalidProblem without one."""
    if reference is None:
        raise InvalidProblem("policy flash.2x compares with the errors of a reference; give one: an output of the same shape")
    if found.max_abs is None or reference.max_abs is None:
        return False
    return found.max_abs > float(given.get("factor", 2.0)) * reference.max_abs + float(given.get("atol", 0.0))


POLICIES.add(
    "flash.2x",
    Policy(
        "flash.2x", "reference", "max abs(c - T) <= factor max abs(reference - T) + atol",
        "flash-attention tests/test_flash_attn.py",
        lambda *_: Tolerance(), {"factor": Number(2.0, 0.0, 1e6), "atol": Number(0.0, 0.0, 1e300)}, broken=_farther,
    ),
)  # fmt: skip


def _fudged(found: Metrics, reference: Metrics | None, given: Given) -> bool:
    """Whether the mean error is more than so many times the reference's. Raises InvalidProblem without one."""
    if reference is None:
        raise InvalidProblem(
            "policy torch.flex_fudge compares with the errors of a reference; give one: an output of the same shape"
        )
    if found.total_variation is None or reference.total_variation is None:
        return False
    return found.total_variation.mean > float(given["factor"]) * reference.total_variation.mean


def _of_softmax(op: str, _fmt: Format, _given: Given) -> Tolerance:
    if op != "softmax":
        raise InvalidProblem(f"policy torch.flex_fudge is for softmax, not for {quoted(op)}; take flash.2x")
    return Tolerance()


POLICIES.add(
    "torch.flex_fudge",
    Policy(
        "torch.flex_fudge", "reference", "mean abs(c - T) <= factor mean abs(reference - T); in use: 10 (float32), 1.1 (16 bits)",
        "PyTorch test/inductor/test_flex_attention.py; the means are twice those of total_variation over n", _of_softmax,
        {"factor": Number(10.0, 0.0, 1e6)}, ("factor",), broken=_fudged,
    ),
)  # fmt: skip


BOUND_PARAMETERS = tuple(POLICIES["bound"].parameters)
"""What may be declared of an arithmetic."""


def find(gate: Gate) -> tuple[Policy, dict[str, Value]]:
    """The policy of a gate, and its parameters, checked. Raises UnknownName, InvalidProblem."""
    policy = POLICIES[gate.policy]
    return policy, policy.check(gate.parameters)


def check_gate(gate: Gate, partly: bool = False) -> None:
    """Raises UnknownName and InvalidProblem for a gate that there is not; partly: it may lack parameters that are needed."""
    POLICIES[gate.policy].check(gate.parameters, partly)
