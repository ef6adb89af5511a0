"""Regions of a scene from its tiles, in two sweeps: what belongs together across seams, then the boundaries.

The first sweep numbers the pieces of each tile and keeps those at its border; pieces that share a pixel edge across a
seam are one region. The second sweep walks the boundaries of each tile, cut into chains where they leave it, and links
the chains of a region once its last tile is done. Nothing is dissolved and no seam leaves a vertex. Memory follows the
regions that touch a seam and the tiles' borders, not the scene.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.grid import Window, iter_windows
from pipeline.vector.facts import Facts
from pipeline.vector.rings import as_polygons, take_ragged
from pipeline.vector.seams import NONE, Survey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.vector.facts import Measure
    from pipeline.vector.pieces import Cells
    from pipeline.vector.rings import Geometries, Ints, Rings


@dataclass(frozen=True, slots=True, kw_only=True)
class Regions:
    """Finished regions, in no promised order."""

    rings: Rings
    """Outlines in pixel coordinates, turns only; the exterior of each first."""
    values: Ints
    """Class of each region, shape (region,)."""
    facts: Facts
    """What is known of each."""

    def of_class(self, value: int) -> Regions:
        """The same regions, all of one class."""
        return dataclasses.replace(self, values=np.full_like(self.values, value))

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
    measure: Measure | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Regions]:
    """All 4-connected regions of equal class.

    Args:
        read: Gives the cells of a window; called once or twice for each tile.
        shape_hw: Height and width of the mask.
        tile_hw: Height and width of a tile; no influence on the regions.
        nodes: Also keep vertices on straight lines where three regions meet, so that neighbours share all vertices.
        measure: Gathers what is known of regions; None leaves that out.
        progress: Called after each step with (steps done, steps in all).

    Law: the set of regions equals that of the whole mask traced at once (properties/test_vector_law.py).
    """
    num_tiles = len(list(iter_windows(shape_hw, tile_hw)))
    steps = iter(range(1, 2 * num_tiles + 1))

    def advance() -> None:
        if progress is not None:
            progress(next(steps), 2 * num_tiles)

    survey = Survey.make(read, shape_hw, tile_hw, advance=advance)
    sweep = Sweep.over(survey, due=survey.seams.last_tile // survey.columns, nodes=nodes, measure=measure)
    for number, tile in survey.tiles.items():
        yield sweep.trace(number, read)
        if tile.window.col_stop == shape_hw[1]:
            yield sweep.finish(number // survey.columns)
        advance()


@dataclass(slots=True, kw_only=True)
class Sweep:
    """The second sweep: boundaries, and what waits for the rest of its region."""

    survey: Survey
    nodes: bool
    measure: Measure | None
    due: Ints
    """When each region at a seam will be whole: a number of the caller's."""
    facts: Facts
    """Of the regions at seams, as far as their tiles were seen."""
    waiting: dict[int, list[Parts]] = field(default_factory=dict)
    """When they are due -> parts of regions."""

    @classmethod
    def over(cls, survey: Survey, *, due: Ints, nodes: bool, measure: Measure | None) -> Sweep:
        """One that has not begun."""
        facts = Facts.none_yet(len(survey.seams.values))
        return cls(survey=survey, nodes=nodes, measure=measure, due=due, facts=facts)

    def trace(self, number: int, read: Callable[[Window], Cells]) -> Regions:
        """Walk a tile; regions that touch no seam are finished."""
        from pipeline.vector import boundary_kernels  # noqa: PLC0415 - Numba takes half a second to import

        window = self.survey.tiles[number].window
        apron, values, regions, labels = self.survey.labelled(number, read)
        facts = Facts.none_yet(len(values)) if self.measure is None else self.measure(window, apron, len(values))
        self.facts.add(regions, facts.of(labels))
        corners, chains, rings = boundary_kernels.trace(apron, nodes=self.nodes)
        region_of = np.full(len(values), NONE)
        region_of[labels] = regions
        starts = np.concatenate([[0], chains[:, 0], rings[:, 0]])
        pieces = np.stack([starts[:-1], np.diff(starts)], axis=1)
        chain_pieces, ring_pieces = pieces[: len(chains)], pieces[len(chains) :]
        ring_regions = region_of[rings[:, 1]]
        waits, line = ring_regions >= 0, apron.shape[1]
        if len(chains) or waits.any():
            parts = Parts(
                corners=corners,
                chains=chain_pieces,
                chain_regions=region_of[chains[:, 1]],
                first_keys=4 * self._in_scene(chains[:, 2], line, window) + chains[:, 3],
                next_keys=4 * self._in_scene(chains[:, 4], line, window) + chains[:, 5],
                rings=ring_pieces[waits],
                ring_regions=ring_regions[waits],
            )
            for due, some in parts.by_due(self.due):
                numbered = dataclasses.replace(some, corners=self._in_scene(some.corners, line, window))
                self.waiting.setdefault(due, []).append(numbered)
        ring_labels, ring_pieces = rings[~waits, 1], ring_pieces[~waits]
        order = np.argsort(ring_labels, kind="stable")  # the first ring of a label is its exterior
        ring_labels, ring_pieces = ring_labels[order], ring_pieces[order]
        one_each, origin_xy = np.arange(len(order) + 1), (window.col_off - 1, window.row_off - 1)
        coords, offsets = boundary_kernels.close_rings(corners, ring_pieces, one_each, line, origin_xy)
        outlines = as_polygons(coords, offsets, ring_labels)
        whole = ring_labels[outlines.polygon_offsets[:-1]]
        return Regions(rings=outlines, values=values[whole], facts=facts.of(whole))

    def _in_scene(self, numbers: NDArray[np.integer[Any]], line: int, window: Window) -> Ints:
        """Numbers of pixels or corners in the scene, its own apron of one pixel counted, from those in a tile."""
        row, col = np.divmod(numbers.astype(np.int64), line)
        return np.asarray((row + window.row_off) * (self.survey.shape_hw[1] + 2) + col + window.col_off, np.int64)

    def finish(self, due: int) -> Regions:
        """Link the chains of the regions that are due."""
        parts, values = self.waiting.pop(due, []), self.survey.seams.values
        return assemble(joined(parts), values, self.facts, shape_hw=self.survey.shape_hw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
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

    def by_due(self, due_of: Ints) -> Iterator[tuple[int, Parts]]:
        """The parts of the regions that are due together."""
        chain_due, ring_due = due_of[self.chain_regions], due_of[self.ring_regions]
        for due in np.union1d(chain_due, ring_due).tolist():
            chains, rings = chain_due == due, ring_due == due
            pieces = np.concatenate([self.chains[chains], self.rings[rings]])
            corners = take_ragged(self.corners, pieces)
            moved = np.stack([np.cumsum(pieces[:, 1]) - pieces[:, 1], pieces[:, 1]], axis=1)
            num_chains = int(chains.sum())
            yield (
                int(due),
                Parts(
                    corners=corners,
                    chains=moved[:num_chains],
                    chain_regions=self.chain_regions[chains],
                    first_keys=self.first_keys[chains],
                    next_keys=self.next_keys[chains],
                    rings=moved[num_chains:],
                    ring_regions=self.ring_regions[rings],
                ),
            )


def assemble(whole: Parts, values: Ints, facts: Facts, *, shape_hw: tuple[int, int]) -> Regions:
    """Whole regions from all their parts.

    Args:
        whole: The parts.
        values: Class of each region.
        facts: Of each region.
        shape_hw: Height and width of the mask.
    """
    from pipeline.vector import boundary_kernels  # noqa: PLC0415 - see `Sweep.trace`

    following = _followers(whole.first_keys, whole.next_keys)
    members, ends = boundary_kernels.cycles(following)
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
    coords, offsets = boundary_kernels.close_rings(whole.corners, sorted_pieces, rings, shape_hw[1] + 2, (-1, -1))
    found = np.unique(regions)
    return Regions(rings=as_polygons(coords, offsets, regions[order]), values=values[found], facts=facts.of(found))


def joined(parts: Sequence[Parts]) -> Parts:
    """All parts as one."""
    sizes = [len(part.corners) for part in parts]
    bases = (np.cumsum(sizes) - sizes).tolist() if sizes else []

    def moved(name: str) -> Ints:
        tables = [getattr(part, name) + np.array([base, 0]) for part, base in zip(parts, bases, strict=True)]
        return np.concatenate([np.empty((0, 2), np.int64), *tables])

    def put_together(name: str) -> Ints:
        return np.concatenate([np.empty(0, np.int64), *(getattr(part, name) for part in parts)])

    names = ("corners", "chain_regions", "first_keys", "next_keys", "ring_regions")
    return Parts(chains=moved("chains"), rings=moved("rings"), **{name: put_together(name) for name in names})


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
    order = np.lexsort((lengths, starts))  # one without corners before the one that begins at the same place
    lowest = np.empty(len(pieces), np.int64)
    lowest[order] = np.minimum.reduceat(ended, starts[order])
    return np.where(lengths > 0, lowest, np.iinfo(np.int64).max)
