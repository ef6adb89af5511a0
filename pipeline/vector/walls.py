"""Straight walls through outlines: which directions a group of buildings has, and where its corners then are.

A wall is a line fitted through a run of pixel edges. Where it is about parallel to a direction of its group it takes
that direction; walls of one direction that meet are one line. A vertex lies where its two lines meet, so that what
shares the vertex shares the corner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.vector.outlines import following

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.vector.rings import Ints

    Bools = NDArray[np.bool_]
    Floats = NDArray[np.float64]

_MOST_ANGLES = 18
"""Of a group; of a building one, and others only if far from that."""
_WITHIN_DEG = 22.5
_APART_DEG = 20.0
"""Lines that meet at a smaller angle have no corner worth keeping."""
_SWAY = 2.0
"""Times the tolerance: how far a wall's ends may turn."""
_TORN = 1e-9
"""Apart from rounding, a line passes through the vertices that it is held by."""
_SHORT = 3.0
"""Times the tolerance: shorter walls between two others may be a rounded corner."""


class Arcs(NamedTuple):
    """Pieces of outlines between junctions, each once."""

    vertices: Ints
    """Of all arcs, one after the other; one that ends where it begins has that vertex twice."""
    offsets: Ints
    """Shape (arc + 1,), into `vertices`."""
    sides: Ints
    """Polygons on both sides, -1 for none, shape (arc, 2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Walls:
    """Walls of all arcs, one after the other; all arrays but `angles` have shape (wall, …)."""

    arc: Ints
    """The arc it is part of."""
    ends: Ints
    """Vertices at its ends, shape (wall, 2)."""
    before: Ints
    """The wall before it in its arc, -1 where the arc begins."""
    after: Ints
    """The wall after it, -1 where the arc ends."""
    length: Floats
    """From end to end."""
    angle_deg: Floats
    """Direction, in [0, 180)."""
    middle: Floats
    """Middle of the pixel edges along it, `(x, y)`."""
    moments: Floats
    """Second moments of these edges about the middle: xx, xy, yy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Directions:
    """What directions there are and which walls take them."""

    normals: Floats
    """Shape (direction, 2)."""
    angle_deg: Floats
    """Shape (direction,)."""
    of_wall: Ints
    """Direction of each wall; -1 where it stays as it lies."""
    rounded: Bools
    """Walls that are rounded corners: the walls before and after them meet instead."""
    fixed: Bools
    """Walls that lie where they must: edges of the scene."""


def measure_walls(arcs: Arcs, xy: Floats, tolerance: float) -> Walls:
    """Walls that follow arcs within a tolerance, and lines through the edges along them."""
    from pipeline.vector import wall_kernels  # noqa: PLC0415 - Numba takes half a second to import

    at = xy[arcs.vertices]
    kept = wall_kernels.corners(at, arcs.offsets, tolerance)
    last = np.zeros(len(at), bool)
    last[arcs.offsets[1:] - 1] = True
    start = np.flatnonzero(kept & ~last)
    stop = np.flatnonzero(kept)[np.searchsorted(np.flatnonzero(kept), start) + 1]
    arc = np.searchsorted(arcs.offsets, start, side="right") - 1
    middle, moments = _moments(at, last, start)
    chord = at[stop] - at[start]
    angle = np.degrees(0.5 * np.arctan2(2 * moments[:, 1], moments[:, 0] - moments[:, 2])) % 180
    before, after = _neighbours(arc, arcs)
    return Walls(
        arc=arc,
        ends=np.stack([arcs.vertices[start], arcs.vertices[stop]], axis=1),
        before=before,
        after=after,
        length=np.hypot(*chord.T),
        angle_deg=angle,
        middle=middle,
        moments=moments,
    )


def _moments(at: Floats, last: Bools, start: Ints) -> tuple[Floats, Floats]:
    """Middle and second moments of the edges from each start to the next, weighted by length."""
    step = np.diff(at, axis=0, append=at[-1:])
    step[last] = 0
    weight = np.hypot(*step.T)
    origin = at[start][np.maximum(np.searchsorted(start, np.arange(len(at)), side="right") - 1, 0)]
    x, y = (at - origin + step / 2).T
    dx, dy = step.T
    columns = [np.ones(len(x)), x, y, x * x + dx * dx / 12, x * y + dx * dy / 12, y * y + dy * dy / 12]
    total, sx, sy, xx, xy, yy = (np.add.reduceat(weight * column, start) for column in columns)
    middle = np.stack([sx, sy], axis=1) / total[:, None]
    moments = np.stack([xx - sx * sx / total, xy - sx * sy / total, yy - sy * sy / total], axis=1)
    return at[start] + middle, moments


def _neighbours(arc: Ints, arcs: Arcs) -> tuple[Ints, Ints]:
    """The walls before and after each wall of an arc; arcs that end where they begin go round."""
    offsets = np.searchsorted(arc, np.arange(len(arcs.sides) + 1))
    after = following(offsets)
    before = np.empty_like(after)
    before[after] = np.arange(len(after))
    closed = arcs.vertices[arcs.offsets[:-1]] == arcs.vertices[arcs.offsets[1:] - 1]
    is_open = ~closed[arc]
    after[is_open & (after <= np.arange(len(arc)))] = -1
    before[is_open & (before >= np.arange(len(arc)))] = -1
    return before, after


def choose_directions(walls: Walls, arcs: Arcs, group_of_polygon: Ints, at_rim: Bools, tolerance: float) -> Directions:
    """Dominant directions of each group of buildings, at right angles in pairs, and which walls take one.

    Args:
        walls: The walls.
        arcs: The arcs that they are part of.
        group_of_polygon: Group of each polygon.
        at_rim: Whether each arc runs along the edge of the scene, where no wall is.
        tolerance: How far walls may be from the outline.
    """
    from pipeline.vector import wall_kernels  # noqa: PLC0415 - Numba takes half a second to import

    group, fixed = group_of_polygon[arcs.sides[walls.arc, 0]], at_rim[walls.arc]
    order = np.argsort(group, kind="stable")
    offsets = np.searchsorted(group[order], np.arange(group.max(initial=-1) + 2))
    angles = wall_kernels.dominant_angles(
        offsets, walls.angle_deg[order], np.where(fixed, 0.0, walls.length)[order], walls.moments[order],
        _MOST_ANGLES, tolerance,
    )  # fmt: skip
    of_wall = _nearest(walls, arcs.sides[walls.arc], angles, group, _SWAY * tolerance)
    all_angles = np.append((angles[:, :, None] + [0.0, 90.0]).ravel(), [0.0, 90.0])
    along_y = np.abs(walls.angle_deg - 90) < 45  # noqa: PLR2004 - half a right angle
    of_wall[walls.length < tolerance] = -1
    of_wall[fixed] = len(all_angles) - 2 + along_y[fixed]
    of_wall, rounded = _settle_short(walls, of_wall, walls.length < _SHORT * tolerance)
    radians = np.radians(np.nan_to_num(all_angles))
    normals = np.stack([-np.sin(radians), np.cos(radians)], axis=1)
    normals[-2:] = [0, 1], [-1, 0]
    return Directions(normals=normals, angle_deg=all_angles, of_wall=of_wall, rounded=rounded, fixed=fixed)


def _nearest(walls: Walls, sides: Ints, angles: Floats, group: Ints, sway: float) -> Ints:
    """Direction of each wall, -1 for none: one that its building mainly has, or one far from that."""
    beside = (walls.angle_deg[:, None] - angles[group] + 45) % 180
    off = np.where(np.isnan(beside), 90.0, np.abs(beside % 90 - 45))
    snaps = (off <= _WITHIN_DEG) & (walls.length[:, None] / 2 * np.sin(np.radians(off)) <= sway)
    score = np.zeros((sides.max(initial=0) + 1, angles.shape[1]))
    for side in sides.T:
        np.add.at(score, side[side >= 0], (snaps * walls.length[:, None] * (_WITHIN_DEG - off))[side >= 0])
    main = score.argmax(axis=1)
    allowed = np.zeros((len(walls.arc), angles.shape[1]), bool)
    for side in sides.T:
        mine = angles[group, main[side]][:, None]
        apart = np.abs((angles[group] - mine + 45) % 90 - 45)
        allowed |= (side >= 0)[:, None] & ((apart >= _APART_DEG) | (np.arange(angles.shape[1]) == main[side][:, None]))
    off = np.where(snaps & allowed, off, np.inf)
    nearest, rows = off.argmin(axis=1), np.arange(len(off))
    turned = beside[rows, nearest] >= 90  # noqa: PLR2004 - a right angle
    return np.where(np.isfinite(off[rows, nearest]), (group * _MOST_ANGLES + nearest) * 2 + turned, -1)


def _settle_short(walls: Walls, of_wall: Ints, short: Bools) -> tuple[Ints, Bools]:
    """Short slanting walls between two straight ones: a step if these are parallel, else a rounded corner."""
    inner = (walls.before >= 0) & (walls.after >= 0)
    before, after = (np.where(inner, of_wall[beside], -1) for beside in (walls.before, walls.after))
    between = (of_wall < 0) & short & (before >= 0) & (after >= 0)
    is_step = between & (before == after)
    return np.where(is_step, before ^ 1, of_wall), between & ~is_step


class _Meeting(NamedTuple):
    """Walls at vertices, as many rows as there are such pairs."""

    vertex: Ints
    wall: Ints
    own: Bools
    """False where the wall was drawn to the vertex in place of a rounded corner."""

    def take(self, rows: Bools) -> _Meeting:
        return _Meeting(self.vertex[rows], self.wall[rows], self.own[rows])


def place_corners(
    walls: Walls, directions: Directions, *, active: Bools, xy: Floats, held: Bools
) -> tuple[Floats, Bools]:
    """Where the vertices lie when walls are straight, and which of them only lie on one wall.

    Args:
        walls: The walls.
        directions: Their directions.
        active: Walls that are made straight.
        xy: Where all vertices lie, shape (vertex, 2).
        held: Vertices that stay where they are.
    """
    meeting = _meetings(walls, directions, active)
    meeting = _at_most_two(meeting, walls, directions)
    for _ in range(2):
        line, offset, torn = _lines(meeting, walls, directions, xy, held)
        if not torn.any():
            break
        meeting = meeting.take(~np.isin(meeting.wall, meeting.wall[torn]))
    return _intersections(meeting, line, offset, directions.normals[directions.of_wall[meeting.wall]], xy, held)


def _meetings(walls: Walls, directions: Directions, active: Bools) -> _Meeting:
    wall = np.flatnonzero(active & (directions.of_wall >= 0))
    cut = np.flatnonzero(active & directions.rounded)
    return _Meeting(
        vertex=np.concatenate([walls.ends[wall].T.ravel(), walls.ends[cut].T.ravel()]),
        wall=np.concatenate([wall, wall, walls.after[cut], walls.before[cut]]),
        own=np.arange(2 * (len(wall) + len(cut))) < 2 * len(wall),
    )


def _at_most_two(meeting: _Meeting, walls: Walls, directions: Directions) -> _Meeting:
    """Lines of two directions pass through a point; where there are more, the longest walls keep theirs."""
    direction = directions.of_wall[meeting.wall]
    keys, pair = np.unique(meeting.vertex * len(directions.normals) + direction, return_inverse=True)
    weight = np.zeros(len(keys))
    np.maximum.at(weight, pair, np.where(directions.fixed[meeting.wall], np.inf, walls.length[meeting.wall]))
    vertex, angle = keys // len(directions.normals), directions.angle_deg[keys % len(directions.normals)]
    order = np.lexsort((keys, -np.round(weight, 6), vertex))
    first = np.searchsorted(vertex[order], vertex[order])  # of the same vertex
    rank = np.arange(len(order)) - first
    apart = np.abs((angle[order] - angle[order][first] + 90) % 180 - 90)
    kept = np.empty(len(keys), bool)
    kept[order] = (rank == 0) | ((rank == 1) & (apart >= _APART_DEG))
    lost = np.isin(meeting.wall, meeting.wall[~kept[pair] & meeting.own])
    return meeting.take(~lost & kept[pair])


def _lines(
    meeting: _Meeting, walls: Walls, directions: Directions, xy: Floats, held: Bools
) -> tuple[Ints, Floats, Bools]:
    """Lines of one direction that meet are one: number and offset of each row's line, and rows that it cannot reach."""
    direction = directions.of_wall[meeting.wall]
    wall, row = np.unique(meeting.wall, return_inverse=True)
    _, place = np.unique(meeting.vertex * len(directions.normals) + direction, return_inverse=True)
    size = len(wall) + place.max(initial=-1) + 1
    graph = coo_array((np.ones(len(row), bool), (row, place + len(wall))), shape=(size, size))
    count, of_node = connected_components(graph, directed=False)
    of_wall = of_node[: len(wall)].astype(np.int64)
    weight = walls.length[wall]
    away = (directions.normals[directions.of_wall[wall]] * walls.middle[wall]).sum(axis=1)
    offset = np.bincount(of_wall, weight * away, count) / np.bincount(of_wall, weight, count).clip(1e-9)
    fixed = directions.fixed[wall]
    rim = wall[fixed]
    offset[of_wall[fixed]] = (directions.normals[directions.of_wall[rim]] * xy[walls.ends[rim, 0]]).sum(axis=1)
    line = of_wall[row]
    through = held[meeting.vertex]
    reach = (directions.normals[direction] * xy[meeting.vertex]).sum(axis=1)
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(low, line[through], reach[through])
    np.maximum.at(high, line[through], reach[through])
    pinned = high > -np.inf
    offset[pinned] = (low[pinned] + high[pinned]) / 2
    torn = np.zeros(count, bool)
    torn[pinned] = high[pinned] - low[pinned] > _TORN
    return line, offset[line], through & torn[line]


def _intersections(
    meeting: _Meeting, line: Ints, offset: Floats, normal: Floats, xy: Floats, held: Bools
) -> tuple[Floats, Bools]:
    order = np.lexsort((line, meeting.vertex))
    vertex, line, offset, normal = meeting.vertex[order], line[order], offset[order], normal[order]
    new = np.diff(vertex, prepend=-1) != 0
    other = ~new & (np.diff(line, prepend=-1) != 0)
    at, moved = vertex[new], xy.copy()
    n, c = normal[new], offset[new]
    moved[at] += (c - (n * xy[at]).sum(axis=1))[:, None] * n
    first = np.flatnonzero(new)[np.searchsorted(at, vertex[other])]
    (ax, ay), a, (bx, by), b = normal[first].T, offset[first], normal[other].T, offset[other]
    area = ax * by - ay * bx
    moved[vertex[other]] = np.stack([(a * by - b * ay) / area, (ax * b - bx * a) / area], axis=1)
    moved[held] = xy[held]
    own = np.bincount(meeting.vertex[meeting.own], minlength=len(xy))
    lines = np.bincount(at, minlength=len(xy)) + np.bincount(vertex[other], minlength=len(xy))
    return moved, (own == 2) & (lines == 1)  # noqa: PLR2004 - both its walls on one line
