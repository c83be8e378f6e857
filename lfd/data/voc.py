"""Pascal VOC 2012 segmentation, 20 classes and background: `voc:PATH`.

Everingham et al., "The Pascal visual object classes challenge: a retrospective", IJCV 2015. PATH is
VOC2012, VOCdevkit, or the folder that holds VOCdevkit:

    PATH/JPEGImages/*.jpg
    PATH/SegmentationClass/*.png                         in the colours of the published map
    PATH/ImageSets/Segmentation/{train,val}.txt

SBD (see `lfd.data.sbd`) labels more of its pictures. Both forms in use make the training split that
the field calls trainaug, 10 582 pictures, and leave the validation split alone, 1449:

    voc:PATH?sbd=PATH2   VOC's train, and SBD's train and val without VOC's val, from the original release
    voc:PATH?aug=true    converted: PATH/SegmentationClassAug/*.png, and train_aug.txt or trainaug.txt
                         beside train.txt

Where VOC itself labels a picture, its label is used: it is finer, and has void borders.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from lfd.data import sbd
from lfd.data.base import AS_STORED, Dataset, PairedFiles, as_values, read_picture
from lfd.data.layout import check_complete, files_in, find_folders, read_names, withheld
from lfd.data.query import parse_flag, parse_query, split_query
from lfd.errors import DataError, UsageError
from lfd.preprocess import Image
from lfd.spec import Labels

VOID = 255


def color_of(value: int) -> tuple[int, int, int]:
    """Return the RGB colour of a label value in the published colour map.

    Bit k of the value, counted in threes, is a bit of red, green and blue in turn, from the highest down.
    """
    red, green, blue = (sum((value >> 3 * k + c & 1) << 7 - k for k in range(3)) for c in range(3))
    return red, green, blue


NAMES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
LABELS = Labels(NAMES, tuple(color_of(value) for value in range(len(NAMES))))

_BY_CODE = sorted((r << 16 | g << 8 | b, v) for v in (*range(len(NAMES)), VOID) for r, g, b in [color_of(v)])
_CODES = np.array([code for code, _ in _BY_CODE], np.uint32)
_VALUES = np.array([value for _, value in _BY_CODE], np.uint8)


def open_split(path: str, split: str) -> Dataset:
    """Open `train` or `val`.

    Args:
        path: The folder; `?sbd=PATH2` or `?aug=true` after it adds SBD to `train`.
        split: Its name; the labels of `test` are withheld.

    Raises:
        UsageError: An option that does not exist, or a value that does not fit.
        DataError: A folder or list is missing, or a picture has no label; the message names the path.
    """
    place, query = split_query(path)
    options = parse_query("voc", query, ("aug", "sbd"), "?aug=true")
    augmented = parse_flag("voc", "aug", options.get("aug", "false"))
    if augmented and "sbd" in options:
        raise UsageError("voc options aug=true and sbd=...; expected one: both add the same pictures")
    if split == "test":
        raise withheld("voc", "Pascal VOC")
    augmented = augmented and split == "train"
    needs = [["JPEGImages"], ["SegmentationClass"], ["ImageSets/Segmentation"]]
    needs += [["SegmentationClassAug"]] if augmented else []
    images, masks, lists, *more = find_folders("voc", place, needs, inside=["VOC2012", "VOCdevkit/VOC2012"])
    listing = _augmented_list(lists) if augmented else lists / f"{split}.txt"
    names = read_names(listing)
    own = set(files_in(masks, ".png"))
    rest = more[0] if augmented else masks
    labels = [(masks if f"{name}.png" in own else rest) / f"{name}.png" for name in names]
    pairs = [(f"{images}/{name}.jpg", str(label)) for name, label in zip(names, labels, strict=True)]
    if split == "train" and "sbd" in options:
        pairs += sbd.open_pairs(options["sbd"], without={*names, *read_names(lists / "val.txt")})
    return check_complete(PairedFiles(LABELS, pairs, void_values=(VOID,), read=read_stored, flags=AS_STORED))


def _augmented_list(lists: Path) -> Path:
    """Return the list of trainaug, if none of its pictures is also one to score on."""
    ways = [lists / "train_aug.txt", lists / "trainaug.txt"]
    listing = next((way for way in ways if way.is_file()), None)
    if listing is None:
        raise DataError(f"{lists}: no train_aug.txt or trainaug.txt here; voc: with aug=true trains on that list")
    if leak := set(read_names(listing)).intersection(read_names(lists / "val.txt")):
        raise DataError(f"{listing}: has {len(leak)} pictures of val.txt, such as {min(leak)}; expected none")
    return listing


def read_stored(path: Path) -> Image:
    """Read a label file of VOC, of SBD as converted, or of SBD.

    OpenCV decodes the palette of a PNG to its colours, which the published map turns back into values.

    Returns:
        (H, W) uint8 values, 0 to 20 and 255.

    Raises:
        DataError: It is missing or broken, or has a colour that is not in the map; the message names both.
    """
    if path.suffix == ".mat":
        return sbd.read_mat(path)
    stored = read_picture(path, cv2.IMREAD_UNCHANGED)
    if stored.dtype != np.uint8 or stored.shape[2:] != (3,):
        return as_values(path, stored)
    codes = stored.astype(np.uint32) @ np.array([1, 1 << 8, 1 << 16], np.uint32)  # BGR to 0xRRGGBB
    place = np.minimum(np.searchsorted(_CODES, codes), len(_CODES) - 1)
    strange = np.unique(codes[_CODES[place] != codes])
    if strange.size:
        r, g, b = strange[0] >> 16, strange[0] >> 8 & 255, strange[0] & 255
        raise DataError(
            f"{path}: colour ({r}, {g}, {b}){f' and {strange.size - 1} more' if strange.size > 1 else ''} not in the "
            "published map of Pascal VOC; expected its colours, or one 8-bit channel of label values"
        )
    return np.asarray(_VALUES[place])
