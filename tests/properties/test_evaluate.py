"""Laws of the measures of an evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from pipeline.grid import SizeRule, Tiling, exact_tiling, near_seam
from pipeline.grid.window import Window
from pipeline.train.evaluate.boundary import BoundaryCounter, disk
from pipeline.train.evaluate.counting import ConfusionCounter, ErrorMap
from pipeline.train.evaluate.objects import ObjectCounter
from pipeline.train.metrics import class_scores, confusion, overall_accuracy
from tests.evaluations import NONE, counted, pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASSES = 3
Mask = NDArray[np.uint8] if TYPE_CHECKING else Any


def _tiling(shape: tuple[int, int]) -> Tiling:
    return exact_tiling(shape, core_hw=(7, 6), halo_px=1, stride=1, margin_px=0, sizes=SizeRule(multiple=1), tile_px=7)


def _all(pred: Mask, truth: Mask, tolerance: float, window_px: int) -> list[Any]:
    """Every measure, as plain numbers."""
    tiling = _tiling(pred.shape)
    counts = ConfusionCounter(CLASSES, tiling=tiling, seam_px=2, blocks=(9, 9), block_px=5)
    errors, edge = ErrorMap(pred.shape, most_px=4), BoundaryCounter(CLASSES, disk(tolerance))
    objects = [ObjectCounter(index, pred.shape[1]) for index in range(CLASSES)]
    counted(pred, truth, counts, errors, edge, *objects, window_px=window_px)
    numbers = [counts.blocks, counts.seam, counts.left_out, errors.wrong, errors.compared, edge.iou(), *edge.scores()]
    return [n.tolist() for n in numbers] + [repr(o.scores()) for o in objects]


@given(pairs(), st.sampled_from([1, 1.5, 2, 3.2, 5]), st.integers(1, 11))
def test_no_number_depends_on_the_window(both: tuple[Mask, Mask], tolerance: float, window_px: int) -> None:
    assert repr(_all(*both, tolerance, window_px)) == repr(_all(*both, tolerance, 64))


@given(pairs(), st.permutations(range(CLASSES)))
def test_scores_follow_their_classes(both: tuple[Mask, Mask], order: list[int]) -> None:
    table = np.full(256, NONE, np.uint8)
    table[:CLASSES] = order
    results = []
    for pred, truth in (both, (table[both[0]], table[both[1]])):
        counts, edge = ConfusionCounter(CLASSES), BoundaryCounter(CLASSES, disk(2))
        counted(pred, truth, counts, edge)
        results.append((class_scores(counts.counts).iou, edge.iou(), edge.scores()[0]))
    for before, after in zip(*results, strict=True):
        np.testing.assert_array_equal(before, after[order])


@given(pairs())
def test_a_mask_agrees_with_itself(both: tuple[Mask, Mask]) -> None:
    truth = both[0]
    counts, edge = ConfusionCounter(CLASSES), BoundaryCounter(CLASSES, disk(2))
    objects = ObjectCounter(1, truth.shape[1])
    counted(truth, truth, counts, edge, objects)
    for scores in (class_scores(counts.counts).iou, class_scores(counts.counts).f1, edge.iou(), edge.scores()[0]):
        assert set(scores[~np.isnan(scores)].tolist()) <= {1.0}
    of = objects.scores()
    assert of.matched == of.pred == of.truth
    present = np.isin(np.arange(CLASSES), truth)
    np.testing.assert_array_equal(np.isnan(class_scores(counts.counts).iou), ~present)


@given(pairs())
def test_iou_and_f1_do_not_say_which_side_is_right(both: tuple[Mask, Mask]) -> None:
    results = []
    for pred, truth in (both, both[::-1]):
        counts, edge = ConfusionCounter(CLASSES), BoundaryCounter(CLASSES, disk(2))
        objects = ObjectCounter(0, pred.shape[1])
        counted(pred, truth, counts, edge, objects)
        of = objects.scores()
        results.append((counts.counts, edge.iou(), edge.scores()[0], np.array(of.matched)))
    np.testing.assert_array_equal(results[0][0], results[1][0].T)
    for one, other in zip(results[0][1:], results[1][1:], strict=True):
        np.testing.assert_array_equal(one, other)


@given(pairs(), st.integers(0, 24))
def test_halves_add_up_to_the_whole(both: tuple[Mask, Mask], cut: int) -> None:
    parts = []
    for rows in (slice(None), slice(None, cut), slice(cut, None)):
        counts = ConfusionCounter(CLASSES)
        if both[0][rows].size:
            counted(both[0][rows], both[1][rows], counts)
        parts.append(counts)
    assert (parts[0].counts == parts[1].counts + parts[2].counts).all()
    assert (parts[0].left_out == parts[1].left_out + parts[2].left_out).all()
    assert parts[0].counts.sum() + parts[0].left_out.sum() == both[0].size


@given(pairs())
def test_counts_are_those_of_a_plain_loop(both: tuple[Mask, Mask]) -> None:
    pred, truth = both
    shape = pred.shape
    tiling = _tiling(shape)
    counter, errors = ConfusionCounter(CLASSES, tiling=tiling, seam_px=2), ErrorMap(shape, most_px=4)
    counted(pred, truth, counter, errors, window_px=5)
    seam = near_seam(tiling, Window.from_bounds(0, 0, *shape), reach_px=2)
    np.testing.assert_array_equal(counter.counts, confusion(pred, truth, num_classes=CLASSES))
    np.testing.assert_array_equal(counter.seam, confusion(pred[seam], truth[seam], num_classes=CLASSES))
    known = (pred != NONE) & (truth != NONE)
    wrong = np.zeros(errors.wrong.shape, np.int64)
    for row, col in np.argwhere(known & (pred != truth)):
        wrong[row // errors.cell_px, col // errors.cell_px] += 1
    np.testing.assert_array_equal(errors.wrong, wrong)
    assert errors.compared.sum() == known.sum()
    if known.any():
        accuracy = float(overall_accuracy(counter.counts))
        assert np.isclose(accuracy, 1 - wrong.sum() / known.sum())


def _distance(targets: NDArray[np.bool_]) -> NDArray[np.float64]:
    """SciPy's distance to the nearest of `targets`."""
    if not targets.any():
        return np.full(targets.shape, np.inf)
    return np.asarray(ndimage.distance_transform_edt(~targets), np.float64)


@given(pairs(), st.sampled_from([1, 1.42, 2, 2.3, 4, 7.1]), st.integers(3, 30))
def test_boundary_scores_are_those_of_a_distance_transform(
    both: tuple[Mask, Mask], tolerance: float, window_px: int
) -> None:
    counter = BoundaryCounter(CLASSES, disk(tolerance))
    counted(*both, counter, window_px=window_px)
    known = (both[0] != NONE) & (both[1] != NONE)
    f1, precision, recall = counter.scores()
    for index in range(CLASSES):
        own = [known & (side == index) for side in both]
        other = [known & (side != index) for side in both]
        bands = [mine & (_distance(rest) <= tolerance + 1e-9) for mine, rest in zip(own, other, strict=True)]
        union = (bands[0] | bands[1]).sum()
        np.testing.assert_equal(counter.iou()[index], (bands[0] & bands[1]).sum() / union if union else np.nan)
        edges = [mine & ndimage.binary_dilation(rest) for mine, rest in zip(own, other, strict=True)]
        near = [(edges[i] & (_distance(edges[1 - i]) <= tolerance + 1e-9)).sum() for i in (0, 1)]
        sizes = [edge.sum() for edge in edges]
        np.testing.assert_equal(precision[index], near[0] / sizes[0] if sizes[0] else np.nan)
        np.testing.assert_equal(recall[index], near[1] / sizes[1] if sizes[1] else np.nan)
        if not any(sizes):
            assert np.isnan(f1[index])
        else:
            p, r = (n / s if s else 0 for n, s in zip(near, sizes, strict=True))
            assert np.isclose(f1[index], 2 * p * r / (p + r) if p + r else 0)


@given(pairs(), st.integers(1, 12))
def test_objects_are_those_of_the_whole_scene(both: tuple[Mask, Mask], window_px: int) -> None:
    counter = ObjectCounter(1, both[0].shape[1])
    counted(*both, counter, window_px=window_px)
    known = (both[0] != NONE) & (both[1] != NONE)
    (pred, num_pred), (truth, num_truth) = (ndimage.label(known & (side == 1)) for side in both)
    ious = []
    for i in range(1, num_pred + 1):
        for j in range(1, num_truth + 1):
            common = ((pred == i) & (truth == j)).sum()
            if common:
                ious.append(common / ((pred == i) | (truth == j)).sum())
    matched = [iou for iou in ious if iou > 0.5]
    of = counter.scores()
    assert (of.pred, of.truth, of.matched) == (num_pred, num_truth, len(matched))
    np.testing.assert_allclose(of.mean_iou, np.mean(matched) if matched else np.nan)


@given(st.floats(1, 9), st.sampled_from([(1.0, 1.0), (1.0, 2.0), (0.7, 0.5)]))
def test_a_disk_holds_what_is_near(distance: float, pixel_hw: tuple[float, float]) -> None:
    found = {tuple(offset) for offset in disk(distance, pixel_hw).offsets().tolist()}
    grid = np.arange(-20, 21)
    rows, cols = np.meshgrid(grid, grid, indexing="ij")
    square = (rows * pixel_hw[0]) ** 2 + (cols * pixel_hw[1]) ** 2
    assert found == set(zip(*(axis[square <= distance**2 * (1 + 1e-9)].tolist() for axis in (rows, cols)), strict=True))
