"""A problem with params that is exactly one without: what the fast tiers can measure.

A mask is -inf in place of logits; a scale, if every product is a binary64 number, is other logits; smoothed and weighted targets
are distributions, if those are binary64 numbers, and an ignored row is one of weights 0. Of a derivative, scale and the divisor of
a mean multiply the targets or the grad_output. Every product and sum is proven exact, else the problem stays as it is.
"""

from __future__ import annotations

from fractions import Fraction
from math import inf

import numpy as np

from engine import ops
from engine.formats import widen
from engine.model import NO_PARAMS, Array, Problem

_LINEAR = ("cross_entropy_grad", "softmax_vjp")
"""Derivatives that are linear in their targets or their grad_output."""


class _Inexact(Exception):
    """A number that binary64 does not have."""


def plain(problem: Problem) -> Problem | None:
    """The same problem without params, its tensors in binary64 where they changed; None where there is none. problem is checked."""
    p = problem.params
    if not ops.given_params(p):
        return problem if p is NO_PARAMS else Problem(problem.op, problem.logits, problem.targets, problem.grad_output)
    reduced = p.reduction != "none" and problem.op != "cross_entropy_grad"
    derived = problem.op in _LINEAR or problem.op == "softmax_jacobian"
    if p.softcap is not None or p.sink is not None or p.z_loss or reduced or (p.scale != 1 and problem.op == "softmax_jacobian"):
        return None
    try:
        factor = _factor(problem) if derived else Fraction(1)
        logits = problem.logits if p.scale == 1 else product(widen(problem.logits), np.float64(p.scale))
        if p.mask is not None:
            logits = np.where(p.mask, widen(logits), -inf)
        gone = ops.ignored(problem)
        if gone.any():
            logits = np.where(gone[..., None], 0.0, widen(logits))
        targets, grad_output = problem.targets, problem.grad_output
        if targets is not None and (gone.any() or p.label_smoothing or p.weights is not None or factor != 1):
            targets = _targets(problem, factor)
        if grad_output is not None and factor != 1:
            grad_output = product(widen(grad_output), np.float64(_number(factor)))
        return Problem(problem.op, logits, targets, grad_output)
    except _Inexact:
        return None


def _factor(problem: Problem) -> Fraction:
    """By which a derivative is multiplied: the chain rule, and the divisor of a mean."""
    p, scale = problem.params, Fraction(problem.params.scale)
    if p.reduction != "mean":
        return scale
    used = ~ops.ignored(problem)
    divisor = Fraction(int(np.count_nonzero(used)))
    if p.weights is not None and ops.is_index(problem):
        assert problem.targets is not None
        counts = np.bincount(problem.targets[used].reshape(-1), minlength=len(p.weights))
        divisor = sum((int(c) * Fraction(float(w)) for c, w in zip(counts, widen(p.weights), strict=True)), Fraction(0))
    if not divisor:
        raise _Inexact
    return scale / divisor


def _targets(problem: Problem, factor: Fraction) -> Array:
    """q times the factor."""
    p, n = problem.params, problem.logits.shape[-1]
    a, gone = Fraction(p.label_smoothing), ops.ignored(problem)
    assert problem.targets is not None
    w = np.ones(n) if p.weights is None else widen(p.weights)
    if ops.is_index(problem):
        off = product(w, np.float64(_number(a / n * factor)))
        on = product(w, np.float64(_number((1 - a + a / n) * factor)))
        y = np.arange(n) == problem.targets[..., None]
        return np.where(gone[..., None], 0.0, np.where(y, on, off))
    y = widen(problem.targets)
    if a:
        y = total(product(y, np.float64(_number(1 - a))), np.float64(_number(a / n)))
    return product(product(y, w), np.float64(_number(factor)))


def _number(value: Fraction) -> float:
    try:
        found = value.numerator / value.denominator
    except OverflowError:
        raise _Inexact from None
    if Fraction(found) != value:
        raise _Inexact
    return found


def product(a: Array, b: Array | np.float64) -> Array:
    """a * b in binary64, infinities and NaN as they come; raises where a product of numbers is none of binary64.

    With odd integers o and a = o_a 2^i, b = o_b 2^j: exact if o_a o_b < 2^53, which the rounded product of the two tells, for
    rounding is monotone and 2^53 a number; and if the result is finite and i + j no less than -1074.
    """
    a, b = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
    with np.errstate(all="ignore"):
        found = a * b
    some = np.isfinite(a) & np.isfinite(b) & (a != 0) & (b != 0)
    (odd_a, i), (odd_b, j) = _odd(a[some]), _odd(b[some])
    if ((odd_a * odd_b >= 2.0**53) | (i + j < -1074) | ~np.isfinite(found[some])).any():
        raise _Inexact
    return found


def _odd(values: Array) -> tuple[Array, Array]:
    """|values| as odd integers, in binary64, times powers of two; values are finite and not 0."""
    fraction, exponent = np.frexp(np.abs(values))
    whole = np.ldexp(fraction, 53).astype(np.int64)
    low = (whole & -whole).astype(np.float64)
    return whole / low, exponent - 53 + np.frexp(low)[1] - 1


def total(a: Array, b: np.float64) -> Array:
    """a + b of finite numbers >= 0 in binary64; raises where a sum is not exact (Knuth's two-sum: the error is a number too)."""
    with np.errstate(all="ignore"):
        found = np.asarray(a + b)
        back = found - a
        error = (a - (found - back)) + (b - back)
    if not (error == 0).all():
        raise _Inexact
    return found
