"""Verdicts: what passes, what fails, what stays open, and what is said about it."""

import numpy as np
import pytest

from engine import FORMATS, Gate, InvalidProblem, Params, Problem, UnknownName, evaluate, round_array, verify
from engine.bounds import Declared, Tolerance
from engine.formats import widen
from engine.measurement import Allowances, Measurement
from engine.mutants import MUTANTS, mutants
from engine.policies import POLICIES
from engine.survey import Survey
from engine.truth import Truth, certified, nearly

INF, NAN = float("inf"), float("nan")
F32 = FORMATS["float32"]


def logits(rows, n, sigma=3.0, seed=0, fmt="float32"):
    return round_array(np.random.default_rng(seed).standard_normal((rows, n)) * sigma, FORMATS[fmt])


def problem(op, x, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, x.shape[-1], x.shape[:-1]) if op.startswith("cross") else None
    g = round_array(rng.standard_normal(x.shape), FORMATS["float32"]) if op == "softmax_vjp" else None
    return Problem(op, x, targets, g)


def made(op, x, variant="shifted", fmt="float32", summation="numpy", **axes):
    """What a variant of the catalogue makes of logits."""
    from engine import Axes

    given = problem(op, x)
    name = {"cross_entropy": "fused", "cross_entropy_grad": "fused"}.get(op, variant) if variant == "shifted" else variant
    return evaluate(given, [fmt], [name], summation, ["values"], axes=Axes(**axes)).outcomes[0].values


def kinds(verdict):
    return [finding.kind for finding in verdict.findings]


def said(verdict):
    return " ".join(finding.detail for finding in verdict.findings)


# ---- what passes -------------------------------------------------------------------------------------------------------

OPS = ("softmax", "log_softmax", "logsumexp", "cross_entropy", "cross_entropy_grad", "softmax_vjp", "softmax_jacobian")


@pytest.mark.parametrize("fmt", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("op", OPS)
def test_a_right_output_passes(op, fmt):
    x = logits(3, 12, fmt=fmt)
    wide = "float32" if FORMATS[fmt].precision <= 24 else "float64"
    output = made(op, x, fmt=wide, output_format=fmt)
    found = verify(problem(op, x), output)
    assert (found.verdict, found.findings) == ("pass", ())
    assert found.metrics.error_over_bound <= 1
    assert found.bound.exceeded == 0


@pytest.mark.parametrize("op", OPS)
def test_the_correctly_rounded_output_passes_every_demand(op):
    x = logits(2, 9)
    right = verify(problem(op, x), made(op, x), include=["elements"]).truth
    for gate in (Gate(), Gate("correctly_rounded"), Gate("faithful"), Gate("max_ulp", {"ulps": 0.5}), Gate("numpy.ulp")):
        assert verify(problem(op, x), right, gate).verdict == "pass"


def test_fast_tiers_and_exact_path_rule_alike():
    x = logits(4, 300)
    output = made("softmax", x, variant="naive")
    truth = Truth(problem("softmax", x), F32)
    k = Declared("softmax/shifted", "float32", "float32", "float32", "parallel", 2.0, 2.0, 3)
    own = Tolerance((k,), ulps=0.5)
    for judge in (
        own,
        Tolerance((k,), factor=0.2),
        Tolerance(absolute=1e-9, relative=1e-7),
        Tolerance(absolute=1e-9, relative=1e-7, larger=True),
        Tolerance(absolute=1e-3),
        Tolerance(ulps=1.0, outside=True),
        Tolerance(ulps=0.25),
        Tolerance(),
        Tolerance((k,), absolute=1e-9),
    ):
        survey = Survey(output, Truth(truth.problem, F32), allowances=Allowances(truth, own, judge), gated=True)
        exact = Measurement(output, truth, Allowances(truth, own, judge))
        assert survey.tolerated() == exact.tolerated()
        forced = Survey(output, Truth(truth.problem, F32), allowances=Allowances(truth, own, judge), gated=True, ambiguity=2.0**-9)
        assert forced.tolerated() == exact.tolerated()


@pytest.mark.half
@pytest.mark.no_cover
@pytest.mark.parametrize("n", [2, 270])
@pytest.mark.parametrize("fmt", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_no_mutant_passes(op, fmt, n):
    x = logits(2, n, fmt=fmt)
    truth = Truth(Problem(op, x), FORMATS[fmt])
    right = nearly(truth, range(2))
    for name in mutants(FORMATS[fmt]):
        from engine.mutants import mutate

        found = verify(Problem(op, x), mutate(name, right, truth, range(2)).reshape(x.shape))
        if name in found.gate.self_test.equivalent:
            assert found.verdict == "pass"
        else:
            assert found.verdict == ("fail" if name != "narrowed" else found.verdict) != "pass", name
            assert found.gate.self_test.missed == ()


# ---- what does not -----------------------------------------------------------------------------------------------------


def test_zeros_that_pass_torch_are_vacuous_there_and_fail_here():
    x = logits(1, 128256, sigma=1e-3)
    zeros = np.zeros_like(x)
    strict = verify(Problem("softmax", x), zeros)
    assert strict.verdict == "fail"
    assert kinds(strict)[:2] == ["beyond", "empty"]
    assert "128256 of 128256 elements are 0" in said(strict)
    loose = verify(Problem("softmax", x), zeros, Gate("torch.assert_close"))
    assert loose.verdict == "inconclusive"
    assert kinds(loose)[0] == "vacuous"
    assert "zeros" in loose.gate.self_test.missed
    assert loose.gate.vacuous_fraction == 1.0


def test_a_gate_stricter_than_any_algorithm_is_inconclusive():
    x = logits(4, 200, sigma=6)
    found = verify(Problem("softmax", x), made("softmax", x), Gate("numpy.assert_allclose"))
    assert (found.verdict, kinds(found)[0]) == ("inconclusive", "stricter")


def test_a_tolerance_below_half_an_ulp_is_inconclusive():
    x = logits(1, 20, sigma=1, fmt="float16")
    found = verify(Problem("softmax", x), made("softmax", x, fmt="float16"), Gate("allclose", {"rtol": 1e-7, "atol": 1e-9}))
    assert (found.verdict, kinds(found)[0]) == ("inconclusive", "short")
    broken = verify(
        Problem("softmax", x), np.roll(made("softmax", x, fmt="float16"), 1), Gate("allclose", {"rtol": 1e-7, "atol": 1e-9})
    )
    assert (broken.verdict, kinds(broken)[0]) == ("fail", "beyond")


def test_beyond_the_gate_and_beyond_all_arithmetic_fails_though_zeros_pass():
    x = logits(1, 4000, sigma=1e-3)
    output = made("softmax", x)
    output[0, 7] = 0.5
    found = verify(Problem("softmax", x), output, Gate("allclose", {"rtol": 0.0, "atol": 1e-3}))
    assert "zeros" in found.gate.self_test.missed
    assert found.verdict == "fail"


def test_between_names_the_cheapest_declaration():
    x = np.zeros((1, 3000), np.float32)
    x[0, 0] = 9.0
    output = made("softmax", x, fmt="float32", accumulator="float16", summation="pairwise", output_format="float16", exp="correct")
    found = verify(Problem("softmax", x), output)
    assert found.verdict in ("inconclusive", "pass")
    if found.verdict == "inconclusive":
        assert "declare it" in said(found)
        declared = verify(Problem("softmax", x), output, Gate("bound", {"accumulator": "float16", "summation": "pairwise"}))
        assert declared.verdict == "pass"


def test_a_declaration_is_all_that_counts():
    x = logits(2, 50, sigma=6)
    output = made("softmax", x, fmt="bfloat16", output_format="float32")
    assert verify(Problem("softmax", x), output).verdict == "fail"
    assert verify(Problem("softmax", x), output, Gate("bound", {"compute": "bfloat16"})).verdict == "pass"
    assert verify(Problem("softmax", x), made("softmax", x), Gate("bound", {"factor": 0.01})).verdict == "fail"


def test_nan_is_a_special_mismatch_before_any_gate():
    x = np.array([[1000.0, 1001.0, 1002.0]], np.float32)
    for gate in (Gate(), Gate("torch.assert_close"), Gate("max_ulp", {"ulps": 1e9})):
        found = verify(Problem("softmax", x), np.full_like(x, NAN), gate)
        assert (found.verdict, kinds(found)[0]) == ("fail", "special")
    assert "naive" in said(verify(Problem("softmax", x), np.full_like(x, NAN)))


def test_where_there_is_no_bound_nothing_is_certified():
    x = logits(1, 40, fmt="float8_e5m2")
    found = verify(Problem("softmax", x), made("softmax", x, fmt="float8_e5m2"), Gate("bound", {"compute": "float8_e5m2"}))
    assert (found.verdict, kinds(found)[0]) == ("inconclusive", "unbounded")


def test_a_reference_is_audited():
    x = logits(3, 100, sigma=8)
    reference = made("softmax", x, variant="subtractive")
    found = verify(Problem("softmax", x), made("softmax", x, fmt="float64", output_format="float32"), reference=reference)
    assert found.reference.max_ulp > 1
    assert "your reference is itself" in said(found)
    assert verify(Problem("softmax", x), reference, Gate("flash.2x"), reference=reference).verdict == "pass"
    worse = verify(
        Problem("softmax", x), made("softmax", x, fmt="bfloat16", output_format="float32"), Gate("flash.2x"), reference=reference
    )
    assert (worse.verdict, kinds(worse)[0]) == ("fail", "beyond")
    with pytest.raises(InvalidProblem, match="compares with the errors of a reference"):
        verify(Problem("softmax", x), reference, Gate("flash.2x"))


@pytest.mark.parametrize(("reference", "atol"), [(0.0, 0.0), (NAN, 0.0), (None, 1.0)])
def test_a_reference_as_wrong_as_zeros_lets_nothing_pass(reference, atol):
    x = logits(2, 50)
    right = made("softmax", x)
    given = right if reference is None else np.full_like(right, reference)
    for output in (np.zeros_like(right), right):
        found = verify(Problem("softmax", x), output, Gate("flash.2x", {"atol": atol}), reference=given)
        assert (found.verdict, kinds(found)[0]) == ("inconclusive", "vacuous")
        assert "lets an output of zeros through: what the reference is off by" in said(found)


def test_row_sums_are_refused_where_nothing_is_known_of_them():
    from engine import Params

    x = logits(1, 8)
    with pytest.raises(InvalidProblem, match="not known with these params; leave it out"):
        verify(Problem("softmax", x, params=Params(sink=0.5)), made("softmax", x), include=["row_sums"])
    mask = np.array([True] * 7 + [False])
    found = verify(Problem("softmax", x, params=Params(mask=mask)), 2 * made("softmax", x), include=["row_sums"])
    assert "row_sums" in kinds(found)


# ---- nonfinite ---------------------------------------------------------------------------------------------------------

MASKED = np.array([[1.0, 2.0, 3.0], [-INF, -INF, -INF]], np.float32)


def right_of(row):
    return made("softmax", np.array([row], np.float32))[0]


@pytest.mark.parametrize(
    ("policy", "row", "verdict"),
    [
        ("ieee", [NAN] * 3, "pass"),
        ("ieee", [0.0] * 3, "fail"),
        ("masked_zero", [0.0] * 3, "pass"),
        ("masked_zero", [NAN] * 3, "fail"),
        ("masked_zero", [0.0, 0.0, 1e-30], "fail"),
        ("masked_uniform", [1 / 3] * 3, "pass"),
        ("masked_uniform", [0.0] * 3, "fail"),
        ("strict", [NAN] * 3, "fail"),
    ],
)
def test_fully_masked_rows_are_what_the_policy_wants(policy, row, verdict):
    output = np.array([right_of([1.0, 2.0, 3.0]), row], np.float32)
    assert verify(Problem("softmax", MASKED), output, nonfinite=policy).verdict == verdict


def test_masked_zero_of_logarithms():
    x = np.array([[1.0, 2.0, 3.0], [-INF, -INF, -INF]], np.float32)
    output = np.concatenate([made("log_softmax", x[:1]), np.full((1, 3), -INF, np.float32)])
    assert verify(Problem("log_softmax", x), output, nonfinite="masked_zero").verdict == "pass"
    output[1, 1] = 0
    found = verify(Problem("log_softmax", x), output, nonfinite="masked_zero")
    assert found.verdict == "fail"
    assert "are not -Infinity everywhere; the first is row 1" in said(found)


def test_strict_forbids_what_has_no_truth():
    x = np.array([[1.0, NAN], [INF, 0.0], [0.0, 1.0]], np.float32)
    found = verify(Problem("softmax", x), np.array([[NAN, NAN], [NAN, NAN], right_of([0.0, 1.0])], np.float32), nonfinite="strict")
    assert kinds(found).count("strict") == 3


# ---- axes, repeats, invariants -----------------------------------------------------------------------------------------


def test_any_axis_is_judged_and_told_as_it_was_posted():
    x = np.moveaxis(logits(6, 40).reshape(2, 3, 40), -1, 1).copy()
    right = np.moveaxis(made("softmax", np.ascontiguousarray(np.moveaxis(x, 1, -1))), -1, 1).copy()
    assert verify(Problem("softmax", x), right, axis=1).verdict == "pass"
    wrong = right.copy()
    wrong[1, 17, 2] *= 3
    found = verify(Problem("softmax", x), wrong, axis=-2, include=["elements"])
    assert found.verdict == "fail"
    assert found.worst[0].index == (1, 17, 2)
    assert np.unravel_index(found.metrics.argmax_ulp, x.shape) == (1, 17, 2)
    assert found.findings[0].index == (1, 17, 2)
    assert found.truth.shape == x.shape
    with pytest.raises(InvalidProblem, match="axis is 3; logits of rank 3 have axes -3 to 2"):
        verify(Problem("softmax", x), right, axis=3)


def test_repeated_runs_are_the_same_bits():
    x = logits(2, 10)
    output = made("softmax", x)
    assert verify(Problem("softmax", x), output, outputs=[output.copy()]).verdict == "pass"
    other = output.copy()
    other[1, 3] = np.nextafter(other[1, 3], 1, dtype=np.float32)
    found = verify(Problem("softmax", x), output, outputs=[output, other])
    assert (found.verdict, kinds(found)) == ("fail", ["reproducibility"])
    assert "run 1 differs from the output in 1 of 20" in said(found)
    with pytest.raises(InvalidProblem, match="repeated runs are as the output is"):
        verify(Problem("softmax", x), output, outputs=[output.astype(np.float64)])


def test_invariants_hold_of_what_is_right_and_fail_where_they_are_broken():
    x = logits(3, 30)
    everything = ["row_sums", "order", "argmax"]
    assert verify(Problem("softmax", x), made("softmax", x), include=everything).verdict == "pass"
    assert verify(Problem("log_softmax", x), made("log_softmax", x), include=everything).verdict == "pass"
    assert verify(problem("cross_entropy_grad", x), made("cross_entropy_grad", x), include=["row_sums"]).verdict == "pass"
    wrong = made("softmax", x)
    wrong[1] = wrong[1][::-1]
    assert {"order", "argmax"} <= set(
        kinds(verify(Problem("softmax", x), wrong, Gate("max_ulp", {"ulps": 1e15}), include=everything))
    )
    half = made("softmax", x) * np.float32(0.5)
    assert "row_sums" in kinds(verify(Problem("softmax", x), half, Gate("max_ulp", {"ulps": 1e15}), include=everything))
    with pytest.raises(InvalidProblem, match="has no such invariant"):
        verify(Problem("logsumexp", x), made("logsumexp", x), include=["order"])


def test_what_is_asked_wrongly_is_refused_by_name():
    x = logits(1, 4)
    output = made("softmax", x)
    for wrong, message in (
        ({"gate": Gate("alclose")}, "did you mean 'allclose'"),
        ({"gate": Gate("bound", {"facto": 1})}, "has no parameter 'facto'"),
        ({"gate": Gate("allclose", {"rtol": 1e-3})}, "needs atol"),
        ({"gate": Gate("bound", {"algorithm": "shiftd"})}, "unknown variant"),
        ({"nonfinite": "ieeee"}, "unknown nonfinite policy"),
        ({"include": ["truth"]}, "unknown include"),
        ({"worst": 33}, "worst is 33"),
        ({"gate": Gate("bound", {"algorithm": "stored_16_bits"})}, "unknown variant"),
        ({"gate": Gate("max_ulp", {"ulps": -1})}, "ulps is -1"),
        ({"gate": Gate("bound", {"summation": "neither"})}, "summation is 'neither'; it is one of"),
    ):
        with pytest.raises((UnknownName, InvalidProblem), match=message):
            verify(Problem("softmax", x), output, **wrong)
    with pytest.raises(InvalidProblem, match="has no tolerance for float64"):
        verify(Problem("softmax", x), output.astype(np.float64), Gate("liger.ce"))
    with pytest.raises(InvalidProblem, match=r"output has shape \[4\]; for these logits it must be \[1, 4\]"):
        verify(Problem("softmax", x), output[0])
    with pytest.raises(InvalidProblem, match="has no bound"):
        verify(problem("cross_entropy", x), made("cross_entropy", x), Gate("bound", {"algorithm": "clipped"}))


def test_a_mean_error_is_held_against_that_of_a_reference():
    x = logits(4, 60, sigma=3)
    right = widen(certified(Problem("softmax", x), FORMATS["float64"]).rounded())
    reference, output = ((right * (1 + error)).astype(np.float32) for error in (1e-5, 3e-5))
    for factor, verdict in ((2.9, "fail"), (3.1, "pass")):
        gate = Gate("torch.flex_fudge", {"factor": factor})
        assert verify(Problem("softmax", x), output, gate, reference=reference).verdict == verdict
    gate = Gate("torch.flex_fudge", {"factor": 1.1})
    assert verify(Problem("softmax", x), right.astype(np.float32), gate, reference=output).verdict == "pass"
    zeros = verify(Problem("softmax", x), output, gate, reference=np.zeros_like(output))
    assert (zeros.verdict, zeros.findings[0].kind) == ("inconclusive", "vacuous")
    assert verify(Problem("softmax", x), output, gate, reference=np.full_like(output, NAN)).verdict == "inconclusive"
    assert verify(Problem("softmax", x), np.full_like(output, NAN), gate, reference=output).verdict == "fail"
    with pytest.raises(InvalidProblem, match="compares with the errors of a reference"):
        verify(Problem("softmax", x), output, gate)
    with pytest.raises(InvalidProblem, match="is for softmax, not for 'log_softmax'"):
        verify(Problem("log_softmax", x), output, gate, reference=output)
    with pytest.raises(InvalidProblem, match="needs factor"):
        verify(Problem("softmax", x), output, Gate("torch.flex_fudge"), reference=output)


def test_the_normwise_terms_of_blanchard_higham_and_higham_are_a_gate():
    """Relative to the largest of a row, so that small probabilities may be anything: that zeros pass below them is said."""
    x = logits(3, 40, sigma=3)
    right = certified(Problem("softmax", x), F32).rounded()
    gate = Gate("bhh.bound")
    assert verify(Problem("softmax", x), right, gate).verdict == "pass"
    most, u = widen(right).max(axis=1), 2.0**-24
    for times, verdict in ((0.99, "pass"), (1.01, "fail")):
        output = right.copy()
        output[1, np.argmin(right[1])] += np.float32(times * u * 43 * most[1])
        found = verify(Problem("softmax", x), output, gate)
        assert found.verdict == verdict
        assert found.gate.vacuous_fraction < 0.1
    total = certified(Problem("logsumexp", x), F32).rounded()
    for times, verdict in ((0.9, "pass"), (3.0, "fail")):
        output = total + np.float32(times * u) * (np.abs(total) + 41)
        assert verify(Problem("logsumexp", x), output, gate).verdict == verdict
    lax = Gate("bhh.bound", {"compute": "bfloat16", "factor": 10})
    assert verify(Problem("softmax", x), right, lax).findings[0].kind == "vacuous"
    with pytest.raises(InvalidProblem, match=r"bhh\.bound is for softmax and logsumexp"):
        verify(Problem("log_softmax", x), right, gate)


@pytest.mark.no_cover
@pytest.mark.parametrize("name", list(POLICIES))
def test_every_policy_judges(name):
    x = logits(1, 12)
    given = {key: {"ulps": 64.0, "rtol": 1e-2, "atol": 1e-3, "factor": 10.0}[key] for key in POLICIES[name].needs}
    output = made("softmax", x)
    assert verify(Problem("softmax", x), output, Gate(name, given), reference=output).verdict in ("pass", "inconclusive", "fail")
    assert verify(Problem("softmax", x), np.full_like(output, NAN), Gate(name, given), reference=output).verdict == "fail"
    for fmt, pair in POLICIES[name].pairs.items():
        tolerance = POLICIES[name].tolerance("softmax", FORMATS[fmt], {})
        assert (tolerance.relative, tolerance.absolute) == pair


def test_digests_are_of_what_was_posted():
    from engine import digest

    x = logits(2, 10)
    output = made("softmax", x)
    found = verify(Problem("softmax", x), output, reference=output)
    assert found.digests == {"logits": digest(x), "output": digest(output), "reference": digest(output)}


def test_class_indices_have_the_digest_of_int64_whatever_the_axis_and_integer_weights_their_own():
    from engine import digest

    x, y = logits(5, 3), np.eye(3, dtype=np.int64)[[0, 1, 2, 0, 1]]
    for op in ("cross_entropy", "cross_entropy_grad"):
        for kind in (np.int64, np.int32):
            told = Problem(op, x, np.array([4, 2, 0], kind))
            found = verify(told, np.zeros(3 if op == "cross_entropy" else (5, 3), np.float32), axis=0)
            assert list(found.digests) == ["logits", "output", "targets"]
            assert found.digests["targets"] == digest(np.array([4, 2, 0]))
        told = Problem(op, x, y)
        found = verify(told, np.zeros(5 if op == "cross_entropy" else (5, 3), np.float32))
        assert found.digests["targets"] == digest(y) != digest(y.astype(np.int32))


E4M3 = FORMATS["float8_e4m3fn"]


@pytest.mark.parametrize(("got", "verdict"), [(-448.0, "pass"), (np.nan, "pass"), (-416.0, "fail"), (448.0, "fail")])
def test_beside_overflow_to_nan_both_sides_are_right_and_nothing_else_is(got, verdict):
    """log p is -464 - 3e-202, which is NaN, and of which nothing but a longer arithmetic knows more than -464, which is -448."""
    x, y = np.array([[0.0, -464.0]], np.float32), np.array([[0.0, got]]).astype(E4M3.dtype)
    assert verify(Problem("log_softmax", x), y).verdict == verdict
    assert verify(Problem("log_softmax", x), y, Gate("bound", {"compute": "float64"})).verdict == verdict


@pytest.mark.parametrize(("logit", "wrong"), [(-462.0, np.nan), (-466.0, -448.0), (np.nan, -448.0)])
def test_a_little_farther_only_one_side_is(logit, wrong):
    problem = Problem("log_softmax", np.array([[0.0, logit]], np.float32))
    right = certified(problem, E4M3).rounded()
    assert verify(problem, right).verdict == "pass"
    assert verify(problem, np.where([False, True], np.array(wrong).astype(E4M3.dtype), right)).verdict == "fail"


def test_beside_overflow_params_leave_no_bound_to_excuse_anything():
    problem = Problem("log_softmax", np.array([[0.0, -1546.6667]], np.float32), params=Params(scale=0.3))
    found = verify(problem, np.array([[0.0, -448.0]]).astype(E4M3.dtype))
    assert found.metrics.special_mismatch == 1
    assert found.verdict == "fail"


def test_a_gate_is_tested_also_where_rows_are_ignored():
    from engine import Params

    told = Problem("cross_entropy", logits(3, 4), np.array([-100, 1, 2]), params=Params(ignore_index=-100, z_loss=0.5))
    output = verify(told, np.zeros(3, np.float32), include=["elements"]).truth
    found = verify(told, output, Gate("max_ulp", {"ulps": 1.0}))
    assert found.verdict == "pass"
    assert found.gate.self_test.caught == ("zeros", "uniform", "rolled", "negated", "half", "narrowed")


@pytest.mark.parametrize("op", ["cross_entropy", "cross_entropy_grad"])
def test_weights_that_add_up_to_more_than_binary64_holds_are_no_warning(op):
    told = Problem(op, np.array([[0.0, 0.0, -50.0]]), np.array([[1e308, 1e308, 0.0]]))
    found = verify(told, np.zeros(1 if op == "cross_entropy" else (1, 3)), Gate("max_ulp", {"ulps": 1.0}))
    assert (found.verdict, found.gate.self_test.caught[0]) == ("fail", "zeros")


@pytest.mark.parametrize("op", OPS)
def test_what_is_nearly_the_truth_is_infinite_where_that_is(op):
    x = np.array(
        [[-INF, 0.0, 1.5, -INF], [0.0, 1.0, 2.0, 3.0], [-INF, -INF, 2.0, -INF], [-INF] * 4, [INF, 0, 0, 1], [NAN, 0, 0, 0]]
    )
    weights = np.array([[0.5, 0.0, 0.5, 0.0], [0.25] * 4, [0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]])
    given = [np.array([0, 1, 2, 0, 0, 0]), weights, weights[::-1]] if op.startswith("cross_entropy") else [None]
    for targets in given:
        truth = Truth(Problem(op, x, targets, np.arange(24.0).reshape(6, 4) if op == "softmax_vjp" else None), F32)
        right = widen(truth.rounded()).reshape(6, -1)
        assert np.allclose(nearly(truth, range(6)), right, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_a_gate_that_lets_zeros_through_is_vacuous_beside_a_masked_logit_too():
    x = np.array([[-INF, 0.0, 1.5]], np.float32)
    told = Problem("log_softmax", x)
    found = verify(told, made("log_softmax", x), Gate("allclose", {"rtol": 0.0, "atol": 1e6}))
    assert (found.verdict, found.gate.self_test.missed[0]) == ("inconclusive", "zeros")
    assert verify(told, np.array([[-INF, 0.0, 0.0]], np.float32)).gate.self_test.caught


def test_a_nan_beside_an_infinity_is_no_warning():
    x = np.array([[np.inf, NAN, 1.0]]).astype(FORMATS["bfloat16"].dtype)
    assert verify(Problem("softmax", x), np.full((1, 3), NAN, np.float32), include=["argmax"]).verdict == "pass"


def test_the_invariant_of_the_argmax_is_of_the_rows_that_have_a_truth_with_these_params():
    from engine import Params

    def judged(params, x, **output):
        told = Problem("softmax", x, params=params)
        right = verify(told, np.zeros_like(x), Gate("max_ulp", {"ulps": 1e15}), include=["elements"]).truth
        for row in output.get("wrong", []):
            right[row] = right[row][::-1]
        return verify(told, right, include=["argmax"])

    x = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]], np.float32)
    gone = Params(scale=0.7, mask=np.array([[True] * 3, [False] * 3]))
    assert "argmax" not in kinds(judged(gone, x))
    x[0, 2] = np.inf  # which a softcap makes finite
    found = judged(Params(softcap=3.0), x, wrong=[0])
    assert "1 of 2 rows" in next(f.detail for f in found.findings if f.kind == "argmax")


def test_mutants_have_a_name_each_and_none_is_the_truth():
    assert set(mutants(F32)) == set(MUTANTS)
    assert "narrowed" not in mutants(FORMATS["float8_e5m2"])
    x = logits(3, 6)
    for op in OPS:
        truth = Truth(problem(op, x), F32)
        right = nearly(truth, range(3))
        exact = widen(truth.rounded()).reshape(right.shape)
        assert np.allclose(right, exact, rtol=1e-6)
        for name in MUTANTS:
            broken = MUTANTS[name](right, truth, range(3))
            assert broken.shape == right.shape
            assert name == "narrowed" or not np.allclose(broken, right, rtol=1e-3)


@pytest.mark.parametrize("sigma", [1e-3, 1.0])
def test_zeros_in_float16_are_not_excused_by_a_flush(sigma):
    x = logits(1, 128256, sigma=sigma, fmt="float16")  # truths around 2^-17, below the smallest normal number
    found = verify(Problem("softmax", x), np.zeros_like(x))
    assert found.verdict == "fail"


def test_tolerances_that_are_the_truth_or_half_an_ulp_exactly_are_decided():
    x = logits(2, 600, sigma=0.01)
    x[:, ::7] = -INF  # truths of 0 beside them
    truth = Truth(Problem("softmax", x), F32)
    output = truth.rounded()
    top = 2.0 ** np.floor(np.log2(widen(output).max()))
    own = Tolerance((Declared("softmax/shifted", "float32", "float32", "float32", "parallel", 2.0, 2.0, 3),), ulps=0.5)
    for judge in (Tolerance(relative=1.0), Tolerance(absolute=top * 2.0**-24), Tolerance(absolute=top * 2.0**-25)):
        survey = Survey(output, Truth(truth.problem, F32), allowances=Allowances(truth, own, judge), gated=True)
        assert survey.tolerated() == Measurement(output, truth, Allowances(truth, own, judge)).tolerated()


def test_results_beyond_binary64_are_infinite_nearly():
    x = np.array([[1.7e308, -1.7e308]])
    assert nearly(Truth(Problem("log_softmax", x), FORMATS["float64"]), range(1)).tolist() == [[0.0, -INF]]


def test_params_without_a_bound_leave_the_default_gate_inconclusive():
    from engine import Params

    x = logits(1, 8)
    told = Problem("softmax", x, params=Params(scale=0.3))
    output = verify(told, made("softmax", x), Gate("max_ulp", {"ulps": 1e15}), include=["elements"]).truth
    found = verify(told, output)
    assert (found.verdict, kinds(found)[0]) == ("inconclusive", "unbounded")
    assert "no bound is known with these params" in said(found)
