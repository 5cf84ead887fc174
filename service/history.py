"""placeholder until merged"""

from typing import Any


def plot(title: str, points: Any, baseline_run: Any = None) -> str:
    return "<svg/>"


def table_csv(d: Any) -> str:
    return ""


def badge(a: str, b: str) -> str:
    return "<svg/>"
