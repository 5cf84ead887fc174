"""The OpenAPI document is complete, is the file in the repository, and is what the running service does."""

import json

import jsonschema
import numpy as np
import pytest

from service import schemas
from service.app import OPENAPI_FILE, written_openapi
from service.errors import KINDS
from service.settings import Limits
from tests.service.test_files import npy

DOCUMENT = json.loads(OPENAPI_FILE.read_text())
OPERATIONS = [(path, method, operation) for path, row in DOCUMENT["paths"].items() for method, operation in row.items()]
EXAMPLES = [
    (route, name)
    for route, examples in (
        ("evaluate", schemas.EVALUATE_EXAMPLES),
        ("truth", schemas.TRUTH_EXAMPLES),
        ("verify", schemas.VERIFY_EXAMPLES),
        ("tolerance", schemas.TOLERANCE_EXAMPLES),
    )
    for name in examples
]


RUNS = {"list_projects", "add_run", "list_runs", "read_run", "check", "list_baselines", "read_baseline", "move_baseline", "compare"}
RUNS |= {"read_history", "read_badge", "read_report"}
KEYS = {"list_keys", "add_key", "revoke_key"}


def conforms(value, name):
    resolved = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    jsonschema.Draft202012Validator(resolved).validate(value)


def test_the_file_is_the_document_of_the_app():
    assert OPENAPI_FILE.read_text() == written_openapi(), "run: python -m service.app"


def test_the_running_service_serves_it(service):
    assert service.get("/openapi.json").json() == DOCUMENT


def test_it_is_openapi_3_1_with_every_resource():
    assert DOCUMENT["openapi"].startswith("3.1")
    names = {operation["operationId"] for _, _, operation in OPERATIONS}
    catalogue = {f"list_{kind}" for kind in ("ops", "variants", "formats", "summations", "inputs", "policies")}
    assert names == {"evaluate", "truth", "verify", "tolerance", "thresholds", "live", "ready", "metrics"} | catalogue | RUNS | KEYS


def test_every_reference_leads_somewhere():
    def references(node):
        if isinstance(node, dict):
            yield from ([node["$ref"]] if isinstance(node.get("$ref"), str) else ())
            node = list(node.values())
        if isinstance(node, list):
            for part in node:
                yield from references(part)

    for reference in set(references(DOCUMENT)):
        assert reference.removeprefix("#/components/schemas/") in DOCUMENT["components"]["schemas"]


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)
def test_every_error_is_documented_as_a_problem(path, method, operation):
    for status, answer in operation["responses"].items():
        if not status.startswith("2"):
            (media,) = answer["content"].items()
            assert media[0] == "application/problem+json"
            assert media[1]["schema"] == {"$ref": "#/components/schemas/Problem"}
            example = media[1]["example"]
            assert example["status"] == int(status)
            assert example["type"].removeprefix("urn:softgauge:problem:") in KINDS
            conforms(example, "Problem")
    wanted = {"400", "408", "413", "415", "422", "500"} if method in ("post", "put") else {"400"}
    wanted |= {"401", "403", "429", "503"} if operation["security"] else set()
    assert wanted <= set(operation["responses"])
    assert operation["summary"]
    assert operation["description"]


@pytest.mark.parametrize(("route", "name"), EXAMPLES)
def test_every_example_runs_and_its_answer_fits_the_schema(service, route, name):
    value = media(route)["application/json"]["examples"][name]["value"]
    conforms(value, f"{route.title()}Request")
    answer = service.post(f"/v1/{route}", json=value)
    assert answer.status_code == 200, answer.text
    conforms(answer.json(), f"{route.title()}Response")


def media(route):
    return DOCUMENT["paths"][f"/v1/{route}"]["post"]["requestBody"]["content"]


POSTS = sorted({route for route, _ in EXAMPLES})


@pytest.mark.parametrize("route", POSTS)
def test_every_route_with_a_body_has_all_doors(route):
    assert list(media(route)) == ["application/json", "multipart/form-data", "application/octet-stream"]
    parts = set(media(route)["multipart/form-data"]["schema"]["properties"])
    fields = set(DOCUMENT["components"]["schemas"][f"{route.title()}Request"]["properties"])
    beside = {"request", "tensors", "mask", "weights"} | ({"outputs.0"} if "outputs" in fields else set())
    assert parts == beside | ({"logits", "output", "targets", "grad_output", "reference"} & fields)


@pytest.mark.parametrize("route", POSTS)
def test_the_form_shown_is_taken(service, route):
    value = media(route)["multipart/form-data"]["examples"]["files"]["value"]
    arrays = {"logits": np.zeros((1, 3), np.float32), "output": np.full((1, 3), 1 / 3, np.float32)}
    files = {name: (f"{name}.npy", npy(arrays[name])) for name in value if name != "request"}
    answer = service.post(f"/v1/{route}", files={"request": (None, json.dumps(value["request"])), **files})
    assert answer.status_code == 200, answer.text
    conforms(answer.json(), f"{route.title()}Response")


@pytest.mark.parametrize("route", POSTS)
def test_the_binary_body_shown_is_taken(service, route):
    value = media(route)["application/octet-stream"]["examples"]["binary"]["value"]
    (header,) = DOCUMENT["paths"][f"/v1/{route}"]["post"]["parameters"]
    headers = {"Content-Type": "application/octet-stream", header["name"]: str(header["example"])}
    answer = service.post(f"/v1/{route}", content=value.encode(), headers=headers)
    assert answer.status_code == 200, answer.text
    conforms(answer.json(), f"{route.title()}Response")


@pytest.mark.parametrize(
    ("route", "request_of"),
    [
        ("evaluate", schemas.EVALUATE_ANSWERED),
        ("truth", schemas.TRUTH_EXAMPLES["tiny"]["value"]),
        ("verify", schemas.VERIFY_EXAMPLES["gate"]["value"]),
        ("tolerance", schemas.TOLERANCE_EXAMPLES["half"]["value"]),
    ],
)
def test_the_answer_shown_is_the_answer(service, route, request_of):
    shown = DOCUMENT["paths"][f"/v1/{route}"]["post"]["responses"]["200"]["content"]["application/json"]["example"]
    conforms(shown, f"{route.title()}Response")
    answer = service.post(f"/v1/{route}", json=request_of).json()
    assert {**answer, "engine": shown["engine"]} == shown


def test_the_limits_shown_are_the_answer(service):
    shown = DOCUMENT["paths"]["/v1/thresholds"]["get"]["responses"]["200"]["content"]["application/json"]["example"]
    conforms(shown, "ThresholdsResponse")
    answer = service.get("/v1/thresholds", params=schemas.THRESHOLDS_ANSWERED).json()
    assert {**answer, "engine": shown["engine"]} == shown


@pytest.mark.parametrize(
    ("change", "status", "pointer"),
    [
        ({"op": "max"}, 422, "op"),
        ({"variant": "best"}, 422, "variant"),
        ({"variant": "chosen_shift(c=nan)"}, 422, "variant"),
        ({"variant": "tiled(tile=0)"}, 422, "variant"),
        ({"format": "fp8"}, 422, "format"),
        ({"format": None}, 422, "format"),
        ({"n": 0}, 422, "n"),
        ({"n": "2.5"}, 422, "n"),
        ({"n": "1_000"}, 422, "n"),
        ({"n": " 5"}, 422, "n"),
        ({"n": ["2", "3"]}, 422, "n"),
        ({"n": "9" * 5000}, 422, "n"),
        ({"n": 2**20 + 1}, 413, "n"),
        ({"op": "softmax_jacobian", "n": 4096}, 422, "n"),
        ({"summation": "by hand"}, 422, "summation"),
        ({"accumulator": "float17"}, 422, "accumulator"),
        ({"exp": "fast"}, 422, "exp"),
        ({"overflow": "saturate"}, 422, "overflow"),
        ({"formats": "float16"}, 422, "formats"),
    ],
)
def test_what_is_no_question_about_limits_is_refused_by_its_parameter(service, change, status, pointer):
    asked = {name: value for name, value in {**schemas.THRESHOLDS_ANSWERED, **change}.items() if value is not None}
    answer = service.get("/v1/thresholds", params=asked)
    assert answer.status_code == status, answer.text
    problem = answer.json()
    conforms(problem, "Problem")
    assert [row["pointer"] for row in problem["errors"]] == [pointer]
    assert len(answer.content) < 16_384


@pytest.mark.parametrize("path", ["ops", "variants", "formats", "summations", "inputs", "policies"])
def test_a_parameter_that_is_not_there_is_refused(service, path, is_problem):
    is_problem(service.get(f"/v1/{path}", params={"foo": "1"}), 422, "invalid")
    is_problem(service.post("/v1/verify", params={"foo": "1"}, json={}), 422, "invalid")
    is_problem(service.get("/v1/variants?op=softmax&op=logsumexp"), 422, "invalid")


@pytest.mark.parametrize(
    ("change", "status", "pointer"),
    [
        ({"op": "max"}, 422, "/op"),
        ({"format": "fp8"}, 422, "/format"),
        ({"n": None}, 422, "/n"),
        ({"n": 0}, 422, "/n"),
        ({"n": 2**24 + 1}, 422, "/n"),
        ({"n": "7"}, 422, "/n"),
        ({"compute": "float17"}, 422, "/compute"),
        ({"summation": "by hand"}, 422, "/summation"),
        ({"exp_ulp": 0.1}, 422, "/exp_ulp"),
        ({"algorithm": "online"}, 422, "/n"),
        ({"op": "softmax_vjp"}, 422, "/n"),
        ({"logits": [1, 2], "n": 3}, 422, "/logits"),
        ({"logits": [1, 2], "n": None, "params": {"sink": 0}}, 422, "/logits"),
        ({"logits": ["NaN", 2], "n": None}, 422, "/logits"),
        ({"foo": 1}, 422, "/foo"),
        ({"algorithm": "by hand"}, 422, "/algorithm"),
        ({"algorithm": "tiled(tile=0)"}, 422, "/algorithm"),
        ({"algorithm": "sink", "logits": [1, 2], "n": None}, 422, "/algorithm"),
        ({"params": {"scale": 2}}, 422, "/params"),
        ({"targets": [0]}, 422, "/targets"),
        ({"grad_output": [1]}, 422, "/grad_output"),
        ({"axis": 0}, 422, "/axis"),
    ],
)
def test_what_is_no_question_about_tolerance_is_refused_in_its_place(service, change, status, pointer):
    answer = service.post("/v1/tolerance", json={"op": "softmax", "format": "float32", "n": 10, **change})
    assert answer.status_code == status, answer.text
    conforms(answer.json(), "Problem")
    assert [row["pointer"] for row in answer.json()["errors"]] == [pointer]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"output": {"dtype": "float32", "shape": [3], "data": [0, 0, 1]}}, "/output"),
        ({"reference": {"dtype": "float32", "shape": [3], "data": [0, 0, 1]}}, "/reference"),
        ({"gate": {"policy": "flash.2x"}}, "/reference"),
        ({"outputs": [{"dtype": "float64", "shape": [2], "data": [0, 1]}]}, "/outputs/0"),
        ({"op": "logsumexp", "output": {"dtype": "float32", "shape": [], "data": [1]}, "include": ["order"]}, "/include"),
        ({"gate": {"policy": "bound", "algorithm": "by hand"}}, "/gate/algorithm"),
        ({"gate": {"policy": "bound", "algorithm": "tiled(tile=0)"}}, "/gate/algorithm"),
        ({"gate": {"policy": "bound", "algorithm": "sink"}}, "/gate/algorithm"),
        ({"op": "log_softmax", "gate": {"policy": "bhh.bound"}}, "/gate/policy"),
        ({"op": "softmin"}, "/op"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_its_place(service, change, pointer):
    output = {"dtype": "float32", "shape": [2], "data": [0.5, 0.5]}
    answer = service.post("/v1/verify", json={"op": "softmax", "logits": [1, 2], "output": output, **change})
    assert answer.status_code == 422, answer.text
    conforms(answer.json(), "Problem")
    assert [row["pointer"] for row in answer.json()["errors"]] == [pointer]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"params": {"reduction": "mean"}, "output": {"dtype": "float32", "shape": [], "data": [1]}}, "/sample"),
        ({"include": ["elements"]}, "/include"),
    ],
)
def test_what_cannot_be_sampled_is_refused_in_its_place(service, change, pointer):
    output = {"dtype": "float32", "shape": [2], "data": [1, 1]}
    asked = {"op": "cross_entropy", "logits": [[1, 2]] * 2, "targets": [0, 1], "output": output, "sample": {"rows": 1}, **change}
    answer = service.post("/v1/verify", json=asked)
    assert [row["pointer"] for row in answer.json()["errors"]] == [pointer]


def test_limits_that_take_too_long_are_refused_with_a_way_out(service):
    asked = {"op": "softmax", "variant": "online", "format": "float64", "n": 2**20, "exp": "correct"}
    answer = service.get("/v1/thresholds", params=asked)
    assert (answer.status_code, answer.json()["type"]) == (413, "urn:softgauge:problem:too-long")
    assert "softgauge thresholds" in answer.json()["detail"]


def test_limits_have_axes(service):
    asked = {**schemas.THRESHOLDS_ANSWERED, "summation": "sequential", "accumulator": "float32", "fma": "true", "n": 3}
    answer = service.get("/v1/thresholds", params=asked).json()
    assert (answer["arithmetic"]["accumulator"], answer["arithmetic"]["fma"], answer["n"]) == ("float32", True, 3)


def test_the_422_shown_is_the_answer(service):
    shown = DOCUMENT["paths"]["/v1/evaluate"]["post"]["responses"]["422"]["content"]["application/problem+json"]["example"]
    request_of = {"op": "softmax", "logits": [1], "formats": ["float17"]}
    assert service.post("/v1/evaluate", json=request_of, headers={"X-Request-ID": "example-1"}).json() == shown


@pytest.mark.parametrize("model", ["Metrics", "Worst", "Fault", "Bound", "InputRounding", "Certificate", "RowFigure", "Limit"])
def test_every_figure_is_explained(model):
    assert [
        name for name, row in DOCUMENT["components"]["schemas"][model]["properties"].items() if not row.get("description")
    ] == []
    assert DOCUMENT["components"]["schemas"]["Outcome"]["properties"]["status"]["description"]


def test_rounding_left_out_is_no_rounding(service):
    assert "default" not in DOCUMENT["components"]["schemas"]["JsonTensor"]["properties"]["rounding"]
    logits = {"dtype": "float16", "shape": [1], "data": [0.1]}
    assert service.post("/v1/evaluate", json={"op": "softmax", "logits": logits}).status_code == 422
    assert service.post("/v1/evaluate", json={"op": "softmax", "logits": {**logits, "rounding": "nearest"}}).status_code == 200


@pytest.mark.parametrize("name", ["ops", "variants", "formats", "summations", "inputs"])
def test_the_catalogue_fits_the_schema(service, name):
    answer = service.get(f"/v1/{name}")
    assert answer.status_code == 200
    conforms(answer.json(), f"{name.title()}Response")
    assert all(row["name"] for row in answer.json()[name])


def test_the_variants_of_one_op(service):
    found = service.get("/v1/variants", params={"op": "softmax"}).json()["variants"]
    assert {row["op"] for row in found} == {"softmax"}
    assert found == [row for row in service.get("/v1/variants").json()["variants"] if row["op"] == "softmax"]


def test_every_limit_is_in_the_answer_of_ops(service):
    assert service.get("/v1/ops").json()["limits"] == {**Limits().__dict__, "body_seconds": 1.5}


def test_problems_fit_their_schema(service):
    conforms(service.get("/nothing").json(), "Problem")
    conforms(service.post("/v1/evaluate", json={"op": 1}).json(), "Problem")


@pytest.mark.parametrize(
    "wrong",
    [
        {"op": "softmin", "logits": [1]},
        {"op": "softmax", "logits": []},
        {"op": "softmax", "logits": [True]},
        {"op": "softmax", "logits": ["nan"]},
    ],
)
def test_the_schema_refuses_what_the_service_refuses(service, wrong):
    with pytest.raises(jsonschema.ValidationError):
        conforms(wrong, "EvaluateRequest")
    assert service.post("/v1/evaluate", json=wrong).status_code == 422


def test_the_issues_example_is_what_it_says(service):
    """softmax([1000, 1001, 1002]): naive is NaN in all three formats, because exp overflowed at element 0; shifted is right."""
    outcomes = service.post("/v1/evaluate", json=schemas.EVALUATE_EXAMPLES["overflow"]["value"]).json()["outcomes"]
    naive = [row for row in outcomes if row["variant"] == "naive"]
    shifted = [row for row in outcomes if row["variant"] == "shifted"]
    assert [row["format"] for row in naive] == [row["format"] for row in shifted] == ["float16", "float32", "float64"]
    for row in naive:
        assert row["values"] == [["NaN"] * 3]
        assert row["status"] == "unstable"
        assert (row["faults"][0]["step"], row["faults"][0]["kind"], row["faults"][0]["first_index"]) == ("exp", "overflow", [0, 0])
    for row in shifted:
        assert row["status"] == "accurate"
        assert row["metrics"]["max_ulp"] < 1
