"""A whole Sentinel-2 item in three resolutions, on disk, on a web server and in a bucket: one answer, few bytes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import torch

import pipeline as sm
from pipeline.access import Access
from pipeline.bucket import Bucket
from pipeline.grid import Window, iter_windows
from pipeline.model import ModelSpec, Scaling, adopt_model
from pipeline.scene import close_all
from tests.infra.moto_server import BUCKET, KEYS, moto_server
from tests.infra.range_server import RangeServer
from tests.scenes import sha256

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("onnxruntime")
pytestmark = [pytest.mark.real, pytest.mark.xdist_group("real")]

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
ITEM = DATA / "stac" / "s2_29rkh"
BANDS = ("blue", "green", "red", "nir", "swir16", "swir22")
OPTIONS: dict[str, Any] = {
    "resampling": "nearest",
    "backend": "onnxruntime",
    "precision": "float32",
    "vectors": "none",
    "patch": 600,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> sm.Model:
    if not DATA.is_dir():
        pytest.skip("real scenes not found beside the checkout")
    spec = ModelSpec(
        name="cloud",
        bands=BANDS,
        classes=("clear", "cloud"),
        scaling=Scaling(scale=(1e-4,) * 6, offset=(0.0,) * 6, mean=(0.0,) * 6, std=(1.0,) * 6),
        activation="none",
        outputs=1,
        padding="network",
    )
    return adopt_model(tmp_path_factory.mktemp("cloud"), DATA / "models" / "cloud_unet_6band.onnx", spec)


@pytest.fixture(scope="module")
def local(model: sm.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local")
    sm.segment(ITEM / "item.json", model, out, **OPTIONS)
    return out / "mask.tif"


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    close_all()


def _golden(kind: str) -> np.ndarray[Any, Any]:
    with rasterio.open(DATA / "golden" / f"cloud6__s2_29rkh_{kind}.tif") as source:
        pixels: np.ndarray[Any, Any] = source.read(1)
    return pixels


def test_what_is_read_gives_the_golden_answer_everywhere(model: sm.Model) -> None:
    """Sides filled as for the golden answer: by reflection to a multiple of 8."""
    scene = sm.open_scene(ITEM / "item.json", bands=BANDS, resampling="nearest")
    assert scene.geobox.shape == (1098, 1098)
    data = scene.read(Window(row_off=0, col_off=0, height=1098, width=1098)).astype(np.float32) * np.float32(1e-4)
    with torch.inference_mode():
        filled = np.pad(data, ((0, 0), (0, 6), (0, 6)), mode="reflect")
        found = model.network(torch.from_numpy(filled)[None])[0, 0, :1098, :1098].numpy()
    assert np.abs(found - _golden("prob")).max() <= 1e-4
    close_call = np.abs(_golden("prob") - 0.5) < 1e-5
    assert (((found >= 0.5) + 1 == _golden("mask")) | close_call).all()


def test_the_mask_is_the_golden_one(local: Path) -> None:
    """But at the right and lower rim, which our runs fill to a multiple of 4."""
    with rasterio.open(local) as source:
        ours = source.read(1)
    same = (ours + 1 == _golden("mask")) | (np.abs(_golden("prob") - 0.5) < 1e-5)
    assert same[:-32, :-32].all()


def test_a_web_server_gives_the_same_mask(model: sm.Model, local: Path, tmp_path: Path) -> None:
    with RangeServer(ITEM) as server:
        sm.segment(server.url("item.json"), model, tmp_path / "out", allow_loopback=True, **OPTIONS)
    assert sha256(tmp_path / "out" / "mask.tif") == sha256(local)


def test_a_bucket_gives_the_same_mask(
    model: sm.Model, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with moto_server() as endpoint:
        bucket = Bucket(BUCKET, Access(endpoint=endpoint))
        for path in (ITEM / "item.json", *ITEM.glob("B*.tif")):
            bucket.put_file(f"s2/{path.name}", path)
        sm.segment(f"s3://{BUCKET}/s2/item.json", model, tmp_path / "out", endpoint=endpoint, **OPTIONS)
    assert sha256(tmp_path / "out" / "mask.tif") == sha256(local)


def test_few_bytes_are_fetched_beside_those_of_the_windows() -> None:
    """And none of the assets that are not asked for."""
    windows = [w for w in iter_windows((1098, 1098), (150, 400)) if w.row_off < 450]
    with RangeServer(ITEM) as server:
        scene = sm.open_scene(
            server.url("item.json"), bands=BANDS, resampling="bilinear", access=Access(allow_loopback=True)
        )
        scene.read(Window(row_off=1090, col_off=1090, height=8, width=8))  # opens the files in this thread
        server.requests.clear()
        for window in windows:
            scene.read(window)
        fetched = sum(_length(ranges) for _, _, ranges in server.requests if ranges)
        files = {path.lstrip("/") for _, path, _ in server.requests}
    assert files == {"B02.tif", "B03.tif", "B04.tif", "B08.tif", "B11.tif", "B12.tif"}
    needed = 0
    for name in files:
        with rasterio.open(ITEM / name) as source:
            blocks = [(row, col) for (row, col), _ in source.block_windows(1) if row == 0]
            needed += sum(source.block_size(1, *block) for block in blocks)
    assert 0.9 * needed < fetched <= 1.3 * needed


def _length(ranges: str) -> int:
    match = re.fullmatch(r"bytes=(\d+)-(\d+)", ranges)
    assert match is not None
    return int(match[2]) - int(match[1]) + 1
