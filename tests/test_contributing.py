"""The worked example of CONTRIBUTING is a variant like any other."""

import re
from pathlib import Path

import numpy as np
import pytest

import engine
from engine import variants
from engine.formats import FORMATS
from engine.registry import Registry

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> str:
    """The key of the variant, which is gone again after the test."""
    known = dict(variants.VARIANTS.items())
    registry: Registry[variants.Variant] = Registry("variant")
    for key, row in known.items():
        registry.add(key, row)
    for module in (variants, engine.codec):
        monkeypatch.setattr(module, "VARIANTS", registry)
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    exec(compile(code, "CONTRIBUTING.md", "exec"), {"__name__": "example"})
    (key,) = set(registry) - set(known)
    return key


def test_the_example_runs_in_every_format_and_is_listed(example: str) -> None:
    assert example == "softmax/mean_shift"
    problem = engine.Problem("softmax", np.array([[0.5, -1.0, 2.0], [0.0, 0.0, 0.0]]))
    found = engine.evaluate(problem, list(FORMATS), ["mean_shift", "shifted"]).outcomes
    assert {o.format for o in found} == set(FORMATS)
    assert all(o.metrics.max_ulp < 4 for o in found if o.metrics.max_ulp is not None)
    assert "mean_shift" in [row["name"] for row in engine.catalogue("variants")]


def test_the_examples_hazard_is_one(example: str) -> None:
    (outcome,) = engine.evaluate(engine.Problem("softmax", np.array([[1000.0, 0.0]])), ["float32"], ["mean_shift"]).outcomes
    assert (outcome.status, outcome.metrics.nan_unexpected) == ("unstable", 1)
    assert next((fault.step, fault.kind, fault.chain) for fault in outcome.faults) == ("exp", "overflow", ())
