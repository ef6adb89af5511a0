"""A network that learns: one step, one look at the validation part, one checkpoint; the loop says when."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.errors import ModelError
from pipeline.train.check import count_on
from pipeline.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from pipeline.train.losses import segmentation_loss
from pipeline.train.metrics import iou, mean_over_present

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from pipeline.train.loader import Batch, BatchMaker
    from pipeline.train.split import Area

_MAX_NOT_FINITE = 5
"""Steps in a row whose loss is no number; after that training has come apart."""
_CHECK_WINDOWS = 64
"""Windows of the validation part looked at while training; all of them decide in the end."""


@dataclass(slots=True, kw_only=True)
class Learner:
    """The state of a training."""

    network: nn.Module
    """On the device, in training mode."""
    optimiser: torch.optim.Optimizer
    batches: BatchMaker
    val_areas: tuple[Area, ...]
    """What chooses the best weights; empty: the last are the best."""
    class_weights: Tensor | None
    device: str
    autocast: torch.dtype | None
    """Precision of the forwards, None for float32."""
    progress: Progress
    best: dict[str, Tensor] | None = None
    """Weights of the best look so far."""

    def resume(self, folder: Path) -> None:
        """Take up the newest checkpoint of a folder, if there is one."""
        found = load_checkpoint(folder)
        if found is None:
            return
        self.progress, state = found
        self.network.load_state_dict(state["weights"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.best = state["best"]

    def save(self, folder: Path) -> None:
        """Write a checkpoint; raises as `save_checkpoint`."""
        save_checkpoint(
            folder,
            self.progress,
            weights=self.network.state_dict(),
            optimiser=self.optimiser.state_dict(),
            best=self.best,
        )

    def step(self, batch: Batch, rate: float) -> float:
        """One step; its loss. A loss that is no number changes nothing.

        Raises:
            ModelError: TR-020, there were too many of them in a row.
        """
        settings, progress = self.batches.settings, self.progress
        torch.manual_seed(int(np.random.default_rng([settings.seed, 5, progress.step]).integers(2**62)))  # dropout
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss = self._loss(batch)
        value = loss.item()
        self.optimiser.zero_grad(set_to_none=True)
        if math.isfinite(value):
            loss.backward()  # type: ignore[no-untyped-call]
            norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), settings.schedule.clip)
            if torch.isfinite(norm):
                self.optimiser.step()
            else:
                progress.skipped += 1
        else:
            progress.skipped += 1
            self._require_finite(value, batch.x)
        progress.step += 1
        progress.losses.append(value)
        progress.rates.append(rate)
        return value

    def look(self) -> bool:
        """Look at the validation part; whether it is better than all before, whose weights are then kept."""
        progress = self.progress
        mean, scores = self._scores() if self.val_areas else (None, [])
        progress.checks.append({"step": progress.step, "mean_iou": mean, "iou": scores})
        if mean is not None and mean <= progress.best_score:
            return False
        progress.best_score, progress.best_step = -1.0 if mean is None else mean, progress.step
        self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.network.state_dict().items()}
        return True

    def _loss(self, batch: Batch) -> Tensor:
        x, target = (part.to(self.device, non_blocking=True) for part in (batch.x, batch.target))
        weights = None if batch.weights is None else batch.weights.to(self.device)
        with torch.autocast(self.device, dtype=self.autocast, enabled=self.autocast is not None):
            logits = self.network(x)
        return segmentation_loss(
            logits.float(),
            target,
            self.batches.settings.loss,
            class_weights=self.class_weights,
            pixel_weights=weights,
        )

    def _scores(self) -> tuple[float, list[float | None]]:
        """Mean IoU and IoU per class of the validation part."""
        settings = self.batches.settings
        counts = count_on(
            self.network,
            self.batches.views,
            self.val_areas,
            self.batches.scaling,
            num_classes=len(settings.class_names),
            stride=settings.network.stride,
            device=self.device,
            autocast=self.autocast,
            limit=_CHECK_WINDOWS,
        )
        scores = iou(counts)
        mean = float(mean_over_present(scores))
        return (0.0 if math.isnan(mean) else mean), [None if math.isnan(v) else float(v) for v in scores]

    def _require_finite(self, value: float, x: Tensor) -> None:
        recent = [*self.progress.losses[1 - _MAX_NOT_FINITE :], value]
        if len(recent) < _MAX_NOT_FINITE or any(math.isfinite(v) for v in recent):
            return
        step, span = self.progress.step + 1, f"{float(x.min()):.3g} to {float(x.max()):.3g}"
        raise ModelError(
            f"the loss was no number {_MAX_NOT_FINITE} times in a row, up to step {step}, whose standardised pixels go "
            f"from {span}; the last checkpoint is kept",
            code="TR-020",
            title="Training has come apart",
            where=f"step {step}",
            fix="use a lower schedule.learning_rate or precision=float32; check nodata of the scenes",
        )
