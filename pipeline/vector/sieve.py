"""Small regions given to their neighbours before anything is traced; exact across tiles, and all at once.

Each region below the limit takes the class of the neighbour that it shares the longest border with; of equal borders
the lower class wins. Neighbours count as they were, small ones too, so the order of regions means nothing. A region
without a neighbour, surrounded by nodata, is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.vector.seams import Cells, Survey, label_cells

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.grid import Window
    from pipeline.vector.area import PixelAreas
    from pipeline.vector.rings import Ints
    from pipeline.vector.seams import Labelled, Tile

_DROPPED = -1


def sieve(
    read: Callable[[Window], Cells],
    shape_hw: tuple[int, int],
    *,
    tile_hw: tuple[int, int],
    areas: PixelAreas,
    min_area_m2: float,
) -> Callable[[Window], Cells]:
    """Cells in which small regions have the class of a neighbour.

    Args:
        read: Gives the cells of a window.
        shape_hw: Height and width of the mask.
        tile_hw: Height and width of a tile; no influence on the result.
        areas: Geodesic area of each pixel.
        min_area_m2: Regions below it are given away.

    Returns:
        A function like `read`, for the windows of these tiles only.

    Law: the result is that of one tile (properties/test_vector_sieve.py).
    """
    survey = Survey.make(read, shape_hw, tile_hw)
    sizes = [_sizes(tile, read, areas) for tile in survey.tiles]
    region_size = np.zeros(len(survey.seams.values), np.int64)
    for tile, size in zip(survey.tiles, sizes, strict=True):
        np.add.at(region_size, survey.regions_of(tile), size[tile.touched])
    small_region = areas.to_m2(region_size) < min_area_m2
    changes = {}
    claims = []  # of small regions at seams: region, class, length of border with it
    first_piece = 0
    for number, tile in enumerate(survey.tiles):
        limits = _Small(areas.to_m2(sizes[number]) < min_area_m2, small_region)
        changes[tile.window], found = _claims(survey, number, read, limits, first_piece=first_piece)
        claims.append(found)
        first_piece += len(sizes[number])
    region_class = survey.seams.values.copy()
    region_class[small_region] = _DROPPED
    winners = _longest(np.concatenate([np.empty((0, 4), np.int64), *claims]))
    region_class[winners[:, 0]] = winners[:, 1]
    for tile in survey.tiles:
        changes[tile.window][tile.touched] = region_class[survey.regions_of(tile)]
    return _Sieved(read, changes)


@dataclass(frozen=True, slots=True)
class _Sieved:
    read: Callable[[Window], Cells]
    changes: dict[Window, Ints]
    """Tile -> class of each of its labels, -1 for none."""

    def __call__(self, window: Window) -> Cells:
        apron, _ = label_cells(self.read(window))
        values = self.changes[window][apron[1:-1, 1:-1]].astype(np.int32)
        return Cells(values, values != _DROPPED)


def _sizes(tile: Tile, read: Callable[[Window], Cells], areas: PixelAreas) -> Ints:
    """Area of each label of a tile, in units."""
    from pipeline.vector import kernels  # noqa: PLC0415 - Numba takes half a second to import

    kept, values = tile.kept or label_cells(read(tile.window))
    window, (cell_h, cell_w) = tile.window, areas.cell_hw
    rows = np.arange(window.row_off, window.row_stop) // cell_h
    cols = np.arange(window.col_off, window.col_stop) // cell_w
    labels = kept[1:-1, 1:-1].astype(np.int32)
    return np.asarray(kernels.sum_by_label(labels, rows, cols, areas.cells, len(values)), np.int64)


class _Small(NamedTuple):
    """What is below the limit."""

    pieces: NDArray[np.bool_]
    """Labels of a tile."""
    regions: NDArray[np.bool_]
    """Regions at seams."""


def _claims(
    survey: Survey, number: int, read: Callable[[Window], Cells], limits: _Small, *, first_piece: int
) -> tuple[Ints, Ints]:
    """(class of each label of a tile, where it is known; borders of small regions at seams)."""
    from pipeline.vector import kernels  # noqa: PLC0415 - Numba takes half a second to import

    tile = survey.tiles[number]
    labelled = survey.labelled(number, read)
    small = limits.pieces.copy()
    small[0] = False
    small[tile.touched] = limits.regions[survey.regions_of(tile)]
    classes = labelled.values.copy()
    classes[0] = _DROPPED
    classes[small] = _DROPPED
    pairs = kernels.borders(labelled.apron, small, limits.regions).astype(np.int64)
    both = np.concatenate([pairs, pairs[:, ::-1]])
    claims = _counted(both, labelled, _Small(small, limits.regions), survey.seams.values)
    claims[claims[:, 2] < 0, 2] -= first_piece  # numbers of their own among the pieces of all tiles
    at_seam = claims[:, 0] >= 0
    inner = claims[~at_seam]
    inner[:, 0] = -inner[:, 0]
    winners = _longest(inner)
    classes[winners[:, 0]] = winners[:, 1]
    return classes, claims[at_seam]


def _counted(pairs: Ints, labelled: Labelled, small: _Small, region_values: Ints) -> Ints:
    """Rows (who, class of the neighbour, which neighbour, cracks) of each small region and each of its neighbours.

    `who` is the region at a seam, or minus the label of one that the tile holds whole; neighbours likewise.
    """
    count = len(labelled.values)
    key = -np.arange(count)
    key[labelled.labels] = labelled.regions
    is_far = pairs >= count
    here = np.where(is_far, 0, pairs)
    there = np.where(is_far, pairs - count, 0)
    regions = region_values if len(region_values) else np.zeros(1, np.int64)
    small_there = small.regions if len(small.regions) else np.zeros(1, bool)
    who = np.where(is_far, there, key[here])
    value = np.where(is_far, regions[there], labelled.values[here])
    is_small = np.where(is_far, small_there[there], small.pieces[here])[:, 0]
    rows = np.stack([who[:, 0], value[:, 1], who[:, 1]], axis=1)[is_small]
    if not len(rows):
        return np.empty((0, 4), np.int64)
    rows, counts = np.unique(rows, axis=0, return_counts=True)
    return np.concatenate([rows, counts[:, None]], axis=1)


def _longest(claims: Ints) -> Ints:
    """Rows (who, class): for each the neighbour with most cracks over all rows, of equal ones the lower class."""
    if not len(claims):
        return np.empty((0, 2), np.int64)
    rows, inverse = np.unique(claims[:, :3], axis=0, return_inverse=True)
    lengths = np.zeros(len(rows), np.int64)
    np.add.at(lengths, inverse.ravel(), claims[:, 3])
    order = np.lexsort((rows[:, 1], -lengths, rows[:, 0]))
    first = np.unique(rows[order, 0], return_index=True)[1]
    return rows[order][first][:, :2]
