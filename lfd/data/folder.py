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
from pathlib import Path
from typing import Any

from lfd.data.base import Dataset, PairedFiles
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
        for key in record:
            if key not in ("ignore", "class"):
                raise unknown("key", key, ("ignore", "class"))
        classes = record["class"]
        names = tuple(str(c["name"]) for c in classes)
        colors = tuple((int(r), int(g), int(b)) for r, g, b in (c["color"] for c in classes))
        return Labels(names, colors, int(record.get("ignore", 255)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, LfdError) as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path}: not a valid list of classes ({reason}); expected [[class]] name, color") from error


def _split_names(root: Path, split: str) -> tuple[Path, Path, list[str]]:
    """Return the folders of a split's pictures and labels, and the names in order."""
    listing = root / f"{split}.txt"
    if listing.is_file():
        try:
            lines = listing.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{listing}: not UTF-8 text ({error.reason}); save the list of names as UTF-8") from error
        names = [line.strip() for line in lines if line.strip()]
        for name in names:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise DataError(f"{listing}: name {name!r} points outside the data set; expected a plain name")
        return root / "images", root / "masks", names
    images, masks = root / "images" / split, root / "masks" / split
    for wanted in (images, masks):
        if not wanted.is_dir():
            raise DataError(f"{wanted}: no such folder, and no {listing}; folder: expects one or the other")
    return images, masks, sorted(p.stem for p in images.iterdir() if p.suffix.lower() in SUFFIXES)


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
    images, masks, names = _split_names(root, split)
    pairs = []
    for name in names:
        stem = name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in SUFFIXES else name
        picture = next((p for s in SUFFIXES if (p := images / f"{stem}{s}").is_file()), None)
        if picture is None:
            raise DataError(f"{images / stem}: no such picture with {', '.join(SUFFIXES)}")
        mask = masks / f"{stem}.png"
        if not mask.is_file():
            raise DataError(f"{mask}: no such label file for {picture}")
        pairs.append((picture, mask))
    return PairedFiles(labels, pairs)
