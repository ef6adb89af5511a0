"""One block of a mask to polygons of its 4-connected pieces, in pixel coordinates of the scene. Knows no files.

The only function that another tracer has to replace is `trace_block`.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio.features

from pipeline.vector.rings import Rings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from numpy.typing import NDArray

    from pipeline.grid import Window

_GDAL_DTYPES = frozenset({"uint8", "uint16", "int16", "int32"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """Polygons of one block: each a 4-connected piece of one class, cut where the block ends."""

    rings: Rings
    """Outlines, in pixel coordinates of the scene."""
    values: NDArray[np.int64]
    """Class of each piece, shape (piece,)."""


def trace_block(
    mask_block: NDArray[np.generic],
    window: Window,
    include: Collection[int] | None = None,
    *,
    valid: NDArray[np.bool_] | None = None,
) -> Pieces:
    """Trace the pieces of a block.

    Args:
        mask_block: Shape `(y, x)` = `window.shape`, bool or any integer type, values below 2**31.
        window: Where the block lies in the scene.
        include: Classes to trace; None for all.
        valid: Same shape, True = usable; None where every pixel is.

    Returns:
        Pieces without a vertex on a straight line; in no promised order.
    """
    block = mask_block if mask_block.dtype.name in _GDAL_DTYPES else mask_block.astype(_narrow(mask_block.dtype))
    if include is not None:
        wanted = np.isin(block, list(include))
        valid = wanted if valid is None else valid & wanted
    if valid is not None and not valid.any():
        return _collect((), window)
    mask = None if valid is None or valid.all() else valid
    return _collect(rasterio.features.shapes(block, mask=mask, connectivity=4), window)


def _narrow(dtype: np.dtype[np.generic]) -> str:
    """A type that GDAL polygonizes (bool raises in rasterio) and that holds the class numbers."""
    return "uint8" if dtype.kind == "b" else "int32"


def _collect(shapes: Iterable[tuple[dict[str, Any], float]], window: Window) -> Pieces:
    """GeoJSON-like shapes as ragged arrays, moved to the window's place.

    Each shape is flattened at once: a list of all of them is millions of tuples, and Python's garbage collector walks
    them again and again (a third of the whole time).
    """
    coords = array("d")
    lengths, num_rings, values = array("q", [0]), array("q", [0]), array("q")
    for shape, value in shapes:
        rings = shape["coordinates"]
        for ring in rings:
            coords.extend(chain.from_iterable(ring))
            lengths.append(len(ring))
        num_rings.append(len(rings))
        values.append(int(value))
    xy = np.frombuffer(coords).reshape(-1, 2) + np.array([window.col_off, window.row_off])
    return Pieces(
        rings=Rings(
            coords=xy,
            ring_offsets=np.cumsum(np.frombuffer(lengths, np.int64)),
            polygon_offsets=np.cumsum(np.frombuffer(num_rings, np.int64)),
        ),
        values=np.frombuffer(values, np.int64),
    )
