"""Random problems, and what right implementations make of them: one seed, one case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import log

import numpy as np

from engine import FORMATS, Axes, Problem, round_array
from engine import params as around
from engine.arithmetic import Arithmetic
from engine.formats import Format, from_ordinals, ordinals, widen
from engine.model import Array, Params
from engine.ops import OPS
from engine.summation import LANES
from engine.truth import certified
from engine.variants import Variant, of_op

Draw = Callable[[np.random.Generator, int, int, Format], Array]
FORMAT_NAMES = tuple(FORMATS)
TREES = ("numpy", "pairwise", "blocked", "exact", "kahan", "neumaier")
"""Summations of few roundings a term at any length."""
IN_ORDER = ("sequential", "reverse", "warp")
"""Those whose terms pass through as many additions as the row, or its 32nd part, is long, and so are right only of short rows."""
LONGEST_JACOBIAN = 24


# ---- logits ------------------------------------------------------------------------------------------------------------


def _gaussian(rng: np.random.Generator, rows: int, n: int, _fmt: Format) -> Array:
    return rng.standard_normal((rows, n)) * 10.0 ** rng.uniform(-2, 4)


def _offset(rng: np.random.Generator, rows: int, n: int, _fmt: Format) -> Array:
    return rng.standard_normal((rows, n)) * 10.0 ** rng.uniform(-1, 1) + rng.choice((-1, 1)) * 10.0 ** rng.uniform(0, 8)


def _near_equal(rng: np.random.Generator, rows: int, n: int, fmt: Format) -> Array:
    base = np.full((rows, n), rng.standard_normal() * 10.0 ** rng.uniform(-3, 2))
    start = ordinals(round_array(np.clip(base, -fmt.largest / 2, fmt.largest / 2), fmt), fmt)
    return widen(from_ordinals(start + rng.integers(-3, 4, (rows, n)), fmt))


def _equal(rng: np.random.Generator, rows: int, n: int, _fmt: Format) -> Array:
    return np.full((rows, n), rng.choice((0.0, 1.0, -3.5, 300.0)))


def _masked(rng: np.random.Generator, rows: int, n: int, fmt: Format) -> Array:
    found = _gaussian(rng, rows, n, fmt)
    if fmt.overflow == "infinity":
        found[rng.random((rows, n)) < rng.random()] = -np.inf
        found[np.arange(rows), rng.integers(0, n, rows)] = rng.standard_normal()
    return found


def _confident(rng: np.random.Generator, rows: int, n: int, _fmt: Format) -> Array:
    found = rng.standard_normal((rows, n))
    found[np.arange(rows), rng.integers(0, n, rows)] += 10.0 ** rng.uniform(0.5, 3)
    return found


def _gaps(rng: np.random.Generator, rows: int, n: int, _fmt: Format) -> Array:
    return rng.choice((0.0, -1.0, -20.0, -90.0, -400.0, -3e3, -1e5), (rows, n)) + rng.standard_normal((rows, n))


def _tails(rng: np.random.Generator, rows: int, n: int, fmt: Format) -> Array:
    """Most probabilities are subnormal, or about the smallest of those."""
    low, high = -log(fmt.smallest_normal) - 2, -log(fmt.smallest_subnormal) + 2
    found = -rng.uniform(low, high, (rows, n))
    found[np.arange(rows), rng.integers(0, n, rows)] = 0.0
    return found


def _ramp(rng: np.random.Generator, rows: int, n: int, _fmt: Format) -> Array:
    found = np.linspace(0.0, 10.0 ** rng.uniform(-1, 3), n)
    return np.tile(found if rng.random() < 0.5 else found[::-1], (rows, 1))


def _unit(rng: np.random.Generator, rows: int, n: int, _fmt: Format) -> Array:
    return rng.random((rows, n))


def _halves(rng: np.random.Generator, rows: int, n: int, _fmt: Format) -> Array:
    return rng.integers(-8, 9, (rows, n)) / 2


KINDS: Mapping[str, Draw] = {
    "gaussian": _gaussian,
    "offset": _offset,
    "near equal": _near_equal,
    "equal": _equal,
    "masked": _masked,
    "confident": _confident,
    "gaps": _gaps,
    "tails": _tails,
    "ramp": _ramp,
    "unit": _unit,
    "halves": _halves,
}


def logits(kind: str, rng: np.random.Generator, rows: int, n: int, fmt: Format) -> Array:
    """Finite, or -inf where masked, in a format; none of its rows wholly masked."""
    found = KINDS[kind](rng, rows, n, fmt)
    return round_array(np.where(found == -np.inf, found, np.clip(found, -fmt.largest, fmt.largest)), fmt)


# ---- problems ----------------------------------------------------------------------------------------------------------


def problem(op: str, x: Array, rng: np.random.Generator, masks: bool = False) -> Problem:
    """With targets, by index or by weight, and grad_output of the logits' format, as the op has them."""
    targets = grad = None
    fmt = FORMATS[x.dtype.name]
    if "targets" in OPS[op].tensors:
        targets = rng.integers(0, x.shape[-1], x.shape[:-1])
        if rng.random() < 0.4:
            y = rng.random(x.shape) ** rng.integers(1, 9)
            y = y / y.sum(axis=-1, keepdims=True) if rng.random() < 0.7 else np.where(rng.random(x.shape) < 0.5, 0.0, y)
            targets = round_array(np.where(np.isneginf(widen(x)), 0.0, y), fmt)
    if "grad_output" in OPS[op].tensors:
        grad = round_array(np.clip(rng.standard_normal(x.shape) * 10.0 ** rng.uniform(-3, 2), -fmt.largest, fmt.largest), fmt)
    params = {"mask": rng.random(x.shape) < 0.8} if masks else {}
    if masks:
        params["mask"] |= ~(params["mask"] & np.isfinite(widen(x))).any(axis=-1, keepdims=True)
        if targets is not None and targets.ndim == x.ndim:  # a weight behind the mask makes the loss infinite, or NaN
            params = {}
    return Problem(op, x, targets, grad, Params(**params))


@dataclass(frozen=True)
class Made:
    """A right implementation: a variant to be recommended, in an arithmetic of float32 or wider."""

    variant: Variant
    compute: str
    summation: str
    axes: Axes

    def __str__(self) -> str:
        a = self.axes
        said = f"{self.variant.key} {self.compute}, {self.summation} in {a.accumulator or self.compute}, exp {a.exp}"
        return f"{said}{', fma' * a.fma} -> {a.output_format}"

    def output(self, given: Problem) -> Array:
        """Of tensors that its format holds exactly."""
        fmt = FORMATS[self.compute]
        cast = partial(round_array, fmt=fmt)
        y = given.targets
        stored = Problem(
            given.op,
            cast(given.logits),
            y if y is None or y.dtype.kind in "iu" else cast(y),
            None if given.grad_output is None else cast(given.grad_output),
            given.params,
        )
        return around.run(self.variant, stored, Arithmetic(fmt, self.summation, axes=self.axes))


@dataclass(frozen=True)
class Case:
    """A problem, the format of its outputs, and one right implementation of it."""

    seed: int
    kind: str
    given: Problem
    output: str
    made: Made

    def __str__(self) -> str:
        x = self.given.logits
        return f"seed {self.seed}: {self.given.op} of {x.dtype.name} {list(x.shape)}, {self.kind}; {self.made}"


def stable(op: str) -> list[Variant]:
    """What is recommended for an op without params."""
    return [row for row in of_op(op) if row.stable and not row.needs]


def draw(seed: int, longest: int = 4096, op: str | None = None, elements: int = 8192) -> Case:
    """One case. longest: logits of a row; elements: of a problem."""
    rng = np.random.default_rng(seed)
    op = op or str(rng.choice(list(OPS)))
    kind, output, held = (str(rng.choice(list(names))) for names in (KINDS, FORMAT_NAMES, FORMAT_NAMES))
    masks = bool(rng.random() < 0.05)
    if masks or output == "float8_e4m3fn":  # the exact path's, which takes a hundred times as long
        elements = 256
    most = LONGEST_JACOBIAN if op == "softmax_jacobian" else min(longest, elements)
    n = max(1, round(float(most ** rng.random())))
    rows = int(rng.integers(1, max(1, min(8, elements // n)) + 1))
    given = problem(op, logits(kind, rng, rows, n, FORMATS[held]), rng, masks)
    double = "float64" in (held, output) or rng.random() < 0.1
    return Case(seed, kind, given, output, made(op, n, output, "float64" if double else "float32", rng))


def made(op: str, n: int, output: str, compute: str, rng: np.random.Generator) -> Made:
    """One of the implementations that the default gate must let through on a row of n."""
    rows = [row for row in stable(op) if n <= LANES or row.name != "online"]  # it adds in order
    summation = str(rng.choice((*TREES, *IN_ORDER) if n <= LANES else TREES))
    axes = Axes(
        output_format=output,
        accumulator=str(rng.choice((compute, compute, "float64"))),
        exp=str(rng.choice(("numpy", "correct", "exp2"))),
        fma=bool(rng.random() < 0.3),
    )
    return Made(rows[int(rng.integers(len(rows)))], compute, summation, axes)


def rounded(given: Problem, output: str) -> Array:
    """The truth, correctly rounded."""
    return certified(given, FORMATS[output]).rounded()
