"""Mask files for the tests of polygons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from affine import Affine
from scipy.ndimage import gaussian_filter

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

UTM = ("EPSG:32633", Affine(10, 0, 600_000, 0, -10, 6_600_000))
GRIDS = {
    "utm": UTM,
    "geographic": ("EPSG:4326", Affine(1e-4, 0, 13.0, 0, -1e-4, 60.0)),
    "mercator": ("EPSG:3857", Affine(10, 0, 1_500_000, 0, -10, 8_400_000)),
    "polar": ("EPSG:3031", Affine(500, 0, -900_000, 0, -500, 900_000)),
    "rotated": ("EPSG:32633", Affine.translation(6e5, 5e6) @ Affine.rotation(30) @ Affine.scale(10, -10)),
    "south-up": ("EPSG:32633", Affine(10, 0, 600_000, 0, 10, 6_600_000)),
}
NODATA = 255


def write_mask(
    path: Path,
    mask: NDArray[Any],
    *,
    crs: str | None = UTM[0],
    transform: Affine = UTM[1],
    nodata: float | None = NODATA,
    **options: Any,
) -> Path:
    """A GeoTIFF of one band."""
    height, width = mask.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=1, dtype=mask.dtype, crs=crs,
        transform=transform, nodata=nodata, **options,
    ) as file:  # fmt: skip
        file.write(mask, 1)
    return path


def blobs(side: int, *, classes: int = 5, sigma: float = 4.0, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth patches of several classes with a corner of nodata."""
    rng = np.random.default_rng(seed)
    best = np.full((side, side), -np.inf, np.float32)
    mask = np.zeros((side, side), np.uint8)
    for value in range(classes):
        noise = gaussian_filter(rng.standard_normal((side, side), dtype=np.float32), sigma, mode="wrap")
        mask[noise > best] = value
        best = np.maximum(best, noise)
    mask[: side // 5, : side // 4] = NODATA
    return mask
