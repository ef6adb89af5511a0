"""Where the tiles of an unfinished run lie: in the output folder, or under `--scratch` in a place of the run's own.

`--scratch` is a folder, or a prefix of a bucket. There the ledger lies beside the tiles: workers reach nothing else.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.bucket import Bucket, require_obstore
from pipeline.errors import InfrastructureError, UsageError
from pipeline.location import is_remote, parse_location
from pipeline.run.settings import access_of
from pipeline.store import (
    Folder,
    Prefix,
    TileDigest,
    TileStore,
    cog_scratch_bytes,
    require_free_space,
    same_disk,
)

if TYPE_CHECKING:
    from pipeline.access import Access
    from pipeline.legend import Legend
    from pipeline.run.plan import Plan
    from pipeline.run.settings import SegmentSettings
    from pipeline.store import Place, TileRecord

_FOLDER = "store"
_PREFIX = "scenemask-"


def shared_place(settings: SegmentSettings) -> Place | None:
    """What `--scratch` names, where stores of other runs may lie, those of equal plans included; None without.

    Raises:
        UsageError: CF-053, an extra is missing.
    """
    if settings.scratch is None:
        return None
    if isinstance(settings.scratch, Path):
        return Folder(settings.scratch)
    require_obstore()
    return _prefix(settings.scratch, access_of(settings))


def _prefix(address: str, access: Access) -> Prefix:
    location = parse_location(address, schemes=("s3",))
    return Prefix.at(location, Bucket(location.host, access))


def new_place(scratch: Path, shared: Place | None) -> Place:
    """For a new store.

    Args:
        scratch: The run's private folder.
        shared: From `shared_place`.
    """
    return Folder(scratch / _FOLDER) if shared is None else shared / f"{_PREFIX}{secrets.token_hex(8)}"


def ledger_of(place: Place, scratch: Path) -> Place:
    """Where the records of the tiles at `place` lie."""
    return place / "ledger" if isinstance(place, Prefix) else Folder(scratch / "ledger")


def to_record(place: Place, scratch: Path) -> str | None:
    """A place as plan.json keeps it: None inside the run's private folder, which may be moved as a whole."""
    return None if place == Folder(scratch / _FOLDER) else str(place)


def from_record(recorded: object, scratch: Path, access: Access) -> Place:
    """The place that `to_record` wrote; anything that no run of ours writes leads into the private folder."""
    place: Place = Folder(scratch / _FOLDER)
    if not isinstance(recorded, str):
        return place
    try:
        place = _prefix(recorded, access) if is_remote(recorded) else Folder(scratch / recorded)
    except UsageError:
        return place
    return place if place.name.startswith(_PREFIX) else Folder(scratch / _FOLDER)


def create_store(place: Place, *, plan: Plan, legend: Legend) -> TileStore:
    """An empty store at `place`; what lay there is removed.

    Raises:
        ResourceError: RS-001, no space.
        UsageError: CF-002, the folder cannot be made.
        InfrastructureError: ST-010 to ST-013, the bucket fails.
    """
    place.remove()
    place.make(option="-o" if place.name == _FOLDER else "--scratch")
    return TileStore.create(
        place,
        shape=plan.tiling.shape,
        dtype=legend.dtype,
        fill=legend.nodata,
        shard_hw=plan.tiling.tile_hw,
        mask_bands=legend.num_mask_bands if legend.multilabel else None,
        num_classes=len(legend) if plan.probabilities else None,
    )


def open_store(place: Place, plan: Plan) -> TileStore | None:
    """The store of a run that was cut off; None where it is gone, as after a clean-up of the scratch disk.

    Raises:
        InfrastructureError: ST-010 to ST-013, the bucket does not tell.
    """
    try:
        store = TileStore.open(place)
        whole = store.shape == plan.tiling.shape and store.has_probabilities == plan.probabilities
    except InfrastructureError:
        raise
    except (OSError, ValueError, TypeError, KeyError):  # missing, or its description is torn
        return None
    return store if whole else None


def digest_of(record: TileRecord) -> TileDigest | None:
    """What the store must hold by a record of the ledger; None for an empty tile."""
    if record.mask_sha256 is None:
        return None
    return TileDigest(mask_sha256=record.mask_sha256, prob_sha256=record.prob_sha256)


def require_room(place: Place, *, out_dir: Path, plan: Plan, legend: Legend) -> None:
    """Refuse what may not fit: tiles at `place`, and in `out_dir` the files with the copies that making them takes.

    Raises:
        ResourceError: RS-001, a disk has less room than the run may need.
    """
    shape = plan.tiling.shape
    files = cog_scratch_bytes(shape, count=legend.num_mask_bands, itemsize=1 if legend.dtype == "uint8" else 2)
    if plan.probabilities:
        files += cog_scratch_bytes(shape, count=len(legend))
    if isinstance(place, Folder) and same_disk(place.path, out_dir):
        require_free_space(out_dir, plan.scratch_bytes + files)
        return
    if isinstance(place, Folder):
        require_free_space(place.path, plan.scratch_bytes)
    require_free_space(out_dir, files)
