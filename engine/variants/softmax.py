"""softmax: p_i = exp(x_i) / sum_j exp(x_j)."""

from __future__ import annotations

from engine.arithmetic import Arithmetic
from engine.model import Array
from engine.variants import variant


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
