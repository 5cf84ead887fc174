"""A real uvicorn on a free loopback port, for a session or with settings of its own."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from service.store import Store
from tests import postgres

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def _running(log, *, limits=None, ready=True, key=None, **settings):
    """An httpx.Client of a service that was started with these settings, and ends with the block."""
    settings = {"port": _free_port(), "workers": 2, "data_dir": str(log.parent / "data"), **settings}
    given = json.dumps({"settings": settings, "limits": limits or {}})
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("w") as lines:
        process = subprocess.Popen([sys.executable, str(HERE / "launch.py"), given], env=env, stderr=lines)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{settings['port']}", timeout=30, trust_env=False) as client:
                client.headers.update({"Authorization": f"Bearer {key}"} if key else {})
                _wait(process, lambda: _up(client, ready))
                client.process, client.log, client.uploads = process, log, Path(settings["data_dir"]) / "uploads"
                yield client
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process, condition):
    for _ in range(600):
        assert process.poll() is None, "the service did not start"
        with contextlib.suppress(httpx.TransportError):
            if condition():
                return
        time.sleep(0.05)
    raise TimeoutError


def _up(client, ready):
    """Alive; or ready, with the page's example computed, so that the processes are idle."""
    if not ready:
        return client.get("/health/live").status_code == 200
    return client.get("/health/ready").status_code == 200 and "not computed yet" not in client.get("/").text


@pytest.fixture(scope="session")
def service(start):
    """The service as it is, but impatient with a slow body so that tests are fast."""
    with start(limits={"body_seconds": 1.5}) as client:
        yield client


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """A context manager: a service with settings of the test's own."""
    return lambda **settings: _running(tmp_path_factory.mktemp("service") / "log", **settings)


@pytest.fixture(scope="session")
def misbehaving():
    """The command of computing processes that do what child_tasks.py says."""
    return [sys.executable, str(HERE / "child_tasks.py")]


@pytest.fixture
def is_problem():
    """Assert that an answer is a problem document of the one shape, and return it."""

    def check(answer, status, kind=None):
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        found = answer.json()
        assert list(found) == ["type", "title", "status", "detail", "instance", "errors", "request_id"]
        assert found["status"] == status
        assert found["request_id"] == answer.headers["x-request-id"]
        assert found["detail"]
        assert all(list(row) == ["pointer", "detail"] for row in found["errors"])
        assert len(found["errors"]) <= 20
        assert len(answer.content) < 16_384
        if kind:
            assert found["type"] == f"urn:softgauge:problem:{kind}"
        return found

    return check


@pytest.fixture(scope="session")
def cluster():
    """A PostgreSQL for as long as the tests run."""
    if reason := postgres.missing():
        pytest.skip(reason)
    running = postgres.Cluster()
    yield running
    running.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request):
    """The URL of a new database, as SOFTGAUGE_DATABASE_URL says it: each test that asks runs on both kinds."""
    return "" if request.param == "sqlite" else request.getfixturevalue("cluster").url()


@pytest.fixture
def store(database, tmp_path):
    """A store that is open and empty."""
    made = Store(database, tmp_path / "data")
    made.open()
    yield made
    made.close()
