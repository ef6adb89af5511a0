"""Pixel coordinates to longitude and latitude on WGS 84, and polygons that meet the antimeridian or a pole.

A ring is first unwrapped (its longitudes run on past 180), then cut at odd multiples of 180, as RFC 7946 §3.1.9 asks.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import shapely
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.grid import GeoBox
    from pipeline.vector.rings import Geometries, Ints, Rings

    Floats = NDArray[np.float64]

_DECIMALS = 7
_POLE = 90 - 1e-9
_HALF_TURN = 180.0


def is_on_earth(crs_wkt: str | None) -> bool:
    """True if the CRS leads to longitude and latitude (False for none, for local systems, and for other planets)."""
    if crs_wkt is None or CRS.from_wkt(crs_wkt).geodetic_crs is None:
        return False
    try:
        Transformer.from_crs(CRS.from_wkt(crs_wkt).to_2d(), "OGC:CRS84", always_xy=True)
    except ProjError:  # "source and target ellipsoid do not belong to the same celestial body"
        return False
    return True


class ToLonLat:
    """Pixel `(x, y)` of a scene to longitude and latitude on WGS 84 in degrees, and back."""

    def __init__(self, geobox: GeoBox) -> None:
        assert geobox.crs_wkt is not None
        self.geobox = geobox
        self._transform = geobox.transform
        self._inverse = ~geobox.transform
        crs = CRS.from_wkt(geobox.crs_wkt).to_2d()
        self._transformer = Transformer.from_crs(crs, "OGC:CRS84", always_xy=True)

    def forward(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Longitude and latitude; not finite off the Earth."""
        t = self._transform
        lon, lat = self._transformer.transform(t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f)
        return np.asarray(lon), np.asarray(lat)

    def backward(self, lon: Floats, lat: Floats) -> tuple[Floats, Floats]:
        """Pixel coordinates."""
        x, y = self._transformer.transform(lon, lat, direction="INVERSE")
        t = self._inverse
        return t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f


def wrap(lon_difference: Floats) -> Floats:
    """A difference of longitudes the short way round, in [-180, 180)."""
    return np.asarray((lon_difference + 180) % 360 - 180)


def to_lonlat_polygons(rings: Rings, place: ToLonLat, *, check: bool) -> Geometries:
    """Polygons and multi-polygons in longitude and latitude, rounded to 7 decimals, exteriors counter-clockwise.

    Args:
        rings: Polygons in pixel coordinates, edges dense enough.
        place: The scene's projection.
        check: Look for polygons that rounding or a strong distortion made invalid, and repair them.

    Returns:
        Shape (polygon,); None where a polygon vanishes (smaller than the rounding, or off the Earth).
    """
    lon, lat = place.forward(rings.coords[:, 0], rings.coords[:, 1])
    step = np.diff(lon, append=lon[-1:])
    with np.errstate(invalid="ignore"):
        odd = ~(np.abs(lon) <= _HALF_TURN) | ~(np.abs(lat) < _POLE) | (~rings.is_last & ~(np.abs(step) < _HALF_TURN))
    lonlat = np.stack([lon, lat], axis=1)
    rounded = np.round(lonlat, _DECIMALS) + 0.0  # no "-0.0" in the file
    polygons = rings.to_shapely(np.nan_to_num(rounded, posinf=0.0, neginf=0.0))
    to_cut = np.unique(rings.polygon_of_vertex[odd])
    for i in to_cut:
        polygons[i] = _cut(_rings_of(rings, lonlat, int(i)))
    suspects = np.arange(len(polygons)) if check else to_cut
    suspects = suspects[[polygons[i] is not None for i in suspects]]
    for i in suspects[~shapely.is_valid(polygons[suspects])]:
        whole = polygons[i] if i in to_cut else shapely.make_valid(shapely.Polygon(*_shell_and_holes(rings, lonlat, i)))
        polygons[i] = _areas_only(_round(whole))
    present = np.array([p is not None for p in polygons], bool)
    polygons[present] = shapely.orient_polygons(polygons[present], exterior_cw=False)
    return polygons


def _rings_of(rings: Rings, lonlat: Floats, polygon: int) -> list[Floats]:
    """The rings of one polygon, exterior first, each shape (vertex, 2)."""
    first, stop = rings.polygon_offsets[polygon], rings.polygon_offsets[polygon + 1]
    cuts = rings.ring_offsets[first : stop + 1]
    return [lonlat[a:b] for a, b in pairwise(cuts)]


def _shell_and_holes(rings: Rings, lonlat: Floats, polygon: Ints | int) -> tuple[Floats, list[Floats]]:
    shell, *holes = _rings_of(rings, lonlat, int(polygon))
    return shell, holes


def _cut(rings: list[Floats]) -> shapely.Geometry | None:
    """A polygon that passes the antimeridian or a pole, in parts that do not."""
    if not all(np.isfinite(ring).all() for ring in rings):
        return None
    shell, *holes = [shapely.make_valid(shapely.Polygon(_unwrap(ring))) for ring in rings]
    for hole in holes:  # it may have been unwrapped to another turn than its shell, and the other way round
        for turn in (0.0, 360.0, -360.0, 720.0, -720.0):
            shell = shapely.difference(shell, _shifted(hole, turn))
    parts = [
        _shifted(shapely.intersection(shell, shapely.box(-180 + turn, -90, 180 + turn, 90)), -turn)
        for turn in (0.0, 360.0, -360.0)
    ]
    return _areas_only(_round(shapely.union_all(parts)))


def _unwrap(ring: Floats) -> Floats:
    """Longitudes without jumps, rounded; a ring around a pole is closed along the pole."""
    ring = _open_poles(ring)
    steps = wrap(np.diff(ring[:, 0]))
    lon = ring[0, 0] + np.concatenate([[0.0], np.cumsum(steps)])
    out = np.round(np.stack([lon, ring[:, 1]], axis=1), _DECIMALS)
    if abs(out[-1, 0] - out[0, 0]) > _HALF_TURN:
        pole = np.copysign(90.0, ring[:, 1].mean())
        out = np.concatenate([out, [[out[-1, 0], pole], [out[0, 0], pole], out[0]]])
    return np.asarray(out)


def _open_poles(ring: Floats) -> Floats:
    """Each vertex at a pole, whose longitude means nothing, becomes two with the longitudes of its neighbours."""
    at_pole = np.abs(ring[:-1, 1]) >= _POLE
    if not at_pole.any() or at_pole.all():
        return ring
    open_ring = np.roll(ring[:-1], -int(np.argmin(at_pole)), axis=0)  # begin away from the pole
    at_pole = np.abs(open_ring[:, 1]) >= _POLE
    before, after = np.roll(open_ring, 1, axis=0), np.roll(open_ring, -1, axis=0)
    rows: list[tuple[float, float]] = []
    for i, (lon, lat) in enumerate(open_ring.tolist()):
        rows += [(before[i, 0], lat), (after[i, 0], lat)] if at_pole[i] else [(lon, lat)]
    return np.array([*rows, rows[0]])


def _shifted(geometry: shapely.Geometry, turn: float) -> shapely.Geometry:
    return geometry if turn == 0 else shapely.transform(geometry, lambda xy: xy + np.array([turn, 0.0]))


def _round(geometry: shapely.Geometry) -> shapely.Geometry:
    """On the 7-decimal grid and valid; parts smaller than that vanish."""
    snapped = shapely.set_precision(geometry, 10.0**-_DECIMALS)
    return shapely.transform(snapped, lambda xy: np.round(xy, _DECIMALS) + 0.0)


def _areas_only(geometry: shapely.Geometry) -> shapely.Geometry | None:
    """The polygons of a geometry as one polygon or multi-polygon; None if there are none."""
    parts = shapely.get_parts(shapely.get_parts(geometry))
    areas = [p for p in parts if isinstance(p, shapely.Polygon) and not p.is_empty]
    if not areas:
        return None
    return areas[0] if len(areas) == 1 else shapely.MultiPolygon(areas)
