"""How a variant adds: the strategies, each a function that sums the last axis of an array in the array's own format.

A strategy other than `numpy` is written out: np.sum and np.cumsum are never used to imitate an order, because what they
do depends on the format and on the axis (float16 is accumulated in float32 along the last axis, not along the others).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engine.model import Array
from engine.registry import Registry

Add = Callable[[Array], Array]


@dataclass(frozen=True)
class Summation:
    """One way to add. add: an array of shape B + (n,), n >= 1, to its row sums of shape B, in the same dtype."""

    name: str
    description: str
    add: Add


SUMMATIONS: Registry[Summation] = Registry("summation")


def summation(name: str, description: str) -> Callable[[Add], Add]:
    """Register the decorated function as a strategy of that name."""

    def register(add: Add) -> Add:
        SUMMATIONS.add(name, Summation(name, description, add))
        return add

    return register


@summation(
    "numpy", "what NumPy's add.reduce does along a contiguous row: pairwise; float16 accumulates in float32; bfloat16 in order"
)
def _numpy(terms: Array) -> Array:
    # Along any axis but a contiguous last one NumPy adds in another order, so the layout is part of the strategy.
    return np.asarray(np.add.reduce(np.ascontiguousarray(terms), axis=-1))


@summation("sequential", "from the first term to the last, every partial sum rounded to the format")
def _sequential(terms: Array) -> Array:
    columns = np.ascontiguousarray(terms.reshape(-1, terms.shape[-1]).T)
    total = columns[0].copy()
    for column in columns[1:]:
        np.add(total, column, out=total)
    return np.asarray(total.reshape(terms.shape[:-1]))
