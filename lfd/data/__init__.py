"""Data sets as numpy, without torch: a device can score an engine with them.

`open_dataset("camvid:PATH@val")` reads NAME:PATH@SPLIT. A data set is one file here, with a
function `open_split(path, split)`, and one line in DATASETS.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from lfd.data import camvid, folder, street
from lfd.data.base import Dataset, Sample
from lfd.errors import DataError, UsageError, unknown

__all__ = ["DATASETS", "SPLITS", "Dataset", "Sample", "open_dataset"]

SPLITS = ("train", "val", "test")

DATASETS: dict[str, Callable[[str, str], Dataset]] = {
    "camvid": camvid.open_split,
    "folder": folder.open_split,
    "street": street.open_split,
}


def open_dataset(text: str, split: str) -> Dataset:
    """Open a data set.

    Args:
        text: `NAME:PATH` or `NAME:PATH@SPLIT`; a split in the text wins.
        split: `train`, `val` or `test`, for a text without one.

    Raises:
        UsageError: The name or the split does not exist.
        DataError: The data is missing or not laid out as expected, or the split is empty.
    """
    name, colon, rest = text.partition(":")
    if not colon:
        raise UsageError(f"data {text!r}; expected NAME:PATH, such as camvid:PATH or street:")
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    marked = re.fullmatch(r"(.*)@([a-z]+)", rest, re.DOTALL)
    path, split = (marked[1], marked[2]) if marked else (rest, split)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    dataset = DATASETS[name](path, split)
    if len(dataset) == 0:
        raise DataError(f"{text}: the split {split!r} has no pictures")
    return dataset
