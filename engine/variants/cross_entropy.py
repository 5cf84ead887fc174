"""cross_entropy: -log p_t for a class index t, -sum_i y_i log p_i for a distribution y."""

from __future__ import annotations

from engine.arithmetic import Arithmetic
from engine.model import Array
from engine.variants import logsumexp, softmax, variant


@variant(
    "cross_entropy",
    "naive",
    formula="-sum_i y_i log p_i, p = exp(x) / sum(exp(x))",
    source="the definition, on softmax/naive",
    hazard="NaN wherever the naive softmax is NaN, +inf where p_t is 0, and 0 * -inf = NaN where y_i and p_i are 0 (optax#896)",
)
def naive(x: Array, y: Array, k: Arithmetic) -> Array:
    """-sum(y log p) from the naive p."""
    return _loss(softmax.naive(x, k), y, k)


@variant(
    "cross_entropy",
    "log_of_softmax",
    formula="-sum_i y_i log p_i, p = exp(x - m) / sum(exp(x - m)), m = max(x)",
    source="the definition, on softmax/shifted",
    hazard="+inf where p_t underflows to 0, 0 * -inf = NaN where y_i and p_i are 0 (optax#896)",
)
def log_of_softmax(x: Array, y: Array, k: Arithmetic) -> Array:
    """-sum(y log p) from the shifted p."""
    return _loss(softmax.shifted(x, k), y, k)


@variant(
    "cross_entropy",
    "fused",
    formula="L - x_t; sum over y_i != 0 of y_i (L - x_i); L = m + log sum_j exp(x_j - m), m = max(x)",
    source="the fused loss of the frameworks, on logsumexp/shifted",
    hazard="L - x_t cancels where the loss is small against the logits",
    stable=True,
)
def fused(x: Array, y: Array, k: Arithmetic) -> Array:
    """logsumexp - x at the target, or weighted by y; y_i = 0 contributes exactly 0."""
    lse = logsumexp.shifted(x, k)
    if k.is_index(y):
        return k.sub(lse, k.at(x, y))
    return k.sum(k.mul(y, k.where_nonzero(y, k.sub(lse, x))))


def _loss(p: Array, y: Array, k: Arithmetic) -> Array:
    if k.is_index(y):
        return k.neg(k.log(k.at(p, y)))
    return k.neg(k.sum(k.mul(y, k.log(p))))
