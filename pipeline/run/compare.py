"""How far two results of the same pixels lie apart: probabilities, classes, and which differences count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.infer import TileResult
    from pipeline.model import ModelSpec

TOLERANCE = 1e-5
"""Largest difference of probabilities in float32: order of summation, no more."""
TIE = 2e-5
"""Margin between the two best classes below which either may win."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Two results of the same pixels, compared."""

    pixels: int = 0
    """Pixels with a class in either."""
    max_abs: float = 0.0
    """Largest difference of a probability."""
    sum_abs: float = 0.0
    """Of all pixels' largest differences."""
    flips: int = 0
    """Pixels whose class differs."""
    judged: int = 0
    """Pixels, no ties, that differ by more than the tolerance or in their class."""

    def __add__(self, other: Difference) -> Difference:
        """Both sets of pixels together."""
        return Difference(
            pixels=self.pixels + other.pixels,
            max_abs=max(self.max_abs, other.max_abs),
            sum_abs=self.sum_abs + other.sum_abs,
            flips=self.flips + other.flips,
            judged=self.judged + other.judged,
        )

    @property
    def flips_frac(self) -> float:
        """Share of pixels whose class differs."""
        return self.flips / self.pixels if self.pixels else 0.0

    def to_json(self) -> dict[str, Any]:
        """As run.json has it."""
        return {
            "pixels": self.pixels,
            "max_abs": self.max_abs,
            "mean_abs": self.sum_abs / self.pixels if self.pixels else 0.0,
            "flips": self.flips,
            "flips_frac": self.flips_frac,
        }


def compare(one: TileResult, other: TileResult, spec: ModelSpec, *, where: NDArray[np.bool_]) -> Difference:
    """Compare two results of one window in the pixels `where` `(y, x)`; the second is the reference."""
    assert one.probabilities is not None
    assert other.probabilities is not None
    legend = spec.legend()
    where = where & (legend.is_valid(one.mask) | legend.is_valid(other.mask))
    if not where.any():
        return Difference()
    reference = other.probabilities[:, where]
    apart = np.abs(one.probabilities[:, where] - reference).max(axis=0).astype(np.float64)
    apart = np.nan_to_num(apart, nan=np.inf)  # a class in one and none in the other
    flipped = differs(one.mask, other.mask)[where]
    # Outputs that are no probabilities (activation `none`) have a scale of their own.
    tolerance = TOLERANCE * max(1.0, float(np.nanmax(np.abs(reference), initial=0.0)))
    tie = _margin(reference, spec) < TIE
    return Difference(
        pixels=int(where.sum()),
        max_abs=float(apart.max()),
        sum_abs=float(apart.sum()),
        flips=int(flipped.sum()),
        judged=int((((apart > tolerance) | flipped) & ~tie).sum()),
    )


def differs(one: NDArray[np.generic], other: NDArray[np.generic]) -> NDArray[np.bool_]:
    """`(y, x)`: True where two masks, `(y, x)` or `(class, y, x)`, have other classes."""
    apart: NDArray[np.bool_] = np.not_equal(one, other)
    return apart if apart.ndim == 2 else np.asarray(apart.any(axis=0))  # noqa: PLR2004 - rows and columns


def _margin(probabilities: NDArray[np.float32], spec: ModelSpec) -> NDArray[np.float32]:
    """How far the best class is ahead, or twice how far a threshold is away, per pixel, of `(class, pixel)`."""
    if spec.thresholds:
        judged = probabilities[1:] if spec.binary else probabilities
        cuts = np.array(spec.thresholds, np.float32)[:, None]
        apart: NDArray[np.float32] = np.abs(judged - cuts).min(axis=0)
        return 2 * apart
    if len(probabilities) == 1:
        return np.full(probabilities.shape[1], np.inf, np.float32)
    top: NDArray[np.float32] = np.partition(probabilities, -2, axis=0)
    margin: NDArray[np.float32] = top[-1] - top[-2]
    return margin
