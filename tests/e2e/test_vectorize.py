"""`scenemask vectorize`: from a mask to each format, and what it refuses."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio

import pipeline as sm
from pipeline.errors import InputError, UsageError
from tests.commands import Cli, assert_block
from tests.scenes import save_threshold_model, smooth_values, write_scene

SHAPE = (120, 150)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a run with classes low (0) and high (1)."""
    place = tmp_path_factory.mktemp("run")
    data = smooth_values(2, SHAPE)
    data[:, :30, :30] = 0
    scene = write_scene(place / "scene.tif", data, nodata=0, names=("b0", "b1"))
    sm.segment(scene, save_threshold_model(place / "model"), place / "out", vectors="none")
    return place / "out"


@pytest.fixture(scope="module")
def mask(folder: Path) -> Path:
    return folder / "mask.tif"


def _read(path: Path) -> Any:
    return geopandas.read_parquet(path) if path.suffix == ".parquet" else geopandas.read_file(path, layer=0)


@pytest.mark.parametrize("suffix", ["geojson", "gpkg", "fgb", "parquet"])
def test_each_format_holds_every_pixel(cli: Cli, mask: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"p.{suffix}"
    status, text, err = cli("vectorize", mask, "-o", out)
    frame = _read(out)
    assert (status, text) == (0, f"{len(frame)} polygons -> {out}\n"), err
    with rasterio.open(mask) as file:
        pixels = file.read(1)
    for name, value in (("low", 0), ("high", 1)):
        assert frame[frame["class_name"] == name]["area_px"].sum() == (pixels == value).sum()
    assert len(sm.vectorize(mask)) == len(frame)


def test_json_names_the_file_and_counts(cli: Cli, mask: Path, tmp_path: Path) -> None:
    status, text, _ = cli("vectorize", mask, "-o", tmp_path / "p.fgb", "--json")
    assert status == 0
    assert json.loads(text) == {"path": str(tmp_path / "p.fgb"), "polygons": len(_read(tmp_path / "p.fgb"))}


@pytest.mark.parametrize(("only", "names"), [("high", {"high"}), ("0", {"low"}), ("high, 0", {"low", "high"})])
def test_only_some_classes(cli: Cli, mask: Path, tmp_path: Path, only: str, names: set[str]) -> None:
    status, _, err = cli("vectorize", mask, "-o", tmp_path / "p.gpkg", "--only", only)
    assert status == 0, err
    assert set(_read(tmp_path / "p.gpkg")["class_name"]) == names


@pytest.mark.parametrize("only", ["water", "77", "255", "low,77", ",", ""])
def test_classes_that_the_mask_does_not_have(cli: Cli, mask: Path, tmp_path: Path, only: str) -> None:
    status, _, err = cli("vectorize", mask, "-o", tmp_path / "p.gpkg", "--only", only)
    assert status == 2
    assert_block(err, "CF-033")
    assert "low (0), high (1)" in err
    assert not (tmp_path / "p.gpkg").exists()


def test_a_mask_without_names_takes_numbers(cli: Cli, tmp_path: Path) -> None:
    path = write_scene(tmp_path / "plain.tif", np.full((1, 20, 20), 3, np.uint8))
    assert cli("vectorize", path, "-o", tmp_path / "p.fgb", "--only", "3")[0] == 0
    status, _, err = cli("vectorize", path, "-o", tmp_path / "q.fgb", "--only", "water")
    assert status == 2
    assert "no class names" in err


@pytest.mark.parametrize("least", ["20000 m2", "20000 m²", "20000", "2e4 m2"])
def test_min_area_is_written_as_for_segment(cli: Cli, mask: Path, tmp_path: Path, least: str) -> None:
    status, _, err = cli("vectorize", mask, "-o", tmp_path / "p.parquet", "--min-area", least)
    assert status == 0, err
    assert 0 < len(_read(tmp_path / "p.parquet")) < len(sm.vectorize(mask))
    assert _read(tmp_path / "p.parquet")["area_m2"].min() >= 20_000


@pytest.mark.parametrize("least", ["500 ft2", "-1", "much"])
def test_min_areas_that_are_none(cli: Cli, mask: Path, tmp_path: Path, least: str) -> None:
    status, _, err = cli("vectorize", mask, "-o", tmp_path / "p.fgb", "--min-area", least)
    assert status == 2
    assert_block(err, "CF-005")
    assert "min_area" in err


def test_a_file_that_is_there_needs_overwrite(cli: Cli, mask: Path, tmp_path: Path) -> None:
    (tmp_path / "p.fgb").write_text("mine")
    status, _, err = cli("vectorize", mask, "-o", tmp_path / "p.fgb")
    assert status == 5
    assert_block(err, "OU-030")
    assert (tmp_path / "p.fgb").read_text() == "mine"
    assert cli("vectorize", mask, "-o", tmp_path / "p.fgb", "--overwrite")[0] == 0
    status, _, err = cli("vectorize", mask, "-o", tmp_path / "p.shp")
    assert status == 2
    assert_block(err, "CF-030")


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _cut(path: Path) -> Path:
    write_scene(path, np.random.default_rng(0).integers(0, 9, (1, 300, 300), dtype=np.uint8))
    return _written(path, path.read_bytes()[:20_000])


FAULTS: dict[str, Any] = {
    "missing": (lambda p: p, "IN-001"),
    "empty": (lambda p: _written(p, b""), "IN-003"),
    "text": (lambda p: _written(p, b"hello, this is text"), "IN-002"),
    "virtual": (lambda p: _written(p, b"<VRTDataset></VRTDataset>"), "IN-014"),
    "folder": (_folder, "IN-031"),
    "header-only": (lambda p: _written(p, b"II*\x00\x08\x00\x00\x00"), "IN-031"),
    "truncated": (_cut, "IN-031"),
    "png": (lambda p: write_scene(p, np.zeros((1, 9, 9), np.uint8), driver="PNG", crs=None), "IN-031"),
    "two-bands": (lambda p: write_scene(p, np.zeros((2, 9, 9), np.uint8)), "IN-031"),
    "floats": (lambda p: write_scene(p, np.zeros((1, 9, 9), np.float32)), "IN-030"),
}


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # of the PNG that is written here
@pytest.mark.parametrize("fault", FAULTS)
def test_masks_that_cannot_be_used_exit_3(cli: Cli, tmp_path: Path, fault: str) -> None:
    make, code = FAULTS[fault]
    path = make(tmp_path / "bad.tif")
    status, _, err = cli("vectorize", path, "-o", tmp_path / "p.geojson")
    assert status == 3, err
    assert_block(err, code)
    assert "bad.tif" in err.split("  where  ")[1]
    assert not (tmp_path / "p.geojson").exists()
    with pytest.raises(InputError, match=code):
        sm.vectorize(path)


def test_names_come_from_the_sidecar_of_other_software(cli: Cli, folder: Path, tmp_path: Path) -> None:
    with rasterio.open(folder / "mask.tif") as source:
        write_scene(tmp_path / "mask.tif", source.read(), nodata=255)
    shutil.copy(folder / "mask.tif.aux.xml", tmp_path)
    assert cli("vectorize", tmp_path / "mask.tif", "-o", tmp_path / "p.fgb", "--only", "high")[0] == 0
    assert set(_read(tmp_path / "p.fgb")["class_name"]) == {"high"}


@pytest.fixture(scope="module")
def with_probabilities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("kept")
    data = smooth_values(2, SHAPE)
    data[:, :30, :30] = 0
    scene = write_scene(place / "scene.tif", data, nodata=0, names=("b0", "b1"))
    options = {"vectors": "geojson,parquet", "probabilities": True, "patch": 64, "tile": 1}
    sm.segment(scene, save_threshold_model(place / "model"), place / "out", **options)
    return place / "out"


def test_polygons_tell_how_sure_the_network_was(cli: Cli, with_probabilities: Path, tmp_path: Path) -> None:
    with rasterio.open(with_probabilities / "mask.tif") as file:
        mask = file.read(1)
    with rasterio.open(with_probabilities / "probabilities.tif") as file:
        p = file.read() / 250
    by_run = geopandas.read_parquet(with_probabilities / "polygons.parquet")
    status, _, err = cli(
        "vectorize", with_probabilities / "mask.tif", "-o", tmp_path / "p.parquet",
        "--probabilities", with_probabilities / "probabilities.tif",
    )  # fmt: skip
    assert status == 0, err
    assert by_run.equals(geopandas.read_parquet(tmp_path / "p.parquet"))
    geojson = geopandas.read_file(with_probabilities / "polygons.geojson")
    for name in ("p_mean", "p_min", "uncertain_frac", "perimeter_m"):
        assert np.allclose(geojson[name], by_run.set_index("id").loc[geojson["id"], name])
    for value in (0, 1):
        own, rows = p[value][mask == value], by_run[by_run["class_id"] == value]
        assert (rows["p_mean"] * rows["area_px"]).sum() == pytest.approx(own.sum(), abs=1e-4 * own.size)
        assert rows["p_min"].min() == own.min()
        assert (rows["uncertain_frac"] * rows["area_px"]).sum() == pytest.approx((own < 0.7).sum(), abs=1e-4 * own.size)
    assert set(by_run["scene"]) == {"scene"}
    assert by_run["touches_nodata"].any()
    assert not by_run["touches_nodata"].all()


def test_probabilities_of_another_mask_are_refused(
    cli: Cli, mask: Path, with_probabilities: Path, tmp_path: Path
) -> None:
    small = write_scene(tmp_path / "small.tif", np.zeros((2, 20, 20), np.uint8))
    for wrong, words in (
        (mask, "expected uint8 with one scale below 1"),
        (small, "scale"),
        (tmp_path / "none.tif", "none"),
    ):
        status, _, err = cli("vectorize", mask, "-o", tmp_path / "p.fgb", "--probabilities", wrong)
        assert status == 3
        assert_block(err, "IN-036")
        assert words in err
    with rasterio.open(with_probabilities / "probabilities.tif") as source:
        profile, data = source.profile, source.read()
    profile.update(transform=rasterio.Affine.translation(10, 0) @ source.transform, driver="GTiff")
    with rasterio.open(tmp_path / "moved.tif", "w", **profile) as moved:
        moved.write(data)
        moved.scales = (1 / 250,) * moved.count
    status, _, err = cli("vectorize", mask, "-o", tmp_path / "p.fgb", "--probabilities", tmp_path / "moved.tif")
    assert status == 3
    assert_block(err, "IN-036")
    assert "another" in err


def _styles(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as base:
        if not base.execute("SELECT 1 FROM sqlite_master WHERE name = 'layer_styles'").fetchall():
            return []
        return [qml for (qml,) in base.execute("SELECT styleQML FROM layer_styles")]


def test_a_geopackage_is_drawn_in_the_colours_of_its_mask(cli: Cli, mask: Path, tmp_path: Path) -> None:
    assert cli("vectorize", mask, "-o", tmp_path / "p.gpkg")[0] == 0
    (qml,) = _styles(tmp_path / "p.gpkg")
    with rasterio.open(mask) as file:
        colors = file.colormap(1)
    for value, name in ((0, "low"), (1, "high")):
        assert f'value="{value}" symbol="{value}" label="{name}"' in qml
        assert 'k="color" v="{},{},{},'.format(*colors[value][:3]) in qml
    plain = write_scene(tmp_path / "plain.tif", np.full((1, 20, 20), 3, np.uint8))
    assert cli("vectorize", plain, "-o", tmp_path / "q.gpkg")[0] == 0
    assert _styles(tmp_path / "q.gpkg") == []


def test_straight_walls_are_counted(cli: Cli, mask: Path, tmp_path: Path) -> None:
    given = ("vectorize", mask, "-o", tmp_path / "p.fgb", "--regularize", "high", "--min-iou", "0.5")
    status, text, err = cli(*given, "--json")
    assert status == 0, err
    count = json.loads(text)["regularized"]
    assert count["straight"] + count["kept"] == (_read(tmp_path / "p.fgb")["class_name"] == "high").sum()
    assert 0.5 <= count["iou_min"] <= count["iou_median"] < 1
    status, text, _ = cli(*given, "--overwrite")
    assert status == 0
    assert "have straight walls" in text
    status, _, err = cli("vectorize", mask, "-o", tmp_path / "q.fgb", "--regularize", "house")
    assert status == 2
    assert_block(err, "CF-033")


def test_a_run_tells_about_straight_walls_and_refuses_unknown_classes_early(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", smooth_values(2, SHAPE), nodata=0, names=("b0", "b1"))
    model = save_threshold_model(tmp_path / "model")
    said: list[str] = []
    result = sm.segment(
        scene, model, tmp_path / "out", regularize="high,0", min_iou=0.5,
        listener=lambda event: said.append(getattr(event, "text", "")),
    )  # fmt: skip
    found = result.summary["regularized"]
    assert found["straight"] > 0
    assert any(f"{found['straight']} of" in text and f"{found['iou_min']:.2f} or more" in text for text in said)
    with pytest.raises(UsageError, match=r"CF-033.*house"):
        sm.segment(scene, model, tmp_path / "other", regularize="house")
    assert not (tmp_path / "other" / "mask.tif").exists()
