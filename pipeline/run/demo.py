"""`scenemask demo`: a synthetic scene, a small U-Net trained on part of it, the whole of it segmented and scored."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from rasterio.windows import Window as RasterioWindow

from pipeline.grid import Window, iter_windows
from pipeline.model import ModelSpec, Scaling, UNetConfig, save_model
from pipeline.run.events import Listener, StageAdvanced, StageFinished, StageStarted, silent
from pipeline.run.segment import RunResult, segment
from pipeline.scene import open_scene, write_synthetic_scene
from pipeline.train import ChipSampler, StepDone, TrainSettings, band_statistics, confusion, iou, train

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.model import Model
    from pipeline.scene import SyntheticScene

_STEPS = 350
_CHIP_PX = 96
_IGNORE = 255


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
    out: Path, *, size_px: int = 4096, steps: int | None = None, seed: int = 0, listener: Listener = silent
) -> DemoResult:
    """Make a scene, train on its left half, segment all of it, score the right half.

    Args:
        out: Folder for scene, model and results.
        size_px: Side of the scene.
        steps: Training steps.
        seed: Of the scene, the weights and the chips.
        listener: Hears of stages and steps.
    """
    timings: dict[str, float] = {}
    with _Stage("scene", listener, timings):
        made = write_synthetic_scene(out, size_px=size_px, seed=seed)
    with _Stage("train", listener, timings, total=steps or _STEPS):
        model = train_on(made, out / "model", steps=steps or _STEPS, seed=seed, listener=listener)
    result = segment(made.scene_path, model, out / "result", overwrite=True, listener=listener)
    timings |= result.summary["timings_s"]
    with _Stage("score", listener, timings):
        scores = iou(_score(out / "result" / "mask.tif", made.truth_path, made.test_window, len(made.legend)))
    return DemoResult(run=result, iou=tuple(float(v) for v in scores), timings_s=timings)


def train_on(made: SyntheticScene, folder: Path, *, steps: int, seed: int, listener: Listener = silent) -> Model:
    """A small U-Net for a synthetic scene, trained on its training window only, saved as a model folder."""
    scene = open_scene(made.scene_path)
    mean, std = band_statistics(scene, made.train_window)
    ones = (1.0,) * len(scene.bands)
    scaling = Scaling(scale=ones, offset=(0.0,) * len(scene.bands), mean=mean, std=std)
    with rasterio.open(made.truth_path) as truth:

        def read_target(window: Window) -> NDArray[np.generic]:
            return truth.read(1, window=_rasterio(window))  # type: ignore[no-any-return]

        chips = ChipSampler(
            scene,
            read_target,
            area=made.train_window,
            chip_px=min(_CHIP_PX, made.train_window.height, made.train_window.width),
            num_classes=len(made.legend),
            ignore_index=_IGNORE,
            seed=seed,
        )
        network = train(
            UNetConfig(bands=len(scene.bands), outputs=len(made.legend), depth=3, width=16),
            chips,
            scaling,
            TrainSettings(steps=steps, seed=seed),
            ignore_index=_IGNORE,
            on_step=lambda done: _tell_step(done, listener),
        )
    spec = ModelSpec(
        name="demo-land-cover",
        bands=tuple(band.name for band in scene.bands),
        classes=tuple(c.name for c in made.legend),
        colors=tuple(c.color for c in made.legend),
        background=next((c.name for c in made.legend if c.background), None),
        scaling=scaling,
        gsd_m=1.0,
    )
    return save_model(folder, network, spec, training={"steps": steps, "seed": seed, "scene": made.scene_path.name})


def _tell_step(done: StepDone, listener: Listener) -> None:
    listener(StageAdvanced(name="train", done=done.step, total=done.steps))


def _score(mask: Path, truth: Path, area: Window, num_classes: int) -> NDArray[np.int64]:
    """Confusion counts over `area`, block by block."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    with rasterio.open(mask) as a, rasterio.open(truth) as b:
        for part in iter_windows(area.shape, (1024, 1024)):
            window = _rasterio(
                Window(
                    row_off=area.row_off + part.row_off,
                    col_off=area.col_off + part.col_off,
                    height=part.height,
                    width=part.width,
                )
            )
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
