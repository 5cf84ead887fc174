"""The truth against balls that share no code with it, against itself, and against every answer that is known by theory."""

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from flint import arb, ctx
from hypothesis import given
from hypothesis import strategies as st

import engine
from engine import formats
from engine.errors import InvalidProblem
from engine.formats import FORMATS
from engine.model import Problem
from engine.truth import Truth
from tests import golden, judge, rows

NAN, INF = math.nan, math.inf
CASES = [(fmt, op) for fmt in FORMATS for op in judge.OPS]
LENGTH = {"softmax_jacobian": 6}  # n^2 elements a row; the other ops 12
ROWS = {"logsumexp": 112, "cross_entropy": 112}  # one element a row; the other ops 64


def drawn(fmt, op, seed):
    """(row, soft) for the rows of one case; the two kinds of target in turn."""
    for k, row in enumerate(rows.rows(fmt, seed, ROWS.get(op, 64), LENGTH.get(op, 12))):
        yield row, k // len(rows.FAMILIES) % 2 == 1


def truth_of(op, fmt, logits, target=None):
    """The truth of one row; target as the judge takes it."""
    dtype = FORMATS[fmt].dtype
    tensors = {}
    if isinstance(target, int):
        tensors["targets"] = np.array(target)
    elif target is not None:
        tensors["grad_output" if op == "softmax_vjp" else "targets"] = np.array(target).astype(dtype)
    return Truth(Problem(op, np.array(logits).astype(dtype), **tensors), FORMATS[fmt])


def rounded(op, fmt, logits, target=None):
    """The correctly rounded elements of one row as Python floats."""
    return truth_of(op, fmt, logits, target).rounded().astype(np.float64).reshape(-1).tolist()


def same(a, b):
    return a == b or (math.isnan(a) and math.isnan(b))


# Against the judge


def compare_with_judge(fmt, op, seed):
    compared = 0
    for row, soft in drawn(fmt, op, seed):
        target = row.target(op, soft)
        truth = truth_of(op, fmt, row.logits, target)
        expected = judge.rounded(op, row.logits, target, fmt)
        assert None not in expected, row
        numbers = [x if math.isnan(x) else judge.from_ordinal(x, fmt) for x in expected]
        got = truth.rounded().astype(np.float64).reshape(-1).tolist()
        wrong = [(k, g, e) for k, (g, e) in enumerate(zip(got, numbers, strict=True)) if not same(g, e)]
        assert not wrong, (op, fmt, row, target, wrong)
        compare_enclosures(truth, op, row.logits, target)
        compared += len(got)
    return compared


def compare_enclosures(truth, op, logits, target):
    """Every enclosure holds what the balls hold, is as narrow as it promises, and knows the binade."""
    bits = truth.bits
    balls = judge.enclose(op, logits, target, 2 * bits + 64)
    beside = judge.sided(op, logits, target, gap=0)
    with ctx.workprec(4 * bits):
        for k, (enclosure, ball) in enumerate(zip(truth.row(0, bits), balls, strict=True)):
            assert agrees(enclosure, ball, beside[k], bits), (op, logits, target, k, enclosure, ball)
    for top, ball in zip(truth.resolved(0).tops, balls, strict=True):
        expected = binade(ball)
        assert expected == "undecided" or top == expected, (op, logits, target, top, expected)


def agrees(enclosure, ball, beside, bits):
    if isinstance(enclosure, float) or isinstance(ball, float):
        return isinstance(enclosure, float) and isinstance(ball, float) and same(enclosure, ball)
    lo, hi, exp = enclosure
    if lo > hi or (hi - lo) << bits > max(abs(lo), abs(hi)):
        return False
    if isinstance(ball, Fraction):
        return lo * judge.power(exp) <= ball <= hi * judge.power(exp)
    low, high = arb((lo, exp)), arb((hi, exp))
    return lo < hi and ((not low > ball and not high < ball) or stands_in(low, high, ball, beside, bits))


def stands_in(low, high, ball, beside, bits):
    """The sticky rule: the rest is too small to show at this width, and the enclosure lies strictly on its side of q."""
    if beside is None or beside[0] == 0:
        return False
    q, sign = arb(beside[0].numerator) / beside[0].denominator, beside[1]
    near = all(abs(v / q - 1) < arb(2) ** -bits for v in (low, high, ball))
    return near and (low > q if sign > 0 else high < q)


def binade(ball):
    """floor(log2|T|); None where there is none; "undecided" where the ball is too wide to say."""
    if isinstance(ball, float) or ball == 0:
        return None
    if isinstance(ball, Fraction):
        return judge.floor_log2(ball)
    low, high = judge.ends(ball)
    if low * high <= 0 or judge.floor_log2(low) != judge.floor_log2(high):
        return "undecided"
    return judge.floor_log2(low)


@pytest.mark.half
@pytest.mark.parametrize(("fmt", "op"), CASES)
def test_truth_is_what_the_judge_says_on_random_and_adversarial_rows(fmt, op):
    assert compare_with_judge(fmt, op, 0) > 60


def test_the_comparison_with_the_judge_covers_ten_thousand_values():
    assert sum(judge.width(op, len(row.logits)) for fmt, op in CASES for row, _ in drawn(fmt, op, 0)) >= 10_000


@pytest.mark.parametrize("op", judge.OPS)
def test_the_judges_two_ways_agree(op):
    """Balls precise enough to see the rest, and the rational part with the sign of the rest."""
    for logits in ([1.0, -4095.0, -4096.0], [2.0, -4094.0, 2.0, -5000.0], [0.5, 0.5, -4000.0, 0.5]):
        n = len(logits)
        for target in (
            [0.5, 0.25, 2.0, 1.0][:n],
            [1.0, 2.0**-12, 0.0, 2.0**-11][:n],
            [1.0 + 2.0**-10, 2.0**-11, 5.0, 2.0**-11][:n],
        ):
            plain = judge.rounded(op, logits, target, "float16", cap=1 << 14)
            for value, part in zip(plain, judge.sided(op, logits, target), strict=True):
                assert value is not None
                assert part is None or value == judge.round_fraction(part[0] + part[1] * judge.TINY, "float16")


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1, 101))
def test_truth_is_what_the_judge_says_on_a_million_values(seed):
    assert sum(compare_with_judge(fmt, op, seed) for fmt, op in CASES) > 10_000


@pytest.mark.parametrize("fmt", FORMATS)
def test_long_rows_are_no_different(fmt):
    rng = np.random.default_rng(7)
    for op in ("softmax", "log_softmax", "logsumexp"):
        logits = [judge.nearest(float(x), fmt) for x in rng.normal(0, 8, 300)]
        expected = [judge.from_ordinal(k, fmt) for k in judge.rounded(op, logits, None, fmt)]
        assert rounded(op, fmt, logits) == expected


@pytest.mark.parametrize("op", judge.OPS)
def test_a_batch_is_its_rows(op):
    fmt, rng = FORMATS["float16"], np.random.default_rng(3)
    logits = rng.normal(0, 3, (2, 3, 4)).astype(fmt.dtype)
    logits[0, 1, 2], logits[1, 0, 0] = -np.inf, np.nan
    tensors = {}
    if op.startswith("cross_entropy"):
        tensors["targets"] = rng.integers(0, 4, (2, 3))
    if op == "softmax_vjp":
        tensors["grad_output"] = rng.normal(0, 1, (2, 3, 4)).astype(fmt.dtype)
    truth = Truth(Problem(op, logits, **tensors), fmt)
    assert truth.rounded().shape == truth.shape
    assert truth.rounded().dtype == fmt.dtype
    assert (truth.rows, truth.width) == (6, judge.width(op, 4))
    flat = truth.rounded().astype(np.float64).reshape(6, -1).tolist()
    for k, (a, b) in enumerate(np.ndindex(2, 3)):
        one = {name: value[a, b] for name, value in tensors.items()}
        alone = Truth(Problem(op, logits[a, b], **one), fmt).rounded().astype(np.float64).reshape(-1).tolist()
        assert all(map(same, flat[k], alone))


def test_a_problem_that_does_not_fit_its_op_has_no_truth():
    with pytest.raises(InvalidProblem, match="cross_entropy needs targets"):
        Truth(Problem("cross_entropy", np.zeros(3)), FORMATS["float64"])


# Against itself


@pytest.mark.parametrize(("fmt", "op"), CASES)
def test_truth_at_twice_the_precision_is_the_same_truth(fmt, op):
    for row, soft in list(drawn(fmt, op, 1))[:32]:
        truth = truth_of(op, fmt, row.logits, row.target(op, soft))
        bits = truth.bits
        coarse, fine = truth_of(op, fmt, row.logits, row.target(op, soft)).row(0, bits), truth.row(0, 2 * bits)
        for a, b in zip(coarse, fine, strict=True):
            if isinstance(a, float) or isinstance(b, float):
                assert same(a, b)
            else:
                assert close(a, b, bits - 1), (op, fmt, row, a, b)


def close(a, b, bits):
    """Whether two enclosures differ by at most 2^-bits of their size at every end."""
    with ctx.workprec(4 * bits + 100):
        low, high = (min(arb((e[0], e[2])) for e in (a, b)), max(arb((e[1], e[2])) for e in (a, b)))
        return (high - low) * arb(2) ** bits <= max(abs(low), abs(high))


@pytest.mark.parametrize("op", ["softmax", "log_softmax", "logsumexp", "softmax_jacobian"])
def test_the_order_of_the_logits_does_not_matter(op):
    row = [0.5, -3.0, 2.25, 2.25, -40.0]
    order = [3, 0, 4, 2, 1]
    truth, moved = (np.array(rounded(op, "float32", [row[i] for i in o])) for o in (range(5), order))
    if op == "softmax_jacobian":
        truth, moved = truth.reshape(5, 5)[np.ix_(order, order)], moved.reshape(5, 5)
    elif op != "logsumexp":
        truth = truth[order]
    assert (truth == moved).all()


# Ties and exact zeros decided by theory


@pytest.mark.parametrize(("fmt", "n"), [("bfloat16", 512), ("float16", 4096)])
def test_the_gradient_of_equal_logits_can_be_a_midpoint_and_goes_to_even(fmt, n):
    target = rounded("cross_entropy_grad", fmt, [1.0] * n, 3)
    assert target[3] == -1.0  # -(n-1)/n is the midpoint between -1 and its neighbour
    assert target[0] == 1.0 / n


@pytest.mark.parametrize(("fmt", "n"), [("bfloat16", 256), ("float16", 2048)])
def test_half_as_many_equal_logits_make_a_gradient_that_the_format_holds(fmt, n):
    assert rounded("cross_entropy_grad", fmt, [0.0] * n, 0)[0] == -(n - 1) / n


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 8, 10, 100])
def test_equal_logits_have_the_rational_softmax(n):
    for fmt in FORMATS:
        expected = judge.from_ordinal(judge.round_fraction(Fraction(1, n), fmt), fmt)
        assert rounded("softmax", fmt, [judge.nearest(-3.3, fmt)] * n) == [expected] * n


def test_rational_answers_that_reduce_to_a_power_of_two_are_exact():
    # S = 7 on seven equal logits: S/7 - y = 1 - y; and (g_i - mean) / 12 for a mean of -1/4
    weights = [1.0, 3.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    assert rounded("cross_entropy_grad", "float64", [-3.0] * 7, weights) == [1.0 - y for y in weights]
    grad = [0.0, -1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 0.0, -1.0, 1.0, 0.0, -1.0]
    expected = [judge.from_ordinal(k, "float16") for k in judge.rounded("softmax_vjp", [2.0] * 12, grad, "float16")]
    assert rounded("softmax_vjp", "float16", [2.0] * 12, grad) == expected
    assert expected[1] == -0.0625  # (-1 + 1/4) / 12


def test_a_loss_that_takes_more_precision_gets_it():
    # the only element is undecided at first: 1024 + 2^-14 and a rest of e^-60 is beside the midpoint of 1024 and its neighbour
    assert rounded("cross_entropy", "float32", [2.0**-14, -1024.0, -60.0], 1) == [1024.0 + 2.0**-13]


def test_uniform_targets_on_equal_logits_make_a_gradient_of_exactly_zero():
    assert rounded("cross_entropy_grad", "float32", [5.0] * 4, [0.25] * 4) == [0.0] * 4
    assert truth_of("cross_entropy_grad", "float32", [5.0] * 4, [0.25] * 4).resolved(0).tops == [None] * 4
    nudged = truth_of("cross_entropy_grad", "float32", [5.0, 5.0, 5.0, 5.0 + 2.0**-21], [0.25] * 4)
    assert None not in nudged.resolved(0).tops


@given(
    groups=st.lists(
        st.tuples(st.integers(-3, 3), st.lists(st.integers(-2, 2), min_size=1, max_size=3)),
        min_size=1,
        max_size=3,
        unique_by=lambda g: g[0],
    )
)
def test_a_vjp_is_zero_exactly_where_g_is_the_mean_of_g_in_every_group_of_equal_logits(groups):
    logits = [float(x) for x, g in groups for _ in g]
    grad = [float(v) for _, g in groups for v in g]
    means = {Fraction(sum(g), len(g)) for _, g in groups}
    zero = [means == {Fraction(v)} for v in grad]
    tops = truth_of("softmax_vjp", "float64", logits, grad).resolved(0).tops
    assert [top is None for top in tops] == zero


@pytest.mark.parametrize("logit", [0.0, -7.25, 60000.0, 2.0**-24])
def test_a_single_logit_has_exact_answers(logit):
    for fmt in ("float16", "float64"):
        x = judge.nearest(logit, fmt)
        assert rounded("softmax", fmt, [x]) == [1.0]
        assert rounded("log_softmax", fmt, [x]) == [0.0]
        assert rounded("logsumexp", fmt, [x]) == [x]
        assert rounded("cross_entropy", fmt, [x], 0) == [0.0]
        assert rounded("cross_entropy", fmt, [x], [3.0]) == [0.0]
        assert rounded("cross_entropy_grad", fmt, [x], 0) == [0.0]
        assert rounded("cross_entropy_grad", fmt, [x], [3.0]) == [0.0]
        assert rounded("softmax_jacobian", fmt, [x]) == [0.0]
        assert rounded("softmax_vjp", fmt, [x], [5.0]) == [0.0]


# Exponentially near a boundary, decided by the sign of the rest


def test_log_softmax_beside_a_midpoint_of_float64():
    assert rounded("log_softmax", "float64", [1.0, -(2.0**53)]) == [-0.0, -(2.0**53) - 2]


def test_log_softmax_beside_a_midpoint_of_float32():
    assert rounded("log_softmax", "float32", [1.0, -16777216.0]) == [-0.0, -16777218.0]


def test_logsumexp_beside_a_midpoint_of_bfloat16():
    wide = Problem("logsumexp", np.array([1.00390625, -1e6]))  # 1 + 2^-8: no bfloat16, so the logits stay binary64
    assert float(Truth(wide, FORMATS["bfloat16"]).rounded()) == 1.0078125


@pytest.mark.parametrize("index", [0, 1])
def test_cross_entropy_beside_a_midpoint_of_float32(index):
    assert rounded("cross_entropy", "float32", [1.0, -16777216.0], index) == [[0.0], [16777218.0]][index]


def test_cross_entropy_of_a_distribution_beside_a_midpoint_of_float32():
    assert rounded("cross_entropy", "float32", [2.0, -33554432.0], [1.0, 0.5]) == [16777218.0]  # 16777217 and a positive rest


def test_a_gradient_beside_a_midpoint_follows_the_sign_of_the_rest():
    weights = [1.0, 2.0**-12]  # S - y_0 = 2^-12, S/m - y = q: the rest pulls p_0 S below it, and p_1 S above -y_1
    assert rounded("cross_entropy_grad", "float16", [0.0, -60000.0], weights) == [2.0**-12, -(2.0**-12)]
    sums = [1.0, 1.0 + 2.0**-9, 2.0**-11]  # two maxima: S/2 - 1 = 2^-10 + 2^-12
    expected = judge.rounded("cross_entropy_grad", [0.0, 0.0, -60000.0], sums, "float16")
    assert rounded("cross_entropy_grad", "float16", [0.0, 0.0, -60000.0], sums) == [
        judge.from_ordinal(k, "float16") for k in expected
    ]


def test_a_vjp_beside_a_midpoint_follows_the_sign_of_the_rest():
    odd = 1.0 + 2.0**-10  # (odd - 2^-11)/4 is a midpoint of float16 between 1/4 and its neighbour 1/4 + 2^-12
    for third, nudge in ((60000.0, -1), (-60000.0, 1)):
        first = rounded("softmax_vjp", "float16", [0.0, 0.0, -60000.0], [odd, 2.0**-11, third])[0]
        assert first == judge.from_ordinal(
            judge.round_fraction(Fraction(1, 4) + Fraction(1, 2**13) + nudge * judge.TINY, "float16"), "float16"
        )


@pytest.mark.parametrize("seed", range(5))
def test_wide_float32_rows_have_a_quarter_of_their_log_softmax_beside_midpoints(seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1000, 10).astype(np.float32).astype(np.float64).tolist()
    expected = [judge.from_ordinal(k, "float32") for k in judge.rounded("log_softmax", logits, None, "float32")]
    assert rounded("log_softmax", "float32", logits) == expected


# Overflow by the format's own rule


def test_a_truth_beyond_a_format_without_infinity_rounds_to_nan_and_is_known_all_the_same():
    truth = truth_of("log_softmax", "float8_e4m3fn", [448.0, -448.0, -16.0])
    assert truth.resolved(0).ordinals == [0, None, None]  # 0 (or just below), -896, and -464 with a rest below it
    assert truth.resolved(0).tops[1:] == [9, 8]
    assert [math.isnan(x) for x in truth.rounded().astype(float)] == [False, True, True]
    assert [isinstance(e, float) for e in truth.row(0, truth.bits)] == [False] * 3
    assert not truth.untrue(0)
    assert truth.certificate().relative_bound_log2 == -truth.bits


def test_the_same_truth_saturates_where_the_format_does():
    problem = Problem("log_softmax", np.array([448.0, -448.0, -16.0, -INF]).astype(np.float32))
    truth = Truth(problem, formats.saturated(FORMATS["float8_e4m3fn"]))
    assert truth.rounded().astype(float).tolist() == [0.0, -448.0, -448.0, -448.0]


def test_an_infinite_truth_is_nan_in_a_format_without_infinity():
    truth = Truth(Problem("log_softmax", np.array([0.0, -INF])), FORMATS["float8_e4m3fn"])
    assert [math.isnan(x) for x in truth.rounded().astype(float)] == [False, True]


@pytest.mark.parametrize("row", [[NAN, 0.0], [INF, 0.0], [-INF, -INF]])
def test_a_row_without_truth_is_told(row):
    assert Truth(Problem("softmax", np.array(row)), FORMATS["float32"]).untrue(0)


# The binade of the truth, not of its rounding


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("gap", [9.0, 20.0, 40.0, 1000.0, 60000.0])
def test_one_minus_something_tiny_lies_in_the_binade_below_one(fmt, gap):
    gap = min(gap, FORMATS[fmt].largest)
    top, low = truth_of("softmax", fmt, [0.0, -judge.nearest(gap, fmt)]).resolved(0).tops
    assert top == -1
    assert low == math.floor(-judge.nearest(gap, fmt) / math.log(2))


@pytest.mark.parametrize("gap", [20.0, 1000.0, 60000.0])
def test_a_jacobian_diagonal_just_below_a_quarter_lies_in_the_binade_below(gap):
    resolved = truth_of("softmax_jacobian", "float16", [0.0, 0.0, -gap]).resolved(0)
    diagonal, off = resolved.tops[0], resolved.tops[1]
    assert diagonal == -3  # 1/4 - T^2/(4 (2+T)^2)
    assert off == -3  # 1/4 - ...: p_0 p_1 = 1/(2+T)^2
    assert rounded("softmax_jacobian", "float16", [0.0, 0.0, -gap])[0] == 0.25


@pytest.mark.parametrize(("third", "top"), [(0.0, -2), (1.0, -3), (-1.0, -2), (0.25, -2)])
def test_a_vjp_beside_a_quarter_lies_in_the_binade_its_rest_says(third, top):
    # G = 1 with two maxima: q = 1/4; the rest has the sign of 4 (1 - third) - 4, and where that is 0 of -T
    expected = {0.0: -3, 1.0: -3, -1.0: -2, 0.25: -3}[third]
    assert truth_of("softmax_vjp", "float32", [0.0, 0.0, -60000.0], [1.0, 0.0, third]).resolved(0).tops[0] == expected


# Far away


@pytest.mark.parametrize(("fmt", "gap"), [("float32", 1e5), ("float64", 1e5), ("float64", 1e300), ("float64", 1.7e308)])
def test_an_exponential_far_below_every_format_is_still_enclosed(fmt, gap):
    gap = judge.nearest(gap, fmt)
    truth = truth_of("softmax", fmt, [0.0, -gap])
    assert truth.rounded().tolist() == [1.0, 0.0]
    lo, hi, exp = truth.row(0, 80)[1]
    exponent = Fraction(exp + lo.bit_length())  # log2 of p = e^-gap, to one
    assert lo > 0
    assert abs(exponent + Fraction(gap) * Fraction(*(math.log2(math.e)).as_integer_ratio())) <= 1 + Fraction(gap) / 2**50
    assert 0 < (hi - lo) << 80 <= hi


def test_the_loss_of_a_sure_winner_is_tiny_and_not_zero():
    for gap in (1e4, 1e5, 1e300):
        truth = truth_of("cross_entropy", "float64", [0.0, -gap], 0)
        lo, _, exp = truth.row(0, 80)[0]
        assert lo > 0
        assert abs(Fraction(exp + lo.bit_length()) / Fraction(gap) + Fraction(1.4426950408889634)) < Fraction(1, 1000)


def test_the_largest_logits_there_are():
    top = 1.7976931348623157e308
    assert rounded("softmax", "float64", [top, -top, top]) == [0.5, 0.0, 0.5]
    assert rounded("logsumexp", "float64", [top, top]) == [top]
    assert rounded("log_softmax", "float64", [top, -top]) == [-0.0, -INF]
    assert rounded("cross_entropy", "float64", [top, -top], 1) == [INF]
    assert rounded("cross_entropy_grad", "float64", [top, -top], 1) == [1.0, -1.0]
    assert rounded("logsumexp", "float16", [65504.0, 65504.0]) == [65504.0]
    assert rounded("logsumexp", "float16", [65504.0] * 2 + [-65504.0]) == [65504.0]
    assert rounded("log_softmax", "float16", [65504.0, 0.0, -65504.0]) == [-0.0, -65504.0, -INF]


def test_logsumexp_overflows_where_rounding_says_so():
    # 65504 + log n reaches 65520, the first value that rounds to infinity, at n = e^16
    assert rounded("log_softmax", "float16", [16.0, -65504.0]) == [-0.0, -INF]
    assert rounded("log_softmax", "float16", [8.0, -65504.0]) == [-0.0, -65504.0]


@pytest.mark.parametrize("fmt", FORMATS)
def test_subnormal_results_are_rounded_once(fmt):
    row = FORMATS[fmt]
    gaps = [judge.nearest(-math.log(row.smallest_subnormal) + delta, fmt) for delta in (-3.0, -1.0, -0.5, 0.0, 0.5, 1.0)]
    logits = [0.0] + [-gap for gap in gaps]
    expected = [judge.from_ordinal(k, fmt) for k in judge.rounded("softmax", logits, None, fmt)]
    got = rounded("softmax", fmt, logits)
    assert got == expected
    assert any(0 < p < row.smallest_normal for p in got)


# Rows that are not finite


def target_for(op):
    return 0 if op.startswith("cross_entropy") else [1.0, 2.0, 3.0] if op == "softmax_vjp" else None


@pytest.mark.parametrize("op", judge.OPS)
@pytest.mark.parametrize("row", [[NAN, 0.0, 1.0], [NAN, INF, 1.0], [NAN, -INF, -INF], [NAN, NAN, NAN]])
def test_a_nan_makes_everything_nan(op, row):
    assert all(map(math.isnan, rounded(op, "float32", row, target_for(op))))


@pytest.mark.parametrize("op", judge.OPS)
@pytest.mark.parametrize(("row", "total"), [([INF, 0.0, 1.0], INF), ([INF, INF, -INF], INF), ([-INF, -INF, -INF], -INF)])
def test_plus_infinity_and_all_minus_infinity_leave_only_logsumexp_a_value(op, row, total):
    got = rounded(op, "float32", row, target_for(op))
    assert got == [total] if op == "logsumexp" else all(map(math.isnan, got))


def test_a_masked_logit_has_probability_zero_and_the_others_do_not_notice():
    masked, plain = [1.0, -INF, 2.0], [1.0, 2.0]
    assert rounded("softmax", "float32", masked)[1] == 0.0
    assert rounded("log_softmax", "float32", masked)[1] == -INF
    for op in ("softmax", "log_softmax"):
        assert rounded(op, "float32", masked)[::2] == rounded(op, "float32", plain)
    assert rounded("logsumexp", "float32", masked) == rounded("logsumexp", "float32", plain)
    jacobian = np.array(rounded("softmax_jacobian", "float32", masked)).reshape(3, 3)
    assert not jacobian[1].any()
    assert not jacobian[:, 1].any()
    assert jacobian[::2, ::2].ravel().tolist() == rounded("softmax_jacobian", "float32", plain)
    first, second = rounded("softmax_vjp", "float32", plain, [1.0, 3.0])
    assert rounded("softmax_vjp", "float32", masked, [1.0, 9.0, 3.0]) == [first, 0.0, second]


def test_a_target_on_a_masked_logit_costs_infinity_and_its_gradient_is_exact():
    masked = [1.0, -INF, 2.0]
    assert rounded("cross_entropy", "float32", masked, 1) == [INF]
    assert rounded("cross_entropy", "float32", masked, [0.5, 2.0**-149, 0.5]) == [INF]
    assert rounded("cross_entropy_grad", "float32", masked, 1)[1] == -1.0
    assert rounded("cross_entropy_grad", "float32", masked, [0.5, 0.25, 0.5])[1] == -0.25


def test_no_weight_on_a_masked_logit_contributes_exactly_nothing():
    assert rounded("cross_entropy", "float32", [1.0, -INF, 2.0], [0.5, 0.0, 0.5]) == rounded(
        "cross_entropy", "float32", [1.0, 2.0], [0.5, 0.5]
    )


def test_weights_that_are_all_zero_cost_nothing():
    assert rounded("cross_entropy", "float32", [1.0, 2.0, -INF], [0.0] * 3) == [0.0]
    assert rounded("cross_entropy_grad", "float32", [1.0, 2.0, -INF], [0.0] * 3) == [0.0] * 3


@pytest.mark.parametrize("op", judge.OPS)
def test_one_finite_logit_among_masked_ones_is_a_row_of_one(op):
    got = rounded(op, "float32", [-INF, 3.0, -INF], 1 if op.startswith("cross_entropy") else target_for(op))
    expected = {"softmax": [0.0, 1.0, 0.0], "log_softmax": [-INF, 0.0, -INF], "logsumexp": [3.0], "cross_entropy": [0.0]}
    assert got == expected.get(op, [0.0] * len(got))


# Golden values


@pytest.mark.parametrize("case", golden.read(), ids=lambda case: case["name"])
def test_golden_values_in_hex(case):
    logits, target = golden.inputs(case)
    got = rounded(case["op"], case["format"], logits, target)
    assert [golden.text(x) for x in got] == case["rounded"]


ZEROS, AHEAD = [0.0] * 4096, [0.0] * 31999
PRINTED = [  # by Arb at 300 bits, to the last digit printed; a minus sign negates the gradient
    ("logsumexp", "float64", [0.0, -40.0], None, {0: "4.2483542552915889863e-18"}),
    ("-cross_entropy_grad", "float64", [0.0, -40.0], 0, {0: "4.2483542552915889773e-18"}),
    ("logsumexp", "float64", [1000.0, 999.0], None, {0: "1000.3132616875182228"}),
    ("log_softmax", "float32", [0.0, -104.0], None, {0: "-6.8135568215452985e-46", 1: "-104"}),
    ("log_softmax", "float64", [-1e7, -1e7, -9999999.0], None, {0: "-1.551444714", 1: "-1.551444714", 2: "-.5514447139"}),
    ("softmax", "float32", ZEROS, None, {0: "0.000244140625", 4095: "0.000244140625"}),
    ("logsumexp", "float32", ZEROS, None, {0: "8.3177661667193437"}),
    ("softmax", "float64", [-37.42994775023705, 0.0], None, {0: "5.5511151231257757870e-17"}),
    ("softmax", "float32", [*AHEAD, 15.0], None, {31999: ".990306318906"}),
    ("cross_entropy_grad", "float32", [*AHEAD, 15.0], 31999, {31999: "-.00969368109375"}),
    ("softmax", "float32", [*AHEAD, 17.0], None, {31999: ".998677013940"}),
    ("cross_entropy_grad", "float32", [*AHEAD, 17.0], 31999, {31999: "-.00132298605984"}),
]


@pytest.mark.parametrize(("op", "fmt", "logits", "target", "printed"), PRINTED)
def test_published_golden_values_come_out_to_the_last_digit(op, fmt, logits, target, printed):
    tensors = {} if target is None else {"targets": np.array(target)}
    answer = engine.certify(Problem(op.lstrip("-"), np.array(logits), **tensors), fmt, 30)
    decimals = [answer.decimal] if isinstance(answer.decimal, str) else answer.decimal
    for k, text in printed.items():
        got, expected = Decimal(decimals[k]), Decimal(text)
        got = -got if op.startswith("-") else got
        assert got.quantize(expected) == expected if got.adjusted() < 20 else got == expected


def test_decimals_hex_and_rounded_values_enclose_one_truth():
    answer = engine.certify(Problem("softmax", np.array([[0.0, -0.1], [NAN, 1.0]])), "float16", 25)
    with ctx.workprec(300):
        balls = [judge.ends(ball) for ball in judge.enclose("softmax", [0.0, -0.1], None, 300)]
    for (low, _), text, hexed in zip(balls, answer.decimal[0], answer.hex[0], strict=True):
        assert abs(Fraction(Decimal(text)) - low) <= Fraction(1, 10**25)  # p in [0.1, 1): 25 digits, the last within 1
        assert len(Decimal(text).as_tuple().digits) == 25
        assert abs(_from_hex(hexed) - low) <= low * Fraction(2) ** answer.radius_log2
    assert answer.decimal[1] == answer.hex[1] == ["NaN", "NaN"]
    assert answer.rounded.dtype == np.float16
    assert answer.rounded[0].astype(float).tolist() == [judge.nearest(float(low), "float16") for low, _ in balls]
    assert answer.radius_log2 <= -math.ceil(25 * math.log2(10))


def _from_hex(text):
    """The exact value of a hex float of any length."""
    digits, exponent = text.removeprefix("0x").split("p")
    whole, _, places = digits.partition(".")
    return int(whole + places, 16) * Fraction(2) ** (int(exponent) - 4 * len(places))


def test_an_answer_that_is_exact_everywhere_has_no_radius():
    answer = engine.certify(Problem("softmax", np.zeros(4)), "float32", 10)
    assert answer.radius_log2 is None
    assert [Decimal(text) for text in answer.decimal] == [Decimal("0.25")] * 4
