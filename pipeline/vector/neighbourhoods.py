"""Which polygons have to be looked at together, so that many can be worked on in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.vector.rings import Ints


def neighbourhoods(
    boxes: NDArray[np.float64], chosen: NDArray[np.bool_], corners: Ints, *, reach: float, most: int
) -> list[Ints]:
    """Chosen polygons and what lies near them, in parts that are farther apart than `reach`.

    Args:
        boxes: Bounds of each polygon `(polygon, 4)`: least x and y, largest x and y.
        chosen: Which of them matter, shape (polygon,).
        corners: Of each polygon, shape (polygon,).
        reach: Polygons whose boxes are as close as this to that of a chosen one belong to it, and so on.
        most: Neighbourhoods are put together up to so many corners; one of more stands by itself.

    Returns:
        Numbers of polygons, ascending; the parts in the order of their first polygons. Polygons near no chosen one are
        in none of them.
    """
    number = np.flatnonzero(chosen)
    if not len(number):
        return []
    grown = np.asarray(shapely.box(*(boxes + np.array([-reach, -reach, reach, reach])).T))
    near, of = shapely.STRtree(np.asarray(shapely.box(*boxes[number].T))).query(grown)
    graph = coo_array((np.ones(len(near), bool), (near, number[of])), shape=(len(boxes), len(boxes)))
    part_of = connected_components(graph, directed=False)[1]
    kept = np.unique(np.concatenate([near, number]))
    _, first, part = np.unique(part_of[kept], return_index=True, return_inverse=True)
    sizes = np.bincount(part, corners[kept]).astype(np.int64)
    bins, total, current = np.zeros(len(first), np.int64), 0, 0
    for place in np.argsort(first):
        if total and total + sizes[place] > most:
            current, total = current + 1, 0
        bins[place], total = current, total + int(sizes[place])
    order = np.argsort(bins[part], kind="stable")
    return np.split(kept[order], np.searchsorted(bins[part][order], np.arange(1, current + 1)))
