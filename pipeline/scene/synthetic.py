"""A synthetic aerial scene with its truth, for the demo and for measuring: any size, written block by block."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyogrio
import rasterio
import shapely
from affine import Affine
from rasterio.windows import Window as RasterioWindow

from pipeline.errors import UsageError
from pipeline.grid import Window, iter_windows
from pipeline.legend import ClassInfo, Legend
from pipeline.scene.synthetic_paint import paint

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from numpy.typing import NDArray

SYNTHETIC_LEGEND = Legend(
    (
        ClassInfo(value=0, name="open land", color=(225, 225, 215), background=True),
        ClassInfo(value=1, name="forest", color=(0, 110, 70)),
        ClassInfo(value=2, name="water", color=(60, 130, 220)),
        ClassInfo(value=3, name="road", color=(240, 200, 60)),
        ClassInfo(value=4, name="building", color=(213, 94, 0)),
    )
)
"""Classes of the truth; open land is the background."""
BAND_NAMES = ("blue", "green", "red", "nir")
"""Bands of the scene, in order."""
PIXEL_SIZE_M = 1.0
"""Ground size of a pixel."""
_STEP_PX = 1024  # side of what is painted at once; a multiple of the file's blocks
_ORIGIN_XY = (402_000.0, 5_812_000.0)  # EPSG:32633, somewhere in Brandenburg
_COLLAR_FRAC = 0.065  # the scene is tilted by this much: half of it per side has no data
_GDAL_CACHE_BYTES = 64 * 2**20  # rasterio takes small numbers for bytes, GDAL for megabytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticScene:
    """Where a synthetic scene and its truth are, and how they are meant to be used."""

    scene_path: Path
    """GeoTIFF, uint16, bands `BAND_NAMES`, reflectance x 10 000, nodata 0, EPSG:32633, 1 m."""
    truth_path: Path
    """GeoTIFF on the same grid, uint8, values of `legend`, nodata 255."""
    legend: Legend
    """What the values of the truth mean."""
    train_window: Window
    """Left half: for training."""
    test_window: Window
    """Right half: not seen in training."""
    split_path: Path
    """GeoPackage of areas with an attribute `split`: most of the left half is train, a strip of it val, the right half
    test."""


def write_synthetic_scene(
    folder: str | os.PathLike[str],
    *,
    size_px: int = 4096,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> SyntheticScene:
    """Write `scene.tif`, `truth.tif` and `split.gpkg`: fields, forests, lakes, a river, roads, villages from above.

    The world is a function of place and `seed`: a smaller scene is the upper left corner of a larger one but for the
    collar without data along its left and right sides. Memory does not depend on `size_px`.

    Args:
        folder: Made if it does not exist. Files of the same names are replaced.
        size_px: Height and width, at least 64.
        seed: Which world.
        progress: Called with the share that is done, up to 1.0.

    Raises:
        UsageError: CF-013, `size_px` too small.
    """
    if size_px < 64:  # noqa: PLR2004
        raise UsageError(
            f"size_px={size_px} is too small for a landscape, at least 64",
            code="CF-013",
            title="Synthetic scene too small",
            fix="give 1024 or more",
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    scene_path, truth_path = folder / "scene.tif", folder / "truth.tif"
    steps = list(iter_windows((size_px, size_px), (_STEP_PX, _STEP_PX)))
    with (
        rasterio.Env(GDAL_CACHEMAX=_GDAL_CACHE_BYTES),
        rasterio.open(scene_path, "w", **_profile(size_px, count=4, dtype="uint16", nodata=0)) as scene,
        rasterio.open(truth_path, "w", **_profile(size_px, count=1, dtype="uint8", nodata=255)) as truth,
    ):
        _describe(scene, truth)
        for number, window in enumerate(steps):
            pixels, classes = _expose(window, size_px=size_px, seed=seed)
            where = RasterioWindow(window.col_off, window.row_off, window.width, window.height)
            scene.write(pixels, window=where)
            truth.write(classes, 1, window=where)
            if progress is not None:
                progress((number + 1) / len(steps))
    half = size_px // 2
    _write_split(folder / "split.gpkg", size_px)
    return SyntheticScene(
        split_path=folder / "split.gpkg",
        scene_path=scene_path,
        truth_path=truth_path,
        legend=SYNTHETIC_LEGEND,
        train_window=Window(row_off=0, col_off=0, height=size_px, width=half),
        test_window=Window(row_off=0, col_off=half, height=size_px, width=size_px - half),
    )


def _write_split(path: Path, size_px: int) -> None:
    """Columns for training, validation and test, with a few between them that belong to none."""
    half, guard = size_px // 2, size_px // 128
    columns = {
        "train": (0, half * 3 // 4 - guard),
        "val": (half * 3 // 4 + guard, half - guard),
        "test": (half + guard, size_px),
    }
    x, y = _ORIGIN_XY
    boxes = [
        shapely.box(x + first * PIXEL_SIZE_M, y - size_px * PIXEL_SIZE_M, x + stop * PIXEL_SIZE_M, y)
        for first, stop in columns.values()
    ]
    path.unlink(missing_ok=True)
    pyogrio.raw.write(
        path,
        shapely.to_wkb(np.array(boxes, dtype=object)),
        [np.array(list(columns), dtype=object)],
        ["split"],
        layer="split",
        driver="GPKG",
        geometry_type="Polygon",
        crs="EPSG:32633",
    )


def _expose(window: Window, *, size_px: int, seed: int) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Pixels and classes of a window as they are stored: whole numbers, 1 at least, and nothing in the collar."""
    colour, classes = paint(window, seed=seed)
    pixels = np.clip(colour, 1, 10_000).astype(np.uint16)
    down = ((np.arange(window.row_off, window.row_stop) + 0.5) / size_px)[:, np.newaxis]
    right = (np.arange(window.col_off, window.col_stop) + 0.5) / size_px
    outside = (right < _COLLAR_FRAC * down) | (right > 1 - _COLLAR_FRAC * (1 - down))
    if outside.any():
        pixels[:, outside] = 0
        classes[outside] = SYNTHETIC_LEGEND.nodata
    return pixels, classes


def _describe(scene: Any, truth: Any) -> None:
    for number, name in enumerate(BAND_NAMES, start=1):
        scene.set_band_description(number, name)
    scene.scales = (1e-4,) * len(BAND_NAMES)
    truth.set_band_description(1, "class")
    truth.write_colormap(1, {c.value: (*c.color, 255) for c in SYNTHETIC_LEGEND})
    truth.update_tags(**{f"class_{c.value}": c.name for c in SYNTHETIC_LEGEND})


def _profile(size_px: int, *, count: int, dtype: str, nodata: int) -> dict[str, Any]:
    block = 512 if size_px >= 512 else 16 * max(size_px // 16, 1)  # noqa: PLR2004
    return {
        "driver": "GTiff", "height": size_px, "width": size_px, "count": count, "dtype": dtype, "nodata": nodata,
        "crs": "EPSG:32633", "transform": Affine(PIXEL_SIZE_M, 0, _ORIGIN_XY[0], 0, -PIXEL_SIZE_M, _ORIGIN_XY[1]),
        "tiled": True, "blockxsize": block, "blockysize": block, "bigtiff": "IF_SAFER",
        "compress": "deflate", "zlevel": 1, "predictor": 2, "interleave": "pixel",
    }  # fmt: skip
