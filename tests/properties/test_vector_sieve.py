"""Laws of the sieve: what a plain loop over regions says, whatever the tiling."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
from hypothesis import example, given
from hypothesis import strategies as st
from rasterio.features import rasterize
from scipy import ndimage

from pipeline.grid import GeoBox, iter_windows
from pipeline.vector import polygonize, to_geodataframe
from pipeline.vector.area import PixelAreas
from pipeline.vector.pieces import Cells
from pipeline.vector.sieve import sieved
from tests.properties.test_vector_law import NODATA, masks
from tests.unit.vector.masks import UTM, blobs, write_mask

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.grid import Window

    Mask = NDArray[np.uint8]


def _areas(shape: tuple[int, int]) -> PixelAreas:
    areas = PixelAreas.of(GeoBox(shape=shape, transform=UTM[1], crs_wkt=rasterio.crs.CRS.from_string(UTM[0]).to_wkt()))
    assert areas is not None
    return areas


def _sieved(mask: Mask, tile: int, least_px: float) -> Mask:
    """Pixels of 100.06 m² here, so that halves of a pixel lie between all areas."""
    height, width = mask.shape

    def read(window: Window) -> Cells:
        block = mask[window.row_off : window.row_stop, window.col_off : window.col_stop]
        return Cells(block, block != NODATA)

    options = {"areas": _areas((height, width)), "min_area_m2": 100.06 * least_px}
    cells = sieved(read, (height, width), tile_hw=(tile, tile), **options)  # type: ignore[arg-type]
    out = np.full(mask.shape, NODATA, np.uint8)
    for window in iter_windows((height, width), (tile, tile)):
        made = cells(window)
        assert made.wanted is not None
        rows, cols = slice(window.row_off, window.row_stop), slice(window.col_off, window.col_stop)
        out[rows, cols] = np.where(made.wanted, made.values, NODATA)
    return out


def _by_a_plain_loop(mask: Mask, least_px: float) -> Mask:
    regions = np.zeros(mask.shape, int)
    for value in np.unique(mask[mask != NODATA]):
        found, count = ndimage.label(mask == value)
        regions[found > 0] = found[found > 0] + regions.max()
        del count
    borders: dict[int, Counter[int]] = {}
    for a, b in ((regions[:, :-1], regions[:, 1:]), (regions[:-1], regions[1:])):
        for one, other in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True):
            if one != other and one and other:
                borders.setdefault(one, Counter())[other] += 1
                borders.setdefault(other, Counter())[one] += 1
    class_of = {int(region): int(mask[regions == region][0]) for region in np.unique(regions) if region}
    out = mask.copy()
    for region in class_of:
        here = regions == region
        if here.sum() < least_px:
            around = borders.get(region)
            best = min((-n, class_of[other]) for other, n in around.items())[1] if around else NODATA
            out[here] = best
    return out


# Two regions of class 1, each whole in its own tile of 4 columns and with the same number there, share two cracks each
# with the region of class 0 across the seam; class 2 shares three.
NAMESAKES = np.array(
    [
        [2, 2, 2, 2, 2, 1, 2, 2],
        [2, 2, 1, 0, 0, 1, 2, 2],
        [2, 2, 1, 0, 0, 1, 2, 2],
        [2, 2, 2, 2, 3, 2, 2, 2],
    ],
    np.uint8,
)


@example(NAMESAKES, 4, 4.5)
@given(masks(), st.integers(1, 12), st.sampled_from([1.5, 2.5, 4.5, 9.5]))
def test_the_sieve_is_a_plain_loop_for_any_tiling(mask: Mask, tile: int, least_px: float) -> None:
    expected = _by_a_plain_loop(mask, least_px)
    np.testing.assert_array_equal(_sieved(mask, tile, least_px), expected)
    np.testing.assert_array_equal(_sieved(mask, 1000, least_px), expected)


@pytest.mark.parametrize("tile_px", [37, 1024])
def test_polygons_cover_what_the_mask_covers(tmp_path: Path, tile_px: int) -> None:
    mask = blobs(150, sigma=2.0)
    speckles = np.random.default_rng(0).random(mask.shape) < 0.05
    mask[speckles & (mask != NODATA)] = 4
    path = write_mask(tmp_path / "m.tif", mask)
    least = {"min_area_m2": 100.06 * 8.5, "tile_px": tile_px}
    with polygonize(path, scratch=tmp_path, sieve=True, **least) as polygons:
        frame = to_geodataframe(polygons)
    with polygonize(path, scratch=tmp_path, **least) as polygons:
        holed = to_geodataframe(polygons)
    expected = _by_a_plain_loop(mask, 8.5)
    shapes = zip(frame.geometry, frame["class_id"], strict=True)
    burned = rasterize(shapes, mask.shape, fill=NODATA, transform=UTM[1], dtype="uint8")
    np.testing.assert_array_equal(burned, expected)
    assert frame["area_px"].sum() > holed["area_px"].sum()
    assert ((expected == NODATA) == (mask == NODATA)).mean() > 0.999
