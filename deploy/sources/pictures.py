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


class PictureSource:
    """The pictures of a folder or of a glob pattern, in natural order (2 before 10), one by one.

    Args:
        address: A folder, a pattern, or one picture.
        options: None applies here.

    Raises:
        SourceError: Nothing there, or none can be decoded. At the end of the iteration: some could not, and were
            passed over.
    """

    def __init__(self, address: str, options: Options) -> None:
        self._name = redact(address)
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
            raise SourceError(f"{self._name}: no pictures {wanted}; expected {', '.join(PICTURES)}")
        for path in found:
            check_name(str(path))
        self._paths = sorted(found, key=natural)
        self._closed = False
        first = next(iter(self)).image
        self.info = VideoInfo((first.shape[1], first.shape[0]), 0.0, len(self._paths), False)

    def __iter__(self) -> Iterator[Frame]:
        damaged: list[str] = []
        for index, path in enumerate(self._paths):
            if self._closed:
                return
            try:
                image = read_picture(path, cv2.IMREAD_COLOR)
            except DataError as error:
                damaged.append(str(error))
                continue
            yield Frame(image, index, time.monotonic_ns(), path.stem)
        if damaged:
            what = f"{self._name}: {len(damaged)} of {len(self._paths)} pictures cannot be read, the first is "
            raise SourceError(f"{what if len(self._paths) > 1 else ''}{damaged[0]}")

    def close(self) -> None:
        """End the iteration."""
        self._closed = True
