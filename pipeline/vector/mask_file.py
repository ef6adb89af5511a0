"""Masks on disk: opening, checks, and cells of their windows."""

from __future__ import annotations

import warnings
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import rasterio
from rasterio.enums import MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterioWindow

from pipeline.errors import InputError
from pipeline.grid import GeoBox
from pipeline.vector.mosaic import MaskSource, mosaic
from pipeline.vector.pieces import Cells

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.grid import Window
    from pipeline.vector.mosaic import Reader

_CACHE_BYTES = 128 << 20
_MAX_VALUE = 2**31 - 1
SCENE_TAG = "SCENEMASK_SCENE"
"""Tag of a mask: the scene that it was made of."""


@contextmanager
def open_masks(paths: Sequence[Path], *, many_bands: bool) -> Iterator[MaskSource]:
    """All masks as one."""
    with ExitStack() as stack:
        yield mosaic([_source(stack.enter_context(_open_mask(path, many_bands=many_bands)), path) for path in paths])


@contextmanager
def _open_mask(path: Path, *, many_bands: bool) -> Iterator[rasterio.DatasetReader]:
    """The mask, checked; reading it holds at most a small block cache."""
    with rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)  # allowed: polygons are then in pixels
                mask = rasterio.open(path, driver="GTiff")  # pinned: a VRT under another name reads what it likes
        except (RasterioError, OSError) as error:
            raise _unreadable(path, str(error)) from error
        with mask:
            if mask.count != 1 and not many_bands:
                raise _unreadable(path, f"expected one band of class numbers, got {mask.count} bands")
            if np.dtype(mask.dtypes[0]).kind not in "iu":
                raise InputError(
                    f"expected class numbers (uint8 or uint16), got {mask.dtypes[0]}",
                    code="IN-030",
                    title="Mask is not of an integer type",
                    where=str(path),
                    fix="threshold probabilities or take their arg-max first, and store the result as uint8",
                )
            yield mask


def _unreadable(path: Path, what: str) -> InputError:
    return InputError(
        what,
        code="IN-031",
        title="Mask cannot be used",
        where=str(path),
        fix="give a single-band GeoTIFF, complete and readable",
    )


def _source(mask: rasterio.DatasetReader, path: Path) -> MaskSource:
    crs = mask.crs.to_wkt() if mask.crs else None
    return MaskSource(
        name=str(path),
        scene=mask.tags().get(SCENE_TAG, path.stem),
        geobox=GeoBox(shape=mask.shape, transform=mask.transform, crs_wkt=crs),
        dtype=np.dtype(mask.dtypes[0]),
        bands=tuple(_reader(mask, band) for band in mask.indexes),
    )


def _reader(mask: rasterio.DatasetReader, band: int) -> Reader:
    """Function that reads a window of a band, 1-based."""
    has_mask_band = MaskFlags.per_dataset in mask.mask_flag_enums[band - 1]

    def read(window: Window) -> Cells:
        place = RasterioWindow(window.col_off, window.row_off, window.width, window.height)
        try:
            block = mask.read(band, window=place)
            valid = mask.read_masks(band, window=place) != 0 if has_mask_band else _valid(block, mask.nodata)
        except RasterioError as error:
            raise _unreadable(Path(mask.name), f"cannot be read at {window}: {error}") from error
        if block.dtype.itemsize >= 4 and (block > _MAX_VALUE).any():  # noqa: PLR2004 - bytes of int32 and up
            raise InputError(
                f"class number {block.max()} at {window}; expected at most {_MAX_VALUE}",
                code="IN-032",
                title="Class number too large",
                where=mask.name,
                fix="number the classes from 0",
            )
        return Cells(block, valid, valid)

    return read


def _valid(block: NDArray[np.generic], nodata: float | None) -> NDArray[np.bool_] | None:
    """True where a pixel has a class; None where all have."""
    return None if nodata is None else np.asarray(block != nodata)
