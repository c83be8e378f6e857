"""ADE20K's scene parsing benchmark with 150 classes, as published: `ade20k:PATH`.

Zhou et al., "Scene parsing through ADE20K dataset", CVPR 2017. PATH is ADEChallengeData2016, or the
folder that holds it:

    PATH/images/{training,validation}/*.jpg
    PATH/annotations/{training,validation}/*.png    0 other, which is void; 1 to 150 the classes

ade20k.toml has the first name of each class in the makers' list, and the colours of their palette.
"""

from __future__ import annotations

from pathlib import Path

from lfd.data.base import Dataset
from lfd.data.folder import read_labels
from lfd.data.layout import Coding, find_folders, open_complete, pair, withheld

FOLDERS = {"train": "training", "val": "validation"}

# 255 is no value here: a file that has it was renumbered from 0 already, and would be off by one.
CODING = Coding(".png", range(1, 151), [0])


def open_split(path: str, split: str) -> Dataset:
    """Open `train` or `val`; the labels of `test` are withheld.

    Raises:
        DataError: A folder is missing, or a picture has no label; the message names the path.
    """
    if split == "test":
        raise withheld("ade20k", "ADE20K")
    needs = [[f"{kind}/{FOLDERS[split]}"] for kind in ("images", "annotations")]
    images, masks = find_folders("ade20k", path, needs, inside=["ADEChallengeData2016"])
    labels = read_labels(Path(__file__).with_suffix(".toml"))
    return open_complete(labels, lambda suffix: pair(images, masks, ".jpg", suffix), [CODING])
