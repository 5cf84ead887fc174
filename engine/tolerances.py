r"""Which tolerance to use: what no right implementation of a declaration exceeds, on given logits or on any.

On given logits it is the largest bound (engine.bounds) in each measure. On any row of n logits, with the words of engine.bounds,
and D = log(1/the smallest normal number of the output), so that abs(d_i) <= -log p_i <= D where p_i is normal:

    sum_j p_j exp(a abs(d_j)) <= n^a, a < 1: p_j = w_j/S, w_j = exp(d_j) <= 1, sum w_j^(1 - a) <= n^a S^(1 - a) (Hoelder), S >= 1
    eps      sum_j p_j expm1(th_j) <= exp(v c + slip) n^(v kappa) - 1, and n (z + term) + total besides, for S >= 1
    softmax  p_i (expm1(th_i + H + u') + eps) / (1 - eps) <= p_i rtol, th_i <= v (kappa D + c) + slip; what underflows is atol. A
             p_i below the smallest normal number has p_i abs(d_i) no larger than that at p_i = it (x -log x rises up to 1/e)
    log-sum-exp, log S <= log n: A <= reach + k_l u (log n + reach) + z_l, reach = H - log1p(-eps); A + u (abs(T) + A)
    log-softmax  abs(d_i) <= abs(l_i): A (1 + u) and (u + u (1 + u)) abs(l_i)
    cross-entropy of a class, log S - (x_t - m): as log-softmax
    its gradient  B_i <= p_i rtol + atol; p_i = abs(g_i), or at the target 1 - abs(g_i): rtol + atol for atol
Another output format adds u_o (abs(T) + that) + eta_o/2.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, expm1, inf, log, log1p

import numpy as np

from engine import bounds, ops
from engine.bounds import Constants, Declared, Tolerance, allowed, constants
from engine.errors import InvalidProblem
from engine.formats import FORMATS, find
from engine.model import NO_PARAMS, Allowance, Problem
from engine.parameters import Value
from engine.policies import POLICIES
from engine.truth import certified, nearly

GENERAL = ("softmax", "log_softmax", "logsumexp", "cross_entropy", "cross_entropy_grad")
"""Ops for which something can be said of any row."""
_INFLATION = 1 + 2.0**-30
"""For what is rounded here, and for what 1 + u and the like leave out of second order."""


def tolerance(
    op: str,
    format: str,
    n: int,
    declared: Mapping[str, Value] | None = None,
    problem: Problem | None = None,
) -> Allowance:
    """ULP, rtol and atol that no right implementation of a declaration exceeds.

    format: of the output. n: logits a row. declared: parameters of the policy `bound` (compute, accumulator, summation, ...);
    empty: the default gate's. problem: the logits (and targets) for which it shall hold; None: any row of n, and of targets one
    class. Raises UnknownName, InvalidProblem.
    """
    row, fmt = ops.OPS[op], find(format)
    given = POLICIES["bound"].check(declared or {})
    chosen = POLICIES["bound"].tolerance(op, fmt, given)
    k = chosen.declared[0]
    if n < 1:
        raise InvalidProblem(f"n is {n}; a row has at least 1 logit")
    if problem is not None:
        return _of_logits(problem, k, chosen.factor)
    if row.name not in GENERAL:
        raise InvalidProblem(f"of {op} nothing can be said of any row: give the logits{' and grad_output' * (op == 'softmax_vjp')}")
    if k.variant.split("(")[0] != f"{op}/{bounds.REFERENCE[op]}":
        raise InvalidProblem(f"of {k.variant} nothing is known of any row; give the logits, or leave out algorithm")
    relative, absolute = _of_any_row(row.name, k, n)
    return _told(k, n, chosen.factor * relative * _INFLATION, chosen.factor * absolute * _INFLATION)


def _of_any_row(op: str, k: Declared, n: int) -> tuple[float, float]:
    """(rtol, atol) of the op, rounded to its output format."""
    c, out = constants(k, n), FORMATS[k.output]
    eps = expm1(c.v * c.c + c.slip + c.v * c.kappa * log(n)) + n * (c.z + c.term) + c.total if n > 1 else 0.0
    if not eps < 1 or n * (1 + eps) * exp(min(c.h, 700.0)) > c.limit:
        return inf, inf
    relative, absolute = _KINDS[op](c, eps, n, out.smallest_normal)
    return relative * (1 + c.u_out) + c.u_out, absolute * (1 + c.u_out) + c.least_out


def _softmax(c: Constants, eps: float, n: int, least: float) -> tuple[float, float]:
    farthest = c.v * (c.kappa * -log(least) + c.c) + c.slip if n > 1 else 0.0
    share = (expm1(farthest + c.h + c.u1) + eps) / (1 - eps)
    lost = c.z * exp(c.h + c.u1) / (1 - eps) + c.least
    return share, lost + (share * least if n > 1 else 0.0)


def _logarithm(c: Constants, eps: float, n: int) -> float:
    """A."""
    reach = c.h - log1p(-eps)
    return reach + c.k_log * c.u * (log(n) + reach) + c.z_log


def _logsumexp(c: Constants, eps: float, n: int, _least: float) -> tuple[float, float]:
    a = _logarithm(c, eps, n) + 3 * c.flushed
    return c.u, a * (1 + c.u)


def _log_softmax(c: Constants, eps: float, n: int, _least: float) -> tuple[float, float]:
    a = _logarithm(c, eps, n) + 5 * c.flushed
    return c.u + c.u * (1 + c.u), a * (1 + c.u)


def _gradient(c: Constants, eps: float, n: int, least: float) -> tuple[float, float]:
    share, lost = _softmax(c, eps, n, least)
    off = share + lost + c.flushed
    return c.u, off * (1 + c.u) + c.least


_KINDS = {
    "softmax": _softmax,
    "logsumexp": _logsumexp,
    "log_softmax": _log_softmax,
    "cross_entropy": _log_softmax,
    "cross_entropy_grad": _gradient,
}


def _told(k: Declared, n: int, relative: float, absolute: float) -> Allowance:
    """As an answer. A softmax is never more than (rtol + atol/tiny) 2^p ulp off; what has a result near 0 by any number."""
    fmt = FORMATS[k.output]
    op = k.variant.split("/")[0]
    ulps = None
    if op == "softmax" and relative < inf:
        ulps = max(0.5, relative * 2.0**fmt.precision + absolute / fmt.smallest_subnormal)
    typical = 1 / n if op.startswith(("softmax", "cross_entropy_grad")) else log(n)
    missed = relative + absolute / typical if typical else inf
    return Allowance(op, n, _named(k), None, ulps, relative, absolute, missed, missed >= 1)


def _named(k: Declared) -> dict[str, Value]:
    return {
        "format": k.output, "algorithm": k.variant.split("/")[1], "compute": k.format, "accumulator": k.accumulator,
        "summation": k.summation, "exp_ulp": k.exp_ulps, "log_ulp": k.log_ulps, "subnormals": "flush" if k.flush else "gradual",
    }  # fmt: skip


def _of_logits(problem: Problem, k: Declared, factor: float) -> Allowance:
    """The largest bounds over the elements that have a truth: rtol where it is normal, and atol for the others."""
    op, n = ops.check(problem), problem.logits.shape[-1]
    if problem.params is not NO_PARAMS:
        raise InvalidProblem("no bound is known with params; leave them out")
    truth = certified(problem, FORMATS[k.output])
    sizes, bounds_ = [], []
    for row in range(truth.rows):
        size = np.abs(nearly(truth, range(row, row + 1))[0])
        b = factor * allowed((Tolerance((k,)),), truth.raw_logits[row], truth.companion(row), truth.width)[0]
        sizes.append(size[np.isfinite(size)])
        bounds_.append(b[np.isfinite(size)])
    size, b = np.concatenate(sizes), np.concatenate(bounds_)
    if not size.size:
        raise InvalidProblem("no element of these logits has a truth: every row has a NaN, an Infinity, or nothing but -Infinity")
    ulp = 2.0 ** (np.maximum(np.frexp(size)[1] - 1, truth.fmt.emin) - truth.fmt.precision + 1.0)
    b = np.maximum(b, ulp / 2) * _INFLATION
    normal = size >= truth.fmt.smallest_normal
    relative = float((b[normal] / size[normal]).max()) if normal.any() else 0.0
    rest = b - relative * size
    absolute = max(0.0, float(rest[~normal].max())) if (~normal).any() else 0.0
    some = size > 0
    missed = float(((relative * size[some] + absolute) / size[some]).max()) if some.any() else inf
    zeros = bool((size <= relative * size + absolute).all())
    return Allowance(op.name, n, _named(k), truth.rows, float((b / ulp).max()), relative, absolute, missed, zeros)
