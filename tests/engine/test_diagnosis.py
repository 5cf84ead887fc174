"""What is said of a wrong output: each sentence where it is true, and not where it is not."""

import re

import numpy as np
import pytest

from engine import Axes, Gate, InvalidProblem, Params, Problem, check_gate, estimate_verdict, evaluate, verify
from engine import diagnosis as told
from engine.parameters import Choice

NAN, INF = float("nan"), float("inf")


def logits(rows, n, sigma=3.0, seed=0):
    return (np.random.default_rng(seed).standard_normal((rows, n)) * sigma).astype(np.float32)


def right(op, x, **given):
    names = {"cross_entropy": "split", "cross_entropy_grad": "fused"}
    return evaluate(Problem(op, x, **given), ["float32"], [names.get(op, "shifted")], include=["values"]).outcomes[0].values


def said(problem, output, **options):
    found = verify(problem, output, **options)
    assert found.verdict != "pass"
    return {finding.kind: finding.detail for finding in found.findings}


X = logits(3, 12)
SOFTMAX, LOGS = Problem("softmax", X), Problem("log_softmax", X)


@pytest.mark.parametrize(
    ("problem", "output", "kind", "words"),
    [
        (SOFTMAX, -right("softmax", X), "negated", "every element has the wrong sign"),
        (SOFTMAX, np.full_like(X, 1 / 12), "uniform", "whatever its logit"),
        (SOFTMAX, np.roll(right("softmax", X), 2, axis=1), "moved", "rolled by 2 columns"),
        (SOFTMAX, np.roll(right("softmax", X), -3, axis=1), "moved", "rolled by -3 columns"),
        (SOFTMAX, right("softmax", X)[:, ::-1].copy(), "moved", "in another order"),
        (SOFTMAX, right("softmax", X) * np.float32(1.31), "scaled", "1.31 times what it should be: the denominator is too small"),
        (SOFTMAX, right("softmax", X) * np.float32(0.5), "scaled", "0.5 times what it should be: the denominator is too large"),
        (SOFTMAX, right("log_softmax", X), "function", "these are the logarithms of the probabilities"),
        (LOGS, right("softmax", X), "function", "these are the probabilities, not their logarithms"),
        (LOGS, right("log_softmax", X) / np.float32(np.log(2)), "function", "these are logarithms to base 2"),
        (LOGS, right("log_softmax", X) + np.float32(0.25), "offset", "0.25 too large: the logarithm of the sum is too small"),
        (LOGS, right("log_softmax", X) - np.float32(0.25), "offset", "0.25 too small: the logarithm of the sum is too large"),
        (SOFTMAX, right("softmax", X).astype(np.float16).astype(np.float32), "narrowed", "is a float16 number"),
    ],
)
def test_what_the_errors_have_in_common_is_said(problem, output, kind, words):
    assert words in said(problem, output)[kind]


def test_rows_and_spans_that_were_not_written_are_named():
    x = logits(4, 40)
    output = right("softmax", x)
    output[2:] = 0
    assert "rows 2 to 3 are all 0, as if not written" in said(Problem("softmax", x), output)["zeros"]
    output = right("softmax", x)
    output[[0, 2]] = 0
    assert "2 rows are all 0, as if not written" in said(Problem("softmax", x), output)["zeros"]
    output = right("softmax", x)
    output[1, 25:] = 0
    assert "in row 1 all from column 25 to 39" in said(Problem("softmax", x), output)["zeros"]


def test_flushed_subnormals_are_named():
    x = np.array([[0.0, -90.0, -95.0, -1.0]], np.float32)
    output = right("softmax", x)
    output[0, 1:3] = 0
    assert "results below 2^-126 are all 0 (2 of them" in said(Problem("softmax", x), output)["flushed"]
    assert "flushed" not in said(Problem("softmax", x), np.zeros_like(output))


def test_infinities_are_counted():
    x = logits(1, 4)
    output = right("logsumexp", x)
    output[0] = INF
    found = said(Problem("logsumexp", x), output)
    assert "1 elements are infinite though the truth, rounded to float32, is finite" in found["infinite"]
    assert "row 0: got Infinity" in found["special"]


def test_places_in_a_jacobian_have_two_columns():
    x = logits(1, 3)
    output = right("softmax_jacobian", x)
    output[0, 1, 2] *= 2
    assert "row 0, entry (1, 2)" in said(Problem("softmax_jacobian", x), output)["beyond"]


def test_a_row_too_long_is_not_looked_at(monkeypatch):
    monkeypatch.setattr(told, "LONGEST", 10)
    assert "scaled" not in said(SOFTMAX, right("softmax", X) * np.float32(2))


def test_the_search_for_the_algorithm_ends(monkeypatch):
    monkeypatch.setattr(told, "WORK", 0.0)
    assert "algorithm" not in said(SOFTMAX, np.full_like(X, NAN))


def test_formats_that_logits_overflow_are_no_explanation():
    x = np.array([[-1e5, -1e5 - 8]], np.float32)
    found = said(Problem("softmax", x), np.zeros_like(x))
    assert "in float16" not in found.get("algorithm", "")


def test_params_are_run_beside_the_algorithm():
    x, y = logits(4, 6), np.zeros(4, int)
    problem = Problem("cross_entropy", x, y, params=Params(reduction="mean", z_loss=0.1))
    output = (
        evaluate(problem, ["bfloat16"], ["split"], include=["values"], axes=Axes(exp="correct", output_format="float32"))
        .outcomes[0]
        .values
    )
    found = said(problem, output, gate=Gate("max_ulp", {"ulps": 4.0}))
    assert "beyond" in found
    whole = Problem("softmax", x, params=Params(scale=0.3))
    assert "beyond" in said(whole, right("softmax", x), gate=Gate("max_ulp", {"ulps": 4.0}))


def test_a_reference_that_is_wrong_is_said_to_be():
    found = verify(SOFTMAX, right("softmax", X), reference=np.full_like(X, NAN))
    assert "your reference is itself wrong: 36 elements" in found.findings[-1].detail


def test_estimates_grow_with_the_elements():
    small, large = (estimate_verdict(Problem("softmax", np.zeros((1, n))), np.zeros((1, n))) for n in (10, 10**6))
    assert 0.5 < small < large < 10
    assert estimate_verdict(Problem("log_softmax", np.zeros((3, 9)), params=Params(scale=3.0)), np.zeros((3, 9)), axis=0) > small


def test_gates_are_checked_before_they_are_used():
    check_gate(Gate("allclose"), partly=True)
    with pytest.raises(InvalidProblem, match="policy allclose needs rtol"):
        check_gate(Gate("allclose"))
    assert Choice("shifted").range == "a name"
    assert Choice("a", ("a", "b")).range == "one of a, b"


def test_an_output_of_another_shape_is_refused_on_any_axis():
    x = logits(4, 3)
    with pytest.raises(InvalidProblem, match=r"output has shape \[3, 4\]; for these logits it must be \[4, 3\]"):
        verify(Problem("softmax", x), np.zeros((3, 4), np.float32), axis=0)


def test_masks_of_params_make_masked_rows():
    mask = np.array([[True] * 12, [False] * 12, [True] * 12])
    output = right("softmax", X)
    output[1] = 0
    problem = Problem("softmax", X, params=Params(mask=mask))
    assert verify(problem, output, nonfinite="masked_zero").verdict == "pass"
    assert verify(problem, output, nonfinite="masked_uniform").verdict == "fail"
    assert "special" in said(problem, output)


def test_a_row_without_sum_has_no_invariant():
    x = np.array([[1.0, 2.0], [NAN, 1.0]], np.float32)
    output = np.array([right("softmax", x[:1])[0], [NAN, NAN]], np.float32)
    assert verify(Problem("softmax", x), output, include=["row_sums", "argmax"]).verdict == "pass"


def test_what_no_declaration_allows_alone_is_said():
    x = np.zeros((1, 60), np.float32)
    x[0, 1:] = -np.linspace(2, 9, 59)
    problem = Problem("softmax", x.astype(np.float16))
    kinds = set()
    for factor in np.linspace(1, 1.02, 60)[5::10]:
        output = (right("softmax", x.astype(np.float16).astype(np.float32)) * np.float32(factor)).astype(np.float16)
        found = verify(problem, output)
        kinds |= {finding.detail.rpartition("; ")[2] for finding in found.findings if finding.kind == "between"}
    assert any("may err so much: declare it" in kind for kind in kinds)


def test_far_rows_are_held_against_tolerances_without_a_bound():
    x = np.array([[0.0, -1e300, 1e308, 5.0]] * 130)
    x[::2] = np.linspace(0, 3, 4)
    output = evaluate(Problem("log_softmax", x), ["float64"], ["shifted"], include=["values"]).outcomes[0].values
    output[3, 0] *= 1.5
    found = verify(Problem("log_softmax", x), output, Gate("allclose", {"rtol": 1e-3, "atol": 1e-3}))
    assert found.verdict == "fail"
    assert "1 of 520 elements are beyond the gate allclose" in found.findings[0].detail
    short = verify(Problem("log_softmax", x), output, Gate("allclose", {"rtol": 1e-17, "atol": 0.0}))
    assert (short.verdict, short.findings[0].kind) == ("inconclusive", "short")  # there is no bound of what is beyond 2^1020


def test_targets_that_a_format_cannot_hold_are_no_explanation():
    x, y = logits(1, 6), np.full((1, 6), 1e20, np.float32)
    output = right("cross_entropy_grad", x, targets=y) * np.float32(1.5)
    assert "beyond" in said(Problem("cross_entropy_grad", x, y), output)


def test_strict_and_special_findings_without_what_they_could_name():
    x = np.array([[NAN, 1.0]], np.float32)
    found = verify(Problem("softmax", x), np.zeros_like(x), nonfinite="strict", worst=0)
    assert [finding.kind for finding in found.findings][:2] == ["special", "strict"]
    assert found.findings[0].index is None


def test_what_no_one_declaration_allows_is_said(monkeypatch):
    monkeypatch.setattr("engine.verdict._DECLARATIONS", ())
    x = logits(1, 60).astype(np.float16)
    exact = right("softmax", x.astype(np.float32))
    for factor in np.linspace(1, 1.01, 60):
        found = verify(Problem("softmax", x), (exact * np.float32(factor)).astype(np.float16))
        if found.verdict == "inconclusive":
            assert "no one declaration allows it" in found.findings[0].detail
            return
    pytest.fail("no factor lies between the tolerances")


# ---- the right numbers in the wrong places ---------------------------------------------------------------------------


def places(shape, **options):
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32) * 2
    return Problem("softmax", x), right("softmax", x)


@pytest.mark.parametrize("order", [[1, 0, 2, 3], [3, 2, 1, 0], [1, 2, 3, 0]])
def test_rows_in_another_order_are_named(order):
    problem, output = places((4, 30))
    found = said(problem, output[order])
    assert "is right for the logits of row" in found["moved"]
    assert "rows are in another order" in found["moved"]


def test_a_row_that_is_no_others_is_no_order_of_rows():
    problem, output = places((4, 30))
    output = output[[1, 0, 2, 3]]
    output[2] *= 1e6
    assert "moved" not in said(problem, output)


@pytest.mark.parametrize(("shape", "axis"), [((6, 9), 0), ((5, 5), 0), ((2, 3, 4, 8), 2), ((2, 3, 4, 8), 0)])
def test_another_axis_is_named_with_its_extent(shape, axis):
    problem, _ = places(shape)
    output = np.moveaxis(right("softmax", np.ascontiguousarray(np.moveaxis(problem.logits, axis, -1))), -1, axis)
    assert f"another axis than the one that is reduced, of extent {shape[axis]}" in said(problem, output)["axis"]


def test_exchanged_rows_and_columns_are_named():
    problem, output = places((7, 7))
    assert "rows and columns are exchanged" in said(problem, np.ascontiguousarray(output.T))["transposed"]


def test_nothing_is_said_of_places_where_something_else_is_wrong():
    problem, output = places((7, 7))
    assert not {"axis", "transposed", "moved"} & said(problem, output * np.float32(1.5)).keys()
    output[3, 3] = np.nan
    assert not {"axis", "transposed", "moved"} & said(problem, output).keys()


def test_what_is_masked_and_takes_part_is_named():
    x = np.random.default_rng(3).standard_normal((5, 5)).astype(np.float32)
    late, early = (np.where(np.tri(5, k=k, dtype=bool), x, np.float32(-np.inf)) for k in (1, 0))
    found = said(Problem("softmax", early), right("softmax", late))
    assert re.match(r"row (\d): 1 of \d masked classes have a probability that is not 0; class \d has 0\.", found["masked"])


def test_a_gradient_divided_by_the_rows_is_named():
    x = np.random.default_rng(3).standard_normal((8, 12)).astype(np.float32)
    targets = np.arange(8)
    problem = Problem("cross_entropy_grad", x, targets)
    output = right("cross_entropy_grad", x, targets=targets)
    assert "0.125 times what it should be: it is divided by the 8 rows" in said(problem, output / np.float32(8))["scaled"]
    assert said(problem, output * np.float32(3))["scaled"].endswith("every element is 3 times what it should be")
