"""Records of a scene's tiles in arrays: all of their memory is taken at once, however many tiles end later."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING

import numpy as np

from pipeline.store.ledger import TileRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

_HASH_BYTES = 32
_ABSENT, _WRITTEN, _EMPTY = 0, 1, 2


class TileRecords(MutableMapping[int, TileRecord]):
    """Tile -> its record, in the order of tiles. A hundred bytes and eight per class each.

    Args:
        plan_id: Of the plan that all records belong to.
        num_tiles: Of the plan.
        num_classes: Of the model.
    """

    def __init__(self, *, plan_id: str, num_tiles: int, num_classes: int) -> None:
        self._plan_id = plan_id
        self._rows = np.empty(
            num_tiles,
            dtype=[
                ("kind", np.uint8),
                ("mask_sha256", np.uint8, _HASH_BYTES),
                ("prob_sha256", np.uint8, _HASH_BYTES),
                ("has_prob", np.bool_),
                ("seconds", np.float64),
                ("valid_px", np.int64),
                ("class_px", np.int64, (num_classes,)),
                ("counted", np.bool_),
                ("splits", np.int64),
                ("attempt", np.int64),
            ],
        )
        self._rows[:] = 0  # written to now: memory that is only reserved would be taken tile by tile
        self._count = 0

    def __getitem__(self, tile: int) -> TileRecord:
        """The record of a tile.

        Raises:
            KeyError: The tile has none.
        """
        if tile not in self:
            raise KeyError(tile)
        row = self._rows[tile]
        written = row["kind"] == _WRITTEN
        return TileRecord(
            tile=int(tile),
            kind="written" if written else "empty",
            mask_sha256=row["mask_sha256"].tobytes().hex() if written else None,
            prob_sha256=row["prob_sha256"].tobytes().hex() if row["has_prob"] else None,
            plan_id=self._plan_id,
            seconds=float(row["seconds"]),
            valid_px=int(row["valid_px"]),
            class_px=tuple(row["class_px"].tolist()) if row["counted"] else None,
            splits=int(row["splits"]),
            attempt=int(row["attempt"]),
        )

    def __setitem__(self, tile: int, record: TileRecord) -> None:
        """Keep the record of a tile in place of the one before."""
        if record.tile != tile or record.plan_id != self._plan_id:
            msg = f"a record of tile {record.tile} of plan {record.plan_id} is not one of {tile} of {self._plan_id}"
            raise ValueError(msg)
        self._count += tile not in self
        row = self._rows[tile : tile + 1]
        row[:] = 0
        row["kind"] = _EMPTY if record.mask_sha256 is None else _WRITTEN
        for name, digest in (("mask_sha256", record.mask_sha256), ("prob_sha256", record.prob_sha256)):
            if digest is not None:
                row[name] = np.frombuffer(bytes.fromhex(digest), np.uint8)
        row["has_prob"] = record.prob_sha256 is not None
        row["counted"] = record.class_px is not None
        if record.class_px is not None:
            row["class_px"] = record.class_px
        for name in ("seconds", "valid_px", "splits", "attempt"):
            row[name] = getattr(record, name)

    def __delitem__(self, tile: int) -> None:
        """Forget the record of a tile."""
        if tile not in self:
            raise KeyError(tile)
        self._rows[tile : tile + 1]["kind"] = _ABSENT
        self._count -= 1

    def __contains__(self, tile: object) -> bool:
        """Whether a tile has a record."""
        return isinstance(tile, int) and 0 <= tile < len(self._rows) and bool(self._rows["kind"][tile])

    def __iter__(self) -> Iterator[int]:
        """Tiles that have a record, in their order."""
        return iter(np.flatnonzero(self._rows["kind"]).tolist())

    def __len__(self) -> int:
        """How many tiles have a record."""
        return self._count
