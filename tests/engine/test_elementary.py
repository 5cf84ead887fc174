"""exp, exp2 and fma are correctly rounded: every number of the narrow formats, hard cases of the wide ones, exact references."""

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from flint import arb, ctx

from engine import elementary
from engine.formats import FORMATS, from_ordinals, ordinals, round_array, saturated, widen
from tests import judge

INF, NAN = math.inf, math.nan
EVERY_FORMAT = pytest.mark.parametrize("fmt", FORMATS.values(), ids=list(FORMATS))
POWERS = pytest.mark.parametrize(("function", "base"), [(elementary.exp, "e"), (elementary.exp2, "2")], ids=["exp", "exp2"])


def power(x, base):
    """A ball around e^x or 2^x, or the exact power of two."""
    if base == "e":
        return arb(x).exp()
    return judge.power(int(x)) if x.is_integer() else arb(2) ** arb(x)


def expected(x, base, fmt):
    """The ordinal of the correctly rounded power by the judge's rounding."""
    for bits in (128, 400, 1400):
        with ctx.workprec(bits):
            value = power(x, base)
            found = {judge.round_fraction(end, fmt.name) for end in (judge.ends(value) if isinstance(value, arb) else (value,))}
        if len(found) == 1:
            return found.pop()
    raise AssertionError(x)


def numbers(fmt):
    """Every finite number of a narrow format; of a wide one random ones, the edges of its range and of its midpoints."""
    if fmt.bits <= 16:
        return from_ordinals(np.arange(1 - fmt.infinity_ordinal, fmt.infinity_ordinal), fmt)
    rng = np.random.default_rng(8)
    reach = fmt.emax * 0.7
    edges = [0.0, fmt.exp_limit, fmt.emin * math.log(2), (fmt.emin - fmt.precision) * math.log(2), 0.5, 1.0, math.log(2)]
    edges += [
        fmt.emax,
        fmt.emax + 1,
        fmt.emin,
        fmt.emin - fmt.precision + 1,
        fmt.emin - fmt.precision,
        fmt.emin - fmt.precision - 1,
    ]
    tiny = 2.0 ** -rng.uniform(0, fmt.precision + 8, 200)
    drawn = np.concatenate(
        [rng.uniform(-reach, reach, 600), rng.standard_normal(300), tiny, -tiny, edges, [fmt.smallest_subnormal]]
    )
    at = ordinals(round_array(drawn, fmt), fmt)
    return from_ordinals(np.concatenate([at - 1, at, at + 1]), fmt)


@pytest.mark.half
@pytest.mark.no_cover
@EVERY_FORMAT
@POWERS
def test_powers_are_correctly_rounded(function, base, fmt):
    x = numbers(fmt)
    x = x[np.abs(widen(x)) < 2000]
    got = ordinals(function(x, fmt), fmt)
    wrong = [(v, o) for v, o in zip(widen(x).tolist(), got.tolist(), strict=True) if o != expected(v, base, fmt)]
    assert not wrong
    assert len(x) > 90


@EVERY_FORMAT
@POWERS
def test_far_away_powers_overflow_by_the_rule_of_the_format_or_vanish(function, base, fmt):
    far = round_array(np.array([[fmt.largest, -fmt.largest, fmt.largest / 2]]), fmt)
    found = widen(function(far, fmt))
    assert found.shape == (1, 3)
    assert found[0, 1] == 0
    assert found[0, 0] == INF if fmt.has_infinity else math.isnan(found[0, 0])


@POWERS
def test_specials_of_powers(function, base):
    for fmt in FORMATS.values():
        given = np.array([NAN, INF, -INF, 0.0, -0.0]).astype(fmt.dtype)
        found = widen(function(given, fmt))
        assert math.isnan(found[0])
        assert found[3:].tolist() == [1, 1]
        if fmt.has_infinity:
            assert found[1:3].tolist() == [INF, 0]
        else:
            assert np.isnan(found[1:3]).all()  # the cast made NaN of the infinities
    assert widen(function(np.array([INF, 400.0]), saturated(FORMATS["float8_e4m3fn"]))).tolist() == [448, 448]


def test_powers_keep_shape_and_inputs():
    x = np.linspace(-3, 3, 24).reshape(2, 3, 4)
    before = x.copy()
    assert elementary.exp(x, FORMATS["float64"]).shape == (2, 3, 4)
    assert elementary.exp(np.array(1.0), FORMATS["float64"]).shape == ()
    assert elementary.exp(np.array(1.0, np.float16), FORMATS["float16"]).shape == ()
    assert (x == before).all()


def test_numpy_misrounds_four_exponentials_of_float16_and_these_do_not():
    x = numbers(FORMATS["float16"])
    with np.errstate(all="ignore"):
        plain = np.exp(x)
    assert (plain != elementary.exp(x, FORMATS["float16"])).sum() == 4


def test_the_hard_cases_of_binary64_take_more_bits():
    # the first is a worst case of Lefevre and Muller; the others lie beside 1 and its midpoints
    for x in (
        float.fromhex("0x1.9e9cbbfd6080bp-31"),
        2.0**-52,
        2.0**-53,
        -(2.0**-53),
        2.0**-54,
        -(2.0**-54),
        2.0**-60,
        -(2.0**-600),
    ):
        got = ordinals(elementary.exp(np.array([x]), FORMATS["float64"]), FORMATS["float64"])[0]
        assert got == expected(x, "e", FORMATS["float64"])


def test_log_2_is_known_to_every_bit_asked_for():
    for bits in (60, 200, 1000, 3000):
        with ctx.workprec(bits + 64):
            assert abs(arb((elementary._log_2(bits), -bits)) - arb(2).log()) < arb(2) ** (1 - bits)


# fma


def fused(a, b, c, fmt):
    """One rounding of the exact value by the judge; the sign of a zero as IEEE 754 has it."""
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    found = judge.from_ordinal(judge.round_fraction(exact, fmt.name), fmt.name)
    if exact < 0 and found == 0:
        return -0.0
    if exact == 0:
        product_zero = a == 0 or b == 0
        sign = math.copysign(1, a) * math.copysign(1, b)
        return -0.0 if product_zero and c == 0 and sign < 0 and math.copysign(1, c) < 0 else 0.0
    return found


def triples(fmt, rng):
    """Operands of every size; products that all but cancel the addend; sums beside midpoints; the ends of the range."""
    top = fmt.infinity_ordinal - 1
    any_size = [from_ordinals(rng.integers(-top, top + 1, 400), fmt) for _ in range(3)]
    near = [round_array(rng.standard_normal(400), fmt) for _ in range(3)]
    a, b, _ = near
    cancelling = (a, b, round_array(-widen(a) * widen(b), fmt))
    u = fmt.unit_roundoff
    one = round_array(1 + 2 * u * rng.integers(0, 4, 400), fmt)
    beside = (
        one,
        round_array(1 - 2 * u * rng.integers(0, 4, 400), fmt),
        round_array(u * rng.choice([1, -1, 0.5, u, -u], 400), fmt),
    )
    small = tuple(from_ordinals(rng.integers(-3 * fmt.normal_ordinal, 3 * fmt.normal_ordinal, 400), fmt) for _ in range(3))
    zeros = tuple(np.array(part).astype(fmt.dtype) for part in zip(*product((0.0, -0.0, 1.0), repeat=3), strict=True))
    return [any_size, near, cancelling, beside, small, (near[0], any_size[1], near[2]), zeros]


@EVERY_FORMAT
def test_fma_is_one_rounding_of_the_exact_value(fmt):
    rng = np.random.default_rng(5)
    twice = 0
    for a, b, c in triples(fmt, rng):
        with np.errstate(all="ignore"):
            got = elementary.fma(a, b, c, fmt)
            plain = np.add(np.multiply(a, b), c)
        assert got.dtype == fmt.dtype
        for x, y, z, found in zip(*(widen(v).tolist() for v in (a, b, c, got)), strict=True):
            right = fused(x, y, z, fmt)
            assert (found == right and math.copysign(1, found) == math.copysign(1, right)) or (
                math.isnan(found) and math.isnan(right)
            ), (x, y, z, found, right)
        twice += int(((plain != got) & ~np.isnan(widen(got))).sum())
    assert twice > 100  # a multiplication and an addition round differently


def test_a_product_is_rounded_to_odd_and_not_to_nearest_on_its_way():
    # 1 + 2^-11 is a midpoint of float16; the addend is beyond binary64's reach of it
    a, b, c = (np.array([v], np.float16) for v in (2.0**-12, 2.0**-12, 1.0))
    midpoint = np.array([1 + 2.0**-11])
    wide = elementary._sum_to_odd(midpoint, np.array([2.0**-80]))
    assert float(round_array(wide, FORMATS["float16"])[0]) == 1 + 2.0**-10
    assert float(round_array(elementary._sum_to_odd(midpoint, np.array([-(2.0**-80)])), FORMATS["float16"])[0]) == 1.0
    assert float(elementary.fma(a, b, c, FORMATS["float16"])[0]) == 1.0


@EVERY_FORMAT
def test_specials_of_fma_and_its_broadcast(fmt):
    one, inf, nan = (np.array(v).astype(fmt.dtype) for v in (1.0, INF, NAN))
    with np.errstate(invalid="ignore"):
        assert math.isnan(elementary.fma(nan, one, one, fmt))
        if fmt.has_infinity:
            assert float(elementary.fma(inf, one, one, fmt)) == INF
            assert math.isnan(elementary.fma(inf, one, -inf, fmt))
    assert elementary.fma(np.ones((2, 1), fmt.dtype), np.ones(3, fmt.dtype), one, fmt).tolist() == [[2, 2, 2]] * 2
