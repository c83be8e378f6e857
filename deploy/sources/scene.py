"""The built-in scene."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from deploy.frames import Frame, VideoInfo
from deploy.sources.address import Options

STREET_FRAMES = 250


class StreetSource:
    """The built-in scene as a film (as fast as asked) or, with fps=N, as a live camera.

    Args:
        address: `street:` with options, such as `street:?size=240x320&seed=7&fps=25`.
        options: None applies here.

    Raises:
        UsageError: An option does not exist or does not fit.
    """

    def __init__(self, address: str, options: Options) -> None:
        from lfd.data import street  # noqa: PLC0415 - only who films it pays for it

        asked = street.parse_options(address.partition(":")[2])
        self._street = street.Street(asked.seed, asked.size_hw, asked.light, asked.weather)
        live = asked.fps > 0
        self._frames = asked.frames or (None if live else STREET_FRAMES)
        self._pace = street.FPS / asked.fps if live else 1.0
        height, width = asked.size_hw
        fps = float(asked.fps) if live else float(street.FPS)
        self.info = VideoInfo((width, height), fps, self._frames, live, street.LABELS)
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[Frame]:
        start, index = time.monotonic(), 0
        while not self._closed.is_set() and (self._frames is None or index < self._frames):
            if self.info.live:
                wait = start + index / self.info.fps - time.monotonic()
                if self._closed.wait(max(0.0, wait)):
                    return
                # A camera that was late does not catch up with a burst.
                start = max(start, time.monotonic() - index / self.info.fps)
            sample = self._street.render(round(index * self._pace))
            yield Frame(sample.image, index, time.monotonic_ns(), "", sample.mask)
            index += 1

    def close(self) -> None:
        """End the iteration, also one that waits."""
        self._closed.set()
