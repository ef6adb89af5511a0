"""Small scenes for the tests of the store, and a disk that is full."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from scipy.ndimage import gaussian_filter

from pipeline.grid import GeoBox, Window, iter_windows
from pipeline.legend import Legend, default_legend
from pipeline.store import sha256_array

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

UTM33 = CRS.from_epsg(32633).to_wkt()
NORTH_UP = Affine(10, 0, 500_000, 0, -10, 4_600_000)


def legend_of(count: int) -> Legend:
    return default_legend([f"class {i}" for i in range(count)], background="class 0")


def geobox_of(shape: tuple[int, int], *, transform: Affine = NORTH_UP, crs_wkt: str | None = UTM33) -> GeoBox:
    return GeoBox(shape=shape, transform=transform, crs_wkt=crs_wkt)


def smooth_mask(
    shape: tuple[int, int], *, classes: tuple[int, ...] = (0, 1, 5), seed: int = 0, nodata: int = 255
) -> NDArray[np.uint8]:
    """Regions like those of a real mask, a corner without class."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.standard_normal(shape), 6)
    bins = np.quantile(field, np.linspace(0, 1, len(classes) + 1)[1:-1])
    mask = np.array(classes, np.uint8)[np.digitize(field, bins)]
    mask[: shape[0] // 5, : shape[1] // 7] = nodata
    return mask


class Scene:
    """A mask `(y, x)`, or probabilities `(class, y, x)`, cut into tiles, with their hashes."""

    def __init__(self, pixels: NDArray[np.generic], tile_px: int, *, nodata: int = 255) -> None:
        self.pixels = pixels
        self.shape = (pixels.shape[-2], pixels.shape[-1])
        self.tiles = list(iter_windows(self.shape, (tile_px, tile_px)))
        self.digests: dict[int, str | None] = {}
        for i, window in enumerate(self.tiles):
            tile = self.read(window)
            self.digests[i] = None if (tile == nodata).all() else sha256_array(tile)

    def read(self, window: Window) -> NDArray[np.generic]:
        return self.pixels[..., window.row_off : window.row_stop, window.col_off : window.col_stop]


@contextlib.contextmanager
def tiny_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """A file system of `size_bytes` in memory; skips the test where none may be mounted."""
    import pytest

    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("cannot mount a small tmpfs here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
