"""How to cut a scene into equal patches: the fewest pixels twice, within a budget."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from pipeline.grid.tiling import round_up

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.grid.tiling import SizeRule

_USEFUL_CORE_PX = 2048
"""Side; a core of this size or of this many halos gains next to nothing by growing, and a lost tile costs more."""
_USEFUL_HALOS = 64
_NEAR = 1.01
"""Cores that cost this much more than the fastest are as good, and a smaller patch takes less memory."""


def balanced_core(
    shape: tuple[int, int],
    *,
    halo_px: int,
    stride: int,
    sizes: SizeRule,
    seconds: Callable[[tuple[int, int]], float],
    square: bool = False,
) -> tuple[int, int]:
    """(height, width) of the patch core that covers a scene fastest: equal parts, as few pixels twice as memory allows.

    Args:
        shape: Scene (height, width).
        halo_px: Pixels read around a core, per side.
        stride: Output stride; cores are multiples of it.
        sizes: Sides that the network takes.
        seconds: Time of a forward over a patch (height, width); infinite where it does not fit the memory.
        square: Cores are squares, equal parts of one of the scene's sides.

    Returns:
        Multiples of `stride`: of those that are as good as the fastest the one with the smallest patch; the smallest
        possible core when even that does not fit.
    """
    largest_side = _largest_side(sizes, halo_px)
    parts = [_equal_parts(n, stride) for n in shape]
    patches = {core: sizes.at_least(core + 2 * halo_px) for core in itertools.chain(*parts)}

    def total(core: tuple[int, int]) -> float:
        if patches[max(core)] > largest_side:
            return math.inf
        count = math.prod(-(-n // side) for n, side in zip(shape, core, strict=True))
        return count * seconds((patches[core[0]], patches[core[1]]))

    cores = ((core, core) for core in patches) if square else itertools.product(parts[0], parts[1])
    seconds_of = {core: total(core) for core in cores}
    fastest = min(seconds_of, key=lambda core: seconds_of[core])
    if math.isinf(seconds_of[fastest]):
        smallest = (sizes.at_least(2 * halo_px + stride) - 2 * halo_px) // stride * stride
        return smallest, smallest
    useful_px = min(math.prod(fastest), _USEFUL_CORE_PX**2)
    near = [c for c, taken in seconds_of.items() if taken <= _NEAR * seconds_of[fastest] and math.prod(c) >= useful_px]
    return min(near, key=lambda core: (patches[core[0]] * patches[core[1]], seconds_of[core]))


def _largest_side(sizes: SizeRule, halo_px: int) -> int:
    """Side of the largest patch that is worth its memory."""
    core = max(_USEFUL_CORE_PX, min(_USEFUL_HALOS * halo_px, 3 * _USEFUL_CORE_PX))
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
