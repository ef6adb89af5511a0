"""`scenemask demo`: a synthetic scene, segmented with the small U-Net that comes with it, and scored."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from rasterio.windows import Window as RasterioWindow

from pipeline.grid import Window, iter_parts
from pipeline.model import load_model
from pipeline.run.events import Listener, StageAdvanced, StageFinished, StageStarted, silent
from pipeline.run.segment import RunResult, segment
from pipeline.scene import write_synthetic_scene
from pipeline.train import StepDone, TrainEvent, confusion, iou, read_train_settings, train_model

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.model import Model
    from pipeline.scene import SyntheticScene
    from pipeline.train import TrainSettings

DEMO_MODEL = Path(__file__).parents[1] / "assets" / "demo-model"
"""Comes with scenemask; configs/train/demo.yaml made it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What the demo made."""

    run: RunResult
    iou: tuple[float, ...]
    """Per class, on the part of the scene that was never trained on."""
    timings_s: dict[str, float]
    """Per stage."""

    @property
    def mean_iou(self) -> float:
        """Mean over classes."""
        return float(np.nanmean(self.iou))

    def to_dict(self) -> dict[str, Any]:
        """As plain values; None for a class that is neither there nor found, which has no IoU."""
        return {
            "out": str(self.run.out_dir),
            "iou_unseen": [None if math.isnan(v) else round(v, 4) for v in self.iou],
            "mean_iou_unseen": round(self.mean_iou, 4),
            "timings_s": self.timings_s,
            "run": self.run.summary,
        }


def run_demo(
    out: Path,
    *,
    size_px: int = 4096,
    train: bool = False,
    steps: int | None = None,
    seed: int = 0,
    listener: Listener = silent,
) -> DemoResult:
    """Make a scene, segment all of it, score the half that no network has learnt from.

    Args:
        out: Folder for scene, model and results.
        size_px: Side of the scene.
        train: Train the network anew, as the one that comes with scenemask was trained.
        steps: Training steps, if not as many as that one had.
        seed: Of the scene.
        listener: Hears of stages and steps.
    """
    timings: dict[str, float] = {}
    with _Stage("scene", listener, timings):
        made = write_synthetic_scene(out, size_px=size_px, seed=seed)
    if train or steps is not None:
        settings = demo_settings(made, steps=steps)
        with _Stage("train", listener, timings, total=settings.schedule.steps):
            model = _train(settings, out / "model", listener)
    else:
        model = load_model(DEMO_MODEL)
    result = segment(made.scene_path, model, out / "result", overwrite=True, listener=listener)
    timings |= result.summary["timings_s"]
    with _Stage("score", listener, timings):
        scores = iou(_score(out / "result" / "mask.tif", made.truth_path, made.test_window, len(made.legend)))
    return DemoResult(run=result, iou=tuple(float(v) for v in scores), timings_s=timings)


def demo_settings(made: SyntheticScene, *, steps: int | None = None) -> TrainSettings:
    """How the network that comes with scenemask was trained, for a scene of this place."""
    changes = [
        f"scenes.0.scene={made.scene_path}",
        f"scenes.0.labels={made.truth_path}",
        f"split.areas={made.split_path}",
    ]
    if steps is not None:
        changes.append(f"schedule.steps={steps}")
    return read_train_settings(DEMO_MODEL / "config.yaml", changes)


def _train(settings: TrainSettings, folder: Path, listener: Listener) -> Model:
    def hear(event: TrainEvent) -> None:
        if isinstance(event, StepDone):
            listener(StageAdvanced(name="train", done=event.step, total=event.steps))

    train_model(settings, folder, overwrite=True, listener=hear)
    return load_model(folder)


def _score(mask: Path, truth: Path, area: Window, num_classes: int) -> NDArray[np.int64]:
    """Confusion counts over `area`, block by block."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    with rasterio.open(mask) as a, rasterio.open(truth) as b:
        for part in iter_parts(area, (1024, 1024)):
            window = _rasterio(part)
            counts += confusion(a.read(1, window=window), b.read(1, window=window), num_classes=num_classes)
    return counts


def _rasterio(window: Window) -> RasterioWindow:
    return RasterioWindow(window.col_off, window.row_off, window.width, window.height)


class _Stage:
    """Times a stage and tells the listener."""

    def __init__(self, name: str, listener: Listener, timings: dict[str, float], *, total: int = 0) -> None:
        self._name, self._listener, self._timings, self._total = name, listener, timings, total
        self._started = 0.0

    def __enter__(self) -> None:
        self._started = time.monotonic()
        self._listener(StageStarted(name=self._name, total=self._total))

    def __exit__(self, *_: object) -> None:
        seconds = time.monotonic() - self._started
        self._timings[self._name] = round(seconds, 3)
        self._listener(StageFinished(name=self._name, seconds=seconds))
