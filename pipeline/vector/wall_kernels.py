"""Compiled loops: outlines cut into arcs, their corners, and the directions of their walls. Knows arrays only.

Import it where it is first needed: Numba takes half a second. What it compiles is kept on disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.vector.compiled import compiled

if TYPE_CHECKING:
    from pipeline.vector.compiled import Int64s

_SAME_DEG = 3.0
"""Directions of one group are farther apart."""
_WITHIN_DEG = 22.5
_FITS_DEG = 6.0


@compiled
def wall_arcs(
    rings: Int64s, polygons: Int64s, vertices: Int64s, edges: Int64s, cut: Any, xy: Any
) -> tuple[Int64s, Int64s, Int64s]:
    """Outlines cut into arcs at vertices, each arc once although two outlines may hold it.

    Args:
        rings: Shape (ring + 1,): where each ring's vertices begin; the first is not repeated.
        polygons: Polygon of each ring.
        vertices: Number of each ring's vertices, shape (ring vertex,).
        edges: Number of the edge from each vertex to the next, the same from both sides, shape (ring vertex,).
        cut: Whether arcs end at a vertex, by number.
        xy: Coordinates by number of vertex.

    Returns:
        Vertices of all arcs one after the other, where each arc begins (arc + 1,), and the polygons on its two sides
        (arc, 2), -1 for none. A ring without cuts is an arc that ends where it begins: far from its middle.
    """
    taken = np.full(edges.max() + 1, -1, np.int64)
    out = np.empty(2 * len(vertices), np.int64)
    offsets = np.zeros(len(vertices) + 1, np.int64)
    sides = np.full((len(vertices), 2), -1, np.int64)
    used, count = 0, 0
    for ring in range(len(rings) - 1):
        low, size = rings[ring], rings[ring + 1] - rings[ring]
        begin = 0
        while begin < size and not cut[vertices[low + begin]]:
            begin += 1
        closed = begin == size
        if closed:
            begin = _far_corner(vertices[low : low + size], xy)
        step = 0
        while step < size:
            first = low + (begin + step) % size
            arc = taken[edges[first]]
            if arc >= 0:
                sides[arc, 1] = polygons[ring]
            else:
                arc = count
                sides[arc, 0] = polygons[ring]
                out[used] = vertices[first]
                used += 1
            at_end = False
            while not at_end:
                taken[edges[low + (begin + step) % size]] = arc
                step += 1
                vertex = vertices[low + (begin + step) % size]
                if arc == count:
                    out[used] = vertex
                    used += 1
                at_end = step == size or cut[vertex]
            if arc == count:
                count += 1
                offsets[count] = used
    return out[:used].copy(), offsets[: count + 1].copy(), sides[:count].copy()


@compiled
def _far_corner(vertices: Int64s, xy: Any) -> int:
    """Index of the vertex farthest from the mean of a ring's; of several, that with the smallest number."""
    x, y = 0.0, 0.0
    for vertex in vertices:
        x += xy[vertex, 0]
        y += xy[vertex, 1]
    x, y = x / len(vertices), y / len(vertices)
    best, farthest = 0, -1.0
    for i, vertex in enumerate(vertices):
        distance = (xy[vertex, 0] - x) ** 2 + (xy[vertex, 1] - y) ** 2
        slack = 1e-9 * (1.0 + farthest)
        if distance > farthest + slack or (distance > farthest - slack and vertex < vertices[best]):
            best, farthest = i, max(distance, farthest)
    return best


@compiled
def corners(xy: Any, offsets: Int64s, tolerance: float) -> Any:
    """Vertices of lines (vertex, 2), one after the other, that straight edges within a distance need.

    Source: Douglas and Peucker 1973; a line that ends where it begins is first cut at the vertex farthest from there.
    """
    kept = np.zeros(len(xy), np.bool_)
    stack = np.empty((len(xy) + 1, 2), np.int64)
    for line in range(len(offsets) - 1):
        stack[0] = offsets[line], offsets[line + 1] - 1
        kept[offsets[line]], kept[offsets[line + 1] - 1] = True, True
        depth = 1
        while depth:
            depth -= 1
            first, last = stack[depth]
            dx, dy = xy[last, 0] - xy[first, 0], xy[last, 1] - xy[first, 1]
            square = dx * dx + dy * dy
            best, farthest = -1, tolerance * tolerance
            for i in range(first + 1, last):
                x, y = xy[i, 0] - xy[first, 0], xy[i, 1] - xy[first, 1]
                along = 0.0 if square == 0 else min(max((x * dx + y * dy) / square, 0.0), 1.0)
                distance = (x - along * dx) ** 2 + (y - along * dy) ** 2
                if distance > farthest + 1e-9:
                    best, farthest = i, distance
            if best >= 0:
                kept[best] = True
                stack[depth] = first, best
                stack[depth + 1] = best, last
                depth += 2
    return kept


@compiled
def dominant_angles(groups: Int64s, angle_deg: Any, length: Any, moments: Any, most: int, sway: float) -> Any:
    """Directions of each group's walls, modulo a right angle, the strongest first.

    Args:
        groups: Shape (group + 1,): where each group's walls begin.
        angle_deg: Direction of each wall.
        length: Its length; walls without have no say.
        moments: Its second moments about its middle: xx, xy, yy, shape (wall, 3).
        most: Directions of a group at most.
        sway: A direction serves walls whose ends it turns by no more than this.

    Returns:
        Degrees in [0, 90), NaN where there are fewer, shape (group, most).
    """
    out = np.full((len(groups) - 1, most), np.nan)
    free = length > 0
    histogram = np.empty(90)
    for group in range(len(groups) - 1):
        low, high = groups[group], groups[group + 1]
        for number in range(most):
            histogram[:] = 0
            for wall in range(low, high):
                if free[wall]:
                    histogram[int(angle_deg[wall] % 90) % 90] += length[wall]
            angle, score = _peak(histogram)
            if score <= (8 * sway if number else 0):
                break
            for _ in range(3):
                angle = _fitted(angle, low, high, angle_deg, free, moments)
            out[group, number] = angle
            served = False
            for wall in range(low, high):
                off = abs((angle_deg[wall] - angle + 45) % 90 - 45)
                turn = length[wall] / 2 * np.sin(np.radians(off))
                if free[wall] and (off <= _SAME_DEG or (off <= _WITHIN_DEG and turn <= sway)):
                    free[wall] = False
                    served = True
            if not served:
                break
    return out


@compiled
def _peak(histogram: Any) -> tuple[float, float]:
    """Middle and height of the highest peak of a circular histogram of 90 degrees, five degrees to each side."""
    best, highest = 0, -1.0
    for at in range(90):
        score = 0.0
        for k in range(-5, 6):
            score += histogram[(at + k) % 90] * (6 - abs(k)) / 6
        if score > highest + 1e-9:
            best, highest = at, score
    return best + 0.5, highest


@compiled
def _fitted(angle: float, low: int, high: int, angle_deg: Any, free: Any, moments: Any) -> float:
    """Direction that fits all free walls within six degrees of one best, in the sense of least squares."""
    xx, xy, yy = 0.0, 0.0, 0.0
    for wall in range(low, high):
        beside = (angle_deg[wall] - angle + 45) % 180
        if not free[wall] or abs(beside % 90 - 45) > _FITS_DEG:
            continue
        if beside < 90:  # noqa: PLR2004 - a right angle
            xx, xy, yy = xx + moments[wall, 0], xy + moments[wall, 1], yy + moments[wall, 2]
        else:
            xx, xy, yy = xx + moments[wall, 2], xy - moments[wall, 1], yy + moments[wall, 0]
    if xx == yy and xy == 0:
        return angle
    return float(np.degrees(0.5 * np.arctan2(2 * xy, xx - yy)) % 90)
