"""What README.md says is so: its tables are the registries', its commands give the answers shown.

`python -P tests/test_docs.py` writes the answers anew; review them as a diff.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import http.client
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from pydantic import BaseModel

import engine
from engine import bounds
from engine.formats import FORMATS
from engine.limits import BUDGET, LONGEST, NEIGHBOURS, QUESTIONS
from engine.model import Metrics
from engine.ops import OPS
from engine.outcome import FAST_FROM
from engine.survey import LONGEST_AUDIT
from engine.truth import SERVED_BITS, fast
from engine.variants import CLAIMS, LEFT_OUT, of_op
from service import bodies, cli, client, files, schemas
from service.app import create_app
from service.settings import Limits, Settings

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DEFAULTS: list[Settings | Limits] = [Settings(), Limits()]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
NUMBER = re.compile(r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?")


def text() -> str:
    return README.read_text(encoding="utf-8")


def without_blocks() -> str:
    """The page without its code, where # starts a comment and brackets are no links."""
    return BLOCK.sub("", text())


# Tables


def table(heading: str, place: int = 0) -> list[list[str]]:
    """The cells of a table under a heading, without the row of names; code marks and backslashes taken off."""
    section = re.split(r"^#+ ", re.split(rf"\n##+ {re.escape(heading)}\n", without_blocks())[1], flags=re.M)[0]
    tables = re.findall(r"(?:^\|.*\|\n)+", section, re.M)
    rows = [re.split(r"(?<!\\) ?\| ?", line)[1:-1] for line in tables[place].splitlines()]
    assert rows[1] == ["---"] * len(rows[0])
    return [[re.sub(r"`([^`]*)`", r"\1", cell).replace("\\*", "*") for cell in row] for row in rows[2:]]


def plain(value: object) -> str:
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value).replace("`", "")


def test_ops() -> None:
    wanted = [[row["name"], row["formula"], ", ".join(row["tensors"]), row["output"]] for row in engine.catalogue("ops")]
    assert table("Ops") == wanted


def test_params() -> None:
    assert table("Params") == [[row["name"], ", ".join(row["params"])] for row in engine.catalogue("ops")]


def test_variants() -> None:
    rows = engine.catalogue("variants")
    wanted = [[f"{row['op']}/{row['name']}", row["formula"], "yes" if row["stable"] else "no", row["hazard"]] for row in rows]
    assert table("Variants") == wanted


def test_parameters_claims_and_what_is_left_out() -> None:
    wanted = [
        [f"{row.op}/{row.name}", name, p.type, plain(p.default), p.range]
        for op in OPS
        for row in of_op(op)
        for name, p in row.parameters.items()
    ]
    assert table("Variants", 1) == wanted
    assert table("Variants", 2) == [list(item) for item in CLAIMS.items()]
    assert table("Variants", 3) == [list(item) for item in LEFT_OUT.items()]


def test_formats() -> None:
    figures = ("bits", "precision", "unit_roundoff", "largest", "smallest_normal", "smallest_subnormal", "exp_limit")
    rows = engine.catalogue("formats")
    assert table("Formats") == [[row["name"], ", ".join(row["aliases"]), *(plain(row[name]) for name in figures)] for row in rows]


def test_summations() -> None:
    assert table("Summations") == [[row["name"], row["description"]] for row in engine.catalogue("summations")]


def test_input_families() -> None:
    def parameters(row: dict[str, dict[str, object]]) -> str:
        return ", ".join(f"{name} ({plain(values['default'])})" for name, values in row.items())

    rows = engine.catalogue("inputs")
    assert table("Input families") == [[row["name"], parameters(row["parameters"]), plain(row["description"])] for row in rows]


def described(model: type[BaseModel], prefix: str = "") -> list[list[str]]:
    return [[prefix + (row.alias or name), row.description or ""] for name, row in model.model_fields.items()]


def test_metrics() -> None:
    outcome = engine.evaluate(engine.Problem("softmax", engine.generate("ramp", 1, 2, 0))).outcomes[0]
    assert table("Metrics") == described(schemas.Metrics)
    assert [name for name, _ in table("Metrics")] == [field.name for field in fields(outcome.metrics)]


def test_what_an_answer_holds() -> None:
    parts: dict[str, type[BaseModel]] = {
        "worst[].": schemas.Worst,
        "faults[].": schemas.Fault,
        "bound.": schemas.Bound,
        "input_rounding.": schemas.InputRounding,
        "certificate.": schemas.Certificate,
    }
    wanted = [row for prefix, model in parts.items() for row in described(model, prefix)]
    wanted += [row for row in described(schemas.TruthResponse) if row[0] in ("hex", "radius_log2", "logits_digest")]
    assert table("What an answer holds") == wanted + described(schemas.Engine, "engine.")


def kind(schema: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "anyOf" in schema:
        return " or ".join(map(kind, schema["anyOf"]))
    if "items" in schema:
        return f"list of {kind(schema['items'])}"
    if values := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return ", ".join(map(json.dumps, values))
    return str(schema["$ref"].split("/")[-1] if "$ref" in schema else schema["type"])


def request_fields(model: type[BaseModel], of: str, prefix: str = "") -> dict[str, list[str]]:
    schema = model.model_json_schema()
    return {
        prefix + name: [of, kind(row), "required" if name in schema.get("required", ()) else json.dumps(row["default"])]
        for name, row in schema["properties"].items()
    }


def test_fields_of_a_request() -> None:
    wanted: dict[tuple[str, ...], list[str]] = {}
    for model in schemas.REQUESTS:
        for name, (of, *told) in request_fields(model, model.__name__.removesuffix("Request").lower()).items():
            wanted.setdefault((name, *told), []).append(of)
    rows = {(name, "all" if len(of) == len(schemas.REQUESTS) else ", ".join(of), *told) for (name, *told), of in wanted.items()}
    nested = ((schemas.Inputs, "all", "inputs."), (schemas.Params, "all", "params."), (schemas.Sample, "verify", "sample."))
    for inner, of, prefix in nested:
        rows |= {(name, *told) for name, told in request_fields(inner, of, prefix).items()}
    assert {tuple(row[:4]) for row in table("Fields of a request")} == rows


def test_policies() -> None:
    assert list(table("A verdict")) == [[row["name"], row["kind"], row["rule"]] for row in engine.catalogue("policies")]


@pytest.mark.parametrize(
    ("op", "elements", "formats", "variants"),
    [
        ("softmax", 170_000, ["float16", "float32", "float64"], None),
        ("logsumexp", 900_000, ["float16", "float32", "float64"], None),
        ("log_softmax", 650_000, ["float16", "float32", "float64"], None),
        ("softmax", 2_000_000, ["float16", "float32", "float64"], ["naive", "shifted"]),
    ],
)
def test_about_how_much_one_request_may_ask_for(op: str, elements: int, formats: list[str], variants: list[str] | None) -> None:
    problem = engine.Problem(op, np.zeros((elements // 1000, 1000)))
    seconds = engine.estimate(problem, formats=formats, variants=variants)
    assert 0.85 * Limits().estimate_seconds < seconds <= Limits().estimate_seconds
    assert f"{elements:,}" in text()


def test_how_the_truth_is_computed() -> None:
    def shown(bound: float) -> str:
        return f"2^{math.ceil(round(10 * math.log2(bound), 6)) / 10:g}"

    wanted = [[tier.name, shown(max(tier.bound, tier.log))] for tier in fast.TIERS]
    assert [[row[0], row[2]] for row in table("How the truth is computed")] == [*wanted, ["T3", f"2^-{SERVED_BITS}"]]
    prose = " ".join(text().split("### How the truth is computed")[1].split("\n### ")[0].split())
    assert f"From {FAST_FROM} logits" in prose
    assert f"none longer than {LONGEST_AUDIT:,}" in prose
    assert f"a Jacobian of more than {fast.CHUNK:,} logits" in prose
    assert f"sums of exponentials to 2^{math.log2(fast.T0.total):g} " in prose
    assert f"logits of 2^{math.log2(fast.HUGE):g} or more in {', '.join(fast.LOGARITHMIC[:-1])} and {fast.LOGARITHMIC[-1]}" in prose


@pytest.mark.parametrize(
    ("op", "least", "most", "needed"),
    [("cross_entropy", 2.0**-900, 2.0**20, 2.0**-60), ("softmax_vjp", 2.0**-300, 2.0**90, None)],
)
def test_rows_that_mpmath_takes_at_once(op: str, least: float, most: float, needed: float | None) -> None:
    def proven(*extra: float) -> bool:
        return bool(fast.within(op, np.zeros((1, 2)), np.array([extra]))[0])

    assert proven(0.0, most)
    assert proven(least, 1.0)
    assert not proven(0.0, 2 * most)
    assert not proven(least / 2, 1.0)
    assert proven(0.0, 0.0) == (needed is None)
    assert needed is None or not proven(0.0, needed)
    assert all(f"2^{math.log2(limit):g}" in text() for limit in (least, most, needed) if limit)


def test_limits() -> None:
    assert table("Limits") == [list(item) for item in QUESTIONS.items()]
    prose = " ".join(text().split("\n## Limits\n")[1].split("\n## ")[0].split())
    assert f"no more than 2^{math.log2(BUDGET):g} logits" in prose
    assert f"up to {NEIGHBOURS:,} numbers on each side" in prose
    assert f"within 2^{math.log2(LONGEST):g} ones" in prose
    assert f"of {math.log2(2 * LONGEST):g} significant bits or more" in prose


def test_no_constant_shift_has_no_limits() -> None:
    rows = table("Limits", 1)
    for name, *shown in rows:
        found = {row.name: row for row in engine.thresholds("softmax", name, "float32").limits}
        ends = [found["equal_logits_down"], found["equal_logits_up"]]
        assert shown == ["none" if row.next is None else plain(row.value) for row in ends]
    windows = [float(high) - float(low) for _, low, high in rows[:-1]]
    assert max(windows) - min(windows) < 1e-3
    assert rows[-1] == ["shifted", "none", "none"]


def variables(defaults: Settings | Limits) -> list[str]:
    return [row.name for row in fields(defaults) if row.name not in ("limits", "worker_command")]


FILES = ("database_url", "database_password_file", "admin_key_file")


def test_settings_and_limits() -> None:
    words = {"workers": "the number of processors", "allowed_hosts": "none", **dict.fromkeys(FILES, "none")}
    for place, defaults in enumerate(DEFAULTS):
        wanted = [[f"SOFTGAUGE_{name.upper()}", words.get(name, plain(getattr(defaults, name)))] for name in variables(defaults)]
        assert [row[:2] for row in table("Settings", place)] == wanted


def test_every_variable_named_is_one_that_is_read() -> None:
    listed = {row[0] for place in (0, 1) for row in table("Settings", place)}
    of_the_client = {row[0]: row[1] for row in table("From a test-suite")}
    assert set(re.findall(r"SOFTGAUGE_[A-Z]+", (ROOT / "service/client.py").read_text())) == of_the_client.keys()
    assert of_the_client["SOFTGAUGE_URL"] == client.DEFAULT_URL
    assert set(re.findall(r"SOFTGAUGE_[A-Z_]*[A-Z]", text())) == listed | of_the_client.keys()
    samples = {"HOST": "localhost", "DATA_DIR": "x", "ALLOWED_HOSTS": "a", "MAX_RANK": "3"}
    read = Settings.from_environment({name: samples.get(name.removeprefix("SOFTGAUGE_"), "7") for name in listed})
    given: list[Settings | Limits] = [read, read.limits]
    for before, after in zip(DEFAULTS, given, strict=True):
        assert [name for name in variables(before) if getattr(before, name) == getattr(after, name)] == []


def kinds() -> Iterator[str]:
    """The kinds of findings in the source: what Finding is made of, and what is returned as (kind, detail) or (verdict, kind)."""

    def either(node: ast.expr | None) -> list[ast.expr | None]:
        return [node.body, node.orelse] if isinstance(node, ast.IfExp) else [node]

    for name in ("verdict", "diagnosis"):
        for node in ast.walk(ast.parse((ROOT / f"engine/{name}.py").read_text())):
            said: list[ast.expr | None] = []
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Finding":
                said = either(node.args[0])
            elif isinstance(node, ast.Return):
                pairs = [value.elts for value in either(node.value) if isinstance(value, ast.Tuple) and len(value.elts) == 2]
                said = [pair[name == "verdict"] for pair in pairs]
            yield from (row.value for row in said if isinstance(row, ast.Constant) and isinstance(row.value, str) and row.value)


def test_findings() -> None:
    listed = [row[0] for row in table("Findings")]
    assert len(set(listed)) == len(listed)
    assert set(listed) == set(kinds())


def test_endpoints() -> None:
    listed = {row[0] for row in table("The HTTP API")}
    document = create_app(Settings()).openapi()
    served = {f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item}
    pages = {"GET /", "GET /docs", "GET /openapi.json", "GET /projects"}
    assert listed == served | pages
    assert {tag for item in document["paths"].values() for row in item.values() for tag in row["tags"]} == {
        row["name"] for row in document["tags"]
    }
    assert {item["post"]["tags"][0] for item in document["paths"].values() if "post" in item} == {"compute", "runs", "operation"}


def test_statuses_and_their_bound() -> None:
    assert [row[0] for row in table("What a status means")] == ["unstable", "inaccurate", "unbounded", "accurate"]
    prose = text().split("## What a status means")[1].split("\n## ")[0]
    formula, theta = bounds.rule("softmax/shifted").split("; ")
    assert f"<= {formula}\n" in prose
    assert f"{theta}," in prose
    assert bounds.numpy_ulps(FORMATS["float32"]) == bounds.numpy_ulps(FORMATS["float64"]) == 4
    assert bounds.stable("softmax", FORMATS["float16"]) == bounds.Declared(
        "softmax/shifted", "float16", "float16", "float16", "sequential", 2.0, 2.0, 3
    )


def test_exit_statuses() -> None:
    rows = dict(table("The command line"))
    assert list(rows) == ["0", "1", "2", "3", "4", "130"]
    for command in (cli.evaluate, cli.measure):
        (option,) = (row for row in command.params if row.name == "fail_on")
        assert isinstance(option.type, click.Choice)
        assert all(f"--fail-on {choice}" in rows["1"] for choice in option.type.choices)


def test_how_many_logits_a_body_holds() -> None:
    held = Limits().max_body_bytes // 4 * 3
    prose = " ".join(text().split())
    assert f"about {held // 4 // 1000 * 1000:,} logits of float32, {held // 2 // 1000 * 1000:,} of 16 bits" in prose


def test_what_files_the_command_line_reads() -> None:
    assert (cli.LARGEST_STORED, files.LARGEST_READ) == (2**31, 256 * 2**20)
    refusal = str(bodies._most(bodies.JSON, Limits()).exceeded())
    prose = " ".join(text().split())
    for said in (refusal, prose):
        assert "2^31 elements" in said
        assert "256 MiB" in said


def measured(output: list[float], logits: list[float], op: str = "softmax") -> Metrics:
    return engine.measure(engine.Problem(op, np.array([logits])), np.array([output])).metrics


@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_the_formula_of_kl(op: str) -> None:
    x, c = np.array([0.0, 1.0, 3.0]), np.array([0.25, 0.25, 0.75])
    p = np.exp(x) / np.exp(x).sum()
    w = np.log(c / p)
    wanted = c - p - p * w if op == "softmax" else p * (np.exp(w) - 1 - w)
    kl = measured(list(c if op == "softmax" else np.log(c)), list(x), op).kl
    assert kl is not None
    assert kl.worst == pytest.approx(wanted.sum(), rel=1e-5)


def test_what_row_figures_do_not_see() -> None:
    found = measured([0.5, 0.5, 0.5], [0.0, 0.0, -1000.0])  # R of the last is 0
    assert found.kl is not None
    assert (found.kl.worst, found.argmax_preserved, found.underflow_count) == (0.0, 1, 0)
    doubled = measured([1.0, 1.0], [0.0, 0.0])
    assert doubled.backward_error is not None
    assert (doubled.backward_error.worst, doubled.sum_defect) == (0.0, 1.0)
    nothing = measured([np.nan, 0.5], [0.0, 0.0])
    assert (nothing.kl, nothing.total_variation, nothing.backward_error, nothing.sum_defect) == (None, None, None, None)
    right = measured([1.0, 0.0], [0.0, -1000.0])
    assert (right.correctly_rounded, right.underflow_count, right.underflow_premature, right.false_zero_count) == (2, 1, 0, 0)


def test_verbs() -> None:
    made = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {row[0].removeprefix("make ") for row in table("Development")} == made
    assert set(re.findall(r"make ([a-z]+)", " ".join(re.findall(r"`(make [^`]*)`", text())))) <= made


def test_options_named_exist() -> None:
    commands: list[list[str]] = [[], ["paper", "bhh"], *([name] for name in cli.main.commands)]
    helps = "".join(CliRunner().invoke(cli.main, [*command, "--help"]).stdout for command in commands)
    said = text().split("## The command line")[1].split("\n## ")[0]
    for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", said):
        assert re.search(rf"{option}\b", helps), option


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", without_blocks()):
        assert target.startswith("https://doi.org/") or (ROOT / target).exists(), target


# Commands


@dataclass(frozen=True)
class Command:
    """A shell block; the answer shown in the block after it, or None; where that answer stands in the page."""

    script: str
    shown: str | None
    start: int
    end: int


def commands() -> list[Command]:
    page = text()
    blocks = list(BLOCK.finditer(page))
    found = []
    for block, after in zip(blocks, [*blocks[1:], None], strict=True):
        answered = after is not None and after[1] != "sh" and not page[block.end() : after.start()].strip()
        if block[1] == "sh":
            found.append(Command(block[2], after[2], *after.span(2)) if after and answered else Command(block[2], None, 0, 0))
    return found


COMMANDS = [command for command in commands() if not command.script.startswith("make ")]


def carried_out(script: str, port: int) -> str:
    """What a shell block prints, with the service on another port and this environment's own programs first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR")}
    script = script.replace("http://127.0.0.1:8000/", f"http://127.0.0.1:{port}/").replace(".venv/bin/", "")
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env={**env, "PATH": path}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()) + "\n"


@contextlib.contextmanager
def serving(log: Path) -> Iterator[int]:
    """The port of a service that `softgauge serve` runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "softgauge"), "serve", "--port", str(port)]
    with log.open("w") as lines:
        process = subprocess.Popen(command, cwd=log.parent, stderr=lines)
    try:
        wait_until_ready(process, port)
        yield port
    finally:
        process.terminate()
        process.wait(20)


def wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(600):
        assert process.poll() is None, "the service did not start"
        with (
            contextlib.suppress(OSError),
            contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection,
        ):
            connection.request("GET", "/health/ready")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.05)
    raise TimeoutError


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with serving(tmp_path_factory.mktemp("docs") / "log") as found:
        yield found


@functools.cache
def same_processor() -> bool:
    """Whether the figures shown were made where the last places are the same as here."""
    return re.search(re.escape(engine.fingerprint()) + r"(?![\w+])", text()) is not None


def same(shown: str, given: str) -> bool:
    """Equal; where the processor is not that of the page, figures may differ in their last places, and columns in width."""
    if same_processor():
        return shown == given
    shown, given = elsewhere(shown), elsewhere(given)
    figures = zip(NUMBER.findall(shown), NUMBER.findall(given), strict=False)
    near = all(math.isclose(float(a), float(b), rel_tol=0.01, abs_tol=2) for a, b in figures)
    return near and NUMBER.sub("0", shown) == NUMBER.sub("0", given)


def elsewhere(answer: str) -> str:
    """What of an answer does not depend on the processor, but for the last places of its numbers."""
    return re.sub(r"[ ─]+", " ", re.sub(r"numpy [\d.]+ [A-Z][\w+]*", "fingerprint", answer))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.script.split(" -H ")[0].strip())
def test_a_command_gives_the_answer_shown(command: Command, port: int) -> None:
    if "curl " in command.script and not shutil.which("curl"):
        pytest.skip("there is no curl here")
    assert command.shown is not None, "a command without its answer"
    if "fingerprint()" not in command.script:  # that one differs elsewhere, and says so
        given = carried_out(command.script, port)
        assert same(command.shown, given), given


@pytest.mark.parametrize(
    ("other", "is_same"), [("a 1.0001 3", True), ("a  1 3", True), ("a 1 7", False), ("b 1 3", False), ("a 1 3 4", False)]
)
def test_elsewhere_last_places_may_differ_and_nothing_else(monkeypatch: pytest.MonkeyPatch, other: str, is_same: bool) -> None:
    monkeypatch.setattr(sys.modules[__name__], "same_processor", lambda: False)
    assert same("a 1 3", other) == is_same


def rewritten(port: int) -> str:
    """README.md with the answers that its commands give here."""
    page = text()
    for command in reversed(COMMANDS):
        page = page[: command.start] + carried_out(command.script, port) + page[command.end :]
    return page


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder) / "log") as here:
        README.write_text(rewritten(here), encoding="utf-8")
