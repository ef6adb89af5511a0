"""Laws of polygons: no tiling shows, nothing is lost, nothing is invented."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import pytest
import rasterio.features
import shapely
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.vector import seams
from pipeline.vector.join import iter_regions
from pipeline.vector.pieces import Cells
from pipeline.vector.rings import count_pixels, first_pixel, from_shapely

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.grid import Window

    Mask = NDArray[np.uint8]

NODATA = 255
SIDES = st.one_of(st.just(1), st.integers(1, 9), st.just(64))


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    """Up to four classes and nodata; blown up by a factor, so that regions have some body."""
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    classes = st.sampled_from([0, NODATA, 1, 2, 7][: draw(st.integers(2, 5))])
    coarse = draw(hnp.arrays(np.uint8, shape, elements=classes))
    factor = draw(st.integers(1, 3))
    return np.ascontiguousarray(np.kron(coarse, np.ones((factor, factor), np.uint8)))


def _reader(mask: Mask, include: set[int] | None = None) -> Callable[[Window], Cells]:
    def read(window: Window) -> Cells:
        block = mask[window.row_off : window.row_stop, window.col_off : window.col_stop]
        wanted = block != NODATA
        return Cells(block, wanted if include is None else wanted & np.isin(block, list(include)))

    return read


def _tiled(mask: Mask, tile_hw: tuple[int, int]) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    parts = list(iter_regions(_reader(mask), (mask.shape[0], mask.shape[1]), tile_hw=tile_hw))
    return np.concatenate([p.polygons for p in parts]), np.concatenate([p.values for p in parts])


def _turns_only(polygon: shapely.Polygon) -> shapely.Polygon:
    """Without vertices where two edges continue each other."""

    def turns(ring: shapely.LinearRing) -> list[tuple[float, float]]:
        xy = list(ring.coords)[:-1]
        around = zip(xy[-1:] + xy[:-1], xy, xy[1:] + xy[:1], strict=True)
        return [b for a, b, c in around if not (a[0] == b[0] == c[0] or a[1] == b[1] == c[1])]

    return shapely.Polygon(turns(polygon.exterior), [turns(hole) for hole in polygon.interiors])


def _whole(mask: Mask) -> set[tuple[int, bytes]]:
    """The reference: GDAL on the whole mask, through Shapely's own GeoJSON reader, straight vertices dropped."""
    shapes = list(rasterio.features.shapes(mask, mask=mask != NODATA, connectivity=4))
    polygons = np.array([shapely.geometry.shape(s) for s, _ in shapes], object)
    polygons = np.array([_turns_only(polygon) for polygon in polygons], object)
    return _as_set(polygons, np.array([v for _, v in shapes], np.int64))


def _as_set(polygons: NDArray[np.object_], values: NDArray[np.int64]) -> set[tuple[int, bytes]]:
    out = {(int(v), p.normalize().wkb) for p, v in zip(polygons, values, strict=True)}
    assert len(out) == len(polygons)
    return out


def _spiral(side: int) -> Mask:
    mask = np.zeros((side, side), np.uint8)
    low, high = 0, side - 1
    while low <= high:
        mask[low, max(low - 2, 0) : high + 1] = 1
        mask[low : high + 1, high] = 1
        mask[high, low : high + 1] = 1
        mask[low + 2 : high + 1, low] = 1
        low, high = low + 2, high - 2
    return mask


def _rings(side: int) -> Mask:
    row, col = np.indices((side, side))
    depth = np.minimum(np.minimum(row, col), side - 1 - np.maximum(row, col))
    return np.asarray(depth % 3, np.uint8)


CHECKERBOARD = (np.indices((16, 16)).sum(axis=0) % 2).astype(np.uint8)
# Holes that touch each other and the outside at corners only, inside one region that spans every tile.
LATTICE = np.kron(np.ones((4, 4), np.uint8), np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], np.uint8))
COMB = np.ones((12, 13), np.uint8)
COMB[1:, 1::2] = NODATA


@given(masks(), SIDES, SIDES)
@example(CHECKERBOARD, 5, 3)
@example(_spiral(25), 4, 7)
@example(_spiral(25), 1, 64)
@example(_rings(23), 5, 5)
@example(LATTICE, 4, 5)
@example(COMB, 3, 2)
@example(COMB[::-1].copy(), 3, 2)
@example(COMB.T.copy(), 3, 2)
@example(np.full((3, 4), NODATA, np.uint8), 2, 2)
def test_e2_e3_tiling_never_shows(mask: Mask, tile_height: int, tile_width: int) -> None:
    """Any tiling gives the polygons of the whole, which make up the mask exactly."""
    polygons, values = _tiled(mask, (tile_height, tile_width))
    assert _as_set(polygons, values) == _whole(mask)
    if not len(polygons):
        assert (mask == NODATA).all()
        return
    with mock.patch.object(seams, "_KEPT_BYTES", 4 * mask.size):  # some labels made anew
        assert _as_set(*_tiled(mask, (tile_height, tile_width))) == _as_set(polygons, values)
    assert shapely.is_valid(polygons).all()
    areas = count_pixels(from_shapely(polygons))
    assert areas.tolist() == shapely.area(polygons).tolist()
    assert areas.sum() == (mask != NODATA).sum()
    drawn = rasterio.features.rasterize(
        zip(polygons, values.tolist(), strict=True), out_shape=mask.shape, fill=NODATA, dtype="uint8"
    )
    np.testing.assert_array_equal(drawn, mask)
    first = first_pixel(from_shapely(polygons), scene_width=mask.shape[1])
    assert len(set(first.tolist())) == len(first)
    assert mask.ravel()[first].tolist() == values.tolist()


@given(masks(), SIDES, st.sets(st.sampled_from([0, 1, 2, 7, NODATA])))
def test_class_filter_equals_filtering_afterwards(mask: Mask, tile: int, include: set[int]) -> None:
    parts = list(iter_regions(_reader(mask, include), (mask.shape[0], mask.shape[1]), tile_hw=(tile, tile)))
    got = set().union(*(_as_set(p.polygons, p.values) for p in parts))
    assert got == {(value, wkb) for value, wkb in _whole(mask) if value in include}


@pytest.mark.parametrize("tile", [64, 100])
@pytest.mark.parametrize(
    "mask",
    [
        _spiral(401),
        _rings(301),
        (np.indices((110, 110)).sum(axis=0) % 2).astype(np.uint8),
        np.kron(LATTICE, np.ones((13, 13), np.uint8)),
    ],
    ids=["spiral", "rings", "checkerboard", "lattice"],
)
def test_large_shapes_that_span_many_tiles(mask: Mask, tile: int) -> None:
    polygons, values = _tiled(mask, (tile, tile))
    assert _as_set(polygons, values) == _whole(mask)
    assert shapely.is_valid(polygons).all()
    assert count_pixels(from_shapely(polygons)).sum() == mask.size


@given(masks(), st.integers(1, 6))
def test_a_region_leaves_as_soon_as_the_frontier_has_passed_it(mask: Mask, tile: int) -> None:
    """Memory is that of open regions: what ends above a tile row is out before that row is read."""
    out: list[tuple[int, bytes]] = []
    whole = _whole(mask)

    seen: set[Window] = set()

    def read(window: Window) -> Cells:
        if window in seen:  # the second time its boundaries are walked
            past = {r for r in whole if shapely.from_wkb(r[1]).bounds[3] < window.row_off}
            assert past <= set(out)
        seen.add(window)
        return _reader(mask)(window)

    with mock.patch.object(seams, "_KEPT_BYTES", 0):
        for regions in iter_regions(read, (mask.shape[0], mask.shape[1]), tile_hw=(tile, tile)):
            out += _as_set(regions.polygons, regions.values)
    assert len(out) == len(whole)
