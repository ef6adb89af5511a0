from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp, Resampling

from pipeline.errors import InputError
from pipeline.grid import Window
from pipeline.scene import RasterScene, close_all, datasets, open_scene
from tests.unit.scene.rasters import TRANSFORM, noise, write_tif

if TYPE_CHECKING:
    from pathlib import Path


def whole(height: int, width: int) -> Window:
    return Window(row_off=0, col_off=0, height=height, width=width)


def test_describes_itself(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.b.tif", noise(2, 30, 40), nodata=7, descriptions=("B02", ""))
    scene = open_scene(path)
    assert scene.name == "a.b"
    assert scene.geobox.shape == (30, 40)
    assert scene.geobox.transform == TRANSFORM
    assert rasterio.CRS.from_wkt(scene.geobox.crs_wkt).to_epsg() == 32633
    assert scene.dtype == np.uint16
    assert scene.nodata == 7
    assert [(b.name, b.index, b.described, b.nodata) for b in scene.bands] == [("B02", 1, True, 7), ("2", 2, False, 7)]
    assert scene.warnings == ()


def test_scale_and_offset_are_told_and_never_applied(tmp_path: Path) -> None:
    data = noise(1, 8, 8)
    path = write_tif(tmp_path / "s.tif", data)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (0.0001,), (-0.1,)
    scene = open_scene(path)
    assert (scene.bands[0].scale, scene.bands[0].offset) == (0.0001, -0.1)
    np.testing.assert_array_equal(scene.read(whole(8, 8)), data)


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "float32", "float64"]
)
def test_keeps_the_dtype(tmp_path: Path, dtype: str) -> None:
    data = noise(2, 9, 11, dtype=dtype)
    scene = open_scene(write_tif(tmp_path / "d.tif", data))
    block = scene.read_block(whole(9, 11))
    assert block.data.dtype == scene.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(block.data, data)
    assert block.all_valid


@pytest.mark.parametrize("nbits", [1, 12])
def test_c28_odd_bit_depths_are_promoted(tmp_path: Path, nbits: int) -> None:
    dtype = "uint8" if nbits == 1 else "uint16"
    data = np.random.default_rng(0).integers(0, 2**nbits, (1, 12, 12)).astype(dtype)
    scene = open_scene(write_tif(tmp_path / "bits.tif", data, nbits=nbits))
    np.testing.assert_array_equal(scene.read(whole(12, 12)), data)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (7, 5)])
def test_c21_tiny_scenes(tmp_path: Path, shape: tuple[int, int]) -> None:
    data = noise(3, *shape)
    block = open_scene(write_tif(tmp_path / "t.tif", data, nodata=0)).read_block(whole(*shape))
    np.testing.assert_array_equal(block.data, data)
    assert block.all_valid
    assert block.valid_everywhere().shape == shape


def test_all_valid_costs_no_memory(tmp_path: Path) -> None:
    block = open_scene(write_tif(tmp_path / "v.tif", noise(4, 16, 16))).read_block(whole(16, 16))
    assert block.valid.shape == (4, 16, 16)
    assert block.valid.strides == (0, 0, 0)
    assert block.valid.all()


def test_c15_declared_nodata(tmp_path: Path) -> None:
    data = noise(2, 20, 20)
    data[:, :5] = 0
    data[1, 10, 10] = 0
    block = open_scene(write_tif(tmp_path / "n.tif", data, nodata=0)).read_block(whole(20, 20))
    np.testing.assert_array_equal(block.valid, data != 0)
    np.testing.assert_array_equal(block.valid_everywhere(), (data != 0).all(axis=0))
    assert not block.all_valid


def test_c17_nan_and_infinity_are_invalid_whatever_is_declared(tmp_path: Path) -> None:
    data = noise(1, 10, 10, dtype="float32")
    data[0, 0, :4] = [np.nan, np.inf, -np.inf, -9999]
    for nodata, last in ((None, True), (np.nan, True), (-9999, False)):
        block = open_scene(write_tif(tmp_path / "f.tif", data, nodata=nodata)).read_block(whole(10, 10))
        assert block.valid[0, 0, :5].tolist() == [False, False, False, last, True], nodata
        assert int(block.valid.sum()) == 96 + last


def test_float32_nodata_is_compared_in_float32(tmp_path: Path) -> None:
    data = noise(1, 4, 4, dtype="float32")
    data[0, 0, 0] = np.float32(0.1)
    block = open_scene(write_tif(tmp_path / "f.tif", data, nodata=0.1)).read_block(whole(4, 4))
    assert not block.valid[0, 0, 0]
    assert int(block.valid.sum()) == 15


def test_c18_alpha_is_a_mask_and_no_band(tmp_path: Path) -> None:
    data = noise(4, 12, 12, dtype="uint8")
    data[3] = 255
    data[3, :, :4] = 0
    data[3, 0, 4] = 1  # half transparent is still there
    interp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    scene = open_scene(write_tif(tmp_path / "rgba.tif", data, colorinterp=interp))
    assert [b.color for b in scene.bands] == ["red", "green", "blue"]
    block = scene.read_block(whole(12, 12))
    assert block.data.shape == (3, 12, 12)
    np.testing.assert_array_equal(block.valid, np.broadcast_to(data[3] > 0, (3, 12, 12)))
    np.testing.assert_array_equal(scene.select([2]).read_block(whole(12, 12)).valid[0], data[3] > 0)


def test_c18_nodata_alpha_and_dataset_mask_all_count(tmp_path: Path) -> None:
    """GDAL itself listens to one of them only."""
    data = noise(2, 12, 12, dtype="uint8")
    data[1] = 255
    data[0, 0], data[1, 1] = 99, 0
    path = write_tif(tmp_path / "m.tif", data, nodata=99, colorinterp=[ColorInterp.gray, ColorInterp.alpha])
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        mask = np.full((12, 12), 255, np.uint8)
        mask[2] = 0
        dataset.write_mask(mask)
    block = open_scene(path).read_block(whole(12, 12))
    expected = (data[0] != 99) & (data[1] > 0)
    expected[2] = False
    np.testing.assert_array_equal(block.valid[0], expected)


@pytest.mark.parametrize("external", [False, True])
def test_c36_pixels_come_from_the_image_itself_never_from_overviews(tmp_path: Path, *, external: bool) -> None:
    """Overviews that tell another story change no window, whatever its size."""
    data = noise(1, 96, 128)
    path = write_tif(tmp_path / "o.tif", data, tiled=True, blockxsize=32, blockysize=32)
    with rasterio.Env(TIFF_USE_OVR=external), rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4], Resampling.average)
    assert (tmp_path / "o.tif.ovr").exists() == external
    scene = open_scene(path)
    for window in (
        Window(row_off=0, col_off=0, height=96, width=128), Window(row_off=5, col_off=7, height=31, width=90),
        Window(row_off=95, col_off=127, height=1, width=1),
    ):  # fmt: skip
        rows, cols = slice(window.row_off, window.row_stop), slice(window.col_off, window.col_stop)
        np.testing.assert_array_equal(scene.read(window), data[:, rows, cols])


@pytest.mark.parametrize("internal", [True, False])
def test_c36_internal_and_external_masks(tmp_path: Path, internal: bool) -> None:  # noqa: FBT001
    path = write_tif(tmp_path / "m.tif", noise(3, 40, 30))
    mask = np.zeros((40, 30), np.uint8)
    mask[5:30, 4:20] = 255
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(mask)
    assert path.with_name("m.tif.msk").exists() is not internal
    window = Window(row_off=3, col_off=2, height=20, width=25)
    block = open_scene(path).read_block(window)
    np.testing.assert_array_equal(block.valid, np.broadcast_to(mask[3:23, 2:27] > 0, (3, 20, 25)))


def test_c19_different_nodata_per_band(tmp_path: Path) -> None:
    """GeoTIFF cannot say it; a nodata override of one band can, as other formats and select do."""
    from dataclasses import replace

    data = noise(2, 10, 10)
    data[0, 0, 0] = data[1, 0, 0] = 5
    data[0, 1, 1] = data[1, 1, 1] = 6
    scene = open_scene(write_tif(tmp_path / "p.tif", data))
    assert isinstance(scene, RasterScene)
    bands = tuple(replace(b, nodata=n) for b, n in zip(scene.bands, (5.0, 6.0), strict=True))
    scene = replace(scene, bands=bands, all_bands=bands)
    assert scene.nodata is None
    valid = scene.read_block(whole(10, 10)).valid
    assert valid[:, 0, 0].tolist() == [False, True]
    assert valid[:, 1, 1].tolist() == [True, False]
    assert not scene.read_block(whole(10, 10)).valid_everywhere()[[0, 1], [0, 1]].any()
    assert scene.select([2]).nodata == 6


def test_nodata_override_replaces_the_files(tmp_path: Path) -> None:
    data = noise(2, 10, 10)
    data[:, 0], data[:, 1] = 0, 31_000
    scene = open_scene(write_tif(tmp_path / "o.tif", data, nodata=0), nodata=31_000)
    assert scene.nodata == 31_000
    np.testing.assert_array_equal(scene.read_block(whole(10, 10)).valid, data != 31_000)


def test_nodata_in_all_bands_at_once_is_the_datasets_own_rule(tmp_path: Path) -> None:
    data = noise(3, 6, 6, dtype="uint8")
    data[:, 0, 0] = (1, 2, 3)
    data[:, 1, 1] = (1, 2, 4)
    path = write_tif(tmp_path / "v.tif", data)
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(NODATA_VALUES="1 2 3")
    block = open_scene(path).read_block(whole(6, 6))
    assert not block.valid[:, 0, 0].any()
    assert int(block.valid.sum()) == 3 * 35


@pytest.mark.parametrize(
    "transform", [Affine.rotation(20) @ TRANSFORM, Affine(2, 0, 0, 0, 2, 0), Affine(1, 2, 3, 4, 5, 6)]
)
def test_c8_c9_rotated_and_south_up_are_kept(tmp_path: Path, transform: Affine) -> None:
    data = noise(1, 10, 15)
    scene = open_scene(write_tif(tmp_path / "r.tif", data, transform=transform))
    np.testing.assert_allclose(scene.geobox.transform[:6], transform[:6], rtol=1e-12)
    np.testing.assert_array_equal(scene.read(whole(10, 15)), data)


def test_c14_pixel_is_point_means_the_centre(tmp_path: Path) -> None:
    """Both files say the same place: GDAL moves the point of the one to the corner."""
    area, point = tmp_path / "area.tif", tmp_path / "point.tif"
    write_tif(area, noise(1, 5, 5))
    with rasterio.open(write_tif(point, noise(1, 5, 5)), "r+") as dataset:
        dataset.update_tags(AREA_OR_POINT="Point")
    assert open_scene(point).geobox.transform == open_scene(area).geobox.transform


def test_select_reorders_and_repeats(tmp_path: Path) -> None:
    data = noise(3, 8, 8)
    scene = open_scene(write_tif(tmp_path / "s.tif", data, descriptions=("B02", "B03", "B04")))
    chosen = scene.select(["B04", 1, "b03", "1"])
    assert [b.index for b in chosen.bands] == [3, 1, 2, 1]
    np.testing.assert_array_equal(chosen.read(whole(8, 8)), data[[2, 0, 1, 0]])
    assert [b.index for b in chosen.select([2]).bands] == [2]


def test_pickled_scene_reads_the_same_and_is_small(tmp_path: Path) -> None:
    data = noise(3, 64, 64)
    scene = open_scene(write_tif(tmp_path / "p.tif", data))
    scene.read(whole(64, 64))
    payload = pickle.dumps(scene)
    assert len(payload) < 4096
    again = pickle.loads(payload)
    assert again == scene
    np.testing.assert_array_equal(again.read(whole(64, 64)), data)


def test_threads_read_at_once_each_with_its_own_dataset(tmp_path: Path) -> None:
    data = noise(2, 256, 256)
    path = write_tif(tmp_path / "t.tif", data, tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    scene = open_scene(path)
    assert isinstance(scene, RasterScene)
    seen: set[int] = set()
    start = threading.Barrier(4)

    def read(k: int) -> bool:
        start.wait()
        seen.add(id(scene.dataset()))
        rng = np.random.default_rng(k)
        for _ in range(30):
            row, col = (int(v) for v in rng.integers(0, 200, 2))
            window = Window(row_off=row, col_off=col, height=56, width=56)
            if not np.array_equal(scene.read(window), data[:, row : row + 56, col : col + 56]):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(4)))
    assert len(seen) == 4


def test_a19_few_datasets_stay_open(tmp_path: Path) -> None:
    scenes = [open_scene(write_tif(tmp_path / f"{k}.tif", noise(1, 4, 4, seed=k))) for k in range(20)]
    close_all()
    for scene in scenes:
        scene.read(whole(4, 4))
    cache = datasets._local.cache
    assert len(cache) == datasets.MAX_OPEN_PER_THREAD
    kept = list(cache.values())
    close_all()
    assert not cache
    assert all(dataset.closed for dataset in kept)
    scenes[0].read(whole(4, 4))


def test_c38_a_changed_file_is_noticed(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "c.tif", noise(1, 8, 8))
    scene = open_scene(path)
    before = scene.fingerprint()
    assert scene.fingerprint() == before
    scene.read(whole(8, 8))
    write_tif(path, noise(1, 8, 8, seed=1))
    assert scene.fingerprint()["digest"] != before["digest"]
    with pytest.raises(InputError, match="IN-015") as caught:
        scene.read(whole(8, 8))
    assert "another file now" in caught.value.what


def test_a_touched_copy_is_still_the_same_scene(tmp_path: Path) -> None:
    import os

    data = noise(1, 8, 8)
    path = write_tif(tmp_path / "c.tif", data)
    scene = open_scene(path)
    os.utime(path, ns=(1, 1))
    np.testing.assert_array_equal(scene.read(whole(8, 8)), data)


def test_fingerprint_tells_choices_apart_and_is_json(tmp_path: Path) -> None:
    import json

    data = noise(3, 8, 8, dtype="float32")
    path = write_tif(tmp_path / "c.tif", data, crs=None)
    variants = [
        open_scene(path, assume_crs="EPSG:32633"),
        open_scene(path, assume_crs="EPSG:32634"),
        open_scene(path, assume_crs="EPSG:32633", nodata=float("nan")),
        open_scene(path, assume_crs="EPSG:32633", nodata=1),
        open_scene(path, assume_crs="EPSG:32633", bands=[2, 1]),
    ]
    texts = {json.dumps(scene.fingerprint(), allow_nan=False) for scene in variants}
    assert len(texts) == len(variants)


def test_windows_outside_are_our_own_bug(tmp_path: Path) -> None:
    scene = open_scene(write_tif(tmp_path / "w.tif", noise(1, 8, 8)))
    for window in (whole(9, 8), Window(row_off=-1, col_off=0, height=2, width=2), whole(0, 4)):
        with pytest.raises(AssertionError):
            scene.read(window)


@pytest.mark.parametrize(
    "name", ["a b.tif", "quote'\".tif", "ha#sh?.tif", "pct%20.tif", "ünï.tif", "-dash.tif", "a:b!.tif"]
)
def test_b16_odd_file_names(tmp_path: Path, name: str) -> None:
    data = noise(1, 6, 6)
    write_tif(tmp_path / "plain.tif", data).rename(tmp_path / name)
    np.testing.assert_array_equal(open_scene(tmp_path / name).read(whole(6, 6)), data)
