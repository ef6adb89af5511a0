"""Which pixels the mask has: those that the network computed, or the scene's own.

Classes come onto the scene's own pixels by nearest neighbour: a pixel gets the class of the computed one that its
centre lies in. That depends on positions alone, so any window of the result is the same whatever it is asked with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.grid import Window, iter_windows
from pipeline.store import TileRecord, sha256_array

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from pipeline.grid import GeoBox
    from pipeline.legend import Legend
    from pipeline.run.plan import Plan
    from pipeline.scene.placement import Placement
    from pipeline.store import TileStore

_TILE_PX = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskSource:
    """What masks are written from: pixels, and tiles of them with what is recorded of each."""

    geobox: GeoBox
    tile_hw: tuple[int, int]
    """Of tiles, in pixels; the last ones are smaller."""
    tiles: tuple[Window, ...]
    """In the order of their indices."""
    records: Mapping[int, TileRecord]
    """Of all tiles."""
    read_mask: Callable[[Window], NDArray[Any]]
    """Classes of a window, `(y, x)`, or `(class, y, x)` where they overlap."""
    read_probabilities: Callable[[Window], NDArray[np.uint8]]
    """Probabilities of a window, `(class, y, x)` uint8."""


def as_computed(geobox: GeoBox, plan: Plan, store: TileStore, records: Mapping[int, TileRecord]) -> MaskSource:
    """The pixels of the store."""
    return MaskSource(
        geobox=geobox,
        tile_hw=plan.tiling.tile_hw,
        tiles=tuple(tile.core for tile in plan.tiling.tiles()),
        records=records,
        read_mask=store.read_mask,
        read_probabilities=store.read_probabilities,
    )


def on_own_pixels(
    computed: MaskSource, own: GeoBox, legend: Legend, plan: Plan, *, check: Callable[[], None] = lambda: None
) -> MaskSource:
    """The same on the scene's own pixels; reads all of it once, for what is recorded of its tiles.

    Args:
        computed: As the network computed it.
        own: The scene's own grid, in the same CRS.
        legend: Classes.
        plan: Of the run.
        check: Called at each tile; raises when the run is to stop.
    """
    from pipeline.scene.placement import place  # noqa: PLC0415 - for the few that need it

    placement = place(own, computed.geobox)
    shape = computed.geobox.shape
    read_mask = _nearest(computed.read_mask, placement, shape, fill=legend.nodata)
    read_probabilities = _nearest(computed.read_probabilities, placement, shape, fill=255)
    tiles = tuple(iter_windows(own.shape, (_TILE_PX, _TILE_PX)))
    records = {}
    for index, window in enumerate(tiles):
        check()
        probabilities = read_probabilities(window) if plan.probabilities else None
        records[index] = _record(index, read_mask(window), probabilities, legend, plan.digest)
    return MaskSource(
        geobox=own,
        tile_hw=(_TILE_PX, _TILE_PX),
        tiles=tiles,
        records=records,
        read_mask=read_mask,
        read_probabilities=read_probabilities,
    )


def _record(
    index: int, mask: NDArray[Any], probabilities: NDArray[np.uint8] | None, legend: Legend, plan_id: str
) -> TileRecord:
    valid_px = int(np.count_nonzero(legend.is_valid(mask)))
    return TileRecord(
        tile=index,
        kind="written" if valid_px else "empty",
        mask_sha256=sha256_array(mask) if valid_px else None,
        prob_sha256=sha256_array(probabilities) if valid_px and probabilities is not None else None,
        plan_id=plan_id,
        seconds=0.0,
        valid_px=valid_px,
        class_px=tuple(int(n) for n in legend.class_px(mask)),
    )


def _nearest(
    read: Callable[[Window], NDArray[Any]], placement: Placement, shape: tuple[int, int], *, fill: int
) -> Callable[[Window], NDArray[Any]]:
    """Reads windows of the scene's own grid from a reader of the computed one."""

    def window_of(window: Window) -> NDArray[Any]:
        from pipeline.scene.resample import nearest  # noqa: PLC0415 - loads Numba

        span = placement.span(window)
        assert span is not None, "both grids have one CRS"
        outer = _around(span, shape)
        data = read(outer)
        rows, cols = placement.positions(window)
        layers = data if data.ndim == 3 else data[np.newaxis]  # noqa: PLR2004 - classes that overlap, probabilities
        values, inside = nearest(layers, np.broadcast_to(np.True_, layers.shape), outer, rows, cols)
        values = np.where(inside, values, values.dtype.type(fill))
        return values if data.ndim == 3 else values[0]  # noqa: PLR2004

    return window_of


def _around(span: tuple[float, float, float, float], shape: tuple[int, int]) -> Window:
    """Whole pixels of a grid of this shape around positions from top to bottom and left to right."""
    top, bottom, left, right = (int(np.floor(v)) for v in span)
    whole = Window(row_off=0, col_off=0, height=shape[0], width=shape[1])
    return Window.from_bounds(top - 1, left - 1, bottom + 2, right + 2).intersect(whole)
