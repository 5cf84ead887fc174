"""What the certified truth must reach: each figure beside its goal, measured in turn with what it is compared to.

A check is the whole of engine.measure: convert, truth, residual, every figure, and what is left to finer tiers.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import cache, partial
from math import exp, log
from pathlib import Path
from typing import NamedTuple

import mpmath
import numpy as np
from numpy.typing import NDArray
from scipy import special

import engine
from engine.bounds import Tolerance, stable
from engine.screen import Work, screen
from engine.truth import fast
from service.split import split

Array = NDArray[np.generic]

ROUNDS = 7
SIGMA = 10.0
ELEMENTS = 10**6
WIDTHS = (10, 1000, 32_000)
FORMATS = ("float16", "float32", "float64")
MANY = (3125, 32_000)  # 1e8 elements
VOCABULARY = (4096, 32_000)
LOOP_BITS = 113


class Goal(NamedTuple):
    """A figure that must be reached. unit: what is written behind the figure."""

    name: str
    measured: Callable[[], float]
    sign: str
    limit: float | None
    unit: str = ""

    def line(self) -> str:
        """The row of the table."""
        figure = self.measured()
        met = self.limit is None or (figure <= self.limit if self.sign == "<=" else figure >= self.limit)
        goal = "" if self.limit is None else f"{self.sign} {self.limit:g}{self.unit}"
        return f"| {self.name} | {figure:.3g}{self.unit} | {goal} | {'' if met else 'missed'} |"


class Cell(NamedTuple):
    """Seconds of a check and of scipy's softmax on the same array, medians, and the median of their ratios."""

    check: float
    scipy: float
    ratio: float


# Inputs


@cache
def logits(n: int, fmt: str) -> Array:
    """A million logits in rows of n."""
    return engine.round_array(engine.generate("gaussian", ELEMENTS // n, n, 1, sigma=SIGMA), engine.FORMATS[fmt])


def computed(x: Array, function: Callable[..., Array]) -> Array:
    """scipy's function of each row in the logits' format; in float32, then rounded, where that is narrower."""
    wide = x.astype(np.float32) if x.dtype.itemsize < 4 else x
    return engine.round_array(np.asarray(function(wide, axis=-1)), engine.FORMATS[x.dtype.name])


def filled(shape: tuple[int, int], fmt: str) -> tuple[Array, Array, float]:
    """Large logits and their softmax, made a few rows at a time; seconds that scipy took."""
    dtype = engine.FORMATS[fmt].dtype
    x, p = np.empty(shape, dtype), np.empty(shape, dtype)
    random = np.random.default_rng(1)
    taken = 0.0
    for first in range(0, shape[0], 32):
        rows = slice(first, first + 32)
        x[rows] = engine.round_array(SIGMA * random.standard_normal(x[rows].shape), engine.FORMATS[fmt])
        start = time.perf_counter()
        p[rows] = computed(x[rows], special.softmax)
        taken += time.perf_counter() - start
    return x, p, taken


# Checks


def seconds(run: Callable[[], object]) -> float:
    """Of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turn(ours: Callable[[], object], theirs: Callable[[], object], rounds: int = ROUNDS) -> Cell:
    """Both, round by round, after one round that is not counted."""
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds + 1)][1:]
    first, second = zip(*pairs, strict=True)
    return Cell(statistics.median(first), statistics.median(second), statistics.median(a / b for a, b in pairs))


def check(x: Array, output: Array) -> Callable[[], object]:
    """Measures a softmax."""
    return partial(engine.measure, engine.Problem("softmax", x), output)


@cache
def cell(n: int, fmt: str) -> Cell:
    """One of the nine."""
    x = logits(n, fmt)
    return in_turn(check(x, computed(x, special.softmax)), lambda: special.softmax(x, axis=-1))


def cells() -> Iterator[tuple[int, str, Cell]]:
    """All nine."""
    for n in WIDTHS:
        for fmt in FORMATS:
            yield n, fmt, cell(n, fmt)


def mean() -> float:
    """The geometric mean of the nine ratios."""
    return exp(statistics.mean(log(found.ratio) for _, _, found in cells()))


def worst() -> float:
    """The largest of the nine ratios."""
    return max(found.ratio for *_, found in cells())


def screened(tier: fast.Tier) -> float:
    """The ratio of one pass of a tier over a million float32 logits, n = 32000; nothing is refined."""
    x = logits(32_000, "float32")
    work = Work("softmax", "float32", tier, x, None, computed(x, special.softmax), np.arange(len(x)), 8, CHOSEN)
    return in_turn(partial(screen, work), lambda: special.softmax(x, axis=-1)).ratio


CHOSEN = (Tolerance((stable("softmax", engine.FORMATS["float32"]),)),) * 2
"""The bound that a check holds an output against."""


@cache
def many() -> float:
    """The ratio on 1e8 elements, whose softmax scipy computes in rows that fit in its cache."""
    x, p, _ = filled(MANY, "float32")
    run = check(x, p)
    rows = [slice(first, first + 32) for first in range(0, MANY[0], 32)]
    return in_turn(run, lambda: [special.softmax(x[part], axis=-1) for part in rows], 3).ratio


def loop(fmt: str) -> float:
    """How many times faster than mpmath a check is, per element; mpmath takes one row."""
    x = logits(32_000, fmt)
    context = mpmath.MPContext()
    context.prec = LOOP_BITS
    row = x[0].astype(np.float64).tolist()
    found = in_turn(check(x, computed(x, special.softmax)), lambda: plain(row, context), 3)
    return len(x) / found.ratio


def plain(row: list[float], context: mpmath.MPContext) -> list[object]:
    """The truth alone, by exp, sum and divide."""
    terms = [context.exp(value) for value in row]
    total = sum(terms, context.zero)
    return [term / total for term in terms]


def one_hot(x: Array, targets: Array) -> Array:
    """The targets as distributions."""
    return (np.arange(x.shape[-1]) == targets[:, None]).astype(x.dtype)


OPS: dict[str, Callable[[Array, Array], Array]] = {
    "log_softmax": lambda x, _: computed(x, special.log_softmax),
    "logsumexp": lambda x, _: computed(x, special.logsumexp),
    "cross_entropy": lambda x, t: computed(x, special.logsumexp) - np.take_along_axis(x, t[:, None], -1)[:, 0],
    "cross_entropy_grad": lambda x, t: computed(x, special.softmax) - one_hot(x, t),
}


def op(name: str) -> float:
    """The largest of the nine ratios of a check of that op to the check of softmax."""
    return max(op_cell(name, n, fmt) for n in WIDTHS for fmt in FORMATS)


@cache
def op_cell(name: str, n: int, fmt: str) -> float:
    """A check of that op over the check of softmax on the same logits."""
    x = logits(n, fmt)
    targets = np.random.default_rng(2).integers(n, size=len(x))
    problem = engine.Problem(name, x, targets if name.startswith("cross") else None)
    ours = partial(engine.measure, problem, OPS[name](x, targets))
    return in_turn(ours, check(x, computed(x, special.softmax)), 3).ratio


# Memory


def extra() -> float:
    """Bytes an element that a check allocates beyond 4 MB, at most: 1e7 elements, so that a constant shows little."""
    x, p, _ = filled((312, 32_000), "float32")
    run = check(x, p)
    run()
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return (peak - 4e6) / x.size


@cache
def vocabulary() -> tuple[float, float]:
    """Seconds, and MB beyond the input: what this process grew by and all of what its children took, each at its peak."""
    x, p, _ = filled(VOCABULARY, "bfloat16")
    with split(2) as run:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        before = _resident("self", "VmRSS")
        taken = seconds(partial(engine.measure, engine.Problem("softmax", x), p, map=run))
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        grown = _resident("self", "VmHWM") - before + sum(_resident(child, "VmHWM") for child in children)
    return taken, grown


def _resident(pid: str, name: str) -> float:
    """A line of /proc/pid/status in MB."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024 / 1e6


# End to end


def end_to_end(processes: int) -> float:
    """Seconds of the command, from a file of a million float32 logits to its table."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "logits.npy", logits(1000, "float32"))
        asked = ["--op", "softmax", "--logits", "logits.npy", "--format", "float32", "--processes", str(processes)]
        asked += ["--variant", "naive", "--variant", "shifted"]
        command = [str(Path(sys.executable).parent / "softgauge"), "evaluate", *asked]
        return statistics.median(
            seconds(lambda: subprocess.run(command, cwd=folder, check=True, capture_output=True)) for _ in range(3)
        )


GOALS = (
    Goal("check / scipy softmax, geometric mean of the nine cells", mean, "<=", 3),
    Goal("check / scipy softmax, worst of the nine cells", worst, "<=", 16),
    Goal("the same, float32, n = 32000, without refinement, T0", partial(screened, fast.T0), "<=", 10),
    Goal("the same, float32, n = 32000, without refinement, T1", partial(screened, fast.T1), "<=", 16),
    Goal("the same, float32, n = 32000, with refinement, 1e6 elements", lambda: cell(32_000, "float32").ratio, "<=", 16),
    Goal("the same, float32, n = 32000, with refinement, 1e8 elements", many, "<=", 11),
    Goal(f"mpmath loop of {LOOP_BITS} bits / check, T0 (float32)", partial(loop, "float32"), ">=", 800),
    Goal(f"mpmath loop of {LOOP_BITS} bits / check, T1 (float64)", partial(loop, "float64"), ">=", 500),
    *(Goal(f"{name} check / softmax check, worst of the nine cells", partial(op, name), "<=", 1.5) for name in OPS),
    Goal("memory beyond the input and 4 MB, bytes an element", extra, "<=", 0.5),
    Goal("4096 x 32000 bfloat16, 2 processes", lambda: vocabulary()[0], "<=", 10, " s"),
    Goal("4096 x 32000 bfloat16, 2 processes, memory beyond the input", lambda: vocabulary()[1], "<=", 300, " MB"),
    Goal("softgauge evaluate, 1e6 float32 from .npy, two variants, 1 process", partial(end_to_end, 1), "", None, " s"),
    Goal("softgauge evaluate, 1e6 float32 from .npy, two variants, 2 processes", partial(end_to_end, 2), "", None, " s"),
)


def tables() -> Iterator[str]:
    """The nine cells, for softmax and for the other ops; then every goal."""
    yield f"## A check beside scipy.special.softmax: a million logits, sigma {SIGMA:g}, one thread\n"
    yield "| n | format | check, ns an element | scipy, ns an element | ratio |\n|---|---|---|---|---|"
    for n, fmt, found in cells():
        size = logits(n, fmt).size
        yield f"| {n} | {fmt} | {found.check / size * 1e9:.1f} | {found.scipy / size * 1e9:.2f} | {found.ratio:.2f} |"
    yield "\n## A check of another op beside that of softmax on the same logits\n"
    yield f"| n | format | {' | '.join(OPS)} |\n|---|---|{'---|' * len(OPS)}"
    for n, fmt, _ in cells():
        yield f"| {n} | {fmt} | {' | '.join(f'{op_cell(name, n, fmt):.2f}' for name in OPS)} |"
    yield "\n## What the truth must reach\n"
    yield "| what | measured | goal | |\n|---|---|---|---|"
    for goal in GOALS:
        yield goal.line()
    yield ""
