"""evaluate and certify: what is measured, how it is judged, what is refused."""

import hashlib
import math
import re
import tracemalloc
from itertools import product
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import engine
from engine import InvalidProblem, Problem, UnknownName, evaluate, formats
from engine import outcome as engine_outcome
from engine.bounds import REFERENCE
from engine.formats import FORMATS, round_array
from engine.model import Axes, InputRounding, Params
from engine.ops import OPS
from engine.variants import VARIANTS, find, of_op

INF, NAN = math.inf, math.nan
LOGITS = Path(__file__).parents[2] / ".." / "shared" / "data" / "bhh-mnist" / "logits.npy"


NEEDED = {"sink": 0.5, "label_smoothing": 0.125, "z_loss": 2.0**-10}


def problem_of(op, logits, variant=None):
    """A problem with whatever else the op and a variant need."""
    x = np.asarray(logits, dtype=np.float64)
    targets = np.zeros(x.shape[:-1], dtype=np.int64) if "targets" in OPS[op].tensors else None
    grad_output = np.linspace(-1, 2, x.size).reshape(x.shape) if "grad_output" in OPS[op].tensors else None
    needed = find(op, variant).needs if variant else ()
    return Problem(op, x, targets, grad_output, Params(**{name: NEEDED[name] for name in needed}))


def outcome(op, logits, fmt, variant, **more):
    given = problem_of(op, logits, variant) if not isinstance(logits, Problem) else logits
    (found,) = evaluate(given, [fmt], [variant], **more).outcomes
    return found


# The example everything starts from


@pytest.mark.parametrize("fmt", ["float16", "float32", "float64"])
def test_naive_softmax_of_1000_is_nan_because_exp_overflowed_at_element_0(fmt):
    naive = outcome("softmax", [1000, 1001, 1002], fmt, "naive")
    assert naive.status == "unstable"
    assert naive.metrics.nan_count == naive.metrics.nan_unexpected == naive.metrics.special_mismatch == 3
    first = naive.faults[0]
    assert (first.step, first.kind, first.count, first.first_index) == ("exp", "overflow", 3, (0,))
    assert first.detail.startswith(f"exp(1000) exceeds the largest {fmt}, ")


@pytest.mark.parametrize("fmt", [name for name, row in FORMATS.items() if row.largest > 1000])
def test_shifted_softmax_of_1000_is_right_to_an_ulp(fmt):
    shifted = outcome("softmax", [1000, 1001, 1002], fmt, "shifted")
    assert shifted.status == "accurate"
    assert shifted.metrics.max_ulp < 1
    assert shifted.faults == ()


def test_the_published_count_of_overflowed_rows():
    if not LOGITS.exists():
        pytest.skip("the shared data set bhh-mnist is not here")
    answer = evaluate(Problem("logsumexp", np.load(LOGITS)), ["float16"], ["naive", "shifted"], summation="sequential")
    assert answer.rows == 2500
    assert [found.metrics.overflow_count for found in answer.outcomes] == [475, 0]


# Every variant, every format


@pytest.mark.parametrize("fmt", list(FORMATS))
@pytest.mark.parametrize("key", list(VARIANTS))
def test_every_variant_is_measured_on_rows_of_every_kind(key, fmt):
    op, name = key.split("/")
    rows = [[0.5, -1.25, 2.0], [1000.0, 1001.0, -1002.0], [-INF, 1.0, 2.0], [NAN, 0.0, 1.0], [INF, 0.0, 1.0], [-INF] * 3, [3.0] * 3]
    found = outcome(op, rows, fmt, name, include=("values", "truth", "ranks"))
    width = found.values.size // len(rows)
    assert found.values.dtype == found.truth.dtype == FORMATS[fmt].dtype
    assert found.values.shape == found.truth.shape == OPS[op].output_shape((7, 3))
    assert found.metrics.n == found.values.size
    assert np.isnan(found.truth.reshape(7, width)[3].astype(float)).all()
    assert found.metrics.compared <= found.metrics.n - width
    assert engine.encode(found)["status"] in ("unstable", "inaccurate", "unbounded", "accurate")


@pytest.mark.parametrize("key", [key for key, row in VARIANTS.items() if row.stable])
def test_a_stable_variant_is_accurate_on_tame_rows_in_every_format(key):
    op, name = key.split("/")
    x = np.random.default_rng(7).standard_normal((20, 8))
    expected = "unbounded" if VARIANTS[key].needs else "accurate"
    for found in evaluate(problem_of(op, x, name), list(FORMATS), [name]).outcomes:
        assert found.status == expected, (found.format, found.metrics.max_ulp)


def test_formats_are_outermost_and_aliases_and_full_names_are_taken():
    answer = evaluate(problem_of("softmax", [1, 2]), ["FP32", "half"], ["softmax/shifted", "naive"])
    assert [(o.format, o.variant) for o in answer.outcomes] == [
        ("float32", "shifted"), ("float32", "naive"), ("float16", "shifted"), ("float16", "naive"),
    ]  # fmt: skip


def test_left_out_formats_are_the_ieee_three_and_left_out_variants_all_of_the_op():
    answer = evaluate(problem_of("cross_entropy", [1, 2]))
    names = [row.name for row in of_op("cross_entropy") if not row.needs]
    assert names[:3] == ["naive", "log_of_softmax", "fused"]
    assert [(o.format, o.variant) for o in answer.outcomes] == list(product(["float16", "float32", "float64"], names))


@pytest.mark.parametrize("op", ["cross_entropy", "cross_entropy_grad"])
def test_a_class_index_is_a_one_hot_distribution(op):
    x = np.random.default_rng(11).standard_normal((4, 3))
    whole = np.array([0, 2, 1, 1])
    index, one_hot = (
        evaluate(Problem(op, x, y), ["bfloat16"], ["fused"], include=("values", "truth")) for y in (whole, np.eye(3)[whole])
    )
    for name in ("values", "truth"):
        assert np.array_equal(getattr(index.outcomes[0], name), getattr(one_hot.outcomes[0], name))


def test_the_output_shape_is_told_without_computing():
    assert engine.output_shape(problem_of("softmax_jacobian", np.zeros((2, 3)))) == (2, 3, 3)
    assert engine.output_shape(problem_of("logsumexp", np.zeros((2, 3)))) == (2,)


def test_progress_is_told_outcome_by_outcome():
    told = []
    chosen = ["naive", "shifted"]
    evaluate(problem_of("softmax", [1, 2]), ["float16"], chosen, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]


def test_the_same_request_gives_the_same_answer():
    problem = problem_of("softmax_vjp", np.random.default_rng(3).standard_normal((4, 5)))
    assert engine.encode(evaluate(problem)) == engine.encode(evaluate(problem))


def test_a_batch_is_judged_as_its_rows_are():
    rows = np.random.default_rng(5).standard_normal((3, 4)) * 4
    whole = outcome("log_softmax", rows, "float32", "naive").metrics
    alone = [outcome("log_softmax", row, "float32", "naive").metrics for row in rows]
    assert whole.max_ulp == max(m.max_ulp for m in alone)
    assert whole.correctly_rounded == sum(m.correctly_rounded for m in alone)
    assert whole.kl.worst == max(m.kl.worst for m in alone)
    assert whole.sum_defect == max(m.sum_defect for m in alone)


# Status and bound


def test_a_special_mismatch_is_unstable():
    assert outcome("logsumexp", [-INF, -INF], "float32", "shifted").status == "unstable"  # NaN where the truth is -inf


def test_a_lost_normal_number_is_unstable():
    found = outcome("logsumexp", [-1e-4, -30.0], "float16", "naive")  # exp(x) rounds to 1, but the bound is 2e-3 there
    assert (found.metrics.false_zero_count, found.status) == (1, "accurate")
    lost = outcome("softmax", [-20.0, -20.5], "float16", "naive", axes=Axes(accumulator="float32"))
    assert lost.status == "unstable"  # 0 / 0


def test_zeros_beyond_the_bound_are_unstable():
    found = engine.measure(Problem("softmax", np.zeros((1, 4), np.float16)), np.array([[0, 0.25, 0.25, 0.25]], np.float16))
    assert (found.bound.exceeded, found.metrics.false_zero_count) == (1, 1)
    assert (
        engine_outcome._exactly(
            np.zeros((1, 4)), engine.truth.Truth(Problem("softmax", np.zeros((1, 4))), FORMATS["float64"]), False, 0
        ).status
        == "unstable"
    )


def test_an_element_beyond_the_bound_of_the_stable_variant_is_inaccurate():
    found = outcome("log_softmax", [0, -15.5], "float16", "log_of_softmax")  # p is subnormal: few of its digits are left
    assert (found.status, found.bound.exceeded, found.bound.reference) == ("inaccurate", 1, "shifted")
    assert found.metrics.error_over_bound <= 1  # log p is not meant to do better
    assert found.bound.rule.startswith("E = -log1p(-B_i/p_i)")


@pytest.mark.parametrize("op", list(OPS))
def test_each_stable_variant_is_within_its_own_bound(op):
    found = evaluate(problem_of(op, [1, 2]), ["float32"], [REFERENCE[op]]).outcomes[0]
    assert (found.status, found.bound.exceeded, found.bound.reference) == ("accurate", 0, REFERENCE[op])
    assert found.metrics.error_over_bound <= 1


def test_a_sum_that_lost_half_its_mass_is_unstable():
    ones = outcome("softmax", np.zeros(4096), "float16", "shifted", summation="sequential")  # the sum stalls at 2048
    assert ones.metrics.sum_defect == 1.0
    assert ones.status == "unstable"
    assert outcome("softmax", np.zeros(4096), "float16", "shifted").status == "accurate"


def test_a_zero_inside_the_bound_is_absorbed():
    found = outcome("log_softmax", [0, -9], "float16", "shifted")  # -1.2e-4 is normal, and inside the bound of 8 u or so
    assert found.metrics.false_zero_count == 1
    assert found.status == "accurate"
    assert [(f.step, f.kind, f.count, f.first_index) for f in found.faults if f.kind == "absorbed"] == [
        ("result", "absorbed", 1, (0,))
    ]


# What rounding the inputs did


def test_input_rounding_is_reported_apart():
    found = outcome("softmax", [[1.0, 2.0], [1.0, 1 + 2**-11], [INF, NAN]], "float16", "shifted")
    assert found.input_rounding.changed == 1
    assert found.input_rounding.max_abs == 2.0**-11
    assert found.input_rounding.logit_shift == 2.0**-12


def test_a_logit_that_overflows_the_format_is_an_infinite_shift():
    found = outcome("softmax", [1.0, 1e6], "float16", "shifted")
    assert (found.input_rounding.changed, found.input_rounding.max_abs, found.input_rounding.logit_shift) == (1, INF, INF)


@pytest.mark.parametrize("block", [1, 2, 6, 100])
@pytest.mark.parametrize("special", [[], [NAN, INF, -INF], [NAN, INF, 1e5], [-1e5]], ids=str)
def test_input_rounding_is_that_of_the_whole_tensor(special, block, monkeypatch):
    x = np.random.default_rng(3).standard_normal((2, 5, 7)) * 100
    x.reshape(-1)[8 : 8 + len(special)] = special
    stored = round_array(x, FORMATS["float16"])
    same = np.isnan(x) | (stored == x)
    change = np.where(same, 0, stored) - np.where(same, 0, x)
    shift = INF if np.isinf(change).any() else np.ptp(change, axis=-1).max() / 2
    monkeypatch.setattr(formats, "BLOCK", block)
    assert engine_outcome._input_rounding(x, stored) == InputRounding(np.count_nonzero(change), np.abs(change).max(), shift)


def test_logits_are_rounded_once():
    found = outcome("softmax", [1 + 2**-8 + 2**-40, 0.0], "bfloat16", "shifted")
    assert found.worst[0].logit in (1.0078125, 0.0)
    assert {w.logit for w in found.worst} == {1.0078125, 0.0}


# The axes


@pytest.mark.parametrize("key", list(VARIANTS))
def test_plain_axes_are_what_is_left_out(key):
    op, name = key.split("/")
    problem = problem_of(op, [[0.5, -1.25, 2.0], [30.0, 8.0, -90.0]], name)
    formats = ["float16", "float64", "float8_e5m2"]
    plain, said = (
        evaluate(problem, formats, [name], include=("values",), **more)
        for more in ({}, {"axes": Axes(None, "numpy", "gradual", False, None, "format")})
    )
    assert engine.encode(plain) == engine.encode(said)
    assert [o.arithmetic for o in plain.outcomes] == [Axes(fmt, "numpy", "gradual", False, fmt, "infinity") for fmt in formats]


@pytest.mark.half
@pytest.mark.no_cover
@pytest.mark.parametrize("fmt", list(FORMATS))
@pytest.mark.parametrize("key", list(VARIANTS))
def test_every_variant_runs_on_every_axis(key, fmt):
    op, name = key.split("/")
    rows = [[0.5, -1.25, 2.0], [400.0, 401.0, -402.0], [-INF, 1.0, 2.0], [NAN, 0.0, 1.0], [-20.0, -15.0, -30.0]]
    for summation, axes in (
        ("kahan", Axes("float32", "correct", "flush", True, "bfloat16")),
        ("warp", Axes("bfloat16", "exp2", "gradual", True, "float8_e4m3fn", "saturate")),
        ("exact", Axes(output_format="float64", subnormals="flush")),
    ):
        found = outcome(op, rows, fmt, name, summation=summation, include=("values", "truth"), axes=axes)
        assert found.values.dtype == found.truth.dtype == FORMATS[axes.output_format].dtype
        assert (found.format, found.summation) == (fmt, summation)
        assert found.arithmetic.output_format == axes.output_format
        assert engine.encode(found)["arithmetic"]["exp"] == axes.exp
        for fault in found.faults:
            assert 20 < len(fault.detail) < 200


def test_float16_in_and_out_with_float32_between_rounds_once():
    # float16 logits computed in float32 and rounded at the end: what kernels with a float32 accumulator do
    x = np.random.default_rng(4).normal(0, 3, (20, 30)).astype(np.float16)
    inside = outcome("softmax", Problem("softmax", x), "float32", "shifted", axes=Axes(output_format="float16"))
    assert inside.status == "accurate"
    assert inside.metrics.max_ulp < 0.51
    assert inside.bound.unit_roundoff == 2.0**-11
    assert outcome("softmax", Problem("softmax", x), "float16", "shifted").metrics.max_ulp > 1


def test_a_wider_output_is_judged_by_the_arithmetics_own_format_on_both_paths():
    for rows in (2, 200):  # the fast tiers would judge by the output's
        x = np.random.default_rng(4).normal(0, 1, (rows, 30))
        found = outcome("softmax", x, "float16", "shifted", axes=Axes(output_format="float64"))
        assert found.status == "accurate"
        assert found.bound.unit_roundoff == 2.0**-11
        assert found.metrics.max_ulp > 1e6


def test_an_accumulator_saves_what_a_sum_in_the_format_loses():
    zeros = np.zeros(4096)
    for axes, status in ((Axes(), "unstable"), (Axes(accumulator="float32"), "accurate")):
        found = outcome("softmax", zeros, "float16", "shifted", summation="sequential", axes=axes)
        assert found.status == status


def test_flushed_probabilities_are_said_to_be_flushed():
    found = outcome("softmax", [0.0, -10.5], "float16", "shifted", axes=Axes(subnormals="flush"), include=("values",))
    assert found.values.tolist() == [1, 0]
    assert found.faults[0].detail == ("exp(-10.5) is below the smallest normal float16, 6.103515625e-05, and was flushed to 0")


def test_a_truth_that_overflows_e4m3fn_is_nan_and_saturates_where_asked():
    logits = [200.0, -400.0]
    plain, held = (
        outcome("log_softmax", logits, "float8_e4m3fn", "shifted", include=("truth",), axes=Axes(overflow=overflow))
        for overflow in ("format", "saturate")
    )
    assert np.isnan(plain.truth.astype(float)).tolist() == [False, True]
    assert held.truth.astype(float).tolist() == [0, -448]
    assert (plain.arithmetic.overflow, held.arithmetic.overflow) == ("nan", "saturate")
    assert (plain.metrics.special_mismatch, plain.metrics.correctly_rounded, plain.metrics.compared) == (1, 1, 0)  # all NaN
    assert (held.metrics.special_mismatch, held.metrics.correctly_rounded, held.metrics.compared) == (0, 2, 2)
    assert (plain.faults[0].step, plain.faults[0].kind) == ("subtract", "overflow")


def test_logits_that_no_e4m3fn_holds_become_nan_or_saturate():
    given = [1000.0, 0.0]
    plain, held = (
        outcome("softmax", given, "float8_e4m3fn", "shifted", axes=Axes(overflow=overflow)) for overflow in ("format", "saturate")
    )
    assert plain.input_rounding.max_abs == plain.input_rounding.logit_shift == INF
    assert plain.metrics.compared == 0
    assert (held.input_rounding.max_abs, held.status) == (552.0, "accurate")


@pytest.mark.parametrize("fmt", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("op", ["softmax", "log_softmax", "cross_entropy"])
def test_many_8_bit_rows_are_measured_as_one_by_one(op, fmt, monkeypatch):
    x = np.random.default_rng(9).normal(0, 60, (100, 8))
    chosen = [row.name for row in of_op(op)[:2]]
    whole = evaluate(problem_of(op, x), [fmt], chosen)
    monkeypatch.setattr("engine.outcome.FAST_FROM", 10**9)
    alone = evaluate(problem_of(op, x), [fmt], chosen)
    for a, b in zip(whole.outcomes, alone.outcomes, strict=True):
        assert repr((a.metrics, a.worst, a.status)) == repr((b.metrics, b.worst, b.status))
        assert ("T0" in a.certificate.tiers) == (fmt == "float8_e5m2" or op == "softmax")


def test_the_estimate_knows_what_the_fast_tiers_do_not_take():
    x = np.zeros((100, 100))
    assert engine.estimate(problem_of("log_softmax", x), ["float8_e4m3fn"]) > engine.estimate(
        problem_of("log_softmax", x), ["float16"]
    )
    assert engine.estimate(problem_of("softmax", x), ["float8_e4m3fn"]) < 1
    wider = engine.estimate(problem_of("softmax", x), ["float16"], axes=Axes(output_format="float32"))
    assert wider > engine.estimate(problem_of("softmax", x), ["float16"])
    for summation, axes in (("sequential", Axes()), ("sequential", Axes(subnormals="flush")), ("numpy", Axes(exp="correct"))):
        more = engine.estimate(problem_of("softmax", x), ["float64"], summation=summation, axes=axes)
        assert more > engine.estimate(problem_of("softmax", x), ["float64"])


# Refusals


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (Problem("softmax", np.zeros(())), "logits have rank 0"),
        (Problem("softmax", np.zeros((1, 1, 1, 1, 1))), "logits have rank 5"),
        (Problem("softmax", np.zeros((2, 0))), r"logits have shape \[2, 0\]"),
        (Problem("softmax", np.zeros(2), targets=np.zeros((), dtype=int)), "softmax takes no targets"),
        (Problem("cross_entropy", np.zeros(2)), "cross_entropy needs targets"),
        (Problem("softmax_vjp", np.zeros(2)), "softmax_vjp needs grad_output"),
        (Problem("softmax_vjp", np.zeros(2), grad_output=np.zeros(3)), r"grad_output has shape \[3\]"),
        (Problem("softmax_vjp", np.zeros(2), grad_output=np.array([1, INF])), "grad_output contains inf"),
        (
            Problem("cross_entropy", np.zeros((2, 3)), np.array([0, 3])),
            r"target 3 at \[1\] is out of range: class indices of 3 logits are 0 to 2",
        ),
        (Problem("cross_entropy", np.zeros((2, 3)), np.array([0, -1])), r"target -1 at \[1\] is out of range"),
        (Problem("cross_entropy", np.zeros((2, 3)), np.array([0.0, 1.0])), "must be integers"),
        (
            Problem("cross_entropy", np.zeros((2, 3)), np.zeros((3, 2))),
            r"shape \[3, 2\]; class indices have shape \[2\]",
        ),
        (Problem("cross_entropy", np.zeros(3), np.array([1.0])), r"a class index is a single integer, distributions have .* \[3\]"),
        (Problem("cross_entropy", np.zeros(3), np.array(4)), "target 4 is out of range"),
        (
            Problem("cross_entropy", np.zeros(2), np.array([2**53 + 1, 0])),
            r"9007199254740993 at \[0\] may be no binary64",
        ),
        (Problem("cross_entropy", np.zeros(2), np.array([0.5, -0.5])), r"target -0.5 at \[1\] is not a weight"),
        (Problem("cross_entropy", np.zeros(2), np.array([0.5, NAN])), r"target nan at \[1\] is not a weight"),
    ],
)
def test_what_is_no_problem_is_refused_with_the_rule(problem, message):
    with pytest.raises(InvalidProblem, match=message):
        evaluate(problem)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"formats": []}, InvalidProblem, "formats is empty"),
        ({"formats": ["float17"]}, UnknownName, "unknown format 'float17'; known: float16"),
        ({"formats": ["fp8"]}, UnknownName, "ambiguous"),
        ({"variants": []}, InvalidProblem, "variants is empty"),
        ({"variants": ["fused"]}, UnknownName, "unknown variant 'fused' of softmax; known: naive, shifted"),
        ({"summation": "kahn"}, UnknownName, "unknown summation 'kahn'"),
        ({"include": ["everything"]}, UnknownName, "unknown include 'everything'"),
        ({"axes": Axes(exp="libm")}, UnknownName, "unknown exp 'libm'; known: numpy, correct, exp2"),
        ({"axes": Axes(accumulator="f8")}, UnknownName, "format 'f8' is ambiguous"),
        ({"axes": Axes(overflow="saturate")}, InvalidProblem, "float16 does not saturate"),
        ({"worst": 33}, InvalidProblem, "worst is 33; it must be 0 to 32"),
    ],
)
def test_unknown_options_name_what_exists(options, error, message):
    with pytest.raises(error, match=message):
        evaluate(problem_of("softmax", [1, 2]), **options)


def test_tensors_that_overflow_a_format_are_refused():
    with pytest.raises(InvalidProblem, match="a target overflows float16"):
        evaluate(Problem("cross_entropy", np.zeros(2), np.array([1e6, 0])))
    with pytest.raises(InvalidProblem, match="grad_output overflows float16"):
        evaluate(Problem("softmax_vjp", np.zeros(2), grad_output=np.array([1e6, 0])))


# certify


def test_certify_takes_the_logits_as_stored_and_rounds_only_the_result():
    answer = engine.certify(Problem("logsumexp", np.array([1.00390625, -1e6])), "bfloat16", 20)
    assert float(answer.rounded) == 1.0078125  # the tie 1.00390625 is broken upwards by exp(-1e6)
    assert answer.decimal == "1.0039062500000000000e+0"
    assert answer.radius_log2 == -80


def test_certify_says_when_everything_is_exact():
    answer = engine.certify(Problem("softmax", np.zeros((2, 4), dtype=ml_dtypes.bfloat16)), "float16", 3)
    assert answer.radius_log2 is None
    assert answer.certificate.relative_bound_log2 is None
    assert answer.decimal == [["2.50e-1"] * 4] * 2
    assert answer.hex == [["0x1p-2"] * 4] * 2


def test_certify_narrows_with_the_digits():
    answer = engine.certify(Problem("logsumexp", np.array([0.0, 1.0])), "float64", 1000)
    assert answer.radius_log2 <= -1000 * math.log2(10)
    assert re.fullmatch(r"1\.3132616875182228\d{983}e\+0", answer.decimal)


@pytest.mark.parametrize("digits", [0, 4001])
def test_certify_refuses_digits_out_of_range(digits):
    with pytest.raises(InvalidProblem, match=f"digits is {digits}; it must be 1 to 4000"):
        engine.certify(problem_of("softmax", [1.0]), "float64", digits)


# Provenance


def test_a_measurement_says_what_was_measured():
    x, p = np.zeros((2, 3, 4), np.float32), np.full((2, 3, 4), 0.25, ml_dtypes.bfloat16)
    found = engine.measure(Problem("softmax", x), p)
    assert (found.op, found.rows, found.n, found.format, found.nonfinite) == ("softmax", 6, 4, "bfloat16", "ieee")
    assert (found.logits_dtype, found.logits_shape) == ("float32", (2, 3, 4))
    assert (found.engine.version, found.engine.schema) == (engine.VERSION, engine.SCHEMA)
    told = engine.encode(evaluate(Problem("softmax", x), ["float32"], ["shifted"]))
    assert {"op", "rows", "n", "nonfinite", "engine"} == told.keys() & engine.encode(found).keys()


@pytest.mark.parametrize(
    ("op", "shape", "hint"),
    [("cross_entropy", (), True), ("logsumexp", (1,), True), ("cross_entropy", (2,), False), ("softmax", (1,), False)],
)
def test_a_mean_over_the_rows_is_told_from_their_numbers(op, shape, hint):
    with pytest.raises(InvalidProblem) as refused:
        engine.measure(problem_of(op, np.zeros((3, 2))), np.zeros(shape))
    assert ("not their mean" in str(refused.value)) is hint


def test_the_digest_is_over_dtype_shape_and_bytes():
    x = np.array([[1.0, 2.0]], dtype=np.float16)
    assert engine.digest(x) == "sha256:" + hashlib.sha256(b"float16\0[1,2]\0" + x.tobytes()).hexdigest()
    assert engine.digest(x.T.copy().T) == engine.digest(x) != engine.digest(x.T)


@pytest.mark.parametrize("fmt", list(FORMATS))
def test_the_digest_does_not_depend_on_the_layout(fmt, monkeypatch):
    x = round_array(np.random.default_rng(1).standard_normal((3, 5, 7)), FORMATS[fmt])
    whole = "sha256:" + hashlib.sha256(f"{fmt}\0[3,5,7]\0".encode() + x.tobytes()).hexdigest()
    for block in (1, 6, 1000):
        monkeypatch.setattr(formats, "BLOCK", block)
        for same in (x, np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2]):
            assert engine.digest(same) == whole
    assert engine.digest(x[0, 0, 0]) == "sha256:" + hashlib.sha256(f"{fmt}\0[]\0".encode() + x[0, 0, 0].tobytes()).hexdigest()


# Memory


def peak(function, *arguments):
    """Bytes that a call holds at most beyond what there was, its result among them."""
    tracemalloc.start()
    try:
        function(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", [(1_000_000, 1), (1000, 1000), (1, 1_000_000)], ids=str)
def test_no_tensor_is_copied_to_be_digested_or_compared_and_none_beside_the_result_to_be_rounded(shape):
    x = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    stored = round_array(x, FORMATS["float16"])
    assert peak(engine.digest, x) < x.size
    assert peak(engine.digest, np.asfortranarray(x)) < x.size
    assert peak(engine_outcome._input_rounding, x, stored) < 2 * x.size
    assert peak(round_array, x, FORMATS["float16"]) < stored.nbytes + 2 * x.size


def test_an_output_is_measured_without_a_copy_of_anything():
    """Beside 4 MB for the blocks that are worked on; a float64 copy has 8 bytes an element."""
    x = np.random.default_rng(2).standard_normal((1000, 1000)).astype(np.float32)
    weights = np.exp(x)
    assert peak(engine.measure, Problem("softmax", x), weights / weights.sum(axis=-1, keepdims=True)) < 4e6 + 4 * x.size


def test_the_fingerprint_names_numpy():
    assert engine.fingerprint().startswith(f"numpy {np.__version__} ")


def test_the_estimate_grows_with_the_work():
    small, large = (engine.estimate(problem_of("softmax", np.zeros((rows, 10)))) for rows in (1, 1000))
    assert 0 < small < large
    assert engine.estimate_truth(problem_of("softmax", np.zeros(10)), 10) < engine.estimate_truth(
        problem_of("softmax", np.zeros(10)), 1000
    )
