"""Names under which output is written until it is complete, and writing many small files in a run that takes days."""

from __future__ import annotations

import os
from pathlib import Path

from lfd.errors import SinkError


def unwritable(path: Path, error: OSError) -> SinkError:
    """Return the error for a file that the system refused."""
    return SinkError(f"{path}: cannot be written ({error.strerror or error}). Fix: free space, or write elsewhere")


def aside_of(path: Path) -> Path:
    """Return the name for a file while it is written; it keeps the suffix, by which writers choose their format."""
    return path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")


def write_aside(path: Path, data: bytes) -> None:
    """Write a file beside its place and rename it, so that no reader meets half of it.

    Unlike `lfd.files.replacing` it does not wait for the disk: at 25 pictures a second that would be all it does.

    Raises:
        SinkError: It cannot be written; nothing of it stays.
    """
    aside = aside_of(path)
    try:
        aside.write_bytes(data)
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise unwritable(path, error) from error
