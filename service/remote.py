"""`softgauge check --url`: the suite is run here, and kept and compared by a service."""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

import engine
from service import client, runs
from service.baseline import Baseline, Known, entry
from service.check import Run
from service.suite import SuiteError

_BRANCH = ("SOFTGAUGE_BRANCH", "GITHUB_HEAD_REF", "GITHUB_REF_NAME", "CI_MERGE_REQUEST_SOURCE_BRANCH_NAME", "CI_COMMIT_REF_NAME")
_FROM = ("SOFTGAUGE_STARTED_FROM", "GITHUB_BASE_REF", "CI_MERGE_REQUEST_TARGET_BRANCH_NAME")
_COMMIT = ("SOFTGAUGE_COMMIT", "GITHUB_SHA", "CI_COMMIT_SHA")


@dataclass(frozen=True)
class Place:
    """Where a run goes. baseline: its name there; started_from: the branch that this one came from."""

    url: str
    project: str
    baseline: str
    branch: str
    started_from: str | None
    commit: str
    testbed: str

    def path(self, *parts: str) -> str:
        """Of a route of the project."""
        return "/".join(("/v1/projects", *(quote(part, safe="") for part in (self.project, *parts))))


def placed(
    url: str, project: str | None, baseline: str | None, branch: str | None, started_from: str | None, commit: str | None,
    testbed: str, root: Path,
) -> Place:  # fmt: skip
    """What is not said is what the CI service says, or git. Raises SuiteError."""
    branch = branch or _of(_BRANCH) or _git(root, "rev-parse", "--abbrev-ref", "HEAD")
    if not branch or branch == "HEAD":
        raise SuiteError("the branch is not known here: say --branch")
    return Place(
        url,
        project or root.name,
        baseline or "default",
        branch,
        started_from or _of(_FROM) or None,
        commit or _of(_COMMIT) or _git(root, "rev-parse", "HEAD"),
        testbed,
    )


def _of(names: Sequence[str]) -> str:
    return next((found for name in names if (found := os.environ.get(name, ""))), "")


def _git(root: Path, *words: str) -> str:
    """What git says, or nothing."""
    git = shutil.which("git")
    done = subprocess.run([git, "-C", str(root), *words], capture_output=True, text=True, check=False) if git else None
    return done.stdout.strip() if done is not None and done.returncode == 0 else ""


def known(place: Place) -> Baseline:
    """The baseline that the service would compare with, so that what is unchanged is not measured again. Raises ServiceError."""
    for branch in (place.branch, place.started_from):
        if branch is None:
            continue
        try:
            found = client.call("GET", f"{place.path('baselines', place.baseline)}?branch={quote(branch, safe='')}", url=place.url)
            run = client.call("GET", place.path("runs", found["run"]), url=place.url)
        except client.ServiceError as error:
            if error.status == 404:
                continue
            raise
        return Baseline({row["name"]: (entry(Known.model_validate(row["entry"])),) for row in run["cases"]})
    return Baseline({})


def check(place: Place, done: Run, partial: bool) -> dict[str, Any]:
    """Keep a run there and compare it: the whole comparison, `run` being the run's id. Raises ServiceError."""
    told = client.call("POST", place.path("check"), _posted(place, done, partial), url=place.url, once=secrets.token_hex(16))
    report = client.call("GET", told["report"], url=place.url)
    return {**report, "run": told["run"], "baseline_run": (told["baseline"] or {}).get("run")}


def accept(place: Place, run: str, reason: str, by: str) -> Mapping[str, Any]:
    """Move the baseline to a run. Raises ServiceError."""
    asked = {"run_id": run, "reason": f"{reason} ({by})" if by else reason, "branch": place.branch}
    found: Mapping[str, Any] = client.call(
        "PUT", place.path("baselines", place.baseline), asked, url=place.url, once=secrets.token_hex(16)
    )
    return found


def _posted(place: Place, done: Run, partial: bool) -> dict[str, Any]:
    return {
        "branch": place.branch,
        "started_from": place.started_from,
        "commit": place.commit,
        "testbed": place.testbed,
        "environment": {"python": platform.python_version(), "numpy": np.__version__, "system": platform.platform()},
        "engine": {"version": engine.VERSION, "schema": engine.SCHEMA, "fingerprint": engine.fingerprint()},
        "cases": runs.posted(done.results),
        "baseline": place.baseline,
        "policy": dict(done.suite.treatments),
        "partial": partial,
    }
