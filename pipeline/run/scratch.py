"""Where the tiles of an unfinished run lie: in the output folder, or under `--scratch` in a folder of the run's own."""

from __future__ import annotations

import secrets
import shutil
from typing import TYPE_CHECKING

from pipeline.store import TileDigest, TileStore, cog_scratch_bytes, private_folder, require_free_space, same_disk

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.legend import Legend
    from pipeline.run.plan import Plan
    from pipeline.store import TileRecord

_FOLDER = "store"
_PREFIX = "scenemask-"


def new_place(scratch: Path, shared: Path | None) -> Path:
    """Folder for a new store.

    Args:
        scratch: The run's private folder.
        shared: `--scratch`, where stores of other runs may lie, those of equal plans included; None without.
    """
    return scratch / _FOLDER if shared is None else shared / f"{_PREFIX}{secrets.token_hex(8)}"


def to_record(place: Path, scratch: Path) -> str | None:
    """A place as plan.json keeps it: None inside the run's private folder, which may be moved as a whole."""
    return None if place == scratch / _FOLDER else str(place)


def from_record(recorded: object, scratch: Path) -> Path:
    """The place that `to_record` wrote; anything that no run of ours writes leads into the private folder."""
    place = scratch / recorded if isinstance(recorded, str) else scratch / _FOLDER
    return place if place.name.startswith(_PREFIX) else scratch / _FOLDER


def create_store(place: Path, *, plan: Plan, legend: Legend) -> TileStore:
    """An empty store at `place`; what lay there is removed.

    Raises:
        ResourceError: RS-001, no space.
        UsageError: CF-002, the folder cannot be made.
    """
    remove_store(place)
    private_folder(place, option="-o" if place.name == _FOLDER else "--scratch")
    return TileStore.create(
        place,
        shape=plan.tiling.shape,
        dtype=legend.dtype,
        fill=legend.nodata,
        shard_hw=plan.tiling.tile_hw,
        mask_bands=legend.num_mask_bands if legend.multilabel else None,
        num_classes=len(legend) if plan.probabilities else None,
    )


def open_store(place: Path, plan: Plan) -> TileStore | None:
    """The store of a run that was cut off; None where it is gone, as after a clean-up of the scratch disk."""
    try:
        store = TileStore.open(place)
        whole = store.shape == plan.tiling.shape and store.has_probabilities == plan.probabilities
    except (OSError, ValueError, TypeError, KeyError):  # missing, or its description is torn
        return None
    return store if whole else None


def digest_of(record: TileRecord) -> TileDigest | None:
    """What the store must hold by a record of the ledger; None for an empty tile."""
    if record.mask_sha256 is None:
        return None
    return TileDigest(mask_sha256=record.mask_sha256, prob_sha256=record.prob_sha256)


def remove_store(place: Path) -> None:
    """Delete a store and everything in its folder."""
    shutil.rmtree(place, ignore_errors=True)


def require_room(place: Path, *, out_dir: Path, plan: Plan, legend: Legend) -> None:
    """Refuse what may not fit: tiles at `place`, and in `out_dir` the files with the copies that making them takes.

    Raises:
        ResourceError: RS-001, a disk has less room than the run may need.
    """
    shape = plan.tiling.shape
    files = cog_scratch_bytes(shape, count=legend.num_mask_bands, itemsize=1 if legend.dtype == "uint8" else 2)
    if plan.probabilities:
        files += cog_scratch_bytes(shape, count=len(legend))
    if same_disk(place, out_dir):
        require_free_space(out_dir, plan.scratch_bytes + files)
        return
    require_free_space(place, plan.scratch_bytes)
    require_free_space(out_dir, files)
