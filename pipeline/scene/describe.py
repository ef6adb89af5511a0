"""What we understood of a scene, as one JSON document: for `scenemask inspect` and bug reports."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj
import shapely
from pyproj.exceptions import CRSError, ProjError

from pipeline.grid import Window
from pipeline.scene.raster import RasterScene
from pipeline.scene.sources import SourcesScene

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.grid import GeoBox
    from pipeline.scene.base import Band, Json, Scene
    from pipeline.scene.limits import Limits

_LOOKS = 16  # windows per side in which validity is counted
_LOOK_PX = 32  # side of these windows


def describe_scene(scene: Scene, limits: Limits | None = None) -> dict[str, Json]:
    """Everything that decides what a run makes of a scene.

    Keys: `name`, `driver`, `height`, `width`, `dtype`, `nodata`, `bands` (one object each), `crs` (`name`, `authority`,
    `units`, `geographic`; null without), `transform` (GDAL order), `orientation`, `pixel_size` (row step, column step,
    CRS units), `pixel_size_m` (the same on the ground, at the centre; null without CRS), `footprint_lonlat` (closed
    ring; null without), `valid_frac` (share of pixels usable in all bands, an estimate for large scenes), `wanted_frac`
    (share for which a result is wanted, where `limits` say so), `warnings`; for files also `path`, `file_bytes`,
    `block_hw`, `overviews`, `alpha`, `mask`, `compression`.

    Raises:
        InputError: IN-005 when a block cannot be decoded.
    """
    geobox = scene.geobox
    crs = _crs(geobox)
    described: dict[str, Json] = {
        "name": scene.name,
        "height": geobox.height,
        "width": geobox.width,
        "dtype": str(scene.dtype),
        "nodata": _number(scene.nodata),
        "bands": [_band(band) for band in scene.bands],
        "crs": None if crs is None else _describe_crs(crs),
        "transform": list(geobox.transform.to_gdal()),
        "orientation": _orientation(geobox),
        "pixel_size": list(geobox.pixel_size),
        "pixel_size_m": _ground_size(geobox, crs),
        "footprint_lonlat": _footprint(geobox, crs),
        "valid_frac": _share(scene, lambda window: scene.read_block(window).valid_everywhere()),
    }
    if limits is not None and (limits.aoi or limits.layer):
        described["wanted_frac"] = _share(scene, limits.mask)
    described["warnings"] = list(scene.warnings)
    if isinstance(scene, SourcesScene):
        return described | {"path": scene.path, **scene.describe()}
    return described | (
        _file(scene) if isinstance(scene, RasterScene) else {"driver": getattr(scene, "driver", "array")}
    )


def _file(scene: RasterScene) -> dict[str, Json]:
    dataset = scene.dataset()
    return {
        "path": scene.path,
        "driver": scene.driver,
        "file_bytes": scene.size,
        "block_hw": [int(n) for n in dataset.block_shapes[0]],
        "overviews": [int(n) for n in dataset.overviews(1)],
        "alpha": list(scene.alpha),
        "mask": scene.mask,
        "compression": dataset.compression.name if dataset.compression is not None else None,
    }


def _band(band: Band) -> dict[str, Json]:
    return {
        "number": band.index,
        "name": band.name,
        "described": band.described,
        "nodata": _number(band.nodata),
        "scale": band.scale,
        "offset": band.offset,
        "scale_from": band.truth if (band.scale, band.offset) != (1.0, 0.0) else "",
        "color": band.color,
    }


def _number(value: float | None) -> float | str | None:
    """JSON has no NaN and no infinity."""
    return value if value is None or math.isfinite(value) else str(value)


def _crs(geobox: GeoBox) -> pyproj.CRS | None:
    """The CRS as pyproj sees it; None without one, or where PROJ cannot make an object of a local one."""
    try:
        return None if geobox.crs_wkt is None else pyproj.CRS.from_wkt(geobox.crs_wkt)
    except CRSError:
        return None


def _describe_crs(crs: pyproj.CRS) -> dict[str, Json]:
    authority = crs.to_authority()
    return {
        "name": crs.name,
        "authority": ":".join(authority) if authority else None,
        "units": crs.axis_info[0].unit_name if crs.axis_info else None,
        "geographic": crs.is_geographic,
    }


def _orientation(geobox: GeoBox) -> str:
    t = geobox.transform
    if t.b or t.d:
        return "rotated or sheared"
    return "south-up" if t.e > 0 else "north-up"


def _to_lonlat(crs: pyproj.CRS) -> pyproj.Transformer | None:
    """Into longitude and latitude on the CRS's own ellipsoid; None for local CRS that are not tied to a globe."""
    geodetic = crs.geodetic_crs
    if geodetic is None:
        return None
    try:
        return pyproj.Transformer.from_crs(crs, geodetic, always_xy=True)
    except ProjError:
        return None


def ground_pixel_m(geobox: GeoBox) -> list[float] | None:
    """Lengths of the row and column step at the scene's centre, metres on the ellipsoid; None without a place."""
    return _ground_size(geobox, _crs(geobox))


def _ground_size(geobox: GeoBox, crs: pyproj.CRS | None) -> list[float] | None:
    """Lengths of the row and column step at the scene's centre, metres on the ellipsoid."""
    transformer = None if crs is None else _to_lonlat(crs)
    if crs is None or transformer is None:
        return None
    row, col = geobox.height / 2, geobox.width / 2
    points = np.array([geobox.transform @ p for p in ((col, row), (col, row + 1), (col + 1, row))])
    lon, lat = transformer.transform(points[:, 0], points[:, 1])
    if not np.isfinite([lon, lat]).all():
        return None
    geod = crs.get_geod()
    if geod is None:
        return None
    return [float(geod.inv(lon[0], lat[0], lon[k], lat[k])[2]) for k in (1, 2)]


def _footprint(geobox: GeoBox, crs: pyproj.CRS | None) -> list[list[float]] | None:
    """Outline of the scene as a closed ring of longitude and latitude, 8 points per side.

    Longitudes run on past 180 rather than jump, so that a scene on the antimeridian stays one ring.
    """
    transformer = None if crs is None else _to_lonlat(crs)
    if transformer is None:
        return None
    ring = shapely.LinearRing(geobox.corners_xy())
    along = np.linspace(0, 1, 33)
    sides: NDArray[Any] = shapely.get_coordinates(shapely.line_interpolate_point(ring, along, normalized=True))
    lon, lat = transformer.transform(sides[:, 0], sides[:, 1])
    if not np.isfinite([lon, lat]).all():
        return None
    lon = np.unwrap(lon, period=360)
    return [[round(float(x), 7), round(float(y), 7)] for x, y in zip(lon, lat, strict=True)]


def _share(scene: Scene, mask: Callable[[Window], NDArray[np.bool_] | None]) -> float:
    """Share of pixels that a mask of windows lets through (None: all of them); exact for small scenes.

    Large ones are divided into equal parts with one window at a random place in each (the same at each call): fixed
    places, such as the middles, would miss the thin collars that scenes have along their borders.
    """
    height, width = scene.geobox.shape
    rng = np.random.default_rng(0)
    valid = total = 0
    for row, row_stop in _parts(height):
        for col, col_stop in _parts(width):
            window = Window.from_bounds(row, col, row_stop, col_stop)
            if window.num_pixels > _LOOK_PX**2:
                row_off = int(rng.integers(row, max(row_stop - _LOOK_PX, row) + 1))
                col_off = int(rng.integers(col, max(col_stop - _LOOK_PX, col) + 1))
                look = Window(row_off=row_off, col_off=col_off, height=_LOOK_PX, width=_LOOK_PX)
                window = look.intersect(window)
            found = mask(window)
            valid += window.num_pixels if found is None else int(found.sum())
            total += window.num_pixels
    return valid / total


def _parts(length: int) -> list[tuple[int, int]]:
    """Up to `_LOOKS` equal parts of `length` pixels, one when it is short."""
    count = min(_LOOKS, -(-length // _LOOK_PX))
    bounds = [length * k // count for k in range(count + 1)]
    return list(pairwise(bounds))
