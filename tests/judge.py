"""An independent judge of the truth: every op in Arb's balls (python-flint), rounded by rational arithmetic.

Shares no code with the engine. A row is a list of Python floats, which are exact dyadic numbers; `target` is a class index,
a list of weights or the grad_output, as the op needs. An element of a result is one of
  float     nan or an infinity: exact, by the rules for rows that are not finite;
  Fraction  exact, because the row makes the value rational;
  arb       a ball that contains the value.
Values exponentially near a rounding boundary are decided by their rational part and the sign of the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from flint import arb, ctx, fmpq

OPS = ("softmax", "log_softmax", "logsumexp", "cross_entropy", "cross_entropy_grad", "softmax_jacobian", "softmax_vjp")
FORMATS = {
    "float16": (11, -14, 15),
    "bfloat16": (8, -126, 127),
    "float32": (24, -126, 127),
    "float64": (53, -1022, 1023),
    "float8_e4m3fn": (4, -6, 8),
    "float8_e5m2": (3, -14, 15),
}
NO_INFINITY = ("float8_e4m3fn",)  # its last pattern is NaN, and so is what overflows
FIRST, CAP = 128, 8192  # bits; enough for all rests above e^-3500, below which the rational part decides
TINY = Fraction(1, 1 << 3000)  # below the distance of any rational part from any boundary that it does not lie on
FLOOR = -12000  # log2 of what counts as nothing in the ends of a ball
LOGS = ("log_softmax", "logsumexp", "cross_entropy")

Target = int | Sequence[float] | None
Element = float | Fraction | arb
NAN, INF = math.nan, math.inf


# Rounding


def round_fraction(value: Fraction, fmt: str) -> int:
    """Ordinal of value rounded to nearest, ties to even: infinity, or the NaN in its place, is one after the largest number."""
    precision, emin, emax = FORMATS[fmt]
    if value == 0:
        return 0
    top = max(floor_log2(value), emin)
    infinity = infinity_ordinal(fmt)
    steps = infinity if top > emax else round(abs(value) / power(top - precision + 1)) + ((top - emin) << (precision - 1))
    return min(steps, infinity) if value > 0 else -min(steps, infinity)


def infinity_ordinal(fmt: str) -> int:
    """One after that of the largest number."""
    precision, emin, emax = FORMATS[fmt]
    return ((emax - emin + 2) << (precision - 1)) - (fmt in NO_INFINITY)


def from_ordinal(ordinal: int, fmt: str) -> float:
    """The number of that ordinal; every format embeds in binary64."""
    precision, emin, _ = FORMATS[fmt]
    size = abs(ordinal)
    if size >= infinity_ordinal(fmt):
        return NAN if fmt in NO_INFINITY else math.copysign(INF, ordinal)
    binade = max((size >> (precision - 1)) - 1, 0)
    steps = size - (binade << (precision - 1))
    return math.copysign(float(steps * power(emin - precision + 1 + binade)), ordinal)


def nearest(value: float, fmt: str) -> float:
    """A binary64 number rounded to a format; specials stay, but that an infinity is NaN where there is none."""
    if math.isfinite(value):
        return from_ordinal(round_fraction(Fraction(value), fmt), fmt)
    return NAN if fmt in NO_INFINITY else value


def floor_log2(value: Fraction) -> int:
    """floor(log2 |value|), value not 0."""
    guess = abs(value.numerator).bit_length() - value.denominator.bit_length()
    return guess if power(guess) <= abs(value) else guess - 1


def power(exponent: int) -> Fraction:
    """2^exponent, exact."""
    return Fraction(1 << exponent) if exponent >= 0 else Fraction(1, 1 << -exponent)


def ends(ball: arb) -> tuple[Fraction, Fraction]:
    """Rational bounds of a ball: exact, but that a midpoint or radius below 2^FLOOR is replaced by a radius of 2^FLOOR."""
    man, exp = (int(part) for part in ball.mid().man_exp())
    rad, rad_exp = (int(part) for part in ball.rad().man_exp())
    mid, slack = (man * power(exp), Fraction(0)) if man.bit_length() + exp > FLOOR else (Fraction(0), power(FLOOR) * (man != 0))
    reach = slack + (rad * power(rad_exp) if rad.bit_length() + rad_exp > FLOOR else power(FLOOR) * (rad != 0))
    return mid - reach, mid + reach


# The ops by their definitions


@dataclass(frozen=True)
class _Row:
    """The finite logits of a row: positions, exact logits, distances from the maximum and their exponentials."""

    live: list[int]
    x: list[Fraction]
    d: list[Fraction]
    e: list[arb]
    total: arb

    @property
    def top(self) -> Fraction:
        return max(self.x)

    @property
    def equal(self) -> bool:
        return not any(self.d)


def enclose(op: str, row: Sequence[float], target: Target, prec: int) -> list[Element]:
    """Every element of the op on one row, in C order, in balls of `prec` bits working precision."""
    special = _special_row(op, row)
    if special is not None:
        return [special] * width(op, len(row))
    with ctx.workprec(prec):
        return _ENCLOSE[op](_prepare(row), len(row), target)


def width(op: str, n: int) -> int:
    """Output elements per row of n logits."""
    return {"logsumexp": 1, "cross_entropy": 1, "softmax_jacobian": n * n}.get(op, n)


def _special_row(op: str, row: Sequence[float]) -> float | None:
    if any(math.isnan(x) for x in row):
        return NAN
    if INF in row:
        return INF if op == "logsumexp" else NAN
    if max(row) == -INF:
        return -INF if op == "logsumexp" else NAN
    return None


def _prepare(row: Sequence[float]) -> _Row:
    live = [i for i, x in enumerate(row) if x != -INF]
    x = [Fraction(row[i]) for i in live]
    top = max(x)
    e = [_ball(v - top).exp() for v in x]
    return _Row(live, x, [v - top for v in x], e, sum(e, arb(0)))


def _ball(value: Fraction | int) -> arb:
    """A ball around a rational; dyadic rationals, such as all differences of logits, are exact."""
    value = Fraction(value)
    shift = value.denominator.bit_length() - 1
    if value.denominator == 1 << shift:
        return arb((value.numerator, -shift))
    return arb(fmpq(value.numerator, value.denominator))


def _spread(row: _Row, n: int, values: Sequence[Element], masked: Sequence[Element]) -> list[Element]:
    """Values of the finite logits put back among those of the masked ones."""
    out = list(masked)
    for i, value in zip(row.live, values, strict=True):
        out[i] = value
    return out


def _softmax(row: _Row, n: int, target: Target) -> list[Element]:
    m = len(row.x)
    values: list[Element] = [Fraction(1, m)] * m if row.equal else [e / row.total for e in row.e]
    return _spread(row, n, values, [Fraction(0)] * n)


def _log_softmax(row: _Row, n: int, target: Target) -> list[Element]:
    if len(row.x) == 1:
        return _spread(row, n, [Fraction(0)], [-INF] * n)
    return _spread(row, n, [_ball(d) - row.total.log() for d in row.d], [-INF] * n)


def _logsumexp(row: _Row, n: int, target: Target) -> list[Element]:
    return [row.top] if len(row.x) == 1 else [_ball(row.top) + row.total.log()]


def weights(target: Target, n: int) -> list[Fraction]:
    """The target as a distribution: a class index is one-hot."""
    if isinstance(target, int):
        return [Fraction(int(i == target)) for i in range(n)]
    assert target is not None
    return [Fraction(y) for y in target]


def _cross_entropy(row: _Row, n: int, target: Target) -> list[Element]:
    y = weights(target, n)
    if any(y[i] for i in range(n) if i not in row.live):
        return [INF]
    pull = sum((y[i] * d for i, d in zip(row.live, row.d, strict=True)), Fraction(0))
    if len(row.x) == 1 or not any(y):
        return [-pull]
    return [_ball(sum(y)) * row.total.log() - _ball(pull)]


def _cross_entropy_grad(row: _Row, n: int, target: Target) -> list[Element]:
    y = weights(target, n)
    whole = sum(y)
    if row.equal or whole == 0:
        values: list[Element] = [whole / len(row.x) - y[i] for i in row.live]
    else:
        values = [e / row.total * _ball(whole) - _ball(y[i]) for i, e in zip(row.live, row.e, strict=True)]
    return _spread(row, n, values, [-v for v in y])


def _softmax_jacobian(row: _Row, n: int, target: Target) -> list[Element]:
    p = _softmax(row, n, None)
    exact = row.equal
    one: Element = Fraction(1) if exact else arb(1)

    def entry(i: int, j: int) -> Element:
        if isinstance(p[i], Fraction) and isinstance(p[j], Fraction):
            return p[i] * (int(i == j) - p[j])
        if Fraction(0) in (p[i], p[j]) and not (isinstance(p[i], arb) and isinstance(p[j], arb)):
            return Fraction(0)
        return p[i] * (one - p[j]) if i == j else -(p[i] * p[j])

    return [entry(i, j) for i in range(n) for j in range(n)]


def _softmax_vjp(row: _Row, n: int, target: Target) -> list[Element]:
    g = [weights(target, n)[i] for i in row.live]
    m = len(g)
    if row.equal:
        values: list[Element] = [(v - sum(g) / m) / m for v in g]
    else:
        p = [e / row.total for e in row.e]
        mean = sum((q * _ball(v) for q, v in zip(p, g, strict=True)), arb(0))
        values = [Fraction(0) if _vjp_vanishes(row, g, v) else q * (_ball(v) - mean) for q, v in zip(p, g, strict=True)]
    return _spread(row, n, values, [Fraction(0)] * n)


def _vjp_vanishes(row: _Row, g: list[Fraction], value: Fraction) -> bool:
    """sum_j e^(x_j) (value - g_j) = 0 if and only if it vanishes within every group of equal logits."""
    groups: dict[Fraction, Fraction] = {}
    for x, v in zip(row.x, g, strict=True):
        groups[x] = groups.get(x, Fraction(0)) + value - v
    return not any(groups.values())


_ENCLOSE: dict[str, Callable[[_Row, int, Target], list[Element]]] = {
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "logsumexp": _logsumexp,
    "cross_entropy": _cross_entropy,
    "cross_entropy_grad": _cross_entropy_grad,
    "softmax_jacobian": _softmax_jacobian,
    "softmax_vjp": _softmax_vjp,
}


# The rounding decision


def rounded(op: str, row: Sequence[float], target: Target, fmt: str, cap: int = CAP) -> list[float | None]:
    """Ordinals of the correctly rounded elements; nan where the value is NaN, None where neither balls nor theory decide."""
    found: list[float | None] = [None] * width(op, len(row))
    prec = FIRST
    while None in found and prec <= cap:
        for k, element in enumerate(enclose(op, row, target, prec)):
            if found[k] is None:
                found[k] = _decide(element, fmt)
        prec *= 2
    if None in found:
        beside = sided(op, row, target)
        found = [_decide_sided(beside[k], fmt) if value is None else value for k, value in enumerate(found)]
    if fmt in NO_INFINITY:
        return [NAN if value is not None and abs(value) == infinity_ordinal(fmt) else value for value in found]
    return found


def _decide(element: Element, fmt: str) -> float | None:
    if isinstance(element, Fraction):
        return round_fraction(element, fmt)
    if isinstance(element, float):
        return element if math.isnan(element) else math.copysign(round_fraction(power(5000), fmt), element)
    low, high = (round_fraction(end, fmt) for end in ends(element))
    return low if low == high else None


def _decide_sided(part: tuple[Fraction, int] | None, fmt: str) -> float | None:
    return None if part is None else round_fraction(part[0] + part[1] * TINY, fmt)


def sided(op: str, row: Sequence[float], target: Target, gap: int = 3500) -> list[tuple[Fraction, int] | None]:
    """Elements whose value is an exact rational q plus a rest: (q, sign of the rest); None for the others.

    gap: how far the other logits must lie below the maximum; at 3500 the rest lies in (0, TINY).
    """
    with ctx.workprec(256):
        parts = _Beside(row).parts(op, target, gap) if _special_row(op, row) is None else None
    return [None] * width(op, len(row)) if parts is None else parts


class _Beside:
    """A row with m tied maxima, apart from the rest of its finite logits; `reach` is the largest of the rest."""

    def __init__(self, row: Sequence[float]) -> None:
        self.n = len(row)
        self.x = {i: Fraction(x) for i, x in enumerate(row) if x != -INF}
        self.top = max(self.x.values())
        self.tops = [i for i, x in self.x.items() if x == self.top]
        self.m = len(self.tops)
        self.rest = [i for i, x in self.x.items() if x != self.top]
        self.reach = max((self.x[i] for i in self.rest), default=self.top)

    def parts(self, op: str, target: Target, gap: int) -> list[tuple[Fraction, int] | None]:
        y = weights(target, self.n) if target is not None else [Fraction(0)] * self.n
        if op == "softmax_jacobian":
            return [self._jacobian(i, j, gap) for i in range(self.n) for j in range(self.n)]
        near = (
            len(self.x) > 1 and self.top - self.reach >= gap and (self.m == 1 or gap == 0)
        )  # log S of tied maxima is no tiny rest
        if op == "logsumexp":
            return [(self.top, 1) if near else None]
        if op == "log_softmax":
            return [(self.x[i] - self.top, -1) if near and i in self.x else None for i in range(self.n)]
        if op == "cross_entropy":
            masked = any(y[i] for i in range(self.n) if i not in self.x)
            pull = sum((y[i] * (self.x[i] - self.top) for i in self.x), Fraction(0))
            return [(-pull, 1) if near and any(y) and not masked else None]
        return [self._vector(op, i, y) if self._is_beside(i, gap) else None for i in range(self.n)]

    def _is_beside(self, i: int, gap: int) -> bool:
        """Whether p_i is 1/m, or 0, but for a rest below e^-gap."""
        if i in self.tops:
            return bool(self.rest) and self.top - self.reach >= gap
        return i in self.x and self.top - self.x[i] >= gap

    def _vector(self, op: str, i: int, y: list[Fraction]) -> tuple[Fraction, int] | None:
        top = i in self.tops
        whole = sum(y)
        if op == "softmax":
            return (Fraction(int(top), self.m), -1 if top else 1)
        if op == "cross_entropy_grad":
            return (Fraction(int(top), self.m) * whole - y[i], -1 if top else 1) if whole else None
        return self._vjp(i, y) if top else self._small_vjp(i, y)

    def _jacobian(self, i: int, j: int, gap: int) -> tuple[Fraction, int] | None:
        if i not in self.x or j not in self.x:
            return None
        if i in self.tops and j in self.tops:
            # m^2 (m+T-1) - (m-1)(m+T)^2 = T m (2-m) - (m-1) T^2
            q = (Fraction(self.m - 1, self.m**2), 1 if self.m == 1 else -1) if i == j else (Fraction(-1, self.m**2), 1)
            return q if self._is_beside(i, gap) else None
        far = self.top - self.x[i] + (self.top - self.x[j] if i != j else 0)
        return (Fraction(0), 1 if i == j else -1) if far >= gap else None

    def _vjp(self, i: int, g: list[Fraction]) -> tuple[Fraction, int] | None:
        """The rest has the sign of m^2 H - 2 m G T - G T^2.

        G and H sum (g_i - g_j) e^(x_j - top) over the maxima and over the rest, T sums e^(x_j - top) over the rest.
        """
        G = sum((g[i] - g[j] for j in self.tops), Fraction(0))
        terms: dict[Fraction, Fraction] = {}  # coefficient of e^exponent; equal exponents may cancel exactly
        for j in self.rest:
            d = self.x[j] - self.top
            terms[d] = terms.get(d, Fraction(0)) + self.m**2 * (g[i] - g[j]) - 2 * self.m * G
            for k in self.rest:
                both = d + self.x[k] - self.top
                terms[both] = terms.get(both, Fraction(0)) - G
        sign = _sign_of_sum(terms)
        return (G / self.m**2, sign) if sign else None

    def _small_vjp(self, i: int, g: list[Fraction]) -> tuple[Fraction, int] | None:
        """Beside 0, with the sign of the sum of e^(x_j) (g_i - g_j)."""
        terms: dict[Fraction, Fraction] = {}
        for j, x in self.x.items():
            terms[x] = terms.get(x, Fraction(0)) + g[i] - g[j]
        sign = _sign_of_sum(terms)
        return (Fraction(0), sign) if sign else None


def _sign_of_sum(terms: dict[Fraction, Fraction]) -> int:
    """Sign of a sum of c e^t; by Lindemann and Weierstrass it is 0 only if every c is. 0 also where 1024 bits do not tell."""
    used = {t: c for t, c in terms.items() if c}
    if not used:
        return 0
    with ctx.workprec(1024):
        value = sum((_ball(c) * _ball(t - max(used)).exp() for t, c in used.items()), arb(0))
        return int(value > 0) - int(value < 0)
