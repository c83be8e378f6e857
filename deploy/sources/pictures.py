"""Pictures of a folder or a pattern."""

from __future__ import annotations

import glob
import time
from collections.abc import Iterator
from pathlib import Path

import cv2

from deploy.frames import Frame, VideoInfo
from deploy.sources.address import Options
from deploy.texts import check_name, redact
from lfd.data.base import read_picture
from lfd.data.frames import PICTURES, natural
from lfd.errors import DataError, SourceError
from lfd.preprocess import Image


class PictureSource:
    """The pictures of a folder or of a glob pattern, in natural order (2 before 10), one by one.

    Args:
        address: A folder, a pattern, or one picture.
        options: None applies here.

    Raises:
        SourceError: Nothing there, or the first one is broken. While iterating: one is broken.
    """

    def __init__(self, address: str, options: Options) -> None:
        root = Path(address).expanduser()
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
            raise SourceError(f"{redact(address)}: no pictures {wanted}; expected {', '.join(PICTURES)}")
        for path in found:
            check_name(str(path))
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
