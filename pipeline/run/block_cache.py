"""How many decoded blocks a worker keeps: as many as lie under a row of tiles, where the next row needs some again.

GDAL lets go of what was not used for longest. A cache that is smaller than a row has lost what the next row shares with
it by the time that row is read, and a little smaller is as good as none.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.grid import Window
from pipeline.infer import source_window
from pipeline.scene import BLOCK_CACHE_BYTES, decoded_bytes, shares_blocks

if TYPE_CHECKING:
    from pipeline.grid import Padding, Tiling
    from pipeline.scene import Scene


def choose_block_cache(scene: Scene, tiling: Tiling, *, padding: Padding, spare_bytes: int) -> int:
    """Bytes of GDAL's cache of decoded blocks, for a worker that reads a scene row by row.

    Args:
        scene: To be read.
        tiling: Its tiles, read in their order.
        padding: How the scene is extended beyond its rim.
        spare_bytes: What patches and tiles leave of the worker's memory.
    """
    if spare_bytes <= 0 or not shares_blocks(scene):
        return BLOCK_CACHE_BYTES
    wanted = bytes_of_a_row(scene, tiling, padding=padding)
    most = min(_MOST_BYTES, BLOCK_CACHE_BYTES + spare_bytes)
    return wanted if BLOCK_CACHE_BYTES < wanted <= most else BLOCK_CACHE_BYTES


_MOST_BYTES = 320 * 2**20
"""Four bands of Sentinel-2 take 288 MiB, under tiles that touch three rows of blocks. Rows grow with a scene's width,
and memory must not."""


def extra_cache_bytes(cache_bytes: int) -> int:
    """What a cache takes beyond the usual one, for which a default budget leaves room below 2 GB."""
    return max(0, cache_bytes - BLOCK_CACHE_BYTES)


def bytes_of_a_row(scene: Scene, tiling: Tiling, *, padding: Padding) -> int:
    """Decoded bytes that have to be kept from one row of tiles to the next; 0 where none shares a block with the next.

    Args:
        scene: One of which `shares_blocks` holds.
        tiling: Its tiles, read in their order.
        padding: How the scene is extended beyond its rim.
    """
    rows = [_read_for_row(tiling, top, padding) for top in range(0, tiling.shape[0], tiling.tile_hw[0])]
    each = [decoded_bytes(scene, row) for row in rows]
    shared = (
        first + second - decoded_bytes(scene, _hull(above, below))
        for (above, first), (below, second) in itertools.pairwise(zip(rows, each, strict=True))
    )
    if not any(shared):
        return 0
    # And a column of blocks more: drivers that decode a window on several threads do not keep to the order of its rows.
    return max(each) + max(decoded_bytes(scene, replace(row, width=1)) for row in rows)


def _read_for_row(tiling: Tiling, top: int, padding: Padding) -> Window:
    """What is read for the row of tiles that begins at `top`, right across the scene."""
    begin = Window(row_off=top, col_off=0, height=tiling.tile_hw[0], width=1)
    rows = source_window(list(tiling.patches(begin)), tiling.shape, padding=padding)
    return replace(rows, col_off=0, width=tiling.shape[1])


def _hull(above: Window, below: Window) -> Window:
    """The rows of both, and those between."""
    top, bottom = min(above.row_off, below.row_off), max(above.row_stop, below.row_stop)
    return replace(above, row_off=top, height=bottom - top)
