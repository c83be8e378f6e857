"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lfd.errors import UsageError


def check_free(path: Path, overwrite: bool) -> None:
    """Refuse to replace what a user made.

    Raises:
        UsageError: The path exists and `overwrite` is false.
    """
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists; choose another name, or replace it with --overwrite")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; rename it to `path` when the block succeeds.

    The file is flushed to disk before the rename, so that after a power cut either the old or the
    new one is there. When the block raises, the partial file is removed, with the folders made for
    it, and `path` is untouched. The yielded name keeps the suffix, since writers choose their format by it.
    """
    made = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield aside
        if aside.is_file():
            with aside.open("rb") as file:
                os.fsync(file.fileno())
        aside.replace(path)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)
        if not path.exists():
            for parent in made:
                with contextlib.suppress(OSError):  # somebody else has put something there meanwhile
                    parent.rmdir()


def write_text(path: Path, text: str) -> None:
    """Write a text file through `replacing`."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file through `replacing`; NaN and infinities are refused, as JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
