"""Data sets as numpy, without torch: a device can score an engine with them.

`open_dataset("camvid:PATH@val")` reads NAME:PATH@SPLIT. A data set is one file here, with a
function `open_split(path, split)`, and one line in DATASETS. One without labels has `open_all(path,
labels)`, and a line in UNLABELLED.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from lfd.data import ade20k, camvid, cityscapes, coco_stuff, folder, frames, street, voc
from lfd.data.base import Dataset, Sample
from lfd.errors import DataError, UsageError, unknown
from lfd.spec import Labels

__all__ = ["DATASETS", "SPLITS", "UNLABELLED", "DataText", "Dataset", "Sample", "open_dataset", "parse_data"]

SPLITS = ("train", "val", "test")

DATASETS: dict[str, Callable[[str, str], Dataset]] = {
    "ade20k": ade20k.open_split,
    "camvid": camvid.open_split,
    "cityscapes": cityscapes.open_split,
    "coco_stuff": coco_stuff.open_split,
    "folder": folder.open_split,
    "street": street.open_split,
    "voc": voc.open_split,
}

UNLABELLED: dict[str, Callable[[str, Labels], Dataset]] = {"frames": frames.open_all}
"""Sets without labels or splits, whose classes are those of whoever opens them."""


class DataText(NamedTuple):
    """A data set as typed: NAME:PATH or NAME:PATH@SPLIT."""

    name: str
    path: str
    split: str | None


def parse_data(text: str) -> DataText:
    """Take a data set's text apart.

    Raises:
        UsageError: The name or the split does not exist, or the set has no splits.
    """
    name, colon, rest = text.partition(":")
    if not colon:
        raise UsageError(f"data {text!r}; expected NAME:PATH, such as camvid:PATH or street:")
    if name not in DATASETS and name not in UNLABELLED:
        raise unknown("data set", name, (*DATASETS, *UNLABELLED))
    marked = re.fullmatch(r"(.*)@([a-z]+)", rest, re.DOTALL)
    path, split = (marked[1], marked[2]) if marked else (rest, None)
    if split is not None and split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if split is not None and name in UNLABELLED:
        raise UsageError(f"data {text!r} names a split; {name}: has none. Fix: leave @{split} away")
    return DataText(name, path, split)


def open_dataset(text: str, split: str, labels: Labels | None = None) -> Dataset:
    """Open a data set.

    Args:
        text: `NAME:PATH` or `NAME:PATH@SPLIT`; a split in the text wins.
        split: `train`, `val` or `test`, for a text without one. Of an unlabelled set each is all of it.
        labels: What the pictures of an unlabelled set are said to show; without, there must be labels.

    Raises:
        UsageError: The name or the split does not exist, or there are no labels and must be some.
        DataError: The data is missing or not laid out as expected, or the split is empty.
    """
    name, path, given = parse_data(text)
    split = given or split
    if name not in UNLABELLED:
        dataset = DATASETS[name](path, split)
    elif labels is not None:
        dataset = UNLABELLED[name](path, labels)
    else:
        raise UsageError(
            f"data {text!r} has no labels, and no classes of its own; expected a labelled set here. It is for learning "
            f"from a teacher: lfd-train distill --data {name}:PATH --val D"
        )
    if len(dataset) == 0:
        raise DataError(f"{text}: the split {split!r} has no pictures")
    return dataset
