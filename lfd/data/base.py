"""What every data set is: labelled pictures as numpy, by index."""

from __future__ import annotations

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


def read_picture(path: Path, flags: int) -> Image:
    """Decode a picture with OpenCV.

    Args:
        path: The file.
        flags: `cv2.IMREAD_COLOR` for (H, W, 3) BGR, `cv2.IMREAD_UNCHANGED` for labels as stored.

    Raises:
        DataError: It is missing, not a picture, broken, or of more than MAX_PIXELS.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; the data set lists it")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise DataError(f"{path}: {size} bytes; a picture of at most {MAX_FILE_BYTES} bytes is read")
    data = np.fromfile(path, np.uint8)
    try:
        image = cv2.imdecode(data, flags) if data.size else None
    except cv2.error as error:
        raise DataError(f"{path}: cannot be decoded ({str(error).strip().splitlines()[0][:120]})") from error
    if image is None:
        raise DataError(f"{path}: not a picture that can be decoded ({data.size} bytes); replace or remove it")
    if image.shape[0] * image.shape[1] > MAX_PIXELS:
        raise DataError(f"{path}: {image.shape[1]}x{image.shape[0]} pixels; at most {MAX_PIXELS} are read")
    return np.asarray(image)


class PairedFiles:
    """Pictures and label pictures in files, pair by pair.

    Args:
        labels: The classes.
        pairs: (picture, label picture) paths, in order.
        void_values: Label values in the files, besides `ignore_index`, that mean void.
    """

    def __init__(self, labels: Labels, pairs: list[tuple[Path, Path]], void_values: tuple[int, ...] = ()) -> None:
        self.labels = labels
        self.pairs = pairs
        self._lut = np.full(256, -1, np.int16)
        self._lut[: len(labels)] = np.arange(len(labels))
        self._lut[[labels.ignore_index, *void_values]] = labels.ignore_index

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """Read one pair.

        Raises:
            DataError: Unreadable, of different sizes, or with a label value that is no class; the
                message names the file.
        """
        image_path, mask_path = self.pairs[index]
        image = read_picture(image_path, cv2.IMREAD_COLOR)
        stored = read_picture(mask_path, cv2.IMREAD_UNCHANGED)
        if stored.ndim != 2 or stored.dtype != np.uint8:
            raise DataError(
                f"{mask_path}: {stored.dtype} with {1 if stored.ndim == 2 else stored.shape[2]} channels; "
                "expected one 8-bit channel of label values, not colours"
            )
        if stored.shape != image.shape[:2]:
            raise DataError(
                f"{mask_path}: {stored.shape[1]}x{stored.shape[0]} pixels, but its picture {image_path} has "
                f"{image.shape[1]}x{image.shape[0]}; expected the same size"
            )
        mapped = self._lut[stored]
        if mapped.min() < 0:
            bad = sorted(set(np.unique(stored[mapped < 0]).tolist()))
            raise DataError(
                f"{mask_path}: label value {', '.join(map(str, bad[:5]))}{' ...' if len(bad) > 5 else ''} is no class; "
                f"expected 0 to {len(self.labels) - 1}, or {self.labels.ignore_index} for void"
            )
        return Sample(image, mapped.astype(np.uint8), image_path.stem)
