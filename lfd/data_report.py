"""What was found in a data set: the record, and the record as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

EXAMPLES = 10
"""Names and sizes that are given where all would be too many."""


@dataclass(frozen=True)
class Size:
    """How many pictures have a size, in pixels."""

    height: int
    width: int
    pictures: int


@dataclass(frozen=True)
class ClassCount:
    """How often a class occurs in a split.

    Attributes:
        name: Of the class.
        value: Its label value, in the masks that the data set gives.
        pixels: How many.
        share: Of all pixels, void included, in [0, 1].
        pictures: In which it occurs.
    """

    name: str
    value: int
    pixels: int
    share: float
    pictures: int


@dataclass(frozen=True)
class SplitReport:
    """What a split holds.

    Attributes:
        split: Its name.
        pictures: How many could be read.
        broken: What is wrong with each that could not, one message a picture.
        sizes: The most frequent, at most EXAMPLES.
        different_sizes: How many there are.
        smallest_hw: Least height and least width, of whichever pictures.
        largest_hw: Likewise the largest.
        repeated: Pictures with the same pixels as one before in the split.
        unlabelled: Pictures without any label.
        unlabelled_examples: The first of them.
        pixels: Of all pictures that could be read.
        void_value: Label value of void; None in a set without labels.
        void_share: Of all pixels, in [0, 1]; likewise, and None where no picture could be read.
        classes: Each class; likewise none.
    """

    split: str
    pictures: int
    broken: tuple[str, ...]
    sizes: tuple[Size, ...]
    different_sizes: int
    smallest_hw: tuple[int, int]
    largest_hw: tuple[int, int]
    repeated: int
    unlabelled: int
    unlabelled_examples: tuple[str, ...]
    pixels: int
    void_value: int | None
    void_share: float | None
    classes: tuple[ClassCount, ...]

    @property
    def never(self) -> tuple[str, ...]:
        """Names of the classes that do not occur; none where no picture could be read."""
        return tuple(c.name for c in self.classes if self.pictures and not c.pictures)


@dataclass(frozen=True)
class DataReport:
    """What a data set holds, and what is wrong with it.

    Attributes:
        data: As typed.
        splits: Those that could be opened.
        missing: Why the others could not, by name.
        leaks: Pictures with the same pixels in two splits, as `split/name` of both.
    """

    data: str
    splits: tuple[SplitReport, ...]
    missing: Mapping[str, str]
    leaks: tuple[tuple[str, str], ...]

    @property
    def failures(self) -> tuple[str, ...]:
        """What keeps the set from being trained on: no train or val split, and broken pictures.

        The labels of many test splits are withheld, so that the lack of one is no failure.
        """
        absent = (f"{split}: {why}" for split, why in self.missing.items() if split != "test")
        return (*absent, *(message for split in self.splits for message in split.broken))

    def to_record(self) -> dict[str, Any]:
        """Return it as a value for JSON."""
        record = asdict(self)
        for split, found in zip(record["splits"], self.splits, strict=True):
            split["never"] = found.never
        return record | {"failures": self.failures}


def render(report: DataReport) -> str:
    """Return the report as tables and notes, lines of text without a newline at the end.

    Failures are not among them: they are errors, which a command prints as such.
    """
    head = ("split", "pictures", "broken", "repeated", "unlabelled", "void", "height x width")
    rows = [head, *(_split_row(split) for split in report.splits)]
    lines = [report.data, "", *_table(rows)]
    if any(split.classes for split in report.splits):
        lines += ["", *_table(_class_rows(report.splits))]
    notes = _notes(report)
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _split_row(split: SplitReport) -> tuple[str, ...]:
    counts = (split.pictures, len(split.broken), split.repeated, split.unlabelled)
    void = "-" if split.void_share is None else f"{split.void_share:.2%}"
    return split.split, *map(str, counts), void, _sizes(split)


def _sizes(split: SplitReport) -> str:
    if not split.sizes:
        return "-"
    most = split.sizes[0]
    text = f"{most.height}x{most.width}"
    if split.different_sizes == 1:
        return text
    (h0, w0), (h1, w1) = split.smallest_hw, split.largest_hw
    return (
        f"{text} ({most.pictures / split.pictures:.0%}) and {split.different_sizes - 1} more; "
        f"{h0} to {h1} high, {w0} to {w1} wide"
    )


def _class_rows(splits: tuple[SplitReport, ...]) -> list[tuple[str, ...]]:
    rows = [("class", "value", *(cell for split in splits for cell in (f"{split.split} %", "in")))]
    for index, first in enumerate(splits[0].classes):
        counts = [split.classes[index] for split in splits]
        cells = [cell for c in counts for cell in (f"{100 * c.share:.2f}" if c.pictures else "-", str(c.pictures))]
        rows.append((first.name, str(first.value), *cells))
    void = [
        cell for split in splits for cell in ("-" if split.void_share is None else f"{100 * split.void_share:.2f}", "")
    ]
    return [*rows, ("void", str(splits[0].void_value), *void)]


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Align columns: the first and text to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    lines = []
    for row in rows:
        cells = [
            cell if (at == last and not _is_number(rows, last)) else cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _is_number(rows: list[tuple[str, ...]], column: int) -> bool:
    return all(not row[column] or row[column].replace(".", "").isdecimal() for row in rows[1:])


def _notes(report: DataReport) -> list[str]:
    notes = []
    for split in report.splits:
        if split.classes and not split.pictures:
            notes.append(f"{split.split}: no label could be read, so that nothing is known of its classes")
        if split.classes and split.unlabelled:
            notes.append(f"{split.split}: without any label: {_some(split.unlabelled_examples, split.unlabelled)}")
        if split.never:
            notes.append(f"{split.split}: never occur: {_some(split.never[:EXAMPLES], len(split.never))}")
    if report.leaks:
        pairs = tuple(f"{a} = {b}" for a, b in report.leaks[:EXAMPLES])
        notes.append(f"the same picture in two splits: {_some(pairs, len(report.leaks))}")
    notes += [f"{split}: {why}" for split, why in report.missing.items() if split == "test"]
    return [f"note     {note}" for note in notes]


def _some(examples: tuple[str, ...], count: int) -> str:
    more = count - len(examples)
    return ", ".join(examples) + (f" and {more} more" if more else "")
