"""A session without a model: for tests, and to try sources and sinks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.artifact import BuildInfo
from lfd.errors import ModelError
from lfd.preprocess import Image
from lfd.spec import ModelSpec

Rule = Callable[[Image], Image]


class FakeSession:
    """An `InferenceSession` whose class map follows from the picture by a rule.

    Args:
        spec: What it says it is; its input size and output kind are kept to.
        delay_s: How long each run takes; or one number a run, the last one for all that follow.
        rule: (h, w, 3) BGR uint8 -> (h, w) uint8 classes. By default the brightness, in K equal steps.
        batch: Frames that one run takes; None is open.
        parallel: Inferences that may go on side by side.

    Attributes:
        calls: How many runs there were.
        closed: Whether `close` was called.
    """

    def __init__(
        self,
        spec: ModelSpec,
        delay_s: float | Iterable[float] = 0.0,
        rule: Rule | None = None,
        batch: int | None = None,
        parallel: int = 1,
    ) -> None:
        self.spec = spec
        self.batch = batch
        self.parallel = parallel
        self.build = BuildInfo("fake", "fp32", "0" * 64, {}, "none")
        self.calls = 0
        self.closed = False
        self._delays = [delay_s] if isinstance(delay_s, float | int) else list(delay_s)
        self._rule = rule or self._by_brightness

    def _by_brightness(self, image: Image) -> Image:
        # The mean of three channels in [0, 255] times K over 256 is at most K - 1.
        return np.asarray(image.astype(np.uint32).sum(2) * len(self.spec.labels) // 768, dtype=np.uint8)

    def run(self, batch: Image) -> NDArray[Any]:
        """Apply the rule; see `deploy.session.InferenceSession.run`."""
        wanted = (*self.spec.preprocess.size_hw, 3)
        if self.closed or batch.dtype != np.uint8 or batch.shape[1:] != wanted or self.batch not in (None, len(batch)):
            size = "B" if self.batch is None else self.batch
            raise ModelError(f"a batch of {batch.dtype} {batch.shape}; this model takes uint8 ({size}, {wanted})")
        if self._delays:
            time.sleep(self._delays[min(self.calls, len(self._delays) - 1)])
        self.calls += 1
        classes = np.stack([self._rule(image) for image in batch])
        if self.spec.output == "class_map":
            return classes
        return np.asarray(classes[:, None] == np.arange(len(self.spec.labels))[:, None, None], dtype=np.float32)

    def close(self) -> None:
        """Refuse every later run."""
        self.closed = True

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
