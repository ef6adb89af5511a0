"""Batches, made while the network computes: a function of the step, whatever thread makes them and however fast."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.train.augment import Chip, augment, margin_px
from pipeline.train.losses import border_weights

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from torch import Tensor

    from pipeline.model import Scaling
    from pipeline.train.chips import ChipPlaces, Place
    from pipeline.train.data import LabelledView, Sample
    from pipeline.train.settings import TrainSettings

_AHEAD = 4


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Chips as tensors."""

    x: Tensor
    """`(batch, band, y, x)` float32, standardised, channels last in memory; 0 where not valid."""
    target: Tensor
    """`(batch, y, x)` int64; `IGNORE` where nothing is known."""
    weights: Tensor | None
    """`(batch, y, x)` float32 weights of pixels between near objects, where asked for."""


@dataclass(frozen=True, slots=True, eq=False)
class BatchMaker:
    """Makes the batch of a step."""

    views: Sequence[LabelledView]
    places: ChipPlaces
    scaling: Scaling
    settings: TrainSettings

    def make(self, step: int) -> Batch:
        """The batch of a step, from 0: the same whenever it is asked for."""
        chips = [
            self._chip(place, np.random.default_rng([self.settings.seed, 4, step, number]))
            for number, place in enumerate(self.places.of_step(step))
        ]
        x, _, target = (torch.stack(parts) for parts in zip(*chips, strict=True))
        return Batch(x.contiguous(memory_format=torch.channels_last), target, self._weights(target))

    def ahead(self, first: int, stop: int) -> Generator[Batch]:
        """Batches of steps `first` to `stop`, made in a thread beside the one that asks."""
        with ThreadPoolExecutor(1, thread_name_prefix="chips") as pool:
            waiting: deque[Future[Batch]] = deque()
            try:
                for step in range(first, stop):
                    waiting.append(pool.submit(self.make, step))
                    if len(waiting) > _AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _chip(self, place: Place, rng: np.random.Generator) -> Chip:
        size = place.window.height
        margin = margin_px(self.settings.augment, size)
        sample = self.views[place.view].read(place.window.expand(margin), inside=place.area)
        return augment(to_tensors(sample, self.scaling), self.settings.augment, size=size, rng=rng)

    def _weights(self, target: Tensor) -> Tensor | None:
        loss = self.settings.loss
        if not loss.border_weight:
            return None
        background = self.settings.legend.background or 0
        weights = [
            border_weights(t.numpy(), background=background, weight=loss.border_weight, sigma_px=loss.border_sigma_px)
            for t in target
        ]
        return torch.from_numpy(np.stack(weights))


def to_tensors(sample: Sample, scaling: Scaling) -> Chip:
    """A sample as the network takes it."""
    gain, bias = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in scaling.gain_and_bias())
    valid = torch.from_numpy(sample.valid)
    x = torch.from_numpy(sample.data) * gain + bias
    return x.masked_fill_(~valid, 0.0), valid, torch.from_numpy(sample.target.astype(np.int64))
