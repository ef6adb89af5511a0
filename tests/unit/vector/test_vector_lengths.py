"""Perimeters, against geodesics along every pixel's side."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from affine import Affine
from pyproj import CRS, Transformer

from pipeline.grid import GeoBox
from pipeline.vector.lengths import PixelSides
from pipeline.vector.rings import from_shapely

GRIDS = {
    "utm": ("EPSG:32633", Affine(10, 0, 500_000, 0, -10, 5_000_000)),
    "edge of utm": ("EPSG:32633", Affine(10, 0, 160_000, 0, -10, 8_000_000)),
    "rotated": ("EPSG:32633", Affine(7, 4, 400_000, 3, -9, 5_000_000)),
    "degrees": ("EPSG:4326", Affine(0.01, 0, 10, 0, -0.01, 60)),
    "feet": ("EPSG:2263", Affine(2, 0, 980_000, 0, -2, 200_000)),
    "web": ("EPSG:3857", Affine(30, 0, 0, 0, -30, 8_000_000)),
}
POLYGONS = [
    shapely.box(0, 0, 1, 1),
    shapely.Polygon(
        [(100, 20), (900, 20), (900, 600), (700, 600), (700, 950), (100, 950)],
        [[(200, 100), (200, 300), (400, 300), (400, 100)]],
    ),
    shapely.Polygon([(0, 0), (1000, 0), (1000, 1000), (0, 1000)]),
    shapely.Polygon([(10, 10), (510, 260), (260, 760)]),
]


@pytest.mark.parametrize("name", GRIDS)
def test_perimeters_are_geodesic(name: str) -> None:
    code, transform = GRIDS[name]
    crs = CRS(code)
    sides = PixelSides.of(GeoBox(shape=(1000, 1000), transform=transform, crs_wkt=crs.to_wkt()))
    assert sides is not None
    found = sides.perimeter_m(from_shapely(np.array(POLYGONS, object)))
    geodetic = crs.geodetic_crs
    assert geodetic is not None
    geod = geodetic.get_geod()
    assert geod is not None
    to_lonlat = Transformer.from_crs(crs, geodetic, always_xy=True)
    for polygon, length in zip(POLYGONS, found, strict=True):
        expected = 0.0
        for ring in (polygon.exterior, *polygon.interiors):
            x, y = np.array(shapely.segmentize(ring, 1.0).coords).T
            t = transform
            lon, lat = to_lonlat.transform(t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f)
            expected += geod.line_length(lon, lat)
        assert length == pytest.approx(expected, rel=3e-5 if name == "degrees" else 1e-6)  # edges of 5 degrees


@pytest.mark.parametrize("wkt", [None, 'LOCAL_CS["site",UNIT["metre",1]]'])
def test_without_a_place_on_earth_there_is_no_length(wkt: str | None) -> None:
    assert PixelSides.of(GeoBox(shape=(9, 9), transform=Affine.identity(), crs_wkt=wkt)) is None


def test_no_polygons_have_no_lengths() -> None:
    sides = PixelSides.of(GeoBox(shape=(9, 9), transform=GRIDS["utm"][1], crs_wkt=CRS("EPSG:32633").to_wkt()))
    assert sides is not None
    assert sides.perimeter_m(from_shapely(np.empty(0, object))).shape == (0,)
