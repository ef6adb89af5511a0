"""How good a network is on a part of the scenes: counts of pixels by class, window by window."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.grid import Window, iter_parts, source_index
from pipeline.train.loader import to_tensors
from pipeline.train.metrics import class_scores, confusion, mean_over_present, overall_accuracy
from pipeline.train.target import IGNORE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from pipeline.model import Scaling
    from pipeline.train.data import LabelledView, Sample
    from pipeline.train.split import Area

_WINDOW_PX = 256
_CONTEXT_PX = 64
"""Real pixels around a window, so that its rim is not judged on padding. They are seen, not counted."""


def count_on(
    network: nn.Module,
    views: Sequence[LabelledView],
    areas: Sequence[Area],
    scaling: Scaling,
    *,
    num_classes: int,
    stride: int,
    device: str = "cpu",
    autocast: torch.dtype | None = None,
    limit: int | None = None,
) -> NDArray[np.int64]:
    """Counts `(target class, class found)` over areas.

    Args:
        network: In any mode; left in the mode it was in.
        views: Scenes.
        areas: What is judged.
        scaling: From stored values to the network's input.
        num_classes: Classes.
        stride: Of the network; inputs get sides that it divides.
        device: Where the network is.
        autocast: Lower precision, if any.
        limit: So many windows at most, spread evenly.
    """
    counts = np.zeros((num_classes, num_classes), np.int64)
    for view, window in _spread(list(_windows(areas)), limit):
        mask = predict_window(network, views[view], window, scaling, stride=stride, device=device, autocast=autocast)
        target = views[view].read(window).target
        counts += confusion(mask, np.where(target == IGNORE, num_classes, target), num_classes=num_classes)
    return counts


@torch.inference_mode()
def predict_window(
    network: nn.Module,
    view: LabelledView,
    window: Window,
    scaling: Scaling,
    *,
    stride: int,
    device: str = "cpu",
    autocast: torch.dtype | None = None,
) -> NDArray[np.int64]:
    """Classes `(y, x)` of a window, seen with its surroundings."""
    was_training = network.training
    network.eval()
    seen = _with_context(window, stride)
    x, _, _ = to_tensors(_reflected(view, seen), scaling)
    batch = x[None].to(device).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device, dtype=autocast, enabled=autocast is not None):
        logits: Tensor = network(batch)
    network.train(was_training)
    classes: NDArray[np.int64] = logits[0].float().argmax(dim=0).cpu().numpy()
    return classes[window.slices_in(seen)]


def _with_context(window: Window, stride: int) -> Window:
    """The window grown by the context, to sides that the stride divides."""
    grown = window.expand(_CONTEXT_PX)
    height, width = (-(-side // stride) * stride for side in grown.shape)
    return Window(row_off=grown.row_off, col_off=grown.col_off, height=height, width=width)


def _reflected(view: LabelledView, window: Window) -> Sample:
    """A sample whose pixels beyond the scene are mirrored, as they are when a scene is segmented."""
    rows, cols = (
        source_index(start, stop, length, padding="reflect")
        for start, stop, length in (
            (window.row_off, window.row_stop, view.whole.height),
            (window.col_off, window.col_stop, view.whole.width),
        )
    )
    box = Window.from_bounds(int(rows.min()), int(cols.min()), int(rows.max()) + 1, int(cols.max()) + 1)
    sample = view.read(box)
    rows, cols = rows - box.row_off, cols - box.col_off
    return type(sample)(
        sample.data[:, rows][:, :, cols], sample.valid[:, rows][:, :, cols], sample.target[rows][:, cols]
    )


def _windows(areas: Sequence[Area]) -> Iterator[tuple[int, Window]]:
    for area in areas:
        for window in iter_parts(area.window, (_WINDOW_PX, _WINDOW_PX)):
            yield area.view, window


def _spread(windows: list[tuple[int, Window]], limit: int | None) -> list[tuple[int, Window]]:
    if limit is None or len(windows) <= limit:
        return windows
    return [windows[i] for i in np.linspace(0, len(windows) - 1, limit).round().astype(int)]


def accuracy_of(counts: NDArray[np.int64], class_names: Sequence[str]) -> dict[str, Any]:
    """IoU, F1, precision and recall per class and overall, for a model's card; None for what cannot be said.

    Args:
        counts: `(target class, class found)`.
        class_names: Names in order of their values.
    """
    of = class_scores(counts)
    rows = {"iou": of.iou, "f1": of.f1, "precision": of.precision, "recall": of.recall}
    return {
        "pixels": int(counts.sum()),
        "mean_iou": _rounded(mean_over_present(of.iou)),
        "overall_accuracy": _rounded(overall_accuracy(counts)),
        "classes": {
            name: {key: _rounded(values[i]) for key, values in rows.items()} for i, name in enumerate(class_names)
        },
    }


def _rounded(value: Any) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None
