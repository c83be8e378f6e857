"""Finding the files of a published data set, and saying what is missing where.

A folder is read once, however many pictures it holds; no file is looked at before it is read.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from lfd.data.base import AS_STORED, PairedFiles, Pairs
from lfd.errors import DataError
from lfd.spec import Labels

MAX_LIST_BYTES = 1 << 24


class IncompleteError(DataError):
    """A data set some of whose pictures or labels are not there.

    Attributes:
        dataset: All of it; what is not there is an error when it is read.
    """

    def __init__(self, message: str, dataset: PairedFiles) -> None:
        super().__init__(message)
        self.dataset = dataset


def find_folders(name: str, path: str, needs: Sequence[Sequence[str]], inside: Sequence[str] = ()) -> list[Path]:
    """Find the folders that a data set is made of.

    Args:
        name: The data set's, for messages.
        path: Where the user says that it is.
        needs: For each folder that it needs, the relative paths under which it is found, the usual one first.
        inside: Folders in which the whole may lie, relative to `path`.

    Returns:
        The folder of each need.

    Raises:
        DataError: One is missing; the message names those that are, and the place that was meant, if it is near.
    """
    if not path:
        raise DataError(f"{name}: names no place; expected the PATH of a folder")
    root = Path(os.path.expanduser(path))  # noqa: PTH111 - it leaves the name of a user that does not exist as it is
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; {name}: expects {_wanted(needs)} in it")
    places = [root, *(root / inner for inner in inside)]
    for place in places:
        found = _found(place, needs)
        if None not in found:
            return [folder for folder in found if folder is not None]
    near = [*(root / entry.name for entry in _entries(root)[:100] if entry.is_dir()), *root.absolute().parents[:3]]
    near += [place / inner for place in near for inner in inside]
    meant = next((place for place in near if None not in _found(place, needs)), None)
    place = max(places, key=lambda place: len(needs) - _found(place, needs).count(None))
    missing = [need for need, folder in zip(needs, _found(place, needs), strict=True) if folder is None]
    raise DataError(
        f"{place}: no {_wanted(missing)} here; {name}: expects {_wanted(needs)} in one folder; "
        f"{f'did you mean {meant}?' if meant else _holds(place)}"
    )


def _holds(folder: Path) -> str:
    names = sorted(entry.name + "/" * entry.is_dir() for entry in _entries(folder))
    return f"it holds {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}" if names else "it is empty"


def _found(place: Path, needs: Sequence[Sequence[str]]) -> list[Path | None]:
    return [next((place / way for way in ways if (place / way).is_dir()), None) for ways in needs]


def _wanted(needs: Sequence[Sequence[str]]) -> str:
    return " and ".join(" or ".join(f"{way}/" for way in ways) for ways in needs)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what a folder holds, but for hidden files, such as those that macOS packs into archives."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); the data set has files there") from error


def folders_in(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted.

    Raises:
        DataError: It cannot be read.
    """
    return sorted(entry.name for entry in _entries(folder) if entry.is_dir())


def files_in(folder: Path, *suffixes: str) -> list[str]:
    """Return the names in a folder that end in one of the suffixes, in either case, sorted.

    Raises:
        DataError: It cannot be read, or there is none.
    """
    ends = tuple(suffix.lower() for suffix in suffixes)
    names = sorted(entry.name for entry in _entries(folder) if entry.name.lower().endswith(ends))
    if not names:
        raise DataError(f"{folder}: no pictures *{' *'.join(suffixes)} in this folder")
    return names


def pictures_in(folder: Path, *suffixes: str) -> list[str]:
    """Return the names of the pictures in a folder, as `files_in` does; each has the label of its name.

    Raises:
        DataError: The folder cannot be read, holds none, or holds two that differ in the suffix alone.
    """
    names = files_in(folder, *suffixes)
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(name.rpartition(".")[0], name)) != name:
            raise two_of_a_name(folder, other, name)
    return names


def two_of_a_name(folder: Path, one: str, other: str) -> DataError:
    """Return the error for two pictures that one label would belong to."""
    return DataError(
        f"{folder}: {one} and {other} have the same label file; expected one picture a name. Fix: remove one"
    )


def read_lines(listing: Path) -> list[str]:
    """Read a list of pictures: its lines that are not blank, without the blanks around them.

    Raises:
        DataError: It is missing, too long or not text.
    """
    try:
        if listing.stat().st_size > MAX_LIST_BYTES:
            raise DataError(f"{listing}: larger than {MAX_LIST_BYTES} bytes; expected one name a line")
        lines = listing.read_text(encoding="utf-8-sig").splitlines()  # some editors put a mark before the first name
    except OSError as error:
        raise DataError(f"{listing}: cannot be read ({error.strerror}); expected one name a line") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{listing}: not UTF-8 text ({error.reason}); expected one name a line, as UTF-8") from error
    return [line.strip() for line in lines if line.strip()]


def read_names(listing: Path) -> list[str]:
    """Read a list of pictures, one a line: its name, or the paths of picture and label, which are reduced to the name.

    Raises:
        DataError: It is missing, too long, not text, or names a picture twice.
    """
    names = [Path(line.split()[0]).stem for line in read_lines(listing)]
    for name, count in Counter(names).most_common(1):
        if count > 1:
            raise DataError(f"{listing}: {name!r} stands in it {count} times; expected each picture once")
    return names


class Coding(NamedTuple):
    """How one kind of label files stores the classes.

    Attributes:
        suffix: Takes the place of the picture's in the file name.
        values: Stored value of each class, in order.
        void: Stored values that mean void.
    """

    suffix: str
    values: Sequence[int]
    void: Sequence[int]


def pair(images: Path, masks: Path, suffix: str, label_suffix: str) -> Pairs:
    """Return each picture in a folder with the place of its label.

    Raises:
        DataError: The pictures' folder cannot be read, or holds none.
    """
    cut = len(suffix)
    names = files_in(images, suffix)
    return [(f"{images}/{name}", f"{masks}/{name[:-cut]}{label_suffix}") for name in names]


def missing_files(paths: Iterable[str]) -> list[str]:
    """Return the files that are not there.

    Raises:
        DataError: A folder is there and cannot be read.
    """
    held: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, _, name = path.rpartition("/")
        if folder not in held:
            place = Path(folder)
            held[folder] = {entry.name for entry in _entries(place)} if place.is_dir() else set()
        if name not in held[folder]:
            missing.append(path)
    return missing


def check_complete(dataset: PairedFiles) -> PairedFiles:
    """Return a data set as it is, if all its files are there.

    Raises:
        IncompleteError: Some are not.
        DataError: There is not one picture with its label, or a folder cannot be read.
    """
    count = len(dataset)
    pictures = missing_files(picture for picture, _ in dataset.pairs)
    labels = missing_files(mask for _, mask in dataset.pairs)
    if pictures:
        message = f"{pictures[0]}: no such picture ({len(pictures)} of {count} listed ones are missing)"
    elif labels:
        message = f"{labels[0]}: no such label file ({len(labels)} of {count} pictures have none)"
    else:
        return dataset
    missing = {*pictures, *labels}
    if all(missing.intersection(pair) for pair in dataset.pairs):
        raise DataError(message)
    raise IncompleteError(message, dataset)


def open_complete(labels: Labels, pairs: Callable[[str], Pairs], codings: Sequence[Coding]) -> PairedFiles:
    """Open the first kind of label files that every picture has.

    Args:
        labels: The classes.
        pairs: From the suffix of a kind to the pairs.
        codings: The kinds.

    Raises:
        IncompleteError: None is complete; it is about the one of which least is missing.
        DataError: Likewise, where not one picture has its label.
    """
    kinds = []
    for coding in codings:
        kind = PairedFiles(labels, pairs(coding.suffix), coding.values, coding.void, flags=AS_STORED)
        missing = missing_files(mask for _, mask in kind.pairs)
        if not missing:
            return kind
        kinds.append((len(missing), kind))
    return check_complete(min(kinds, key=lambda counted: counted[0])[1])


def withheld(name: str, what: str) -> DataError:
    """Return the error for a test split whose labels its makers keep."""
    return DataError(
        f"{name}: the labels of {what}'s test split are withheld by its makers; expected @val, or frames:FOLDER for "
        "the pictures alone"
    )
