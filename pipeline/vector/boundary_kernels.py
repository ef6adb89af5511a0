"""Compiled loops: the boundaries between labels. Knows arrays only.

Words: a *crack* is an edge between two pixels, or between a pixel and the outside. Boundaries go along cracks with
their region on the right: 0 east, 1 south, 2 west, 3 north. A block's labels come with an *apron* of one pixel, the
labels around it, so that each crack is decided once, by the block that holds the pixel on its right.

The *quadrants* around a corner are numbered 0 north-west, 1 north-east, 2 south-east, 3 south-west. A boundary that
arrives at a corner in a direction `d` has its pixel in quadrant `d + 3`, what it divides it from in `d`, and ahead of
it `d + 2` on its own side and `d + 1` on the other.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.vector.compiled import compiled, longer, numbers_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.vector.compiled import Int32s, Int64s

    Table = NDArray[np.int32]

_SOUTH = 1
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


def _onward(around: Any, direction: int, nodes: bool) -> tuple[int, int, bool]:  # noqa: FBT001
    """How a boundary that arrives at a corner goes on: (quadrant of its pixel then, direction, whether at a vertex).

    Args:
        around: Labels of the four quadrants.
        direction: In which it arrives.
        nodes: See `trace`.
    """
    own, beside, ahead = around[(direction + 3) & 3], (direction + 1) & 3, (direction + 2) & 3
    if around[beside] == own:  # an inner corner, or the region touches itself: on to the other pixel
        return beside, (direction + 3) & 3, True
    if around[ahead] == own:
        return ahead, direction, nodes and around[beside] != around[direction]
    return (direction + 3) & 3, (direction + 1) & 3, True


def _pattern(nw: int, ne: int, se: int, sw: int) -> int:
    """All that matters of the labels around a corner: which are equal, and which are none."""
    return (
        (nw == ne) | (ne == se) << 1 | (se == sw) << 2 | (sw == nw) << 3 | (nw == se) << 4 | (ne == sw) << 5
        | (nw == 0) << 6 | (ne == 0) << 7 | (se == 0) << 8 | (sw == 0) << 9
    )  # fmt: skip


def _vertices_of_patterns(*, nodes: bool) -> tuple[Int64s, Table]:
    """(where the vertices of each pattern begin, and end; directions in which each is reached and left)."""
    found: dict[int, list[tuple[int, int]]] = {}
    for around in itertools.product(range(5), repeat=4):
        passed = [
            (direction, *_onward(around, direction, nodes))
            for direction in range(4)
            if around[(direction + 3) & 3] not in (0, around[direction])
        ]
        found[_pattern(*around)] = [(direction, onward) for direction, _, onward, vertex in passed if vertex]
    in_order = [found.get(pattern, []) for pattern in range(1 << 10)]
    ends = np.cumsum([0] + [len(some) for some in in_order])
    return ends, np.array([pair for some in in_order for pair in some], np.int32)


_TURNS, _TURNS_AND_NODES = _vertices_of_patterns(nodes=False), _vertices_of_patterns(nodes=True)
_onward_compiled, _pattern_compiled = compiled(_onward), compiled(_pattern)

_EAST, _WEST, _NOWHERE, _COLUMNS = range(4)
"""What waits at a corner for the next one, by the direction that it leads in: places among the links. East: the last
vertex of what leads on to there. West: the vertex that what comes from there will lead to. Then the same for each
column, south and north; then the nodes."""


@compiled
def _link_inside(
    lines: Table, found: Int32s, corner: int, links: Int32s, position: Int32s, count: int, table: Any
) -> int:
    """Link the vertices at some corners of a row, all four pixels around which are of the block.

    Without a branch for each kind of corner: processors guess wrong at every second one.

    Args:
        lines: Labels above and below, `(2, x)`.
        found: Columns of the corners.
        corner: Number of the first corner of the row.
        links: The node after each node, and what waits, see `_COLUMNS`. Written.
        position: Corner of each node. Written.
        count: Nodes so far, and places for what waits.
        table: See `_vertices_of_patterns`.

    Returns:
        `count` with the new ones.
    """
    ends, vertices = table
    reached, left, onto = np.empty(4, np.int32), np.zeros(4, np.int32), np.empty(4, np.int32)
    reached[2], onto[0], onto[2], onto[3] = _WEST, _EAST, _NOWHERE, _NOWHERE
    for number in range(len(found)):
        col = found[number]
        pattern = _pattern_compiled(lines[0, col], lines[0, col + 1], lines[1, col + 1], lines[1, col])
        south = _COLUMNS + 2 * col
        reached[0], reached[1], reached[3] = links[_EAST], links[south], south + 1
        left[2], left[3], onto[1] = links[_WEST], links[south + 1], south
        for vertex in range(ends[pattern], ends[pattern + 1]):
            direction, onward = vertices[vertex, 0], vertices[vertex, 1]
            position[count] = corner + col
            links[reached[direction]] = count
            links[count] = left[onward]
            links[onto[onward]] = count
            count += 1
    return count


@compiled
def _link_rim(
    apron: Table, row: int, col: int, links: Int32s, position: Int32s, counts: Int64s, heads: Int64s, ends: Int64s,
    nodes: bool,  # noqa: FBT001
) -> None:  # fmt: skip
    """The same at a corner at the rim of the block, where boundaries enter and leave it.

    Args:
        apron: See `trace`.
        row: Of the corner.
        col: Of the corner.
        links: See `_link_inside`. Written.
        position: Written.
        counts: Nodes, heads and ends. Written.
        heads: See `_link`. Written.
        ends: See `_link`. Written.
        nodes: See `trace`.
    """
    height, line = apron.shape[0] - 2, apron.shape[1]
    pixel, south = row * line + col, _COLUMNS + 2 * col
    around = (apron[row, col], apron[row, col + 1], apron[row + 1, col + 1], apron[row + 1, col])
    pixels = (pixel, pixel + 1, pixel + line + 1, pixel + line)
    inside = (
        row > 0 and col > 0,
        row > 0 and col < line - 2,
        row < height and col < line - 2,
        row < height and col > 0,
    )
    waiting = (links[_EAST], links[south], links[_WEST], links[south + 1])
    places = (_EAST, south, _WEST, south + 1)
    for direction in range(4):
        right = (direction + 3) & 3
        if around[right] == 0 or around[right] == around[direction]:
            continue
        quadrant, onward, vertex = _onward_compiled(around, direction, nodes)
        comes, goes = inside[right], inside[quadrant]
        if not (comes or goes) or (comes and goes and not vertex):
            continue
        node = leads_to = counts[0]
        if not goes:
            end = ends[counts[2]]
            end[0], end[1] = pixels[quadrant], onward
            counts[2] += 1
            links[node] = -counts[2]
            leads_to = node if vertex else -counts[2]
        elif not comes:
            head = heads[counts[1]]
            head[0], head[1], head[2] = node, pixels[quadrant], onward
            counts[1] += 1
        if comes:
            links[waiting[direction] if direction <= _SOUTH else places[direction]] = leads_to
        if goes and onward <= _SOUTH:
            links[places[onward]] = node
        elif goes:
            links[node] = waiting[onward]
        if leads_to == node:
            position[node] = pixels[2] if comes else _HEAD
            counts[0] += 1


@compiled
def _link(apron: Table, nodes: bool, table: Any) -> Any:  # noqa: FBT001
    """All vertices in one pass over the corners, row by row, each linked to the one that follows on its boundary.

    Args:
        apron: See `trace`.
        nodes: See `trace`.
        table: See `_vertices_of_patterns`.

    Returns:
        (first node; corner of each node, or `_HEAD`, up to the last one; the node after each, or -1 minus a number
        among the ends; heads of chains `(chain, 3)`: node, pixel and direction of the first crack; ends of chains
        `(chain, 2)`: pixel and direction of the crack after the last).
    """
    height, width = apron.shape[0] - 2, apron.shape[1] - 2
    line, first = width + 2, _COLUMNS + 2 * (width + 1)
    busy, found = np.empty(width + 1, np.uint8), np.empty(width + 1, np.int32)
    links, position = np.empty(first + 4096, np.int32), np.empty(first + 4096, np.int32)
    rim = 8 * (height + width + 2)  # four boundaries arrive at most at a corner
    heads, ends = np.empty((rim, 3), np.int64), np.empty((rim, 2), np.int64)
    counts = np.array([first, 0, 0])
    for row in range(height + 1):
        while counts[0] + 4 * (width + 1) > len(links):
            links, position = longer(links), longer(position)
        at_rim = row in (0, height)
        number = _busy_corners(apron[row], apron[row + 1], at_rim, busy, found)
        if at_rim:
            for corner in range(number):
                _link_rim(apron, row, found[corner], links, position, counts, heads, ends, nodes)
            continue
        _link_rim(apron, row, 0, links, position, counts, heads, ends, nodes)
        counts[0] = _link_inside(
            apron[row : row + 2], found[1 : number - 1], (row + 1) * line + 1, links, position, counts[0], table
        )
        _link_rim(apron, row, width, links, position, counts, heads, ends, nodes)
    return first, position[: counts[0]], links, heads[: counts[1]], ends


def trace(apron: Table, *, nodes: bool) -> tuple[Int32s, Int64s, Int64s]:
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
    corners, chains, rings = _trace(apron, nodes, _TURNS_AND_NODES if nodes else _TURNS)
    return corners, chains, rings


@compiled
def _trace(apron: Table, nodes: bool, table: Any) -> Any:  # noqa: FBT001
    """See `trace` and `_link`."""
    line, labels = apron.shape[1], apron.ravel()
    first, position, following, heads, ends = _link(apron, nodes, table)
    corners = np.empty(len(position) - first, np.int32)
    chains, rings = np.empty((len(heads), 6), np.int64), np.empty((64, 2), np.int64)
    used = num_rings = 0
    for number in range(len(heads)):
        chain, head = chains[number], heads[number]
        used, end = _take(position, following, following[head[0]], corners, used)
        chain[0], chain[1], chain[2], chain[3] = used, labels[head[1]], head[1], head[2]
        chain[4], chain[5] = ends[-1 - end, 0], ends[-1 - end, 1]
    for start in range(first, len(position)):
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
