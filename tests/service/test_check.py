"""softgauge check: what stops a merge, what does not, how it ends, and what it writes."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import engine
from service import baseline, check, check_reports, cli, suite
from tests.engine.test_frameworks import ENTRIES
from tests.engine.test_frameworks import problem as framework_problem
from tests.service.test_baseline import DIGEST

ROOT = Path(__file__).parent.parent.parent
SCHEMAS = ROOT / "tests" / "data" / "schemas"

LIBRARY = """\
version = 1
[[case]]
name = "library"
op = "softmax"
gate = "none"
family = "offset"
parameters = { sigma = 2, offset = 90 }
rows = 2
variant = "shifted"
summation = "pairwise"
source = { file = "softmax.py", line = 3 }
[case.grid]
format = ["float16", "float32", "float64"]
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return tmp_path


def run(*arguments, status=None, env=None):
    done = CliRunner().invoke(cli.main, ["check", *map(str, arguments)], env={"COLUMNS": None, **(env or {})})
    assert status is None or done.exit_code == status, done.output
    assert "Traceback" not in done.output
    return done


def written(repository, text=LIBRARY):
    (repository / "softgauge.toml").write_text(text)


def accepted(repository, text=LIBRARY):
    written(repository, text)
    return run("--accept", "--reason", "the first", status=0)


def answer(*arguments):
    return json.loads(run(*arguments, "--json").stdout)


def statuses(*arguments):
    return {row["case"]: row["status"] for row in answer(*arguments)["cases"]}


# ---- the rule --------------------------------------------------------------------------------------------------------


def test_what_is_not_in_the_baseline_has_not_passed(repository):
    written(repository)
    done = run(status=4)
    assert done.stdout.startswith("incomparable: 3 cases of softgauge.toml: 3 new\n")
    assert "what cannot be compared has not passed" in done.stdout
    assert not (repository / ".softgauge").exists()


def test_unchanged_is_pass_and_nothing_is_measured(repository, monkeypatch):
    said = accepted(repository)
    assert "accepted: library[format=float16]: new" in said.stdout
    monkeypatch.setattr(engine, "measure", None)
    assert run(status=0).stdout == "pass: 3 cases of softgauge.toml: 3 unchanged\n"


def test_naive_for_shifted_is_regressed_and_the_overflow_is_named(repository):
    accepted(repository)
    written(repository, LIBRARY.replace('"shifted"', '"naive"'))
    done = run(status=1)
    assert done.stdout.startswith("regressed: 3 cases of softgauge.toml: 1 improved, 2 regressed\n")
    assert "regressed: library[format=float32]" in done.stdout
    assert "nan_unexpected 1456, was 0" in done.stdout
    assert re.search(r"exp\(90\.\d+\) exceeds the largest float32", done.stdout)
    assert "worst at [0, 0]: got nan, truth 2.2756" in done.stdout


def test_sequential_for_pairwise_is_regressed_by_ulps(repository):
    accepted(repository)
    written(repository, LIBRARY.replace('"pairwise"', '"sequential"'))
    done = run(status=1)
    ulps = dict(re.findall(r"library\[format=(\w+)\] \(max ULP ([\d.]+), was", done.stdout))
    assert {name: float(found) > 10 for name, found in ulps.items()} == {"float16": True, "float32": True, "float64": True}
    assert "absorbed 498 addends" in done.stdout


def test_another_order_of_cases_passes(repository):
    accepted(repository)
    stored = (repository / ".softgauge/baseline.json").read_bytes()
    written(repository, LIBRARY.replace('["float16", "float32", "float64"]', '["float64", "float16", "float32"]'))
    run(status=0)
    assert run("--accept", "--reason", "none", status=0).stdout.endswith("nothing to accept: every case is unchanged\n")
    assert (repository / ".softgauge/baseline.json").read_bytes() == stored


def test_what_is_better_is_noticed_and_kept_when_it_is_accepted(repository):
    accepted(repository, LIBRARY.replace('"pairwise"', '"sequential"'))
    written(repository)
    done = run(status=0)
    assert done.stdout.startswith("improved: 3 cases of softgauge.toml: 3 improved\n")
    assert "to hold what is better from now on: softgauge check --accept" in done.stdout
    said = run("--accept", "--reason", "pairwise sums", "--by", "me\n\x1b", status=0).stdout
    assert re.search(r"accepted: library\[format=float32\]: improved, max_ulp 18\.19 -> 3\.385", said)
    move = baseline.read(repository / ".softgauge/baseline.json").moves[-1]
    assert (move.reason, move.by, len(move.changed)) == ("pairwise sums", "me", 3)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", move.at)
    written(repository, LIBRARY.replace('"pairwise"', '"sequential"'))
    run(status=1)


def kernel(repository, gate='{ policy = "bound" }', **arrays):
    for name, array in arrays.items():
        np.save(repository / f"{name}.npy", array)
    return f'version = 1\n[[case]]\nname = "kernel"\nop = "softmax"\nlogits = "x.npy"\noutput = "y.npy"\ngate = {gate}\n'


X = np.random.default_rng(1).standard_normal((4, 100)).astype(np.float32)
RIGHT = (np.exp(X.astype(np.float64)) / np.exp(X.astype(np.float64)).sum(axis=1, keepdims=True)).astype(np.float32)


def test_the_files_of_a_kernel(repository):
    accepted(repository, kernel(repository, x=X, y=RIGHT))
    run(status=0)
    np.save("y.npy", np.nextafter(RIGHT, np.float32(1)))
    done = run(status=1)
    assert re.search(r"regressed: kernel \(max ULP 1\.\d+, was 0\.\d+\)", done.stdout)
    np.save("y.npy", np.zeros_like(RIGHT))
    done = run(status=1)
    assert "its gate says fail, and said pass" in done.stdout
    assert "400 of 400 elements are 0" in done.stdout
    os.remove("y.npy")
    assert "kernel: output: y.npy: no such file: the kernel that writes it has to run first" in run(status=2).stderr


def test_the_saved_outputs_of_a_torch_kernel_are_gated_from_its_own_repository(repository):
    (repository / "saved").mkdir()
    rows = [e for e in ENTRIES if e["framework"] == "torch" and e["asked"] in ("softmax", "log_softmax") and "float32" in e["row"]]
    text = "version = 1\n"
    for entry in rows:
        problem, output = framework_problem(entry)
        name, fmt = entry["asked"], output.dtype.name
        save_file({"logits": problem.logits, "output": output}, repository / "saved" / f"{name}-{fmt}.safetensors")
        where = f'"saved/{name}-{fmt}.safetensors"'
        text += f'[[case]]\nname = "torch {name} {fmt}"\nop = "{name}"\nlogits = {where}\noutput = {where}\n'
    accepted(repository, text)
    assert len(rows) == 2
    assert run("--testbed", "cpu", status=0).stdout == "pass: 2 cases of softgauge.toml: 2 unchanged\n"
    path = repository / "saved" / "softmax-float32.safetensors"
    stored = load_file(path)
    stored["output"] = stored["output"].astype(np.float16).astype(np.float32)
    save_file(stored, path)
    done = run(status=1)
    assert "regressed: torch softmax float32" in done.stdout
    assert "float16" in done.stdout  # the finding names what was lost


def test_what_fails_its_gate_is_never_accepted(repository):
    written(repository, kernel(repository, x=X, y=np.zeros_like(RIGHT)))
    assert run(status=1).stdout.startswith("failed: 1 case of softgauge.toml: 1 failed\n")
    done = run("--accept", "--reason", "please", status=2)
    assert 'kernel: fails its gate, and is not accepted: mend it, or loosen its gate; gate = "none"' in done.stderr
    assert not Path(".softgauge").exists()
    written(repository, kernel(repository, gate='"none"'))
    run("--accept", "--reason", "it is watched", status=0)
    written(repository, kernel(repository) + "informational = true\n")
    run("--accept", "--reason", "it is watched", status=0)
    assert run(status=0).stdout == "pass: 1 case of softgauge.toml: 1 unchanged\n"


def test_what_was_accepted_as_informational_fails_once_it_counts(repository):
    told = kernel(repository, x=X, y=np.zeros_like(RIGHT))
    accepted(repository, told + "informational = true\n")
    written(repository, told)
    assert "it fails its gate, as it did in the baseline" in run(status=1).stdout


def test_no_report_takes_the_place_of_the_baseline(repository):
    accepted(repository)
    before = Path(".softgauge/baseline.json").read_bytes()
    assert "would write over the baseline" in run("--json=.softgauge/baseline.json", status=2).stderr
    assert Path(".softgauge/baseline.json").read_bytes() == before


def test_a_summary_that_cannot_be_written_is_told(repository):
    accepted(repository)
    done = run("--github", status=2, env={"GITHUB_STEP_SUMMARY": "none/summary.md"})
    assert "GITHUB_STEP_SUMMARY: none/summary.md: No such file" in done.stderr


def test_a_gate_that_no_longer_tells(repository):
    accepted(repository, kernel(repository, x=X, y=RIGHT) + 'figures = ["special_mismatch"]\n')
    np.save("y.npy", RIGHT * np.float32(1 + 5e-6))
    assert statuses() == {"kernel": "inconclusive"}
    run(status=4)


def test_stale_missing_and_new(repository):
    accepted(repository)
    written(repository, LIBRARY.replace("offset = 90", "offset = 80").replace('"float64"]', '"bfloat16"]'))
    assert statuses() == {
        "library[format=bfloat16]": "new", "library[format=float16]": "stale", "library[format=float32]": "stale",
        "library[format=float64]": "missing",
    }  # fmt: skip
    run(status=4)
    kinds = ("new", "missing", "stale")
    warn = "".join(f'{name} = "warn"\n' for name in kinds)
    written(repository, LIBRARY.replace("offset = 90", "offset = 80") + f"[policy]\n{warn}")
    assert run(status=0).stdout.startswith("pass: 3 cases of softgauge.toml: 3 stale\n")


def test_a_case_is_created_where_the_suite_says_so(repository):
    accepted(repository)
    more = LIBRARY.replace('"float64"]', '"float64", "bfloat16"]') + '[policy]\nnew = "create"\n'
    written(repository, more)
    done = run("--by", "me", status=0)
    assert "new: put into .softgauge/baseline.json; commit it" in done.stdout
    assert run(status=0).stdout == "pass: 4 cases of softgauge.toml: 4 unchanged\n"
    assert baseline.read(repository / ".softgauge/baseline.json").moves[-1].changed == ("library[format=bfloat16]: created",)


def edited(repository, edit):
    path = repository / ".softgauge/baseline.json"
    path.write_text(edit(path.read_text()))


def test_a_baseline_of_another_schema_is_incomparable(repository):
    accepted(repository)
    edited(repository, lambda text: text.replace('"schema": 1', '"schema": 7'))
    done = run(status=4)
    assert "the baseline is of engine schema 7, this engine of 1" in done.stdout


def test_another_fingerprint_is_informational_within_half_an_ulp(repository):
    accepted(repository)
    edited(repository, lambda text: text.replace(engine.fingerprint(), "numpy 9 X").replace(DIGEST, DIGEST))
    run(status=0)  # the bits are the same
    edited(repository, lambda text: re.sub('"output": "sha256:....', '"output": "sha256:0000', text))
    done = run(status=0)
    assert done.stdout.startswith("pass: 3 cases of softgauge.toml: 3 informational\n")
    assert f"the baseline is of numpy 9 X, this machine {engine.fingerprint()}: within its gate" in done.stdout
    run("--accept", "--reason", "this machine too", status=0)
    found = baseline.read(repository / ".softgauge/baseline.json").cases["library[format=float32]"]
    assert sorted(entry.fingerprint for entry in found) == sorted([engine.fingerprint(), "numpy 9 X"])


def test_a_testbed_is_part_of_the_fingerprint_of_files(repository):
    accepted(repository, kernel(repository, x=X, y=RIGHT))
    np.save("y.npy", np.where(np.arange(100) == 7, np.nextafter(RIGHT, np.float32(1)), RIGHT))
    assert statuses("--testbed", "h100") == {"kernel": "regressed"}  # by more than half an ULP
    assert "the baseline is of files, this machine files of h100" in run("--testbed", "h100", status=1).stdout


def test_the_same_bits_elsewhere_are_accepted_as_an_entry_of_their_own(repository):
    accepted(repository, kernel(repository, x=X, y=RIGHT))
    assert statuses("--testbed", "h100") == {"kernel": "unchanged"}
    run("--testbed", "h100", "--accept", "--reason", "this machine too", status=0)
    found = baseline.read(repository / ".softgauge/baseline.json").cases["kernel"]
    assert [entry.fingerprint for entry in found] == ["files", "files of h100"]


def test_an_output_of_another_format_is_another_case(repository):
    accepted(repository, kernel(repository, gate='"none"', x=X, y=RIGHT))
    np.save("y.npy", RIGHT.astype(np.float16))
    for testbed in ("", "h100"):
        assert "other settings format" in run("--testbed", testbed, status=4).stdout


def test_a_file_that_changes_while_it_is_measured_is_told(repository, monkeypatch):
    written(repository, kernel(repository, gate='"none"', x=X, y=RIGHT))
    measure = engine.measure

    def meanwhile(*arguments, **options):
        with open("y.npy", "r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"\0\0\0\0")
        return measure(*arguments, **options)

    monkeypatch.setattr(engine, "measure", meanwhile)
    assert "kernel: a file of it changed while it was measured" in run(status=2).stderr


def test_a_long_name_that_is_gone_leaves_a_baseline_that_can_be_read(repository):
    accepted(repository)
    edited(repository, lambda text: text.replace('"library[format=float64]": [', f'"{"x" * 495}": [', 1))
    run("--accept", "--reason", "it is gone", status=0)
    assert baseline.read(repository / ".softgauge/baseline.json").moves[-1].changed[-1] == f"{'x' * 495}: mis"


def test_only_some_cases(repository):
    accepted(repository, LIBRARY.replace("[case.grid]", 'tags = ["fast"]\n[case.grid]'))
    for name in ("*float32*", "library[format=float32]"):
        assert list(statuses("--case", name)) == ["library[format=float32]"]
    assert len(statuses("--tag", "fast")) == 3
    assert "no case of softgauge.toml is chosen" in run("--tag", "slow", status=2).stderr


def test_how_many_processes_does_not_matter(repository):
    accepted(repository)
    written(repository, LIBRARY.replace('"shifted"', '"naive"'))
    assert answer("--processes", 2) == answer("--processes", 1)


# ---- how it ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        (("--accept",), '--accept needs --reason "..."'),
        (("--accept", "--reason", " "), '--accept needs --reason "..."'),
        (("--reason", "x"), "--reason belongs to --accept"),
        (("--accept", "--reason", "two\nlines"), "--reason is one line of at most 200 characters"),
        (("--testbed", "x" * 201), "--testbed is one line of at most 200 characters"),
        (("--json", "--markdown"), "only one report goes to standard output"),
        (("other.toml",), "other.toml: no such file; `softgauge init` writes one"),
        (("--baseline", "../b.json"), "leads out of the repository"),
        (("--junit=none/report.xml",), "--junit: none/report.xml: No such file or directory"),
        (("--json", "softgauge.toml"), "would write over a suite"),
    ],
)
def test_what_is_asked_wrongly_is_status_2(repository, arguments, saying):
    written(repository)
    assert saying in run(*arguments, status=2).stderr
    assert (repository / "softgauge.toml").read_text() == LIBRARY


def test_what_the_engine_refuses_is_told_with_the_case(repository):
    written(repository, kernel(repository, x=X, y=RIGHT[:2]))
    assert "kernel: output has shape [2, 100]" in run(status=2).stderr


def test_axis_is_of_a_gate(repository):
    written(repository, kernel(repository, gate='"none"', x=X, y=RIGHT) + "axis = 0\n")
    assert "kernel: axis is of a gate" in run(status=2).stderr


def test_a_disagreement_is_status_3(repository, monkeypatch):
    written(repository)

    def disagree(*_arguments, **_options):
        raise engine.Disagreement("they disagree")

    monkeypatch.setattr(engine, "measure", disagree)
    done = CliRunner().invoke(cli.main, ["check", "--processes", "1"])
    assert done.exit_code == 3


def test_a_process_that_dies_is_status_3(repository, monkeypatch):
    from service.split import SplitError

    written(repository)

    def died(*_arguments):
        raise SplitError("a process that computed a part died")

    monkeypatch.setattr(check, "run", died)
    assert "died" in run(status=3).stderr


def test_no_room_for_the_baseline_leaves_it_as_it_was(repository):
    accepted(repository)
    before = (repository / ".softgauge/baseline.json").read_bytes()
    written(repository, LIBRARY.replace('"pairwise"', '"sequential"'))
    limited = f"ulimit -f {max(1, len(before) // 2048)}; exec {sys.executable} -m service.cli check --accept --reason x"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(["sh", "-c", limited], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "File too large; it is as it was" in done.stderr
    assert (repository / ".softgauge/baseline.json").read_bytes() == before
    assert os.listdir(repository / ".softgauge") == ["baseline.json"]


def test_a_baseline_that_cannot_be_written_is_status_2(repository):
    written(repository)
    (repository / ".softgauge").write_text("a file")
    assert "baseline.json: Not a directory" in run("--accept", "--reason", "x", status=2).stderr
    (repository / ".softgauge").unlink()
    (repository / ".softgauge").mkdir(mode=0o500)
    if os.geteuid():
        assert "Permission denied; it is as it was" in run("--accept", "--reason", "x", status=2).stderr


def test_init_writes_a_suite_that_runs_and_never_over_another(repository):
    done = CliRunner().invoke(cli.main, ["init"])
    assert (done.exit_code, done.stdout) == (0, "softgauge.toml is written; now: softgauge check\n")
    assert run(status=0).stdout.startswith("pass: 6 cases of softgauge.toml: 6 new\n")
    assert run(status=0).stdout == "pass: 6 cases of softgauge.toml: 6 unchanged\n"
    done = CliRunner().invoke(cli.main, ["init"])
    assert (done.exit_code, "is there already, and is not overwritten" in done.stderr) == (2, True)
    assert CliRunner().invoke(cli.main, ["init", "none/suite.toml"]).exit_code == 2
    done = CliRunner().invoke(cli.main, ["init", "--schema"])
    assert json.loads(done.stdout) == suite.schema()


# ---- what it writes --------------------------------------------------------------------------------------------------


@pytest.fixture
def regressed(repository):
    accepted(repository)
    written(repository, LIBRARY.replace('"shifted"', '"naive"').replace('"float64"]', '"bfloat16"]'))
    return repository


def test_every_report_at_once(regressed):
    arguments = [f"--{name}=report.{name}" for name in ("json", "markdown", "junit", "sarif", "svg")]
    assert run(*arguments, status=1).stdout.startswith("regressed: 4 cases")
    told = json.loads(Path("report.json").read_text())
    assert [row["status"] for row in told["cases"]] == ["regressed", "regressed", "missing", "new"]
    assert told["counts"] == {"new": 1, "missing": 1, "regressed": 2}
    markdown = Path("report.markdown").read_text()
    assert markdown.startswith("### ❌ regressed: 4 cases of softgauge.toml")
    assert "<details><summary>all cases</summary>" in markdown
    tree = ET.parse("report.junit").getroot()[0]
    assert (tree.get("tests"), tree.get("failures"), len(tree.findall("testcase/failure"))) == ("4", "4", 4)
    log = json.loads(Path("report.sarif").read_text())
    jsonschema.validate(log, json.loads((SCHEMAS / "sarif-2.1.0.json").read_text()))
    found = log["runs"][0]["results"]
    assert [row["level"] for row in found] == ["error", "error", "warning"]  # what is missing has no line any more
    assert found[0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "softmax.py"
    ET.fromstring(Path("report.svg").read_text())
    assert "library[format=float32]" in Path("report.svg").read_text()


def test_annotations_and_the_summary_of_a_step(regressed):
    done = run("--github", status=1, env={"GITHUB_STEP_SUMMARY": "summary.md"})
    annotations = [line for line in done.stdout.splitlines() if line.startswith("::")]
    assert len(annotations) == 4
    assert annotations[0].startswith("::error file=softmax.py,line=3,title=library[format=float16]%3A regressed")
    assert annotations[2].startswith("::warning title=library[format=float64]%3A missing")
    assert Path("summary.md").read_text().startswith("### ❌ regressed")


HOSTILE = "a|b`<img src=x>\x1b[2J##[stop-commands]x::error::%0A,\"&'\n\ud800"


def hostile():
    """An answer in which every text that a stranger may choose is hostile."""
    case = {
        "case": HOSTILE, "status": "regressed", "counts": True, "why": [HOSTILE] * 2, "findings": [HOSTILE], "faults": [HOSTILE],
        "changes": [{"figure": "max_ulp", "was": 1.0, "now": "Infinity", "worse": True}], "worst": HOSTILE, "verdict": "fail",
        "fingerprint": HOSTILE, "against": HOSTILE, "max_ulp": 3.0, "was_max_ulp": 0.0, "output": DIGEST, "tags": [],
        "source": {"file": HOSTILE, "line": 3},
    }  # fmt: skip
    quiet = {
        **case,
        "case": "quiet",
        "status": "informational",
        "counts": False,
        "max_ulp": None,
        "was_max_ulp": None,
        "source": None,
    }
    told = {"version": "0", "schema": 1, "fingerprint": HOSTILE}
    return {
        "verdict": "regressed", "suite": HOSTILE, "baseline": HOSTILE, "accepted": [], "engine": told, "treatments": {},
        "counts": {"regressed": 1, "informational": 1}, "cases": [case, quiet],
    }  # fmt: skip


def test_markup_is_escaped_everywhere():
    told = hostile()
    told["engine"]["version"] = "0.1.0"
    for make in (check_reports.text, *check_reports.REPORTS.values(), check_reports.github):
        made = make(told)
        made.encode()  # no lone surrogate is left
        assert "\x1b" not in made
        assert "##[" not in made
    assert "<img" not in check_reports.markdown(told)
    for make in (check_reports.junit, check_reports.svg):
        tree = ET.fromstring(make(told).encode())
        assert not [e for e in tree.iter() if e.tag.endswith("img")]
    lines = check_reports.github(told).splitlines()
    assert len(lines) == 1
    assert lines[0].count("::") == 2 + lines[0].partition("::error ")[2].partition("::")[2].count("::")
    jsonschema.validate(json.loads(check_reports.sarif(told)), json.loads((SCHEMAS / "sarif-2.1.0.json").read_text()))


@pytest.mark.parametrize(
    "values", [[], [0.0], [1.0], [None, "Infinity", 2.0], [1e9, 1e-9], [1.7e308, 5e-324], [float(99 - k) for k in range(100)]]
)
def test_a_plot_of_anything(values):
    told = hostile()
    told["cases"] = [
        {**told["cases"][0], "case": f"case {k}", "max_ulp": value, "was_max_ulp": None} for k, value in enumerate(values)
    ]
    tree = ET.fromstring(check_reports.svg(told))
    bars = [e for e in tree.iter() if e.tag.endswith("rect")][1:]
    assert len(bars) == min(len(values), check_reports.MOST_BARS)
    widths = [float(bar.get("width")) for bar in bars]
    assert widths == sorted(widths, reverse=True)
    assert ("more are not drawn" in check_reports.svg(told)) == (len(values) > check_reports.MOST_BARS)


def test_a_long_table_is_cut_and_says_so():
    told = hostile()
    told["cases"] = [{**told["cases"][1], "case": f"case {k}"} for k in range(250)]
    assert "| and 50 more |" in check_reports.markdown(told)
    told["cases"] = []
    assert check_reports.github(told) == ""


# ---- two at once, and kills ------------------------------------------------------------------------------------------


def started(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "service.cli", "check", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_that_accept_at_once_are_both_kept(repository):
    written(repository)
    both = [started("--accept", "--reason", "x", "--case", f"*{fmt}*") for fmt in ("float16", "float32")]
    for child in both:
        child.communicate()
        assert child.returncode == 0
    assert sorted(baseline.read(repository / ".softgauge/baseline.json").cases) == [
        "library[format=float16]", "library[format=float32]"
    ]  # fmt: skip


def test_a_kill_while_it_accepts_leaves_a_whole_file(repository):
    accepted(repository, LIBRARY.replace('"pairwise"', '"sequential"'))
    before = (repository / ".softgauge/baseline.json").read_bytes()
    written(repository)
    for turn in range(4):
        child = started("--accept", "--reason", "x")
        time.sleep(0.5 + 0.15 * turn)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        baseline.read(repository / ".softgauge/baseline.json")
        (repository / ".softgauge/baseline.json").write_bytes(before)


def test_a_suite_of_a_stranger_uses_no_more_memory_than_its_limits(repository):
    written(repository, LIBRARY.replace("rows = 2", "rows = 10001"))
    assert "above 10000000 elements" in run(status=2).stderr
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 8 << 20
