"""log_softmax: l_i = x_i - log sum_j exp(x_j)."""

from __future__ import annotations

from engine.arithmetic import Arithmetic
from engine.model import Array
from engine.parameters import Number
from engine.variants import logsumexp, softmax, variant


@variant(
    "log_softmax",
    "naive",
    formula="x_i - log sum_j exp(x_j)",
    source="the definition",
    hazard="-inf once a logit passes the format's exp limit or the sum overflows, +inf once every exponential is 0",
    claims="permutation mask",
)
def naive(x: Array, k: Arithmetic) -> Array:
    """x - log(sum(exp(x)))."""
    return k.sub(x, k.log(k.sum(k.exp(x))))


@variant(
    "log_softmax",
    "log_of_softmax",
    formula="log p_i, p = exp(x - m) / sum(exp(x - m)), m = max(x)",
    source="the ONNX reference until onnx/onnx#8423",
    hazard="-inf where p underflows to 0, few digits where p is subnormal or near 1",
    issues=("onnx/onnx#8423", "onnx/onnx-mlir#338"),
    claims="permutation shift mask",
)
def log_of_softmax(x: Array, k: Arithmetic) -> Array:
    """log(p) from the shifted p."""
    return k.log(softmax.shifted(x, k))


@variant(
    "log_softmax",
    "shifted",
    formula="(x_i - m) - log sum_j exp(x_j - m), m = max(x)",
    source="PyTorch, JAX, SciPy",
    hazard="at a dominant maximum the sum rounds to 1 and the small result to 0",
    stable=True,
    issues=("pytorch/pytorch#113708",),
    claims="finite permutation shift mask",
)
def shifted(x: Array, k: Arithmetic) -> Array:
    """(x - m) - log(sum(exp(x - m)))."""
    d = k.sub(x, k.max(x))
    return k.sub(d, k.log(k.sum(k.exp(d))))


@variant(
    "log_softmax",
    "log1p",
    formula="(x_i - m) - log1p(sum_{j != a} exp(x_j - m)), m = x_a = max(x)",
    source="asked for in pytorch/pytorch#113708",
    hazard="none for finite logits but lost digits in the rounded difference x - m",
    stable=True,
    claims="finite permutation shift mask",
)
def log1p(x: Array, k: Arithmetic) -> Array:
    """(x - m) - log1p(sum of exp(x - m) without the maximum's term)."""
    d = k.sub(x, k.max(x))
    rest = k.without(k.exp(d), k.argmax(x))
    return k.sub(d, k.log1p(k.sum(rest)))


@variant(
    "log_softmax",
    "subtractive",
    formula="x_i - L, L = m + log sum_j exp(x_j - m), m = max(x)",
    source="the definition, on logsumexp/shifted",
    hazard="L is rounded: u abs(L) is an absolute error of every element, and the same row, shifted, gives another result",
    issues=("pytorch/pytorch#38839", "ml-explore/mlx#4169"),
    claims="finite permutation mask",
)
def subtractive(x: Array, k: Arithmetic) -> Array:
    """x - logsumexp(x)."""
    return k.sub(x, logsumexp.shifted(x, k))


@variant(
    "log_softmax",
    "log_with_eps",
    formula="log(p_i + eps), p = exp(x - m) / sum(exp(x - m)), m = max(x)",
    source="losses that add a small number instead of subtracting logarithms",
    hazard="nothing is below log eps (-16.1; in 8 bits eps is 0, and it is -inf), and what is certain is above 0",
    claims="permutation shift",
    eps=Number(1e-7, 0.0, 1.0),
)
def log_with_eps(x: Array, k: Arithmetic, eps: float) -> Array:
    """log(p + eps)."""
    return k.log(k.add(softmax.shifted(x, k), k.constant(eps)))
