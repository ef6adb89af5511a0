"""Three labelled scenes: synthetic land cover, a synthetic coast, and the buildings of a real town."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.scene import write_synthetic_scene

REAL_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
COAST_PX = 1536


def land_cover(folder: Path) -> dict[str, Any]:
    """Fields, forests, water, roads and buildings at 1 m, as in `scenemask demo`."""
    made = write_synthetic_scene(folder, size_px=2048, seed=0)
    return {
        "name": "land cover",
        "classes": [{"name": c.name, "color": list(c.color), "background": c.background} for c in made.legend],
        "scenes": [{"scene": str(made.scene_path), "labels": str(made.truth_path)}],
        "split": {"areas": str(made.split_path)},
    }


def buildings(_: Path) -> dict[str, Any]:
    """Banepa, Nepal, at 0.3 m; see configs/train/banepa-buildings.yaml."""
    labels = REAL_DATA / "labels"
    return {
        "name": "buildings",
        "classes": [{"name": "background", "background": True}, "building"],
        "scenes": [
            {
                "scene": str(REAL_DATA / "scenes" / "banepa_rgb.tif"),
                "labels": str(labels / "banepa_buildings.geojson"),
                "label_class": "building",
            }
        ],
        "downsample": 2,
        "split": {"areas": str(labels / "banepa_splits.geojson")},
    }


def coast(folder: Path) -> dict[str, Any]:
    """Land and water along a ragged coast at 10 m: blue, green, red, nir; see `_coast` for what makes it hard."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels, water = _coast(COAST_PX, seed=0)
    profile = {
        "driver": "GTiff", "height": COAST_PX, "width": COAST_PX, "crs": "EPSG:32632",
        "transform": Affine(10, 0, 500_000, 0, -10, 6_000_000), "tiled": True, "compress": "deflate",
    }  # fmt: skip
    with rasterio.open(folder / "scene.tif", "w", count=4, dtype="uint16", **profile) as file:
        file.write(pixels)
        file.descriptions = ("blue", "green", "red", "nir")
    with rasterio.open(folder / "truth.tif", "w", count=1, dtype="uint8", nodata=255, **profile) as file:
        file.write(water, 1)
    half, guard = COAST_PX * 5, 160  # metres
    left = shapely.box(500_000, 6_000_000 - 2 * half, 500_000 + half - guard, 6_000_000)
    right = shapely.box(500_000 + half + guard, 6_000_000 - 2 * half, 500_000 + 2 * half, 6_000_000)
    frame = geopandas.GeoDataFrame({"split": ["train", "test"]}, geometry=[left, right], crs="EPSG:32632")
    frame.to_file(folder / "split.gpkg")
    return {
        "name": "coast",
        "classes": [{"name": "land", "background": True}, "water"],
        "scenes": [{"scene": str(folder / "scene.tif"), "labels": str(folder / "truth.tif")}],
        "split": {"areas": str(folder / "split.gpkg")},
    }


DATASETS = {"land-cover": land_cover, "buildings": buildings, "coast": coast}


def _coast(side: int, *, seed: int) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Reflectance x 10 000 `(band, y, x)` and water `(y, x)`.

    A threshold on one index does not find it all: water is turbid along the shore and glints in stripes, and land has
    wet flats, dark forest, and shadows of clouds that are as dark in the near infrared as water.
    """
    rng = np.random.default_rng(seed)

    def field(scales: tuple[float, ...], weights: tuple[float, ...]) -> NDArray[np.float64]:
        total = sum(
            w * _standard(ndimage.gaussian_filter(rng.normal(size=(side, side)), s, mode="wrap"))
            for s, w in zip(scales, weights, strict=True)
        )
        return _standard(np.asarray(total))

    height = field((90, 30, 10, 3), (1, 0.5, 0.2, 0.07))
    water = height < 0
    cover, patches = field((25, 6), (1, 0.4)), field((12, 4), (1, 0.5))
    forest, bare = cover > 0.5, cover < -0.6
    land = np.where(forest, 0, np.where(bare, 1, 2))[None]
    spectra = np.array(
        [[250, 400, 300, 2400], [1100, 1400, 1700, 2300], [500, 850, 700, 3200]], np.float64
    ).T  # fmt: skip
    pixels = spectra[:, land[0]] * (1 + 0.12 * patches)
    wet = np.clip(1 - height / 0.35, 0, 1) * ~water * (patches > -0.5)
    pixels *= 1 - np.array([0.3, 0.35, 0.4, 0.9])[:, None, None] * wet
    depth = np.clip(-height / 0.5, 0, 1)
    turbid = (1 - depth) * (0.5 + 0.5 * (patches > 0))
    clear = np.array([700, 550, 300, 120], np.float64)[:, None, None] * (1 - 0.3 * depth)
    muddy = np.array([900, 1300, 1300, 1100], np.float64)[:, None, None]
    sea = clear * (1 - turbid) + muddy * turbid
    stripes = np.sin(np.add.outer(np.arange(side), 0.4 * np.arange(side)) / 3.1 + 2 * cover) > 0.93
    sea += 700 * (stripes & (field((60,), (1,)) > 0.3))
    pixels = np.where(water, sea, pixels)
    shadow = ndimage.gaussian_filter((field((20, 8), (1, 0.5)) > 1.3).astype(float), 2)
    pixels *= 1 - np.array([0.45, 0.55, 0.6, 0.75])[:, None, None] * shadow
    pixels += rng.normal(0, 60, pixels.shape)
    return pixels.clip(1, 10_000).astype(np.uint16), water.astype(np.uint8)


def _standard(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((values - values.mean()) / values.std())
