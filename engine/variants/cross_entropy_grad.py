"""cross_entropy_grad: p_i S - y_i, S = sum_i y_i; a class index means y one-hot and S = 1."""

from __future__ import annotations

from engine.arithmetic import Arithmetic
from engine.model import Array
from engine.variants import FUSED, log_softmax, logsumexp, softmax, variant
from engine.variants.softmax_vjp import pull_back


@variant(
    "cross_entropy_grad",
    "chain_rule",
    formula="p_i (v_i - sum_j v_j p_j), v = -y / p, p = exp(x - m) / sum(exp(x - m)), m = max(x)",
    source="the derivative of -sum y log p through the softmax Jacobian",
    hazard="p_i = 0 makes 0 / 0 off the target and -inf * 0 at it: one such class turns its row into NaN; 1 / p_t can overflow",
    claims="permutation shift",
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
    axes=FUSED,
    issues=("tensorflow/tensorflow#126634",),
    claims="finite permutation shift",
)
def fused(x: Array, y: Array, k: Arithmetic) -> Array:
    """p - y from the shifted p; S p - y for a distribution."""
    p = softmax.shifted(x, k)
    if k.is_index(y):
        return k.sub(p, k.one_hot(y, p))
    return k.fma(k.sum(y), p, k.neg(y))


@variant(
    "cross_entropy_grad",
    "others",
    formula="p_i, at the target -sum_{j != t} p_j, p = exp(x - m) / sum(exp(x - m)), m = max(x); of a distribution as fused",
    source="p_t - 1 without the cancellation",
    hazard="none for finite logits but what p has",
    axes=FUSED,
    claims="finite permutation shift",
)
def others(x: Array, y: Array, k: Arithmetic) -> Array:
    """The sum of the others at the target."""
    if not k.is_index(y):
        return fused(x, y, k)
    p = k.without(softmax.shifted(x, k), y)
    return k.sub(p, k.mul(k.one_hot(y, p), k.sum(p)))


@variant(
    "cross_entropy_grad",
    "in_place_16_bit",
    formula="p rounded to bfloat16, then p_t - 1 rounded to it again; S p - y for a distribution",
    source="linkedin/Liger-Kernel#1268: the logits' memory holds first p, then the gradient",
    hazard="p_t is rounded before it cancels: 2^-9 absolute error at a target near certainty",
    axes=FUSED,
    issues=(
        "linkedin/Liger-Kernel#1268",
        "linkedin/Liger-Kernel#1329",
    ),
    claims="finite permutation shift",
)
def in_place_16_bit(x: Array, y: Array, k: Arithmetic) -> Array:
    """Read, modify, write."""
    p = k.stored(softmax.shifted(x, k), "bfloat16")
    if k.is_index(y):
        return k.stored(k.sub(p, k.one_hot(y, p)), "bfloat16")
    return k.stored(k.fma(k.sum(y), p, k.neg(y)), "bfloat16")


@variant(
    "cross_entropy_grad",
    "saved_16_bit_logs",
    formula="S exp(l'_i) - y_i, l' = log-probabilities rounded to bfloat16",
    source="a backward pass that kept the log-probabilities of the forward one in 16 bits",
    hazard="the absolute error 2^-9 abs(l_i) of a logarithm is a relative one of p_i",
    axes=FUSED,
    claims="finite permutation shift",
)
def saved_16_bit_logs(x: Array, y: Array, k: Arithmetic) -> Array:
    """exp of what was saved, less y."""
    p = k.exp(k.stored(log_softmax.shifted(x, k), "bfloat16"))
    if k.is_index(y):
        return k.sub(p, k.one_hot(y, p))
    return k.fma(k.sum(y), p, k.neg(y))


@variant(
    "cross_entropy_grad",
    "smoothed_apart",
    formula="S p_i - a / n - (1 - a) y_i, S = (1 - a) sum(y) + a, 1 for a class index, p = softmax/shifted, a = label_smoothing",
    source="linkedin/Liger-Kernel, ops/cross_entropy.py: eps = a / n is subtracted from every class, 1 - a from the target",
    hazard="at the target two subtractions cancel one after the other where it is certain",
    params="label_smoothing",
    needs="label_smoothing",
)
def smoothed_apart(x: Array, y: Array, k: Arithmetic, label_smoothing: float = 0.0) -> Array:
    """What is smoothed is subtracted before the target."""
    p, a, one = softmax.shifted(x, k), k.constant(label_smoothing), k.constant(1)
    share, rest = k.div(a, k.constant(x.shape[-1])), k.sub(one, a)
    if k.is_index(y):
        return k.sub(k.sub(p, share), k.mul(rest, k.one_hot(y, p)))
    p = k.mul(p, k.add(k.mul(rest, k.sum(y)), a))
    return k.sub(k.sub(p, share), k.mul(rest, y))


@variant(
    "cross_entropy_grad",
    "scaled_by_lse",
    formula="(S + 2 z L) p_i - y_i, S = sum(y), p = softmax/shifted, L = logsumexp/shifted, z = z_loss",
    source="T5X, losses.py, cross_entropy_with_logits: the factor 1 + 2 z_loss log_z",
    hazard="S + 2 z L is rounded before it is multiplied: where 2 z L is below the unit roundoff the z-loss is lost altogether",
    params="z_loss",
    needs="z_loss",
)
def scaled_by_lse(x: Array, y: Array, k: Arithmetic, z_loss: float = 0.0) -> Array:
    """One product for the loss and its z-loss."""
    whole = k.constant(1) if k.is_index(y) else k.sum(y)
    whole = k.add(k.mul(k.constant(2 * z_loss), logsumexp.shifted(x, k)), whole)
    p = softmax.shifted(x, k)
    return k.sub(k.mul(whole, p), k.one_hot(y, p) if k.is_index(y) else y)
