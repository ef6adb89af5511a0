"""Distances as people write them, in pixels or metres of PRED."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, NamedTuple

import pyproj

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.grid import GeoBox


_TRUE_TO_SCALE = 2e-3


class Distance(NamedTuple):
    """A distance on PRED's grid."""

    value: float
    unit: str
    """`px` or `m`."""
    pixel_hw: tuple[float, float]
    """Height and width of a pixel in this unit; in metres those at the scene's centre."""

    @property
    def px(self) -> float:
        """In pixels of mean size."""
        return self.value / math.sqrt(self.pixel_hw[0] * self.pixel_hw[1])

    def __str__(self) -> str:
        return f"{self.value:g} {self.unit}"


def parse_distance(text: str | float, geobox: GeoBox, *, option: str, most_px: float) -> Distance:
    """`2 px`, `5 m`, or a number of pixels.

    Raises:
        UsageError: EV-009, it is no distance, less than a pixel, too many pixels, or in metres without a CRS.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(px|m)?\s*", str(text))
    if match is None:
        raise _wrong(f"{option} {text!r} is no distance", f'write {option} "2 px" or {option} "5 m"')
    value, unit = float(match[1]), match[2] or "px"
    if unit == "m":
        size = pixel_m(geobox)
        if size is None:
            raise _wrong(
                f"{option} {text!r}: PRED has no CRS to measure metres in", "give it in pixels, such as `2 px`"
            )
    distance = Distance(value, unit, (1.0, 1.0) if unit == "px" else size)  # type: ignore[arg-type]
    if not value >= max(distance.pixel_hw) or distance.px > most_px:
        raise _wrong(f"{option} {text!r} is {distance.px:.3g} px; expected 1 to {most_px:g}", "choose one in between")
    return distance


def pixel_m(geobox: GeoBox) -> tuple[float, float] | None:
    """Height and width of the pixel at the scene's centre in metres on the ellipsoid; None without a CRS.

    Projections true to scale within a fifth of a percent, such as UTM, are taken at their word: 20 m are 2 px of 10 m.
    """
    if geobox.crs_wkt is None:
        return None
    crs = pyproj.CRS.from_wkt(geobox.crs_wkt)
    geod, degrees = crs.get_geod(), crs.geodetic_crs
    if geod is None or degrees is None:
        return None
    to_degrees = pyproj.Transformer.from_crs(crs, degrees, always_xy=True)
    row, col = geobox.height / 2, geobox.width / 2
    here, below, right = (geobox.transform @ at for at in ((col, row), (col, row + 1), (col + 1, row)))
    lon, lat = to_degrees.transform([here[0], below[0], right[0]], [here[1], below[1], right[1]])
    _, _, height = geod.inv(lon[0], lat[0], lon[1], lat[1])
    _, _, width = geod.inv(lon[0], lat[0], lon[2], lat[2])
    if not (height > 0 and width > 0):
        return None
    unit = crs.axis_info[0].unit_conversion_factor if crs.is_projected else 0.0
    nominal = (geobox.pixel_size[0] * unit, geobox.pixel_size[1] * unit)
    true = (float(height), float(width))
    return nominal if all(abs(n / t - 1) < _TRUE_TO_SCALE for n, t in zip(nominal, true, strict=True)) else true


def _wrong(what: str, fix: str) -> UsageError:
    return UsageError(what, code="EV-009", title="Distance does not fit", fix=fix)
