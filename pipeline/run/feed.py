"""The tiles of one scene as tasks, and what became of them."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING

from pipeline.run.failures import as_failure
from pipeline.run.tasks import Task, Watch, run_tasks
from pipeline.run.tile_task import Job, TileDone, forget, run_tile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from distributed import Future

    from pipeline.errors import PipelineError
    from pipeline.grid import Tile
    from pipeline.model import Model
    from pipeline.run.cluster import Connection

_MOST_FAILURES = 5
"""Failed tiles after which no more are started: the cause is then not the tile."""


class TileFeed:
    """Gives out tiles until there are no more, or too many have failed.

    Args:
        connection: Where they will run.
        job: The scene's recipe.
        model: Future of the model.
        tiles: In the order wanted; any order gives the same result.
        attempts: Tile -> attempts recorded before; 0 for the others.
        on_done: Called for each finished tile, in order of completion.
        on_end: Called once nothing of this scene is running or left.
    """

    def __init__(
        self,
        connection: Connection,
        job: Job,
        model: Future,
        tiles: Iterable[Tile],
        *,
        attempts: Mapping[int, int],
        on_done: Callable[[TileDone], None],
        on_end: Callable[[], None] | None = None,
    ) -> None:
        self._job = connection.share(job)
        self._scene = job.scene.name
        self._model = model
        self._waiting = deque(tiles)
        self._attempts = attempts
        self._on_done = on_done
        self._on_end = on_end
        self._running = 0
        self._exhausted = False
        self._failures: list[tuple[Tile, BaseException]] = []

    def next(self) -> Task | None:
        """The next tile; None when there are no more."""
        if len(self._failures) >= _MOST_FAILURES:
            self._waiting.clear()
        if not self._waiting:
            if not self._exhausted:
                self._exhausted = True
                self._maybe_end()
            return None
        tile = self._waiting.popleft()
        self._running += 1
        return Task(
            name=f"tile {tile.index} of {self._scene}",
            function=run_tile,
            arguments=(self._job, self._model, tile, self._attempts.get(tile.index, 0) + 1),
            on_done=self._done,
            on_failed=lambda error: self._failed(tile, error),
        )

    @property
    def left(self) -> int:
        """Tiles that have not been given out."""
        return len(self._waiting)

    def failure(self) -> PipelineError | None:
        """The first tile's failure, naming it; None when all are recorded."""
        if not self._failures:
            return None
        tile, error = self._failures[0]
        count = len(self._failures)
        return as_failure(error, where=f"tile {tile.index}, {tile.core}" + (f"; {count} tiles failed" * (count > 1)))

    def _done(self, done: TileDone) -> None:
        self._running -= 1
        self._on_done(done)
        self._maybe_end()

    def _failed(self, tile: Tile, error: BaseException) -> None:
        self._running -= 1
        self._failures.append((tile, error))
        self._maybe_end()

    def _maybe_end(self) -> None:
        if self._exhausted and not self._running and self._on_end is not None:
            self._on_end()


def run_tiles(
    connection: Connection,
    job: Job,
    model: Model,
    tiles: Iterable[Tile],
    *,
    attempts: Mapping[int, int],
    on_done: Callable[[TileDone], None],
    watch: Watch,
    keep_engine: bool = False,
) -> None:
    """Compute the tiles of one scene; returns when all are recorded, or the run is to stop.

    Args:
        connection: The workers.
        job: The scene's recipe.
        model: What it is computed with.
        tiles: Those to compute.
        attempts: Tile -> attempts so far.
        on_done: Hears of each finished tile.
        watch: Tells when to stop.
        keep_engine: Leave the workers the engine that they made for this model, for the next scene.

    Raises:
        PipelineError: The first tile's failure, after the others are finished and kept.
    """
    feed = TileFeed(connection, job, connection.share(model), tiles, attempts=attempts, on_done=on_done)
    try:
        run_tasks(connection, feed.next, watch=watch)
    finally:
        with contextlib.suppress(OSError, TimeoutError, RuntimeError):
            connection.client.run(forget, job.key, keep_engine=keep_engine, on_error="ignore")
    failure = feed.failure()
    if failure is not None:
        raise failure
