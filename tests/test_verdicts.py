"""No false alarm, and nothing broken passes: random problems, by seed. The full counts are soaked."""

from collections import Counter

import numpy as np
import pytest

from engine import FORMATS, Problem, round_array, verify
from engine.bounds import allowed
from engine.formats import widen
from engine.mutants import mutants, mutate
from engine.policies import tight
from engine.truth import certified, hull, nearly
from tests.broken import BROKEN, Right
from tests.drawn import KINDS, draw, logits, rounded

pytestmark = pytest.mark.no_cover


def judged(seed, longest=4096):
    """What the default gate says of a right implementation, and of the correctly rounded output."""
    case = draw(seed, longest)
    found = {str(case): verify(case.given, case.made.output(case.given)).verdict}
    if seed % 5 == 0:
        found[f"{case}: rounded"] = verify(case.given, rounded(case.given, case.output)).verdict
    return found


def inside(problem, output):
    """Whether every element has a bound and is within it, or correctly rounded: by the exact path alone."""
    fmt = FORMATS[output.dtype.name]
    truth = certified(problem, fmt)
    right, flat = widen(truth.rounded()).reshape(truth.rows, -1), widen(output).reshape(truth.rows, -1)
    for row in range(truth.rows):
        b = allowed((tight(problem.op, fmt),), truth.raw_logits[row], truth.companion(row), truth.width)[0]
        for column, e in enumerate(truth.row(row, 300)):
            c, r = flat[row, column], right[row, column]
            if c == r or (np.isnan(c) and np.isnan(r)):
                continue
            if isinstance(e, float) or not np.isfinite([c, r, b[column]]).all():
                return False
            lo, hi, exp = hull(e)
            man, unit = c.as_integer_ratio()
            low = min(exp, 1 - unit.bit_length())
            error = abs((man << (1 - unit.bit_length() - low)) - (((lo + hi) // 2) << (exp - low)))
            top, bottom = float(b[column]).as_integer_ratio()
            if error * bottom > top << -low if low < 0 else (error << low) * bottom > top:
                return False
    return True


def tried(seed):
    """Verdicts of broken outputs of one problem, by what is broken; those that are as good as the truth are left out."""
    case, rng = draw(seed, 512, elements=512), np.random.default_rng(seed)
    given, fmt = case.given, FORMATS[case.output]
    if given.params.mask is not None:
        return {}
    truth = certified(given, fmt)
    right = Right(truth, nearly(truth, range(truth.rows)), rng)
    found = {}
    for name, make in BROKEN.items():
        with np.errstate(all="ignore"):
            broken = make(right)
            output = None if broken is None else round_array(broken, fmt).reshape(truth.shape)
        if output is not None:
            verdict = verify(given, output).verdict
            if verdict == "pass" and inside(given, output):
                verdict = "equivalent"
            found[f"{name}, {case}"] = verdict
    return found


def mutated(seed, longest):
    """Verdicts of the mutants of a softmax or log-softmax that are not equivalent, where each must fail."""
    rng = np.random.default_rng(seed)
    op, kind = str(rng.choice(("softmax", "log_softmax"))), str(rng.choice(list(KINDS)))
    fmt = FORMATS[str(rng.choice(("float16", "bfloat16", "float32", "float64")))]
    x = logits(kind, rng, 1, max(2, round(float(longest ** rng.random()))), fmt)
    problem = Problem(op, x)
    truth = certified(problem, fmt)
    right, found = nearly(truth, range(truth.rows)), {}
    for name in mutants(fmt):
        given = verify(problem, mutate(name, right, truth, range(truth.rows)).reshape(truth.shape))
        same = name in given.gate.self_test.equivalent
        found[f"{name}, seed {seed}: {op} of {fmt.name} {x.shape}, {kind}"] = "equivalent" if same else given.verdict
    return found


def may_be_near(what):
    """Whether a mutant can be as near to the truth, of nearly equal logits, as some arithmetic in use."""
    return what.startswith(("narrowed", "uniform", "rolled"))


@pytest.mark.parametrize("part", range(4))
def test_what_is_right_passes(part):
    for seed in range(9 * part, 9 * part + 9):
        assert set(judged(seed, 1024).values()) == {"pass"}, judged(seed, 1024)


@pytest.mark.parametrize("seed", [1001028, 1006551, 1014657])
def test_beside_overflow_to_nan_both_sides_are_right(seed):
    """Truths such as -464 - 3e-8, which are NaN, and of which float32 knows no more than -464, which is -448."""
    assert set(judged(seed).values()) == {"pass"}


@pytest.mark.parametrize("part", range(4))
def test_what_is_broken_does_not_pass(part):
    for seed in range(2 * part, 2 * part + 2):
        assert "pass" not in (found := tried(seed)).values(), found


@pytest.mark.parametrize("seed", range(4))
def test_mutants_fail(seed):
    for what, verdict in mutated(seed, 600).items():
        assert verdict in ("fail", "equivalent") or (verdict != "pass" and may_be_near(what)), (what, verdict)


@pytest.mark.soak
def test_a_hundred_thousand_right_implementations_pass():
    counts = Counter(verdict for seed in range(10**6, 10**6 + 100_000) for verdict in judged(seed).values())
    assert counts.keys() == {"pass"}, counts


@pytest.mark.soak
def test_five_thousand_problems_broken_in_nineteen_ways_do_not_pass():
    for seed in range(10**6, 10**6 + 5_000):
        assert "pass" not in (found := tried(seed)).values(), found


@pytest.mark.soak
def test_mutants_of_long_rows_fail():
    for seed in range(10**6, 10**6 + 1_000):
        for what, verdict in mutated(seed, 128256).items():
            assert verdict in ("fail", "equivalent") or (verdict != "pass" and may_be_near(what)), (what, verdict)
