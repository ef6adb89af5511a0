"""The first sweep over a mask: pieces of tiles, and which of them are one region across seams. Knows no geometry."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.grid import Window, iter_windows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.vector.rings import Ints

    Labels = NDArray[np.int32]


class Cells(NamedTuple):
    """Pixels of one window, with the class of each."""

    values: NDArray[np.generic]
    """Shape `(y, x)`, any integer type."""
    wanted: NDArray[np.bool_] | None
    """The same shape, False where a pixel belongs to no region; None where all do."""
    valid: NDArray[np.bool_] | None = None
    """The same shape, False where a pixel has no class; None where all have one."""


def label_cells(cells: Cells) -> tuple[Labels, Ints]:
    """(labels `(y + 2, x + 2)` with an apron of zeros, value of each label from 0)."""
    from pipeline.vector import kernels  # noqa: PLC0415 - Numba takes half a second to import

    block = cells.values
    block = block.view(np.uint8) if block.dtype == bool else block.astype(block.dtype.newbyteorder("="), copy=False)
    block = np.ascontiguousarray(block)  # another layout would be compiled for itself
    wanted = np.empty((0, 0), np.bool_) if cells.wanted is None else cells.wanted
    apron = np.zeros((block.shape[0] + 2, block.shape[1] + 2), np.int32)
    return apron, kernels.label(block, wanted, apron[1:-1, 1:-1])


_KEPT_PX = 80_000_000
"""Pixels whose labels are kept from one sweep to the other, in 2 bytes each or 4; the rest is labelled again."""
_SIDES = ("top", "bottom", "left", "right")
NONE = -1
"""Node or region of a pixel that has none."""


@dataclass(slots=True, kw_only=True)
class Tile:
    """What is kept of a tile between the sweeps."""

    window: Window
    touched: Labels
    """Labels of the pieces at a seam, ascending; the first has the node `first_node`, and so on."""
    values: Ints
    """Class of each of them."""
    first_node: int
    lines: dict[str, Ints]
    """Side -> node of each pixel along it, -1 for none; sides at the rim of the scene are left out."""
    kept: tuple[NDArray[np.uint16] | Labels, Ints] | None
    """Labels with their apron, and their values, where memory allows to keep them for the second sweep."""

    @classmethod
    def of(cls, window: Window, read: Callable[[Window], Cells], shape_hw: tuple[int, int], *, keep: bool) -> Tile:
        """Label a tile and keep its border, with nodes from 0; with `keep` its labels too."""
        apron, values = made = label_cells(read(window))
        inner = apron[1:-1, 1:-1]
        at_seam = {
            "top": window.row_off > 0, "bottom": window.row_stop < shape_hw[0],
            "left": window.col_off > 0, "right": window.col_stop < shape_hw[1],
        }  # fmt: skip
        all_lines = {"top": inner[0], "bottom": inner[-1], "left": inner[:, 0], "right": inner[:, -1]}
        lines = {side: all_lines[side] for side in _SIDES if at_seam[side]}
        touched = np.unique(np.concatenate([np.empty(0, np.int32), *lines.values()]))
        touched = touched[touched > 0]
        return cls(
            window=window,
            touched=touched,
            values=values[touched],
            first_node=0,
            lines={side: _nodes(line, touched) for side, line in lines.items()},
            kept=_narrow(made) if keep else None,
        )

    def from_node(self, first: int) -> Tile:
        """The same tile with nodes from another number."""
        moved = {side: np.where(line < 0, NONE, line - self.first_node + first) for side, line in self.lines.items()}
        return dataclasses.replace(self, first_node=first, lines=moved)


def _narrow(made: tuple[Labels, Ints]) -> tuple[NDArray[np.uint16] | Labels, Ints]:
    apron, values = made
    return (apron.astype(np.uint16) if len(values) <= np.iinfo(np.uint16).max else apron), values


def _nodes(line: Labels, touched: Labels) -> Ints:
    return np.where(line > 0, np.searchsorted(touched, line), NONE)


@dataclass(slots=True)
class _Links:
    """Which pieces of neighbouring tiles share a pixel edge."""

    columns: int
    """Tiles in a row."""
    values: list[Ints] = field(default_factory=list)
    tiles: list[Ints] = field(default_factory=list)
    pairs: list[NDArray[np.int64]] = field(default_factory=list)

    def add(self, number: int, tiles: Mapping[int, Tile]) -> None:
        """Take the next tile in row-major order."""
        tile = tiles[number]
        if "left" in tile.lines:
            self._link(tiles[number - 1].lines["right"], tile.lines["left"])
        if "top" in tile.lines:
            self._link(tiles[number - self.columns].lines["bottom"], tile.lines["top"])
        self.values.append(tile.values)
        self.tiles.append(np.full(len(tile.values), number))

    def _link(self, one: Ints, other: Ints) -> None:
        pairs = np.stack([one, other], axis=1)
        new = np.ones(len(pairs), bool)
        new[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
        self.pairs.append(pairs[new & (pairs >= 0).all(axis=1)])

    def resolve(self) -> Seams:
        """Regions from pieces."""
        empty = np.empty(0, np.int64)
        values, tiles = np.concatenate([empty, *self.values]), np.concatenate([empty, *self.tiles])
        pairs = np.concatenate([np.empty((0, 2), np.int64), *self.pairs])
        pairs = pairs[values[pairs[:, 0]] == values[pairs[:, 1]]]
        graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(values), len(values)))
        count, region = connected_components(graph, directed=False) if len(values) else (0, empty)
        last, region_values = np.zeros(count, np.int64), np.zeros(count, np.int64)
        first = np.full(count, len(self.tiles), np.int64)
        np.maximum.at(last, region, tiles)
        np.minimum.at(first, region, tiles)
        region_values[region] = values
        return Seams(region=region.astype(np.int64), values=region_values, first_tile=first, last_tile=last)


class Seams(NamedTuple):
    """Regions that touch a seam."""

    region: Ints
    """Of each node."""
    values: Ints
    """Class of each region."""
    first_tile: Ints
    """First tile, in row-major order, that each region has a pixel in."""
    last_tile: Ints
    """Last tile."""


class Labelled(NamedTuple):
    """A tile with its surroundings."""

    apron: Labels
    """`(y + 2, x + 2)`: one label for all pieces of a region; 0 for no region. Labels from `len(values)` on are regions
    of other tiles: their number in `Seams` and `len(values)`."""
    values: Ints
    """Class of each label of the tile, from 0."""
    regions: Ints
    """Regions at a seam that the tile has pixels of, ascending."""
    labels: Labels
    """Label of each of them."""


@dataclass(slots=True, kw_only=True)
class Survey:
    """What the first sweep found."""

    shape_hw: tuple[int, int]
    columns: int
    """Tiles in a row."""
    tiles: Mapping[int, Tile]
    """By their numbers, row-major."""
    seams: Seams
    first_node: int = 0
    """The node that `seams.region` begins with."""

    @classmethod
    def make(
        cls,
        read: Callable[[Window], Cells],
        shape_hw: tuple[int, int],
        tile_hw: tuple[int, int],
        *,
        advance: Callable[[], None] = lambda: None,
    ) -> Survey:
        """Label all tiles; `advance` is called after each."""
        tiles = []
        for window in iter_windows(shape_hw, tile_hw):
            tiles.append(Tile.of(window, read, shape_hw, keep=window.row_off * shape_hw[1] < _KEPT_PX))
            advance()
        return cls.of(tiles, shape_hw, tile_hw)

    @classmethod
    def of(cls, tiles: Sequence[Tile], shape_hw: tuple[int, int], tile_hw: tuple[int, int]) -> Survey:
        """Link all tiles, which are in row-major order, each with nodes from 0."""
        links, numbered, num_nodes = _Links(columns=-(-shape_hw[1] // tile_hw[1])), dict[int, Tile](), 0
        for number, tile in enumerate(tiles):
            numbered[number] = tile.from_node(num_nodes)
            links.add(number, numbered)
            num_nodes += len(tile.touched)
        return cls(shape_hw=shape_hw, columns=links.columns, tiles=numbered, seams=links.resolve())

    def labelled(self, number: int, read: Callable[[Window], Cells]) -> Labelled:
        """A tile's labels, those of one region made one; what was kept of them is let go."""
        from pipeline.vector import kernels  # noqa: PLC0415 - see `label_cells`

        tile = self.tiles[number]
        kept, values = tile.kept or label_cells(read(tile.window))
        apron, tile.kept = kept.astype(np.int32, copy=False), None
        found = self.regions_of(tile)
        regions, first, inverse = np.unique(found, return_index=True, return_inverse=True)
        labels = tile.touched[first]
        if len(regions) < len(found):
            new = np.arange(len(values), dtype=np.int32)
            new[tile.touched] = labels[inverse]
            kernels.relabel(apron[1:-1, 1:-1], new)
        for place, nodes in self._around(number):
            apron[place] = self._labels(nodes, regions, labels, foreign=len(values))
        return Labelled(apron, values, regions, labels)

    def regions_of(self, tile: Tile) -> Ints:
        """Region of each label that a tile has at a seam."""
        start = tile.first_node - self.first_node
        return self.seams.region[start : start + len(tile.touched)]

    def part(self, first: int, stop: int) -> tuple[Survey, Ints]:
        """What is needed to walk the tiles from `first` to before `stop`, and the number here of each region of it.

        Regions of the part are numbered among those that it has a pixel of, or that lie beside its tiles.
        """
        low, high = max(0, first - self.columns - 1), min(len(self.tiles), stop + self.columns + 1)
        tiles = {number: self.tiles[number] for number in range(low, high)}
        begin, end = tiles[low].first_node, tiles[high - 1].first_node + len(tiles[high - 1].touched)
        numbers, region = np.unique(self.seams.region[begin:end], return_inverse=True)
        seams = Seams(region.astype(np.int64), *(column[numbers] for column in self.seams[1:]))
        return dataclasses.replace(self, tiles=tiles, seams=seams, first_node=begin), numbers

    def _around(self, number: int) -> Iterator[tuple[Any, Ints]]:
        """Places in a tile's apron, and the nodes of the pixels there."""
        tiles = self.tiles
        lines, inner = tiles[number].lines, slice(1, -1)
        beside = {
            "top": (-self.columns, "bottom", (0, inner)),
            "bottom": (self.columns, "top", (-1, inner)),
            "left": (-1, "right", (inner, 0)),
            "right": (1, "left", (inner, -1)),
        }
        for side in lines:
            step, facing, place = beside[side]
            yield place, tiles[number + step].lines[facing]
        for vertical in ("top", "bottom"):
            for horizontal in ("left", "right"):
                if vertical in lines and horizontal in lines:
                    v_step, facing, (row, _) = beside[vertical]
                    h_step, _, (_, col) = beside[horizontal]
                    line = tiles[number + v_step + h_step].lines[facing]
                    yield (row, [col]), line[-1:] if horizontal == "left" else line[:1]

    def _labels(self, nodes: Ints, regions: Ints, labels: Labels, *, foreign: int) -> Labels:
        """Labels for the nodes of other tiles.

        Args:
            nodes: Nodes, -1 for none.
            regions: Of this tile at its seams, ascending.
            labels: Of these.
            foreign: First label for the regions that are not of this tile.
        """
        if not len(self.seams.region):
            return np.zeros(len(nodes), np.int32)
        found = self.seams.region[np.where(nodes < 0, 0, nodes - self.first_node)]
        made = (foreign + found).astype(np.int32)
        if len(regions):
            at = np.minimum(np.searchsorted(regions, found), len(regions) - 1)
            made = np.where(regions[at] == found, labels[at], made)
        return np.where(nodes < 0, 0, made).astype(np.int32)
