"""The experiment of Blanchard, Higham and Higham on their data gives their counts, and the figures computed for this project."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from engine.errors import InvalidProblem
from engine.paper import bhh

DATA = Path(__file__).parents[3] / "shared/data/bhh-mnist/logits.npy"

# Largest error, mean error, over the rows whose basic log-sum-exp is finite; range of the sums.
EXPECTED = {
    "float16": {
        "basic log-sum-exp": ("1.497", ".392", None),
        "shifted log-sum-exp": ("1.069", ".378", None),
        "basic softmax": ("4.702", ".707", (".99840", "1.00235")),
        "basic softmax without a division": ("10.31", "3.15", (".99529", "1.00503")),
        "shifted softmax": ("2.056", ".529", (".99931", "1.00087")),
        "shifted softmax without a division": ("8.306", "3.05", (".99608", "1.00404")),
    },
    "bfloat16": {
        "basic log-sum-exp": ("1.227", ".270", None),
        "shifted log-sum-exp": ("1.019", ".263", None),
        "basic softmax": ("3.072", ".556", (".9906", "1.0115")),
        "basic softmax without a division": ("9.494", "2.13", (".9630", "1.0366")),
        "shifted softmax": ("1.803", ".479", (".9939", "1.0059")),
        "shifted softmax without a division": ("8.364", "2.08", (".9674", "1.0314")),
    },
}


def same(value, decimal):
    """Whether a figure rounds to a decimal."""
    return abs(Fraction(value) - Fraction(decimal)) <= Fraction(1, 2 * 10 ** len(decimal.partition(".")[2]))


@pytest.mark.skipif(not DATA.exists(), reason="the authors' data, ../shared/data/bhh-mnist, is not there")
def test_the_experiment_on_the_authors_data():
    half, brain = bhh(np.load(DATA))
    assert (half.format, half.rows, half.n, half.survived) == ("float16", 2500, 10, 2025)
    assert (brain.format, brain.rows, brain.n, brain.survived) == ("bfloat16", 2500, 10, 2500)
    assert [a.overflows for a in half.algorithms] == [475, 0, 471, 0, 0, 0]
    assert [a.overflows for a in brain.algorithms] == [0] * 6
    for experiment in (half, brain):
        expected = EXPECTED[experiment.format]
        assert [a.name for a in experiment.algorithms] == list(expected)
        for a in experiment.algorithms:
            largest, mean, sums = expected[a.name]
            assert same(a.max_error, largest), a
            assert same(a.mean_error, mean), a
            if sums is None:
                assert (a.least_sum, a.largest_sum) == (None, None)
            else:
                assert same(a.least_sum, sums[0]), a
                assert same(a.largest_sum, sums[1]), a
    shifted = [half.algorithms[i].mean_error_of_all for i in (1, 4, 5)]
    assert all(map(same, shifted, (".342", ".518", "2.92")))


def test_a_row_by_hand():
    """Two logits 0: log 2 is rounded once in float16, 1/2 is exact."""
    half, _ = bhh(np.zeros((1, 2)))
    error = abs(float(np.float16(math.log(2))) - math.log(2)) / math.log(2) / 4.88e-4
    assert half.algorithms[0].max_error == pytest.approx(error)
    assert half.algorithms[4].max_error == 0
    assert (half.algorithms[2].least_sum, half.algorithms[2].largest_sum) == (1, 1)


def test_a_log_sum_exp_of_0_has_no_relative_error():
    half, _ = bhh(np.zeros((2, 1)))
    assert [row.max_error for row in half.algorithms] == [0.0] * 6


def test_rows_that_all_overflow_have_no_figures():
    half, brain = bhh(np.full((3, 2), 12.0))
    assert (half.survived, half.algorithms[0].overflows) == (0, 3)
    assert (half.algorithms[0].max_error, half.algorithms[0].mean_error_of_all, half.algorithms[4].least_sum) == (None, None, None)
    assert half.algorithms[4].mean_error_of_all == 0
    assert brain.survived == 3


@pytest.mark.parametrize(
    ("logits", "saying"),
    [
        (np.zeros(3), r"logits have shape \[3\]; the experiment takes rows of logits: rank 2"),
        (np.zeros((0, 3)), "nothing empty"),
        (np.array([[math.nan, 1.0]]), "a logit is not finite"),
        (np.array([[1e5, 1.0]]), "a logit overflows float16, whose largest number is 65504.0"),
    ],
)
def test_what_is_no_experiment_is_refused(logits, saying):
    with pytest.raises(InvalidProblem, match=saying):
        bhh(logits)
