"""Where a geobox lies in longitude and latitude: RFC 7946 polygons, right across the antimeridian and at the poles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError
from shapely import affinity

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.grid import GeoBox

_POINTS_PER_SIDE = 32
_HALF_TURN = 180.0
_POLE = 90.0
_DECIMALS = 7  # RFC 7946 advises six; seven are a centimetre


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """A scene's outline on Earth."""

    geometry: dict[str, Any]
    """GeoJSON Polygon or MultiPolygon, counter-clockwise, never crossing the antimeridian."""
    bbox: list[float]
    """west, south, east, north; west > east where the scene crosses the antimeridian."""


def footprint_lonlat(geobox: GeoBox) -> Footprint | None:
    """Outline of a scene, its sides densified; None without a CRS, or one that does not reach longitude and latitude.

    Args:
        geobox: Any transform and CRS.
    """
    if geobox.crs_wkt is None:
        return None
    outline = _outline_lonlat(geobox)
    if outline is None:
        return None
    lon, lat = _unwrapped(outline)
    if abs(lon[-1] - lon[0]) > _HALF_TURN:  # once round: a pole lies inside
        lon, lat = _over_the_pole(lon, lat)
        around = True
    else:
        around = bool(lon.max() - lon.min() >= 2 * _HALF_TURN)
    polygon = shapely.make_valid(shapely.Polygon(np.column_stack([lon, lat])))
    parts = _cut_at_antimeridian(polygon)
    if not parts:
        return None
    geometry = shapely.MultiPolygon(parts) if len(parts) > 1 else parts[0]
    rounded = shapely.transform(geometry, lambda xy: np.round(xy, _DECIMALS))
    return Footprint(
        geometry=_plain(shapely.geometry.mapping(rounded)),
        bbox=_bbox(lon, lat, around=around),
    )


def _outline_lonlat(geobox: GeoBox) -> NDArray[np.float64] | None:
    """Closed ring `(point, 2)` of longitudes and latitudes, points that have none left out."""
    height, width = geobox.shape
    t = np.linspace(0.0, 1.0, _POINTS_PER_SIDE, endpoint=False)
    cols = np.concatenate([t, np.ones_like(t), 1 - t, np.zeros_like(t), [0.0]]) * width
    rows = np.concatenate([np.zeros_like(t), t, np.ones_like(t), 1 - t, [0.0]]) * height
    m = geobox.transform
    try:
        to_lonlat = Transformer.from_crs(CRS.from_user_input(geobox.crs_wkt), "OGC:CRS84", always_xy=True)
        lon, lat = to_lonlat.transform(m.a * cols + m.b * rows + m.c, m.d * cols + m.e * rows + m.f)
    except ProjError:  # an engineering CRS: metres from a corner of a building
        return None
    ring = np.column_stack([lon, lat])
    ring = ring[np.isfinite(ring).all(axis=1)]
    if len(ring) < 4:  # noqa: PLR2004 - a ring
        return None
    return ring if (ring[0] == ring[-1]).all() else np.vstack([ring, ring[:1]])


def _unwrapped(ring: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Longitudes without jumps, beginning in [-180, 180]; latitudes as they are."""
    lon = np.unwrap(ring[:, 0], period=2 * _HALF_TURN)
    return lon - 2 * _HALF_TURN * np.round(lon.mean() / (2 * _HALF_TURN)), ring[:, 1]


def _over_the_pole(
    lon: NDArray[np.float64], lat: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Close a ring that goes once round the Earth along the pole that it holds."""
    pole = _POLE if lat.mean() > 0 else -_POLE
    return np.concatenate([lon, [lon[-1], lon[0]]]), np.concatenate([lat, [pole, pole]])


def _cut_at_antimeridian(polygon: Any) -> list[Any]:
    """The polygon's parts, each moved into [-180, 180], exteriors counter-clockwise."""
    west, _, east, _ = polygon.bounds
    turns = range(
        int(np.floor((west + _HALF_TURN) / (2 * _HALF_TURN))), int(np.ceil((east + _HALF_TURN) / (2 * _HALF_TURN)))
    )
    parts: list[Any] = []
    for turn in turns:
        shift = 2 * _HALF_TURN * turn
        piece = shapely.intersection(polygon, shapely.box(shift - _HALF_TURN, -_POLE, shift + _HALF_TURN, _POLE))
        moved = affinity.translate(piece, xoff=-shift)
        parts.append(moved)
    # Together again where they meet: a ring round a pole begins and ends at some meridian of its own.
    whole = shapely.union_all(parts)
    return [shapely.orient_polygons(p) for p in shapely.get_parts(whole) if p.geom_type == "Polygon" and p.area > 0]


def _bbox(lon: NDArray[np.float64], lat: NDArray[np.float64], *, around: bool) -> list[float]:
    west, east = (-_HALF_TURN, _HALF_TURN) if around else (_in_turn(float(lon.min())), _in_turn(float(lon.max())))
    return [round(v, _DECIMALS) for v in (west, float(lat.min()), east, float(lat.max()))]


def _in_turn(lon: float) -> float:
    if -_HALF_TURN <= lon <= _HALF_TURN:
        return lon
    return (lon + _HALF_TURN) % (2 * _HALF_TURN) - _HALF_TURN


def _plain(value: Any) -> Any:
    """Tuples and NumPy floats as JSON has them."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return float(value) if isinstance(value, (float, np.floating)) else value
