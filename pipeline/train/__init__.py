"""Labelled scenes in, a U-Net with known accuracy out. Knows no run."""

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
