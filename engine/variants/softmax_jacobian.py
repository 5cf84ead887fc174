"""softmax_jacobian: J_ij = p_i (delta_ij - p_j)."""

from __future__ import annotations

from engine.arithmetic import Arithmetic
from engine.model import Array
from engine.variants import softmax, variant


@variant(
    "softmax_jacobian",
    "naive",
    formula="p_i (delta_ij - p_j), p = exp(x) / sum(exp(x))",
    source="the definition, on softmax/naive",
    hazard="NaN wherever the naive softmax is NaN; 1 - p_i cancels for p_i near 1",
    claims="permutation mask",
)
def naive(x: Array, k: Arithmetic) -> Array:
    """p_i (delta_ij - p_j) from the naive p."""
    return _jacobian(softmax.naive(x, k), k)


@variant(
    "softmax_jacobian",
    "shifted",
    formula="p_i (delta_ij - p_j), p = exp(x - m) / sum(exp(x - m)), m = max(x)",
    source="the definition, on softmax/shifted",
    hazard="1 - p_i cancels for p_i near 1",
    stable=True,
    claims="finite permutation shift mask",
)
def shifted(x: Array, k: Arithmetic) -> Array:
    """p_i (delta_ij - p_j) from the shifted p."""
    return _jacobian(softmax.shifted(x, k), k)


def _jacobian(p: Array, k: Arithmetic) -> Array:
    return k.mul(k.column(p), k.sub(k.identity(p), k.row(p)))
