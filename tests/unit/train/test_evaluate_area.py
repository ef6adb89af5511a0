from __future__ import annotations

import numpy as np
import pytest

from pipeline.train.evaluate.area import Z, estimate

# Olofsson et al. 2014, section 5: deforestation, forest gain, stable forest, stable non-forest.
OLOFSSON = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
OLOFSSON_PX = np.array([200_000, 150_000, 3_200_000, 6_450_000])
HECTARES = 0.09  # of a pixel of 30 m


def by_map_class(matrix: np.ndarray) -> np.ndarray:
    """Counts `(stratum, map, reference)` where strata are the map's classes."""
    counts = np.zeros((len(matrix), *matrix.shape), np.int64)
    for i, row in enumerate(matrix):
        counts[i, i] = row
    return counts


def test_the_worked_example_of_olofsson_et_al() -> None:
    made = estimate(by_map_class(OLOFSSON), OLOFSSON_PX)
    half = Z * made.users.error
    np.testing.assert_allclose(made.users.value, [0.88, 0.73, 0.93, 0.96], atol=0.005)
    np.testing.assert_allclose(half, [0.07, 0.10, 0.04, 0.02], atol=0.005)
    np.testing.assert_allclose(made.producers.value, [0.75, 0.85, 0.93, 0.96], atol=0.005)
    np.testing.assert_allclose(made.producers.error, [_equation_7(j) for j in range(4)])
    assert made.overall.value == pytest.approx(0.95, abs=0.005)
    assert Z * made.overall.error == pytest.approx(0.02, abs=0.005)
    total = OLOFSSON_PX.sum()
    np.testing.assert_allclose(made.area.value * total * HECTARES, [21_158, 11_686, 285_770, 581_386], atol=1)
    np.testing.assert_allclose(Z * made.area.error * total * HECTARES, [6_158, 3_756, 15_510, 16_282], rtol=5e-4)
    assert made.area.value.sum() == pytest.approx(1)
    assert made.matrix.sum() == pytest.approx(1)


def _equation_7(j: int) -> float:
    """Standard error of a class's producer's accuracy, term by term as Olofsson et al. 2014 write it."""
    units = OLOFSSON.sum(axis=1)
    share = OLOFSSON / units[:, None]
    column = OLOFSSON_PX @ share[:, j]
    producers = OLOFSSON_PX[j] * share[j, j] / column
    own = OLOFSSON_PX[j] ** 2 * (1 - producers) ** 2 * share[j, j] * (1 - share[j, j]) / (units[j] - 1)
    others = sum(OLOFSSON_PX[i] ** 2 * share[i, j] * (1 - share[i, j]) / (units[i] - 1) for i in range(4) if i != j)
    return float(np.sqrt(own + producers**2 * others) / column)


def test_the_numerical_example_of_stehman() -> None:
    """Stehman 2014, table 2: strata that are not the map's classes, ten units in each."""
    strata = "A" * 10 + "B" * 10 + "C" * 10 + "D" * 10
    mapped = "A" * 7 + "B" * 3 + "A" + "B" * 11 + "C" * 6 + "BB" + "D" * 10
    reference = "AAAAACBABC" + "ABBBBBAABB" + "CCCCCDDBBA" + "DDDDDDDCCB"
    counts = np.zeros((4, 4, 4), np.int64)
    for unit in zip(strata, mapped, reference, strict=True):
        counts[tuple("ABCD".index(letter) for letter in unit)] += 1
    made = estimate(counts, np.array([40_000, 30_000, 20_000, 10_000]), finite=True)
    got = [
        made.area.value[0], made.area.value[2], made.overall.value, made.users.value[1], made.producers.value[1],
        made.matrix[1, 2],
    ]  # fmt: skip
    np.testing.assert_allclose(got, [0.35, 0.20, 0.63, 0.574, 0.794, 0.08], atol=5e-4)
    errors = [
        made.area.error[0], made.area.error[2], made.overall.error, made.users.error[1], made.producers.error[1],
    ]  # fmt: skip
    np.testing.assert_allclose(errors, [0.082, 0.064, 0.085, 0.125, 0.116], atol=1e-3)


def test_a_stratum_of_one_unit_has_no_variance_that_could_be_seen() -> None:
    matrix = OLOFSSON.copy()
    matrix[1] = [0, 1, 0, 0]
    made = estimate(by_map_class(matrix), OLOFSSON_PX)
    assert np.isnan(made.overall.error)
    assert np.isnan(made.area.error).all()
    assert np.isfinite(made.area.value).all()
    np.testing.assert_array_equal(np.isnan(made.users.error), [False, True, False, False])  # the others lie elsewhere


def test_a_perfect_sample_is_certain() -> None:
    made = estimate(by_map_class(np.diag([5, 6])), np.array([10, 30]))
    assert made.overall.value == 1
    assert made.overall.error == 0
    np.testing.assert_allclose(made.area.value, [0.25, 0.75])
    np.testing.assert_array_equal(made.producers.error, [0, 0])


def test_intervals_hold_what_they_promise() -> None:
    """Drawn again and again from a known map, 95 % intervals hold the truth about 95 times in 100."""
    rng = np.random.default_rng(0)
    sizes, right = np.array([60_000, 40_000]), np.array([0.9, 0.7])  # the rest is the other class
    truth = sizes @ [[0.9, 0.1], [0.3, 0.7]] / sizes.sum()
    inside = 0
    for _ in range(400):
        hits = rng.binomial(60, right)
        made = estimate(by_map_class(np.array([[hits[0], 60 - hits[0]], [60 - hits[1], hits[1]]])), sizes)
        inside += bool(made.area.low[0] <= truth[0] <= made.area.high[0])
    assert 0.91 < inside / 400 < 0.985
