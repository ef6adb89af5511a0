"""Compiled loops: 4-connected components of a block, and the boundaries between them. Knows arrays only.

Import it where it is first needed: Numba takes half a second. What it compiles is kept on disk.

Words: a *crack* is an edge between two pixels, or between a pixel and the outside. Cracks are walked with the region on
the right: 0 east, 1 south, 2 west, 3 north. A block's labels come with an *apron* of one pixel, the labels around it,
so that each crack is decided once, by the block that holds the pixel on its right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Int32s = NDArray[np.int32]
    Int64s = NDArray[np.int64]


def _compiled(function: Callable[..., Any]) -> Any:
    """Compiled when first called, and kept on disk where there is a place for it: beside this file, or in a cache."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # an installation that cannot be written to, and no home
        return njit(nogil=True)(function)


@_compiled
def _find(parent: Int32s, node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@_compiled
def _longer(values: Any) -> Any:
    grown = np.empty((2 * len(values),) + values.shape[1:], values.dtype)  # noqa: RUF005 - as Numba reads it
    grown[: len(values)] = values
    return grown


@_compiled
def _numbered(parent: Int32s, values: Int64s, count: int) -> int:
    """Make trees of nodes final: each node's entry becomes minus its new number; returns how many there are."""
    kept = 0
    for node in range(1, count + 1):
        if parent[node] == node:
            kept += 1
            values[kept] = values[node]
            parent[node] = -kept
        else:
            parent[node] = parent[parent[node]]  # a smaller node, final already
    return kept


@_compiled
def label(block: NDArray[np.generic], wanted: NDArray[np.bool_], labels: Int32s) -> Int64s:
    """Number the 4-connected pieces of equal values, in the order of their first pixels.

    Args:
        block: Shape `(y, x)`, integers.
        wanted: The same shape, False where a pixel belongs to no piece; of size 0 where all do.
        labels: The same shape, written: 0 for no piece, else 1, 2, 3, …

    Returns:
        Value of each piece, shape (piece + 1,); the first entry belongs to no piece.
    """
    height, width = block.shape
    parent = np.zeros(1024, np.int32)
    values = np.zeros(1024, np.int64)
    count = 0
    for row in range(height):
        for col in range(width):
            if wanted.size and not wanted[row, col]:
                labels[row, col] = 0
                continue
            value = block[row, col]
            left = labels[row, col - 1] if col > 0 and block[row, col - 1] == value else 0
            up = labels[row - 1, col] if row > 0 and block[row - 1, col] == value else 0
            if left == 0 and up == 0:
                count += 1
                if count == len(parent):
                    parent, values = _longer(parent), _longer(values)
                parent[count], values[count] = count, value
                labels[row, col] = count
                continue
            labels[row, col] = left or up
            # Where the pixel before had the same two labels, they are joined already.
            if left and up and up != left and labels[row - 1, col - 1] != up:
                one, other = _find(parent, left), _find(parent, up)
                parent[max(one, other)] = min(one, other)
    kept = _numbered(parent, values, count)
    for row in range(height):
        for col in range(width):
            labels[row, col] = -parent[labels[row, col]]
    return values[: kept + 1].copy()


@_compiled
def relabel(labels: Int32s, new: Int32s) -> None:
    """Replace each label by `new[label]`, in place."""
    for row in range(labels.shape[0]):
        for col in range(labels.shape[1]):
            labels[row, col] = new[labels[row, col]]


_SEEN, _RIM = 1, 2


@_compiled
def _steps(line: int) -> Int64s:
    """Offsets in a flat array with such lines, `(3, direction)`.

    To the next pixel; from there to the one on its left; from a pixel to the number of the corner at which the crack on
    its left-hand side ends. A corner has the number of the pixel to the lower right of it.
    """
    return np.array([[1, line, -1, -line], [-line, 1, line, -1], [1, line + 1, line, 0]])


@_compiled
def _walk(
    labels: Int32s, flags: NDArray[np.uint8], steps: Int64s, start: tuple[int, int], corners: Int32s, count: int,
    nodes: bool,  # noqa: FBT001
) -> Any:  # fmt: skip
    """Follow a boundary from a crack until it closes or leaves the block.

    Args:
        labels: Flat, with the apron.
        flags: Flat: whether a pixel's top crack was walked, and whether it belongs to the apron.
        steps: Of these arrays.
        start: The pixel on the right of the first crack, and its direction.
        corners: Vertices, written behind the first `count`.
        count: Vertices so far.
        nodes: See `trace`.

    Returns:
        (corners, grown if need be; vertices used; pixel and direction of the crack after the last).
    """
    pixel, direction = start
    own = labels[pixel]
    while True:
        if direction == 0:
            flags[pixel] |= _SEEN
        ahead = pixel + steps[0, direction]
        beside = ahead + steps[1, direction]
        corner = pixel + steps[2, direction]
        keep = True
        if labels[beside] == own:  # an inner corner, or the region touches itself: on to the other pixel
            pixel, direction = beside, (direction + 3) & 3
        elif labels[ahead] == own:
            keep = nodes and labels[beside] != labels[pixel + steps[1, direction]]
            pixel = ahead
        else:
            direction = (direction + 1) & 3
        if keep:
            if count == len(corners):
                corners = _longer(corners)
            corners[count] = corner
            count += 1
        if flags[pixel] & _RIM or (pixel == start[0] and direction == start[1]):
            return corners, count, pixel, direction


@_compiled
def _begins_chain(labels: Int32s, flags: NDArray[np.uint8], steps: Int64s, pixel: int, direction: int) -> bool:
    """Whether there is a crack on this side of a pixel, and the one before it is another block's."""
    own = labels[pixel]
    if own == 0 or labels[pixel + steps[1, direction]] == own:
        return False
    before = pixel - steps[0, direction]
    beside = before + steps[1, direction]
    if labels[beside] == own:  # it came from there: round an inner corner, or across a touch of the region itself
        return bool(flags[beside] & _RIM)
    if labels[before] == own:  # straight on
        return bool(flags[before] & _RIM)
    return False  # round an outer corner of the same pixel


@_compiled
def _rim_pixel(number: int, height: int, width: int) -> tuple[int, int]:
    """Pixels along the rim of a block, each once: first and last row, then what is left of first and last column."""
    if number < width:
        return 0, number
    if number < 2 * width and height > 1:
        return height - 1, number - width
    beside = number - 2 * width
    if width == 1:
        return 1 + beside, 0
    return 1 + beside // 2, (width - 1) * (beside % 2)


@_compiled
def _count_rim(height: int, width: int) -> int:
    if height == 1:
        return width
    return 2 * width + (height - 2) * (2 if width > 1 else 1)


@_compiled
def _trace_chains(
    labels: Int32s,
    flags: NDArray[np.uint8],
    shape: tuple[int, int],
    corners: Int32s,
    nodes: bool,  # noqa: FBT001
) -> Any:
    """Boundaries that enter the block: (corners, number used, table of chains)."""
    height, width = shape
    line = width + 2
    steps = _steps(line)
    chains = np.empty((64, 6), np.int64)
    count = num_chains = 0
    for number in range(_count_rim(height, width)):
        row, col = _rim_pixel(number, height, width)
        pixel = (row + 1) * line + col + 1
        for direction in range(4):
            if not _begins_chain(labels, flags, steps, pixel, direction):
                continue
            corners, count, after, turned = _walk(labels, flags, steps, (pixel, direction), corners, count, nodes)
            if num_chains == len(chains):
                chains = _longer(chains)
            chain = chains[num_chains]
            chain[0], chain[1] = count, labels[pixel]
            chain[2], chain[3] = pixel, direction
            chain[4], chain[5] = after, turned
            num_chains += 1
    return corners, count, chains[:num_chains].copy()


@_compiled
def trace(apron: Int32s, nodes: bool) -> Any:  # noqa: FBT001
    """Walk all cracks of a block.

    Args:
        apron: Labels `(y + 2, x + 2)`: the block's, with those of the pixels around it; 0 for no region. Contiguous.
        nodes: Also keep corners on a straight line at which what lies on the other side changes.

    Returns:
        (corners of all chains, then all rings, by their numbers: of the pixels to the lower right, in the flat apron;
        table of chains `(chain, 6)`: end in the corners, label, pixel (in the flat apron) and direction of the
        first crack, the same of the crack after the last, which is another block's;
        table of rings `(ring, 2)`: end in the corners, label).
        A chain is cut where the boundary leaves the block; it has its turns, the one at its end included. Rings begin
        anywhere and are not closed; the first of a label is its exterior, if the label has no chain.
    """
    height, width = apron.shape[0] - 2, apron.shape[1] - 2
    line = width + 2
    labels = apron.ravel()
    around = np.zeros(apron.shape, np.uint8)
    around[0], around[-1], around[:, 0], around[:, -1] = _RIM, _RIM, _RIM, _RIM
    flags, steps = around.ravel(), _steps(line)
    corners, count, chains = _trace_chains(labels, flags, (height, width), np.empty(4096, np.int32), nodes)
    rings = np.empty((64, 2), np.int64)
    num_rings = 0
    for row in range(1, height + 1):
        for pixel in range(row * line + 1, row * line + 1 + width):
            own = labels[pixel]
            if own == 0 or labels[pixel - line] == own or flags[pixel] & _SEEN:
                continue
            corners, count, _, _ = _walk(labels, flags, steps, (pixel, 0), corners, count, nodes)
            if num_rings == len(rings):
                rings = _longer(rings)
            rings[num_rings, 0], rings[num_rings, 1] = count, own
            num_rings += 1
    return corners[:count], chains, rings[:num_rings].copy()


@_compiled
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


@_compiled
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


@_compiled
def sum_by_label(labels: Int32s, rows: Int64s, cols: Int64s, cells: Int64s, count: int) -> Int64s:
    """Sum of `cells[rows[y], cols[x]]` over the pixels of each label, shape `(count,)`; label 0 included."""
    total = np.zeros(count, np.int64)
    for row in range(labels.shape[0]):
        for col in range(labels.shape[1]):
            total[labels[row, col]] += cells[rows[row], cols[col]]
    return total


@_compiled
def borders(apron: Int32s, small: NDArray[np.bool_]) -> Int32s:
    """Cracks between regions one of which is small, each once: those to the right of a block's pixels and below them.

    Args:
        apron: Labels `(y + 2, x + 2)`; 0 for no region.
        small: Whether a label is small.

    Returns:
        Pairs of labels, `(crack, 2)`.
    """
    pairs = np.empty((1024, 2), np.int32)
    count = 0
    height, width = apron.shape[0] - 2, apron.shape[1] - 2
    for row in range(1, height + 1):
        for col in range(1, width + 1):
            own = apron[row, col]
            for other in (apron[row, col + 1], apron[row + 1, col]):
                if own == other or own == 0 or other == 0:  # noqa: PLR1714 - as Numba reads it
                    continue
                if small[own] or small[other]:
                    if count == len(pairs):
                        pairs = _longer(pairs)
                    pairs[count, 0], pairs[count, 1] = own, other
                    count += 1
    return pairs[:count].copy()


@_compiled
def meets(apron: Int32s, absent: NDArray[np.bool_], count: int) -> Int64s:
    """1 for each label with a pixel that shares an edge with an absent one, shape `(count,)`; label 0 means nothing.

    Args:
        apron: Labels `(y + 2, x + 2)`; 0 for no region.
        absent: The same shape, True where a pixel has no class.
        count: Labels of the block are below this.
    """
    found = np.zeros(count, np.int64)
    for row in range(1, apron.shape[0] - 1):
        for col in range(1, apron.shape[1] - 1):
            above_or_below = absent[row - 1, col] or absent[row + 1, col]
            if above_or_below or absent[row, col - 1] or absent[row, col + 1]:
                found[apron[row, col]] = 1
    return found


@_compiled
def add_steps(labels: Int32s, steps: NDArray[np.uint8], unsure_below: int, table: Int64s) -> None:
    """Sum and least of the steps of each label's pixels, and how many are below a limit.

    Args:
        labels: `(y, x)`; 0 for no region.
        steps: `(y, x)`.
        unsure_below: The limit.
        table: `(label, 3)`: sum, least, number; added to in place.
    """
    for row in range(labels.shape[0]):
        for col in range(labels.shape[1]):
            own, step = labels[row, col], steps[row, col]
            table[own, 0] += step
            table[own, 1] = min(table[own, 1], step)
            if step < unsure_below:
                table[own, 2] += 1
