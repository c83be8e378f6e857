"""Films: files, and files of a web server."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2

from deploy.frames import Frame, VideoInfo
from deploy.sources.address import FORMS, Options
from deploy.sources.capture import Capture
from deploy.texts import redact
from lfd.data.film import ends_early, promised_frames
from lfd.errors import SourceError
from lfd.preprocess import Image


def open_film(address: str, options: Options) -> FilmSource:
    """Open a file that this OpenCV can decode.

    Raises:
        SourceError: Missing, not a film, or without a readable frame.
    """
    path = Path(address).expanduser()
    if not path.is_file():
        raise SourceError(f"{redact(address)}: {'is no file' if path.exists() else 'no such file'}; expected {FORMS}")
    # On two cores FFmpeg's own threads only push the model's aside: efficiency 0.91 with them, 0.925 without.
    threads = [cv2.CAP_PROP_N_THREADS, 1] if (os.cpu_count() or 1) <= 2 else []
    return FilmSource(str(path), Capture(str(path), cv2.CAP_FFMPEG, threads), path)


class FilmSource:
    """Every frame of a film, in order.

    Args:
        name: For messages.
        capture: Its reader; closed with this.
        path: The file; None where it is somewhere else.
        lost: Returns why the rest may not have come, of a film that does not say how long it is; "" where it has.

    Raises:
        SourceError: Not a film, or without a readable frame. While iterating: it was cut.
    """

    def __init__(
        self, name: str, capture: Capture, path: Path | None = None, lost: Callable[[], str] = lambda: ""
    ) -> None:
        self._name, self._capture, self._lost = name, capture, lost
        first = capture.read() if capture.is_opened() else None
        if first is None:
            capture.close()
            size = f" ({path.stat().st_size} bytes)" if path else ""
            raise SourceError(
                f"{name}: not a film that can be decoded{size}; "
                "expected a complete file such as .mp4, .webm, .avi. Fix: copy or record it again"
            )
        self._first: Image | None = first
        fps, declared = capture.get(cv2.CAP_PROP_FPS), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        fps = fps if 0 < fps < 1e4 else 0.0
        self._declared = promised_frames(path, declared, fps) if path else declared
        self.info = VideoInfo((first.shape[1], first.shape[0]), fps, self._declared or None, False)

    def __iter__(self) -> Iterator[Frame]:
        index, image, position_ms = 0, self._first, 0.0
        self._first = None
        while image is not None:
            yield Frame(image, index, time.monotonic_ns())
            index += 1
            position_ms = self._capture.get(cv2.CAP_PROP_POS_MSEC)
            image = self._capture.read()
        self._check_end(index, position_ms)

    def _check_end(self, frames: int, position_ms: float) -> None:
        if self._capture.closed:
            return
        if ends_early(frames, self._declared, self.info.fps, position_ms):
            raise SourceError(
                f"{self._name}: ends after frame {frames} of {self._declared}: it was cut or is damaged. "
                f"Fix: copy it again, or take what is there with --max-frames {frames}"
            )
        if not self._declared and (why := self._lost()):
            raise SourceError(f"{self._name}: ends after frame {frames}, and now: {why}. Fix: copy it first")

    def close(self) -> None:
        """Close the file."""
        self._capture.close()
