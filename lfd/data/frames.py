"""Pictures and films without labels, to distil from: `frames:PATH`.

    frames:FOLDER  frames:'GLOB'  frames:PICTURE  frames:FILM     a folder with its subfolders, pictures and films mixed
    frames:PATH?stride=5&limit=1000&size=540x960

    stride   of a film, every Nth frame; 10
    limit    at most so many, spread evenly over all
    size     pictures are shrunk, in their own shape, to the smallest size that still covers HxW

There are no classes here: they are those of the network that is learnt from. The mask of each sample is void all over.
"""

from __future__ import annotations

import functools
import glob
import os
import re
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from lfd.console import parse_size
from lfd.data import film
from lfd.data.base import Sample, read_picture
from lfd.data.film import FilmInfo
from lfd.data.query import parse_query
from lfd.errors import DataError, UsageError
from lfd.memory import check_memory
from lfd.preprocess import Image, resize_image
from lfd.spec import Labels

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
FIX_MEMORY = "a larger stride=N, a limit=N or a size=HxW after frames:PATH?"

_READING = threading.Lock()
"""Held while a film is decoded, by whichever thread came first; FFmpeg has threads of its own."""


@dataclass(frozen=True)
class Options:
    """What follows the path.

    Attributes:
        stride: Every Nth frame of a film is taken. At 25 to 30 frames a second neighbours are the same picture; 0.4 s
            later a car in town is five metres on.
        limit: At most so many pictures, spread evenly; None for all.
        size_hw: What pictures are shrunk to, see `shrunk_hw`; None leaves them as they are.
    """

    stride: int = 10
    limit: int | None = None
    size_hw: tuple[int, int] | None = None


def open_all(path: str, labels: Labels) -> FrameSet:
    """Open pictures and films.

    Args:
        path: As the module says.
        labels: The classes to say; each mask holds their void value.

    Raises:
        UsageError: An option that does not exist, does not fit or has no effect.
        DataError: Nothing there, or a film that cannot be decoded to its end; pictures are decoded when asked for.
    """
    # A question mark that no KEY= follows is a wildcard.
    found = re.fullmatch(r"(.*)\?([A-Za-z_]+=[^?/]*)", path, re.DOTALL)
    place, query = (found[1], found[2]) if found else (path, "")
    given = parse_query("frames", query, ("stride", "limit", "size"), "?stride=5&limit=1000&size=540x960")
    options = Options(
        **{key: _whole(key, given[key]) for key in ("stride", "limit") if key in given},
        size_hw=parse_size(given["size"]) if "size" in given else None,
    )
    frames = FrameSet(find(place), options, labels)
    if "stride" in given and not frames.films:
        raise UsageError(f"frames option stride={options.stride} has no effect: {place} holds no films; leave it away")
    return frames


def _whole(key: str, value: str) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) < 10 and int(value) > 0):
        raise UsageError(f"frames option {key}={value[:40]!r}; expected a whole number from 1 to 999999999")
    return int(value)


def find(text: str) -> list[Path]:
    """Return the pictures and films of a folder, a pattern or a name, in natural order (2 before 10).

    Raises:
        DataError: There are none.
    """
    if not text:
        raise DataError("frames: names no place; expected frames:PATH, a folder, a pattern, a picture or a film")
    root = Path(text).expanduser()
    if root.is_file():
        return [root]
    if root.is_dir():
        inside: Iterable[Path] = (
            p for p in root.rglob("*") if not any(part.startswith(".") for part in p.relative_to(root).parts)
        )
    elif glob.has_magic(text):
        inside = map(Path, glob.glob(str(root), recursive=True))  # noqa: PTH207 - takes absolute patterns too
    else:
        raise DataError(f"{root}: no such file or folder; frames: expects pictures or films there")
    found = [path for path in inside if path.suffix.lower() in (*PICTURES, *film.SUFFIXES) and path.is_file()]
    if not found:
        raise DataError(f"{root}: no pictures or films; expected {', '.join((*PICTURES, *film.SUFFIXES))}")
    return sorted(found, key=natural)


def natural(path: Path) -> list[tuple[int, int, str]]:
    """Return a sort key by which frame2 comes before frame10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", str(path)) if part]


def shrunk_hw(frame_hw: tuple[int, int], wanted_hw: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest size of the frame's own shape that covers another size; never larger than the frame.

    A network of that input size sees as much of it as of the whole frame.
    """
    scale = max(wanted / side for wanted, side in zip(wanted_hw, frame_hw, strict=True))
    return (round(frame_hw[0] * scale), round(frame_hw[1] * scale)) if scale < 1 else frame_hw


class FrameSet:
    """Pictures and frames of films, with masks that are void all over.

    Pictures are read when asked for. A film is decoded to memory as a whole when the first of its frames is asked for;
    `read_films` does it for all, so that processes that are forked later share them.

    Args:
        found: Pictures and films, in order.
        options: Which of their frames, and how large.
        labels: The classes to say.

    Attributes:
        films: What each film holds.

    Raises:
        DataError: A film cannot be decoded to its end.
    """

    def __init__(self, found: list[Path], options: Options, labels: Labels) -> None:
        self.labels = labels
        self._options = options
        moving = [path for path in found if path.suffix.lower() not in PICTURES]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            self.films: dict[Path, FilmInfo] = dict(zip(moving, pool.map(film.measure, moving), strict=True))
        items: list[tuple[Path, int | None]] = []
        for path in found:
            info = self.films.get(path)
            items += [(path, None)] if info is None else [(path, n) for n in range(0, info.frames, options.stride)]
        count = len(items) if options.limit is None else min(options.limit, len(items))
        self._items = [items[index * len(items) // count] for index in range(count)]
        self._wanted: dict[Path, list[int]] = {path: [] for path in self.films}
        for path, number in self._items:
            if number is not None:
                self._wanted[path].append(number)
        self._read: dict[Path, dict[int, Image]] = {}

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Sample:
        """Return a picture, or a frame of a film.

        Raises:
            DataError: It cannot be decoded.
            UsageError: The films take more memory than this machine should give.
        """
        path, number = self._items[index]
        return self._sample(path, number, self._picture(path) if number is None else self._film(path)[number])

    @property
    def film_bytes(self) -> int:
        """Memory that the frames of all films take, decoded."""
        sizes = {path: self._shrunk(info.size_hw) for path, info in self.films.items()}
        return sum(3 * height * width * len(self._wanted[path]) for path, (height, width) in sizes.items())

    def read_films(self) -> None:
        """Decode all films to memory.

        Raises:
            DataError: One cannot be decoded any more.
            UsageError: They take more memory than this machine should give.
        """
        for path in self._wanted:
            self._film(path)

    def stream(self) -> Iterator[Sample | DataError]:
        """Yield all in order, keeping none; for a picture, or the rest of a film, that cannot be decoded, the error."""
        for path in dict.fromkeys(path for path, _ in self._items):
            yield from self._stream(path)

    def _stream(self, path: Path) -> Iterator[Sample | DataError]:
        try:
            if path in self.films:
                wanted = self._wanted[path]
                for number, image in zip(wanted, film.read(path, wanted), strict=True):
                    yield self._sample(path, number, self._shrink(image))
            else:
                yield self._sample(path, None, self._picture(path))
        except DataError as error:
            yield error

    def _film(self, path: Path) -> dict[int, Image]:
        with _READING:
            if path not in self._read:
                check_memory(self.film_bytes, FIX_MEMORY)
                numbers = self._wanted[path]
                images = map(self._shrink, film.read(path, numbers))
                self._read[path] = dict(zip(numbers, images, strict=True))
        return self._read[path]

    def _picture(self, path: Path) -> Image:
        return self._shrink(read_picture(path, cv2.IMREAD_COLOR))

    def _sample(self, path: Path, number: int | None, image: Image) -> Sample:
        mask = _blank(image.shape[0], image.shape[1], self.labels.ignore_index)
        return Sample(image, mask, path.stem if number is None else f"{path.stem}-{number:06}")

    def _shrunk(self, frame_hw: tuple[int, int]) -> tuple[int, int]:
        return shrunk_hw(frame_hw, self._options.size_hw) if self._options.size_hw else frame_hw

    def _shrink(self, image: Image) -> Image:
        return resize_image(image, self._shrunk((image.shape[0], image.shape[1])))


@functools.lru_cache(maxsize=4)
def _blank(height: int, width: int, void: int) -> Image:
    """Return one mask for all pictures of a size."""
    return np.full((height, width), void, np.uint8)
