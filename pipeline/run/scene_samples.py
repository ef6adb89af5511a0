"""A few windows of a scene to measure on: spread evenly, the same each time, with valid pixels in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.grid import Window
from pipeline.store.ahead import in_order

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pipeline.scene import Scene

_SAMPLES = 4
_MOST_TRIED = 16


def sample_blocks(scene: Scene, side: int) -> Iterator[tuple[NDArray[np.generic], NDArray[np.bool_]]]:
    """(stored values `(band, y, x)`, validity `(y, x)`) of a few windows that hold valid pixels.

    Several are read at a time, while the caller is busy with the one before; none that is not needed.
    """
    height, width = scene.geobox.shape

    def read(number: int) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        # Positions of a low-discrepancy sequence (Roberts 2018, "R2"): spread evenly however many are taken.
        row = int((0.5 + number * 0.7548776662466927) % 1.0 * (height - side + 1))
        col = int((0.5 + number * 0.5698402909980532) % 1.0 * (width - side + 1))
        block = scene.read_block(Window(row_off=row, col_off=col, height=side, width=side))
        return np.array(block.data), np.array(block.valid_everywhere())

    found = tried = 0
    while found < _SAMPLES and tried < _MOST_TRIED:
        numbers = range(tried, min(tried + _SAMPLES - found, _MOST_TRIED))
        tried = numbers.stop
        for data, valid in in_order(read, numbers):
            if valid.any():
                yield data, valid
                found += 1
