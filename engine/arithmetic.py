"""The arithmetic a variant runs in: whole arrays of one format, every operation rounded once, every fault written down.

With the plain axes NumPy's ufuncs are called on the format's own dtype, so with the `numpy` summation a variant gives bit for
bit what the plain NumPy formula gives. What is varied (the summation and the axes of model.Axes) is an argument here and
never a copy of a variant.

Rounded once. float32 and float64 add, subtract, multiply and divide as IEEE 754 says. In the narrower formats NumPy and
ml_dtypes compute in float32 and round that: the same result as one rounding, because 24 >= 2 p + 2 for p <= 11 (Figueroa,
doi 10.1145/221332.221334), and what is subnormal in the format is either normal in float32 or, in bfloat16, of so few bits
that float32 holds it or is far enough from a midpoint. exp, log and log1p of NumPy keep no such promise: four float16
exponentials are misrounded; exp and exp2 of engine.elementary are correctly rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from engine import elementary, formats
from engine.errors import UnknownName, quoted
from engine.formats import Format, round_array, saturated, widen
from engine.model import Array, Axes
from engine.recorder import Recorder
from engine.summation import SUMMATIONS, Adder, plain

PLAIN = Axes()
"""Every axis as NumPy has it."""
CHOICES: Mapping[str, tuple[str, ...]] = {
    "exp": ("numpy", "correct", "exp2"),
    "subnormals": ("gradual", "flush"),
    "overflow": ("format", "saturate"),
}
"""The values of the axes that are neither formats nor yes or no."""
_LOG2_E = float.fromhex("0x1.71547652b82fep+0")  # no midpoint of a narrower format is so near that rounding it twice would show

# The steps in binary64, where those of an 8-bit format cannot overflow.
_WIDE: Mapping[str, Callable[..., Array]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "exp": np.exp,
    "exp2": np.exp2,
    "log": np.log,
    "log1p": np.log1p,
    "tanh": np.tanh,
    "fma": lambda a, b, c: a * b + c,
    "round": lambda a: a,
    "sum": partial(np.add.reduce, axis=-1),
}


class Arithmetic:
    """The operations a variant may use, over arrays of fmt.dtype, rounded once each; no warning leaves them.

    Rows have shape B + (n,), what is said of a whole row (a sum, a maximum, the value at a target) has shape B; where
    the two meet, the latter holds for every element of its row. summation names a row of SUMMATIONS; axes: see model.Axes;
    the recorder, if any, is shown every step that can go wrong. Raises UnknownName, and InvalidProblem for saturation
    without a format that has it.
    """

    def __init__(self, fmt: Format, summation: str = "numpy", recorder: Recorder | None = None, axes: Axes = PLAIN) -> None:
        for name, known in CHOICES.items():
            if (value := getattr(axes, name)) not in known:
                raise UnknownName(f"unknown {name} {quoted(value)}; known: {', '.join(known)}")
        used = [fmt, *(formats.find(name) for name in (axes.accumulator, axes.output_format) if name is not None)]
        saturates = axes.overflow == "saturate"
        if saturates and all(row.bits > 8 for row in used):
            saturated(fmt)
        self.fmt = saturated(fmt) if saturates and fmt.bits == 8 else fmt
        self.summation = SUMMATIONS[summation].name
        self._given, self._asked, self._recorder = fmt, axes, recorder
        self._flushes = axes.subnormals == "flush"
        self.accumulator = self._beside(used[1] if axes.accumulator else fmt)
        self._output = self._beside(used[-1] if axes.output_format else fmt)

    def _beside(self, fmt: Format) -> Arithmetic:
        """The same arithmetic in another format: this one where that is its own."""
        if fmt.name == self.fmt.name:
            return self
        axes = replace(self._asked, accumulator=None, output_format=None)
        return Arithmetic(fmt, self.summation, self._recorder, axes if fmt.bits == 8 else replace(axes, overflow="format"))

    @property
    def axes(self) -> Axes:
        """What the axes are here, every name told: the row that describes this arithmetic."""
        return replace(
            self._asked,
            accumulator=self.accumulator.fmt.name,
            output_format=self.output_format.name,
            overflow=self.fmt.overflow if self._asked.overflow == "format" else self._asked.overflow,
        )

    @property
    def output_format(self) -> Format:
        """The format of what `deliver` returns, with its rule of overflow."""
        return self._output.fmt

    def deliver(self, a: Array) -> Array:
        """A result of a variant, rounded once to the output format."""
        return a if self._output is self else self._output.take(a)

    def take(self, a: Array) -> Array:
        """Numbers of any format, rounded once to this one."""
        return self._step("round", partial(round_array, fmt=self.fmt), a)

    def add(self, a: Array, b: Array) -> Array:
        """a + b."""
        return self._step("add", np.add, *_aligned(a, b))

    def sub(self, a: Array, b: Array) -> Array:
        """a - b."""
        return self._step("subtract", np.subtract, *_aligned(a, b))

    def mul(self, a: Array, b: Array) -> Array:
        """a * b."""
        return self._step("multiply", np.multiply, *_aligned(a, b))

    def div(self, a: Array, b: Array) -> Array:
        """a / b."""
        return self._step("divide", np.divide, *_aligned(a, b))

    def fma(self, a: Array, b: Array, c: Array) -> Array:
        """a * b + c: rounded once where the axis says so, else the product is rounded, and then the sum."""
        if not self._asked.fma:
            return self.add(self.mul(a, b), c)
        a, b = _aligned(a, b)
        a, c = _aligned(a, c)
        b, c = _aligned(b, c)
        return self._step("fma", partial(elementary.fma, fmt=self.fmt), a, b, c)

    def exp(self, a: Array) -> Array:
        """The exponential; in the exp2 domain exp2(a * log2 e), the product rounded too."""
        if self._asked.exp == "exp2":
            return self.exp2(self.mul(a, round_array(np.array(_LOG2_E), self.fmt)))
        return self._step("exp", np.exp if self._asked.exp == "numpy" else partial(elementary.exp, fmt=self.fmt), a)

    def exp2(self, a: Array) -> Array:
        """2 to the power a: NumPy's, or where the axis exp is another, correctly rounded."""
        return self._step("exp2", np.exp2 if self._asked.exp == "numpy" else partial(elementary.exp2, fmt=self.fmt), a)

    def log(self, a: Array) -> Array:
        """The natural logarithm."""
        return self._step("log", np.log, a)

    def log1p(self, a: Array) -> Array:
        """log(1 + a)."""
        return self._step("log1p", np.log1p, a)

    def tanh(self, a: Array) -> Array:
        """The hyperbolic tangent: NumPy's, as log is, whatever the axis exp says."""
        return self._step("tanh", np.tanh, a)

    def sum(self, a: Array) -> Array:
        """The sum of each row, added as the summation says: shape B.

        With an accumulator of another format the terms are rounded to that, added there, and the total is rounded back.
        """
        if self.accumulator is not self:
            return self.take(self.accumulator.sum(self.accumulator.take(a)))
        return self._heard(self.summation, lambda adder: self._step("sum", lambda t: SUMMATIONS[self.summation].add(t, adder), a))

    def _heard(self, summation: str, added: Callable[[Adder], Array]) -> Array:
        """A sum made with the adder that it is given; what it absorbs is noted."""
        heard = None if self._recorder is None else self._recorder.listen(self._adder, summation)
        total = added(self._adder if heard is None else heard.adder)
        if heard is not None and self._recorder is not None:
            self._recorder.heard(heard, summation, total, self.fmt)
        return total

    @property
    def _adder(self) -> Adder:
        """Addition and subtraction for a sum: its single steps are not recorded."""
        if self._flushes or self.fmt.saturating:
            return Adder(self.fmt, partial(self._silent, "add", np.add), partial(self._silent, "subtract", np.subtract))
        return plain(self.fmt)

    def constant(self, value: float) -> Array:
        """A number, rounded once to the format: shape ()."""
        return round_array(np.array(value), self.fmt)

    def nearest(self, a: Array) -> Array:
        """The nearest integers, ties to even: exact."""
        return self._selected(np.rint(a), a, lambda mask: mask)

    def stored(self, a: Array, name: str) -> Array:
        """Numbers written to memory in another format, and read again."""
        return self.take(self._beside(formats.find(name)).take(a))

    def maximum(self, a: Array, b: Array) -> Array:
        """The larger of each two, NaN if one is: exact."""
        with np.errstate(all="ignore"):
            return self._merged(np.asarray(np.maximum(*_aligned(a, b))), a, b)

    def minimum(self, a: Array, b: Array) -> Array:
        """The smaller of each two, NaN if one is: exact."""
        with np.errstate(all="ignore"):
            return self._merged(np.asarray(np.minimum(*_aligned(a, b))), a, b)

    def unmasked(self, a: Array) -> Array:
        """0 for -inf: the maximum of what is masked altogether, from which nothing need be subtracted."""
        return self._selected(np.where(a == -np.inf, np.zeros((), a.dtype), a), a, lambda mask: mask & (a != -np.inf))

    def where_finite(self, a: Array) -> Array:
        """a where it is finite, else 0."""
        return self._selected(np.where(np.isfinite(a), a, np.zeros((), a.dtype)), a, lambda mask: mask & np.isfinite(a))

    def equals(self, a: Array, value: float) -> Array:
        """Whether elements are a value."""
        return np.asarray(widen(a) == value)

    def exceeds(self, a: Array, b: Array) -> Array:
        """Whether a > b, no if one is NaN."""
        with np.errstate(all="ignore"):
            return np.asarray(np.greater(*_aligned(a, b)))

    def isnan(self, a: Array) -> Array:
        """Whether elements are NaN."""
        return np.isnan(a)

    def choose(self, chosen: Array, a: Array, b: Array) -> Array:
        """a where chosen, else b."""
        return self._merged(np.where(chosen, a, b), a, b)

    def running_max(self, a: Array) -> Array:
        """The largest element of each row up to each place, NaN from the first one on: exact."""
        with np.errstate(all="ignore"):
            found = np.asarray(np.maximum.accumulate(a, axis=-1))
        return self._selected(found, a, lambda mask: np.logical_or.accumulate(mask, axis=-1))

    def before(self, a: Array) -> Array:
        """The element before each of a row; before the first stands the first itself."""
        return self._selected(_shifted_by_one(a), a, _shifted_by_one)

    def term(self, a: Array, column: int) -> Array:
        """One column: shape B."""
        return self._selected(np.array(a[..., column]), a, lambda mask: mask[..., column])

    def tiles(self, a: Array, size: int) -> list[Array]:
        """Each row in tiles of so many columns, the last maybe smaller."""
        spans = [slice(start, start + size) for start in range(0, a.shape[-1], size)]
        return [self._selected(np.array(a[..., span], order="C"), a, partial(_columns, span=span)) for span in spans]

    def stack(self, columns: Sequence[Array]) -> Array:
        """Rows of what has shape B."""
        found = np.stack(columns, axis=-1)
        if self._recorder is not None:
            self._recorder.gather(found, columns, partial(np.stack, axis=-1))
        return found

    def spread(self, a: Array, size: int, like: Array) -> Array:
        """What is said of each tile, for each element of it: the shape of `like`."""

        def spread(each: Array) -> Array:
            return np.array(np.repeat(each, size, axis=-1)[..., : like.shape[-1]])

        return self._selected(spread(a), a, spread)

    def recurrence(self, factors: Array, terms: Array) -> Array:
        """s of each row after s = t_0 and s = s f_j + t_j for j = 1, 2, ...: a sum that is rescaled as it grows, shape B.

        In the accumulator, like a sum, but always in this order. A factor that is 1 in every row is left out: it changes nothing.
        """
        k = self.accumulator
        if k is not self:
            return self.take(k.recurrence(k.take(factors), k.take(terms)))
        wide = partial(_in_turn, widen(factors), grow=lambda s, f, t: s * f + t, add=np.add)

        def added(adder: Adder) -> Array:
            steps = partial(_in_turn, factors, grow=partial(self._grown, adder.add), add=adder.add)
            return self._step("sum", steps, terms, wide=wide)

        return self._heard("sequential", added)

    def _grown(self, add: Callable[[Array, Array], Array], s: Array, f: Array, t: Array) -> Array:
        if self._asked.fma:
            return self._silent("fma", partial(elementary.fma, fmt=self.fmt), s, f, t)
        return add(self._silent("multiply", np.multiply, s, f), t)

    def rescaled(self, a: Array, factors: Array, size: int) -> Array:
        """Tiles of a size, each times the factors (shape B + (tiles,)) of all later tiles, one after the other: the shape of a.

        A factor that is 1 in every row is left out: it changes nothing.
        """
        for tile in range(1, factors.shape[-1]):
            factor, done = self.term(factors, tile), tile * size
            if np.any(factor != 1):
                grown = self.mul(a[..., :done], factor)
                rest = a[..., done:]
                a = np.concatenate((grown, rest), axis=-1)
                self._selected(a, grown, partial(_before, np.zeros(rest.shape, bool)))
        return a

    def neg(self, a: Array) -> Array:
        """-a, exact."""
        return self._selected(np.asarray(np.negative(a)), a, lambda mask: mask)

    def max(self, a: Array) -> Array:
        """The largest element of each row, NaN if the row has one; exact: shape B."""
        with np.errstate(all="ignore"):
            return self._selected(np.asarray(np.maximum.reduce(a, axis=-1)), a, lambda mask: np.any(mask, axis=-1))

    def argmax(self, a: Array) -> Array:
        """The index of the first largest element of each row: shape B."""
        return np.asarray(np.argmax(a, axis=-1))

    def is_index(self, y: Array) -> bool:
        """Whether targets are class indices rather than distributions."""
        return y.dtype.kind in "iu"

    def at(self, a: Array, index: Array) -> Array:
        """The element of each row at that row's index: shape B."""
        return self._selected(_picked(a, index), a, partial(_picked, index=index))

    def without(self, a: Array, index: Array) -> Array:
        """A copy with 0 in each row at that row's index."""
        return self._selected(_put(np.array(a, order="C"), index, 0), a, lambda mask: _put(np.array(mask, order="C"), index, 0))

    def one_hot(self, index: Array, like: Array) -> Array:
        """Rows of the shape of `like`: 1 at each row's index, 0 elsewhere."""
        return _put(np.zeros(like.shape, self.fmt.dtype), index, 1)

    def where_nonzero(self, y: Array, a: Array) -> Array:
        """a where y is not 0, else 0, whatever a is there."""
        return self._selected(np.where(y != 0, a, np.zeros((), self.fmt.dtype)), a, lambda mask: mask & (y != 0))

    def column(self, a: Array) -> Array:
        """Rows as columns, shape B + (n, 1): a_i of a matrix [i, j]."""
        return a[..., :, None]

    def row(self, a: Array) -> Array:
        """Rows as rows of a matrix, shape B + (1, n): a_j of a matrix [i, j]."""
        return a[..., None, :]

    def identity(self, like: Array) -> Array:
        """delta_ij to meet column(like) and row(like): shape (1, ..., 1, n, n)."""
        n = like.shape[-1]
        return np.eye(n, dtype=self.fmt.dtype).reshape((1,) * (like.ndim - 1) + (n, n))

    def _merged(self, result: Array, a: Array, b: Array) -> Array:
        """An array whose elements are of one of two others: where it is no plain number, what broke either may have broken it."""
        if self._recorder is not None:
            odd = ~np.isfinite(result) | (np.abs(widen(result)) < self.fmt.smallest_normal)
            self._recorder.gather(result, (a, b), lambda masks: odd & np.logical_or(*_aligned(masks[0], masks[1])))
        return result

    def _selected(self, result: Array, source: Array, select: Callable[[Array], Array]) -> Array:
        """An array made of the elements of another."""
        if self._recorder is not None:
            self._recorder.follow(result, source, select)
        return result

    def _step(self, name: str, function: Callable[..., Array], *operands: Array, wide: Callable[..., Array] | None = None) -> Array:
        # Contiguous operands: NumPy takes other, differently rounded loops of exp and log for some strides.
        given, operands = operands, tuple(np.asarray(operand, order="C") for operand in operands)
        with np.errstate(all="ignore"):
            if self._flushes and name != "round":
                operands = tuple(self._flushed(operand) for operand in operands)
            result, told = self._result(name, function, *operands, wide=wide)
            if self._recorder is not None:
                self._recorder.watch(name, operands, result, self.fmt, told, given)
        return result

    def _silent(self, name: str, function: Callable[..., Array], *operands: Array) -> Array:
        """A step that nobody watches."""
        return self._result(name, function, *map(self._flushed, operands) if self._flushes else operands)[0]

    def _result(
        self, name: str, function: Callable[..., Array], *operands: Array, wide: Callable[..., Array] | None = None
    ) -> tuple[Array, Array]:
        """The result, and what it was before the rules: infinite where it overflowed, and not flushed.

        wide: the step in binary64, if it is not the one of that name.
        """
        result = told = np.asarray(function(*operands))
        if self._flushes and name == "sum":  # its single additions flushed already
            told = np.where(result == 0, SUMMATIONS["exact"].add(operands[0], plain(self.fmt)), result)
        if self.fmt.overflow != "infinity":
            exact = np.asarray((wide or _WIDE[name])(*map(widen, operands)))
            lost = ~np.isnan(exact) & ~(np.isfinite(result) & np.isfinite(round_array(exact, self._given)))
            told = np.where(lost, np.copysign(np.inf, exact), widen(told))
            if self.fmt.saturating:
                most = np.copysign(self.fmt.largest, exact).astype(self.fmt.dtype)
                result = np.where(lost & ~np.isfinite(result), most, result)
        return (self._flushed(result) if self._flushes else result), told

    def _flushed(self, a: Array) -> Array:
        """Subnormal numbers as zeros of their sign."""
        return np.where(np.abs(a) < self.fmt.smallest_normal, np.copysign(np.zeros((), a.dtype), a), a)


def _aligned(a: Array, b: Array) -> tuple[Array, Array]:
    """A figure per row (shape B) gets a last axis where it meets rows (shape B + (n,))."""
    if a.ndim < b.ndim:
        return a[..., None], b
    return (a, b[..., None]) if b.ndim < a.ndim else (a, b)


def _in_turn(factors: Array, terms: Array, grow: Callable[..., Array], add: Callable[..., Array]) -> Array:
    """The recurrence of `Arithmetic.recurrence`, with its steps given: terms of shape B + (n,) to shape B."""
    f, t = (np.array(each.reshape(-1, each.shape[-1]).T, order="C") for each in (factors, terms))
    total = t[0]
    for j, moves in enumerate(np.any(f != 1, axis=1).tolist()[1:], 1):
        total = grow(total, f[j], t[j]) if moves else add(total, t[j])
    return np.array(total).reshape(terms.shape[:-1])


def _shifted_by_one(a: Array) -> Array:
    return np.concatenate((a[..., :1], a[..., :-1]), axis=-1)


def _columns(a: Array, span: slice) -> Array:
    return a[..., span]


def _before(rest: Array, a: Array) -> Array:
    return np.concatenate((a, rest), axis=-1)


def _picked(a: Array, index: Array) -> Array:
    """The element of each row at its index."""
    rows = a.reshape(-1, a.shape[-1])
    return np.asarray(rows[np.arange(len(rows)), index.reshape(-1)].reshape(index.shape))


def _put(rows: Array, index: Array, value: int) -> Array:
    """Write the value into each row at its index, in place; rows are contiguous."""
    flat = rows.reshape(-1, rows.shape[-1])
    flat[np.arange(len(flat)), index.reshape(-1)] = value
    return rows
