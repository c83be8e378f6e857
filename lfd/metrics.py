"""Segmentation metrics from a confusion matrix, in numpy.

IoU as in Everingham et al., "The Pascal Visual Object Classes Challenge" (IJCV 2015), eq. 3:
true positives over the union of truth and prediction, summed over the whole set, void left out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class ConfusionMatrix:
    """Counts of (truth, prediction) pairs over labelled pixels.

    Args:
        num_classes: K; label values outside [0, K) count as void.

    Attributes:
        counts: (K, K) int64, row = truth, column = prediction.
    """

    def __init__(self, num_classes: int) -> None:
        self.counts: NDArray[np.int64] = np.zeros((num_classes, num_classes), np.int64)

    def update(self, truth: NDArray[np.integer], prediction: NDArray[np.integer]) -> None:
        """Add pixels; both arrays have the same shape, any number of axes.

        Raises:
            ValueError: The shapes differ, or a prediction on a labelled pixel is no class.
        """
        if truth.shape != prediction.shape:
            raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in shape")
        k = len(self.counts)
        labelled = (truth >= 0) & (truth < k)
        t, p = truth[labelled].astype(np.int64), prediction[labelled].astype(np.int64)
        if p.size and (p.min() < 0 or p.max() >= k):
            raise ValueError(f"a prediction outside the {k} classes")
        self.counts += np.bincount(t * k + p, minlength=k * k).reshape(k, k)

    def iou(self) -> NDArray[np.float64]:
        """Return (K,) intersection over union; NaN for a class neither labelled nor predicted."""
        hits = np.diag(self.counts).astype(np.float64)
        union = self.counts.sum(0) + self.counts.sum(1) - hits
        iou: NDArray[np.float64] = np.full(len(hits), np.nan)
        np.divide(hits, union, out=iou, where=union > 0)
        return iou

    def miou(self) -> float:
        """Return the mean IoU in [0, 1] over the classes that occur; NaN when none does."""
        iou = self.iou()
        present = ~np.isnan(iou)
        return float(iou[present].mean()) if present.any() else float("nan")

    def pixel_accuracy(self) -> float:
        """Return the share of labelled pixels that are right; NaN without any."""
        total = int(self.counts.sum())
        return float(np.diag(self.counts).sum()) / total if total else float("nan")

    def chance_miou(self) -> float:
        """Return the mean IoU of the best constant prediction: one class everywhere."""
        truth = self.counts.sum(1)
        present = int((truth > 0).sum())
        return float(truth.max() / truth.sum() / present) if present else float("nan")
