"""Where precision must grow, where it may not grow further, and how near ties are settled."""

import math
from fractions import Fraction

import numpy as np
import pytest
from flint import arb, ctx
from mpmath import libmp

from engine import Problem, Undecided, certify, evaluate, measurement
from engine.bounds import Tolerance
from engine.figures import bin_edge, fix, significant
from engine.formats import FORMATS
from engine.measurement import Allowances, Measurement
from engine.metrics import measure
from engine.truth import Truth, decimal, exact, hexadecimal, hull, log_enclosure


def measured(op, fmt, logits, output, targets=None):
    row = FORMATS[fmt]
    problem = Problem(op, np.array(logits, dtype=row.dtype), targets)
    return Measurement(np.array(output, dtype=row.dtype), Truth(problem, row))


# Rounding a figure


@pytest.mark.parametrize("value", [Fraction(1, 3), Fraction(2**60 + 1), Fraction(5, 7 * 2**90), Fraction(1), Fraction(2**41 + 1)])
def test_a_figure_is_rounded_to_nearest_even_once(value):
    unit = Fraction(2) ** (math.frexp(float(value))[1] - 40)
    expected = float(round(value / unit) * unit)  # Fraction rounds ties to even
    assert significant(value.numerator, value.denominator, 0, 40) == expected
    assert significant(-value.numerator, value.denominator, 0, 40) == -expected
    assert significant(value.numerator << 7, value.denominator << 4, -3, 40) == expected


def test_a_figure_beyond_binary64_is_infinite_and_one_below_it_0():
    assert significant(1, 1, 1024, 40) == significant((1 << 41) - 1, 1, 1023 - 40, 40) == math.inf
    assert significant(-1, 1, 5000, 40) == -math.inf
    assert significant(1, 1, -5000, 40) == significant(1, 1, -1100, 40) == 0.0
    assert significant(1, 1, -1074, 40) == 5e-324


def test_a_mean_has_no_step_finer_than_asked_for():
    assert significant(1, 3, 0, 20, -4) == 5 / 16
    assert significant(1, 33, 0, 20, -4) == 0.0


def test_an_interval_gives_a_figure_only_where_both_ends_do():
    assert fix(1000, 1001, 1, 0, 5) == 992.0
    assert fix(1007, 1009, 1, 0, 5) is None  # the midpoint 1008 of 992 and 1024 lies between
    assert fix(-1, 1, 1, -30, 20, -20) == 0.0
    assert fix(-1, 1, 1, -30, 20) is None


def test_a_value_within_2_to_the_minus_256_of_a_midpoint_is_that_midpoint():
    near, far = 1008 << 300, 1 << 290
    assert fix(near - 1, near + 1, 1, -300, 5) == 1024.0  # 31.5 units of 32: to even, 32
    assert fix(near + 1, near + 2, 1, -300, 5) == 1024.0
    assert fix(near - 2, near - 1, 1, -300, 5) == 1024.0
    assert fix(near - far, near - far + 1, 1, -300, 5) == 992.0
    assert fix(near - far, near + 1, 1, -300, 5) is None


@pytest.mark.parametrize("k", [-640, -64, -63, -1, 0, 1, 63, 64, 6400])
def test_bins_end_at_the_binary64_numbers_nearest_to_the_roots_of_2(k):
    with ctx.workprec(200):
        edge = float((arb(2) ** (arb(k) / 64)).mid())
    man, exp = int(math.frexp(edge)[0] * 2**53), math.frexp(edge)[1] - 53
    assert bin_edge(man, exp) == edge
    assert bin_edge((man << 9) - 1, exp - 9) == edge
    assert bin_edge((man << 9) + 1, exp - 9) > edge


def test_the_first_bins_are_0_and_up_to_2_to_the_minus_10():
    assert bin_edge(0, 0) == 0.0
    assert bin_edge(1, -1000) == bin_edge(1, -10) == 2.0**-10
    assert bin_edge(1, 1100) == math.inf


# Sums that are rational although their terms are not


def test_a_mean_that_is_exactly_between_two_figures_is_settled_to_even():
    # p_1 - 1 = -p_2 of the same row: the two errors add up to |c_1| + |c_2| exactly, 21 bits of it
    m = measured("cross_entropy_grad", "float32", [0.25, 0.0], [-(2.0**70), -(2.0**70) - 2.0**50], np.array(0))
    ulp = 2.0**-25
    assert measure(m).mean_ulp == 2.0**70 / ulp


def test_a_total_variation_that_is_exactly_between_two_figures_is_settled_to_even():
    # both errors positive: they add up to c_1 + c_2 - 1
    row = [0.625, 0.625 + 2.0**-22]
    found = measure(measured("softmax", "float32", [[0.0, 0.25]], [row])).total_variation
    assert found.worst == found.mean == 0.125  # of 0.125 + 2^-23, half a step above


def test_a_mean_over_rows_that_is_exactly_between_two_figures_is_settled_to_even():
    rows = [[0.5625, 0.5625], [0.5625, 0.5625 + 2.0**-22]]
    found = measure(measured("softmax", "float32", [[0.0, 0.0625]] * 2, rows)).total_variation
    assert found.worst == 0.0625 + 2.0**-23
    assert found.mean == 0.0625  # half of 2^-23 is half a step of 2^-23


def test_rows_without_a_truth_have_no_row_figures():
    assert measure(measured("softmax", "float32", [math.nan, 0.0], [0.5, 0.5])).kl is None


# The cap


NEAR = Problem("cross_entropy_grad", np.array([0.0, 5e-324]), np.array([0.5, 0.5]))  # 1/2 - 2^-1076 less 1/2


def test_what_takes_more_than_the_cap_is_undecided_and_said_to_be(monkeypatch):
    monkeypatch.setattr(exact, "MAX_PRECISION", 150)
    with pytest.raises(Undecided, match=r"cross_entropy_grad of a row of 2 logits is undecided at 282 bits"):
        certify(NEAR, "float64")


def test_digits_beyond_the_cap_raise_it():
    near_zero = np.array([-math.log(2), math.nextafter(-math.log(2), -1)])  # logsumexp cancels some fifty bits
    assert certify(Problem("logsumexp", near_zero), "float64", 4000).radius_log2 < -13000


def test_a_rounding_that_takes_more_than_the_cap_is_undecided(monkeypatch):
    monkeypatch.setattr("engine.truth.MAX_PRECISION", 125)
    tiny = np.array([0.0, 5e-324])  # 1/2 - 2^-1076: its binade takes over a thousand bits
    with pytest.raises(Undecided, match="the rounding of element 0 of row 0 to float64 is undecided at 125 bits"):
        certify(Problem("softmax", tiny), "float64")


def test_an_element_that_takes_more_than_the_cap_is_undecided(monkeypatch):
    monkeypatch.setattr("engine.truth.MAX_PRECISION", 125)
    truth = Truth(Problem("softmax", np.array([0.0, 5e-324])), FORMATS["float64"])
    with pytest.raises(Undecided, match="the rounding of element 1 of row 0 to float64 is undecided at 125 bits"):
        truth.decided(1)


def test_a_truth_known_to_fewer_bits_than_the_output_has_leaves_its_divergence_open_and_then_settles_it():
    for huge in (2.0**247, math.ldexp(1 - 2.0**-53, 1023)):
        m = measured("log_softmax", "float64", [[0.0, huge, 1.0]], [[-huge, 0.0, -huge]])
        assert measure(m).kl.worst == 0.0  # every difference is where the probability is below e^-(2^246)


def test_a_row_too_long_for_more_precision_is_undecided_after_one_attempt(monkeypatch):
    monkeypatch.setattr(exact, "MAX_ROW_BITS", 200)
    assert certify(Problem("softmax", np.zeros(100)), "float64").radius_log2 is not None
    with pytest.raises(Undecided, match=r"at 141 bits.*200 bits over a row"):
        certify(NEAR, "float64")


def test_a_figure_that_takes_more_than_the_cap_is_undecided(monkeypatch):
    monkeypatch.setattr(measurement, "MAX_PRECISION", 96)
    m = measured("softmax", "float32", [[0.0, 0.25]], [[0.625, 0.625 + 2.0**-22]])
    with pytest.raises(Undecided, match="a row's figure is undecided at 96 bits"):
        measure(m)


def test_signed_terms_that_cancel_raise_the_precision():
    # g_i - mu and tau cancel to some 2^-200 in the first element: more than the 141 bits it starts with
    x = np.array([0.0, -1.0, -2.0])
    p = np.exp(x)
    g = np.array([(p[1] * 3 + p[2] * 5) / (p[1] + p[2]), 3.0, 5.0])
    truth = Truth(Problem("softmax_vjp", x, grad_output=g), FORMATS["float64"])
    with ctx.workprec(3000):
        e = [arb(v).exp() for v in x.tolist()]
        total = sum(e)
        mean = sum(arb(v) * w for v, w in zip(g.tolist(), e, strict=True)) / total
        expected = e[0] / total * (arb(g[0]) - mean)
        lo, hi, exp = truth.row(0, 300)[0]
        assert arb(lo) * arb(2) ** exp <= expected <= arb(hi) * arb(2) ** exp


def test_gradients_whose_weighted_sum_cancels_raise_the_precision():
    # sum_v g_v exp(x_v) cancels to some 2^-250, term by term; 141 bits do not tell its sign
    x = np.arange(0.0, -7.0, -1.0)
    with ctx.workprec(3000):
        e = [arb(v).exp() for v in x.tolist()]
        g, rest = [0.0, 1.0], e[1]
        for term in e[2:]:
            g.append(float(-rest / term))
            rest += arb(g[-1]) * term
        assert abs(rest) < arb(2) ** -200
        truth = Truth(Problem("softmax_vjp", x, grad_output=np.array(g)), FORMATS["float64"])
        lo, hi, exp = truth.row(0, 80)[0]
        assert arb(lo) * arb(2) ** exp <= -rest / sum(e) ** 2 <= arb(hi) * arb(2) ** exp


# Decimals, hex, log


@pytest.mark.parametrize("x", [-1e5, -1e9, -1e300, -1.7e308])
def test_decimals_of_astronomically_small_numbers(x):
    answer = certify(Problem("softmax", np.array([0.0, x])), "float64", 25)
    with ctx.workprec(1300):
        mantissa, exponent = (arb(x).exp() / (1 + arb(x).exp())).str(30, radius=False).split("e")
    text, power = answer.decimal[1].split("e")
    assert power == exponent
    assert abs(Fraction(text) - Fraction(mantissa)) <= Fraction(1, 10**24)


def test_decimals_carry_over_to_the_next_power_of_ten():
    assert decimal((10**30 - 1, 10**30 - 1, 0), 5) == "1.0000e+30"
    assert decimal((95, 95, 0), 1) == "1e+2"
    assert decimal((-94, -94, 0), 1) == "-9e+1"
    assert decimal((0, 0, 0), 1) == "0e+0"
    assert decimal((0, 0, 0), 3) == "0.00e+0"
    assert decimal(-math.inf, 3) == "-Infinity"


def test_hex_is_the_exact_midpoint():
    assert hexadecimal((1, 2, 0)) == "0x1.8p+0"
    assert hexadecimal((-3, -3, -5)) == "-0x1.8p-4"
    assert hexadecimal((0, 0, 0)) == "0x0p+0"
    assert hexadecimal(math.nan) == "NaN"
    lo, hi, exp = 12345678901234567890, 12345678901234567893, -70
    assert Fraction(lo + hi, 2) / 2**70 == _from_hex(hexadecimal((lo, hi, exp)))


def _from_hex(text):
    mantissa, exponent = text.removeprefix("0x1.").split("p")
    return (1 + Fraction(int(mantissa, 16), 16 ** len(mantissa))) * Fraction(2) ** int(exponent)


@pytest.mark.parametrize(("num", "den"), [(3, 1), (1, 3), (10**40 + 1, 10**40), (10**40, 10**40 + 1), (1, 10**500), (10**500, 7)])
def test_log_keeps_its_relative_accuracy_near_1(num, den):
    lo, hi, exp = log_enclosure(num, den, 100)
    with ctx.workprec(2500):
        expected = (arb(num) / arb(den)).log()
        assert arb(lo) * arb(2) ** exp <= expected <= arb(hi) * arb(2) ** exp
    assert (hi - lo) << 100 <= min(abs(lo), abs(hi))


def test_the_log_of_1_is_exactly_0():
    assert log_enclosure(7, 7, 100) == (0, 0, 0)


def test_a_stand_in_lies_beside_its_rational_and_its_hull_reaches_it():
    (e, _) = Truth(Problem("softmax", np.array([0.0, -1e6])), FORMATS["float32"]).row(0, 96)
    assert isinstance(e, exact.StandIn)
    assert Fraction(e.hi) * Fraction(2) ** e.exp < 1
    lo, hi, exp = hull(e)
    assert Fraction(lo) * Fraction(2) ** exp < 1 <= Fraction(hi) * Fraction(2) ** exp


def test_logits_at_both_ends_of_the_range_have_a_bound():
    found = evaluate(Problem("softmax", np.array([1.7e308, -1.7e308])), ["float64"], ["shifted"]).outcomes[0]
    assert (found.status, found.metrics.error_over_bound, found.bound.unbounded) == ("accurate", 0.0, 0)


# Outputs far from the truth, and tolerances met to the last bit


@pytest.mark.parametrize(
    ("logits", "output"), [([0.0, 0.0], [1e-100, 1.0]), ([0.0, 1.0], [5e-324, 1.0]), ([0.0, -700.0], [5e-324, 1.0])]
)
def test_an_output_far_below_the_truth_has_its_figures(logits, output):
    found = measure(measured("softmax", "float64", logits, output))
    with ctx.workprec(400):
        e = [arb(x).exp() for x in logits]
        w = [(arb(c) * sum(e) / part).log() for c, part in zip(output, e, strict=True)]
        kl = sum(part / sum(e) * ((v.exp() - 1) - v) for part, v in zip(e, w, strict=True))
        spread = (w[1] - w[0]) / 2
    assert found.kl.worst == pytest.approx(float(kl), rel=1e-5)
    assert found.backward_error.worst == pytest.approx(abs(float(spread)), rel=1e-5)


class _One(Allowances):
    """One bound for all."""

    def __init__(self, value):
        self.value = value
        self.chosen = Tolerance(), Tolerance()

    def bound(self, index, which):
        return self.value


def beyond(op, fmt, logits, output, bound):
    row = FORMATS[fmt]
    truth = Truth(Problem(op, np.array(logits, dtype=row.dtype)), row)
    return Measurement(np.array(output, dtype=row.dtype), truth, _One(bound)).beyond


def test_a_bound_with_finer_bits_than_the_stand_in_is_not_decided_by_it():
    # c - q is the bound exactly, and the rest exp(-1024) makes the error a little smaller
    x = np.full(2044, 2.0**-100)
    x[0] = 1024.0
    allowed = 3 * 2.0**-42
    assert beyond("logsumexp", "float64", x, 1024 + allowed, math.nextafter(allowed, 0)) == [0]
    assert beyond("logsumexp", "float64", x, 1024 + allowed, allowed) == []
    assert beyond("logsumexp", "float64", x, 1024 - allowed, allowed) == [0]  # by less than any precision parts from it


def test_an_error_that_is_a_share_of_a_rational_truth_is_inside():
    x = np.zeros((1, 3))  # 1/3, whose error of 0 is the whole of it: no precision parts the two
    truth = Truth(Problem("softmax", x), FORMATS["float64"])
    given = _One(0.0)
    given.chosen = Tolerance(), Tolerance(relative=1.0, ulps=1.0)
    assert Measurement(np.zeros((1, 3)), truth, given).tolerated().beyond == 0


def test_an_error_that_is_the_bound_exactly_is_inside():
    zeros = [0.0] * 4  # the truth is 1/4, which no precision parts from the bound
    assert beyond("softmax", "float16", zeros, zeros, 0.25) == []
    assert beyond("softmax", "float16", zeros, zeros, math.nextafter(0.25, 0)) == [0, 1, 2, 3]
    x = [0.0, 0.0, 0.0]  # 1/3 is no binary64 number, but twice it less a third
    assert beyond("softmax", "float64", x, [0.0] * 3, 1 / 3) == [0, 1, 2]


def test_a_long_row_of_equal_logits_may_take_any_precision():
    equal = np.full(1000000, -13.815510557964274)  # -log(10^6), rounded: logsumexp cancels
    assert certify(Problem("logsumexp", equal), "float64").rounded < 1e-15


@pytest.mark.parametrize("op", ["softmax", "logsumexp"])
def test_huge_logits_cost_little_more_than_others(op, monkeypatch):
    calls = []
    power = libmp.mpf_pow_int
    monkeypatch.setattr(libmp, "mpf_pow_int", lambda *given: calls.append(given) or power(*given))
    x = np.array([(-1) ** i * 1.1e308 * (1 + i * 1e-6) for i in range(50)])
    answer = certify(Problem(op, x), "float32")
    assert answer.rounded.dtype == np.float32
    assert not calls  # mpmath's way with a large integer exponent, hundreds of times slower


def test_a_zero_for_an_infinite_truth_is_no_false_zero():
    m = measure(measured("cross_entropy", "float32", [0.0, -math.inf], 0.0, np.array(1)))
    assert (m.special_mismatch, m.zero_count, m.underflow_count, m.false_zero_count) == (1, 1, 0, 0)


@pytest.mark.parametrize(
    ("op", "output", "kept"),
    [
        ("cross_entropy_grad", [-0.5, 0.25, 0.25], 1),
        ("cross_entropy_grad", [0.5, 0.25, -0.5], 0),
        ("cross_entropy_grad", [-0.5, math.nan, 0.25], 0),
    ],
)
def test_the_largest_gradient_is_looked_for_where_the_truth_has_it(op, output, kept):
    assert measure(measured(op, "float32", [0.0, 2.0, 1.0], output, np.array(0))).argmax_preserved == kept
    assert measure(measured(op, "float32", [0.0, 5e-45, 5e-45], [-1.0, 0.0, 1.0], np.array(0))).argmax_preserved == 1


def test_a_row_without_a_maximum_to_look_for_counts_for_nothing():
    assert measure(measured("logsumexp", "float32", [0.0, 2.0], 2.0)).argmax_preserved is None
    assert measure(measured("softmax_jacobian", "float32", [math.nan, 2.0], np.full((2, 2), math.nan))).argmax_preserved == 0


def test_a_gradient_over_many_distinct_values_costs_no_square_of_them():
    # half of the logits at the maximum, the rest far below: every g there has its own rest
    x = np.concatenate([np.zeros(300), np.linspace(-60, -30, 300)])
    g = np.random.default_rng(1).standard_normal(600)
    truth = Truth(Problem("softmax_vjp", x, grad_output=g), FORMATS["float64"])
    calls = []
    summed = exact._signed_sum
    try:
        exact._signed_sum = lambda *given: calls.append(1) or summed(*given)
        truth.resolved(0)
    finally:
        exact._signed_sum = summed
    assert len(calls) < 5
