"""From the recorded steps: which broke first, how often, and why, in one plain sentence each."""

from __future__ import annotations

from collections.abc import Sequence
from math import copysign

from engine.formats import FORMATS
from engine.model import Fault, Step

_SIGNS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}


def explain(steps: Sequence[Step], flushed: bool = False) -> tuple[Fault, ...]:
    """One fault for each step name and kind, in the order they first occurred.

    Counts of the same name and kind are added; the index and the sentence are those of the first occurrence. Numbers in
    a sentence are the shortest decimals that read back to the same binary64. flushed: whether subnormal results became 0.
    """
    merged: dict[tuple[str, str], list[Step]] = {}
    for step in steps:
        merged.setdefault((step.name, step.kind), []).append(step)
    overflowed = {step.first_index for step in steps if step.kind == "overflow"}
    return tuple(
        Fault(name, kind, sum(step.count for step in same), same[0].first_index, _sentence(same[0], flushed, overflowed))
        for (name, kind), same in merged.items()
    )


def _sentence(step: Step, flushed: bool, overflowed: set[tuple[int, ...]]) -> str:
    if step.kind == "overflow":
        return _overflow(step)
    if step.kind == "underflow":
        return _underflow(step, flushed)
    if step.kind == "divide_by_zero":
        return f"{_expression(step)} has no finite value (division by zero) and became {_decimal(step.result)}"
    return f"{_expression(step)} is not a number (invalid){_why_invalid(step, step.first_index in overflowed)}"


def _overflow(step: Step) -> str:
    fmt = FORMATS[step.format]
    safe = f"; the largest safe logit is {_decimal(fmt.exp_limit)}" if step.name == "exp" else ""
    return f"{_expression(step)} exceeds{_magnitude(step)} the largest {fmt.name}, {_decimal(fmt.largest)}{safe}"


def _underflow(step: Step, flushed: bool) -> str:
    fmt = FORMATS[step.format]
    if step.result == 0 and flushed:
        relation = "below"
        limit = f"the smallest normal {fmt.name}, {_decimal(fmt.smallest_normal)}, and was flushed to 0"
    elif step.result == 0:
        # A product or quotient may be half the smallest subnormal exactly, which rounds to even, 0; an exponential never is.
        relation = "below" if step.name == "exp" else "at most"
        limit = f"half the smallest {fmt.name} subnormal, {_decimal(fmt.smallest_subnormal)}, and became 0"
    else:
        relation = "below"
        limit = f"the smallest normal {fmt.name}, {_decimal(fmt.smallest_normal)}, and became the subnormal {_decimal(step.result)}"
    return f"{_expression(step)} is{_magnitude(step)} {relation} {limit}"


def _why_invalid(step: Step, overflowed: bool) -> str:
    """The reason, where the operands alone do not show it."""
    if step.name == "sum":
        return ": infinities of both signs"
    if step.name != "divide":
        return ""
    if not any(step.operands):
        return ": numerator and denominator are both 0"
    return f": numerator and denominator {'both overflowed' if overflowed else 'are both infinite'}"


def _expression(step: Step) -> str:
    shown = [_decimal(operand) for operand in step.operands]
    if step.name == "fma":
        return f"{shown[0]} * {shown[1]} + {shown[2]}"
    if step.name == "sum":
        return f"a sum of terms from {shown[0]} to {shown[1]}"
    if step.name in _SIGNS:
        return f"{shown[0]} {_SIGNS[step.name]} {shown[1]}"
    return f"{step.name}({shown[0]})"


def _magnitude(step: Step) -> str:
    """Said where `below` or `exceeds` would be wrong of a negative number; the result's sign is that of the exact value."""
    return " in magnitude" if copysign(1, step.result) < 0 else ""


def _decimal(value: float) -> str:
    """The shortest decimal that reads back to the same binary64; integers without a point, both zeros as 0."""
    if value != value:
        return "NaN"
    return str(int(value)) if abs(value) < 2**53 and value.is_integer() else repr(value)
