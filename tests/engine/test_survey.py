"""Survey: every figure by the fast tiers is the exact path's, bit for bit, whatever the logits and whatever the output."""

import math
import multiprocessing
import pickle
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest

import engine
from engine import Disagreement, Problem, outcome, screen, survey
from engine.arithmetic import Arithmetic
from engine.bounds import REFERENCE
from engine.errors import Undecided
from engine.formats import FORMATS, from_ordinals, ordinals, round_array, widen
from engine.measurement import Measurement
from engine.metrics import measure
from engine.ops import OPS
from engine.recorder import Recorder
from engine.survey import Survey
from engine.truth import Truth, enclosures, fast
from engine.variants import find, of_op
from tests import rows
from tests.conftest import unmeasured

INF, NAN = math.inf, math.nan
WORST = 8
TASKS = (
    "softmax",
    "log_softmax",
    "logsumexp",
    "cross_entropy of indices",
    "cross_entropy of weights",
    "cross_entropy_grad of indices",
    "cross_entropy_grad of weights",
    "softmax_jacobian",
    "softmax_vjp",
)
every_task = pytest.mark.parametrize("task", TASKS)
every_format = pytest.mark.parametrize("fmt", [name for name, row in FORMATS.items() if row.has_infinity])


def described(judged_metrics, worst, bound, status, absorbed):
    """Figures as text, in which NaN equals NaN and -0 is not 0."""
    named = {**asdict(judged_metrics), "worst": worst, "bound": bound, "status": status, "absorbed": absorbed}
    return {name: repr(value) for name, value in named.items()}


def exactly(output, truth):
    """The figures by the exact path."""
    try:
        with unmeasured():
            found = outcome._exactly(output, truth, True, WORST)
    except Undecided:
        return {"undecided": "yes"}
    return described(found.metrics, found.worst, found.bound, found.status, found.absorbed)


def read(surveyed):
    """The figures of a survey."""
    try:
        return _read(surveyed)
    except Undecided:
        return {"undecided": "yes"}


def _read(surveyed):
    found = surveyed.metrics(True)
    absorbed = outcome._absorbed_fault(*surveyed.absorbed(), surveyed.cells, surveyed.truth)
    return described(found, surveyed.worst(WORST), surveyed.bound(), surveyed.status(), absorbed)


def assert_same(output, truth, label, **how):
    """The survey of an output gives the exact path's figures; returns the survey."""
    taken = Survey(output, Truth(truth.problem, truth.fmt), WORST, **how)
    found, expected = read(taken), exactly(output, truth)
    different = {name: (expected.get(name), found.get(name)) for name in expected | found if expected.get(name) != found.get(name)}
    assert not different, f"{truth.op.name} {truth.fmt.name} {label}"
    return taken


def stable(op):
    """The variant of an op by whose bound a status is decided."""
    return find(op, REFERENCE[op])


def run(variant, problem, fmt):
    """A catalogue variant's output; logits of another format than the output's are rounded to it first."""
    given = [problem.targets, problem.grad_output]
    arguments = [round_array(problem.logits, fmt), *(tensor for tensor in given if tensor is not None)]
    return variant.run(*arguments, Arithmetic(fmt, "numpy", Recorder()))


# ---- logits ----------------------------------------------------------------------------------------------------------


def _gaussian(rows_, n, sigma=1.0, offset=0.0):
    return lambda rng, fmt: rng.standard_normal((rows_, n)) * sigma + offset


def _masked(sigma):
    def make(rng, fmt):
        x = rng.standard_normal((8, 10)) * sigma
        return np.where((rng.random(x.shape) < 0.4) & (np.arange(10) > 0), -INF, x)

    return make


def _special(rng, fmt):
    x = rng.standard_normal((9, 6))
    x[1], x[2, 3], x[3], x[4, :5], x[5] = NAN, INF, -INF, -INF, 2.5
    x[6, :2], x[7, 0], x[7, 5] = (NAN, INF), -INF, INF
    return x


def _few(rng, fmt):
    x = np.full((5, 6), -INF)
    x[1, 2], x[2, :2], x[3, 3], x[4, 1:5] = 3, 1, -fmt.largest, (0, -fmt.largest, fmt.largest, 0)
    return x


def _one_ahead(gaps):
    def make(rng, fmt):
        x = np.zeros((len(gaps), 6))
        x[np.arange(len(gaps)), np.arange(len(gaps)) % 6] = [min(gap, fmt.largest / 4) for gap in gaps]
        return x

    return make


def _behind(distance, spread):
    """One logit at 0, the others about as far below it as the format's limits are."""

    def make(rng, fmt):
        x = -distance(fmt) * math.log(2) + rng.normal(0, spread, (8, 6))
        x[:, 0] = 0
        return x

    return make


def _choice(*values):
    return lambda rng, fmt: rng.choice([value(fmt) if callable(value) else value for value in values], (6, 5))


LOGITS = {
    "normal": _gaussian(6, 8),
    "sigma 10": _gaussian(4, 20, 10),
    "sigma 300": _gaussian(4, 12, 300),
    "sigma 1000": _gaussian(4, 12, 1000),
    "offset": _gaussian(4, 9, 1, 30000),
    "one row": _gaussian(1, 9),
    "n = 1": _gaussian(5, 1, 10),
    "n = 2": _gaussian(9, 2, 5),
    "n = 63": _gaussian(2, 63),
    "n = 64": _gaussian(2, 64),
    "n = 65": _gaussian(2, 65, 5),
    "masks": _masked(1),
    "masks, sigma 200": _masked(200),
    "NaN, infinities, masks": _special,
    "few finite": _few,
    "fully masked": lambda rng, fmt: np.full((3, 4), -INF),
    "all NaN": lambda rng, fmt: np.full((2, 4), NAN),
    "all equal": lambda rng, fmt: np.repeat(rng.standard_normal((6, 1)) * 10, 7, axis=1),
    "8 equal": lambda rng, fmt: np.repeat(rng.standard_normal((6, 1)) * 10, 8, axis=1),
    "ties": lambda rng, fmt: np.round(rng.standard_normal((6, 9))),
    "identical rows": lambda rng, fmt: np.tile(rng.standard_normal((1, 11)) * 3, (6, 1)),
    "low entropy": lambda rng, fmt: rng.choice([-1.5, 0.25, 2.0], (2, 150)),
    "saturated": _one_ahead((5, 20, 50, 100, 700, 1e308)),
    "largest": _choice(lambda fmt: fmt.largest, lambda fmt: -fmt.largest, lambda fmt: fmt.largest / 2, 0, 1),
    "smallest": _choice(lambda fmt: fmt.smallest_subnormal, lambda fmt: -3 * fmt.smallest_subnormal, 0),
    "smallest normal": _choice(lambda fmt: fmt.smallest_normal, lambda fmt: -fmt.smallest_normal, 0, 1),
    "weights about to underflow": _behind(lambda fmt: -fmt.emin, 8),
    "weights about to vanish": _behind(lambda fmt: fmt.precision - fmt.emin, 2),
    "confident": _behind(lambda fmt: fmt.precision, 1),
    "deep": lambda rng, fmt: np.where(np.arange(6) == 0, 0, -rng.uniform(600, 1400, (8, 6))),
    "pair": lambda rng, fmt: np.stack([np.zeros(8), -(10.0 ** rng.uniform(0, 3.5, 8))], axis=1),
}
FAMILIES = {name: lambda rng, fmt, name=name: engine.generate(name, 6, 11, 7) for name in engine.inputs.FAMILIES}


def adversarial(fmt, seed, count):
    """The rows of tests.rows of equal length, together."""
    by_length = {}
    for row in rows.rows(fmt.name, seed, count):
        by_length.setdefault(len(row.logits), []).append(row.logits)
    return {f"adversarial, n = {n}": lambda rng, fmt, x=x: np.array(x) for n, x in by_length.items()}


# ---- what else an op needs -------------------------------------------------------------------------------------------


def _softmax(x):
    finite = np.where(np.isfinite(x), x, -1e4)
    with np.errstate(over="ignore"):
        weights = np.exp(finite - finite.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


WEIGHTS = {
    "a distribution": lambda rng, x, fmt: rng.dirichlet(np.ones(x.shape[1]), len(x)),
    "none on masks": lambda rng, x, fmt: rng.dirichlet(np.ones(x.shape[1]), len(x)) * (x != -INF),
    "the softmax": lambda rng, x, fmt: _softmax(x),
    "zeros": lambda rng, x, fmt: np.zeros(x.shape),
    "one-hot": lambda rng, x, fmt: np.eye(x.shape[1])[rng.integers(0, x.shape[1], len(x))],
    "uniform": lambda rng, x, fmt: np.full(x.shape, 1 / x.shape[1]),
    "sparse": lambda rng, x, fmt: rng.choice([0, 0, 0.25, 1, 3], x.shape),
    "tiny": lambda rng, x, fmt: np.full(x.shape, fmt.smallest_subnormal),
    "huge": lambda rng, x, fmt: rng.random(x.shape) * fmt.largest,
}
GRADS = {
    "normal": lambda rng, x, fmt: rng.standard_normal(x.shape),
    "constant": lambda rng, x, fmt: np.full(x.shape, 3.0),
    "constant in a row": lambda rng, x, fmt: np.repeat(rng.standard_normal((len(x), 1)), x.shape[1], axis=1),
    "signs": lambda rng, x, fmt: rng.choice([-1.0, 0, 1], x.shape),
    "cancelling": lambda rng, x, fmt: 1 + rng.choice([0, 1, 3], x.shape) * 2.0 ** (1 - fmt.precision),
    "huge": lambda rng, x, fmt: rng.uniform(-0.9, 0.9, x.shape) * fmt.largest,
    "of every size": lambda rng, x, fmt: rng.standard_normal(x.shape) * np.minimum(10.0 ** rng.uniform(-30, 30, x.shape), 1e4),
    "zeros": lambda rng, x, fmt: np.zeros(x.shape),
}


def problem_of(task, x, fmt, rng, which):
    """A task's problem with logits x; the `which`-th kind of weights or gradient."""
    op, _, kind = task.partition(" of ")
    if kind == "indices":
        return Problem(op, x, rng.integers(0, x.shape[1], len(x)))
    made = list(WEIGHTS.items() if kind else GRADS.items())
    tensor = round_array(made[which % len(made)][1](rng, widen(x), fmt), fmt)
    return Problem(op, x, tensor) if kind else Problem(op, x, None, tensor if op == "softmax_vjp" else None)


# ---- outputs ---------------------------------------------------------------------------------------------------------


def _stepped(right, steps, fmt):
    """Some representable numbers further; NaN stays."""
    moved = np.clip(ordinals(right, fmt) + steps, -fmt.infinity_ordinal, fmt.infinity_ordinal)
    return np.where(np.isnan(widen(right)), right, from_ordinals(moved, fmt))


def _sprinkled(value):
    return lambda rng, right, fmt: np.where(rng.random(right.shape) < 0.2, np.asarray(value, fmt.dtype), right)


def _filled(value):
    return lambda rng, right, fmt: np.full(right.shape, value(fmt) if callable(value) else value).astype(fmt.dtype)


def _times(factor):
    return lambda rng, right, fmt: round_array(np.clip(widen(right), -1e300, 1e300) * factor, fmt)


def _one(value):
    def make(rng, right, fmt):
        wrong = right.copy()
        wrong.reshape(-1)[rng.integers(right.size)] = value
        return wrong

    return make


OUTPUTS = {
    "correctly rounded": lambda rng, right, fmt: right,
    "an ulp above": lambda rng, right, fmt: _stepped(right, 1, fmt),
    "an ulp below": lambda rng, right, fmt: _stepped(right, -1, fmt),
    "an ulp about": lambda rng, right, fmt: _stepped(right, rng.integers(-1, 2, right.shape), fmt),
    "many ulps about": lambda rng, right, fmt: _stepped(right, rng.integers(-900, 901, right.shape), fmt),
    "zeros": _filled(0.0),
    "negative zeros": _filled(-0.0),
    "some zeros": _sprinkled(0),
    "some NaN": _sprinkled(NAN),
    "some inf": _sprinkled(INF),
    "some -inf": _sprinkled(-INF),
    "all NaN": _filled(NAN),
    "all inf": _filled(INF),
    "all -inf": _filled(-INF),
    "largest": _filled(lambda fmt: fmt.largest),
    "ones": _filled(1.0),
    "a constant": _filled(0.1),
    "negated": _times(-1),
    "half": _times(0.5),
    "tenfold": _times(10),
    "noisy": lambda rng, right, fmt: _times(1 + rng.standard_normal(right.shape) * 10.0 ** rng.uniform(-8, 0))(rng, right, fmt),
    "numbers of every size": lambda rng, right, fmt: from_ordinals(
        rng.integers(-fmt.infinity_ordinal, fmt.infinity_ordinal + 1, right.shape), fmt
    ),
    "subnormals": lambda rng, right, fmt: from_ordinals(rng.integers(-fmt.normal_ordinal, fmt.normal_ordinal, right.shape), fmt),
    "uniform": lambda rng, right, fmt: round_array(rng.random(right.shape), fmt),
    "shuffled": lambda rng, right, fmt: rng.permutation(right.reshape(-1)).reshape(right.shape),
    "one wrong": _one(0.3),
    "one zero": _one(0),
    "one inf": _one(INF),
}


def outputs_of(problem, truth, rng, chosen):
    """(name, output) of hostile outputs and of the catalogue's variants; chosen(how many there are): which."""
    variants = of_op(truth.op.name)
    for k in chosen(len(OUTPUTS) + len(variants)):
        if k < len(OUTPUTS):
            name, make = list(OUTPUTS.items())[k]
            yield name, make(rng, truth.rounded(), truth.fmt)
        else:
            variant = variants[k - len(OUTPUTS)]
            yield variant.name, run(variant, problem, truth.fmt)


def fitting(task, x):
    """A Jacobian is the square of its logits: fewer rows, shorter ones."""
    return x[:3, :12] if task == "softmax_jacobian" else x


def compare(task, fmt, kinds, seed, chosen, **how):
    """Survey and exact path over kinds of logits."""
    for k, (kind, make) in enumerate(kinds.items()):
        rng = np.random.default_rng([seed, k])
        other = fmt if k % 5 else FORMATS[list(FORMATS)[(k + seed) % 4]]  # logits are taken as stored, in any format
        x = fitting(task, round_array(make(rng, other), other))
        problem = problem_of(task, x, fmt, rng, k + seed)
        truth = Truth(problem, fmt)
        for name, output in outputs_of(problem, truth, rng, lambda count, k=k: chosen(k, count)):
            assert_same(output, truth, f"{kind}; {name}", **how)


def seed_of(task, fmt):
    return 4 * TASKS.index(task) + list(FORMATS).index(fmt)


# ---- the same figures ------------------------------------------------------------------------------------------------


@pytest.mark.half
@every_format
@every_task
def test_figures_of_logits_of_every_kind(task, fmt):
    seed = seed_of(task, fmt)
    kinds = dict(list((LOGITS | FAMILIES).items())[seed % 2 :: 2])  # the other half in other tasks and formats
    compare(task, FORMATS[fmt], kinds, seed, lambda k, count: [(k + seed) % count])


@pytest.mark.half
@pytest.mark.no_cover
@every_format
@every_task
def test_figures_of_outputs_of_every_kind(task, fmt):
    kinds = list(LOGITS.items())
    seed = seed_of(task, fmt)
    for k in range(0, len(kinds), 16):
        name, make = kinds[(k + seed) % len(kinds)]
        compare(task, FORMATS[fmt], {name: make}, seed + k, lambda _, count, k=k: range(k // 16, count, 6))


@pytest.mark.half
@every_format
@every_task
def test_figures_of_adversarial_rows(task, fmt):
    seed = seed_of(task, fmt)
    kinds = adversarial(FORMATS[fmt], seed, 32)
    compare(task, FORMATS[fmt], kinds, seed, lambda k, count: [(3 * k + seed) % count])


@pytest.mark.parametrize("fmt", ["float16", "bfloat16", "float32", "float64"])
def test_the_largest_error_inside_the_bound_is_inside(fmt):
    """A softmax of one logit is 1, and a masked gradient is -y, here -3/2: the errors are whole steps."""
    form = FORMATS[fmt]
    single = Problem("softmax", np.zeros((9, 1), form.dtype))
    masked = Problem("cross_entropy_grad", np.array([[0, 1, -INF]] * 9).astype(form.dtype), np.array([[0, 0, 1.5]] * 9))
    for problem, column, step in ((single, 0, form.unit_roundoff), (masked, 2, 2 * form.unit_roundoff)):
        truth = Truth(problem, form)
        bound = Measurement(truth.rounded(), truth).allowances.judge(column)
        least = math.floor(bound / step)
        for steps, status in ((least, "accurate"), (least + 1, "inaccurate")):
            output = truth.rounded()
            output[:, column] = _stepped(output[:, column], -steps, form)
            assert assert_same(output, truth, steps).status() == status


@every_format
@pytest.mark.parametrize("task", ["logsumexp", "cross_entropy of weights", "softmax"])
def test_large_errors_that_cancel_in_the_bias(task, fmt):
    """Outputs of other rows: errors of up to 2^52 ulps whose sum is small beside them."""
    form = FORMATS[fmt]
    for seed in range(12):
        rng = np.random.default_rng(seed)
        x = np.round(rng.standard_normal((6, 9))).astype(form.dtype)
        truth = Truth(problem_of(task, x, form, rng, 2), form)
        assert_same(OUTPUTS["shuffled"](rng, truth.rounded(), form), truth, seed)


LONG = [task for task in TASKS if task != "softmax_jacobian"]


@pytest.mark.parametrize("task", LONG)
def test_figures_of_a_row_longer_than_a_chunk(task, monkeypatch):
    monkeypatch.setattr(fast, "CHUNK", 4096)
    monkeypatch.setattr(screen, "CHUNK", 4096)
    fmt = FORMATS[list(FORMATS)[LONG.index(task) % 4]]
    rng = np.random.default_rng(LONG.index(task))
    x = round_array(rng.standard_normal((1, fast.CHUNK + 100)) * 3, fmt)
    problem = problem_of(task, x, fmt, rng, 0)
    assert_same(run(stable(problem.op), problem, fmt), Truth(problem, fmt), "long")


@pytest.mark.half
@pytest.mark.no_cover
@every_format
@every_task
def test_figures_do_not_depend_on_how_a_row_is_cut(task, fmt, monkeypatch):
    """Rows longer than a chunk, and longer than what is kept of a row's exponentials; all rows laid out as rows, all as columns."""
    for chunk, kept, short in ((64, 256, 1), (64, 96, 300)):
        for module, name, value in ((fast, "CHUNK", chunk), (screen, "CHUNK", chunk), (fast, "KEPT", kept), (fast, "SHORT", short)):
            monkeypatch.setattr(module, name, value)
        kinds = {
            "long": lambda rng, _: rng.standard_normal((1, 150)) * 5,
            "long, masked": lambda rng, _: np.where(rng.random((1, 70)) < 0.5, -INF, rng.standard_normal((1, 70)) * 50),
            "short": lambda rng, _: rng.standard_normal((12, 7)) * 5,
        }
        seed = seed_of(task, fmt)
        compare(task, FORMATS[fmt], kinds, seed, lambda k, count, seed=seed: [(7 * k + seed) % count])


def rivals(op, rng, loose, tight, n):
    """Rows whose two largest truths, near 2^-25, lie beside each other, from 2^-52 below to 2^-52 above, in steps of 2^-57.

    The one at the column `loose` is a difference of numbers near 1/2, known to 2^-52 or so; the one at `tight` has digits enough.
    With e = exp(x), E their sum, they are e_l/E - y_l and e_t/E, or e_l/E (1 - G) and e_t/E (2 - G) with G = 1 - gap.
    """
    beside = np.arange(-32, 33) * 2.0**-57
    other = (loose + 1) % n
    x, extra = np.full((beside.size, n), -60.0), np.zeros((beside.size, n))
    x[:, [loose, other]] = rng.uniform(-1, 1, 2)
    e_loose, e_other = np.exp(x[0, [loose, other]])
    e_tight = (e_loose + e_other) * 2.0**-25
    total = e_loose + e_other + e_tight
    x[:, tight] = np.log(e_tight + beside * total)
    if op == "cross_entropy_grad":
        extra[:, loose] = (e_loose - e_tight) / total
        extra[:, other] = 1 - extra[:, loose]
        return Problem(op, x, extra)
    gap = e_tight / (e_loose - e_tight)
    extra[:, loose], extra[:, tight], extra[:, other] = 1, 2, 1 - (gap * total + e_tight) / e_other
    return Problem(op, x, None, extra)


@pytest.mark.half
@pytest.mark.no_cover
@pytest.mark.parametrize(("loose", "tight"), [(2, 37), (37, 2)], ids=["looser first", "looser last"])
@pytest.mark.parametrize("op", ["cross_entropy_grad", "softmax_vjp"])
def test_the_largest_truth_of_a_long_row_is_sought_with_the_doubts_of_all_its_parts(op, loose, tight, monkeypatch):
    """Three parts of a row: what the fast tiers show of the largest truth of the first is compared with that of the last."""
    for module in (fast, screen):
        monkeypatch.setattr(module, "CHUNK", 16)
    fmt = FORMATS["float32"]
    for seed in range(1):
        truth = Truth(rivals(op, np.random.default_rng(seed), loose, tight, 40), fmt)
        for column in (loose, tight):
            output = np.zeros(truth.shape, fmt.dtype)
            output[:, column] = 1
            found, exact = (f.argmax_preserved for f in (Survey(output, truth).metrics(), measure(Measurement(output, truth))))
            assert found == exact, f"{seed}, {column}"
            assert 0 < exact < truth.rows


def test_largest_truths_whose_heads_are_equal_are_told_apart():
    """p - y with y so small that binary64 rounds it away: the largest truth is where y is smallest."""
    targets = np.array([[2.0**-60, 2.0**-61, 1.0], [2.0**-61, 2.0**-60, 1.0]])
    truth = Truth(Problem("cross_entropy_grad", np.zeros((2, 3)), targets), FORMATS["float64"])
    for column in (0, 1):
        output = np.zeros(truth.shape)
        output[:, column] = 1
        assert assert_same(output, truth, column).metrics().argmax_preserved == 1


# ---- exact, tied and cancelling truths -------------------------------------------------------------------------------

ALIKE = {
    "one logit": _gaussian(16, 1, 10),
    "one finite logit": lambda rng, fmt: np.where(np.arange(10) == rng.integers(0, 10, (16, 1)), rng.normal(0, 9, (16, 1)), -INF),
    "8 equal": lambda rng, fmt: np.repeat(rng.standard_normal((16, 1)), 8, axis=1),
    "10 equal": lambda rng, fmt: np.repeat(rng.standard_normal((16, 1)), 10, axis=1),
    "saturated": _gaussian(16, 20, 300),
    "large masks": lambda rng, fmt: np.where(rng.random((16, 20)) < 0.3, -6e4, rng.standard_normal((16, 20)) * 3),
    "ordinary": _gaussian(16, 20, 3),
}


@pytest.mark.half
@every_format
@every_task
def test_figures_where_many_elements_are_open_or_tie(task, fmt, monkeypatch):
    monkeypatch.setattr(screen, "FEW", 0)
    seed = seed_of(task, fmt)
    for k in range(3):  # the other kinds in other tasks and formats; all of them are soaked
        _figures_are_the_same(task, fmt, list(ALIKE)[(seed + 2 * k) % len(ALIKE)], seed)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ALIKE)
@every_format
@every_task
def test_figures_where_many_elements_of_any_kind_are_open_or_tie(task, fmt, kind, monkeypatch):
    monkeypatch.setattr(screen, "FEW", 0)
    _figures_are_the_same(task, fmt, kind, seed_of(task, fmt))


def _figures_are_the_same(task, fmt, kind, seed):
    """They are screened as arrays, whatever the tier: hardly one is left to mpmath, and nothing goes to the exact path whole."""
    form = FORMATS[fmt]
    rng = np.random.default_rng(seed)
    problem = problem_of(task, fitting(task, round_array(ALIKE[kind](rng, form), form)), form, rng, seed)
    truth = Truth(problem, form)
    for name in ("right", "half", "a constant", "zeros"):
        output = truth.rounded() if name == "right" else OUTPUTS[name](rng, truth.rounded(), form)
        taken = assert_same(output, truth, f"{kind}; {name}")
        # where logits alone do not tell what is exact, or far below 2^-960, or errors are beyond binary64, mpmath may have to
        if not (task.endswith(("weights", "vjp", "jacobian")) or kind == "saturated" or (fmt == "float64" and name != "right")):
            assert taken._exact is None
            assert taken.certificate().tiers.get("T3", 0) <= 4


@pytest.mark.half
@pytest.mark.parametrize("held", ["float32", "float64"])
@pytest.mark.parametrize("fmt", ["float16", "float32", "float64"])
def test_gradients_of_saturated_rows_are_not_left_to_mpmath(fmt, held):
    """That p (g - G) is not 0 where p underflows is told by g - G, and that an output is 2^1100 times as large by the logits."""
    rng, form, kept = np.random.default_rng(8), FORMATS[fmt], FORMATS[held]
    for masks in (False, True):
        x = round_array(rng.standard_normal((3, 50)) * 3000, kept)
        x[rng.random(x.shape) < 0.2 * masks] = -INF
        truth = Truth(Problem("softmax_vjp", x, grad_output=round_array(rng.standard_normal(x.shape), kept)), form)
        for output in (truth.rounded(), np.zeros_like(truth.rounded()), round_array(rng.normal(0, 1, x.shape), form)):
            taken = assert_same(output, truth, f"{masks}")
            assert fmt == "float64" or taken.certificate().tiers.get("T3", 0) <= 40


@pytest.mark.parametrize("fmt", ["float16", "float32"])
def test_rows_that_the_first_tier_leaves_open_are_decided_by_the_next(fmt):
    """Subnormal probabilities within 2^-5 ulp of a midpoint: whether they are normal, and so count, is open."""
    rng, form = np.random.default_rng(4), FORMATS[fmt]
    x = round_array(np.where(np.arange(20) < 18, rng.uniform(-10.5, -8.5, (60, 20)) * (1 if fmt == "float16" else 9.1), 0.0), form)
    truth = Truth(Problem("softmax", x), form)
    for output in (truth.rounded(), OUTPUTS["some zeros"](rng, truth.rounded(), form)):
        taken = assert_same(output, truth, fmt, ambiguity=2.0**-5)
        work = next(taken._works(0))
        with np.errstate(all="ignore"):
            assert screen._Screen(work).run().open_rows
        assert not screen.screen(work).open_rows


def test_row_sums_of_the_finer_tiers_do_not_depend_on_the_order():
    """Long rows: their sums are taken in runs."""
    x = np.random.default_rng(6).standard_normal((2, 900))
    truth = Truth(Problem("softmax", x), FORMATS["float64"])
    taken = assert_same(truth.rounded(), truth, "")
    taken._take(2)
    assert described(taken.metrics(True), 0, 0, 0, 0) == described(Survey(truth.rounded(), truth).metrics(True), 0, 0, 0, 0)


def test_a_divergence_beyond_binary64_is_infinite():
    x = np.array([[-709.4]])
    for c in (709.0, 709.78, 709.79, 5000.0):
        assert_same(np.array([[c]]), Truth(Problem("log_softmax", x), FORMATS["float64"]), c)


def test_a_row_figure_beside_the_largest_number_is_infinite():
    assert survey._rounded((2**1024 - 1, 2**1024 - 1), 0)[0] == INF
    assert survey._rounded((2**1025, 2**1025), 0)[0] == INF
    assert survey._rounded((2**1023, 2**1023), 0)[0] == 2.0**1023


def test_an_output_too_large_to_be_scaled_spoils_no_other_row():
    """Beside -1.9e181, whose difference from the truth was NaN, the first row was taken for one of small differences."""
    x = np.array([[0, -698.2, -1278.7, -1200.9, -1351.1, -773.4], [0, -972.9, -958, -1396.3, -1190.4, -1255.1]])
    y = np.array([[0, 0, -1.6e114, 0, 1.2e5, 2e68], [0, 9.6e66, -5.7e87, 0, 1.9e100, -1.9e181]])
    taken = assert_same(y, Truth(Problem("log_softmax", x), FORMATS["float64"]), "one of 1e181")
    assert taken.metrics().kl.worst_row == 0


def test_a_figure_that_may_be_anything_is_open():
    assert survey._fixed(1.0, INF, 40) is None
    assert survey._fixed(INF, 1.0, 40) is None


def test_absolute_errors_beside_the_largest_number_are_sought_without_a_warning():
    output = np.full((1, 600), np.finfo(np.float64).max)
    assert_same(output, Truth(Problem("softmax", np.zeros((1, 600))), FORMATS["float64"]), "")


def test_the_first_row_of_infinite_divergence_may_be_one_that_rounding_makes_so():
    for outputs in ([-1.797e308, -INF], [-INF, -1.797e308], [-1.79769313e308, -INF], [-INF, 0.0]):
        output = np.array(outputs)[:, None]
        assert_same(output, Truth(Problem("log_softmax", np.zeros((2, 1))), FORMATS["float64"]), outputs)


def test_a_row_figure_beside_the_middle_of_two_is_decided_for_its_row_alone():
    """All errors of the first row have one sign, but a far smaller one: sum abs(c - T) / 2 is (sum c - 1) / 2 to 2^-130."""
    x = np.random.default_rng(7).normal(0, 3, (3, 800))
    x[:, 0] = -90
    truth = Truth(Problem("softmax", x), FORMATS["float64"])
    output = truth.rounded().copy()
    output[0, 1:] *= 1 + 2.0**-44
    output[0, 0] *= 1 - 2.0**-40
    small = 1 + int(np.argmin(output[0, 1:]))
    excess = sum(map(Fraction, output[0, 1:].tolist())) - 1
    unit = Fraction(2) ** (math.frexp(float(excess))[1] - 20)
    output[0, small] += float((math.floor(excess / unit) + Fraction(1, 2)) * unit - excess)
    assert (2 * (sum(map(Fraction, output[0, 1:].tolist())) - 1) / unit).denominator == 1
    taken = assert_same(output, truth, "")
    assert taken._exact is None
    assert taken.metrics().total_variation.worst_row == 0


def test_a_relative_error_beyond_binary64_is_infinite_as_that_of_a_truth_0_is():
    for tiny in (0, 5):
        x = np.where(np.arange(6) == tiny, -5e-324, 0.0)[:, None]
        for c in (0.1, 0.0):
            output = round_array(np.full(6, c), FORMATS["bfloat16"])
            taken = assert_same(output, Truth(Problem("logsumexp", x), FORMATS["bfloat16"]), (tiny, c))
            assert taken.metrics().argmax_rel == (0 if c else tiny)


def test_a_constant_grad_output_has_no_gradient():
    x = np.random.default_rng(5).standard_normal((30, 40)).astype(np.float32)
    problem = Problem("softmax_vjp", x, grad_output=np.full_like(x, 0.1))
    for output in (np.zeros_like(x), np.full_like(x, 2.0**-126), x):
        taken = assert_same(output, Truth(problem, FORMATS["float32"]), "constant")
        assert taken.certificate().tiers == {"T0": x.size}
        assert taken._exact is None


# ---- tiers -----------------------------------------------------------------------------------------------------------


@pytest.mark.half
@every_format
@every_task
def test_figures_where_the_fast_tiers_decide_little(task, fmt):
    """Within 2^-9 ulp of any boundary nothing is taken as decided: what hardly ever happens, made to happen."""
    seed = seed_of(task, fmt)
    names = ["normal", "sigma 10", "masks", "NaN, infinities, masks", "8 equal", "identical rows", "confident"]
    kinds = {name: LOGITS[name] for name in names}
    compare(task, FORMATS[fmt], kinds, seed, lambda k, count: [(5 * k + seed) % count], ambiguity=2.0**-9)


@every_format
def test_every_tier_is_used_where_the_fast_ones_decide_little(fmt):
    """T1 and T2 decide what cancels more or less, T3 what is exact: the gradient beside the softmax as its target."""
    form, single = FORMATS[fmt], FORMATS["float32" if fmt == "float64" else fmt]
    rng = np.random.default_rng(3)
    x = round_array(np.vstack([rng.standard_normal((120, 30)), np.zeros((2, 30))]), form)
    targets = _softmax(widen(x))
    targets[:100] = np.eye(30)[rng.integers(0, 30, 100)]
    problem = Problem("cross_entropy_grad", x, round_array(targets, single))
    taken = assert_same(run(of_op(problem.op)[0], problem, form), Truth(problem, form), "", ambiguity=2.0**-5)
    assert {"T1", "T2", "T3"} <= set(taken.certificate().tiers)


def undecided(monkeypatch, below):
    """Make the means of every tier below one stay open."""
    mean = Survey._mean

    def never(self, name, count):
        if self.level < below:
            raise survey._Open
        return mean(self, name, count)

    monkeypatch.setattr(Survey, "_mean", never)


@pytest.mark.half
@every_format
@every_task
def test_an_open_mean_takes_everything_to_the_next_tier_and_at_last_to_the_exact_path(task, fmt, monkeypatch):
    for below in (2, 3):
        with monkeypatch.context() as patch:
            undecided(patch, below)
            compare(task, FORMATS[fmt], {"normal": LOGITS["normal"]}, seed_of(task, fmt), lambda k, count: [4, count - 1])


def test_the_certificate_names_the_tier_that_decided(monkeypatch):
    problem = Problem("softmax", np.random.default_rng(5).standard_normal((20, 30)).astype(np.float32))
    truth = Truth(problem, FORMATS["float32"])
    tiers = []
    for below in (0, 1, 2, 3):
        undecided(monkeypatch, below)
        taken = Survey(truth.rounded(), Truth(problem, truth.fmt))
        taken.metrics()
        tiers.append(taken.certificate().tiers)
        assert sum(tiers[-1].values()) == 600
    assert [max(found, key=found.get) for found in tiers] == ["T0", "T1", "T2", "T3"]


def relative_radius(found):
    """log2 of an enclosure's radius over its middle."""
    lo, hi, _ = found
    return math.log2((hi - lo) / abs(hi + lo))


WITH_RADIUS = ("logsumexp", "cross_entropy_grad of weights", "softmax_jacobian", "softmax_vjp")
"""Tasks whose tiers state what each element may be off by, and not one number for all."""


@every_format
@every_task
def test_the_certificate_states_the_widest_radius_of_the_truth_that_was_used(task, fmt, monkeypatch):
    """Where all radii are one number it is that, to the hundredth of a bit above, and not many times as much."""
    monkeypatch.setattr(outcome, "FAST_FROM", 1)
    form, op = FORMATS[fmt], OPS[task.partition(" ")[0]]
    rng = np.random.default_rng(seed_of(task, fmt))
    x = round_array(rng.standard_normal((200 // op.width(10), 10)) * 3, form)
    problem = problem_of(task, x, form, rng, 0)
    for output in (run(stable(op.name), problem, form), Truth(problem, form).rounded()):
        taken = Survey(output, Truth(problem, form), WORST)
        read(taken)
        stated = engine.measure(problem, output, include=["ranks"], worst=WORST).certificate
        assert stated == taken.certificate()
        tier = fast.TIERS[taken.level]
        elsewhere = 200 - stated.tiers[tier.name]  # decided by finer tiers, where they need not be the widest of this one
        radii = sorted(relative_radius(found) for _, found in enclosures(taken.truth, tier, range(output.size)))
        assert len(radii) == 200 > elsewhere
        assert stated.relative_bound_log2 >= radii[-1 - elsewhere] - 2.0**-20
        assert stated.relative_bound_log2 <= radii[-1] + 2 or task in WITH_RADIUS


# ---- parts -----------------------------------------------------------------------------------------------------------


def backwards(function, arguments):
    """Like map, but the last part is run first."""
    return reversed([function(argument) for argument in reversed(list(arguments))])


def _batch(task, fmt):
    rng = np.random.default_rng(seed_of(task, fmt))
    form = FORMATS[fmt]
    x = fitting(task, round_array(np.vstack([rng.standard_normal((20, 6)) * 5, _special(rng, form)]), form))
    problem = problem_of(task, x, form, rng, 0)
    truth = Truth(problem, form)
    return truth, round_array(np.where(rng.random(truth.shape) < 0.1, 0.3, widen(truth.rounded())), form)


@pytest.mark.half
@pytest.mark.no_cover
@every_format
@every_task
def test_figures_do_not_depend_on_the_parts_nor_on_their_order(task, fmt, monkeypatch):
    truth, output = _batch(task, fmt)
    for part in (1, 40, 1 << 20):
        monkeypatch.setattr(survey, "PART", part)
        monkeypatch.setattr(screen, "_TOGETHER", part)
        assert_same(output, truth, part)
        assert_same(output, truth, f"{part} backwards", map=backwards)


def test_figures_do_not_depend_on_processes(monkeypatch):
    monkeypatch.setattr(survey, "PART", 40)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for task in TASKS:
            for fmt in ("float16", "float32", "float64"):
                assert_same(*reversed(_batch(task, fmt)), f"{task} {fmt}", map=pool.imap)


def elsewhere(function, arguments):
    """Like map, but everything goes through pickle, as between processes."""
    return [pickle.loads(pickle.dumps(function(pickle.loads(pickle.dumps(argument))))) for argument in arguments]


@pytest.mark.half
@pytest.mark.no_cover
@every_format
@every_task
@pytest.mark.parametrize("below", [0, 2])
def test_figures_are_those_of_what_was_sent(task, fmt, below, monkeypatch):
    """At the first tier, and at the last."""
    undecided(monkeypatch, below)
    rng, form = np.random.default_rng(seed_of(task, fmt)), FORMATS[fmt]
    problem = problem_of(task, fitting(task, round_array(rng.standard_normal((12, 30)) * 4, form)), form, rng, 0)
    for variant in (of_op(problem.op)[0], stable(problem.op), rng.choice(of_op(problem.op))):
        assert_same(run(variant, problem, form), Truth(problem, form), variant.name, map=elsewhere)


def test_a_tier_is_the_same_wherever_it_is_sent():
    assert all(pickle.loads(pickle.dumps(tier)) is tier for tier in fast.TIERS)


# ---- audit -----------------------------------------------------------------------------------------------------------


@every_format
@every_task
def test_an_audit_agrees(task, fmt):
    truth, output = _batch(task, fmt)
    Survey(output, truth).audit(1000)


def test_a_budget_of_nothing_audits_nothing(monkeypatch):
    truth, output = _batch("softmax", "float32")
    taken = Survey(output, truth)
    monkeypatch.setattr(Truth, "exact_cell", None)
    taken.audit(0)


@pytest.mark.parametrize("task", ["softmax", "log_softmax", "logsumexp", "softmax_vjp", "softmax_jacobian"])
@pytest.mark.parametrize("fmt", ["float32", "float64"])
def test_an_audit_finds_a_wrong_constant(task, fmt, monkeypatch):
    """Every second entry of the kernels' tables is off in its 30th bit."""
    right = fast._constants()
    wrong = np.where(np.arange(right.head.size) % 2, 1 + 2.0**-30, 1)
    broken = right._replace(head=right.head * wrong, head30=right.head30 * wrong)
    rng = np.random.default_rng(1)
    x = round_array(rng.standard_normal((30, 8)), FORMATS[fmt])
    problem = problem_of(task, x, FORMATS[fmt], rng, 0)
    truth = Truth(problem, FORMATS[fmt])
    Survey(truth.rounded(), Truth(problem, truth.fmt)).audit(10_000)
    monkeypatch.setattr(fast, "_constants", lambda: broken)
    with pytest.raises(
        Disagreement, match=rf"T[01] and the exact path disagree on element \d+ of {truth.op.name} in {fmt}: .* logits \["
    ):
        Survey(truth.rounded(), Truth(problem, truth.fmt)).audit(10_000)


# ---- the full counts -------------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.parametrize("chunk", range(10))
@every_format
def test_figures_of_a_million_elements(fmt, chunk):
    form = FORMATS[fmt]
    task = TASKS[chunk % len(TASKS)]
    rng = np.random.default_rng([chunk, seed_of(task, fmt)])
    shape = {"softmax_jacobian": (40, 50), "logsumexp": (2000, 50)}.get(task, (1000, 100))
    x = round_array(rng.standard_normal(shape) * rng.choice([1, 10, 100]), form)
    problem = problem_of(task, x, form, rng, 0)
    variants = of_op(problem.op)
    assert_same(run(variants[chunk % len(variants)], problem, form), Truth(problem, form), chunk)


@pytest.mark.soak
@every_format
@pytest.mark.parametrize("task", LONG)
def test_figures_of_a_row_longer_than_what_is_kept(task, fmt):
    form = FORMATS[fmt]
    rng = np.random.default_rng(seed_of(task, fmt))
    x = round_array(rng.standard_normal((1, fast.KEPT + 1)) * 3, form)
    problem = problem_of(task, x, form, rng, 0)
    assert_same(run(stable(problem.op), problem, form), Truth(problem, form), "long")


@pytest.mark.soak
@every_format
@every_task
def test_figures_of_a_third_of_all_outputs_of_logits_of_every_kind(task, fmt):
    compare(task, FORMATS[fmt], LOGITS | FAMILIES, seed_of(task, fmt), lambda k, count: range(k % 3, count, 3))


def test_an_open_truth_that_overflows_is_right_where_the_output_is_infinite():
    """4 equal logits and weights whose loss lies a thousandth of an ulp beyond what float16 rounds to infinity."""
    fmt = FORMATS["float16"]
    weights = round_array(np.array([[32768.0, 14488.0, 6.5, 0.25]]), fmt)
    problem = Problem("cross_entropy", np.zeros((1, 4), fmt.dtype), targets=weights)
    for value in (INF, 65504.0):
        taken = assert_same(round_array(np.array([value]), fmt), Truth(problem, fmt), fmt, ambiguity=2.0**-5)
        assert taken.partial.open_elements == [0]
        assert taken.metrics().correctly_rounded == (value == INF)
