"""A scene in memory, or behind any lazy array: an `xarray.DataArray` with a CRS and regular coordinates."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError

from pipeline.errors import InputError, UsageError
from pipeline.grid import GeoBox
from pipeline.scene.base import Band, Block, assert_inside, make_block, shared_nodata
from pipeline.scene.crs import check_transform, choose_crs
from pipeline.scene.select import select_bands
from pipeline.scene.validity import can_occur, valid_by_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.grid import Window
    from pipeline.scene.base import Json

_REGULAR_PX = 1e-3  # coordinates may stray this far from a regular grid, in pixels
_PROBE_PX = 64  # side of the corners and centre that identify a lazy array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArrayScene:
    """A DataArray as a scene; made by `open_scene`. Pickling carries the array, so large ones had better be lazy."""

    array: xr.DataArray
    """Dims `(band, y, x)`; anything that slices: NumPy, Dask, Zarr-backed."""
    name: str
    """The array's name, "array" where it has none."""
    geobox: GeoBox
    """Shape, transform and CRS."""
    bands: tuple[Band, ...]
    """The selected bands."""
    all_bands: tuple[Band, ...]
    """All bands of the array."""
    nodata_override: float | None
    """Nodata given by the user."""
    warnings: tuple[str, ...] = ()
    """What a person should know, one sentence each."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The array's dtype."""
        return np.dtype(self.array.dtype)

    @property
    def nodata(self) -> float | None:
        """Nodata shared by all selected bands; None when there is none or they differ."""
        return shared_nodata(self.bands)

    def select(self, bands: Sequence[str | int]) -> ArrayScene:
        """The same array with other bands.

        Raises:
            InputError: IN-011, unknown or ambiguous band.
        """
        return replace(self, bands=select_bands(self.all_bands, bands, where=self.name))

    def read(self, window: Window) -> NDArray[Any]:
        """Stored values of a window, shape `(band, y, x)`."""
        assert_inside(window, self.geobox)
        rows, cols = slice(window.row_off, window.row_stop), slice(window.col_off, window.col_stop)
        indexes = [band.index - 1 for band in self.bands]
        data: NDArray[Any] = np.asarray(self.array[indexes, rows, cols].data)
        return data

    def read_block(self, window: Window) -> Block:
        """Stored values of a window; valid = finite and not nodata."""
        data = self.read(window)
        return make_block(data, valid_by_value(data, self.bands))

    def fingerprint(self) -> dict[str, Json]:
        """Identity of the array: all its bytes where they are in memory, else those of five small windows."""
        return {
            "file": self.name,
            "shape": list(self.array.shape),
            "dtype": str(self.dtype),
            "transform": list(self.geobox.transform[:6]),
            "crs": self.geobox.crs_wkt,
            "digest": self._digest(),
            "bands": [band.index for band in self.bands],
            "nodata": None if self.nodata_override is None else repr(self.nodata_override),
        }

    def _digest(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        if isinstance(self.array.data, np.ndarray):
            digest.update(np.ascontiguousarray(self.array.data))
        else:
            height, width = self.geobox.shape
            rows, cols = sorted({0, height // 2, max(height - _PROBE_PX, 0)}), sorted({0, max(width - _PROBE_PX, 0)})
            for row in rows:
                for col in cols:
                    probe = self.array[:, row : row + _PROBE_PX, col : col + _PROBE_PX]
                    digest.update(np.ascontiguousarray(probe.data))
        return digest.hexdigest()


def scene_from_array(array: object, *, nodata: float | None, assume_crs: str | None, allow_no_crs: bool) -> ArrayScene:
    """Scene from a DataArray; see `open_scene` for the arguments.

    The CRS comes from the grid mapping coordinate (`spatial_ref`, attribute `crs_wkt`), the attribute `crs`, or the
    `.rio` accessor where rioxarray is loaded; the transform from the grid mapping's `GeoTransform`, else from the
    x and y coordinates of pixel centres.

    Raises:
        InputError: IN-017 for dims, dtype or coordinates that are no scene; IN-006, IN-009 as for files.
        UsageError: CF-010, CF-011, CF-012 as for files.
    """
    if not isinstance(array, xr.DataArray):
        raise _unusable(f"a scene is a path or an xarray.DataArray, got {type(array).__name__}", "array")
    name = str(array.name or "array")
    array = _in_order(array, name)
    dtype = np.dtype(array.dtype)
    if dtype.kind == "c":
        what = "the array holds complex numbers; networks take real ones"
        raise InputError(what, code="IN-009", title="Complex pixels", where=name, fix="abs(array)")
    if dtype.kind not in "iuf":
        raise _unusable(f"pixels must be integers or floats, got {dtype}", name)
    if nodata is not None and not can_occur(nodata, dtype):
        what = f"nodata={nodata:g} cannot occur in {dtype} pixels"
        raise UsageError(what, code="CF-011", title="Impossible nodata", where=name, fix="give a value of that type")
    mapping = _grid_mapping(array)
    transform = _transform(array, mapping, name)
    check_transform(transform, where=name)
    crs_wkt = choose_crs(_crs(array, mapping), assume_crs=assume_crs, allow_no_crs=allow_no_crs, where=name)
    bands = _bands(array, nodata)
    geobox = GeoBox(shape=(array.shape[1], array.shape[2]), transform=transform, crs_wkt=crs_wkt)
    return ArrayScene(array=array, name=name, geobox=geobox, bands=bands, all_bands=bands, nodata_override=nodata)


def _in_order(array: xr.DataArray, name: str) -> xr.DataArray:
    """The array as `(band, y, x)`; a 2-D one gets a band axis. Axes are never swapped behind the user's back."""
    if array.ndim == 2:  # noqa: PLR2004
        array = array.expand_dims("band")
    rows_cols = tuple(str(d) for d in array.dims[1:])
    known = ("y", "x"), ("latitude", "longitude"), ("lat", "lon"), ("row", "col")
    if array.ndim != 3 or rows_cols not in known:  # noqa: PLR2004
        what = f"an array needs dims (band, y, x) or (y, x), got {tuple(array.dims)}"
        raise _unusable(what, name, fix='array.transpose("band", "y", "x")')
    if 0 in array.shape:
        raise _unusable(f"the array is empty: shape {array.shape}", name)
    return array


def _grid_mapping(array: xr.DataArray) -> dict[str, Any]:
    """Attributes of the CF grid mapping coordinate; empty when there is none."""
    key = array.encoding.get("grid_mapping") or array.attrs.get("grid_mapping") or "spatial_ref"
    return dict(array.coords[key].attrs) if key in array.coords else {}


def _crs(array: xr.DataArray, mapping: dict[str, Any]) -> CRS | None:
    rio = getattr(array, "rio", None)  # exists only after somebody imported rioxarray
    for text in (mapping.get("crs_wkt"), mapping.get("spatial_ref"), array.attrs.get("crs"), getattr(rio, "crs", None)):
        if text:
            try:
                return CRS.from_user_input(text)
            except (CRSError, ValueError) as error:  # ValueError: rasterio on "EPSG:abc"
                raise _unusable(f"its CRS is not understood: {str(text)[:80]!r}", str(array.name or "array")) from error
    return None


def _transform(array: xr.DataArray, mapping: dict[str, Any], name: str) -> Affine:
    if "GeoTransform" in mapping:
        values = mapping["GeoTransform"]
        numbers = [float(v) for v in (values.split() if isinstance(values, str) else values)]
        return Affine.from_gdal(*numbers)
    if isinstance(array.attrs.get("transform"), (tuple, list)):
        return Affine(*array.attrs["transform"][:6])
    y_dim, x_dim = array.dims[1], array.dims[2]
    if x_dim not in array.coords or y_dim not in array.coords:
        return Affine.identity()
    left, x_step = _regular(array.coords[x_dim].to_numpy(), name, "x")
    top, y_step = _regular(array.coords[y_dim].to_numpy(), name, "y")
    return Affine(x_step, 0.0, left, 0.0, y_step, top)


def _regular(centres: NDArray[Any], name: str, axis: str) -> tuple[float, float]:
    """(outer edge of the first pixel, step) of coordinates that must lie on a regular grid."""
    values = centres.astype(np.float64)
    if len(values) < 2:  # noqa: PLR2004
        what = f"one {axis} coordinate alone does not tell the size of a pixel"
        raise _unusable(what, name, fix="add a spatial_ref coordinate with a GeoTransform")
    step = float(values[-1] - values[0]) / (len(values) - 1)
    expected = values[0] + step * np.arange(len(values))
    if not step or not np.abs(values - expected).max() <= _REGULAR_PX * abs(step):
        what = f"{axis} coordinates are not evenly spaced"
        raise _unusable(what, name, fix="resample the array onto a regular grid first")
    return float(values[0]) - step / 2, step


def _bands(array: xr.DataArray, nodata: float | None) -> tuple[Band, ...]:
    own = nodata if nodata is not None else array.attrs.get("_FillValue", array.attrs.get("nodata"))
    count = array.shape[0]
    names = array.coords[array.dims[0]].to_numpy() if array.dims[0] in array.coords else np.arange(1, count + 1)
    long_name = array.attrs.get("long_name")  # where rioxarray keeps the descriptions of a file
    if isinstance(long_name, (tuple, list)) and len(long_name) == count:
        names = np.asarray(long_name, dtype=object)
    described = np.asarray(names).dtype.kind in "OUS"
    return tuple(
        Band(
            name=str(names[i]) if described else str(i + 1),
            index=i + 1,
            nodata=None if own is None else float(own),
            described=described,
        )
        for i in range(count)
    )


def _unusable(what: str, name: str, *, fix: str = "see `pipeline.open_scene` for what an array needs") -> InputError:
    return InputError(what, code="IN-017", title="Unusable array", where=name, fix=fix)
