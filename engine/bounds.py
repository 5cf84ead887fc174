r"""A-priori error bounds: what error theory allows a variant in an arithmetic on one row, element by element.

|c - T| <= B for every c that the variant, written as its formula says, can give: B is a function of the row, of the variant and
of the constants of the arithmetic (`Declared`), never of the output. Infinite: there is no bound. Below, x the logits as stored,
m their maximum, d_j = x_j - m, S = sum exp(d_j), L = log S, y = m + L, p_i = exp(d_i)/S; u, eta, f: the unit roundoff, the
smallest subnormal and the smallest normal number of the format; f counts only where subnormals are flushed, and is 0 otherwise.
Every step is fl(z) = z (1 + t) + s, |t| <= u, |s| <= eta/2 + f, s = 0 for the sum or the difference of two numbers but for a
flush (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., doi 10.1137/1.9780898718027, section 2.2; Hauser, doi
10.1145/227699.227701).

Exponentials. The computed one is e_j exp(r_j) + s_j, |r_j| <= th_j, |s_j| <= z:
    shifted  th_j = v (kappa |d_j| + c) + slip, and 0 where d_j = 0, for exp(0) = 1 exactly. The difference is off by u |d_j|,
             which the exponential makes a relative error; kappa = 3 for exp2(d log2 e), whose constant and product are rounded
                 too:
             (1 + u)^3 - 1 <= 3 v. c u is the relative error of the primitive (c = 1: correctly rounded; c = 2 k: to k ulp) and
             |log(1 + t)| <= c v for |t| <= c u. v = u / (1 - max(c, 1) u).
    natural  th_j = v (kappa |x_j| + c) + slip, and 0 where x_j = 0: the operand is exact, so kappa is 0, or 2 in the exp2 domain.
    slip     4 f or (exp2) eta + 6 f: flushed operands, flushed differences, the underflow of the product; natural, without a
             difference, 2 f or eta + 4 f.
    z        k eta + f: k ulp of the subnormals.

Sums of n terms >= 0. The computed one is (sum of the terms) exp(g), |g| <= H, plus what underflows. With w the unit roundoff of
the accumulator, w' = w / (1 - w), and a term passing through h additions, H = h w' (Higham, section 4.2; doi 10.1137/0914050):
    sequential, reverse                   h = n - 1
    pairwise                              h = ceil(log2 n)
    blocked, numpy (float32, float64)     h by NumPy's recursion: n - 1; from 8 terms on n div 8 + 2 + n mod 8; above 128 halves
    numpy (float16)                       the same in float32, then one rounding to float16; (others) as sequential
    warp                                  h = ceil(n / 32) - 1 + 5
    exact                                 h = 1
    neumaier                              relative error w + gamma^2, gamma = (n - 1) w / (1 - (n - 1) w), (n - 1) w < 1 (Ogita,
                                          Rump, Oishi, doi 10.1137/030601818, proposition 4.5; Fast2Sum, the larger first,
                                          is exact)
    kahan                                 see _kahan: 4 w + O(n w^2), Goldberg's recurrence (doi 10.1145/103162.103163, theorem 8)
                                          with every second-order term kept; where that does not converge there is no bound
An accumulator coarser than the format rounds each term too, and one finer, or with other ends, rounds the total: one more w' or
u' each. Where an accumulator or the format would overflow there is no bound, and in a format without
infinity none where any difference, product or result would. Terms of both signs: the error is at most expm1(H) times the sum of
their magnitudes.

    eps = sum_j p_j expm1(th_j) + n z / S; eps >= 1: no bound. So the computed sum lies in S [1 - eps, 1 + eps] exp(+-H).

Softmax by division (bound B of every op that begins with it):
    |dp_i| <= p_i (expm1(th_i + H + u') + eps) / (1 - eps) + z exp(H + u') / (S (1 - eps)) + eta/2 + f
    for c/S <= p exp(a)/(1 - eps), and exp(a)/(1 - eps) - 1 = (expm1(a) + eps)/(1 - eps), larger than what is lost below; natural
    exponentials have y for L: z exp(-y) for z/S.
    by reciprocal: H + 2 u' for H + u', and (p_i S exp(th_i) + z) (eta/2 + f) exp(u') besides, for what 1/S loses;
        where it may overflow there is no bound
    the maximum left out, 1 + s: D/S for eps, D = exp(H) (sum e_j expm1(th_j) + n z) + expm1(H) s, and u' for H: the last addition
    another base b, x_i - b: th_j = v (kappa |x_j - b| + c) + slip, 0 where x_j = b; exp(b - y) for 1/S: below b exponentials
        underflow, above it they overflow. b = -c, max(m, 0), max(m, start), each as the format has it
    exponentials stored: th_j + u_s/(1 - u_s) where d_j < 0, z (1 + that) + eta_s/2 + f_s + f for z, u_s, eta_s, f_s those of the
        stored format, the latter where it is coarser; only above the line where they are stored after they were summed
    2^(x_i c - m c), c = log2 e (1 + t), t of u: s = m c less its computed value is common to the row. It cancels in p, but
        |s| log 2 <= G = u (1 + u) |m| + eta + 4 f makes 1/S exp(G), and S as well. th_j = u |d_j| + P + u ((1 + u) |d_j| + G + P)
        + c v + eta + 6 f, P = u (1 + u) |x_j| for the product, 0 for an fma. m c must not overflow. An x_j c that does is 32 or
        more below m c in every format, and exp(-32) there is less than z
    2^((x_i - m) c + o): the difference, c, the product and the sum are rounded: ((1 + u)^4 - 1) |d_j| + u o log 2 + 2 eta + 12 f
        where d_j < 0, and c v; an fma: (1 + u)^3; 2^o S for S
    x = n log 2 + r, n = rint(x log2 e): |r| <= rho = log 2/2 + u (2 + u) |x| + eta/2 + 3 f. log 2 = high + low, low rounded, below
        2^-(p div 2 + 1); two products, two differences (with an fma the latter alone; n high is exact for small n) make r off by E,
        e^r by v (kappa_n (rho + E) + c). No bound where rho + E > 2 for a logit: e^r then lies in (1/8, 8) and cannot underflow.
        2^(n_j - N) is off by c v, and by u |n_j - N| log 2 where that is no number of the format; then u' for the product
    -inf replaced by a number: the bound of the changed row, and |softmax of that row - T|: p_i M/(S + M), M = exp(number - m) for
        each masked logit, and there all of it
Sums that are rescaled, s' = s f + t, f = exp(m - m'): sum_j of |m - m'| over all maxima after x_j and |x_j - m_j| is |d_j|, so th_j
    = v (kappa |d_j| + c (1 + R_j)) + (1 + R_j) slip with R_j maxima after it, and H gains one w' for each (an fma none, a coarser
    accumulator rounds f too) beside n - 1 additions; tiles have the H of their own sums besides. An f that underflows loses z s.
    With G the growth exp(H + (v c + slip) (R + 1) + R u'), s <= G (its exact value + loss), so the whole loss is at most
        G (n z + tiles (...) + R (eta_w/2 + f_w) + z G sum s) / (1 - z G R); exact s <= min(terms so far, S exp(m - m_j)) = t;
        for t (1 - a) t + a (terms so far) is taken, a = v kappa: exp(-d (1 - a)) <= (1 - a) exp(-d) + a
    2^(x_j c - m_b c), f = 2^((m - m') c): what m_b c is off by, G with the largest abs(m_b) for abs(m), no longer cancels. abs(x_j)
        <= abs(m_b) + |x_j - m_b|, and so each exponent is off by ((1 + u)^3 - 1) of its size and a rest: th_j = 3 v |d_j| + (1 + u)
        (G + u (1 + u) max abs(m_b)) + (1 + R_j) (c v + eta + 6 f), an fma: without u (1 + u) max abs(m_b); the rest is in G too
    e_i f f ...: R_i u' more, and G (z + R_i (z + eta/2 + f)) for z. Lazily: a logit lies up to T = threshold log 2 (1 + 4 u) + eta
    + 6 f above what is subtracted (the comparison is rounded), at most m less the first maximum: |d_j| + 2 T for |d_j|, and G and S
    grow by exp(2 v kappa T) and exp(T). Parts merged: 2 for 1 + R_j, H of a part + u' + H of the parts
Subtractive exp(x_i - L), L off by A_L: p_i expm1(th) + z, th = A_L + v (kappa (|x_i - L| + A_L) + c) + slip. The logarithm and what
    it is subtracted from are of the size of m: u |m| is an absolute error of th, a relative one of p
Log-sum-exp, lam = H - log1p(-eps) <= H + eps + eps^2 / (2 (1 - eps)):
    A = lam + k_l u (L + lam): the logarithm, known to k_l u relatively, of a sum that is off by exp(lam); natural: L is y
    m + log S: A + u (|y| + A)
    m + log1p(s), s without one maximum: for lam take -log1p(-D/S), D = exp(H) (sum e_j expm1(th_j) + n z) + expm1(H) s
    L' = M + log1p(exp(-g)), term by term: log-sum-exp is 1-Lipschitz in L, so E' = E + a + u (|L'| + E + a), and a = D + k_l u
        (log 2 + D) + k_l eta/2: D, what exp(-g) may be off by, is by the g where it is largest at most expm1(v c + slip) +
        exp(v c + slip) v kappa/(e (1 - v kappa)) + z. A masked logit changes nothing
Log-softmax (x_i - m) - log S: A + u |d_i|, and u (|l_i| + that); x_i - log S of natural exponentials: A, and u (|l_i| + A)
    x_i - L: A_L + u (|l_i| + A_L)
    log p_i: E = -log1p(-B_i/p_i), then k_l u (|l_i| + E); B_i >= p_i: no bound
Cross-entropy y - x_t: A_y = A + u (|y| + A), then u (l + A_y), l the loss; -log p_t: as log p_t
    log S - (x_t - m): as log-softmax. log1p(sum_{j != t} exp(x_j - x_t)): -log1p(-D/exp(l)), and k_l u (l + that); D/exp(l) =
        exp(H) (sum p_j expm1(th_j) + n z exp(-l)) + expm1(H) sum_{j != t} p_j, th_j of x_j - x_t
    weights: sum_i y_i E_i + u y_i (l_i + E_i) + eta/2, E_i the bound of the term, and the sum's expm1(H) (sum y_i (l_i + E_i) +
        that)
Gradient p_i Y - y_i: Y B_i + dY (p_i + B_i) + u (p_i Y + that) + eta/2 + u (|g_i| + that); by index Y = 1 and only the last term
    is added; dY = Y expm1(H): the sum of the targets is rounded too; with an fma the product is not
    the others' sum at the target: sum B_j and expm1(H) sum (p_j + B_j). p stored: B + u_s (p_i + B) + eta_s/2 + f_s + f for B; the
        difference too. exp of stored logarithms: B = p_i expm1(E + v (kappa_n (|l_i| + E) + c)) + z, E that of log-softmax, stored
    chain rule p_i (v_i - sum_j v_j p_j), v = -y/p: p_i v_i is -y_i to u y_i and an underflow, the sum is -Y to Y expm1(2 u' + H)
    and underflows, the difference and the product round; where y_i/p_i may overflow, or p_i may be 0, there is no bound
Jacobian: p_i B_j + p_j B_i + B_i B_j off the diagonal, B_i |1 - 2 p_i| + B_i^2 on it; then expm1(2 u') (|J| + that) + eta/2
Vjp p_i (g_i - s): ds = sum |g_j| B_j + u |g_j| (p_j + B_j) + eta/2, and expm1(H) (sum |g_j| p_j + that); dt = ds + u (|g_i - s| +
    ds); |g_i - s| B_i + (p_i + B_i) dt, then u (|v_i| + that) + eta/2
Another output format: u_o (|T| + B) + eta_o/2. No bound where |T| + B exceeds the largest number of a format that saturates, or
    what still rounds to it in one without infinity.

The first-order form of the softmax bound, p_i u (|d_i| + c + W + H/u + 1), W = sum p_j (|d_j| + c), is not a bound: two logits
0.25 and -64 in bfloat16 exceed it, subnormals lost in the sum do by 3.6, and a sum that overflows by 97. Nor is
|y + n - x_min| u for log-sum-exp, as it stands in the code beside Blanchard, Higham and Higham (doi 10.1093/imanum/draa038,
theorem 4.2): the last addition alone costs |y| u. Both are among the tests. Of float64, eta/2 is 0 in
binary64: so exponentials near 10^-308 exceeded the bound of the unshifted softmax by 3 10^8; eta stands for it. (1 + u)^4 - 1 is 0
there too, and exceeded by 2.

Evaluated in binary64 by + - * / and scaling alone, in an order that depends on n only: the same bits on every machine and for
every split. Exponentials, logarithms and sums of at most 2^24 terms are off by less than 2^-42 of themselves, the result is made
larger by 2^-40, and by 2^-1074.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from math import exp, expm1, inf

import numpy as np

from engine import elementary
from engine.formats import FORMATS, Format, round_array, widen
from engine.model import Array, Axes

CHUNK = 1 << 14
"""Columns that are worked on together."""
_KEPT = 1 << 16
"""Logits of which exponentials are kept, and not computed again for each use."""
BLOCK = 128
LANES = 32
_INFLATION = 1 + 2.0**-40
_LEAST = 2.0**-1074
_LONGEST = 1 << 24
"""Terms of a sum for which the bound is evaluated closely enough; beyond there is none."""
_MOST = 600.0
"""Exponents above which there is no bound."""
REFERENCE = {
    "softmax": "shifted",
    "log_softmax": "shifted",
    "logsumexp": "shifted",
    "cross_entropy": "split",
    "cross_entropy_grad": "fused",
    "softmax_jacobian": "shifted",
    "softmax_vjp": "shifted",
}
"""The stable variant of an op, against whose bound a status is decided."""
CONDITIONED = ("softmax", "log_softmax", "logsumexp", "cross_entropy", "cross_entropy_grad")
"""Ops that have a condition number here."""
Conditioned = tuple[float, int]
"""A condition number and its row, negated: the largest of several is the worst, and of equal ones the first."""

BY_INDEX = ("cross_entropy/log1p_of_others", "cross_entropy_grad/others")
"""Variants that take other steps for class indices than for the distributions that these are."""

# NumPy states at most 4 ulp for its vector loops (2.52 and 3.83 for exp and log of float32:
# numpy/_core/src/umath/loops_exponent_log.dispatch.c.src) and holds float16 to one step beside the rounded result
# (numpy/_core/tests/test_umath_accuracy.py); ml_dtypes computes in float32 and rounds that.
_NUMPY_ULPS = {"float64": 4.0, "float32": 4.0, "float16": 1.5 + 2.0**-10}


def numpy_ulps(fmt: Format) -> float:
    """Error of NumPy's exp, exp2, log and log1p in a format, in ulp of the result."""
    return _NUMPY_ULPS.get(fmt.name, 0.5 + 4 * 2.0 ** (fmt.precision - 24))


@dataclass(frozen=True)
class Declared:
    """An algorithm as it is declared: a variant's name and the arithmetic it runs in.

    format, accumulator, output: names of formats. exp_ulps, log_ulps: errors of the primitives in ulp; kappa: roundings of the
    exponent of a shifted exponential. flush, fused, saturates: the axes of that name. params: whether params change what it
    computes, so that no bound is known. delivered: whether subnormals of another output format are not flushed.
    """

    variant: str
    format: str
    accumulator: str
    output: str
    summation: str
    exp_ulps: float
    log_ulps: float
    kappa: int = 1
    flush: bool = False
    fused: bool = False
    saturates: bool = False
    params: bool = False
    delivered: bool = False


@dataclass(frozen=True)
class Tolerance:
    """What an error may be: abs(c - T) <= max(factor B, absolute + relative abs(T), ulps ulp(T)).

    B: the largest bound by any of the declarations that has one; infinite, so that everything is allowed, where none of them has;
    0 where nothing is declared. larger: the larger of absolute and relative abs(T), not their sum. outside: whether an error as
    large as all that is too large, and half of ulps ulp(T) where c is in a lower binade than T, so that one ulp is not reached
    by the two neighbours of T alone.
    """

    declared: tuple[Declared, ...] = ()
    factor: float = 1.0
    absolute: float = 0.0
    relative: float = 0.0
    ulps: float = 0.0
    larger: bool = False
    outside: bool = False

    @property
    def unknown(self) -> bool:
        """Whether params change what is declared, so that there is no bound anywhere."""
        return any(k.params for k in self.declared)


def declared(variant: str, fmt: Format, summation: str, axes: Axes) -> Declared:
    """A built-in variant ("softmax/naive") in an arithmetic whose axes are told in full, as Arithmetic.axes tells them."""
    return Declared(
        variant=variant,
        format=fmt.name,
        accumulator=axes.accumulator or fmt.name,
        output=axes.output_format or fmt.name,
        summation=summation,
        exp_ulps=numpy_ulps(fmt) if axes.exp == "numpy" else 0.5,
        log_ulps=numpy_ulps(fmt),
        kappa=3 if axes.exp == "exp2" else 1,
        flush=axes.subnormals == "flush",
        fused=axes.fma,
        saturates=axes.overflow == "saturate",
    )


def stable(op: str, fmt: Format) -> Declared:
    """What an output of unknown making is held against: the op's stable variant in the output's own format, summed in sequence,
    exp2 domain, exp and log to 2 ulp."""
    return Declared(reference(op), fmt.name, fmt.name, fmt.name, "sequential", 2.0, 2.0, 3)


def reference(op: str) -> str:
    """The name of an op's stable variant, with the op."""
    return f"{op}/{REFERENCE[op]}"


# ---- the constants of an arithmetic ----------------------------------------------------------------------------------


def depth(name: str, n: int) -> int:
    """Additions that a term passes through at most, for the summations whose error is their depth times the unit roundoff.

    "parallel" is none that runs here, but what a sum by many threads, each with a few terms of its own, stays below.
    """
    if name in ("sequential", "reverse"):
        return n - 1
    if name == "pairwise":
        return (n - 1).bit_length()
    if name == "warp":
        return -(-n // LANES) - 1 + LANES.bit_length() - 1
    if name == "parallel":
        return (n - 1).bit_length() + LANES
    return {"exact": 1, "blocked": _halvings(n), "numpy": _halvings(n)}[name]


@cache
def _halvings(n: int) -> int:
    """Of NumPy's pairwise sum: eight accumulators up to 128 terms, halves above."""
    if n < 8:
        return n - 1
    if n <= BLOCK:
        return n // 8 - 1 + 3 + n % 8
    half = n // 2 - n // 2 % 8
    return 1 + max(_halvings(half), _halvings(n - half))


def _kahan(n: int, w: float) -> float:
    """|coefficient of a term in the total - 1|, for Kahan's sum of n terms.

    Of a term let S be the coefficient in the total and C in what is subtracted next, a step having four roundings:
        S' = (S - C (1 + n)) (1 + s)
        C' = (S s (1 + g) - C (1 + n) ((1 + s) (1 + g) - 1)) (1 + t), so |C'| <= alpha |S| + beta |C|
        S' - C' = S (1 + a) - C (1 + b), |a| <= 2 w^2 + w^3, |b| <= (1 + w) (1 + w (1 + w) + w (2 w + w^2)) - 1
    A term enters with |S - C - 1| <= b and |C| <= beta. Hence |C| <= k max S, k = max(beta, alpha/(1 - beta)), and max S (1 - k - n
    (a + b k)) <= 1 + b; at the end |S - 1| <= b + n (a + b k) max S + k max S.
    """
    a = 2 * w**2 + w**3
    b = (1 + w) * (1 + w * (1 + w) + w * (2 * w + w**2)) - 1
    alpha, beta = w * (1 + w) ** 2, (1 + w) ** 2 * (2 * w + w**2)
    k = max(beta, alpha / (1 - beta))
    room = 1 - k - n * (a + b * k)
    return b + (n * (a + b * k) + k) * (1 + b) / room if room > 0 else inf


def _logarithmic(share: float) -> float:
    """|log(1 + t)| for |t| <= share."""
    return _lost(share) if share < 1 else inf


def _lost(share: float) -> float:
    """An upper bound of -log1p(-share), 0 <= share < 1."""
    return share + share**2 / (2 * (1 - share))


def summing(name: str, n: int, fmt: Format) -> float:
    """H for a sum of n terms in a format: the logarithm of the factor by which it may be off."""
    w = fmt.unit_roundoff
    if n == 1:
        return 0.0
    if n > _LONGEST:
        return inf
    if name == "neumaier":
        share = (n - 1) * w
        return _logarithmic(w + (share / (1 - share)) ** 2) if share < 1 else inf
    if name == "kahan":
        return _logarithmic(_kahan(n, w))
    if name == "numpy" and fmt.name == "float16":
        return summing("blocked", n, FORMATS["float32"]) + w / (1 - w)
    if name == "numpy" and fmt.precision < 11:
        name = "sequential"
    return depth(name, n) * w / (1 - w)


def _half(fmt: Format) -> float:
    """eta/2; of float64, where binary64 has no such number, eta."""
    return max(fmt.smallest_subnormal / 2, _LEAST)


def _end(fmt: Format) -> float:
    """The largest number that rounds to one of the format: half a unit above its largest, which is even."""
    return fmt.largest + 2.0 ** (fmt.emax - fmt.precision)


@dataclass(frozen=True)
class Constants:
    """The constants of a declared arithmetic for rows of n, named as in this file's first lines.

    u1: u' = u/(1 - u). z: what an exponential may underflow by. slip, natural_slip: see there. h: H. term, total, signed: what the
    sum loses absolutely for each term, at the end, and for each addition of terms of both signs. limit: the largest sum. least:
    eta/2 + f. ceiling: the largest result of what saturates, or has no infinity. ends: beyond that a step gives NaN, in a format
    without infinity. u_out, least_out: of the output format, 0 where it is no coarser.
    """

    n: int
    u: float
    u1: float
    v: float
    c: float
    kappa: int
    natural_kappa: int
    slip: float
    natural_slip: float
    z: float
    k_log: float
    z_log: float
    h: float
    term: float
    total: float
    signed: float
    limit: float
    largest: float
    least: float
    flushed: float
    u_out: float
    least_out: float
    ceiling: float
    ends: float
    fused: bool
    of: Declared


@lru_cache(maxsize=1 << 12)
def constants(k: Declared, n: int) -> Constants:
    """The constants of a declaration for rows of n logits."""
    fmt, acc, out = FORMATS[k.format], FORMATS[k.accumulator], FORMATS[k.output]
    u, eta, f = fmt.unit_roundoff, fmt.smallest_subnormal, fmt.smallest_normal * k.flush
    c = 2 * k.exp_ulps
    h, term, total, f_acc = summing(k.summation, n, acc), 0.0, 0.0, acc.smallest_normal * k.flush
    if acc != fmt:
        if acc.precision < fmt.precision:
            h += acc.unit_roundoff / (1 - acc.unit_roundoff)
        if fmt.precision < acc.precision:
            h += u / (1 - u)
        term, total = _half(acc) + f_acc, _half(fmt) + f
    narrower = out != fmt and (out.precision < fmt.precision or out.smallest_subnormal > eta)
    saturating = [row.largest for row in (fmt, out) if k.saturates and row.bits == 8]
    ending = [_end(row) for row in (fmt, out) if not (row.has_infinity or k.saturates)]
    return Constants(
        n=n,
        u=u,
        u1=u / (1 - u),
        v=u / (1 - max(c, 1.0) * u) if c * u < 1 else inf,
        c=c,
        kappa=k.kappa,
        natural_kappa=k.kappa - 1,
        slip=4 * f if k.kappa == 1 else eta + 6 * f,
        natural_slip=2 * f if k.kappa == 1 else eta + 4 * f,
        z=max(k.exp_ulps * eta, _half(fmt)) + f,
        k_log=2 * k.log_ulps,
        z_log=k.log_ulps * eta + f,
        h=h,
        term=term,
        total=total + (4 * n * f_acc if k.summation in ("kahan", "neumaier") else 0.0),
        signed=4 * n * f_acc,
        limit=min(fmt.largest, acc.largest),
        largest=fmt.largest,
        least=_half(fmt) + f,
        flushed=f,
        u_out=out.unit_roundoff if narrower else 0.0,
        least_out=(_half(out) if narrower else 0.0) + (out.smallest_normal if k.flush and out != fmt and not k.delivered else 0.0),
        ceiling=min(saturating + ending, default=inf),
        ends=inf if fmt.has_infinity or k.saturates else _end(fmt),
        fused=k.fused,
        of=k,
    )


# ---- rows --------------------------------------------------------------------------------------------------------------

Part = slice
Elements = Callable[[Part], tuple[Array, Array]]
"""Columns of an output to (|T|, the bound before it is delivered), both (rows, columns)."""
Of = Callable[[Part], Array]
Some = Array | float


class Rows:
    """Some rows of logits and what their bounds share.

    logits: (rows, n), any format; extra: class indices (rows,), weights or a grad_output (rows, n), or None. A row that has
    no truth is taken as zeros.
    """

    def __init__(self, logits: Array, extra: Array | None, k: Constants) -> None:
        self.k, self._logits, self.extra = k, logits, extra
        self.n = logits.shape[1]
        self.parts = [slice(start, min(start + CHUNK, self.n)) for start in range(0, self.n, CHUNK)]
        with np.errstate(invalid="ignore"):  # of bfloat16, a NaN beside an infinity is a warning
            top = widen(logits.max(axis=1, keepdims=True))
        self.dead = ~np.isfinite(top)
        self.m = np.where(self.dead, 0.0, top)
        self.first = np.argmax(logits, axis=1)
        self.kept = logits.size <= _KEPT
        self._kept: tuple[Array, Array, Array] | None = None
        if self.kept:
            self._kept = self._columns(slice(0, self.n))

    def under(self, k: Declared) -> Rows:
        """The same rows under another declaration, with what is known of them."""
        other = copy(self)
        other.k = constants(k, self.n)
        return other

    def _columns(self, part: Part) -> tuple[Array, Array, Array]:
        x = widen(self._logits[:, part])
        x = np.where(self.dead, 0.0, x)
        with np.errstate(over="ignore"):
            d = x - self.m
        return x, d, _exp_down(d)

    def columns(self, part: Part) -> tuple[Array, Array, Array]:
        """x, d = x - m and exp(d) of some columns."""
        if self._kept is None:
            return self._columns(part)
        x, d, e = self._kept
        return x[:, part], d[:, part], e[:, part]

    def sum(self, terms: Of) -> Array:
        """Sums of rows, (rows, 1): trees of the parts, one after the other."""
        total = np.zeros((len(self._logits), 1))
        for part in self.parts:
            total = total + _tree(terms(part))
        return total

    def largest(self, values: Of) -> Array:
        """Largest finite values of rows, (rows, 1); at least 0."""
        total = np.zeros((len(self._logits), 1))
        for part in self.parts:
            found = values(part)
            most = found.max(axis=1, keepdims=True)
            if not np.isfinite(most).all():
                most = np.where(np.isfinite(found), found, 0.0).max(axis=1, keepdims=True)
            total = np.maximum(total, most)
        return total

    @cached_property
    def rest(self) -> Array:
        """s, the sum without the first maximum."""

        def others(part: Part) -> Array:
            e = self.columns(part)[2].copy()
            place = self.first - part.start
            here = np.flatnonzero((place >= 0) & (place < e.shape[1]))
            e[here, place[here]] = 0.0
            return e

        return self.sum(others)

    @cached_property
    def whole(self) -> Array:
        """S."""
        return 1 + self.rest

    @cached_property
    def log(self) -> Array:
        """L = log S."""
        return _log1p(self.rest)

    @cached_property
    def gap(self) -> Array:
        """The largest finite difference of two logits."""
        return self.largest(lambda part: -self.columns(part)[1])

    @cached_property
    def extent(self) -> Array:
        """The largest finite magnitude of a logit."""
        return np.maximum(np.abs(self.m), self.largest(lambda part: -self.columns(part)[0]))

    @cached_property
    def y(self) -> Array:
        """m + L."""
        return np.asarray(self.m + self.log)

    def p(self, part: Part) -> Array:
        """Probabilities."""
        return np.asarray(self.columns(part)[2] / self.whole)

    def weights(self, part: Part) -> Array:
        """Targets or grad_output of some columns, (rows, columns)."""
        assert self.extra is not None
        return widen(self.extra[:, part])

    def at_target(self) -> Array:
        """The logits at the class indices, (rows, 1)."""
        assert self.extra is not None
        x = widen(np.take_along_axis(self._logits, self.extra.reshape(-1, 1), axis=1))
        return np.where(self.dead, 0.0, x)

    @property
    def by_index(self) -> bool:
        """Whether the targets are class indices."""
        return self.extra is not None and self.extra.ndim == 1

    def added(self, magnitude: Array, error: Array) -> Array:
        """What a sum of terms of both signs may be off by: of those magnitudes, each off by its share of `error`; infinite where it
        may overflow."""
        k = self.k
        error = error + k.n * k.term
        off = error + _grown(k.h) * (magnitude + error) + k.total + k.signed * _factor(k.h)
        return np.where(magnitude + off <= k.limit, off, inf)


def _holds(k: Constants, size: Array, scaled: bool = False) -> Array:
    """Where a number of that size rounds to one of the format, and its product with log2 e too if an exponential takes it."""
    return np.asarray(size * (1.4427 * (1 + 4 * k.u) if scaled or k.kappa == 3 else 1.0) <= k.ends)


class Exponentials:
    """Shifted or natural exponentials, their sum, and the quotients.

    reach: the computed sum is S exp(+-reach); infinite: no bound. roundings: of a quotient.
    """

    def __init__(self, r: Rows, natural: bool = False, roundings: int = 1) -> None:
        self.r, self.natural, self.roundings = r, natural, roundings
        k = r.k
        if natural:
            self.unit, size = _exp(-r.y), _exp(r.y)  # 1/sum, sum
        else:
            self.unit, size = 1 / r.whole, r.whole
        self._grown: Array | None = None
        if r.kept:
            self._grown = self._growth(slice(0, r.n))
        self.terms = r.sum(lambda part: r.columns(part)[2] * self._growth(part)) / r.whole
        eps = self.terms + (k.n * (k.z + k.term) + k.total) * self.unit
        fits = (eps < 1) & (size * (1 + eps) * _factor(k.h) <= k.limit)
        if natural and k.ends < inf:
            fits &= _holds(k, r.extent)
        self.eps = np.where(fits, eps, inf)
        self.reach = np.where(fits, k.h + _lost_share(eps), inf)

    def theta(self, x: Array, d: Array) -> Array:
        """th_j of the logits x, d = x - m."""
        k = self.r.k
        if self.natural:
            size, kappa, slip = np.abs(x), k.natural_kappa, k.natural_slip
        else:
            size, kappa, slip = np.abs(d), k.kappa, k.slip
        found = np.minimum(size, 2.0**1000)
        found *= k.v * kappa
        found += k.v * k.c + slip
        np.minimum(found, _MOST, out=found)
        found *= size > 0
        return np.asarray(found)

    def _growth(self, part: Part) -> Array:
        """expm1(th_j) of some columns."""
        if self._grown is None:
            return _expm1(self.theta(*self.r.columns(part)[:2]))
        return self._grown[:, part]

    def share(self, x: Array) -> tuple[Array, Array]:
        """(p, B) of probabilities of some logits, (rows, columns)."""
        r = self.r
        d = x - r.m
        return self._share(_exp(d) / r.whole, _expm1(self.theta(x, d)))

    def part(self, part: Part) -> tuple[Array, Array]:
        """The same for some columns."""
        return self._share(self.r.columns(part)[2] / self.r.whole, self._growth(part))

    def _share(self, p: Array, growth: Array) -> tuple[Array, Array]:
        """growth: expm1(th); expm1(th + a) = growth (1 + expm1(a)) + expm1(a)."""
        k, left = self.r.k, 1 - self.eps
        some = left > 0
        more = k.h + self.roundings * k.u1
        left = np.where(some, left, 1.0)
        b = growth * (_factor(more) / left)
        b += (_grown(more) + self.eps) / left
        b *= p
        b += np.where(some, k.z * _factor(more) * self.unit / left + self.roundings * k.least + 4 * _LEAST, inf)
        return p, b  # p itself may be off by 4 _LEAST

    def log(self) -> Array:
        """A: what the computed logarithm of the sum may be off by."""
        r, k = self.r, self.r.k
        return _logged(np.abs(r.y) if self.natural else r.log, self.reach, k)


# ---- the bounds ------------------------------------------------------------------------------------------------------


BOUNDS: dict[str, Callable[..., Elements]] = {}
"""How a variant's bound is evaluated, by the variant's name in VARIANTS: of rows, with the variant's parameters as keywords."""
FORMULAS: dict[str, str] = {}
"""The same as one sentence."""
_P = "p_i (expm1(th_i + H + u') + eps) / (1 - eps) + underflow"
_TH = {False: "th_i = v (kappa abs(x_i - m) + c)", True: "th_i = v (kappa abs(x_i) + c)"}


def bound(variant: str, formula: str) -> Callable[[Callable[..., Elements]], Callable[..., Elements]]:
    """Register the decorated function as the bound of a variant."""

    def register(evaluate: Callable[..., Elements]) -> Callable[..., Elements]:
        BOUNDS[variant], FORMULAS[variant] = evaluate, formula
        return evaluate

    return register


def _softmax(natural: bool) -> Callable[[Rows], Elements]:
    def evaluate(r: Rows) -> Elements:
        return Exponentials(r, natural).part

    return evaluate


bound("softmax/naive", f"{_P}; {_TH[True]}")(_softmax(natural=True))
bound("softmax/shifted", f"{_P}; {_TH[False]}")(_softmax(natural=False))


def _with_maximum(r: Rows, a: Array) -> Array:
    """What m + log S may be off by where the logarithm is off by a."""
    k = r.k
    a = a + 3 * k.flushed
    return a + k.u * (np.abs(r.y) + a)


def _log1p_of_rest(r: Rows) -> Array:
    """A for log1p(s)."""
    k, e = r.k, Exponentials(r)
    terms = e.terms * r.whole + k.n * (k.z + k.term) + k.total
    off = _factor(k.h) * terms + _grown(k.h) * r.rest
    fits = (off < r.whole) & (r.rest + off <= k.limit)
    return _logged(r.log, np.where(fits, _lost_share(off / r.whole), inf), k)


def _logged(log: Array, reach: Array, k: Constants) -> Array:
    """What a logarithm of that size may be off by where its operand is off by exp(reach)."""
    return np.asarray(reach + k.k_log * k.u * (log + reach) + k.z_log)


def _per_row(size: Array, b: Array) -> Elements:
    return lambda part: (size[:, part], b[:, part])


@bound("logsumexp/naive", f"A = H - log1p(-eps) + k_l u (abs(L) + that); {_TH[True]}")
def _(r: Rows) -> Elements:
    return _per_row(np.abs(r.y), Exponentials(r, natural=True).log())


@bound("logsumexp/shifted", f"A + u (abs(L) + A), A = H - log1p(-eps) + k_l u (log S + that); {_TH[False]}")
def _(r: Rows) -> Elements:
    return _per_row(np.abs(r.y), _with_maximum(r, Exponentials(r).log()))


@bound("logsumexp/log1p", f"A + u (abs(L) + A), A = -log1p(-D/S) + k_l u (log S + that), D the error of s; {_TH[False]}")
def _(r: Rows) -> Elements:
    return _per_row(np.abs(r.y), _with_maximum(r, _log1p_of_rest(r)))


def _log_of_share(r: Rows, e: Exponentials, x: Array) -> tuple[Array, Array]:
    """(|l|, the bound) of log p of some logits."""
    p, b = e.share(x)
    log = np.abs(np.where(x > -inf, x - r.m, 0.0) - r.log)
    low = p - 4 * _LEAST
    share = np.divide(b, low, out=np.full(b.shape, inf), where=low > 0)
    return log, _logged(log, _lost_share(share), r.k)


_OF_P = "E = -log1p(-B_i/p_i), E + k_l u (abs(T) + E); B_i: the bound of p_i"


@bound("logsumexp/log_of_softmax", f"E + u (abs(L) + E); {_OF_P}")
def _(r: Rows) -> Elements:
    return _per_row(np.abs(r.y), _with_maximum(r, _log_of_share(r, Exponentials(r), r.m)[1]))


@bound("log_softmax/log_of_softmax", _OF_P)
def _(r: Rows) -> Elements:
    e = Exponentials(r)
    return lambda part: _log_of_share(r, e, r.columns(part)[0])


def _less_log(r: Rows, a: Array, natural: bool) -> Elements:
    """Of (x - m) - log S, or x - log S, where the logarithm is off by a."""
    k = r.k

    def elements(part: Part) -> tuple[Array, Array]:
        _, d, _ = r.columns(part)
        size = _representable(np.abs(d))
        b = a + 5 * k.flushed + (0.0 if natural else k.u * size)
        log = size + r.log
        return log, b + k.u * (log + b)

    return elements


@bound("log_softmax/naive", f"A + u (abs(T) + A), A = H - log1p(-eps) + k_l u (abs(L) + that); {_TH[True]}")
def _(r: Rows) -> Elements:
    return _less_log(r, Exponentials(r, natural=True).log(), natural=True)


@bound("log_softmax/shifted", "E + u (abs(T) + E), E = u abs(x_i - m) + A, A = H - log1p(-eps) + k_l u (log S + that)")
def _(r: Rows) -> Elements:
    return _less_log(r, Exponentials(r).log(), natural=False)


@bound("log_softmax/log1p", "E + u (abs(T) + E), E = u abs(x_i - m) + A, A = -log1p(-D/S) + k_l u (log S + that), D the error of s")
def _(r: Rows) -> Elements:
    return _less_log(r, _log1p_of_rest(r), natural=False)


def _weighted_loss(r: Rows, term: Callable[[Part], tuple[Array, Array]], skips: bool = True) -> Elements:
    """sum y_i l_i of terms (|l_i|, its bound); y_i = 0 gives exactly 0. skips: also where l_i is infinite; else that is NaN."""
    k = r.k

    def terms(part: Part) -> tuple[Array, Array]:
        y, (size, b) = r.weights(part), term(part)
        lost = (y == 0) & ~(b < inf) & (not skips)
        used = (y > 0) & (r.columns(part)[0] > -inf)
        y, size, b = np.where(used, y, 0.0), np.where(used, size, 0.0), np.where(used, b, 0.0)
        most = size + b
        off = np.where(most <= k.largest, y * b + k.u * (y * most) + k.flushed * most, inf)  # else it may saturate
        return y * size, np.where(lost, inf, np.where(used, off + k.least, 0.0))

    size = r.sum(lambda part: terms(part)[0])
    return _per_row(size, r.added(size, r.sum(lambda part: terms(part)[1])) + k.flushed)


def _loss_of_share(natural: bool) -> Callable[[Rows], Elements]:
    def evaluate(r: Rows) -> Elements:
        e = Exponentials(r, natural)
        if r.by_index:
            return _per_row(*_log_of_share(r, e, r.at_target()))
        return _weighted_loss(r, lambda part: _log_of_share(r, e, r.columns(part)[0]), skips=False)

    return evaluate


_WEIGHTED = "weights: sum y_i E_i + u y_i (l_i + E_i), and expm1(H) of all"
bound("cross_entropy/naive", f"{_OF_P}, by natural exponentials; {_WEIGHTED}")(_loss_of_share(natural=True))
bound("cross_entropy/log_of_softmax", f"{_OF_P}; {_WEIGHTED}")(_loss_of_share(natural=False))


def _fitting(r: Rows, a: Array) -> Array:
    """What m + log S is off by, infinite where it may overflow."""
    return np.where(np.abs(r.y) + a <= r.k.largest, a, inf)


def _less(r: Rows, a: Array) -> Callable[[Array], tuple[Array, Array]]:
    """(|l_i|, the bound) of L - x_i, L off by a."""
    k = r.k
    a = _fitting(r, a) + 3 * k.flushed

    def term(x: Array) -> tuple[Array, Array]:
        size = _representable(np.abs(x - r.m)) + r.log
        return size, a + k.u * (size + a)

    return term


def _loss_of(r: Rows, term: Callable[[Array], tuple[Array, Array]]) -> Elements:
    if r.by_index:
        return _per_row(*term(r.at_target()))
    return _weighted_loss(r, lambda part: term(r.columns(part)[0]))


@bound(
    "cross_entropy/fused",
    f"E = A_L + u (l + A_L), A_L = A + u (abs(L) + A), A = H - log1p(-eps) + k_l u (log S + that); {_WEIGHTED}",
)
def _(r: Rows) -> Elements:
    return _loss_of(r, _less(r, _with_maximum(r, Exponentials(r).log())))


def _targets(r: Rows) -> tuple[Array, Array, Of]:
    """Y, what the computed Y may be off by, and y of some columns."""
    if not r.by_index:
        k, total = r.k, r.sum(r.weights)
        return total, r.added(total, np.full(total.shape, k.n * k.flushed)), r.weights
    assert r.extra is not None
    target = r.extra.reshape(-1, 1)

    def one_hot(part: Part) -> Array:
        return np.asarray(np.arange(part.start, part.stop)[None, :] == target, dtype=np.float64)

    return np.ones(target.shape), np.zeros(target.shape), one_hot


def _gradient(r: Rows, p_of: Callable[[Part], tuple[Array, Array]]) -> Elements:
    """p_i Y - y_i of (p, its bound)."""
    k = r.k
    whole, off, y = _targets(r)

    def elements(part: Part) -> tuple[Array, Array]:
        p, b = p_of(part)
        size = np.abs(p * whole - y(part))
        if not r.by_index:
            b = whole * b + (off + k.flushed) * (p + b)
            if not k.fused:
                b = b + k.u * (p * whole + b) + k.least
        b = b + k.flushed
        return size, b + k.u * (size + b) + k.least

    return elements


@bound("cross_entropy_grad/fused", "G + u (abs(T) + G), G = B_i by index; weights: Y B_i + dY (p_i + B_i) + u (p_i Y + that)")
def _(r: Rows) -> Elements:
    return _gradient(r, Exponentials(r).part)


@bound(
    "cross_entropy_grad/chain_rule",
    "Y B_i + (p_i + B_i) ds + u y_i and roundings, ds = Y expm1(2 u' + H); none where y_i/p_i overflows",
)
def _(r: Rows) -> Elements:
    k, e = r.k, Exponentials(r)
    whole, _, y = _targets(r)

    def columns(part: Part) -> tuple[Array, Array, Array, Array]:
        p, b = e.part(part)
        low = p - b
        fits = (low > 0) & (y(part) <= k.largest / 4 * np.maximum(low, 0.0))
        fits &= p + b <= 2
        return y(part), p, b, np.where(fits | ((y(part) == 0) & (low > 0)), 0.0, inf)

    none = r.sum(lambda part: columns(part)[3])
    lost = (8 * k.least) * k.n
    off = r.added(whole, whole * _grown(2 * k.u1) + lost + none)
    dead = np.where(whole + off <= k.largest / 4, 0.0, inf)

    def elements(part: Part) -> tuple[Array, Array]:
        t, p, b, _ = columns(part)
        each = k.u * t + 3 * k.least * (1 + p) + whole * b + (p + b) * (off + k.flushed) + dead
        return np.abs(p * whole - t), each + _grown(2 * k.u1) * (t + p * whole + each) + 2 * k.least

    return elements


def _jacobian(natural: bool) -> Callable[[Rows], Elements]:
    def evaluate(r: Rows) -> Elements:
        k, e = r.k, Exponentials(r, natural)
        found = [e.part(part) for part in r.parts]
        p, b = (np.concatenate(values, axis=1) for values in zip(*found, strict=True))

        def elements(part: Part) -> tuple[Array, Array]:
            flat = np.arange(part.start, part.stop)
            i, j = flat // r.n, flat % r.n
            own, other = (p[:, i], b[:, i]), (p[:, j], b[:, j])
            beside = i == j
            size = np.where(beside, own[0] * (1 - own[0]), own[0] * other[0])
            off = np.where(
                beside, own[1] * np.abs(1 - 2 * own[0]) + own[1] ** 2, own[0] * other[1] + other[0] * own[1] + own[1] * other[1]
            )
            off = off + k.flushed
            return size, off + _grown(2 * k.u1) * (size + off) + k.least

        return elements

    return evaluate


bound("softmax_jacobian/naive", "p_i B_j + p_j B_i + B_i B_j, or B_i abs(1 - 2 p_i) + B_i^2; and 2 u'; by natural exponentials")(
    _jacobian(natural=True)
)
bound("softmax_jacobian/shifted", "p_i B_j + p_j B_i + B_i B_j, or B_i abs(1 - 2 p_i) + B_i^2; and 2 u'")(_jacobian(natural=False))


def _vjp(natural: bool) -> Callable[[Rows], Elements]:
    def evaluate(r: Rows) -> Elements:
        k, e = r.k, Exponentials(r, natural)

        def off(part: Part) -> Array:
            g, (p, b) = np.abs(r.weights(part)), e.part(part)
            return np.asarray(g * b + k.u * (g * (p + b)) + k.least + k.flushed * (p + b))

        mean = r.sum(lambda part: r.weights(part) * r.p(part))
        ds = r.added(r.sum(lambda part: np.abs(r.weights(part)) * r.p(part)), r.sum(off)) + k.flushed

        def elements(part: Part) -> tuple[Array, Array]:
            p, b = e.part(part)
            gap = np.abs(r.weights(part) - mean)
            dt = ds + k.flushed + k.u * (gap + ds)
            each = gap * b + (p + b) * np.where(gap + dt <= k.largest, dt, inf) + k.flushed
            return p * gap, each + k.u * (p * gap + each) + k.least

        return elements

    return evaluate


_VJP = "abs(g_i - s) B_i + (p_i + B_i) (ds + u (abs(g_i - s) + ds)), and u"
bound("softmax_vjp/naive", f"{_VJP}; by natural exponentials")(_vjp(natural=True))
bound("softmax_vjp/shifted", _VJP)(_vjp(natural=False))


# ---- sums and quotients by other ways --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Total:
    """A computed sum: S/unit' times a number in [1 - eps, 1 + eps] exp(+-h), unit >= 1/(the sum); eps is infinite where there is no
    bound. All (rows, 1)."""

    r: Rows
    eps: Array
    h: Array
    unit: Array

    def log(self) -> Array:
        """A: what the computed logarithm of the sum may be off by."""
        return _logged(self.r.log, self.h + _lost_share(self.eps), self.r.k)

    def quotient(self, part: Part, theta: Array, lost: Some, roundings: int = 1) -> Array:
        """B of exponentials known to exp(+-theta) and `lost`, divided by the sum."""
        k, left, more = self.r.k, 1 - self.eps, self.h + roundings * self.r.k.u1
        some = left > 0
        left = np.where(some, left, 1.0)
        b = (_off(self.r, part, theta + more) + self.r.p(part) * self.eps) / left
        return np.where(some, b + lost * _exp(more) * self.unit / left + roundings * k.least + 4 * _LEAST, inf)


def _logits(r: Rows) -> Array:
    """All of them, (rows, n)."""
    return np.concatenate([r.columns(part)[0] for part in r.parts], axis=1)


def _off(r: Rows, part: Part, theta: Array) -> Array:
    """p_j expm1(theta_j)."""
    _, d, e = r.columns(part)
    return np.asarray(np.where(theta < _MOST, e * _expm1(theta), _exp(d + theta)) / r.whole)


def _theta(k: Constants, gap: Array, times: Some = 1.0) -> Array:
    """v (kappa gap + times c) + times slip: of so many exponentials of differences that add up to the gap; 0 for no gap."""
    return np.where(gap > 0, k.v * (k.kappa * np.minimum(gap, 2.0**1000) + k.c * times) + k.slip * times, 0.0)


def _total(r: Rows, theta: Of, lost: Some, h: Some, low: Some = 0.0, high: Some = 0.0) -> Total:
    """The sum of exponentials known to exp(+-theta) and, all together, `lost`; in exact arithmetic between S exp(low) and
    S exp(high)."""
    h, low, high = (np.broadcast_to(np.asarray(each, dtype=np.float64), r.y.shape) for each in (h, low, high))
    unit = _exp(-low) / r.whole
    eps = r.sum(lambda part: _off(r, part, theta(part))) + lost * unit
    fits = (eps < 1) & (r.whole * _exp(high) * (1 + eps) * _exp(h) <= r.k.limit)
    return Total(r, np.where(fits, eps, inf), h, unit)


def _underflow(k: Constants) -> float:
    """What n exponentials and their plain sum lose absolutely."""
    return k.n * (k.z + k.term) + k.total * _factor(k.h)


def _distances(r: Rows) -> Of:
    """th_j of shifted exponentials."""
    return lambda part: _theta(r.k, -r.columns(part)[1])


def _quotients(total: Total, theta: Of, lost: float, roundings: int = 1) -> Elements:
    return lambda part: (total.r.p(part), total.quotient(part, theta(part), lost, roundings))


@bound("softmax/reciprocal", "p_i (expm1(th_i + H + 2 u') + eps) / (1 - eps) + underflow, also of 1/S times exp(x_i - m)")
def _(r: Rows) -> Elements:
    k, theta = r.k, _distances(r)
    total = _total(r, theta, _underflow(k), k.h)
    fits = _exp(total.h) * 2 <= k.largest * (1 - total.eps) * r.whole  # 1/S does not overflow

    def elements(part: Part) -> tuple[Array, Array]:
        p, each = r.p(part), theta(part)
        numerator = (p + _off(r, part, each)) * r.whole + k.z
        b = total.quotient(part, each, k.z, 2) + 2 * numerator * k.least
        return p, np.where(fits, b, inf)

    return elements


@bound("softmax/max_left_out", "p_i (expm1(th_i + 2 u') + D/S) / (1 - D/S) + underflow, D the error of the others' sum")
def _(r: Rows) -> Elements:
    k, theta = r.k, _distances(r)
    shares = r.sum(lambda part: _off(r, part, theta(part)))
    off = _factor(k.h) * (shares + _underflow(k) / r.whole) + _grown(k.h) * (r.rest / r.whole)
    fits = (off < 1) & (r.whole * (1 + off) * (1 + k.u1) <= k.limit)
    total = Total(r, np.where(fits, off, inf), np.full_like(r.y, k.u1), 1 / r.whole)
    return _quotients(total, theta, k.z)


def _subtractive(r: Rows, a: Array) -> Elements:
    """exp(x_i - L), L off by a."""
    k = r.k

    def elements(part: Part) -> tuple[Array, Array]:
        gap = np.minimum(r.log - r.columns(part)[1], 2.0**1000) + a
        gap = np.where(_holds(k, gap), gap, inf)
        theta = a + k.v * (k.kappa * gap + k.c) + k.slip
        return r.p(part), _off(r, part, theta) + k.z + 4 * _LEAST

    return elements


_SUBTRACTED = "p_i expm1(A_L + v (kappa (abs(x_i - L) + A_L) + c)) + z"


@bound("softmax/subtractive_naive", f"{_SUBTRACTED}, A_L the bound of logsumexp/naive")
def _(r: Rows) -> Elements:
    return _subtractive(r, Exponentials(r, natural=True).log())


@bound("softmax/subtractive", f"{_SUBTRACTED}, A_L the bound of logsumexp/log1p")
def _(r: Rows) -> Elements:
    return _subtractive(r, _fitting(r, _with_maximum(r, _log1p_of_rest(r))))


def _of_base(r: Rows, base: Array) -> Elements:
    """exp(x_i - b) over their sum."""

    def theta(part: Part) -> Array:
        return _theta(r.k, np.abs(r.columns(part)[0] - base))

    above = r.m - base
    fits = _holds(r.k, np.maximum(np.abs(above), np.abs(above - r.gap)))
    return _quotients(_total(r, theta, np.where(fits, _underflow(r.k), inf), r.k.h, above, above), theta, r.k.z)


def _constant(k: Constants, value: float) -> float:
    """A number as the arithmetic has it."""
    return float(widen(round_array(np.array(value), FORMATS[k.of.format])))


_BASE = f"{_P}, eps = sum p_j expm1(th_j) + n z / sum exp(x_j - b), th_i = v (kappa abs(x_i - b) + c)"


@bound("softmax/chosen_shift", f"{_BASE}, b = -c")
def _(r: Rows, c: float = -10.0) -> Elements:
    return _of_base(r, np.full_like(r.m, -_constant(r.k, c)))


@bound("softmax/wrong_shift", f"{_BASE}, b = max(m, 0)")
def _(r: Rows) -> Elements:
    return _of_base(r, np.maximum(r.m, 0.0))


@bound("softmax/finite_sentinel", f"{_BASE}, b = max(m, start)")
def _(r: Rows, start: float = -1e4) -> Elements:
    return _of_base(r, np.maximum(r.m, _constant(r.k, max(start, -r.k.largest))))


_LN2 = 0.6931471805599453


@bound(
    "softmax/exp2_scaled",
    f"{_P}; th_i = u abs(d_i) + P + u ((1 + u) abs(d_i) + G + P) + c v, G = u (1 + u) abs(m), P = u (1 + u) abs(x_i), 0 for an fma",
)
def _(r: Rows) -> Elements:
    k = r.k
    shift = k.u * (1 + k.u) * np.abs(r.m) + 2 * (k.least + k.flushed)

    def theta(part: Part) -> Array:
        x, d, _ = r.columns(part)
        x, d = (np.minimum(np.abs(each), 2.0**1000) for each in (x, d))
        product = 0.0 if k.fused else k.u * (1 + k.u) * x
        summed = d * (1 + k.u) + shift + product
        return np.asarray(k.u * d + product + k.u * summed + k.c * k.v + 2 * k.least + 4 * k.flushed)

    fits = np.abs(r.m) * 1.4427 * (1 + 3 * k.u) <= k.largest
    fits &= _holds(k, np.maximum(r.gap + shift, r.extent), scaled=True)
    shift = np.where(fits, shift, inf)
    return _quotients(_total(r, theta, _underflow(k), k.h, -shift, shift), theta, k.z)


@bound("softmax/offset", f"{_P}, z / 2^offset for z; th_i = ((1 + u)^4 - 1) abs(d_i) + u offset log 2 + c v, an fma: (1 + u)^3")
def _(r: Rows, offset: float = 8.0) -> Elements:
    k, high = r.k, _constant(r.k, offset) * _LN2
    power = 4 * k.u1 * (1 + k.u) - (k.u if k.fused else 0.0)  # (1 + u)^4 - 1 <= 4 u' (1 + u)

    def theta(part: Part) -> Array:
        d = np.minimum(-r.columns(part)[1], 2.0**1000)
        return np.where(d > 0, power * d + k.u * high + 4 * k.least + 8 * k.flushed, 0.0) + k.c * k.v

    lost = np.where(_holds(k, r.gap, scaled=True), _underflow(k), inf)
    return _quotients(_total(r, theta, lost, k.h, high, high), theta, k.z)


def _stored(k: Constants, name: str) -> tuple[float, float]:
    """What a number is off by that was stored in a format: relatively, as a logarithm, and absolutely."""
    fmt, kept = FORMATS[k.of.format], FORMATS[name]
    share = kept.unit_roundoff / (1 - kept.unit_roundoff) if kept.precision < fmt.precision else 0.0
    least = _half(kept) if kept.smallest_subnormal > fmt.smallest_subnormal else 0.0
    return share, least + (kept.smallest_normal + fmt.smallest_normal) * k.of.flush


def _storing(r: Rows, name: str, summed: bool) -> Elements:
    k, theta = r.k, _distances(r)
    share, least = _stored(k, name)
    z = k.z * (1 + share) + least

    def stored(part: Part) -> Array:
        return theta(part) + np.where(r.columns(part)[1] < 0, share, 0.0)

    total = _total(r, stored if summed else theta, k.n * ((z if summed else k.z) + k.term) + k.total * _factor(k.h), k.h)
    return _quotients(total, stored, z)


@bound(
    "softmax/stored_16_bit",
    f"{_P}; th_i = v (kappa abs(x_i - m) + c) + u_s / (1 - u_s), u_s that of the stored format; z with its own",
)
def _(r: Rows, stored: str = "bfloat16") -> Elements:
    return _storing(r, stored, summed=True)


@bound(
    "softmax/stored_after_sum", f"{_P}, th_i + u_s / (1 - u_s) for th_i but in eps, u_s that of the stored format; z with its own"
)
def _(r: Rows, stored: str = "bfloat16") -> Elements:
    return _storing(r, stored, summed=False)


class Rescaled:
    """Exponentials of tiles of a size, less the largest logit so far, and the recurrence s = s f + (the sum of a tile).

    spread: how far above what is subtracted a logit may lie, (rows, 1). later: rescalings after each tile, (rows, tiles). held: the
    most that s can be there. step: the relative error of a rescaling, as a logarithm. largest: the largest magnitude of a maximum.
    """

    def __init__(self, r: Rows, size: int, spread: Some = 0.0, kappa: int = 0) -> None:
        self.r, self.k, self.size, self.kappa = r, r.k, size, kappa or r.k.kappa
        starts = np.arange(0, r.n, size)
        tops = np.maximum.accumulate(np.maximum.reduceat(_logits(r), starts, axis=1), axis=1)
        moved = np.diff(tops, axis=1, prepend=tops[:, :1]) > 0
        moved[:, 1:] |= (tops[:, :-1] == -inf) & (tops[:, 1:] > -inf)
        self.tiles, self.moves = len(starts), moved.sum(axis=1, keepdims=True)
        self.later = self.moves - np.cumsum(moved, axis=1)
        self.spread = np.where(self.moves > 0, np.minimum(spread, r.m - tops[:, :1]), 0.0)
        count = np.minimum(np.cumsum(np.full(tops.shape, size), axis=1), r.n)
        self.largest = np.where(np.isfinite(tops), np.abs(tops), 0.0).max(axis=1, keepdims=True)
        share = min(1.0, r.k.v * self.kappa)  # exp(-d (1 - share)) <= (1 - share) exp(-d) + share
        held = np.minimum(count, r.whole * _exp(r.m - tops))
        self.held = ((1 - share) * held + share * count) * _exp(self.spread)
        self.before = _tree(np.where(moved, np.roll(self.held, 1, axis=1), 0.0))

    def after(self, part: Part) -> Array:
        """Rescalings after the tiles of some columns."""
        return np.asarray(self.later[:, np.arange(part.start, part.stop) // self.size])

    def theta(self, part: Part) -> Array:
        """th_j, with the factors."""
        return _theta(self.k, -self.r.columns(part)[1] + 2 * self.spread, 1 + self.after(part))

    def total(self, theta: Of, term: float, tile: tuple[float, float], low: Some, step: Some) -> Total:
        """The sum of terms that lose `term` absolutely; a tile's plain sum: its H, and what it loses."""
        k, n = self.k, self.r.n
        fmt, acc = FORMATS[k.of.format], FORMATS[k.of.accumulator]
        coarser = acc.unit_roundoff / (1 - acc.unit_roundoff)
        each = (0.0 if k.fused else coarser) + (coarser if acc.precision < fmt.precision else 0.0)
        h = tile[0] + summing("sequential", self.tiles, acc) + self.moves * each
        h = h + (coarser if acc.precision < fmt.precision else 0.0) + (k.u1 if fmt.precision < acc.precision else 0.0)
        least = _half(acc) + acc.smallest_normal * k.of.flush
        self.growth = _exp(h + (step + k.slip) * (self.moves + 1) + 2 * k.v * self.kappa * self.spread + self.moves * k.u1)
        plain = n * (term + k.term) + self.tiles * (tile[1] + k.term) + self.moves * least
        z = k.z + k.term
        room = 1 - z * self.growth * self.moves
        lost = np.where(room > 0, (plain + z * self.growth * self.before) / np.where(room > 0, room, 1.0), inf)
        most = self.growth * (self.held.max(axis=1, keepdims=True) + lost)
        of_tile = self.growth * (np.minimum(self.held, min(self.size, n) * _exp(self.spread)).max(axis=1, keepdims=True) + lost)
        fits = (most <= acc.largest) & (of_tile <= k.limit) & (k.v * self.kappa <= 1)
        lost = np.where(fits, self.growth * (lost + k.total), inf)
        return _total(self.r, theta, lost, h, low, self.spread)

    def plain(self) -> Total:
        """The sum by tiles, and theirs by the summation."""
        return self.total(self.theta, self.k.z, _sum_of(self.r, self.size), 0.0, self.k.v * self.k.c)


def _sum_of(r: Rows, size: int) -> tuple[float, float]:
    """H and the absolute loss, but for its terms', of the sums of a row's tiles of a size, the last of which may be smaller."""
    found = [constants(r.k.of, count) for count in (min(size, r.n), (r.n - 1) % size + 1)]
    return max(k.h for k in found), max(k.total for k in found)


def _online(r: Rows) -> Total:
    scaled = Rescaled(r, 1)
    return scaled.total(scaled.theta, r.k.z, (0.0, 0.0), 0.0, r.k.v * r.k.c)


_RESCALED = "th_j = v (kappa abs(d_j) + c (1 + R_j)), R_j the rescalings after j; H with one more rounding for each"


@bound("softmax/online", f"{_P}; th_i = v (kappa abs(d_i) + c); in eps {_RESCALED}")
def _(r: Rows) -> Elements:
    return _quotients(_online(r), _distances(r), r.k.z)


def _tiles(r: Rows, tile: int, rise: float) -> Elements:
    scaled = Rescaled(r, tile, rise)
    total = scaled.plain()

    def elements(part: Part) -> tuple[Array, Array]:
        after = scaled.after(part)
        lost = scaled.growth * (r.k.z + after * (r.k.z * _exp(scaled.spread) + r.k.least))
        return r.p(part), total.quotient(part, scaled.theta(part) + after * r.k.u1, lost)

    return elements


@bound("softmax/tiled", f"{_P}, and R_i u' besides th_i; {_RESCALED}")
def _(r: Rows, tile: float = 128) -> Elements:
    return _tiles(r, int(tile), 0.0)


@bound(
    "softmax/tiled_scaled",
    f"{_P}, and R_i u' besides th_i; th_j = 3 v abs(d_j) + (1 + u) (G + P) + (1 + R_j) c v, R_j the rescalings after j,"
    " G = P = u (1 + u) max abs(m_b), P = 0 for an fma",
)
def _(r: Rows, tile: float = 128) -> Elements:
    k, scaled = r.k, Rescaled(r, int(tile), kappa=3)
    slip = 2 * k.least + 4 * k.flushed
    shift = k.u * (1 + k.u) * scaled.largest + slip
    fits = scaled.largest * 1.4427 * (1 + 3 * k.u) <= k.largest
    fits &= _holds(k, np.maximum(r.gap + shift, r.extent), scaled=True)
    apart = np.where(fits, (1 + k.u) * (shift + (0.0 if k.fused else k.u * (1 + k.u) * scaled.largest)), inf)

    def theta(part: Part) -> Array:
        gap = np.minimum(-r.columns(part)[1], 2.0**1000)
        return np.asarray(3 * k.v * gap + apart + (1 + scaled.after(part)) * (k.v * k.c + slip))

    total = scaled.total(theta, k.z, _sum_of(r, scaled.size), 0.0, k.v * k.c + slip + apart)

    def elements(part: Part) -> tuple[Array, Array]:
        after = scaled.after(part)
        return r.p(part), total.quotient(part, theta(part) + after * k.u1, scaled.growth * (k.z + after * (k.z + k.least)))

    return elements


@bound("softmax/lazy_rescale", f"{_P}, and R_i u' besides th_i; abs(d_j) + 2 threshold log 2 for abs(d_j); {_RESCALED}")
def _(r: Rows, tile: float = 128, threshold: float = 4.0) -> Elements:
    k, rise = r.k, threshold * _LN2
    fits = rise * (1 + k.u) < k.largest
    return _tiles(r, int(tile), rise * (1 + 4 * k.u) + 2 * k.least + 4 * k.flushed if fits else inf)


def _merged(r: Rows, parts: float) -> Total:
    k, size = r.k, -(-r.n // int(parts))
    starts = np.arange(0, r.n, size)
    tops = np.maximum.reduceat(_logits(r), starts, axis=1)
    whole, (h, lost) = constants(k.of, len(starts)), _sum_of(r, size)
    h = h + k.u1 + whole.h
    growth = _exp(np.full_like(r.y, h + 2 * (k.v * k.c + k.slip)))
    held = np.minimum(size, r.whole * _exp(r.m - tops))
    plain = size * (k.z + k.term) + lost
    fits = (growth * (held + plain) <= k.limit).all(axis=1, keepdims=True) & (k.v * k.kappa <= 1)
    each = plain + k.z * growth * (held + plain) + k.least + k.term
    all_lost = np.where(fits, growth * (_tree(each) + whole.total), inf)
    return _total(r, lambda part: _theta(k, -r.columns(part)[1], 2), all_lost, h)


_MERGED = "th_j = v (kappa abs(d_j) + 2 c), H of a part, of the parts, and u'"


@bound("softmax/split_merge", f"{_P}; th_i = v (kappa abs(d_i) + c); in eps {_MERGED}")
def _(r: Rows, parts: float = 2) -> Elements:
    return _quotients(_merged(r, parts), _distances(r), r.k.z)


def _of_log(r: Rows, total: Total) -> Elements:
    return _per_row(np.abs(r.y), _with_maximum(r, total.log()))


@bound("logsumexp/online", f"A + u (abs(L) + A), A = H - log1p(-eps) + k_l u (log S + that); {_RESCALED}")
def _(r: Rows) -> Elements:
    return _of_log(r, _online(r))


@bound("logsumexp/split_merge", f"A + u (abs(L) + A), A = H - log1p(-eps) + k_l u (log S + that); {_MERGED}")
def _(r: Rows, parts: float = 2) -> Elements:
    return _of_log(r, _merged(r, parts))


bound("logsumexp/guarded", FORMULAS["logsumexp/shifted"])(BOUNDS["logsumexp/shifted"])


@bound("logsumexp/logaddexp", "(1 + u)^n sum_j (A + u (abs(L_j) + A)), A the most that log1p(exp(-g)) is off by; masked logits: 0")
def _(r: Rows) -> Elements:
    k, x = r.k, _logits(r)
    share, all_off = k.v * k.kappa, k.v * k.c + k.slip
    d = _grown(all_off) + _factor(all_off) * share / (2.718 * (1 - share)) + k.z if share < 1 else inf
    a = d + k.k_log * k.u * (_LN2 + d) + k.z_log + 4 * k.flushed
    tops = np.maximum.accumulate(x, axis=1)
    count = np.cumsum(x > -inf, axis=1)
    size = np.maximum(np.abs(tops), np.abs(tops + _log1p(np.maximum(count, 1) - 1.0)))
    steps = np.where((x > -inf) & (count > 1), a + k.u * (size + a), 0.0)
    off = _tree(steps) * _factor(k.n * k.u)
    most = np.where(count > 0, size, 0.0).max(axis=1, keepdims=True)
    fits = (most + off <= k.largest) & _holds(k, r.gap + r.log + off)
    return _per_row(np.abs(r.y), np.where(fits, off, inf))


@bound(
    "softmax/two_pass",
    f"{_P}; th_i = what x_i - n log 2 is off by, n = rint(x_i log2 e), and 2 c v + u'; in eps R_j c v besides, R_j the maxima after"
    " j; H with one more rounding for each",
)
def _(r: Rows) -> Elements:
    k, fmt = r.k, FORMATS[r.k.of.format]
    low = 2.0 ** -(fmt.precision // 2 + 1)
    exact = 2.0 ** (fmt.precision - fmt.precision // 2 - 1)
    kept, least = 0.6932, k.least + 2 * k.flushed

    def reduced(part: Part) -> tuple[Array, Array]:
        """abs(x - n log 2), and what it is off by."""
        x = r.columns(part)[0]
        size = np.where(x > -inf, np.abs(x), 0.0)
        rest = kept / 2 + k.u * (2 + k.u) * size + least
        n = (rest + size) / 0.693
        first = np.where(k.fused | (n <= exact), 0.0, k.u * n * kept + least)
        first = first + k.u * (rest + n * low + first) + least
        second = first + n * low * k.u + (0.0 if k.fused else k.u * n * low * (1 + k.u) + least)
        off = second + k.u * (rest + second) + least
        off = np.where(size * 1.4427 * (1 + 3 * k.u) <= k.largest, off, inf)
        return rest, off

    spread = r.largest(lambda part: np.where(np.isfinite(sum(reduced(part))), sum(reduced(part)), inf))
    far = r.sum(lambda part: np.where(sum(reduced(part)) <= 2, 0.0, inf))
    spread = np.where(far == 0, spread, inf)
    scaled = Rescaled(r, 1)
    scaled.spread = spread
    scaled.held = scaled.held * _exp(spread)
    scaled.before = scaled.before * _exp(spread)

    def theta(part: Part) -> Array:
        rest, off = reduced(part)
        distance = -r.columns(part)[1] + 2 * spread
        gap = np.where(distance / 0.693 <= 2.0**fmt.precision, 0.0, k.u * np.minimum(distance, 2.0**1000))
        return off + k.v * (k.natural_kappa * (rest + off) + k.c) + k.natural_slip + k.u1 + gap + k.v * k.c

    lost = 16 * k.z + k.least
    total = scaled.total(lambda part: theta(part) + k.v * k.c * scaled.after(part), lost, (0.0, 0.0), -spread, k.v * k.c)
    return _quotients(total, theta, lost)


@bound("softmax/masked_zero", FORMULAS["softmax/shifted"])
def _(r: Rows) -> Elements:
    return Exponentials(r).part


def _masked(r: Rows, value: float) -> Elements:
    """Softmax of a row in which a number stands for -inf."""
    x = _logits(r)
    of = Rows(np.where(x == -inf, value, x), None, r.k)
    e = Exponentials(of)
    weight = np.count_nonzero(x == -inf, axis=1, keepdims=True) * _exp(value - r.m)
    taken = np.where(weight < inf, weight / (r.whole + weight), 1.0)

    def elements(part: Part) -> tuple[Array, Array]:
        p = r.p(part)
        found, b = e.part(part)
        return p, b + np.where(r.columns(part)[0] == -inf, found, p * taken)

    return elements


_MASKED = f"{_P} of the row with the number in it, and what that changes"


@bound("softmax/masked_lowest", _MASKED)
def _(r: Rows) -> Elements:
    return _masked(r, -r.k.largest)


@bound("softmax/masked_value", _MASKED)
def _(r: Rows, mask: float = -1e9) -> Elements:
    k, value = r.k, _constant(r.k, mask)
    lowest = -k.largest if k.of.saturates and FORMATS[k.of.format].bits == 8 else -inf
    return _masked(r, value if value > -inf else lowest)


# ---- losses and gradients by other ways --------------------------------------------------------------------------------


@bound("log_softmax/subtractive", "A_L + u (abs(T) + A_L), A_L the bound of logsumexp/shifted")
def _(r: Rows) -> Elements:
    term = _less(r, _with_maximum(r, Exponentials(r).log()))
    return lambda part: term(r.columns(part)[0])


@bound("cross_entropy/split", f"E + u (l + E), E = u abs(x_t - m) + A, A = H - log1p(-eps) + k_l u (log S + that); {_WEIGHTED}")
def _(r: Rows) -> Elements:
    k, a = r.k, Exponentials(r).log()

    def term(x: Array) -> tuple[Array, Array]:
        d = _representable(np.abs(x - r.m))
        b = a + 5 * k.flushed + k.u * d
        return d + r.log, b + k.u * (d + r.log + b)

    return _loss_of(r, term)


@bound("cross_entropy/chunked", f"as cross_entropy/fused; {_RESCALED}; {_WEIGHTED}")
def _(r: Rows, tile: float = 128) -> Elements:
    return _loss_of(r, _less(r, _with_maximum(r, Rescaled(r, int(tile)).plain().log())))


@bound("cross_entropy/log1p_of_others", "-log1p(-D/(1 + s)) + k_l u (l + that), s = sum exp(x_j - x_t) off by D; weights: as fused")
def _(r: Rows) -> Elements:
    if not r.by_index:
        return BOUNDS["cross_entropy/fused"](r)
    k, t = r.k, r.at_target()
    loss = _representable(r.m - t) + r.log
    assert r.extra is not None
    target = r.extra.reshape(-1, 1)

    def others(part: Part) -> Array:
        return np.where(np.arange(part.start, part.stop)[None, :] == target, 0.0, r.p(part))

    def theta(part: Part) -> Array:
        return _theta(k, np.abs(r.columns(part)[0] - t))

    off = r.sum(lambda part: _off(r, part, theta(part))) + _underflow(k) * _exp(-loss)
    off = _factor(k.h) * off + _grown(k.h) * r.sum(others)
    fits = _exp(loss) * (1 + off) <= k.limit
    return _per_row(loss, _logged(loss, np.where(fits, _lost_share(off), inf), k))


@bound("cross_entropy_grad/others", "B_i, at the target sum B_j and expm1(H) sum (p_j + B_j); weights: as fused")
def _(r: Rows) -> Elements:
    if not r.by_index:
        return BOUNDS["cross_entropy_grad/fused"](r)
    k, e = r.k, Exponentials(r)
    _, _, one_hot = _targets(r)

    def others(part: Part, which: int) -> Array:
        return np.where(one_hot(part) > 0, 0.0, e.part(part)[which])

    rest = r.sum(lambda part: others(part, 0))
    at_target = r.added(rest, r.sum(lambda part: others(part, 1)))

    def elements(part: Part) -> tuple[Array, Array]:
        (p, b), here = e.part(part), one_hot(part) > 0
        return np.where(here, rest, p), np.where(here, at_target, b) + k.flushed

    return elements


def _kept(b: tuple[Array, Array], k: Constants, name: str) -> tuple[Array, Array]:
    """What a number is off by when it was stored as well."""
    (size, off), (share, least) = b, _stored(k, name)
    return size, np.where(size + off <= FORMATS[name].largest, off + share * (size + off) + least, inf)


@bound("cross_entropy_grad/in_place_16_bit", "as fused, of p stored; then u_s (abs(T) + that), u_s of bfloat16, or 0")
def _(r: Rows) -> Elements:
    e = Exponentials(r)
    found = _gradient(r, lambda part: _kept(e.part(part), r.k, "bfloat16"))
    return lambda part: _kept(found(part), r.k, "bfloat16")


@bound(
    "cross_entropy_grad/saved_16_bit_logs",
    "as fused, of p_i expm1(E_i + v (kappa_n (abs(l_i) + E_i) + c)) + z, E_i of log_softmax/shifted and u_s (abs(l_i) + that)",
)
def _(r: Rows) -> Elements:
    k, logs = r.k, BOUNDS["log_softmax/shifted"](r)

    def p_of(part: Part) -> tuple[Array, Array]:
        size, off = _kept(logs(part), k, "bfloat16")
        theta = off + k.v * (k.natural_kappa * (size + off) + k.c) + k.natural_slip
        return r.p(part), _off(r, part, theta) + k.z + 4 * _LEAST

    return _gradient(r, p_of)


REASONS = {
    "log_softmax/log_with_eps": "no bound: the logarithm of p + eps is another function, however well it is computed",
    "cross_entropy/log_with_eps": "no bound: the logarithm of p + eps is another function, however well it is computed",
    "cross_entropy/clipped": "no bound: the logarithm of a clipped p is another function, however well it is computed",
}
"""Why a variant has no bound."""


# ---- what callers take -----------------------------------------------------------------------------------------------


class Allowed:
    """The tolerances of some rows for one op, some columns at a time.

    chosen: tolerances, the first of which declares something. logits, extra: as for Rows.
    """

    def __init__(self, chosen: Sequence[Tolerance], logits: Array, extra: Array | None) -> None:
        self._op = chosen[0].declared[0].variant.split("/")[0]
        self._factors = [tolerance.factor for tolerance in chosen]
        first = Rows(logits, extra, constants(chosen[0].declared[0], logits.shape[1]))
        self._of, self._rows = first, len(logits)
        arithmetics = {replace(chosen[0].declared[0], variant=""): first}
        known: dict[Declared, Elements | None] = {}
        with np.errstate(all="ignore"):
            for k in (k for tolerance in chosen for k in tolerance.declared):
                if k not in known:
                    r = arithmetics.setdefault(replace(k, variant=""), first.under(k))
                    known[k] = None if k.params else _evaluated(k.variant, r)
        self._elements = [[(known[k], constants(k, first.n)) for k in tolerance.declared] for tolerance in chosen]

    def part(self, which: int, start: int, stop: int) -> Array:
        """factor B of one of the tolerances for the columns from start to stop of the output, (rows, columns) of binary64;
        infinite: none."""
        found = [self._bound(elements, k, start, stop) for elements, k in self._elements[which]]
        if len(found) == 1 and self._factors[which] == 1.0:
            return found[0]
        if not found:
            return np.zeros((self._rows, stop - start))
        known = np.max([np.where(b < inf, b, -inf) for b in found], axis=0)
        return np.where(known > -inf, known * self._factors[which], inf)

    def _bound(self, elements: Elements | None, k: Constants, start: int, stop: int) -> Array:
        if elements is None:
            return np.full((self._rows, stop - start), inf)
        with np.errstate(all="ignore"):
            size, b = elements(slice(start, stop))
            fits = (size + b) * _INFLATION <= k.ceiling  # so that it is delivered as a number
            b = (b + k.u_out * (size + b) + k.least_out) * _INFLATION + _LEAST
            if k.ends < inf:
                b = np.where(_holds(k, self._of.gap), b, inf)
            return np.where((b < inf) & fits, b, inf)  # a NaN is none either

    def condition(self) -> Array:
        """The condition number of each row, relative to its largest logit, shape (rows,): 0 without a truth, and
        for ops that are not CONDITIONED. With x_max = max abs(x_i) over the finite logits, and in the largest norm:

        logsumexp  x_max / abs(y);  cross_entropy  x_max sum_i abs(p_i Y - y_i) / l
        log_softmax  2 x_max (1 - min p) / max abs(l_i);  softmax, cross_entropy_grad  2 x_max Y max p_i (1 - p_i) / max abs(T_i),
        where p (1 - p) is largest for the largest p: the others are below 1 - p
        """
        r = self._of
        x_max = r.extent + 0.0  # no -0
        with np.errstate(all="ignore"):
            if self._op == "logsumexp":
                share, size = np.ones_like(r.y), np.abs(r.y)
            elif self._op == "cross_entropy":
                whole, _, y = _targets(r)
                share = r.sum(lambda part: np.abs(r.p(part) * whole - y(part)))
                size = _loss(r)
            elif self._op == "log_softmax":
                share, size = 2 * (1 - _exp(-r.gap) / r.whole), r.gap + r.log
            elif self._op == "softmax":
                share, size = 2 * (1 / r.whole) * (r.rest / r.whole), 1 / r.whole
            elif self._op == "cross_entropy_grad":
                whole, _, y = _targets(r)
                share = 2 * whole * (1 / r.whole) * (r.rest / r.whole)
                size = r.largest(lambda part: np.abs(r.p(part) * whole - y(part)))
            else:
                return np.zeros(len(r.m))
            found = share * (x_max / size)
        return np.where(r.dead | np.isnan(found), 0.0, found)[:, 0]


def _loss(r: Rows) -> Array:
    """The cross-entropy of each row, (rows, 1)."""
    if r.by_index:
        return np.asarray((r.m - r.at_target()) + r.log)

    def terms(part: Part) -> Array:
        y = r.weights(part)
        return np.where(y > 0, y * (r.log - r.columns(part)[1]), 0.0)

    return r.sum(terms)


def allowed(chosen: Sequence[Tolerance], logits: Array, extra: Array | None, width: int) -> list[Array]:
    """factor B of each tolerance for one row of logits, shape (n,), with its targets or grad_output: shape (width,) each."""
    found = Allowed(chosen, logits[None], None if extra is None else np.asarray(extra)[None])
    starts = range(0, width, CHUNK)
    return [np.concatenate([found.part(i, s, min(s + CHUNK, width))[0] for s in starts]) for i in range(len(chosen))]


def bounded(op: str) -> tuple[str, ...]:
    """The variants of an op that have a bound, by their plain names."""
    return tuple(name.removeprefix(f"{op}/") for name in BOUNDS if name.startswith(f"{op}/"))


def rule(variant: str, params: bool = False) -> str:
    """A variant's bound in words, or why there is none; params: whether those change what it computes."""
    plain, _ = _split(variant)
    return "no bound is known with these params" if params else FORMULAS.get(plain, REASONS.get(plain, "no bound is known"))


def _split(variant: str) -> tuple[str, dict[str, float | str]]:
    """A variant's plain name, and the parameters that stand in its name."""
    plain, _, rest = variant.removesuffix(")").partition("(")
    pairs = [part.split("=") for part in rest.split(", ") if part]
    return plain, {key: value if value in FORMATS else float(value) for key, value in pairs}


def _evaluated(variant: str, r: Rows) -> Elements | None:
    """A variant's bound of some rows, if it has one."""
    plain, parameters = _split(variant)
    found = BOUNDS.get(plain) or NORMWISE.get(plain)
    return found(r, **parameters) if found else None


NORMWISE: dict[str, Callable[..., Elements]] = {
    "logsumexp/normwise": lambda r: _per_row(np.abs(r.y), r.k.u * (np.abs(r.y) + r.k.n + 1)),
    "softmax/normwise": lambda r: lambda part: (r.p(part), np.broadcast_to(r.k.u * (r.k.n + 3) / r.whole, r.p(part).shape)),
}
"""The leading terms that Blanchard, Higham and Higham code (doi 10.1093/imanum/draa038, theorems 3.2, 3.3), relative to the largest
result of a row. No bounds: terms of second order, underflow and the distances of the logits are left out."""


# ---- elementary functions, the same bits everywhere ------------------------------------------------------------------


def _factor(a: float) -> float:
    return exp(a) if a < _MOST else inf


def _grown(a: float) -> float:
    return expm1(a) if a < _MOST else inf


def _representable(size: Array) -> Array:
    """Infinite, so that there is no bound, where binary64 may overflow."""
    return np.where(size < 2.0**1020, size, inf)


def _lost_share(share: Array) -> Array:
    """An upper bound of -log1p(-share); infinite from 1 on."""
    return np.where(share < 1, share + share**2 / (2 * np.where(share < 1, 1 - share, 1.0)), inf)


def _tree(values: Array) -> Array:
    """Row sums (rows, 1): of 64 columns, one after the other, then halves added to halves."""
    rows, n = values.shape
    if n > 2 * _COLUMNS:
        even = n - n % _COLUMNS
        folded = np.add.reduce(values[:, :even].reshape(rows, -1, _COLUMNS), axis=1)
        folded[:, : n - even] += values[:, even:]
        values = folded
    while (n := values.shape[1]) > 1:
        half = n // 2
        folded = values[:, :half] + values[:, half : 2 * half]
        if n % 2:
            folded[:, :1] += values[:, -1:]
        values = folded
    return values


_COLUMNS = 64
_STEPS = 64
_LN2_HIGH = float.fromhex("0x1.62e42fefa0000p-7")
_LN2_LOW = float.fromhex("0x1.cf79abc9e3b39p-46")


@cache
def _powers() -> Array:
    """2^(j/64), correctly rounded."""
    return elementary.exp2(np.arange(_STEPS) / _STEPS, FORMATS["float64"])


def _exp(x: Array) -> Array:
    """exp to 2^-50, infinite above 709: x = (64 k + j) log 2 / 64 + r, |r| < 2^-7.5, and five terms."""
    return np.where(x > 0, np.where(x > 709.0, inf, _exp_up(np.clip(x, 0.0, 709.0))), _exp_down(np.minimum(x, 0.0)))


def _exp_up(x: Array) -> Array:
    """exp of numbers from 0 to 709, the same."""
    total, steps = _reduced(x)
    steps >>= 6
    steps += 1023
    steps <<= 52
    total *= steps.view(np.float64)
    return total


def _exp_down(x: Array) -> Array:
    """exp of numbers <= 0, the same: by two powers of two, of which the first is a normal number down to 2^-1100."""
    total, steps = _reduced(np.maximum(x, -760.0))
    steps >>= 6
    steps += 1023 + 128
    steps <<= 52
    total *= steps.view(np.float64)
    total *= 2.0**-128
    return total


def _reduced(x: Array) -> tuple[Array, Array]:
    """2^(j/64) exp(r), and 64 k + j."""
    k = x * (1 / (_LN2_HIGH + _LN2_LOW))
    np.rint(k, k)
    steps = k.astype(np.int64)
    r = x - k * _LN2_HIGH
    k *= _LN2_LOW
    r -= k
    total = r * (1 / 120)
    for coefficient in (1 / 24, 1 / 6, 0.5, 1.0):
        total += coefficient
        total *= r
    total += 1
    total *= _powers()[steps & (_STEPS - 1)]
    return total, steps


def _expm1(t: Array) -> Array:
    """exp(t) - 1 and no less but for 2^-49 of it, t >= 0: t/(1 - t/2 + t^2/12 - t^4/720), whose rest below 1 is t^6/30240 and less,
    positive (the Bernoulli numbers alternate); above 1 from exp."""
    square = t * t
    found = square * (-1 / 720)
    found += 1 / 12
    found *= square
    found -= 0.5 * t
    found += 1
    np.divide(t, found, found)
    far = t > 1
    if far.any():
        found[far] = _exp_up(t[far]) - 1
    return found


def _log1p(s: Array) -> Array:
    """log(1 + s) to 2^-48, 0 <= s <= 2^30, by the series of atanh."""
    man, power = np.frexp(1 + s)
    low = man < 0.70710678
    man, power = np.where(low, 2 * man, man), power - low
    near = s <= 0.5
    z = np.where(near, s / (2 + s), (man - 1) / (man + 1))
    square, total = z * z, np.zeros_like(z)
    for odd in range(25, 0, -2):
        total = total * square + 1 / odd
    return np.asarray(2 * z * total + np.where(near, 0.0, power * 0.6931471805599453))
