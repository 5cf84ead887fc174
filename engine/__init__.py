"""Pure numerics: softmax and cross-entropy measured against certified truth. No HTTP, no files, no clock, no logging."""

from __future__ import annotations

from engine.codec import catalogue, encode, tensor
from engine.compare import FIGURES, STATUSES, USUAL, Change, Compared, Entry, Rules, compare
from engine.compare import figures as figures_of
from engine.compare import verdict as verdict_of
from engine.errors import Disagreement, EngineError, InvalidParam, InvalidProblem, Undecided, UnknownName
from engine.formats import FORMATS, Format, round_array
from engine.formats import find as find_format
from engine.inputs import generate
from engine.limits import estimate_thresholds, thresholds
from engine.model import (
    NO_PARAMS,
    Allowance,
    Axes,
    Evaluation,
    Experiment,
    Gate,
    Measured,
    Outcome,
    Params,
    Problem,
    Sample,
    Thresholds,
    TruthAnswer,
    Verdict,
    Worst,
)
from engine.ops import output_shape
from engine.outcome import SCHEMA, VERSION, certify, digest, estimate, estimate_truth, evaluate, fingerprint, measure, run_variant
from engine.paper import bhh
from engine.policies import BOUND_PARAMETERS, check_gate
from engine.repro import SECONDS as MINIMISE_SECONDS
from engine.repro import Case, Repro, minimise
from engine.tolerances import estimate_tolerance, tolerance
from engine.variants import name_of as variant_name
from engine.variants import names_of as variant_names
from engine.verdict import estimate_verdict, verify

__all__ = [
    "BOUND_PARAMETERS",
    "FIGURES",
    "FORMATS",
    "MINIMISE_SECONDS",
    "NO_PARAMS",
    "SCHEMA",
    "STATUSES",
    "USUAL",
    "VERSION",
    "Allowance",
    "Axes",
    "Case",
    "Change",
    "Compared",
    "Disagreement",
    "EngineError",
    "Entry",
    "Evaluation",
    "Experiment",
    "Format",
    "Gate",
    "InvalidParam",
    "InvalidProblem",
    "Measured",
    "Outcome",
    "Params",
    "Problem",
    "Repro",
    "Rules",
    "Sample",
    "Thresholds",
    "TruthAnswer",
    "Undecided",
    "UnknownName",
    "Verdict",
    "Worst",
    "bhh",
    "catalogue",
    "certify",
    "check_gate",
    "compare",
    "digest",
    "encode",
    "estimate",
    "estimate_thresholds",
    "estimate_tolerance",
    "estimate_truth",
    "estimate_verdict",
    "evaluate",
    "figures_of",
    "find_format",
    "fingerprint",
    "generate",
    "measure",
    "minimise",
    "output_shape",
    "round_array",
    "run_variant",
    "tensor",
    "thresholds",
    "tolerance",
    "variant_name",
    "variant_names",
    "verdict_of",
    "verify",
]
