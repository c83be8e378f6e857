"""Batches for training: which picture comes when, and how it is varied, from the step number alone.

Every sample of a run has a number. Its picture and its randomness follow from the seed and that
number, so that the order is the same with any number of loader processes, and a resumed run goes on
with exactly the batches that the uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lfd.config import DataConfig
from lfd.console import parse_size
from lfd.data import Dataset, Sample
from lfd.errors import LfdError
from lfd.losses.common import IGNORE
from lfd.spec import Labels, Preprocess
from lfd.transforms import augment


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
        """Read everything now; loader processes then share the memory."""
        for index in range(len(self)):
            self[index]


Item = tuple[Tensor, Tensor, int]
Batch = tuple[Tensor, Tensor, Tensor]


class TrainStream(torch.utils.data.Dataset[Item]):
    """Augmented samples by their number in the run.

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

    def __getitem__(self, number: int) -> Item:
        """Return (3, H, W) BGR uint8, (H, W) int64 with IGNORE for void, and the picture's index."""
        index = self.picture(number)
        sample = self.dataset[index]
        c = self.config
        rng = np.random.default_rng((self.seed, 1, number))
        void = self.dataset.labels.ignore_index
        image, mask = augment(
            sample.image, sample.mask, self.preprocess, self.crop_hw, c.scale, c.flip, c.jitter, rng, void
        )
        target = torch.from_numpy(mask).long()
        if void != IGNORE:
            target[target == void] = IGNORE
        return torch.from_numpy(image).permute(2, 0, 1), target, index


class _Carrying(torch.utils.data.Dataset[Item | LfdError]):
    """A stream whose errors travel as values: raised in a worker they would arrive wrapped in a traceback."""

    def __init__(self, stream: TrainStream) -> None:
        self.stream = stream

    def __getitem__(self, number: int) -> Item | LfdError:
        try:
            return self.stream[number]
        except LfdError as error:
            return error


def _collate(items: list[Item | LfdError]) -> Batch | LfdError:
    good = [item for item in items if not isinstance(item, LfdError)]
    failed = next((item for item in items if isinstance(item, LfdError)), None)
    images, targets, pictures = zip(*good, strict=True) if good else ((), (), ())
    return failed or (torch.stack(images), torch.stack(targets), torch.tensor(pictures))


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)  # the processes are the parallelism, and OpenCV's pool does not survive a fork


def batches(stream: TrainStream, batch: int, first: int, last: int, workers: int, pin: bool) -> Iterator[Batch]:
    """Yield the batches of steps `first` up to, not including, `last`.

    Each is (B, 3, H, W) BGR uint8, (B, H, W) int64 and the (B,) indices of its pictures.

    Raises:
        DataError: A picture cannot be read.
    """
    loader = DataLoader(
        _Carrying(stream),
        batch_size=batch,
        sampler=range(first * batch, last * batch),
        num_workers=workers,
        pin_memory=pin,
        collate_fn=_collate,
        worker_init_fn=_start_worker if workers else None,
        # Its own generator: drawing the workers' seed from torch's would move the state that dropout draws
        # from, and a resumed run would differ from the uninterrupted one.
        generator=torch.Generator().manual_seed(stream.seed),
    )
    for item in loader:
        if isinstance(item, LfdError):
            raise item
        yield item
