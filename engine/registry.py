"""Add once, look up with a helpful error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import TypeVar

from engine.errors import UnknownName, quoted

Row = TypeVar("Row")


class Registry(Mapping[str, Row]):
    """An insertion-ordered mapping from names to rows; a miss raises UnknownName naming what exists."""

    def __init__(self, noun: str) -> None:
        self._noun = noun
        self._rows: dict[str, Row] = {}

    def add(self, name: str, row: Row) -> Row:
        """Add one row under a name not used before; return the row."""
        if name in self._rows:
            raise ValueError(f"{self._noun} {name!r} is registered already")
        self._rows[name] = row
        return row

    def __getitem__(self, name: str) -> Row:
        try:
            return self._rows[name]
        except KeyError:
            raise UnknownName(self._miss(name)) from None

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def _miss(self, name: str) -> str:
        near = get_close_matches(name[:64].lower(), self._rows, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"unknown {self._noun} {quoted(name)}; known: {', '.join(self._rows)}{hint}"
