"""Length of outlines on the ellipsoid, from the lengths of a pixel's sides, which change slowly over a scene."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pyproj import CRS, Transformer
from scipy import ndimage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.grid import GeoBox
    from pipeline.vector.rings import Rings

    Floats = NDArray[np.float64]

_NODES = 129
"""Along each axis. Between them lengths are interpolated: on a global grid of longitude and latitude that is off by
1e-4, within a scene of a few hundred kilometres by 1e-8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelSides:
    """Steps by one pixel along x and along y on a grid of nodes: their squared lengths and scalar product, in m²."""

    spacing_yx: tuple[float, float]
    """Pixels from one node to the next."""
    products: Floats
    """Shape (3, node row, node column): x with x, y with y, x with y."""

    @classmethod
    def of(cls, geobox: GeoBox) -> PixelSides | None:
        """Those of a scene on the ellipsoid of its own CRS; None without a CRS that is tied to the Earth."""
        crs = CRS.from_wkt(geobox.crs_wkt) if geobox.crs_wkt else None
        geodetic = crs.geodetic_crs if crs is not None else None
        if crs is None or geodetic is None or geodetic.ellipsoid is None:
            return None
        geod = geodetic.get_geod()
        assert geod is not None
        transformer = Transformer.from_crs(crs.to_2d(), geodetic.to_2d(), always_xy=True)
        to_degrees = np.degrees(geodetic.axis_info[0].unit_conversion_factor)
        t = geobox.transform

        def lonlat(x: Floats, y: Floats) -> tuple[Floats, Floats]:
            lon, lat = transformer.transform(t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f)
            return np.asarray(lon) * to_degrees, np.asarray(lat) * to_degrees

        def length(dx: float, dy: float) -> Floats:
            """Of a step of one pixel by (dx, dy) with its middle at each node."""
            ends = [lonlat(x.ravel() + s * dx / 2, y.ravel() + s * dy / 2) for s in (-1, 1)]
            with np.errstate(invalid="ignore"):
                return np.asarray(geod.inv(*ends[0], *ends[1])[2], np.float64).reshape(x.shape)

        height, width = geobox.shape
        y, x = np.meshgrid(np.linspace(0, height, _NODES), np.linspace(0, width, _NODES), indexing="ij")
        along_x, along_y, across = length(1, 0) ** 2, length(0, 1) ** 2, length(1, 1) ** 2
        return cls(
            spacing_yx=(height / (_NODES - 1), width / (_NODES - 1)),
            products=np.stack([along_x, along_y, (across - along_x - along_y) / 2]),
        )

    def perimeter_m(self, rings: Rings) -> Floats:
        """Length of all rings of each polygon in metres, holes included, shape (polygon,); NaN off the Earth.

        Args:
            rings: In pixel coordinates. An edge is as long as its middle says.
        """
        if not len(rings):
            return np.empty(0)
        xy = rings.coords
        step, middle = np.diff(xy, axis=0), (xy[1:] + xy[:-1]) / 2
        place = np.stack([middle[:, 1] / self.spacing_yx[0], middle[:, 0] / self.spacing_yx[1]])
        xx, yy, x_with_y = (ndimage.map_coordinates(p, place, order=1, mode="nearest") for p in self.products)
        dx, dy = step.T
        squared = dx * dx * xx + dy * dy * yy + 2 * dx * dy * x_with_y
        lengths = np.append(np.sqrt(np.maximum(squared, 0)), 0.0)
        lengths[rings.is_last] = 0.0  # from one ring to the next
        return np.asarray(np.add.reduceat(lengths, rings.ring_offsets[rings.polygon_offsets[:-1]]))
