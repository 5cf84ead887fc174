"""cross_entropy_grad: p_i S - y_i, S = sum_i y_i; a class index means y one-hot and S = 1."""

from __future__ import annotations

from engine.arithmetic import Arithmetic
from engine.model import Array
from engine.variants import softmax, variant
from engine.variants.softmax_vjp import pull_back


@variant(
    "cross_entropy_grad",
    "chain_rule",
    formula="p_i (v_i - sum_j v_j p_j), v = -y / p, p = exp(x - m) / sum(exp(x - m)), m = max(x)",
    source="the derivative of -sum y log p through the softmax Jacobian",
    hazard="p_i = 0 makes 0 / 0 off the target and -inf * 0 at it: one such class turns its row into NaN; 1 / p_t can overflow",
)
def chain_rule(x: Array, y: Array, k: Arithmetic) -> Array:
    """-y / p through the Jacobian of the shifted p."""
    p = softmax.shifted(x, k)
    v = k.div(k.neg(k.one_hot(y, x) if k.is_index(y) else y), p)
    return pull_back(p, v, k)


@variant(
    "cross_entropy_grad",
    "fused",
    formula="S p_i - y_i, S = sum(y), p = exp(x - m) / sum(exp(x - m)), m = max(x)",
    source="the gradient of the fused loss, as frameworks ship it",
    hazard="p_t - 1 cancels where the target is certain",
    stable=True,
)
def fused(x: Array, y: Array, k: Arithmetic) -> Array:
    """p - y from the shifted p; S p - y for a distribution."""
    p = softmax.shifted(x, k)
    if k.is_index(y):
        return k.sub(p, k.one_hot(y, p))
    return k.fma(k.sum(y), p, k.neg(y))
