"""Every figure from its definition: by hand where it is known exactly, else against a second implementation."""

import math
import random
from dataclasses import asdict, fields
from fractions import Fraction

import numpy as np
import pytest

from engine.errors import InvalidProblem
from engine.figures import bin_edge, significant
from engine.formats import FORMATS, round_array, saturated
from engine.measurement import Measurement
from engine.metrics import measure, worst
from engine.model import Metrics, Problem
from engine.truth import Truth, certified
from tests import figures, judge, rows

NAN, INF = math.nan, math.inf
STEPS = {"step_overflow_count", "step_underflow_count", "step_invalid_count", "error_over_bound"}  # of a declared algorithm


def measured(op, fmt, logits, output, target=None):
    """Measurement of an output (nested lists); targets as index arrays or lists of weights or gradients."""
    dtype = FORMATS[fmt].dtype
    tensors = {}
    if target is not None:
        array = np.array(target)
        name = "grad_output" if op == "softmax_vjp" else "targets"
        tensors[name] = array if array.dtype.kind == "i" else array.astype(dtype)
    problem = Problem(op, np.array(logits, dtype=np.float64).astype(dtype), **tensors)
    with np.errstate(over="ignore"):
        return Measurement(np.array(output, dtype=np.float64).astype(dtype), Truth(problem, FORMATS[fmt]))


def metrics(op, fmt, logits, output, target=None, ranks=False):
    return measure(measured(op, fmt, logits, output, target), ranks)


def rounded(op, fmt, logits, target=None):
    return [k if math.isnan(k) else judge.from_ordinal(k, fmt) for k in judge.rounded(op, logits, target, fmt)]


# Figures known exactly


def test_errors_against_a_rational_truth_are_rational():
    # T = 1/4 in binary16: an ulp is 2^-12, neighbours below are 2^-13 away
    m = metrics("softmax", "float16", [3.0] * 4, [0.25, 0.25 + 2.0**-12, 0.25 - 2.0**-13, 0.25 + 3 * 2.0**-12])
    assert (m.n, m.compared) == (4, 4)
    assert (m.max_ulp, m.argmax_ulp) == (3.0, 3)
    assert m.mean_ulp == 1.125  # (0 + 1 + 1/2 + 3) / 4
    assert m.bias_ulp == 0.875  # (0 + 1 - 1/2 + 3) / 4
    assert (m.p50_ulp, m.p99_ulp) == (0.5, 2.0 ** (102 / 64))  # 3 lies in the bin up to 2^(102/64) = 3.018...
    assert m.max_ulp_ordinal == 3
    assert m.correctly_rounded == 1
    assert (m.max_rel, m.argmax_rel, m.max_rel_normal) == (3 * 2.0**-10, 3, 3 * 2.0**-10)
    assert m.max_abs == 3 * 2.0**-12
    assert m.sum_defect == 3.5 * 2.0**-12
    assert m.total_variation.worst == 4.5 * 2.0**-13
    assert m.argmax_preserved == 1


def test_a_correctly_rounded_output_has_no_fault():
    logits = [0.5, -1.25, 3.0, -9.0]
    m = metrics("softmax", "float32", logits, rounded("softmax", "float32", logits))
    assert m.correctly_rounded == m.compared == 4
    assert m.max_ulp_ordinal == 0
    assert 0 < m.max_ulp <= 0.5
    assert m.special_mismatch == m.nan_count == m.inf_count == m.zero_count == m.subnormal_count == 0


def test_an_exact_output_has_error_zero_everywhere_and_the_first_index():
    m = metrics("softmax", "float32", [[1.0, 1.0], [7.0, 7.0]], [[0.5, 0.5], [0.5, 0.5]])
    assert [m.max_ulp, m.argmax_ulp, m.mean_ulp, m.p50_ulp, m.p99_ulp, m.max_rel, m.argmax_rel, m.max_abs, m.bias_ulp] == [0] * 9
    assert (m.kl.worst, m.kl.mean, m.kl.worst_row) == (0.0, 0.0, 0)
    assert (m.backward_error.worst, m.total_variation.worst, m.sum_defect) == (0.0, 0.0, 0.0)


def test_an_ulp_is_that_of_the_truth_and_not_of_its_rounding():
    # T = 1 - 2e-22 rounds to 1 but lies in the binade below: c = 1 + 2^-23 is 2 ulp away, not 1
    m = metrics("softmax", "float32", [0.0, -50.0], [1.0 + 2.0**-23, float(np.float32(math.exp(-50)))])
    assert m.max_ulp == 2.0
    assert m.max_ulp_ordinal == 1


def test_the_ulp_of_a_tiny_truth_is_the_smallest_subnormal():
    m = metrics("softmax", "float16", [0.0, -60000.0], [1.0, 3 * 2.0**-24])
    assert (m.max_ulp, m.argmax_ulp, m.max_ulp_ordinal) == (3.0, 1, 3)
    assert m.max_rel == INF  # e^60000 is beyond binary64
    assert m.max_rel_normal == 0.0
    assert m.subnormal_count == 1


def test_the_bins_of_the_percentiles_hold_their_upper_edge():
    assert [bin_edge(n, -10) for n in (0, 1)] == [0.0, 2.0**-10]
    assert bin_edge(1, -4000) == 2.0**-10
    assert bin_edge(1024, -10) == 1.0
    assert bin_edge((1 << 60) + 1, -60) == 2.0 ** (1 / 64)
    for k in range(-640, 641, 7):
        edge = figures._root(k)
        man, den = edge.as_integer_ratio()
        assert bin_edge(man << 60, -60 - den.bit_length() + 1) == edge
        assert bin_edge((man << 60) + 1, -60 - den.bit_length() + 1) == figures._root(k + 1)


def test_percentiles_are_nearest_ranks():
    exact = [2.0**-7] * 128
    for wrong, p50, p99 in ((1, 0.0, 0.0), (2, 0.0, 2.0), (64, 0.0, 2.0), (65, 2.0, 2.0)):
        got = [2.0**-7 + 2.0**-16 if k < wrong else c for k, c in enumerate(exact)]  # 2 ulp of 2^-7 are 2^-16
        m = metrics("softmax", "float16", [0.0] * 128, got)
        assert (m.p50_ulp, m.p99_ulp) == (p50, p99), wrong


def test_figures_are_rounded_to_nearest_even_once():
    assert significant(1, 3, 0, 20) == round(2**21 / 3) / 2**21
    assert significant(-1, 3, 0, 20) == -round(2**21 / 3) / 2**21
    assert significant((1 << 40) + 1, 1, -40, 40) == 1.0  # a tie between 1 and 1 + 2^-39
    assert significant((1 << 40) + 3, 1, -40, 40) == 1.0 + 2.0**-38
    assert significant(3, 1, -22, 20, -20) == 2.0**-20  # 0.75 steps
    assert significant(1, 1, -21, 20, -20) == 0.0  # a tie goes to the even step
    assert significant(1, 1, 1024, 40) == INF
    assert significant(-1, 1, 1024, 40) == -INF
    assert significant(1, 1, -2000, 40) == 0.0
    assert significant(1, 10**400, 0, 40) == 0.0


# Ties, and truths that must be refined


def test_equal_errors_are_a_tie_and_the_first_index_wins():
    m = metrics("softmax", "float16", [0.0] * 4, [0.25, 0.25 + 2.0**-12, 0.25, 0.25 + 2.0**-12])
    assert (m.argmax_ulp, m.argmax_rel) == (1, 1)


def test_errors_that_are_equal_to_forty_bits_are_a_tie_too():
    # 2 + 2^-62 ulp, then 2 + 2^-48 ulp: both are 2 to 40 bits
    m = measured("softmax", "float32", [[0.0, -60.0], [0.0, -50.0]], [[1 + 2.0**-23, math.exp(-60)], [1 + 2.0**-23, math.exp(-50)]])
    assert (measure(m).max_ulp, measure(m).argmax_ulp, measure(m).argmax_rel) == (2.0, 0, 0)
    assert [w.index for w in worst(m, 1)] == [(0, 0)]
    assert [w.index for w in worst(m, 2)] == [(0, 0), (1, 0)]


TIE = 2.0**-34, -1024.0  # loss of the second: 1024 + 2^-34 + the rest; an ulp is 2^-13


@pytest.mark.parametrize("third", [-60.0, -100.0])
def test_a_mean_beside_a_tie_is_decided_by_the_rest(third):
    m = metrics("cross_entropy", "float32", [*TIE, third], 1024.0, 1)
    assert (m.mean_ulp, m.bias_ulp) == (2.0**-20, -(2.0**-20))  # 2^-21 and a rest: beyond the tie between 0 and 2^-20


@pytest.mark.parametrize("third", [-60.0, -80.0])
def test_a_maximum_beside_a_tie_is_decided_by_the_rest(third):
    # error: 2 ulp - 2^-53 - rest = (2 - 2^-40) ulp - rest, just below the tie between 2 - 2^-39 and 2
    assert metrics("cross_entropy", "float32", [2.0**-53, -1024.0, third], 1024.0 + 2.0**-12, 1).max_ulp == 2.0 - 2.0**-39


@pytest.mark.parametrize("third", [-60.0, -100.0, -1e30])
def test_a_percentile_beside_the_edge_of_its_bin_is_decided_by_the_rest(third):
    # error: half an ulp exactly, and a rest
    m = metrics("cross_entropy", "float32", [2.0**-14, -1024.0, third], 1024.0, 1)
    assert m.p50_ulp == 2.0 ** (-63 / 64)


def test_errors_that_add_up_to_a_rational_tie_have_a_mean():
    # three probabilities in [1/4, 1/2) share an ulp, 2^-12: their errors add up to (sum c - 1) / 2^-12 = 3 (2^20 + 1),
    # which 20 bits do not hold, and whose mean lies exactly between two figures
    m = metrics("softmax", "float16", [-0.25, 0.0, 0.0625], [768.0, 0.5 + 2.0**-10, 0.5 - 2.0**-12])
    assert m.bias_ulp == 2.0**20


def test_the_largest_absolute_error_may_be_on_a_small_truth_beside_a_large_one():
    # an error of 64 on 11328, and one of e^-(10^38) on 3e38, which a stand-in 2^-96 ulp away must not outweigh
    logits = [[4000.0, 11328.0], [judge.nearest(1.7e38, "bfloat16"), judge.nearest(3.38e38, "bfloat16")]]
    assert metrics("logsumexp", "bfloat16", logits, [11392.0, logits[1][1]]).max_abs == 64.0


def test_infinite_relative_errors_are_a_tie():
    # c/T is about 2^1024 and then beyond 2^3000: both are infinite in binary64
    m = metrics("softmax", "float64", [0.0, -1455.0, -3000.0], [1.0, 5e-323, 5e-324])
    assert (m.max_rel, m.argmax_rel) == (INF, 1)


@pytest.mark.parametrize("c", [1e3, 1e12, 1e300])
def test_an_absurd_log_probability_has_an_infinite_divergence(c):
    assert metrics("log_softmax", "float64", [0.0, 1.0], [0.0, c]).kl.worst == INF


@pytest.mark.parametrize("far", [100.0, 1e6, 1e12, 1.7e308])
def test_a_log_probability_far_above_an_astronomically_small_one_has_a_finite_divergence(far):
    # T e^w is e^c; the rest vanishes
    kl = metrics("log_softmax", "float64", [far, 0.0], [0.0, -1.0]).kl
    assert kl.worst == significant(*Fraction(math.exp(-1)).as_integer_ratio(), 0, 20)


def test_an_error_an_infinitesimal_beyond_the_edge_of_its_bin_is_in_the_next():
    # J_01 = -e^-60000: the smallest subnormal is an ulp and a rest away from it, and an ulp less a rest from J_11
    m = metrics("softmax_jacobian", "float16", [0.0, -60000.0], [[0.0, 2.0**-24], [2.0**-24, 2.0**-24]])
    assert (m.p50_ulp, m.p99_ulp) == (1.0, 2.0 ** (1 / 64))
    assert (m.max_ulp, m.mean_ulp) == (1.0, 0.75)


def test_an_output_finer_than_the_first_precision_is_not_lost_beside_an_edge():
    # T = 1 - e^-1000 and c = -2^-140: the error is beyond 2^24 ulp
    assert metrics("softmax", "float32", [0.0, -1000.0], [-(2.0**-140), 0.0]).p99_ulp == 2.0 ** (24 + 1 / 64)
    assert metrics("softmax", "float32", [0.0, -1000.0], [2.0**-140, 0.0]).p99_ulp == 2.0**24


def test_the_largest_errors_that_are_infinite_are_a_tie():
    m = measured("softmax", "float64", [0.0] * 12, [1e300 * (k + 1) for k in range(12)])
    assert [w.index for w in worst(m, 3)] == [(0,), (1,), (2,)]


def test_figures_do_not_depend_on_the_precision_at_which_the_truth_began():
    rng = random.Random(5)
    for op in ("softmax", "log_softmax", "cross_entropy_grad", "softmax_vjp"):
        row = next(rows.rows("float16", f"{op} 5", 1))
        target = row.target(op, True)
        output = [_nudged(c, rng, "float16") for c in rounded(op, "float16", row.logits, target)]
        first, finer = measured(op, "float16", row.logits, output, target), measured(op, "float16", row.logits, output, target)
        finer.truth.bits = 4 * first.truth.bits
        again = Measurement(finer.output, finer.truth)
        assert repr(measure(first, ranks=True)) == repr(measure(again, ranks=True))
        assert repr(worst(first, 8)) == repr(worst(again, 8))  # NaN is not equal to itself


# Special values

MATRIX = [  # op, logits, c, whether that is a mismatch, whether it is compared
    ("logsumexp", [NAN, 0.0], NAN, False, False),
    ("logsumexp", [NAN, 0.0], 1.0, True, False),
    ("logsumexp", [NAN, 0.0], INF, True, False),
    ("logsumexp", [INF, 0.0], INF, False, False),
    ("logsumexp", [INF, 0.0], NAN, True, False),
    ("logsumexp", [INF, 0.0], 65504.0, True, False),
    ("logsumexp", [INF, 0.0], -INF, True, False),
    ("logsumexp", [-INF, -INF], -INF, False, False),
    ("logsumexp", [-INF, -INF], 0.0, True, False),
    ("logsumexp", [1.0, -INF], 1.0, False, True),
    ("logsumexp", [1.0, -INF], NAN, True, False),
    ("logsumexp", [1.0, -INF], INF, True, False),
    ("logsumexp", [1.0, -INF], -INF, True, False),
    ("logsumexp", [1.0, -INF], 0.0, False, True),
]


@pytest.mark.parametrize(("op", "logits", "c", "mismatch", "compared"), MATRIX)
def test_special_values_must_match(op, logits, c, mismatch, compared):
    m = metrics(op, "float16", logits, c)
    assert (m.special_mismatch, m.compared) == (int(mismatch), int(compared))
    assert (m.max_ulp is None) == (not compared)


@pytest.mark.parametrize(
    ("c", "mismatch", "max_ulp", "ordinal"), [(-INF, 0, 0.0, 0), (-65504.0, 0, 0.5, 1), (INF, 1, None, None), (NAN, 1, None, None)]
)
def test_a_correct_overflow_is_compared_with_error_zero(c, mismatch, max_ulp, ordinal):
    # l_1 = -65504 - 16 - a tiny rest rounds to -infinity; an ulp of the top binade is 32
    m = metrics("log_softmax", "float16", [[16.0, -65504.0]], [[-0.0, c]])
    assert m.special_mismatch == mismatch
    assert m.compared == 2 - mismatch
    if not mismatch:
        assert (m.max_ulp, m.max_ulp_ordinal) == (max_ulp, ordinal)
    assert m.correctly_rounded == 1 + (c == -INF)
    assert (m.inf_count, m.overflow_count) == (int(math.isinf(c)), 0)


def test_the_counts_of_nan():
    m = metrics("softmax", "float32", [[NAN, 0.0], [0.0, 0.0], [INF, 0.0]], [[NAN, 0.5], [NAN, 0.5], [NAN, NAN]])
    assert (m.nan_count, m.nan_unexpected, m.nan_missing) == (4, 1, 1)
    assert m.correctly_rounded == 4
    assert m.special_mismatch == 2
    assert (m.n, m.compared) == (6, 1)
    assert (m.sum_defect, m.kl, m.total_variation, m.backward_error) == (None, None, None, None)
    assert m.argmax_preserved == 0


def test_infinity_for_a_finite_probability_is_an_overflow():
    m = metrics("softmax", "float32", [0.0, 0.0], [INF, 0.5])
    assert (m.inf_count, m.overflow_count, m.special_mismatch, m.compared) == (1, 1, 1, 1)
    assert m.sum_defect == m.kl.worst == m.kl.mean == m.total_variation.worst == m.backward_error.worst == INF


def test_a_gradient_with_an_infinity_has_no_sum():
    assert metrics("cross_entropy_grad", "float32", [0.0, 0.0], [INF, 0.5], 0).sum_defect is None


def test_the_kinds_of_zero():
    # float16: p = 1; e^-60000 (rounds to 0); e^-16 (subnormal); e^-5 (normal); and a masked logit, exactly 0
    logits = [0.0, -60000.0, -16.0, -5.0, -INF]
    m = metrics("softmax", "float16", logits, [1.0, 0.0, 0.0, 0.0, 0.0])
    assert m.zero_count == 4
    assert m.underflow_count == 3
    assert m.underflow_premature == 2
    assert m.false_zero_count == 1
    assert (m.max_rel, m.argmax_rel, m.max_rel_normal) == (1.0, 1, 1.0)
    assert m.special_mismatch == 0


def test_a_truth_of_zero():
    masked = [0.0, -INF]
    right = metrics("softmax", "float16", masked, [1.0, -0.0])
    assert (right.max_ulp, right.max_rel, right.correctly_rounded) == (0.0, 0.0, 2)
    wrong = metrics("softmax", "float16", masked, [1.0, 5 * 2.0**-24])
    assert (wrong.max_ulp, wrong.max_rel, wrong.argmax_rel, wrong.max_ulp_ordinal) == (5.0, INF, 1, 5)
    assert wrong.max_rel_normal == 0.0
    assert wrong.max_abs == 5 * 2.0**-24


def test_zero_for_something_has_a_relative_error_of_exactly_one():
    m = metrics("softmax", "float32", [1.0, 0.0], [0.0, 0.0])
    assert (m.max_rel, m.argmax_rel) == (1.0, 0)


def test_figures_without_a_value_are_null():
    m = metrics("softmax", "float32", [NAN, 0.0], [NAN, NAN])
    empty = [
        "max_ulp",
        "argmax_ulp",
        "mean_ulp",
        "p50_ulp",
        "p99_ulp",
        "max_ulp_ordinal",
        "max_rel",
        "argmax_rel",
        "max_rel_normal",
        "max_abs",
        "bias_ulp",
    ]
    assert [getattr(m, name) for name in empty] == [None] * len(empty)
    assert (m.kl, m.total_variation, m.backward_error, m.sum_defect) == (None, None, None, None)
    assert (m.argmax_preserved, m.correctly_rounded) == (0, 2)


def test_figures_of_other_ops_are_null():
    loss = metrics("cross_entropy", "float32", [0.0, 1.0], 1.0, 0)
    assert (loss.sum_defect, loss.kl, loss.total_variation, loss.backward_error, loss.argmax_preserved) == (None,) * 5
    log = metrics("log_softmax", "float32", [0.0, 1.0], [-1.0, -0.5], ranks=True)
    assert (log.total_variation, log.backward_error) == (None, None)
    assert log.kl is not None
    assert log.sum_defect is not None
    assert log.argmax_preserved == 1


def test_the_sum_of_exponentials_beside_one_takes_the_bits_it_needs():
    assert metrics("log_softmax", "float32", [0.0], [2.0**-149]).sum_defect == 2.0**-149
    assert metrics("log_softmax", "float32", [0.0, 0.0], [-(2.0**-149), -INF]).sum_defect == 2.0**-149


# Rows


def test_the_argmax_may_be_any_of_tied_maxima_and_must_be_the_outputs_maximum():
    logits = [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 2.0]]
    m = metrics("softmax", "float32", logits, [[0.4, 0.3, 0.2], [0.3, 0.3, 0.35], [0.2, 0.6, 0.6]])
    assert m.argmax_preserved == 2


def test_rank_inversions_are_counted_only_when_asked():
    logits, output = [3.0, 2.0, 1.0, 1.0, -INF], [0.1, 0.2, 0.3, 0.05, 0.06]
    assert metrics("softmax", "float32", logits, output).rank_inversions is None
    # 3 > 2: .1 < .2; 3 > 1: .1 < .3; 2 > 1: .2 < .3; 1 > -inf: .05 < .06
    assert metrics("softmax", "float32", logits, output, ranks=True).rank_inversions == 4


def test_the_divergence_is_generalised_and_never_negative():
    doubled = metrics("softmax", "float64", [0.0, 0.0], [1.0, 1.0])
    assert doubled.kl.worst == significant(*Fraction(1 - math.log(2)).as_integer_ratio(), 0, 20)  # sum of 1/2 (1 - log 2), twice
    vanished = metrics("softmax", "float64", [0.0, 0.0], [1.0, 0.0])
    assert vanished.kl.worst == INF
    assert metrics("softmax", "float64", [0.0, 0.0], [1.5, -0.5]).kl.worst == INF


def test_a_factor_common_to_a_row_is_no_backward_error():
    assert metrics("softmax", "float64", [2.0, 2.0], [0.25, 0.25]).backward_error.worst == 0.0
    apart = metrics("softmax", "float64", [2.0, 2.0], [0.5, 0.25]).backward_error
    assert apart.worst == significant(*Fraction(math.log(2) / 2).as_integer_ratio(), 0, 20)
    assert metrics("softmax", "float64", [2.0, 2.0], [0.5, 0.0]).backward_error.worst == INF


def test_row_figures_name_their_first_worst_row_and_their_mean():
    bad, good = [0.75, 0.25], [0.5, 0.5]
    m = metrics("softmax", "float64", [[0.0, 0.0]] * 4, [good, bad, good, bad])
    for figure in (m.kl, m.backward_error, m.total_variation):
        assert figure.worst_row == 1
    assert (m.total_variation.worst, m.total_variation.mean) == (0.25, 0.125)


def test_a_masked_row_is_whole():
    m = metrics("log_softmax", "float32", [0.0, -INF], [0.0, -INF])
    assert (m.sum_defect, m.kl.worst, m.special_mismatch, m.compared, m.correctly_rounded) == (0.0, 0.0, 0, 1, 2)


# The worst elements


def test_the_worst_elements_come_with_mismatches_first_then_by_ulp():
    m = measured("softmax", "float16", [[0.0] * 4, [0.0] * 4], [[0.25, 0.26, 0.25, NAN], [0.25, 0.5, INF, 0.24]])
    found = worst(m, 8)
    assert [w.index for w in found] == [(0, 3), (1, 2), (1, 1), (0, 1), (1, 3)]  # the last two are 41 ulp off
    assert [w.ulp for w in found][:3] == [None, None, 1024.0]
    assert found[2].expected == "2.5000000000000000e-1"
    assert (found[2].got, found[2].logit, found[2].rel) == (0.5, 0.0, 1.0)
    assert worst(m, 0) == ()
    assert [w.index for w in worst(m, 1)] == [(0, 3)]


def test_an_element_of_a_loss_has_no_logit_of_its_own():
    (only,) = worst(measured("cross_entropy", "float32", [0.0, 0.0], 1.0, 0), 8)
    assert (only.index, only.logit) == ((), None)


@pytest.mark.parametrize("output", [np.zeros(3, np.float32), np.zeros(2, np.float64), np.zeros((1, 2), np.float32)])
def test_an_output_of_another_shape_or_dtype_is_refused(output):
    truth = Truth(Problem("softmax", np.zeros(2, np.float32)), FORMATS["float32"])
    with pytest.raises(InvalidProblem, match=r"output is .*; it must be float32 \[2\]"):
        Measurement(output, truth)


# A format without infinity


def test_where_a_truth_overflows_a_format_without_infinity_nan_is_right_and_has_no_error():
    logits, output = [448.0, -448.0, 0.0], [0.0, NAN, -448.0]
    m = metrics("log_softmax", "float8_e4m3fn", logits, output)
    assert (m.n, m.compared, m.correctly_rounded) == (3, 2, 3)
    assert (m.nan_count, m.nan_unexpected, m.nan_missing, m.special_mismatch, m.inf_count) == (1, 0, 0, 0, 0)
    assert (m.kl, m.max_ulp_ordinal) == (None, 0)


def test_a_number_where_the_format_has_only_nan_is_a_mismatch_and_is_shown_with_the_truth():
    m = measured("log_softmax", "float8_e4m3fn", [448.0, -448.0], [0.0, -448.0])
    found = measure(m)
    assert (found.compared, found.special_mismatch, found.nan_missing, found.argmax_preserved) == (1, 1, 1, 1)
    assert found.kl.worst > 0
    (shown,) = worst(m, 1)
    assert (shown.index, shown.got, shown.expected, shown.ulp) == ((1,), -448.0, "-8.9600000000000000e+2", None)


def test_a_saturated_result_is_correctly_rounded_and_as_far_from_the_truth_as_it_is():
    fmt = saturated(FORMATS["float8_e4m3fn"])
    problem = Problem("log_softmax", np.array([448.0, -52.0]).astype(fmt.dtype))
    m = measure(Measurement(np.array([0.0, -448.0]).astype(fmt.dtype), Truth(problem, fmt)))
    assert (m.compared, m.correctly_rounded, m.special_mismatch, m.overflow_count) == (2, 2, 0, 0)
    assert m.max_ulp == 1.625  # (500 - 448) / 32


# Against the second implementation


def _nudged(c, rng, fmt):
    """An output near the right one, or far from it."""
    kind = rng.random()
    if kind < 0.06:
        return judge.nearest(rng.choice((NAN, INF, -INF)), fmt)
    if kind < 0.16:
        return rng.choice((0.0, -c, 1.0))
    if kind < 0.4 or not math.isfinite(c):
        return c
    return rows.ulps(c, rng.choice((-1, 1, 1, 2, -7, 1000)), fmt)


def compare(fmt, op, seed, specials):
    """All figures of a few rows of one length, for outputs with and without special values."""
    rng = random.Random(f"{fmt} {op} {seed} {specials}")
    chosen = list(rows.rows(fmt, f"metrics {op} {seed}", 48, 4))
    n = rng.choice([len(row.logits) for row in chosen])
    soft = rng.random() < 0.5
    problem = [(row.logits, row.target(op, soft)) for row in chosen if len(row.logits) == n][:4]
    output = [[_nudged(c, rng, fmt) for c in rounded(op, fmt, x, target)] for x, target in problem]
    if not specials:
        right = [rounded(op, fmt, x, target) for x, target in problem]
        output = [[c if math.isfinite(c) else r for c, r in zip(a, b, strict=True)] for a, b in zip(output, right, strict=True)]
    logits, targets = [x for x, _ in problem], [target for _, target in problem]
    shape = {"softmax_jacobian": (len(problem), n, n), "logsumexp": (len(problem),), "cross_entropy": (len(problem),)}.get(
        op, (len(problem), n)
    )
    got = asdict(metrics(op, fmt, logits, np.array(output).reshape(shape), None if targets[0] is None else targets, ranks=True))
    got = {name: tuple(value.values()) if isinstance(value, dict) else value for name, value in got.items() if name not in STEPS}
    expected = figures.expected(op, fmt, problem, output)
    wrong = {name: (got[name], expected[name]) for name in expected if got[name] != expected[name]}
    assert not wrong, (op, fmt, problem, output, wrong)
    assert set(got) == set(expected)


@pytest.mark.half
@pytest.mark.no_cover
@pytest.mark.parametrize("specials", [False, True])
@pytest.mark.parametrize("op", judge.OPS)
@pytest.mark.parametrize("fmt", FORMATS)
def test_every_figure_is_what_a_second_implementation_makes_of_its_definition(fmt, op, specials):
    for seed in range(2):
        compare(fmt, op, seed, specials)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 60))
def test_every_figure_is_what_a_second_implementation_makes_of_its_definition_on_many_rows(seed):
    for fmt in FORMATS:
        for op in judge.OPS:
            compare(fmt, op, seed, specials=seed % 3 == 0)


def test_the_second_implementation_has_every_figure_but_those_of_an_algorithm():
    names = {field.name for field in fields(Metrics)} - STEPS
    assert set(figures.expected("softmax", "float16", [([0.0, 1.0], None)], [[0.25, 0.75]])) == names


def test_figures_of_a_batch_are_those_of_its_parts():
    rng = random.Random(11)
    logits = [[judge.nearest(rng.gauss(0, 5), "float32") for _ in range(6)] for _ in range(8)]
    output = [[rows.ulps(c, rng.choice((-2, -1, 0, 0, 1)), "float32") for c in rounded("softmax", "float32", x)] for x in logits]
    whole = metrics("softmax", "float32", logits, output, ranks=True)
    parts = [metrics("softmax", "float32", x, c, ranks=True) for x, c in zip(logits, output, strict=True)]
    stacked = metrics("softmax", "float32", np.reshape(logits, (2, 4, 6)), np.reshape(output, (2, 4, 6)), ranks=True)
    assert whole == stacked
    for name in ("max_ulp", "max_rel", "max_rel_normal", "max_abs", "max_ulp_ordinal", "sum_defect"):
        assert getattr(whole, name) == max(getattr(part, name) for part in parts)
    for name in ("n", "compared", "correctly_rounded", "argmax_preserved", "rank_inversions", "subnormal_count"):
        assert getattr(whole, name) == sum(getattr(part, name) for part in parts)
    for name in ("kl", "total_variation", "backward_error"):
        worsts = [getattr(part, name).worst for part in parts]
        assert getattr(whole, name).worst == max(worsts)
        assert getattr(whole, name).worst_row == worsts.index(max(worsts))


def test_the_order_of_the_rows_changes_no_mean():
    rng = random.Random(12)
    logits = [[judge.nearest(rng.gauss(0, 5), "float32") for _ in range(4)] for _ in range(6)]
    output = [[rows.ulps(c, rng.choice((-2, 0, 1)), "float32") for c in rounded("softmax", "float32", x)] for x in logits]
    order = [3, 1, 5, 0, 4, 2]
    one, other = (metrics("softmax", "float32", [logits[i] for i in o], [output[i] for i in o]) for o in (range(6), order))
    for name in ("mean_ulp", "bias_ulp", "p50_ulp", "p99_ulp", "max_ulp", "max_rel", "max_abs", "sum_defect"):
        assert getattr(one, name) == getattr(other, name)
    for name in ("kl", "total_variation", "backward_error"):
        assert getattr(one, name).mean == getattr(other, name).mean


@pytest.mark.parametrize("bits", [78, 300, 9000])
def test_an_error_on_the_edge_of_a_bin_but_for_what_no_precision_shows_is_in_the_same_bin_however_finely_a_row_is_known(bits):
    """T is -y and less than 2^-129, or than 2^-144000: the error is just above a quarter of an ulp, which is the edge of a bin."""
    bfloat16, form = FORMATS["bfloat16"], FORMATS["float8_e5m2"]
    x = round_array(np.array([[0.0, -90, -99840, -99840]]), bfloat16)
    y = round_array(np.array([[0.5, 0.000579833984375, 0.00927734375, 0.00927734375]]), bfloat16)
    truth = certified(Problem("cross_entropy_grad", x, y), form)
    truth.row(0, bits)
    output = round_array(np.array([[0.02, -0.0006103515625, -0.009765625, -0.009765625]]), form)
    assert Measurement(output, truth).percentile_ulp(50) == 0.2527223215129251


def test_a_truth_half_way_between_two_decimals_is_rounded_away_from_0():
    """1/40 to one digit; its enclosure never shows that it is 0.025."""
    truth = Truth(Problem("softmax", np.zeros((1, 40))), FORMATS["float64"])
    assert Measurement(truth.rounded(), truth).expected(0, 1) == "3e-2"
