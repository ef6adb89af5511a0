"""Small rasters written straight with rasterio, for tests of the scene room."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from affine import Affine

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

TRANSFORM = Affine(2.0, 0.0, 500_000.0, 0.0, -2.0, 5_000_000.0)


def noise(bands: int, height: int, width: int, *, dtype: str = "uint16", seed: int = 0) -> NDArray[Any]:
    """Random pixels, shape `(band, y, x)`, all different enough that no collar is suspected."""
    rng = np.random.default_rng(seed)
    if np.issubdtype(np.dtype(dtype), np.floating):
        return rng.standard_normal((bands, height, width)).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(1, min(info.max, 30_000), (bands, height, width)).astype(dtype)


def write_tif(path: Path, data: NDArray[Any], **options: Any) -> Path:
    """GeoTIFF of `data` `(band, y, x)` in EPSG:32633; `crs=None` leaves the CRS away, others go to rasterio."""
    descriptions = options.pop("descriptions", None)
    colorinterp = options.pop("colorinterp", None)
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "count": data.shape[0],
        "height": data.shape[1],
        "width": data.shape[2],
        "dtype": data.dtype,
        "crs": "EPSG:32633",
        "transform": TRANSFORM,
    }
    with rasterio.open(path, "w", **{**profile, **options}) as dataset:
        if colorinterp:
            dataset.colorinterp = colorinterp
        if descriptions:
            dataset.descriptions = descriptions
        dataset.write(data)
    return path


def tiff_pages(count: int, *, big: bool = False, order: str = "<", cut_block: int | None = None) -> bytes:
    """A TIFF of `count` pages of 8 x 8 bytes, two strips each, page k full of k + 1, byte by byte.

    `cut_block` moves that strip of the last page past the end of the file.
    """
    word, head = ("Q", 16) if big else ("I", 8)
    magic = b"II" if order == "<" else b"MM"
    version = struct.pack(order + "HHHQ", 43, 8, 0, head) if big else struct.pack(order + "HI", 42, head)
    out = magic + version
    entry, count_type = (f"{order}HHQ", "Q") if big else (f"{order}HHI", "H")
    for page in range(count):
        tags = [(256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (277, 1), (278, 4)]
        directory = struct.calcsize(order + count_type) + (len(tags) + 2) * (20 if big else 12) + struct.calcsize(word)
        start = len(out)
        tables = start + directory
        strips = tables + 2 * 2 * struct.calcsize(word)
        offsets = [strips, strips + 32]
        if cut_block is not None and page == count - 1:
            offsets[cut_block] = 10_000
        raw = struct.pack(order + count_type, len(tags) + 2)
        kind = 16 if big else 4
        values = [(tag, 1, value) for tag, value in tags]
        values += [(273, 2, tables), (279, 2, tables + 2 * struct.calcsize(word))]
        values.sort()
        for tag, number, value in values:
            single = order + ("Q" if big else "I")
            # two 32-bit values do not fit a classic entry, nor two 64-bit ones a big one: always an offset
            raw += struct.pack(entry, tag, kind, number) + struct.pack(single, value)
        following = strips + 64 if page < count - 1 else 0
        raw += struct.pack(order + word, following)
        raw += struct.pack(order + 2 * word, *offsets) + struct.pack(order + 2 * word, 32, 32)
        out += raw + bytes([page + 1]) * 64
    return out
