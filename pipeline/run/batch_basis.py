"""What all scenes of a batch are planned on: found once by a worker, then kept beside the frozen list."""

from __future__ import annotations

import json
import os
import secrets
from typing import TYPE_CHECKING

from pipeline.infer import resolve_device
from pipeline.run.basis import Basis
from pipeline.run.plan_there import basis_of_a_worker
from pipeline.run.resolve import resolve_scene
from pipeline.run.workers import device_wanted, on_this_machine
from pipeline.store import atomic_write_bytes, read_json

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.model import Model
    from pipeline.run.cluster import Connection
    from pipeline.run.settings import SegmentSettings

_FILE = "basis.json"


def batch_device(settings: SegmentSettings) -> str:
    """What workers are prepared for before they can be asked."""
    wanted = device_wanted(settings)
    return resolve_device(wanted) if on_this_machine(settings) else "cuda" if wanted == "cuda" else "cpu"


def batch_basis(
    connection: Connection, scene: str, model: Model, settings: SegmentSettings, *, folder: Path, num_pixels: int
) -> Basis:
    """The basis that the batch was begun on, or a new one; of several processes that find one, the first one's counts.

    Args:
        connection: Whose workers will do the work.
        scene: Path of the scene on which precisions are compared.
        model: The model.
        settings: What was asked for.
        folder: The batch's records.
        num_pixels: Of all scenes that are left.
    """
    path = folder / _FILE
    if not path.exists():
        found = basis_of_a_worker(
            connection, resolve_scene(scene, model, settings), model, settings, num_pixels=num_pixels
        )
        _keep_first(path, json.dumps(found.to_json()).encode())
    return Basis.from_json(dict(read_json(path) or {}))


def _keep_first(path: Path, data: bytes) -> None:
    """Write `path` unless it is there by now."""
    made = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    atomic_write_bytes(made, data)
    try:
        os.link(made, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links: the last one counts
        made.replace(path)
    finally:
        made.unlink(missing_ok=True)
