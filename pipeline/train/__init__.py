"""Chips, losses, the training loop, evaluation. Knows no run."""

from pipeline.train.chips import Batch, ChipSampler, band_statistics
from pipeline.train.loop import StepDone, TrainSettings, segmentation_loss, train
from pipeline.train.metrics import confusion, iou

__all__ = [
    "Batch",
    "ChipSampler",
    "StepDone",
    "TrainSettings",
    "band_statistics",
    "confusion",
    "iou",
    "segmentation_loss",
    "train",
]
