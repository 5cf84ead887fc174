"""`softgauge keys` and `softgauge projects`."""

import gzip
import json

import pytest
from click.testing import CliRunner

from service import admin
from service.access import KEY
from service.cli import main
from service.store import NewMove, NewRun, Row, Store, new_id

OLD = "2020-01-01T00:00:00Z"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command line, over a folder of its own."""
    monkeypatch.setenv("SOFTGAUGE_DATA_DIR", str(tmp_path / "data"))
    return lambda *words: CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def kept(tmp_path, run):
    """A store with a project of five old runs, the first of which is the baseline."""
    store = Store("", tmp_path / "data")
    store.open()
    for i in range(5):
        one = NewRun(new_id("run"), "attention", "main", None, f"c{i}", "", "fp", OLD, [Row("a", 0.5, None)], f"{i}".encode())
        store.add(one, move=NewMove("attention", "default", None, one.id, "first", "me", OLD) if i == 0 else None)
    return store


def test_a_key_is_printed_once_and_alone(run):
    made = run("keys", "create", "--name", "ci", "--scope", "read", "--days", "30")
    assert made.exit_code == 0
    assert KEY.fullmatch(made.stdout.strip())  # so that it can be piped into a file
    assert "of scope read, for ci, until 20" in made.stderr
    listed = run("keys", "list").stdout
    assert "read   active until" in listed
    assert made.stdout.strip() not in listed
    (key,) = {line.split()[0] for line in listed.splitlines()}
    assert run("keys", "revoke", key).exit_code == 0
    assert "revoked" in run("keys", "list").stdout
    refused = run("keys", "revoke", "0")
    assert refused.exit_code == 2
    assert "no key has the id '0'" in refused.stderr


def test_a_new_key_is_kept_nowhere(run):
    assert KEY.fullmatch(run("keys", "new").stdout.strip())
    assert run("keys", "list").stdout == ""


@pytest.mark.parametrize(
    "words",
    [
        ("--name", "a\nb"),
        ("--name", " "),
        ("--name", "x" * 101),
        ("--name", "x", "--scope", "root"),
        ("--name", "x", "--days", "0"),
        ("--name", "x", "--days", "nan"),
        (),
    ],
)
def test_what_is_no_key_is_refused(run, words):
    assert run("keys", "create", *words).exit_code == 2


def test_projects_are_listed(run, kept):
    assert run("projects", "list").stdout == f"attention  5 runs, the last {OLD}  not compared yet\n"


@pytest.mark.parametrize("days", ["-1", "nan", "1e9"])
def test_days_that_no_calendar_has_are_refused(run, kept, days):
    assert run("projects", "prune", "attention", "--days", days).exit_code == 2


def test_prune_says_what_it_would_remove_and_removes_just_that(run, kept):
    words = ("projects", "prune", "attention", "--days", "30", "--keep", "1")
    would = run(*words, "--dry-run")
    assert would.stdout.splitlines()[-1] == "3 runs would be removed"
    assert len(kept.runs("attention")[0]) == 5
    done = run(*words)
    assert done.stdout.splitlines()[:3] == would.stdout.splitlines()[:3]
    assert {row["commit"] for row in kept.runs("attention")[0]} == {"c0", "c4"}


def test_export_and_import(run, kept, tmp_path):
    file = tmp_path / "attention.gz"
    assert run("projects", "export", "attention", file).exit_code == 0
    before = list(kept.dump("attention"))
    again = run("projects", "import", file)
    assert again.exit_code == 2
    assert "already; remove it first" in again.stderr
    assert run("projects", "remove", "attention", "--yes").exit_code == 0
    assert run("projects", "list").stdout == ""
    assert run("projects", "import", file).exit_code == 0
    assert list(kept.dump("attention")) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


NO_EXPORTS = [b"no JSON", b'{"project": {"format": 2, "name": "x"}}', b'{"a": 1, "b": 2}']


@pytest.mark.parametrize("text", [None, *NO_EXPORTS])
def test_what_is_no_export_is_refused(run, tmp_path, text):
    (tmp_path / "file").write_bytes(b"no gzip" if text is None else gzip.compress(text))
    refused = run("projects", "import", tmp_path / "file")
    assert refused.exit_code == 2
    assert "file" in refused.stderr


def test_an_export_that_breaks_off_is_refused_whole(run, kept, tmp_path):
    file = tmp_path / "file"
    run("projects", "export", "attention", file)
    run("projects", "remove", "attention", "--yes")
    file.write_bytes(file.read_bytes()[:-20])
    assert run("projects", "import", file).exit_code == 2
    assert kept.projects() == []
    lines = [*(json.dumps({kind: row}) for kind, row in [("project", {"format": 1, "name": "x", "at": OLD})]), '{"run": {}}']
    file.write_bytes(gzip.compress("\n".join(lines).encode()))
    assert run("projects", "import", file).exit_code == 2
    assert kept.projects() == []


def test_removing_asks_first(run, kept):
    assert run("projects", "remove", "attention").exit_code == 1
    assert kept.has_project("attention")
    assert run("projects", "remove", "nothing", "--yes").exit_code == 2


def test_a_database_that_is_not_there_is_said(run, monkeypatch):
    monkeypatch.setenv("SOFTGAUGE_DATABASE_URL", "mysql://x/y")
    refused = run("projects", "list")
    assert refused.exit_code == 2
    assert "SQLite and PostgreSQL" in refused.stderr


def test_a_full_disk_is_no_fault_of_who_asks(run, monkeypatch):
    def full(settings):
        raise admin.Full("the disk is full")

    monkeypatch.setattr(admin, "of", full)
    assert run("projects", "list").exit_code == 3
