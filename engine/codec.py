"""Model to plain JSON data: non-finite numbers as the strings NaN, Infinity, -Infinity, integers above 2^53 as strings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from math import isfinite
from typing import Any

import numpy as np

from engine import bounds, formats
from engine.errors import UnknownName
from engine.formats import FORMATS
from engine.inputs import FAMILIES
from engine.model import Array, Finding, Gated, Outcome, TruthAnswer, Verdict
from engine.ops import OPS
from engine.policies import POLICIES
from engine.summation import SUMMATIONS
from engine.truth import special_name
from engine.variants import VARIANTS

EXACT_INTEGER = 1 << 53


def encode(value: Any) -> Any:
    """Dataclasses to objects, arrays to nested lists, floats to numbers or the three strings.

    A None in `values`, `truth`, `reference` or `sample`, which were not asked for, is left out, and what a finding has no use for;
    any other None is a null. The parameters of a gate stand beside its policy, as they are given.
    """
    kind = type(value)
    if kind is float:
        return value if isfinite(value) else special_name(value)
    if kind is int:
        return value if abs(value) <= EXACT_INTEGER else str(value)
    if value is None or kind is str or kind is bool:
        return value
    if isinstance(value, TruthAnswer):
        return {**_object(value), "rounded": tensor(value.rounded)}
    if is_dataclass(value):
        return _LAID_OUT.get(kind, dict)(_object(value))
    if isinstance(value, np.ndarray):
        return _elements(value)
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [encode(item) for item in value]
    raise TypeError(f"{kind.__name__} has no plain form")


def tensor(array: Array) -> dict[str, Any]:
    """A TENSOR of the contract: dtype, shape, nested data."""
    return {"dtype": formats.of(array).name, "shape": list(array.shape), "data": _elements(array)}


def catalogue(kind: str) -> list[dict[str, Any]]:
    """The registry of that kind (ops, variants, formats, summations, inputs or policies) as plain rows."""
    if kind not in CATALOGUE:
        raise UnknownName(f"unknown catalogue {kind!r}; known: {', '.join(CATALOGUE)}")
    return [encode(row) for row in CATALOGUE[kind]()]


def _object(value: Any) -> dict[str, Any]:
    return {field.name: encode(getattr(value, field.name)) for field in fields(value)}


def _without(*names: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Leaves out those of the fields that are null."""
    return lambda told: {k: v for k, v in told.items() if v is not None or k not in names}


_LAID_OUT: Mapping[type, Callable[[dict[str, Any]], dict[str, Any]]] = {
    Outcome: _without("values", "truth"),
    Verdict: _without("truth", "reference", "sample"),
    Finding: lambda told: {k: v for k, v in told.items() if v not in (None, [])},
    Gated: lambda told: {"policy": told["policy"], **told["parameters"], **_without("parameters")({**told, "parameters": None})},
}
"""How the fields of some stand in JSON; those of the others as they are."""


def _elements(array: Array) -> Any:
    wide = formats.widen(array)
    return wide.tolist() if np.isfinite(wide).all() else encode(wide.tolist())


def _ops() -> list[dict[str, Any]]:
    return [
        {
            "name": op.name,
            "formula": op.formula,
            "tensors": ["logits", *op.tensors],
            "params": list(op.params),
            "output": {
                "logits": "the logits' shape",
                "rows": "B, the logits' shape without the last axis",
                "jacobian": "B + [n, n]",
            }[op.output],
            "nonfinite": {"nan": float("nan"), "all_negative_infinity": op.fully_masked, "positive_infinity": op.infinite},
        }
        for op in OPS.values()
    ]


def _variants() -> list[dict[str, Any]]:
    order = list(OPS)
    rows = sorted(VARIANTS.values(), key=lambda row: order.index(row.op))
    stored = ("op", "name", "formula", "source", "hazard", "issues", "stable", "axes", "claims", "params", "needs")
    return [
        {
            **{name: getattr(row, name) for name in stored},
            "parameters": {name: _parameter(p) for name, p in row.parameters.items()},
            "bound": bounds.rule(row.key),
        }
        for row in rows
    ]


def _formats() -> list[dict[str, Any]]:
    stored = (
        "name",
        "precision",
        "emin",
        "emax",
        "exp_limit",
        "overflow",
        "bits",
        "unit_roundoff",
        "largest",
        "smallest_normal",
        "smallest_subnormal",
    )
    return [{**{name: getattr(row, name) for name in stored}, "aliases": list(row.aliases)} for row in FORMATS.values()]


def _summations() -> list[dict[str, Any]]:
    return [{"name": row.name, "description": row.description} for row in SUMMATIONS.values()]


def _inputs() -> list[dict[str, Any]]:
    return [
        {
            "name": row.name,
            "description": row.description,
            "parameters": {name: _parameter(p) for name, p in row.parameters.items()},
        }
        for row in FAMILIES.values()
    ]


def _policies() -> list[dict[str, Any]]:
    return [
        {
            "name": row.name,
            "kind": row.kind,
            "rule": row.rule,
            "source": row.source,
            "parameters": {name: _parameter(p) for name, p in row.parameters.items()},
            "needs": list(row.needs),
            "tolerances": {fmt: {"rtol": rtol, "atol": atol} for fmt, (rtol, atol) in row.pairs.items()},
        }
        for row in POLICIES.values()
    ]


def _parameter(parameter: Any) -> dict[str, Any]:
    return {field.name: getattr(parameter, field.name) for field in fields(parameter)}


CATALOGUE = {
    "ops": _ops,
    "variants": _variants,
    "formats": _formats,
    "summations": _summations,
    "inputs": _inputs,
    "policies": _policies,
}
