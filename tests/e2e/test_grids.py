"""`--resolution`, `--crs`, `--align` and `--warp-gcps` from the command line: the mask lies where the scene does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.warp
from affine import Affine

import pipeline as sm
from pipeline.model import load_model, save_model
from tests.commands import Cli, assert_block
from tests.scenes import NORTH_UP, save_threshold_model, sha256, smooth_values, write_scene

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = (180, 240)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of 10 m, and models trained on 10, 20 and 50 m."""
    base = tmp_path_factory.mktemp("grids")
    write_scene(base / "scene.tif", smooth_values(2, SHAPE), nodata=0, names=("b0", "b1"))
    plain = save_threshold_model(base / "m0")
    for gsd_m in (10, 20, 50):
        save_model(base / f"m{gsd_m}", plain.network, plain.spec.model_copy(update={"gsd_m": float(gsd_m)}))
    return base


def test_c34_pixels_far_from_the_models_are_warned_of_or_refused(folder: Path, tmp_path: Path, cli: Cli) -> None:
    def run(model: str, *more: object) -> tuple[int, str, str]:
        out = tmp_path / f"{model}{len(more)}"
        return cli("segment", folder / "scene.tif", "-m", folder / model, "-o", out, "--vectors", "none", *more)

    code, _, err = run("m10")
    assert code == 0, err
    assert "the scene has pixels" not in err
    code, _, err = run("m20")
    assert code == 0, err
    assert "the scene has pixels of 10 m, the model was trained on 20 m" in err
    code, _, err = run("m50")
    assert code == 3
    assert_block(err, "IN-056")
    code, _, err = run("m50", "--force-resolution")
    assert code == 0, err


def test_the_models_resolution_and_metres_give_the_same_mask(folder: Path, tmp_path: Path, cli: Cli) -> None:
    for name, wanted in (("a", "model"), ("b", "20 m"), ("c", "20")):
        tile = {"a": 64, "b": 128, "c": 512}[name]
        args = ("segment", folder / "scene.tif", "-m", folder / "m20", "-o", tmp_path / name, "--patch", 64)
        code, _, err = cli(*args, "--resolution", wanted, "--tile", tile)
        assert code == 0, err
    with rasterio.open(tmp_path / "a" / "mask.tif") as mask, rasterio.open(folder / "scene.tif") as scene:
        assert mask.shape == (90, 120)
        assert mask.bounds == scene.bounds
        means = scene.read(1).reshape(90, 2, 120, 2).mean(axis=(1, 3))
        clear = np.abs(means - 500) > 1
        assert np.array_equal(mask.read(1)[clear], (means > 500)[clear])
    for name in ("b", "c"):
        assert sha256(tmp_path / name / "mask.tif") == sha256(tmp_path / "a" / "mask.tif")
        assert sha256(tmp_path / name / "polygons.geojson") == sha256(tmp_path / "a" / "polygons.geojson")
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    (source,) = record["source"]["sources"]
    assert source["resampling"] == "average"
    code, _, err = cli(
        "segment", folder / "scene.tif", "-m", folder / "m0", "-o", tmp_path / "d", "--resolution", "model"
    )
    assert code == 2
    assert_block(err, "CF-090")


def test_align_writes_the_mask_on_the_grid_of_a_file(folder: Path, tmp_path: Path, cli: Cli) -> None:
    with rasterio.open(folder / "scene.tif") as scene:
        left, _, _, top = rasterio.warp.transform_bounds(scene.crs, "EPSG:3857", *scene.bounds)
    place = rasterio.Affine(20, 0, left + 300, 0, -20, top - 300)
    other = write_scene(tmp_path / "other.tif", np.ones((1, 60, 70), np.uint8), crs="EPSG:3857", transform=place)
    args = ("segment", folder / "scene.tif", "-m", folder / "m0", "-o", tmp_path / "out")
    code, _, err = cli(*args, "--align", other, "--workers", 2, "--patch", 32, "--tile", 32)
    assert code == 0, err
    with rasterio.open(tmp_path / "out" / "mask.tif") as mask, rasterio.open(other) as file:
        assert (mask.shape, mask.transform, mask.crs) == (file.shape, file.transform, file.crs)
    code, _, err = cli(*args, "--align", other, "--crs", "EPSG:3857")
    assert code == 2
    assert_block(err, "CF-005")


def test_another_crs_in_one_step_equals_two(folder: Path, tmp_path: Path) -> None:
    """Warped with GDAL first, or while it is read: nearly all pixels have the same class."""
    sm.segment(folder / "scene.tif", folder / "m0", tmp_path / "one", crs="EPSG:3035", vectors="none")
    with rasterio.open(tmp_path / "one" / "mask.tif") as mask:
        ours, transform = mask.read(1), mask.transform
    with (
        rasterio.open(folder / "scene.tif") as scene,
        rasterio.vrt.WarpedVRT(
            scene, crs="EPSG:3035", transform=transform, height=ours.shape[0], width=ours.shape[1],
            resampling=rasterio.enums.Resampling.bilinear,
        ) as warped,
    ):  # fmt: skip
        data = warped.read()
    write_scene(tmp_path / "warped.tif", data, nodata=0, names=("b0", "b1"), crs="EPSG:3035", transform=transform)
    sm.segment(tmp_path / "warped.tif", load_model(folder / "m0"), tmp_path / "two", vectors="none")
    with rasterio.open(tmp_path / "two" / "mask.tif") as mask:
        two = mask.read(1)
    assert (ours != two).mean() < 0.002


@pytest.mark.parametrize("shape", [SHAPE, (77, 101)], ids=["even", "odd"])
def test_the_mask_may_have_the_scenes_own_pixels(
    folder: Path, tmp_path: Path, cli: Cli, shape: tuple[int, int]
) -> None:
    """Each has the class of the computed pixel that its centre lies in; everything else follows the mask."""
    write_scene(tmp_path / "scene.tif", smooth_values(2, shape), nodata=0, names=("b0", "b1"))
    args = ("segment", tmp_path / "scene.tif", "-m", folder / "m20", "--resolution", "model", "--probabilities")
    for grid in ("model", "scene"):
        code, _, err = cli(*args, "-o", tmp_path / grid, "--mask-grid", grid, "--vectors", "gpkg")
        assert code == 0, err
    masks, probabilities = {}, {}
    for grid in ("model", "scene"):
        with rasterio.open(tmp_path / grid / "mask.tif") as mask:
            masks[grid], box = mask.read(1), mask.transform
        with rasterio.open(tmp_path / grid / "probabilities.tif") as file:
            probabilities[grid] = file.read()
    with rasterio.open(tmp_path / "scene.tif") as scene:
        assert (masks["scene"].shape, box) == (scene.shape, scene.transform)
    rows, cols = (np.arange(n) // 2 for n in shape)
    assert (masks["scene"] == masks["model"][np.ix_(rows, cols)]).all()
    assert (probabilities["scene"] == probabilities["model"][:, rows][:, :, cols]).all()
    record = json.loads((tmp_path / "scene" / "run.json").read_text())
    counts = np.bincount(masks["scene"].ravel(), minlength=256)
    assert [row["pixels"] for row in record["classes"]] == counts[: len(record["classes"])].tolist()
    assert record["valid_px"] == (masks["scene"] != 255).sum()
    frame = geopandas.read_file(tmp_path / "scene" / "polygons.gpkg", layer="polygons")
    assert frame["area_px"].sum() == sum(counts[value] for value in set(frame["class_id"]))
    assert frame["area_m2"].sum() == pytest.approx(
        sum(row["area_m2"] for row in record["classes"] if row["value"] in set(frame["class_id"])), rel=1e-4
    )
    assert cli("verify", tmp_path / "scene")[0] == 0
    status, _, err = cli(*args, "-o", tmp_path / "scene", "--mask-grid", "model")
    assert status == 5
    assert "setting mask_grid: was 'scene', is 'model'" in err


def test_a_mask_on_the_scenes_pixels_goes_with_resolution_only(folder: Path, tmp_path: Path, cli: Cli) -> None:
    code, _, err = cli(
        "segment", folder / "scene.tif", "-m", folder / "m10", "-o", tmp_path / "o", "--mask-grid", "scene",
        "--crs", "EPSG:3857",
    )  # fmt: skip
    assert code == 2
    assert_block(err, "CF-005")
    code, _, err = cli(
        "segment", folder / "scene.tif", "-m", folder / "m10", "-o", tmp_path / "p", "--mask-grid", "scene",
        "--vectors", "none",
    )  # fmt: skip
    assert code == 0, err


def test_inspect_shows_what_segment_would_read(folder: Path, tmp_path: Path, cli: Cli) -> None:
    def told(*args: object) -> dict[str, Any]:
        code, out, err = cli("inspect", *args, "--json")
        assert code == 0, err
        return dict(json.loads(out))

    scene = folder / "scene.tif"
    coarse = told(scene, "-m", folder / "m20", "--resolution", "model", "--resampling", "nearest", "--bands", "b1,b0")
    assert (coarse["height"], coarse["width"], coarse["pixel_size"]) == (90, 120, [20, 20])
    assert [band["name"] for band in coarse["bands"]] == ["b1", "b0"]
    assert coarse["sources"][0]["resampling"] == "nearest"
    assert "scaled as the model says" in coarse["values"]
    assert told(scene, "--crs", "EPSG:3035")["crs"]["authority"] == "EPSG:3035"
    assert "was trained on 20 m" in " ".join(told(scene, "-m", folder / "m20")["warnings"])
    write_scene(tmp_path / "layer.tif", np.arange(SHAPE[0] * SHAPE[1]).reshape(1, *SHAPE).astype("uint16") % 4)
    limited = told(scene, "--mask-layer", tmp_path / "layer.tif", "--mask-values", "3")
    assert limited["wanted_frac"] == pytest.approx(0.75)
    east = NORTH_UP @ Affine.translation(SHAPE[1], 0)
    write_scene(tmp_path / "east.tif", smooth_values(2, SHAPE), names=("b0", "b1"), transform=east)
    assert told(scene, tmp_path / "east.tif")["width"] == 2 * SHAPE[1]
    for args, code in (
        ((scene, "-m", folder / "m50"), "IN-056"),
        ((scene, "--resolution", "model"), "CF-090"),
        ((folder / "m20", "--bands", "b0"), "CF-005"),
        ((scene, "--bands", "b7"), "IN-011"),
    ):
        assert_block(cli("inspect", *args)[2], code)
