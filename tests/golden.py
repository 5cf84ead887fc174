"""Golden values of the truth, kept in data/golden/truth.json in hex and reviewed as a diff.

Made by the judge (Arb's balls by python-flint), never by the engine. Regenerate with `python -m tests.golden`.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from tests import judge

PATH = Path(__file__).parent / "data" / "golden" / "truth.json"
PROVENANCE = "Arb balls (python-flint), rounded by rational arithmetic in tests/judge.py; regenerate with `python -m tests.golden`"
ROWS: dict[str, tuple[list[float], int, list[float], list[float]]] = {  # logits, class index, weights, grad_output
    "sure": ([0.0, -40.0], 0, [1.0, 0.0], [1.0, -1.0]),
    "offset": ([1000.0, 999.0, 998.0], 1, [0.5, 0.25, 0.25], [1.0, 0.0, -1.0]),
    "ten": ([0.5, -1.25, 3.0, 2.75, -7.5, 0.0, 1.0, -0.125, 2.0, -3.0], 3, [0.125] * 8 + [0.0] * 2, [1.0, -1.0] * 5),
    "equal": ([1.5, 1.5, 1.5], 2, [1.0, 1.0, 1.0], [1.0, 2.0, 4.0]),
    "tied": ([2.0, 2.0, -20.0], 0, [1.0, 0.5, 0.0], [1.0, 0.0, 1.0]),
    "masked": ([1.0, -math.inf, 2.0, 0.0], 2, [0.25, 0.0, 0.5, 0.25], [3.0, 7.0, -1.0, 0.5]),
    "far": ([0.0, -16.5, -87.0, -104.0], 1, [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]),
    "midpoint": ([1.0, -2048.0, -4096.0], 0, [1.0, 1.0, 0.0], [1.0, 0.5, 0.25]),
    "one": ([-0.75], 0, [2.0], [1.0]),
}


def read() -> list[dict[str, Any]]:
    """The cases of the golden file."""
    return json.loads(PATH.read_text())["cases"]


def inputs(case: dict[str, Any]) -> tuple[list[float], int | list[float] | None]:
    """Logits and target of a case."""
    target = case["target"]
    return [float.fromhex(x) for x in case["logits"]], [float.fromhex(y) for y in target] if isinstance(target, list) else target


def write() -> None:
    """Make the file anew from the judge."""
    cases = [case(name, op, fmt, soft) for name in ROWS for op in judge.OPS for fmt in judge.FORMATS for soft in kinds(op)]
    cases = [entry for entry in cases if len(entry["rounded"]) <= 16]
    lines = ",\n".join("  " + json.dumps(entry) for entry in cases)
    PATH.write_text(f'{{"provenance": {json.dumps(PROVENANCE)},\n "cases": [\n{lines}\n]}}\n')


def kinds(op: str) -> tuple[bool, ...]:
    """Whether with weights: losses take a class index or weights."""
    return (False, True) if op.startswith("cross_entropy") else (False,)


def case(name: str, op: str, fmt: str, soft: bool) -> dict[str, Any]:
    """One case as it stands in the file."""
    logits, index, weights, grad = ROWS[name]
    logits = [judge.nearest(x, fmt) for x in logits]
    target = (weights if soft else index) if op.startswith("cross_entropy") else grad if op == "softmax_vjp" else None
    found = judge.rounded(op, logits, target, fmt)
    values = [x if x is None or math.isnan(x) else judge.from_ordinal(int(x), fmt) for x in found]
    return {
        "name": f"{name}-{op}-{fmt}" + ("-weights" if soft else ""),
        "op": op,
        "format": fmt,
        "logits": [text(x) for x in logits],
        "target": [text(y) for y in target] if isinstance(target, list) else target,
        "rounded": [text(x) for x in values],
    }


def text(x: float | None) -> str:
    """Hex of a finite number, the name of a special one."""
    if x is None:
        raise ValueError("the judge did not decide a golden value")
    return re.sub(r"\.?0*p", "p", x.hex()) if math.isfinite(x) else str(x)


if __name__ == "__main__":
    write()
