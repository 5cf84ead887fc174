"""The built-in implementations: one file an op, one decorated function a variant, using only the Arithmetic k it is given.

A variant is f(x, k); cross_entropy and cross_entropy_grad take targets, f(x, y, k), and softmax_vjp the incoming
gradient, f(x, g, k). x has shape B + (n,), y and g are as ops.py says, everything but class indices in the format of k;
the result has the op's output shape and the format of k. The inputs are never changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.model import Array
from engine.ops import OPS
from engine.registry import Registry

Run = Callable[..., Array]


@dataclass(frozen=True)
class Variant:
    """One implementation of an op. hazard: what goes wrong and where; stable: whether it is one to be recommended."""

    op: str
    name: str
    formula: str
    source: str
    hazard: str
    stable: bool
    run: Run

    @property
    def key(self) -> str:
        """The name in VARIANTS, such as softmax/naive."""
        return f"{self.op}/{self.name}"


VARIANTS: Registry[Variant] = Registry("variant")


def variant(op: str, name: str, *, formula: str, source: str, hazard: str, stable: bool = False) -> Callable[[Run], Run]:
    """Register the decorated function as a variant of an op (UnknownName if there is no such op)."""

    def register(run: Run) -> Run:
        row = Variant(OPS[op].name, name, formula, source, hazard, stable, run)
        VARIANTS.add(row.key, row)
        return run

    return register


def of_op(op: str) -> list[Variant]:
    """The variants of an op, in the order of registration. Raises UnknownName if there is no such op."""
    name = OPS[op].name
    return [row for row in VARIANTS.values() if row.op == name]


# Below the decorator because each of these files uses it when it is imported.
from engine.variants import (  # noqa: E402, F401
    cross_entropy,
    cross_entropy_grad,
    log_softmax,
    logsumexp,
    softmax,
    softmax_jacobian,
    softmax_vjp,
    streaming,
)
