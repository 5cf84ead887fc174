"""What is kept, on SQLite and on PostgreSQL: each test runs on both."""

import errno
import math
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from service import store as stores
from service.settings import Settings, SettingsError
from service.store import (
    META,
    Conflict,
    Full,
    KeyReused,
    Missing,
    NewComparison,
    NewMove,
    NewRun,
    Row,
    Store,
    StoreError,
    Told,
    Unavailable,
    migrations,
    new_id,
    of,
)

ROOT = Path(__file__).parent.parent.parent
AT = "2026-01-02T03:04:05Z"
ROWS = (Row("a", 0.5, "pass"), Row("b", math.nan, "fail"), Row("c", math.inf, None), Row("d", None, "inconclusive"))


def run(branch="main", started_from=None, project="p", at=AT, rows=ROWS, document=None):
    made = new_id("run")
    return NewRun(made, project, branch, started_from, "4f1c", "t4", "fp", at, rows, document or f"{made}\n".encode())


def comparison(of_run, baseline=None, verdict="pass"):
    return NewComparison(new_id("cmp"), of_run.project, of_run.id, "default", baseline, verdict, AT, b"{}")


def move(to, branch=None, expected=None, name="default"):
    return NewMove(to.project, name, branch, to.id, "because", "me", AT, expected)


def told(key="k", request="r", body="{}"):
    return Told("holder", key, request, 201, body, AT)


def test_a_run_is_what_it_was(store):
    made = run(started_from="trunk")
    store.add(made)
    row, document = store.run("p", made.id)
    shown = {
        "id": made.id,
        "project": "p",
        "branch": "main",
        "commit": "4f1c",
        "testbed": "t4",
        "fingerprint": "fp",
        "at": AT,
        "cases": 4,
    }
    assert (row, document) == (shown, made.document)
    assert store.runs("p") == ([shown], None)
    assert store.branches("p") == [{"name": "main", "started_from": "trunk"}]
    assert store.cases("p") == ["a", "b", "c", "d"]


def test_figures_are_kept_to_the_last_bit(store):
    sizes = [0.1, 5e-324, 1.7976931348623157e308, 0.0, math.inf]
    store.add(run(rows=[Row(str(i), size, None) for i, size in enumerate(sizes)]))
    assert [store.history("p", str(i))[0]["max_ulp"] for i in range(5)] == sizes
    store.add(run(rows=[Row("nan", math.nan, None), Row("none", None, None)]))
    assert math.isnan(store.history("p", "nan")[0]["max_ulp"])
    assert store.history("p", "none")[0]["max_ulp"] is None


def test_pages_hold_every_run_once(store):
    made = [run() for _ in range(5)]
    for one in made:
        store.add(one)
    seen, before = [], None
    while True:
        rows, before = store.runs("p", before=before, limit=2)
        seen += [row["id"] for row in rows]
        if before is None:
            break
    assert seen == [one.id for one in reversed(made)]


def test_what_is_not_there_is_named_with_what_is(store):
    with pytest.raises(Missing, match="there is none yet; a project is made by its first run"):
        store.runs("p")
    store.add(run())
    for ask, saying in (
        (lambda: store.runs("q"), "there are p"),
        (lambda: store.runs("p", "x"), "it has main"),
        (lambda: store.run("p", "run-0"), "no run of project 'p'"),
        (lambda: store.run(None, "run-0"), "no run has the id"),
        (lambda: store.comparison("cmp-0"), "no comparison"),
        (lambda: store.history("p", "x"), "no case 'x'"),
        (lambda: store.revoke("0", AT), "no key"),
        (lambda: store.add(move=NewMove("p", "default", None, "run-0", "", "", AT)), "no run of project"),
        (lambda: store.add(comparison=NewComparison("c", "p", "run-0", "default", None, "pass", AT, b"")), "no run of project"),
    ):
        with pytest.raises(Missing, match=saying):
            ask()


def test_a_branch_has_the_baseline_of_the_one_it_started_from_until_it_has_its_own(store):
    main, fix, deep = run(), run("fix", "main"), run("deep", "fix")
    for one in (main, fix, deep):
        store.add(one)
    assert store.baseline("p", "default", "deep") is None
    store.add(move=move(main))
    assert [store.baseline("p", "default", name)["run"] for name in ("main", "fix", "deep")] == [main.id] * 3
    assert store.baseline("p", "default", "new", "fix")["branch"] == "main"  # not yet known, but told where it is from
    assert store.baseline("p", "default", "new") is None
    assert store.baseline("p", "other", "main") is None
    store.add(move=move(fix))
    assert [store.baseline("p", "default", name)["run"] for name in ("main", "fix", "deep")] == [main.id, fix.id, fix.id]


def test_branches_that_started_from_each_other_end(store):
    store.add(run("a", "b"))
    store.add(run("b", "a"))
    assert store.baseline("p", "default", "a") is None


def test_where_a_branch_started_is_kept_as_it_was_told_first(store):
    for started_from in (None, "main", "other"):
        store.add(run("fix", started_from))
    assert store.branches("p") == [{"name": "fix", "started_from": "main"}]


def test_moves_are_a_chain_and_undo_is_another(store):
    first, second = run(), run()
    for one in (first, second):
        store.add(one)
        store.add(move=move(one))
    store.add(move=move(first))
    rows, _ = store.moves("p")
    assert [(row["was"], row["run"]) for row in rows] == [(second.id, first.id), (first.id, second.id), (None, first.id)]
    assert store.own_pointer("p", "default", "main") == first.id
    assert store.moves("p", name="other") == ([], None)
    page, before = store.moves("p", limit=2)
    assert len(page) == 2
    assert len(store.moves("p", before=before)[0]) == 1


def test_a_move_that_expects_another_pointer_is_a_conflict(store):
    first, second = run(), run()
    store.add(first)
    store.add(second)
    with pytest.raises(Conflict, match="is not set"):
        store.add(move=move(first, expected=second.id))
    store.add(move=move(first, expected=""))
    with pytest.raises(Conflict, match=f"points to {first.id}"):
        store.add(move=move(second, expected=""))
    store.add(move=move(second, expected=first.id))


def test_the_first_baseline_is_made_once(store):
    first, second, third = run(), run(), run("fix", "main")
    for one in (first, second, third):
        store.add(one, move=move(one, branch=one.branch), first=True)
    assert [row["run"] for row in store.moves("p")[0]] == [first.id]


def test_all_of_a_write_or_nothing(store):
    one = run()
    with pytest.raises(Missing):
        store.add(one, NewComparison(new_id("cmp"), "p", "run-0", "default", None, "pass", AT, b""), told=told())
    assert not store.has_project("p")
    assert store.told("holder", "k", "r") is None
    store.add(one)
    with pytest.raises(Conflict):
        store.add(one)  # the same id
    assert len(store.runs("p")[0]) == 1


def test_a_write_is_done_once_for_its_key(store):
    assert store.add(run(), told=told(body="1")) is None
    assert store.add(run(), told=told(body="2")) == told(body="1")
    assert len(store.runs("p")[0]) == 1
    assert store.told("holder", "k", "r") == told(body="1")
    assert store.told("another", "k", "r") is None
    for ask in (lambda: store.told("holder", "k", "s"), lambda: store.add(run(), told=told(request="s"))):
        with pytest.raises(KeyReused):
            ask()


def test_the_same_upload_at_once_is_kept_once(store):
    answers, barrier = [], threading.Barrier(6)

    def upload(i):
        barrier.wait()
        answers.append(store.add(run(), told=told(body=str(i))))

    threads = [threading.Thread(target=upload, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.runs("p")[0]) == 1
    assert answers.count(None) == 1
    assert len({answer.body for answer in answers if answer}) == 1


def test_writers_at_once_lose_nothing(store):
    failures = []

    def work(i):
        try:
            for _ in range(5):
                one = run(f"b{i % 2}")
                store.add(one, comparison(one), move(one, branch="main"))
        except StoreError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    rows, _ = store.moves("p", limit=100)
    assert len(rows) == len(store.runs("p", limit=100)[0]) == 20
    assert all(newer["was"] == older["run"] for newer, older in pairwise(rows))


def test_comparisons(store):
    one, two = run(), run("fix", "main")
    store.add(one)
    assert store.last_comparison("p") is None
    made = comparison(two, one.id, "regressed")
    store.add(two, made)
    row, document = store.comparison(made.id)
    assert (row["run"], row["baseline"], row["branch"], row["verdict"], document) == (two.id, one.id, "fix", "regressed", b"{}")
    assert store.last_comparison("p")["id"] == store.last_comparison("p", "fix")["id"] == made.id
    assert store.last_comparison("p", "main") is None
    assert store.projects() == [{"name": "p", "at": AT, "runs": 2, "last": AT, "verdict": "regressed"}]


def test_history_is_of_a_branch_and_the_last_runs(store):
    made = [run("main" if i % 2 else "fix", rows=[Row("a", float(i), None)]) for i in range(6)]
    for one in made:
        store.add(one)
    assert [row["max_ulp"] for row in store.history("p", "a")] == [0, 1, 2, 3, 4, 5]
    assert [row["max_ulp"] for row in store.history("p", "a", "main")] == [1, 3, 5]
    assert [row["max_ulp"] for row in store.history("p", "a", last=2)] == [4, 5]


def test_many_cases_and_many_runs_share_their_names(store):
    rows = [Row(f"case {i}", float(i), None) for i in range(1203)]
    store.add(run(rows=rows))
    store.add(run(rows=rows[::2]))
    assert len(store.cases("p")) == 1203
    assert [len(store.history("p", f"case {i}")) for i in (0, 1, 1202)] == [2, 1, 2]


def test_prune_leaves_what_a_baseline_points_or_pointed_to_and_the_newest(store):
    old = "2020-01-01T00:00:00Z"
    made = [run(at=old) for _ in range(6)] + [run(at=stores.now())]
    for one in made:
        store.add(one, comparison(one))
    store.add(move=move(made[0]))
    store.add(move=move(made[2]))
    gone = [made[1].id, made[3].id, made[4].id]
    assert [row["id"] for row in store.prune("p", 30, 2, dry=True)] == gone
    assert len(store.runs("p")[0]) == 7
    assert [row["id"] for row in store.prune("p", 30, 2)] == gone
    assert {row["id"] for row in store.runs("p")[0]} == {made[i].id for i in (0, 2, 5, 6)}
    with pytest.raises(Missing):
        store.run("p", gone[0])
    assert len(store.history("p", "a")) == 4
    assert store.prune("p", 30, 2) == []


def test_files_that_nothing_names_go_when_they_are_old(store, tmp_path):
    kept, gone = run(), run()
    store.add(kept)
    store.add(gone)
    store.prune("p", -1, 0)
    store.add(kept)  # again: its file is taken up as it lies there
    files = list((tmp_path / "data" / "objects").glob("*/*"))
    assert len(files) == 2
    assert store.sweep() == 0
    for file in files:
        os.utime(file, (time.time() - 7200,) * 2)
    assert store.sweep() == 1
    assert store.run("p", kept.id)[1] == kept.document


def test_a_document_that_is_not_what_it_was_is_no_answer(store, tmp_path):
    one = run()
    store.add(one)
    (file,) = (tmp_path / "data" / "objects").glob("*/*")
    whole = file.read_bytes()
    for broken in (whole[:-9], b"", whole[:20] + b"\0" + whole[21:]):
        file.write_bytes(broken)
        with pytest.raises(StoreError):
            store.run("p", one.id)
    file.unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        store.run("p", one.id)


def test_a_full_disk_leaves_nothing(store, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stores.os, "fsync", full)
    with pytest.raises(Full, match="No space left"):
        store.add(run())
    monkeypatch.undo()
    assert not store.has_project("p")
    store.add(run())
    assert len(store.runs("p")[0]) == 1


def test_a_project_goes_with_all_it_has(store):
    one = run()
    store.add(one, comparison(one), move(one))
    store.add(run(project="q"))
    store.remove("p")
    assert [row["name"] for row in store.projects()] == ["q"]
    with pytest.raises(Missing):
        store.comparison(one.id)


def test_a_project_moves_from_one_database_to_the_other_and_back(store, cluster, tmp_path):
    """dump and load: the same lines, on whichever database."""
    main, fix = run(), run("fix", "main")
    store.add(main, comparison(main), move(main))
    store.add(fix, comparison(fix, main.id, "regressed"))
    store.add(move=move(fix, branch="main"))
    there = list(store.dump("p"))
    for place, url in enumerate((cluster.url(), "", cluster.url())):
        other = Store(url, tmp_path / str(place))
        other.open()
        assert other.load(iter(there)) == "p"
        there, before = list(other.dump("p")), there
        assert there == before
        assert math.isnan(other.history("p", "b")[0]["max_ulp"])
        assert other.baseline("p", "default", "fix")["run"] == fix.id
        with pytest.raises(Conflict, match="already"):
            other.load(iter(there))
        other.close()


def test_an_import_that_breaks_off_leaves_nothing(store):
    store.add(run())
    rows = list(store.dump("p"))
    store.remove("p")
    for broken in ([*rows, ("other", {})], [*rows, ("run", {})], rows[1:]):
        with pytest.raises((StoreError, KeyError)):
            store.load(iter(broken))
        assert store.projects() == []


def test_keys(store):
    row = {"id": "1", "name": "ci", "hash": "h", "scope": "read", "at": AT, "expires": None}
    assert store.add_key(row)
    assert not store.add_key(row)
    assert store.key("h")["name"] == "ci"
    assert store.key("x") is None
    store.revoke("1", AT)
    store.revoke("1", "later")
    assert [(key["id"], key["revoked"]) for key in store.listed_keys()] == [("1", AT)]
    assert "hash" not in store.listed_keys()[0]


# ---- the schema -------------------------------------------------------------------------------------------------------------


def test_the_migrations_make_the_schema_that_is_used(store):
    with store._engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), META) == []


@pytest.mark.parametrize("revision", [script.revision for script in ScriptDirectory.from_config(migrations()).walk_revisions()])
def test_from_every_schema_there_was_to_this_one(database, tmp_path, revision):
    from alembic import command

    made = Store(database, tmp_path)
    with made._engine.begin() as connection:
        config = migrations()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    made.open()
    made.open()
    made.add(run())
    with made._engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), META) == []
    made.close()


_MIGRATE = """
    import os, signal, sys
    from pathlib import Path
    import sqlalchemy as sa
    from service.store import Store
    made, left = Store(sys.argv[1], Path(sys.argv[2])), int(sys.argv[3])

    @sa.event.listens_for(made._engine, "before_cursor_execute")
    def count(*_):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
    made.open()
"""


@pytest.mark.parametrize("statement", [3, 9, 20])
def test_a_kill_in_the_middle_of_a_migration_leaves_the_schema_that_was(database, tmp_path, statement):
    command = [sys.executable, "-c", textwrap.dedent(_MIGRATE), database, str(tmp_path), str(statement)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -signal.SIGKILL
    made = Store(database, tmp_path)
    with made._engine.connect() as connection:
        assert set(sa.inspect(connection).get_table_names()) <= {"alembic_version"}
    made.open()
    made.add(run())
    made.close()


# ---- where it is ------------------------------------------------------------------------------------------------------------


def test_sqlite_writes_through_and_keeps_no_log_that_can_lose(tmp_path):
    made = Store("", tmp_path)
    made.open()
    with made._engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("synchronous", "journal_mode", "foreign_keys")
        }
    mode = "wal" if sqlite3.sqlite_version_info >= (3, 51, 3) else "delete"
    assert pragmas == {"synchronous": 2, "journal_mode": mode, "foreign_keys": 1}


@pytest.mark.parametrize(("url", "saying"), [("nonsense", "is no URL"), ("mysql://h/d", "SQLite and PostgreSQL are what there is")])
def test_another_database_is_refused(tmp_path, url, saying):
    with pytest.raises(SettingsError, match=saying):
        of(Settings(database_url=url, data_dir=tmp_path))


def test_a_database_that_does_not_answer_is_said(tmp_path):
    made = Store(f"postgresql://softgauge@/x?host={tmp_path}", tmp_path)
    with pytest.raises(Unavailable, match="the database does not answer"):
        made.open()


def test_the_password_comes_from_a_file_and_is_not_shown(tmp_path):
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")
    made = of(Settings(database_url="postgresql://u@h/d", database_password_file=secret, data_dir=tmp_path))
    assert made._engine.url.password == "hunter2"
    assert "hunter2" not in str(made._engine.url)


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(Unavailable, match="SOFTGAUGE_DATA_DIR") as refused:
        Store("", tmp_path / "data").open()
    assert str(tmp_path) not in str(refused.value)  # that is for the log
    assert str(tmp_path) in refused.value.reason
