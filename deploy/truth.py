"""How right and how steady the results of a stream are whose source knows the truth."""

from __future__ import annotations

from deploy.flicker import Flicker
from deploy.frames import VideoInfo
from lfd.metrics import ConfusionMatrix
from lfd.preprocess import Image
from lfd.spec import Labels


class TruthScore:
    """Holds the results of one stream against the truth that comes with its frames.

    Args:
        labels: The model's classes.
        info: The source's; where its classes are others, or it has none, nothing is scored.
    """

    def __init__(self, labels: Labels, info: VideoInfo) -> None:
        self._matrix = ConfusionMatrix(len(labels))
        self._flicker = Flicker()
        self._void = None if info.labels is None or info.labels.names != labels.names else info.labels.ignore_index

    def update(self, classes: Image, truth: Image | None) -> None:
        """Add a result, (H, W) uint8, and its frame's truth."""
        if self._void is not None and truth is not None:
            self._matrix.update(truth, classes)
            self._flicker.update(classes, truth, self._void)

    @property
    def miou(self) -> float | None:
        """Mean IoU in [0, 1]; None where nothing was scored."""
        return self._matrix.miou() if self._matrix.counts.any() else None

    @property
    def flicker(self) -> float | None:
        """See `Flicker.share`; None where nothing was scored."""
        return self._flicker.share()
