"""The fast tiers of the truth against balls (python-flint): every bound they state, and every precondition of its proof."""

import hashlib
import os
import subprocess
import sys
from fractions import Fraction
from math import inf, log, log2

import numpy as np
import pytest
from flint import arb, ctx, fmpq

from engine.truth import dd, fast
from engine.truth.fast import BIAS, CHUNK, KEPT, SHORT, T0, T1, T2, TIERS, UP, Block, Buffers
from tests import judge

U = 2.0**-53
STEP = dd.table().step
REACH = STEP / 2 * (1 + 2.0**-26) + 2.0**-43  # of what is left when multiples of the step are taken off
DEEP = 2.0**-960  # smaller results are never used as they are
WIDE = 2600  # bits that show 1 - p, log p and their products where a gap of 1300 has made them small
TOTALS = {T0: 2.0**-88.9, T1: 2.0**-88.8, T2: 4.5 * U**2}  # what sums are known to, for at most 2^24 numbers


def draw(seed):
    return np.random.default_rng([ord(c) for c in str(seed)])


def exact(*parts):
    return sum((Fraction(float(part)) for part in parts), Fraction(0))


def ball(value):
    return arb(fmpq(value.numerator, value.denominator)) if isinstance(value, Fraction) else arb(value)


def bits(value):
    """Significant bits of a binary64 number."""
    numerator = abs(Fraction(float(value)).numerator)
    return (numerator // (numerator & -numerator)).bit_length() if numerator else 0


def half_ulp(values):
    """Of numbers up to these."""
    return np.exp2(np.floor(np.log2(values)) - 53)


# Exponentials


def anywhere(rng, n):
    return rng.uniform(-fast.SPAN, fast.LIMIT, n)


def half_ways(rng, n):
    """x where the multiple is as good as undecided."""
    x = (rng.integers(-15_000_000, 12_000_000, n) + 0.5) * STEP
    return x + np.spacing(x) * rng.integers(-3, 4, n)


def worst_rows(rng, n):
    """Upon rows of the table that are off by most, at both ends of what is left beside them."""
    c = dd.table()
    rows = np.concatenate([np.argsort(-abs(c.lo) / c.hi)[:500], np.argsort(-abs(c.tail30))[:500]])
    x = (rng.choice(rows, n) + 8192 * rng.integers(-1200, 1000, n) + rng.choice([0.5, -0.5, 0.0, 0.4999], n)) * STEP
    return x + np.spacing(x) * rng.integers(-2, 3, n)


POINTS = {
    "anywhere": anywhere,
    "moderate": lambda rng, n: rng.normal(0, 10, n),
    "small": lambda rng, n: rng.choice([-1, 1], n) * 2.0 ** rng.uniform(-60, 0, n),
    "tiny": lambda rng, n: rng.choice([-1, 1], n) * 2.0 ** rng.uniform(-1074, -60, n),
    "half-ways": half_ways,
    "worst rows": worst_rows,
    "short": lambda rng, n: rng.integers(-1300 * 2**6, 1024 * 2**6, n) * 2.0**-6,
    "first steps": lambda rng, n: rng.uniform(-3, 3, n) * STEP,
    "last steps": lambda rng, n: rng.choice([-fast.SPAN, fast.LIMIT], n) * (1 - rng.uniform(0, 2.0**-10, n)),
}


def points(family, size):
    """x, and what is added to it: up to half an ulp."""
    rng = draw(family)
    x = np.clip(POINTS[family](rng, size), -fast.SPAN, fast.LIMIT)
    return x, np.spacing(abs(x)) / 2 * rng.choice([1, -1, rng.uniform(-1, 1)], size)


def exponentials(tier, x, low, down=0):
    """exp(x + low) 2^(900 - down) as a pair, by the kernel of a tier."""
    hi, lo = np.zeros(x.shape), np.zeros(x.shape)
    scale = fast.UNIT_SCALE - (np.array(down) << 52)
    if tier is T0:
        fast.exp_t0(x, low, scale, hi, Buffers())
    elif tier is T1:
        fast.exp_t1(x, low, scale, hi, lo, Buffers())
    else:
        fast.exp_t2(x, low, BIAS - np.array(down), hi, lo)
    return hi, lo


def exp_error(tier, x, low):
    """log2 of the largest relative error at points, beyond the least number there is."""
    down = np.where(x > 80, 1500, 0)
    worst = arb(0)
    with ctx.workprec(300):
        for value, rest, shift, *found in zip(
            x, x * 0 if low is None else low, down, *exponentials(tier, x, low, down), strict=True
        ):
            true = (arb(float(value)) + arb(float(rest))).exp() * arb(2) ** (BIAS - int(shift))
            error = abs(arb(float(found[0])) + arb(float(found[1])) - true) - arb(2) ** -1074
            worst = max(worst, (error / true).upper())
    return log2(max(float(worst), 2.0**-300))


@pytest.mark.parametrize("family", POINTS)
@pytest.mark.parametrize("tier", TIERS, ids=lambda tier: tier.name)
def test_an_exponential_is_within_its_bound(tier, family):
    x, low = points(family, 1500)
    for rest in (None, low):
        error = exp_error(tier, x, rest)
        assert error <= log2(tier.exp), error


def test_the_bounds_of_exponentials_are_not_idle():
    """Within a third of what is seen, so that these tests would see a lost term."""
    for tier in (T0, T1):
        assert max(exp_error(tier, *points(family, 1500)) for family in POINTS) > log2(tier.exp) - 1.6


@pytest.mark.parametrize("tier", TIERS, ids=lambda tier: tier.name)
def test_the_exponential_of_nothing_is_one(tier):
    hi, lo = exponentials(tier, np.zeros(3), None)
    assert hi.tolist() == [2.0**BIAS] * 3
    assert not lo.any()


def test_the_bound_of_t0_follows_from_the_table():
    c = dd.table()
    ends = [abs(c.lo) / c.hi + half_ulp(c.hi * np.exp(r)) / (c.hi * np.exp(r)) for r in np.linspace(-REACH, REACH, 65)]
    inside = REACH**4 / 24 + 2 * 2.0**-68 + 2.0**-75.4 + 2.0**-68 + 4 * 2.0**-84 + REACH * U
    assert np.max(ends) + 1.001 * inside <= T0.exp


def test_the_bound_of_t1_follows_from_the_table():
    c = dd.table()
    w = REACH**2 / 2 * (1 + REACH / 3) + 2.0**-43 + 2.0**-38
    assert w < 2.0**-30
    powers = [2.0**-68 * REACH, (STEP / 2) ** 5 / 480, 2.0**-54 * REACH**2, 2.0**-69 * REACH, 3 * 2.0**-84, 2.0**-96]
    tail = abs(c.tail30) + 2.0**-44.5  # and what the multiple of it adds
    row = half_ulp(abs(c.tail30) + 2.0**-90) + half_ulp(tail) + half_ulp(w * c.hi) + half_ulp(tail + w * c.hi)
    assert (sum(powers) + np.max(row / c.hi)) * np.exp(REACH) * 1.001 <= T1.exp


def test_no_tail_of_the_table_leaves_its_binade_when_its_multiple_is_added():
    assert abs(dd.table().tail30).max() + 2.0**-14.528 * 2.0**-30 + 2.0**-51 < 2.0**-30


def test_the_cut_of_the_reduced_argument_keeps_its_product_with_a_row_exact():
    c = dd.table()
    grain = float(fast._constants().grain)
    assert np.spacing(grain) == 2.0**-37
    assert max(bits(head) for head in c.head30) <= 30
    assert bits(np.floor(REACH * 2.0**37 + 0.5)) <= 23


def test_multiples_of_the_pieces_of_the_step_are_exact():
    c = dd.table()
    most = int(fast.SPAN / STEP) + 1
    assert most < 2**24
    for t in (most, 2**24 - 1, *draw("t").integers(1, 2**24, 500).tolist()):
        for piece in (c.c1, c.c2):
            assert exact(t * piece) == t * exact(piece)
    assert float(fast._constants.__wrapped__().c23) == c.c2 + c.c3
    assert abs(exact(c.c2, c.c3) - exact(c.c2 + c.c3)) <= exact(abs(c.c2)) * Fraction(U)


@pytest.mark.parametrize("family", POINTS)
def test_the_reduction_is_exact(family):
    """x - t C1 is a number, and so is the error of taking t C2 from it."""
    c, b = dd.table(), Buffers()
    x, _ = points(family, 800)
    t, power = fast._reduced(x, fast.UNIT_SCALE, b)
    j = b("j", x.shape, np.int64)
    d = x - t * c.c1
    z = t * c.c2
    s = d - z
    assert abs(s).max() <= REACH
    assert abs((d - s) - z).max() <= 2.0**-68
    for xi, ti, ji, di, zi, si, pi in zip(x, t, j, d, z, s, power, strict=True):
        assert exact(di) == exact(xi) - int(ti) * exact(c.c1)
        assert exact(si) + exact((di - si) - zi) == exact(di) - exact(zi)
        assert xi > 80 or pi == 2.0 ** (BIAS + (int(ti) - int(ji)) // 8192)
        assert 0 <= ji < 8192
        assert (int(ti) - int(ji)) % 8192 == 0


# Sums


def pieces(values, tier, axis=1):
    hi, lo = values
    return fast.sum_pieces(hi, None if tier is T0 else lo, tier, axis, Buffers())


def summands(kind, n):
    """Numbers as exponentials are, the largest at least 2^900."""
    rng = draw(kind)
    hi = {
        "largest": lambda: np.full(n, 2.0**901 * (1 - U)),
        "halves of grains": lambda: 2.0**900 + (rng.integers(0, 2**20, n) + 0.5) * 2.0**865,
        "spread": lambda: 2.0**901 * np.exp(-rng.uniform(0, 40, n)),
        "one and dust": lambda: np.where(np.arange(n) == n // 2, 2.0**900, 2.0 ** rng.uniform(-70, 880, n)),
        "beside grains": lambda: (
            2.0**900 + rng.integers(0, 2**15, n) * 2.0**865 + 2.0**864 * (1 - 2.0**-20 * rng.integers(0, 2, n))
        ),
    }[kind]()
    return hi[None, :], (hi * U * rng.uniform(-1, 1, n))[None, :]


KINDS = ("largest", "halves of grains", "spread", "one and dust", "beside grains")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tier", TIERS, ids=lambda tier: tier.name)
@pytest.mark.parametrize("n", [1, 63, CHUNK])
def test_a_sum_is_within_its_bound_and_its_heads_are_exact(tier, kind, n):
    hi, lo = summands(kind, n)
    true = exact(*hi[0]) + (0 if tier is T0 else exact(*lo[0]))
    found = pieces((hi, lo), tier)
    assert len(found) == tier.grains + 1
    for head, unit in zip(found, (865, 828, 813), strict=False):
        if head is not found[-1]:
            assert (Fraction(head.item()) / 2**unit).denominator == 1
            assert abs(head.item()) < 2.0 ** (unit + 53)
    rest = true - exact(*(head.item() for head in found[:-1]))
    assert abs(rest - exact(found[-1].item())) <= Fraction(2.0**802) + true * Fraction(2.0**-92)
    total = fast._gather(found)
    assert abs(true - exact(*(part.item() for part in total))) <= Fraction(TOTALS[tier]) * true


@pytest.mark.parametrize("tier", TIERS, ids=lambda tier: tier.name)
def test_the_heads_of_a_sum_are_exact_in_any_order(tier):
    hi, lo = summands("spread", CHUNK)
    order = draw("order").permutation(CHUNK)
    for first, second, turned in zip(
        pieces((hi, lo), tier)[:-1],
        pieces((hi[:, order], lo[:, order]), tier)[:-1],
        pieces((hi.T.copy(), lo.T.copy()), tier, 0)[:-1],
        strict=True,
    ):
        assert first.item() == second.item() == turned.item()


def test_a_chunk_is_as_long_as_exact_sums_allow():
    """CHUNK numbers below 2^901 (1 + 2^-13), cut at 2^865, and CHUNK rests of half a grain each below 2^53 units of the next."""
    units = [np.spacing(float(grain)) for grain in fast._GRAINS]
    assert units == [2.0**865, 2.0**828, 2.0**813]
    assert 2.0**53 * units[0] > CHUNK * 2.0**901 * (1 + 2.0**-13)
    assert CHUNK * units[0] / 2 < 2.0**53 * units[1]
    assert CHUNK * (units[1] / 2 + 2.0**849) < 2.0**53 * units[2]
    assert all(grain / 2 > 2.0**902 for grain in fast._GRAINS[:1])


@pytest.mark.parametrize("chunks", [2, 7, 1024])
def test_chunks_are_added_exactly(chunks):
    rng = draw(chunks)
    parts = [np.full((1, 1), value) for value in rng.uniform(-1, 1, 3 * chunks) * 2.0 ** rng.integers(800, 915, 3 * chunks)]
    true = exact(*(part.item() for part in parts))
    hi, lo = (part.item() for part in fast._gather(parts))
    assert hi == float(true)
    assert abs(true - exact(hi, lo)) <= abs(true) * Fraction(U**2)


# Quotients


def quotients(count):
    """Exponentials and sums, both as pairs."""
    rng = draw("quotients")
    e = rng.uniform(1, 2, count) * 2.0 ** rng.integers(840, 902, count)
    total = np.concatenate([rng.uniform(1, 2, count // 2), 1 + rng.integers(0, 64, count - count // 2) * 2 * U]) * 2.0**902
    return dd.two_sum(e, e * U * rng.uniform(-1, 1, count)), dd.two_sum(total, total * U * rng.uniform(-1, 1, count))


def test_a_divisor_is_cut_into_pieces_short_enough_for_exact_products():
    _, (hi, lo) = quotients(1000)
    divisor = fast._Divisor.of(hi, lo)
    for parts in zip(hi, lo, divisor.first, divisor.second, divisor.third, divisor.inverse, strict=True):
        high, low, first, second, third, inverse = parts
        assert bits(first) <= 26
        assert bits(second) <= 26
        assert abs(exact(high, low) - exact(first, second, third)) <= exact(high) * Fraction(2.0**-104)
        assert abs(exact(inverse) * exact(high, low) - 1) <= Fraction(U * (1 + 2.0**-50))


def test_a_quotient_of_pairs_adds_no_more_than_it_states():
    (hi, lo), total = quotients(2000)
    divisor = fast._Divisor.of(*total)
    p, low = fast._refined(hi * divisor.inverse, hi, lo, divisor, Buffers(), "p")
    assert np.array_equal(p, p + low)
    worst = 0.0
    for parts in zip(hi, lo, *total, p, low, strict=True):
        true = exact(*parts[:2]) / exact(*parts[2:4])
        worst = max(worst, float(abs(exact(*parts[4:]) - true) / true))
    assert worst <= T1.quotient, worst / T1.quotient
    assert worst > T1.quotient / 3


def test_a_simple_quotient_adds_no_more_than_it_states():
    (hi, _), total = quotients(2000)
    p = hi * fast._Divisor.of(*total).inverse
    worst = 0.0
    for e, high, low, quotient in zip(hi, *total, p, strict=True):
        true = exact(e) / exact(high, low)
        worst = max(worst, float(abs(exact(quotient) - true) / true))
    assert worst <= T0.quotient, worst / T0.quotient


def test_the_bound_of_the_last_quotient_is_that_of_double_doubles():
    assert T2.quotient >= 15.1 * U**2


# What the tiers state


def test_the_stated_numbers_follow_from_one_another():
    """Where the sum comes in undivided, by its own proven bound: log(1 + s) for s >= near, and 1 - p >= 1/16."""
    own = {T0: 2.0**-52, T1: 2.0**-79.5, T2: dd.EXP_BOUND}
    for tier in TIERS:
        assert own[tier] <= tier.exp
        assert TOTALS[tier] <= tier.total
        logarithm = own[tier] + (TOTALS[tier] + 3 * U**2 * (tier is not T2)) / np.log1p(tier.near) + dd.LOG_BOUND
        weighted = logarithm + 7 * U**2 + 3 * 24 * U**2  # times the sum of the weights
        assert weighted * (1 + 2.0**-20) <= tier.log
        assert 2 * own[tier] + 17 * TOTALS[tier] + 19 * U**2 + (U if tier is T0 else 0) <= tier.bound
    assert T0.log > 2 * U * (1 + 2.0**-20)  # y (m - x), rounded twice


def test_bounds_of_ops():
    for tier in TIERS:
        assert fast.bound(tier, "softmax") == tier.bound >= 2 * tier.exp + tier.total + tier.quotient
        assert all(fast.bound(tier, op) == tier.log for op in fast.LOGARITHMIC)


# The ops


def normal(rng, n):
    return rng.normal(0, 3, n)


def short_numbers(rng, n):
    return np.round(rng.normal(0, 8, n) * 16) / 16


def masks(rng, n):
    x = np.where(rng.random(n) < 0.4, -inf, rng.normal(0, 3, n))
    x[rng.integers(n)] = 1.0
    return x


def one_left(rng, n):
    x = np.full(n, -inf)
    x[rng.integers(n)] = rng.normal(0, 50)
    return x


def saturated(rng, n):
    x = rng.normal(0, 2, n)
    x[rng.integers(n)] += rng.choice([14, 30, 60, 400, 660, 725, 900, 1075, 1290, 1310, 2000])
    return x


def ties(rng, n):
    return rng.choice([0.0, -40.0, -800.0, -1299.9, 3.0], 1) + rng.choice([0.0, 1.0, -rng.uniform(0, 1300)], n)


def thresholds(rng, n):
    """Where what is left beside the maximum is about to be summed anew."""
    gap = log(max(n - 1, 1)) + rng.choice([log(16), 20 * log(2), 53 * log(2)]) + rng.choice([-1e-3, 1e-3, 0])
    x = np.full(n, -gap)
    x[0] = 0.0
    return x + rng.choice([0.0, 1e-7, 700.0])


def edges(rng, n):
    """At the ends of what is taken without its maximum."""
    x = rng.uniform(-1, 1, n) * rng.choice([1.0, 500.0, 1023.0])
    x[0] = rng.choice([1024.0, 1023.9, -276.0, 276.1])
    return np.maximum(np.minimum(x, x[0]), -1024.0)


def far(rng, n):
    return rng.choice([5000.0, -5000.0, 2.0**40, -(2.0**33)]) + rng.integers(-2000, 2000, n) * rng.choice([2.0**-9, 0.25])


def ragged(rng, n):
    """Numbers of all sizes, so that their distances from the maximum have low parts."""
    x = rng.choice([-1, 1], n) * 2.0 ** rng.uniform(-60, 10.3, n)
    x[rng.integers(n)] = 1024.0 + 2.0 ** rng.uniform(-40, 6)
    return x


def tiny(rng, n):
    return rng.choice([-1, 1], n) * 2.0 ** rng.uniform(-1074, -900, n)


def large(rng, n):
    return rng.choice([-1, 1, 1], n) * 2.0 ** rng.integers(290, 369, n)


def huge(rng, n):
    return rng.choice([1.7e308, -1.7e308, 1e308, 0.0, -1300.0, 3e307], n)


def down_to_subnormals(rng, n):
    """Probabilities from 1 to below the smallest numbers."""
    x = -rng.uniform(300, 1290, n)
    x[0] = 0.0
    return x


FAMILIES = {
    f.__name__: f
    for f in (
        normal, short_numbers, masks, one_left, saturated, ties, thresholds,
        edges, far, ragged, tiny, large, huge, down_to_subnormals,
    )
}  # fmt: skip

OPS = {
    "softmax": None,
    "log_softmax": None,
    "logsumexp": None,
    "cross_entropy index": "index",
    "cross_entropy soft": "weights",
    "cross_entropy_grad index": "index",
    "cross_entropy_grad soft": "weights",
    "softmax_jacobian": None,
    "softmax_vjp": "grad",
}


def weights(rng, x):
    """At times beside the softmax, at times of the extreme sizes; nothing on masked logits but for once in a while."""
    n = len(x)
    with np.errstate(over="ignore"):
        p = np.exp(np.maximum(x - x.max(), -600))
    y = [
        rng.uniform(0, 1, n),
        p / p.sum(),
        np.eye(n)[rng.integers(n)],
        2.0 ** rng.uniform(-900, 20, n),
        2.0 ** rng.uniform(-59, -50, n),
    ]
    chosen = y[rng.integers(len(y))]
    if rng.random() < 0.9:
        chosen = np.where(np.isinf(x), 0.0, chosen)
    return chosen if chosen.max() > 2.0**-60 else np.full(n, 2.0**-59)


def grads(rng, x):
    n = len(x)
    signs = rng.choice([-1, 1], n)
    found = [
        rng.normal(0, 1, n), 2.0 ** rng.integers(-300, 90) * signs, np.full(n, 0.1), 1 + rng.integers(0, 4, n) * 2 * U,
        2.0**-300 * rng.integers(-1, 3, n) * (np.arange(n) != x.argmax()),
    ]  # fmt: skip
    chosen = found[rng.integers(len(found))]
    return chosen if chosen.any() else np.ones(n)


def batch(op, family, rows, n, seed=""):
    """Rows of a family with what an op needs."""
    rng = draw(op + family + seed)
    logits = np.array([FAMILIES[family](rng, n) for _ in range(rows)])
    extra = {
        None: lambda: None,
        "index": lambda: np.array([rng.choice([rng.integers(n), x.argmax()]) for x in logits]),
        "weights": lambda: np.array([weights(rng, x) for x in logits]),
        "grad": lambda: np.array([grads(rng, x) for x in logits]),
    }[OPS[op]]()
    return logits, extra


def elements(block):
    """Every element of a block by row and column: hi, lo, radius, masked."""
    found = {}
    for part in block.parts():
        for column in range(part.start, part.stop):
            for row in range(block.rows):
                at = (column - part.start, row) if block.axis == 0 else (row, column - part.start)
                hi = float(part.hi[at])
                radius = abs(hi) * block.bound if part.radius is None else float(part.radius[at])
                masked = part.masked is not None and bool(part.masked[at])
                found[row, column] = hi, 0.0 if part.lo is None else float(part.lo[at]), radius, masked
    return found


def prepared(name, tier, up, logits, extra):
    block = Block(name, tier, up, logits, extra, Buffers())
    block.prepare()
    return block


def attack(op, logits, extra, bits=WIDE):
    """The worst |T - (hi + lo)| over the stated radius by tier, over all elements of rows that are proven."""
    name = op.split()[0]
    good = fast.within(name, logits, extra)
    if not good.any():
        return {}
    logits, extra = logits[good], None if extra is None else extra[good]
    targets = [None] * len(logits) if extra is None else extra.tolist()
    with ctx.workprec(bits):
        truths = [judge.enclose(name, x, y, bits) for x, y in zip(logits.tolist(), targets, strict=True)]
        return {
            (tier.name, up): max(
                judged(truths[row][column], up, (op, tier.name, up, logits[row], targets[row], column), *found)
                for (row, column), found in elements(prepared(name, tier, up, logits, extra)).items()
            )
            for tier in TIERS
            for up in (0, UP)
        }


def judged(truth, up, place, hi, lo, radius, masked):
    """The error of one element over its radius; what is masked is exact, and what is deep may also be a deep number's stand-in."""
    if masked:
        assert isinstance(truth, Fraction | float), place
        assert isinstance(truth, float) or truth * 2**up == exact(hi, lo), place
        return 0.0
    assert np.isfinite([hi, lo, radius]).all(), place
    truth = ball(truth) * arb(2) ** up
    error = abs(truth - arb(hi) - arb(lo)).upper()
    if abs(hi) < DEEP and abs(truth) < 2 * DEEP:
        return 0.0
    assert error <= arb(radius), (place, hi, lo, radius, float(error))
    return float(error) / radius if radius else 0.0


@pytest.mark.half
@pytest.mark.no_cover
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("op", OPS)
def test_the_truth_is_within_its_radius(op, family):
    sizes = [(4, 5)] if op == "softmax_jacobian" else [(8, 11), (1, 13), (3, SHORT + 2)]
    for rows, n in sizes:
        found = attack(op, *batch(op, family, rows, n))
        assert found or (family == "huge" and op.split()[0] in fast.LOGARITHMIC)
        assert all(ratio <= 1 for ratio in found.values()), found


@pytest.mark.parametrize("op", OPS)
def test_a_single_logit_and_a_pair(op):
    for n in (1, 2):
        for family in ("normal", "saturated", "far"):
            found = attack(op, *batch(op, family, 6, n))
            assert all(ratio <= 1 for ratio in found.values()), found


def test_bounds_of_ops_are_not_idle():
    """Within a factor of 16 of what is seen in the first two tiers, which decide nearly everything."""
    for op in ("softmax", "log_softmax"):
        found = [attack(op, *batch(op, family, 16, 11)) for family in ("normal", "saturated", "ragged")]
        for tier in (T0, T1):
            assert max(ratios[tier.name, 0] for ratios in found) > 1 / 16


def test_both_ways_to_take_the_maximum_off_are_tried():
    assert prepared("softmax", T0, 0, *batch("softmax", "edges", 8, 11)).direct
    assert not prepared("softmax", T0, 0, *batch("softmax", "far", 8, 11)).direct
    assert not prepared("log_softmax", T0, 0, *batch("log_softmax", "normal", 8, 11)).direct


HARD = {
    "jacobian of a subnormal": ("softmax_jacobian", [0, -950.0], None),
    "jacobian of a subnormal's low part": ("softmax_jacobian", [0, -905.3], None),
    "vjp whose mean is tiny": ("softmax_vjp", [0, -735.0], [0, 2.0**-300]),
    "vjp whose mean cancels": ("softmax_vjp", [0, -540.1, -540.3], [0, 2.0**-300, -(2.0**-300) * float(np.exp(0.2))]),
    "gradient of a small weight": ("cross_entropy_grad soft", [0.0] * 50, [2.0**-59.9] + [0.0] * 49),
    "gradient of too small a weight": ("cross_entropy_grad soft", [0.0, -1.0], [2.0**-99, 0.0]),
    "gradient beside one": ("cross_entropy_grad index", [1.7e308, -1.7e308], 0),
    "loss of the largest": ("cross_entropy soft", [2.0**369.9] + [-(2.0**369.9)] * 100, [2.0**20] * 101),
    "loss of what is too large": ("cross_entropy soft", [2.0**399] + [-(2.0**399)] * 100, [2.0**20] * 101),
    "loss that cancels": ("logsumexp", [-float(np.log(3))] * 3, None),
    "loss that nearly cancels": ("logsumexp", [-float(np.log(3)) * (1 + 2.0**-40)] * 3, None),
}


@pytest.mark.parametrize("case", HARD)
def test_what_is_hard_is_within_its_radius_or_left_to_the_exact_path(case):
    op, row, extra = HARD[case]
    found = attack(op, np.array([row]), None if extra is None else np.array([extra]))
    assert all(ratio <= 1 for ratio in found.values()), found


# Long rows


def long_row(op, n, top, values=500):
    """A row of few distinct logits below `top`, targets that depend on them, and both by distinct logit with their counts."""
    rng = draw(f"{op} {n}")
    some = np.concatenate([[top, -inf], np.minimum(rng.normal(0, 4, values), 9.0)])
    which = np.concatenate([rng.integers(1, values + 2, n - 1), [0]])
    rng.shuffle(which)
    own = {"weights": np.where(np.isinf(some), 0.0, rng.uniform(0, 1, values + 2)), "grad": rng.normal(0, 1, values + 2)}
    extra = own.get(OPS[op] or "")
    count = np.bincount(which, minlength=values + 2)
    companion = np.array([int(which.argmin())]) if OPS[op] == "index" else None if extra is None else extra[which][None, :]
    return some[which][None, :], companion, which, some, extra, count


def long_truth(op, which, some, extra, count):
    """The op by distinct logit; the element of the maximum is that of the only class index."""
    e = [arb(float(x)).exp() if x > -inf else arb(0) for x in some]
    total = sum((v * int(k) for v, k in zip(e, count, strict=True)), arb(0))
    p = [v / total for v in e]
    level = total.log()
    y = [arb(0)] * len(some) if extra is None else [arb(float(v)) for v in extra]
    whole = sum((v * int(k) for v, k in zip(y, count, strict=True)), arb(0))
    mean = sum((v * q * int(k) for v, q, k in zip(y, p, count, strict=True)), arb(0))
    pull = sum((v * arb(float(x)) * int(k) for v, x, k in zip(y, some, count, strict=True) if x > -inf), arb(0))
    return {
        "softmax": lambda: p,
        "log_softmax": lambda: [arb(float(x)) - level if x > -inf else -inf for x in some],
        "logsumexp": lambda: [level],
        "cross_entropy index": lambda: [level - arb(float(some[0]))],
        "cross_entropy soft": lambda: [whole * level - pull],
        "cross_entropy_grad index": lambda: [p[0] - 1, *p[1:]],
        "cross_entropy_grad soft": lambda: [whole * q - v for q, v in zip(p, y, strict=True)],
        "softmax_vjp": lambda: [q * (v - mean) for q, v in zip(p, y, strict=True)],
    }[op]()


def attack_long(op, n, top, samples):
    """As attack, for some elements of a long row: those beside the edges of chunks, the maximum and a few more."""
    logits, companion, which, some, extra, count = long_row(op, n, top)
    with ctx.workprec(400):
        truth = long_truth(op, which, some, extra, count)
        columns = {0, n - 1, int(which.argmin()), *draw(n).integers(0, n, samples).tolist()}
        columns |= {edge + side for edge in range(CHUNK, n, max(CHUNK, n // 16 // CHUNK * CHUNK)) for side in (-1, 0)}
        return {
            tier.name: max(
                long_judged(truth, which, op, tier, part, column)
                for part in prepared(op.split()[0], tier, 0, logits, companion).parts()
                for column in columns
                if part.start <= column < part.stop
            )
            for tier in TIERS
        }


def long_judged(truth, which, op, tier, part, column):
    at = (0, column - part.start)
    value = truth[0 if len(truth) == 1 else which[column]]
    if part.masked is not None and part.masked[at]:
        return 0.0
    hi, lo = float(part.hi[at]), 0.0 if part.lo is None else float(part.lo[at])
    radius = abs(hi) * fast.bound(tier, op.split()[0]) if part.radius is None else float(part.radius[at])
    return judged(value, 0, (op, tier.name, column), hi, lo, radius, False)


LONG_OPS = [op for op in OPS if op != "softmax_jacobian"]


@pytest.mark.parametrize("n", [CHUNK, CHUNK + 1, 3 * CHUNK, KEPT + 5])
@pytest.mark.parametrize("top", [9.5, 60.0], ids=["among others", "alone"])
@pytest.mark.parametrize("op", LONG_OPS)
def test_long_rows_are_within_their_radius(op, top, n):
    found = attack_long(op, n, top, 60)
    assert all(0 < ratio <= 1 for ratio in found.values()), found


# What is not proven


def test_rows_that_are_not_proven():
    def proven(op, row, extra=None):
        return bool(fast.within(op, np.array([row]), None if extra is None else np.array([extra]))[0])

    for op in judge.OPS:
        assert proven(op, [0.0, -inf, 1.0])
        for row in ([np.nan, 0.0], [inf, 0.0], [-inf, -inf]):
            assert not proven(op, row)
        assert proven(op, [1e308, -1e308]) == (op not in fast.LOGARITHMIC)
        assert not proven("softmax_jacobian", [0.0] * (CHUNK + 1))
    for op in ("cross_entropy", "cross_entropy_grad"):
        assert proven(op, [0.0, 1.0], [1.0, 0.0])
        for y in (0.0, 2.0**-1000, 2.0**-100, 2.0**21, np.nan, inf):
            assert not proven(op, [0.0, 1.0], [y, 0.0])
        assert not proven(op, [0.0, 1.0], [1.0, 2.0**-901])
    assert proven("softmax_vjp", [0.0, 1.0], [2.0**-300, 2.0**90])
    assert proven("softmax_vjp", [0.0, 1.0], [0.0, 0.0])
    for g in (2.0**-301, 2.0**101, np.nan, -inf):
        assert not proven("softmax_vjp", [0.0, 1.0], [g, 0.0])


def test_ranges_keep_scaled_numbers_below_the_largest():
    weight, numbers, up = 2.0**20, 2**24, 2.0**UP
    assert log2(2 * fast.HUGE) + log2(weight) + log2(numbers) + UP < 1021  # sum y (m - x), scaled
    assert BIAS + 1 + log2(numbers) + 60 < 995  # a sum over the least weight, as a factor of an exact product
    assert BIAS + 1 + log2(numbers) + 90 < 1021  # sum g e
    assert fast.SPAN / log(2) + 1 < BIAS + 1022  # exponentials stay normal
    assert weight * numbers * up < 2.0**1021


# The same bits


def parts_of(op, tier, logits, extra):
    """hi and lo of every element, rows first."""
    block = prepared(op.split()[0], tier, 0, logits, extra)
    found = [
        [block.laid(np.array(part.hi)), block.laid(np.array(part.hi * 0 if part.lo is None else part.lo))] for part in block.parts()
    ]
    return np.concatenate([np.concatenate(columns, axis=1) for columns in zip(*found, strict=True)], axis=1)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("tier", TIERS, ids=lambda tier: tier.name)
def test_a_row_gives_the_same_anywhere_in_any_block(op, tier):
    n = 6 if op == "softmax_jacobian" else 40
    logits, extra = batch(op, "normal", 40, n)
    whole = parts_of(op, tier, logits, extra)
    for chosen in (slice(7, 9), slice(30, 40), slice(None, None, -1)):
        some = parts_of(op, tier, logits[chosen], None if extra is None else extra[chosen])
        assert np.array_equal(whole[chosen], some)


@pytest.mark.parametrize("tier", TIERS, ids=lambda tier: tier.name)
def test_an_exponential_does_not_depend_on_its_neighbours(tier):
    x = draw("neighbours").normal(0, 20, (3, 701))
    whole = exponentials(tier, x, None)
    for part in (np.s_[1:2, 300:301], np.s_[:, ::7], np.s_[2, 3:20]):
        for flat, alone in zip(whole, exponentials(tier, x[part].copy(), None), strict=True):
            assert np.array_equal(flat[part], alone)
    assert np.array_equal(whole[0].T, exponentials(tier, x.T.copy(), None)[0])


DIGEST = "from tests.engine.test_fast import digest; import sys; sys.stdout.write(digest())"


def digest():
    """Of the bits of every op and tier, on rows short and long; from integers, so that nothing else has a part in it."""
    seen = hashlib.sha256()
    rng = np.random.Generator(np.random.PCG64(7))
    for op, n in ((op, n) for op in OPS for n in (3, 30, 200, CHUNK + 77)):
        if op == "softmax_jacobian" and n > 30:
            continue
        rows = 1 if n > CHUNK else 5
        logits = rng.integers(-(2**20), 2**20, (rows, n)) * 2.0**-16 + rng.integers(0, 2, (rows, 1)) * 3000.0
        extra = {
            None: None,
            "index": rng.integers(0, n, rows),
            "weights": rng.integers(1, 2**20, (rows, n)) * 2.0**-20,
            "grad": rng.integers(-(2**20), 2**20, (rows, n)) * 2.0**-20,
        }[OPS[op]]
        for tier in TIERS:
            seen.update(parts_of(op, tier, logits, extra).tobytes())
    return seen.hexdigest()


def features():
    """What this processor has beyond the baseline, as NumPy names it."""
    umath = np._core._multiarray_umath
    return [name for name in umath.__cpu_dispatch__ if umath.__cpu_features__.get(name)]


def wide_features():
    return [name for name in features() if "512" in name or name == "X86_V4"]


@pytest.mark.parametrize("disabled", [features, wide_features], ids=["all", "512 bits"])
def test_the_bits_are_the_same_on_every_processor(disabled):
    names = disabled()
    if not names:
        pytest.skip("this processor has nothing to disable")
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(names)}
    run = subprocess.run([sys.executable, "-c", DIGEST], cwd=root, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout == digest()


# Full counts


@pytest.mark.soak
@pytest.mark.parametrize("family", POINTS)
@pytest.mark.parametrize("tier", TIERS, ids=lambda tier: tier.name)
def test_exponentials_soak(tier, family):
    error = exp_error(tier, *points(family, 40_000))
    assert error <= log2(tier.exp), error


@pytest.mark.soak
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("op", OPS)
def test_the_truth_soak(op, family):
    n = 5 if op == "softmax_jacobian" else 14
    for seed in range(60):
        found = attack(op, *batch(op, family, 10, n, str(seed)))
        assert all(ratio <= 1 for ratio in found.values()), (seed, found)


@pytest.mark.soak
@pytest.mark.parametrize("op", LONG_OPS)
def test_long_rows_soak(op):
    for n, top in ((1 << 20, 9.5), (1 << 20, 60.0), (1 << 24, 9.5)):
        found = attack_long(op, n, top, 2000)
        assert all(0 < ratio <= 1 for ratio in found.values()), found
