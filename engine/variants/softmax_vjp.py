"""softmax_vjp: p_i (g_i - sum_j g_j p_j), the incoming gradient g drawn back through softmax."""

from __future__ import annotations

from engine.arithmetic import Arithmetic
from engine.model import Array
from engine.variants import softmax, variant


@variant(
    "softmax_vjp",
    "naive",
    formula="p_i (g_i - sum_j g_j p_j), p = exp(x) / sum(exp(x))",
    source="the definition, on softmax/naive",
    hazard="NaN wherever the naive softmax is NaN; cancels where g_i is near the mean of g under p",
    claims="permutation mask",
)
def naive(x: Array, g: Array, k: Arithmetic) -> Array:
    """p (g - sum(g p)) from the naive p."""
    return pull_back(softmax.naive(x, k), g, k)


@variant(
    "softmax_vjp",
    "shifted",
    formula="p_i (g_i - sum_j g_j p_j), p = exp(x - m) / sum(exp(x - m)), m = max(x)",
    source="the definition, on softmax/shifted",
    hazard="cancels where g_i is near the mean of g under p",
    stable=True,
    claims="finite permutation shift mask",
)
def shifted(x: Array, g: Array, k: Arithmetic) -> Array:
    """p (g - sum(g p)) from the shifted p."""
    return pull_back(softmax.shifted(x, k), g, k)


def pull_back(p: Array, g: Array, k: Arithmetic) -> Array:
    """p (g - sum(g p)): the transposed Jacobian at p applied to g."""
    return k.mul(p, k.sub(g, k.sum(k.mul(g, p))))
