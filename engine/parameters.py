"""What a named value beside the tensors may be: a number, an integer, a format; of input families and of variants."""

from __future__ import annotations

from dataclasses import dataclass

from engine import formats
from engine.errors import InvalidProblem, UnknownName, quoted

LARGEST_PARAMETER = 1e300  # far enough below the largest float64 that no family overflows

Value = float | str


@dataclass(frozen=True)
class Number:
    """A parameter that is a number from low to high, both included."""

    default: float
    low: float = -LARGEST_PARAMETER
    high: float = LARGEST_PARAMETER
    type: str = "number"

    @property
    def range(self) -> str:
        """What is allowed, in words."""
        return f"from {self.low:g} to {self.high:g}"

    def check(self, name: str, value: object) -> float:
        """The value as a float, or InvalidProblem."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            raise InvalidProblem(f"{name} is {quoted(value)}; it is a number {self.range}")
        return float(value)


@dataclass(frozen=True)
class Integer:
    """A parameter that is an integer from low to high, both included."""

    default: int
    low: int
    high: int
    type: str = "integer"

    @property
    def range(self) -> str:
        """What is allowed, in words."""
        return f"from {self.low} to {self.high}"

    def check(self, name: str, value: object) -> int:
        """The value as an int, or InvalidProblem."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high or value % 1:
            raise InvalidProblem(f"{name} is {quoted(value)}; it is an integer {self.range}")
        return int(value)


@dataclass(frozen=True)
class FormatName:
    """A parameter that names a format."""

    default: str
    type: str = "format"

    @property
    def range(self) -> str:
        """What is allowed, in words."""
        return f"one of {', '.join(formats.FORMATS)}"

    def check(self, name: str, value: object) -> str:
        """The canonical name of the format, or InvalidProblem."""
        if not isinstance(value, str):
            raise InvalidProblem(f"{name} is {quoted(value)}; it is {self.range}")
        try:
            return formats.find(value).name
        except UnknownName as miss:
            raise InvalidProblem(f"{name}: {miss}") from None


@dataclass(frozen=True)
class Choice:
    """A parameter that is one of some names; of any, if none are told (whoever uses it looks it up)."""

    default: str
    choices: tuple[str, ...] = ()
    type: str = "name"

    @property
    def range(self) -> str:
        """What is allowed, in words."""
        return f"one of {', '.join(self.choices)}" if self.choices else "a name"

    def check(self, name: str, value: object) -> str:
        """The name, or InvalidProblem."""
        if not isinstance(value, str) or (self.choices and value not in self.choices):
            raise InvalidProblem(f"{name} is {quoted(value)}; it is {self.range}")
        return value


Parameter = Number | Integer | FormatName | Choice
