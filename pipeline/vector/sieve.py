"""Small regions given to their neighbours before anything is traced; exact across tiles, and all at once.

Each region below the limit takes the class of the neighbour that it shares the longest border with; of equal borders
the lower class wins. Neighbours count as they were, small ones too, so the order of regions means nothing. A region
without a neighbour, surrounded by nodata, is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.grid import iter_windows
from pipeline.vector.pieces import Cells, Pieces
from pipeline.vector.seams import Survey

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from pipeline.grid import Window
    from pipeline.vector.area import PixelAreas
    from pipeline.vector.rings import Ints
    from pipeline.vector.seams import Tile

_DROPPED = -1


def sieved(
    read: Callable[[Window], Cells],
    shape_hw: tuple[int, int],
    *,
    tile_hw: tuple[int, int],
    areas: PixelAreas,
    min_area_m2: float,
    progress: Callable[[int, int], None] | None = None,
) -> Sieved:
    """Cells in which small regions have the class of a neighbour.

    Args:
        read: Gives the cells of a window.
        shape_hw: Height and width of the mask.
        tile_hw: Height and width of a tile; no influence on the result.
        areas: Geodesic area of each pixel.
        min_area_m2: Regions below it are given away.
        progress: Called with (steps done, steps in all): two for each tile.

    Returns:
        A function like `read`, for the windows of these tiles only.

    Law: the result is that of one tile (properties/test_vector_sieve.py).
    """
    num_tiles = len(list(iter_windows(shape_hw, tile_hw)))
    steps = iter(range(1, 2 * num_tiles + 1))

    def advance() -> None:
        if progress is not None:
            progress(next(steps), 2 * num_tiles)

    survey = Survey.make(read, shape_hw, tile_hw, advance=advance)
    sizes = [_sizes(tile, read, areas) for tile in survey.tiles.values()]
    region_size = np.zeros(len(survey.seams.values), np.int64)
    for tile, size in zip(survey.tiles.values(), sizes, strict=True):
        np.add.at(region_size, survey.regions_of(tile), size[tile.touched])
    small_region = areas.to_m2(region_size) < min_area_m2
    changes, claims, first_piece = {}, [np.empty((0, 4), np.int64)], 0
    for number, tile in survey.tiles.items():
        small = areas.to_m2(sizes[number]) < min_area_m2
        changes[tile.window], found = _claims(survey, number, read, small, small_region, first_piece=first_piece)
        claims.append(found)
        first_piece += len(small)
        advance()
    region_class = np.where(small_region, _DROPPED, survey.seams.values)
    winners = _longest(np.concatenate(claims))
    region_class[winners[:, 0]] = winners[:, 1]
    for tile in survey.tiles.values():
        changes[tile.window][tile.touched] = region_class[survey.regions_of(tile)]
    return Sieved(read, changes)


@dataclass(frozen=True, slots=True)
class Sieved:
    """Reads tiles in which small regions have the class of a neighbour."""

    read: Callable[[Window], Cells]
    changes: Mapping[Window, Ints]
    """Tile -> class of each of its labels, -1 for none."""

    def __call__(self, window: Window) -> Cells:
        """Cells of a tile."""
        values = Pieces.of(self.read(window)).apron(self.changes[window].astype(np.int32))[1:-1, 1:-1]
        return Cells(values, values != _DROPPED)


def _sizes(tile: Tile, read: Callable[[Window], Cells], areas: PixelAreas) -> Ints:
    """Area of each label of a tile, in units."""
    from pipeline.vector import kernels  # noqa: PLC0415 - Numba takes half a second to import

    pieces = tile.pieces(read)
    window, (cell_h, cell_w) = tile.window, areas.cell_hw
    rows = np.arange(window.row_off, window.row_stop) // cell_h
    cols = np.arange(window.col_off, window.col_stop) // cell_w
    labels = np.ascontiguousarray(pieces.apron()[1:-1, 1:-1])
    return np.asarray(kernels.sum_by_label(labels, rows, cols, areas.cells, len(pieces.values)), np.int64)


def _claims(
    survey: Survey,
    number: int,
    read: Callable[[Window], Cells],
    small: NDArray[np.bool_],
    small_region: NDArray[np.bool_],
    *,
    first_piece: int,
) -> tuple[Ints, Ints]:
    """(class of each label of a tile, where it is known; claims on small regions at seams).

    Args:
        survey: What the first sweep found.
        number: Of the tile.
        read: Gives its cells.
        small: Whether each of its labels is, taken by itself.
        small_region: Whether each region at a seam is.
        first_piece: Labels of the tiles before it.
    """
    from pipeline.vector import kernels  # noqa: PLC0415 - Numba takes half a second to import

    tile, labelled = survey.tiles[number], survey.labelled(number, read)
    small = small.copy()
    small[0], small[tile.touched] = False, small_region[survey.regions_of(tile)]
    classes = np.where(small, _DROPPED, labelled.values)
    classes[0] = _DROPPED
    # Of all labels in the apron: those of the tile, then the regions at seams.
    who = np.concatenate([-np.arange(len(small)), np.arange(len(small_region))])
    who[labelled.labels] = labelled.regions
    value = np.concatenate([labelled.values, survey.seams.values])
    is_small = np.concatenate([small, small_region])
    pairs = kernels.borders(labelled.apron, is_small)
    one, other = np.concatenate([pairs, pairs[:, ::-1]]).T
    # Pieces get numbers of their own among those of all tiles.
    neighbour = np.where(who[other] < 0, who[other] - first_piece, who[other])
    cracks = np.stack([who[one], value[other], neighbour], axis=1)[is_small[one]]
    claims = _counted(cracks, np.ones(len(cracks), np.int64))
    at_seam = claims[:, 0] >= 0
    winners = _longest(claims[~at_seam])
    classes[-winners[:, 0]] = winners[:, 1]
    return classes, claims[at_seam]


def _counted(claims: Ints, cracks: Ints) -> Ints:
    """Claims (who, class of the neighbour, which neighbour, cracks), each once.

    `who` is the region at a seam, or minus the label of one that its tile holds whole; neighbours likewise.
    """
    if not len(claims):
        return np.empty((0, 4), np.int64)
    rows, inverse = np.unique(claims, axis=0, return_inverse=True)
    total = np.zeros(len(rows), np.int64)
    np.add.at(total, inverse.ravel(), cracks)
    return np.column_stack([rows, total])


def _longest(claims: Ints) -> Ints:
    """Rows (who, class): for each the neighbour with most cracks over all claims, of equal ones the lower class."""
    who, value, _, cracks = _counted(claims[:, :3], claims[:, 3]).T
    order = np.lexsort((value, -cracks, who))
    first = np.unique(who[order], return_index=True)[1]
    return np.column_stack([who, value])[order][first]
