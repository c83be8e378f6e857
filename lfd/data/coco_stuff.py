"""COCO-Stuff 164k with its 171 classes, things and stuff: `coco_stuff:PATH`.

Caesar, Uijlings, Ferrari, "COCO-Stuff: thing and stuff classes in context", CVPR 2018.

    PATH/images/{train2017,val2017}/*.jpg       or PATH/train2017/, PATH/val2017/
    PATH/stuffthingmaps/{train2017,val2017}/*.png    or annotations/, stuffthingmaps_trainval2017/

The maps store the published index less one, 0 to 181, and 255 for unlabelled; 11 of the 182 occur in no
picture, which leaves 171. Maps renumbered to 0 to 170, as *_labelTrainIds.png, serve where the others are not.
coco_stuff.toml has the classes; their colours are those of Pascal VOC's colour map at the published index,
since the makers give none.
"""

from __future__ import annotations

from pathlib import Path

from lfd.data.base import Dataset
from lfd.data.folder import read_labels
from lfd.data.layout import Coding, find_folders, open_complete, pair, withheld

UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
"""Street sign, hat, shoe, eye glasses, plate, mirror, window, desk, door, blender, hair brush."""

CODINGS = (
    Coding(".png", sorted(set(range(182)) - set(UNUSED)), [255]),
    Coding("_labelTrainIds.png", range(171), [255]),
)

MAPS = ("stuffthingmaps", "annotations", "stuffthingmaps_trainval2017")


def open_split(path: str, split: str) -> Dataset:
    """Open `train` or `val`; the labels of `test` are withheld.

    Raises:
        DataError: A folder is missing, or a picture has no label; the message names the path.
    """
    if split == "test":
        raise withheld("coco_stuff", "COCO")
    part = f"{split}2017"
    needs = [[f"images/{part}", part], [f"{maps}/{part}" for maps in MAPS]]
    images, masks = find_folders("coco_stuff", path, needs)
    labels = read_labels(Path(__file__).with_suffix(".toml"))
    return open_complete(labels, lambda suffix: pair(images, masks, ".jpg", suffix), CODINGS)
