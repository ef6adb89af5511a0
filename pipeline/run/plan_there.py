"""Plans made by a worker, where their work will be done: it has the GPU, the cores and the memory that decide them."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from pipeline.infer import give_back_freed
from pipeline.run.failures import as_failure
from pipeline.run.plan import Plan, make_plan
from pipeline.run.travel import portable

if TYPE_CHECKING:
    from pipeline.model import Model
    from pipeline.run.cluster import Connection
    from pipeline.run.settings import SegmentSettings
    from pipeline.scene import Scene


def plan_on_a_worker(connection: Connection, scene: Scene, model: Model, settings: SegmentSettings) -> Plan:
    """`make_plan`, called by a worker.

    Raises:
        PipelineError: As `make_plan` does, and for what happens to workers.
    """
    client = connection.client
    future = client.submit(make_plan_there, scene, connection.share(model), settings, pure=False)
    error = future.exception()
    if error is not None:
        raise as_failure(error, where=f"planning {scene.name}")
    return cast("Plan", future.result())


def make_plan_there(scene: Scene, model: Model, settings: SegmentSettings) -> Plan:
    """`make_plan` with errors that reach the client whole."""
    try:
        return make_plan(scene, model, settings)
    except Exception as error:  # noqa: BLE001 - raised again below
        failure = portable(error)
    finally:
        give_back_freed()
    raise failure
