"""Losses against PyTorch's own and against a plain loop; blind to what is not known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn import functional

from pipeline.train.loop import learning_rate
from pipeline.train.losses import balanced_weights, border_weights, segmentation_loss
from pipeline.train.settings import LossSettings, ScheduleSettings
from pipeline.train.target import IGNORE


def _pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 9, 11, generator=generator) * 3
    target = torch.randint(0, 3, (2, 9, 11), generator=generator)
    target[:, :2] = IGNORE
    return logits, target


def _only(**parts: float) -> LossSettings:
    return LossSettings(**({"cross_entropy": 0, "dice": 0, "focal": 0} | parts))  # type: ignore[arg-type]


@given(st.integers(0, 50))
def test_cross_entropy_is_pytorchs(seed: int) -> None:
    logits, target = _pair(seed)
    weights = torch.tensor([0.5, 1.0, 3.0])
    for class_weights in (None, weights):
        ours = segmentation_loss(logits, target, _only(cross_entropy=1), class_weights=class_weights)
        theirs = functional.cross_entropy(logits, target, weight=class_weights, ignore_index=IGNORE)
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_focal_without_gamma_is_cross_entropy_and_with_it_looks_away_from_what_is_easy() -> None:
    logits, target = _pair()
    plain = segmentation_loss(logits, target, _only(cross_entropy=1))
    assert torch.allclose(
        segmentation_loss(logits, target, LossSettings(cross_entropy=0, dice=0, focal=1, focal_gamma=0)), plain
    )
    p = logits.softmax(1).gather(1, target.masked_fill(target == IGNORE, 0)[:, None])[:, 0]
    known = target != IGNORE
    expected = (-((1 - p) ** 2) * p.log())[known].mean()
    assert torch.allclose(segmentation_loss(logits, target, _only(focal=1)), expected, atol=1e-6)


def test_dice_by_hand() -> None:
    """One class right in 2 of 3 pixels, with certainty: Dice (2 · 2 + 1) / (3 + 2 + 1) for it."""
    target = torch.tensor([[[1, 1, 1, 0, IGNORE]]])
    found = torch.tensor([[[1, 1, 0, 0, 1]]])
    logits = functional.one_hot(found, 2).movedim(-1, 1).float() * 100
    expected = ((1 - 5 / 6) + (1 - 3 / 4)) / 2
    assert segmentation_loss(logits, target, _only(dice=1)).item() == pytest.approx(expected, abs=1e-6)


@given(st.integers(0, 50))
def test_what_is_not_known_changes_nothing(seed: int) -> None:
    logits, target = _pair(seed)
    settings = LossSettings(focal=0.5)
    other = logits.clone()
    other[:, :, :2] = 77
    weights = torch.ones(2, 9, 11)
    weights[:, :2] = 9
    expected = segmentation_loss(logits, target, settings)
    assert torch.allclose(segmentation_loss(other, target, settings, pixel_weights=weights), expected)


def test_a_batch_without_any_label_has_no_gradient() -> None:
    logits, target = _pair()
    logits.requires_grad_()
    loss = segmentation_loss(logits, torch.full_like(target, IGNORE), LossSettings(focal=1))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@given(st.integers(0, 30))
def test_border_weights_are_the_published_formula(seed: int) -> None:
    rng = np.random.default_rng(seed)
    target = (ndimage.gaussian_filter(rng.normal(size=(60, 50)), 2.5) > 0.1).astype(np.int64)
    target[:3] = IGNORE
    found = border_weights(target, background=0, weight=10, sigma_px=3)
    objects, count = ndimage.label(target == 1)
    distances = np.stack([ndimage.distance_transform_edt(objects != i) for i in range(1, count + 1)])
    distances = np.concatenate([distances, np.full((2, 60, 50), 1e3)])
    d1, d2 = np.sort(distances, axis=0)[:2]
    expected = 1 + 10 * np.exp(-((d1 + d2) ** 2) / 18) * (target == 0)
    assert np.abs(found - expected).max() < 1e-5


def test_balanced_weights_favour_the_rare_and_leave_out_the_absent() -> None:
    weights = balanced_weights(np.array([900, 100, 0]))
    assert weights[1] / weights[0] == pytest.approx(3)
    assert weights[:2].mean() == pytest.approx(1)
    assert weights[2] == 0


@pytest.mark.parametrize("shape", ["one-cycle", "cosine", "constant"])
def test_learning_rates(shape: Any) -> None:
    schedule = ScheduleSettings(shape=shape, learning_rate=2.0)
    rates = [learning_rate(done, schedule) for done in np.linspace(0, 0.999, 100)]
    assert max(rates) <= 2.0
    assert min(rates) > 0
    if shape == "constant":
        assert set(rates) == {2.0}
    else:
        top = int(np.argmax(rates))
        assert np.all(np.diff(rates[: top + 1]) >= 0)
        assert np.all(np.diff(rates[top:]) <= 0)
        assert rates[-1] < 0.01
        assert (top == 0) == (shape == "cosine")
