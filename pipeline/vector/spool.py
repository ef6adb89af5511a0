"""Finished regions on disk until they are written: one Arrow IPC file, read back in an order that knows no tiles.

The canonical order is that of each region's first pixel in the scene, row by row; another one may be asked for.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import shapely

from pipeline.errors import ResourceError
from pipeline.vector.faults import disk_errors
from pipeline.vector.hilbert import hilbert_order
from pipeline.vector.rings import (
    count_pixels,
    drop_collinear,
    first_pixel,
    sum_inside,
    touches_border,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.vector.area import PixelAreas
    from pipeline.vector.join import Regions
    from pipeline.vector.rings import Geometries, Ints, Rings

SCHEMA = pa.schema(
    {
        "first": pa.int64(),
        "class_id": pa.int64(),
        "area_px": pa.int64(),
        "area_units": pa.int64(),
        "touches_border": pa.bool_(),
        "touches_nodata": pa.bool_(),
        "steps_sum": pa.int64(),
        "steps_min": pa.int64(),
        "unsure_px": pa.int64(),
        "filled_px": pa.int64(),
        "num_bytes": pa.int64(),
        "id": pa.string(),
        "wkb": pa.large_binary(),
    }
)
_FLUSH_ROWS = 8192
_FLUSH_BYTES = 32 << 20
_ROWS_AT_ONCE = 8192
_BYTES_AT_ONCE = 32 << 20
_CORNERS_AT_ONCE = 16_000_000
"""In 24 bytes each."""
_MOST_MAPPED = 128 << 20
MOST_POLYGONS = 20_000_000
"""Putting them in order takes 50 bytes each in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolygonBatch:
    """Some polygons in canonical order; all arrays have shape (polygon,)."""

    polygons: Geometries
    """Shapely polygons in pixel coordinates, normalised."""
    first: Ints
    """First pixel, row-major."""
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
    touches_nodata: NDArray[np.bool_]
    """Whether a pixel lies beside one without a class."""
    steps_sum: Ints
    """Sum of the stored probabilities of the pixels' class; 0 where none were kept."""
    steps_min: Ints
    """Least of them."""
    unsure_px: Ints
    """Pixels whose class has a low probability."""
    filled_px: Ints
    """Pixels of `area_px` that were holes."""

    def __len__(self) -> int:
        return len(self.ids)

    def columns(self) -> dict[str, Any]:
        """Columns of `SCHEMA` that are as they are here: all but the geometry's own."""
        names = {"class_id": "class_ids", "id": "ids"}
        return {name: getattr(self, names.get(name, name)) for name in SCHEMA.names if name not in _OF_GEOMETRY}

    def record(self, polygons: Geometries, **changes: Any) -> pa.RecordBatch:
        """Rows of a spool with other outlines, and other values of some columns of `SCHEMA`.

        Args:
            polygons: Instead of these.
            changes: Column -> values.
        """
        wkb = shapely.to_wkb(polygons, byte_order=1)
        sizes = np.fromiter(map(len, wkb), np.int64, len(wkb))
        columns = {**self.columns(), **changes, "num_bytes": sizes, "wkb": wkb}
        return pa.record_batch([pa.array(columns[f.name], f.type) for f in SCHEMA], schema=SCHEMA)


_OF_GEOMETRY = {"num_bytes", "wkb"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Smallest:
    """Sizes below which things are left out."""

    areas: PixelAreas | None
    """Geodesic area of each pixel; None without a CRS."""
    m2: float = 0.0
    px: float = 0.0

    @property
    def leaves_out(self) -> bool:
        """Whether anything is too small."""
        return max(self.m2, self.px) > 0

    def but_all(self) -> Smallest:
        """The same that leaves nothing out."""
        return Smallest(areas=self.areas)

    def keeps(self, units: Ints, pixels: Ints) -> NDArray[np.bool_]:
        """Whether things of these sizes stay, given in units of `areas` and in pixels."""
        large = np.asarray(pixels >= self.px)
        return large if self.areas is None else large & (self.areas.to_m2(units) >= self.m2)


@dataclass(slots=True)
class SpoolWriter:
    """Takes regions in any order, drops those that are too small, and keeps the rest on disk."""

    path: Path
    scene_hw: tuple[int, int]
    areas: PixelAreas | None
    smallest: Smallest | None = None
    """Which regions stay; None for all."""
    nodes: bool = False
    """Whether outlines have vertices on straight lines, where neighbours meet."""
    _file: pa.RecordBatchFileWriter = field(init=False)
    _pending: list[pa.RecordBatch] = field(default_factory=list)
    count: int = 0
    """Regions kept so far."""

    def __post_init__(self) -> None:
        with disk_errors(self.path):
            self._file = pa.ipc.new_file(str(self.path), SCHEMA)

    def add(self, regions: Regions) -> None:
        """Add regions; each must be whole.

        Raises:
            ResourceError: RS-002, the disk is full; RS-007, more polygons than can be put in order.
        """
        batch = self._describe(regions)
        if not batch.num_rows:
            return
        self._pending.append(batch)
        self.count += batch.num_rows
        refuse_too_many(self.count, self.path.parent)
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
        units, pixels = sizes_of(regions.rings, self.areas)
        assert (pixels > 0).all(), "a hole was taken for the exterior"
        kept = np.ones(len(pixels), bool) if self.smallest is None else self.smallest.keeps(units, pixels)
        if not kept.any():
            return pa.RecordBatch.from_pylist([], schema=SCHEMA)
        rings, values, facts = regions.rings.take(kept), regions.values[kept], regions.facts.of(np.flatnonzero(kept))
        wkb = outlines(rings.to_shapely())
        turns = outlines(drop_collinear(rings).to_shapely()) if self.nodes else wkb
        columns = [
            first_pixel(rings, scene_width=self.scene_hw[1]),
            values,
            pixels[kept],
            units[kept],
            touches_border(rings, self.scene_hw),
            facts.touches_nodata,
            facts.steps_sum,
            facts.steps_min,
            facts.unsure_px,
            np.zeros(len(values), np.int64),
            np.fromiter(map(len, wkb), np.int64, len(wkb)),
            identities(values, turns),
            wkb,
        ]
        return pa.record_batch(
            [pa.array(column, kind) for column, kind in zip(columns, SCHEMA.types, strict=True)], schema=SCHEMA
        )


def refuse_too_many(count: int, folder: Path) -> None:
    """Refuse more polygons than can be put in order.

    Raises:
        ResourceError: RS-007.
    """
    if count > MOST_POLYGONS:
        raise ResourceError(
            f"the mask has more than {MOST_POLYGONS:,} polygons",
            code="RS-007",
            title="Too many polygons",
            where=str(folder),
            fix="drop small ones with --min-area, or give them to their neighbours with --sieve",
        )


def sizes_of(rings: Rings, areas: PixelAreas | None) -> tuple[Ints, Ints]:
    """(area in units, zero without a CRS; pixels) of each polygon, both shape (polygon,)."""
    if not len(rings):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    pixels = count_pixels(rings)
    return (np.zeros_like(pixels) if areas is None else sum_inside(rings, areas.integral)), pixels


def outlines(polygons: Geometries) -> NDArray[Any]:
    """What a polygon's identity is made of: its normalised WKB."""
    return np.asarray(shapely.to_wkb(shapely.normalize(polygons), byte_order=1))


def identities(class_ids: Ints, wkb: Iterable[bytes]) -> list[str]:
    """16 hexadecimal digits for each polygon, from its class and the WKB of its turns."""
    return [_digest(value, geometry) for value, geometry in zip(class_ids.tolist(), wkb, strict=True)]


def _digest(value: int, wkb: bytes) -> str:
    """Identity of a polygon: class and outline in pixels of its scene, so that it survives another tiling or run."""
    return hashlib.blake2b(wkb, digest_size=8, salt=value.to_bytes(8, "little", signed=True)).hexdigest()


def _canonical(first: Ints, class_ids: Ints) -> NDArray[np.intp]:
    """Rows in the order of first pixels; where classes overlap, of those with the same one the lower class first."""
    order = np.argsort(first, kind="stable")
    same = (first[order[1:]] == first[order[:-1]]).any()
    return np.lexsort((class_ids, first)) if same else order


class SpoolReader:
    """Reads regions back in canonical order through a memory map; holds one batch at a time.

    Args:
        path: Of a spool, or a folder of some.
    """

    def __init__(self, path: Path) -> None:
        self._paths = sorted(path.glob("*.arrow")) if path.is_dir() else [path]
        self._seen_bytes = 0
        self._open()
        self._order = _canonical(self.column("first"), self.column("class_id"))
        self._starts = np.cumsum([0, *(b.num_rows for b in self._batches)])

    def _open(self) -> None:
        self._maps = [pa.memory_map(str(path)) for path in self._paths]
        readers = [pa.ipc.open_file(file) for file in self._maps]
        self._batches = [reader.get_batch(i) for reader in readers for i in range(reader.num_record_batches)]

    def __len__(self) -> int:
        return len(self._order)

    def column(self, name: str) -> NDArray[np.int64]:
        """One whole-number column, in spool order."""
        empty = np.empty(0, np.int64)
        return np.concatenate([empty, *(b.column(name).to_numpy() for b in self._batches)])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def iter_batches(
        self, *, max_rows: int | None = None, max_bytes: int | None = None, order: NDArray[np.intp] | None = None
    ) -> Iterator[PolygonBatch]:
        """Batches in canonical order; where they end depends on the regions only.

        Args:
            max_rows: Most polygons of a batch; as many as are worth working on at once if not given.
            max_bytes: A batch ends with the polygon that brings it to this size.
            order: Another order: rows of the spool.
        """
        max_rows, max_bytes = max_rows or _ROWS_AT_ONCE, max_bytes or _BYTES_AT_ONCE
        order = self._order if order is None else order
        ends = np.cumsum(self.column("num_bytes")[order])
        start = 0
        while start < len(order):
            done = ends[start - 1] if start else 0
            stop = min(start + max_rows, int(np.searchsorted(ends, done + max_bytes)) + 1)
            yield self._rows(order[start:stop])
            start = stop

    def coverages(self, *, by_class: bool) -> list[NDArray[np.intp]]:
        """Rows of the polygons that do not overlap, all or those of each class, in the order in which they lie here."""
        classes = self.column("class_id")
        return (
            [np.flatnonzero(classes == value) for value in np.unique(classes)] if by_class else [np.arange(len(self))]
        )

    def close(self) -> None:
        """Let go of the file."""
        self._batches = []
        for file in self._maps:
            file.close()

    def row_bands(self, height: int) -> list[tuple[int, int]]:
        """Bands of rows of corners, (start, stop), each of about as many corners as can be compared at once.

        Args:
            height: Of the mask.
        """
        corners = int(self.num_bytes.sum()) // 16
        count = max(1, -(-corners // _CORNERS_AT_ONCE))
        return list(itertools.pairwise(np.linspace(0, height + 1, count + 1).astype(np.int64).tolist()))

    def along_curve(self, scene_hw: tuple[int, int]) -> NDArray[np.intp]:
        """Rows in the order of first pixels along a Hilbert curve over a scene."""
        return np.asarray(self._order[hilbert_order(self.first, scene_hw)])

    def in_rows(self, values: NDArray[Any]) -> NDArray[Any]:
        """What is known of each polygon, in spool order, from the same in canonical order."""
        rows = np.empty_like(values)
        rows[self._order] = values
        return rows

    @property
    def first(self) -> Ints:
        """First pixel of each polygon, in canonical order."""
        return self.column("first")[self._order]

    @property
    def class_ids(self) -> Ints:
        """Class of each polygon, in canonical order."""
        return self.column("class_id")[self._order]

    @property
    def num_bytes(self) -> Ints:
        """Size of each polygon, in canonical order."""
        return self.column("num_bytes")[self._order]

    def rows(self, numbers: Ints) -> NDArray[np.intp]:
        """Rows of the spool, from canonical numbers."""
        return np.asarray(self._order[numbers])

    def take(self, numbers: Ints) -> PolygonBatch:
        """Polygons by their canonical numbers, in the order given."""
        return self._rows(self._order[numbers])

    def _rows(self, rows: NDArray[np.intp]) -> PolygonBatch:
        """Rows of the spool in the order given, copied out batch by batch (a chunked `take` would copy the column)."""
        if self._seen_bytes > _MOST_MAPPED:
            self.close()  # what was read stays in this process's memory as long as it is mapped
            self._open()
            self._seen_bytes = 0
        ascending = np.sort(rows)
        cuts = np.searchsorted(ascending, self._starts)
        parts = [
            batch.take(pa.array(ascending[a:b] - start))
            for batch, start, a, b in zip(self._batches, self._starts[:-1], cuts[:-1], cuts[1:], strict=True)
            if b > a
        ]
        taken = pa.concat_batches(parts).take(pa.array(np.searchsorted(ascending, rows)))
        self._seen_bytes += sum(part.nbytes for part in parts)
        return PolygonBatch(
            polygons=np.asarray(shapely.from_wkb(taken.column("wkb").to_numpy(zero_copy_only=False))),
            first=taken.column("first").to_numpy(),
            ids=taken.column("id").to_pylist(),
            class_ids=taken.column("class_id").to_numpy(),
            area_px=taken.column("area_px").to_numpy(),
            area_units=taken.column("area_units").to_numpy(),
            touches_border=taken.column("touches_border").to_numpy(zero_copy_only=False),
            touches_nodata=taken.column("touches_nodata").to_numpy(zero_copy_only=False),
            steps_sum=taken.column("steps_sum").to_numpy(),
            steps_min=taken.column("steps_min").to_numpy(),
            unsure_px=taken.column("unsure_px").to_numpy(),
            filled_px=taken.column("filled_px").to_numpy(),
        )
