"""Reading a whole data set once, to say what is in it and what is wrong with it. Torch-free."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from lfd.contact_sheet import COLUMNS, Entry, Tile, draw_sheet, draw_tile
from lfd.data import SPLITS, UNLABELLED, Dataset, Sample, open_dataset, parse_data
from lfd.data.frames import FrameSet
from lfd.data.layout import IncompleteError
from lfd.data_report import EXAMPLES, ClassCount, DataReport, Size, SplitReport
from lfd.errors import LfdError, UsageError
from lfd.files import check_free, replacing, to_json
from lfd.preprocess import Image
from lfd.spec import Labels

SHEET_FILE, REPORT_FILE = "contact_sheet.png", "report.json"
ROWS = 3
"""Of the contact sheet, over all splits; each has one at least."""
PROBE_BYTES = 1 << 20
"""Written to see that there is room: about as much as a contact sheet."""
QUEUE = 4
"""Pictures under way for each worker: enough to keep it busy, and few, so that memory stays flat."""


class Findings(NamedTuple):
    """What was found in a data set.

    Attributes:
        report: Counts, and what is wrong.
        sheet: (H, W, 3) BGR uint8, some of its pictures with their labels laid over.
    """

    report: DataReport
    sheet: Image


def check_out(out: Path, overwrite: bool) -> None:
    """Refuse, before a long reading, a folder that its result cannot be written to. Nothing stays there.

    Raises:
        UsageError: It holds files of these names and `overwrite` is false, or it cannot be a folder.
        OSError: A file cannot be written there, or the disk is full.
    """
    check_free(out / SHEET_FILE, overwrite)
    check_free(out / REPORT_FILE, overwrite)
    nearest = next(place for place in (out.absolute(), *out.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:  # by trying: permissions say nothing of /proc, or to root
            file.write(bytes(PROBE_BYTES))
    except OSError as error:
        raise OSError(error.errno, f"cannot be written to ({error.strerror})", str(out)) from error


def check_data(
    text: str, workers: int | None = None, progress: Callable[[str, int, int], None] | None = None
) -> Findings:
    """Read every picture of a data set once, and count.

    Of a picture only counts and a hash are kept, but for those that the contact sheet shows.

    Args:
        text: `NAME:PATH`, all its splits; or `NAME:PATH@SPLIT`.
        workers: Pictures that are read at the same time; None for one a processor.
        progress: Called after each picture with split, number from 1, and how many there are.

    Raises:
        UsageError: The data set does not exist, or `workers` are given for films.
        DataError: None of its splits can be opened.
    """
    opened, missing = _open_splits(text)
    if workers is not None and any(isinstance(dataset, FrameSet) and dataset.films for dataset in opened.values()):
        raise UsageError(f"workers {workers} have no effect: {text} holds films, which are read in turn; leave it away")
    labelled = parse_data(text).name not in UNLABELLED
    tiles_each = -(-ROWS // len(opened)) * COLUMNS
    known: dict[bytes, str] = {}
    counts = {}
    for split, dataset in opened.items():
        count = counts[split] = _Count(split, dataset.labels if labelled else None, known)
        shown = {index * len(dataset) // tiles_each for index in range(tiles_each)}
        for number, seen in enumerate(_look_at_all(dataset, shown, workers or os.cpu_count() or 1), 1):
            count.add(seen, number - 1 in shown, f"picture {number} of {len(dataset)}")
            if progress is not None:
                progress(split, number, len(dataset))
    splits = tuple(count.report() for count in counts.values())
    report = DataReport(text, splits, missing, tuple(leak for count in counts.values() for leak in count.leaks))
    groups = [(f"{split.split}: {split.pictures} pictures", counts[split.split].tiles) for split in splits]
    legend = _legend(splits, next(iter(opened.values())).labels) if labelled else ()
    return Findings(report, draw_sheet(groups, legend))


def write_findings(found: Findings, out: Path) -> None:
    """Write the contact sheet and the report to a folder, both or neither.

    Raises:
        OSError: They cannot be written.
    """
    encoded, data = cv2.imencode(SHEET_FILE[-4:], found.sheet)
    assert encoded  # noqa: S101 - a PNG of 8-bit colours always can be
    with replacing(out / SHEET_FILE) as sheet, replacing(out / REPORT_FILE) as record:
        sheet.write_bytes(data.tobytes())
        record.write_text(to_json(found.report.to_record()), encoding="utf-8")


def _open_splits(text: str) -> tuple[dict[str, Dataset], dict[str, str]]:
    """Return the splits that can be opened, even if not all of their files are there, and why the others cannot.

    Raises:
        LfdError: None can; it is why the first cannot.
    """
    name, _, given = parse_data(text)
    if name in UNLABELLED:
        return {"all": open_dataset(text, "train", Labels(("unlabelled",), ((0, 0, 0),)))}, {}
    found = {split: _try_open(text, split) for split in (SPLITS if given is None else (given,))}
    opened = {split: dataset for split, dataset in found.items() if not isinstance(dataset, LfdError)}
    errors = {split: error for split, error in found.items() if isinstance(error, LfdError)}
    if not opened:
        raise next(iter(errors.values()))
    return opened, {split: str(error) for split, error in errors.items()}


def _try_open(text: str, split: str) -> Dataset | LfdError:
    try:
        return open_dataset(text, split)
    except IncompleteError as error:
        return error.dataset
    except LfdError as error:
        return error


class _Seen(NamedTuple):
    """What is kept of a picture.

    Attributes:
        name: Its own.
        size_hw: Height and width, px.
        values: (256,) pixels of each label value.
        digest: Hash of its pixels.
        tile: For the contact sheet, where it is on it.
    """

    name: str
    size_hw: tuple[int, int]
    values: NDArray[np.int64]
    digest: bytes
    tile: Tile | None


def _look(sample: Sample, labels: Labels, shown: bool) -> _Seen:
    height, width = sample.mask.shape
    # By its pixels: a Dataset need not have files, and a copy may have been saved anew.
    digest = hashlib.blake2b(np.ascontiguousarray(sample.image).data, digest_size=16, salt=f"{height}x{width}".encode())
    tile = draw_tile(sample.image, sample.mask, labels, sample.name) if shown else None
    values = np.bincount(sample.mask.ravel(), minlength=256)
    return _Seen(sample.name, (height, width), values, digest.digest(), tile)


def _look_at_all(dataset: Dataset, shown: set[int], workers: int) -> Iterator[_Seen | LfdError]:
    """Yield what is kept of each picture, in order, or why it cannot be read."""
    if isinstance(dataset, FrameSet) and dataset.films:
        for index, sample in enumerate(dataset.stream()):  # by index a film would be kept in memory
            yield sample if isinstance(sample, LfdError) else _look(sample, dataset.labels, index in shown)
        return

    def read(index: int) -> _Seen | LfdError:
        try:
            return _look(dataset[index], dataset.labels, index in shown)
        except LfdError as error:
            return error

    # Threads: OpenCV decodes and hashlib hashes without Python's lock.
    pool = ThreadPoolExecutor(workers)
    under_way: deque[Future[_Seen | LfdError]] = deque()
    try:
        for index in range(len(dataset)):
            if len(under_way) == QUEUE * workers:
                yield under_way.popleft().result()
            under_way.append(pool.submit(read, index))
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class _Count:
    """Adds up a split.

    Args:
        split: Its name.
        labels: Its classes; None for a set without labels.
        known: `split/name` of each picture of all splits by its hash; added to.
    """

    def __init__(self, split: str, labels: Labels | None, known: dict[bytes, str]) -> None:
        self._split, self._labels, self._known = split, labels, known
        self._sizes: Counter[tuple[int, int]] = Counter()
        self._pixels, self._pictures = np.zeros(256, np.int64), np.zeros(256, np.int64)
        self._broken: list[str] = []
        self._own: set[bytes] = set()
        self._examples: list[str] = []
        self._repeated = self._unlabelled = 0
        self.leaks: list[tuple[str, str]] = []
        self.tiles: list[Tile] = []

    def add(self, seen: _Seen | LfdError, shown: bool, what: str) -> None:
        """Count a picture; `what` stands on the contact sheet in place of one that cannot be read."""
        if isinstance(seen, LfdError):
            self._broken.append(str(seen))
            if shown:
                self.tiles.append(Tile(None, what))
            return
        if seen.tile is not None:
            self.tiles.append(seen.tile)
        self._sizes[seen.size_hw] += 1
        self._pixels += seen.values
        self._pictures += seen.values > 0
        if self._labels is None or seen.values[self._labels.ignore_index] == seen.values.sum():
            self._unlabelled += 1
            self._examples += [seen.name] if len(self._examples) < EXAMPLES else []
        if seen.digest in self._own:
            self._repeated += 1
        elif seen.digest in self._known:
            self.leaks.append((self._known[seen.digest], f"{self._split}/{seen.name}"))
        self._own.add(seen.digest)
        self._known.setdefault(seen.digest, f"{self._split}/{seen.name}")

    def report(self) -> SplitReport:
        """Return the sums."""
        total = int(self._pixels.sum())
        heights, widths = ([hw[axis] for hw in self._sizes] or [0] for axis in (0, 1))
        void = self._labels.ignore_index if self._labels else None
        return SplitReport(
            split=self._split,
            pictures=self._sizes.total(),
            broken=tuple(self._broken),
            sizes=tuple(Size(*hw, count) for hw, count in self._sizes.most_common(EXAMPLES)),
            different_sizes=len(self._sizes),
            smallest_hw=(min(heights), min(widths)),
            largest_hw=(max(heights), max(widths)),
            repeated=self._repeated,
            unlabelled=self._unlabelled,
            unlabelled_examples=tuple(self._examples),
            pixels=total,
            void_value=void,
            void_share=None if void is None or not total else int(self._pixels[void]) / total,
            classes=tuple(
                ClassCount(name, k, int(self._pixels[k]), int(self._pixels[k]) / max(1, total), int(self._pictures[k]))
                for k, name in enumerate(self._labels.names if self._labels else ())
            ),
        )


def _legend(splits: Sequence[SplitReport], labels: Labels) -> list[Entry]:
    """Return the classes with their share of the pixels of all splits."""
    pixels = [sum(split.classes[k].pixels for split in splits) for k in range(len(labels))]
    total = sum(split.pixels for split in splits)
    never = "never" if total else "-"
    notes = [f"{100 * n / total:.2f} %" if n else never for n in [*pixels, total - sum(pixels)]]
    named = [*zip(labels.colors, labels.names, strict=True), ((0, 0, 0), "void")]
    return [Entry(color, name, note) for (color, name), note in zip(named, notes, strict=True)]
