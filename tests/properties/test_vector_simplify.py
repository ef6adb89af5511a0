"""Laws of simplification: the coverage stays one, no tiling shows, nothing collapses."""

from __future__ import annotations

import resource
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import example, given
from hypothesis import strategies as st
from pyproj import Transformer
from scipy.ndimage import gaussian_filter

from pipeline.errors import ResourceError, UsageError
from pipeline.vector import Tolerance, polygonize, spool, to_geodataframe, write_polygons
from pipeline.vector.join import iter_regions
from pipeline.vector.pieces import Cells
from pipeline.vector.rings import first_pixel, from_shapely
from tests.properties.test_vector_law import CHECKERBOARD, LATTICE, NODATA, _rings, _spiral, masks
from tests.unit.vector.masks import GRIDS, UTM, blobs, write_mask

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.grid import Window

    Mask = NDArray[np.uint8]


def _coverage(mask: Mask, tile: int) -> NDArray[np.object_]:
    """All polygons as traced with their nodes, in canonical order."""

    def read(window: Window) -> Cells:
        block = mask[window.row_off : window.row_stop, window.col_off : window.col_stop]
        return Cells(block, block != NODATA)

    parts = iter_regions(read, (mask.shape[0], mask.shape[1]), tile_hw=(tile, tile), nodes=True)
    found = np.asarray(shapely.normalize(np.concatenate([np.empty(0, object), *(part.polygons for part in parts)])))
    return found[np.argsort(first_pixel(from_shapely(found), scene_width=mask.shape[1]))] if len(found) else found


class Found(NamedTuple):
    """Polygons of a mask in pixels, in canonical order."""

    ids: list[str]
    area_px: list[int]
    polygons: NDArray[np.object_]


def _found(mask: Mask, **options: Any) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        path = write_mask(Path(folder) / "m.tif", mask)
        with polygonize(path, scratch=Path(folder), **options) as polygons:
            batches = list(polygons.iter_batches())
    return Found(
        [name for batch in batches for name in batch.ids],
        [count for batch in batches for count in batch.area_px.tolist()],
        np.concatenate([np.empty(0, object), *(batch.polygons for batch in batches)]),
    )


@st.composite
def large_masks(draw: st.DrawFn) -> Mask:
    """Up to 200 pixels a side and six classes, from noise to patches, with more or less nodata."""
    height, width = draw(st.tuples(st.integers(1, 200), st.integers(1, 200)))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    classes, roughness = draw(st.integers(1, 6)), draw(st.sampled_from([0.0, 0.6, 1.5, 4.0]))
    layers = [gaussian_filter(rng.standard_normal((height, width)), roughness) for _ in range(classes + 1)]
    mask = np.argmax(layers[:-1], axis=0).astype(np.uint8)
    mask[layers[-1] > draw(st.sampled_from([0.0, 0.7, 9.0])) * layers[-1].std()] = NODATA
    return mask


MASKS = st.one_of(masks(), large_masks())
TOLERANCES = st.sampled_from([0.5, 1.0, 1.5, 3.0, 30.0])
OTHER_OPTIONS: list[dict[str, Any]] = [
    {},
    {"min_area_px": 6},
    {"min_area_px": 6, "sieve": True},
    {"fill_holes_px": 20},
    {"include": frozenset({0, 2, 7})},
]


@given(MASKS, st.integers(7, 300), TOLERANCES, st.booleans(), st.sampled_from(OTHER_OPTIONS))
@example(CHECKERBOARD, 5, 3.0, False, {})
@example(LATTICE, 5, 3.0, True, {})
@example(_spiral(41), 7, 3.0, False, {})
@example(_rings(41), 7, 30.0, True, {})
def test_e4_a_coverage_stays_one_for_any_tiling(
    mask: Mask,
    tile: int,
    tolerance: float,
    smooth: bool,  # noqa: FBT001
    others: dict[str, Any],
) -> None:
    before, options = _found(mask, **others), {"simplify": Tolerance(tolerance, "px"), "smooth": smooth, **others}
    after = _found(mask, **options)
    with mock.patch.object(spool, "_ROWS_AT_ONCE", 1 + tile // 7):  # other batches too
        again = _found(mask, tile_px=tile, **options)
    assert after.ids == again.ids == before.ids
    assert after.area_px == before.area_px
    assert [p.wkb for p in after.polygons] == [p.wkb for p in again.polygons]
    if not len(before.ids):
        return
    assert shapely.is_valid(after.polygons).all()
    assert (shapely.area(after.polygons) > 0).all()
    assert shapely.coverage_is_valid(after.polygons)
    holes = shapely.get_num_interior_rings
    assert holes(after.polygons).tolist() == holes(before.polygons).tolist()
    if sum(before.area_px) == mask.size:
        assert shapely.union_all(after.polygons).equals(shapely.box(0, 0, mask.shape[1], mask.shape[0]))


@given(MASKS, TOLERANCES)
def test_corners_go_and_nothing_else_moves(mask: Mask, tolerance: float) -> None:
    """Each takes a triangle with it, no larger than the square of the tolerance, on a base of a pixel or more."""
    before, after = _coverage(mask, 512), _found(mask, simplify=Tolerance(tolerance, "px")).polygons
    if not len(before):
        return
    count = shapely.get_num_coordinates
    for one, other in zip(before, after, strict=True):
        assert {*map(tuple, shapely.get_coordinates(other))} <= {*map(tuple, shapely.get_coordinates(one))}
    moved = shapely.area(shapely.symmetric_difference(before, after))
    assert (moved <= (count(before) - count(after)) * tolerance**2 + 1e-6).all()
    far = shapely.hausdorff_distance(shapely.boundary(before), shapely.boundary(after))
    assert far.max() <= 2 * 2 * tolerance**2  # the height of such a triangle, twice: corners go one after the other
    if tolerance < 0.5**0.5:
        assert shapely.equals_exact(shapely.normalize(after), before, 0.0).all()


@pytest.mark.parametrize("tolerance", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("sigma", [0.8, 4.0])
def test_as_few_corners_are_left_as_geos_leaves(tolerance: float, sigma: float) -> None:
    """It looks at all edges at once, and at what is left of them."""
    mask = blobs(300, sigma=sigma)
    theirs = shapely.coverage_simplify(_coverage(mask, 512), tolerance)
    ours = _found(mask, simplify=Tolerance(tolerance, "px")).polygons
    ratio = shapely.get_num_coordinates(ours).sum() / shapely.get_num_coordinates(theirs).sum()
    assert 0.95 < ratio < 1.2


@pytest.mark.parametrize("mask", [CHECKERBOARD, LATTICE, blobs(150)], ids=["checkerboard", "lattice", "blobs"])
def test_e5_where_three_regions_meet_there_is_a_vertex(mask: Mask) -> None:
    """Without those, polygons that only turn where they must are no valid coverage; and they stay."""
    traced = _coverage(mask, 37)
    assert shapely.coverage_is_valid(traced)
    for polygons in (traced, _found(mask, smooth=True, simplify=Tolerance(30.0, "px")).polygons):
        corners = {tuple(xy) for polygon in polygons for xy in shapely.get_coordinates(polygon)}
        height, width = mask.shape
        for row in range(1, height):
            for col in range(1, width):
                around = {int(v) for v in mask[row - 1 : row + 1, col - 1 : col + 1].ravel()}
                if len(around) >= 3:
                    assert (col, row) in corners


def test_steps_of_a_slanting_edge_go() -> None:
    row, col = np.indices((200, 200))
    mask = (2 * row + col > 300).astype(np.uint8)
    before, after = _coverage(mask, 64), _found(mask, simplify=Tolerance(1.0, "px")).polygons
    assert shapely.get_num_coordinates(before).sum() > 400
    assert shapely.get_num_coordinates(after).sum() < 40


def test_classes_that_overlap_are_coverages_of_their_own(tmp_path: Path) -> None:
    bands = np.stack([(blobs(60, classes=2, seed=seed) == 1) for seed in range(3)]).astype(np.uint8)
    profile = {"driver": "GTiff", "height": 60, "width": 60, "count": 3, "dtype": "uint8", "crs": UTM[0]}
    with rasterio.open(tmp_path / "m.tif", "w", **profile, transform=UTM[1]) as file:
        file.write(bands)
    options: dict[str, Any] = {"simplify": Tolerance(2.0, "px"), "smooth": True}
    with polygonize(tmp_path / "m.tif", scratch=tmp_path, bands_are_classes=True, **options) as polygons:
        (batch,) = polygons.iter_batches()
    for value, band in enumerate(bands):
        alone = _found(np.where(band == 1, band, NODATA), **options).polygons
        assert [p.wkb for p in batch.polygons[batch.class_ids == value]] == [p.wkb for p in alone]


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


def test_a_full_disk_is_said_and_nothing_stays(tmp_path: Path) -> None:
    path = write_mask(tmp_path / "m.tif", np.zeros((3000, 3000), np.uint8), compress="DEFLATE")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))  # two bits a pixel are more
    try:
        with pytest.raises(ResourceError, match=r"RS-002"):
            polygonize(path, scratch=tmp_path / "s", simplify=Tolerance(1, "px"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
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
