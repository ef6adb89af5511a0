"""GeoJSON as RFC 7946 has it, and true to the pixels."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio.features
import shapely
from affine import Affine
from pyproj import Geod, Transformer

from pipeline.vector import polygonize, write_polygons
from tests.unit.vector.masks import GRIDS, NODATA, blobs, write_mask

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def _export(tmp_path: Path, mask: NDArray[Any], crs: str, transform: Affine) -> tuple[str, list[dict[str, Any]]]:
    path = write_mask(tmp_path / "m.tif", mask, crs=crs, transform=transform)
    with polygonize(path, scratch=tmp_path) as polygons:
        out = write_polygons(polygons, tmp_path / "out.geojson", overwrite=True)
        assert out.num_polygons + out.num_dropped == len(polygons)
    text = out.path.read_text()
    return text, json.loads(text)["features"]


def _parts(feature: dict[str, Any]) -> list[shapely.Polygon]:
    return [p for p in shapely.get_parts(shapely.geometry.shape(feature["geometry"])) if isinstance(p, shapely.Polygon)]


@pytest.mark.parametrize("grid", GRIDS)
def test_e8_lonlat_seven_decimals_right_hand_no_crs(tmp_path: Path, grid: str) -> None:
    crs, transform = GRIDS[grid]
    mask = blobs(120)[:90]
    text, features = _export(tmp_path, mask, crs, transform)
    content = json.loads(text)
    assert set(content) == {"type", "features"}
    decimals = [len(m) for m in re.findall(r"[\[,]-?\d+\.(\d+)", text)]
    assert max(decimals) <= 7
    to_lonlat = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    corners = to_lonlat.transform_bounds(*_bounds(transform, 120, 90), densify_pts=51)
    for feature in features:
        assert feature["id"] == feature["properties"]["id"]
        for part in _parts(feature):
            assert shapely.is_valid(part)
            assert part.exterior.is_ccw
            assert not any(hole.is_ccw for hole in part.interiors)
            west, south, east, north = part.bounds
            assert corners[0] - 1e-6 <= west <= east <= corners[2] + 1e-6
            assert corners[1] - 1e-6 <= south <= north <= corners[3] + 1e-6


def _bounds(transform: Affine, width: int, height: int) -> tuple[float, float, float, float]:
    x, y = zip(*(transform @ (float(c), float(r)) for c in (0, width) for r in (0, height)), strict=True)
    return min(x), min(y), max(x), max(y)


# Larger pixels and scenes than usual, so that straight edges bend visibly in longitude and latitude.
BENDING = {
    "utm": ("EPSG:32633", Affine(500, 0, 200_000, 0, -500, 7_500_000)),
    "mercator": ("EPSG:3857", Affine(5000, 0, 0, 0, -5000, 11_000_000)),
    "geographic": ("EPSG:4326", Affine(0.05, 0, -170, 0, -0.05, 80)),
    "polar": ("EPSG:3031", Affine(5000, 0, -2_500_000, 0, -5000, 2_000_000)),
    "polar, pole inside": ("EPSG:3031", Affine(5000, 0, -1_001_000, 0, -5000, 901_000)),
    "polar, pole on a corner": ("EPSG:3031", Affine(5000, 0, -450_000, 0, -5000, 1_000_000)),
    "rotated": ("EPSG:32633", Affine.translation(3e5, 7e6) @ Affine.rotation(30) @ Affine.scale(500, -500)),
}


@pytest.mark.parametrize("grid", BENDING)
def test_edges_stay_within_a_tenth_of_a_pixel(tmp_path: Path, grid: str) -> None:
    crs, transform = BENDING[grid]
    mask = np.full((300, 300), NODATA, np.uint8)
    mask[2:290, 3:280] = 1
    mask[40:200, 30:90] = 2
    mask[200:201, 10:270] = 3
    mask[60:100, 200] = NODATA
    _, features = _export(tmp_path, mask, crs, transform)
    to_crs = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    truth = {1: (mask == 1), 2: (mask == 2), 3: (mask == 3)}
    for feature in features:
        value = feature["properties"]["class_id"]
        outline = _outline(truth[value])
        for part in _parts(feature):
            for ring in (part.exterior, *part.interiors):
                lonlat = _between(shapely.get_coordinates(ring))
                x, y = ~transform @ tuple(np.asarray(a) for a in to_crs.transform(*lonlat.T))
                # The cut along the antimeridian and the pole is no edge of the region.
                real = (np.abs(np.abs(lonlat[:, 0]) - 180) > 1e-6) & (np.abs(lonlat[:, 1]) < 89.9999)
                distance = shapely.distance(outline, shapely.points(x[real], y[real]))
                assert distance.max() < 0.1
        area = sum(abs(Geod(ellps="WGS84").geometry_area_perimeter(p.segmentize(0.2))[0]) for p in _parts(feature))
        assert feature["properties"]["area_m2"] == pytest.approx(area, rel=2e-3)


def _outline(inside: NDArray[np.bool_]) -> shapely.Geometry:
    shapes = rasterio.features.shapes(inside.astype(np.uint8), mask=inside, connectivity=4)
    return shapely.boundary(shapely.union_all([shapely.geometry.shape(s) for s, _ in shapes]))


def _between(xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points along straight segments."""
    s = np.linspace(0, 1, 9)[:-1, None, None]
    return ((1 - s) * xy[:-1] + s * xy[1:]).reshape(-1, 2)


def test_few_points_are_added_to_usual_scenes(tmp_path: Path) -> None:
    mask = np.full((200, 200), 1, np.uint8)
    for grid, most in (("utm", 5), ("geographic", 5), ("mercator", 5), ("south-up", 5)):
        _, features = _export(tmp_path, mask, *GRIDS[grid])
        assert len(shapely.get_coordinates(_parts(features[0])[0])) <= most, grid


def test_neighbours_have_the_same_points_on_a_shared_edge(tmp_path: Path) -> None:
    mask = np.ones((250, 250), np.uint8)
    mask[100:] = 2
    _, features = _export(tmp_path, mask, *BENDING["polar"])
    upper, lower = (set(map(tuple, shapely.get_coordinates(_parts(f)).tolist())) for f in features)
    shared = upper & lower
    assert len(shared) > 5
    gap = shapely.intersection(_parts(features[0])[0], _parts(features[1])[0])
    assert shapely.area(gap) == 0


def test_a_box_over_the_antimeridian_is_cut(tmp_path: Path) -> None:
    mask = np.full((100, 100), 3, np.uint8)
    _, (feature,) = _export(tmp_path, mask, "EPSG:4326", Affine(0.01, 0, 179.5, 0, -0.01, 10))
    assert feature["geometry"]["type"] == "MultiPolygon"
    assert sorted(p.bounds for p in _parts(feature)) == [(-180, 9, -179.5, 10), (179.5, 9, 180, 10)]
    assert all(p.exterior.is_ccw for p in _parts(feature))


def test_a_utm_scene_over_the_antimeridian_is_cut_with_its_holes(tmp_path: Path) -> None:
    mask = np.ones((200, 200), np.uint8)
    mask[50:150, 50:150] = 2
    mask[70:80, 20:40] = NODATA
    x, y = Transformer.from_crs("EPSG:4326", "EPSG:32601", always_xy=True).transform(180.0, 50.0)
    _, features = _export(tmp_path, mask, "EPSG:32601", Affine(100, 0, x - 10_000, 0, -100, y + 10_000))
    geod = Geod(ellps="WGS84")
    for feature in features:
        parts = _parts(feature)
        assert {np.sign(p.centroid.x) for p in parts} == {-1, 1}
        area = sum(abs(geod.geometry_area_perimeter(p)[0]) for p in parts)
        assert area == pytest.approx(feature["properties"]["area_m2"], rel=1e-3)


@pytest.mark.parametrize("offset", [0.0, 1234.5])
def test_a_region_around_a_pole_covers_it(tmp_path: Path, offset: float) -> None:
    """The pole inside a region, inside a hole of it, on a corner where four regions meet."""
    mask = np.ones((100, 100), np.uint8)
    mask[40:60, 40:60] = 2
    mask[45:50, 45:50] = 3
    _, features = _export(tmp_path, mask, "EPSG:3031", Affine(20_000, 0, -1e6 + offset, 0, -20_000, 1e6 + offset))
    geod = Geod(ellps="WGS84")
    for feature in features:
        parts = _parts(feature)
        assert all(shapely.is_valid(p) for p in parts)
        area = sum(abs(geod.geometry_area_perimeter(p.segmentize(0.5))[0]) for p in parts)
        assert area == pytest.approx(feature["properties"]["area_m2"], rel=2e-2)
    assert sum(min(p.bounds[1] for p in _parts(f)) == -90 for f in features) == (2 if offset == 0 else 1)


def test_a_global_mask_keeps_its_extent(tmp_path: Path) -> None:
    mask = np.ones((18, 36), np.uint8)
    mask[9:] = 2
    _, features = _export(tmp_path, mask, "EPSG:4326", Affine(10, 0, -180, 0, -10, 90))
    assert [f["geometry"]["type"] for f in features] == ["Polygon", "Polygon"]
    assert _parts(features[0])[0].bounds == (-180, 0, 180, 90)
    side = 20_037_508.342789244
    _, features = _export(tmp_path, mask[:, :18], "EPSG:3857", Affine(side / 9, 0, -side, 0, -side / 9, side))
    assert all(abs(p.bounds[0] + 180) < 1e-6 and abs(p.bounds[2] - 180) < 1e-6 for f in features for p in _parts(f))


@pytest.mark.parametrize("pixel_m", [0.05, 0.02, 0.004])
def test_e9_rounding_leaves_valid_polygons_or_none(tmp_path: Path, pixel_m: float) -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 3, (60, 60)).astype(np.uint8)
    transform = Affine.translation(6e5, 5e6) @ Affine.rotation(17) @ Affine.scale(pixel_m, -pixel_m)
    text, features = _export(tmp_path, mask, "EPSG:32633", transform)
    assert features
    for feature in features:
        geometry = shapely.geometry.shape(feature["geometry"])
        assert shapely.is_valid(geometry)
        assert shapely.area(geometry) > 0
    assert max(len(m) for m in re.findall(r"[\[,]-?\d+\.(\d+)", text)) <= 7


def test_without_crs_coordinates_keep_all_their_digits(tmp_path: Path) -> None:
    path = write_mask(tmp_path / "m.tif", np.ones((1, 1), np.uint8), crs=None, transform=Affine(1 / 3, 0, 5, 0, 0.5, 7))
    with polygonize(path, scratch=tmp_path) as polygons:
        write_polygons(polygons, tmp_path / "out.geojson", overwrite=False)
    (feature,) = json.loads((tmp_path / "out.geojson").read_text())["features"]
    assert _parts(feature)[0].bounds == (5.0, 7.0, 5 + 1 / 3, 7.5)


def test_names_are_escaped(tmp_path: Path) -> None:
    path = write_mask(tmp_path / "m.tif", np.ones((2, 2), np.uint8))
    name = 'a "quoted" \\ Wäld 1.123456789\n'
    with polygonize(path, scratch=tmp_path, names={1: name}) as polygons:
        write_polygons(polygons, tmp_path / "out.json", overwrite=False)
    (feature,) = json.loads((tmp_path / "out.json").read_text())["features"]
    assert feature["properties"]["class_name"] == name


def test_c13_another_planet_keeps_its_own_coordinates(tmp_path: Path) -> None:
    """PROJ knows no way from Mars to longitudes on the Earth."""
    mars = (
        'PROJCS["Equirectangular Mars",GEOGCS["GCS_Mars",DATUM["D_Mars",SPHEROID["Mars_localRadius",3394839.8,0]],'
        'PRIMEM["Reference_Meridian",0],UNIT["degree",0.0174532925199433]],PROJECTION["Equirectangular"],'
        'PARAMETER["central_meridian",0],PARAMETER["false_easting",0],PARAMETER["false_northing",0],UNIT["metre",1]]'
    )
    transform = Affine(282, 0, -1_400_000, 0, -282, 394_000)
    text, features = _export(tmp_path, blobs(40), mars, transform)
    assert "scenemask:crs_note" in text
    x = [x for feature in features for part in _parts(feature) for x, _ in part.exterior.coords]
    assert -1_400_000 <= min(x) < max(x) <= -1_400_000 + 40 * 282
