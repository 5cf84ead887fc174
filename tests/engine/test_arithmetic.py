"""Every operation stays in its format, rounds once, warns of nothing; the recorder says what went wrong and where."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest

from engine.arithmetic import CHOICES, Arithmetic
from engine.errors import InvalidProblem, UnknownName
from engine.formats import FORMATS, from_ordinals, ordinals, round_array, widen
from engine.model import Axes, Step
from engine.recorder import Recorder
from tests import judge

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
    with np.errstate(all="ignore"):
        assert ((result == ufunc(a, b)) | (np.isnan(result) & np.isnan(ufunc(a, b)))).all()


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
    with pytest.raises(UnknownName, match=r"unknown summation 'kahn'; known: numpy, .* did you mean 'kahan'"):
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
    assert found == [Step("exp", "overflow", 2, (2, 0), (12.0,), INF, "float16")]


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
        Step("sum", "invalid", 1, (2,), (-INF, INF), pytest.approx(NAN, nan_ok=True), "float16"),
        Step("sum", "overflow", 1, (1,), (40000.0, 60000.0), INF, "float16"),
    ]


def test_operands_are_those_at_the_index_though_they_broadcast():
    (step,) = steps("div", np.ones((2, 3), np.float16), half(1, 0))
    assert step == Step("divide", "divide_by_zero", 3, (1, 0), (1.0, 0.0), INF, "float16")


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


# Rounded once


def every_pair(fmt):
    """All pairs of finite numbers of an 8-bit format; of a wider one pairs of every size and beside midpoints and underflow."""
    if fmt.bits == 8:
        numbers = from_ordinals(np.arange(1 - fmt.infinity_ordinal, fmt.infinity_ordinal), fmt)
        return (part.reshape(-1) for part in np.meshgrid(numbers, numbers))
    rng, top = np.random.default_rng(2), fmt.infinity_ordinal
    a, b = from_ordinals(rng.integers(1 - top, top, (2, 1500)), fmt)
    near = round_array(rng.standard_normal((2, 1500)), fmt)
    small = from_ordinals(rng.integers(1, 4 * fmt.normal_ordinal, 1500), fmt)
    scales = round_array(2.0 ** rng.integers(-3, 4, 1500) * (1 + rng.random(1500)), fmt)
    return np.concatenate((a, near[0], small, near[0])), np.concatenate((b, near[1], scales, -near[0]))


@pytest.mark.no_cover
@EVERY_FORMAT
@pytest.mark.parametrize(
    ("operation", "exact"),
    [
        ("add", lambda a, b: a + b),
        ("sub", lambda a, b: a - b),
        ("mul", lambda a, b: a * b),
        ("div", lambda a, b: a / b),
        ("fma", lambda a, b: a * b + a),
    ],
)
def test_operations_are_one_rounding_of_the_exact_value(fmt, operation, exact):
    a, b = every_pair(fmt)
    a, b = a[(widen(b) != 0)], b[(widen(b) != 0)]
    k = Arithmetic(fmt, axes=Axes(fma=True))
    result = k.fma(a, b, a) if operation == "fma" else getattr(k, operation)(a, b)
    found = ordinals(result, fmt).tolist()
    chosen = range(len(a)) if fmt.bits > 8 else range(0, len(a), 5)
    x, y = widen(a).tolist(), widen(b).tolist()
    wrong = [i for i in chosen if judge.round_fraction(exact(Fraction(x[i]), Fraction(y[i])), fmt.name) != found[i]]
    assert not wrong, [(x[i], y[i]) for i in wrong[:3]]


# The axes


def test_the_plain_row_names_what_there_is():
    assert Arithmetic(F16).axes == Axes("float16", "numpy", "gradual", False, "float16", "infinity")
    assert Arithmetic(FORMATS["float8_e4m3fn"]).axes.overflow == "nan"
    asked = Axes("fp32", "exp2", "flush", True, "bf16", "format")
    assert Arithmetic(F16, axes=asked).axes == Axes("float32", "exp2", "flush", True, "bfloat16", "infinity")
    assert Arithmetic(FORMATS["float8_e5m2"], axes=Axes(overflow="saturate")).axes.overflow == "saturate"
    assert Arithmetic(F16, "kahan").summation == "kahan"


@pytest.mark.parametrize("name", CHOICES)
def test_an_unknown_value_of_an_axis_names_what_exists(name):
    with pytest.raises(UnknownName, match=f"unknown {name} 'other'; known: {', '.join(CHOICES[name])}"):
        Arithmetic(F16, axes=Axes(**{name: "other"}))


@pytest.mark.parametrize("name", ["accumulator", "output_format"])
def test_an_unknown_format_of_an_axis_is_refused(name):
    with pytest.raises(UnknownName, match="unknown format 'float17'"):
        Arithmetic(F16, axes=Axes(**{name: "float17"}))


def test_saturation_needs_a_format_that_has_it():
    with pytest.raises(InvalidProblem, match="float16 does not saturate"):
        Arithmetic(F16, axes=Axes(overflow="saturate", accumulator="float32"))
    assert Arithmetic(F16, axes=Axes(overflow="saturate", output_format="float8_e5m2")).fmt is F16


def test_an_accumulator_of_another_format_takes_the_terms_and_gives_the_total_back():
    ones = np.ones((2, 4096), np.float16)
    wide = Arithmetic(F16, "sequential", axes=Axes("float32"))
    assert wide.sum(ones).tolist() == [4096, 4096]
    assert wide.sum(ones).dtype == np.float16
    narrow = Arithmetic(FORMATS["float32"], "sequential", axes=Axes("bfloat16"))
    assert float(narrow.sum(np.ones(512, np.float32))) == 256
    assert float(narrow.sum(np.array([1 + 2.0**-9, 0.0], np.float32))) == 1  # the terms are rounded to it
    assert wide.accumulator.fmt is FORMATS["float32"]
    assert wide.accumulator.accumulator is wide.accumulator
    assert narrow.mul(np.float32([1 + 2.0**-20]), np.float32([1])).tolist() == [1 + 2.0**-20]


def test_the_total_of_a_wider_accumulator_can_overflow_on_its_way_back():
    recorder = Recorder()
    terms = half(60000, 60000)
    assert Arithmetic(F16, "sequential", recorder, Axes("float32")).sum(terms).tolist() == INF
    assert recorder.steps == [Step("round", "overflow", 1, (), (120000.0,), INF, "float16")]
    recorder = Recorder()
    assert Arithmetic(FORMATS["float32"], "sequential", recorder, Axes("float16")).sum(terms.astype(np.float32)).tolist() == INF
    assert recorder.steps == [Step("sum", "overflow", 1, (), (60000.0, 60000.0), INF, "float16")]


def test_the_output_format_is_one_more_rounding():
    k = Arithmetic(FORMATS["float32"], axes=Axes(output_format="float16"))
    assert k.deliver(np.float32([1 + 2.0**-11 + 2.0**-20])).tolist() == [1 + 2.0**-10]
    assert k.deliver(np.float32([1])).dtype == np.float16
    plain = np.float32([3])
    assert Arithmetic(FORMATS["float32"]).deliver(plain) is plain


@EVERY_FORMAT
def test_correct_and_exp2_exponentials(fmt):
    x = round_array(np.linspace(-5, 5, 301), fmt)
    correct, binary = (Arithmetic(fmt, axes=Axes(exp=name)) for name in ("correct", "exp2"))
    with mpmath.workprec(200):
        for value, got in zip(widen(x).tolist(), ordinals(correct.exp(x), fmt).tolist(), strict=True):
            _, man, exp, _ = mpmath.exp(mpmath.mpf(value))._mpf_
            assert got == judge.round_fraction(int(man) * judge.power(int(exp)), fmt.name)
    log2_e = round_array(np.array(1.4426950408889634), fmt)
    assert (binary.exp(x) == correct.exp2(binary.mul(x, log2_e))).all()
    with mpmath.workprec(200):
        right = judge.round_fraction(Fraction(*mpmath.mpf(1 / mpmath.log(2)).as_integer_ratio()), fmt.name)
    assert int(ordinals(log2_e.reshape(1), fmt)[0]) == right
    assert (Arithmetic(fmt).exp2(x) == np.exp2(x)).all()


def test_the_exp2_domain_is_two_steps():
    recorder = Recorder()
    Arithmetic(F16, recorder=recorder, axes=Axes(exp="exp2")).exp(half(12, -65504))
    assert [(step.name, step.kind) for step in recorder.steps] == [
        ("multiply", "overflow"),
        ("exp2", "overflow"),
    ]


def flushing(fmt=F16, recorder=None, **more):
    return Arithmetic(fmt, more.pop("summation", "sequential"), recorder, Axes(subnormals="flush", **more))


@EVERY_FORMAT
def test_flush_takes_subnormal_operands_and_results_for_zeros_of_their_sign(fmt):
    k, eta, least = flushing(fmt), fmt.smallest_subnormal, fmt.smallest_normal
    tiny = np.array([eta, -eta, least - eta, least, -least]).astype(fmt.dtype)
    one, half_ = np.array(1).astype(fmt.dtype), np.array(0.5).astype(fmt.dtype)
    kept = [0, -0.0, 0, least, -least]
    for result in (
        k.mul(tiny, one),
        k.div(tiny, one),
        k.sub(tiny, np.zeros_like(tiny)),
        k.fma(tiny, one, np.array(-0.0).astype(fmt.dtype)),
    ):
        assert widen(result).tolist() == kept
    assert np.signbit(widen(k.mul(tiny, one))).tolist() == [False, True, False, False, True]
    assert widen(k.mul(tiny, half_)).tolist() == [0] * 5
    assert float(k.sub(np.array(1.5 * least).astype(fmt.dtype), np.array(least).astype(fmt.dtype))) == 0
    assert float(k.sum(tiny[:3])) == 0
    assert float(k.exp(tiny[:1])[0]) == 1


@EVERY_FORMAT
@pytest.mark.parametrize("summation", ["sequential", "reverse", "pairwise", "blocked", "warp", "kahan", "neumaier"])
def test_every_addition_of_a_sum_flushes(fmt, summation):
    least = fmt.smallest_normal
    row = np.zeros(300)
    row[[0, 1, 2]] = 1.5 * least, -least, -least  # half a normal number is lost on its way
    row = row if summation not in ("reverse",) else row[::-1]
    terms = row.astype(fmt.dtype)
    total = float(flushing(fmt, summation=summation).sum(terms))
    gradual = float(Arithmetic(fmt, summation).sum(terms))
    assert gradual == -0.5 * least
    assert total in (0, -least, 1.5 * least)


def test_what_is_flushed_is_an_underflow_of_any_step():
    for operation, operands in (
        ("sub", (half(1e-4), half(6.4e-5))),
        ("add", (half(1e-4), half(-6.4e-5))),
        ("sum", (half(1e-4, -6.4e-5),)),
    ):
        recorder = Recorder()
        assert float(getattr(flushing(F16, recorder), operation)(*operands).reshape(-1)[0]) == 0
        ((kind, count),) = [(step.kind, step.count) for step in recorder.steps]
        assert (kind, count) == ("underflow", 1)


def test_fma_rounds_twice_unless_the_axis_is_set():
    a, b, c = half(1 + 2.0**-10), half(1 - 2.0**-10), half(-1)
    assert Arithmetic(F16).fma(a, b, c).tolist() == [0]
    assert Arithmetic(F16, axes=Axes(fma=True)).fma(a, b, c).tolist() == [-(2.0**-20)]
    rows = np.arange(6, dtype=np.float16).reshape(2, 3)
    for fma in (False, True):
        assert Arithmetic(F16, axes=Axes(fma=fma)).fma(half(1, 2), rows, half(1, 10)).tolist() == [[1, 2, 3], [16, 18, 20]]


def test_an_fma_is_one_step_or_two():
    for fma, names in ((False, ["multiply"]), (True, ["fma"])):
        recorder = Recorder()
        Arithmetic(F16, recorder=recorder, axes=Axes(fma=fma)).fma(half(300), half(300), half(1))
        assert [(step.name, step.kind) for step in recorder.steps] == [(name, "overflow") for name in names]
    recorder = Recorder()
    Arithmetic(F16, recorder=recorder, axes=Axes(fma=True)).fma(half(1e-4, 1), half(1e-4, 1), half(0, -1))
    assert [(step.name, step.kind, step.count) for step in recorder.steps] == [("fma", "underflow", 1)]


# Overflow in the 8-bit formats

E4M3, E5M2 = FORMATS["float8_e4m3fn"], FORMATS["float8_e5m2"]


def eight(*values, fmt=E4M3):
    return np.array(values).astype(fmt.dtype)


@pytest.mark.parametrize("fmt", [E4M3, E5M2], ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("operation", ["add", "sub", "mul", "div"])
def test_saturating_operations_are_the_exact_value_clipped(fmt, operation):
    a, b = every_pair(fmt)
    k = Arithmetic(fmt, axes=Axes(overflow="saturate"))
    with np.errstate(all="ignore"):
        exact = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[operation](widen(a), widen(b))
    expected = widen(round_array(np.clip(exact, -fmt.largest, fmt.largest), fmt))
    got = widen(getattr(k, operation)(a, b))
    assert ((got == expected) | (np.isnan(got) & np.isnan(expected))).all()
    assert np.isnan(got).sum() == np.isnan(exact).sum()


@pytest.mark.parametrize("summation", ["sequential", "pairwise", "kahan", "numpy", "exact"])
def test_saturated_sums(summation):
    k = Arithmetic(E4M3, summation, axes=Axes(overflow="saturate"))
    assert float(k.sum(eight(448, 448))) == 448
    assert float(k.sum(eight(-448, -448, -1))) == -448
    assert float(Arithmetic(E4M3, "sequential", axes=Axes(overflow="saturate")).sum(eight(448, 320, -128))) == 320


@pytest.mark.parametrize(
    ("operation", "operands", "kind"),
    [
        ("exp", ([7.0],), "overflow"),
        ("mul", ([-30.0], [30.0]), "overflow"),
        ("add", ([448.0], [448.0]), "overflow"),
        ("sum", ([448.0, 448.0, 1.0],), "overflow"),
        ("div", ([1.0], [0.0]), "divide_by_zero"),
        ("log", ([0.0],), "divide_by_zero"),
        ("div", ([0.0], [0.0]), "invalid"),
        ("log", ([-1.0],), "invalid"),
    ],
)
@pytest.mark.parametrize("overflow", CHOICES["overflow"])
def test_an_overflow_is_told_from_an_invalid_operation_though_both_give_nan(operation, operands, kind, overflow):
    recorder = Recorder()
    k = Arithmetic(E4M3, "sequential", recorder, Axes(overflow=overflow))
    result = float(getattr(k, operation)(*(eight(*operand) for operand in operands)).reshape(-1)[0])
    assert [step.kind for step in recorder.steps] == [kind]
    assert abs(result) == 448 if overflow == "saturate" and kind != "invalid" else math.isnan(result)


def test_nan_from_an_overflow_is_not_a_new_fault():
    recorder = Recorder()
    k = Arithmetic(E4M3, recorder=recorder)
    e = k.exp(eight(7, 1))
    k.div(e, k.sum(e))
    assert [(step.name, step.kind) for step in recorder.steps] == [("exp", "overflow")]


def test_numbers_are_taken_in_with_a_fault_only_where_something_is_lost():
    recorder = Recorder()
    k = Arithmetic(F16, recorder=recorder)
    assert k.take(np.float32([1.5, 2.0**-24, -0.0])).tolist() == [1.5, 2.0**-24, 0]
    assert recorder.steps == []
    k.take(np.float32([1e-9, 7e4, NAN]))
    assert [(step.name, step.kind, step.first_index) for step in recorder.steps] == [
        ("round", "overflow", (1,)),
        ("round", "underflow", (0,)),
    ]
