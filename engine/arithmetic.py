"""The arithmetic a variant runs in: whole arrays of one format, every operation rounded once, every fault written down.

NumPy's ufuncs are called on the format's own dtype, so with the `numpy` summation a variant gives bit for bit what the
plain NumPy formula gives. What is varied (the summation today) is an argument here and never a copy of a variant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

import numpy as np

from engine.formats import Format
from engine.model import Array, Step
from engine.summation import SUMMATIONS

# Where a function of finite operands is infinite without overflowing (IEEE 754 clause 7.3).
_POLE: Mapping[str, Callable[..., Array]] = {
    "divide": lambda a, b: b == 0,
    "log": lambda a: a == 0,
    "log1p": lambda a: a == -1,
}
# Where the exact result is not 0, for the steps that can underflow: a result too small there has lost digits.
_NOT_ZERO: Mapping[str, Callable[..., Array]] = {
    "exp": lambda a: a != -np.inf,
    "log1p": lambda a: a != 0,
    "multiply": lambda a, b: (a != 0) & (b != 0),
    "divide": lambda a, b: (a != 0) & np.isfinite(b),
}


class Recorder:
    """Collects, in the order of execution, the steps that went wrong (IEEE 754 clause 7, told from the values alone).

    invalid: NaN from operands without NaN. divide_by_zero: an infinity at a pole, from finite operands. overflow: any
    other infinity from finite operands. underflow: 0 or subnormal although the exact result is not 0. The operands of a
    sum are its smallest and its largest term.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def watch(self, name: str, operands: tuple[Array, ...], result: Array, smallest_normal: float) -> None:
        """Look at one step: its name, its operands (broadcast to the result; for a sum its terms), its result."""
        if not np.isfinite(result).all():
            self._note_infinities(name, operands, result)
        if name in _NOT_ZERO:
            tiny = np.abs(result) < smallest_normal
            if tiny.any():
                self._note(name, "underflow", tiny & _NOT_ZERO[name](*operands), operands, result)

    def _note_infinities(self, name: str, operands: tuple[Array, ...], result: Array) -> None:
        if name == "sum":
            (terms,) = operands
            operands = (np.minimum.reduce(terms, axis=-1), np.maximum.reduce(terms, axis=-1))
        numbers = ~_any(np.isnan, operands)
        infinite = np.isinf(result) & ~_any(lambda a: ~np.isfinite(a), operands)
        pole = _POLE[name](*operands) if name in _POLE else np.zeros((), bool)
        self._note(name, "invalid", np.isnan(result) & numbers, operands, result)
        self._note(name, "divide_by_zero", infinite & pole, operands, result)
        self._note(name, "overflow", infinite & ~pole, operands, result)

    def _note(self, name: str, kind: str, where: Array, operands: tuple[Array, ...], result: Array) -> None:
        count = int(np.count_nonzero(where))
        if count:
            first = tuple(int(i) for i in np.unravel_index(int(np.argmax(where)), result.shape))
            full = (a if a.shape == result.shape else np.broadcast_to(a, result.shape) for a in operands)
            there = tuple(float(a[first]) for a in full)
            self.steps.append(Step(name, kind, count, first, there, float(result[first])))


class Arithmetic:
    """The operations a variant may use, over arrays of fmt.dtype, rounded once each; no warning leaves them.

    Rows have shape B + (n,), what is said of a whole row (a sum, a maximum, the value at a target) has shape B; where
    the two meet, the latter holds for every element of its row. summation names a row of SUMMATIONS (UnknownName if
    none); the recorder, if any, is shown every step that can go wrong.
    """

    def __init__(self, fmt: Format, summation: str = "numpy", recorder: Recorder | None = None) -> None:
        self.fmt = fmt
        self._add = SUMMATIONS[summation].add
        self._recorder = recorder

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

    def exp(self, a: Array) -> Array:
        """The exponential."""
        return self._step("exp", np.exp, a)

    def log(self, a: Array) -> Array:
        """The natural logarithm."""
        return self._step("log", np.log, a)

    def log1p(self, a: Array) -> Array:
        """log(1 + a)."""
        return self._step("log1p", np.log1p, a)

    def sum(self, a: Array) -> Array:
        """The sum of each row, added as the summation says: shape B."""
        return self._step("sum", self._add, a)

    def neg(self, a: Array) -> Array:
        """-a, exact."""
        return np.asarray(np.negative(a))

    def max(self, a: Array) -> Array:
        """The largest element of each row, NaN if the row has one; exact: shape B."""
        with np.errstate(all="ignore"):
            return np.asarray(np.maximum.reduce(a, axis=-1))

    def argmax(self, a: Array) -> Array:
        """The index of the first largest element of each row: shape B."""
        return np.asarray(np.argmax(a, axis=-1))

    def is_index(self, y: Array) -> bool:
        """Whether targets are class indices rather than distributions."""
        return y.dtype.kind in "iu"

    def at(self, a: Array, index: Array) -> Array:
        """The element of each row at that row's index: shape B."""
        rows = a.reshape(-1, a.shape[-1])
        return np.asarray(rows[np.arange(len(rows)), index.reshape(-1)].reshape(index.shape))

    def without(self, a: Array, index: Array) -> Array:
        """A copy with 0 in each row at that row's index."""
        return _put(np.array(a, order="C"), index, 0)

    def one_hot(self, index: Array, like: Array) -> Array:
        """Rows of the shape of `like`: 1 at each row's index, 0 elsewhere."""
        return _put(np.zeros(like.shape, self.fmt.dtype), index, 1)

    def where_nonzero(self, y: Array, a: Array) -> Array:
        """a where y is not 0, else 0, whatever a is there."""
        return np.where(y != 0, a, np.zeros((), self.fmt.dtype))

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

    def _step(self, name: str, function: Callable[..., Array], *operands: Array) -> Array:
        # Contiguous operands: NumPy takes other, differently rounded loops of exp and log for some strides.
        operands = tuple(np.asarray(operand, order="C") for operand in operands)
        with np.errstate(all="ignore"):
            result = np.asarray(function(*operands))
            if self._recorder is not None:
                self._recorder.watch(name, operands, result, self.fmt.smallest_normal)
        return result


def _any(test: Callable[[Array], Array], operands: tuple[Array, ...]) -> Array:
    """Where the test holds for at least one operand."""
    return reduce(np.logical_or, map(test, operands))


def _aligned(a: Array, b: Array) -> tuple[Array, Array]:
    """A figure per row (shape B) gets a last axis where it meets rows (shape B + (n,))."""
    if a.ndim < b.ndim:
        return a[..., None], b
    return (a, b[..., None]) if b.ndim < a.ndim else (a, b)


def _put(rows: Array, index: Array, value: int) -> Array:
    """Write the value into each row at its index, in place; rows are contiguous."""
    flat = rows.reshape(-1, rows.shape[-1])
    flat[np.arange(len(flat)), index.reshape(-1)] = value
    return rows
