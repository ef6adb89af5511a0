"""Polygons on the pixel lattice as ragged arrays: conversion, seam vertices, sums along rings. Knows no files.

Coordinates are pixel corners `(x, y)` = (column, row), whole numbers held as float64 because Shapely wants floats
(exact up to 2**53). Every edge is horizontal or vertical.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Geometries = NDArray[np.object_]
    Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rings:
    """Polygons as rings in one coordinate array, closed: the first vertex of a ring comes again as its last."""

    coords: NDArray[np.float64]
    """Shape (vertex, 2), `(x, y)` in pixels."""
    ring_offsets: Ints
    """Shape (ring + 1,): ring `i` is `coords[ring_offsets[i]:ring_offsets[i + 1]]`."""
    polygon_offsets: Ints
    """Shape (polygon + 1,), into rings; the first ring of a polygon is its exterior, the others are holes."""

    def __len__(self) -> int:
        return len(self.polygon_offsets) - 1

    @property
    def polygon_of_ring(self) -> Ints:
        """Index of the polygon, per ring."""
        return np.repeat(np.arange(len(self)), np.diff(self.polygon_offsets))

    @property
    def polygon_of_vertex(self) -> Ints:
        """Index of the polygon, per vertex."""
        return np.repeat(self.polygon_of_ring, np.diff(self.ring_offsets))

    @property
    def is_last(self) -> NDArray[np.bool_]:
        """True at the repeated vertex that closes each ring, where no edge begins."""
        last = np.zeros(len(self.coords), bool)
        last[self.ring_offsets[1:] - 1] = True
        return last

    def take(self, kept: NDArray[np.bool_]) -> Rings:
        """Some of the polygons; `kept` is of shape (polygon,)."""
        if kept.all():
            return self
        ring_kept = kept[self.polygon_of_ring]
        lengths = np.diff(self.ring_offsets)
        return Rings(
            coords=self.coords[np.repeat(ring_kept, lengths)],
            ring_offsets=np.concatenate([[0], np.cumsum(lengths[ring_kept])]),
            polygon_offsets=np.concatenate([[0], np.cumsum(np.diff(self.polygon_offsets)[kept])]),
        )

    def to_shapely(self, coords: NDArray[np.float64] | None = None) -> Geometries:
        """Shapely polygons, shape (polygon,); with `coords` (vertex, 2) in place of the pixel coordinates if given."""
        if not len(self):
            return np.empty(0, object)
        coords = self.coords if coords is None else coords
        offsets = (self.ring_offsets, self.polygon_offsets)
        return np.asarray(shapely.from_ragged_array(shapely.GeometryType.POLYGON, coords, offsets))


def from_shapely(polygons: Geometries) -> Rings:
    """Ragged arrays of Shapely polygons (no multi-polygons, none empty)."""
    if not len(polygons):
        return Rings(coords=np.empty((0, 2)), ring_offsets=np.zeros(1, np.int64), polygon_offsets=np.zeros(1, np.int64))
    kind, coords, offsets = shapely.to_ragged_array(polygons, include_z=False)
    if kind is not shapely.GeometryType.POLYGON:
        msg = f"expected polygons, got {kind.name}"
        raise TypeError(msg)
    return Rings(coords=coords, ring_offsets=offsets[0].astype(np.int64), polygon_offsets=offsets[1].astype(np.int64))


def take_ragged(values: NDArray[Any], pieces: Ints) -> NDArray[Any]:
    """Some pieces of an array, one after the other; `(piece, 2)` says where each begins and how long it is."""
    starts, lengths = pieces.T
    before = np.cumsum(lengths) - lengths
    return np.asarray(values[np.repeat(starts - before, lengths) + np.arange(lengths.sum())])


def as_polygons(coords: NDArray[np.float64], ring_offsets: Ints, polygon: Ints) -> Rings:
    """Closed rings as polygons; `polygon` says which each belongs to, ascending, the exterior of each first."""
    first = np.flatnonzero(np.diff(polygon, prepend=-1))
    return Rings(
        coords=coords, ring_offsets=ring_offsets, polygon_offsets=np.append(first, len(polygon)).astype(np.int64)
    )


def drop_collinear(rings: Rings) -> Rings:
    """The same rings with their turns only: no vertex where two edges continue each other."""
    xy, last = rings.coords, rings.is_last
    before = np.roll(xy, 1, axis=0)
    first = rings.ring_offsets[:-1]
    before[first] = xy[rings.ring_offsets[1:] - 2]  # a ring's first vertex follows the last but one
    after = np.roll(xy, -1, axis=0)
    straight = ((before == xy) & (xy == after)).any(axis=1)
    kept = ~straight & ~last
    counts = np.add.reduceat(kept.astype(np.int64), first) if len(first) else np.empty(0, np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts + 1)])
    out = np.empty((offsets[-1], 2))
    is_closing = np.zeros(len(out), bool)
    is_closing[offsets[1:] - 1] = True
    out[~is_closing] = xy[kept]
    out[is_closing] = out[offsets[:-1]]
    return Rings(coords=out, ring_offsets=offsets, polygon_offsets=rings.polygon_offsets)


def first_pixel(rings: Rings, *, scene_width: int) -> Ints:
    """Row-major index of each polygon's first pixel in the scene, shape (polygon,).

    The topmost, then leftmost vertex of a polygon is the upper left corner of its first pixel.
    """
    xy = rings.coords.astype(np.int64)
    index = xy[:, 1] * scene_width + xy[:, 0]
    return np.asarray(np.minimum.reduceat(index, rings.ring_offsets[rings.polygon_offsets[:-1]]), np.int64)


def touches_border(rings: Rings, scene_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Whether each polygon has a pixel at the border of a scene (height, width), shape (polygon,)."""
    if not len(rings):
        return np.empty(0, bool)
    x, y = rings.coords.T
    at_border = (x == 0) | (y == 0) | (x == scene_hw[1]) | (y == scene_hw[0])
    return np.asarray(np.logical_or.reduceat(at_border, rings.ring_offsets[rings.polygon_offsets[:-1]]))


def sum_inside(rings: Rings, integral: Callable[[Ints, Ints], Ints]) -> Ints:
    """Sum of a per-pixel integer quantity over the pixels of each polygon, exactly, shape (polygon,).

    Args:
        rings: The polygons, holes oriented against their exterior or not.
        integral: `integral(x, y)`: sum over the scene's pixels left of `x` and above `y`.

    A vertical edge at `x` from `y0` to `y1` contributes `integral(x, y1) - integral(x, y0)` (Green's theorem on the
    lattice), so the cost follows the vertices, not the pixels, and whole numbers make the sum independent of order.
    """
    xy, last = rings.coords.astype(np.int64), rings.is_last
    values = integral(xy[:, 0], xy[:, 1])
    vertical = ~last[:-1] & (xy[:-1, 0] == xy[1:, 0])
    steps = np.zeros(len(xy), np.int64)
    steps[:-1] = np.where(vertical, values[1:] - values[:-1], 0)
    per_ring = np.abs(np.add.reduceat(steps, rings.ring_offsets[:-1]))
    exterior = rings.polygon_offsets[:-1]
    all_rings = np.add.reduceat(per_ring, exterior)
    return np.asarray(2 * per_ring[exterior] - all_rings, np.int64)  # exterior minus holes


def count_pixels(rings: Rings) -> Ints:
    """Pixels inside each polygon, shape (polygon,)."""
    return sum_inside(rings, lambda x, y: x * y)
