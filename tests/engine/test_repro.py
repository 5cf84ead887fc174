"""The smallest case that has the verdict: what is kept, what is dropped, and that both rules hold."""

from dataclasses import replace
from decimal import Decimal, getcontext

import numpy as np
import pytest

from engine import FORMATS, Gate, Params, Problem, Undecided, certify, minimise, round_array, verify
from engine import repro as module

INF, NAN = float("inf"), float("nan")
F32 = FORMATS["float32"]
OPS = ("softmax", "log_softmax", "logsumexp", "cross_entropy", "cross_entropy_grad", "softmax_vjp", "softmax_jacobian")
getcontext().prec = 60


@pytest.fixture(autouse=True)
def undiagnosed(monkeypatch):
    """Verdicts without a diagnosis, which takes most of their time and is not looked at here."""
    monkeypatch.setattr("engine.verdict.findings", lambda _: [])


def logits(rows, n, sigma=3.0, seed=0):
    return round_array(np.random.default_rng(seed).standard_normal((rows, n)) * sigma, F32)


def problem(op, x, seed=0, params=None):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, x.shape[-1], x.shape[:-1]) if op.startswith("cross") else None
    g = round_array(rng.standard_normal(x.shape), F32) if op == "softmax_vjp" else None
    return Problem(op, x, targets, g, *([] if params is None else [params]))


def right(given):
    return certify(given, "float32").rounded


def one_wrong(y):
    wrong = y.copy()
    at = np.unravel_index(int(np.argmax(np.abs(wrong[-1]))), wrong[-1].shape) if wrong[-1].shape else ()
    wrong[(-1, *at)] *= np.float32(1.25)
    return wrong


def special(y):
    wrong = y.copy()
    wrong.reshape(-1)[-1] = NAN
    return wrong


FAILURES = {"special": special, "zeros": np.zeros_like, "one": one_wrong, "scaled": lambda y: y * np.float32(1.5)}


def judged(case, found):
    """The verdict on a case, asked for as anyone would."""
    gate = Gate(found.gate.policy, found.gate.parameters)
    return verify(case.problem, case.output, gate, found.nonfinite, case.reference, case.outputs)


def moved_little(given, repro):
    """The truth of the first element, in the case and in what was posted, at least 40 digits of each."""
    first = repro.elements[0]
    true, now = (np.array(certify(p, "float32", 40).decimal) for p in (given, repro.case.problem))
    before, after = Decimal(str(true[first.posted])), Decimal(str(now[first.index]))
    assert abs(after - Decimal(first.truth)) <= abs(after) * Decimal("1e-24")
    error = abs(before) if first.got in ("NaN", "Infinity", "-Infinity") else abs(Decimal(first.got) - before)
    return abs(after - before) <= error / 8


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("op", OPS)
def test_the_verdict_holds_and_the_truth_of_the_worst_element_with_it(op, failure):
    given = problem(op, logits(2, 5))
    output = FAILURES[failure](right(given))
    found = verify(given, output)
    assert found.verdict == "fail"
    repro = minimise(given, output, found)
    case = repro.case
    assert judged(case, found).verdict == "fail"
    assert (repro.minimal, repro.n, len(case.rows)) == (True, 5, 1)
    assert moved_little(given, repro)
    assert list(case.columns) == sorted(case.columns)
    assert np.array_equal(case.problem.logits, given.logits[np.ix_(case.rows, case.columns)])
    kept = output[case.rows]
    for axis in range(1, kept.ndim):
        kept = np.take(kept, case.columns, axis)
    assert np.array_equal(case.output, kept, equal_nan=True)
    if given.targets is not None:
        assert case.columns[case.problem.targets] == given.targets[case.rows]
    if given.grad_output is not None:
        assert np.array_equal(case.problem.grad_output, given.grad_output[np.ix_(case.rows, case.columns)])
    for wrong in repro.elements:
        got = output[wrong.posted]
        assert (wrong.got == "NaN") if np.isnan(got) else (Decimal(wrong.got) == Decimal(float(got)))


@pytest.mark.parametrize("failure", ["special", "zeros", "one"])
def test_no_column_more_can_be_dropped(failure):
    given = problem("softmax", logits(1, 40))
    output = FAILURES[failure](right(given))
    found = verify(given, output)
    repro = minimise(given, output, found)
    columns = repro.case.columns
    assert 1 < len(columns) < 40
    assert repro.note.startswith(f"row 0, {40 - len(columns)} of 40 columns dropped; the verdict holds, and the truth of the worst")
    assert repro.note.endswith("itself" if failure == "special" else "its error")
    for gone in set(columns) - {repro.elements[0].posted[1]}:
        less = columns[columns != gone]
        cut = Problem("softmax", given.logits[:, less])
        first = int(np.searchsorted(less, repro.elements[0].posted[1]))
        element = replace(repro.elements[0], index=(0, first), truth=certify(cut, "float32", 25).decimal[0][first])
        case = replace(repro.case, problem=cut, output=output[:, less])
        near = moved_little(given, replace(repro, elements=(element,), case=case))
        assert not near or verify(cut, output[:, less]).verdict != "fail"


def test_a_pass_has_nothing_to_take_home():
    given = problem("softmax", logits(1, 4))
    found = verify(given, right(given))
    repro = minimise(given, right(given), found)
    assert (repro.case, repro.note) == (None, "the verdict is pass: nothing is minimised")


def test_one_column_and_all_elements_wrong():
    for x in (np.zeros(1, np.float32), np.zeros((1, 1), np.float32), np.zeros((2, 3, 1), np.float32)):
        given = Problem("softmax", x)
        repro = minimise(given, x, verify(given, x))
        assert (repro.case.problem.logits.shape, repro.minimal) == ((1, 1), True)
        assert "whole: none of its 1 columns can be dropped" in repro.note
        assert repro.elements[0].posted == (0,) * x.ndim
        assert (repro.elements[0].got, repro.elements[0].truth[:3]) == ("0", "1.0")


def test_a_nan_keeps_the_logit_that_made_it():
    x = logits(1, 30)
    x[0, 17] = NAN
    given = Problem("softmax", x)
    repro = minimise(given, np.zeros_like(x), verify(given, np.zeros_like(x)))
    assert list(repro.case.columns) == [0, 17]
    assert repro.elements[0].truth == "NaN"


def test_what_overflowed_in_a_sum_still_does():
    x = np.full((1, 64), 12.0, np.float16)
    given = Problem("softmax", x)
    output = np.zeros_like(x)
    output[:] = NAN
    assert len(minimise(given, output, verify(given, output)).case.columns) in (57, 58)  # 8/9 of the sum


@pytest.mark.parametrize("got", [0.5, NAN])
def test_a_truth_beyond_any_float_is_compared_without_writing_it_out(got):
    x = np.array([[0, -1e30]], np.float32)
    given = Problem("softmax", x)
    output = np.array([[1, got]], np.float32)
    repro = minimise(given, output, verify(given, output))
    assert list(repro.case.columns) == [0, 1]
    assert repro.elements[0].posted == (0, 1)


@pytest.mark.parametrize("nonfinite", ["masked_zero", "masked_uniform", "strict"])
def test_a_masked_row(nonfinite):
    x = np.zeros((2, 4), np.float32)
    x[1] = -INF
    given = Problem("softmax", x)
    output = np.full((2, 4), 0.25, np.float32)
    if nonfinite == "masked_uniform":
        output[1] = 0
    found = verify(given, output, nonfinite=nonfinite)
    repro = minimise(given, output, found)
    assert found.verdict == "fail"
    assert repro.case.rows == [1]
    assert len(repro.case.columns) == 1
    assert judged(repro.case, found).verdict == "fail"


def test_the_axis_that_is_reduced_may_be_any():
    x = logits(6, 5)
    x3 = np.ascontiguousarray(x.reshape(2, 3, 5).transpose(0, 2, 1))  # (2, 5, 3), axis 1 reduced
    given = Problem("softmax", x3)
    output = np.ascontiguousarray(right(Problem("softmax", x.reshape(2, 3, 5))).transpose(0, 2, 1))
    output[1, 3, 2] *= 2
    found = verify(given, output, axis=1)
    repro = minimise(given, output, found, axis=1)
    assert list(repro.case.rows) == [5]
    first = repro.elements[0]
    assert first.posted == (1, 3, 2)
    assert np.array_equal(repro.case.problem.logits[0], x3[1, repro.case.columns, 2])
    assert repro.case.output[first.index] == output[first.posted]
    loss = Problem("logsumexp", x3)
    values = np.zeros((2, 3), np.float32)
    assert len(minimise(loss, values, verify(loss, values, axis=1), axis=1).elements[0].posted) == 2


PARAMS = {
    "mask of a row": ("softmax", lambda x: Params(mask=np.arange(x.shape[1]) % 2 == 0)),
    "mask": ("cross_entropy", lambda x: Params(mask=np.ones_like(x, bool))),
    "weights": ("cross_entropy", lambda x: Params(weights=np.linspace(0.5, 2, x.shape[1]))),
    "ignored": ("cross_entropy_grad", lambda _: Params(ignore_index=0)),
    "mean": ("cross_entropy", lambda _: Params(ignore_index=1, reduction="mean")),
    "sum": ("logsumexp", lambda _: Params(reduction="sum")),
    "gradient of a mean": ("cross_entropy_grad", lambda _: Params(reduction="mean")),
    "capped": ("log_softmax", lambda _: Params(softcap=4.0)),
}


@pytest.mark.parametrize("name", PARAMS)
def test_params_are_dropped_with_their_columns(name):
    op, make = PARAMS[name]
    x = logits(3, 9)
    given = problem(op, x, seed=3, params=make(x))
    output = right(given) * np.float32(1.5)
    gate = Gate("max_ulp", {"ulps": 100.0})
    found = verify(given, output, gate)
    assert found.verdict == "fail"
    repro = minimise(given, output, found)
    assert judged(repro.case, found).verdict == "fail"
    assert moved_little(given, repro)
    assert len(repro.case.rows) == (3 if given.params.reduction != "none" else 1)
    for tensor in (repro.case.problem.params.mask, repro.case.problem.params.weights):
        assert tensor is None or tensor.shape[-1] == len(repro.case.columns)


def test_a_row_that_is_ignored_stays_so():
    given = Problem("cross_entropy", logits(1, 5), np.array([4]), params=Params(ignore_index=4))
    output = np.ones(1, np.float32)
    repro = minimise(given, output, verify(given, output))
    assert (repro.case.problem.targets, repro.case.problem.params.ignore_index) == ([-1], -1)
    assert repro.elements[0].truth.startswith("0.0")


def test_distributions_a_reference_and_repeated_runs_go_along():
    x = logits(2, 8)
    y = np.abs(logits(2, 8, seed=1))
    given = Problem("cross_entropy_grad", x, y)
    output = right(given)
    other = output.copy()
    other[1, 5] += np.float32(1)
    found = verify(given, output, outputs=[other], reference=other)
    repro = minimise(given, output, found, reference=other, outputs=[other])
    case = repro.case
    assert found.verdict == judged(case, found).verdict == "fail"
    assert list(case.rows) == [1]
    assert 5 in case.columns
    for tensor, posted in ((case.problem.targets, y), (case.reference, other), (case.outputs[0], other)):
        assert np.array_equal(tensor[0], posted[1][case.columns])


def test_a_row_that_nothing_names_is_found_by_halves():
    given = problem("softmax", logits(12, 6))
    output = right(given) * np.float32(1.5)  # the largest stays the largest
    swap = np.argsort(output[7])[-2:]
    output[7] = right(given)[7]
    output[7, swap] = output[7, swap[::-1]]
    output[:7] = right(given)[:7] * np.float32(40)
    gate = Gate("max_ulp", {"ulps": 1e15})
    found = verify(given, output, gate, include=["argmax"])
    repro = minimise(given, output, found, include=["argmax"])
    assert found.verdict == "fail"
    assert list(repro.case.rows) == [7]
    assert "row 7 of 12" in repro.note
    assert verify(repro.case.problem, repro.case.output, gate, include=["argmax"]).verdict == "fail"
    unnamed = replace(found, findings=(), worst=())
    assert minimise(given, output, unnamed, include=["argmax"], budget=1).case is None
    nothing = minimise(given, output, found, include=["argmax"], budget=1)
    assert nothing.case is None
    assert "the budget of 1 elements judged no row was found" in nothing.note
    assert minimise(given, output, found).case is None  # as if it had not been asked for


def test_what_the_budget_does_not_allow_is_left():
    given = problem("softmax", logits(1, 50))
    output = np.zeros((1, 50), np.float32)
    found = verify(given, output)
    whole = minimise(given, output, found, budget=0)
    assert (len(whole.case.columns), whole.minimal) == (50, False)
    assert whole.note.startswith("row 0, whole; the verdict holds")
    assert "the budget of 0 elements judged was spent, so more may be left than need be" in whole.note
    best = minimise(given, output, found)
    some = minimise(given, output, found, budget=best.judged - 1)
    assert (some.minimal, len(some.case.columns)) == (False, len(best.case.columns))


def test_what_is_not_decided_is_not_taken(monkeypatch):
    given = problem("softmax", logits(1, 8))
    output = np.zeros((1, 8), np.float32)
    found = verify(given, output)
    certified = module.certified

    def undecided(problem, fmt):
        if problem.logits.shape[1] < 8:
            raise Undecided("no")
        return certified(problem, fmt)

    monkeypatch.setattr(module, "certified", undecided)
    repro = minimise(given, output, found)
    assert (len(repro.case.columns), repro.minimal) == (8, True)
    monkeypatch.setattr(module, "certified", certified)
    made = module.Ruling

    def ruled(problem, *others):
        if problem.logits.shape[1] < 8:
            raise Undecided("no")
        return made(problem, *others)

    monkeypatch.setattr(module, "Ruling", ruled)
    assert len(minimise(given, output, found).case.columns) == 8


@pytest.mark.parametrize(("n", "kept"), [(40, 2), (1100, 1100)])
def test_where_the_worst_element_is_right_its_truth_stays_as_it_is(n, kept):
    x = np.full((1, n), -INF, np.float32)
    x[0, :2] = 0
    given = Problem("softmax", x)
    output = right(given)
    found = verify(given, output, Gate("allclose", {"rtol": 0.0, "atol": 1.0}))
    assert found.verdict == "inconclusive"
    repro = minimise(given, output, found)  # a long row is not looked at exactly
    assert len(repro.case.columns) == kept
    assert repro.elements == ()


def test_a_verdict_that_is_open_has_one_too():
    x = logits(1, 64, sigma=1.0)
    given = Problem("softmax", x)
    output = right(given) * np.float32(1 + 2.0**-9)
    gate = Gate("torch.assert_close")
    zeros = Gate("allclose", {"rtol": 1e-2, "atol": 1e-1})
    for asked in (gate, zeros):
        found = verify(given, output, asked)
        repro = minimise(given, output, found)
        assert judged(repro.case, found).verdict == found.verdict
    assert found.verdict == "inconclusive"


def test_an_element_that_is_right_but_forbidden_is_told_without_an_error():
    x = logits(1, 12)
    x[0, 4] = -INF
    given = Problem("log_softmax", x)
    output = right(given) * np.float32(1.5)
    repro = minimise(given, output, verify(given, output, nonfinite="strict"))
    first, *others = repro.elements
    assert (first.posted, first.got, first.truth, first.ulp) == ((0, 4), "-Infinity", "-Infinity", None)
    assert all(wrong.ulp > 0 for wrong in others)


def test_of_many_as_wrong_the_one_that_is_kept_is_told_first():
    given = problem("softmax", logits(1, 120))
    output = right(given) * np.float32(1.5)
    output[0, 5] = np.float32(1e-9)
    found = verify(given, output)
    repro = minimise(given, output, found)
    assert len(repro.elements) == module.NAMED
    assert repro.elements[0].posted == found.worst[0].index
    assert moved_little(given, repro)


def test_a_row_of_a_vocabulary_is_quick_and_small():
    x = logits(1, 128256)
    given = problem("cross_entropy_grad", x)
    output = np.zeros_like(x)
    found = verify(given, output)
    repro = minimise(given, output, found)
    assert len(repro.case.columns) < 5000
    assert repro.judged <= module.BUDGET
