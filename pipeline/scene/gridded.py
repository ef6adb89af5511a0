"""Variables on a grid as a scene: CF and GeoZarr conventions say where they lie.

Zarr groups and NetCDF files keep them; which keeps what how is the business of `zarr_group.py` and `netcdf4.py`. A
variable on a grid (y, x) is a band; one with a third axis has a band for each step of it.
"""

from __future__ import annotations

import base64
import hashlib
import math
import struct
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import pyproj
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError

from pipeline.errors import InputError, PipelineError
from pipeline.grid import GeoBox
from pipeline.scene.base import Band, Block, assert_inside, make_block, shared_nodata
from pipeline.scene.crs import check_transform, choose_crs
from pipeline.scene.files import impossible_nodata, refuse_size
from pipeline.scene.select import select_bands
from pipeline.scene.validity import can_occur, valid_by_value

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.grid import Window
    from pipeline.scene.base import Json

_AXES = (("y", "x"), ("lat", "lon"), ("latitude", "longitude"), ("northing", "easting"))
_REGULAR_PX = 1e-3
_PHONY = "phony_dim_"
"""How h5netcdf calls dimensions that have no name."""
_MOST_COORDINATES = 2**24
"""Along an axis: they are read whole."""


class Variables(NamedTuple):
    """What a store holds, opened."""

    attrs: Mapping[str, Any]
    """Of the group."""
    arrays: Mapping[str, Any]
    """By name: Zarr's arrays, or what has `shape`, `dtype`, `chunks`, `attrs`, names of dimensions, and windows."""
    owner: Any = None
    """What they need, and do not keep alive themselves."""


class Store(Protocol):
    """Where variables are kept, as a recipe: small, hashable, picklable. Its text form, for people, holds no secret."""

    @property
    def kind(self) -> str:
        """For people: "Zarr", "NetCDF"."""
        ...

    @property
    def north_up(self) -> bool:
        """Whether rows that run from south to north are turned around, as GDAL does with NetCDF."""
        ...

    @property
    def name(self) -> str:
        """Of the scene."""
        ...

    def open(self) -> Variables:
        """Open it; raises PipelineError, or whatever a library says to damage."""
        ...

    def check(self) -> None:
        """Refuse, where that is cheaply told, what is no longer what was opened: IN-015."""
        ...

    def failures(self) -> contextlib.AbstractContextManager[None]:
        """Turns failures of a service, inside of it, into ours."""
        ...

    def contents(self) -> Iterator[str]:
        """Lines that change with what is stored."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GriddedScene:
    """Variables that share a grid, as a recipe; opened where it is read."""

    store: Store
    """Where they are kept."""
    places: tuple[tuple[str, int | None], ...]
    """Of each band of `all_bands`: the array, and the step of its third axis; None without one."""
    dtypes: tuple[str, ...]
    """Of each band of `all_bands`."""
    geobox: GeoBox
    """Shape, transform and CRS."""
    bands: tuple[Band, ...]
    """The selected bands."""
    all_bands: tuple[Band, ...]
    """All of them."""
    turned: bool = False
    """Rows are stored from south to north, and read from north to south."""
    nodata_override: float | None = None
    """Nodata given by the user."""
    warnings: tuple[str, ...] = ()
    """What a person should know, one sentence each."""

    @property
    def driver(self) -> str:
        """For people."""
        return self.store.kind

    @property
    def path(self) -> str:
        """Where it lies, for people."""
        return str(self.store)

    @property
    def name(self) -> str:
        """The group's or file's name without its suffix."""
        return self.store.name

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest type that holds all selected bands."""
        return np.result_type(*{np.dtype(self.dtypes[band.index - 1]) for band in self.bands})

    @property
    def nodata(self) -> float | None:
        """Nodata shared by all selected bands; None when there is none or they differ."""
        return shared_nodata(self.bands)

    def select(self, bands: Sequence[str | int]) -> GriddedScene:
        """The same variables with other bands.

        Raises:
            InputError: IN-011, unknown or ambiguous band.
        """
        return replace(self, bands=select_bands(self.all_bands, bands, where=self.path))

    def read(self, window: Window) -> NDArray[Any]:
        """Stored values of a window, shape `(band, y, x)`.

        Raises:
            InputError: IN-005, a chunk cannot be decoded; IN-015, the file changed.
            InfrastructureError: ST-010 to ST-013, a server fails.
        """
        assert_inside(window, self.geobox)
        first, last = window.row_off, window.row_stop
        if self.turned:
            first, last = self.geobox.height - last, self.geobox.height - first
        rows, cols = slice(first, last), slice(window.col_off, window.col_stop)
        data = np.empty((len(self.bands), *window.shape), self.dtype)
        self.store.check()
        for plane, band in zip(data, self.bands, strict=True):
            name, step = self.places[band.index - 1]
            try:
                with self.store.failures():
                    array = _opened(self.store).arrays[name]
                    plane[:] = array[rows, cols] if step is None else array[step, rows, cols]
            except PipelineError:
                raise
            except Exception as error:  # codecs raise what they like
                raise _cannot_read(self.store, f"{name}: {error}", str(window)) from error
        return data[:, ::-1] if self.turned else data

    def read_block(self, window: Window) -> Block:
        """Stored values of a window; valid = finite and not nodata. A chunk that is not stored has the fill value."""
        data = self.read(window)
        return make_block(data, valid_by_value(data, self.bands))

    def fingerprint(self) -> dict[str, Json]:
        """What the store tells of its contents as they are now, and what was chosen of them."""
        digest = hashlib.blake2b(digest_size=16)
        with self.store.failures():
            for line in self.store.contents():
                digest.update(f"{line}\n".encode())
        return {
            "file": self.path.rstrip("/").rpartition("/")[2],
            "digest": digest.hexdigest(),
            "bands": [band.index for band in self.bands],
            "nodata": None if self.nodata_override is None else repr(self.nodata_override),
            "crs": self.geobox.crs_wkt,
        }


def open_gridded(
    store: Store, *, nodata: float | None, assume_crs: str | None, allow_no_crs: bool, warnings: tuple[str, ...] = ()
) -> GriddedScene:
    """The variables of a store that lie on its largest grid, as a scene.

    Args:
        store: Where they are.
        nodata: Value of missing pixels.
        assume_crs: CRS of a store that tells none.
        allow_no_crs: Take it without.
        warnings: What a person should know of the store.

    Raises:
        InfrastructureError: ST-010 to ST-013.
        InputError: IN-005, it cannot be read; IN-006, it has no CRS; IN-013, it is too large; IN-016, its pixels
            have no area; IN-060, it has no variable on a regular grid.
    """
    opened = _opened(store)
    try:
        with store.failures():
            made = _look(store, opened, nodata, assume_crs, allow_no_crs=allow_no_crs)
    except PipelineError:
        raise
    except Exception as error:  # whatever libraries make of damaged metadata
        raise _cannot_read(store, f"{type(error).__name__}: {error}") from error
    return replace(made, warnings=warnings)


def _look(
    store: Store, opened: Variables, nodata: float | None, assume_crs: str | None, *, allow_no_crs: bool
) -> GriddedScene:
    group, arrays, _ = opened
    found = {name: array for name, array in arrays.items() if _on_grid(name, array, arrays)}
    if not found:
        raise no_grid(store, f"it has {', '.join(list(arrays)[:10]) or 'no arrays'}, none (y, x) with numbers")
    largest = max((array.shape[-2:] for array in found.values()), key=math.prod)
    found = {name: array for name, array in found.items() if array.shape[-2:] == largest}
    first = next(iter(found.values()))
    _check_limits(store, found)
    mapping = _grid_mapping(first, arrays, group)
    transform = _transform(store, first, arrays, mapping)
    turned = store.north_up and transform.e > 0 and not transform.b and not transform.d
    if turned:
        transform = transform @ Affine(1, 0, 0, 0, -1, largest[0])
    check_transform(transform, where=str(store))
    crs = choose_crs(_crs(store, mapping), assume_crs=assume_crs, allow_no_crs=allow_no_crs, where=str(store))
    if nodata is not None and not any(can_occur(nodata, np.dtype(array.dtype)) for array in found.values()):
        raise impossible_nodata(nodata, str(first.dtype), store)
    bands, places = _bands(found, arrays, nodata)
    return GriddedScene(
        store=store,
        places=tuple(places),
        dtypes=tuple(str(found[name].dtype) for name, _ in places),
        geobox=GeoBox(shape=(int(largest[0]), int(largest[1])), transform=transform, crs_wkt=crs),
        bands=tuple(bands),
        all_bands=tuple(bands),
        turned=turned,
        nodata_override=nodata,
    )


_stores: dict[Store, Variables] = {}
_lock = threading.Lock()
_MOST_OPEN = 16


def _opened(store: Store) -> Variables:
    """What a store holds, opened once per process: arrays can be read from any thread. The oldest give way."""
    found = _stores.get(store)
    if found is not None:
        return found
    try:
        with store.failures():
            found = store.open()
    except PipelineError:
        raise
    except Exception as error:  # whatever is wrong with its metadata
        raise _cannot_read(store, str(error)) from error
    with _lock:
        _stores[store] = found
        while len(_stores) > _MOST_OPEN:
            del _stores[next(iter(_stores))]
    return found


def _check_limits(store: Store, found: Mapping[str, Any]) -> None:
    array = next(iter(found.values()))
    bands = sum(1 if one.ndim == 2 else one.shape[0] for one in found.values())  # noqa: PLR2004
    chunks = (one.chunks and math.prod(one.chunks) * one.dtype.itemsize for one in found.values())
    refuse_size(store, array.shape[-2:], bands, max(chunk or 0 for chunk in chunks))


def names_of(array: Any) -> tuple[str, ...]:
    """Names of an array's axes: NetCDF and Zarr 3 have them in their metadata, Zarr 2 an attribute of xarray's."""
    told = (
        getattr(array, "dimensions", None)
        or getattr(getattr(array, "metadata", None), "dimension_names", None)
        or array.attrs.get("_ARRAY_DIMENSIONS")
        or ()
    )
    names = tuple(str(name) for name in told)
    return () if any(name.startswith(_PHONY) for name in names) else names


def _on_grid(name: str, array: Any, arrays: Mapping[str, Any]) -> bool:
    """Whether an array is a variable whose last two axes are those of a grid."""
    if array.ndim not in (2, 3) or name.lower() in {"spatial_ref", "crs"}:
        return False
    if array.dtype.kind not in "uif" or 0 in array.shape:
        return False
    names = names_of(array)[-2:]
    return not names or tuple(n.lower() for n in names) in _AXES or all(n in arrays for n in names)


def _grid_mapping(array: Any, arrays: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
    """What says where the grid lies: the group's GeoZarr attributes, the variable's, then the CF grid mapping's."""
    name = array.attrs.get("grid_mapping") or "spatial_ref"
    own = dict(arrays[name].attrs) if name in arrays else {}
    return {**group, **dict(array.attrs), **own}


def _crs(store: Store, mapping: Mapping[str, Any]) -> CRS | None:
    for key in ("crs_wkt", "spatial_ref", "proj:wkt2", "proj:code", "proj:projjson", "proj:epsg", "crs"):
        told = mapping.get(key)
        if told:
            try:
                return CRS.from_user_input(told)
            except (CRSError, ValueError, TypeError) as error:
                raise no_grid(store, f"its CRS is not understood: {str(told)[:80]!r}") from error
    return _crs_by_parameters(store, mapping)


def _crs_by_parameters(store: Store, mapping: Mapping[str, Any]) -> CRS | None:
    """What CF says without WKT: the name of a projection and its numbers."""
    if not isinstance(mapping.get("grid_mapping_name"), str):
        return None
    try:
        return CRS.from_wkt(pyproj.CRS.from_cf(dict(mapping)).to_wkt())
    except (pyproj.exceptions.ProjError, CRSError, KeyError, ValueError, TypeError) as error:
        raise no_grid(store, f"its CRS is not understood: {mapping['grid_mapping_name']!r}: {error}") from error


def _transform(store: Store, array: Any, arrays: Mapping[str, Any], mapping: Mapping[str, Any]) -> Affine:
    """Of rows as they are stored."""
    told = mapping.get("spatial:transform") or mapping.get("proj:transform")
    gdal = mapping.get("GeoTransform")
    axes = _coordinates(store, names_of(array)[-2:], arrays)
    try:
        if isinstance(told, list | tuple) and len(told) >= 6:  # noqa: PLR2004
            return Affine(*map(float, told[:6]))
        if gdal is not None:
            found = Affine.from_gdal(*map(float, gdal.split() if isinstance(gdal, str) else gdal))
            against = axes is not None and len(axes[0]) > 1 and (axes[0][-1] > axes[0][0]) != (found.e > 0)
            # GDAL stores rows from south to north, and tells the transform of rows from north to south.
            return found @ Affine(1, 0, 0, 0, -1, array.shape[-2]) if against else found
    except (TypeError, ValueError) as error:
        raise no_grid(store, f"its transform is not understood: {str(told or gdal)[:80]!r}") from error
    if axes is None:
        return Affine.identity()
    (top, down), (left, along) = (_regular(store, axis) for axis in axes)
    return Affine(along, 0, left, 0, down, top)


def _coordinates(
    store: Store, names: tuple[str, ...], arrays: Mapping[str, Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Coordinates down and along; None without."""
    if not names or not all(axis in arrays and arrays[axis].ndim == 1 for axis in names):
        return None
    if max(arrays[axis].shape[0] for axis in names) > _MOST_COORDINATES:
        raise no_grid(store, f"its axes have more than {_MOST_COORDINATES} coordinates")
    down, along = (np.asarray(arrays[axis][:], np.float64) for axis in names)
    return down, along


def _regular(store: Store, centres: NDArray[np.float64]) -> tuple[float, float]:
    """(outer edge of the first pixel, step) of coordinates that must lie on a regular grid."""
    if len(centres) < 2:  # noqa: PLR2004
        raise no_grid(store, "one coordinate does not tell the size of a pixel")
    step = float(centres[-1] - centres[0]) / (len(centres) - 1)
    expected = centres[0] + step * np.arange(len(centres))
    if not step or not np.abs(centres - expected).max() <= _REGULAR_PX * abs(step):
        raise no_grid(store, f"its coordinates from {centres[0]:g} to {centres[-1]:g} are not evenly spaced")
    return float(centres[0]) - step / 2, step


def _bands(
    found: Mapping[str, Any], arrays: Mapping[str, Any], nodata: float | None
) -> tuple[list[Band], list[tuple[str, int | None]]]:
    bands: list[Band] = []
    places: list[tuple[str, int | None]] = []
    for name, array in found.items():
        steps: list[int | None] = [None] if array.ndim == 2 else list(range(array.shape[0]))  # noqa: PLR2004
        labels = _labels(name, array, arrays)
        for step, label in zip(steps, labels, strict=True):
            attrs = array.attrs
            bands.append(
                Band(
                    name=label,
                    index=len(bands) + 1,
                    nodata=_missing(array, nodata),
                    scale=_float(attrs.get("scale_factor"), 1.0),
                    offset=_float(attrs.get("add_offset"), 0.0),
                    described=True,
                )
            )
            places.append((name, step))
    return bands, places


def _labels(name: str, array: Any, arrays: Mapping[str, Any]) -> list[str]:
    """Names of a variable's bands: its own, or what the coordinate of its third axis calls them."""
    if array.ndim == 2 or array.shape[0] == 1:  # noqa: PLR2004
        return [name]
    axis = (names_of(array) or ("",))[0]
    told = np.asarray(arrays[axis][:]) if axis in arrays else np.arange(1, array.shape[0] + 1)
    text = told.dtype.kind in "OUST"
    return [str(label) if text else f"{name}-{label}" for label in told]


def _missing(array: Any, nodata: float | None) -> float | None:
    """The user's, CF's `_FillValue`, or GeoZarr's; in version 2 the fill value of chunks too, as xarray has it."""
    told: list[Any] = [
        nodata,
        array.attrs.get("_FillValue"),
        array.attrs.get("missing_value"),
        array.attrs.get("nodata"),
    ]
    if getattr(getattr(array, "metadata", None), "zarr_format", None) == 2:  # noqa: PLR2004
        told.append(array.fill_value)
    for one in told:
        value: float | None = _float(_decoded(one) if isinstance(one, str) else one, None)
        if value is not None and can_occur(value, np.dtype(array.dtype)):
            return value
    return None


def _decoded(text: str) -> float | str:
    """Xarray writes floating-point fill values as the text of their bytes."""
    try:
        raw = base64.standard_b64decode(text)
        return float(struct.unpack("<d" if len(raw) == 8 else "<f", raw)[0])  # noqa: PLR2004
    except (ValueError, struct.error):
        return text


def _float(value: Any, otherwise: Any) -> Any:
    if isinstance(value, list | tuple | np.ndarray) and len(value) == 1:
        value = value[0]
    try:
        return otherwise if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return otherwise


def _cannot_read(store: Store, why: str, window: str = "") -> InputError:
    return InputError(
        f"{store.name} cannot be read: {why[:300]}",
        code="IN-005",
        title="Scene cannot be read",
        where=f"{store}, {window}" if window else str(store),
        fix="check that it is whole, and that its codecs are installed",
    )


def no_grid(store: Store, why: str) -> InputError:
    """IN-060."""
    return InputError(
        f"{store.name} holds no scene: {why}",
        code="IN-060",
        title="No variable on a grid",
        where=str(store),
        fix="give the group that has variables (y, x) with coordinates, or a spatial_ref with a GeoTransform",
    )
