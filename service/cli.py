"""The command line: `softgauge serve`, and `softgauge evaluate`, `measure`, `verify` and others, which need no server.

Exit status: 0 done, or the verdict is pass; 1 what --fail-on names, or fail, or regressed; 2 what was asked cannot be done as
written; 3 it could not be finished (a failure of ours, too little memory, no service); 4 inconclusive or incomparable; 130
interrupted.
"""

from __future__ import annotations

import datetime
import errno
import getpass
import json
import math
import os
import re
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

import engine
from service import baseline as baselines
from service import check as checking
from service import check_reports, client, files, remote, reports, repro, suite, tensors
from service.errors import quoted
from service.exits import Failed, Refused
from service.settings import Limits, Settings, SettingsError
from service.split import Map, SplitError, split

Result = TypeVar("Result")

LARGEST_STORED = 2**31  # elements of a tensor in a file
LIMITS = replace(Limits(), max_elements=10_000_000)  # of a tensor that is made here, and of an output larger than its logits
LARGE = 20_000_000  # logits from which on it pays to start a process for each core
BLOCK = 2**20  # logits looked at together
PLAIN_WIDTH = 120  # characters, at which the elements of an array go on in the next line
WIDEST = 1 << 16  # characters, more than any table has
EXPENDABLE = (
    "underflowed", "overflowed", "rel", "mean ULP", "max rel", "logit",
    "bound", "tried", "search", "mean of", "sums", "algorithm",
)  # fmt: skip
"""Columns that a terminal too narrow for a table goes without, in this order, by the first lines of their headings."""
STYLES = {"accurate": "green", "unbounded": "cyan", "inaccurate": "yellow", "unstable": "red"}
FAILING = ["unstable", "inaccurate", "unbounded"]
"""Statuses that may end a command with 1, the worst first."""
_SPELLED = {"nan": "NaN", "inf": "Infinity", "infinity": "Infinity"}


class Commands(click.Group):
    """The group, which tells what was refused from what failed, and loads what needs a database only where it is asked for."""

    later = ("keys", "projects")

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command by name."""
        return sorted([*super().list_commands(ctx), *self.later])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One of them."""
        if cmd_name not in self.later:
            return super().get_command(ctx, cmd_name)
        from service import admin

        found: click.Command = getattr(admin, cmd_name)
        return found

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; end with status 3 on what could not be finished, never with the 1 of --fail-on."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            click.echo("softgauge: interrupted", err=True)
            raise click.exceptions.Exit(130) from None
        except MemoryError as error:
            detail = f"not enough memory{f': {error}' * bool(str(error))}"
            raise Failed(f"{detail}; give fewer rows, fewer --processes, or more memory (ulimit -v)") from None
        except Exception as error:  # noqa: BLE001  the last line of defence: whatever it is, the status must be 3
            if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ENOSPC, errno.EFBIG):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
                if error.errno != errno.EPIPE:
                    click.echo(f"softgauge: the answer is not complete: {error.strerror}", err=True)
            else:
                traceback.print_exc()
                click.echo("softgauge: an internal failure; the fault is not in what was asked", err=True)
            raise click.exceptions.Exit(3) from None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(engine.VERSION, prog_name="softgauge")
def main() -> None:
    """How far a softmax or cross-entropy computation is from the certified truth, and why."""


@main.command()
@click.option("--host", help="Address to listen on.  [default: SOFTGAUGE_HOST, else 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on.  [default: SOFTGAUGE_PORT, else 8000]")
def serve(host: str | None, port: int | None) -> None:
    """Run the HTTP service. Its settings are read from the environment (SOFTGAUGE_...)."""
    from service.app import serve as listen  # a second of imports that evaluate does not need

    given: dict[str, Any] = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    try:
        settings = replace(Settings.from_environment(os.environ), **given)
        _check_address(settings.host, settings.port)
        listen(settings)
    except SettingsError as error:
        raise Refused(str(error)) from None


def _check_address(host: str, port: int) -> None:
    """Refuse what cannot be listened on before anything starts: uvicorn would log it and end with the status of --fail-on."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        detail = f"cannot listen on {host}, port {port}: {error.strerror or error}"
        raise Refused(f"{detail}; choose another with --port or --host") from None


# ---- softgauge variants ----------------------------------------------------------------------------------------------


@main.command()
@click.option("--op", help="Only those of this op.")
@click.option("--json", "as_json", is_flag=True, help="Write the answer of GET /v1/variants instead of text.")
def variants(op: str | None, as_json: bool) -> None:
    """What the built-in variants compute, where each is from and what goes wrong in it."""
    if op is not None:
        with _failures():
            engine.variant_names(op, engine.NO_PARAMS)
    rows = [row for row in engine.catalogue("variants") if op in (None, row["op"])]
    if as_json:
        _write_json({"variants": rows})
    else:
        _write("\n\n".join("\n".join(_described(row)) for row in rows) + "\n")


def _described(row: dict[str, Any]) -> Iterator[str]:
    """A variant as lines: its name, and all that is known of it."""
    yield f"{row['op']}/{row['name']}" + (", stable" if row["stable"] else "")
    for name, value in row.items():
        if name == "parameters":
            shown = ", ".join(f"{key} ({p['type']}, {p['default']} if left out)" for key, p in value.items())
        else:
            shown = value if isinstance(value, str) else ", ".join(value) if isinstance(value, list | tuple) else ""
        if shown and name not in ("op", "name"):
            yield f"    {name}: {shown}"


# ---- softgauge evaluate ----------------------------------------------------------------------------------------------

Command = Callable[..., Any]

_LOGITS = "Rows such as '1000,1001;0,-inf', or a .npy, .npz, .safetensors or .json file."
_KEY = "Which tensor of an .npz or .safetensors file.  [default: the only one, else logits]"
_TARGETS = "Class indices separated by commas, one for each row of logits; or distributions, written like the logits."
_WORST = "How many of the worst elements to name for each outcome.  [default: 1; 8 with --json]"
_AUDIT = f"Logits of a sample of each larger outcome that mpmath judges again; the service: {LIMITS.audit_logits}."
_PROCESSES = f"Processes that compute, each a part of the rows.  [default: 1; from {LARGE:,} logits on, one for each core]"


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, for the commands that share them."""
    return lambda command: reduce(lambda decorated, option: option(decorated), reversed(options), command)


_op = click.option("--op", required=True, help="softmax, logsumexp, cross_entropy, ...")
_key = click.option("--key", metavar="NAME", help=_KEY)
_companions = _options(
    click.option("--targets", metavar="ROWS|FILE", help=_TARGETS),
    click.option("--targets-key", metavar="NAME", help="As --key, for --targets."),
    click.option("--grad-output", metavar="ROWS|FILE", help="For softmax_vjp: like the logits."),
    click.option("--grad-output-key", metavar="NAME", help="As --key, for --grad-output."),
)
_PARAMS = tuple(field.name for field in fields(engine.Params))
_params = _options(
    click.option("--scale", type=float, help="Multiply the logits, as 1/temperature does.  [default: 1]"),
    click.option("--softcap", type=float, help="Then cap them: softcap tanh(x / softcap)."),
    click.option("--mask", metavar="ROWS|FILE", help="0 where a logit is masked, 1 where it is kept; a row for all, or one each."),
    click.option("--sink", type=float, help="One more logit in every sum and no output; 0 makes softmax1."),
    click.option("--label-smoothing", type=float, help="Targets w_i ((1 - a) y_i + a / n) of a loss, a from 0 to 1."),
    click.option("--weights", metavar="ROWS|FILE", help="w, a weight for each class of a loss."),
    click.option("--ignore-index", type=int, help="Class index of rows that a loss leaves out, such as -100."),
    click.option("--z-loss", type=float, help="Add that many squares of the log-sum-exp to a loss."),
    click.option("--reduction", help="none, sum or mean over the rows.  [default: none]"),
)
_axes = _options(
    click.option("--accumulator", metavar="FORMAT", help="Format in which sums are added.  [default: the arithmetic's own]"),
    click.option("--exp", default="numpy", show_default=True, help="Exponential: numpy, correct (correctly rounded), exp2."),
    click.option("--subnormals", default="gradual", show_default=True, help="gradual, or flush: subnormal numbers become 0."),
    click.option("--fma", is_flag=True, help="Round a * b + c once, where a variant asks for it."),
    click.option("--output-format", metavar="FORMAT", help="Format that results are rounded to at last."),
    click.option("--overflow", default="format", show_default=True, help="format, or saturate: for the 8-bit formats."),
)
_shown = _options(
    click.option("--worst", type=click.IntRange(0, LIMITS.max_worst), help=_WORST),
    click.option("--processes", type=click.IntRange(1, 1024), help=_PROCESSES),
    click.option("--audit", type=click.IntRange(0), default=0, show_default=True, help=_AUDIT),
)


@main.command()
@_op
@click.option("--logits", metavar="ROWS|FILE", help=_LOGITS)
@_key
@click.option("--family", metavar="NAME", help="Generate the logits instead: gaussian, ramp, masked, ...")
@click.option("--rows", type=int, help="Rows of a family.  [default: 1]")
@click.option("--n", type=int, help="Logits per row of a family.  [default: 10]")
@click.option("--seed", type=int, help="Seed of a family.  [default: 0]")
@click.option("--param", "params", metavar="NAME=VALUE", multiple=True, help="A parameter of the family (repeatable).")
@_companions
@_params
@click.option("--format", "formats", multiple=True, help="Repeatable.  [default: float16, float32, float64]")
@click.option("--variant", "variants", multiple=True, help="Repeatable.  [default: all of the op]")
@click.option("--summation", default="numpy", show_default=True, help="How the variants add.")
@_axes
@click.option("--include", multiple=True, type=click.Choice(["values", "truth", "ranks"]), help="Show these too (repeatable).")
@_shown
@click.option("--json", "as_json", is_flag=True, help="Write the answer of POST /v1/evaluate instead of a table.")
@click.option("--fail-on", type=click.Choice(FAILING), help="Exit with 1 at this status or a worse one.")
def evaluate(
    as_json: bool,
    fail_on: str | None,
    worst: int | None,
    processes: int | None,
    audit: int,
    formats: Sequence[str],
    **asked: Any,
) -> None:
    """Run the built-in variants of an op and measure them against the certified truth. No server is needed."""
    options = {name: asked.pop(name) for name in ("summation", "include")}
    options["axes"] = engine.Axes(**{field.name: asked.pop(field.name) for field in fields(engine.Axes)})
    options |= {"variants": asked.pop("variants") or None, **({"formats": formats} if formats else {})}
    with _failures():
        problem = _problem(**asked)
        with _split(problem, processes) as run, _progress() as progress:
            options |= {"worst": _count(worst, as_json), "progress": progress, "map": run, "audit": audit}
            evaluation = engine.evaluate(problem, **options)
    if as_json:
        _write_json(evaluation)
    else:
        _write(_report(problem, evaluation))
    failing = FAILING[: FAILING.index(fail_on) + 1] if fail_on else []
    if any(outcome.status in failing for outcome in evaluation.outcomes):
        raise click.exceptions.Exit(1)


# ---- softgauge measure -----------------------------------------------------------------------------------------------

_FAIL_ON = "Exit with 1 at a special mismatch; or also (exceeded) beyond the bound; or also (unbounded) if that tells nothing."


@main.command()
@_op
@click.option("--logits", metavar="ROWS|FILE", required=True, help=_LOGITS)
@_key
@click.option("--output", metavar="ROWS|FILE", required=True, help="What was computed from the logits, written like them.")
@click.option("--output-key", metavar="NAME", help="As --key, for --output.")
@_companions
@_params
@click.option("--ranks", is_flag=True, help="Count the rank inversions too.")
@_shown
@click.option("--json", "as_json", is_flag=True, help="Write every figure as JSON instead of a table.")
@click.option("--fail-on", type=click.Choice(["mismatch", "exceeded", "unbounded"]), help=_FAIL_ON)
def measure(
    as_json: bool,
    fail_on: str | None,
    worst: int | None,
    processes: int | None,
    audit: int,
    ranks: bool,
    output: str,
    output_key: str | None,
    **asked: Any,
) -> None:
    """Measure an output made elsewhere against the certified truth, in the format it is stored in. No server is needed."""
    with _failures():
        problem = _problem(**asked)
        found = _output(problem, output, output_key)
        with _split(problem, processes) as run, _progress():
            options: dict[str, Any] = {"include": ("ranks",) if ranks else (), "worst": _count(worst, as_json)}
            measured = engine.measure(problem, found, **options, map=run, audit=audit)
    if as_json:
        digests = {"logits_digest": engine.digest(problem.logits), "output_digest": engine.digest(found)}
        _write_json(digests | engine.encode(measured))
    else:
        _write(_report_measured(problem, found, measured))
    bound, metrics = measured.bound, measured.metrics
    silent = bound.unjudged > 0 or (metrics.compared > 0 and bound.vacuous == metrics.compared)
    failures = {"mismatch": metrics.special_mismatch > 0, "exceeded": bound.exceeded > 0, "unbounded": silent}
    if fail_on and any(failures[name] for name in list(failures)[: list(failures).index(fail_on) + 1]):
        raise click.exceptions.Exit(1)


def _output(problem: engine.Problem, given: str, key: str | None, name: str = "output") -> tensors.Array:
    """The output to measure; one number for one row need not be a list."""
    found = _given_output(given, key, name)
    return found.reshape(()) if found.size == 1 and engine.output_shape(problem) == () else found


def _given_output(given: str, key: str | None, name: str = "output") -> tensors.Array:
    """An output as it is given."""
    return _tensor(name, given, key, lambda value: tensors.read(value, _option(name), LIMITS))


# ---- softgauge verify ------------------------------------------------------------------------------------------------

_STATUS = {"pass": 0, "fail": 1, "inconclusive": 4}
_POLICY = "The gate: bound, max_ulp, faithful, correctly_rounded, allclose, torch.assert_close, ..."
_SET = "A parameter of the policy, such as ulps=4 (repeatable)."
_REPEAT = "Another run of the same kernel, whose bits must be the same (repeatable)."
_INVARIANT = "What must hold beside the gate (repeatable)."
_SAMPLE_ROWS = "Judge only so many rows, chosen as README says, in one process unless told.  [default: all]"
_SAMPLE_SEED = "What the choice of rows depends on beside the tensors.  [default: 0]"
_URL = "Ask this service instead of computing here.  [default: none]"
_REPRO = "Write the smallest case found that has the verdict there: its tensors, a script, the decimals."


@main.command()
@_op
@click.option("--logits", metavar="ROWS|FILE", required=True, help=_LOGITS)
@_key
@click.option("--output", metavar="ROWS|FILE", required=True, help="What was computed from the logits, in its own format.")
@click.option("--output-key", metavar="NAME", help="As --key, for --output.")
@_companions
@_params
@click.option("--axis", type=int, default=-1, show_default=True, help="The axis that is reduced.")
@click.option("--policy", default="bound", show_default=True, help=_POLICY)
@click.option("--set", "settings", metavar="NAME=VALUE", multiple=True, help=_SET)
@click.option("--nonfinite", default="ieee", show_default=True, help="ieee, masked_zero, masked_uniform or strict.")
@click.option("--reference", metavar="ROWS|FILE", help="Another output, which is audited by the same truth.")
@click.option("--reference-key", metavar="NAME", help="As --key, for --reference.")
@click.option("--repeat", "repeats", metavar="FILE", multiple=True, help=_REPEAT)
@click.option("--invariant", "invariants", multiple=True, type=click.Choice(["row_sums", "order", "argmax"]), help=_INVARIANT)
@click.option("--sample-rows", type=click.IntRange(1, 2**53), help=_SAMPLE_ROWS)
@click.option("--sample-seed", type=click.IntRange(0, 2**53), help=_SAMPLE_SEED)
@_shown
@click.option("--repro", "folder", metavar="DIR", type=click.Path(path_type=Path), help=_REPRO)
@click.option("--url", help=_URL)
@click.option("--json", "as_json", is_flag=True, help="Write the answer of POST /v1/verify instead of a report.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Write the report as Markdown.")
def verify(
    as_json: bool,
    as_markdown: bool,
    folder: Path | None,
    url: str | None,
    worst: int | None,
    processes: int | None,
    audit: int,
    policy: str,
    settings: Sequence[str],
    output: str,
    output_key: str | None,
    reference: str | None,
    reference_key: str | None,
    repeats: Sequence[str],
    nonfinite: str,
    invariants: Sequence[str],
    axis: int,
    sample_rows: int | None,
    sample_seed: int | None,
    **asked: Any,
) -> None:
    """Judge an output made elsewhere: pass (exit status 0), fail (1) or inconclusive (4). No server is needed."""
    if as_json and as_markdown:
        raise click.UsageError("--json and --markdown are two ways to write one answer: give one of them")
    if url is not None and (processes is not None or audit):
        raise click.UsageError("--processes and --audit are of a computation here, and --url asks a service: leave them out")
    gate = engine.Gate(policy, _parameters(settings, "--set", "ulps=4"))
    if sample_seed is not None and sample_rows is None:
        raise Refused("--sample-seed chooses the rows of a sample: give --sample-rows too")
    sample = None if sample_rows is None else engine.Sample(sample_rows, sample_seed or 0)
    if folder is not None:
        with _to_folder(folder):  # before anything is computed
            repro.check(folder)
    with _failures():
        problem = _problem(**asked, axis=axis)
        found = _given_output(output, output_key)
        others = [_given_output(given, None) for given in repeats]
        beside = None if reference is None else _given_output(reference, reference_key, "reference")
        if url is not None:
            included = [*invariants, *["repro"] * (folder is not None)]
            answer = _asked(
                url, problem, found, gate, reference=beside, outputs=others, axis=axis, nonfinite=nonfinite, include=included,
                worst=8 if worst is None else worst, sample=None if sample is None else asdict(sample),
            )  # fmt: skip
        else:
            options: dict[str, Any] = {"nonfinite": nonfinite, "reference": beside, "outputs": others, "include": invariants}
            processes = 1 if processes is None and sample is not None else processes
            with _split(problem, processes) as run, _progress():
                options |= {"worst": 8 if worst is None else worst, "map": run, "audit": audit, "axis": axis, "sample": sample}
                verdict = engine.verify(problem, found, gate, **options)
                answer = engine.encode(verdict)
                if folder is not None:
                    case = engine.minimise(problem, found, verdict, beside, others, invariants, axis)
                    answer["repro"] = repro.told(case, verdict, invariants)
    written: list[str] = []
    if folder is not None:
        with _to_folder(folder):
            script = repro.script(problem, found, others, answer["verdict"])
            written = repro.write(answer["repro"], script, folder)
    if as_json:
        _write(json.dumps(answer, allow_nan=False) + "\n")
    else:
        _write((reports.markdown if as_markdown else reports.text)(answer))
        if folder is not None:
            where = f"{', '.join(written)} in {folder}" if written else "nothing is written"
            _write(f"\nrepro: {where}: {answer['repro']['note']}\n")
    raise click.exceptions.Exit(_STATUS[answer["verdict"]])


@contextmanager
def _to_folder(folder: Path) -> Iterator[None]:
    """A folder that cannot be written to is status 2, no room in it 3."""
    try:
        yield
    except repro.NotOurs as error:
        raise Refused(f"--repro: {error}") from None
    except OSError as error:
        if repro.is_full(error):
            raise Failed(f"--repro: {folder}: {error.strerror}") from None
        raise Refused(f"--repro: {error.filename or folder}: {error.strerror or error}") from None


def _asked(url: str, problem: engine.Problem, output: tensors.Array, gate: engine.Gate, **options: Any) -> Any:
    """The answer of a service. What it refuses is status 2, what it cannot do 3."""
    told = {name: value for name in _PARAMS if not _left_out(name, value := getattr(problem.params, name))}
    params = {name: (v, v.dtype.name, v.shape) if isinstance(v, np.ndarray) else v for name, v in told.items()}  # in the file
    try:
        return client.verify(
            problem.op, problem.logits, output, targets=problem.targets, grad_output=problem.grad_output, params=params,
            gate={"policy": gate.policy, **gate.parameters}, url=url, **options,
        )  # fmt: skip
    except (ValueError, TypeError) as error:
        raise Refused(str(error)) from None
    except client.ServiceError as error:
        raise (Refused if error.status in (400, 401, 403, 413, 415, 422) else Failed)(str(error)) from None


def _left_out(name: str, value: object) -> bool:
    """Whether one of the params is what it is without a word."""
    return not isinstance(value, np.ndarray) and value == getattr(engine.NO_PARAMS, name)


# ---- softgauge check ---------------------------------------------------------------------------------------------------

_NOT_HERE = "Compare with this baseline; with --url its name there.  [default: what the suite says, or default]"
_ACCEPT = "Make what is there now the baseline; with --reason."
_LONGEST_WORDS = 200
"""Characters of a reason and of a testbed."""
_TO = "to FILE, or without one to standard output instead of text."


@main.command()
@click.argument("where", metavar="[FILE]", type=click.Path(path_type=Path), default=Path(suite.SUITE))
@click.option("--schema", is_flag=True, help="Write the JSON Schema of a suite to standard output, and no file.")
def init(where: Path, schema: bool) -> None:
    """Write a commented softgauge.toml that runs."""
    if schema:
        _write(suite.written_schema())
        return
    try:
        with where.open("x", encoding="utf-8") as file:
            file.write(suite.TEMPLATE)
    except FileExistsError:
        raise Refused(f"{where} is there already, and is not overwritten; name another file, or remove it") from None
    except OSError as error:
        raise (Failed if repro.is_full(error) else Refused)(f"{where}: {error.strerror}") from None
    _write(f"{where} is written; now: softgauge check\n")


def _report_to(name: str, what: str) -> Callable[[Command], Command]:
    return click.option(f"--{name}", metavar="[FILE]", is_flag=False, flag_value="-", help=f"Write {what} {_TO}")


@main.command()
@click.argument("path", metavar="[SUITE]", type=click.Path(path_type=Path), default=Path(suite.SUITE))
@click.option("--baseline", metavar="FILE|NAME", help=_NOT_HERE)
@click.option("--accept", is_flag=True, help=_ACCEPT)
@click.option("--reason", help="Why the baseline moves; it is kept in the file.")
@click.option("--by", help="Who moves it.  [default: who is logged in]")
@click.option("--tag", "tags", multiple=True, help="Only cases with this tag (repeatable).")
@click.option("--case", "names", metavar="PATTERN", multiple=True, help="Only cases of that name, such as 'numpy*' (repeatable).")
@click.option("--testbed", default="", help="Where the files of kernels are from, such as a100: part of their fingerprint.")
@click.option("--processes", type=click.IntRange(1, 1024), help="Processes that compute.  [default: one for each core]")
@_report_to("json", "everything as JSON")
@_report_to("markdown", "Markdown, the table folded,")
@_report_to("junit", "JUnit XML")
@_report_to("sarif", "SARIF 2.1.0, of cases that name a source line,")
@_report_to("svg", "a plot of ULP by case")
@click.option("--github", is_flag=True, help="Write annotations for GitHub Actions too, and the step's summary.")
@click.option("--url", help="Keep the run in this service, and compare it there; key: SOFTGAUGE_KEY.")
@click.option("--project", help="There.  [default: the repository's name]")
@click.option("--branch", help="There.  [default: what the CI service says, or git]")
@click.option(
    "--started-from", metavar="BRANCH", help="Whose baselines hold until the branch has its own.  [default: what CI says]"
)
@click.option("--commit", help="There.  [default: what the CI service says, or git]")
def check(
    path: Path,
    baseline: str | None,
    accept: bool,
    reason: str | None,
    by: str | None,
    tags: Sequence[str],
    names: Sequence[str],
    testbed: str,
    processes: int | None,
    github: bool,
    url: str | None,
    project: str | None,
    branch: str | None,
    started_from: str | None,
    commit: str | None,
    **reports_asked: str | None,
) -> None:
    """Run a suite and compare it with its baseline: 0 pass, 1 regressed or failed, 4 inconclusive or incomparable."""
    _check_options(accept, reason, testbed, reports_asked)
    there = {"--project": project, "--branch": branch, "--started-from": started_from, "--commit": commit}
    if url is None and (stray := [name for name, value in there.items() if value is not None]):
        raise click.UsageError(f"{stray[0]} belongs to --url")
    try:
        given = suite.load(path, baseline if url is None else None)
        cases = checking.select(given.cases, tags, names)
        if not cases:
            raise suite.SuiteError(f"no case of {path} is chosen: it has {', '.join(case.name for case in given.cases[:8])}, ...")
        place = None
        if url is not None:
            place = remote.placed(url, project, baseline, branch, started_from, commit, testbed, given.root)
        _check_reports(reports_asked, given.baseline)
        known = baselines.read(given.baseline) if place is None else _there(lambda: remote.known(place))
        many = processes or min(len(os.sched_getaffinity(0)), max(1, len(cases) // FEW_CASES))
        with split(many) as run, _progress("checking") as progress:
            done = checking.run(given, cases, known, testbed, run, progress)
        if place is not None:
            told, moved = _kept_there(place, done, len(cases) < len(given.cases), reason if accept else None, by)
        else:
            told = checking.answer(done, known)
            moved = _moved(done, known, reason, by) if accept else _created(done, by)
    except (suite.SuiteError, baselines.BaselineError) as error:
        raise Refused(str(error)) from None
    except OSError as error:
        raise Refused(f"{error.filename or path}: {error.strerror or error}") from None
    except SplitError as error:
        raise Failed(str(error)) from None
    _written_reports(told, reports_asked)
    if "-" not in reports_asked.values():
        _write(check_reports.text(told) + check_reports.plain(moved))
    if github:
        _to_github(told)
    if not accept:
        raise click.exceptions.Exit(checking.EXIT[told["verdict"]])


def _check_options(accept: bool, reason: str | None, testbed: str, reports_asked: dict[str, str | None]) -> None:
    """Whether what is asked of `check` goes together."""
    if accept and not (reason or "").strip():
        raise click.UsageError('--accept needs --reason "...", which is kept beside what moved')
    if reason is not None and not accept:
        raise click.UsageError("--reason belongs to --accept")
    for name, told in (("--reason", (reason or "").strip()), ("--testbed", testbed)):
        if len(told) > _LONGEST_WORDS or not baselines.is_text(told):
            raise click.UsageError(f"{name} is one line of at most {_LONGEST_WORDS} characters, none of them a control character")
    if len([name for name, to in reports_asked.items() if to == "-"]) > 1:
        raise click.UsageError("only one report goes to standard output: give the others a file, such as --junit=report.xml")


def _kept_there(
    place: remote.Place, done: checking.Run, partial: bool, reason: str | None, by: str | None
) -> tuple[dict[str, Any], str]:
    """Keep a run in a service: the comparison, and what to say of it; reason: to make it the baseline."""
    told = _there(lambda: remote.check(place, done, partial))
    said = f"kept as {told['run']} of project {place.project}: {place.url.rstrip('/')}/v1/reports/{told['id']}\n"
    if reason is not None:
        move = _there(lambda: remote.accept(place, told["run"], reason.strip(), _who(by)))
        said += f"baseline {move['name']} of {move['branch']} points to it; it pointed to {move['was'] or 'nothing'}\n"
    return told, said


def _there(ask: Callable[[], Result]) -> Result:
    """What a service answers. What it refuses is status 2, what it cannot do 3."""
    try:
        return ask()
    except ValueError as error:  # of a URL or a key
        raise Refused(str(error)) from None
    except client.ServiceError as error:
        raise (Refused if error.status in (400, 401, 403, 404, 409, 413, 415, 422) else Failed)(str(error)) from None


FEW_CASES = 24
"""For fewer it does not pay to start another process."""


def _moved(done: checking.Run, known: baselines.Baseline, reason: str | None, by: str | None) -> str:
    """Accept a run; what to say of it."""
    entries, gone, changed = checking.accepted(done)
    if not changed:
        return "nothing to accept: every case is unchanged\n"
    _store(done.suite.baseline, entries, gone, baselines.Move(_now(), _who(by), str(reason).strip(), tuple(changed)))
    return "".join(f"accepted: {line}\n" for line in changed) + f"{done.suite.baseline} is written; commit it\n"


def _created(done: checking.Run, by: str | None) -> str:
    """Put into the baseline what the suite says to create."""
    entries = checking.created(done)
    if entries:
        lines = tuple(f"{name}: created" for name in entries)
        _store(done.suite.baseline, entries, (), baselines.Move(_now(), _who(by), "created, as policy of the suite says", lines))
    return ""


def _store(path: Path, entries: dict[str, engine.Entry], gone: Sequence[str], move: baselines.Move) -> None:
    """Move a baseline as it is now, which another process may have changed meanwhile."""
    try:
        with baselines.changing(path):
            baselines.write(path, baselines.moved(baselines.read(path), entries, gone, move))
    except OSError as error:
        raise (Failed if repro.is_full(error) else Refused)(f"{path}: {error.strerror or error}; it is as it was") from None


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _who(by: str | None) -> str:
    """Who moves a baseline, without characters that a file of a line each would not hold."""
    try:
        name = by if by is not None else getpass.getuser()
    except (KeyError, OSError):
        name = "unknown"
    return "".join(mark for mark in name[:200] if mark.isprintable())


def _check_reports(asked: dict[str, str | None], baseline: Path) -> None:
    """Whether every report has a place of its own, before anything is run or moved."""
    for name, to in asked.items():
        if to is not None and to.endswith(".toml"):
            raise click.UsageError(f"--{name} {to} would write over a suite; give the suite first, or --{name}=-")
        if to is not None and to != "-" and Path(to).resolve() == baseline:
            raise click.UsageError(f"--{name} {to} would write over the baseline; give another file, or --{name}=-")


def _written_reports(told: dict[str, Any], asked: dict[str, str | None]) -> None:
    """Every report that is asked for."""
    for name, to in asked.items():
        if to is None:
            continue
        made = json.dumps(told, allow_nan=False, indent=1) + "\n" if name == "json" else check_reports.REPORTS[name](told)
        if to == "-":
            _write(made)
            continue
        try:
            Path(to).write_text(made, encoding="utf-8")
        except OSError as error:
            raise (Failed if repro.is_full(error) else Refused)(f"--{name}: {to}: {error.strerror}") from None


def _to_github(told: dict[str, Any]) -> None:
    """Annotations on standard output, and the step's summary where the runner has a file for it."""
    _write(check_reports.github(told))
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with open(summary, "a", encoding="utf-8") as file:
                file.write(check_reports.markdown(told))
        except OSError as error:
            raise (Failed if repro.is_full(error) else Refused)(f"GITHUB_STEP_SUMMARY: {summary}: {error.strerror}") from None


# ---- softgauge tolerance ---------------------------------------------------------------------------------------------


_declares = _options(
    click.option("--compute", metavar="FORMAT", help="Format of the arithmetic.  [default: float32 or wider]"),
    click.option("--accumulator", metavar="FORMAT", help="Format in which sums are added.  [default: that of the arithmetic]"),
    click.option("--summation", help="parallel, or a summation.  [default: parallel]"),
    click.option("--exp", help="Exponential: exp2, numpy or correct.  [default: exp2]"),
    click.option("--exp-ulp", type=float, help="What it may be off by.  [default: 2]"),
    click.option("--log-ulp", type=float, help="What a logarithm may be off by.  [default: 2]"),
    click.option("--subnormals", help="gradual or flush.  [default: gradual]"),
    click.option("--algorithm", help="A variant that has a bound; with logits only.  [default: the stable one]"),
    click.option("--factor", type=float, help="Multiplies the bound.  [default: 1]"),
)


@main.command()
@_op
@click.option("--format", required=True, help="Of the output: float16, bfloat16, float32, ...")
@click.option("--n", type=int, help="Logits of a row; left out where logits are given.")
@click.option("--logits", metavar="ROWS|FILE", help="For these logits only, not for any row of n.")
@_key
@_companions
@_declares
@click.option("--json", "as_json", is_flag=True, help="Write the answer of POST /v1/tolerance instead of text.")
def tolerance(op: str, format: str, n: int | None, logits: str | None, as_json: bool, **asked: Any) -> None:
    """Which tolerance to use: ULP, rtol and atol that no right implementation exceeds, and what they miss."""
    declared = {name: value for name in engine.BOUND_PARAMETERS if (value := asked.pop(name)) is not None}
    with _failures():
        problem = None
        if logits is not None:
            none: dict[str, Any] = dict.fromkeys(_PARAMS)
            problem = _problem(op, logits=logits, **asked, **none)
        elif stray := [f"--{name.replace('_', '-')}" for name, value in asked.items() if value is not None]:
            raise click.UsageError(f"{' and '.join(stray)} belongs to logits: give --logits")
        found = engine.tolerance(op, format, n, declared, problem)
    if as_json:
        _write_json(found)
    else:
        _write(reports.tolerance(engine.encode(found)))


# ---- softgauge thresholds --------------------------------------------------------------------------------------------


@main.command()
@_op
@click.option("--variant", required=True, help="A variant, with parameters if any: 'chosen_shift(c=-80)'.")
@click.option("--format", required=True, help="float16, bfloat16, float32, ...")
@click.option("--n", type=int, default=2, show_default=True, help="Logits of a row.")
@click.option("--summation", default="numpy", show_default=True, help="How the variant adds.")
@_axes
@click.option("--json", "as_json", is_flag=True, help="Write the answer of GET /v1/thresholds instead of a table.")
def thresholds(op: str, variant: str, format: str, n: int, summation: str, as_json: bool, **axes: Any) -> None:
    """The last logit, gap and count up to which a variant's results can be used, and what comes out beyond."""
    with _failures():
        found = engine.thresholds(op, variant, format, n, summation, engine.Axes(**axes))
    if as_json:
        _write_json(found)
    else:
        _write(_report_limits(found))


def _report_limits(found: engine.Thresholds) -> str:
    """The limits as a table, and what lies beyond each."""
    head = f"{found.op}/{found.variant}, {found.format}: rows of {found.n} logits, {found.summation} summation"
    head += "".join(f", {words}" for words in _varied([found]))
    table = _Grid(("limit", "last", "next", "gives", "search", "tried", "sharp"), left=1)
    for row in found.limits:
        last = "never" if row.value is None and row.next is not None else _figure(row.value, 17)
        shown = (last, _figure(row.next, 17), _figure(row.result, 17), row.search, str(row.checked), "yes" if row.sharp else "no")
        table.rows.append((row.name, *shown))
    return _written(f"{head}\n", table, "", *(f"{row.name}: {row.beyond}" for row in found.limits))


# ---- softgauge paper -------------------------------------------------------------------------------------------------


@main.group()
def paper() -> None:
    """Repeat an experiment of the literature on its data."""


_DATA = "Rows of logits: a .npy, .npz, .safetensors or .json file, or text such as '1,2;3,4'."


@paper.command("bhh")
@click.option("--data", metavar="FILE", required=True, help=_DATA)
@_key
@click.option("--json", "as_json", is_flag=True, help="Write every figure as JSON instead of tables.")
def paper_bhh(data: str, key: str | None, as_json: bool) -> None:
    """Blanchard, Higham and Higham, "Accurately computing the log-sum-exp and softmax functions" (doi 10.1093/imanum/draa038).

    Six algorithms in float16 and bfloat16, sums in sequence, on rows of logits such as those of the authors' repository.
    """
    with _failures():
        logits = _tensor("data", data, key, lambda value: tensors.read(value, "--data", LIMITS))
        found = engine.bhh(logits)
    if as_json:
        _write_json({"experiments": found})
    else:
        _write("\n".join(map(_experiment, found)))


def _experiment(found: engine.Experiment) -> str:
    """One format's table."""
    table = _Grid(
        ("algorithm", "variant", "not\nfinite", "max\nerr/u", "mean\nerr/u", "mean of\nall", "sums\nfrom", "sums\nto"), left=2
    )
    for a in found.algorithms:
        errors = (_figure(a.max_error), _figure(a.mean_error, 3), _figure(a.mean_error_of_all, 3))
        table.rows.append((a.name, a.variant, str(a.overflows), *errors, _figure(a.least_sum, 6), _figure(a.largest_sum, 6)))
    about = f"u = {found.unit:g}, sequential sums, subnormals {found.subnormals}"
    rows = f"the basic log-sum-exp is finite in {found.survived} of {_counted(found.rows, 'row')} of {_counted(found.n, 'logit')}"
    head = f"{found.format}: {about}; {rows}, of which the errors and the sums are\n"
    return _written(head, table)


# ---- how it is computed ----------------------------------------------------------------------------------------------


@contextmanager
def _failures() -> Iterator[None]:
    """What the engine refuses is status 2; what a process that died leaves undone is 3, as is a Disagreement."""
    try:
        yield
    except engine.Disagreement:
        raise
    except engine.EngineError as error:
        raise Refused(_blamed(str(error))) from None
    except SplitError as error:
        raise Failed(str(error)) from None


def _blamed(message: str) -> str:
    """What the engine says of a tensor, with the option that gave it, or would give it."""
    if run := re.match(r"outputs\.([0-9]+)", message):
        return f"--repeat: {click.get_current_context().params['repeats'][int(run[1])][:200]}: {message}"
    if re.match("policy|include", message):
        return re.sub("reference; give one:", "reference; give --reference:", message)
    match = re.match("weights|mask|reference", message) or re.search(r"\b(logits|target|class ind|grad_output|output\b)", message)
    name = {"target": "targets", "class ind": "targets"}.get(match[0], match[0]) if match else ""
    given = click.get_current_context().params.get(name)
    message = re.sub(rf"\bgive ({'|'.join(_PARAMS)})\b", lambda found: f"give {_option(found[1])}", message)
    if given is not None:
        return f"{_option(name)}: {given[:200]}: {message}"
    return f"{message}: give {_option(name)}" if f"needs {name}" in message else message


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@contextmanager
def _split(problem: engine.Problem, processes: int | None) -> Iterator[Map]:
    """The map over so many processes; without a word one for each core where the logits are many."""
    cores = len(os.sched_getaffinity(0)) if problem.logits.size >= LARGE else 1
    with split(cores if processes is None else processes) as run:
        yield run


def _count(worst: int | None, as_json: bool) -> int:
    """How many of the worst elements to name."""
    return (8 if as_json else 1) if worst is None else worst


def _write_json(answer: object) -> None:
    _write(json.dumps(engine.encode(answer), allow_nan=False) + "\n")


def _write(text: str) -> None:
    """All of it to standard output: where that is unbuffered it may take a part, and say so only in what it returns."""
    sys.stdout.flush()
    rest = memoryview(text.encode(sys.stdout.encoding or "utf-8", "backslashreplace"))
    while rest:
        rest = rest[sys.stdout.buffer.write(rest) or 0 :]
    sys.stdout.buffer.flush()


@contextmanager
def _progress(what: str = "measuring") -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error once a second has passed; none where that is no terminal."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task("", total=None)
    timer = threading.Timer(1.0, bar.start)
    timer.start()
    try:
        yield lambda done, total: bar.update(task, completed=done, total=total)
    finally:
        timer.cancel()
        timer.join()
        bar.stop()


# ---- what is asked ---------------------------------------------------------------------------------------------------


def _problem(
    op: str,
    *,
    logits: str | None,
    key: str | None,
    targets: str | None,
    targets_key: str | None,
    grad_output: str | None,
    grad_output_key: str | None,
    axis: int = -1,
    **others: Any,
) -> engine.Problem:
    """The engine's problem of the options, axis the one that is reduced; others are those of the params and of a family."""
    told = {name: value for name in _PARAMS if (value := others[name]) is not None}
    family = {name: value for name, value in others.items() if name not in _PARAMS}
    if logits is None:
        _need_none(("--key", key))
        x = _generated(**family)
    else:
        _need_none(
            *((f"--{name.removesuffix('s') if name == 'params' else name}", value or None) for name, value in family.items())
        )
        x = _tensor("logits", logits, key, lambda value: tensors.read(value, "--logits", LIMITS))
    y = g = None
    if targets is not None:
        y = _tensor("targets", targets, targets_key, lambda value: _targets(value, (*np.delete(x.shape, axis), 0)))
    if grad_output is not None:
        g = _tensor("grad_output", grad_output, grad_output_key, lambda value: tensors.read(value, "--grad-output", LIMITS))
    problem = engine.Problem(op, x, y, g, _told(told))
    if x.ndim and axis in (-1, x.ndim - 1):  # else the engine refuses it
        _check_output(problem)
    return problem


def _told(given: dict[str, Any]) -> engine.Params:
    """The engine's params of the options that were given."""
    found = dict(given)
    if "mask" in given:
        found["mask"] = _tensor("mask", given["mask"], None, _mask)
        if wrong := set(np.unique(found["mask"].astype(np.float64)).tolist()) - {0.0, 1.0}:
            raise Refused(f"--mask: {min(wrong):g} is neither 0 (masked) nor 1 (kept)")
        found["mask"] = found["mask"] != 0
    if "weights" in given:
        found["weights"] = _tensor("weights", given["weights"], None, lambda value: tensors.read(value, "--weights", LIMITS))
    return engine.Params(**found) if found else engine.NO_PARAMS


def _mask(value: object) -> tensors.Array:
    """0 and 1, or from a file true and false."""
    leaf = value
    while isinstance(leaf, list) and leaf:
        leaf = leaf[0]
    read = tensors.read_booleans if isinstance(leaf, bool) else tensors.read
    return read(value, "--mask", LIMITS)


def _need_none(*given: tuple[str, object]) -> None:
    if stray := [name for name, value in given if value is not None]:
        raise click.UsageError(f"{' and '.join(stray)} cannot be used here: give either --logits (with --key), or --family")


def _generated(family: str | None, rows: int | None, n: int | None, seed: int | None, params: Sequence[str]) -> tensors.Array:
    """The logits of a family."""
    if family is None:
        raise click.UsageError("no logits: give --logits, or --family with --rows, --n and --seed")
    rows, n, seed = (default if value is None else value for value, default in ((rows, 1), (n, 10), (seed, 0)))
    if rows * n > LIMITS.max_elements:
        raise Refused(f"--rows {rows} times --n {n} is above {LIMITS.max_elements} elements; ask for fewer")
    return engine.generate(family, rows, n, seed, **_parameters(params, "--param", "sigma=4"))


def _parameters(given: Sequence[str], option: str, example: str) -> dict[str, float | str]:
    """Each NAME=VALUE; a value that is no number is a name, which the engine checks."""
    found: dict[str, float | str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise click.UsageError(f"{option} {text!r} is not NAME=VALUE, such as {example}")
        if name in found:
            raise click.UsageError(f"{option} {name} is given twice, as {found[name]} and {value}: give it once")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = value
    return found


def _check_output(problem: engine.Problem) -> None:
    """Refuse an output that would not fit in memory (a Jacobian has n numbers for each logit)."""
    size = math.prod(engine.output_shape(problem))
    if size > max(LIMITS.max_elements, problem.logits.size):
        rule = f"would have {size} elements, above {LIMITS.max_elements}; ask for fewer rows or logits"
        raise Refused(f"the output of {problem.op} {rule}")


def _targets(value: object, shape: tuple[int, ...]) -> tensors.Array:
    """Targets as the service reads them; one index for one row need not be a list."""
    alone = isinstance(value, list) and len(value) == 1 and len(shape) == 1 and isinstance(value[0], int)
    return tensors.read_targets(value[0] if isinstance(value, list) and alone else value, "--targets", LIMITS, shape)


def _tensor(name: str, given: str, key: str | None, read: Callable[[object], tensors.Array]) -> tensors.Array:
    """A tensor from the text of its option, or from the file it names. `read` takes what JSON would hold."""
    suffix = Path(given).suffix.lower()
    try:
        if suffix in files.SUFFIXES:
            return _stored(_chosen(files.mapped(_file(given)), suffix, key, name), name)
        if key is not None:
            raise ValueError("a key chooses a tensor of an .npz or .safetensors file")
        return read(_document(_file(given)) if suffix == ".json" else _typed(given))
    except tensors.BadTensor as error:
        place, detail = error.findings[0]
        raise Refused(f"{place}: {detail}") from None
    except OSError as error:
        raise Refused(f"{_option(name)}: {given}: {error.strerror or error}") from None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  a broken file makes its reader raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Refused(f"{_option(name)}: {given[:200]}: {reason}") from None


def _typed(text: str) -> object:
    """The rows of a text; what is no number may be the name of something that is no file known here."""
    try:
        return _rows(text)
    except ValueError:
        if os.path.isdir(text):
            raise ValueError(f"a directory; name a file that ends in {_KNOWN}") from None
        if os.path.exists(text):
            raise ValueError(f"a file of an unknown kind; files end in {_KNOWN}") from None
        if "/" in text:
            raise ValueError(f"no such file; files end in {_KNOWN}") from None
        raise


def _rows(text: str) -> object:
    """'1,2;3,4' as JSON would hold it: one row is a list, several are a list of lists."""
    rows = [[_item(part.strip()) for part in row.split(",")] for row in text.split(";")]
    return rows if len(rows) > 1 else rows[0]


def _item(text: str) -> float | int | str:
    """A number, or the string that tensors.py knows (the three non-finite ones, hex floats)."""
    sign, bare = ("-", text[1:]) if text.startswith("-") else ("", text.removeprefix("+"))
    if bare.lower() in _SPELLED:
        special = _SPELLED[bare.lower()]
        return special if special == "NaN" else sign + special
    if re.fullmatch(r"[+-]?[0-9]{1,4000}", text):
        return int(text)
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
        if bare[:2].lower() == "0x":
            return text
        raise ValueError(f"{quoted(text)} is not a number; numbers are separated by ',', rows by ';', and files end in {_KNOWN}")
    if math.isinf(value := float(text)):
        raise ValueError(f"{text[:64]} is beyond the largest float64; write inf for infinity")
    return value


# ---- files -----------------------------------------------------------------------------------------------------------


def _file(given: str) -> Path:
    """The path of a regular file."""
    path = Path(given)
    path.stat()  # says why, where there is none
    if not path.is_file():
        raise ValueError("not a file")
    return path


def _document(path: Path) -> object:
    if (size := path.stat().st_size) > files.LARGEST_READ:
        raise ValueError(f"{size} bytes; a file has at most {files.LARGEST_READ}")
    try:
        return tensors.document(path.read_bytes())
    except tensors.Malformed as error:
        raise ValueError(f"the file {error}") from None


def _chosen(raw: memoryview, suffix: str, key: str | None, name: str) -> tensors.Array:
    """One tensor of a file."""
    if suffix == ".npy" and key is not None:
        raise ValueError("an .npy file holds one tensor and takes no key")
    (found,) = files.tensors(raw, suffix, lambda names: [_choose(names, key, name)]).values()
    return found


def _choose(names: Sequence[str], key: str | None, default: str) -> str:
    """The tensor of that key; without one the only tensor, or the one named as its option."""
    wanted = key if key is not None else names[0] if len(names) == 1 else default
    if wanted not in names:
        option = "--key" if default == "logits" else f"{_option(default)}-key"
        raise ValueError(f"no tensor {quoted(wanted)}; there are {', '.join(names[:20]) or 'none'}; choose one with {option}")
    return wanted


def _stored(array: tensors.Array, name: str) -> tensors.Array:
    """A tensor from a file, of a dtype and size that the engine takes."""
    if array.size > LARGEST_STORED:
        raise ValueError(f"{array.size} elements; a tensor has at most {LARGEST_STORED}")
    if array.dtype.kind not in "iub" or name == "mask":
        return array
    if name != "targets" or array.dtype == np.uint64:
        raise ValueError(
            f"dtype {array.dtype}; known for {name}: {', '.join(engine.FORMATS)}{', class indices' * (name == 'targets')}"
        )
    return array.astype(np.int64)


_KNOWN = ", ".join([*files.SUFFIXES, ".json"])


# ---- what is shown ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Unit:
    """What the output counts in: rows where an op gives one number a row, else elements."""

    noun: str
    total: int


@dataclass(frozen=True)
class _Row:
    """What the tables show of one output. who: the variant and its format; status: none where nothing judges."""

    who: tuple[str, str]
    status: str | None
    found: engine.Outcome | engine.Measured


@dataclass(frozen=True)
class _Grid:
    """A table, of which the first `left` columns hold text and the others numbers."""

    headings: tuple[str, ...]
    left: int
    rows: list[tuple[str | Text, ...]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The first lines of the headings."""
        return [heading.split("\n")[0] for heading in self.headings]

    def without(self, name: str) -> _Grid:
        """The same without the columns of that name."""
        kept = [place for place, known in enumerate(self.names) if known != name]
        rows = [tuple(row[place] for place in kept) for row in self.rows]
        return _Grid(tuple(self.headings[place] for place in kept), sum(place < self.left for place in kept), rows)

    def drawn(self) -> Table:
        """As wide as it is."""
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        for position, heading in enumerate(self.headings):
            table.add_column(heading, justify="left" if position < self.left else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        return table


def _report(problem: engine.Problem, evaluation: engine.Evaluation) -> str:
    """The readable answer: outcomes, what broke, the worst elements, the rule."""
    outcomes = evaluation.outcomes
    unit = _unit(problem)
    varied = "".join(f", {words}" for words in (*_varied(outcomes), *_given(problem.params)))
    head = f"{evaluation.op}: {_extents(problem)} logits, {outcomes[0].summation} summation{varied}"
    rows = [_Row((o.variant, o.format), o.status, o) for o in outcomes]
    rules = [*_rules(outcomes), *_without_truth(problem), *_became_infinite(problem, outcomes)]
    return _printed(head, "variant", rows, unit, list(_notes(outcomes, unit)), rules)


def _extents(problem: engine.Problem) -> str:
    """The shape of the logits; a single row is one of a batch."""
    shape = problem.logits.shape
    return " x ".join(map(str, shape if len(shape) > 1 else (1, *shape)))


def _varied(outcomes: Sequence[engine.Outcome | engine.Thresholds]) -> Iterator[str]:
    """The axes that are not as NumPy has them; those of every outcome are the same but for what each format names."""
    axes = outcomes[0].arithmetic
    if any(o.arithmetic.accumulator != o.format for o in outcomes):
        yield f"{axes.accumulator} accumulator"
    if axes.exp != "numpy":
        yield {"correct": "correctly rounded exp", "exp2": "exp in the exp2 domain"}[axes.exp]
    if axes.subnormals == "flush":
        yield "subnormals flushed"
    if axes.fma:
        yield "fma"
    if any(o.arithmetic.output_format != o.format for o in outcomes):
        yield f"{axes.output_format} output"
    if axes.overflow == "saturate":
        yield "saturating"


def _given(params: engine.Params) -> Iterator[str]:
    """The params that were given."""
    for param in fields(params):
        value = getattr(params, param.name)
        if isinstance(value, np.ndarray):
            yield param.name
        elif value != param.default:
            yield f"{param.name.replace('_', ' ')} {value}"


def _report_measured(problem: engine.Problem, output: tensors.Array, measured: engine.Measured) -> str:
    """The readable answer about an output made elsewhere: the same tables, more figures, and no status."""
    unit = _unit(problem)
    told = "".join(f", {words}" for words in _given(problem.params))
    head = f"{problem.op}: {_extents(problem)} {measured.logits_dtype} logits{told}"
    row = _Row(("output", measured.format), None, measured)
    said = [*_broken(measured, unit), *_inversions(measured)]
    notes = [f"output, {measured.format}: {'; '.join(said)}"] if said else []
    rules = [*_proven(measured), *_without_truth(problem, output), *_finer(measured)]
    return _printed(head, "", [row], unit, [*notes, *_figures(measured)], [f"\n{rules[0]}", *rules[1:]])


def _figures(measured: engine.Measured) -> Iterator[str]:
    """The figures beside those of the table."""
    m = measured.metrics
    kl = m.kl and f"{_figure(m.kl.worst)} (worst row {m.kl.worst_row})"
    named = (
        ("p99 ULP", _figure(m.p99_ulp)),
        ("bias ULP", _figure(m.bias_ulp)),
        ("sum_defect", _figure(m.sum_defect)),
        ("kl", kl or "-"),
    )
    yield ", ".join(
        [f"correctly rounded {m.correctly_rounded} of {m.n}", *(f"{name} {text}" for name, text in named if text != "-")]
    )


def _proven(measured: engine.Measured) -> Iterator[str]:
    """What the bound and the certificate say."""
    bound, certificate = measured.bound, measured.certificate
    beyond = f"{_counted(bound.exceeded, 'element')} beyond"
    yield f"bound of {bound.reference}, summed in order: {bound.rule}; {_condition(measured)}; {beyond}"
    yield from _void(measured)
    radius = certificate.relative_bound_log2
    known = "exact" if radius is None else f"to a relative 2^{radius:g}"
    yield f"certificate: truth {known}; {', '.join(f'{tier} {count}' for tier, count in certificate.tiers.items())}"


def _condition(found: engine.Outcome | engine.Measured) -> str:
    """u of the arithmetic, which the condition number goes with, and that of a coarser output."""
    bound, own = found.bound, engine.FORMATS[found.format].unit_roundoff
    rounded = f" (output {bound.unit_roundoff:.3g})" if bound.unit_roundoff > own else ""
    worst = "" if bound.condition is None else f", condition {bound.condition:.3g} in row {bound.condition_row}"
    return f"u = {own:.3g}{rounded}{worst}"


def _void(found: engine.Outcome | engine.Measured) -> Iterator[str]:
    """A warning where theory says nothing: no bound, or one as large as what it bounds."""
    bound = found.bound
    if bound.unbounded:
        yield f"no bound for {_counted(bound.unbounded, 'element')}"
    if bound.vacuous:
        yield f"a bound as large as the truth for {_counted(bound.vacuous, 'element')}"


def _finer(measured: engine.Measured) -> Iterator[str]:
    """A note where numbers were perhaps widened on their way here: they look worse than they are."""
    given, found = engine.FORMATS[measured.logits_dtype], engine.FORMATS[measured.format]
    if found.precision > given.precision:
        said = f"the output is {found.name} and the logits are {given.name}: ULPs are those of {found.name}"
        yield f"{said}; store it as it was computed"


def _printed(head: str, who: str, rows: Sequence[_Row], unit: _Unit, notes: Sequence[str], rules: Sequence[str]) -> str:
    """Both tables, with what is said before, between and after them."""
    shown: list[str | _Grid] = [f"{head}\n", _outcome_table(who, rows, unit), *(["", *notes] if notes else [])]
    if any(row.found.worst for row in rows):
        shown += ["", _worst_table(rows)]
    return _written(*shown, *rules)


def _written(*shown: str | _Grid) -> str:
    """Lines and tables as they are printed: never folded, so that no number is cut.

    A terminal too narrow for a table gets it without some columns, and is told which.
    """
    console = Console(markup=False, highlight=False, emoji=False)
    room = console.width if console.is_terminal else WIDEST
    console.width = WIDEST
    with console.capture() as captured:
        for each in shown:
            if isinstance(each, str):
                console.print(each, soft_wrap=True)
                continue
            kept = each
            for name in EXPENDABLE:
                if console.measure(kept.drawn()).maximum > room:
                    kept = kept.without(name)
            console.print(kept.drawn())
            if gone := [name for name in each.names if name not in kept.names]:
                console.print(f"left out at {room} characters: {', '.join(gone)}", soft_wrap=True)
    return captured.get()


def _unit(problem: engine.Problem) -> _Unit:
    shape = engine.output_shape(problem)
    total = math.prod(shape)
    noun = "row" if len(shape) == problem.logits.ndim - 1 else "element"
    return _Unit(noun + "s" * (total > 1), total)


def _outcome_table(who: str, rows: Sequence[_Row], unit: _Unit) -> _Grid:
    counts = [f"{noun}\nof {unit.total}\n{unit.noun}" for noun in ("NaN", "overflowed", "underflowed")]
    status, mismatched = (["status"], []) if rows[0].status else ([], ["mismatched"])
    headings = (who, "format", *status, "max ULP", "mean ULP", "max rel", "err/bound", *mismatched, *counts)
    table = _Grid(headings, left=2 + len(status))
    for row in rows:
        m = row.found.metrics
        judged = [Text(row.status, STYLES[row.status])] if row.status else []
        figures = (_figure(m.max_ulp), _figure(m.mean_ulp), _figure(m.max_rel), _figure(m.error_over_bound))
        counted = (*[m.special_mismatch] * len(mismatched), m.nan_count, m.overflow_count, m.underflow_count)
        table.rows.append((*row.who, *judged, *figures, *map(str, counted)))
    return table


def _worst_table(rows: Sequence[_Row]) -> _Grid:
    table = _Grid(("worst of", "", "index", "logit", "got", "truth", "ULP", "bound", "rel"), left=3)
    for row in rows:
        for w in row.found.worst:
            place = ",".join(map(str, w.index)) or "()"
            got = (_figure(w.logit, 17), _figure(w.got, 17), w.expected)
            table.rows.append((*row.who, place, *got, _figure(w.ulp), _figure(w.bound_ulp), _figure(w.rel)))
    return table


def _figure(value: float | None, digits: int = 4) -> str:
    """A number to so many digits, at most those it has; "-" where there is none."""
    if value is None:
        return "-"
    return repr(value).removesuffix(".0") if digits >= 17 else f"{value:.{digits}g}"


def _notes(outcomes: Sequence[engine.Outcome], unit: _Unit) -> Iterator[str]:
    """A line for each outcome in which something broke, and those for what was asked with --include."""
    for o in outcomes:
        name = f"{o.variant}, {o.format}"
        said = _broken(o, unit)
        if said or o.faults:
            yield f"{name}: " + "; ".join([*said, *_why(o)])
        for line in _inversions(o):
            yield f"{name}: {line}"
        for kind, array in (("values", o.values), ("truth", o.truth)):
            if array is not None:
                yield f"{name}, {kind}: {_elements(array)}"


def _broken(found: engine.Outcome | engine.Measured, unit: _Unit) -> list[str]:
    m = found.metrics
    broken = (
        (m.nan_unexpected, "became NaN"),
        (m.nan_missing, "became a number where the truth is NaN"),
        (m.overflow_count, "overflowed"),
        (m.special_mismatch - m.nan_unexpected - m.nan_missing - m.overflow_count, "missed an infinite truth"),
        (m.false_zero_count, "vanished"),
    )
    return [f"{count} of {unit.total} {unit.noun} {what}" for count, what in broken if count]


def _inversions(found: engine.Outcome | engine.Measured) -> list[str]:
    inversions = found.metrics.rank_inversions
    return [] if inversions is None else [f"{inversions} rank inversions"]


def _why(outcome: engine.Outcome) -> Iterator[str]:
    """What broke first; and what first made a NaN, where there is one."""
    yield from (fault.detail for fault in outcome.faults[:1])
    if outcome.metrics.nan_unexpected:
        yield from [fault.detail for fault in outcome.faults[1:] if fault.kind == "invalid"][:1]


def _elements(array: tensors.Array) -> str:
    return np.array2string(array.astype(np.float64), separator=", ", threshold=64, max_line_width=PLAIN_WIDTH)


def _rules(outcomes: Sequence[engine.Outcome]) -> Iterator[str]:
    """The rule of `accurate`, where bounds say nothing, and what rounding the logits cost, once for each format."""
    first = {o.format: o for o in reversed(outcomes)}
    units = "; ".join(f"{_named(o)}: {_condition(o)}" for o in reversed(first.values()))
    yield f"\nstatus: by the bound of {outcomes[0].bound.reference}; {units}"
    yield from (f"{o.variant}, {o.format}: {line}" for o in outcomes for line in _void(o))
    for name, o in reversed(first.items()):
        if o.input_rounding.changed:
            changed = _counted(o.input_rounding.changed, "logit")
            yield f"{name}: rounding changed {changed}, by at most {o.input_rounding.max_abs:.3g}"


def _named(o: engine.Outcome) -> str:
    """The format, and the one its results are rounded to if that is another."""
    output = o.arithmetic.output_format
    return o.format if output == o.format else f"{o.format} to {output}"


def _without_truth(problem: engine.Problem, output: tensors.Array | None = None) -> Iterator[str]:
    """What gates must not overlook: rows whose truth is no number, where an output that is none either is accurate."""
    problem = _as_told(problem)
    if rows := sum(int(_special(block).sum()) for block in _blocks(problem.logits)):
        has = "has" if rows == 1 else "have"
        truth = f"the truth there is {_special_truth(problem)}, as the output must be"
        kept = "" if output is None or problem.params.reduction != "none" else _kept(problem, output)
        yield f"{_counted(rows, 'row')} {has} a NaN or +inf logit, or only -inf: {truth}{kept}"


def _kept(problem: engine.Problem, output: tensors.Array) -> str:
    """Whether the output of the rows without a number for a truth is what it must be."""
    fmt = engine.find_format(str(output.dtype))
    outputs = output.reshape(problem.logits.size // problem.logits.shape[-1], -1)
    start = wrong = total = 0
    for block in _blocks(problem.logits):
        special = _special(block)
        with np.errstate(invalid="ignore"):  # a signalling NaN
            got = outputs[start : start + len(block)][special].astype(np.float64)
        must = block[special].max(axis=-1, keepdims=True) if problem.op == "logsumexp" else np.full((len(got), 1), np.nan)
        must = engine.round_array(must, fmt).astype(np.float64)
        wrong += int(((got != must) & ~(np.isnan(got) & np.isnan(must))).sum())
        start, total = start + len(block), total + got.size
    return f"; {wrong} of {total} there {'is' if wrong == 1 else 'are'} not" if wrong else " and is"


def _became_infinite(problem: engine.Problem, outcomes: Sequence[engine.Outcome]) -> Iterator[str]:
    """The same for rows that lost their truth when the logits were rounded to a format, infinite there or NaN."""
    problem, capped = _as_told(problem), problem.params.softcap is not None
    for name in dict.fromkeys(o.format for o in outcomes if math.isinf(o.input_rounding.max_abs)):
        became = rows = 0
        for given in _blocks(problem.logits):
            rounded = engine.round_array(given, engine.FORMATS[name]).astype(np.float64)
            became += int((~np.isnan(given) & ~np.isfinite(rounded) & (given != rounded)).sum())
            rows += 0 if capped else int((_special(rounded) & ~_special(given)).sum())
        if engine.FORMATS[name].bits == 8 and outcomes[0].arithmetic.overflow == "saturate":
            lost_masks = sum(int(np.isinf(given).sum()) for given in _blocks(problem.logits))
            largest = engine.FORMATS[name].largest
            yield f"{name}: {_counted(lost_masks, 'infinite logit')} became {largest:g} in magnitude, as overflow saturates"
            continue
        whose = "its row" if became == rows == 1 else _counted(rows, "row")
        lost = f"; the truth of {whose} is {_special_truth(problem)}" if rows else "" if capped else " (-inf, probability 0)"
        noun, what = ("finite logit", "infinite") if engine.FORMATS[name].has_infinity else ("logit", "NaN")
        yield f"{name}: {_counted(became, noun)} became {what}{lost}"


def _as_told(problem: engine.Problem) -> engine.Problem:
    """The problem with logits that are numbers, or none, as those are after params: capped, masked, ignored, beside a sink."""
    params, x = problem.params, problem.logits
    if params is engine.NO_PARAMS:
        return problem
    if params.softcap is not None:
        x = np.clip(x.astype(np.float64), -1e300, 1e300)
    if params.mask is not None:
        x = np.where(params.mask, x.astype(np.float64), -np.inf)
    if params.ignore_index is not None and problem.targets is not None:
        x = np.where((problem.targets == params.ignore_index)[..., None], 0.0, x.astype(np.float64))
    if params.sink is not None:
        x = np.where((x == -np.inf).all(axis=-1, keepdims=True), 0.0, x.astype(np.float64))
    return replace(problem, logits=x)


def _blocks(logits: tensors.Array) -> Iterator[tensors.Array]:
    """The rows as float64, some at a time: a large tensor is never copied whole."""
    rows = logits.reshape(-1, logits.shape[-1])
    step = max(1, BLOCK // rows.shape[1])
    for start in range(0, len(rows), step):
        yield rows[start : start + step].astype(np.float64)


def _special(logits: tensors.Array) -> tensors.Array:
    """Which rows have a NaN or +inf, or nothing but -inf."""
    if np.isfinite(logits).all():
        return np.zeros(len(logits), bool)
    rows: tensors.Array = (np.isnan(logits) | (logits == np.inf)).any(axis=-1) | (logits == -np.inf).all(axis=-1)
    return rows


def _special_truth(problem: engine.Problem) -> str:
    return "NaN or infinite" if problem.op == "logsumexp" else "NaN"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


if __name__ == "__main__":
    main()
