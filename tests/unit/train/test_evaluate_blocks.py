from __future__ import annotations

import numpy as np
import pytest

from pipeline.train.evaluate.bootstrap import bootstrap
from pipeline.train.evaluate.classes import classes_of_values
from pipeline.train.evaluate.counting import ConfusionCounter
from tests.evaluations import blobs, counted


def test_blocks_that_agree_give_a_point_and_others_an_interval() -> None:
    classes = classes_of_values([0, 1])
    same = np.tile([8, 2, 1, 9], (30, 1))
    report, notes = bootstrap(same, classes, draws=40, block_px=4, seed=0)
    assert report["overall"]["accuracy"] == [0.85, 0.85]
    assert not notes
    varied = np.concatenate([same[:4], np.tile([9, 0, 0, 0], (4, 1)), np.zeros((9, 4), int)])
    report, notes = bootstrap(varied, classes, draws=400, block_px=4, seed=0)
    low, high = report["overall"]["accuracy"]
    assert low < (4 * 17 + 36) / (4 * 20 + 36) < high
    assert report["blocks"] == 8
    assert "8 blocks" in notes[0]


def test_bootstrap_spread_is_that_of_block_means() -> None:
    """Of equal blocks, the standard deviation of accuracy is that of their mean."""
    rng = np.random.default_rng(0)
    right = rng.integers(50, 100, 64)
    blocks = np.stack([right, 100 - right, np.zeros(64, int), np.zeros(64, int)], axis=1)
    report, _ = bootstrap(blocks, classes_of_values([0, 1]), draws=2000, block_px=4, seed=1)
    low, high = report["overall"]["accuracy"]
    assert high - low == pytest.approx(2 * 1.96 * right.std() / 100 / 8, rel=0.1)


def test_counts_of_blocks_follow_the_lattice() -> None:
    truth, pred = blobs((30, 50), 2), blobs((30, 50), 2, seed=1)
    counter = ConfusionCounter(2, blocks=(2, 3), block_px=20)
    counted(pred, truth, counter, window_px=13)
    wrong = counter.blocks[:, 1] + counter.blocks[:, 2]
    expected = [(pred != truth)[r : r + 20, c : c + 20].sum() for r in (0, 20) for c in (0, 20, 40)]
    assert wrong.tolist() == expected
