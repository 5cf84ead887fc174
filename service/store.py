"""What is kept: projects, runs, baselines, comparisons, keys. The only SQL, of SQLite and of PostgreSQL alike.

What is looked for stands in tables; the document of a run or a comparison is a file named by its SHA-256, which is complete and on
disk before the transaction that names it commits. Everything here blocks: it is called from threads.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import os
import secrets
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from service.settings import Settings, SettingsError, secret

FILE = "softgauge.db"
OBJECTS = "objects"
PAGE = 50
"""Rows of a page, where a client does not say how many."""
MOST_ANCESTORS = 32
"""Branches that are gone through to find a baseline."""
_WAL = (3, 51, 3)  # before it, SQLite's WAL can corrupt a file that two connections write (its "WAL-reset bug")
_BUSY = 15.0  # seconds that a writer waits for another
_LOCK = 0x536F6674  # of PostgreSQL, held while a schema is migrated
_LEFT_ALONE = 3600.0  # seconds for which a file that nothing names may still become one that something does
_AT_ONCE = 500  # names in one statement

Result = TypeVar("Result")
Rows = list[dict[str, Any]]

META = sa.MetaData(naming_convention={"ix": "ix_%(table_name)s_%(column_0_N_name)s", "uq": "uq_%(table_name)s_%(column_0_N_name)s"})
_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite counts up in an INTEGER only


def _to(column: str, *more: Any, **options: Any) -> sa.Column[Any]:
    return sa.Column(f"{column.partition('.')[0]}_id", _ID, sa.ForeignKey(column, ondelete="CASCADE"), *more, **options)


PROJECT = sa.Table(
    "project",
    META,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("at", sa.Text, nullable=False),
)
BRANCH = sa.Table(
    "branch",
    META,
    sa.Column("id", _ID, primary_key=True),
    _to("project.id", nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("started_from", sa.Text),
    sa.UniqueConstraint("project_id", "name"),
)
CASE = sa.Table(
    "test_case",
    META,
    sa.Column("id", _ID, primary_key=True),
    _to("project.id", nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.UniqueConstraint("project_id", "name"),
)
RUN = sa.Table(
    "run",
    META,
    sa.Column("seq", _ID, primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    _to("project.id", nullable=False),
    _to("branch.id", nullable=False),
    sa.Column("revision", sa.Text, nullable=False),
    sa.Column("testbed", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("cases", sa.Integer, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Index(None, "project_id", "seq"),
    sa.Index(None, "branch_id", "seq"),
    sqlite_autoincrement=True,
)
RESULT = sa.Table(
    "result",
    META,
    sa.Column("case_id", _ID, sa.ForeignKey("test_case.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("run_seq", _ID, sa.ForeignKey("run.seq", ondelete="CASCADE"), primary_key=True, index=True),
    sa.Column("max_ulp", sa.Text),  # hex, NaN or Infinity: SQLite keeps a NaN as a null
    sa.Column("verdict", sa.Text),
    sqlite_with_rowid=False,
)
MOVE = sa.Table(
    "move",
    META,
    sa.Column("seq", _ID, primary_key=True),
    _to("project.id", nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    _to("branch.id", nullable=False),
    sa.Column("run_seq", _ID, sa.ForeignKey("run.seq"), nullable=False, index=True),
    sa.Column("was_seq", _ID, sa.ForeignKey("run.seq"), index=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("by", sa.Text, nullable=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Index(None, "project_id", "name", "branch_id", "seq"),
    sqlite_autoincrement=True,
)
COMPARISON = sa.Table(
    "comparison",
    META,
    sa.Column("seq", _ID, primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    _to("project.id", nullable=False),
    _to("branch.id", nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("run_seq", _ID, sa.ForeignKey("run.seq", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("baseline_seq", _ID, sa.ForeignKey("run.seq", ondelete="SET NULL"), index=True),
    sa.Column("verdict", sa.Text, nullable=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Index(None, "project_id", "branch_id", "seq"),
    sqlite_autoincrement=True,
)
KEY = sa.Table(
    "api_key",
    META,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False, unique=True),
    sa.Column("scope", sa.Text, nullable=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("expires", sa.Text),
    sa.Column("revoked", sa.Text),
)
ANSWER = sa.Table(
    "answer",
    META,
    sa.Column("holder", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("at", sa.Text, nullable=False, index=True),
)


class StoreError(Exception):
    """Something that cannot be kept or found. reason: what a log may have beside the message, which clients get."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class Missing(StoreError):
    """Nothing has that name or id; the message says what there is."""


class Conflict(StoreError):
    """Somebody else was first."""


class KeyReused(StoreError):
    """An Idempotency-Key that came with another request before."""


class Full(StoreError):
    """No room on the disk."""


class Unavailable(StoreError):
    """The database does not answer. What it was told may be kept or not: asking again with the same Idempotency-Key finds out."""


@dataclass(frozen=True)
class Row:
    """What is looked for of a case of a run. verdict: of its gate."""

    name: str
    max_ulp: float | None
    verdict: str | None


@dataclass(frozen=True)
class NewRun:
    """A run that is to be kept. started_from: the branch that this one came from, if it is told; document: its bytes."""

    id: str
    project: str
    branch: str
    started_from: str | None
    commit: str
    testbed: str
    fingerprint: str
    at: str
    cases: Sequence[Row]
    document: bytes


@dataclass(frozen=True)
class NewComparison:
    """A comparison that is to be kept. name: of the baseline; baseline: id of the run it points to, or None."""

    id: str
    project: str
    run: str
    name: str
    baseline: str | None
    verdict: str
    at: str
    document: bytes


@dataclass(frozen=True)
class NewMove:
    """A baseline that is to point elsewhere. expected: the run that it has to point to before; empty: none, None: any."""

    project: str
    name: str
    branch: str | None
    run: str
    reason: str
    by: str
    at: str
    expected: str | None = None


@dataclass(frozen=True)
class Told:
    """An answer to a write, for whoever asks again with the same Idempotency-Key. request: digest of what was asked."""

    holder: str
    key: str
    request: str
    status: int
    body: str
    at: str


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def new_id(kind: str) -> str:
    """An id that sorts by time: 48 bits of milliseconds, 80 bits of chance."""
    return f"{kind}-{int(time.time() * 1000):012x}{secrets.token_hex(10)}"


class Store:
    """One database and the files beside it."""

    def __init__(self, url: str, folder: Path, password: str | None = None) -> None:
        """url: of SQLAlchemy; empty: SQLite in the folder. Raises StoreError."""
        self._folder, self._opened, self._opening = folder, False, threading.Lock()
        try:
            target = sa.make_url(url or f"sqlite:///{folder / FILE}")
        except sa.exc.ArgumentError:
            raise StoreError("SOFTGAUGE_DATABASE_URL is no URL; write postgresql://user@host/database, or leave it out") from None
        if target.get_backend_name() not in ("sqlite", "postgresql"):
            raise StoreError(f"SOFTGAUGE_DATABASE_URL is of {target.get_backend_name()}; SQLite and PostgreSQL are what there is")
        if target.get_backend_name() == "postgresql":
            target = target.set(drivername="postgresql+psycopg")
            target = target.set(password=password) if password is not None else target
            self._engine = sa.create_engine(
                target, pool_pre_ping=True, pool_size=8, max_overflow=32, pool_timeout=_BUSY, connect_args={"connect_timeout": 5}
            )
        else:
            # A connection for each use: what one thread holds no other finds locked, and a file that is gone is noticed.
            self._engine = sa.create_engine(target, poolclass=NullPool, connect_args={"timeout": _BUSY, "isolation_level": None})
            sa.event.listen(self._engine, "connect", _set_up)
            sa.event.listen(self._engine, "begin", _begin)
        self._insert: Callable[[sa.Table], Any] = postgresql.insert if self._engine.dialect.name == "postgresql" else sqlite.insert

    # ---- the schema ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Bring the schema up to date, whole or not at all. Raises StoreError."""
        with _failures():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._folder / OBJECTS).mkdir(mode=0o700, exist_ok=True)
            with self._engine.begin() as connection:
                if self._engine.dialect.name == "postgresql":
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
                config = migrations()
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        self._opened = True

    def _open(self) -> None:
        """Open what could not be opened at the start, when the database or the folder was not there yet."""
        with self._opening:
            if not self._opened:
                self.open()

    def close(self) -> None:
        """Let go of the connections."""
        self._engine.dispose()

    def ping(self) -> None:
        """Raises StoreError where the database does not answer."""
        with self._reading() as connection:
            connection.execute(sa.select(sa.literal(1)))

    # ---- runs ----------------------------------------------------------------------------------------------------------

    def add(
        self,
        run: NewRun | None = None,
        comparison: NewComparison | None = None,
        move: NewMove | None = None,
        told: Told | None = None,
        first: bool = False,
    ) -> Told | None:
        """Keep all of that, or nothing. first: of the move only where the branch has no such baseline yet, its own or another's.

        Returns the answer that was given before with that Idempotency-Key, in which case nothing is kept. Raises StoreError.
        """
        self._open()
        with _failures():
            documents = [self._keep(part.document) if part else "" for part in (run, comparison)]
        with self._writing() as connection:
            if told is not None and (before := self._told(connection, told)) is not None:
                return before
            if run is not None:
                self._add_run(connection, run, documents[0])
            if comparison is not None:
                self._add_comparison(connection, comparison, documents[1])
            if move is not None and not (first and self._pointer(connection, move.project, move.name, move.branch)):
                self._move(connection, move)
        return None

    def _add_run(self, connection: sa.Connection, run: NewRun, document: str) -> None:
        names = {"name": run.project, "at": run.at}
        connection.execute(self._insert(PROJECT).values(names).on_conflict_do_nothing())
        project = self._project(connection, run.project, lock=True)
        branch = self._branch(connection, project, run.branch, run.started_from)
        values = {
            "id": run.id,
            "project_id": project,
            "branch_id": branch,
            "revision": run.commit,
            "testbed": run.testbed,
            "fingerprint": run.fingerprint,
            "at": run.at,
            "cases": len(run.cases),
            "document": document,
        }
        seq = connection.execute(sa.insert(RUN).values(values).returning(RUN.c.seq)).scalar_one()
        ids = self._case_ids(connection, project, [row.name for row in run.cases])
        rows = [
            {"case_id": ids[row.name], "run_seq": seq, "max_ulp": _text(row.max_ulp), "verdict": row.verdict} for row in run.cases
        ]
        connection.execute(sa.insert(RESULT), rows)

    def _branch(self, connection: sa.Connection, project: int, name: str, started_from: str | None) -> int:
        """The id of a branch, which is new perhaps; where it started from is kept as it was told first."""
        values = {"project_id": project, "name": name, "started_from": started_from}
        connection.execute(self._insert(BRANCH).values(values).on_conflict_do_nothing())
        mine = (BRANCH.c.project_id == project) & (BRANCH.c.name == name)
        if started_from is not None:
            connection.execute(sa.update(BRANCH).where(mine & BRANCH.c.started_from.is_(None)).values(started_from=started_from))
        return int(connection.execute(sa.select(BRANCH.c.id).where(mine)).scalar_one())

    def _case_ids(self, connection: sa.Connection, project: int, names: Sequence[str]) -> dict[str, int]:
        ids: dict[str, int] = {}
        for start in range(0, len(names), _AT_ONCE):
            some = names[start : start + _AT_ONCE]
            known = sa.select(CASE.c.name, CASE.c.id).where((CASE.c.project_id == project) & CASE.c.name.in_(some))
            ids |= {row.name: row.id for row in connection.execute(known)}
            new = [{"project_id": project, "name": name} for name in some if name not in ids]
            if new:
                connection.execute(sa.insert(CASE), new)
                ids |= {row.name: row.id for row in connection.execute(known)}
        return ids

    def runs(
        self, project: str, branch: str | None = None, before: int | None = None, limit: int = PAGE
    ) -> tuple[Rows, int | None]:
        """Runs, newest first, and the number before which the next page begins. Raises Missing."""
        with self._reading() as connection:
            wanted = RUN.c.project_id == self._project(connection, project)
            if branch is not None:
                wanted &= RUN.c.branch_id == self._branch_id(connection, project, branch)
            if before is not None:
                wanted &= RUN.c.seq < before
            rows = connection.execute(_RUNS.where(wanted).order_by(RUN.c.seq.desc()).limit(limit + 1)).mappings().all()
        more = rows[limit - 1]["seq"] if len(rows) > limit else None
        return [_without_seq(row) for row in rows[:limit]], more

    def run(self, project: str | None, run: str) -> tuple[dict[str, Any], bytes]:
        """A run's row and its document. Raises Missing."""
        with self._reading() as connection:
            wanted = RUN.c.id == run
            if project is not None:
                wanted &= RUN.c.project_id == self._project(connection, project)
            row = connection.execute(_RUNS.add_columns(RUN.c.document).where(wanted)).mappings().first()
        if row is None:
            where = "" if project is None else f" of project {project!r}"
            raise Missing(f"no run{where} has the id {run[:64]!r}; GET /v1/projects/{{project}}/runs lists them")
        found = dict(_without_seq(row))
        return found, self.document(found.pop("document"))

    # ---- baselines -----------------------------------------------------------------------------------------------------

    def baseline(self, project: str, name: str, branch: str, started_from: str | None = None) -> dict[str, Any] | None:
        """Where a baseline points to: {run, branch, reason, by, at}, branch being that of the pointer; None where it is not set.

        A branch that has no pointer of its own has that of the branch it started from. started_from: which that is, where it is
        not known yet. Raises Missing: there is no such project.
        """
        with self._reading() as connection:
            return self._pointer(connection, project, name, branch, started_from)

    def own_pointer(self, project: str, name: str, branch: str) -> str | None:
        """The run that a branch's own baseline points to. Raises Missing."""
        with self._reading() as connection:
            number = self._project(connection, project)
            mine = (MOVE.c.project_id == number) & (MOVE.c.name == name) & (BRANCH.c.name == branch)
            return connection.execute(_MOVES.with_only_columns(RUN.c.id).where(mine).order_by(MOVE.c.seq.desc()).limit(1)).scalar()

    def _pointer(
        self, connection: sa.Connection, project: str, name: str, branch: str | None, started_from: str | None = None
    ) -> dict[str, Any] | None:
        number = self._project(connection, project)
        for known in self._ancestors(connection, number, branch, started_from):
            wanted = (MOVE.c.project_id == number) & (MOVE.c.name == name) & (MOVE.c.branch_id == known)
            row = connection.execute(_MOVES.where(wanted).order_by(MOVE.c.seq.desc()).limit(1)).mappings().first()
            if row is not None:
                return {key: row[key] for key in ("run", "branch", "reason", "by", "at")}
        return None

    def _ancestors(self, connection: sa.Connection, project: int, branch: str | None, started_from: str | None) -> Iterator[int]:
        """The ids of a branch and of those it came from, each once."""
        seen: set[int] = set()
        while branch is not None and len(seen) < MOST_ANCESTORS:
            wanted = (BRANCH.c.project_id == project) & (BRANCH.c.name == branch)
            row = connection.execute(sa.select(BRANCH.c.id, BRANCH.c.started_from).where(wanted)).first()
            if row is not None and row.id in seen:
                return
            if row is not None:
                seen.add(row.id)
                yield row.id
            branch, started_from = (row.started_from if row else None) or started_from, None

    def moves(self, project: str, name: str | None = None, before: int | None = None, limit: int = PAGE) -> tuple[Rows, int | None]:
        """Moves of baselines, newest first, and the number before which the next page begins. Raises Missing."""
        with self._reading() as connection:
            wanted = MOVE.c.project_id == self._project(connection, project)
            if name is not None:
                wanted &= MOVE.c.name == name
            if before is not None:
                wanted &= MOVE.c.seq < before
            rows = connection.execute(_MOVES.where(wanted).order_by(MOVE.c.seq.desc()).limit(limit + 1)).mappings().all()
        return [_without_seq(row) for row in rows[:limit]], (rows[limit - 1]["seq"] if len(rows) > limit else None)

    def _move(self, connection: sa.Connection, move: NewMove) -> None:
        project = self._project(connection, move.project, lock=True)
        wanted = (RUN.c.project_id == project) & (RUN.c.id == move.run)
        run = connection.execute(sa.select(RUN.c.seq, RUN.c.branch_id).where(wanted)).first()
        if run is None:
            raise Missing(f"no run of project {move.project!r} has the id {move.run[:64]!r}")
        branch = run.branch_id if move.branch is None else self._branch(connection, project, move.branch, None)
        mine = (MOVE.c.project_id == project) & (MOVE.c.name == move.name) & (MOVE.c.branch_id == branch)
        last = sa.select(MOVE.c.run_seq, RUN.c.id).join(RUN, RUN.c.seq == MOVE.c.run_seq)
        was = connection.execute(last.where(mine).order_by(MOVE.c.seq.desc()).limit(1)).first()
        if move.expected is not None and move.expected != (was.id if was else ""):
            points = f"points to {was.id}" if was else "is not set"
            raise Conflict(f"baseline {move.name!r} {points}, and was to be {move.expected[:64]!r}: look at it again, then move it")
        values = {
            "project_id": project,
            "name": move.name,
            "branch_id": branch,
            "run_seq": run.seq,
            "was_seq": was.run_seq if was else None,
            "reason": move.reason,
            "by": move.by,
            "at": move.at,
        }
        connection.execute(sa.insert(MOVE).values(values))

    # ---- comparisons ---------------------------------------------------------------------------------------------------

    def _add_comparison(self, connection: sa.Connection, made: NewComparison, document: str) -> None:
        project = self._project(connection, made.project)
        seqs = {
            found: (seq, branch)
            for found, seq, branch in connection.execute(
                sa.select(RUN.c.id, RUN.c.seq, RUN.c.branch_id).where(
                    (RUN.c.project_id == project) & RUN.c.id.in_([made.run, made.baseline])
                )
            )
        }
        if made.run not in seqs:
            raise Missing(f"no run of project {made.project!r} has the id {made.run[:64]!r}")
        values = {
            "id": made.id,
            "project_id": project,
            "branch_id": seqs[made.run][1],
            "name": made.name,
            "run_seq": seqs[made.run][0],
            "baseline_seq": seqs[made.baseline][0] if made.baseline in seqs else None,
            "verdict": made.verdict,
            "at": made.at,
            "document": document,
        }
        connection.execute(sa.insert(COMPARISON).values(values))

    def comparison(self, comparison: str) -> tuple[dict[str, Any], bytes]:
        """A comparison's row and its document. Raises Missing."""
        with self._reading() as connection:
            wanted = _COMPARISONS.add_columns(COMPARISON.c.document).where(COMPARISON.c.id == comparison)
            row = connection.execute(wanted).mappings().first()
        if row is None:
            raise Missing(f"no comparison has the id {comparison[:64]!r}")
        found = dict(_without_seq(row))
        return found, self.document(found.pop("document"))

    def last_comparison(self, project: str, branch: str | None = None) -> dict[str, Any] | None:
        """The row of the newest comparison. Raises Missing where there is no such project."""
        with self._reading() as connection:
            wanted = COMPARISON.c.project_id == self._project(connection, project)
            if branch is not None:
                wanted &= COMPARISON.c.branch_id == self._branch_id(connection, project, branch)
            row = connection.execute(_COMPARISONS.where(wanted).order_by(COMPARISON.c.seq.desc()).limit(1)).mappings().first()
        return _without_seq(row) if row is not None else None

    # ---- history -------------------------------------------------------------------------------------------------------

    def projects(self) -> Rows:
        """Every project by name: {name, at, runs, last, verdict}, the last two of its newest run and comparison."""
        newest = sa.select(sa.func.max(RUN.c.at)).where(RUN.c.project_id == PROJECT.c.id).scalar_subquery()
        count = sa.select(sa.func.count()).where(RUN.c.project_id == PROJECT.c.id).scalar_subquery()
        verdict = (
            sa.select(COMPARISON.c.verdict)
            .where(COMPARISON.c.project_id == PROJECT.c.id)
            .order_by(COMPARISON.c.seq.desc())
            .limit(1)
            .scalar_subquery()
        )
        columns = (PROJECT.c.name, PROJECT.c.at, count.label("runs"), newest.label("last"), verdict.label("verdict"))
        with self._reading() as connection:
            rows = connection.execute(sa.select(*columns).order_by(PROJECT.c.name)).mappings().all()
        return [dict(row) for row in rows]

    def has_project(self, project: str) -> bool:
        """Whether there is one."""
        with self._reading() as connection:
            return connection.execute(sa.select(PROJECT.c.id).where(PROJECT.c.name == project)).first() is not None

    def branches(self, project: str) -> Rows:
        """Branches by name: {name, started_from}. Raises Missing."""
        with self._reading() as connection:
            wanted = BRANCH.c.project_id == self._project(connection, project)
            columns = sa.select(BRANCH.c.name, BRANCH.c.started_from)
            return [dict(row) for row in connection.execute(columns.where(wanted).order_by(BRANCH.c.name)).mappings()]

    def cases(self, project: str) -> list[str]:
        """The names of all cases that a project ever had, in order. Raises Missing."""
        with self._reading() as connection:
            wanted = CASE.c.project_id == self._project(connection, project)
            return list(connection.execute(sa.select(CASE.c.name).where(wanted).order_by(CASE.c.name)).scalars())

    def history(self, project: str, case: str, branch: str | None = None, last: int = 200) -> Rows:
        """A case over its last runs, oldest first: {run, at, branch, commit, testbed, fingerprint, verdict, max_ulp}.

        Raises Missing where there is no such project, branch or case.
        """
        with self._reading() as connection:
            number = self._project(connection, project)
            mine = sa.select(CASE.c.id).where((CASE.c.project_id == number) & (CASE.c.name == case))
            found = connection.execute(mine).scalar()
            if found is None:
                raise Missing(f"project {project!r} has no case {case[:64]!r}; GET /v1/projects/{project}/history lists them")
            wanted = RESULT.c.case_id == found
            if branch is not None:
                wanted &= RUN.c.branch_id == self._branch_id(connection, project, branch)
            rows = connection.execute(_POINTS.where(wanted).order_by(RESULT.c.run_seq.desc()).limit(last)).mappings().all()
        return [{**row, "max_ulp": _number(row["max_ulp"])} for row in reversed(rows)]

    # ---- keys and answers ----------------------------------------------------------------------------------------------

    def add_key(self, row: Mapping[str, Any]) -> bool:
        """Keep a key: {id, name, hash, scope, at, expires}; whether it was not there yet. Raises StoreError."""
        with self._writing() as connection:
            done = connection.execute(self._insert(KEY).values(dict(row)).on_conflict_do_nothing().returning(KEY.c.id))
            return done.first() is not None

    def listed_keys(self) -> Rows:
        """Every key by time, without its hash."""
        with self._reading() as connection:
            columns = (KEY.c.id, KEY.c.name, KEY.c.scope, KEY.c.at, KEY.c.expires, KEY.c.revoked)
            return [dict(row) for row in connection.execute(sa.select(*columns).order_by(KEY.c.at, KEY.c.id)).mappings()]

    def key(self, hashed: str) -> dict[str, Any] | None:
        """The key of that hash, expired and revoked ones too."""
        with self._reading() as connection:
            row = connection.execute(sa.select(KEY).where(KEY.c.hash == hashed)).mappings().first()
        return dict(row) if row is not None else None

    def revoke(self, key: str, at: str) -> None:
        """From now on a key is none. Raises Missing."""
        with self._writing() as connection:
            if connection.execute(sa.select(KEY.c.id).where(KEY.c.id == key)).first() is None:
                raise Missing(f"no key has the id {key[:64]!r}; `softgauge keys list` shows them")
            connection.execute(sa.update(KEY).where((KEY.c.id == key) & KEY.c.revoked.is_(None)).values(revoked=at))

    def told(self, holder: str, key: str, request: str) -> Told | None:
        """The answer to a write that was asked for before. Raises KeyReused."""
        with self._reading() as connection:
            return self._told(connection, Told(holder, key, request, 0, "", ""))

    def _told(self, connection: sa.Connection, asked: Told) -> Told | None:
        """What was told before; else what is asked is kept, if it has an answer."""
        mine = (ANSWER.c.holder == asked.holder) & (ANSWER.c.key == asked.key)
        if asked.status:
            done = connection.execute(self._insert(ANSWER).values(vars(asked)).on_conflict_do_nothing().returning(ANSWER.c.key))
            if done.first() is not None:
                return None
        row = connection.execute(sa.select(ANSWER).where(mine)).mappings().first()
        if row is None:
            return None
        if row["request"] != asked.request:
            raise KeyReused("this Idempotency-Key came with another request before; take a new one for a new request")
        return Told(**row)

    # ---- upkeep --------------------------------------------------------------------------------------------------------

    def prune(self, project: str, days: float, keep: int, dry: bool = False) -> Rows:
        """Remove runs older than so many days, but the newest `keep` of each branch and those that a baseline points or pointed
        to; with them go their comparisons. Returns the rows of what is removed, oldest first. Raises StoreError."""
        limit = (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")
        rank = sa.func.row_number().over(partition_by=RUN.c.branch_id, order_by=RUN.c.seq.desc())
        with self._writing() as connection:
            number = self._project(connection, project, lock=True)
            ranked = sa.select(RUN.c.seq, RUN.c.at, rank.label("rank")).where(RUN.c.project_id == number).subquery()
            pointed = sa.select(MOVE.c.run_seq).union(sa.select(MOVE.c.was_seq).where(MOVE.c.was_seq.is_not(None)))
            gone = sa.select(ranked.c.seq).where(
                (ranked.c.at < limit) & (ranked.c.rank > keep) & ranked.c.seq.not_in(pointed.scalar_subquery())
            )
            rows = connection.execute(_RUNS.where(RUN.c.seq.in_(gone)).order_by(RUN.c.seq)).mappings().all()
            if not dry:
                seqs = [row["seq"] for row in rows]
                for start in range(0, len(seqs), _AT_ONCE):
                    connection.execute(sa.delete(RUN).where(RUN.c.seq.in_(seqs[start : start + _AT_ONCE])))
                connection.execute(sa.delete(ANSWER).where(ANSWER.c.at < limit))
        return [_without_seq(row) for row in rows]

    def sweep(self) -> int:
        """Remove files that nothing names, and that have had the time to be named; how many there were. Raises StoreError."""
        with self._reading() as connection:
            named = set(connection.execute(sa.select(RUN.c.document)).scalars())
            named |= set(connection.execute(sa.select(COMPARISON.c.document)).scalars())
        removed, oldest = 0, time.time() - _LEFT_ALONE
        with _failures():
            for path in (self._folder / OBJECTS).glob("*/*"):
                with contextlib.suppress(FileNotFoundError):
                    if path.name not in named and path.stat().st_mtime < oldest:
                        path.unlink()
                        removed += 1
        return removed

    def remove(self, project: str) -> None:
        """Remove a project and all it has. Raises StoreError."""
        with self._writing() as connection:
            number = self._project(connection, project, lock=True)
            connection.execute(sa.delete(MOVE).where(MOVE.c.project_id == number))
            connection.execute(sa.delete(PROJECT).where(PROJECT.c.id == number))

    def dump(self, project: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Everything of a project, as (kind, row), in the order in which `load` takes it; documents as text. Raises StoreError."""
        with self._reading() as connection:
            number = self._project(connection, project)
            row = connection.execute(sa.select(PROJECT.c.name, PROJECT.c.at).where(PROJECT.c.id == number)).mappings().one()
            yield "project", dict(row)
            columns = sa.select(BRANCH.c.name, BRANCH.c.started_from).where(BRANCH.c.project_id == number).order_by(BRANCH.c.id)
            for row in connection.execute(columns).mappings():
                yield "branch", dict(row)
            runs = _RUNS.add_columns(RUN.c.document).where(RUN.c.project_id == number).order_by(RUN.c.seq)
            for row in connection.execute(runs).mappings():
                results = sa.select(CASE.c.name, RESULT.c.max_ulp, RESULT.c.verdict).join(CASE, CASE.c.id == RESULT.c.case_id)
                found = connection.execute(results.where(RESULT.c.run_seq == row["seq"]).order_by(CASE.c.name))
                document = self.document(row["document"]).decode()
                yield "run", {**_without_seq(row), "document": document, "cases": [list(one) for one in found]}
            moves = _MOVES.where(MOVE.c.project_id == number).order_by(MOVE.c.seq)
            for row in connection.execute(moves).mappings():
                yield "move", _without_seq(row)
            made = _COMPARISONS.add_columns(COMPARISON.c.document).where(COMPARISON.c.project_id == number)
            for row in connection.execute(made.order_by(COMPARISON.c.seq)).mappings():
                yield "comparison", {**_without_seq(row), "document": self.document(row["document"]).decode()}

    def load(self, rows: Iterator[tuple[str, dict[str, Any]]]) -> str:
        """Keep what `dump` told, all of it or nothing; the name of the project. Raises Conflict where it is there already."""
        kind, head = next(rows)
        if kind != "project":
            raise StoreError("an export begins with a project")
        name = str(head["name"])
        with self._writing() as connection:
            values = {"name": name, "at": head["at"]}
            done = connection.execute(self._insert(PROJECT).values(values).on_conflict_do_nothing().returning(PROJECT.c.id))
            if done.first() is None:
                raise Conflict(f"there is a project {name!r} already; remove it first")
            number = self._project(connection, name, lock=True)
            for kind, row in rows:
                self._load_one(connection, number, name, kind, row)
        return name

    def _load_one(self, connection: sa.Connection, number: int, project: str, kind: str, row: dict[str, Any]) -> None:
        if kind == "branch":
            self._branch(connection, number, row["name"], row["started_from"])
        elif kind == "run":
            cases = [Row(name, _number(ulp), verdict) for name, ulp, verdict in row["cases"]]
            told = {key: row[key] for key in ("id", "branch", "commit", "testbed", "fingerprint", "at")}
            run = NewRun(**told, project=project, started_from=None, cases=cases, document=row["document"].encode())
            self._add_run(connection, run, self._kept(run.document))
        elif kind == "move":
            told = {key: row[key] for key in ("name", "branch", "run", "reason", "by", "at")}
            self._move(connection, NewMove(project=project, **told))
        elif kind == "comparison":
            told = {key: row[key] for key in ("id", "run", "name", "baseline", "verdict", "at")}
            made = NewComparison(project=project, **told, document=row["document"].encode())
            self._add_comparison(connection, made, self._kept(made.document))
        else:
            raise StoreError(f"an export has no {kind!r}")

    # ---- files ---------------------------------------------------------------------------------------------------------

    def document(self, digest: str) -> bytes:
        """The bytes of a digest. Raises StoreError where the file is gone or is not what it was."""
        path = self._folder / OBJECTS / digest[:2] / digest
        try:
            data = gzip.decompress(path.read_bytes())
        except (OSError, EOFError, zlib.error) as error:
            raise StoreError(f"the document {digest} cannot be read from {OBJECTS}: {error}") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise StoreError(f"the document {digest} in {OBJECTS} is not what was written")
        return data

    def _kept(self, data: bytes) -> str:
        with _failures():
            return self._keep(data)

    def _keep(self, data: bytes) -> str:
        """Write a document, so that it is on disk before its name is. Raises OSError."""
        digest = hashlib.sha256(data).hexdigest()
        folder = self._folder / OBJECTS / digest[:2]
        path = folder / digest
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)  # it is there: `sweep` leaves it alone for a while
            return digest
        if not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)
            _to_disk(folder.parent)
        made = folder / f".{digest[:16]}.{secrets.token_hex(8)}"
        try:
            with made.open("xb") as file:
                file.write(gzip.compress(data, 6, mtime=0))
                file.flush()
                os.fsync(file.fileno())
            os.replace(made, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                made.unlink()
        _to_disk(folder)
        return digest

    # ---- below -----------------------------------------------------------------------------------------------------------

    def _project(self, connection: sa.Connection, name: str, lock: bool = False) -> int:
        """The id of a project. lock: until the transaction ends nobody else changes it."""
        wanted = sa.select(PROJECT.c.id).where(PROJECT.c.name == name)
        found = connection.execute(wanted.with_for_update() if lock else wanted).scalar()
        if found is None:
            known = list(connection.execute(sa.select(PROJECT.c.name).order_by(PROJECT.c.name).limit(8)).scalars())
            there = f"there are {', '.join(known)}" if known else "there is none yet"
            raise Missing(f"no project {name[:64]!r}; {there}; a project is made by its first run")
        return int(found)

    def _branch_id(self, connection: sa.Connection, project: str, name: str) -> int:
        mine = BRANCH.c.project_id == self._project(connection, project)
        found = connection.execute(sa.select(BRANCH.c.id).where(mine & (BRANCH.c.name == name))).scalar()
        if found is None:
            known = list(connection.execute(sa.select(BRANCH.c.name).where(mine).order_by(BRANCH.c.name).limit(8)).scalars())
            raise Missing(f"project {project!r} has no branch {name[:64]!r}; it has {', '.join(known)}")
        return int(found)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        """One state of everything, which cannot be changed."""
        self._open()
        with _failures(), self._engine.connect().execution_options(reading=True) as connection:
            if self._engine.dialect.name == "postgresql":
                connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """A transaction, which commits at the end of the block. On SQLite nobody else writes meanwhile."""
        self._open()
        with _failures(), self._engine.begin() as connection:
            yield connection


def of(settings: Settings) -> Store:
    """The store that the settings name, not yet open. Raises SettingsError."""
    password = None
    if settings.database_password_file is not None:
        password = secret("database_password_file", settings.database_password_file)
    try:
        return Store(settings.database_url, settings.data_dir, password)
    except StoreError as error:
        raise SettingsError(str(error)) from None


def migrations() -> Config:
    """Where Alembic finds how the schema came to be."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    return config


_RUNS = (
    sa.select(
        RUN.c.seq,
        RUN.c.id,
        PROJECT.c.name.label("project"),
        BRANCH.c.name.label("branch"),
        RUN.c.revision.label("commit"),
        RUN.c.testbed,
        RUN.c.fingerprint,
        RUN.c.at,
        RUN.c.cases,
    )
    .join(BRANCH, BRANCH.c.id == RUN.c.branch_id)
    .join(PROJECT, PROJECT.c.id == RUN.c.project_id)
)
_WAS = RUN.alias("was")
_MOVES = (
    sa.select(
        MOVE.c.seq,
        MOVE.c.name,
        BRANCH.c.name.label("branch"),
        RUN.c.id.label("run"),
        _WAS.c.id.label("was"),
        MOVE.c.reason,
        MOVE.c.by,
        MOVE.c.at,
    )
    .join(RUN, RUN.c.seq == MOVE.c.run_seq)
    .join(BRANCH, BRANCH.c.id == MOVE.c.branch_id)
    .outerjoin(_WAS, _WAS.c.seq == MOVE.c.was_seq)
)
_COMPARISONS = (
    sa.select(
        COMPARISON.c.seq,
        COMPARISON.c.id,
        PROJECT.c.name.label("project"),
        BRANCH.c.name.label("branch"),
        RUN.c.id.label("run"),
        COMPARISON.c.name,
        _WAS.c.id.label("baseline"),
        COMPARISON.c.verdict,
        COMPARISON.c.at,
    )
    .join(RUN, RUN.c.seq == COMPARISON.c.run_seq)
    .join(BRANCH, BRANCH.c.id == COMPARISON.c.branch_id)
    .join(PROJECT, PROJECT.c.id == COMPARISON.c.project_id)
    .outerjoin(_WAS, _WAS.c.seq == COMPARISON.c.baseline_seq)
)
_POINTS = (
    sa.select(
        RUN.c.id.label("run"),
        RUN.c.at,
        BRANCH.c.name.label("branch"),
        RUN.c.revision.label("commit"),
        RUN.c.testbed,
        RUN.c.fingerprint,
        RESULT.c.verdict,
        RESULT.c.max_ulp,
    )
    .join(RUN, RUN.c.seq == RESULT.c.run_seq)
    .join(BRANCH, BRANCH.c.id == RUN.c.branch_id)
)


def _without_seq(row: sa.RowMapping) -> dict[str, Any]:
    return {str(key): value for key, value in row.items() if key != "seq"}


def _text(value: float | None) -> str | None:
    return None if value is None else float(value).hex()


def _number(text: str | None) -> float | None:
    return None if text is None else float.fromhex(text)


def _set_up(connection: sqlite3.Connection, _: object) -> None:
    """What is told is on disk: FULL, and no WAL where it can lose what was written."""
    mode = "WAL" if sqlite3.sqlite_version_info >= _WAL else "DELETE"
    for pragma in (f"journal_mode={mode}", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(connection: sa.Connection) -> None:
    """IMMEDIATE, since a transaction that begins to write later may find that it must not any more; one that only reads cannot."""
    reading = connection.get_execution_options().get("reading", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _to_disk(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


_DISK_FULL = "53100"  # of PostgreSQL
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """What databases and disks raise, in our words."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise Full(f"the disk is full: {error.strerror}", str(error)) from error
        raise Unavailable("the folder that SOFTGAUGE_DATA_DIR names cannot be used", str(error)) from error
    except IntegrityError as error:
        raise Conflict("something else was kept at the same time; try again") from error
    except DBAPIError as error:
        said = str(error.orig).splitlines()[0][:200] if error.orig else type(error).__name__
        if "full" in said.lower() or getattr(error.orig, "sqlstate", "") == _DISK_FULL:
            raise Full("the database has no room", said) from error
        raise Unavailable("the database does not answer", said) from error
    except SQLAlchemyError as error:
        raise Unavailable("the database does not answer", f"{type(error).__name__}: {error}"[:200]) from error
