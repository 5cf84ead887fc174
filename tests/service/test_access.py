"""Keys, scopes and budgets. The table of who may do what is held against the OpenAPI file."""

import json

import pytest

from service.access import ACCESS, KEY, SCOPES, Bucket, Budgets, active, new_key
from service.app import OPENAPI_FILE
from service.errors import Problem
from service.settings import Limits
from service.store import Store
from tests.service.test_projects import case

DOCUMENT = json.loads(OPENAPI_FILE.read_text())
OPERATIONS = [
    (operation["operationId"], method.upper(), path, operation)
    for path, row in DOCUMENT["paths"].items()
    for method, operation in row.items()
]
FREE = {"live", "ready"}


@pytest.fixture(scope="module")
def secured(start, tmp_path_factory):
    """A service that others can reach, so that keys are needed; and a key of each scope."""
    folder = tmp_path_factory.mktemp("secured")
    store = Store("", folder)
    store.open()
    keys = {}
    for scope in SCOPES:
        keys[scope], row = new_key(f"the {scope}", scope)
        store.add_key(row)
    store.close()
    with start(
        host="0.0.0.0", allowed_hosts=["*"], data_dir=str(folder), workers=1, limits={"rate_requests": 100_000}, key=keys["read"]
    ) as client:
        client.keys, client.store = keys, store
        del client.headers["Authorization"]
        yield client


def ask(client, method, path, key=None, **more):
    headers = {"Authorization": f"Bearer {client.keys.get(key, key)}"} if key else {}
    return client.request(method, path.replace("{", "").replace("}", ""), headers=headers, **more)


@pytest.mark.parametrize(("name", "method", "path", "operation"), OPERATIONS, ids=[row[0] for row in OPERATIONS])
def test_every_route_has_an_entry_and_keeps_to_it(secured, is_problem, name, method, path, operation):
    """A new route without an entry fails here: nobody said who may use it."""
    assert name in ACCESS, f"{name}: say in service/access.py who may"
    needed = ACCESS[name]
    assert operation["security"] == ([] if needed is None else [{"key": [needed]}, {}])
    body = {} if method in ("POST", "PUT") else None
    if needed is None:
        assert name in FREE
        assert ask(secured, method, path).status_code == 200
        return
    refused = ask(secured, method, path, json=body)
    is_problem(refused, 401, "unauthorized")
    assert refused.headers["www-authenticate"] == "Bearer"
    for scope in SCOPES:
        answer = ask(secured, method, path, scope, json=body)
        if SCOPES.index(scope) < SCOPES.index(needed):
            assert f"needs a key of scope {needed}" in is_problem(answer, 403, "forbidden")["detail"]
        else:
            assert answer.status_code not in (401, 403), answer.text


def test_the_table_names_no_route_that_is_not_there():
    assert ACCESS.keys() - {row[0] for row in OPERATIONS} == {"home", "docs", "projects", "project"}


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/static/home.css", "/health/ready"])
def test_what_tells_nothing_of_anybody_is_open(secured, path):
    assert secured.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/projects", "/projects/x"])
def test_a_browser_asks_for_the_key_of_a_page(secured, is_problem, path):
    answer = secured.get(path)
    is_problem(answer, 401)
    assert answer.headers["www-authenticate"].startswith("Basic realm=")
    assert secured.get(path, auth=("anyone", secured.keys["read"])).status_code in (200, 404)
    is_problem(secured.get(path, auth=("anyone", "sg_wrong")), 401)


def test_basic_is_for_pages_alone(secured, is_problem):
    """A browser sends it by itself, also from a page of another site."""
    is_problem(secured.get("/v1/projects", auth=("anyone", secured.keys["admin"])), 401)


@pytest.mark.parametrize("given", ["Bearer", "Bearer x", "Bearer sg_" + "a" * 43, "Basic !", "Digest x", "Bearer sg_" + "ü" * 43])
def test_what_is_no_key_is_refused(secured, is_problem, given):
    for path in ("/v1/projects", "/projects"):
        is_problem(secured.get(path, headers={"Authorization": given.encode("latin-1")}), 401)


def test_a_key_that_is_revoked_or_expired_counts_no_more(secured, is_problem):
    made = ask(secured, "POST", "/v1/keys", "admin", json={"name": "gone", "scope": "read", "days": 1}).json()
    assert KEY.fullmatch(made["key"])
    assert ask(secured, "GET", "/v1/projects", made["key"]).status_code == 200
    listed = ask(secured, "GET", "/v1/keys", "admin").json()["keys"]
    assert made["id"] in [row["id"] for row in listed]
    assert made["key"] not in json.dumps(listed)
    assert ask(secured, "DELETE", f"/v1/keys/{made['id']}", "admin").status_code == 204
    assert "was revoked" in is_problem(ask(secured, "GET", "/v1/projects", made["key"]), 401)["detail"]
    key, row = new_key("late", "read", days=-1)
    secured.store.add_key(row)
    assert "expired" in is_problem(ask(secured, "GET", "/v1/projects", key), 401)["detail"]
    is_problem(ask(secured, "DELETE", "/v1/keys/000000000000", "admin"), 404)


@pytest.mark.parametrize(
    "body", [{}, {"name": "a\nb"}, {"name": "x", "scope": "root"}, {"name": "x", "days": 0}, {"name": "x", "more": 1}]
)
def test_what_is_no_key_request_is_refused(secured, is_problem, body):
    is_problem(ask(secured, "POST", "/v1/keys", "admin", json=body), 422)


def test_who_wrote_is_remembered_by_the_name_of_the_key(secured):
    path = "/v1/projects/named/"
    made = ask(secured, "POST", path + "runs", "write", json={"branch": "main", "cases": [case("a")]}).json()
    moved = ask(secured, "PUT", path + "baselines/default", "write", json={"run_id": made["id"], "reason": "x"})
    assert moved.json()["by"] == "the write"


def test_a_key_is_not_in_the_log(secured):
    ask(secured, "GET", "/v1/projects", "read")
    ask(secured, "GET", "/v1/projects", "sg_" + "b" * 43)
    log = secured.log.read_text()
    assert "/v1/projects" in log
    assert not any(key in log for key in (*secured.keys.values(), "sg_" + "b" * 43))


def test_keys_are_kept_as_their_hashes_alone(secured):
    files = [path.read_bytes() for path in secured.uploads.parent.rglob("*") if path.is_file()]
    assert files
    assert not any(key.encode() in data for key in secured.keys.values() for data in files)


# ---- loopback ---------------------------------------------------------------------------------------------------------------


def test_on_loopback_nobody_needs_a_key_but_whoever_comes_through_a_proxy(service, is_problem):
    assert service.get("/v1/projects").status_code == 200
    for header in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via", "X-Forwarded-Host"):
        is_problem(service.get("/v1/projects", headers={header: "127.0.0.1"}), 401)
    assert service.get("/health/live", headers={"X-Forwarded-For": "1.2.3.4"}).status_code == 200


def test_a_wrong_key_is_wrong_on_loopback_too(service, is_problem):
    is_problem(service.get("/v1/projects", headers={"Authorization": "Bearer sg_x"}), 401)


# ---- budgets ----------------------------------------------------------------------------------------------------------------


def test_a_budget_fills_up_steadily_and_not_beyond():
    bucket = Bucket(0.0, 100.0)
    bucket.fill(60.0, 115.0)
    assert bucket.level == 15.0
    bucket.fill(60.0, 1000.0)
    assert bucket.level == 60.0


def test_requests_are_counted_by_holder():
    budgets = Budgets(Limits(rate_requests=2))
    budgets.of("a").take()
    budgets.of("a").take()
    with pytest.raises(Problem, match="rate_requests = 2 requests") as refused:
        budgets.of("a").take()
    assert 0 < int(refused.value.headers["Retry-After"]) <= 30
    budgets.of("b").take()


def test_seconds_of_computing_are_counted_when_they_are_spent():
    budgets = Budgets(Limits(rate_seconds=10))
    budgets.of("a").take()
    budgets.of("a").spend(15)
    with pytest.raises(Problem, match="rate_seconds = 10") as refused:
        budgets.of("a").take()
    assert 29 <= int(refused.value.headers["Retry-After"]) <= 31


def test_what_is_left_is_told():
    of = Budgets(Limits(rate_requests=6, rate_seconds=60)).of("a")
    of.take()
    of.spend(20)
    told = {name.decode(): value.decode() for name, value in of.headers()}
    assert told["ratelimit-policy"] == '"requests";q=6;w=60, "seconds";q=60;w=60'
    assert told["ratelimit"] in ('"requests";r=5;t=10, "seconds";r=40;t=20', '"requests";r=5;t=10, "seconds";r=39;t=20')


def test_a_key_that_has_spent_its_budget_waits_and_others_do_not(start, tmp_path, is_problem):
    store = Store("", tmp_path)
    store.open()
    one, row = new_key("one", "read")
    store.add_key(row)
    two, row = new_key("two", "read")
    store.add_key(row)
    with start(data_dir=str(tmp_path), workers=1, limits={"rate_requests": 3.0}) as client:
        answers = [client.get("/v1/ops", headers={"Authorization": f"Bearer {one}"}) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        is_problem(answers[-1], 429, "too-many-requests")
        assert int(answers[-1].headers["retry-after"]) <= 20
        assert answers[0].headers["ratelimit"].startswith('"requests";r=2;t=')
        assert client.get("/v1/ops", headers={"Authorization": f"Bearer {two}"}).status_code == 200
        assert client.get("/v1/ops").status_code == 200  # loopback has no budget
        body = {"op": "softmax", "logits": [0, 1]}
        spent = client.post("/v1/evaluate", json=body, headers={"Authorization": f"Bearer {two}"})
        assert int(spent.headers["ratelimit"].partition('"seconds";r=')[2].partition(";")[0]) < 120


# ---- keys -------------------------------------------------------------------------------------------------------------------


def test_a_key_has_256_bits_and_is_never_the_same():
    keys = {new_key("x", "read")[0] for _ in range(100)}
    assert len(keys) == 100
    assert all(KEY.fullmatch(key) for key in keys)


def test_when_a_key_counts():
    row = {"revoked": None, "expires": None}
    assert active(row, "2026")
    assert active({**row, "expires": "2027"}, "2026")
    assert not active({**row, "expires": "2026"}, "2026")
    assert not active({**row, "revoked": "2025"}, "2026")


@pytest.mark.parametrize(("scope", "key"), [("root", None), ("read", "short"), ("read", "sg_" + "!" * 43)])
def test_what_is_no_key_or_scope_is_said(scope, key):
    with pytest.raises(ValueError, match=r"unknown scope|a key is sg_"):
        new_key("x", scope, key=key)


def test_the_operators_key_is_there_from_the_start(start, tmp_path):
    key, _ = new_key("", "admin")
    (tmp_path / "key").write_text(f"{key}\n")
    with start(data_dir=str(tmp_path / "data"), admin_key_file=str(tmp_path / "key"), workers=1) as client:
        assert client.get("/v1/keys", headers={"Authorization": f"Bearer {key}"}).json()["keys"][0]["name"] == "first"
