"""Pieces of tiles to regions of the scene: a sweep over tile rows that joins what shares a pixel edge across a seam.

A region is finished as soon as none of its pieces touches the frontier (the last pixel row swept so far), so memory
follows the open regions and one row of the scene, not the number of regions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.grid import Window, iter_windows
from pipeline.vector.rings import drop_collinear, from_shapely

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from pipeline.vector.rings import Geometries, Ints, Rings
    from pipeline.vector.trace import Pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class Regions:
    """Finished regions, in no promised order."""

    polygons: Geometries
    """Shapely polygons in pixel coordinates, turns only, shape (region,)."""
    values: Ints
    """Class of each region, shape (region,)."""


def iter_regions(
    trace: Callable[[Window], Pieces],
    shape_hw: tuple[int, int],
    *,
    tile_hw: tuple[int, int],
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Regions]:
    """Sweep a mask tile by tile and yield its 4-connected regions.

    Args:
        trace: Gives the pieces of a window, in pixel coordinates of the scene.
        shape_hw: Height and width of the mask.
        tile_hw: Height and width of a tile; no influence on the regions.
        progress: Called after each tile with (tiles done, tiles in all).

    Law: the set of regions equals that of the whole mask traced at once (properties/test_vector_law.py).
    """
    windows = list(iter_windows(shape_hw, tile_hw))
    sweep = _Sweep(shape_hw)
    for done, window in enumerate(windows, start=1):
        yield sweep.add(trace(window), window)
        if window.col_stop == shape_hw[1]:
            yield sweep.end_row(is_last=window.row_stop == shape_hw[0])
        if progress is not None:
            progress(done, len(windows))


@dataclass(slots=True)
class _Sweep:
    """What is open. Nodes number the open regions first, then the pieces of this tile row that touch a seam."""

    shape_hw: tuple[int, int]
    polygons: list[Geometries] = field(default_factory=list)  # of the pieces that wait
    nodes: list[Ints] = field(default_factory=list)  # node of each waiting piece
    values: Ints = field(default_factory=lambda: np.empty(0, np.int64))  # class of each node
    links: list[NDArray[np.int64]] = field(default_factory=list)  # (link, 2) pairs of nodes that are one region
    frontier: Ints = field(init=False)  # node above each pixel of the next row, -1 for none
    below: Ints = field(init=False)  # the same, one tile row on
    left: Ints | None = None  # node left of each pixel of the next tile's first column

    def __post_init__(self) -> None:
        self.frontier = np.full(self.shape_hw[1], -1)
        self.below = self.frontier.copy()

    def add(self, pieces: Pieces, window: Window) -> Regions:
        """Take a tile; its pieces that touch no seam are regions already."""
        top, bottom, left, right = (_owners(pieces.rings, window, side) for side in _SIDES)
        seams = [
            owners
            for owners, inside in (
                (top, window.row_off > 0),
                (bottom, window.row_stop < self.shape_hw[0]),
                (left, window.col_off > 0),
                (right, window.col_stop < self.shape_hw[1]),
            )
            if inside
        ]
        open_ = np.zeros(len(pieces.values) + 1, bool)  # one more, for "no piece" = -1
        for owners in seams:
            open_[owners] = True
        open_ = open_[:-1]
        node = np.append(np.where(open_, np.cumsum(open_) - 1 + len(self.values), -1), -1)
        polygons = pieces.rings.to_shapely()
        if open_.any():
            self.values = np.concatenate([self.values, pieces.values[open_]])
            self.polygons.append(polygons[open_])
            self.nodes.append(node[:-1][open_])
        self._link(self.frontier[window.col_off : window.col_stop], node[top])
        if self.left is not None:
            self._link(self.left, node[left])
        self.left = node[right]
        self.below[window.col_off : window.col_stop] = node[bottom]
        return Regions(polygons=polygons[~open_], values=pieces.values[~open_])

    def end_row(self, *, is_last: bool) -> Regions:
        """Close a tile row: number the regions anew and give back those that the frontier does not touch."""
        num_nodes = len(self.values)
        links = np.concatenate(self.links) if self.links else np.empty((0, 2), np.int64)
        graph = coo_array((np.ones(len(links), bool), (links[:, 0], links[:, 1])), shape=(num_nodes, num_nodes))
        count, region = connected_components(graph, directed=False)
        is_open = np.zeros(count, bool)
        if not is_last:
            is_open[region[self.below[self.below >= 0]]] = True
        renumber = np.append(np.where(is_open, np.cumsum(is_open) - 1, -1), -1)
        values = np.zeros(count, np.int64)
        values[region] = self.values

        polygons = np.concatenate([np.empty(0, object), *self.polygons])
        of_piece = region[np.concatenate([np.empty(0, np.int64), *self.nodes])]
        waits = is_open[of_piece]
        self.polygons, self.nodes = [polygons[waits]], [renumber[of_piece[waits]]]
        self.values, self.links, self.left = values[is_open], [], None
        self.frontier = renumber[np.append(region, -1)[self.below]]
        self.below = np.full(self.shape_hw[1], -1)
        return _dissolve(polygons[~waits], of_piece[~waits], values)

    def _link(self, a: Ints, b: Ints) -> None:
        """Note which nodes are one region: same class on both sides of a pixel edge."""
        both = (a >= 0) & (b >= 0)
        a, b = a[both], b[both]
        same = self.values[a] == self.values[b]
        if same.any():
            self.links.append(np.unique(np.stack([a[same], b[same]], axis=1), axis=0))


_SIDES = ("top", "bottom", "left", "right")


def _owners(rings: Rings, window: Window, side: str) -> Ints:
    """Which piece each pixel along a side of the window belongs to, -1 for none.

    A piece has an edge on the side exactly where it has a pixel there, so the outlines tell.
    """
    across, start, stop = (
        (1, window.col_off, window.col_stop) if side in {"top", "bottom"} else (0, window.row_off, window.row_stop)
    )
    line = {"top": window.row_off, "bottom": window.row_stop, "left": window.col_off, "right": window.col_stop}[side]
    on_line = rings.coords[:, across] == line
    edge = np.flatnonzero(on_line[:-1] & on_line[1:] & ~rings.is_last[:-1]) if len(on_line) else np.empty(0, np.int64)
    along = rings.coords[:, 1 - across].astype(np.int64)
    low, high = np.minimum(along[edge], along[edge + 1]), np.maximum(along[edge], along[edge + 1])
    lengths = high - low
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    owners = np.full(stop - start, -1)
    owners[np.repeat(low, lengths) + within - start] = np.repeat(rings.polygon_of_vertex[edge], lengths)
    return owners


def _dissolve(polygons: Geometries, group: Ints, values: Ints) -> Regions:
    """Union the pieces of each group; `values` holds the class of each group number."""
    order = np.argsort(group, kind="stable")
    groups, starts = np.unique(group[order], return_index=True)
    parts = np.split(polygons[order], starts[1:]) if len(groups) else []
    # Whole-number coordinates: no intersection is ever rounded, so GEOS's union is exact.
    whole = np.array([part[0] if len(part) == 1 else shapely.union_all(part) for part in parts], object)
    return Regions(polygons=drop_collinear(from_shapely(whole)).to_shapely(), values=values[groups])
