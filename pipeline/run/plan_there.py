"""What a run is planned on, found by a worker: it has the GPU, the cores and the memory that decide it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from pipeline.infer import give_back_freed
from pipeline.run.basis import Basis, find_basis
from pipeline.run.failures import as_failure
from pipeline.run.travel import portable

if TYPE_CHECKING:
    from pipeline.model import Model
    from pipeline.run.cluster import Connection
    from pipeline.run.settings import SegmentSettings
    from pipeline.scene import Scene


def basis_of_a_worker(
    connection: Connection, scene: Scene, model: Model, settings: SegmentSettings, *, num_pixels: int | None = None
) -> Basis:
    """`find_basis`, called by a worker.

    Raises:
        PipelineError: As `find_basis` does, and for what happens to workers.
    """
    shared = connection.share(model)
    future = connection.client.submit(find_basis_there, scene, shared, settings, num_pixels, pure=False)
    error = future.exception()
    if error is not None:
        raise as_failure(error, where=f"planning {scene.name}")
    return cast("Basis", future.result())


def find_basis_there(scene: Scene, model: Model, settings: SegmentSettings, num_pixels: int | None) -> Basis:
    """`find_basis` with errors that reach the client whole."""
    try:
        return find_basis(scene, model, settings, num_pixels=num_pixels)
    except Exception as error:  # noqa: BLE001 - raised again below
        failure = portable(error)
    finally:
        give_back_freed()
    raise failure
