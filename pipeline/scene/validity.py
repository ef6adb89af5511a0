"""Which stored values are usable, from nodata values and finiteness; masks of files are added by who reads them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.scene.base import Band


def as_stored(nodata: float | None, dtype: np.dtype[Any]) -> Any:
    """The value that pixels of `dtype` hold where they equal `nodata`; None when no pixel can.

    NaN gives None too: pixels that are not finite are invalid whatever the file declares.
    """
    if nodata is None or math.isnan(nodata):
        return None
    if np.issubdtype(dtype, np.floating):
        with np.errstate(over="ignore"):  # 1e39 in a float32 file is inf, invalid anyway
            return dtype.type(nodata)
    info = np.iinfo(dtype.name)  # the name: numpy's stubs want an integer type
    fits = float(nodata).is_integer() and info.min <= int(nodata) <= info.max
    return dtype.type(int(nodata)) if fits else None


def can_occur(nodata: float, dtype: np.dtype[Any]) -> bool:
    """Whether a pixel of `dtype` can hold `nodata` at all."""
    if math.isnan(nodata):
        return bool(np.issubdtype(dtype, np.floating))
    return as_stored(nodata, dtype) is not None


def valid_by_value(data: NDArray[Any], bands: Sequence[Band]) -> NDArray[np.bool_] | None:
    """True where a stored value is finite and not its band's nodata.

    Args:
        data: Shape `(band, y, x)`, stored values.
        bands: The bands of axis 0.

    Returns:
        Shape `(band, y, x)`, or None when no value can be invalid.
    """
    values = [as_stored(band.nodata, data.dtype) for band in bands]
    finite = np.isfinite(data) if np.issubdtype(data.dtype, np.floating) else None
    if all(v is None for v in values):
        return finite
    first = values[0]
    if all(v is not None and v == first for v in values):
        valid: NDArray[np.bool_] = np.not_equal(data, first)
    else:
        valid = np.ones(data.shape, bool)
        for plane, row, value in zip(valid, data, values, strict=True):
            if value is not None:
                np.not_equal(row, value, out=plane)
    return valid if finite is None else np.logical_and(valid, finite, out=valid)
