"""A fault is one plain sentence, with the format's limit, of the first step that broke."""

import math

import numpy as np
import pytest

from engine.arithmetic import Arithmetic, Recorder
from engine.faults import explain
from engine.formats import FORMATS, round_array
from engine.model import Fault, Step
from engine.variants import VARIANTS

INF, NAN = math.inf, math.nan
F16, F32 = FORMATS["float16"], FORMATS["float32"]


def faults(variant, *tensors, fmt=F16):
    recorder = Recorder()
    stored = [t if t.dtype.kind == "i" else round_array(t, fmt) for t in map(np.array, tensors)]
    VARIANTS[variant].run(*stored, Arithmetic(fmt, recorder=recorder))
    return explain(recorder.steps)


def sentence(name, kind, operands, result, fmt=F32):
    (fault,) = explain([Step(name, kind, 1, (0,), operands, result, fmt.name)])
    return fault.detail


def test_nothing_wrong_is_no_fault():
    assert faults("softmax/shifted", [[1000.0, 1001.0, 1002.0]]) == ()


def test_naive_softmax_of_1000_overflows_in_exp_and_then_divides_infinities():
    assert faults("softmax/naive", [[1000.0, 1001.0, 1002.0]]) == (
        Fault("exp", "overflow", 3, (0, 0), "exp(1000) exceeds the largest float16, 65504; the largest safe logit is 11.0859375"),
        Fault("divide", "invalid", 3, (0, 0), "inf / inf is not a number (invalid): numerator and denominator both overflowed"),
    )


@pytest.mark.parametrize(
    ("fmt", "tail"),
    [
        ("float16", "float16, 65504; the largest safe logit is 11.0859375"),
        ("bfloat16", "bfloat16, 3.3895313892515355e+38; the largest safe logit is 88.5"),
        ("float32", "float32, 3.4028234663852886e+38; the largest safe logit is 88.72283172607422"),
        ("float64", "float64, 1.7976931348623157e+308; the largest safe logit is 709.782712893384"),
    ],
)
def test_limits_are_decimals_that_read_back(fmt, tail):
    assert faults("logsumexp/naive", [1000.0], fmt=FORMATS[fmt])[0].detail == f"exp(1000) exceeds the largest {tail}"


def test_an_infinite_logit_is_infinite_and_has_not_overflowed():
    found = faults("softmax/naive", [[INF, 1.0]])
    assert [fault.detail for fault in found] == ["inf / inf is not a number (invalid): numerator and denominator are both infinite"]


def test_naive_softmax_of_very_negative_logits_divides_zeros():
    assert [fault.detail for fault in faults("softmax/naive", [-105.0, -106.0], fmt=F32)] == [
        "exp(-105) is below half the smallest float32 subnormal, 1.401298464324817e-45, and became 0",
        "0 / 0 is not a number (invalid): numerator and denominator are both 0",
    ]


def test_the_chain_rule_makes_0_over_0():
    found = faults("cross_entropy_grad/chain_rule", [0.0, -30.0], 0)
    assert Fault("divide", "invalid", 1, (1,), "0 / 0 is not a number (invalid): numerator and denominator are both 0") in found


def test_log_of_zero_has_no_value():
    found = faults("cross_entropy/log_of_softmax", [0.0, -30.0], 1)
    assert found[-1] == Fault("log", "divide_by_zero", 1, (), "log(0) has no finite value (division by zero) and became -inf")


def test_a_row_of_minus_infinity_has_no_difference_from_its_maximum():
    (fault,) = faults("softmax/shifted", [[0.0, 1.0], [-INF, -INF]])
    assert fault == Fault("subtract", "invalid", 2, (1, 0), "-inf - -inf is not a number (invalid)")


def test_a_sum_of_finite_terms_can_overflow():
    (fault,) = faults("logsumexp/naive", [11.0, 10.0])
    assert fault == Fault("sum", "overflow", 1, (), "a sum of terms from 22032 to 59872 exceeds the largest float16, 65504")


def test_zero_times_infinity():
    found = faults("cross_entropy/log_of_softmax", [0.0, -30.0], [1.0, 0.0])
    assert found[-1].detail == "0 * -inf is not a number (invalid)"


def test_a_subnormal_result_names_the_smallest_normal():
    assert sentence("exp", "underflow", (-10.0,), 4.5418739318847656e-05, F16) == (
        "exp(-10) is below the smallest normal float16, 6.103515625e-05, and became the subnormal 4.5418739318847656e-05"
    )


def test_a_product_may_be_half_the_smallest_subnormal_exactly():
    assert sentence("multiply", "underflow", (2.0**-149, 0.5), 0.0) == (
        "1.401298464324817e-45 * 0.5 is at most half the smallest float32 subnormal, 1.401298464324817e-45, and became 0"
    )


def test_negative_results_exceed_and_vanish_in_magnitude():
    assert sentence("divide", "overflow", (-1.0, 1e-5), -INF, F16) == "-1 / 1e-05 exceeds in magnitude the largest float16, 65504"
    assert "is in magnitude at most half" in sentence("multiply", "underflow", (-1e-30, 1e-30), -0.0)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (("add", "overflow", (3e38, 3e38), INF), "3e+38 + 3e+38 exceeds the largest float32, 3.4028234663852886e+38"),
        (
            ("sum", "invalid", (-INF, INF), NAN),
            "a sum of terms from -inf to inf is not a number (invalid): infinities of both signs",
        ),
        (("log", "invalid", (-1.0,), NAN), "log(-1) is not a number (invalid)"),
        (("divide", "divide_by_zero", (-1.0, 0.0), -INF), "-1 / 0 has no finite value (division by zero) and became -inf"),
        (("divide", "invalid", (-0.0, 0.0), NAN), "0 / 0 is not a number (invalid): numerator and denominator are both 0"),
        (("log1p", "underflow", (1e-40,), 1e-40), "log1p(1e-40) is below the smallest normal float32, 1.1754943508222875e-38"),
    ],
)
def test_sentences(step, said):
    assert sentence(*step).startswith(said)


def test_equal_steps_are_merged_and_their_elements_added():
    steps = [
        Step("exp", "overflow", 2, (0, 1), (100.0,), INF, "float32"),
        Step("exp", "underflow", 5, (1, 0), (-200.0,), 0.0, "float32"),
        Step("exp", "overflow", 3, (4, 4), (200.0,), INF, "float32"),
        Step("sum", "overflow", 1, (0,), (1.0, 3e38), INF, "float32"),
    ]
    found = explain(steps)
    assert [(fault.step, fault.kind, fault.count, fault.first_index) for fault in found] == [
        ("exp", "overflow", 5, (0, 1)),
        ("exp", "underflow", 5, (1, 0)),
        ("sum", "overflow", 1, (0,)),
    ]
    assert found[0].detail.startswith("exp(100) ")


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=list(FORMATS))
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))
def test_every_fault_of_every_variant_has_a_sentence(variant, fmt):
    rows = [[1e3, 0.0, -1e3], [-1e3, -1e3, -1e3], [INF, 0.0, -INF], [-INF] * 3, [NAN, 0.0, 1.0], [11.0, 88.0, 709.0]]
    extra = {"softmax_vjp": [[[1e5, -1e5, 0.0]] * 6], "cross_entropy": [[2] * 6], "cross_entropy_grad": [[2] * 6]}
    for fault in faults(variant.key, rows, *extra.get(variant.op, []), fmt=fmt):
        assert fault.count > 0
        assert fault.kind in ("overflow", "underflow", "invalid", "divide_by_zero")
        assert 20 < len(fault.detail) < 200
        assert "nan" not in fault.detail


def test_sentences_of_the_axes():
    flushed = Step("multiply", "underflow", 1, (0,), (1e-4, 0.1), 0.0, "float16")
    (fault,) = explain([flushed], flushed=True)
    assert fault.detail == "0.0001 * 0.1 is below the smallest normal float16, 6.103515625e-05, and was flushed to 0"
    assert sentence("fma", "overflow", (300.0, 300.0, 1.0), INF, F16) == "300 * 300 + 1 exceeds the largest float16, 65504"
    assert sentence("round", "overflow", (-7e4,), -INF, F16) == "round(-70000) exceeds in magnitude the largest float16, 65504"
    pole = sentence("divide", "divide_by_zero", (1.0, 0.0), NAN, FORMATS["float8_e4m3fn"])
    assert pole == "1 / 0 has no finite value (division by zero) and became NaN"
