"""softgauge.toml, what `softgauge check` runs: cases, each an op, its input, and a variant or the file that a kernel wrote.

A suite may come from a stranger (a pull request): its paths stay inside the repository, symbolic links followed, its size and the
number of its cases are bounded, and names hold no characters that a terminal, Markdown, XML or HTML would obey.
"""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import engine
from service import files
from service.errors import quoted

SUITE = "softgauge.toml"
LARGEST_FILE = 1 << 20  # bytes
MOST_FILES = 64
MOST_CASES = 10_000
MOST_ELEMENTS = 10_000_000
"""Of a tensor that is made here, and of an output that is."""
NAME = r"[A-Za-z0-9][A-Za-z0-9 ._/+-]{0,99}"
_LISTED = 20  # of what is wrong
_FILES = ("logits", "targets", "grad_output", "output")

Scalar = Annotated[str, Field(max_length=64)] | bool | int | float
Words = Annotated[str, Field(max_length=200)]
Figure = Literal[engine.FIGURES]  # type: ignore[valid-type]  # the engine's own list
Treatment = Literal["fail", "warn", "create"]


class SuiteError(Exception):
    """What is wrong with a suite: where, the rule and the way out."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class AxesTable(_Strict):
    """What of the arithmetic of a variant is varied."""

    accumulator: Words | None = Field(default=None, description="Format in which sums are added.")
    exp: Words = Field(default="numpy", description="numpy, correct or exp2.")
    subnormals: Words = Field(default="gradual", description="gradual or flush.")
    fma: bool = Field(default=False, description="Round a * b + c once, where a variant asks for it.")
    output_format: Words | None = Field(default=None, description="Format that results are rounded to at last.")
    overflow: Words = Field(default="format", description="format, or saturate.")


class ParamsTable(_Strict):
    """Params of the op that are numbers or names."""

    scale: float | None = None
    softcap: float | None = None
    sink: float | None = None
    label_smoothing: float | None = None
    ignore_index: int | None = None
    z_loss: float | None = None
    reduction: Words | None = None


class SourceTable(_Strict):
    """Where the code is that a case judges: findings are shown there."""

    file: Words
    line: int = Field(default=1, ge=1, le=10_000_000)


class Settings(_Strict):
    """What a case may say, and [defaults] for all of them."""

    op: Words | None = Field(default=None, description="softmax, log_softmax, logsumexp, cross_entropy, ...")
    family: Words | None = Field(default=None, description="The logits are of this input family.")
    parameters: dict[Words, Scalar] = Field(default={}, description="Parameters of the family.")
    rows: int = Field(default=1, ge=1, le=MOST_ELEMENTS)
    n: int = Field(default=1000, ge=1, le=MOST_ELEMENTS, description="Logits of a row of the family.")
    seed: int = Field(default=0, ge=0, le=2**53)
    logits: Words | None = Field(default=None, description="Or of this file: .npy, .npz or .safetensors.")
    logits_key: Words | None = None
    targets: Words | None = Field(default=None, description="File of the targets; of a family they are drawn: one class a row.")
    targets_key: Words | None = None
    grad_output: Words | None = Field(default=None, description="File of grad_output; of a family it is drawn.")
    grad_output_key: Words | None = None
    output: Words | None = Field(default=None, description="File that a kernel wrote; its dtype is the format that is judged.")
    output_key: Words | None = None
    axis: int = Field(default=-1, description="The axis that is reduced, of files.")
    variant: Words | None = Field(default=None, description="Or a variant of the catalogue, which is run.")
    format: Words | None = Field(default=None, description="Of its arithmetic; the input is rounded to it.")
    summation: Words = Field(default="numpy", description="How it adds.")
    axes: AxesTable = AxesTable()
    params: ParamsTable = ParamsTable()
    gate: dict[Words, Scalar] | Literal["none"] = Field(
        default={"policy": "bound"}, description='{policy = "max_ulp", ulps = 2}, or "none": only regressions count.'
    )
    nonfinite: Words = Field(default="ieee", description="ieee, masked_zero, masked_uniform or strict.")
    figures: list[Figure] | None = Field(
        default=None, description="The figures that may not become worse; all but backward_error, if left out."
    )
    slack: dict[Figure, float] = Field(default={}, description="By how much one may, in its own unit.")
    informational: bool = Field(default=False, description="Whatever becomes of it, it is only said.")
    tags: list[Annotated[str, Field(pattern=f"^{NAME}$")]] = Field(default=[], max_length=20)
    source: SourceTable | None = None


class CaseTable(Settings):
    """One case, or as many as its grid has points."""

    name: str = Field(pattern=f"^{NAME}$")
    grid: dict[Words, list[Scalar]] = Field(
        default={},
        description='Settings by name, such as format or "axes.exp", each with its values; {format} in a path stands for one.',
    )


class PolicyTable(_Strict):
    """What is done about a case that cannot be compared: fail, warn, or create its entry in the baseline."""

    new: Treatment = "fail"
    missing: Literal["fail", "warn"] = "fail"
    stale: Treatment = "fail"
    incomparable: Treatment = "fail"


class SuiteTable(_Strict):
    """A suite of cases for `softgauge check`."""

    version: Literal[1] = Field(description="Of this schema.")
    baseline: Words = ".softgauge/baseline.json"
    include: list[Words] = Field(
        [], max_length=MOST_FILES, description="Other suites, of which the cases and nothing else are read."
    )
    policy: PolicyTable = PolicyTable()
    defaults: Settings = Settings()
    case: list[CaseTable] = Field(default=[], max_length=MOST_CASES)


@dataclass(frozen=True)
class Case:
    """One case: what is asked of it, where its files are, and how it is compared."""

    name: str
    op: str
    family: str | None
    parameters: Mapping[str, Any]
    rows: int
    n: int
    seed: int
    paths: Mapping[str, tuple[str, str | None]]
    axis: int
    variant: str | None
    format: str | None
    summation: str
    axes: engine.Axes
    params: engine.Params
    gate: engine.Gate | None
    nonfinite: str
    rules: engine.Rules
    tags: tuple[str, ...]
    source: tuple[str, int] | None

    @property
    def asked(self) -> dict[str, object]:
        """What a baseline must agree on beside the tensors. How the output is made is not among it: that is what may change."""
        told = {name: value for name, value in asdict(self.params).items() if value != getattr(engine.NO_PARAMS, name)}
        gate = "none" if self.gate is None else {"policy": self.gate.policy, **self.gate.parameters}
        return {"op": self.op, "gate": gate, "nonfinite": self.nonfinite, "params": told, "axis": self.axis}


@dataclass(frozen=True)
class Suite:
    """path: of the file; root: of the repository, which nothing is outside of; baseline: a path inside."""

    path: Path
    root: Path
    baseline: Path
    cases: tuple[Case, ...]
    treatments: Mapping[str, str]


def schema() -> dict[str, Any]:
    """The JSON Schema of a suite."""
    found = {"$schema": "https://json-schema.org/draft/2020-12/schema", **SuiteTable.model_json_schema()}
    return {**found, "title": "softgauge.toml"}


def load(path: Path, baseline: str | None = None) -> Suite:
    """A suite and all that it includes. baseline: instead of the one it names. Raises SuiteError, OSError."""
    path = path.resolve()
    root = _root(path.parent)
    table, raw = _parsed(path, root)
    cases = _gathered(_included(path, root, table, raw, {path}), root)
    if not cases:
        raise SuiteError(f"{path.name} has no cases: add a [[case]], or an include")
    there = _inside(baseline if baseline is not None else table.baseline, path.parent, root, f"{path.name}: baseline")
    return Suite(path, root, there, cases, table.policy.model_dump())


def given(raw: Mapping[str, Any]) -> Suite:
    """A suite that came without a folder, and names no files. Raises SuiteError."""
    where = "suite"
    try:
        table = SuiteTable.model_validate(raw)
    except ValidationError as error:
        rows = [_complaint(row, raw) for row in error.errors(include_url=False)[:_LISTED]]
        raise SuiteError("; ".join(f"{where}: {row}" for row in rows)) from None
    named = [kind for kind in _FILES for row in (raw.get("defaults", {}), *raw.get("case", ())) if row.get(kind) is not None]
    if table.include or named:
        stray = "include" if table.include else named[0]
        raise SuiteError(
            f"{where}: {stray} names a file, and there are none here: `softgauge check --url` runs a suite beside them"
        )
    cases = _gathered([(where, _NOWHERE / where, raw.get("case", ()), raw.get("defaults", {}))], _NOWHERE)
    if not cases:
        raise SuiteError(f"{where} has no cases: add one to `case`")
    return Suite(_NOWHERE, _NOWHERE, _NOWHERE, cases, table.policy.model_dump())


_NOWHERE = Path("/nowhere")
"""Where the paths of a suite without files lead."""

_Table = tuple[str, Path, Sequence[dict[str, Any]], dict[str, Any]]
"""A file of a suite: how it is called, where it is, the cases as they are written, and its defaults."""


def _gathered(tables: Iterable[_Table], root: Path) -> tuple[Case, ...]:
    """The cases of all files, each of a name of its own."""
    cases: dict[str, Case] = {}
    for where, file, rows, defaults in tables:
        for index, row in enumerate(rows):
            for case in _resolved(row, defaults, file.parent, root, f"{where}: case {index} ({row['name']})"):
                if case.name in cases:
                    raise SuiteError(f"{where}: two cases are named {case.name}; a name is of one case")
                cases[case.name] = case
                if len(cases) > MOST_CASES:
                    raise SuiteError(f"{where}: more than {MOST_CASES} cases; split the suite")
    return tuple(cases.values())


def _root(folder: Path) -> Path:
    """The repository that a folder is in; the folder itself where it is in none."""
    return next((parent for parent in (folder, *folder.parents) if (parent / ".git").exists()), folder)


def _inside(given: str, folder: Path, root: Path, where: str) -> Path:
    """A path of a suite, which stays inside the repository."""
    try:
        found = (folder / given).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a circle of links, a NUL
        raise SuiteError(f"{where}: {quoted(given)}: {error}") from None
    if not found.is_relative_to(root):
        raise SuiteError(f"{where}: {quoted(given)} leads out of the repository, {root.name}; nothing outside is read or written")
    return found


def _parsed(path: Path, root: Path) -> tuple[SuiteTable, dict[str, Any]]:
    """A file of a suite, checked, and as it is written."""
    where = str(path.relative_to(root))
    if not path.is_file():
        raise SuiteError(f"{where}: no such file; `softgauge init` writes one")
    with path.open("rb") as file:
        text = file.read(LARGEST_FILE + 1)
    if len(text) > LARGEST_FILE:
        raise SuiteError(f"{where}: more than {LARGEST_FILE} bytes; split it with include")
    try:
        raw = tomllib.loads(text.decode())
        return SuiteTable.model_validate(raw), raw
    except ValidationError as error:
        rows = [_complaint(row, raw) for row in error.errors(include_url=False)[:_LISTED]]
        raise SuiteError("\n".join(f"{where}: {row}" for row in rows)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SuiteError(f"{where} is not TOML: {str(error) or 'nested too deeply'}") from None


def _complaint(row: Any, raw: Mapping[str, Any]) -> str:
    """What pydantic found, with the case's name and the value."""
    place = [str(part) for part in row["loc"] if not str(part).startswith(("dict[", "literal[", "function-"))]
    if place[:1] == ["case"] and len(place) > 1:
        cases = raw.get("case")
        case = cases[int(place[1])] if isinstance(cases, list) and int(place[1]) < len(cases) else None
        name = case.get("name") if isinstance(case, dict) else None
        place = [f"case {place[1]}" + (f" ({quoted(str(name))})" if name is not None else ""), *place[2:]]
    value = "" if row["type"] in ("missing", "extra_forbidden") else f", not {quoted(str(row['input']))}"
    known = ""
    if row["type"] == "extra_forbidden":
        table = CaseTable if place[0].startswith("case ") and len(place) == 2 else None
        known = f"; known: {', '.join(table.model_fields)}" if table else ""
    return f"{': '.join(quoted(part) if '(' not in part else part for part in place)}: {row['msg']}{value}{known}"


def _included(path: Path, root: Path, table: SuiteTable, raw: Mapping[str, Any], seen: set[Path]) -> Iterator[_Table]:
    """The files of a suite, this one first."""
    where = str(path.relative_to(root))
    yield where, path, raw.get("case", []), raw.get("defaults", {})
    for given in table.include:
        other = _inside(given, path.parent, root, f"{where}: include")
        if other in seen:
            raise SuiteError(f"{where}: include {quoted(given)} is read already; name each file once")
        seen.add(other)
        if len(seen) > MOST_FILES:
            raise SuiteError(f"{where}: more than {MOST_FILES} files; put them together")
        yield from _included(other, root, *_parsed(other, root), seen)


def _resolved(row: Mapping[str, Any], defaults: Mapping[str, Any], folder: Path, root: Path, where: str) -> Iterator[Case]:
    """The cases of a table: one, or those of its grid."""
    grid: Mapping[str, Sequence[Any]] = row.get("grid", {})
    for name, values in grid.items():
        if not values:
            raise SuiteError(f"{where}: grid: {name} has no values")
    points = 1
    for values in grid.values():
        points *= len(values)
    if points > MOST_CASES:
        raise SuiteError(f"{where}: its grid has {points} points; a suite has at most {MOST_CASES} cases")
    for chosen in itertools.product(*grid.values()):
        point = dict(zip(grid, chosen, strict=True))
        told = {key: value for key, value in row.items() if key not in ("grid", "name")}
        merged = {**defaults, **told}
        for name, value in point.items():
            merged = _with(merged, name, value, where)
        shown = ",".join(f"{name.rpartition('.')[2]}={value}" for name, value in point.items())
        name = row["name"] + (f"[{shown}]" if shown else "")
        if not re.fullmatch(rf"{NAME}(\[[A-Za-z0-9 ._/+=,()-]{{1,200}}\])?", name):
            raise SuiteError(f"{where}: grid: {quoted(shown)} cannot stand in a name; values are short words and numbers")
        try:
            settings = Settings.model_validate(merged)
        except ValidationError as error:
            raise SuiteError("\n".join(f"{where}: {_complaint(e, {})}" for e in error.errors(include_url=False))) from None
        yield _case(name, settings, point, folder, root, f"{where}: {name}" if shown else where)


def _with(settings: Mapping[str, Any], name: str, value: Any, where: str) -> dict[str, Any]:
    """Settings with one more, whose name may be that of a table and a dot before it."""
    table, dot, rest = name.partition(".")
    if table not in Settings.model_fields:
        if any(f"{{{name}}}" in str(settings.get(kind)) for kind in _FILES):
            return {**settings}
        rule = f"no path has {{{name}}} in it, and the settings are {', '.join(Settings.model_fields)}"
        raise SuiteError(f"{where}: grid: {quoted(name)} is unknown: {rule}")
    if not dot:
        return {**settings, name: value}
    inner = settings.get(table, {})
    return {**settings, table: {**(inner if isinstance(inner, dict) else {}), rest: value}}


def _check_kind(s: Settings, where: str) -> None:
    """Whether it is told where the input and the output are from."""
    if s.op is None:
        raise SuiteError(f"{where}: op is missing; known: {', '.join(row['name'] for row in engine.catalogue('ops'))}")
    if (s.family is None) == (s.logits is None):
        raise SuiteError(f'{where}: the input is either of a family (family = "gaussian") or in a file (logits = "x.npy")')
    if (s.variant is None) == (s.output is None):
        raise SuiteError(f'{where}: what is judged is either a variant (variant = "shifted") or in a file (output = "y.npy")')
    if s.variant is not None and s.format is None:
        raise SuiteError(f'{where}: format is missing, in which {quoted(s.variant)} is to be run, such as "float16"')
    if s.output is not None and (s.format is not None or s.family is not None):
        stray = "format" if s.format is not None else "family"
        way = "its dtype is the format" if stray == "format" else "give the logits that it was made from as a file"
        raise SuiteError(f"{where}: {stray} has no place beside output: {way}")


def _case(name: str, s: Settings, point: Mapping[str, Any], folder: Path, root: Path, where: str) -> Case:
    """One case, checked as far as it can be without its files."""
    _check_kind(s, where)
    assert s.op is not None
    paths = {}
    for kind in _FILES:
        given = getattr(s, kind)
        if given is None:
            continue
        for key, value in point.items():
            given = given.replace(f"{{{key}}}", str(value))
        found = _inside(given, folder, root, f"{where}: {kind}")
        if found.suffix.lower() not in files.SUFFIXES:
            raise SuiteError(f"{where}: {kind}: {quoted(given)}: files end in {', '.join(files.SUFFIXES)}")
        paths[kind] = (str(found), getattr(s, f"{kind}_key"))
    source = None
    if s.source is not None:
        there = _inside(s.source.file, folder, root, f"{where}: source")
        source = there.relative_to(root).as_posix(), s.source.line
    try:
        rules = engine.Rules(tuple(s.figures) if s.figures is not None else engine.USUAL, s.slack, s.informational)
        gate = None
        if not isinstance(s.gate, str):
            told = {"policy": "bound", **s.gate}
            gate = engine.Gate(str(told.pop("policy")), told)
            engine.check_gate(gate)
        fmt = None if s.format is None else engine.find_format(s.format).name
        params = {key: value for key, value in s.params.model_dump().items() if value is not None}
        case = Case(
            name, s.op, s.family, s.parameters, s.rows, s.n, s.seed, paths, s.axis, s.variant, fmt, s.summation,
            engine.Axes(**s.axes.model_dump()), engine.Params(**params) if params else engine.NO_PARAMS, gate, s.nonfinite, rules,
            tuple(s.tags), source,
        )  # fmt: skip
        _look_up(case)
    except engine.EngineError as error:
        raise SuiteError(f"{where}: {error}") from None
    return case


def _look_up(case: Case) -> None:
    """Every name of a case is known, before anything is computed. Raises EngineError."""
    if case.family is not None:
        engine.generate(case.family, 1, 1, case.seed, **case.parameters)
        if case.rows * case.n > MOST_ELEMENTS:
            raise engine.InvalidProblem(f"rows = {case.rows} times n = {case.n} is above {MOST_ELEMENTS} elements; ask for fewer")
    if case.variant is not None and case.format is not None:
        x = np.zeros((1, 2))
        problem = engine.Problem(case.op, x, *_companions(case.op, x, 0), case.params)
        engine.run_variant(problem, case.format, case.variant, case.summation, case.axes)
    else:
        engine.output_shape(engine.Problem(case.op, np.zeros((1, 2))))


def _companions(op: str, x: np.ndarray[Any, Any], seed: int) -> tuple[np.ndarray[Any, Any] | None, np.ndarray[Any, Any] | None]:
    """Targets and grad_output where an op needs them: one class a row, and normal numbers, by the same seed."""
    needed = next((row["tensors"] for row in engine.catalogue("ops") if row["name"] == op), ())
    rng = np.random.Generator(np.random.PCG64([seed, 1]))
    targets = rng.integers(0, x.shape[-1], x.shape[:-1]) if "targets" in needed else None
    return targets, rng.standard_normal(x.shape) if "grad_output" in needed else None


def tensors(case: Case) -> tuple[engine.Problem, np.ndarray[Any, Any]]:
    """The problem of a case and the output that is judged, made or read. Raises SuiteError, EngineError."""
    read = {kind: _read(kind, path, key, case.name) for kind, (path, key) in case.paths.items()}
    if case.family is not None:
        logits = engine.generate(case.family, case.rows, case.n, case.seed, **case.parameters)
        targets, grad_output = _companions(case.op, logits, case.seed)
        targets, grad_output = read.get("targets", targets), read.get("grad_output", grad_output)
    else:
        logits, targets, grad_output = read["logits"], read.get("targets"), read.get("grad_output")
    problem = engine.Problem(case.op, logits, targets, grad_output, case.params)
    if case.variant is None:
        return problem, read["output"]
    assert case.format is not None
    return engine.run_variant(problem, case.format, case.variant, case.summation, case.axes)


def _read(kind: str, path: str, key: str | None, name: str) -> np.ndarray[Any, Any]:
    """A tensor of a file."""

    def choose(names: Sequence[str]) -> Sequence[str]:
        wanted = key if key is not None else names[0] if len(names) == 1 else kind
        if wanted not in names:
            raise ValueError(
                f"no tensor {quoted(wanted)}; there are {', '.join(map(quoted, names[:20])) or 'none'}; say {kind}_key"
            )
        return [wanted]

    try:
        if not Path(path).is_file():
            raise ValueError("no such file: the kernel that writes it has to run first")
        (found,) = files.tensors(files.mapped(Path(path)), Path(path).suffix.lower(), choose).values()
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  a broken file makes its reader raise anything
        raise SuiteError(f"{name}: {kind}: {Path(path).name}: {files.first_line(error)}") from None
    if found.dtype.kind in "iu" and kind == "targets" and found.dtype != np.uint64:
        return found.astype(np.int64)
    if found.dtype.kind in "iub":
        raise SuiteError(f"{name}: {kind}: {Path(path).name}: dtype {found.dtype}; known: {', '.join(engine.FORMATS)}")
    return found


TEMPLATE = """\
# What `softgauge check` runs. The settings of a case: `softgauge init --schema`, and the documentation.
version = 1
baseline = ".softgauge/baseline.json"  # written by `softgauge check --accept --reason "..."`, and committed

# What is done about a case that cannot be compared with the baseline: "fail", "warn", or "create" its entry.
[policy]
new = "create"       # it is not in the baseline yet; "fail" once the suite is settled
missing = "fail"     # it is in the baseline, and no longer here
stale = "fail"       # its input or its gate is another than the baseline's
incomparable = "fail"  # the baseline was written by an engine whose figures mean something else

# What holds for every case that does not say otherwise.
[defaults]
op = "softmax"
gate = { policy = "bound" }  # what error theory allows a right kernel; or { policy = "max_ulp", ulps = 2 }, or "none"

# A variant of the catalogue (`softgauge variants`), in three formats and two lengths: six cases. What is computed wholly in float16
# is not what the gate above allows, so that these are watched for regressions alone.
[[case]]
name = "numpy"
gate = "none"
family = "gaussian"
parameters = { sigma = 4 }
rows = 2
variant = "shifted"
tags = ["numpy"]
[case.grid]
format = ["float16", "float32", "float64"]
n = [10, 1000]

# The output of your own kernel, which your test-suite saves beside its logits before `softgauge check` runs.
# [[case]]
# name = "attention"
# logits = "build/attention-logits.safetensors"
# output = "build/attention-{dtype}.safetensors"
# slack = { mean_ulp = 0.001 }                        # by how much a figure may be worse
# source = { file = "kernels/attention.cu", line = 42 }  # where findings are shown in a pull request
# [case.grid]
# dtype = ["float16", "bfloat16"]
"""


def written_schema() -> str:
    """The schema as it is published."""
    return json.dumps(schema(), indent=1) + "\n"
