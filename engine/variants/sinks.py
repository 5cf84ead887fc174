"""softmax beside a sink: one more logit b that is in the sum and is no output; b = 0 is softmax1."""

from __future__ import annotations

from engine.arithmetic import Arithmetic
from engine.model import Array
from engine.variants import variant


@variant(
    "softmax",
    "sink",
    formula="exp(x_i - m) / (exp(b - m) + sum_j exp(x_j - m)), m = max(b, max_j x_j), b the sink",
    source="E. Miller, Attention Is Off By One, https://www.evanmiller.org/attention-is-off-by-one.html, b = 0",
    hazard="none for finite logits but lost digits in the rounded differences",
    stable=True,
    claims="finite permutation mask",
    params="sink",
    needs="sink",
)
def sink(x: Array, k: Arithmetic, sink: float | None = None) -> Array:
    """The sink takes part in the maximum."""
    m = k.max(x)
    if sink is None:
        e = k.exp(k.sub(x, m))
        return k.div(e, k.sum(e))
    b = k.constant(sink)
    m = k.maximum(m, b)
    e = k.exp(k.sub(x, m))
    return k.div(e, k.add(k.exp(k.sub(b, m)), k.sum(e)))


@variant(
    "softmax",
    "sink_unshifted",
    formula="exp(x_i - m) / (exp(b) + sum_j exp(x_j - m)), m = max_j x_j, b the sink",
    source="softmax1 as 1 + sum_j exp(x_j - m)",
    hazard="another function: the sink moves with the maximum, as if it were b + m, and never gets more than exp(b) / (exp(b) + 1)",
    issues=("kyegomez/AttentionIsOFFByOne#5",),
    claims="permutation mask",
    params="sink",
    needs="sink",
)
def sink_unshifted(x: Array, k: Arithmetic, sink: float | None = None) -> Array:
    """The sink is not shifted."""
    e = k.exp(k.sub(x, k.max(x)))
    s = k.sum(e)
    return k.div(e, s if sink is None else k.add(k.exp(k.constant(sink)), s))
