"""Small scenes and models on disk that end-to-end tests share."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import torch
from affine import Affine
from scipy import ndimage

from pipeline.model import Model, ModelSpec, Scaling, UNet, UNetConfig, save_model
from tests.networks import unet_model

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

UTM = "EPSG:32633"
NORTH_UP = Affine(10, 0, 500_000, 0, -10, 5_000_000)


def smooth_values(bands: int, shape: tuple[int, int], *, seed: int = 0) -> NDArray[np.uint16]:
    """Blobs, `(band, y, x)` uint16 around 500, never 0."""
    rng = np.random.default_rng(seed)
    fields = np.stack([ndimage.gaussian_filter(rng.normal(size=shape), 5) for _ in range(bands)])
    scaled = fields / (fields.std() or 1) * 250 + 500
    return scaled.clip(1, 1000).astype(np.uint16)


def write_scene(path: Path, data: NDArray[Any], **profile: Any) -> Path:
    """A GeoTIFF; UTM, 10 m and no nodata unless `profile` says otherwise."""
    names = profile.pop("names", None)
    settings: dict[str, Any] = {
        "driver": "GTiff",
        "count": data.shape[0],
        "height": data.shape[1],
        "width": data.shape[2],
        "dtype": data.dtype,
        "crs": UTM,
        "transform": NORTH_UP,
        **profile,
    }
    with rasterio.open(path, "w", **settings) as file:
        file.write(data)
        if names:
            file.descriptions = names
    return path


def save_unet(folder: Path, **config: Any) -> Model:
    """A random U-Net as a model folder, bands b0 and b1, classes c0, c1, c2."""
    made = unet_model(**config)
    assert isinstance(made.network, UNet)
    return save_model(folder, made.network, made.spec)


def save_threshold_model(folder: Path, *, bands: int = 2, at: float = 500.0) -> Model:
    """A U-Net whose weights are set so that class 1 is where the first band exceeds `at`: smooth, few polygons."""
    config = UNetConfig(bands=bands, outputs=2, depth=1, width=2, norm="none")
    network = UNet(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.encoder[0][0].weight[0, 0, 1, 1] = 1.0  # type: ignore[index]
        network.encoder[0][0].bias[0] = 10.0  # type: ignore[index]
        network.encoder[0][2].weight[0, 0, 1, 1] = 1.0  # type: ignore[index]
        network.decoder[0][0].weight[0, 0, 1, 1] = 1.0  # type: ignore[index]
        network.decoder[0][2].weight[0, 0, 1, 1] = 1.0  # type: ignore[index]
        network.head.weight[1, 0] = 1.0
        network.head.bias[1] = -10.0
    spec = ModelSpec(
        name="threshold",
        bands=tuple(f"b{i}" for i in range(bands)),
        classes=("low", "high"),
        scaling=Scaling(scale=(1.0,) * bands, offset=(0.0,) * bands, mean=(at,) * bands, std=(100.0,) * bands),
    )
    return save_model(folder, network, spec)


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
