"""`in_order` is `map`, by threads that are never far ahead."""

from __future__ import annotations

import threading
import time

import pytest

from pipeline.store.ahead import in_order


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_order_and_bound(threads: int) -> None:
    """Results come in the order of the items, whichever ends first; no more are held than there are threads."""
    begun, taken, most = 0, 0, 0
    lock = threading.Lock()

    def work(number: int) -> int:
        nonlocal begun, most
        with lock:
            begun += 1
            most = max(most, begun - taken)
        time.sleep(0.02 if number % 3 == 0 else 0.0)
        return number * number

    results = []
    for result in in_order(work, range(20), threads=threads):
        results.append(result)
        with lock:
            taken += 1
    assert results == [number * number for number in range(20)]
    assert most <= threads + 1  # one of them is being taken


def test_they_work_at_the_same_time() -> None:
    """Both must be there for either to go on."""
    together = threading.Barrier(2, timeout=10)
    assert len(list(in_order(lambda _: together.wait(), range(4), threads=2))) == 4


def test_what_fails_ends_it() -> None:
    """The error comes out in its place, and nothing is begun after it."""
    begun = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise KeyError("three")
        return number

    results = in_order(work, range(100), threads=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="three"):
        next(results)
    assert len(begun) <= 6
