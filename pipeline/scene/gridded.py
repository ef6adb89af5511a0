"""Variables of a Zarr group as a scene: CF and GeoZarr conventions say where they lie.

Read by the zarr package, which knows the codecs of both versions; GDAL 3.10 knows those of version 2 only. A variable
on a grid (y, x) is a band; one with a third axis has a band for each step of it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError

from pipeline.bucket import Bucket
from pipeline.errors import InputError, PipelineError
from pipeline.grid import GeoBox
from pipeline.location import Location
from pipeline.scene.base import Band, Block, assert_inside, make_block, shared_nodata
from pipeline.scene.crs import check_transform, choose_crs
from pipeline.scene.files import MAX_BANDS, impossible_nodata
from pipeline.scene.select import select_bands
from pipeline.scene.validity import can_occur, valid_by_value

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.access import Access
    from pipeline.grid import Window
    from pipeline.scene.base import Json

_AXES = (("y", "x"), ("lat", "lon"), ("latitude", "longitude"), ("northing", "easting"))
_REGULAR_PX = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class ZarrScene:
    """Variables of a Zarr group that share a grid, as a recipe; opened where it is read."""

    path: str
    """Absolute path of the group, or its address."""
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
    nodata_override: float | None = None
    """Nodata given by the user."""
    warnings: tuple[str, ...] = ()
    """What a person should know, one sentence each."""
    remote: Prefix | None = None
    """Where it lies in a bucket; None on a disk."""

    @property
    def driver(self) -> str:
        """For people."""
        return "Zarr"

    @property
    def name(self) -> str:
        """The group's folder without its suffix."""
        return Path(self.path).stem

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest type that holds all selected bands."""
        return np.result_type(*{np.dtype(self.dtypes[band.index - 1]) for band in self.bands})

    @property
    def nodata(self) -> float | None:
        """Nodata shared by all selected bands; None when there is none or they differ."""
        return shared_nodata(self.bands)

    def select(self, bands: Sequence[str | int]) -> ZarrScene:
        """The same group with other bands.

        Raises:
            InputError: IN-011, unknown or ambiguous band.
        """
        return replace(self, bands=select_bands(self.all_bands, bands, where=self.path))

    def read(self, window: Window) -> NDArray[Any]:
        """Stored values of a window, shape `(band, y, x)`.

        Raises:
            InputError: IN-005, a chunk cannot be decoded.
        """
        assert_inside(window, self.geobox)
        rows, cols = slice(window.row_off, window.row_stop), slice(window.col_off, window.col_stop)
        data = np.empty((len(self.bands), *window.shape), self.dtype)
        for plane, band in zip(data, self.bands, strict=True):
            name, step = self.places[band.index - 1]
            try:
                with _failures(self.remote):
                    array = _opened(self.path, self.remote)[name]
                    plane[:] = array[rows, cols] if step is None else array[step, rows, cols]
            except PipelineError:
                raise
            except Exception as error:  # codecs raise what they like
                raise _cannot_read(self.path, f"{name}: {error}", str(window)) from error
        return data

    def read_block(self, window: Window) -> Block:
        """Stored values of a window; valid = finite and not nodata. A chunk that is not stored has the fill value."""
        data = self.read(window)
        return make_block(data, valid_by_value(data, self.bands))

    def fingerprint(self) -> dict[str, Json]:
        """Names, sizes and times (in a bucket: ETags) of all files of the group, which a rewritten chunk changes."""
        digest = hashlib.blake2b(digest_size=16)
        for line in self._contents() if self.remote is None else self.remote.contents():
            digest.update(f"{line}\n".encode())
        return {
            "file": Path(self.path).name,
            "digest": digest.hexdigest(),
            "bands": [band.index for band in self.bands],
            "nodata": None if self.nodata_override is None else repr(self.nodata_override),
            "crs": self.geobox.crs_wkt,
        }

    def _contents(self) -> Iterator[str]:
        for home, folders, files in os.walk(self.path):
            folders.sort()
            for file in sorted(files):
                status = os.stat(os.path.join(home, file))  # noqa: PTH116, PTH118 - millions of chunks
                yield f"{os.path.relpath(home, self.path)}/{file} {status.st_size} {status.st_mtime_ns}"


@dataclass(frozen=True, slots=True)
class Prefix:
    """All that lies under a key in a bucket."""

    bucket: Bucket
    key: str

    def contents(self) -> Iterator[str]:
        """A line for each object: its key, size and ETag."""
        for key, facts in self.bucket.list_facts(self.key.rstrip("/") + "/"):
            yield f"{key} {facts.size} {facts.etag}"


def open_zarr(
    place: Path | Location, *, nodata: float | None, assume_crs: str | None, allow_no_crs: bool, access: Access
) -> ZarrScene:
    """A Zarr group (version 2 or 3) as a scene; its variables on the largest grid are the bands.

    Args:
        place: A folder, or where it lies in a bucket.
        nodata: Value of missing pixels.
        assume_crs: CRS of a group that has none.
        allow_no_crs: Take it without.
        access: How a bucket is reached.

    Raises:
        InfrastructureError: ST-010 to ST-013.
        InputError: IN-005, it cannot be read; IN-006, it has no CRS; IN-016, its pixels have no area; IN-060, it
            has no variable on a regular grid.
    """
    remote = None
    path = Path(place.name) if isinstance(place, Location) else place.absolute()
    if isinstance(place, Location):
        remote = Prefix(Bucket(place.host, access.resolved(), place.scheme), place.key.rstrip("/"))
    where = str(place) if remote else str(path)
    with _failures(remote):
        group = _opened(where, remote)
        arrays = _arrays(group)
    with _failures(remote):
        return _look(path, where, group, arrays, nodata, assume_crs, allow_no_crs=allow_no_crs, remote=remote)


def _look(
    path: Path,
    where: str,
    group: Any,
    arrays: dict[str, Any],
    nodata: float | None,
    assume_crs: str | None,
    *,
    allow_no_crs: bool,
    remote: Prefix | None,
) -> ZarrScene:
    found = {name: array for name, array in arrays.items() if _on_grid(name, array, arrays)}
    if not found:
        raise _no_grid(path, f"it has {', '.join(list(arrays)[:10]) or 'no arrays'}, none of them (y, x) with numbers")
    largest = max((array.shape[-2:] for array in found.values()), key=lambda shape: shape[0] * shape[1])
    found = {name: array for name, array in found.items() if array.shape[-2:] == largest}
    first = next(iter(found.values()))
    mapping = _grid_mapping(first, arrays, group)
    transform = _transform(path, first, arrays, mapping)
    check_transform(transform, where=where)
    crs = choose_crs(_crs(path, mapping), assume_crs=assume_crs, allow_no_crs=allow_no_crs, where=where)
    if nodata is not None and not any(can_occur(nodata, np.dtype(array.dtype)) for array in found.values()):
        raise impossible_nodata(nodata, str(first.dtype), where)
    bands, places = _bands(found, arrays, nodata)
    if len(bands) > MAX_BANDS:
        raise _no_grid(path, f"it has {len(bands)} bands, at most {MAX_BANDS}")
    return ZarrScene(
        path=where,
        remote=remote,
        places=tuple(places),
        dtypes=tuple(str(found[name].dtype) for name, _ in places),
        geobox=GeoBox(shape=(int(largest[0]), int(largest[1])), transform=transform, crs_wkt=crs),
        bands=tuple(bands),
        all_bands=tuple(bands),
        nodata_override=nodata,
    )


_groups: dict[tuple[str, Prefix | None], Any] = {}


def _opened(path: str, remote: Prefix | None) -> Any:
    """The group, opened once per process: zarr's arrays can be read from any thread."""
    import zarr  # noqa: PLC0415 - slow to load and seldom needed

    key = (path, remote)
    if key not in _groups:
        try:
            with _failures(remote):
                _groups[key] = zarr.open_group(path if remote is None else _store(remote), mode="r")
        except PipelineError:
            raise
        except Exception as error:  # whatever is wrong with its metadata
            raise _cannot_read(path, str(error)) from error
    return _groups[key]


def _store(remote: Prefix) -> Any:
    from zarr.storage import ObjectStore  # noqa: PLC0415 - imports obstore, an extra

    return ObjectStore(remote.bucket.under(remote.key), read_only=True)


def _failures(remote: Prefix | None) -> contextlib.AbstractContextManager[None]:
    """Where a service fails, its failures as ours."""
    return contextlib.nullcontext() if remote is None else remote.bucket.failures(remote.key)


def _arrays(group: Any) -> dict[str, Any]:
    try:
        return dict(sorted(group.arrays()))
    except PipelineError:
        raise
    except Exception as error:
        raise _cannot_read(str(group.store_path), str(error)) from error


def _names(array: Any) -> tuple[str, ...]:
    """Names of an array's axes: Zarr 3 has them in its metadata, xarray writes an attribute for Zarr 2."""
    told = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS") or ()
    return tuple(str(name) for name in told)


def _on_grid(name: str, array: Any, arrays: Mapping[str, Any]) -> bool:
    """Whether an array is a variable whose last two axes are those of a grid."""
    if array.ndim not in (2, 3) or name.lower() in {"spatial_ref", "crs"}:
        return False
    if array.dtype.kind not in "uif" or 0 in array.shape:
        return False
    names = _names(array)[-2:]
    return not names or tuple(n.lower() for n in names) in _AXES or all(n in arrays for n in names)


def _grid_mapping(array: Any, arrays: Mapping[str, Any], group: Any) -> dict[str, Any]:
    """What says where the grid lies: the group's GeoZarr attributes, the variable's, then the CF grid mapping's."""
    name = array.attrs.get("grid_mapping") or "spatial_ref"
    own = dict(arrays[name].attrs) if name in arrays else {}
    return {**dict(group.attrs), **dict(array.attrs), **own}


def _crs(path: Path, mapping: Mapping[str, Any]) -> CRS | None:
    for key in ("crs_wkt", "spatial_ref", "proj:wkt2", "proj:code", "proj:projjson", "proj:epsg", "crs"):
        told = mapping.get(key)
        if told:
            try:
                return CRS.from_user_input(told)
            except (CRSError, ValueError, TypeError) as error:
                raise _no_grid(path, f"its CRS is not understood: {str(told)[:80]!r}") from error
    return None


def _transform(path: Path, array: Any, arrays: Mapping[str, Any], mapping: Mapping[str, Any]) -> Affine:
    told = mapping.get("spatial:transform") or mapping.get("proj:transform")
    gdal = mapping.get("GeoTransform")
    try:
        if isinstance(told, list | tuple) and len(told) >= 6:  # noqa: PLR2004
            return Affine(*map(float, told[:6]))
        if gdal is not None:
            return Affine.from_gdal(*map(float, gdal.split() if isinstance(gdal, str) else gdal))
    except (TypeError, ValueError) as error:
        raise _no_grid(path, f"its transform is not understood: {str(told or gdal)[:80]!r}") from error
    names = _names(array)[-2:]
    if not all(axis in arrays for axis in names) or not names:
        return Affine.identity()
    (top, down), (left, along) = (_regular(path, axis, np.asarray(arrays[axis][:], np.float64)) for axis in names)
    return Affine(along, 0, left, 0, down, top)


def _regular(path: Path, axis: str, centres: NDArray[np.float64]) -> tuple[float, float]:
    """(outer edge of the first pixel, step) of coordinates that must lie on a regular grid."""
    if centres.ndim != 1 or len(centres) < 2:  # noqa: PLR2004
        raise _no_grid(path, f"its coordinates {axis} do not tell the size of a pixel")
    step = float(centres[-1] - centres[0]) / (len(centres) - 1)
    expected = centres[0] + step * np.arange(len(centres))
    if not step or not np.abs(centres - expected).max() <= _REGULAR_PX * abs(step):
        raise _no_grid(path, f"its coordinates {axis} are not evenly spaced")
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
    axis = (_names(array) or ("",))[0]
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
    if array.metadata.zarr_format == 2:  # noqa: PLR2004
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
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    try:
        return otherwise if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return otherwise


def _cannot_read(path: str, why: str, window: str = "") -> InputError:
    return InputError(
        f"{Path(path).name} cannot be read: {why[:300]}",
        code="IN-005",
        title="Scene cannot be read",
        where=f"{path}, {window}" if window else path,
        fix="check that the store is whole, and that its codecs are installed",
    )


def _no_grid(path: Path, why: str) -> InputError:
    return InputError(
        f"{path.name} holds no scene: {why}",
        code="IN-060",
        title="No variable on a grid",
        where=str(path),
        fix="give the group that has variables (y, x) with coordinates, or a spatial_ref with a GeoTransform",
    )
