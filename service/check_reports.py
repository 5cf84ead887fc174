"""What `softgauge check` says, for people and for machines: pure functions of its answer. What is not ours is escaped."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any
from xml.sax.saxutils import escape as xml
from xml.sax.saxutils import quoteattr

from service.reports import escaped, short

Answer = Mapping[str, Any]
MARKS = {"pass": "✅", "improved": "✅", "regressed": "❌", "failed": "❌", "inconclusive": "⚠️", "incomparable": "⚠️"}
MOST_BARS = 60
MOST_ROWS = 200
"""Of a table in Markdown, which a page of a pull request has to hold."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]|##(?=\[)")


def text(answer: Answer) -> str:
    """As lines: the verdict, then each case that is not as it was, the worst first."""
    lines = [headline(answer)]
    told = [case for case in answer["cases"] if case["status"] not in ("unchanged", "no_worse")]
    for case in told:
        lines.append(f"  {case['status']}: {case['case']}{_ulps(case)}")
        lines += [f"    {sentence}" for sentence in sentences(case)]
    lines += [f"  {hint}" for hint in _hints(answer)]
    return plain("\n".join(lines)) + "\n"


def headline(answer: Answer) -> str:
    """The verdict and how many cases are what."""
    counts = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in answer["counts"].items())
    total = sum(answer["counts"].values())
    return f"{answer['verdict']}: {total} case{'s' * (total != 1)} of {answer['suite']}: {counts}"


def sentences(case: Mapping[str, Any]) -> list[str]:
    """Why a case is what it is."""
    better = [f"{c['figure']} {short(c['now'])}, was {short(c['was'])}" for c in case["changes"] if not c["worse"]]
    where = [case["worst"]] if case["worst"] and case["status"] in ("regressed", "failed", "inconclusive") else []
    said = [*case["why"][:1], *where, *case["faults"], *(case["findings"] if case["counts"] else ()), *case["why"][1:]]
    return [*said, *(better if case["status"] == "improved" else ())]


def _ulps(case: Mapping[str, Any]) -> str:
    now, was = case["max_ulp"], case["was_max_ulp"]
    if now is None and was is None:
        return ""
    return f" (max ULP {short(now)}{'' if was is None else f', was {short(was)}'})"


def _hints(answer: Answer) -> Iterator[str]:
    """What to do next."""
    counts = answer["counts"]
    if answer["verdict"] == "improved":
        yield 'to hold what is better from now on: softgauge check --accept --reason "..."'
    for status in ("new", "missing", "stale", "incomparable"):
        treatment = answer["treatments"].get(status)
        if counts.get(status) and treatment == "fail":
            yield f'{status}: what cannot be compared has not passed: softgauge check --accept --reason "...", or policy.{status}'
        elif counts.get(status) and treatment == "create":
            yield f"{status}: put into {answer['baseline']}{'' if 'id' in answer else '; commit it'}"


def markdown(answer: Answer) -> str:
    """For a page or a pull request: the verdict, what counts, and a folded table of all."""
    lines = [f"### {MARKS[answer['verdict']]} {escaped(headline(answer))}", ""]
    for case in answer["cases"]:
        if case["status"] in ("unchanged", "no_worse"):
            continue
        lines.append(f"* **{escaped(case['status'])}** `{_code(case['case'])}`{escaped(_ulps(case))}")
        lines += [f"  * {escaped(sentence)}" for sentence in sentences(case)]
    lines += [f"* {escaped(hint)}" for hint in _hints(answer)]
    lines += ["", "<details><summary>all cases</summary>", "", "| case | status | gate | max ULP | was |", "|---|---|---|---|---|"]
    for case in answer["cases"][:MOST_ROWS]:
        row = (
            f"`{_code(case['case'])}`",
            case["status"],
            case["verdict"] or "-",
            short(case["max_ulp"]),
            short(case["was_max_ulp"]),
        )
        lines.append(f"| {' | '.join(row)} |")
    if (more := len(answer["cases"]) - MOST_ROWS) > 0:
        lines.append(f"| and {more} more | | | | |")
    lines += ["", "</details>", ""]
    told = answer["engine"]
    lines.append(f"Softgauge {told['version']}, {escaped(told['fingerprint'])}, baseline `{_code(answer['baseline'])}`")
    return plain("\n".join(lines)) + "\n"


def _code(told: str) -> str:
    """For between backticks in a table."""
    return told.replace("`", "'").replace("|", "/").replace("<", "(").replace(">", ")")


def junit(answer: Answer) -> str:
    """JUnit XML, as CI services read it: a test case for each case."""
    cases = answer["cases"]
    failed = [case for case in cases if case["counts"]]
    head = f'<testsuite name="softgauge" tests="{len(cases)}" failures="{len(failed)}" errors="0" skipped="0">'
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', "<testsuites>", f" {head}"]
    for case in sorted(cases, key=lambda case: str(case["case"])):
        opened = f"  <testcase classname={_attribute(answer['suite'])} name={_attribute(case['case'])}"
        said = "\n".join(sentences(case))
        if case["counts"]:
            message = _attribute(f"{case['status']}: {(sentences(case) or [''])[0]}")
            lines.append(
                f"{opened}><failure type={_attribute(case['status'])} message={message}>{xml(plain(said))}</failure></testcase>"
            )
        else:
            lines.append(f"{opened}><system-out>{xml(plain(case['status'] + chr(10) + said))}</system-out></testcase>")
    return "\n".join([*lines, " </testsuite>", "</testsuites>"]) + "\n"


def _attribute(told: str) -> str:
    return quoteattr(plain(told))


def sarif(answer: Answer) -> str:
    """SARIF 2.1.0, of the cases that count and name a line of the source."""
    rules = sorted({case["status"] for case in answer["cases"] if case["counts"] and case["source"]})
    results = [
        {
            "ruleId": case["status"],
            "ruleIndex": rules.index(case["status"]),
            "level": "error" if case["status"] in ("regressed", "failed") else "warning",
            "message": {"text": plain("\n".join([f"{case['case']}: {case['status']}{_ulps(case)}", *sentences(case)]))},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": _uri(case["source"]["file"]), "uriBaseId": "%SRCROOT%"},
                        "region": {"startLine": case["source"]["line"]},
                    }
                }
            ],
            "partialFingerprints": {"softgauge/v1": plain(case["case"])},
        }
        for case in answer["cases"]
        if case["counts"] and case["source"]
    ]
    driver = {
        "name": "softgauge",
        "semanticVersion": answer["engine"]["version"],
        "rules": [{"id": rule, "shortDescription": {"text": _RULES[rule]}} for rule in rules],
    }
    log = {
        "$schema": "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}],
    }
    return json.dumps(log, indent=1) + "\n"


_RULES = {
    "regressed": "A figure is worse than in the baseline.",
    "failed": "The output fails its gate.",
    "inconclusive": "The gate no longer tells.",
    "new": "The case is not in the baseline.",
    "missing": "The case is no longer in the suite.",
    "stale": "The case has another input or other settings than in the baseline.",
    "incomparable": "The baseline is of another engine schema.",
}


def _uri(path: str) -> str:
    """A relative path as a URI reference (RFC 3986)."""
    return "".join(
        mark if re.match(r"[A-Za-z0-9._~/-]", mark) else "".join(f"%{b:02X}" for b in mark.encode()) for mark in plain(path)
    )


def github(answer: Answer) -> str:
    """Workflow commands: an annotation for each case that counts, at its line where it names one."""
    lines = []
    for case in answer["cases"]:
        if not case["counts"]:
            continue
        kind = "error" if case["status"] in ("regressed", "failed") else "warning"
        place = [f"file={_property(case['source']['file'])}", f"line={case['source']['line']}"] if case["source"] else []
        title = _property(f"{case['case']}: {case['status']}{_ulps(case)}")
        lines.append(f"::{kind} {','.join([*place, f'title={title}'])}::{_data(chr(10).join(sentences(case)) or case['status'])}")
    return "\n".join(lines) + "\n" * bool(lines)


def _data(told: str) -> str:
    """As the message of a workflow command."""
    return plain(told).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(told: str) -> str:
    """As the value of one of its properties."""
    return _data(told).replace(":", "%3A").replace(",", "%2C")


STYLE = """
 :root { color-scheme: light dark; }
 text { font: 12px system-ui, sans-serif; fill: #1f2328; }
 .bar { fill: #2f6fbf; } .bad { fill: #b3261e; } .was { stroke: #1f2328; stroke-width: 2; } .grid { stroke: #d0d7de; }
 .paper { fill: #ffffff; }
 @media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .bar { fill: #6cb0ff; } .bad { fill: #ff7b72; } .was { stroke: #e6edf3; } .grid { stroke: #3d444d; }
  .paper { fill: #0d1117; }
 }"""


def svg(answer: Answer) -> str:
    """A plot of the largest ULP error by case, the worst first, on a logarithmic scale; a tick is the baseline."""
    rows = sorted((case for case in answer["cases"] if case["output"]), key=lambda case: -_length(case["max_ulp"]))
    rows, left = rows[:MOST_BARS], len(rows) - MOST_BARS
    lengths = (_length(value) for case in rows for value in (case["max_ulp"], case["was_max_ulp"]))
    values = [value for value in lengths if 0 < value < math.inf]
    low, high = (math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))) if values else (-1, 0)
    low, high = min(low, high - 1), high
    names, width = 8 * max([len(case["case"]) for case in rows] or [8]) + 16, 480
    height = 20 * len(rows) + 64

    def x(value: float) -> float:
        return names + width * (max(min(math.log10(value), high), low) - low) / (high - low) if value > 0 else names

    step = max(1, (high - low) // 8)
    lines = [f'<rect class="paper" width="{names + width + 90}" height="{height}"/>']
    lines.append(f'<text x="8" y="18">{_svg(f"{headline(answer)}; max ULP, the tick is the baseline")}</text>')
    for power in range(low, high + 1, step):
        at = x(10.0**power)
        lines.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="30" y2="{height - 26}"/>')
        lines.append(f'<text x="{at:.1f}" y="{height - 10}" text-anchor="middle">{10.0**power:g}</text>')
    for place, case in enumerate(rows):
        y, end = 34 + 20 * place, x(_length(case["max_ulp"]))
        label = f"{case['case']}: {case['status']}{_ulps(case)}"
        lines.append(f"<g><title>{_svg(label)}</title>")
        lines.append(f'<text x="{names - 8}" y="{y + 12}" text-anchor="end">{_svg(case["case"])}</text>')
        kind = "bad" if case["counts"] else "bar"
        lines.append(f'<rect class="{kind}" x="{names}" y="{y + 2}" width="{max(end - names, 1):.1f}" height="12"/>')
        if case["was_max_ulp"] is not None:
            at = x(_length(case["was_max_ulp"]))
            lines.append(f'<line class="was" x1="{at:.1f}" x2="{at:.1f}" y1="{y}" y2="{y + 16}"/>')
            end = max(end, at)
        told = "nothing finite" if case["max_ulp"] is None else short(case["max_ulp"])
        lines.append(f'<text x="{end + 6:.1f}" y="{y + 12}">{_svg(told)}</text></g>')
    if left > 0:
        lines.append(f'<text x="{names + width}" y="18" text-anchor="end">{left} more are not drawn</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{names + width + 90}" height="{height}" role="img"'
    return (
        "\n".join([f"{head} aria-label={quoteattr(plain(headline(answer)))}>", f"<style>{STYLE}</style>", *lines, "</svg>"]) + "\n"
    )


def _length(ulps: object) -> float:
    """Of a bar: as long as can be where nothing is finite."""
    return drawn(float(ulps)) if isinstance(ulps, int | float) else math.inf


def drawn(ulps: float) -> float:
    """An error as a scale has it: the powers of ten beside the ends of float64 are no float64 themselves."""
    return min(max(ulps, 1e-300), 1e300) if 0 < ulps < math.inf else ulps


def _svg(told: str) -> str:
    return xml(plain(told))


def plain(told: str) -> str:
    """Text without what neither XML nor a terminal should get, nor the log of a GitHub runner, which obeys ##[...] in any line."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", told)


REPORTS = {"markdown": markdown, "junit": junit, "sarif": sarif, "svg": svg}
"""Those that are files, by the option that asks for one."""
