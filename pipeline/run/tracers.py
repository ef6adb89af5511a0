"""Workers as the hands that trace polygons: those of a run, or processes of this machine that are started for it."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask

from pipeline.run.cluster import Connection
from pipeline.run.clusters.address import client_of
from pipeline.run.clusters.local import processes
from pipeline.run.clusters.options import cluster_options
from pipeline.run.clusters.tuning import tuning
from pipeline.run.events import silent
from pipeline.run.failures import as_failure
from pipeline.run.stop import StopFlag
from pipeline.run.tasks import Task, Watch, run_tasks
from pipeline.run.travel import portable
from pipeline.store import Folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.run.settings import SegmentSettings
    from pipeline.vector import Hands, Piece


def hands_on(connection: Connection, *, watch: Watch) -> Hands:
    """The workers of a connection; each does one piece at a time, whatever its threads.

    Raises what the first piece that fails raises, once those that run have ended; KeyboardInterrupt or RU-001 where
    the run is to stop.
    """
    workers = dataclasses.replace(connection, slots=max(1, len(connection.client.nthreads())))

    def work(source: Callable[[], Piece | None]) -> None:
        failures: list[tuple[str, BaseException]] = []

        def next_task() -> Task | None:
            piece = None if failures else source()
            if piece is None:
                return None
            return Task(
                name=piece.name,
                function=_in_turn,
                arguments=(piece.function, *piece.arguments),
                on_done=piece.done,
                on_failed=lambda error: failures.append((piece.name, error)),
            )

        run_tasks(workers, next_task, watch=watch)
        watch.stop.raise_if_set("all tiles are kept")
        if failures:
            name, error = failures[0]
            raise as_failure(error, where=name)

    return work


_turn = threading.Lock()
"""Held by the thread of this process that traces: several would only take more memory."""


def _in_turn(function: Callable[..., Any], *arguments: object) -> Any:
    """Run on a worker.

    Raises:
        Exception: What went wrong, in a form that reaches the client whole.
    """
    try:
        with _turn:
            return function(*arguments)
    except Exception as error:  # noqa: BLE001 - raised again below
        failure = portable(error)
    raise failure


@contextlib.contextmanager
def local_hands(settings: SegmentSettings) -> Iterator[Hands | None]:
    """As many processes of this machine as `workers` says; None for one, which is this."""
    if settings.workers == 1:
        yield None
        return
    with (
        tempfile.TemporaryDirectory(prefix="scenemask-") as folder,
        dask.config.set(tuning(cluster_options(settings))),
        processes(settings, 1, "cpu") as cluster,
        client_of(cluster, timeout_s=30, security=None) as client,
    ):
        watch = Watch(stop=StopFlag(), tell=silent, stuck_after_s=settings.stuck_after, dump_to=Folder(Path(folder)))
        yield hands_on(Connection(client, settings.workers), watch=watch)
