"""The catalogue of variants: each is its formula, keeps what it claims, uses the axes it names and shows the hazard it names."""

import math
from functools import partial

import numpy as np
import pytest

from engine import Problem, evaluate
from engine.arithmetic import Arithmetic
from engine.errors import InvalidProblem, UnknownName
from engine.formats import FORMATS, round_array, widen
from engine.model import Axes
from engine.ops import OPS
from engine.outcome import estimate
from engine.parameters import FormatName, Integer, Number
from engine.recorder import Recorder
from engine.summation import SUMMATIONS
from engine.variants import CLAIMS, FUSED, LEFT_OUT, VARIANTS, find, name_of, of_op, variant
from tests.engine.test_variants import Case, cases, random_rows, row_by_row, same_bits

INF, NAN = math.inf, math.nan
EVERY_FORMAT = pytest.mark.parametrize("fmt", FORMATS.values(), ids=list(FORMATS))
MASKABLE = pytest.mark.parametrize("fmt", [row for row in FORMATS.values() if row.has_infinity], ids=lambda row: row.name)
F16, BF16, F32, F64, E4M3, E5M2 = (FORMATS[name] for name in FORMATS)


def run(key, logits, fmt=F32, summation="numpy", **axes):
    """A variant's output, of logits rounded to the format."""
    row = find(*key.split("/"))
    return row.run(round_array(np.asarray(logits, dtype=float), fmt), Arithmetic(fmt, summation, axes=Axes(**axes)))


def wide(*args, **how):
    return widen(run(*args, **how))


def truth_of(logits):
    e = np.exp(np.asarray(logits) - np.max(logits))
    return e / e.sum()


# ---- the plain formulas, on one row ----------------------------------------------------------------------------------


def constant(x, value):
    return round_array(np.array(value), next(row for row in FORMATS.values() if row.dtype == x.dtype))


def add(e):
    """NumPy's sum of a contiguous row."""
    return np.sum(np.ascontiguousarray(e))


def share(e):
    return e / add(e)


def unmasked(m):
    return m if m != -INF else m.dtype.type(0)


def lse_log1p(x):
    e = np.exp(x - np.max(x))
    e[np.argmax(x)] = 0
    return np.max(x) + np.log1p(add(e))


def left_out(x):
    e = np.exp(x - np.max(x))
    rest = e.copy()
    rest[np.argmax(x)] = 0
    return e / (x.dtype.type(1) + add(rest))


def cast(e, name):
    return round_array(round_array(e, FORMATS[name]), next(row for row in FORMATS.values() if row.dtype == e.dtype))


def exp2_scaled(x):
    c = constant(x, math.log2(math.e))
    return share(np.exp2(x * c - np.max(x) * c))


def offset(x, by=8):
    return share(np.exp2((x - np.max(x)) * constant(x, math.log2(math.e)) + x.dtype.type(by)))


def masked(x, value):
    return np.where(x == -INF, constant(x, value), x)


def zero_where_masked(x):
    e = np.exp(x - unmasked(np.max(x)))
    s = add(e)
    return e / (s if s != 0 else x.dtype.type(1))


def online(x):
    m, s = x[0], np.exp(x[0] - unmasked(x[0]))
    for logit in x[1:]:
        top = np.maximum(m, logit)
        s = s * np.exp(m - unmasked(top)) + np.exp(logit - unmasked(top))
        m = top
    return m, s


def tiles(x, size=128):
    return [x[start : start + size] for start in range(0, len(x), size)]


def tiled(x, rises=lambda top, m: True, size=128):
    first, *others = tiles(x, size)
    m = np.max(first)
    e = np.exp(first - unmasked(m))
    s = add(e)
    for tile in others:
        top = np.maximum(m, np.max(tile))
        top = top if rises(top, m) else m
        f, new = np.exp(m - unmasked(top)), np.exp(tile - unmasked(top))
        e, s, m = np.concatenate((e * f, new)), s * f + add(new), top
    return e, s, m


def tiled_scaled(x, size=128):
    first, *others = tiles(x, size)
    c, m = constant(x, math.log2(math.e)), np.max(first)
    e = np.exp2(first * c + -(unmasked(m) * c))
    s = add(e)
    for tile in others:
        top = np.maximum(m, np.max(tile))
        f, new = np.exp2((m - unmasked(top)) * c), np.exp2(tile * c + -(unmasked(top) * c))
        e, s, m = np.concatenate((e * f, new)), s * f + add(new), top
    return e / s


def lazily(top, m):
    return np.isnan(top) or m == -INF or widen(top - m) > widen(constant(top, 4 * math.log(2)))


def merged(x, parts=2):
    size = math.ceil(len(x) / parts)
    tops = np.array([np.max(part) for part in tiles(x, size)])
    sums = np.array([add(np.exp(part - unmasked(m))) for part, m in zip(tiles(x, size), tops, strict=True)])
    m = np.max(tops)
    return m, add(sums * np.exp(tops - unmasked(m)))


def two_pass(x):
    n = np.rint(x * constant(x, math.log2(math.e)))
    unit = 2.0 ** -(next(row for row in FORMATS.values() if row.dtype == x.dtype).precision // 2 + 1)
    high = math.log(2) // unit * unit
    low = float.fromhex("0x1.62e42fefa39efp-1") - high + float.fromhex("0x1.abc9e3b39803fp-56")
    shift = -np.where(np.isfinite(n), n, x.dtype.type(0))
    v = np.exp(shift * constant(x, low) + (shift * constant(x, high) + x))
    top, s = n[0], v[0] * np.exp2(n[0] - unmasked(n[0]))
    for power, term in zip(n[1:], v[1:], strict=True):
        higher = np.maximum(top, power)
        s = s * np.exp2(top - unmasked(higher)) + term * np.exp2(power - unmasked(higher))
        top = higher
    return v * np.exp2(n - unmasked(top)) / s


def logaddexp(x):
    total = x[0]
    for logit in x[1:]:
        top, low = np.maximum(total, logit), np.minimum(total, logit)
        total = top + np.log1p(np.exp(low - (top if np.isfinite(top) else x.dtype.type(0))))
    return total


def lse_guarded(x):
    m = np.max(x)
    m = m if np.isfinite(m) else x.dtype.type(0)
    return m + np.log(add(np.exp(x - m)))


def p_shifted(x):
    return share(np.exp(x - np.max(x)))


def lse_shifted(x):
    return np.max(x) + np.log(add(np.exp(x - np.max(x))))


def l_shifted(x):
    return (x - np.max(x)) - np.log(add(np.exp(x - np.max(x))))


def loss(p, y):
    return -add(y * np.log(p)) if y.ndim else -np.log(p[y])


def loss_of(terms, y):
    """Of -log p_i."""
    return add(y * np.where(y != 0, terms, np.zeros_like(terms))) if y.ndim else terms[y]


def clipped(x, y):
    eps = constant(x, 1e-7)
    return loss(np.minimum(np.maximum(p_shifted(x), eps), constant(x, 1) - eps), y)


def log1p_of_others(x, y):
    if y.ndim:
        return loss_of(lse_shifted(x) - x, y)
    e = np.exp(x - x[y])
    e[y] = 0
    return np.log1p(add(e))


def less(p, y):
    """S p - y."""
    return add(y) * p - y if y.ndim else p - (np.arange(len(p)) == y).astype(p.dtype)


def others(x, y):
    p = p_shifted(x)
    if y.ndim:
        return less(p, y)
    p[y] = 0
    p[y] = p.dtype.type(0) - add(p)
    return p


def lowest(x):
    return float(next(row for row in FORMATS.values() if row.dtype == x.dtype).largest)


FORMULAS = {
    "softmax/reciprocal": lambda x: np.exp(x - np.max(x)) * (x.dtype.type(1) / add(np.exp(x - np.max(x)))),
    "softmax/subtractive_naive": lambda x: np.exp(x - np.log(add(np.exp(x)))),
    "softmax/subtractive": lambda x: np.exp(x - lse_log1p(x)),
    "softmax/max_left_out": left_out,
    "softmax/chosen_shift": lambda x: share(np.exp(x + x.dtype.type(-10))),
    "softmax/wrong_shift": lambda x: share(np.exp(x - np.maximum(np.max(x), x.dtype.type(0)))),
    "softmax/finite_sentinel": lambda x: share(np.exp(x - np.maximum(np.max(x), constant(x, max(-1e4, -lowest(x)))))),
    "softmax/exp2_scaled": exp2_scaled,
    "softmax/offset": offset,
    "softmax/stored_16_bit": lambda x: share(cast(np.exp(x - np.max(x)), "bfloat16")),
    "softmax/stored_after_sum": lambda x: cast(np.exp(x - np.max(x)), "bfloat16") / add(np.exp(x - np.max(x))),
    "softmax/masked_zero": zero_where_masked,
    "softmax/masked_lowest": lambda x: p_shifted(masked(x, -lowest(x))),
    "softmax/masked_value": lambda x: p_shifted(masked(x, -1e9)),
    "softmax/online": lambda x: np.exp(x - unmasked(np.max(x))) / online(x)[1],
    "softmax/tiled": lambda x: tiled(x)[0] / tiled(x)[1],
    "softmax/tiled_scaled": tiled_scaled,
    "softmax/tiled_scaled(tile=3)": partial(tiled_scaled, size=3),
    "softmax/lazy_rescale": lambda x: tiled(x, lazily)[0] / tiled(x, lazily)[1],
    "softmax/split_merge": lambda x: np.exp(x - unmasked(np.max(x))) / merged(x)[1],
    "softmax/two_pass": two_pass,
    "log_softmax/subtractive": lambda x: x - lse_shifted(x),
    "log_softmax/log_with_eps": lambda x: np.log(p_shifted(x) + constant(x, 1e-7)),
    "logsumexp/guarded": lse_guarded,
    "logsumexp/online": lambda x: online(x)[0] + np.log(online(x)[1]),
    "logsumexp/logaddexp": logaddexp,
    "logsumexp/split_merge": lambda x: merged(x)[0] + np.log(merged(x)[1]),
    "cross_entropy/split": lambda x, y: loss_of(np.log(add(np.exp(x - np.max(x)))) - (x - np.max(x)), y),
    "cross_entropy/log_with_eps": lambda x, y: loss(p_shifted(x) + constant(x, 1e-7), y),
    "cross_entropy/clipped": clipped,
    "cross_entropy/log1p_of_others": log1p_of_others,
    "cross_entropy/chunked": lambda x, y: loss_of(np.max(x) + np.log(tiled(x)[1]) - x, y),
    "cross_entropy_grad/others": others,
    "cross_entropy_grad/in_place_16_bit": lambda x, y: cast(less(cast(p_shifted(x), "bfloat16"), y), "bfloat16"),
    "cross_entropy_grad/saved_16_bit_logs": lambda x, y: less(np.exp(cast(l_shifted(x), "bfloat16")), y),
    "softmax/tiled(tile=5)": lambda x: tiled(x, size=5)[0] / tiled(x, size=5)[1],
    "softmax/lazy_rescale(tile=3)": lambda x: tiled(x, lazily, 3)[0] / tiled(x, lazily, 3)[1],
    "softmax/split_merge(parts=7)": lambda x: np.exp(x - unmasked(np.max(x))) / merged(x, 7)[1],
    "softmax/offset(offset=3)": partial(offset, by=3),
}


@pytest.mark.half
@pytest.mark.no_cover
@EVERY_FORMAT
@pytest.mark.parametrize("key", FORMULAS)
def test_a_variant_is_bit_for_bit_the_plain_numpy_formula_on_each_row(key, fmt):
    row = find(*key.split("/"))
    for number, case in enumerate(cases(fmt)):
        if number in (1, 3):  # 40 rows of 1, 60 of 10
            continue
        for tensors in case.tensors(row.op):
            got = row.run(case.x, *tensors, Arithmetic(fmt))
            assert same_bits(got, row_by_row(FORMULAS[key], case.x, *tensors)), case.x.shape


# ---- what is claimed -------------------------------------------------------------------------------------------------

CLAIMED = [(row, claim) for row in VARIANTS.values() for claim in row.claims]


def claimed(claim):
    rows = [row for row, name in CLAIMED if name == claim]
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.key)


def test_claims_are_known():
    assert {claim for _, claim in CLAIMED} == set(CLAIMS)


def tame(fmt, rows, n, seed):
    """Logits of which no difference overflows."""
    generator = np.random.default_rng(seed)
    sigma = generator.choice([0.1, 3.0, 30.0, fmt.largest / 8], (rows, 1))
    limit = fmt.largest / 2.0**1.5
    return round_array(np.clip(sigma * generator.standard_normal((rows, n)), -limit, limit), fmt)


@pytest.mark.half
@pytest.mark.no_cover
@EVERY_FORMAT
@claimed("finite")
def test_finite_logits_give_no_nan(row, fmt):
    for n, axes in ((1, {}), (2, {}), (7, {"exp": "correct", "subnormals": "flush"}), (20, {"exp": "exp2", "fma": True})):
        for summation in ("numpy", "sequential"):
            x = tame(fmt, 200, n, n)
            for tensors in Case(x, n).tensors(row.op):
                if row.op == "cross_entropy" and tensors[0].ndim == 2:
                    whole = widen(tensors[0])
                    tensors = (round_array(whole / np.maximum(whole.sum(axis=1, keepdims=True), 1), fmt),)
                result = row.run(x, *tensors, Arithmetic(fmt, summation, axes=Axes(**axes)))
                assert not np.isnan(result).any(), x[np.isnan(widen(result)).reshape(len(x), -1).any(axis=-1)]


@EVERY_FORMAT
@claimed("permutation")
def test_another_order_gives_the_same_results_in_that_order(row, fmt):
    generator = np.random.default_rng(3)
    for n in (2, 9, 40):
        x, k = random_rows(fmt, 20, n, n), Arithmetic(fmt, "exact")
        order = generator.permutation(n)
        for tensors in Case(x, n).tensors(row.op):
            moved = [np.argsort(order)[t] if t.ndim == 1 else t[:, order] for t in tensors]
            there = row.run(x, *tensors, k)
            for _ in range(there.ndim - 1):
                there = np.moveaxis(there[..., order], -1, 1)
            assert same_bits(row.run(x[:, order], *moved, k), there)


@EVERY_FORMAT
@claimed("shift")
def test_the_same_constant_added_exactly_changes_nothing(row, fmt):
    generator = np.random.default_rng(5)
    steps = 2 ** (fmt.precision - 1)
    for n in (2, 9, 150):
        x = generator.integers(-steps // 2, steps // 2 + 1, (20, n)).astype(float)
        k = Arithmetic(fmt)
        for tensors in Case(round_array(x, fmt), n).tensors(row.op):
            there = row.run(round_array(x, fmt), *tensors, k)
            for c in (-steps // 2, 1, steps // 2):
                assert same_bits(row.run(round_array(x + c, fmt), *tensors, k), there)


@MASKABLE
@claimed("mask")
def test_a_masked_logit_is_as_one_left_out(row, fmt):
    x = np.array([-INF] * 3 + [0.5, -1.0, 2.0, -INF, 1.5])
    there = np.isfinite(x)
    further = [np.linspace(-1, 1, 8)] if row.op == "softmax_vjp" else []
    given = ([x, *further], [each[there] for each in (x, *further)])
    found, alone = (widen(row.run(*(round_array(each, fmt) for each in tensors), Arithmetic(fmt))) for tensors in given)
    if found.ndim == 2:
        assert not found[~there].any()
        assert not found[:, ~there].any()
        found = found[there][:, there]
    elif found.ndim:
        assert found[~there].tolist() == [-INF if row.op == "log_softmax" else 0] * 4
        found = found[there]
    np.testing.assert_allclose(found, alone, rtol=16 * fmt.unit_roundoff)


@pytest.mark.parametrize("fmt", [F16, BF16, F32, F64], ids=lambda fmt: fmt.name)
@pytest.mark.parametrize(
    "key", ["softmax/subtractive", "softmax/exp2_scaled", "softmax/tiled_scaled", "softmax/two_pass", "log_softmax/subtractive"]
)
def test_what_claims_no_shift_changes_by_one(key, fmt):
    assert "shift" not in VARIANTS[key].claims
    x = np.arange(3.0)
    assert not same_bits(run(key, x, fmt), run(key, x + 2.0 ** (fmt.precision - 2), fmt))


# ---- the axes --------------------------------------------------------------------------------------------------------


class Watched(Arithmetic):
    """Notes which axes the operations that are asked for depend on."""

    def __init__(self, fmt):
        super().__init__(fmt)
        self.used = {"subnormals", "output_format", "overflow"}

    def sum(self, a):
        self.used |= {"accumulator", "summation"}
        return super().sum(a)

    def recurrence(self, factors, terms):
        self.used |= {"accumulator", "fma"}
        return super().recurrence(factors, terms)

    def exp(self, a):
        self.used |= {"exp"}
        return super().exp(a)

    def exp2(self, a):
        self.used |= {"exp"}
        return super().exp2(a)

    def fma(self, a, b, c):
        self.used |= {"fma"}
        return super().fma(a, b, c)


@pytest.mark.parametrize("row", VARIANTS.values(), ids=list(VARIANTS))
def test_the_axes_named_are_those_that_matter(row):
    k = Watched(F32)
    case = Case(random_rows(F32, 2, 300, 1), 1)
    for tensors in case.tensors(row.op):
        row.run(case.x[:, :30] if row.op == "softmax_jacobian" else case.x, *tensors, k)
    assert k.used == set(row.axes)


@pytest.mark.parametrize("fmt", [F16, BF16, E4M3, E5M2], ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("axes", [{}, {"fma": True}, {"subnormals": "flush"}, {"accumulator": "float32", "fma": True}])
def test_a_recurrence_is_its_steps_in_the_accumulator(fmt, axes):
    generator = np.random.default_rng(8)
    f, t = (round_array(generator.random((5, 30)) * scale, fmt) for scale in (1.1, 1.0))
    f[:, ::3] = 1
    k = Arithmetic(fmt, axes=Axes(**axes))
    a = k.accumulator
    s = a.take(t[:, 0])
    for j in range(1, 30):
        s = a.fma(s, a.take(f[:, j]), a.take(t[:, j]))
    assert same_bits(k.recurrence(f, t), k.take(s))
    assert k.recurrence(f[0], t[0]) == k.take(s)[0]


def test_a_rescaled_sum_overflows_by_the_rule_of_its_format():
    ones = np.ones((1, 1000)).astype(E4M3.dtype)
    halves = np.full_like(ones, 0.5)
    for overflow, last in (("format", NAN), ("saturate", 448)):
        recorder = Recorder()
        k = Arithmetic(E4M3, recorder=recorder, axes=Axes(accumulator="float8_e4m3fn", overflow=overflow))
        grown = k.recurrence(ones, round_array(np.linspace(0, 448, 1000)[None], E4M3))
        np.testing.assert_array_equal(widen(grown), [last])
        assert [(step.name, step.kind) for step in recorder.steps] == [("sum", "overflow")]
        # What plain addition would overflow on, halved at every step, is small.
        assert widen(Arithmetic(E4M3, recorder=recorder).recurrence(halves, ones)) <= 2
        assert len(recorder.steps) == 1


def test_the_parts_of_a_rescaled_row_keep_what_broke_them():
    recorder = Recorder()
    x = np.concatenate((np.full(128, -40.0), np.full(128, -30.0), np.full(3, 30.0))).astype(np.float16)
    VARIANTS["softmax/tiled"].run(x, Arithmetic(F16, recorder=recorder))
    assert ("multiply", "underflow") in {(step.name, step.kind) for step in recorder.steps}


# ---- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("tiled", "tiled"),
        ("softmax/tiled(tile=64)", "tiled(tile=64)"),
        ("tiled( tile = 0x40 )", "tiled(tile=64)"),
        ("tiled(tile=128)", "tiled"),
        ("lazy_rescale(threshold=8, tile=64)", "lazy_rescale(tile=64, threshold=8)"),
        ("chosen_shift(c=-0.5)", "chosen_shift(c=-0.5)"),
        ("stored_16_bit(stored=FP16)", "stored_16_bit(stored=float16)"),
    ],
)
def test_parameters_stand_in_the_name(given, name):
    assert name_of("softmax", given) == name
    assert name_of("softmax", name) == name
    (outcome,) = evaluate(Problem("softmax", np.arange(300.0)), ["float32"], [given, name]).outcomes
    assert outcome.variant == name


@pytest.mark.parametrize(
    ("given", "error", "saying"),
    [
        ("tiles", UnknownName, "unknown variant 'tiles' of softmax; known: naive, shifted, .*, tiled, "),
        ("log_softmax/naive", UnknownName, "unknown variant 'log_softmax/naive' of softmax"),
        ("tiles(tile=2)", UnknownName, "unknown variant 'tiles\\(tile=2\\)'"),
        ("naive()", InvalidProblem, "variant naive of softmax has no parameters, so its name ends before the bracket"),
        ("tiled()", InvalidProblem, r"variant 'tiled\(\)' is not written as tiled\(tile=128\)"),
        ("tiled(tile=2", InvalidProblem, "is not written as"),
        ("lazy_rescale(8)", InvalidProblem, r"is not written as lazy_rescale\(tile=128, threshold=4\)"),
        ("tiled(size=2)", InvalidProblem, "variant tiled has no parameter 'size'; it has tile"),
        ("tiled(tile=0)", InvalidProblem, "tile is 0.0; it is an integer from 1 to 1048576"),
        ("tiled(tile=1.5)", InvalidProblem, "tile is 1.5; it is an integer"),
        ("tiled(tile=nan)", InvalidProblem, "tile is nan; it is an integer"),
        ("chosen_shift(c=0x1p99999)", InvalidProblem, "c is '0x1p99999'; it is a number"),
        ("chosen_shift(c=inf)", InvalidProblem, "c is inf; it is a number"),
        ("stored_16_bit(stored=16)", InvalidProblem, "stored is 16.0; it is one of float16, bfloat16"),
        ("stored_16_bit(stored=float17)", InvalidProblem, "stored: unknown format 'float17'"),
    ],
)
def test_what_is_no_parameter_is_refused_with_the_way_out(given, error, saying):
    with pytest.raises(error, match=saying):
        find("softmax", given)


@pytest.mark.parametrize("name", ["tiled(tile=1_000)", "tiled(tile=\u0663)", "tiled(tile=64,tile=32)", "chosen_shift(c=1e)"])
def test_numbers_are_written_as_elsewhere_and_once(name):
    with pytest.raises(InvalidProblem):
        find("softmax", name)


def test_long_rows_in_small_tiles_are_estimated_longer():
    for name in ("tiled(tile=1)", "lazy_rescale(tile=1)", "split_merge(parts=64000)"):
        assert estimate(Problem("softmax", np.zeros(64_000)), ["float32"], [name]) > 10


@pytest.mark.parametrize("row", [row for row in VARIANTS.values() if row.parameters], ids=lambda row: row.key)
def test_every_parameter_has_a_use(row):
    others = {
        "tile": 2,
        "parts": 5,
        "stored": "float8_e5m2",
        "threshold": 0,
        "offset": 14,
        "c": 3,
        "start": -1,
        "mask": -1,
        "eps": 0.5,
    }
    generator = np.random.default_rng(6)
    x = np.sort(2 * generator.standard_normal((30, 300)), axis=-1)
    x[10:20] -= 30
    tensors = (np.full(30, 299),) if row.op == "cross_entropy" else ()
    if not tensors:
        x[20:, :100] = -INF
    for name in row.parameters:
        other = find(row.op, f"{row.name}({name}={others[name]})")
        assert other.name != row.name
        found = [[r.run(round_array(x, fmt), *tensors, Arithmetic(fmt)) for r in (row, other)] for fmt in (F16, F32)]
        assert not all(same_bits(*pair) for pair in found), name


def test_defaults_are_in_range():
    for row in VARIANTS.values():
        for name, parameter in row.parameters.items():
            assert isinstance(parameter, Number | Integer | FormatName)
            assert parameter.check(name, parameter.default) == parameter.default


def test_an_integer_is_no_truth_value():
    with pytest.raises(InvalidProblem, match="tile is True"):
        Integer(1, 0, 2).check("tile", True)


# ---- hazards: one test each ------------------------------------------------------------------------------------------


def test_by_reciprocal_quotients_round_once_more():
    rows = [[2.0] + [1.0] * n for n in range(2, 50)]
    assert any(run("softmax/reciprocal", row)[1] != run("softmax/shifted", row)[1] for row in rows)
    assert all(run("softmax/reciprocal", row)[0] == run("softmax/shifted", row)[0] for row in rows)


def test_naive_softmax_of_two_equal_logits_is_0_before_it_is_nan():
    # tenstorrent/tt-metal#52131: all zeros, no NaN
    assert wide("softmax/naive", [10.3984375] * 2, F16).tolist() == [0, 0]
    assert wide("softmax/naive", [10.390625] * 2, F16).tolist() == [0.5, 0.5]
    assert np.isnan(wide("softmax/naive", [11.09375, 0], F16)).any()


def test_subtractive_naive_vanishes_where_naive_is_nan_and_overflows_where_all_underflow():
    assert wide("softmax/subtractive_naive", [1000, 1001]).tolist() == [0, 0]
    assert wide("softmax/subtractive_naive", [-200, -201]).tolist() == [INF, INF]


def test_subtractive_loses_the_digits_of_an_offset():
    x = np.array([0.0, 0.5, 1.0])
    right = truth_of(x)
    assert wide("softmax/subtractive", x + 4096)[0] != pytest.approx(right[0], rel=5e-5)
    assert wide("softmax/shifted", x + 4096)[0] == pytest.approx(right[0], rel=1e-6)


def test_the_maximum_left_out_keeps_equal_logits_right():
    x = np.zeros(3)
    assert wide("softmax/max_left_out", x)[0] == np.float32(1 / 3)
    assert np.isnan(wide("softmax/max_left_out", [-INF, -INF])).all()


@pytest.mark.parametrize(("c", "low", "high"), [(0, -103, 88), (-80, -23, 168), (80, -183, 8)])
def test_a_chosen_shift_only_moves_the_limits(c, low, high):
    key = f"softmax/chosen_shift(c={c})"
    assert wide(key, [low]).tolist() == wide(key, [high]).tolist() == [1]
    assert np.isnan(wide(key, [low - 2])).all()
    assert np.isnan(wide(key, [high + 1])).all()


def test_a_wrong_shift_shifts_nothing_where_all_logits_are_negative():
    assert np.isnan(wide("softmax/wrong_shift", [-200, -201])).all()
    np.testing.assert_allclose(wide("softmax/wrong_shift", [200, 199]), truth_of([200, 199]), rtol=1e-6)


def test_a_finite_sentinel_forgets_rows_below_it():
    # flashinfer-ai/flashinfer#4267
    row = [-245000.0, -244990.0]
    assert np.isnan(wide("softmax/finite_sentinel(start=-5e4)", row)).all()
    np.testing.assert_allclose(wide("softmax/shifted", row), [4.53978687e-5, 0.999954602], rtol=1e-6)
    np.testing.assert_allclose(wide("softmax/finite_sentinel(start=-3e5)", row), [4.53978687e-5, 0.999954602], rtol=1e-6)


def test_a_scaled_maximum_does_not_cancel_in_an_fma():
    # pytorch/pytorch#100775 and #121558
    x = [2.0**20 + 0.5] * 2
    assert wide("softmax/exp2_scaled", x).tolist() == wide("softmax/exp2_scaled", x, fma=True).tolist() == [0.5, 0.5]
    c = float(np.float32(math.log2(math.e)))
    large = [np.float32(2.0**35) * 1.1]
    residual = float(large[0]) * c - float(np.float32(np.float32(large[0]) * np.float32(c)))
    assert abs(residual) > 128
    assert wide("softmax/exp2_scaled", large).tolist() == [1]
    assert np.isnan(wide("softmax/exp2_scaled", large, fma=True)).all()


def test_tiles_with_a_folded_product_lose_digits_far_from_0():
    x = np.random.default_rng(3).normal(1000, 3, 512)
    right = wide("softmax/shifted", round_array(x, F32), F64)
    near, folded = (np.abs(wide(f"softmax/{name}(tile=64)", x, fma=True) / right - 1).max() for name in ("tiled", "tiled_scaled"))
    assert folded > 3 * near


def test_an_offset_makes_sums_overflow_sooner():
    assert wide("softmax/offset", np.zeros(255), F16)[0] > 0
    assert wide("softmax/offset", np.zeros(256), F16).tolist() == [0] * 256
    assert np.isnan(wide("softmax/offset", [0, 0], E4M3)).all()
    assert wide("softmax/shifted", [0, 0], E4M3).tolist() == [0.5, 0.5]


def test_stored_exponentials_carry_their_roundoff():
    x = np.array([0.0, -0.3])
    error = abs(wide("softmax/stored_16_bit", x) - truth_of(x)) / truth_of(x)
    assert 2.0**-12 < error.max() < 2.0**-8
    assert wide("softmax/stored_16_bit", x).sum() == pytest.approx(1, rel=1e-7)


def test_exponentials_stored_after_the_sum_need_not_sum_to_1():
    # flashinfer-ai/flashinfer#5020: a peak, and a diffuse tail that the storage flushes but the denominator counts
    x = np.concatenate(([7.0], np.zeros(2000)))
    assert 0.3 < wide("softmax/stored_after_sum(stored=float8_e4m3fn)", x).sum() < 0.4
    assert wide("softmax/stored_16_bit(stored=float8_e4m3fn)", x).sum() == pytest.approx(1, rel=1e-6)


@MASKABLE
def test_rows_without_a_logit(fmt):
    row = [-INF] * 4
    assert np.isnan(wide("softmax/shifted", row, fmt)).all()
    assert wide("softmax/masked_zero", row, fmt).tolist() == [0] * 4
    assert wide("softmax/masked_lowest", row, fmt).tolist() == [0.25] * 4
    holds = fmt.largest > 1e9
    np.testing.assert_array_equal(wide("softmax/masked_value", row, fmt), [0.25 if holds else NAN] * 4)
    for name in ("guarded", "online", "logaddexp", "split_merge"):
        assert wide(f"logsumexp/{name}", row, fmt) == -INF
    for name in ("online", "tiled", "lazy_rescale", "split_merge", "two_pass"):
        assert np.isnan(wide(f"softmax/{name}", row, fmt)).all()


@MASKABLE
def test_a_whole_tile_that_is_masked_counts_for_nothing(fmt):
    x = [-INF, -INF, 1.0, 0.0, -INF, -INF, 3.0, -INF]
    for name in ("tiled(tile=2)", "lazy_rescale(tile=2)", "split_merge(parts=4)", "online"):
        np.testing.assert_allclose(wide(f"softmax/{name}", x, fmt), truth_of(x), rtol=20 * fmt.unit_roundoff)


def test_a_mask_competes_with_logits_as_low():
    assert wide("softmax/masked_value", [-INF, -2e9]).tolist() == [1, 0]
    assert wide("softmax/masked_lowest", [-INF, float(-F32.largest)]).tolist() == [0.5, 0.5]
    assert wide("softmax/shifted", [-INF, -2e9]).tolist() == [0, 1]


def test_online_terms_are_added_in_order_and_stall():
    assert wide("softmax/online", np.zeros(4096), F16)[0] == 1 / 2048
    assert wide("softmax/online", np.zeros(4096), F16, accumulator="float32")[0] == 1 / 4096
    assert wide("softmax/tiled", np.zeros(4096), F16)[0] == 1 / 4096


def test_tiles_that_ascend_are_rescaled():
    up = np.arange(0, 8, 1 / 32)
    exact = truth_of(up)
    errors = [np.abs(wide(f"softmax/tiled(tile={tile})", up) / exact - 1).max() for tile in (1, 256)]
    assert errors[0] > 2 * errors[1]


def test_lazy_exponentials_overflow_an_8_bit_format():
    # Dao-AILab/flash-attention#2577: a threshold of more than the format's exponents
    x = [0.0] * 4 + [6.5] * 4
    late = "softmax/lazy_rescale(tile=4, threshold=12)"
    assert np.isnan(wide(late, x, E4M3)).all()
    assert wide("softmax/tiled(tile=4)", x, E4M3).sum() == pytest.approx(1, abs=0.2)
    assert wide(late, [0.0, 8.0] * 100, F16).sum() == pytest.approx(1, abs=0.02)


def test_lazy_sums_overflow_sooner():
    x = np.concatenate((np.zeros(128), np.full(4500, 2.7)))
    assert wide("softmax/lazy_rescale", x, F16).sum() == 0
    assert wide("softmax/tiled", x, F16)[-1] > 0


def test_merged_parts_are_right_where_one_is_masked():
    np.testing.assert_allclose(wide("softmax/split_merge(parts=3)", np.arange(5.0)), truth_of(np.arange(5.0)), rtol=1e-6)


def test_two_passes_cancel_what_is_far_from_0():
    x = np.array([0.0, 1.0, 2.0])
    near, far = (np.abs(wide("softmax/two_pass", x + c) / truth_of(x) - 1).max() for c in (0, 3e6))
    assert near < 1e-6
    assert far > 0.01
    assert np.isnan(wide("softmax/two_pass", [60000.0, 0.0], F16)).all()
    np.testing.assert_allclose(wide("softmax/two_pass", x + 1000), truth_of(x), rtol=1e-5)  # where exp(x) overflows


def test_logarithms_of_a_sum_that_is_subtracted_are_rounded():
    # pytorch/pytorch#38839, ml-explore/mlx#4169
    x = np.array([-1e7, -1e7, -9999999])
    assert wide("log_softmax/subtractive", x).tolist() != pytest.approx([-1.551444714, -1.551444714, -0.5514447139], abs=0.1)
    assert wide("log_softmax/shifted", x).tolist() == pytest.approx([-1.551444714, -1.551444714, -0.5514447139], rel=1e-6)


def test_a_number_added_to_probabilities_is_a_floor():
    found = wide("log_softmax/log_with_eps", [0.0, -104.0])
    assert found.tolist() == pytest.approx([1.19e-7, -16.118], rel=0.01)
    assert (
        wide("log_softmax/log_with_eps(eps=0)", [0.0, -104.0]).tolist()
        == wide("log_softmax/log_of_softmax", [0.0, -104.0]).tolist()
    )


def test_the_guarded_form_has_a_value_where_a_maximum_is_infinite():
    assert wide("logsumexp/guarded", [INF, 0.0]) == wide("logsumexp/logaddexp", [INF, INF]) == INF
    assert np.isnan(wide("logsumexp/shifted", [INF, 0.0]))


def test_a_running_logarithm_forgets_what_is_small_against_it():
    x = [1e4] + [1e4] * 4095
    assert wide("logsumexp/logaddexp", x) != pytest.approx(1e4 + math.log(4096), abs=0.01)
    assert wide("logsumexp/shifted", x) == pytest.approx(1e4 + math.log(4096), abs=1e-3)


def test_at_a_dominant_maximum_merged_sums_round_to_1():
    for name in ("online", "split_merge", "guarded"):
        assert wide(f"logsumexp/{name}", [0.0, -40.0]) == 0


# ---- the catalogue ---------------------------------------------------------------------------------------------------

KINDS = {
    "the definition": "softmax/naive",
    "three passes, maximum and quotient": "softmax/shifted",
    "the same by reciprocal": "softmax/reciprocal",
    "without a division": "softmax/subtractive",
    "the maximum's term left out": "softmax/max_left_out",
    "a wrong shift": "softmax/wrong_shift",
    "a finite start value": "softmax/finite_sentinel",
    "a constant shift": "softmax/chosen_shift",
    "online": "softmax/online",
    "tiles": "softmax/tiled",
    "lazy rescaling": "softmax/lazy_rescale",
    "exponents carried": "softmax/two_pass",
    "exp2": "softmax/exp2_scaled",
    "split and merge": "softmax/split_merge",
    "exponentials of 16 bits": "softmax/stored_16_bit",
    "numerator and denominator rounded differently": "softmax/stored_after_sum",
    "an offset for 8 bits": "softmax/offset",
    "masks of zeros": "softmax/masked_zero",
    "masks of the lowest number": "softmax/masked_lowest",
    "masks of -1e9": "softmax/masked_value",
    "logarithms after the maximum": "log_softmax/shifted",
    "logarithms less the log-sum-exp": "log_softmax/subtractive",
    "logarithms of a softmax": "log_softmax/log_of_softmax",
    "logarithms with log1p": "log_softmax/log1p",
    "logarithms with an eps": "log_softmax/log_with_eps",
    "the plain log-sum-exp": "logsumexp/naive",
    "the shifted log-sum-exp": "logsumexp/shifted",
    "log-sum-exp with log1p": "logsumexp/log1p",
    "log-sum-exp as a stream": "logsumexp/logaddexp",
    "log-sum-exp merged": "logsumexp/split_merge",
    "log-sum-exp of masked rows": "logsumexp/guarded",
    "accumulators": "accumulators of another format",
    "orders": "orders of summation",
    "selected masks": "masks by -inf or by selection",
    "hardware exponentials": "approximate exponentials of hardware",
    "truncation": "top-k and top-p",
    "sparse": "sparsemax and entmax",
    "random": "Gumbel-softmax",
    "weights": "log-sum-exp with weights or signs",
}


def test_every_kind_is_a_variant_or_left_out_with_a_reason():
    assert [name for name in KINDS.values() if name not in VARIANTS and name not in LEFT_OUT] == []
    assert set(LEFT_OUT) <= set(KINDS.values())
    assert all(len(reason) > 20 for reason in LEFT_OUT.values())


def test_issues_are_named_by_repository_and_number():
    for row in VARIANTS.values():
        for issue in row.issues:
            owner, _, number = issue.partition("#")
            assert owner.count("/") == 1
            assert number.isdigit()


def test_long_rows_of_a_serial_variant_are_estimated_longer():
    long = Problem("softmax", np.zeros(10_000))
    assert estimate(long, ["float32"], ["online"]) > estimate(long, ["float32"], ["shifted"])


def test_a_new_variant_may_have_parameters_axes_and_claims(monkeypatch):
    monkeypatch.setattr(VARIANTS, "_rows", dict(VARIANTS._rows))

    @variant(
        "softmax", "tilted", formula="f", source="s", hazard="h", issues=["a/b#1"], axes=FUSED, claims="finite shift", c=Number(2.0)
    )
    def tilted(x, k, c):
        return k.mul(x, k.constant(c))

    row = VARIANTS["softmax/tilted"]
    assert (row.issues, row.claims, row.axes) == (("a/b#1",), ("finite", "shift"), FUSED)
    assert row.run(np.ones(2), Arithmetic(F64)).tolist() == [2, 2]
    assert find("softmax", "tilted(c=3)").run(np.ones(2), Arithmetic(F64)).tolist() == [3, 3]
    assert tilted(np.ones(1), Arithmetic(F64), c=5).tolist() == [5]
    assert "softmax/tilted" in [row.key for row in of_op("softmax")]
    assert OPS["softmax"].name == row.op
    assert SUMMATIONS
