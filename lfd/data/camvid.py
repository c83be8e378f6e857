"""CamVid with 11 classes, in the layout of the SegNet tutorial: `camvid:PATH`.

Brostow, Fauqueur, Cipolla, "Semantic object classes in video", Pattern Recognition Letters 2009.
PATH holds train/ trainannot/ val/ valannot/ test/ testannot/; pictures .png or .jpg, labels .png.
The list files train.txt, val.txt and test.txt, where they stand beside the folders, are not
needed: the folders are the split.
"""

from __future__ import annotations

from lfd.data.base import Dataset, PairedFiles
from lfd.data.layout import check_complete, find_folders, pictures_in
from lfd.spec import Labels

LABELS = Labels(
    names=(
        "Sky",
        "Building",
        "Pole",
        "Road",
        "Pavement",
        "Tree",
        "SignSymbol",
        "Fence",
        "Car",
        "Pedestrian",
        "Bicyclist",
    ),
    colors=(
        (70, 130, 180),
        (70, 70, 70),
        (190, 153, 153),
        (128, 64, 128),
        (244, 35, 232),
        (107, 142, 35),
        (250, 170, 30),
        (152, 102, 51),
        (0, 60, 220),
        (220, 20, 60),
        (119, 200, 120),
    ),
)
"""Colours: mostly those of Cityscapes, which people read at a glance, made distinct."""

VOID = 11


def open_split(path: str, split: str) -> Dataset:
    """Open `train`, `val` or `test`.

    Raises:
        DataError: A folder is missing, or a picture has no label; the message names the path.
    """
    images, masks = find_folders("camvid", path, [[split], [f"{split}annot"]])
    names = pictures_in(images, ".png", ".jpg", ".jpeg")
    pairs = [(f"{images}/{name}", f"{masks}/{name.rpartition('.')[0]}.png") for name in names]
    return check_complete(PairedFiles(LABELS, pairs, void_values=(VOID, LABELS.ignore_index)))
