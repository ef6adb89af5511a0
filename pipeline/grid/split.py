"""A patch in smaller patches that together give its core: where memory does not suffice for the whole one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.grid.tiling import Patch, round_up
from pipeline.grid.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.grid.tiling import SizeRule, Tiling


def halves(patch: Patch, tiling: Tiling, sizes: SizeRule) -> list[Patch]:
    """Smaller patches, whose inputs lie inside the patch's own: cut in two across the longer side of the core.

    In exact mode their cores have the halo that the whole one has, and origins congruent modulo the stride: the same
    result but for the order of summation. A core of one stride is not cut; its patch loses what is more than its halo.

    Args:
        patch: Of an exact tiling.
        tiling: Where it comes from.
        sizes: Sides that the network takes.

    Returns:
        Two patches, or one; empty where the network takes none that are smaller.
    """
    tall = patch.core.height >= patch.core.width
    return _cut(patch, tiling, sizes, rows=tall) or _cut(patch, tiling, sizes, rows=not tall)


def parts_for(
    window: Window, patches: Iterable[Patch], tiling: Tiling, sizes: SizeRule, *, most_px: float
) -> list[Patch]:
    """What gives a window, in patches of at most so many pixels where the network takes any as small.

    Args:
        window: Inside the patches' cores.
        patches: Of an exact tiling.
        tiling: Where they come from.
        sizes: Sides that the network takes.
        most_px: Pixels that may be put through the network at a time.
    """
    made, waiting = [], [patch for patch in patches if patch.core.intersect(window).num_pixels]
    while waiting:
        patch = waiting.pop(0)
        parts = halves(patch, tiling, sizes) if patch.input.num_pixels > most_px else []
        made += [] if parts else [patch]
        waiting = [part for part in parts if part.core.intersect(window).num_pixels] + waiting
    return made


def _cut(patch: Patch, tiling: Tiling, sizes: SizeRule, *, rows: bool) -> list[Patch]:
    start, stop = (patch.core.row_off, patch.core.row_stop) if rows else (patch.core.col_off, patch.core.col_stop)
    first, last = (patch.input.row_off, patch.input.row_stop) if rows else (patch.input.col_off, patch.input.col_stop)
    middle = min(start + round_up(math.ceil((stop - start) / 2), tiling.stride), stop)
    parts = []
    for a, b in ((start, middle), (middle, stop)) if middle < stop else ((start, stop),):
        block_stop = start + round_up(b - start, tiling.stride)
        begin = max(first, a - tiling.halo_px)
        side = sizes.at_least(min(last, block_stop + tiling.halo_px) - begin)
        begin = min(begin, last - side)
        if begin < first or side >= last - first or (begin - first) % tiling.stride:
            return []
        parts.append(_part(patch, (begin, begin + side), (a, b), rows=rows))
    return parts


def _part(patch: Patch, reach: tuple[int, int], core: tuple[int, int], *, rows: bool) -> Patch:
    def cut(window: Window, span: tuple[int, int]) -> Window:
        if rows:
            return Window.from_bounds(span[0], window.col_off, span[1], window.col_stop)
        return Window.from_bounds(window.row_off, span[0], window.row_stop, span[1])

    made_input, made_core = cut(patch.input, reach), cut(patch.core, core)
    row = patch.output_off_hw[0] + patch.input.row_off - patch.core.row_off
    col = patch.output_off_hw[1] + patch.input.col_off - patch.core.col_off
    return Patch(
        index_rc=patch.index_rc,
        input=made_input,
        core=made_core,
        output_off_hw=(row + made_core.row_off - made_input.row_off, col + made_core.col_off - made_input.col_off),
        open_sides=patch.open_sides,
    )
