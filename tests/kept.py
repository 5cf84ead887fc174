"""Outputs of other people's softmax, kept in data/golden/frameworks.json with their figures, which Arb's balls gave.

tests/frameworks.py makes the outputs, where the frameworks are; this file chooses those that are kept: of every framework, op and
format the row of 100 logits that is worst by ULP, and one with a special mismatch where there is one. Tensors are bit patterns,
little-endian, in base64. Regenerate with the commands in tests/frameworks.py.

The figures are worked out a third time here, apart from the engine and from tests/figures.py: truth and errors in balls of PREC
bits, c - T in ulps rounded to binary64 once, and from there sums of what does not cancel; so they have some 15 digits, where the
engine reports 40 or 20 bits.
"""

from __future__ import annotations

import base64
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from flint import arb, ctx

from tests import judge
from tests.figures import MAXIMUM, MEAN, STEP, significant

PATH = Path(__file__).parent / "data" / "golden" / "frameworks.json"
PREC = 400
DTYPES: dict[str, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}
BITS = {"float16": np.uint16, "bfloat16": np.uint16, "float32": np.uint32, "float64": np.uint64}
UP = 500  # log2 of what subnormal terms are scaled by
KEPT_N = 100
AGREE = 1e-9
LOSS = Fraction(1, 10**10)  # relative, of the figures here

Array = Any
Figures = dict[str, Any]


# ---- truth: rows of finite and masked logits, at least one of them finite ---------------------------------------------------


@cache
def scale(exponent: int) -> arb:
    """2^exponent."""
    return arb((1, exponent))


def truths(op: str, x: Sequence[float], target: int | Sequence[float] | None) -> list[arb | float]:
    """T of every element in balls, written so that nothing cancels beyond PREC: -inf stands for itself."""
    n, top = len(x), max(range(len(x)), key=x.__getitem__)
    live = [i for i in range(n) if x[i] != -math.inf]
    d = {i: arb(x[i]) - arb(x[top]) for i in live}
    e = {i: d[i].exp() for i in live}
    rest = sum((e[i] for i in live if i != top), arb(0))
    whole, log = 1 + rest, rest.log1p()
    if op == "softmax":
        return [e[i] / whole if i in e else arb(0) for i in range(n)]
    if op == "log_softmax":
        return [d[i] - log if i in d else -math.inf for i in range(n)]
    if op == "logsumexp":
        return [arb(x[top]) + log]
    if isinstance(target, int):
        if op == "cross_entropy":
            return [log - d[target]]
        others = rest if target == top else sum((e[i] for i in live if i != target), arb(0))
        return [-others / whole if i == target else e[i] / whole if i in e else arb(0) for i in range(n)]
    assert target is not None
    y = [arb(v) for v in target]
    total = sum(y, arb(0))
    if op == "cross_entropy":
        return [total * log - sum((y[i] * d[i] for i in live), arb(0))]
    return [(e[i] / whole * total if i in e else arb(0)) - y[i] for i in range(n)]


def rationals(op: str, x: Sequence[float]) -> list[bool]:
    """Which of a row's values may lie on a number of the format or a midpoint, by theorem; no target here is all zeros."""
    live = [v for v in x if v != -math.inf]
    if op in ("logsumexp", "cross_entropy"):
        return [len(live) == 1]
    some = len(live) == 1 if op == "log_softmax" else min(live) == max(live)
    return [some or v == -math.inf for v in x]


@dataclass(frozen=True)
class Row:
    """One row's truth in a format: T, log2 of its ulp, T in ulps, whether T is rational, R; bits of the balls."""

    truth: list[arb | float]
    unit: Array
    in_ulps: Array
    rational: Array
    rounded: Array
    prec: int


def row(op: str, fmt: str, x: Sequence[float], target: int | Sequence[float] | None) -> Row:
    """The truth of a row of logits."""
    precision, emin, _ = judge.FORMATS[fmt]
    deep = fmt == "float64" and max(x) - min(v for v in x if v != -math.inf) > 200
    with ctx.workprec(prec := 3 * PREC if deep else PREC):
        truth = truths(op, x, target)
        units = [_unit(t, precision, emin) for t in truth]
        in_ulps = np.array([t if isinstance(t, float) else float(t * scale(-u)) for t, u in zip(truth, units, strict=True)])
        rational, top = np.array(rationals(op, x)), max(x)
        steps = np.rint(in_ulps)
        finite = np.where(np.isfinite(in_ulps), in_ulps, 0.0)
        for i in np.flatnonzero(np.abs(finite - np.floor(finite) - 0.5) < 2**-10):
            low = math.floor(in_ulps[i])
            otherwise = low % 2 == 1 if rational[i] else is_above(op, len(truth) > 1 and x[i] == top)
            steps[i] = low + _above(truth[i] * scale(-units[i]), low + 0.5, otherwise)
    return Row(truth, np.array(units), in_ulps, rational, np.ldexp(steps, np.array(units)), prec)


def _unit(t: arb | float, precision: int, emin: int) -> int:
    man, exp = math.frexp(abs(float(t)))
    if man == 0.5 and not isinstance(t, float) and abs(t) < scale(exp - 1):
        exp -= 1
    return max(exp - 1 if man and math.isfinite(man) else emin, emin) - precision + 1


def is_above(op: str, at_top: bool) -> bool:
    """Whether a T that the balls do not part from a rational is above it: that is T but for exponentials of far smaller logits."""
    return op in ("logsumexp", "cross_entropy") or (op in ("softmax", "cross_entropy_grad") and not at_top)


def _above(t: arb, value: float, otherwise: bool) -> bool:
    return bool(t > value) if t > value or t < value else otherwise


# ---- figures -------------------------------------------------------------------------------------------------------------


class Cells:
    """One row's output against its truth. output: (width,), of the format's dtype."""

    def __init__(self, op: str, fmt: str, x: Array, truth: Row, output: Array) -> None:
        self.op, self.fmt, self.x, self.truth, self.output = op, fmt, x, truth, output
        with np.errstate(all="ignore"):
            self.c = output.astype(np.float64)
        R = truth.rounded
        self.nan = np.isnan(self.c)
        self.mismatch = self.nan | (np.isinf(self.c) & (self.c != R)) | (np.isinf(R) & (self.c != R))
        self.compared = ~self.mismatch & np.isfinite(R)
        self.normal = np.isfinite(R) & (np.abs(R) >= 2.0 ** judge.FORMATS[fmt][1])

    @cached_property
    def signed(self) -> Array:
        """c - T in ulps where compared, 0 elsewhere."""
        T, units = self.truth.truth, self.truth.unit
        found = np.zeros(len(T))
        with ctx.workprec(self.truth.prec):
            for i in np.flatnonzero(self.compared):
                found[i] = float((arb(float(self.c[i])) - T[i]) * scale(-int(units[i])))
        found[self.truth.rational & (np.abs(found) < 2.0 ** (100 - self.truth.prec))] = 0
        return found

    @cached_property
    def relative(self) -> Array:
        """|c - T| / |T|."""
        with np.errstate(all="ignore"):
            found = np.abs(self.signed / self.truth.in_ulps)
        for i in np.flatnonzero(np.abs(self.truth.in_ulps) < 1e-290):
            found[i] = self._far(i) if self.compared[i] else 0.0
        found[(self.c == 0) & ~self._zero] = 1.0
        return found

    def _far(self, i: int) -> float:
        if self._zero[i]:
            return 0.0 if self.c[i] == 0 else math.inf
        with ctx.workprec(self.truth.prec):
            return float(abs(arb(float(self.c[i])) / self.truth.truth[i] - 1))

    @cached_property
    def _zero(self) -> Array:
        """Whether T is 0."""
        return self.truth.rational & (self.truth.in_ulps == 0)

    @property
    def absolute(self) -> Array:
        return np.ldexp(np.abs(self.signed), self.truth.unit)

    @property
    def ordinals(self) -> tuple[Array, Array]:
        """Of c and R; those of NaN mean nothing."""
        with np.errstate(all="ignore"):
            return _ordinals(self.output), _ordinals(self.truth.rounded.astype(DTYPES[self.fmt]))

    @property
    def edges(self) -> list[float]:
        """Percentile bins of the compared elements."""
        return [self._edge(i, abs(float(self.signed[i]))) for i in np.flatnonzero(self.compared)]

    def _edge(self, i: int, size: float) -> float:
        if size == 0 and self.truth.rational[i]:
            return 0.0
        if size <= 2**-10:
            return 2.0**-10
        beyond = not self.truth.rational[i] and math.frexp(size)[0] == 0.5 and self._more(i, size)  # on an edge, to binary64
        return 2.0 ** ((math.ceil(64 * math.log2(size)) + beyond) / 64)

    def _more(self, i: int, size: float) -> bool:
        """Whether an error that is size to binary64, though T is not rational, is larger."""
        with ctx.workprec(self.truth.prec):
            error = abs((arb(float(self.c[i])) - self.truth.truth[i]) * scale(-int(self.truth.unit[i])))
        return _above(error, size, bool(self.signed[i] > 0) != is_above(self.op, len(self.c) > 1 and self.x[i] == self.x.max()))

    def kl(self, probabilities: Row) -> float:
        c, log = self.c, self.op == "log_softmax"
        R = self.truth.rounded
        if (self.mismatch & np.isinf(c)).any():
            return math.inf
        if log:
            w = np.ldexp(self.signed, self.truth.unit)
            return math.ldexp(math.fsum(np.ldexp(probabilities.in_ulps, probabilities.unit + UP) * _expm1_less(w)), -UP)
        used = R != 0
        if (c[used] <= 0).any():
            return math.inf
        T = np.ldexp(self.truth.in_ulps, self.truth.unit + UP)[used]
        return math.ldexp(math.fsum(T * _less_log1p(self.signed[used] / self.truth.in_ulps[used])), -UP)

    def total_variation(self) -> float:
        return math.inf if np.isinf(self.c).any() else math.fsum(self.absolute) / 2

    def backward_error(self) -> float:
        used = np.flatnonzero(self.normal)
        if (self.c[used] <= 0).any() or np.isinf(self.c[used]).any():
            return math.inf
        if len(used) < 2:
            return 0.0
        delta = self.signed[used] / self.truth.in_ulps[used]
        close = 1e-12 * np.abs(delta).max()  # what may be an end
        with ctx.workprec(self.truth.prec):
            high, low = (
                pick(arb(float(self.c[i])) / self.truth.truth[i] for i in used[near])
                for pick, near in ((max, delta >= delta.max() - close), (min, delta <= delta.min() + close))
            )
            spread = float((high / low).log() / 2)
        return 0.0 if abs(spread) < 2.0 ** (100 - self.truth.prec) else spread

    def sum_defect(self) -> float | None:
        if self.op not in ("softmax", "log_softmax", "cross_entropy_grad"):
            return None
        if (np.isinf(self.c) & ~((self.op == "log_softmax") & (self.c < 0))).any():
            return None if self.op == "cross_entropy_grad" else math.inf
        if self.op == "log_softmax":
            with ctx.workprec(self.truth.prec):
                total = sum((arb(float(v)).exp() for v in self.c if v != -math.inf), arb(-1))
                return 0.0 if (size := abs(float(total))) < 2.0 ** (100 - self.truth.prec) else size
        return abs(math.fsum([*self.c, -1.0 if self.op == "softmax" else 0.0]))

    def preserved(self) -> bool:
        if self.nan.any():
            return False
        if self.op in ("softmax", "log_softmax"):
            at = self.x == self.x.max()
        else:
            T = self.truth.truth
            size = np.ldexp(self.truth.in_ulps, self.truth.unit)
            best = np.flatnonzero(size >= size.max() - abs(size.max()) * 1e-12)
            with ctx.workprec(self.truth.prec):
                top = best[0]
                for i in best:
                    top = i if T[i] > T[top] else top
                at = np.array([i for i in best if not T[top] > T[i]])
        return bool((self.c[at] == self.c.max()).any())

    def inversions(self) -> int:
        return int(((self.x[:, None] > self.x) & (self.c[:, None] < self.c)).sum())


def _ordinals(a: Array) -> Array:
    pattern = np.ascontiguousarray(a).view(f"i{a.dtype.itemsize}").astype(np.int64)
    size = pattern & ((1 << (8 * a.dtype.itemsize - 1)) - 1)
    return np.where(pattern < 0, -size, size)


def _less_log1p(t: Array) -> Array:
    """t - log1p(t)."""
    with np.errstate(all="ignore"):
        return np.where(np.abs(t) < 0.02, sum((-t) ** k / k for k in range(12, 1, -1)), t - np.log1p(t))


def _expm1_less(w: Array) -> Array:
    """expm1(w) - w."""
    with np.errstate(all="ignore"):
        return np.where(np.abs(w) < 0.1, sum(w**k / math.factorial(k) for k in range(14, 1, -1)), np.expm1(w) - w)


def figures(rows: Sequence[Cells], probabilities: Sequence[Row], ranks: bool = False) -> Figures:
    """All figures but step counts and error_over_bound, of some rows of one output; those of rows as [worst, mean, worst_row]."""
    op = rows[0].op
    joined = {name: np.concatenate([getattr(row, name) for row in rows]) for name in ("c", "nan", "mismatch", "compared", "normal")}
    c, nan, compared, normal = joined["c"], joined["nan"], joined["compared"], joined["normal"]
    R, T_zero = np.concatenate([row.truth.rounded for row in rows]), np.concatenate([row._zero for row in rows])
    got, want = (np.concatenate(parts) for parts in zip(*(row.ordinals for row in rows), strict=True))
    under = (c == 0) & np.isfinite(R) & ~T_zero
    found: Figures = {
        "n": len(c),
        "compared": int(compared.sum()),
        "correctly_rounded": int((~nan & (got == want)).sum()),
        "nan_count": int(nan.sum()),
        "nan_unexpected": int(nan.sum()),
        "nan_missing": 0,
        "inf_count": int(np.isinf(c).sum()),
        "overflow_count": int((np.isinf(c) & np.isfinite(R)).sum()),
        "zero_count": int((c == 0).sum()),
        "underflow_count": int(under.sum()),
        "underflow_premature": int((under & (R != 0)).sum()),
        "false_zero_count": int((under & normal).sum()),
        "subnormal_count": int(((c != 0) & (np.abs(c) < 2.0 ** judge.FORMATS[rows[0].fmt][1])).sum()),
        "special_mismatch": int(joined["mismatch"].sum()),
    }
    found |= _errors(rows, compared, normal, got, want)
    some_nan = bool(nan.any())
    kl = (
        [row.kl(p) for row, p in zip(rows, probabilities, strict=True)]
        if op in ("softmax", "log_softmax") and not some_nan
        else None
    )
    vary = op == "softmax" and not some_nan
    defects = [row.sum_defect() for row in rows]
    return found | {
        "sum_defect": None if some_nan or None in defects else max(defects),
        "kl": _of_rows(kl),
        "total_variation": _of_rows([row.total_variation() for row in rows] if vary else None),
        "backward_error": _of_rows([row.backward_error() for row in rows] if vary else None),
        "argmax_preserved": None if op in ("logsumexp", "cross_entropy") else sum(row.preserved() for row in rows),
        "rank_inversions": sum(row.inversions() for row in rows) if ranks and op in ("softmax", "log_softmax") else None,
    }


def _errors(rows: Sequence[Cells], compared: Array, normal: Array, got: Array, want: Array) -> Figures:
    names = (
        "max_ulp",
        "argmax_ulp",
        "mean_ulp",
        "p50_ulp",
        "p99_ulp",
        "max_ulp_ordinal",
        "max_rel",
        "argmax_rel",
        "max_rel_normal",
    )
    names += ("max_abs", "bias_ulp")
    count = int(compared.sum())
    if not count:
        return dict.fromkeys(names)
    signed, rel, size = (np.concatenate([getattr(row, name) for row in rows]) for name in ("signed", "relative", "absolute"))
    ulps = np.abs(signed)
    edges = sorted(edge for row in rows for edge in row.edges)
    return {
        "max_ulp": float(ulps.max()),
        "argmax_ulp": _first(ulps, compared),
        "mean_ulp": math.fsum(ulps) / count,
        "p50_ulp": edges[math.ceil(count / 2) - 1],
        "p99_ulp": edges[-(-99 * count // 100) - 1],
        "max_ulp_ordinal": int(np.abs(got - want)[compared].max()),
        "max_rel": float(rel[compared].max()),
        "argmax_rel": _first(rel, compared),
        "max_rel_normal": float(rel[compared & normal].max()) if (compared & normal).any() else None,
        "max_abs": float(size.max()),
        "bias_ulp": math.fsum(signed) / count,
    }


def _first(values: Array, compared: Array) -> int:
    """Where the largest is, the first of those that are equal to the bits that are told."""
    near = np.flatnonzero(compared & (values >= values[compared].max() * (1 - 2.0 ** (2 - MAXIMUM))))
    told = [v if math.isinf(v) else significant(Fraction(v), MAXIMUM) for v in values[near].tolist()]
    return int(near[told.index(max(told))])


def _of_rows(values: list[float] | None) -> list[float] | None:
    if values is None:
        return None
    told = [v if math.isinf(v) else significant(Fraction(v), MEAN) for v in values]  # what is equal there is a tie: the first
    return [max(values), math.fsum(values) / len(values), told.index(max(told))]


ROWS = ("kl", "total_variation", "backward_error")
MEANS = ("mean_ulp", "bias_ulp")


def differences(told: Any, figures: Figures) -> list[str]:
    """Where a Metrics differs: counts at all, maxima by more than AGREE of themselves, what is told to 20 bits in any of these."""
    found = [name for name, value in figures.items() if name not in ROWS and not _agree(name, getattr(told, name), value)]
    for name in ROWS:
        have, want = getattr(told, name), figures[name]
        if (have is None) != (want is None):
            found.append(name)
        elif have is not None:
            same = _rounds(have.worst, want[0], Fraction(0)) and _rounds(have.mean, want[1], Fraction(0))
            found += [name] * (not (same and have.worst_row == want[2]))
    return found


def _agree(name: str, have: float | None, want: float | None) -> bool:
    if have is None or want is None or isinstance(want, int) or math.isinf(want):
        return have == want
    if name in MEANS:
        return _rounds(have, want, STEP)
    return have == want or abs(have - want) <= AGREE * abs(want)


def _rounds(have: float, want: float, step: Fraction) -> bool:
    """Whether want, or what is within LOSS of it, is have once rounded."""
    if math.isinf(want):
        return have == want
    exact = Fraction(want)
    if abs(have - want) <= 2.0**-1073:
        return True
    return any(have == significant(exact * (1 + k * LOSS), MEAN, step) for k in (-1, 0, 1))


# ---- what the frameworks gave -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """The rows of a family with what was made of them. asked: "softmax", "cross_entropy:index"; outputs: by (framework, asked)."""

    fmt: str
    family: str
    logits: Array
    index: Array
    weights: Array
    outputs: dict[tuple[str, str], Array]

    def targets(self, asked: str) -> Array | None:
        """What measure takes as targets."""
        return {"index": self.index, "weights": self.weights}.get(asked.partition(":")[2])

    def row(self, asked: str, i: int) -> Row:
        """The truth of one row."""
        return self._row(asked, i)

    @cached_property
    def _row(self) -> Any:
        @cache
        def found(asked: str, i: int) -> Row:
            targets = self.targets(asked)
            target = None if targets is None else int(targets[i]) if targets.ndim == 1 else targets[i].astype(float).tolist()
            return row(asked.partition(":")[0], self.fmt, self.logits[i].astype(float).tolist(), target)

        return found

    def cells(self, framework: str, asked: str, i: int) -> Cells:
        """One row of one output."""
        output = np.atleast_1d(self.outputs[framework, asked][i])
        return Cells(asked.partition(":")[0], self.fmt, self.logits[i].astype(float), self.row(asked, i), output)

    def figures(self, framework: str, asked: str, rows: Sequence[int], ranks: bool = False) -> Figures:
        """All figures of some rows of one output."""
        chosen = [self.cells(framework, asked, i) for i in rows]
        needs = asked in ("softmax", "log_softmax")
        return figures(chosen, [self.row("softmax", i) for i in rows] if needs else [], ranks)


def batches(folder: str, fmt: str, n: int) -> Iterator[Batch]:
    """The families of one file that tests/frameworks.py made."""
    with np.load(Path(folder) / f"{fmt}-{n}.npz") as file:
        arrays = {name: file[name] for name in file.files}
    for family in dict.fromkeys(name.split("/")[0] for name in arrays):
        mine = {name.split("/", 1)[1]: a for name, a in arrays.items() if name.split("/")[0] == family}
        index = mine.pop("index")
        values = {name: a.view(DTYPES[fmt]) for name, a in mine.items()}
        logits, weights = values.pop("logits"), values.pop("weights")
        outputs = {(name.split("/")[0], name.split("/")[1]): a for name, a in values.items()}
        yield Batch(fmt, family, logits, index, weights, outputs)


# ---- what is kept -----------------------------------------------------------------------------------------------------------


def keep(folder: str) -> None:
    """Choose, and make the file anew."""
    rows: dict[str, dict[str, Any]] = {}
    entries: list[dict[str, Any]] = []
    for fmt in DTYPES:
        found = list(batches(folder, fmt, KEPT_N))
        for framework, asked in dict.fromkeys(key for batch in found for key in batch.outputs):
            for batch, i in _chosen(found, framework, asked):
                name = f"{fmt}/{batch.family}/{i}"
                rows.setdefault(name, {"logits": text(batch.logits[i])})
                if (targets := batch.targets(asked)) is not None:
                    rows[name][asked.partition(":")[2]] = int(targets[i]) if targets.ndim == 1 else text(targets[i])
                output = text(np.atleast_1d(batch.outputs[framework, asked][i]))
                what = {"framework": framework, "asked": asked, "row": name, "output": output}
                entries.append(what | {"figures": _finite(batch.figures(framework, asked, [i], ranks=True))})
    provenance = json.loads((Path(folder) / "provenance.json").read_text())
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in rows.items()]
    told = f'{{"provenance": {json.dumps(provenance)},\n "rows": {{\n' + ",\n".join(lines) + '\n}, "kept": [\n'
    PATH.write_text(told + ",\n".join(json.dumps(entry) for entry in entries) + "\n]}\n")


def _chosen(found: Sequence[Batch], framework: str, asked: str) -> list[tuple[Batch, int]]:
    every = [(batch, i, batch.cells(framework, asked, i)) for batch in found for i in range(len(batch.logits))]
    batch, i, _ = max(every, key=lambda one: np.abs(one[2].signed).max())
    odd = [(b, j) for b, j, cells in every if cells.mismatch.any()]
    return [(batch, i)] + [one for one in odd[:1] if one != (batch, i)]


def _finite(figures: Figures) -> Figures:
    """Infinities as text, as JSON has none."""
    found = json.loads(json.dumps(figures), parse_constant=str)
    assert isinstance(found, dict)
    return found


def text(a: Array) -> str:
    """Bit patterns in base64."""
    return base64.b64encode(np.ascontiguousarray(a).tobytes()).decode()


def tensor(told: str, fmt: str) -> Array:
    """The inverse of text, of one dimension."""
    return np.frombuffer(base64.b64decode(told), DTYPES[fmt])


if __name__ == "__main__":
    keep(sys.argv[1])
