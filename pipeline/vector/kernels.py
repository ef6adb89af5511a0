"""Compiled loops: 4-connected pieces of a block, and sums over labels. Knows arrays only.

A block's labels come with an *apron* of one pixel, the labels around it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.vector.compiled import compiled, longer, numbers_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.vector.compiled import Int32s, Int64s

_STEP = 16
"""Pixels written at once, the room that `fill` needs beyond the last one."""


@compiled
def _find(parent: Int32s, node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@compiled
def _united(parent: Int32s, one: int, other: int) -> int:
    """Make two nodes one piece, if they are not; a node of it. Node 0 is none."""
    if one == 0 or one == other:  # noqa: PLR1714 - as Numba reads it
        return other
    first, second = _find(parent, one), _find(parent, other)
    parent[max(first, second)] = min(first, second)
    return one


@compiled
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


@compiled
def _begin_runs(line: Any, wanted: NDArray[np.bool_], begins: NDArray[np.uint8], starts: Int32s) -> int:
    """Write the columns at which something else begins into `starts`; returns how many there are."""
    here, before, begin = line[1:], line[:-1], begins[1:]
    for col in range(len(begin)):
        begin[col] = here[col] != before[col]
    if wanted.size:
        now, earlier = wanted[1:], wanted[:-1]
        for col in range(len(begin)):
            begin[col] |= now[col] != earlier[col]
    begins[0] = 1
    return int(numbers_of(begins, starts))


@compiled
def label_runs(block: NDArray[np.generic], wanted: NDArray[np.bool_]) -> Any:  # noqa: C901 - slices for calls cost more
    """Number the 4-connected pieces of equal values, in the order of their first pixels, run by run.

    Args:
        block: Shape `(y, x)`, integers.
        wanted: The same shape, False where a pixel belongs to no piece; of shape `(0, 0)` where all do.

    Returns:
        (where the runs of each row begin among all, shape `(y + 1,)`; first column of each run; its label: 0 for no
        piece, else 1, 2, 3, …; value of each piece, shape `(piece + 1,)`, the first entry belongs to no piece).
        A run ends where the next one of its row begins.
    """
    height, width = block.shape
    offsets = np.zeros(height + 1, np.int64)
    starts, labels = np.empty(4096 + width, np.int32), np.empty(4096 + width, np.int32)
    begins, nothing = np.empty(width, np.uint8), np.empty(0, np.bool_)
    parent, values = np.zeros(1024, np.int32), np.zeros(1024, np.int64)
    count = above = 0
    for row in range(height):
        first = offsets[row]
        while first + width > len(starts):
            starts, labels = longer(starts), longer(labels)
        line_wanted = wanted[row] if wanted.size else nothing
        stop = first + _begin_runs(block[row], line_wanted, begins, starts[first:])
        offsets[row + 1] = stop
        for run in range(first, stop):
            begin, end = starts[run], starts[run + 1] if run + 1 < stop else width
            while above + 1 < first and starts[above + 1] <= begin:
                above += 1
            labels[run] = 0
            if wanted.size and not wanted[row, begin]:
                continue
            value, at, own = block[row, begin], above, 0
            while at < first and starts[at] < end:
                if labels[at] != 0 and block[row - 1, starts[at]] == value:
                    own = _united(parent, own, labels[at])
                at += 1
            if own == 0:
                count += 1
                if count == len(parent):
                    parent, values = longer(parent), longer(values)
                own = parent[count] = count
                values[count] = value
            labels[run] = own
        above = first
    kept = _numbered(parent, values, count)
    for run in range(offsets[height]):
        labels[run] = -parent[labels[run]]
    return offsets, starts[: offsets[height]].copy(), labels[: offsets[height]].copy(), values[: kept + 1].copy()


@compiled
def fill(offsets: Int64s, starts: Int32s, labels: Int32s, new: Int32s, line: int) -> Int32s:
    """Pixels from runs, with an apron of zeros.

    Args:
        offsets: Where the runs of each row begin among all, shape `(y + 1,)`.
        starts: First column of each run.
        labels: Label of each run.
        new: What is written for each label.
        line: Pixels in a row, the apron included.

    Returns:
        Shape `((y + 2) * line,)`.
    """
    height, width = len(offsets) - 1, line - 2
    size = (height + 2) * line
    out = np.empty(size + _STEP, np.int32)
    out[:line] = 0
    for row in range(height):
        begin = (row + 1) * line
        out[begin] = 0
        for run in range(offsets[row], offsets[row + 1]):
            at = begin + 1 + starts[run]
            stop = begin + 1 + (starts[run + 1] if run + 1 < offsets[row + 1] else width)
            value = new[labels[run]]
            while at < stop:  # what is written beyond the end is written over by what follows
                some = out[at : at + _STEP]
                for pixel in range(_STEP):
                    some[pixel] = value
                at += _STEP
        out[begin + line - 1] = 0
    out[size - line : size] = 0
    return out[:size]


@compiled
def sum_by_label(labels: Int32s, rows: Int64s, cols: Int64s, cells: Int64s, count: int) -> Int64s:
    """Sum of `cells[rows[y], cols[x]]` over the pixels of each label, shape `(count,)`; label 0 included."""
    total = np.zeros(count, np.int64)
    for row in range(labels.shape[0]):
        for col in range(labels.shape[1]):
            total[labels[row, col]] += cells[rows[row], cols[col]]
    return total


@compiled
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
                        pairs = longer(pairs)
                    pairs[count, 0], pairs[count, 1] = own, other
                    count += 1
    return pairs[:count].copy()


@compiled
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


@compiled
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
