"""softmax: p_i = exp(x_i) / sum_j exp(x_j), by formulas that see the whole row at once."""

from __future__ import annotations

from engine.arithmetic import Arithmetic
from engine.model import Array
from engine.parameters import FormatName, Number
from engine.variants import FUSED, logsumexp, variant

LOG2_E = float.fromhex("0x1.71547652b82fep+0")


@variant(
    "softmax",
    "naive",
    formula="exp(x_i) / sum_j exp(x_j)",
    source="the definition; Blanchard, Higham and Higham 2021, doi 10.1093/imanum/draa038, algorithm 3.1",
    hazard="inf / inf once a logit passes the format's exp limit, 0 for all, and no NaN, once only the sum overflows,"
    " 0 / 0 once all lie below the log of half its smallest number",
    issues=("tenstorrent/tt-metal#52131", "pytorch/pytorch#62897"),
    claims="permutation mask",
)
def naive(x: Array, k: Arithmetic) -> Array:
    """exp(x) / sum(exp(x))."""
    e = k.exp(x)
    return k.div(e, k.sum(e))


@variant(
    "softmax",
    "shifted",
    formula="exp(x_i - m) / sum_j exp(x_j - m), m = max_j x_j",
    source="Blanchard, Higham and Higham 2021, doi 10.1093/imanum/draa038, algorithm 4.1 but for the maximum's term",
    hazard="none for finite logits but lost digits in the rounded difference x - m; a row that is all -inf gives NaN",
    stable=True,
    issues=("pytorch/pytorch#41508",),
    claims="finite permutation shift mask",
)
def shifted(x: Array, k: Arithmetic) -> Array:
    """exp(x - max) / sum(exp(x - max))."""
    e = k.exp(k.sub(x, k.max(x)))
    return k.div(e, k.sum(e))


@variant(
    "softmax",
    "reciprocal",
    formula="exp(x_i - m) * (1 / sum_j exp(x_j - m)), m = max_j x_j",
    source="XNNPACK; PyTorch on CPUs",
    hazard="one more rounding than the division: what is not the largest may be off by it",
    stable=True,
    claims="finite permutation shift mask",
)
def reciprocal(x: Array, k: Arithmetic) -> Array:
    """exp(x - max) times 1 / sum(exp(x - max))."""
    e = k.exp(k.sub(x, k.max(x)))
    return k.mul(e, k.div(k.constant(1), k.sum(e)))


@variant(
    "softmax",
    "subtractive_naive",
    formula="exp(x_i - L), L = log sum_j exp(x_j)",
    source="Blanchard, Higham and Higham 2021, doi 10.1093/imanum/draa038: algorithm 3.1 without a division",
    hazard="all 0 once a logit passes the format's exp limit or the sum overflows, infinite once every exponential is 0;"
    " u abs(L) is a relative error",
    claims="permutation mask",
)
def subtractive_naive(x: Array, k: Arithmetic) -> Array:
    """exp(x - log(sum(exp(x))))."""
    return k.exp(k.sub(x, logsumexp.naive(x, k)))


@variant(
    "softmax",
    "subtractive",
    formula="exp(x_i - L), L = m + log1p(sum_{j != a} exp(x_j - m)), m = x_a = max_j x_j",
    source="Blanchard, Higham and Higham 2021, doi 10.1093/imanum/draa038: algorithm 4.1 without a division",
    hazard="L is rounded, and exp makes u abs(L) a relative error of every probability: the same row, shifted, is not the same",
    claims="finite permutation mask",
)
def subtractive(x: Array, k: Arithmetic) -> Array:
    """exp(x - logsumexp)."""
    return k.exp(k.sub(x, logsumexp.log1p(x, k)))


@variant(
    "softmax",
    "max_left_out",
    formula="exp(x_i - m) / (1 + sum_{j != a} exp(x_j - m)), m = x_a = max_j x_j",
    source="Blanchard, Higham and Higham 2021, doi 10.1093/imanum/draa038, algorithm 4.1",
    hazard="none for finite logits but lost digits in the rounded difference x - m; a row that is all -inf gives NaN",
    stable=True,
    claims="finite permutation shift mask",
)
def max_left_out(x: Array, k: Arithmetic) -> Array:
    """The largest term is 1 exactly, and is added last."""
    e = k.exp(k.sub(x, k.max(x)))
    return k.div(e, k.add(k.constant(1), k.sum(k.without(e, k.argmax(x)))))


@variant(
    "softmax",
    "chosen_shift",
    formula="exp(x_i + c) / sum_j exp(x_j + c)",
    source="the shift as a constant chosen once, such as the largest logit that is expected",
    hazard="inf / inf once max x + c passes the format's exp limit, 0 for all once only the sum overflows,"
    " 0 / 0 once it is below the log of half the smallest number:"
    " only c = -max is right for every row",
    claims="permutation mask",
    c=Number(-10.0),
)
def chosen_shift(x: Array, k: Arithmetic, c: float) -> Array:
    """exp(x + c) / sum(exp(x + c))."""
    e = k.exp(k.add(x, k.constant(c)))
    return k.div(e, k.sum(e))


@variant(
    "softmax",
    "wrong_shift",
    formula="exp(x_i - c) / sum_j exp(x_j - c), c = max(0, max_j x_j)",
    source="a maximum that starts at 0",
    hazard="nothing is shifted where all logits are negative: 0 / 0 once all exponentials are 0, few digits before",
    issues=("FluxML/NNlib.jl#43", "microsoft/onnxruntime#2715"),
    claims="permutation mask",
)
def wrong_shift(x: Array, k: Arithmetic) -> Array:
    """The maximum of the logits and 0."""
    e = k.exp(k.sub(x, k.maximum(k.max(x), k.constant(0))))
    return k.div(e, k.sum(e))


@variant(
    "softmax",
    "finite_sentinel",
    formula="exp(x_i - c) / sum_j exp(x_j - c), c = max(start, max_j x_j)",
    source="a maximum that starts at a finite number instead of -inf",
    hazard="0 / 0, or zeros where that is guarded against, where every logit is far below that number",
    issues=("tracel-ai/burn#4697", "flashinfer-ai/flashinfer#4267"),
    claims="permutation mask",
    start=Number(-1e4, high=0.0),
)
def finite_sentinel(x: Array, k: Arithmetic, start: float) -> Array:
    """The maximum of the logits and a number, at least the lowest of the format."""
    e = k.exp(k.sub(x, k.maximum(k.max(x), k.constant(max(start, -k.fmt.largest)))))
    return k.div(e, k.sum(e))


@variant(
    "softmax",
    "exp2_scaled",
    formula="2^(x_i c - m c) / sum_j 2^(x_j c - m c), c = scale log2 e, m = max_j x_j",
    source="FlashAttention, csrc/flash_attn/src/softmax.h: the scale folded into the exponent, one fma a logit",
    hazard="products are rounded before they cancel, and of an fma only m c: then the largest exponential is not 1, and overflows"
    " once half an ulp of m c passes the largest exponent",
    issues=("pytorch/pytorch#100775", "pytorch/pytorch#121558"),
    axes=FUSED,
    claims="permutation mask",
    params="scale",
)
def exp2_scaled(x: Array, k: Arithmetic, scale: float = 1.0) -> Array:
    """The scaled maximum is subtracted from the scaled logit."""
    c = k.constant(scale * LOG2_E)
    e = k.exp2(k.fma(x, c, k.neg(k.mul(k.max(x), c))))
    return k.div(e, k.sum(e))


@variant(
    "softmax",
    "offset",
    formula="2^((x_i - m) c + offset) / sum_j 2^((x_j - m) c + offset), c = log2 e, m = max_j x_j",
    source="FlashAttention 3: exponentials up to 2^8, which use the range of an 8-bit format",
    hazard="sums overflow 2^offset times sooner: with 8 at 256 equal logits in float16, and at two in float8_e4m3fn",
    axes=FUSED,
    claims="permutation shift mask",
    offset=Number(8.0, 0.0, 120.0),
)
def offset(x: Array, k: Arithmetic, offset: float) -> Array:
    """The largest exponential is 2^offset."""
    e = k.exp2(k.fma(k.sub(x, k.max(x)), k.constant(LOG2_E), k.constant(offset)))
    return k.div(e, k.sum(e))


@variant(
    "softmax",
    "stored_16_bit",
    formula="e_i / sum_j e_j, e = exp(x - m) rounded to the format stored, m = max_j x_j",
    source="kernels that write exponentials to memory between their passes",
    hazard="every exponential, and so every probability, carries the roundoff of the stored format",
    claims="finite permutation shift mask",
    stored=FormatName("bfloat16"),
)
def stored_16_bit(x: Array, k: Arithmetic, stored: str) -> Array:
    """The exponentials are stored, then summed."""
    e = k.stored(k.exp(k.sub(x, k.max(x))), stored)
    return k.div(e, k.sum(e))


@variant(
    "softmax",
    "stored_after_sum",
    formula="r(e_i) / sum_j e_j, e = exp(x - m), r rounds to the format stored, m = max_j x_j",
    source="attention kernels that cast exponentials for the next product after they summed them",
    hazard="numerator and denominator are rounded differently, so the quotients do not sum to 1: where small exponentials become 0,"
    " most of a row can be lost",
    issues=("flashinfer-ai/flashinfer#5020", "ROCm/FlyDSL#1020"),
    claims="finite permutation shift mask",
    stored=FormatName("bfloat16"),
)
def stored_after_sum(x: Array, k: Arithmetic, stored: str) -> Array:
    """The exponentials are summed, then stored."""
    e = k.exp(k.sub(x, k.max(x)))
    return k.div(k.stored(e, stored), k.sum(e))
