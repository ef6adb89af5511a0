"""What polygons are told beside their outline: a plain count of pixels says the same, for any tiling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import ndimage

from pipeline.vector.facts import Measure
from pipeline.vector.join import iter_regions
from pipeline.vector.pieces import Cells
from pipeline.vector.rings import first_pixel
from tests.properties.test_vector_law import CHECKERBOARD, NODATA, SIDES, masks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.grid import Window

    Mask = NDArray[np.uint8]

LIMIT = 100
Row = tuple[int, int, bool, int, int, int]


def _by_hand(mask: Mask, steps: Mask, excluded: int | None) -> set[Row]:
    """(first pixel, class, touches nodata, sum, least, unsure pixels) of each region, from SciPy's labels."""
    absent = np.pad(mask == NODATA, 1)
    beside = absent[:-2, 1:-1] | absent[2:, 1:-1] | absent[1:-1, :-2] | absent[1:-1, 2:]
    found = set()
    for value in set(np.unique(mask).tolist()) - {NODATA, excluded}:
        labels, count = ndimage.label(mask == value)
        for number in range(1, count + 1):
            inside = labels == number
            own = steps[inside].astype(int)
            first = int(np.flatnonzero(inside)[0])
            found.add(
                (first, value, bool(beside[inside].any()), int(own.sum()), int(own.min()), int((own < LIMIT).sum()))
            )
    return found


@given(masks(), SIDES, SIDES, st.integers(0, 9), st.sampled_from([None, 0, 1]))
@example(CHECKERBOARD, 5, 3, 0, None)
def test_facts_are_those_of_the_pixels(mask: Mask, tile_h: int, tile_w: int, seed: int, excluded: int | None) -> None:
    steps = np.random.default_rng(seed).integers(0, 251, mask.shape, dtype=np.uint8)

    def read(window: Window) -> Cells:
        block = mask[window.row_off : window.row_stop, window.col_off : window.col_stop]
        return Cells(block, (block != NODATA) & (block != (NODATA if excluded is None else excluded)), block != NODATA)

    def steps_of(window: Window, values: NDArray[np.generic]) -> Mask:
        assert values.shape == window.shape
        return np.ascontiguousarray(steps[window.row_off : window.row_stop, window.col_off : window.col_stop])

    shape = (mask.shape[0], mask.shape[1])
    measure = Measure(read=read, shape_hw=shape, steps=steps_of, unsure_below=LIMIT)
    found: list[Row] = []
    for part in iter_regions(read, shape, tile_hw=(tile_h, tile_w), measure=measure):
        if len(part.values):
            facts = part.facts
            columns = (
                first_pixel(part.rings, scene_width=shape[1]), part.values, facts.touches_nodata,
                facts.steps_sum, facts.steps_min, facts.unsure_px,
            )  # fmt: skip
            found += list(zip(*(column.tolist() for column in columns), strict=True))
    assert len(found) == len(set(found))
    assert set(found) == _by_hand(mask, steps, excluded)
