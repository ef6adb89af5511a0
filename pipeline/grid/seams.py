"""Pixels near the borders between patch cores, where a seam would show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.grid.tiling import Axis, Tiling
    from pipeline.grid.window import Window


def near_seam(tiling: Tiling, window: Window, *, reach_px: int) -> NDArray[np.bool_]:
    """`(y, x)` of `window`: True within `reach_px` of a border between patch cores."""
    rows = _near_border(tiling.rows, window.row_off, window.row_stop, reach_px)
    cols = _near_border(tiling.cols, window.col_off, window.col_stop, reach_px)
    return rows[:, None] | cols[None, :]


def _near_border(axis: Axis, start: int, stop: int, reach_px: int) -> NDArray[np.bool_]:
    near = np.zeros(stop - start, bool)
    for index in axis.touching(max(start - reach_px, 0), min(stop + reach_px, axis.size)):
        for border in axis.core(index):
            if 0 < border < axis.size:
                near[max(border - reach_px - start, 0) : max(border + reach_px - start, 0)] = True
    return near
