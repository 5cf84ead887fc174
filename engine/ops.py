"""What each op is: its named input tensors, shapes, targets, domain, and what non-finite rows mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.errors import InvalidProblem
from engine.model import Array, Problem
from engine.registry import Registry

MAX_RANK = 4


@dataclass(frozen=True)
class Op:
    """A mathematical function of the last axis of its logits.

    tensors: the inputs it needs besides the logits. output: "logits" (the logits' shape), "rows" (the logits' shape
    without the last axis) or "jacobian" (the logits' shape with the last axis doubled).
    fully_masked, infinite: the value every element takes on a row that is all -inf, and on a row with a +inf logit;
    a row with a NaN is NaN in every op.
    """

    name: str
    formula: str
    tensors: tuple[str, ...]
    output: str
    fully_masked: float
    infinite: float

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the output for logits of that shape."""
        return {"logits": shape, "rows": shape[:-1], "jacobian": (*shape, shape[-1])}[self.output]

    def width(self, n: int) -> int:
        """Output elements per row of n logits."""
        return {"logits": n, "rows": 1, "jacobian": n * n}[self.output]


_NAN, _INF = float("nan"), float("inf")

OPS: Registry[Op] = Registry("op")
for _row in (
    Op("softmax", "p_i = exp(x_i - L), L = log sum_j exp(x_j)", (), "logits", _NAN, _NAN),
    Op("log_softmax", "l_i = x_i - L", (), "logits", _NAN, _NAN),
    Op("logsumexp", "L = log sum_j exp(x_j)", (), "rows", -_INF, _INF),
    Op(
        "cross_entropy",
        "-l_t for a class index t; -sum_i y_i l_i for a distribution y (y_i = 0 contributes 0)",
        ("targets",),
        "rows",
        _NAN,
        _NAN,
    ),
    Op("cross_entropy_grad", "p_i S - y_i, S = sum_i y_i (a class index: y one-hot, S = 1)", ("targets",), "logits", _NAN, _NAN),
    Op("softmax_jacobian", "J_ij = p_i (delta_ij - p_j)", (), "jacobian", _NAN, _NAN),
    Op("softmax_vjp", "p_i (g_i - sum_j g_j p_j)", ("grad_output",), "logits", _NAN, _NAN),
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
    if problem.targets is not None:
        _check_targets(problem.targets, shape)
    if problem.grad_output is not None:
        _check_grad_output(problem.grad_output, shape)
    return op


def output_shape(problem: Problem) -> tuple[int, ...]:
    """Shape of the output of a problem, whose tensors need not fit yet. Raises UnknownName."""
    return OPS[problem.op].output_shape(problem.logits.shape)


def is_index(problem: Problem) -> bool:
    """Whether the targets are class indices (shape B) rather than distributions (the logits' shape)."""
    return problem.targets is not None and problem.targets.shape == problem.logits.shape[:-1]


def _check_targets(targets: Array, shape: tuple[int, ...]) -> None:
    if targets.shape == shape[:-1]:
        _check_indices(targets, shape)
    elif targets.shape == shape:
        _check_weights(targets)
    else:
        indices = f"class indices have shape {list(shape[:-1])}" if shape[:-1] else "a class index is a single integer"
        raise InvalidProblem(
            f"targets have shape {list(targets.shape)}; {indices}, distributions have the logits' shape {list(shape)}"
        )


def _check_indices(targets: Array, shape: tuple[int, ...]) -> None:
    if not np.issubdtype(targets.dtype, np.integer):
        raise InvalidProblem(
            f"class indices must be integers, not {targets.dtype}; a distribution has the logits' shape {list(shape)}"
        )
    n = shape[-1]
    _refuse(targets, (targets < 0) | (targets >= n), f"is out of range: class indices of {n} logits are 0 to {n - 1}")


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
