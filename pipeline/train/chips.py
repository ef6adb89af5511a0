"""Training samples from a scene and its target: random windows, half of them around a class drawn evenly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.grid import Window

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.scene import Scene

_LATTICE_PX = 16
"""Spacing at which the target is looked at to know where classes are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Chips as arrays."""

    data: NDArray[np.float32]
    """`(batch, band, y, x)`, stored values as float32."""
    valid: NDArray[np.bool_]
    """`(batch, band, y, x)`."""
    target: NDArray[np.int64]
    """`(batch, y, x)` class values; the ignore index on nodata."""


class ChipSampler:
    """Draws chips inside one part of a scene.

    Args:
        scene: Pixels.
        read_target: Reference class values `(y, x)` of a window.
        area: Where chips may lie.
        chip_px: Side of a chip.
        num_classes: Classes.
        ignore_index: Target value that loss and metrics skip.
        seed: Same seed, same chips.
    """

    def __init__(
        self,
        scene: Scene,
        read_target: Callable[[Window], NDArray[np.generic]],
        *,
        area: Window,
        chip_px: int,
        num_classes: int,
        ignore_index: int,
        seed: int,
    ) -> None:
        self._scene = scene
        self._read_target = read_target
        self._area = area
        self._chip_px = chip_px
        self._ignore = ignore_index
        self._rng = np.random.default_rng(seed)
        lattice = read_target(area)[::_LATTICE_PX, ::_LATTICE_PX]
        self._places = [p for k in range(num_classes) if len(p := np.argwhere(lattice == k) * _LATTICE_PX)]

    def draw(self, batch: int) -> Batch:
        """The next chips, flipped and turned at random."""
        chips = [self._chip() for _ in range(batch)]
        data, valid, target = (np.stack(part) for part in zip(*chips, strict=True))
        return Batch(data=data, valid=valid, target=target)

    def _chip(self) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64]]:
        window = self._window()
        block = self._scene.read_block(window)
        target = self._read_target(window).astype(np.int64)
        target[~block.valid_everywhere()] = self._ignore
        turns, flip = int(self._rng.integers(4)), bool(self._rng.integers(2))

        def turned(array: NDArray[np.generic]) -> NDArray[np.generic]:
            array = np.rot90(array, turns, axes=(-2, -1))
            return np.ascontiguousarray(array[..., ::-1] if flip else array)

        data = turned(block.data).astype(np.float32)
        return data, turned(block.valid).astype(bool), turned(target).astype(np.int64)

    def _window(self) -> Window:
        side = self._chip_px
        if self._rng.random() < 0.5:  # noqa: PLR2004 - half and half
            places = self._places[self._rng.integers(len(self._places))]
            row, col = places[self._rng.integers(len(places))] - self._rng.integers(0, side, 2)
        else:
            row, col = self._rng.integers(0, (self._area.height - side + 1, self._area.width - side + 1))
        row = int(np.clip(row, 0, self._area.height - side)) + self._area.row_off
        col = int(np.clip(col, 0, self._area.width - side)) + self._area.col_off
        return Window(row_off=row, col_off=col, height=side, width=side)


def band_statistics(scene: Scene, area: Window, *, step_px: int = 256) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per band over valid pixels, from every fourth window of `step_px`.

    Scene-wide constants: scaling by tile or chip would make the result depend on where a tile was cut.
    """
    bands = len(scene.bands)
    count, total, squares = np.zeros(bands), np.zeros(bands), np.zeros(bands)
    for row in range(area.row_off, area.row_stop, 2 * step_px):
        for col in range(area.col_off, area.col_stop, 2 * step_px):
            window = Window(row_off=row, col_off=col, height=step_px, width=step_px).intersect(area)
            block = scene.read_block(window)
            values = np.where(block.valid, block.data, 0).astype(np.float64)
            count += block.valid.sum(axis=(1, 2))
            total += values.sum(axis=(1, 2))
            squares += (values**2).sum(axis=(1, 2))
    mean = total / np.maximum(count, 1)
    std = np.sqrt(np.maximum(squares / np.maximum(count, 1) - mean**2, 0.0))
    return tuple(float(v) for v in mean), tuple(float(v) or 1.0 for v in std)
