"""Parts over child processes: the builtin map's results in its order, few parts on their way, and no process left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest

from service.split import ONE_THREAD, SplitError, split

ROOT = Path(__file__).parent.parent.parent
# Four parts are on their way when the first is done.
PROGRAM = """
import signal
import time
from service.split import split

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in its background with Ctrl-C ignored

with split(2) as run:
    for _ in run(time.sleep, [0.01, 60, 60, 60, 60]):
        print("going", flush=True)
"""


def backwards(part):
    """Takes longer the earlier it comes."""
    time.sleep(0.1 / (1 + part))
    return os.getpid(), part


def doubled(part):
    return 2 * part


def much(part):
    return np.full(8_000_000, part)


def die_while_answering(part):
    if part == 2:
        threading.Thread(target=die_when_blocked, daemon=True).start()
    return much(part)


def die_when_blocked():
    """A process that writes its result waits in a system call whose third argument is the number of its bytes."""
    call = []
    while len(call) < 4 or not 64_000_000 < int(call[3], 16) < 64_001_000:
        time.sleep(0.0005)
        call = Path(f"/proc/self/task/{os.getpid()}/syscall").read_text().split()
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_three(part):
    if part[0] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return part


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Every test leaves no process, and its own environment as it was."""
    before = [os.getenv(name) for name in ONE_THREAD]
    yield
    assert active_children() == []
    assert [os.getenv(name) for name in ONE_THREAD] == before


def test_results_come_in_order_and_from_other_processes():
    with split(2) as run:
        found = list(run(backwards, range(12)))
    assert [part for _, part in found] == list(range(12))
    pids = {pid for pid, _ in found}
    assert len(pids) == 2
    assert os.getpid() not in pids


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64])
def test_results_are_those_of_the_builtin(dtype):
    whole = np.random.default_rng(0).integers(0, 1000, (64, 50)).astype(dtype)
    parts = [whole[i : i + 7] for i in range(0, 64, 7)]
    with split(3) as run:
        split_up = list(run(doubled, parts))
    assert [(a.tobytes(), a.dtype, a.shape) for a in split_up] == [(a.tobytes(), a.dtype, a.shape) for a in map(doubled, parts)]


def test_one_process_is_the_builtin():
    with split(1) as run:
        assert run is map
        assert list(run(abs, [-1])) == [1]
        assert active_children() == []


def test_nothing_starts_before_there_is_a_part():
    with split(2) as run:
        assert list(run(abs, [])) == []
        assert active_children() == []


def test_a_second_map_uses_the_same_processes():
    with split(2) as run:
        assert list(run(abs, [-1, -2])) == [1, 2]
        before = active_children()
        assert list(run(abs, [-3])) == [3]
        assert active_children() == before


def test_two_parts_for_each_process_are_on_their_way_and_no_more():
    taken = []
    with split(2) as run:
        for done, _ in enumerate(run(abs, (taken.append(i) or i for i in range(20)))):
            assert len(taken) <= done + 4
    assert len(taken) == 20


def test_children_compute_with_one_thread():
    with split(2) as run:
        assert list(run(os.getenv, ONE_THREAD)) == list(ONE_THREAD.values())


def in_two_processes(function, parts):
    with split(2) as run:
        return list(run(function, parts))


def test_what_a_part_raises_is_raised_and_ends_the_others():
    started = time.monotonic()
    with pytest.raises(ValueError, match="invalid literal"):
        in_two_processes(int, ["1", "x", *["2"] * 20])
    with pytest.raises(TypeError):
        in_two_processes(time.sleep, [None, 60, 60])
    assert time.monotonic() - started < 30


def give_up_after(part):
    with split(2) as run:
        results = run(much, range(50))
        for _ in range(part):
            next(results)
        raise ZeroDivisionError


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_result_cut_short_keeps_nobody_waiting(part):
    started = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        give_up_after(part)
    assert time.monotonic() - started < 15


def test_a_process_that_dies_in_the_middle_of_its_result_is_the_same_error():
    with pytest.raises(SplitError, match="died"):
        in_two_processes(die_while_answering, range(12))


@pytest.mark.parametrize("size", [1, 4_000_000])
def test_a_process_that_dies_is_one_clear_error(size):
    parts = (np.full(size, i) for i in range(12))
    with pytest.raises(SplitError, match="died, perhaps for want of memory; try fewer processes"):
        in_two_processes(die_at_three, parts)


# From outside


@pytest.fixture
def going():
    """A program in the middle of its parts, and the ids of the processes it started."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "going\n"
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True)
    yield process, [int(pid) for pid in listed.stdout.split()]
    process.kill()
    process.communicate()


def ended(pids, seconds=5.0):
    end = time.monotonic() + seconds
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_no_process_outlives_a_parent_that_is_killed(going):
    process, children = going
    assert len(children) >= 2
    process.kill()
    process.wait()
    assert ended(children)


def test_an_interrupt_ends_all_and_only_the_parent_speaks(going):
    process, children = going
    os.killpg(process.pid, signal.SIGINT)
    _, complaint = process.communicate(timeout=10)
    assert process.returncode == -signal.SIGINT
    assert complaint.count("Traceback") == 1
    assert complaint.endswith("KeyboardInterrupt\n")
    assert ended(children)
