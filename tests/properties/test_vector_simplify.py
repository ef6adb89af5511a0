"""Laws of simplification: the coverage stays one, no tiling shows, nothing collapses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Transformer

from pipeline.errors import ResourceError, UsageError
from pipeline.vector import Tolerance, polygonize, simplify, to_geodataframe, write_polygons
from pipeline.vector.join import iter_regions
from pipeline.vector.seams import Cells
from pipeline.vector.simplify import simplify_coverage
from tests.properties.test_vector_law import CHECKERBOARD, LATTICE, NODATA, masks
from tests.unit.vector.masks import GRIDS, blobs, write_mask

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.grid import Window

    Mask = NDArray[np.uint8]


def _coverage(mask: Mask, tile: int) -> NDArray[np.object_]:
    """All polygons with their nodes, in an order that knows no tiles."""

    def read(window: Window) -> Cells:
        block = mask[window.row_off : window.row_stop, window.col_off : window.col_stop]
        return Cells(block, block != NODATA)

    parts = iter_regions(read, (mask.shape[0], mask.shape[1]), tile_hw=(tile, tile), nodes=True)
    found = shapely.normalize(np.concatenate([np.empty(0, object), *(part.polygons for part in parts)]))
    return np.array(sorted(found, key=lambda polygon: polygon.wkb), object)


@given(masks(), st.integers(1, 12), st.sampled_from([0.5, 1.0, 3.0]))
def test_e4_a_coverage_stays_one_for_any_tiling(mask: Mask, tile: int, tolerance: float) -> None:
    before = _coverage(mask, tile)
    assert [p.wkb for p in before] == [p.wkb for p in _coverage(mask, 1000)]
    if not len(before):
        return
    assert shapely.coverage_is_valid(before)
    after = simplify_coverage(before, tolerance)
    assert len(after) == len(before)
    assert shapely.is_valid(after).all()
    assert (shapely.area(after) > 0).all()
    assert shapely.coverage_is_valid(after)
    moved = shapely.symmetric_difference(shapely.union_all(before), shapely.union_all(after))
    assert shapely.area(moved) <= tolerance * shapely.length(before).sum()


@pytest.mark.parametrize("mask", [CHECKERBOARD, LATTICE, blobs(150)], ids=["checkerboard", "lattice", "blobs"])
def test_e5_where_three_regions_meet_there_is_a_vertex(mask: Mask) -> None:
    """Without those, polygons that only turn where they must are no valid coverage."""
    polygons = _coverage(mask, 37)
    assert shapely.coverage_is_valid(polygons)
    corners = {tuple(xy) for polygon in polygons for xy in shapely.get_coordinates(polygon)}
    height, width = mask.shape
    for row in range(1, height):
        for col in range(1, width):
            around = {int(v) for v in mask[row - 1 : row + 1, col - 1 : col + 1].ravel()}
            if len(around) >= 3:
                assert (col, row) in corners


def test_steps_of_a_slanting_edge_go() -> None:
    row, col = np.indices((200, 200))
    before = _coverage((2 * row + col > 300).astype(np.uint8), 64)
    after = simplify_coverage(before, 1.0)
    assert shapely.get_num_coordinates(before).sum() > 400
    assert shapely.get_num_coordinates(after).sum() < 40


def _frame(path: Path, scratch: Path, **options: Any) -> geopandas.GeoDataFrame:
    with polygonize(path, scratch=scratch, **options) as polygons:
        return to_geodataframe(polygons)


def test_numbers_and_ids_are_those_of_the_pixels(tmp_path: Path) -> None:
    path = write_mask(tmp_path / "m.tif", blobs(150))
    plain = _frame(path, tmp_path)
    for tile in (40, 1024):
        simple = _frame(path, tmp_path, simplify=Tolerance(2, "px"), tile_px=tile)
        assert plain.drop(columns=["geometry", "perimeter_m"]).equals(simple.drop(columns=["geometry", "perimeter_m"]))
        counts = [int(shapely.get_num_coordinates(frame.geometry).sum()) for frame in (simple, plain)]
        assert counts[0] < 0.7 * counts[1]
        assert shapely.coverage_is_valid(simple.geometry.to_numpy())


def test_metres_are_pixels_of_the_mask(tmp_path: Path) -> None:
    path = write_mask(tmp_path / "m.tif", blobs(150))
    with polygonize(path, scratch=tmp_path) as polygons:
        side = float(np.hypot(polygons.geobox.transform.a, polygons.geobox.transform.d))
    one, other = (_frame(path, tmp_path, simplify=t) for t in (Tolerance(2.3, "px"), Tolerance(2.3 * side, "m")))
    assert shapely.get_num_coordinates(one.geometry).sum() == pytest.approx(
        shapely.get_num_coordinates(other.geometry).sum(), rel=0.02
    )


def test_metres_need_a_crs(tmp_path: Path) -> None:
    path = write_mask(tmp_path / "m.tif", blobs(50), crs=None)
    with pytest.raises(UsageError, match=r"CF-034.*5 m"):
        polygonize(path, scratch=tmp_path / "s", simplify=Tolerance(5, "m"))
    assert len(_frame(path, tmp_path, simplify=Tolerance(1, "px")))


def test_more_than_fits_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_mask(tmp_path / "m.tif", blobs(150))
    monkeypatch.setattr(simplify, "_MOST_BYTES", 1000)
    with pytest.raises(ResourceError, match=r"RS-006.*--min-area"):
        polygonize(path, scratch=tmp_path / "s", simplify=Tolerance(1, "px"))
    assert list((tmp_path / "s").iterdir()) == []


@pytest.mark.parametrize("suffix", ["geojson", "gpkg", "fgb", "parquet"])
def test_neighbours_still_share_their_edges_in_every_format(tmp_path: Path, suffix: str) -> None:
    """In longitude and latitude too, where edges get points so that they stay true."""
    path = write_mask(tmp_path / "m.tif", blobs(150))
    target = tmp_path / f"p.{suffix}"
    with polygonize(path, scratch=tmp_path, simplify=Tolerance(1.5, "px")) as polygons:
        write_polygons(polygons, target, overwrite=False)
        count = len(polygons)
    read: Callable[[Path], Any] = geopandas.read_parquet if suffix == "parquet" else geopandas.read_file
    frame = read(target)
    assert len(frame) == count
    assert frame.geometry.is_valid.all()
    assert shapely.coverage_is_valid(frame.geometry.to_numpy())


@pytest.mark.parametrize("grid", ["polar", "mercator"])
def test_points_on_slanting_edges_are_the_same_from_both_sides(tmp_path: Path, grid: str) -> None:
    """Large pixels bend so much that edges need points; a gap between neighbours would show one that differs."""
    crs, transform = GRIDS[grid]
    coarse = transform @ Affine.scale(20 if grid == "polar" else 500)
    path = write_mask(tmp_path / "m.tif", blobs(150), crs=crs, transform=coarse)
    with polygonize(path, scratch=tmp_path, simplify=Tolerance(3, "px")) as polygons:
        write_polygons(polygons, tmp_path / "p.geojson", overwrite=False)
        plain = to_geodataframe(polygons)
    frame = geopandas.read_file(tmp_path / "p.geojson")
    assert shapely.get_num_coordinates(frame.geometry).sum() > shapely.get_num_coordinates(plain.geometry).sum()
    assert shapely.coverage_is_valid(frame.geometry.to_numpy())


def test_slanting_edges_in_mercator_are_true_too(tmp_path: Path) -> None:
    """Edges along rows and columns are straight in longitude and latitude there; only slanting ones bend."""
    row, col = np.indices((400, 400))
    crs, transform = GRIDS["mercator"]
    coarse = transform @ Affine.scale(500)
    path = write_mask(tmp_path / "m.tif", (row > col).astype(np.uint8), crs=crs, transform=coarse)
    with polygonize(path, scratch=tmp_path, simplify=Tolerance(3, "px")) as polygons:
        write_polygons(polygons, tmp_path / "p.geojson", overwrite=False)
        true = to_geodataframe(polygons).geometry.iloc[1].boundary
    corners = shapely.get_coordinates(geopandas.read_file(tmp_path / "p.geojson").geometry.iloc[1])
    middles = (corners[:-1] + corners[1:]) / 2
    to_mercator = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    beside_m = shapely.distance(true, shapely.points(np.stack(to_mercator.transform(*middles.T), axis=1)))
    assert len(corners) > 20
    assert beside_m.max() < 0.1 * coarse.a
