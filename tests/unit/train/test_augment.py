"""Random changes: pixels, validity and target move together; nothing is invented."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.train.augment import Chip, augment, margin_px
from pipeline.train.settings import AugmentSettings
from pipeline.train.target import IGNORE
from tests.labelled import blobs

STILL: dict[str, Any] = {"flips": False, "turns": False}


def _chip(size: int, margin: int) -> Chip:
    """A chip whose first band is its target, and whose second tells where it came from."""
    side = size + 2 * margin
    target = torch.from_numpy(blobs((side, side), seed=5).astype(np.int64))
    column = torch.arange(side).float().expand(side, side)
    valid = torch.ones(2, side, side, dtype=torch.bool)
    valid[:, : side // 5, : side // 5] = False
    data = torch.where(valid, torch.stack([target.float(), column]), 0.0)
    return data, valid, torch.where(valid[0], target, IGNORE)


@given(
    st.booleans(), st.booleans(), st.sampled_from([0.0, 20.0, 180.0]), st.sampled_from([0.0, 0.3]),
    st.sampled_from([0.0, 6.0]), st.integers(0, 99),
)  # fmt: skip
def test_pixels_validity_and_target_move_together(
    flips: bool,  # noqa: FBT001 - hypothesis gives positions
    turns: bool,  # noqa: FBT001
    rotate: float,
    scale: float,
    elastic: float,
    seed: int,
) -> None:
    settings = AugmentSettings(flips=flips, turns=turns, rotate_deg=rotate, scale=scale, elastic_px=elastic)
    size = 48
    chip = _chip(size, margin_px(settings, size))
    data, valid, target = augment(chip, settings, size=size, rng=np.random.default_rng(seed))
    assert data.shape == (2, size, size)
    known = target != IGNORE
    assert (known == valid[0]).all()
    assert (valid[0] == valid[1]).all()
    assert (data[:, ~valid[0]] == 0).all()
    # Band 0 is bilinear, the target nearest: they may differ at corners of classes; a pixel apart they differ at edges.
    agree = (data[0] - target).abs()[known] < 0.5 + 1e-4
    assert agree.float().mean() > 0.985
    if not (rotate or scale or elastic):
        assert set(target.unique().tolist()) <= {0, 1, IGNORE}
        assert known.sum() == chip[1][0].sum()


def test_nothing_happens_when_all_is_off() -> None:
    chip = _chip(48, 0)
    settings = AugmentSettings(**STILL)
    assert margin_px(settings, 48) == 0
    for one, other in zip(augment(chip, settings, size=48, rng=np.random.default_rng(0)), chip, strict=True):
        assert torch.equal(one, other)


def test_the_margin_leaves_no_empty_corner() -> None:
    settings = AugmentSettings(rotate_deg=180, scale=0.25, elastic_px=3)
    size, margin = 64, margin_px(AugmentSettings(rotate_deg=180, scale=0.25, elastic_px=3), 64)
    data, valid, target = _chip(size, margin)
    whole = (data, torch.ones_like(valid), target.masked_fill(target == IGNORE, 0))
    for seed in range(30):
        _, valid, _ = augment(whole, settings, size=size, rng=np.random.default_rng(seed))
        assert valid.float().mean() > 0.998


def test_turning_by_a_right_angle_is_exact() -> None:
    """The warp against torch.rot90, which moves pixels without interpolation."""
    from pipeline.train import augment as room

    chip = _chip(48, 0)
    settings = AugmentSettings(rotate_deg=90, **STILL)

    class Always90:
        def uniform(self, _low: float, high: float, *_: Any) -> float:
            return high

    data, _, target = room._warp(chip, settings, 48, Always90())  # type: ignore[arg-type]
    assert torch.allclose(data[1], torch.rot90(chip[0], 1, (1, 2))[1], atol=1e-2)
    assert (target == torch.rot90(chip[2], 1, (0, 1))).float().mean() > 0.995


def test_photometry_changes_bands_apart_and_leaves_what_is_missing() -> None:
    chip = _chip(48, 0)
    settings = AugmentSettings(brightness=0.5, contrast=0.3, band_drop=0.5, **STILL)
    dropped = 0
    for seed in range(40):
        data, valid, target = augment(chip, settings, size=48, rng=np.random.default_rng(seed))
        assert torch.equal(target, chip[2])
        assert (data[~valid] == 0).all()
        empty = [not band.any() for band in data]
        dropped += sum(empty)
        assert not all(empty)
    assert 15 < dropped < 45


@pytest.mark.parametrize("elastic", [0.0, 8.0])
def test_elastic_moves_pixels_by_about_what_was_asked(elastic: float) -> None:
    settings = AugmentSettings(elastic_px=elastic, **STILL)
    margin = margin_px(settings, 64)
    moves = []
    for seed in range(20):
        data, valid, _ = augment(_chip(64, margin), settings, size=64, rng=np.random.default_rng(seed))
        came_from = data[1][valid[1]] - (torch.arange(64).float() + margin).expand(64, 64)[valid[1]]
        moves.append(float(came_from.std()))
    assert (0.4 * elastic <= np.mean(moves) <= 1.3 * elastic) if elastic else max(moves) < 1e-5
