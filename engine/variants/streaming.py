"""softmax and logsumexp in one pass, in tiles, or in parts that are merged: what kernels do that cannot hold a row."""

from __future__ import annotations

from math import log

from engine.arithmetic import Arithmetic
from engine.formats import Format
from engine.model import Array
from engine.parameters import Integer, Number
from engine.variants import FUSED, IN_ORDER, SUMS, variant
from engine.variants.softmax import LOG2_E

_TILE = Integer(128, 1, 1 << 20)
_LN2 = (float.fromhex("0x1.62e42fefa39efp-1"), float.fromhex("0x1.abc9e3b39803fp-56"))
"""log 2 as a sum of two binary64 numbers."""


def online_sum(x: Array, k: Arithmetic) -> tuple[Array, Array]:
    """(m, s) of each row, one logit after the other: s = s exp(m - m') + exp(x_j - m'), m' = max(m, x_j)."""
    m = k.running_max(x)
    base = k.unmasked(m)
    s = k.recurrence(k.exp(k.sub(k.before(m), base)), k.exp(k.sub(x, base)))
    return k.max(x), s


def merged_sum(x: Array, k: Arithmetic, parts: int) -> tuple[Array, Array]:
    """(m, s) of parts of each row, merged: s = sum_b s_b exp(m_b - m), m = max_b m_b."""
    size = -(-x.shape[-1] // parts)
    tops = k.stack([k.max(part) for part in k.tiles(x, size)])
    e = k.exp(k.sub(x, k.spread(k.unmasked(tops), size, x)))
    sums = k.stack([k.sum(part) for part in k.tiles(e, size)])
    m = k.max(tops)
    return m, k.sum(k.mul(sums, k.exp(k.sub(tops, k.unmasked(m)))))


def tiled_sum(x: Array, k: Arithmetic, tile: int, tops: Array) -> tuple[Array, Array, Array]:
    """(e, f, s): exponentials of x - m_b in tile b, m_b given; f_b = exp(m_(b-1) - m_b); s = s f_b + the tile's sum of e."""
    base = k.unmasked(tops)
    e = k.exp(k.sub(x, k.spread(base, tile, x)))
    factors = k.exp(k.sub(k.before(tops), base))
    return e, factors, k.recurrence(factors, k.stack([k.sum(part) for part in k.tiles(e, tile)]))


def _maxima(x: Array, k: Arithmetic, tile: int) -> Array:
    """The largest logit of each row up to the end of each tile."""
    return k.running_max(k.stack([k.max(part) for part in k.tiles(x, tile)]))


@variant(
    "softmax",
    "online",
    formula="exp(x_i - m) / s, where m' = max(m, x_j), s' = s exp(m - m') + exp(x_j - m') for j = 1, 2, ...",
    source="Milakov and Gimelshein 2018, arXiv 1805.02867, algorithm 3",
    hazard="s is rescaled, and rounded, at every new maximum, most often where logits ascend; terms are added in order, and stall",
    stable=True,
    axes=IN_ORDER,
    claims="finite shift mask",
    steps=1,
)
def online(x: Array, k: Arithmetic) -> Array:
    """One pass for m and s, one for the quotients."""
    m, s = online_sum(x, k)
    return k.div(k.exp(k.sub(x, k.unmasked(m))), s)


@variant(
    "softmax",
    "tiled",
    formula="e_i / s; for each tile of logits m' = max(m, its maximum), s' = s f + its sum of e, e' = e f for the tiles before,"
    " f = exp(m - m'), e_j = exp(x_j - m')",
    source="Dao and others 2022 (FlashAttention), arXiv 2205.14135, algorithm 1",
    hazard="e and s are rescaled, and rounded, at every tile that raises the maximum",
    stable=True,
    axes=FUSED,
    claims="finite shift mask",
    tile=_TILE,
)
def tiled(x: Array, k: Arithmetic, tile: int) -> Array:
    """Rescaled at every tile."""
    e, factors, s = tiled_sum(x, k, tile, _maxima(x, k, tile))
    return k.div(k.rescaled(e, factors, tile), s)


@variant(
    "softmax",
    "tiled_scaled",
    formula="as tiled, e_j = 2^(x_j c - m' c), f = 2^((m - m') c), c = scale log2 e",
    source="FlashAttention, csrc/flash_attn/src/softmax.h: tiles, and the scale folded into the exponent, one fma a logit",
    hazard="as exp2_scaled and tiled: m' c is rounded anew in every tile that raises the maximum, and so tiles are off against each"
    " other the more the further the logits are from 0",
    axes=FUSED,
    claims="mask",
    params="scale",
    tile=_TILE,
)
def tiled_scaled(x: Array, k: Arithmetic, tile: int, scale: float = 1.0) -> Array:
    """Rescaled at every tile, by powers of two."""
    c, tops = k.constant(scale * LOG2_E), _maxima(x, k, tile)
    base = k.unmasked(tops)
    e = k.exp2(k.fma(x, c, k.neg(k.spread(k.mul(base, c), tile, x))))
    factors = k.exp2(k.mul(k.sub(k.before(tops), base), c))
    s = k.recurrence(factors, k.stack([k.sum(part) for part in k.tiles(e, tile)]))
    return k.div(k.rescaled(e, factors, tile), s)


@variant(
    "softmax",
    "lazy_rescale",
    formula="as tiled, but m' = m for a tile whose maximum is at most threshold log 2 above m",
    source="FlashAttention 4, flash_attn/cute/flash_fwd_sm100.py: no rescaling below a threshold in log2 units, there 8 for 16-bit"
    " inputs, else 0",
    hazard="exponentials reach 2^threshold: sums overflow so many times sooner, in 8-bit formats the exponentials themselves",
    issues=("Dao-AILab/flash-attention#2577",),
    axes=FUSED,
    claims="shift mask",
    tile=_TILE,
    threshold=Number(4.0, 0.0, 1000.0),
)
def lazy_rescale(x: Array, k: Arithmetic, tile: int, threshold: float) -> Array:
    """Rescaled where it must be."""
    first, *others = [k.max(part) for part in k.tiles(x, tile)]
    tops = [first]
    for top in others:
        m = tops[-1]
        rise = k.sub(top, k.unmasked(m))
        rises = k.exceeds(rise, k.constant(threshold * log(2))) | k.equals(m, float("-inf"))
        tops.append(k.choose(rises | k.isnan(top), top, m))
    e, factors, s = tiled_sum(x, k, tile, k.stack(tops))
    return k.div(k.rescaled(e, factors, tile), s)


@variant(
    "softmax",
    "split_merge",
    formula="exp(x_i - m) / s, m = max_b m_b, s = sum_b s_b exp(m_b - m), m_b and s_b those of so many parts of the row",
    source="the split over keys of decoding kernels (flash-decoding), and vocabularies split over devices",
    hazard="none for finite logits but one more rounding of each part's sum; a row that is all -inf gives NaN",
    stable=True,
    claims="finite shift mask",
    parts=Integer(2, 1, 1 << 20),
)
def split_merge(x: Array, k: Arithmetic, parts: int) -> Array:
    """Parts, merged."""
    m, s = merged_sum(x, k, parts)
    return k.div(k.exp(k.sub(x, k.unmasked(m))), s)


@variant(
    "softmax",
    "two_pass",
    formula="v_i 2^(n_i - N) / s, exp(x_i) = v_i 2^n_i, n_i = rint(x_i log2 e), v_i = exp(x_i - n_i log 2), N = max n_j,"
    " s = sum_j v_j 2^(n_j - N)",
    source="Dukhan and Ablavatski 2020, arXiv 2001.04438: the exponent is carried beside the sum, and no maximum is sought",
    hazard="x - n log 2 cancels, and log 2 has two parts only: the larger abs(x), the less is right; x log2 e overflows near the"
    " largest number; terms are added in order, and stall",
    axes=IN_ORDER,
    claims="mask",
    steps=1,
)
def two_pass(x: Array, k: Arithmetic) -> Array:
    """A pair (v, n) for every exponential and for the sum."""
    n = k.nearest(k.mul(x, k.constant(LOG2_E)))
    rest, shift = x, k.neg(k.where_finite(n))
    for part in _parts_of_log_2(k.fmt):
        rest = k.fma(shift, k.constant(part), rest)
    v, top = k.exp(rest), k.running_max(n)
    base = k.unmasked(top)
    s = k.recurrence(k.exp2(k.sub(k.before(top), base)), k.mul(v, k.exp2(k.sub(n, base))))
    return k.div(k.mul(v, k.exp2(k.sub(n, k.unmasked(k.max(n))))), s)


def _parts_of_log_2(fmt: Format) -> tuple[float, float]:
    """log 2 in two parts, the first of half the format's digits, so that small integers times it are exact (Cody and Waite)."""
    unit = 2.0 ** -(fmt.precision // 2 + 1)
    high = _LN2[0] // unit * unit
    return high, (_LN2[0] - high) + _LN2[1]


@variant(
    "logsumexp",
    "online",
    formula="m + log s, where m' = max(m, x_j), s' = s exp(m - m') + exp(x_j - m') for j = 1, 2, ...",
    source="Milakov and Gimelshein 2018, arXiv 1805.02867, algorithm 3",
    hazard="as softmax/online; at a dominant maximum the sum rounds to 1 and its logarithm to 0",
    stable=True,
    axes=IN_ORDER,
    claims="finite mask",
    steps=1,
)
def online_logsumexp(x: Array, k: Arithmetic) -> Array:
    """m + log s of one pass."""
    m, s = online_sum(x, k)
    return k.add(m, k.log(s))


@variant(
    "logsumexp",
    "logaddexp",
    formula="L' = M + log1p(exp(-abs(L - x_j))), M = max(L, x_j), for j = 1, 2, ..., from L = x_0",
    source="numpy.logaddexp.reduce",
    hazard="L is rounded at every step, n times by up to u abs(L): far from 0 what a logit adds is lost",
    axes=tuple(axis for axis in SUMS if axis not in ("accumulator", "summation")),
    claims="finite mask",
    steps=12,
)
def logaddexp(x: Array, k: Arithmetic) -> Array:
    """A running logarithm."""
    total = k.term(x, 0)
    for j in range(1, x.shape[-1]):
        term = k.term(x, j)
        top = k.maximum(total, term)
        gap = k.sub(k.minimum(total, term), k.where_finite(top))
        total = k.add(top, k.log1p(k.exp(gap)))
    return total


@variant(
    "logsumexp",
    "split_merge",
    formula="m + log sum_b s_b exp(m_b - m), m = max_b m_b, m_b and s_b those of so many parts of the row",
    source="as softmax/split_merge",
    hazard="at a dominant maximum the sum rounds to 1 and its logarithm to 0",
    stable=True,
    claims="finite mask",
    parts=Integer(2, 1, 1 << 20),
)
def split_merge_logsumexp(x: Array, k: Arithmetic, parts: int) -> Array:
    """Parts, merged."""
    m, s = merged_sum(x, k, parts)
    return k.add(m, k.log(s))


@variant(
    "cross_entropy",
    "chunked",
    formula="m + log s - x_t, m and s by tiles as in softmax/tiled; of a distribution sum over y_i != 0 of y_i (m + log s - x_i)",
    source="losses over a vocabulary in chunks or over devices (Liger, ops/cross_entropy.py)",
    hazard="as fused: L - x_t cancels where the loss is small against the logits",
    axes=FUSED,
    claims="finite",
    tile=_TILE,
)
def chunked(x: Array, y: Array, k: Arithmetic, tile: int) -> Array:
    """The logsumexp of tiles, less the logit of the target."""
    _, _, s = tiled_sum(x, k, tile, _maxima(x, k, tile))
    lse = k.add(k.max(x), k.log(s))
    if k.is_index(y):
        return k.sub(lse, k.at(x, y))
    return k.sum(k.mul(y, k.where_nonzero(y, k.sub(lse, x))))
