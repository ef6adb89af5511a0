"""Places along a Hilbert curve: what lies close in the plane comes close in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.vector.rings import Ints

LEVELS = 16
_STEP = 1 << 20
"""Cells at a time: a few dozen MB."""


def hilbert_codes(x: Ints, y: Ints, *, levels: int = LEVELS) -> Ints:
    """Place of each cell along the Hilbert curve through a square of `2**levels` cells a side.

    Args:
        x: Column of each cell, `0 <= x < 2**levels`, shape (cell,).
        y: Row, likewise.
        levels: How often the square is halved.

    Returns:
        Shape (cell,), from 0 at (0, 0) to `4**levels - 1`; neighbours on the curve share an edge.

    Source: Warren, Hacker's Delight, 2nd ed. 2013, chapter 16, after Lam and Shapiro 1994.
    """
    x, y, codes = x.copy(), y.copy(), np.zeros_like(x)
    for level in range(levels - 1, -1, -1):
        right, lower = x >> level & 1, y >> level & 1
        codes = codes << 2 | (3 * right ^ lower)
        # The upper quarters hold a transposed curve, the right one of them from its other end.
        turn = -(right & ~lower) & ((1 << level) - 1)
        x, y = x ^ turn, y ^ turn
        x, y = np.where(lower, x, y), np.where(lower, y, x)
    return codes


def hilbert_order(pixels: Ints, scene_hw: tuple[int, int]) -> NDArray[np.intp]:
    """Order of pixels along a Hilbert curve over their scene.

    Args:
        pixels: Row-major index of each pixel in the scene, shape (pixel,). Those in one cell of the curve, of which
            there are 65 536 along a side, come in ascending order.
        scene_hw: Height and width of the scene.
    """
    shift = max(0, (max(scene_hw) - 1).bit_length() - LEVELS)
    codes = np.empty_like(pixels)
    for start in range(0, len(pixels), _STEP):
        row, col = np.divmod(pixels[start : start + _STEP], scene_hw[1])
        codes[start : start + _STEP] = hilbert_codes(col >> shift, row >> shift)
    return np.lexsort((pixels, codes))
