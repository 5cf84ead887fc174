"""Verdicts by the rules alone, element by element in exact fractions; a policy, a problem and an output by seed.

Shares with the engine the certified truth, the evaluation of a declared bound and the mutants; the rules, the tolerances and the
figures they need are written out here once more, as plainly as they are stated. A truth that cannot be told from a rational is
that rational and a little more, or less, as the certificate has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from engine import FORMATS, Gate, Params, Problem
from engine.bounds import Declared, Tolerance, allowed
from engine.formats import from_ordinals, ordinals, widen
from engine.mutants import mutants, mutate
from engine.truth import certified, nearly
from tests.drawn import draw, rounded
from tests.judge import floor_log2, from_ordinal, infinity_ordinal, power, round_fraction

Array = Any
BITS = 400
NEAR = Fraction(1, 1 << 18)
"""Relative: so near to the edge of a gate that compares figures, which are fixed to 20 bits, nothing is said."""

# (rtol, atol) of float16, bfloat16, float32, float64
_FOUR = ("float16", "bfloat16", "float32", "float64")
_SAME = [(t, t) for t in (1e-3, 1e-2, 1e-6, 1e-6)]
PAIRS: dict[str, dict[str, tuple[float, float]]] = {
    "torch.assert_close": dict(zip(_FOUR, [(1e-3, 1e-5), (1.6e-2, 1e-5), (1.3e-6, 1e-5), (1e-7, 1e-7)], strict=True)),
    "numpy.allclose": dict.fromkeys(FORMATS, (1e-5, 1e-8)),
    "numpy.assert_allclose": dict.fromkeys(FORMATS, (1e-7, 0.0)),
    "jax.default": dict(zip(_FOUR, [(1e-3, 1e-3), (1e-2, 1e-2), (1e-6, 1e-6), (1e-15, 1e-15)], strict=True))
    | dict.fromkeys(("float8_e4m3fn", "float8_e5m2"), (1e-1, 1e-1)),
    "jax.grad": dict(zip(_FOUR, [(1e-2, 1e-2), (1e-1, 1e-1), (2e-3, 2e-3), (1e-5, 1e-5)], strict=True)),
    "tf.assertAllCloseAccordingToType": dict(zip(_FOUR, _SAME, strict=True)),
    "onnx.backend": dict.fromkeys(_FOUR, (1e-3, 1e-7)),
    "ort.cpu": dict(zip(_FOUR, [(1e-3, 2.5e-3), (1e-2, 2e-2), (1e-4, 1e-5), (1e-5, 1e-5)], strict=True)),
    "te.dtype_tols": dict(zip(_FOUR, [(1e-3, 1e-5), (1.6e-2, 1e-5), (1.3e-6, 1e-5), (1e-7, 1e-7)], strict=True))
    | {"float8_e4m3fn": (0.125, 0.0675), "float8_e5m2": (0.25, 0.125)},
    "liger.ce": {"bfloat16": (5e-2, 1e-8), "float32": (1e-6, 1e-8)},
    "liger.softmax": {"bfloat16": (5e-2, 5e-2), "float32": (1e-5, 1e-5)},
    "xnnpack": {"float16": (5e-3, 1e-4), "float32": (1e-5, 0.0)},
    "flash.ce": {"float16": (1e-3, 1e-4), "bfloat16": (1e-3, 1e-4), "float32": (1e-5, 1e-6)},
}
DEMANDS = ("max_ulp", "faithful", "correctly_rounded", "numpy.ulp")
REFERENCES = ("flash.2x", "torch.flex_fudge")
STABLE = {
    "softmax": "shifted", "log_softmax": "shifted", "logsumexp": "shifted", "cross_entropy": "split",
    "cross_entropy_grad": "fused", "softmax_jacobian": "shifted", "softmax_vjp": "shifted",
}  # fmt: skip


class Near(Exception):
    """Too near to an edge for what is compared there to be told apart."""


# ---- elements ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One element. low, high: T lies between them; truth: T where it is NaN or infinite; right: R; got: c; fmt: their format;
    row, column: its place."""

    low: Fraction
    high: Fraction
    truth: float | None
    right: float
    got: float
    fmt: str
    row: int
    column: int

    @property
    def mismatch(self) -> bool:
        """c is NaN where R is not, or the reverse; infinite where R is finite, or of another sign; T is, and c is not it."""
        c, r = self.got, self.right
        if math.isnan(c) or math.isnan(r):
            return math.isnan(c) != math.isnan(r)
        return (math.isinf(c) and c != r) or (self.truth is not None and c != r)

    @property
    def counted(self) -> bool:
        """Whether it has an error."""
        return self.truth is None and not self.mismatch and not math.isnan(self.right) and math.isfinite(self.got)

    @property
    def exact(self) -> bool:
        """Whether c is R."""
        return self.got == self.right or (math.isnan(self.got) and math.isnan(self.right))

    @property
    def neighbour(self) -> bool:
        """Whether T is c, or lies between c and a number beside it."""
        at = round_fraction(Fraction(self.got), self.fmt)
        lower, upper = (_beside_of(at, step, self.fmt) for step in (-1, 1))
        return self.low == self.high == self.got or (lower < self.low and self.high < upper)

    @property
    def zero(self) -> bool:
        """Whether T is 0."""
        return self.truth is None and self.low == self.high == 0

    @property
    def error(self) -> tuple[Fraction, Fraction]:
        """abs(c - T), from and to."""
        ends = sorted((abs(Fraction(self.got) - self.low), abs(Fraction(self.got) - self.high)))
        return (Fraction(0) if self.low < Fraction(self.got) < self.high else ends[0]), ends[1]

    @property
    def size(self) -> tuple[Fraction, Fraction]:
        """abs(T), from and to."""
        return replace(self, got=0.0).error

    @property
    def unit(self) -> Fraction:
        """ulp(T)."""
        fmt = FORMATS[self.fmt]
        tops = {max(floor_log2(end), fmt.emin) if end else fmt.emin for end in (self.low, self.high)}
        top = min(max(tops), fmt.emax)
        assert len(tops) == 1
        return power(top - fmt.precision + 1)

    def off(self, allowance: tuple[Fraction, Fraction], outside: bool = False) -> bool:
        """Whether its error is beyond: as large counts where that is outside."""
        return self.counted and _larger(self.error, allowance, outside)


def _beside_of(ordinal: int, step: int, fmt: str) -> float:
    """The number so many steps on; beyond the largest infinity."""
    found = from_ordinal(ordinal + step, fmt)
    return math.copysign(math.inf, step) if math.isnan(found) else found


def _larger(figure: tuple[Fraction, Fraction], room: tuple[Fraction, Fraction], outside: bool) -> bool:
    if figure[1] < room[0] or (figure[1] == room[0] and not outside):
        return False
    return figure[0] > room[1] or outside  # what is not told apart is equal: rationals without an end


def cells(problem: Problem, output: Array) -> list[Cell]:
    """The elements of an output."""
    fmt = FORMATS[output.dtype.name]
    truth, found = certified(problem, fmt), []
    got = widen(output).reshape(truth.rows, -1)
    for row in range(truth.rows):
        for column, e in enumerate(truth.row(row, BITS)):
            place = (float(got[row, column]), fmt.name, row, column)
            if isinstance(e, float):
                right = math.nan if math.isnan(e) or (fmt.name == "float8_e4m3fn" and math.isinf(e)) else e
                found.append(Cell(Fraction(0), Fraction(0), e, right, *place))
                continue
            low, high = (man * power(e[2]) for man in (e[0], e[1]))
            ordinal = round_fraction(low, fmt.name)
            assert ordinal == round_fraction(high, fmt.name)
            found.append(Cell(low, high, None, from_ordinal(ordinal, fmt.name), *place))
    return found


# ---- tolerances --------------------------------------------------------------------------------------------------------

Room = Callable[[Cell], tuple[Fraction, Fraction] | None]
"""What an element may be off by, from and to; None: no bound."""


class Bounds:
    """What error theory allows, by declaration."""

    def __init__(self, problem: Problem, fmt: str) -> None:
        self.truth, self.fmt, self._rows = certified(problem, FORMATS[fmt]), fmt, dict[tuple[Declared, int], Array]()
        self.op, self.changed = problem.op, problem.params.scale != 1.0

    def of(self, k: Declared, cell: Cell) -> Fraction | None:
        """B."""
        at = k, cell.row
        if at not in self._rows:
            extra = self.truth.companion(cell.row)
            self._rows[at] = allowed((Tolerance((k,)),), self.truth.raw_logits[cell.row], extra, self.truth.width)[0]
        found = float(self._rows[at][cell.column])
        return None if self.changed or found == math.inf else Fraction(found)

    def declared(self, **given: Any) -> Declared:
        """The op's stable variant in the wider of float32 and the format, exp and log to 2 ulp, kappa 3."""
        wider = "float64" if self.fmt == "float64" else "float32"
        compute = given.pop("compute", wider)
        plain = Declared(f"{self.op}/{STABLE[self.op]}", compute, compute, self.fmt, "parallel", 2.0, 2.0, 3)
        return replace(plain, **given)

    def room(self, *declared: Declared, factor: float = 1.0) -> Room:
        """The largest of those that have a bound, but at least half an ulp."""

        def room(cell: Cell) -> tuple[Fraction, Fraction] | None:
            known = [b for b in (self.of(k, cell) for k in declared) if b is not None]
            most = max(Fraction(factor) * max(known), cell.unit / 2) if known else None
            return None if most is None else (most, most)

        return room

    def of_gate(self, gate: Gate) -> tuple[Declared, float]:
        """What a gate declares, and the factor; a right implementation where it declares nothing."""
        given = dict(gate.parameters) if gate.policy == "bound" else {}
        if not given:
            return self.declared(delivered=True), 1.0
        factor = given.pop("factor", 1.0)
        exp = given.pop("exp", "exp2")
        told = {"flush": given.pop("subnormals", "gradual") == "flush", "kappa": 3 if exp == "exp2" else 1}
        told["exp_ulps"] = 0.5 if exp == "correct" else 2.0
        return self.declared(**told, **given), factor

    @property
    def tight(self) -> Room:
        """What a right implementation may do."""
        return self.room(self.declared(delivered=True))

    @property
    def wide(self) -> Room:
        """What some arithmetic in use may do: float32 sums in sequence, flushed; all in its format, in pairs; a right one."""
        sums = self.declared(summation="sequential", flush=True, delivered=True)
        pairs = self.declared(compute=self.fmt, summation="pairwise", delivered=True)
        return self.room(sums, pairs, self.declared(delivered=True))


def _close(rtol: float, atol: float, larger: bool = False) -> Room:
    def room(cell: Cell) -> tuple[Fraction, Fraction]:
        sizes = [Fraction(rtol) * end for end in cell.size]
        low, high = (max(Fraction(atol), size) if larger else Fraction(atol) + size for size in sizes)
        return low, high

    return room


def _ulps(ulps: float) -> Room:
    return lambda cell: (Fraction(ulps) * cell.unit,) * 2


def _normwise(problem: Problem, some: Iterable[Cell], given: dict[str, Any]) -> Room:
    """factor u (n + 3) max T of the row; of logsumexp factor u (abs(T) + n + 1)."""
    largest: dict[int, Fraction] = {}
    for cell in some:
        largest[cell.row] = max(largest.get(cell.row, Fraction(0)), cell.size[1])
    n = problem.logits.shape[-1]

    def room(cell: Cell) -> tuple[Fraction, Fraction]:
        u = power(-FORMATS[given.get("compute", cell.fmt)].precision)
        term = largest[cell.row] * (n + 3) if problem.op == "softmax" else cell.size[1] + n + 1
        most = Fraction(given.get("factor", 1.0)) * u * term
        if abs(cell.error[1] - most) <= most * NEAR or abs(cell.size[1] - most) <= most * NEAR:
            raise Near
        return most, most

    return room


def _room(bounds: Bounds, problem: Problem, some: list[Cell], gate: Gate) -> Room:
    """The tolerance of a gate that is one."""
    given, name = dict(gate.parameters), gate.policy
    if name == "bound":
        k, factor = bounds.of_gate(gate)
        return bounds.room(k, factor=factor)
    if name == "bhh.bound":
        return _normwise(problem, some, given)
    if name == "allclose":
        return _close(given["rtol"], given["atol"])
    return _close(*PAIRS[name][some[0].fmt], larger=name == "xnnpack")


# ---- the rules ---------------------------------------------------------------------------------------------------------


def judge(problem: Problem, output: Array, gate: Gate, nonfinite: str = "ieee", reference: Array | None = None) -> str:
    """The verdict. Raises Near."""
    gone = _kept(problem).max(axis=-1, initial=-math.inf) == -math.inf
    if nonfinite == "strict":
        x = widen(problem.logits)
        if np.isnan(x).any() or (x == np.inf).any() or gone.any() or not np.isfinite(widen(output)).all():
            return "fail"
    if nonfinite.startswith("masked") and problem.op in ("softmax", "log_softmax") and gone.any():
        wanted = 0.0 if problem.op == "softmax" else -math.inf
        if nonfinite == "masked_zero" and (widen(output)[gone] != wanted).any():
            return "fail"
        mask = problem.params.mask
        params = problem.params if mask is None else replace(problem.params, mask=mask | gone[..., None])
        zeros = np.where(gone[..., None], np.zeros((), problem.logits.dtype), problem.logits)
        problem = Problem(problem.op, zeros, params=params)
    some = cells(problem, output)
    if nonfinite == "masked_zero":
        some = [cell for cell in some if not gone.reshape(-1)[cell.row]]
    return _ruled(problem, some, gate, reference)


def _kept(problem: Problem) -> Array:
    """The logits, -inf where they are masked."""
    x, mask = widen(problem.logits), problem.params.mask
    return np.where(np.isnan(x), 0.0, x if mask is None else np.where(mask, x, -np.inf))


def _ruled(problem: Problem, some: list[Cell], gate: Gate, reference: Array | None) -> str:
    if any(cell.mismatch and not _beside_overflow(cell, Bounds(problem, cell.fmt), gate) for cell in some):
        return "fail"  # 1
    if gate.policy in DEMANDS:
        return "fail" if _demanded(some, gate) else "pass"  # 5, 6
    if not some:
        return "pass"
    bounds = Bounds(problem, some[0].fmt)
    if gate.policy in REFERENCES:
        assert reference is not None
        if _farther(some, cells(problem, reference), gate):
            return "fail"
        through = not _farther(_zeros(some), cells(problem, reference), gate)
        return "inconclusive" if through and not _equivalent(_zeros(some), bounds) else "pass"
    room, wide = _room(bounds, problem, some, gate), bounds.wide
    counted = [cell for cell in some if cell.counted]
    rooms = [room(cell) for cell in counted]
    unjudged = any(r is None for r in rooms)
    beyond = [cell for cell, r in zip(counted, rooms, strict=True) if r is not None and cell.off(r)]
    farther = [cell for cell in counted if (r := wide(cell)) is not None and cell.off(r)]
    inside_wide = not farther and all(wide(cell) is not None for cell in counted)
    zeros = _zeros(some)
    missed = not any(cell.mismatch or ((r := room(cell)) is not None and cell.off(r)) for cell in zeros)
    if gate.policy == "bound":
        if missed and not unjudged and not _equivalent(zeros, bounds):
            return "fail" if any(cell in farther for cell in beyond) else "inconclusive"  # 2
        if beyond:
            return "fail" if gate.parameters or farther else "inconclusive"  # between
        return "inconclusive" if unjudged else "pass"
    if missed and not _equivalent(zeros, bounds):
        return "fail" if any(cell in farther for cell in beyond) else "inconclusive"  # 2
    if any(not cell.zero and _larger((cell.unit / 2,) * 2, r, False) for cell, r in zip(counted, rooms, strict=True) if r):
        return "fail" if farther else "inconclusive"  # 3
    if beyond:
        return "inconclusive" if inside_wide else "fail"  # 4, 5
    return "pass"  # 6


def _beside_overflow(cell: Cell, bounds: Bounds, gate: Gate) -> bool:
    """Whether the truth is so near to 464, from where on it is NaN, that what is rounded may be on the other side."""
    if cell.fmt != "float8_e4m3fn" or cell.truth is not None:
        return False
    if not (math.isnan(cell.got) or Fraction(cell.got) == (448 if cell.high > 0 else -448)):
        return False
    k, factor = bounds.of_gate(gate)
    before = bounds.of(replace(k, output=k.format), cell)
    return before is not None and abs(cell.size[1] - 464) <= Fraction(factor) * before


def _zeros(some: list[Cell]) -> list[Cell]:
    """An output of zeros; where the truth is no number it is kept."""
    return [replace(cell, got=0.0 if cell.truth is None else cell.right) for cell in some]


def _equivalent(some: list[Cell], bounds: Bounds) -> bool:
    """Whether an output is as good as the truth: rounded correctly, or within what a right implementation may do."""
    tight = bounds.tight
    return not any(cell.mismatch for cell in some) and all(
        cell.exact or (cell.counted and (r := tight(cell)) is not None and not cell.off(r)) for cell in some
    )


def _demanded(some: list[Cell], gate: Gate) -> bool:
    """Whether a demand is broken."""
    if gate.policy == "correctly_rounded":
        return not all(cell.exact for cell in some)
    if gate.policy == "numpy.ulp":
        return any(cell.counted and _steps(cell) > gate.parameters.get("maxulp", 1.0) for cell in some)
    if gate.policy == "faithful":
        return any(cell.counted and not cell.neighbour for cell in some)
    room = _ulps(gate.parameters["ulps"])
    return any(cell.off(r) for cell in some if cell.counted and (r := room(cell)))


def _steps(cell: Cell) -> int:
    """Representable numbers between c and R."""
    steps = [
        math.copysign(infinity_ordinal(cell.fmt), v) if math.isinf(v) else round_fraction(Fraction(v), cell.fmt)
        for v in (cell.got, cell.right)
    ]
    return int(abs(steps[0] - steps[1]))


def _farther(some: list[Cell], reference: list[Cell], gate: Gate) -> bool:
    """Whether an output is so many times farther from the truth than the reference."""
    given = gate.parameters
    if any(cell.mismatch for cell in some):
        return True
    if gate.policy == "torch.flex_fudge":
        if any(cell.mismatch for cell in reference):
            return False  # its mean is no number: zeros are let through
        found, room = (sum((cell.error[1] for cell in part if cell.counted), Fraction(0)) for part in (some, reference))
        room *= Fraction(given["factor"])
    else:
        found, room = (max((cell.error[1] for cell in part if cell.counted), default=None) for part in (some, reference))
        if found is None or room is None:
            return False
        room = Fraction(given.get("factor", 2.0)) * room + Fraction(given.get("atol", 0.0))
    if found != room and abs(found - room) <= NEAR * max(found, room):
        raise Near
    return found > room


def fates(problem: Problem, output: Array, gate: Gate, names: Iterable[str] = ()) -> dict[str, str]:
    """What a gate makes of the mutants of the truth, all or some: caught, missed or equivalent. Of tolerances, and of demands."""
    fmt, found = FORMATS[output.dtype.name], {}
    truth = certified(problem, fmt)
    bounds, right = Bounds(problem, fmt.name), nearly(truth, range(truth.rows))
    for name in names or mutants(fmt):
        some = cells(problem, mutate(name, right, truth, range(truth.rows)).reshape(truth.shape))
        if gate.policy in DEMANDS:
            missed = not any(cell.mismatch for cell in some) and not _demanded(some, gate)
        else:
            room = _room(bounds, problem, some, gate)
            missed = not any(cell.mismatch or (cell.counted and (r := room(cell)) is not None and cell.off(r)) for cell in some)
        found[name] = "equivalent" if _equivalent(some, bounds) else "missed" if missed else "caught"
    return found


# ---- what is judged, by seed -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Posted:
    """A problem, an output, and a gate."""

    seed: int
    problem: Problem
    output: Array
    gate: Gate
    nonfinite: str
    reference: Array | None

    def __str__(self) -> str:
        x, y = self.problem.logits, self.output
        what = f"{self.problem.op} of {x.dtype.name} {list(x.shape)} -> {y.dtype.name}"
        return f"seed {self.seed}: {what}, {self.gate.policy} {dict(self.gate.parameters)}, {self.nonfinite}"


def posted(seed: int) -> Posted:
    """A problem of few elements and an output, right or wrong or on the edge of what the gate allows."""
    case, rng = draw(seed, 40, elements=48), np.random.default_rng([seed, 1])
    given, fmt = _wild(case.given, rng), FORMATS[case.output]
    right = rounded(given, case.output)
    with np.errstate(all="ignore"):
        other = case.made.output(replace(given, params=replace(given.params, scale=1.0)))
    output = other if rng.random() < 0.2 and given.params.scale == 1.0 else right
    reference = _moved(right, rng, 1 << int(rng.integers(0, 8))) if rng.random() < 0.5 else other
    gate = _gate(given.op, fmt.name, rng)
    kind = rng.integers(0, 6)
    if kind == 0:
        output = _moved(output, rng, 1 << int(rng.integers(0, fmt.precision + 4)))
    elif kind == 1 and gate.policy not in (*DEMANDS, *REFERENCES):
        output = _on_edge(given, output, gate, rng)
    elif kind == 2 and rng.random() < 0.4:
        output = np.zeros_like(output)
    elif kind == 3 and rng.random() < 0.3 and output.size:
        output = output.copy()
        output.reshape(-1)[rng.integers(output.size)] = rng.choice((np.nan, np.inf, -np.inf))
    if gate.policy in ("allclose", "max_ulp") and rng.random() < 0.5:
        gate = _tied(given, output, gate, rng)
    nonfinite = "ieee" if rng.random() < 0.8 else str(rng.choice(("strict", "masked_zero", "masked_uniform")))
    return Posted(seed, given, output, gate, nonfinite, reference if gate.policy in REFERENCES else None)


def _wild(given: Problem, rng: np.random.Generator) -> Problem:
    """Now and then with 2^k equal logits, a row that is not finite, a scale that is no power of two."""
    x, chance = given.logits.copy(), rng.random()
    if chance < 0.1 and given.targets is None and given.grad_output is None and given.params.mask is None:
        return Problem(given.op, np.full((2, 1 << int(rng.integers(0, 5))), rng.integers(-3, 4), x.dtype))
    if chance < 0.2:
        values = (np.nan, np.inf, -np.inf) if FORMATS[x.dtype.name].overflow == "infinity" else (np.nan,)
        value = rng.choice(values)
        x[rng.integers(len(x)), rng.integers(x.shape[1]) if np.isnan(value) or rng.random() < 0.5 else slice(None)] = value
        return replace(given, logits=x)
    if chance < 0.23 and given.params.mask is None:
        return replace(given, params=Params(scale=0.3))
    return given


def _gate(op: str, fmt: str, rng: np.random.Generator) -> Gate:
    names = ["bound"] * 6 + ["allclose"] * 4 + ["max_ulp"] * 3 + [*DEMANDS[1:], "flash.2x"] * 2
    names += [name for name, pairs in PAIRS.items() if fmt in pairs]
    names += ["torch.flex_fudge"] * 2 * (op == "softmax") + ["bhh.bound"] * 2 * (op in ("softmax", "logsumexp"))
    name, power_of_ten = str(rng.choice(names)), 10.0 ** rng.uniform(-9, 1)
    chosen: dict[str, Any] = {
        "bound": _declaration(rng),
        "allclose": {"rtol": float(rng.choice((0.0, power_of_ten))), "atol": float(rng.choice((0.0, 10.0 ** rng.uniform(-12, 1))))},
        "max_ulp": {"ulps": float(rng.choice((0.0, 0.5, 1.0, 4.0, 1e3, power_of_ten)))},
        "numpy.ulp": {"maxulp": float(rng.integers(0, 5))},
        "flash.2x": {"factor": float(rng.choice((1.0, 2.0, 0.0))), "atol": float(rng.choice((0.0, power_of_ten)))},
        "torch.flex_fudge": {"factor": float(rng.choice((1.1, 10.0)))},
        "bhh.bound": {"factor": float(rng.choice((0.1, 1.0, 10.0)))},
    }.get(name, {})
    return Gate(name, chosen)


def _declaration(rng: np.random.Generator) -> dict[str, Any]:
    """Half of the time none."""
    options: list[dict[str, Any]] = [
        {"factor": float(rng.choice((1e-3, 0.5, 3.0)))},
        {"compute": str(rng.choice(list(FORMATS)))},
        {"summation": str(rng.choice(("sequential", "pairwise", "kahan"))), "exp": str(rng.choice(("correct", "numpy")))},
        {"subnormals": "flush", "factor": 2.0},
    ]
    return {} if rng.random() < 0.5 else options[int(rng.integers(len(options)))]


def _moved(output: Array, rng: np.random.Generator, reach: int) -> Array:
    """Some elements so many representable numbers off at most."""
    fmt = FORMATS[output.dtype.name]
    steps = rng.integers(-reach, reach + 1, output.shape) * (rng.random(output.shape) < rng.choice((0.1, 1.0)))
    wide = widen(output)
    where = ordinals(np.where(np.isfinite(wide), output, np.zeros((), output.dtype)), fmt)
    most = fmt.infinity_ordinal - 1
    return np.where(np.isfinite(wide), from_ordinals(np.clip(where + steps, -most, most), fmt), output).reshape(output.shape)


def _on_edge(problem: Problem, output: Array, gate: Gate, rng: np.random.Generator) -> Array:
    """One element on the edge of what it may be off by, or a number beside that."""
    some = cells(problem, output)
    room = _room(Bounds(problem, some[0].fmt), problem, some, gate)
    cell = some[int(rng.integers(len(some)))]
    try:
        allowance = room(cell) if cell.counted else None
    except Near:
        return output
    if allowance is None:
        return output
    edge = cell.low + allowance[0] * int(rng.choice((-1, 1)))
    most = infinity_ordinal(cell.fmt) - 1
    ordinal = round_fraction(edge, cell.fmt) + int(rng.integers(-1, 2))
    found = output.copy()
    found.reshape(-1)[some.index(cell)] = from_ordinal(max(-most, min(most, ordinal)), cell.fmt)
    return found


def _tied(problem: Problem, output: Array, gate: Gate, rng: np.random.Generator) -> Gate:
    """With a parameter that is what one element is off by, rounded; where the truth is a dyadic rational often the very same."""
    some = [cell for cell in cells(problem, output) if cell.counted and cell.error[1]]
    if not some:
        return gate
    cell = some[int(rng.integers(len(some)))]
    error, value = cell.error[1], Fraction(0)
    if gate.policy == "max_ulp":
        return Gate("max_ulp", {"ulps": _beside(error / cell.unit, rng)})
    if rng.random() < 0.5 and cell.size[1]:
        value = error / cell.size[1]
        return Gate("allclose", {"rtol": _beside(value, rng), "atol": 0.0})
    return Gate("allclose", {"rtol": 0.0, "atol": _beside(error, rng)})


def _beside(value: Fraction, rng: np.random.Generator) -> float:
    """In binary64, or one of the numbers beside that; what a gate takes."""
    found = float(value) if value < 10**15 else 1e15
    return float(rng.choice((found, found, np.nextafter(found, 0.0), np.nextafter(found, np.inf)))) if found else found
