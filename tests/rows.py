"""Seeded rows of logits, with targets and grad_outputs, that are easy, adversarial, or merely strange.

Numbers are Python floats that the named format holds exactly. Every family is a function (random generator, format) -> logits.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from tests.judge import FORMATS, from_ordinal, infinity_ordinal, nearest, round_fraction

Maker = Callable[[random.Random, str], list[float]]


@dataclass(frozen=True)
class Row:
    """One row and everything an op may need with it; `family` says what it is meant to provoke."""

    family: str
    logits: list[float]
    index: int
    weights: list[float]
    grad: list[float]

    def target(self, op: str, soft: bool) -> int | list[float] | None:
        """The target the judge expects for an op."""
        if op.startswith("cross_entropy"):
            return self.weights if soft else self.index
        return self.grad if op == "softmax_vjp" else None


def rows(fmt: str, seed: object, count: int, longest: int = 12) -> Iterator[Row]:
    """`count` rows, the families in turn, none longer than `longest`."""
    rng = random.Random(f"{fmt} {seed}")
    names = list(FAMILIES)
    for k in range(count):
        name = names[k % len(names)]
        logits = [nearest(x, fmt) for x in FAMILIES[name](rng, fmt)][:longest]
        if max(logits) == -math.inf or not all(x < math.inf for x in logits):
            logits = [0.0 if not x < math.inf or x == -math.inf else x for x in logits]
        n = len(logits)
        live = [i for i in range(n) if logits[i] != -math.inf]
        index = rng.randrange(n) if rng.random() < 0.1 else rng.choice(live)
        weights = [nearest(y, fmt) for y in rng.choice(WEIGHTS)(rng, n)]
        if rng.random() < 0.8:  # a weight on a masked logit makes the loss infinite and teaches nothing else
            weights = [y if x != -math.inf else 0.0 for x, y in zip(logits, weights, strict=True)]
        grad = [nearest(g, fmt) for g in rng.choice(GRADS)(rng, n, fmt)]
        yield Row(name, logits, index, weights, grad)


def ulps(x: float, steps: int, fmt: str) -> float:
    """The number that many representable steps above x; the largest finite number at most."""
    top = top_ordinal(fmt)
    return from_ordinal(max(-top, min(top, round_fraction(Fraction(x), fmt) + steps)), fmt)


def top_ordinal(fmt: str) -> int:
    """Ordinal of the largest finite number."""
    return infinity_ordinal(fmt) - 1


def largest(fmt: str) -> float:
    """The largest finite number."""
    return from_ordinal(top_ordinal(fmt), fmt)


# Logits


def _size(rng: random.Random) -> int:
    return rng.choice((1, 2, 3, 4, 5, 8, 9, 12))


def _gaussian(rng: random.Random, fmt: str) -> list[float]:
    sigma = rng.choice((1e-6, 0.1, 1.0, 3.0, 10.0, 100.0))
    return [rng.gauss(0, sigma) for _ in range(_size(rng))]


def _wide(rng: random.Random, fmt: str) -> list[float]:
    return [rng.gauss(0, rng.choice((1e3, 1e4))) for _ in range(_size(rng))]


def _offset(rng: random.Random, fmt: str) -> list[float]:
    offset = rng.choice((-1, 1)) * 2.0 ** rng.randrange(1, 16)
    return [offset + rng.gauss(0, 2) for _ in range(_size(rng))]


def _dominant(rng: random.Random, fmt: str) -> list[float]:
    """One logit ahead by about a limit at which the others' weights become subnormal or nothing."""
    precision, emin, _ = FORMATS[fmt]
    limit = rng.choice((precision, precision - emin, -emin)) * math.log(2)
    return _shuffled(rng, [0.0] + [-limit + rng.gauss(0, 0.7) for _ in range(_size(rng))])


def _ramp(rng: random.Random, fmt: str) -> list[float]:
    step = rng.choice((1 / 64, 0.5, 1.0, 10.0)) * rng.choice((-1, 1))
    return [step * i for i in range(_size(rng))]


def _equal(rng: random.Random, fmt: str) -> list[float]:
    return [rng.gauss(0, 10)] * rng.choice((1, 2, 3, 4, 5, 7, 8, 16))


def _near_tie(rng: random.Random, fmt: str) -> list[float]:
    base = nearest(rng.gauss(0, 4), fmt)
    return [ulps(base, rng.choice((-1, 0, 0, 1)), fmt) for _ in range(_size(rng) + 1)]


def _subnormal(rng: random.Random, fmt: str) -> list[float]:
    reach = 1 << (FORMATS[fmt][0] - 1)
    return [from_ordinal(rng.randrange(-reach, reach + 1), fmt) for _ in range(_size(rng))]


def _huge(rng: random.Random, fmt: str) -> list[float]:
    top = largest(fmt)
    return [rng.choice((top, -top, ulps(top, -1, fmt), top / 2, 0.0, 1.0)) for _ in range(_size(rng))]


def _exp_limit(rng: random.Random, fmt: str) -> list[float]:
    """About the logits whose exponentials overflow, become subnormal or vanish."""
    precision, emin, emax = FORMATS[fmt]
    limits = [(emax + 1) * math.log(2), emin * math.log(2), (emin - precision) * math.log(2), 0.0]
    return [ulps(nearest(rng.choice(limits), fmt), rng.choice((-1, 0, 1)), fmt) for _ in range(_size(rng))]


def _masked(rng: random.Random, fmt: str) -> list[float]:
    return _shuffled(rng, [rng.choice((-math.inf, rng.gauss(0, 3))) for _ in range(_size(rng))] + [rng.gauss(0, 3)])


def _confident(rng: random.Random, fmt: str) -> list[float]:
    """p close to 1: the rest is about half an ulp of 1, where p_max changes its rounding and its binade."""
    gap = (FORMATS[fmt][0] + rng.choice((-1, 0, 1, 2))) * math.log(2)
    return _shuffled(rng, [0.0] + [-gap - math.log(k) + rng.gauss(0, 1e-3) for k in range(1, _size(rng) + 1)])


def _tied_top(rng: random.Random, fmt: str) -> list[float]:
    """Some equal maxima and a rest astronomically far below: values beside an exact rational number."""
    gap = rng.choice((30.0, 300.0, 6e4, largest(fmt) / 2))
    return _shuffled(rng, [1.0] * rng.choice((1, 2, 3, 4)) + [1.0 - gap * rng.choice((1, 1, 2)) for _ in range(_size(rng))])


def _midpoint(rng: random.Random, fmt: str) -> list[float]:
    """Two logits whose difference is a midpoint of the format, and a few far below."""
    precision = FORMATS[fmt][0]
    big = nearest(2.0 ** (precision + rng.randrange(0, 3)) + 2.0 * rng.randrange(0, 8), fmt)
    return [rng.choice((1.0, 3.0, 0.5)), -big] + [-big * rng.choice((1.5, 2.0)) for _ in range(rng.randrange(3))]


def _powers(rng: random.Random, fmt: str) -> list[float]:
    _, emin, emax = FORMATS[fmt]
    exponents = [rng.randrange(-6, 7), rng.randrange(-6, 7), rng.randrange(emin, emax + 1)]
    return [rng.choice((-1, 1)) * 2.0 ** rng.choice(exponents) for _ in range(_size(rng))]


def _bits(rng: random.Random, fmt: str) -> list[float]:
    top = top_ordinal(fmt)
    return [from_ordinal(rng.randint(-top, top), fmt) for _ in range(_size(rng))]


def _shuffled(rng: random.Random, values: list[float]) -> list[float]:
    rng.shuffle(values)
    return values


FAMILIES: dict[str, Maker] = {
    "gaussian": _gaussian,
    "wide": _wide,
    "offset": _offset,
    "dominant": _dominant,
    "ramp": _ramp,
    "equal": _equal,
    "near_tie": _near_tie,
    "subnormal": _subnormal,
    "huge": _huge,
    "exp_limit": _exp_limit,
    "masked": _masked,
    "confident": _confident,
    "tied_top": _tied_top,
    "midpoint": _midpoint,
    "powers": _powers,
    "bits": _bits,
}


# Weights and grad_outputs


def _one_hot(rng: random.Random, n: int) -> list[float]:
    at = rng.randrange(n)
    return [float(i == at) for i in range(n)]


WEIGHTS: tuple[Callable[[random.Random, int], list[float]], ...] = (
    _one_hot,
    lambda rng, n: [1.0 / n] * n,
    lambda rng, n: [rng.random() / n for _ in range(n)],
    lambda rng, n: [rng.choice((0.0, 0.0, 0.25, 1.0, 3.0)) for _ in range(n)],
    lambda rng, n: [rng.choice((1e-6, 0.5, 100.0)) * rng.random() for _ in range(n)],
)
GRADS: tuple[Callable[[random.Random, int, str], list[float]], ...] = (
    lambda rng, n, fmt: [rng.gauss(0, 1) for _ in range(n)],
    lambda rng, n, fmt: [rng.choice((-1.0, 0.0, 1.0)) for _ in range(n)],
    lambda rng, n, fmt: [rng.choice((0.5, 3.0))] * n,
    lambda rng, n, fmt: [1.0 + rng.choice((0, 1, 3)) * 2.0 ** (1 - FORMATS[fmt][0]) for _ in range(n)],
    lambda rng, n, fmt: [rng.choice((1.0, -1.0)) * largest(fmt) * rng.random() for _ in range(n)],
)
