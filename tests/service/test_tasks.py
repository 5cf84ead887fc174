"""The bytes of a request become a problem of the engine, or a problem document that echoes nothing long."""

import json
import math
import re
import time
from dataclasses import fields

import numpy as np
import pytest

import engine
from service import schemas, tasks
from service.errors import ENGINE_KINDS, KINDS, Problem, from_engine, quoted
from service.settings import Limits

GOOD = {"op": "softmax", "logits": [[0, 1, 2]], "formats": ["float32"], "variants": ["naive"]}
LOSS = {"op": "cross_entropy", "targets": [0]}
VJP = {"op": "softmax_vjp", "grad_output": [[1, 0, 0]], "variants": ["shifted"]}
TRUTH = {"op": "softmax", "logits": [0, 1], "format": "float32"}


def run(task, document, limits=None):
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return json.loads(tasks.TASKS[task](body, limits or Limits(), lambda seconds: None))


def refused(document, kind, match=None, task="evaluate", limits=None):
    with pytest.raises(Problem, match=match) as caught:
        run(task, document, limits)
    assert caught.value.kind == kind
    assert len(caught.value.document("/", "x")) < 16_384
    return caught.value


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff{}", "UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"op": ' + b"9" * 4_000_000 + b"}", "digits"),
        (b'{"op": "softmax", "axis": 1, "op": "softmax"}', 'same name, "op"; leave one out'),
        (b'{"' + b"k" * 70 + b'": 1, "' + b"k" * 70 + b'": 1}', r"same name, \"k{60}\.\.\.\" \(70 characters\)"),
    ],
)
def test_what_is_no_json_is_malformed(body, match):
    refused(body, "malformed", match)


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"op": None}, "/op"),
        ({"op": 3}, "/op"),
        ({"surplus": 1}, "/surplus"),
        ({"a/b~c": 1}, "/a~1b~0c"),
        ({"logits": None}, "/logits"),
        ({"inputs": {"family": "gaussian", "rows": 1, "n": 2, "seed": 0}}, "/logits"),
        ({"worst": True}, "/worst"),
        ({"worst": 1.0}, "/worst"),
        ({"worst": -1}, "/worst"),
        ({"worst": 33}, "/worst"),
        ({"include": ["everything"]}, "/include/0"),
        ({"formats": []}, "/formats"),
        ({"formats": "float32"}, "/formats"),
        ({"variants": [1]}, "/variants/0"),
        ({"logits": [1, False]}, "/logits/1"),
        ({"logits": None, "inputs": {"family": "gaussian", "rows": 0, "n": 2, "seed": 0}}, "/inputs/rows"),
        ({"logits": None, "inputs": {"family": "gaussian", "rows": 1, "n": 2}}, "/inputs/seed"),
        ({"logits": None, "inputs": {"family": "gaussian", "rows": 1, "n": 2, "seed": 0, "sigma": None}}, "/inputs/sigma"),
        ({"logits": None, "inputs": {"family": "gaussian", "rows": 1, "n": 2, "seed": 0, "sigma": True}}, "/inputs/sigma"),
        ({"logits": None, "inputs": {"family": "gaussian", "rows": 1, "n": 2, "seed": 0, "sigma": [1]}}, "/inputs/sigma"),
        ({"logits": None, "inputs": {"family": "gaussian", "rows": 1, "n": 2, "seed": 0, "surplus": 1}}, "/inputs/surplus"),
        (
            {"logits": None, "inputs": {"family": "masked", "rows": 1, "n": 2, "seed": 0, "sigma": 2, "fraction": 2}},
            "/inputs/fraction",
        ),
        ({"logits": None, "inputs": {"family": "gaussian", "rows": 1, "n": 2, "seed": 0, "sigma": 10**400}}, "/inputs/sigma"),
        ({"axis": 0}, "/axis"),
        ({"axis": -2}, "/axis"),
        ({"axis": 2}, "/axis"),
        ({"axis": True}, "/axis"),
        ({"axis": 10**400}, "/axis"),
        ({"logits": [1, 2], "axis": 1}, "/axis"),
        ({"nonfinite": "raise"}, "/nonfinite"),
        ({"targets": [0]}, "/targets"),
        ({"grad_output": [[1, 1, 1]]}, "/grad_output"),
        ({**LOSS, "targets": None}, "/targets"),
        ({**LOSS, "targets": [3]}, "/targets"),
        ({**LOSS, "targets": [-1]}, "/targets"),
        ({**LOSS, "targets": [0, 1]}, "/targets"),
        ({**LOSS, "targets": [[0.5, "NaN", 0.5]]}, "/targets"),
        ({**LOSS, "targets": [[1e300, 0, 0]]}, "/targets"),
        ({**LOSS, "grad_output": [[1, 1, 1]]}, "/grad_output"),
        ({**VJP, "grad_output": None}, "/grad_output"),
        ({**VJP, "grad_output": [1, 1, 1]}, "/grad_output"),
        ({**VJP, "grad_output": [["Infinity", 0, 0]]}, "/grad_output"),
        ({**VJP, "grad_output": [[1e300, 0, 0]]}, "/grad_output"),
        ({**VJP, "targets": [0]}, "/targets"),
    ],
)
def test_what_does_not_fit_is_invalid_and_named_by_its_place(change, pointer):
    assert refused({**GOOD, **change}, "invalid").errors[0].pointer == pointer


FAMILY = {"family": "gaussian", "rows": 1, "n": 2, "seed": 0}


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"axis": -1.0}, "/axis: -1.0 is no integer; write one without fraction"),
        ({"axis": True}, "/axis: true is no integer"),
        ({"axis": math.nan}, "/axis: NaN is no integer"),
        ({"worst": None}, "/worst: null is no integer"),
        ({"worst": -1}, "/worst: -1 is below 0; write 0 or more"),
        ({"op": 3}, "/op: 3 is no string; write a name in quotes"),
        ({"op": ["softmax"]}, "/op: a list of 1 items is no string"),
        ({"op": ""}, '/op: "" has fewer than 1 characters; write a name'),
        ({"op": "x" * 65}, '/op: "' + "x" * 60 + '..." (65 characters) has more than 64 characters; no name has'),
        ({"op": "\ud800"}, '/op: "\\ud800" is no text'),
        ({"fma": 1}, "/fma: 1 is no boolean; write true or false"),
        ({"include": ["x"]}, "/include/0: \"x\" is not known; write 'values', 'truth' or 'ranks'"),
        ({"include": {}}, "/include: an object is no list"),
        ({"formats": []}, "/formats: a list of 0 items has fewer than 1; write that many or more"),
        ({"formats": ["f"] * 17}, "/formats: a list of 17 items has more than 16; write that many or fewer"),
        ({"surplus": 1}, '/surplus: "surplus" is no field here; known: accumulator, axis, '),
        ({"logits": [1], "inputs": FAMILY}, "/logits: exactly one of logits and inputs is needed, and both are given"),
        ({"logits": None}, "/logits: exactly one of logits and inputs is needed, and neither is given"),
        ({"logits": None, "inputs": 3}, "/inputs: 3 is no object; write one in braces"),
        ({"logits": None, "inputs": {**FAMILY, "rows": 0}}, "/inputs/rows: 0 is below 1; write 1 or more"),
        ({"logits": None, "inputs": {**FAMILY, "seed": 2**63}}, "/inputs/seed: 9223372036854775808 is above 9223372036854775807"),
        ({"logits": None, "inputs": {"family": "equal", "rows": 1, "n": 1}}, "/inputs/seed: it is needed and was not given"),
        (
            {"logits": None, "inputs": {**FAMILY, "sigma": None}},
            "/inputs/sigma: null is no parameter of a family; that is a finite",
        ),
        ({"logits": None, "inputs": {**FAMILY, "sigma": True}}, "/inputs/sigma: true is no parameter"),
        ({"logits": None, "inputs": {**FAMILY, "sigma": -1}}, "sigma is -1; it is a number from 0 to 1e+300"),
        (
            {"logits": None, "inputs": {**FAMILY, "s" * 65: 1}},
            "/inputs/" + "s" * 64 + ': "' + "s" * 60 + '..." (65 characters) is no parameter',
        ),
    ],
)
def test_what_does_not_fit_is_told_with_its_value_the_rule_and_the_way_out(change, detail):
    assert detail in refused({**GOOD, **change}, "invalid").detail


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize(
    "field",
    ['"logits": [%s]', '"logits": [1], "worst": %s', '"inputs": {"family": "gaussian", "rows": 1, "n": 1, "seed": 0, "sigma": %s}'],
)
def test_a_bare_non_finite_number_is_refused_everywhere(number, field):
    refused(('{"op": "softmax", ' + field % number + "}").encode(), "invalid")


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"op": "softmin"}, "/op"),
        ({"formats": ["float16", "fp8"]}, "/formats/1"),
        ({"formats": ["float8_e4m3"]}, "/formats/0"),
        ({"accumulator": "float17"}, "/accumulator"),
        ({"output_format": "fp8"}, "/output_format"),
        ({"variants": ["naiv"]}, "/variants/0"),
        ({"variants": ["log_softmax/naive"]}, "/variants/0"),
        ({"variants": ["shifted", "naive", "naiv"]}, "/variants/2"),
        ({"variants": ["shifted", "tile(tile=2)"]}, "/variants/1"),
        ({"summation": "upwards"}, "/summation"),
        ({"logits": None, "inputs": {"family": "gauss", "rows": 1, "n": 2, "seed": 0}}, "/inputs/family"),
    ],
)
def test_a_miss_names_what_exists(change, pointer):
    problem = refused({**GOOD, **change}, "unknown-name", "known")
    assert problem.errors[0].pointer == pointer


@pytest.mark.parametrize("name", ["tiled(tile=0)", "tiled(2)", "tiled(size=2)", "naive(c=1)", "tiled(tile=2"])
def test_parameters_that_do_not_fit_are_invalid(name):
    problem = refused({**GOOD, "variants": ["shifted", name]}, "invalid", "tile" if "tiled" in name else "no parameters")
    assert problem.errors[0].pointer == "/variants/1"


def test_parameters_stand_in_the_name_of_an_outcome():
    asked = ["tiled(tile=2)", "softmax/tiled( tile=0x2 )", "tiled(tile=128)", "tiled"]
    assert [o["variant"] for o in run("evaluate", {**GOOD, "variants": asked})["outcomes"]] == ["tiled(tile=2)", "tiled"]


def test_a_near_miss_is_asked_about():
    """The engine's own words, wherever a name is looked up."""
    refused({**GOOD, "op": "sofmax"}, "unknown-name", "did you mean 'softmax'")
    refused({**GOOD, "formats": ["float23"]}, "unknown-name", "did you mean 'float32'")
    refused({**GOOD, "summation": "numpi"}, "unknown-name", "did you mean 'numpy'")


def test_axes_go_into_the_answer_with_every_name_told():
    axes = {"accumulator": "fp32", "exp": "correct", "subnormals": "flush", "fma": True, "output_format": "bf16"}
    (outcome,) = run("evaluate", {**GOOD, "formats": ["float8_e4m3fn"], "variants": ["shifted"], **axes, "overflow": "saturate"})[
        "outcomes"
    ]
    named = {**axes, "accumulator": "float32", "output_format": "bfloat16", "overflow": "saturate"}
    assert outcome["arithmetic"] == named
    (outcome,) = run("evaluate", {**GOOD, "formats": ["float8_e4m3fn"], "variants": ["shifted"]})["outcomes"]
    assert outcome["arithmetic"]["overflow"] == "nan"


@pytest.mark.parametrize("field", ["exp", "subnormals", "overflow", "fma"])
def test_an_axis_has_the_values_of_the_schema(field):
    problem = refused({**GOOD, field: "other"}, "invalid", field)
    assert problem.errors[0].pointer == f"/{field}"


def test_saturation_without_a_format_that_has_it_is_the_fault_of_that_field():
    problem = refused({**GOOD, "formats": ["float16"], "overflow": "saturate"}, "invalid", "float16 does not saturate")
    assert problem.errors[0].pointer == "/overflow"


def test_what_is_asked_for_twice_is_done_once():
    twice = {"formats": ["float32", "FP32"], "variants": ["naive", "softmax/naive", "naive"]}
    assert run("evaluate", {**GOOD, **twice}, Limits(max_outcomes=1)) == run("evaluate", GOOD)


def test_null_is_the_default():
    left_out = {"op": "softmax", "logits": [[0, 1, 2]]}
    answer = run("evaluate", {**left_out, "formats": None, "variants": None})
    assert answer == run("evaluate", left_out) == engine.encode(engine.evaluate(engine.Problem("softmax", np.array([[0.0, 1, 2]]))))


@pytest.mark.parametrize(("task", "document"), [("evaluate", GOOD), ("truth", {**TRUTH, "logits": [[0, 1, 2]]})])
def test_the_last_axis_may_be_named_either_way_and_the_policy_for_non_finite_rows(task, document):
    for axis in (-1, 1):
        assert run(task, {**document, "axis": axis, "nonfinite": "ieee"}) == run(task, document)
    refused({**document, "axis": 0}, "invalid", "axis is 0: the last axis is reduced, which is -1 or 1 here; move", task=task)
    refused({**document, "nonfinite": "zero"}, "invalid", "'ieee'", task=task)


def test_truth_takes_a_family_as_evaluate_does():
    inputs = {"family": "gaussian", "rows": 2, "n": 3, "seed": 5, "sigma": 4}
    logits = engine.generate("gaussian", 2, 3, 5, sigma=4.0).tolist()
    wanted = run("truth", {**TRUTH, "logits": logits})
    assert run("truth", {**TRUTH, "logits": None, "inputs": inputs}) == wanted
    assert wanted["nonfinite"] == "ieee"
    for wrong in ({"inputs": inputs}, {"logits": None}):
        assert refused({**TRUTH, **wrong}, "invalid", "exactly one", task="truth").errors[0].pointer == "/logits"
    large = {**TRUTH, "logits": None, "inputs": inputs}
    problem = refused(large, "too-large", task="truth", limits=Limits(max_response_elements=5))
    assert problem.errors[0].pointer == "/inputs"


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"format": "fp8"}, "/format"),
        ({"op": "softmin"}, "/op"),
        ({"targets": 0}, "/targets"),
        ({**LOSS, "targets": 2}, "/targets"),
    ],
)
def test_truth_names_what_does_not_fit_by_its_place(change, pointer):
    with pytest.raises(Problem) as caught:
        run("truth", {**TRUTH, **change})
    assert [row.pointer for row in caught.value.errors] == [pointer]


def test_no_more_than_64_characters_are_echoed_however_they_are_written():
    for odd in ("\x01" * 64, "\U0010ffff" * 64, "'\"" * 32):
        assert len(quoted(odd)) <= 66
        detail = refused({**GOOD, "logits": [odd]}, "invalid").errors[0].detail
        assert len(detail.removesuffix(' is not a number, "NaN", "Infinity", "-Infinity" or a hex float such as "0x1.8p+1"')) <= 66
    assert quoted("x" * 64) == repr("x" * 64)
    assert quoted("x" * 65) == "'" + "x" * 60 + "..."


def test_nothing_long_is_echoed():
    secret = "s" * 1000
    for change in (
        {"op": secret},
        {secret: 1},
        {"formats": [secret]},
        {"variants": [secret]},
        {"logits": [secret]},
        {"summation": secret},
    ):
        document = refused({**GOOD, **change}, "invalid").document("/", "x")
        assert b"s" * 65 not in document


def test_a_hundred_thousand_faults_make_twenty_errors_at_once():
    started = time.perf_counter()
    assert len(refused({f"k{i}": 1 for i in range(100_000)}, "invalid").errors) == 20
    assert len(refused({**GOOD, "logits": ["x"] * 100_000}, "invalid").errors) == 20
    assert len(refused({**GOOD, "variants": [1] * 100_000}, "invalid").errors) <= 20
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    ("change", "limits"),
    [
        ({"logits": [0.0] * 11}, Limits(max_elements=10)),
        ({"logits": {"dtype": "float16", "shape": [10**12], "data": [1]}}, Limits()),
        ({"logits": None, "inputs": {"family": "gaussian", "rows": 10**9, "n": 10**9, "seed": 0}}, Limits()),
        ({"op": "softmax_jacobian", "logits": [[0.0] * 4]}, Limits(max_elements=15)),
        ({"include": ["values", "truth"]}, Limits(max_response_elements=5)),
        ({"formats": ["float16", "float32"], "variants": ["naive", "shifted"]}, Limits(max_outcomes=3)),
    ],
)
def test_what_is_too_large_names_the_limit(change, limits):
    refused({**GOOD, **change}, "too-large", "max_", limits=limits)


def test_what_would_take_too_long_is_refused_with_its_estimate_and_a_way_out():
    problem = refused(
        GOOD,
        "too-long",
        "estimated at .* estimate_seconds = 1e-12; ask for fewer rows, .*softgauge evaluate",
        limits=Limits(estimate_seconds=1e-12),
    )
    assert problem.status == 413


def test_truth_limits_its_digits():
    refused({**TRUTH, "digits": 10**9}, "invalid", "max_digits = 1000", task="truth")
    refused({**TRUTH, "digits": 10}, "too-large", "max_response_digits", task="truth", limits=Limits(max_response_digits=19))


def test_the_estimate_is_told_before_the_computation():
    told = []
    tasks.evaluate(json.dumps(GOOD).encode(), Limits(), told.append)
    assert len(told) == 1
    assert told[0] > 0


def test_non_finite_numbers_survive_the_round_trip():
    document = {
        "op": "softmax",
        "logits": [[1, "NaN"], ["Infinity", 1], ["-Infinity", 1]],
        "formats": ["float16"],
        "variants": ["shifted"],
    }
    (outcome,) = run("evaluate", {**document, "include": ["values", "truth"]})["outcomes"]
    assert outcome["truth"] == [["NaN", "NaN"], ["NaN", "NaN"], [0, 1]]
    assert outcome["values"] == outcome["truth"]


def test_the_same_numbers_through_any_door_are_the_same_problem():
    doors = (
        {"dtype": "f16", "shape": [1, 2], "data": [1, 2]},
        {"dtype": "half", "shape": [1, 2], "encoding": "bits", "data": [0x3C00, 0x4000]},
        {"dtype": "FP16", "shape": [1, 2], "encoding": "base64", "data": "ADwAQA=="},
    )
    answers = [run("evaluate", {**GOOD, "logits": door}) for door in doors]
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("logits", [0, 7])
def test_so_many_logits_are_audited(monkeypatch, logits):
    asked = []
    real = engine.evaluate
    monkeypatch.setattr(engine, "evaluate", lambda *given, audit, **options: asked.append(audit) or real(*given, **options))
    run("evaluate", GOOD, Limits(audit_logits=logits))
    assert asked == [logits]


@pytest.mark.parametrize("worst", [8, 0])
@pytest.mark.parametrize("lists_only", [True, False])
def test_what_is_undecided_names_worst_0_where_that_has_an_answer(monkeypatch, worst, lists_only):
    real = engine.evaluate

    def undecided(*given, worst, **options):
        if worst or not lists_only:
            raise engine.Undecided("a decimal is undecided at 8192 bits")
        return real(*given, worst=worst, **options)

    monkeypatch.setattr(engine, "evaluate", undecided)
    if lists_only and not worst:
        assert run("evaluate", {**GOOD, "worst": 0})["outcomes"][0]["worst"] == []
        return
    detail = refused({**GOOD, "worst": worst}, "undecided", "a decimal is undecided at 8192 bits; ").detail
    assert ('with "worst": 0 there is an answer' in detail) == lists_only
    assert ("the same request stays undecided; change that row or leave it out" in detail) != lists_only


def test_a_truth_that_is_undecided_names_the_way_out(monkeypatch):
    def undecided(*_, **__):
        raise engine.Undecided("softmax of a row of 2 logits is undecided at 8192 bits")

    monkeypatch.setattr(engine, "certify", undecided)
    refused(TRUTH, "undecided", "at 8192 bits; the same request stays undecided; change that row or leave it out", task="truth")


def test_a_disagreement_is_no_fault_of_the_request(monkeypatch):
    def disagree(*_, **__):
        raise engine.Disagreement("softmax of [0x1p0]")

    monkeypatch.setattr(engine, "evaluate", disagree)
    with pytest.raises(engine.Disagreement, match="0x1p0"):
        run("evaluate", GOOD)


def test_every_engine_error_that_a_request_can_cause_has_a_status():
    def family(kind):
        return {kind}.union(*(family(child) for child in kind.__subclasses__()))

    table = [parent for parent, _ in ENGINE_KINDS]
    assert family(engine.EngineError) == {*table, engine.Disagreement}
    assert all(from_engine(parent("x"), "").status == 422 for parent in table)
    assert {kind for _, kind in ENGINE_KINDS} <= set(KINDS)


def test_the_models_have_the_fields_of_the_answer():
    answer = run("evaluate", {**GOOD, "include": ["values", "truth", "ranks"]})
    (outcome,) = answer["outcomes"]
    assert set(answer) == set(schemas.EvaluateResponse.model_fields)
    assert set(outcome) == set(schemas.Outcome.model_fields)
    assert set(outcome["metrics"]) == set(schemas.Metrics.model_fields)
    assert set(run("truth", TRUTH)) == set(schemas.TruthResponse.model_fields)


@pytest.mark.parametrize("op", [row["name"] for row in engine.catalogue("ops")])
def test_the_size_of_every_output_is_known_before_it_is_computed(op):
    tensors = next(row["tensors"] for row in engine.catalogue("ops") if row["name"] == op)
    document = {"op": op, "logits": [[0, 1, 2], [3, 4, 5]], "format": "float32"}
    document |= {"targets": [0, 1]} if "targets" in tensors else {}
    document |= {"grad_output": [[1, 0, 0], [0, 1, 0]]} if "grad_output" in tensors else {}
    size = 1
    for extent in run("truth", document)["rounded"]["shape"]:
        size *= extent
    assert run("truth", document, Limits(max_response_elements=size))
    refused(document, "too-large", "max_response_elements", task="truth", limits=Limits(max_response_elements=size - 1))


SERVED_LOSS = {"op": "cross_entropy", "logits": [[1, 2, 3]], "targets": [0], "format": "float32"}


@pytest.mark.parametrize(
    ("document", "params", "pointer", "saying"),
    [
        (TRUTH, {"scale": 0}, "/params/scale", "scale is 0.0; it is a finite number above 0, the inverse of a temperature"),
        (TRUTH, {"scale": math.nan}, "/params/scale", "scale is nan"),
        (TRUTH, {"scale": "1"}, "/params/scale", '"1" is no number; write one without quotes, such as 0.125'),
        (TRUTH, {"scale": True}, "/params/scale", "true is no number"),
        (
            TRUTH,
            {"temperature": 1},
            "/params/temperature",
            "1 stands in a field that is not known here; leave it out, or mend its name",
        ),
        (TRUTH, {"z_loss": 1}, "/params/z_loss", "softmax takes no z_loss; it takes scale, softcap, mask, sink"),
        (TRUTH, {"mask": [1, 0]}, "/params/mask/0", "1 is no boolean: a mask is of true and false, true where a logit is kept"),
        (TRUTH, {"mask": True}, "/params/mask", "true is no tensor"),
        (TRUTH, {"mask": [True]}, "/params/mask", "mask has shape [1]; it has the logits' shape [2], or [2] for all rows"),
        (TRUTH, {"reduction": "max"}, "/params/reduction", "\"max\" is not known; write 'none', 'sum' or 'mean'"),
        (TRUTH, [], "/params", "a list of 0 items is no object; write one in braces"),
        (SERVED_LOSS, {"label_smoothing": 1.5}, "/params/label_smoothing", "label_smoothing is 1.5; it is a number from 0 to 1"),
        (
            SERVED_LOSS,
            {"weights": [1, -1, 1]},
            "/params/weights",
            "weights: -1.0 at [1] is no weight: they are finite and at least 0",
        ),
        (SERVED_LOSS, {"weights": [[1], 2]}, "/params/weights/1", "ragged"),
        (
            SERVED_LOSS | {"targets": [[1, 0, 0]]},
            {"ignore_index": 1},
            "/params/ignore_index",
            "targets are distributions: it needs class indices",
        ),
        (SERVED_LOSS | {"targets": [-1]}, {}, "/targets", "target -1 at [0] is out of range"),
    ],
    ids=str,
)
def test_a_param_that_cannot_be_has_its_place(document, params, pointer, saying):
    found = refused(document | {"params": params}, "invalid", re.escape(saying), task="truth")
    assert found.errors[0].pointer == pointer


def test_params_are_those_of_the_engine():
    assert set(schemas.Params.model_fields) == {field.name for field in fields(engine.Params)}
    assert {name: row.default for name, row in schemas.Params.model_fields.items()} == vars(engine.Params())
    plain, empty, null = (run("truth", TRUTH | extra) for extra in ({}, {"params": {}}, {"params": None}))
    assert plain == empty == null


def test_params_reach_the_truth_and_the_variants():
    sunk = {"op": "softmax", "logits": [0, 0, 5], "params": {"sink": 0, "mask": [True, True, False]}}
    assert run("truth", sunk | {"format": "float32", "digits": 5})["decimal"] == ["3.3333e-1", "3.3333e-1", "0.0000e+0"]
    mean = SERVED_LOSS | {
        "logits": [[0, 0], [1, 5]],
        "targets": [0, -1],
        "params": {"ignore_index": -1, "reduction": "mean", "weights": [2, 1]},
    }
    assert run("truth", mean | {"digits": 5})["rounded"] == {"dtype": "float32", "shape": [], "data": pytest.approx(math.log(2))}
    del mean["format"]
    found = run("evaluate", mean | {"formats": ["float16"], "variants": ["fused"], "include": ["values"]})["outcomes"][0]
    assert found["values"] == pytest.approx(math.log(2), rel=1e-3)


def test_a_variant_that_needs_params_is_refused_without_them():
    found = refused(
        {**GOOD, "variants": ["naive", "sink"]}, "invalid", "variant sink needs the param sink; give sink, or leave the variant out"
    )
    assert found.errors[0].pointer == "/variants/1"
    names = {row["variant"] for row in run("evaluate", {k: v for k, v in GOOD.items() if k != "variants"})["outcomes"]}
    assert "sink" not in names
    given = {"op": "softmax", "logits": [[0, 1]], "params": {"sink": 1}, "formats": ["float32"]}
    assert "sink" in {row["variant"] for row in run("evaluate", given)["outcomes"]}
