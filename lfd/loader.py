"""Batches for training: which picture comes when, and how it is varied, from the step number alone.

Every sample of a run has a number. Its picture and its randomness follow from the seed and that
number, so that the samples of a step are the same with any number of loader processes, training
processes and accumulated parts, wherever their crops are made, and a resumed run goes on with exactly
the batches that the uninterrupted one would have seen.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lfd.config import DataConfig
from lfd.console import parse_size
from lfd.data import Dataset, Sample
from lfd.data.frames import FrameSet
from lfd.device_transforms import apply_crops, upload
from lfd.errors import LfdError, UsageError
from lfd.losses.common import IGNORE, UNKNOWN
from lfd.packing import Item, pack, unpack
from lfd.spec import Labels, Preprocess
from lfd.transforms import Crop, apply_crop, draw_crop


class Cached:
    """A data set that keeps what it has decoded in memory, as it was read."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._samples: dict[int, Sample] = {}
        self.labels: Labels = dataset.labels

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample, reading it the first time."""
        if index not in self._samples:
            self._samples[index] = self._dataset[index]
        return self._samples[index]

    def fill(self) -> None:
        """Read everything now, in threads; loader processes that are forked later share the memory.

        Raises:
            DataError: A picture cannot be read: the first such by its index, whichever thread met one first.
        """
        # OpenCV decodes without Python's lock. map gives results and errors in order, and on an error
        # takes back what has not begun.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(self.__getitem__, range(len(self))):
                pass


@dataclass(frozen=True)
class MicroBatches:
    """The numbers of the samples that one process takes, part by part.

    A step's batch is the same samples for any `world` and `accumulate`: part a of rank r in step s is
    s * batch + (a * world + r) * m + [0, m), where m = batch / (world * accumulate).

    Attributes:
        batch: Pictures a step, over all processes and parts.
        first: Step to begin with.
        last: Step to end before.
        rank: Of this process.
        world: Number of processes.
        accumulate: Parts a step.

    Raises:
        UsageError: A batch does not divide evenly over processes and parts.
    """

    batch: int
    first: int
    last: int
    rank: int = 0
    world: int = 1
    accumulate: int = 1

    def __post_init__(self) -> None:
        parts = self.world * self.accumulate
        if self.batch < 1 or self.batch % parts:
            fitting = parts * max(1, -(-self.batch // parts))
            raise UsageError(
                f"train.batch = {self.batch} does not divide evenly over {self.world} processes with "
                f"train.accumulate = {self.accumulate}; expected a multiple of {parts}. "
                f"Fix: --set train.batch={fitting}"
            )

    @property
    def size(self) -> int:
        """Pictures a part, on each process."""
        return self.batch // (self.world * self.accumulate)

    def __len__(self) -> int:
        return max(0, self.last - self.first) * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the numbers of each part of each step."""
        for step in range(self.first, self.last):
            for part in range(self.accumulate):
                begin = step * self.batch + (part * self.world + self.rank) * self.size
                yield list(range(begin, begin + self.size))


class Batch(NamedTuple):
    """What one part of a step is computed from.

    Attributes:
        image: (B, 3, H, W) BGR uint8, on the device.
        target: (B, H, W) int64, on the device: IGNORE for void and beside the picture, UNKNOWN for all of a picture
            that has no label anywhere.
        pictures: Index in the data set of each picture.
        unlabelled: Some picture has no label anywhere.
    """

    image: Tensor
    target: Tensor
    pictures: list[int]
    unlabelled: bool


class TrainStream:
    """Training samples by their number in the run.

    Args:
        dataset: The pictures.
        config: How they are varied.
        preprocess: The model's input.
        seed: The run's.
    """

    def __init__(self, dataset: Dataset, config: DataConfig, preprocess: Preprocess, seed: int) -> None:
        self.dataset = dataset
        self.config = config
        self.preprocess = preprocess
        self.crop_hw = parse_size(config.crop) if config.crop else preprocess.size_hw
        self.seed = seed
        self._epoch = -1
        self._order: np.ndarray[tuple[int], np.dtype[np.int64]] = np.empty(0, np.int64)

    def picture(self, number: int) -> int:
        """Return which picture the sample shows: each epoch is a permutation of all."""
        epoch, position = divmod(number, len(self.dataset))
        if epoch != self._epoch:
            self._epoch, self._order = (
                epoch,
                np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.dataset)),
            )
        return int(self._order[position])

    def draw(self, number: int) -> tuple[Sample, Crop]:
        """Return a sample's picture as it was read, and the crop to make of it.

        Raises:
            DataError: The picture cannot be read.
        """
        sample = self.dataset[self.picture(number)]
        rng = np.random.default_rng((self.seed, 1, number))
        hw = (sample.mask.shape[0], sample.mask.shape[1])
        return sample, draw_crop(hw, self.preprocess, self.crop_hw, self.config, rng)


class _Items(torch.utils.data.Dataset[Item | LfdError]):
    """What a loader process makes of a number.

    Errors travel as values: raised in a worker they would arrive wrapped in a traceback.
    """

    def __init__(self, stream: TrainStream, make_crops: bool) -> None:
        self.stream = stream
        self.make_crops = make_crops

    def __getitem__(self, number: int) -> Item | LfdError:
        stream = self.stream
        try:
            sample, crop = stream.draw(number)
        except LfdError as error:
            return error
        void, image, mask = stream.dataset.labels.ignore_index, sample.image, sample.mask
        # Of the picture as read: a crop of a labelled picture can be void all over, and is void then. No value is above
        # void, so that the least tells; most pictures are settled by the one in the middle.
        middle = mask[mask.shape[0] // 2, mask.shape[1] // 2]
        unlabelled = bool(middle == void and mask.min() == void)
        if unlabelled:
            mask = np.zeros_like(mask)
        if self.make_crops:
            image, mask = apply_crop(image, mask, crop, stream.preprocess, void)
            return Item(image, mask, None, stream.picture(number), unlabelled)
        window = crop.source.slices  # what a crop does not show need not travel
        return Item(image[window], mask[window], crop.at_origin(), stream.picture(number), unlabelled)


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)  # the processes are the parallelism, and OpenCV's pool does not survive a fork


def batches(stream: TrainStream, parts: MicroBatches, workers: int, device: torch.device) -> Iterator[Batch]:
    """Yield a batch for each of the parts, on the device.

    `stream.config.augment` says where crops are made: `cpu`, with OpenCV where pictures are decoded;
    `device`, with torch, so that the loader only decodes; `auto`, on the device when that is a GPU.

    Args:
        stream: The samples.
        parts: Which of them, and how many at a time.
        workers: Loader processes; 0 loads in this one.
        device: Where the batches are wanted.

    Raises:
        DataError: A picture cannot be read.
    """
    where = stream.config.augment
    on_device = where == "device" or (where == "auto" and device.type == "cuda")
    void = stream.dataset.labels.ignore_index
    if workers and isinstance(stream.dataset, FrameSet):
        stream.dataset.read_films()  # here, once: the processes that are forked next share them
    loader: DataLoader[Any] = DataLoader(
        _Items(stream, make_crops=not on_device),
        batch_sampler=parts,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        collate_fn=pack,
        worker_init_fn=_start_worker if workers else None,
        # Its own generator: drawing the workers' seed from torch's would move the state that dropout draws
        # from, and a resumed run would differ from the uninterrupted one.
        generator=torch.Generator().manual_seed(stream.seed),
    )
    for packed in loader:
        if isinstance(packed, LfdError):
            raise packed
        images, masks = unpack(upload(packed.pixels, device), packed.shapes_hw)
        if on_device:
            image, target = apply_crops(images, masks, packed.crops, stream.preprocess, void, device)
        else:
            image, target = torch.stack(images).permute(0, 3, 1, 2).contiguous(), torch.stack(masks).long()
        outside, unlabelled = target == void, any(packed.unlabelled)
        if unlabelled:
            target.masked_fill_(upload(torch.tensor(packed.unlabelled), device)[:, None, None], UNKNOWN)
        target.masked_fill_(outside, IGNORE)
        yield Batch(image, target, packed.pictures, unlabelled)
