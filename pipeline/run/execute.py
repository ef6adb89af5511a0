"""Runs tiles on a Dask client: a bounded window in flight, failures kept apart, signals that end it gently."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from distributed.scheduler import KilledWorker

from pipeline.errors import InfrastructureError, Interrupted, PipelineError, ResourceError
from pipeline.infer import is_device_lost, is_out_of_memory
from pipeline.run.tile_task import Job, TileDone, forget, run_tile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from distributed import Future

    from pipeline.grid import Tile
    from pipeline.run.cluster import Connection

_MOST_FAILURES = 5
"""Failed tiles after which no more are started: the cause is then not the tile."""
_GRACE_S = 10.0
"""Time given to a worker to say why a tile failed."""
_AGAIN = ("lost", "pending")
"""A worker that dies takes the answers with it that nobody fetched; Dask computes them again on another."""


@dataclass(slots=True)
class StopFlag:
    """Set by a signal; looked at between tiles."""

    signum: int | None = None
    event: threading.Event = field(default_factory=threading.Event)

    def set(self, signum: int) -> None:
        """Ask the run to stop."""
        self.signum = signum
        self.event.set()

    def raise_if_set(self, hint: str) -> None:
        """End the run as the signal asked.

        Raises:
            KeyboardInterrupt: After Ctrl-C.
            Interrupted: RU-001 after SIGTERM or SIGUSR1.
        """
        if self.signum is None:
            return
        if self.signum == signal.SIGINT:
            raise KeyboardInterrupt(hint)
        name = signal.Signals(self.signum).name
        raise Interrupted(
            f"stopped by {name}; {hint}",
            code="RU-001",
            title="Interrupted, can be resumed",
            fix="run the same command again: finished tiles are kept",
        )


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """SIGINT, SIGTERM and SIGUSR1 set a flag; a second SIGINT ends the process at once. Main thread only."""
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handle(signum: int, _frame: Any) -> None:
        if signum == signal.SIGINT and flag.signum == signal.SIGINT:
            os._exit(130)
        flag.set(signum)

    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, handle) for number in watched}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_tiles(
    connection: Connection,
    job: Job,
    tiles: Sequence[Tile],
    *,
    attempts: Mapping[int, int],
    on_done: Callable[[TileDone], None],
    stop: StopFlag,
) -> None:
    """Compute `tiles`; returns when all are recorded.

    Args:
        connection: Client and the number of tiles it keeps busy.
        job: Recipe, sent to each worker once.
        tiles: In the order wanted; any order gives the same result.
        attempts: Tile -> attempts recorded before; 0 for the others.
        on_done: Called for each finished tile, in order of completion.
        stop: Looked at between tiles.

    Raises:
        PipelineError: The first tile's failure, after the others are finished and kept.
    """
    client = connection.client
    recipe = connection.share(job)
    waiting = iter(tiles)
    running: dict[Future, Tile] = {}
    finished: queue.Queue[Future] = queue.Queue()
    failures: list[tuple[Tile, BaseException]] = []

    def watch(future: Future, tile: Tile) -> None:
        running[future] = tile
        future.add_done_callback(finished.put)

    def submit_next() -> None:
        tile = next(waiting, None)
        if tile is not None:
            watch(client.submit(run_tile, recipe, tile, attempts.get(tile.index, 0) + 1, pure=False), tile)

    for _ in range(2 * connection.slots):
        submit_next()
    try:
        while running and not stop.event.is_set():
            with contextlib.suppress(queue.Empty):
                future = finished.get(timeout=0.2)
                tile = running.pop(future)
                if future.status in _AGAIN:
                    watch(future, tile)
                    continue
                outcome = _outcome(future)
                if isinstance(outcome, TileDone):
                    on_done(outcome)
                else:
                    failures.append((tile, outcome))
                if len(failures) < _MOST_FAILURES:
                    submit_next()
        _abandon(running)
    finally:
        with contextlib.suppress(OSError, TimeoutError, RuntimeError):
            client.run(forget, job.key)
    if failures:
        raise _failure(*failures[0], count=len(failures))


def _abandon(running: dict[Future, Tile]) -> None:
    """Drop what has not started and give what runs a moment to be recorded."""
    if running:
        for future in running:
            future.cancel()
        time.sleep(0.5)


def _outcome(future: Future) -> TileDone | BaseException:
    """What became of a tile whose future has ended."""
    try:
        if future.status == "finished":
            return cast("TileDone", future.result())
        # Of a scheduler that died there is neither an answer nor an error.
        return future.exception(timeout=_GRACE_S) or ConnectionError(f"a tile is {future.status}")
    except BaseException as caught:  # noqa: BLE001 - a cancelled or lost future raises instead of returning
        return caught


def _failure(tile: Tile, error: BaseException, *, count: int) -> PipelineError:
    """One of ours, whatever it was; naming the tile."""
    where = f"tile {tile.index}, {tile.core}" + (f"; {count} tiles failed" if count > 1 else "")
    if isinstance(error, PipelineError):
        error.where = f"{error.where}; {where}" if error.where else where
        return error
    if isinstance(error, KilledWorker):
        failure: PipelineError = ResourceError(
            "the worker process died twice on the same tile, most likely for lack of memory or by its GPU",
            code="RS-003",
            title="Worker died",
            where=where,
            fix="give less --memory (smaller patches) or fewer --workers",
        )
    elif is_out_of_memory(error):
        failure = ResourceError(
            f"out of memory during a forward pass ({(str(error) or type(error).__name__).splitlines()[0]})",
            code="RS-003",
            title="Out of memory",
            where=where,
            fix="give less --memory or a smaller --patch",
        )
    elif is_device_lost(error):
        failure = ResourceError(
            f"the GPU was lost during a forward pass ({str(error).splitlines()[0]})",
            code="RS-005",
            title="GPU was lost",
            where=where,
            fix="run the same command again, finished tiles are kept; if it repeats, look at nvidia-smi and the kernel "
            "log, or use --device cpu",
        )
    elif isinstance(error, ConnectionError | TimeoutError) or "Cancelled" in type(error).__name__:
        failure = InfrastructureError(
            f"the cluster was lost ({type(error).__name__})",
            code="CL-003",
            title="Cluster lost",
            where=where,
            fix="start it again and run the same command: finished tiles are kept",
        )
    else:
        error.add_note(where)
        raise error
    failure.__cause__ = error
    return failure
