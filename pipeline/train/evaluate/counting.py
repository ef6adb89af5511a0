"""Confusion counts: of the whole scene, on seams, and block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.grid import near_seam

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.grid import Tiling, Window
    from pipeline.train.evaluate.pairs import Pair

    Counts = NDArray[np.int64]


class ConfusionCounter:
    """`counts[target class, mask class]` of the scene, of pixels near seams, and of each block of a lattice.

    Args:
        num_classes: Classes.
        tiling: Where patch cores meet; None where nobody knows.
        seam_px: Pixels this near to a seam count as on it.
        blocks: (rows, columns) of blocks that cover the scene, (1, 1) where they are not asked for.
        block_px: Side of a block.
    """

    halo_px = 0

    def __init__(
        self,
        num_classes: int,
        *,
        tiling: Tiling | None = None,
        seam_px: int = 0,
        blocks: tuple[int, int] = (1, 1),
        block_px: int | None = None,
    ) -> None:
        self._num, self._tiling, self._seam_px = num_classes, tiling, seam_px
        self._block_px, self._across = block_px, blocks[1]
        size = num_classes**2
        self.blocks: Counts = np.zeros((blocks[0] * blocks[1], size), np.int64)
        """`(block, cell)`, flat matrices."""
        self._seam: Counts = np.zeros(size, np.int64)
        self.left_out = np.zeros(3, np.int64)
        """Pixels without a class in PRED alone, TRUTH alone, both."""

    @property
    def counts(self) -> Counts:
        """Of the whole scene."""
        return self._square(self.blocks.sum(axis=0))

    @property
    def seam(self) -> Counts:
        """Of pixels near seams."""
        return self._square(self._seam)

    def add(self, pair: Pair) -> None:
        """Count one window."""
        self.left_out += pair.left_out
        size = self._num**2
        cells = cells_of(pair, self._num)
        if self._tiling is not None:
            near = near_seam(self._tiling, pair.window, reach_px=self._seam_px)
            self._seam += np.bincount(cells[near], minlength=size + 1)[:size]
        if self._block_px is None:
            self.blocks[0] += np.bincount(cells.ravel(), minlength=size + 1)[:size]
            return
        for block, rows, cols in self._parts(pair.window):
            self.blocks[block] += np.bincount(cells[rows, cols].ravel(), minlength=size + 1)[:size]

    def _parts(self, window: Window) -> list[tuple[int, slice, slice]]:
        """Numbers of the blocks that a window meets, and where they lie in it."""
        assert self._block_px is not None
        rows = spans(window.row_off, window.row_stop, self._block_px)
        cols = spans(window.col_off, window.col_stop, self._block_px)
        return [(r * self._across + c, row, col) for r, row in rows for c, col in cols]

    def _square(self, flat: Counts) -> Counts:
        return flat.reshape(self._num, self._num)


def spans(start: int, stop: int, step: int) -> list[tuple[int, slice]]:
    """Cells of a lattice from 0 that meet [start, stop): their numbers, and where they lie in it."""
    return [
        (cell, slice(max(cell * step, start) - start, min((cell + 1) * step, stop) - start))
        for cell in range(start // step, -(-stop // step))
    ]


def cells_of(pair: Pair, num_classes: int) -> NDArray[Any]:
    """`(y, x)` of the window: `target * num_classes + mask`, or `num_classes**2` where there is nothing to compare."""
    size = num_classes**2
    dtype = np.uint16 if size < np.iinfo(np.uint16).max else np.uint32
    cells: NDArray[Any] = pair.truth[pair.core].astype(dtype)
    cells *= dtype(num_classes)
    cells += pair.pred[pair.core]
    cells[~pair.compared] = size
    return cells


class ErrorMap:
    """Share of wrong pixels in the cells of a coarse lattice, for a picture.

    Args:
        shape: Of the scene.
        most_px: Cells along the longer side.
    """

    halo_px = 0

    def __init__(self, shape: tuple[int, int], *, most_px: int = 1000) -> None:
        self.cell_px = -(-max(shape) // most_px)
        """Side of a cell."""
        cells = tuple(-(-side // self.cell_px) for side in shape)
        self.wrong: Counts = np.zeros(cells, np.int64)
        self.compared: Counts = np.zeros(cells, np.int64)

    def add(self, pair: Pair) -> None:
        """Count one window."""
        compared = pair.compared
        wrong = pair.truth[pair.core] != pair.pred[pair.core]  # both hold the same where they are not compared
        rows, cols = (
            spans(*ends, self.cell_px)
            for ends in ((pair.window.row_off, pair.window.row_stop), (pair.window.col_off, pair.window.col_stop))
        )
        place = (slice(rows[0][0], rows[-1][0] + 1), slice(cols[0][0], cols[-1][0] + 1))
        starts = [np.array([span.start for _, span in axis]) for axis in (rows, cols)]
        for total, pixels in ((self.wrong, wrong), (self.compared, compared)):
            down = np.add.reduceat(pixels, starts[0], axis=0, dtype=np.int32)
            total[place] += np.add.reduceat(down, starts[1], axis=1)
