"""Which cracks of a mask are edges of polygons: two bits for each corner of the pixel lattice, in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.vector.faults import disk_errors
from pipeline.vector.rings import Rings

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_CORNERS_PER_BYTE = 4
_ROWS_AT_ONCE = 256


class CrackMap:
    """All that is known of a coverage: east and south of each corner of the lattice, is there an edge?

    The file is mapped anew for each batch of polygons, as what was seen of it counts as memory while it is mapped.
    """

    def __init__(self, path: Path, scene_hw: tuple[int, int]) -> None:
        """Make the file.

        Args:
            path: Of the file; replaced if there is one.
            scene_hw: Height and width of the mask.

        Raises:
            ResourceError: RS-002, the disk is full.
        """
        self._path = path
        self._scene_hw = scene_hw
        height, width = (side + 2 for side in scene_hw)  # a corner more than pixels, and an apron above and to the left
        self._shape = height, -(-width // _CORNERS_PER_BYTE)
        with disk_errors(path), path.open("wb") as file:
            for start in range(0, height, _ROWS_AT_ONCE):  # written, as a full disk would end a process that maps it
                file.write(bytes(min(_ROWS_AT_ONCE, height - start) * self._shape[1]))

    def draw(self, rings: Rings) -> None:
        """Mark the edges of polygons."""
        from pipeline.vector import arc_kernels  # noqa: PLC0415 - Numba takes half a second to import

        arc_kernels.draw(self._mapped(), rings.coords, rings.ring_offsets)

    def simpler(self, rings: Rings, *, smooth: bool, limit: int) -> Rings:
        """Polygons with fewer corners, once all of the coverage are drawn; see `arc_kernels.simpler`."""
        from pipeline.vector import arc_kernels  # noqa: PLC0415 - see `draw`

        coverage = arc_kernels.Coverage(self._mapped(), *self._scene_hw, 2 if smooth else 1)
        coords, offsets = arc_kernels.simpler(coverage, rings.coords, rings.ring_offsets, limit)
        return Rings(coords=coords, ring_offsets=offsets, polygon_offsets=rings.polygon_offsets)

    def _mapped(self) -> NDArray[np.uint8]:
        return np.asarray(np.memmap(self._path, np.uint8, "r+", shape=self._shape))
