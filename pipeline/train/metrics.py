"""Confusion counts and what follows from them. Pure functions; counts of tiles can be summed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def confusion(
    mask: NDArray[np.integer[Any]], target: NDArray[np.integer[Any]], *, num_classes: int
) -> NDArray[np.int64]:
    """Counts `(target class, mask class)`, int64, over pixels where both have a class.

    Args:
        mask: `(y, x)` class values; values >= `num_classes` (nodata) are skipped.
        target: `(y, x)` reference class values; values >= `num_classes` (ignore index) are skipped.
        num_classes: Classes.
    """
    both = (mask < num_classes) & (target < num_classes)
    index = target[both].astype(np.int64) * num_classes + mask[both].astype(np.int64)
    return np.bincount(index, minlength=num_classes**2).reshape(num_classes, num_classes)


def iou(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Intersection over union per class; NaN for a class that neither side has."""
    hit = np.diag(counts).astype(np.float64)
    union = counts.sum(axis=0) + counts.sum(axis=1) - hit
    with np.errstate(invalid="ignore"):
        return np.where(union > 0, hit / np.maximum(union, 1), np.nan)
