"""Which tolerance to use: attacked with rows of every kind."""

from math import inf

import numpy as np
import pytest

from engine import Gate, InvalidProblem, Params, Problem, UnknownName, evaluate, verify
from engine.bounds import REFERENCE, Tolerance, allowed
from engine.formats import FORMATS, round_array
from engine.ops import OPS
from engine.policies import POLICIES
from engine.tolerances import _KINDS, LONGEST, estimate_tolerance, tolerance
from engine.truth import certified, nearly

EVERY_ROW = list(_KINDS)
COMPUTED = ("float16", "bfloat16", "float32", "float64", "float8_e5m2")
KINDS = {
    "gaussian": lambda rng, n: rng.standard_normal((4, n)) * 10.0 ** rng.uniform(-2, 4),
    "equal": lambda rng, n: np.full((1, n), rng.choice((0.0, -3.5, 200.0))),
    "one ahead": lambda rng, n: np.where(np.arange(n) == rng.integers(n), 0.0, -(10.0 ** rng.uniform(-2, 4))) * np.ones((1, 1)),
    "tails": lambda rng, n: np.where(np.arange(n) == rng.integers(n), 0.0, -rng.uniform(0, 110, (4, n))),
    "offset": lambda rng, n: rng.standard_normal((4, n)) + rng.choice((-1, 1)) * 10.0 ** rng.uniform(0, 4),
    "half": lambda rng, n: np.where(np.arange(n) < n // 2, 0.0, -(10.0 ** rng.uniform(0, 2.5))) * np.ones((1, 1)),
}


def problem_of(op, x, rng):
    return Problem(op, x, rng.integers(0, x.shape[1], len(x)) if "targets" in OPS[op].tensors else None)


def exceeded(op, compute, output, n, kind, given, rng):
    """The largest bound of single rows over what is said of every row, and over the ULPs."""
    fmt = FORMATS[output]
    held = FORMATS[compute if compute != "float8_e5m2" else "float16"]
    x = round_array(np.clip(KINDS[kind](rng, n), -held.largest, held.largest), held)
    problem = problem_of(op, x, rng)
    declared = {"compute": compute, **given}
    found = tolerance(op, output, n, declared)
    if found.rtol == inf:
        return 0.0
    chosen = POLICIES["bound"].tolerance(op, fmt, POLICIES["bound"].check(declared))
    truth, most = certified(problem, fmt), 0.0
    for row in range(truth.rows):
        size = np.abs(nearly(truth, range(row, row + 1))[0])
        b = allowed((Tolerance(chosen.declared),), truth.raw_logits[row], truth.companion(row), truth.width)[0]
        some = np.isfinite(size) & np.isfinite(b)
        room = found.rtol * size + found.atol
        most = max([most, *(b[some] / room[some]).tolist()])
        if found.ulp is not None:
            ulp = 2.0 ** (np.maximum(np.frexp(size)[1] - 1, fmt.emin) - fmt.precision + 1.0)
            most = max([most, *(b[some] / (ulp[some] * found.ulp)).tolist()])
    return most


def attack(seed):
    rng = np.random.default_rng(seed)
    op, kind = str(rng.choice(EVERY_ROW)), str(rng.choice(list(KINDS)))
    compute, output = (str(name) for name in rng.choice(COMPUTED, 2))
    n = int(rng.choice((1, 2, 3, 17, 130, 1000)))
    given = {
        "subnormals": str(rng.choice(("gradual", "flush"))),
        "summation": str(rng.choice(("parallel", "sequential", "pairwise"))),
    }
    given |= {"exp": str(rng.choice(("exp2", "correct")))}
    case = (op, compute, output, n, kind, given)
    return exceeded(*case, rng), case


@pytest.mark.parametrize("part", range(8))
def test_what_is_said_of_every_row_is_not_exceeded_by_the_bound_of_any(part):
    for seed in range(100 * part, 100 * part + 100):
        over, case = attack(seed)
        assert over <= 1, (seed, over, case)


@pytest.mark.soak
def test_it_is_not_in_a_hundred_thousand():
    worst = max((attack(seed) for seed in range(10**6, 10**6 + 100_000)), key=lambda found: found[0])
    assert worst[0] <= 1


def test_a_softmax_over_a_vocabulary_is_not_let_through_when_it_is_empty():
    """Where torch.testing.assert_close lets zeros pass: 128256 probabilities of 7.8e-6."""
    found = tolerance("softmax", "float32", 128256)
    assert found.atol < 1e-40
    assert 1e-5 < found.rtol < 3e-5
    assert 500 < found.ulp < 600
    assert not found.zeros_pass
    assert found.typical == 1 / 128256
    assert (found.rows, found.self_test) == (None, None)


def test_the_gradient_of_a_loss_over_a_vocabulary_cannot_be_gated_by_rtol_and_atol():
    found = tolerance("cross_entropy_grad", "bfloat16", 128256)
    assert found.missed > 1
    assert not found.zeros_pass  # at the target it is nearly 1


@pytest.mark.parametrize("op", EVERY_ROW)
def test_one_logit(op):
    found = tolerance(op, "float32", 1)
    assert found.rtol < 1e-6
    assert found.missed == inf or op in ("softmax", "cross_entropy_grad")


@pytest.mark.parametrize("fmt", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("op", [*OPS])
def test_of_given_logits_every_right_implementation_is_inside_and_the_largest_error_is_reached(op, fmt):
    rng = np.random.default_rng(len(op))
    x = rng.standard_normal((5, 30)).astype(np.float32) * 4
    targets = rng.integers(0, 30, 5) if "targets" in OPS[op].tensors else None
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
    assert found.rows == 5


def test_what_lets_zeros_through_says_so():
    found = tolerance("softmax", "float8_e4m3fn", None, None, Problem("softmax", np.zeros((1, 1200))))  # 1/1200 is nearer to 0
    assert found.zeros_pass
    assert found.self_test.equivalent
    problem = Problem("softmax", np.zeros((1, 5000), np.float32))
    none = tolerance("softmax", "float32", None, {"compute": "float8_e5m2"}, problem)
    assert (none.rtol, none.atol, none.ulp, none.zeros_pass, none.self_test) == (inf, inf, None, True, None)


def test_rows_without_a_truth_are_left_out():
    x = np.array([[np.nan, 1, 2], [0, 1, 2]], np.float32)
    assert tolerance("softmax", "float32", 3, None, Problem("softmax", x)).rtol == (
        tolerance("softmax", "float32", 3, None, Problem("softmax", x[1:])).rtol
    )
    with pytest.raises(InvalidProblem, match="no element of these logits has a truth"):
        tolerance("softmax", "float32", None, None, Problem("softmax", x[:1]))


def test_what_cannot_be_answered_is_refused():
    x = Problem("softmax", np.zeros((2, 3)))
    for arguments, error, said in (
        (("max", "float32", 3), UnknownName, "unknown op"),
        (("softmax", "float17", 3), UnknownName, "float17"),
        (("softmax", "float32"), InvalidProblem, "n is None"),
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
