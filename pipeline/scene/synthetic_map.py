"""The synthetic country as shapes: parcels of land, roads between them, a river, villages with houses along roads.

Everything is keyed on an endless lattice, so the shapes near any window can be made without the rest of the world.
"""
# ruff: noqa: PLR2004 - a landscape is made of numbers: sizes in pixels and shares, each used once

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import shapely
from scipy.spatial import Voronoi

from pipeline.scene.synthetic_noise import hash_unit, smooth_noise_at

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.grid import Window

ESTATE_PX = 450
"""Mean side of the estates that minor roads run between."""
VILLAGE_PX = 1150
"""Lattice of villages."""
MAIN_ROAD_WIDTH_PX = 13.0
"""Width of the main roads."""
_MAIN_ROADS = (470, 2050)  # first main road and distance between them, in both directions
_RIVERS = (820, 2900)
SHADOW_XY = (-0.62, -0.78)
"""Direction of shadows: the sun stands in the south-east."""
_REACH_PX = 3 * ESTATE_PX  # Voronoi cells this far off still shape what is near a window
_VILLAGE_REACH_PX = 1200  # a village decides over roads whose middles it holds, and roads are long
_HOUSE_REACH_PX = 140  # houses stand at most this far from the edge that they belong to


@dataclass(frozen=True, slots=True)
class Houses:
    """Buildings, one per element of each array; lengths in pixels of the world."""

    outline: NDArray[np.object_]
    """Footprints, Shapely polygons."""
    far_roof: NDArray[np.object_]
    """The halves of the roofs that face away from the sun."""
    height: NDArray[np.float64]
    """Heights, metres."""
    roof: NDArray[np.int64]
    """Number of the roof colour, 0 to 15."""
    rank: NDArray[np.float64]
    """Of two houses that touch, the one of lower rank stays."""

    def where(self, keep: NDArray[np.bool_]) -> Houses:
        """Some of the houses."""
        return Houses(self.outline[keep], self.far_roof[keep], self.height[keep], self.roof[keep], self.rank[keep])


@dataclass(frozen=True, slots=True)
class Country:
    """Shapes around a window."""

    estates: list[tuple[shapely.Polygon, int]]
    """Land parcels that fill the plane, with a number each (0 to 2**16 - 1)."""
    roads: list[shapely.Polygon]
    """Minor roads."""
    houses: Houses
    """Buildings."""
    villages: NDArray[np.float64]
    """Rows of (x, y, radius)."""


def make_country(window: Window, *, seed: int) -> Country:
    """The shapes that touch a window."""
    bounds = (window.col_off, window.row_off, window.col_stop, window.row_stop)
    voronoi, cells = _estate_lattice(bounds, seed=seed)
    numbers = (65536 * hash_unit(cells[:, 0], cells[:, 1], seed=seed + 13)).astype(np.int64)
    edges = _winding_edges(voronoi, bounds, seed=seed)
    villages = _villages(bounds, seed=seed)
    lines = np.array([shapely.LineString(xy) for xy in edges.values()], dtype=object)
    pairs = np.sort(numbers[voronoi.ridge_points[list(edges)]], axis=1)
    keys = (2**31 * hash_unit(pairs[:, 0], pairs[:, 1], seed=seed + 16)).astype(np.int64)
    near = shapely.dwithin(lines, shapely.box(*bounds), _HOUSE_REACH_PX) & _are_roads(lines, keys, villages, seed=seed)
    lines, keys = lines[near], keys[near]
    width = 3.7 + 0.9 * (keys % 7) / 6
    return Country(
        estates=_estates(voronoi, edges, numbers),
        roads=list(shapely.buffer(lines, width, quad_segs=4)),
        houses=_houses(lines, keys, villages, seed=seed),
        villages=villages,
    )


def main_road_centre(along: NDArray[np.float64], number: int, *, axis: int, seed: int) -> NDArray[np.float64]:
    """Position across of main road `number` at positions `along` it; axis 0 runs east-west, axis 1 north-south."""
    a, b, c = hash_unit([number] * 3, [axis, axis + 2, axis + 4], seed=seed + 31).tolist()
    first, spacing = _MAIN_ROADS
    middle = first + spacing * number + 300 * (c - 0.5) * (number != 0)
    return np.asarray(middle + 85 * np.sin(along / 690 + 6.3 * a) + 30 * np.sin(along / 270 + 6.3 * b))


def river_centre(along: NDArray[np.float64], number: int, *, seed: int) -> NDArray[np.float64]:
    """Row of river `number` at columns `along`; rivers run from west to east."""
    a, b, c = hash_unit([number] * 3, [1, 2, 3], seed=seed + 37).tolist()
    first, spacing = _RIVERS
    bends = 75 * np.sin(along / 310 + 6.3 * b) + 22 * np.sin(along / 117 + 6.3 * c)
    return np.asarray(first + spacing * number + 170 * np.sin(along / 880 + 6.3 * a) + bends)


def main_roads_near(low: float, high: float) -> range:
    """Numbers of the main roads that may come between two positions across them."""
    return _lines_near(low, high, *_MAIN_ROADS)


def rivers_near(low: float, high: float) -> range:
    """Numbers of the rivers that may come between two rows."""
    return _lines_near(low, high, *_RIVERS)


def _lines_near(low: float, high: float, first: int, spacing: int) -> range:
    """Roads and rivers swing less than 340 px, banks included."""
    return range(math.floor((low - 340 - first) / spacing), math.ceil((high + 340 - first) / spacing) + 1)


def _estate_lattice(bounds: tuple[int, int, int, int], *, seed: int) -> tuple[Voronoi, NDArray[np.int64]]:
    """Voronoi diagram of the jittered lattice points within reach, and the lattice cell of each point."""
    cells = _cells(bounds, reach_px=_REACH_PX, spacing_px=ESTATE_PX)
    jitter = np.stack([hash_unit(cells[:, 0], cells[:, 1], seed=seed + k) for k in (11, 12)], axis=-1)
    return Voronoi((cells + 0.5 + 0.75 * (jitter - 0.5)) * ESTATE_PX), cells


def _cells(bounds: tuple[int, int, int, int], *, reach_px: int, spacing_px: int) -> NDArray[np.int64]:
    """Cells of a square lattice within reach of bounds, shape `(n, 2)`: column, row."""
    x0, y0, x1, y1 = bounds
    columns = np.arange((x0 - reach_px) // spacing_px, (x1 + reach_px) // spacing_px + 1)
    rows = np.arange((y0 - reach_px) // spacing_px, (y1 + reach_px) // spacing_px + 1)
    return np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)


def _winding_edges(voronoi: Voronoi, bounds: tuple[int, int, int, int], *, seed: int) -> dict[int, NDArray[np.float64]]:
    """Edges of the estates that touch the window, as winding lines.

    Points every 16 px are moved by smooth noise of their position, so both estates see the same border.

    Returns:
        Number of the edge in `voronoi` -> points `(n, 2)`.
    """
    box = shapely.box(*bounds)
    cells = [voronoi.regions[region] for region in voronoi.point_region]
    near_cells = {
        point
        for point, corners in enumerate(cells)
        if corners and -1 not in corners
        if shapely.dwithin(shapely.convex_hull(shapely.multipoints(voronoi.vertices[corners])), box, 30.0)
    }
    straight = {}
    for edge, (pair, ends) in enumerate(zip(voronoi.ridge_points, voronoi.ridge_vertices, strict=True)):
        if min(ends) < 0:
            continue
        line = voronoi.vertices[ends]
        line = line[np.argsort(line[:, 0])]  # west to east, for houses are counted along it
        if near_cells.intersection(pair) or shapely.dwithin(shapely.linestrings(line), box, _HOUSE_REACH_PX + 30):
            steps = max(1, math.ceil(float(np.hypot(*(line[1] - line[0]))) / 16))
            t = np.linspace(0, 1, steps + 1)[:, np.newaxis]
            straight[edge] = line[0] * (1 - t) + line[1] * t
    points = np.concatenate(list(straight.values()))
    moves = [smooth_noise_at(points, spacing_px=130, seed=seed + k) for k in (14, 15)]
    stops = np.cumsum([len(line) for line in straight.values()])[:-1]
    return dict(zip(straight, np.split(points + 16 * np.stack(moves, axis=-1), stops), strict=True))


def _estates(
    voronoi: Voronoi, edges: dict[int, NDArray[np.float64]], numbers: NDArray[np.int64]
) -> list[tuple[shapely.Polygon, int]]:
    """The estates all of whose edges are known, put together edge by edge, with their numbers."""
    by_point: dict[int, list[int]] = {}
    for edge, pair in enumerate(voronoi.ridge_points):
        for point in pair:
            by_point.setdefault(int(point), []).append(edge)
    found = []
    for point, around in by_point.items():
        if all(edge in edges for edge in around):
            lines = [edges[edge] for edge in around]
            to_middle = np.array([line[[0, -1]].mean(axis=0) for line in lines]) - voronoi.points[point]
            order = np.argsort(np.arctan2(to_middle[:, 1], to_middle[:, 0]))  # cells are convex, or nearly
            turned = [_turn(lines[i], voronoi.points[point])[:-1] for i in order]
            found.append((shapely.Polygon(np.concatenate(turned)), int(numbers[point])))
    return found


def _turn(line: NDArray[np.float64], centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """The line in the direction in which angles about `centre` grow."""
    (ax, ay), (bx, by) = line[0] - centre, line[-1] - centre
    return line if ax * by - ay * bx > 0 else line[::-1]


def _villages(bounds: tuple[int, int, int, int], *, seed: int) -> NDArray[np.float64]:
    """Villages that reach into bounds, rows of (x, y, radius); one is always near the world's origin."""
    cells = _cells(bounds, reach_px=_VILLAGE_REACH_PX, spacing_px=VILLAGE_PX)
    draw = np.stack([hash_unit(cells[:, 0], cells[:, 1], seed=seed + 170 + k) for k in range(4)], axis=-1)
    rows = np.column_stack([(cells + 0.3 + 0.4 * draw[:, :2]) * VILLAGE_PX, 250 + 160 * draw[:, 2]])
    exists: NDArray[np.bool_] = (draw[:, 3] < 0.85) | ~cells.any(axis=1)
    return rows[exists]


def _are_roads(
    lines: NDArray[np.object_], keys: NDArray[np.int64], villages: NDArray[np.float64], *, seed: int
) -> NDArray[np.bool_]:
    """Two edges in three are roads; in a village all of them."""
    middle = shapely.get_coordinates(shapely.line_interpolate_point(lines, 0.5, normalized=True))
    return (hash_unit(keys, 5, seed=seed) < 0.62) | (_to_village(middle, villages) < 0)


def _to_village(points_xy: NDArray[np.float64], villages: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of points to the rim of the nearest village, negative inside, inf where there is none."""
    far = np.hypot(*(points_xy[:, np.newaxis] - villages[:, :2]).transpose(2, 0, 1)) - villages[:, 2]
    nearest: NDArray[np.float64] = far.min(axis=1, initial=math.inf)
    return nearest


def _houses(lines: NDArray[np.object_], keys: NDArray[np.int64], villages: NDArray[np.float64], *, seed: int) -> Houses:
    """Houses along roads: close together in villages, few outside; none on a road, a river or another house."""
    lots = [_lots(line, int(key), villages, seed=seed) for line, key in zip(lines, keys, strict=True)]
    houses = _build(np.concatenate([*lots, np.empty((0, 12))]))
    # Of two houses that touch, the one of higher rank goes, whatever happens to the other: a rule that needs no order
    # and so leaves the same houses from every window.
    one, two = shapely.STRtree(houses.outline).query(houses.outline, predicate="dwithin", distance=4.0)
    loses = _on_main_lines(shapely.get_coordinates(shapely.centroid(houses.outline)), seed=seed)
    loses[one[houses.rank[one] > houses.rank[two]]] = True
    on_road, _ = shapely.STRtree(lines).query(houses.outline, predicate="dwithin", distance=7.0)
    loses[on_road] = True
    return houses.where(~loses)


def _lots(line: shapely.LineString, key: int, villages: NDArray[np.float64], *, seed: int) -> NDArray[np.float64]:
    """Houses wished for along one road, two rows deep on both sides.

    Returns:
        Shape `(lot, 12)`: x and y of the foot on the road, direction of the road, depth and side, and seven draws.
    """
    steps = 29 + 8 * hash_unit(key, np.arange(max(int(line.length / 29), 0)), seed=seed + 20)
    along = 16 + np.cumsum(steps) - steps
    along = along[along < line.length - 12]
    here, ahead = (shapely.get_coordinates(shapely.line_interpolate_point(line, along + d)) for d in (0.0, 1.0))
    direction = np.arctan2(*(ahead - here).T[::-1])
    in_village = _to_village(here, villages) < 0
    rows = []
    for number, (side, depth) in enumerate(((-1, 0), (1, 0), (-1, 1), (1, 1))):
        ids = np.arange(len(along))[:, np.newaxis] * 64 + 16 * number + np.arange(8)
        draw = hash_unit(key, ids, seed=seed + 19)
        wanted = draw[:, 0] < np.where(in_village, 0.90 - 0.30 * depth, 0.035 * (1 - depth))
        fixed = np.column_stack([here, direction, np.full(len(along), depth), np.full(len(along), side)])
        rows.append(np.hstack([fixed, draw[:, 1:]])[wanted])
    return np.concatenate(rows)


def _build(lots: NDArray[np.float64]) -> Houses:
    """Houses on lots, their fronts along the road."""
    x, y, direction, depth, side, *draw = lots.T
    front, back = 15 + 11 * draw[0], 14 + 7 * draw[1]
    off = side * (12 + 4 * draw[2] + back / 2 + depth * 38)
    turn = direction + 0.12 * (draw[3] - 0.5)
    centre = np.stack([x - off * np.sin(direction), y + off * np.cos(direction)], axis=-1)
    a = np.stack([np.cos(turn), np.sin(turn)], axis=-1) * (front / 2)[:, np.newaxis]
    b = np.stack([-np.sin(turn), np.cos(turn)], axis=-1) * (back / 2)[:, np.newaxis]
    away = np.where((b @ np.array(SHADOW_XY) > 0)[:, np.newaxis], b, -b)  # the side of the ridge away from the sun
    return Houses(
        outline=_polygons(centre - a - b, centre + a - b, centre + a + b, centre - a + b),
        far_roof=_polygons(centre - a, centre + a, centre + a + away, centre - a + away),
        height=4 + 4 * draw[4],
        roof=(draw[5] * 16).astype(np.int64),
        rank=draw[6],
    )


def _polygons(*corners_xy: NDArray[np.float64]) -> NDArray[np.object_]:
    """Polygons whose k-th corners are the rows of the k-th argument."""
    return np.asarray(shapely.polygons(np.stack(corners_xy, axis=1)), dtype=object)


def _on_main_lines(centres_xy: NDArray[np.float64], *, seed: int) -> NDArray[np.bool_]:
    """Whether points lie on or close to a main road or the river."""
    x, y = centres_xy.T
    hit = np.zeros(len(x), bool)
    if len(x) == 0:
        return hit
    for axis, along, across in ((0, x, y), (1, y, x)):
        for number in main_roads_near(across.min(), across.max()):
            hit |= np.abs(across - main_road_centre(along, number, axis=axis, seed=seed)) < 24
    for number in rivers_near(y.min(), y.max()):
        hit |= np.abs(y - river_centre(x, number, seed=seed)) < 52
    return hit
