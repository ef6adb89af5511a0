"""From stored values to what the network is given: padding by index, scaling, and the mean where nothing is valid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipeline.grid import Padding, Window, source_index

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.grid import Patch
    from pipeline.model import Scaling


def source_window(patches: list[Patch], shape: tuple[int, int], *, padding: Padding) -> Window:
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
        rows, cols = wanted.slices_in(outer)
        return array[:, rows, cols]
    row_index = source_index(wanted.row_off, wanted.row_stop, shape[0], padding=padding)
    col_index = source_index(wanted.col_off, wanted.col_stop, shape[1], padding=padding)
    block = array[:, np.maximum(row_index - outer.row_off, 0)][:, :, np.maximum(col_index - outer.col_off, 0)]
    if padding == "zero":
        block[:, row_index < 0] = 0
        block[:, :, col_index < 0] = 0
    return block


def scale(data: Tensor, invalid: Tensor | None, scaling: Scaling) -> Tensor:
    """Network input from stored values; invalid (band, pixel) values become 0, which is the mean.

    Args:
        data: `(band, y, x)` in the file's dtype, on the device.
        invalid: `(band, y, x)` boolean, True = not usable; None when all are usable.
        scaling: Constants per band.

    Returns:
        `(1, band, y, x)` float32, channels last.
    """
    gain, bias = (
        torch.tensor(v, device=data.device, dtype=torch.float32)[:, None, None] for v in scaling.gain_and_bias()
    )
    x = data.to(torch.float32)
    # Multiply and add apart, never fused: the low bits must not depend on where a patch was cut.
    x = x.mul(gain).add_(bias)
    if invalid is not None:
        x.masked_fill_(invalid, 0.0)
    return x.unsqueeze(0).to(memory_format=torch.channels_last)
