from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from pipeline.train.metrics import class_scores, confusion, iou, mean_over_present, overall_accuracy


def test_scores_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    truth, mask = rng.integers(0, 5, (2, 4000))
    mask = np.where(rng.random(4000) < 0.6, truth, mask)
    counts = confusion(mask, truth, num_classes=5)
    assert (counts == sk.confusion_matrix(truth, mask)).all()
    of = class_scores(counts)
    precision, recall, f1, _ = sk.precision_recall_fscore_support(truth, mask)
    np.testing.assert_allclose(of.precision, precision)
    np.testing.assert_allclose(of.recall, recall)
    np.testing.assert_allclose(of.f1, f1)
    np.testing.assert_allclose(of.iou, sk.jaccard_score(truth, mask, average=None))
    assert overall_accuracy(counts) == pytest.approx(sk.accuracy_score(truth, mask))


def test_a_class_that_neither_side_has_has_no_score() -> None:
    counts = np.array([[3, 1, 0, 0], [0, 2, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]])
    of = class_scores(counts)
    np.testing.assert_allclose(of.iou, [0.75, 0.4, 0.0, np.nan])
    assert np.isnan(of.precision[2])  # the mask never has it
    assert of.recall[2] == 0
    assert np.isnan(of.recall[3])
    assert mean_over_present(of.iou) == pytest.approx((0.75 + 0.4) / 3)
    np.testing.assert_array_equal(iou(counts), of.iou)


def test_nothing_to_compare_has_no_scores() -> None:
    counts = np.zeros((2, 2), np.int64)
    assert np.isnan(overall_accuracy(counts))
    assert np.isnan(mean_over_present(iou(counts)))


def test_counts_of_many_draws_at_once() -> None:
    counts = np.random.default_rng(1).integers(0, 9, (3, 4, 4))
    whole = class_scores(counts)
    for i, one in enumerate(counts):
        np.testing.assert_array_equal(class_scores(one).f1, whole.f1[i])
        assert overall_accuracy(one) == overall_accuracy(counts)[i]
