"""What there is to take home: in HTTP, in a folder, and the script, which gives the verdict again."""

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner

import engine
from service import cli, client, repro, tasks
from service.settings import Limits
from tests.service import fake

CASE = ("--op", "softmax", "--logits", "1,2,3,4;7,8,-3,-4", "--output", ".03,.09,.24,.64;0,0,0,0")
NAMES = ["repro.json", "repro.py", "repro.safetensors"]


def run(*arguments):
    return CliRunner().invoke(cli.main, ["verify", *map(str, arguments)])


def asked(limits=None, **request):
    """The answer of POST /v1/verify, without the way there."""
    body = json.dumps({"op": "softmax", "include": ["repro"], **request}).encode()
    return json.loads(tasks.verify(body, limits or Limits(), lambda _: None))


def tensor(rows, dtype="float32"):
    return {"dtype": dtype, "shape": list(np.shape(rows)), "rounding": "nearest", "data": rows}


def played(folder, url):
    """What the script prints, in a Python that has the module and nothing else of ours."""
    (folder / "lib").mkdir(exist_ok=True)
    shutil.copy(client.__file__, folder / "lib/softgauge.py")
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder / "lib"), "PYTHONDONTWRITEBYTECODE": "1", "SOFTGAUGE_URL": url}
    script = [sys.executable, "repro.py"]
    return subprocess.run(script, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_a_folder(tmp_path):
    folder = tmp_path / "made" / "here"
    done = run(*CASE, "--repro", folder)
    assert done.exit_code == 1
    assert f"repro: repro.safetensors, repro.py, repro.json in {folder}: row 1 of 2, 1 of 4 columns dropped" in done.stdout
    assert sorted(os.listdir(folder)) == NAMES
    stored = safetensors.numpy.load_file(folder / "repro.safetensors")
    assert {name: tensor.tolist() for name, tensor in stored.items()} == {"logits": [[7, 8, -3]], "output": [[0, 0, 0]]}
    case = json.loads((folder / "repro.json").read_text())
    assert (case["softgauge"], case["rows"], case["columns"]) == (engine.VERSION, [[1, 1]], [[0, 2]])
    assert [case["elements"][0][name] for name in ("posted", "got", "truth")] == [[1, 2], "0", "1.220977256005441533512388e-5"]
    assert len((folder / "repro.py").read_text().split("\n\n")[-1].splitlines()) < 10
    again = run(
        "--op", "softmax", "--logits", folder / "repro.safetensors", "--output", folder / "repro.safetensors", "--repro", folder
    )
    assert again.exit_code == 1
    assert "whole: none of its 3 columns can be dropped" in again.stdout
    assert sorted(os.listdir(folder)) == NAMES


def test_of_a_pass_nothing_is_written(tmp_path):
    done = run("--op", "softmax", "--logits", "0,0", "--output", ".5,.5", "--repro", tmp_path / "none")
    assert done.exit_code == 0
    assert "repro: nothing is written: the verdict is pass: nothing is minimised" in done.stdout
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_ours_stays(tmp_path, name):
    for make in (lambda path: path.write_text("mine"), lambda path: path.symlink_to("/nowhere"), lambda path: path.mkdir()):
        folder = tmp_path / str(len(os.listdir(tmp_path)))
        folder.mkdir()
        make(folder / name)
        done = run(*CASE, "--repro", folder)
        assert (done.exit_code, done.stdout) == (2, "")
        assert f"{folder / name} is there and is no case of Softgauge" in done.stderr
        assert os.listdir(folder) == [name]
    assert (tmp_path / "0" / name).read_text() == "mine"


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    done = run(*CASE, "--repro", tmp_path / "file")
    assert done.exit_code == 2
    assert "is no folder" in done.stderr
    under = run(*CASE, "--repro", tmp_path / "file" / "below")
    assert under.exit_code == 2
    assert "--repro: " in under.stderr


@pytest.mark.parametrize(("number", "status"), [(28, 3), (13, 2)])  # ENOSPC, EACCES
def test_never_half_a_file(tmp_path, monkeypatch, number, status):
    run(*CASE, "--repro", tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in NAMES}
    opened = Path.open

    def full(path, mode="r", *others, **more):
        if mode == "xb" and "repro.py" in path.name:
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, mode, *others, **more)

    monkeypatch.setattr(Path, "open", full)
    done = run("--op", "softmax", "--logits", "1,2", "--output", "0,0", "--repro", tmp_path)
    assert (done.exit_code, done.stdout) == (status, "")
    assert os.strerror(number) in done.stderr
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_in_an_answer_it_is_the_same_bytes_as_in_a_folder(tmp_path):
    rows = [[0.5, 2.0, -1.0, -9.0], [30.0, 1.0, -2.0, 0.0]]
    given = {"logits": tensor(rows, "bfloat16"), "output": tensor([[0.1, 0.8, 0.1, 0.0]] * 2, "float16")}
    answer = asked(**given)["repro"]
    assert answer == asked(**given)["repro"]
    stored = {
        "logits": np.array(rows).astype(engine.FORMATS["bfloat16"].dtype),
        "output": np.array(given["output"]["data"], np.float16),
    }
    file = tmp_path / "posted.safetensors"
    file.write_bytes(client.file_of(stored, {"about": "both"}))
    done = run("--op", "softmax", "--logits", file, "--output", file, "--repro", tmp_path / "case", "--json")
    assert json.loads(done.stdout)["repro"] == answer
    assert (tmp_path / "case/repro.safetensors").read_bytes() == base64.b64decode(answer["safetensors"])
    assert (tmp_path / "case/repro.py").read_text() == answer["script"]


def test_what_is_too_long_for_an_answer_is_left_out():
    answer = asked(Limits(max_body_bytes=400), logits=[0, 1], output=tensor([0, 0]))["repro"]
    assert "above max_body_bytes = 400: `softgauge verify --repro` without --url writes them" in answer["note"]
    assert "safetensors" not in answer
    assert answer["elements"][0]["got"] == "0"
    passed = asked(logits=[0, 0], output=tensor([0.5, 0.5]))["repro"]
    assert passed == {"note": "the verdict is pass: nothing is minimised", "judged": 0}


def problems():
    """One of everything that the file and the script may have to carry."""
    x = [[4.0, 2.0, 1.0, -3.0, 0.5], [1.0, 0.0, 2.0, 2.5, -2.0]]
    wrong = tensor([[0.5] * 5] * 2)
    params = {"mask": [True, True, False, True, True]}
    yield "masked", {"logits": tensor(x), "output": wrong, "params": params, "outputs": [wrong], "reference": wrong}
    loss = {"op": "cross_entropy", "logits": tensor(x), "targets": [1, 4], "output": tensor([9.0, 9.0])}
    yield "weighted", {**loss, "params": {"weights": [1, 2, 1, 0.5, 3], "reduction": "sum"}, "output": tensor([9.0])}
    yield "loss", {**loss, "gate": {"policy": "max_ulp", "ulps": 3}, "nonfinite": "strict"}
    vjp = {"op": "softmax_vjp", "grad_output": x, "gate": {"policy": "allclose", "rtol": 0.5, "atol": 1e4}}
    yield "open", {**vjp, "logits": x, "output": wrong, "include": ["repro"]}


@pytest.mark.parametrize(("name", "request_"), list(problems()))
def test_the_script_gives_the_verdict_again(tmp_path, service, name, request_):
    answered = service.post("/v1/verify", json={"op": "softmax", "include": ["repro"], **request_})
    assert answered.status_code == 200, answered.text
    answer = answered.json()
    assert answer["verdict"] == ("inconclusive" if name in ("open", "weighted") else "fail")
    repro.write(answer["repro"], answer["repro"]["script"], tmp_path)
    done = played(tmp_path, str(service.base_url))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.count("sha256:") >= 2
    told = json.loads(safetensors.safe_open(tmp_path / "repro.safetensors", "np").metadata()["softgauge"])
    assert told["expect"] == answer["verdict"]


def test_the_script_serves_itself_and_fails_when_the_verdict_is_another(tmp_path, monkeypatch):
    run(*CASE, "--repro", tmp_path)
    program = tmp_path / "softgauge"
    program.write_text(f"#!{sys.executable} -P\nimport runpy; runpy.run_path({fake.__file__!r}, run_name='__main__')\n")
    program.chmod(0o755)
    stored = tmp_path / "repro.safetensors"
    raw = stored.read_bytes()
    assert raw.count(b"fail") == 1
    stored.write_bytes(raw.replace(b"fail", b"pass"))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    done = played(tmp_path, "")
    assert done.returncode == 1
    assert "the verdict is fail, not pass" in done.stderr


def test_a_service_is_asked_for_the_case(tmp_path, service):
    done = run(*CASE, "--repro", tmp_path / "asked", "--url", service.base_url)
    assert done.exit_code == 1, done.output
    run(*CASE, "--repro", tmp_path / "here")
    for name in NAMES:
        assert (tmp_path / "asked" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


def test_no_code_of_another_machine_is_written(tmp_path, monkeypatch):
    told = {"note": "here you are", "safetensors": "", "script": "import this"}
    answer = {**asked(logits=[0, 1], output=tensor([0, 0])), "repro": told}
    monkeypatch.setattr(client, "verify", lambda *_, **__: answer)
    done = run("--op", "softmax", "--logits", "0,1", "--output", "0,0", "--repro", tmp_path, "--url", "http://somewhere")
    assert done.exit_code == 1
    assert "import this" not in (tmp_path / "repro.py").read_text()


# ---- digests -----------------------------------------------------------------------------------------------------------


def test_digests_are_of_the_tensors_as_they_were_posted(tmp_path, service):
    rng = np.random.default_rng(5)
    x, y = (rng.random((3, 4, 2)).astype(np.float32) for _ in range(2))
    tensors = {"logits": x, "output": x, "targets": y, "reference": y}
    wanted = {name: engine.digest(value) for name, value in tensors.items()}
    options = {"op": "cross_entropy_grad", "axis": 0}
    assert client.verify(**options, **tensors, url=str(service.base_url))["digests"] == wanted
    for name, value in tensors.items():
        np.save(tmp_path / f"{name}.npy", np.asfortranarray(value))
    named = [part for name in tensors for part in (f"--{name}", tmp_path / f"{name}.npy")]
    for url in ([], ["--url", service.base_url]):
        done = run("--op", "cross_entropy_grad", "--axis", 0, *named, "--json", *url)
        assert json.loads(done.stdout)["digests"] == wanted, done.output


def test_an_output_of_one_number_is_digested_as_it_was_given(service):
    wanted = engine.digest(np.zeros(1))
    given = ("--op", "logsumexp", "--logits", "0,0", "--output", "0", "--reference", "0", "--repeat", "0", "--json")
    for url in ([], ["--url", service.base_url]):
        done = run(*given, *url)
        assert done.exit_code == 1, done.output
        digests = json.loads(done.stdout)["digests"]
        assert (digests["output"], digests["reference"]) == (wanted, wanted)
    for shape in ((), (1,)):
        problem = engine.Problem("logsumexp", np.zeros(2))
        found = engine.verify(problem, np.zeros(shape), reference=np.zeros(1))
        assert found.digests["output"] == engine.digest(np.zeros(shape))
