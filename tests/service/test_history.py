"""Plots, tables and badges: pure functions of points."""

import csv
import io
import math
import xml.etree.ElementTree as ET

import pytest

from service import history

SVG = "{http://www.w3.org/2000/svg}"


def point(size, verdict="pass", run="run-1", **more):
    told = {"run": run, "at": "2026-01-02T03:04:05Z", "branch": "main", "commit": "4f1c", "testbed": "", "fingerprint": "fp"}
    return {**told, "verdict": verdict, "max_ulp": size, **more}


def drawn(points, **options):
    return ET.fromstring(history.plot("a case", points, **options))


def marks(svg):
    """The shapes that stand for runs, by what they say."""
    return {group.find(f"{SVG}title").text: group[1] for group in svg.iter(f"{SVG}g")}


def test_every_run_is_a_mark_whose_shape_is_the_verdict():
    points = [point(1.0), point(2.0, "fail"), point(1.5, "inconclusive"), point(1.0, None)]
    found = list(marks(drawn(points)).items())
    assert [shape.attrib["class"] for _, shape in found] == ["bar", "cross", "bar", "ring"]
    assert [shape.tag.removeprefix(SVG) for _, shape in found] == ["circle", "path", "path", "circle"]
    assert found[1][0] == "4f1c, 2026-01-02: 2 ULP, fails its gate"


def test_what_is_not_finite_is_at_the_upper_edge_and_breaks_the_line():
    svg = drawn([point(1.0), point(1.0), point(math.nan), point(math.inf), point(None), point(1.0), point(1.0)])
    titles = list(marks(svg))
    assert any("NaN ULP" in title for title in titles)
    assert any("infinite ULP" in title for title in titles)
    assert len(svg.findall(f"{SVG}polyline")) == 2


def test_errors_far_apart_are_drawn_by_their_logarithms():
    near, far = (
        " ".join(text.text for text in drawn(points).iter(f"{SVG}text"))
        for points in ([point(1.0), point(3.0)], [point(0.5), point(1e6)])
    )
    assert "logarithmic" not in near
    assert "max ULP (logarithmic)" in far


@pytest.mark.parametrize(
    "sizes",
    [
        [0.0],
        [0.0, 0.0, 5.0],
        [1e-300, 1e300],
        [math.inf],
        [math.nan, None],
        [0.1] * 1000,
        [5e-324, 1e308, 0.0],
        [5e-324],
        [1.7e308],
        [1e307, 1.7e308],
    ],
)
def test_any_errors_lie_inside_the_picture(sizes):
    svg = drawn([point(size, run=f"run-{i}") for i, size in enumerate(sizes)])
    for shape in svg.iter(f"{SVG}circle"):
        assert 0 <= float(shape.attrib["cx"]) <= 360
        assert 0 <= float(shape.attrib["cy"]) <= 170
    for line in svg.iter(f"{SVG}polyline"):
        assert all(0 <= float(part) <= 360 for pair in line.attrib["points"].split() for part in pair.split(","))


def test_an_error_twice_as_large_is_twice_as_high():
    heights = [float(circle.attrib["cy"]) for circle in drawn([point(0.0), point(2.0), point(4.0)]).iter(f"{SVG}circle")]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)
    assert heights[0] > heights[1] > heights[2]


def test_many_runs_are_a_line_and_what_does_not_pass_is_marked():
    points = [point(1.0, "fail" if i == 500 else "pass") for i in range(1000)]
    found = marks(drawn(points))
    assert len(found) == 1
    assert "fails" in next(iter(found))


def test_the_plot_is_told_in_words():
    assert drawn([]).attrib["aria-label"] == "a case: no runs yet"
    assert drawn([point(1.0)]).attrib["aria-label"] == "a case: 1 run, from 1 to 1 ULP; the last 1 ULP"
    assert drawn([point(math.nan)]).attrib["aria-label"] == "a case: 1 run, never finite; the last NaN ULP"


def test_the_baseline_is_a_line_of_its_own():
    points = [point(1.0, run="run-1"), point(2.0, run="run-2")]
    assert not any(line.attrib["class"] == "was" for line in drawn(points).iter(f"{SVG}line"))
    (line,) = (line for line in drawn(points, baseline_run="run-2").iter(f"{SVG}line") if line.attrib["class"] == "was")
    assert line.find(f"{SVG}title").text == "baseline"


HOSTILE = '<script>alert("&")</script>\x00\x1b]'


def test_hostile_names_are_text():
    for standalone in (True, False):
        text = history.plot(HOSTILE, [point(1.0, commit=HOSTILE), point(2.0)], standalone=standalone)
        ET.fromstring(text)
        assert "<script" not in text
        assert ("<style" in text) == standalone
    ET.fromstring(history.badge(HOSTILE, HOSTILE))


def test_the_table_is_csv_to_the_last_bit_and_no_formula():
    sizes = [0.1, math.nan, math.inf, None]
    text = history.table_csv({"=HYPERLINK(1)": [point(size, branch='a,"b"\n', commit="@x") for size in sizes]})
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["max_ulp"] for row in rows] == ["0.1", "NaN", "Infinity", ""]
    assert {row["case"] for row in rows} == {"'=HYPERLINK(1)"}
    assert {row["commit"] for row in rows} == {"'@x"}
    assert {row["branch"] for row in rows} == {'a,"b"\n'}
    assert text.endswith("\r\n")


@pytest.mark.parametrize("verdict", ["pass", "improved", "regressed", "failed", "inconclusive", "incomparable", "none yet"])
def test_a_badge_says_the_verdict_and_can_be_read(verdict):
    svg = ET.fromstring(history.badge("softgauge", verdict))
    assert svg.attrib["aria-label"] == f"softgauge: {verdict}"
    for rect in svg.iter(f"{SVG}rect"):
        assert contrast("#ffffff", rect.attrib["fill"]) >= 4.5  # WCAG 2.2, 1.4.3


def contrast(one, other):
    """Of two colours, as WCAG 2.2 defines it."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)
