"""What a scene hides: collars without a declared nodata, blocks never written. Cheap looks, made once at opening."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.enums import Interleaving, Resampling
from rasterio.windows import Window as RasterioWindow

from pipeline.scene.datasets import BLOCK_CACHE_BYTES, GDAL_ERRORS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.scene.tiff import TiffLayout

COLLAR_FRAC = 0.05
"""Share of pixels of one constant value above which a collar is suspected."""
_SAMPLE_PX = 256  # side of the decimated look
_SAMPLE_GRID = 16  # single pixels per side, where a decimated look would decode the whole file
_TINY_PX = 64**2  # in smaller scenes a few equal pixels are chance
_SMALL_PX = 2048**2  # scenes this small are looked at whole


def sparse_warning(layout: TiffLayout | None, *, declared: bool) -> str | None:
    """A sentence about blocks without data on disk; None where there are none, or nodata says what they mean.

    A file without any block is told of even then: one whose writer was killed looks like that.
    """
    if layout is None or layout.num_sparse == 0:
        return None
    if layout.is_blank:
        ask = "" if declared else " If that is meant, give --nodata 0."
        means = "nodata" if declared else "0"
        return (
            f"not one block of the file has data on disk, so that every pixel reads as {means}: was the program that "
            f"wrote it interrupted?{ask}"
        )
    if declared:
        return None
    percent = 100 * layout.num_sparse / layout.num_blocks
    return (
        f"{percent:.1f} % of the blocks have no data on disk and nodata is undeclared: they read as 0. "
        "Was the program that wrote the file interrupted? If 0 means missing, give --nodata 0."
    )


def collar_warning(dataset: Any, indexes: Sequence[int]) -> str | None:
    """A sentence about a constant collar along the border; None when there is none, or the pixels cannot be read.

    Reading errors are not ours to report here: the run meets them again, at the window concerned.
    """
    if dataset.width * dataset.height < _TINY_PX:
        return None
    try:
        value, share = _find_collar(dataset, list(indexes))
    except GDAL_ERRORS:
        return None
    if share <= COLLAR_FRAC:
        return None
    return (
        f"about {100 * share:.0f} % of the pixels, reaching in from the border, are {value:g} in all bands, and nodata "
        f"is undeclared: if that means missing, give --nodata {value:g}."
    )


def _find_collar(dataset: Any, indexes: list[int]) -> tuple[float, float]:
    """(value, share of pixels) of the most frequent constant of the border and what hangs together with it."""
    if dataset.width * dataset.height <= _SMALL_PX or _has_cheap_overviews(dataset):
        sample = _decimated(dataset, indexes)
        value, border_share = _border_constant(_border_of(sample))
    else:
        value, border_share = _border_constant(_read_border(dataset, indexes))
        if border_share <= COLLAR_FRAC:  # saves decoding blocks all over the scene
            return value, 0.0
        sample = _scattered(dataset, indexes)
    if border_share <= COLLAR_FRAC:
        return value, 0.0
    from scipy import ndimage  # noqa: PLC0415 - a tenth of a second, for scenes that may have a collar

    regions, _ = ndimage.label(np.all(sample == value, axis=0))
    touching = np.unique(_border_of(regions[np.newaxis]))
    return value, float(np.isin(regions, touching[touching > 0]).mean())


def _border_constant(border: NDArray[Any]) -> tuple[float, float]:
    """Most frequent value that all bands share along the border `(band, n)`, and its share of the border."""
    same = border[0][np.all(border == border[:1], axis=0)]
    if same.size == 0:
        return 0.0, 0.0
    values, counts = np.unique(same, return_counts=True)
    best = int(counts.argmax())
    return float(values[best]), float(counts[best] / border.shape[1])


def _border_of(sample: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([sample[:, 0], sample[:, -1], sample[:, :, 0], sample[:, :, -1]], axis=1)


def _decimated(dataset: Any, indexes: list[int]) -> NDArray[Any]:
    """Every so many pixels of the whole, `(band, y, x)`."""
    height, width = min(dataset.height, _SAMPLE_PX), min(dataset.width, _SAMPLE_PX)
    if _has_cheap_overviews(dataset):
        data: NDArray[Any] = dataset.read(
            indexes, out_shape=(len(indexes), height, width), resampling=Resampling.nearest
        )
        return data
    # Rows of blocks as they are: GDAL's own decimation goes through all blocks once per band and row.
    rows, cols = (
        ((np.arange(n) + 0.5) * size / n).astype(int) for n, size in ((height, dataset.height), (width, dataset.width))
    )
    step = min(max(dataset.block_shapes[0][0], 128), _MOST_ROWS)
    parts = []
    for row in range(0, dataset.height, step):
        window = RasterioWindow(0, row, dataset.width, min(step, dataset.height - row))
        inside = rows[(rows >= row) & (rows < row + step)] - row
        parts.append(dataset.read(indexes, window=window)[:, inside][:, :, cols])
    return np.concatenate(parts, axis=1)


_MOST_ROWS = 512
"""Read at a time."""


def _has_cheap_overviews(dataset: Any) -> bool:
    """Whether GDAL's cache holds a row of blocks of one: else it decodes them again for each band and row.

    Of 60 bands that lie together a block of 512² px has 63 MB, and an overview of 1500² px took minutes.
    """
    factors = dataset.overviews(1)
    if not factors:
        return False
    factor = max((n for n in factors if min(dataset.shape) // n >= _SAMPLE_PX), default=1)
    together = dataset.count if dataset.interleaving == Interleaving.pixel else 1
    (height, width), itemsize = dataset.block_shapes[0], np.dtype(dataset.dtypes[0]).itemsize
    across = -(-dataset.width // factor // width) * width
    return bool(across * height * together * itemsize <= BLOCK_CACHE_BYTES)


def _read_border(dataset: Any, indexes: list[int]) -> NDArray[Any]:
    """The four edges; first and last pixel of each row only, where rows are strips that would be decoded whole."""
    height, width = dataset.height, dataset.width
    edges = [RasterioWindow(0, 0, width, 1), RasterioWindow(0, height - 1, width, 1)]
    if dataset.block_shapes[0][1] < width:
        edges += [RasterioWindow(0, 0, 1, height), RasterioWindow(width - 1, 0, 1, height)]
    return np.concatenate([dataset.read(indexes, window=edge).reshape(len(indexes), -1) for edge in edges], axis=1)


def _scattered(dataset: Any, indexes: list[int]) -> NDArray[Any]:
    """Single pixels on a coarse grid, shape `(band, y, x)`."""
    height, width = dataset.shape
    rows, cols = (((np.arange(_SAMPLE_GRID) + 0.5) * n / _SAMPLE_GRID).astype(int).tolist() for n in (height, width))
    pixels = [dataset.read(indexes, window=RasterioWindow(col, row, 1, 1)) for row in rows for col in cols]
    return np.concatenate(pixels, axis=1).reshape(len(indexes), _SAMPLE_GRID, _SAMPLE_GRID)
