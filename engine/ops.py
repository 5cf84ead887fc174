"""What each op is: its named input tensors, shapes, targets, domain, and what non-finite rows mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from engine.errors import InvalidParam, InvalidProblem, quoted
from engine.model import NO_PARAMS, Array, Params, Problem
from engine.registry import Registry

MAX_RANK = 4
_LARGEST = float.fromhex("0x1.fffffffffffffp+1023")
REDUCTIONS = ("none", "sum", "mean")
_LOGITS = ("scale", "softcap", "mask")
_DERIVED = ("scale", "mask")
"""Of a derivative there is no softcap: its own derivative would be one more factor, which no truth here has."""
_LOSS = ("label_smoothing", "weights", "ignore_index", "z_loss", "reduction")


@dataclass(frozen=True)
class Op:
    """A mathematical function of the last axis of its logits.

    tensors: the inputs it needs besides the logits. output: "logits" (the logits' shape), "rows" (the logits' shape
    without the last axis) or "jacobian" (the logits' shape with the last axis doubled).
    fully_masked, infinite: the value every element takes on a row that is all -inf, and on a row with a +inf logit;
    a row with a NaN is NaN in every op. params: names of the Params that it takes.
    """

    name: str
    formula: str
    tensors: tuple[str, ...]
    output: str
    fully_masked: float
    infinite: float
    params: tuple[str, ...]

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the output for logits of that shape."""
        return {"logits": shape, "rows": shape[:-1], "jacobian": (*shape, shape[-1])}[self.output]

    def width(self, n: int) -> int:
        """Output elements per row of n logits."""
        return {"logits": n, "rows": 1, "jacobian": n * n}[self.output]


_NAN, _INF = float("nan"), float("inf")

OPS: Registry[Op] = Registry("op")
for _row in (
    Op("softmax", "p_i = exp(x_i - L), L = log sum_j exp(x_j)", (), "logits", _NAN, _NAN, (*_LOGITS, "sink")),
    Op("log_softmax", "l_i = x_i - L", (), "logits", _NAN, _NAN, (*_LOGITS, "sink")),
    Op("logsumexp", "L = log sum_j exp(x_j)", (), "rows", -_INF, _INF, (*_LOGITS, "sink", "reduction")),
    Op(
        "cross_entropy",
        "-l_t for a class index t; -sum_i y_i l_i for a distribution y (y_i = 0 contributes 0)",
        ("targets",),
        "rows",
        _NAN,
        _NAN,
        (*_LOGITS, *_LOSS),
    ),
    Op(
        "cross_entropy_grad",
        "p_i S - y_i, S = sum_i y_i (a class index: y one-hot, S = 1)",
        ("targets",),
        "logits",
        _NAN,
        _NAN,
        (*_DERIVED, *_LOSS),
    ),
    Op("softmax_jacobian", "J_ij = p_i (delta_ij - p_j)", (), "jacobian", _NAN, _NAN, (*_DERIVED, "sink")),
    Op("softmax_vjp", "p_i (g_i - sum_j g_j p_j)", ("grad_output",), "logits", _NAN, _NAN, (*_DERIVED, "sink")),
):
    OPS.add(_row.name, _row)


def check(problem: Problem) -> Op:
    """The op of a problem whose tensors fit it; else InvalidProblem naming the value, the rule and the way out."""
    op = OPS[problem.op]
    shape = problem.logits.shape
    if not 1 <= len(shape) <= MAX_RANK:
        raise InvalidProblem(
            f"logits have rank {len(shape)}; the rank is 1 to {MAX_RANK}: a row, or a batch of rows on the last axis"
        )
    if 0 in shape:
        raise InvalidProblem(f"logits have shape {list(shape)}; every extent is at least 1")
    for name in ("targets", "grad_output"):
        given = getattr(problem, name) is not None
        if given != (name in op.tensors):
            raise InvalidProblem(f"{op.name} {'takes no' if given else 'needs'} {name}")
    if problem.params is not NO_PARAMS:
        _check_params(problem, op)
    if problem.targets is not None:
        _check_targets(problem.targets, shape, problem.params.ignore_index)
    if problem.grad_output is not None:
        _check_grad_output(problem.grad_output, shape)
    return op


def output_shape(problem: Problem) -> tuple[int, ...]:
    """Shape of the output of a problem, whose tensors need not fit yet. Raises UnknownName."""
    op = OPS[problem.op]
    return () if op.output == "rows" and problem.params.reduction != "none" else op.output_shape(problem.logits.shape)


def given_params(params: Params) -> tuple[str, ...]:
    """The names of the params that are not at their defaults."""
    return tuple(f.name for f in fields(Params) if getattr(params, f.name) is not f.default and _differs(params, f.name, f.default))


def is_index(problem: Problem) -> bool:
    """Whether the targets are class indices (shape B) rather than distributions (the logits' shape)."""
    return problem.targets is not None and problem.targets.shape == problem.logits.shape[:-1]


def ignored(problem: Problem) -> Array:
    """The rows that ignore_index leaves out: booleans, shape B."""
    index = problem.params.ignore_index
    if index is None or problem.targets is None:
        return np.zeros(problem.logits.shape[:-1], bool)
    return np.asarray(problem.targets == index)


def _differs(params: Params, name: str, default: Any) -> bool:
    value = getattr(params, name)
    return isinstance(value, np.ndarray) or bool(value != default)


def _check_params(problem: Problem, op: Op) -> None:
    params, shape = problem.params, problem.logits.shape
    for name in given_params(params):
        if name not in op.params:
            raise InvalidParam(f"{op.name} takes no {name}; it takes {', '.join(op.params)}", name)
        value = getattr(params, name)
        if name in _NUMBERS:
            rule, fits = _NUMBERS[name]
            number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
            if not (number and fits(float(value))):
                raise InvalidParam(f"{name} is {quoted(value)}; it is {rule}", name)
    if params.reduction not in REDUCTIONS:
        raise InvalidParam(f"reduction is {quoted(params.reduction)}; it is one of {', '.join(REDUCTIONS)}", "reduction")
    if params.mask is not None:
        _check_mask(params.mask, shape)
    if params.weights is not None:
        _check_class_weights(params.weights, shape[-1])
    if params.ignore_index is not None:
        _check_ignored(problem, params.ignore_index)


_NUMBERS: Mapping[str, tuple[str, Callable[[float], bool]]] = {
    "scale": ("a finite number above 0, the inverse of a temperature", lambda value: value > 0),
    "softcap": ("a finite number above 0; leave it out for none", lambda value: value > 0),
    "sink": ("a finite number; leave it out for none", lambda value: True),
    "label_smoothing": ("a number from 0 to 1", lambda value: 0 <= value <= 1),
    "z_loss": ("a finite number, at least 0", lambda value: value >= 0),
}
"""What a param that is a number may be, in words and as a test of finite ones."""


def _check_mask(mask: Array, shape: tuple[int, ...]) -> None:
    if mask.dtype != np.bool_:
        raise InvalidParam(f"mask is of {mask.dtype}; it is of booleans, true where a logit is kept", "mask")
    if mask.shape not in (shape, shape[-1:]):
        rule = f"it has the logits' shape {list(shape)}, or {list(shape[-1:])} for all rows"
        raise InvalidParam(f"mask has shape {list(mask.shape)}; {rule}", "mask")


def _check_class_weights(weights: Array, n: int) -> None:
    if weights.shape != (n,):
        raise InvalidParam(f"weights have shape {list(weights.shape)}; a weight for each class makes it [{n}]", "weights")
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        place = int(np.argmax(bad))
        raise InvalidParam(f"weights: {weights[place]} at [{place}] is no weight: they are finite and at least 0", "weights")


def _check_ignored(problem: Problem, index: int) -> None:
    if isinstance(index, bool) or not isinstance(index, int):
        raise InvalidParam(f"ignore_index is {quoted(index)}; it is an integer, such as -100", "ignore_index")
    if not is_index(problem):
        raise InvalidParam(
            f"ignore_index is {quoted(index)}, but targets are distributions: it needs class indices", "ignore_index"
        )


def _check_targets(targets: Array, shape: tuple[int, ...], ignore_index: int | None) -> None:
    if targets.shape == shape[:-1]:
        _check_indices(targets, shape, ignore_index)
    elif targets.shape == shape:
        _check_weights(targets)
    else:
        indices = f"class indices have shape {list(shape[:-1])}" if shape[:-1] else "a class index is a single integer"
        raise InvalidProblem(
            f"targets have shape {list(targets.shape)}; {indices}, distributions have the logits' shape {list(shape)}"
        )


def _check_indices(targets: Array, shape: tuple[int, ...], ignore_index: int | None) -> None:
    if not np.issubdtype(targets.dtype, np.integer):
        raise InvalidProblem(
            f"class indices must be integers, not {targets.dtype}; a distribution has the logits' shape {list(shape)}"
        )
    n = shape[-1]
    bad = (targets < 0) | (targets >= n)
    if ignore_index is not None:
        bad &= targets != ignore_index
    left_out = "; give ignore_index for rows to leave out" * bool((targets[bad] < 0).any() and ignore_index is None)
    _refuse(targets, bad, f"is out of range: class indices of {n} logits are 0 to {n - 1}{left_out}")


def _check_weights(targets: Array) -> None:
    _refuse(targets, ~(np.isfinite(targets) & (targets >= 0)), "is not a weight: distributions are finite and at least 0")
    if np.issubdtype(targets.dtype, np.integer):
        _refuse(targets, targets > 1 << 53, "may be no binary64 number: integer weights are at most 2^53; give floats")


def _refuse(targets: Array, bad: Array, rule: str) -> None:
    if bad.any():
        place = [int(i) for i in np.unravel_index(int(np.argmax(bad)), bad.shape)] if bad.ndim else []
        raise InvalidProblem(f"target {targets[tuple(place)]}{f' at {place}' if place else ''} {rule}")


def _check_grad_output(grad_output: Array, shape: tuple[int, ...]) -> None:
    if grad_output.shape != shape:
        raise InvalidProblem(f"grad_output has shape {list(grad_output.shape)}; it must be the logits' {list(shape)}")
    finite = np.isfinite(grad_output)
    if not finite.all():
        raise InvalidProblem(f"grad_output contains {grad_output[~finite].flat[0]}; it must be finite")
