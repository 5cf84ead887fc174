"""Limits: known ones, the same as by brute force, and honest where what they limit comes and goes."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

import engine
from engine import limits, ops
from engine.arithmetic import PLAIN, Arithmetic
from engine.errors import InvalidProblem, UnknownName
from engine.formats import FORMATS, from_ordinals, widen
from engine.limits import QUESTIONS, estimate_thresholds, thresholds
from engine.model import Axes, Problem
from engine.summation import SUMMATIONS
from engine.variants import VARIANTS, find, of_op

OPS = ("softmax", "log_softmax", "logsumexp", "cross_entropy", "cross_entropy_grad", "softmax_jacobian", "softmax_vjp")


def limit(name, *asked, **options):
    return next(row for row in thresholds(*asked, **options).limits if row.name == name)


def ends(row):
    return row.value, row.next


KNOWN = [
    ("naive", "float16", 2, "numpy", 10.390625, "zero"),
    ("naive", "float32", 2, "numpy", 88.0296859741211, "zero"),
    ("naive", "float16", 1000, "numpy", 4.1796875, "zero"),
    ("naive", "float32", 1000, "numpy", 81.81507873535156, "zero"),
    ("naive", "float16", 1000, "sequential", 4.24609375, "zero"),
]


@pytest.mark.no_cover
@pytest.mark.parametrize(("variant", "fmt", "n", "summation", "last", "kind"), KNOWN)
def test_equal_logits_turn_all_zero_above_a_known_one_and_nothing_tells(variant, fmt, n, summation, last, kind):
    found = limit("equal_logits_up", "softmax", variant, fmt, n, summation)
    assert (found.value, found.kind, found.result, found.sharp) == (last, kind, 0.0, True)
    assert found.next == float(np.nextafter(np.array(last, fmt), np.array(np.inf, fmt)))
    assert "no NaN tells of it" in found.beyond
    assert "a sum of terms" in found.beyond
    assert found.search == ("exhaustive" if fmt == "float16" else "bisection")
    assert found.checked == (31744 if fmt == "float16" else 2000)


def test_the_result_is_finite_up_to_the_exp_limit_and_nan_beyond():
    found = limit("finite_logits", "softmax", "naive", "float16")
    assert (found.value, found.next, found.kind) == (11.0859375, 11.09375, "nan")
    assert np.isnan(found.result)
    assert "exp(11.09375) exceeds" in found.beyond
    assert "inf / inf is not a number" in found.beyond


def test_so_many_equal_logits_overflow_the_shifted_sum(monkeypatch):
    monkeypatch.setattr(limits, "BUDGET", 1 << 22)
    monkeypatch.setattr(limits, "LEAST", 16)
    row = limit("equal_logits_up", "softmax", "shifted", "float16", 65519)
    assert (row.next, row.sharp) == (None, False)
    assert row.beyond == "it holds for every number of float16 that was tried, 16 of 31744: others may fail"
    row = limit("equal_logits_up", "softmax", "shifted", "float16", 65520)
    assert (row.value, row.next, row.kind) == (None, 0.0, "zero")
    assert "65520 of 65520 elements are 0, and no NaN tells of it: a sum of terms from 1 to 1 exceeds" in row.beyond


@pytest.mark.parametrize("c", [0, -10, -80, 1000, -200, -(2**20)])
def test_a_chosen_shift_moves_both_limits_and_widens_nothing(c):
    up, down = (
        limit(name, "softmax", f"chosen_shift(c={c})", "float32").value for name in ("equal_logits_up", "equal_logits_down")
    )
    spacing = np.spacing(np.float32(abs(c) + 128))
    assert abs(up + c - 88.02969) <= 2 * spacing
    assert abs(down + c + 103.97208) <= 2 * spacing


# ---- brute force -----------------------------------------------------------------------------------------------------


EQUAL = ("equal_logits_up", "equal_logits_down", "finite_logits")


def numbers(fmt):
    row = FORMATS[fmt]
    return widen(from_ordinals(np.arange(row.infinity_ordinal), row))


def rows(name, fmt, n):
    """Rows of every number, equal logits of both signs; and the column that is asked about."""
    v = numbers(fmt)
    if name in EQUAL:
        v = np.concatenate((-v[:0:-1], v))
        return np.zeros((len(v), n)) + v[:, None], None
    x, place = np.zeros((len(v), n)), -1 if name == "finite_log_gap" else 0
    x[:, place] = -v if place else v
    return x, place


def brute(name, op, variant, fmt, n, summation="numpy", axes=PLAIN):
    """Which of the numbers hold: all rows at once, and zeros by the certified truth of one row, the same for all but logsumexp."""
    x, place = rows(name, fmt, n)
    k = Arithmetic(FORMATS[fmt], summation, axes=axes)
    column = (place or 0) % n
    unit = np.tile(np.arange(n) == column, (len(x), 1))
    more = {"targets": np.full(len(x), column), "grad_output": unit.astype(k.fmt.dtype)}
    more = {name: more[name] for name in ops.OPS[op].tensors}
    values = widen(k.deliver(find(op, variant).run(x.astype(k.fmt.dtype), *more.values(), k))).reshape(len(x), -1)
    one = Problem(op, np.zeros((1, n)), **{name: array[:1] for name, array in more.items()})
    zero = widen(engine.certify(one, k.output_format.name).rounded).reshape(1, -1) == 0
    if place is not None:
        values = values[:, [place]] if values.shape[1] > 1 else values
    good = np.isfinite(values)
    if name in ("equal_logits_up", "equal_logits_down") and op != "logsumexp":
        good &= (values != 0) | zero
    elif name == "zero_loss_gap" or (name == "finite_log_gap" and op == "softmax"):
        good &= values != 0
    return good.all(axis=1)


def agrees(row, good, fmt):
    """The limit tells exactly what the brute force found."""
    v = numbers(fmt)
    if row.name in EQUAL:
        middle = len(v) - 1
        v = np.concatenate((-v[:0:-1], v))
        anchor = min(np.flatnonzero(good), key=lambda at: abs(at - middle), default=middle)
        v, good = (v[anchor::-1], good[anchor::-1]) if row.name == "equal_logits_down" else (v[anchor:], good[anchor:])
    last = len(good) - 1 if good.all() else int(np.argmin(good)) - 1
    assert row.value == (v[last] if 0 <= last < len(good) - 1 else None)
    assert row.next == (v[last + 1] if last < len(good) - 1 else None)
    assert row.sharp == (not good[last + 1 :].any())
    assert row.search == "exhaustive"


def as_brute_force_says(key, fmt, n, summation):
    op, variant = key.split("/")
    for row in thresholds(op, variant, fmt, n, summation).limits:
        if row.name != "ones":
            agrees(row, brute(row.name, op, variant, fmt, n, summation), fmt)


@pytest.mark.parametrize("key", list(VARIANTS))
def test_every_variant_in_8_bits_is_as_brute_force_says(key):
    as_brute_force_says(key, "float8_e5m2", 5, "sequential")


@pytest.mark.soak
@pytest.mark.parametrize(("n", "summation"), [(1, "numpy"), (2, "pairwise"), (7, "sequential"), (40, "warp")])
@pytest.mark.parametrize("fmt", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("key", list(VARIANTS))
def test_every_variant_in_8_bits_is_as_brute_force_says_for_more_rows(key, fmt, n, summation):
    as_brute_force_says(key, fmt, n, summation)


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("op", "variant", "fmt", "n", "summation", "name"),
    [
        ("softmax", "naive", "float16", 3, "sequential", "equal_logits_up"),
        ("softmax", "two_pass", "bfloat16", 2, "numpy", "equal_logits_down"),
        ("log_softmax", "naive", "float16", 2, "numpy", "zero_loss_gap"),
        ("cross_entropy", "log_of_softmax", "bfloat16", 5, "kahan", "finite_log_gap"),
    ],
)
def test_variants_in_16_bits_are_as_brute_force_says(op, variant, fmt, n, summation, name):
    agrees(limit(name, op, variant, fmt, n, summation), brute(name, op, variant, fmt, n, summation), fmt)


@pytest.mark.no_cover
@pytest.mark.parametrize("axes", [Axes(exp="exp2", fma=True), Axes(subnormals="flush"), Axes(accumulator="float32")], ids=str)
def test_axes_are_obeyed(axes):
    found = limit("equal_logits_up", "softmax", "naive", "float8_e5m2", 4, axes=axes)
    agrees(found, brute("equal_logits_up", "softmax", "naive", "float8_e5m2", 4, axes=axes), "float8_e5m2")


def test_what_saturates_is_always_finite():
    saturates = Axes(overflow="saturate")
    assert limit("finite_logits", "softmax", "naive", "float8_e4m3fn", axes=Axes()).next == 5.5
    assert limit("finite_logits", "softmax", "naive", "float8_e4m3fn", axes=saturates).next is None


@pytest.mark.parametrize(("fmt", "output", "most"), [("float32", "float16", 65504.0), ("bfloat16", "float16", 65280.0)])
def test_logits_whose_exact_result_the_output_format_cannot_hold_are_not_asked(fmt, output, most):
    found = limit("finite_logits", "logsumexp", "shifted", fmt, axes=Axes(output_format=output))
    assert (found.value, found.next) == (None, None)
    assert found.beyond == f"it holds for every number of {fmt} up to {most:g}"


def test_a_gap_that_the_output_format_rounds_away_counts():
    narrow = Axes(output_format="float8_e4m3fn")
    assert limit("finite_log_gap", "softmax", "shifted", "float32", axes=narrow).value < 7
    assert limit("finite_log_gap", "log_softmax", "shifted", "float32", axes=narrow).next is None


@pytest.mark.parametrize(
    ("variant", "fmt", "too"),
    [
        ("fused", "float64", False),
        ("log1p_of_others", "float32", True),
        ("split", "float32", False),
    ],
)
def test_a_loss_that_is_0_is_told_to_be_right_where_it_is(variant, fmt, too):
    row = limit("zero_loss_gap", "cross_entropy", variant, fmt)
    assert (row.kind, "the exact one rounds to 0 too" in row.beyond) == ("zero", too)
    at = Problem("cross_entropy", np.array([[row.next, 0.0]]), np.array([0]))
    assert (engine.certify(at, fmt).rounded == 0) == too


# ---- searching -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "variant", "fmt"),
    [("softmax", "naive", "float16"), ("cross_entropy", "fused", "bfloat16"), ("softmax", "chosen_shift(c=7)", "float16")],
)
def test_bisection_finds_what_exhaustion_finds(op, variant, fmt, monkeypatch):
    exhausted = [ends(row) for row in thresholds(op, variant, fmt).limits[:-1]]
    monkeypatch.setattr(limits, "BUDGET", 30000)
    searched = thresholds(op, variant, fmt).limits[:-1]
    assert [ends(row) for row in searched] == exhausted
    assert {row.search for row in searched} == {"bisection"}


def test_where_it_comes_and_goes_the_answer_says_so():
    for fmt in ("float16", "float32"):
        row = limit("zero_loss_gap", "log_softmax", "naive", fmt)
        assert not row.sharp
        assert "not so for all that lies beyond" in row.beyond
        assert ("more may fail before it" in row.beyond) == (fmt == "float32")
    assert ends(limit("zero_loss_gap", "log_softmax", "naive", "float16")) == (6.1171875, 6.12109375)


def test_a_limit_moves_down_to_the_first_failure_among_its_neighbours():
    holes = {40, 47}

    def holds(points):
        return np.array([point <= 50 and point not in holes for point in points.tolist()])

    assert limits._section(holds, 48, 100, 3) == 50
    found = limits._confirmed(holds, 50, 100, 8, [])
    assert (found.last, found.again) == (39, 50)
    far = limits._searched(holds, 100, 9, 1)
    assert far.search == "bisection"


def test_a_search_ends_where_failures_never_do():
    found = limits._confirmed(lambda points: points % 2 == 0, 400, 1000, 3, [])
    assert found.last < 400
    assert found.again > found.last


def test_a_search_may_find_that_nothing_fails_and_that_the_first_does():
    assert limits._searched(lambda points: points >= 0, 10**6, 30, 5).last == 10**6 - 1
    found = limits._searched(lambda points: points < 0, 10**6, 30, 5)
    assert (found.last, found.again) == (-1, None)


def test_the_budget_is_kept_for_long_rows_and_the_answer_says_how_many_were_tried():
    row = limit("equal_logits_up", "softmax", "naive", "float32", 1 << 18)
    assert row.search == "bisection"
    assert 2 <= row.checked < 2000
    assert ends(row) == (76.24618530273438, 76.2461929321289)
    assert Fraction(row.next) - Fraction(row.value) == Fraction(1, 2**17)


# ---- sums of ones ----------------------------------------------------------------------------------------------------


def stall(fmt, summation, most):
    """The first count at which twice as many ones but one give the same sum, or the sum is not finite; sums one at a time."""
    k = Arithmetic(FORMATS[fmt], summation)
    sums = [0.0] + [float(widen(k.sum(np.ones(n, k.fmt.dtype)))) for n in range(1, 2 * most)]
    return next((n for n in range(1, most) if not np.isfinite(sums[n]) or (n > 1 and sums[n - 1] == sums[2 * n - 2])), None)


def test_ones_that_never_stall_are_told(monkeypatch):
    monkeypatch.setattr(limits, "LONGEST", 1 << 13)
    row = limit("ones", "softmax", "shifted", "float16", summation="pairwise")
    assert (row.value, row.next, row.sharp) == (None, None, True)
    assert row.beyond.startswith(f"it holds for every count up to {limits._FEW} and for powers of two up to 8192")


@pytest.mark.half
@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("summation", "fmt"),
    [
        *itertools.product(SUMMATIONS, ["float8_e4m3fn", "float8_e5m2"]),
        *itertools.product(["numpy", "warp", "kahan"], ["bfloat16"]),
    ],
)
def test_ones_stall_or_overflow_where_brute_force_says(summation, fmt):
    row = limit("ones", "softmax", "shifted", fmt, summation=summation)
    most = min(300, int(row.next or 300)) + 1
    assert stall(fmt, summation, most) == (row.next if row.next and row.next < most else None)


def test_a_float16_sum_of_ones_stalls_at_2048_in_order_and_overflows_as_numpy_adds_it():
    row = limit("ones", "softmax", "shifted", "float16", summation="sequential")
    assert (row.value, row.next, row.result, row.kind, row.checked) == (2048, 2049, 2048, "stalled", 2000)
    row = limit("ones", "softmax", "shifted", "float16")
    assert (row.value, row.next, row.kind, row.result) == (65519, 65520, "infinite", np.inf)
    assert limit("ones", "softmax", "online", "float16").value == 2048
    assert limit("ones", "softmax", "shifted", "float8_e4m3fn", summation="pairwise").kind == "nan"


def test_integers_that_the_accumulator_holds_are_added_exactly():
    row = limit("ones", "softmax", "shifted", "float32", summation="sequential")
    assert (row.value, row.next, row.search) == (None, None, "theorem")
    assert (np.cumsum(np.ones(2 * limits.LONGEST, np.float32)) == np.arange(1, 2 * limits.LONGEST + 1)).all()
    row = limit("ones", "softmax", "shifted", "bfloat16", summation="sequential", axes=Axes(accumulator="float32"))
    assert row.search == "theorem"
    row = limit("ones", "softmax", "shifted", "float16", summation="sequential", axes=Axes(accumulator="float32"))
    assert ends(row) == (65519, 65520)


def test_what_adds_nothing_has_no_sum_of_ones():
    assert "ones" not in [row.name for row in thresholds("logsumexp", "logaddexp", "float16").limits]


def test_a_stall_that_is_left_again_is_told():
    found = limits._Found(4, "bisection", 9, 20)
    row = limits._ones_told(found, lambda counts: np.minimum(counts, 5.0))
    assert not row.sharp
    assert row.beyond.endswith("not so for all that lies beyond: 21 does well again")


# ---- what is asked ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, -1, (1 << 20) + 1, 10**400, True, 2.5])
def test_a_length_out_of_range_is_named(n):
    for ask in (thresholds, estimate_thresholds):
        with pytest.raises(InvalidProblem, match=r"^n is .*; a row has 1 to 1048576 logits here$"):
            ask("softmax", "naive", "float16", n)


def test_a_jacobian_too_wide_is_refused():
    with pytest.raises(InvalidProblem, match="n is 4096, and the softmax_jacobian of such a row has 16777216 elements"):
        thresholds("softmax_jacobian", "naive", "float32", 4096)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("max", "naive", "float16"), "unknown op 'max'"),
        (("softmax", "best", "float16"), "unknown variant 'best'"),
        (("softmax", "naive", "fp8"), "ambiguous"),
        (("softmax", "naive", "float16", 2, "by hand"), "unknown summation"),
    ],
)
def test_unknown_names_are_named(asked, message):
    with pytest.raises(UnknownName, match=message):
        thresholds(*asked)


@pytest.mark.parametrize("c", ["nan", "1e400", "inf"])
def test_a_parameter_that_is_no_number_of_its_range_is_refused(c):
    with pytest.raises(InvalidProblem, match=r"^c is "):
        thresholds("softmax", f"chosen_shift(c={c})", "float16")


@pytest.mark.half
@pytest.mark.parametrize("c", [1e300, -1e300, 70000, -70000])
@pytest.mark.parametrize("fmt", ["float16", "float32"])
def test_a_constant_for_which_nothing_holds_is_told_too(c, fmt):
    if fmt == "float16" or abs(c) > 1e5:
        row = limit("equal_logits_up", "softmax", f"chosen_shift(c={c})", fmt)
        assert (row.value, row.next, row.kind) == (None, 0.0, "nan")


def test_the_answer_is_plain_data():
    found = thresholds("softmax", "softmax/chosen_shift(c=-10)", "HALF", 3)
    plain = engine.encode(found)
    assert (plain["variant"], plain["format"], plain["n"]) == ("chosen_shift", "float16", 3)
    assert plain["arithmetic"]["overflow"] == "infinity"
    assert [row["name"] for row in plain["limits"]] == [name for name in QUESTIONS if name != "zero_loss_gap"]
    assert plain["limits"][1]["result"] == "NaN"


def test_small_tiles_and_many_parts_take_long():
    for name in ("lazy_rescale(tile={})", "tiled(tile={})", "split_merge(parts={})"):
        few, many = (1000, 1) if "tile" in name else (1, 1000)
        quick, slow = (estimate_thresholds("softmax", name.format(size), "float32", 1000) for size in (few, many))
        assert slow > 1.5 * quick


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_limits_and_an_estimate_of_their_time(op):
    for row in of_op(op):
        assert 0 < estimate_thresholds(op, row.name, "float16", 2) < estimate_thresholds(op, row.name, "float16", 1000) < 200
    for one in thresholds(op, of_op(op)[0].name, "float8_e5m2").limits:
        assert one.name in QUESTIONS
        assert one.beyond


@pytest.mark.no_cover
def test_a_long_row_is_tried_often_and_said_not_to_be_tried_throughout():
    # 2 tries had told 42752 for a sharp limit
    row = limit("equal_logits_up", "softmax", "two_pass", "bfloat16", 20000, axes=Axes(accumulator="float32"))
    assert (row.value, row.next, row.sharp) == (11584.0, 11648.0, False)
    assert row.checked >= 2 * limits.LEAST
    assert "a smaller one may fail" in row.beyond


@pytest.mark.parametrize("c", [800, -1000, 1e300])
def test_an_anchor_far_from_0_has_more_points_on_its_side_than_an_int64(c):
    for row in thresholds("softmax", f"chosen_shift(c={c!r})", "float64", 2).limits[:3]:
        assert row.value is None or abs(row.value + c) < 800 or row.value == -c
