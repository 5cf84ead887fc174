"""What can go wrong in the engine. Messages name the value, the rule and the way out; they know no status codes."""


class EngineError(Exception):
    """Base of every error the engine raises on purpose."""


class UnknownName(EngineError):
    """A lookup in a registry missed; the message names what exists."""


class InvalidProblem(EngineError):
    """The inputs do not make a problem: a wrong shape, a target out of range, a value the format cannot hold."""


class InvalidParam(InvalidProblem):
    """A value of Params that the op or the rule of that param excludes. name: the param's."""

    def __init__(self, detail: str, name: str = "") -> None:
        super().__init__(detail)
        self.name = name


class Undecided(EngineError):
    """The precision cap was reached before a figure or a rounding was proven. Nothing is guessed."""


class Disagreement(EngineError):
    """Two tiers of the truth exclude each other: nothing may be answered. The message is a reproducer."""


def quoted(value: object) -> str:
    """A value as a message repeats it: its repr, cut to 64 characters and the quotes.

    repr itself refuses an integer of thousands of digits.
    """
    text = "an integer of more than 60 digits" if isinstance(value, int) and abs(value) >= 10**60 else repr(value)
    return text if len(text) <= 66 else f"{text[:61]}..."
