"""A case over its runs: a plot, a table as CSV, a badge. Pure functions; what is not ours is escaped."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

from service.check_reports import STYLE, drawn, plain
from service.reports import short

Point = Mapping[str, Any]
"""{run, at, branch, commit, testbed, fingerprint, verdict, max_ulp} of one run."""

COLUMNS = ("case", "at", "branch", "commit", "testbed", "fingerprint", "verdict", "max_ulp", "run")
_WIDTH, _HEIGHT = 360, 170  # units, small enough that a phone shows the words as large as they are
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 22, 30
_MOST_MARKS = 200  # of points that pass; those that do not are always marked
_LOGARITHMIC = 20.0  # from this ratio of the largest error to the smallest on
_LABEL = {"pass": "passes its gate", "fail": "fails its gate", "inconclusive": "its gate does not tell", None: "has no gate"}


def plot(title: str, points: Sequence[Point], baseline_run: str | None = None, standalone: bool = True) -> str:
    """The largest ULP error over the runs, oldest first, as SVG. baseline_run: id of the run that the baseline points to.

    A mark's shape is the verdict of the gate: a circle passes, a cross fails, a diamond is inconclusive, a ring has no gate; a
    triangle at the upper edge is NaN or infinite. standalone: with a style of its own, for a file; else that of the page holds.
    """
    sizes = [_size(point["max_ulp"]) for point in points]
    finite = [size for size in sizes if size is not None and math.isfinite(size)]
    scale = _Scale([drawn(size) for size in finite])
    step = (_WIDTH - _LEFT - _RIGHT) / max(len(points) - 1, 1)
    summary = _summary(points, finite)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
    wide = f' width="{2 * _WIDTH}" height="{2 * _HEIGHT}"' if standalone else ""
    lines = [f"{head}{wide} aria-label={quoteattr(plain(f'{title}: {summary}'))}>"]
    if standalone:
        lines += [f"<title>{_text(title)}</title>", f"<style>{STYLE}{_MARKS}</style>"]
        lines.append(f'<rect class="paper" width="{_WIDTH}" height="{_HEIGHT}"/>')
    lines.append(f'<text x="{_LEFT}" y="12">max ULP{" (logarithmic)" if scale.log else ""}</text>')
    for value in scale.ticks:
        y = scale.y(value)
        lines.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text x="{_LEFT - 4}" y="{y + 3:.1f}" text-anchor="end">{value:g}</text>')
    lines += _curve(points, sizes, scale, step)
    for place, (point, size) in enumerate(zip(points, sizes, strict=True)):
        x = _LEFT + step * place
        if point["run"] == baseline_run:
            lines.append(
                f'<line class="was" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"><title>baseline</title></line>'
            )
        if size is not None and (
            len(points) <= _MOST_MARKS or point["verdict"] in ("fail", "inconclusive") or not math.isfinite(size)
        ):
            lines.append(_mark(point, x, size, scale))
    if points:
        y = _HEIGHT - 10
        lines.append(f'<text x="{_LEFT}" y="{y}">{_text(_when(points[0]))}</text>')
        if len(points) > 1:
            lines.append(f'<text x="{_WIDTH - _RIGHT}" y="{y}" text-anchor="end">{_text(_when(points[-1]))}</text>')
    else:
        lines.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT / 2}" text-anchor="middle">no runs yet</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


class _Scale:
    """From an error to a height. log: logarithmic; ticks: the lines that are drawn."""

    def __init__(self, finite: Sequence[float]) -> None:
        positive = [value for value in finite if value > 0]
        self.log = bool(positive) and max(positive) / min(positive) > _LOGARITHMIC
        if self.log:
            low = math.floor(math.log10(min(positive)))
            high = max(math.ceil(math.log10(max(positive))), low + 1)
            every = max(1, math.ceil((high - low) / 5))
            self.ticks = [10.0**power for power in range(low, high + 1, every)]
            self._low, self._high = float(low), float(high)
        else:
            top = max(positive, default=1.0)
            unit = 10.0 ** math.floor(math.log10(top))
            self._high = next(unit * part for part in (1, 2, 5, 10) if unit * part >= top)
            self._low = 0.0
            self.ticks = [self._high * part / 4 for part in range(5)]

    def y(self, value: float) -> float:
        """Units from the top; what is not finite is at the upper edge, and what a logarithm does not have at the lower."""
        place = (math.log10(value) if value > 0 else self._low) if self.log and math.isfinite(value) else value
        share = 1.0 if not math.isfinite(place) else (place - self._low) / (self._high - self._low)
        return _TOP + (1 - min(max(share, 0.0), 1.0)) * (_HEIGHT - _TOP - _BOTTOM)


def _curve(points: Sequence[Point], sizes: Sequence[float | None], scale: _Scale, step: float) -> Iterator[str]:
    """Lines between neighbours that both have a finite error."""
    pieces: list[list[str]] = [[]]
    for place, size in enumerate(sizes):
        if size is None or not math.isfinite(size):
            pieces.append([])
        else:
            pieces[-1].append(f"{_LEFT + step * place:.1f},{scale.y(size):.1f}")
    for piece in pieces:
        if len(piece) > 1:
            yield f'<polyline class="line" points="{" ".join(piece)}"/>'


def _mark(point: Point, x: float, size: float, scale: _Scale) -> str:
    y = scale.y(size)
    if not math.isfinite(size):
        shape = f'<path class="bad" d="M{x:.1f},{_TOP - 6} l5,8 h-10 z"/>'
    elif point["verdict"] == "fail":
        shape = f'<path class="cross" d="M{x - 4:.1f},{y - 4:.1f} l8,8 m0,-8 l-8,8"/>'
    elif point["verdict"] == "inconclusive":
        shape = f'<path class="bar" d="M{x:.1f},{y - 5:.1f} l5,5 l-5,5 l-5,-5 z"/>'
    else:
        kind = "ring" if point["verdict"] is None else "bar"
        shape = f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
    title = f"{_when(point)}: {shown(size)} ULP, {_LABEL[point['verdict']]}"
    return f"<g><title>{_text(title)}</title>{shape}</g>"


def _summary(points: Sequence[Point], finite: Sequence[float]) -> str:
    """The plot in words."""
    if not points:
        return "no runs yet"
    span = f", from {shown(min(finite))} to {shown(max(finite))} ULP" if finite else ", never finite"
    return f"{len(points)} run{'s' * (len(points) != 1)}{span}; the last {shown(_size(points[-1]['max_ulp']))} ULP"


def shown(value: float | None) -> str:
    """An error as a page shows it."""
    return "none" if value is None else short(value) if math.isfinite(value) else "NaN" if math.isnan(value) else "infinite"


def _when(point: Point) -> str:
    """How a run is called: its commit and its day."""
    commit = str(point["commit"])[:12] or str(point["run"])[-8:]
    return f"{commit}, {str(point['at'])[:10]}"


def _size(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _text(told: str) -> str:
    return plain(told).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def table_csv(points: Mapping[str, Sequence[Point]]) -> str:
    """All points as CSV (RFC 4180), by case; nothing in it is a formula to a spreadsheet."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for case, rows in points.items():
        for row in rows:
            told = {**row, "case": case, "max_ulp": _exact(row["max_ulp"])}
            writer.writerow([_defused(told[name]) for name in COLUMNS])
    return out.getvalue()


def _exact(value: object) -> str:
    """To the last bit; empty where there is none."""
    size = _size(value)
    return "" if size is None else repr(size) if math.isfinite(size) else "NaN" if math.isnan(size) else "Infinity"


def _defused(value: object) -> str:
    told = "" if value is None else plain(str(value))
    return f"'{told}" if told[:1] in ("=", "+", "-", "@", "\t") else told


_COLOURS = {"pass": "#1b6633", "improved": "#1b6633", "regressed": "#a31f1f", "failed": "#a31f1f"}


def badge(label: str, verdict: str) -> str:
    """A small SVG: a label, and a verdict in white on a colour dark enough for it."""
    left, right = 7 * len(label) + 14, 7 * len(verdict) + 14
    colour = _COLOURS.get(verdict, "#7a5000" if verdict in ("inconclusive", "incomparable") else "#55606a")
    words = f'<text x="{left / 2}" y="14">{_text(label)}</text><text x="{left + right / 2}" y="14">{_text(verdict)}</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" '
        f"aria-label={quoteattr(plain(f'{label}: {verdict}'))}>\n"
        f'<rect width="{left}" height="20" fill="#3b434b"/><rect x="{left}" width="{right}" height="20" fill="{colour}"/>\n'
        f'<g fill="#ffffff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" text-anchor="middle">'
        f"{words}</g>\n</svg>\n"
    )


_MARKS = """
 text { font-size: 9px; } .line { fill: none; stroke: #2f6fbf; stroke-width: 1.5; } .cross { stroke: #b3261e; stroke-width: 2; }
 .ring { fill: none; stroke: #2f6fbf; stroke-width: 1.5; } .was { stroke-dasharray: 3 3; stroke-width: 1; }
 @media (prefers-color-scheme: dark) { .line, .ring { stroke: #6cb0ff; } .cross { stroke: #ff7b72; } }"""
