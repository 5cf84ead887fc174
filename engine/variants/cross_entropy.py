"""cross_entropy: -log p_t for a class index t, -sum_i y_i log p_i for a distribution y."""

from __future__ import annotations

from engine.arithmetic import Arithmetic
from engine.model import Array
from engine.variants import log_softmax, logsumexp, softmax, variant


@variant(
    "cross_entropy",
    "naive",
    formula="-sum_i y_i log p_i, p = exp(x) / sum(exp(x))",
    source="the definition, on softmax/naive",
    hazard="NaN wherever the naive softmax is NaN, +inf where p_t is 0, and 0 * -inf = NaN where y_i and p_i are 0",
    claims="permutation",
)
def naive(x: Array, y: Array, k: Arithmetic) -> Array:
    """-sum(y log p) from the naive p."""
    return _loss(softmax.naive(x, k), y, k)


@variant(
    "cross_entropy",
    "log_of_softmax",
    formula="-sum_i y_i log p_i, p = exp(x - m) / sum(exp(x - m)), m = max(x)",
    source="the definition, on softmax/shifted",
    hazard="+inf where p_t underflows to 0, 0 * -inf = NaN where y_i and p_i are 0",
    issues=("onnx/onnx#8423",),
    claims="permutation shift",
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
    issues=("pytorch/pytorch#11752",),
    claims="finite permutation",
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


@variant(
    "cross_entropy",
    "split",
    formula="log S - (x_t - m); sum over y_i != 0 of y_i (log S - (x_i - m)); S = sum_j exp(x_j - m), m = max(x)",
    source="PyTorch, JAX: the loss of log_softmax/shifted",
    hazard="at a dominant target the sum rounds to 1 and the loss to 0",
    stable=True,
    issues=("pytorch/pytorch#113708",),
    claims="finite permutation shift",
)
def split(x: Array, y: Array, k: Arithmetic) -> Array:
    """The maximum cancels before the logarithm is added."""
    d = k.sub(x, k.max(x))
    log = k.log(k.sum(k.exp(d)))
    if k.is_index(y):
        return k.sub(log, k.at(d, y))
    return k.sum(k.mul(y, k.where_nonzero(y, k.sub(log, d))))


@variant(
    "cross_entropy",
    "log_with_eps",
    formula="-sum_i y_i log(p_i + 1e-7), p = exp(x - m) / sum(exp(x - m)), m = max(x)",
    source="losses that add an epsilon to the probability",
    hazard="the loss is at most 16.1, and negative where the target is certain",
    claims="permutation shift",
)
def log_with_eps(x: Array, y: Array, k: Arithmetic) -> Array:
    """-sum(y log(p + eps))."""
    return _loss(k.add(softmax.shifted(x, k), k.constant(1e-7)), y, k)


@variant(
    "cross_entropy",
    "clipped",
    formula="-sum_i y_i log min(max(p_i, eps), 1 - eps), eps = 1e-7, p = exp(x - m) / sum(exp(x - m)), m = max(x)",
    source="Keras, categorical_crossentropy of probabilities",
    hazard="the loss is at most 16.118 (float16: 15.95), with no gradient beyond, and at least 1e-7; in 16 bits 1 - eps is 1,"
    " in 8 bits eps is 0",
    claims="permutation shift",
)
def clipped(x: Array, y: Array, k: Arithmetic) -> Array:
    """-sum(y log(clip(p)))."""
    eps = k.constant(1e-7)
    p = k.minimum(k.maximum(softmax.shifted(x, k), eps), k.sub(k.constant(1.0), eps))
    return _loss(p, y, k)


@variant(
    "cross_entropy",
    "log1p_of_others",
    formula="log1p(sum_{j != t} exp(x_j - x_t)); of a distribution as fused",
    source="the loss as a function of the differences from the target: softplus for two classes",
    hazard="overflows where a logit is the format's exp limit above the target's; exact to the last digits where the loss is small",
    claims="permutation",
)
def log1p_of_others(x: Array, y: Array, k: Arithmetic) -> Array:
    """log(1 + the others' share)."""
    if not k.is_index(y):
        return fused(x, y, k)
    return k.log1p(k.sum(k.without(k.exp(k.sub(x, k.at(x, y))), y)))


@variant(
    "cross_entropy",
    "smoothed_apart",
    formula="(1 - a) sum_i y_i (-l_i) + (a / n) sum_i (-l_i), l = log_softmax/shifted, a = label_smoothing",
    source="PyTorch, cross_entropy with label_smoothing",
    hazard="the sum over all classes loses the digits of the target's term; a logit of -inf makes it infinite, as it is defined",
    issues=("facebookresearch/pytext#1698",),
    params="label_smoothing",
    needs="label_smoothing",
)
def smoothed_apart(x: Array, y: Array, k: Arithmetic, label_smoothing: float = 0.0) -> Array:
    """The loss of the target and that of all classes."""
    lost = k.neg(log_softmax.shifted(x, k))
    a = k.constant(label_smoothing)
    share = k.div(a, k.constant(x.shape[-1]))
    own = k.at(lost, y) if k.is_index(y) else k.sum(k.mul(y, k.where_nonzero(y, lost)))
    return k.add(k.mul(k.sub(k.constant(1), a), own), k.mul(share, k.sum(lost)))
