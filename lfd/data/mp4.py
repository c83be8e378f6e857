"""How long an MP4 or QuickTime film plays, which its edit list says (ISO/IEC 14496-12, 8.6.6).

A film that was trimmed without being encoded anew, by a telephone or by `ffmpeg -ss 1 -c copy`, holds more frames than
any player shows.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

MAX_INDEX = 1 << 28
"""Bytes of a `moov` box; ten hours of 60 frames a second take 30 MB."""
_MAX_BOXES = 100_000
"""At the top: a fragmented film has two a fragment."""
_EMPTY = -1
"""The media time of an edit that only delays what follows."""


def edited_ms(path: Path) -> float | None:
    """Return for how long a film's pictures play by its edit list, ms.

    Returns:
        None where there is no edit list, or it leaves the length open, or this is another kind of file.
    """
    try:
        with path.open("rb") as file:
            index = _find_index(file)
        return _played_ms(index)
    except (OSError, struct.error):
        return None


def _find_index(file: BinaryIO) -> bytes:
    """Return the content of `moov`; empty where there is none."""
    for _ in range(_MAX_BOXES):
        size, kind = struct.unpack(">I4s", file.read(8))
        head = 8
        if size == 1:
            (size,), head = struct.unpack(">Q", file.read(8)), 16
        if kind == b"moov":
            return file.read(min(max(size, head) - head, MAX_INDEX))
        if not head <= size < 1 << 62:  # 0: it goes to the end of the file
            break
        file.seek(size - head, 1)
    return b""


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the boxes in a box, each with its content, up to the first that does not fit in it."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            (size,), head = struct.unpack_from(">Q", data, at + 8), 16
        end = at + size if size else len(data)
        if end < at + head or end > len(data):
            return
        yield kind, data[at + head : end]
        at = end


def _find(data: bytes, *path: bytes) -> bytes | None:
    """Return the content of the first box at a path."""
    for kind in path:
        found = next((content for name, content in _boxes(data) if name == kind), None)
        if found is None:
            return None
        data = found
    return data


def _played_ms(index: bytes) -> float | None:
    head = _find(index, b"mvhd")
    tracks = [content for kind, content in _boxes(index) if kind == b"trak"]
    pictures = [track for track in tracks if (_find(track, b"mdia", b"hdlr") or b"")[8:12] == b"vide"]
    edits = _find(pictures[0], b"edts", b"elst") if pictures else None
    if head is None or edits is None:
        return None
    ticks_a_second: int
    (ticks_a_second,) = struct.unpack_from(">I", head, 20 if head[:1] == b"\1" else 12)
    (count,) = struct.unpack_from(">I", edits, 4)
    entry = struct.Struct(">Qqi" if edits[:1] == b"\1" else ">Iii")
    entries = list(entry.iter_unpack(edits[8 : 8 + count * entry.size]))
    durations: list[int] = [duration for duration, begin, _ in entries if begin != _EMPTY]
    if not ticks_a_second or not durations or not all(durations):
        return None
    return 1e3 * sum(durations) / ticks_a_second
