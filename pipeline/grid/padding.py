"""Where the pixel for a position outside the scene is taken from: index maps, one axis at a time.

Because the map depends on the position in the scene alone, two patches that overlap outside it see the same
invented pixels, whatever tile they belong to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Padding = Literal["reflect", "edge", "zero", "network"]


def source_index(start: int, stop: int, size: int, *, padding: Padding) -> NDArray[np.intp]:
    """Scene positions that fill [start, stop) along an axis of `size` pixels; -1 where nothing does.

    Args:
        start: First position, may be negative.
        stop: One past the last position, may exceed `size`.
        size: Pixels of the scene along the axis, at least 1.
        padding: `reflect` mirrors about the border pixel as often as needed (numpy.pad's `reflect`; a single pixel
            repeats); `edge` repeats the border pixel; `zero` gives -1. `network` fills like `reflect`: only the
            rounding up to an allowed size is left to fill, the rest is the network's own padding.

    Source: overlap-tile strategy, Ronneberger et al. 2015, figure 2, arXiv:1505.04597.
    """
    position = np.arange(start, stop, dtype=np.intp)
    if padding == "zero":
        return np.where((position >= 0) & (position < size), position, -1)
    if padding == "edge" or size == 1:
        return np.clip(position, 0, size - 1)
    period = 2 * (size - 1)
    folded = np.mod(position, period)
    mirrored: NDArray[np.intp] = np.minimum(folded, period - folded)
    return mirrored
