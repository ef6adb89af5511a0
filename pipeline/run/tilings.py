"""Where patches and tiles of a scene lie, given what a patch takes and what there is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.grid import Tiling, balanced_core, blend_tiling, exact_tiling, round_up

if TYPE_CHECKING:
    from pipeline.grid import SizeRule
    from pipeline.infer import Augmentation
    from pipeline.model import Model, Traits
    from pipeline.run.demand import Demand
    from pipeline.run.settings import SegmentSettings

_BLEND_PATCH = 512


def lay_exact(
    shape: tuple[int, int],
    model: Model,
    settings: SegmentSettings,
    demand: Demand,
    *,
    network_padding: bool,
) -> Tiling:
    """Patches from --patch where given, else the fastest that memory allows, in equal parts.

    Tiles have as many of them as was asked for, or fewer for want of memory.
    """
    traits, halo = model.traits, demand.halo_px
    stride, sizes = traits.stride, patch_sizes(traits, settings.tta)
    square = needs_squares(settings.tta, network_padding=network_padding)
    if settings.patch is not None:
        core = (settings.patch - 2 * halo) // stride * stride
        if core < stride:
            raise misfit(
                f"--patch {settings.patch} leaves no core: the network needs a halo of {halo} px on each side",
                f"use a patch of at least {round_up(2 * halo + 128, stride)} px",
            )
        core_hw = core, core
    else:
        core_hw = balanced_core(
            shape,
            halo_px=halo,
            stride=stride,
            sizes=sizes,
            seconds=lambda patch_hw: demand.seconds(patch_hw) + demand.seconds_beside(patch_hw),
            once=demand.seconds_once,
            as_good=demand.as_good,
            square=square,
        )
    return exact_tiling(
        shape,
        core_hw=core_hw,
        halo_px=halo,
        stride=stride,
        margin_px=traits.margin_px or demand.left_out_px,
        sizes=sizes,
        tile_px=_tile_px(shape, core_hw, settings.tile, demand),
        network_padding=network_padding,
        square=square,
    )


def _tile_px(shape: tuple[int, int], core_hw: tuple[int, int], wanted_px: int, demand: Demand) -> int:
    """Side of a tile: as many whole cores as were asked for, or as there is memory for beside a patch of them."""
    patch_hw = (core_hw[0] + 2 * demand.halo_px, core_hw[1] + 2 * demand.halo_px)
    side = max(core_hw)
    for steps in range(-(-wanted_px // side), 1, -1):
        height, width = (min(steps * core, n) + 2 * demand.halo_px for core, n in zip(core_hw, shape, strict=True))
        if demand.fits(patch_hw, (height, width)):
            return steps * side
    return side


def lay_blend(shape: tuple[int, int], settings: SegmentSettings, traits: Traits, demand: Demand) -> Tiling:
    """Patches of one size that overlap by what was asked for, a quarter if nothing was; smaller for want of memory.

    So are tiles, which are rounded up to whole steps and change nothing of the result.
    """
    sizes = patch_sizes(traits, settings.tta)
    fitting = sizes.at_most(math.isqrt(max(0, demand.largest_px))) or sizes.at_least(1)
    patch = settings.patch or min(_BLEND_PATCH, fitting)
    try:
        return blend_tiling(
            shape,
            patch_px=patch,
            overlap_px=settings.overlap if settings.overlap is not None else patch // 4,
            stride=traits.stride,
            margin_px=traits.margin_px,
            sizes=sizes,
            tile_px=min(settings.tile, max(1, demand.widest_tile_px - patch)),
            square=needs_squares(settings.tta, network_padding=False),
        )
    except ValueError as error:
        raise misfit(str(error), "choose a smaller --overlap or a larger --patch") from error


def patch_sizes(traits: Traits, tta: Augmentation) -> SizeRule:
    """Sides of patches that the network takes and that flips map onto the same lattice of strides."""
    return traits.sizes if tta == "none" else traits.sizes.on_stride(traits.stride)


def needs_squares(tta: Augmentation, *, network_padding: bool) -> bool:
    """Whether one size must fit a patch and its transpose; with network padding engines take any size."""
    return tta == "d4" and not network_padding


def misfit(what: str, fix: str) -> UsageError:
    """CF-006: what does not fit, and what to do."""
    return UsageError(what, code="CF-006", title="Options do not fit the network", fix=fix)
