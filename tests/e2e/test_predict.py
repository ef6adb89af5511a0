"""Lazy prediction: the same scene, model and options as the main job takes, and the same pixels."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
import torch
from torch import nn

import pipeline as sm
from pipeline.errors import UsageError
from pipeline.model import ModelSpec, Scaling
from tests.scenes import save_unet, smooth_values, write_scene

SHAPE = (180, 210)


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> sm.Model:
    return save_unet(tmp_path_factory.mktemp("unet"), depth=2)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = smooth_values(2, SHAPE)
    data[:, :20, :30] = 0
    return write_scene(tmp_path_factory.mktemp("scene") / "scene.tif", data, nodata=0, names=("b0", "b1"))


@pytest.fixture
def aoi(tmp_path: Path) -> Path:
    """Rows 40 to 100, columns 50 to 130, cut off at a corner."""
    left, top = 500_000, 5_000_000
    corners = [(50, 40), (130, 40), (130, 70), (100, 100), (50, 100)]
    ring = shapely.Polygon([(left + 10 * col, top - 10 * row) for col, row in corners])
    geopandas.GeoDataFrame(geometry=[ring], crs="EPSG:32633").to_file(tmp_path / "aoi.gpkg")
    return tmp_path / "aoi.gpkg"


def _computed(*args: Any, **options: Any) -> Any:
    return sm.predict(*args, **options).compute(scheduler="synchronous").values


@pytest.mark.parametrize("options", [{"tiling": "exact", "patch": 96}, {"tiling": "blend", "patch": 64, "overlap": 16}])
def test_an_aoi_limits_the_output_and_changes_no_pixel_inside(
    scene: Path, unet: sm.Model, aoi: Path, options: dict[str, Any]
) -> None:
    whole = _computed(scene, unet, tile=1, **options)
    part = _computed(scene, unet, tile=1, aoi=aoi, **options)
    inside = np.isfinite(part[0])
    assert (
        inside.sum()
        == sm.segment(scene, unet, aoi.parent / "out", aoi=aoi, vectors="none", **options).summary["valid_px"]
    )
    assert 0 < inside.sum() < 60 * 80
    assert inside[45, 55]
    assert not inside[95, 125]
    assert (part[:, inside] == whole[:, inside]).all()
    assert np.isnan(part[:, ~inside]).all()


def test_tiles_outside_an_aoi_are_not_read(
    scene: Path, unet: sm.Model, aoi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = sm.open_scene(scene)
    rows = []
    read_block = type(opened).read_block

    def spy(self: Any, window: Any) -> Any:
        rows.append(window.row_stop)
        return read_block(self, window)

    monkeypatch.setattr(type(opened), "read_block", spy)
    lazy = sm.predict(opened, unet, patch=64, tile=1, aoi=aoi)
    lazy.compute(scheduler="synchronous")
    assert 0 < len(rows) < lazy.data.npartitions / 2


def test_a_model_may_be_given_by_its_path(scene: Path, unet: sm.Model, tmp_path: Path) -> None:
    assert unet.path is not None
    expected = _computed(scene, unet, patch=96)
    for path in (unet.path, str(unet.path)):
        assert np.array_equal(_computed(scene, path, patch=96), expected, equal_nan=True)
    bare = unet.path / "weights.safetensors"
    probabilities = sm.predict(scene, bare, patch=96, mean=500, std=250, class_names="x,y,z")
    assert list(probabilities["class"].values) == ["x", "y", "z"]
    assert np.array_equal(probabilities.compute(scheduler="synchronous").values, expected, equal_nan=True)


def test_d8_a_network_in_train_mode_gives_what_it_gives_in_eval_mode(tmp_path: Path) -> None:
    """Batch norm uses what it has learnt, not the statistics of a patch, and dropout drops nothing."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.5), nn.Conv2d(8, 3, 1), nn.Dropout()
    )  # fmt: skip
    network.train()(3 * torch.randn(4, 2, 64, 64) + 1)  # statistics unlike those of the scene
    learnt = copy.deepcopy(network[1].running_mean)
    data = smooth_values(2, (64, 80))
    x = torch.from_numpy((data.astype(np.float32) - 500) / 250)[None]
    with torch.inference_mode():
        expected = copy.deepcopy(network).eval()(x).softmax(dim=1)[0].numpy()
        assert not np.allclose(copy.deepcopy(network)(x).softmax(dim=1)[0].numpy(), expected, atol=0.05)

    assert network.training
    scaling = Scaling(scale=(1.0, 1.0), offset=(0.0, 0.0), mean=(500.0, 500.0), std=(250.0, 250.0))
    spec = ModelSpec(name="n", bands=("b0", "b1"), classes=("x", "y", "z"), scaling=scaling, padding="zero")
    model = sm.model_from_module(network, spec)
    assert not any(module.training for module in model.network.modules())
    assert (model.traits.deterministic, model.traits.tiling) == (True, "exact")
    scene = write_scene(tmp_path / "s.tif", data, names=("b0", "b1"))
    for _ in range(2):
        assert np.allclose(_computed(scene, model, patch=32, precision="float32"), expected, atol=1e-5)
    assert torch.equal(network[1].running_mean, learnt), "a forward teaches it nothing"


@pytest.mark.parametrize("late", [{"nodata": 7}, {"nodata": 0}, {"assume_crs": "EPSG:32633"}, {"allow_no_crs": True}])
@pytest.mark.parametrize("call", [sm.predict, sm.plan, sm.segment])
def test_options_for_opening_are_refused_with_an_open_scene(
    scene: Path, unet: sm.Model, tmp_path: Path, call: Any, late: dict[str, Any]
) -> None:
    out = (tmp_path / "out",) if call is sm.segment else ()
    with pytest.raises(UsageError, match=rf"CF-014.*{next(iter(late))}.*open_scene\(path"):
        call(sm.open_scene(scene), unet, *out, **late)
