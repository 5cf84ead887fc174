"""One run of a suite: every case computed or read, compared with the baseline, and what `softgauge check` answers about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import engine
from service import suite
from service.baseline import LONGEST, Baseline
from service.reports import short
from service.split import Map
from service.suite import Case, Suite, SuiteError

EXIT = {"pass": 0, "improved": 0, "regressed": 1, "failed": 1, "inconclusive": 4, "incomparable": 4}
FINDINGS = 8
"""Sentences of a gate that are kept of a case."""
BAD = ("regressed", "failed")
UNCOMPARED = ("new", "missing", "stale", "incomparable")
LAST = {status: rank for rank, status in enumerate(reversed(engine.STATUSES))}
"""The order in which cases are told: the worst first."""

NOTHING = Baseline({})
"""A baseline that holds no case."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Result:
    """What became of a case. worst: element, where it was measured; findings: of its gate; faults: of the variant, where it got
    worse; tags, source (file, line), rules: as its suite says."""

    entry: engine.Entry
    worst: str | None = None
    findings: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    source: tuple[str, int] | None = None
    rules: engine.Rules = field(default_factory=engine.Rules)


@dataclass(frozen=True)
class Run:
    """A suite that was run. results: by case; compared: with the baseline, in the suite's order, those that are missing last."""

    suite: Suite
    cases: Mapping[str, Case]
    results: Mapping[str, Result]
    compared: tuple[engine.Compared, ...]
    verdict: str


def select(cases: Iterable[Case], tags: Sequence[str], names: Sequence[str]) -> tuple[Case, ...]:
    """Cases that have one of the tags, and one of the names or patterns, where such are given."""
    return tuple(
        case
        for case in cases
        if (not tags or set(tags) & set(case.tags))
        and (not names or any(case.name == name or fnmatchcase(case.name, name) for name in names))
    )


def run(
    given: Suite,
    cases: Sequence[Case],
    baseline: Baseline,
    testbed: str = "",
    processes: Map = map,
    progress: Progress = lambda done, total: None,
) -> Run:
    """Run cases of a suite, and compare. testbed: where the files of kernels are from. processes: how cases are shared out.

    Cases that are not run are not missing, but where all are run. Raises SuiteError, EngineError.
    """
    work = [(case, baseline.cases.get(case.name, ()), testbed) for case in cases]
    given_as, results = {case.name: case for case in cases}, {}
    progress(0, len(work))
    for done, (name, result, refused) in enumerate(processes(_judged, work), 1):
        if refused is not None:
            raise SuiteError(refused)
        assert result is not None
        results[name] = dataclasses.replace(
            result, tags=given_as[name].tags, source=given_as[name].source, rules=given_as[name].rules
        )
        progress(done, len(work))
    entries = {name: result.entry for name, result in results.items()}
    known = baseline.cases if len(cases) == len(given.cases) else {name: baseline.cases.get(name, ()) for name in entries}
    compared = engine.compare(
        entries, {name: rows for name, rows in known.items() if rows}, {case.name: case.rules for case in cases}
    )
    return Run(given, given_as, results, compared, engine.verdict_of(compared, given.treatments))


def estimate(case: Case) -> float:
    """Seconds that a variant's case may take on one slow core: a planning figure. Raises EngineError."""
    assert case.variant is not None
    assert case.format is not None
    problem, output = suite.tensors(case)
    made = engine.estimate(problem, [case.format], [case.variant], (), case.summation, case.axes)
    return made if case.gate is None else made + engine.estimate_verdict(problem, output, case.axis)


Work = tuple[Case, Sequence[engine.Entry], str]


def _judged(work: Work) -> tuple[str, Result | None, str | None]:
    """A case, in a process of its own perhaps; what is wrong with it is told, since an exception would lose its name."""
    case, known, testbed = work
    try:
        return case.name, _result(case, known, testbed), None
    except SuiteError as error:
        return case.name, None, str(error)
    except engine.Disagreement:
        raise
    except engine.EngineError as error:
        return case.name, None, f"{case.name}: {error}"


def _result(case: Case, known: Sequence[engine.Entry], testbed: str) -> Result:
    """What is known already of the same bits is not measured again."""
    problem, output = suite.tensors(case)
    inputs = _digests(problem)
    output_digest = engine.digest(output)
    made = case.variant is not None
    fingerprint = engine.fingerprint() if made else f"files{f' of {testbed}' * bool(testbed)}"
    asked = {**case.asked, "format": str(output.dtype)}
    now = engine.Entry(engine.SCHEMA, fingerprint, inputs, asked, output_digest, None, {})
    for was in known:
        if (was.schema, was.inputs, was.asked, was.output) == (now.schema, now.inputs, now.asked, now.output):
            return Result(dataclasses.replace(now, verdict=was.verdict, figures=was.figures))
    findings: tuple[str, ...] = ()
    if case.gate is None:
        if case.axis != -1:
            raise engine.InvalidProblem("axis is of a gate: without one the last axis is reduced")
        measured = engine.measure(problem, output, worst=1)
        found, worst, verdict = measured.metrics, measured.worst, None
    else:
        judged = engine.verify(problem, output, case.gate, case.nonfinite, worst=1, axis=case.axis)
        found, worst, verdict = judged.metrics, judged.worst, judged.verdict
        findings = tuple(finding.detail for finding in judged.findings[:FINDINGS])
    if case.paths and (inputs, output_digest) != (_digests(problem), engine.digest(output)):
        raise SuiteError(f"{case.name}: a file of it changed while it was measured; run this when the kernels have ended")
    now = dataclasses.replace(now, verdict=verdict, figures=engine.figures_of(found))
    told = _worst(*worst) if worst else None
    return Result(now, told, findings, _faults(case, problem, now, known) if made else ())


def _digests(problem: engine.Problem) -> dict[str, str]:
    """Of the tensors of a case, by name."""
    given = {"logits": problem.logits, "targets": problem.targets, "grad_output": problem.grad_output}
    return {name: engine.digest(tensor) for name, tensor in given.items() if tensor is not None}


def _worst(found: engine.Worst) -> str:
    """The worst element: where, what it is, and what it should be."""
    place, far = ", ".join(map(str, found.index)), "" if found.ulp is None else f", {found.ulp:.4g} ULP off"
    return f"worst at [{place}]: got {found.got!r}, truth {found.expected}{far}"


def _faults(case: Case, problem: engine.Problem, now: engine.Entry, known: Sequence[engine.Entry]) -> tuple[str, ...]:
    """What broke in a variant that is not as good as it was, step by step."""
    if engine.compare({case.name: now}, {case.name: known}, {case.name: case.rules})[0].status not in BAD:
        return ()
    assert case.variant is not None
    assert case.format is not None
    (outcome,) = engine.evaluate(problem, [case.format], [case.variant], case.summation, worst=0, axes=case.axes).outcomes
    return tuple(fault.detail for fault in outcome.faults[:FINDINGS])


def accepted(done: Run) -> tuple[dict[str, engine.Entry], list[str], list[str]]:
    """What `--accept` puts into the baseline: entries that are not in it, cases that are gone, and a line for each.

    Raises SuiteError where a case fails its gate, which no baseline excuses.
    """
    failing = [row.case for row in done.compared if (result := done.results.get(row.case)) and result.entry.verdict == "fail"]
    failing = [name for name in failing if not done.cases[name].rules.informational]
    if failing:
        way = 'mend it, or loosen its gate; gate = "none" watches it for regressions only'
        raise SuiteError(
            f"{', '.join(failing[:8])}{' and others' * (len(failing) > 8)}: fails its gate, and is not accepted: {way}"
        )
    entries, gone, changed = {}, [], []
    for row in done.compared:
        if row.status == "missing":
            gone.append(row.case)
        elif row.status == "unchanged" and row.against == done.results[row.case].entry.fingerprint:
            continue
        else:
            entries[row.case] = done.results[row.case].entry
        changed.append(f"{row.case}: {row.status}{_by_how_much(row)}"[:LONGEST])
    return entries, gone, changed


def created(done: Run) -> dict[str, engine.Entry]:
    """Entries of the cases that the suite says to create."""
    asked = {row.case for row in done.compared if done.suite.treatments.get(row.status) == "create"}
    return {name: done.results[name].entry for name in done.results if name in asked}


def _by_how_much(row: engine.Compared) -> str:
    said = [f"{change.figure} {short(change.was)} -> {short(change.now)}" for change in row.changes[:4]]
    return f", {', '.join(said)}" if said else ""


def answer(done: Run, baseline: Baseline) -> dict[str, Any]:
    """The run as plain data, the worst cases first: what `--json` writes, and what every report is made from."""
    names = {
        "suite": done.suite.path.relative_to(done.suite.root).as_posix(),
        "baseline": done.suite.baseline.relative_to(done.suite.root).as_posix(),
        "accepted": [dataclasses.asdict(move) for move in baseline.moves[-1:]],
        "engine": {"version": engine.VERSION, "schema": engine.SCHEMA, "fingerprint": engine.fingerprint()},
    }
    return told(names, done.compared, done.verdict, done.results, baseline.cases, done.suite.treatments)


def told(
    names: Mapping[str, Any],
    compared: Sequence[engine.Compared],
    verdict: str,
    results: Mapping[str, Result],
    known: Mapping[str, Sequence[engine.Entry]],
    treatments: Mapping[str, str],
) -> dict[str, Any]:
    """What was compared, as plain data, the worst cases first. names: how the suite and the baseline are called, and the engine."""
    counts = dict.fromkeys(engine.STATUSES, 0)
    for row in compared:
        counts[row.status] += 1
    rows = sorted(compared, key=lambda row: LAST[row.status])
    answer = {
        "verdict": verdict,
        **names,
        "treatments": dict(treatments),
        "counts": {status: count for status, count in counts.items() if count},
        "cases": [_case(row, results.get(row.case), known.get(row.case, ()), treatments) for row in rows],
    }
    return dict(engine.encode(answer))


def _case(
    row: engine.Compared, result: Result | None, known: Sequence[engine.Entry], treatments: Mapping[str, str]
) -> dict[str, Any]:
    entry = result.entry if result else None
    was = next((old for old in known if old.fingerprint == row.against), next(iter(known), None))
    return {
        "case": row.case,
        "status": row.status,
        "counts": row.status in BAD or row.status == "inconclusive"
        or (row.status in UNCOMPARED and treatments.get(row.status, "fail") == "fail"),
        "why": list(row.why),
        "changes": [dataclasses.asdict(change) for change in row.changes],
        "worst": result.worst if result else None,
        "findings": list(result.findings) if result else [],
        "faults": list(result.faults) if result else [],
        "verdict": entry.verdict if entry else None,
        "fingerprint": entry.fingerprint if entry else None,
        "against": row.against,
        "max_ulp": entry.figures.get("max_ulp") if entry else None,
        "was_max_ulp": was.figures.get("max_ulp") if was else None,
        "output": entry.output if entry else None,
        "tags": list(result.tags) if result else [],
        "source": {"file": result.source[0], "line": result.source[1]} if result and result.source else None,
    }  # fmt: skip
