"""Floating-point formats as rows, and the one place where an exact value is rounded to a format.

The only file that knows bit widths. Everything rests on the ordinal: the number of representable steps from zero,
negative below it, infinity being the one after the largest finite number. The ordinal of a non-negative number is its bit
pattern.

Overflow. A value is rounded as if the binades went on. What then lies beyond the largest finite number, and an infinity,
becomes an infinity; NaN in a format that has no infinity (float8_e4m3fn: 464, midway to the 480 that its NaN displaced,
is a tie and goes to the even 448, and all that is larger is NaN); the largest finite number of that sign in a saturating
row. Where a format has no infinity the ordinal of infinity is that of its NaN: there it stands for nothing but overflow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import ml_dtypes
import numpy as np

from engine.errors import InvalidProblem, UnknownName, quoted
from engine.model import Array
from engine.registry import Registry


@dataclass(frozen=True)
class Format:
    """A binary floating-point format with subnormals and NaN, and with infinities unless it says otherwise.

    precision: significand bits, hidden bit included. emin, emax: exponents of the smallest normal number 2^emin and
    of the top binade [2^emax, 2^(emax+1)). dtype: NumPy storage, little-endian in memory on every supported machine.
    exp_limit: the largest number of the format whose exponential rounds to a finite one. has_infinity: else the pattern
    after the largest finite number is NaN, and overflow gives NaN. saturating: overflow gives the largest finite number.
    """

    name: str
    precision: int
    emin: int
    emax: int
    dtype: np.dtype
    exp_limit: float
    aliases: tuple[str, ...] = ()
    has_infinity: bool = True
    saturating: bool = False

    @property
    def overflow(self) -> str:
        """What a value beyond the largest number becomes: "infinity", "nan" or "saturate"."""
        return "saturate" if self.saturating else "infinity" if self.has_infinity else "nan"

    @property
    def bits(self) -> int:
        """Storage width in bits."""
        return self.dtype.itemsize * 8

    @property
    def unit_roundoff(self) -> float:
        """u = 2^-precision."""
        return 2.0**-self.precision

    @property
    def largest(self) -> float:
        """The largest finite number."""
        man, exp = exact(self.infinity_ordinal - 1, self)
        return float(man * Fraction(2) ** exp)

    @property
    def smallest_normal(self) -> float:
        """2^emin."""
        return 2.0**self.emin

    @property
    def smallest_subnormal(self) -> float:
        """The distance between neighbours around zero, 2^(emin - precision + 1)."""
        return 2.0 ** (self.emin - self.precision + 1)

    @property
    def normal_ordinal(self) -> int:
        """Ordinal of the smallest normal number."""
        return 1 << (self.precision - 1)

    @property
    def infinity_ordinal(self) -> int:
        """Ordinal of infinity, or of the NaN in its place: one more than that of the largest finite number."""
        return ((self.emax - self.emin + 2) << (self.precision - 1)) - (not self.has_infinity)

    @property
    def overflow_ordinal(self) -> int:
        """Ordinal that what overflows is rounded to: infinity's, or that of the largest finite number."""
        return self.infinity_ordinal - self.saturating


FORMATS: Registry[Format] = Registry("format")
for _row in (
    Format("float16", 11, -14, 15, np.dtype(np.float16), float.fromhex("0x1.62cp+3"), ("fp16", "f16", "half")),
    Format("bfloat16", 8, -126, 127, np.dtype(ml_dtypes.bfloat16), float.fromhex("0x1.62p+6"), ("bf16",)),
    Format("float32", 24, -126, 127, np.dtype(np.float32), float.fromhex("0x1.62e42ep+6"), ("fp32", "f32", "single")),
    Format("float64", 53, -1022, 1023, np.dtype(np.float64), float.fromhex("0x1.62e42fefa39efp+9"), ("fp64", "f64", "double")),
    # OCP 8-bit Floating Point Specification (OFP8), revision 1.0: E4M3 has no infinity and one NaN of each sign.
    Format(
        "float8_e4m3fn", 4, -6, 8, np.dtype(ml_dtypes.float8_e4m3fn), 6.0, ("f8_e4m3fn", "f8_e4m3", "e4m3fn"), has_infinity=False
    ),
    Format("float8_e5m2", 3, -14, 15, np.dtype(ml_dtypes.float8_e5m2), 10.0, ("f8_e5m2", "fp8_e5m2", "e5m2")),
):
    FORMATS.add(_row.name, _row)

IEEE = ("float16", "float32", "float64")
BLOCK = 1 << 14
"""Elements of a large tensor that are worked on together, so that no copy of it is made beside what is asked for."""
AMBIGUOUS = ("fp8", "f8", "float8", "e4m3", "fp8_e4m3", "float8_e4m3")
_ALIASES = {alias: row.name for row in FORMATS.values() for alias in row.aliases}


def find(name: str) -> Format:
    """The format of that name or alias, in any case. Raises UnknownName, saying what exists or what is ambiguous."""
    key = name.lower()
    if key in AMBIGUOUS:
        raise UnknownName(f"format {quoted(name)} is ambiguous; known 8-bit formats: float8_e4m3fn, float8_e5m2")
    return FORMATS[_ALIASES.get(key, key)]


def of(array: Array) -> Format:
    """The format an array is stored in. Raises InvalidProblem for any other dtype."""
    for row in FORMATS.values():
        if row.dtype == array.dtype:
            return row
    raise InvalidProblem(f"dtype {array.dtype} is no format; known: {', '.join(FORMATS)}")


def saturated(fmt: Format) -> Format:
    """The same format, saturating. Raises InvalidProblem where that is not defined: it is for the 8-bit formats (OFP8)."""
    if fmt.bits > 8:
        raise InvalidProblem(f"{fmt.name} does not saturate: overflow can saturate in float8_e4m3fn and float8_e5m2 only")
    return replace(fmt, saturating=True)


def round_ordinal(man: int, exp: int, fmt: Format) -> int:
    """Ordinal of man * 2^exp rounded to nearest, ties to even, once (IEEE 754 4.3.1); overflow goes to overflow_ordinal."""
    if man == 0:
        return 0
    size = abs(man)
    top = max(size.bit_length() + exp - 1, fmt.emin)
    if top > fmt.emax + 1:
        steps = fmt.overflow_ordinal
    else:
        shift = exp - (top - fmt.precision + 1)
        kept = size << shift if shift >= 0 else _shift_even(size, -shift)
        steps = min(((top - fmt.emin) << (fmt.precision - 1)) + kept, fmt.overflow_ordinal)
    return steps if man > 0 else -steps


def round_between(lo: int, hi: int, exp: int, fmt: Format) -> tuple[int, int] | None:
    """(ordinal of RN(t), floor(log2|t|)) of a t strictly between lo * 2^exp and hi * 2^exp; None where the ends disagree.

    lo < hi are not 0 and of one sign. Rounding half up serves both ends: beyond a tie at the near end t is above it, and
    a tie at the far end only makes the ends disagree.
    """
    near, far = (lo, hi) if lo > 0 else (-hi, -lo)
    size = near.bit_length()
    if size != far.bit_length():
        return None
    top = size + exp - 1
    binade = max(top, fmt.emin)
    shift = binade - fmt.precision + 1 - exp
    if shift > size + 1:
        return 0, top  # below half of the smallest subnormal; 2^shift may be too large to write down
    if shift < 1 or binade > fmt.emax:
        ordinal = round_ordinal(lo, exp, fmt)
        return (ordinal, top) if ordinal == round_ordinal(hi, exp, fmt) else None
    half = 1 << (shift - 1)
    kept = (near + half) >> shift
    if kept != (far + half) >> shift:
        return None
    steps = min(((binade - fmt.emin) << (fmt.precision - 1)) + kept, fmt.overflow_ordinal)
    return (steps if lo > 0 else -steps), top


def _shift_even(size: int, shift: int) -> int:
    """size / 2^shift rounded to the nearest integer, ties to even; size >= 0."""
    if shift > size.bit_length():
        return 0
    kept = size >> shift
    rest = size - (kept << shift)
    half = 1 << (shift - 1)
    return kept + (rest > half or (rest == half and kept & 1))


def exact(ordinal: int, fmt: Format) -> tuple[int, int]:
    """The finite number of that ordinal as integers (man, exp): its value is man * 2^exp."""
    size = abs(ordinal)
    binade = max((size >> (fmt.precision - 1)) - 1, 0)
    man = size - (binade << (fmt.precision - 1))
    return (man if ordinal >= 0 else -man), fmt.emin - fmt.precision + 1 + binade


def ordinals(array: Array, fmt: Format) -> Array:
    """Ordinals of the elements as int64, same shape. NaN has none: its entry is not finite; mask it first."""
    stored = np.ascontiguousarray(array, dtype=fmt.dtype)
    bits = stored.view(f"i{fmt.dtype.itemsize}").astype(np.int64)
    size = bits & ((1 << (fmt.bits - 1)) - 1)
    return np.where(bits < 0, -size, size)


def from_ordinals(values: Array, fmt: Format) -> Array:
    """The inverse of ordinals: int64 ordinals to an array of the format, zeros positive; where there is no infinity, NaN."""
    sign = np.where(values < 0, np.int64(-1) << (fmt.bits - 1), np.int64(0))
    bits = (np.abs(values) | sign).astype(f"i{fmt.dtype.itemsize}")
    return bits.view(fmt.dtype)


def ulp_exponent(top: int, fmt: Format) -> int:
    """log2 of ulp(T) for a T in the binade [2^top, 2^(top+1)), clamped to the format's binades."""
    return min(max(top, fmt.emin), fmt.emax) - fmt.precision + 1


def widen(values: Array) -> Array:
    """The same numbers in float64, which holds every format; a signalling NaN becomes a quiet one, without a warning."""
    with np.errstate(invalid="ignore"):
        return np.asarray(values).astype(np.float64)


def round_array(values: Array, fmt: Format) -> Array:
    """Round to a format, to nearest even, once, whatever the input's format (all embed exactly in float64).

    Returns a new array of fmt.dtype, same shape. Casts are not used to round: ml_dtypes takes float64 to bfloat16 and to the
    8-bit formats through float32 and so rounds twice (1 + 2^-8 + 2^-40 becomes 1).
    """
    given = np.asarray(values)
    if fmt.dtype == np.float64:
        return widen(given)
    kinds = (given.dtype, fmt.dtype)
    with np.nditer((given, None), ("external_loop", "buffered", "zerosize_ok"), op_dtypes=kinds, buffersize=BLOCK) as blocks:
        for block, rounded in blocks:
            rounded[...] = _rounded(widen(block), fmt)
        return blocks.operands[1]


def _rounded(wide: Array, fmt: Format) -> Array:
    """float64 values rounded to a format."""
    finite = np.isfinite(wide)
    beyond = {"infinity": np.inf, "nan": np.nan, "saturate": fmt.largest}[fmt.overflow]
    man, exp = np.frexp(np.where(finite, wide, 0.0))
    unit = np.maximum(exp - 1, fmt.emin) - fmt.precision + 1
    steps = np.rint(np.ldexp(man, exp - unit))
    with np.errstate(over="ignore"):
        rounded = np.ldexp(steps, unit)
    overflows = (np.abs(rounded) > fmt.largest) | np.isinf(wide)
    rounded = np.copysign(np.where(overflows, beyond, rounded), wide)
    return np.where(np.isnan(wide), wide, rounded).astype(fmt.dtype)


def infinity(sign: float, fmt: Format) -> int:
    """Ordinal that an infinity of that sign is rounded to."""
    return fmt.overflow_ordinal if sign > 0 else -fmt.overflow_ordinal


def is_nan(ordinal: int, fmt: Format) -> bool:
    """Whether a rounding that gave this ordinal gave NaN: an overflow in a format without infinity."""
    return not fmt.has_infinity and abs(ordinal) == fmt.infinity_ordinal
