"""Every raster of the real collection opens and reads, or is refused in our own words."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
from rasterio.vrt import WarpedVRT

from pipeline.errors import InputError
from pipeline.grid import Window
from pipeline.scene import Aoi, Scene, describe_scene, open_quality_layer, open_scene
from pipeline.scene.datasets import open_dataset

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.real

CLOUD_BANDS = ("B02", "B03", "B04", "B08", "B11", "B12")


def whole(scene: Scene) -> Window:
    return Window(row_off=0, col_off=0, height=scene.geobox.height, width=scene.geobox.width)


def real_masks(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Masks as GDAL gives them, shape `(band, y, x)`."""
    with open_dataset(str(path), "GTiff") as dataset:
        return np.asarray(dataset.read_masks() > 0)


def test_every_raster_opens_or_is_refused(real_data: Path) -> None:
    with (real_data / "rasters.csv").open() as file:
        rows = list(csv.DictReader(file))
    opened, refused = 0, []
    for row in rows:
        try:
            scene = open_scene(real_data / row["file"], allow_no_crs=True)
            window = whole(scene)
            block = scene.read_block(Window.from_bounds(0, 0, min(window.height, 1024), min(window.width, 1024)))
            describe_scene(scene)
        except InputError as error:
            refused.append((row["file"], error.code, row["read"]))
        else:
            opened += 1
            assert row["read"] != "error", row["file"]
            assert str(scene.dtype) == row["dtype"], row["file"]
            assert scene.geobox.shape == (int(row["height"]), int(row["width"])), row["file"]
            assert block.valid.shape == block.data.shape
    assert opened > 120
    assert len(refused) >= 12
    for name, code, read in refused:
        assert code == "IN-010" or (code in {"IN-004", "IN-005"} and read != "ok"), name


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("corrupt/gdal/byte_truncated.tif", "IN-004"),
        ("odd/corrupt/truncated_cog_rgb.tif", "IN-004"),
        ("corrupt/gdal/byte_zstd_corrupted.tif", "IN-005"),
        ("corrupt/gdal/truncated.jp2", "IN-005"),
        ("variants/v04_gcps.tif", "IN-007"),
        ("odd/real/s1_grd_210gcps_cog.tif", "IN-007"),
        ("odd/gdal/byte_2gcps.jp2", "IN-007"),
        ("odd/gdal/byte_rpc.tif", "IN-008"),
        ("variants/v07_no_georef.tif", "IN-006"),
        ("odd/jp2/t19udp_B02.jp2", "IN-006"),
        ("odd/real/palette_u8_2411x3417_epsg4269.tif", "IN-010"),
    ],
)
def test_refusals_by_name(real_data: Path, file: str, code: str) -> None:
    with pytest.raises(InputError) as caught:
        open_scene(real_data / file).read_block(Window(row_off=0, col_off=0, height=1, width=1))
    assert caught.value.code == code


def test_c19_any_band_invalid_in_the_staggered_swath(real_data: Path) -> None:
    scene = open_scene(real_data / "scenes/s2_l1c_t19udp_13band.tif", bands=CLOUD_BANDS)
    block = scene.read_block(whole(scene))
    assert int((~block.valid_everywhere()).sum()) == 182_652
    assert int((~block.valid).all(axis=0).sum()) == 176_199


@pytest.mark.parametrize("variant", ["v05_internal_mask", "v06_float32_nan"])
def test_c17_c18_disc_of_the_variants(real_data: Path, variant: str) -> None:
    scene = open_scene(real_data / f"variants/{variant}.tif")
    disc = open_scene(real_data / "golden/variants_disc.tif", allow_no_crs=True)
    invalid = disc.read(whole(disc))[0] > 0
    valid = scene.read_block(whole(scene)).valid_everywhere()
    np.testing.assert_array_equal(valid, ~invalid)
    assert invalid.any()


def test_variants_hold_the_same_pixels(real_data: Path) -> None:
    plain = open_scene(real_data / "variants/v01_plain.tif")
    reference = plain.read(whole(plain))
    south = open_scene(real_data / "variants/v02_southup.tif")
    np.testing.assert_array_equal(south.read(whole(south))[:, ::-1], reference)
    rotated = open_scene(real_data / "variants/v03_rotated15.tif")
    np.testing.assert_array_equal(rotated.read(whole(rotated)), reference)
    assert rotated.geobox.pixel_area == pytest.approx(plain.geobox.pixel_area)
    assert south.geobox.transform.e > 0


def test_aoi_of_real_buildings_equals_their_burned_mask(real_data: Path) -> None:
    scene = open_scene(real_data / "scenes/banepa_rgb.tif")
    aoi = Aoi.from_file(real_data / "labels/banepa_buildings.geojson", scene.geobox)
    with rasterio.open(real_data / "labels/banepa_buildings_mask.tif") as truth:
        expected = truth.read(1) == 1
    np.testing.assert_array_equal(aoi.mask(whole(scene)), expected)


def test_c36_a_mask_per_band(real_data: Path) -> None:
    path = real_data / "odd/gdal/test3_with_mask_8bit.tif"
    scene = open_scene(path, allow_no_crs=True)
    expected = real_masks(path)
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(scene.read_block(whole(scene)).valid, expected)


def test_external_mask_and_alpha(real_data: Path) -> None:
    for name in ("rgb_external_mask", "rgb_internal_mask", "rgba_u8_utm18", "rgba_u16_bgr_order"):
        path = real_data / f"odd/real/{name}.tif"
        scene = open_scene(path)
        with rasterio.open(path) as dataset:
            expected = dataset.dataset_mask() > 0
        valid = scene.read_block(whole(scene)).valid_everywhere()
        assert len(scene.bands) == 3
        np.testing.assert_array_equal(valid, expected, err_msg=name)


def test_sentinels_own_quality_layer_over_finer_and_coarser_bands(real_data: Path) -> None:
    """SCL at 200 m over bands of 100, 200 and 600 m, against GDAL's nearest."""
    folder = real_data / "stac" / "s2_29rkh"
    values = (3, 8, 9, 10)
    for name in ("B02", "B05", "B01"):
        scene = open_scene(folder / f"{name}.tif")
        layer = open_quality_layer(scene, str(folder / "SCL.tif"), values, access=None)
        with (
            rasterio.open(folder / "SCL.tif") as file,
            rasterio.open(folder / f"{name}.tif") as like,
            WarpedVRT(file, transform=like.transform, height=like.height, width=like.width) as warped,
        ):
            expected = ~np.isin(warped.read(1), values)
        assert not layer.warnings
        np.testing.assert_array_equal(layer.mask(whole(scene)), expected)
        assert 0 < np.count_nonzero(~expected) < expected.size


def test_c16_c25_collars_and_unwritten_blocks_are_told_and_nothing_else_is(real_data: Path) -> None:
    """Sentinel-2's JPEG 2000 files have a collar of zeros and do not say so; the scenes and variants have none."""
    whole_scenes = [
        *real_data.glob("scenes/**/*.tif"),
        *real_data.glob("variants/*.tif"),
        *real_data.glob("stac/**/*.tif"),
    ]
    assert len(whole_scenes) > 60
    for path in whole_scenes:
        told = [
            sentence for sentence in open_scene(path, allow_no_crs=True).warnings if "control points" not in sentence
        ]
        assert told == [], path
    for path in real_data.glob("odd/jp2/*.jp2"):
        assert any("--nodata 0" in sentence for sentence in open_scene(path, allow_no_crs=True).warnings), path
