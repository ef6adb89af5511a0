"""Rasters of class numbers: opened, checked, and read by windows of PRED's grid as indices of classes."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import rasterio
from rasterio.enums import MaskFlags, Resampling
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from rasterio.windows import Window as RasterioWindow

from pipeline.errors import InputError
from pipeline.grid import GeoBox, Window, iter_windows
from pipeline.scene.datasets import GDAL_ERRORS, innermost_message, without_georeference
from pipeline.scene.magic import driver_of, read_ends
from pipeline.store import read_legend
from pipeline.train.evaluate.classes import MAX_VALUE, MOST_CLASSES
from pipeline.train.evaluate.faults import no_crs, no_overlap, unusable_pred, unusable_truth

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.legend import Legend

    Indices = NDArray[np.uint8 | np.uint16]

CACHE_BYTES = 128 << 20
_SURVEY_PX = 2048
_SAME_PX = 1e-3


class Source(Protocol):
    """Indices of classes on PRED's grid."""

    def read(self, window: Window) -> Indices:
        """`(y, x)`; `classes.none` where there is no class. The same pixels whatever the window."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ClassRaster:
    """An open raster of class numbers."""

    path: Path
    dataset: Any
    """Of rasterio; on PRED's grid."""
    legend: Legend | None
    """Its classes, None where it has no names."""
    warped: bool = False
    """Whether it has another grid, and each pixel of PRED takes what lies under its centre."""

    @property
    def geobox(self) -> GeoBox:
        """Where its pixels lie."""
        crs = self.dataset.crs.to_wkt() if self.dataset.crs else None
        return GeoBox(shape=self.dataset.shape, transform=self.dataset.transform, crs_wkt=crs)

    def values(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Numbers `(y, x)`, and where they are classes; None means everywhere.

        Raises:
            InputError: IN-005, the window cannot be read.
        """
        place = RasterioWindow(window.col_off, window.row_off, window.width, window.height)
        try:
            block = self.dataset.read(1, window=place)
            if self.warped:
                return block, self.dataset.read(2, window=place) != 0
            if MaskFlags.per_dataset in self.dataset.mask_flag_enums[0]:
                return block, self.dataset.read_masks(1, window=place) != 0
        except GDAL_ERRORS as error:
            raise InputError(
                f"{self.path.name} cannot be read: {innermost_message(error)}",
                code="IN-005",
                title="Damaged raster",
                where=f"{self.path}, {window}",
                fix="fetch or write the file again",
            ) from error
        nodata = self.dataset.nodata
        return block, None if nodata is None or np.isnan(nodata) else block != nodata

    def distinct(self, keep: NDArray[np.bool_] | None = None) -> set[int]:
        """All numbers that it has, in one pass.

        Args:
            keep: Numbers of interest, by number; all if not given.

        Raises:
            InputError: EV-001, more than a raster of classes has.
        """
        found: set[int] = set()
        for window in iter_windows(self.dataset.shape, (_SURVEY_PX, _SURVEY_PX)):
            block, valid = self.values(window)
            numbers = np.unique(block if valid is None else block[valid])
            found.update(n for n in numbers.tolist() if keep is None or not 0 <= n <= MAX_VALUE or keep[n])
            if len(found) > MOST_CLASSES:
                raise unusable_pred(f"more than {MOST_CLASSES} numbers: these are no classes", self.path)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """A raster whose numbers are turned into indices by a table."""

    raster: ClassRaster
    table: Indices
    """Number -> index."""
    none: int
    """Index that means no class; the one below it stands for a number that is no class."""
    refuse: Any
    """Makes an error of (numbers that are no classes, window)."""

    def read(self, window: Window) -> Indices:
        """Indices `(y, x)`.

        Raises:
            InputError: A number that is no class.
        """
        block, valid = self.raster.values(window)
        if block.dtype.itemsize > 2 or block.dtype.kind == "i":  # noqa: PLR2004 - bytes that the table has
            block, valid = self._in_table(block, valid, window)
        found: Indices = self.table[block]
        if valid is not None:
            found[~valid] = self.none
        if (found == self.none - 1).any():
            raise self.refuse(np.unique(block[found == self.none - 1]).tolist(), window)
        return found

    def _in_table(
        self, block: NDArray[Any], valid: NDArray[np.bool_] | None, window: Window
    ) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        outside = (block < 0) | (block > MAX_VALUE)
        bad = outside if valid is None else outside & valid
        if bad.any():
            raise self.refuse(np.unique(block[bad]).tolist(), window)
        return np.where(outside, 0, block).astype(np.uint16), valid


@contextmanager
def open_pred(path: Path) -> Iterator[ClassRaster]:
    """PRED, checked.

    Raises:
        InputError: IN-001, IN-003, IN-002 or IN-014 as for scenes; EV-001, it is no raster of classes.
    """
    with _open(path, unusable_pred) as dataset:
        legend = _legend(path)
        if legend is not None and legend.multilabel:
            raise unusable_pred(
                f"{path.name} has overlapping classes, a band for each of {len(legend)}",
                path,
                fix=f"compare one by one: gdal_translate -b 1 '{path.name}' one.tif, then --classes \"0=other,1=it\"",
            )
        yield ClassRaster(path, dataset, legend)


@contextmanager
def open_truth(path: Path, pred: ClassRaster) -> Iterator[ClassRaster]:
    """A raster of classes on PRED's grid: as it is, or warped by nearest neighbour.

    Raises:
        InputError: As `open_pred`, with EV-002; EV-003 no overlap; EV-004 only one of them has a CRS.
    """
    with ExitStack() as stack:
        dataset = stack.enter_context(_open(path, unusable_truth))
        legend = _legend(path)
        if legend is not None and legend.multilabel:
            raise unusable_truth(f"{path.name} has overlapping classes, a band for each of {len(legend)}", path)
        if same_grid(dataset, pred.dataset):
            yield ClassRaster(path, dataset, legend)
            return
        _check_place(path, dataset, pred)
        height, width = pred.dataset.shape
        warped = stack.enter_context(
            WarpedVRT(
                dataset,
                crs=pred.dataset.crs,
                transform=pred.dataset.transform,
                height=height,
                width=width,
                resampling=Resampling.nearest,
                tolerance=1e-6,  # a coarser approximation would depend on the window; GDAL takes no 0
                add_alpha=True,
            )
        )
        yield ClassRaster(path, warped, legend, warped=True)


@contextmanager
def _open(path: Path, unusable: Any) -> Iterator[Any]:
    """A dataset with one band of integers; reading it holds a small block cache."""
    head = head_of(path)
    driver = driver_of(head, path)
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), ExitStack() as stack:
        try:
            with without_georeference():
                dataset = stack.enter_context(rasterio.open(path, driver=driver))
        except GDAL_ERRORS as error:
            raise unusable(f"{path.name} cannot be read: {innermost_message(error)}", path) from error
        if dataset.count != 1 and not (_legend(path) or _NO_LEGEND).multilabel:
            raise unusable(f"expected one band of class numbers, got {dataset.count} bands", path)
        if np.dtype(dataset.dtypes[0]).kind not in "iu":
            raise unusable(
                f"expected class numbers (integers), got {dataset.dtypes[0]}",
                path,
                fix=f"gdal_translate -ot UInt16 '{path.name}' classes.tif, if these are class numbers",
            )
        yield dataset


class _NO_LEGEND:  # noqa: N801 - stands for a value
    multilabel = False


def _legend(path: Path) -> Legend | None:
    try:
        with without_georeference():
            return read_legend(path)
    except (*GDAL_ERRORS, OSError, ValueError):  # no GeoTIFF, or names that are none
        return None


def head_of(path: Path) -> bytes:
    """The first bytes of a file.

    Raises:
        InputError: IN-001 there is none, IN-003 it is empty.
    """
    try:
        head = read_ends(path)[0]
    except OSError as error:
        what = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        raise InputError(
            f"{path}: {what}", code="IN-001", title="File not found", where=str(path), fix="check the path"
        ) from error
    if not head:
        raise InputError(
            f"{path.name} has 0 bytes", code="IN-003", title="Empty file", where=str(path), fix="write it again"
        )
    return head


def same_grid(one: Any, other: Any) -> bool:
    """Whether pixels lie on pixels, to a thousandth of their side at the farthest corner."""
    if one.shape != other.shape or (one.crs or None) != (other.crs or None):
        return False
    corners = [(0, 0), (one.width, 0), (0, one.height), (one.width, one.height)]
    back = ~other.transform
    return all(
        max(abs(a - b) for a, b in zip(back @ (one.transform @ corner), corner, strict=True)) < _SAME_PX
        for corner in corners
    )


def _check_place(path: Path, truth: Any, pred: ClassRaster) -> None:
    if not truth.crs or not pred.dataset.crs:
        said = [
            f"{name} has {'a CRS' if d.crs else 'no CRS'}" for name, d in (("TRUTH", truth), ("PRED", pred.dataset))
        ]
        sizes = f"TRUTH is {truth.height} x {truth.width} px, PRED {pred.dataset.height} x {pred.dataset.width}"
        raise no_crs(f"{' and '.join(said)}, and their grids differ ({sizes})", path)
    try:
        bounds = transform_bounds(truth.crs, pred.dataset.crs, *truth.bounds)
    except GDAL_ERRORS as error:
        raise no_crs(f"TRUTH's CRS cannot be brought into PRED's: {innermost_message(error)}", path) from error
    mine = pred.dataset.bounds
    apart = bounds[0] >= max(mine.left, mine.right) or bounds[2] <= min(mine.left, mine.right)
    if apart or bounds[1] >= max(mine.top, mine.bottom) or bounds[3] <= min(mine.top, mine.bottom):
        raise no_overlap(f"TRUTH covers {_box(bounds)} in PRED's CRS, PRED covers {_box(tuple(mine))}", path)


def _box(bounds: tuple[float, ...]) -> str:
    return f"x {bounds[0]:.8g} to {bounds[2]:.8g}, y {bounds[1]:.8g} to {bounds[3]:.8g}"
