"""Pixels of the synthetic country: which class each is, and what a sensor with four bands sees of it."""
# ruff: noqa: PLR2004 - a landscape is made of numbers: reflectances, sizes in pixels and shares, each used once

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import shapely
from affine import Affine
from rasterio.features import rasterize

from pipeline.scene.synthetic_map import (
    MAIN_ROAD_WIDTH_PX,
    SHADOW_XY,
    main_road_centre,
    main_roads_near,
    make_country,
    river_centre,
    rivers_near,
)
from pipeline.scene.synthetic_noise import (
    crown_texture,
    cut,
    grain_texture,
    hash_unit,
    patch_texture,
    smooth_noise,
    white_texture,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from pipeline.grid import Window
    from pipeline.scene.synthetic_map import Country, Houses

LAND, FOREST, WATER, ROAD, BUILDING = range(5)
"""Classes of the truth."""
MARGIN_PX = 30
"""Pixels around a block that its houses, shadows and blur reach into."""

# Reflectance x 10 000 in blue, green, red, near infrared. The last crops look like gravel, asphalt, tiles and leafy
# trees pixel by pixel, some roofs like soil: telling them apart takes shape and texture.
_CROPS = np.array(
    [
        (850, 1100, 1500, 2100), (620, 800, 1080, 1500), (1000, 1320, 1750, 2500), (900, 1300, 1650, 2900),
        (600, 900, 820, 2600), (410, 740, 430, 3900), (480, 820, 600, 3000), (700, 1350, 1150, 3500),
        (520, 860, 720, 2700), (450, 760, 500, 3400),
        (1100, 1230, 1370, 1720), (900, 990, 1070, 1330), (780, 970, 1580, 2250), (330, 560, 385, 3200),
    ],
    np.float32,
)  # fmt: skip
_ROOFS = np.array(
    [
        (740, 860, 1720, 1900), (690, 780, 1500, 1680), (800, 940, 1900, 2120), (780, 880, 1640, 1850),
        (720, 820, 1580, 1760), (820, 860, 1250, 1400), (600, 650, 730, 800), (2000, 2100, 2200, 2450),
    ],
    np.float32,
)  # fmt: skip
_MEADOW = np.array((470, 800, 620, 2800), np.float32)
_GARDEN = np.array((560, 830, 760, 2400), np.float32)
_FOREST = np.array(((330, 560, 380, 3600), (250, 380, 270, 2400)), np.float32)  # broadleaved, conifers
_WATER = np.array(((520, 520, 330, 190), (700, 800, 620, 330)), np.float32)  # lake, river
_MAIN_ROAD = np.array((880, 950, 990, 1180), np.float32)
_MINOR_ROAD = np.array((1120, 1220, 1320, 1650), np.float32)
_MARKING = np.array((1900, 1950, 2000, 2200), np.float32)


def paint(window: Window, *, seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """What lies in a window of the world.

    Args:
        window: Anywhere on the endless plane; pixels are 1 m.
        seed: Which world.

    Returns:
        Reflectance x 10 000, shape `(4, y, x)`: blue, green, red, near infrared; and classes, shape `(y, x)`.
    """
    around = window.expand(MARGIN_PX)
    country = make_country(around, seed=seed)
    painter = _Painter(around, seed=seed)
    painter.fields(country)
    painter.gardens(country)
    painter.river()
    painter.woods_and_lakes(country)
    painter.minor_roads(country)
    painter.main_roads()
    painter.houses(country.houses)
    inner = (slice(MARGIN_PX, -MARGIN_PX), slice(MARGIN_PX, -MARGIN_PX))
    return painter.develop()[:, *inner], painter.classes[inner]


class _Painter:
    """One sheet: layers are painted in order, later ones over earlier ones."""

    def __init__(self, window: Window, *, seed: int) -> None:
        self.window = window
        self.seed = seed
        self.classes = np.zeros(window.shape, np.uint8)
        self.colour = np.empty((4, *window.shape), np.float32)
        self.light = np.ones(window.shape, np.float32)
        self.main_road, self.marked = np.zeros(window.shape, bool), np.zeros(window.shape, bool)
        self.rows = np.arange(window.row_off, window.row_stop, dtype=np.float64)
        self.cols = np.arange(window.col_off, window.col_stop, dtype=np.float64)

    def fields(self, country: Country) -> None:
        """Strips of crops, turned differently in each estate, with rows and a grassy rim."""
        numbers = np.array([number for _, number in country.estates])
        estate = self._burn(((p, i) for i, (p, _) in enumerate(country.estates))).astype(np.intp)
        angle = np.pi * hash_unit(numbers, 1, seed=self.seed)
        cos, sin = (f(angle).astype(np.float32)[estate] for f in (np.cos, np.sin))
        # Local coordinates are taken modulo a table; float32 holds thousandths of a pixel there.
        x, y = (self.cols % 65536).astype(np.float32), (self.rows % 65536).astype(np.float32)[:, np.newaxis]
        u, v = x * cos + y * sin, y * cos - x * sin
        strip, strip_rim = self._breaks(u, shortest=55, longest=150, salt=1)
        part, part_rim = self._breaks(v + (strip * 37 % 211).astype(np.float32), shortest=140, longest=420, salt=2)
        mixed = numbers.astype(np.uint32)[estate] * 31 + strip * 7 + part * 13
        field = (mixed % 1021).astype(np.intp)  # once, not at each look-up
        self._sow(field, u)
        rim = strip_rim | part_rim
        for band, meadow in zip(self.colour, _MEADOW, strict=True):
            band[rim] = meadow

    def _breaks(
        self, position: NDArray[np.float32], *, shortest: int, longest: int, salt: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
        """Number of the interval that each position lies in, and whether it is within a pixel of its start."""
        length = 8192
        rng = np.random.default_rng([self.seed, 77, salt])
        starts = np.cumsum(rng.integers(shortest, longest, length // shortest))
        starts = starts[starts < length - shortest]
        number, rim = np.zeros(length, np.uint32), np.zeros(length, bool)
        number[starts] = 1
        rim[starts] = rim[starts - 1] = rim[0] = rim[-1] = True
        where = position.astype(np.intp) & (length - 1)
        return np.cumsum(number, dtype=np.uint32)[where], rim[where]

    def _sow(self, field: NDArray[np.intp], u: NDArray[np.float32]) -> None:
        """Colour of each field: crop, how well it grows, rows along it, patches, clods."""
        rng = np.random.default_rng([self.seed, 78])
        crop = rng.choice(len(_CROPS), 1021, p=[0.091] * 10 + [0.0225] * 4)  # the misleading ones are rare
        colour = _CROPS[crop] * rng.uniform(0.80, 1.22, (1021, 1)).astype(np.float32)
        rows = rng.choice([0.0, 0.0, 0.03, 0.06, 0.10], 1021).astype(np.float32)
        period = rng.choice([4, 6, 8, 12], 1021).astype(np.float32)
        wave = np.sin((2 * np.pi / period)[field] * u)
        patches = 0.10 * smooth_noise(self.window, spacing_px=70, seed=self.seed + 40)
        patches += 0.07 * cut(grain_texture(self.seed), self.window)
        growth = 1 + rows[field] * wave + patches
        # Better growth is darker in red and brighter in near infrared: patches change the hue, not just brightness.
        for band, table in zip(self.colour[:3], colour.T[:3], strict=True):
            np.divide(table[field], growth, out=band)
        np.multiply(colour[:, 3][field], growth, out=self.colour[3])

    def gardens(self, country: Country) -> None:
        """Lawns, beds and bare patches around houses."""
        plots = shapely.buffer(country.houses.outline, 27, quad_segs=2)
        near = self._burn((plot, 1) for plot in plots).astype(bool)
        beds = cut(patch_texture(self.seed), self.window)
        inside = near & (beds + 1.5 * smooth_noise(self.window, spacing_px=40, seed=self.seed + 41) > -1.3)
        grain = cut(grain_texture(self.seed), self.window, shift=5)[inside]
        for band, colour, tint in zip(self.colour, _GARDEN, (0.11, 0.08, 0.15, -0.10), strict=True):
            band[inside] = colour * (1 + tint * beds[inside] + 0.10 * grain)

    def river(self) -> None:
        """The river and its grassy banks; its water is painted with the lakes."""
        self.to_river = np.full(self.window.shape, 1e3, np.float32)  # distance to the bank, negative in the water
        for number in rivers_near(self.window.row_off, self.window.row_stop):
            centre = river_centre(self.cols, number, seed=self.seed)
            half_width = 19 + 5 * np.sin(self.cols / 410 + number)
            rows = self._around(self.rows, centre, 60)
            distance = _distance(self.rows[rows], centre) - half_width.astype(np.float32)
            np.minimum(self.to_river[rows], distance, out=self.to_river[rows])
        bank = self.to_river < 7 + 5 * smooth_noise(self.window, spacing_px=20, seed=self.seed + 43)
        grain = 1 + 0.1 * cut(grain_texture(self.seed), self.window, shift=1)[bank]
        for band, colour in zip(self.colour, _MEADOW, strict=True):
            band[bank] = 0.9 * colour * grain

    def _around(self, positions: NDArray[np.float64], centre: NDArray[np.float64], by_px: float) -> slice:
        """The rows or columns within `by_px` of a winding line."""
        low, high = np.searchsorted(positions, (centre.min() - by_px, centre.max() + by_px))
        return slice(int(low), int(high))

    def woods_and_lakes(self, country: Country) -> None:
        """Irregular forests that throw a shadow, lakes with a soft shore; villages keep both away."""
        shape = self._octaves((430, 0.9), (150, 0.45), (44, 0.22), seed=self.seed + 50)
        shape += np.float32(0.03) * cut(patch_texture(self.seed), self.window, shift=6)
        keep_off = self._villages(country)
        forest = (shape - keep_off) > 0.26
        depth = self._octaves((420, 1.0), (170, 0.35), (60, 0.12), seed=self.seed + 60) - 1.5 * keep_off - 0.72
        stream = self.to_river < 0
        water = (depth > 0) | stream
        forest &= ~water & (self.to_river > 3)
        self._shade(forest, length=9.0)
        self._grow(forest)
        self._flood(water, np.clip(1 - np.maximum(depth, 0) * 14, 0, 1), stream)

    def _villages(self, country: Country) -> NDArray[np.float32]:
        """How much villages push forests and lakes away: 0 outside, rising inwards."""
        push = np.zeros(self.window.shape, np.float32)
        for x, y, radius in country.villages:
            rows, cols = self._around(self.rows, np.array([y]), radius), self._around(self.cols, np.array([x]), radius)
            square = ((self.cols[cols] - x) ** 2 + ((self.rows[rows] - y) ** 2)[:, np.newaxis]).astype(np.float32)
            np.maximum(push[rows, cols], 1.6 - 1.6 * square / np.float32(radius) ** 2, out=push[rows, cols])
        return push

    def _octaves(self, *octaves: tuple[int, float], seed: int) -> NDArray[np.float32]:
        total = np.zeros(self.window.shape, np.float32)
        for k, (spacing, weight) in enumerate(octaves):
            total += np.float32(weight) * smooth_noise(self.window, spacing_px=spacing, seed=seed + k)
        return total

    def _grow(self, forest: NDArray[np.bool_]) -> None:
        crowns = cut(crown_texture(self.seed), self.window)[forest]
        stand = smooth_noise(self.window, spacing_px=90, seed=self.seed + 44)[forest]
        conifers = np.clip(0.5 + 1.6 * stand, 0, 1)
        self.classes[forest] = FOREST
        self.light[forest] = 1
        for band, (broad, needle) in zip(self.colour, _FOREST.T, strict=True):
            band[forest] = (broad + (needle - broad) * conifers) * (0.25 + crowns)

    def _flood(self, water: NDArray[np.bool_], shallow: NDArray[np.float32], stream: NDArray[np.bool_]) -> None:
        turbid = shallow[water] * np.where(stream[water], np.float32(1.0), np.float32(0.5))
        ripples = 1 + 0.05 * cut(grain_texture(self.seed), self.window, shift=2)[water]
        self.classes[water] = WATER
        self.light[water] = np.maximum(self.light[water], 0.8)
        for band, (deep, muddy) in zip(self.colour, _WATER.T, strict=True):
            band[water] = (deep + (muddy - deep) * turbid) * ripples

    def minor_roads(self, country: Country) -> None:
        """Roads between estates; they end at water."""
        if country.roads:
            road = self._burn((shape, 1) for shape in country.roads).astype(bool)
            self._pave(road & (self.classes != WATER), _MINOR_ROAD)

    def main_roads(self) -> None:
        """Wide roads with markings; they bridge water."""
        for axis in (0, 1):
            along, across = (self.cols, self.rows) if axis == 0 else (self.rows, self.cols)
            dashes = along % 24 < 14
            for number in main_roads_near(across[0], across[-1]):
                centre = main_road_centre(along, number, axis=axis, seed=self.seed)
                part = self._around(across, centre, MAIN_ROAD_WIDTH_PX)
                distance = _distance(across[part], centre)
                road, marking = distance < MAIN_ROAD_WIDTH_PX / 2, (distance < 0.7) & dashes
                for sheet, shape in ((self.marked, marking), (self.main_road, road)):
                    sheet[(part, slice(None)) if axis == 0 else (slice(None), part)] |= shape if axis == 0 else shape.T
        self._pave(self.main_road, _MAIN_ROAD)
        self.colour[:, self.marked] = _MARKING[:, np.newaxis]

    def _pave(self, road: NDArray[np.bool_], colour: NDArray[np.float32]) -> None:
        wear = 1 + 0.13 * smooth_noise(self.window, spacing_px=110, seed=self.seed + 45)[road]
        wear += 0.05 * cut(grain_texture(self.seed), self.window, shift=3)[road]
        self.classes[road] = ROAD
        self.light[road] = np.maximum(self.light[road], 0.72)  # crowns let some light onto roads
        for band, value in zip(self.colour, colour, strict=True):
            band[road] = value * wear

    def houses(self, houses: Houses) -> None:
        """Buildings with two roof halves, and their shadows; none whose middle is under water."""
        houses = houses.where(~self._is_water(shapely.get_coordinates(shapely.centroid(houses.outline))))
        shift = houses.height[:, np.newaxis, np.newaxis] * np.array(SHADOW_XY)
        corners = shapely.get_coordinates(houses.outline).reshape(-1, 5, 2)
        points = shapely.multipoints(np.concatenate([corners, corners + shift], axis=1))
        shadows = np.asarray(shapely.convex_hull(points), dtype=object)
        self.light[self._burn((s, 1) for s in shadows).astype(bool)] *= 0.45
        sunny = ((p, 1 + int(k)) for p, k in zip(houses.outline, houses.roof, strict=True))
        ids = self._burn(sunny)
        far = self._burn((p, 1) for p in houses.far_roof).astype(bool)
        built = ids > 0
        kind, pale = np.divmod(ids[built] - 1, 2)
        relief = (
            np.where(far[built], 0.72, 1.08)
            * np.where(pale, 1.18, 0.88)
            * (1 + 0.05 * cut(grain_texture(self.seed), self.window, shift=4)[built])
        )
        self.classes[built] = BUILDING
        self.light[built] = 1
        for band, roof in zip(self.colour, _ROOFS.T, strict=True):
            band[built] = roof[kind] * relief

    def _is_water(self, points_xy: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether points are water; points off the sheet count as land (their houses do not reach the block)."""
        cols, rows = (np.floor(points_xy) - (self.window.col_off, self.window.row_off)).astype(np.int64).T
        inside = (rows >= 0) & (cols >= 0) & (rows < self.window.height) & (cols < self.window.width)
        wet = np.zeros(len(points_xy), bool)
        wet[inside] = self.classes[rows[inside], cols[inside]] == WATER
        return wet

    def develop(self) -> NDArray[np.float32]:
        """Light, optics and sensor: shadows are bluish, the lens blurs a little, the sensor adds noise."""
        for band, sky in zip(self.colour, (0.30, 0.20, 0.12, 0.06), strict=True):
            np.multiply(band, self.light + np.float32(sky) * (1 - self.light), out=band)
        _blur(self.colour)
        for k, band in enumerate(self.colour):
            noise = cut(white_texture(self.seed), self.window, shift=10 + k)
            np.add(band, noise * (15 + 0.04 * band), out=band)
        return self.colour

    def _shade(self, tall: NDArray[np.bool_], *, length: float) -> None:
        """Darken what lies in the shadow of `tall`, itself excepted: the mask moved step by step along the light."""
        dark = np.zeros_like(tall)
        for step in (0.35, 0.7, 1.0):
            dx, dy = (round(s * length * step) for s in SHADOW_XY)
            dark[: dark.shape[0] + dy, : dark.shape[1] + dx] |= tall[-dy:, -dx:]
        self.light[dark & ~tall] = 0.42

    def _burn(self, shapes: Iterable[tuple[shapely.Polygon, int]]) -> NDArray[np.uint8]:
        """Polygons in world pixels as numbers on the sheet, 0 elsewhere; later ones win."""
        numbered = list(shapes)
        if not numbered:
            return np.zeros(self.window.shape, np.uint8)
        to_world = Affine.translation(self.window.col_off, self.window.row_off)
        burnt: NDArray[np.uint8] = rasterize(numbered, out_shape=self.window.shape, transform=to_world, dtype="uint8")
        return burnt


def _distance(across: NDArray[np.float64], centre: NDArray[np.float64]) -> NDArray[np.float32]:
    """Distance of pixels to a winding line, good near the line; shape `(across, along)`."""
    stretch = 1 / np.hypot(1, np.gradient(centre))
    return (np.abs(across[:, np.newaxis] - centre) * stretch).astype(np.float32)


def _blur(planes: NDArray[np.float32]) -> None:
    """Point spread of about one pixel, in place: weights 0.15, 0.7, 0.15 along rows and columns."""
    for plane in planes:
        for view in (plane, plane.T):
            inner = view[1:-1] * np.float32(0.7)
            inner += np.float32(0.15) * view[:-2]
            inner += np.float32(0.15) * view[2:]
            view[1:-1] = inner
