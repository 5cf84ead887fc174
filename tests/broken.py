"""Kernels with a bug each, in binary64 and rounded to the output's format at the end: what must never pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from engine import FORMATS, bounds, policies, round_array
from engine.formats import widen
from engine.model import Array
from engine.truth import Truth

Break = Callable[["Right"], Array | None]
"""The broken output, of the right one's shape, in binary64; None where the bug needs another problem."""


class Right:
    """A problem of rows (rows, n) and its truth in binary64, shape (rows, width)."""

    def __init__(self, truth: Truth, right: Array, rng: np.random.Generator) -> None:
        self.truth, self.right, self.rng = truth, right, rng
        self.x, self.given = widen(truth.raw_logits), truth.problem
        self.rows, self.n = self.x.shape
        self.op = truth.op.name

    @property
    def whole(self) -> bool:
        """Whether the results are of the shape of the logits."""
        return self.right.shape == self.x.shape

    def formula(self, x: Array, total: Callable[[Array], Array] | None = None, sign: float = 1.0) -> Array | None:
        """The op of other logits, its sum taken otherwise; of ops that have no other input."""
        with np.errstate(all="ignore"):
            m = x.max(axis=-1, keepdims=True)
            e = np.exp(x - m)
            s = (total or (lambda terms: terms.sum(axis=-1)))(e)[..., None]
            found = {"softmax": e / s, "log_softmax": x - m - sign * np.log(s), "logsumexp": m + sign * np.log(s)}.get(self.op)
            if self.op in ("cross_entropy", "cross_entropy_grad") and (y := self.indices()) is not None:
                if self.op == "cross_entropy":
                    return m + sign * np.log(s) - np.take_along_axis(x, y[:, None], -1)
                return e / s - np.eye(self.n)[y]
            return found

    def indices(self) -> Array | None:
        """Class targets."""
        y = self.given.targets
        return y.reshape(-1) if y is not None and y.dtype.kind in "iu" else None


def _swapped(r: Right) -> Array | None:
    found = r.right.copy().reshape(-1)
    if found.size < 2:
        return None
    a, b = r.rng.choice(found.size, 2, replace=False)
    found[[a, b]] = found[[b, a]]
    return found.reshape(r.right.shape)


def _one_beyond(r: Right) -> Array | None:
    """One element is off by twice what the default gate allows."""
    row = int(r.rng.integers(r.rows))
    tight = policies.tight(r.op, r.truth.fmt)
    b = bounds.allowed((tight,), r.truth.raw_logits[row], r.truth.companion(row), r.truth.width)[0]
    column = int(r.rng.integers(r.truth.width))
    found, value = r.right.copy(), r.right[row, column]
    if not np.isfinite(value) or not np.isfinite(b[column]):
        return None
    ulp = 2.0 ** (max(float(np.frexp(value)[1] - 1) if value else -np.inf, r.truth.fmt.emin) - r.truth.fmt.precision + 1)
    found[row, column] += r.rng.choice((-1, 1)) * 2 * max(b[column], ulp)
    return found


def _garbage(r: Right) -> Array | None:
    found = r.right.copy()
    found[r.rng.integers(r.rows)] = r.rng.standard_normal(r.right.shape[1])
    return found


def _last_column(r: Right) -> Array | None:
    found = r.right.copy()
    found[:, -1] = 0.0
    return found


def _stale(r: Right) -> Array | None:
    if r.rows < 2:
        return None
    found = r.right.copy()
    row = int(r.rng.integers(1, r.rows))
    found[row] = found[row - 1]
    return found


def _index_off(r: Right) -> Array | None:
    y = r.indices()
    if y is None or r.n < 2:
        return None
    found = (y + 1) % r.n
    if r.op == "cross_entropy":
        return r.right + np.take_along_axis(r.x, y[:, None], -1) - np.take_along_axis(r.x, found[:, None], -1)
    return r.right + np.eye(r.n)[y] - np.eye(r.n)[found]


def _shifted_mask(r: Right) -> Array | None:
    gone = np.isneginf(r.x)
    if not gone.any():
        return None
    with np.errstate(invalid="ignore"):
        return r.formula(np.where(np.roll(gone, 1, axis=-1), -np.inf, np.where(gone, 0.0, r.x)))


def _unmasked(r: Right) -> Array | None:
    return r.formula(np.where(np.isneginf(r.x), 0.0, r.x)) if np.isneginf(r.x).any() else None


def _transposed(r: Right) -> Array | None:
    return np.ascontiguousarray(r.right.T).reshape(r.right.shape) if r.whole else None


def _overflowing(r: Right) -> Array | None:
    """Exponentials of float16 without a shift."""
    if r.op != "softmax":
        return None
    half = FORMATS["float16"]
    with np.errstate(all="ignore"):
        e = widen(round_array(np.exp(np.minimum(r.x, 700.0)), half))
        return e / e.sum(axis=-1, keepdims=True)


BROKEN: Mapping[str, Break] = {
    "swapped": _swapped,
    "one beyond": _one_beyond,
    "garbage row": _garbage,
    "last column": _last_column,
    "stale row": _stale,
    "index off": _index_off,
    "mask shifted": _shifted_mask,
    "mask ignored": _unmasked,
    "transposed": _transposed,
    "overflowing": _overflowing,
    "last term": lambda r: r.formula(r.x, lambda e: e[..., :-1].sum(axis=-1)) if r.n > 1 else None,
    "one term more": lambda r: r.formula(r.x, lambda e: e.sum(axis=-1) + e[..., -1]),
    "padded": lambda r: r.formula(r.x, lambda e: e.sum(axis=-1) + 1.0),
    "sign of the log": lambda r: None if r.op == "softmax" else r.formula(r.x, sign=-1.0),
    "base 2": lambda r: r.formula(r.x * np.log(2.0)),
    "no temperature": lambda r: r.formula(r.x / 2),
    "negated logits": lambda r: r.formula(-r.x) if np.isfinite(r.x).all() else None,
    "scaled": lambda r: r.right * 1.01,
    "stalled sum": lambda r: r.formula(r.x, lambda e: np.minimum(e.sum(axis=-1), 256.0)),
}
"""By name."""
