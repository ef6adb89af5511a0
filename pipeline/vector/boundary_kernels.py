"""Compiled loops: the boundaries between labels. Knows arrays only.

Words: a *crack* is an edge between two pixels, or between a pixel and the outside. Boundaries go along cracks with
their region on the right: 0 east, 1 south, 2 west, 3 north. A block's labels come with an *apron* of one pixel, the
labels around it, so that each crack is decided once, by the block that holds the pixel on its right.

The *quadrants* around a corner are numbered 0 north-west, 1 north-east, 2 south-east, 3 south-west. A boundary that
arrives at a corner in a direction `d` has its pixel in quadrant `d + 3`, what it divides it from in `d`, and ahead of
it `d + 2` on its own side and `d + 1` on the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.vector.compiled import compiled, longer, numbers_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.vector.compiled import Int32s, Int64s

    Table = NDArray[np.int32]

_SOUTH = 1
_UPPER, _LOWER, _LEFT, _RIGHT = 0b0011, 0b1100, 0b1001, 0b0110
"""Quadrants, a bit for each."""
_HEAD = -1
"""Where a node lies that is no vertex but leads to the first of a chain; and where one lies that was taken."""


@compiled
def _busy_corners(above: Int32s, below: Int32s, rim: bool, busy: NDArray[np.uint8], found: Int32s) -> int:  # noqa: FBT001
    """Corners between two lines of pixels at which boundaries do more than go straight on, in `found`; how many.

    Args:
        above: A line of the apron.
        below: The next one.
        rim: Whether one of them belongs to the apron: then also where boundaries go straight on.
        busy: Room for a flag for each corner.
        found: Room for the number of each.
    """
    count = len(busy)
    nw, ne, sw, se = above[:-1], above[1:], below[:-1], below[1:]
    if rim:
        for at in range(count):
            busy[at] = (nw[at] != ne[at]) | (ne[at] != se[at]) | (sw[at] != se[at])
    else:
        for at in range(count):
            busy[at] = ((nw[at] != sw[at]) | (ne[at] != se[at])) & ((nw[at] != ne[at]) | (sw[at] != se[at]))
        busy[0] = busy[count - 1] = 1
    return int(numbers_of(busy, found))


@compiled
def _link(apron: Table, nodes: bool) -> Any:  # noqa: C901, FBT001, PLR0912 - a call for each corner costs as much again
    """All vertices in one pass over the corners, row by row, each linked to the one that follows on its boundary.

    A vertex waits for the next one where its boundary leads on to the east or south; where the boundary comes from there,
    the corner to the east or south waits for it.

    Args:
        apron: See `trace`.
        nodes: See `trace`.

    Returns:
        (corner of each node, or `_HEAD`; the node after each, or -1 minus a number among the ends; heads of chains
        `(chain, 3)`: node, pixel and direction of the first crack; ends of chains `(chain, 2)`: pixel and direction of
        the crack after the last).
    """
    height, width = apron.shape[0] - 2, apron.shape[1] - 2
    line, labels = width + 2, apron.ravel()
    quadrants = np.array([0, 1, line + 1, line])
    busy, found = np.empty(width + 1, np.uint8), np.empty(width + 1, np.int32)
    position, following = np.empty(8 * (width + 513), np.int32), np.empty(8 * (width + 513), np.int32)
    heads, ends = np.empty((64, 3), np.int64), np.empty((64, 2), np.int64)
    waiting = np.empty((4, width + 1), np.int32)  # by direction, and by column where that is south or north
    before, around = np.empty(4, np.int32), np.empty(4, np.int32)
    count = num_heads = num_ends = 0
    for row in range(height + 1):
        while count + 4 * (width + 1) > len(position):
            position, following = longer(position), longer(following)
        rows_inside = (_UPPER if row > 0 else 0) | (_LOWER if row < height else 0)
        rim = rows_inside != _UPPER | _LOWER
        for number in range(_busy_corners(apron[row], apron[row + 1], rim, busy, found)):
            col = found[number]
            inside = rows_inside & ((_LEFT if col > 0 else 0) | (_RIGHT if col < width else 0))
            pixel = row * line + col
            for side in range(4):
                around[side] = labels[pixel + quadrants[side]]
                before[side] = waiting[side, col if side & 1 else 0]
            for direction in range(4):
                own, other = around[(direction + 3) & 3], around[direction]
                if own == 0 or own == other:  # noqa: PLR1714 - as Numba reads it
                    continue
                ahead, beside = (direction + 2) & 3, (direction + 1) & 3
                quadrant, onward, vertex = (direction + 3) & 3, (direction + 1) & 3, True  # an outer corner
                if around[beside] == own:  # an inner corner, or the region touches itself: on to the other pixel
                    quadrant, onward = beside, (direction + 3) & 3
                elif around[ahead] == own:
                    quadrant, onward, vertex = ahead, direction, nodes and around[beside] != other
                comes, goes = inside >> ((direction + 3) & 3) & 1, inside >> quadrant & 1
                if not (comes or goes) or (comes and goes and not vertex):
                    continue
                leads_to = count
                if not goes:
                    if num_ends == len(ends):
                        ends = longer(ends)
                    ends[num_ends, 0], ends[num_ends, 1] = pixel + quadrants[quadrant], onward
                    num_ends += 1
                    following[count] = -num_ends
                    leads_to = count if vertex else -num_ends
                elif not comes:
                    if num_heads == len(heads):
                        heads = longer(heads)
                    head = heads[num_heads]
                    head[0], head[1], head[2] = count, pixel + quadrants[quadrant], onward
                    num_heads += 1
                if comes and direction <= _SOUTH:
                    following[before[direction]] = leads_to
                elif comes:
                    waiting[direction, col if direction & 1 else 0] = leads_to
                if goes and onward <= _SOUTH:
                    waiting[onward, col if onward & 1 else 0] = count
                elif goes:
                    following[count] = before[onward]
                if leads_to == count:
                    position[count] = pixel + quadrants[2] if comes else _HEAD
                    count += 1
    return position[:count], following, heads[:num_heads], ends


@compiled
def trace(apron: Table, nodes: bool) -> Any:  # noqa: FBT001
    """Boundaries of a block's labels.

    Args:
        apron: Labels `(y + 2, x + 2)`: the block's, with those of the pixels around it; 0 for no region. Contiguous.
        nodes: Also keep corners on a straight line at which what lies on the other side changes.

    Returns:
        (corners of all chains, then all rings, by their numbers: of the pixels to the lower right, in the flat apron;
        table of chains `(chain, 6)`: end in the corners, label, pixel (in the flat apron) and direction of the
        first crack, the same of the crack after the last, which is another block's;
        table of rings `(ring, 2)`: end in the corners, label).
        A chain is cut where the boundary leaves the block; it has its turns, the one at its end included. Rings begin
        at their first corner, row by row, and are not closed; the first of a label is its exterior, if the label has
        no chain.
    """
    line, labels = apron.shape[1], apron.ravel()
    position, following, heads, ends = _link(apron, nodes)
    corners = np.empty(len(position), np.int32)
    chains, rings = np.empty((len(heads), 6), np.int64), np.empty((64, 2), np.int64)
    used = num_rings = 0
    for number in range(len(heads)):
        chain, head = chains[number], heads[number]
        used, end = _take(position, following, following[head[0]], corners, used)
        chain[0], chain[1], chain[2], chain[3] = used, labels[head[1]], head[1], head[2]
        chain[4], chain[5] = ends[-1 - end, 0], ends[-1 - end, 1]
    for start in range(len(position)):
        corner = position[start]
        if corner == _HEAD:
            continue
        if num_rings == len(rings):
            rings = longer(rings)
        # An exterior begins eastwards below its first corner, a hole southwards.
        eastwards = position[following[start]] // line == corner // line
        rings[num_rings, 1] = labels[corner] if eastwards else labels[corner - line]
        used, _ = _take(position, following, start, corners, used)
        rings[num_rings, 0] = used
        num_rings += 1
    return corners[:used], chains, rings[:num_rings].copy()


@compiled
def _take(position: Int32s, following: Int32s, node: int, corners: Int32s, used: int) -> tuple[int, int]:
    """Move the corners of a boundary from a node to its end behind the first `used`: (how many then, the end)."""
    while node >= 0 and position[node] != _HEAD:
        corners[used] = position[node]
        position[node] = _HEAD
        used += 1
        node = following[node]
    return used, node


@compiled
def close_rings(corners: Any, pieces: Int64s, rings: Int64s, line: int, origin_xy: tuple[int, int]) -> Any:
    """Rings as Shapely wants them, each from its pieces.

    Args:
        corners: Numbers of corners, row by row.
        pieces: `(piece, 2)`: where a piece begins among the corners and how long it is.
        rings: `(ring + 1,)`: ring `i` is made of the pieces from `rings[i]` to `rings[i + 1]`.
        line: Corners in a row.
        origin_xy: Where corner 0 lies.

    Returns:
        (coordinates `(vertex, 2)` float64, each ring closed; where each begins, `(ring + 1,)`).
    """
    total = 0
    for number in range(len(pieces)):
        total += pieces[number, 1]
    closed = np.empty((total + len(rings) - 1, 2), np.float64)
    offsets = np.zeros(len(rings), np.int64)
    count = 0
    for ring in range(len(rings) - 1):
        for piece in range(rings[ring], rings[ring + 1]):
            start, length = pieces[piece]
            for vertex in range(start, start + length):
                corner = corners[vertex]
                row = corner // line
                closed[count, 0] = corner - row * line + origin_xy[0]
                closed[count, 1] = row + origin_xy[1]
                count += 1
        closed[count] = closed[offsets[ring]]
        count += 1
        offsets[ring + 1] = count
    return closed, offsets


@compiled
def cycles(following: Int64s) -> tuple[Int64s, Int64s]:
    """Cycles of a permutation.

    Args:
        following: What comes after each, shape (chain,).

    Returns:
        (all members in the order of their cycles, each cycle from its smallest; ends of the cycles in that order).
    """
    members, ends = np.empty(len(following), np.int64), np.empty(len(following), np.int64)
    used = np.zeros(len(following), np.bool_)
    count = num_cycles = 0
    for start in range(len(following)):
        at = start
        if used[at]:
            continue
        while not used[at]:
            used[at] = True
            members[count] = at
            count += 1
            at = following[at]
        ends[num_cycles] = count
        num_cycles += 1
    return members, ends[:num_cycles].copy()
