"""The training loop, from top to bottom: batch, forward, loss, backward, step; now and then a look and a checkpoint."""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.errors import ModelError
from pipeline.model import has_fast_bfloat16
from pipeline.train.check import count_on
from pipeline.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from pipeline.train.events import Checked, StepDone, TrainListener
from pipeline.train.losses import balanced_weights, segmentation_loss
from pipeline.train.metrics import iou
from pipeline.train.networks import set_frozen

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

    from pipeline.train.loader import Batch, BatchMaker
    from pipeline.train.settings import ScheduleSettings, TrainSettings
    from pipeline.train.split import Area
    from pipeline.train.survey import Survey

_MAX_NOT_FINITE = 5
"""Steps in a row whose loss is no number; after that training has come apart."""
_CHECK_WINDOWS = 64
"""Windows of the validation part looked at while training; all of them decide in the end."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trained:
    """What a loop ends with."""

    network: nn.Module
    """With the best weights, in eval mode."""
    progress: Progress
    autocast: torch.dtype | None
    """Precision of the forwards, None for float32."""


def train(
    network: nn.Module,
    batches: BatchMaker,
    found: Survey,
    val_areas: tuple[Area, ...],
    folder: Path,
    *,
    listener: TrainListener,
    on_check: Callable[[nn.Module, Progress], None] = lambda *_: None,
    stop: Callable[[], None] = lambda: None,
) -> Trained:
    """Train until the schedule ends, going on from the newest checkpoint in `folder`.

    Args:
        network: With its first weights.
        batches: Where samples come from.
        found: Of the training part, for class weights.
        val_areas: What chooses the best weights; empty: the last are taken.
        folder: For checkpoints.
        listener: Hears of each step and look.
        on_check: Called after each look.
        stop: Called between steps; raises when training is to stop, after a checkpoint.

    Raises:
        ModelError: TR-020, the loss is no number several times in a row.
    """
    settings = batches.settings
    device = _device(settings)
    autocast = _autocast(settings, device)
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    network = network.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    schedule = settings.schedule
    optimiser = torch.optim.AdamW(network.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    progress, best = _resume(folder, network, optimiser)
    class_weights = _class_weights(settings, found, device)
    started = time.monotonic() - progress.elapsed_s

    def look() -> None:
        nonlocal best
        progress.elapsed_s = time.monotonic() - started
        better = _check(network, batches, val_areas, progress, device=device, autocast=autocast)
        if better:
            best = _copy(network)
        save_checkpoint(folder, progress, weights=network.state_dict(), optimiser=optimiser.state_dict(), best=best)
        listener(_checked(progress, schedule, better=better))
        on_check(network, progress)

    with closing(batches.ahead(progress.step, schedule.steps)) as stream:
        for batch in stream:
            done = _done_frac(progress.step, time.monotonic() - started, schedule)
            if done >= 1 or _patience_ended(progress, schedule):
                break
            rate = learning_rate(done, schedule)
            set_frozen(network, frozen=progress.step < settings.network.freeze_steps)
            loss = _step(network, optimiser, batch, progress, rate, settings, class_weights, device, autocast)
            progress.step += 1
            progress.losses.append(loss)
            progress.rates.append(rate)
            listener(StepDone(step=progress.step, steps=schedule.steps, loss=loss, done_frac=done))
            if progress.step % schedule.check_every == 0:
                look()
            try:
                stop()
            except BaseException:
                _save_now(folder, progress, network, optimiser, best, time.monotonic() - started)
                raise
    if not progress.checks or progress.checks[-1]["step"] != progress.step:
        look()
    if best is not None:
        network.load_state_dict(best)
    trained: nn.Module = network.to("cpu").eval()
    return Trained(network=trained, progress=progress, autocast=autocast)


def learning_rate(done: float, schedule: ScheduleSettings) -> float:
    """The learning rate when the share `done` of the schedule is over."""
    if schedule.shape == "constant":
        return schedule.learning_rate
    rise = 0.1 if schedule.shape == "one-cycle" else 0.0
    if done < rise:
        return schedule.learning_rate * (done / rise * 0.96 + 0.04)
    return schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - rise) / (1 - rise)))


def _step(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    progress: Progress,
    rate: float,
    settings: TrainSettings,
    class_weights: Tensor | None,
    device: str,
    autocast: torch.dtype | None,
) -> float:
    """One step; its loss. A loss that is no number changes nothing, and too many of them end training."""
    torch.manual_seed(int(np.random.default_rng([settings.seed, 5, progress.step]).integers(2**62)))  # dropout
    for group in optimiser.param_groups:
        group["lr"] = rate
    x, target = batch.x.to(device, non_blocking=True), batch.target.to(device, non_blocking=True)
    weights = None if batch.weights is None else batch.weights.to(device)
    with torch.autocast(device, dtype=autocast, enabled=autocast is not None):
        logits = network(x)
    loss = segmentation_loss(logits.float(), target, settings.loss, class_weights=class_weights, pixel_weights=weights)
    value = loss.item()
    optimiser.zero_grad(set_to_none=True)
    if not math.isfinite(value):
        progress.skipped += 1
        recent = [*progress.losses[1 - _MAX_NOT_FINITE :], value]
        if len(recent) >= _MAX_NOT_FINITE and not any(math.isfinite(v) for v in recent):
            raise _come_apart(progress, x)
        return value
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), settings.schedule.clip)
    if torch.isfinite(norm):
        optimiser.step()
    else:
        progress.skipped += 1
    return value


def _check(
    network: nn.Module,
    batches: BatchMaker,
    areas: tuple[Area, ...],
    progress: Progress,
    *,
    device: str,
    autocast: torch.dtype | None,
) -> bool:
    """Look at the validation part; whether it is better than all before."""
    if not areas:
        progress.checks.append({"step": progress.step, "mean_iou": None, "iou": []})
        progress.best_step = progress.step
        return True
    counts = count_on(
        network,
        batches.views,
        areas,
        batches.scaling,
        num_classes=len(batches.settings.class_names),
        stride=batches.settings.network.stride,
        device=device,
        autocast=autocast,
        limit=_CHECK_WINDOWS,
    )
    scores = iou(counts)
    mean = float(np.nanmean(scores)) if np.isfinite(scores).any() else 0.0
    progress.checks.append(
        {"step": progress.step, "mean_iou": mean, "iou": [None if math.isnan(v) else float(v) for v in scores]}
    )
    if mean <= progress.best_score:
        return False
    progress.best_score, progress.best_step = mean, progress.step
    return True


def _checked(progress: Progress, schedule: ScheduleSettings, *, better: bool) -> Checked:
    recent = [v for v in progress.losses[-schedule.check_every :] if math.isfinite(v)]
    return Checked(
        step=progress.step,
        loss=sum(recent) / max(len(recent), 1),
        mean_iou=progress.checks[-1]["mean_iou"],
        best=better,
    )


def _resume(
    folder: Path, network: nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[Progress, dict[str, Tensor] | None]:
    found = load_checkpoint(folder)
    if found is None:
        return Progress(), None
    progress, state = found
    network.load_state_dict(state["weights"])
    optimiser.load_state_dict(state["optimiser"])
    return progress, state["best"]


def _save_now(
    folder: Path,
    progress: Progress,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    best: dict[str, Tensor] | None,
    elapsed_s: float,
) -> None:
    progress.elapsed_s = elapsed_s
    save_checkpoint(folder, progress, weights=network.state_dict(), optimiser=optimiser.state_dict(), best=best)


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def _class_weights(settings: TrainSettings, found: Survey, device: str) -> Tensor | None:
    weights = settings.loss.class_weights
    if weights == "none":
        return None
    if weights == "balanced":
        return balanced_weights(found.class_px["train"]).to(device)
    return torch.tensor(weights, dtype=torch.float32, device=device)


def _done_frac(step: int, elapsed_s: float, schedule: ScheduleSettings) -> float:
    by_time = elapsed_s / schedule.time_limit if schedule.time_limit else 0.0
    return max(step / schedule.steps, by_time)


def _patience_ended(progress: Progress, schedule: ScheduleSettings) -> bool:
    return schedule.patience is not None and progress.checks_since_best >= schedule.patience


def _device(settings: TrainSettings) -> str:
    if settings.device != "auto":
        return settings.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _autocast(settings: TrainSettings, device: str) -> torch.dtype | None:
    fast = settings.precision == "bfloat16" or (settings.precision == "auto" and has_fast_bfloat16(device))
    return torch.bfloat16 if fast else None


def _come_apart(progress: Progress, x: Tensor) -> ModelError:
    span = f"{float(x.min()):.3g} to {float(x.max()):.3g}"
    return ModelError(
        f"the loss was no number {_MAX_NOT_FINITE} times in a row, up to step {progress.step + 1}, whose standardised "
        f"pixels go from {span}; the last checkpoint is kept",
        code="TR-020",
        title="Training has come apart",
        where=f"step {progress.step + 1}",
        fix="use a lower schedule.learning_rate or precision=float32; check nodata of the scenes",
    )


def settings_of(settings: TrainSettings) -> dict[str, Any]:
    """What must stay the same when training goes on: all but where and how fast it runs."""
    return settings.model_dump(mode="json", exclude={"threads", "tensorboard"})
