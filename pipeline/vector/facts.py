"""What is known of a region beside its outline: whether it meets nodata, and how sure the network was of its pixels.

All of it is counted in whole numbers per tile and added up over the tiles of a region, so that neither tiles nor their
order leave a trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.grid import Window

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.vector.pieces import Cells, Labels
    from pipeline.vector.rings import Ints

_NODATA, _SUM, _LEAST, _UNSURE = range(4)
_MOST_STEPS = 255
UNSURE_BELOW = 0.7
"""Pixels whose class has a lower probability are counted as uncertain."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Of some regions, or of parts of them."""

    table: Ints
    """Shape (region, 4): 1 where it meets nodata, sum and least of its pixels' probabilities in steps, uncertain
    pixels."""

    @classmethod
    def none_yet(cls, count: int) -> Facts:
        """Of regions no pixel of which was seen."""
        table = np.zeros((count, 4), np.int64)
        table[:, _LEAST] = _MOST_STEPS
        return cls(table)

    def add(self, regions: Ints, parts: Facts) -> None:
        """Take in parts of `regions`; a region may be named several times."""
        np.maximum.at(self.table[:, _NODATA], regions, parts.table[:, _NODATA])
        np.minimum.at(self.table[:, _LEAST], regions, parts.table[:, _LEAST])
        for column in (_SUM, _UNSURE):
            np.add.at(self.table[:, column], regions, parts.table[:, column])

    def of(self, regions: NDArray[np.integer]) -> Facts:
        """Those of some regions."""
        return Facts(self.table[regions])

    @property
    def touches_nodata(self) -> NDArray[np.bool_]:
        """Whether a pixel of the region shares an edge with a pixel without a class."""
        return np.asarray(self.table[:, _NODATA] > 0)

    @property
    def steps_sum(self) -> Ints:
        """Sum of the pixels' probabilities of their class, as stored."""
        return self.table[:, _SUM]

    @property
    def steps_min(self) -> Ints:
        """Least of them."""
        return self.table[:, _LEAST]

    @property
    def unsure_px(self) -> Ints:
        """Pixels whose class has a probability below `UNSURE_BELOW`."""
        return self.table[:, _UNSURE]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Looks at the pixels of a tile's regions."""

    read: Callable[[Window], Cells]
    """Gives the cells of any window, as they were before anything was sieved."""
    shape_hw: tuple[int, int]
    """Height and width of the mask."""
    steps: Callable[[Window, NDArray[np.generic]], NDArray[np.uint8]] | None = None
    """Gives the stored probability `(y, x)` of each pixel of a window having the class that it has, given the classes;
    None where no probabilities were kept."""
    unsure_below: int = 0
    """`UNSURE_BELOW` as stored."""

    def __call__(self, window: Window, apron: Labels, count: int) -> Facts:
        """Facts of a tile's labels.

        Args:
            window: The tile.
            apron: Its labels `(y + 2, x + 2)` with those around it; 0 for no region.
            count: Labels of the tile are below this.
        """
        from pipeline.vector import kernels  # noqa: PLC0415 - Numba takes half a second to import

        facts = Facts.none_yet(count)
        around = Window.from_bounds(
            max(window.row_off - 1, 0),
            max(window.col_off - 1, 0),
            min(window.row_stop + 1, self.shape_hw[0]),
            min(window.col_stop + 1, self.shape_hw[1]),
        )
        cells = self.read(around)
        if cells.valid is not None:
            absent = np.zeros(apron.shape, bool)
            row, col = around.row_off - window.row_off + 1, around.col_off - window.col_off + 1
            absent[row : row + around.height, col : col + around.width] = ~cells.valid
            facts.table[:, _NODATA] = kernels.meets(apron, absent, count)
        if self.steps is not None:
            steps = self.steps(window, cells.values[window.slices_in(around)])
            kernels.add_steps(np.ascontiguousarray(apron[1:-1, 1:-1]), steps, self.unsure_below, facts.table[:, _SUM:])
        return facts
