"""Random changes of chips: geometry moves pixels, validity and target together; photometry changes pixels only."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.train.target import IGNORE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.train.settings import AugmentSettings

Chip = tuple[Tensor, Tensor, Tensor]
"""Standardised pixels `(band, y, x)` float32, validity `(band, y, x)` bool, target `(y, x)` int64."""


def margin_px(settings: AugmentSettings, size: int) -> int:
    """How much more than a chip must be read on each side, so that turning it does not turn emptiness in."""
    if not _warps(settings):
        return 0
    turned = size / 2 * (_reach(settings.rotate_deg) * (1 + settings.scale) - 1)
    return math.ceil(max(turned, 0.0) + 2 * settings.elastic_px)


def augment(chip: Chip, settings: AugmentSettings, *, size: int, rng: np.random.Generator) -> Chip:
    """A chip of `size`, changed at random.

    Args:
        chip: As read, `margin_px` larger on each side.
        settings: What may happen.
        size: Side of the result.
        rng: Where chance comes from.

    Returns:
        Pixels that came from outside are not valid and have the target `IGNORE`; pixels that are not valid are 0.
    """
    if _warps(settings):
        chip = _warp(chip, settings, size, rng)
    chip = _flip_and_turn(chip, settings, rng)
    return _photometry(chip, settings, rng)


def _warps(settings: AugmentSettings) -> bool:
    return bool(settings.rotate_deg or settings.scale or settings.elastic_px)


def _reach(rotate_deg: float) -> float:
    """Half the diagonal of a unit square at the worst angle up to `rotate_deg`, over half its side."""
    angle = math.radians(min(rotate_deg, 45.0))
    return math.cos(angle) + math.sin(angle)


def _warp(chip: Chip, settings: AugmentSettings, size: int, rng: np.random.Generator) -> Chip:
    data, valid, target = chip
    side = data.shape[-1]
    points = torch.from_numpy(_points(settings, size, rng)).float()  # (y, x, 2) of x, y, in pixels from the centre
    grid = (points / (side / 2)).unsqueeze(0)
    weight = valid.float()
    moved, share = (_sample(part, grid, "bilinear") for part in (data * weight, weight))
    inside = _sample(weight, grid, "nearest") > 0
    data = torch.where(inside, moved / share.clamp_min(1e-3), 0.0)
    # IGNORE + 1 at most: exact in float32. Zero padding outside becomes IGNORE.
    known = _sample((target + 1).float()[None], grid, "nearest")[0].long() - 1
    return data, inside, torch.where(known < 0, IGNORE, known)


def _points(settings: AugmentSettings, size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Where each pixel of the result comes from: `(y, x, 2)` as x, y in pixels from the centre."""
    angle = math.radians(rng.uniform(-settings.rotate_deg, settings.rotate_deg))
    zoom = 1 + rng.uniform(-settings.scale, settings.scale)
    centres = np.arange(size) + 0.5 - size / 2
    y, x = np.meshgrid(centres, centres, indexing="ij")
    points = np.stack(
        [math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y], axis=-1
    ) / zoom  # fmt: skip
    if settings.elastic_px:
        coarse = rng.normal(0.0, settings.elastic_px, (1, 2, settings.elastic_grid, settings.elastic_grid))
        smooth = functional.interpolate(torch.from_numpy(coarse), size=(size, size), mode="bicubic", align_corners=True)
        points = points + smooth[0].permute(1, 2, 0).numpy()
    return points


def _sample(part: Tensor, grid: Tensor, mode: str) -> Tensor:
    return functional.grid_sample(part[None], grid, mode=mode, padding_mode="zeros", align_corners=False)[0]


def _flip_and_turn(chip: Chip, settings: AugmentSettings, rng: np.random.Generator) -> Chip:
    turns = int(rng.integers(4)) if settings.turns else 0
    flip = bool(rng.integers(2)) if settings.flips else False

    def moved(part: Tensor) -> Tensor:
        part = torch.rot90(part, turns, dims=(-2, -1))
        return part.flip(-1) if flip else part

    data, valid, target = chip
    return moved(data), moved(valid), moved(target)


def _photometry(chip: Chip, settings: AugmentSettings, rng: np.random.Generator) -> Chip:
    data, valid, target = chip
    bands = len(data)
    if settings.contrast or settings.brightness:
        gain = 1 + rng.uniform(-settings.contrast, settings.contrast, bands)
        shift = rng.uniform(-settings.brightness, settings.brightness, bands)
        data = data * _per_band(gain) + _per_band(shift)
    if settings.band_drop:
        kept = rng.random(bands) >= settings.band_drop
        if not kept.any():  # a chip without any band teaches that everything is the commonest class
            kept[rng.integers(bands)] = True
        data = data * _per_band(kept)
    return torch.where(valid, data, 0.0), valid, target


def _per_band(values: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))[:, None, None]
