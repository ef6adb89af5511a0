"""Small holes filled: the ring goes, and with it every polygon that lies inside.

A region never crosses the ring of a hole, which is the side of other pixels; so what has its first pixel inside a hole
lies inside it whole. Holes that hold nodata or classes that were left out are filled alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import shapely

from pipeline.vector.faults import disk_errors
from pipeline.vector.rings import as_polygons, drop_collinear, from_shapely, take_ragged
from pipeline.vector.spool import SCHEMA, SpoolReader, identities, outlines, sizes_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.vector.rings import Geometries, Ints, Rings
    from pipeline.vector.spool import PolygonBatch, Smallest

_HOLES_AT_ONCE = 100_000


def fill_spool(
    path: Path,
    target: Path,
    *,
    holes: Smallest,
    smallest: Smallest,
    width: int,
    by_class: bool,
) -> Path:
    """Write a spool without the holes that are too small, `target`.

    Args:
        path: The spool; outlines follow pixels.
        target: The new one; polygons lie in it as they did, those of one tile together.
        holes: Which holes stay.
        smallest: Which polygons stay, their holes being filled.
        width: Of the mask.
        by_class: Classes overlap: a polygon of another class is not inside.

    Raises:
        ResourceError: RS-002, the disk is full.
    """
    done = 0
    with SpoolReader(path) as reader, disk_errors(target), pa.ipc.new_file(str(target), SCHEMA) as file:
        inside = reader.in_rows(_inside_holes(reader, holes, width, by_class=by_class))
        for batch in reader.iter_batches(order=np.arange(len(reader))):
            record = _filled(batch, holes)
            units, pixels = (record.column(name).to_numpy() for name in ("area_units", "area_px"))
            kept = ~inside[done : done + len(batch)] & smallest.keeps(units, pixels)
            file.write_batch(record.filter(pa.array(kept)))
            done += len(batch)
    return target


def _inside_holes(reader: SpoolReader, holes: Smallest, width: int, *, by_class: bool) -> NDArray[np.bool_]:
    """Whether each polygon lies in a hole that is filled, in canonical order."""
    first, classes = reader.first, reader.class_ids
    inside = np.zeros(len(first), bool)
    for shapes, hole_classes in _filled_holes(reader, holes):
        bounds = shapely.bounds(shapes)
        # In canonical order: rows from above to below.
        start, stop = np.searchsorted(first, [bounds[:, 1].min() * width, bounds[:, 3].max() * width])
        row, col = np.divmod(first[start:stop], width)
        points = np.asarray(shapely.points(col + 0.5, row + 0.5))
        hole, point = shapely.STRtree(points).query(shapes, predicate="contains")
        point = point[classes[start + point] == hole_classes[hole]] if by_class else point
        inside[start + point] = True
    return inside


def _filled_holes(reader: SpoolReader, holes: Smallest) -> Iterator[tuple[Geometries, Ints]]:
    """Holes to fill as polygons, some at a time, with the class around them."""
    shapes: list[Geometries] = []
    classes: list[Ints] = []
    for batch in reader.iter_batches():
        rings = from_shapely(batch.polygons)
        gone = _gone(rings, holes)
        if gone.any():
            shapes.append(_each_ring(rings).to_shapely()[gone])
            classes.append(batch.class_ids[rings.polygon_of_ring[gone]])
        if sum(map(len, shapes)) >= _HOLES_AT_ONCE:
            yield np.concatenate(shapes), np.concatenate(classes)
            shapes, classes = [], []
    if shapes:
        yield np.concatenate(shapes), np.concatenate(classes)


def _each_ring(rings: Rings) -> Rings:
    """Every ring as a polygon of its own."""
    return as_polygons(rings.coords, rings.ring_offsets, np.arange(len(rings.ring_offsets) - 1))


def _gone(rings: Rings, holes: Smallest) -> NDArray[np.bool_]:
    """Whether each ring is a hole that is too small."""
    is_hole = np.ones(len(rings.ring_offsets) - 1, bool)
    is_hole[rings.polygon_offsets[:-1]] = False
    if not is_hole.any():
        return is_hole
    units, pixels = sizes_of(_each_ring(rings), holes.areas)
    return is_hole & ~holes.keeps(units, pixels)


def _filled(batch: PolygonBatch, holes: Smallest) -> pa.RecordBatch:
    """A batch without its small holes; polygons that had some have another identity."""
    rings = from_shapely(batch.polygons)
    gone = _gone(rings, holes)
    pieces = np.stack([rings.ring_offsets[:-1], np.diff(rings.ring_offsets)], axis=1)[~gone]
    offsets = np.concatenate([[0], np.cumsum(pieces[:, 1])])
    left = as_polygons(take_ragged(rings.coords, pieces), offsets, rings.polygon_of_ring[~gone])
    units, pixels = sizes_of(left, holes.areas)
    polygons = left.to_shapely()
    changed = np.flatnonzero(pixels != batch.area_px)
    ids = np.array(batch.ids, object)
    turns = drop_collinear(left).to_shapely()[changed]
    ids[changed] = identities(batch.class_ids[changed], outlines(turns))
    filled = batch.filled_px + pixels - batch.area_px
    return batch.record(polygons, area_px=pixels, area_units=units, filled_px=filled, id=ids)
