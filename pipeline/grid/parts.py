"""How to cut a scene into equal patches: the fewest pixels twice, within a budget."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.grid.tiling import round_up

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.grid.tiling import SizeRule

_LARGE_SIDE = 2048
"""Of a core; one of this size or of so many halos gains next to nothing by growing."""
_LARGE_HALOS = 64
_USEFUL_CORE_PX = 1_600_000
"""No smaller core is taken to spare memory: more is read around it, and tasks become many."""
_BLOCK_PX = 256
"""Files have blocks of this side, or of multiples. Tiles without a halo can lie on them: each block is read for one."""
_BLOCKS_CUT = 1.08
"""Time over that of tiles which lie on blocks: 16384² px took 12.6 s in tiles of 1366² px, 11.6 s in 2048 x 1024."""


def balanced_core(
    shape: tuple[int, int],
    *,
    halo_px: int,
    stride: int,
    sizes: SizeRule,
    seconds: Callable[[tuple[NDArray[np.int64], NDArray[np.int64]]], NDArray[np.float64]],
    once: Callable[[tuple[NDArray[np.int64], NDArray[np.int64]]], Any] = lambda _: 0.0,
    as_good: float = 1.01,
    square: bool = False,
) -> tuple[int, int]:
    """(height, width) of the patch core that covers a scene fastest: equal parts, as few pixels twice as memory allows.

    Args:
        shape: Scene (height, width).
        halo_px: Pixels read around a core, per side.
        stride: Output stride; cores are multiples of it.
        sizes: Sides that the network takes.
        seconds: Times of forwards over patches, their heights and widths given as arrays; infinite where a patch does
            not fit the memory.
        once: Time that patches of a size cost beside that, however many there are.
        as_good: Cores that take so many times the fastest's time are as good; a smaller patch takes less memory.
        square: Cores are squares, equal parts of one of the scene's sides.

    Returns:
        Multiples of `stride`: of those that are as good as the fastest, and as large as is useful where one is, the one
        with the least product of time and the root of the patch's pixels; the smallest possible core when none fits.
    """
    cores = _cores(shape, stride, square=square)  # all at once: a stride of 1 has tens of thousands
    if not halo_px:
        cores = np.hstack([cores, _cores(shape, math.lcm(stride, _BLOCK_PX), square=square)])
    sides = {side: sizes.at_least(side + 2 * halo_px) for side in np.unique(cores).tolist()}
    patches = np.vectorize(sides.get, otypes=[np.int64])(cores)
    counts = np.prod([-(-n // core) for n, core in zip(shape, cores, strict=True)], axis=0)
    fits = patches.max(axis=0) <= _largest_side(sizes, halo_px)
    sides_hw = patches[0], patches[1]
    taken = np.where(fits, counts * seconds(sides_hw) + once(sides_hw), math.inf)
    if not halo_px:
        taken[(cores % _BLOCK_PX != 0).any(axis=0)] *= _BLOCKS_CUT
    fastest = int(taken.argmin())
    if math.isinf(taken[fastest]):
        smallest = (sizes.at_least(2 * halo_px + stride) - 2 * halo_px) // stride * stride
        return smallest, smallest
    core_px = cores.prod(axis=0)
    near = taken <= as_good * taken[fastest]
    good = near & (core_px >= min(core_px[fastest], _USEFUL_CORE_PX))
    best = int((taken[good] * np.sqrt(patches.prod(axis=0)[good])).argmin())
    height, width = cores[:, good][:, best].tolist()
    return height, width


def _cores(shape: tuple[int, int], stride: int, *, square: bool) -> NDArray[np.int64]:
    """Heights and widths of all cores that are equal parts of the scene, shape (2, core)."""
    heights, widths = (_equal_parts(n, stride) for n in shape)
    if square:
        sides = list(dict.fromkeys([*heights, *widths]))
        return np.array([sides, sides])
    return np.stack(np.meshgrid(heights, widths, indexing="ij")).reshape(2, -1)


def _largest_side(sizes: SizeRule, halo_px: int) -> int:
    """Side of the largest patch that is worth its memory."""
    core = max(_LARGE_SIDE, min(_LARGE_HALOS * halo_px, 3 * _LARGE_SIDE))
    return sizes.at_least(core + 2 * halo_px)


def _equal_parts(size: int, stride: int) -> list[int]:
    """Sides that cut `size` into 1, 2, 3, … parts, rounded up to the stride, largest first, each once."""
    sides: list[int] = []
    parts = 1
    while not sides or sides[-1] > stride:
        side = round_up(-(-size // parts), stride)
        if not sides or side < sides[-1]:
            sides.append(side)
        # The next number of parts that makes a smaller side.
        parts = max(parts + 1, -(-size // max(sides[-1] - stride, 1)))
    return sides
