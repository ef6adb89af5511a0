"""A network that others trained, on real scenes, against the answers of its authors' own code."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.errors import NotGeoreferencedWarning
from scipy.ndimage import binary_dilation

import pipeline as sm
from pipeline.grid import Window
from pipeline.model import ModelSpec, Scaling, adopt_model, openvino

pytest.importorskip("onnxruntime")
pytestmark = [pytest.mark.real, pytest.mark.xdist_group("real")]

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
BANDS = ("blue", "green", "red", "nir", "swir16", "swir22")
HALF_STEP = 0.5 / 250
"""Of probabilities as they are stored."""


@pytest.fixture(scope="module", autouse=True)
def _data() -> None:
    if not DATA.is_dir():
        pytest.skip("real scenes not found beside the checkout")


def _model(folder: Path, *, scale: float) -> sm.Model:
    """As its card says: reflectance in, probability of cloud out; sides are padded by the network itself."""
    spec = ModelSpec(
        name="cloud",
        bands=BANDS,
        classes=("clear", "cloud"),
        scaling=Scaling(scale=(scale,) * 6, offset=(0.0,) * 6, mean=(0.0,) * 6, std=(1.0,) * 6),
        activation="none",
        outputs=1,
        padding="network",
    )
    return adopt_model(folder, DATA / "models" / "cloud_unet_6band.onnx", spec)


def _golden(name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    parts = []
    warnings.simplefilter("ignore", NotGeoreferencedWarning)  # of one the scene has no CRS
    for kind in ("prob", "mask"):
        with rasterio.open(DATA / "golden" / f"cloud6__{name}_{kind}.tif") as source:
            parts.append(source.read(1))
    return parts[0], parts[1]


def test_the_probe_finds_what_its_card_says(tmp_path: Path) -> None:
    traits = _model(tmp_path / "cloud", scale=1e-4).traits
    assert (traits.stride, traits.halo_px, traits.size_multiple, traits.tiling) == (4, 24, 4, "exact")


SCENES = [("scenes/s2_l1c_t19udp_13band.tif", "t19udp", 1e-4), ("labelled/cloud_s2_toa6.tif", "cloud_s2", 1.0)]


@pytest.mark.parametrize(
    "backend",
    [
        "onnxruntime",
        pytest.param("openvino", marks=pytest.mark.skipif(not openvino.available(), reason="OpenVINO not installed")),
    ],
)
@pytest.mark.parametrize(("scene", "name", "scale"), SCENES)
def test_masks_and_probabilities_equal_the_golden_ones(
    tmp_path: Path, backend: str, scene: str, name: str, scale: float
) -> None:
    """Farther than 32 px from nodata, under which the golden answers fed the stored zeros."""
    model = _model(tmp_path / "cloud", scale=scale)
    options: dict[str, Any] = {"backend": backend, "precision": "float32", "patch": 240, "vectors": "none"}
    if name == "cloud_s2":
        options["allow_no_crs"] = True
    sm.segment(DATA / scene, model, tmp_path / "out", **options, probabilities=True)
    probability, mask = _golden(name)
    with rasterio.open(tmp_path / "out" / "mask.tif") as source:
        ours = source.read(1)
    assert np.array_equal(ours == 255, mask == 0)
    near = binary_dilation(mask == 0, iterations=32, structure=np.ones((3, 3)))
    assert (~near).sum() > 15_000
    close_call = np.abs(probability - 0.5) < 1e-5
    assert ((ours + 1 == mask) | near | close_call).all()
    with rasterio.open(tmp_path / "out" / "probabilities.tif") as source:
        stored = source.read(2).astype(np.float32) / 250
    assert np.abs(stored - probability)[~near].max() <= HALF_STEP + 1e-4


@pytest.mark.parametrize(("scene", "name", "scale"), SCENES)
def test_lazy_probabilities_equal_the_golden_ones(tmp_path: Path, scene: str, name: str, scale: float) -> None:
    options: dict[str, Any] = {"allow_no_crs": True} if name == "cloud_s2" else {}
    lazy = sm.predict(DATA / scene, _model(tmp_path / "cloud", scale=scale), patch=240, **options)
    probability, mask = _golden(name)
    near = binary_dilation(mask == 0, iterations=32, structure=np.ones((3, 3)))
    assert np.abs(lazy.sel({"class": "cloud"}).values - probability)[~near].max() <= 1e-4


@pytest.mark.parametrize(("kind", "classes"), [("sigmoid_bsx1", ("other", "coffee")), ("softmax_bsx2", ("a", "b"))])
def test_fixed_sizes_are_blended_over_a_whole_scene(tmp_path: Path, kind: str, classes: tuple[str, ...]) -> None:
    """These graphs are 1 x 1 convolutions: however they are tiled, each pixel has one answer."""
    spec = ModelSpec(
        name="io",
        bands=("red", "green", "blue"),
        classes=classes,
        scaling=Scaling(scale=(1 / 255,) * 3, offset=(0.0,) * 3, mean=(0.0,) * 3, std=(1.0,) * 3),
        activation="none",
        outputs=1 if "1" in kind else None,
    )
    model = adopt_model(tmp_path / "io", DATA / "models/io_contract" / f"one_output_{kind}x512x512.onnx", spec)
    assert model.traits.tiling == "blend"
    scene = sm.open_scene(DATA / "scenes/banepa_rgb.tif")
    lazy = sm.predict(scene, model, precision="float32")
    part = lazy[:, 600:900, 1100:1500].values
    assert np.isfinite(part).all()
    assert np.allclose(part.sum(axis=0), 1, atol=1e-5)
    data = scene.read(Window(row_off=400, col_off=900, height=512, width=512)).astype(np.float32) / 255
    with torch.inference_mode():
        reference = model.network(torch.from_numpy(data)[None])[0].numpy()
    inner = lazy[:, 600:900, 1100:1400].values[-1]
    assert np.abs(inner - reference[-1, 200:500, 200:500]).max() <= 1e-5
