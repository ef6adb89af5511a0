"""Objects: 4-connected regions of one class in PRED and in TRUTH, matched by their IoU, exact across windows.

Regions are numbered window by window; what touches across a border between windows is remembered as an edge of a graph,
whose connected components are the regions of the scene. Memory grows with the number of regions, not of pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.grid import Window
    from pipeline.train.evaluate.pairs import Pair

    Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectScores:
    """How many objects were found."""

    pred: int
    """Regions of PRED."""
    truth: int
    """Regions of TRUTH."""
    matched: int
    """Pairs of regions whose IoU is more than a half; no region is in two of them."""
    mean_iou: float
    """Of the matched; NaN without any."""

    @property
    def precision(self) -> float:
        """Share of PRED's regions that are matched; NaN without any."""
        return self.matched / self.pred if self.pred else float("nan")

    @property
    def recall(self) -> float:
        """Share of TRUTH's regions that are matched; NaN without any."""
        return self.matched / self.truth if self.truth else float("nan")

    @property
    def f1(self) -> float:
        """2 matched / (regions of both); NaN where neither side has any."""
        both = self.pred + self.truth
        return 2 * self.matched / both if both else float("nan")


class ObjectCounter:
    """Regions of one class; give windows row by row.

    Args:
        index: Of the class.
        width: Of the scene, in pixels.
    """

    halo_px = 0

    def __init__(self, index: int, width: int) -> None:
        self._index = index
        self._sides = (_Side(width), _Side(width))
        self._pairs: list[Ints] = []

    def add(self, pair: Pair) -> None:
        """Count one window."""
        labels = [
            side.add(image[pair.core] == self._index, pair.window)
            for side, image in zip(self._sides, (pair.pred, pair.truth), strict=True)
        ]
        both = (labels[0] > 0) & (labels[1] > 0)
        if both.any():
            codes, pixels = np.unique(_code(labels[0][both], labels[1][both]), return_counts=True)
            first, second = (side.first for side in self._sides)
            self._pairs.append(np.stack([codes // _MANY - 1 + first, codes % _MANY - 1 + second, pixels], axis=1))

    def scores(self) -> ObjectScores:
        """Of all windows so far."""
        (of_pred, pred_px), (of_truth, truth_px) = (side.regions() for side in self._sides)
        rows = np.concatenate([np.empty((0, 3), np.int64), *self._pairs])
        codes, inverse = np.unique(_code(of_pred[rows[:, 0]], of_truth[rows[:, 1]]), return_inverse=True)
        common = np.bincount(inverse, weights=rows[:, 2], minlength=len(codes))
        union = pred_px[codes // _MANY] + truth_px[codes % _MANY] - common
        ious = np.sort(common[2 * common > union] / union[2 * common > union])  # else the sum would know the windows
        return ObjectScores(
            pred=len(pred_px),
            truth=len(truth_px),
            matched=len(ious),
            mean_iou=float(ious.mean()) if len(ious) else float("nan"),
        )


_MANY = 1 << 31


def _code(one: NDArray[np.integer], other: NDArray[np.integer]) -> Ints:
    return one.astype(np.int64) * _MANY + other


class _Side:
    """Regions of PRED, or of TRUTH."""

    def __init__(self, width: int) -> None:
        self.first = 0
        """Number of the last window's first region."""
        self._count = 0
        self._sizes: list[Ints] = []
        self._edges: list[Ints] = []
        self._above: Ints = np.full(width, -1, np.int64)
        self._left: Ints = np.empty(0, np.int64)

    def add(self, inside: NDArray[np.bool_], window: Window) -> NDArray[np.int32]:
        """Labels of a window from 1, 0 outside of regions."""
        labels, found = ndimage.label(inside)
        self.first = self._count
        self._count += found
        self._sizes.append(np.bincount(labels.ravel(), minlength=found + 1)[1:])
        columns = slice(window.col_off, window.col_stop)
        self._join(self._above[columns], self._numbers(labels[0]))
        if window.col_off > 0:
            self._join(self._left, self._numbers(labels[:, 0]))
        self._above[columns] = self._numbers(labels[-1])
        self._left = self._numbers(labels[:, -1])
        return np.asarray(labels, np.int32)

    def regions(self) -> tuple[Ints, Ints]:
        """Region of the scene that each region of a window belongs to, and pixels of each region of the scene."""
        edges = np.concatenate([np.empty((0, 2), np.int64), *self._edges])
        sizes = np.concatenate([np.empty(0, np.int64), *self._sizes])
        if not self._count:
            return sizes, sizes
        graph = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(self._count, self._count))
        _, group = connected_components(graph, directed=False)
        return group.astype(np.int64), np.bincount(group, weights=sizes).astype(np.int64)

    def _numbers(self, line: NDArray[np.integer]) -> Ints:
        """Labels of a line of pixels as numbers of the scene, -1 outside of regions."""
        return np.where(line > 0, line.astype(np.int64) - 1 + self.first, -1)

    def _join(self, before: Ints, now: Ints) -> None:
        touching = (before >= 0) & (now >= 0)
        if touching.any():
            self._edges.append(np.unique(np.stack([before[touching], now[touching]], axis=1), axis=0))
