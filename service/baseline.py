"""The baseline of `softgauge check`: one JSON file in the repository, in a stable order, that is replaced whole or not at all.

It may come from a stranger: its size is bounded, every field is checked, and its text holds no control characters. Floats are hex,
so that what is read is what was written.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

import engine
from service import tensors
from service.errors import quoted

FORMAT = 1
LARGEST = 1 << 26  # bytes
MOST_MOVES = 100
"""Moves that are remembered."""
_EXACT = 2**53
_HEX = r"-?0x[01]\.?[0-9a-f]{0,13}p[+-][0-9]{1,4}"
_LARGE = "[1-9][0-9]{15,18}"
"""An integer beyond those that every reader of JSON takes exactly, such as the distance of a float64 from 0."""
LONGEST = 500
"""Characters of a text."""
Text = Annotated[str, Field(max_length=LONGEST, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$")]
_Digest = Annotated[str, Field(pattern=r"^[a-z0-9]+:[0-9a-f]{16,128}$")]
_Number = (
    Annotated[str, Field(pattern=rf"^({_HEX}|Infinity|-Infinity|NaN|{_LARGE})$")] | Annotated[int, Field(ge=-_EXACT, le=_EXACT)]
)


class BaselineError(Exception):
    """What is wrong with a baseline file, and the way out."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Known(_Strict):
    """An entry as it is stored."""

    fingerprint: Text
    engine: Text
    schema_: int = Field(alias="schema", ge=0, le=2**31)
    inputs: dict[Text, _Digest]
    asked: dict[Text, Any]
    output: _Digest
    verdict: Literal["pass", "fail", "inconclusive"] | None
    figures: dict[Text, _Number | None]


class _Move(_Strict):
    at: Text
    by: Text
    reason: Text
    changed: list[Text]


class _File(_Strict):
    format: int
    cases: dict[Text, list[Known]]
    moves: list[_Move]


@dataclass(frozen=True)
class Move:
    """One acceptance. at: UTC; by: who; reason: in words; changed: a line for each case that is no longer what it was."""

    at: str
    by: str
    reason: str
    changed: tuple[str, ...]


@dataclass(frozen=True)
class Baseline:
    """cases: entries by case, one of each fingerprint; moves: the last ones, oldest first; versions: of the engine, by entry."""

    cases: Mapping[str, tuple[engine.Entry, ...]]
    moves: tuple[Move, ...] = ()
    versions: Mapping[tuple[str, str], str] | None = None


def read(path: Path) -> Baseline:
    """What a file holds; nothing where there is none. Raises BaselineError, OSError."""
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise BaselineError(f"{path.name} is not a file; move it away")
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
    except FileNotFoundError:
        return Baseline({})
    return _parsed(path, text)


def _parsed(path: Path, text: bytes) -> Baseline:
    """What the bytes of a file hold. Raises BaselineError."""
    if len(text) > LARGEST:
        raise BaselineError(f"{path.name} has more than {LARGEST} bytes; split the suite")
    try:
        found = _File.model_validate(tensors.document(text))
    except tensors.Malformed as error:
        raise BaselineError(f"{path.name} {error}; take it back from the repository's history, or accept it anew") from None
    except ValidationError as error:
        row = error.errors(include_url=False)[0]
        place = ".".join(quoted(str(part)) for part in row["loc"]) or "the whole"
        raise BaselineError(
            f"{path.name}: {place}: {row['msg']}; take it back from the history, or remove and accept it anew"
        ) from None
    except RecursionError:
        raise BaselineError(f"{path.name} is nested too deeply") from None
    if found.format != FORMAT:
        raise BaselineError(f"{path.name} is of format {found.format}, this is a Softgauge of format {FORMAT}: use a newer one")
    cases = {name: _entries(path, name, rows) for name, rows in found.cases.items()}
    versions = {(name, row.fingerprint): row.engine for name, rows in found.cases.items() for row in rows}
    moves = tuple(Move(move.at, move.by, move.reason, tuple(move.changed)) for move in found.moves)
    return Baseline(cases, moves, versions)


def _entries(path: Path, name: str, rows: Sequence[Known]) -> tuple[engine.Entry, ...]:
    """The entries of a case. Raises BaselineError."""
    try:
        entries = tuple(entry(row) for row in rows)
    except (Lacking, engine.EngineError, OverflowError) as error:
        said = {Lacking: f"has no {error}", OverflowError: "has a figure beyond any float64"}.get(type(error), f"is wrong: {error}")
        raise BaselineError(
            f"{path.name}: {quoted(name)} {said}; take it back from the history, or remove and accept it anew"
        ) from None
    if len({one.fingerprint for one in entries}) < len(entries):
        raise BaselineError(f"{path.name}: {quoted(name)} has two entries of one fingerprint; leave one out")
    return entries


class Lacking(Exception):
    """Figures that an entry of this schema has to have, and has not."""


def entry(row: Known) -> engine.Entry:
    """As the engine takes it. Raises Lacking, EngineError, OverflowError."""
    lacking = [name for name in engine.FIGURES if name not in row.figures]
    if row.schema_ == engine.SCHEMA and lacking:  # else what became worse would not be seen
        raise Lacking(", ".join(lacking))
    figures = {name: _number(value) for name, value in row.figures.items() if name in engine.FIGURES}
    return engine.Entry(row.schema_, row.fingerprint, row.inputs, row.asked, row.output, row.verdict, figures)


def _number(value: int | str | None) -> int | float | None:
    if value is None or isinstance(value, int):
        return value
    if value.isdecimal():
        return int(value)
    return tensors.SPECIALS[value] if value in tensors.SPECIALS else float.fromhex(value)


def is_text(told: str) -> bool:
    """Whether a text can stand in a baseline: one line, not too long, nothing that a terminal obeys."""
    try:
        _TEXT.validate_python(told, strict=True)
    except ValidationError:
        return False
    return True


_TEXT: TypeAdapter[str] = TypeAdapter(Text)


def text(baseline: Baseline) -> str:
    """A baseline as it is stored: cases by name, entries by fingerprint, a line for each figure."""
    versions = baseline.versions or {}
    cases = {
        name: [stored(one, versions.get((name, one.fingerprint), engine.VERSION)) for one in sorted(entries, key=_fingerprint)]
        for name, entries in sorted(baseline.cases.items())
        if entries
    }
    moves = [{"at": m.at, "by": m.by, "reason": m.reason, "changed": list(m.changed)} for m in baseline.moves[-MOST_MOVES:]]
    return json.dumps({"format": FORMAT, "cases": cases, "moves": moves}, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _fingerprint(one: engine.Entry) -> str:
    return one.fingerprint


def stored(one: engine.Entry, version: str) -> dict[str, Any]:
    """An entry as it is stored. version: of the engine that made it."""
    return {
        "fingerprint": one.fingerprint,
        "engine": version,
        "schema": one.schema,
        "inputs": dict(sorted(one.inputs.items())),
        "asked": one.asked,
        "output": one.output,
        "verdict": one.verdict,
        "figures": {figure: _hex(one.figures.get(figure)) for figure in engine.FIGURES},
    }


def _hex(value: float | None) -> int | str | None:
    if value is None or isinstance(value, int):
        return value if value is None or abs(value) <= _EXACT else str(value)
    if math.isnan(value):
        return "NaN"
    return value.hex() if math.isfinite(value) else "Infinity" if value > 0 else "-Infinity"


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """While one process reads, changes and writes a baseline, others that would wait. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        for left in path.parent.glob(f".{path.name}.{'[0-9a-f]' * 16}"):  # by one that was killed
            left.unlink(missing_ok=True)
        yield
    finally:
        os.close(folder)


def write(path: Path, baseline: Baseline) -> None:
    """Replace the file: whoever reads it, and whatever happens meanwhile, has the old one or the new one.

    Raises OSError, and BaselineError for what could not be read again.
    """
    try:
        whole = text(baseline).encode()
    except ValueError as error:  # a NaN or half a character among the settings
        raise BaselineError(f"{path.name} is as it was: a setting of a case cannot be stored: {error}") from None
    try:
        _parsed(path, whole)
    except BaselineError as error:
        raise BaselineError(f"what would be written could not be read again, and the file is as it was: {error}") from None
    made = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    try:
        with made.open("xb") as file:
            file.write(whole)
            file.flush()
            os.fsync(file.fileno())
        os.replace(made, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            made.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def moved(baseline: Baseline, entries: Mapping[str, engine.Entry], gone: Sequence[str], move: Move) -> Baseline:
    """A baseline with these entries in the place of those of their fingerprints, and without some cases. Entries of other
    fingerprints stay where they are of the same input, the same settings and the same schema."""
    cases = {name: known for name, known in baseline.cases.items() if name not in gone}
    versions = dict(baseline.versions or {})
    for name, entry in entries.items():
        same = (entry.schema, entry.inputs, entry.asked)
        kept = [old for old in cases.get(name, ()) if (old.schema, old.inputs, old.asked) == same]
        cases[name] = (*(old for old in kept if old.fingerprint != entry.fingerprint), entry)
        versions[name, entry.fingerprint] = engine.VERSION
    return replace(baseline, cases=cases, moves=(*baseline.moves, move)[-MOST_MOVES:], versions=versions)
