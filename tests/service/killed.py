"""Kills writers to a store at random moments: `python killed.py URL FOLDER ROUNDS SEED` exits with 0 if nothing told is lost.

Each round forks a process that writes from three threads and says of each write that it is done; it is killed with SIGKILL, and
the next looks at what is there.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

from service.store import NewComparison, NewMove, NewRun, Row, Store, Told, new_id, now


def written(i, name):
    """One write: a run with its comparison, perhaps a move, and the answer to its key."""
    run = new_id("run")
    document = (f"{run} {i}\n" * 50).encode()
    rows = [Row(f"case {j}", float(i), "pass") for j in range(12)]
    made = NewRun(run, "p", name, "main", f"c{i}", "", "fp", now(), rows, document)
    compared = NewComparison(new_id("cmp"), "p", run, "default", None, "pass", now(), json.dumps({"run": run}).encode())
    move = NewMove("p", "default", "main", run, "because", "me", now()) if i % 3 == 0 else None
    return made, compared, move, Told("me", f"key-{run}", "r", 201, run, now())


def write(url, folder, pipe):
    """For ever: each thread tells what is kept, when it is."""
    store = Store(url, folder)

    def work(name):
        for i in range(1_000_000):
            made, compared, move, told = written(i, name)
            store.add(made, compared, move, told)
            os.write(pipe, (json.dumps([made.id, compared.id, bool(move), told.key]) + "\n").encode())  # whole, as it is short

    for name in ("main", "a", "b"):
        threading.Thread(target=work, args=(name,), daemon=True).start()
    time.sleep(60)


def look(store, told):
    """Everything that was told is there, whole; and nothing is there by half."""
    for run, compared, _, key in told:
        row, document = store.run("p", run)
        assert document == f"{run} {row['commit'][1:]}\n".encode() * 50
        assert store.comparison(compared)[0]["run"] == run
        assert store.told("me", key, "r").body == run
        again = written(0, "main")
        before = Told("me", key, "r", 201, "another", now())
        assert store.add(again[0], again[1], told=before).body == run  # nothing is kept twice
    runs, more = store.runs("p", limit=100_000)
    assert more is None
    for row in runs:
        store.run("p", row["id"])  # with its document
    import sqlalchemy as sa

    with store._engine.connect() as connection:
        counts = dict(connection.execute(sa.text("SELECT run_seq, count(*) FROM result GROUP BY run_seq")).all())
        seqs = set(connection.execute(sa.text("SELECT seq FROM run")).scalars())
        alone = connection.execute(sa.text("SELECT count(*) FROM run WHERE seq NOT IN (SELECT run_seq FROM comparison)")).scalar()
        keys = set(connection.execute(sa.text("SELECT body FROM answer")).scalars())
    assert counts == dict.fromkeys(seqs, 12)
    assert alone == 0
    assert keys == {row["id"] for row in runs}
    moves, _ = store.moves("p", limit=100_000)
    assert all(newer["was"] == older["run"] for newer, older in pairwise(moves))
    assert {run for run, _, moved, _ in told if moved} <= {move["run"] for move in moves}


def main(url, folder, rounds, seed):
    rng, folder, told = random.Random(seed), Path(folder), []
    Store(url, folder).open()
    for number in range(rounds):
        ours, theirs = os.pipe()
        child = os.fork()
        if not child:
            os.close(ours)
            write(url, folder, theirs)
        os.close(theirs)
        first = os.read(ours, 1 << 16) if number % 4 else b""  # else it is killed while it starts
        time.sleep(rng.uniform(0, 0.04))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(ours, "rb") as rest:
            lines = first + rest.read()
        fresh = [json.loads(line) for line in lines.decode().splitlines()]
        told += fresh
        if fresh or number == rounds - 1:
            store = Store(url, folder)
            look(store, told if number == rounds - 1 else fresh)
            store.close()
    store = Store(url, folder)
    names = len(store.runs("p", limit=100_000)[0])
    for path in (folder / "objects").glob("*/*"):
        os.utime(path, (0, 0))
    left = store.sweep()
    assert left <= 6 * rounds + 4 * len(told)  # what three threads were about to name at each kill, and what `look` tried again
    assert store.sweep() == 0
    look(store, told)
    sys.stdout.write(f"{rounds} kills, {len(told)} writes told, {names} kept, {left} files left over\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
