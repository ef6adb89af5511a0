"""Several masks as one: which of them fit together, and what lies in each window. Opens no files.

Masks are laid on one grid in the order given. Where they overlap, the first that has a class at a pixel gives it, so
that nothing is counted twice and a region that goes on in the next mask stays one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from rasterio.crs import CRS

from pipeline.errors import InputError
from pipeline.grid import GeoBox, Window
from pipeline.scene.crs import check_transform, crs_label, same_crs
from pipeline.vector.pieces import Cells

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Reader = Callable[[Window], Cells]

_TOLERANCE_PX = 1e-3
"""How far a pixel may lie from its place in the grid of the first mask."""
_MOST_EMPTY_PX = 2**36
"""Pixels of no mask that are walked over: 5 minutes and 2 GB, at 4 ms and 32 KB for a tile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskSource:
    """What polygons are traced from: one mask, or several as one."""

    name: str
    """For messages: path of the mask, or of the first."""
    scene: str | None
    """What it was made of: the scene where the mask tells, else its own name; None where several differ."""
    geobox: GeoBox
    dtype: np.dtype[Any]
    """Any integer type."""
    bands: tuple[Reader, ...]
    """For each band what reads a window of it; cells are wanted where they are not nodata."""


def mosaic(masks: Sequence[MaskSource]) -> MaskSource:
    """Masks on the smallest grid that holds them all; a single one as it is.

    Args:
        masks: At least one, in the order of precedence.

    Raises:
        InputError: IN-016, a transform places no pixels; IN-033, they do not share CRS and grid; IN-034, nor type and
            number of bands; IN-035, they lie too far apart.

    Law: reading it gives what `rasterio.merge` with `method="first"` gives (properties/test_vector_mosaic.py).
    """
    first = masks[0]
    if len(masks) == 1:
        return first
    places = [_place(mask, first) for mask in masks]
    whole = _around(places)
    _check_gaps(masks, whole)
    windows = [_seen_from(whole, place) for place in places]
    dtype = np.result_type(*(mask.dtype for mask in masks))
    readers = zip(*(mask.bands for mask in masks), strict=True)
    bands = tuple(_Mosaic(tuple(zip(windows, band, strict=True)), dtype) for band in readers)
    scene = first.scene if all(mask.scene == first.scene for mask in masks) else None
    return MaskSource(name=first.name, scene=scene, geobox=first.geobox.window(whole), dtype=dtype, bands=bands)


@dataclass(frozen=True, slots=True)
class _Mosaic:
    """Reads a band of the mosaic."""

    layers: tuple[tuple[Window, Reader], ...]
    """Where each mask lies, and what reads it."""
    dtype: np.dtype[Any]

    def __call__(self, window: Window) -> Cells:
        """Cells of a window; masks that add no pixel to it are not read."""
        values, found = np.zeros(window.shape, self.dtype), np.zeros(window.shape, np.bool_)
        for place, read in self.layers:
            part = place.intersect(window)
            if not part.num_pixels:
                continue
            at = part.slices_in(window)
            missing = ~found[at]
            if not missing.any():
                continue
            cells = read(_seen_from(place, part))
            new = missing if cells.wanted is None else missing & cells.wanted
            np.copyto(values[at], cells.values, where=new)
            found[at] |= new
        return Cells(values, found, found)


def _seen_from(outer: Window, window: Window) -> Window:
    """The same pixels, counted from the upper left one of `outer`."""
    rows, cols = window.slices_in(outer)
    return Window.from_bounds(rows.start, cols.start, rows.stop, cols.stop)


def _around(windows: list[Window]) -> Window:
    """The smallest window that covers all of these."""
    return Window.from_bounds(
        min(w.row_off for w in windows),
        min(w.col_off for w in windows),
        max(w.row_stop for w in windows),
        max(w.col_stop for w in windows),
    )


def _place(mask: MaskSource, first: MaskSource) -> Window:
    """Where a mask lies in the grid of the first one."""
    _check_bands(mask, first)
    _check_crs(mask, first)
    box, other = mask.geobox, first.geobox
    check_transform(box.transform, where=mask.name)
    relative = ~other.transform @ box.transform
    _check_pixels(mask, first, relative)
    col, row = round(relative.c), round(relative.f)
    if max(abs(relative.c - col), abs(relative.f - row)) > _TOLERANCE_PX:
        raise _off_grid(
            mask,
            f"{mask.name} begins {relative.c:.3f} columns and {relative.f:.3f} rows from {first.name}, expected whole "
            "numbers",
            fix=f"resample it to the pixels of {first.name} with `gdalwarp -r near`",
        )
    return Window(row_off=row, col_off=col, height=box.height, width=box.width)


def _check_crs(mask: MaskSource, first: MaskSource) -> None:
    one, other = (CRS.from_wkt(m.geobox.crs_wkt) if m.geobox.crs_wkt else None for m in (mask, first))
    if one is None and mask.geobox.transform == Affine.identity():
        raise _off_grid(
            mask,
            f"{mask.name} has no georeference, expected one: nothing says where it lies beside the other masks",
            fix="give it CRS and corners with `gdal_edit.py -a_srs EPSG:… -a_ullr …`",
        )
    if (one is None) != (other is None) or (one and not same_crs(one, other)):
        names = [crs_label(crs) if crs else "no CRS" for crs in (one, other)]
        raise _off_grid(
            mask,
            f"{mask.name} has {names[0]}, {first.name} has {names[1]}; expected the same CRS",
            fix=f"warp it to the grid of {first.name} with `gdalwarp -r near`",
        )


def _check_pixels(mask: MaskSource, first: MaskSource, relative: Affine) -> None:
    """Refuse pixels of another size or orientation: those that drift away from the grid towards the far corners."""
    height, width = mask.geobox.shape
    drift = (
        abs(part)
        for col, row in ((width, 0), (0, height), (width, height))
        for part in (
            (relative.a - 1) * col + relative.b * row,
            relative.d * col + (relative.e - 1) * row,
        )
    )
    if max(drift) > _TOLERANCE_PX:
        raise _off_grid(
            mask,
            f"{mask.name} has {_steps(mask)}, {first.name} has {_steps(first)}; expected the same pixel size and "
            "orientation",
            fix=f"resample it to the pixels of {first.name} with `gdalwarp -r near`",
        )


def _steps(mask: MaskSource) -> str:
    t = mask.geobox.transform
    return f"steps of ({t.a:.12g}, {t.d:.12g}) per column and ({t.b:.12g}, {t.e:.12g}) per row"


def _off_grid(mask: MaskSource, what: str, *, fix: str) -> InputError:
    return InputError(what, code="IN-033", title="Masks do not share one grid", where=mask.name, fix=fix)


def _check_bands(mask: MaskSource, first: MaskSource) -> None:
    if (mask.dtype.kind, len(mask.bands)) != (first.dtype.kind, len(first.bands)):
        raise InputError(
            f"{mask.name} has {len(mask.bands)} x {mask.dtype}, {first.name} has {len(first.bands)} x {first.dtype}; "
            "expected as many bands, and all signed or all unsigned",
            code="IN-034",
            title="Masks do not have the same classes",
            where=mask.name,
            fix="give masks that were made alike, or vectorize them one by one",
        )


def _check_gaps(masks: Sequence[MaskSource], whole: Window) -> None:
    empty = whole.num_pixels - sum(mask.geobox.height * mask.geobox.width for mask in masks)
    if empty > _MOST_EMPTY_PX:
        raise InputError(
            f"the masks lie in {whole.height} x {whole.width} pixels, of which they leave {empty:,} empty; expected at "
            f"most {_MOST_EMPTY_PX:,}",
            code="IN-035",
            title="Masks lie too far apart",
            where=masks[0].name,
            fix="check their georeference, or vectorize those that lie together",
        )
