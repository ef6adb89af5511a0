"""From stored values to what the network is given: padding by index, scaling, and the mean where nothing is valid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipeline.grid import Padding, Window, source_index

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.grid import Patch
    from pipeline.model import Scaling


def source_window(patches: Sequence[Patch], shape: tuple[int, int], *, padding: Padding) -> Window:
    """Smallest window of the scene that holds every real pixel that these patches are filled from.

    Args:
        patches: At least one.
        shape: Scene (height, width).
        padding: How positions outside the scene are filled.
    """

    def span(start: int, stop: int, size: int) -> tuple[int, int]:
        index = source_index(start, stop, size, padding=padding)
        index = index[index >= 0]
        return int(index.min()), int(index.max()) + 1

    rows = [span(p.input.row_off, p.input.row_stop, shape[0]) for p in patches]
    cols = [span(p.input.col_off, p.input.col_stop, shape[1]) for p in patches]
    return Window.from_bounds(
        min(r[0] for r in rows), min(c[0] for c in cols), max(r[1] for r in rows), max(c[1] for c in cols)
    )


def gather(
    array: NDArray[np.generic], outer: Window, wanted: Window, shape: tuple[int, int], *, padding: Padding
) -> NDArray[np.generic]:
    """Pixels of `wanted`, which may reach beyond the scene, from an array that covers `outer`.

    Args:
        array: `(band, y, x)` covering `outer`; `outer` lies in the scene.
        outer: What `array` covers.
        wanted: What is needed.
        shape: Scene (height, width).
        padding: How positions outside the scene are filled; with `zero` they become 0 (False).

    Returns:
        `(band, y, x)` of `wanted`; a view where nothing has to be invented.
    """
    if wanted.intersect(outer) == wanted:
        return array[(slice(None), *wanted.slices_in(outer))]
    rows = _source(wanted.row_off, wanted.row_stop, outer.row_off, shape[0], padding)
    cols = _source(wanted.col_off, wanted.col_stop, outer.col_off, shape[1], padding)
    block = np.empty((len(array), wanted.height, wanted.width), array.dtype)
    # Real pixels are one block, copied as such; index arrays serve the strips around it only.
    y, x = rows.real, cols.real
    block[:, y, x] = array[:, rows.slice_of(y), cols.slice_of(x)]
    for strip in (slice(0, y.start), slice(y.stop, wanted.height)):
        block[:, strip] = array[:, rows.index[strip]][:, :, cols.index]
    for strip in (slice(0, x.start), slice(x.stop, wanted.width)):
        block[:, y, strip] = array[:, rows.slice_of(y)][:, :, cols.index[strip]]
    if padding == "zero":
        block[:, rows.absent] = 0
        block[:, :, cols.absent] = 0
    return block


@dataclass(frozen=True, slots=True)
class _Source:
    """Where the positions along one axis are taken from."""

    index: NDArray[np.int64]
    """Index into the array, one per position."""
    absent: NDArray[np.bool_]
    """Positions that nothing is taken for (zero padding)."""
    real: slice
    """Positions inside the scene, which follow each other in the array; may be empty."""

    def slice_of(self, positions: slice) -> slice:
        """The same positions in the array."""
        if positions.start == positions.stop:
            return slice(0, 0)
        first = int(self.index[positions.start])
        return slice(first, first + positions.stop - positions.start)


def _source(start: int, stop: int, outer_start: int, size: int, padding: Padding) -> _Source:
    index = source_index(start, stop, size, padding=padding)
    first, last = min(max(0, -start), stop - start), min(stop, size) - start
    real = slice(first, max(first, last))
    return _Source(np.maximum(index - outer_start, 0), index < 0, real)


class Scaler:
    """Makes network input from stored values, in one buffer that it uses again and again.

    Fresh memory costs several times the arithmetic: the kernel clears every page of it. Used on the device thread only.
    """

    def __init__(self, scaling: Scaling) -> None:
        self._gain, self._bias = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in scaling.gain_and_bias())
        self._buffer: Tensor | None = None

    def __call__(self, data: Tensor, invalid: Tensor | None, *, place: int = 0, batch: int = 1) -> Tensor:
        """Network input from stored values; invalid (band, pixel) values become 0, which is the mean.

        Args:
            data: `(band, y, x)` in the file's dtype, on the device.
            invalid: `(band, y, x)`, or `(y, x)` for all bands, boolean, True = not usable; None when all are usable.
            place: Of this patch in the batch.
            batch: Patches of the batch; the other places stay as they are.

        Returns:
            `(batch, band, y, x)` float32. Valid until the next call.
        """
        if self._buffer is None or self._buffer.shape != (batch, *data.shape):
            self._buffer = torch.zeros((batch, *data.shape), dtype=torch.float32, device=data.device)
            self._gain, self._bias = self._gain.to(data.device), self._bias.to(data.device)
        # Multiply and add apart, never fused: the low bits must not depend on where a patch was cut.
        x = self._buffer[place].copy_(data).mul_(self._gain).add_(self._bias)
        if invalid is not None:
            x.masked_fill_(invalid, 0.0)
        return self._buffer
