from __future__ import annotations

import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lfd.config import DataConfig
from lfd.data import open_dataset
from lfd.errors import DataError, UsageError
from lfd.loader import Batch, Cached, MicroBatches, TrainStream, batches
from lfd.losses.common import IGNORE
from lfd.spec import Preprocess
from tests.conftest import make_folder

CPU = torch.device("cpu")


def open_stream(folder: Path, augment: str = "cpu") -> TrainStream:
    config = DataConfig(augment=augment)
    return TrainStream(open_dataset(f"folder:{folder}", "train"), config, Preprocess((24, 32)), seed=3)


@pytest.fixture
def stream(folder: Path) -> TrainStream:
    return open_stream(folder)


def join(parts: list[Batch]) -> Batch:
    image, target = torch.cat([part.image for part in parts]), torch.cat([part.target for part in parts])
    return Batch(image, target, [picture for part in parts for picture in part.pictures])


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.image, b.image) and torch.equal(a.target, b.target) and a.pictures == b.pictures


def test_an_epoch_shows_every_picture_once_and_epochs_differ(stream: TrainStream) -> None:
    epochs = [[stream.picture(n) for n in range(e * 16, e * 16 + 16)] for e in range(3)]
    assert all(sorted(epoch) == list(range(16)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [stream.picture(n) for n in range(16)] == epochs[0]


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(0, 9), st.integers(0, 4))
def test_every_sample_of_a_step_is_one_ranks_and_one_parts(size, world, accumulate, first, steps) -> None:
    batch = size * world * accumulate
    ranks = [MicroBatches(batch, first, first + steps, rank, world, accumulate) for rank in range(world)]
    parts = [list(rank) for rank in ranks]
    assert all(len(r) == len(p) == steps * accumulate for r, p in zip(ranks, parts, strict=True))
    assert all(len(part) == size for rank in parts for part in rank)
    for index, (whole,) in enumerate(zip(MicroBatches(batch, first, first + steps), strict=True)):
        step = range(index * accumulate, (index + 1) * accumulate)
        # Part by part, and rank by rank within a part, it is the order of the one-process batch.
        assert [n for a in step for rank in parts for n in rank[a]] == whole
        assert whole == list(range((first + index) * batch, (first + index + 1) * batch))


@pytest.mark.parametrize(("batch", "world", "accumulate", "fix"), [(10, 2, 3, 12), (2, 4, 1, 4), (0, 1, 1, 1)])
def test_a_batch_that_does_not_divide_is_refused(batch: int, world: int, accumulate: int, fix: int) -> None:
    with pytest.raises(UsageError, match=rf"train\.batch = {batch} .*{world} processes.*train\.batch={fix}$"):
        MicroBatches(batch, 0, 1, 0, world, accumulate)


@pytest.mark.parametrize("augment", ["cpu", "device"])
def test_batches_are_the_same_from_any_start_and_with_any_number_of_workers(folder: Path, augment: str) -> None:
    stream = open_stream(folder, augment)
    whole = list(batches(stream, MicroBatches(4, 0, 6), 0, CPU))
    assert len(whole) == 6
    for first, workers in ((0, 1), (4, 0), (3, 2)):
        part = list(batches(stream, MicroBatches(4, first, 6), workers, CPU))
        assert all(same(a, b) for a, b in zip(whole[first:], part, strict=True))


@pytest.mark.parametrize("augment", ["cpu", "device"])
@pytest.mark.parametrize(("world", "accumulate"), [(1, 4), (2, 2), (4, 1)])
def test_a_step_is_the_same_over_ranks_and_parts(folder: Path, augment: str, world: int, accumulate: int) -> None:
    stream = open_stream(folder, augment)
    ranks = [list(batches(stream, MicroBatches(8, 2, 4, rank, world, accumulate), 0, CPU)) for rank in range(world)]
    for step, whole in enumerate(batches(stream, MicroBatches(8, 2, 4), 0, CPU)):
        parts = [rank[step * accumulate + a] for a in range(accumulate) for rank in ranks]
        assert same(join(parts), whole)


def test_crops_are_the_same_samples_wherever_they_are_made(folder: Path) -> None:
    cpu, device, auto = (
        list(batches(open_stream(folder, augment), MicroBatches(8, 0, 3), 0, CPU))
        for augment in ("cpu", "device", "auto")
    )
    for a, b, c in zip(cpu, device, auto, strict=True):
        assert torch.equal(a.target, b.target) and a.pictures == b.pictures
        assert (a.image.int() - b.image.int()).abs().max() <= 2  # a level, times the jitter's gain
        assert a.image.stride() == b.image.stride() and a.target.stride() == b.target.stride()
        assert same(a, c)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA card")
@pytest.mark.parametrize("augment", ["cpu", "device", "auto"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_on_a_card_are_those_of_the_cpu(folder: Path, augment: str, workers: int) -> None:
    expected = batches(open_stream(folder), MicroBatches(8, 0, 3), 0, CPU)
    found = batches(open_stream(folder, augment), MicroBatches(8, 0, 3), workers, torch.device("cuda"))
    for a, b in zip(expected, found, strict=True):
        assert b.image.is_cuda and b.target.is_cuda and torch.equal(a.target, b.target.cpu())
        assert (a.image.int() - b.image.cpu().int()).abs().max() <= (0 if augment == "cpu" else 2)


@pytest.mark.parametrize("augment", ["cpu", "device"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_the_same_error_from_a_worker(tmp_path: Path, augment: str, workers: int) -> None:
    root = make_folder(tmp_path, {"train": 4})
    (root / "images/train/002.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"images/train/002\.png: not a picture") as caught:
        list(batches(open_stream(root, augment), MicroBatches(2, 0, 2), workers, CPU))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("augment", ["cpu", "device"])
def test_a_batch_is_bgr_uint8_with_void_at_ignore(tmp_path: Path, augment: str) -> None:
    root = make_folder(tmp_path, {"train": 4})
    classes = root / "labels.toml"
    classes.write_text(classes.read_text().replace("ignore = 255", "ignore = 7"))
    mask = np.ones((48, 64), np.uint8)
    mask[:24] = 7
    for path in (root / "masks/train").iterdir():
        cv2.imwrite(str(path), mask)
    image, target, pictures = next(batches(open_stream(root, augment), MicroBatches(4, 0, 1), 0, CPU))
    assert image.shape == (4, 3, 24, 32) and image.dtype == torch.uint8
    assert target.shape == (4, 24, 32) and target.dtype == torch.int64
    assert set(target.unique().tolist()) == {1, IGNORE} and sorted(pictures) == [0, 1, 2, 3]


@pytest.mark.parametrize("augment", ["cpu", "device"])
def test_loading_leaves_torchs_own_randomness_alone(folder: Path, augment: str) -> None:
    before = torch.get_rng_state()
    list(batches(open_stream(folder, augment), MicroBatches(4, 0, 2), 1, CPU))
    assert torch.equal(torch.get_rng_state(), before)


def test_pictures_of_different_sizes_make_one_batch(tmp_path: Path) -> None:
    small = make_folder(tmp_path / "small", {"train": 2})
    large = make_folder(tmp_path / "large", {"train": 2}, size_hw=(90, 70))
    for kind in ("images", "masks"):
        (large / kind / "train/000.png").rename(small / kind / "train/009.png")
    cpu, device = (next(batches(open_stream(small, a), MicroBatches(3, 0, 1), 0, CPU)) for a in ("cpu", "device"))
    assert torch.equal(cpu.target, device.target) and cpu.image.shape == device.image.shape == (3, 3, 24, 32)


class Counting:
    """A data set that counts its reads, and fails at some."""

    def __init__(self, folder: Path, broken: tuple[int, ...] = ()) -> None:
        self.inner = open_dataset(f"folder:{folder}", "train")
        self.labels, self.broken = self.inner.labels, broken
        self.reads: list[int] = []
        self.threads: set[int] = set()

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int):
        self.reads.append(index)
        self.threads.add(threading.get_ident())
        if index in self.broken:
            raise DataError(f"picture {index} is broken")
        return self.inner[index]


def test_the_cache_reads_each_picture_once_and_not_in_this_thread(folder: Path) -> None:
    source = Counting(folder)
    cached = Cached(source)
    cached.fill()
    assert sorted(source.reads) == list(range(16)) and threading.get_ident() not in source.threads
    assert cached[2].name == "002" and cached[2] is cached[2] and len(source.reads) == 16


def test_the_cache_says_the_first_broken_picture(folder: Path) -> None:
    for _ in range(5):
        with pytest.raises(DataError, match="picture 5 is broken"):
            Cached(Counting(folder, broken=(5, 6, 14))).fill()
