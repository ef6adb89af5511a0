"""All polygons of a spool in memory, for what looks at all of them at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import shapely

from pipeline.errors import ResourceError
from pipeline.vector.faults import disk_errors
from pipeline.vector.spool import SpoolReader

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.vector.rings import Geometries

_MOST_BYTES = 256 << 20
"""Outlines that are worked on at once: 16.8 million vertices."""


def read_whole(path: Path) -> tuple[pa.Table, Geometries]:
    """All of a spool in canonical order, and its polygons.

    Raises:
        ResourceError: RS-006, more than can be worked on at once.
    """
    with SpoolReader(path) as reader:
        _refuse_too_many(reader, path)
        table = reader.whole()
    return table, np.asarray(shapely.from_wkb(table.column("wkb").to_numpy(zero_copy_only=False)))


def coverages(table: pa.Table, *, by_class: bool) -> list[NDArray[np.bool_]]:
    """Which rows of a table do not overlap: all, or those of each class."""
    class_ids = table.column("class_id").to_numpy()
    return [class_ids == value for value in np.unique(class_ids)] if by_class else [np.ones(len(class_ids), bool)]


def write_whole(table: pa.Table, polygons: Geometries, target: Path) -> Path:
    """A spool with other polygons in a table's rows.

    Raises:
        ResourceError: RS-002, the disk is full.
    """
    wkb = shapely.to_wkb(polygons, byte_order=1)
    sizes = np.fromiter(map(len, wkb), np.int64, len(wkb))
    for name, column in (("wkb", pa.array(wkb, pa.large_binary())), ("num_bytes", pa.array(sizes))):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), column)
    with disk_errors(target), pa.ipc.new_file(str(target), table.schema) as file:
        file.write_table(table, max_chunksize=8192)
    return target


def _refuse_too_many(reader: SpoolReader, path: Path) -> None:
    nbytes = int(np.sum(reader.column("num_bytes"), dtype=np.int64))
    if nbytes > _MOST_BYTES:
        raise ResourceError(
            f"{len(reader)} polygons with {nbytes // 16:,} vertices are more than can be "
            f"regularized at once ({_MOST_BYTES // 16:,} vertices)",
            code="RS-006",
            title="Too many polygons to regularize",
            where=str(path.parent),
            fix="drop small ones with --min-area, take the classes one by one with `scenemask vectorize --only`, or "
            "leave --regularize out",
        )
