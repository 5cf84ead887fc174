"""Comparing with a baseline: what is regressed, what is not, and what cannot be compared."""

from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest

from engine import InvalidProblem, Problem, UnknownName, evaluate
from engine.compare import FIGURES, STATUSES, TREATMENTS, Change, Compared, Entry, Rules, compare, figures, one, verdict

KNOWN = {**dict.fromkeys(FIGURES, 0), "max_ulp": 1.25, "mean_ulp": 0.25, "correctly_rounded": 900, "argmax_preserved": 4}
WAS = Entry(1, "numpy 2, AVX2", {"logits": "a"}, {"op": "softmax", "format": "float16"}, "before", "pass", KNOWN)


def now(output="after", verdict="pass", fingerprint=WAS.fingerprint, **found):
    return replace(WAS, output=output, verdict=verdict, fingerprint=fingerprint, figures=KNOWN | found)


@pytest.mark.parametrize("value", [nan, 1.0, -1, inf])
def test_a_count_is_an_integer(value):
    """One that is not would be worse than any that is, and what comes after it better."""
    with pytest.raises(InvalidProblem, match=r"special_mismatch is .* counts"):
        now(special_mismatch=value)


def status(entry, *known, **rules):
    return one("case", entry, known or (WAS,), Rules(**rules)).status


def test_equal_bits_are_unchanged_and_nothing_else_is_looked_at():
    worse = now("before", max_ulp=99.0)
    assert one("case", worse, (WAS,)) == Compared("case", "unchanged", against=WAS.fingerprint)
    assert status(replace(worse, fingerprint="other")) == "unchanged"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({}, "no_worse"),
        ({"max_ulp": 1.25 + 2**-40}, "regressed"),
        ({"max_ulp": 1.0}, "improved"),
        ({"correctly_rounded": 899}, "regressed"),
        ({"correctly_rounded": 901}, "improved"),
        ({"argmax_preserved": 3}, "regressed"),
        ({"max_ulp": 1.0, "mean_ulp": 0.3}, "regressed"),
        ({"special_mismatch": 1}, "regressed"),
        ({"max_rel": inf}, "regressed"),
        ({"max_rel": nan}, "regressed"),
        ({"kl": None}, "no_worse"),
        ({"backward_error": 1.0}, "no_worse"),
    ],
)
def test_no_figure_may_be_worse(found, expected):
    assert status(now(**found)) == expected


def test_what_became_worse_is_told_first_and_what_it_was():
    found = one("case", now(mean_ulp=0.2, max_ulp=3.0, correctly_rounded=12), (WAS,))
    assert found.changes == (
        Change("max_ulp", 1.25, 3.0, True), Change("correctly_rounded", 900, 12, True), Change("mean_ulp", 0.25, 0.2, False)
    )  # fmt: skip
    assert found.why == ("max_ulp 3, was 1.25", "also correctly_rounded 12, was 900")
    lost = one("case", now(max_ulp=3.0, mean_ulp=0.5, overflow_count=2), (WAS,))
    assert lost.why == ("overflow_count 2, was 0", "also max_ulp 3, was 1.25; mean_ulp 0.5, was 0.25")
    assert found.against == WAS.fingerprint


def test_what_fails_its_gate_has_failed_though_it_did_before():
    failing = replace(WAS, verdict="fail")
    for entry in (failing, replace(failing, output="after"), replace(failing, output="after", figures=KNOWN | {"max_ulp": 1.0})):
        assert one("case", entry, (failing,)).status == "failed"
        assert one("case", replace(entry, fingerprint="other"), (failing,)).status == "failed"
        assert status(entry, failing, informational=True) in ("unchanged", "no_worse", "improved")
    assert status(replace(failing, output="after", figures=KNOWN | {"max_ulp": 2.0}), failing) == "regressed"


def test_the_bits_of_another_fingerprint_do_not_excuse_its_own():
    bad = now("bad", fingerprint="other", max_ulp=99.0)
    assert status(replace(bad, fingerprint=WAS.fingerprint), bad, WAS) == "regressed"
    assert status(replace(bad, fingerprint=WAS.fingerprint), WAS, bad) == "regressed"
    assert status(bad, WAS, bad) == "unchanged"


def test_what_is_not_finite_counts_whatever_figures_are_named():
    lost = now(max_ulp=None, nan_unexpected=9)
    assert status(lost, figures=("max_ulp",)) == "regressed"
    assert status(replace(lost, fingerprint="other"), figures=("max_ulp",)) == "regressed"
    assert status(lost, figures=(), slack={"nan_unexpected": 9}) == "no_worse"


def test_infinities_and_nan_are_values():
    lost = replace(WAS, figures=KNOWN | {"max_rel": inf})
    assert status(now(max_rel=inf), lost) == "no_worse"
    assert status(now(max_rel=nan), lost) == "no_worse"
    assert status(now(max_rel=1.0), lost) == "improved"


def test_slack_and_figures_are_per_case():
    assert status(now(max_ulp=1.5), slack={"max_ulp": 0.25}) == "no_worse"
    assert status(now(max_ulp=1.5 + 2**-30), slack={"max_ulp": 0.25}) == "regressed"
    assert status(now(mean_ulp=9.0), figures=("max_ulp",)) == "no_worse"
    assert status(now(max_ulp=None, special_mismatch=1), figures=("max_ulp",)) == "regressed"
    for wrong in ({"figures": ("ulps",)}, {"slack": {"ulps": 1.0}}):
        with pytest.raises(UnknownName, match="unknown figure 'ulps'; those that are compared: max_ulp, "):
            Rules(**wrong)
    for amount in (-1.0, inf, nan):
        with pytest.raises(InvalidProblem, match=r"slack of max_ulp is .*; it is a number from 0 on"):
            Rules(slack={"max_ulp": amount})


@pytest.mark.parametrize(
    ("was", "is_now", "expected"),
    [
        ("pass", "fail", "regressed"), ("pass", "inconclusive", "inconclusive"), ("inconclusive", "inconclusive", "no_worse"),
        ("inconclusive", "pass", "no_worse"), ("inconclusive", "fail", "regressed"), (None, "fail", "regressed"),
        ("pass", None, "no_worse"),
    ],
)  # fmt: skip
def test_a_gate_that_says_less_than_it_said(was, is_now, expected):
    before = replace(WAS, verdict=was)
    assert status(now(verdict=is_now), before) == expected
    found = one("case", now(verdict=is_now, fingerprint="other"), (before,))
    assert found.status == (expected if expected in ("regressed", "inconclusive") else "informational")


def test_an_informational_case_is_only_said():
    found = one("case", now(max_ulp=9.0), (WAS,), Rules(informational=True))
    assert (found.status, found.why) == ("informational", ("regressed, but said to be informational", "max_ulp 9, was 1.25"))
    assert one("case", now(), (), Rules(informational=True)).status == "new"  # which has a policy of its own
    assert status(now(max_ulp=1.0), informational=True) == "improved"


class TestOtherProcessor:
    """Another fingerprint than the baseline's."""

    OTHER = "numpy 2, AVX512"

    def test_half_an_ulp_is_no_regression(self):
        found = one("case", now(fingerprint=self.OTHER, max_ulp=1.75, mean_ulp=0.3, correctly_rounded=1), (WAS,))
        assert found.status == "informational"
        assert found.why == (
            f"the baseline is of {WAS.fingerprint}, this machine {self.OTHER}: within its gate, and at most 0.5 ULP worse",
        )

    def test_more_is_and_both_are_named(self):
        found = one("case", now(fingerprint=self.OTHER, max_ulp=1.75 + 2**-20), (WAS,))
        assert found.status == "regressed"
        assert found.why[0] == "max_ulp 1.75, was 1.25: more than 0.5 ULP worse"
        assert WAS.fingerprint in found.why[1]
        assert self.OTHER in found.why[1]
        assert status(now(fingerprint=self.OTHER, max_ulp=2.0), slack={"max_ulp": 0.25}) == "informational"

    @pytest.mark.parametrize("figure", ["nan_unexpected", "nan_missing", "overflow_count", "special_mismatch"])
    def test_what_is_no_longer_finite_is(self, figure):
        found = one("case", now(fingerprint=self.OTHER, **{figure: 1}), (WAS,))
        assert (found.status, found.why[0]) == ("regressed", f"{figure} 1, was 0")

    def test_the_entry_of_its_own_counts_where_there_is_one(self):
        better = replace(WAS, fingerprint=self.OTHER, output="own", figures=KNOWN | {"max_ulp": 1.0})
        assert status(now(fingerprint=self.OTHER, max_ulp=1.25), WAS, better) == "regressed"

    def test_else_the_one_that_excuses_most(self):
        worse = replace(WAS, fingerprint="third", output="third", figures=KNOWN | {"max_ulp": 3.0})
        assert status(now(fingerprint=self.OTHER, max_ulp=3.5), WAS, worse) == "informational"
        assert status(now(fingerprint=self.OTHER, max_ulp=3.6), WAS, worse) == "regressed"

    def test_figures_that_are_named_without_the_largest_error_count(self):
        found = now(fingerprint=self.OTHER, max_ulp=9.0, sum_defect=1)
        assert status(found, figures=("sum_defect",)) == "regressed"
        assert status(found, figures=("sum_defect",), slack={"sum_defect": 1.0}) == "informational"
        assert status(now(fingerprint=self.OTHER, max_ulp=nan)) == "regressed"

    def test_a_figure_without_a_value_tells_nothing(self):
        assert status(now(fingerprint=self.OTHER, max_ulp=None), WAS) == "informational"


def test_a_gate_that_does_not_tell_is_said_of_a_new_case():
    assert one("case", now(verdict="inconclusive"), ()).why[1] == "its gate says inconclusive"


def test_what_cannot_be_compared():
    assert compare({"a": WAS}, {}) == (Compared("a", "new", ("it is in the suite and not in the baseline",)),)
    assert compare({}, {"a": [WAS]})[0].status == "missing"
    other = one("case", replace(WAS, schema=2), (WAS,))
    assert (other.status, other.why) == ("incomparable", ("the baseline is of engine schema 1, this engine of 2",))
    stale = one("case", replace(WAS, inputs={"logits": "b", "targets": "c"}, asked={"op": "softmax"}), (WAS,))
    assert stale.status == "stale"
    assert stale.why == ("since the baseline was accepted the case has other tensors logits, targets and other settings format",)


@pytest.mark.parametrize("known", [(), (replace(WAS, schema=7),), (replace(WAS, inputs={}),)])
def test_what_fails_its_gate_fails_though_nothing_compares_it(known):
    assert status(now(), *known) in ("new", "incomparable", "stale") or not known
    found = one("case", now(verdict="fail"), known)
    assert (found.status, found.why[0]) == ("failed", "it fails its gate")


def test_the_order_of_cases_does_not_matter_but_for_the_order_of_the_answer():
    cases = {"a": WAS, "b": now(max_ulp=0.5), "c": now(max_ulp=2.0)}
    forth, back = (
        compare(cases, {name: [WAS] for name in cases}),
        compare(dict(reversed(cases.items())), {name: [WAS] for name in cases}),
    )
    assert forth == tuple(reversed(back))
    assert [row.status for row in forth] == ["unchanged", "improved", "regressed"]


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["unchanged", "no_worse", "informational"], "pass"),
        (["unchanged", "improved"], "improved"),
        (["improved", "inconclusive"], "inconclusive"),
        (["inconclusive", "new"], "incomparable"),
        (["missing"], "incomparable"),
        (["stale", "failed"], "failed"),
        (["failed", "regressed", "new"], "regressed"),
        ([], "incomparable"),
    ],
)
def test_the_worst_of_all_cases_is_the_verdict(statuses, expected):
    assert verdict([Compared("case", name) for name in statuses]) == expected


def test_only_what_cannot_be_compared_has_a_treatment():
    assert verdict([Compared("case", "regressed")], {"regressed": "warn"}) == "regressed"


def test_what_is_treated_with_a_warning_does_not_count():
    rows = [Compared("case", name) for name in ("new", "missing", "stale", "incomparable")]
    assert verdict(rows, dict.fromkeys(TREATMENTS, "warn")) == "pass"
    assert verdict(rows, {"new": "create", "missing": "warn", "stale": "warn"}) == "incomparable"
    assert {*TREATMENTS} == {name for name in STATUSES if verdict([Compared("case", name)]) == "incomparable"}


def test_figures_are_those_of_an_outcome():
    x = np.array([[0.0, 1.0, 2.0]], np.float32)
    (outcome,) = evaluate(Problem("softmax", x), ["float32"], ["shifted"]).outcomes
    found = figures(outcome.metrics)
    assert tuple(found) == FIGURES
    assert found["kl"] == outcome.metrics.kl.worst
    assert found["rank_inversions"] is None
    assert found["max_ulp"] == outcome.metrics.max_ulp
