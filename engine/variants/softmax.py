"""softmax: p_i = exp(x_i) / sum_j exp(x_j)."""

from __future__ import annotations

from math import log

from engine.arithmetic import Arithmetic
from engine.model import Array
from engine.variants import variant

_LOG2_E = 1 / log(2)


@variant(
    "softmax",
    "naive",
    formula="exp(x_i) / sum_j exp(x_j)",
    source="the definition",
    hazard="inf / inf once a logit passes the format's exp limit, 0 / 0 once all lie below the log of half its smallest number",
)
def naive(x: Array, k: Arithmetic) -> Array:
    """exp(x) / sum(exp(x))."""
    e = k.exp(x)
    return k.div(e, k.sum(e))


@variant(
    "softmax",
    "shifted",
    formula="exp(x_i - m) / sum_j exp(x_j - m), m = max_j x_j",
    source="Blanchard, Higham and Higham 2021, doi 10.1093/imanum/draa038, algorithm 4.1",
    hazard="none for finite logits but lost digits in the rounded difference x - m; a row that is all -inf gives NaN",
    stable=True,
)
def shifted(x: Array, k: Arithmetic) -> Array:
    """exp(x - max) / sum(exp(x - max))."""
    e = k.exp(k.sub(x, k.max(x)))
    return k.div(e, k.sum(e))


@variant(
    "softmax",
    "reciprocal",
    formula="exp(x_i - m) * (1 / sum_j exp(x_j - m)), m = max_j x_j",
    source="XNNPACK",
    hazard="one more rounding than the division: a certain class may come out as 1 - u",
    stable=True,
)
def reciprocal(x: Array, k: Arithmetic) -> Array:
    """exp(x - max) times 1 / sum(exp(x - max))."""
    e = k.exp(k.sub(x, k.max(x)))
    return k.mul(e, k.div(k.constant(1.0), k.sum(e)))


@variant(
    "softmax",
    "subtractive",
    formula="exp(x_i - L), L = m + log sum_j exp(x_j - m), m = max_j x_j",
    source="Blanchard, Higham and Higham 2021, doi 10.1093/imanum/draa038: the softmax without a division",
    hazard="L is rounded, and exp makes u abs(L) a relative error of every probability: logits far from 0 lose digits together",
)
def subtractive(x: Array, k: Arithmetic) -> Array:
    """exp(x - logsumexp)."""
    m = k.max(x)
    return k.exp(k.sub(x, k.add(m, k.log(k.sum(k.exp(k.sub(x, m)))))))


@variant(
    "softmax",
    "max_left_out",
    formula="exp(x_i - m) / (1 + sum_{j != a} exp(x_j - m)), m = x_a = max_j x_j",
    source="Blanchard, Higham and Higham 2021, doi 10.1093/imanum/draa038, algorithm 4.1",
    hazard="none for finite logits but lost digits in the rounded difference x - m",
    stable=True,
)
def max_left_out(x: Array, k: Arithmetic) -> Array:
    """The largest term is 1 exactly, and is added last."""
    e = k.exp(k.sub(x, k.max(x)))
    return k.div(e, k.add(k.constant(1.0), k.sum(k.without(e, k.argmax(x)))))


@variant(
    "softmax",
    "wrong_shift",
    formula="exp(x_i - c) / sum_j exp(x_j - c), c = max(0, max_j x_j)",
    source="FluxML/NNlib.jl#43; microsoft/onnxruntime#2715: a maximum that starts at 0",
    hazard="nothing is shifted where all logits are negative: 0 / 0 once all exponentials are 0, few digits before",
)
def wrong_shift(x: Array, k: Arithmetic) -> Array:
    """The maximum of the logits and 0."""
    e = k.exp(k.sub(x, k.maximum(k.max(x), k.constant(0.0))))
    return k.div(e, k.sum(e))


@variant(
    "softmax",
    "finite_sentinel",
    formula="exp(x_i - c) / sum_j exp(x_j - c), c = max(-10000, max_j x_j)",
    source="tracel-ai/burn#4697 (-1e4); flashinfer-ai/flashinfer#4267 (-5e4): a maximum that starts at a number",
    hazard="0 / 0 in rows whose logits are all far below -10000, as masked ones may be",
)
def finite_sentinel(x: Array, k: Arithmetic) -> Array:
    """The maximum of the logits and -10000, or the lowest number of the format."""
    lowest = k.constant(max(-1e4, -k.fmt.largest))
    e = k.exp(k.sub(x, k.maximum(k.max(x), lowest)))
    return k.div(e, k.sum(e))


@variant(
    "softmax",
    "exp2_scaled",
    formula="2^(x_i c - m c) / sum_j 2^(x_j c - m c), c = log2 e, m = max_j x_j",
    source="FlashAttention, csrc/flash_attn/src/softmax.h: one fma by the scale",
    hazard="both products are rounded before they cancel, unless an fma takes the first: u abs(x) becomes a relative error",
)
def exp2_scaled(x: Array, k: Arithmetic) -> Array:
    """The scale goes into the exponent, and the maximum is scaled too."""
    c = k.constant(_LOG2_E)
    e = k.exp2(k.fma(x, c, k.neg(k.mul(k.max(x), c))))
    return k.div(e, k.sum(e))


@variant(
    "softmax",
    "offset",
    formula="2^((x_i - m) c + 8) / sum_j 2^((x_j - m) c + 8), c = log2 e, m = max_j x_j",
    source="FlashAttention 3: exponentials up to 2^8, which fill the range of 8-bit formats",
    hazard="the sum overflows 256 times sooner: float16 from 256 equal logits on",
)
def offset(x: Array, k: Arithmetic) -> Array:
    """The largest exponential is 256."""
    e = k.exp2(k.fma(k.sub(x, k.max(x)), k.constant(_LOG2_E), k.constant(8.0)))
    return k.div(e, k.sum(e))


@variant(
    "softmax",
    "stored_16_bit",
    formula="e_i / sum_j e_j, e = exp(x - m) rounded to bfloat16, m = max_j x_j",
    source="kernels that write exponentials to memory between their passes",
    hazard="every exponential carries 2^-9 of itself, but the quotients still sum to 1",
)
def stored_16_bit(x: Array, k: Arithmetic) -> Array:
    """The exponentials are stored, then summed."""
    e = k.stored(k.exp(k.sub(x, k.max(x))), "bfloat16")
    return k.div(e, k.sum(e))


@variant(
    "softmax",
    "stored_after_sum",
    formula="e'_i / sum_j e_j, e = exp(x - m), e' = e rounded to bfloat16, m = max_j x_j",
    source="attention kernels that cast the exponentials for the next product after they summed them",
    hazard="numerator and denominator are of different rounding: the quotients do not sum to 1",
)
def stored_after_sum(x: Array, k: Arithmetic) -> Array:
    """The exponentials are summed, then stored."""
    e = k.exp(k.sub(x, k.max(x)))
    return k.div(k.stored(e, "bfloat16"), k.sum(e))
