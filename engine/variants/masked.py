"""softmax of rows in which logits are masked, that is -inf: what is put in their place, and made of rows that have no others."""

from __future__ import annotations

from math import inf

from engine.arithmetic import Arithmetic
from engine.model import Array
from engine.parameters import Number
from engine.variants import softmax, variant


@variant(
    "softmax",
    "masked_zero",
    formula="exp(x_i - m) / S, m = max_j x_j, or 0 for a row that is all -inf; S = sum_j exp(x_j - m), or 1 where that is 0",
    source="PyTorch, _safe_softmax (pytorch/pytorch#131060); FlashAttention, csrc/flash_attn/src/softmax.h",
    hazard="a row that is all -inf gives zeros, which no distribution is, and hides what made it so",
    stable=True,
    claims="finite permutation shift mask",
)
def masked_zero(x: Array, k: Arithmetic) -> Array:
    """A row without a number gives zeros."""
    e = k.exp(k.sub(x, k.unmasked(k.max(x))))
    s = k.sum(e)
    return k.div(e, k.choose(k.equals(s, 0), k.constant(1), s))


@variant(
    "softmax",
    "masked_lowest",
    formula="softmax/shifted with the format's lowest finite number for every -inf",
    source="masks of finfo.min",
    hazard="a row that is all -inf gives 1/n, and a mask competes with logits as low as itself",
    claims="finite permutation",
    params="mask",
)
def masked_lowest(x: Array, k: Arithmetic, kept: Array | None = None) -> Array:
    """The mask is the lowest number."""
    return softmax.shifted(_filled(x, -k.fmt.largest, kept, k), k)


@variant(
    "softmax",
    "masked_value",
    formula="softmax/shifted with the number mask for every -inf",
    source="masks of -1e9, or another large number",
    hazard="a row that is all -inf gives 1/n, and NaN where the format has no such number; logits below the mask lose to it",
    issues=("ahrefs/ocannl#548",),
    claims="finite permutation",
    params="mask",
    mask=Number(-1e9, high=0.0),
)
def masked_value(x: Array, k: Arithmetic, mask: float, kept: Array | None = None) -> Array:
    """The mask is a number, -inf in a format that cannot hold it."""
    return softmax.shifted(_filled(x, mask, kept, k), k)


def _filled(x: Array, value: float, kept: Array | None, k: Arithmetic) -> Array:
    """A number where logits are -inf, or not kept."""
    fill = k.constant(value)
    x = k.choose(k.equals(x, -inf), fill, x)
    return x if kept is None else k.choose(kept, x, fill)
