"""`softgauge check` of a suite of 200 cases, with an empty baseline and with one that it equals, as Markdown.

The baseline of the figure is `softgauge check` of one case: what starting costs. All of them take turns, in a folder of their own.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROUNDS = 5
ROOT = Path(__file__).parent.parent
SUITE = """\
version = 1
[defaults]
op = "softmax"
gate = "none"
family = "gaussian"
parameters = { sigma = 4 }
n = 1000
variant = "shifted"
[[case]]
name = "formats"
[case.grid]
format = ["float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"]
seed = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
[[case]]
name = "gated"
gate = { policy = "bound" }
format = "float32"
[case.grid]
op = ["softmax", "log_softmax"]
summation = ["numpy", "pairwise", "kahan"]
seed = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
[[case]]
name = "losses"
op = "cross_entropy"
variant = "split"
[case.grid]
format = ["float16", "bfloat16", "float32", "float64"]
seed = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
[[case]]
name = "gradients"
op = "cross_entropy_grad"
variant = "fused"
[case.grid]
format = ["float16", "bfloat16", "float32", "float64"]
seed = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
"""
CHECK = [sys.executable, "-m", "service.cli", "check"]


def tables() -> Iterator[str]:
    """One row a run; goals are those of two cores."""
    taken: dict[str, list[float]] = {"new": [], "unchanged": [], "one case": []}
    with tempfile.TemporaryDirectory() as folder:
        suite = Path(folder) / "softgauge.toml"
        suite.write_text(SUITE)
        for _ in range(ROUNDS):
            (Path(folder) / ".softgauge" / "baseline.json").unlink(missing_ok=True)
            taken["new"].append(_seconds(suite, "--accept", "--reason", "benchmark"))
            taken["unchanged"].append(_seconds(suite))
            taken["one case"].append(_seconds(suite, "--case", "formats?format=float32,seed=0]"))
    alone = statistics.median(taken["one case"])
    yield "## Check: 200 cases of 1000 logits, every format, 2 processes\n"
    yield "| what | median s | times that of one case | goal |\n|---|---|---|---|"
    for name, goal in (("new", "<= 10 s"), ("unchanged", "<= 5 s"), ("one case", "")):
        found = statistics.median(taken[name])
        yield f"| {name} | {found:.2f} | {found / alone:.1f} | {goal} |"
    yield ""


def _seconds(suite: Path, *arguments: str) -> float:
    before = time.perf_counter()
    subprocess.run([*CHECK, suite, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - before
