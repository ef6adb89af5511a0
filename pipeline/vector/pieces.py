"""What a mask is made of: the 4-connected pieces of a window, as runs of pixels along its rows. Knows no geometry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.vector.rings import Ints

    Labels = NDArray[np.int32]


class Cells(NamedTuple):
    """Pixels of one window, with the class of each."""

    values: NDArray[np.generic]
    """Shape `(y, x)`, any integer type."""
    wanted: NDArray[np.bool_] | None
    """The same shape, False where a pixel belongs to no region; None where all do."""
    valid: NDArray[np.bool_] | None = None
    """The same shape, False where a pixel has no class; None where all have one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """Labels of a window: 0 for no piece, else 1, 2, 3, … in the order of their first pixels."""

    width: int
    """Of the window."""
    offsets: Ints
    """Where the runs of each row begin among all, shape `(y + 1,)`."""
    starts: Labels
    """First column of each run, shape (run,); it ends where the next one of its row begins."""
    labels: Labels
    """Of each run."""
    values: Ints
    """Class of each label, from 0."""

    @classmethod
    def of(cls, cells: Cells) -> Pieces:
        """Label some cells."""
        from pipeline.vector import kernels  # noqa: PLC0415 - Numba takes half a second to import

        block = cells.values
        block = block.view(np.uint8) if block.dtype == bool else block.astype(block.dtype.newbyteorder("="), copy=False)
        block = np.ascontiguousarray(block)  # another layout would be compiled for itself
        wanted = np.empty((0, 0), np.bool_) if cells.wanted is None else np.ascontiguousarray(cells.wanted)
        offsets, starts, labels, values = kernels.label_runs(block, wanted)
        return cls(width=block.shape[1], offsets=offsets, starts=starts, labels=labels, values=values)

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return self.offsets.nbytes + self.starts.nbytes + self.labels.nbytes + self.values.nbytes

    def row(self, number: int) -> Labels:
        """Labels along a row, from above; from below where it is negative."""
        number %= len(self.offsets) - 1
        runs = slice(self.offsets[number], self.offsets[number + 1])
        return np.repeat(self.labels[runs], np.diff(self.starts[runs], append=self.width))

    @property
    def first_column(self) -> Labels:
        """Labels along it."""
        return self.labels[self.offsets[:-1]]

    @property
    def last_column(self) -> Labels:
        """Labels along it."""
        return self.labels[self.offsets[1:] - 1]

    def apron(self, new: Labels | None = None) -> Labels:
        """Pixels `(y + 2, x + 2)`: the labels, or what they have in `new`, with an apron of zeros."""
        from pipeline.vector import kernels  # noqa: PLC0415 - see `of`

        new = np.arange(len(self.values), dtype=np.int32) if new is None else new
        line = self.width + 2
        filled = kernels.fill(self.offsets, self.starts, self.labels, new, line)
        return np.asarray(filled.reshape(len(self.offsets) + 1, line))
