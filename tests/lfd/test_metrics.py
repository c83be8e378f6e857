"""ConfusionMatrix against closed forms and a brute-force count."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lfd.metrics import ConfusionMatrix


def matrix(counts: list[list[int]]) -> ConfusionMatrix:
    made = ConfusionMatrix(len(counts))
    made.counts += np.array(counts)
    return made


@pytest.mark.parametrize(
    ("counts", "iou", "miou", "accuracy"),
    [
        ([[5, 0], [0, 5]], [1, 1], 1, 1),
        ([[0, 5], [5, 0]], [0, 0], 0, 0),
        ([[3, 1], [2, 4]], [3 / 6, 4 / 7], (3 / 6 + 4 / 7) / 2, 7 / 10),
        # The third class neither occurs nor is predicted: it does not enter the mean.
        ([[1, 1, 0], [0, 2, 0], [0, 0, 0]], [1 / 2, 2 / 3, math.nan], 7 / 12, 3 / 4),
        # Predicted but never labelled: zero, and it does enter.
        ([[1, 0, 1], [0, 2, 0], [0, 0, 0]], [1 / 2, 1, 0], 1 / 2, 3 / 4),
        ([[0, 0], [0, 0]], [math.nan, math.nan], math.nan, math.nan),
    ],
)
def test_closed_forms(counts: list[list[int]], iou: list[float], miou: float, accuracy: float) -> None:
    made = matrix(counts)
    np.testing.assert_allclose(made.iou(), iou)
    np.testing.assert_allclose(made.miou(), miou)
    np.testing.assert_allclose(made.pixel_accuracy(), accuracy)


@given(
    st.integers(1, 6).flatmap(
        lambda k: st.tuples(
            st.just(k),
            hnp.arrays(np.uint8, (7, 5), elements=st.one_of(st.integers(0, k - 1), st.just(255))),
            hnp.arrays(np.uint8, (7, 5), elements=st.integers(0, k - 1)),
        )
    )
)
def test_against_a_loop_over_the_pixels(case: tuple[int, np.ndarray, np.ndarray]) -> None:
    k, truth, prediction = case
    made = ConfusionMatrix(k)
    made.update(truth[:3], prediction[:3])
    made.update(truth[3:], prediction[3:])
    pairs = [(t, p) for t, p in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True) if t != 255]
    ious = []
    for c in range(k):
        both = sum(t == c and p == c for t, p in pairs)
        either = sum(c in (t, p) for t, p in pairs)
        ious.append(both / either if either else math.nan)
    np.testing.assert_allclose(made.iou(), ious)
    there = [iou for iou in ious if not math.isnan(iou)]
    np.testing.assert_allclose(made.miou(), sum(there) / len(there) if there else math.nan)
    assert made.counts.sum() == len(pairs)


def test_against_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    truth, prediction = rng.integers(0, 5, (2, 1000))
    made = ConfusionMatrix(5)
    made.update(truth, prediction)
    np.testing.assert_array_equal(made.counts, metrics.confusion_matrix(truth, prediction))
    np.testing.assert_allclose(made.iou(), metrics.jaccard_score(truth, prediction, average=None))


def test_a_prediction_under_void_is_not_looked_at() -> None:
    made = ConfusionMatrix(2)
    made.update(np.array([0, 255, 255]), np.array([0, 1, 200]))
    assert made.counts.tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        (np.zeros((2, 2), int), np.zeros((2, 3), int), r"\(2, 2\) and prediction \(2, 3\) differ"),
        (np.array([0]), np.array([2]), "outside the 2 classes"),
        (np.array([0]), np.array([-1]), "outside the 2 classes"),
    ],
)
def test_what_does_not_fit_is_refused(truth: np.ndarray, prediction: np.ndarray, message: str) -> None:
    made = ConfusionMatrix(2)
    with pytest.raises(ValueError, match=message):
        made.update(truth, prediction)
    assert made.counts.sum() == 0


@pytest.mark.parametrize(
    ("counts", "chance"),
    [([[5, 0], [0, 5]], 0.25), ([[9, 0], [0, 1]], 0.45), ([[4, 0], [0, 0]], 1.0), ([[0, 0], [0, 0]], math.nan)],
)
def test_chance_is_the_best_constant(counts: list[list[int]], chance: float) -> None:
    np.testing.assert_allclose(matrix(counts).chance_miou(), chance)
