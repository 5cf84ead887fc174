"""A computing process that also misbehaves on demand: the op says how. Everything else is the real one."""

import json
import os
import signal
import sys
import time

import engine
from service import compute

REAL = dict(compute.TASKS)
SLOW = {b'"slow"': (0.7, 0.7), b'"slower"': (0.9, 4.0), b'"slowest"': (1.2, 4.0)}  # seconds: estimated, and in truth
RAISED = {
    b'"raise"': ZeroDivisionError("a secret of the engine"),
    b'"disagree"': engine.Disagreement("softmax, float32, logits 0x1.8p+1: a secret of the engine"),
}


def _evaluate(given, limits, announce):
    body = given if isinstance(given, bytes) else json.dumps({"op": given["op"]}).encode()
    if b'"hang_before"' in body:
        time.sleep(1000)
    if b'"die_before"' in body:
        os.kill(os.getpid(), signal.SIGKILL)
    if b'"hang"' in body:
        announce(0.001)
        print("hanging now", file=sys.stderr, flush=True)  # noqa: T201 - how a test knows that it has begun
        time.sleep(1000)
    for how, (told, taken) in SLOW.items():
        if how in body:
            announce(told)
            time.sleep(taken)
            return b'{"slow": true}'
    if b'"heavy"' in body:
        announce(2.0)
        print("heavy now", file=sys.stderr, flush=True)  # noqa: T201 - as above
        time.sleep(1.5)
        return b'{"heavy": true}'
    if b'"die"' in body:
        announce(0.001)
        os.kill(os.getpid(), signal.SIGKILL)
    if b'"abort"' in body:
        announce(0.001)
        os.abort()
    if b'"hog"' in body:
        announce(0.001)
        return b"x" * 2**40
    if wrong := [error for how, error in RAISED.items() if how in body]:
        raise wrong[0]
    if b'"print"' in body:
        print("noise", flush=True)  # noqa: T201 - the point of the test
        os.write(1, b"more noise" * 100_000 + b"\n")
        return b'{"pid": %d}' % os.getpid()
    return REAL["evaluate"](given, limits, announce)


if __name__ == "__main__":
    if "crash" in sys.argv:
        sys.exit("no start today")
    compute.TASKS = {**REAL, "evaluate": _evaluate}
    compute.main()
