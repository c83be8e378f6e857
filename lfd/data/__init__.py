"""Data sets as numpy, without torch: a device can score an engine with them.

`open_dataset("camvid:PATH@val")` reads NAME:PATH@SPLIT. A data set is one file here, with a
function `open_split(path, split)`, and one line in DATASETS.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from lfd.data import camvid, folder, street
from lfd.data.base import Dataset, Sample
from lfd.errors import DataError, UsageError, unknown

__all__ = ["DATASETS", "SPLITS", "DataText", "Dataset", "Sample", "open_dataset", "parse_data"]

SPLITS = ("train", "val", "test")

DATASETS: dict[str, Callable[[str, str], Dataset]] = {
    "camvid": camvid.open_split,
    "folder": folder.open_split,
    "street": street.open_split,
}


class DataText(NamedTuple):
    """A data set as typed: NAME:PATH or NAME:PATH@SPLIT."""

    name: str
    path: str
    split: str | None


def parse_data(text: str) -> DataText:
    """Take a data set's text apart.

    Raises:
        UsageError: The name or the split does not exist.
    """
    name, colon, rest = text.partition(":")
    if not colon:
        raise UsageError(f"data {text!r}; expected NAME:PATH, such as camvid:PATH or street:")
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    marked = re.fullmatch(r"(.*)@([a-z]+)", rest, re.DOTALL)
    path, split = (marked[1], marked[2]) if marked else (rest, None)
    if split is not None and split not in SPLITS:
        raise unknown("split", split, SPLITS)
    return DataText(name, path, split)


def open_dataset(text: str, split: str) -> Dataset:
    """Open a data set.

    Args:
        text: `NAME:PATH` or `NAME:PATH@SPLIT`; a split in the text wins.
        split: `train`, `val` or `test`, for a text without one.

    Raises:
        UsageError: The name or the split does not exist.
        DataError: The data is missing or not laid out as expected, or the split is empty.
    """
    name, path, given = parse_data(text)
    split = given or split
    dataset = DATASETS[name](path, split)
    if len(dataset) == 0:
        raise DataError(f"{text}: the split {split!r} has no pictures")
    return dataset
