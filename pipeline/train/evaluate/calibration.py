"""Whether probabilities mean what they say: reliability tables and the expected calibration error (ECE).

Of pixels to which a probability p was given, a share of p should be right. Pixels are binned by p in equal steps; ECE
is the mean over bins of |share right - mean p|, weighted by pixels (Guo et al. 2017, arXiv:1706.04599). `top`: p of the
class that PRED has, right where TRUTH has it too. Per class: p of that class, right where TRUTH has it; the mean of
their ECE is the classwise one (Kull et al. 2019, arXiv:1910.12656).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from rasterio.windows import Window as RasterioWindow

from pipeline.errors import InputError
from pipeline.scene.datasets import GDAL_ERRORS, innermost_message, without_georeference
from pipeline.scene.magic import driver_of
from pipeline.train.evaluate.rasters import CACHE_BYTES, head_of, same_grid
from pipeline.train.metrics import mean_over_present, ratio

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.train.evaluate.classes import Classes
    from pipeline.train.evaluate.pairs import Pair
    from pipeline.train.evaluate.rasters import ClassRaster

BINS = 15
"""As Guo et al. have them."""
_FINE = 10_000  # levels that probabilities of other types are rounded to


class CalibrationCounter:
    """Counts pixels by stored probability, and how many of them are right: bins are made of these at the end.

    Args:
        file: Open probabilities, a band per class, or one band for the second of two classes.
        classes: Their classes.
        bins: Of the tables.
    """

    halo_px = 0

    def __init__(self, file: Any, classes: Classes, *, bins: int = BINS) -> None:
        self._file, self._classes, self._bins = file, classes, bins
        self._bytes = file.dtypes[0] == "uint8"
        levels = 256 if self._bytes else _FINE + 1
        self._level_p = (
            np.arange(levels) * file.scales[0] + file.offsets[0] if self._bytes else np.arange(levels) / _FINE
        )
        rows = len(classes) + 1
        self._pixels = np.zeros((rows, levels), np.int64)  # the last row: the class that PRED has
        self._right = np.zeros((rows, levels), np.int64)

    def add(self, pair: Pair) -> None:
        """Count one window."""
        pred, truth = pair.pred[pair.core], pair.truth[pair.core]
        compared = pair.compared
        if not compared.any():
            return
        for index in range(len(self._classes)):
            levels, known = self._levels(pair, index)
            known &= compared
            self._count(index, levels[known], truth[known] == index)
            here = known & (pred == index)
            self._count(len(self._classes), levels[here], truth[here] == index)

    def report(self) -> dict[str, Any]:
        """Tables for the report."""
        tables = [self._table(row) for row in range(len(self._classes) + 1)]
        errors = np.array([np.nan if t["ece"] is None else t["ece"] for t in tables[:-1]])
        return {
            "bins": self._bins,
            "top": tables[-1],
            "classwise_ece": _none(float(mean_over_present(errors))),
            "per_class": [
                {"value": value, "name": name, **table}
                for value, name, table in zip(self._classes.values, self._classes.names, tables[:-1], strict=True)
            ],
        }

    def _levels(self, pair: Pair, index: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Stored level of a class's probability `(y, x)`, and where there is one."""
        window, single = pair.window, self._file.count == 1
        place = RasterioWindow(window.col_off, window.row_off, window.width, window.height)
        try:
            stored = self._file.read(1 if single else index + 1, window=place)
        except GDAL_ERRORS as error:
            raise _unusable(f"cannot be read: {innermost_message(error)}", f"{self._file.name}, {window}") from error
        nodata = self._file.nodata
        known = np.ones(stored.shape, bool) if nodata is None or np.isnan(nodata) else stored != nodata
        if self._bytes:
            levels = stored
            if single and index == 0:
                levels = np.clip(np.rint(1 / self._file.scales[0]) - stored, 0, 255).astype(np.uint8)
            return levels, known
        p = stored * self._file.scales[0] + self._file.offsets[0]
        known &= np.isfinite(p)
        p = np.where(known, 1 - p if single and index == 0 else p, 0)
        return np.rint(np.clip(p, 0, 1) * _FINE).astype(np.uint16), known

    def _count(self, row: int, levels: NDArray[Any], right: NDArray[np.bool_]) -> None:
        size = self._pixels.shape[1]
        self._pixels[row] += np.bincount(levels, minlength=size)
        self._right[row] += np.bincount(levels[right], minlength=size)

    def _table(self, row: int) -> dict[str, Any]:
        p = np.clip(self._level_p, 0, 1)
        place = np.minimum((p * self._bins + 1e-9).astype(int), self._bins - 1)
        pixels, right = self._pixels[row], self._right[row]
        count, hits, sums = (np.bincount(place, weights=w, minlength=self._bins) for w in (pixels, right, pixels * p))
        mean_p, share = ratio(sums, count), ratio(hits, count)
        total = count.sum()
        gap = np.nan_to_num(np.abs(share - mean_p))
        return {
            "pixels": int(total),
            "ece": float((gap * count).sum() / total) if total else None,
            "table": [
                {
                    "from": i / self._bins,
                    "to": (i + 1) / self._bins,
                    "pixels": int(count[i]),
                    "mean_probability": _none(mean_p[i]),
                    "share_right": _none(share[i]),
                }
                for i in range(self._bins)
            ],
        }


@contextmanager
def open_probabilities(path: Path, pred: ClassRaster, classes: Classes) -> Iterator[Any]:
    """The probabilities of PRED's run.

    Raises:
        InputError: IN-001 and others, no readable raster; EV-010, not those of PRED.
    """
    driver = driver_of(head_of(path), path)
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
        try:
            with without_georeference():
                file = rasterio.open(path, driver=driver)
        except GDAL_ERRORS as error:
            raise _unusable(f"cannot be read: {innermost_message(error)}", str(path)) from error
        with file:
            if not same_grid(file, pred.dataset):
                raise _unusable(f"{path.name} has another grid than PRED", str(path))
            if file.count != len(classes) and not (file.count == 1 and len(classes) == 2):  # noqa: PLR2004 - yes and no
                raise _unusable(f"{path.name} has {file.count} bands, PRED has the classes {classes}", str(path))
            yield file


def _unusable(what: str, where: str) -> InputError:
    return InputError(
        what,
        code="EV-010",
        title="Probabilities do not belong to PRED",
        where=where,
        fix="give the probabilities.tif of PRED's own run, or --probabilities none",
    )


def _none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
