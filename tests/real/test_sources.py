"""Real files side by side, and one that control points place: the pixels are those of the same scene in one file."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning

from pipeline.errors import InputError
from pipeline.grid import Window
from pipeline.run.resolve import resolve_scene
from pipeline.run.settings import make_settings
from pipeline.scene import open_scene
from tests.parity.test_source_grids import shift_of
from tests.scenes import NORTH_UP, UTM
from tests.unit.scene.products import write_safe

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("real")]


def test_48_chips_are_the_mosaic_that_was_made_of_them(real_data: Path) -> None:
    """JPEG files named .tif in degrees; their rows differ in height, so they share no grid of their own.

    The mosaic was made with another JPEG decoder, whose colours differ by a little: places are compared with it, values
    with what rasterio decodes of each chip.
    """
    chips, mosaic = real_data / "scenes" / "banepa_chips", real_data / "scenes" / "banepa_rgb.tif"
    with pytest.raises(InputError, match="IN-059"):
        open_scene(chips)
    settings = make_settings({"align": mosaic, "resampling": "nearest"})
    scene, whole = resolve_scene(chips, None, settings), open_scene(mosaic)
    assert scene.geobox == whole.geobox
    decoded = np.zeros((3, 1024, 1024), np.uint8)
    for x in (0, 1):
        for y in (2, 3):
            with rasterio.open(chips / f"OAM-{386690 + x}-{220241 + y}-19.tif") as chip:
                decoded[:, 512 * (y - 2) : 512 * (y - 1), 512 * x : 512 * (x + 1)] = chip.read()
    window = Window(row_off=1024 + 300, col_off=250, height=500, width=600)
    block = scene.read_block(window)
    assert block.all_valid
    assert np.array_equal(block.data, decoded[:, 300:800, 250:850])
    reference = whole.read(window)
    assert np.abs(block.data.astype(int) - reference).mean() < 1
    assert np.abs(shift_of(reference[1].astype(float), block.data[1].astype(float))).max() <= 0.02


def test_c6_control_points_give_the_plain_scene_back(real_data: Path) -> None:
    plain = open_scene(real_data / "variants" / "v01_plain.tif")
    settings = make_settings({"warp_gcps": True, "resampling": "nearest"})
    scene = resolve_scene(real_data / "variants" / "v04_gcps.tif", None, settings)
    window = Window(row_off=0, col_off=0, height=320, width=320)
    assert scene.geobox.shape == plain.geobox.shape
    assert np.array_equal(scene.read(window), plain.read(window))


def test_real_bands_in_a_product_of_sentinel_2(real_data: Path, tmp_path: Path) -> None:
    """Band by band as ESA packs them, B01 at a third of the resolution, with the offset of since 2022."""
    bands = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        for name in ("B02", "B04"):
            with rasterio.open(real_data / "odd" / "jp2" / f"t19udp_{name}.jp2") as source:
                bands[name] = (10, source.read(1), NORTH_UP)
        with rasterio.open(real_data / "odd" / "jp2" / "t19udp_B01.jp2") as source:
            bands["B01"] = (60, source.read(1)[1::3, 1::3], NORTH_UP @ rasterio.Affine.scale(3))
    scene = open_scene(write_safe(tmp_path, bands, crs=UTM, level="1C"), bands=["red", "coastal"], resampling="nearest")
    window = Window(row_off=100, col_off=200, height=300, width=300)
    data = scene.read(window)
    assert np.array_equal(data[0], bands["B04"][1][100:400, 200:500])
    assert np.array_equal(data[1], bands["B01"][1].repeat(3, 0).repeat(3, 1)[100:400, 200:500])
    assert {(band.scale, round(band.offset, 9)) for band in scene.bands} == {(1e-4, -0.1)}
