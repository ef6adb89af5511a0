"""Geodesic area of pixels, as whole numbers, so that sums are exact and independent of the order of adding.

The area of a pixel is taken from the authalic sphere (the sphere whose map from the ellipsoid keeps areas): half a
pixel to each side, projected to the sphere, spans a parallelogram. Poles and the antimeridian need no special case.
Snyder 1987, Map Projections: A Working Manual, eq. 3-11 to 3-18 (authalic latitude).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pyproj import CRS, Transformer

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.grid import GeoBox
    from pipeline.vector.rings import Ints

    Floats = NDArray[np.float64]
    Density = Callable[[Floats, Floats], Floats]

_MAX_CHANGE = 2e-4
"""Largest relative change of pixel area across a cell; the error is half of that at its rim, less in the mean."""
_MAX_CELLS = 4_000_000
_BASELINE_M = 100.0
"""Length over which derivatives are taken: long against rounding of coordinates, short against the Earth."""
_HEADROOM_BITS = 61


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelAreas:
    """Area per pixel, constant within cells that are anchored to the scene, in units of `unit_m2`."""

    cell_hw: tuple[int, int]
    """Height and width of a cell, in pixels."""
    cells: Ints
    """Area of one pixel of each cell in units, shape (cell row + 1, cell column + 1); the last ones are zero."""
    unit_m2: float
    """Square metres per unit: a power of two."""
    _above_left: Ints
    _row_left: Ints
    _column_above: Ints

    @classmethod
    def of(cls, geobox: GeoBox) -> PixelAreas | None:
        """Pixel areas of a scene on the ellipsoid of its own CRS; None without a CRS that is tied to the Earth."""
        density = _density(geobox)
        if density is None:
            return None
        density = _with_baseline(density, geobox)
        cell_hw = _cell_size(density, geobox.shape)
        x, y = (_centres(side, cell) for side, cell in zip(geobox.shape[::-1], cell_hw[::-1], strict=True))
        area = np.nan_to_num(density(*(a.ravel() for a in np.meshgrid(x, y))), posinf=0.0).reshape(len(y), len(x))
        total = float(area.max()) * len(y) * cell_hw[0] * len(x) * cell_hw[1]
        exponent = _HEADROOM_BITS - math.frexp(total)[1] if total else 0
        cells = np.zeros((len(y) + 1, len(x) + 1), np.int64)
        cells[:-1, :-1] = np.rint(np.ldexp(area, exponent))
        height, width = cell_hw
        return cls(
            cell_hw=cell_hw,
            cells=cells,
            unit_m2=math.ldexp(1.0, -exponent),
            _above_left=_exclusive_sum(_exclusive_sum(cells * (height * width), 0), 1),
            _row_left=_exclusive_sum(cells * width, 1),
            _column_above=_exclusive_sum(cells * height, 0),
        )

    @classmethod
    def counting(cls, shape: tuple[int, int]) -> PixelAreas:
        """Every pixel counts as one unit, of one square metre: sizes in pixels."""
        height, width = shape
        one = np.array([[1, 0], [0, 0]], np.int64)
        return cls(
            cell_hw=shape,
            cells=one,
            unit_m2=1.0,
            _above_left=_exclusive_sum(_exclusive_sum(one * (height * width), 0), 1),
            _row_left=_exclusive_sum(one * width, 1),
            _column_above=_exclusive_sum(one * height, 0),
        )

    def integral(self, x: Ints, y: Ints) -> Ints:
        """Area of all pixels left of `x` and above `y`, in units; for `rings.sum_inside`."""
        height, width = self.cell_hw
        i, j = y // height, x // width
        dy, dx = y - i * height, x - j * width
        area = self._above_left[i, j] + dy * self._row_left[i, j] + dx * self._column_above[i, j]
        return np.asarray(area + dy * dx * self.cells[i, j], np.int64)

    def to_m2(self, units: Ints) -> Floats:
        """Square metres; `unit_m2` is a power of two, so nothing is rounded below 2**53 units."""
        return np.asarray(units * self.unit_m2, np.float64)


def _exclusive_sum(values: Ints, axis: int) -> Ints:
    return np.asarray(np.cumsum(values, axis=axis) - values, np.int64)


def _centres(side: int, cell: int) -> Floats:
    """Centres of the cells along an axis, the last cell clipped to the scene."""
    starts = np.arange(0, side, cell)
    return (starts + np.minimum(starts + cell, side)) / 2


def mean_pixel_m(areas: PixelAreas | None, shape: tuple[int, int]) -> float | None:
    """Side of a square as large as the mean pixel of a scene (height, width), in metres; None where `areas` is."""
    if areas is None:
        return None
    height, width = shape
    x, y = np.array([0, width, 0, width]), np.array([0, 0, height, height])
    total = float(areas.to_m2(areas.integral(x, y)) @ np.array([1, -1, -1, 1]))
    return math.sqrt(max(total, 0.0) / (height * width)) or None


def _density(geobox: GeoBox) -> Density | None:
    """Function of (x, y, baseline in pixels): square metres per pixel there."""
    crs = CRS.from_wkt(geobox.crs_wkt) if geobox.crs_wkt else None
    geodetic = crs.geodetic_crs if crs is not None else None
    if crs is None or geodetic is None or geodetic.ellipsoid is None:
        return None
    to_sphere = _authalic(geodetic, geobox, Transformer.from_crs(crs.to_2d(), geodetic.to_2d(), always_xy=True))

    def density(x: Floats, y: Floats, baseline: float = 1.0) -> Floats:
        half = baseline / 2
        along_x = to_sphere(x + half, y) - to_sphere(x - half, y)
        along_y = to_sphere(x, y + half) - to_sphere(x, y - half)
        return np.asarray(np.linalg.norm(np.cross(along_x, along_y), axis=-1) / baseline**2)

    return density


def _authalic(geodetic: CRS, geobox: GeoBox, transformer: Transformer) -> Callable[[Floats, Floats], Floats]:
    """Function of pixel coordinates: points on the authalic sphere, shape (point, 3), in metres."""
    ellipsoid = geodetic.ellipsoid
    assert ellipsoid is not None  # checked by the caller
    a, b = ellipsoid.semi_major_metre, ellipsoid.semi_minor_metre
    e2 = 1 - (b / a) ** 2
    e = math.sqrt(max(e2, 0.0))
    to_radians = geodetic.axis_info[0].unit_conversion_factor
    t = geobox.transform

    def q(sin: Floats) -> Floats:
        if e == 0:
            return 2 * sin
        return (1 - e2) * (sin / (1 - e2 * sin**2) + np.arctanh(e * sin) / e)

    q_pole = float(q(np.array([1.0]))[0])
    radius = a * math.sqrt(q_pole / 2)

    def to_sphere(x: Floats, y: Floats) -> Floats:
        lon, lat = transformer.transform(t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f)
        lon, lat = np.asarray(lon) * to_radians, np.asarray(lat) * to_radians
        lat = np.where(np.isfinite(lat), lat, np.nan)  # off the Earth, as at the rim of a full disc
        lon = np.where(np.isfinite(lon), lon, np.nan)
        sin = np.clip(q(np.sin(lat)) / q_pole, -1, 1)
        cos = np.copysign(np.sqrt((1 - sin) * (1 + sin)), np.cos(lat))  # half a pixel beyond a pole goes on there
        return radius * np.stack([cos * np.cos(lon), cos * np.sin(lon), sin], axis=-1)

    return to_sphere


def _with_baseline(density: Callable[..., Floats], geobox: GeoBox) -> Density:
    """The same function with a baseline of whole pixels that suits the scene."""
    middle = np.array([geobox.width / 2]), np.array([geobox.height / 2])
    side_m = math.sqrt(float(np.nan_to_num(density(*middle)[0], posinf=0.0)))
    baseline = max(1.0, round(_BASELINE_M / side_m)) if side_m else 1.0
    return lambda x, y: density(x, y, min(baseline, float(max(geobox.shape))))


def _cell_size(density: Density, shape_hw: tuple[int, int]) -> tuple[int, int]:
    """Largest cells, powers of two, across which the pixel area hardly changes."""
    size = [1 << max((max(side, 1) // 8).bit_length() - 1, 0) for side in shape_hw]
    for axis in (0, 1):
        while size[axis] > 1 and _change(density, shape_hw, size, axis) > _MAX_CHANGE:
            size[axis] //= 2
            if math.prod(-(-side // s) for side, s in zip(shape_hw, size, strict=True)) > _MAX_CELLS:
                size[axis] *= 2
                break
    return size[0], size[1]


def _change(density: Density, shape_hw: tuple[int, int], size: list[int], axis: int) -> float:
    """Largest relative change of density from one cell border to the next along `axis`."""
    other = np.linspace(0, shape_hw[1 - axis], 9)
    nodes = np.append(np.arange(0, shape_hw[axis], size[axis]), shape_hw[axis]).astype(float)
    along, across = np.meshgrid(nodes, other, indexing="ij")
    x, y = (across, along) if axis == 0 else (along, across)
    values = density(x.ravel(), y.ravel()).reshape(along.shape)
    lower, upper = values[:-1], values[1:]
    scale = np.maximum(lower, upper)
    # A pixel area near zero (the rim of the projection, a pole of a geographic grid) would ask for ever smaller cells.
    counts = np.isfinite(scale) & (scale > 1e-6 * np.nanmax(values, initial=0.0))
    return float(np.max(np.abs(upper - lower)[counts] / scale[counts], initial=0.0))
