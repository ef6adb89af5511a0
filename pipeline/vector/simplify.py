"""Simplification that keeps the coverage: an edge that two polygons share moves once, for both.

What becomes of an edge is known from the edge and from a map of all edges around it, so that each polygon is simplified
by itself, batch after batch, and its neighbours come to the same (docs/adr/0016-arcs-by-themselves.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.vector.cracks import CrackMap
from pipeline.vector.faults import disk_errors
from pipeline.vector.rings import from_shapely
from pipeline.vector.spool import SCHEMA, SpoolReader

if TYPE_CHECKING:
    from pathlib import Path


class Tolerance(NamedTuple):
    """How far a simplification may go."""

    value: float
    unit: Literal["m", "px"]

    def to_px(self, pixel_m: float | None) -> float:
        """In pixels of a mask whose pixels have such sides; None where it is tied to no place on Earth.

        Raises:
            UsageError: CF-034, metres without a CRS.
        """
        if self.unit == "px":
            return self.value
        if pixel_m is None:
            raise UsageError(
                f"a tolerance of {self.value:g} m was asked for, but the mask has no CRS to measure in",
                code="CF-034",
                title="Tolerance needs a CRS",
                fix=f"give it in pixels, such as `{self.value:g} px`",
            )
        return self.value / pixel_m


_MOST_AREA = (1 << 31) - 1
"""Largest doubled area that is told from larger ones: 32 767 px of tolerance are as good as any more."""


def simplify_spool(
    path: Path, target: Path, *, scene_hw: tuple[int, int], smooth: bool, tolerance_px: float | None, by_class: bool
) -> Path:
    """Write a spool whose polygons have fewer corners, `target`; what was measured of them before stays.

    Args:
        path: The spool; outlines follow pixels, with a vertex wherever three regions meet.
        target: The new one; polygons lie in it as they did, those of one tile together.
        scene_hw: Height and width of the mask.
        smooth: Cut every corner of an edge between two regions half a pixel before and after it, so that staircases
            become straight; where three regions meet, or two touch at a corner, and at the scene's rim nothing moves.
        tolerance_px: Then corners go whose triangle is no larger than the square of this, junctions excepted. 1 takes
            the steps of diagonal edges, 2 those of all slanting edges up to 1 : 8. None for no more.
        by_class: Classes overlap, so that each is a coverage of its own.

    Raises:
        ResourceError: RS-002, the disk is full.

    Law: as many polygons as before, all valid, none empty; a coverage stays one (properties/test_vector_simplify.py).
    Source: Visvalingam and Whyatt 1993, for the order in which corners go.
    """
    limit = -1 if tolerance_px is None else _doubled_area(tolerance_px * (2 if smooth else 1))
    with SpoolReader(path) as reader, disk_errors(target), pa.ipc.new_file(str(target), SCHEMA) as file:
        for order in reader.coverages(by_class=by_class):
            cracks = CrackMap(target.with_suffix(".cracks"), scene_hw)
            for batch in reader.iter_batches(order=order):
                cracks.draw(from_shapely(batch.polygons))
            for batch in reader.iter_batches(order=order):
                rings = cracks.simpler(from_shapely(batch.polygons), smooth=smooth, limit=limit)
                file.write_batch(batch.record(rings.to_shapely()))
    return target


def _doubled_area(side: float) -> int:
    """Of the triangle of a corner that just goes."""
    return int(min(2 * side * side, _MOST_AREA))
