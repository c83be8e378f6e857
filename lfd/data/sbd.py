"""The Semantic Boundaries Dataset, which labels 11 355 pictures of Pascal VOC more; `voc:PATH?sbd=PATH2` uses it.

Hariharan et al., "Semantic contours from inverse detectors", ICCV 2011. PATH2 is benchmark_RELEASE, its
folder dataset, or the folder that holds it:

    PATH2/dataset/img/*.jpg
    PATH2/dataset/cls/*.mat             struct GTcls with the (H, W) uint8 matrix Segmentation, 0 to 20
    PATH2/dataset/{train,val}.txt

The .mat files are read here and not by scipy, whose reader trusts a file's own sizes and offsets: one flipped
byte can end the process. What is needed of "MAT-File Level 5 File Format" (MathWorks) is little: elements of a
type, a size and their bytes; a compressed element holds a matrix; a matrix of class struct holds matrices.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from lfd.data.base import Pairs, check_file
from lfd.data.layout import find_folders, read_names
from lfd.errors import DataError
from lfd.preprocess import Image

MAX_MAT_BYTES = 1 << 20
MAX_INFLATED_BYTES = 1 << 23
"""The published ones have some ten KB, and unpacked less than one MB."""

_UINT8, _INT32, _MATRIX, _COMPRESSED = 2, 5, 14, 15
"""Types of elements."""

_STRUCT_CLASS, _NUMERIC_CLASSES = b"\x02", bytes(range(6, 16))
"""Classes of matrices. A numeric one is stored in the smallest type that holds its values, whatever its class."""


def open_pairs(path: str, without: Collection[str]) -> Pairs:
    """Return pictures and labels of both of its splits, by name.

    Args:
        path: Where it is.
        without: Names to leave out.

    Raises:
        DataError: A folder or list is missing; the message names the path.
    """
    images, masks = find_folders("voc sbd", path, [["img"], ["cls"]], inside=["dataset", "benchmark_RELEASE/dataset"])
    both = {name for split in ("train", "val") for name in read_names(images.parent / f"{split}.txt")}
    return [(f"{images}/{name}.jpg", f"{masks}/{name}.mat") for name in sorted(both.difference(without))]


def read_mat(path: Path) -> Image:
    """Read the class values of a picture.

    Returns:
        (H, W) uint8.

    Raises:
        DataError: It is missing, too large, broken, or not one of this data set.
    """
    check_file(path, MAX_MAT_BYTES)
    try:
        return _segmentation(path.read_bytes())
    except (ValueError, struct.error, zlib.error) as error:
        raise DataError(
            f"{path}: not a label of SBD ({error}); expected a MATLAB 5 file with the uint8 matrix GTcls.Segmentation"
        ) from error


def _segmentation(content: bytes) -> Image:
    if content[124:128] != b"\x00\x01IM":
        raise ValueError("no header of a little-endian MATLAB 5 file")
    kind, body = next(_elements(content[128:]), (0, b""))
    if kind == _COMPRESSED:
        kind, body = next(_elements(_inflated(body)), (0, b""))
    matrix = list(_elements(body)) if kind == _MATRIX else []
    if len(matrix) < 3 or matrix[2][1] != b"GTcls":
        raise ValueError("its variable is not GTcls")
    return _values(_field(matrix, b"Segmentation"))


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and bytes of each element."""
    place = 0
    while place < len(data):
        kind, size = struct.unpack_from("<II", data, place)
        begin = place + 8
        if kind >> 16:  # up to four bytes stand in the tag, behind type and size of 16 bits each
            kind, size, begin = kind & 0xFFFF, kind >> 16, place + 4
            place += 8
        else:
            place = begin + (size if kind == _COMPRESSED else -(-size // 8) * 8)
        if begin + size > min(len(data), place):
            raise ValueError("cut short")
        yield kind, data[begin : begin + size]


def _inflated(body: bytes) -> bytes:
    reader = zlib.decompressobj()
    data = reader.decompress(body, MAX_INFLATED_BYTES)
    if not reader.eof:
        raise ValueError(f"cut short, or more than {MAX_INFLATED_BYTES} bytes unpacked")
    return data


def _field(matrix: list[tuple[int, bytes]], name: bytes) -> bytes:
    """Return the matrix in a field of a 1x1 struct, whose elements are flags, dimensions, name, names and fields."""
    (flags, shape), rest = (matrix[0][1], matrix[1][1]), matrix[3:]
    if flags[:1] != _STRUCT_CLASS or shape != struct.pack("<ii", 1, 1) or len(rest) < 2:
        raise ValueError("GTcls is no 1x1 struct")
    (width,) = struct.unpack("<i", rest[0][1])
    if width < 1:
        raise ValueError(f"field names of {width} bytes")
    names = [rest[1][1][i : i + width].partition(b"\x00")[0] for i in range(0, len(rest[1][1]), width)]
    fields = dict(zip(names, rest[2:], strict=False))
    if fields.get(name, (0, b""))[0] != _MATRIX:
        raise ValueError(f"GTcls has no field {name.decode()}")
    return fields[name][1]


def _values(body: bytes) -> Image:
    """Return the values of an (H, W) matrix stored as uint8, column by column."""
    matrix = list(_elements(body))
    numeric = len(matrix) == 4 and matrix[0][1][:1] in _NUMERIC_CLASSES and matrix[1][0] == _INT32
    if not numeric or matrix[3][0] != _UINT8:
        raise ValueError("GTcls.Segmentation is not stored as a matrix of uint8")
    shape, data = np.frombuffer(matrix[1][1], "<i4"), matrix[3][1]
    if len(shape) != 2 or min(shape) < 1 or int(shape[0]) * int(shape[1]) != len(data):
        raise ValueError(f"GTcls.Segmentation has the dimensions {shape[:4].tolist()} and {len(data)} bytes")
    return np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(shape, order="F"))
