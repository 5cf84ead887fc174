"""Why an output is wrong, as a colleague would say it who looked at its worst rows: what the errors have in common, and which
built-in algorithm, computing with correctly rounded primitives, makes the same output.

Everything here explains; nothing here decides. A sentence is only said where it is true of every element it speaks of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf

import numpy as np

from engine import formats
from engine import params as around
from engine.arithmetic import Arithmetic
from engine.errors import EngineError
from engine.faults import explain
from engine.formats import FORMATS, Format
from engine.model import NO_PARAMS, Array, Axes, Fault, Finding, Metrics, Problem
from engine.mutants import NARROWER
from engine.outcome import stored_in
from engine.recorder import Recorder
from engine.truth import Truth, nearly
from engine.variants import Variant, find, of_op

ROWS = 3
"""Rows that are looked at closely."""
LONGEST = 1 << 18
"""Elements of a row beyond which its errors are not compared with one another."""
WORK = 1.2e7
"""Tenths of a microsecond that the search for the algorithm may take, by its own reckoning."""
NEAR = 0.1
"""Share of its error by which an output may differ from what an algorithm gives, and still be called its."""
NAMED = 4
"""Algorithms that a sentence names; the others are counted."""


@dataclass(frozen=True, eq=False)
class Posted:
    """An output to be explained. truth: of its problem; output: shape of the truth; metrics: its figures; worst: flat indices of
    the elements that are beyond what a right implementation does, the worst first, special mismatches before all others."""

    truth: Truth
    output: Array
    metrics: Metrics
    worst: Sequence[int]


@dataclass(frozen=True, eq=False)
class _Row:
    """One row of an output beside T, in binary64: of results of one number a row, all the rows that are looked at. place: among the
    rows of the truth; number: what it is called."""

    place: int
    number: int
    got: Array
    true: Array
    fmt: Format

    @cached_property
    def usual(self) -> Array:
        """Elements whose truth is a normal number and whose output is finite."""
        return np.isfinite(self.true) & np.isfinite(self.got) & (np.abs(self.true) >= self.fmt.smallest_normal)


def findings(posted: Posted) -> list[Finding]:
    """What can be said of an output that is not as it should be, the plainest first."""
    if not posted.worst:
        return []
    with np.errstate(all="ignore"):
        return _findings(posted)


def _findings(posted: Posted) -> list[Finding]:
    rows = list(_rows(posted))
    found = [
        *_void(posted, rows),
        *_absorbed(posted, rows),
        *_masked(posted, rows),
        *_behind_masks(posted, rows),
        *_alike(posted, rows),
        *_stored(posted, rows),
        *_flushed(posted),
    ]
    return [*found, *_moved_rows(posted, rows), *_transposed(posted), *_algorithms(posted)]


def where(truth: Truth, index: int) -> str:
    """A flat index of an output in words."""
    place, column = divmod(index, truth.width)
    row = truth.number(place)
    if truth.op.output == "rows":
        return f"row {row}"
    if truth.op.output == "jacobian":
        n = truth.raw_logits.shape[1]
        return f"row {row}, entry ({column // n}, {column % n})"
    return f"row {row}, class {column}"


def _rows(posted: Posted) -> Iterator[_Row]:
    """Those of the worst elements, each once."""
    truth, flat = posted.truth, posted.output.reshape(posted.truth.rows, -1)
    if truth.width > LONGEST:
        return
    if truth.width == 1:
        chosen = sorted({*posted.worst})
        true = np.concatenate([nearly(truth, range(row, row + 1))[0] for row in chosen])
        yield _Row(chosen[0], truth.number(chosen[0]), formats.widen(flat[chosen, 0]), true, truth.fmt)
        return
    for row in list(dict.fromkeys(index // truth.width for index in posted.worst))[:ROWS]:
        yield _Row(row, truth.number(row), formats.widen(flat[row]), nearly(truth, range(row, row + 1))[0], truth.fmt)


# ---- what the errors have in common ------------------------------------------------------------------------------------


def _void(posted: Posted, rows: Sequence[_Row]) -> Iterator[Finding]:
    """Zeros and NaN where there should be numbers."""
    m, truth = posted.metrics, posted.truth
    if m.false_zero_count:
        all_zero = m.zero_count == m.n >= 8
        empty = "the output is empty" if truth.numbers is None else "nothing that was judged is anything else"
        what = empty if all_zero else _empty_rows(posted) or _unwritten(rows)
        detail = f"{m.false_zero_count} of {m.n} elements are 0 though the truth is a normal {truth.fmt.name}"
        yield Finding("empty" if all_zero else "zeros", f"{detail}{': ' * bool(what)}{what}", count=m.false_zero_count)
    if m.nan_unexpected:
        rest = "; every element is" if m.nan_count == m.n else ""
        yield Finding("nan", f"{m.nan_unexpected} elements are NaN though the truth is a number{rest}", count=m.nan_unexpected)
    if m.overflow_count:
        detail = f"{m.overflow_count} elements are infinite though the truth, rounded to {truth.fmt.name}, is finite"
        yield Finding("infinite", detail, count=m.overflow_count)


def _empty_rows(posted: Posted) -> str:
    """Rows that are 0 altogether, where others are not."""
    flat = posted.output.reshape(posted.truth.rows, -1)
    empty = np.flatnonzero(~flat.any(axis=1))
    if posted.truth.width < 2 or not 0 < empty.size < len(flat):
        return ""
    empty = np.array([posted.truth.number(row) for row in empty.tolist()])
    together = empty[-1] - empty[0] + 1 == empty.size > 1
    which = (
        f"rows {empty[0]} to {empty[-1]} are" if together else f"{empty.size} rows are" if empty.size > 1 else f"row {empty[0]} is"
    )
    return f"{which} all 0, as if not written"


def _unwritten(rows: Sequence[_Row]) -> str:
    """Where zeros stand in a row, if they stand together."""
    for row in rows:
        at = np.flatnonzero((row.got == 0) & (np.abs(row.true) >= row.fmt.smallest_normal))
        if 8 <= at.size < row.got.size and at[-1] - at[0] + 1 == at.size:
            return f"in row {row.number} all from column {at[0]} to {at[-1]}, as if they had not been written"
    return ""


def _absorbed(posted: Posted, rows: Sequence[_Row]) -> Iterator[Finding]:
    """Logarithms of a sum that rounded to 1."""
    if posted.truth.op.name not in ("log_softmax", "cross_entropy", "logsumexp"):
        return
    for row in rows:
        lost = np.flatnonzero((row.got == 0) & (row.true != 0) & (np.abs(row.true) <= 4 * row.fmt.unit_roundoff))
        if lost.size:
            what = (
                f"0 where the truth is {row.true[lost[0]]:.4g}: the sum of the exponentials rounded to 1, which absorbed the others"
            )
            yield Finding("absorbed", f"{what}; log1p of their sum alone keeps them", count=int(lost.size))
            return


def _masked(posted: Posted, rows: Sequence[_Row]) -> Iterator[Finding]:
    """Rows that are masked altogether, and NaN at what is masked."""
    truth = posted.truth
    if posted.metrics.nan_missing and truth.width > 1:
        for row in rows:
            if (truth.logits(row.place) == -inf).all():
                value = f"{row.got[0]:.6g} everywhere" if (row.got == row.got[0]).all() else "not NaN"
                way = 'if that is meant, say so: nonfinite "masked_zero" or "masked_uniform"'
                detail = f"row {row.number} is masked altogether (all -Infinity) and has no truth; the output is {value}"
                yield Finding("masked", f"{detail}; {way}", row=row.number)
                return
    for row in rows:
        gone = truth.logits(row.place) == -inf if truth.width == truth.raw_logits.shape[1] > 1 else np.zeros(row.got.size, bool)
        if gone.any() and not gone.all() and (np.isnan(row.got) == gone).all():
            detail = f"row {row.number} is NaN exactly where the logit is masked (-Infinity): an infinity there was multiplied by 0"
            yield Finding("masked", detail, row=row.number)
            return


def _behind_masks(posted: Posted, rows: Sequence[_Row]) -> Iterator[Finding]:
    """Probabilities of what is masked."""
    truth = posted.truth
    if truth.op.name != "softmax":
        return
    for row in rows:
        gone = truth.logits(row.place) == -inf
        kept = np.flatnonzero(gone & (row.got != 0) & np.isfinite(row.got))
        if kept.size and not gone.all():
            first = int(kept[0])
            detail = f"row {row.number}: {kept.size} of {int(gone.sum())} masked classes have a probability that is not 0"
            yield Finding("masked", f"{detail}; class {first} has {row.got[first]:.6g}", row=row.number, count=int(kept.size))
            return


def _alike(posted: Posted, rows: Sequence[_Row]) -> Iterator[Finding]:
    """One relation that holds for every element of a row."""
    for row in rows:
        rules = (*_RELATIONS, *_EXTREMES) if row.usual.sum() > 1 else _EXTREMES
        said = next((text for text in (rule(posted, row) for rule in rules) if text), None)
        if said:
            yield Finding(said[0], f"row {row.number}: {said[1]}" if posted.truth.width > 1 else said[1], row=row.number)
            return


def _close(a: Array, b: Array, share: float) -> bool:
    """Whether two results are the same to that share of the larger, everywhere."""
    return bool((np.abs(a - b) <= share * np.maximum(np.abs(a), np.abs(b))).all())


def _coarse(fmt: Format) -> float:
    """A share that rounding alone explains, many times over, but no mistake in the formula."""
    return min(64 * fmt.unit_roundoff, 0.05)


def _negated(_posted: Posted, row: _Row) -> tuple[str, str] | None:
    got, true = row.got[row.usual], row.true[row.usual]
    return ("negated", "every element has the wrong sign") if _close(got, -true, _coarse(row.fmt)) else None


def _uniform(posted: Posted, row: _Row) -> tuple[str, str] | None:
    n = row.got.size
    same = posted.truth.op.name == "softmax" and row.got[0] != 0 and _close(row.got, np.full(n, row.got[0]), 0.0)
    if not same or _close(row.true, np.full(n, row.true[0]), _coarse(row.fmt)):
        return None
    return "uniform", f"every element is {row.got[0]:.6g}, whatever its logit"


def _moved(posted: Posted, row: _Row) -> tuple[str, str] | None:
    """The right numbers in the wrong places."""
    if posted.truth.width == 1 or not (np.isfinite(row.got).all() and np.isfinite(row.true).all()):
        return None
    share = _coarse(row.fmt)
    if not _close(np.sort(row.got), np.sort(row.true), share) or _close(row.got, row.true, share):
        return None
    order = np.argsort(row.true, kind="stable")
    shift = int((np.argsort(row.got, kind="stable")[-1] - order[-1]) % row.got.size)
    if _close(np.roll(row.true, shift), row.got, share):
        return (
            "moved",
            f"the elements are right, but rolled by {shift if shift <= row.got.size // 2 else shift - row.got.size} columns",
        )
    return "moved", "the elements are right, but in another order"


def _other_function(posted: Posted, row: _Row) -> tuple[str, str] | None:
    """What another function would give."""
    got, true, share = row.got[row.usual], row.true[row.usual], _coarse(row.fmt)
    with np.errstate(all="ignore"):
        if posted.truth.op.name == "log_softmax":
            if _close(got, np.exp(true), share):
                return "function", "these are the probabilities, not their logarithms"
            if _close(got, true / np.log(2.0), share):
                return "function", "these are logarithms to base 2"
        if posted.truth.op.name == "softmax" and _close(got, np.log(true), share):
            return "function", "these are the logarithms of the probabilities"
    return None


def _scaled(posted: Posted, row: _Row) -> tuple[str, str] | None:
    """One factor, or one summand of a logarithm, that all elements are off by."""
    got, true = row.got[row.usual], row.true[row.usual]
    rounding = np.maximum(2 * row.fmt.unit_roundoff, row.fmt.smallest_subnormal / np.abs(true))
    if posted.truth.op.name in ("log_softmax",):
        apart, slack = got - true, rounding * np.abs(true)
    elif posted.truth.op.name in ("softmax", "cross_entropy_grad"):
        with np.errstate(all="ignore"):
            apart, slack = got / true - 1, rounding
    else:
        return None
    middle = float(np.median(apart))
    if (
        not (got != 0).all()
        or abs(middle) < 8 * float(np.median(slack))
        or not (np.abs(apart - middle) <= 0.1 * abs(middle) + 2 * slack).all()
    ):
        return None
    if posted.truth.op.name == "log_softmax":
        how, why = ("large", "small") if middle > 0 else ("small", "large")
        return "offset", f"every element is {abs(middle):.4g} too {how}: the logarithm of the sum is too {why}"
    if posted.truth.op.name == "cross_entropy_grad":
        mean = abs((1 + middle) * posted.truth.rows - 1) < 1e-3
        why = f": it is divided by the {posted.truth.rows} rows, as reduction mean has it" if mean else ""
        return "scaled", f"every element is {1 + middle:.6g} times what it should be{why}"
    if middle > 0:
        return "scaled", f"every element is {1 + middle:.6g} times what it should be: the denominator is too small"
    return "scaled", f"every element is {1 + middle:.6g} times what it should be: the denominator is too large"


def _above_one(posted: Posted, row: _Row) -> tuple[str, str] | None:
    top = float(row.got.max())  # NaN where one is
    if posted.truth.op.name != "softmax" or not 1 + 64 * row.fmt.unit_roundoff < top < inf:
        return None
    return (
        "above one",
        f"a probability is {top:.6g}, above 1: the exponent of the maximum was not 0 where it was divided by the sum",
    )


def _plateau(posted: Posted, row: _Row) -> tuple[str, str] | None:
    """The largest results, which are one number though their truths are not."""
    if posted.truth.op.name != "softmax" or not np.isfinite(row.got).all() or row.got.max() <= 0:
        return None
    top = row.got == row.got.max()
    true = row.true[top]
    if top.sum() < 3 or top.all() or true.max() < 1.5 * true.min():
        return None
    spread = f"though their truths go from {true.min():.4g} to {true.max():.4g}"
    detail = f"the {top.sum()} largest elements are all {row.got.max():.6g}, {spread}"
    return "saturated", f"{detail}: the numerators saturate (448 in float8_e4m3fn), and their sum does not"


_RELATIONS = (_uniform, _negated, _moved, _other_function, _scaled)
_EXTREMES = (_above_one, _plateau)


def _whole(posted: Posted) -> bool:
    """Whether the result as a whole can be held against those of other tensors."""
    truth = posted.truth
    plain = truth.problem.params is NO_PARAMS and truth.op.name in ("softmax", "log_softmax")
    return plain and truth.problem.logits.ndim > 1 and truth.raw_logits.size <= STRIDED


def _moved_rows(posted: Posted, rows: Sequence[_Row]) -> Iterator[Finding]:
    """Rows that are right, but for the logits of others."""
    truth = posted.truth
    if truth.rows < 2 or not rows or not _whole(posted):
        return
    near, whose = nearly(truth, range(truth.rows)), []
    for row in rows:
        apart = np.abs(near - row.got) <= _coarse(truth.fmt) * np.maximum(np.abs(near), np.abs(row.got))
        others = np.flatnonzero(apart.all(axis=1))
        if not others.size or row.place in others:
            return
        whose.append(truth.number(int(others[0])))
    detail = f"row {rows[0].number} is right for the logits of row {whose[0]}"
    more = f", and so are {len(rows) - 1} more that were looked at for those of others" if len(rows) > 1 else ""
    yield Finding("moved", f"{detail}{more}: rows are in another order", row=rows[0].number)


def _transposed(posted: Posted) -> Iterator[Finding]:
    """The result over another axis, or transposed, or of the logits that stand where these would if the tensor were."""
    if not _whole(posted):
        return
    truth, shape = posted.truth, posted.truth.problem.logits.shape
    op = truth.op.name
    x, got = truth.raw_logits, formats.widen(posted.output).reshape(truth.raw_logits.shape)
    cube, share = got.reshape(shape), _coarse(truth.fmt)
    if not np.isfinite(got).all():
        return
    own = nearly(truth, range(truth.rows)).reshape(shape)
    if shape[-1] == shape[-2] and _close(np.swapaxes(cube, -1, -2), own, share) and not _close(cube, own, share):
        yield Finding("transposed", "every row is right in the transposed output: rows and columns are exchanged")
        return
    for axis in range(len(shape) - 1):
        turned = np.moveaxis(x.reshape(shape), axis, -1)
        flat = np.ascontiguousarray(turned).reshape(-1, shape[axis])
        near = nearly(Truth(Problem(op, flat), truth.fmt), range(len(flat))).reshape(turned.shape)
        if _close(np.moveaxis(near, -1, axis), cube, share) and not _close(own, cube, share):
            detail = f"every element is right for another axis than the one that is reduced, of extent {shape[axis]}"
            yield Finding("axis", f"{detail} and not {shape[-1]}")
            return
    for other in (x.T.reshape(x.shape), x.reshape(x.shape[::-1]).T):
        if np.array_equal(other, x, equal_nan=True):
            continue
        near = nearly(Truth(Problem(op, np.ascontiguousarray(other)), truth.fmt), range(truth.rows))
        if np.isfinite(near).all() and _close(got, near, share):
            detail = (
                "every row is right for other logits: those that stand next to one another in the transposed tensor; strides were"
            )
            yield Finding("transposed", f"{detail} ignored")
            return


STRIDED = 1 << 16
"""Logits up to which that is looked at."""


def _stored(posted: Posted, rows: Sequence[_Row]) -> Iterator[Finding]:
    """Results that a narrower format holds."""
    name = posted.truth.fmt.name
    narrower = [other for other in ("float8_e4m3fn", "float8_e5m2", "bfloat16", "float16", "float32") if _narrower(other, name)]
    for other in narrower:
        some = [row.got[row.usual] for row in rows if row.usual.sum() > 4]
        if some and all(len(set(got.tolist())) > 4 and _held(got, FORMATS[other]) for got in some):
            yield Finding("narrowed", f"every element of these rows is a {other} number: it was computed, or kept, in {other}")
            return


def _narrower(name: str, than: str) -> bool:
    return FORMATS[name].precision < FORMATS[than].precision


def _held(values: Array, fmt: Format) -> bool:
    return bool((formats.widen(formats.round_array(values, fmt)) == values).all())


def _flushed(posted: Posted) -> Iterator[Finding]:
    """Subnormal results that are all 0, unless normal ones are too."""
    m, fmt = posted.metrics, posted.truth.fmt
    if m.false_zero_count and m.zero_count == m.n:
        return
    early = m.underflow_premature - m.false_zero_count
    if early > 0 and m.subnormal_count == 0 and posted.truth.op.name in ("softmax", "cross_entropy_grad", "softmax_jacobian"):
        detail = (
            f"results below 2^{fmt.emin} are all 0 ({early} of them, though {fmt.name} has numbers there): subnormals are flushed"
        )
        yield Finding("flushed", detail, count=early)


# ---- which algorithm makes the same output -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Candidate:
    """A variant in an arithmetic. logits: a format that they go through first, or none."""

    variant: Variant
    format: str
    accumulator: str
    summation: str
    flush: bool = False
    logits: str = ""

    @property
    def arithmetic(self) -> str:
        """In words."""
        sums = f", sums {self.summation}" + (f" in {self.accumulator}" if self.accumulator != self.format else "")
        rounded = f", of logits rounded to {self.logits}" if self.logits else ""
        return f"{self.format}{sums}{', subnormals flushed' * self.flush}{rounded}"

    @property
    def said(self) -> str:
        """In words, with the variant."""
        return f"{self.variant.name} in {self.arithmetic}"

    def cost(self, n: int) -> float:
        """Tenths of a microsecond, roughly, for a row of n."""
        columns = n if self.summation == "sequential" else 0
        passes = 20 + n * self.variant.steps + 20 * self.variant.pieces(n)
        return 1e3 * passes + 100 * columns + (20 if self.format == "float64" else 4) * n


def _candidates(truth: Truth) -> Iterator[_Candidate]:
    """Arithmetics in the order of how common they are, each with all variants."""
    own = truth.fmt.name
    wider = [name for name in ("float32", "float64") if FORMATS[name].precision > FORMATS[own].precision]
    narrower = [name for name in dict.fromkeys((NARROWER.get(own, own), "float16")) if _narrower(name, own)]
    arithmetics = [(own, own, "pairwise"), (own, own, "sequential"), (own, own, "warp")]
    for name in wider:
        arithmetics += [(name, name, "pairwise"), (own, name, "pairwise"), (name, own, "sequential")]
    arithmetics += [("float32", "float32", "sequential")] if "float32" in wider else []
    for name in narrower:
        arithmetics += [(name, name, "pairwise"), (name, name, "sequential"), (own, name, "sequential")]
    known = [row for row in of_op(truth.op.name) if row.fits(truth.problem.params)]
    known += [find(truth.op.name, name) for name in _TOLD.get(truth.op.name, ()) if truth.problem.params is NO_PARAMS]
    for fmt, accumulator, summation in arithmetics:
        yield from (_Candidate(row, fmt, accumulator, summation) for row in known)
    for name in (own, *wider[:1]):
        yield from (_Candidate(row, name, name, "pairwise", flush=True) for row in known)
    for name in narrower:
        yield from (_Candidate(row, own, own, "pairwise", logits=name) for row in known)


_TOLD: Mapping[str, tuple[str, ...]] = {
    "softmax": (
        "finite_sentinel(start=-50000)",
        *(f"stored_{how}(stored={name})" for how in ("16_bit", "after_sum") for name in ("float8_e4m3fn", "float8_e5m2")),
    )
}
"""Variants with parameters that some software has."""


def _algorithms(posted: Posted) -> Iterator[Finding]:
    """The variants whose own output is what was posted, or nearly."""
    rows = _sample(posted)
    if not rows:
        return
    truth, budget = posted.truth, WORK
    n = truth.raw_logits.shape[1]
    found: dict[bool, list[_Candidate]] = {True: [], False: []}
    for candidate in sorted(_candidates(truth), key=lambda row: row.cost(n)):
        budget -= candidate.cost(n)
        if budget < 0:
            break
        alike = _alike_everywhere(candidate, rows, truth.fmt)
        if alike is not None:
            found[alike].append(candidate)
    same = sorted(found[True] or found[False], key=lambda candidate: candidate.format != truth.fmt.name)
    if same:
        how = "bit for bit what" if found[True] else "within a tenth of its error what"
        detail = f"it is {how} {truth.op.name} gives, with correctly rounded primitives, by {_named(same)}"
        yield Finding("algorithm", f"{detail}{_why(same, rows[0], truth.fmt)}", variants=tuple(row.said for row in same))


def _named(same: Sequence[_Candidate]) -> str:
    """Variants and arithmetics in words: those that share an arithmetic together."""
    by: dict[str, list[str]] = {}
    for candidate in same:
        by.setdefault(candidate.arithmetic, []).append(candidate.variant.name)
    merged: dict[tuple[str, ...], list[str]] = {}
    for arithmetic, names in by.items():
        merged.setdefault(tuple(names), []).append(arithmetic)
    said = [f"{_few(names)} (in {_few(arithmetics, '; or ')})" for names, arithmetics in merged.items()]
    return _few(said, ", or by ")


def _few(names: Sequence[str], between: str = ", ") -> str:
    rest = [f"{len(names) - NAMED} more"] if len(names) > NAMED else []
    return between.join([*names[:NAMED], *rest])


def _why(same: Sequence[_Candidate], row: tuple[Problem, Array, Array], fmt: Format) -> str:
    """What broke in one of them."""
    faults: list[Fault] = []
    for candidate in [row for row in same if row.variant.stable][:2] + list(same[:2]):
        recorder = Recorder()
        _ran(candidate, row[0], fmt, recorder)
        faults += explain(recorder.steps, candidate.flush)
    order = ("stalled", "absorbed", "overflow", "divide_by_zero", "invalid", "cancelled", "mismatched")
    said = next((fault.detail for kind in order for fault in faults if fault.kind == kind), "")
    return f": {said}" if said else ""


def _alike_everywhere(candidate: _Candidate, rows: Sequence[tuple[Problem, Array, Array]], fmt: Format) -> bool | None:
    """Whether it gives all of these rows bit for bit (True) or nearly (False); else None."""
    exact = True
    for problem, got, true in rows:
        found = _ran(candidate, problem, fmt)
        alike = None if found is None else _like(found, got, true)
        if alike is None:
            return None
        exact = exact and alike
    return exact


def _sample(posted: Posted) -> list[tuple[Problem, Array, Array]]:
    """The worst rows, each as a problem with its output and T."""
    truth = posted.truth
    flat = posted.output.reshape(truth.rows, -1)
    if truth.problem.params is not NO_PARAMS:
        numbers, problems = [0], [truth.problem] if truth.rows == 1 else []
    else:
        numbers = list(dict.fromkeys(index // truth.width for index in posted.worst))[: ROWS if truth.width > 1 else 2 * ROWS]
        problems = [truth.part([row]) for row in numbers]
    true = [nearly(truth, range(row, row + 1)) for row in numbers]
    return [
        (problem, formats.widen(flat[row : row + 1]), values)
        for problem, row, values in zip(problems, numbers, true, strict=False)
        if np.isfinite(values).any()
    ]


def _ran(candidate: _Candidate, problem: Problem, fmt: Format, recorder: Recorder | None = None) -> Array | None:
    """What it gives, in binary64, (1, width); None where it cannot run on these tensors."""
    subnormals = "flush" if candidate.flush else "gradual"
    axes = Axes(candidate.accumulator, "correct", subnormals, output_format=fmt.name)
    try:
        k = Arithmetic(FORMATS[candidate.format], candidate.summation, recorder, axes)
        given = stored_in(problem, FORMATS[candidate.logits]) if candidate.logits else problem
        stored = stored_in(given, k.fmt)
        if (np.isfinite(formats.widen(stored.logits)) != np.isfinite(formats.widen(problem.logits))).any():
            return None
        output = around.run(candidate.variant, stored, k)
    except EngineError:
        return None
    return formats.widen(output).reshape(1, -1)


def _like(found: Array, got: Array, true: Array) -> bool | None:
    """Whether an output is another bit for bit (True), or differs in every row by no more than a tenth of its error, absolute and
    relative (False); else None."""
    same = (found == got) | (np.isnan(found) & ((got == 0) | np.isnan(got)))  # 0/0 may be guarded, and taken as 0
    if same.all():
        return True
    if not (np.isfinite(found) & np.isfinite(got) | same).all():
        return None
    with np.errstate(all="ignore"):
        apart = np.where(same, 0.0, np.abs(found - got))
        error = np.where(np.isfinite(true) & np.isfinite(got), np.abs(got - true), 0.0)
        size = np.where(np.isfinite(true) & (true != 0), np.abs(true), inf)
    near = [(a.max(axis=1) <= NEAR * e.max(axis=1)).all() for a, e in ((apart, error), (apart / size, error / size))]
    return False if all(near) else None
