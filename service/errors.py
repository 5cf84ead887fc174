"""One error shape (RFC 9457) and one table from EngineError to status."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import engine

_LONGEST = 64  # characters of a value that an error may repeat
MEDIA_TYPE = "application/problem+json"

# kind: (status, title). The kind is the last part of the problem's type URI.
KINDS: dict[str, tuple[int, str]] = {
    "malformed": (400, "Malformed request"),
    "host-not-allowed": (400, "Host not allowed"),
    "unauthorized": (401, "Key needed"),
    "forbidden": (403, "Not allowed"),
    "origin-not-allowed": (403, "Origin not allowed"),
    "not-found": (404, "Not found"),
    "method-not-allowed": (405, "Method not allowed"),
    "not-acceptable": (406, "Not acceptable"),
    "body-timeout": (408, "Request body too slow"),
    "conflict": (409, "Conflict"),
    "too-large": (413, "Request too large"),
    "too-long": (413, "Computation too long for one request"),
    "too-much-memory": (413, "Computation needs too much memory"),
    "unsupported-media-type": (415, "Unsupported media type"),
    "invalid": (422, "Invalid request"),
    "unknown-name": (422, "Unknown name"),
    "undecided": (422, "Undecided within the precision cap"),
    "too-many-requests": (429, "Too many requests"),
    "internal": (500, "Internal error"),
    "process-died": (500, "The computing process died"),
    "deadline": (503, "Deadline exceeded"),
    "not-ready": (503, "Not ready"),
    "no-room": (503, "No room"),
    "store-unavailable": (503, "The database does not answer"),
}

# The only place where engine errors meet HTTP. Children before their base. A Disagreement is missing: no request causes it.
ENGINE_KINDS: tuple[tuple[type[engine.EngineError], str], ...] = (
    (engine.UnknownName, "unknown-name"),
    (engine.InvalidParam, "invalid"),
    (engine.InvalidProblem, "invalid"),
    (engine.Undecided, "undecided"),
    (engine.EngineError, "invalid"),
)

KIND_OF_STATUS = {404: "not-found", 405: "method-not-allowed"}


@dataclass(frozen=True)
class Finding:
    """One thing wrong with a request. pointer: JSON pointer into the body (RFC 6901), or a header's or parameter's name."""

    pointer: str
    detail: str


class Problem(Exception):
    """A request that gets a problem document. headers: extra response headers."""

    def __init__(self, kind: str, detail: str, errors: tuple[Finding, ...] = (), headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.errors = kind, detail, errors
        self.status, self.title = KINDS[kind]
        self.headers = dict(headers or {})

    def fields(self) -> dict[str, object]:
        """What crosses the pipe from a child process."""
        rows = [[row.pointer, row.detail] for row in self.errors]
        return {"kind": self.kind, "detail": self.detail, "errors": rows, "headers": self.headers}

    def document(self, instance: str, request_id: str) -> bytes:
        """The body of the answer."""
        shape = {
            "type": f"urn:softgauge:problem:{self.kind}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
            "errors": [{"pointer": row.pointer, "detail": row.detail} for row in self.errors],
            "request_id": request_id,
        }
        return json.dumps(shape, ensure_ascii=False).encode("utf-8", "backslashreplace")


def from_fields(fields: Mapping[str, object]) -> Problem:
    """The inverse of Problem.fields."""
    rows, headers = fields["errors"], fields["headers"]
    found = tuple(Finding(*row) for row in rows) if isinstance(rows, list) else ()
    return Problem(str(fields["kind"]), str(fields["detail"]), found, headers if isinstance(headers, dict) else None)


def from_engine(error: engine.EngineError, pointer: str) -> Problem:
    """The problem of an engine error, by the table above."""
    kind = next(kind for parent, kind in ENGINE_KINDS if isinstance(error, parent))
    return Problem(kind, str(error), (Finding(pointer, str(error)),))


@contextmanager
def engine_errors(unknown: str, invalid: str | Callable[[str], str] | None = None) -> Iterator[None]:
    """Turns what the engine raises into its problem, and says where in the request the fault is. Raises Problem.

    unknown: the field whose names are looked up inside. invalid: the field that is judged inside, or a function of the message that
    tells it, but that an error of one of the params has its place; None: the targets or grad_output, whichever the error names (the
    doors refuse logits of a wrong shape, and Limits what exceeds the engine's).
    A Disagreement passes: where it is caught, it ends the process.
    """
    try:
        yield
    except engine.Disagreement:
        raise
    except engine.UnknownName as error:
        raise from_engine(error, unknown) from None
    except engine.InvalidProblem as error:
        named = "/grad_output" if "grad_output" in str(error) else "/targets"
        if isinstance(error, engine.InvalidParam):
            named = f"/params/{error.name}"
        elif invalid is not None:
            named = invalid if isinstance(invalid, str) else invalid(str(error))
        raise from_engine(error, named) from None
    except engine.EngineError as error:
        raise from_engine(error, "") from None


def from_status(status: int, detail: str) -> Problem:
    """The problem of a status the web framework chose by itself."""
    return Problem(KIND_OF_STATUS.get(status, "internal" if status >= 500 else "malformed"), detail)


def quoted(text: str) -> str:
    """A text as an error may name it: its repr, cut where that is long (a control character takes four of its places)."""
    whole = repr(text[: _LONGEST + 1])
    return whole if len(whole) <= _LONGEST + 2 else f"{whole[: _LONGEST - 3]}..."


def shown(value: object) -> str:
    """A value as an error may name it: its JSON, cut where that is long; of an object, a list, a long integer what it is."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)} items"
    if isinstance(value, int) and value.bit_length() > _LONGEST:
        return f"an integer of {value.bit_length()} bits"
    text = json.dumps(value[: _LONGEST + 1] if isinstance(value, str) else value)
    return text if len(text) <= _LONGEST + 2 else f'{text[: _LONGEST - 3]}..." ({len(str(value))} characters)'


def place(parts: Sequence[object]) -> str:
    """A JSON pointer (RFC 6901); a long name is cut, because nothing long is echoed."""
    texts = (str(part)[:_LONGEST].replace("~", "~0").replace("/", "~1") for part in parts)
    return "".join(f"/{text}" for text in texts)


# What pydantic calls the faults it finds: the rule and the way out, to follow the value.
_MISFITS = {
    "int_type": "is no integer; write one without fraction, exponent or quotes, such as 1",
    "float_type": "is no number; write one without quotes, such as 0.125",
    "extra_forbidden": "stands in a field that is not known here; leave it out, or mend its name",
    "string_type": "is no string; write a name in quotes",
    "string_unicode": "is no text: it has half of a surrogate pair; write whole characters",
    "string_too_short": "has fewer than {min_length} characters; write a name",
    "string_too_long": "has more than {max_length} characters; no name has, and the catalogue (/v1/ops and so on) lists them",
    "string_pattern_mismatch": "has a form that is not taken; write one that matches {pattern}",
    "literal_error": "is not known; write {expected}",
    "bool_type": "is no boolean; write true or false",
    "list_type": "is no list; write one in brackets, also of one item",
    "too_short": "has fewer than {min_length}; write that many or more",
    "too_long": "has more than {max_length}; write that many or fewer",
    "model_type": "is no object; write one in braces",
    "greater_than_equal": "is below {ge}; write {ge} or more",
    "less_than_equal": "is above {le}; write {le} or less",
}


def misfit(row: Mapping[str, Any]) -> str:
    """One of pydantic's errors in our words: the value, the rule and the way out."""
    if row["type"] == "missing":
        return "it is needed and was not given; write it"
    rule = _MISFITS.get(row["type"])
    return f"{shown(row['input'])} {rule.format(**row.get('ctx', {}))}" if rule else f"{shown(row['input'])}: {row['msg']}"
