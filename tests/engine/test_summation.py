"""Each strategy adds in its own order and stays in its format; NumPy's is what NumPy does, the others are written out."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from engine.arithmetic import Arithmetic
from engine.formats import FORMATS, round_array
from engine.summation import SUMMATIONS
from engine.variants import VARIANTS

LOGITS = Path(__file__).parents[2].parent / "shared" / "data" / "bhh-mnist" / "logits.npy"
EVERY_FORMAT = pytest.mark.parametrize("fmt", FORMATS.values(), ids=list(FORMATS))
EVERY_SUMMATION = pytest.mark.parametrize("summation", SUMMATIONS.values(), ids=list(SUMMATIONS))


def terms(fmt, shape, seed=1):
    return round_array(np.random.default_rng(seed).standard_normal(shape), fmt)


def rounded_prefix_sums(row, fmt):
    """The sum in order, every partial sum taken exactly enough in float64 and rounded by the format's own rule."""
    total = float(row[0])
    for term in row[1:]:
        total = float(round_array(np.array(total + float(term)), fmt))
    return total


@EVERY_FORMAT
@EVERY_SUMMATION
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 10), (2, 3, 33)])
def test_the_last_axis_is_summed_in_the_format(fmt, summation, shape):
    values = terms(fmt, shape)
    total = summation.add(values)
    assert total.shape == shape[:-1]
    assert total.dtype == fmt.dtype
    slack = 4 * shape[-1] ** 2 * fmt.unit_roundoff
    np.testing.assert_allclose(total.astype(np.float64), values.astype(np.float64).sum(axis=-1), rtol=0, atol=slack)


@EVERY_FORMAT
@EVERY_SUMMATION
def test_a_row_sums_the_same_alone_and_in_any_layout(fmt, summation):
    values = terms(fmt, (4, 3, 301))
    alone = np.array([[summation.add(row) for row in rows] for rows in values])
    assert (summation.add(values) == alone).all()
    assert (summation.add(np.asfortranarray(values)) == alone).all()


@EVERY_FORMAT
@EVERY_SUMMATION
def test_terms_are_left_alone(fmt, summation):
    values = terms(fmt, (3, 9))
    values.flags.writeable = False
    assert not np.shares_memory(summation.add(values), values)
    assert not np.shares_memory(summation.add(values[:, :1]), values)


@EVERY_FORMAT
@pytest.mark.parametrize("n", [1, 8, 9, 127, 128, 129, 1000, 9000])
def test_numpy_is_what_np_sum_gives_on_the_row(fmt, n):
    values = terms(fmt, (3, n))
    assert (SUMMATIONS["numpy"].add(values) == np.array([np.sum(row) for row in values])).all()


@EVERY_FORMAT
def test_sequential_rounds_every_partial_sum(fmt):
    values = terms(fmt, (20, 50))
    expected = [rounded_prefix_sums(row, fmt) for row in values]
    assert SUMMATIONS["sequential"].add(values).astype(np.float64).tolist() == expected


def test_float16_ones_stall_at_2048_in_order_but_not_in_numpy():
    # NumPy accumulates float16 in float32 along the last axis.
    ones = np.ones(4096, np.float16)
    assert float(SUMMATIONS["sequential"].add(ones)) == 2048
    assert float(SUMMATIONS["numpy"].add(ones)) == 4096


def test_bfloat16_ones_stall_at_256_in_order():
    assert float(SUMMATIONS["sequential"].add(np.ones(512, ml_dtypes.bfloat16))) == 256


@pytest.mark.skipif(not LOGITS.exists(), reason="the BHH-MNIST logits are not beside this checkout (../shared/data/bhh-mnist)")
def test_the_published_count_of_overflowing_rows():
    # Blanchard, Higham and Higham 2021, chop_test_softmax.m: "475" of 2500 columns in float16; the shifted form in none.
    fmt = FORMATS["float16"]
    logits = round_array(np.load(LOGITS), fmt)
    k = Arithmetic(fmt, "sequential")
    infinite = {name: int(np.isinf(VARIANTS[f"logsumexp/{name}"].run(logits, k)).sum()) for name in ("naive", "shifted")}
    assert len(logits) == 2500
    assert infinite == {"naive": 475, "shifted": 0}
