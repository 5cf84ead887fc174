"""Double-double arithmetic, its exp and log, against balls (python-flint) and rationals; every precondition of their bounds."""

from fractions import Fraction
from math import log2

import numpy as np
import pytest
from flint import arb, ctx

from engine.truth import dd

U = 2.0**-53
BITS = 260  # of the balls: far beyond every bound
STEP = dd.table().step  # log 2 / 8192


@pytest.fixture(autouse=True)
def precise():
    with ctx.workprec(BITS):
        yield


def draw(seed):
    return np.random.default_rng(seed)


def ball(*parts):
    return sum((arb(float(part)) for part in parts), arb(0))


def exact(*parts):
    return sum((Fraction(float(part)) for part in parts), Fraction(0))


def bits(value):
    """Significant bits of a binary64 number."""
    numerator = abs(Fraction(float(value)).numerator)
    return (numerator // (numerator & -numerator)).bit_length() if numerator else 0


def is_multiple(value, places):
    return (Fraction(float(value)) * 2**places).denominator == 1


def worst(errors):
    """log2 of the largest relative error (balls)."""
    return log2(max(max(float(abs(error).upper()) for error in errors), 2.0**-BITS))


def pairs(rng, size, low=-300, high=300):
    """Normalised pairs of either sign, their low parts anything from 0 to half an ulp."""
    hi = rng.uniform(1, 2, size) * 2.0 ** rng.integers(low, high, size) * rng.choice([-1, 1], size)
    return dd.two_sum(hi, hi * U * rng.choice([0, 1, -1, 2.0**-20], size) * rng.uniform(0, 1, size))


# Arithmetic


@pytest.mark.parametrize("gap", [0, 1, 30, 53, 54, 106, 500])
def test_sums_lose_nothing(gap):
    rng = draw(gap)
    a, b = rng.uniform(-2, 2, 300), rng.uniform(-2, 2, 300) * 2.0**-gap
    for large, small in ((a, b), (b, a)):
        for x, y, hi, lo in zip(large, small, *dd.two_sum(large, small), strict=True):
            assert exact(hi, lo) == exact(x, y)
            assert hi == x + y
    large, small = np.where(abs(a) < abs(b), b, a), np.where(abs(a) < abs(b), a, b)
    assert np.array_equal(dd.fast_two_sum(large, small), dd.two_sum(large, small))


def test_a_fast_sum_loses_nothing_where_the_first_is_a_multiple_of_an_ulp_of_the_second():
    rng = draw(1)
    b = rng.uniform(1, 2, 500)
    a = rng.integers(-(2**20), 2**20, 500) * 2.0**-52
    assert np.array_equal(dd.fast_two_sum(a, b), dd.two_sum(a, b))


@pytest.mark.parametrize("scale", [0, 400, -400])
def test_a_product_loses_nothing(scale):
    rng = draw(scale + 1000)
    full = rng.integers(2**52, 2**53, (2, 300)) | 1
    a, b = full[0] * 2.0 ** (scale - 52), full[1] * 2.0**-52
    for x, y, hi, lo in zip(a, b, *dd.two_prod(a, b), strict=True):
        assert exact(hi, lo) == exact(x) * exact(y)
        assert hi == x * y


def test_a_product_below_the_range_is_off_by_a_subnormal():
    rng = draw(2)
    a, b = rng.uniform(1, 2, 300) * 2.0**-500, rng.uniform(1, 2, 300) * 2.0**-500
    for x, y, hi, lo in zip(a, b, *dd.two_prod(a, b), strict=True):
        assert abs(exact(hi, lo) - exact(x) * exact(y)) <= Fraction(1, 2**1073)


EXPECTED = {
    "add": (lambda a, b: a + b, 3 * U**2 * (1 + 2.0**-50)),
    "mul": (lambda a, b: a * b, 7 * U**2),
    "div": (lambda a, b: a / b, 15.1 * U**2),
}


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("kin", ["apart", "near", "opposite"])
def test_pairs_are_added_multiplied_and_divided_to_their_bound(name, kin):
    rng = draw(len(name + kin))
    a, b = pairs(rng, 1000, -30, 30), pairs(rng, 1000, -30, 30)
    if kin != "apart":
        sign = 1 if kin == "near" else -1
        b = dd.two_sum(sign * a[0] * (1 + U * 2 * rng.integers(-2, 3, 1000)), sign * a[1] * rng.uniform(0, 1, 1000))
    operation, bound = EXPECTED[name]
    for ah, al, bh, bl, hi, lo in zip(*a, *b, *getattr(dd, name)(*a, *b), strict=True):
        value = operation(exact(ah, al), exact(bh, bl))
        assert abs(exact(hi, lo) - value) <= abs(value) * Fraction(bound)
        assert hi == hi + lo


# The table


def log_of_two_over_8192():
    return arb(2).log() / 8192


def test_log_2_is_cut_into_pieces_short_enough_for_exact_products():
    c = dd.table()
    assert bits(c.c1) <= 29
    assert is_multiple(c.c1, 42)
    assert bits(c.c2) <= 28
    assert is_multiple(c.c2, 75)
    assert is_multiple(c.c3_short, 93)
    assert bits(c.c3_short) + 24 <= 38
    for piece, limit in ((c.c2, -47.4), (c.c3, -79.2), (c.c3_short, -79.2), (c.c4, -94.7)):
        assert log2(abs(piece)) < limit


def test_the_pieces_of_log_2_add_up():
    c = dd.table()
    rest = log_of_two_over_8192() - ball(c.c1, c.c2)
    assert c.step == float(log_of_two_over_8192().mid())
    assert abs(rest - ball(c.c3)) < arb(abs(c.c3) * U)
    assert abs(rest - ball(c.c3_short, c.c4)) < arb(2.0**-148)


def test_rows_of_the_table_are_the_powers_of_two():
    c = dd.table()
    for j, (hi, lo, lowest, head, tail) in enumerate(zip(c.hi, c.lo, c.lowest, c.head30, c.tail30, strict=True)):
        power = (log_of_two_over_8192() * j).exp()
        assert abs(power - ball(hi, lo, lowest)) < arb(2.0**-159)
        assert hi == hi + lo
        assert lo == lo + lowest
        assert bits(head) <= 30
        assert abs(tail) <= 2.0**-30
        assert abs(power - ball(head, tail)) <= arb(2.0**-84)


def test_the_table_begins_with_one_and_rises():
    c = dd.table()
    assert [column[0] for column in (c.hi, c.lo, c.lowest, c.head30, c.tail30)] == [1, 0, 0, 1, 0]
    assert (np.diff(c.hi) > 0).all()
    assert c.hi[-1] < 2


def test_nobody_can_change_the_table():
    assert not any(column.flags.writeable for column in dd.table() if isinstance(column, np.ndarray))
    assert dd.table() is dd.table()


# exp


def half_ways(rng, size):
    """x where t is as good as undecided."""
    t = rng.integers(-16_000_000, 16_000_000, size)
    x = (t + 0.5) * STEP
    return x + np.spacing(x) * rng.integers(-3, 4, size)


def every_row():
    """Each row of the table at its worst: r = +-C/2, at both ends of the range and in the middle."""
    j = np.arange(8192)
    shift = 8192 * np.array([[-2000], [0], [2000]])
    return np.clip(((j + shift)[..., None] + [0.5, -0.5]).reshape(-1) * STEP, -1400, 1400)


ARGUMENTS = {
    "anywhere": lambda rng, n: rng.uniform(-1400, 1400, n),
    "moderate": lambda rng, n: rng.uniform(-40, 40, n),
    "small": lambda rng, n: rng.choice([-1, 1], n) * 2.0 ** rng.uniform(-80, 0, n),
    "half-ways": half_ways,
    "rows": lambda rng, n: rng.choice(every_row(), n, replace=False),
    "short": lambda rng, n: rng.integers(-1400 * 2**9, 1400 * 2**9, n) * 2.0**-9,
    "first steps": lambda rng, n: rng.uniform(-3, 3, n) * STEP,
}


def arguments(family, size):
    """x as a pair, the low part anything up to an ulp of the high one."""
    rng = draw(sorted(ARGUMENTS).index(family))
    x = ARGUMENTS[family](rng, size)
    return x, np.spacing(x) * rng.choice([0, 1, -1, 0.5, -0.5, rng.uniform(-1, 1)], size)


def exp_errors(xh, xl):
    hi, lo, k = dd.exp(xh, xl)
    for x, rest, high, low, power in zip(xh, xl, hi, lo, k.tolist(), strict=True):
        value = ball(x, rest).exp()
        yield (ball(high, low) * arb(2) ** power - value) / value


@pytest.mark.parametrize("family", ARGUMENTS)
def test_exp_is_within_its_bound(family):
    error = worst(exp_errors(*arguments(family, 2000)))
    assert error < log2(dd.EXP_BOUND), error


@pytest.mark.parametrize("family", ARGUMENTS)
def test_exp_is_a_normalised_pair_beside_one_and_two(family):
    hi, lo, k = dd.exp(*arguments(family, 2000))
    assert k.dtype == np.int64
    assert hi.min() > 0.9999
    assert hi.max() < 2.0001
    assert np.array_equal(hi, hi + lo)


def test_exp_of_nothing_is_one():
    hi, lo, k = dd.exp(np.zeros(1), np.zeros(1))
    assert (hi[0], lo[0], k[0]) == (1, 0, 0)


def test_exp_at_the_ends_of_its_range():
    x = np.array([1400.0, -1400.0])
    for low in (np.spacing(x), -np.spacing(x)):
        assert worst(exp_errors(x, low)) < log2(dd.EXP_BOUND)


EDGES = np.array([0.0, 5e-324, 2.0**-1022, 2.0**-42, 2.0**-41, 2.0**-40, 2.0**-28, 2.0**-27, 2.0**-15, STEP / 2, STEP, 1024, 1400])


@pytest.mark.parametrize("family", ["edges", *ARGUMENTS])
def test_the_reduction_is_exact_and_in_its_range(family):
    x = np.concatenate([EDGES, -EDGES]) if family == "edges" else arguments(family, 1000)[0]
    c = dd.table()
    t, j, k = dd._steps(x)
    a, b = dd._reduced(x, t)
    assert np.array_equal(t, 8192 * k + j)
    assert abs(t).max() < 2**24
    assert abs(a).max() < 2.0**-14.528
    assert abs(b).max() < 2.0**-40.99
    for argument, steps, high, low in zip(x, t, a, b, strict=True):
        assert exact(high, low) == exact(argument) - int(steps) * exact(c.c1, c.c2, c.c3_short)
        assert is_multiple(high, 40)
        assert steps == 0 or is_multiple(low, 93)


@pytest.mark.parametrize("family", ARGUMENTS)
def test_powers_of_the_reduced_argument_keep_their_bound(family):
    xh, xl = arguments(family, 1000)
    c = dd.table()
    t, _, _ = dd._steps(xh)
    a, b = dd._reduced(xh, t)
    w, v = dd._powers(a, b, xl, t * c.c4)
    assert abs(w).max() < 2.0**-30
    assert abs(v).max() < 2.0**-54.1
    for row in zip(xh, xl, t, a, w, v, strict=True):
        x, rest, steps, *parts = row
        assert is_multiple(parts[1], 56)
        value = (ball(x, rest) - log_of_two_over_8192() * int(steps)).exp()
        assert abs(ball(1, *parts) - value) < arb(10.9 * 2.0**-108)


def test_a_sixth_is_cut_so_that_its_product_with_a_cube_is_exact():
    assert bits(dd._SIXTH_HEAD) == 10
    assert exact(dd._SIXTH_HEAD) - Fraction(1, 12288) == Fraction(1, 6)
    assert -Fraction(1, 12288) == Fraction(dd._SIXTH_REST).limit_denominator(20000)
    largest = 2.0**-14.528 // 2.0**-27 + 1
    assert bits(largest**3) <= 38


def test_a_product_with_a_row_is_exact_where_the_bound_takes_it_to_be():
    rng = draw(3)
    top = 2.0**-14.528 // 2.0**-40
    a = np.concatenate([[top, -top, 1, 0], rng.integers(-top, top, 996)]) * 2.0**-40
    w = np.concatenate([[2**26 - 1, 1 - 2**26, 0, 1], rng.integers(-(2**26), 2**26, 996)]) * 2.0**-56
    zero = np.zeros(1000)
    short = np.concatenate([[2**27 - 1, 2**26], rng.integers(2**26, 2**27, 998)]) * 2.0**-26
    full = rng.choice(dd.table().hi, 1000)
    for row, second in ((short, w), (full, zero)):
        for th, first, rest, hi, lo in zip(row, a, second, *dd._times_row(row, zero, a, second, zero), strict=True):
            assert exact(hi, lo) == exact(th) * exact(1, first, rest)


# log1p

SIZES = {
    "anything": lambda rng, n: 2.0 ** rng.uniform(-900, 60, n),
    "around one": lambda rng, n: 2.0 ** rng.uniform(-20, 10, n),
    "around the first row": lambda rng, n: 2.0 ** rng.uniform(-15, -12, n),
    "around the least that is computed": lambda rng, n: 2.0 ** rng.uniform(-115, -100, n),
    "ties and a little": lambda rng, n: rng.integers(2, 1000, n) - 1 + 2.0 ** rng.uniform(-60, 0, n),
    "powers of two less one": lambda rng, n: 2.0 ** rng.integers(1, 60, n) - 1 + rng.integers(-1, 2, n) * U,
    "rows": lambda rng, n: rng.choice(dd.table().hi[1:], n, replace=False) * 2.0 ** rng.integers(0, 3, n) - 1,
    "subnormal": lambda rng, n: 2.0 ** rng.uniform(-1074, -1000, n),
}


def sizes(family, size):
    """s as a normalised pair, beside and upon the points that are hard."""
    rng = draw(sorted(SIZES).index(family))
    s = SIZES[family](rng, size) * (1 + 2 * U * rng.integers(-1, 2, size))
    return dd.two_sum(s, s * U * rng.choice([0, 1, -1, rng.uniform(-1, 1)], size))


def log_errors(sh, sl):
    for s, rest, high, low in zip(sh, sl, *dd.log1p(sh, sl), strict=True):
        value = ball(s, rest).log1p()
        yield (ball(high, low) - value) / value


@pytest.mark.parametrize("family", SIZES)
def test_log1p_is_within_its_bound(family):
    error = worst(log_errors(*sizes(family, 2000)))
    assert error < log2(dd.LOG_BOUND), error


def test_log1p_of_every_row_and_its_neighbours():
    c = dd.table()
    for shift in (-1, 0, 1):
        s = (c.hi[1:] - 1) + shift * 2 * U
        for low in (c.lo[1:], -c.lo[1:]):
            part = slice(0, None) if shift == 0 else slice(0, 500)
            assert worst(log_errors(*dd.two_sum(s[part], low[part]))) < log2(dd.LOG_BOUND)


def test_log1p_of_nothing_is_nothing():
    assert [part[0] for part in dd.log1p(np.zeros(1), np.zeros(1))] == [0, 0]


def test_log1p_is_a_normalised_pair():
    for family in SIZES:
        hi, lo = dd.log1p(*sizes(family, 500))
        assert np.array_equal(hi, hi + lo)


def test_the_bounds_are_not_idle():
    """Within a factor of eight of what is seen, so that these tests would see a lost term."""
    assert max(worst(exp_errors(*arguments(family, 2000))) for family in ARGUMENTS) > log2(dd.EXP_BOUND) - 3
    assert max(worst(log_errors(*sizes(family, 2000))) for family in SIZES) > log2(dd.LOG_BOUND) - 3


# Arrays


@pytest.mark.parametrize("function", [dd.exp, dd.log1p])
def test_shape_layout_and_neighbours_change_nothing(function):
    x = draw(5).uniform(0, 30, 10_000)
    low = np.spacing(x) / 4
    whole = function(x, low)
    alone = function(x[7000:7001], low[7000:7001])
    square = function(x.reshape(100, 100).T, low.reshape(100, 100).T)
    for flat, one, turned in zip(whole, alone, square, strict=True):
        assert flat[7000] == one[0]
        assert np.array_equal(turned.T.reshape(-1), flat)
        assert turned.flags.c_contiguous
    assert all(part.shape == (0, 3) for part in function(np.zeros((0, 3)), np.zeros((0, 3))))
    assert all(part.shape == () for part in function(np.array(1.0), np.array(0.0)))


@pytest.mark.soak
@pytest.mark.parametrize("family", ARGUMENTS)
def test_exp_soak(family):
    size = 24_000 if family == "rows" else 150_000
    error = worst(exp_errors(*arguments(family, size)))
    assert error < log2(dd.EXP_BOUND), error


@pytest.mark.soak
@pytest.mark.parametrize("family", SIZES)
def test_log1p_soak(family):
    size = 8_000 if family == "rows" else 130_000
    error = worst(log_errors(*sizes(family, size)))
    assert error < log2(dd.LOG_BOUND), error
