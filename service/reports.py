"""Verdicts and tolerances for people: pure functions of the answers of /v1/verify and /v1/tolerance, parsed JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Answer = Mapping[str, Any]
WORST = 8
"""Of the worst elements that are shown at most."""
_FIGURES = ("max_ulp", "mean_ulp", "p99_ulp", "max_rel", "error_over_bound", "sum_defect")


def text(answer: Answer, name: str = "") -> str:
    """As lines: the verdict first, then why, where, how far, and what the gate is worth. name: of what was judged."""
    lines = [f"{answer['verdict']}: {name + ': ' * bool(name)}{_headline(answer)}"]
    lines += [f"  {row['detail']}" for row in answer["findings"]]
    lines += ["", ", ".join(f"{key} {value}" for key, value in _figures(answer))]
    if answer["worst"]:
        lines += ["", "worst elements"]
        rows = [("index", "logit", "got", "truth", "ULP", "rel"), *(_element(row) for row in answer["worst"][:WORST])]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines += ["", *_gate(answer), f"certificate: {_certificate(answer)}"]
    lines += [f"{key} {digest}" for key, digest in answer["digests"].items()]
    return "\n".join(lines) + "\n"


def markdown(answer: Answer, name: str = "") -> str:
    """The same for a page or a pull request: the verdict first, tables folded. What is not ours is escaped."""
    mark = {"pass": "✅", "fail": "❌", "inconclusive": "⚠️"}[answer["verdict"]]
    lines = [f"### {mark} {answer['verdict']}: {escaped(name + ': ' * bool(name) + _headline(answer))}", ""]
    lines += [f"* {escaped(row['detail'])}" for row in answer["findings"]]
    lines += ["", "<details><summary>figures</summary>", "", "| figure | value |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in _figures(answer)]
    lines += ["", "</details>"]
    if answer["worst"]:
        lines += ["<details><summary>worst elements</summary>", "", "| index | logit | got | truth | ULP | rel |"]
        lines += ["|---|---|---|---|---|---|"]
        lines += [f"| {' | '.join(_element(row))} |" for row in answer["worst"][:WORST]]
        lines += ["", "</details>"]
    lines += ["", *(f"{escaped(line)}  " for line in _gate(answer))]
    return "\n".join(lines) + "\n"


def tolerance(answer: Answer) -> str:
    """The answer of /v1/tolerance: the figures first, then what to write, and what that misses."""
    of = "any row" if answer["rows"] is None else f"{answer['rows']} row{'s' * (answer['rows'] != 1)}"
    rtol, atol = answer["rtol"], answer["atol"]
    ulps = "" if answer["ulp"] is None else f"{answer['ulp']:.4g} ULP; "
    lines = [
        f"{answer['op']} of {of} of {answer['n']} logits, output {answer['format']}: {ulps}rtol {_up(rtol)}, atol {_up(atol)}",
        f"  is what no right implementation exceeds: {', '.join(f'{name} {value}' for name, value in answer['declared'].items())}",
    ]
    if isinstance(rtol, str) or isinstance(atol, str):
        return "\n".join([*lines, "  error theory allows this arithmetic anything here: no tolerance will do"]) + "\n"
    call = f"rtol={_up(rtol * _MORE + _OF_TRUTH)}, atol={_up(atol * _MORE)}"
    lines += ["with the truth in float64 (POST /v1/truth, engine.certify), and the output as it is:"]
    lines += [f"  numpy.testing.assert_allclose(output, truth, {call})"]
    lines += [f"  torch.testing.assert_close(output.double(), truth, {call})"]
    lines += [f"of a result of {short(answer['typical'])} it misses relative errors up to {short(answer['missed'])}"]
    lines += ["an output of zeros passes it" if answer["zeros_pass"] else "an output of zeros does not pass it"]
    if tested := answer["self_test"]:
        lines += [f"{fate}: {', '.join(tested[fate])}" for fate in ("caught", "missed", "equivalent") if tested[fate]]
    return "\n".join(lines) + "\n"


_MORE, _OF_TRUTH = 1 + 2.0**-50, 2.0**-51
"""For comparing in float64, and for the truth rounded to it."""


def _up(value: float | str) -> str:
    """To four digits, no smaller."""
    if isinstance(value, str) or not value:
        return str(value)
    shown = f"{value:.3e}"
    return shown if float(shown) >= value else f"{value * (1 + 2.0**-10):.3e}"


def _headline(answer: Answer) -> str:
    rows = f"{answer['rows']} row{'s' * (answer['rows'] != 1)} of {answer['n']}"
    return f"{answer['op']} of {rows} {answer['logits_dtype']} logits, output {answer['format']}"


def _figures(answer: Answer) -> Iterator[tuple[str, str]]:
    metrics = answer["metrics"]
    yield "correctly rounded", f"{metrics['correctly_rounded']} of {metrics['n']}"
    yield from ((name, short(metrics[name])) for name in _FIGURES if metrics[name] is not None)


def _element(row: Mapping[str, Any]) -> Sequence[str]:
    place = "[" + ", ".join(map(str, row["index"])) + "]"
    return (place, short(row["logit"], 9), short(row["got"], 9), row["expected"], short(row["ulp"]), short(row["rel"]))


def _gate(answer: Answer) -> Iterator[str]:
    gate = answer["gate"]
    ours = ("policy", "rule", "declared", "self_test", "vacuous_fraction")
    told = ", ".join(f"{name} {value}" for name, value in gate.items() if name not in ours)
    yield f"gate {gate['policy']}{f' ({told})' if told else ''}: {gate['rule']}"
    if gate["declared"]:
        yield "bound of " + ", ".join(f"{name} {value}" for name, value in gate["declared"].items())
    tested = [
        f"{fate}: {', '.join(gate['self_test'][fate])}" for fate in ("caught", "missed", "equivalent") if gate["self_test"][fate]
    ]
    yield f"the gate itself, tested: {'; '.join(tested)}"
    if sample := answer.get("sample"):
        strata = ", ".join(f"{name} {count}" for name, count in sample["strata"].items())
        yield f"sample: {sample['rows']} of {sample['of']} rows, seed {sample['seed']} ({strata})"


def _certificate(answer: Answer) -> str:
    told = answer["certificate"]
    radius = told["relative_bound_log2"]
    known = "truth exact" if radius is None else f"truth to a relative 2^{radius:g}"
    return f"{known}; {', '.join(f'{tier} {count}' for tier, count in told['tiers'].items())}; coverage {told['coverage']:g}"


def short(value: object, digits: int = 4) -> str:
    """A number to so many digits; "-" where there is none."""
    if value is None:
        return "-"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def escaped(told: str) -> str:
    """Text that Markdown and HTML leave alone."""
    named = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\n": " ", "\r": " "}
    return "".join(named.get(mark, f"\\{mark}" if mark in "\\`*_{}[]#|" else mark) for mark in told)
