"""The built-in implementations: one file an op, one decorated function a variant, using only the Arithmetic k it is given.

A variant is f(x, k); cross_entropy and cross_entropy_grad take targets, f(x, y, k), and softmax_vjp the incoming
gradient, f(x, g, k). x has shape B + (n,), y and g are as ops.py says, everything but class indices in the format of k;
the result has the op's output shape and the format of k. The inputs are never changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from engine.arithmetic import Arithmetic
from engine.formats import FORMATS
from engine.model import Array
from engine.ops import OPS
from engine.registry import Registry

Run = Callable[..., Array]


@dataclass(frozen=True)
class Variant:
    """One implementation of an op. hazard: what goes wrong and where; stable: whether it is one to be recommended.

    steps: of the arithmetic for each logit of a row, where a row is gone through one logit after the other.
    """

    op: str
    name: str
    formula: str
    source: str
    hazard: str
    stable: bool
    run: Run
    steps: int = 0

    @property
    def key(self) -> str:
        """The name in VARIANTS, such as softmax/naive."""
        return f"{self.op}/{self.name}"


VARIANTS: Registry[Variant] = Registry("variant")


def variant(
    op: str, name: str, *, formula: str, source: str, hazard: str, stable: bool = False, steps: int = 0
) -> Callable[[Run], Run]:
    """Register the decorated function as a variant of an op (UnknownName if there is no such op)."""

    def register(run: Run) -> Run:
        row = Variant(OPS[op].name, name, formula, source, hazard, stable, run, steps)
        VARIANTS.add(row.key, row)
        return run

    return register


def of_op(op: str) -> list[Variant]:
    """The variants of an op, in the order of registration. Raises UnknownName if there is no such op."""
    name = OPS[op].name
    return [row for row in VARIANTS.values() if row.op == name]


class _Probe(Arithmetic):
    """An arithmetic that notes which axes are of use."""

    def __init__(self) -> None:
        super().__init__(FORMATS["float32"])
        self.used: set[str] = set()

    def sum(self, a: Array) -> Array:
        self.used |= {"summation", "accumulator"}
        return super().sum(a)

    def exp(self, a: Array) -> Array:
        self.used.add("exp")
        return super().exp(a)

    def exp2(self, a: Array) -> Array:
        self.used.add("exp")
        return super().exp2(a)

    def fma(self, a: Array, b: Array, c: Array) -> Array:
        self.used.add("fma")
        return super().fma(a, b, c)


@cache
def axes(key: str) -> tuple[str, ...]:
    """What of an arithmetic a variant has a use for, told by running it on zeros: the summation, and the axes but for the three
    that are of every step."""
    row, probe, x = VARIANTS[key], _Probe(), np.zeros((1, 200), np.float32)
    extra = {"targets": x, "grad_output": x}
    row.run(x, *(extra[name] for name in OPS[row.op].tensors), probe)
    return tuple(sorted(probe.used))


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
