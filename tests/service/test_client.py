"""The client: every kind of tensor arrives with the bits it has, and whatever is not a verdict is an error that says what to do."""

import array
import ast
import email
import inspect
import json
import re
import shutil
import ssl
import struct
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from service import client
from tests.service import fake as fakes

ROOT = Path(__file__).parent.parent.parent
ROWS = np.array([[0.5, -1.25, 3.0, 0.0], [2.0, 2.0, -0.5, 1.0]])
SOFTMAX = fakes.rough("softmax", ROWS, None)
FLOATS = ["float64", "float32", "float16", "bfloat16", "float8_e5m2", "float8_e4m3fn"]


@pytest.fixture(scope="module")
def listening():
    with fakes.running() as fake:
        yield fake


@pytest.fixture
def fake(listening, monkeypatch):
    """The fake service, which the environment names."""
    listening.seen.clear()
    listening.replies.clear()
    monkeypatch.setenv("SOFTGAUGE_URL", listening.url)
    monkeypatch.delenv("SOFTGAUGE_KEY", raising=False)
    return listening


def arrived(fake, **tensors):
    """The tensors as the service reads them."""
    fake.replies.append((200, {"Content-Type": "application/json"}, b'{"verdict": "pass"}'))
    given = {"logits": ROWS, "output": SOFTMAX, **tensors}
    client.verify("softmax", given.pop("logits"), given.pop("output"), **given)
    return fakes.read(fake.last["headers"]["Content-Type"], fake.last["body"])[1]


def same(found, wanted):
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    assert found.tobytes() == wanted.tobytes()


# The file


def test_it_is_one_file_on_the_standard_library():
    tree = ast.parse(inspect.getsource(client), feature_version=(3, 9))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in modules} <= sys.stdlib_module_names


def test_the_module_softgauge_is_that_file():
    assert (ROOT / "softgauge.py").resolve() == Path(client.__file__).resolve()


def test_a_copy_of_it_works_without_numpy_in_the_oldest_python_there_is(fake, tmp_path):
    found = [path for minor in (9, 10) if (path := shutil.which(f"python3.{minor}"))]
    old = next(path for path in [*found, sys.executable] if not subprocess.run([path, "-c", ""], check=False).returncode)
    shutil.copy(client.__file__, tmp_path / "softgauge.py")
    script = "import softgauge; print(softgauge.assert_verdict('softmax', [0.0, 0.0], ([0.5, 0.5], 'bf16'))['verdict'])"
    command = [old, "-W", "error", "-S", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env={"SOFTGAUGE_URL": fake.url}, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("pass\n", "")


# Tensors


@pytest.mark.parametrize("dtype", FLOATS)
def test_numpy_arrays_arrive_bit_by_bit(fake, dtype):
    wanted = np.array([[0.5, -0.0, np.nan, 448.0], [np.inf, 2.0, -0.5, 2.0**-9]]).astype(dtype)
    for given_ in (wanted, np.asfortranarray(wanted), np.repeat(wanted, 2, axis=1)[:, ::2]):
        same(arrived(fake, logits=given_)["logits"], wanted)


@pytest.mark.parametrize("dtype", ["int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64"])
def test_targets_of_every_integer_dtype(fake, dtype):
    wanted = np.array([3, 0], dtype)
    same(arrived(fake, targets=wanted)["targets"], wanted)


def test_a_big_endian_array_is_turned(fake):
    same(arrived(fake, logits=ROWS.astype(">f4"))["logits"], ROWS.astype("<f4"))


@pytest.mark.parametrize("shape", [(), (3,), (1, 2, 3, 4)])
def test_shapes(fake, shape):
    wanted = np.arange(np.prod(shape, dtype=int), dtype="float32").reshape(shape)
    same(arrived(fake, output=wanted)["output"], wanted)


def test_a_scalar_of_numpy_is_a_tensor_of_rank_0(fake):
    same(arrived(fake, output=np.float32(1.5))["output"], np.array(1.5, "float32"))


@pytest.mark.parametrize("dtype", FLOATS)
def test_raw_bytes_with_dtype_and_shape(fake, dtype):
    wanted = ROWS.astype(dtype)
    raw = wanted.tobytes()
    for data in (raw, bytearray(raw), memoryview(raw), array.array("B", raw)):
        same(arrived(fake, logits=(data, dtype, wanted.shape))["logits"], wanted)


def test_every_other_byte_of_a_buffer(fake):
    spread = bytes(np.repeat(np.frombuffer(ROWS.astype("float16").tobytes(), "u1"), 2))
    same(arrived(fake, logits=(memoryview(spread)[::2], "float16", (2, 4)))["logits"], ROWS.astype("float16"))


def test_bits_held_by_unsigned_integers(fake):
    wanted = ROWS.astype(ml_dtypes.bfloat16)
    same(arrived(fake, logits=(wanted.view("uint16"), "bf16"))["logits"], wanted)


def test_arrays_of_the_standard_library(fake):
    same(arrived(fake, logits=array.array("f", [1.5, 2.0]))["logits"], np.array([1.5, 2.0], "float32"))
    same(arrived(fake, targets=array.array("l", [1]))["targets"], np.array([1], "int64"))


@pytest.mark.parametrize("dtype", [name for name in FLOATS if name != "float8_e4m3fn"])
def test_nested_lists_are_stored_exactly(fake, dtype):
    rows = [[0.5, -0.0, float("nan")], [float("-inf"), 2, 1.25]]
    found = arrived(fake, output=(rows, dtype))["output"]
    assert found.dtype == np.array([]).astype(dtype).dtype
    np.testing.assert_array_equal(found.astype("float64"), np.array(rows))
    assert np.signbit(found[0, 1].astype("float64"))


@given(st.floats(allow_nan=False), st.sampled_from([name for name in FLOATS if name != "float8_e4m3fn"]))
def test_a_number_is_stored_where_the_dtype_holds_it(number, dtype):
    with np.errstate(over="ignore"):
        rounded = np.array(number).astype(dtype)
    if float(rounded.astype("float64")) == number:
        assert client._stored("output", number, dtype) == rounded.tobytes()
    else:
        with pytest.raises(ValueError, match="exactly"):
            client._stored("output", number, dtype)


def test_bare_lists(fake):
    found = arrived(fake, logits=[[1, 2.5]], targets=[1], grad_output=[1, 2])
    same(found["logits"], np.array([[1, 2.5]]))
    same(found["targets"], np.array([1], "int64"))
    same(found["grad_output"], np.array([1.0, 2.0]))
    same(arrived(fake, targets=[[0.25, 0.75]])["targets"], np.array([[0.25, 0.75]]))
    same(arrived(fake, targets=1)["targets"], np.array(1, "int64"))


def test_references_and_repeated_outputs(fake):
    found = arrived(fake, reference=SOFTMAX.astype("float32"), outputs=[SOFTMAX, (SOFTMAX.tobytes(), "F64", (2, 4))])
    assert sorted(found) == ["logits", "output", "outputs.0", "outputs.1", "reference"]
    same(found["outputs.1"], SOFTMAX)


class OnlyArray:
    """As JAX's arrays: no interface of NumPy's but __array__."""

    def __init__(self, value):
        self.value = value

    def __array__(self):
        return self.value


class OnDevice:
    """As CuPy's arrays: __array__ refuses, get copies."""

    __cuda_array_interface__ = ()

    def __init__(self, value):
        self.value = value

    def __array__(self):
        raise TypeError("implicit conversion")

    def get(self):
        return self.value


@pytest.mark.parametrize("kind", [OnlyArray, OnDevice])
def test_arrays_of_other_libraries(fake, kind):
    wanted = ROWS.astype(ml_dtypes.bfloat16)
    same(arrived(fake, logits=kind(wanted))["logits"], wanted)


@pytest.mark.parametrize(
    ("name", "value", "error", "says"),
    [
        ("output", [0.5, 0.5], ValueError, "say their dtype"),
        ("output", b"12345678", ValueError, "dtype, shape"),
        ("output", memoryview(b"12345678"), ValueError, "dtype, shape"),
        ("output", (b"1234", "float32"), ValueError, "shape"),
        ("output", (b"1234", "float32", (2,)), ValueError, "has 4 bytes; float32 of shape .2. has 8"),
        ("output", (b"12345678", "float32", (-1, -2)), ValueError, "has 8 bytes"),
        ("output", (b"1234", "float17", (1,)), ValueError, "known: float64"),
        ("output", (ROWS.astype("float16"), "bfloat16"), ValueError, "no bits of bfloat16"),
        ("output", (ROWS.astype("uint32"), "bfloat16"), ValueError, "no bits of bfloat16"),
        ("output", ([0.1], "float32"), ValueError, "0.1, which float32 does not hold"),
        ("output", ([1.00390625], "bfloat16"), ValueError, "does not hold"),
        ("output", ([1e300], "float32"), ValueError, "does not hold"),
        ("output", ([2**53 + 1], "float64"), ValueError, "does not hold"),
        ("output", ([2.5], "int64"), ValueError, "does not hold"),
        ("output", ([1.0], "float8_e4m3fn"), ValueError, "give its bytes"),
        ("output", ([True], "float32"), ValueError, "no number"),
        ("output", (["1"], "float32"), ValueError, "no number"),
        ("output", ([[1.0], [1.0, 2.0]], "float32"), ValueError, "ragged"),
        ("output", ([[1.0], 2.0], "float32"), ValueError, "ragged"),
        ("output", np.array(["a"]), ValueError, "known: float64"),
        ("output", np.array([None]), TypeError, "objects"),
        ("output", np.longdouble([1.0]), ValueError, "known: float64"),
        ("output", {"a": 1}, TypeError, "is a dict"),
        ("logits", None, TypeError, "is a NoneType"),
        ("targets", struct, TypeError, "is a module"),
    ],
)
def test_what_cannot_be_sent_is_named(fake, name, value, error, says):
    with pytest.raises(error, match=f"^{name} .*{says}"):
        arrived(fake, **{name: value})
    assert not fake.seen


# What is sent


def test_the_file_is_aligned_and_read_by_the_official_reader(tmp_path, fake):
    arrived(fake, logits=np.ones(3, "float16"), output=np.ones(3, "uint8"), targets=np.array([1, 2]))
    raw = fakes.parts(fake.last["headers"]["Content-Type"], fake.last["body"])["tensors"][1]
    (length,) = struct.unpack("<Q", raw[:8])
    assert length % 8 == 0
    sizes = {"F16": 2, "U8": 1, "I64": 8}
    for row in json.loads(raw[8 : 8 + length]).values():
        assert row["data_offsets"][0] % sizes[row["dtype"]] == 0
    (tmp_path / "x.safetensors").write_bytes(raw)
    with safetensors.safe_open(tmp_path / "x.safetensors", "numpy") as file:
        same(file.get_tensor("targets"), np.array([1, 2]))


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_no_bytes_of_a_tensor_are_taken_for_a_boundary(one, other):
    tensors = {name: client._Tensor("uint8", (len(data),), data) for name, data in (("logits", one), ("output", other))}
    kind, body = client._multipart(b'{"op": "softmax"}', tensors)
    request, found = fakes.read(kind, b"".join(body))
    assert request == {"op": "softmax"}
    assert {name: item.tobytes() for name, item in found.items()} == {"logits": one, "output": other}


def test_the_parser_of_the_standard_library_reads_the_body_too(fake):
    arrived(fake)
    head = f"Content-Type: {fake.last['headers']['Content-Type']}\r\n\r\n".encode()
    request, tensors = email.message_from_bytes(head + fake.last["body"]).get_payload()
    assert request.get_param("name", header="content-disposition") == "request"
    assert json.loads(request.get_payload())["op"] == "softmax"
    assert tensors.get_filename() == "tensors.safetensors"


def test_nothing_large_is_copied(fake):
    logits = np.zeros((64, 1000), "float32")
    tensor = client._tensor("logits", logits, None)
    _, body = client._multipart(b"{}", {"logits": tensor})
    logits[0, 0] = 1.0
    assert b"".join(body).count(struct.pack("<f", 1.0)) == 1
    body = [b"head", bytes(range(256)) * 5000, b""]
    pieces = list(client._pieces(body))
    assert max(map(len, pieces)) == 1 << 20
    assert b"".join(pieces) == b"".join(body)


def test_what_is_asked_stands_in_the_request(fake):
    client.verify("softmax", ROWS, SOFTMAX)
    assert fake.last["request"] == {"op": "softmax", "gate": {"policy": "bound"}, "nonfinite": "ieee", "axis": -1}
    assert fake.last["path"] == "/v1/verify"
    gate = {"policy": "allclose", "rtol": np.float32(0.5), "atol": float("inf")}
    client.verify("softmax", ROWS, SOFTMAX, gate=gate, nonfinite="strict", axis=1, include=("repro",))
    wanted = {"op": "softmax", "gate": {"policy": "allclose", "rtol": 0.5, "atol": "Infinity"}, "nonfinite": "strict", "axis": 1}
    assert fake.last["request"] == {**wanted, "include": ["repro"]}
    client.verify("softmax", ROWS, SOFTMAX, axis=np.int64(1), worst=np.int64(3), sample=np.int32(1))
    assert fake.last["request"] == {"op": "softmax", "gate": {"policy": "bound"}, "nonfinite": "ieee", "axis": 1, "worst": 3,
                                    "sample": {"rows": 1}}  # fmt: skip
    client.verify("softmax", ROWS, SOFTMAX, sample={"rows": np.int64(2), "seed": 1})
    assert fake.last["request"]["sample"] == {"rows": 2, "seed": 1}


def test_params_are_json_data(fake):
    mask = np.array([[True, False, True, True]] * 2)
    params = {"scale": np.array(0.5), "softcap": None, "mask": mask, "weights": np.array([1, 2], "float32"), "reduction": "mean"}
    client.verify("softmax", ROWS, SOFTMAX, params={**params, "sink": float("-inf"), "ignore_index": np.int64(-100)})
    sent = fake.last["request"]["params"]
    weights = {"dtype": "float32", "shape": [2], "encoding": "base64", "data": "AACAPwAAAEA="}
    assert sent == {
        "scale": 0.5,
        "softcap": None,
        "mask": mask.tolist(),
        "weights": weights,
        "reduction": "mean",
        "sink": "-Infinity",
        "ignore_index": -100,
    }
    client.verify("softmax", ROWS, SOFTMAX, params={"weights": [1, 2.5], "mask": [[True]]})
    assert fake.last["request"]["params"] == {"weights": [1, 2.5], "mask": [[True]]}


@pytest.mark.parametrize(
    ("given_", "environment", "sent"), [("a", "b", "a"), (None, "b", "b"), ("", "b\n", "b"), (None, None, None)]
)
def test_the_key(fake, monkeypatch, given_, environment, sent):
    if environment:
        monkeypatch.setenv("SOFTGAUGE_KEY", environment)
    client.verify("softmax", ROWS, SOFTMAX, key=given_)
    assert fake.last["headers"]["Authorization"] == (f"Bearer {sent}" if sent else None)


def test_the_url(fake, monkeypatch):
    client.verify("softmax", ROWS, SOFTMAX, url=fake.url + "/behind/a/proxy/")
    assert fake.last["path"] == "/behind/a/proxy/v1/verify"
    monkeypatch.delenv("SOFTGAUGE_URL")
    assert client._checked_url(None) == "http://127.0.0.1:8000"


@pytest.mark.parametrize("key", ["sec\nret", "sec\r\nX: ret", "secr€t"])
def test_a_key_that_no_header_takes_is_refused_and_not_repeated(fake, key):
    with pytest.raises(ValueError, match="no header takes") as caught:
        client.verify("softmax", ROWS, SOFTMAX, key=key)
    assert "sec" not in str(caught.value)
    assert not fake.seen


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://[2001:db8::17]", "2001:db8::17", 80),
        ("https://[::1]", "::1", 443),
        ("http://[::1]:8000", "::1", 8000),
        ("https://host", "host", 443),
    ],
)
def test_the_host_and_the_port(url, host, port):
    connection, _ = client._connection(url, 1.0)
    assert (connection.host, connection.port) == (host, port)


BAD_PORTS = ["http://host:99999", "http://host:0", "http://host:http", "http://[::1"]


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "http://host?x=1", *BAD_PORTS])
def test_what_is_no_url(url):
    with pytest.raises(ValueError, match=f"{re.escape(repr(url.rstrip('/')))} is no URL of a service"):
        client.verify("softmax", ROWS, SOFTMAX, url=url)


@pytest.mark.parametrize("host", ["host", "host:99999", "[::1"])
def test_a_password_in_a_url_is_refused_and_not_repeated(host):
    with pytest.raises(ValueError, match="key=") as caught:
        client.verify("softmax", ROWS, SOFTMAX, url=f"http://me:secret@{host}")
    assert "secret" not in str(caught.value)


# Verdicts


def test_a_right_output_passes(fake):
    answer = client.assert_verdict("softmax", ROWS, SOFTMAX.astype("float32"))
    assert answer["verdict"] == "pass"


def test_a_wrong_output_is_an_assertion_error_that_says_what_is_wrong(fake):
    with pytest.raises(AssertionError) as caught:
        client.assert_verdict("softmax", ROWS, np.zeros((2, 4), "float32"), gate="allclose")
    assert isinstance(caught.value, client.UnexpectedVerdict)
    assert caught.value.answer["verdict"] == "fail"
    assert str(caught.value).splitlines() == [
        "softmax: the verdict is fail, not pass",
        "  8 of 8 elements are off",
        "worst elements:",
        "  [0, 0] (logit 0.5): got 0.0, truth 7.1618880371721261e-02; 8.389e+06 ULP, 1 relative",
        "  [0, 1] (logit -1.25): got 0.0, truth 1.2445495267699691e-02; 8.389e+06 ULP, 1 relative",
        "  [0, 2] (logit 3.0): got 0.0, truth 8.7249657760083876e-01; 8.389e+06 ULP, 1 relative",
        "  [0, 3] (logit 0.0): got 0.0, truth 4.3439046759740273e-02; 8.389e+06 ULP, 1 relative",
        "gate allclose: caught zeros, uniform; missed half",
        f"logits sha256:{'1' * 64}",
        f"output sha256:{'2' * 64}",
    ]


def test_a_failure_may_be_what_is_expected(fake):
    zeros = np.zeros((2, 4), "float32")
    assert client.assert_verdict("softmax", ROWS, zeros, expect="fail")["verdict"] == "fail"
    assert client.assert_verdict("softmax", ROWS, zeros, expect=("inconclusive", "fail"))["verdict"] == "fail"
    with pytest.raises(AssertionError, match="the verdict is pass, not inconclusive or fail"):
        client.assert_verdict("softmax", ROWS, SOFTMAX, expect=["inconclusive", "fail"])


@pytest.mark.parametrize("expect", ["passed", (), ("pass", "maybe")])
def test_what_is_no_verdict_cannot_be_expected(fake, expect):
    with pytest.raises(ValueError, match="is no verdict"):
        client.assert_verdict("softmax", ROWS, SOFTMAX, expect=expect)
    assert not fake.seen


def test_a_report_names_the_parameters_of_the_gate_and_the_rows_that_were_judged():
    gate = {"policy": "bound", "factor": 2.0, "rule": "abs(c - T)", "declared": {"compute": "float32"}, "vacuous_fraction": 0.0}
    answer = {"verdict": "pass", "gate": gate, "sample": {"rows": 10, "of": 100, "seed": 3, "strata": {}}}
    assert client.report(answer) == "gate bound factor=2.0\nsample: 10 of 100 rows, seed 3"


def test_a_report_of_little_says_little():
    assert client.report({"verdict": "pass"}) == ""
    assert (
        client.report({"gate": {"policy": "allclose", "rtol": 1e-05, "atol": "Infinity"}})
        == "gate allclose rtol=1e-05 atol=Infinity"
    )
    row = {"index": [], "logit": None, "got": "NaN", "expected": "1.5e+0", "ulp": None, "rel": None}
    assert "  []: got NaN, truth 1.5e+0; no distance" in client.report({"verdict": "fail", "worst": [row], "gate": {}})


# Errors

PROBLEM = {"Content-Type": "application/problem+json"}


def problem(status, **headers):
    rows = [{"pointer": "/gate/policy", "detail": "unknown policy 'bund'"}, {"pointer": "", "detail": "see below"}]
    body = {"type": "urn:x", "title": "Unknown name", "status": status, "detail": "see below", "errors": rows}
    return (status, {**PROBLEM, **headers}, json.dumps(body).encode())


def failing(**options):
    with pytest.raises(client.ServiceError) as caught:
        client.assert_verdict("softmax", ROWS, SOFTMAX, **options)
    assert not isinstance(caught.value, AssertionError)
    return caught.value


def test_a_problem_document_is_told(fake):
    fake.replies.append(problem(422))
    error = failing()
    assert str(error) == "Unknown name (422): see below\n  /gate/policy: unknown policy 'bund'"
    assert (error.status, error.title, error.detail, len(error.errors)) == (422, "Unknown name", "see below", 2)


def test_a_detail_is_told_once():
    finding = {"pointer": "/axis", "detail": "axis is 4"}
    assert str(client.ServiceError("Invalid", "/axis: axis is 4", 422, [finding])) == "Invalid (422): /axis: axis is 4"
    assert str(client.ServiceError("Invalid", "axis is 4", 422, [finding])) == "Invalid (422): axis is 4"
    assert str(client.ServiceError("Invalid", "two", 422, [finding])) == "Invalid (422): two\n  /axis: axis is 4"


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_service_is_asked_again(fake, status):
    fake.replies += [problem(status, **{"Retry-After": "0"}), problem(status, **{"Retry-After": "0"})]
    assert client.assert_verdict("softmax", ROWS, SOFTMAX)["verdict"] == "pass"
    assert len(fake.seen) == 3
    assert len({row["body"] for row in fake.seen}) == 1


def test_it_waits_as_long_as_it_is_told(fake, monkeypatch):
    waits = []
    monkeypatch.setattr(client.time, "sleep", waits.append)
    fake.replies += [problem(429, **{"Retry-After": "7"})]
    client.assert_verdict("softmax", ROWS, SOFTMAX)
    assert waits == [7]


def test_but_not_for_ever(fake):
    fake.replies += [problem(429, **{"Retry-After": "0"})] * 9
    assert failing().status == 429
    assert len(fake.seen) == client.TRIES


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "61"}, {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}])
def test_a_wait_that_is_unknown_or_long_is_not_waited_for(fake, headers):
    fake.replies.append(problem(503, **headers))
    assert failing().status == 503
    assert len(fake.seen) == 1


@pytest.mark.parametrize("status", [200, 404, 422, 500])
def test_other_statuses_and_other_services_are_no_verdict(fake, status):
    fake.replies.append((status, {"Content-Type": "text/html"}, b"<html>"))
    error = failing()
    assert error.status == status
    assert "no Softgauge service" in str(error)


@pytest.mark.parametrize(
    ("status", "body"),
    [(404, {"detail": "Not Found"}), (500, {"verdict": "pass"}), (200, {"verdict": "perhaps"}), (200, {}), (200, ["pass"])],
)
def test_json_of_another_shape_is_no_verdict(fake, status, body):
    fake.replies.append((status, {"Content-Type": "application/json"}, json.dumps(body).encode()))
    assert "no Softgauge service" in str(failing())


def test_a_redirect_is_not_followed(fake):
    fake.replies.append((307, {"Location": "http://127.0.0.2/v1/verify"}, b""))
    assert "http://127.0.0.2/v1/verify, which is not followed" in str(failing(key="secret"))
    assert len(fake.seen) == 1


def test_where_nothing_listens_it_says_how_to_start_the_service():
    error = failing(url="http://127.0.0.1:9")
    assert "softgauge serve" in str(error)
    assert "SOFTGAUGE_URL" in str(error)
    assert error.status is None


def test_a_silent_service(fake):
    fake.replies.append(lambda handler: time.sleep(0.4))
    assert "silent for 0.1 s" in str(failing(timeout=0.1))


def test_a_service_that_hangs_up(fake):
    fake.replies.append(lambda handler: None)
    assert failing().title == "No answer"


def test_a_connection_that_is_reset_before_it_is_one(monkeypatch):
    def reset(*_, **__):
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(client.socket, "create_connection", reset)
    error = failing(url="http://127.0.0.1:9")
    assert error.title == "No answer"
    assert "ConnectionResetError" in str(error)


def test_what_is_no_http(fake):
    fake.replies.append(lambda handler: handler.wfile.write(b"SSH-2.0-OpenSSH\r\n\r\n"))
    assert failing().title == "No answer"


def test_the_answer_to_a_body_that_was_refused_half_way_is_read(fake):
    def refuse(handler):
        handler.close_connection = True
        handler.reply(*problem(413))

    fake.replies.append(refuse)
    big = np.zeros((2, 8_000_000), "float32")
    with pytest.raises(client.ServiceError) as caught:
        client.verify("softmax", big, big)
    assert caught.value.status == 413


def test_tls_is_checked(fake):
    error = failing(url=fake.url.replace("http:", "https:"))
    assert "SSL" in str(error)
    connection, _ = client._connection("https://host", 1.0)
    assert connection._context.verify_mode == ssl.CERT_REQUIRED


# A service of one's own


def test_serving_starts_a_service_and_ends_it():
    with client.serving([sys.executable, fakes.__file__]) as url:
        assert client.assert_verdict("softmax", ROWS, SOFTMAX, url=url)["verdict"] == "pass"
        asked = time.monotonic()
    assert time.monotonic() - asked < 10  # it was told to end, and not killed in the end
    assert failing(url=url).title == "No service"


def test_the_service_ends_with_a_failing_test_too():
    def broken():
        with client.serving([sys.executable, fakes.__file__]) as url:
            raise KeyError(url)

    with pytest.raises(KeyError) as caught:
        broken()
    assert failing(url=caught.value.args[0]).title == "No service"


def test_a_service_that_does_not_start_says_why():
    command = [sys.executable, "-c", "import sys; sys.exit('no port for you')"]
    with pytest.raises(client.ServiceError, match="no port for you"), client.serving(command):
        pass
    command = [sys.executable, "-c", "import time; print('still loading', flush=True); time.sleep(9)"]
    with pytest.raises(client.ServiceError, match=r"within 0.5 s; it said: still loading"), client.serving(command, 0.5):
        pass
    with pytest.raises(client.ServiceError, match="cannot be started"), client.serving(["no-such-program"]):
        pass
