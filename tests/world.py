"""The world's bugs: outputs as software in use has given them, made again from the reports, with what a right kernel gives.

Each row of BUGS is a function that makes a problem and the output of a kernel with that bug: the same wrong formula, order or
format, in the engine's own arithmetic with correctly rounded exponentials, or written out in NumPy. The engine's judgement of
them is tests/test_world.py; the table of them in README.md is `table()`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from engine import params as around
from engine import variants
from engine.arithmetic import Arithmetic
from engine.formats import FORMATS, Format, of, round_array, widen
from engine.model import NO_PARAMS, Array, Axes, Params, Problem
from engine.ops import output_shape
from engine.truth import certified

HALF, BRAIN, SINGLE, DOUBLE = np.float16, ml_dtypes.bfloat16, np.float32, np.float64
INF, NAN = math.inf, math.nan
Made = tuple[Problem, Array]
Make = Callable[[], Made]


@dataclass(frozen=True)
class Bug:
    """One bug. issues: where it was reported, as owner/repository#number; op; format: of the output; symptom: what goes wrong, in
    one sentence; cause: words one of which a finding must have to name the cause; verdict: of the gate; make: the problem and the
    wrong output.

    gate: the policy that finds it, "bound" (the default) for all but those that stable kernels share; nonfinite: the policy for
    rows without a truth; right: the variant of a right kernel, computing in float32 or wider, None where no built-in one is.
    """

    name: str
    issues: tuple[str, ...]
    op: str
    format: str
    symptom: str
    cause: tuple[str, ...]
    verdict: str
    make: Make
    gate: str = "bound"
    nonfinite: str = "ieee"
    right: str | None = ""


BUGS: dict[str, Bug] = {}

RIGHT = {
    "softmax": "shifted",
    "log_softmax": "shifted",
    "logsumexp": "shifted",
    "cross_entropy": "split",
    "cross_entropy_grad": "others",
    "softmax_vjp": "shifted",
}
"""The variants that right kernels are made of."""


def bug(
    issues: str,
    op: str,
    format: str,
    symptom: str,
    cause: str,
    verdict: str = "fail",
    gate: str = "bound",
    nonfinite: str = "ieee",
    right: str | None = "",
) -> Callable[[Make], Make]:
    """Add a row, of the name of the function. issues: between spaces; cause: words between bars."""

    def add(make: Make) -> Make:
        reported, words = tuple(issues.split()), tuple(cause.split("|"))
        row = Bug(make.__name__, reported, op, format, symptom, words, verdict, make, gate, nonfinite, right)
        BUGS[row.name] = row
        return make

    return add


def rights(row: Bug, problem: Problem) -> dict[str, Array]:
    """What right kernels give: the truth, correctly rounded, and a stable variant computing in float32 or wider."""
    fmt = FORMATS[row.format]
    found = {"correctly rounded": _given_rows(row, problem, certified(problem, fmt).rounded())}
    variant = RIGHT[row.op] if row.right == "" else row.right
    if variant is not None:
        wide = row.format if fmt.precision > 24 else "float32"
        found[variant] = _given_rows(row, problem, ran(problem, variant, wide, output=row.format))
    return found


def _given_rows(row: Bug, problem: Problem, output: Array) -> Array:
    """With 0, or 1/n, in the rows that are all -inf, where the policy says so."""
    if row.nonfinite == "ieee":
        return output
    masked = np.all(widen(problem.logits) == -INF, axis=-1, keepdims=True)
    value = 0.0 if row.nonfinite == "masked_zero" else 1 / problem.logits.shape[-1]
    return np.where(masked, np.array(value).astype(output.dtype), output)


# ---- means -----------------------------------------------------------------------------------------------------------


def ran(
    problem: Problem,
    variant: str,
    format: str,
    summation: str = "pairwise",
    accumulator: str | None = None,
    output: str | None = None,
    fma: bool = False,
) -> Array:
    """The output of a built-in variant, exponentials correctly rounded, its tensors rounded to the format first."""
    k = Arithmetic(FORMATS[format], summation, axes=Axes(accumulator, "correct", fma=fma, output_format=output))
    return around.run(variants.find(problem.op, variant), cast(problem, k.fmt), k)


def cast(problem: Problem, fmt: Format) -> Problem:
    """The problem with its real tensors rounded to a format."""

    def rounded(a: Array | None) -> Array | None:
        return a if a is None or a.dtype.kind in "iu" else round_array(a, fmt)

    return replace(
        problem,
        logits=round_array(problem.logits, fmt),
        targets=rounded(problem.targets),
        grad_output=rounded(problem.grad_output),
    )


def normal(seed: int, *shape: int, scale: float = 1.0) -> NDArray[np.float64]:
    """Normal numbers, the same everywhere."""
    rng = random.Random(seed)
    return np.array([rng.gauss(0, scale) for _ in range(math.prod(shape))]).reshape(shape)


def uniform(seed: int, *shape: int, low: float = 0.0, high: float = 1.0) -> NDArray[np.float64]:
    """Uniform numbers, the same everywhere."""
    rng = random.Random(seed)
    return np.array([rng.uniform(low, high) for _ in range(math.prod(shape))]).reshape(shape)


def softmax(x: Sequence[object] | Array, dtype: DTypeLike) -> Problem:
    """A softmax problem."""
    return Problem("softmax", np.asarray(x).astype(dtype))


def log_softmax(x: Sequence[object] | Array, dtype: DTypeLike) -> Problem:
    """A log-softmax problem."""
    return Problem("log_softmax", np.asarray(x).astype(dtype))


def loss(x: Sequence[object] | Array, targets: object, dtype: DTypeLike, params: Params = NO_PARAMS) -> Problem:
    """A cross-entropy problem; targets: class indices, or distributions of the logits' dtype."""
    y = np.asarray(targets)
    return Problem("cross_entropy", np.asarray(x).astype(dtype), y if y.dtype.kind in "iu" else y.astype(dtype), None, params)


def confident(n: int, p: float, dtype: DTypeLike) -> Problem:
    """The gradient at a target of probability p, all other logits 0."""
    x = np.zeros((1, n))
    x[0, 3] = math.log(p * (n - 1) / (1 - p))
    return Problem("cross_entropy_grad", x.astype(dtype), np.array([3]))


def plain_softmax(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """exp(x - max) / sum in float32."""
    problem = Problem("softmax", x)
    return ran(problem, "shifted", "float32")


# ---- sums in 16 bits -------------------------------------------------------------------------------------------------


@bug(
    "huggingface/candle#3727 huggingface/candle#3717",
    "softmax",
    "float16",
    "4,096 equal logits get 1/2048: a sum in order in float16 stops at 2048, and the row sums to 2",
    "stood still|stall",
)
def sum_stalls_in_float16() -> Made:
    problem = softmax(np.zeros((1, 4096)), HALF)
    return problem, ran(problem, "shifted", "float16", "sequential")


@bug(
    "pytorch/executorch#20089 pytorch/executorch#20090",
    "softmax",
    "bfloat16",
    "512 equal logits get 1/256: a sum in order in bfloat16 stops at 256",
    "stood still|stall",
)
def sum_stalls_in_bfloat16() -> Made:
    problem = softmax(np.zeros((1, 512)), BRAIN)
    return problem, ran(problem, "shifted", "bfloat16", "sequential")


@bug(
    "sonos/tract#2586 sonos/tract#2587",
    "softmax",
    "float16",
    "normal logits with σ = 0.5, row length 4,096: what a float16 sum drops makes every probability too large",
    "absorbed|stood still|stall",
)
def sum_drops_terms_in_float16() -> Made:
    problem = softmax(normal(1, 1, 4096, scale=0.5), HALF)
    return problem, ran(problem, "shifted", "float32", "sequential", accumulator="float16", output="float16")


@bug(
    "tenstorrent/tt-metal#52045 tenstorrent/tt-metal#53643",
    "softmax",
    "bfloat16",
    "a row of 8,192 sums to 0.93: the running sum is kept in 16 bits, tile by tile",
    "bfloat16 sums|in bfloat16",
    "inconclusive",
)
def running_sum_in_16_bits() -> Made:
    problem = softmax(np.concatenate([normal(2, 1, 8192), normal(4, 1, 8192)]), BRAIN)
    e = np.exp(widen(problem.logits) - widen(problem.logits).max(axis=-1, keepdims=True)).astype(BRAIN).astype(SINGLE)
    total = np.zeros((2, 1), BRAIN)
    for tile in np.split(e, 256, axis=-1):
        total = total + tile.sum(axis=-1, keepdims=True, dtype=SINGLE).astype(BRAIN)
    return problem, (e / total.astype(SINGLE)).astype(BRAIN)


@bug(
    "microsoft/onnxruntime#24577",
    "softmax",
    "float16",
    "66,000 equal logits get 0: the sum of their exponentials overflows float16",
    "overflow|exceeds the largest",
)
def sum_overflows_in_float16() -> Made:
    problem = softmax(np.zeros((1, 66_000)), HALF)
    return problem, ran(problem, "shifted", "float16", "pairwise")


@bug(
    "google-research/last#43",
    "logsumexp",
    "float16",
    "65,536 zeros give inf instead of 11.09: the sum of shifted exponentials overflows float16",
    "overflow|exceeds the largest",
)
def logsumexp_of_many_zeros() -> Made:
    problem = Problem("logsumexp", np.zeros((1, 65_536), HALF))
    return problem, ran(problem, "shifted", "float16", "pairwise")


# ---- terms that are none, and results that are not written -----------------------------------------------------------


@bug(
    "pytorch/pytorch#84144",
    "softmax",
    "float32",
    "the last rows of a batch are 0: indices overflow (there beyond 2^32 elements), and those rows are not written",
    "written",
)
def last_rows_not_written() -> Made:
    problem = softmax(normal(32, 8, 100), SINGLE)
    output = plain_softmax(problem.logits)
    output[5:] = 0
    return problem, output


def _past_the_end(x: NDArray[np.float64], threads: int) -> Array:
    """Softmax by blocks of threads of which each reads one element, though the row has fewer: odd rows, which are not aligned,
    are read into the next one."""
    output = np.empty_like(x)
    flat, n = x.reshape(-1), x.shape[1]
    for row in range(len(x)):
        read = flat[row * n : row * n + (threads if row % 2 else n)]
        top = read.max()
        output[row] = np.exp(x[row] - top) / np.exp(read - top).sum()
    return output


@bug(
    "pytorch/pytorch#147284",
    "softmax",
    "float64",
    "781 equal logits get 1/799 in every second row: the sum reads past the end of the row",
    "denominator",
)
def sum_reads_past_the_row() -> Made:
    problem = softmax(np.zeros((3, 781)), DOUBLE)
    return problem, _past_the_end(problem.logits, 799)


@bug(
    "pytorch/pytorch#143644",
    "softmax",
    "float64",
    "517 random logits sum to 0.7 in some rows: the sum has terms of the next row",
    "denominator",
)
def sum_has_terms_of_the_next_row() -> Made:
    x = normal(3, 3, 517)
    x[2, :26] += 2.0
    problem = softmax(x, DOUBLE)
    return problem, _past_the_end(problem.logits, 543)


@bug(
    "tracel-ai/burn#4815 flagos-ai/Torch-FL#171 ROCm/rocm-libraries#11387",
    "softmax",
    "float32",
    "each row is the softmax of other logits: those side by side in memory, as if the tensor were not a transposed one",
    "transposed|other logits|another order",
)
def strides_are_ignored() -> Made:
    stored = np.arange(1.0, 13.0).reshape(3, 4)
    return softmax(stored.T, SINGLE), plain_softmax(stored.reshape(4, 3).astype(SINGLE))


@bug(
    "flashinfer-ai/flashinfer#4502 tenstorrent/tt-metal#50082",
    "softmax",
    "float32",
    "probabilities below 2^-126 are 0: the exponential of at most -126 is made 0, or the device flushes subnormals",
    "flushed",
    "inconclusive",
)
def subnormals_are_flushed() -> Made:
    problem = softmax([[0.0, -20.0, -87.0, -88.0, -90.0, -95.0, -100.0, -103.0]], SINGLE)
    exponents = problem.logits * SINGLE(math.log2(math.e))
    with np.errstate(under="ignore"):
        e = np.where(exponents <= -126, SINGLE(0), np.exp2(exponents))
    return problem, e / e.sum(axis=-1, keepdims=True)


def _inf_times_0_is_0(x: Array, dtype: DTypeLike) -> Array:
    """Exponentials times 1 / sum, with no maximum subtracted, on a device where inf * 0 is 0."""
    with np.errstate(all="ignore"):
        e = np.exp(widen(x).astype(SINGLE))
        p = e * (1 / e.sum(axis=-1, keepdims=True, dtype=SINGLE))
    return np.asarray(np.where(np.isinf(e), 0, p).astype(dtype))


@bug(
    "tenstorrent/tt-metal#52131 tenstorrent/tt-metal#52315",
    "softmax",
    "float32",
    "rows of 32 logits about 89 are all 0: exponentials overflow without the maximum, and the device makes 0 of them",
    "overflow|exceeds the largest",
)
def zeros_above_the_exp_limit() -> Made:
    problem = softmax(89 + uniform(4, 2, 32), SINGLE)
    return problem, _inf_times_0_is_0(problem.logits, SINGLE)


@bug(
    "tenstorrent/tt-metal#52131",
    "softmax",
    "bfloat16",
    "the same in bfloat16, one row in two: the rows of small logits are right",
    "overflow|exceeds the largest",
)
def zeros_in_one_row() -> Made:
    problem = softmax(np.concatenate([normal(5, 1, 128), 100 + normal(6, 1, 128)]), BRAIN)
    rows = [_inf_times_0_is_0(row[None], BRAIN) for row in problem.logits]
    return problem, np.concatenate(rows)


@bug(
    "flashinfer-ai/flashinfer#4267 flashinfer-ai/flashinfer#4450",
    "softmax",
    "float32",
    "[-245000, -244990] gives [0, 0]: the running maximum starts at -50000, every exponential underflows",
    "finite_sentinel|underflow",
)
def maximum_starts_at_a_finite_number() -> Made:
    problem = softmax([[-245000.0, -244990.0]], SINGLE)
    return problem, _with_floors(problem.logits, -5e4, 1e-30)


@bug(
    "tracel-ai/burn#4697",
    "softmax",
    "float32",
    "logits below -10000 give 0: the maximum is not let below that, nor the sum below 1e-6",
    "finite_sentinel|underflow",
)
def maximum_and_sum_are_clamped() -> Made:
    problem = softmax(-12000 + normal(7, 1, 8), SINGLE)
    return problem, _with_floors(problem.logits, -1e4, 1e-6)


def _with_floors(x: NDArray[np.float32], least_max: float, least_sum: float) -> Array:
    with np.errstate(under="ignore"):
        e = np.exp(x - np.maximum(x.max(axis=-1, keepdims=True), SINGLE(least_max)))
    return np.asarray(e / np.maximum(e.sum(axis=-1, keepdims=True), SINGLE(least_sum)), SINGLE)


# ---- no maximum, or a wrong one --------------------------------------------------------------------------------------


@bug(
    "pytorch/pytorch#62897 pytorch/pytorch#63132",
    "softmax",
    "bfloat16",
    "the rows that a vector takes are NaN at logits of 1000, those of the scalar rest are right: one path forgot the maximum",
    "overflow|exceeds the largest",
)
def vector_path_forgets_the_maximum() -> Made:
    problem = softmax(1000 + 8 * normal(8, 17, 3), BRAIN)
    output = ran(problem, "shifted", "float32", output="bfloat16")
    output[:16] = ran(replace(problem, logits=problem.logits[:16]), "naive", "float32", output="bfloat16")
    return problem, output


@bug(
    "microsoft/onnxruntime#2715 FluxML/NNlib.jl#43 tenstorrent/tt-metal#4173",
    "softmax",
    "float32",
    "a row of logits below -200 is NaN: the maximum is at least 0, so nothing is shifted, and 0 / 0",
    "wrong_shift|0 / 0",
)
def maximum_is_at_least_zero() -> Made:
    problem = softmax(uniform(9, 1, 16) - 200, SINGLE)
    return problem, ran(problem, "wrong_shift", "float32")


@bug(
    "NVIDIA/FasterTransformer#43",
    "softmax",
    "float16",
    "attention scores that exp cannot take in the format give NaN: no maximum is subtracted",
    "overflow|exceeds the largest",
)
def no_maximum_in_float16() -> Made:
    problem = softmax(12 + normal(10, 2, 64), HALF)
    return problem, ran(problem, "naive", "float16")


@bug(
    "onnx/onnx-mlir#365 openvinotoolkit/openvino#35648",
    "logsumexp",
    "float32",
    "logits about 100 give inf: log(sum(exp(x))) without the maximum",
    "overflow|exceeds the largest",
)
def log_of_an_infinite_sum() -> Made:
    problem = Problem("logsumexp", (100 + normal(11, 3, 4)).astype(SINGLE))
    return problem, ran(problem, "naive", "float32")


@bug(
    "cornell-brg/hb-pytorch#61",
    "log_softmax",
    "float32",
    "a row of one logit, 88.72284, gives -inf instead of 0: exp overflows at the first number beyond its limit",
    "overflow|exceeds the largest",
)
def log_softmax_at_the_exp_limit() -> Made:
    problem = log_softmax([[88.72284]], SINGLE)
    return problem, ran(problem, "naive", "float32")


@bug(
    "pytorch/pytorch#158310",
    "log_softmax",
    "float16",
    "pairs of logits about -20000 give -inf where the truth is 0",
    "infinite",
)
def log_softmax_minus_infinity() -> Made:
    problem = log_softmax(uniform(12, 8, 2, low=-20260, high=-19740), HALF)
    top = problem.logits.max(axis=-1, keepdims=True)
    d = problem.logits - np.roll(top, 1, axis=0)  # how the kernel came to it is not told: here by another row's maximum
    with np.errstate(over="ignore", divide="ignore"):
        log = np.log(np.exp(d).sum(axis=-1, keepdims=True))
        return problem, (d - log).astype(HALF)


# ---- x - logsumexp instead of (x - max) - log(sum) -------------------------------------------------------------------


@bug(
    "pytorch/pytorch#38839",
    "log_softmax",
    "float32",
    "rand(4, 3) - 1e7 gives integers: max + log(sum) is rounded at 1e7 before it is subtracted",
    "subtractive|with the offset",
)
def log_softmax_of_large_logits() -> Made:
    problem = log_softmax(uniform(13, 4, 3) - 1e7, SINGLE)
    return problem, ran(problem, "subtractive", "float32")


@bug(
    "ml-explore/mlx#4169",
    "log_softmax",
    "float32",
    "two logits of 1e4 give -0.693359, off in the fourth digit: logsumexp is rounded at 1e4",
    "subtractive|with the offset",
)
def log_softmax_at_ten_thousand() -> Made:
    problem = log_softmax([[1e4, 1e4]], SINGLE)
    return problem, ran(problem, "subtractive", "float32")


@bug(
    "ml-explore/mlx#4169 BasisResearch/dynestyx#183",
    "log_softmax",
    "float32",
    "eleven logits of -1e10 give zeros, a probability of 1 for each: log(11) is lost beside 1e10",
    "subtractive|with the offset",
)
def log_softmax_at_minus_1e10() -> Made:
    problem = log_softmax(np.full((1, 11), -1e10), SINGLE)
    return problem, ran(problem, "subtractive", "float32")


@bug(
    "pytorch/pytorch#11752 pytorch/pytorch#11866 pytorch/pytorch#21672",
    "cross_entropy",
    "float32",
    "two logits of 1e8 cost 0 instead of 0.693: log 2 is lost in max + log(sum)",
    "fused|with the offset",
)
def loss_of_large_logits() -> Made:
    problem = loss([[1e8, 1e8]], [1], SINGLE)
    return problem, ran(problem, "fused", "float32")


@bug(
    "ml-explore/mlx#4188",
    "cross_entropy",
    "float32",
    "[2, -1] + 1e4 costs 0.048828 instead of 0.048587, + 1e6 costs 0.0625: logsumexp - x_t",
    "fused|with the offset",
)
def loss_grows_wrong_with_the_offset() -> Made:
    problem = loss(np.add([[2.0, -1.0]], [[1e4], [1e6]]), [0, 0], SINGLE)
    return problem, ran(problem, "fused", "float32")


@bug(
    "pytorch/pytorch#195829",
    "cross_entropy",
    "float32",
    "the loss of 2,048 logits with a common offset of 2^20: row_max + log(sum) is rebuilt before the target is subtracted",
    "chunked|fused|with the offset",
)
def chunked_loss_with_an_offset() -> Made:
    problem = loss(2.0**20 + normal(14, 4, 2048), [0, 5, 17, 2047], SINGLE)
    return problem, ran(problem, "chunked", "float32")


@bug(
    "ml-explore/mlx#4520",
    "cross_entropy",
    "bfloat16",
    "losses of random rows are off by up to 0.06: logsumexp - x_t is subtracted in bfloat16",
    "bfloat16",
    "inconclusive",
)
def loss_subtracted_in_bfloat16() -> Made:
    problem = loss(normal(15, 16, 2048, scale=2.0), np.arange(16) * 100, BRAIN)
    lse = ran(replace(problem, op="logsumexp", targets=None), "shifted", "float32", output="bfloat16")
    return problem, lse - problem.logits[np.arange(16), problem.targets]


# ---- a maximum that stands alone -------------------------------------------------------------------------------------


@bug(
    "pytorch/pytorch#113708",
    "log_softmax",
    "float16",
    "[9, 0] gives -0 instead of -1.2e-4: beside 1 the rest of the sum is lost in float16",
    "absorbed|log1p|in float16",
    "inconclusive",
)
def log_probability_of_the_certain() -> Made:
    problem = log_softmax([[9.0, 0.0], [12.0, 0.0]], HALF)
    return problem, ran(problem, "shifted", "float16")


@bug(
    "pytorch/pytorch#113708",
    "log_softmax",
    "float32",
    "[16.942385, 0] gives -0 instead of -4.4e-8: log(sum), not log1p of the others",
    "absorbed|log1p",
    gate="faithful",
    right=None,
)
def log_probability_of_the_certain_in_float32() -> Made:
    problem = log_softmax([[1 - math.log(2**-23), 0.0]], SINGLE)
    return problem, ran(problem, "shifted", "float32")


@bug(
    "scipy/scipy#18295",
    "logsumexp",
    "float64",
    "[0, -40] gives 0 instead of 4.2e-18: log(sum), not log1p of the others",
    "absorbed|log1p",
    gate="faithful",
    right=None,
)
def logsumexp_near_zero() -> Made:
    problem = Problem("logsumexp", np.array([[0.0, -40.0]]))
    return problem, ran(problem, "shifted", "float64")


@bug(
    "tensorflow/tensorflow#126634 tensorflow/tensorflow#126636",
    "cross_entropy_grad",
    "float64",
    "the gradient is [0, 5.55e-17] instead of [-5.55e-17, 5.55e-17]: p_t - 1, not minus the others' sum",
    "absorbed|cancelled",
    gate="faithful",
    right=None,
)
def gradient_of_the_certain() -> Made:
    problem = Problem("cross_entropy_grad", np.array([[37.42994775023705, 0.0]]), np.array([0]))
    return problem, ran(problem, "fused", "float64")


@bug(
    "tensorflow/tensorflow#126525 tensorflow/tensorflow#126633",
    "softmax_vjp",
    "float64",
    "at [40, 0] the gradient is [0, -4.2e-18]: it no longer sums to 0",
    "absorbed|cancelled",
    gate="faithful",
    right=None,
)
def vjp_of_the_certain() -> Made:
    problem = Problem("softmax_vjp", np.array([[40.0, 0.0]]), None, np.array([[1.0, 0.0]]))
    return problem, ran(problem, "shifted", "float64")


# ---- gradients rounded before they cancel ----------------------------------------------------------------------------


@bug(
    "linkedin/Liger-Kernel#1268 linkedin/Liger-Kernel#1329 NVIDIA/TransformerEngine#3193",
    "cross_entropy_grad",
    "bfloat16",
    "the gradient of a target with p = 0.99 is off by 15 %: p is stored in bfloat16 before 1 is subtracted",
    "in_place_16_bit|cancel",
    "inconclusive",
)
def gradient_stored_then_corrected() -> Made:
    problem = confident(8192, 0.991, BRAIN)
    return problem, ran(problem, "in_place_16_bit", "float32", output="bfloat16")


@bug(
    "linkedin/Liger-Kernel#1329 linkedin/Liger-Kernel#1419",
    "cross_entropy_grad",
    "bfloat16",
    "at p = 0.999 the gradient of the target is 0: p is stored as 1",
    "in_place_16_bit|cancel",
    "inconclusive",
)
def gradient_of_the_target_is_lost() -> Made:
    problem = confident(8192, 0.9985, BRAIN)
    return problem, ran(problem, "in_place_16_bit", "float32", output="bfloat16")


@bug(
    "linkedin/Liger-Kernel#1341",
    "cross_entropy_grad",
    "float16",
    "the same in float16: at p = 0.9996 the gradient of the target is off by a fifth",
    "in float16|cancel",
    "inconclusive",
)
def gradient_stored_in_float16() -> Made:
    problem = confident(4096, 0.9996, HALF)
    p = ran(replace(problem, op="softmax", targets=None), "shifted", "float32", output="float16")
    p[0, 3] -= HALF(1)
    return problem, p


@bug(
    "vllm-project/speculators#788",
    "cross_entropy_grad",
    "bfloat16",
    "p - q of a draft near its target is off by several per cent: both are bfloat16 before they are subtracted",
    "in_place_16_bit|in bfloat16|bfloat16 sums",
    "inconclusive",
)
def difference_of_two_distributions() -> Made:
    q = np.concatenate([np.full(2048, 2.0**-12), 2.0 ** -np.arange(2, 14), [2.0**-13]])
    problem = cast(Problem("cross_entropy_grad", (np.log(q) + normal(16, q.size, scale=0.05))[None], q[None]), FORMATS["bfloat16"])
    assert problem.targets is not None
    assert widen(problem.targets).sum() == 1.0
    p = ran(replace(problem, op="softmax", targets=None), "shifted", "float32", output="bfloat16")
    return problem, p - problem.targets


@bug(
    "linkedin/Liger-Kernel#1432",
    "cross_entropy_grad",
    "float32",
    "gradients of a student near its teacher are off by up to 23 %: logits went through bfloat16 on their way to float32",
    "bfloat16",
)
def logits_rounded_before_the_cast() -> Made:
    q = np.concatenate([np.full(2048, 2.0**-12), 2.0 ** -np.arange(2, 14), [2.0**-13]])
    x = (np.log(q) + normal(17, q.size, scale=0.05))[None]
    problem = Problem("cross_entropy_grad", x.astype(SINGLE), q[None].astype(SINGLE))
    return problem, ran(replace(problem, logits=problem.logits.astype(BRAIN)), "fused", "float32")


@bug(
    "marin-community/marin#8217",
    "softmax",
    "float32",
    "probabilities of logits up to 80 are off by a fifth: exp(x - logsumexp), logsumexp of logits in bfloat16",
    "denominator|bfloat16",
)
def backward_with_another_logsumexp() -> Made:
    x = normal(18, 2, 512, scale=3.0)
    x[:, 7] = [79.83, 80.2]
    problem = softmax(x, SINGLE)
    lse = ran(Problem("logsumexp", problem.logits.astype(BRAIN)), "shifted", "float32")
    return problem, np.exp(problem.logits - lse[:, None])


# ---- results in 16 bits that are passed on as more -------------------------------------------------------------------


@bug(
    "google-deepmind/optax#1020",
    "cross_entropy",
    "float32",
    "losses are 4.75, 5, 4.59375: computed in bfloat16, of which they have the steps, and cast to float32 after it",
    "bfloat16 number",
)
def loss_in_steps_of_bfloat16() -> Made:
    problem = loss(uniform(19, 8, 100), np.arange(8) * 11, BRAIN)
    return problem, ran(problem, "fused", "float32", output="bfloat16").astype(SINGLE)


@bug(
    "Modalities/modalities#464",
    "cross_entropy",
    "float32",
    "a loss of 36 comes in steps of 0.25: it was stored in bfloat16",
    "bfloat16 number",
)
def large_loss_in_steps_of_bfloat16() -> Made:
    problem = loss(normal(20, 8, 256, scale=9.0), np.arange(8), BRAIN)
    return problem, ran(problem, "split", "float32", output="bfloat16").astype(SINGLE)


@bug(
    "google/flax#677 genlm/genlm-backend#66",
    "log_softmax",
    "float32",
    "log-probabilities of bfloat16 logits, cast to float32 only for the sum of the loss: every one is a bfloat16 number",
    "bfloat16 number",
)
def log_probabilities_in_bfloat16() -> Made:
    problem = log_softmax(normal(21, 4, 1000, scale=4.0), BRAIN)
    return problem, ran(problem, "shifted", "bfloat16", accumulator="float32").astype(SINGLE)


@bug(
    "genlm/genlm-backend#66",
    "log_softmax",
    "bfloat16",
    "log-probabilities near 0 are off by 0.06: z - logsumexp(z) in bfloat16",
    "subtractive|in bfloat16",
    "inconclusive",
)
def log_softmax_subtracted_in_bfloat16() -> Made:
    x = normal(22, 2, 1000, scale=2.0)
    x[:, 5] = [19.0, 18.0]
    problem = log_softmax(x, BRAIN)
    return problem, ran(problem, "subtractive", "bfloat16", accumulator="float32")


@bug(
    "tensorflow/tensorflow#86434",
    "log_softmax",
    "bfloat16",
    "[0.0664, -2.39] gives -2.53125 on one device and -2.54688, which is right, on the other: steps are rounded to bfloat16",
    "in bfloat16|bfloat16 sums",
    gate="correctly_rounded",
    right=None,
)
def log_softmax_on_two_devices() -> Made:
    problem = log_softmax([[0.0664, -2.3906]], BRAIN)
    return problem, ran(problem, "shifted", "bfloat16")


@bug(
    "pytorch/pytorch#140222",
    "log_softmax",
    "bfloat16",
    "CPU and GPU differ: one keeps the maximum and the logarithm of the sum in bfloat16",
    "in bfloat16|bfloat16 sums",
    "inconclusive",
)
def logarithm_kept_in_bfloat16() -> Made:
    problem = log_softmax(normal(23, 8, 64), BRAIN)
    return problem, ran(problem, "shifted", "bfloat16", accumulator="float32")


# ---- a mean over a batch ---------------------------------------------------------------------------------------------


@bug(
    "pytorch/pytorch#85791 pytorch/pytorch#29429 pytorch/pytorch#61523",
    "cross_entropy",
    "float16",
    "the mean loss of 1,024 rows is inf, each being 72: their sum overflows float16",
    "overflow|exceeds the largest|infinite",
    right="split",
)
def mean_overflows_in_float16() -> Made:
    problem = loss(np.tile([0.0, 72.0], (1024, 1)), np.zeros(1024, np.int64), HALF, Params(reduction="mean"))
    return problem, ran(problem, "split", "float16")


# ---- scaled exponents, and what fma does not round -------------------------------------------------------------------


@bug(
    "pytorch/pytorch#101039 gabrieldemarmiesse/torch-mojo-backend#398",
    "softmax",
    "float32",
    "rows sum to 0.80 to 1.20 after a division by 1e-6: the product is fused into x s - max and not rounded, the maximum is",
    "fma|exponent|sums to|above 1",
)
def product_fused_into_the_difference() -> Made:
    x, s = normal(24, 10, 2, scale=6.0).astype(SINGLE), SINGLE(1e6)
    scaled = x * s
    e = np.exp(x.astype(DOUBLE) * DOUBLE(s) - scaled.max(axis=-1, keepdims=True))
    total = np.exp(scaled - scaled.max(axis=-1, keepdims=True)).sum(axis=-1, keepdims=True)
    return softmax(scaled, SINGLE), (e / total).astype(SINGLE)


@bug(
    "pytorch/pytorch#100775 pytorch/pytorch#163932",
    "softmax",
    "float32",
    "rows scaled by 1e14 are NaN: a fused product lies so far above, or below, the rounded maximum that exp overflows or is 0",
    "overflow|exceeds the largest",
)
def product_fused_and_overflowing() -> Made:
    x, s = uniform(25, 5, 25, low=-1.0).astype(SINGLE), SINGLE(1e14)
    top = (x * s).max(axis=-1, keepdims=True)
    exact = x.astype(DOUBLE) * DOUBLE(s)
    with np.errstate(all="ignore"):
        e = np.exp((exact - top).astype(SINGLE))
        return softmax(x * s, SINGLE), e / e.sum(axis=-1, keepdims=True)


@bug(
    "pytorch/pytorch#121558",
    "softmax",
    "float32",
    "one attention score of 1.4e11 gives NaN: exp2(x c - m c) with an fma, whose product is not rounded as m c is",
    "overflow|exceeds the largest",
)
def exp2_of_a_residual() -> Made:
    problem = softmax(np.full((1, 1), 64 * 133120.0**2 / 8), SINGLE)
    return problem, ran(problem, "exp2_scaled", "float32", fma=True)


@bug(
    "pytorch/pytorch#161150",
    "softmax",
    "float32",
    "a row of infinities, which has no softmax, gives ones",
    "truth nan|no softmax",
)
def ones_for_infinities() -> Made:
    problem = softmax([[-INF, INF, INF, -INF, INF, INF, INF, INF, -INF, INF]], SINGLE)
    return problem, np.ones((1, 10), SINGLE)


# ---- masks -----------------------------------------------------------------------------------------------------------


@bug(
    "pytorch/pytorch#41508 pytorch/pytorch#103749 pytorch/pytorch#103963 iree-org/iree#24175 robertknight/rten#1321",
    "softmax",
    "float32",
    "a row that is masked altogether is NaN where 0 is asked for: -inf - -inf",
    "masked|all -infinity",
    nonfinite="masked_zero",
)
def masked_row_is_nan() -> Made:
    problem = softmax(_one_masked_row(26), SINGLE)
    return problem, ran(problem, "shifted", "float32")


@bug(
    "jax-ml/jax#6811 pytorch/pytorch#31829 pytorch/pytorch#49724",
    "softmax",
    "float64",
    "the gradient of logsumexp([-inf, -inf]) is NaN where 0 is asked for",
    "masked|all -infinity",
    nonfinite="masked_zero",
)
def gradient_of_nothing_is_nan() -> Made:
    problem = softmax([[-INF, -INF]], DOUBLE)
    return problem, ran(problem, "shifted", "float64")


@bug(
    "ml-explore/mlx#2395",
    "softmax",
    "float32",
    "a row that is masked altogether is neither 0 nor NaN: the mask is a large finite number, so the row is uniform",
    "masked|all -infinity",
)
def masked_row_is_uniform() -> Made:
    problem = softmax(_one_masked_row(27), SINGLE)
    return problem, plain_softmax(np.maximum(problem.logits, SINGLE(-1e9)))


@bug(
    "pytorch/pytorch#131060",
    "softmax",
    "float32",
    "[0.1, 0.2, 0.3, NaN] gives zeros: a guard for masked rows hides a NaN in the logits",
    "truth nan|a nan logit",
)
def guard_hides_a_nan() -> Made:
    problem = softmax([[0.1, 0.2, 0.3, NAN]], SINGLE)
    return problem, np.nan_to_num(ran(problem, "shifted", "float32"))


def _one_masked_row(seed: int) -> NDArray[np.float64]:
    x = normal(seed, 4, 8)
    x[1] = -INF
    return x


@bug(
    "jax-ml/jax#23842",
    "softmax",
    "float32",
    "the gradient of logsumexp([0, 100], where=[true, false]) is [1, NaN]: exp(100) of what is masked times 0",
    "mask",
    right=None,
)
def masked_entry_is_nan() -> Made:
    problem = Problem("softmax", np.array([[0.0, 100.0]], SINGLE), params=Params(mask=np.array([[True, False]])))
    with np.errstate(all="ignore"):
        return problem, np.exp(problem.logits) * np.array([[1.0, 0.0]], SINGLE) + np.array([[0.0, NAN]], SINGLE)


@bug(
    "tensorflow/tensorflow#55682 huggingface/transformers#16838",
    "softmax",
    "float32",
    "a row in which 18 of 23 logits have a penalty of -1e9 gives 1/23 everywhere",
    "whatever its logit",
)
def penalty_makes_the_row_uniform() -> Made:
    x = normal(28, 1, 23).astype(SINGLE)
    x[0, 5:] += SINGLE(-1e9)
    return softmax(x, SINGLE), np.full((1, 23), 1 / 23, SINGLE)


@bug(
    "google-deepmind/optax#896",
    "cross_entropy",
    "float32",
    "logits [-inf, 0] with targets [0, 1] cost NaN instead of 0: 0 times -inf",
    "log(0)|0 * -inf",
)
def nothing_times_infinity() -> Made:
    problem = loss([[-INF, 0.0]], [[0.0, 1.0]], SINGLE)
    assert problem.targets is not None
    logarithms = ran(replace(problem, op="log_softmax", targets=None), "shifted", "float32")
    with np.errstate(invalid="ignore"):
        return problem, -(problem.targets * logarithms).sum(axis=-1)


# ---- logarithms of probabilities -------------------------------------------------------------------------------------


@bug(
    "onnx/onnx#8423 onnx/onnx-mlir#338",
    "log_softmax",
    "float32",
    "[0, -104] gives -inf instead of -104: the logarithm of a probability that underflowed",
    "log(0)|log_of_softmax",
)
def logarithm_of_a_lost_probability() -> Made:
    problem = log_softmax([[0.0, -104.0]], SINGLE)
    return problem, ran(problem, "log_of_softmax", "float32")


@bug(
    "onnx/onnx#8423",
    "cross_entropy",
    "float32",
    "a target 104 below the maximum costs inf: minus the logarithm of a probability that underflowed",
    "log(0)|log_of_softmax",
)
def loss_of_a_lost_probability() -> Made:
    problem = loss([[0.0, -104.0]], [1], SINGLE)
    return problem, ran(problem, "log_of_softmax", "float32")


@bug(
    "keras-team/keras#17634 keras-team/keras#7563",
    "cross_entropy",
    "float32",
    "a loss of 35.7, and one of 300, are 16.118: probabilities are clipped at 1e-7",
    "clipped",
)
def probability_clipped() -> Made:
    problem = loss([[14.4, 50.1, 3.5], [-100.0, 200.0, 500.0]], [0, 1], SINGLE)
    return problem, ran(problem, "clipped", "float32")


@bug(
    "tensorflow/tensorflow#41595 keras-team/keras#15249",
    "cross_entropy",
    "float32",
    "a loss of 40 is 15.425: clipped at 1e-7, and 1e-7 is added to that",
    "clipped|log_with_eps",
)
def probability_clipped_and_raised() -> Made:
    problem = loss([[0.0, 40.0], [0.0, 90.0]], [0, 0], SINGLE)
    p = np.clip(plain_softmax(problem.logits)[:, 0], SINGLE(1e-7), SINGLE(1 - 1e-7))
    return problem, -np.log(p + SINGLE(1e-7))


# ---- 8 bits inside ---------------------------------------------------------------------------------------------------


@bug(
    "flashinfer-ai/flashinfer#5020 ROCm/FlyDSL#1020",
    "softmax",
    "bfloat16",
    "a peak over a diffuse tail keeps 64 % of its mass: exponentials are summed, then become 0 in float8_e4m3fn",
    "stored_after_sum|float8_e4m3fn",
)
def tail_lost_in_8_bits() -> Made:
    x = normal(29, 1, 4096, scale=0.3) - 8.9
    x[0, 11] = 0.0
    problem = softmax(x, BRAIN)
    return problem, ran(problem, "stored_after_sum(stored=float8_e4m3fn)", "float32", output="bfloat16")


@bug(
    "Dao-AILab/flash-attention#2577 Dao-AILab/flash-attention#2694 Dao-AILab/flash-attention#2713 Dao-AILab/flash-attention#2716"
    " Dao-AILab/flash-attention#2717",
    "softmax",
    "bfloat16",
    "the largest of a second tile of 128 keep a tenth to a half: exponentials up to 2^12 saturate at 448, their sum does not",
    "saturat|float8_e4m3fn",
)
def numerators_saturate_in_8_bits() -> Made:
    x = normal(30, 1, 256)
    x[0, 128:] += x[0, :128].max() + 2.5 - x[0, 128:].max()  # less than 4 log 2
    problem = softmax(x, BRAIN)
    z = widen(problem.logits).astype(SINGLE)
    e = np.exp2((z - z[:, :128].max()) * SINGLE(math.log2(math.e)) + SINGLE(8))  # the first tile's maximum, never raised
    assert 448 < e.max() < 4096
    stored = np.minimum(e, SINGLE(448)).astype(ml_dtypes.float8_e4m3fn).astype(SINGLE)
    return problem, (stored / e.sum(axis=-1, keepdims=True, dtype=SINGLE)).astype(BRAIN)


# ---- other functions -------------------------------------------------------------------------------------------------


@bug(
    "kyegomez/AttentionIsOFFByOne#5",
    "softmax",
    "float32",
    "softmax with one more term in the sum: 1 is added to shifted exponentials, though that term too is to be shifted",
    "sink_unshifted|denominator",
    "inconclusive",
    right=None,
)
def one_more_term_is_not_shifted() -> Made:
    problem = Problem("softmax", (normal(31, 2, 16) + 3.0).astype(SINGLE), params=Params(sink=0.0))
    return problem, ran(problem, "sink_unshifted", "float32")


LEFT_OUT = {
    "pytorch/pytorch#96602, pytorch/pytorch#111484": "indices overflow beyond 2^32 elements: too large to post, with any"
    " number as the result; rows that are not written are above",
    "scipy/scipy#22903": "logsumexp with weights of both signs: no op takes them",
    "scipy/scipy#21709": "complex logits: no format holds them",
    "pytorch/pytorch#55657": "the mean of 75,497,472 losses in float32: their sum loses digits only beyond some 2^24 rows",
    "pytorch/pytorch#112714": "two devices differ by roundings of float32, and both are right",
    "pytorch/pytorch#123911": "two kernels round a float16 differently, each right to an ulp",
    "triton-lang/triton#10073, triton-lang/triton#10661": "a quotient off by 2 ulp is within the bound",
    "mpmath/mpmath#1181": "the exponential of a reference, not of a kernel, and no truth here rests on it",
    "facebookresearch/pytext#1698": "label smoothing over a logit of -inf is infinite by definition",
}
"""Reports that are no row, and why."""


def table() -> str:
    """The tables of the README."""
    lines = ["| reported as | op | output | what goes wrong | verdict | named by |", "|---|---|---|---|---|---|"]
    for row in BUGS.values():
        policies = [f"`{row.gate}`"] * (row.gate != "bound") + [f"`{row.nonfinite}`"] * (row.nonfinite != "ieee")
        verdict = row.verdict + f" ({', '.join(policies)})" * bool(policies)
        words = ", ".join(f"`{word}`" for word in row.cause)
        lines.append(f"| {', '.join(row.issues)} | {row.op} | {row.format} | {row.symptom} | {verdict} | {words} |")
    lines += ["", "Reports that are no row, and why:", "", "| left out | why |", "|---|---|"]
    return "\n".join([*lines, *(f"| {issues} | {why} |" for issues, why in LEFT_OUT.items())]) + "\n"


def check(row: Bug, problem: Problem, output: Array) -> None:
    """That what was made is what the row says."""
    assert (problem.op, of(output).name) == (row.op, row.format)
    assert output.shape == output_shape(problem)
