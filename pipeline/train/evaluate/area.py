"""Accuracy and area from a stratified sample: area-weighted estimates and their standard errors. Pure arithmetic.

Estimators of Stehman 2014 (doi:10.1080/01431161.2014.930207), for strata of any kind: stratified means, and ratios
of them. Where strata are the map's classes they are those of Olofsson et al. 2014 (doi:10.1016/j.rse.2014.02.015),
equations 4 to 11. The finite population correction is left out, as they do: samples are small beside scenes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.train.metrics import ratio

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Z = 1.959963984540054
"""95 % of a normal distribution lie within so many standard deviations of its mean."""


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """A number with its standard error; NaN where it cannot be told."""

    value: Floats
    error: Floats

    @property
    def low(self) -> Floats:
        """Lower end of the 95 % interval."""
        return self.value - Z * self.error

    @property
    def high(self) -> Floats:
        """Upper end."""
        return self.value + Z * self.error


@dataclass(frozen=True, slots=True, eq=False)
class SampleEstimates:
    """What a sample says about the whole map, or about the part of it whose strata were sampled."""

    matrix: Floats
    """`(map class, reference class)`: shares of the area."""
    overall: Estimate
    """Share of the area whose class is right."""
    users: Estimate
    """Of each class: share of its area on the map that is right (1 - commission)."""
    producers: Estimate
    """Of each class: share of its true area that the map has (1 - omission)."""
    area: Estimate
    """Of each class: share of the area that it truly has."""


def estimate(counts: NDArray[np.int64], sizes: NDArray[Any], *, finite: bool = False) -> SampleEstimates:
    """Estimates from counts of units.

    A stratum of one unit has no variance that could be seen: what depends on it has a standard error of NaN.

    Args:
        counts: `(stratum, map class, reference class)`, units; each stratum has at least one.
        sizes: Of the strata, in pixels or any other unit of area.
        finite: Whether to apply the finite population correction; `sizes` then are units.
    """
    units = counts.sum(axis=(1, 2)).astype(np.float64)
    weights = np.asarray(sizes, np.float64) / np.sum(sizes)
    share = counts / units[:, None, None]
    factor = weights**2 / units * ((1 - units / np.asarray(sizes, np.float64)) if finite else 1.0)
    right = np.diagonal(share, axis1=1, axis2=2)
    on_map, in_truth = share.sum(axis=2), share.sum(axis=1)
    nested = bool(np.isin(on_map, (0.0, 1.0)).all())  # each stratum lies within one map class
    return SampleEstimates(
        matrix=np.einsum("h,hij->ij", weights, share),
        overall=_mean(right.sum(axis=1), weights, factor, units),
        users=_ratio(right, on_map, weights, factor, units, apart=on_map == 0 if nested else None),
        producers=_ratio(right, in_truth, weights, factor, units),
        area=_mean(in_truth, weights, factor, units),
    )


def _mean(share: Floats, weights: Floats, factor: Floats, units: Floats) -> Estimate:
    """Stratified mean of an indicator whose mean in each stratum is `share`, `(stratum, …)`."""
    return Estimate(np.tensordot(weights, share, 1), _error(share * (1 - share), factor, units))


def _ratio(
    part: Floats,
    whole: Floats,
    weights: Floats,
    factor: Floats,
    units: Floats,
    *,
    apart: NDArray[np.bool_] | None = None,
) -> Estimate:
    """Ratio of two stratified means, `(stratum, class)`; units in `part` are in `whole` too.

    Args:
        part: Means of the numerator in each stratum.
        whole: Means of the denominator.
        weights: Of the strata.
        factor: Of their variances.
        units: In them.
        apart: Where a stratum has no part in the ratio, whatever is sampled there.
    """
    total = weights @ whole
    value = ratio(weights @ part, total)
    # Variance of part - value * whole; as part implies whole, their product's mean is that of part.
    variance = part * (1 - 2 * value) + value**2 * whole - (part - value * whole) ** 2
    return Estimate(value, ratio(_error(variance, factor, units, apart=apart), total))


def _error(variance: Floats, factor: Floats, units: Floats, *, apart: NDArray[np.bool_] | None = None) -> Floats:
    """Standard error from the variance, with divisor n, within each stratum `(stratum, …)`."""
    unbiased = np.divide(units, units - 1, out=np.full(len(units), np.nan), where=units > 1)
    terms = (variance.T * (factor * unbiased)).T
    if apart is not None:
        terms[apart] = 0
    return np.asarray(np.sqrt(np.maximum(terms.sum(axis=0), 0)))
