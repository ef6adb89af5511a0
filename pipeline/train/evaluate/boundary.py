"""Boundary IoU and boundary F1 of all classes at once, exact across windows.

A pixel's *distance* to another is that between their centres. Pixels that are not compared, and those beyond the scene,
are unknown: no border runs along them.

- The *band* of a class: its pixels from which a compared pixel of another class is at most the tolerance away.
  Boundary IoU is the IoU of the bands of PRED and TRUTH (Cheng et al. 2021, arXiv:2103.16562, whose bands are counted
  in steps of an erosion, and run along the rim of the image too).
- The *contour* of a class: its pixels with one of the four neighbours compared and of another class. Boundary
  precision is the share of PRED's contour with a pixel of TRUTH's contour of that class at most the tolerance away,
  recall the reverse, boundary F1 their harmonic mean (Martin et al. 2004; Csurka et al. 2013 for classes).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.train.metrics import ratio

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.train.evaluate.pairs import Pair
    from pipeline.train.evaluate.rasters import Indices


@dataclass(frozen=True, slots=True)
class Disk:
    """Offsets of pixels at most some distance away."""

    widths: tuple[int, ...]
    """Half widths, in pixels, of the rows 0, 1, 2, … above and below the centre."""
    pixel_hw: tuple[float, float] = (1.0, 1.0)
    """Height and width of a pixel, in the unit of the distance."""

    @property
    def reach_px(self) -> int:
        """Farthest offset along an axis."""
        return max(len(self.widths) - 1, self.widths[0])

    def offsets(self) -> NDArray[np.int64]:
        """`(offset, 2)`: rows and columns, nearest first."""
        found = [
            (row, col)
            for row in range(1 - len(self.widths), len(self.widths))
            for col in range(-self.widths[abs(row)], self.widths[abs(row)] + 1)
        ]
        found.sort(key=lambda rc: (rc[0] * self.pixel_hw[0]) ** 2 + (rc[1] * self.pixel_hw[1]) ** 2)
        return np.array(found, np.int64)


def disk(distance: float, pixel_hw: tuple[float, float] = (1.0, 1.0)) -> Disk:
    """Pixels whose centres are at most `distance` away, in the unit of `pixel_hw`; at least the four neighbours'."""
    height, width = pixel_hw
    square = distance**2 * (1 + 1e-9)
    rows = int(math.sqrt(square) / height)
    widths = tuple(int(math.sqrt(max(square - (row * height) ** 2, 0)) / width) for row in range(rows + 1))
    return Disk(widths, pixel_hw)


_CROSS = Disk((1, 0))


class BoundaryCounter:
    """Counts for boundary IoU and boundary F1.

    Args:
        num_classes: Classes.
        within: The tolerance.
    """

    def __init__(self, num_classes: int, within: Disk) -> None:
        self._num, self._disk = num_classes, within
        self.halo_px = within.reach_px + 1
        self._bands = np.zeros((3, num_classes), np.int64)  # PRED's, TRUTH's, common
        self._contours = np.zeros((4, num_classes), np.int64)  # PRED's, near TRUTH's; TRUTH's, near PRED's

    def add(self, pair: Pair) -> None:
        """Count one window."""
        core, sides = pair.core, (pair.pred, pair.truth)
        bands = [near_another(side, pair.none, self._disk)[core] for side in sides]
        inner = [side[core] for side in sides]
        common = bands[0] & bands[1] & (inner[0] == inner[1])
        for row, (side, where) in enumerate(zip((*inner, inner[0]), (*bands, common), strict=True)):
            self._bands[row] += self._per_class(side[where])
        contours = [near_another(side, pair.none, _CROSS) for side in sides]
        for row, (own, other) in enumerate(((0, 1), (1, 0))):
            values, near = self._near(sides[own], contours[own], sides[other], contours[other], pair)
            self._contours[2 * row] += self._per_class(values)
            self._contours[2 * row + 1] += self._per_class(values[near])

    def iou(self) -> NDArray[np.float64]:
        """Boundary IoU of each class; NaN where neither side has a band."""
        pred, truth, common = self._bands
        return ratio(common, pred + truth - common)

    def scores(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Boundary F1, precision and recall of each class.

        F1 is NaN where neither side has a contour, 0 where only one has.
        """
        of_pred, near_truth, of_truth, near_pred = self._contours
        precision, recall = ratio(near_truth, of_pred), ratio(near_pred, of_truth)
        p, r = np.nan_to_num(precision), np.nan_to_num(recall)
        f1 = np.divide(2 * p * r, p + r, out=np.zeros(self._num), where=p + r > 0)
        f1[(of_pred == 0) & (of_truth == 0)] = np.nan
        return f1, precision, recall

    def contour_px(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pixels of PRED's and of TRUTH's contours."""
        return self._contours[0], self._contours[2]

    def _near(
        self, own: Indices, own_contour: NDArray[np.bool_], other: Indices, other_contour: NDArray[np.bool_], pair: Pair
    ) -> tuple[Indices, NDArray[np.bool_]]:
        """Values of one side's contour pixels in the window, and whether the other's contour is near."""
        reach = self._disk.reach_px
        padded = np.pad(np.where(other_contour, other, pair.none), reach, constant_values=pair.none)
        rows, cols = np.nonzero(own_contour[pair.core])
        rows += pair.core[0].start
        cols += pair.core[1].start
        values = own[rows, cols]
        place = (rows + reach) * padded.shape[1] + cols + reach
        flat, near = padded.ravel(), np.zeros(len(values), bool)
        left = np.arange(len(values))
        for row, col in self._disk.offsets().tolist():
            hit = flat[place[left] + (row * padded.shape[1] + col)] == values[left]
            near[left[hit]] = True
            left = left[~hit]
            if not len(left):
                break
        return values, near

    def _per_class(self, values: Indices) -> NDArray[np.int64]:
        return np.bincount(values, minlength=self._num)[: self._num]


def near_another(values: Indices, none: int, within: Disk) -> NDArray[np.bool_]:
    """`(y, x)`: True where a pixel has a value, and another value is near.

    A pixel is near another value just where the largest or the smallest value near it is not its own.
    """
    known = values != none
    largest = _spread(np.where(known, values, 0), np.maximum, within)
    smallest = _spread(values, np.minimum, within)  # `none` is the largest of all
    return np.asarray(known & ((largest != values) | (smallest != values)))


def _spread(values: Indices, combine: np.ufunc, within: Disk) -> Indices:
    """Largest or smallest value in the disk around each pixel."""
    along, width, found = values.copy(), 0, values.copy()
    for row in range(len(within.widths) - 1, -1, -1):  # from the narrow rows to the centre's, which only grow
        while width < within.widths[row]:
            width += 1
            if width < values.shape[1]:
                combine(along[:, width:], values[:, :-width], out=along[:, width:])
                combine(along[:, :-width], values[:, width:], out=along[:, :-width])
        if row == 0:
            combine(found, along, out=found)
        elif row < values.shape[0]:
            combine(found[row:], along[:-row], out=found[row:])
            combine(found[:-row], along[row:], out=found[:-row])
    return found
