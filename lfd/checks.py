"""What is refused before a run's first step, because it cannot work, or would have no effect."""

from __future__ import annotations

import os

from lfd.config import Config, DataConfig
from lfd.console import parse_size
from lfd.data import Dataset, parse_data
from lfd.distiller import check_method
from lfd.distributed import rank, world_size
from lfd.errors import DataError, UsageError
from lfd.loader import MicroBatches


def check_config(config: Config) -> None:
    """Refuse what cannot work, or would have no effect, before anything is read.

    Raises:
        UsageError: The method, its batch or its input does not fit the rest of the configuration.
    """
    t, d, method = config.train, config.data, config.distill
    check_method(method.method, method.weights, bool(method.teacher), method.balance, config.loss)
    together = MicroBatches(t.batch, 0, t.steps, rank(), world_size(), t.accumulate).size
    together *= world_size() if t.sync_bn else 1
    if together < 2:
        raise UsageError(
            f"train.batch = {t.batch} leaves {together} picture to a batch norm at a time, which has no variance over "
            "a 1x1 grid; expected at least 2. Fix: a larger --batch, or a smaller train.accumulate"
        )
    if t.weights == "imagenet" and d.normalize != "imagenet":
        raise UsageError(
            f"data.normalize = {d.normalize!r} with train.weights = 'imagenet': torchvision's weights were trained on "
            "the input 'imagenet'. Fix: --set data.normalize=imagenet, or --weights FILE of the CIRKD family"
        )
    if parse_data(d.source).split is not None:
        raise UsageError(f"data {d.source!r} names a split; training takes the train and val splits of NAME:PATH")


def check_crop(data: DataConfig, size_hw: tuple[int, int]) -> None:
    """Refuse crops that no picture can fill.

    Raises:
        UsageError: A side is larger than the picture at its largest scale.
    """
    largest = [round(side * data.scale[1]) for side in size_hw]
    if data.crop and any(side > most for side, most in zip(parse_size(data.crop), largest, strict=True)):
        raise UsageError(
            f"data.crop = {data.crop!r}; expected at most {largest[0]}x{largest[1]}, the input at its largest scale. "
            "Fix: --set data.crop=HxW"
        )


def check_labelled(pictures: Dataset, source: str, what: str) -> None:
    """Refuse pictures without a single label.

    Raises:
        DataError: None has a labelled pixel, or one before the first that has cannot be read.
    """
    classes = len(pictures.labels)
    if not any((pictures[index].mask < classes).any() for index in range(len(pictures))):
        raise DataError(f"{source}: no labelled pixel in its {len(pictures)} pictures for {what}. Fix: label some")


def check_memory(wanted: int) -> None:
    """Refuse to cache more than half of the machine's memory.

    Raises:
        UsageError: `wanted` bytes are more than that.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if wanted > memory / 2:
        raise UsageError(
            f"the pictures take {wanted / 1e9:.1f} GB decoded, and this machine has {memory / 1e9:.1f} GB. "
            "Fix: --set data.cache=false reads them anew each time"
        )
