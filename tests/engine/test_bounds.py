"""Bounds: no right implementation exceeds its bound, and the formulas that are no bounds are exceeded."""

import inspect
import itertools
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from engine import Problem, bounds, evaluate, measure, survey
from engine.arithmetic import Arithmetic
from engine.bounds import BOUNDS, Allowed, Tolerance, allowed, constants, declared, rule, stable, summing
from engine.errors import InvalidProblem
from engine.formats import FORMATS, from_ordinals, round_array, widen
from engine.measurement import Allowances, Measurement
from engine.model import Axes
from engine.ops import OPS
from engine.summation import SUMMATIONS, plain
from engine.survey import Survey
from engine.truth import Truth, fast, hull
from engine.variants import VARIANTS, find
from tests.engine.test_survey import described

INF, NAN = math.inf, math.nan
F16, BF16, F32, F64 = (FORMATS[name] for name in ("float16", "bfloat16", "float32", "float64"))


def run(key, fmt, logits, extra=None, summation="numpy", axes=Axes()):  # noqa: B008
    """A variant's output, its truth and its bounds."""
    k = Arithmetic(FORMATS[fmt], summation, axes=axes)
    variant, x = find(*key.split("/", 1)), round_array(np.asarray(logits, dtype=float), k.fmt)
    if extra is not None and extra.dtype.kind == "f":
        extra = round_array(extra, k.fmt)
    tensors = {} if extra is None else {OPS[variant.op].tensors[0]: extra}
    output = k.deliver(variant.run(x, *tensors.values(), k))
    truth = Truth(Problem(variant.op, x, **tensors), k.output_format)
    own = declared(variant.key, k.fmt, summation, k.axes)
    return output, truth, Allowances(truth, Tolerance((own,)), Tolerance((replace(own, variant=bounds.reference(variant.op)),)))


def exactly(*given, **how):
    return Measurement(*run(*given, **how))


@pytest.mark.parametrize("variant", ["fused", "others"])
@pytest.mark.parametrize("targets", [np.array([[0.25, 0.5, 0.0, 0.125]]), np.array([1])], ids=["weights", "index"])
def test_gradients_with_and_without_a_fused_product(variant, targets):
    for fma in (False, True):
        m = exactly(
            f"cross_entropy_grad/{variant}", "float32", [[0.0, 1.5, -2.0, 0.25]], targets, axes=Axes(exp="correct", fma=fma)
        )
        assert 0 < m.error_over_bound() <= 1


def extra_of(op, rng, shape, kind):
    """Targets or a grad_output for logits of a shape."""
    if "grad_output" in OPS[op].tensors:
        return rng.standard_normal(shape) * 10 ** rng.uniform(-3, 1)
    if "targets" not in OPS[op].tensors:
        return None
    return rng.integers(0, shape[-1], shape[:-1]) if kind % 2 else rng.random(shape) * rng.choice([1e-3, 1, 3])


# ---- the attack ------------------------------------------------------------------------------------------------------

TILES = (1, 2, 3, 8, 50)
PARTS = (1, 2, 3, 5, 64)
DRAWN = {
    "softmax/tiled": {"tile": TILES},
    "softmax/tiled_scaled": {"tile": TILES},
    "cross_entropy/chunked": {"tile": TILES},
    "softmax/lazy_rescale": {"tile": TILES, "threshold": (0, 0.5, 2, 4, 8, 30)},
    "softmax/split_merge": {"parts": PARTS},
    "logsumexp/split_merge": {"parts": PARTS},
    "softmax/stored_16_bit": {"stored": tuple(FORMATS)},
    "softmax/stored_after_sum": {"stored": tuple(FORMATS)},
    "softmax/chosen_shift": {"c": (-10, 0, 3, -80, -700, 0.3)},
    "softmax/finite_sentinel": {"start": (-1e4, -3, -80, 0)},
    "softmax/offset": {"offset": (0, 3, 8, 2.7, 100)},
    "softmax/masked_value": {"mask": (-1e9, -3, -80, -1e4, 0)},
}
"""The values that a variant's parameters take."""
NARROW = [1, 2, 3, 5, 9] * 4
WIDTHS = [*NARROW, *[17, 40] * 3, 140, 140, 300]


def _logits(rng, rows, n):
    """Rows that are hard in one way or another."""
    kind = int(rng.integers(0, 10))
    x = rng.standard_normal((rows, n)) * 10 ** rng.uniform(-2, 2) + rng.choice([0, 0, 5, -5, 100])
    if kind == 0:  # one logit ahead
        x[:, 0] = x.max(axis=1) + rng.choice([3, 8, 15, 30])
    if kind == 1:  # equal logits
        x[:] = x[:, :1]
    if kind == 2:  # exponentials around the smallest numbers
        x[:, 1:] = x[:, :1] - rng.choice([9.7, 16.6, 17.4, 87.3, 103.9, 709, 745]) + rng.random((rows, n - 1))
    if kind == 3:  # ascending, or descending
        x.sort(axis=1)
        x = x[:, :: int(rng.choice([1, -1]))]
    if kind == 4:  # log-sum-exp near 0
        x -= np.log(np.exp(np.clip(x, -700, 700)).sum(axis=1, keepdims=True))
    if kind == 5:  # masked
        x = np.where((rng.random(x.shape) < 0.3) & (np.arange(n) > 0), -INF, x)
    if kind == 6:  # masked from the first on
        x = np.where(np.arange(n) < n // 2, -INF, x)
    if kind == 7:  # exponentials, and not only their differences, around the smallest and the largest numbers
        x = rng.choice([-745, -708, -87.3, -16, -9, 9, 11, 88, 709]) + rng.standard_normal((rows, n))
    if kind == 8:  # far from 0, or subnormal
        x = rng.standard_normal((rows, n)) * 10.0 ** rng.choice([-310, -45, -39, -7, -4, -2, 3, 4, 5])
    if kind == 9:  # over all of float8_e4m3fn
        x = rng.uniform(-448, 448, (rows, n))
    return np.ascontiguousarray(x)


def _axes(rng, fmt, slow):
    """slow: also those that float64 goes through integers for."""
    chosen = {
        "exp": str(rng.choice(["numpy", "correct", "exp2"])) if slow else "numpy",
        "subnormals": str(rng.choice(["gradual", "flush"])),
        "fma": slow and bool(rng.integers(0, 2)),
    }
    if rng.random() < 0.4:
        chosen["accumulator"] = str(rng.choice(list(FORMATS)))
    if rng.random() < 0.3:
        chosen["output_format"] = str(rng.choice(list(FORMATS)))
    if FORMATS[fmt].bits == 8 and rng.random() < 0.3:
        chosen["overflow"] = "saturate"
    return Axes(**chosen)


def _drawn(rng, key):
    """A variant's name, with parameters if it has some."""
    told = ", ".join(f"{name}={values[int(rng.integers(len(values)))]}" for name, values in DRAWN.get(key, {}).items())
    return f"{key}({told})" if told else key


class _Known:
    """Rows whose truth is known from the tier T1, times 2^UP: hi + lo, to radius; the others are left out."""

    def __init__(self, op, x, extra):
        good = fast.within(op, x, extra)
        self.op, self.x, self.extra = op, x[good], None if extra is None else extra[good]
        self.rows, self.found = len(self.x), []
        step = max(1, fast.CHUNK // x.shape[1] ** (2 if op == "softmax_jacobian" else 1))
        for start in range(0, self.rows, step):
            block = fast.Block(op, fast.T1, fast.UP, *self.of(slice(start, start + step)), fast.Buffers())
            block.prepare()
            parts = []
            for part in block.parts():
                radius = np.abs(part.hi) * block.bound if part.radius is None else part.radius
                radius = np.broadcast_to(radius if part.masked is None else np.where(part.masked, 0, radius), part.hi.shape)
                parts.append([np.array(block.laid(values)) for values in (part.hi, part.lo, radius)])
            self.found.append([np.concatenate(values, axis=1) for values in zip(*parts, strict=True)])
        self.truth = [np.concatenate(values) for values in zip(*self.found, strict=True)]

    def of(self, which):
        return self.x[which], None if self.extra is None else self.extra[which]

    def used(self, key, fmt, summation, axes, rows):
        """The largest part of their bounds that the first rows use."""
        x, extra = self.of(slice(0, rows))
        k, variant = Arithmetic(FORMATS[fmt], summation, axes=axes), find(*key.split("/", 1))
        output = k.deliver(variant.run(x, k=k) if extra is None else variant.run(x, extra, k))
        c = widen(output.reshape(len(x), -1))
        b = Allowed([Tolerance((declared(variant.key, k.fmt, summation, k.axes),))], x, extra).part(0, 0, c.shape[1])
        hi, lo, radius = (values[:rows] for values in self.truth)
        with np.errstate(all="ignore"):
            off = np.abs((c * 2.0**fast.UP - hi) - lo)
            far = off + radius * (1 + 2.0**-20) + 2.0**-960  # smaller truths are not known better
            ratio = np.where(np.isfinite(c) & (b < INF) & (np.abs(c) < 2.0**400), far / b * 2.0**-fast.UP, 0.0)
        used = float(ratio.max())
        if used <= 1:
            return used
        open_ = np.flatnonzero((ratio > 1).any(axis=1))
        found = run(key, fmt, x[open_], None if extra is None else extra[open_], summation, axes)
        return max(float(ratio[ratio <= 1].max(initial=0)), Measurement(*found).error_over_bound() or 0.0)


def attack(op, fmt, seed, rows, count):
    """The largest part of a bound that was used over `count` drawn batches of `rows` rows by every variant, and where."""
    rng, worst = np.random.default_rng([seed, *op.encode(), *fmt.encode()]), {}
    for draw in range(count):
        n = int(rng.choice(NARROW if op == "softmax_jacobian" else WIDTHS))
        extra = extra_of(op, rng, (rows, n), draw)
        if extra is not None and extra.dtype.kind == "f":
            extra = round_array(extra, FORMATS[fmt])
        known = _Known(op, round_array(_logits(rng, rows, n), FORMATS[fmt]), extra)
        for plain_key in (key for key in BOUNDS if key.split("/")[0] == op and known.rows):
            slow = fmt != "float64" or draw % 2 == 0
            key, axes = _drawn(rng, plain_key), _axes(rng, fmt, slow)
            summation = str(rng.choice([name for name in SUMMATIONS if slow or name != "exact"]))
            by_integers = (slow and fmt == "float64") or summation == "exact"  # element after element, in Python
            used = known.used(key, fmt, summation, axes, 1 + 600 // n if by_integers else rows)
            told = f"draw {draw}: {key}, n = {n}, {summation}, {axes}"
            worst[plain_key] = max(worst.get(plain_key, (0.0, "")), (used, told))
    return worst


@pytest.mark.half
@pytest.mark.no_cover
@pytest.mark.parametrize("fmt", list(FORMATS))
@pytest.mark.parametrize("op", list(OPS))
def test_no_right_implementation_exceeds_its_bound(op, fmt):
    worst = attack(op, fmt, 0, 40, 16)
    assert max(worst.values())[0] <= 1, max(worst.values())
    assert set(worst) == {key for key in BOUNDS if key.split("/")[0] == op}
    assert fmt != "float32" or min(used for used, _ in worst.values()) > 0.1


@pytest.mark.soak
def test_no_right_implementation_exceeds_its_bound_on_100000_rows():
    """Every format gets 100,000 rows of every op, and every variant computes them on axes that change from batch to batch."""
    worst = {(key, fmt): used for op, fmt in itertools.product(OPS, FORMATS) for key, used in attack(op, fmt, 1, 500, 200).items()}
    for (key, fmt), (used, where) in sorted(worst.items(), key=lambda item: -item[1][0]):
        print(f"{used:.4f} {key} {fmt} {where}")  # noqa: T201
    assert max(used for used, _ in worst.values()) <= 1


def test_the_parameters_of_the_bounds_are_those_of_the_variants():
    for key, variant in VARIANTS.items():
        if key in BOUNDS:
            given = list(inspect.signature(BOUNDS[key]).parameters.values())[1:]
            assert {row.name: row.default for row in given} == {name: row.default for name, row in variant.parameters.items()}, key
            assert set(DRAWN.get(key, {})) == set(variant.parameters), key


def test_every_variant_with_a_bound_is_in_the_catalogue_and_the_others_say_so():
    with_params = {key for key, variant in VARIANTS.items() if variant.needs}
    assert set(BOUNDS) | set(bounds.REASONS) | with_params == set(VARIANTS)
    assert not set(BOUNDS) & with_params
    assert not set(BOUNDS) & set(bounds.REASONS)
    assert all(bounds.reference(op) in BOUNDS for op in OPS)
    assert rule("cross_entropy/clipped").startswith("no bound: ")
    assert rule("softmax/tiled(tile=16)") == rule("softmax/tiled") == bounds.FORMULAS["softmax/tiled"]
    assert rule("softmax/unheard_of") == "no bound is known"
    k = replace(stable("softmax", F32), variant="softmax/unheard_of")
    assert np.isinf(allowed([Tolerance((k,))], np.zeros(3), None, 3)).all()


# ---- formulas that are no bounds -------------------------------------------------------------------------------------


def first_order(x, u, h):
    """p_i u (|d_i| + 1 + W + h + 1) of softmax, relative to p_i."""
    d = x - x.max()
    p = np.exp(d) / np.exp(d).sum()
    c = d < 0
    return u * (np.abs(d) + c + (p * (np.abs(d) + c)).sum() + h + 1)


def test_the_first_order_form_is_exceeded_where_second_order_terms_count():
    x = np.array([0.25, -64.0])
    m = exactly("softmax/shifted", "bfloat16", x, axes=Axes(exp="correct"))
    assert m.largest("rel", [1])[0] > first_order(x, BF16.unit_roundoff, 1)[1]
    assert m.error_over_bound() <= 1


def test_the_first_order_form_is_exceeded_where_the_sum_lost_subnormals():
    x = np.array([0.0, *[-17.3828125] * 128255])
    output, truth, allowances = run("softmax/shifted", "float16", x, summation="exact", axes=Axes(exp="correct"))
    found = Survey(output, truth, allowances=allowances)
    assert abs(float(output[0]) - 1 / (1 + 128255 * math.exp(-17.3828125))) > 3 * first_order(x, F16.unit_roundoff, 1)[0]
    assert found.metrics().error_over_bound is None or found.metrics().error_over_bound <= 1


def test_where_the_sum_overflows_there_is_no_bound():
    x = np.zeros(65520)
    output, truth, allowances = run("softmax/shifted", "float16", x)
    found = Survey(output, truth, allowances=allowances)
    assert not output.any()
    assert found.metrics().error_over_bound is None
    assert (found.bound().unbounded, found.bound().unjudged, found.status()) == (65520, 65520, "unstable")


@pytest.mark.no_cover
@pytest.mark.parametrize(("base", "width", "least"), [(10, 1, 30), (60, 1, 150), (1000, 1, 250), (-60, 1, 150), (1000, 100, 100)])
def test_the_coded_bound_of_the_shifted_log_sum_exp_is_violated(base, width, least):
    """|y + n - x_min| u, chop_test_softmax.m beside doi 10.1093/imanum/draa038; with |y| besides it holds, as ours does."""
    rng = np.random.default_rng(5)
    beyond = 0
    for _ in range(400):
        x = (base + width * rng.random(int(rng.integers(2, 12)))).astype(np.float32)
        m = exactly("logsumexp/log1p", "float32", x, summation="sequential", axes=Axes(exp="correct"))
        error, y = m.max_abs(), float(widen(m.output)[0])
        beyond += error > abs(y + x.size - float(x.min())) * F32.unit_roundoff
        assert error <= (abs(y) + x.size + y - float(x.min())) * F32.unit_roundoff
        assert m.error_over_bound() <= 1
    assert beyond >= least


# ---- what a bound says -----------------------------------------------------------------------------------------------


@pytest.mark.half
@pytest.mark.no_cover
@pytest.mark.parametrize("key", list(BOUNDS))
def test_both_paths_give_the_same_figures_of_a_declared_algorithm(key):
    rng = np.random.default_rng([*key.encode()])
    op = key.split("/")[0]
    for draw, fmt in enumerate(("float16", "bfloat16", "float32", "float64", "float8_e5m2") * 2):
        n = 7 if op == "softmax_jacobian" else 40
        x = rng.standard_normal((6, n)) * 3 - 2
        x[1] += rng.choice([-60, 30, 600])
        output, truth, allowances = run(key, fmt, x, extra_of(op, rng, x.shape, draw), "pairwise")
        taken, exact = (
            Survey(output, Truth(truth.problem, truth.fmt), allowances=allowances),
            Measurement(output, truth, allowances),
        )
        figures = taken.metrics().error_over_bound, taken.bound()
        assert described(taken.metrics(), *figures, 0, 0) == described(
            taken.metrics(), exact.error_over_bound(), exact.bound(), 0, 0
        ), (key, fmt)


def test_what_is_left_to_the_exact_path_keeps_its_declaration(monkeypatch):
    output, truth, allowances = run("softmax/shifted", "float16", np.linspace(-3, 3, 40), summation="kahan")

    def undecided(self, ranks):
        raise survey._Open

    monkeypatch.setattr(Survey, "_metrics", undecided)
    found = Survey(output, truth, allowances=allowances).metrics().error_over_bound
    assert found == Measurement(output, truth, allowances).error_over_bound()


def test_bounds_do_not_depend_on_what_is_computed_together():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3, bounds.CHUNK + 5)) * 4
    g = rng.standard_normal(x.shape)
    for key, extra in (("softmax_vjp/shifted", g), ("log_softmax/log1p", None)):
        k = declared(key, F32, "numpy", Arithmetic(F32).axes)
        whole = Allowed([Tolerance((k,))], x, extra).part(0, 100, bounds.CHUNK + 5)
        alone = [allowed([Tolerance((k,))], row, None if extra is None else extra[i], row.size)[0] for i, row in enumerate(x)]
        assert np.array_equal(whole, np.array(alone)[:, 100:])


@pytest.mark.parametrize("beside", [0, -1e-30, 1e-14, -1e-14])
def test_a_bound_beside_the_truth_is_decided_by_a_finer_tier(monkeypatch, beside):
    monkeypatch.setattr(Allowed, "part", lambda self, which, start, stop: np.full((len(self._of.m), stop - start), 0.25 + beside))
    output, truth, allowances = run("softmax/shifted", "float32", np.zeros((3, 4)))
    found = Survey(output, truth, allowances=allowances)
    assert (found.bound(), found.status()) == (Measurement(output, truth, allowances).bound(), "accurate")
    assert found.bound().vacuous == 12 * (0.25 + beside >= 0.25)


def test_bounds_are_kept_for_a_while_only(monkeypatch):
    monkeypatch.setattr("engine.measurement.KEPT", 3)
    _, _, allowances = run("softmax/shifted", "float32", np.arange(12.0).reshape(6, 2))
    whole = [allowances.own(i) for i in range(12)]
    assert len(allowances._rows) < 4
    assert whole[:2] * 6 == whole  # the rows differ by a shift


def test_a_vacuous_bound_is_counted():
    m = exactly("softmax/shifted", "float16", [0.0, -16.0, -3.0])
    assert m.bound().vacuous == 1  # exp(-16) is subnormal, and known to no digit
    assert (m.bound().unbounded, m.bound().unjudged) == (0, 0)


def test_a_right_infinity_has_no_part_in_the_bounds():
    found = measure(Problem("log_softmax", np.array([0.0, -3e38, 3e38], np.float32)), np.array([-INF, -INF, 0], np.float16))
    assert (found.metrics.compared, found.metrics.error_over_bound, found.bound.unbounded) == (3, 0.0, 0)
    assert found.bound.vacuous == 1  # of -exp(-3e38)


@pytest.mark.parametrize("fmt", ["float8_e5m2", "float8_e4m3fn"])
def test_where_no_bound_exists_a_status_does_not_say_accurate(fmt):
    x = np.linspace(-4, 4, 40)
    (found,) = evaluate(Problem("softmax", x), [fmt], ["shifted"], summation="kahan").outcomes
    assert found.metrics.error_over_bound is None
    assert (found.status, found.bound.unbounded, found.bound.unjudged) == ("unbounded", 40, 40)


def test_an_ill_conditioned_problem_is_told_from_a_bad_algorithm():
    """log-sum-exp near 0: every variant errs by many ulps and keeps to its bound. A softmax through log p: its p are good."""
    (ill,) = evaluate(Problem("logsumexp", np.array([-math.log(2), -math.log(2)])), ["float64"], ["shifted"]).outcomes
    assert ill.metrics.max_ulp > 1e10 or ill.metrics.max_ulp == 0
    assert ill.metrics.error_over_bound <= 1
    assert ill.bound.condition > 1e14
    naive, shifted = evaluate(Problem("log_softmax", np.array([85.0, 84.0])), ["float32"], ["naive", "shifted"]).outcomes
    assert naive.bound.condition == shifted.bound.condition < 200
    assert naive.metrics.error_over_bound <= 1
    assert naive.metrics.max_ulp > 10 * shifted.metrics.max_ulp


def test_the_worst_elements_have_their_bounds():
    """In the answer they are those that error_over_bound is measured with; one of a NaN truth, or where there is none, is null."""
    problem = Problem("softmax", np.array([[0.0, 1.0, 2.5], [NAN, 0.0, 0.0], [12.0, 0.0, 0.0]]))
    naive, shifted = evaluate(problem, ["float16"], ["naive", "shifted"]).outcomes
    *_, allowances = run("softmax/shifted", "float16", problem.logits)
    assert len(shifted.worst) > 2
    for w in shifted.worst:
        assert w.bound == allowances.own(3 * w.index[0] + w.index[1])
        assert w.bound_ulp / w.bound == pytest.approx(w.ulp / abs(w.got - float(w.expected)), rel=1e-4)
    assert max(w.ulp / w.bound_ulp for w in shifted.worst) == pytest.approx(shifted.metrics.error_over_bound, rel=1e-5)
    assert [(w.bound, w.bound_ulp) for w in naive.worst if w.index[0] == 2] == [(None, None)] * 3
    (measured,) = measure(Problem("logsumexp", np.array([NAN])), np.array(0.0)).worst
    assert (measured.expected, measured.bound, measured.bound_ulp) == ("NaN", None, None)


@pytest.mark.parametrize("n", [3, 600])
def test_which_row_is_conditioned_worst(n):
    x = np.zeros((6, n))
    x[[2, 4], 0] = 9.0
    for rows, wanted in (([0, 1, 2, 3, 4], 2), ([0, 1], 0), ([5, 4, 3], 1)):
        (found,) = evaluate(Problem("softmax", x[rows]), ["float64"], ["shifted"]).outcomes
        assert found.bound.condition_row == wanted
    (none,) = evaluate(Problem("softmax_vjp", x, grad_output=x), ["float64"], ["shifted"]).outcomes
    assert (none.bound.condition, none.bound.condition_row) == (None, None)


@pytest.mark.parametrize(
    ("op", "extra", "wanted"),
    [
        ("logsumexp", None, 3 / math.log(math.e**3 + math.e)),
        ("softmax", None, 6 * math.exp(-2) / (1 + math.exp(-2))),
        ("log_softmax", None, 2 * 3 * (1 / (1 + math.exp(-2))) / (2 + math.log1p(math.exp(-2)))),
        ("cross_entropy", np.array([1]), 3 * 2 * (1 / (1 + math.exp(-2))) / (2 + math.log1p(math.exp(-2)))),
        ("cross_entropy", np.array([[0.0, 2.0]]), 3 * 2 * (1 / (1 + math.exp(-2))) / (2 + math.log1p(math.exp(-2)))),
        ("cross_entropy_grad", np.array([1]), 6 * math.exp(-2) / (1 + math.exp(-2))),
        ("softmax_vjp", np.array([[1.0, 2.0]]), 0),
        ("softmax_jacobian", None, 0),
    ],
)
def test_condition_numbers(op, extra, wanted):
    if op == "cross_entropy_grad":  # 2 x_max p (1 - p) / max |g|, |g| = p_0
        wanted = 2 * 3 * math.exp(-2) / (1 + math.exp(-2)) ** 2 * (1 + math.exp(-2))
    found = Allowed([Tolerance((stable(op, F64),))], np.array([[3.0, 1.0]]), extra).condition()
    assert found[0] == pytest.approx(wanted, rel=1e-12)


def test_a_row_without_truth_has_no_condition():
    found = Allowed(
        [Tolerance((stable("softmax", F64),))], np.array([[NAN, 1.0], [INF, 0], [-INF, -INF], [1.0, 0.0]]), None
    ).condition()
    assert found[:3].tolist() == [0, 0, 0]
    assert found[3] > 0


# ---- constants -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", [name for name, row in FORMATS.items() if row.precision < 53])
@pytest.mark.parametrize("name", list(SUMMATIONS))
def test_the_constant_of_a_summation_holds(name, fmt):
    """Sums of positive terms, against exact ones in binary64."""
    form, rng, used = FORMATS[fmt], np.random.default_rng(3), 0.0
    for n in (1, 2, 3, 7, 8, 9, 31, 33, 127, 128, 129, 136, 300, 1000):
        terms = round_array(2.0 ** rng.uniform(-3, 0, (20, n)), form)
        found = widen(SUMMATIONS[name].add(terms, plain(form)))
        exact = widen(terms).sum(axis=1)
        h = summing(name, n, form)
        inside = np.isfinite(found) & (exact < form.largest)
        assert (np.abs(np.log(found[inside] / exact[inside])) <= h * (1 + 1e-9) + 1e-12).all(), (name, n)
        used = max(used, h)
    assert used > 0


def test_sums_without_a_theorem_have_no_constant():
    assert summing("neumaier", 257, BF16) == INF
    assert summing("neumaier", 255, BF16) == INF  # gamma is above 1
    assert summing("neumaier", 20, BF16) < 0.02
    assert summing("kahan", 20000, BF16) == INF
    assert summing("kahan", 100, F32) < 5 * F32.unit_roundoff


def test_numpy_keeps_to_the_errors_it_is_trusted_with():
    for fmt in (F16, BF16, FORMATS["float8_e4m3fn"], FORMATS["float8_e5m2"]):
        x = from_ordinals(np.arange(-fmt.infinity_ordinal + 1, fmt.infinity_ordinal), fmt)
        for function in (np.exp, np.exp2, np.log, np.log1p):
            with np.errstate(all="ignore"):
                got, true = widen(function(x)), function(widen(x).astype(np.longdouble))
            used = np.isfinite(got) & np.isfinite(true) & (np.abs(true) >= fmt.smallest_subnormal / 2)
            ulp = 2.0 ** (np.maximum(np.floor(np.log2(np.abs(true[used]))), fmt.emin) - fmt.precision + 1)
            assert float((np.abs(got[used] - true[used]) / ulp).max()) <= bounds.numpy_ulps(fmt), (fmt.name, function)
    assert np.exp(np.zeros(9, np.float32)).tolist() == np.exp2(np.zeros(9)).tolist() == [1] * 9


def test_a_narrower_accumulator_and_output_have_their_part():
    plainly = declared("softmax/shifted", F32, "numpy", Arithmetic(F32).axes)
    base, narrow = constants(plainly, 10), constants(replace(plainly, accumulator="bfloat16", output="float16"), 10)
    assert (base.u_out, base.term, base.total) == (0, 0, 0)
    assert narrow.u_out == F16.unit_roundoff
    assert narrow.h > base.h + BF16.unit_roundoff
    assert narrow.term > 0
    assert constants(replace(plainly, accumulator="float64", flush=True), 10).least > F32.smallest_normal
    assert constants(replace(plainly, format="float8_e5m2", accumulator="float8_e5m2", saturates=True), 3).ceiling == 57344


def bound_of(key, logits, fmt=F32, **axes):
    """The bounds of one row."""
    k = declared(key, fmt, "sequential", Arithmetic(fmt, axes=Axes(**axes)).axes)
    return allowed([Tolerance((k,))], round_array(np.asarray(logits, dtype=float), fmt), None, len(logits))[0]


def test_only_what_subtracts_the_maximum_has_a_bound_that_a_shift_leaves_alone():
    row = np.array([0.0, -1.0, -2.0])
    assert np.array_equal(bound_of("softmax/shifted", row + 512), bound_of("softmax/shifted", row))
    assert (bound_of("softmax/subtractive", row + 512) > 20 * bound_of("softmax/subtractive", row)).all()
    assert (bound_of("softmax/exp2_scaled", row + 512) > 20 * bound_of("softmax/exp2_scaled", row)).all()


def test_tiles_with_a_folded_product_are_off_against_each_other():
    row = np.arange(40.0) / 8
    near, far = (bound_of("softmax/tiled_scaled(tile=4)", row + shift) for shift in (0, 4096))
    assert (far > 20 * near).all()
    assert (bound_of("softmax/tiled_scaled(tile=4)", row + 4096, fma=True) < 0.6 * far).all()
    low, near = (bound_of("softmax/tiled_scaled(tile=1)", [gap, 0.0])[1] for gap in (-4096.0, -1.0))
    assert low > 20 * near  # what was folded in a tile below is not 0
    assert (bound_of("softmax/tiled_scaled", [3e38, 0.0]) == INF).all()


def test_a_base_that_is_not_the_maximum_has_a_bound_between_its_limits_only():
    assert (bound_of("softmax/chosen_shift(c=-10)", [98, 0]) < INF).all()
    assert (bound_of("softmax/chosen_shift(c=-10)", [99, 0]) == INF).all()
    assert (bound_of("softmax/wrong_shift", [-80, -81]) < 1e-4).all()
    assert (bound_of("softmax/wrong_shift", [-110, -111]) == INF).all()
    assert (bound_of("softmax/finite_sentinel(start=-1)", [-110, -111]) == INF).all()
    assert (bound_of("softmax/finite_sentinel", [-110, -111]) < 1e-4).all()


def test_a_rescaling_has_its_part_in_the_bound():
    up, down = np.arange(100.0) / 50, -np.arange(100.0) / 50
    assert bound_of("softmax/online", up)[-1] > 1.5 * bound_of("softmax/online", down)[0]
    assert bound_of("softmax/tiled(tile=1)", up)[-1] > bound_of("softmax/tiled(tile=10)", up)[-1]
    assert bound_of("softmax/lazy_rescale(tile=10, threshold=20)", up)[-1] > bound_of("softmax/tiled(tile=10)", up)[-1]
    assert (bound_of("softmax/lazy_rescale(tile=1, threshold=1000)", [0.0, 90.0]) == INF).all()


@pytest.mark.parametrize(
    ("key", "row"),
    [
        ("softmax/offset", [0, 0]),
        ("softmax/offset(offset=20)", [0]),
        ("softmax/tiled(tile=500)", [0] * 449),
        ("softmax/split_merge(parts=3)", [0] * 449),
        ("softmax/two_pass", [448, 0]),
        ("softmax/exp2_scaled", [448, 0]),
        ("softmax/tiled_scaled", [0, -448]),
        ("softmax/lazy_rescale(tile=1, threshold=1000)", [0, 448]),
    ],
)
def test_where_a_step_overflows_a_narrow_format_there_is_no_bound(key, row):
    assert (bound_of(key, row, FORMATS["float8_e4m3fn"], accumulator="float32") == INF).all()


@pytest.mark.half
@pytest.mark.parametrize("exp", ["numpy", "correct", "exp2"])
@pytest.mark.parametrize("fma", [False, True])
def test_where_the_declared_algorithm_gives_nan_there_is_no_bound(exp, fma):
    """In a format without infinity what overflows is NaN: every difference of two logits, and every result."""
    rng, fmt = np.random.default_rng(5), FORMATS["float8_e4m3fn"]
    x = round_array(np.clip(rng.normal(0, 1, (90, 3)) * rng.choice([1, 30, 200, 400], (90, 1)), -448, 448), fmt)
    gaps, outside = widen(x).max(axis=1) - widen(x).min(axis=1), 0
    for key in list(BOUNDS)[("numpy", "correct", "exp2").index(exp) :: 3]:
        variant = VARIANTS[key]
        extra = extra_of(variant.op, rng, x.shape, 1) if "targets" in OPS[variant.op].tensors else None
        if "grad_output" in OPS[variant.op].tensors:
            extra = round_array(rng.normal(0, 3, x.shape), fmt)
        output, truth, allowances = run(key, fmt.name, x, extra, axes=Axes(exp=exp, fma=fma))
        chosen = np.flatnonzero(np.isnan(widen(output.reshape(-1))))
        found = [allowances.own(int(i)) for i in chosen if not isinstance(truth.cell(int(i), truth.bits), float)]
        assert all(bound == INF for bound in found), key
        outside += len(found)
    assert outside > 30
    wide = x[gaps > 464]
    assert len(wide) > 3
    assert all(np.isinf(bound_of("softmax/shifted", row, fmt)).all() for row in widen(wide))
    assert (bound_of("softmax/shifted", [200, -200], fmt) < INF).all()
    assert (bound_of("softmax/shifted", [448, -448], fmt, overflow="saturate") < INF).all()


@pytest.mark.parametrize(("logit", "bounded"), [(-440, True), (-447, True), (-463, True), (-463.5, True), (-463.99997, False)])
def test_what_rounds_to_the_largest_number_has_a_bound_where_nothing_overflows(logit, bounded):
    """Up to 464, in a format whose largest number is 448."""
    k = bounds.Declared(bounds.reference("cross_entropy"), "float32", "float32", "float8_e4m3fn", "pairwise", 2, 2)
    x, target = np.array([[logit, 0.0]]).astype(np.float32), np.array([0])
    assert np.isfinite(allowed([Tolerance((k,))], x[0], target[0], 1)[0][0]) == bounded


def test_a_weight_of_zero_beside_a_probability_of_zero_has_no_bound():
    weights = np.array([[1.0, 0.0, 0.0]])
    for name, logits in (("naive", [[7.0, -18.0, 5.0]]), ("log_of_softmax", [[7.0, -18.0, 5.0]]), ("naive", [[7.0, -INF, 5.0]])):
        output, _, allowances = run(f"cross_entropy/{name}", "float16", logits, weights)
        assert np.isnan(output).all()
        assert allowances.own(0) == INF
        assert allowances.judge(0) < INF
    _, _, allowances = run("cross_entropy/naive", "float16", [[7.0, 3.0, 5.0]], weights)
    assert allowances.own(0) < INF


def test_what_is_stored_beyond_its_format_has_no_bound():
    key = "cross_entropy_grad/in_place_16_bit"
    for largest, finite in ((1.0e38, True), (9.6e161, False)):
        output, _, allowances = run(key, "float64", [[-744.68, -745.89]], np.array([[largest, 1.35 * largest]]))
        assert bool(np.isfinite(output).all()) == finite
        assert [allowances.own(i) < INF for i in range(2)] == [finite] * 2


def test_a_number_for_masked_logits_has_what_it_takes_in_its_bound():
    row = [-1e4, -1e4, -INF]
    assert (bound_of("softmax/masked_value", row)[:2] < 1e-5).all()
    assert bound_of("softmax/masked_value(mask=-10000)", row)[2] == pytest.approx(1 / 3, rel=1e-5)
    assert bound_of("softmax/masked_value(mask=-10000)", row)[0] == pytest.approx(1 / 6, rel=1e-5)
    assert bound_of("softmax/masked_value", [-1e4, -INF], F16)[1] < 1e-6  # -inf there
    sharp = bound_of("softmax/masked_value", [-440, -INF], FORMATS["float8_e4m3fn"], overflow="saturate")
    assert sharp[1] > 1e-4  # -448 there


def test_a_stored_format_has_its_roundoff_in_the_bound():
    row = [0.0, -1.0]
    assert bound_of("softmax/stored_16_bit(stored=float64)", row) == pytest.approx(bound_of("softmax/shifted", row), rel=1e-12)
    assert bound_of("softmax/stored_16_bit", row)[1] > 1000 * bound_of("softmax/shifted", row)[1]
    assert bound_of("softmax/stored_after_sum", row)[0] < 2 * bound_of("softmax/shifted", row)[0]


@pytest.mark.parametrize("variant", ["split", "fused"])
def test_terms_of_a_loss_that_may_saturate_have_no_bound(variant):
    """(448 - -448) 0.1 is 89.6, and 44.8 after the difference saturated."""
    axes = Axes(overflow="saturate", accumulator="float32", output_format="float32")
    for x in ([448.0, -448.0], [288.0, -416.0]):
        m = exactly(f"cross_entropy/{variant}", "float8_e4m3fn", [x], np.array([[0.9, 0.1]]), axes=axes)
        assert m.max_abs() > 20
        assert m.error_over_bound() is None


def test_what_underflows_in_float64_has_its_part():
    m = exactly("softmax/naive", "float64", [-700.0, -720.5, -730.0], axes=Axes(exp="correct"))
    assert m.largest("rel", [2])[0] > 1e-8
    assert 0.1 < m.error_over_bound() <= 1


def test_saturated_truths_have_no_bound():
    axes = Axes(overflow="saturate")
    m = exactly("log_softmax/shifted", "float8_e4m3fn", [448.0, -448.0], axes=axes)
    assert m.got[1] == -m.fmt.infinity_ordinal + 1
    assert m.bound().unbounded >= 1


def test_the_elementary_functions_keep_their_word():
    x = np.linspace(-700, 709, 100_001)
    true = np.exp(x.astype(np.longdouble))
    assert float(np.abs(bounds._exp(x) / true - 1).max()) < 2.0**-50
    assert bounds._exp(np.array([709.5, -INF, 0.0])).tolist() == [INF, 0, 1]
    t = 2.0 ** np.linspace(-70, 9, 10_001)
    over = bounds._expm1(t) / np.expm1(t.astype(np.longdouble)) - 1
    assert float(over.min()) > -(2.0**-49)
    assert float(over[t <= 2.0**-4].max()) < 2.0**-37
    assert float(over.max()) < 2.0**-14
    s = 2.0 ** np.linspace(-700, 24, 10_001)
    assert float(np.abs(bounds._log1p(s) / np.log1p(s.astype(np.longdouble)) - 1).max()) < 2.0**-48


def test_a_format_has_to_be_able_to_saturate():
    with pytest.raises(InvalidProblem):
        run("softmax/shifted", "float32", [1.0, 2.0], axes=Axes(overflow="saturate"))


def test_the_figure_is_the_largest_error_over_its_bound():
    rng = np.random.default_rng(4)
    for fmt in ("float16", "float32", "float64"):
        output, truth, allowances = run("softmax/naive", fmt, rng.standard_normal((2, 5)))
        parts = []
        for i, c in enumerate(widen(output).reshape(-1).tolist()):
            lo, hi, exp = hull(truth.row(i // 5, 200)[i % 5])
            middle = Fraction(lo + hi, 2) * Fraction(2) ** exp
            parts.append(abs(Fraction(c) - middle) / Fraction(allowances.own(i)))
        assert Measurement(output, truth, allowances).error_over_bound() == pytest.approx(float(max(parts)), rel=1e-11)


@pytest.mark.parametrize("variant", ["log_softmax/shifted", "log_softmax/log1p", "cross_entropy/fused"])
def test_gaps_that_binary64_may_not_hold_have_no_bound(variant):
    """An error of u times a gap above 2^1020 was once compared with that of 2^1020."""
    x = [[6.0e305, -1.49e308, 0.0]]
    targets = [np.array([1])] if variant.startswith("cross") else []
    output, truth, allowances = run(variant, "float64", x, *targets)
    measured = Measurement(output, truth, allowances)
    found = [allowances.own(i) for i in range(truth.width)]
    assert (found if targets else found[1:2]) == [INF]
    over = measured.error_over_bound()
    assert over is None or over <= 1
    assert not measured.beyond


@pytest.mark.parametrize("exp", ["correct", "exp2"])
@pytest.mark.parametrize("variant", ["softmax/naive", "softmax_jacobian/naive"])
def test_exponentials_that_underflow_in_float64_are_allowed_half_a_subnormal(variant, exp):
    """Half of it is no number of binary64: rounded to 0 it once was no allowance at all, times exp(700)."""
    assert 0 < exactly(variant, "float64", [[-700.0, -745.2]], axes=Axes(exp=exp)).error_over_bound() <= 1


def test_what_underflows_a_thousand_times_in_float64_is_allowed():
    g = np.array([[0.0] + [0.49 * 2.0**-1074 * math.exp(55)] * 999])
    assert not exactly("softmax_vjp/shifted", "float64", [[0.0] + [-55.0] * 999], g).beyond
    for name in ("fused", "log_of_softmax", "naive"):
        found = exactly(f"cross_entropy/{name}", "float64", np.zeros((1, 1790)), np.full((1, 1790), 2.0**-1074))
        assert found.error_over_bound() <= 1
        assert not found.beyond


def test_longer_sums_than_the_bound_is_evaluated_for_have_none():
    assert summing("sequential", 1 << 24, FORMATS["float64"]) < INF
    assert summing("exact", (1 << 24) + 1, FORMATS["float64"]) == INF
