"""Work that a few threads do ahead of whoever takes its results."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from pipeline.cores import available_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

T = TypeVar("T")
R = TypeVar("R")

_MOST_THREADS = 4
"""More would wait for the one that writes."""


def in_order(work: Callable[[T], R], items: Iterable[T], *, threads: int | None = None) -> Iterator[R]:
    """`map` by threads. Results come in the order of the items; never are more begun than there are threads.

    Args:
        work: Called by several threads at once.
        items: Taken one by one, as results are.
        threads: As many as there are cores for, up to four, if not given; 1 works in the caller's own.
    """
    if threads is None:
        threads = num_threads()
    if threads == 1:
        yield from map(work, items)
        return
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                if len(waiting) == threads:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(work, item))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def num_threads() -> int:
    """As many as this process may have cores for, up to four."""
    return min(available_cores(), _MOST_THREADS)
