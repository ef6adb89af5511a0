"""What a person looks at while a network learns: curves, and an example of what it sees and says."""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.report.preview import encode_png, overlay, stretch_rgb
from pipeline.store.files import atomic_write_bytes
from pipeline.train.check import predict_window
from pipeline.train.target import IGNORE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn

    from pipeline.grid import Window
    from pipeline.model import Scaling
    from pipeline.train.checkpoint import Progress
    from pipeline.train.data import LabelledView
    from pipeline.train.settings import TrainSettings

_GAP_PX = 8
_EXAMPLE_PX = 384
_SMOOTHED = 50


def write_curves(path: Path, progress: Progress, class_names: Sequence[str]) -> None:
    """Every step as CSV: step, learning rate, loss, and what a look at the validation part found."""
    checks = {check["step"]: check for check in progress.checks}
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["step", "learning_rate", "loss", "val_mean_iou", *(f"val_iou_{name}" for name in class_names)])
    for step, (rate, loss) in enumerate(zip(progress.rates, progress.losses, strict=True), start=1):
        check = checks.get(step, {})
        scores = check.get("iou") or [None] * len(class_names)
        rows.writerow(_cells([step, rate, loss, check.get("mean_iou"), *scores]))
    atomic_write_bytes(path, text.getvalue().encode())


def draw_curves(path: Path, progress: Progress, class_names: Sequence[str]) -> bool:
    """The same as a picture; False where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - optional, and slow to load
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError:
        return False
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    losses = np.array(progress.losses)
    width = max(1, min(_SMOOTHED, len(losses) // 10))
    steps = np.arange(1, len(losses) + 1)
    left.plot(steps, losses, color="0.8", linewidth=0.7)
    if len(losses) >= width:
        left.plot(steps[width - 1 :], np.convolve(losses, np.ones(width) / width, "valid"), color="C0")
    left.set(xlabel="step", ylabel="loss", title="training chips")
    looks = [check for check in progress.checks if check["mean_iou"] is not None]
    if looks:
        at = [check["step"] for check in looks]
        right.plot(at, [check["mean_iou"] for check in looks], color="black", label="mean")
        for number, name in enumerate(class_names):
            scores = [math.nan if check["iou"][number] is None else check["iou"][number] for check in looks]
            right.plot(at, scores, linewidth=0.9, label=name)
        right.axvline(progress.best_step, color="0.7", linestyle=":")
        right.legend(fontsize="small")
    right.set(xlabel="step", ylabel="IoU", ylim=(0, 1), title="validation part")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    atomic_write_bytes(path, buffer.getvalue())
    return True


def draw_example(
    path: Path, network: nn.Module, view: LabelledView, window: Window, scaling: Scaling, settings: TrainSettings
) -> None:
    """Scene, labels and what the network says, side by side, for the middle of a window."""
    window = _middle(window)
    sample = view.read(window)
    mask = predict_window(network, view, window, scaling, stride=settings.network.stride).astype(np.uint16)
    known = np.asarray(sample.valid.all(axis=0))
    rgb = stretch_rgb(sample.data[_display_bands(view)], known)
    legend = settings.legend
    nodata = np.uint16(legend.nodata)
    panels = (
        rgb,
        overlay(rgb, np.where(sample.target == IGNORE, nodata, sample.target), legend),
        overlay(rgb, np.where(known, mask, nodata), legend),
    )
    gap = np.full((rgb.shape[0], _GAP_PX, 3), 255, np.uint8)
    picture = np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)
    atomic_write_bytes(path, encode_png(picture))


def _display_bands(view: LabelledView) -> list[int]:
    names = [band.name.lower() for band in view.scene.bands]
    colors = [band.color for band in view.scene.bands]
    for known in (names, colors):
        if {"red", "green", "blue"} <= set(known):
            return [known.index(color) for color in ("red", "green", "blue")]
    return [0, 1, 2] if len(names) >= 3 else [0]  # noqa: PLR2004


def _middle(window: Window) -> Window:
    height, width = (min(side, _EXAMPLE_PX) for side in window.shape)
    return type(window)(
        row_off=window.row_off + (window.height - height) // 2,
        col_off=window.col_off + (window.width - width) // 2,
        height=height,
        width=width,
    )


def _cells(values: list[Any]) -> list[Any]:
    return ["" if v is None else f"{v:.9g}" if isinstance(v, float) else v for v in values]
