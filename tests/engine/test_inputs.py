"""A family of inputs is repeated from its name, size, seed and parameters, and refuses what does not fit with the way out."""

import numpy as np
import pytest

from engine import formats
from engine.errors import InvalidProblem, UnknownName
from engine.formats import FORMATS, ordinals, round_array
from engine.inputs import FAMILIES, generate

EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)


def test_the_families():
    assert list(FAMILIES) == ["gaussian", "offset", "one_dominant", "ramp", "equal", "masked", "near_exp_limit"]


@EVERY_FAMILY
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (4, 33)])
def test_a_family_gives_float64_rows_of_numbers(family, shape):
    logits = generate(family, *shape, seed=5)
    assert logits.shape == shape
    assert logits.dtype == np.float64
    assert not np.isnan(logits).any()


@EVERY_FAMILY
def test_the_same_request_gives_the_same_bits_and_leaves_no_trace(family):
    first = generate(family, 6, 11, 2**63 - 1)
    first_bits = first.tobytes()
    first[:] = 0
    assert generate(family, 6, 11, 2**63 - 1).tobytes() == first_bits


@EVERY_FAMILY
def test_a_family_does_not_depend_on_the_blocks(family, monkeypatch):
    whole = generate(family, 6, 11, 5)
    for block in (1, 30):
        monkeypatch.setattr(formats, "BLOCK", block)
        assert generate(family, 6, 11, 5).tobytes() == whole.tobytes()


@pytest.mark.parametrize("family", ["gaussian", "offset", "one_dominant", "masked", "near_exp_limit"])
def test_another_seed_gives_other_logits(family):
    assert (generate(family, 6, 11, 0) != generate(family, 6, 11, 1)).any()


@EVERY_FAMILY
def test_a_family_says_what_its_parameters_are(family):
    row = FAMILIES[family]
    assert row.description
    for name, parameter in row.parameters.items():
        assert parameter.type in ("number", "format")
        assert parameter.range
        assert parameter.check(name, parameter.default) == parameter.default


@EVERY_FAMILY
def test_extreme_parameters_give_no_nan_and_no_overflow(family):
    numbers = {name: row for name, row in FAMILIES[family].parameters.items() if row.type == "number"}
    for end in ("low", "high"):
        logits = generate(family, 3, 5, 0, **{name: getattr(row, end) for name, row in numbers.items()})
        assert not np.isnan(logits).any()
        assert not np.isposinf(logits).any()


def test_gaussian_has_its_spread_and_offset():
    logits = generate("gaussian", 200, 100, 1, sigma=3, offset=-50)
    assert abs(logits.mean() + 50) < 0.1
    assert abs(logits.std() - 3) < 0.1
    assert (generate("gaussian", 2, 3, 1, sigma=0, offset=7) == 7).all()


def test_offset_lies_far_from_zero_and_is_the_gaussian_moved():
    assert (generate("offset", 4, 5, 2) == generate("gaussian", 4, 5, 2, offset=1e4)).all()


def test_one_class_dominates_and_it_is_not_always_the_same():
    logits = generate("one_dominant", 50, 4, 3, gap=17.5)
    assert (np.sort(logits, axis=1) == [0, 0, 0, 17.5]).all()
    assert len(np.unique(logits.argmax(axis=1))) == 4


def test_ramp_goes_from_start_to_stop_in_every_row():
    assert generate("ramp", 2, 5, 0, start=4, stop=-4).tolist() == [[4, 2, 0, -2, -4]] * 2
    assert generate("ramp", 1, 1, 0, start=4, stop=-4).tolist() == [[4]]


def test_equal_is_equal():
    assert (generate("equal", 3, 4, 0, value=-1e-300) == -1e-300).all()


@pytest.mark.parametrize(
    ("fraction", "n", "masked"), [(0, 8, 0), (0.25, 8, 2), (0.3, 10, 3), (0.99, 10, 9), (1, 10, 10), (0.9, 1, 0)]
)
def test_masked_rows_keep_a_finite_logit_unless_all_is_masked(fraction, n, masked):
    logits = generate("masked", 20, n, 4, fraction=fraction)
    assert (np.isneginf(logits).sum(axis=1) == masked).all()


def test_which_logits_are_masked_differs_from_row_to_row():
    assert len({row.tobytes() for row in np.isneginf(generate("masked", 20, 9, 4, fraction=0.3))}) > 10


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=list(FORMATS))
def test_near_exp_limit_holds_the_limit_and_its_neighbours_exactly(fmt):
    logits = generate("near_exp_limit", 10, 30, 6, format=fmt.name)
    stored = round_array(logits, fmt)
    assert (stored.astype(np.float64) == logits).all()
    limit = int(ordinals(np.array([fmt.exp_limit]).astype(fmt.dtype), fmt)[0])
    assert set(ordinals(stored, fmt).ravel().tolist()) == {limit - 1, limit, limit + 1}


def test_near_exp_limit_takes_an_alias():
    assert (generate("near_exp_limit", 2, 9, 6, format="FP16") == generate("near_exp_limit", 2, 9, 6, format="float16")).all()


def test_an_unknown_family_names_those_that_exist():
    with pytest.raises(UnknownName, match=r"unknown input family 'gausian'; known: gaussian, .* did you mean 'gaussian'"):
        generate("gausian", 1, 1, 0)


@pytest.mark.parametrize(
    ("arguments", "parameters", "said"),
    [
        (("gaussian", 0, 1, 0), {}, "rows is 0; it is an integer, at least 1"),
        (("gaussian", True, 1, 0), {}, "rows is True; it is an integer, at least 1"),
        (("gaussian", 1, -3, 0), {}, "n is -3; it is an integer, at least 1"),
        (("gaussian", 1, 2.0, 0), {}, "n is 2.0; it is an integer, at least 1"),
        (("gaussian", 1, 1, -1), {}, "seed is -1; it is an integer, from 0 to 2^63 - 1"),
        (("gaussian", 1, 1, 2**63), {}, "seed is 9223372036854775808; it is an integer, from 0 to 2^63 - 1"),
        (("gaussian", 1, 1, 10**5000), {}, "seed is an integer of more than 60 digits; it is"),
        (("gaussian", 1, 1, None), {}, "seed is None; it is an integer"),
        (("gaussian", 1, 1, 0), {"gap": 1}, "input family gaussian has no parameter 'gap'; it has sigma, offset"),
        (("gaussian", 1, 1, 0), {"x" * 99: 1}, "input family gaussian has no parameter '" + "x" * 60 + "...; it has sigma, offset"),
        (("gaussian", 1, 1, 0), {"sigma": -1}, "sigma is -1; it is a number from 0 to 1e+300"),
        (("gaussian", 1, 1, 0), {"sigma": float("nan")}, "sigma is nan; it is a number from 0 to 1e+300"),
        (("gaussian", 1, 1, 0), {"offset": float("inf")}, "offset is inf; it is a number from -1e+300 to 1e+300"),
        (("gaussian", 1, 1, 0), {"offset": True}, "offset is True; it is a number"),
        (("gaussian", 1, 1, 0), {"offset": "1"}, "offset is '1'; it is a number"),
        (("masked", 1, 1, 0), {"fraction": 1.5}, "fraction is 1.5; it is a number from 0 to 1"),
        (("near_exp_limit", 1, 1, 0), {"format": 16}, "format is 16; it is one of float16, bfloat16, float32, float64"),
        (("near_exp_limit", 1, 1, 0), {"format": "float17"}, "format: unknown format 'float17'; known: float16, "),
    ],
)
def test_what_does_not_fit_is_refused_with_the_rule(arguments, parameters, said):
    with pytest.raises(InvalidProblem) as refusal:
        generate(*arguments, **parameters)
    assert str(refusal.value).startswith(said)
