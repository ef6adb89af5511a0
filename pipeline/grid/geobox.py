"""Where pixels lie on Earth: shape, affine transform and CRS, as one frozen value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from affine import Affine

if TYPE_CHECKING:
    from pipeline.grid.window import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class GeoBox:
    """Shape `(y, x)` + affine `transform` (pixel -> CRS) + CRS.

    Pixel coordinates start at 0 on the outer edge of the upper left pixel; its centre is (0.5, 0.5).
    """

    shape: tuple[int, int]
    """(height, width), in pixels."""
    transform: Affine
    """(column, row) in pixels -> (x, y) in CRS units. May rotate, shear or point south-up."""
    crs_wkt: str | None
    """WKT of the CRS; None when the scene has none and the user allowed that."""

    @property
    def height(self) -> int:
        """Rows."""
        return self.shape[0]

    @property
    def width(self) -> int:
        """Columns."""
        return self.shape[1]

    @property
    def pixel_area(self) -> float:
        """Area of one pixel in squared CRS units, from the determinant (right for rotated and south-up grids)."""
        return abs(float(self.transform.determinant))

    @property
    def pixel_size(self) -> tuple[float, float]:
        """Lengths of a pixel's (row step, column step) in CRS units."""
        t = self.transform
        return math.hypot(t.b, t.e), math.hypot(t.a, t.d)

    def corners_xy(self) -> list[tuple[float, float]]:
        """The four outer corners in CRS units: upper left, upper right, lower right, lower left (as stored)."""
        height, width = self.shape
        return [self.transform @ (float(c), float(r)) for c, r in ((0, 0), (width, 0), (width, height), (0, height))]

    def window(self, window: Window) -> GeoBox:
        """The geobox of a window of this one."""
        shift = Affine.translation(window.col_off, window.row_off)
        return GeoBox(shape=window.shape, transform=self.transform @ shift, crs_wkt=self.crs_wkt)
