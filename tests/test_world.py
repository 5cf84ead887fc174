"""The world's bugs: each output is found, and what a right kernel gives for the same logits is not accused."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

from engine import Gate, Problem, Verdict, verify
from engine.formats import of, widen
from engine.model import Array
from engine.outcome import changes_much
from engine.truth import certified
from tests import world
from tests.world import BUGS, LEFT_OUT

README = Path(__file__).parent.parent / "README.md"
ISSUE = r"[\w.-]+/[\w.-]+#\d+"


@functools.cache
def made(name: str) -> tuple[Problem, Array]:
    """The problem and the wrong output of a row."""
    return BUGS[name].make()


@functools.cache
def judged(name: str) -> Verdict:
    """The verdict on it under the gate of the row."""
    row, (problem, output) = BUGS[name], made(name)
    return verify(problem, output, Gate(row.gate), nonfinite=row.nonfinite)


@pytest.mark.parametrize("name", BUGS)
def test_the_output_of_the_bug_is_found(name: str) -> None:
    """And a finding names the cause."""
    found = judged(name)
    assert found.verdict == BUGS[name].verdict != "pass"
    said = " ".join(finding.detail for finding in found.findings).lower()
    assert any(word in said for word in BUGS[name].cause), said


@pytest.mark.half
@pytest.mark.parametrize("name", BUGS)
def test_a_right_kernel_passes_on_the_same_logits(name: str) -> None:
    row = BUGS[name]
    problem, wrong = made(name)
    given = world.rights(row, problem)
    assert given
    for maker, output in given.items():
        assert (output.dtype, output.shape) == (wrong.dtype, wrong.shape)
        expected = "inconclusive" if no_bound(problem, output) else "pass"
        assert verify(problem, output, Gate(row.gate), nonfinite=row.nonfinite).verdict == expected, maker


def no_bound(problem: Problem, output: Array) -> bool:
    """Whether params change what is computed, so that nothing bounds it."""
    return changes_much(problem, certified(problem, of(output)))


@pytest.mark.parametrize("name", BUGS)
def test_a_row_is_what_it_says(name: str) -> None:
    row = BUGS[name]
    problem, output = made(name)
    world.check(row, problem, output)
    assert problem.logits.shape[-1] <= 8192 or name in ("sum_overflows_in_float16", "logsumexp_of_many_zeros")
    assert row.issues
    assert all(re.fullmatch(ISSUE, issue) for issue in row.issues)
    assert row.cause
    assert all(word == word.strip() != "" for word in row.cause)


def test_no_report_is_a_row_and_left_out() -> None:
    left = {issue for issues in LEFT_OUT for issue in re.findall(ISSUE, issues)}
    assert len(left) >= len(LEFT_OUT)
    assert not left & {issue for row in BUGS.values() for issue in row.issues}


def section() -> re.Match[str]:
    """The section of the README, up to its tables, and those."""
    found = re.search(r"^## The world's bugs\n(.*?\n)(\|.*?)\n(?=## )", README.read_text(encoding="utf-8"), re.M | re.S)
    assert found is not None
    return found


def test_the_readme_has_the_rows() -> None:
    assert section()[2] == world.table()


# What the reports say of their outputs, to the digits that they give.


def first(name: str) -> float:
    return float(widen(made(name)[1]).flat[0])


def row_sums(name: str) -> list[float]:
    return [float(total) for total in widen(made(name)[1]).sum(axis=-1)]


def test_outputs_are_those_of_the_reports() -> None:
    assert first("sum_stalls_in_float16") == 1 / 2048
    assert first("sum_stalls_in_bfloat16") == 1 / 256
    assert row_sums("sum_drops_terms_in_float16")[0] > 1.1  # 1.29 for other numbers of that kind
    assert row_sums("running_sum_in_16_bits") == pytest.approx([0.93, 0.93], abs=0.01)  # 0.865, for other numbers
    assert row_sums("sum_reads_past_the_row") == pytest.approx([1, 781 / 799, 1])
    assert row_sums("sum_has_terms_of_the_next_row")[1] == pytest.approx(0.7, abs=0.02)  # 0.7051
    given = [0.09003057, 0.2447284, 0.66524106]
    assert widen(made("strides_are_ignored")[1])[0] == pytest.approx(given, rel=1e-6)
    assert first("log_softmax_at_ten_thousand") == -0.693359375
    assert widen(made("loss_grows_wrong_with_the_offset")[1]).tolist() == [0.048828125, 0.0625]
    assert set(widen(made("log_softmax_of_large_logits")[1]).flat) <= {-2.0, -1.0, 0.0}
    assert widen(made("log_softmax_on_two_devices")[1]).tolist() == [[-0.08251953125, -2.53125]]
    assert widen(made("gradient_of_the_certain")[1]).tolist() == [[0.0, 5.551115123125776e-17]]
    assert widen(made("probability_clipped")[1]) == pytest.approx([16.118, 16.118], abs=1e-3)
    assert widen(made("probability_clipped_and_raised")[1]) == pytest.approx([15.4249, 15.4249], abs=1e-3)
    assert row_sums("tail_lost_in_8_bits")[0] == pytest.approx(0.64, abs=0.03)
    sums = row_sums("product_fused_into_the_difference")
    assert min(sums) < 0.8
    assert max(sums) > 1.2


if __name__ == "__main__":
    page, tables = README.read_text(encoding="utf-8"), section()
    README.write_text(page[: tables.start(2)] + world.table() + page[tables.end(2) :], encoding="utf-8")
