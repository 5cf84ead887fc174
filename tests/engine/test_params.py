"""Params: their truth against definitions in balls that share no code with it, what is exact, and what is refused."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from flint import arb, ctx

import engine
from engine import formats, ops
from engine.arithmetic import Arithmetic
from engine.errors import InvalidParam, InvalidProblem, Undecided
from engine.formats import FORMATS
from engine.model import NO_PARAMS, Params, Problem
from engine.plain import plain
from engine.truth import Truth, certified, hull
from engine.truth import exact as exactly
from engine.truth.parametrised import Parametrised
from engine.variants import VARIANTS, find
from tests import judge

INF, NAN = math.inf, math.nan
F64, F32, F16 = FORMATS["float64"], FORMATS["float32"], FORMATS["float16"]
PREC = 700


# The definitions, in balls. A logit that is masked is None; what has no ball is a float.


def ball(value):
    return value.numerator / arb(value.denominator) if isinstance(value, Fraction) else arb(float(value))


def logits_of(row, mask, p):
    """z of one row."""
    found = []
    for x, kept in zip(row, mask, strict=True):
        z = ball(Fraction(p.scale)) * arb(x)
        if p.softcap is not None:
            z = arb(p.softcap) * (z / arb(p.softcap)).tanh()
        found.append(z if kept and (p.softcap is not None or x != -INF) else None)
    return found


def exponentials(z, p):
    """exp(z) of the row, the sum, and its logarithm."""
    e = [arb(0) if v is None else v.exp() for v in z]
    total = sum(e, arb(0)) + (arb(p.sink).exp() if p.sink is not None else arb(0))
    return e, total, total.log()


def aims(target, n, p):
    """q of one row."""
    y = [Fraction(i == target) for i in range(n)] if isinstance(target, int) else [Fraction(v) for v in target]
    a = Fraction(p.label_smoothing)
    w = [Fraction(1)] * n if p.weights is None else [Fraction(float(v)) for v in p.weights]
    return [wi * ((1 - a) * yi + a / n) for wi, yi in zip(w, y, strict=True)]


def elements(op, row, mask, target, p):
    """Every element of one row, as if it were alone: no divisor yet."""
    if p.ignore_index is not None and target == p.ignore_index:
        return [arb(0)] * (1 if op == "cross_entropy" else len(row))
    z = logits_of(row, mask, p)
    e, total, log = exponentials(z, p)
    probability = [v / total for v in e]
    scale = arb(p.scale)
    if op == "softmax":
        return probability
    if op == "log_softmax":
        return [-INF if v is None else v - log for v in z]
    if op == "logsumexp":
        return [log]
    if op == "softmax_jacobian":
        return [scale * a * ((i == j) - b) for i, a in enumerate(probability) for j, b in enumerate(probability)]
    if op == "softmax_vjp":
        mean = sum((g * a for g, a in zip(target, probability, strict=True)), arb(0))
        return [scale * a * (g - mean) for g, a in zip(target, probability, strict=True)]
    q = aims(target, len(row), p)
    if op == "cross_entropy":
        if any(v is None and qi for v, qi in zip(z, q, strict=True)):
            return [INF]
        return [
            sum((ball(qi) * (log - v) for qi, v in zip(q, z, strict=True) if v is not None), arb(0)) + arb(p.z_loss) * log * log
        ]
    mass = ball(sum(q)) + 2 * arb(p.z_loss) * log
    return [scale * (a * mass - ball(qi)) for a, qi in zip(probability, q, strict=True)]


def expected(problem):
    """Every element of the output, in C order."""
    p, op, shape = problem.params, problem.op, problem.logits.shape
    n = shape[-1]
    rows = formats.widen(problem.logits).reshape(-1, n).tolist()
    masks = np.broadcast_to(True if p.mask is None else p.mask, shape).reshape(-1, n).tolist()
    beside = problem.targets if problem.grad_output is None else problem.grad_output
    index = ops.is_index(problem)
    given = [None] * len(rows)
    if beside is not None:
        given = beside.reshape(-1).tolist() if index else formats.widen(beside).reshape(-1, n).tolist()
    found = [elements(op, row, mask, target, p) for row, mask, target in zip(rows, masks, given, strict=True)]
    if p.reduction == "none":
        return [value for row in found for value in row]
    divisor = Fraction(1)
    if p.reduction == "mean":
        kept = [t for t in given if not index or t != p.ignore_index]
        weighted = index and p.weights is not None
        divisor = sum((Fraction(float(p.weights[t])) for t in kept), Fraction(0)) if weighted else Fraction(len(kept))
    if op == "cross_entropy_grad":
        return [value / ball(divisor) for row in found for value in row]
    if any(isinstance(row[0], float) for row in found):
        return [INF]
    return [sum((row[0] for row in found), arb(0)) / ball(divisor)]


def compare(problem, fmt, bits=90):
    """The enclosures hold the balls and are as narrow as they promise; the rounded values are those of the balls."""
    truth = certified(problem, fmt)
    found = [e for row in range(truth.rows) for e in truth.row(row, bits)]
    rounded = formats.ordinals(truth.rounded(), fmt).reshape(-1).tolist()
    assert truth.shape == ops.output_shape(problem)
    with ctx.workprec(PREC):
        wanted = expected(problem)
        assert len(found) == len(wanted) == len(rounded)
        for e, want, ordinal in zip(found, wanted, rounded, strict=True):
            if isinstance(want, float):
                assert e == want
                continue
            lo, hi, exp = hull(e)
            assert not arb((lo, exp)) > want, (e, want)
            assert not arb((hi, exp)) < want, (e, want)
            assert (e[1] - e[0]) << bits <= max(abs(e[0]), abs(e[1]))
            ends = {judge.round_fraction(end, fmt.name) for end in judge.ends(want)}
            assert len(ends) > 1 or ordinal in ends, (e, want)
    return truth


SINGLE = [
    {"scale": 0.1},
    {"scale": 0.125},
    {"scale": 3.0},
    {"softcap": 30.0},
    {"softcap": 0.5},
    {"mask": "drawn"},
    {"sink": 0.0},
    {"sink": -2.5},
    {"label_smoothing": 0.1},
    {"label_smoothing": 1.0},
    {"weights": "drawn"},
    {"ignore_index": -100},
    {"z_loss": 1e-4},
    {"z_loss": 2.0},
    {"reduction": "sum"},
    {"reduction": "mean"},
]
JOINED = [
    {"scale": 0.1, "softcap": 5.0, "mask": "drawn", "sink": 1.5},
    {"scale": 0.3, "mask": "drawn", "sink": 40.0},
    {"scale": 0.3, "label_smoothing": 0.1, "weights": "drawn", "z_loss": 1e-3, "reduction": "mean", "ignore_index": -1},
    {"label_smoothing": 0.25, "weights": "drawn", "reduction": "sum", "softcap": 2.0},
    {"z_loss": 0.5, "softcap": 2.0, "mask": "drawn", "reduction": "mean"},
    {"reduction": "mean", "weights": "drawn", "ignore_index": 7},
    {"reduction": "sum", "softcap": 20.0, "sink": 1.0},
]


def drawn(op, given, seed, fmt=F64, rows=3, n=5, soft=False):
    """A problem of an op with these params, those that it takes; None where it takes none of them."""
    rng = np.random.default_rng(seed)
    x = formats.round_array(rng.normal(size=(rows, n)) * rng.choice([0.1, 1, 8, 60]), fmt)
    if seed % 3 == 0:
        x[:, 1] = x[:, 3]
    kept = rng.random((rows, n)) < 0.6
    kept[:, 2] = True
    known = {"mask": kept, "weights": np.round(rng.random(n) * 3, seed % 4)}
    chosen = {name: known[name] if isinstance(value, str) and value == "drawn" else value for name, value in given.items()}
    if soft:
        chosen.pop("ignore_index", None)
    chosen = {name: value for name, value in chosen.items() if name in ops.OPS[op].params}
    targets = grad = None
    if op.startswith("cross_entropy"):
        targets = np.round(rng.random((rows, n)), 3) if soft else rng.integers(0, n, rows)
        if "ignore_index" in chosen:
            targets[1] = chosen["ignore_index"]
    if op == "softmax_vjp":
        grad = rng.normal(size=(rows, n))
    return Problem(op, x, targets, grad, Params(**chosen)) if chosen else None


CASES = [(op, given, soft) for op in ops.OPS for given in (*SINGLE, *JOINED) for soft in ([0, 1] if "entropy" in op else [0])]
CASES = [case for case in CASES if drawn(case[0], case[1], 0, soft=case[2])]


@pytest.mark.parametrize(("op", "given", "soft"), CASES, ids=str)
def test_the_truth_is_what_the_definition_says(op, given, soft):
    for seed in range(6):
        fmt = (F64, F32, F16)[seed % 3]
        compare(drawn(op, given, seed, fmt, soft=soft), fmt)


@pytest.mark.parametrize("op", ops.OPS)
def test_params_at_their_defaults_change_nothing(op):
    rng = np.random.default_rng(1)
    targets = np.array([0, 2]) if "entropy" in op else None
    grad = rng.normal(size=(2, 3)) if op == "softmax_vjp" else None
    problem = Problem(op, rng.normal(size=(2, 3)), targets, grad)
    told = Problem(op, problem.logits, targets, grad, Params())
    assert type(certified(told, F64)) is Truth
    assert engine.encode(engine.evaluate(problem)) == engine.encode(engine.evaluate(told))


# Exact values, and what has none


def rounded(op, x, targets=None, fmt=F64, grad_output=None, **params):
    grad = None if grad_output is None else np.array(grad_output)
    problem = Problem(op, np.array(x), None if targets is None else np.array(targets), grad, Params(**params))
    return formats.widen(certified(problem, fmt).rounded()).tolist()


def test_softmax1_has_a_sink_of_zero():
    assert rounded("softmax", [0.0], sink=0.0) == [0.5]
    assert rounded("softmax", [-INF, -INF], sink=0.0) == [0.0, 0.0]
    assert rounded("log_softmax", [-INF, -INF], sink=0.0) == [-INF, -INF]
    assert rounded("logsumexp", [-INF, -INF], sink=3.5) == 3.5
    assert rounded("softmax_vjp", [-INF], sink=3.5, grad_output=[2.0]) == [0.0]
    assert rounded("softmax_jacobian", [0.0, -INF], sink=0.0) == [[0.25, 0.0], [0.0, 0.0]]


def test_a_mask_hides_whatever_is_there():
    kept = np.array([True, True, False, False])
    assert rounded("softmax", [1.0, 1.0, NAN, INF], mask=kept) == [0.5, 0.5, 0.0, 0.0]
    assert rounded("softmax", [1.0, 1.0, NAN, INF], mask=kept, softcap=3.0) == [0.5, 0.5, 0.0, 0.0]
    assert np.isnan(rounded("softmax", [1.0, 2.0], mask=np.zeros(2, bool))).all()
    assert rounded("logsumexp", [1.0, 2.0], mask=np.zeros(2, bool)) == -INF
    assert np.isnan(rounded("softmax", [1.0, NAN], sink=1.0)).all()
    assert np.isnan(rounded("softmax", [1.0, INF], sink=1.0)).all()


def test_softcap_makes_numbers_of_infinities():
    assert rounded("softmax", [INF, INF], softcap=2.0) == [0.5, 0.5]
    assert rounded("logsumexp", [-INF], softcap=2.0) == -2.0
    assert rounded("logsumexp", [INF], softcap=0.3) == 0.3
    low, high = rounded("softmax", [-INF, INF], softcap=1.0)
    assert low == pytest.approx(1 / (1 + math.exp(2)))
    assert low + high == 1


def test_equal_logits_need_no_hyperbolic_tangent():
    assert rounded("softmax", [0.3, 0.3, 0.3, 0.3], softcap=7.0) == [0.25] * 4
    assert rounded("cross_entropy", [0.3], [0][0], softcap=7.0) == 0.0
    assert rounded("logsumexp", [0.0, 0.0], softcap=7.0) == math.log(2)


def test_what_softcap_cannot_tell_apart_is_undecided_and_not_guessed():
    with pytest.raises(Undecided, match="undecided at 8192 bits"):
        rounded("softmax", [1e9, 2e9], softcap=1.0)
    assert rounded("logsumexp", [1e300, -1e300], softcap=1.0) == pytest.approx(1 + math.log1p(math.exp(-2)))
    assert rounded("softmax", [40.0, 80.0], softcap=1.0) == [0.5, 0.5]
    with pytest.raises(Undecided, match="a result of softcap is undecided"):
        rounded("log_softmax", [2.0**40, -(2.0**40)], softcap=2.0**20)


def test_an_ignored_row_has_no_loss_and_no_gradient_whatever_its_logits():
    x = [[NAN, INF], [0.0, 0.0]]
    assert rounded("cross_entropy", x, [-1, 0], ignore_index=-1)[0] == 0
    assert rounded("cross_entropy_grad", x, [-1, 0], ignore_index=-1) == [[0.0, 0.0], [-0.5, 0.5]]
    assert rounded("cross_entropy", x, [-1, 0], ignore_index=-1, reduction="mean") == math.log(2)
    assert rounded("cross_entropy", x, [-1, -1], ignore_index=-1, reduction="sum") == 0
    assert math.isnan(rounded("cross_entropy", x, [-1, -1], ignore_index=-1, reduction="mean"))
    assert rounded("cross_entropy_grad", x, [-1, -1], ignore_index=-1, reduction="mean") == [[0.0, 0.0], [0.0, 0.0]]


def test_a_mean_over_weights_of_0_divides_by_0():
    w = np.array([0.0, 1.0])
    assert math.isnan(rounded("cross_entropy", [[1.0, 2.0]], [0], weights=w, reduction="mean"))
    assert rounded("cross_entropy", [[1.0, 2.0]], [0], weights=w, reduction="mean", z_loss=1.0) == INF
    assert rounded("cross_entropy_grad", [[1.0, 2.0]], [0], weights=w, label_smoothing=0.5, reduction="mean") == [[INF, -INF]]
    assert np.isnan(rounded("cross_entropy_grad", [[1.0, 2.0]], [0], weights=w, reduction="mean")).all()
    assert math.isnan(rounded("cross_entropy", [[NAN, 2.0]], [0], weights=w, reduction="mean"))


def test_a_reduction_adds_infinities_as_numbers_do():
    assert rounded("cross_entropy", [[-INF, 2.0], [0.0, 0.0]], [0, 0], reduction="sum") == INF
    assert math.isnan(rounded("cross_entropy", [[-INF, 2.0], [NAN, 0.0]], [0, 0], reduction="sum"))
    assert math.isnan(rounded("logsumexp", [[-INF, -INF], [INF, 0.0]], reduction="sum"))
    assert rounded("logsumexp", [[-INF, -INF], [1.0, 0.0]], reduction="mean") == -INF
    assert rounded("cross_entropy", [[-INF, 2.0]], [1], label_smoothing=0.5) == [INF]


def test_rests_too_small_for_any_precision_are_decided_by_their_sign():
    assert rounded("log_softmax", [2.0, -(2.0**25)], fmt=F32, scale=0.5) == [0.0, -(2.0**24) - 2]
    assert rounded("log_softmax", [1.0, -(2.0**24)], fmt=F32, sink=-(2.0**20)) == [0.0, -(2.0**24) - 2]
    x = [[1.0, -(2.0**24)], [0.0, -(2.0**30)]]
    assert rounded("cross_entropy", x, [1, 1], fmt=F32, reduction="sum") == 2.0**30 + 2.0**24


def test_a_derivative_cancels_at_a_maximum_only_to_the_second_order():
    """2 a L' - C s with C = 2 a: what is left is of s^2."""
    got = rounded("cross_entropy_grad", [[0.0, -30.0]], [[1.0, 0.0]], z_loss=0.5)
    with ctx.workprec(PREC):
        want = [float(v) for v in elements("cross_entropy_grad", [0.0, -30.0], [True] * 2, [1.0, 0.0], Params(z_loss=0.5))]
    assert got[0] == pytest.approx(want, rel=1e-15)


def test_targets_of_no_weight_leave_the_square_alone():
    x = [[1.0, 2.0, 0.5]]
    lse = math.log(sum(math.exp(v) for v in x[0]))
    assert rounded("cross_entropy", x, [[0.0] * 3], z_loss=1.0)[0] == pytest.approx(lse**2)
    assert rounded("cross_entropy_grad", [[0.0]], [[0.0]], z_loss=1.0) == [[0.0]]
    assert rounded("cross_entropy_grad", [[0.0, 0.0]], [[0.0, 0.0]], z_loss=1.0)[0] == pytest.approx([math.log(2)] * 2)
    assert rounded("cross_entropy", [[3.0]], [[0.0]], z_loss=1.0) == [9.0]
    assert rounded("cross_entropy", [[0.0]], [[0.0]], z_loss=1.0) == [0.0]


def test_a_sum_that_cancels_is_refined():
    """Rests of both signs, whose sum is far smaller than they are."""
    x = np.array([[-3.0, -4.0], [3.0, 2.9375]])
    compare(Problem("cross_entropy", x, np.array([1, 0]), params=Params(z_loss=0.17, reduction="sum")), F64)
    e = exactly.Signed(-5, 7, 0)
    with pytest.raises(exactly._Wide):
        exactly._sum_of([e], 64)


def test_a_sum_whose_sign_no_precision_tells_is_undecided(monkeypatch):
    monkeypatch.setattr(exactly, "_sum_of", lambda rests, precision: (_ for _ in ()).throw(exactly._Wide))
    with pytest.raises(Undecided, match="the sum of cross_entropy over 2 rows"):
        rounded("cross_entropy", [[1.0, 2.0], [2.0, 1.0]], [0, 1], reduction="sum")


@pytest.mark.parametrize(("num", "den"), [(0, 1), (1, 1 << 300), (1, 3), (-7, 5), (40, 1), (1 << 80, 3), (-1000, 1), (1, 1 << 90)])
def test_the_hyperbolic_tangent_is_off_by_less_than_four_units(num, den):
    for places in (60, 200):
        with ctx.workprec(PREC):
            want = (arb(num) / den).tanh() * arb(2) ** places
            assert abs(want - exactly.tanh(num, den, places)) < 4


# What is exactly a plain problem


def reduced(op, x, targets=None, grad_output=None, **params):
    grad = None if grad_output is None else np.array(grad_output)
    return plain(Problem(op, np.array(x), None if targets is None else np.array(targets), grad, Params(**params)))


def test_exact_products_make_a_plain_problem_and_rounded_ones_none():
    assert reduced("softmax", [1.0, 3.0], scale=0.1) is None
    assert reduced("softmax", [1.0, 3.0], scale=0.75).logits.tolist() == [0.75, 2.25]
    assert reduced("softmax", [5e-324], scale=0.5) is None
    assert reduced("softmax", [1e308], scale=2.0) is None
    assert reduced("softmax", [INF, -INF, 0.0], scale=0.1).logits.tolist() == [INF, -INF, 0.0]
    x = np.array([1.0, 2.0], np.float16)
    assert reduced("softmax", x, scale=0.1).logits.tolist() == [0.1, 0.2]
    assert reduced("softmax", [1.0, 2.0], mask=np.array([True, False])).logits.tolist() == [1.0, -INF]


def test_products_are_proven_exact_by_rationals():
    rng = np.random.default_rng(0)
    for _ in range(300):
        a = float(rng.integers(1, 1 << int(rng.integers(1, 53)))) * 2.0 ** int(rng.integers(-1074, 900))
        b = float(rng.integers(1, 1 << int(rng.integers(1, 53)))) * 2.0 ** int(rng.integers(-300, 300))
        found = reduced("softmax", [a], scale=b) if 0 < b < INF and a < INF else None
        fits = judge.round_fraction(Fraction(a) * Fraction(b), "float64") < judge.infinity_ordinal("float64")
        exact = fits and Fraction(a * b) == Fraction(a) * Fraction(b)
        assert (found is not None) == exact, (a.hex(), b.hex())


def test_targets_become_distributions_where_binary64_holds_them():
    x = [[0.0, 0.0], [0.0, 0.0]]
    assert reduced("cross_entropy", x, [0, 1], label_smoothing=0.5).targets.tolist() == [[0.75, 0.25], [0.25, 0.75]]
    assert reduced("cross_entropy", x, [0, 1], label_smoothing=0.1) is None
    assert reduced("cross_entropy", x, [0, 1], weights=np.array([0.1, 3.0])).targets.tolist() == [[0.1, 0.0], [0.0, 3.0]]
    assert reduced("cross_entropy", x, [[0.25, 0.5], [1.0, 0.0]], label_smoothing=0.5).targets.tolist() == [
        [0.375, 0.5],
        [0.75, 0.25],
    ]
    assert reduced("cross_entropy", x, [[0.25, 2.0**-60], [1.0, 0.0]], label_smoothing=0.5) is None
    assert reduced("cross_entropy", x, [0, -1], ignore_index=-1).targets.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert reduced("cross_entropy", x, [0, 1], ignore_index=-1).targets.tolist() == [0, 1]
    assert reduced("cross_entropy", x, [0, 1], reduction="sum") is None
    assert reduced("cross_entropy", x, [0, 1], z_loss=1.0) is None


def test_what_multiplies_a_derivative_multiplies_what_it_is_linear_in():
    x = [[0.0, 0.0], [0.0, 0.0]]
    assert reduced("cross_entropy_grad", x, [0, 1], reduction="mean").targets.tolist() == [[0.5, 0.0], [0.0, 0.5]]
    assert reduced("cross_entropy_grad", x, [0, 1], reduction="sum", scale=2.0).targets.tolist() == [[2.0, 0.0], [0.0, 2.0]]
    weighted = reduced("cross_entropy_grad", x, [0, 1], reduction="mean", weights=np.array([1.0, 3.0]))
    assert weighted.targets.tolist() == [[0.25, 0.0], [0.0, 0.75]]
    assert reduced("cross_entropy_grad", x, [-1, -1], reduction="mean", ignore_index=-1) is None
    assert reduced("softmax_vjp", x, grad_output=[[1.0, 2.0], [3.0, 4.0]], scale=2.0).grad_output.tolist() == [
        [2.0, 4.0],
        [6.0, 8.0],
    ]
    assert reduced("softmax_jacobian", x, scale=2.0) is None
    assert reduced("softmax_vjp", x, grad_output=x, scale=1e308) is not None
    assert reduced("cross_entropy_grad", [[0.0] * 2] * 3, [0, 1, 0], reduction="mean") is None
    huge = Params(scale=1e308, reduction="mean", weights=np.array([1e-10, 1.0]))
    assert plain(Problem("cross_entropy_grad", np.zeros((1, 2)), np.array([0]), params=huge)) is None


@pytest.mark.parametrize(
    ("op", "given"), [("softmax", {"scale": 0.5}), ("softmax", {"mask": "drawn"}), ("cross_entropy_grad", {"scale": 2.0})]
)
def test_the_fast_tiers_measure_what_is_plain_as_the_exact_path_does(op, given, monkeypatch):
    problem = drawn(op, given, 3, F32, rows=40, n=20)
    fast = engine.evaluate(problem, ["float32"], worst=3)
    assert any("T3" not in outcome.certificate.tiers for outcome in fast.outcomes)
    monkeypatch.setattr("engine.truth.reduction.plain", lambda problem: None)
    slow = engine.evaluate(problem, ["float32"], worst=3)
    for a, b in zip(fast.outcomes, slow.outcomes, strict=True):
        assert "T3" in b.certificate.tiers
        figures = [engine.encode(outcome.metrics) | {"error_over_bound": None} for outcome in (a, b)]
        assert figures[0] == figures[1]
        assert [replace(w, bound=None, bound_ulp=None) for w in a.worst] == list(b.worst)  # what is not plain has no bound


# What a variant is run on


def ran(name, problem, fmt="float64"):
    return engine.evaluate(problem, [fmt], [name], include=["values", "truth"]).outcomes[0]


@pytest.mark.parametrize("case", [case for case in CASES if not case[2]], ids=str)
def test_stable_variants_are_near_the_truth_with_any_params(case):
    op, given, soft = case
    for seed in range(2):
        problem = drawn(op, given, seed, F32, soft=soft)
        out = ran("fused" if op in ("cross_entropy", "cross_entropy_grad") else "shifted", problem)
        assert out.metrics.special_mismatch == 0
        assert out.metrics.max_abs is None or out.metrics.max_abs < 1e-11


def test_bounds_hold_for_what_the_prologue_leaves_exact_and_are_none_else():
    x = np.array([[1.0, 2.0, 3.0]])
    assert ran("shifted", Problem("softmax", x, params=Params(scale=0.5))).metrics.error_over_bound <= 1
    assert ran("shifted", Problem("softmax", x, params=Params(mask=np.array([True, True, False])))).status == "accurate"
    rounding = ran("shifted", Problem("softmax", x, params=Params(scale=0.1)))
    assert (rounding.status, rounding.metrics.error_over_bound, rounding.bound.condition) == ("unbounded", None, None)
    assert rounding.bound.rule == "no bound is known with these params"
    masked = Problem("cross_entropy", x, np.array([-1]), params=Params(ignore_index=-1))
    assert ran("fused", masked).status == "accurate"
    held = Problem("softmax", np.array([[0.1, 0.3]]), params=Params(scale=3.0))
    assert ran("shifted", held, "float16").status == "unbounded"


def test_what_takes_other_steps_for_classes_has_no_bound_beside_ignored_rows():
    x = np.random.default_rng(0).standard_normal((3, 1000))
    x[:, 0] = -8
    problem = Problem("cross_entropy_grad", x, np.array([0, 1, 0]), params=Params(ignore_index=1))
    for fmt in ("float16", "float32"):  # the sum of the others was held against the bound of the difference, ten times as small
        outcomes = engine.evaluate(problem, [fmt], ["fused", "others"], "sequential").outcomes
        assert [o.metrics.error_over_bound is None for o in outcomes] == [False, True]
        assert outcomes[0].metrics.error_over_bound <= 1
    kept = Problem("cross_entropy_grad", x, np.array([0, 2, 0]), params=Params(ignore_index=1))
    assert engine.evaluate(kept, ["float16"], ["others"], "sequential").outcomes[0].metrics.error_over_bound <= 1


@pytest.mark.parametrize("n", [4, 700])
@pytest.mark.parametrize("fmt", ["float16", "bfloat16", "float32", "float64", "float8_e5m2"])
def test_a_variant_that_masks_or_scales_by_itself_keeps_its_bound(fmt, n):
    x = np.random.default_rng(n).normal(0, 1, (3, n))
    kept = np.arange(n) % 3 != 1
    for name in ("masked_value", "masked_lowest", "masked_zero", "shifted"):
        out = ran(name, Problem("softmax", x, params=Params(mask=kept)), fmt)
        alone = ran(name, Problem("softmax", np.where(kept, x, -INF)), fmt)
        assert (out.bound, out.metrics.error_over_bound) == (alone.bound, alone.metrics.error_over_bound)
        assert out.status == alone.status
    if fmt != "float8_e5m2":
        out = ran("exp2_scaled", Problem("softmax", x, params=Params(scale=4.0)), fmt)
        alone = ran("exp2_scaled", Problem("softmax", formats.round_array(x, FORMATS[fmt]).astype(float) * 4), fmt)
        assert (out.bound, out.metrics.error_over_bound) == (alone.bound, alone.metrics.error_over_bound)


def test_one_that_scales_by_itself_has_none_where_its_constant_rounds_otherwise_but_is_judged():
    x = np.random.default_rng(1).integers(-99, 99, (5, 200)) * 1.0
    out = ran("exp2_scaled", Problem("softmax", x, params=Params(scale=3.0)), "float32")
    around = ran("shifted", Problem("softmax", x, params=Params(scale=3.0)), "float32")
    assert (out.bound.unbounded, out.bound.unjudged, out.metrics.error_over_bound) == (1000, 0, None)
    assert out.bound.condition == around.bound.condition > 0
    assert out.bound.exceeded > 0
    assert out.status == "inaccurate"


def test_a_sink_leaves_no_bound_and_as_one_more_column_it_has_one():
    x = np.array([[1.0, 2.0, 3.0]])
    assert ran("sink", Problem("softmax", x, params=Params(sink=2.5))).status == "unbounded"
    column = ran("shifted", Problem("softmax", np.append(x, [[2.5]], axis=1)))
    assert column.status == "accurate"
    assert (column.truth[:, :3] == ran("sink", Problem("softmax", x, params=Params(sink=2.5))).truth).all()


def test_no_mask_in_a_format_without_infinity_has_a_bound():
    problem = Problem("softmax", np.array([[1.0, 2.0, 3.0]]), params=Params(mask=np.array([True, False, True])))
    for name in ("masked_value", "masked_lowest", "shifted"):
        assert ran(name, problem, "float8_e4m3fn").bound.unbounded == ran(name, problem, "float8_e4m3fn").metrics.compared


def test_sums_that_are_not_known_are_no_defects():
    x = np.array([[1.0, 2.0, 3.0]])
    sunk = ran("shifted", Problem("softmax", x, params=Params(sink=0.0))).metrics
    assert (sunk.sum_defect, sunk.backward_error) == (None, None)
    graded = ran("fused", Problem("cross_entropy_grad", x, np.array([0]), params=Params(z_loss=1.0))).metrics
    assert graded.sum_defect is None
    assert ran("shifted", Problem("log_softmax", x, params=Params(softcap=3.0))).metrics.sum_defect < 1e-14


def test_the_logit_shown_is_the_one_given():
    x = np.array([[1.0, 2.0, 3.5]])
    out = ran("shifted", Problem("softmax", x, params=Params(scale=0.5, mask=np.array([True, True, True]))), "float16")
    assert {row.logit for row in out.worst} <= set(x[0].tolist())


def test_the_accumulator_adds_the_losses_of_all_rows():
    x = np.zeros((4096, 2))
    out = ran("fused", Problem("cross_entropy", x, np.zeros(4096, int), params=Params(reduction="sum")), "float16")
    assert formats.widen(out.values) == formats.widen(out.truth) == 2840
    k = engine.evaluate(
        Problem("cross_entropy", x, np.zeros(4096, int), params=Params(reduction="sum")), ["float16"], ["fused"], "sequential",
        include=["values"],
    ).outcomes[0]  # fmt: skip
    assert formats.widen(k.values) < 2840


def test_an_output_measured_with_params():
    x = np.array([[1.0, 2.0, 3.0]])
    cases = [
        ({"sink": 0.0}, "unbounded"), ({"scale": 0.5}, "bounded"), ({"scale": 0.1}, "unbounded"),
        ({"mask": np.array([True, True, False])}, "bounded"),
    ]  # fmt: skip
    for params, kind in cases:
        problem = Problem("softmax", x, params=Params(**params))
        found = engine.measure(problem, certified(problem, F64).rounded())
        assert found.metrics.max_ulp <= 0.5
        assert (found.bound.unbounded == 0) == (kind == "bounded"), params
    mean = Problem("cross_entropy", np.zeros((2, 2)), np.array([0, 1]), params=Params(reduction="mean"))
    assert engine.measure(mean, np.array(math.log(2))).metrics.correctly_rounded == 1
    with pytest.raises(InvalidProblem, match=r"shape \[2\]; for these logits it must be \[\]"):
        engine.measure(mean, np.zeros(2))
    jacobian = Problem("softmax_jacobian", x, params=Params(scale=0.5))
    assert engine.measure(jacobian, certified(jacobian, F64).rounded()).bound.unbounded == 9


def test_the_truth_as_served():
    answer = engine.certify(Problem("softmax", np.array([0.0, 0.0]), params=Params(sink=0.0)), "float32", digits=5)
    assert answer.decimal == ["3.3333e-1", "3.3333e-1"]
    answer = engine.certify(
        Problem("cross_entropy", np.zeros((2, 2)), np.array([0, 1]), params=Params(reduction="mean")), "float64", 20
    )
    assert answer.decimal == "6.9314718055994530942e-1"


def test_estimates_grow_with_what_the_exact_path_must_do():
    x = np.zeros((50, 40))
    plainly, reducible, exact, capped = (
        engine.estimate(Problem("softmax", x, params=p), variants=["shifted"])
        for p in (NO_PARAMS, Params(scale=0.5), Params(sink=1.0), Params(softcap=3.0))
    )
    assert plainly == reducible < exact < capped
    assert engine.estimate_truth(Problem("softmax", x)) < engine.estimate_truth(Problem("softmax", x, params=Params(softcap=1.0)))


# What is refused


REFUSED = [
    ("softmax", {"scale": 0.0}, "scale is 0.0; it is a finite number above 0"),
    ("softmax", {"scale": NAN}, "scale is nan"),
    ("softmax", {"scale": INF}, "scale is inf"),
    ("softmax", {"scale": -1.0}, "scale is -1.0"),
    ("softmax", {"sink": True}, "sink is True"),
    ("softmax", {"scale": 10**400}, "scale is an integer of more than 60 digits"),
    ("softmax", {"scale": "1"}, "scale is '1'"),
    ("softmax", {"softcap": 0.0}, "softcap is 0.0; it is a finite number above 0; leave it out for none"),
    ("softmax", {"sink": INF}, "sink is inf"),
    ("softmax", {"label_smoothing": 0.1}, "softmax takes no label_smoothing; it takes scale, softcap, mask, sink"),
    ("cross_entropy", {"sink": 0.0}, "cross_entropy takes no sink"),
    ("cross_entropy_grad", {"softcap": 1.0}, "cross_entropy_grad takes no softcap"),
    ("cross_entropy", {"label_smoothing": 1.5}, "label_smoothing is 1.5; it is a number from 0 to 1"),
    ("cross_entropy", {"z_loss": -1.0}, "z_loss is -1.0"),
    ("cross_entropy", {"reduction": "max"}, "reduction is 'max'; it is one of none, sum, mean"),
    ("cross_entropy", {"weights": np.ones(3)}, r"weights have shape \[3\]; a weight for each class makes it \[2\]"),
    ("cross_entropy", {"weights": np.array([1.0, -1.0])}, r"weights: -1.0 at \[1\] is no weight"),
    ("cross_entropy", {"ignore_index": 1.5}, "ignore_index is 1.5; it is an integer"),
    ("softmax", {"mask": np.ones(3, bool)}, r"mask has shape \[3\]; it has the logits' shape \[1, 2\], or \[2\] for all rows"),
    ("softmax", {"mask": np.ones(2)}, "mask is of float64; it is of booleans"),
]


@pytest.mark.parametrize(("op", "params", "saying"), REFUSED, ids=[row[2][:40] for row in REFUSED])
def test_a_param_that_cannot_be_names_the_value_the_rule_and_the_way_out(op, params, saying):
    targets = np.array([0]) if "entropy" in op else None
    with pytest.raises(InvalidParam, match=saying) as caught:
        ops.check(Problem(op, np.zeros((1, 2)), targets, params=Params(**params)))
    assert caught.value.name == next(iter(params))


def test_ignore_index_needs_class_indices():
    with pytest.raises(InvalidParam, match="but targets are distributions"):
        ops.check(Problem("cross_entropy", np.zeros((1, 2)), np.ones((1, 2)), params=Params(ignore_index=-1)))
    with pytest.raises(InvalidProblem, match="target -2"):
        ops.check(Problem("cross_entropy", np.zeros((1, 2)), np.array([-2]), params=Params(ignore_index=-1)))


def test_a_truth_is_made_for_the_params_it_has():
    problem = Problem("softmax", np.zeros(2), params=Params(sink=0.0))
    with pytest.raises(AssertionError):
        Truth(problem, F64)
    assert isinstance(certified(problem, F64), Parametrised)
    assert find("softmax", "shifted") is VARIANTS["softmax/shifted"]
    assert Arithmetic(F64).tanh(np.array([0.0])).tolist() == [0.0]


# Variants that see to params in their own way

OWN = [row for row in VARIANTS.values() if row.params]


@pytest.mark.parametrize("row", OWN, ids=lambda row: row.key)
@pytest.mark.parametrize("soft", [False, True])
def test_own_ways_are_near_the_truth_but_where_they_are_wrong(row, soft):
    values = {"scale": 0.75, "mask": "drawn", "sink": 1.5, "label_smoothing": 0.125, "z_loss": 0.25}
    problem = drawn(row.op, {name: values[name] for name in row.params}, 1, F64, soft=soft)
    out = ran(row.name, problem)
    assert (out.metrics.max_abs < 1e-13) == (row.name != "sink_unshifted")
    assert (out.bound.rule == "no bound is known with these params") == (row.params != ("mask",))


@pytest.mark.parametrize("case", [case for case in CASES if case[1] in JOINED], ids=str)
def test_own_ways_are_right_beside_other_params(case):
    op, given, soft = case
    for seed in range(3):
        problem = drawn(op, given, seed, soft=soft)
        for row in OWN:
            if row.op == op and row.fits(problem.params) and row.name != "sink_unshifted":
                out = ran(row.name, problem)
                assert out.metrics.special_mismatch == 0, row.name
                assert out.metrics.max_abs is None or out.metrics.max_abs < 1e-11, row.name


def test_a_variant_that_needs_params_is_run_with_them_alone():
    x = np.zeros((1, 3))
    names = [outcome.variant for outcome in engine.evaluate(Problem("softmax", x), ["float32"]).outcomes]
    assert names == list(engine.variant_names("softmax", NO_PARAMS))
    assert not {"sink", "sink_unshifted"} & set(names)
    sunk = Params(sink=0.0)
    assert {"sink", "sink_unshifted"} <= set(engine.variant_names("softmax", sunk))
    with pytest.raises(InvalidProblem, match="variant sink needs the param sink; give sink, or leave the variant out"):
        engine.evaluate(Problem("softmax", x), variants=["sink"])
    smooth = Params(label_smoothing=0.1, weights=np.ones(3))
    assert "smoothed_apart" not in engine.variant_names("cross_entropy", smooth)
    with pytest.raises(InvalidProblem, match="needs the param label_smoothing, and no weights; give label_smoothing"):
        engine.evaluate(Problem("cross_entropy", x, np.array([0]), params=smooth), variants=["smoothed_apart"])


def test_softmax1_shifted_wrongly_is_another_function():
    x = np.array([[100.0, 99.0]])
    right, wrong = (ran(name, Problem("softmax", x, params=Params(sink=0.0))) for name in ("sink", "sink_unshifted"))
    assert right.metrics.max_ulp < 2
    assert wrong.values.sum() == pytest.approx(1 - 1 / (2 + math.exp(-1)))


def test_a_sink_above_all_logits_is_the_maximum():
    for fmt in ("float16", "float32"):
        out = ran("sink", Problem("softmax", np.array([[-200.0, -201.0]]), params=Params(sink=5.0)), fmt)
        assert out.metrics.max_ulp < 1


def test_a_scale_in_the_constant_of_exp2_is_rounded_with_it():
    x = np.array([np.linspace(-30.0, 30.0, 13)])
    problem = Problem("softmax", x, params=Params(scale=0.1))
    folded = ran("exp2_scaled", problem, "float16")
    assert formats.widen(folded.values).tolist() != formats.widen(ran("shifted", problem, "float16").values).tolist()
    capped = Params(scale=0.1, softcap=50.0)
    assert ran("exp2_scaled", Problem("softmax", x, params=capped)).metrics.max_abs < 1e-15


@pytest.mark.parametrize("name", ["masked_lowest", "masked_value(mask=-300)"])
def test_a_mask_without_infinity_is_a_number(name):
    problem = Problem("softmax", np.array([[1.0, 2.0, 0.5]]), params=Params(mask=np.array([True, False, True])))
    assert ran(name, problem, "float8_e4m3fn").values[0, 1] == 0
    assert np.isnan(formats.widen(ran("shifted", problem, "float8_e4m3fn").values)).all()


def test_a_masked_logit_makes_a_smoothed_loss_infinite():
    problem = Problem("cross_entropy", np.array([[1.0, -INF]]), np.array([0]), params=Params(label_smoothing=0.5))
    assert ran("smoothed_apart", problem).values == INF
    assert ran("smoothed_apart", problem).metrics.special_mismatch == 0


def test_a_small_z_loss_is_lost_beside_one():
    x = np.array([[4.0, 1.0, 0.0]])
    problem = Problem("cross_entropy_grad", x, np.array([0]), params=Params(z_loss=2.0**-16))
    lost, kept = (ran(name, problem, "float16").values.tolist() for name in ("scaled_by_lse", "fused"))
    plainly = ran("fused", Problem("cross_entropy_grad", x, np.array([0])), "float16").values.tolist()
    assert lost == plainly != kept


def test_a_capped_row_beside_its_ties_is_decided_by_them():
    """1/2 less exp(-180): no precision is needed to see on which side."""
    truth = certified(Problem("softmax", np.array([1e4, 1e4, -1e4]), params=Params(softcap=90.0)), F64)
    assert isinstance(truth.row(0, 80)[0], exactly.StandIn)
    truth.prepare([0, 1])
    assert truth.decided(0) == (formats.ordinals(np.array([0.5]), F64)[0], -2)
    assert truth.cell(1, 60) == truth.row(0, truth.bits)[1]
    assert truth.tiers() == {0: "T3", 1: "T3"}


def test_a_sum_of_capped_losses_is_refined_until_it_is_narrow():
    x = np.array([[60.0, -60.0], [70.0, -90.0]])
    compare(Problem("cross_entropy", x, np.array([0, 0]), params=Params(softcap=60.0, reduction="sum")), F64)


def test_what_goes_wrong_before_a_variant_is_a_fault_too():
    capped = ran("shifted", Problem("softmax", np.array([[2.0**-20, 0.0]]), params=Params(softcap=1.0)), "float16")
    assert ("tanh", "underflow") in {(fault.step, fault.kind) for fault in capped.faults}
    scaled = ran("shifted", Problem("softmax", np.array([[40000.0, 1.0]]), params=Params(scale=2.0)), "float16")
    assert scaled.faults[0].detail.startswith("40000 * 2 exceeds the largest float16")
    assert scaled.status == "unstable"
    exact = ran("shifted", Problem("softmax", np.array([[3.0, 1.0]]), params=Params(scale=2.0)), "float16")
    assert exact.faults == ()
