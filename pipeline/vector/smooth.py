"""Staircases taken out of a coverage: every corner of an edge between two regions is cut half a pixel before it.

Steps of one pixel become straight diagonals. What is cut off lies inside one pixel, where no other edge passes, so
edges never meet; where three regions meet, or two touch at a corner, and along the scene's border nothing moves. Both
sides of an edge are cut alike: whether a corner is free is known of the place, not of the polygon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline.vector.faults import disk_errors
from pipeline.vector.rings import Rings, from_shapely
from pipeline.vector.spool import SCHEMA, SpoolReader

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.vector.rings import Ints
    from pipeline.vector.spool import PolygonBatch

_ALL_AROUND = 4
"""Pixels at a corner."""
_MOST_CLASSES = 1 << 16


def smooth_spool(path: Path, target: Path, *, scene_hw: tuple[int, int], by_class: bool) -> Path:
    """Write a spool whose polygons have no staircases, `target`; what was measured of them before stays.

    Args:
        path: The spool; outlines follow pixels, with a vertex wherever three regions meet.
        target: The new one, in canonical order.
        scene_hw: Height and width of the mask.
        by_class: Classes overlap, so that each is a coverage of its own.

    Raises:
        ResourceError: RS-002, the disk is full.
    """
    with SpoolReader(path) as reader, disk_errors(target), pa.ipc.new_file(str(target), SCHEMA) as file:
        fixed = _fixed_places(reader, scene_hw, by_class=by_class)
        for batch in reader.iter_batches():
            rings = from_shapely(batch.polygons)
            free = ~np.isin(_places(rings, batch, scene_hw, by_class=by_class), fixed)
            file.write_batch(batch.record(cut_corners(rings, free).to_shapely()))
    return target


def cut_corners(rings: Rings, free: NDArray[np.bool_]) -> Rings:
    """Rings without the corners that are free: two vertices take the place of each, half a pixel before and after.

    Args:
        rings: In pixel coordinates, every edge along an axis.
        free: Of each vertex. Those on straight edges stay.
    """
    before, after = _edges(rings)
    turns = free & (before * after == 0).all(axis=1)
    pair = np.stack([rings.coords, rings.coords], axis=1)
    pair[turns, 0] -= before[turns] / 2
    pair[turns, 1] += after[turns] / 2
    kept = np.ones((len(pair), 2), bool)
    kept[~turns, 1] = False
    kept[rings.is_last] = False
    counts = np.add.reduceat(kept.sum(axis=1), rings.ring_offsets[:-1])
    must_stay = np.stack([~turns, ~turns], axis=1)[kept]
    return _closed(pair[kept], np.repeat(np.arange(len(counts)), counts), must_stay, rings)


def _edges(rings: Rings) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors along the edges before and after each vertex, both shape (vertex, 2)."""
    step = np.zeros_like(rings.coords)
    step[:-1] = np.sign(np.diff(rings.coords, axis=0))
    ends, starts = rings.ring_offsets[1:] - 1, rings.ring_offsets[:-1]
    step[ends] = step[starts]
    before = np.roll(step, 1, axis=0)
    before[starts] = before[ends]
    return before, step


def _closed(coords: NDArray[np.float64], ring: Ints, must_stay: NDArray[np.bool_], rings: Rings) -> Rings:
    """Open rings without the vertices that tell nothing, closed; `ring` says which each vertex belongs to."""
    previous, _ = _around(ring)
    telling = (coords != coords[previous]).any(axis=1)
    coords, ring, must_stay = coords[telling], ring[telling], must_stay[telling]
    telling = must_stay | ~_is_straight(coords, ring)
    coords, ring = coords[telling], ring[telling]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(ring, minlength=len(rings.ring_offsets) - 1) + 1)])
    out = np.empty((offsets[-1], 2))
    closing = np.zeros(len(out), bool)
    closing[offsets[1:] - 1] = True
    out[~closing] = coords
    out[closing] = out[offsets[:-1]]
    return Rings(coords=out, ring_offsets=offsets, polygon_offsets=rings.polygon_offsets)


def _around(ring: Ints) -> tuple[Ints, Ints]:
    """(vertex before, vertex after) of each vertex of open rings."""
    last = np.flatnonzero(np.diff(ring, append=-1))
    first = np.append(0, last[:-1] + 1)
    previous, following = np.arange(len(ring)) - 1, np.arange(len(ring)) + 1
    previous[first], following[last] = last, first
    return previous, following


def _is_straight(coords: NDArray[np.float64], ring: Ints) -> NDArray[np.bool_]:
    """Whether each vertex of open rings lies on the line between its neighbours; exact for halves of pixels."""
    previous, following = _around(ring)
    (ax, ay), (bx, by) = (coords - coords[previous]).T, (coords[following] - coords).T
    return np.asarray(ax * by == ay * bx)


def _places(rings: Rings, batch: PolygonBatch, scene_hw: tuple[int, int], *, by_class: bool) -> Ints:
    """Number of the place of each vertex; of overlapping classes each has its own places."""
    x, y = rings.coords.astype(np.int64).T
    place = y * (scene_hw[1] + 1) + x
    place = place * _MOST_CLASSES + batch.class_ids[rings.polygon_of_vertex] if by_class else place
    return np.asarray(place, np.int64)


def _fixed_places(reader: SpoolReader, scene_hw: tuple[int, int], *, by_class: bool) -> Ints:
    """Places where corners stay, ascending."""
    bands = reader.row_bands(scene_hw[0])
    return np.unique(np.concatenate([_fixed_in(reader, rows, scene_hw, by_class=by_class) for rows in bands]))


def _fixed_in(reader: SpoolReader, rows: tuple[int, int], scene_hw: tuple[int, int], *, by_class: bool) -> Ints:
    """Those in some rows.

    A corner is free where one polygon turns against none, or two against each other: all four pixels are theirs.
    """
    places, pixels, at_border = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for batch in reader.iter_batches():
        rings = from_shapely(batch.polygons)
        x, y = rings.coords.T
        inside = ~rings.is_last & (y >= rows[0]) & (y < rows[1])
        place = _places(rings, batch, scene_hw, by_class=by_class)
        before, after = _edges(rings)
        # Outlines have their inside on the right: a turn to the right, -1, is around one pixel, one to the left around
        # three.
        turn = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
        places.append(place[inside])
        pixels.append((2 + turn[inside]).astype(np.int64))
        rim = (x == 0) | (y == 0) | (x == scene_hw[1]) | (y == scene_hw[0])
        at_border.append(place[inside & rim])
    order = np.argsort(np.concatenate(places), kind="stable")
    place, count = np.unique(np.concatenate(places), return_counts=True)
    around = np.concatenate(pixels)[order]
    starts = np.cumsum(count) - count
    total = np.add.reduceat(around, starts) if len(starts) else around
    free = (count == 1) | ((count == 2) & (total == _ALL_AROUND))  # noqa: PLR2004 - two that fill the place
    return np.concatenate([place[~free], *at_border])
