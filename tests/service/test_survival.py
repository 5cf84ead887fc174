"""What was answered 201 is there afterwards, whole: whatever is killed, whenever, on SQLite and on PostgreSQL."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from service.store import Store
from tests.service.test_projects import case

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def killed(database, folder, rounds, seed):
    """What killed.py says."""
    command = [sys.executable, str(HERE / "killed.py"), database, str(folder), str(rounds), str(seed)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_hundred_kills_of_a_writer_lose_nothing(database, tmp_path):
    assert killed(database, tmp_path, 50, 1).startswith("50 kills, ")  # fifty on each kind of database


@pytest.mark.soak
def test_a_thousand_kills_of_a_writer_lose_nothing(database, tmp_path):
    assert killed(database, tmp_path, 1000, 2).startswith("1000 kills, ")


def posting(client, project, stop, answered, number):
    """Posts checks and moves until the service is gone; notes what was answered, and what was not, by its key."""
    for i in range(10_000):
        if stop.is_set():
            return
        headers = {"Idempotency-Key": f"{project}-{number}-{i}-{time.monotonic_ns()}"}
        body = {"branch": "main", "commit": f"c{i}", "cases": [case(f"case {j}", digest=f"{i % 10}" * 64) for j in range(3)]}
        try:
            answer = client.post(f"/v1/projects/{project}/check", json={**body, "policy": {"new": "create"}}, headers=headers)
        except httpx.TransportError:
            answered.append((headers, body, None))
            return
        answered.append((headers, body, answer.json() if answer.status_code == 201 else answer.status_code))


def killing(start, database, folder, rounds, delay):
    """Kills a service under three clients, as often as that; every time the next one has all that was answered."""
    settings = {"workers": 1, "data_dir": str(folder), "database_url": database}
    told = []
    for number in range(rounds + 1):
        with start(**settings) as client:
            for headers, body, answer in told:
                again = client.post("/v1/projects/p/check", json={**body, "policy": {"new": "create"}}, headers=headers)
                assert again.status_code == 201, again.text
                if answer is not None:
                    assert again.json() == answer  # and nothing is done twice
            runs = client.get("/v1/projects/p/runs", params={"limit": 200}).json().get("runs", [])
            for row in runs:
                assert len(client.get(f"/v1/projects/p/runs/{row['id']}").json()["cases"]) == 3
            assert len({answer["run"] for _, _, answer in told if answer}) <= len(runs) or len(runs) == 200
            if number == rounds:
                return
            stop, answered = threading.Event(), []
            threads = [threading.Thread(target=posting, args=(client, "p", stop, answered, i)) for i in range(3)]
            for thread in threads:
                thread.start()
            time.sleep(delay(number))
            client.process.send_signal(signal.SIGKILL)
            stop.set()
            for thread in threads:
                thread.join()
            assert not any(isinstance(answer, int) for _, _, answer in answered), answered
            told = answered[-20:]


def test_a_killed_service_has_everything_it_answered(start, tmp_path):
    killing(start, "", tmp_path, 1, lambda number: 0.4)


@pytest.mark.soak
def test_a_service_killed_a_thousand_times_has_everything_it_answered(start, database, tmp_path):
    """Five hundred times on each kind of database."""
    killing(start, database, tmp_path, 500, lambda number: 0.01 * (number % 60))


def test_a_database_that_restarts_in_the_middle_is_waited_for(start, tmp_path, is_problem):
    from tests import postgres

    if reason := postgres.missing():
        pytest.skip(reason)
    cluster = postgres.Cluster(fast=False)
    body = {"branch": "main", "cases": [case("a")]}
    try:
        with start(workers=1, data_dir=str(tmp_path), database_url=cluster.url()) as client:
            first = client.post("/v1/projects/p/runs", json=body).json()["id"]
            cluster.stop(signal.SIGQUIT)  # as if the power failed
            headers = {"Idempotency-Key": "k"}
            answers = [client.post("/v1/projects/p/runs", json=body, headers=headers)]
            answers += [client.get(path) for path in ("/v1/projects", "/health/ready")]
            for answer in answers:
                assert is_problem(answer, 503, "store-unavailable")["detail"] == "the database does not answer"
                assert answer.headers["retry-after"]
                assert str(cluster.folder) not in answer.text
            assert client.get("/v1/ops").status_code == 200  # what computes goes on
            assert client.get("/health/live").status_code == 200
            cluster.start()
            assert client.get("/health/ready").status_code == 200
            second = client.post("/v1/projects/p/runs", json=body, headers=headers).json()["id"]
            assert [row["id"] for row in client.get("/v1/projects/p/runs").json()["runs"]] == [second, first]
    finally:
        cluster.remove()


def test_a_full_disk_is_said_and_harms_nothing(start, tmp_path, is_problem):
    body = {"branch": "main", "cases": [case(f"case {i}", findings=[os.urandom(200).hex()]) for i in range(300)]}
    with start(workers=1, data_dir=str(tmp_path)) as client:
        first = client.post("/v1/projects/p/runs", json={"branch": "main", "cases": [case("a")]}).json()["id"]
        before = resource.prlimit(client.process.pid, resource.RLIMIT_FSIZE, (2**14, resource.RLIM_INFINITY))
        refused = client.post("/v1/projects/p/runs", json=body)
        is_problem(refused, 503, "no-room")
        assert refused.headers["retry-after"]
        assert [row["id"] for row in client.get("/v1/projects/p/runs").json()["runs"]] == [first]
        resource.prlimit(client.process.pid, resource.RLIMIT_FSIZE, before)
        assert client.post("/v1/projects/p/runs", json=body).status_code == 201
    objects = [path.name for path in (tmp_path / "objects").glob("*/*")]
    assert len(objects) == 2
    assert not any(name.startswith(".") for name in objects)


def test_a_database_that_is_full_is_said(tmp_path):
    """SQLite's own word for a disk without room."""
    import sqlalchemy as sa

    from service.store import Full
    from tests.service.test_store import run

    store = Store("", tmp_path)
    store.open()
    sa.event.listen(store._engine, "connect", lambda connection, _: connection.execute("PRAGMA max_page_count=1").close())
    with pytest.raises(Full, match="the database has no room"):
        list(map(store.add, (run() for _ in range(200))))


def test_sigterm_under_load_answers_what_was_accepted(start, tmp_path):
    with start(workers=2, data_dir=str(tmp_path)) as client, ThreadPoolExecutor(8) as pool:
        body = {"branch": "main", "cases": [case(f"case {i}") for i in range(100)]}
        work = [pool.submit(client.post, "/v1/projects/p/check", json=body) for _ in range(24)]
        while not any(one.done() for one in work):
            time.sleep(0.005)
        client.process.terminate()
        told = []
        for one in work:
            if one.exception() is None and one.result().status_code == 201:
                told.append(one.result().json()["run"])
            else:
                assert one.exception() is None or isinstance(one.exception(), httpx.TransportError)
        assert client.process.wait(15) in (0, -signal.SIGTERM)
    store = Store("", tmp_path)
    kept = [row["id"] for row in store.runs("p", limit=200)[0]]
    assert told
    assert set(told) <= set(kept)
    for one in kept:
        assert len(json.loads(b"[" + b",".join(store.run("p", one)[1].splitlines()[1:]) + b"]")) == 100
