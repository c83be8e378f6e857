"""What every data set is: labelled pictures as numpy, by index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from lfd.errors import DataError
from lfd.preprocess import Image
from lfd.spec import Labels

MAX_PIXELS = 1 << 28
"""A picture above 268 megapixels is refused; lfd/__init__.py tells OpenCV, so that it is not even decoded."""

MAX_FILE_BYTES = 1 << 30

AS_STORED = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
"""Colour, not turned as a camera's EXIF note asks: published sets were labelled, and are read elsewhere, without it."""

_PNG_GREY, _PNG_PALETTE = 0, 3
"""Colour types."""

Pairs = list[tuple[str, str]]
"""(picture, label) paths, in order; text, since a Path each would make large sets slow to open."""


class Sample(NamedTuple):
    """A picture with its labels.

    Attributes:
        image: (H, W, 3) BGR uint8.
        mask: (H, W) uint8 label values; `Labels.ignore_index` is void.
        name: Identifies it in messages and file names.
    """

    image: Image
    mask: Image
    name: str


class Dataset(Protocol):
    """A finite, indexable set of labelled pictures. `__getitem__` raises DataError on a broken one."""

    @property
    def labels(self) -> Labels: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def check_file(path: Path, most_bytes: int) -> None:
    """Refuse a file that is too large to read.

    Raises:
        DataError: It is, or it is missing.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; the data set lists it")
    size = path.stat().st_size
    if size > most_bytes:
        raise DataError(f"{path}: {size} bytes; a picture of at most {most_bytes} bytes is read")


def read_picture(path: Path, flags: int) -> Image:
    """Decode a picture with OpenCV.

    Args:
        path: The file.
        flags: `cv2.IMREAD_COLOR` for (H, W, 3) BGR, `cv2.IMREAD_UNCHANGED` for labels as stored.

    Raises:
        DataError: It is missing, not a picture, broken, or of more than MAX_PIXELS.
    """
    check_file(path, MAX_FILE_BYTES)
    data = np.fromfile(path, np.uint8)
    if flags == cv2.IMREAD_UNCHANGED:
        _check_depth(path, data[:26].tobytes())
    try:
        image = cv2.imdecode(data, flags) if data.size else None
    except cv2.error as error:
        raise DataError(f"{path}: cannot be decoded ({str(error).strip().splitlines()[0][:120]})") from error
    if image is None:
        raise DataError(f"{path}: not a picture that can be decoded ({data.size} bytes); replace or remove it")
    if image.shape[0] * image.shape[1] > MAX_PIXELS:
        raise DataError(f"{path}: {_size(image.shape)} pixels; at most {MAX_PIXELS} are read")
    return np.asarray(image)


def _png_kind(head: bytes) -> tuple[int, int] | None:
    """Return bits and colour type of a PNG (specification, 11.2.1) from its first 26 bytes; None for another file."""
    return (head[24], head[25]) if len(head) == 26 and head.startswith(b"\x89PNG\r\n\x1a\n") else None


def _check_depth(path: Path, head: bytes) -> None:
    """Refuse a grey PNG of less than 8 bits: decoders stretch its values up to 255, and class 1 would become void."""
    kind = _png_kind(head)
    if kind is not None and kind[0] < 8 and kind[1] == _PNG_GREY:
        raise DataError(
            f"{path}: a grey PNG of {kind[0]} bits a pixel, whose values cannot be told from shades of grey; expected "
            "8 bits. Fix: save its label values as uint8"
        )


def as_values(path: Path, stored: Image) -> Image:
    """Return what a label file stores as it is, if it is (H, W) uint8.

    Raises:
        DataError: It is not; the message names the file.
    """
    if stored.ndim == 2 and stored.dtype == np.uint8:
        return stored
    with path.open("rb") as file:
        kind = _png_kind(file.read(26))
    if kind is not None and kind[1] == _PNG_PALETTE:  # which OpenCV decodes to its colours
        raise DataError(
            f"{path}: a palette PNG; expected its indices as grey. Fix, with PIL: "
            "Image.fromarray(np.array(Image.open(f))).save(f)"
        )
    if stored.ndim == 2:
        raise DataError(
            f"{path}: a label of {8 * stored.itemsize} bits a pixel ({stored.dtype}); expected 8 bits. "
            "Fix: save its values as uint8"
        )
    raise DataError(
        f"{path}: {stored.dtype} with {stored.shape[2]} channels; "
        "expected one 8-bit channel of label values, not colours"
    )


def read_values(path: Path) -> Image:
    """Read a label picture of one channel.

    Returns:
        (H, W) uint8 values as stored.

    Raises:
        DataError: Unreadable, or not of one 8-bit channel.
    """
    return as_values(path, read_picture(path, cv2.IMREAD_UNCHANGED))


class PairedFiles:
    """Pictures and label pictures in files, pair by pair.

    Args:
        labels: The classes.
        pairs: Paths of picture and label.
        values: Stored value of each class, in order; by default its position.
        void_values: Stored values that mean void; by default `ignore_index`.
        read: From a label file to its (H, W) uint8 stored values.
        flags: How OpenCV decodes the pictures; AS_STORED for those whose labels fit them as they are stored.
    """

    def __init__(
        self,
        labels: Labels,
        pairs: Iterable[tuple[str | Path, str | Path]],
        values: Sequence[int] | None = None,
        void_values: Sequence[int] | None = None,
        read: Callable[[Path], Image] = read_values,
        flags: int = cv2.IMREAD_COLOR,
    ) -> None:
        self.labels = labels
        self.pairs: Pairs = [(str(picture), str(mask)) for picture, mask in pairs]
        self._read = read
        self._flags = flags
        self._values = range(len(labels)) if values is None else values
        self._void = (labels.ignore_index,) if void_values is None else void_values
        self._lut = np.full(256, -1, np.int16)
        self._lut[list(self._values)] = np.arange(len(labels))
        self._lut[list(self._void)] = labels.ignore_index

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """Read one pair.

        Raises:
            DataError: Missing, unreadable, of different sizes, or with a label value that is no class;
                the message names the file.
        """
        image_path, mask_path = (Path(path) for path in self.pairs[index])
        image = read_picture(image_path, self._flags)
        if not mask_path.is_file():
            raise DataError(f"{mask_path}: no such label file for {image_path}")
        stored = self._read(mask_path)
        if stored.shape != image.shape[:2]:
            raise DataError(
                f"{mask_path}: {_size(stored.shape)} pixels, but its picture {image_path} has {_size(image.shape)}; "
                f"expected the same size{self._turned(image_path, stored)}"
            )
        mapped = self._lut[stored]
        if mapped.min() < 0:
            bad = sorted(set(np.unique(stored[mapped < 0]).tolist()))
            raise DataError(
                f"{mask_path}: label value {', '.join(map(str, bad[:5]))}{' ...' if len(bad) > 5 else ''} is no class; "
                f"expected {_spans(self._values)}, or {_spans(self._void)} for void"
            )
        return Sample(image, mapped.astype(np.uint8), image_path.stem)

    def _turned(self, image_path: Path, stored: Image) -> str:
        """Say, where it is so, that the EXIF orientation of a picture is why its label does not fit."""
        other_way = read_picture(image_path, self._flags ^ cv2.IMREAD_IGNORE_ORIENTATION)
        if other_way.shape[:2] != stored.shape:
            return ""
        applied = "is not" if self._flags & cv2.IMREAD_IGNORE_ORIENTATION else "is"
        return (
            f". The picture's EXIF orientation {applied} applied here, and its label fits it the other way. "
            "Fix: save the picture without EXIF, turned as its label is"
        )


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _spans(values: Iterable[int]) -> str:
    """Return numbers as text, such as "0, 2, 4 to 9"."""
    parts: list[str] = []
    for _, run in groupby(enumerate(sorted(values)), lambda item: item[1] - item[0]):
        numbers = [value for _, value in run]
        parts += [f"{numbers[0]} to {numbers[-1]}"] if len(numbers) > 2 else map(str, numbers)
    return ", ".join(parts)
