"""pydantic in and out of projects: runs, baselines, comparisons, history, keys. Strict, as in schemas.py."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

import engine
from service.baseline import Known, Text
from service.check import FINDINGS
from service.suite import MOST_CASES, NAME, Figure, PolicyTable

ID = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}"
"""Names that stand in paths: projects and baselines."""
BRANCH = r"[A-Za-z0-9_][A-Za-z0-9 ._/+@#,=-]{0,199}"
"""Names of branches, commits and testbeds."""
RUN = r"[!-~]{1,64}"
"""Ids of runs, those that there are not too."""
CASE = rf"{NAME}(\[[A-Za-z0-9 ._/+=,()-]{{1,200}}\])?"

Branch = Annotated[str, Field(pattern=rf"^{BRANCH}$", max_length=200)]
Said = Annotated[str, Field(pattern=rf"^({BRANCH})?$", max_length=200)]
Name = Annotated[str, Field(pattern=rf"^{ID}$", max_length=100)]
RunId = Annotated[str, Field(pattern=rf"^{RUN}$", max_length=64)]
Reason = Annotated[Text, Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class RulesModel(_Strict):
    """How a case is compared."""

    figures: list[Figure] | None = Field(
        default=None, description="That may not become worse; all but backward_error, if left out."
    )
    slack: dict[Figure, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        default={}, description="By how much one may, in its own unit."
    )
    informational: bool = Field(default=False, description="Whatever becomes of it, it is only said.")

    def rules(self) -> engine.Rules:
        """As the engine takes it. Raises EngineError."""
        return engine.Rules(tuple(self.figures) if self.figures is not None else engine.USUAL, self.slack, self.informational)


class SourceModel(_Strict):
    """Where the code is that a case judges."""

    file: Annotated[Text, Field(min_length=1)]
    line: int = Field(ge=1, le=10_000_000)


class CaseModel(_Strict):
    """What became of a case of a suite: what it is compared by, and what is said of it."""

    name: str = Field(pattern=f"^{CASE}$", max_length=320)
    entry: Known = Field(description="As in a baseline file: floats are hex, NaN, Infinity or -Infinity.")
    worst: Text | None = Field(default=None, description="The worst element: where it is, and what it should be.")
    findings: list[Text] = Field(default=[], max_length=FINDINGS, description="Of its gate.")
    faults: list[Text] = Field(default=[], max_length=FINDINGS, description="Of a variant that is not as good as it was.")
    tags: list[Annotated[str, Field(pattern=f"^{NAME}$")]] = Field(default=[], max_length=20)
    source: SourceModel | None = None
    rules: RulesModel = RulesModel()


class EngineModel(_Strict):
    """The engine that measured."""

    version: Text
    schema_: int = Field(alias="schema", ge=0, le=2**31)
    fingerprint: Text


class RunRequest(_Strict):
    """A run of a suite: where it was made, and its cases; or a suite, which the service runs."""

    branch: Branch
    started_from: Branch | None = Field(
        default=None,
        description="The branch that this one came from, whose baselines hold until it has its own. Kept as told first.",
    )
    commit: Said = Field(default="", description="Of the code that was judged.")
    testbed: Said = Field(default="", description="The kind of machine that it was judged on.")
    environment: dict[Text, Text] = Field(default={}, max_length=50, description="What else was the case there.")
    engine: EngineModel | None = Field(default=None, description="That measured; this service's own, if left out.")
    cases: list[CaseModel] | None = Field(default=None, min_length=1, max_length=MOST_CASES)
    suite: dict[str, Any] | None = Field(
        default=None, description="A softgauge.toml as JSON (`softgauge init --schema`) that names no files, to be run here."
    )


class CheckRequest(RunRequest):
    """A run, and the baseline that it is compared with."""

    baseline: Name = Field(default="default", description="Its name; the branch says which.")
    policy: PolicyTable | None = Field(default=None, description="What is done about cases that cannot be compared.")
    partial: bool = Field(default=False, description="Cases that are not there are not missing: others were not run.")


class MoveRequest(_Strict):
    """Where a baseline is to point, and why."""

    run_id: RunId
    reason: Reason = Field(description="In words, for those who ask later.")
    branch: Branch | None = Field(default=None, description="Whose baseline; that of the run, if left out.")
    expected: RunId | None = Field(
        default=None, description="The run that it has to point to until now; else nothing is moved (409)."
    )


class CompareRequest(_Strict):
    """A run that is compared with a baseline, by rules of its own perhaps."""

    run_id: RunId
    rules: dict[Annotated[str, Field(max_length=320)], RulesModel] = Field(
        default={},
        max_length=100,
        description='By name or pattern of cases, the first that fits: {"*": {"slack": {"max_ulp": 0.5}}}.',
    )
    policy: PolicyTable | None = None
    partial: bool = False


class KeyRequest(_Strict):
    """A key that is to be made."""

    name: Annotated[str, Field(pattern=rf"^{BRANCH}$", max_length=100, description="Whose it is, or what for.")]
    scope: Literal["read", "write", "admin"] = "write"
    days: float | None = Field(default=None, gt=0, le=36_500, allow_inf_nan=False, description="Until it expires; null: never.")


REQUESTS: tuple[type[BaseModel], ...] = (RunRequest, CheckRequest, MoveRequest, CompareRequest, KeyRequest)

# ---- answers ------------------------------------------------------------------------------------------------------------------

Cursor = Annotated[str | None, Field(description="Of the next page; null on the last.")]
Verdict = Literal["pass", "improved", "inconclusive", "incomparable", "failed", "regressed"]
Ulp = float | Literal["NaN", "Infinity", "-Infinity"] | None


class ProjectRow(BaseModel):
    """A project. last: when its newest run was made; verdict: of its newest comparison."""

    name: str
    at: str
    runs: int
    last: str | None
    verdict: Verdict | None


class ProjectsResponse(BaseModel):
    """Every project, by name."""

    projects: list[ProjectRow]


class RunRow(BaseModel):
    """A run. at: when it was kept, UTC; cases: how many."""

    id: str
    project: str
    branch: str
    commit: str
    testbed: str
    fingerprint: str
    at: str
    cases: int


class RunAdded(RunRow):
    """A run that is kept, and where its report is."""

    report: str


class RunsResponse(BaseModel):
    """A page of runs, newest first."""

    runs: list[RunRow]
    next: Cursor


class RunResponse(BaseModel):
    """A run, whole."""

    format: int
    id: str
    project: str
    branch: str
    started_from: str | None
    commit: str
    testbed: str
    at: str
    environment: dict[str, str]
    engine: EngineModel
    cases: list[CaseModel]


class MoveRow(BaseModel):
    """A move of a baseline. run, was: ids of the runs that it points and pointed to."""

    name: str
    branch: str
    run: str
    was: str | None
    reason: str
    by: str
    at: str


class MovesResponse(BaseModel):
    """A page of moves, newest first."""

    moves: list[MoveRow]
    next: Cursor


class BaselineResponse(BaseModel):
    """Where a baseline points to. branch: whose pointer it is."""

    name: str
    run: str
    branch: str
    reason: str
    by: str
    at: str


class ComparedCase(BaseModel):
    """A case that is not as it was. counts: whether the verdict is due to it."""

    case: str
    status: str
    counts: bool
    why: list[str]


class ComparisonResponse(BaseModel):
    """A comparison that is kept. counts: of cases, by status; cases: the worst of those that are not as they were."""

    id: str
    run: str
    baseline: BaselineResponse | None
    verdict: Verdict
    counts: dict[str, int]
    cases: list[ComparedCase]
    report: Annotated[str, Field(description="Where the whole is.")]


class ReportResponse(BaseModel):
    """What `softgauge check --json` writes."""

    id: str
    verdict: Verdict
    suite: str
    baseline: str
    accepted: list[dict[str, Any]]
    engine: EngineModel
    treatments: dict[str, str]
    counts: dict[str, int]
    cases: list[dict[str, Any]]


class Point(BaseModel):
    """A case in one run."""

    run: str
    at: str
    branch: str
    commit: str
    testbed: str
    fingerprint: str
    verdict: Literal["pass", "fail", "inconclusive"] | None
    max_ulp: Ulp


class CaseHistory(BaseModel):
    """A case over its last runs, oldest first."""

    case: str
    points: list[Point]


class CaseNames(BaseModel):
    """The cases that a project ever had."""

    cases: list[str]


class KeyRow(BaseModel):
    """A key, without what it is."""

    id: str
    name: str
    scope: str
    at: str
    expires: str | None
    revoked: str | None


class KeysResponse(BaseModel):
    """Every key."""

    keys: list[KeyRow]


class NewKeyResponse(KeyRow):
    """A new key."""

    key: Annotated[str, Field(description="What Authorization: Bearer is to say. It is told here and never again.")]


# ---- examples -----------------------------------------------------------------------------------------------------------------

_SUITE = {
    "version": 1,
    "case": [
        {
            "name": "numpy",
            "op": "softmax",
            "family": "gaussian",
            "n": 100,
            "variant": "shifted",
            "gate": "none",
            "grid": {"format": ["float16", "float32"]},
        }
    ],
}
RUN_EXAMPLES = {
    "suite": {
        "summary": "A suite that the service runs",
        "value": {"branch": "main", "commit": "4f1c2ab", "testbed": "x86-64", "suite": _SUITE},
    }
}
CHECK_EXAMPLES = {
    "create": {
        "summary": "The first check makes the baseline",
        "value": {"branch": "main", "commit": "4f1c2ab", "suite": _SUITE, "policy": {"new": "create"}},
    },
    "branch": {
        "summary": "A branch is compared with the baseline of the one it came from",
        "value": {"branch": "faster-exp", "started_from": "main", "commit": "9d03e71", "suite": _SUITE},
    },
}
_ID = "run-01a209c80b97b84aad8d607bf7c87a05"
MOVE_EXAMPLES = {
    "move": {"summary": "What is better is held from now on", "value": {"run_id": _ID, "reason": "pairwise sums, half the error"}}
}
COMPARE_EXAMPLES = {
    "rules": {"summary": "By other rules", "value": {"run_id": _ID, "rules": {"*": {"slack": {"max_ulp": 0.5}}}}},
}
KEY_EXAMPLES = {"ci": {"summary": "For a CI service", "value": {"name": "ci", "scope": "write", "days": 365}}}
