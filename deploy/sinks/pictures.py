"""A folder of pictures: masks with the label values, or overlays."""

from __future__ import annotations

import os
import shutil
from collections import deque
from contextlib import suppress
from pathlib import Path

import cv2

from deploy.frames import Frame, StreamStatus, VideoInfo
from deploy.overlay import Overlay
from deploy.sinks.aside import unwritable, write_aside
from lfd.errors import SinkError
from lfd.files import clear_partial
from lfd.preprocess import Image

# Level 1: 1.4 ms for a 480x360 mask against 2.6 ms at OpenCV's default, for a slightly larger file.
_ENCODERS = {"png": (cv2.IMWRITE_PNG_COMPRESSION, 1), "jpg": (cv2.IMWRITE_JPEG_QUALITY, 90)}


class PictureSink:
    """One picture a frame, named by the frame or by its number.

    Of a source that ends, the pictures are collected in a hidden folder inside and moved out when the run is complete.
    Of a live one each gets its name at once, and stays when the run fails: it may run for days.

    Args:
        folder: Where to.
        overlay: Paints the frames.
        info: The source's.
        show: `mask` for label values, `overlay` for the painted frame.
        format: `png`, or `jpg` for overlays.
        every: Only the first of every so many frames.
        keep: Only the latest so many of its own; 0 keeps all.
    """

    def __init__(
        self,
        folder: Path,
        overlay: Overlay,
        info: VideoInfo,
        show: str = "mask",
        format: str = "png",  # noqa: A002 - the option's name
        every: int = 1,
        keep: int = 0,
    ) -> None:
        self._folder, self._overlay, self._show, self._format = folder, overlay, show, format
        self._every, self._keep, self._live = every, keep, info.live
        self._at = folder if info.live else folder / f".{os.getpid()}.partial"
        self._digits = 9 if info.live else 6
        self._made = not folder.exists()
        self._kept: deque[str] = deque()
        self._frames = 0
        clear_partial(folder, rf"(?:\d{{{self._digits}}}\.)?", rf"(?:\.{format})?")

    def write(self, frame: Frame, class_map: Image) -> None:
        """Write one picture.

        Raises:
            SinkError: Two frames have the same name, or it cannot be written.
        """
        self._frames += 1
        if (self._frames - 1) % self._every:
            return
        name = f"{frame.name or f'{frame.index:0{self._digits}d}'}.{self._format}"
        picture = self._overlay.paint(frame, class_map) if self._show == "overlay" else class_map
        ok, data = cv2.imencode(f".{self._format}", picture, _ENCODERS[self._format])
        if not ok:
            raise SinkError(f"{self._folder}: OpenCV cannot encode {name}")
        if self._frames == 1:
            try:
                self._at.mkdir(parents=True, exist_ok=self._live)
            except OSError as error:
                raise unwritable(self._folder / name, error) from error
        if not self._live and (self._at / name).exists():
            raise SinkError(
                f"{self._folder}: two pictures are named {frame.name!r}, and would give the same {name}. "
                "Fix: run on one folder at a time, and without loop"
            )
        write_aside(self._at / name, data.tobytes())
        if self._keep:
            self._kept.append(name)
            if len(self._kept) > self._keep:
                (self._at / self._kept.popleft()).unlink(missing_ok=True)

    def show_status(self, status: StreamStatus) -> None:
        """Do nothing: a picture is of a frame."""

    def close(self, complete: bool) -> None:
        """Move the pictures to the folder; remove them when the run is not complete."""
        frames, self._frames = self._frames, 0
        if self._live or not frames:
            return
        try:
            if complete:
                for path in sorted(self._at.iterdir()):
                    path.replace(self._folder / path.name)
        except OSError as error:
            raise unwritable(self._folder, error) from error
        finally:
            shutil.rmtree(self._at, ignore_errors=True)
            if self._made:
                with suppress(OSError):  # it holds something, which is to stay
                    self._folder.rmdir()
