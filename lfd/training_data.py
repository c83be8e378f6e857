"""What a run learns from and is scored on, opened together and kept in memory."""

from __future__ import annotations

from lfd.config import DataConfig
from lfd.data import Dataset, open_dataset
from lfd.data.frames import FIX_MEMORY, FrameSet
from lfd.distributed import local_world_size
from lfd.errors import DataError, UsageError
from lfd.loader import Cached
from lfd.memory import check_memory
from lfd.preprocess import Image


def open_both(data: DataConfig, batch: int) -> tuple[Dataset, Dataset, Image]:
    """Open what is learnt and what is scored; return them with the first training picture, (H, W, 3) BGR uint8.

    Raises:
        DataError: One cannot be opened, or has too few pictures for a batch.
        UsageError: They have other classes, or films take more memory than this machine should give.
    """
    val = open_dataset(data.val or data.source, "val")
    train = open_dataset(data.source, "train", val.labels)
    if train.labels.names != val.labels.names:
        raise UsageError(
            f"data.val = {data.val!r} has other classes than data.source = {data.source!r}; expected the same names "
            "in the same order. Fix: score on pictures of the same classes"
        )
    if len(train) < batch:
        fix = "--set train.batch=N" if len(train) > 1 else "at least 2 pictures"
        raise DataError(f"{data.source}: {len(train)} training pictures; a batch has {batch}. Fix: {fix}")
    return train, val, first_picture(train)


def first_picture(train: Dataset) -> Image:
    """Return the first training picture, (H, W, 3) BGR uint8; films are kept in memory, cached or not, and must fit.

    Raises:
        DataError: It cannot be read.
        UsageError: The films take more memory than this machine should give.
    """
    if isinstance(train, FrameSet):
        check_memory(train.film_bytes * local_world_size(), FIX_MEMORY)
    return train[0].image


def cached(train: Dataset, val: Dataset, first: Image) -> tuple[Dataset, Dataset]:
    """Return both data sets decoded in memory.

    Raises:
        DataError: A picture cannot be read.
        UsageError: They take more memory than this machine should give, if all are as large as `first`.
    """
    wanted = first.nbytes * 4 // 3 * (len(train) + len(val)) * local_world_size()
    check_memory(wanted, "--set data.cache=false reads them anew each time")
    both = Cached(train), Cached(val)
    for pictures in both:
        pictures.fill()
    return both
