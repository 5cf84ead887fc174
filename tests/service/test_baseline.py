"""The baseline file: what is written is what is read, hostile files are refused, and a file is never half-written."""

import contextlib
import errno
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import engine
from service import baseline
from service.baseline import Baseline, BaselineError, Move, changing, moved, read, text, write

ROOT = Path(__file__).parent.parent.parent
DIGEST = "sha256:" + "0" * 64
FIGURES = dict.fromkeys(engine.FIGURES, 0) | {"max_ulp": 1 / 3, "kl": math.inf, "rank_inversions": None, "max_rel": 5e-324}
ENTRY = engine.Entry(1, "numpy 2 AVX2", {"logits": DIGEST}, {"op": "softmax", "gate": {"policy": "bound"}}, DIGEST, "pass", FIGURES)
MOVE = Move("2026-01-02T03:04:05Z", "me", "why", ("a: new",))


def test_what_is_written_is_what_is_read(tmp_path):
    other = replace(ENTRY, fingerprint="other", verdict=None, figures=FIGURES | {"max_ulp": -0.0, "max_abs": math.nan})
    path = tmp_path / "b.json"
    write(path, Baseline({"b": (other, ENTRY), "a": (ENTRY,)}, (MOVE,)))
    found = read(path)
    assert repr(found.cases["b"]) == repr((ENTRY, other))
    assert found.moves == (MOVE,)
    assert list(json.loads(path.read_text())["cases"]) == ["a", "b"]
    assert text(found) == path.read_text()
    assert os.listdir(tmp_path) == ["b.json"]


def test_a_file_that_is_not_there_is_an_empty_baseline(tmp_path):
    assert read(tmp_path / "none.json") == Baseline({})


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "b.json")
    for path in (tmp_path / "b.json", tmp_path):
        with pytest.raises(BaselineError, match="is not a file; move it away"):
            read(path)


def test_a_small_change_is_a_small_difference():
    before = text(Baseline(dict.fromkeys("abc", (ENTRY,)))).splitlines()
    after = text(
        Baseline(dict.fromkeys("abc", (ENTRY,)) | {"b": (replace(ENTRY, figures=FIGURES | {"max_ulp": 2.0}),)})
    ).splitlines()
    assert len(before) == len(after)
    assert sum(old != new for old, new in zip(before, after, strict=True)) == 1


STORED = json.loads(text(Baseline({"a": (ENTRY,)}, (MOVE,))))


def test_integers_of_any_size_are_read_as_they_were_written(tmp_path):
    """A float64 that is 0 instead of 1 is 4607182418800017408 numbers off."""
    for size in (2**53, 2**53 + 1, 4607182418800017408, 2**63 - 1):
        entry = replace(ENTRY, figures=ENTRY.figures | {"max_ulp_ordinal": size})
        write(tmp_path / "b.json", Baseline({"a": (entry,)}))
        assert read(tmp_path / "b.json").cases["a"][0].figures["max_ulp_ordinal"] == size


def edited(**change):
    return {**STORED, "cases": {"a": [{**STORED["cases"]["a"][0], **change}]}}


@pytest.mark.parametrize(
    ("stored", "saying"),
    [
        (b"{", "is not JSON"),
        (b'{"format": 1, "format": 1}', "two members of the same name"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff", "is not UTF-8"),
        ([], "the whole: Input should be a valid dictionary"),
        (STORED | {"format": 2}, "is of format 2, this is a Softgauge of format 1: use a newer one"),
        (STORED | {"more": 1}, "'more': Extra inputs are not permitted"),
        (edited(output="md5:1"), "'output': String should match pattern"),
        (edited(verdict="perhaps"), "'verdict': Input should be 'pass', 'fail' or 'inconclusive'"),
        (edited(fingerprint="\x1b[2J"), "'fingerprint': String should match pattern"),
        (edited(fingerprint="x" * 501), "at most 500 characters"),
        (edited(figures={"max_ulp": "1.5"}), "'max_ulp'"),
        (edited(figures={"max_ulp": 3}), "'a' has no mean_ulp, p50_ulp, "),
        (edited(figures={**STORED["cases"]["a"][0]["figures"], "max_ulp": "0x1p+9999"}), "'a' has a figure beyond any float64"),
        (edited(figures={**STORED["cases"]["a"][0]["figures"], "special_mismatch": "NaN"}), "special_mismatch is nan; it counts"),
        (edited(figures={**STORED["cases"]["a"][0]["figures"], "overflow_count": -1}), "overflow_count is -1; it counts"),
        (edited(schema=-1), "'schema'"),
        ({**STORED, "cases": {"a": STORED["cases"]["a"] * 2}}, "'a' has two entries of one fingerprint"),
    ],
)
def test_a_file_that_is_none_is_refused_with_the_way_out(tmp_path, stored, saying):
    path = tmp_path / "b.json"
    path.write_bytes(stored if isinstance(stored, bytes) else json.dumps(stored).encode())
    with pytest.raises(BaselineError) as raised:
        read(path)
    assert saying in str(raised.value)
    assert "\x1b" not in str(raised.value)


def test_a_file_beyond_all_measure_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(baseline, "LARGEST", 100)
    path = tmp_path / "b.json"
    path.write_text(json.dumps(STORED))
    with pytest.raises(BaselineError, match="more than 100 bytes; split the suite"):
        read(path)


@given(st.binary(max_size=200), st.integers(0, 2000), st.integers(0, 20))
def test_no_bytes_raise_anything_else(tmp_path_factory, junk, start, length):
    whole = json.dumps(STORED).encode()
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    path.write_bytes(whole[:start] + junk + whole[start + length :])
    with contextlib.suppress(BaselineError):
        read(path)


def test_a_figure_that_is_not_known_here_is_left_out(tmp_path):
    path = tmp_path / "b.json"
    path.write_text(json.dumps(edited(figures={**STORED["cases"]["a"][0]["figures"], "of_the_future": 1})))
    assert read(path).cases["a"][0].figures == FIGURES


# ---- moving ----------------------------------------------------------------------------------------------------------


def test_an_entry_takes_the_place_of_that_of_its_fingerprint():
    other, old = replace(ENTRY, fingerprint="other"), replace(ENTRY, fingerprint="other", inputs={})
    new = replace(ENTRY, verdict="inconclusive")
    found = moved(Baseline({"a": (ENTRY, other), "b": (ENTRY, old), "c": (ENTRY,)}), {"a": new, "b": new}, ["c"], MOVE)
    assert {name: [row.fingerprint for row in rows] for name, rows in found.cases.items()} == {
        "a": ["other", ENTRY.fingerprint],
        "b": [ENTRY.fingerprint],  # the other is of another input, and so of no use any more
    }
    assert found.cases["a"][1].verdict == "inconclusive"
    assert found.moves == (MOVE,)


def test_the_last_hundred_moves_are_kept():
    found = Baseline({})
    for k in range(105):
        found = moved(found, {}, (), replace(MOVE, reason=str(k)))
    assert [found.moves[0].reason, found.moves[-1].reason, len(found.moves)] == ["5", "104", 100]


def test_no_room_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "b.json"
    write(path, Baseline({"a": (ENTRY,)}))
    before = path.read_bytes()

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(path, Baseline({}))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["b.json"]


@pytest.mark.parametrize(
    ("made", "saying"),
    [
        (Baseline({}, (replace(MOVE, reason="x" * 501),)), "could not be read again, and the file is as it was: b.json: 'moves'"),
        (Baseline({"a": (replace(ENTRY, asked={"gate": float("nan")}),)}), "a setting of a case cannot be stored"),
        (Baseline({"a": (replace(ENTRY, asked={"gate": "\ud800"}),)}), "a setting of a case cannot be stored"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path, made, saying):
    path = tmp_path / "b.json"
    write(path, Baseline({"a": (ENTRY,)}))
    before = path.read_bytes()
    with pytest.raises(BaselineError, match=saying):
        write(path, made)
    assert path.read_bytes() == before


def _add(path, name):
    with changing(path):
        found = read(path)
        time.sleep(0.01)
        write(path, moved(found, {name: ENTRY}, (), MOVE))


def test_two_at_once_lose_nothing(tmp_path):
    path = tmp_path / "new" / "b.json"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add, args=(path, f"case {k}")) for k in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert sorted(read(path).cases) == [f"case {k}" for k in range(6)]


KILLED = """
import sys
from pathlib import Path
from service.baseline import Baseline, changing, read, write
path = Path(sys.argv[1])
found = read(path)
print("ready", flush=True)
for turn in range(10**6):
    with changing(path):
        write(path, Baseline({name: rows for name, rows in found.cases.items() if turn % 2 or name == "a"}, found.moves))
"""


def test_a_kill_in_the_middle_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "b.json"
    whole = Baseline(dict.fromkeys(("a", *map(str, range(60))), (ENTRY,)), (MOVE,))
    write(path, whole)
    for turn in range(12):
        with subprocess.Popen([sys.executable, "-c", KILLED, path], cwd=ROOT, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            time.sleep(0.003 * turn)
            child.send_signal(signal.SIGKILL)
        assert len(read(path).cases) in (1, 61)
        write(path, whole)
    (tmp_path / f".{path.name}.{'0' * 16}").write_text("half")
    _add(path, "after")
    assert os.listdir(tmp_path) == ["b.json"]
