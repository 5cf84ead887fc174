"""What a screen does with many rows, and on every processor."""

import os
import subprocess
import sys

import numpy as np
import pytest

from engine import Problem, evaluate, measure
from engine.formats import FORMATS
from engine.measurement import Measurement
from engine.metrics import measure as exactly
from engine.screen import _TOGETHER, Candidates
from engine.truth import Truth


def test_thousands_of_short_rows_give_the_figures_of_the_exact_path():
    logits = np.random.default_rng(7).standard_normal((_TOGETHER + 700, 2)).astype(np.float32)
    problem = Problem("softmax", logits)
    output = evaluate(problem, ["float32"], ["naive"], include=["values"], worst=0).outcomes[0].values
    expected = exactly(Measurement(output, Truth(problem, FORMATS["float32"])))
    assert measure(problem, output, worst=0).metrics == expected


def test_candidates_are_kept_till_another_is_larger_beyond_doubt():
    found = Candidates(keep=1)
    found.offer(np.array([1.0, 0.9]), lambda: 0.2, 1.2, np.asarray)
    found.offer(np.array([1.5, 1.29]), lambda: 0.1, 1.6, lambda at: at + 2)
    assert found.pruned()[0].tolist() == [2]
    found.offer(np.array([1.45]), lambda: 0.1, 1.55, lambda at: at + 4)
    assert found.pruned()[0].tolist() == [2, 4]


FIGURES = """
import hashlib, json
import numpy as np, engine
stream = np.random.default_rng(3)
for op in ("softmax", "log_softmax", "cross_entropy_grad"):
    for name in ("bfloat16", "float32", "float64"):
        fmt = engine.find_format(name)
        logits = engine.round_array(stream.standard_normal((20, 300)) * 10, fmt)
        output = engine.round_array(np.abs(stream.standard_normal(logits.shape)) / 300, fmt)
        targets = stream.integers(0, 300, 20) if op == "cross_entropy_grad" else None
        found = engine.encode(engine.measure(engine.Problem(op, logits, targets), output))
        del found["engine"]  # names the processor
        print(hashlib.sha256(json.dumps(found).encode()).hexdigest())
"""


def figures(disabled: str) -> str:
    env = {**os.environ, "NPY_DISABLE_CPU_FEATURES": disabled, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", FIGURES], env=env, capture_output=True, text=True, check=True)
    return run.stdout


def test_figures_and_tiers_are_the_same_without_wide_vectors():
    dispatched = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    narrow = [name for name in dispatched if "512" in name or name == "X86_V4"]
    if not dispatched:
        pytest.skip("NumPy dispatches to nothing beyond its baseline here")
    everywhere = figures("")
    assert len(everywhere.split()) == 9
    assert figures(" ".join(narrow)) == figures(" ".join(dispatched)) == everywhere


@pytest.mark.parametrize("n", [1000, 1024])
def test_equal_logits_with_outputs_that_differ_by_an_ulp_are_not_taken_together(n):
    output = np.full((2, n), 1 / n)
    output[0, 5] = np.nextafter(1 / n, 1)
    output[1, 7] = np.nextafter(np.nextafter(1 / n, 1), 1)
    problem = Problem("softmax", np.zeros((2, n)))
    found = measure(problem, output)
    assert found.metrics == exactly(Measurement(output, Truth(problem, FORMATS["float64"])))
    assert found.metrics.correctly_rounded == 2 * n - 2
    assert found.worst[0].index == (1, 7)


def test_a_row_longer_than_the_bounds_are_proven_for_is_left_to_the_exact_path(monkeypatch):
    monkeypatch.setattr("engine.truth.fast.LONGEST", 600)
    logits = np.random.default_rng(1).standard_normal((1, 700))
    assert measure(Problem("logsumexp", logits), np.zeros(1)).certificate.tiers == {"T3": 1}


@pytest.mark.parametrize("gap", [1030.0, 5000.0, 1e6, 1e200])
def test_log_probabilities_far_below_get_the_figures_of_the_exact_path(gap):
    stream = np.random.default_rng(5)
    logits = stream.uniform(-0.1, 0.1, (2, 600))
    logits[:, ::2] -= gap * stream.uniform(1, 2, (2, 300))  # x - m is no binary64 number: its low part counts
    shifted = logits - logits.max(axis=1, keepdims=True)
    output = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    output[1] = np.nextafter(output[1], stream.choice((-np.inf, np.inf), 600))
    output[1, :7] *= (0.5, 0.75, 1.5, 2.0, 0.0, -1.0, -1.0)
    output[1, 8:12] = (1e308, 1e308, -1e308, -1e308)
    problem = Problem("log_softmax", logits)
    for row in (0, 1):
        one = Problem("log_softmax", logits[row])
        expected = exactly(Measurement(output[row], Truth(one, FORMATS["float64"])))
        assert measure(one, output[row], worst=0).metrics == expected
    assert measure(problem, output, worst=0).metrics == exactly(Measurement(output, Truth(problem, FORMATS["float64"])))
