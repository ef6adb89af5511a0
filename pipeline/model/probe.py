"""Measures what a network promises, by behaviour and never by class name.

1. Sizes: which sides it takes, and what it drops (valid padding).
2. Reach: NaN is put into one input pixel, at every phase of the stride, and followed to the outputs. NaN survives
   every sum and product, so the footprint is structural; a large perturbation of both signs cross-checks it.
3. Stride: the smallest shift of the input that shifts the output alike, at least the multiple that sides must have
   (an untrained network's deep layers may be too faint for numbers alone), confirmed on the footprints of NaN.
4. Equivariance: the middle of a large forward against the forward of its middle.

The halo is DESIGN's: how far the inputs of a stride x stride block of outputs reach beyond it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.errors import ModelError
from pipeline.grid import Mode, SizeRule, round_up
from pipeline.model.footprint import bytes_per_pixel
from pipeline.model.traits import Traits

if TYPE_CHECKING:
    from torch import Tensor, nn

_LARGEST_MULTIPLE = 128
_STRIDES = (1, 2, 4, 8, 16, 32, 64, 128)
_LARGEST_SIDE = 1024
_TOLERANCE = 2e-5
"""Share of the outputs' magnitude below which two float32 results count as equal: order of summation, no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    rule: SizeRule
    margin_px: int


def probe(network: nn.Module, *, bands: int) -> Traits:
    """Measure a network.

    Args:
        network: Module in eval mode on the CPU, float32; input `(batch, band, y, x)`, output `(batch, class, y, x)`.
        bands: Input bands.

    Raises:
        ModelError: MD-005 when the network does not map images to images; MD-007 when it fails on every size tried.
    """
    with torch.inference_mode():
        sizes = _measure_sizes(network, bands)
        stride, stride_error = _measure_stride(network, bands, sizes)
        deterministic = _is_deterministic(network, bands, sizes)
        stride, reach = _measure_reach(network, bands, sizes, stride) if stride else (None, None)
        halo = None if reach is None or stride is None else round_up(reach, stride)
        equivariance = None if halo is None or not stride else _crop_error(network, bands, sizes, halo, stride)
    equivariant = equivariance is not None and equivariance <= _TOLERANCE
    tiling, reason = _verdict(stride, halo, equivariant=equivariant, deterministic=deterministic)
    return Traits(
        stride=stride or sizes.rule.multiple,
        halo_px=halo if equivariant else None,
        margin_px=sizes.margin_px,
        size_multiple=sizes.rule.multiple,
        size_remainder=sizes.rule.remainder,
        size_smallest=sizes.rule.smallest,
        equivariant=equivariant,
        deterministic=deterministic,
        tiling=tiling,
        reason=reason,
        bytes_per_px=bytes_per_pixel(network, bands=bands, side=sizes.rule.at_least(256)),
        evidence={
            "reach_px": reach,
            "shift_error": stride_error,
            "crop_error": equivariance,
            "tolerance": _TOLERANCE,
        },
    )


def _verdict(stride: int | None, halo: int | None, *, equivariant: bool, deterministic: bool) -> tuple[Mode, str]:
    if not deterministic:
        return "blend", "two forwards of the same patch differ, so no tiling can equal the whole scene"
    if stride is None:
        return "blend", "no shift of the input shifts the output alike, so the result depends on where a patch lies"
    if halo is None:
        return "blend", f"an output still depends on inputs {_LARGEST_SIDE // 2} px away: the whole patch matters"
    if not equivariant:
        return "blend", "a crop of a large forward differs from the forward of the crop, beyond the halo"
    return "exact", f"outputs depend on inputs at most {halo} px beyond their {stride} px block"


def _measure_sizes(network: nn.Module, bands: int) -> _Sizes:
    """Sides that work from 256 px on, and what is dropped there."""
    working: dict[int, int] = {}
    for side in range(256, 256 + 2 * _LARGEST_MULTIPLE + 1):
        out = _output_side(network, bands, side)
        if out is not None:
            working[side] = out
        if len(working) == 3:  # noqa: PLR2004 - two gaps: the second confirms the first
            break
    if not working:
        raise ModelError(
            "the network fails on every square patch of 256 to 512 px",
            code="MD-007",
            title="Network takes no tried patch size",
            fix="check the number of bands, and that the network is fully convolutional",
        )
    sides = sorted(working)
    multiple = max((b - a for a, b in itertools.pairwise(sides)), default=_LARGEST_MULTIPLE)
    first = sides[0]
    margin, odd = divmod(first - working[first], 2)
    if odd or margin < 0:
        raise ModelError(
            f"a patch of {first} px gives {working[first]} px; expected the same size or a symmetric margin",
            code="MD-005",
            title="Output does not fit the input",
            fix="use a network that puts out one value per pixel",
        )
    remainder = first % multiple
    tried = range(remainder or multiple, first + 1, multiple)
    smallest = next(side for side in tried if _output_side(network, bands, side))
    return _Sizes(rule=SizeRule(multiple=multiple, remainder=remainder, smallest=smallest), margin_px=margin)


def _output_side(network: nn.Module, bands: int, side: int) -> int | None:
    """Side of the output for a square patch; None where the network fails."""
    try:
        out = network(torch.zeros(1, bands, side, side))
    except (RuntimeError, ValueError, IndexError):
        return None
    if not isinstance(out, torch.Tensor) or out.ndim != 4 or out.shape[-1] != out.shape[-2]:  # noqa: PLR2004
        got = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise ModelError(
            f"the network returns {got} for a patch of {side} px; expected one tensor (batch, class, y, x)",
            code="MD-005",
            title="Output does not fit the input",
            fix="wrap the network so that it returns logits (batch, class, y, x)",
        )
    return int(out.shape[-1])


def _noise(bands: int, side: int, *, seed: int = 0) -> Tensor:
    return torch.randn(1, bands, side, side, generator=torch.Generator().manual_seed(seed))


def _difference(a: Tensor, b: Tensor) -> float:
    """Largest difference as a share of the outputs' magnitude, which is what rounding errors grow with."""
    return float((a - b).abs().max() / a.abs().max().clamp_min(1e-12))


def _measure_stride(network: nn.Module, bands: int, sizes: _Sizes) -> tuple[int | None, dict[str, float]]:
    """Smallest shift that shifts the output alike, judged in the middle, away from the rim."""
    side = sizes.rule.at_least(512)
    scene = _noise(bands, side + _STRIDES[-1])
    fixed = network(scene[..., :side, :side])
    errors: dict[str, float] = {}
    third = fixed.shape[-1] // 3
    for shift in (s for s in _STRIDES if s % sizes.rule.multiple == 0):
        moved = network(scene[..., shift : shift + side, shift : shift + side])
        middle = slice(third, 2 * third)
        back = slice(third - shift, 2 * third - shift)
        errors[str(shift)] = error = _difference(fixed[..., middle, middle], moved[..., back, back])
        if error <= _TOLERANCE:
            return shift, errors
    return None, errors


def _is_deterministic(network: nn.Module, bands: int, sizes: _Sizes) -> bool:
    x = _noise(bands, sizes.rule.at_least(64), seed=1)
    return bool(torch.equal(network(x), network(x)))


def _measure_reach(network: nn.Module, bands: int, sizes: _Sizes, stride: int) -> tuple[int, int | None]:
    """(stride, reach): pixels that the inputs of an output block reach beyond it, None when the whole patch matters.

    The stride grows until the footprint of NaN repeats with it.
    """
    side = sizes.rule.at_least(max(128, 4 * stride))
    while side <= _LARGEST_SIDE:
        base = side // 2 // stride * stride
        one, next_one = (_touched(network, bands, side, position) for position in (base, base + stride))
        if _at_rim(one, side, sizes) or _at_rim(next_one, side, sizes):
            side = sizes.rule.at_least(2 * side)
        elif (one[0] + stride, one[1] + stride) != next_one and stride < _STRIDES[-1]:
            stride *= 2
        else:
            reach = _reach_at(network, bands, sizes, stride, side)
            if reach is not None:
                return stride, reach
            side = sizes.rule.at_least(2 * side)
    return stride, None


def _reach_at(network: nn.Module, bands: int, sizes: _Sizes, stride: int, side: int) -> int | None:
    """Reach measured on patches of `side` px; None when it runs into the rim."""
    base = side // 2 // stride * stride
    reach = 0
    for phase in range(stride):
        position = base + phase
        touched = _touched(network, bands, side, position)
        if _at_rim(touched, side, sizes):
            return None
        first, last = touched
        reach = max(reach, _block_reach(first + sizes.margin_px, last + sizes.margin_px, position, stride))
    _cross_check(network, bands, side, base, reach, sizes, stride)
    return reach


def _block_reach(first: int, last: int, position: int, stride: int) -> int:
    """How far an input at `position` lies outside the stride blocks of the outputs `first` to `last`."""
    below = position - (first // stride * stride + stride - 1)
    above = last // stride * stride - position
    return max(below, above, 0)


def _touched(network: nn.Module, bands: int, side: int, position: int) -> tuple[int, int]:
    """First and last output row or column that a NaN at (position, position) reaches; (0, side) when none."""
    x = torch.zeros(1, bands, side, side)
    x[..., position, position] = torch.nan
    hit = torch.isnan(network(x)).any(dim=1)[0].nonzero().flatten()
    return (int(hit.min()), int(hit.max())) if len(hit) else (0, side)


def _at_rim(touched: tuple[int, int], side: int, sizes: _Sizes) -> bool:
    return touched[0] == 0 or touched[1] >= side - 2 * sizes.margin_px - 1


def _cross_check(
    network: nn.Module, bands: int, side: int, position: int, reach: int, sizes: _Sizes, stride: int
) -> None:
    """A large finite change must not reach further than NaN did: a network may hide NaN with guards of its own."""
    scene = _noise(bands, side, seed=2)
    clean = network(scene)
    for change in (1e3, -1e3):
        changed = scene.clone()
        changed[..., position, position] += change
        hit = (network(changed) != clean).any(dim=1)[0].nonzero().flatten() + sizes.margin_px
        if len(hit) and (far := _block_reach(int(hit.min()), int(hit.max()), position, stride)) > reach:
            raise ModelError(
                f"a large change of one input pixel reaches {far} px, NaN reached {reach} px",
                code="MD-009",
                title="Halo cannot be measured",
                fix="use --tiling blend with --overlap PX",
            )


def _crop_error(network: nn.Module, bands: int, sizes: _Sizes, halo: int, stride: int) -> float:
    """Largest relative difference between the middle of a large forward and the forward of its middle."""
    small = sizes.rule.at_least(2 * halo + 4 * stride)
    large = sizes.rule.at_least(small + 4 * halo + 4 * stride)
    offset = (large - small) // 2 // stride * stride
    scene = _noise(bands, large, seed=3)
    whole = network(scene)
    part = network(scene[..., offset : offset + small, offset : offset + small])
    margin = sizes.margin_px
    inner = slice(halo - margin, small - halo - margin)
    outer = slice(halo - margin + offset, small - halo - margin + offset)
    return _difference(whole[..., outer, outer], part[..., inner, inner])
