"""Small masks, truths and files that tests of evaluation share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from pipeline.train.evaluate.pairs import Counter, count
from tests.scenes import NORTH_UP, UTM

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.grid import Window

NONE = 255


class Held:
    """A `Source` in memory."""

    def __init__(self, array: NDArray[np.uint8]) -> None:
        self._array = array

    def read(self, window: Window) -> NDArray[np.uint8]:
        rows, cols = (slice(window.row_off, window.row_stop), slice(window.col_off, window.col_stop))
        return self._array[rows, cols].copy()


def counted(pred: NDArray[np.uint8], truth: NDArray[np.uint8], *counters: Counter, window_px: int = 4096) -> None:
    """Show two arrays of indices to counters."""
    count(Held(pred), Held(truth), pred.shape, counters, none=NONE, window_px=window_px)  # type: ignore[arg-type]


def pairs(classes: int = 3, most: int = 24) -> st.SearchStrategy[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """PRED and TRUTH of one shape, blocky enough to have regions; some pixels without a class."""

    @st.composite
    def draw(draw: st.DrawFn) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        height, width = draw(st.integers(1, most)), draw(st.integers(1, most))
        scale = draw(st.integers(1, 4))
        coarse = (-(-height // scale), -(-width // scale))
        values = st.sampled_from([*range(classes), NONE])
        one, other = (draw(hnp.arrays(np.uint8, coarse, elements=values)) for _ in range(2))
        sides = [np.kron(side, np.ones((scale, scale), np.uint8))[:height, :width] for side in (one, other)]
        agree = draw(hnp.arrays(np.bool_, (height, width)))
        return sides[0], np.where(agree, sides[0], sides[1])

    return draw()


def blobs(shape: tuple[int, int], classes: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth regions of classes 0 to `classes - 1`."""
    rng = np.random.default_rng(seed)
    fields = np.stack([ndimage.gaussian_filter(rng.normal(size=shape), 4) for _ in range(classes)])
    return fields.argmax(axis=0).astype(np.uint8)


def write_classes(path: Path, array: NDArray[Any], **profile: Any) -> Path:
    """A raster of classes; UTM, 10 m, no nodata unless `profile` says otherwise."""
    settings = {
        "driver": "GTiff", "count": 1, "height": array.shape[0], "width": array.shape[1], "dtype": array.dtype,
        "crs": UTM, "transform": NORTH_UP, **profile,
    }  # fmt: skip
    with rasterio.open(path, "w", **settings) as file:
        file.write(array, 1)
    return path
