"""What a run is planned on, found by a worker: it has the GPU, the cores and the memory that decide it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

from distributed.scheduler import KilledWorker

from pipeline.cores import at_most
from pipeline.infer import give_back_freed
from pipeline.run.basis import Basis, find_basis
from pipeline.run.failures import as_failure
from pipeline.run.travel import portable
from pipeline.run.workers import cores_of_cluster, memory_told, on_this_machine

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.model import Model
    from pipeline.run.cluster import Connection
    from pipeline.run.settings import SegmentSettings
    from pipeline.scene import Scene


def basis_of_a_worker(
    connection: Connection,
    scene: Scene,
    model: Model,
    settings: SegmentSettings,
    *,
    check_stop: Callable[[], None],
    num_pixels: int | None = None,
) -> Basis:
    """`find_basis`, called by a worker.

    Raises:
        PipelineError: As `find_basis` does, and for what happens to workers.
    """
    cores = cores_of_cluster(settings)
    # A worker need not see the cluster's file, and what it has is its own.
    alone = (
        settings
        if on_this_machine(settings)
        else settings.model_copy(update={"cluster": "local", "workers": 1, "memory": memory_told(settings)})
    )
    for left in reversed(range(_TRIES)):
        shared, where = connection.share(model), connection.asked_first()
        given = (scene, shared, alone, num_pixels, cores)
        future = connection.client.submit(find_basis_there, *given, pure=False, **where)
        while not future.done():
            check_stop()
            time.sleep(_LOOK_EVERY_S)
        try:
            return cast("Basis", future.result())
        except Exception as error:
            if not (left and isinstance(error, KilledWorker)):
                raise as_failure(error, where=f"planning {scene.name}") from error
    raise AssertionError


_TRIES = 3
"""Workers may be killed for other reasons than what they plan."""
_LOOK_EVERY_S = 0.02


def find_basis_there(
    scene: Scene, model: Model, settings: SegmentSettings, num_pixels: int | None, cores: int | None
) -> Basis:
    """`find_basis` with errors that reach the client whole."""
    try:
        with at_most(cores):
            return find_basis(scene, model, settings, num_pixels=num_pixels)
    except Exception as error:  # noqa: BLE001 - raised again below
        failure = portable(error)
    finally:
        give_back_freed()
    raise failure
