"""One output against its truth, element by element: what every element is, and its errors as intervals of integers.

An error is an interval in units of 2^-W ulp. Where a figure needs more, the truth behind it is refined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from heapq import nlargest
from math import ceil, floor, frexp, inf, ldexp

import numpy as np

from engine import formats
from engine.bounds import CONDITIONED, Allowed, Conditioned, Tolerance, allowed, rule, stable
from engine.errors import InvalidProblem, Undecided
from engine.figures import MAXIMUM_BITS, MEAN_BITS, TIE_BITS, ULP_STEP, Interval, absolute, bin_edge, fix
from engine.formats import FORMATS
from engine.model import Array, Bound
from engine.truth import FAST_BITS, MAX_PRECISION, Enclosure, StandIn, Truth, decimal, hull, outward

KEPT = 1 << 20
"""Bounds that are kept at least."""
SLACK = 24
"""W = bits - precision + SLACK: fine enough to keep the sticky stand-in of the truth (its unit is GUARD + 6 below)."""

Real = float | Fraction
Figure = Callable[[int, int, bool], Interval | None]
"""figure(index, bits, loose) of one element; None: infinite, or beyond binary64."""


@dataclass(frozen=True)
class _Kinds:
    """What every element is, as arrays over the flat output."""

    got: Array
    got_nan: Array
    want: Array
    want_nan: Array
    truth_infinite: Array
    truth_zero: Array
    mismatch: Array
    compared: Array
    normal: Array


class Cells:
    """Errors of single elements of an output, each by the cheapest tier of the truth that decides what is asked.

    output: array of truth.fmt, shape truth.shape. compared: the flat indices that are looked at; the figures over several
    elements are over these. allowances: their bounds; left out, those of an output of unknown making.
    """

    def __init__(self, output: Array, truth: Truth, compared: list[int], allowances: Allowances | None = None) -> None:
        self.truth = truth
        self.allowances = allowances or Allowances(truth, Tolerance((stable(truth.op.name, truth.fmt),)))
        self.fmt = truth.fmt
        self.output = output
        self.compared = compared
        self.bits = FAST_BITS[0]
        self.exact_bits = max(truth.bits, FAST_BITS[-1] + 1)
        self._base: dict[int, Interval] = {}
        self._loose: dict[int, Interval] = {}
        self.prepare(compared)

    def prepare(self, indices: Sequence[int]) -> None:
        """Take the truth of these elements to the fast tiers, all at once."""
        self.truth.prepare(indices)

    def finer(self, bits: int, what: str) -> tuple[int, int]:
        """The next precision, and by how much it grew; Undecided past the cap."""
        higher = next((offered for offered in (*FAST_BITS, self.exact_bits) if offered > bits), None)
        return more(bits, what) if higher is None else (higher, higher - bits)

    def ordinal(self, index: int) -> int:
        """Of the output."""
        return int(formats.ordinals(self.output.reshape(-1)[index : index + 1], self.fmt)[0])

    def normal(self, index: int) -> bool:
        """Whether R is a normal number."""
        want, _ = self.truth.decided(index)
        return want is not None and abs(want) >= self.fmt.normal_ordinal

    def ulp_exponent(self, index: int) -> int:
        """log2 of ulp(T)."""
        _, top = self.truth.decided(index)
        return formats.ulp_exponent(self.fmt.emin if top is None else top, self.fmt)

    def enclosure(self, index: int, bits: int) -> tuple[int, int, int]:
        """Of T, which is finite."""
        e = self.anything(index, bits)
        assert not isinstance(e, float)
        return e

    def anything(self, index: int, bits: int) -> Enclosure:
        """Of T, whatever it is."""
        return self.truth.cell(index, bits)

    def width(self, bits: int) -> int:
        return bits - self.fmt.precision + SLACK

    def _truth(self, index: int, bits: int, unit: int, loose: bool) -> Interval:
        """T in units of 2^unit. Unless loose, a T below one unit is replaced by a stand-in of its sign, as in truth.exact, and a T
        strictly between two units by one beside these, on the side of the coarser: what is decided lies on coarse ones.
        """
        e = self.enclosure(index, bits)
        lo, hi, exp = hull(e) if loose else e
        t_lo, t_hi = outward(lo, hi, exp, unit)
        if lo > 0 and not t_lo and not loose:
            return 1, max(t_hi, 2)
        if hi < 0 and not t_hi and not loose:
            return min(t_lo, -2), -1
        if loose or exp >= unit or t_hi - t_lo > 1 or not (t_lo << (unit - exp) < lo and hi < t_hi << (unit - exp)):
            return t_lo, t_hi
        aside = (t_lo % 4 == 0) - (t_hi % 4 == 0)
        return t_lo + aside, t_hi + aside

    def signed_ulp(self, index: int, bits: int, loose: bool = False) -> Interval:
        """(c - T) / ulp(T) in units of 2^-W; W = bits - precision + SLACK.

        Loose: a true enclosure, for sums and for comparing elements. Otherwise one that decides as the true value does.
        """
        if bits == self.bits and index in self._base:
            return self._loose.get(index, self._base[index]) if loose else self._base[index]
        got = self.ordinal(index)
        if abs(got) == self.fmt.infinity_ordinal:
            return 0, 0
        unit = self.ulp_exponent(index) - self.width(bits)
        man, exp = formats.exact(got, self.fmt)
        c_lo, c_hi = outward(man, man, exp, unit)
        # a stand-in decides as the truth does beside whole units, not beside an output finer than they are
        t_lo, t_hi = self._truth(index, bits, unit, loose or c_lo != c_hi)
        return c_lo - t_hi, c_hi - t_lo

    def _ulp(self, index: int, bits: int, loose: bool) -> Interval:
        return absolute(*self.signed_ulp(index, bits, loose))

    def _relative(self, index: int, bits: int, loose: bool) -> Interval | None:
        """|c - T| / |T| in units of 2^-(W + precision); None where it is infinite or beyond binary64."""
        got, e = self.ordinal(index), self.enclosure(index, bits)
        lo, hi, exp = hull(e) if loose else e
        places = self.width(bits) + self.fmt.precision
        if lo == hi == 0:
            return None if got else (0, 0)
        if got == 0:
            return 1 << places, 1 << places
        if abs(got) == self.fmt.infinity_ordinal:
            return 0, 0
        if lo < 0:
            lo, hi, got = -hi, -lo, -got
        man, unit = formats.exact(got, self.fmt)
        if man.bit_length() + unit - hi.bit_length() - exp > 1100:
            return None
        num, scale = (man << (unit - exp), 0) if unit >= exp else (man, exp - unit)
        near, far = absolute(num - (hi << scale), num - (lo << scale))
        return (near << places) // (hi << scale), -((-far << places) // (lo << scale))

    def absolute_error(self, index: int, bits: int, loose: bool) -> Interval:
        """|c - T| in units of 2^-W times the smallest subnormal."""
        shift = self.ulp_exponent(index) - self.subnormal_exponent
        lo, hi = self._ulp(index, bits, loose)
        return lo << shift, hi << shift

    @property
    def subnormal_exponent(self) -> int:
        """log2 of the smallest subnormal."""
        return self.fmt.emin - self.fmt.precision + 1

    @property
    def _ulp_unit(self) -> int:
        return -self.width(self.bits)

    @property
    def _relative_unit(self) -> int:
        return self._ulp_unit - self.fmt.precision

    # ---- maxima ----

    def _maximum(self, indices: Sequence[int], figure: Figure, exp: int) -> tuple[float, int]:
        """The largest figure fixed to 40 bits, and the first index that has it; `exp` is its unit at the base precision."""
        found = [(index, figure(index, self.bits, True)) for index in indices]
        best = max(inf if interval is None else interval[0] for _, interval in found)
        # all that may round to the same 40 bits as the largest, or to infinity as it does
        huge = 1 << (1023 - exp)
        least = huge if best >= huge else int(best) - (int(best) >> (MAXIMUM_BITS - 1))
        fixed = [(self._fixed(index, figure, exp), index) for index, interval in found if interval is None or interval[1] >= least]
        top = max(value for value, _ in fixed)
        return top, next(index for value, index in fixed if value == top)

    def _fixed(self, index: int, figure: Figure, exp: int, digits: int = MAXIMUM_BITS) -> float:
        """One element's figure to `digits` significant bits, refining its truth until both ends agree."""
        bits = self.bits
        while (interval := figure(index, bits, True)) is not None:
            if (fixed := fix(*interval, 1, exp, digits)) is not None:
                return fixed
            bits, grown = self.finer(bits, "an error")
            exp -= grown
        return inf

    def largest(self, name: str, indices: Sequence[int]) -> tuple[float, int]:
        """The largest figure ("ulp", "rel", "abs" or "bound") of some elements to 40 bits, and the first that has it."""
        self.prepare(indices)
        figure, exp = {
            "ulp": (self._ulp, self._ulp_unit),
            "rel": (self._relative, self._relative_unit),
            "abs": (self.absolute_error, self.subnormal_exponent + self._ulp_unit),
            "bound": (self._over_bound, self._relative_unit),
        }[name]
        return self._maximum(indices, figure, exp)

    def expected(self, index: int, digits: int) -> str:
        """T to so many significant digits, on which both ends of its enclosure agree.

        A truth that may be rational (where logits are equal) can be half-way between two decimals: within 2^-256 of itself from
        there it counts as half-way, and is rounded away from 0 as every decimal is.
        """
        bits = self.bits
        while True:
            e = self.anything(index, bits)
            if isinstance(e, float) or e[0] == e[1]:
                return decimal(e, digits)
            ends = {decimal(end, digits) for end in _ends(e)}
            if len(ends) == 1:
                return ends.pop()
            lo, hi, exp = hull(e)
            if (hi - lo) << TIE_BITS <= min(abs(lo), abs(hi)):
                return decimal((hi, hi, exp) if lo > 0 else (lo, lo, exp), digits)
            bits, _ = self.finer(bits, "a decimal")

    def max_ulp(self) -> tuple[float, int]:
        """The largest ULP error and its flat index."""
        return self.largest("ulp", self.compared)

    def ranked(self, count: int) -> list[int]:
        """Flat indices of the `count` largest ULP errors, equal to 40 bits being a tie that the first index wins; no exact ones."""
        bounds = [(i, *self._ulp(i, self.bits, True)) for i in self.compared]
        huge = 1 << (1024 - self._ulp_unit)  # all that are infinite are equal
        lows = nlargest(count, (min(lo, huge) for _, lo, _ in bounds))
        least = lows[-1] - (lows[-1] >> (MAXIMUM_BITS - 1)) if len(lows) == count > 0 else 0
        fixed = [(-self._fixed(i, self._ulp, self._ulp_unit), i) for i, _, hi in bounds if hi and hi >= least]
        return [i for figure, i in sorted(fixed)[:count] if figure]

    def max_rel(self, normal: bool) -> tuple[float, int] | None:
        """The largest relative error and its flat index, over all compared elements or over those with a normal R."""
        chosen = [i for i in self.compared if not normal or self.normal(i)]
        return self.largest("rel", chosen) if chosen else None

    def max_abs(self) -> float:
        """The largest absolute error."""
        return self.largest("abs", self.compared)[0]

    def ulp(self, index: int) -> float:
        """One element's ULP error to 20 significant bits."""
        return self._fixed(index, self._ulp, self._ulp_unit, MEAN_BITS)

    def rel(self, index: int) -> float:
        """One element's relative error to 20 significant bits."""
        return self._fixed(index, self._relative, self._relative_unit, MEAN_BITS)

    # ---- bounds ----

    def bound_of(self, index: int) -> float | None:
        """The declared algorithm's bound of one element; None where there is none, or no finite truth."""
        found = self.allowances.own(index)
        return None if found == inf or isinstance(self.anything(index, self.bits), float) else found

    def _over_bound(self, index: int, bits: int, loose: bool) -> Interval:
        """|c - T| over what its own tolerance leaves it, which is not infinite, in units of 2^-(W + precision)."""
        lo, hi = self._ulp(index, bits, loose)
        least, most = self._room(index, bits, 0)
        low, high = (Fraction(end << self.fmt.precision) / Fraction(room) for end, room in ((lo, most), (hi, least)))
        return floor(low * 2 ** self.width(bits)), ceil(high * 2 ** self.width(bits))

    def _room(self, index: int, bits: int, which: int, loose: bool = True) -> tuple[Real, Real]:
        """A tolerance, from the least to the most that it may be, in units of 2^-W ulp: T is known to so many bits."""
        tolerance, bound = self.allowances.chosen[which], self.allowances.bound(index, which)
        scale = self.width(bits) - self.ulp_exponent(index)
        reach = max(abs(frexp(bound)[1] + scale), frexp(tolerance.ulps)[1] + self.width(bits))
        ulps = tolerance.ulps / 2 if tolerance.outside and self._lower(index) else tolerance.ulps
        if reach < 1000 and not (tolerance.relative or tolerance.absolute):  # exact in binary64
            ulps = max(ldexp(bound, scale), ldexp(ulps, self.width(bits)))
            return ulps, ulps
        unit = Fraction(2) ** scale
        ulps = max(Fraction(bound) * unit, Fraction(ulps) * 2 ** self.width(bits))
        size = self._size(index, bits, loose) if tolerance.relative else (0, 0)
        shares = [Fraction(tolerance.relative) * end for end in size]
        flat = Fraction(tolerance.absolute) * unit
        least, most = (max(flat, share) if tolerance.larger else flat + share for share in shares)
        return max(ulps, least), max(ulps, most)

    def _lower(self, index: int) -> bool:
        """Whether the output is in a lower binade than the truth, with finer ulps."""
        binade = self.ulp_exponent(index) - self.subnormal_exponent  # from the lowest
        return binade > 0 and abs(self.ordinal(index)) < binade + 1 << self.fmt.precision - 1

    def exceeds(self, index: int) -> bool:
        """Whether the error of one compared element is beyond the tolerance by which it is judged."""
        allowed = self.allowances.chosen[1]
        if self.allowances.judge(index) == inf:
            return False
        if self.ordinal(index) == 0 and self._is_share(index, 1):  # the error is abs(T), however small
            return not self._is_zero(index) and (allowed.relative < 1 or (allowed.outside and allowed.relative == 1))
        return self._beyond(index, self._ulp, 1, allowed.outside)

    def vacuous(self, index: int, which: int = 0) -> bool:
        """Whether a tolerance of one compared element is as large as its truth, which is not 0, and not for want of a bound."""
        if self._is_zero(index) or self.allowances.bound(index, which) == inf:
            return False
        if self._is_share(index, which):
            return self.allowances.chosen[which].relative >= 1
        return not self._beyond(index, self._size, which, False)

    def _is_zero(self, index: int) -> bool:
        """Whether the truth is 0."""
        e = self.enclosure(index, self.bits)
        return e[0] == e[1] == 0

    def _is_share(self, index: int, which: int) -> bool:
        """Whether a tolerance is a share of the truth and nothing more."""
        tolerance = self.allowances.chosen[which]
        return not (tolerance.absolute or tolerance.ulps or self.allowances.bound(index, which))

    def short(self, index: int) -> bool:
        """Whether the tolerance by which a compared element is judged is below half an ulp, and its truth not 0."""
        some = self.allowances.judge(index) < inf and not self._is_zero(index)
        return some and self._beyond(index, self._half_ulp, 1, False)

    def _half_ulp(self, _index: int, bits: int, _loose: bool) -> Interval:
        """In units of 2^-W ulp."""
        half = 1 << self.width(bits) - 1
        return half, half

    def _size(self, index: int, bits: int, loose: bool) -> Interval:
        """|T| in units of 2^-W ulp."""
        return absolute(*self._truth(index, bits, self.ulp_exponent(index) - self.width(bits), loose))

    def _beyond(self, index: int, figure: Callable[[int, int, bool], Interval], which: int, outside: bool) -> bool:
        """Whether a figure in units of 2^-W ulp is larger than a tolerance. Within 2^-256 of it, relatively, it counts as equal,
        which is beyond where that is outside; but a stand-in of the truth says on which side it is."""
        bits = self.bits
        while True:
            lo, hi = figure(index, bits, True)
            least, most = self._room(index, bits, which)
            if (hi < least) or (hi == least and not outside):
                return False
            if lo > most or (lo >= most and outside):
                return True
            beside = isinstance(self.enclosure(index, bits), StandIn)
            if max(hi - Fraction(least), Fraction(most) - lo) * 2**TIE_BITS <= most or (beside and not most):
                if beside:
                    (lo, hi), (least, most) = figure(index, bits, False), self._room(index, bits, which, False)
                return lo > most or (outside and hi >= least)
            bits, _ = self.finer(bits, "a comparison with a tolerance")


@dataclass(frozen=True)
class Tolerated:
    """What the tolerance by which an output is judged says of its compared elements.

    beyond: elements beyond it; first: of them; unjudged: those without a bound; nonzero: those whose truth is not 0; vacuous:
    those of them whose tolerance is as large as they are; short: whether one of them has a tolerance below half an ulp.
    """

    beyond: int
    first: int | None
    unjudged: int
    nonzero: int
    vacuous: int
    short: bool


class Allowances:
    """The tolerances of single elements of an output, by rows: that of its own algorithm, and the one by which it is judged."""

    def __init__(self, truth: Truth, own: Tolerance, judge: Tolerance | None = None) -> None:
        self.chosen = own, judge or own
        self._unknown = [tolerance.unknown for tolerance in self.chosen]
        self._truth = truth
        self._rows: dict[int, list[Array]] = {}

    def own(self, index: int) -> float:
        """The bound of the declared algorithm; infinite: none."""
        return self.bound(index, 0)

    def judge(self, index: int) -> float:
        """The bound in the tolerance by which is judged; infinite: none."""
        return self.bound(index, 1)

    def bound(self, index: int, which: int) -> float:
        """The part of a tolerance that is a bound; infinite: none."""
        if self._unknown[which]:
            return inf
        row, column = divmod(index, self._truth.width)
        if row not in self._rows:
            if len(self._rows) * self._truth.width > KEPT:
                self._rows.clear()
            self._rows[row] = allowed(self.chosen, self._truth.raw_logits[row], self._truth.companion(row), self._truth.width)
        return float(self._rows[row][which][column])

    def unrounded(self, row: int) -> Array:
        """The bounds of the declared algorithm's results in its own format; infinite: none."""
        own = self.chosen[0]
        if own.unknown:
            return np.full(self._truth.width, inf)
        whole = replace(own, declared=tuple(replace(k, output=k.format) for k in own.declared))
        return allowed((whole,), self._truth.raw_logits[row], self._truth.companion(row), self._truth.width)[0]

    def condition(self, row: int) -> Conditioned:
        """The condition number of a row; 0 where it has no truth, or none is defined."""
        chosen = self.chosen[1] if self.chosen[1].declared else self.chosen[0]
        if chosen.unknown:
            return 0.0, -row
        found = Allowed((chosen,), self._truth.raw_logits[row][None], self._truth.companion([row])).condition()
        return float(found[0]), -row

    def told(self, exceeded: int, unjudged: int, unbounded: int, vacuous: int, condition: Conditioned) -> Bound:
        """These figures with the words that go with them, where both tolerances are bounds."""
        own, judge = (tolerance.declared[0] for tolerance in self.chosen)
        u, name = max(FORMATS[k].unit_roundoff for k in (own.format, own.output)), judge.variant.split("/")[1]
        worst, row = (condition[0], -condition[1]) if self._truth.op.name in CONDITIONED and not judge.params else (None, None)
        return Bound(rule(own.variant, own.params), u, name, exceeded, unjudged, unbounded, vacuous, worst, row)

    def of(self, part: Truth) -> Allowances:
        """Of a problem of some of the rows."""
        return Allowances(part, *self.chosen)


class Measurement(Cells):
    """One output against its truth; figures are computed on first use.

    output: array of truth.fmt, shape truth.shape; allowances: as for Cells. Raises InvalidProblem for another dtype or shape.
    """

    def __init__(self, output: Array, truth: Truth, allowances: Allowances | None = None) -> None:
        if output.dtype != truth.fmt.dtype or output.shape != truth.shape:
            raise InvalidProblem(f"output is {output.dtype} {list(output.shape)}; it must be {truth.fmt.name} {list(truth.shape)}")
        self.truth = truth
        self.allowances = allowances or Allowances(truth, Tolerance((stable(truth.op.name, truth.fmt),)))
        self.fmt = truth.fmt
        self.bits = truth.bits
        self.output = np.ascontiguousarray(output)
        self.kinds = self._kinds()
        self.got: list[int] = self.kinds.got.tolist()
        self.compared: list[int] = np.flatnonzero(self.kinds.compared).tolist()
        self._base: dict[int, Interval] = {}
        loose = {index: self.signed_ulp(index, truth.bits, True) for index in self.compared}
        decisive = {index: self.signed_ulp(index, truth.bits) for index in self.compared if self._delicate(index)}
        self._base, self._loose = loose | decisive, {index: loose[index] for index in decisive}

    def _kinds(self) -> _Kinds:
        fmt, truth = self.fmt, self.truth
        resolved = [truth.resolved(row) for row in range(truth.rows)]
        found = [o for row in resolved for o in row.ordinals]
        want_nan = np.array([o is None for o in found], dtype=bool)
        want = np.array([0 if o is None else o for o in found], dtype=np.int64)
        special = np.array([isinstance(e, float) for row in resolved for e in row.enclosures], dtype=bool)
        zero = np.array([top is None for row in resolved for top in row.tops], dtype=bool) & ~special
        got = formats.ordinals(self.output, fmt).reshape(-1)
        got_nan = np.isnan(formats.widen(self.output.reshape(-1)))
        got_infinite = (np.abs(got) == fmt.infinity_ordinal) & ~got_nan
        truth_infinite = special & ~want_nan
        mismatch = (got_nan != want_nan) | (~got_nan & ~want_nan & (got != want) & (truth_infinite | got_infinite))
        return _Kinds(
            np.where(got_nan, 0, got), got_nan, want, want_nan, truth_infinite, zero, mismatch,
            ~(special | mismatch), (np.abs(want) >= fmt.normal_ordinal) & ~want_nan,
        )  # fmt: skip

    def prepare(self, indices: Sequence[int]) -> None:
        """Nothing: the rows are resolved."""

    def finer(self, bits: int, what: str) -> tuple[int, int]:
        return more(bits, what)

    def ordinal(self, index: int) -> int:
        return self.got[index]

    def normal(self, index: int) -> bool:
        return bool(self.kinds.normal[index])

    def ulp_exponent(self, index: int) -> int:
        row, column = divmod(index, self.truth.width)
        top = self.truth.resolved(row).tops[column]
        return formats.ulp_exponent(self.fmt.emin if top is None else top, self.fmt)

    def _delicate(self, index: int) -> bool:
        """Whether the loose enclosure of the error may differ from the decisive one."""
        e = self.enclosure(index, self.truth.bits)
        return isinstance(e, StandIn) or _top(e) < self.ulp_exponent(index) - self.width(self.truth.bits) + 2

    def anything(self, index: int, bits: int) -> Enclosure:
        row, column = divmod(index, self.truth.width)
        return self.truth.resolved(row).enclosures[column] if bits <= self.truth.bits else self.truth.row(row, bits)[column]

    # ---- means and percentiles ----

    def _refined(self, figure: Callable[[list[Interval], int], float | None], loose: bool) -> float:
        """figure(signed ULP errors of all compared elements, their unit) at the first precision that decides it."""
        bits = self.truth.bits
        while (value := figure([self.signed_ulp(i, bits, loose) for i in self.compared], -self.width(bits))) is None:
            bits, _ = more(bits, "a mean")
        return value

    def mean_ulp(self) -> float:
        """The mean ULP error."""
        return self._refined(lambda found, exp: _mean([absolute(lo, hi) for lo, hi in found], exp), loose=True)

    def bias_ulp(self) -> float:
        """The signed mean ULP error."""
        return self._refined(_mean, loose=True)

    def percentile_ulp(self, percent: int) -> float:
        """Nearest-rank percentile of the ULP errors, as the upper edge of its bin."""
        rank = -(-percent * len(self.compared) // 100) - 1

        def edge(found: list[Interval], exp: int) -> float | None:
            sizes = [absolute(lo, hi) for lo, hi in found]
            # hi > 0 only where c != T (an enclosure that is not a point holds no number of a format): then the bin is not 0
            low = sorted(max(lo, 1) if hi else 0 for lo, hi in sizes)[rank]
            upper = bin_edge(sorted(hi for _, hi in sizes)[rank], exp)
            return upper if bin_edge(low, exp) == upper else None

        return self._refined(edge, loose=False)

    # ---- bounds ----

    @cached_property
    def bounded(self) -> list[int]:
        """Flat indices of the compared elements whose output is finite: an infinity that is right is so by its rounding alone."""
        return [i for i in self.compared if abs(self.got[i]) < self.fmt.infinity_ordinal]

    @cached_property
    def beyond(self) -> list[int]:
        """Those beyond the tolerance by which it is judged."""
        return [i for i in self.bounded if self.exceeds(i)]

    def bound(self) -> Bound:
        """What the bounds say of it."""
        return self.allowances.told(
            len(self.beyond),
            unjudged=self.unjudged,
            unbounded=self.unbounded,
            vacuous=self.voids(0),
            condition=self.condition(),
        )

    def tolerated(self) -> Tolerated:
        """What the tolerance by which it is judged says."""
        return Tolerated(
            beyond=len(self.beyond),
            first=self.beyond[0] if self.beyond else None,
            unjudged=self.unjudged,
            nonzero=sum(not self.kinds.truth_zero[i] for i in self.compared),
            vacuous=self.voids(1),
            short=any(self.short(i) for i in self.bounded),
        )

    def voids(self, which: int) -> int:
        """Elements whose tolerance is as large as they are."""
        return sum(self.vacuous(i, which) for i in self.bounded)

    @property
    def specials(self) -> int:
        """Elements that are NaN or infinite where the truth is not, or the reverse."""
        return int(self.kinds.mismatch.sum())

    @cached_property
    def beside_overflow(self) -> int:
        """Those of a format without infinity that are right on either side: whether a truth so near to where overflow begins, which
        is NaN, rounds to the largest number, the bound of its own algorithm leaves open."""
        if self.fmt.overflow != "nan":
            return 0
        found = 0
        for row in np.unique(np.flatnonzero(self.kinds.mismatch) // self.truth.width).tolist():
            enclosures, bounds = self.truth.row(row, self.bits), self.allowances.unrounded(row)  # numbers also where they overflow
            for column in np.flatnonzero(self.kinds.mismatch[row * self.truth.width :][: self.truth.width]).tolist():
                found += self._is_beside_overflow(row * self.truth.width + column, enclosures[column], float(bounds[column]))
        return found

    def _is_beside_overflow(self, index: int, e: Enclosure, before: float) -> bool:
        """Whether T is no farther from there than a result may be off by before it is rounded to the output's format."""
        if isinstance(e, float) or before == inf:
            return False
        lo, hi, exp = hull(e)
        got = formats.widen(self.output.reshape(-1)[index : index + 1])[0]
        if not np.isnan(got) and got != (self.fmt.largest if lo > 0 else -self.fmt.largest):
            return False
        size = Fraction(max(abs(lo), abs(hi))) * Fraction(2) ** exp
        edge = Fraction(self.fmt.largest) + Fraction(2) ** (self.fmt.emax - self.fmt.precision)
        return abs(size - edge) <= Fraction(before)

    @property
    def rounded(self) -> int:
        """Elements that are correctly rounded."""
        k = self.kinds
        return int((((k.got == k.want) & ~k.got_nan & ~k.want_nan) | (k.got_nan & k.want_nan)).sum())

    @property
    def unbounded(self) -> int:
        """Elements for which the declared algorithm has no bound."""
        return sum(self.allowances.own(i) == inf for i in self.bounded)

    @property
    def unjudged(self) -> int:
        """Elements that no bound judges."""
        return sum(self.allowances.judge(i) == inf for i in self.bounded)

    def condition(self) -> Conditioned:
        """The largest condition number of a row, and the row."""
        return max(map(self.allowances.condition, range(self.truth.rows)))

    def error_over_bound(self) -> float | None:
        """The largest error over its bound; None where no element has a bound."""
        chosen = [i for i in self.bounded if self.allowances.own(i) < inf]
        return self.largest("bound", chosen)[0] if chosen else None

    def row_slice(self, row: int) -> range:
        """Flat indices of one row of the output."""
        return range(row * self.truth.width, (row + 1) * self.truth.width)


def _mean(intervals: Sequence[Interval], exp: int) -> float | None:
    low, high = sum(lo for lo, _ in intervals), sum(hi for _, hi in intervals)
    return fix(low, high, len(intervals), exp, MEAN_BITS, ULP_STEP)


def _ends(e: tuple[int, int, int]) -> Iterator[tuple[int, int, int]]:
    """Both ends of an enclosure; where a stand-in begins at an exact number, a point just beside that, on the side of T."""
    lo, hi, exp = hull(e)
    inward = 1 << 64
    beside = (lo % 4 == 0, hi % 4 == 0) if isinstance(e, StandIn) else (False, False)
    yield lo * inward + beside[0], lo * inward + beside[0], exp - 64
    yield hi * inward - beside[1], hi * inward - beside[1], exp - 64


def _top(e: tuple[int, int, int]) -> int:
    return min(abs(e[0]), abs(e[1])).bit_length() + e[2]


def more(bits: int, what: str) -> tuple[int, int]:
    """Twice the precision, and by how much it grew; Undecided past the cap."""
    if bits >= MAX_PRECISION:
        raise Undecided(f"{what} is undecided at {bits} bits: it lies too close to a boundary of its rounding")
    finer = min(2 * bits, MAX_PRECISION)
    return finer, finer - bits
