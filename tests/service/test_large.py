"""Large inputs: samples through every entry, what the limits say, and memory that does not grow with the files."""

import base64
import json
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner
from pydantic import ValidationError

import engine
from service import cli, client, schemas, tasks
from service.errors import Problem
from service.settings import Limits

X = engine.generate("gaussian", 100, 8, 0, sigma=2.0).astype(np.float32)
P = (np.exp(X.astype(float)) / np.exp(X.astype(float)).sum(axis=1, keepdims=True)).astype(np.float32)
SAMPLE = {"rows": 10, "seed": 3}


def posted(x, c, **more):
    return {"op": "softmax", "logits": encoded(x), "output": encoded(c), **more}


def encoded(tensor):
    data = base64.b64encode(tensor.tobytes()).decode()
    return {"dtype": str(tensor.dtype), "shape": list(tensor.shape), "encoding": "base64", "data": data}


def verify(document, limits=None):
    return json.loads(tasks.verify(json.dumps(document).encode(), limits or Limits(), lambda seconds: None))


def told(problem, output):
    sample = engine.Sample(**SAMPLE)
    return json.loads(json.dumps(engine.encode(engine.verify(engine.Problem("softmax", problem), output, sample=sample))))


# A sample


def test_a_sample_through_the_service_is_that_of_the_engine():
    found = verify(posted(X, P, sample=SAMPLE))
    assert found["sample"] == told(X, P)["sample"]
    assert (found["rows"], found["metrics"]["n"], found["certificate"]["coverage"]) == (100, 80, 0.1)
    assert set(found["sample"]) == set(schemas.Sampled.model_fields)
    assert schemas.VerifyResponse.model_validate(found).sample.rows == 10


@pytest.mark.parametrize(
    "sample", [{"rows": 0}, {"rows": 1.5}, {"rows": True}, {"seed": 1}, {"rows": 1, "seed": -1}, {"rows": 2**53 + 1}, 5]
)
def test_no_sample_is_refused_by_its_place(sample):
    with pytest.raises(Problem) as caught:
        verify(posted(X, P, sample=sample))
    assert caught.value.kind == "invalid"
    assert caught.value.errors[0].pointer.startswith("/sample")
    with pytest.raises(ValidationError):
        schemas.Sample.model_validate(sample)


def test_what_takes_too_long_whole_is_offered_a_sample():
    x, limits = np.zeros((2000, 64), np.float32), Limits(estimate_seconds=1.0)
    with pytest.raises(Problem, match=r'"sample": \{"rows": 64\}') as caught:
        verify(posted(x, x + 1 / 64), limits)
    assert caught.value.kind == "too-long"
    assert verify(posted(x, x + 1 / 64, sample=SAMPLE), limits)["verdict"] == "pass"


@pytest.fixture
def stored(tmp_path):
    """Options that name the tensors as files."""
    for name, tensor in (("logits", X), ("output", P)):
        np.save(tmp_path / f"{name}.npy", tensor)
    return ["verify", "--op", "softmax", "--logits", f"{tmp_path}/logits.npy", "--output", f"{tmp_path}/output.npy"]


def test_a_sample_on_the_command_line(stored):
    asked = [*stored, "--sample-rows", "10", "--sample-seed", "3"]
    done = CliRunner().invoke(cli.main, asked)
    assert done.exit_code == 0
    strata = ", ".join(f"{name} {count}" for name, count in told(X, P)["sample"]["strata"].items())
    assert f"sample: 10 of 100 rows, seed 3 ({strata})\n" in done.stdout
    assert "coverage 0.1\n" in done.stdout
    assert json.loads(CliRunner().invoke(cli.main, [*asked, "--json"]).stdout) == told(X, P)
    assert "sample" not in CliRunner().invoke(cli.main, stored).stdout


def test_a_seed_alone_is_no_sample(stored):
    done = CliRunner().invoke(cli.main, [*stored, "--sample-seed", "3"])
    assert (done.exit_code, "give --sample-rows too" in done.stderr) == (2, True)


@pytest.mark.parametrize(("given", "sent"), [(None, {}), (10, {"sample": {"rows": 10}}), (SAMPLE, {"sample": SAMPLE})])
def test_a_sample_is_sent(monkeypatch, stored, given, sent):
    asked = []

    def answered(url, method, path, headers, body, timeout):
        asked.append(b"".join(body))
        return 200, {}, json.dumps(told(X, P)).encode()

    monkeypatch.setattr(client, "_asked", answered)
    client.verify("softmax", X, P, sample=given)
    if given is SAMPLE:
        CliRunner().invoke(cli.main, [*stored, "--url", "http://localhost", "--sample-rows", "10", "--sample-seed", "3"])
    for body in asked:
        request = json.loads(body[body.index(b'{"op"') :].split(b"\r\n")[0])
        assert {name: value for name, value in request.items() if name == "sample"} == sent


# The limits


def test_a_vocabulary_by_base64_with_default_settings():
    x = engine.generate("gaussian", 1, 128256, 0, sigma=1.0).astype(np.float32)
    c = np.exp(x.astype(float) - x.max())
    right = (c / c.sum()).astype(np.float32)
    document = posted(x, right)
    assert len(json.dumps(document)) < Limits().max_body_bytes
    assert verify(document)["verdict"] == "pass"


# Memory


def written(folder, rows):
    """Files of rows of 32000 bfloat16, and of what a right kernel makes of them."""
    draws = np.random.default_rng(0)
    with (folder / "logits.safetensors").open("wb") as logits, (folder / "output.safetensors").open("wb") as output:
        for name, file in (("logits", logits), ("output", output)):
            header = json.dumps({name: {"dtype": "BF16", "shape": [rows, 32000], "data_offsets": [0, rows * 64000]}}).encode()
            file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(rows):
            x = (3 * draws.standard_normal(32000, np.float32)).astype(ml_dtypes.bfloat16)
            c = np.exp(x.astype(np.float32))
            logits.write(x.tobytes())
            output.write((c / c.sum()).astype(ml_dtypes.bfloat16).tobytes())


def peaks(parent):
    """MiB that the service and each of its processes had at most."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    statuses = [Path(f"/proc/{pid}/status").read_text() for pid in (parent, *children)]
    return [int(text.split("VmHWM:")[1].split()[0]) / 1024 for text in statuses]


def sent(client, tmp_path, **request):
    """The answer to the two files, posted by curl."""
    parts = [f"-F{name}=@{tmp_path}/{name}.safetensors" for name in ("logits", "output")]
    asked = ["curl", "-s", f"-Frequest={json.dumps({'op': 'softmax', **request})}", *parts, f"{client.base_url}/v1/verify"]
    return json.loads(subprocess.run(asked, capture_output=True, check=True).stdout)


@pytest.mark.parametrize(
    ("rows", "judged"),
    [(800, 8), pytest.param(4096, 64, marks=pytest.mark.soak), pytest.param(4096, 4096, marks=pytest.mark.soak)],
)
def test_memory_does_not_grow_with_the_files(start, tmp_path, rows, judged):
    """51 MB each, and at length 262; what a process touches of a mapped file is soon given back."""
    written(tmp_path, rows)
    with start(workers=1, limits={"estimate_seconds": 300.0}) as client:
        before = peaks(client.process.pid)
        found = sent(client, tmp_path, sample={"rows": judged})
        grown = [after - was for after, was in zip(peaks(client.process.pid), before, strict=True)]
        assert (found["verdict"], found["certificate"]["coverage"]) == ("pass", judged / rows)
        assert max(grown) < 96
        assert list(client.uploads.iterdir()) == []
