"""Footprints in longitude and latitude: across the antimeridian, at the poles, right way round."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import shapely
from affine import Affine
from pyproj import Geod
from rasterio.crs import CRS

from pipeline.grid import GeoBox
from pipeline.store.footprint import footprint_lonlat


def _footprint(epsg: int, transform: Affine, shape: tuple[int, int] = (100, 100)) -> Any:
    return footprint_lonlat(GeoBox(shape=shape, transform=transform, crs_wkt=CRS.from_epsg(epsg).to_wkt()))


def _parts(footprint: Any) -> list[Any]:
    return list(shapely.get_parts(shapely.geometry.shape(footprint.geometry)))


def _checked(footprint: Any) -> Any:
    """The geometry, once it keeps the laws that hold for all."""
    shape = shapely.geometry.shape(footprint.geometry)
    west, south, east, north = shape.bounds
    assert shape.is_valid
    assert -180 <= west <= east <= 180
    assert -90 <= south <= north <= 90
    for part in _parts(footprint):
        assert part.exterior.is_ccw
    return shape


def test_a_scene_on_the_map() -> None:
    footprint = _footprint(32633, Affine(10, 0, 500_000, 0, -10, 4_600_000))
    shape = _checked(footprint)
    area, _ = Geod(ellps="WGS84").geometry_area_perimeter(shape)
    assert area == pytest.approx(1_000_000, rel=2e-3)
    assert footprint.bbox == pytest.approx(shape.bounds, abs=1e-6)
    assert len(shape.exterior.coords) > 100


@pytest.mark.parametrize(
    "transform",
    [
        Affine(10, 0, 500_000, 0, 10, 4_600_000),
        Affine.translation(500_000, 4_600_000) @ Affine.rotation(30) @ Affine.scale(10, -10),
        Affine(-10, 0, 500_000, 0, -10, 4_600_000),
    ],
)
def test_c8_c9_any_transform_gives_a_ring_the_right_way_round(transform: Affine) -> None:
    area, _ = Geod(ellps="WGS84").geometry_area_perimeter(_checked(_footprint(32633, transform)))
    assert area == pytest.approx(1_000_000, rel=2e-3)


def test_c10_a_scene_across_the_antimeridian_is_cut_in_two() -> None:
    footprint = _footprint(32660, Affine(1000, 0, 650_000, 0, -1000, 1_000_000), (100, 200))
    shape = _checked(footprint)
    assert shape.geom_type == "MultiPolygon"
    assert len(_parts(footprint)) == 2
    west, _, east, _ = footprint.bbox
    assert west > 170
    assert east < -170
    assert shape.bounds[2] - shape.bounds[0] == pytest.approx(360, abs=1e-6)
    area, _ = Geod(ellps="WGS84").geometry_area_perimeter(shape.geoms[0])
    other, _ = Geod(ellps="WGS84").geometry_area_perimeter(shape.geoms[1])
    assert area + other == pytest.approx(200 * 100 * 1e6, rel=5e-3)


@pytest.mark.parametrize(
    ("first", "bbox"), [(179.5, [179.5, -10, -179.5, 0]), (170.0, [170, -10, 171, 0]), (359.5, [-0.5, -10, 0.5, 0])]
)
def test_c10_longitudes_beyond_180(first: float, bbox: list[float]) -> None:
    footprint = _footprint(4326, Affine(0.01, 0, first, 0, -0.1, 0))
    assert footprint.bbox == pytest.approx(bbox)
    assert _checked(footprint).area == pytest.approx(10)


def test_a_scene_that_ends_at_the_antimeridian_does_not_cross_it() -> None:
    for first in (179.0, -180.0):
        footprint = _footprint(4326, Affine(0.01, 0, first, 0, -0.01, 10))
        assert _checked(footprint).geom_type == "Polygon"
        assert footprint.bbox == pytest.approx([first, 9, first + 1, 10])


@pytest.mark.parametrize("first", [-180.0, 0.0])
def test_a_world_map(first: float) -> None:
    footprint = _footprint(4326, Affine(3.6, 0, first, 0, -1.8, 90))
    assert footprint.bbox == pytest.approx([-180, -90, 180, 90])
    assert _checked(footprint).area == pytest.approx(360 * 180)


@pytest.mark.parametrize(("epsg", "south", "north"), [(3031, -90.0, -70.0), (3995, 70.0, 90.0)])
def test_c11_a_pole_lies_inside(epsg: int, south: float, north: float) -> None:
    footprint = _footprint(epsg, Affine(20_000, 0, -1_000_000, 0, -20_000, 1_000_000))
    shape = _checked(footprint)
    assert footprint.bbox[0] == -180
    assert footprint.bbox[2] == 180
    assert footprint.bbox[1] >= south - 1e-9
    assert footprint.bbox[3] <= north + 1e-9
    pole = south if epsg == 3031 else north
    for lon in np.linspace(-179, 179, 50):
        assert shape.covers(shapely.Point(lon, pole * 0.999))
    assert not shape.covers(shapely.Point(0, 0.75 * pole))


def test_c11_a_polar_scene_beside_the_pole() -> None:
    footprint = _footprint(3031, Affine(1000, 0, 200_000, 0, -1000, 50_000))
    shape = _checked(footprint)
    assert shape.geom_type == "Polygon"
    assert footprint.bbox[2] - footprint.bbox[0] < 60
    assert footprint.bbox[3] < -86


def test_no_crs_or_one_that_is_nowhere_gives_none() -> None:
    transform = Affine(1, 0, 0, 0, -1, 0)
    assert footprint_lonlat(GeoBox(shape=(5, 5), transform=transform, crs_wkt=None)) is None
    local = 'ENGCRS["site",EDATUM["corner"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["metre",1]]'
    assert footprint_lonlat(GeoBox(shape=(5, 5), transform=transform, crs_wkt=local)) is None


def test_where_the_projection_ends_the_rest_is_told() -> None:
    # Orthographic: the corners of the square lie off the Earth.
    wkt = CRS.from_proj4("+proj=ortho +lat_0=0 +lon_0=0").to_wkt()
    box = GeoBox(shape=(100, 100), transform=Affine(120_000, 0, -6_000_000, 0, -120_000, 6_000_000), crs_wkt=wkt)
    footprint = footprint_lonlat(box)
    assert footprint is not None
    _checked(footprint)
