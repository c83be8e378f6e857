"""A line of collect.jsonl: which frame was kept, and why."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from typing import Any

_NAME = re.compile(r"\d{8}T\d{9}Z-\d+\.png")
_MOST = 1e15


@dataclass(frozen=True)
class Kept:
    """A line of collect.jsonl.

    Attributes:
        file: Name of the picture.
        time: When it was taken (of a film: read), ISO 8601 in UTC.
        source: Where it is from, without credentials.
        at_s: Its time in the stream: Unix time if live, of a film its position, counted on with --loop; seconds.
        index: Its position in the source.
        why: `unsure` or `drift`: the figure that stands out more.
        score: By how many standard deviations it is above its long-run mean.
        unsure: See `deploy.collect`; None where it is not known.
        unsure_by: How it was taken: `margin` or `flips`.
        drift: See `deploy.collect`.
        model: Name of the model.
        onnx_sha256: Of its file.
        size_hw: Height and width of the picture.
        bytes: Of its file.
    """

    file: str
    time: str
    source: str
    at_s: float
    index: int
    why: str
    score: float
    unsure: float | None
    unsure_by: str
    drift: float
    model: str
    onnx_sha256: str
    size_hw: tuple[int, int]
    bytes: int

    @classmethod
    def from_json(cls, text: str) -> Kept:
        """Read a line; every field is validated, since a name is a path.

        Raises:
            ValueError: It is no such line.
        """
        record = json.loads(text)
        if not isinstance(record, dict) or set(record) != {field.name for field in fields(cls)}:
            raise ValueError("other fields")
        for name, kind in _KINDS.items():
            if not isinstance(record[name], kind) or isinstance(record[name], bool):
                raise ValueError(f"{name} {str(record[name])[:40]!r}")
        numbers = [record[name] for name in ("at_s", "score", "drift", "unsure") if record[name] is not None]
        sides = record["size_hw"]
        # NaN is in no range, and a whole number may be larger than any float.
        ranged = all(-_MOST <= number <= _MOST for number in numbers)
        if not ranged or not 0 <= record["bytes"] <= _MOST or record["at_s"] < 0:
            raise ValueError("a number out of range")
        if len(sides) != 2 or not all(type(side) is int for side in sides):
            raise ValueError(f"size_hw {str(sides)[:40]}")
        if not _NAME.fullmatch(record["file"]):
            raise ValueError(f"file {record['file'][:40]!r}")
        return cls(**{**record, "size_hw": (sides[0], sides[1])})


_KINDS: dict[str, Any] = {
    **dict.fromkeys(("file", "time", "source", "why", "unsure_by", "model", "onnx_sha256"), str),
    **dict.fromkeys(("at_s", "score", "drift"), int | float),
    **dict.fromkeys(("index", "bytes"), int),
    "unsure": int | float | None,
    "size_hw": list,
}
