from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pyogrio
import pyproj
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.grid import GeoBox, Window
from pipeline.scene import Aoi

if TYPE_CHECKING:
    from pathlib import Path

UTM = pyproj.CRS.from_epsg(32633).to_wkt()
NORTH_UP = Affine(2.0, 0.0, 500_000.0, 0.0, -2.0, 5_000_000.0)


def write_polygons(path: Path, geometries: list[Any]) -> Path:
    kinds = {g.geom_type for g in geometries}
    pyogrio.raw.write(
        path,
        geometry=shapely.to_wkb(np.array(geometries, dtype=object)),
        field_data=[],
        fields=[],
        geometry_type=kinds.pop() if len(kinds) == 1 else "Unknown",
        crs="EPSG:32633",
    )
    return path


def to_ground(pixels: Any, transform: Affine) -> Any:
    return shapely.transform(pixels, lambda xy: np.array([transform @ tuple(p) for p in xy]))


def centres_inside(polygons: list[Any], window: Window) -> np.ndarray[Any, Any]:
    """The slow way: ask Shapely about each pixel centre."""
    cols, rows = np.meshgrid(
        np.arange(window.col_off, window.col_stop) + 0.5, np.arange(window.row_off, window.row_stop) + 0.5
    )
    return np.asarray(shapely.contains_xy(shapely.union_all(polygons), cols, rows))


def star(seed: int, size: float) -> Any:
    """An irregular polygon whose vertices avoid pixel centres."""
    rng = np.random.default_rng(seed)
    angle = np.sort(rng.uniform(0, 2 * np.pi, 9))
    radius = rng.uniform(0.2, 0.5, 9) * size
    points = np.column_stack([size / 2 + radius * np.cos(angle), size / 2 + radius * np.sin(angle)])
    return shapely.make_valid(shapely.Polygon(points))


@pytest.mark.parametrize("transform", [NORTH_UP, NORTH_UP @ Affine.rotation(25), Affine(2, 0, 5e5, 0, 2, 5e6)])
def test_pixel_centres_inside_on_any_grid(tmp_path: Path, transform: Affine) -> None:
    geobox = GeoBox(shape=(120, 120), transform=transform, crs_wkt=UTM)
    shape = star(3, 120)
    aoi = Aoi.from_file(write_polygons(tmp_path / "a.gpkg", [to_ground(shape, transform)]), geobox)
    window = Window(row_off=7, col_off=20, height=90, width=61)
    expected = centres_inside([shape], window)
    assert 0.2 < expected.mean() < 0.9
    np.testing.assert_array_equal(aoi.mask(window), expected)


@given(
    row=st.integers(0, 900), col=st.integers(0, 900), height=st.integers(1, 400), width=st.integers(1, 400),
    seed=st.integers(0, 5),
)  # fmt: skip
def test_a_windows_mask_is_part_of_the_whole(row: int, col: int, height: int, width: int, seed: int) -> None:
    """Edges through pixel centres included: the polygon's corners lie on them."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 1300, (7, 2)) + 0.5
    hull = shapely.MultiPoint(corners).convex_hull
    assert isinstance(hull, shapely.Polygon)
    aoi = Aoi((hull,), (1300, 1300))
    window = Window(row_off=row, col_off=col, height=height, width=width)
    whole = aoi.mask(Window(row_off=0, col_off=0, height=1300, width=1300))
    np.testing.assert_array_equal(aoi.mask(window), whole[row : row + height, col : col + width])


def test_intersects_and_empty_windows(tmp_path: Path) -> None:
    geobox = GeoBox(shape=(100, 100), transform=NORTH_UP, crs_wkt=UTM)
    path = write_polygons(tmp_path / "a.fgb", [to_ground(shapely.box(10, 10, 20, 20), NORTH_UP)])
    aoi = Aoi.from_file(path, geobox)
    near, far = (Window(row_off=k, col_off=k, height=8, width=8) for k in (15, 50))
    assert aoi.intersects(near)
    assert not aoi.intersects(far)
    assert not aoi.mask(far).any()
    assert aoi.mask(near)[:5, :5].all()
    assert int(aoi.mask(near).sum()) == 25


def test_lon_lat_polygons_are_reprojected(tmp_path: Path) -> None:
    """GeoJSON is WGS 84; the mask must equal that of the same shape drawn in the scene's CRS."""
    geobox = GeoBox(shape=(200, 200), transform=NORTH_UP, crs_wkt=UTM)
    shape = star(1, 200)
    ground = to_ground(shape, NORTH_UP)
    to_lonlat = pyproj.Transformer.from_crs(32633, 4326, always_xy=True)
    lonlat = shapely.transform(ground, lambda xy: np.column_stack(to_lonlat.transform(xy[:, 0], xy[:, 1])))
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(lonlat)}))
    window = Window(row_off=0, col_off=0, height=200, width=200)
    got = Aoi.from_file(path, geobox).mask(window)
    assert np.count_nonzero(got != centres_inside([shape], window)) <= 5  # 7 decimals are a centimetre


def test_holes_multipolygons_and_other_features(tmp_path: Path) -> None:
    geobox = GeoBox(shape=(60, 60), transform=NORTH_UP, crs_wkt=UTM)
    ring = shapely.Polygon(shapely.box(5, 5, 30, 30).exterior, [shapely.box(10, 10, 20, 20).exterior])
    many = shapely.MultiPolygon([ring, shapely.box(40, 40, 50, 50)])
    things = [to_ground(g, NORTH_UP) for g in (many, shapely.Point(3, 3), shapely.LineString([(0, 0), (60, 60)]))]
    aoi = Aoi.from_file(write_polygons(tmp_path / "m.geojson", things), geobox)
    window = Window(row_off=0, col_off=0, height=60, width=60)
    assert int(aoi.mask(window).sum()) == 25 * 25 - 10 * 10 + 100


def test_pickles_with_the_same_digest(tmp_path: Path) -> None:
    geobox = GeoBox(shape=(60, 60), transform=NORTH_UP, crs_wkt=UTM)
    one = Aoi.from_file(write_polygons(tmp_path / "a.gpkg", [to_ground(star(1, 60), NORTH_UP)]), geobox)
    two = Aoi.from_file(write_polygons(tmp_path / "b.gpkg", [to_ground(star(2, 60), NORTH_UP)]), geobox)
    again = pickle.loads(pickle.dumps(one))
    window = Window(row_off=0, col_off=0, height=60, width=60)
    np.testing.assert_array_equal(again.mask(window), one.mask(window))
    assert again.digest() == one.digest() != two.digest()


def test_refusals(tmp_path: Path) -> None:
    geobox = GeoBox(shape=(60, 60), transform=NORTH_UP, crs_wkt=UTM)
    inside = to_ground(shapely.box(5, 5, 30, 30), NORTH_UP)
    (tmp_path / "text.geojson").write_text("not json")
    bare = write_polygons(tmp_path / "bare.shp", [inside])
    bare.with_suffix(".prj").unlink()
    (tmp_path / "v.vrt").write_text('<OGRVRTDataSource><OGRVRTLayer name="a"/></OGRVRTDataSource>')
    far_off = {"type": "Polygon", "coordinates": [[[1e308, 0], [-1e308, 1], [0, 1e308], [1e308, 0]]]}
    (tmp_path / "far_off.geojson").write_text(json.dumps({"type": "Feature", "properties": {}, "geometry": far_off}))
    cases = [
        (tmp_path / "far_off.geojson", geobox, "IN-022"),
        (tmp_path / "none.gpkg", geobox, "IN-020"),
        (tmp_path, geobox, "IN-020"),
        (tmp_path / "text.geojson", geobox, "IN-020"),
        (tmp_path / "v.vrt", geobox, "IN-020"),
        (write_polygons(tmp_path / "points.gpkg", [shapely.Point(1, 1)]), geobox, "IN-021"),
        (write_polygons(tmp_path / "far.gpkg", [shapely.box(0, 0, 1, 1)]), geobox, "IN-022"),
        (bare, geobox, "IN-023"),
        (
            write_polygons(tmp_path / "ok.gpkg", [inside]),
            GeoBox(shape=(60, 60), transform=NORTH_UP, crs_wkt=None),
            "IN-024",
        ),
    ]
    for path, where, code in cases:
        with pytest.raises(InputError) as caught:
            Aoi.from_file(path, where)
        assert caught.value.code == code, path
        assert caught.value.fix
