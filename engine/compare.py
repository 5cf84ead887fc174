"""compare(current, baseline): what became worse, what better and what cannot be compared, case by case. Of figures that are known.

A case that is what it was is unchanged, and no figure of it is looked at; what fails its gate has failed all the same, though it
did before. Else it is held against the baseline of its own
fingerprint: no figure may be worse. Figures are correctly rounded, so that a larger one is the rounding of a larger truth: they are
compared as they stand, and what is said to be worse is. Where there is none of its fingerprint (CI machines differ, and so do the
last bits of NumPy's exp), it may be half an ULP worse than some other, if it still passes its gate and nothing more of it is not
finite; that is `informational`. What could not be compared has not passed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isnan

from engine.errors import InvalidProblem, UnknownName
from engine.model import Metrics, RowFigure

OTHER_PROCESSOR = 0.5
"""ULPs by which the largest error may be worse on another fingerprint: one rounding of a result that is not in its middle."""
HIGHER = ("correctly_rounded", "argmax_preserved")
"""Figures of which more is better; of all others less is."""
FINITE = ("nan_unexpected", "nan_missing", "overflow_count", "special_mismatch")
"""Figures that count what is not finite and should be, or the reverse. They count whatever figures are named."""
FIGURES = (
    "max_ulp", "mean_ulp", "p50_ulp", "p99_ulp", "max_ulp_ordinal", "correctly_rounded", "max_rel", "max_rel_normal", "max_abs",
    *FINITE, "underflow_premature", "false_zero_count", "sum_defect", "kl", "total_variation", "argmax_preserved",
    "rank_inversions", "backward_error", "error_over_bound",
)  # fmt: skip
"""What can be compared, of a figure of rows the worst row's."""
COUNTS = ("max_ulp_ordinal", *HIGHER, *FINITE, "underflow_premature", "false_zero_count", "rank_inversions")
"""Those of them that are integers."""
USUAL = tuple(name for name in FIGURES if name != "backward_error")
"""What is compared if nothing is said. A backward error knows no common factor of a row, and so nothing of its sum: a kernel whose
sums became better may have more of it."""
GOOD, NOTED, UNCOMPARED, DOUBTFUL, BAD = (
    ("unchanged", "no_worse", "improved"),
    ("informational",),
    ("new", "missing", "stale", "incomparable"),
    ("inconclusive",),
    ("regressed", "failed"),
)
STATUSES = (*GOOD, *NOTED, *UNCOMPARED, *DOUBTFUL, *BAD)
TREATMENTS: Mapping[str, tuple[str, ...]] = {
    "new": ("fail", "warn", "create"),
    "missing": ("fail", "warn"),
    "stale": ("fail", "warn", "create"),
    "incomparable": ("fail", "warn", "create"),
}
"""What may be done about a case that cannot be compared. fail: the whole is `incomparable`; warn: it is only said; create: what is
there now is put into the baseline."""

Number = int | float


@dataclass(frozen=True)
class Entry:
    """What is known of a case at one time on one kind of machine.

    schema: of the engine; inputs: digests of the tensors, by name; asked: everything else that it depends on, by name; output: its
    digest; verdict: of its gate, or None where it has none; figures: by name, None where one has no value.
    """

    schema: int
    fingerprint: str
    inputs: Mapping[str, str]
    asked: Mapping[str, object]
    output: str
    verdict: str | None
    figures: Mapping[str, Number | None]

    def __post_init__(self) -> None:
        for name in COUNTS:
            value = self.figures.get(name)
            if value is not None and not (isinstance(value, int) and value >= 0):  # a NaN would be worse than any count
                raise InvalidProblem(f"{name} is {value!r}; it counts, and is an integer from 0 on")


@dataclass(frozen=True)
class Rules:
    """How a case is compared. figures: those that may not be worse; slack: by how much one may be, in its own unit; informational:
    what became worse is only said. Those of FINITE never may be worse, named or not."""

    figures: tuple[str, ...] = USUAL
    slack: Mapping[str, float] = field(default_factory=dict)
    informational: bool = False

    def __post_init__(self) -> None:
        for name in (*self.figures, *self.slack):
            if name not in FIGURES:
                raise UnknownName(f"unknown figure {name!r}; those that are compared: {', '.join(FIGURES)}")
        for name, amount in self.slack.items():
            if not 0 <= amount < inf:
                raise InvalidProblem(f"slack of {name} is {amount!r}; it is a number from 0 on, in the unit of the figure")


@dataclass(frozen=True)
class Change:
    """A figure that is not what it was."""

    figure: str
    was: Number | None
    now: Number | None
    worse: bool


@dataclass(frozen=True)
class Compared:
    """One case. status: one of STATUSES; why: sentences; changes: figures, the worse ones first; against: the fingerprint of the
    baseline that it was held against, or None."""

    case: str
    status: str
    why: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    against: str | None = None


def figures(metrics: Metrics) -> dict[str, Number | None]:
    """The figures of an outcome that are compared."""
    found: dict[str, Number | None] = {}
    for name in FIGURES:
        value = getattr(metrics, name)
        found[name] = value.worst if isinstance(value, RowFigure) else value
    return found


def compare(
    current: Mapping[str, Entry], baseline: Mapping[str, Sequence[Entry]], rules: Mapping[str, Rules] | None = None
) -> tuple[Compared, ...]:
    """Every case that there is or was, in the order of `current`, then those that are no more in that of the baseline.

    baseline: a case's entries, at most one of each fingerprint. rules: by case; those left out have Rules().
    """
    rules = rules or {}
    found = [one(name, entry, baseline.get(name, ()), rules.get(name, Rules())) for name, entry in current.items()]
    gone = (name for name in baseline if name not in current)
    return (*found, *(Compared(name, "missing", ("it is in the baseline and not in the suite",)) for name in gone))


def verdict(compared: Sequence[Compared], treatments: Mapping[str, str] | None = None) -> str:
    """pass, improved, inconclusive, incomparable, failed or regressed, of all cases: the worst that any is.

    treatments: of cases that cannot be compared, by status: fail (as all that are left out), warn or create.
    """
    treatments = treatments or {}
    counted = {row.status for row in compared if row.status not in TREATMENTS or treatments.get(row.status, "fail") == "fail"}
    if not compared or counted & {*UNCOMPARED}:
        least = "incomparable"
    else:
        least = "inconclusive" if "inconclusive" in counted else "improved" if "improved" in counted else "pass"
    return next((bad for bad in BAD if bad in counted), least)


def one(name: str, now: Entry, known: Sequence[Entry], rules: Rules = Rules()) -> Compared:
    """A case and what the baseline has of it."""
    found = _one(name, now, known, rules)
    if rules.informational and found.status in (*DOUBTFUL, *BAD):
        return Compared(name, "informational", (f"{found.status}, but said to be informational", *found.why), *_rest(found))
    return found


def _rest(found: Compared) -> tuple[tuple[Change, ...], str | None]:
    return found.changes, found.against


def _one(name: str, now: Entry, known: Sequence[Entry], rules: Rules) -> Compared:
    comparable, status, why = _comparable(now, known)
    if not comparable:
        if now.verdict == "fail":
            return Compared(name, "failed", ("it fails its gate", why))
        return Compared(name, status, (why, *["its gate says inconclusive"] * (now.verdict == "inconclusive")))
    own = next((entry for entry in comparable if entry.fingerprint == now.fingerprint), None)
    same = next((entry for entry in ([own] if own else comparable) if entry.output == now.output), None)
    if same is not None:
        found = Compared(name, "unchanged", against=same.fingerprint)
    else:
        found = _beside(name, now, own, rules) if own is not None else _elsewhere(name, now, comparable, rules)
    if now.verdict == "fail" and found.status != "regressed" and not rules.informational:
        return Compared(name, "failed", ("it fails its gate, as it did in the baseline",), *_rest(found))
    return found


def _comparable(now: Entry, known: Sequence[Entry]) -> tuple[list[Entry], str, str]:
    """The entries that a case can be held against; or what it is where there is none, and why."""
    if not known:
        return [], "new", "it is in the suite and not in the baseline"
    of_schema = [entry for entry in known if entry.schema == now.schema]
    if not of_schema:
        schemas = ", ".join(sorted({str(entry.schema) for entry in known}))
        return [], "incomparable", f"the baseline is of engine schema {schemas}, this engine of {now.schema}"
    found = [entry for entry in of_schema if entry.inputs == now.inputs and entry.asked == now.asked]
    if found:
        return found, "", ""
    differ = sorted(_differ(of_schema[0].inputs, now.inputs)), sorted(_differ(of_schema[0].asked, now.asked))
    said = [f"{kind} {', '.join(names)}" for kind, names in zip(("tensors", "settings"), differ, strict=True) if names]
    return [], "stale", f"since the baseline was accepted the case has other {' and other '.join(said)}"


def _differ(was: Mapping[str, object], now: Mapping[str, object]) -> Iterator[str]:
    return (name for name in {**was, **now} if was.get(name) != now.get(name))


def _beside(name: str, now: Entry, was: Entry, rules: Rules) -> Compared:
    """A case beside the baseline of its own fingerprint."""
    changes = _changes(was, now, rules)
    why = tuple(_told([change for change in changes if change.worse]))
    fell = _RANK[now.verdict] > _RANK[was.verdict]
    if fell:
        why = (f"its gate says {now.verdict}, and said {was.verdict}", *why)
    if any(change.worse for change in changes) or (fell and now.verdict == "fail"):
        return Compared(name, "regressed", why, changes, was.fingerprint)
    if fell:
        return Compared(name, "inconclusive", why, changes, was.fingerprint)
    return Compared(name, "improved" if changes else "no_worse", (), changes, was.fingerprint)


_RANK = {"pass": 0, None: 0, "inconclusive": 1, "fail": 2}


def _elsewhere(name: str, now: Entry, known: Sequence[Entry], rules: Rules) -> Compared:
    """A case beside baselines of other fingerprints, of which the one that excuses most counts: each was accepted of a machine, and
    this one may be like any of them."""
    found = [_excused(name, now, was, rules) for was in known]
    return min(found, key=lambda row: STATUSES.index(row.status))


def _excused(name: str, now: Entry, was: Entry, rules: Rules) -> Compared:
    changes = _changes(was, now, rules)
    both = f"the baseline is of {was.fingerprint}, this machine {now.fingerprint}"
    most = OTHER_PROCESSOR + rules.slack.get("max_ulp", 0.0)
    only = () if "max_ulp" in rules.figures else rules.figures  # then these count, since the largest error does not
    far = [c for c in changes if c.worse and c.figure == "max_ulp" and not _within(c, most)]
    lost = [c for c in changes if c.worse and c.figure in (*FINITE, *only)]
    fell = _RANK[now.verdict] > _RANK[was.verdict]
    said = [f"its gate says {now.verdict}, and said {was.verdict}"] * fell
    said += _told(lost)
    said += [f"{sentence}: more than {most:g} ULP worse" for sentence in _told(far)]
    if far or lost or (fell and now.verdict == "fail"):
        return Compared(name, "regressed", (*said, both), changes, was.fingerprint)
    if fell:
        return Compared(name, "inconclusive", (*said, both), changes, was.fingerprint)
    return Compared(name, "informational", (f"{both}: within its gate, and at most {most:g} ULP worse",), changes, was.fingerprint)


def _within(change: Change, most: float) -> bool:
    """Whether a figure is no more than that worse."""
    return change.was is not None and change.now is not None and _size(change.now, "") - _size(change.was, "") <= most


def _changes(was: Entry, now: Entry, rules: Rules) -> tuple[Change, ...]:
    """Figures that are worse by more than their slack, those first that count what is not finite, and those that are better."""
    return tuple(sorted(_each(was, now, rules), key=lambda change: (not change.worse, change.figure not in FINITE)))


def _told(changes: Sequence[Change]) -> list[str]:
    """What became of figures, the first in a sentence of its own."""
    said = [f"{change.figure} {_shown(change.now)}, was {_shown(change.was)}" for change in changes]
    return [*said[:1], *[f"also {'; '.join(said[1:])}"] * (len(said) > 1)]


def _each(was: Entry, now: Entry, rules: Rules) -> Iterator[Change]:
    """NaN is a value, the worst of all."""
    for name in dict.fromkeys((*rules.figures, *FINITE)):
        before, after = was.figures.get(name), now.figures.get(name)
        if before is None or after is None:
            continue  # where a figure loses its value, others say why
        step = _size(after, name) - _size(before, name) if _size(after, name) != _size(before, name) else 0.0
        if step > rules.slack.get(name, 0.0):
            yield Change(name, before, after, True)
        elif step < 0:
            yield Change(name, before, after, False)


def _size(value: Number, name: str) -> float:
    """So that larger is worse."""
    if isnan(value):
        return inf
    return -value if name in HIGHER else value


def _shown(value: Number | None) -> str:
    return "none" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
