"""Which rows a sample has: those that are wrong at sight are always among them, and the same bytes and seed give the same rows."""

import time
from dataclasses import replace

import numpy as np
import pytest

import engine
from engine import sampling
from engine.model import Params, Problem, Sample

ROWS, N = 400, 16
NAMES = ["nonfinite", "ends", "sum", "largest", "smallest", "zeros", "spread"]


def right(x, op="softmax", dtype=np.float32):
    """The output of a right kernel."""
    wide = x.astype(np.float64)
    with np.errstate(all="ignore"):
        lse = np.log(np.exp(wide - wide.max(axis=-1, keepdims=True)).sum(axis=-1, keepdims=True)) + wide.max(axis=-1, keepdims=True)
        found = {"softmax": np.exp(wide - lse), "log_softmax": wide - lse, "logsumexp": lse[..., 0]}[op]
    return found.astype(dtype)


def case(op="softmax", rows=ROWS, n=N, seed=1):
    x = engine.generate("gaussian", rows, n, seed, sigma=3.0).astype(np.float32)
    return Problem(op, x), right(x, op)


def drawn(problem, output, rows=32, seed=0, nonfinite="ieee"):
    return sampling.draw(problem, output, Sample(rows, seed), nonfinite)


# The rows


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 32, 399])
@pytest.mark.parametrize("op", ["softmax", "log_softmax", "logsumexp"])
def test_a_sample_has_as_many_rows_as_are_wanted_each_once(op, rows):
    found = drawn(*case(op), rows)
    assert len(set(found.rows.tolist())) == found.told.rows == rows == sum(found.told.strata.values())
    assert found.rows.tolist() == sorted(found.rows.tolist())
    assert (found.told.of, list(found.told.strata)) == (ROWS, NAMES)
    assert found.rows[0] == 0
    assert rows < 2 or found.rows[-1] == ROWS - 1


def test_as_many_rows_as_there_are_is_no_sample():
    assert drawn(*case(), ROWS) is None
    assert drawn(*case(rows=1), 1) is None


def test_the_hash_is_the_published_one():
    """SplitMix64 from 0: the first outputs of the generator's reference code (prng.di.unimi.it/splitmix64.c)."""
    assert sampling._mixed(np.array([1, 2], np.uint64) * sampling._GAMMA).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_the_same_bytes_and_seed_give_the_same_rows():
    """Written down: another version that draws others has another sample under the same name."""
    problem = Problem("softmax", np.arange(400 * 4, dtype=np.float32).reshape(400, 4) % 7)
    output = np.full((400, 4), 0.25, np.float32)
    assert drawn(problem, output, 12).rows.tolist() == [0, 39, 91, 138, 173, 202, 231, 282, 316, 325, 359, 399]
    assert drawn(problem, output, 12, seed=1).rows.tolist() != drawn(problem, output, 12).rows.tolist()


def test_the_rows_depend_on_no_split(monkeypatch):
    problem, output = case()
    whole = drawn(problem, output).rows.tolist()
    monkeypatch.setattr(sampling, "BLOCK", 5 * N)
    assert drawn(problem, output).rows.tolist() == whole


def test_every_part_of_the_tensor_has_a_row():
    rows = drawn(*case(rows=1000), 40).rows
    assert np.diff(rows).max() <= 2 * 1000 / 20


def test_another_seed_draws_other_rows():
    """Over many seeds every row is drawn."""
    problem, output = case(rows=60)
    assert {row for seed in range(200) for row in drawn(problem, output, 8, seed).rows.tolist()} == set(range(60))


# What is wrong at sight


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("op", ["softmax", "log_softmax", "logsumexp"])
def test_a_row_that_is_not_finite_is_found(op, value):
    problem, output = case(op)
    output[(217, 3) if output.ndim == 2 else 217] = value
    found = drawn(problem, output, 1)
    assert (found.rows.tolist(), found.told.strata["nonfinite"]) == ([217], 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_without_a_truth_that_is_not_nan_is_found(value):
    """NaN for NaN is right, and is no reason to look."""
    problem, output = case()
    problem.logits[[5, 217]] = value
    output[5] = np.nan
    found = drawn(problem, output, 1)
    assert (found.rows.tolist(), found.told.strata["nonfinite"]) == ([217], 1)
    output[217] = np.nan
    assert drawn(problem, output).told.strata["nonfinite"] == 0


@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_masked_logits_are_nothing_unusual(op):
    x = case()[0].logits
    x[:, ::3] = -np.inf
    problem, output = Problem(op, x), right(x, op)
    assert drawn(problem, output).told.strata["nonfinite"] == 0
    output[300, 1] = -np.inf if op == "log_softmax" else np.nan
    assert drawn(problem, output, 1).rows.tolist() == [300]


def test_a_mask_counts_as_logits_do():
    problem, output = case("log_softmax")
    mask = np.ones((ROWS, N), bool)
    mask[7, 2] = False
    for given in (mask, mask[7]):
        params = Params(mask=given)
        some = drawn(replace(problem, params=params), output)
        assert some.told.strata["nonfinite"] == (1 if given.ndim == 2 else 16)
        assert given.ndim == 1 or 7 in some.rows
    part = drawn(replace(problem, params=Params(mask=mask)), output, 1).problem(replace(problem, params=Params(mask=mask)))
    assert part.params.mask.tolist() == [mask[7].tolist()]


@pytest.mark.parametrize(("nonfinite", "op", "right_value"), [
    ("ieee", "softmax", np.nan), ("masked_zero", "softmax", 0.0), ("masked_zero", "log_softmax", -np.inf),
    ("masked_uniform", "softmax", 1 / N), ("strict", "softmax", np.nan),
])  # fmt: skip
def test_rows_masked_altogether_are_what_the_policy_wants(nonfinite, op, right_value):
    problem, output = case(op)
    problem.logits[[11, 12]] = -np.inf
    output[[11, 12]] = right_value
    assert drawn(problem, output, nonfinite=nonfinite).told.strata["nonfinite"] == 0
    output[12, 0] = 0.5
    assert drawn(problem, output, 1, nonfinite=nonfinite).rows.tolist() == [12]
    output[12, 0] = np.inf
    assert drawn(problem, output, 1, nonfinite=nonfinite).rows.tolist() == [12]


def test_what_is_wrong_at_sight_leaves_room_for_the_others():
    problem, output = case()
    output[:] = np.nan
    strata = drawn(problem, output, 32).told.strata
    assert (strata["nonfinite"], strata["spread"]) == (16, 14)


# What is unlike the others


@pytest.mark.parametrize(("stratum", "change"), [
    ("zeros", lambda row: np.eye(1, N)[0] / 2 + np.eye(1, N, 5)[0] / 2), ("sum", lambda row: row * 1.01),
    ("smallest", lambda row: np.full(N, 1 / N)), ("largest", lambda row: np.eye(1, N)[0]),
])  # fmt: skip
def test_one_row_unlike_the_others_is_judged(stratum, change):
    problem, output = case()
    output[217] = change(output[217])
    found = drawn(problem, output, 16)
    assert 217 in found.rows
    assert found.told.strata[stratum] == 1


def test_a_logarithm_that_is_too_large_or_too_small_is_judged():
    for factor in (-1.0, 5.0):
        problem, output = case("log_softmax")
        output[217] += factor * np.float32(np.log(N))
        assert 217 in drawn(problem, output, 16).rows


# What is judged


def test_the_parts_of_a_problem_are_those_of_the_rows():
    x = engine.generate("gaussian", 12, 5, 0).reshape(3, 4, 5)
    t, g = np.arange(12).reshape(3, 4) % 5, np.flip(x)
    out = {"cross_entropy": x[..., 0], "softmax_jacobian": np.repeat(x[..., None], 5, axis=-1)}
    for op, more in (("cross_entropy", {"targets": t}), ("softmax_vjp", {"grad_output": g}), ("softmax_jacobian", {})):
        problem, output = Problem(op, x, **more), out.get(op, x)
        found = drawn(problem, output, 4)
        part = found.problem(problem)
        assert (part.logits == x.reshape(12, 5)[found.rows]).all()
        assert part.targets is None or (part.targets == t.reshape(12)[found.rows]).all()
        assert part.grad_output is None or (part.grad_output == g.reshape(12, 5)[found.rows]).all()
        assert (found.output(output, problem) == output.reshape(12, *output.shape[2:])[found.rows]).all()


@pytest.mark.parametrize(
    ("rows", "seed"), [(0, 0), (-1, 0), (True, 0), (1.5, 0), (1, -1), (1, 2**53 + 1), (1, "0"), (2**53 + 1, 0)]
)
def test_no_sample(rows, seed):
    with pytest.raises(engine.InvalidProblem, match=r"of a sample is .*; it is an integer from"):
        sampling.draw(*case(), Sample(rows, seed))


def test_rows_that_depend_on_one_another_are_not_sampled():
    problem, output = case("logsumexp")
    for reduction in ("sum", "mean"):
        with pytest.raises(engine.InvalidProblem, match=f"with reduction {reduction}"):
            drawn(replace(problem, params=Params(reduction=reduction)), output[0])
    targets = np.zeros(ROWS, np.int64)
    gradient = Problem("cross_entropy_grad", problem.logits, targets, params=Params(reduction="mean"))
    with pytest.raises(engine.InvalidProblem, match="with reduction mean"):
        drawn(gradient, problem.logits)
    assert drawn(replace(gradient, params=Params(reduction="sum")), problem.logits).told.rows == 32


# The verdict on a sample


def judged(problem, output, rows=24, **options):
    return engine.verify(problem, output, sample=Sample(rows), **options)


def test_a_verdict_says_what_it_covers():
    found = judged(*case())
    assert (found.verdict, found.rows, found.metrics.n) == ("pass", ROWS, 24 * N)
    assert found.certificate.coverage == 24 / ROWS
    assert (found.sample.rows, found.sample.of, found.sample.seed) == (24, ROWS, 0)
    assert [row.detail for row in found.findings if row.kind == "sample"] == [
        "24 of 400 rows were judged: verdict and figures are of these, and say nothing sure of the others"
    ]
    assert sum(found.certificate.tiers.values()) == 24 * N
    assert engine.encode(found)["sample"]["strata"]["ends"] == 2


def test_a_sample_of_all_rows_is_the_whole_verdict():
    problem, output = case()
    whole = engine.encode(engine.verify(problem, output))
    found = engine.encode(judged(problem, output, 10**6))
    assert found.pop("sample") == {"rows": ROWS, "of": ROWS, "seed": 0, "strata": {"all": ROWS}}
    assert "sample" not in whole
    assert found == whole


def test_digests_are_of_everything():
    problem, output = case()
    assert judged(problem, output).digests == engine.verify(problem, output).digests


@pytest.mark.parametrize("axis", [-1, 0])
def test_findings_and_figures_name_rows_as_they_were_posted(axis):
    problem, output = case()
    output[217, 3] *= 1.5
    x, c = (np.ascontiguousarray(np.moveaxis(t.reshape(20, 20, N), -1, axis)) for t in (problem.logits, output))
    found = judged(Problem("softmax", x), c, axis=axis)
    place = [10, 17]
    place.insert(axis % 3, 3)
    assert found.verdict == "fail"
    assert found.worst[0].index == tuple(place)
    assert found.metrics.argmax_ulp == found.metrics.argmax_rel == np.ravel_multi_index(place, c.shape)
    assert {found.metrics.kl.worst_row, found.metrics.total_variation.worst_row, found.metrics.backward_error.worst_row} == {217}
    assert found.findings[0].index == tuple(place)
    assert "row 217, class 3: got" in found.findings[0].detail
    whole = engine.verify(Problem("softmax", x), c, axis=axis)
    assert found.worst[0] == whole.worst[0]


def test_rows_that_are_empty_are_named():
    problem, output = case()
    output[[3, 217]] = 0
    assert any("rows are all 0, as if not written" in row.detail for row in judged(problem, output, 200).findings)
    output[:] = 0
    assert any("nothing that was judged is anything else" in row.detail for row in judged(problem, output).findings)


def test_a_condition_names_its_row():
    problem, output = case()
    problem.logits[-1, :2] = 100, 100.5
    output = right(problem.logits)
    assert judged(problem, output).bound.condition_row == engine.verify(problem, output).bound.condition_row == ROWS - 1


def test_what_strict_forbids_is_looked_at_in_every_row():
    problem, output = case()
    problem.logits[100:150, 2] = np.nan
    problem.logits[200, 2] = np.inf
    problem.logits[300] = -np.inf
    output[[*range(100, 150), 200, 300]] = np.nan
    details = [row.detail for row in judged(problem, output, 2, nonfinite="strict").findings if row.kind == "strict"]
    assert details == [
        "50 rows of logits have a NaN; the first is row 100",
        "1 rows of logits have an Infinity; the first is row 200",
        "1 rows of logits have nothing but -Infinity; the first is row 300",
        f"{52 * N} elements of the output are not finite",
    ]


def test_masked_rows_are_named():
    problem, output = case()
    problem.logits[217] = -np.inf
    found = judged(problem, output, nonfinite="masked_zero")
    assert [row.row for row in found.findings if row.kind == "masked"] == [217]


def test_row_sums_name_the_row():
    problem, output = case()
    output[217] *= np.float32(1.5)
    assert [row.row for row in judged(problem, output, include=("row_sums",)).findings if row.kind == "row_sums"] == [217]


def test_repeated_runs_are_compared_in_every_row():
    problem, output = case()
    other = output.copy()
    other[111, 5] *= 2
    found = judged(problem, output, 2, outputs=[other])
    assert [row.index for row in found.findings if row.kind == "reproducibility"] == [(111, 5)]


def test_a_reference_is_sampled_too():
    problem, output = case()
    found = judged(problem, output, reference=output.astype(np.float16))
    assert found.reference.n == 24 * N
    with pytest.raises(engine.InvalidProblem, match="reference has shape"):
        judged(problem, output, reference=output[1:])


def test_a_sample_has_no_elements_of_the_others():
    with pytest.raises(engine.InvalidProblem, match='include "elements"'):
        judged(*case(), include=("elements",))


def test_a_sample_is_estimated_as_one():
    problem, output = Problem("softmax", np.zeros((4096, 32000), np.float16)), np.zeros((4096, 32000), np.float16)
    whole, some = (engine.estimate_verdict(problem, output, sample=given) for given in (None, Sample(64)))
    assert (whole > 200, some < 15) == (True, True)
    assert engine.estimate_verdict(problem, output, sample=Sample(10**6)) == whole


def test_many_short_rows_are_looked_at_quickly():
    """A row each: all are equal, and most of them without a truth."""
    x = np.full((300_000, 1), np.nan, np.float32)
    x[::7] = 1
    started = time.process_time()
    found = drawn(Problem("softmax", x), np.where(np.isnan(x), x, np.float32(1)), 1000)
    assert found.told.strata["nonfinite"] == 0
    assert time.process_time() - started < 2
