"""A quality layer limits the output and never the input, through the command and in the results."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine

import pipeline as sm
from pipeline.errors import OutputError, PipelineError
from tests.commands import Cli, assert_block
from tests.scenes import NORTH_UP, UTM, save_unet, smooth_values, write_scene

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SHAPE = (180, 220)
OPTIONS: dict[str, Any] = {"patch": 64, "tile": 1, "tiling": "exact"}


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> sm.Model:
    return save_unet(tmp_path_factory.mktemp("unet"), depth=1)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = np.concatenate([smooth_values(2, SHAPE), scl()])
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    return write_scene(path, data, names=("b0", "b1", "SCL"))


def scl() -> NDArray[np.uint16]:
    """4 (vegetation), with clouds (9) and shadow (3); the lower half is all cloud."""
    made = np.full((1, *SHAPE), 4, np.uint16)
    made[:, 20:60, 30:90], made[:, 60:70, 40:100], made[:, 90:] = 9, 3, 9
    return made


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """The same at 20 m."""
    coarse = scl()[:, ::2, ::2].astype(np.uint8)
    return write_scene(tmp_path / "SCL.tif", coarse, transform=NORTH_UP @ Affine.scale(2), crs=UTM)


def _mask(result: Any) -> NDArray[np.uint8]:
    with rasterio.open(result.mask_path) as file:
        return file.read(1)


def test_left_out_pixels_are_nodata_and_the_others_as_they_were(
    scene: Path, unet: sm.Model, layer: Path, tmp_path: Path
) -> None:
    whole = _mask(sm.segment(scene, unet, tmp_path / "whole", vectors="none", bands="b0,b1", **OPTIONS))
    limited = sm.segment(
        scene, unet, tmp_path / "part", mask_layer=layer, mask_values="3,9", bands="b0,b1", verify=2, **OPTIONS
    )
    left_out = np.isin(scl()[0], (3, 9))
    part = _mask(limited)
    assert (part[left_out] == 255).all()
    assert (part[~left_out] == whole[~left_out]).all()
    polygons = geopandas.read_file(limited.polygons_path).to_crs(UTM)
    assert polygons.area.sum() == pytest.approx(np.count_nonzero(~left_out) * 100, rel=1e-3)
    record = json.loads((tmp_path / "part" / "run.json").read_text())
    assert record["valid_px"] == np.count_nonzero(~left_out)
    assert record["settings"]["mask_layer"] == str(layer)
    assert record["settings"]["mask_values"] == [3, 9]
    assert record["tiles"]["empty"] > 0
    lazy = sm.predict(scene, unet, mask_layer=layer, mask_values=(3, 9), bands="b0,b1", **OPTIONS)
    assert (np.isnan(lazy.compute(scheduler="synchronous").values[0]) == left_out).all()


def test_by_the_name_of_a_band_with_the_command(cli: Cli, scene: Path, unet: sm.Model, tmp_path: Path) -> None:
    arguments = ["segment", scene, "-m", unet.path, "-o", tmp_path / "out", "--bands", "b0,b1", "--vectors", "none"]
    status, out, err = cli(*arguments, "--mask-layer", "scl", "--mask-values", "3,9", "--json")
    assert status == 0, err
    assert json.loads(out)["valid_px"] == np.count_nonzero(scl() == 4)


def test_tiles_that_are_all_cloud_are_not_read(
    scene: Path, unet: sm.Model, layer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = sm.open_scene(scene, bands=["b0", "b1"])
    rows = []
    read_block = type(opened).read_block

    def spy(self: Any, window: Any) -> Any:
        rows.append(window.row_off)
        return read_block(self, window)

    monkeypatch.setattr(type(opened), "read_block", spy)
    lazy = sm.predict(opened, unet, mask_layer=layer, mask_values="3,9", **OPTIONS)
    rows.clear()
    lazy.compute(scheduler="synchronous")
    assert rows
    assert max(rows) < 90


def test_another_layer_is_another_run(scene: Path, unet: sm.Model, layer: Path, tmp_path: Path) -> None:
    options = {"mask_layer": layer, "mask_values": "9", "vectors": "none", "bands": "b0,b1", **OPTIONS}
    sm.segment(scene, unet, tmp_path / "out", **options)
    with rasterio.open(layer, "r+") as file:
        file.write(np.full((1, 90, 110), 4, np.uint8))
    with pytest.raises(OutputError, match="mask_layer: was"):
        sm.segment(scene, unet, tmp_path / "out")
    with pytest.raises(OutputError, match="mask_values: was"):
        sm.segment(scene, unet, tmp_path / "out", mask_layer=layer, mask_values="3")


def test_a_layer_that_changes_during_the_run_ends_it_without_results(
    scene: Path, unet: sm.Model, layer: Path, tmp_path: Path
) -> None:
    def rewrite(event: Any) -> None:
        if getattr(event, "name", "") == "mask":
            with rasterio.open(layer, "r+") as file:
                file.write(np.full((1, 90, 110), 4, np.uint8))

    options = {"mask_layer": layer, "mask_values": "9", "vectors": "none", "bands": "b0,b1", **OPTIONS}
    with pytest.raises(PipelineError, match="the mask layer changed") as caught:
        sm.segment(scene, unet, tmp_path / "out", listener=rewrite, **options)
    assert caught.value.code == "OU-013"


@pytest.mark.parametrize(
    ("options", "code", "status"),
    [
        (["--mask-layer", "SCL.tif"], "CF-005", 2),
        (["--mask-values", "3"], "CF-005", 2),
        (["--mask-layer", "SCL.tif", "--mask-values", "three"], "CF-005", 2),
        (["--mask-layer", "SCL.tif", "--mask-values", "3000"], "CF-101", 2),
        (["--mask-layer", "nothing", "--mask-values", "3"], "IN-001", 3),
        (["--mask-layer", "out/mask.tif", "--mask-values", "3"], "CF-008", 2),
    ],
)
def test_refusals(
    cli: Cli, scene: Path, unet: sm.Model, layer: Path, monkeypatch: pytest.MonkeyPatch,
    options: list[str], code: str, status: int,
) -> None:  # fmt: skip
    monkeypatch.chdir(layer.parent)
    got, _, err = cli("segment", scene, "-m", unet.path, "-o", "out", "--bands", "b0,b1", *options)
    assert got == status, err
    assert_block(err, code)


def test_the_query_of_an_address_is_not_kept() -> None:
    from pipeline.run.settings import make_settings

    made = make_settings({"mask_layer": "https://a.org/SCL.tif?sig=secret", "mask_values": 3})
    assert made.mask_layer == "https://a.org/SCL.tif?sig=secret"
    assert made.model_dump(mode="json")["mask_layer"] == "https://a.org/SCL.tif"
