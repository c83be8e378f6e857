"""Where frames come from: a film, pictures, a camera, or the built-in scene.

A source is one class here and one line in SOURCES; `open_source` finds the kind by the text.
"""

from __future__ import annotations

import glob
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2

from deploy.capture import CAMERA_TIMEOUT_S, Capture, silence_opencv
from deploy.frames import Frame, FrameSource, VideoInfo
from lfd.data.base import read_picture
from lfd.data.film import ends_early
from lfd.data.frames import PICTURES, natural
from lfd.errors import DataError, SourceError, UsageError, unknown
from lfd.preprocess import Image

STREET_FRAMES = 250

_DEVICE = re.compile(r"(?:v4l2://)?/dev/video(\d+)|(\d+)")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://")
_FORMS = "0 or /dev/video0 (camera), FILE (film), DIR or 'GLOB' (pictures), street: (built-in scene)"


class FilmSource:
    """Every frame of a film, in order.

    Args:
        text: Path of a file that this OpenCV can decode.

    Raises:
        SourceError: Missing, not a film, or without a readable frame.
    """

    def __init__(self, text: str) -> None:
        self._path = path = Path(text).expanduser()
        if not path.is_file():
            raise SourceError(f"{text}: no such file; expected {_FORMS}")
        # On two cores FFmpeg's own threads only push the model's aside: efficiency 0.91 with them, 0.925 without.
        threads = [cv2.CAP_PROP_N_THREADS, 1] if (os.cpu_count() or 1) <= 2 else []
        self._capture = Capture(str(path), cv2.CAP_FFMPEG, threads)
        first = self._capture.read() if self._capture.is_opened() else None
        if first is None:
            self._capture.close()
            raise SourceError(
                f"{path}: not a film that can be decoded ({path.stat().st_size} bytes); "
                "expected a complete file such as .mp4, .webm, .avi. Fix: copy or record it again"
            )
        self._first: Image | None = first
        self._declared = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.info = VideoInfo(
            (first.shape[1], first.shape[0]), fps if 0 < fps < 1e4 else 0.0, self._declared or None, False
        )

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
        if not self._capture.closed and ends_early(frames, self._declared, self.info.fps, position_ms):
            raise SourceError(
                f"{self._path}: ends after frame {frames} of {self._declared}: it was cut or is damaged. "
                f"Fix: copy it again, or take what is there with --max-frames {frames}"
            )

    def close(self) -> None:
        """Close the file."""
        self._capture.close()


class CameraSource:
    """A camera of this machine, live.

    Args:
        text: Index ("0"), /dev/videoN or v4l2:///dev/videoN.

    Raises:
        SourceError: It is not there, or gives no picture. While iterating: it was lost.
    """

    def __init__(self, text: str) -> None:
        match = _DEVICE.fullmatch(text)
        if match is None:
            raise UsageError(f"camera {text!r}; expected an index such as 0, or /dev/video0")
        self._name = f"/dev/video{int(match[1] or match[2])}"
        if not Path(self._name).exists():
            there = sorted(str(p) for p in Path("/dev").glob("video*"))
            raise SourceError(
                f"{self._name}: no such camera; this machine has {', '.join(there) or 'none'}. "
                "Fix: plug it in, or try the built-in scene: street:?fps=25"
            )
        self._capture = Capture(self._name, cv2.CAP_V4L2, [])
        first = self._capture.read() if self._capture.is_opened() else None
        if first is None:
            self._capture.close()
            raise SourceError(
                f"{self._name}: gives no picture within {CAMERA_TIMEOUT_S} s; it may be in use by another program, "
                "or you may not read it. Fix: close the other program, or join the group `video`"
            )
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.info = VideoInfo((first.shape[1], first.shape[0]), fps if 0 < fps < 1e4 else 0.0, None, True)

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        while True:
            image = self._capture.read()
            if self._capture.closed:
                return
            if image is None:
                raise SourceError(
                    f"{self._name}: lost after {index} frames: no picture within {CAMERA_TIMEOUT_S} s. "
                    "Fix: check its cable and power"
                )
            yield Frame(image, index, time.monotonic_ns())
            index += 1

    def close(self) -> None:
        """Release the camera."""
        self._capture.close()


class PictureSource:
    """The pictures of a folder or of a glob pattern, in natural order (2 before 10), one by one.

    Args:
        text: A folder, a pattern, or one picture.

    Raises:
        SourceError: Nothing there, or the first one is broken. While iterating: one is broken.
    """

    def __init__(self, text: str) -> None:
        root = Path(text).expanduser()
        if root.is_file():
            found, wanted = [root], ""
        elif root.is_dir():
            found = [p for p in root.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith(".")]
            wanted = "in this folder"
        else:
            matches = map(Path, glob.glob(str(root), recursive=True))  # noqa: PTH207 - takes absolute patterns too
            found = [p for p in matches if p.suffix.lower() in PICTURES and p.is_file()]
            wanted = "for this name or pattern"
        if not found:
            raise SourceError(f"{text}: no pictures {wanted}; expected {', '.join(PICTURES)}")
        self._paths = sorted(found, key=natural)
        first = self._read(self._paths[0])
        self.info = VideoInfo((first.shape[1], first.shape[0]), 0.0, len(self._paths), False)
        self._closed = False

    def __iter__(self) -> Iterator[Frame]:
        for index, path in enumerate(self._paths):
            if self._closed:
                return
            image = self._read(path)
            yield Frame(image, index, time.monotonic_ns(), path.stem)

    @staticmethod
    def _read(path: Path) -> Image:
        try:
            image = read_picture(path, cv2.IMREAD_COLOR)
        except DataError as error:
            raise SourceError(str(error)) from error
        return image

    def close(self) -> None:
        """End the iteration."""
        self._closed = True


class StreetSource:
    """The built-in scene as a film (as fast as asked) or, with fps=N, as a live camera.

    Args:
        text: `street:` with options, such as `street:?size=240x320&seed=7&fps=25`.

    Raises:
        UsageError: An option does not exist or does not fit.
    """

    def __init__(self, text: str) -> None:
        from lfd.data import street  # noqa: PLC0415 - only who films it pays for it

        options = street.parse_options(text.partition(":")[2])
        self._street = street.Street(options.seed, options.size_hw)
        live = options.fps > 0
        self._frames = options.frames or (None if live else STREET_FRAMES)
        self._pace = street.FPS / options.fps if live else 1.0
        height, width = options.size_hw
        fps = float(options.fps) if live else float(street.FPS)
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
            captured_ns = time.monotonic_ns()
            sample = self._street.render(round(index * self._pace))
            yield Frame(sample.image, index, captured_ns, "", sample.mask)
            index += 1

    def close(self) -> None:
        """End the iteration, also one that waits."""
        self._closed.set()


SOURCES: dict[str, Callable[[str], FrameSource]] = {
    "camera": CameraSource,
    "film": FilmSource,
    "pictures": PictureSource,
    "street": StreetSource,
}


def kind_of(text: str) -> str:
    """Return the key in SOURCES that a source's text means.

    Raises:
        UsageError: It names a kind that does not exist.
    """
    if _DEVICE.fullmatch(text) or text.startswith("v4l2:"):
        return "camera"
    if text.startswith("street:"):
        return "street"
    scheme = _SCHEME.match(text)
    if scheme:
        raise UsageError(f"source {text!r}: {scheme[0]} is no source here yet; expected {_FORMS}")
    path = Path(text).expanduser()
    if re.fullmatch(r"[a-z]{3,}:.*", text) and not path.exists():
        raise unknown("source", text.partition(":")[0], ("street", "v4l2"))
    if path.is_dir() or path.suffix.lower() in PICTURES or (glob.has_magic(text) and not path.exists()):
        return "pictures"
    return "film"


def open_source(text: str) -> FrameSource:
    """Open a source of frames.

    Args:
        text: `0` or `/dev/video0`, a film, a folder or glob of pictures, or `street:` with options.

    Raises:
        UsageError: There is no such kind of source, or its options are wrong.
        SourceError: It is absent or not readable.
    """
    silence_opencv()
    return SOURCES[kind_of(text)](text)
