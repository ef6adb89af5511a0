"""A small labelled scene that a network can learn, and settings for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from scipy import ndimage

from tests.scenes import NORTH_UP, UTM, write_scene

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SIZE = 192


def blobs(shape: tuple[int, int] = (SIZE, SIZE), *, seed: int = 0) -> NDArray[np.uint8]:
    """Classes 0 and 1 in blobs, about half and half."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 6)
    return (field > 0).astype(np.uint8)


def write_labelled(folder: Path, *, shape: tuple[int, int] = (SIZE, SIZE), seed: int = 0) -> tuple[Path, Path]:
    """`scene.tif`, two bands that tell the class but for noise, and `labels.tif` on the same pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    classes = blobs(shape, seed=seed)
    noise = np.random.default_rng(seed + 1).normal(0, 60, (2, *shape))
    bands = (500 + 200 * classes[None] * np.array([1, -1])[:, None, None] + noise).clip(1, 1000).astype(np.uint16)
    scene = write_scene(folder / "scene.tif", bands, names=("red", "nir"), nodata=0)
    return scene, write_labels(folder / "labels.tif", classes)


def write_labels(path: Path, classes: NDArray[np.uint8], **profile: Any) -> Path:
    """A raster of class values on the scene's pixels, 255 for unknown."""
    settings: dict[str, Any] = {
        "driver": "GTiff", "count": 1, "height": classes.shape[0], "width": classes.shape[1], "dtype": "uint8",
        "crs": UTM, "transform": NORTH_UP, "nodata": 255, **profile,
    }  # fmt: skip
    with rasterio.open(path, "w", **settings) as file:
        file.write(classes, 1)
    return path


def document(scene: Path, labels: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a small training, as a file would hold them."""
    return {
        "name": "blobs",
        "classes": [{"name": "low", "background": True}, "high"],
        "scenes": [{"scene": str(scene), "labels": str(labels)}],
        "split": {"block_px": 64, "guard_px": 4, "val": 0.2, "test": 0.2},
        "chips": {"size": 32, "batch": 4},
        "network": {"depth": 2, "width": 4},
        "schedule": {"steps": 12, "check_every": 6, "learning_rate": 0.01},
        "precision": "float32",
        "threads": 1,
        **changes,
    }
