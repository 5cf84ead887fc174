"""The truth of a problem with params that is none without, by the exact path alone.

Everything stays what truth.exact has: exact integers for the logits and a rational with a rest of known sign for a result. scale
multiplies integers; a masked logit is dropped; a sink is one more integer; targets are rationals with one denominator D, and a
row is taken D times as large and divided at last, by an exact factor with which come the divisor of a mean and, of a derivative,
scale (the chain rule). A reduction adds the rational parts exactly.

softcap alone leaves the integers: c tanh(scale x / c) is taken to 2^-A, and what that changes is added to the enclosure. With
|z_i - z'_i| <= e for all i
    softmax        p_i is off by a factor exp(+-2 e)            logsumexp, y = lse   by e
    log_softmax    by 2 e                                       cross_entropy        by 2 e sum q_i + z_loss e (2 abs(y) + e)
and A grows until the enclosure is narrow enough. Equal logits stay equal, so what is rational because of ties stays exact: rows of
equal logits need no tanh at all.

That it ends is a theorem (Lindemann-Weierstrass) without softcap and z_loss, where T is rational exactly if every row has one
logit, or all equal ones of a softmax. With them it is none: where no precision up to the cap tells, Undecided is raised.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import cached_property
from math import inf, log2, nan

import numpy as np

from engine import formats, ops
from engine.errors import Undecided
from engine.formats import Format
from engine.model import Array, Problem
from engine.truth import Truth
from engine.truth.exact import (
    MAX_PRECISION,
    ZERO,
    Enclosure,
    Inputs,
    Row,
    Scaled,
    StandIn,
    enclose,
    enclose_sum,
    hull,
    rational,
    scaled,
    tanh,
)

DERIVATIVES = ("cross_entropy_grad", "softmax_jacobian", "softmax_vjp")


class Parametrised(Truth):
    """As Truth; of a reduction to a scalar there is one row of one element."""

    def __init__(self, problem: Problem, fmt: Format) -> None:
        super().__init__(problem, fmt)
        self.params = problem.params
        self.sums = self.params.sink is None and not self.params.z_loss
        self._ignored = ops.ignored(problem).reshape(-1)
        self._whole = self.op.output == "rows" and self.params.reduction != "none"
        self._length = self.rows
        if self._whole:
            self.rows = 1
        mask = self.params.mask
        self._mask = None if mask is None else np.broadcast_to(mask, problem.logits.shape).reshape(self._length, -1)
        self._tanh: dict[tuple[float, int], int] = {}

    def logits(self, index: int) -> Array:
        """Of one row, as float64: -inf where masked, else as given, so in the order of the logits that the op is of."""
        x = formats.widen(self.raw_logits[index])
        return x if self._mask is None else np.where(self._mask[index], x, -inf)

    @cached_property
    def probabilities(self) -> Truth:
        """The softmax of the same logits: itself, where it is one."""
        if self.op.name == "softmax":
            return self
        return Parametrised(Problem("softmax", self.problem.logits, params=self.params), self.fmt)

    # ---- rows ----

    def prefetch(self, indices: Iterable[int], level: int = 0) -> None:
        """Nothing: the fast tiers know no params."""
        self._cells[level].update(dict.fromkeys(indices))

    def _fast_cell(self, level: int, index: int) -> Enclosure | None:
        return None

    def _enclose(self, index: int, bits: int, columns: Sequence[int] | None = None) -> list[Enclosure]:
        found = self._row(index, bits)
        return found if columns is None else [found[column] for column in columns]

    def _row(self, index: int, bits: int) -> list[Enclosure]:
        if self._whole:
            return [self._total(bits)]
        if self._ignored[index]:
            return [ZERO] * self.width
        special = self._special(index)
        if special is not None:
            return [special] * self.width
        found = self._finite(index, bits)
        if self.params.reduction == "mean" and not self._divisor:
            return [_over_zero(e) for e in found]
        return found

    def _special(self, index: int) -> float | None:
        """What every element of a row is that has no truth, or no number."""
        x = self.logits(index)
        if np.isnan(x).any():
            return nan
        if self.params.softcap is None and (x == inf).any():
            return self.op.infinite
        if not self._kept(index).any() and self.params.sink is None:
            return self.op.fully_masked
        if self.op.name == "cross_entropy":
            weights, target = self._aim(index)
            lost = ~self._kept(index)
            if lost[target] if weights is None else any(y for y, gone in zip(weights.man, lost.tolist(), strict=True) if gone):
                return inf
        return None

    def _kept(self, index: int) -> Array:
        """Where a logit of a row is a number: softcap makes one of an infinity."""
        if self.params.softcap is None:
            return np.isfinite(self.logits(index))
        return np.ones(self._n, bool) if self._mask is None else self._mask[index]

    def _finite(self, index: int, bits: int) -> list[Enclosure]:
        places = bits + 64
        while True:
            inputs, error = self._inputs(index, places)
            found = enclose(self.op.name, inputs, bits + 2)
            if error is not None:
                merged = self._merged(index, inputs)
                wider = [self._wider(e, error, places, bits, merged) for e in found]
                found = [e for e in wider if e is not None]
            if len(found) == self._asked(index):
                return self._spread(index, found, bits)
            places = _finer(places, bits)

    def _asked(self, index: int) -> int:
        return 1 if self.op.output == "rows" else self.op.width(int(self._kept(index).sum()))

    def _spread(self, index: int, found: list[Enclosure], bits: int) -> list[Enclosure]:
        """The results in their places, the exact values where the logit is -inf among them."""
        keep = self._kept(index).tolist()
        if self.op.output == "rows" or all(keep):
            return found
        rest = iter(found)
        if self.op.output == "jacobian":
            return [next(rest) if a and b else ZERO for a in keep for b in keep]
        lost = self._lost(index, bits)
        return [next(rest) if k else value for k, value in zip(keep, lost, strict=True)]

    def _lost(self, index: int, bits: int) -> list[Enclosure]:
        """The values where the logit is -inf, as if every logit were."""
        if self.op.name != "cross_entropy_grad":
            return [-inf if self.op.name == "log_softmax" else ZERO] * self._n
        weights, _ = self._aim(index)
        assert weights is not None
        num, den = self._factor.as_integer_ratio()
        return [rational(-y * num, den, weights.exp, bits) for y in weights.man]

    def _inputs(self, index: int, places: int) -> tuple[Inputs, Fraction | None]:
        """What the exact path takes, and what a result may be off by in units of 2^(2 - places), None where z is exact.

        Of softmax that is a share of it.
        """
        kept = self._kept(index)
        x = self.logits(index)[kept]
        z, exact = self._logits(x, places)
        columns = None
        if self.params.sink is not None:
            z, n = _joined(z, scaled(np.array([self.params.sink]))), x.size
            columns = [i * (n + 1) + j for i in range(n) for j in range(n)] if self.op.output == "jacobian" else range(n)
            columns = None if self.op.output == "rows" else columns
        weights, target = self._aim(index)
        chosen = None if weights is None else Scaled([y for y, k in zip(weights.man, kept.tolist(), strict=True) if k], weights.exp)
        fold = scaled(np.array([self.params.z_loss]))
        grad = None
        if self._grad_output is not None:
            given = formats.widen(self._grad_output[index])[kept]
            grad = scaled(np.append(given, 0.0) if self.params.sink is not None else given)
        inputs = Inputs(
            Row.over(z),
            weights=chosen,
            weight_sum=0 if weights is None else sum(weights.man),
            target=None if weights is not None or self._targets is None else int(kept[:target].sum()),
            grad_output=grad,
            columns=columns,
            z_loss=(fold.man[0] * self._denominator, fold.exp),
            factor=(self._factor.numerator, self._factor.denominator, 0),
        )
        return inputs, None if exact else self._reach(inputs)

    def _reach(self, inputs: Inputs) -> Fraction:
        """By how many e a result may be off, its factor apart."""
        if self.op.name != "cross_entropy":
            return Fraction(4 if self.op.name == "softmax" else 2)
        weights = inputs.weights
        mass = Fraction(inputs.weight_sum) * Fraction(2) ** weights.exp if weights is not None else Fraction(1)
        most = 2 * Fraction(self.params.softcap or 0) + 2 * len(inputs.row.deltas) + 1
        return 2 * mass + Fraction(self.params.z_loss) * self._denominator * most

    def _logits(self, x: Array, places: int) -> tuple[Scaled, bool]:
        """z of some logits, and whether they are exact; if not, each is off by at most 2^(2 - places)."""
        scale, c = scaled(np.array([self.params.scale])), self.params.softcap
        if c is None:
            whole = scaled(x)
            return Scaled([man * scale.man[0] for man in whole.man], whole.exp + scale.exp), True
        if self._invariant and len(set(x.tolist())) == 1:
            return Scaled([0] * x.size, 0), True
        cap, unit = scaled(np.array([c])), places + max(0, int(log2(c)) + 2)
        values = [self._hyperbolic(value, unit) * cap.man[0] for value in x.tolist()]
        exact = all(value == 0 or abs(value) == inf for value in x.tolist())
        return Scaled(values, cap.exp - unit), exact

    def _hyperbolic(self, value: float, places: int) -> int:
        """tanh(scale value / softcap) in units of 2^-places."""
        if (value, places) not in self._tanh:
            if abs(value) == inf:
                found = (1 << places) * (1 if value > 0 else -1)
            else:
                ratio = Fraction(self.params.scale) * Fraction(value) / Fraction(self.params.softcap or 1)
                found = tanh(ratio.numerator, ratio.denominator, places)
            self._tanh[value, places] = found
        return self._tanh[value, places]

    @property
    def _invariant(self) -> bool:
        """Whether the same constant added to all logits changes nothing."""
        return self.op.name != "logsumexp" and self.params.sink is None and not self.params.z_loss

    def _merged(self, index: int, inputs: Inputs) -> bool:
        """Whether logits that differ came out equal, so that nothing that rests on ties is known."""
        x = set(self.logits(index)[self._kept(index)].tolist())
        return len(set(inputs.row.deltas)) < len(x)

    def _wider(self, e: Enclosure, reach: Fraction, places: int, bits: int, merged: bool) -> Enclosure | None:
        """The enclosure of the true element; None where it is wider than 2^-bits."""
        assert not isinstance(e, float)
        if self.op.name == "softmax" and isinstance(e, StandIn) and not merged:
            return e  # beside 1/k, on a side that the ties alone decide
        lo, hi, exp = hull(e)
        if self.op.name == "softmax":
            more = 1 << 5  # 2 e with e = 2^(2 - places), and a margin
            return _narrowed((lo << places) - more * lo, (hi << places) + more * hi, exp - places, bits)
        off = abs(reach) * self._factor
        if not off:
            return e
        top = off.numerator.bit_length() - off.denominator.bit_length() + 1 + 2 - places
        if max(abs(lo), abs(hi)).bit_length() + exp <= top + bits:
            return None
        unit = min(exp, top)
        pad = 1 << (top - unit)
        return _narrowed((lo << (exp - unit)) - pad, (hi << (exp - unit)) + pad, unit, bits)

    # ---- targets ----

    def _aim(self, index: int) -> tuple[Scaled | None, int]:
        """D q of one row, exact integers, or None and the class index where that says it all."""
        if self._targets is None:
            return None, 0
        entry, p = self._targets[index], self.params
        plain = p.weights is None and not p.label_smoothing and not p.z_loss
        if self._by_index and plain and self.op.name == "cross_entropy":
            return None, int(entry)
        y = np.zeros(self._n)
        if self._by_index:
            y[int(entry)] = 1.0
        else:
            y = formats.widen(entry)
        q = scaled(y)
        if p.label_smoothing:
            a = Fraction(p.label_smoothing)
            rest, down = (1 - a).numerator, (1 - a).denominator.bit_length() - 1  # 1 - a = rest / 2^down
            spread, unit = a.numerator << (down - a.denominator.bit_length() + 1), min(q.exp, 0)
            shift = q.exp - unit
            q = Scaled([rest * self._n * (m << shift) + (spread << -unit) for m in q.man], unit - down)
        if p.weights is not None:
            w = self._class_weights
            q = Scaled([m * v for m, v in zip(q.man, w.man, strict=True)], q.exp + w.exp)
        return q, 0

    @cached_property
    def _class_weights(self) -> Scaled:
        assert self.params.weights is not None
        return scaled(formats.widen(self.params.weights))

    @property
    def _by_index(self) -> bool:
        return self._targets is not None and self._targets.ndim == 1

    @property
    def _denominator(self) -> int:
        """D."""
        return self._n if self.params.label_smoothing else 1

    @cached_property
    def _factor(self) -> Fraction:
        """By which D times a result is multiplied: the divisor of a mean, if that is not 0, and the chain rule are in it."""
        scale = Fraction(self.params.scale) if self.op.name in DERIVATIVES else Fraction(1)
        mean = self.params.reduction == "mean" and self._divisor
        return scale / self._denominator / (self._divisor if mean else 1)

    @cached_property
    def _divisor(self) -> Fraction:
        """Of a mean."""
        used = np.flatnonzero(~self._ignored)
        if self._by_index and self.params.weights is not None:
            assert self._targets is not None
            w = formats.widen(self.params.weights)
            return sum((Fraction(float(w[t])) for t in self._targets[used].tolist()), Fraction(0))
        return Fraction(used.size)

    # ---- the reduction ----

    def _total(self, bits: int) -> Enclosure:
        """Of all rows together."""
        used = np.flatnonzero(~self._ignored).tolist()
        zero = self.params.reduction == "mean" and not self._divisor
        if not used:
            return nan if zero else ZERO
        special = [value for row in used if (value := self._special(row)) is not None]
        if special:
            return sum(special)  # with a finite rest of them
        found = self._sum(used, bits)
        return _over_zero(found) if zero else found

    def _sum(self, used: list[int], bits: int) -> Enclosure:
        places = bits + 64
        factor = self._factor.numerator, self._factor.denominator, 0
        while True:
            rows = [self._inputs(row, places) for row in used]
            found = enclose_sum(self.op.name, [inputs for inputs, _ in rows], factor, bits + 2)
            reach = sum((error for _, error in rows if error is not None), Fraction(0))
            wider = self._wider(found, reach, places, bits, merged=True)
            if wider is not None:
                return wider
            places = _finer(places, bits)


def _finer(places: int, bits: int) -> int:
    """Twice the places, Undecided past the cap."""
    if places >= 2 * max(MAX_PRECISION, bits):
        raise Undecided(f"a result of softcap is undecided with logits to 2^-{places}: it lies too close to a boundary")
    return 2 * places


def _joined(a: Scaled, b: Scaled) -> Scaled:
    """Both in the finer unit."""
    unit = min(a.exp, b.exp)
    return Scaled([m << (s.exp - unit) for s in (a, b) for m in s.man], unit)


def _narrowed(lo: int, hi: int, exp: int, bits: int) -> Enclosure | None:
    narrow = (lo > 0 or hi < 0) and (hi - lo) << bits <= min(abs(lo), abs(hi))
    return (lo, hi, exp) if narrow else None


def _over_zero(e: Enclosure) -> Enclosure:
    """A number, whose enclosure tells its sign, divided by 0."""
    sign = e if isinstance(e, float) else e[0] + e[1]
    return nan if not sign or sign != sign else inf if sign > 0 else -inf
