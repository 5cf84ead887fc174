"""Rounding is exact and happens once: brute force on a toy format, every bit pattern where a format is small, NumPy elsewhere."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from flint import arb, ctx
from hypothesis import given
from hypothesis import strategies as st

from engine import formats
from engine.errors import InvalidProblem, UnknownName
from engine.formats import FORMATS, Format
from tests import judge

NAN = math.nan
TOY = Format("toy", precision=2, emin=0, emax=1, dtype=np.dtype(np.uint8), exp_limit=1.0)
SMALL = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
EIGHT = ("float8_e4m3fn", "float8_e5m2")
ALL = tuple(FORMATS)


def nearest(value, fmt):
    """The ordinal that the engine gives an exact rational: directly where dyadic, else from the integers around it."""
    num, den = value.numerator, value.denominator
    if den & (den - 1) == 0:
        return formats.round_ordinal(num, 1 - den.bit_length(), fmt)
    shift = 1400 + den.bit_length()
    low = (num << shift) // den
    ordinal, top = formats.round_between(low, low + 1, -shift, fmt)
    assert Fraction(2) ** top <= abs(value) < Fraction(2) ** (top + 1)
    return ordinal


def power(exponent):
    return Fraction(2) ** exponent


def value(ordinal, fmt):
    """The number of that ordinal; infinity, or NaN, stands where the next number would be, as IEEE 754 4.3.1 rounds."""
    man, exp = formats.exact(ordinal, fmt)
    return man * power(exp)


def every_bit_pattern(fmt):
    return np.arange(1 << fmt.bits, dtype=f"u{fmt.dtype.itemsize}").view(fmt.dtype)


def wide(values):
    """As binary64, signalling NaNs included."""
    with np.errstate(invalid="ignore"):
        return values.astype(np.float64)


def finite(values):
    return values[np.isfinite(wide(values))]


# A toy of four bits: 0, 0.5, 1, 1.5, 2, 3, infinity, and their negatives


def test_the_toy_format_has_exactly_its_thirteen_numbers():
    assert [value(k, TOY) for k in range(-6, 7)] == [
        -4,
        -3,
        -2,
        Fraction(-3, 2),
        -1,
        Fraction(-1, 2),
        0,
        Fraction(1, 2),
        1,
        Fraction(3, 2),
        2,
        3,
        4,
    ]


def brute_force(exact):
    """Nearest of the toy's numbers, an even ordinal on ties; beyond the number after the largest, infinity."""
    return min(range(-6, 7), key=lambda k: (abs(value(k, TOY) - exact), k % 2))


def test_every_multiple_of_a_64th_rounds_in_the_toy_format_as_brute_force_says():
    for k in range(-8 * 64, 8 * 64 + 1):
        assert formats.round_ordinal(k, -6, TOY) == brute_force(Fraction(k, 64)), k
        assert nearest(Fraction(k, 64), TOY) == brute_force(Fraction(k, 64)), k


def test_the_same_value_rounds_alike_however_it_is_scaled():
    for k in range(-8 * 16, 8 * 16 + 1):
        expected = brute_force(Fraction(k, 16))
        assert {formats.round_ordinal(k << s, -4 - s, TOY) for s in (0, 1, 7, 200)} == {expected}


def test_thirds_sevenths_and_neighbours_of_midpoints_round_in_the_toy_format_as_brute_force_says():
    tiny = power(-5000)
    midpoints = [(value(k, TOY) + value(k + 1, TOY)) / 2 for k in range(-6, 6)]
    beside = [m + s * tiny for m in midpoints for s in (-1, 0, 1)]
    for exact in [Fraction(k, d) for d in (3, 7, 48) for k in range(-6 * d, 6 * d)] + beside:
        assert nearest(exact, TOY) == brute_force(exact), exact


# Every number of the small formats


@pytest.mark.parametrize("name", SMALL)
def test_every_bit_pattern_is_its_ordinal_and_its_exact_value(name):
    fmt = FORMATS[name]
    numbers = finite(every_bit_pattern(fmt))
    ordinals = formats.ordinals(numbers, fmt)
    assert [value(int(k), fmt) for k in ordinals] == [Fraction(x) for x in numbers.astype(np.float64).tolist()]
    back = formats.from_ordinals(ordinals, fmt)
    assert back.dtype == fmt.dtype
    assert (back == numbers).all()
    assert not np.signbit(back[back == 0]).any()


@pytest.mark.parametrize("name", SMALL)
def test_numbers_in_order_have_consecutive_ordinals_up_to_infinity(name):
    fmt = FORMATS[name]
    span = np.arange(-fmt.infinity_ordinal, fmt.infinity_ordinal + 1)
    numbers = formats.from_ordinals(span, fmt).astype(np.float64)
    if not fmt.has_infinity:
        assert np.isnan(numbers[[0, -1]]).all()
        span, numbers = span[1:-1], numbers[1:-1]
    else:
        assert numbers[0] == -math.inf
        assert numbers[-1] == math.inf
    assert (np.diff(numbers) > 0).all()
    assert (formats.ordinals(numbers.astype(fmt.dtype), fmt) == span).all()


@pytest.mark.parametrize("name", SMALL)
def test_midpoints_between_all_neighbours_round_to_even_and_their_neighbours_to_their_own_side(name):
    fmt = FORMATS[name]
    for k in range(fmt.infinity_ordinal):
        man, exp = formats.exact(2 * k + 1, Format("finer", fmt.precision + 1, fmt.emin, fmt.emax, fmt.dtype, 0.0))
        even = k + k % 2
        assert formats.round_ordinal(man, exp, fmt) == even
        assert formats.round_ordinal((man << 70) - 1, exp - 70, fmt) == k
        assert formats.round_ordinal((man << 70) + 1, exp - 70, fmt) == k + 1
        assert formats.round_ordinal(-man, exp, fmt) == -even


@pytest.mark.parametrize("name", SMALL)
def test_arrays_of_midpoints_round_as_single_values_do(name):
    fmt = FORMATS[name]
    span = np.arange(fmt.infinity_ordinal)
    lower = formats.from_ordinals(span, fmt).astype(np.float64)
    upper = np.append(lower[1:], 480.0 if name == "float8_e4m3fn" else 2.0 ** (fmt.emax + 1))
    middle = (lower + upper) / 2  # exact: 12 bits at most
    for exact, expected in ((middle, span + span % 2), (np.nextafter(middle, 0), span), (np.nextafter(middle, np.inf), span + 1)):
        assert (formats.ordinals(formats.round_array(exact, fmt), fmt) == expected).all()
        assert (formats.ordinals(formats.round_array(-exact, fmt), fmt) == -expected).all()


# Against NumPy and against the judge


@pytest.mark.parametrize("name", ["float16", "float32"])
@given(x=st.floats(width=64) | st.floats(-70000, 70000) | st.floats(-1e-4, 1e-4) | st.floats(-1e-40, 1e-40))
def test_rounding_from_binary64_is_the_cast_of_numpy(name, x):
    fmt = FORMATS[name]
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        expected = np.float64(x).astype(fmt.dtype)
    rounded = formats.round_array(np.array([x]), fmt)
    assert rounded.dtype == fmt.dtype
    if math.isnan(x):
        assert np.isnan(rounded[0])
        return
    assert rounded[0].tobytes() == expected.tobytes()
    if math.isfinite(x):
        man, den = x.as_integer_ratio()
        ordinal = formats.round_ordinal(man, 1 - den.bit_length(), fmt)
        assert ordinal == formats.ordinals(expected.reshape(1), fmt)[0]


@pytest.mark.parametrize("name", ALL)
@given(man=st.integers(-(2**80), 2**80), exp=st.integers(-1200, 1030), den=st.integers(1, 2**70))
def test_rationals_round_as_the_judge_rounds_them(name, man, exp, den):
    fmt = FORMATS[name]
    exact = man * power(exp)
    assert formats.round_ordinal(man, exp, fmt) == judge.round_fraction(exact, name)
    assert nearest(exact / den, fmt) == judge.round_fraction(exact / den, name)


@pytest.mark.parametrize("name", ALL)
@given(bits=st.integers(0, 2**64 - 1))
def test_an_ordinal_is_the_bit_pattern_with_its_sign_apart(name, bits):
    fmt = FORMATS[name]
    pattern = np.array([bits >> (64 - fmt.bits)], dtype=f"u{fmt.dtype.itemsize}")
    number = pattern.view(fmt.dtype)
    size = int(pattern[0]) & ((1 << (fmt.bits - 1)) - 1)
    if np.isnan(wide(number)[0]):
        assert size > fmt.infinity_ordinal or (size == fmt.infinity_ordinal and not fmt.has_infinity)
        return
    sign = -1 if int(pattern[0]) >> (fmt.bits - 1) else 1
    assert formats.ordinals(number, fmt)[0] == sign * size
    again = formats.from_ordinals(np.array([sign * size]), fmt)
    assert again.tobytes() == number.tobytes() or size == 0
    assert formats.round_array(number, fmt).tobytes() == number.tobytes()


# Traps


def test_a_value_is_not_rounded_twice_on_its_way_to_bfloat16():
    trap = 1 + 2.0**-8 + 2.0**-40  # through float32 it becomes the midpoint 1 + 2^-8, and then 1
    assert float(np.float32(trap).astype(ml_dtypes.bfloat16)) == 1.0
    assert float(formats.round_array(np.array([trap]), FORMATS["bfloat16"])[0]) == 1.0078125
    man, den = trap.as_integer_ratio()
    assert formats.round_ordinal(man, 1 - den.bit_length(), FORMATS["bfloat16"]) == 0x3F81


@pytest.mark.parametrize("name", ALL)
def test_overflow_begins_at_the_midpoint_above_the_largest_number(name):
    fmt = FORMATS[name]
    tie = (Fraction(fmt.largest) + value(fmt.infinity_ordinal, fmt)) / 2
    even = fmt.infinity_ordinal - fmt.infinity_ordinal % 2
    assert nearest(tie, fmt) == even
    assert nearest(-tie, fmt) == -even
    assert nearest(tie + power(-3000), fmt) == fmt.infinity_ordinal
    assert nearest(tie - power(-3000), fmt) == fmt.infinity_ordinal - 1
    assert formats.round_ordinal(1, 10**80, fmt) == fmt.infinity_ordinal
    assert formats.round_ordinal(-1, 10**80, fmt) == -fmt.infinity_ordinal


# The 8-bit formats: all 256 patterns of each


@pytest.mark.parametrize("name", EIGHT)
def test_all_256_patterns_round_to_themselves_and_have_the_value_their_bits_spell(name):
    fmt = FORMATS[name]
    codes = every_bit_pattern(fmt)
    assert len(codes) == 256
    for code, number in enumerate(wide(codes).tolist()):
        sign, biased, fraction = code >> 7, (code & 127) >> (fmt.precision - 1), code & ((1 << (fmt.precision - 1)) - 1)
        top = biased == (1 << (8 - fmt.precision)) - 1
        if name == "float8_e4m3fn" and top and fraction == 7:
            assert math.isnan(number)
        elif name == "float8_e5m2" and top:
            assert math.isnan(number) if fraction else number == (-1) ** sign * math.inf
        else:
            whole = fraction + ((biased > 0) << (fmt.precision - 1))
            assert Fraction(number) == (-1) ** sign * whole * power(max(biased, 1) - 1 + fmt.emin - fmt.precision + 1)
    again = formats.round_array(codes, fmt)
    same = (again.view(np.uint8) == codes.view(np.uint8)) | np.isnan(wide(codes))
    assert same.all()
    assert (np.isnan(wide(again)) == np.isnan(wide(codes))).all()


def among_all(exact, fmt):
    """Brute force: the nearest of all finite numbers and the one that would come next, ties to the even pattern."""
    size = min(range(fmt.infinity_ordinal + 1), key=lambda k: (abs(value(k, fmt) - abs(exact)), k % 2))
    return size if exact > 0 else -size


@pytest.mark.no_cover
@pytest.mark.parametrize("name", EIGHT)
def test_every_midpoint_of_the_8_bit_formats_and_its_neighbourhood_round_as_brute_force_says(name):
    fmt = FORMATS[name]
    for k in range(fmt.infinity_ordinal):
        middle = (value(k, fmt) + value(k + 1, fmt)) / 2
        for exact in (value(k, fmt), middle, middle - power(-200), middle + power(-200), middle * 3 / 4, middle * 5 / 3):
            for signed in (exact, -exact):
                if signed:
                    assert nearest(signed, fmt) == among_all(signed, fmt), signed


@pytest.mark.parametrize(
    ("value", "default", "saturating"),
    [(464, 448, 448), (464.0000001, NAN, 448), (465, NAN, 448), (-1e9, NAN, -448), (math.inf, NAN, 448), (448, 448, 448)],
)
def test_e4m3fn_overflows_to_nan_beyond_464_unless_it_saturates(value, default, saturating):
    fmt = FORMATS["float8_e4m3fn"]
    for row, expected in ((fmt, default), (formats.saturated(fmt), saturating)):
        rounded = float(formats.round_array(np.array([value]), row)[0])
        assert rounded == expected or (math.isnan(rounded) and math.isnan(expected))
        if math.isfinite(value):
            ordinal = formats.round_ordinal(*scaled(value), row)
            assert formats.is_nan(ordinal, row) == math.isnan(expected)
            stored = float(formats.from_ordinals(np.array([ordinal]), row).astype(np.float64)[0])
            assert stored == expected or math.isnan(expected)
    assert math.isnan(float(formats.round_array(np.array([NAN]), formats.saturated(fmt))[0]))


def scaled(value):
    num, den = float(value).as_integer_ratio()
    return num, 1 - den.bit_length()


def test_saturation_keeps_e5m2_below_its_infinity():
    fmt = formats.saturated(FORMATS["float8_e5m2"])
    assert formats.round_array(np.array([1e6, -math.inf, 61440.0]), fmt).astype(np.float64).tolist() == [57344, -57344, 57344]
    assert formats.infinity(-1.0, fmt) == 1 - fmt.infinity_ordinal
    assert (fmt.overflow, FORMATS["float8_e5m2"].overflow, FORMATS["float8_e4m3fn"].overflow) == ("saturate", "infinity", "nan")


def test_saturation_decides_between_two_ends_too():
    fmt = formats.saturated(FORMATS["float8_e4m3fn"])
    for low in (460, 500, 513, 1 << 40):
        ordinal, top = formats.round_between(low << 70, (low << 70) + 1, -70, fmt)
        assert (ordinal, top) == (fmt.infinity_ordinal - 1, low.bit_length() - 1)


@pytest.mark.parametrize("name", ["float16", "float64"])
def test_wider_formats_do_not_saturate(name):
    with pytest.raises(InvalidProblem, match=f"{name} does not saturate: overflow can saturate in float8_e4m3fn and float8_"):
        formats.saturated(FORMATS[name])


@pytest.mark.parametrize("name", EIGHT)
def test_a_cast_through_float32_rounds_twice_and_round_array_does_not(name):
    # beside each midpoint, by less than float32 sees: the cast of ml_dtypes goes to the even side, the right number is the near one
    fmt = FORMATS[name]
    span = np.arange(1, fmt.infinity_ordinal - 1)
    lower, upper = (formats.from_ordinals(span + step, fmt).astype(np.float64) for step in (0, 1))
    middle = (lower + upper) / 2
    for beside, expected in ((middle * (1 - 2.0**-40), span), (middle * (1 + 2.0**-40), span + 1)):
        assert (formats.ordinals(formats.round_array(beside, fmt), fmt) == expected).all()
        twice = formats.ordinals(beside.astype(np.float32).astype(fmt.dtype), fmt)
        assert (twice == span + span % 2).all()
        assert (formats.ordinals(beside.astype(fmt.dtype), fmt) == twice).all()


@pytest.mark.parametrize("name", ALL)
def test_underflow_begins_at_half_the_smallest_subnormal(name):
    fmt = FORMATS[name]
    half = Fraction(fmt.smallest_subnormal) / 2
    assert nearest(half, fmt) == 0
    assert nearest(half + power(-3000), fmt) == 1
    assert nearest(3 * half, fmt) == 2
    assert formats.round_ordinal(1, -(10**80), fmt) == 0
    assert formats.round_ordinal(-(1 << 200), -(10**80), fmt) == 0
    assert formats.round_ordinal(0, 5, fmt) == 0


@pytest.mark.parametrize("name", ALL)
def test_the_largest_subnormal_rounds_up_into_the_smallest_normal(name):
    fmt = FORMATS[name]
    tie = Fraction(fmt.smallest_normal) - Fraction(fmt.smallest_subnormal) / 2
    assert nearest(tie, fmt) == fmt.normal_ordinal
    assert value(fmt.normal_ordinal, fmt) == Fraction(fmt.smallest_normal)
    assert nearest(tie - power(-3000), fmt) == fmt.normal_ordinal - 1


def test_specials_and_the_sign_of_zero_survive_rounding_of_arrays():
    given_values = np.array([math.nan, math.inf, -math.inf, -0.0, 0.0, -1e-300])
    before = given_values.tobytes()
    for fmt in FORMATS.values():
        rounded = formats.round_array(given_values, fmt).astype(np.float64)
        assert np.isnan(rounded[0])
        assert rounded[3:5].tolist() == [0.0, 0.0]
        if fmt.has_infinity:
            assert rounded[1:3].tolist() == [math.inf, -math.inf]
        else:
            assert np.isnan(rounded[1:3]).all()
        assert np.signbit(rounded).tolist()[1:] == [False, True, True, False, True]
    assert given_values.tobytes() == before


def test_rounding_an_array_returns_a_new_one_of_the_same_shape():
    for fmt in FORMATS.values():
        original = formats.from_ordinals(np.arange(6).reshape(1, 2, 3), fmt)
        rounded = formats.round_array(original, fmt)
        assert rounded.shape == (1, 2, 3)
        assert not np.shares_memory(rounded, original)


def test_rounding_does_not_depend_on_the_blocks_nor_on_the_layout(monkeypatch):
    given_values = np.random.default_rng(4).standard_normal((3, 5, 7)) * 1e4
    for fmt in FORMATS.values():
        monkeypatch.setattr(formats, "BLOCK", 1000)
        whole = formats.round_array(given_values, fmt)
        monkeypatch.setattr(formats, "BLOCK", 4)
        for same in (given_values, np.asfortranarray(given_values), np.repeat(given_values, 2, axis=1)[:, ::2]):
            rounded = formats.round_array(same, fmt)
            assert rounded.dtype == fmt.dtype
            assert rounded.tobytes() == whole.tobytes()


# The rows


@pytest.mark.parametrize("name", ALL)
def test_a_format_agrees_with_the_description_its_library_gives(name):
    fmt = FORMATS[name]
    info = ml_dtypes.finfo(fmt.dtype)
    assert fmt.name == name
    assert fmt.bits == info.bits
    assert fmt.precision == info.nmant + 1
    assert (fmt.emin, fmt.emax) == (info.minexp, info.maxexp - 1)
    assert fmt.largest == float(info.max)
    assert fmt.smallest_normal == float(info.smallest_normal)
    assert fmt.smallest_subnormal == float(info.smallest_subnormal)
    assert fmt.unit_roundoff == float(info.eps) / 2
    assert formats.from_ordinals(np.array([fmt.normal_ordinal]), fmt).astype(np.float64)[0] == fmt.smallest_normal


@pytest.mark.parametrize("name", ALL)
def test_exp_limit_is_the_last_number_whose_exponential_is_finite(name):
    fmt = FORMATS[name]
    (ordinal,) = formats.ordinals(formats.round_array(np.array([fmt.exp_limit]), fmt), fmt)
    limit, beyond = formats.from_ordinals(np.array([ordinal, ordinal + 1]), fmt).astype(np.float64).tolist()
    assert limit == fmt.exp_limit
    assert max(judge.round_fraction(end, name) for end in _exp(limit)) < fmt.infinity_ordinal
    assert min(judge.round_fraction(end, name) for end in _exp(beyond)) == fmt.infinity_ordinal


def _exp(x):
    with ctx.workprec(256):
        return judge.ends(arb(x).exp())


@pytest.mark.parametrize("name", ALL)
def test_an_ulp_is_a_power_of_two_that_neither_end_of_the_range_changes(name):
    fmt = FORMATS[name]
    assert formats.ulp_exponent(0, fmt) == 1 - fmt.precision
    assert 2.0 ** formats.ulp_exponent(fmt.emin, fmt) == fmt.smallest_subnormal
    assert formats.ulp_exponent(fmt.emin - 500, fmt) == formats.ulp_exponent(fmt.emin, fmt)
    assert formats.ulp_exponent(fmt.emax + 500, fmt) == formats.ulp_exponent(fmt.emax, fmt)


def test_a_format_is_found_by_its_name_and_its_aliases_in_any_case():
    for name, fmt in FORMATS.items():
        for alias in (name, *fmt.aliases):
            assert formats.find(alias) is formats.find(alias.upper()) is fmt


@pytest.mark.parametrize("name", ["fp8", "e4m3", "FP8", "float8", "fp8_e4m3"])
def test_an_ambiguous_name_is_refused_with_what_exists(name):
    with pytest.raises(UnknownName, match="is ambiguous; known 8-bit formats: float8_e4m3fn, float8_e5m2"):
        formats.find(name)


def test_an_unknown_format_is_refused_with_what_exists_and_what_was_perhaps_meant():
    with pytest.raises(
        UnknownName, match=r"unknown format 'float17'; known: float16, bfloat16, .*, float8_e5m2; did you mean 'float16'\?"
    ):
        formats.find("float17")


def test_an_array_says_its_format_and_any_other_dtype_is_refused():
    for fmt in FORMATS.values():
        assert formats.of(np.zeros(2, fmt.dtype)) is fmt
    with pytest.raises(InvalidProblem, match="dtype int64 is no format; known: float16"):
        formats.of(np.zeros(2, np.int64))


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="'float16' is registered already"):
        FORMATS.add("float16", FORMATS["float16"])
