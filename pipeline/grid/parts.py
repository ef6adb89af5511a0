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
        Multiples of `stride`; the smallest possible core when even that does not fit.
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
    best = min(cores, key=total)
    smallest = (sizes.at_least(2 * halo_px + stride) - 2 * halo_px) // stride * stride
    return best if math.isfinite(total(best)) else (smallest, smallest)


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
