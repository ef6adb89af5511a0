"""Laws of straight walls: a coverage stays one, enough is kept, no tiling shows; known buildings come back."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import geopandas
import numpy as np
import pytest
import rasterio.features
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ResourceError, UsageError
from pipeline.vector import Regularization, Tolerance, polygonize, regularize, to_geodataframe, write_polygons
from pipeline.vector.neighbourhoods import neighbourhoods
from pipeline.vector.regularize import Grid, regularize_coverage
from tests.properties.test_vector_law import NODATA, masks
from tests.properties.test_vector_simplify import _coverage
from tests.unit.vector.masks import GRIDS, blobs, write_mask

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Mask = NDArray[np.uint8]

ANGLES = [0.0, 3.0, 17.0, 30.0, 45.0, 61.0, 88.0]


def _turned(shape: Any, angle: float) -> Any:
    return shapely.affinity.rotate(shape, angle, origin=(100, 100))


def _burnt(shapes: list[Any], side: int = 200) -> Mask:
    """Shapes in pixels as classes 1, 2, …; the rest is no data."""
    pairs = [(shape, value) for value, shape in enumerate(shapes, 1)]
    return np.asarray(rasterio.features.rasterize(pairs, (side, side), fill=NODATA, dtype="uint8"))


def _straightened(mask: Mask, *, min_iou: float = 0.8, aspect: float = 1.0) -> tuple[NDArray[np.object_], list[bool]]:
    traced = _coverage(mask, 64)
    grid = Grid(shape=(mask.shape[0], mask.shape[1]), aspect=aspect)
    done = regularize_coverage(traced, traced, np.ones(len(traced), bool), grid=grid, min_iou=min_iou, tolerance_px=1.5)
    assert shapely.is_valid(done.polygons).all()
    assert shapely.coverage_is_valid(done.polygons)
    return done.polygons, done.kept.tolist()


def _corners(ring: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Directions of a ring's edges in degrees, and the angles between them; points on straight edges left out."""
    xy = shapely.get_coordinates(ring)[:-1]
    ahead = np.roll(xy, -1, axis=0) - xy
    behind = xy - np.roll(xy, 1, axis=0)
    sine = behind[:, 0] * ahead[:, 1] - behind[:, 1] * ahead[:, 0]
    sine /= np.hypot(*ahead.T) * np.hypot(*behind.T)
    xy = xy[np.abs(sine) > 1e-6]
    edges = np.roll(xy, -1, axis=0) - xy
    angles = np.degrees(np.arctan2(edges[:, 1], edges[:, 0]))
    return angles, (angles - np.roll(angles, 1)) % 180


def _assert_square(ring: Any, angle: float, corners: int) -> None:
    edges, between = _corners(ring)
    assert len(edges) == corners
    assert between == pytest.approx(90, abs=1e-6)
    assert np.abs((edges - angle + 45) % 90 - 45).max() < 1


@given(masks(), st.integers(1, 12), st.sampled_from([0.0, 0.5, 0.8, 0.95]), st.booleans(), st.integers(0, 3))
def test_a_coverage_stays_one_for_any_tiling(
    mask: Mask,
    tile: int,
    min_iou: float,
    simple: bool,  # noqa: FBT001
    most: int,
) -> None:
    traced = _coverage(mask, tile)
    if not len(traced):
        return
    before = shapely.coverage_simplify(traced, 1.0) if simple else traced
    middles = shapely.get_coordinates(shapely.point_on_surface(traced)).astype(int)
    buildings = mask[middles[:, 1], middles[:, 0]] <= most
    grid = Grid(shape=(mask.shape[0], mask.shape[1]), aspect=1.0)

    def result() -> Any:
        return regularize_coverage(traced, before, buildings, grid=grid, min_iou=min_iou, tolerance_px=1.5)

    after, kept = result()
    assert [p.wkb for p in after] == [p.wkb for p in result().polygons]
    assert len(after) == len(before)
    assert shapely.is_valid(after).all()
    assert (shapely.area(after) > 0).all()
    assert shapely.coverage_is_valid(after)
    assert not (kept & ~buildings).any()
    straight = buildings & ~kept
    shared = shapely.area(shapely.intersection(after, traced))
    iou = shared / (shapely.area(after) + shapely.area(traced) - shared)
    assert (iou[straight] >= min_iou - 1e-12).all()


def test_tiles_do_not_show(tmp_path: Path) -> None:
    path = write_mask(tmp_path / "m.tif", blobs(150))
    frames = []
    for tile in (16, 40, 1024):
        with polygonize(
            path, scratch=tmp_path, regularize=Regularization(frozenset({1, 3}), 0.8), tile_px=tile
        ) as polygons:
            assert polygons.regularized is not None
            assert polygons.regularized.straight > 0
            frames.append(to_geodataframe(polygons))
    assert frames[0].equals(frames[1])
    assert frames[0].equals(frames[2])
    with polygonize(path, scratch=tmp_path) as polygons:
        plain = to_geodataframe(polygons)
    assert plain.drop(columns=["geometry", "perimeter_m"]).equals(frames[0].drop(columns=["geometry", "perimeter_m"]))


@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize("size", [(60, 40), (30, 20), (20, 14)])
def test_a_rectangle_comes_back(angle: float, size: tuple[int, int]) -> None:
    width, height = size
    building = _turned(shapely.box(100 - width / 2, 100 - height / 2, 100 + width / 2, 100 + height / 2), angle)
    (polygon,), kept = _straightened(_burnt([building]))
    assert kept == [False]
    edges, between = _corners(polygon.exterior)
    assert len(edges) == 4
    assert between == pytest.approx(90, abs=1e-6)
    one_step = np.degrees(1 / width)  # what pixels can tell
    assert np.abs((edges - angle + 45) % 90 - 45).max() < max(1, one_step)
    assert polygon.intersection(building).area / polygon.union(building).area > 0.93


@pytest.mark.parametrize("angle", ANGLES)
def test_corners_courtyards_and_wings(angle: float) -> None:
    ell = shapely.Polygon([(60, 60), (140, 60), (140, 100), (100, 100), (100, 140), (60, 140)])
    (polygon,), kept = _straightened(_burnt([_turned(ell, angle)]))
    assert kept == [False]
    _assert_square(polygon.exterior, angle, 6)
    court = shapely.box(60, 60, 140, 130).difference(shapely.box(80, 80, 120, 110))
    (polygon,), kept = _straightened(_burnt([_turned(court, angle)]))
    assert kept == [False]
    _assert_square(polygon.exterior, angle, 4)
    _assert_square(polygon.interiors[0], angle, 4)


@pytest.mark.parametrize("angle", ANGLES)
def test_a_row_of_houses_shares_its_walls(angle: float) -> None:
    row = [shapely.box(50 + 20 * i, 80, 70 + 20 * i, 120 + (8 if i == 2 else 0)) for i in range(5)]
    polygons, kept = _straightened(_burnt([_turned(house, angle) for house in row]))
    assert kept == [False] * 5
    assert shapely.union_all(polygons).geom_type == "Polygon"
    assert not shapely.union_all(polygons).interiors
    touching = shapely.area(shapely.intersection(polygons[:, None], polygons[None]))
    assert touching - np.diag(np.diag(touching)) == pytest.approx(0, abs=1e-9)
    walls = shapely.length(shapely.intersection(polygons[:, None], polygons[None]))[touching < 1e-9]
    assert sorted(walls)[-8:] == pytest.approx([40] * 8, abs=2)
    for polygon in polygons:
        edges, between = _corners(polygon.exterior)
        assert between == pytest.approx(90, abs=1e-6)
        assert np.abs((edges - angle + 45) % 90 - 45).max() < 1


def test_right_angles_are_right_on_the_ground() -> None:
    """At 60 degrees north a pixel of a geographic grid is half as wide as it is high."""
    building = _turned(shapely.box(70, 80, 130, 120), 30)
    polygons, kept = _straightened(_burnt([shapely.affinity.scale(building, 2, 1, origin=(100, 100))]), aspect=0.5)
    assert kept == [False]
    _assert_square(shapely.affinity.scale(polygons[0], 0.5, 1, origin=(0, 0)).exterior, 30, 4)
    with_crs = {"geographic": (0.4, 0.6), "mercator": (0.99, 1.01), "rotated": (0.99, 1.01)}
    for name, (low, high) in with_crs.items():
        crs, transform = GRIDS[name]
        from pipeline.grid import GeoBox

        wkt = rasterio.crs.CRS.from_string(crs).to_wkt()
        assert low < Grid.of(GeoBox(shape=(100, 100), transform=transform, crs_wkt=wkt)).aspect < high
    assert Grid.of(GeoBox(shape=(9, 9), transform=Affine.scale(3, -2), crs_wkt=None)).aspect == pytest.approx(1.5)


def test_what_would_lose_too_much_keeps_its_outline() -> None:
    row, col = np.indices((80, 80))
    disc = np.where(np.hypot(row - 40, col - 40) < 30, 1, NODATA).astype(np.uint8)
    polygons, kept = _straightened(disc, min_iou=0.999)
    assert kept == [True]
    assert polygons[0].equals_exact(_coverage(disc, 64)[0], 0.0)


def test_a_building_cut_by_the_scene_ends_at_its_edge() -> None:
    mask = _burnt([_turned(shapely.box(-20, 80, 60, 120), 10)])
    (polygon,), kept = _straightened(mask)
    assert kept == [False]
    xs = np.unique(shapely.get_coordinates(polygon)[:, 0])
    assert xs[0] == pytest.approx(0, abs=1e-9)
    assert xs[1] > 1


def test_neighbours_of_another_class_follow() -> None:
    row, col = np.indices((200, 200))
    mask = np.where(col > 2 * row - 100, 8, 9).astype(np.uint8)
    house = _burnt([_turned(shapely.box(80, 85, 130, 115), 20)])
    mask[house == 1] = 1
    traced = _coverage(mask, 64)
    middles = shapely.get_coordinates(shapely.point_on_surface(traced)).astype(int)
    buildings = mask[middles[:, 1], middles[:, 0]] == 1
    done = regularize_coverage(
        traced, shapely.coverage_simplify(traced, 1.5), buildings, grid=Grid(shape=(200, 200), aspect=1.0), min_iou=0.8,
        tolerance_px=1.5,
    )  # fmt: skip
    assert not done.kept.any()
    assert shapely.coverage_is_valid(done.polygons)
    assert shapely.area(shapely.union_all(done.polygons)) == pytest.approx(200 * 200)
    _assert_square(done.polygons[buildings][0].exterior, 20, 4)


@pytest.mark.parametrize("suffix", ["geojson", "parquet"])
def test_walls_are_shared_in_files_too(tmp_path: Path, suffix: str) -> None:
    path = write_mask(tmp_path / "m.tif", blobs(150))
    wanted = Regularization(frozenset({0, 1, 2}), 0.7)
    with polygonize(path, scratch=tmp_path, regularize=wanted, simplify=Tolerance(1.5, "px")) as polygons:
        written = write_polygons(polygons, tmp_path / f"p.{suffix}", overwrite=False)
    assert written.regularized is not None
    assert written.regularized.straight > 0
    frame = geopandas.read_parquet(written.path) if suffix == "parquet" else geopandas.read_file(written.path)
    assert frame.geometry.is_valid.all()
    assert shapely.coverage_is_valid(frame.geometry.to_numpy())


def _village(seed: int) -> Mask:
    """Turned houses, some of which touch or nearly do; two classes, and ground of a third where there is one."""
    rng = np.random.default_rng(seed)
    houses = [
        _turned(shapely.box(x, y, x + rng.integers(4, 14), y + rng.integers(4, 14)), float(rng.integers(0, 90)))
        for x, y in rng.integers(10, 190, (40, 2))
    ]
    return np.where((burnt := _burnt(houses)) == NODATA, NODATA, burnt % 2).astype(np.uint8)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("options", [{}, {"simplify": Tolerance(1.5, "px")}])
def test_what_lies_far_apart_is_worked_on_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, options: dict[str, Any]
) -> None:
    """Memory follows what is close together; the polygons are those of all of them at once."""
    path = write_mask(tmp_path / "m.tif", _village(seed))
    parts: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        parts.append(len(args[0]))
        return regularize_coverage(*args, **kwargs)

    monkeypatch.setattr(regularize, "regularize_coverage", counted)

    def made() -> tuple[list[bytes], Any]:
        parts.clear()
        wanted = Regularization(frozenset({1}), 0.8)
        with polygonize(path, scratch=tmp_path, regularize=wanted, **options) as polygons:
            found = [wkb for batch in polygons.iter_batches() for wkb in shapely.to_wkb(batch.polygons)]
            return found, polygons.regularized

    together, at_once = made(), len(parts)
    monkeypatch.setattr(regularize, "_AT_ONCE", 1)
    assert made() == together
    assert len(parts) > at_once


_EIGHTHS = st.integers(0, 64).map(lambda count: count / 8)
"""Lengths whose sums with whole pixels are exact: which of two ways a sum is rounded is not the question."""


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), _EIGHTHS, st.integers(1, 60))
def test_neighbourhoods_are_farther_apart_than_they_reach(seed: int, count: int, reach: float, most: int) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 60, (count, 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, 9, (count, 2))], axis=1).astype(float)
    chosen, corners = rng.random(count) < 0.5, rng.integers(4, 20, count)
    parts = neighbourhoods(boxes, chosen, corners, reach=reach, most=most)
    part_of = np.full(count, -1)
    for number, part in enumerate(parts):
        assert (np.diff(part) > 0).all()
        assert (part_of[part] == -1).all()
        part_of[part] = number
    assert (part_of[chosen] >= 0).all()
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    gap = np.maximum(low - high.transpose(1, 0, 2), low.transpose(1, 0, 2) - high).max(axis=2)
    near = (gap <= reach) & (chosen | chosen[:, None])
    assert all(part_of[one] == part_of[other] for one, other in np.argwhere(near))
    assert ((part_of >= 0) == (near.any(axis=1))).all()
    sizes = [int(corners[part].sum()) for part in parts]
    assert all(one + other > most for one, other in itertools.pairwise(sizes))


def test_more_than_fits_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_mask(tmp_path / "m.tif", blobs(150))
    monkeypatch.setattr(regularize, "_MOST", 60)
    with pytest.raises(ResourceError, match=r"RS-006.*--regularize"):
        polygonize(path, scratch=tmp_path / "s", regularize=Regularization(frozenset({1}), 0.8))
    assert list((tmp_path / "s").iterdir()) == []


def test_a_share_above_one_is_refused(tmp_path: Path) -> None:
    path = write_mask(tmp_path / "m.tif", blobs(50))
    with pytest.raises(UsageError, match=r"CF-032.*1.5"):
        polygonize(path, scratch=tmp_path / "s", regularize=Regularization(frozenset({1}), 1.5))
