"""Straight walls and right angles for buildings, on the coverage: a wall that two polygons share moves once, for both.

What would become invalid, overlap, leave a gap, or lose too much of what it covered keeps its outline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import shapely
from pyproj import Geod
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.errors import ResourceError
from pipeline.vector.faults import disk_errors
from pipeline.vector.lonlat import ToLonLat, is_on_earth
from pipeline.vector.neighbourhoods import neighbourhoods
from pipeline.vector.outlines import Outlines
from pipeline.vector.spool import SCHEMA, SpoolReader
from pipeline.vector.walls import Arcs, Directions, Walls, choose_directions, measure_walls, place_corners

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.grid import GeoBox
    from pipeline.vector.rings import Geometries, Ints

    Bools = NDArray[np.bool_]
    Floats = NDArray[np.float64]

LEAST_TOLERANCE_PX = 1.5
"""The steps of a straight wall lie within the square root of 2 of a line through any two of them."""
_FARTHEST = 4.0
"""Times the tolerance: no corner may move by more."""
_NEAR = 2.0
"""Times the tolerance: buildings that close have directions in common, so that the walls between them do not cross."""
_ROUNDS = 16
_CORNER_BYTES = 16
_AT_ONCE = 1_000_000
"""Vertices of outlines that are worked on at once."""
_MOST = 16_000_000
"""The same where they cannot be taken apart."""
_LOOSENINGS = 4
"""Rounds in which walls at corners that moved too far are let go, before their buildings are."""


class Regularization(NamedTuple):
    """Which polygons get straight walls, and how far that may go."""

    classes: frozenset[int]
    """Values in the mask."""
    min_iou: float
    """Least intersection over union with the polygon as traced."""


class Regularized(NamedTuple):
    """Polygons with straight walls, and those whose outlines did not allow it."""

    polygons: Geometries
    """As many as before, in the same order."""
    kept: Bools
    """Buildings that keep their outlines, shape (polygon,)."""


class Outcome(NamedTuple):
    """How many polygons have straight walls now, and how many keep their outlines."""

    straight: int
    kept: int
    iou_min: float | None = None
    """Least intersection over union with what was traced, of those with straight walls; None if there are none."""
    iou_median: float | None = None

    @classmethod
    def of(cls, straight: int, kept: int, iou: Floats) -> Outcome:
        """From the numbers of both, and what was measured of those with straight walls."""
        if not len(iou):
            return cls(straight, kept)
        return cls(straight, kept, round(float(iou.min()), 4), round(float(np.median(iou)), 4))


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The pixels that polygons were traced on."""

    shape: tuple[int, int]
    """Height and width of the scene."""
    aspect: float
    """Width of a pixel divided by its height, on the ground, in the middle of the scene."""

    @property
    def stretch(self) -> float:
        """Pixels along the shorter side of one to the side of a square as large."""
        return float(max(self.aspect, 1 / self.aspect) ** 0.5)

    @classmethod
    def of(cls, geobox: GeoBox) -> Grid:
        """Of a scene; without a CRS, or off the Earth, pixels are as wide as the transform says."""
        t, aspect = geobox.transform, np.nan
        if is_on_earth(geobox.crs_wkt):
            middle = np.array([geobox.width / 2, geobox.height / 2])
            x, y = (middle + np.array([(-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5)])).T
            lon, lat = ToLonLat(geobox).forward(x, y)
            if np.isfinite(lon + lat).all():
                lengths = Geod(ellps="WGS84").inv(lon[::2], lat[::2], lon[1::2], lat[1::2])[2]
                aspect = lengths[0] / lengths[1] if lengths.all() else np.nan
        if not np.isfinite(aspect):
            aspect = np.hypot(t.a, t.d) / np.hypot(t.b, t.e)
        return cls(shape=geobox.shape, aspect=float(aspect))


def regularize_spool(
    path: Path,
    simplified: Path,
    target: Path,
    wanted: Regularization,
    *,
    grid: Grid,
    tolerance_px: float,
    by_class: bool,
) -> Outcome:
    """Write a spool whose buildings have straight walls, `target`; what was measured of them before stays.

    Args:
        path: The spool, traced with nodes.
        simplified: The same simplified, or the same.
        target: The new one.
        wanted: Which polygons, and how far.
        grid: The pixels.
        tolerance_px: See `regularize_coverage`.
        by_class: Classes overlap, so that each is a coverage of its own.

    Raises:
        ResourceError: RS-006, more buildings close to each other than can be regularized at once; RS-002, the disk is
            full.
    """
    tolerance = max(tolerance_px, LEAST_TOLERANCE_PX)
    straight, kept, iou = 0, 0, [np.empty(0)]
    with (
        SpoolReader(path) as traced,
        SpoolReader(simplified) as simple,
        disk_errors(target),
        pa.ipc.new_file(str(target), SCHEMA) as file,
    ):
        for numbers in _coverages(traced.class_ids, by_class=by_class):
            left = np.ones(len(numbers), bool)
            for part in _parts(traced, numbers, wanted.classes, reach=2 * _FARTHEST * tolerance * grid.stretch):
                left[part] = False
                batch, before = simple.take(numbers[part]), traced.take(numbers[part]).polygons
                buildings = np.isin(batch.class_ids, list(wanted.classes))
                done = regularize_coverage(
                    before, batch.polygons, buildings,
                    grid=grid, min_iou=wanted.min_iou, tolerance_px=tolerance,
                )  # fmt: skip
                file.write_batch(batch.record(done.polygons))
                changed = buildings & ~done.kept
                straight, kept = straight + int(changed.sum()), kept + int(done.kept.sum())
                iou.append(_iou(done.polygons[changed], before[changed]))
            for batch in simple.iter_batches(order=simple.rows(numbers[left])):
                file.write_batch(batch.record(batch.polygons))
    return Outcome.of(straight, kept, np.concatenate(iou))


def _coverages(class_ids: Ints, *, by_class: bool) -> list[Ints]:
    """Numbers of the polygons that do not overlap: all, or those of each class."""
    if not by_class:
        return [np.arange(len(class_ids))]
    return [np.flatnonzero(class_ids == value) for value in np.unique(class_ids)]


def _parts(spool: SpoolReader, numbers: Ints, classes: frozenset[int], *, reach: float) -> list[Ints]:
    """Which of some polygons are looked at together, see `neighbourhoods`.

    Raises:
        ResourceError: RS-006.
    """
    batches = spool.iter_batches(order=spool.rows(numbers))
    boxes = np.concatenate([np.empty((0, 4)), *(shapely.bounds(batch.polygons) for batch in batches)])
    corners = spool.num_bytes[numbers] // _CORNER_BYTES
    buildings = np.isin(spool.class_ids[numbers], list(classes))
    parts = neighbourhoods(boxes, buildings, corners, reach=reach, most=_AT_ONCE)
    largest = max((int(corners[part].sum()) for part in parts), default=0)
    if largest > _MOST:
        raise ResourceError(
            f"buildings that touch or nearly do, and what touches them, have {largest:,} vertices; "
            f"at most {_MOST:,} can be regularized at once",
            code="RS-006",
            title="Too many polygons to regularize",
            fix="drop small ones with --min-area, take the classes one by one with `scenemask vectorize --only`, or "
            "leave --regularize out",
        )
    return parts


def regularize_coverage(
    traced: Geometries, simplified: Geometries, buildings: Bools, *, grid: Grid, min_iou: float, tolerance_px: float
) -> Regularized:
    """Polygons whose buildings have straight walls and right angles wherever their outlines allow it.

    Args:
        traced: A valid coverage along pixel edges; neighbours share all vertices. Shape (polygon,).
        simplified: The same with fewer vertices, for all that is no wall.
        buildings: Which of them are buildings, shape (polygon,).
        grid: The pixels.
        min_iou: Least intersection over union of a building with what was traced.
        tolerance_px: How far a wall may be from the outline.

    Returns:
        Valid polygons, again a coverage. Polygons that touch a building follow its walls.
    """
    near = _touching(traced, buildings)
    kept = np.zeros(len(traced), bool)
    polygons = np.array(simplified, object)
    if len(near):
        draft = _Draft.of(traced[near], simplified[near], buildings[near], grid, tolerance_px)
        polygons[near], kept[near] = draft.settle(min_iou)
    return Regularized(polygons, kept)


def _touching(traced: Geometries, buildings: Bools) -> Ints:
    """Buildings, and what has a vertex in common with one."""
    if not buildings.any():
        return np.empty(0, np.int64)
    xy, owner = shapely.get_coordinates(traced, return_index=True)
    keys = xy[:, 1] * (1 << 26) + xy[:, 0]
    shared = np.isin(keys, np.unique(keys[buildings[owner]]))
    return np.unique(owner[shared])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """Buildings and what touches them, on the way to straight walls."""

    traced: Geometries
    simplified: Geometries
    buildings: Bools
    outlines: Outlines
    shown: Bools
    """Vertices that simplification left, or where an arc ends."""
    arcs: Arcs
    walls: Walls
    directions: Directions
    scale: Floats
    """Pixels to squares, `(x, y)`."""
    tolerance: float

    @classmethod
    def of(cls, traced: Geometries, simplified: Geometries, buildings: Bools, grid: Grid, tolerance: float) -> _Draft:
        outlines = Outlines.of(traced)
        scale = np.array([grid.aspect**0.5, grid.aspect**-0.5])
        rims = _rims(outlines, grid.shape)
        arcs, cut = _arcs(outlines, buildings, rims, scale)
        walls = measure_walls(arcs, outlines.xy * scale, tolerance)
        at_rim = (rims[arcs.vertices[arcs.offsets[:-1]]] & rims[arcs.vertices[arcs.offsets[:-1] + 1]]) > 0
        group = _groups(traced, buildings, _NEAR * tolerance / scale.max())
        return cls(
            traced=traced,
            simplified=simplified,
            buildings=buildings,
            outlines=outlines,
            shown=cut | _left_by(simplified, outlines),
            arcs=arcs,
            walls=walls,
            directions=choose_directions(walls, arcs, group, at_rim, tolerance),
            scale=scale,
            tolerance=tolerance,
        )

    def settle(self, min_iou: float) -> tuple[Geometries, Bools]:
        """Straighten, look at what came out, and give those that did not come out well their outlines back."""
        kept, loose = ~self.buildings, np.zeros(len(self.walls.arc), bool)
        before, collapsed = np.full(len(kept), None), kept
        for number in range(_ROUNDS):
            moved, shown, far = self._straighten(kept, loose)
            if far.any() and number < _LOOSENINGS:
                loose |= far[self.walls.ends].any(axis=1)
                continue
            polygons, collapsed = self.outlines.to_polygons(moved, shown, self.simplified)
            wrong, done = self._wrong(polygons, before, min_iou)
            wrong |= self._with_neighbours(far, collapsed)
            wrong &= ~kept
            if not wrong.any():
                break
            kept, before = kept | wrong, polygons if done else before
        if (
            collapsed.any()
            or _overlapping(polygons, self.buildings).any()
            or not shapely.is_empty(_uncovered(polygons)).all()
        ):
            return self.simplified, self.buildings
        return polygons, kept & self.buildings

    def _wrong(self, polygons: Geometries, before: Geometries, min_iou: float) -> tuple[Bools, bool]:
        """Buildings that lost too much or clash, as far as something changed, and whether all others were looked at.

        What touches buildings is looked at when these are right among themselves.
        """
        changed = np.flatnonzero(~shapely.equals_exact(polygons, before, 0.0))
        wrong = np.zeros(len(polygons), bool)
        wrong[changed] = _iou(polygons[changed], self.traced[changed]) < min_iou
        near = shapely.STRtree(polygons).query(polygons[changed], "intersects")[1]
        some = np.unique(np.concatenate([near, changed]))
        own = np.flatnonzero(self.buildings)
        wrong[some] |= _overlapping(polygons[some], self.buildings[some])
        wrong &= self.buildings
        done = not wrong.any() or bool(self.buildings.all())
        if not wrong.any() and not self.buildings.all():
            odd = _uncovered(polygons[some])
            places = odd[~shapely.is_empty(odd)]
            wrong[own[shapely.STRtree(polygons[own]).query(places, "dwithin", distance=self.tolerance)[1]]] = True
        return wrong, done

    def _straighten(self, kept: Bools, loose: Bools) -> tuple[Floats, Bools, Bools]:
        """Vertices with walls straight where no building beside them is kept: places, which show, which went far."""
        sides = self.arcs.sides
        active = np.asarray(~(kept[sides] & (sides >= 0)).any(axis=1))
        arc_of = np.repeat(np.arange(len(sides)), np.diff(self.arcs.offsets))
        held = np.zeros(len(self.outlines.xy), bool)
        held[self.arcs.vertices[~active[arc_of]]] = True
        xy, is_active = self.outlines.xy * self.scale, active[self.walls.arc]
        moved, straight = place_corners(self.walls, self.directions, active=is_active & ~loose, xy=xy, held=held)
        far = np.hypot(*(moved - xy).T) > _FARTHEST * self.tolerance
        shown = self._corners(active[arc_of], self.walls.ends[is_active].ravel(), straight)
        moved = np.where(held[:, None] | (moved == xy).all(axis=1)[:, None], self.outlines.xy, moved / self.scale)
        return moved, shown, far

    def _with_neighbours(self, vertices: Bools, polygons: Bools) -> Bools:
        """Polygons with one of some vertices, or with one of some polygons' vertices."""
        owner, vertices = self.outlines.polygon_of_vertex, vertices.copy()
        vertices[self.outlines.vertices[polygons[owner]]] = True
        found = np.zeros(len(polygons), bool)
        found[owner[vertices[self.outlines.vertices]]] = True
        return found

    def _corners(self, active: Bools, ends: Ints, straight: Bools) -> Bools:
        """Vertices that are shown: ends of walls instead of what simplification left along them."""
        vertices, offsets = self.arcs.vertices, self.arcs.offsets
        inner = np.ones(len(vertices), bool)
        inner[offsets[:-1]], inner[offsets[1:] - 1] = False, False
        first = vertices[offsets[:-1]]
        closed = first == vertices[offsets[1:] - 1]
        shown = self.shown.copy()
        shown[vertices[inner & active]] = False
        shown[ends] = True
        junction = np.zeros(len(shown), bool)
        junction[vertices[offsets[:-1]][~closed]] = True
        junction[vertices[offsets[1:] - 1][~closed]] = True
        return shown & (junction | ~straight)


def _overlapping(polygons: Geometries, buildings: Bools) -> Bools:
    """Buildings that are invalid, or do not meet other buildings edge to edge."""
    own = np.flatnonzero(buildings)
    found = np.zeros(len(polygons), bool)
    found[own] = ~shapely.is_valid(polygons[own]) | ~shapely.is_empty(shapely.coverage_invalid_edges(polygons[own]))
    return found


def _uncovered(polygons: Geometries) -> Geometries:
    """Edges at which polygons do not meet edge to edge, or all of what is invalid elsewhere; else empty."""
    odd = shapely.coverage_invalid_edges(polygons)
    return np.where(shapely.is_valid(polygons) | ~shapely.is_empty(odd), odd, polygons)


def _iou(one: Geometries, other: Geometries) -> Floats:
    """Intersection over union; 0 where one is invalid."""
    iou = np.zeros(len(one))
    same = shapely.equals_exact(one, other, 0.0)
    iou[same] = 1.0
    valid = shapely.is_valid(one) & ~same
    shared = shapely.area(shapely.intersection(one[valid], other[valid]))
    iou[valid] = shared / (shapely.area(one[valid]) + shapely.area(other[valid]) - shared)
    return iou


def _left_by(simplified: Geometries, outlines: Outlines) -> Bools:
    """Vertices that the simplified polygons have."""
    width = int(outlines.xy[:, 0].max(initial=0)) + 1
    own, left = (xy[:, 1] * width + xy[:, 0] for xy in (outlines.xy, shapely.get_coordinates(simplified)))
    return np.isin(own, left)


def _rims(outlines: Outlines, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Edges of the scene on which each vertex lies: one bit each."""
    x, y = outlines.xy.T
    return np.packbits(
        np.stack([x == 0, y == 0, x == shape[1], y == shape[0]], axis=1), axis=1, bitorder="little"
    ).ravel()


def _arcs(outlines: Outlines, buildings: Bools, rims: NDArray[np.uint8], scale: Floats) -> tuple[Arcs, Bools]:
    """Arcs of the buildings' outlines, and the vertices at which arcs end.

    They end where more than two edges meet, and where the edge of the scene begins or turns.
    """
    from pipeline.vector import wall_kernels  # noqa: PLC0415 - Numba takes half a second to import

    start, stop, count = outlines.vertices, outlines.next_vertices, len(outlines.xy)
    keys, edges = np.unique(np.minimum(start, stop) * count + np.maximum(start, stop), return_inverse=True)
    ends = np.stack([keys // count, keys % count])
    degree = np.bincount(ends.ravel(), minlength=count)
    along_rim = ends[:, (rims[ends[0]] & rims[ends[1]]) > 0]
    on_rim = np.bincount(along_rim.ravel(), minlength=count)
    turns = (rims & (rims - 1).astype(np.uint8)) > 0
    cut = (degree > 2) | (on_rim == 1) | turns  # noqa: PLR2004 - more than one line passes
    rings = np.flatnonzero(buildings[outlines.polygon_of_ring])
    low, size = outlines.ring_offsets[rings], np.diff(outlines.ring_offsets)[rings]
    offsets = np.concatenate([[0], np.cumsum(size)])
    places = np.repeat(low - offsets[:-1], size) + np.arange(offsets[-1])
    arcs = wall_kernels.wall_arcs(
        offsets, outlines.polygon_of_ring[rings], outlines.vertices[places], edges[places], cut, outlines.xy * scale
    )
    return Arcs(*arcs), cut


def _groups(traced: Geometries, buildings: Bools, near: float) -> Ints:
    """Number of the group of touching or close buildings that each polygon is in; of no meaning for others."""
    own = np.flatnonzero(buildings)
    pairs = shapely.STRtree(traced[own]).query(traced[own], "dwithin", distance=near)
    graph = coo_array((np.ones(pairs.shape[1], bool), tuple(pairs)), shape=(len(own), len(own)))
    groups = np.zeros(len(buildings), np.int64)
    groups[own] = connected_components(graph, directed=False)[1]
    return groups
