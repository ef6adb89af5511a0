"""A mask file to a set of polygons, tile by tile, in bounded memory: opening, checks, and the order of the steps."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import rasterio
from rasterio.enums import MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterioWindow

from pipeline.errors import InputError, UsageError
from pipeline.grid import GeoBox
from pipeline.vector.area import PixelAreas, mean_pixel_m
from pipeline.vector.faults import disk_errors
from pipeline.vector.join import iter_regions
from pipeline.vector.polygonset import PolygonSet
from pipeline.vector.regularize import Grid, Regularization, regularize_spool
from pipeline.vector.seams import Cells
from pipeline.vector.sieve import sieved
from pipeline.vector.simplify import Tolerance, simplify_spool
from pipeline.vector.spool import SpoolWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from pipeline.grid import Window

_CACHE_BYTES = 128 << 20
_MAX_VALUE = 2**31 - 1


def polygonize(
    mask_path: Path,
    *,
    scratch: Path,
    include: frozenset[int] | None = None,
    names: Mapping[int, str] | None = None,
    bands_are_classes: bool = False,
    min_area_m2: float = 0.0,
    sieve: bool = False,
    simplify: Tolerance | None = None,
    regularize: Regularization | None = None,
    tile_px: int = 1024,
    progress: Callable[[int, int], None] | None = None,
) -> PolygonSet:
    """Polygons of all 4-connected regions of a mask, as if it had been traced in one piece.

    Args:
        mask_path: GeoTIFF with one band of an integer type, or several with `bands_are_classes`; nodata pixels belong
            to no polygon.
        scratch: Folder for the spool; made if need be. The returned set removes what it put there.
        include: Classes to polygonize; None for all.
        names: Class value -> name.
        bands_are_classes: Each band holds one class, 1 where it is, as a mask with overlapping classes has them. Class
            0 is the first band.
        min_area_m2: Regions below this geodesic area are left out.
        sieve: Regions below the minimum area take the class of the neighbour with the longest shared border, all at
            once, instead of being left out. Where bands are classes, they have no neighbours and are left out.
        simplify: Corners whose triangle is smaller than the square of this are taken away, shared edges once for both
            sides; None leaves every pixel's edge.
        regularize: Polygons of these classes get straight walls and right angles where that keeps enough of what they
            cover; what touches them follows.
        tile_px: Side of the squares in which the mask is read: memory and speed, never the result.
        progress: Called after each step with (steps done, steps in all): two for each tile.

    Returns:
        A context manager over the polygons, in the order of their first pixels.

    Raises:
        UsageError: CF-031 and CF-034, a minimum area in m² or a tolerance in metres without a CRS; CF-032, an option
            out of range.
        InputError: IN-030, not an integer type; IN-031, unreadable or not one band; IN-032, a class number too large.
        ResourceError: RS-002, the disk with `scratch` is full; RS-006 and RS-007, more polygons than can be
            simplified, or put in order.
    """
    _check_options(min_area_m2, tile_px, simplify, regularize)
    with _open_mask(mask_path, many_bands=bands_are_classes) as mask:
        geobox = _geobox(mask)
        areas = PixelAreas.of(geobox)
        if min_area_m2 > 0 and areas is None:
            raise _no_crs_to_measure_in(mask_path, min_area_m2)
        tolerance_px = None if simplify is None else simplify.to_px(mean_pixel_m(areas, geobox.shape))
        tile_hw, readers = (tile_px, tile_px), _readers(mask, include, bands_are_classes=bands_are_classes)
        if sieve and areas is not None and not bands_are_classes:
            readers = [
                (sieved(read, geobox.shape, tile_hw=tile_hw, areas=areas, min_area_m2=min_area_m2), value)
                for read, value in readers
            ]
            min_area_m2 = 0.0  # what the sieve could not give away at once stays
        folder = _folder_in(scratch)
        try:
            nodes = tolerance_px is not None or regularize is not None
            spool = SpoolWriter(folder / "regions.arrow", geobox.shape, areas, min_area_m2, nodes=nodes)
            for number, (read, value) in enumerate(readers):
                advanced = _advanced(progress, number, len(readers))
                for regions in iter_regions(read, geobox.shape, tile_hw=tile_hw, nodes=nodes, progress=advanced):
                    spool.add(regions if value is None else regions.of_class(value))
            spool.close()
            path = spool.path
            if tolerance_px is not None:
                path = simplify_spool(path, folder / "simplified.arrow", tolerance_px, by_class=bands_are_classes)
            outcome = None
            if regularize is not None:
                target = folder / "regularized.arrow"
                outcome = regularize_spool(
                    spool.path, path, target, regularize,
                    grid=Grid.of(geobox), tolerance_px=tolerance_px or 0.0, by_class=bands_are_classes,
                )  # fmt: skip
                path = target
            return PolygonSet(
                folder,
                spool=path,
                geobox=geobox,
                names=names or {},
                areas=areas,
                on_grid=not nodes,
                regularized=outcome,
            )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _folder_in(scratch: Path) -> Path:
    with disk_errors(scratch):
        scratch.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="polygons-", dir=scratch))


def _no_crs_to_measure_in(mask_path: Path, min_area_m2: float) -> UsageError:
    return UsageError(
        f"a minimum area of {min_area_m2} m² was asked for, but the mask has no CRS to measure in",
        code="CF-031",
        title="Minimum area needs a CRS",
        where=str(mask_path),
        fix="give the mask a CRS, or leave the minimum area out",
    )


def _check_options(
    min_area_m2: float, tile_px: int, simplify: Tolerance | None, regularize: Regularization | None
) -> None:
    if regularize is not None and not 0 <= regularize.min_iou <= 1:
        raise UsageError(
            f"expected a least intersection over union from 0 to 1, got {regularize.min_iou}",
            code="CF-032",
            title="Option out of range",
            fix="give a share, such as 0.8",
        )
    if tile_px < 1 or not min_area_m2 >= 0 or (simplify is not None and not 0 < simplify.value < np.inf):
        raise UsageError(
            "expected a tile of at least 1 px, a minimum area of at least 0, and a tolerance above 0, got "
            f"{tile_px}, {min_area_m2} and {simplify}",
            code="CF-032",
            title="Option out of range",
            fix="give positive numbers",
        )


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


def _geobox(mask: rasterio.DatasetReader) -> GeoBox:
    crs = mask.crs.to_wkt() if mask.crs else None
    return GeoBox(shape=mask.shape, transform=mask.transform, crs_wkt=crs)


def _advanced(
    progress: Callable[[int, int], None] | None, number: int, count: int
) -> Callable[[int, int], None] | None:
    """Progress of one of several equal sweeps as that of all."""
    return None if progress is None else lambda done, total: progress(number * total + done, count * total)


def _readers(
    mask: rasterio.DatasetReader, include: frozenset[int] | None, *, bands_are_classes: bool
) -> list[tuple[Callable[[Window], Cells], int | None]]:
    """What reads the cells for each sweep over the mask, and the class of all of them where it is one."""
    if not bands_are_classes:
        return [(_reader(mask, 1, include), None)]
    wanted = range(mask.count) if include is None else sorted(include & set(range(mask.count)))
    return [(_reader(mask, value + 1, frozenset({1})), value) for value in wanted]


def _reader(mask: rasterio.DatasetReader, band: int, include: frozenset[int] | None) -> Callable[[Window], Cells]:
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
        if include is not None:
            chosen = np.isin(block, list(include))
            valid = chosen if valid is None else valid & chosen
        return Cells(block, valid)

    return read


def _valid(block: NDArray[np.generic], nodata: float | None) -> NDArray[np.bool_] | None:
    """True where a pixel has a class; None where all have."""
    return None if nodata is None else np.asarray(block != nodata)
