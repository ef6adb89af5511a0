"""Probabilities that were kept with a mask: which one each pixel's class has."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterioWindow

from pipeline.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.grid import GeoBox, Window


class Probabilities:
    """A raster of uint8 with a band per class, class 0 in the first, on the grid of its mask."""

    def __init__(self, file: rasterio.DatasetReader) -> None:
        self._file = file
        self.steps = round(1 / file.scales[0])
        """Stored value that means 1."""

    def of_classes(self, window: Window, values: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Stored probability `(y, x)` of the class that each pixel of a window has; 1 where there is no such class."""
        found = np.full(values.shape, self.steps, np.uint8)
        for value in np.unique(values).tolist():
            if 0 <= value < self._file.count:
                np.copyto(found, self._band(window, value), where=values == value)
        return found

    def of_class(self, window: Window, value: int) -> NDArray[np.uint8]:
        """Stored probability `(y, x)` of one class."""
        return self._band(window, value)

    def _band(self, window: Window, value: int) -> NDArray[np.uint8]:
        place = RasterioWindow(window.col_off, window.row_off, window.width, window.height)
        try:
            block: NDArray[np.uint8] = self._file.read(value + 1, window=place)
        except RasterioError as error:
            raise _unusable(self._file.name, f"cannot be read at {window}: {error}") from error
        return block


@contextmanager
def open_probabilities(path: Path, geobox: GeoBox) -> Iterator[Probabilities]:
    """The probabilities of a mask with this grid.

    Raises:
        InputError: IN-036, not probabilities of ours, or of another grid.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            file = rasterio.open(path, driver="GTiff")  # pinned: a VRT under another name reads what it likes
    except (RasterioError, OSError) as error:
        raise _unusable(str(path), str(error)) from error
    with file:
        if set(file.dtypes) != {"uint8"} or len(set(file.scales)) != 1 or not 0 < file.scales[0] < 1:
            raise _unusable(str(path), f"expected uint8 with one scale below 1, got {file.dtypes[0]}, {file.scales[0]}")
        if file.shape != geobox.shape or not file.transform.almost_equals(geobox.transform):
            raise _unusable(str(path), f"its grid is another than the mask's: {file.shape}, expected {geobox.shape}")
        yield Probabilities(file)


def _unusable(path: str, what: str) -> InputError:
    return InputError(
        what,
        code="IN-036",
        title="Probabilities do not fit the mask",
        where=path,
        fix="give the probabilities.tif that was written with this mask (segment --probabilities)",
    )
