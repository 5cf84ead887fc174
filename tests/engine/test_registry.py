"""Names are added once and looked up with an error that says what exists."""

import pytest

from engine.errors import UnknownName
from engine.formats import FORMATS
from engine.inputs import FAMILIES
from engine.ops import OPS
from engine.registry import Registry
from engine.summation import SUMMATIONS
from engine.variants import VARIANTS


def colours() -> Registry[int]:
    registry: Registry[int] = Registry("colour")
    registry.add("red", 1)
    registry.add("green", 2)
    return registry


def test_rows_come_back_by_name_in_the_order_added():
    registry = colours()
    assert registry["green"] == 2
    assert list(registry) == ["red", "green"]
    assert list(registry.values()) == [1, 2]
    assert len(registry) == 2
    assert "red" in registry
    assert "blue" not in registry


def test_add_returns_the_row():
    assert colours().add("blue", 3) == 3


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="colour 'red' is registered already"):
        colours().add("red", 3)


def test_a_miss_names_what_exists_and_the_nearest():
    with pytest.raises(UnknownName) as miss:
        colours()["GREN"]
    assert str(miss.value) == "unknown colour 'GREN'; known: red, green; did you mean 'green'?"


def test_a_miss_with_nothing_near_makes_no_suggestion():
    with pytest.raises(UnknownName) as miss:
        colours()["1234567"]
    assert str(miss.value) == "unknown colour '1234567'; known: red, green"


def test_a_miss_echoes_at_most_64_characters():
    with pytest.raises(UnknownName) as miss:
        colours()["x" * 65]
    assert str(miss.value).startswith(f"unknown colour '{'x' * 60}...; known:")
    with pytest.raises(UnknownName) as miss:
        colours()["\x01" * 64]
    assert len(str(miss.value)) < 110
    with pytest.raises(UnknownName, match=f"'{'x' * 64}'"):
        colours()["x" * 64]


@pytest.mark.parametrize(
    "registry", [OPS, FORMATS, SUMMATIONS, VARIANTS, FAMILIES], ids=lambda r: type(next(iter(r.values()))).__name__
)
def test_a_row_is_registered_under_its_own_name(registry):
    for name, row in registry.items():
        assert name == getattr(row, "key", row.name)
