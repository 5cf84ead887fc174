"""What params add around a variant, in its own arithmetic: every step is one of the Arithmetic and rounded once.

Before it: the logits times scale; softcap by a quotient, tanh and a product; -inf in place of what is masked; a sink as one more
column; targets smoothed, then weighted. After it: the sink's column dropped; z_loss by log-sum-exp (and softmax) of the shifted
form; a derivative times scale; 0 for ignored rows; a sum over rows by the summation, and one division. Params are rounded to the
format first, as a kernel holds them. What a variant says that it does by itself (Variant.params) is left to it.
"""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np

from engine import ops
from engine.arithmetic import Arithmetic
from engine.bounds import BY_INDEX
from engine.formats import round_array, widen
from engine.model import Array, Problem
from engine.variants import Variant, logsumexp, softmax, stands_between

DERIVATIVES = ("cross_entropy_grad", "softmax_jacobian", "softmax_vjp")


def run(variant: Variant, problem: Problem, k: Arithmetic) -> Array:
    """What comes out of a variant, rounded to the output format, on a problem whose tensors are of the format of k."""
    given: list[Any] = [problem.logits, problem.targets, problem.grad_output]
    names = ops.given_params(problem.params)
    if not names:
        return k.deliver(variant.run(*(tensor for tensor in given if tensor is not None), k))
    own = _own(variant, problem, names)
    around = _Around(problem, k, frozenset(own))
    tensors = around.tensors()
    return k.deliver(around.after(variant.run(*tensors, k, **own), tensors[0]))


def exactly(problem: Problem, same: Problem | None, k: Arithmetic) -> tuple[Array, ...] | None:
    """What a variant is run on that sees to no params itself, if that is exactly the problem without params which this one is, and
    nothing is done to its results; else None. same: that problem, if there is one."""
    around = _Around(problem, k, frozenset())
    if same is None or not around.bare:
        return None
    kept, given = ~ops.ignored(problem), around.tensors()
    tensors = [t for t in (same.logits, same.targets, same.grad_output) if t is not None]
    for found, wanted in zip(given, tensors, strict=True):
        if found.ndim == wanted.ndim:  # class indices: only ignored rows made distributions of them
            a, b = widen(found)[kept], widen(wanted)[kept]
            if not np.array_equal(a, b, equal_nan=True):
                return None
    return given


def unchanged(variant: Variant, output: Array, problem: Problem, same: Problem, given: tuple[Array, ...], k: Arithmetic) -> bool:
    """Whether a variant made of a problem what it makes of the same one without params, bit for bit, so that its bound there is one
    here; given: what `exactly` tells. By what takes exactly the same steps for class indices and for the distributions that they
    are, and no fewer. One that sees to params itself is run again, without them."""
    if variant.key in BY_INDEX and ops.is_index(problem) and not ops.is_index(same):
        return False
    if not _own(variant, problem, ops.given_params(problem.params)):
        return True
    return np.array_equal(widen(k.deliver(variant.run(*given, k))), widen(output), equal_nan=True)


def _own(variant: Variant, problem: Problem, names: tuple[str, ...]) -> dict[str, Any]:
    """The params that a variant is handed. One between which and the variant another one stands is not."""
    taken = [name for name in variant.params if name in names and not stands_between(problem.params, name)]
    return {"kept" if name == "mask" else name: getattr(problem.params, name) for name in taken}


class _Around:
    """own: keywords for the params that the variant sees to."""

    def __init__(self, problem: Problem, k: Arithmetic, own: frozenset[str]) -> None:
        self.problem, self.k, self.own, self.p = problem, k, own, problem.params
        self.gone = ops.ignored(problem)
        self.sunk = self.p.sink is not None and "sink" not in own
        self.scaled = self.p.scale != 1 and problem.op in DERIVATIVES
        self.mean = self.p.reduction == "mean"
        self.reduced = self.p.reduction != "none" and problem.op not in DERIVATIVES

    @property
    def bare(self) -> bool:
        """Whether nothing rounds after the variant."""
        return not (self.sunk or self.scaled or self.mean or self.reduced or self.p.z_loss)

    def tensors(self) -> tuple[Array, ...]:
        """What goes into the variant."""
        z = self._logits()
        if self.sunk:
            assert self.p.sink is not None
            z = _with_column(z, self.k.constant(self.p.sink))
        found = [z]
        if self.problem.targets is not None:
            found.append(self._targets(self.problem.targets, z))
        if self.problem.grad_output is not None:
            g = self.problem.grad_output
            found.append(_with_column(g, self.k.constant(0.0)) if self.sunk else g)
        return tuple(found)

    def _logits(self) -> Array:
        k, p, z = self.k, self.p, self.problem.logits
        if p.scale != 1 and "scale" not in self.own:
            z = k.mul(z, k.constant(p.scale))
        if p.softcap is not None:
            c = k.constant(p.softcap)
            z = k.mul(k.tanh(k.div(z, c)), c)
        if p.mask is not None and "kept" not in self.own:
            z = k.choose(p.mask, z, k.constant(-inf))
        # a new array, whose steps the recorder forgets: a logit less itself would else be one that cancelled
        return np.array(z, order="C")

    def _targets(self, targets: Array, z: Array) -> Array:
        k, p = self.k, self.p
        y = np.where(self.gone, np.zeros((), targets.dtype), targets) if self.gone.any() else targets
        smooth = p.label_smoothing and "label_smoothing" not in self.own
        if not smooth and p.weights is None:
            return y
        q = k.one_hot(y, z) if k.is_index(y) else y
        if smooth:
            a = k.constant(p.label_smoothing)
            q = k.add(k.mul(q, k.sub(k.constant(1.0), a)), k.div(a, k.constant(z.shape[-1])))
        if p.weights is not None:
            q = k.mul(q, np.broadcast_to(self._weights(), q.shape))
        return q

    def _weights(self) -> Array:
        assert self.p.weights is not None
        return round_array(self.p.weights, self.k.fmt)

    def after(self, output: Array, z: Array) -> Array:
        """What is made of what the variant gave."""
        k, p = self.k, self.p
        if self.sunk and ops.OPS[self.problem.op].output != "rows":
            jacobian = self.problem.op == "softmax_jacobian"
            output = np.array(output[..., :-1, :-1] if jacobian else output[..., :-1], order="C")
        if p.z_loss and "z_loss" not in self.own:
            output = self._with_z_loss(output, z)
        if self.scaled:
            output = k.mul(output, np.broadcast_to(k.constant(p.scale), output.shape))
        if self.mean and not self.reduced:
            output = k.div(output, np.broadcast_to(self._divisor(), output.shape))
        if self.gone.any():
            gone = self.gone if output.ndim == self.gone.ndim else self.gone[..., None]
            output = k.choose(gone, k.constant(0.0), output)
        if self.reduced:
            output = k.sum(output.reshape(-1))
            output = k.div(output, self._divisor()) if self.mean else output
        return output

    def _with_z_loss(self, output: Array, z: Array) -> Array:
        """The loss plus a lse^2, or its gradient plus 2 a lse p."""
        k, lse = self.k, logsumexp.shifted(z, self.k)
        if self.problem.op == "cross_entropy":
            return k.add(output, k.mul(np.broadcast_to(k.constant(self.p.z_loss), lse.shape), k.mul(lse, lse)))
        rise = k.mul(np.broadcast_to(k.constant(2 * self.p.z_loss), lse.shape), lse)
        return k.add(output, k.mul(rise, softmax.shifted(z, k)))

    def _divisor(self) -> Array:
        """Of a mean: the rows that count, or the sum of the weights of their targets."""
        kept = ~self.gone
        if self.p.weights is None or not ops.is_index(self.problem) or not kept.any():
            return self.k.constant(float(np.count_nonzero(kept)))
        assert self.problem.targets is not None
        return self.k.sum(self._weights()[self.problem.targets[kept].reshape(-1)])


def _with_column(a: Array, value: Array) -> Array:
    return np.concatenate((a, np.broadcast_to(value, (*a.shape[:-1], 1))), axis=-1)
