"""Scenes on another grid: coarser, in another CRS, on a file's grid, and placed by control points."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.rpc import RPC
from rasterio.vrt import WarpedVRT
from rasterio.warp import Resampling, reproject

from pipeline.errors import InputError, UsageError
from pipeline.grid import GeoBox, Window
from pipeline.scene import open_scene
from pipeline.scene.crs import wkt_of
from pipeline.scene.open import Opening, open_one
from pipeline.scene.regrid import GridWish, pixel_size_m, regrid, rescaled
from pipeline.scene.sources import SourcesScene
from tests.scenes import NORTH_UP, smooth_values, write_scene

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.scene import Scene

SHAPE = (90, 120)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_scene(tmp_path / "scene.tif", smooth_values(2, SHAPE), names=("b0", "b1"))


def whole(scene: Scene) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    height, width = scene.geobox.shape
    return scene.read(Window(row_off=0, col_off=0, height=height, width=width))


def test_its_own_grid_is_the_scene_itself(path: Path) -> None:
    scene = open_scene(path)
    for wish in (GridWish(), GridWish(crs="EPSG:32633"), GridWish(resolution_m=10), GridWish(align=scene.geobox)):
        assert regrid(scene, wish) is scene


def test_coarser_pixels_are_means_and_cover_all_of_it(path: Path) -> None:
    scene = regrid(open_scene(path), GridWish(resolution_m=40))
    assert scene.geobox.shape == (23, 30)
    assert scene.geobox.transform == NORTH_UP @ Affine.scale(4)
    data = open_scene(path).read(Window(row_off=0, col_off=0, height=88, width=120)).astype(float)
    means = data.reshape(2, 22, 4, 30, 4).mean(axis=(2, 4))
    assert np.abs(whole(scene)[:, :22] - means).max() <= 0.5
    assert isinstance(scene, SourcesScene)
    assert scene.parts[0].kernel == "average"


def test_bands_are_chosen_on_it_as_on_the_scene(path: Path) -> None:
    scene = open_scene(path)
    coarse = regrid(scene, GridWish(resolution_m=20))
    assert [band.name for band in coarse.select(["b1"]).bands] == ["b1"]
    both = whole(coarse)
    assert np.array_equal(whole(coarse.select(["b1", 1])), both[[1, 0]])
    assert np.array_equal(whole(regrid(scene.select(["b1"]), GridWish(resolution_m=20))), both[[1]])


def test_the_grid_of_another_file_is_taken_to_the_pixel(path: Path, tmp_path: Path) -> None:
    box = GeoBox(
        shape=(50, 60),
        transform=NORTH_UP @ Affine.translation(12.5, 7) @ Affine.scale(1.5),
        crs_wkt=open_scene(path).geobox.crs_wkt,
    )
    scene = regrid(open_scene(path), GridWish(align=box), resampling="nearest")
    assert scene.geobox == box
    rows, cols = (1.5 * (np.arange(n) + 0.5) + start for n, start in ((50, 7), (60, 12.5)))
    data = whole(open_scene(path))
    assert np.array_equal(whole(scene), data[:, rows.astype(int)][:, :, cols.astype(int)])


def test_another_crs_is_reached_by_square_pixels_of_about_the_same_size(path: Path) -> None:
    scene = regrid(open_scene(path), GridWish(crs="EPSG:3857"))
    ground = pixel_size_m(scene.geobox)
    assert ground is not None
    assert abs(ground - 10) < 0.5
    assert scene.geobox.transform.a == -scene.geobox.transform.e
    with pytest.raises(UsageError, match=r"CF-012.*--crs"):
        regrid(open_scene(path), GridWish(crs="EPSG:nonsense"))


def test_a_scene_without_a_place_is_refused(tmp_path: Path) -> None:
    scene = open_scene(write_scene(tmp_path / "s.tif", smooth_values(1, SHAPE), crs=None), allow_no_crs=True)
    for wish in (GridWish(crs="EPSG:3857"), GridWish(resolution_m=3)):
        with pytest.raises(InputError, match="IN-055"):
            regrid(scene, wish)


@pytest.mark.parametrize("factor", [0.5, 1 / 3, 2.0, 2.5, 1.0 + 1e-9])
def test_rescaled_grids_begin_at_the_same_corner(factor: float) -> None:
    box = GeoBox(shape=(100, 37), transform=NORTH_UP, crs_wkt=None)
    found = rescaled(box, factor)
    assert found.corners_xy()[0] == box.corners_xy()[0]
    for n, m in zip(found.shape, box.shape, strict=True):
        assert m - 1e-3 <= n * factor < m + factor + 1e-3


def test_c6_control_points_place_pixels_as_gdal_does(tmp_path: Path) -> None:
    data = smooth_values(1, SHAPE)
    turned = NORTH_UP @ Affine.rotation(20)
    gcps = [
        GroundControlPoint(row=r, col=c, x=x, y=y, z=0)
        for r in (0, 45, 90)
        for c in (0, 60, 120)
        for x, y in [turned @ (c, r)]
    ]
    path = write_scene(tmp_path / "gcps.tif", data, transform=None, crs="EPSG:32633", gcps=gcps, nodata=0)
    scene = open_one(path, Opening(warp_gcps=True, resampling="nearest"))
    assert isinstance(scene, SourcesScene)
    scene = scene.on_grid(scene.geobox, resampling="nearest")
    assert scene.warnings == ()
    with rasterio.open(path) as source, WarpedVRT(source, crs=CRS.from_epsg(32633)) as warped:
        assert scene.geobox.shape == warped.shape
        assert scene.geobox.transform.almost_equals(warped.transform, 1e-6)
        assert (whole(scene)[0] != warped.read(1)).mean() < 0.005


def rpc_scene(folder: Path) -> Path:
    """Columns lean by a pixel for 15 m of height."""
    line = [0.0, 0.0, -1.0] + [0.0] * 17
    sample = [0.0, 1.0, 0.1, 0.55] + [0.0] * 16
    ones = [1.0] + [0.0] * 19
    rpcs = RPC(
        height_off=100, height_scale=500, lat_off=45, lat_scale=0.004, long_off=15, long_scale=0.006, line_off=45,
        line_scale=45, samp_off=60, samp_scale=60, line_num_coeff=line, line_den_coeff=ones, samp_num_coeff=sample,
        samp_den_coeff=ones, err_bias=None, err_rand=None,
    )  # fmt: skip
    return write_scene(folder / "rpc.tif", smooth_values(1, SHAPE), transform=None, crs=None, rpcs=rpcs, nodata=0)


def test_c7_rpcs_place_pixels_as_gdal_does(tmp_path: Path) -> None:
    path = rpc_scene(tmp_path)
    with pytest.raises(InputError, match=r"IN-008.*--rpc-height"):
        open_one(path, Opening(warp_gcps=True))
    grids = []
    for height in (100.0, 250.0):
        scene = open_one(path, Opening(warp_gcps=True, rpc_height_m=height))
        assert isinstance(scene, SourcesScene)
        scene = scene.on_grid(scene.geobox, resampling="nearest")
        with (
            rasterio.open(path) as source,
            WarpedVRT(source, src_crs="EPSG:4326", crs="EPSG:4326", RPC_HEIGHT=height) as warped,
        ):
            assert scene.geobox.shape == warped.shape
            assert (whole(scene)[0] != warped.read(1)).mean() < 0.01
        grids.append(scene.geobox)
    assert grids[0] != grids[1]


def test_c7_rpcs_over_hills_take_a_model_of_them(tmp_path: Path) -> None:
    path = rpc_scene(tmp_path)
    y, x = np.mgrid[:60, :80]
    hills = (200 + 120 * np.sin(x / 9) * np.cos(y / 7))[None].astype(np.float32)
    place = Affine(0.0004, 0, 14.984, 0, -0.0004, 45.012)
    dem = write_scene(tmp_path / "dem.tif", hills, crs="EPSG:4326", transform=place)
    scene = open_one(path, Opening(warp_gcps=True, rpc_dem=str(dem), rpc_height_m=30.0))
    assert isinstance(scene, SourcesScene)
    flat = open_one(path, Opening(warp_gcps=True, rpc_height_m=230.0))
    scene = scene.on_grid(flat.geobox, resampling="nearest", fixed=True)
    with rasterio.open(path) as source:
        expected = np.zeros(flat.geobox.shape, np.uint16)
        reproject(
            source.read(1), expected, rpcs=source.rpcs, src_crs="EPSG:4326", dst_crs="EPSG:4326", src_nodata=0,
            dst_transform=flat.geobox.transform, resampling=Resampling.nearest, tolerance=0,
            RPC_HEIGHT=30, RPC_DEM=str(dem),
        )  # fmt: skip
    assert (whole(scene)[0] != expected).mean() < 0.02
    assert (whole(flat)[0] != expected).mean() > 0.2
    before = scene.fingerprint()
    write_scene(dem, hills + 1, crs="EPSG:4326", transform=place)
    assert scene.fingerprint() != before
    part = write_scene(tmp_path / "part.tif", hills, crs="EPSG:4326", transform=place @ Affine.translation(40, 0))
    half = open_one(path, Opening(warp_gcps=True, rpc_dem=str(part)))
    assert "of the scene only" in half.warnings[0]
    assert 0.3 < (whole(half) != 0).mean() < 0.7
    far = write_scene(tmp_path / "far.tif", hills, crs="EPSG:4326", transform=place @ Affine.translation(400, 0))
    with pytest.raises(InputError, match="IN-062"):
        open_one(path, Opening(warp_gcps=True, rpc_dem=str(far)))
    two = write_scene(tmp_path / "two.tif", np.concatenate([hills, hills]), crs="EPSG:4326", transform=place)
    for wrong, code in ((two, "IN-062"), (tmp_path / "none.tif", "IN-001")):
        with pytest.raises(InputError, match=code):
            open_one(path, Opening(warp_gcps=True, rpc_dem=str(wrong)))


def test_warp_gcps_leaves_other_scenes_alone(path: Path, tmp_path: Path) -> None:
    assert type(open_one(path, Opening(warp_gcps=True))) is type(open_scene(path))
    with pytest.raises(UsageError, match="CF-010"):
        open_one(path, Opening(warp_gcps=True, assume_crs="EPSG:3857"))
    bare = write_scene(tmp_path / "bare.tif", smooth_values(1, SHAPE), crs=None)
    with pytest.raises(InputError, match="IN-006"):
        open_one(bare, Opening(warp_gcps=True))


def test_what_has_no_place_in_the_scenes_crs_is_invalid(tmp_path: Path) -> None:
    """A grid of the whole world in degrees, of which a UTM zone has a small part; and one beyond the poles."""
    scene = open_scene(write_scene(tmp_path / "s.tif", smooth_values(1, SHAPE), nodata=0, crs="EPSG:3857"))
    box = GeoBox(shape=(200, 40), transform=Affine(1, 0, -20, 0, -1, 100), crs_wkt=open_lonlat())
    placed = regrid(scene, GridWish(align=box))
    block = placed.read_block(Window(row_off=0, col_off=0, height=200, width=40))
    assert not block.valid[0, :8].any()
    with pytest.raises(InputError, match="IN-055"):
        regrid(on_lonlat(tmp_path), GridWish(crs="EPSG:3857"))


def open_lonlat() -> str:
    return wkt_of(CRS.from_epsg(4326))


def on_lonlat(folder: Path) -> Scene:
    """A scene that reaches beyond the north pole, where Mercator ends."""
    place = Affine(1, 0, 0, 0, -1, 150)
    return open_scene(write_scene(folder / "pole.tif", smooth_values(1, (40, 60)), crs="EPSG:4326", transform=place))
