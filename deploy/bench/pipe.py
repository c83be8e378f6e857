"""What goes between the benchmark and a measuring process: a line of JSON, followed by the bytes of its pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

from lfd.preprocess import Image


def send(pipe: IO[bytes], message: dict[str, Any], pictures: Sequence[Image] = ()) -> None:
    """Write one message, with the shapes of its pictures, which are uint8."""
    pipe.write(json.dumps({**message, "shapes": [p.shape for p in pictures]}).encode() + b"\n")
    for picture in pictures:
        pipe.write(np.ascontiguousarray(picture).data)
    pipe.flush()


def receive(pipe: IO[bytes]) -> tuple[dict[str, Any], list[Image]]:
    """Read one message.

    Raises:
        EOFError: The other end has gone.
    """
    line = pipe.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    message: dict[str, Any] = json.loads(line)
    pictures = []
    for shape in message.pop("shapes"):
        picture: Image = np.empty(shape, np.uint8)
        view = picture.data.cast("B")
        while view:
            if not (read := pipe.readinto(view)):  # type: ignore[attr-defined]
                raise EOFError
            view = view[read:]
        pictures.append(picture)
    return message, pictures
