"""Pictures out of `multipart/x-mixed-replace`, as cameras send them over HTTP (boundaries: RFC 2046, 5.1)."""

from __future__ import annotations

import re
from email.message import Message
from typing import Protocol

import cv2
import numpy as np

from lfd.data.base import MAX_PIXELS
from lfd.preprocess import Image

MAX_PART = 64 << 20
"""Bytes of a picture; a JPEG of 100 megapixels has fewer."""
MAX_PREAMBLE = 1 << 20
"""Bytes between two pictures before it is no such stream."""
_LINE = 8192
_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"


class Reader(Protocol):
    """What the pictures come from, as `http.client.HTTPResponse` has it."""

    def readline(self, limit: int = -1, /) -> bytes: ...

    def read(self, amount: int = -1, /) -> bytes: ...


class Parts:
    """The parts of a multipart body, one by one.

    Tolerates what cameras do: a boundary declared with its dashes, parts without a length, text before the first one.

    Args:
        reader: The body.
        content_type: The header's value, with the boundary.

    Raises:
        ValueError: It has no boundary.
    """

    def __init__(self, reader: Reader, content_type: str) -> None:
        message = Message()
        message["Content-Type"] = content_type
        boundary = str(message.get_param("boundary") or "").strip('"').lstrip("-")
        if not boundary:
            raise ValueError("its Content-Type names no boundary")
        self._boundary = re.compile(rb"-{2,}" + re.escape(boundary.encode("latin-1", "replace")) + rb"(--)?\s*")
        self._reader = reader
        self._at_boundary = self._ended = False

    def next(self) -> bytes:
        """Return the next part's content.

        Raises:
            EOFError: The stream ended.
            ValueError: It is no multipart stream, or a part is too large.
        """
        skipped = 0
        while not self._at_boundary:
            line = self._line()
            self._match(line)
            skipped += len(line)
            if skipped > MAX_PREAMBLE:
                raise ValueError(f"no boundary within {MAX_PREAMBLE} bytes")
        if self._ended:
            raise EOFError
        self._at_boundary = False
        length = self._length()
        return self._known(length) if length is not None else self._unknown()

    def _line(self) -> bytes:
        line = self._reader.readline(_LINE)
        if not line:
            raise EOFError
        return line

    def _match(self, line: bytes) -> bool:
        found = self._boundary.fullmatch(line)
        self._at_boundary = found is not None
        self._ended = bool(found and found[1])
        return self._at_boundary

    def _length(self) -> int | None:
        """Read a part's headers; return its Content-Length."""
        length, total = None, 0
        while (line := self._line()).strip():
            key, _, value = line.partition(b":")
            if key.strip().lower() == b"content-length" and re.fullmatch(rb"\d{1,12}", value.strip()):
                length = int(value)
            total += len(line)
            if total > MAX_PREAMBLE:
                raise ValueError("headers without end")
        return length

    def _known(self, length: int) -> bytes:
        if length > MAX_PART:
            raise ValueError(f"a part of {length} bytes; at most {MAX_PART} are read")
        data = self._reader.read(length)
        if len(data) < length:
            raise EOFError
        return data

    def _unknown(self) -> bytes:
        lines, total = [], 0
        while not self._match(line := self._line()):
            lines.append(line)
            total += len(line)
            if total > MAX_PART:
                raise ValueError(f"a part of more than {MAX_PART} bytes")
        return b"".join(lines).removesuffix(b"\n").removesuffix(b"\r")


def decode_jpeg(data: bytes) -> Image | None:
    """Return a picture, (H, W, 3) BGR uint8, or None for one that is damaged.

    One that was cut is damaged too: the decoder would fill it up with grey.
    """
    if not (data.startswith(_SOI) and data.rstrip(b"\0\r\n ").endswith(_EOI)):
        return None
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # larger than OpenCV reads
        return None
    if image is None or image.shape[0] * image.shape[1] > MAX_PIXELS:
        return None
    return np.asarray(image, np.uint8)
