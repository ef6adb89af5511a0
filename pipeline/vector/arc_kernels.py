"""Compiled loops: a map of the cracks that are edges, and rings made simpler from it alone. Knows arrays only.

Import it where it is first needed: Numba takes half a second. What it compiles is kept on disk.

Words: a *place* is a corner of the pixel lattice, `(x, y)`. A *junction* is a place where more than two edges meet, or
where an edge turns at the scene's rim; other corners are *free*. An *arc* is a piece of a ring between junctions.
*Fine* coordinates count halves of pixels where corners are cut, else pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.vector.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.vector.compiled import Int64s

_EAST, _SOUTH, _WEST, _NORTH = 1, 2, 4, 8
_NOTHING, _FREE, _JUNCTION = 0, 1, 2
_FARTHEST = 1024
"""Cracks that are followed to see where an arc leads."""
_INDEX_BITS = 32
_AT = (1 << _INDEX_BITS) - 1


class Coverage(NamedTuple):
    """All that is known of polygons that do not overlap."""

    cracks: NDArray[np.uint8]
    """What `draw` made of their rings: two bits for each place, four places a byte, one row and column before all."""
    height: int
    """Of the scene, in pixels."""
    width: int
    scale: int
    """Fine coordinates of a pixel: 2 where free corners are cut, else 1."""


@compiled
def draw(cracks: NDArray[np.uint8], coords: Any, ring_offsets: Int64s) -> None:
    """Mark the cracks along closed rings, `coords` in pixels; an edge that two rings have is one."""
    for ring in range(len(ring_offsets) - 1):
        for at in range(ring_offsets[ring], ring_offsets[ring + 1] - 1):
            x, y, to_x, to_y = int(coords[at, 0]), int(coords[at, 1]), int(coords[at + 1, 0]), int(coords[at + 1, 1])
            for col in range(min(x, to_x) + 1, max(x, to_x) + 1):
                cracks[y + 1, col >> 2] |= np.uint8(_EAST << ((col & 3) << 1))
            for row in range(min(y, to_y) + 1, max(y, to_y) + 1):
                cracks[row, (x + 1) >> 2] |= np.uint8(_SOUTH << (((x + 1) & 3) << 1))


@compiled
def _cracks_at(coverage: Coverage, x: int, y: int) -> int:
    """Which of the cracks east and south of a place are edges."""
    return int(coverage.cracks[y + 1, (x + 1) >> 2] >> (((x + 1) & 3) << 1)) & 3


@compiled
def _around(coverage: Coverage, x: int, y: int) -> int:
    """Which of the four cracks at a place are edges."""
    west, north = _cracks_at(coverage, x - 1, y) & _EAST, _cracks_at(coverage, x, y - 1) & _SOUTH
    return int(_cracks_at(coverage, x, y) | west << 2 | north << 2)


@compiled
def _kind(coverage: Coverage, x: int, y: int) -> int:
    """Whether a place is no vertex, a free corner, or a junction."""
    edges = _around(coverage, x, y)
    if edges in (0, _EAST | _WEST, _SOUTH | _NORTH):
        return _NOTHING
    count = (edges & 1) + (edges >> 1 & 1) + (edges >> 2 & 1) + (edges >> 3)
    if count > 2 or x == 0 or y == 0 or x == coverage.width or y == coverage.height:  # noqa: PLR2004 - a line passes
        return _JUNCTION
    return _FREE


@compiled
def _is_vertex(coverage: Coverage, x: int, y: int) -> bool:
    """Whether the coverage has a vertex at fine coordinates."""
    if coverage.scale == 1:
        return bool(_kind(coverage, x, y) != _NOTHING)
    odd_x, odd_y = x & 1, y & 1
    x, y = x >> 1, y >> 1
    if odd_x and odd_y:
        return False
    if not odd_x and not odd_y:
        return bool(_kind(coverage, x, y) == _JUNCTION)
    if not _cracks_at(coverage, x, y) & (_EAST if odd_x else _SOUTH):
        return False
    here, there = _kind(coverage, x, y), _kind(coverage, x + odd_x, y + odd_y)
    if here == _FREE and there == _FREE:  # the middle of a staircase's step lies on a straight line
        across = _NORTH | _SOUTH if odd_x else _EAST | _WEST
        return bool(_around(coverage, x, y) & across == _around(coverage, x + odd_x, y + odd_y) & across)
    return bool(_FREE in (here, there))


@compiled
def _vertices(coverage: Coverage, coords: Any, ring: Int64s) -> int:
    """Vertices of a closed ring into the columns of `ring`, `(x, y, kind)`, but those on straight lines; how many."""
    count = 0
    for at in range(len(coords) - 1):
        x, y = int(coords[at, 0]), int(coords[at, 1])
        kind = _kind(coverage, x, y)
        if kind != _NOTHING:
            ring[0, count], ring[1, count], ring[2, count] = x, y, kind
            count += 1
    return count


@compiled
def _sign(value: int) -> int:
    return int(value > 0) - int(value < 0)


@compiled
def _cut_corners(ring: Int64s, count: int, cut: Int64s) -> int:
    """Cut the free corners of a ring half a pixel before and after them; the new ring `cut` is fine.

    What is cut off lies inside one pixel, where no other edge passes.
    """
    used = 0
    for at in range(count):
        x, y, kind = 2 * ring[0, at], 2 * ring[1, at], ring[2, at]
        for step in (-1, 1):
            new_x, new_y = x, y
            if kind == _FREE:
                other = (at + step) % count
                new_x, new_y = x + _sign(2 * ring[0, other] - x), y + _sign(2 * ring[1, other] - y)
            if used and new_x == cut[0, used - 1] and new_y == cut[1, used - 1]:
                continue
            cut[0, used], cut[1, used], cut[2, used] = new_x, new_y, kind
            used += 1
    if cut[0, used - 1] == cut[0, 0] and cut[1, used - 1] == cut[1, 0]:
        used -= 1
    return int(_without_straight(cut, used))


@compiled
def _without_straight(ring: Int64s, count: int) -> int:
    """Take free vertices on straight lines out of a ring, in place; returns how many are left."""
    kept = 0
    first_x, first_y = ring[0, 0], ring[1, 0]
    from_x, from_y = ring[0, count - 1], ring[1, count - 1]
    for at in range(count):
        x, y = ring[0, at], ring[1, at]
        to_x, to_y = (ring[0, at + 1], ring[1, at + 1]) if at + 1 < count else (first_x, first_y)
        straight = (x - from_x) * (to_y - y) == (y - from_y) * (to_x - x)
        from_x, from_y = x, y
        if ring[2, at] == _JUNCTION or not straight:
            ring[0, kept], ring[1, kept], ring[2, kept] = x, y, ring[2, at]
            kept += 1
    return kept


_X, _Y, _BEFORE, _AFTER, _KEY = range(5)
"""Rows of an arc: coordinates, neighbours that are left, and what stands in the heap for it, -1 for nothing."""
_GONE = -2
"""Neighbour of what is gone."""


@compiled
def _comes_first(ring: Int64s, one: int, other: int) -> bool:
    """Whether one vertex lies above another, or left of it in the same row."""
    count = ring.shape[1]
    one, other = one % count, other % count
    return bool((ring[1, one], ring[0, one]) < (ring[1, other], ring[0, other]))


@compiled
def _load_arc(ring: Int64s, at: int, size: int, closed: bool, arc: Int64s) -> tuple[int, int]:  # noqa: FBT001
    """Copy a piece of a ring, in the direction that both its sides give it.

    Args:
        ring: All rows have the length of the ring.
        at: Where the piece begins.
        size: Its vertices.
        closed: Whether it is the whole ring.
        arc: Written.

    Returns:
        Where it begins in the ring, and how it goes on: 1 or -1.
    """
    step = 1
    if closed:
        step = -1 if _comes_first(ring, at - 1, at + 1) else 1
    elif _comes_first(ring, at + size - 1, at):
        at, step = at + size - 1, -1
    for number in range(size):
        vertex = (at + step * number) % ring.shape[1]
        arc[_X, number], arc[_Y, number] = ring[0, vertex], ring[1, vertex]
        arc[_BEFORE, number], arc[_AFTER, number], arc[_KEY, number] = number - 1, number + 1, -1
    if closed:
        arc[_BEFORE, 0], arc[_AFTER, size - 1] = size - 1, 0
    return at, step


@compiled
def _push(heap: Int64s, count: int, key: int) -> int:
    """Put a key into a heap; returns how many there are."""
    at = count
    while at > 0 and heap[(at - 1) >> 1] > key:
        heap[at] = heap[(at - 1) >> 1]
        at = (at - 1) >> 1
    heap[at] = key
    return count + 1


@compiled
def _pop(heap: Int64s, count: int) -> int:
    """Take the smallest key, `heap[0]`, out of a heap; returns how many are left."""
    count -= 1
    key, at = heap[count], 0
    while 2 * at + 1 < count:
        child = 2 * at + 1
        if child + 1 < count and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= key:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = key
    return count


@compiled
def _offer(arc: Int64s, at: int, limit: int, heap: Int64s, queued: int) -> int:
    """Put a vertex into the heap if its triangle is small, doubled area first; returns how many there are."""
    before, after = arc[_BEFORE, at], arc[_AFTER, at]
    x, y = arc[_X, at], arc[_Y, at]
    area = abs((arc[_X, before] - x) * (arc[_Y, after] - y) - (arc[_Y, before] - y) * (arc[_X, after] - x))
    key = area << _INDEX_BITS | at if area <= limit else -1
    if key >= 0 and key != arc[_KEY, at]:
        queued = _push(heap, queued, key)
    arc[_KEY, at] = key
    return queued


@compiled
def _stands_for(arc: Int64s, size: int, before: int, after: int, x: int, y: int) -> bool:
    """Whether a place is a vertex of the arc, left or not, from one vertex to another."""
    at = before
    while True:
        if arc[_X, at] == x and arc[_Y, at] == y:
            return True
        if at == after:
            return False
        at = at + 1 if at + 1 < size else 0


@compiled
def _is_held(coverage: Coverage, arc: Int64s, size: int, at: int) -> bool:
    """Whether the triangle at a vertex holds a vertex of the coverage that the piece of the arc does not stand for.

    Looks at the places of the lattice in it, line after line, along its longer side.
    """
    before, after = arc[_BEFORE, at], arc[_AFTER, at]
    xs = (arc[_X, before], arc[_X, at], arc[_X, after])
    ys = (arc[_Y, before], arc[_Y, at], arc[_Y, after])
    by_column = max(xs) - min(xs) < max(ys) - min(ys)
    along, lines = (ys, xs) if by_column else (xs, ys)
    for line in range(min(lines), max(lines) + 1):
        low, high = max(along), min(along)
        for corner in range(3):
            one, other = corner, (corner + 1) % 3
            if lines[one] > lines[other]:
                one, other = other, one
            if not lines[one] <= line <= lines[other]:
                continue
            if lines[one] == lines[other]:
                low, high = min(low, along[one], along[other]), max(high, along[one], along[other])
                continue
            rise, run = (line - lines[one]) * (along[other] - along[one]), lines[other] - lines[one]
            low, high = min(low, along[one] - (-rise) // run), max(high, along[one] + rise // run)
        for place in range(low, high + 1):
            x, y = (line, place) if by_column else (place, line)
            if _is_vertex(coverage, x, y) and not _stands_for(arc, size, before, after, x, y):
                return True
    return False


@compiled
def _ends_meet_again(coverage: Coverage, arc: Int64s, size: int) -> bool:
    """Whether another arc joins the ends of one that is not closed, or may do so far away."""
    step_x, step_y = _sign(arc[_X, 1] - arc[_X, 0]), _sign(arc[_Y, 1] - arc[_Y, 0])
    own, scale = 1 - step_x if step_x else 2 - step_y, coverage.scale
    start_x, start_y = arc[_X, 0] // scale, arc[_Y, 0] // scale
    stop_x, stop_y = arc[_X, size - 1] // scale, arc[_Y, size - 1] // scale
    for leaving in range(4):
        if leaving == own or not _around(coverage, start_x, start_y) >> leaving & 1:
            continue
        x, y, direction, kind = start_x, start_y, leaving, _NOTHING
        for _ in range(_FARTHEST):
            x, y = x + (direction == 0) - (direction == 2), y + (direction == 1) - (direction == 3)  # noqa: PLR2004
            kind = _kind(coverage, x, y)
            if kind == _JUNCTION:
                break
            if kind == _FREE:
                onwards = _around(coverage, x, y) & ~(1 << ((direction + 2) & 3))
                direction = (onwards >> 1 & 1) + 2 * (onwards >> 2 & 1) + 3 * (onwards >> 3)
        if kind != _JUNCTION or (x == stop_x and y == stop_y):
            return True
    return False


@compiled
def _thin(coverage: Coverage, limit: int, arc: Int64s, shape: tuple[int, int, bool], heap: Int64s) -> None:
    """Take corners out of an arc, smallest first.

    Args:
        coverage: That it is part of.
        limit: See `simpler`.
        arc: As loaded; what goes has `_GONE` as its neighbour.
        shape: How many vertices it has, how many of the first of them stay, and whether it is closed.
        heap: To work with.
    """
    size, first, closed = shape
    last = size if closed else size - 1
    left, least = (size, 3) if closed else (size - 2, -1)  # -1: not known yet
    queued = 0
    for at in range(first, last):
        queued = _offer(arc, at, limit, heap, queued)
    while queued:
        key, at = heap[0], heap[0] & _AT
        queued = _pop(heap, queued)
        if key != arc[_KEY, at]:
            continue
        if left == 1 and least < 0:
            least = 1 if _ends_meet_again(coverage, arc, size) else 0
        if left == least:
            return
        arc[_KEY, at] = -1
        if key >> _INDEX_BITS > 1 and _is_held(coverage, arc, size, at):  # smaller ones hold nothing
            continue
        before, after = arc[_BEFORE, at], arc[_AFTER, at]
        arc[_AFTER, before], arc[_BEFORE, after], arc[_AFTER, at] = after, before, _GONE
        left -= 1
        for other in (before, after):
            if first <= other < last:
                queued = _offer(arc, other, limit, heap, queued)


@compiled
def _first_arc(ring: Int64s) -> int:
    """Where the first arc of a ring begins: at a junction, else at the smallest vertex."""
    smallest = 0
    for at in range(ring.shape[1]):
        if ring[2, at] == _JUNCTION:
            return at
        if _comes_first(ring, at, smallest):
            smallest = at
    return smallest


@compiled
def _thin_ring(coverage: Coverage, limit: int, ring: Int64s, arc: Int64s, heap: Int64s) -> int:
    """Take corners out of a ring, arc by arc, in place; returns how many vertices are left."""
    count, begin = ring.shape[1], _first_arc(ring)
    num_fixed = 1 if ring[2, begin] == _JUNCTION else 0
    at = begin
    while at < begin + count:
        steps = 1
        while steps < count and ring[2, (at + steps) % count] != _JUNCTION:
            steps += 1
        closed = steps == count
        size = count if closed else steps + 1
        start, step = _load_arc(ring, at, size, closed, arc)
        _thin(coverage, limit, arc, (size, num_fixed, closed), heap)
        for number in range(size):
            if arc[_AFTER, number] == _GONE:
                ring[2, (start + step * number) % count] = _NOTHING
        at += steps
    kept = 0
    for at in range(count):
        if ring[2, at] != _NOTHING:
            ring[0, kept], ring[1, kept] = ring[0, at], ring[1, at]
            kept += 1
    return kept


@compiled
def simpler(coverage: Coverage, coords: Any, ring_offsets: Int64s, limit: int) -> Any:
    """Rings of a coverage with fewer corners.

    Args:
        coverage: Of which all rings are drawn.
        coords: Closed rings in pixels, one after the other, `(vertex, 2)`.
        ring_offsets: Where each begins, `(ring + 1,)`.
        limit: Largest doubled area of the triangle of a corner that goes, in fine coordinates; -1 for none.

    Returns:
        (coordinates, where each ring begins) as given.
    """
    longest = 0
    for number in range(len(ring_offsets) - 1):
        longest = max(longest, ring_offsets[number + 1] - ring_offsets[number])
    scale, room = coverage.scale, coverage.scale * longest
    traced, cut = np.empty((3, longest), np.int64), np.empty((3, room), np.int64)
    arc, heap = np.empty((5, room), np.int64), np.empty(3 * room, np.int64)
    out, offsets = np.empty((scale * len(coords), 2), np.float64), np.zeros_like(ring_offsets)
    used = 0
    for number in range(len(ring_offsets) - 1):
        ring, closed = traced, coords[ring_offsets[number] : ring_offsets[number + 1]]
        count = _vertices(coverage, closed, traced)
        if scale > 1:
            ring, count = cut, _cut_corners(traced, count, cut)
        if limit >= 0:
            count = _thin_ring(coverage, limit, ring[:, :count], arc, heap)
        for at in range(count + 1):
            out[used, 0], out[used, 1] = ring[0, at % count] / scale, ring[1, at % count] / scale
            used += 1
        offsets[number + 1] = used
    return out[:used].copy(), offsets
