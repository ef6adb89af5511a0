"""Labelled scenes in, a U-Net with known accuracy out; masks held against the truth. Knows no run."""

from typing import TYPE_CHECKING

from pipeline.lazy import lazily

if TYPE_CHECKING:
    from pipeline.train.check import count_on
    from pipeline.train.events import Checked, Note, StepDone, TrainEvent, TrainListener
    from pipeline.train.metrics import confusion, iou
    from pipeline.train.settings import TrainSettings, make_train_settings, read_train_settings
    from pipeline.train.teach import TrainResult, train_model

__all__ = [
    "Checked",
    "Note",
    "StepDone",
    "TrainEvent",
    "TrainListener",
    "TrainResult",
    "TrainSettings",
    "confusion",
    "count_on",
    "iou",
    "make_train_settings",
    "read_train_settings",
    "train_model",
]

# Comparing masks needs no PyTorch; each name is loaded when it is first used.
_HOMES = {
    "Checked": "events",
    "Note": "events",
    "StepDone": "events",
    "TrainEvent": "events",
    "TrainListener": "events",
    "TrainResult": "teach",
    "TrainSettings": "settings",
    "confusion": "metrics",
    "count_on": "check",
    "iou": "metrics",
    "make_train_settings": "settings",
    "read_train_settings": "settings",
    "train_model": "teach",
}

__getattr__ = lazily(__name__, _HOMES)
