"""Runs, baselines, comparisons, reports and history over HTTP, on SQLite and on PostgreSQL."""

import csv
import io
import json
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from itertools import count, pairwise

import numpy as np
import pytest

import engine
from service import run_schemas
from service.baseline import stored
from tests.service.test_contract import conforms


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def kept(request, start):
    """A service that keeps runs."""
    url = "" if request.param == "sqlite" else request.getfixturevalue("cluster").url()
    with start(database_url=url, workers=1) as client:
        yield client


_numbers = count()


@pytest.fixture
def project(kept):
    """The path of a project that does not exist yet."""
    return f"/v1/projects/p{next(_numbers)}"


def case(name, worse=0.0, verdict=None, digest="0" * 64, **more):
    """A case as a client posts it: of a softmax whose largest error is half an ULP, or that much worse."""
    x = np.zeros((1, 4), np.float32)
    measured = engine.measure(engine.Problem("softmax", x), np.full((1, 4), 0.25, np.float32))
    figures = {**engine.figures_of(measured.metrics), "max_ulp": 0.5 + worse}
    entry = engine.Entry(
        engine.SCHEMA, "fp", {"logits": f"sha256:{'a' * 64}"}, {"op": "softmax"}, f"sha256:{digest}", verdict, figures
    )
    return {"name": name, "entry": stored(entry, engine.VERSION), **more}


def post(kept, project, cases, where="check", headers=None, **more):
    answer = kept.post(f"{project}/{where}", json={"branch": "main", "commit": "4f1c", "cases": cases, **more}, headers=headers)
    assert answer.status_code == 201, answer.text
    conforms(answer.json(), "ComparisonResponse" if where == "check" else "RunAdded")
    return answer.json()


def created(kept, project):
    """The id of a run that is the baseline of main."""
    return post(kept, project, [case("a"), case("b")], policy={"new": "create"})["run"]


def test_a_run_is_whole_and_stays_as_it_is(kept, project):
    cases = [case("a", worst="worst at [0, 1]", findings=["zeros"], tags=["fast"], source={"file": "k.cu", "line": 3}), case("b")]
    made = post(kept, project, cases, "runs", testbed="t4", started_from="trunk", environment={"gpu": "T4"})
    found = kept.get(f"{project}/runs/{made['id']}").json()
    conforms(found, "RunResponse")
    assert (found["branch"], found["commit"], found["testbed"], found["started_from"]) == ("main", "4f1c", "t4", "trunk")
    assert found["environment"] == {"gpu": "T4"}
    assert [{name: row[name] for name in sent} for row, sent in zip(found["cases"], cases, strict=True)] == cases
    rows = kept.get(f"{project}/runs").json()
    conforms(rows, "RunsResponse")
    assert rows == {"runs": [{name: made[name] for name in rows["runs"][0]}], "next": None}
    assert kept.get(f"{project}/runs/{made['id']}").json() == found


def test_the_first_check_creates_the_baseline_and_the_next_is_compared_with_it(kept, project):
    first = post(kept, project, [case("a"), case("b")], policy={"new": "create"})
    assert (first["verdict"], first["baseline"], first["counts"]) == ("pass", None, {"new": 2})
    same = post(kept, project, [case("b"), case("a")])
    assert (same["verdict"], same["counts"], same["baseline"]["run"]) == ("pass", {"unchanged": 2}, first["run"])
    worse = post(kept, project, [case("a", 2, digest="1" * 64), case("b")])
    assert (worse["verdict"], worse["cases"][0]["case"]) == ("regressed", "a")
    assert worse["cases"][0]["why"][0] == "max_ulp 2.5, was 0.5"
    better = post(kept, project, [case("a", -0.25, digest="1" * 64), case("b")])
    assert better["verdict"] == "improved"


def test_without_a_baseline_nothing_has_passed(kept, project):
    found = post(kept, project, [case("a")])
    assert (found["verdict"], found["baseline"]) == ("incomparable", None)
    assert kept.get(f"{project}/baselines/default").status_code == 404


def test_what_fails_its_gate_is_no_baseline(kept, project, is_problem):
    found = post(kept, project, [case("a", verdict="fail")], policy={"new": "create"})
    assert found["verdict"] == "failed"
    assert kept.get(f"{project}/baselines").json() == {"moves": [], "next": None}
    answer = kept.put(f"{project}/baselines/default", json={"run_id": found["run"], "reason": "x"})
    assert "a: fails its gate" in is_problem(answer, 422, "invalid")["detail"]
    excused = post(kept, project, [case("a", verdict="fail", rules={"informational": True})])
    assert kept.put(f"{project}/baselines/default", json={"run_id": excused["run"], "reason": "x"}).status_code == 200


def test_a_branch_is_compared_with_the_baseline_of_the_one_it_started_from(kept, project):
    base = created(kept, project)
    worse = [case("a", 1, digest="1" * 64), case("b")]
    found = post(kept, project, worse, branch="fix/@types#1", started_from="main")
    assert (found["verdict"], found["baseline"]["run"], found["baseline"]["branch"]) == ("regressed", base, "main")
    moved = kept.put(f"{project}/baselines/default", json={"run_id": found["run"], "reason": "on purpose"}).json()
    conforms(moved, "MoveRow")
    assert (moved["branch"], moved["was"]) == ("fix/@types#1", None)
    assert post(kept, project, worse, branch="fix/@types#1")["verdict"] == "pass"
    assert post(kept, project, worse)["verdict"] == "regressed"
    where = {"branch": "fix/@types#1"}
    assert kept.get(f"{project}/baselines/default", params=where).json()["run"] == found["run"]
    assert [row["id"] for row in kept.get(f"{project}/runs", params=where).json()["runs"]][-1] == found["run"]


def test_moves_are_kept_and_undone(kept, project, is_problem):
    base = created(kept, project)
    other = post(kept, project, [case("a", 1, digest="1" * 64), case("b")])["run"]
    url = f"{project}/baselines/default"
    assert kept.put(url, json={"run_id": other, "reason": "better", "expected": base}).json()["was"] == base
    is_problem(kept.put(url, json={"run_id": other, "reason": "late", "expected": base}), 409, "conflict")
    undone = kept.put(url, json={"run_id": base, "reason": "it was not"}).json()
    assert (undone["run"], undone["was"]) == (base, other)
    moves = kept.get(f"{project}/baselines").json()
    conforms(moves, "MovesResponse")
    assert [(row["was"], row["run"], row["reason"]) for row in moves["moves"][:2]] == [
        (other, base, "it was not"),
        (base, other, "better"),
    ]
    now = kept.get(url).json()
    conforms(now, "BaselineResponse")
    assert (now["run"], now["by"]) == (base, "loopback")


def test_two_moves_at_once_are_both_in_the_history(kept, project):
    created(kept, project)
    ids = [post(kept, project, [case("a"), case("b")])["run"] for _ in range(6)]
    url = f"{project}/baselines/default"
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda run: kept.put(url, json={"run_id": run, "reason": run}), ids))
    assert [answer.status_code for answer in answers] == [200] * 6
    moves = kept.get(f"{project}/baselines").json()["moves"]
    assert all(newer["was"] == older["run"] for newer, older in pairwise(moves))
    assert {answer.json()["was"] for answer in answers} == {move["was"] for move in moves[:6]}


def test_a_run_is_compared_by_other_rules(kept, project, is_problem):
    created(kept, project)
    worse = post(kept, project, [case("a", 1, digest="1" * 64), case("b")])
    url = f"{project}/baselines/default/compare"
    assert kept.post(url, json={"run_id": worse["run"]}).json()["verdict"] == "regressed"
    eased = kept.post(url, json={"run_id": worse["run"], "rules": {"a*": {"slack": {"max_ulp": 1.5}}}})
    assert (eased.status_code, eased.json()["verdict"]) == (201, "pass")
    assert eased.headers["location"] == eased.json()["report"]
    assert "no run of project" in is_problem(kept.post(url, json={"run_id": "run-0"}), 422)["errors"][0]["detail"]
    is_problem(kept.post(url, json={"run_id": "run-\0"}), 422)
    rules = {"rules": {"*": {"slack": {"max_ulps": 1}}}}
    assert is_problem(kept.post(url, json={"run_id": worse["run"], **rules}), 422)["errors"][0]["pointer"].startswith("/rules")


def test_a_rule_is_for_a_name_with_its_parameters_too(kept, project):
    name = "a[format=float32]"
    post(kept, project, [case(name)], policy={"new": "create"})
    worse = post(kept, project, [case(name, 1, digest="1" * 64)])
    asked = {"run_id": worse["run"], "rules": {name: {"slack": {"max_ulp": 1.5}}}}
    assert kept.post(f"{project}/baselines/default/compare", json=asked).json()["verdict"] == "pass"


def test_what_was_not_run_is_missing_unless_it_is_said(kept, project):
    created(kept, project)
    assert post(kept, project, [case("a")])["counts"] == {"missing": 1, "unchanged": 1}
    found = post(kept, project, [case("a")], partial=True)
    assert (found["verdict"], found["counts"]) == ("pass", {"unchanged": 1})


def test_a_suite_is_run_here(kept, project, is_problem):
    (example,) = run_schemas.RUN_EXAMPLES.values()
    made = kept.post(f"{project}/runs", json=example["value"])
    assert made.status_code == 201, made.text
    found = kept.get(f"{project}/runs/{made.json()['id']}").json()
    assert [row["name"] for row in found["cases"]] == ["numpy[format=float16]", "numpy[format=float32]"]
    (suite,) = {json.dumps(example["value"]["suite"])}

    def refused(**more):
        given = json.loads(suite)
        given["case"][0].update(more)
        answer = kept.post(f"{project}/runs", json={"branch": "main", "suite": given})
        return is_problem(answer, 413 if "rows" in more else 422)

    assert "unknown variant 'best'" in refused(variant="best")["detail"]
    assert "names a file" in refused(output="y.npy")["detail"]
    assert refused(rows=100_000)["errors"][0]["pointer"] == "/suite"
    for given, saying in (
        ({}, "either `cases`"),
        ({"cases": [case("a")], "suite": {}}, "either `cases`"),
        ({"suite": {}}, "version"),
    ):
        assert saying in is_problem(kept.post(f"{project}/runs", json={"branch": "main", **given}), 422)["detail"]


@pytest.mark.parametrize("example", [row["value"] for row in run_schemas.CHECK_EXAMPLES.values()])
def test_the_examples_of_a_check_run(kept, example):
    answer = kept.post("/v1/projects/examples/check", json=example)
    assert answer.status_code == 201, answer.text
    conforms(answer.json(), "ComparisonResponse")


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"branch": "<b>"}, "/branch"),
        ({"branch": "a\nb"}, "/branch"),
        ({"branch": None}, "/branch"),
        ({"commit": "x" * 201}, "/commit"),
        ({"testbed": "::error::"}, "/testbed"),
        ({"baseline": "a/b"}, "/baseline"),
        ({"policy": {"new": "ignore"}}, "/policy/new"),
        ({"cases": []}, "/cases"),
        ({"cases": [case("<script>")]}, "/cases/0/name"),
        ({"cases": [case("a"), case("a")]}, "/cases/1/name"),
        ({"cases": [case("a", findings=["a\nb"])]}, "/cases/0/findings/0"),
        ({"cases": [case("a", source={"file": "x", "line": 0})]}, "/cases/0/source/line"),
        ({"cases": [case("a", rules={"figures": ["max"]})]}, "/cases/0/rules/figures/0"),
        ({"cases": [case("a", rules={"slack": {"max_ulp": -1}})]}, "/cases/0/rules/slack/max_ulp"),
        ({"cases": [{**case("a"), "entry": {**case("a")["entry"], "figures": {}}}]}, "/cases/0/entry/figures"),
        ({"cases": [{**case("a"), "entry": {**case("a")["entry"], "output": "x"}}]}, "/cases/0/entry/output"),
        ({"what": 1}, "/what"),
        ({"environment": {"a": 1}}, "/environment/a"),
    ],
)
def test_what_is_no_run_is_refused_in_its_place(kept, project, is_problem, change, pointer):
    answer = kept.post(f"{project}/check", json={"branch": "main", "cases": [case("a")], **change})
    assert pointer in [row["pointer"] for row in is_problem(answer, 422)["errors"]]
    assert kept.get(f"{project}/runs").status_code == 404  # nothing of it is kept


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/projects/a%3Cb/runs", 422),
        ("GET", "/v1/projects/nowhere/runs", 404),
        ("GET", "/v1/projects/nowhere/runs/run-0", 404),
        ("GET", "/v1/projects/nowhere/baselines", 404),
        ("GET", "/v1/projects/nowhere/history", 404),
        ("GET", "/v1/projects/nowhere/badge", 404),
        ("GET", "/v1/projects/examples/runs?cursor=x", 422),
        ("GET", "/v1/projects/examples/runs?limit=0", 422),
        ("GET", "/v1/projects/examples/runs?branch=nope", 404),
        ("GET", "/v1/projects/examples/history?case=nope", 404),
        ("GET", "/v1/reports/run-0", 422),
        ("GET", f"/v1/reports/run-{'0' * 32}", 404),
        ("GET", f"/v1/reports/cmp-{'0' * 32}", 404),
        ("DELETE", "/v1/projects/examples/runs", 405),
        ("PUT", "/v1/projects/examples/baselines/a%20b", 422),
        ("GET", "/v1/projects/examples/runs/%00", 422),  # PostgreSQL has no text with a NUL
        ("GET", "/v1/projects/examples/history?case=%00", 422),
        ("GET", "/v1/projects/examples/runs?branch=%00", 422),
        ("GET", "/projects/%00", 422),
        ("GET", "/projects/examples?branch=%00", 422),
        ("GET", "/projects/nowhere", 404),
    ],
)
def test_what_is_not_there_is_a_problem(kept, is_problem, method, path, status):
    kept.post("/v1/projects/examples/runs", json={"branch": "main", "cases": [case("a")]})
    is_problem(kept.request(method, path, json={} if method == "PUT" else None), status)


def test_pages_of_runs(kept, project):
    ids = [post(kept, project, [case("a")], "runs")["id"] for _ in range(5)]
    seen, cursor = [], None
    while True:
        page = kept.get(f"{project}/runs", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        seen += [row["id"] for row in page["runs"]]
        if (cursor := page["next"]) is None:
            break
    assert seen == ids[::-1]


def test_the_same_request_again_is_answered_and_not_done_again(kept, project, is_problem):
    headers = {"Idempotency-Key": f"once {project}"}
    is_problem(kept.post(f"{project}/runs", json={"branch": "main", "cases": [case("a")]}, headers=headers), 422)  # a space
    headers = {"Idempotency-Key": f"once-{project.rpartition('/')[2]}-{kept.base_url.port}"}
    first = post(kept, project, [case("a")], headers=headers)
    assert post(kept, project, [case("a")], headers=headers) == first
    assert len(kept.get(f"{project}/runs").json()["runs"]) == 1
    other = kept.post(f"{project}/check", json={"branch": "main", "cases": [case("b")]}, headers=headers)
    assert is_problem(other, 422)["errors"][0]["pointer"] == "Idempotency-Key"
    elsewhere = kept.put(f"{project}/baselines/default", json={"run_id": first["run"], "reason": "x"}, headers=headers)
    is_problem(elsewhere, 422)


def test_without_a_key_every_request_is_one_of_its_own(kept, project):
    first, second = (post(kept, project, [case("a")]) for _ in range(2))
    assert first["run"] != second["run"]
    assert len(kept.get(f"{project}/runs").json()["runs"]) == 2


def test_the_same_request_at_once_is_done_once(kept, project):
    headers = {"Idempotency-Key": f"at-once-{project.rpartition('/')[2]}-{kept.base_url.port}"}
    body = {"branch": "main", "cases": [case(f"case {i}") for i in range(50)]}
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: kept.post(f"{project}/check", json=body, headers=headers), range(6)))
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert len({answer.text for answer in answers if answer.status_code == 201}) == 1
    assert len(kept.get(f"{project}/runs").json()["runs"]) == 1
    assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 409)


# ---- reports ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def reports(kept, project):
    """The paths of the report on a comparison and on its run."""
    created(kept, project)
    found = post(kept, project, [case("a", 3, digest="1" * 64, source={"file": "k.cu", "line": 7}), case("b")])
    return found["report"], f"/v1/reports/{found['run']}"


@pytest.mark.parametrize(
    "kind", ["text/markdown", "text/plain", "application/junit+xml", "application/sarif+json", "image/svg+xml"]
)
def test_a_report_is_what_is_asked_for(kept, reports, kind):
    for place, path in enumerate(reports):
        answer = kept.get(path, headers={"Accept": f"text/html;q=0.5, {kind}"})
        assert answer.headers["content-type"].partition(";")[0] == kind
        assert answer.headers["vary"] == "Accept"
        if kind.endswith("xml"):
            ET.fromstring(answer.text)
        if kind == "application/sarif+json":
            results = answer.json()["runs"][0]["results"]
            assert [row["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for row in results] == ["k.cu"] * (1 - place)
        elif kind != "image/svg+xml":
            assert ("ulp 3.5, was 0.5" in answer.text) == (place == 0)


def test_a_report_is_json_unless_something_else_is_asked_for(kept, reports, is_problem):
    for path in reports:
        found = kept.get(path).json()
        conforms(found, "ReportResponse")
        assert kept.get(path, headers={"Accept": "application/*, text/plain;q=0.9"}).json() == found
        is_problem(kept.get(path, headers={"Accept": "text/html, image/svg+xml;q=0"}), 406, "not-acceptable")
    assert kept.get(reports[0]).json()["verdict"] == "regressed"
    badge = kept.get(reports[0], params={"view": "badge"}, headers={"Accept": "image/svg+xml"})
    assert "regressed" in ET.fromstring(badge.text).attrib["aria-label"]
    assert "script" not in badge.headers["content-security-policy"]


def test_history_as_json_csv_and_a_plot(kept, project):
    created(kept, project)
    post(kept, project, [case("a", 1.5, digest="1" * 64), case("b")], branch="_fix")
    url = f"{project}/history"
    assert kept.get(url).json() == {"cases": ["a", "b"]}
    found = kept.get(url, params={"case": "a"}).json()
    conforms(found, "CaseHistory")
    assert [row["max_ulp"] for row in found["points"]] == [0.5, 2.0]
    assert [row["max_ulp"] for row in kept.get(url, params={"case": "a", "branch": "main"}).json()["points"]] == [0.5]
    for way in ({"headers": {"Accept": "text/csv"}, "params": {"case": "a"}}, {"params": {"case": "a", "format": "csv"}}):
        rows = list(csv.DictReader(io.StringIO(kept.get(url, **way).text)))
        assert [(row["case"], row["max_ulp"]) for row in rows] == [("a", "0.5"), ("a", "2.0")]
    drawn = kept.get(url, params={"case": "a", "format": "svg"})
    assert "2 runs, from 0.5 to 2 ULP; the last 2 ULP" in ET.fromstring(drawn.text).attrib["aria-label"]


def test_the_badge_is_the_last_verdict(kept, project):
    post(kept, project, [case("a")], "runs")
    assert "none yet" in kept.get(f"{project}/badge").text
    post(kept, project, [case("a")])
    assert "incomparable" in kept.get(f"{project}/badge", params={"branch": "main"}).text


def test_projects_are_listed(kept, project):
    created(kept, project)
    found = kept.get("/v1/projects").json()
    conforms(found, "ProjectsResponse")
    (row,) = [row for row in found["projects"] if row["name"] == project.rpartition("/")[2]]
    assert (row["runs"], row["verdict"]) == (1, "pass")


def test_a_page_of_another_site_may_not_write(kept, project, is_problem):
    for method, path in (("PUT", "baselines/default"), ("POST", "check"), ("POST", "runs")):
        answer = kept.request(method, f"{project}/{path}", json={}, headers={"Origin": "http://evil.example"})
        is_problem(answer, 403, "origin-not-allowed")


def test_bodies_are_bounded(kept, project, is_problem):
    is_problem(kept.post(f"{project}/runs", content=b" " * (17 << 20), headers={"Content-Type": "application/json"}), 413)
    url = f"{project}/baselines/default"
    is_problem(kept.put(url, json={"run_id": "x", "reason": "x" * 70_000}), 413)
    is_problem(kept.post(f"{project}/runs", content=b"{}", headers={"Content-Type": "text/plain"}), 415)
    is_problem(kept.put(url, content=b"{", headers={"Content-Type": "application/json"}), 400)
