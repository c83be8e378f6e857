"""CamVid with 11 classes, in the layout of the SegNet tutorial: `camvid:PATH`.

Brostow, Fauqueur, Cipolla, "Semantic object classes in video", Pattern Recognition Letters 2009.
PATH holds train/ trainannot/ val/ valannot/ test/ testannot/; pictures .png or .jpg, labels .png.
The list files train.txt, val.txt and test.txt, where they stand beside the folders, are not
needed: the folders are the split.
"""

from __future__ import annotations

from pathlib import Path

from lfd.data.base import Dataset, PairedFiles
from lfd.errors import DataError
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
    root = Path(path).expanduser()
    images, masks = root / split, root / f"{split}annot"
    for wanted in (root, images, masks):
        if not wanted.is_dir():
            raise DataError(f"{wanted}: no such folder; camvid: expects {split}/ and {split}annot/ under {root}")
    pictures = sorted(p for p in images.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not pictures:
        raise DataError(f"{images}: no .png or .jpg pictures in this folder")
    pairs = [(picture, masks / f"{picture.stem}.png") for picture in pictures]
    missing = [mask for _, mask in pairs if not mask.is_file()]
    if missing:
        raise DataError(f"{missing[0]}: no such label file ({len(missing)} of {len(pairs)} pictures have none)")
    return PairedFiles(LABELS, pairs, void_values=(VOID,))
