"""What goes wrong while a variant runs: the recorder that an Arithmetic shows every step, and what it knows of every array.

Told from the values alone. IEEE 754 (clause 7) names overflow, underflow, invalid and divide_by_zero. Digits are lost without any
of these too, and this is told as well:

absorbed: addends, not 0, after which a partial sum is what it was before; where those of a sum make at least a unit in the last
    place of its total together. stalled: the same, where the sum stands still from one addend to the last.
    Of sums that are written out and compensate nothing; the single additions of NumPy's are not seen.
cancelled: a difference, of at least one operand that another step made, and may have rounded, with less than half of the
    operands' digits left.
mismatched: a quotient of which the numerator was rounded after the denominator had been summed from it, or the other way round, so
    that the quotients do not sum to 1 by more than what dividing costs.

Every array that a step makes has an origin: the step, the origins of its operands, and the first fault that it carries on.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce

import numpy as np

from engine.formats import Format, widen
from engine.model import Array, Step
from engine.summation import Adder

# Where a function of finite operands is infinite without overflowing (IEEE 754 clause 7.3).
_POLE: Mapping[str, Callable[..., Array]] = {
    "divide": lambda a, b: b == 0,
    "log": lambda a: a == 0,
    "log1p": lambda a: a == -1,
}
# Where the exact result is not 0, for the steps that can underflow: a result too small there has lost digits.
_NOT_ZERO: Mapping[str, Callable[..., Array]] = {
    "exp": lambda a: a != -np.inf,
    "exp2": lambda a: a != -np.inf,
    "log1p": lambda a: a != 0,
    "tanh": lambda a: a != 0,
    "multiply": lambda a, b: (a != 0) & (b != 0),
    "divide": lambda a, b: (a != 0) & np.isfinite(b),
    "fma": lambda a, b, c: widen(a) * widen(b) != -widen(c),
}


UNSEEN = ("numpy", "kahan", "neumaier", "exact")
"""Summations of which single additions are not seen, or whose losses are made good."""
IN_ORDER = ("sequential", "reverse")
"""Those that add one term after the other, so that a partial sum can stand still."""


@dataclass(frozen=True, eq=False)
class _Origin:
    """Where an array comes from: the step, and the origins of its operands.

    broken: for some faults (their numbers) masks of the elements that are NaN, infinite, subnormal or 0 because of them.
    changed: of a rounding, the elements that it changed.
    """

    name: str = ""
    parents: tuple[_Origin, ...] = ()
    broken: tuple[tuple[int, Array], ...] = ()
    changed: Array | None = None


_GIVEN = _Origin()
"""Of what no step made."""


class Heard:
    """An adder that notes what it absorbs. lost: the sum of it; count: of addends; run, last: the same of the last ones, one after
    the other."""

    def __init__(self, adder: Adder) -> None:
        self._add = adder.add
        self.adder = adder._replace(add=self.add)
        self.lost = self.count = self.run = self.last = np.zeros(1)

    def add(self, a: Array, b: Array) -> Array:
        """a + b, whose last axis are the rows."""
        found = self._add(a, b)
        with np.errstate(all="ignore"):
            small = np.where((found == a) & (b != 0), b, np.where((found == b) & (a != 0), a, np.zeros((), a.dtype)))
        gone = small != 0
        if gone.any():
            rows = small.shape[-1]
            self.lost = self.lost + widen(small).reshape(-1, rows).sum(axis=0)
            self.count = self.count + gone.reshape(-1, rows).sum(axis=0)
        if found.ndim == 1:
            self.run = np.where(gone, self.run + 1, 0)
            self.last = np.where(gone, self.last + widen(small), 0)
        return found


class Recorder:
    """Collects, in the order of execution, the steps that went wrong, each with the earlier ones that led to it.

    invalid: NaN from operands without NaN. divide_by_zero: an infinity at a pole, from finite operands. overflow: any
    other infinity from finite operands. underflow: 0 or subnormal although the exact result is not 0. The operands of a
    sum are its smallest and its largest term. The module has the kinds that IEEE 754 does not name.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._origins: dict[int, tuple[weakref.ref[Array], _Origin]] = {}
        self._broken: dict[int, Array] = {}  # what the step at hand inherits or breaks, by fault, in the shape of its result

    def watch(
        self,
        name: str,
        operands: tuple[Array, ...],
        result: Array,
        fmt: Format,
        told: Array | None = None,
        given: tuple[Array, ...] | None = None,
    ) -> None:
        """Look at one step: its name, its operands (broadcast to the result; for a sum its terms), its result in a format.

        told: the result before a rule of the format or an axis changed it: infinite where it overflowed, and not flushed.
        given: the operands before they were copied or flushed.
        """
        told = result if told is None else told
        parents = tuple(map(self._origin, operands if given is None else given))
        self._broken = _inherited(name, parents, operands, result)
        self._note_exceptions(name, operands, result, fmt, told)
        if name in ("add", "subtract") and any(parent is not _GIVEN for parent in parents):
            self._note_cancelled(name, operands, result, fmt)
        if name in ("divide", "multiply") and (changed := _mismatched(name, parents)) is not None:
            self._note(name, "mismatched", np.broadcast_to(changed, result.shape), operands, result, fmt)
        self._remember(result, self._made(name, parents, operands, result, fmt))

    def listen(self, adder: Adder, summation: str) -> Heard | None:
        """For the next sum, if its additions are seen."""
        return None if summation in UNSEEN else Heard(adder)

    def heard(self, heard: Heard, summation: str, total: Array, fmt: Format) -> None:
        """Where what a sum absorbed makes a unit in the last place of its total or more."""
        noted = (heard.lost, heard.count, heard.last, heard.run)
        lost, count, last, run = (np.broadcast_to(each, total.size).reshape(total.shape) for each in noted)
        size = np.abs(widen(total))
        unit = np.ldexp(1.0, np.maximum(np.frexp(size)[1] - 1, fmt.emin) - fmt.precision + 1)
        finite = np.isfinite(size) & ((size < fmt.largest) | (not fmt.saturating))  # else that it overflowed was said
        still = finite & (np.abs(last) >= unit) & (run > 1) & (summation in IN_ORDER)
        absorbed = finite & (np.abs(lost) >= unit) & ~still
        self._broken = {}
        self._note("sum", "stalled", still, (run, last), total, fmt)
        self._note("sum", "absorbed", absorbed, (count, lost), total, fmt)

    def follow(self, result: Array, source: Array, select: Callable[[Array], Array]) -> None:
        """An array made of another without any arithmetic: its origin is the other's; select does the same to a mask."""
        origin = self._origin(source)
        if origin is not _GIVEN:
            broken = tuple((number, select(mask.reshape(source.shape))) for number, mask in origin.broken)
            self._remember(result, replace(origin, broken=broken, changed=None))

    def gather(self, result: Array, sources: Sequence[Array], build: Callable[[list[Array]], Array]) -> None:
        """An array made of several others without any arithmetic: build does the same to their masks."""
        origins = [self._origin(source) for source in sources]
        masks = [dict(origin.broken) for origin in origins]
        whole = [np.zeros(source.shape, bool) for source in sources]
        broken = []
        for number in sorted({number for each in masks for number in each}):
            parts = [each[number].reshape(none.shape) if number in each else none for each, none in zip(masks, whole, strict=True)]
            broken.append((number, build(parts)))
        if any(origin is not _GIVEN for origin in origins):
            self._remember(result, _Origin("gathered", tuple(origins), tuple(broken)))

    def _origin(self, array: Array) -> _Origin:
        for owner in (array, array.base):
            reference, origin = self._origins.get(id(owner), (None, _GIVEN))
            if owner is not None and reference is not None and reference() is owner:
                return origin if owner.size == array.size else replace(origin, broken=(), changed=None)
        return _GIVEN

    def _remember(self, array: Array, origin: _Origin) -> None:
        for owner in (array, array.base):
            if isinstance(owner, np.ndarray):
                self._origins[id(owner)] = weakref.ref(owner, partial(self._forget, id(owner))), origin

    def _forget(self, key: int, _: object) -> None:
        del self._origins[key]

    def _made(self, name: str, parents: tuple[_Origin, ...], operands: tuple[Array, ...], result: Array, fmt: Format) -> _Origin:
        changed = None
        if name == "round":
            changed = (widen(result) != widen(operands[0])) & ~np.isnan(widen(result))
            if not changed.any():
                return parents[0]
        if not self._broken:
            return _Origin(name, parents, (), changed)
        special = ~np.isfinite(result) | (np.abs(result) < fmt.smallest_normal)
        broken = ((number, mask & special) for number, mask in self._broken.items())
        return _Origin(name, parents, tuple((number, mask) for number, mask in broken if mask.any()), changed)

    def _note_exceptions(self, name: str, operands: tuple[Array, ...], result: Array, fmt: Format, told: Array) -> None:
        may_lose = name in _NOT_ZERO or name == "round" or told is not result
        tiny = np.abs(told) < fmt.smallest_normal if may_lose else np.zeros((), bool)
        finite = np.isfinite(told).all()
        if finite and not tiny.any():
            return
        if name == "sum":
            operands = (np.minimum.reduce(operands[0], axis=-1), np.maximum.reduce(operands[0], axis=-1))
        if not finite:
            self._note_infinities(name, operands, result, fmt, told)
        if tiny.any():
            lost = (told != 0) & (result == 0)
            if name == "round":
                lost = widen(result) != widen(operands[0])
            elif name in _NOT_ZERO:
                lost = lost | _NOT_ZERO[name](*operands)
            self._note(name, "underflow", tiny & lost, operands, result, fmt)

    def _note_infinities(self, name: str, operands: tuple[Array, ...], result: Array, fmt: Format, told: Array) -> None:
        numbers = ~_any(np.isnan, operands)
        infinite = np.isinf(told) & ~_any(lambda a: ~np.isfinite(a), operands)
        pole = _POLE[name](*operands) if name in _POLE else np.zeros((), bool)
        self._note(name, "invalid", np.isnan(told) & numbers, operands, result, fmt)
        self._note(name, "divide_by_zero", infinite & pole, operands, result, fmt)
        self._note(name, "overflow", infinite & ~pole, operands, result, fmt)

    def _note_cancelled(self, name: str, operands: tuple[Array, ...], result: Array, fmt: Format) -> None:
        """Where more than half of the bits are gone: all of them where the result is 0."""
        a, b, found = (np.abs(widen(each)) for each in (*operands, result))
        size = np.maximum(a, b)
        far = found * 2.0 ** (fmt.precision // 2) < size
        if not far.any():
            return
        bits = np.where(found == 0, fmt.precision, np.frexp(size)[1] - np.frexp(found)[1])
        self._note(name, "cancelled", np.isfinite(size) & (2 * bits > fmt.precision) & far, operands, result, fmt)

    def _note(self, name: str, kind: str, where: Array, operands: tuple[Array, ...], result: Array, fmt: Format) -> None:
        count = int(np.count_nonzero(where))
        if count:
            first = tuple(int(i) for i in np.unravel_index(int(np.argmax(where)), result.shape))
            full = (a if a.shape == result.shape else np.broadcast_to(a, result.shape) for a in operands)
            there = tuple(float(a[first]) for a in full)
            chain = tuple(sorted(number for number, mask in self._broken.items() if mask[first]))
            self.steps.append(Step(name, kind, count, first, there, float(result[first]), fmt.name, chain))
            if kind != "mismatched":
                self._broken = {**self._broken, len(self.steps) - 1: where}


def _inherited(name: str, parents: tuple[_Origin, ...], operands: tuple[Array, ...], result: Array) -> dict[int, Array]:
    """The masks of the operands, in the shape of the result."""
    found: dict[int, Array] = {}
    for parent, operand in zip(parents, operands, strict=True):
        for number, mask in parent.broken:
            given = mask.reshape(operand.shape)
            there = np.asarray(np.any(given, axis=-1)) if name == "sum" else np.broadcast_to(given, result.shape)
            found[number] = found[number] | there if number in found else there
    return found


def _mismatched(name: str, parents: tuple[_Origin, ...]) -> Array | None:
    """The elements of which a numerator was rounded and the term of the denominator not, or the other way round."""
    first, second = parents
    if name == "divide":
        pairs = [(first, second)]
    else:
        pairs = [(a, b.parents[1]) for a, b in ((first, second), (second, first)) if b.name == "divide"]
    for numerator, denominator in pairs:
        while denominator.name == "round":
            denominator = denominator.parents[0]
        if denominator.name != "sum":
            continue
        term = denominator.parents[0]
        for rounded, other in ((numerator, term), (term, numerator)):
            if rounded.name == "round" and rounded.parents[0] is other and other is not _GIVEN:
                return rounded.changed
    return None


def _any(test: Callable[[Array], Array], operands: tuple[Array, ...]) -> Array:
    """Where the test holds for at least one operand."""
    return reduce(np.logical_or, map(test, operands))
