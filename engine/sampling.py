"""Which rows of a large output are judged: those wrong at sight, the ends, those unlike the others, and some of every part.

All logits and the whole output are looked at once, block by block, by exact operations alone; what is drawn besides is drawn by a
hash of (seed, counter). So the rows depend on the bytes and the seed, and on no version, processor or split.

    nonfinite    rows whose NaN and infinities are not those that their logits ask for: such a row is wrong, or has overflowed
    ends         the first row and the last
    sum          rows whose sum is farthest from what it must be; of log_softmax, whose largest element is farthest from [-log n, 0]
    largest      rows with the largest element in magnitude: the most peaked
    smallest     rows whose largest element is the smallest in magnitude: the flattest, or empty
    zeros        rows with the most zeros
    spread       of the other rows, in their order and cut into as many equal parts as are still wanted, one of each

A row counts for the first stratum that has it. nonfinite takes at most half of the rows that are wanted, and 4096; sum to zeros a
sixteenth each, and 256; all of them at least one, while there is room. Among equal rows the hash chooses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log, prod
from typing import Any

import numpy as np

from engine import formats, ops
from engine.errors import InvalidProblem
from engine.model import Array, Problem, Sample, Sampled

BLOCK = 1 << 20
"""Elements that are looked at together."""
LARGEST = 2**53
"""Of the numbers of a sample: JSON holds them as they are."""
UNLIKE = ("sum", "largest", "smallest", "zeros")
_SUMS: Mapping[str, float] = {"softmax": 1.0, "cross_entropy_grad": 0.0, "softmax_jacobian": 0.0, "softmax_vjp": 0.0}
_UNIT = 2.0**30
"""Sums are of integers, so that they are exact: elements, at most 2, in units of 2^-30, at most 2^31 of them."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """Rows by their numbers, ascending, and what is told of them."""

    rows: Array
    told: Sampled

    def problem(self, problem: Problem) -> Problem:
        """That of these rows, which stand one below the other."""
        batch = problem.logits.shape[:-1]
        params, given = problem.params, (problem.targets, problem.grad_output)
        if params.mask is not None and params.mask.shape == problem.logits.shape:
            params = replace(params, mask=some(params.mask, batch, self.rows))
        targets, grad_output = (None if tensor is None else some(tensor, batch, self.rows) for tensor in given)
        return Problem(problem.op, some(problem.logits, batch, self.rows), targets, grad_output, params)

    def output(self, output: Array, problem: Problem) -> Array:
        """What an output of the whole problem has for these rows."""
        return some(output, problem.logits.shape[:-1], self.rows)


def draw(problem: Problem, output: Array, sample: Sample, nonfinite: str = "ieee") -> Drawn | None:
    """The rows to be judged of an output, both with the reduced axis at the end; None where these are all of them.

    nonfinite: what is right for rows without a truth. Raises InvalidProblem for a sample that is none, and where the rows depend on
    one another: a reduction to one number, or the gradient of a mean.
    """
    check(problem, sample)
    count = prod(problem.logits.shape[:-1])
    if sample.rows >= count:
        return None
    found = _Found(sample, count)
    for rows in blocks(problem):
        found.look(problem, output, nonfinite, rows)
    strata = dict(found.strata())
    chosen = sorted(row for members in strata.values() for row in members)
    told = Sampled(len(chosen), count, sample.seed, {name: len(members) for name, members in strata.items()})
    return Drawn(np.array(chosen, np.int64), told)


def check(problem: Problem, sample: Sample) -> None:
    """Raises InvalidProblem."""
    for name, value, least in (("rows", sample.rows, 1), ("seed", sample.seed, 0)):
        if type(value) is not int or not least <= value <= LARGEST:
            raise InvalidProblem(f"{name} of a sample is {value!r}; it is an integer from {least} to 2^53")
    reduction = problem.params.reduction
    if reduction == "mean" or (reduction == "sum" and problem.op != "cross_entropy_grad"):
        raise InvalidProblem(
            f"with reduction {reduction} the result of a row depends on the others, so that a sample cannot be judged; "
            "leave sample out, or post what there is before the reduction"
        )


def everything(rows: int, sample: Sample) -> Sampled:
    """What is told of a sample that is all rows."""
    return Sampled(rows, rows, sample.seed, {"all": rows})


def blocks(problem: Problem) -> Iterator[Array]:
    """The numbers of all rows of logits, so many at a time that their elements can be copied."""
    *batch, n = problem.logits.shape
    step = max(1, BLOCK // max(n, ops.OPS[problem.op].width(n)))
    for start in range(0, prod(batch), step):
        yield np.arange(start, min(start + step, prod(batch)))


def some(tensor: Array, batch: Sequence[int], rows: Array) -> Array:
    """Rows of a tensor of shape batch + (...,), one below the other, by their numbers in C order."""
    return np.asarray(tensor[np.unravel_index(rows, tuple(batch))] if batch else tensor[None])


def kept(problem: Problem, rows: Array) -> Array:
    """Rows of logits in binary64, -inf where masked."""
    batch, mask = problem.logits.shape[:-1], problem.params.mask
    x = formats.widen(some(problem.logits, batch, rows))
    return x if mask is None else np.where(mask if mask.ndim == 1 else some(mask, batch, rows), x, -np.inf)


def hashed(seed: int, counters: Array) -> Array:
    """64 bits for each counter: SplitMix64 of Steele, Lea and Flood (doi 10.1145/2660193.2660195), from a hash of the seed on."""
    with np.errstate(over="ignore"):
        start = _mixed(np.array(seed, np.uint64) + _GAMMA)
        return _mixed(start + counters.astype(np.uint64) * _GAMMA)


_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mixed(z: Array) -> Array:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


# ---- looking at everything ---------------------------------------------------------------------------------------------


class _Best:
    """The rows of the largest scores; of equal ones those that the hash prefers. -inf: no row of this kind."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept = (np.empty(0), np.empty(0, np.uint64), np.empty(0, np.int64))

    def offer(self, scores: Array, ties: Array, rows: Array) -> None:
        there = scores > -np.inf
        given = (scores[there], ties[there], rows[there])
        score, tie, row = (np.concatenate(pair) for pair in zip(self._kept, given, strict=True))
        if score.size > self._count:  # only what may stay is sorted
            least = np.partition(score, -self._count)[-self._count]
            above, equal = np.flatnonzero(score > least), np.flatnonzero(score == least)
            room = self._count - above.size
            equal = equal[tie[equal] <= np.partition(tie[equal], room - 1)[room - 1]]
            score, tie, row = (values[np.concatenate([above, equal])] for values in (score, tie, row))
        order = np.lexsort((row, tie, -score))[: self._count]
        self._kept = (score[order], tie[order], row[order])

    def __iter__(self) -> Iterator[int]:
        return iter(self._kept[2].tolist())


class _Found:
    """What one look at everything finds."""

    def __init__(self, sample: Sample, count: int) -> None:
        self._sample, self._count = sample, count
        self._half, self._few = min(-(-sample.rows // 2), 4096), min(max(1, sample.rows // 16), 256)
        self._wrong = _Best(self._half)
        reach = 2 + len(UNLIKE) * self._few  # some may be taken by the strata before
        self._best = {name: _Best(reach) for name in UNLIKE}

    def look(self, problem: Problem, output: Array, nonfinite: str, rows: Array) -> None:
        """Some rows."""
        batch, op = problem.logits.shape[:-1], ops.OPS[problem.op]
        c, x = formats.widen(some(output, batch, rows)).reshape(len(rows), -1), kept(problem, rows)
        top, low, high = x.max(axis=1), c.min(axis=1), c.max(axis=1)  # NaN where one is
        ties = hashed(self._sample.seed, rows)
        wrong = _wrong(op, x, c, top, low, high, nonfinite)
        self._wrong.offer(np.where(wrong, 0.0, -np.inf), ties, rows)
        size = np.maximum(np.abs(np.where(low == -np.inf, high, low)), np.abs(high))
        usual = ~wrong & np.isfinite(top) & np.isfinite(size)
        zeros = np.count_nonzero(c == 0, axis=1).astype(np.float64)
        scores = {"sum": _off(op, c, top, high), "largest": size, "smallest": -size, "zeros": np.where(zeros > 0, zeros, -np.inf)}
        for name, score in scores.items():
            self._best[name].offer(np.where(usual, score, -np.inf), ties, rows)

    def strata(self) -> Iterator[tuple[str, list[int]]]:
        """The rows of each."""
        left, taken = self._sample.rows, set[int]()
        for name, most, offered in (
            ("nonfinite", self._half, list(self._wrong)),
            ("ends", 2, [0, self._count - 1]),
            *((name, self._few, list(self._best[name])) for name in UNLIKE),
        ):
            members = [row for row in offered if row not in taken][: min(most, left)]
            left, taken = left - len(members), taken | set(members)
            yield name, members
        yield "spread", self._spread(taken, left)

    def _spread(self, taken: set[int], wanted: int) -> list[int]:
        """One row of each of so many equal parts of what is not taken."""
        if not wanted:
            return []
        gone = np.array(sorted(taken), np.int64)
        edges = np.arange(wanted + 1, dtype=np.int64) * (self._count - gone.size) // wanted
        start, size = edges[:-1], np.diff(edges)
        places = start + (hashed(~self._sample.seed % 2**63, start) % size.astype(np.uint64)).astype(np.int64)
        # the place-th row that is not gone: as many are gone before it as have no more free rows before them than it has
        return list((places + np.searchsorted(gone - np.arange(gone.size), places, side="right")).tolist())


def _off(op: ops.Op, c: Array, top: Array, high: Array) -> Array:
    """How far a row is from something that holds for all of them; -inf where nothing does."""
    if op.name == "log_softmax":
        return np.maximum(high, -float(np.float32(log(c.shape[1]))) - high)  # in float32 the same from every library
    if op.name not in _SUMS:
        return np.full(len(c), -np.inf)
    with np.errstate(invalid="ignore"):
        units = np.rint(np.clip(np.nan_to_num(c), -2.0, 2.0) * _UNIT).astype(np.int64)
    return np.asarray(np.abs(units.sum(axis=1) - int(_SUMS[op.name] * _UNIT)).astype(np.float64))


def _wrong(op: ops.Op, x: Array, c: Array, top: Array, low: Array, high: Array, nonfinite: str) -> Array:
    """Whether a row's NaN and infinities are others than those that its logits ask for."""
    finite = np.isfinite(top)
    wrong = finite & ~(np.isfinite(low) & np.isfinite(high))
    if op.name == "log_softmax":
        doubtful = np.flatnonzero(finite & (high < np.inf) & (wrong | (x.min(axis=1) == -np.inf)))
        wrong[doubtful] = ((x[doubtful] == -np.inf) != (c[doubtful] == -np.inf)).any(axis=1)
    gone = top == -np.inf
    masked: Any = op.fully_masked
    if op.name in FIXED and nonfinite == "masked_zero":
        masked = FIXED[op.name]
    if op.name in FIXED and nonfinite == "masked_uniform":  # any one number
        masked = np.where(np.isfinite(high), high, -1.0)[gone, None]
    for rows, fill in ((np.isnan(top), np.nan), (top == np.inf, op.infinite), (gone, masked)):
        wrong[rows] = ~((c[rows] == fill) | (np.isnan(c[rows]) & np.isnan(fill))).all(axis=1)
    return np.asarray(wrong)


FIXED: Mapping[str, float] = {"softmax": 0.0, "log_softmax": -np.inf}
"""What masked_zero wants of a row that is masked altogether, by op."""
