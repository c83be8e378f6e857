"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lfd.errors import UsageError


def check_free(path: Path, overwrite: bool) -> None:
    """Refuse to replace what a user made.

    Raises:
        UsageError: The path exists and `overwrite` is false, or nothing can be written there.
    """
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists; choose another name, or replace it with --overwrite")
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        what = "not writable" if parent.is_dir() else "a file, not a folder"
        raise UsageError(f"{path}: {parent} is {what}; choose another place")


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
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    finally:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)
        if not path.exists():
            for parent in made:
                with contextlib.suppress(OSError):  # somebody else has put something there meanwhile
                    parent.rmdir()


def clear_partial(folder: Path, before: str = r".+\.", after: str = r"(\.[^.]+)?") -> None:
    """Remove what `replacing` and its like left half-written whose process was killed.

    What another process still writes stays, and what has another name. What cannot be removed is somebody else's.

    Args:
        folder: Where it was written; it may be absent.
        before: Regular expression of what stands in a name between its first dot and `PID.partial`.
        after: Likewise, of what stands behind.
    """
    left = re.compile(rf"\.{before}(?P<process>\d{{1,9}})\.partial{after}")
    for entry in folder.iterdir() if folder.is_dir() else ():
        match = left.fullmatch(entry.name)
        if match is None or _runs(int(match["process"])):
            continue
        with contextlib.suppress(OSError):
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def _runs(process: int) -> bool:
    """Tell whether another process has this number; in a container, the one before us may have had our own."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Write a text file through `replacing`."""
    write_texts({path: text})


def write_texts(texts: Mapping[Path, str]) -> None:
    """Write text files that belong together: none gets its name before all are written."""
    with contextlib.ExitStack() as stack:
        for aside, text in [(stack.enter_context(replacing(path)), text) for path, text in texts.items()]:
            aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file through `replacing`; NaN and infinities are refused, as JSON has none."""
    write_text(path, to_json(value))


def to_json(value: Any) -> str:
    """Return a value as the text of a JSON file."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the lock goes with the process, however it ends.

    Raises:
        UsageError: Another process holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise UsageError(
            f"{folder}: another process is at work in it; wait for it, or choose another folder"
        ) from error
    try:
        yield
    finally:
        os.close(handle)
