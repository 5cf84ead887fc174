"""A fault is one plain sentence, with the format's limit, of the first step that broke."""

import math

import numpy as np
import pytest

from engine.arithmetic import Arithmetic
from engine.faults import explain
from engine.formats import FORMATS, round_array
from engine.model import Axes, Fault, Step
from engine.recorder import Recorder
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
        Fault(
            "divide", "invalid", 3, (0, 0), "inf / inf is not a number (invalid): numerator and denominator both overflowed", (0,)
        ),
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
    place = found.index(Fault("exp", "underflow", 1, (1,), found[0].detail))
    assert (
        Fault("divide", "invalid", 1, (1,), "0 / 0 is not a number (invalid): numerator and denominator are both 0", (place,))
        in found
    )


def test_log_of_zero_has_no_value():
    found = faults("cross_entropy/log_of_softmax", [0.0, -30.0], 1)
    assert found[-1] == Fault("log", "divide_by_zero", 1, (), "log(0) has no finite value (division by zero) and became -inf", (0,))


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
        assert fault.kind in ("overflow", "underflow", "invalid", "divide_by_zero", "cancelled", "mismatched")
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


# ---- chains ----------------------------------------------------------------------------------------------------------


def chain(found):
    return [(fault.step, fault.kind, fault.chain) for fault in found]


def test_a_chain_leads_from_the_first_step_to_the_last():
    found = faults("cross_entropy_grad/chain_rule", [[0.0, -30.0, 1.0], [0.0, 0.0, -INF]], [0, 0])
    told = chain(found)
    assert told[0] == ("exp", "underflow", ())
    assert ("divide", "invalid", (0,)) in told
    assert chain(faults("log_softmax/naive", [[1000.0, 0.0]])) == [("exp", "overflow", ())]
    assert chain(faults("cross_entropy/log_of_softmax", [0.0, -9.8], 1)) == [
        ("exp", "underflow", ()),
        ("divide", "underflow", (0,)),
    ]


def test_what_was_given_begins_no_chain():
    """A masked class has the probability 0 exactly; that exp underflowed in the other row has led to nothing there."""
    found = faults("cross_entropy/log_of_softmax", [[0.0, -INF], [0.0, -30.0]], [1, 0])
    assert chain(found) == [("exp", "underflow", ()), ("log", "divide_by_zero", ())]
    found = faults("cross_entropy/log_of_softmax", [[0.0, -INF], [0.0, -30.0]], [0, 1])
    assert chain(found) == [("exp", "underflow", ()), ("log", "divide_by_zero", (0,))]


@pytest.mark.parametrize(
    "select",
    [
        lambda k, a: k.neg(a),
        lambda k, a: k.max(a),
        lambda k, a: k.at(a, np.array([0, 0])),
        lambda k, a: k.without(a, np.array([1, 1])),
        lambda k, a: k.where_nonzero(np.ones((2, 2)), a),
        lambda k, a: k.column(a),
    ],
    ids=["neg", "max", "at", "without", "where_nonzero", "column"],
)
def test_what_is_selected_carries_its_fault_on(select):
    recorder = Recorder()
    k = Arithmetic(F16, recorder=recorder)
    large = k.exp(np.array([[100.0, 1.0], [1.0, 1.0]], np.float16))
    chosen = select(k, large)
    k.sub(chosen, chosen)
    assert [(step.kind, step.chain) for step in recorder.steps if step.kind != "cancelled"] == [("overflow", ()), ("invalid", (0,))]


def test_an_array_that_is_gone_is_forgotten():
    recorder = Recorder()
    k = Arithmetic(F16, "pairwise", recorder=recorder)
    total = k.sum(k.exp(np.zeros((4, 5), np.float16)))
    kept = len(recorder._origins)
    del total
    assert 0 == len(recorder._origins) < kept


# ---- digits lost -----------------------------------------------------------------------------------------------------


def summed(terms, summation, fmt=F16):
    recorder = Recorder()
    Arithmetic(fmt, summation, recorder).sum(round_array(np.array(terms), fmt))
    return explain(recorder.steps)


@pytest.mark.parametrize("summation", ["sequential", "reverse"])
def test_a_sum_of_ones_stalls_where_its_unit_is_2(summation):
    (fault,) = summed(np.ones((2, 4096)), summation)
    assert (fault.step, fault.kind, fault.count, fault.first_index, fault.chain) == ("sum", "stalled", 2, (0,), ())
    said = "a sum stood still at 2048: its last 2048 terms, together 2048, were each too small to change it in float16"
    assert fault.detail == said
    assert summed(np.ones((2, 2048)), summation) == summed(np.ones((2, 4096)), "pairwise") == ()


def test_sums_that_are_not_seen_or_make_good_what_they_lose_have_absorbed_nothing():
    for summation in ("numpy", "kahan", "neumaier", "exact"):
        assert summed(np.ones(4096), summation, FORMATS["bfloat16"]) == ()


def test_absorbed_addends_are_told_where_they_make_a_unit_together():
    each = {"pairwise": [2048.0, 1.0, 0.5, 0.5], "blocked": [2048.0, 1.0, 0.5, 0.5], "warp": [2048.0, 0.5, 1.0, 0.5]}
    for summation, terms in each.items():
        (fault,) = summed([[1.0] * 4, terms], summation)
        assert (fault.kind, fault.count, fault.first_index) == ("absorbed", 1, (1,))
    (fault,) = summed([2048.0, 1.0, 1.0, 16.0], "sequential")
    assert fault.detail == (
        "a sum that became 2064 absorbed 2 addends, together 2: each was too small to change the partial sum it was added to in "
        "float16"
    )
    assert summed([2048.0, 1.0] * 16, "pairwise") == ()
    assert summed([1.0, 2.0**-12, 2.0**-12, 2.0**-12], "sequential") == ()
    assert summed([2048.0, 1.0, -2048.0, 1.0], "reverse") == ()


def test_an_infinite_sum_has_absorbed_nothing():
    assert [fault.kind for fault in summed([6e4, 1.0, 6e4, 1.0], "sequential")] == ["overflow"]
    assert summed([INF, 1.0, 1.0, 1.0], "sequential") == ()


def test_a_difference_of_rounded_numbers_cancels():
    (fault,) = faults("cross_entropy/fused", [[10.0, 0.0, 0.0]], [0], fmt=F32)
    assert (fault.step, fault.kind, fault.first_index) == ("subtract", "cancelled", (0,))
    assert "of 24 bits cancelled, and what earlier steps may have rounded weighs 2^1" in fault.detail
    (fault,) = faults("softmax_jacobian/shifted", [0.0, -20.0], fmt=F16)[-1:]
    assert fault.detail == "1 - 1 is 0: all 11 bits cancelled, and with them all that earlier steps may have rounded"


def test_logits_are_data_and_their_difference_from_the_maximum_cancels_nothing():
    assert faults("softmax/shifted", [[100.0, 99.9375]]) == ()


def test_a_half_of_the_bits_may_cancel():
    k = Arithmetic(F16, recorder=(recorder := Recorder()))
    given = np.array([1.0], np.float16)
    k.sub(k.exp(np.zeros(1, np.float16)), given - np.float16(2.0**-5))
    assert recorder.steps == []
    k.sub(k.exp(np.zeros(1, np.float16)), given - np.float16(2.0**-6))
    assert [step.kind for step in recorder.steps] == ["cancelled"]


@pytest.mark.parametrize("reciprocal", [False, True])
def test_a_numerator_and_its_term_that_were_rounded_differently(reciprocal):
    x = np.array([[0.0, -1.0, -2.0]], np.float32)

    def kinds(accumulator, stored=None):
        k = Arithmetic(F32, recorder=(recorder := Recorder()), axes=Axes(accumulator=accumulator))
        e = k.exp(x)
        total = k.sum(e)
        e = k.take(Arithmetic(FORMATS[stored], recorder=recorder).take(e)) if stored else e
        if reciprocal:
            k.mul(k.div(np.ones(1, np.float32), total), e)
        else:
            k.div(e, total)
        return [(step.name, step.kind, step.count, step.first_index) for step in recorder.steps]

    name = "multiply" if reciprocal else "divide"
    assert kinds("float32") == kinds("float64") == []
    assert kinds("float16") == [(name, "mismatched", 2, (0, 1))]
    assert kinds("float32", "float16") == [(name, "mismatched", 2, (0, 1))]
    (fault,) = explain([Step(name, "mismatched", 2, (0, 1), (0.5, 2.0), 0.25, "float32")])
    assert fault.detail.endswith(
        ": the numerator and its term in the sum were rounded differently, so the quotients need not sum to 1"
    )


def test_an_online_sum_of_ones_stalls_as_a_plain_one_does():
    found = faults("softmax/online", np.zeros(4096))
    assert [(fault.step, fault.kind) for fault in found] == [("sum", "stalled")]
    assert "2048" in found[0].detail
    fused = Arithmetic(F16, recorder=(recorder := Recorder()), axes=Axes(fma=True))
    VARIANTS["softmax/online"].run(np.zeros(4096, np.float16), fused)
    assert [step.kind for step in recorder.steps] == ["stalled"]


def test_a_chain_reaches_through_tiles_and_stacks():
    recorder = Recorder()
    x = np.zeros((2, 300), np.float16)
    x[1, 140] = 60000
    k = Arithmetic(F16, recorder=recorder)
    tops = k.stack([k.max(k.exp(tile)) for tile in k.tiles(x, 128)])
    zero = k.constant(0)
    for reached in (k.before(tops), k.spread(tops, 2, np.zeros((2, 5))), k.unmasked(tops), k.running_max(tops), k.term(tops, 1)):
        k.mul(reached, zero)
    k.mul(k.where_finite(tops), zero)
    found = [(step.name, step.kind, step.count, step.chain) for step in recorder.steps]
    assert found == [("exp", "overflow", 1, ()), *(("multiply", "invalid", count, (0,)) for count in (1, 2, 1, 2, 1))]


def test_a_merged_sum_tells_what_broke_its_parts():
    found = faults("logsumexp/split_merge", [6e4, -INF, INF, 1.0])
    assert [(fault.step, fault.kind) for fault in found][:1] == [("subtract", "invalid")]
    assert all(fault.chain == (0,) for fault in found[1:])


def test_a_stall_counts_what_its_own_terms_lose():
    """50 terms are absorbed before the last 4; those alone make less than a unit of the total, 2^-9."""
    (fault,) = summed([1.0, *[2.0**-12] * 50, 1.0, *[2.0**-12] * 3], "sequential")
    assert (fault.kind, fault.detail.split(":")[0]) == ("absorbed", "a sum that became 2 absorbed 53 addends, together 0.01294")
    (fault,) = summed([1.0, 1.0, *[2.0**-11] * 5], "sequential")
    assert fault.detail.startswith("a sum stood still at 2: its last 5 terms, together 0.002441, were")


@pytest.mark.parametrize("name", ["maximum", "minimum", "choose", "nearest"])
def test_a_chain_reaches_through_what_chooses(name):
    k = Arithmetic(F16, recorder=(recorder := Recorder()))
    huge, other = k.exp(np.array([20.0, 1.0], np.float16)), np.array([INF, 5.0], np.float16)
    found = {
        "maximum": lambda: k.maximum(huge, k.constant(0)),
        "minimum": lambda: k.minimum(huge, other),
        "choose": lambda: k.choose(np.array([True, False]), huge, other),
        "nearest": lambda: k.nearest(huge),
    }[name]()
    k.mul(found, k.constant(0))
    assert [(step.kind, step.count, step.chain) for step in recorder.steps] == [("overflow", 1, ()), ("invalid", 1, (0,))]


def test_a_product_that_overflows_in_two_passes_is_what_led_to_nan():
    found = faults("softmax/two_pass", [[3e38, 1.0]], fmt=F32)
    assert [(fault.kind, fault.chain) for fault in found if fault.kind in ("overflow", "invalid")][1:] != []
    assert all(0 in fault.chain for fault in found if fault.kind == "invalid")


def test_a_sum_rescaled_by_0_after_it_overflowed_is_told_as_that():
    k = Arithmetic(F32, recorder=(recorder := Recorder()))
    k.recurrence(np.array([1.0, 1.0, 0.0], np.float32), np.array([3e38, 3e38, 1.0], np.float32))
    assert "an infinity rescaled by 0" in next(f.detail for f in explain(recorder.steps) if f.kind == "invalid")
