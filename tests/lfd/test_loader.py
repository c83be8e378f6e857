from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lfd.config import DataConfig
from lfd.data import open_dataset
from lfd.errors import DataError
from lfd.loader import Cached, TrainStream, batches
from lfd.losses.common import IGNORE
from lfd.spec import Preprocess
from tests.conftest import make_folder


@pytest.fixture
def stream(folder: Path) -> TrainStream:
    return TrainStream(open_dataset(f"folder:{folder}", "train"), DataConfig(), Preprocess((24, 32)), seed=3)


def test_an_epoch_shows_every_picture_once_and_epochs_differ(stream: TrainStream) -> None:
    epochs = [[stream.picture(n) for n in range(e * 16, e * 16 + 16)] for e in range(3)]
    assert all(sorted(epoch) == list(range(16)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [stream.picture(n) for n in range(16)] == epochs[0]


def test_batches_are_the_same_from_any_start_and_with_any_number_of_workers(stream: TrainStream) -> None:
    whole = list(batches(stream, 4, 0, 6, 0, pin=False))
    for first, workers in ((0, 1), (4, 0), (3, 2)):
        part = list(batches(stream, 4, first, 6, workers, pin=False))
        assert len(part) == 6 - first
        for a, b in zip(whole[first:], part, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_the_same_error_from_a_worker(tmp_path: Path, workers: int) -> None:
    root = make_folder(tmp_path, {"train": 4})
    (root / "images/train/002.png").write_bytes(b"not a picture")
    stream = TrainStream(open_dataset(f"folder:{root}", "train"), DataConfig(), Preprocess((24, 32)), seed=3)
    with pytest.raises(DataError, match=r"images/train/002\.png: not a picture") as caught:
        list(batches(stream, 2, 0, 2, workers, pin=False))
    assert "\n" not in str(caught.value)


def test_a_batch_is_bgr_uint8_with_void_at_ignore(stream: TrainStream) -> None:
    image, target, pictures = next(batches(stream, 4, 0, 1, 0, pin=False))
    assert image.shape == (4, 3, 24, 32) and image.dtype == torch.uint8
    assert target.shape == (4, 24, 32) and target.dtype == torch.int64
    assert set(target.unique().tolist()) <= {0, 1, 2, IGNORE} and pictures.shape == (4,)


def test_the_cache_reads_each_picture_once(folder: Path) -> None:
    class Counting:
        def __init__(self) -> None:
            self.inner = open_dataset(f"folder:{folder}", "val")
            self.labels, self.reads = self.inner.labels, 0

        def __len__(self) -> int:
            return len(self.inner)

        def __getitem__(self, index: int):
            self.reads += 1
            return self.inner[index]

    source = Counting()
    cached = Cached(source)
    cached.fill()
    assert cached[2].name == "002" and cached[2] is cached[2] and source.reads == 4
