"""Which patches make a tile: lattices of whole pixels anchored at the scene's origin.

Both ways of tiling are values of one class. A *patch* is what the network is given; its *core* is what it
contributes. In exact mode cores tile the scene and nothing else of a patch is kept; in blend mode cores overlap
and are averaged under a taper. A *tile* is a whole number of lattice steps, so that the patches, and with them the
result, do not depend on its size.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipeline.grid.window import Window, iter_windows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Mode = Literal["exact", "blend"]


def round_up(value: int, multiple: int) -> int:
    """Smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """One evaluation of the network."""

    index_rc: tuple[int, int]
    """(row, column) on the lattice."""
    input: Window
    """Pixels given to the network; may reach beyond the scene, where padding fills it."""
    core: Window
    """Pixels of the scene that this patch contributes; never beyond the scene."""
    output_off_hw: tuple[int, int]
    """(row, column) of the core's first pixel in the network's output."""
    open_sides: tuple[bool, bool, bool, bool]
    """Top, bottom, left, right: True where a neighbouring patch overlaps the core (the taper falls there)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """The lattice along one axis, in pixels."""

    size: int
    """Pixels of the scene."""
    patch: int
    """Pixels given to the network."""
    step: int
    """Distance between patches; the core of exact mode, the stride of blend mode."""
    lead: int
    """Pixels of input before the core: halo (exact), or what the network drops (blend, valid padding)."""
    kept: int
    """Core before clipping: `step` in exact mode, the whole output in blend mode."""
    margin: int
    """Pixels on each side that do not come out: valid padding drops them, or an engine leaves them out."""
    limit: int | None
    """With network padding: where inputs must end (the scene rounded up); None where padding fills freely."""

    @property
    def count(self) -> int:
        """Number of patches that cover the axis."""
        return max(1, -(-(self.size - self.kept) // self.step) + 1)

    def core(self, index: int) -> tuple[int, int]:
        """(first, stop) of the core, clipped to the scene."""
        return index * self.step, min(index * self.step + self.kept, self.size)

    def input(self, index: int) -> tuple[int, int]:
        """(first, stop) of the input."""
        start = index * self.step - self.lead
        stop = start + self.patch
        if self.limit is None:
            return start, stop
        return max(start, 0), min(stop, self.limit)

    def touching(self, start: int, stop: int) -> range:
        """Indices of the patches whose core shares a pixel with [start, stop)."""
        first = max(0, (start - self.kept) // self.step + 1)
        return range(first, min(self.count, (stop - 1) // self.step + 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """Unit of work: a core that one worker computes and writes whole."""

    index: int
    """Position in row-major order."""
    core: Window
    """Pixels written; tiles' cores cover the scene once and only once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """Everything about where: frozen in the plan, the same for every worker.

    Law: cores of all patches cover each pixel once (exact) or at least once (blend); the cores of all tiles cover
    each pixel once (properties/test_tiling.py).
    """

    mode: Mode
    """exact: keep cores; blend: weighted mean of overlapping cores."""
    shape: tuple[int, int]
    """(height, width) of the scene."""
    stride: int
    """Output stride of the network; patch origins are congruent modulo it."""
    halo_px: int
    """Real pixels around a core (exact); 0 in blend mode."""
    overlap_px: int
    """Pixels that neighbouring cores share (blend); 0 in exact mode."""
    rows: Axis
    cols: Axis
    tile_steps: int
    """Lattice steps per tile side."""

    @property
    def tile_hw(self) -> tuple[int, int]:
        """(height, width) of a tile's core, before clipping."""
        return self.rows.step * self.tile_steps, self.cols.step * self.tile_steps

    @property
    def patch_hw(self) -> tuple[int, int]:
        """(height, width) given to the network, away from network-padded rims."""
        return self.rows.patch, self.cols.patch

    @property
    def one_size(self) -> bool:
        """Whether all patches have one size; with network padding those at the rim are smaller."""
        return self.rows.limit is None and self.cols.limit is None

    @property
    def num_patches(self) -> int:
        """Distinct patches on the lattice."""
        return self.rows.count * self.cols.count

    @property
    def num_tiles(self) -> int:
        """Tiles that cover the scene."""
        return math.prod(-(-size // side) for size, side in zip(self.shape, self.tile_hw, strict=True))

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Tiling:
        """The tiling that a plan keeps, as `dataclasses.asdict` gave it."""
        shape = (int(document["shape"][0]), int(document["shape"][1]))
        axes = {name: Axis(**document[name]) for name in ("rows", "cols")}
        return cls(**{**document, "shape": shape, **axes})

    def tiles(self) -> list[Tile]:
        """All tiles in row-major order."""
        windows = iter_windows(self.shape, self.tile_hw)
        return [Tile(index=i, core=core) for i, core in enumerate(windows)]

    def patches(self, window: Window) -> Iterator[Patch]:
        """Patches that contribute to `window`, in lattice order."""
        for row in self.rows.touching(window.row_off, window.row_stop):
            for col in self.cols.touching(window.col_off, window.col_stop):
                yield self.patch_at(row, col)

    def redundancy(self) -> float:
        """Pixels put through the network per pixel of the scene, summed over tiles."""
        axes = zip((self.rows, self.cols), self.shape, self.tile_hw, strict=True)
        return math.prod(_read(axis, size, tile) / size for axis, size, tile in axes)

    def patch_at(self, row: int, col: int) -> Patch:
        """The patch at these indices of the lattice."""
        (r0, r1), (c0, c1) = self.rows.core(row), self.cols.core(col)
        (ir0, ir1), (ic0, ic1) = self.rows.input(row), self.cols.input(col)
        return Patch(
            index_rc=(row, col),
            input=Window.from_bounds(ir0, ic0, ir1, ic1),
            core=Window.from_bounds(r0, c0, r1, c1),
            output_off_hw=(r0 - ir0 - self.rows.margin, c0 - ic0 - self.cols.margin),
            open_sides=(row > 0, row < self.rows.count - 1, col > 0, col < self.cols.count - 1),
        )


def _read(axis: Axis, size: int, tile: int) -> int:
    """Pixels along an axis that patches read, for all tiles together."""
    spans = (
        axis.input(index) for begin in range(0, size, tile) for index in axis.touching(begin, min(begin + tile, size))
    )
    return sum(stop - start for start, stop in spans)


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeRule:
    """Input sides that a network takes: `remainder` modulo `multiple`, at least `smallest`."""

    multiple: int
    remainder: int = 0
    smallest: int = 1
    largest: int | None = None
    """Set for networks with a fixed input size."""

    def on_stride(self, stride: int) -> SizeRule:
        """Of these sides those that are all alike modulo the stride, so that flips keep the lattice of strides."""
        if self.remainder or self.multiple % stride == 0:
            return self
        return dataclasses.replace(self, multiple=math.lcm(self.multiple, stride))

    def at_most(self, size: int) -> int | None:
        """Largest allowed side that is at most `size`; None when there is none."""
        side = min(size, self.largest or size)
        side -= (side - self.remainder) % self.multiple
        return side if side >= self.smallest else None

    def at_least(self, size: int) -> int:
        """Smallest allowed side that is at least `size`.

        Raises:
            ValueError: The network takes no side that large.
        """
        wanted = max(size, self.smallest)
        side = wanted + (self.remainder - wanted) % self.multiple
        if self.largest is not None and side > self.largest:
            msg = f"the network takes at most {self.largest} px, {size} px are needed"
            raise ValueError(msg)
        return side


def exact_tiling(
    shape: tuple[int, int],
    *,
    core_hw: tuple[int, int],
    halo_px: int,
    stride: int,
    margin_px: int,
    sizes: SizeRule,
    tile_px: int,
    network_padding: bool = False,
    square: bool = False,
) -> Tiling:
    """Tiling that keeps patch cores only.

    Args:
        shape: Scene (height, width), in pixels.
        core_hw: Wanted (height, width) of a patch core; rounded up to multiples of `stride`, and no larger than the
            scene needs.
        halo_px: Measured halo, a multiple of `stride`.
        stride: Output stride of the network.
        margin_px: Pixels on each side that do not come out, at most the halo.
        sizes: Sides that the network takes.
        tile_px: Wanted side of a tile's core; rounded up to whole patch cores.
        network_padding: Patches end at the scene's rim, rounded up to the next size that the network takes.
        square: Patches are squares though the scene be narrow.
    """

    def axis(size: int, core_px: int) -> Axis:
        core = min(round_up(core_px, stride), round_up(size, stride))
        return Axis(
            size=size,
            patch=sizes.at_least(core + 2 * halo_px),
            step=core,
            lead=halo_px,
            kept=core,
            margin=margin_px,
            limit=sizes.at_least(size) if network_padding else None,
        )

    rows, cols = axis(shape[0], core_hw[0]), axis(shape[1], core_hw[1])
    if square:
        side = max(rows.patch, cols.patch)
        rows, cols = dataclasses.replace(rows, patch=side), dataclasses.replace(cols, patch=side)
    return Tiling(
        mode="exact",
        shape=shape,
        stride=stride,
        halo_px=halo_px,
        overlap_px=0,
        rows=rows,
        cols=cols,
        tile_steps=max(1, math.ceil(tile_px / max(rows.step, cols.step))),
    )


def blend_tiling(
    shape: tuple[int, int],
    *,
    patch_px: int,
    overlap_px: int,
    stride: int,
    margin_px: int,
    sizes: SizeRule,
    tile_px: int,
    square: bool = False,
) -> Tiling:
    """Tiling whose patches overlap and are averaged under a taper.

    Args:
        shape: Scene (height, width), in pixels.
        patch_px: Wanted side of a patch, rounded up to a side that the network takes; shrinks to small scenes.
        overlap_px: Least pixels that neighbouring outputs share; grown so that the step is a multiple of `stride`.
        stride: Output stride of the network (1 where it has none).
        margin_px: Pixels that the network drops on each side.
        sizes: Sides that the network takes.
        tile_px: Wanted side of a tile's core; rounded up to whole lattice steps.
        square: Patches are squares though the scene be narrow.

    Raises:
        ValueError: The overlap leaves no step of at least one stride.
    """

    def axis(size: int) -> Axis:
        patch = sizes.at_least(min(patch_px, (max(shape) if square else size) + 2 * margin_px))
        output = patch - 2 * margin_px
        step = (output - min(overlap_px, output - stride)) // stride * stride
        return Axis(size=size, patch=patch, step=step, lead=margin_px, kept=output, margin=margin_px, limit=None)

    widest = sizes.at_least(patch_px) - 2 * margin_px
    if overlap_px > widest - stride:
        msg = f"an overlap of {overlap_px} px leaves no step between patches whose output is {widest} px"
        raise ValueError(msg)
    rows, cols = axis(shape[0]), axis(shape[1])
    return Tiling(
        mode="blend",
        shape=shape,
        stride=stride,
        halo_px=0,
        overlap_px=overlap_px,
        rows=rows,
        cols=cols,
        tile_steps=max(1, math.ceil(tile_px / max(rows.step, cols.step))),
    )
