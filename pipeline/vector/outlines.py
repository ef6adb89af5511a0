"""Outlines of polygons over numbered vertices, so that what is moved is moved for all polygons that have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import shapely

from pipeline.vector.rings import Rings, from_shapely

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.vector.rings import Geometries, Ints

    Bools = NDArray[np.bool_]
    Floats = NDArray[np.float64]


_ON_EDGE_PX = 1e-7


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlines:
    """Rings of polygons, not closed: the edge from a ring's last vertex leads to its first."""

    xy: Floats
    """Where each vertex lies, in pixels, shape (vertex, 2); rows from the top, each from the left."""
    vertices: Ints
    """Vertices of all rings, one after the other, shape (ring vertex,)."""
    ring_offsets: Ints
    """Shape (ring + 1,), into `vertices`."""
    polygon_offsets: Ints
    """Shape (polygon + 1,), into rings; the first ring of a polygon is its exterior."""

    @classmethod
    def of(cls, polygons: Geometries) -> Outlines:
        """Outlines on the pixel lattice."""
        rings = from_shapely(polygons)
        xy = rings.coords[~rings.is_last].astype(np.int64)
        width = int(xy[:, 0].max(initial=0)) + 1
        keys, vertices = np.unique(xy[:, 1] * width + xy[:, 0], return_inverse=True)
        return cls(
            xy=np.stack([keys % width, keys // width], axis=1).astype(np.float64),
            vertices=vertices.astype(np.int64),
            ring_offsets=rings.ring_offsets - np.arange(len(rings.ring_offsets)),
            polygon_offsets=rings.polygon_offsets,
        )

    @property
    def polygon_of_ring(self) -> Ints:
        """Index of the polygon, per ring."""
        return np.repeat(np.arange(len(self.polygon_offsets) - 1), np.diff(self.polygon_offsets))

    @property
    def polygon_of_vertex(self) -> Ints:
        """Index of the polygon, per vertex of a ring."""
        return np.repeat(self.polygon_of_ring, np.diff(self.ring_offsets))

    @property
    def next_vertices(self) -> Ints:
        """The vertex to which the edge from each vertex of a ring leads."""
        return self.vertices[following(self.ring_offsets)]

    def to_polygons(self, xy: Floats, shown: Bools, otherwise: Geometries) -> tuple[Geometries, Bools]:
        """Polygons with vertices that were moved or taken away, and which of them collapsed.

        Holes that collapsed are left out. Where a moved vertex lies on a moved edge of another polygon, as where the
        gap between them closed, both have it.

        Args:
            xy: Where the vertices lie now.
            shown: Which vertices are left.
            otherwise: Polygons in place of those that collapsed.
        """
        picked, offsets = _without(self.ring_offsets, shown[self.vertices])
        vertices = self.vertices[picked]
        again, offsets = _without(offsets, (xy[vertices] != xy[vertices[following(offsets)]]).any(axis=1))
        vertices = vertices[again]
        few = np.diff(offsets) < 3  # noqa: PLR2004 - a triangle
        collapsed = few[self.polygon_offsets[:-1]]
        vertices, offsets = _with_nodes(vertices, offsets, xy, (xy != self.xy).any(axis=1))
        whole = ~few & ~collapsed[self.polygon_of_ring]
        vertices = vertices[np.repeat(whole, np.diff(offsets))]
        offsets = np.concatenate([[0], np.cumsum(np.diff(offsets)[whole])])
        count = np.bincount(self.polygon_of_ring[whole], minlength=len(collapsed))
        rings = Rings(
            coords=np.insert(xy[vertices], offsets[1:], xy[vertices[offsets[:-1]]], axis=0),
            ring_offsets=offsets + np.arange(len(offsets)),
            polygon_offsets=np.concatenate([[0], np.cumsum(count[~collapsed])]),
        )
        polygons = np.array(otherwise, object)
        polygons[~collapsed] = rings.to_shapely()
        return polygons, collapsed


def _with_nodes(vertices: Ints, offsets: Ints, xy: Floats, moved: Bools) -> tuple[Ints, Ints]:
    """Rings of vertices with those of other rings that lie on their edges, where one end has moved."""
    after = vertices[following(offsets)]
    edges = np.flatnonzero(moved[vertices] | moved[after])
    points = np.unique(vertices)
    tree = shapely.STRtree(np.asarray(shapely.points(xy[points])))
    lines = shapely.linestrings(np.stack([xy[vertices[edges]], xy[after[edges]]], axis=1))
    edge, point = tree.query(lines, "dwithin", distance=_ON_EDGE_PX)
    edge, point = edges[edge], points[point]
    step = xy[after[edge]] - xy[vertices[edge]]
    along = ((xy[point] - xy[vertices[edge]]) * step).sum(axis=1) / np.hypot(*step.T)
    inside = (along > 2 * _ON_EDGE_PX) & (along < np.hypot(*step.T) - 2 * _ON_EDGE_PX)
    edge, point, along = edge[inside], point[inside], along[inside]
    order = np.lexsort((point, np.round(along, 9), edge))
    edge, point = edge[order], point[order]
    new = (np.diff(edge, prepend=-1) != 0) | (xy[point] != xy[np.roll(point, 1)]).any(axis=1)
    edge, point = edge[new], point[new]
    return np.insert(vertices, edge + 1, point), offsets + np.searchsorted(edge, offsets)


def following(offsets: Ints) -> Ints:
    """For each place in rings one after the other: the next place of the same ring."""
    after = np.arange(1, offsets[-1] + 1)
    some = offsets[1:] > offsets[:-1]
    after[offsets[1:][some] - 1] = offsets[:-1][some]
    return after


def _without(offsets: Ints, kept: Bools) -> tuple[Ints, Ints]:
    """Places that are kept, and where the rings begin among them."""
    return np.flatnonzero(kept), np.concatenate([[0], np.cumsum(kept)])[offsets]
