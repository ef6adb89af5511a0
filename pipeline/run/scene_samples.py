"""A few windows of a scene to measure on: spread evenly, the same each time, with valid pixels in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.grid import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pipeline.scene import Scene

_SAMPLES = 4


def sample_blocks(scene: Scene, side: int) -> Iterator[tuple[NDArray[np.generic], NDArray[np.bool_]]]:
    """(stored values `(band, y, x)`, validity `(y, x)`) of a few windows that hold valid pixels."""
    height, width = scene.geobox.shape
    found = 0
    for number in range(4 * _SAMPLES):
        # Positions of a low-discrepancy sequence (Roberts 2018, "R2"): spread evenly however many are taken.
        row = int((0.5 + number * 0.7548776662466927) % 1.0 * (height - side + 1))
        col = int((0.5 + number * 0.5698402909980532) % 1.0 * (width - side + 1))
        block = scene.read_block(Window(row_off=row, col_off=col, height=side, width=side))
        valid = np.array(block.valid_everywhere())
        if valid.any():
            yield np.array(block.data), valid
            found += 1
        if found == _SAMPLES:
            return
