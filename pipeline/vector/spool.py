"""Finished regions on disk until they are written: one Arrow IPC file, read back in an order that knows no tiles.

The canonical order is that of each region's first pixel in the scene, row by row; another one may be asked for.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import shapely

from pipeline.errors import ResourceError
from pipeline.vector.faults import disk_errors
from pipeline.vector.rings import (
    count_pixels,
    drop_collinear,
    first_pixel,
    from_shapely,
    sum_inside,
    touches_border,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.vector.area import PixelAreas
    from pipeline.vector.join import Regions
    from pipeline.vector.rings import Geometries, Ints

_SCHEMA = pa.schema(
    {
        "first": pa.int64(),
        "class_id": pa.int64(),
        "area_px": pa.int64(),
        "area_units": pa.int64(),
        "touches_border": pa.bool_(),
        "num_bytes": pa.int64(),
        "id": pa.string(),
        "wkb": pa.large_binary(),
    }
)
_FLUSH_ROWS = 8192
_FLUSH_BYTES = 32 << 20
MOST_POLYGONS = 20_000_000
"""Putting them in order takes 50 bytes each in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolygonBatch:
    """Some polygons in canonical order; all arrays have shape (polygon,)."""

    polygons: Geometries
    """Shapely polygons in pixel coordinates, normalised."""
    ids: list[str]
    """16 hexadecimal digits of a digest of class and polygon."""
    class_ids: Ints
    """Value in the mask."""
    area_px: Ints
    """Pixels inside."""
    area_units: Ints
    """Geodesic area in units of the scene's `PixelAreas`; zero without a CRS."""
    touches_border: NDArray[np.bool_]
    """Whether a pixel lies at the scene's border, so that the region may go on beyond it."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(slots=True)
class SpoolWriter:
    """Takes regions in any order, drops those that are too small, and keeps the rest on disk."""

    path: Path
    scene_hw: tuple[int, int]
    areas: PixelAreas | None
    min_area_m2: float
    nodes: bool = False
    """Whether outlines have vertices on straight lines, where neighbours meet."""
    _file: pa.RecordBatchFileWriter = field(init=False)
    _pending: list[pa.RecordBatch] = field(default_factory=list)
    _count: int = 0

    def __post_init__(self) -> None:
        with disk_errors(self.path):
            self._file = pa.ipc.new_file(str(self.path), _SCHEMA)

    def add(self, regions: Regions) -> None:
        """Add regions; each must be whole.

        Raises:
            ResourceError: RS-002, the disk is full; RS-007, more polygons than can be put in order.
        """
        batch = self._describe(regions)
        if not batch.num_rows:
            return
        self._pending.append(batch)
        self._count += batch.num_rows
        if self._count > MOST_POLYGONS:
            raise ResourceError(
                f"the mask has more than {MOST_POLYGONS:,} polygons, the last of {_pixels_each(regions)} pixels each",
                code="RS-007",
                title="Too many polygons",
                where=str(self.path.parent),
                fix="drop small ones with --min-area, or give them to their neighbours with --sieve",
            )
        rows, size = sum(b.num_rows for b in self._pending), sum(b.nbytes for b in self._pending)
        if rows >= _FLUSH_ROWS or size >= _FLUSH_BYTES:
            self._flush()

    def close(self) -> None:
        """Finish the file.

        Raises:
            ResourceError: RS-002, the disk is full.
        """
        self._flush()
        with disk_errors(self.path):
            self._file.close()

    def _flush(self) -> None:
        if self._pending:
            with disk_errors(self.path):
                self._file.write_batch(pa.concat_batches(self._pending))
            self._pending = []

    def _describe(self, regions: Regions) -> pa.RecordBatch:
        polygons, values = np.asarray(shapely.normalize(regions.polygons)), regions.values
        rings = from_shapely(polygons)
        units = np.zeros(len(polygons), np.int64)
        kept = np.ones(len(polygons), bool)
        if self.areas is not None and len(polygons):
            units = sum_inside(rings, self.areas.integral)
            kept = self.areas.to_m2(units) >= self.min_area_m2
        if not kept.any():
            return pa.RecordBatch.from_pylist([], schema=_SCHEMA)
        values, wkb = values[kept], shapely.to_wkb(polygons[kept], byte_order=1)
        turns = wkb
        if self.nodes:
            plain = shapely.normalize(drop_collinear(rings).to_shapely()[kept])
            turns = shapely.to_wkb(plain, byte_order=1)
        columns = [
            first_pixel(rings, scene_width=self.scene_hw[1])[kept],
            values,
            count_pixels(rings)[kept],
            units[kept],
            touches_border(rings, self.scene_hw)[kept],
            np.fromiter(map(len, wkb), np.int64, len(wkb)),
            [_digest(value, geometry) for value, geometry in zip(values.tolist(), turns, strict=True)],
            wkb,
        ]
        return pa.record_batch(
            [pa.array(column, kind) for column, kind in zip(columns, _SCHEMA.types, strict=True)], schema=_SCHEMA
        )


def _pixels_each(regions: Regions) -> int:
    """Mean size of some regions, in pixels."""
    return max(1, round(float(count_pixels(regions.rings).mean()))) if len(regions.values) else 1


def _digest(value: int, wkb: bytes) -> str:
    """Identity of a polygon: class and outline in pixels of its scene, so that it survives another tiling or run."""
    return hashlib.blake2b(wkb, digest_size=8, salt=value.to_bytes(8, "little", signed=True)).hexdigest()


class SpoolReader:
    """Reads regions back in canonical order through a memory map; holds one batch at a time."""

    def __init__(self, path: Path) -> None:
        self._map = pa.memory_map(str(path))
        reader = pa.ipc.open_file(self._map)
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._order = np.argsort(self.column("first"), kind="stable")
        self._starts = np.cumsum([0, *(b.num_rows for b in self._batches)])

    def __len__(self) -> int:
        return len(self._order)

    def column(self, name: str) -> NDArray[np.int64]:
        """One whole-number column, in spool order."""
        empty = np.empty(0, np.int64)
        return np.concatenate([empty, *(b.column(name).to_numpy() for b in self._batches)])

    def whole(self) -> pa.Table:
        """Everything in canonical order, in memory."""
        if not self._batches:
            return _SCHEMA.empty_table()
        return pa.Table.from_batches(self._batches).take(pa.array(self._order))

    def iter_batches(
        self, *, max_rows: int, max_bytes: int, order: NDArray[np.intp] | None = None
    ) -> Iterator[PolygonBatch]:
        """Batches in canonical order; where they end depends on the regions only.

        Args:
            max_rows: Most polygons of a batch.
            max_bytes: A batch ends with the polygon that brings it to this size.
            order: Another order: rows of the spool.
        """
        order = self._order if order is None else order
        ends = np.cumsum(self.column("num_bytes")[order])
        start = 0
        while start < len(order):
            done = ends[start - 1] if start else 0
            stop = min(start + max_rows, int(np.searchsorted(ends, done + max_bytes)) + 1)
            yield self._take(order[start:stop])
            start = stop

    def close(self) -> None:
        """Let go of the file."""
        self._batches = []
        self._map.close()

    def _take(self, rows: NDArray[np.intp]) -> PolygonBatch:
        """Rows of the spool in the order given, copied out batch by batch (a chunked `take` would copy the column)."""
        ascending = np.sort(rows)
        cuts = np.searchsorted(ascending, self._starts)
        parts = [
            batch.take(pa.array(ascending[a:b] - start))
            for batch, start, a, b in zip(self._batches, self._starts[:-1], cuts[:-1], cuts[1:], strict=True)
            if b > a
        ]
        taken = pa.concat_batches(parts).take(pa.array(np.searchsorted(ascending, rows)))
        return PolygonBatch(
            polygons=np.asarray(shapely.from_wkb(taken.column("wkb").to_numpy(zero_copy_only=False))),
            ids=taken.column("id").to_pylist(),
            class_ids=taken.column("class_id").to_numpy(),
            area_px=taken.column("area_px").to_numpy(),
            area_units=taken.column("area_units").to_numpy(),
            touches_border=taken.column("touches_border").to_numpy(zero_copy_only=False),
        )
