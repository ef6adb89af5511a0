"""A training loop that reads from top to bottom: chips in, U-Net out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.model import UNet

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.model import Scaling, UNetConfig
    from pipeline.train.chips import Batch, ChipSampler


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How long and how fast."""

    steps: int = 350
    """Optimiser steps."""
    batch: int = 8
    """Chips per step."""
    learning_rate: float = 6e-3
    """Highest learning rate, reached after a tenth of the steps."""
    weight_decay: float = 1e-4
    seed: int = 0
    """Of the weights; chips have their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    """What a listener hears after each step."""

    step: int
    steps: int
    loss: float


def train(
    config: UNetConfig,
    chips: ChipSampler,
    scaling: Scaling,
    settings: TrainSettings,
    *,
    ignore_index: int,
    on_step: Callable[[StepDone], None] = lambda _: None,
) -> UNet:
    """Train a U-Net from scratch with cross-entropy plus Dice loss and a one-cycle learning rate.

    Args:
        config: The network.
        chips: Where samples come from.
        scaling: From stored values to the network's input.
        settings: Length and speed.
        ignore_index: Target value without a class.
        on_step: Called after each step.

    Returns:
        The network in eval mode.
    """
    torch.manual_seed(settings.seed)
    network = UNet(config).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    for step in range(settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * one_cycle(step, settings.steps)
        x, target = _tensors(chips.draw(settings.batch), scaling)
        loss = segmentation_loss(network(x), target, ignore_index=ignore_index)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        on_step(StepDone(step=step + 1, steps=settings.steps, loss=loss.item()))
    trained: UNet = network.eval()
    return trained


def one_cycle(step: int, steps: int) -> float:
    """Share of the highest learning rate: a linear rise over a tenth of the steps, then a cosine to 0."""
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def segmentation_loss(logits: Tensor, target: Tensor, *, ignore_index: int) -> Tensor:
    """Cross-entropy plus mean Dice loss over classes, both blind to `ignore_index`.

    Args:
        logits: `(batch, class, y, x)`.
        target: `(batch, y, x)` class values.
        ignore_index: Target value without a class.

    Source: Dice loss as in Milletari et al. 2016, arXiv:1606.04797.
    """
    known = target != ignore_index
    cross_entropy = functional.cross_entropy(logits, target, ignore_index=ignore_index)
    p = logits.softmax(dim=1) * known[:, None]
    one_hot = functional.one_hot(target.masked_fill(~known, 0), logits.shape[1]).movedim(-1, 1) * known[:, None]
    overlap = (p * one_hot).sum(dim=(0, 2, 3))
    size = (p + one_hot).sum(dim=(0, 2, 3))
    dice = 1 - (2 * overlap + 1) / (size + 1)
    return cross_entropy + dice.mean()


def _tensors(batch: Batch, scaling: Scaling) -> tuple[Tensor, Tensor]:
    gain, bias = (torch.tensor(v)[:, None, None] for v in scaling.gain_and_bias())
    x = torch.from_numpy(batch.data) * gain + bias
    x.masked_fill_(~torch.from_numpy(batch.valid), 0.0)
    return x.to(memory_format=torch.channels_last), torch.from_numpy(batch.target)
