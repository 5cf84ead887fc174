"""Which tolerance to use: attacked with rows of every kind."""

from math import inf

import numpy as np
import pytest

from engine import Gate, InvalidProblem, Params, Problem, UnknownName, bounds, evaluate, verify
from engine.arithmetic import Arithmetic
from engine.bounds import REFERENCE, Allowed, Tolerance, numpy_ulps
from engine.formats import FORMATS, round_array, widen
from engine.model import Axes
from engine.ops import OPS
from engine.policies import POLICIES
from engine.summation import SUMMATIONS
from engine.tolerances import _KINDS, LONGEST, estimate_tolerance, tolerance
from engine.truth import certified, fast
from engine.variants import VARIANTS
from tests.engine.test_bounds import _Known, _logits

EVERY_ROW = list(_KINDS)
UP = 2.0**-fast.UP


# ---- the attack ------------------------------------------------------------------------------------------------------


def rows_of(rng, n):
    """Rows that use much of what is said of every row, or are hard in another way."""
    kind, rows = int(rng.integers(0, 8)), 1 if n > 2000 else 6
    if kind < 3:
        return _logits(rng, rows, n)
    far = np.log(n) * rng.uniform(0, 2) if kind < 6 else 10.0 ** rng.uniform(-2, 2.9)
    x = np.full((rows, n), -far)
    if kind == 4:  # exponentials of every size down to the smallest
        x = -rng.uniform(0, 1, (rows, n)) * rng.choice([far, 9.7, 17.4, 103.9, 745])
    if kind == 7:  # half the row
        x = np.where(np.arange(n) < n // 2, 0.0, x)
    x[np.arange(rows), rng.integers(0, n, rows)] = 0.0
    return x + float(rng.choice([0, 0, 1, -30, 700]))


def drawn(rng, widths):
    """An op, the formats of output and arithmetic, a width, and what else is declared."""
    op, compute, output = str(rng.choice(EVERY_ROW)), str(rng.choice(list(FORMATS))), str(rng.choice(list(FORMATS)))
    summation = str(rng.choice(["parallel", *SUMMATIONS]))
    exp, known = str(rng.choice(["numpy", "correct", "exp2"])), numpy_ulps(FORMATS[compute])
    given = {"compute": compute, "exp": exp, "subnormals": str(rng.choice(["gradual", "flush"]))}
    given["exp_ulp"] = (known if exp == "numpy" else 0.5) * float(rng.choice([1, 1, 1, 3, 30]))
    given["log_ulp"] = known * float(rng.choice([1, 1, 1, 3, 30]))
    given |= {"accumulator": str(rng.choice(list(FORMATS)))} if rng.random() < 0.3 else {}
    n = int(rng.choice(widths))
    slow = n > 2000 and (summation == "exact" or compute == "float64" or given.get("accumulator") == "float64")
    return op, output, n, {**given, "summation": "numpy" if slow else summation}


def used(op, output, n, given, rng):
    """What part of the answer for every row is used, on drawn rows: by the bounds of these rows, by those in ULPs, and by errors
    of the algorithm itself."""
    found, compute = tolerance(op, output, n, given), FORMATS[given["compute"]]
    if found.rtol == inf:
        return 0.0, 0.0, 0.0
    extra = rng.integers(0, n, 1 if n > 2000 else 6) if "targets" in OPS[op].tensors else None
    x = rows_of(rng, n)
    known = _Known(op, round_array(np.clip(x, -compute.largest, compute.largest), compute), extra)
    if not known.rows:
        return 0.0, 0.0, 0.0
    x, extra = known.of(slice(None))
    (k,) = POLICIES["bound"].tolerance(op, FORMATS[output], POLICIES["bound"].check(given)).declared
    hi, lo, radius = known.truth
    b = Allowed([Tolerance((k,))], x, extra).part(0, 0, hi.shape[1])
    size = np.abs(hi) * UP
    room, some = found.rtol * size + found.atol, np.isfinite(b) & np.isfinite(size)
    fmt = FORMATS[output]
    ulp = 2.0 ** (np.maximum(np.frexp(size)[1] - 1, fmt.emin) - fmt.precision + 1.0)
    ulps = 0.0 if found.ulp is None else (b[some] / (found.ulp * ulp[some])).max(initial=0)
    return float((b[some] / room[some]).max(initial=0)), float(ulps), errors(op, given, x, extra, k, (hi, lo, radius), room, some)


def errors(op, given, x, extra, k, truth, room, some):
    """The largest part of that room that the algorithm takes."""
    if given["summation"] == "parallel" or x.size > 1 << 18:
        return 0.0
    hi, lo, radius = truth
    axes = Axes(given.get("accumulator"), given["exp"], given["subnormals"], output_format=k.output)
    arithmetic, run = Arithmetic(FORMATS[k.format], given["summation"], axes=axes), VARIANTS[bounds.reference(op)].run
    c = widen(arithmetic.deliver(run(x, k=arithmetic) if extra is None else run(x, extra, arithmetic)).reshape(len(x), -1))
    with np.errstate(all="ignore"):
        off = np.abs((c * 2.0**fast.UP - hi) - lo) + radius * (1 + 2.0**-20) + 2.0**-960
        part = np.where(some & (np.abs(c) < 2.0**400), off / room * UP, 0.0)
    return float(part.max())


def attack(seed, widths):
    rng = np.random.default_rng(seed)
    case = drawn(rng, widths)
    return used(*case, rng), (seed, *case)


@pytest.mark.parametrize("part", range(4))
def test_what_is_said_of_every_row_is_not_exceeded_by_the_bound_or_the_errors_of_any(part):
    most = [0.0, 0.0, 0.0]
    for seed in range(200 * part, 200 * part + 200):
        found, case = attack(seed, (1, 1, 2, 2, 3, 17, 130, 1000))
        assert max(found) <= 1, (found, case)
        most = [max(pair) for pair in zip(most, found, strict=True)]
    assert min(most) > 0.5  # of what is said much is used


@pytest.mark.soak
def test_it_is_not_in_a_hundred_thousand():
    for seed in range(10**6, 10**6 + 100_000):
        found, case = attack(seed, (1, 1, 2, 2, 3, 17, 130, 1000, *([128256] if seed % 50 == 0 else [])))
        assert max(found) <= 1, (found, case)


# ---- what is answered ------------------------------------------------------------------------------------------------


def test_a_softmax_over_a_vocabulary_is_not_let_through_when_it_is_empty():
    """Where torch.testing.assert_close lets zeros pass: 128256 probabilities of 7.8e-6."""
    found = tolerance("softmax", "float32", 128256)
    assert found.atol < 1e-40
    assert 1e-5 < found.rtol < 3e-5
    assert 355 < found.ulp < 360
    assert not found.zeros_pass
    assert found.typical == 1 / 128256
    assert (found.rows, found.self_test) == (None, None)


def test_the_gradient_of_a_loss_over_a_vocabulary_has_a_tolerance_that_tells_it_from_0():
    found = tolerance("cross_entropy_grad", "bfloat16", 128256)
    assert 0.5 < found.missed < 1
    assert not found.zeros_pass
    assert tolerance("cross_entropy_grad", "bfloat16", 10**6).missed > 1  # of a million classes none does
    assert (tolerance("cross_entropy_grad", "float32", 1).typical, tolerance("softmax", "float32", 1).typical) == (0.0, 1.0)


@pytest.mark.parametrize("compute", ["float64", "float32"])
def test_what_is_correctly_rounded_is_always_inside(compute):
    found = tolerance("softmax", "float32", 10, {"factor": 0.0, "compute": compute})
    assert (found.rtol, found.atol, found.ulp) == (2.0**-24, 2.0**-150, 1.5)


@pytest.mark.parametrize("op", EVERY_ROW)
def test_one_logit(op):
    found = tolerance(op, "float32", 1)
    assert found.rtol < 1e-6
    assert found.missed == inf or op == "softmax"


@pytest.mark.parametrize("fmt", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("op", [*OPS])
def test_of_given_logits_every_right_implementation_is_inside_and_the_largest_error_is_reached(op, fmt):
    rng = np.random.default_rng(len(op))
    x = rng.standard_normal((2, 20)).astype(np.float32) * 4
    targets = rng.integers(0, 20, 2) if "targets" in OPS[op].tensors else None
    grad = rng.standard_normal(x.shape).astype(np.float32) if "grad_output" in OPS[op].tensors else None
    problem = Problem(op, x, targets, grad)
    found = tolerance(op, fmt, None, None, problem)
    gate = Gate("allclose", {"rtol": found.rtol, "atol": found.atol})
    truth = certified(problem, FORMATS[fmt])
    assert verify(problem, truth.rounded(), gate).verdict == "pass"
    assert verify(problem, truth.rounded(), Gate("max_ulp", {"ulps": found.ulp})).verdict == "pass"
    output = evaluate(problem, ["float32"], [REFERENCE[op]], include=["values"]).outcomes[0].values
    assert verify(problem, round_array(output, FORMATS[fmt]), gate).verdict == "pass"
    assert found.self_test.missed == ()
    assert not found.zeros_pass
    assert found.rows == 2


def test_what_lets_zeros_through_says_so():
    found = tolerance("softmax", "float8_e4m3fn", None, None, Problem("softmax", np.zeros((1, 1200))))  # 1/1200 is nearer to 0
    assert found.zeros_pass
    assert found.self_test.equivalent
    problem = Problem("softmax", np.zeros((1, 5000), np.float32))
    none = tolerance("softmax", "float32", None, {"compute": "float8_e5m2"}, problem)
    assert (none.rtol, none.atol, none.ulp, none.zeros_pass, none.self_test) == (inf, inf, None, True, None)


def test_just_below_a_power_of_2_an_ulp_is_half_as_large():
    near, equal = (tolerance("softmax", "float32", None, None, Problem("softmax", np.array([[0.0, far]]))) for far in (1e-19, 0))
    assert near.ulp == pytest.approx(near.rtol * 2**24)
    assert equal.ulp == pytest.approx(equal.rtol * 2**23)
    half = tolerance("softmax", "float32", None, {"factor": 0.0}, Problem("softmax", np.zeros((3, 1024))))
    assert half.ulp == pytest.approx(0.5)


def test_rows_without_a_truth_are_left_out():
    x = np.array([[np.nan, 1, 2], [0, 1, 2]], np.float32)
    assert tolerance("softmax", "float32", 3, None, Problem("softmax", x)).rtol == (
        tolerance("softmax", "float32", 3, None, Problem("softmax", x[1:])).rtol
    )
    with pytest.raises(InvalidProblem, match="no element of these logits has a truth"):
        tolerance("softmax", "float32", None, None, Problem("softmax", x[:1]))


def test_where_theory_allows_anything_zeros_pass():
    x = Problem("softmax", np.array([[0.0, -1.0, -np.inf]]))
    for found in (
        tolerance("softmax", "float64", None, {"compute": "float16", "exp_ulp": 1e6}, x),
        tolerance("log_softmax", "float64", 1, {"compute": "float8_e5m2", "exp_ulp": 1e6}),
        tolerance("log_softmax", "float8_e4m3fn", None, None, Problem("log_softmax", np.array([0.0, 10000.0]))),
        tolerance("softmax", "float64", None, {"compute": "float16", "exp_ulp": 1e6, "factor": 0.0}, x),
    ):
        assert (found.atol, found.zeros_pass, found.ulp) == (np.inf, True, None)


def test_more_ulp_than_there_are_numbers_are_none():
    problem = Problem("softmax_vjp", np.array([0.0, 10000.0]), grad_output=np.array([0.0, 1.0]))
    found = tolerance("softmax_vjp", "float64", None, {"compute": "float16"}, problem)
    assert found.atol < np.inf
    assert found.ulp is None


def test_what_cannot_be_answered_is_refused():
    x = Problem("softmax", np.zeros((2, 3)))
    for arguments, error, said in (
        (("max", "float32", 3), UnknownName, "unknown op"),
        (("softmax", "float17", 3), UnknownName, "float17"),
        (("softmax", "float32"), InvalidProblem, "n is missing"),
        (("softmax", "float32", 0), InvalidProblem, "n is 0"),
        (("softmax", "float32", LONGEST + 1), InvalidProblem, "16777216"),
        (("softmax_vjp", "float32", 3), InvalidProblem, "give the logits and grad_output"),
        (("softmax_jacobian", "float32", 3), InvalidProblem, "give the logits"),
        (("softmax", "float32", 3, {"algorithm": "online"}), InvalidProblem, "leave out algorithm"),
        (("softmax", "float32", 3, {"compute": "float17"}), InvalidProblem, "float17"),
        (("softmax", "float32", 4, None, x), InvalidProblem, "rows of 3"),
        (("softmax", "float32", None, None, Problem("softmax", x.logits, params=Params(sink=0.0))), InvalidProblem, "params"),
    ):
        with pytest.raises(error, match=said):
            tolerance(*arguments)


def test_an_algorithm_can_be_declared_of_given_logits():
    problem = Problem("softmax", np.random.default_rng(1).standard_normal((3, 200)).astype(np.float32))
    online = tolerance("softmax", "float32", None, {"algorithm": "online"}, problem)
    assert online.rtol > tolerance("softmax", "float32", None, None, problem).rtol
    assert online.declared["algorithm"] == "online"
    assert estimate_tolerance(problem, "float32") > 0
