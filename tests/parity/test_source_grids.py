"""Sources on another grid: GDAL's warp of the whole is the reference, and no value depends on the window read."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from scipy import fft, ndimage

from pipeline.grid import GeoBox, Window
from pipeline.scene import open_scene
from pipeline.scene.crs import wkt_of
from pipeline.scene.sources import Part, SourcesScene
from tests.scenes import NORTH_UP, smooth_values, write_scene

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.scene.placement import Kernel

SHAPE = (151, 203)
KERNELS: tuple[Kernel, ...] = ("nearest", "bilinear", "cubic", "average")
UTM33, UTM34 = (wkt_of(CRS.from_epsg(code)) for code in (32633, 32634))
GRIDS = {
    "finer": GeoBox(shape=(302, 406), transform=NORTH_UP @ Affine.scale(0.5), crs_wkt=UTM33),
    "thirds": GeoBox(shape=(151 * 3, 203 * 3), transform=NORTH_UP @ Affine.scale(1 / 3), crs_wkt=UTM33),
    "coarser": GeoBox(shape=(60, 81), transform=NORTH_UP @ Affine.scale(2.5), crs_wkt=UTM33),
    "shifted": GeoBox(shape=(100, 120), transform=NORTH_UP @ Affine.translation(20.3, 31.6), crs_wkt=UTM33),
    "south-up": GeoBox(
        shape=(75, 101), transform=NORTH_UP @ Affine.translation(0, 150) @ Affine.scale(2, -2), crs_wkt=UTM33
    ),
    "beyond": GeoBox(shape=(200, 240), transform=NORTH_UP @ Affine.translation(-20, -30), crs_wkt=UTM33),
    "another zone": GeoBox(shape=(190, 230), transform=Affine(10, 0, 28_200, 0, -10, 5_017_600), crs_wkt=UTM34),
    "turned": GeoBox(
        shape=(120, 150), transform=NORTH_UP @ Affine.translation(60, 10) @ Affine.rotation(30), crs_wkt=UTM33
    ),
}


@pytest.fixture(scope="module")
def raster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth values with noise and a corner without data."""
    data = smooth_values(1, SHAPE) + np.random.default_rng(1).integers(0, 30, (1, *SHAPE)).astype(np.uint16)
    data[:, :40, :50] = 0
    return write_scene(tmp_path_factory.mktemp("grids") / "scene.tif", data, nodata=0, names=("b0",))


def on_grid(path: Path, name: str, kernel: Kernel) -> SourcesScene:
    source = open_scene(path)
    part = Part(scene=source, numbers=(1,))
    scene = SourcesScene(
        name=name,
        path=str(path),
        kind="test",
        parts=(part,),
        all_bands=source.bands,
        bands=source.bands,
        geobox=GRIDS[name],
    )
    return scene.on_grid(GRIDS[name], resampling=kernel)


def whole_of(scene: SourcesScene) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    height, width = scene.geobox.shape
    block = scene.read_block(Window(row_off=0, col_off=0, height=height, width=width))
    return block.data[0], np.array(block.valid[0])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", GRIDS)
@settings(max_examples=6)
@given(data=st.data())
def test_a_window_is_the_same_window_of_the_whole(raster: Path, name: str, kernel: Kernel, data: st.DataObject) -> None:
    scene = pickle.loads(pickle.dumps(on_grid(raster, name, kernel)))
    values, valid = whole_of(scene)
    height, width = scene.geobox.shape
    row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    row_stop, col_stop = data.draw(st.integers(row + 1, height)), data.draw(st.integers(col + 1, width))
    block = scene.read_block(Window.from_bounds(row, col, row_stop, col_stop))
    np.testing.assert_array_equal(block.data[0], values[row:row_stop, col:col_stop])
    np.testing.assert_array_equal(block.valid[0], valid[row:row_stop, col:col_stop])


@pytest.mark.parametrize(
    ("name", "kernel"), [(n, k) for n in GRIDS for k in KERNELS if n != "turned" or k == "nearest"]
)
def test_values_are_those_of_gdals_warp(raster: Path, name: str, kernel: Kernel) -> None:
    """Not compared: GDAL widens kernels on turned grids, and leaves out rows beyond the rim for cubic."""
    box = GRIDS[name]
    values, valid = whole_of(on_grid(raster, name, kernel))
    with (
        rasterio.open(raster) as source,
        WarpedVRT(
            source,
            crs=CRS.from_wkt(box.crs_wkt),
            transform=box.transform,
            height=box.height,
            width=box.width,
            resampling=Resampling[kernel],
            tolerance=1e-6,
        ) as warped,
    ):
        reference = warped.read(1)
    if kernel != "average":  # GDAL's is valid where any pixel is
        assert (valid != (reference != 0)).mean() < 0.001
    both = valid & (reference != 0)
    assert both.mean() > 0.3
    if kernel == "cubic" or (kernel == "average" and name == "another zone"):
        both = ndimage.binary_erosion(both, iterations=6)
    allowed = 40 if kernel == "average" and name == "another zone" else 2
    difference = np.abs(values.astype(int) - reference.astype(int))[both]
    moved = difference > (0 if kernel == "nearest" else allowed)
    assert moved.mean() < (0.002 if name in {"turned", "another zone"} else 1e-9)


def test_a_turned_grid_is_bilinear_at_exact_positions(raster: Path) -> None:
    values, valid = whole_of(on_grid(raster, "turned", "bilinear"))
    with rasterio.open(raster) as source:
        stored = source.read(1).astype(float)
        stored[stored == 0] = np.nan
        rows, cols = np.mgrid[: values.shape[0], : values.shape[1]] + 0.5
        x, y = (~source.transform @ GRIDS["turned"].transform) @ (cols, rows)
    expected = ndimage.map_coordinates(stored, [y - 0.5, x - 0.5], order=1, mode="constant", cval=np.nan)
    both = valid & np.isfinite(expected)
    assert both.mean() > 0.5
    assert np.abs(values - expected)[both].max() <= 0.5 + 1e-6


@pytest.mark.parametrize(("name", "factor"), [("finer", 2), ("thirds", 3)])
@pytest.mark.parametrize("kernel", ["bilinear", "cubic", "average"])
def test_c32_nothing_shifts(raster: Path, name: str, factor: int, kernel: Kernel) -> None:
    """Brought to a finer grid and averaged back, an image lies where it lay: phase correlation finds no shift."""
    values, _ = whole_of(on_grid(raster, name, kernel))
    with rasterio.open(raster) as source:
        original = source.read(1).astype(float)
    back = values.reshape(SHAPE[0], factor, SHAPE[1], factor).mean(axis=(1, 3))
    part = np.s_[45:145, 55:195]
    assert max(np.abs(shift_of(original[part], back[part]))) <= 0.02


def test_the_measure_of_shifts_sees_a_tenth_of_a_pixel() -> None:
    image = smooth_values(1, (160, 160))[0].astype(float)
    moved = ndimage.shift(image, (0.1, -0.2), order=3)
    part = np.s_[10:150, 10:150]
    assert np.allclose(shift_of(image[part], moved[part]), (0.1, -0.2), atol=0.02)


def shift_of(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(rows, columns) that `other` lies further down and along, from the phase of its spectrum at low frequencies."""
    window = np.outer(np.hanning(one.shape[0]), np.hanning(one.shape[1]))
    a, b = (fft.fft2((image - image.mean()) * window) for image in (one, other))
    cross = a * np.conj(b)
    v, u = np.meshgrid(fft.fftfreq(one.shape[0]), fft.fftfreq(one.shape[1]), indexing="ij")
    low = (np.hypot(u, v) < 0.06) & (np.hypot(u, v) > 0)
    weight = np.sqrt(np.abs(cross[low]))
    system = 2 * np.pi * np.stack([v[low], u[low]], axis=1)
    return np.linalg.lstsq(system * weight[:, None], np.angle(cross[low]) * weight, rcond=None)[0]


def test_invalid_pixels_get_no_weight(tmp_path: Path) -> None:
    data = np.full((1, 40, 40), 100, np.uint16)
    data[:, :, 20:] = 0
    path = write_scene(tmp_path / "half.tif", data, nodata=0)
    source = open_scene(path)
    box = GeoBox(shape=(80, 80), transform=NORTH_UP @ Affine.scale(0.5), crs_wkt=source.geobox.crs_wkt)
    for kernel in KERNELS:
        scene = SourcesScene(
            name="half",
            path=str(path),
            kind="test",
            parts=(Part(scene=source, numbers=(1,)),),
            all_bands=source.bands,
            bands=source.bands,
            geobox=box,
        ).on_grid(box, resampling=kernel)
        values, valid = whole_of(scene)
        assert valid[:, :40].all()
        assert not valid[:, 40:].any()
        assert (values[:, :40] == 100).all()
