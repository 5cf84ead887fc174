"""Every variant is its formula: bit for bit the plain NumPy one on each row alone, in every format; its inputs stay as they are."""

import math
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import pytest

from engine.arithmetic import Arithmetic
from engine.errors import UnknownName
from engine.formats import FORMATS, from_ordinals, ordinals, round_array, widen
from engine.inputs import FAMILIES, generate
from engine.ops import OPS
from engine.recorder import Recorder
from engine.summation import SUMMATIONS
from engine.variants import VARIANTS, of_op, variant

INF, NAN = math.inf, math.nan
EVERY_FORMAT = pytest.mark.parametrize("fmt", FORMATS.values(), ids=list(FORMATS))
WITH_INFINITY = pytest.mark.parametrize("fmt", [row for row in FORMATS.values() if row.has_infinity], ids=lambda row: row.name)
EVERY_VARIANT = pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))


# The plain formulas, on one row.


def p_naive(x):
    return np.exp(x) / np.sum(np.exp(x))


def p_shifted(x):
    return np.exp(x - np.max(x)) / np.sum(np.exp(x - np.max(x)))


def jacobian(p):
    return p[:, None] * (np.eye(len(p), dtype=p.dtype) - p[None, :])


def pulled_back(p, g):
    return p * (g - np.sum(g * p))


def one_hot(y, like):
    if y.ndim:
        return y
    return (np.arange(len(like)) == y).astype(like.dtype)


def loss(p, y):
    return -np.sum(y * np.log(p)) if y.ndim else -np.log(p[y])


def lse_shifted(x):
    return np.max(x) + np.log(np.sum(np.exp(x - np.max(x))))


def rest(x):
    e = np.exp(x - np.max(x))
    e[np.argmax(x)] = 0
    return np.sum(e)


def ce_fused(x, y):
    if y.ndim:
        return np.sum(y * np.where(y != 0, lse_shifted(x) - x, np.zeros_like(x)))
    return lse_shifted(x) - x[y]


def grad_fused(x, y):
    return np.sum(y) * p_shifted(x) - y if y.ndim else p_shifted(x) - one_hot(y, x)


FORMULAS = {
    "softmax/naive": p_naive,
    "softmax/shifted": p_shifted,
    "softmax_jacobian/naive": lambda x: jacobian(p_naive(x)),
    "softmax_jacobian/shifted": lambda x: jacobian(p_shifted(x)),
    "softmax_vjp/naive": lambda x, g: pulled_back(p_naive(x), g),
    "softmax_vjp/shifted": lambda x, g: pulled_back(p_shifted(x), g),
    "cross_entropy/naive": lambda x, y: loss(p_naive(x), y),
    "cross_entropy/log_of_softmax": lambda x, y: loss(p_shifted(x), y),
    "cross_entropy/fused": ce_fused,
    "cross_entropy_grad/chain_rule": lambda x, y: pulled_back(p_shifted(x), -one_hot(y, x) / p_shifted(x)),
    "cross_entropy_grad/fused": grad_fused,
    "log_softmax/naive": lambda x: x - np.log(np.sum(np.exp(x))),
    "log_softmax/log_of_softmax": lambda x: np.log(p_shifted(x)),
    "log_softmax/shifted": lambda x: (x - np.max(x)) - np.log(np.sum(np.exp(x - np.max(x)))),
    "log_softmax/log1p": lambda x: (x - np.max(x)) - np.log1p(rest(x)),
    "logsumexp/naive": lambda x: np.log(np.sum(np.exp(x))),
    "logsumexp/log_of_softmax": lambda x: np.max(x) - np.log(p_shifted(x)[np.argmax(x)]),
    "logsumexp/shifted": lse_shifted,
    "logsumexp/log1p": lambda x: np.max(x) + np.log1p(rest(x)),
}


# The rows.


def nasty(fmt):
    """Rows of three that break something: limits and their neighbours, specials, subnormals, ties."""
    limit = ordinals(np.array([fmt.exp_limit]).astype(fmt.dtype), fmt)
    below, at, above = from_ordinals(limit[0] + np.array([-1, 0, 1]), fmt).astype(np.float64)
    zero_at = (fmt.emin - fmt.precision) * math.log(2)
    values = [NAN, INF, -INF, 0.0, -0.0, below, at, above, zero_at, fmt.largest, -fmt.largest, fmt.smallest_subnormal, 1.0]
    return round_array(np.array(list(product(values, repeat=3))), fmt)


def random_rows(fmt, rows, n, seed):
    generator = np.random.default_rng(seed)
    sigma = generator.choice([1e-3, 1.0, 10.0, 100.0, 1e4], size=(rows, 1))
    return round_array(sigma * generator.standard_normal((rows, n)), fmt)


@dataclass
class Case:
    """Rows (r, n) with class indices (r,), distributions and gradients (r, n), a tenth of the weights 0."""

    x: np.ndarray
    seed: int

    def tensors(self, op):
        """The choices of further tensors for an op."""
        if not OPS[op].tensors:
            return [()]
        generator = np.random.default_rng(self.seed)
        rows, n = self.x.shape
        weights = generator.random((rows, n)) * (generator.random((rows, n)) > 0.1)
        g = generator.standard_normal((rows, n))
        cast = self.x.dtype
        if op == "softmax_vjp":
            return [(g.astype(cast),)]
        return [(generator.integers(n, size=rows),), (weights.astype(cast),)]


def cases(fmt):
    sizes = [(40, 1), (30, 2), (60, 10), (6, 33), (4, 129), (2, 1000)]
    yield Case(nasty(fmt), 0)
    for seed, (rows, n) in enumerate(sizes):
        yield Case(random_rows(fmt, rows, n, seed), seed)
    for family in FAMILIES:
        yield Case(round_array(generate(family, 8, 12, 7), fmt), 99)


def same_bits(got, expected):
    """Equal bit for bit, signs of zero and infinity included; any NaN equals any NaN."""
    nan = np.isnan(got)
    bits = f"u{got.dtype.itemsize}"
    return (
        got.dtype == expected.dtype
        and got.shape == expected.shape
        and bool(((got.view(bits) == expected.view(bits)) | nan).all() and (np.isnan(expected) == nan).all())
    )


def row_by_row(function, *tensors):
    with np.errstate(all="ignore"):
        return np.stack([np.asarray(function(*row)) for row in zip(*tensors, strict=True)])


# The rules.


@pytest.mark.half
@pytest.mark.no_cover
@EVERY_FORMAT
@pytest.mark.parametrize("key", FORMULAS)
def test_a_variant_is_bit_for_bit_the_plain_numpy_formula_on_each_row(key, fmt):
    row = VARIANTS[key]
    for case in cases(fmt):
        if row.op == "softmax_jacobian" and case.x.shape[1] > 200:
            continue
        for tensors in case.tensors(row.op):
            got = row.run(case.x, *tensors, Arithmetic(fmt))
            assert same_bits(got, row_by_row(FORMULAS[key], case.x, *tensors)), case.x.shape


@pytest.mark.half
@pytest.mark.no_cover
@EVERY_FORMAT
@EVERY_VARIANT
def test_a_row_gives_the_same_alone_and_in_any_batch(variant, fmt):
    case = Case(random_rows(fmt, 6, 17, 3), 3)
    for tensors, summation in product(case.tensors(variant.op), SUMMATIONS):
        k = Arithmetic(fmt, summation)
        batch = variant.run(case.x, *tensors, k)
        alone = row_by_row(partial(_run_row, variant, k), case.x, *map(np.asarray, tensors))
        assert same_bits(alone, batch), summation
        deeper = variant.run(*(t.reshape(2, 3, *t.shape[1:]) for t in (case.x, *tensors)), k)
        assert same_bits(deeper.reshape(batch.shape), batch), summation
        fortran = variant.run(*(np.asfortranarray(t) for t in (case.x, *tensors)), k)
        assert same_bits(np.ascontiguousarray(fortran), batch), summation


def _run_row(variant, k, *row):
    return variant.run(*row, k)


@EVERY_FORMAT
@EVERY_VARIANT
def test_the_result_has_the_ops_shape_and_keeps_the_format(variant, fmt):
    for shape in ((5,), (1, 5), (3, 5), (2, 3, 5), (2, 1, 3, 5), (1,), (4, 1)):
        case, k = Case(random_rows(fmt, math.prod(shape[:-1]), shape[-1], 5), 5), Arithmetic(fmt)
        x = case.x.reshape(shape)
        for tensors in case.tensors(variant.op):
            shaped = [t.reshape(shape[:-1] if t.ndim == 1 else shape) for t in tensors]
            result = variant.run(x, *shaped, k)
            assert isinstance(result, np.ndarray)
            assert result.dtype == fmt.dtype
            assert result.shape == OPS[variant.op].output_shape(shape)


@pytest.mark.half
@pytest.mark.no_cover
@EVERY_FORMAT
@EVERY_VARIANT
def test_the_inputs_are_never_changed_nor_handed_back(variant, fmt):
    found = (Case(random_rows(fmt, 5, 4, 8), 8), Case(nasty(fmt), 9), Case(random_rows(fmt, 5, 1, 8), 8))
    summations = SUMMATIONS if fmt.name == "float32" else ("numpy", "sequential", "kahan")
    for case, summation in product(found, summations):
        for tensors in case.tensors(variant.op):
            given = (case.x, *tensors)
            for tensor in given:
                tensor.flags.writeable = False
            before = [tensor.tobytes() for tensor in given]
            result = variant.run(*given, Arithmetic(fmt, summation, Recorder()))
            assert [tensor.tobytes() for tensor in given] == before, summation
            assert not any(np.shares_memory(result, tensor) for tensor in given), summation


@EVERY_FORMAT
@EVERY_VARIANT
def test_recording_changes_nothing(variant, fmt):
    case = Case(nasty(fmt), 2)
    for tensors in case.tensors(variant.op):
        plain = variant.run(case.x, *tensors, Arithmetic(fmt))
        assert same_bits(variant.run(case.x, *tensors, Arithmetic(fmt, recorder=Recorder())), plain)


@pytest.mark.parametrize(
    ("fmt", "limit"), [("float16", 11.0859375), ("bfloat16", 88.5), ("float32", 88.72283172607422), ("float64", 709.782712893384)]
)
def test_naive_softmax_of_one_logit_is_finite_up_to_the_exp_limit(fmt, limit):
    row = FORMATS[fmt]
    at = np.array([limit]).astype(row.dtype)
    assert float(at[0]) == limit
    above = from_ordinals(ordinals(at, row) + 1, row)
    naive, k = VARIANTS["softmax/naive"].run, Arithmetic(row)
    assert naive(at, k).tolist() == [1]
    assert np.isnan(naive(above, k)).tolist() == [True]


@EVERY_FORMAT
def test_softmax_of_1000_1001_1002_needs_the_shift(fmt):
    x = round_array(np.array([[1000.0, 1001.0, 1002.0]]), fmt)
    # bfloat16 holds none of 1001 and 1002; the truth is that of the stored logits.
    wide = x.astype(np.float64) - 1000
    truth = np.exp(wide) / np.exp(wide).sum()
    k = Arithmetic(fmt)
    assert np.isnan(VARIANTS["softmax/naive"].run(x, k)).all()
    np.testing.assert_allclose(VARIANTS["softmax/shifted"].run(x, k).astype(np.float64), truth, rtol=6 * fmt.unit_roundoff)


@EVERY_FORMAT
def test_the_chain_rule_makes_a_row_nan_where_fused_does_not(fmt):
    x = round_array(np.array([0.0, -400.0 if fmt.bits == 8 else -1000.0]), fmt)
    k, target = Arithmetic(fmt), np.array(0)
    assert np.isnan(VARIANTS["cross_entropy_grad/chain_rule"].run(x, target, k)).all()
    assert VARIANTS["cross_entropy_grad/fused"].run(x, target, k).tolist() == [0, 0]


@WITH_INFINITY
def test_a_weight_of_zero_contributes_zero_to_the_fused_loss_alone(fmt):
    # optax#896: 0 * -inf.
    x, y = (np.array(row).astype(fmt.dtype) for row in ([0.0, -INF], [1.0, 0.0]))
    recorder = Recorder()
    assert VARIANTS["cross_entropy/fused"].run(x, y, Arithmetic(fmt, recorder=recorder)).tolist() == 0
    assert recorder.steps == []
    assert np.isnan(VARIANTS["cross_entropy/log_of_softmax"].run(x, y, Arithmetic(fmt)))


@WITH_INFINITY
def test_a_masked_target_costs_infinitely_much(fmt):
    x = np.array([0.0, -INF]).astype(fmt.dtype)
    for name in ("naive", "log_of_softmax", "fused"):
        assert VARIANTS[f"cross_entropy/{name}"].run(x, np.array(1), Arithmetic(fmt)).tolist() == INF


def test_log1p_keeps_what_log_loses():
    x, k = np.array([20.0, 0.0], np.float32), Arithmetic(FORMATS["float32"])
    assert VARIANTS["log_softmax/shifted"].run(x, k)[0] == 0
    assert VARIANTS["log_softmax/log1p"].run(x, k)[0] == pytest.approx(-2.0611536e-09, rel=1e-6)


# The registry.


def test_the_formulas_above_are_of_built_in_variants():
    assert set(FORMULAS) <= set(VARIANTS)


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_a_naive_and_a_stable_variant(op):
    rows = of_op(op)
    assert rows
    assert all(row.op == op for row in rows)
    assert any(row.stable for row in rows)
    assert not rows[0].stable


@EVERY_VARIANT
def test_a_variant_says_what_it_is(variant):
    assert variant.key == f"{variant.op}/{variant.name}"
    assert variant.formula
    assert variant.source
    assert variant.hazard


def test_variants_of_an_unknown_op_are_asked_for_in_vain():
    with pytest.raises(UnknownName, match=r"unknown op 'sofmax'; .* did you mean 'softmax'"):
        of_op("sofmax")


def test_a_variant_of_an_unknown_op_cannot_be_added():
    with pytest.raises(UnknownName):
        variant("sparsemax", "naive", formula="", source="", hazard="")(p_naive)


# What the catalogue warns of


def run_rows(key, rows, fmt="float32", *extra, summation="numpy"):
    form = FORMATS[fmt]
    with np.errstate(all="ignore"):
        return widen(VARIANTS[key].run(round_array(np.array(rows, float), form), *extra, Arithmetic(form, summation)))


def test_a_wrong_shift_and_a_finite_sentinel_divide_zeros():
    assert np.isnan(run_rows("softmax/wrong_shift", [-110.0, -111.0])).all()
    assert np.isnan(run_rows("softmax/finite_sentinel", [-11000.0, -11001.0])).all()
    for key in ("softmax/wrong_shift", "softmax/finite_sentinel"):
        assert (run_rows(key, [5.0, -INF]) == [1, 0]).all()


def test_a_sum_overflows_sooner_where_exponentials_are_large():
    assert (run_rows("softmax/offset", np.zeros(255), "float16") > 0).all()
    assert (run_rows("softmax/offset", np.zeros(256), "float16") == 0).all()
    x = np.full(4600, 2.75)
    x[:128] = 0
    assert (run_rows("softmax/lazy_rescale", x, "float16") == 0).all()
    assert (run_rows("softmax/tiled", x, "float16") > 0).all()


def test_logits_far_from_0_lose_digits_where_a_logarithm_or_a_product_of_them_is_rounded():
    x = np.array([1e4, 1e4 - 1])
    right = run_rows("softmax/shifted", x)
    for key in ("softmax/subtractive", "softmax/exp2_scaled"):
        off = np.abs(run_rows(key, x) / right - 1).max()
        assert 1e-5 < off < 1e-2
    assert np.abs(run_rows("log_softmax/subtractive", x) - run_rows("log_softmax/shifted", x)).max() > 1e-5


def test_exponentials_stored_after_they_were_summed_do_not_sum_to_1():
    x = np.linspace(0, 3, 40)
    assert abs(run_rows("softmax/stored_16_bit", x).sum() - 1) < 1e-6
    assert abs(run_rows("softmax/stored_after_sum", x).sum() - 1) > 1e-5


def test_a_loss_with_an_epsilon_ends_at_it():
    x, y = np.array([0.0, 40.0]), np.array(0)
    assert run_rows("cross_entropy/fused", x, "float32", y) == 40
    for key in ("cross_entropy/clipped", "cross_entropy/log_with_eps"):
        assert abs(run_rows(key, x, "float32", y) - 16.118095) < 1e-5
    assert run_rows("cross_entropy/log_with_eps", x, "float32", np.array(1)) < 0
    assert abs(run_rows("log_softmax/log_with_eps", x)[0] + 16.118095) < 1e-5


def test_the_loss_by_the_others_keeps_its_last_digits_and_overflows():
    x = np.array([0.0, -30.0, -31.0])
    assert run_rows("cross_entropy/fused", x, "float32", np.array(0)) == 0
    found = run_rows("cross_entropy/log1p_of_others", x, "float32", np.array(0))
    assert abs(found / (math.exp(-30) + math.exp(-31)) - 1) < 1e-6
    assert run_rows("cross_entropy/log1p_of_others", [0.0, 100.0], "float32", np.array(0)) == INF


def test_gradients_of_a_certain_target():
    x, y = np.array([12.0, 0.0, 0.0]), np.array(0)
    true = -2 * math.exp(-12) / (1 + 2 * math.exp(-12))
    assert abs(run_rows("cross_entropy_grad/others", x, "float32", y)[0] / true - 1) < 1e-6
    assert abs(run_rows("cross_entropy_grad/fused", x, "float32", y)[0] / true - 1) > 1e-4
    assert run_rows("cross_entropy_grad/in_place_16_bit", x, "float32", y)[0] == 0


STREAMS = ["softmax/online", "softmax/tiled", "softmax/lazy_rescale", "softmax/split_merge", "softmax/two_pass"]


@pytest.mark.parametrize("key", [*STREAMS, "softmax/reciprocal", "softmax/max_left_out"])
def test_streams_agree_with_the_shifted_form(key):
    rng = np.random.default_rng(4)
    for n in (1, 2, 127, 128, 129, 400):
        x = rng.normal(0, 5, (3, n))
        assert np.abs(run_rows(key, x) - run_rows("softmax/shifted", x)).max() < 1e-5
        x[:, : n // 2] = -INF
        assert np.abs(run_rows(key, x) - run_rows("softmax/shifted", x)).max() < 1e-5
    assert (run_rows(key, [1000.0, 1001.0]) > 0).all() or key == "softmax/two_pass"


@pytest.mark.parametrize("key", ["logsumexp/online", "logsumexp/split_merge", "logsumexp/logaddexp"])
def test_running_logarithms_agree_with_the_shifted_form(key):
    x = np.random.default_rng(5).normal(0, 5, (3, 50))
    assert np.abs(run_rows(key, x) - run_rows("logsumexp/shifted", x)).max() < 1e-4
    masked = np.full((1, 3), -INF)
    assert run_rows(key, masked) == -INF
