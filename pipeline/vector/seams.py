"""The first sweep over a mask: which pieces of its tiles are one region across seams. Knows no geometry."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.grid import iter_windows
from pipeline.vector.pieces import Pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.grid import Window
    from pipeline.vector.pieces import Cells, Labels
    from pipeline.vector.rings import Ints


_KEPT_BYTES = 160 << 20
"""Pieces that are kept from one sweep to the other; those of the other tiles are found again."""
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
    kept: Pieces | None = None
    """Where memory allows to keep them for the second sweep."""

    @classmethod
    def of(cls, window: Window, pieces: Pieces, shape_hw: tuple[int, int]) -> Tile:
        """The border of a tile, with nodes from 0, without its pieces."""
        lines = {}
        if window.row_off > 0:
            lines["top"] = pieces.row(0)
        if window.row_stop < shape_hw[0]:
            lines["bottom"] = pieces.row(-1)
        if window.col_off > 0:
            lines["left"] = pieces.first_column
        if window.col_stop < shape_hw[1]:
            lines["right"] = pieces.last_column
        touched = np.unique(np.concatenate([np.empty(0, np.int32), *lines.values()]))
        touched = touched[touched > 0]
        return cls(
            window=window,
            touched=touched,
            values=pieces.values[touched],
            first_node=0,
            lines={side: _nodes(line, touched) for side, line in lines.items()},
        )

    def pieces(self, read: Callable[[Window], Cells]) -> Pieces:
        """Those that were kept, or found again."""
        return self.kept or Pieces.of(read(self.window))

    def from_node(self, first: int) -> Tile:
        """The same tile with nodes from another number."""
        moved = {side: np.where(line < 0, NONE, line - self.first_node + first) for side, line in self.lines.items()}
        return dataclasses.replace(self, first_node=first, lines=moved)


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
        tiles, room = [], _KEPT_BYTES
        for window in iter_windows(shape_hw, tile_hw):
            pieces = Pieces.of(read(window))
            tile, room = Tile.of(window, pieces, shape_hw), room - pieces.num_bytes
            tile.kept = pieces if room >= 0 else None
            tiles.append(tile)
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
        tile = self.tiles[number]
        pieces, tile.kept = tile.pieces(read), None
        found = self.regions_of(tile)
        regions, first, inverse = np.unique(found, return_index=True, return_inverse=True)
        labels = tile.touched[first]
        new = np.arange(len(pieces.values), dtype=np.int32)
        new[tile.touched] = labels[inverse]
        apron = pieces.apron(new)
        for place, nodes in self._around(number):
            apron[place] = self._labels(nodes, regions, labels, foreign=len(pieces.values))
        return Labelled(apron, pieces.values, regions, labels)

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
