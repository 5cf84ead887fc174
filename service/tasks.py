"""What a child process does with the bytes of a request: parse, validate, estimate, compute, write the answer's bytes."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

import engine
from service import baseline, repro, run_schemas, runs, schemas, suite, tensors
from service import check as checking
from service.errors import Finding, Problem, engine_errors, misfit, place, shown
from service.settings import Limits

Announce = Callable[[float], None]
Given = bytes | dict[str, Any]
"""A JSON text, or what one says with arrays in the places of tensors (see doors.py)."""
Task = Callable[[Given, Limits, Announce], bytes]
Reader = Callable[..., tensors.Array]
Request = TypeVar("Request", bound=BaseModel)

# The way out of a request that takes too much time or memory.
ASK_LESS: Mapping[str, str] = {
    "evaluate": "ask for fewer rows, formats or variants; `softgauge evaluate` computes without a server and its limits",
    "run": "send fewer cases, or run the suite yourself: `softgauge check --url` does, and posts what came of it",
    "check": "send fewer cases, or run the suite yourself: `softgauge check --url` does, and posts what came of it",
    "thresholds": "ask for a smaller n or another summation; `softgauge thresholds` computes without a server and its limits",
    "tolerance": "give fewer rows, or n alone; `softgauge tolerance` has no such limits",
    "truth": "ask for fewer rows or digits, or `import engine` and call certify",
    "verify": 'send fewer rows, or have some of them judged ("sample": {"rows": 64}); `softgauge verify` has no such limits',
}
_LONGEST_NAME = 64  # characters of the name of a family's parameter
_UNCHANGED = "the same request stays undecided; change that row or leave it out"


def evaluate(body: Given, limits: Limits, announce: Announce) -> bytes:
    """POST /v1/evaluate. announce: told the estimated seconds before the computation starts. Raises Problem."""
    request = parse(schemas.EvaluateRequest, body, limits)
    problem, size = _problem(request, limits)
    formats = _formats(request.formats or schemas.DEFAULT_FORMATS)
    variants = _variants(request, problem.params)
    outcomes = len(formats) * len(variants)
    _at_most(outcomes, limits.max_outcomes, "max_outcomes", "formats times variants", "/variants")
    _at_most(request.worst, limits.max_worst, "max_worst", "worst", "/worst", kind="invalid")
    shown_elements = len({"values", "truth"} & set(request.include)) * outcomes * size
    _at_most(shown_elements, limits.max_response_elements, "max_response_elements", "elements in the answer", "/include")
    options: dict[str, Any] = {"formats": formats, "variants": variants, "include": tuple(request.include)}
    with engine_errors(""):
        engine.estimate(problem, **options)
    options |= {"summation": request.summation, "axes": _axes(request)}
    with engine_errors("/summation", invalid="/overflow"):
        seconds = engine.estimate(problem, **options)
    _admit(seconds, limits, announce, ASK_LESS["evaluate"])
    with engine_errors(""):
        answer = _measured(problem, {**options, "audit": limits.audit_logits}, request.worst)
    return _written(engine.encode(answer))


def _measured(problem: engine.Problem, options: dict[str, Any], worst: int) -> engine.Evaluation:
    """The answer. Raises Undecided with a way out; whether `"worst": 0` is one is tried, not guessed."""
    try:
        return engine.evaluate(problem, **options, worst=worst)
    except engine.Undecided as error:
        way_out = _UNCHANGED
        if worst:
            with contextlib.suppress(engine.Undecided):
                engine.evaluate(problem, **options, worst=0)
                way_out = 'only the list `worst` needs it: with "worst": 0 there is an answer'
        raise engine.Undecided(f"{error}; {way_out}") from None


def truth(body: Given, limits: Limits, announce: Announce) -> bytes:
    """POST /v1/truth. announce: told the estimated seconds before the computation starts. Raises Problem."""
    request = parse(schemas.TruthRequest, body, limits)
    _at_most(request.digits, limits.max_digits, "max_digits", "digits", "/digits", kind="invalid")
    problem, size = _problem(request, limits)
    _at_most(size, limits.max_response_elements, "max_response_elements", "elements in the answer", _source(request))
    _at_most(size * request.digits, limits.max_response_digits, "max_response_digits", "digits in the answer", "/digits")
    with engine_errors("/format"):
        seconds = engine.estimate_truth(problem, request.digits)
        fmt = engine.find_format(request.format).name
    _admit(seconds, limits, announce, ASK_LESS["truth"])
    with engine_errors(""):
        try:
            answer = engine.certify(problem, fmt, digits=request.digits)
        except engine.Undecided as error:
            raise engine.Undecided(f"{error}; {_UNCHANGED}") from None
    return _written(engine.encode(answer))


def thresholds(body: Given, limits: Limits, announce: Announce) -> bytes:
    """GET /v1/thresholds, its parameters as JSON. announce: told the estimated seconds before. Raises Problem."""
    asked = parse(schemas.ThresholdsQuery, body, limits)
    with engine_errors("op"):
        engine.output_shape(engine.Problem(asked.op, np.zeros(1)))  # looks the op up
    with engine_errors("variant", "variant"):
        variant = engine.variant_name(asked.op, asked.variant)
    with engine_errors("format"):
        fmt = engine.find_format(asked.format).name
    _at_most(asked.n, limits.max_threshold_n, "max_threshold_n", "n", "n")
    axes = _axes(asked, "")
    with engine_errors("summation", invalid="overflow"):
        engine.estimate_thresholds(asked.op, variant, fmt, 1, asked.summation, axes)
    with engine_errors("", invalid="n"):
        seconds = engine.estimate_thresholds(asked.op, variant, fmt, asked.n, asked.summation, axes)
    _admit(seconds, limits, announce, ASK_LESS["thresholds"])
    return _written(engine.encode(engine.thresholds(asked.op, variant, fmt, asked.n, asked.summation, axes)))


def tolerance(body: Given, limits: Limits, announce: Announce) -> bytes:
    """POST /v1/tolerance. announce: told the estimated seconds before the computation starts. Raises Problem."""
    request = parse(schemas.ToleranceRequest, body, limits)
    named = {name: getattr(request, name) for name in engine.BOUND_PARAMETERS}
    declared = {name: value for name, value in named.items() if value is not None}
    for name, value in declared.items():
        with engine_errors(f"/{name}", invalid=f"/{name}"):
            engine.check_gate(engine.Gate("bound", {name: value}), partly=True)
    with engine_errors("/format"):
        fmt = engine.find_format(request.format).name
    with engine_errors("/op"):
        engine.output_shape(engine.Problem(request.op, np.zeros(1)))  # looks the op up
    _check_algorithm(request.op, declared, "/algorithm")
    problem = None
    if request.logits is not None or request.inputs is not None:
        problem, _ = _problem(request, limits)
        with engine_errors("/op"):
            _admit(engine.estimate_tolerance(problem, fmt), limits, announce, ASK_LESS["tolerance"])
    else:
        if stray := _of_logits(request):
            rule = "belongs to logits, and none are given: give logits, or leave it out"
            raise _invalid(limits, *(Finding(f"/{name}", f"{name} {rule}") for name in stray))
        announce(0.0)
    asked = "/n" if problem is None else "/logits"
    with engine_errors("/algorithm", invalid=lambda message: "/algorithm" if message.startswith("algorithm") else asked):
        return _written(engine.encode(engine.tolerance(request.op, fmt, request.n, declared, problem)))


def _of_logits(request: schemas.ToleranceRequest) -> list[str]:
    """Which fields are given that say something of logits only."""
    said = {"targets": request.targets, "grad_output": request.grad_output, "params": request.params}
    return [name for name, value in said.items() if value is not None] + ["axis"] * (request.axis != -1)


def verify(body: Given, limits: Limits, announce: Announce) -> bytes:
    """POST /v1/verify. announce: told the estimated seconds before the computation starts. Raises Problem."""
    request = parse(schemas.VerifyRequest, body, limits)
    problem, size = _problem(request, limits)
    output, reference, outputs = _outputs(request, limits)
    gate = _gate(request.gate or schemas.Gate.model_construct(), limits)
    _check_algorithm(request.op, gate.parameters, "/gate/algorithm")
    _at_most(request.worst, limits.max_worst, "max_worst", "worst", "/worst", kind="invalid")
    if "elements" in request.include:
        _at_most(size, limits.max_response_elements, "max_response_elements", "elements in the answer", "/include")
    with engine_errors("/op"):
        sample = None if request.sample is None else engine.Sample(request.sample.rows, request.sample.seed)
        seconds = engine.estimate_verdict(problem, output, request.axis, sample)
    if "repro" in request.include:  # one row is judged again, and then its parts
        seconds += seconds * problem.logits.shape[request.axis] / problem.logits.size + engine.MINIMISE_SECONDS
    _admit(seconds, limits, announce, ASK_LESS["verify"])
    include = [name for name in request.include if name != "repro"]
    options: dict[str, Any] = {
        "nonfinite": request.nonfinite,
        "include": include,
        "worst": request.worst,
        "axis": request.axis,
        "sample": sample,
    }
    with engine_errors("/gate/algorithm", invalid=_blamed):
        verdict = engine.verify(problem, output, gate, reference=reference, outputs=outputs, audit=limits.audit_logits, **options)
    answer = engine.encode(verdict)
    if "repro" in request.include:
        found = engine.minimise(problem, output, verdict, reference, outputs, include, request.axis)
        answer["repro"] = repro.told(found, verdict, include, limits.max_body_bytes)
    return _written(answer)


_PLACES = {
    "reference|policy [^ ]* compares": "/reference",
    "include": "/include",
    "with reduction": "/sample",
    "algorithm": "/gate/algorithm",
    "policy": "/gate/policy",
}
"""How what engine.verify says of a field begins, and the field."""


def _blamed(message: str) -> str:
    """The field that engine.verify refuses."""
    if run := re.match(r"outputs\.([0-9]+)", message):
        return f"/outputs/{run[1]}"
    return next((pointer for words, pointer in _PLACES.items() if re.match(words, message)), "/output")


def _outputs(request: schemas.VerifyRequest, limits: Limits) -> tuple[tensors.Array, tensors.Array | None, list[tensors.Array]]:
    """The output, the reference, and the repeated runs, each with its dtype."""
    output = _judged(request.output, "/output", limits)
    reference = None if request.reference is None else _judged(request.reference, "/reference", limits)
    return output, reference, [_judged(value, f"/outputs/{i}", limits) for i, value in enumerate(request.outputs)]


def _judged(value: object, pointer: str, limits: Limits) -> tensors.Array:
    """A tensor that must say its dtype."""
    if not isinstance(value, dict | np.ndarray):
        form = '{"dtype": "float32", "shape": [2, 3], "data": [...]}'
        given = "it is missing" if value is None else f"{shown(value)} has no dtype"
        raise _invalid(limits, Finding(pointer, f"{given}: what is judged says in which format it is, as {form} does"))
    return _read(tensors.read_declared, value, pointer, limits)


def _gate(given: schemas.Gate, limits: Limits) -> engine.Gate:
    """The engine's gate; a parameter that is wrong has its place."""
    parameters = given.model_extra or {}
    with engine_errors("/gate/policy"):
        engine.check_gate(engine.Gate(given.policy), partly=True)
    for name, value in parameters.items():
        pointer = place(["gate", name])
        if len(name) > _LONGEST_NAME or not _is_parameter(value):
            called = shown(name) if len(name) > _LONGEST_NAME else shown(value)
            raise _invalid(limits, Finding(pointer, f"{called} {_GATE_PARAMETER}"))
        with engine_errors(pointer, invalid=pointer):
            engine.check_gate(engine.Gate(given.policy, {name: value}), partly=True)
    gate = engine.Gate(given.policy, parameters)
    with engine_errors("/gate/policy", invalid="/gate"):
        engine.check_gate(gate)
    return gate


def _check_algorithm(op: str, parameters: Mapping[str, object], pointer: str) -> None:
    """Raises Problem for an algorithm that is no variant of the op, or whose own parameters are wrong."""
    if isinstance(name := parameters.get("algorithm"), str):
        with engine_errors(pointer, invalid=pointer):
            engine.variant_name(op, name)


_GATE_PARAMETER = "is no parameter of a policy; that is a finite number or a string under a short name: /v1/policies lists them"


def run(body: Given, limits: Limits, announce: Announce) -> bytes:
    """The run of a POST to runs or check: a line of JSON that says what else was asked, and a line for each case.

    announce: told the estimated seconds before a suite is run. Raises Problem.
    """
    return _run(parse(run_schemas.RunRequest, body, limits), limits, announce)


def check(body: Given, limits: Limits, announce: Announce) -> bytes:
    """As `run`, with what is asked of a comparison. Raises Problem."""
    return _run(parse(run_schemas.CheckRequest, body, limits), limits, announce)


def _run(asked: run_schemas.RunRequest, limits: Limits, announce: Announce) -> bytes:
    if (asked.cases is None) == (asked.suite is None):
        rule = "a run has either `cases`, measured elsewhere, or a `suite`, to be run here"
        raise _invalid(limits, Finding("/suite" if asked.suite is not None else "/cases", rule))
    head = asked.model_dump(exclude={"cases", "suite"}, by_alias=True)
    head["engine"] = head["engine"] or {"version": engine.VERSION, "schema": engine.SCHEMA, "fingerprint": engine.fingerprint()}
    if asked.cases is not None:
        announce(0.0)
        results = _posted(asked.cases, limits)
    else:
        results, treatments = _computed(asked.suite or {}, limits, announce)
        head |= {"policy": head["policy"] or treatments} if "policy" in head else {}
    return b"\n".join((_written(head), *runs.lines(results)))


def _posted(cases: Sequence[run_schemas.CaseModel], limits: Limits) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for index, case in enumerate(cases):
        if case.name in results:
            raise _invalid(
                limits, Finding(f"/cases/{index}/name", f"two cases are named {shown(case.name)}; a name is of one case")
            )
        where = f"/cases/{index}"
        with engine_errors(f"{where}/rules", invalid=partial(_of_entry, where)):
            try:
                results[case.name] = runs.result(case)
            except baseline.Lacking as error:
                lacking = f"{shown(case.name)} has no {error}, which every entry of this schema has"
                raise _invalid(limits, Finding(f"/cases/{index}/entry/figures", lacking)) from None
            except OverflowError:
                far = f"{shown(case.name)} has a figure beyond any float64"
                raise _invalid(limits, Finding(f"/cases/{index}/entry/figures", far)) from None
    return results


def _of_entry(where: str, message: str) -> str:
    """The field of a case that the engine speaks of."""
    return f"{where}/entry/figures" if "counts" in message else f"{where}/rules"


def _computed(raw: dict[str, Any], limits: Limits, announce: Announce) -> tuple[dict[str, Any], Mapping[str, str]]:
    try:
        given = suite.given(raw)
        elements = sum(case.rows * case.n for case in given.cases)
        _at_most(elements, limits.max_elements, "max_elements", "logits of all cases together", "/suite")
        seconds = sum(checking.estimate(case) for case in given.cases)
        _admit(seconds, limits, announce, ASK_LESS["run"])
        return dict(checking.run(given, given.cases, checking.NOTHING).results), given.treatments
    except suite.SuiteError as error:
        raise _invalid(limits, Finding("/suite", str(error)[:2000])) from None
    except engine.Disagreement:
        raise
    except engine.EngineError as error:
        raise _invalid(limits, Finding("/suite", str(error))) from None


TASKS: Mapping[str, Task] = {
    "run": run,
    "check": check,
    "evaluate": evaluate,
    "truth": truth,
    "thresholds": thresholds,
    "tolerance": tolerance,
    "verify": verify,
}


def warm() -> None:
    """One tiny computation, so that the first request finds everything loaded."""
    body = b'{"op": "softmax", "logits": [0, 1], "include": ["values", "truth"]}'
    evaluate(body, Limits(), lambda _: None)


def parse(model: type[Request], body: Given, limits: Limits) -> Request:
    """The validated request. Raises Problem: malformed for what is no JSON, invalid for what does not fit the model."""
    document = _json(body) if isinstance(body, bytes) else body
    if not isinstance(document, dict):
        raise _invalid(limits, Finding("", f"the body is a JSON object, not {shown(document)}"))
    known = {row.alias or name for name, row in model.model_fields.items()}
    # Looked for by hand: pydantic would write one error for each of a hundred thousand unknown fields.
    if unknown := [key for key in document if key not in known]:
        advice = f"is no field here; known: {', '.join(sorted(known))}"
        raise _invalid(limits, *(Finding(place([key]), f"{shown(key)} {advice}") for key in unknown[: limits.max_errors]))
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise _invalid(limits, *_findings(error)) from None


def _json(body: bytes) -> object:
    try:
        return tensors.document(body)
    except tensors.Malformed as error:
        raise Problem("malformed", f"the body {error}") from None


def _findings(error: ValidationError) -> Iterator[Finding]:
    for row in error.errors(include_url=False):
        yield Finding(place(row["loc"]), misfit(row))


def _invalid(limits: Limits, *findings: Finding) -> Problem:
    first = findings[0]
    place = f"{first.pointer}: " if first.pointer else ""
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    return Problem("invalid", f"{place}{first.detail}{more}", findings[: limits.max_errors])


def _read(reader: Reader, value: object, pointer: str, limits: Limits, *more: Any) -> tensors.Array:
    """A tensor through its door."""
    try:
        return reader(value, pointer, limits, *more)
    except tensors.BadTensor as error:
        problem = _invalid(limits, *(Finding(*row) for row in error.findings))
        raise Problem("too-large", problem.detail, problem.errors) if error.oversize else problem from None


def _problem(request: schemas.ProblemRequest, limits: Limits) -> tuple[engine.Problem, int]:
    """The engine's problem of a request, and how many elements its output has."""
    if (request.logits is None) == (request.inputs is None):
        given = "neither is" if request.logits is None else "both are"
        raise _invalid(limits, Finding("/logits", f"exactly one of logits and inputs is needed, and {given} given"))
    logits = _generated(request.inputs, limits) if request.inputs else _read(tensors.read, request.logits, "/logits", limits)
    shape = _reduced_last(request, logits.shape, limits)
    targets, grad_output = request.targets, request.grad_output
    if targets is not None:
        targets = _read(tensors.read_targets, targets, "/targets", limits, shape)
    if grad_output is not None:
        grad_output = _read(tensors.read, grad_output, "/grad_output", limits)
    problem = engine.Problem(request.op, logits, targets, grad_output, _params(request.params, limits))
    with engine_errors("/op"):
        size = math.prod(engine.output_shape(replace(problem, logits=np.broadcast_to(np.zeros(1), shape))))
    name = "max_file_elements" if isinstance(request.logits, np.ndarray) else "max_elements"
    _at_most(size, getattr(limits, name), name, "elements of the output", _source(request))
    return problem, size


def _reduced_last(request: schemas.ProblemRequest, shape: tuple[int, ...], limits: Limits) -> tuple[int, ...]:
    """The logits' shape with the reduced axis at the end; only verify takes another one than the last."""
    axis, rank = request.axis, len(shape)
    if isinstance(request, schemas.VerifyRequest):
        if not -rank <= axis < rank:
            rule = f"logits of rank {rank} have the axes {-rank} to {rank - 1}"
            raise _invalid(limits, Finding("/axis", f"axis is {shown(axis)}: {rule}"))
        return (*shape[: axis % rank], *shape[axis % rank + 1 :], shape[axis])
    if axis not in (-1, rank - 1):
        rule = f"the last axis is reduced, which is -1 or {rank - 1} here; move the axis you mean to the end"
        raise _invalid(limits, Finding("/axis", f"axis is {shown(axis)}: {rule}"))
    return shape


def _params(given: schemas.Params | None, limits: Limits) -> engine.Params:
    """The engine's params; what is wrong with them it says itself."""
    if given is None:
        return engine.NO_PARAMS
    found = {name: getattr(given, name) for name in given.model_fields_set}
    if given.mask is not None:
        found["mask"] = _read(tensors.read_booleans, given.mask, "/params/mask", limits)
    if given.weights is not None:
        found["weights"] = _read(tensors.read, given.weights, "/params/weights", limits)
    return engine.Params(**found)


def _source(request: schemas.ProblemRequest) -> str:
    """The field that decides how large the problem is."""
    return "/inputs" if request.inputs else "/logits"


def _generated(given: schemas.Inputs, limits: Limits) -> tensors.Array:
    """The logits of an input family."""
    _at_most(given.rows * given.n, limits.max_elements, "max_elements", "rows times n", "/inputs")
    parameters = given.model_extra or {}
    for name, value in parameters.items():
        pointer = place(["inputs", name])
        if len(name) > _LONGEST_NAME or not _is_parameter(value):
            called = shown(name) if len(name) > _LONGEST_NAME else shown(value)
            raise _invalid(limits, Finding(pointer, f"{called} {_PARAMETER}"))
        with engine_errors("/inputs/family", invalid=pointer):
            engine.generate(given.family, 1, 1, 0, **{name: value})  # alone, so that what is wrong with it has its place
    with engine_errors("/inputs/family", invalid="/inputs"):
        generated: tensors.Array = engine.generate(given.family, given.rows, given.n, given.seed, **parameters)
        return generated


_PARAMETER = "is no parameter of a family; that is a finite number or a string under a short name: /v1/inputs lists them"


def _is_parameter(value: object) -> bool:
    """Whether the engine may be asked about it; it would name null and true in Python's way."""
    return type(value) in (str, int) or (isinstance(value, float) and math.isfinite(value))


def _formats(names: Sequence[str]) -> tuple[str, ...]:
    """Canonical names, each once."""
    found = []
    for index, name in enumerate(names):
        with engine_errors(f"/formats/{index}"):
            found.append(engine.find_format(name).name)
    return tuple(dict.fromkeys(found))


def _axes(request: schemas.EvaluateRequest | schemas.ThresholdsQuery, before: str = "/") -> engine.Axes:
    """What else of the arithmetic is varied. before: of the name of a field, to point at it."""
    named = {}
    for field in ("accumulator", "output_format"):
        with engine_errors(f"{before}{field}"):
            name = getattr(request, field)
            named[field] = None if name is None else engine.find_format(name).name
    return engine.Axes(**named, exp=request.exp, subnormals=request.subnormals, fma=request.fma, overflow=request.overflow)


def _variants(request: schemas.EvaluateRequest, params: engine.Params) -> tuple[str, ...]:
    """Names without their op, each once, all of the op that can be run if none are given."""
    found = []
    for index, name in enumerate(request.variants or engine.variant_names(request.op, params)):
        with engine_errors(f"/variants/{index}", f"/variants/{index}"):
            found.append(engine.variant_name(request.op, name, params))
    return tuple(dict.fromkeys(found))


def _at_most(value: int, limit: int, name: str, noun: str, pointer: str, kind: str = "too-large") -> None:
    if value > limit:
        detail = f"{noun}: {shown(value)} is above the limit {name} = {limit}; ask for no more"
        raise Problem(kind, detail, (Finding(pointer, detail),))


def _admit(seconds: float, limits: Limits, announce: Announce, way_out: str) -> None:
    """Tell the estimate, or refuse what would take too long for one request."""
    if seconds > limits.estimate_seconds:
        detail = f"estimated at {seconds:.3g} s, above the limit estimate_seconds = {limits.estimate_seconds:g}; {way_out}"
        raise Problem("too-long", detail)
    announce(seconds)


def _written(answer: object) -> bytes:
    return json.dumps(answer, allow_nan=False, separators=(",", ":")).encode()
