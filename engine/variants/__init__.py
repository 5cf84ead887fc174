"""The built-in implementations: one decorated function a variant, using only the Arithmetic k it is given.

A variant is f(x, k); cross_entropy and cross_entropy_grad take targets, f(x, y, k), and softmax_vjp the incoming
gradient, f(x, g, k). x has shape B + (n,), y and g are as ops.py says, everything but class indices in the format of k;
the result has the op's output shape and the format of k. The inputs are never changed. What a variant can be told beside its
tensors (the width of a tile, a constant) are its parameters, keywords of f, and stand in its name: tiled(tile=64).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial

from engine.errors import InvalidProblem, UnknownName, quoted
from engine.model import NO_PARAMS, Array, Params
from engine.ops import OPS, given_params
from engine.parameters import Parameter, Value
from engine.registry import Registry

Run = Callable[..., Array]

SUMS = ("accumulator", "exp", "subnormals", "output_format", "overflow", "summation")
"""The axes that change a variant which adds by Arithmetic.sum, and with it most."""
FUSED = (*SUMS, "fma")
IN_ORDER = ("accumulator", "exp", "subnormals", "output_format", "overflow", "fma")
"""Those of a variant that adds one term after the other, whatever the summation."""

CLAIMS: Mapping[str, str] = {
    "finite": "no NaN for finite logits, as long as no sum of n ones, no difference of two logits and no weighted loss overflows"
    " the format",
    "mask": "a logit of -inf gets a probability of 0, and the others, if any, change by no more than the rounding of their sum",
    "permutation": "logits in another order give the same results in that order, where the summation is exact",
    "shift": "the same constant added to every logit changes nothing, where that addition is exact",
}
"""What a variant may claim, and the tests then hold it to, in every format."""


@dataclass(frozen=True)
class Variant:
    """One implementation of an op.

    hazard: what goes wrong and where; issues: reports of software that shipped it with that hazard, as owner/repository#number.
    stable: whether it is one to be recommended. axes: what of the arithmetic changes its result. claims: names in CLAIMS.
    parameters: by name, with type, default and range; run has their values bound. steps: passes of Python for each logit of a row.
    params: names of the Params that it is handed as keywords, where they are given, and does in its own way; what it does not take
    is done around it (engine.params). needs: those without which it is none of the op's variants.
    """

    op: str
    name: str
    formula: str
    source: str
    hazard: str
    stable: bool
    run: Run
    issues: tuple[str, ...] = ()
    axes: tuple[str, ...] = SUMS
    claims: tuple[str, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    steps: int = 0
    params: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    @property
    def told(self) -> Mapping[str, Value]:
        """The values of its parameters."""
        return self.run.keywords if isinstance(self.run, partial) else {}

    def pieces(self, n: int) -> int:
        """Tiles or parts that it cuts a row of n into, each of which takes some passes of Python; 0 for most."""
        told = self.told
        return int(-(-n // int(told["tile"])) if "tile" in told else min(n, int(told.get("parts", 0))))

    @property
    def key(self) -> str:
        """The name with that of the op, such as softmax/naive."""
        return f"{self.op}/{self.name}"

    def fits(self, params: Params) -> bool:
        """Whether params have what it needs, and nothing that must be done between those and it."""
        names = given_params(params)
        return all(name in names and not stands_between(params, name) for name in self.needs)

    def check(self, params: Params) -> None:
        """Raises InvalidProblem where they do not."""
        if not self.fits(params):
            apart = ", and no weights" * ("label_smoothing" in self.needs)
            needed = " and ".join(self.needs)
            raise InvalidProblem(f"variant {self.name} needs the param {needed}{apart}; give {needed}, or leave the variant out")


def stands_between(params: Params, name: str) -> bool:
    """Whether another of the params is applied after that one, so that a variant cannot see to it."""
    sunk, between = params.sink is not None, {"label_smoothing": params.weights is not None}
    return (between | {"scale": params.softcap is not None or sunk, "mask": sunk}).get(name, False)


VARIANTS: Registry[Variant] = Registry("variant")


def variant(
    op: str,
    name: str,
    *,
    formula: str,
    source: str,
    hazard: str,
    stable: bool = False,
    issues: Iterable[str] = (),
    axes: tuple[str, ...] = SUMS,
    claims: str = "",
    steps: int = 0,
    params: str = "",
    needs: str = "",
    **parameters: Parameter,
) -> Callable[[Run], Run]:
    """Register the decorated function as a variant of an op (UnknownName if there is no such op).

    claims: names in CLAIMS between spaces. params: names of Params between spaces, keywords of the function too, None or their
    default where they are not given (the mask's is `kept`). needs: of these. parameters: keywords of the function.
    """

    def register(run: Run) -> Run:
        defaults = {key: row.default for key, row in parameters.items()}
        bound = partial(run, **defaults) if defaults else run
        row = Variant(
            OPS[op].name,
            name,
            formula,
            source,
            hazard,
            stable,
            bound,
            tuple(issues),
            axes,
            tuple(claims.split()),
            parameters,
            steps,
            tuple(params.split()),
            tuple(needs.split()),
        )
        VARIANTS.add(row.key, row)
        return run

    return register


def of_op(op: str) -> list[Variant]:
    """The variants of an op, in the order of registration. Raises UnknownName if there is no such op."""
    name = OPS[op].name
    return [row for row in VARIANTS.values() if row.op == name]


def find(op: str, name: str) -> Variant:
    """The variant of an op by its name, with or without that of the op, and with parameters: "softmax/tiled(tile=64)".

    The name of the row found is the shortest that says the same. Raises UnknownName, and InvalidProblem for parameters that do
    not fit.
    """
    plain, bracket, rest = name.removeprefix(f"{op}/").partition("(")
    known = {row.name: row for row in of_op(op)}
    if plain not in known:
        raise UnknownName(f"unknown variant {quoted(name)} of {op}; known: {', '.join(known)}{_meant(plain, known)}")
    row = known[plain]
    if not bracket:
        return row
    given = {key: row.parameters[key].check(key, value) for key, value in _assignments(row, name, rest)}
    told = ", ".join(f"{key}={_written(value)}" for key, value in given.items() if value != row.parameters[key].default)
    return replace(row, name=f"{plain}({told})" if told else plain, run=partial(row.run, **given))


def _meant(name: str, known: Mapping[str, Variant]) -> str:
    """The variants whose name is nearly that one, or else whose source has it, as the end of a message."""

    def bare(text: str) -> str:
        return re.sub("[^a-z0-9]", "", text.lower())

    sought = bare(name[:64])
    sources = [row.name for row in known.values() if len(sought) > 3 and sought in bare(row.source)]
    near = get_close_matches(name[:64].lower(), known, n=1) or sources
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def name_of(op: str, name: str, params: Params = NO_PARAMS) -> str:
    """The name that an outcome of a variant has: without the op, and of its parameters those that differ from their defaults.

    Raises as find does, and InvalidProblem where the params have not what it needs.
    """
    row = find(op, name)
    row.check(params)
    return row.name


def names_of(op: str, params: Params) -> tuple[str, ...]:
    """The names of all variants of an op that can be run with these params."""
    return tuple(row.name for row in of_op(op) if row.fits(params))


def _assignments(row: Variant, name: str, rest: str) -> list[tuple[str, Value]]:
    """What stands between the brackets, in the order of the parameters."""
    if not row.parameters:
        raise InvalidProblem(f"variant {row.name} of {row.op} has no parameters, so its name ends before the bracket")
    found: dict[str, Value] = {}
    for part in rest.removesuffix(")").split(","):
        key, sign, text = (piece.strip() for piece in part.partition("="))
        if not sign or not rest.endswith(")"):
            example = ", ".join(f"{key}={_written(known.default)}" for key, known in row.parameters.items())
            raise InvalidProblem(f"variant {quoted(name)} is not written as {row.name}({example})")
        if key not in row.parameters:
            raise InvalidProblem(f"variant {row.name} has no parameter {quoted(key)}; it has {', '.join(row.parameters)}")
        if key in found:
            raise InvalidProblem(f"variant {row.name} has its parameter {key} twice; give it once")
        found[key] = _value(text)
    return [(key, found[key]) for key in row.parameters if key in found]


_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|infinity|nan)", re.ASCII | re.IGNORECASE)


def _value(text: str) -> Value:
    """A number as it is written in JSON or in C, else the text: Python alone would take 1_000 and digits of other scripts."""
    try:
        return float.fromhex(text) if "0x" in text.lower() else float(text) if _DECIMAL.fullmatch(text) else text
    except (ValueError, OverflowError):
        return text


def _written(value: Value) -> str:
    return value if isinstance(value, str) else repr(float(value)).removesuffix(".0")


LEFT_OUT: Mapping[str, str] = {
    "accumulators of another format": "the axis accumulator, of every variant",
    "orders of summation": "the summation, of every variant; double-double is none: neumaier and exact stand on either side of it",
    "masks by -inf or by selection": "softmax/shifted, where exp(-inf) is 0",
    "approximate exponentials of hardware": "the axis exp has none: their bits are those of the device; measure takes its output",
    "top-k and top-p": "the softmax of fewer logits: give those logits, the others as -inf",
    "sparsemax and entmax": "other functions than softmax, with another truth",
    "Gumbel-softmax": "the softmax of logits that were changed at random before: give those logits",
    "log-sum-exp with weights or signs": "no op takes them: the logarithms of positive weights can be added to the logits",
}
"""What kernels do that is no variant here, and why."""


# Below the decorator because each of these files uses it when it is imported.
from engine.variants import (  # noqa: E402, F401
    cross_entropy,
    cross_entropy_grad,
    log_softmax,
    logsumexp,
    masked,
    sinks,
    softmax,
    softmax_jacobian,
    softmax_vjp,
    streaming,
)
