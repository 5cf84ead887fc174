"""What there is to take home of a verdict: as JSON, the tensors in base64, and as files in a folder.

The tensors are one .safetensors file, of the names that the doors have, with what else is asked in its metadata: so the script is
the same for every case, and the file may be posted as it is.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

import engine
from service import client

TENSORS, SCRIPT, CASE = "repro.safetensors", "repro.py", "repro.json"
_LONGEST_HEADER = 2**16  # bytes in which a file of ours says so
_OURS = {TENSORS: b'{"__metadata__": {"softgauge": ', SCRIPT: b'"""A case of Softgauge: ', CASE: b'{\n "softgauge": '}
"""How the files begin, but for the length of its header with which a .safetensors file does."""

_TEXT = '''"""A case of Softgauge: {op}, {format} output, {verdict}. Asks for the verdict again, at SOFTGAUGE_URL or by itself."""
import contextlib, json, os, pathlib, softgauge

raw = pathlib.Path(__file__).with_name("{tensors}").read_bytes()
start = 8 + int.from_bytes(raw[:8], "little")
header = json.loads(raw[8:start])
asked = json.loads(header.pop("__metadata__")["softgauge"])
tensors = {{name: (raw[start:][slice(*t["data_offsets"])], t["dtype"], t["shape"]) for name, t in header.items()}}
{more}with contextlib.nullcontext() if os.environ.get("SOFTGAUGE_URL") else softgauge.serving() as url:
    print(softgauge.report(softgauge.assert_verdict(**asked, **tensors, url=url)))
'''
_OUTPUTS = 'asked["outputs"] = [tensors.pop(name) for name in sorted(tensors) if name.startswith("outputs.")]\n'
_PARAMS = 'asked["params"].update((name, tensors.pop(name)) for name in ("mask", "weights") if name in tensors)\n'


class NotOurs(Exception):
    """A file is in the way that no such case wrote, or the folder is none."""


def told(found: engine.Repro, verdict: engine.Verdict, include: Sequence[str] = (), largest: int | None = None) -> dict[str, Any]:
    """A case as JSON data. include: the invariants that were asked for. largest: bytes that its tensors have at most in base64."""
    case = found.case
    if case is None:
        return {"note": found.note, "judged": found.judged}
    answer: dict[str, Any] = {
        "note": found.note,
        "rows": _ranges(case.rows),
        "columns": _ranges(case.columns),
        "dropped": found.n - len(case.columns),
        "minimal": found.minimal,
        "judged": found.judged,
        "elements": engine.encode(found.elements),
    }
    tensors = _tensors(case)
    asked = _asked(case, verdict, include)
    stored = base64.b64encode(client.file_of(tensors, {"softgauge": json.dumps(asked, allow_nan=False)})).decode()
    if largest is not None and len(stored) > largest:
        way_out = "`softgauge verify --repro` without --url writes them"
        answer["note"] += f"; its tensors have {len(stored)} bytes in base64, above max_body_bytes = {largest}: {way_out}"
        return answer
    return {**answer, "safetensors": stored, "script": script(case.problem, case.output, case.outputs, verdict.verdict)}


def script(
    problem: engine.Problem, output: np.ndarray[Any, Any], outputs: Sequence[np.ndarray[Any, Any]], verdict: str
) -> str:  # fmt: skip
    """That of any case of a problem: it reads the file beside it."""
    params = problem.params.mask is not None or problem.params.weights is not None
    more = _OUTPUTS * bool(outputs) + _PARAMS * params
    return _TEXT.format(op=problem.op, format=output.dtype, verdict=verdict, tensors=TENSORS, more=more)


def _ranges(numbers: np.ndarray[Any, Any]) -> list[list[int]]:
    """Ascending numbers as the first and the last of each run."""
    cuts = np.flatnonzero(np.diff(numbers) != 1) + 1
    return [[int(run[0]), int(run[-1])] for run in np.split(numbers, cuts)]


def _tensors(case: engine.Case) -> dict[str, Any]:
    """By the names that the doors have."""
    p = case.problem
    named = {
        "logits": p.logits, "output": case.output, "targets": p.targets, "grad_output": p.grad_output, "reference": case.reference,
        **{f"outputs.{i}": output for i, output in enumerate(case.outputs)}, "mask": p.params.mask, "weights": p.params.weights,
    }  # fmt: skip
    return {name: np.ascontiguousarray(tensor) for name, tensor in named.items() if tensor is not None}


def _asked(case: engine.Case, verdict: engine.Verdict, include: Sequence[str]) -> dict[str, Any]:
    """The other arguments of softgauge.assert_verdict."""
    params = {field.name: getattr(case.problem.params, field.name) for field in fields(engine.Params)}
    plain = {name: value for name, value in params.items() if not isinstance(value, np.ndarray)}
    return {
        "op": verdict.op,
        "expect": verdict.verdict,
        "gate": {"policy": verdict.gate.policy, **verdict.gate.parameters},
        "nonfinite": verdict.nonfinite,
        "include": list(include),
        "params": {name: value for name, value in plain.items() if value != getattr(engine.NO_PARAMS, name)},
    }


# ---- files -------------------------------------------------------------------------------------------------------------


def check(folder: Path) -> None:
    """Raise NotOurs where `write` would."""
    if folder.exists() and not folder.is_dir():
        raise NotOurs(f"{folder} is no folder; name another, or one that is to be made")
    for name in _OURS:
        path = folder / name
        if os.path.lexists(path) and not _is_ours(path):
            raise NotOurs(f"{path} is there and is no case of Softgauge, so it is not overwritten; name another folder")


def _is_ours(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(_LONGEST_HEADER)
    return head[8 if path.name == TENSORS else 0 :].startswith(_OURS[path.name])


def write(answer: Mapping[str, Any], script: str, folder: Path) -> list[str]:
    """What `told` gave as files in a folder, which is made if there is none; their names. A file is replaced whole or not at all.

    script: what another machine says of it is data, and no code of it is written. Raises NotOurs, and OSError.
    """
    if "safetensors" not in answer:
        return []
    check(folder)
    folder.mkdir(parents=True, exist_ok=True)
    told = {"softgauge": engine.VERSION, **{name: answer[name] for name in answer if name not in ("safetensors", "script")}}
    lines = [f' "{name}": {json.dumps(value, allow_nan=False)}' for name, value in told.items()]
    written = {
        TENSORS: base64.b64decode(answer["safetensors"]),
        SCRIPT: script.encode(),
        CASE: ("{\n" + ",\n".join(lines) + "\n}\n").encode(),
    }
    made = {}
    try:
        for name, data in written.items():
            made[name] = folder / f".{name}.{secrets.token_hex(8)}"
            with made[name].open("xb") as file:
                file.write(data)
        for name, path in made.items():
            os.replace(path, folder / name)
    finally:
        for path in made.values():
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
    return list(written)


def is_full(error: OSError) -> bool:
    """Whether there was no room, which is no fault of what was asked."""
    return error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO)
