"""Every operation stays in its format, rounds once, warns of nothing; the recorder says what went wrong and where."""

import math

import mpmath
import numpy as np
import pytest

from engine.arithmetic import Arithmetic, Recorder
from engine.errors import UnknownName
from engine.formats import FORMATS, from_ordinals, ordinals, round_array
from engine.model import Step

EVERY_FORMAT = pytest.mark.parametrize("fmt", FORMATS.values(), ids=list(FORMATS))
F16 = FORMATS["float16"]
INF, NAN = math.inf, math.nan


def half(*values):
    return np.array(values, np.float16)


def steps(operation, *operands, fmt=F16):
    recorder = Recorder()
    getattr(Arithmetic(fmt, recorder=recorder), operation)(*operands)
    return recorder.steps


def kinds(operation, *operands):
    return [(step.name, step.kind, step.count, step.first_index) for step in steps(operation, *operands)]


@EVERY_FORMAT
@pytest.mark.parametrize(("operation", "ufunc"), [("add", np.add), ("sub", np.subtract), ("mul", np.multiply), ("div", np.divide)])
def test_binary_operations_are_numpys_own(fmt, operation, ufunc):
    a, b = round_array(np.random.default_rng(3).standard_normal((2, 4, 9)) * 100, fmt)
    result = getattr(Arithmetic(fmt), operation)(a, b)
    assert result.dtype == fmt.dtype
    assert (result == ufunc(a, b)).all()


@EVERY_FORMAT
@pytest.mark.parametrize(("operation", "ufunc"), [("exp", np.exp), ("log", np.log), ("log1p", np.log1p), ("neg", np.negative)])
def test_unary_operations_are_numpys_own(fmt, operation, ufunc):
    a = round_array(np.random.default_rng(4).random((4, 9)), fmt)
    result = getattr(Arithmetic(fmt), operation)(a)
    assert result.dtype == fmt.dtype
    assert (result == ufunc(a)).all()


@EVERY_FORMAT
@pytest.mark.parametrize("operation", ["exp", "log", "log1p", "neg", "sum", "max"])
def test_no_warning_and_no_other_format_from_special_values(fmt, operation):
    a = np.array([NAN, INF, -INF, 0.0, -0.0, -2.0, fmt.largest, -fmt.largest, fmt.smallest_subnormal]).astype(fmt.dtype)
    assert getattr(Arithmetic(fmt, recorder=Recorder()), operation)(a).dtype == fmt.dtype


@EVERY_FORMAT
@pytest.mark.parametrize("operation", ["add", "sub", "mul", "div"])
def test_no_warning_and_no_other_format_from_pairs_of_special_values(fmt, operation):
    a = np.array([NAN, INF, -INF, 0.0, -0.0, -2.0, fmt.largest, -fmt.largest, fmt.smallest_subnormal]).astype(fmt.dtype)
    assert getattr(Arithmetic(fmt, recorder=Recorder()), operation)(a[:, None], a[None, :]).dtype == fmt.dtype


@EVERY_FORMAT
def test_operations_on_a_single_number_stay_arrays(fmt):
    k, a = Arithmetic(fmt), np.array(1, fmt.dtype)
    for result in (k.exp(a), k.add(a, a), k.neg(a), k.sum(a[None]), k.max(a[None]), k.at(a[None], np.array(0))):
        assert isinstance(result, np.ndarray)
        assert result.shape == ()
        assert result.dtype == fmt.dtype


def test_a_figure_of_a_row_meets_every_element_of_it():
    k, rows = Arithmetic(F16), np.arange(6, dtype=np.float16).reshape(2, 3)
    assert k.sub(rows, half(0, 3)).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert k.sub(half(0, 3), rows).tolist() == [[0, -1, -2], [0, -1, -2]]
    assert k.mul(k.sum(rows), rows).tolist() == [[0, 3, 6], [36, 48, 60]]


def test_sums_are_added_as_asked():
    ones = np.ones((2, 4096), np.float16)
    assert Arithmetic(F16, "sequential").sum(ones).tolist() == [2048, 2048]
    assert Arithmetic(F16).sum(ones).tolist() == [4096, 4096]


def test_an_unknown_summation_is_refused():
    with pytest.raises(UnknownName, match="unknown summation 'kahn'; known: numpy, sequential"):
        Arithmetic(F16, "kahn")


def test_selection_does_no_arithmetic():
    k, rows = Arithmetic(F16), np.array([[1, 5, 5], [INF, NAN, -0.0]], np.float16)
    assert k.max(rows[:1]).tolist() == [5]
    assert math.isnan(k.max(rows)[1])
    assert k.argmax(rows[:1]).tolist() == [1]
    assert k.at(rows, np.array([2, 0])).tolist() == [5, INF]
    assert k.without(rows, np.array([1, 1])).tolist() == [[1, 0, 5], [INF, 0, -0.0]]
    assert rows[0, 1] == 5
    assert k.one_hot(np.array([2, 0]), rows).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert k.where_nonzero(half(0, 1, -0.0), half(INF, 2, NAN)).tolist() == [0, 2, 0]


def test_selection_reaches_any_batch():
    k, rows = Arithmetic(F16), np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    index = np.array([[0, 1, 2], [3, 0, 1]])
    assert k.at(rows, index).tolist() == [[0, 5, 10], [15, 16, 21]]
    assert (k.mul(k.one_hot(index, rows), rows) + k.without(rows, index) == rows).all()
    assert k.at(rows[0, 0], np.array(3)).tolist() == 3


def test_matrices_are_a_column_a_row_and_the_identity():
    k, rows = Arithmetic(F16), np.arange(6, dtype=np.float16).reshape(2, 3)
    outer = k.mul(k.column(rows), k.row(rows))
    assert (outer == rows[:, :, None] * rows[:, None, :]).all()
    assert k.identity(rows).tolist() == [np.eye(3).tolist()]
    assert k.identity(rows).dtype == np.float16


def test_class_indices_are_told_from_distributions_by_type():
    k = Arithmetic(F16)
    assert k.is_index(np.array([1, 2]))
    assert k.is_index(np.array([1, 2], np.uint8))
    assert not k.is_index(half(1, 2))


def test_what_goes_well_is_not_recorded():
    for operation in ("exp", "log", "log1p", "sum"):
        assert steps(operation, half(0.5, 1)) == []
    for operation in ("add", "sub", "mul", "div"):
        assert steps(operation, half(0.5, 1), half(2, 3)) == []


def test_a_step_holds_the_first_index_and_the_values_there():
    found = steps("exp", half(1, 2, 12, 11, 13).reshape(5, 1))
    assert found == [Step("exp", "overflow", 2, (2, 0), (12.0,), INF)]


def test_infinities_from_finite_operands_are_overflows():
    assert kinds("add", half(65504, 1), half(65504, 1)) == [("add", "overflow", 1, (0,))]
    assert kinds("sub", half(-65504, 1), half(65504, 1)) == [("subtract", "overflow", 1, (0,))]
    assert kinds("mul", half(1, 300), half(300)) == [("multiply", "overflow", 1, (1,))]
    assert kinds("div", half(1, 300), half(1e-3)) == [("divide", "overflow", 1, (1,))]


def test_infinities_from_infinities_are_not_new_faults():
    assert kinds("exp", half(INF)) == kinds("add", half(INF), half(1)) == kinds("div", half(INF), half(0)) == []
    assert kinds("sum", half(INF, 1)) == kinds("log", half(INF)) == []


def test_nan_from_nan_is_not_a_new_fault():
    assert kinds("exp", half(NAN)) == kinds("sub", half(NAN), half(INF)) == kinds("sum", half(NAN, INF, -INF)) == []


def test_nan_from_numbers_is_invalid():
    assert kinds("sub", half(INF), half(INF)) == [("subtract", "invalid", 1, (0,))]
    assert kinds("div", half(0, INF, 1), half(0, INF, 1)) == [("divide", "invalid", 2, (0,))]
    assert kinds("mul", half(1, 0), half(-INF, -INF)) == [("multiply", "invalid", 1, (1,))]
    assert kinds("log", half(1, -1)) == [("log", "invalid", 1, (1,))]


def test_a_pole_is_a_division_by_zero_and_not_an_overflow():
    assert kinds("log", half(1, 0)) == [("log", "divide_by_zero", 1, (1,))]
    assert kinds("log1p", half(1, -1)) == [("log1p", "divide_by_zero", 1, (1,))]
    assert kinds("div", half(1, 2), half(1, 0)) == [("divide", "divide_by_zero", 1, (1,))]


def test_faults_of_one_step_are_told_apart():
    assert kinds("div", half(0, 1, 300, 1e-7), half(0, 0, 1e-3, 2)) == [
        ("divide", "invalid", 1, (0,)),
        ("divide", "divide_by_zero", 1, (1,)),
        ("divide", "overflow", 1, (2,)),
        ("divide", "underflow", 1, (3,)),
    ]


def test_zero_or_subnormal_instead_of_something_is_an_underflow():
    assert kinds("exp", half(-9, -10, -20, -INF)) == [("exp", "underflow", 2, (1,))]
    assert kinds("mul", half(0.01, 0, 1), half(0.001, 0.001, 1)) == [("multiply", "underflow", 1, (0,))]
    assert kinds("div", half(1e-3, 0, 1), half(1000, 1000, INF)) == [("divide", "underflow", 1, (0,))]
    assert kinds("log1p", half(0, 1e-5)) == [("log1p", "underflow", 1, (1,))]


def test_zero_from_a_difference_or_a_sum_is_exact():
    # Near zero every float is a multiple of the smallest subnormal: sums there lose nothing.
    assert kinds("sub", half(1e-5), half(1e-5)) == kinds("add", half(1e-6), half(1e-6)) == kinds("sum", half(1e-6, -1e-6)) == []


def test_a_sum_is_recorded_with_its_extreme_terms():
    rows = np.array([[1, 2, 3], [60000, 50000, 40000], [INF, -INF, 0]], np.float16)
    assert steps("sum", rows) == [
        Step("sum", "invalid", 1, (2,), (-INF, INF), pytest.approx(NAN, nan_ok=True)),
        Step("sum", "overflow", 1, (1,), (40000.0, 60000.0), INF),
    ]


def test_operands_are_those_at_the_index_though_they_broadcast():
    (step,) = steps("div", np.ones((2, 3), np.float16), half(1, 0))
    assert step == Step("divide", "divide_by_zero", 3, (1, 0), (1.0, 0.0), INF)


def test_steps_come_in_the_order_of_execution():
    recorder = Recorder()
    k = Arithmetic(F16, recorder=recorder)
    e = k.exp(half(1000, 1001))
    k.div(e, k.sum(e))
    assert [(step.name, step.kind) for step in recorder.steps] == [("exp", "overflow"), ("divide", "invalid")]


@EVERY_FORMAT
def test_exp_overflows_right_after_the_exp_limit(fmt):
    limit = np.array([fmt.exp_limit]).astype(fmt.dtype)
    above = from_ordinals(ordinals(limit, fmt) + 1, fmt)
    assert steps("exp", limit, fmt=fmt) == []
    assert [step.kind for step in steps("exp", above, fmt=fmt)] == ["overflow"]


@EVERY_FORMAT
def test_exp_becomes_zero_only_below_half_the_smallest_number(fmt):
    # What the sentence about an underflow says holds for the exponential in use here.
    with mpmath.workprec(200):
        edge = (fmt.emin - fmt.precision) * mpmath.log(2)
        near = from_ordinals(ordinals(round_array(np.array([float(edge)]), fmt), fmt) + np.arange(-3, 4), fmt)
        below = [bool(mpmath.mpf(float(x)) < edge) for x in near]
    assert (Arithmetic(fmt).exp(near) == 0).tolist() == below
