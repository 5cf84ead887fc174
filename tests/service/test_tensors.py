"""Each door ends in the same array, and refuses what is not exactly a tensor."""

import base64
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.settings import Limits
from service.tensors import BadTensor, read, read_targets

LIMITS = Limits()
FORMATS = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}


def refused(value, match, reader=read, *more, limits=LIMITS):
    with pytest.raises(BadTensor, match=match) as caught:
        reader(value, "/x", limits, *more)
    return caught.value.findings


@given(st.lists(st.floats(width=64), min_size=1, max_size=20))
def test_a_bare_list_is_binary64_bit_for_bit(values):
    names = {math.inf: "Infinity", -math.inf: "-Infinity"}
    sent = ["NaN" if math.isnan(v) else names.get(v, v) for v in values]
    found = read(sent, "/x", LIMITS)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, values)
    assert [math.copysign(1, v) for v in found if v == 0] == [math.copysign(1, v) for v in values if v == 0]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_hex_float_is_the_number_it_names(value):
    assert read([value.hex()], "/x", LIMITS)[0] == value


@pytest.mark.parametrize("name", FORMATS)
@given(bits=st.data())
def test_the_three_doors_agree_on_every_bit(name, bits):
    dtype = np.dtype(FORMATS[name])
    patterns = bits.draw(st.lists(st.integers(0, 2 ** (8 * dtype.itemsize) - 1), min_size=6, max_size=6))
    stored = np.array(patterns, f"u{dtype.itemsize}").view(dtype).reshape(2, 3)
    declared = {"dtype": name.upper(), "shape": [2, 3]}
    text = base64.b64encode(stored.tobytes()).decode()
    by_base64 = read({**declared, "encoding": "base64", "data": text}, "/x", LIMITS)
    by_bits = read({**declared, "encoding": "bits", "data": [str(p) for p in patterns]}, "/x", LIMITS)
    assert by_base64.dtype == by_bits.dtype == dtype
    assert by_base64.tobytes() == by_bits.tobytes() == stored.tobytes()
    wide = stored.astype(np.float64).tolist()
    names = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    named = [[names.get(str(v), v) for v in row] for row in wide]
    by_json = read({**declared, "data": named}, "/x", LIMITS)
    assert by_json.dtype == dtype
    np.testing.assert_array_equal(by_json.astype(np.float64), wide)


def test_large_numbers_that_are_binary64_are_taken():
    assert read([2**60, -(2**53), 1.7e308], "/x", LIMITS).tolist() == [2.0**60, -(2.0**53), 1.7e308]


def test_flat_data_fill_the_declared_shape_row_by_row():
    found = read({"dtype": "fp32", "shape": [2, 2], "data": [1, 2, 3, 4]}, "/x", LIMITS)
    assert found.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("value", "match", "pointer"),
    [
        (1, "expected a list", "/x"),
        (None, "expected a list", "/x"),
        ("abc", "expected a list", "/x"),
        ([], "empty", "/x"),
        ([[], []], "empty", "/x"),
        ([[1, 2], [3]], "ragged", "/x/1"),
        ([1, [2]], "ragged", "/x/1"),
        ([[1], 2], "ragged", "/x/1"),
        ([[[[[1]]]]], "rank is 1 to 4", "/x"),
        ([1, True], "true is not a number", "/x/1"),
        ([[1, None]], "null is not a number", "/x/0/1"),
        ([1, {}], "an object is not a number", "/x/1"),
        ([math.nan], 'NaN is not a finite number; non-finite ones are the strings "NaN"', "/x/0"),
        ([-math.inf], "-Infinity is not a finite number", "/x/0"),
        ([10**400], "an integer of 1329 bits is beyond the largest float64; give at most 1.79769", "/x/0"),
        ([0, 2**53 + 1], "'9007199254740993' is no binary64 number", "/x/1"),
        (["nan"], "'nan' is not a number", "/x/0"),
        (["1.5"], "'1.5' is not a number", "/x/0"),
        (["inf"], "'inf' is not a number", "/x/0"),
        (["1e1000000000"], "is not a number", "/x/0"),
        (["0x1p99999"], "beyond the largest float64", "/x/0"),
        (["0x1p-999999"], "'0x1p-999999' underflows: the smallest float64 is 0x1p-1074; give that, or 0", "/x/0"),
        (["-0x1p-1075"], "underflows", "/x/0"),
        (["0x1.8p-1074"], "needs more bits than there are; the nearest is 0x0.0000000000002p-1022", "/x/0"),
        (["0x1.00000000000001p0"], "needs more bits", "/x/0"),
        (["0x" + "1" * 100 + "p0"], r'"0x1{58}\.\.\." \(104 characters\) is too long: .* max_string = 64', "/x/0"),
    ],
)
def test_what_is_no_list_of_numbers_is_named_by_its_place(value, match, pointer):
    assert refused(value, match)[0][0] == pointer


GOOD = {"dtype": "float32", "shape": [2], "data": [1, 2]}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"dtype": "float17"}, "unknown format"),
        ({"dtype": "fp8"}, "ambiguous"),
        ({"dtype": "e4m3"}, "ambiguous"),
        ({"dtype": "int64"}, "unknown format"),
        ({"dtype": 32}, "32 is no dtype: that is the name of a format"),
        ({"shape": [3]}, "do not fill"),
        ({"shape": [0]}, "0 is no extent: .* at least 1"),
        ({"shape": [-2]}, "at least 1"),
        ({"shape": [2.0]}, "2.0 is no extent: shape is a list of integers"),
        ({"shape": "2"}, '"2" is no shape'),
        ({"shape": [True, 2]}, "list of integers"),
        ({"shape": []}, "rank"),
        ({"shape": [1, 1, 1, 1, 2]}, "rank 5; the rank is 1 to 4"),
        ({"shape": [10**12]}, "at most max_elements = 2000000 elements, not 1000000000000; send fewer rows"),
        ({"shape": [10**30, 10**30]}, "at most max_elements"),
        ({"data": [0.1, 1]}, "0.1 is no float32"),
        ({"data": [1e39, 1]}, "is no float32"),
        ({"rounding": "up"}, '"up" is no rounding: "nearest" is the only one'),
        ({"surplus": 1}, '"surplus" is no field of this tensor; known here: dtype, shape, data, rounding'),
        ({"encoding": "gzip"}, '"gzip" is no encoding: base64 and bits are'),
        ({"encoding": None}, "null is no encoding"),
        ({"encoding": "bits", "rounding": "nearest"}, '"rounding" is no field of this tensor; .* encoding'),
        ({"encoding": "bits", "data": [1, -1]}, "-1 is no bit pattern of float32: those are 0 to 4294967295"),
        ({"encoding": "bits", "data": [1, str(2**32)]}, "4294967296 is no bit pattern of float32"),
        ({"encoding": "bits", "data": [1, 1.5]}, "no bit pattern"),
        ({"encoding": "bits", "data": [1, False]}, "no bit pattern"),
        ({"encoding": "bits", "data": [1, "9" * 21]}, "no bit pattern"),
        ({"encoding": "bits", "data": [1, "\u0661"]}, "no bit pattern"),
        ({"encoding": "base64", "data": "AAAA"}, "does not match"),
        ({"encoding": "base64", "data": "AAAAAAAAAAA!"}, "not base64"),
        ({"encoding": "base64", "data": "AAAAAAAAAAAA"}, "9 bytes"),
        ({"encoding": "base64", "data": [1, 2]}, "a list of 2 items is no base64: such data are a string"),
        ({"shape": [1], "encoding": "base64", "data": "AAAAAB=="}, 'not canonical base64 .*: the end "AB==" .*; write "AA=="'),
        ({"dtype": "float16", "shape": [1], "encoding": "base64", "data": "AAB="}, "not canonical base64"),
        ({"encoding": "base64", "data": "AAAAA!AAAAA="}, '"!" at character 5 is not base64'),
        ({"encoding": "base64", "data": "AAAAAAAA===="}, "6 bytes where shape"),
        ({"encoding": "base64", "data": "AAAAAAAAA==="}, 'the padding of "A===" is not base64'),
    ],
)
def test_a_tensor_object_is_exactly_what_it_declares(change, match):
    refused({**GOOD, **change}, match)


def test_an_unknown_field_of_a_tensor_is_named_and_has_its_place():
    findings = refused({**GOOD, "a/b": 1, "c": 2}, "a/b")
    assert [pointer for pointer, _ in findings] == ["/x/a~1b", "/x/c"]
    assert len(refused({**GOOD, **{f"k{i}": 1 for i in range(1000)}}, "k0")) == 20


@pytest.mark.parametrize("missing", GOOD)
def test_a_tensor_object_needs_its_three_fields(missing):
    refused({key: value for key, value in GOOD.items() if key != missing}, "needs dtype, shape and data")


def test_rounding_is_done_once_and_only_on_request():
    between = 1 + 2.0**-8 + 2.0**-40  # through float32 it would round to 1 in bfloat16
    found = read({"dtype": "bf16", "shape": [1], "data": [between], "rounding": "nearest"}, "/x", LIMITS)
    assert float(found[0]) == 1.0078125


def test_at_most_twenty_faults_are_named_and_soon():
    assert len(refused([None] * 100_000, "null")) == 20


def test_too_many_elements_are_oversize_and_not_invalid():
    with pytest.raises(BadTensor) as caught:
        read([0.0] * 11, "/x", Limits(max_elements=10))
    assert caught.value.oversize


def test_targets_of_the_rows_shape_are_class_indices():
    found = read_targets([0, 2], "/x", LIMITS, (2, 3))
    assert found.dtype == np.int64
    assert found.tolist() == [0, 2]
    assert read_targets(1, "/x", LIMITS, (3,)).shape == ()
    declared = {"dtype": "int32", "shape": [2], "encoding": "base64", "data": base64.b64encode(np.array([0, 2], "<i4")).decode()}
    assert read_targets(declared, "/x", LIMITS, (2, 3)).tolist() == [0, 2]
    assert read_targets({"dtype": "int64", "shape": [2], "data": [0, 2]}, "/x", LIMITS, (2, 3)).dtype == np.int64


def test_targets_of_the_logits_shape_are_weights():
    assert read_targets([[0, 1, 0]], "/x", LIMITS, (1, 3)).dtype == np.float64


@pytest.mark.parametrize(
    ("bad", "named"),
    [(0.0, "0.0"), (True, "true"), ("1", '"1"'), (2**63, "9223372036854775808"), (None, "null"), (10**99, "329 bits")],
)
def test_a_class_index_is_an_integer(bad, named):
    refused([bad], f"{named} is .*class ind", read_targets, (1, 3))
