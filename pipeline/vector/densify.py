"""Points along pixel edges, so that straight edges of the grid stay true when drawn straight in longitude and latitude.

Where the points lie depends on the position in the scene only, never on the polygon: neighbours get the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.vector.lonlat import wrap
from pipeline.vector.rings import Rings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.vector.lonlat import ToLonLat
    from pipeline.vector.rings import Ints

    Floats = NDArray[np.float64]
    Directions = tuple[tuple[int, int], ...]

_TOLERANCE_PX = 0.05
"""Largest distance between an edge drawn straight and the true one, as measured at the middle."""
_MAX_TURN_DEG = 120.0
"""Longer steps in longitude could not be told from steps the other way round."""
_CELLS = 128
_PARTS = 4
"""Parts of a pixel that points may lie on: beside a pole the edge of one pixel spans an eighth of a turn."""
_MIN_CELL_PX = 16
_STRAIGHT: Directions = ((1, 0), (0, 1))
_SLANTING: Directions = ((1, 1), (1, -1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Spacing:
    """How far apart the points on grid lines are: powers of two, counted from the scene's upper left corner."""

    finest_px: float
    """Smallest spacing anywhere; 0 if no edge of the scene needs a point."""
    cell_px: int = 0
    """Side of the cells of `per_cell`; a multiple of every spacing in it."""
    per_cell: Floats | None = None
    """Spacing in each cell, shape (cell row, cell column); None where one spacing serves the whole scene."""


def measure_spacing(place: ToLonLat, *, slanting: bool = False) -> Spacing:
    """Largest spacing that keeps reprojected edges within a twentieth of a pixel; with `slanting`, diagonal ones too.

    One spacing for the scene where that costs little; else one per cell, since near a pole edges bend strongly.
    """
    height, width = place.geobox.shape
    directions = _STRAIGHT + _SLANTING if slanting else _STRAIGHT
    longest = 1 << (max(height, width) - 1).bit_length()
    cell = max(_MIN_CELL_PX, longest // _CELLS)
    length = longest
    while length >= cell:
        if not _scene_bends(place, length, directions):
            return Spacing(finest_px=0 if length == longest else length)
        length //= 2
    per_cell = _spacing_per_cell(place, cell, directions)
    return Spacing(finest_px=float(per_cell.min()), cell_px=cell, per_cell=per_cell)


def densify(rings: Rings, spacing: Spacing) -> Rings:
    """The same rings with points on their edges at multiples of the spacing."""
    if not spacing.finest_px or not len(rings):
        return rings
    xy, step = (rings.coords * _PARTS).astype(np.int64), int(spacing.finest_px * _PARTS)
    axis = np.zeros(len(xy), np.int64)  # of the edge that begins here: 0 along x, 1 along y
    axis[:-1] = xy[:-1, 0] == xy[1:, 0]
    start, stop = _along(xy[:-1], axis[:-1]), _along(xy[1:], axis[:-1])
    first, last = np.minimum(start, stop) // step + 1, (np.maximum(start, stop) - 1) // step
    counts = np.where(rings.is_last[:-1], 0, np.maximum(last - first + 1, 0))
    edge = np.repeat(np.arange(len(counts)), counts)
    nth = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)
    points = xy[edge]
    forth = stop[edge] > start[edge]
    points[np.arange(len(edge)), axis[edge]] = step * np.where(forth, first[edge] + nth, last[edge] - nth)
    wanted = _wanted(points, axis[edge], spacing)
    points, edge = points[wanted], edge[wanted]
    return _with_points(rings, edge, points / _PARTS)


def densify_slanting(rings: Rings, spacing: Spacing) -> Rings:
    """The same for edges in any direction: each is cut into equal parts, no longer than the spacing at its ends.

    Parts are counted from the edge's smaller end, whichever way it runs.
    """
    if not spacing.finest_px or not len(rings):
        return rings
    start, stop = rings.coords[:-1], rings.coords[1:]
    turned = (start[:, 0] > stop[:, 0]) | ((start[:, 0] == stop[:, 0]) & (start[:, 1] > stop[:, 1]))
    low, high = (np.where(turned[:, None], one, other) for one, other in ((stop, start), (start, stop)))
    length = np.abs(high - low).max(axis=1)
    step = np.minimum.reduce([_spacing_at(xy, spacing) for xy in (low, (low + high) / 2, high)])
    parts = np.maximum(np.ceil(length / step), 1).astype(np.int64)
    counts = np.where(rings.is_last[:-1], 0, parts - 1)
    edge = np.repeat(np.arange(len(counts)), counts)
    nth = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    from_low = np.where(turned[edge], parts[edge] - nth, nth) / parts[edge]
    points = low[edge] + (high[edge] - low[edge]) * from_low[:, None]
    return _with_points(rings, edge, points)


def _with_points(rings: Rings, edge: Ints, points: Floats) -> Rings:
    """The rings with points, in the order in which they lie, on edges numbered like their first vertices."""
    return Rings(
        coords=np.insert(rings.coords, edge + 1, points, axis=0),
        ring_offsets=rings.ring_offsets + np.searchsorted(edge, rings.ring_offsets),
        polygon_offsets=rings.polygon_offsets,
    )


def _spacing_at(xy: Floats, spacing: Spacing) -> Floats:
    """Spacing at each point, in pixels."""
    if spacing.per_cell is None:
        return np.full(len(xy), spacing.finest_px)
    cells = (xy // spacing.cell_px).astype(np.int64)
    rows, cols = (np.clip(cells[:, i], 0, side - 1) for i, side in zip((1, 0), spacing.per_cell.shape, strict=True))
    return np.asarray(spacing.per_cell[rows, cols])


def _along(xy: Ints, axis: Ints) -> Ints:
    """The coordinate that changes along each edge."""
    return np.where(axis == 0, xy[:, 0], xy[:, 1])


def _wanted(xy: Ints, axis: Ints, spacing: Spacing) -> NDArray[np.bool_]:
    """Which of the points at the finest spacing, given in parts of a pixel, their cell asks for."""
    if spacing.per_cell is None:
        return np.ones(len(xy), bool)
    return np.asarray(_along(xy, axis) % (_spacing_at(xy / _PARTS, spacing) * _PARTS) == 0)


def _scene_bends(place: ToLonLat, length: int, directions: Directions) -> bool:
    """True if some edge of this length bends more than allowed, on a sample of the scene."""
    height, width = place.geobox.shape
    for along_x, along_y in directions:
        half = min(length, *(side for side, along in ((width, along_x), (height, along_y)) if along)) / 2
        dx, dy = half * along_x, half * along_y
        x = np.linspace(abs(dx), width - abs(dx), 9)
        y = np.linspace(abs(dy), height - abs(dy), 9)
        xs, ys = (a.ravel() for a in np.meshgrid(x, y))
        if (_bow(place, xs, ys, dx, dy) > _TOLERANCE_PX).any():
            return True
    return False


def _spacing_per_cell(place: ToLonLat, cell: int, directions: Directions) -> Floats:
    """Largest power of two that keeps within the tolerance, for each cell; a part of a pixel where none does."""
    height, width = place.geobox.shape
    shape = -(-height // cell), -(-width // cell)
    spacing = np.full(shape, 1 / _PARTS)
    rows, cols = (a.ravel() for a in np.indices(shape))
    offsets = np.array([(u, v) for v in (0.0, 0.5, 1.0) for u in (0.0, 0.5, 1.0)]) * cell
    length = float(cell)
    while length > 1 / _PARTS and len(rows):
        x = (cols[:, None] * cell + offsets[:, 0]).ravel()
        y = (rows[:, None] * cell + offsets[:, 1]).ravel()
        bow = np.maximum.reduce([_bow(place, x, y, length / 2 * dx, length / 2 * dy) for dx, dy in directions])
        straight = bow.reshape(len(rows), -1).max(axis=1) <= _TOLERANCE_PX
        spacing[rows[straight], cols[straight]] = length
        rows, cols, length = rows[~straight], cols[~straight], length / 2
    return spacing


def _bow(place: ToLonLat, x: Floats, y: Floats, dx: float, dy: float) -> Floats:
    """How far the middle of an edge, drawn straight in longitude and latitude, lies beside the true edge, in pixels.

    The edge runs from `(x - dx, y - dy)` to `(x + dx, y + dy)`; infinite where nothing can be said.
    """
    lon, _ = place.forward(x, y)
    (lon_a, lat_a), (lon_b, lat_b) = place.forward(x - dx, y - dy), place.forward(x + dx, y + dy)
    with np.errstate(invalid="ignore"):
        a, b = wrap(lon_a - lon), wrap(lon_b - lon)
        back_x, back_y = place.backward(lon + (a + b) / 2, (lat_a + lat_b) / 2)
        bow = np.abs((back_x - x) * dy - (back_y - y) * dx) / np.hypot(dx, dy)
        bow[~np.isfinite(bow) | (np.abs(a) + np.abs(b) > _MAX_TURN_DEG)] = np.inf
    return np.asarray(bow)
