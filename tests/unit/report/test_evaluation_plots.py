from __future__ import annotations

import io

import numpy as np
from matplotlib import image

from pipeline.report.evaluation_plots import plot_evaluation
from pipeline.train.evaluate.counting import ErrorMap
from tests.evaluations import counted


def _picture(png: bytes) -> np.ndarray:
    return image.imread(io.BytesIO(png))


def test_errors_are_dark_where_they_are() -> None:
    truth = np.zeros((40, 80), np.uint8)
    pred = truth.copy()
    pred[:, 40:] = 1
    errors = ErrorMap((40, 80))
    counted(pred, truth, errors)
    names = ["a $1 name", "b"]
    document = {
        "classes": [{"name": n} for n in names],
        "confusion": {"counts": [[5, 3], [0, 0]]},
        "sample": None,
        "calibration": None,
    }
    plots = dict(plot_evaluation(document, errors))
    assert set(plots) == {"confusion.png", "errors.png"}
    picture = _picture(plots["errors.png"])[..., :3].mean(axis=2)
    middle = picture[picture.shape[0] // 2]
    width = len(middle)
    assert middle[width // 4] > 0.8
    assert middle[int(width * 0.6)] < 0.2
    assert dict(plot_evaluation(document, errors)) == plots  # equal numbers give equal bytes


def test_reliability_is_drawn_where_there_is_calibration() -> None:
    table = [{"from": 0.5, "to": 1.0, "pixels": 4, "mean_probability": 0.7, "share_right": 0.6}]
    calibration = {"top": {"ece": 0.1, "table": table}, "per_class": [{"name": "x", "ece": None, "table": table}]}
    document = {"classes": [], "confusion": None, "sample": None, "calibration": calibration}
    plots = dict(plot_evaluation(document, None))
    assert list(plots) == ["reliability.png"]
    assert _picture(plots["reliability.png"]).shape[0] > 100
