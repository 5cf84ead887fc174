"""Softmax and its normaliser in one pass, in blocks, or in parts that are merged: what kernels do that cannot hold a row."""

from __future__ import annotations

from math import log

from engine.arithmetic import Arithmetic
from engine.model import Array
from engine.variants import variant

BLOCK = 128
"""Logits of a tile."""
_LAZY = 4 * log(2)
"""By how much a maximum may grow before sums are rescaled."""
_LOG2 = log(2)
_LOG2_E = 1 / log(2)


def online_sum(x: Array, k: Arithmetic) -> tuple[Array, Array]:
    """(m, s) of each row, one logit after the other: s = s exp(m - m') + exp(x_j - m'), m' = max(m, x_j)."""
    m = k.term(x, 0)
    s = k.exp(k.sub(m, k.unmasked(m)))
    for j in range(1, x.shape[-1]):
        term = k.term(x, j)
        top = k.maximum(m, term)
        base = k.unmasked(top)
        s = k.fma(s, k.exp(k.sub(m, base)), k.exp(k.sub(term, base)))
        m = top
    return m, s


def tiled_sum(x: Array, k: Arithmetic, lazy: float = 0.0) -> tuple[Array, Array]:
    """(m, s), a tile after the other; m' stays m, if that is finite, while the maximum is not more than `lazy` above it."""
    tile = k.part(x, 0, BLOCK)
    m = k.max(tile)
    s = k.sum(k.exp(k.sub(tile, k.unmasked(m))))
    for start in range(BLOCK, x.shape[-1], BLOCK):
        tile = k.part(x, start, start + BLOCK)
        top = k.maximum(m, k.max(tile))
        if lazy:
            top = k.choose(k.above(k.sub(top, k.unmasked(m)), lazy) | (m == k.constant(float("-inf"))), top, m)
        base = k.unmasked(top)
        s = k.fma(s, k.exp(k.sub(m, base)), k.sum(k.exp(k.sub(tile, base))))
        m = top
    return m, s


def merged_sum(x: Array, k: Arithmetic) -> tuple[Array, Array]:
    """(m, s) of the two halves of each row, merged: s = s_1 exp(m_1 - m) + s_2 exp(m_2 - m)."""
    half = (x.shape[-1] + 1) // 2
    parts = [k.part(x, 0, half), k.part(x, half, x.shape[-1])] if x.shape[-1] > 1 else [x]
    tops = [k.max(part) for part in parts]
    sums = [k.sum(k.exp(k.sub(part, k.unmasked(m)))) for part, m in zip(parts, tops, strict=True)]
    if len(parts) == 1:
        return tops[0], sums[0]
    top = k.maximum(*tops)
    base = k.unmasked(top)
    first, second = (k.exp(k.sub(m, base)) for m in tops)
    return top, k.fma(sums[0], first, k.mul(sums[1], second))


def _share(x: Array, m: Array, s: Array, k: Arithmetic) -> Array:
    return k.div(k.exp(k.sub(x, k.unmasked(m))), s)


@variant(
    "softmax",
    "online",
    formula="exp(x_i - m) / s, where m' = max(m, x_j), s' = s exp(m - m') + exp(x_j - m') for j = 1, 2, ...",
    source="Milakov and Gimelshein 2018, arXiv 1805.02867, algorithm 3",
    hazard="s is rescaled, and rounded, at every new maximum: ascending logits are worst; the terms are added in order",
    stable=True,
    steps=7,
)
def online(x: Array, k: Arithmetic) -> Array:
    """One pass for m and s, one for the quotients."""
    return _share(x, *online_sum(x, k), k)


@variant(
    "softmax",
    "tiled",
    formula="exp(x_i - m) / s, where m' = max(m, max_tile), s' = s exp(m - m') + sum_tile exp(x_j - m'), tiles of 128",
    source="FlashAttention, csrc/flash_attn/src/softmax.h; Dao and others 2022, arXiv 2205.14135",
    hazard="as online, once a tile",
    stable=True,
)
def tiled(x: Array, k: Arithmetic) -> Array:
    """Rescaled at every tile."""
    return _share(x, *tiled_sum(x, k), k)


@variant(
    "softmax",
    "lazy_rescale",
    formula="as tiled, but m' = m while the maximum of a tile is not more than 4 log 2 above m",
    source="FlashAttention 4: the rescaling is left out below a threshold of 4 in log2 units",
    hazard="exponentials reach 16: the sum overflows 16 times sooner",
)
def lazy_rescale(x: Array, k: Arithmetic) -> Array:
    """Rescaled where it must be."""
    return _share(x, *tiled_sum(x, k, _LAZY), k)


@variant(
    "softmax",
    "split_merge",
    formula="exp(x_i - m) / s, m = max(m_1, m_2), s = s_1 exp(m_1 - m) + s_2 exp(m_2 - m), halves of the row",
    source="the split over keys of decoding kernels (flash-decoding), and vocabularies split over devices",
    hazard="none for finite logits but one more rounding of each part's sum",
    stable=True,
)
def split_merge(x: Array, k: Arithmetic) -> Array:
    """Two halves, merged."""
    return _share(x, *merged_sum(x, k), k)


@variant(
    "softmax",
    "two_pass",
    formula="v_i 2^(n_i - N) / s, exp(x_i) = v_i 2^n_i, n_i = rint(x_i log2 e), v_i = exp(x_i - n_i log 2), N = max n_i,"
    " s = sum v_j 2^(n_j - N)",
    source="Dukhan and Ablavatski 2020, arXiv 2001.04438: the exponent is carried beside the sum, and no maximum is sought",
    hazard="x_i - n_i log 2 cancels where x_i is large; x_i log2 e may overflow; the terms are added in order",
    steps=4,
)
def two_pass(x: Array, k: Arithmetic) -> Array:
    """A pair (v, n) for every exponential and for the sum."""
    n = k.nearest(k.mul(x, k.constant(_LOG2_E)))
    v = k.exp(k.fma(k.neg(n), k.constant(_LOG2), x))
    top, s = k.term(n, 0), k.term(v, 0)
    for j in range(1, x.shape[-1]):
        power, term = k.term(n, j), k.term(v, j)
        high = k.maximum(top, power)
        s = k.add(k.scale(s, k.sub(top, high)), k.scale(term, k.sub(power, high)))
        top = high
    return k.div(k.scale(v, k.sub(n, top)), s)


@variant(
    "logsumexp",
    "online",
    formula="m + log s, where m' = max(m, x_j), s' = s exp(m - m') + exp(x_j - m')",
    source="Milakov and Gimelshein 2018, arXiv 1805.02867",
    hazard="as softmax/online; at a dominant maximum the sum rounds to 1; a row that is all -inf gives -inf",
    stable=True,
    steps=7,
)
def logsumexp_online(x: Array, k: Arithmetic) -> Array:
    """m + log s of one pass."""
    m, s = online_sum(x, k)
    return k.add(m, k.log(s))


@variant(
    "logsumexp",
    "logaddexp",
    formula="L' = max(L, x_j) + log1p(exp(-abs(L - x_j))) for j = 1, 2, ...",
    source="numpy.logaddexp.reduce",
    hazard="L is rounded at every step: n roundings of the size of L; two infinities of one sign give NaN",
    steps=5,
)
def logaddexp(x: Array, k: Arithmetic) -> Array:
    """A running logarithm."""
    total = k.term(x, 0)
    for j in range(1, x.shape[-1]):
        term = k.term(x, j)
        top, least = k.maximum(total, term), k.minimum(total, term)
        total = k.add(top, k.log1p(k.exp(k.sub(least, top))))
    return total


@variant(
    "logsumexp",
    "split_merge",
    formula="m + log(s_1 exp(m_1 - m) + s_2 exp(m_2 - m)), m = max(m_1, m_2), halves of the row",
    source="as softmax/split_merge",
    hazard="at a dominant maximum the sum rounds to 1; a row that is all -inf gives -inf",
    stable=True,
)
def logsumexp_split_merge(x: Array, k: Arithmetic) -> Array:
    """Two halves, merged."""
    m, s = merged_sum(x, k)
    return k.add(m, k.log(s))


@variant(
    "cross_entropy",
    "chunked",
    formula="m + log s - x_t by tiles of 128 as softmax/tiled; of a distribution sum over y_i != 0 of y_i (m + log s - x_i)",
    source="losses over a vocabulary in chunks or over devices (Liger, ops/cross_entropy.py)",
    hazard="as fused: L - x_t cancels where the loss is small against the logits",
    stable=True,
)
def chunked(x: Array, y: Array, k: Arithmetic) -> Array:
    """The logsumexp of tiles, less the logit of the target."""
    m, s = tiled_sum(x, k)
    lse = k.add(m, k.log(s))
    if k.is_index(y):
        return k.sub(lse, k.at(x, y))
    return k.sum(k.mul(y, k.where_nonzero(y, k.sub(lse, x))))
