"""Whole real scenes through the main job: grid kept, COG valid, polygons give the mask back."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from pyproj import Transformer
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import rasterize
from rio_cogeo.cogeo import cog_validate

import pipeline as sm
from pipeline.model import save_model
from pipeline.train import confusion, iou, make_train_settings, train_model

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("real")]

CLOUD_BANDS = ("B02", "B03", "B04", "B08", "B11", "B12")


def _train(
    scene: Path, labels: Path, folder: Path, *, classes: tuple[str, str], split: Any, **labelled: Any
) -> sm.Model:
    """A few steps, enough to tell classes roughly apart."""
    settings = {
        "name": folder.name,
        "classes": [{"name": classes[0], "background": True}, classes[1]],
        "scenes": [{"scene": str(scene), "labels": str(labels), **labelled}],
        "split": split,
        "chips": {"size": 128, "batch": 4},
        "network": {"depth": 3, "width": 8},
        "schedule": {"steps": 120, "check_every": 60, "learning_rate": 6e-3},
        "precision": "float32",
    }
    train_model(make_train_settings(settings), folder)
    return sm.load_model(folder)


@pytest.fixture(scope="module")
def buildings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, sm.Model]:
    data = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not data.is_dir():
        pytest.skip("real scenes not found beside the checkout")
    path = data / "scenes" / "banepa_rgb.tif"
    folder = tmp_path_factory.mktemp("models") / "buildings"
    model = _train(
        path,
        data / "labels" / "banepa_buildings_mask.tif",
        folder,
        classes=("background", "building"),
        split={"areas": str(data / "labels" / "banepa_splits.geojson")},
    )
    return path, model


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, sm.Model]:
    data = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not data.is_dir():
        pytest.skip("real scenes not found beside the checkout")
    path = data / "scenes" / "s2_l1c_t19udp_13band.tif"
    folder = tmp_path_factory.mktemp("models") / "clouds"
    model = _train(
        path,
        data / "golden" / "cloud6__t19udp_mask.tif",
        folder,
        classes=("clear", "cloud"),
        split={"block_px": 128, "val": 0.1, "test": 0, "guard_px": 0},
        bands=CLOUD_BANDS,
        values={"0": None, "1": "clear", "2": "cloud"},
    )
    return path, model


def _check(path: Path, result: sm.RunResult, *, classes: set[int]) -> Any:
    with rasterio.open(path) as scene, rasterio.open(result.mask_path) as file:
        assert (file.shape, file.crs, file.transform) == (scene.shape, scene.crs, scene.transform)
        mask, transform, crs = file.read(1), file.transform, file.crs
    valid, errors, warnings = cog_validate(str(result.mask_path))
    assert (valid, errors) == (True, []), warnings
    frame = geopandas.read_file(result.out_dir / "polygons.gpkg", layer="polygons")
    assert frame.crs == crs
    assert frame.geometry.is_valid.all()
    burned = rasterize(
        zip(frame.geometry, frame["class_id"], strict=True), mask.shape, fill=255, transform=transform, dtype="uint8"
    )
    kept = np.isin(mask, list(classes))
    assert (burned[kept] == mask[kept]).all()
    assert (burned[~kept] == 255).all()
    _check_geojson(result.out_dir / "polygons.geojson", frame, crs, transform)
    return mask


def _check_geojson(path: Path, frame: Any, crs: Any, transform: Any) -> None:
    """RFC 7946, and within a tenth of a pixel of the polygons in the scene's CRS."""
    document = json.loads(path.read_text())
    assert document["type"] == "FeatureCollection"
    assert "crs" not in document
    assert len(document["features"]) == len(frame)
    back = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    pixel = (abs(transform.determinant)) ** 0.5
    by_id = dict(zip(frame["id"], frame.geometry, strict=True))
    assert {feature["properties"]["id"] for feature in document["features"]} == set(by_id)
    for feature in document["features"]:
        shape = shapely.geometry.shape(feature["geometry"])
        assert all(p.exterior.is_ccw for p in getattr(shape, "geoms", [shape]))
        returned = shapely.transform(shape, back.transform, interleaved=False)
        assert _farthest(returned, by_id[feature["properties"]["id"]]) <= 0.1 * pixel


def _farthest(shape: Any, original: Any) -> float:
    """Hausdorff distance; its cost grows with the square of the vertices, so of giants some vertices speak for all."""
    if shapely.get_num_coordinates(shape) <= 2000:
        return float(shape.hausdorff_distance(original))
    points = shapely.points(shapely.get_coordinates(shape))
    some = points[:: len(points) // 200]
    return float(shapely.distance(some, original.boundary).max())


def test_banepa_buildings(buildings: tuple[Path, sm.Model], real_data: Path, tmp_path: Path) -> None:
    path, model = buildings
    result = sm.segment(path, model, tmp_path, vectors="geojson,gpkg", patch=512)
    mask = _check(path, result, classes={1})
    with rasterio.open(real_data / "labels" / "banepa_buildings_mask.tif") as file:
        truth = file.read(1)
    score = iou(confusion(mask[:, 2624:], truth[:, 2624:], num_classes=2))[1]
    assert score > 0.45, "predicting building everywhere gives 0.45"


def test_s2_with_a_swath_edge(clouds: tuple[Path, sm.Model], tmp_path: Path) -> None:
    """13 bands, six of them wanted by name; odd size; nodata as any of the six bands says."""
    path, model = clouds
    result = sm.segment(path, model, tmp_path, vectors="geojson,gpkg", patch=256, tile=1)
    mask = _check(path, result, classes={1})
    assert (mask == 255).sum() == 182_652
    assert model.spec.bands == CLOUD_BANDS


def test_exact_and_small_patches_agree(clouds: tuple[Path, sm.Model], tmp_path: Path) -> None:
    """Other patches mean other kernels: the classes differ at ties only."""
    path, model = clouds
    masks = []
    for patch in (160, 400):
        result = sm.segment(path, model, tmp_path / str(patch), vectors="none", patch=patch)
        with rasterio.open(result.mask_path) as file:
            masks.append(file.read(1))
    assert (masks[0] != masks[1]).sum() <= 5


@pytest.mark.parametrize(
    "name",
    [
        "v02_southup",
        "v03_rotated15",
        "v05_internal_mask",
        "v06_float32_nan",
        "v08_odd_size_299x317",
        "v09_smaller_than_tile_40x25",
    ],
)
def test_variants_of_one_crop_give_its_mask(
    clouds: tuple[Path, sm.Model], real_data: Path, tmp_path: Path, name: str
) -> None:
    _, model = clouds
    plain = sm.segment(
        real_data / "variants" / "v01_plain.tif", model, tmp_path / "plain", vectors="none", bands="1,2,3,4,5,6"
    )
    options: dict[str, Any] = {}
    if name == "v06_float32_nan":  # reflectance in place of DN
        model = save_model(
            tmp_path / "m", model.network,  # type: ignore[arg-type]
            model.spec.model_copy(update={"scaling": model.spec.scaling.model_copy(update={"scale": (10000.0,) * 6})}),
        )  # fmt: skip
    path = real_data / "variants" / f"{name}.tif"
    other = sm.segment(path, model, tmp_path / "other", vectors="none", bands="1,2,3,4,5,6", **options)
    with rasterio.open(plain.mask_path) as a, rasterio.open(other.mask_path) as b, rasterio.open(path) as source:
        full, got = a.read(1), b.read(1)
        assert b.transform.almost_equals(source.transform)
        if name == "v02_southup":
            got = got[::-1]
        valid = got != 255
        reach = 60  # a crop sees other pixels beyond its own rim
        rows, cols = min(got.shape[0], 320), min(got.shape[1], 320)
        inner = np.zeros_like(valid)
        inner[reach : rows - reach, reach : cols - reach] = True
        same = (got == full[:rows, :cols]) | ~valid
        if name == "v03_rotated15":
            assert same.all()
        if name == "v08_odd_size_299x317":
            assert same[inner].all()
        if name in ("v05_internal_mask", "v06_float32_nan"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                with rasterio.open(real_data / "golden" / "variants_disc.tif") as disc:
                    assert ((got == 255) == (disc.read(1) == 1)).all()
        assert valid.any()
