"""`softgauge check --url`, against a real service."""

import json
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from click.testing import CliRunner

from service import client, remote
from service.cli import main
from service.suite import SuiteError

SUITE = """
version = 1
[policy]
new = "create"
[[case]]
name = "numpy"
op = "softmax"
family = "gaussian"
parameters = { sigma = 4 }
n = 300
variant = "VARIANT"
gate = "none"
[case.grid]
format = ["float16", "float32"]
"""
CI = dict.fromkeys((*remote._BRANCH, *remote._FROM, *remote._COMMIT), "")


@pytest.fixture
def check(service, tmp_path, monkeypatch):
    """`softgauge check` in a repository of its own."""
    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q", "-b", "trunk", "."], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    where = ("--url", str(service.base_url), "--project", tmp_path.name)

    def run(*words, variant="shifted", env=None):
        (tmp_path / "softgauge.toml").write_text(SUITE.replace("VARIANT", variant))
        return CliRunner().invoke(main, ["check", *where, *words], env={**CI, **(env or {})})

    run.project = f"/v1/projects/{tmp_path.name}"
    return run


def test_the_first_run_is_the_baseline_and_what_is_worse_stops(check, service):
    first = check()
    assert first.exit_code == 0, first.output
    assert "pass: 2 cases" in first.stdout
    assert check().exit_code == 0
    worse = check("--branch", "fix", "--started-from", "trunk", variant="naive")
    assert worse.exit_code == 1
    assert "regressed: numpy[format=float16]" in worse.stdout
    assert "exceeds the largest float16, 65504" in worse.stdout  # what broke, found here
    runs = service.get(f"{check.project}/runs").json()["runs"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert [(row["branch"], row["commit"]) for row in runs] == [("fix", head), ("trunk", head), ("trunk", head)]
    whole = service.get(f"{check.project}/runs/{runs[0]['id']}").json()
    assert whole["environment"].keys() == {"python", "numpy", "system"}
    assert not (remote.Path.cwd() / ".softgauge").exists()


def test_accepting_moves_the_baseline_of_the_branch(check, service):
    check()
    done = check("--branch", "fix", "--started-from", "trunk", "--accept", "--reason", "on purpose", "--by", "me", variant="naive")
    assert done.exit_code == 0, done.output
    assert "baseline default of fix points to it; it pointed to nothing" in done.stdout
    assert check("--branch", "fix", variant="naive").exit_code == 0
    assert service.get(f"{check.project}/baselines").json()["moves"][0]["reason"] == "on purpose (me)"


def test_a_part_of_the_suite_misses_nothing(check):
    check()
    done = check("--case", "*float32*")
    assert done.exit_code == 0
    assert "1 case of" in done.stdout


def test_reports_are_those_of_the_service(check, tmp_path):
    check()
    assert check("--json", "told.json", "--junit", "j.xml", variant="naive").exit_code == 1
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["verdict"] == "regressed"
    assert told["id"].startswith("cmp-")
    assert "regressed" in (tmp_path / "j.xml").read_text()


def test_what_ci_says_is_taken(check, service):
    check(env={"GITHUB_HEAD_REF": "topic", "GITHUB_BASE_REF": "trunk", "GITHUB_SHA": "abc123"})
    row = service.get(f"{check.project}/runs").json()["runs"][0]
    assert (row["branch"], row["commit"]) == ("topic", "abc123")


@pytest.mark.parametrize(
    ("words", "status", "saying"),
    [
        (("--url", "ftp://x"), 2, "is no URL of a service"),
        (("--branch", "a\nb"), 2, "branch: "),
        (("--baseline", "a b"), 2, "write one that matches"),
        (("--json", "x.toml"), 2, "would write over a suite"),
    ],
)
def test_what_cannot_be_done_is_refused(check, words, status, saying):
    done = check(*words)
    assert (done.exit_code, saying in done.stderr) == (status, True), done.output


def test_what_belongs_to_a_service_needs_one():
    done = CliRunner().invoke(main, ["check", "--project", "x"])
    assert done.exit_code == 2
    assert "--project belongs to --url" in done.stderr


def test_without_git_the_branch_has_to_be_said(tmp_path, monkeypatch):
    for name in CI:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(remote.shutil, "which", lambda name: None)
    with pytest.raises(SuiteError, match="say --branch"):
        remote.placed("http://x", None, None, None, None, None, "", tmp_path)
    place = remote.placed("http://x", None, None, "b/1", None, None, "", tmp_path)
    assert (place.project, place.baseline, place.commit) == (tmp_path.name, "default", "")
    assert place.path("baselines", "a b") == f"/v1/projects/{tmp_path.name}/baselines/a%20b"


# ---- retries ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def flaky(monkeypatch):
    """A service that answers as it is told; what it was asked."""
    monkeypatch.setattr(client.time, "sleep", lambda seconds: None)
    asked, answers = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((self.path, self.headers["Idempotency-Key"], body))
            if (status := answers.pop(0)) is None:
                self.connection.close()
                return
            self.send_response(status)
            self.send_header("Content-Length", "2")
            if status in (409, 503):
                self.send_header("Retry-After", "1")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked, answers
    server.shutdown()
    server.server_close()


def test_what_is_not_answered_is_asked_again_by_the_same_key(flaky):
    url, asked, answers = flaky
    answers += [None, 503, 409, 201]
    assert client.call("POST", "/v1/projects/p/check", {"a": 1}, url=url, once="k") == {}
    assert asked == [("/v1/projects/p/check", "k", b'{"a": 1}')] * 4


def test_without_a_key_nothing_is_asked_twice(flaky):
    url, asked, answers = flaky
    answers += [None]
    with pytest.raises(client.ServiceError, match="No answer"):
        client.call("POST", "/x", {}, url=url)
    assert len(asked) == 1


def test_it_ends_after_five(flaky):
    url, asked, answers = flaky
    answers += [None] * 5
    with pytest.raises(client.ServiceError, match="No answer"):
        client.call("POST", "/x", {}, url=url, once="k")
    assert len(asked) == 5
