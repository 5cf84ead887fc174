"""Certified truth of a problem in a format: enclosures, correctly rounded values, and the certificate.

One tier so far, called T3 in certificates: mpmath, which decides every element.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from engine import formats, ops
from engine.errors import Undecided
from engine.formats import Format
from engine.model import Array, Certificate, Problem
from engine.truth.exact import (
    MAX_PRECISION,
    ZERO,
    Enclosure,
    Inputs,
    Row,
    Scaled,
    StandIn,
    decimal,
    enclose,
    exp_enclosure,
    hexadecimal,
    hull,
    log_enclosure,
    outward,
    scaled,
    special_name,
)

__all__ = [
    "MAX_PRECISION",
    "Enclosure",
    "Resolved",
    "StandIn",
    "Truth",
    "decimal",
    "exp_enclosure",
    "hexadecimal",
    "hull",
    "log_enclosure",
    "outward",
    "special_name",
]

SERVED_BITS = 78
FIGURE_BITS = 72
"""Bits beyond the format's precision, so that an ULP error is known to 2^-72 ulp before anything must be refined."""


@dataclass(frozen=True)
class Resolved:
    """One row of truth with every rounding decided, element by element in C order.

    ordinals: of RN_F(T), None where T is NaN. tops: floor(log2|T|), None where T is 0, NaN or infinite.
    """

    enclosures: list[Enclosure]
    ordinals: list[int | None]
    tops: list[int | None]


class Truth:
    """The exact result of a problem whose tensors are stored in `fmt`, row by row, computed when asked for.

    shape: of the output. rows: number of rows. width: output elements per row (n, 1, or n * n).
    """

    def __init__(self, problem: Problem, fmt: Format) -> None:
        self.op = ops.check(problem)
        self.problem = problem
        self.fmt = fmt
        n = problem.logits.shape[-1]
        self.shape = self.op.output_shape(problem.logits.shape)
        self.rows = problem.logits.size // n
        self.width = self.op.width(n)
        self.bits = max(SERVED_BITS, fmt.precision + FIGURE_BITS)
        self._n = n
        self._logits = formats.widen(problem.logits).reshape(self.rows, n)
        self._targets = _by_row(problem.targets, self.rows, not ops.is_index(problem))
        self._grad_output = _by_row(problem.grad_output, self.rows, True)
        self._resolved: dict[int, Resolved] = {}
        self._finest: dict[int, tuple[int, list[Enclosure]]] = {}

    def logits(self, index: int) -> Array:
        """The logits of one row, as float64."""
        return np.asarray(self._logits[index])

    def row(self, index: int, bits: int) -> list[Enclosure]:
        """Enclosures of relative width below 2^-bits; see truth.exact for what the sticky stand-in means."""
        known = self._finest.get(index)
        if known is None or known[0] < bits:
            known = (bits, self._enclose(index, bits))
            self._finest[index] = known
        return known[1]

    def resolved(self, index: int) -> Resolved:
        """The row with rounding and binade of every element decided, at `self.bits` or more where that took more."""
        if index not in self._resolved:
            self._resolved[index] = self._resolve(index)
        return self._resolved[index]

    @cached_property
    def probabilities(self) -> Truth:
        """The softmax of the same logits: itself, where it is one."""
        return self if self.op.name == "softmax" else Truth(Problem("softmax", self.problem.logits), self.fmt)

    def rounded(self) -> Array:
        """The correctly rounded result: an array of the format, shape `shape`."""
        found = [o for index in range(self.rows) for o in self.resolved(index).ordinals]
        values = formats.from_ordinals(np.array([0 if o is None else o for o in found], dtype=np.int64), self.fmt)
        values[np.array([o is None for o in found], dtype=bool)] = np.nan
        return values.reshape(self.shape)

    def certificate(self) -> Certificate:
        """How it was proven. The bound is null where every element is exact."""
        exact = all(_is_exact(e) for index in range(self.rows) for e in self.resolved(index).enclosures)
        return Certificate(None if exact else float(-self.bits), {"T3": self.rows * self.width}, 1.0)

    def _resolve(self, index: int) -> Resolved:
        bits, enclosures = self.bits, list(self.row(index, self.bits))
        found = [_decide(e, self.fmt) for e in enclosures]
        while open_ := [i for i, f in enumerate(found) if f is None]:
            if bits >= MAX_PRECISION:
                raise Undecided(f"the rounding of element {open_[0]} of row {index} to {self.fmt.name} is undecided at {bits} bits")
            bits = min(2 * bits, MAX_PRECISION)
            finer = self._enclose(index, bits)
            for i in open_:
                enclosures[i], found[i] = finer[i], _decide(finer[i], self.fmt)
        decided = [f for f in found if f is not None]
        return Resolved(enclosures, [ordinal for ordinal, _ in decided], [top for _, top in decided])

    def _enclose(self, index: int, bits: int) -> list[Enclosure]:
        x = self._logits[index]
        finite = np.isfinite(x)
        if finite.all():
            return self._enclose_finite(index, x, finite, bits)
        if np.isnan(x).any():
            return [float("nan")] * self.width
        if (x == np.inf).any():
            return [self.op.infinite] * self.width
        if not finite.any():
            return [self.op.fully_masked] * self.width
        return self._enclose_finite(index, x, finite, bits)

    def _enclose_finite(self, index: int, x: Array, finite: Array, bits: int) -> list[Enclosure]:
        target, weights = self._target(index)
        masked = ~finite
        if self.op.name == "cross_entropy" and (
            (weights is not None and (weights[masked] > 0).any()) or (target is not None and masked[target])
        ):
            return [float("inf")]
        row = Row.of(x[finite])
        whole = None if weights is None else scaled(weights)
        inputs = Inputs(
            row,
            weights=None if whole is None else _select(whole, finite),
            weight_sum=0 if whole is None else sum(whole.man),
            target=None if target is None else int(finite[:target].sum()),
            grad_output=None if self._grad_output is None else scaled(self._grad_output[index][finite]),
        )
        found = enclose(self.op.name, inputs, bits)
        if self.op.output == "rows" or finite.all():
            return found
        fill = self._masked(whole)
        return _spread(found, fill, finite) if self.op.output == "logits" else _spread_square(found, finite)

    def _target(self, index: int) -> tuple[int | None, Array | None]:
        """Class index and weights of one row: the loss takes either, the gradient always weights (one-hot)."""
        if self._targets is None:
            return None, None
        entry = self._targets[index]
        if entry.ndim:
            return None, entry
        if self.op.name == "cross_entropy":
            return int(entry), None
        weights = np.zeros(self._n)
        weights[int(entry)] = 1.0
        return None, weights

    def _masked(self, weights: Scaled | None) -> list[Enclosure]:
        """The exact values where the logit is -inf, as if every logit were."""
        if self.op.name == "log_softmax":
            return [float("-inf")] * self._n
        if self.op.name == "cross_entropy_grad" and weights is not None:
            return [(-y, -y, weights.exp) if y else ZERO for y in weights.man]
        return [ZERO] * self._n


def _by_row(values: Array | None, rows: int, last_axis: bool) -> Array | None:
    if values is None:
        return None
    return formats.widen(values).reshape(rows, -1) if last_axis else values.reshape(rows)


def _select(whole: Scaled, finite: Array) -> Scaled:
    return Scaled([m for m, keep in zip(whole.man, finite.tolist(), strict=True) if keep], whole.exp)


def _spread(found: Sequence[Enclosure], fill: list[Enclosure], finite: Array) -> list[Enclosure]:
    rest = iter(found)
    return [next(rest) if keep else value for keep, value in zip(finite.tolist(), fill, strict=True)]


def _spread_square(found: Sequence[Enclosure], finite: Array) -> list[Enclosure]:
    rest = iter(found)
    keep = finite.tolist()
    return [next(rest) if a and b else ZERO for a in keep for b in keep]


def _is_exact(e: Enclosure) -> bool:
    return isinstance(e, float) or e[0] == e[1]


def _decide(e: Enclosure, fmt: Format) -> tuple[int | None, int | None] | None:
    """(ordinal of RN_F(T), floor(log2|T|)) where the enclosure decides both, else None."""
    if isinstance(e, float):
        return (None if e != e else formats.infinity(e, fmt)), None
    lo, hi, exp = e
    if lo == hi:
        return formats.round_ordinal(lo, exp, fmt), (abs(lo).bit_length() + exp - 1 if lo else None)
    return formats.round_between(lo, hi, exp, fmt)
