"""One file of a film, from its first picture to its final name."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import cv2

from deploy.sinks.aside import unwritable
from lfd.errors import SinkError
from lfd.preprocess import Image

MIN_FREE_BYTES = 16 << 20
CHECK_FRAMES = 25


class Encoder(Protocol):
    """Writes one file."""

    def append(self, picture: Image) -> None:
        """Write one picture; raises SinkError."""
        ...

    def finish(self) -> None:
        """Complete the file; raises SinkError."""
        ...

    def abort(self) -> None:
        """End, whatever it was at; raises nothing. May be called after the others."""
        ...


class Recording:
    """A film while it is written, aside. It ends with one of `finish`, `save` and `discard`.

    Args:
        path: Its final name.
        aside: Where it is written.
        encoder: Writes it.
        size_wh: Of its pictures; odd sizes are made even by doubling the last row or column.

    Attributes:
        path: Likewise.
        size_wh: Likewise.
        frames: Written so far.
    """

    def __init__(self, path: Path, aside: Path, encoder: Encoder, size_wh: tuple[int, int]) -> None:
        self.path, self.size_wh, self.frames = path, size_wh, 0
        self._aside, self._encoder = aside, encoder
        self._broken = False

    def append(self, picture: Image) -> None:
        """Write one picture.

        Raises:
            SinkError: The encoder fails, or the disk is nearly full.
        """
        bottom, right = picture.shape[0] % 2, picture.shape[1] % 2
        if bottom or right:
            picture = cv2.copyMakeBorder(picture, 0, bottom, 0, right, cv2.BORDER_REPLICATE)  # type: ignore[assignment]
        try:
            self._encoder.append(picture)
        except SinkError:
            self._broken = True
            raise
        self.frames += 1
        if self.frames % CHECK_FRAMES == 0:
            self._check_disk()

    def _check_disk(self) -> None:
        try:
            self._aside.stat()
            free = shutil.disk_usage(self._aside.parent).free
        except OSError as error:
            raise SinkError(f"{self.path}: was removed while it was written ({error.strerror})") from error
        if free < MIN_FREE_BYTES:
            raise SinkError(
                f"{self.path}: only {free >> 20} MiB are free on that disk after {self.frames} frames; "
                f"a film stops at {MIN_FREE_BYTES >> 20} MiB. Fix: free space, or write elsewhere"
            )

    def finish(self) -> None:
        """Complete the film and give it its name.

        Raises:
            SinkError: It is not whole; nothing of it stays.
        """
        try:
            self._encoder.finish()
            self._read_back()
            self._name()
        except OSError as error:
            raise unwritable(self.path, error) from error
        finally:
            self.discard()

    def save(self) -> None:
        """Give what can be read of the film its name, after a failure that its pictures did not deserve.

        Raises:
            SinkError: It cannot be renamed.
        """
        try:
            if not self._broken:
                with suppress(SinkError):  # the failure that ended the run is the one that is said
                    self._encoder.finish()
            self._encoder.abort()
            if self._plays():
                self._name()
        except OSError as error:
            raise unwritable(self.path, error) from error
        finally:
            self.discard()

    def discard(self) -> None:
        """End, and remove what has no name yet."""
        self._encoder.abort()
        self._aside.unlink(missing_ok=True)

    def _name(self) -> None:
        with self._aside.open("rb") as file:
            os.fsync(file.fileno())
        self._aside.replace(self.path)

    def _plays(self) -> bool:
        """Tell whether there is a picture in it."""
        capture = cv2.VideoCapture(str(self._aside), cv2.CAP_FFMPEG)
        try:
            return bool(capture.read()[0])
        finally:
            capture.release()

    def _read_back(self) -> None:
        """Notice a film that the disk had no room for: OpenCV's writer reports nothing."""
        capture = cv2.VideoCapture(str(self._aside), cv2.CAP_FFMPEG)
        try:
            frames = round(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
            last = max(0, self.frames - 1)
            readable = frames >= last and capture.set(cv2.CAP_PROP_POS_FRAMES, last) and capture.read()[0]
        finally:
            capture.release()
        if not readable:
            free = shutil.disk_usage(self._aside.parent).free
            raise SinkError(
                f"{self.path}: of {self.frames} frames written {max(frames, 0)} can be read back; the disk is full "
                f"or its quota used up ({free >> 20} MiB free). Fix: free space, or write elsewhere"
            )
