"""Experiments of the literature, repeated on their own data by the catalogue's variants and judged by the certified truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import numpy as np

from engine import formats
from engine.arithmetic import Arithmetic
from engine.errors import InvalidProblem
from engine.formats import FORMATS, widen
from engine.model import Algorithm, Array, Axes, Experiment, Problem
from engine.truth import Enclosure, Truth, hull
from engine.variants import VARIANTS

ALGORITHMS = {
    "basic log-sum-exp": "logsumexp/naive",
    "shifted log-sum-exp": "logsumexp/log1p",
    "basic softmax": "softmax/naive",
    "basic softmax without a division": "softmax/subtractive_naive",
    "shifted softmax": "softmax/max_left_out",
    "shifted softmax without a division": "softmax/subtractive",
}
"""The six algorithms of Blanchard, Higham and Higham, as variants."""

_Row = list[Fraction]


@dataclass(frozen=True)
class _Setting:
    """A format of the experiment. unit: the authors' constant for its unit roundoff; their chop flushes subnormal bfloat16."""

    format: str
    unit: float
    subnormals: str


_SETTINGS = (_Setting("float16", 4.88e-4, "gradual"), _Setting("bfloat16", 3.91e-3, "flush"))


def bhh(logits: Array) -> tuple[Experiment, ...]:
    """The experiment of Blanchard, Higham and Higham (doi 10.1093/imanum/draa038, section 5) on rows of logits, shape (rows, n).

    The logits are rounded to each format, every operation is rounded to it, exp and log correctly or nearly so, sums are added in
    sequence. Errors are |f - T| / |T| of a log-sum-exp and max |g - T| / max |T| of a softmax, in units of the roundoff that the
    authors' scripts state (higham/logsumexp-softmax-tests), T the certified truth for the rounded logits (theirs is binary32).
    Raises InvalidProblem for logits of another rank, and where one is not finite in a format.
    """
    if logits.ndim != 2 or 0 in logits.shape:
        raise InvalidProblem(f"logits have shape {list(logits.shape)}; the experiment takes rows of logits: rank 2, nothing empty")
    if not np.isfinite(widen(logits)).all():
        raise InvalidProblem("a logit is not finite; the experiment is about finite ones: leave its row out")
    return tuple(_experiment(logits, setting) for setting in _SETTINGS)


def _experiment(logits: Array, setting: _Setting) -> Experiment:
    fmt = FORMATS[setting.format]
    x = formats.round_array(logits, fmt)
    if not np.isfinite(widen(x)).all():
        raise InvalidProblem(f"a logit overflows {fmt.name}, whose largest number is {fmt.largest}; leave its row out")
    k = Arithmetic(fmt, "sequential", axes=Axes(exp="correct", subnormals=setting.subnormals))
    outputs = {name: widen(VARIANTS[key].run(x, k)).reshape(len(x), -1) for name, key in ALGORITHMS.items()}
    truths = {op: _truth(Truth(Problem(op, x), fmt)) for op in ("logsumexp", "softmax")}
    survived = np.isfinite(outputs["basic log-sum-exp"][:, 0])
    found = partial(_algorithm, survived, setting.unit)
    named = (found(name, key, outputs[name], truths[key.split("/")[0]]) for name, key in ALGORITHMS.items())
    return Experiment(fmt.name, len(x), x.shape[1], setting.unit, setting.subnormals, int(survived.sum()), tuple(named))


def _truth(truth: Truth) -> list[_Row]:
    """The truth of each row to 2^-78 and better."""
    return [[_middle(cell) for cell in truth.row(row, truth.bits)] for row in range(truth.rows)]


def _middle(cell: Enclosure) -> Fraction:
    assert not isinstance(cell, float)  # of finite logits, no truth is infinite
    lo, hi, exp = hull(cell)
    return Fraction(lo + hi, 2) * Fraction(2) ** exp


def _algorithm(survived: Array, unit: float, name: str, key: str, output: Array, truth: Sequence[_Row]) -> Algorithm:
    finite = np.isfinite(output).all(axis=1)
    errors = np.full(len(output), np.nan)
    for row in np.flatnonzero(finite).tolist():
        differences = [abs(Fraction(c) - t) for c, t in zip(output[row].tolist(), truth[row], strict=True)]
        size = max(map(abs, truth[row]))
        errors[row] = float(max(differences) / size / Fraction(unit)) if size else np.inf if max(differences) else 0.0
    sums = output[survived & finite].sum(axis=1) if key.startswith("softmax") else np.zeros(0)
    low, high = (float(sums.min()), float(sums.max())) if sums.size else (None, None)
    chosen = errors[survived & finite]
    return Algorithm(
        name=name,
        variant=key,
        overflows=int((~finite).sum()),
        max_error=_figure(chosen, np.max),
        mean_error=_figure(chosen, np.mean),
        mean_error_of_all=_figure(errors[finite], np.mean),
        least_sum=low,
        largest_sum=high,
    )


def _figure(errors: Array, figure: Callable[[Array], float]) -> float | None:
    return float(figure(errors)) if errors.size else None
