"""The law of mosaics: several masks give the polygons of the one that they make up."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import rasterio.merge
from affine import Affine
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.vector import Tolerance, polygonize
from tests.properties.test_vector_law import NODATA, masks
from tests.unit.vector.masks import UTM, write_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Piece = tuple[int, int, NDArray[np.uint8]]

OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"include": frozenset({1, 2})},
    {"min_area_m2": 350.0},
    {"min_area_m2": 350.0, "sieve": True},
    {"simplify": Tolerance(1, "px")},
)
PLACES = st.one_of(st.integers(-9, 9), st.just(60))


def _content(paths: Path | list[Path], scratch: Path, **options: Any) -> tuple[Any, ...]:
    with polygonize(paths, scratch=scratch, **options) as polygons:
        rows = [
            (identity, value, pixels, units, border, shape.wkb)
            for b in polygons.iter_batches()
            for identity, value, pixels, units, border, shape in zip(
                b.ids, b.class_ids.tolist(), b.area_px.tolist(), b.area_units.tolist(), b.touches_border.tolist(),
                b.polygons, strict=True,
            )
        ]  # fmt: skip
        return polygons.geobox.shape, polygons.geobox.transform, rows


def _first_wins(pieces: list[Piece]) -> tuple[Affine, NDArray[np.uint8]]:
    """The reference: a plain array, filled piece by piece where nothing is yet."""
    top, left = min(row for row, _, _ in pieces), min(col for _, col, _ in pieces)
    bottom, right = (max(piece[axis] + piece[2].shape[axis] for piece in pieces) for axis in (0, 1))
    canvas = np.full((bottom - top, right - left), NODATA, np.uint8)
    for row, col, mask in pieces:
        here = canvas[row - top : row - top + mask.shape[0], col - left : col - left + mask.shape[1]]
        here[:] = np.where(here == NODATA, mask, here)
    return UTM[1] @ Affine.translation(left, top), canvas


HIDDEN = (0, 0, np.full((6, 6), 1, np.uint8)), (1, 1, np.full((4, 4), 2, np.uint8))
HOLED = np.full((6, 6), 1, np.uint8)
HOLED[2:4, 2:5] = NODATA


@pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")  # in rasterio.merge
@example(list(HIDDEN), 4, {})
@example([(0, 0, HOLED), (1, 1, np.full((4, 4), 2, np.uint8))], 3, {"include": frozenset({2})})
@given(
    st.lists(st.tuples(PLACES, PLACES, masks()), min_size=1, max_size=4), st.integers(2, 40), st.sampled_from(OPTIONS)
)
def test_several_masks_are_their_mosaic(pieces: list[Piece], tile_px: int, options: dict[str, Any]) -> None:
    transform, canvas = _first_wins(pieces)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [
            write_mask(folder / f"{number}.tif", mask, transform=UTM[1] @ Affine.translation(col, row))
            for number, (row, col, mask) in enumerate(pieces)
        ]
        merged, placed = rasterio.merge.merge(paths, method="first")
        np.testing.assert_array_equal(merged[0], canvas)
        assert placed == transform
        whole = write_mask(folder / "whole.tif", canvas, transform=transform)
        assert _content(paths, folder, tile_px=tile_px, **options) == _content(whole, folder, **options)


@given(masks(), st.data())
def test_overlapping_cuts_of_a_mask_are_the_mask(mask: NDArray[np.uint8], data: st.DataObject) -> None:
    height = mask.shape[0]
    stop = data.draw(st.integers(1, height), "end of the upper part")
    start = data.draw(st.integers(0, min(stop, height - 1)), "begin of the lower part")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = [
            write_mask(folder / "upper.tif", mask[:stop]),
            write_mask(folder / "lower.tif", mask[start:], transform=UTM[1] @ Affine.translation(0, start)),
        ]
        whole = write_mask(folder / "whole.tif", mask)
        assert _content(data.draw(st.permutations(parts)), folder, tile_px=7) == _content(whole, folder)
