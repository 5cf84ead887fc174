"""A PostgreSQL of the tests' own: the system's binaries, on a socket in a folder of its own, as another user where this is root."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

USERS = ("postgres", "nobody")


def binary(name):
    """The program, where Debian or the path has it; None where there is none."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    return next((str(place) for place in places), None) or shutil.which(name)


def missing():
    """Why there can be none here, or nothing."""
    lacking = [name for name in ("initdb", "postgres") if binary(name) is None]
    return f"PostgreSQL is not installed: no {' and no '.join(lacking)}" if lacking else ""


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Cluster:
    """One server. What is committed survives `kill`, since fsync is on."""

    def __init__(self, fast=True, password=None):
        """fast: nothing is forced to the disk, for tests that do not kill it. password: it listens on `port` too, and asks."""
        self.folder = Path(tempfile.mkdtemp(prefix="softgauge-pg-"))
        self._options = ["-c", "fsync=off", "-c", "full_page_writes=off"] if fast else []
        self._as = []
        if os.getuid() == 0:
            user = next(pwd.getpwnam(name) for name in USERS if name in {row.pw_name for row in pwd.getpwall()})
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        self._data, self.port = self.folder / "data", _free_port() if password else 5432
        host = "scram-sha-256" if password else "trust"
        secret = self.folder / "password"
        secret.write_text(password or "none")
        secret.chmod(0o644)
        made = ["-D", self._data, "-U", "softgauge", f"--auth-host={host}", "--auth-local=trust", f"--pwfile={secret}"]
        self._run(binary("initdb"), *made, "-E", "UTF8", "--locale=C", "--no-sync")
        self._options += ["-p", str(self.port), "-c", f"listen_addresses={'127.0.0.1' if password else ''}"]
        self._made = 0
        self.start()

    def _run(self, *command):
        done = subprocess.run([*self._as, *map(str, command)], cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def start(self):
        """Until it answers."""
        command = [binary("postgres"), "-D", self._data, "-k", self.folder, *self._options]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([*self._as, *map(str, command)], cwd=self.folder, stderr=log, stdout=log)
        for _ in range(400):
            if self._answers():
                return
            time.sleep(0.025)
        raise TimeoutError((self.folder / "log").read_text())

    def _answers(self):
        import psycopg

        try:
            psycopg.connect(f"host={self.folder} port={self.port} user=softgauge dbname=postgres", connect_timeout=2).close()
        except psycopg.OperationalError:
            assert self._process.poll() is None, (self.folder / "log").read_text()
            return False
        return True

    def url(self):
        """Of a new, empty database."""
        import psycopg

        self._made += 1
        name = f"softgauge_{os.getpid()}_{self._made}"
        where = f"host={self.folder} port={self.port} user=softgauge dbname=postgres"
        with psycopg.connect(where, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://softgauge@/{name}?host={self.folder}"

    def stop(self, how=signal.SIGINT):
        """SIGINT: fast, what is under way is rolled back; SIGQUIT: at once, as if the power failed."""
        self._process.send_signal(how)
        self._process.wait(30)

    def remove(self):
        """Nothing is left."""
        if self._process.poll() is None:
            self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)
