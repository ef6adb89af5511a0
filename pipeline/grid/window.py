"""Whole-pixel rectangles. Pure integers: no torch, dask or rasterio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Window:
    """Rectangle of whole pixels; rows are `row_off <= row < row_off + height`, columns likewise."""

    row_off: int
    """First row, from the top edge. Negative, or past the bottom, before clipping to the scene."""
    col_off: int
    """First column, from the left edge."""
    height: int
    """Rows, in pixels. 0 only for the empty intersection."""
    width: int
    """Columns, in pixels."""

    def __post_init__(self) -> None:
        if self.height < 0 or self.width < 0:
            msg = f"a window has height and width >= 0, got {self.height} x {self.width}"
            raise ValueError(msg)

    @classmethod
    def from_bounds(cls, row_off: int, col_off: int, row_stop: int, col_stop: int) -> Window:
        """Window from half-open bounds; empty where a stop lies before its offset."""
        return cls(
            row_off=row_off,
            col_off=col_off,
            height=max(row_stop - row_off, 0),
            width=max(col_stop - col_off, 0),
        )

    @property
    def row_stop(self) -> int:
        """First row below the window."""
        return self.row_off + self.height

    @property
    def col_stop(self) -> int:
        """First column right of the window."""
        return self.col_off + self.width

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    @property
    def num_pixels(self) -> int:
        """Pixels covered."""
        return self.height * self.width

    def intersect(self, other: Window) -> Window:
        """The pixels that both cover; height or width 0 when there are none."""
        return Window.from_bounds(
            max(self.row_off, other.row_off),
            max(self.col_off, other.col_off),
            min(self.row_stop, other.row_stop),
            min(self.col_stop, other.col_stop),
        )

    def expand(self, by_px: int) -> Window:
        """The window grown by `by_px` pixels on all four sides."""
        return Window(
            row_off=self.row_off - by_px,
            col_off=self.col_off - by_px,
            height=self.height + 2 * by_px,
            width=self.width + 2 * by_px,
        )

    def slices_in(self, outer: Window) -> tuple[slice, slice]:
        """Where this window lies inside an array that covers `outer`, as (rows, columns)."""
        return (
            slice(self.row_off - outer.row_off, self.row_stop - outer.row_off),
            slice(self.col_off - outer.col_off, self.col_stop - outer.col_off),
        )

    def __str__(self) -> str:
        return f"rows {self.row_off}-{self.row_stop}, columns {self.col_off}-{self.col_stop}"


def iter_windows(shape_hw: tuple[int, int], step_hw: tuple[int, int]) -> Iterator[Window]:
    """Windows of `step_hw` that cover `shape_hw` once, row by row, the last ones clipped."""
    height, width = shape_hw
    yield from iter_parts(Window(row_off=0, col_off=0, height=height, width=width), step_hw)


def iter_parts(area: Window, step_hw: tuple[int, int]) -> Iterator[Window]:
    """Windows of `step_hw` that cover an area once from its upper left corner on, row by row, the last ones clipped."""
    for row in range(area.row_off, area.row_stop, step_hw[0]):
        for col in range(area.col_off, area.col_stop, step_hw[1]):
            yield Window.from_bounds(
                row, col, min(row + step_hw[0], area.row_stop), min(col + step_hw[1], area.col_stop)
            )
