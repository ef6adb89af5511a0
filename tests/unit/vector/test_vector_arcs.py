"""Arcs that are hard to simplify: what keeps them apart, from both sides alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import shapely
from scipy.ndimage import gaussian_filter

from pipeline.vector import arc_kernels
from pipeline.vector.cracks import CrackMap
from pipeline.vector.join import iter_regions
from pipeline.vector.pieces import Cells
from pipeline.vector.rings import Rings, from_shapely
from tests.unit.vector.masks import NODATA, blobs

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Mask = NDArray[np.uint8]

_ANY = 1 << 30
"""Doubled area that no corner of these masks has: all go that may."""


def _rings(mask: Mask) -> tuple[Rings, NDArray[np.int64]]:
    """All polygons with their nodes, and their classes."""
    shape = (mask.shape[0], mask.shape[1])
    (traced, _) = iter_regions(
        lambda window: Cells(mask[window.slices_in(window)], mask != NODATA), shape, tile_hw=shape, nodes=True
    )
    return traced.rings, traced.values


def _simpler(mask: Mask, folder: Path, *, smooth: bool = False, limit: int = _ANY) -> dict[int, shapely.Polygon]:
    """Class -> its polygon."""
    rings, values = _rings(mask)
    cracks = CrackMap(folder / "cracks", (mask.shape[0], mask.shape[1]))
    cracks.draw(rings)
    polygons = cracks.simpler(rings, smooth=smooth, limit=limit).to_shapely()
    assert shapely.is_valid(polygons).all()
    assert shapely.coverage_is_valid(polygons)
    return dict(zip(values.tolist(), polygons, strict=True))


def _lens(side: int, reach: int) -> Mask:
    """Two halves, and a square between them that is joined to both by one arc each."""
    mask = np.zeros((side, side), np.uint8)
    mask[side // 2 :] = 1
    mask[side // 2 - reach : side // 2 + reach, side // 2 - reach : side // 2 + reach] = 2
    return mask


@pytest.mark.parametrize("smooth", [False, True])
def test_two_arcs_with_the_same_ends_do_not_fall_on_each_other(tmp_path: Path, smooth: bool) -> None:  # noqa: FBT001
    found = _simpler(_lens(20, 5), tmp_path, smooth=smooth)
    assert len(found[2].exterior.coords) - 1 == 4  # both ends, and a corner of each


def test_nor_do_arcs_that_are_too_long_to_be_followed(tmp_path: Path) -> None:
    found = _simpler(_lens(700, 300), tmp_path)
    assert len(found[2].exterior.coords) - 1 == 4


def test_nor_does_one_fall_on_an_arc_that_was_straight(tmp_path: Path) -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[10:] = 1
    mask[5:10, 5:15] = 2
    found = _simpler(mask, tmp_path)
    assert len(found[2].exterior.coords) - 1 == 3


def test_an_arc_between_others_becomes_straight(tmp_path: Path) -> None:
    mask = np.ones((20, 20), np.uint8)
    mask[np.triu_indices(20)] = 0
    found = _simpler(mask, tmp_path)
    assert [len(found[value].exterior.coords) - 1 for value in (0, 1)] == [5, 3]
    assert found[0].area + found[1].area == 400


def test_an_island_keeps_three_corners_and_what_lies_in_it(tmp_path: Path) -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[3:17, 3:17] = 1
    mask[4:6, 4:6], mask[14:16, 14:16], mask[4:6, 14:16], mask[14:16, 4:6] = 2, 3, 4, 5
    found = _simpler(mask, tmp_path)
    assert len(found[1].exterior.coords) - 1 == 4  # each corner is held by the island behind it
    assert [len(found[value].exterior.coords) - 1 for value in (2, 3, 4, 5)] == [3, 3, 3, 3]


def test_a_corner_that_holds_nothing_goes(tmp_path: Path) -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[3:17, 3:17] = 1
    mask[4:6, 4:6] = 2
    assert len(_simpler(mask, tmp_path)[1].exterior.coords) - 1 == 3


_HOOK = """
...........
.##...##...
.######.##.
.###.##..#.
.....##..#.
.....##..#.
....####.#.
......##...
.......##..
....######.
..........."""


def test_an_arc_does_not_cross_itself(tmp_path: Path) -> None:
    mask = np.array([[letter == "#" for letter in line] for line in _HOOK.split()], np.uint8)
    assert len(_simpler(mask, tmp_path, limit=2)) == 2


@pytest.mark.parametrize("limit", [2, 8, 18, 50])
def test_islands_of_many_shapes_stay_valid(tmp_path: Path, limit: int) -> None:
    """Large regions of one arc each: what could cross is the arc itself."""
    rng = np.random.default_rng(limit)
    for _ in range(60):
        side, roughness = int(rng.integers(6, 26)), rng.uniform(0.5, 1.2)
        mask = np.zeros((side, side), np.uint8)
        mask[1:-1, 1:-1] = gaussian_filter(rng.standard_normal((side, side)), roughness)[1:-1, 1:-1] > 0
        _simpler(mask, tmp_path, limit=limit, smooth=bool(rng.integers(2)))


def test_what_touches_at_corners_still_does(tmp_path: Path) -> None:
    mask = np.kron(np.array([[0, 1], [2, 3]], np.uint8), np.ones((5, 5), np.uint8))
    mask[5, 5], mask[4, 4] = 4, 5
    found = _simpler(mask, tmp_path)
    assert found[4].intersection(found[5]).equals(shapely.Point(5, 5))


@pytest.mark.parametrize("limit", [0, 1, 2, 8])
def test_a_corner_as_large_as_the_limit_goes(tmp_path: Path, limit: int) -> None:
    mask = np.ones((20, 20), np.uint8)
    mask[:10] = 0
    mask[9, 5] = 1  # doubled, 1
    mask[5:7, 5:7] = 2  # doubled, 4
    found = _simpler(mask, tmp_path, limit=limit)
    corners = {tuple(xy) for xy in shapely.get_coordinates(found[1])}
    assert ((5, 9) in corners) == (limit < 1)
    assert len(found[2].exterior.coords) - 1 == (3 if limit >= 4 else 4)


def test_vertices_of_a_smoothed_coverage_are_known_from_its_cracks(tmp_path: Path) -> None:
    mask = blobs(40, sigma=0.7)
    rings, _ = _rings(mask)
    cracks = CrackMap(tmp_path / "cracks", (40, 40))
    cracks.draw(rings)
    for smooth, scale in ((False, 1), (True, 2)):
        coverage = arc_kernels.Coverage(cracks._mapped(), 40, 40, scale)
        smoothed = cracks.simpler(rings, smooth=smooth, limit=-1)
        drawn = {(int(x), int(y)) for x, y in (smoothed.coords * scale).tolist()}
        side = range(40 * scale + 1)
        assert drawn == {(x, y) for x in side for y in side if arc_kernels._is_vertex(coverage, x, y)}


def test_the_direction_of_rings_is_of_no_account(tmp_path: Path) -> None:
    rings, _ = _rings(blobs(60, sigma=1.0))
    turned = from_shapely(shapely.reverse(rings.to_shapely()))
    cracks = CrackMap(tmp_path / "cracks", (60, 60))
    cracks.draw(rings)
    one, other = (cracks.simpler(some, smooth=False, limit=18).to_shapely() for some in (rings, turned))
    assert shapely.equals_exact(shapely.normalize(one), shapely.normalize(other), 0.0).all()
