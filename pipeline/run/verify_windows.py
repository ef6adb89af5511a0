"""Windows that `--verify` looks at: drawn from the plan's digest, half of them on seams, always with a valid pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.grid import Tiling, Window, near_seam

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pipeline.legend import Legend
    from pipeline.run.plan import Plan
    from pipeline.store import TileStore

_DRAWS = 8
"""Draws per window: small scenes have few windows that differ."""


def sample_windows(
    plan: Plan, store: TileStore, valid_px: Mapping[int, int], *, count: int, side_px: int, legend: Legend
) -> list[Window]:
    """Windows of at most `side_px`, clipped to the scene; the same for the same plan and pixels.

    Args:
        plan: Where patches lie; its digest is the seed.
        store: Finished tiles.
        valid_px: Tile -> pixels with a class.
        count: Windows wanted; fewer come back where the same ones are drawn again and again. Every other one is
            centred on a seam between patch cores, the rest keep away from seams, as far as there are such pixels.
        side_px: A multiple of the stride, at least twice the stride.
        legend: Tells pixels with a class from nodata.

    Returns:
        Windows whose offsets are multiples of the stride; none where no pixel is valid.
    """
    rng = np.random.default_rng(int(plan.digest, 16))
    tiles = [tile for tile in plan.tiling.tiles() if valid_px.get(tile.index, 0)]
    weights = np.array([valid_px[tile.index] for tile in tiles], np.float64)
    found: dict[Window, None] = {}
    for _ in range(_DRAWS * count if tiles else 0):
        if len(found) == count:
            break
        core = tiles[int(rng.choice(len(tiles), p=weights / weights.sum()))].core
        valid = legend.is_valid(store.read_mask(core))
        pool = _pool(plan.tiling, core, valid, on_seam=len(found) % 2 == 0, side_px=side_px)
        flat = np.flatnonzero(pool)
        if flat.size:  # else the tile holds other pixels than the ledger says: any window of it shows that
            row, col = divmod(int(flat[rng.integers(flat.size)]), core.width)
        else:
            row = col = 0
        found[_around(plan.tiling, core.row_off + row, core.col_off + col, side_px)] = None
    return list(found)


def _pool(tiling: Tiling, core: Window, valid: NDArray[np.bool_], *, on_seam: bool, side_px: int) -> NDArray[np.bool_]:
    """Pixels that a window may be centred on: the first of these choices that leaves any."""
    if on_seam:
        choices = [near_seam(tiling, core, reach_px=tiling.stride)]
    else:
        reaches = (side_px // 2 + tiling.stride, tiling.stride)
        choices = [~near_seam(tiling, core, reach_px=reach) for reach in reaches]
    pools = (valid & choice for choice in choices)
    return next((pool for pool in pools if pool.any()), valid)


def _around(tiling: Tiling, row: int, col: int, side_px: int) -> Window:
    """The window around a pixel whose offsets are multiples of the stride, kept inside the scene."""

    def offset(position: int, size: int) -> int:
        last = max(0, -(-(size - side_px) // tiling.stride))
        return min(max(0, (position - side_px // 2) // tiling.stride), last) * tiling.stride

    height, width = tiling.shape
    row_off, col_off = offset(row, height), offset(col, width)
    return Window.from_bounds(row_off, col_off, min(row_off + side_px, height), min(col_off + side_px, width))
