from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lfd.config import DataConfig
from lfd.data import Sample, film, open_dataset
from lfd.errors import DataError, UsageError
from lfd.loader import Batch, Cached, MicroBatches, TrainStream, batches
from lfd.losses.common import IGNORE, UNKNOWN
from lfd.preprocess import Image
from lfd.spec import Labels, Preprocess
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
    pictures = [picture for part in parts for picture in part.pictures]
    return Batch(image, target, pictures, any(part.unlabelled for part in parts))


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.image, b.image) and torch.equal(a.target, b.target) and a[2:] == b[2:]


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
    image, target, pictures, unlabelled = next(batches(open_stream(root, augment), MicroBatches(4, 0, 1), 0, CPU))
    assert image.shape == (4, 3, 24, 32) and image.dtype == torch.uint8
    assert target.shape == (4, 24, 32) and target.dtype == torch.int64
    assert set(target.unique().tolist()) == {1, IGNORE} and sorted(pictures) == [0, 1, 2, 3] and not unlabelled


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


class Painted:
    """Pictures with the masks given."""

    def __init__(self, masks: Sequence[Image], void: int) -> None:
        self.masks = masks
        self.labels = Labels(("a", "b"), ((0, 0, 0), (9, 9, 9)), void)

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> Sample:
        mask = self.masks[index]
        return Sample(np.full((*mask.shape, 3), 77, np.uint8), mask, str(index))


def first_batch(stream: TrainStream, size: int, augment: str, device: torch.device = CPU) -> Batch:
    stream.config = dataclasses.replace(stream.config, augment=augment)
    return next(batches(stream, MicroBatches(size, 0, 1), 0, device))


@settings(deadline=None, max_examples=40)
@given(
    frame_hw=st.tuples(st.integers(2, 60), st.integers(2, 60)),
    base_hw=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    crop_hw=st.tuples(st.integers(2, 50), st.integers(2, 50)),
    resize=st.sampled_from(["stretch", "letterbox"]),
    scale=st.floats(0.2, 3),
    void=st.sampled_from([2, 7, 254, 255]),
    seed=st.integers(0, 999),
)
def test_what_is_unknown_void_and_outside(frame_hw, base_hw, crop_hw, resize, scale, void, seed) -> None:
    """Unlabelled pictures are UNKNOWN where they are and IGNORE beside; void in others stays IGNORE all over."""
    all_void, one_label, labelled = (np.full(frame_hw, value, np.uint8) for value in (void, void, 1))
    one_label[0, -1] = 1
    data = Painted([all_void, one_label, labelled], void)
    crop = f"{crop_hw[0]}x{crop_hw[1]}"
    config = DataConfig(crop=crop, scale=(scale, scale), resize=resize, jitter=0.0)
    stream = TrainStream(data, config, Preprocess(base_hw, resize=resize), seed)
    cpu, device = (first_batch(stream, 3, augment) for augment in ("cpu", "device"))
    assert same(cpu, device) and cpu.unlabelled
    for number, (target, picture) in enumerate(zip(cpu.target, cpu.pictures, strict=True)):
        drawn = stream.draw(number)[1]
        inside = torch.zeros(crop_hw, dtype=torch.bool)
        inside[drawn.destination.slices] = True
        inside = inside.flip(-1) if drawn.flip else inside
        assert (target[~inside] == IGNORE).all()
        if picture == 0:
            assert (target[inside] == UNKNOWN).all()
        elif picture == 1:
            assert set(target.unique().tolist()) <= {IGNORE, 1}
        else:
            assert (target[inside] == 1).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA card")
@pytest.mark.parametrize("augment", ["cpu", "device"])
def test_unlabelled_pictures_are_marked_on_a_card_too(augment: str) -> None:
    masks = [np.full((40, 60), value, np.uint8) for value in (255, 1, 255, 0)]
    stream = TrainStream(Painted(masks, 255), DataConfig(scale=(0.5, 1.0)), Preprocess((32, 48)), seed=1)
    expected = first_batch(stream, 4, "cpu")
    found = first_batch(stream, 4, augment, torch.device("cuda"))
    assert found.target.is_cuda and torch.equal(found.target.cpu(), expected.target) and found.unlabelled


@pytest.mark.parametrize("augment", ["cpu", "device"])
def test_a_void_crop_of_a_labelled_picture_is_void(augment: str) -> None:
    mask = np.full((80, 80), 255, np.uint8)
    mask[0, 0] = 0
    stream = TrainStream(Painted([mask] * 4, 255), DataConfig(scale=(4.0, 4.0)), Preprocess((16, 16)), seed=1)
    _, target, _, unlabelled = first_batch(stream, 4, augment)
    assert not unlabelled and (target != 0).any() and set(target.unique().tolist()) <= {0, IGNORE}


def write_film(path: Path, count: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    for number in range(count):
        writer.write(np.full((48, 64, 3), 5 * number, np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_film_is_learnt_from_and_read_in_this_process(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, real = os.getpid(), film.read
    reads = []

    def once_here(path: Path, wanted: Sequence[int]) -> Iterator[Image]:
        assert os.getpid() == here, "a loader process decodes the film for itself"
        reads.append(path)
        return real(path, wanted)

    monkeypatch.setattr(film, "read", once_here)
    labels = Labels(("a", "b"), ((0, 0, 0), (9, 9, 9)))
    path = write_film(tmp_path / "a.avi", 12)
    data = open_dataset(f"frames:{path}?stride=2", "train", labels)
    stream = TrainStream(data, DataConfig(scale=(0.5, 0.5)), Preprocess((24, 32)), seed=3)
    found = list(batches(stream, MicroBatches(3, 0, 4), workers, CPU))
    assert reads == [path] and sorted(p for part in found for p in part.pictures) == sorted([*range(6)] * 2)
    for part in found:
        assert part.unlabelled and set(part.target.unique().tolist()) == {UNKNOWN, IGNORE}
        assert ((part.target == UNKNOWN).flatten(1).sum(1) == 12 * 16).all()
