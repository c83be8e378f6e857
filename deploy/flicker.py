"""How much a stream's class maps flicker, where its truth is known."""

from __future__ import annotations

import cv2

from lfd.preprocess import Image


class Flicker:
    """Counts pixels whose class changes between two consecutive results although their truth does not.

    The share is 1 - VC_2 of Miao et al., "VSPW: A Large-scale Dataset for Video Scene Parsing in the Wild" (CVPR 2021),
    whose video consistency VC_n is the share of the pixels of one truth over n frames that have one class over them,
    right or wrong; here over all pixels of a stream together, not clip by clip, and without void. What moves in the
    picture changes its truth, and counts nowhere: a perfect model has 0, and so has a model that never changes its
    mind. It is to be read beside the mIoU.
    """

    def __init__(self) -> None:
        self.changed = self.steady = 0
        self._last: tuple[Image, Image] | None = None

    def update(self, classes: Image, truth: Image, void: int) -> None:
        """Add a result.

        Args:
            classes: (H, W) uint8.
            truth: (H, W) uint8 label values.
            void: The label value of pixels without truth.
        """
        last, self._last = self._last, (classes.copy(), truth.copy())
        if last is None or last[0].shape != classes.shape:
            return
        same = cv2.bitwise_and(cv2.compare(truth, last[1], cv2.CMP_EQ), cv2.compare(truth, void, cv2.CMP_NE))  # type: ignore[call-overload]
        moved = cv2.bitwise_and(cv2.compare(classes, last[0], cv2.CMP_NE), same)
        self.steady += cv2.countNonZero(same)
        self.changed += cv2.countNonZero(moved)

    def share(self) -> float | None:
        """Return the share in [0, 1] of pixels with the same truth whose class changed; None without any."""
        return self.changed / self.steady if self.steady else None
