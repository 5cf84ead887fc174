"""The command line: what it computes, what it reads, what it refuses, and with which status it ends."""

import contextlib
import errno
import io
import json
import mmap
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

import engine
import service.app
from service import cli, files
from service.settings import Limits
from service.split import SplitError

ROOT = Path(__file__).parent.parent.parent
REAL = ROOT.parent / "shared/data/bhh-mnist/logits.npy"


def run(*arguments, env=None):
    return CliRunner().invoke(cli.main, [str(part) for part in arguments], env={"COLUMNS": None, **(env or {})})


def evaluate(*arguments, op="softmax", **options):
    return run("evaluate", "--op", op, *arguments, **options)


def answer(*arguments, op="softmax"):
    """The JSON answer of an evaluation that must succeed."""
    done = evaluate(*arguments, "--json", op=op)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def truths(*arguments, op="softmax", fmt="float64"):
    """What the command computed with, seen through the truth of a variant in one format."""
    return answer(*arguments, "--format", fmt, "--include", "truth", op=op)["outcomes"][0]["truth"]


def refused(*arguments, saying, op="softmax"):
    done = evaluate(*arguments, op=op)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert saying in done.stderr
    return done.stderr


# The answer


def test_the_json_answer_is_the_engines():
    logits = np.array([[1000.0, 1001.0, 1002.0]])
    wanted = engine.encode(engine.evaluate(engine.Problem("softmax", logits), include=("values", "truth", "ranks"), worst=8))
    asked = ("--include", "values", "--include", "truth", "--include", "ranks")
    assert answer("--logits", "1000,1001,1002;1,2,3", *asked)["rows"] == 2
    family = ("--family", "ramp", "--rows", 1, "--n", 3, "--param", "start=1000", "--param", "stop=1002")
    assert answer(*family, *asked) == wanted


def test_naive_softmax_of_large_logits_is_nan_and_the_shifted_one_is_right():
    text = evaluate("--logits", "1000,1001,1002", "--variant", "naive", "--variant", "shifted").stdout
    for name in ("float16", "float32", "float64"):
        assert line(text, "naive", name).split()[2:] == ["unstable", "-", "-", "-", "-", "3", "0", "0"]
        assert line(text, "shifted", name).split()[2] == "accurate"
    assert "naive, float16: 3 of 3 elements became NaN; exp(1000) exceeds the largest float16, 65504" in text
    assert "inf / inf is not a number" in text
    assert "9.0030573170380458e-2" in text
    assert "\nstatus: by the bound of shifted; float16: u = 0.000488, condition 671 in row 0; float32: u = 5.96e-08, " in text
    assert "no bound" not in text


def test_where_bounds_say_nothing_is_said():
    asked = ("--family", "equal", "--n", 70000, "--format", "float16", "--format", "float32", "--variant", "shifted")
    text = evaluate(*asked).stdout
    assert "\nshifted, float16: no bound for 70000 elements\n" in text
    assert "shifted, float32: no bound" not in text
    said = "shifted, float16: a bound as large as the truth for 1 element\n"
    assert said in evaluate("--logits", "0,-16", "--format", "float16", "--variant", "shifted").stdout


def line(text, *words):
    return next(row for row in text.splitlines() if row.split()[: len(words)] == list(words))


@pytest.mark.skipif(not REAL.exists(), reason="the real activations are not beside the repository")
def test_the_published_overflow_count_on_real_activations():
    done = evaluate("--logits", REAL, "--format", "float16", "--summation", "sequential", op="logsumexp")
    assert done.exit_code == 0
    assert "naive, float16: 475 of 2500 rows overflowed" in done.stdout
    assert line(done.stdout, "naive", "float16").split()[-2] == "475"
    assert line(done.stdout, "shifted", "float16").split()[-2] == "0"


TERMINAL = {"FORCE_COLOR": "1", "NO_COLOR": "1", "TERM": "xterm"}


@pytest.mark.parametrize(
    ("width", "gone"), [(200, []), (80, ["underflowed", "overflowed", "rel", "logit"]), (20, ["max rel", "logit"])]
)
def test_a_narrow_terminal_gets_fewer_columns_and_every_number_whole(width, gone):
    asked = ("--logits", "1000,1001,1002", "--variant", "naive", "--variant", "shifted", "--format", "float32")
    text = evaluate(*asked, env={**TERMINAL, "COLUMNS": str(width)}).stdout
    tables = text.split("worst of")
    assert "0.2447284609079361  2.4472847105479765e-1  0.6809" in text
    assert "0.6809" in line(text, "shifted", "float32")
    assert "…" not in text
    said = " ".join(re.findall(r"^left out at .*", text, re.M))
    assert all(re.search(rf"\b{name}\b", said) for name in gone)
    assert bool(said) == bool(gone)
    assert ("underflowed" in tables[0].split("left out")[0]) == (width == 200)
    assert max(len(row) for row in text.splitlines() if set(row) == {"─"}) <= max(width, 75)


@pytest.mark.parametrize(
    ("asked", "whole", "gone"),
    [
        (("thresholds", "--op", "softmax", "--variant", "naive", "--format", "float32"), "88.0296859741211", "search, tried"),
        (("paper", "bhh", "--data", "1,2;3,4"), "softmax/subtractive_naive", "algorithm, mean of, sums, sums"),
    ],
)
def test_so_do_limits_and_experiments(asked, whole, gone):
    text = run(*asked, env={**TERMINAL, "COLUMNS": "72"}).stdout
    assert whole in text
    assert f"left out at 72 characters: {gone}\n" in text


def test_a_pipe_gets_a_table_as_wide_as_it_is():
    name = "chosen_shift(c=-80.123456789012)"
    text = evaluate("--logits", "1000,1001,1002", "--variant", name, "--variant", "shifted", "--format", "float64").stdout
    assert len(line(text, name)) > 0
    assert "left out" not in text


def test_what_rounding_the_logits_changed_is_said():
    assert "float16: rounding changed 1 logit, by at most 2.44e-05" in evaluate("--logits", "0.1,1").stdout


@pytest.mark.parametrize(
    ("op", "logits", "lines"),
    [
        ("softmax", "1e5,1", ["float16: 1 finite logit became infinite; the truth of its row is NaN"]),
        ("softmax", "1e5,1e5;1,2", ["float16: 2 finite logits became infinite; the truth of 1 row is NaN"]),
        ("softmax", "-1e5,1", ["float16: 1 finite logit became infinite (-inf, probability 0)"]),
        ("softmax", "-1e5,-inf", ["float16: 1 finite logit became infinite; the truth of its row is NaN"]),
        ("logsumexp", "1e5,1", ["float16: 1 finite logit became infinite; the truth of its row is NaN or infinite"]),
        ("softmax", "nan,1", ["1 row has a NaN or +inf logit, or only -inf: the truth there is NaN, as the output must be"]),
        (
            "softmax",
            "inf,1;-inf,-inf",
            ["2 rows have a NaN or +inf logit, or only -inf: the truth there is NaN, as the output must be"],
        ),
        ("softmax", "-inf,1", []),
        ("softmax", "65519,1", []),
    ],
)
def test_rows_without_a_truth_are_said(op, logits, lines):
    text = evaluate(f"--logits={logits}", "--format", "float16", "--format", "float32", op=op).stdout
    said = text.partition("\nstatus: ")[2].splitlines()[1:]
    assert [row for row in said if not ("rounding changed" in row or "a bound as large" in row or "no bound" in row)] == lines


def test_a_row_without_truth_is_accurate_only_where_the_output_has_none_either():
    asked = ("--variant", "naive", "--variant", "shifted", "--format", "float16", "--include", "values")
    outcomes = answer("--logits", "1e5,1", *asked)["outcomes"]
    assert [(o["values"], o["status"]) for o in outcomes] == [(["NaN", 0.0], "unstable"), (["NaN", "NaN"], "accurate")]
    assert all((o["metrics"]["compared"], o["input_rounding"]["max_abs"]) == (0, "Infinity") for o in outcomes)


def test_what_is_included_is_shown():
    text = evaluate("--logits", "0,0", "--format", "half", "--include", "values", "--include", "truth", "--include", "ranks").stdout
    assert "naive, float16, values: [0.5, 0.5]" in text
    assert "naive, float16, truth: [0.5, 0.5]" in text
    assert "naive, float16: 0 rank inversions" in text


@pytest.mark.parametrize(("asked", "named"), [((), 1), (("--worst", 0), 0), (("--worst", 3), 3), (("--json",), 3)])
def test_how_many_of_the_worst_are_named(asked, named):
    text = evaluate("--logits", "1,2,3", "--format", "float32", "--variant", "shifted", *asked).stdout
    if "--json" in asked:
        assert len(json.loads(text)["outcomes"][0]["worst"]) == named  # 8 are asked for, 3 exist
    else:
        assert len([row for row in text.splitlines() if row.startswith("shifted")]) == 1 + named


# The status


@pytest.mark.parametrize(
    ("variant", "fail_on", "status"),
    [
        ("naive", None, 0),
        ("naive", "unstable", 1),
        ("naive", "inaccurate", 1),
        ("shifted", "unstable", 0),
        ("shifted", "inaccurate", 0),
    ],
)
def test_fail_on_an_unstable_outcome(variant, fail_on, status):
    asked = ["--logits", "1000,1001", "--variant", variant] + (["--fail-on", fail_on] if fail_on else [])
    assert evaluate(*asked).exit_code == status
    assert evaluate(*asked, "--json").exit_code == status


@pytest.mark.parametrize(("fail_on", "status"), [("unstable", 0), ("inaccurate", 1), ("unbounded", 1)])
def test_an_inaccurate_outcome_is_not_an_unstable_one(monkeypatch, fail_on, status):
    def inaccurate(*arguments, **options):
        found = engine_evaluate(*arguments, **options)
        object.__setattr__(found.outcomes[0], "status", "inaccurate")
        return found

    engine_evaluate = engine.evaluate
    monkeypatch.setattr(engine, "evaluate", inaccurate)
    assert evaluate("--logits", "1,2", "--variant", "shifted", "--fail-on", fail_on).exit_code == status


def test_a_failure_of_ours_is_status_3(monkeypatch):
    monkeypatch.setattr(engine, "evaluate", lambda *_, **__: 1 / 0)
    done = evaluate("--logits", "1")
    assert done.exit_code == 3
    assert "ZeroDivisionError" in done.stderr
    assert "an internal failure" in done.stderr


@pytest.mark.parametrize(
    ("error", "saying"),
    [(engine.Disagreement("softmax of 0x1p0"), "softmax of 0x1p0"), (SplitError("a process died"), "Error: a process died")],
)
def test_what_the_request_is_not_to_blame_for_is_status_3(monkeypatch, error, saying):
    def failing(*_, **__):
        raise error

    for name in ("evaluate", "measure"):
        monkeypatch.setattr(engine, name, failing)
    for done in (evaluate("--logits", "1"), measure("--logits", "1", "--output", "1")):
        assert done.exit_code == 3
        assert saying in done.stderr
        assert done.stdout == ""


def test_an_interrupt_is_no_finding(monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "evaluate", interrupted)
    done = evaluate("--logits", "1", "--fail-on", "unstable")
    assert (done.exit_code, done.stdout, done.stderr) == (130, "", "softgauge: interrupted\n")


@pytest.mark.parametrize("saying", ["", ": Unable to allocate 7 GiB"])
def test_too_little_memory_is_one_sentence(monkeypatch, saying):
    def exhausted(*_, **__):
        raise MemoryError(saying[2:])

    monkeypatch.setattr(engine, "measure", exhausted)
    done = measure("--logits", "1", "--output", "1")
    way = "; give fewer rows, fewer --processes, or more memory (ulimit -v)"
    assert (done.exit_code, done.stderr) == (3, f"Error: not enough memory{saying}{way}\n")


def test_a_reader_that_leaves_is_no_finding():
    asked = ["evaluate", "--op", "softmax", "--logits", "1000,1001", "--fail-on", "unstable"]
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", *asked], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    _, complaint = process.communicate(timeout=60)
    assert (process.returncode, complaint) == (3, b"")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("limit", "complaint"), [("ulimit -f 400; trap '' XFSZ; ", "File too large"), ("", "")])
def test_an_answer_is_written_whole_or_is_no_success(tmp_path, unbuffered, limit, complaint):
    """Half a megabyte; unbuffered, a write takes what there is room for."""
    asked = "evaluate --op softmax --family gaussian --rows 40 --n 100 --include values --json"
    script = f"{limit}{sys.executable} -m service.cli {asked} > {tmp_path / 'answer'}"
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    written = (tmp_path / "answer").read_text()
    if complaint:
        assert (done.returncode, done.stderr) == (3, f"softgauge: the answer is not complete: {complaint}\n")
        assert len(written) <= 400 * 1024
    else:
        assert (done.returncode, done.stderr) == (0, "")
        assert len(written) > 400 * 1024
        assert json.loads(written)["rows"] == 40


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_answer_that_waits_for_its_reader_is_whole(unbuffered):
    """Stopped and continued while the pipe is full, as by Ctrl-Z and fg."""
    asked = ["evaluate", "--op", "softmax", "--family", "gaussian", "--rows", "100", "--n", "100", "--include", "values", "--json"]
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    process = subprocess.Popen([sys.executable, "-m", "service.cli", *asked], 0, cwd=ROOT, env=env, stdout=subprocess.PIPE)
    first = process.stdout.read(1)
    time.sleep(0.2)
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    process.send_signal(signal.SIGCONT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(first + rest)["rows"] == 100


def test_infinite_logits_saturate_with_the_rest_and_the_table_says_so():
    text = evaluate("--logits", "0,-inf", "--format", "float8_e5m2", "--overflow", "saturate").stdout
    assert "float8_e5m2: 1 infinite logit became 57344 in magnitude, as overflow saturates\n" in text


def test_the_version_is_the_engines():
    assert run("--version").stdout == f"softgauge, version {engine.VERSION}\n"


# The bar


def test_a_bar_appears_after_a_second_and_only_on_a_terminal(monkeypatch):
    def slow(*arguments, progress, **options):
        time.sleep(1.2)
        progress(1, 6)
        return quick(*arguments, **options)

    quick = engine.evaluate
    terminal = {"FORCE_COLOR": "1", "TERM": "xterm"}
    assert "measuring" not in evaluate("--logits", "1", env=terminal).stderr
    monkeypatch.setattr(engine, "evaluate", slow)
    shown = evaluate("--logits", "1", env=terminal)
    assert "measuring" in shown.stderr
    assert "measuring" not in shown.stdout
    assert evaluate("--logits", "1").stderr == ""


# Processes


@pytest.fixture
def splits(monkeypatch):
    """How many processes were asked for, each time; none is started."""
    asked = []

    @contextlib.contextmanager
    def noted(processes):
        asked.append(processes)
        yield map

    monkeypatch.setattr(cli, "split", noted)
    return asked


def test_large_inputs_use_every_core_unless_told_otherwise(monkeypatch, splits):
    monkeypatch.setattr(cli, "LARGE", 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(5))
    for row in ("1,2,3", "1,2,3,4"):
        for told in ((), ("--processes", 1), ("--processes", 3)):
            evaluate("--logits", row, "--variant", "shifted", *told)
            measure("--logits", row, "--output", row, *told)
    assert splits == [1, 1, 1, 1, 3, 3, 5, 5, 1, 1, 3, 3]


def test_the_threshold_is_in_the_help():
    for command in ("evaluate", "measure"):
        assert f"from {cli.LARGE:,} logits on" in " ".join(run(command, "--help").stdout.split())


def test_no_processes_are_none():
    refused("--logits", "1", "--processes", 0, saying="0 is not in the range")


def test_the_answer_does_not_depend_on_the_processes():
    family = ("--family", "gaussian", "--rows", 40, "--n", 50, "--param", "sigma=4")
    assert answer(*family, "--processes", 2) == answer(*family, "--processes", 1)


@pytest.mark.parametrize(("told", "sample"), [((), 0), (("--audit", 4096), 4096)])
def test_what_is_audited(monkeypatch, told, sample):
    asked = []

    def noted(*_, audit, **__):
        asked.append(audit)
        raise SplitError("enough")

    for name in ("evaluate", "measure"):
        monkeypatch.setattr(engine, name, noted)
    evaluate("--logits", "1", *told)
    measure("--logits", "1", "--output", "1", *told)
    assert asked == [sample, sample]


def test_the_audit_of_the_service_is_in_the_help():
    for command in ("evaluate", "measure"):
        assert f"the service: {Limits().audit_logits}" in " ".join(run(command, "--help").stdout.split())


# softgauge measure


def measure(*arguments, op="softmax", **options):
    return run("measure", "--op", op, *arguments, **options)


def measured(*arguments, op="softmax"):
    """The JSON answer of a measurement that must succeed."""
    done = measure(*arguments, "--json", op=op)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("processes", [1, 2])
def test_an_output_is_measured_in_the_format_it_is_stored_in(tmp_path, dtype, processes):
    x = engine.generate("gaussian", 7, 5, 0, sigma=3.0).astype(dtype)
    terms = np.exp(x.astype(np.float64))
    p = (terms / terms.sum(axis=-1, keepdims=True)).astype(dtype)
    save_file({"x": x, "p": p}, tmp_path / "t.safetensors")
    file = tmp_path / "t.safetensors"
    asked = ("--logits", file, "--key", "x", "--output", file, "--output-key", "p", "--processes", processes)
    wanted = engine.measure(engine.Problem("softmax", x), p, include=("ranks",), worst=8)
    digests = {"logits_digest": engine.digest(x), "output_digest": engine.digest(p)}
    assert measured(*asked, "--ranks") == digests | engine.encode(wanted)
    assert measured(*asked, "--worst", 2) == digests | engine.encode(engine.measure(engine.Problem("softmax", x), p, worst=2))


def test_what_is_measured_is_shown_without_a_status():
    text = measure("--logits", "0,0,nan;0,0,-inf", "--output", "nan,nan,1;0.5,nan,0", "--ranks").stdout
    assert text.startswith("softmax: 2 x 3 float64 logits\n")
    assert line(text, "output", "float64").split() == ["output", "float64", "0", "0", "0", "0", "2", "3", "0", "0"]
    broken = "1 of 6 elements became NaN; 1 of 6 elements became a number where the truth is NaN"
    assert f"output, float64: {broken}; 0 rank inversions\ncorrectly rounded 4 of 6, p99 ULP 0, bias ULP 0\n" in text
    assert "\nbound of shifted, summed in order: p_i (" in text
    assert "; u = 1.11e-16, condition 0 in row 0; 0 elements beyond\ncertificate: truth exact; T3 6\n" in text
    assert line(text, "worst", "of").split() == ["worst", "of", "index", "logit", "got", "truth", "ULP", "bound", "rel"]
    assert "only -inf: the truth there is NaN, as the output must be; 1 of 3 there is not\n" in text
    assert not any(status in text for status in cli.STYLES)


@pytest.mark.parametrize(
    ("op", "logits", "output", "said"),
    [
        ("softmax", "nan,0;0,0", "nan,nan;0.5,0.5", " and is"),
        ("softmax", "nan,0;inf,0", "0,nan;1,0", "; 3 of 4 there are not"),
        ("logsumexp", "inf,0;-inf,-inf;nan,inf", "inf,-inf,nan", " and is"),
        ("logsumexp", "inf,0;-inf,-inf;nan,inf", "nan,inf,inf", "; 3 of 3 there are not"),
        ("softmax", "0,0", "0.5,0.5", None),
    ],
)
def test_whether_the_output_without_a_truth_is_what_it_must_be(monkeypatch, op, logits, output, said):
    monkeypatch.setattr(cli, "BLOCK", 2)  # a row
    text = measure("--logits", logits, "--output", output, op=op).stdout
    assert (said is None) == ("the truth there" not in text)
    assert said is None or f"as the output must be{said}\n" in text


def test_an_infinity_in_a_format_without_one_is_a_nan(tmp_path):
    save_file({"x": np.array([[np.inf, 0.0], [0.0, 0.0]])}, tmp_path / "x.safetensors")
    header = {"p": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}
    stored = np.array([np.nan, 0.6875]).astype(ml_dtypes.float8_e4m3fn)
    (tmp_path / "p.safetensors").write_bytes(_safetensors(header, stored.tobytes()))
    text = measure("--logits", tmp_path / "x.safetensors", "--output", tmp_path / "p.safetensors", op="logsumexp").stdout
    assert "as the output must be and is\n" in text


@pytest.mark.parametrize(
    ("output", "mismatch", "exceeded"), [("0.5,0.5;nan,0", 0, 0), ("0.6,0.5;nan,nan", 0, 1), ("0.5,0.5;0,0", 1, 1)]
)
def test_fail_on_what_is_measured(output, mismatch, exceeded):
    asked = ["--logits", "0,0;nan,nan" if "nan,nan" in output else "0,0;nan,0", "--output", output.replace("nan,0", "nan,nan")]
    for told, status in (((), 0), (("mismatch",), mismatch), (("exceeded",), exceeded)):
        options = ["--fail-on", *told] if told else []
        assert measure(*asked, *options).exit_code == status
        assert measure(*asked, *options, "--json").exit_code == status


def test_every_kind_of_mismatch_is_named():
    text = measure("--logits", "0,-inf;0,0", "--output", "-inf,-1;-inf,nan", op="log_softmax").stdout
    said = [f"1 of 4 elements {what}" for what in ("became NaN", "missed an infinite truth")]
    assert f"output, float64: {said[0]}; 2 of 4 elements overflowed; {said[1]}\n" in text


def test_the_further_figures_stand_below_the_table():
    text = measure("--logits", "0,0;0,0", "--output", "0.5,0.5;0.5,0.75").stdout
    assert "correctly rounded 3 of 4, p99 ULP 2.252e+15, bias ULP 5.629e+14, sum_defect 0.25, kl 0.04727 (worst row 1)\n" in text
    assert "; u = 1.11e-16, condition 0 in row 0; 1 element beyond\ncertificate: truth exact; T3 4\n" in text
    assert "certificate: truth to a relative 2^-" in measure("--logits", "0,1", "--output", "0.25,0.75").stdout
    wide = measure("--logits", "0,1", "--output", "0.25,0.75", "--worst", 0, op="log_softmax").stdout
    assert "no bound" not in wide


def test_where_bounds_say_nothing_is_said_of_an_output_too(tmp_path):
    np.save(tmp_path / "x.npy", np.full((1, 70000), 0, np.float16))
    assert "\nno bound for 70000 elements\n" in measure("--logits", tmp_path / "x.npy", "--output", tmp_path / "x.npy").stdout
    assert "no bound" not in measure("--logits", "0,0", "--output", "0,1").stdout


def test_an_output_wider_than_its_logits_is_noted(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, 2), np.float32))
    np.save(tmp_path / "p.npy", np.full((1, 2), 0.5, np.float32))
    note = "the output is float64 and the logits are float32: ULPs are those of float64; store it as it was computed\n"
    assert measure("--logits", tmp_path / "x.npy", "--output", "0.5,0.5;").exit_code == 2
    (tmp_path / "p.json").write_text("[[0.5, 0.5]]")
    assert measure("--logits", tmp_path / "x.npy", "--output", tmp_path / "p.json").stdout.endswith(note)
    assert "ULPs are those" not in measure("--logits", tmp_path / "x.npy", "--output", tmp_path / "p.npy").stdout
    assert "ULPs are those" not in measure("--logits", "0,0;0,0", "--output", "0.5,0.5;0.5,0.5").stdout


def test_the_shape_is_told_as_it_is(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 4, 5)))
    assert evaluate("--logits", tmp_path / "x.npy", "--variant", "shifted").stdout.startswith("softmax: 2 x 3 x 4 x 5 logits,")
    text = measure("--logits", tmp_path / "x.npy", "--output", tmp_path / "x.npy").stdout
    assert text.startswith("softmax: 2 x 3 x 4 x 5 float64 logits\n")


def test_the_only_element_has_an_index():
    assert line(measure("--logits", "0,0", "--output", "1", op="logsumexp").stdout, "output", "float64", "()")


def test_other_tensors_go_with_the_output():
    (loss,) = measured("--logits", "0,0", "--targets", "1", "--output", "0x1.62e42fefa39efp-1", op="cross_entropy")["worst"]
    assert (loss["index"], loss["expected"]) == ([], "6.9314718055994531e-1")
    vjp = ("--logits", "0,0", "--grad-output", "1,-1", "--output", "0.5,-0.5")
    assert measured(*vjp, op="softmax_vjp")["metrics"]["correctly_rounded"] == 2


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        ((), "Missing option '--output'"),
        (("--output", "1"), "--output: 1: output has shape [1]"),
        (("--output", "/"), "--output: /: a directory; name a file that ends in .npy, .npz, .safetensors, .json"),
        (("--output", "/none"), "--output: /none: no such file; files end in .npy"),
        (("--output", "README.md"), "--output: README.md: a file of an unknown kind; files end in .npy"),
        (("--output", "1,2", "--fail-on", "unstable"), "'mismatch', 'exceeded'"),
        (("--output", "1,2", "--audit", "-1"), "-1 is not in the range"),
        (("--output", "1,zwei"), "--output: 1,zwei: 'zwei' is not a number"),
        (("--output", "none.npy"), "--output: none.npy: No such file"),
        (("--output", "1,2", "--output-key", "x"), "--output: 1,2: a key chooses a tensor"),
        (("--output", "1,2", "--worst", "33"), "33 is not in the range"),
        (("--output", "1,2", "--targets", "0"), "softmax takes no targets"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, saying):
    done = measure("--logits", "0,0", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert saying in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("output", "hint"), [("0.5", True), ("0.5,0.5", False)])
def test_a_mean_loss_is_told_from_losses(output, hint):
    done = measure("--logits", "0,0;0,0;0,0", "--targets", "0,1,0", "--output", output, op="cross_entropy")
    assert done.exit_code == 2
    assert ("must be [3]; a number for each row, not their mean (reduction none)" in done.stderr) is hint


def test_a_name_that_is_also_a_number_is_a_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1").mkdir()
    assert evaluate("--logits", "1").exit_code == 0


def test_an_output_of_integers_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.array([0, 1]))
    assert "dtype int64; known for output: float16" in measure("--logits", "0,0", "--output", tmp_path / "x.npy").stderr


# Logits on the command line


@pytest.mark.parametrize(
    ("text", "shape", "values"),
    [
        ("1,2", (2,), [1, 2]),
        ("-1", (1,), [-1]),
        ("1, 2; 3, 4", (2, 2), [1, 2, 3, 4]),
        ("-inf,inf,+Infinity,nan,-NaN", (5,), [-np.inf, np.inf, np.inf, np.nan, np.nan]),
        ("0x1.8p+1,-0x1p-1074", (2,), [3, -5e-324]),
        (".5,5.,1e-3,+2E2,-0.0", (5,), [0.5, 5, 1e-3, 200, -0.0]),
        ("9007199254740992", (1,), [2.0**53]),
    ],
)
def test_numbers_are_read_as_they_are_written(text, shape, values):
    assert answer("--logits", text)["logits_digest"] == engine.digest(np.array(values, dtype=np.float64).reshape(shape))


@pytest.mark.parametrize(
    ("text", "saying"),
    [
        ("1,,2", "'' is not a number"),
        ("", "'' is not a number"),
        ("1_0", "'1_0' is not a number"),
        ("1,zwei", "'zwei' is not a number; numbers are separated by ',', rows by ';', and files end in .npy"),
        ("１", "is not a number"),
        ("1e999", "1e999 is beyond the largest float64; write inf"),
        ("9007199254740993", "is no binary64 number"),
        ("9" * 400, " bits is beyond the largest float64"),
        ("9" * 5000, "beyond the largest float64"),
        ("0x1p9999", "beyond the largest float64"),
        ("0x1.00000000000001p0", "no float64: it needs more bits"),
        ("0xzz", "is not a number"),
        ("1,2;3", "ragged"),
        ("logits.txt", "'logits.txt' is not a number"),
    ],
)
def test_what_is_no_number_is_refused(text, saying):
    message = refused("--logits", text, saying=saying)
    assert "--logits" in message
    assert len(message) < 600


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        ((), "no logits: give --logits, or --family"),
        (("--logits", "1", "--family", "ramp"), "--family cannot be used here"),
        (("--logits", "1", "--rows", "2", "--param", "a=1"), "--rows and --param cannot be used here"),
        (("--family", "ramp", "--key", "x"), "--key cannot be used here"),
        (("--logits", "1", "--key", "x"), "a key chooses a tensor of an .npz or .safetensors file"),
        (("--family", "ramp", "--param", "start"), "'start' is not NAME=VALUE"),
        (("--family", "ramp", "--param", "stop=high"), "stop is 'high'; it is a number"),
        (("--family", "ramp", "--param", "slope=1"), "has no parameter 'slope'"),
        (("--family", "rump"), "did you mean 'ramp'"),
        (("--family", "ramp", "--n", "0"), "n is 0; it is an integer, at least 1"),
        (("--family", "ramp", "--n", "1000000000"), "is above 10000000 elements"),
        (("--logits", "1", "--format", "float17"), "float17"),
        (("--logits", "1", "--variant", "stable"), "unknown variant 'stable' of softmax; known: naive, shifted"),
        (("--logits", "1", "--summation", "kahn"), "unknown summation 'kahn'"),
        (("--logits", "1", "--worst", "33"), "'--worst': 33 is not in the range 0<=x<=32"),
        (("--logits", "1", "--fail-on", "error"), "'unstable', 'inaccurate', 'unbounded'"),
        (("--logits", "1", "--targets", "0"), "softmax takes no targets"),
        (("--logits",), "requires an argument"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments, saying):
    refused(*arguments, saying=saying)


def test_an_unknown_op_names_those_that_exist():
    refused("--logits", "1", op="sofmax", saying="known: softmax, log_softmax")


def test_an_output_too_large_for_memory_is_refused_before_it_is_made():
    refused("--family", "ramp", "--n", 4000, op="softmax_jacobian", saying="would have 16000000 elements")


def test_an_output_without_a_shape_is_left_to_the_engine(tmp_path):
    np.save(tmp_path / "scalar.npy", np.float64(1))
    refused("--logits", tmp_path / "scalar.npy", op="softmax_jacobian", saying="rank 0")


@pytest.mark.parametrize(("op", "unit"), [("logsumexp", "rows"), ("softmax", "elements"), ("softmax_jacobian", "elements")])
def test_what_is_counted_is_rows_where_each_has_one_number(op, unit):
    shown = evaluate("--logits", "1;2", op=op).stdout
    assert line(shown, "of").split() == ["of", "2"] * 3
    assert line(shown, "variant").split()[-3:] == [unit] * 3


@pytest.mark.parametrize(
    ("asked", "op", "saying"),
    [
        (("--variant", "sink"), "softmax", "variant sink needs the param sink; give --sink, or leave the variant out"),
        (("--variant", "smoothed_apart", "--targets", "0"), "cross_entropy", "and no weights; give --label-smoothing, or leave"),
        (("--targets", "-100"), "cross_entropy", "class indices of 3 logits are 0 to 2; give --ignore-index for rows to leave out"),
        (("--variant", "flash_attention"), "softmax", "or 'tiled' or 'tiled_scaled' or 'lazy_rescale'?"),
        (("--variant", "xyz"), "softmax", "split_merge, two_pass\n"),
        (("--variant", "tile"), "softmax", "; did you mean 'tiled'?"),
    ],
)
def test_a_message_names_the_option_or_the_name_that_would_do(asked, op, saying):
    refused("--logits", "1,2,3", *asked, op=op, saying=saying)


def test_a_family_is_the_engines():
    asked = ("--family", "gaussian", "--rows", 3, "--n", 5, "--seed", 7, "--param", "sigma=4", "--param", "offset=-1")
    assert answer(*asked)["logits_digest"] == engine.digest(engine.generate("gaussian", 3, 5, 7, sigma=4.0, offset=-1.0))
    limit = ("--family", "near_exp_limit", "--param", "format=bf16", "--n", 3)
    assert answer(*limit)["logits_digest"] == engine.digest(engine.generate("near_exp_limit", 1, 3, 0, format="bf16"))


# Targets and grad_output


@pytest.mark.parametrize(
    ("logits", "targets", "losses"),
    [
        ("0,0", "1", np.log(2)),
        ("0,0", "0.5,0.5", np.log(2)),
        ("0,0;0,0", "1,0", [np.log(2)] * 2),
        ("0,0;0,0", "1,0;2,0", [np.log(2), 2 * np.log(2)]),
        ("0", "0", 0.0),
        ("0", "1.0", 0.0),
    ],
)
def test_targets_are_told_apart_by_shape(logits, targets, losses):
    assert truths("--logits", logits, "--targets", targets, op="cross_entropy") == pytest.approx(losses)


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        ((), "Error: cross_entropy needs targets: give --targets"),
        (("--targets", "2"), "Error: --targets: 2: target 2 is out of range: class indices of 2 logits are 0 to 1"),
        (("--targets", "-1"), "out of range"),
        (("--targets", "inf,0"), "finite"),
        (("--targets", "0,1,0"), "Error: --targets: 0,1,0: targets have shape [3]"),
        (("--targets", "1", "--targets-key", "t"), "--targets: 1: a key chooses a tensor"),
        (("--targets", "1", "--grad-output", "1,1"), "takes no grad_output"),
    ],
)
def test_targets_that_do_not_fit_are_refused(arguments, saying):
    refused("--logits", "0,0", *arguments, op="cross_entropy", saying=saying)


def test_a_grad_output_that_does_not_fit_is_refused():
    needed = "Error: softmax_vjp needs grad_output: give --grad-output"
    refused("--logits", "0,0", op="softmax_vjp", saying=needed)
    refused("--logits", "0,0", "--grad-output", "1", op="softmax_vjp", saying="Error: --grad-output: 1: grad_output has shape [1]")


def test_grad_output_is_read_like_logits():
    assert truths("--logits", "0,0", "--grad-output", "0x1p0,-1", op="softmax_vjp") == [0.5, -0.5]


# Files

X = np.array([[1.5, -np.inf], [0.25, 4.0]])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_npy_file(tmp_path, dtype, order):
    stored = np.array(X, dtype=dtype, order=order)
    np.save(tmp_path / "x.npy", stored)
    native = stored.astype(stored.dtype.newbyteorder("="))
    assert answer("--logits", tmp_path / "x.npy")["logits_digest"] == engine.digest(native)


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_npy_file_is_mapped_and_not_copied(tmp_path, monkeypatch, order):
    monkeypatch.setattr(files, "LARGEST_READ", 100)
    stored = np.asarray(np.random.default_rng(0).random((30, 20)), order=order)
    np.save(tmp_path / "x.npy", stored)
    found = cli._chosen(files.mapped(tmp_path / "x.npy"), ".npy", None, "logits")
    origin = found
    while isinstance(origin, np.ndarray):
        assert not origin.flags.owndata
        origin = origin.base
    assert isinstance(origin.obj, mmap.mmap)
    assert not found.flags.writeable
    assert np.array_equal(found, stored)


def test_an_npy_file_that_cannot_be_mapped_is_read(tmp_path, monkeypatch):
    def unmappable(*_, **__):
        raise OSError("no such device")

    monkeypatch.setattr(mmap, "mmap", unmappable)
    np.save(tmp_path / "x.npy", X)
    assert answer("--logits", tmp_path / "x.npy")["logits_digest"] == engine.digest(X)
    monkeypatch.setattr(files, "LARGEST_READ", 100)
    refused("--logits", tmp_path / "x.npy", saying="160 bytes; a file has at most 100")


def test_an_npy_file_that_memory_does_not_hold_is_not_read(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", full)
    np.save(tmp_path / "x.npy", X)
    done = evaluate("--logits", tmp_path / "x.npy")
    assert done.exit_code == 3
    assert done.stderr.startswith(f"Error: not enough memory: {tmp_path / 'x.npy'} has 160 bytes to map; give fewer rows")


def test_a_tensor_in_a_file_has_a_limit_of_its_own(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.zeros((2, 6)))
    monkeypatch.setattr(cli, "LIMITS", replace(cli.LIMITS, max_elements=11))
    assert answer("--logits", tmp_path / "x.npy", "--variant", "shifted")["n"] == 6
    refused("--logits", tmp_path / "x.npy", op="softmax_jacobian", saying="would have 72 elements, above 11")
    monkeypatch.setattr(cli, "LARGEST_STORED", 11)
    refused("--logits", tmp_path / "x.npy", saying="12 elements; a tensor has at most 11")


def test_an_npz_file_with_one_or_several_tensors(tmp_path):
    np.savez(tmp_path / "one.npz", anything=X)
    np.savez_compressed(tmp_path / "several.npz", logits=X, other=X[:1], targets=np.array([0, 1], dtype=np.uint8))
    assert answer("--logits", tmp_path / "one.npz")["logits_digest"] == engine.digest(X)
    several = tmp_path / "several.npz"
    assert answer("--logits", several)["logits_digest"] == engine.digest(X)
    assert answer("--logits", several, "--key", "other")["logits_digest"] == engine.digest(X[:1])
    assert len(truths("--logits", several, "--targets", several, op="cross_entropy")) == 2
    refused("--logits", several, "--key", "x", saying="no tensor 'x'; there are logits, other, targets; choose one with --key")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_a_safetensors_file(tmp_path, dtype):
    path = tmp_path / "x.safetensors"
    save_file({"x": X.astype(dtype), "y": np.array([0, 1], dtype=np.int32), "g": X[:1].astype(dtype)}, path)
    assert answer("--logits", path, "--key", "x")["logits_digest"] == engine.digest(X.astype(dtype))
    assert len(truths("--logits", path, "--key", "x", "--targets", path, "--targets-key", "y", op="cross_entropy")) == 2
    refused("--logits", path, saying="no tensor 'logits'; there are g, x, y; choose one with --key")
    refused("--logits", "1,2;3,4", "--targets", path, op="cross_entropy", saying="choose one with --targets-key")
    refused("--logits", "1", "--grad-output", path, op="softmax_vjp", saying="choose one with --grad-output-key")


@pytest.mark.parametrize(("name", "dtype"), [("F8_E4M3", ml_dtypes.float8_e4m3fn), ("F8_E5M2", ml_dtypes.float8_e5m2)])
def test_a_safetensors_file_of_8_bits(tmp_path, name, dtype):
    stored = np.array([[1.5, -2.0], [0.25, 3.0]]).astype(dtype)
    header = {"x": {"dtype": name, "shape": [2, 2], "data_offsets": [0, 4]}}
    (tmp_path / "x.safetensors").write_bytes(_safetensors(header, stored.tobytes()))
    assert answer("--logits", tmp_path / "x.safetensors")["logits_digest"] == engine.digest(stored)
    done = measure("--logits", tmp_path / "x.safetensors", "--output", tmp_path / "x.safetensors")
    assert f"2 x 2 {np.dtype(dtype).name} logits" in done.stdout


def test_the_axes_are_named_in_the_table_and_in_the_answer():
    options = ("--accumulator", "fp32", "--exp", "exp2", "--subnormals", "flush", "--fma", "--output-format", "f8_e5m2")
    done = evaluate("--logits", "1,2", "--format", "float16", *options, "--overflow", "saturate")
    told = "float32 accumulator, exp in the exp2 domain, subnormals flushed, fma, float8_e5m2 output, saturating"
    assert f"softmax: 1 x 2 logits, numpy summation, {told}\n" in done.stdout
    assert "; float16 to float8_e5m2: u = 0.000488 (output 0.125), condition 1.08 in row 0\n" in done.stdout
    correct = evaluate("--logits", "1,2", "--exp", "correct", "--accumulator", "float64")
    assert "numpy summation, float64 accumulator, correctly rounded exp\n" in correct.stdout
    axes = answer("--logits", "1,2", "--format", "float16", *options)["outcomes"][0]["arithmetic"]
    assert axes == {
        "accumulator": "float32",
        "exp": "exp2",
        "subnormals": "flush",
        "fma": True,
        "output_format": "float8_e5m2",
        "overflow": "infinity",
    }
    refused("--logits", "1", "--exp", "libm", saying="unknown exp 'libm'; known: numpy, correct, exp2")
    refused("--logits", "1", "--overflow", "saturate", saying="float16 does not saturate")


def test_logits_that_e4m3fn_does_not_hold_are_said_to_be_nan():
    done = evaluate("--logits", "1,1000;2,-inf;3,4", "--format", "float8_e4m3fn")
    assert "float8_e4m3fn: 2 logits became NaN; the truth of 2 rows is NaN" in done.stdout


def test_a_json_file_is_a_list_or_a_tensor(tmp_path):
    (tmp_path / "list.json").write_text('[[1.5, "-Infinity"], [0.25, "0x1p2"]]')
    (tmp_path / "tensor.JSON").write_text('{"dtype": "bf16", "shape": [2], "encoding": "bits", "data": [16256, 49024]}')
    assert answer("--logits", tmp_path / "list.json")["logits_digest"] == engine.digest(X)
    assert answer("--logits", tmp_path / "tensor.JSON")["logits_digest"] == engine.digest(np.array([1, -1], ml_dtypes.bfloat16))


def _npy(shape="(2,)", descr="'<f8'", body=b"\0" * 16, version=(1, 0)):
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    length = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + length + header + body


def _npz(member, content, method=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr(member, content)
    return stream.getvalue()


def _safetensors(header, body=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _twice(content):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("logits.npy", content)
        with warnings.catch_warnings(action="ignore"):
            archive.writestr("logits.npy", content)
    return stream.getvalue()


BROKEN = {
    "twice.npz": (_twice(_npy()), "two members of the same name"),
    "twice.json": (b'{"dtype": "float32", "dtype": "float64", "shape": [1], "data": [1]}', 'two members of the same name, "dtype"'),
    "deep.json": (b"[" * 100_000, "nested too deeply: tensors have at most 4 levels"),
    "digits.json": (b"[" + b"1" * 5000 + b"]", "an integer of more than 4300 digits"),
    "empty.npy": (b"", "does not begin as an .npy file does"),
    "noise.npy": (b"\xff" * 64, "does not begin as an .npy file does"),
    "version.npy": (_npy(version=(3, 0)), "version 3.0"),
    "header.npy": (_npy(shape="(2,"), ""),
    "vast.npy": (_npy(shape="(1000000000000,)"), "is not shape [1000000000000]"),
    "empty_but_vast.npy": (_npy(shape="(0, 1000000000000000000)", body=b""), "every extent is at least 1"),
    "negative.npy": (_npy(shape="(-1, -2)"), "every extent is at least 1"),
    "short.npy": (_npy(body=b"\0" * 15), "15 bytes of data"),
    "long.npy": (_npy(body=b"\0" * 17), "17 bytes of data"),
    "object.npy": (_npy(descr="'|O'", body=b"cos\nsystem\n(S'true'\ntR."), "dtype object"),
    "structured.npy": (_npy(descr="[('a', '<f8')]"), "dtype [('a', '<f8')]"),
    "complex.npy": (_npy(descr="'<c16'", shape="(1,)"), "dtype complex128"),
    "bfloat16.npy": (_npy(descr="'<V2'", shape="(8,)"), "bfloat16, 8 bits: .safetensors"),
    "long_double.npy": (_npy(descr="'<f16'", shape="(1,)"), "dtype"),
    "integers.npy": (_npy(descr="'<i8'"), "dtype int64; known for logits: float16"),
    "rank_five.npy": (_npy(shape="(1, 1, 1, 1, 2)"), "rank 5"),
    "scalar.npy": (_npy(shape="()", body=b"\0" * 8), "rank 0"),
    "noise.npz": (b"PK" + b"\xff" * 64, "not a zip file"),
    "memberless.npz": (_npz("readme.txt", "x"), "there are none"),
    "stored.npz": (_npz("x.npy", _npy(), zipfile.ZIP_STORED).replace(b"NUMPY", b"NUMPX"), "CRC"),
    "empty.safetensors": (b"", "0 bytes are too few for a .safetensors file"),
    "vast_header.safetensors": (b"\xff" * 40, "the header that they begin with"),
    "no_json.safetensors": (struct.pack("<Q", 4) + b"oops", "its header is no JSON"),
    "hole.safetensors": (_safetensors({"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"\0" * 8), "bytes 0 to 4"),
    "vast.safetensors": (
        _safetensors({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 8]}}, b"\0" * 8),
        "x: 8 bytes are not",
    ),
    "fp8.safetensors": (_safetensors({"x": {"dtype": "F8_E8M0", "shape": [1], "data_offsets": [0, 1]}}, b"\0"), "x is F8_E8M0"),
    "empty.json": (b"", "not JSON"),
    "binary.json": (b"\xff\xfe", "not UTF-8: byte 0 does not fit"),
    "nan.json": (b"[NaN]", "not a finite number"),
    "vast.json": (b"[1e999]", "not a finite number"),
    "boolean.json": (b"[true]", "true is not a number"),
    "object.json": (b'{"logits": [1]}', "is no field of this tensor"),
    "number.json": (b"1", "expected a list of numbers"),
    "ragged.json": (b"[[1], [1, 2]]", "ragged"),
    "inexact.json": (b'{"dtype": "float16", "shape": [1], "data": [0.1]}', "is no float16"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_clear_sentence(tmp_path, name):
    content, saying = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    message = refused("--logits", tmp_path / name, saying=saying)
    assert message.startswith(("Error: --logits", "Error: logits"))
    assert message.count("\n") == 1
    assert len(message) < 600


def test_cut_and_flipped_files_never_end_in_a_traceback(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.savez_compressed(tmp_path / "x.npz", logits=X)
    save_file({"logits": X}, tmp_path / "x.safetensors")
    random = np.random.default_rng(2)
    for suffix in (".npy", ".npz", ".safetensors"):
        whole = (tmp_path / f"x{suffix}").read_bytes()
        for _ in range(40):
            cut = bytearray(whole[: random.integers(len(whole) + 1)])
            for place in random.integers(max(len(cut), 1), size=2) if cut else ():
                cut[place] = random.integers(256)
            (tmp_path / f"y{suffix}").write_bytes(cut)
            done = evaluate("--logits", tmp_path / f"y{suffix}", "--variant", "shifted", "--format", "float16")
            assert done.exit_code in (0, 2), done.stderr
            assert "Traceback" not in done.stderr


def test_what_is_read_and_not_mapped_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_READ", 10_000)
    np.savez_compressed(tmp_path / "bomb.npz", logits=np.zeros(100_000), other=np.random.default_rng(0).random(1300))
    refused("--logits", tmp_path / "bomb.npz", saying="logits.npy unpacks to more than 100 times its")
    refused("--logits", tmp_path / "bomb.npz", "--key", "other", saying="other.npy unpacks to 10528 bytes; at most 10000 are read")
    (tmp_path / "large.json").write_text(json.dumps([0.5] * 10_000))
    refused("--logits", tmp_path / "large.json", saying="50000 bytes; a file has at most 10000")
    np.savez(tmp_path / "large.npz", X.repeat(1000, axis=1))
    save_file({"x": X.repeat(1000, axis=1)}, tmp_path / "large.safetensors")
    for suffix in ("npz", "safetensors"):
        assert answer("--logits", tmp_path / f"large.{suffix}", "--variant", "shifted", "--format", "float16")["n"] == 2000


def test_a_member_packed_too_tightly_is_refused_unread(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", logits=np.zeros(10_000))
    refused("--logits", tmp_path / "bomb.npz", saying="logits.npy unpacks to more than 100 times its")
    np.savez_compressed(tmp_path / "tight.npz", logits=np.tile(np.random.default_rng(0).random(50), 15)[None])
    assert answer("--logits", tmp_path / "tight.npz", "--variant", "shifted", "--format", "float16")["n"] == 750


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "folder.npy").mkdir()
    refused("--logits", tmp_path / "folder.npy", saying="not a file")
    refused("--logits", tmp_path / "none.npy", saying="No such file")
    refused("--logits", tmp_path / "none.json", saying="No such file")


# softgauge variants


def test_the_variants_are_told():
    text = run("variants", "--op", "softmax").stdout
    told = text.split("\n\n")
    assert [row.splitlines()[0] for row in told[:2]] == ["softmax/naive", "softmax/shifted, stable"]
    tiled = next(row for row in told if row.startswith("softmax/tiled"))
    for name in ("formula", "source", "hazard", "axes", "claims", "bound"):
        assert f"\n    {name}: " in tiled
    assert "\n    parameters: tile (integer, 128 if left out)" in tiled
    assert "issues" not in tiled
    assert "\n    issues: FluxML/NNlib.jl#43, microsoft/onnxruntime#2715\n" in text
    assert "log_softmax/naive" in run("variants").stdout


def test_the_variants_as_json_are_those_of_the_service():
    found = json.loads(run("variants", "--json").stdout)
    assert found == {"variants": engine.encode(engine.catalogue("variants"))}


def test_variants_of_no_op():
    done = run("variants", "--op", "sofmax")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "unknown op 'sofmax'; known: softmax, log_softmax" in done.stderr
    assert "; did you mean 'softmax'?" in done.stderr


# softgauge serve


@pytest.fixture
def listened(monkeypatch, tmp_path):
    """The settings that the service was started with; it does not listen."""
    found = []
    monkeypatch.setenv("SOFTGAUGE_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(service.app.logs, "to_stderr", lambda: None)
    monkeypatch.setattr(service.app.uvicorn, "run", lambda app, **options: found.append(app.state.settings))
    return found


def test_serve_takes_its_settings_from_the_environment_and_its_options(listened):
    assert run("serve", env={"SOFTGAUGE_PORT": "8123", "SOFTGAUGE_WORKERS": "3"}).exit_code == 0
    assert run("serve", "--host", "localhost", "--port", "0", env={"SOFTGAUGE_PORT": "8123"}).exit_code == 0
    assert [(s.host, s.port) for s in listened] == [("127.0.0.1", 8123), ("localhost", 0)]
    assert listened[0].workers == 3


def test_serve_refuses_an_address_that_others_reach(listened):
    done = run("serve", "--host", "0.0.0.0")
    assert done.exit_code == 2
    assert "refusing to listen on 0.0.0.0" in done.stderr
    assert "softgauge keys create" in done.stderr
    assert not listened
    assert run("keys", "create", "--name", "first", "--scope", "admin").exit_code == 0
    assert run("serve", "--host", "0.0.0.0").exit_code == 0
    assert listened[0].host == "0.0.0.0"


def test_serve_on_a_busy_port_is_one_clear_sentence(listened):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = run("serve", "--port", port)
    assert done.exit_code == 2
    assert done.stderr == (
        f"Error: cannot listen on 127.0.0.1, port {port}: Address already in use; choose another with --port or --host\n"
    )
    assert not listened
    assert run("serve", "--port", port).exit_code == 0  # it is free again


@pytest.mark.parametrize(
    ("arguments", "env", "saying"),
    [
        ((), {"SOFTGAUGE_PORT": "http"}, "SOFTGAUGE_PORT='http' cannot be read"),
        ((), {"SOFTGAUGE_DATABASE_URL": "mysql://db/x"}, "SQLite and PostgreSQL are what there is"),
        ((), {"SOFTGAUGE_ADMIN_KEY_FILE": "nowhere"}, "SOFTGAUGE_ADMIN_KEY_FILE='nowhere' cannot be read"),
        (("--port", "65536"), {}, "65536"),
        (("now",), {}, "unexpected extra argument"),
    ],
)
def test_serve_refuses_settings_it_cannot_read(listened, arguments, env, saying):
    done = run("serve", *arguments, env=env)
    assert done.exit_code == 2
    assert saying in done.stderr
    assert not listened


def test_limits_are_a_table_and_what_lies_beyond():
    done = run("thresholds", "--op", "softmax", "--variant", "chosen_shift(c=70000)", "--format", "fp16", "--subnormals", "flush")
    assert done.exit_code == 0, done.stderr
    assert "softmax/chosen_shift(c=70000), float16: rows of 2 logits, numpy summation, subnormals flushed\n" in done.stdout
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line}
    assert rows["equal_logits_up"] == ["never", "0", "nan", "exhaustive", "31744", "yes"]
    assert rows["ones"][:4] == ["65519", "65520", "inf", "bisection"]
    assert "\nones: the sum of 65520 ones overflows\n" in done.stdout


def test_limits_as_json_are_the_engines():
    asked = ("--op", "cross_entropy", "--variant", "fused", "--format", "e5m2", "--n", 3, "--summation", "pairwise")
    found = json.loads(run("thresholds", *asked, "--exp", "correct", "--json").stdout)
    axes = engine.Axes(exp="correct")
    assert found == engine.encode(engine.thresholds("cross_entropy", "fused", "float8_e5m2", 3, "pairwise", axes))


@pytest.mark.parametrize(
    ("change", "saying"),
    [
        (("--n", 0), "n is 0; a row has 1 to 1048576 logits here"),
        (("--variant", "chosen_shift(c=one)"), "c is 'one'; it is a number"),
        (("--variant", "best"), "unknown variant 'best' of softmax"),
        (("--overflow", "saturate"), "float16 does not saturate"),
    ],
)
def test_no_such_limits(change, saying):
    done = run("thresholds", "--op", "softmax", "--variant", "naive", "--format", "float16", *change)
    assert (done.exit_code, done.stdout) == (2, "")
    assert saying in done.stderr


@pytest.mark.skipif(not REAL.exists(), reason="the authors' data, ../shared/data/bhh-mnist, is not there")
def test_the_paper_prints_what_the_readme_shows():
    done = run("paper", "bhh", "--data", REAL)
    assert done.exit_code == 0, done.stderr
    printed = "\n".join(line.rstrip() for line in done.stdout.splitlines())
    assert f"$ softgauge paper bhh --data logits.npy\n{printed}\n```" in (ROOT / "README.md").read_text()


def test_the_paper_as_json():
    done = run("paper", "bhh", "--data", "0,0;1,-1", "--json")
    found = json.loads(done.stdout)["experiments"]
    assert [(row["format"], row["rows"], row["unit"], row["survived"]) for row in found] == [
        ("float16", 2, 4.88e-4, 2),
        ("bfloat16", 2, 3.91e-3, 2),
    ]
    assert found[0]["algorithms"][0]["least_sum"] is None


@pytest.mark.parametrize(
    ("data", "saying"), [("1,2,x", "is not a number"), ("nan,1;0,0", "a logit is not finite"), ("no.npy", "no.npy")]
)
def test_no_data_for_the_paper(data, saying):
    done = run("paper", "bhh", "--data", data)
    assert done.exit_code == 2
    assert saying in done.stderr


# Params


def test_params_are_options():
    half = truths("--logits", "0,0,7", "--mask", "1,1,0", "--sink", "0", "--scale", "0.3", "--softcap", "2")
    assert half == pytest.approx([1 / 3, 1 / 3, 0])
    given = ("--logits", "0,0;5,1;2,3", "--targets", "0,0,-1", "--ignore-index", "-1", "--reduction", "mean", "--weights", "1,2")
    found = answer(
        *given, "--label-smoothing", "0.5", "--z-loss", "1", "--format", "float64", "--variant", "fused", op="cross_entropy"
    )
    assert found["outcomes"][0]["metrics"]["n"] == 1
    assert found["outcomes"][0]["metrics"]["max_ulp"] < 8


def test_the_head_names_the_params():
    shown = evaluate("--logits", "1,2", "--sink", "0.5", "--mask", "1,1", "--format", "float16").stdout
    assert shown.startswith("softmax: 1 x 2 logits, numpy summation, mask, sink 0.5\n")
    mean = evaluate("--logits", "1,2;3,4", "--targets", "0,1", "--reduction", "mean", op="cross_entropy").stdout
    assert line(mean, "of").split() == ["of", "1"] * 3
    assert line(mean, "variant").split()[-1] == "element"
    measured = run("measure", "--op", "softmax", "--logits", "1,1", "--scale", "0.5", "--output", "0.5,0.5").stdout
    assert "float64 logits, scale 0.5" in measured


@pytest.mark.parametrize("name", ["mask.npy", "mask.json", "numbers.npy"])
def test_a_mask_from_a_file(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".json"):
        path.write_text("[true, false]")
    else:
        np.save(path, np.array([True, False] if name == "mask.npy" else [1, 0]))
    assert truths("--logits", "1,2", "--mask", path) == [1, 0]


def test_params_that_cannot_be_are_refused_by_their_options(tmp_path):
    refused("--logits", "1,2", "--mask", "1,2", saying="--mask: 2 is neither 0 (masked) nor 1 (kept)")
    refused("--logits", "1,2", "--mask", "1", saying="--mask: 1: mask has shape [1]")
    refused("--logits", "1,2", "--scale", "0", saying="scale is 0.0; it is a finite number above 0")
    refused(
        "--logits", "1,2", "--targets", "0", "--weights", "1", saying="--weights: 1: weights have shape [1]", op="cross_entropy"
    )
    refused("--logits", "1,2", "--reduction", "sum", saying="softmax takes no reduction")
    np.save(tmp_path / "logits.npy", np.array([True, False]))
    refused("--logits", tmp_path / "logits.npy", saying="dtype bool; known for logits")


def test_rows_are_without_truth_after_params_only():
    def lines(*arguments, op="softmax"):
        return evaluate(*arguments, "--format", "float16", op=op).stdout

    assert "has a NaN" not in lines("--logits", "nan,1", "--mask", "0,1")
    assert "1 row has a NaN or +inf logit, or only -inf" in lines("--logits", "1,1", "--mask", "0,0")
    assert "has a NaN" not in lines("--logits", "-inf,-inf", "--sink", "1")
    assert "has a NaN" not in lines("--logits", "inf,1", "--softcap", "1")
    assert "has a NaN" not in lines("--logits", "nan,1", "--targets", "-1", "--ignore-index", "-1", op="cross_entropy")
    assert "1 finite logit became infinite\n" in lines("--logits", "70000,1", "--softcap", "1")
    sums = run("measure", "--op", "logsumexp", "--logits", "nan,1;1,1", "--reduction", "sum", "--output", "nan").stdout
    assert "the truth there is NaN or infinite, as the output must be\n" in sums


def test_a_bound_that_tells_nothing_can_stop_a_gate(tmp_path):
    """All zeros pass the bound of 16-bit sums in order of a long row; that it says nothing need not."""
    np.save(tmp_path / "x.npy", np.zeros((1, 4000), np.float16))
    np.save(tmp_path / "p.npy", np.zeros((1, 4000), np.float16))
    asked = ("measure", "--op", "softmax", "--logits", tmp_path / "x.npy", "--output", tmp_path / "p.npy", "--fail-on")
    assert [run(*asked, level).exit_code for level in ("mismatch", "exceeded", "unbounded")] == [0, 0, 1]
    right = ("measure", "--op", "softmax", "--logits", "0,0", "--output", "0.5,0.5", "--fail-on", "unbounded")
    assert run(*right).exit_code == 0
    assert run(*right[:6], "0.5,nan", "--fail-on", "unbounded").exit_code == 1


# ---- tolerance -------------------------------------------------------------------------------------------------------


def test_a_tolerance_is_told_with_what_it_misses():
    done = run("tolerance", "--op", "softmax", "--format", "fp32", "--n", "1000", "--accumulator", "float16")
    assert done.exit_code == 0, done.stderr
    first, declared, how, *calls, missed, zeros = done.stdout.splitlines()
    found = engine.tolerance("softmax", "float32", 1000, {"accumulator": "float16"})
    assert first.startswith(f"softmax of any row of 1000 logits, output float32: {found.ulp:.4g} ULP; rtol ")
    assert "accumulator float16" in declared
    assert "truth in float64" in how
    assert [call.split("(")[0].strip() for call in calls] == ["numpy.testing.assert_allclose", "torch.testing.assert_close"]
    for call in calls:
        told = float(call.partition("rtol=")[2].partition(",")[0]), float(call.partition("atol=")[2].rstrip(")"))
        assert all(ours >= exact for ours, exact in zip(told, (found.rtol, found.atol), strict=True))
    assert missed.startswith("of a result of 0.001 it misses relative errors up to ")
    assert zeros == "an output of zeros does not pass it"
    asked = ("--op", "log_softmax", "--format", "bfloat16", "--logits", "1,2,3")
    of_rows = run("tolerance", *asked).stdout
    assert of_rows.startswith("log_softmax of 1 row of 3 logits, output bfloat16: ")
    assert "caught: zeros, uniform" in of_rows
    answer = json.loads(run("tolerance", *asked, "--json").stdout)
    problem = engine.Problem("log_softmax", np.array([1.0, 2, 3]))
    assert answer == engine.encode(engine.tolerance("log_softmax", "bfloat16", problem=problem))
    none = run("tolerance", "--op", "softmax", "--format", "bfloat16", "--n", "3000", "--compute", "float8_e5m2").stdout
    assert none.endswith("error theory allows this arithmetic anything here: no tolerance will do\n")
    some = run("tolerance", "--op", "log_softmax", "--format", "float8_e4m3fn", "--logits", "0,10000").stdout
    assert "rtol 6.256e-02, atol Infinity\n" in some
    assert some.endswith("no tolerance will do\n")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--n", "0"), "n is 0"),
        ((), "n is missing"),
        (("--n", "3", "--targets", "1"), "--targets belongs to logits: give --logits"),
        (("--n", "3", "--compute", "float17"), "did you mean 'float16'?"),
        (("--n", "4", "--logits", "1,2,3"), "rows of 3"),
    ],
)
def test_what_is_no_question_about_tolerance_is_a_usage_error(asked, said):
    done = run("tolerance", "--op", "softmax", "--format", "float32", *asked)
    assert done.exit_code == 2
    assert said in done.stderr


# Verdicts

JUDGED = ("verify", "--op", "softmax", "--logits", "0,0", "--output", "0.5,0.5")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--policy", "max_ulp", "--set", "ulps=1", "--set", "ulps=1e6"), "--set ulps is given twice, as 1.0 and 1e6"),
        (("--set", "ulps"), "--set 'ulps' is not NAME=VALUE, such as ulps=4"),
        (("--json", "--markdown"), "give one of them"),
        (("--url", "http://127.0.0.1:1", "--processes", "2"), "--url asks a service: leave them out"),
        (("--url", "http://127.0.0.1:1", "--audit", "9"), "--url asks a service: leave them out"),
        (("--reference", "1,2,3"), "Error: --reference: 1,2,3: reference has shape [3]"),
        (("--repeat", "0.5,0.5", "--repeat", "1,2,3"), "Error: --repeat: 1,2,3: outputs.1 is float64 [3]"),
        (("--policy", "flash.2x"), "Error: policy flash.2x compares with the errors of a reference; give --reference: an output"),
        (("--output", "1,2,3"), "Error: --output: 1,2,3: output has shape [3]"),
    ],
)
def test_what_cannot_be_judged_is_a_usage_error_that_names_its_option(asked, said):
    done = run(*JUDGED, *asked)
    assert (done.exit_code, done.stdout, said in done.stderr) == (2, "", True), done.output


def test_a_service_is_asked_for_what_the_options_say(tmp_path, monkeypatch):
    mask, weights, asked = np.ones((300, 400), bool), np.ones(400, np.float32), []
    for name, tensor in (("x", np.zeros((300, 400))), ("mask", mask), ("weights", weights)):
        np.save(tmp_path / f"{name}.npy", tensor)
    monkeypatch.setattr(cli.client, "_multipart", lambda request, tensors: asked.append((json.loads(request), tensors)) or ("", []))
    monkeypatch.setattr(cli.client, "_asked", lambda *_: (200, {}, b'{"verdict": "inconclusive"}'))
    files = [f"--{name}={tmp_path / name}.npy" for name in ("mask", "weights")]
    x, output = f"--logits={tmp_path / 'x.npy'}", f"--output={tmp_path / 'x.npy'}"
    options = ("--sink", "1", "--worst", "3", "--sample-rows", "2", "--invariant", "argmax", "--axis", "1", "--json")
    done = run("verify", "--op", "softmax", x, output, *files, *options, "--url", "http://host")
    assert done.exit_code == 4, done.output
    request, tensors = asked[0]
    assert request == {
        "op": "softmax", "gate": {"policy": "bound"}, "nonfinite": "ieee", "axis": 1, "params": {"sink": 1.0},
        "include": ["argmax"], "worst": 3, "sample": {"rows": 2, "seed": 0},
    }  # fmt: skip
    assert {name: (t.dtype, t.shape, bytes(t.data)) for name, t in tensors.items() if name in ("mask", "weights")} == {
        "mask": ("bool", (300, 400), mask.tobytes()),
        "weights": ("float32", (400,), weights.tobytes()),
    }


@pytest.mark.parametrize("charset", ["utf-8", "ascii"])
def test_markdown_is_written_in_any_encoding(charset):
    done = CliRunner(charset=charset).invoke(cli.main, [*JUDGED, "--output", "0,0", "--markdown"])
    assert done.exit_code == 1
    mark = "\N{CROSS MARK}".encode(charset, "backslashreplace")
    assert done.stdout_bytes.startswith(b"### " + mark + b" fail: softmax of 1 row")


def test_a_parameter_of_a_family_is_given_once():
    done = run("evaluate", "--op", "softmax", "--family", "gaussian", "--param", "sigma=1", "--param", "sigma=2")
    assert (done.exit_code, "--param sigma is given twice, as 1.0 and 2" in done.stderr) == (2, True)
