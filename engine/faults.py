"""From the recorded steps: which broke first, how often, and why, in one plain sentence each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import copysign, frexp

from engine.formats import FORMATS
from engine.model import Fault, Step

_SIGNS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}


def explain(steps: Sequence[Step], flushed: bool = False) -> tuple[Fault, ...]:
    """One fault for each step name and kind, in the order they first occurred.

    Counts of the same name and kind are added; the index, the chain and the sentence are those of the first occurrence. Numbers
    in a sentence are the shortest decimals that read back to the same binary64. flushed: whether subnormal results became 0.
    """
    merged: dict[tuple[str, str], list[Step]] = {}
    for step in steps:
        merged.setdefault((step.name, step.kind), []).append(step)
    place = {key: number for number, key in enumerate(merged)}
    faults = []
    for (name, kind), same in merged.items():
        first = same[0]
        before = [steps[number] for number in first.chain]
        chain = tuple(sorted({place[step.name, step.kind] for step in before} - {place[name, kind]}))
        count = sum(step.count for step in same)
        faults.append(Fault(name, kind, count, first.first_index, _sentence(first, flushed, before), chain))
    return tuple(faults)


def _sentence(step: Step, flushed: bool, before: Sequence[Step]) -> str:
    if step.kind == "overflow":
        return _overflow(step)
    if step.kind == "underflow":
        return _underflow(step, flushed)
    if step.kind == "divide_by_zero":
        return f"{_expression(step)} has no finite value (division by zero) and became {_decimal(step.result)}"
    if step.kind in _LOST:
        return _LOST[step.kind](step)
    overflowed = any((one.kind, one.first_index) == ("overflow", step.first_index) for one in before)
    return f"{_expression(step)} is not a number (invalid){_why_invalid(step, overflowed)}"


def _stalled(step: Step) -> str:
    count, lost = step.operands
    what = f"a sum stood still at {_decimal(step.result)}: its last {count:.0f} terms, together {lost:.4g}"
    return f"{what}, were each too small to change it in {step.format}"


def _absorbed(step: Step) -> str:
    count, lost = step.operands
    what = f"a sum that became {_decimal(step.result)} absorbed {count:.0f} addends, together {lost:.4g}"
    return f"{what}: each was too small to change the partial sum it was added to in {step.format}"


def _cancelled(step: Step) -> str:
    precision = FORMATS[step.format].precision
    if step.result == 0:
        return f"{_expression(step)} is 0: all {precision} bits cancelled, and with them all that earlier steps may have rounded"
    bits = frexp(max(map(abs, step.operands)))[1] - frexp(step.result)[1]
    rest = f"what earlier steps may have rounded weighs 2^{bits} times as much"
    return f"{_expression(step)} is {_decimal(step.result)}: {bits} of {precision} bits cancelled, and {rest}"


def _mismatched(step: Step) -> str:
    what = "the numerator and its term in the sum were rounded differently"
    return f"{_expression(step)}: {what}, so the quotients need not sum to 1"


_LOST: Mapping[str, Callable[[Step], str]] = {
    "stalled": _stalled,
    "absorbed": _absorbed,
    "cancelled": _cancelled,
    "mismatched": _mismatched,
}


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
        return ": infinities of both signs" if step.operands[0] < 0 else ": an infinity rescaled by 0"
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
