"""logsumexp: L = log sum_j exp(x_j)."""

from __future__ import annotations

from engine.arithmetic import Arithmetic
from engine.model import Array
from engine.variants import softmax, variant


@variant(
    "logsumexp",
    "naive",
    formula="log sum_j exp(x_j)",
    source="the definition; Blanchard, Higham and Higham 2021, doi 10.1093/imanum/draa038, algorithm 3.1",
    hazard="+inf once a logit passes the format's exp limit or the sum overflows, -inf once every exponential is 0",
    issues=("onnx/onnx-mlir#365",),
    claims="permutation mask",
)
def naive(x: Array, k: Arithmetic) -> Array:
    """log(sum(exp(x)))."""
    return k.log(k.sum(k.exp(x)))


@variant(
    "logsumexp",
    "log_of_softmax",
    formula="m - log p_a, p = exp(x - m) / sum(exp(x - m)), m = x_a = max(x)",
    source="log p_i = x_i - L solved for L at the maximum, where p is largest",
    hazard="one more rounding than the shifted form; a row that is all -inf gives NaN",
    claims="finite permutation mask",
)
def log_of_softmax(x: Array, k: Arithmetic) -> Array:
    """m - log(p at the maximum) from the shifted p."""
    p = softmax.shifted(x, k)
    return k.sub(k.max(x), k.log(k.at(p, k.argmax(x))))


@variant(
    "logsumexp",
    "shifted",
    formula="m + log sum_j exp(x_j - m), m = max(x)",
    source="the common form",
    hazard="at a dominant maximum the sum rounds to 1 and its logarithm to 0; a row that is all -inf gives NaN",
    stable=True,
    issues=("scipy/scipy#18295",),
    claims="finite permutation mask",
)
def shifted(x: Array, k: Arithmetic) -> Array:
    """m + log(sum(exp(x - m)))."""
    m = k.max(x)
    return k.add(m, k.log(k.sum(k.exp(k.sub(x, m)))))


@variant(
    "logsumexp",
    "log1p",
    formula="m + log1p(sum_{j != a} exp(x_j - m)), m = x_a = max(x)",
    source="Blanchard, Higham and Higham 2021, doi 10.1093/imanum/draa038, algorithm 4.1",
    hazard="m and the logarithm cancel where the result is near 0; a row that is all -inf gives NaN",
    stable=True,
    claims="finite permutation mask",
)
def log1p(x: Array, k: Arithmetic) -> Array:
    """m + log1p(sum of exp(x - m) without the maximum's term)."""
    m = k.max(x)
    rest = k.without(k.exp(k.sub(x, m)), k.argmax(x))
    return k.add(m, k.log1p(k.sum(rest)))


@variant(
    "logsumexp",
    "guarded",
    formula="m + log sum_j exp(x_j - m), m = max(x) where that is finite, else 0",
    source="JAX, jax.scipy.special.logsumexp",
    hazard="at a dominant maximum the sum rounds to 1 and its logarithm to 0",
    stable=True,
    claims="finite permutation mask",
)
def guarded(x: Array, k: Arithmetic) -> Array:
    """A row that is all -inf, or has +inf, has a log-sum-exp too."""
    m = k.where_finite(k.max(x))
    return k.add(m, k.log(k.sum(k.exp(k.sub(x, m)))))
