"""Polygons as values of pixels: a pixel belongs to what its centre lies in, later shapes on top."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from affine import Affine
from rasterio.features import rasterize

from pipeline.scene.datasets import without_georeference

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.grid import Window


def burn(shapes: NDArray[np.object_], values: NDArray[Any], block: Window, *, fill: int, dtype: Any) -> NDArray[Any]:
    """Values `(y, x)` of the last shape that covers the centre of each pixel of a block.

    Args:
        shapes: In pixel coordinates, x = column, y = row.
        values: One per shape.
        block: Which pixels. The same for every window that needs one of them: a block's own origin rounds edges that
            run through pixel centres this way or that.
        fill: Where there is no shape.
        dtype: Of the result.
    """
    origin = Affine.translation(block.col_off, block.row_off)
    pairs = zip(shapes.tolist(), values.tolist(), strict=True)
    with without_georeference():  # the first block's origin looks like none
        burnt: NDArray[Any] = rasterize(pairs, out_shape=block.shape, transform=origin, fill=fill, dtype=dtype)
    return burnt
