"""Regions of a scene from its tiles, in two sweeps: what belongs together across seams, then the boundaries.

The first sweep numbers the pieces of each tile and keeps those at its border; pieces that share a pixel edge across a
seam are one region. The second sweep walks the boundaries of each tile, cut into chains where they leave it, and links
the chains of a region once its last tile is done. Nothing is dissolved and no seam leaves a vertex. Memory follows the
regions that touch a seam and the tiles' borders, not the scene.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.grid import Window, iter_windows
from pipeline.vector.rings import as_polygons, take_ragged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from pipeline.vector.rings import Geometries, Ints, Rings

    Labels = NDArray[np.int32]


class Cells(NamedTuple):
    """Pixels of one window, with the class of each."""

    values: NDArray[np.generic]
    """Shape `(y, x)`, any integer type."""
    wanted: NDArray[np.bool_] | None
    """The same shape, False where a pixel belongs to no region; None where all do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Regions:
    """Finished regions, in no promised order."""

    rings: Rings
    """Outlines in pixel coordinates, turns only; the exterior of each first."""
    values: Ints
    """Class of each region, shape (region,)."""

    def of_class(self, value: int) -> Regions:
        """The same regions, all of one class."""
        return Regions(rings=self.rings, values=np.full_like(self.values, value))

    @property
    def polygons(self) -> Geometries:
        """Shapely polygons, shape (region,)."""
        return self.rings.to_shapely()


def iter_regions(
    read: Callable[[Window], Cells],
    shape_hw: tuple[int, int],
    *,
    tile_hw: tuple[int, int],
    nodes: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Regions]:
    """All 4-connected regions of equal class.

    Args:
        read: Gives the cells of a window; called once or twice for each tile.
        shape_hw: Height and width of the mask.
        tile_hw: Height and width of a tile; no influence on the regions.
        nodes: Also keep vertices on straight lines where three regions meet, so that neighbours share all vertices.
        progress: Called after each step with (steps done, steps in all).

    Law: the set of regions equals that of the whole mask traced at once (properties/test_vector_law.py).
    """
    windows = list(iter_windows(shape_hw, tile_hw))
    steps = iter(range(1, 2 * len(windows) + 1))

    def advance() -> None:
        if progress is not None:
            progress(next(steps), 2 * len(windows))

    tiles = []
    links = _Links()
    for window in windows:
        keep = window.row_off * shape_hw[1] < _KEPT_PX
        tiles.append(_Tile.of(window, read, shape_hw, first_node=links.num_nodes, keep=keep))
        links.add(tiles[-1], columns=-(-shape_hw[1] // tile_hw[1]), tiles=tiles)
        advance()
    seams = links.resolve()
    sweep = _Sweep(shape_hw=shape_hw, columns=links.columns, seams=seams, nodes=nodes)
    for number, tile in enumerate(tiles):
        yield sweep.trace(number, tiles, read)
        if tile.window.col_stop == shape_hw[1]:
            yield sweep.finish_row(number // links.columns)
        advance()


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
_NONE = -1


@dataclass(slots=True, kw_only=True)
class _Tile:
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
    def of(
        cls, window: Window, read: Callable[[Window], Cells], shape_hw: tuple[int, int], *, first_node: int, keep: bool
    ) -> _Tile:
        """Label a tile and keep its border; with `keep` its labels too."""
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
            first_node=first_node,
            lines={side: _nodes(line, touched, first_node) for side, line in lines.items()},
            kept=_narrow(made) if keep else None,
        )


def _narrow(made: tuple[Labels, Ints]) -> tuple[NDArray[np.uint16] | Labels, Ints]:
    apron, values = made
    return (apron.astype(np.uint16) if len(values) <= np.iinfo(np.uint16).max else apron), values


def _nodes(line: Labels, touched: Labels, first_node: int) -> Ints:
    return np.where(line > 0, first_node + np.searchsorted(touched, line), _NONE)


@dataclass(slots=True)
class _Links:
    """Which pieces of neighbouring tiles share a pixel edge."""

    num_nodes: int = 0
    columns: int = 1
    values: list[Ints] = field(default_factory=list)
    rows: list[Ints] = field(default_factory=list)
    pairs: list[NDArray[np.int64]] = field(default_factory=list)

    def add(self, tile: _Tile, *, columns: int, tiles: list[_Tile]) -> None:
        """Take the next tile in row-major order, the last of `tiles`."""
        self.columns = columns
        number = len(tiles) - 1
        if "left" in tile.lines:
            self._link(tiles[number - 1].lines["right"], tile.lines["left"])
        if "top" in tile.lines:
            self._link(tiles[number - columns].lines["bottom"], tile.lines["top"])
        self.values.append(tile.values)
        self.rows.append(np.full(len(tile.values), number // columns))
        self.num_nodes += len(tile.values)

    def _link(self, one: Ints, other: Ints) -> None:
        pairs = np.stack([one, other], axis=1)
        new = np.ones(len(pairs), bool)
        new[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
        self.pairs.append(pairs[new & (pairs >= 0).all(axis=1)])

    def resolve(self) -> _Seams:
        """Regions from pieces."""
        empty = np.empty(0, np.int64)
        values, rows = np.concatenate([empty, *self.values]), np.concatenate([empty, *self.rows])
        pairs = np.concatenate([np.empty((0, 2), np.int64), *self.pairs])
        pairs = pairs[values[pairs[:, 0]] == values[pairs[:, 1]]]
        graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(values), len(values)))
        count, region = connected_components(graph, directed=False) if len(values) else (0, empty)
        last_row, region_values = np.zeros(count, np.int64), np.zeros(count, np.int64)
        np.maximum.at(last_row, region, rows)
        region_values[region] = values
        return _Seams(region=region.astype(np.int64), values=region_values, last_row=last_row)


class _Seams(NamedTuple):
    """Regions that touch a seam."""

    region: Ints
    """Of each node."""
    values: Ints
    """Class of each region."""
    last_row: Ints
    """Last row of tiles that each region has a pixel in."""


@dataclass(slots=True, kw_only=True)
class _Sweep:
    """The second sweep: boundaries, and what waits for the rest of its region."""

    shape_hw: tuple[int, int]
    columns: int
    seams: _Seams
    nodes: bool
    waiting: dict[int, list[_Parts]] = field(default_factory=dict)
    """Row of tiles -> parts of the regions that it finishes."""

    def trace(self, number: int, tiles: list[_Tile], read: Callable[[Window], Cells]) -> Regions:
        """Walk a tile; regions that touch no seam are finished."""
        from pipeline.vector import kernels  # noqa: PLC0415 - see `label_cells`

        tile = tiles[number]
        kept, values = tile.kept or label_cells(read(tile.window))
        apron, tile.kept = kept.astype(np.int32, copy=False), None
        regions = self.seams.region[tile.first_node : tile.first_node + len(tile.touched)]
        unique, first, inverse = np.unique(regions, return_index=True, return_inverse=True)
        canonical = tile.touched[first]  # one label for all pieces of a region
        if len(unique) < len(regions):
            new = np.arange(len(values), dtype=np.int32)
            new[tile.touched] = canonical[inverse]
            kernels.relabel(apron[1:-1, 1:-1], new)
        for place, nodes in self._around(number, tiles):
            apron[place] = self._labels(nodes, unique, canonical, foreign=len(values))
        corners, chains, rings = kernels.trace(apron, self.nodes)
        region_of = np.full(len(values), _NONE)
        region_of[canonical] = unique
        starts = np.concatenate([[0], chains[:, 0], rings[:, 0]])
        pieces = np.stack([starts[:-1], np.diff(starts)], axis=1)
        chain_pieces, ring_pieces = pieces[: len(chains)], pieces[len(chains) :]
        ring_regions = region_of[rings[:, 1]]
        waits, line = ring_regions >= 0, apron.shape[1]
        if len(chains) or waits.any():
            parts = _Parts(
                corners=corners,
                chains=chain_pieces,
                chain_regions=region_of[chains[:, 1]],
                first_keys=4 * self._in_scene(chains[:, 2], line, tile.window) + chains[:, 3],
                next_keys=4 * self._in_scene(chains[:, 4], line, tile.window) + chains[:, 5],
                rings=ring_pieces[waits],
                ring_regions=ring_regions[waits],
            )
            for row, some in parts.by_row(self.seams.last_row):
                numbered = dataclasses.replace(some, corners=self._in_scene(some.corners, line, tile.window))
                self.waiting.setdefault(row, []).append(numbered)
        labels, ring_pieces = rings[~waits, 1], ring_pieces[~waits]
        order = np.argsort(labels, kind="stable")  # the first ring of a label is its exterior
        one_each = np.arange(len(order) + 1)
        origin_xy = tile.window.col_off - 1, tile.window.row_off - 1
        coords, offsets = kernels.close_rings(corners, ring_pieces[order], one_each, line, origin_xy)
        return Regions(rings=as_polygons(coords, offsets, labels[order]), values=values[np.unique(labels)])

    def _in_scene(self, numbers: NDArray[np.integer[Any]], line: int, window: Window) -> Ints:
        """Numbers of pixels or corners in the scene, its own apron of one pixel counted, from those in a tile."""
        row, col = np.divmod(numbers.astype(np.int64), line)
        return np.asarray((row + window.row_off) * (self.shape_hw[1] + 2) + col + window.col_off, np.int64)

    def finish_row(self, row: int) -> Regions:
        """Link the chains of the regions whose last tiles lie in a row."""
        return _assemble(self.waiting.pop(row, []), self.seams.values, line=self.shape_hw[1] + 2)

    def _around(self, number: int, tiles: list[_Tile]) -> Iterator[tuple[Any, Ints]]:
        """Places in a tile's apron, and the nodes of the pixels there."""
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
        found = self.seams.region[nodes]
        made = (foreign + found % _MANY).astype(np.int32)
        if len(regions):
            at = np.minimum(np.searchsorted(regions, found), len(regions) - 1)
            made = np.where(regions[at] == found, labels[at], made)
        return np.where(nodes < 0, 0, made).astype(np.int32)


_MANY = 2**30
"""Foreign labels stay within 32 bits: neighbours are told apart unless their numbers are this far from each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """Chains and rings of regions that touch a seam, from one tile."""

    corners: NDArray[Any]
    """Vertices of all of them."""
    chains: Ints
    """`(chain, 2)`: where each begins among the corners, and how long it is."""
    chain_regions: Ints
    first_keys: Ints
    """Number of each chain's first crack in the scene."""
    next_keys: Ints
    """Number of the crack that follows it."""
    rings: Ints
    """`(ring, 2)`, as `chains`."""
    ring_regions: Ints

    def by_row(self, last_row: Ints) -> Iterator[tuple[int, _Parts]]:
        """The parts that are finished with each row of tiles."""
        chain_rows, ring_rows = last_row[self.chain_regions], last_row[self.ring_regions]
        for row in np.union1d(chain_rows, ring_rows).tolist():
            chains, rings = chain_rows == row, ring_rows == row
            pieces = np.concatenate([self.chains[chains], self.rings[rings]])
            corners = take_ragged(self.corners, pieces)
            moved = np.stack([np.cumsum(pieces[:, 1]) - pieces[:, 1], pieces[:, 1]], axis=1)
            num_chains = int(chains.sum())
            yield (
                int(row),
                _Parts(
                    corners=corners,
                    chains=moved[:num_chains],
                    chain_regions=self.chain_regions[chains],
                    first_keys=self.first_keys[chains],
                    next_keys=self.next_keys[chains],
                    rings=moved[num_chains:],
                    ring_regions=self.ring_regions[rings],
                ),
            )


def _assemble(parts: list[_Parts], values: Ints, *, line: int) -> Regions:
    """Whole regions from all their parts."""
    from pipeline.vector import kernels  # noqa: PLC0415 - see `label_cells`

    whole = _joined(parts)
    following = _followers(whole.first_keys, whole.next_keys)
    members, ends = kernels.cycles(following)
    firsts = np.concatenate([np.zeros(1, np.int64), ends])[: len(ends)]
    pieces = np.concatenate([whole.chains[members], whole.rings])
    num_pieces = np.concatenate([ends - firsts, np.ones(len(whole.rings), np.int64)])
    regions = np.concatenate([whole.chain_regions[members][firsts], whole.ring_regions])
    starts = np.cumsum(num_pieces) - num_pieces
    # The exterior of a region has its first corner.
    lowest = np.minimum.reduceat(_lowest(whole.corners, pieces), starts) if len(starts) else starts
    order = np.lexsort((lowest, regions))
    sorted_pieces = take_ragged(pieces, np.stack([starts, num_pieces], axis=1)[order])
    rings = np.concatenate([[0], np.cumsum(num_pieces[order])])
    coords, offsets = kernels.close_rings(whole.corners, sorted_pieces, rings, line, (-1, -1))
    return Regions(rings=as_polygons(coords, offsets, regions[order]), values=values[np.unique(regions)])


def _joined(parts: list[_Parts]) -> _Parts:
    """All parts as one."""
    sizes = [len(part.corners) for part in parts]
    bases = (np.cumsum(sizes) - sizes).tolist() if sizes else []

    def moved(name: str) -> Ints:
        tables = [getattr(part, name) + np.array([base, 0]) for part, base in zip(parts, bases, strict=True)]
        return np.concatenate([np.empty((0, 2), np.int64), *tables])

    def joined(name: str) -> Ints:
        return np.concatenate([np.empty(0, np.int64), *(getattr(part, name) for part in parts)])

    names = ("corners", "chain_regions", "first_keys", "next_keys", "ring_regions")
    return _Parts(chains=moved("chains"), rings=moved("rings"), **{name: joined(name) for name in names})


def _followers(first_keys: Ints, next_keys: Ints) -> Ints:
    """Which chain comes after each."""
    if not len(first_keys):
        return np.empty(0, np.int64)
    order = np.argsort(first_keys)
    at = np.searchsorted(first_keys[order], next_keys)
    following = order[np.minimum(at, len(order) - 1)]
    assert (first_keys[following] == next_keys).all(), "a boundary goes on in another tile, yet does not begin there"
    return np.asarray(following, np.int64)


def _lowest(corners: Ints, pieces: Ints) -> Ints:
    """Smallest corner of each piece; of one without corners a number above all."""
    starts, lengths = pieces.T
    ended = np.append(corners, np.iinfo(np.int64).max)  # where a piece without corners at the end begins
    order = np.argsort(starts, kind="stable")
    lowest = np.empty(len(pieces), np.int64)
    lowest[order] = np.minimum.reduceat(ended, starts[order])
    return np.where(lengths > 0, lowest, np.iinfo(np.int64).max)
