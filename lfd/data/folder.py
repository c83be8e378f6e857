"""Your own data set: `folder:PATH`.

    PATH/labels.toml                 names, colours and the void value
    PATH/images/  PATH/masks/        pictures (.png .jpg .jpeg), labels (.png), same names
    PATH/train.txt val.txt test.txt  one name a line, without suffix; or else
    PATH/images/train/ PATH/masks/train/ ...   a folder a split

labels.toml:

    ignore = 255                     # optional, 255
    [[class]]
    name = "road"
    color = [128, 64, 128]           # RGB

The classes' label values are their positions, from 0.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lfd.data.base import Dataset, PairedFiles, Pairs
from lfd.data.layout import check_complete, pictures_in, read_lines, two_of_a_name
from lfd.errors import DataError, LfdError, unknown
from lfd.spec import Labels

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_TOML_BYTES = 1 << 20


def read_labels(path: Path) -> Labels:
    """Read a labels.toml.

    Raises:
        DataError: Missing, not TOML, or its classes are not valid.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; folder: expects the names and colours of the classes there")
    try:
        if path.stat().st_size > MAX_TOML_BYTES:
            raise ValueError(f"larger than {MAX_TOML_BYTES} bytes")
        record: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        _check_keys(record, ("ignore", "class"))
        classes = record.get("class")
        if not isinstance(classes, list) or not classes:
            raise ValueError("no [[class]] in it")
        names, colors = zip(*(_read_class(position, entry) for position, entry in enumerate(classes)), strict=True)
        return Labels(names, colors, int(record.get("ignore", 255)))
    except (ValueError, TypeError, RecursionError, LfdError) as error:
        raise DataError(
            f'{path}: not a valid list of classes ({error}); expected for each [[class]], name = "road", '
            "color = [128, 64, 128]"
        ) from error


def _check_keys(section: dict[str, Any], keys: Sequence[str]) -> None:
    for key in section:
        if key not in keys:  # such as a label value, which would be believed and is not obeyed
            raise unknown("key", key, keys)


def _read_class(position: int, entry: Any) -> tuple[str, tuple[int, int, int]]:
    """Return name and RGB colour of a class.

    Raises:
        LfdError: A key that does not exist.
        ValueError: One that is missing, or a value that does not fit.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"class {position} is {entry!r}"[:80])
    _check_keys(entry, ("name", "color"))
    for key in ("name", "color"):
        if key not in entry:
            raise ValueError(f"class {position} has no {key}")
    color = entry["color"]
    if not isinstance(color, list) or len(color) != 3 or not all(type(v) is int and 0 <= v <= 255 for v in color):
        raise ValueError(f"color {color!r:.40} of class {position}; expected three whole numbers from 0 to 255")
    return str(entry["name"]), (color[0], color[1], color[2])


def _pairs(root: Path, split: str) -> Pairs:
    """Return the pictures of a split with the places of their labels, in order."""
    listing = root / f"{split}.txt"
    if listing.is_file():
        return [_listed(listing, name) for name in read_lines(listing)]
    images, masks = root / "images" / split, root / "masks" / split
    for wanted in (images, masks):
        if not wanted.is_dir():
            raise DataError(f"{wanted}: no such folder, and no {listing}; folder: expects one or the other")
    names = pictures_in(images, *SUFFIXES)
    return [(f"{images}/{name}", f"{masks}/{name.rpartition('.')[0]}.png") for name in names]


def _listed(listing: Path, name: str) -> tuple[str, str]:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"{listing}: name {name!r} points outside the data set; expected a plain name")
    images, masks = listing.parent / "images", listing.parent / "masks"
    suffix = Path(name).suffix
    stem = name[: -len(suffix)] if suffix.lower() in SUFFIXES else name
    if stem != name and (images / name).is_file():
        found = [name]
    else:
        found = [file for file in (f"{stem}{ending}" for ending in SUFFIXES) if (images / file).is_file()]
    if len(found) > 1:
        raise two_of_a_name(images, found[0], found[1])
    picture = found[0] if found else f"{stem}.{{png,jpg,jpeg}}"  # is no file: the message says what was looked for
    return f"{images}/{picture}", f"{masks}/{stem}.png"


def open_split(path: str, split: str) -> Dataset:
    """Open `train`, `val` or `test`.

    Raises:
        DataError: The layout is not as the module says; the message names the path.
    """
    if not path:
        raise DataError("folder: names no place; expected folder:PATH")
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    labels = read_labels(root / "labels.toml")
    return check_complete(PairedFiles(labels, _pairs(root, split)))
