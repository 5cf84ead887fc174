"""Requests that a machine makes up from the OpenAPI document: no 5xx, no answer that is not documented."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
QUICK = (
    "list_projects", "list_runs", "read_history", "read_badge", "read_report", "read_baseline", "move_baseline", "list_keys",
    "revoke_key",
)  # fmt: skip


def fuzzed(client, folder, examples, phases, operations=()):
    """What schemathesis says of the service."""
    program = Path(sys.executable).with_name("schemathesis")
    command = [program, "run", str(client.base_url.join("/openapi.json")), "--max-examples", str(examples), "--seed", "1"]
    command += ["--phases", phases, "--checks", ",".join(CHECKS), "--no-color", "--generation-database", "none"]
    command += ["--suppress-health-check", "all"]
    command += [word for name in operations for word in ("--include-operation-id", name)]
    done = subprocess.run(command, cwd=folder, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_a_few_requests_to_what_is_quick(service, tmp_path):
    fuzzed(service, tmp_path, 5, "examples,coverage,fuzzing", QUICK)


@pytest.mark.soak
def test_two_thousand_requests_to_every_operation(start, tmp_path):
    with start() as client:
        fuzzed(client, tmp_path, 2000, "examples,coverage,fuzzing,stateful")
