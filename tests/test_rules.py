"""Verdicts beside those of the rules alone (tests/naive.py), on problems, outputs and gates by seed. The full count is soaked."""

import itertools
from collections import Counter

import numpy as np
import pytest

from engine import FORMATS, Gate, Problem, generate, outcome, round_array, verify
from engine.inputs import FAMILIES
from engine.mutants import mutate
from engine.policies import POLICIES
from engine.truth import Truth, nearly
from tests.naive import DEMANDS, PAIRS, REFERENCES, Near, fates, judge, posted

pytestmark = pytest.mark.no_cover


def compared(seed):
    """What verify says of a case, by the fast tiers and by the exact path, having compared that, and what it says of the mutants,
    with the rules; None: too near to tell."""
    case = posted(seed)
    try:
        wanted = judge(case.problem, case.output, case.gate, case.nonfinite, case.reference)
    except Near:
        return None
    for fewest in (1, 512):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(outcome, "FAST_FROM", fewest)
            found = verify(case.problem, case.output, case.gate, case.nonfinite, case.reference)
        assert found.verdict == wanted, (str(case), fewest, wanted, found.verdict, found.findings)
    if seed % 8 == 0 and case.gate.policy not in (*REFERENCES, "bhh.bound") and case.nonfinite in ("ieee", "strict"):
        test = found.gate.self_test
        told = {name: kind for kind in ("caught", "missed", "equivalent") for name in getattr(test, kind)}
        assert told == fates(case.problem, case.output, case.gate), str(case)
    return wanted, case.gate.policy


@pytest.mark.parametrize("part", range(4))
def test_verdicts_are_those_of_the_rules(part):
    counts = Counter(compared(seed) for seed in range(9 * part, 9 * part + 9))
    assert {found[0] for found in counts if found} == {"pass", "fail", "inconclusive"}
    assert counts[None] < 3


@pytest.mark.soak
def test_twenty_thousand_verdicts_are_those_of_the_rules():
    counts = Counter(compared(seed) for seed in range(10**6, 10**6 + 20_000))
    assert {policy for found in counts if found for policy in found[1:]} == set(POLICIES)


FIVE = ("zeros", "uniform", "rolled", "negated", "half")


def mutated(family, op, fmt, n):
    """Verdicts of the five mutants of a row of a family that are none of the truth. What is equivalent is so in exact fractions."""
    problem = Problem(op, round_array(generate(family, 1, n, 0), FORMATS[fmt]))
    truth = Truth(problem, FORMATS[fmt])
    right, found = nearly(truth, range(1)), {}
    for name in FIVE:
        output = mutate(name, right, truth, range(1))
        told = verify(problem, output)
        if name in told.gate.self_test.equivalent:
            assert n > 1000 or fates(problem, output, Gate(), [name]) == {name: "equivalent"}
        else:
            found[name] = told.verdict
    return found


@pytest.mark.parametrize("family", list(FAMILIES))
def test_mutants_of_every_family_fail(family):
    """But of logits that differ by an ulp, of which uniform and rolled ones are nearly right."""
    for op, fmt in (("softmax", "float16"), ("log_softmax", "float32")):
        near = FIVE[1:3] if family == "near_exp_limit" else ()
        assert {verdict for name, verdict in mutated(family, op, fmt, 6).items() if name not in near} <= {"fail"}


@pytest.mark.soak
@pytest.mark.parametrize("n", [2, 3, 17, 1000, 32000, 128256])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_mutants_of_every_family_fail_at_any_length(family, n):
    for op, fmt in itertools.product(("softmax", "log_softmax"), ("float16", "bfloat16", "float32", "float64")):
        for name, verdict in mutated(family, op, fmt, n).items():
            near = family in ("near_exp_limit", "offset") and name in FIVE[1:3] and verdict == "inconclusive"
            assert verdict == "fail" or near, (op, fmt, name, verdict)


def test_every_policy_has_its_rule_here():
    assert {*DEMANDS, *REFERENCES, *PAIRS, "bound", "allclose", "bhh.bound"} == set(POLICIES)
    assert {name: dict(row.pairs) for name, row in POLICIES.items() if row.pairs} == PAIRS


@pytest.mark.parametrize(
    ("op", "x", "right"),
    [("softmax", [1, -1e6], [1.0, 0.0]), ("logsumexp", [1, -1e6], 1.0), ("log_softmax", [1, -1e3], [0.0, -1001.0])],
)
def test_a_tolerance_of_nothing_is_exceeded_by_a_truth_that_is_nearly_a_number(op, x, right):
    """The truth is beside that number by e^-1000 and less, and no precision tells that apart from it."""
    problem, output = Problem(op, np.array([x], np.float32)), np.array([right], np.float32)
    assert verify(problem, output, Gate("max_ulp", {"ulps": 0.0})).verdict == "fail"
    assert verify(problem, output, Gate("allclose", {"rtol": 0.0, "atol": 0.0})).verdict == "inconclusive"
    assert verify(problem, output, Gate("correctly_rounded")).verdict == "pass"


@pytest.mark.parametrize(("step", "verdict"), [(np.inf, "pass"), (0.0, "fail")])
@pytest.mark.parametrize(("other", "rows"), [(-1e6, 1), (-16.0, 1), (-16.0, 600)])
def test_faithful_is_one_of_the_two_neighbours(other, rows, step, verdict):
    """log(e + e^-16) lies a third of an ulp above 1, the number below 1 less than one off; log(e + e^-1000000) is nearly 1."""
    output = np.full(rows, np.nextafter(np.float32(1), np.float32(step)))
    x = np.full((rows, 2), [1, other], np.float32)
    assert verify(Problem("logsumexp", x), output, Gate("faithful")).verdict == verdict


def test_errors_too_small_to_be_seen_are_beyond_a_tolerance_of_nothing():
    """By the fast tiers, for which c - T is 0 there."""
    x = np.zeros((2, 300), np.float32)
    x[:, 3] = 1e4
    problem, output = Problem("softmax", x), np.float32(x > 0)
    assert verify(problem, output, Gate("correctly_rounded")).verdict == "pass"
    assert verify(problem, output, Gate("max_ulp", {"ulps": 1e-9})).verdict == "pass"
    assert verify(problem, output, Gate("max_ulp", {"ulps": 0.0})).verdict == "fail"
