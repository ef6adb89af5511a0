"""What a scene reads equals what rasterio reads of the whole file, sliced; its validity equals the slow definition."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.enums import ColorInterp

from pipeline.grid import Window
from pipeline.scene import open_scene

if TYPE_CHECKING:
    from pathlib import Path

HEIGHT, WIDTH = 97, 133
LAYOUTS: dict[str, dict[str, Any]] = {
    "tiles": {"tiled": True, "blockxsize": 32, "blockysize": 16, "compress": "deflate"},
    "strips": {"blockysize": 7, "compress": "lzw"},
    "planes": {"interleave": "band", "compress": "zstd"},
    "plain": {},
}


@st.composite
def windows(draw: st.DrawFn) -> Window:
    """Windows inside a raster of HEIGHT x WIDTH."""
    row, col = draw(st.integers(0, HEIGHT - 1)), draw(st.integers(0, WIDTH - 1))
    row_stop, col_stop = draw(st.integers(row + 1, HEIGHT)), draw(st.integers(col + 1, WIDTH))
    return Window.from_bounds(row, col, row_stop, col_stop)


def write(folder: Path, name: str, dtype: str, nodata: float | None) -> Path:
    """Four bands, the last one alpha, with nodata here and there, a mask beside it, and NaN in floats."""
    rng = np.random.default_rng(len(name))
    data = rng.integers(0, 6, (4, HEIGHT, WIDTH)).astype(dtype)
    data[3] = rng.integers(0, 3, (HEIGHT, WIDTH)) * 100
    if dtype == "float32":
        data[1][rng.random((HEIGHT, WIDTH)) < 0.1] = np.nan
    path = folder / f"{name}-{dtype}-{nodata}.tif"
    profile = {"driver": "GTiff", "height": HEIGHT, "width": WIDTH, "count": 4, "dtype": dtype, "nodata": nodata}
    place = {"crs": "EPSG:32633", "transform": Affine(1, 0, 5e5, 0, -1, 5e6)}
    with rasterio.open(path, "w", **profile, **place, **LAYOUTS[name]) as dataset:
        dataset.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
        dataset.write(data)
    with rasterio.open(path, "r+") as dataset:
        dataset.write_mask(rng.random((HEIGHT, WIDTH)) < 0.9)
    return path


@pytest.fixture(
    scope="module", params=[(n, d, v) for n in LAYOUTS for d, v in (("uint16", 3), ("float32", None))], ids=str
)
def raster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name, dtype, nodata = request.param
    return write(tmp_path_factory.mktemp("rasters"), name, dtype, nodata)


@given(window=windows(), order=st.permutations([1, 2, 3]))
def test_windows_equal_slices_of_rasterios_whole(raster: Path, window: Window, order: list[int]) -> None:
    rows, cols = slice(window.row_off, window.row_stop), slice(window.col_off, window.col_stop)
    with rasterio.open(raster) as dataset:
        whole, nodata = dataset.read(), dataset.nodata
        outside = dataset.read_masks(1)
    scene = pickle.loads(pickle.dumps(open_scene(raster, bands=order)))
    block = scene.read_block(window)
    expected = whole[[n - 1 for n in order]][:, rows, cols]
    np.testing.assert_array_equal(block.data, expected)
    np.testing.assert_array_equal(scene.read(window), expected)
    valid = (expected != nodata) & np.isfinite(expected) & (whole[3, rows, cols] > 0) & (outside[rows, cols] > 0)
    np.testing.assert_array_equal(block.valid, valid)
    np.testing.assert_array_equal(block.valid_everywhere(), valid.all(axis=0))
    assert block.all_valid == valid.all()
