"""Cityscapes with its 19 classes, as published: `cityscapes:PATH`, `cityscapes:PATH?coarse=true`.

Cordts et al., "The Cityscapes dataset for semantic urban scene understanding", CVPR 2016.

    PATH/leftImg8bit/{train,val}/CITY/*_leftImg8bit.png     leftImg8bit_trainvaltest.zip
    PATH/gtFine/{train,val}/CITY/*_gtFine_labelIds.png      gtFine_trainvaltest.zip
    PATH/leftImg8bit/train_extra/CITY/*_leftImg8bit.png     leftImg8bit_trainextra.zip, for coarse=true
    PATH/gtCoarse/train_extra/CITY/*_gtCoarse_labelIds.png  gtCoarse.zip, for coarse=true

labelIds are mapped by the table of cityscapesScripts; where a split has none, labelTrainIds serve.
coarse=true adds the pictures that are labelled only coarsely to the training split; those that have a
fine label keep it, and the validation split stays fine: 2975 and 19 998 pictures, and 500.
"""

from __future__ import annotations

from lfd.data.base import Dataset, Pairs
from lfd.data.layout import Coding, find_folders, folders_in, open_complete, pair, withheld
from lfd.data.query import parse_flag, parse_query, split_query
from lfd.errors import DataError
from lfd.spec import Labels

LABELS = Labels(
    names=(
        "road",
        "sidewalk",
        "building",
        "wall",
        "fence",
        "pole",
        "traffic light",
        "traffic sign",
        "vegetation",
        "terrain",
        "sky",
        "person",
        "rider",
        "car",
        "truck",
        "bus",
        "train",
        "motorcycle",
        "bicycle",
    ),
    colors=(
        (128, 64, 128),
        (244, 35, 232),
        (70, 70, 70),
        (102, 102, 156),
        (190, 153, 153),
        (153, 153, 153),
        (250, 170, 30),
        (220, 220, 0),
        (107, 142, 35),
        (152, 251, 152),
        (70, 130, 180),
        (220, 20, 60),
        (255, 0, 0),
        (0, 0, 142),
        (0, 0, 70),
        (0, 60, 100),
        (0, 80, 100),
        (0, 0, 230),
        (119, 11, 32),
    ),
)

IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""The label id of each class; the others of the 34 are void, and so is -1, the licence plate, as 8 bits store it."""

CODINGS = (
    Coding("labelIds.png", IDS, [*sorted(set(range(34)) - set(IDS)), 255]),
    Coding("labelTrainIds.png", range(len(LABELS)), [255]),
)


def open_split(path: str, split: str) -> Dataset:
    """Open `train` or `val`.

    Args:
        path: The folder; `?coarse=true` after it adds the coarse labels to `train`.
        split: Its name; the labels of `test` are withheld.

    Raises:
        UsageError: An option that does not exist, or a value that does not fit.
        DataError: A folder is missing, or a picture has no label; the message names the path.
    """
    place, query = split_query(path)
    options = parse_query("cityscapes", query, ("coarse",), "?coarse=true")
    coarse = parse_flag("cityscapes", "coarse", options.get("coarse", "false"))
    if split == "test":
        raise withheld("cityscapes", "Cityscapes")
    parts = [(split, "gtFine"), ("train_extra", "gtCoarse")] if coarse and split == "train" else [(split, "gtFine")]
    needs = [[f"{folder}/{part}"] for part, truth in parts for folder in ("leftImg8bit", truth)]
    folders = find_folders("cityscapes", place, needs)
    cities = [
        (images / city, masks / city, truth)
        for images, masks, (_, truth) in zip(folders[::2], folders[1::2], parts, strict=True)
        for city in folders_in(images)
    ]
    if not cities:
        raise DataError(f"{folders[0]}: no folder in it; cityscapes: expects a folder a city, with *_leftImg8bit.png")

    def pairs(suffix: str) -> Pairs:
        pictures = "_leftImg8bit.png"
        return [p for images, masks, truth in cities for p in pair(images, masks, pictures, f"_{truth}_{suffix}")]

    return open_complete(LABELS, pairs, CODINGS)
