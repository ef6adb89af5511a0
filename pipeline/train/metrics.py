"""Confusion counts and what follows from them. Pure functions; counts of tiles can be summed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


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


def iou(counts: NDArray[np.int64]) -> Floats:
    """Intersection over union per class; NaN for a class that neither side has."""
    return class_scores(counts).iou


@dataclass(frozen=True, slots=True, eq=False)
class ClassScores:
    """Scores of each class, float64 `(..., class)`; NaN where there is nothing to divide by."""

    iou: Floats
    """tp / (tp + fp + fn), Jaccard 1912."""
    f1: Floats
    """2 tp / (2 tp + fp + fn), the same as Dice's coefficient."""
    precision: Floats
    """tp / (tp + fp): of what the mask has, how much is right; NaN where the mask lacks the class."""
    recall: Floats
    """tp / (tp + fn): of what the target has, how much is found; NaN where the target lacks the class."""


def class_scores(counts: NDArray[Any]) -> ClassScores:
    """Scores from counts `(..., target class, mask class)`; a class that neither side has gets NaN, not 0 or 1."""
    hit = np.diagonal(counts, axis1=-2, axis2=-1).astype(np.float64)
    in_target, in_mask = counts.sum(axis=-1), counts.sum(axis=-2)
    return ClassScores(
        iou=ratio(hit, in_target + in_mask - hit),
        f1=ratio(2 * hit, in_target + in_mask),
        precision=ratio(hit, in_mask),
        recall=ratio(hit, in_target),
    )


def overall_accuracy(counts: NDArray[Any]) -> Floats:
    """Share of pixels whose class is right, from counts `(..., target class, mask class)`; NaN without pixels."""
    return ratio(np.trace(counts, axis1=-2, axis2=-1), counts.sum(axis=(-2, -1)))


def mean_over_present(values: Floats) -> Floats:
    """Mean over the last axis without its NaN, which stand for classes that neither side has; NaN where all are."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0).sum(axis=-1), known.sum(axis=-1))


def ratio(part: Any, whole: Any) -> Floats:
    """`part / whole`, NaN where `whole` is 0."""
    whole = np.asarray(whole, np.float64)
    found: Floats = np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
    return found
