"""What training makes small: pure functions of logits and target, blind to what is not known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from pipeline.train.target import IGNORE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.train.settings import LossSettings


def segmentation_loss(
    logits: Tensor,
    target: Tensor,
    settings: LossSettings,
    *,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
) -> Tensor:
    """The weighted sum of the parts.

    Args:
        logits: `(batch, class, y, x)` float32.
        target: `(batch, y, x)` int64 class values, `IGNORE` where nothing is known.
        settings: Weights of the parts.
        class_weights: `(class,)`, of cross-entropy and focal loss.
        pixel_weights: `(batch, y, x)`, of cross-entropy and focal loss; see `border_weights`.

    Returns:
        A scalar; 0 with a gradient of 0 where nothing is known at all.
    """
    known = target != IGNORE
    log_p = functional.log_softmax(logits, dim=1)
    safe = target.masked_fill(~known, 0)
    own = log_p.gather(1, safe[:, None])[:, 0]
    weight = known.float()
    if pixel_weights is not None:
        weight = weight * pixel_weights
    if class_weights is not None:
        weight = weight * class_weights[safe]
    total = logits.sum() * 0.0
    mass = weight.sum().clamp_min(1e-6)
    if settings.cross_entropy:
        total = total - settings.cross_entropy * (weight * own).sum() / mass
    if settings.focal:
        easy = (1 - own.exp()).clamp_min(0) ** settings.focal_gamma
        total = total - settings.focal * (weight * easy * own).sum() / mass
    if settings.dice:
        total = total + settings.dice * dice_loss(log_p.exp(), safe, known)
    return total


def dice_loss(p: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """One minus the Dice coefficient of probabilities, mean over the classes that the batch has.

    Source: Milletari et al. 2016, arXiv:1606.04797.
    """
    p = p * known[:, None]
    one_hot = functional.one_hot(target, p.shape[1]).movedim(-1, 1) * known[:, None]
    overlap = (p * one_hot).sum(dim=(0, 2, 3))
    size = (p + one_hot).sum(dim=(0, 2, 3))
    dice = 1 - (2 * overlap + 1) / (size + 1)
    present = one_hot.sum(dim=(0, 2, 3)) > 0
    return (dice * present).sum() / present.sum().clamp_min(1)


def balanced_weights(class_px: NDArray[np.int64]) -> Tensor:
    """Weights by the square root of how rare a class is, mean 1 over the classes that are there."""
    share = class_px / max(class_px.sum(), 1)
    weights = np.where(share > 0, 1 / np.sqrt(np.maximum(share, 1e-9)), 0.0)
    return torch.tensor(weights / weights[share > 0].mean(), dtype=torch.float32)


def border_weights(
    target: NDArray[np.integer], *, background: int, weight: float, sigma_px: float
) -> NDArray[np.float32]:
    """1 + w0 exp(-(d1 + d2)² / 2sigma²) on background pixels; d1, d2 are the distances to the two nearest objects.

    Args:
        target: `(y, x)` class values.
        background: Class value between objects; every other known class's connected pixels are objects.
        weight: w0.
        sigma_px: sigma.

    Returns:
        `(y, x)` float32; 1 away from narrow gaps.

    Distances beyond 6 sigma count as 6 sigma, where the weight is below w0 * 2e-8.

    Source: Ronneberger et al. 2015, equation 2, arXiv:1505.04597.
    """
    reach = int(np.ceil(6 * sigma_px))
    nearest = np.full((2, *target.shape), float(reach), np.float64)
    objects, count = ndimage.label((target != background) & (target != IGNORE))
    for number, (rows, cols) in enumerate(ndimage.find_objects(objects, max_label=count), start=1):
        near = _grown(rows, reach, target.shape[0]), _grown(cols, reach, target.shape[1])
        distance = ndimage.distance_transform_edt(objects[near] != number)
        first, second = nearest[0][near], nearest[1][near]
        nearest[1][near] = np.minimum(second, np.maximum(first, distance))
        nearest[0][near] = np.minimum(first, distance)
    gap = np.exp(-(nearest.sum(axis=0) ** 2) / (2 * sigma_px**2))
    return np.asarray(1 + weight * gap * (target == background), np.float32)


def _grown(part: slice, by: int, stop: int) -> slice:
    return slice(max(part.start - by, 0), min(part.stop + by, stop))
