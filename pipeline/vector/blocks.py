"""Tracing by several hands: runs of tiles, blocks, as pieces of work that leave regions in files. Knows no Dask.

Blocks are labelled; what belongs together across all seams is found here from the borders of their tiles; blocks are
walked; and what reaches into several blocks is put together by one piece for each block that is the last of some
region. Pieces open the mask by themselves and give files their names when these are whole, so that a piece may be done
twice, or by two at a time. The regions are those of `iter_regions` (properties/test_vector_blocks.py).
"""

from __future__ import annotations

import dataclasses
import functools
import secrets
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.grid import iter_windows
from pipeline.vector.area import PixelAreas
from pipeline.vector.facts import Facts
from pipeline.vector.faults import disk_errors
from pipeline.vector.join import Parts, Sweep, assemble, joined
from pipeline.vector.pieces import Pieces
from pipeline.vector.seams import Survey, Tile
from pipeline.vector.spool import Smallest, SpoolWriter, refuse_too_many

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pipeline.grid import GeoBox, Window
    from pipeline.vector.layer import Layer
    from pipeline.vector.rings import Ints

_TILES = 8
"""In a block, where that does not make too many blocks."""
_MOST_BLOCKS = 64
"""Each leaves up to two files that are open together later."""
_WHOLE = -1
"""When regions are due that no other block has a pixel of."""


class Piece(NamedTuple):
    """Work that anybody can do who sees the same files."""

    name: str
    """For people."""
    function: Callable[..., Any]
    """Can be pickled, like its arguments and what it returns; doing it twice does no harm."""
    arguments: tuple[Any, ...]
    done: Callable[[Any], None]
    """Told what it returned, here, one piece at a time."""


Hands = Callable[[Callable[[], Piece | None]], None]
"""Does the pieces that it is given, any number at a time, until it is given None and all have ended.

It asks again after each that has ended: None may mean that the others must be waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracing:
    """What all pieces of work on one layer know."""

    layer: Layer
    geobox: GeoBox
    tile_hw: tuple[int, int]
    nodes: bool
    """See `iter_regions`."""
    least_m2: float
    """Regions below it are left out."""
    least_px: float
    folder: Path
    """Where the files are made that hold regions; nothing else may lie there."""
    name: str
    """Of this layer, in names of files."""

    @property
    def windows(self) -> list[Window]:
        """All tiles."""
        return list(iter_windows(self.geobox.shape, self.tile_hw))

    @contextmanager
    def spool(self, name: str) -> Iterator[SpoolWriter]:
        """A file of regions, there under its name once it is whole."""
        areas = _areas(self.geobox)
        smallest = Smallest(areas=areas, m2=self.least_m2, px=self.least_px)
        with self.made(f"{name}.arrow") as path:
            writer = SpoolWriter(path, self.geobox.shape, areas, smallest, nodes=self.nodes)
            yield writer
            writer.close()

    def parts_file(self, block: int, due: int) -> Path:
        """Parts of regions that a block has and another one puts together."""
        return self.folder / f"{self.name}-{block}-for-{due}.npz"

    @contextmanager
    def made(self, name: str) -> Iterator[Path]:
        """A place for a file that takes its name when it is whole."""
        part = self.folder / f"{secrets.token_hex(8)}.part"
        yield part
        with disk_errors(self.folder):
            part.replace(self.folder / name)


@functools.lru_cache(maxsize=1)
def _areas(geobox: GeoBox) -> PixelAreas | None:
    """Not sent along: it can be large."""
    return PixelAreas.of(geobox)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A run of tiles, and what is known of their seams."""

    number: int
    first: int
    """Its first tile."""
    stop: int
    survey: Survey
    """Of its tiles and those around them."""
    numbers: Ints
    """Number in the scene of each region at a seam."""
    due: Ints
    """The block that puts each of them together; `_WHOLE` for those that no other block has a pixel of."""


class Traced(NamedTuple):
    """What a piece of work has left in files."""

    num_regions: int
    """In its spool."""
    due: tuple[int, ...] = ()
    """Blocks that it left parts for."""


def trace_in_blocks(tracing: Tracing, hands: Hands, *, found: int, progress: Callable[[int, int], None] | None) -> int:
    """All regions of a layer, in spools in its folder; returns how many there are, those found before included.

    Args:
        tracing: What to trace.
        hands: Who does it.
        found: Regions of other layers.
        progress: Called with (steps done, steps in all): two for each tile.

    Raises:
        ResourceError: RS-002, the disk is full; RS-007, more polygons than can be put in order.
    """
    course = _Course(tracing, progress, found)
    hands(course.next_to_label)
    course.survey_all()
    hands(course.next_to_trace)
    return course.num_regions


@dataclass(slots=True)
class _Course:
    """What is to be done, and what has been."""

    tracing: Tracing
    progress: Callable[[int, int], None] | None
    num_regions: int
    _runs: list[tuple[int, int]] = field(init=False)
    """First tile of each block, and the one after its last."""
    _windows: list[Window] = field(init=False)
    _steps: int = 0
    _tiles: dict[int, list[Tile]] = field(default_factory=dict)
    """Block -> its tiles, labelled."""
    _survey: Survey = field(init=False)
    _waiting: deque[int] = field(init=False)
    """Blocks that nobody has begun."""
    _missing: set[int] = field(init=False)
    """Blocks that have not been traced."""
    _parts: dict[int, list[int]] = field(default_factory=dict)
    """Block -> those that left parts for it."""

    def __post_init__(self) -> None:
        self._windows = self.tracing.windows
        count = len(self._windows)
        size = max(_TILES, -(-count // _MOST_BLOCKS))
        self._runs = [(first, min(first + size, count)) for first in range(0, count, size)]
        self._waiting = deque(range(len(self._runs)))
        self._missing = set(self._waiting)

    def next_to_label(self) -> Piece | None:
        """A block that nobody has labelled."""
        if not self._waiting:
            return None
        number = self._waiting.popleft()

        def done(tiles: list[Tile]) -> None:
            self._tiles[number] = tiles
            self._advance(number)

        run = self._runs[number]
        return Piece(f"labels of block {number}", label_block, (self._reading(*run), *run), done)

    def survey_all(self) -> None:
        """Find what belongs together across all seams."""
        tiles = [tile for _, some in sorted(self._tiles.items()) for tile in some]
        self._survey = Survey.of(tiles, self.tracing.geobox.shape, self.tracing.tile_hw)
        self._tiles.clear()
        self._waiting.extend(range(len(self._runs)))

    def next_to_trace(self) -> Piece | None:
        """A block all parts for which are there, else one that nobody has traced; None if the others must end first."""
        ready = next((block for block in self._parts if min(self._missing, default=block + 1) > block), None)
        if ready is not None:
            arguments = (self._reading(0, 0), ready, self._parts.pop(ready))
            return Piece(f"regions that end in block {ready}", join_parts, arguments, self._count)
        if not self._waiting:
            return None
        number = self._waiting.popleft()

        def done(traced: Traced) -> None:
            self._missing.remove(number)
            for due in traced.due:
                self._parts.setdefault(due, []).append(number)
            self._count(traced)
            self._advance(number)

        tracing = self._reading(*self._runs[number])
        return Piece(f"regions of block {number}", trace_block, (tracing, self._block(number)), done)

    def _reading(self, first: int, stop: int) -> Tracing:
        """For a piece that reads the tiles from `first` to before `stop`: without what was sieved in others."""
        windows = self._windows[first:stop]
        sieves = tuple({window: changes[window] for window in windows} for changes in self.tracing.layer.sieves)
        return dataclasses.replace(self.tracing, layer=dataclasses.replace(self.tracing.layer, sieves=sieves))

    def _block(self, number: int) -> Block:
        first, stop = self._runs[number]
        survey, numbers = self._survey.part(first, stop)
        starts = np.array([start for start, _ in self._runs])
        begin, end = (
            np.searchsorted(starts, tiles, side="right") - 1
            for tiles in (survey.seams.first_tile, survey.seams.last_tile)
        )
        due = np.where(begin == end, _WHOLE, end)
        return Block(number=number, first=first, stop=stop, survey=survey, numbers=numbers, due=due)

    def _count(self, traced: Traced) -> None:
        self.num_regions += traced.num_regions
        refuse_too_many(self.num_regions, self.tracing.folder)

    def _advance(self, number: int) -> None:
        first, stop = self._runs[number]
        self._steps += stop - first
        if self.progress is not None:
            self.progress(self._steps, 2 * len(self._windows))


def label_block(tracing: Tracing, first: int, stop: int) -> list[Tile]:
    """The tiles from `first` to before `stop`, with what is kept of their borders."""
    with tracing.layer.open() as layer:
        shape_hw = tracing.geobox.shape
        windows = tracing.windows[first:stop]
        return [Tile.of(window, Pieces.of(layer.read(window)), shape_hw) for window in windows]


def trace_block(tracing: Tracing, block: Block) -> Traced:
    """Regions of a block into a spool, and parts of those that reach into others into files.

    Raises:
        ResourceError: RS-002, the disk is full.
    """
    survey = block.survey
    with tracing.layer.open() as layer, tracing.spool(f"{tracing.name}-{block.number}") as spool:
        sweep = Sweep.over(survey, due=block.due, nodes=tracing.nodes, measure=layer.measure)
        for number in range(block.first, block.stop):
            spool.add(tracing.layer.named(sweep.trace(number, layer.read)))
        spool.add(tracing.layer.named(sweep.finish(_WHOLE)))
    # Regions that fill a tile have no boundary in it, yet pixels that count.
    present = np.unique(
        np.concatenate([survey.regions_of(survey.tiles[number]) for number in range(block.first, block.stop)])
    )
    due = [int(number) for number in np.unique(block.due[present]) if number != _WHOLE]
    for number in due:
        regions = present[block.due[present] == number]
        with tracing.made(tracing.parts_file(block.number, number).name) as path:
            _save(path, block, sweep, joined(sweep.waiting.pop(number, [])), regions)
    assert not sweep.waiting, "a boundary belongs to a region that no tile of the block has a pixel of"
    return Traced(spool.count, tuple(due))


def _save(path: Path, block: Block, sweep: Sweep, parts: Parts, regions: Ints) -> None:
    tables = {f.name: getattr(parts, f.name) for f in dataclasses.fields(Parts)}
    for name in ("chain_regions", "ring_regions"):
        tables[name] = block.numbers[tables[name]]
    with disk_errors(path), path.open("wb") as file:
        np.savez(
            file,
            **tables,
            regions=block.numbers[regions],
            values=block.survey.seams.values[regions],
            facts=sweep.facts.of(regions).table,
        )


def join_parts(tracing: Tracing, due: int, blocks: Sequence[int]) -> Traced:
    """Regions that end in a block, from the parts that blocks have left for it, into a spool.

    Raises:
        ResourceError: RS-002, the disk is full.
    """
    with disk_errors(tracing.folder):
        found = [_load(tracing.parts_file(block, due)) for block in sorted(blocks)]
    numbers, place = np.unique(np.concatenate([tables["regions"] for tables in found]), return_inverse=True)
    values = np.empty(len(numbers), np.int64)
    values[place] = np.concatenate([tables["values"] for tables in found])
    facts = Facts.none_yet(len(numbers))
    facts.add(place, Facts(np.concatenate([tables["facts"] for tables in found])))
    parts = joined([_parts(tables, numbers) for tables in found])
    with tracing.spool(f"{tracing.name}-{due}-joined") as spool:
        spool.add(tracing.layer.named(assemble(parts, values, facts, shape_hw=tracing.geobox.shape)))
    return Traced(spool.count)


def _load(path: Path) -> dict[str, Ints]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _parts(tables: dict[str, Ints], numbers: Ints) -> Parts:
    """Parts from a file, of regions numbered among some of the scene's."""
    own = {f.name: tables[f.name] for f in dataclasses.fields(Parts)}
    for name in ("chain_regions", "ring_regions"):
        own[name] = np.searchsorted(numbers, own[name])
    return Parts(**own)
