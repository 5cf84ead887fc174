"""Each strategy adds in its own order and stays in its format; NumPy's is what NumPy does, the others are written out."""

import math
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from engine.arithmetic import Arithmetic
from engine.formats import FORMATS, round_array
from engine.summation import SUMMATIONS, plain
from engine.variants import VARIANTS
from tests import judge

INF, NAN = math.inf, math.nan

LOGITS = Path(__file__).parents[2].parent / "shared" / "data" / "bhh-mnist" / "logits.npy"
EVERY_FORMAT = pytest.mark.parametrize("fmt", FORMATS.values(), ids=list(FORMATS))
EVERY_SUMMATION = pytest.mark.parametrize("summation", SUMMATIONS.values(), ids=list(SUMMATIONS))


def terms(fmt, shape, seed=1):
    return round_array(np.random.default_rng(seed).standard_normal(shape), fmt)


def added(name, values, fmt):
    with np.errstate(over="ignore", invalid="ignore"):
        return SUMMATIONS[name].add(values, plain(fmt))


# The same orders on single numbers: exact rationals, and the judge's rounding after every operation. No code is shared.


def rounded(value, fmt):
    """A rational as the number of the format nearest to it; the specials stay."""
    if not isinstance(value, Fraction):
        return value
    found = judge.from_ordinal(judge.round_fraction(value, fmt.name), fmt.name)
    return Fraction(found) if math.isfinite(found) else found


def plus(a, b, fmt, sign=1):
    """a + b or a - b, rounded once."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return rounded(a + sign * b, fmt)
    return float(a) + sign * float(b)


def in_order(x, fmt):
    total = x[0]
    for term in x[1:]:
        total = plus(total, term, fmt)
    return total


def tree(x, fmt):
    if len(x) == 1:
        return x[0]
    half = 1 << (len(x) - 1).bit_length() - 1  # the largest power of two below n: pairs are never split
    return plus(tree(x[:half], fmt), tree(x[half:], fmt), fmt)


def blocks(x, fmt):
    n = len(x)
    if n < 8:
        return in_order(x, fmt)
    if n > 128:
        half = n // 2 - (n // 2) % 8
        return plus(blocks(x[:half], fmt), blocks(x[half:], fmt), fmt)
    r = list(x[:8])
    for i in range(8, n - n % 8):
        r[i % 8] = plus(r[i % 8], x[i], fmt)
    quarters = [plus(r[i], r[i + 1], fmt) for i in (0, 2, 4, 6)]
    total = plus(plus(quarters[0], quarters[1], fmt), plus(quarters[2], quarters[3], fmt), fmt)
    return in_order([total, *x[n - n % 8 :]], fmt)


def lanes(x, fmt):
    r = [in_order(x[lane::32] or [Fraction(0)], fmt) for lane in range(32)]
    for offset in (16, 8, 4, 2, 1):
        r = [plus(r[i], r[i + offset], fmt) for i in range(offset)]
    return r[0]


def kahan(x, fmt):
    total, lost = x[0], Fraction(0)
    for term in x[1:]:
        due = plus(term, lost, fmt, -1)
        grown = plus(total, due, fmt)
        lost = plus(plus(grown, total, fmt, -1), due, fmt, -1)
        total = grown
    return total


def neumaier(x, fmt):
    total, lost = x[0], Fraction(0)
    for term in x[1:]:
        grown = plus(total, term, fmt)
        big, small = (total, term) if abs(total) >= abs(term) else (term, total)
        lost = plus(lost, plus(plus(big, grown, fmt, -1), small, fmt), fmt)
        total = grown
    return plus(total, lost, fmt)


REFERENCE = {
    "sequential": in_order,
    "reverse": lambda x, fmt: in_order(x[::-1], fmt),
    "pairwise": tree,
    "blocked": blocks,
    "warp": lanes,
    "kahan": kahan,
    "neumaier": neumaier,
    "exact": lambda x, fmt: rounded(sum(x), fmt),
}


def kinds_of_rows(fmt, n, rng):
    """Rows that round at every step: of one size, of every size, all positive, cancelling, near the ends of the format."""
    pairs = np.where(np.arange(n) % 2, -1, 1) * np.repeat(rng.standard_normal(-(-n // 2)), 2)[:n]
    yield rng.standard_normal(n)
    yield rng.random(n)
    yield rng.standard_normal(n) * 2.0 ** rng.integers(fmt.emin // 2, fmt.emax // 2, n)
    yield pairs * (1 + 2 * fmt.unit_roundoff * rng.choice([2.0**-3, 1.0, 4.0], n))
    yield rng.integers(-20, 21, n) * fmt.smallest_subnormal
    yield fmt.largest / 4 * rng.uniform(-1, 1, n)
    yield np.ones(n)


@pytest.mark.half
@pytest.mark.no_cover
@EVERY_FORMAT
@pytest.mark.parametrize("name", REFERENCE)
def test_every_written_out_order_is_that_of_single_numbers_each_rounded_once(name, fmt):
    rng = np.random.default_rng(17)
    finite = 0
    for n in (1, 2, 3, 7, 8, 9, 16, 31, 33, 65, 127, 129, 136, 300):
        rows = round_array(np.array(list(kinds_of_rows(fmt, n, rng))), fmt)
        got = added(name, rows, fmt).astype(np.float64)
        for row, total in zip(rows.astype(np.float64), got.tolist(), strict=True):
            expected = float(REFERENCE[name]([Fraction(x) for x in row.tolist()], fmt))
            assert total == expected or (math.isnan(total) and math.isnan(expected)), (n, row.tolist(), total, expected)
            finite += math.isfinite(expected)
    assert finite > 80


def test_every_summation_but_numpys_has_a_reference():
    assert {"numpy", *REFERENCE} == set(SUMMATIONS)


@pytest.mark.parametrize("fmt", [FORMATS["float32"], FORMATS["float64"]], ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("n", [1, 7, 8, 9, 15, 127, 128, 129, 255, 1000, 8192, 8193, 100_003])
def test_blocked_is_bit_for_bit_what_numpy_does_in_float32_and_float64(fmt, n):
    values = terms(fmt, (3, n), seed=n)
    assert (added("blocked", values, fmt) == added("numpy", values, fmt)).all()


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_numpy_adds_the_formats_of_ml_dtypes_in_order(name):
    fmt = FORMATS[name]
    values = terms(fmt, (50, 100), seed=3)
    bits = [added(order, values, fmt).view(f"u{fmt.dtype.itemsize}") for order in ("sequential", "numpy")]
    assert (bits[0] == bits[1]).all()


@pytest.mark.parametrize("row", [[INF, 1.0, -2.0], [-INF, 1.0], [INF, -INF], [NAN, 1.0], [1.0, INF, NAN]])
@pytest.mark.parametrize("name", SUMMATIONS)
def test_infinities_and_nan_stay_in_every_order(name, row):
    values = np.array([row, [1.0] * len(row)], np.float32)
    found = added(name, values, FORMATS["float32"])
    expected = sum(row)
    if name in ("kahan", "neumaier"):
        assert not np.isfinite(found[0])  # inf - inf: a compensated sum makes NaN of an infinity
    else:
        assert found[0] == expected or (math.isnan(expected) and np.isnan(found[0]))
    assert found[1] == len(row)


def test_the_exact_sum_of_1_tiny_and_minus_1_is_tiny():
    # mpmath's fsum and a sum in extended precision drop the tiny term
    values = np.array([[1.0, 2.0**-200, -1.0], [2.0**1023, 2.0**1023, -(2.0**1023)], [5e-324, 1.0, 2.0**-53]])
    assert added("exact", values, FORMATS["float64"]).tolist() == [2.0**-200, 2.0**1023, 1 + 2.0**-52]


def test_the_exact_sum_holds_more_terms_than_a_significand_has_bits():
    values = np.full(3_000_000, 1 + 2.0**-52)
    assert float(added("exact", values, FORMATS["float64"])) == float(3_000_000 * (1 + Fraction(1, 2**52)))


@pytest.mark.parametrize(
    ("name", "expected"), [("sequential", 2048), ("reverse", 2048), ("pairwise", 4096), ("blocked", 4096), ("warp", 4096)]
)
def test_where_a_float16_sum_of_ones_stalls_in_each_order(name, expected):
    # NumPy accumulates such a row in float32; what is written out does not
    assert float(added(name, np.ones(4096, np.float16), FORMATS["float16"])) == expected
    assert float(added(name, np.ones((2, 4096), np.float16), FORMATS["float16"])[1]) == expected


@pytest.mark.parametrize(("name", "n", "stalls"), [("bfloat16", 512, 256), ("float8_e4m3fn", 64, 16), ("float8_e5m2", 64, 8)])
def test_where_sums_of_ones_stall_in_order_in_the_formats_of_ml_dtypes(name, n, stalls):
    fmt = FORMATS[name]
    ones = np.ones(n).astype(fmt.dtype)
    assert [float(added(order, ones, fmt)) for order in ("numpy", "sequential", "exact")] == [stalls, stalls, n]
    assert float(added("neumaier", ones, fmt)) > stalls


@EVERY_FORMAT
@EVERY_SUMMATION
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 10), (2, 3, 33)])
def test_the_last_axis_is_summed_in_the_format(fmt, summation, shape):
    values = terms(fmt, shape)
    total = summation.add(values, plain(fmt))
    assert total.shape == shape[:-1]
    assert total.dtype == fmt.dtype
    slack = 4 * shape[-1] ** 2 * fmt.unit_roundoff
    np.testing.assert_allclose(total.astype(np.float64), values.astype(np.float64).sum(axis=-1), rtol=0, atol=slack)


@EVERY_FORMAT
@EVERY_SUMMATION
def test_a_row_sums_the_same_alone_and_in_any_layout(fmt, summation):
    values = terms(fmt, (4, 3, 301))
    alone = np.array([[summation.add(row, plain(fmt)) for row in rows] for rows in values])
    assert (summation.add(values, plain(fmt)) == alone).all()
    assert (summation.add(np.asfortranarray(values), plain(fmt)) == alone).all()


@EVERY_FORMAT
@EVERY_SUMMATION
def test_terms_are_left_alone(fmt, summation):
    values = terms(fmt, (3, 9))
    values.flags.writeable = False
    assert not np.shares_memory(summation.add(values, plain(fmt)), values)
    assert not np.shares_memory(summation.add(values[:, :1], plain(fmt)), values)


@EVERY_FORMAT
@pytest.mark.parametrize("n", [1, 8, 9, 127, 128, 129, 1000, 9000])
def test_numpy_is_what_np_sum_gives_on_the_row(fmt, n):
    values = terms(fmt, (3, n))
    assert (added("numpy", values, fmt) == np.array([np.sum(row) for row in values])).all()


def test_float16_ones_stall_at_2048_in_order_but_not_in_numpy():
    # NumPy accumulates float16 in float32 along the last axis.
    ones = np.ones(4096, np.float16)
    assert float(added("sequential", ones, FORMATS["float16"])) == 2048
    assert float(added("numpy", ones, FORMATS["float16"])) == 4096


def test_bfloat16_ones_stall_at_256_in_order():
    assert float(added("sequential", np.ones(512, ml_dtypes.bfloat16), FORMATS["bfloat16"])) == 256


@pytest.mark.skipif(not LOGITS.exists(), reason="the BHH-MNIST logits are not beside this checkout (../shared/data/bhh-mnist)")
def test_the_published_count_of_overflowing_rows():
    # Blanchard, Higham and Higham 2021, chop_test_softmax.m: "475" of 2500 columns in float16; the shifted form in none.
    fmt = FORMATS["float16"]
    logits = round_array(np.load(LOGITS), fmt)
    k = Arithmetic(fmt, "sequential")
    infinite = {name: int(np.isinf(VARIANTS[f"logsumexp/{name}"].run(logits, k)).sum()) for name in ("naive", "shifted")}
    assert len(logits) == 2500
    assert infinite == {"naive": 475, "shifted": 0}
