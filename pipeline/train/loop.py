"""The training loop, from top to bottom: batch, step; now and then a look and a checkpoint."""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pipeline.infer import resolve_device
from pipeline.model import has_fast_bfloat16
from pipeline.train.checkpoint import Progress
from pipeline.train.events import Checked, StepDone, TrainListener
from pipeline.train.learner import Learner
from pipeline.train.losses import balanced_weights
from pipeline.train.networks import set_frozen

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

    from pipeline.train.loader import BatchMaker
    from pipeline.train.settings import ScheduleSettings, TrainSettings
    from pipeline.train.split import Area
    from pipeline.train.survey import Survey


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
    settings, schedule = batches.settings, batches.settings.schedule
    learner = _learner(network, batches, found, val_areas)
    learner.resume(folder)
    progress = learner.progress
    started = time.monotonic() - progress.elapsed_s

    def look() -> None:
        better = learner.look()
        progress.elapsed_s = time.monotonic() - started
        learner.save(folder)
        listener(_checked(progress, schedule, better=better))
        on_check(learner.network, progress)

    with closing(batches.ahead(progress.step, schedule.steps)) as stream:
        for batch in stream:
            done = _done_frac(progress.step, time.monotonic() - started, schedule)
            if done >= 1 or _patience_ended(progress, schedule):
                break
            set_frozen(learner.network, frozen=progress.step < settings.network.freeze_steps)
            loss = learner.step(batch, learning_rate(done, schedule))
            listener(StepDone(step=progress.step, steps=schedule.steps, loss=loss, done_frac=done))
            if progress.step % schedule.check_every == 0:
                look()
            try:
                stop()
            except BaseException:
                progress.elapsed_s = time.monotonic() - started
                learner.save(folder)
                raise
    if not progress.checks or progress.checks[-1]["step"] != progress.step:
        look()
    assert learner.best is not None, "the first look keeps its weights"
    learner.network.load_state_dict(learner.best)
    return Trained(network=learner.network.to("cpu").eval(), progress=progress, autocast=learner.autocast)


def _learner(network: nn.Module, batches: BatchMaker, found: Survey, val_areas: tuple[Area, ...]) -> Learner:
    settings = batches.settings
    device = resolve_device(settings.device)
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    network = network.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    schedule = settings.schedule
    return Learner(
        network=network,
        optimiser=torch.optim.AdamW(
            network.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay
        ),
        batches=batches,
        val_areas=val_areas,
        class_weights=_class_weights(settings, found, device),
        device=device,
        autocast=autocast_of(settings, device),
        progress=Progress(),
    )


def learning_rate(done: float, schedule: ScheduleSettings) -> float:
    """The learning rate when the share `done` of the schedule is over."""
    if schedule.shape == "constant":
        return schedule.learning_rate
    rise = 0.1 if schedule.shape == "one-cycle" else 0.0
    if done < rise:
        return schedule.learning_rate * (done / rise * 0.96 + 0.04)
    return schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - rise) / (1 - rise)))


def _checked(progress: Progress, schedule: ScheduleSettings, *, better: bool) -> Checked:
    recent = [v for v in progress.losses[-schedule.check_every :] if math.isfinite(v)]
    return Checked(
        step=progress.step,
        loss=sum(recent) / max(len(recent), 1),
        mean_iou=progress.checks[-1]["mean_iou"],
        best=better,
    )


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


def autocast_of(settings: TrainSettings, device: str) -> torch.dtype | None:
    """Precision of the forwards; None for float32."""
    fast = settings.precision == "bfloat16" or (settings.precision == "auto" and has_fast_bfloat16(device))
    return torch.bfloat16 if fast else None


def settings_of(settings: TrainSettings) -> dict[str, Any]:
    """What must stay the same when training goes on: all but where and how fast it runs."""
    return settings.model_dump(mode="json", exclude={"threads", "tensorboard"})
