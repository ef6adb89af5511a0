"""The main job from a file to files, read back with other software."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import xarray as xr
from affine import Affine
from geojson_pydantic import FeatureCollection
from rasterio.features import rasterize
from rio_cogeo.cogeo import cog_validate

import pipeline as sm
from pipeline.errors import InputError, OutputError, PipelineError
from pipeline.grid import Window
from pipeline.model import Engine, EngineSpec, Scaling, make_engine, model_from_module
from pipeline.run import finish, tile_task
from pipeline.run.events import Event, Notice, StageStarted
from pipeline.run.verify import Verifier
from pipeline.scene import Block, RasterScene
from tests.networks import random_scene
from tests.scenes import NORTH_UP, save_threshold_model, save_unet, sha256, smooth_values, write_scene

SHAPE = (233, 301)


@pytest.fixture(scope="module")
def threshold(tmp_path_factory: pytest.TempPathFactory) -> sm.Model:
    return save_threshold_model(tmp_path_factory.mktemp("threshold"))


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> sm.Model:
    return save_unet(tmp_path_factory.mktemp("unet"), depth=2)


@pytest.fixture(scope="module")
def values() -> Any:
    data = smooth_values(2, SHAPE)
    data[:, :40, :90] = 0
    return data


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, values: Any) -> Path:
    return write_scene(tmp_path_factory.mktemp("scene") / "scene.tif", values, nodata=0, names=("b0", "b1"))


def test_all_outputs_are_there_and_right(scene: Path, values: Any, threshold: sm.Model, tmp_path: Path) -> None:
    formats = "geojson,gpkg,fgb,parquet"
    result = sm.segment(scene, threshold, tmp_path, vectors=formats, probabilities=True, patch=64, tile=64)
    expected = np.where(values[0] == 0, 255, values[0] > 500).astype(np.uint8)
    with rasterio.open(result.mask_path) as mask, rasterio.open(scene) as source:
        assert (mask.read(1) == expected).all()
        assert (mask.crs, mask.transform, mask.shape) == (source.crs, source.transform, source.shape)
        assert mask.nodata == 255
        assert mask.colormap(1)[1] is not None
    valid, errors, _ = cog_validate(str(result.mask_path))
    assert (valid, errors) == (True, [])
    with rasterio.open(tmp_path / "probabilities.tif") as file:
        assert file.count == 2
        p = file.read(masked=True)
        assert (p.mask[0] == (expected == 255)).all()
        # One step is 1/250, and half of one is lost by rounding.
        assert np.abs(p.astype(float).sum(axis=0) * file.scales[0] - 1).max() <= 0.004
    shapes = []
    for name in formats.split(","):
        frame = (
            geopandas.read_file(tmp_path / f"polygons.{name}", layer=0)
            if name != "parquet"
            else geopandas.read_parquet(tmp_path / "polygons.parquet")
        )
        shapes.append(len(frame))
        if name == "gpkg":
            assert pyogrio.list_layers(tmp_path / "polygons.gpkg")[:, 0].tolist() == ["polygons", "layer_styles"]
        if name != "geojson":
            assert frame.crs == "EPSG:32633"
            burned = rasterize(
                zip(frame.geometry, frame["class_id"], strict=True), SHAPE, fill=255, transform=NORTH_UP, dtype="uint8"
            )
            assert (burned == expected).all()
        assert set(frame["class_name"]) == {"low", "high"}
    assert len(set(shapes)) == 1
    FeatureCollection.model_validate_json((tmp_path / "polygons.geojson").read_text())
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"mask.tif", "mask.tif.aux.xml", "mask.qml", "preview.png", "run.json", "item.json"}
    assert not (tmp_path / ".scenemask" / "store").exists()


def test_run_json_tells_the_run(scene: Path, values: Any, threshold: sm.Model, tmp_path: Path) -> None:
    sm.segment(scene, threshold, tmp_path, patch=64)
    record = json.loads((tmp_path / "run.json").read_text())
    counts = {row["name"]: row["pixels"] for row in record["classes"]}
    valid = values[0] != 0
    assert counts == {"low": int((valid & (values[0] <= 500)).sum()), "high": int((values[0] > 500).sum())}
    ground = sum(row["area_m2"] for row in record["classes"])
    assert ground == pytest.approx(valid.sum() * 100, rel=2e-3)  # UTM pixels are 10 m x 10 m but for the scale factor
    assert record["status"] == "ok"
    assert set(record["timings_s"]) >= {"plan", "infer", "mask", "polygons"}
    assert record["plan"]["tiling"] == "exact"
    assert record["files"]["mask.tif"]["sha256"] == sha256(tmp_path / "mask.tif")
    item = json.loads((tmp_path / "item.json").read_text())
    assert item["properties"]["proj:code"] == "EPSG:32633"
    assert item["assets"]["mask"]["file:size"] == (tmp_path / "mask.tif").stat().st_size


@pytest.mark.parametrize("mode", ["exact", "blend"])
def test_bytes_do_not_depend_on_tiles_workers_or_processes(
    scene: Path, unet: sm.Model, tmp_path: Path, mode: str
) -> None:
    """Mask and polygons, byte for byte, with one frozen plan but for the tile."""
    seen = set()
    for number, options in enumerate(
        ({"tile": 1}, {"tile": 200}, {"tile": 400}, {"tile": 1, "workers": 3}, {"tile": 150, "workers": 2})
    ):
        out = tmp_path / str(number)
        sm.segment(scene, unet, out, tiling=mode, patch=96, vectors="geojson", **options)
        seen.add((sha256(out / "mask.tif"), sha256(out / "polygons.geojson")))
    assert len(seen) == 1


def test_polygons_equal_those_of_the_whole_mask(scene: Path, unet: sm.Model, tmp_path: Path) -> None:
    result = sm.segment(scene, unet, tmp_path, patch=96, tile=1)
    with rasterio.open(result.mask_path) as mask:
        whole = list(rasterio.features.shapes(mask.read(1), mask=mask.read(1) != 255, transform=mask.transform))
    assert len(sm.vectorize(result.mask_path)) == len(whole)


def test_a_rerun_does_nothing_and_a_resume_only_what_is_missing(scene: Path, unet: sm.Model, tmp_path: Path) -> None:
    first = sm.segment(scene, unet, tmp_path / "a", patch=96, tile=1, vectors="none")
    stamp = first.mask_path.stat().st_mtime_ns
    again = sm.segment(scene, unet, tmp_path / "a", patch=96, tile=1, vectors="none")
    assert again.resumed
    assert first.mask_path.stat().st_mtime_ns == stamp


def test_options_not_given_are_adopted(scene: Path, unet: sm.Model, tmp_path: Path) -> None:
    sm.segment(scene, unet, tmp_path, patch=96, vectors="none", probabilities=True)
    assert sm.segment(scene, unet, tmp_path).resumed


@pytest.mark.parametrize(("change", "told"), [("setting", "taper"), ("model", "digest"), ("scene", "scene")])
def test_d16_f7_a_changed_run_is_refused_with_a_diff(
    values: Any, unet: sm.Model, tmp_path: Path, change: str, told: str
) -> None:
    path = write_scene(tmp_path / "scene.tif", values, nodata=0, names=("b0", "b1"))
    out = tmp_path / "out"
    sm.segment(path, unet, out, patch=96, vectors="none")
    before = sha256(out / "mask.tif")
    model, options = unet, {"patch": 96, "vectors": "none"}
    if change == "setting":
        options["taper"] = "linear"
    elif change == "model":
        model = save_unet(tmp_path / "other", depth=2, seed=5)
    else:
        write_scene(path, values[:, ::-1], nodata=0, names=("b0", "b1"))
    with pytest.raises(OutputError, match=told) as caught:
        sm.segment(path, model, out, **options)
    assert caught.value.exit_code == 5
    assert sha256(out / "mask.tif") == before
    result = sm.segment(path, model, out, overwrite=True, **options)
    assert not result.resumed


def test_an_engine_stays_ready_as_long_as_its_model_lives(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines: list[weakref.ref[Engine]] = []

    def make(model: sm.Model, spec: EngineSpec) -> Engine:
        engine = make_engine(model, spec)
        engines.append(weakref.ref(engine))
        return engine

    monkeypatch.setattr(tile_task, "make_engine", make)
    model = save_unet(tmp_path / "model", depth=2)
    results = [sm.segment(scene, model, tmp_path / name, workers=1) for name in ("first", "second")]
    assert len(engines) == 1, "the second scene waited for what was there"
    assert len({sha256(result.mask_path) for result in results}) == 1
    other, gone = save_unet(tmp_path / "other", depth=2, seed=1), []

    def listen(event: Event) -> None:
        if isinstance(event, StageStarted):
            gc.collect()
            gone.append((event.name, engines[-1]() is None))

    third = sm.segment(scene, other, tmp_path / "third", workers=1, vectors="none", listener=listen)
    assert (len(engines), gone[0]) == (2, ("plan", True)), "the first made room for the second"
    assert sha256(third.mask_path) != sha256(results[0].mask_path)
    del other
    gc.collect()
    assert engines[1]() is None
    gone.clear()
    sm.segment(scene, tmp_path / "model", tmp_path / "fourth", workers=1, vectors="none", listener=listen)
    assert len(engines) == 3
    assert ("mask", True) in gone, "nobody has a model that the run loaded for itself"


def test_an_engine_that_was_kept_is_gone_before_windows_are_verified(
    scene: Path, unet: sm.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[bool] = []
    verify = Verifier.run

    def run(self: Verifier, *args: Any, **kwargs: Any) -> Any:
        kept.append(bool(tile_task._last_made))
        return verify(self, *args, **kwargs)

    monkeypatch.setattr(Verifier, "run", run)
    sm.segment(scene, unet, tmp_path, verify=2, workers=1)
    assert kept == [False]


def test_workers_may_change_between_runs(scene: Path, unet: sm.Model, tmp_path: Path) -> None:
    sm.segment(scene, unet, tmp_path, patch=96, vectors="none")
    assert sm.segment(scene, unet, tmp_path, patch=96, vectors="none", workers=2, keep=True).resumed


def test_b6_results_that_were_changed_are_not_trusted(scene: Path, unet: sm.Model, tmp_path: Path) -> None:
    result = sm.segment(scene, unet, tmp_path, patch=96, vectors="none")
    with result.mask_path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(OutputError, match=r"mask\.tif changed"):
        sm.segment(scene, unet, tmp_path, patch=96, vectors="none")


def test_b6_b7_foreign_results_are_left_alone(scene: Path, unet: sm.Model, tmp_path: Path) -> None:
    (tmp_path / "mask.tif").write_bytes(b"somebody else's")
    with pytest.raises(OutputError, match="OU-001") as caught:
        sm.segment(scene, unet, tmp_path, patch=96, vectors="none")
    assert caught.value.exit_code == 5
    assert (tmp_path / "mask.tif").read_bytes() == b"somebody else's"
    sm.segment(scene, unet, tmp_path, patch=96, vectors="none", overwrite=True)
    with rasterio.open(tmp_path / "mask.tif") as mask:
        assert mask.shape == SHAPE


def test_c20_a_scene_without_data_is_a_success(threshold: sm.Model, tmp_path: Path) -> None:
    path = write_scene(tmp_path / "empty.tif", np.zeros((2, 70, 90), np.uint16), nodata=0, names=("b0", "b1"))
    out = tmp_path / "out"
    result = sm.segment(path, threshold, out, vectors="geojson,gpkg,fgb,parquet")
    assert result.summary["status"] == "empty"
    with rasterio.open(result.mask_path) as mask:
        assert (mask.read(1) == 255).all()
    assert json.loads((out / "polygons.geojson").read_text())["features"] == []
    for name in ("gpkg", "fgb"):
        frame = geopandas.read_file(out / f"polygons.{name}", layer=0)
        assert len(frame) == 0
        assert frame.crs == "EPSG:32633"
        assert "class_name" in frame
    assert len(geopandas.read_parquet(out / "polygons.parquet")) == 0


@pytest.mark.parametrize(("vectors", "hints"), [("geojson", 1), ("parquet,geojson", 1), ("parquet", 0)])
def test_b13_many_polygons_as_geojson_bring_a_hint(
    scene: Path, threshold: sm.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vectors: str, hints: int
) -> None:
    assert finish._MANY_POLYGONS == 100_000
    monkeypatch.setattr(finish, "_MANY_POLYGONS", 1)
    told: list[Any] = []
    sm.segment(scene, threshold, tmp_path / "out", vectors=vectors, listener=told.append)
    assert sum(isinstance(e, Notice) and "--vectors parquet" in e.text for e in told) == hints


@pytest.mark.parametrize(
    "transform",
    [
        Affine(10, 0, 500_000, 0, -10, 5_000_000) @ Affine.rotation(20),
        Affine(10, 0, 500_000, 0, 10, 5_000_000),
        Affine(10, 3, 500_000, 1, -12, 5_000_000),
    ],
    ids=["rotated", "south-up", "sheared"],
)
def test_c8_c9_odd_grids_are_kept(values: Any, threshold: sm.Model, tmp_path: Path, transform: Affine) -> None:
    path = write_scene(tmp_path / "s.tif", values, nodata=0, names=("b0", "b1"), transform=transform)
    result = sm.segment(path, threshold, tmp_path / "out", vectors="parquet", patch=64)
    with rasterio.open(result.mask_path) as mask:
        assert mask.transform.almost_equals(transform)
        assert (mask.read(1) == np.where(values[0] == 0, 255, values[0] > 500)).all()
    frame = geopandas.read_parquet(tmp_path / "out" / "polygons.parquet")
    pixel = abs(transform.determinant)
    assert frame.geometry.area.sum() == pytest.approx((values[0] != 0).sum() * pixel, rel=1e-9)


@pytest.mark.parametrize("shape", [(1, 1), (1, 37), (41, 1), (7, 5)])
def test_c21_tiny_scenes(threshold: sm.Model, tmp_path: Path, shape: tuple[int, int]) -> None:
    data = random_scene(2, shape)
    path = write_scene(tmp_path / "tiny.tif", data, names=("b0", "b1"))
    result = sm.segment(path, threshold, tmp_path / "out")
    with rasterio.open(result.mask_path) as mask:
        assert (mask.read(1) == (data[0] > 500)).all()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_dtypes(threshold: sm.Model, tmp_path: Path, dtype: str) -> None:
    data = (random_scene(2, (60, 70)) / 4).astype(dtype)
    path = write_scene(tmp_path / "s.tif", data, names=("b0", "b1"))
    result = sm.segment(path, threshold, tmp_path / "out", vectors="none")
    assert not np.isnan(result.summary["valid_px"])
    with rasterio.open(result.mask_path) as mask:
        assert (mask.read(1) == (data[0] > 500)).all()


def test_c15_nan_given_as_nodata(values: Any, threshold: sm.Model, tmp_path: Path) -> None:
    data = values.astype(np.float32)
    data[:, :40, :90] = np.nan
    path = write_scene(tmp_path / "s.tif", data, names=("b0", "b1"))
    result = sm.segment(path, threshold, tmp_path / "out", nodata=float("nan"), vectors="none")
    assert result.summary["valid_px"] == data[0].size - 40 * 90
    assert sm.segment(path, threshold, tmp_path / "out", nodata="nan", vectors="none").resumed


def test_c31_bands_are_matched_by_name(values: Any, threshold: sm.Model, tmp_path: Path) -> None:
    straight = write_scene(tmp_path / "a.tif", values, nodata=0, names=("b0", "b1"))
    turned = np.stack([values[1], values[1], values[0]])
    shuffled = write_scene(tmp_path / "b.tif", turned, nodata=0, names=("b1", "x", "b0"))
    one = sm.segment(straight, threshold, tmp_path / "one", vectors="none")
    two = sm.segment(shuffled, threshold, tmp_path / "two", vectors="none")
    three = sm.segment(shuffled, threshold, tmp_path / "three", vectors="none", bands="3,1")
    assert sha256(one.mask_path) == sha256(two.mask_path) == sha256(three.mask_path)


def test_c30_names_that_share_nothing_with_the_model_are_refused(
    values: Any, threshold: sm.Model, tmp_path: Path
) -> None:
    scene = write_scene(tmp_path / "s.tif", values, nodata=0, names=("nir", "red"))
    with pytest.raises(InputError, match="IN-012") as caught:
        sm.segment(scene, threshold, tmp_path / "refused", vectors="none")
    assert "--bands" in caught.value.fix
    told: list[Any] = []
    result = sm.segment(scene, threshold, tmp_path / "asked", vectors="none", bands="2,1", listener=told.append)
    assert not [event for event in told if "position" in getattr(event, "text", "")]
    assert result.summary["warnings"] == []
    with rasterio.open(result.mask_path) as mask:
        assert (mask.read(1) == np.where((values == 0).any(axis=0), 255, values[1] > 500)).all()


def test_one_class_everywhere_of_a_network_that_says_nothing_of_its_values_is_told_and_recorded(
    values: Any, threshold: sm.Model, tmp_path: Path
) -> None:
    """Its mean is left out: all stored values but nodata are then above what it tells apart."""
    scene = write_scene(tmp_path / "s.tif", values, nodata=0, names=("b0", "b1"))
    bare = model_from_module(threshold.network, threshold.spec.model_copy(update={"scaling": Scaling.identity(2)}))
    told: list[Any] = []
    result = sm.segment(scene, bare, tmp_path / "out", vectors="none", listener=told.append)
    [doubt] = result.summary["warnings"]
    assert "every pixel became" in doubt
    assert "--mean" in doubt
    assert [event.text for event in told if "every pixel" in getattr(event, "text", "")] == [doubt]


@pytest.mark.parametrize(
    "names", [None, ("b0", "red"), ("Band 1", "Band 2"), ("b0", None)], ids=["none", "some", "numbers", "half"]
)
def test_c31_a_match_by_position_is_told_and_recorded(
    values: Any, threshold: sm.Model, tmp_path: Path, names: tuple[str, ...] | None
) -> None:
    scene = write_scene(tmp_path / "s.tif", values, nodata=0, names=names)
    told: list[Any] = []
    result = sm.segment(scene, threshold, tmp_path / "out", vectors="none", listener=told.append)
    notices = [event.text for event in told if "position" in getattr(event, "text", "")]
    assert len(notices) == 1
    assert notices == result.summary["warnings"]
    assert sm.segment(scene, threshold, tmp_path / "again", vectors="none", bands="1,2").summary["warnings"] == []


def test_aoi_limits_the_output_and_changes_nothing_beside_it(scene: Path, unet: sm.Model, tmp_path: Path) -> None:
    left, top = 500_000 + 1000, 5_000_000 - 800
    ring = [[left, top], [left + 900, top], [left + 700, top - 1000], [left, top - 900], [left, top]]
    geopandas.GeoDataFrame(
        geometry=geopandas.GeoSeries.from_wkt(
            ["POLYGON ((" + ", ".join(f"{x} {y}" for x, y in ring) + "))"], crs="EPSG:32633"
        )
    ).to_file(tmp_path / "aoi.gpkg")
    whole = sm.segment(scene, unet, tmp_path / "whole", patch=96, vectors="none")
    part = sm.segment(scene, unet, tmp_path / "part", patch=96, vectors="none", aoi=tmp_path / "aoi.gpkg")
    with rasterio.open(whole.mask_path) as a, rasterio.open(part.mask_path) as b:
        full, cut = a.read(1), b.read(1)
    inside = cut != 255
    assert 0 < inside.sum() < full.size / 4
    assert (cut[inside] == full[inside]).all()


def test_a_dataarray_gives_the_same_mask(scene: Path, unet: sm.Model, tmp_path: Path) -> None:
    with rasterio.open(scene) as file:
        t, data, wkt = file.transform, file.read(), file.crs.to_wkt()
    array = xr.DataArray(
        data,
        dims=("band", "y", "x"),
        coords={
            "y": t.f + t.e * (np.arange(SHAPE[0]) + 0.5),
            "x": t.c + t.a * (np.arange(SHAPE[1]) + 0.5),
            "spatial_ref": xr.DataArray(0, attrs={"crs_wkt": wkt}),
        },
    )
    one = sm.segment(scene, unet, tmp_path / "file", patch=96, vectors="none")
    two = sm.segment(array, unet, tmp_path / "array", patch=96, vectors="none", nodata=0)
    with rasterio.open(one.mask_path) as a, rasterio.open(two.mask_path) as b:
        assert (a.read(1) == b.read(1)).all()
        assert a.transform == b.transform


def test_lazy_predict_equals_segment(scene: Path, unet: sm.Model, tmp_path: Path) -> None:
    lazy = sm.predict(sm.open_scene(scene), unet, patch=96, tile=1)
    assert lazy.dims == ("class", "y", "x")
    assert lazy.chunks is not None
    assert list(lazy["class"].values) == list(unet.spec.classes)
    assert "Europe" in lazy.spatial_ref.attrs["crs_wkt"] or "UTM" in lazy.spatial_ref.attrs["crs_wkt"]
    computed = lazy.compute(scheduler="threads")
    result = sm.segment(scene, unet, tmp_path, patch=96, tile=1, vectors="none")
    with rasterio.open(result.mask_path) as mask:
        classes = mask.read(1)
    valid = np.isfinite(computed.values[0])
    assert (valid == (classes != 255)).all()
    assert (computed.values.argmax(axis=0)[valid] == classes[valid]).all()
    assert float(computed.y[0]) == 5_000_000 - 5
    part = lazy.isel(y=slice(100, 140), x=slice(50, 90)).compute(scheduler="threads")
    assert (part.values == computed.values[:, 100:140, 50:90])[np.isfinite(part.values)].all()


def test_no_crs_gives_pixel_polygons(values: Any, threshold: sm.Model, tmp_path: Path) -> None:
    path = write_scene(tmp_path / "s.tif", values, nodata=0, names=("b0", "b1"), crs=None)
    with pytest.raises(PipelineError, match="assume-crs") as caught:
        sm.segment(path, threshold, tmp_path / "refused")
    assert caught.value.exit_code == 3
    assumed = sm.segment(path, threshold, tmp_path / "assumed", assume_crs="EPSG:32633", vectors="none")
    with rasterio.open(assumed.mask_path) as mask:
        assert mask.crs.to_epsg() == 32633
    result = sm.segment(path, threshold, tmp_path / "free", allow_no_crs=True)
    assert result.summary["classes"][0]["area_m2"] is None
    with rasterio.open(result.mask_path) as mask:
        assert mask.crs is None


def test_min_area_drops_polygons_and_leaves_the_mask(scene: Path, threshold: sm.Model, tmp_path: Path) -> None:
    every = sm.segment(scene, threshold, tmp_path / "all")
    large = sm.segment(scene, threshold, tmp_path / "large", min_area=20_000)
    assert sha256(every.mask_path) == sha256(large.mask_path)
    kept = json.loads((tmp_path / "large" / "polygons.geojson").read_text())["features"]
    assert 0 < len(kept) < every.summary["polygons"]
    assert min(f["properties"]["area_m2"] for f in kept) >= 20_000


def test_network_padding_equals_calling_the_network(scene: Path, unet: sm.Model, tmp_path: Path, values: Any) -> None:
    import torch

    result = sm.segment(scene, unet, tmp_path, patch=96, padding="network", vectors="none")
    x = (values.astype(np.float32) - 500) / 250
    x[:, values[0] == 0] = 0
    sides = [-(-n // 4) * 4 - n for n in SHAPE]
    padded = np.pad(x, ((0, 0), (0, sides[0]), (0, sides[1])), mode="reflect")
    with torch.inference_mode():
        logits = unet.network(torch.from_numpy(padded)[None])[0, :, : SHAPE[0], : SHAPE[1]].numpy()
    top = np.sort(logits, axis=0)
    with rasterio.open(result.mask_path) as mask:
        same = mask.read(1) == logits.argmax(axis=0)
    assert (same | (top[-1] - top[-2] < 1e-4) | (values[0] == 0)).all()


@pytest.mark.parametrize("mode", ["exact", "blend"])
def test_bytes_do_not_depend_on_the_order_of_tiles(
    scene: Path, unet: sm.Model, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import random

    from pipeline.run import segment as module

    straight = sm.segment(scene, unet, tmp_path / "straight", tiling=mode, patch=96, tile=1, vectors="none")
    run_tiles = module.run_tiles
    orders = []

    def shuffled(connection: Any, job: Any, model: Any, tiles: Any, **options: Any) -> None:
        mixed = random.Random(1).sample(list(tiles), len(tiles))
        orders.append([tile.index for tile in mixed])
        run_tiles(connection, job, model, mixed, **options)

    monkeypatch.setattr(module, "run_tiles", shuffled)
    mixed = sm.segment(scene, unet, tmp_path / "mixed", tiling=mode, patch=96, tile=1, vectors="none")
    assert orders
    assert orders[0] != sorted(orders[0])
    assert sha256(straight.mask_path) == sha256(mixed.mask_path)


def test_one_thread_reads_a_file_for_all_tiles_of_a_worker(
    scene: Path, threshold: sm.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a tile's window shares with its neighbour's is then decoded once; on a GPU's host several read."""
    names: list[str] = []
    read_block = RasterScene.read_block

    def watched(self: RasterScene, window: Window) -> Block:
        names.append(threading.current_thread().name)
        return read_block(self, window)

    monkeypatch.setattr(RasterScene, "read_block", watched)
    result = sm.segment(scene, threshold, tmp_path, vectors="none", patch=64, tile=64, precision="float32")
    tiles = names[names.index("reader_0") :]  # samples are looked at before, by others
    assert tiles == ["reader_0"] * result.summary["tiles"]["total"]
    assert len(tiles) > 10
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("reader")]
