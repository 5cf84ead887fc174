"""A run as it travels and as it is kept: a header and a line of JSON for each case; and what comparing two of them says.

What is posted is checked by run_schemas.py, in a computing process; what is kept is a document of our own making.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import engine
from service import check
from service.baseline import Known, entry, stored
from service.check import Result
from service.run_schemas import CaseModel, RulesModel

FORMAT = 1


@dataclass(frozen=True)
class Kept:
    """A run that is read again. head: of its document; results: by case."""

    head: Mapping[str, Any]
    results: Mapping[str, Result]


def lines(results: Mapping[str, Result]) -> list[bytes]:
    """The lines of a document: a case each, in a fixed order of fields."""
    return [_json(_told(name, result)) for name, result in results.items()]


def _told(name: str, result: Result) -> dict[str, Any]:
    rules = result.rules
    return {
        "name": name,
        "entry": stored(result.entry, engine.VERSION),
        "worst": result.worst,
        "findings": list(result.findings),
        "faults": list(result.faults),
        "tags": list(result.tags),
        "source": None if result.source is None else {"file": result.source[0], "line": result.source[1]},
        "rules": {"figures": list(rules.figures), "slack": dict(rules.slack), "informational": rules.informational},
    }


def posted(results: Mapping[str, Result]) -> list[dict[str, Any]]:
    """The cases of a run as a client posts them."""
    cut = {
        name: replace(
            row,
            worst=None if row.worst is None else _cut([row.worst])[0],
            findings=_cut(row.findings),
            faults=_cut(row.faults),
        )
        for name, row in results.items()
    }
    return [_told(name, row) for name, row in cut.items()]


_LONGEST = 500  # characters that a sentence may have where it is kept


def _cut(said: Iterable[str]) -> tuple[str, ...]:
    """Sentences as they may be kept: of bounded length, and of printable characters."""
    shown = ("".join(mark if mark.isprintable() else " " for mark in one) for one in said)
    return tuple(one if len(one) <= _LONGEST else f"{one[: _LONGEST - 3]}..." for one in shown)


def result(case: CaseModel) -> Result:
    """A posted case. Raises EngineError, Lacking, OverflowError."""
    source = None if case.source is None else (case.source.file, case.source.line)
    return Result(
        entry(case.entry), case.worst, tuple(case.findings), tuple(case.faults), tuple(case.tags), source, case.rules.rules()
    )


def document(head: Mapping[str, Any], cases: Sequence[bytes]) -> bytes:
    """A run as it is kept."""
    return b"\n".join((_json({"format": FORMAT, **head}), *cases)) + b"\n"


_REMEMBERED = 1 << 20
"""Bytes of a document that is remembered as it was read, since every run of a branch is held against the same baseline."""


def read(kept: bytes) -> Kept:
    """A document, as it was written here; nobody changes what is returned."""
    return _remembered(kept) if len(kept) <= _REMEMBERED else _read(kept)


def _read(kept: bytes) -> Kept:
    """Line by line: one long text would hold up every other thread."""
    first, *rest = kept.splitlines()
    results = {}
    for line in rest:
        row = json.loads(line)
        source = None if row["source"] is None else (row["source"]["file"], row["source"]["line"])
        rules = engine.Rules(tuple(row["rules"]["figures"]), row["rules"]["slack"], row["rules"]["informational"])
        said = (row["worst"], tuple(row["findings"]), tuple(row["faults"]), tuple(row["tags"]))
        results[row["name"]] = Result(entry(Known.model_validate(row["entry"])), *said, source, rules)
    return Kept(json.loads(first), results)


_remembered = lru_cache(maxsize=8)(_read)


def plain(kept: bytes) -> dict[str, Any]:
    """A document as one object: the header, and `cases`."""
    first, *rest = kept.splitlines()
    return {**json.loads(first), "cases": [json.loads(line) for line in rest]}


def compared(
    now: Kept,
    was: Kept | None,
    baseline: Mapping[str, Any],
    treatments: Mapping[str, str],
    partial: bool = False,
    rules: Mapping[str, RulesModel] | None = None,
) -> dict[str, Any]:
    """What is to be said of a run beside a baseline, as `softgauge check --json` does. baseline: {name, branch, at, by, reason}."""
    known = {name: (row.entry,) for name, row in was.results.items()} if was else {}
    if partial:
        known = {name: rows for name, rows in known.items() if name in now.results}
    entries = {name: row.entry for name, row in now.results.items()}
    found = engine.compare(entries, known, {name: _rules(name, row, rules or {}) for name, row in now.results.items()})
    accepted = [{"at": baseline["at"], "by": baseline["by"], "reason": baseline["reason"], "changed": []}] if was else []
    names = {
        "suite": f"{now.head['project']} {now.head['commit'] or now.head['branch']}",
        "baseline": f"{baseline['name']} of {baseline['branch']}",
        "accepted": accepted,
        "engine": now.head["engine"],
    }
    return check.told(names, found, engine.verdict_of(found, treatments), now.results, known, treatments)


def _rules(name: str, row: Result, given: Mapping[str, RulesModel]) -> engine.Rules:
    return next((found.rules() for pattern, found in given.items() if name == pattern or fnmatchcase(name, pattern)), row.rules)


def judged(now: Kept) -> dict[str, Any]:
    """What is to be said of a run alone: what its gates say."""
    said = {"fail": "failed", "inconclusive": "inconclusive"}
    rows = tuple(
        engine.Compared(name, "informational" if row.rules.informational else said.get(str(row.entry.verdict), "unchanged"))
        for name, row in now.results.items()
    )
    names = {
        "suite": f"{now.head['project']} {now.head['commit'] or now.head['branch']}",
        "baseline": "none",
        "accepted": [],
        "engine": now.head["engine"],
    }
    return check.told(names, rows, engine.verdict_of(rows), now.results, {}, {})


def failing(kept: Kept) -> list[str]:
    """The cases that fail their gates, which no baseline excuses."""
    return [name for name, row in kept.results.items() if row.entry.verdict == "fail" and not row.rules.informational]


def _json(value: object) -> bytes:
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
