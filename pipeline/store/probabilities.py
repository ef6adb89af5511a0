"""How probabilities are kept: uint8 steps of 1/250, 255 = nodata."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROBABILITY_STEPS = 250
"""Stored value / 250 = probability. Steps of 0.4 % are finer than any network's calibration."""
PROBABILITY_NODATA = 255


def quantize_probabilities(probabilities: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Probabilities in [0, 1], `(class, …)` -> uint8 0-250, rounded half to even; NaN becomes 255.

    One class after the other, so that what is made on the way takes little memory however many there are.
    """
    stored = np.empty(probabilities.shape, np.uint8)
    for number, values in enumerate(probabilities):
        scaled = np.rint(np.clip(values, 0.0, 1.0) * np.float32(PROBABILITY_STEPS))
        stored[number] = np.where(np.isnan(scaled), PROBABILITY_NODATA, scaled)
    return stored


def restore_probabilities(stored: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The reverse: uint8 -> float32 in [0, 1], nodata -> NaN. Off by at most 1/500."""
    values = stored.astype(np.float32) / np.float32(PROBABILITY_STEPS)
    values[stored == PROBABILITY_NODATA] = np.nan
    return values
