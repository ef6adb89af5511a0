"""Simplification that keeps the coverage: an edge that two polygons share moves once, for both.

Polygons need a vertex wherever three of them meet, which tracing with `nodes` gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import shapely

from pipeline.errors import ResourceError, UsageError
from pipeline.vector.faults import disk_errors
from pipeline.vector.spool import SpoolReader

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.vector.rings import Geometries


class Tolerance(NamedTuple):
    """How far a simplification may go."""

    value: float
    unit: Literal["m", "px"]

    def to_px(self, pixel_m: float | None) -> float:
        """In pixels of a mask whose pixels have such sides; None where it is tied to no place on Earth.

        Raises:
            UsageError: CF-034, metres without a CRS.
        """
        if self.unit == "px":
            return self.value
        if pixel_m is None:
            raise UsageError(
                f"a tolerance of {self.value:g} m was asked for, but the mask has no CRS to measure in",
                code="CF-034",
                title="Tolerance needs a CRS",
                fix=f"give it in pixels, such as `{self.value:g} px`",
            )
        return self.value / pixel_m


_MOST_BYTES = 256 << 20
"""Outlines that are simplified at once. GEOS holds all edges of a coverage: 12 times as much (2.5 GB for 10.4 million
vertices of 266 928 polygons), so at most 3.6 GB."""


def simplify_coverage(polygons: Geometries, tolerance_px: float) -> Geometries:
    """Polygons without corners whose triangle is smaller than the square of the tolerance.

    Args:
        polygons: A valid coverage in pixel coordinates: none overlap, neighbours share all vertices. Shape (polygon,).
        tolerance_px: In pixels. 1 takes the steps of diagonal edges, 2 those of all slanting edges up to 1 : 8.

    Returns:
        As many polygons, in the same order: valid, none empty, again a coverage.

    Source: Visvalingam and Whyatt 1993, on the edges of a coverage, as GEOS has it (`CoverageSimplifier`).
    """
    if not len(polygons):
        return polygons
    return np.asarray(shapely.coverage_simplify(polygons, tolerance_px, simplify_boundary=True))


def simplify_spool(path: Path, target: Path, tolerance_px: float, *, by_class: bool) -> Path:
    """Write a spool whose polygons are simplified, `target`; what was measured of them before stays.

    Args:
        path: The spool.
        target: The new one, in canonical order.
        tolerance_px: See `simplify_coverage`.
        by_class: Classes overlap, so that each is a coverage of its own.

    Raises:
        ResourceError: RS-006, more than can be simplified at once; RS-002, the disk is full.
    """
    table, polygons = read_whole(path)
    for group in coverages(table, by_class=by_class):
        polygons[group] = simplify_coverage(polygons[group], tolerance_px)
    return write_whole(table, polygons, target)


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
            f"{len(reader)} polygons with {nbytes // 16:,} vertices are more than can be simplified or "
            f"regularized at once ({_MOST_BYTES // 16:,} vertices)",
            code="RS-006",
            title="Too many polygons to simplify",
            where=str(path.parent),
            fix="drop small ones with --min-area, take the classes one by one with `scenemask vectorize --only`, or "
            "leave --simplify and --regularize out",
        )
