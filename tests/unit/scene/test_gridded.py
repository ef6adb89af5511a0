"""Zarr of both versions and NetCDF, as xarray and others write them."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.shutil
import xarray as xr
import zarr

from pipeline.errors import InputError, UsageError
from pipeline.grid import Window
from pipeline.scene import open_scene
from tests.scenes import NORTH_UP, UTM, smooth_values, write_scene

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SHAPE = (50, 70)
DATA = smooth_values(3, SHAPE)
WINDOW = Window(row_off=5, col_off=7, height=30, width=41)
ROWS, COLS = slice(5, 35), slice(7, 48)


def dataset(
    *,
    mapping: dict[str, Any] | None = None,
    values: NDArray[Any] = DATA,
    names: tuple[str, ...] = ("red", "nir"),
) -> xr.Dataset:
    """Variables (y, x) with a scale and a fill value, as rioxarray would write them."""
    wkt = rasterio.crs.CRS.from_string(UTM).to_wkt()
    named = {"crs_wkt": wkt, "spatial_ref": wkt, "grid_mapping_name": "transverse_mercator"}
    coords: dict[str, Any] = {"spatial_ref": xr.DataArray(np.int32(0), attrs=mapping or named)}
    for axis, first, step, count in (
        ("y", NORTH_UP.f, NORTH_UP.e, values.shape[1]),
        ("x", NORTH_UP.c, NORTH_UP.a, values.shape[2]),
    ):
        told = {"standard_name": f"projection_{axis}_coordinate", "units": "metre", "axis": axis.upper()}
        coords[axis] = xr.DataArray(first + step * (np.arange(count) + 0.5), dims=axis, attrs=told)
    attrs: dict[str, Any] = {"grid_mapping": "spatial_ref", "scale_factor": 0.5, "add_offset": -1.0, "_FillValue": 7}
    variables = {name: (("y", "x"), values[k], attrs) for k, name in enumerate(names)}
    return xr.Dataset(variables, coords=coords)


@pytest.mark.parametrize("version", [2, 3])
def test_a_zarr_group_of_either_version(tmp_path: Path, version: int) -> None:
    path = tmp_path / "scene.zarr"
    dataset().to_zarr(path, zarr_format=version, consolidated=False, encoding={"red": {"chunks": (20, 30)}})
    scene = pickle.loads(pickle.dumps(open_scene(path, bands=["nir", "red"])))
    assert np.array_equal(scene.read(WINDOW), DATA[[1, 0], ROWS, COLS])
    assert scene.geobox.transform == NORTH_UP
    assert [(b.scale, b.offset, b.nodata) for b in scene.bands] == [(0.5, -1.0, 7.0)] * 2
    before = scene.fingerprint()
    zarr.open_group(path)["red"][0, 0] = 9
    assert scene.fingerprint() != before


def test_geozarr_says_it_by_attributes(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "geo.zarr", mode="w")
    for k, name in enumerate(("b02", "b03", "b04")):
        group.create_array(name, data=DATA[k], chunks=(16, 16), shards=(32, 32), dimension_names=("y", "x"))
    group.create_array("coarse", data=DATA[0, ::2, ::2].copy(), dimension_names=("y", "x"))
    group.attrs.update({"proj:code": UTM, "spatial:transform": list(NORTH_UP)[:6]})
    scene = open_scene(tmp_path / "geo.zarr")
    assert [band.name for band in scene.bands] == ["b02", "b03", "b04"]
    assert np.array_equal(scene.read(WINDOW), DATA[:, ROWS, COLS])
    assert scene.geobox.transform == NORTH_UP


def test_a_third_axis_has_a_band_for_each_step(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "cube.zarr", mode="w", zarr_format=2)
    group.create_array("cube", data=DATA, fill_value=None).attrs["_ARRAY_DIMENSIONS"] = ["band", "y", "x"]
    group.create_array("band", data=np.array(["blue", "green", "red"]).astype("<U5"))
    group.attrs.update({"proj:code": UTM, "spatial:transform": list(NORTH_UP)[:6]})
    scene = open_scene(tmp_path / "cube.zarr", bands=["red", "blue"])
    assert np.array_equal(scene.read(WINDOW), DATA[[2, 0], ROWS, COLS])


@pytest.mark.parametrize("order", [1, -1])
def test_netcdf_of_either_order_of_rows_is_read_from_north_to_south(tmp_path: Path, order: int) -> None:
    path = tmp_path / "scene.nc"
    stored = dataset().isel(y=slice(None, None, order))
    stored.to_netcdf(path, engine="h5netcdf")
    scene = open_scene(path, bands=["nir"])
    assert np.array_equal(scene.read(WINDOW), DATA[1:2, ROWS, COLS])
    assert scene.geobox.transform.almost_equals(NORTH_UP, 1e-6)


def test_a_netcdf_file_that_is_written_anew_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "scene.nc"
    dataset().to_netcdf(path, engine="h5netcdf")
    old = open_scene(path)
    assert np.array_equal(old.read(WINDOW), DATA[:2, ROWS, COLS])
    fresh = tmp_path / "fresh.nc"
    dataset(values=DATA + 1, names=("red", "nir", "swir")).to_netcdf(fresh, engine="h5netcdf")
    path.write_bytes(fresh.read_bytes())  # the same file for the system
    new = open_scene(path)
    assert np.array_equal(new.read(WINDOW), (DATA + 1)[:, ROWS, COLS])
    with pytest.raises(InputError, match="IN-015"):
        old.read(WINDOW)


def test_a_projection_told_by_its_numbers_and_variables_in_a_group(tmp_path: Path) -> None:
    numbers = rasterio.crs.CRS.from_string("EPSG:3035").to_wkt()
    told = {key: value for key, value in pyproj.CRS.from_wkt(numbers).to_cf().items() if key != "crs_wkt"}
    dataset(mapping=told).to_netcdf(tmp_path / "scene.nc", engine="h5netcdf", group="PRODUCT")
    scene = open_scene(tmp_path / "scene.nc")
    assert [band.name for band in scene.bands] == ["red", "nir"]
    assert pyproj.CRS.from_wkt(scene.geobox.crs_wkt).is_projected
    assert "3035" in str(scene.geobox.crs_wkt) or "Lambert Azimuthal" in str(scene.geobox.crs_wkt)


@pytest.mark.parametrize("kind", ["storage", "link", "virtual"])
def test_t4_hdf5_that_points_to_other_files_is_refused(tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"SECRET" * 1000)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["a"] = DATA[0]
    with h5py.File(tmp_path / "scene.nc", "w") as file:
        file["b"] = DATA[0]
        if kind == "storage":
            file.create_dataset("a", SHAPE, "u1", external=[(str(secret), 0, 3500)])
        elif kind == "link":
            file["a"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "a")
        else:
            layout = h5py.VirtualLayout(SHAPE, "u2")
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "a", SHAPE)
            file.create_virtual_dataset("a", layout)
    with pytest.raises(InputError, match="IN-053"):
        open_scene(tmp_path / "scene.nc", allow_no_crs=True)


@pytest.mark.parametrize("engine", ["NETCDF3_64BIT", "NETCDF4"])
def test_a_netcdf_file(tmp_path: Path, engine: str) -> None:
    """The classic format is written by SciPy, the one on HDF5 by GDAL."""
    path = tmp_path / "scene.nc"
    if engine == "NETCDF4":
        tif = write_scene(tmp_path / "scene.tif", DATA[:1], nodata=7)
        rasterio.shutil.copy(tif, path, driver="netCDF", FORMAT="NC4", COMPRESS="DEFLATE")
        scene = open_scene(path)
        assert np.array_equal(scene.read(WINDOW), DATA[:1, ROWS, COLS])
    else:
        stored = dataset().astype("int16")
        for name in ("red", "nir"):
            stored[name].attrs["_FillValue"] = np.int16(7)
        stored = stored.assign_coords(dataset().coords)
        stored.to_netcdf(path, engine="scipy", format=engine)  # type: ignore[call-overload]
        scene = pickle.loads(pickle.dumps(open_scene(path, bands=["nir", "red"])))
        assert np.array_equal(scene.read(WINDOW), DATA[[1, 0], ROWS, COLS])
        assert [(b.scale, b.offset) for b in scene.bands] == [(0.5, -1.0)] * 2
    assert scene.geobox.transform.almost_equals(NORTH_UP, 1e-6)
    assert scene.bands[0].nodata == 7


def test_groups_that_hold_no_scene(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "empty.zarr", mode="w")
    with pytest.raises(InputError, match="IN-060"):
        open_scene(tmp_path / "empty.zarr")
    uneven = dataset()
    uneven.assign_coords(x=uneven["x"].values + np.where(np.arange(SHAPE[1]) == 3, 4, 0)).to_zarr(
        tmp_path / "uneven.zarr", consolidated=False
    )
    with pytest.raises(InputError, match="IN-060"):
        open_scene(tmp_path / "uneven.zarr")
    dataset(mapping={"nothing": 1}).to_zarr(tmp_path / "nowhere.zarr", consolidated=False)
    with pytest.raises(InputError, match="IN-006"):
        open_scene(tmp_path / "nowhere.zarr")
    flat = zarr.open_group(tmp_path / "flat.zarr", mode="w")
    flat.create_array("red", data=DATA[0], dimension_names=("y", "x"))
    flat.attrs.update({"proj:code": UTM, "spatial:transform": [0, 0, 500000, 0, 0, 5000000]})
    with pytest.raises(InputError, match="IN-016"):
        open_scene(tmp_path / "flat.zarr")
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr" / "zarr.json").write_text("{")
    with pytest.raises(InputError, match="IN-005"):
        open_scene(tmp_path / "broken.zarr")
    dataset(mapping={"nothing": 1}).astype("int16").drop_vars(["x", "y"]).to_netcdf(tmp_path / "no.nc", engine="scipy")
    with pytest.raises(InputError, match="IN-006"):
        open_scene(tmp_path / "no.nc")
    (tmp_path / "broken.nc").write_bytes(b"CDF\x01" + b"\xff" * 60)
    with pytest.raises(InputError, match="IN-058"):
        open_scene(tmp_path / "broken.nc")


def test_t7_what_no_scene_has_is_refused_before_it_is_read(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "large.zarr", mode="w")
    kinds: dict[str, dict[str, Any]] = {
        "wide": {"shape": (2**21, 2**20), "chunks": (512, 512)},
        "lump": {"shape": (40_000, 40_000), "chunks": (40_000, 40_000)},
        "many": {"shape": (5000, 10, 10), "chunks": (1, 10, 10)},
    }
    for name, kind in kinds.items():
        inner = group.create_group(name)
        inner.create_array("a", dtype="u1", **kind)
        inner.attrs.update({"proj:code": UTM, "spatial:transform": list(NORTH_UP)[:6]})
        with pytest.raises(InputError, match="IN-013"):
            open_scene(tmp_path / "large.zarr" / name)
    with h5py.File(tmp_path / "large.nc", "w") as file:
        file.create_dataset("a", (2**21, 2**20), "u1", chunks=(512, 512))
    with pytest.raises(InputError, match="IN-013"):
        open_scene(tmp_path / "large.nc", allow_no_crs=True)


def test_what_is_said_of_a_group_counts_as_for_files(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "plain.zarr", mode="w")
    group.create_array("b", data=DATA[0], dimension_names=("y", "x"))
    path = tmp_path / "plain.zarr"
    with pytest.raises(UsageError, match="cannot occur"):
        open_scene(path, nodata=-5.0, assume_crs=UTM)
    one, other = (open_scene(path, assume_crs=crs).fingerprint() for crs in (UTM, "EPSG:3857"))
    assert one != other


@pytest.mark.parametrize("version", [2, 3])
def test_a_zarr_group_in_a_bucket(tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.access import Access
    from pipeline.bucket import Bucket
    from pipeline.errors import InfrastructureError
    from tests.infra.moto_server import BUCKET, KEYS, moto_server

    path = tmp_path / "scene.zarr"
    dataset().to_zarr(path, zarr_format=version, consolidated=False, encoding={"red": {"chunks": (20, 30)}})
    here = open_scene(path)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with moto_server() as endpoint:
        access = Access(endpoint=endpoint, retries=0)
        bucket = Bucket(BUCKET, access)
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            bucket.put(f"deep/scene.zarr/{file.relative_to(path)}", file.read_bytes())
        scene = pickle.loads(pickle.dumps(open_scene(f"s3://{BUCKET}/deep/scene.zarr", access=access)))
        assert np.array_equal(scene.read(WINDOW), here.read(WINDOW))
        assert (scene.geobox, scene.bands, scene.name) == (here.geobox, here.bands, here.name)
        before = scene.fingerprint()
        assert before == scene.fingerprint()
        name = next(k for k, _ in bucket.list_facts("deep/scene.zarr/red/") if k.rpartition("/")[2] in {"0.0", "0"})
        bucket.put(name, b"changed")
        assert scene.fingerprint() != before
        with pytest.raises(InputError, match="IN-005"):
            scene.read(WINDOW)
        with pytest.raises((InputError, InfrastructureError)):
            open_scene(f"s3://{BUCKET}/deep/none.zarr", access=access)
    with pytest.raises(InfrastructureError):
        open_scene(f"s3://{BUCKET}/deep/other.zarr", access=access)
