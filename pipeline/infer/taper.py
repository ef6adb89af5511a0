"""Weights of a patch: 1 in its middle, falling to its edge where a neighbour takes over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Taper = Literal["hann", "gaussian", "linear"]

_GAUSSIAN_SIGMA = 0.35
"""Standard deviation as a share of the overlap: weight 0.017 at the outer edge, so that no edge pixel counts."""


def axis_weights(
    length_px: int, *, overlap_px: int, taper: Taper, open_start: bool, open_stop: bool
) -> NDArray[np.float32]:
    """Weights along one axis of a patch's output.

    Args:
        length_px: Pixels of output.
        overlap_px: Pixels shared with a neighbour, at least 0 and below `length_px`.
        taper: `hann` (raised cosine) and `linear` sum to 1 over two neighbours; `gaussian` falls faster.
        open_start: A neighbour overlaps the start; without one the weight stays 1 to the scene's border.
        open_stop: The same for the end.

    Returns:
        Shape `(length_px,)`, float32, values in (0, 1].

    Law: after division by their sum the weights over any pixel sum to 1 (properties/test_taper.py).
    """
    weights = np.ones(length_px, np.float64)
    if overlap_px > 0:
        ramp = _ramp((np.arange(overlap_px) + 0.5) / overlap_px, taper)
        if open_start:
            weights[:overlap_px] *= ramp
        if open_stop:
            weights[length_px - overlap_px :] *= ramp[::-1]
    return weights.astype(np.float32)


def _ramp(position: NDArray[np.float64], taper: Taper) -> NDArray[np.float64]:
    """Rising from 0 to 1 over positions in (0, 1)."""
    if taper == "linear":
        return position
    if taper == "hann":
        return np.asarray(np.sin(0.5 * np.pi * position) ** 2)
    return np.asarray(np.exp(-0.5 * ((1.0 - position) / _GAUSSIAN_SIGMA) ** 2))
