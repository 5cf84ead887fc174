"""Real outputs of torch, JAX, ONNX Runtime, SciPy and NumPy get the figures that balls give them."""

import json
import math

import numpy as np
import pytest

import engine
from tests import judge, kept

STORED = json.loads(kept.PATH.read_text())
ENTRIES = STORED["kept"]


def problem(entry):
    """The problem, and the output, from their bits."""
    op, _, kind = entry["asked"].partition(":")
    fmt, row = entry["row"].split("/")[0], STORED["rows"][entry["row"]]
    targets = row.get(kind)
    logits = kept.tensor(row["logits"], fmt)
    if targets is not None:
        targets = np.array(targets) if isinstance(targets, int) else kept.tensor(targets, fmt)
    output = kept.tensor(entry["output"], fmt)
    return engine.Problem(op, logits, targets=targets), output if op not in ("logsumexp", "cross_entropy") else output[0:1].reshape(
        ()
    )


def figures(entry):
    """The figures as they were kept, with the infinities back."""
    return json.loads(json.dumps(entry["figures"]).replace('"Infinity"', "Infinity"))


@pytest.mark.parametrize("framework", sorted({entry["framework"] for entry in ENTRIES}))
def test_what_frameworks_return_gets_the_figures_of_balls(framework):
    found = {}
    for entry in ENTRIES:
        if entry["framework"] == framework:
            measured = engine.measure(*problem(entry), include=("ranks",), worst=0)
            if wrong := kept.differences(measured.metrics, figures(entry)):
                found[entry["asked"], entry["row"]] = wrong
    assert not found


def test_a_figure_that_is_off_by_a_billionth_is_noticed():
    entry = next(e for e in ENTRIES if e["asked"] == "softmax" and e["figures"]["kl"][0] > 0)
    metrics = engine.measure(*problem(entry), include=("ranks",), worst=0).metrics
    good = figures(entry)
    assert not kept.differences(metrics, good)
    for name in ("max_ulp", "max_rel", "max_rel_normal", "max_abs", "sum_defect", "p99_ulp"):
        assert kept.differences(metrics, good | {name: good[name] * (1 + 2e-9)}) == [name]
    for name in ("n", "compared", "correctly_rounded", "max_ulp_ordinal", "zero_count", "argmax_preserved", "rank_inversions"):
        assert kept.differences(metrics, good | {name: good[name] + 1}) == [name]
    for name in ("mean_ulp", "bias_ulp"):
        assert kept.differences(metrics, good | {name: good[name] + 2.0**-19}) == [name]
    for name in ("kl", "total_variation", "backward_error"):
        worst, mean, row = good[name]
        assert kept.differences(metrics, good | {name: [worst * (1 + 4e-6), mean, row]}) == [name]


def test_every_framework_op_and_format_is_kept_or_was_refused():
    have = {(e["framework"], e["asked"], e["row"].split("/")[0]) for e in ENTRIES}
    refused = {tuple(key.split()) for key in STORED["provenance"]["refused"]}
    ops = {framework: {asked for name, asked, _ in have if name == framework} for framework, _, _ in have}
    assert {"torch", "jax", "onnxruntime", "scipy", "numpy"} <= set(ops)
    assert have == {(f, a, fmt) for f in ops for a in ops[f] for fmt in kept.DTYPES} - refused


def test_the_balls_agree_with_the_judge():
    """The roundings that the kept figures rest on, by a second path to the same definitions."""
    for entry in ENTRIES[::7]:
        given, _ = problem(entry)
        fmt = entry["row"].split("/")[0]
        target = (
            None if given.targets is None else given.targets.astype(float).tolist() if given.targets.ndim else int(given.targets)
        )
        logits = given.logits.astype(float).tolist()
        own = kept.row(given.op, fmt, logits, target).rounded
        theirs = [judge.from_ordinal(int(k), fmt) if not math.isnan(k) else k for k in judge.rounded(given.op, logits, target, fmt)]
        assert own.tolist() == theirs
