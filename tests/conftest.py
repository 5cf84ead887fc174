"""What every test shares: generated examples are the same on every run."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import coverage
import pytest
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


GOLDEN = 0.6180339887498949


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Of a test marked `half` each second combination of its parameters is for `make soak`, spread evenly over all of them."""
    place: Counter[str] = Counter()
    for item in items:
        function = item.nodeid.partition("[")[0]
        place[function] += 1
        if item.get_closest_marker("half") and place[function] * GOLDEN % 1 >= 0.5:
            item.add_marker(pytest.mark.soak)
