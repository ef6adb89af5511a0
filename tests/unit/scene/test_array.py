from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray as xr

from pipeline.errors import InputError, PipelineError, UsageError
from pipeline.grid import Window
from pipeline.scene import ArrayScene, open_scene
from tests.unit.scene.rasters import noise

WKT = rasterio.CRS.from_epsg(32633).to_wkt()


def array(data: np.ndarray[Any, Any], **attrs: Any) -> xr.DataArray:
    """DataArray with pixel centres every 10 m from (500000, 5000000) on, north up, EPSG:32633."""
    _, height, width = data.shape
    coords = {
        "y": 5_000_000 - 10 * (np.arange(height) + 0.5),
        "x": 500_000 + 10 * (np.arange(width) + 0.5),
        "spatial_ref": xr.DataArray(0, attrs={"crs_wkt": WKT}),
    }
    return xr.DataArray(data, dims=("band", "y", "x"), coords=coords, attrs=attrs, name="demo")


def refused(source: Any, code: str, **options: Any) -> PipelineError:
    with pytest.raises((InputError, UsageError)) as caught:
        open_scene(source, **options)
    assert caught.value.code == code
    assert caught.value.fix
    return caught.value


def test_geobox_from_coordinates() -> None:
    scene = open_scene(array(noise(2, 6, 8)))
    assert isinstance(scene, ArrayScene)
    assert scene.geobox.shape == (6, 8)
    assert scene.geobox.transform[:6] == pytest.approx((10, 0, 500_000, 0, -10, 5_000_000))
    assert rasterio.CRS.from_wkt(scene.geobox.crs_wkt).to_epsg() == 32633
    assert scene.name == "demo"


def test_geotransform_of_the_grid_mapping_wins_and_may_rotate() -> None:
    source = array(noise(1, 6, 8))
    source.coords["spatial_ref"].attrs["GeoTransform"] = "1 2 3 4 5 7"
    assert open_scene(source).geobox.transform.to_gdal() == (1, 2, 3, 4, 5, 7)


def test_reads_and_validity() -> None:
    data = noise(3, 20, 30, dtype="float32")
    data[0, 4, 5], data[1, 4, 6] = np.nan, -1
    scene = open_scene(array(data, _FillValue=-1.0), bands=[3, 1, 2])
    window = Window(row_off=2, col_off=3, height=10, width=9)
    block = scene.read_block(window)
    expected = data[[2, 0, 1], 2:12, 3:12]
    np.testing.assert_array_equal(block.data, expected)
    np.testing.assert_array_equal(block.valid, np.isfinite(expected) & (expected != -1))


def test_two_dims_are_one_band() -> None:
    source = array(noise(1, 6, 8)).isel(band=0)
    assert open_scene(source).read(Window(row_off=0, col_off=0, height=6, width=8)).shape == (1, 6, 8)


def test_band_names_from_the_coordinate_or_long_name() -> None:
    source = array(noise(2, 6, 8))
    named = source.assign_coords(band=["B02", "B08"])
    assert [b.name for b in open_scene(named, bands=["B08"]).bands] == ["B08"]
    told = source.assign_attrs(long_name=("blue", "nir"))
    assert [b.name for b in open_scene(told).bands] == ["blue", "nir"]
    assert [b.name for b in open_scene(source.assign_coords(band=[1, 2])).bands] == ["1", "2"]


def test_lazy_arrays_stay_lazy() -> None:
    """Only the window is asked for."""
    asked = []

    class Lazy:
        shape, dtype, ndim = (2, 1000, 1000), np.dtype("uint16"), 3

        def __array_function__(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError

        def __array_ufunc__(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError

        def __getitem__(self, key: Any) -> np.ndarray[Any, Any]:
            asked.append(key)
            part: np.ndarray[Any, Any] = np.ones((2, 1000, 1000), np.uint16)[key]
            return part

    source = array(np.ones((2, 1000, 1000), np.uint16))
    source = source.copy(data=xr.core.indexing.LazilyIndexedArray(Lazy()))
    scene = open_scene(source)
    assert asked == []
    assert scene.read(Window(row_off=0, col_off=0, height=5, width=5)).shape == (2, 5, 5)


def test_pickles_and_fingerprints() -> None:
    data = noise(2, 9, 9)
    scene = open_scene(array(data), nodata=3)
    again = pickle.loads(pickle.dumps(scene))
    assert again.fingerprint() == scene.fingerprint()
    json.dumps(scene.fingerprint(), allow_nan=False)
    data[1, 8, 8] += 1
    assert open_scene(array(data), nodata=3).fingerprint() != again.fingerprint()


def test_refusals() -> None:
    good = array(noise(2, 6, 8))
    refused(good.drop_vars("spatial_ref"), "IN-006")
    refused(good, "CF-010", assume_crs="EPSG:4326")
    refused(good, "CF-011", nodata=-1)
    refused(good.astype(complex), "IN-009")
    refused(good.astype(str), "IN-017")
    refused(good, "IN-011", bands=["nope"])
    assert "transpose" in refused(good.transpose("y", "x", "band"), "IN-017").fix
    uneven = good.assign_coords(x=np.r_[good.x.values[:-1], good.x.values[-1] + 3])
    assert "evenly" in refused(uneven, "IN-017").what
    refused(good.isel(x=[0]), "IN-017")
    refused(good.isel(x=slice(0, 0)), "IN-017")
    refused(np.zeros((1, 4, 4)), "IN-017")
    broken = good.copy()
    broken.coords["spatial_ref"].attrs["crs_wkt"] = "nonsense"
    assert "not understood" in refused(broken, "IN-017").what


def test_crs_from_elsewhere() -> None:
    bare = array(noise(1, 6, 8)).drop_vars("spatial_ref")
    assert open_scene(bare.assign_attrs(crs="EPSG:32719")).geobox.crs_wkt
    assert open_scene(bare, allow_no_crs=True).geobox.crs_wkt is None
    assert open_scene(bare, assume_crs="EPSG:32719").geobox.crs_wkt
