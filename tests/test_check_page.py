"""CHECK.md, README's "In CI", action.yml and the hooks: every snippet is run or checked by its schema."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import yaml
from check_jsonschema import builtin_schemas
from click.testing import CliRunner

import engine
from service import check, cli, suite

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CHECK.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8").split("## In CI")[1].split("\n## ")[0]
VENDOR = Path(builtin_schemas.__file__).parent / "vendor"


def blocks(text, kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.M | re.S)


def section(title):
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    done = CliRunner().invoke(cli.main, list(arguments))
    assert "Traceback" not in done.output
    return done


def said(script):
    """The commands of a block, by the command line of this tree."""
    for line in script.strip().splitlines():
        program, *arguments = shlex.split(line)
        assert program == "softgauge"
        yield run(*arguments)


def test_every_block_is_known_here():
    """So that none is added without its test."""
    kinds = re.findall(r"^```(\w*)$", PAGE, re.M)
    assert [kind for kind in kinds if kind] == ["sh", "toml", "sh", "yaml", "yaml", "yaml"]


def test_the_first_commands(repository):
    first, second = said(blocks(PAGE, "sh")[0])
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert (repository / ".softgauge" / "baseline.json").exists()
    (third,) = said(blocks(PAGE, "sh")[1])
    assert "nothing to accept: every case is unchanged" in third.stdout


def test_the_suite_that_is_shown(repository):
    (text,) = blocks(PAGE, "toml")
    (repository / "softgauge.toml").write_text(text)
    (repository / "build").mkdir()
    x = np.random.default_rng(1).standard_normal((2, 50))
    np.save("build/logits.npy", x)
    right = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    for kind in ("float16", "float32"):
        np.save(f"build/attention-{kind}.npy", right.astype(kind))
    assert run("check").exit_code == 4
    assert run("check", "--accept", "--reason", "first").exit_code == 0
    assert run("check").stdout == "pass: 6 cases of softgauge.toml: 6 unchanged\n"
    jsonschema.validate(suite.tomllib.loads(text), suite.schema())


def test_exit_statuses_are_those_of_the_code():
    rows = re.findall(r"^\| (\d) \| `(\w+)`:", PAGE, re.M)
    assert {verdict: int(status) for status, verdict in rows} == check.EXIT


def test_settings_and_statuses_named_exist():
    for name in ("unchanged", "regressed", "improved", "failed", "stale", "informational", "inconclusive"):
        assert f"`{name}`" in PAGE
        assert name in engine.STATUSES
    options = {option for command in (cli.check, cli.init) for row in command.params for option in row.opts}
    assert set(re.findall(r"(?<![\w-])--[a-z]+", "\n".join(re.findall(r"`([^`\n]+)`", PAGE)))) <= options


def masked(text):
    """Without the digits that depend on the last bits of NumPy's exp."""
    return re.sub(r"\d+(\.\d+)?(e-\d+)?", "0", text)


def test_what_readme_shows_is_what_happens(repository):
    (text,) = blocks(README, "toml")
    path = repository / "softgauge.toml"
    path.write_text(text)
    assert run("check", "--accept", "--reason", "the first").exit_code == 0
    path.write_text(text.replace('["float16", "float32", "float64"]', '["float64", "float16", "float32"]'))
    assert run("check").stdout.strip() in README
    path.write_text(text.replace('"shifted"', '"naive"'))
    done = run("check")
    assert done.exit_code == 1
    (shown,) = blocks(README, "text")
    lines = done.stdout.splitlines()[: len(shown.splitlines())]
    assert lines[0] == shown.splitlines()[0]
    assert [masked(line) for line in lines] == [masked(line) for line in shown.splitlines()]
    path.write_text(text.replace('"pairwise"', '"sequential"'))
    told = json.loads(run("check", "--json").stdout)
    worse = {case["case"]: round(case["max_ulp"] - case["was_max_ulp"]) for case in told["cases"]}
    stated = re.search(r"by (\d+) ULP in float16, (\d+) in float32 and (\d+) in\s+float64", README)
    assert stated is not None
    for fmt, ulps in zip(("float16", "float32", "float64"), stated.groups(), strict=True):
        assert abs(worse[f"library[format={fmt}]"] - int(ulps)) <= 1


# ---- CI services -----------------------------------------------------------------------------------------------------


def schema(name):
    return json.loads((VENDOR / f"{name}.json").read_text(encoding="utf-8"))


def test_the_workflow_and_the_action_fit_their_schemas_and_each_other():
    (text,) = blocks(section("In GitHub Actions"), "yaml")
    workflow = yaml.load(text, yaml.BaseLoader)
    jsonschema.validate(workflow, schema("github-workflows"))
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    jsonschema.validate(action, schema("github-actions"))
    (step,) = (step for step in workflow["jobs"]["precision"]["steps"] if "with" in step)
    assert set(step["with"]) <= set(action["inputs"])


def scripts(folder):
    """A folder of programs: python3 that makes a virtual environment of recorded ones, in which softgauge is this tree's."""
    folder.mkdir()
    real = f'#!/bin/sh\nexec "{sys.executable}" -P -c "from service.cli import main; main()" "$@"\n'
    record = '#!/bin/sh\necho "$0 $*" >> "$RECORD"\n'
    (folder / "softgauge").write_text(real)
    (folder / "recorded").write_text(record)
    made = "\n".join(
        f'cp "{folder}/{source}" "$3/bin/{name}"'
        for name, source in (("python", "recorded"), ("pip", "recorded"), ("softgauge", "softgauge"))
    )
    (folder / "python3").write_text(f'#!/bin/sh\nset -e\n[ "$1 $2" = "-m venv" ]\nmkdir -p "$3/bin"\n{made}\n')
    for path in folder.iterdir():
        path.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "RECORD": str(folder / "record"), "PYTHONPATH": str(ROOT)}


def regressed(repository):
    """A repository whose suite is regressed, with a line to show it at."""
    (text,) = blocks(README, "toml")
    text = text.replace("[case.grid]", 'source = { file = "a.py", line = 2 }\n[case.grid]')
    (repository / "softgauge.toml").write_text(text)
    assert run("check", "--accept", "--reason", "first").exit_code == 0
    (repository / "softgauge.toml").write_text(text.replace('"shifted"', '"naive"'))


def test_the_steps_of_the_action_run(repository, tmp_path):
    regressed(repository)
    environment = scripts(tmp_path / "programs")
    environment |= {"RUNNER_TEMP": str(tmp_path / "runner"), "GITHUB_ACTION_PATH": str(ROOT), "GITHUB_STEP_SUMMARY": "summary.md"}
    environment |= {"SUITE": "softgauge.toml", "ARGUMENTS": "--case library*", "TESTBED": ""}
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    for step, status in zip(action["runs"]["steps"], (0, 1), strict=True):
        done = subprocess.run(["bash", "-e", "-c", step["run"]], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
    assert "::error file=a.py,line=2,title=library[format=float16]%3A regressed" in done.stdout
    installed = (tmp_path / "programs" / "record").read_text()
    assert f"install --require-hashes -r {ROOT}/requirements.lock" in installed
    assert f"install --no-deps --no-build-isolation {ROOT}" in installed
    assert (repository / "summary.md").read_text().startswith("### ❌ regressed")
    assert json.loads((repository / "softgauge.sarif").read_text())["runs"][0]["results"]
    assert (repository / "softgauge-junit.xml").exists()


def test_the_job_of_gitlab_runs(repository, tmp_path):
    (text,) = blocks(section("In GitLab"), "yaml")
    job = yaml.safe_load(text)
    jsonschema.validate(job, schema("gitlab-ci"))
    regressed(repository)
    environment = scripts(tmp_path / "programs") | job["precision"]["variables"]
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(job["precision"]["script"])], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "pip install softgauge" in (tmp_path / "programs" / "record").read_text()
    artifacts = job["precision"]["artifacts"]
    for path in (artifacts["reports"]["junit"], *artifacts["paths"]):
        assert (repository / path).exists()


def test_the_hook_runs(repository):
    (text,) = blocks(section("Before a commit"), "yaml")
    (used,) = yaml.safe_load(text)["repos"][0]["hooks"]
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert used["id"] == hook["id"]
    assert {"id", "name", "entry", "language"} <= set(hook)
    regressed(repository)
    (done,) = said(hook["entry"])
    assert done.exit_code == 1
