"""What all scenes of a batch are planned on: found once by a worker, then kept beside the frozen list."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from pipeline.infer import resolve_device
from pipeline.run.basis import Basis
from pipeline.run.plan_there import basis_of_a_worker
from pipeline.run.room import room_of
from pipeline.run.workers import device_wanted, on_this_machine
from pipeline.store import read_object, to_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.model import Model
    from pipeline.run.cluster import Connection
    from pipeline.run.settings import SegmentSettings
    from pipeline.scene import Scene
    from pipeline.store import Place

_FILE = "basis.json"


def batch_device(settings: SegmentSettings) -> str:
    """What workers are prepared for before they can be asked."""
    wanted = device_wanted(settings)
    return resolve_device(wanted) if on_this_machine(settings) else "cuda" if wanted == "cuda" else "cpu"


def batch_basis(
    connection: Connection,
    scene: Scene,
    model: Model,
    settings: SegmentSettings,
    *,
    folder: Place,
    num_pixels: int,
    check_stop: Callable[[], None],
) -> Basis:
    """The basis that the batch was begun on, or a new one; of several processes that find one, the first one's counts.

    Args:
        connection: Whose workers will do the work.
        scene: On which precisions are compared.
        model: The model.
        settings: What was asked for; `memory` replaces what the basis was found with, for scenes yet to be planned.
        folder: The batch's records.
        num_pixels: Of all scenes that are left.
        check_stop: Called while a worker finds it; may raise.

    Raises:
        UsageError: CF-020, the batch was begun on a GPU, and there is none.
    """
    if not folder.has(_FILE):
        found = basis_of_a_worker(connection, scene, model, settings, num_pixels=num_pixels, check_stop=check_stop)
        folder.write_first(_FILE, to_bytes(found.to_json()))
    basis = Basis.from_json(dict(read_object(folder, _FILE) or {}))
    device = basis.engine.spec.device
    if not on_this_machine(settings):
        return basis
    if device == "cuda":
        resolve_device("cuda")
    return basis if settings.memory is None else dataclasses.replace(basis, room=room_of(settings, device))
