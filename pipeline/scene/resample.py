"""Values of a grid at positions between its pixels: four kernels, each a function of the position alone.

A position is given in pixels of the source, counted from its corner, never from the window that was read. So a value
does not depend on which window it was asked with, which GDAL's warper does not promise
([why not](docs/adr/0018-sources-on-one-grid.md)). Knows arrays only. Import it where it is first needed: Numba takes
half a second.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.grid import Window
    from pipeline.scene.placement import Kernel

_BILINEAR, _CUBIC, _AVERAGE = 0, 1, 2
_CODES = {"bilinear": _BILINEAR, "cubic": _CUBIC, "average": _AVERAGE}
_RADIUS = {"nearest": 0.5, "bilinear": 1.0, "cubic": 2.0, "average": 0.5}
_EDGE = 1e-6
"""Of a pixel: positions closer than this to an edge lie in the pixel after it, whatever rounding did to them."""


def reach(kernel: Kernel, scale: float) -> int:
    """Whole pixels of the source that a kernel needs around a position.

    Args:
        kernel: Which.
        scale: Source pixels per target pixel along the axis.
    """
    return math.ceil(_RADIUS[kernel] * max(1.0, scale)) + 1


_SAME_SIZE = 1.05
"""Pixels that are larger by less than this leave kernels as they are."""


def nearest(
    data: NDArray[Any], valid: NDArray[np.bool_], outer: Window, rows: NDArray[Any], cols: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The pixel that each position lies in.

    Args:
        data: Shape `(band, y, x)`, covering `outer`.
        valid: Shape of `data`, True = usable.
        outer: Window of the source.
        rows: Positions down the source, `(y, 1)` or `(y, x)`; NaN where there is none.
        cols: Positions along the source, `(1, x)` or `(y, x)`.

    Returns:
        Values and validity, `(band, y, x)`; invalid where a position lies outside `outer`.
    """
    down, inside_down = _index(rows, outer.row_off, outer.height)
    along, inside_along = _index(cols, outer.col_off, outer.width)
    values = data[:, down, along]
    return values, valid[:, down, along] & inside_down & inside_along


def _index(positions: NDArray[Any], start: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    known = np.isfinite(positions)
    index = np.floor(np.where(known, positions, 0.0) + _EDGE).astype(np.int64) - start
    return index.clip(0, size - 1), known & (index >= 0) & (index < size)


def resampled(
    data: NDArray[Any],
    valid: NDArray[np.bool_],
    outer: Window,
    rows: NDArray[Any],
    cols: NDArray[Any],
    *,
    kernel: Kernel,
    scale_yx: tuple[float, float],
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Weighted means around positions, for the kernels that are not `nearest`; arguments as there.

    Invalid pixels get no weight. A result is valid where the pixel under its position is; of `average`, where at least
    half of its area is. Kernels are as wide as a target pixel where that is larger than the source's, so that nothing
    is skipped. Whole numbers are rounded half up and kept within their type.

    Returns:
        Values in the type of `data` and validity, `(band, y, x)`.
    """
    shape = np.broadcast_shapes(rows.shape, cols.shape)
    rows, cols = np.broadcast_to(rows, shape), np.broadcast_to(cols, shape)
    values = np.zeros((len(data), *shape), data.dtype)
    usable = np.zeros((len(data), *shape), np.bool_)
    for band in range(len(data)):
        plane = np.ascontiguousarray(data[band], np.float64)
        good = np.ascontiguousarray(valid[band])
        out = np.zeros(shape, np.float64)
        _fill(
            out, usable[band], plane, good, outer.row_off, outer.col_off, rows, cols,
            _CODES[kernel], float(scale_yx[0]), float(scale_yx[1]),
        )  # fmt: skip
        values[band] = _stored(out, data.dtype)
    return values, usable


def _stored(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    if np.issubdtype(dtype, np.floating):
        return values.astype(dtype)
    limits = np.iinfo(dtype.name)
    return np.floor(values + 0.5).clip(limits.min, limits.max).astype(dtype)


def _compiled(function: Callable[..., Any]) -> Any:
    """Compiled when first called, and kept on disk where there is a place for it: beside this file, or in a cache."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # an installation that cannot be written to, and no home
        return njit(nogil=True)(function)


@_compiled
def _weight(distance: float, code: int) -> float:
    """Of a pixel whose centre lies so far from the position, in units of the kernel."""
    x = abs(distance)
    if code == _BILINEAR:
        return max(0.0, 1.0 - x)
    if x <= 1.0:  # Keys 1981, a = -1/2
        return (1.5 * x - 2.5) * x * x + 1.0
    return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0 if x < 2.0 else 0.0  # noqa: PLR2004


@_compiled
def _taps(position: float, scale: float, code: int, weights: NDArray[np.float64]) -> tuple[int, int]:
    """Fill `weights` for one axis; returns the first pixel and how many."""
    width = scale if scale > _SAME_SIZE else 1.0
    if code == _AVERAGE:
        low, high = position - scale / 2, position + scale / 2
        first = math.floor(low + _EDGE)
        count = math.ceil(high - _EDGE) - first
        for k in range(count):
            weights[k] = min(high, first + k + 1.0) - max(low, first + k + 0.0)
        return first, count
    radius = (1.0 if code == _BILINEAR else 2.0) * width
    first = math.ceil(position - 0.5 - radius)
    count = math.floor(position - 0.5 + radius) - first + 1
    for k in range(count):
        weights[k] = _weight((first + k + 0.5 - position) / width, code)
    return first, count


@_compiled
def _fill(
    out: Any, usable: Any, plane: Any, good: Any, row0: int, col0: int, rows: Any, cols: Any,
    code: int, scale_y: float, scale_x: float,
) -> None:  # fmt: skip
    height, width = plane.shape
    down = np.empty(int(4 * max(scale_y, 1.0)) + 8, np.float64)
    along = np.empty(int(4 * max(scale_x, 1.0)) + 8, np.float64)
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            y, x = rows[r, c], cols[r, c]
            if not (math.isfinite(y) and math.isfinite(x)):
                continue
            i, j = math.floor(y + _EDGE) - row0, math.floor(x + _EDGE) - col0
            if code != _AVERAGE and (i < 0 or j < 0 or i >= height or j >= width or not good[i, j]):
                continue
            first_row, num_rows = _taps(y, scale_y, code, down)
            first_col, num_cols = _taps(x, scale_x, code, along)
            total = weight = whole = 0.0
            for k in range(num_rows):
                i = first_row + k - row0
                for m in range(num_cols):
                    w = down[k] * along[m]
                    whole += w
                    j = first_col + m - col0
                    if i >= 0 and j >= 0 and i < height and j < width and good[i, j]:
                        total += w * plane[i, j]
                        weight += w
            if weight > (0.5 - 1e-9) * whole:
                out[r, c] = total / weight
                usable[r, c] = True
            elif code != _AVERAGE and weight != 0.0:  # a pixel alone among invalid ones
                out[r, c] = plane[math.floor(y + _EDGE) - row0, math.floor(x + _EDGE) - col0]
                usable[r, c] = True
