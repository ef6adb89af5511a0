"""Laws of overviews: halving equals a plain loop and invents nothing; buffer windows cover once, in bounded memory."""

from __future__ import annotations

import itertools
import math
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import rasterio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rasterio.errors import NotGeoreferencedWarning

from pipeline.store.probabilities import quantize_probabilities, restore_probabilities
from pipeline.store.pyramid import (
    BLOCK_PX,
    block_side,
    halve_mask,
    halve_mean,
    level_shapes,
    level_windows,
    write_levels,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDES = st.integers(1, 9)


def _pixels(height: int, width: int, values: list[int], seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return rng.choice(np.array(values, np.uint8), (2, height, width))


def _fours(pixels: NDArray[np.uint8], row: int, col: int) -> list[int]:
    """Values in reading order; an odd last line stands in for the missing one."""
    height, width = pixels.shape
    return [int(pixels[min(2 * row + r, height - 1), min(2 * col + c, width - 1)]) for r in (0, 1) for c in (0, 1)]


@given(
    SIDES,
    SIDES,
    st.sampled_from([[0, 1], [0, 255], [1, 2, 255], [0, 1, 2, 3, 4, 255]]),
    st.sampled_from([np.uint8, np.uint16]),
    st.integers(0, 2**32),
)
def test_halving_a_mask_is_a_vote_of_valid_pixels(
    height: int, width: int, values: list[int], dtype: type[np.uint8 | np.uint16], seed: int
) -> None:
    nodata = int(np.iinfo(dtype).max)
    pixels = _pixels(height, width, values, seed).astype(dtype) * (nodata // 255)
    half = halve_mask(pixels, nodata)
    assert (half.shape, half.dtype) == ((2, (height + 1) // 2, (width + 1) // 2), dtype)
    for band in range(2):
        for row, col in np.ndindex(half.shape[1:]):
            votes = [v for v in _fours(pixels[band], row, col) if v != nodata]
            most = max(Counter(votes).values(), default=0)
            expected = next((v for v in votes if votes.count(v) == most), nodata)
            assert half[band, row, col] == expected


@given(SIDES, SIDES, st.integers(0, 2**32))
def test_halving_probabilities_is_their_mean(height: int, width: int, seed: int) -> None:
    pixels = _pixels(height, width, [0, 3, 125, 249, 250, 255], seed)
    half = halve_mean(pixels, 255)
    for band in range(2):
        for row, col in np.ndindex(half.shape[1:]):
            valid = [v for v in _fours(pixels[band], row, col) if v != 255]
            expected = int(np.floor(sum(valid) / len(valid) + 0.5)) if valid else 255
            assert half[band, row, col] == expected


@given(st.integers(1, 60_000), st.integers(1, 400_000), st.integers(1, 4_000), st.integers(0, 12))
def test_windows_of_a_level_cover_it_once_in_whole_blocks_and_bounded_memory(
    height: int, width: int, nbytes: int, number: int
) -> None:
    shapes, side = level_shapes((height, width)), block_side(nbytes)
    assert side * side * nbytes <= 16 << 20
    assert side == BLOCK_PX or 4 * side * side * nbytes > 16 << 20
    number = min(number, len(shapes) - 1)
    total = 0
    for count, window in enumerate(level_windows((height, width), number, nbytes)):
        assert window.row_off % side == 0
        assert window.col_off % side == 0
        assert window.num_pixels * nbytes <= max(16 << 20, 4 * side * side * nbytes)
        total += window.num_pixels
        if count == 3000:
            return
    assert total == math.prod(shapes[number])


@given(st.integers(1, 2_300), st.integers(1, 2_300), st.integers(1, 3), st.integers(0, 2**32))
@example(40, 4_200, 1, 0)  # more levels than one window is halved to
@example(2_100, 300, 2, 0)
@settings(max_examples=15)
def test_levels_are_the_raster_halved_again_and_again(height: int, width: int, bands: int, seed: int) -> None:
    """However it is cut into windows: each level, read back, is the one before it halved as a whole."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice(np.array([0, 1, 2, 255], np.uint8), (bands, height // 7 + 1, width // 7 + 1))
    whole = np.repeat(np.repeat(coarse, 7, 1), 7, 2)[:, :height, :width].copy()
    whole[rng.random(whole.shape) < 0.1] = 2
    profile = {"height": height, "width": width, "count": bands, "dtype": "uint8", "nodata": 255}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        levels = write_levels(
            Path(folder) / "base.tif",
            read=lambda w: whole[:, w.row_off : w.row_stop, w.col_off : w.col_stop],
            halve=lambda pixels: halve_mask(pixels, 255),
            profile=profile,
            describe=lambda _file: None,
        )
        assert [level.shape for level in levels] == level_shapes((height, width))
        for level in levels:
            with rasterio.open(level.path) as file:
                np.testing.assert_array_equal(file.read(), whole)
            whole = halve_mask(whole, 255)


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_levels_halve_until_one_block_holds_all(height: int, width: int) -> None:
    shapes = level_shapes((height, width))
    assert shapes[0] == (height, width)
    assert max(shapes[-1]) <= BLOCK_PX
    assert all(max(shape) > BLOCK_PX for shape in shapes[:-1])
    assert all(small == ((big[0] + 1) // 2, (big[1] + 1) // 2) for big, small in itertools.pairwise(shapes))


@given(st.lists(st.one_of(st.floats(0, 1, width=32), st.just(float("nan"))), min_size=1, max_size=50))
def test_kept_probabilities_are_off_by_half_a_step_at_most(values: list[float]) -> None:
    given_values = np.array(values, np.float32)
    restored = restore_probabilities(quantize_probabilities(given_values))
    np.testing.assert_array_equal(np.isnan(restored), np.isnan(given_values))
    assert np.nanmax(np.abs(restored - given_values), initial=0.0) <= 0.002001
