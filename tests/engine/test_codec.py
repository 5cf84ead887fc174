"""Plain data out: specials as strings, big integers as strings, the catalogue from the registries."""

import json
import math

import ml_dtypes
import numpy as np
import pytest

import engine
from engine import Problem, UnknownName, catalogue, encode, evaluate
from engine.formats import FORMATS
from engine.inputs import FAMILIES
from engine.model import RowFigure
from engine.ops import OPS
from engine.summation import SUMMATIONS
from engine.variants import VARIANTS


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
        (0.1, 0.1),
        (-0.0, -0.0),
        (2**53, 2**53),
        (2**53 + 1, str(2**53 + 1)),
        (-(2**53) - 1, str(-(2**53) - 1)),
        (True, True),
        (None, None),
        ("text", "text"),
        ((1, math.nan), [1, "NaN"]),
        ({"a": math.inf}, {"a": "Infinity"}),
        (RowFigure(math.inf, 1.0, 2), {"worst": "Infinity", "mean": 1.0, "worst_row": 2}),
        (np.array([[1.0, math.nan]]), [[1.0, "NaN"]]),
        (np.array(0.1, dtype=np.float16), 0.0999755859375),
        (np.array([1.0078125], dtype=ml_dtypes.bfloat16), [1.0078125]),
    ],
)
def test_values_become_plain_data(value, plain):
    assert encode(value) == plain
    json.dumps(encode(value), allow_nan=False)


def test_what_has_no_plain_form_is_refused():
    with pytest.raises(TypeError, match="complex has no plain form"):
        encode(1j)


def test_an_answer_is_plain_data_throughout():
    problem = Problem("logsumexp", np.array([[1000.0, -np.inf], [np.nan, 0.0]]))
    text = json.dumps(encode(evaluate(problem, include=("values", "truth", "ranks"))), allow_nan=False)
    assert '"Infinity"' in text
    assert '"NaN"' in text


def test_values_and_truth_are_there_only_when_asked_for():
    problem = Problem("softmax", np.zeros(2))
    assert {"values", "truth"}.isdisjoint(encode(evaluate(problem).outcomes[0]))
    asked = encode(evaluate(problem, include=("values", "truth")).outcomes[0])
    assert asked["values"] == asked["truth"] == [0.5, 0.5]


def test_the_truth_carries_its_rounded_values_as_a_tensor():
    answer = encode(engine.certify(Problem("softmax", np.zeros((1, 2))), "bf16", 3))
    assert answer["rounded"] == {"dtype": "bfloat16", "shape": [1, 2], "data": [[0.5, 0.5]]}


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("ops", list(OPS)),
        ("variants", [row.name for op in OPS for row in VARIANTS.values() if row.op == op]),
        ("formats", list(FORMATS)),
        ("summations", list(SUMMATIONS)),
        ("inputs", list(FAMILIES)),
    ],
)
def test_the_catalogue_lists_the_registry(kind, names):
    rows = catalogue(kind)
    assert [row["name"] for row in rows] == names
    json.dumps(rows, allow_nan=False)


def test_an_unknown_catalogue_names_what_exists():
    with pytest.raises(UnknownName, match="known: ops, variants, formats, summations, inputs, policies"):
        catalogue("policy")
