"""Seeded, named families of logits: the answer to a generated problem can be repeated from its request alone.

A family is one decorated function make(generator, rows, n, **parameters) that returns float64 logits (rows, n).
Values are drawn with NumPy's PCG64; a run records the digest of the logits too, because a seed alone pins nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from engine import formats
from engine.errors import InvalidProblem, quoted
from engine.model import Array
from engine.parameters import FormatName, Number, Parameter, Value
from engine.registry import Registry

LARGEST_SEED = 2**63 - 1

Make = Callable[..., Array]


@dataclass(frozen=True)
class Family:
    """A named recipe for logits. parameters: by name, with type, default and range; make draws (rows, n) float64 values."""

    name: str
    description: str
    parameters: Mapping[str, Parameter]
    make: Make


FAMILIES: Registry[Family] = Registry("input family")


def family(name: str, description: str, **parameters: Parameter) -> Callable[[Make], Make]:
    """Register the decorated function as a family with these parameters."""

    def register(make: Make) -> Make:
        FAMILIES.add(name, Family(name, description, parameters, make))
        return make

    return register


def generate(family: str, rows: int, n: int, seed: int, **parameters: Value) -> Array:
    """Logits of a family as a float64 array (rows, n); the same arguments give the same array.

    rows, n: at least 1. seed: 0 to 2^63 - 1. Parameters left out take their defaults.
    Raises UnknownName for a family that does not exist, InvalidProblem for any value that does not fit.
    """
    recipe = FAMILIES[family]
    _check_integer("rows", rows, 1, sys.maxsize, "at least 1")
    _check_integer("n", n, 1, sys.maxsize, "at least 1")
    _check_integer("seed", seed, 0, LARGEST_SEED, "from 0 to 2^63 - 1")
    for name in parameters:
        if name not in recipe.parameters:
            raise InvalidProblem(f"input family {family} has no parameter {quoted(name)}; it has {', '.join(recipe.parameters)}")
    values = {name: row.check(name, parameters.get(name, row.default)) for name, row in recipe.parameters.items()}
    return recipe.make(np.random.Generator(np.random.PCG64(seed)), rows, n, **values)


def _check_integer(name: str, value: object, low: int, high: int, range: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidProblem(f"{name} is {quoted(value)}; it is an integer, {range}")


@family("gaussian", "independent normal logits", sigma=Number(1.0, low=0.0), offset=Number(0.0))
def _gaussian(generator: np.random.Generator, rows: int, n: int, sigma: float, offset: float) -> Array:
    return sigma * generator.standard_normal((rows, n)) + offset


@family("offset", "normal logits far from zero: what a missing shift makes of them", sigma=Number(1.0, low=0.0), offset=Number(1e4))
def _offset(generator: np.random.Generator, rows: int, n: int, sigma: float, offset: float) -> Array:
    return _gaussian(generator, rows, n, sigma, offset)


@family("one_dominant", "one class, drawn for each row, `gap` above all others, which are 0", gap=Number(20.0, low=0.0))
def _one_dominant(generator: np.random.Generator, rows: int, n: int, gap: float) -> Array:
    logits = np.zeros((rows, n))
    logits[np.arange(rows), generator.integers(n, size=rows)] = gap
    return logits


@family("ramp", "evenly spaced logits from `start` to `stop`, the same in every row", start=Number(-10.0), stop=Number(10.0))
def _ramp(generator: np.random.Generator, rows: int, n: int, start: float, stop: float) -> Array:
    return np.tile(np.linspace(start, stop, n), (rows, 1))


@family("equal", "every logit the same: softmax is 1/n exactly", value=Number(0.0))
def _equal(generator: np.random.Generator, rows: int, n: int, value: float) -> Array:
    return np.full((rows, n), value)


@family(
    "masked",
    "normal logits, the share `fraction` of each row (rounded, at most n - 1) set to -inf; all of it where fraction is 1",
    sigma=Number(1.0, low=0.0),
    fraction=Number(0.25, low=0.0, high=1.0),
)
def _masked(generator: np.random.Generator, rows: int, n: int, sigma: float, fraction: float) -> Array:
    logits = sigma * generator.standard_normal((rows, n))
    masked = n if fraction == 1 else min(round(fraction * n), n - 1)
    for block in np.array_split(logits, 1 + logits.size // formats.BLOCK):
        order = np.argsort(generator.random(block.shape), axis=-1, kind="stable")
        np.put_along_axis(block, order[:, :masked], -np.inf, axis=-1)
    return logits


@family(
    "near_exp_limit",
    "the largest logit whose exponential is finite in `format`, or one ulp below or above it, drawn for each element",
    format=FormatName("float32"),
)
def _near_exp_limit(generator: np.random.Generator, rows: int, n: int, format: str) -> Array:
    fmt = formats.FORMATS[format]
    limit = formats.ordinals(np.array(fmt.exp_limit, fmt.dtype), fmt)
    beside = formats.from_ordinals(limit + np.arange(-1, 2), fmt).astype(np.float64)
    return beside[generator.integers(3, size=(rows, n))]
