"""A scene made of sources: bands from several files, files side by side, or one file on another grid.

Each source is a scene of its own, placed on one grid and read there window by window; nothing is written in between.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.grid import Window
from pipeline.scene.base import Band, Block, assert_inside, make_block, shared_nodata
from pipeline.scene.placement import AlongAxes, Georeference, Kernel, Placement, place
from pipeline.scene.raster import identify
from pipeline.scene.select import select_bands
from pipeline.scene.validity import as_stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.grid import GeoBox
    from pipeline.scene.base import Json, Scene

_MOST_SOURCE_PX = 2**22
"""Pixels of a source read at once: a coarse target needs many of them, so its windows are read in strips."""
_SAME_SIZE = 0.05
"""Sources whose pixels differ by less than this share from the target's count as neither coarser nor finer."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """One source, and what of it goes where."""

    scene: Scene
    """The source."""
    numbers: tuple[int, ...]
    """Band of the whole that each of the source's bands is, 1-based."""
    geobox: GeoBox | None = None
    """Where the source lies, in place of what it says itself: a corner rounded to whole pixels of its neighbours."""
    reference: Georeference | None = None
    """What places the source where its transform does not."""
    placement: Placement | None = None
    """Of the grid in it; set by `on_grid`."""
    kernel: Kernel = "nearest"
    """How values between pixels are made; set by `on_grid`."""

    def on_grid(self, geobox: GeoBox, resampling: str) -> Part:
        """The same part, placed."""
        placement = place(geobox, self.geobox or self.scene.geobox, reference=self.reference)
        return replace(self, placement=placement, kernel=_kernel(placement, resampling))

    @property
    def offset(self) -> tuple[int, int] | None:
        """(row, column) of the grid's origin in the source where pixels coincide; None where they do not."""
        return self.placement.offset() if isinstance(self.placement, AlongAxes) else None

    def source_window(self, window: Window) -> Window | None:
        """What of the source is read for a window of the grid; None where the source does not reach."""
        assert self.placement is not None
        if self.offset is not None:
            row_off, col_off = window.row_off + self.offset[0], window.col_off + self.offset[1]
            found = replace(window, row_off=row_off, col_off=col_off)
        else:
            from pipeline.scene.resample import reach  # noqa: PLC0415 - Numba, for those who need it

            span = self.placement.span(window)
            if span is None:
                return None
            down, along = (reach(self.kernel, scale) for scale in self.placement.scale_yx)
            low_row, high_row, low_col, high_col = (math.floor(position) for position in span)
            found = Window.from_bounds(low_row - down, low_col - along, high_row + down + 1, high_col + along + 1)
        found = found.intersect(_whole(self.scene))
        return found if found.num_pixels else None

    def describe(self) -> dict[str, Json]:
        """How it is read, for people."""
        assert self.placement is not None
        plain = self.offset is not None
        down, along = self.placement.scale_yx
        return {
            "source": self.scene.name,
            "bands": list(self.numbers),
            "pixels_per_pixel": [round(down, 6), round(along, 6)],
            "resampling": "none" if plain else self.kernel,
            "through": "axes" if isinstance(self.placement, AlongAxes) else "coordinates",
        }


def _kernel(placement: Placement, resampling: str) -> Kernel:
    if resampling != "auto":
        return resampling  # type: ignore[return-value]  # checked where it is given
    return "average" if max(placement.scale_yx) > 1 + _SAME_SIZE else "bilinear"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourcesScene:
    """Sources on one grid as one scene: small, frozen, picklable."""

    name: str
    """What people call it."""
    path: str | None
    """Where it was found: a folder, an item; None where there is no one place."""
    kind: str
    """What it is: "STAC item", "mosaic", …"""
    parts: tuple[Part, ...]
    """All sources; where several have a band at a pixel, the first with a usable value gives it."""
    all_bands: tuple[Band, ...]
    """Bands of the whole; `index` is their number in it."""
    bands: tuple[Band, ...]
    """The selected ones."""
    geobox: GeoBox
    """The grid."""
    resampling: str = "auto"
    """`auto` or a kernel."""
    native: Callable[[Sequence[Part]], GeoBox] | None = None
    """What chooses the grid from the parts that are read; None where it was given."""
    own: GeoBox | None = None
    """The grid that it had before other pixels were wished for; None where they were not."""
    warnings: tuple[str, ...] = ()
    """What a person should know, one sentence each."""
    layers: Mapping[str, str] = field(default_factory=dict)
    """Layers that came with it and hold no measurements, by name in lower case -> their file."""
    facts: Mapping[str, Json] = field(default_factory=dict)
    """What else was found out about it, for `inspect`."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest type that holds the values of all parts that are read."""
        return np.result_type(*{part.scene.dtype for part in self.needed()})

    @property
    def nodata(self) -> float | None:
        """Nodata shared by all selected bands; None when there is none or they differ."""
        return shared_nodata(self.bands)

    def select(self, bands: Sequence[str | int]) -> SourcesScene:
        """The same sources with other bands; a grid that was not given is then that of the finest one left.

        Raises:
            InputError: IN-011, unknown or ambiguous band.
        """
        chosen = replace(self, bands=select_bands(self.all_bands, bands, where=self.path or self.name))
        return chosen if self.native is None else chosen.on_grid(self.native(chosen.needed()))

    def on_grid(self, geobox: GeoBox, *, resampling: str | None = None, fixed: bool = False) -> SourcesScene:
        """The same sources on another grid.

        Args:
            geobox: The grid.
            resampling: Kernel, `auto`, or None for what it was.
            fixed: Whether it stays when other bands are selected.
        """
        chosen = self.resampling if resampling is None else resampling
        parts = tuple(part.on_grid(geobox, chosen) for part in self.parts)
        native = None if fixed else self.native
        return replace(self, parts=parts, geobox=geobox, resampling=chosen, native=native)

    def read(self, window: Window) -> NDArray[Any]:
        """Values of a window on the grid, shape `(band, y, x)`: nodata or 0 where none is usable."""
        return self.read_block(window).data

    def read_block(self, window: Window) -> Block:
        """Values of a window on the grid with their validity; raises as the sources do.

        Which pixels are usable is decided in the sources, before resampling. Where no source has a pixel, it is not.
        """
        assert_inside(window, self.geobox)
        dtype = self.dtype
        data = np.empty((len(self.bands), *window.shape), dtype)
        for plane, band in zip(data, self.bands, strict=True):
            empty = as_stored(band.nodata, dtype)
            plane[:] = 0 if empty is None else empty
        valid = np.zeros(data.shape, np.bool_)
        for part, slots in self.wanted():
            for strip in _strips(part, window):
                _add(part, strip, slots, data, valid, window)
        return make_block(data, valid)

    def fingerprint(self) -> dict[str, Json]:
        """Identity of every source as it is now, and how they are put together; raises as the sources do."""
        t = self.geobox.transform
        sources = {f"source {k + 1}": part.scene.fingerprint() for k, part in enumerate(self.needed())}
        return {
            "file": self.name,
            "kind": self.kind,
            "grid": [*self.geobox.shape, *t[:6], self.geobox.crs_wkt],
            "kernels": [part.describe()["resampling"] for part in self.needed()],
            "bands": [band.index for band in self.bands],
            **sources,
            **{f"heights {dem}": identify(dem).digest for dem in self._dems()},
        }

    def _dems(self) -> list[str]:
        found = {part.reference.dem for part in self.needed() if part.reference is not None}
        return sorted(dem for dem in found if dem is not None)

    def describe(self) -> dict[str, Json]:
        """What is read from where, for `inspect`."""
        sources: list[Json] = [part.describe() for part in self.needed()]
        return {"kind": self.kind, "sources": sources, "layers": sorted(self.layers), **self.facts}

    def needed(self) -> list[Part]:
        """Parts with a band that is selected."""
        numbers = {band.index for band in self.bands}
        return [part for part in self.parts if numbers & set(part.numbers)]

    def wanted(self) -> Iterator[tuple[Part, list[int]]]:
        """Parts cut down to the bands that are read, and the places of these among the selected ones."""
        for part in self.needed():
            by_number = dict(zip(part.numbers, part.scene.bands, strict=True))
            slots = [k for k, band in enumerate(self.bands) if band.index in by_number]
            own = [by_number[self.bands[k].index].index for k in slots]
            yield replace(part, scene=part.scene.select(own)), slots


def _strips(part: Part, window: Window) -> Iterator[Window]:
    """The window in rows of parts that need no more of the source than is read at once."""
    assert part.placement is not None
    down, along = (max(scale, 1.0) for scale in part.placement.scale_yx)
    rows = max(1, int(_MOST_SOURCE_PX / (window.width * down * along)))
    for row in range(window.row_off, window.row_stop, rows):
        yield Window.from_bounds(row, window.col_off, min(row + rows, window.row_stop), window.col_stop)


def _add(
    part: Part, strip: Window, slots: list[int], data: NDArray[Any], valid: NDArray[np.bool_], window: Window
) -> None:
    """Fill what is still missing of a strip."""
    found = _read_part(part, strip)
    if found is None:
        return
    values, usable, where = found
    rows, cols = where.slices_in(window)
    for k, slot in enumerate(slots):
        new = usable[k] & ~valid[slot, rows, cols]
        np.copyto(data[slot, rows, cols], values[k], where=new)
        valid[slot, rows, cols] |= new


def _read_part(part: Part, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_], Window] | None:
    """Values and validity of a window as far as the source reaches, and the window that they are of; None: nowhere."""
    assert part.placement is not None
    outer = part.source_window(window)
    if outer is None:
        return None
    block = part.scene.read_block(outer)
    if part.offset is not None:  # pixels coincide
        row_off, col_off = outer.row_off - part.offset[0], outer.col_off - part.offset[1]
        return block.data, block.valid, replace(outer, row_off=row_off, col_off=col_off)
    from pipeline.scene.resample import nearest, resampled  # noqa: PLC0415 - Numba, for those who need it

    rows, cols = part.placement.positions(window)
    if part.kernel == "nearest":
        return *nearest(block.data, block.valid, outer, rows, cols), window
    scale = part.placement.scale_yx
    return *resampled(block.data, block.valid, outer, rows, cols, kernel=part.kernel, scale_yx=scale), window


def _whole(scene: Scene) -> Window:
    return Window(row_off=0, col_off=0, height=scene.geobox.height, width=scene.geobox.width)
