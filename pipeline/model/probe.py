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
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.errors import ModelError
from pipeline.grid import Mode, SizeRule, round_up
from pipeline.model.footprint import bytes_per_pixel
from pipeline.model.outputs import output_range
from pipeline.model.traits import Traits

if TYPE_CHECKING:
    from torch import Tensor, nn

_LARGEST_MULTIPLE = 128
_STRIDES = (1, 2, 4, 8, 16, 32, 64, 128)
_PERIODS = (_LARGEST_MULTIPLE, 3 * _LARGEST_MULTIPLE)
"""How much larger a second patch is: multiples of what any pooling by 2, or by 3, divides."""
_LARGEST_SIDE = 2048
_LARGEST_SQUARE = 1024
"""The same where large changes are followed instead of NaN, which takes squares and several forwards for each."""
_STRIPS_FROM = 1024
"""Side from which footprints are followed on strips, one along each axis: what a pixel reaches along an axis does not
depend on how wide the patch is, and a square would take minutes."""
_STRIP_PX = 64
_TOLERANCE = 2e-5
"""Share of the outputs' magnitude below which two float32 results count as equal: order of summation, no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    rule: SizeRule
    margin_px: int


_Touched = Callable[["nn.Module", int, int, int, _Sizes], tuple[int, int]]
_CHANGES = (1e3, -1e3, 10.0, -10.0)
_CHANGE_SEEDS = (2, 3)


def probe(network: nn.Module, *, bands: int) -> Traits:
    """Measure a network.

    Args:
        network: Module in eval mode on the CPU, float32; input `(batch, band, y, x)`, output `(batch, class, y, x)`.
        bands: Input bands.

    Raises:
        ModelError: MD-005 when the network does not map images to images of the same resolution; MD-007 when it fails
            on every size tried.
    """
    with torch.inference_mode():
        sides = _working_sides(network, bands)
        if isinstance(sides, int):
            return _fixed(network, bands, sides)
        sizes = _size_rule(network, bands, sides)
        try:
            return _measure(network, bands, sizes)
        except ModelError:
            raise
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            raise ModelError(
                f"the network takes {sizes.rule.at_least(256)} px and fails on another patch: {error}",
                code="MD-007",
                title="Network takes few patch sizes",
                fix="export it for any size; it must be fully convolutional",
            ) from error


def count_outputs(network: nn.Module, *, bands: int) -> int:
    """Channels that a network puts out, from one forward.

    Raises:
        ModelError: As `probe`.
    """
    with torch.inference_mode():
        sides = _working_sides(network, bands)
        side = sides if isinstance(sides, int) else _size_rule(network, bands, sides).rule.at_least(1)
        return int(network(torch.zeros(1, bands, side, side)).shape[1])


def _measure(network: nn.Module, bands: int, sizes: _Sizes) -> Traits:
    stride, stride_error = _measure_stride(network, bands, sizes)
    deterministic = _is_deterministic(network, bands, sizes)
    stride, reach, how = _measure_reach(network, bands, sizes, stride) if stride else (None, None, None)
    halo = None if reach is None or stride is None else round_up(reach, stride)
    equivariance = None if halo is None or not stride else _crop_error(network, bands, sizes, halo, stride)
    equivariant = equivariance is not None and equivariance <= _TOLERANCE
    farthest = (_LARGEST_SIDE if how == "NaN" else _LARGEST_SQUARE) // 2
    tiling, reason = _verdict(stride, halo, farthest_px=farthest, equivariant=equivariant, deterministic=deterministic)
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
            "followed": how,
            "shift_error": stride_error,
            "crop_error": equivariance,
            "tolerance": _TOLERANCE,
            "output_range": _range_of_outputs(network, bands, sizes.rule.at_least(128)),
        },
    )


def _fixed(network: nn.Module, bands: int, side: int) -> Traits:
    """Traits of a network that takes one size only: a forward of the whole scene does not exist to be equalled."""
    with torch.inference_mode():
        out = _output_side(network, bands, side)
        if out != side:  # a margin could be a lower resolution: with one size nothing tells them apart
            raise ModelError(
                f"a patch of {side} px, the only size that the network takes, gives {out}; expected the same size",
                code="MD-005",
                title="Output does not fit the input",
                fix="use a network that puts out one value per pixel",
            )
        sizes = _Sizes(rule=SizeRule(multiple=side, smallest=side, largest=side), margin_px=0)
        deterministic = _is_deterministic(network, bands, sizes)
        found = _range_of_outputs(network, bands, side)
    return Traits(
        stride=1,
        halo_px=None,
        margin_px=sizes.margin_px,
        size_multiple=side,
        size_remainder=0,
        size_smallest=side,
        size_largest=side,
        equivariant=False,
        deterministic=deterministic,
        tiling="blend",
        reason=f"the network takes patches of {side} px only, so a forward of the whole scene does not exist",
        bytes_per_px=bytes_per_pixel(network, bands=bands, side=side),
        evidence={"output_range": found},
    )


def _verdict(
    stride: int | None, halo: int | None, *, farthest_px: int, equivariant: bool, deterministic: bool
) -> tuple[Mode, str]:
    if not deterministic:
        return "blend", "two forwards of the same patch differ, so no tiling can equal the whole scene"
    if stride is None:
        return "blend", "no shift of the input shifts the output alike, so the result depends on where a patch lies"
    if halo is None:
        return "blend", f"an output still depends on inputs {farthest_px} px away: the whole patch matters"
    if not equivariant:
        return "blend", "a crop of a large forward differs from the forward of the crop, beyond the halo"
    return "exact", f"outputs depend on inputs at most {halo} px beyond their {stride} px block"


def _working_sides(network: nn.Module, bands: int) -> dict[int, list[int]] | int:
    """Sides that work from 256 px on, by what is dropped there; or the only side that a network takes.

    That is what its file declares, or the one tried side that does not fail: a free network whose sides are multiples
    of up to 128 px works on two at least.
    """
    declared = getattr(network, "fixed_side", None)
    if declared is not None:
        return int(declared)
    sides: dict[int, list[int]] = {}
    for side in range(256, 256 + 2 * _LARGEST_MULTIPLE + 1):
        out = _output_side(network, bands, side)
        if out is None:
            continue
        if not sides:
            _check_resolution(network, bands, side, out)
        sides.setdefault(side - out, []).append(side)
        if len(sides[side - out]) == 3:  # noqa: PLR2004 - two gaps: the second confirms the first
            return sides
    working = [side for alike in sides.values() for side in alike]
    if len(working) > 1:
        return sides
    others = working or [side for side in _USUAL_SIDES if _output_side(network, bands, side) is not None]
    if len(others) == 1:
        return others[0]
    raise ModelError(
        f"the network fails on every square patch of 256 to 512 px, and on {', '.join(map(str, _USUAL_SIDES))} px",
        code="MD-007",
        title="Network takes no tried patch size",
        fix="check the number of bands, and that the network is fully convolutional",
    )


_USUAL_SIDES = (64, 96, 112, 128, 160, 192, 200, 224, 240, 640, 768, 800, 1024)
"""Sides that networks are made for, beside those that are all tried."""


def _size_rule(network: nn.Module, bands: int, sides: dict[int, list[int]]) -> _Sizes:
    """Sides that work, and what is dropped there.

    A side works when no other drops less: a network that pools without looking takes any side and cuts what is left.
    """
    dropped = min((d for d in sides if d >= 0), default=max(sides))
    working = sides[dropped]
    first = working[0]
    if dropped < 0 or dropped % 2:
        raise _misfit(first, first - dropped)
    multiple = max((b - a for a, b in itertools.pairwise(working)), default=_LARGEST_MULTIPLE)
    remainder = first % multiple
    tried = range(remainder or multiple, first + 1, multiple)
    smallest = next(s for s in tried if s > dropped and _output_side(network, bands, s) == s - dropped)
    rule = SizeRule(multiple=multiple, remainder=remainder, smallest=smallest)
    return _Sizes(rule=rule, margin_px=dropped // 2)


def _check_resolution(network: nn.Module, bands: int, side: int, out: int) -> None:
    """A larger patch must give as many pixels more: a margin is constant, half the resolution is not."""
    larger = {period: _output_side(network, bands, side + period) for period in _PERIODS}
    given = {period: found for period, found in larger.items() if found is not None}
    if given and all(found != out + period for period, found in given.items()):
        period, found = next(iter(given.items()))
        raise _misfit(side, out, f" and one of {side + period} px gives {found} px")


def _misfit(side: int, out: int, more: str = "") -> ModelError:
    return ModelError(
        f"a patch of {side} px gives {out} px{more}; expected the same size or a symmetric margin of constant width",
        code="MD-005",
        title="Output does not fit the input",
        fix="use a network that puts out one value per pixel; up-sample its output if it is coarser",
    )


def _output_side(network: nn.Module, bands: int, side: int) -> int | None:
    """Side of the output for a square patch; None where the network fails."""
    try:
        out = network(torch.zeros(1, bands, side, side))
    except (RuntimeError, ValueError, IndexError, AssertionError):
        return None
    if not isinstance(out, torch.Tensor) or out.ndim != 4 or out.shape[-1] != out.shape[-2]:  # noqa: PLR2004
        got = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise ModelError(
            f"the network returns {got} for a patch of {side} px; expected one tensor (batch, class, y, x)",
            code="MD-005",
            title="Output does not fit the input",
            fix="wrap the network so that it returns logits (batch, class, y, x)",
        )
    if not out.is_floating_point():
        raise ModelError(
            f"the network returns {out.dtype}, expected floating-point logits or probabilities",
            code="MD-005",
            title="Output does not fit the input",
            fix="let the network return what its arg-max or threshold is taken of",
        )
    return int(out.shape[-1])


def _noise(bands: int, side: int, *, seed: int = 0) -> Tensor:
    return torch.randn(1, bands, side, side, generator=torch.Generator().manual_seed(seed))


def _range_of_outputs(network: nn.Module, bands: int, side: int) -> dict[str, float]:
    """On standardised values and on small positive ones: a network fed with reflectance says nothing on the former."""
    noise = _noise(bands, side, seed=4)
    return output_range(torch.cat([network(x) for x in (noise, 0.2 + 0.1 * noise)]))


def _difference(a: Tensor, b: Tensor) -> float:
    """Largest difference as a share of the outputs' magnitude, which is what rounding errors grow with."""
    return float((a - b).abs().max() / a.abs().max().clamp_min(1e-12))


def _measure_stride(network: nn.Module, bands: int, sizes: _Sizes) -> tuple[int | None, dict[str, float]]:
    """Smallest shift that shifts the output alike, judged in the middle, away from the rim."""
    shifts = [shift for shift in _STRIDES if shift % sizes.rule.multiple == 0]
    stride, errors = _first_equal(shifts, _shift_error_on_square(network, bands, sizes))
    if stride is None and shifts:
        # Was it the rim? Where outputs depend on inputs farther off than a third of the patch, long strips tell.
        stride, errors = _first_equal(shifts, _shift_error_on_strips(network, bands, sizes))
    return stride, errors


def _first_equal(shifts: list[int], error_of: Callable[[int], float]) -> tuple[int | None, dict[str, float]]:
    """The first of these shifts that shifts the output alike, and how far each was off."""
    errors: dict[str, float] = {}
    for shift in shifts:
        errors[str(shift)] = error = error_of(shift)
        if error <= _TOLERANCE:
            return shift, errors
    return None, errors


def _shift_error_on_square(network: nn.Module, bands: int, sizes: _Sizes) -> Callable[[int], float]:
    """How much the output differs, in the middle third of a square, where the input is shifted along both axes."""
    side = sizes.rule.at_least(2 * sizes.margin_px + 4 * _STRIDES[-1])  # a third of it is more than any shift
    scene = _noise(bands, side + _STRIDES[-1])
    fixed = network(scene[..., :side, :side])
    third = fixed.shape[-1] // 3

    def error(shift: int) -> float:
        moved = network(scene[..., shift : shift + side, shift : shift + side])
        middle, back = slice(third, 2 * third), slice(third - shift, 2 * third - shift)
        return _difference(fixed[..., middle, middle], moved[..., back, back])

    return error


def _shift_error_on_strips(network: nn.Module, bands: int, sizes: _Sizes) -> Callable[[int], float]:
    """The same in the middle of long strips, along one axis and then along the other; the larger difference."""
    long = sizes.rule.at_least(_LARGEST_SIDE)
    scene = _noise(bands, long + _STRIDES[-1])[..., : sizes.rule.at_least(2 * sizes.margin_px + _STRIP_PX)]

    def output(shift: int, *, turned: bool) -> Tensor:
        strip = scene[..., shift : shift + long, :]
        found: Tensor = network(strip.transpose(-1, -2).contiguous() if turned else strip)
        return found.transpose(-1, -2) if turned else found

    fixed = [output(0, turned=turned) for turned in (False, True)]
    start = (fixed[0].shape[-2] - _STRIDES[-1]) // 2

    def error(shift: int) -> float:
        middle, back = slice(start, start + _STRIDES[-1]), slice(start - shift, start + _STRIDES[-1] - shift)
        moved = [output(shift, turned=turned) for turned in (False, True)]
        return max(_difference(a[..., middle, :], b[..., back, :]) for a, b in zip(fixed, moved, strict=True))

    return error


def _is_deterministic(network: nn.Module, bands: int, sizes: _Sizes) -> bool:
    x = _noise(bands, sizes.rule.at_least(64), seed=1)
    return bool(torch.equal(network(x), network(x)))


def _measure_reach(network: nn.Module, bands: int, sizes: _Sizes, stride: int) -> tuple[int, int | None, str]:
    """(stride, reach, how): how far the inputs of an output block reach beyond it, None when the whole patch matters.

    By NaN; where a large change reaches further than NaN did, the network or its library swallows NaN, and changes
    alone are followed. The stride grows until the footprint repeats with it.
    """
    stride, reach = _follow(network, bands, sizes, stride, _touched_by_nan)
    if reach is not None and not _hides_nan(network, bands, sizes, stride, reach):
        return stride, reach, "NaN"
    if reach is None:
        return stride, None, "NaN"
    stride, reach = _follow(network, bands, sizes, stride, _touched_by_change)
    return stride, reach, "large changes"


def _follow(network: nn.Module, bands: int, sizes: _Sizes, stride: int, touched: _Touched) -> tuple[int, int | None]:
    side = sizes.rule.at_least(max(128, 4 * stride))
    while side <= (_LARGEST_SIDE if touched is _touched_by_nan else _LARGEST_SQUARE):
        base = side // 2 // stride * stride
        one, next_one = (touched(network, bands, side, position, sizes) for position in (base, base + stride))
        if _at_rim(one, side, sizes) or _at_rim(next_one, side, sizes):
            side = sizes.rule.at_least(2 * side)
        elif (one[0] + stride, one[1] + stride) != next_one and stride < _STRIDES[-1]:
            stride *= 2
        else:
            reach = _reach_at(network, bands, sizes, stride, side, touched)
            if reach is not None:
                return stride, reach
            side = sizes.rule.at_least(2 * side)
    return stride, None


def _reach_at(network: nn.Module, bands: int, sizes: _Sizes, stride: int, side: int, touched: _Touched) -> int | None:
    """Reach measured on patches of `side` px; None when it runs into the rim."""
    base = side // 2 // stride * stride
    reach = 0
    for phase in range(stride):
        position = base + phase
        first, last = found = touched(network, bands, side, position, sizes)
        if _at_rim(found, side, sizes):
            return None
        reach = max(reach, _block_reach(first + sizes.margin_px, last + sizes.margin_px, position, stride))
    return reach


def _block_reach(first: int, last: int, position: int, stride: int) -> int:
    """How far an input at `position` lies outside the stride blocks of the outputs `first` to `last`."""
    below = position - (first // stride * stride + stride - 1)
    above = last // stride * stride - position
    return max(below, above, 0)


def _touched_by_nan(network: nn.Module, bands: int, side: int, position: int, sizes: _Sizes) -> tuple[int, int]:
    """First and last output row or column that a NaN at (position, position) reaches; (0, side) when none."""
    if side >= _STRIPS_FROM:
        narrow = sizes.rule.at_least(2 * sizes.margin_px + _STRIP_PX)
        spans = [_touched_on_strip(network, (bands, side, narrow), position, turned=turned) for turned in (False, True)]
        return min(first for first, _ in spans), max(last for _, last in spans)
    x = torch.zeros(1, bands, side, side)
    x[..., position, position] = torch.nan
    hit = torch.isnan(network(x)).any(dim=1)[0].nonzero().flatten()
    return (int(hit.min()), int(hit.max())) if len(hit) else (0, side)


def _touched_on_strip(
    network: nn.Module, shape: tuple[int, int, int], position: int, *, turned: bool
) -> tuple[int, int]:
    """The same for a strip `(band, long, narrow)`: rows of it, or columns where it is turned."""
    x = torch.zeros(1, *shape)
    x[..., position, shape[2] // 2] = torch.nan
    output = network(x.transpose(-1, -2).contiguous() if turned else x)
    hit = torch.isnan(output).any(dim=1)[0].any(dim=0 if turned else 1).nonzero().flatten()
    return (int(hit.min()), int(hit.max())) if len(hit) else (0, shape[1])


def _touched_by_change(network: nn.Module, bands: int, side: int, position: int, _: _Sizes) -> tuple[int, int]:
    """The same for large changes of both signs in several scenes, all together: what one hides another shows."""
    found = [_touched_in(network, _noise(bands, side, seed=seed), position, _CHANGES) for seed in _CHANGE_SEEDS]
    touched = [span for span in found if span != (0, side)] or found
    return min(first for first, _ in touched), max(last for _, last in touched)


def _touched_in(network: nn.Module, scene: Tensor, position: int, changes: tuple[float, ...]) -> tuple[int, int]:
    """The same in one scene; in a strip, which is narrow across, along its rows only."""
    clean, side = network(scene).clone(), scene.shape[-2]
    square = scene.shape[-1] == side
    first, last = side, -1
    for change in changes:
        changed = scene.clone()
        changed[..., position, position if square else scene.shape[-1] // 2] += change
        differs = (network(changed) != clean).any(dim=1)[0]
        hit = (differs if square else differs.any(dim=1)).nonzero().flatten()
        if len(hit):
            first, last = min(first, int(hit.min())), max(last, int(hit.max()))
    return (first, last) if last >= 0 else (0, side)


def _at_rim(touched: tuple[int, int], side: int, sizes: _Sizes) -> bool:
    return touched[0] == 0 or touched[1] >= side - 2 * sizes.margin_px - 1


def _hides_nan(network: nn.Module, bands: int, sizes: _Sizes, stride: int, reach: int) -> bool:
    """Whether a large finite change reaches further than NaN did: guards of a network, or a library's own maximum."""
    side = sizes.rule.at_least(max(128, 4 * stride, 3 * reach))
    position = side // 2 // stride * stride
    scene = _noise(bands, side, seed=_CHANGE_SEEDS[0])[..., : _across(side, sizes)]
    first, last = _touched_in(network, scene, position, _CHANGES[:2])
    if (first, last) == (0, side):
        return False
    return _block_reach(first + sizes.margin_px, last + sizes.margin_px, position, stride) > reach


def _crop_error(network: nn.Module, bands: int, sizes: _Sizes, halo: int, stride: int) -> float:
    """Largest relative difference between the middle of a large forward and the forward of its middle."""
    small = sizes.rule.at_least(2 * halo + 4 * stride)
    large = sizes.rule.at_least(small + 2 * halo + 4 * stride)
    offset = (large - small) // 2 // stride * stride
    margin = sizes.margin_px
    inner = slice(halo - margin, small - halo - margin)
    outer = slice(halo - margin + offset, small - halo - margin + offset)
    across = _across(large, sizes)
    scene = _noise(bands, large, seed=3)[..., :across]
    if across < large:  # a strip: as wide in either forward, cut along it only
        whole, part = network(scene), network(scene[..., offset : offset + small, :])
        return _difference(whole[..., outer, :], part[..., inner, :])
    whole, part = network(scene), network(scene[..., offset : offset + small, offset : offset + small])
    return _difference(whole[..., outer, outer], part[..., inner, inner])


def _across(side: int, sizes: _Sizes) -> int:
    """Width of what is looked at on patches of `side` px: squares up to a size that takes seconds, strips beyond."""
    return side if side <= _LARGEST_SIDE else sizes.rule.at_least(2 * sizes.margin_px + _STRIP_PX)
