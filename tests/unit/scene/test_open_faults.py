"""One test per row of the fault catalogue: the error's code, and the words that help."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp, Resampling

from pipeline.errors import InputError, PipelineError, UsageError
from pipeline.grid import Window
from pipeline.scene import BLOCK_CACHE_BYTES, open_scene, warn
from pipeline.scene import files as files_module
from tests.unit.scene.rasters import noise, tiff_pages, write_tif

if TYPE_CHECKING:
    from pathlib import Path


def refused(source: Any, code: str, **options: Any) -> PipelineError:
    kind = UsageError if code.startswith("CF") else InputError
    with pytest.raises(kind) as caught:
        open_scene(source, **options)
    assert caught.value.code == code
    assert caught.value.fix
    assert caught.value.title
    return caught.value


def test_c1_missing_file(tmp_path: Path) -> None:
    assert "no file" in refused(tmp_path / "none.tif", "IN-001").what


@pytest.mark.parametrize("source", ["/vsicurl/https://example.com/a.tif", "/vsis3/bucket/a.tif", "/vsizip/a.zip/a.tif"])
def test_t5_virtual_paths_are_not_followed(source: str) -> None:
    assert "address" in refused(source, "IN-001").fix


def test_c1_zero_bytes(tmp_path: Path) -> None:
    path = tmp_path / "zero.tif"
    path.touch()
    assert "0 bytes" in refused(path, "IN-003").what


def test_c1_html_error_page(tmp_path: Path) -> None:
    path = tmp_path / "page.tif"
    path.write_text("<html><body>404 Not Found</body></html>")
    error = refused(path, "IN-002")
    assert "<html>" in error.what
    assert "web page" in error.fix


def test_c1_git_lfs_pointer(tmp_path: Path) -> None:
    path = tmp_path / "lfs.tif"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git lfs pull" in refused(path, "IN-002").fix


def test_c1_binary_rubbish_shows_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "rubbish.tif"
    path.write_bytes(bytes(range(200, 256)) * 10)
    assert "c8 c9 ca" in refused(path, "IN-002").what


def test_c1_folder_without_a_scene(tmp_path: Path) -> None:
    assert "holds no GeoTIFF" in refused(tmp_path, "IN-054").what


def test_c37_containers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    error = refused(path, "IN-014")
    assert "HDF5" in error.what
    assert "gdalinfo" in error.fix


@pytest.mark.parametrize("compress", ["none", "deflate", "lzw", "zstd"])
@pytest.mark.parametrize("keep", [0.1, 0.3, 0.5, 0.8, 0.95, 0.999])
def test_c2_truncated_tiff_is_found_at_open(tmp_path: Path, compress: str, keep: float) -> None:
    path = write_tif(
        tmp_path / "t.tif", noise(3, 300, 300), tiled=True, blockxsize=64, blockysize=64, compress=compress
    )
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    error = refused(path, "IN-004")
    assert f"the file at byte {int(len(whole) * keep)}" in error.what


def test_c2_truncated_by_one_byte_names_the_block(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "t.tif", noise(1, 100, 100), blockysize=10, compress="deflate")
    raw = path.read_bytes()
    with rasterio.open(path) as dataset:
        ends = [
            int(dataset.get_tag_item(f"BLOCK_OFFSET_0_{k}", "TIFF", bidx=1))
            + int(dataset.get_tag_item(f"BLOCK_SIZE_0_{k}", "TIFF", bidx=1))
            for k in range(10)
        ]
    path.write_bytes(raw[: max(ends) - 1])
    error = refused(path, "IN-004")
    assert f"ends at byte {max(ends)}" in error.what or "directory" in error.what


@pytest.mark.parametrize("driver", ["JPEG", "PNG"])
def test_c2_truncated_pictures(tmp_path: Path, driver: str) -> None:
    path = tmp_path / "p.tif"
    with rasterio.open(write_tif(tmp_path / "a.tif", noise(3, 200, 200, dtype="uint8"), crs=None)) as dataset:
        data = dataset.read()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_tif(path, data, driver=driver, crs=None, transform=None)
    open_scene(path, allow_no_crs=True)
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    assert "its end is missing" in refused(path, "IN-004", allow_no_crs=True).what


def test_c3_c4_a_block_that_cannot_be_decoded_is_an_error_not_nodata(tmp_path: Path) -> None:
    path = write_tif(
        tmp_path / "b.tif", noise(1, 256, 256), tiled=True, blockxsize=64, blockysize=64, compress="deflate"
    )
    with rasterio.open(path) as dataset:
        offset = int(dataset.get_tag_item("BLOCK_OFFSET_2_1", "TIFF", bidx=1))
    raw = bytearray(path.read_bytes())
    raw[offset : offset + 40] = bytes(40)
    path.write_bytes(raw)
    scene = open_scene(path)
    scene.read(Window(row_off=0, col_off=0, height=64, width=64))
    with pytest.raises(InputError, match="IN-005") as caught:
        scene.read_block(Window(row_off=64, col_off=120, height=30, width=30))
    assert str(path) in caught.value.where
    assert "rows 64-94, columns 120-150" in caught.value.where
    assert "Read failed" not in caught.value.what  # the cause, not rasterio's wrapper


def test_c5_no_crs(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "n.tif", noise(1, 8, 8), crs=None)
    error = refused(path, "IN-006")
    assert "--assume-crs" in error.fix
    assert "--allow-no-crs" in error.fix
    assert open_scene(path, allow_no_crs=True).geobox.crs_wkt is None
    wkt = open_scene(path, assume_crs="EPSG:32719").geobox.crs_wkt
    assert rasterio.CRS.from_wkt(wkt).to_epsg() == 32719


def test_c5_assumed_crs_may_repeat_but_not_contradict_the_file(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "n.tif", noise(1, 8, 8))
    scene = open_scene(path, assume_crs="+proj=utm +zone=33 +datum=WGS84 +units=m +no_defs")
    assert scene.geobox == open_scene(path).geobox
    degrees = write_tif(tmp_path / "d.tif", noise(1, 8, 8), crs="EPSG:4326")
    open_scene(degrees, assume_crs="OGC:CRS84")  # the same but for the order of axes
    assert "EPSG:32633" in refused(path, "CF-010", assume_crs="EPSG:32634").what
    refused(path, "CF-012", assume_crs="EPSG:nonsense")


def test_c6_gcps_only(tmp_path: Path) -> None:
    path = tmp_path / "g.tif"
    corners = [(0, 0, 10, 50), (0, 8, 11, 50), (8, 0, 10, 49), (8, 8, 11, 49)]
    gcps = [GroundControlPoint(row=r, col=c, x=x, y=y) for r, c, x, y in corners]
    write_tif(path, noise(1, 8, 8), crs="EPSG:4326", transform=None, gcps=gcps)
    error = refused(path, "IN-007")
    assert "4 ground control points" in error.what
    assert "--warp-gcps" in error.fix
    refused(path, "IN-007", assume_crs="EPSG:4326")
    assert any("ground control" in w for w in open_scene(path, allow_no_crs=True).warnings)


def test_c7_rpc_only(tmp_path: Path) -> None:
    from rasterio.rpc import RPC

    ones = [1.0] + [0.0] * 19
    rpc = RPC(
        height_off=0, height_scale=1, lat_off=50, lat_scale=1, line_den_coeff=ones, line_num_coeff=ones, line_off=0,
        line_scale=1, long_off=10, long_scale=1, samp_den_coeff=ones, samp_num_coeff=ones, samp_off=0, samp_scale=1,
        err_bias=None, err_rand=None,
    )  # fmt: skip
    path = write_tif(tmp_path / "r.tif", noise(1, 8, 8), crs=None, transform=None, rpcs=rpc)
    assert "--rpc-height" in refused(path, "IN-008").fix
    assert open_scene(path, allow_no_crs=True).warnings


def test_c13_engineering_crs_works(tmp_path: Path) -> None:
    wkt = 'LOCAL_CS["site grid",UNIT["US survey foot",0.304800609601219],AXIS["E",EAST],AXIS["N",NORTH]]'
    scene = open_scene(write_tif(tmp_path / "l.tif", noise(1, 8, 8), crs=wkt))
    assert scene.geobox.crs_wkt is not None
    assert "site grid" in scene.geobox.crs_wkt


def test_c16_undeclared_collar(tmp_path: Path) -> None:
    data = noise(3, 100, 100)
    data[:, :, :10] = 0
    (sentence,) = open_scene(write_tif(tmp_path / "c.tif", data)).warnings
    assert "10 %" in sentence
    assert "--nodata 0" in sentence
    assert open_scene(tmp_path / "c.tif", nodata=0).warnings == ()


def test_c16_no_collar_inside_or_in_one_band_only(tmp_path: Path) -> None:
    data = noise(3, 100, 100)
    data[:, 30:70, 30:70] = 0  # a lake
    data[0, :, :10] = 0  # one band only
    assert open_scene(write_tif(tmp_path / "c.tif", data)).warnings == ()


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((300, 700), {"tiled": True, "blockxsize": 64, "blockysize": 64}),
        ((1100, 90), {"blockysize": 1}),
        ((1100, 600), {"blockysize": 1100}),
    ],
)
def test_c16_a_scene_is_looked_at_where_gdal_would(
    tmp_path: Path, shape: tuple[int, int], layout: dict[str, Any]
) -> None:
    data = noise(3, *shape)
    with rasterio.open(write_tif(tmp_path / "s.tif", data, **layout)) as dataset:
        out_shape = 2, min(256, shape[0]), min(256, shape[1])
        expected = dataset.read([3, 1], out_shape=out_shape, resampling=Resampling.nearest)
        np.testing.assert_array_equal(warn._decimated(dataset, [3, 1]), expected)


@pytest.mark.parametrize("size", [(300, 900), (2100, 2200)])
def test_c16_overviews_whose_blocks_gdal_would_decode_again_and_again_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    data = noise(3, *size, dtype="uint8")
    data[:, :, :200] = 0
    path = write_tif(tmp_path / "s.tif", data, tiled=True, blockxsize=64, blockysize=64, interleave="pixel")
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2], Resampling.nearest)
    with rasterio.open(path) as dataset:
        row_nbytes = 3 * 64 * -(-size[1] // (1 if size[0] < 512 else 2) // 64) * 64
        for nbytes, cheap in ((row_nbytes, True), (row_nbytes - 1, False)):
            monkeypatch.setattr(warn, "BLOCK_CACHE_BYTES", nbytes)
            assert warn._has_cheap_overviews(dataset) == cheap
            assert "--nodata 0" in str(warn.collar_warning(dataset, [1, 2, 3]))


_FRESH = """
import sys
from rasterio._env import get_gdal_config
import pipeline as sm
sm.open_scene(sys.argv[1])
print(get_gdal_config("GDAL_CACHEMAX"))
"""


def test_opening_many_bands_does_not_take_gdals_share_of_the_machine(tmp_path: Path) -> None:
    """A twentieth of all memory unless told otherwise: 1.3 GB of 24."""
    path = write_tif(tmp_path / "s.tif", noise(5, 80, 80))
    told = subprocess.run([sys.executable, "-c", _FRESH, path], capture_output=True, text=True, check=True)
    assert int(told.stdout) == BLOCK_CACHE_BYTES


def test_c16_what_does_not_hang_together_with_the_border_is_no_collar(tmp_path: Path) -> None:
    data = noise(1, 100, 100)
    data[:, :, :4] = 0
    data[:, 30:80, 30:80] = 0  # a lake of the same value
    assert open_scene(write_tif(tmp_path / "c.tif", data)).warnings == ()
    data = noise(1, 100, 100)
    data[:, 30:80, 30:99] = 0
    data[:, 50:54, 99] = 0  # a lake with an outlet
    assert open_scene(write_tif(tmp_path / "d.tif", data)).warnings == ()


def test_c16_collar_of_a_scene_too_large_to_look_at_whole(tmp_path: Path) -> None:
    data = noise(1, 2100, 2100, dtype="uint8")
    data[:, :, 1800:] = 255
    options = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "lzw"}
    (sentence,) = open_scene(write_tif(tmp_path / "c.tif", data, **options)).warnings
    assert "--nodata 255" in sentence
    data[:, :, 1800:] = noise(1, 2100, 300, dtype="uint8", seed=2)
    assert open_scene(write_tif(tmp_path / "d.tif", data, **options)).warnings == ()


def test_c24_sparse_blocks_read_as_nodata(tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    profile = {"driver": "GTiff", "count": 1, "height": 256, "width": 256, "dtype": "uint8", "crs": "EPSG:32633"}
    extra = {"transform": Affine(1, 0, 5e5, 0, -1, 5e6), "tiled": True, "blockxsize": 64, "blockysize": 64}
    with rasterio.open(path, "w", **profile, **extra, nodata=3, sparse_ok=True) as dataset:
        dataset.write(np.full((1, 64, 64), 9, np.uint8), window=rasterio.windows.Window(0, 0, 64, 64))
    scene = open_scene(path)
    assert scene.warnings == ()
    block = scene.read_block(Window(row_off=0, col_off=0, height=256, width=256))
    assert int(block.valid.sum()) == 64 * 64


def test_c25_blocks_never_written_without_nodata_are_suspicious(tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    profile = {"driver": "GTiff", "count": 1, "height": 256, "width": 256, "dtype": "uint8", "crs": "EPSG:32633"}
    extra = {"transform": Affine(1, 0, 5e5, 0, -1, 5e6), "tiled": True, "blockxsize": 64, "blockysize": 64}
    with rasterio.open(path, "w", **profile, **extra, sparse_ok=True) as dataset:
        for row in range(4):
            dataset.write(noise(1, 64, 64, dtype="uint8"), window=rasterio.windows.Window(64 * row, 64 * row, 64, 64))
    sentences = open_scene(path).warnings
    assert any("75.0 % of the blocks have no data on disk" in s for s in sentences)


_KILLED = """
import os, signal, sys
import numpy as np, rasterio
from rasterio.windows import Window
options = dict(pair.split("=") for pair in sys.argv[2:])
profile = dict(driver="GTiff", count=1, height=512, width=512, dtype="uint16", crs="EPSG:32633",
               transform=rasterio.Affine(1, 0, 5e5, 0, -1, 5e6))
with rasterio.Env(GDAL_CACHEMAX=200_000):
    file = rasterio.open(sys.argv[1], "w", **profile, **options)
    for row in range(0, 512, 64):
        data = np.random.default_rng(row).integers(1, 9999, (1, 64, 512)).astype("u2")
        file.write(data, window=Window(0, row, 512, 64))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    "options",
    [["tiled=yes", "compress=deflate"], ["compress=none"], ["tiled=yes", "compress=zstd", "nodata=0"], ["nodata=0"]],
)
def test_c25_a_file_whose_writer_was_killed_is_suspicious(tmp_path: Path, options: list[str]) -> None:
    """It opens, and all its pixels read as zeros, although most of its bytes are there."""
    path = tmp_path / "killed.tif"
    subprocess.run([sys.executable, "-c", _KILLED, str(path), *options], check=False)
    assert path.stat().st_size > 100_000
    (sentence,) = open_scene(path).warnings
    assert "not one block of the file has data on disk" in sentence
    assert ("--nodata 0" in sentence) == ("nodata=0" not in options)


def test_c23_huge_sparse_scene_opens_at_once(tmp_path: Path) -> None:
    path = tmp_path / "huge.tif"
    profile = {"driver": "GTiff", "count": 1, "height": 400_000, "width": 400_000, "dtype": "uint8"}
    extra = {"tiled": True, "blockxsize": 512, "blockysize": 512, "sparse_ok": True, "nodata": 0, "bigtiff": "YES"}
    with rasterio.open(path, "w", **profile, **extra, crs="EPSG:32633", transform=Affine(1, 0, 5e5, 0, -1, 5e6)):
        pass
    scene = open_scene(path)
    block = scene.read_block(Window(row_off=399_990, col_off=399_990, height=10, width=10))
    assert not block.valid.any()


def test_t7_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tif(tmp_path / "l.tif", noise(3, 40, 40))
    for limit, value, word in (
        ("MAX_PIXELS", 1599, "pixels"),
        ("MAX_BANDS", 2, "bands"),
        ("MAX_BLOCK_BYTES", 79, "MB"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(files_module, limit, value)
            assert word in refused(path, "IN-013").what
    open_scene(path)
    assert (files_module.MAX_PIXELS, files_module.MAX_BANDS, files_module.MAX_BLOCK_BYTES) == (2**40, 4096, 512 * 10**6)


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "complex_int16"])
def test_c28_complex_is_refused(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "c.tif"
    profile = {"driver": "GTiff", "count": 1, "height": 8, "width": 8, "crs": "EPSG:32633"}
    with rasterio.open(path, "w", **profile, dtype=dtype, transform=Affine(1, 0, 5e5, 0, -1, 5e6)):
        pass
    assert "complex" in refused(path, "IN-009").what


def test_c29_palette_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.tiff"
    write_tif(path, noise(1, 8, 8, dtype="uint8"), photometric="palette")
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {k: (k, 0, 0, 255) for k in range(256)})
    assert "gdal_translate -expand rgb 'p.tiff'" in refused(path, "IN-010").fix


def test_c31_unknown_band_lists_what_there_is(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "b.tif", noise(3, 8, 8), descriptions=("B02", "B03", "B8A"))
    error = refused(path, "IN-011", bands=["B02", "B8a ", "B8"])
    assert "1 B02, 2 B03, 3 B8A" in error.what
    assert "'B8A'" in error.fix
    for wanted in (0, 4, -1, "4"):
        assert "no band number" in refused(path, "IN-011", bands=[wanted]).what
    refused(path, "IN-011", bands=[])


def test_c31_ambiguous_names_are_refused(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "b.tif", noise(3, 8, 8), descriptions=("x", "x", "y"))
    assert "bands 1, 2" in refused(path, "IN-011", bands=["x"]).what


def test_c31_bands_by_colour(tmp_path: Path) -> None:
    interp = [ColorInterp.blue, ColorInterp.green, ColorInterp.red]
    path = write_tif(tmp_path / "bgr.tif", noise(3, 8, 8), colorinterp=interp)
    assert [b.index for b in open_scene(path, bands=["red", "Green", "blue"]).bands] == [3, 2, 1]


def test_c37_other_images_in_the_file_are_mentioned(tmp_path: Path) -> None:
    path = tmp_path / "pages.tif"
    path.write_bytes(tiff_pages(3))
    scene = open_scene(path, allow_no_crs=True)
    assert any("3 images; only the first is used" in w for w in scene.warnings)
    window = Window(row_off=0, col_off=0, height=8, width=8)
    assert np.unique(scene.read(window)).tolist() == [1]


@pytest.mark.parametrize("indent", ["", "\n  ", "\ufeff"])
def test_t4_a_vrt_in_disguise_is_refused(tmp_path: Path, indent: str) -> None:
    write_tif(tmp_path / "secret.tif", noise(1, 8, 8))
    path = tmp_path / "scene.tif"
    path.write_text(
        f'{indent}<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="0">{tmp_path}/secret.tif</SourceFilename></SimpleSource></VRTRasterBand>'
        "</VRTDataset>",
        encoding="utf-8",
    )
    assert "virtual" in refused(path, "IN-014").what


@pytest.mark.parametrize("suffix", [".msk", ".ovr"])
def test_t4_a_vrt_as_sidecar_is_refused(tmp_path: Path, suffix: str) -> None:
    path = write_tif(tmp_path / "scene.tif", noise(1, 8, 8))
    path.with_name(path.name + suffix).write_text("<VRTDataset/>")
    assert suffix in refused(path, "IN-014").where


def test_t4_content_beats_the_name(tmp_path: Path) -> None:
    path = tmp_path / "jpeg.tif"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_tif(path, noise(3, 32, 32, dtype="uint8"), driver="JPEG", crs=None, transform=None)
    scene = open_scene(path, allow_no_crs=True)
    assert scene.driver == "JPEG"  # type: ignore[attr-defined]


def test_cf_011_impossible_nodata(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "n.tif", noise(1, 8, 8, dtype="uint8"))
    for nodata in (-1, 256, 0.5, float("nan")):
        refused(path, "CF-011", nodata=nodata)


def test_a_declared_nodata_that_cannot_occur_is_mentioned(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "n.tif", noise(1, 8, 8, dtype="uint8"), nodata=254)
    path.write_bytes(path.read_bytes().replace(b"254\x00", b"1.5\x00"))  # rasterio would not write it
    scene = open_scene(path)
    (sentence,) = scene.warnings
    assert "nodata 1.5 of band 1 cannot occur in uint8" in sentence
    assert scene.read_block(Window(row_off=0, col_off=0, height=8, width=8)).all_valid


def test_no_geotransform_but_a_crs_is_mentioned(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write_tif(tmp_path / "i.tif", noise(1, 8, 8), transform=None)
    (sentence,) = open_scene(path).warnings
    assert "no geotransform" in sentence


def test_in_016_flat_geotransform(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write_tif(tmp_path / "i.tif", noise(1, 8, 8), transform=Affine(1, 2, 0, 2, 4, 0))
    assert "no area" in refused(path, "IN-016").what


def test_only_an_alpha_band(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", noise(2, 8, 8, dtype="uint8"))
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.alpha, ColorInterp.alpha]
    refused(path, "IN-002")


def test_unreadable_file(tmp_path: Path) -> None:
    import os

    path = write_tif(tmp_path / "x.tif", noise(1, 8, 8))
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user reads everything")
    refused(path, "IN-005")


def test_fuzzed_headers_never_raise_anything_else(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "f.tif", noise(2, 40, 40, dtype="uint8"), compress="deflate", nodata=0)
    raw = path.read_bytes()
    rng = np.random.default_rng(0)
    outcomes = {"opened": 0, "refused": 0}
    for _ in range(200):
        changed = bytearray(raw)
        for place in rng.integers(0, 400, 3):
            changed[place] = rng.integers(0, 256)
        path.write_bytes(changed)
        try:
            scene = open_scene(path, allow_no_crs=True)
            height, width = scene.geobox.shape
            scene.read_block(Window(row_off=0, col_off=0, height=min(height, 64), width=min(width, 64)))
            outcomes["opened"] += 1
        except InputError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10, outcomes
