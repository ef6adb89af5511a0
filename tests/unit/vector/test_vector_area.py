"""Areas on the ellipsoid."""

from __future__ import annotations

import math

import numpy as np
import pytest
from affine import Affine
from pyproj import CRS, Geod, Transformer

from pipeline.grid import GeoBox
from pipeline.vector.area import PixelAreas
from tests.unit.vector.masks import GRIDS

LOCAL_CRS = 'LOCAL_CS["site grid",UNIT["metre",1],AXIS["x",EAST],AXIS["y",NORTH]]'


def _box_m2(geobox: GeoBox, x0: int, y0: int, x1: int, y1: int) -> float:
    areas = PixelAreas.of(geobox)
    assert areas is not None
    corners = areas.integral(np.array([x0, x1, x0, x1]), np.array([y0, y0, y1, y1]))
    return float(areas.to_m2(corners[3] - corners[2] - corners[1] + corners[0]))


def _geod_m2(geobox: GeoBox, x0: int, y0: int, x1: int, y1: int) -> float:
    """The same box with dense edges, on the ellipsoid."""
    crs = CRS.from_wkt(geobox.crs_wkt or "")
    s = np.linspace(0, 1, 4001)
    x = np.concatenate([x0 + (x1 - x0) * s, np.full_like(s, x1), x1 - (x1 - x0) * s, np.full_like(s, x0)])
    y = np.concatenate([np.full_like(s, y0), y0 + (y1 - y0) * s, np.full_like(s, y1), y1 - (y1 - y0) * s])
    lon, lat = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform(*(geobox.transform @ (x, y)))
    geod = crs.get_geod()
    assert geod is not None
    return abs(float(geod.polygon_area_perimeter(lon, lat)[0]))


@pytest.mark.parametrize("lat", [0, 45, 80, -80])
@pytest.mark.parametrize("pixels", [1, 100, 3600])
def test_c12_one_degree_boxes(lat: int, pixels: int) -> None:
    transform = Affine(1 / pixels, 0, 10, 0, -1 / pixels, lat + 1)
    geobox = GeoBox(shape=(pixels, pixels), transform=transform, crs_wkt=CRS.from_epsg(4326).to_wkt())
    s = np.linspace(0, 1, 2001)
    lon = np.concatenate([10 + s, 11 - s])
    expected, _ = Geod(ellps="WGS84").polygon_area_perimeter(lon, np.repeat([lat, lat + 1], len(s)).astype(float))
    assert _box_m2(geobox, 0, 0, pixels, pixels) == pytest.approx(abs(expected), rel=1e-4)


@pytest.mark.parametrize("name", GRIDS)
def test_areas_equal_geodesic_ones_in_any_grid(name: str) -> None:
    crs, transform = GRIDS[name]
    geobox = GeoBox(shape=(3000, 2000), transform=transform, crs_wkt=CRS.from_user_input(crs).to_wkt())
    for box in [(0, 0, 60, 40), (1200, 100, 1700, 900), (1990, 2900, 2000, 3000)]:
        assert _box_m2(geobox, *box) == pytest.approx(_geod_m2(geobox, *box), rel=5e-4), box


def test_the_pole_and_the_antimeridian_lie_inside_pixels() -> None:
    wgs84 = CRS.from_epsg(4326).to_wkt()
    whole = GeoBox(shape=(180, 360), transform=Affine(1, 0, -180, 0, -1, 90), crs_wkt=wgs84)
    geod = Geod(ellps="WGS84")
    sphere = 4 * math.pi * 6_371_007.181**2  # authalic radius of WGS 84
    assert _box_m2(whole, 0, 0, 360, 180) == pytest.approx(sphere, rel=1e-3)
    pacific = GeoBox(shape=(100, 100), transform=Affine(0.01, 0, 179.5, 0, -0.01, 0.5), crs_wkt=wgs84)
    east = abs(geod.polygon_area_perimeter([0, 1, 1, 0], [-0.5, -0.5, 0.5, 0.5])[0])
    assert _box_m2(pacific, 0, 0, 100, 100) == pytest.approx(east, rel=1e-3)


@pytest.mark.parametrize("wkt", [None, LOCAL_CRS])
def test_no_area_without_a_place_on_earth(wkt: str | None) -> None:
    assert PixelAreas.of(GeoBox(shape=(5, 5), transform=Affine.identity(), crs_wkt=wkt)) is None


def test_pixels_off_the_earth_have_no_area() -> None:
    crs = CRS.from_proj4("+proj=ortho +lat_0=0 +lon_0=0 +ellps=WGS84")
    geobox = GeoBox(shape=(40, 40), transform=Affine(4e5, 0, -8e6, 0, -4e5, 8e6), crs_wkt=crs.to_wkt())
    assert _box_m2(geobox, 0, 0, 2, 2) == 0
    assert _box_m2(geobox, 20, 20, 21, 21) == pytest.approx(1.6e11, rel=1e-2)


def test_units_are_whole_numbers_and_fit() -> None:
    crs, transform = GRIDS["geographic"]
    geobox = GeoBox(shape=(200_000, 200_000), transform=transform, crs_wkt=CRS.from_user_input(crs).to_wkt())
    areas = PixelAreas.of(geobox)
    assert areas is not None
    total = areas.integral(np.array([200_000]), np.array([200_000]))
    assert total.dtype == np.int64
    assert 2**55 < total[0] < 2**62
