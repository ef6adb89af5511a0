"""Scores of the demo as plain values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.run.demo import DemoResult
from pipeline.run.segment import RunResult


def test_a_class_without_iou_is_none_in_json() -> None:
    run = RunResult(out_dir=Path("o"), mask_path=Path("o/mask.tif"), polygons_paths=(), summary={}, resumed=False)
    result = DemoResult(run=run, iou=(0.5, float("nan"), 0.25), timings_s={})
    document = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert document["iou_unseen"] == [0.5, None, 0.25]
    assert document["mean_iou_unseen"] == pytest.approx(0.375)
