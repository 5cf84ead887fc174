"""What every test shares: generated examples are the same on every run."""

from collections.abc import Iterator
from contextlib import contextmanager

import coverage
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, print_blob=True)
settings.load_profile("repeatable")


@contextmanager
def unmeasured() -> Iterator[None]:
    """Nothing that runs inside counts as covered: what a test compares with need not be, and takes half the time so."""
    measuring = coverage.Coverage.current()
    if measuring is None:
        yield
        return
    measuring.stop()
    try:
        yield
    finally:
        measuring.start()
