r"""Which tolerance to use: what no right implementation of a declaration exceeds, on given logits or on any row.

On given logits it is the largest bound (engine.bounds) in each measure. On any row of n logits, with the words of engine.bounds,
a = v kappa < 1, and D = log(1/the smallest normal number of the output), so that abs(d_i) <= -log p_i <= D where p_i is normal:

    sum_j p_j exp(a abs(d_j)) <= n^a: p_j = w_j/S, w_j = exp(d_j) <= 1, sum w_j^(1 - a) <= n^a S^(1 - a) (Hoelder), and S >= 1
    eps      sum_j p_j expm1(th_j) <= exp(v c + slip) n^a - 1, and n (z + term) + total besides, for S >= 1
    softmax  p_i (expm1(th_i + H + u') + eps) / (1 - eps) <= p_i rtol, th_i <= v (kappa D + c) + slip; what underflows is atol, and
             rtol at the smallest normal number, for p_i expm1(th_i) rises with p_i below it: p^(1 - a) exp(..) - p does where
             -a log p >= -log(1 - a), and a is below 0.9 or eps is 1 or more
    log-sum-exp, log S <= log n: A <= reach + k_l u (log n + reach) + z_l, reach = H + eps + eps^2 / (2 (1 - eps)); then
             A + u (abs(T) + A)
    log-softmax  abs(d_i) <= abs(l_i): A (1 + u) and (u + u (1 + u)) abs(l_i)
    cross-entropy of a class, log S - (x_t - m): as log-softmax
    its gradient  is near 0 at a target whose p_i is near 1, so atol is the most that any p_i is off by, and u abs(T) rtol: B_i is
             (expm1(H + u') + eps) / (1 - eps) and less where d_i = 0. Elsewhere p_i <= 1/2, and B_i, which rises with p_i (as
             above, for eps >= v c + a log 2), is no more at 1/2, since exp(v c + slip + a log 2) <= 1 + eps
Another output format adds u_o (abs(T) + that) + eta_o/2. At least u_o abs(T) + eta_o/2 is allowed, for what is correctly rounded.
Where an exponential, a sum or a result overflows nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import exp, expm1, inf, log

import numpy as np

from engine import bounds, ops
from engine.bounds import CHUNK, Allowed, Constants, Declared, Tolerance, constants
from engine.errors import InvalidProblem
from engine.formats import FORMATS, Format, find, round_array
from engine.model import NO_PARAMS, Allowance, Array, Gate, Problem, SelfTest
from engine.outcome import this_engine
from engine.parameters import Value
from engine.policies import POLICIES
from engine.truth import Truth, certified, nearly
from engine.verdict import estimate_verdict, verify

LONGEST = 1 << 24
"""Logits of a row at most: as far as bounds are proven."""
_ELEMENTS = 1 << 16
"""Elements whose bounds are worked on together."""
_INFLATION = 1 + 2.0**-30
"""For what is rounded here, and for what 1 + u and the like leave out of second order."""
_LOST = 2.0**-1070
"""For what binary64 itself loses at its lower end, here and in the bounds."""


def tolerance(
    op: str,
    format: str,
    n: int | None = None,
    declared: Mapping[str, Value] | None = None,
    problem: Problem | None = None,
) -> Allowance:
    """ULP, rtol and atol that no right implementation of a declaration exceeds.

    format: of the output. n: logits a row, at most 2^24; left out where a problem is given. declared: parameters of the policy
    `bound` (compute, accumulator, summation, ...); none: what the default gate takes for granted. problem: logits (and targets, and
    grad_output) for which it shall hold; None: any row of n, and of targets one class. Raises UnknownName, InvalidProblem.
    """
    row, fmt = ops.OPS[op], find(format)
    given = POLICIES["bound"].check(declared or {})
    chosen = POLICIES["bound"].tolerance(op, fmt, given)
    k = chosen.declared[0]
    if problem is not None:
        return _of_logits(problem, k, chosen.factor, n)
    if n is None or not 1 <= n <= LONGEST:
        length = "missing" if n is None else n
        raise InvalidProblem(f"n is {length}; it is the number of logits in a row, 1 to {LONGEST}, or logits are given")
    if row.name not in _KINDS:
        more = {"softmax_vjp": " and grad_output"}.get(op, "")
        raise InvalidProblem(f"of {op} nothing is known of every row: give the logits{more}")
    if k.variant != bounds.reference(op):
        raise InvalidProblem(f"of {k.variant} nothing is known of every row: give the logits, or leave out algorithm")
    found = _of_any_row(row.name, k, n, chosen.factor)
    typical = 1 / n if op == "softmax" or (op == "cross_entropy_grad" and n > 1) else log(n)
    largest = 1 - 1 / n if op == "cross_entropy_grad" else typical
    zeros = found[1] == inf or largest <= found[0] * largest + found[1]
    return _told(k, n, None, found, _ulps(op, fmt, chosen.factor, found), typical, zeros, None)


def estimate_tolerance(problem: Problem, format: str) -> float:
    """Seconds that `tolerance` may take of a problem on one slow core: a planning figure, from element counts alone."""
    output = np.broadcast_to(np.zeros((), find(format).dtype), ops.output_shape(problem))
    return float(estimate_verdict(problem, output) + 1e-6 * output.size)


def _of_any_row(op: str, k: Declared, n: int, factor: float) -> tuple[float, float]:
    """(rtol, atol) of the op, rounded to its output format; infinite where error theory allows some row anything."""
    c, out = constants(k, n), FORMATS[k.output]
    spread = expm1(c.v * c.c + c.slip + c.v * c.kappa * log(n)) if n > 1 else 0.0  # exp(0) is exact
    eps = spread + n * (c.z + c.term) + c.total
    if not (eps < 1 and n * (1 + eps) * exp(min(c.h, 700.0)) <= c.limit):
        return inf, inf
    relative, absolute = _KINDS[op](c, eps, n, out.smallest_normal)
    relative = factor * (relative * (1 + c.u_out) + c.u_out) * _INFLATION
    absolute = factor * (absolute * (1 + c.u_out) + c.least_out + _LOST) * _INFLATION
    return max(relative, out.unit_roundoff), max(absolute, out.smallest_subnormal / 2, _LOST)


def _ulps(op: str, fmt: Format, factor: float, found: tuple[float, float]) -> float | None:
    """Of a softmax, 2^p ulp of rtol, and what atol has beside rtol at the smallest normal number: from there on an error is p_i
    rtol and this, below it no larger, and no ulp is below the smallest subnormal. Results near 0 may be off by any number."""
    relative, absolute = found
    if op != "softmax" or relative == inf:
        return None
    lost = absolute - (relative - max(factor, 1.0) * fmt.unit_roundoff) * fmt.smallest_normal
    ulps = relative * 2.0**fmt.precision + max(lost, 0.0) / fmt.smallest_subnormal
    return ulps if ulps < inf else None


def _softmax(c: Constants, eps: float, n: int, least: float) -> tuple[float, float]:
    farthest = c.v * (c.kappa * -log(least) + c.c) + c.slip if n > 1 else 0.0
    share = (expm1(farthest + c.h + c.u1) + eps) / (1 - eps)
    return share, _underflow(c, eps) + (share * least if n > 1 else 0.0)


def _underflow(c: Constants, eps: float) -> float:
    """What a probability may be off by beside a share of itself."""
    return c.z * exp(c.h + c.u1) / (1 - eps) + c.least


def _logarithm(c: Constants, eps: float, n: int) -> float:
    """A."""
    reach = c.h + eps + eps**2 / (2 * (1 - eps))
    return reach + c.k_log * c.u * (log(n) + reach) + c.z_log


def _logsumexp(c: Constants, eps: float, n: int, _least: float) -> tuple[float, float]:
    a = _logarithm(c, eps, n) + 3 * c.flushed
    return c.u, a * (1 + c.u)


def _log_softmax(c: Constants, eps: float, n: int, _least: float) -> tuple[float, float]:
    a = _logarithm(c, eps, n) + 5 * c.flushed
    return c.u + c.u * (1 + c.u), a * (1 + c.u)


def _gradient(c: Constants, eps: float, _n: int, _least: float) -> tuple[float, float]:
    off = (expm1(c.h + c.u1) + eps) / (1 - eps) + _underflow(c, eps) + c.flushed
    return c.u, off * (1 + c.u) + c.least


_KINDS = {
    "softmax": _softmax,
    "logsumexp": _logsumexp,
    "log_softmax": _log_softmax,
    "cross_entropy": _log_softmax,
    "cross_entropy_grad": _gradient,
}
"""Ops of which something is known of every row."""


def _told(
    k: Declared,
    n: int,
    rows: int | None,
    found: tuple[float, float],
    ulp: float | None,
    typical: float,
    zeros: bool,
    test: SelfTest | None,
) -> Allowance:
    """As an answer."""
    relative, absolute = found
    missed = relative + absolute / typical if typical else inf
    op = k.variant.split("/")[0]
    return Allowance(
        op, k.output, n, rows, _named(k), ulp, relative, absolute, typical, missed, zeros, test, this_engine()
    )  # fmt: skip


def _named(k: Declared) -> dict[str, Value]:
    return {
        "algorithm": k.variant.split("/")[1], "compute": k.format, "accumulator": k.accumulator,
        "summation": k.summation, "exp_ulp": k.exp_ulps, "log_ulp": k.log_ulps, "exponent_roundings": k.kappa,
        "subnormals": "flush" if k.flush else "gradual",
    }  # fmt: skip


def _of_logits(problem: Problem, k: Declared, factor: float, n: int | None) -> Allowance:
    """The largest bounds over the elements that have a truth. Of a softmax rtol holds where that is normal; elsewhere rtol is what
    roundings of the result take, and atol the rest."""
    op, columns = ops.check(problem), problem.logits.shape[-1]
    if n not in (None, columns):
        raise InvalidProblem(f"n is {n}, and the logits have rows of {columns}: leave n out")
    if problem.params is not NO_PARAMS:
        raise InvalidProblem("no bound is known with params; leave them out")
    truth = certified(problem, FORMATS[k.output])
    c = constants(k, columns)
    size, ulp, b = (np.concatenate(parts) for parts in zip(*_bounded(truth, k), strict=True))
    if not size.size:
        raise InvalidProblem("no element of these logits has a truth: every row has a NaN, an Infinity, or nothing but -Infinity")
    scaled = np.multiply(factor, b, where=b < inf, out=np.full_like(b, inf))  # no bound is none, whatever the factor
    b = np.maximum(scaled, ulp / 2) * _INFLATION
    normal = size >= truth.fmt.smallest_normal
    relative = 2 * c.u + c.u_out
    if op.name == "softmax":
        relative = float((b[normal] / size[normal]).max()) if normal.any() else 0.0
    absolute = float(np.maximum(0.0, b - relative * size).max()) if relative < inf else inf
    typical = float(np.median(size))
    zeros = absolute == inf or bool((size <= relative * size + absolute).all())
    test = None
    if absolute < inf:
        near = round_array(nearly(truth, range(truth.rows)), truth.fmt).reshape(truth.shape)
        test = verify(problem, near, Gate("allclose", {"rtol": relative, "atol": absolute})).gate.self_test
    with np.errstate(over="ignore"):  # what is off by more ULP than there are numbers
        ulps = float((b / ulp).max())
    return _told(k, columns, truth.rows, (relative, absolute), ulps if ulps < inf else None, typical, zeros, test)


def _bounded(truth: Truth, k: Declared) -> Iterator[tuple[Array, Array, Array]]:
    """abs(T), nearly, ulp(T), no larger, and B of the elements that have a truth, some rows at a time."""
    step = max(1, _ELEMENTS // max(truth.width, truth.raw_logits.shape[1]))
    for start in range(0, truth.rows, step):
        rows = slice(start, min(start + step, truth.rows))
        x = truth.raw_logits[rows]
        allowed = Allowed((Tolerance((k,)),), x, truth.companion(rows))
        parts = [allowed.part(0, first, min(first + CHUNK, truth.width)) for first in range(0, truth.width, CHUNK)]
        size = np.abs(nearly(truth, range(rows.start, rows.stop)))
        with np.errstate(invalid="ignore"):  # of bfloat16, NaN == NaN is a warning
            exact = (x == x[:, :1]).all(axis=1, keepdims=True) & (truth.op.name == "softmax")  # 1/n; else T may be just below size
        low = np.where(exact, size, size * (1 - 2.0**-48))
        ulp = 2.0 ** (np.maximum(np.frexp(low)[1] - 1, truth.fmt.emin) - truth.fmt.precision + 1.0)
        some = np.isfinite(size)
        yield size[some], ulp[some], np.concatenate(parts, axis=1)[some]
