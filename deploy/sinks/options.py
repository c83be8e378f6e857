"""What a user typed for a sink, taken apart: the one place that reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from deploy.texts import check_name, expand, redact
from lfd.config import among, within
from lfd.data.query import parse_query, split_query
from lfd.errors import UsageError

FORMS = (
    "FILE.webm, FILE.mp4 or FILE.avi (film), DIR/ (pictures), FILE.jsonl (a line a frame), display:// (window), "
    "http://127.0.0.1:8080 (page), null:// (nowhere)"
)
CODECS = {".webm": ("vp8",), ".mp4": ("mp4v", "h264"), ".avi": ("mjpg",)}
"""Film suffix -> codecs, the default first. h264 takes an ffmpeg process; OpenCV's wheels write the others."""
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow")

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://")
_PAGE = re.compile(r"http://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})/?")
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,128}")
"""What goes into URLs, cookies and headers as it is."""


class _Range(NamedTuple):
    low: int
    high: int


_MANY = _Range(1, 1_000_000)
_OPTIONS: Mapping[str, Mapping[str, _Range | tuple[str, ...] | None]] = {
    "null": {},
    "display": {"title": None},
    "film": {
        "codec": tuple(name for names in CODECS.values() for name in names),
        "crf": _Range(0, 51),
        "preset": PRESETS,
        "segment": _Range(1, 86_400),
        "keep": _MANY,
    },
    "pictures": {"show": ("mask", "overlay"), "format": ("png", "jpg"), "every": _MANY, "keep": _MANY},
    "jsonl": {"every": _MANY},
    "page": {"token": None, "fps": _Range(1, 60), "quality": _Range(1, 100)},
}
"""Kind of sink -> option -> its range, its choices, or None where any text will do."""
_EXAMPLES = {
    "display": "?title=front",
    "film": "?codec=h264&segment=600&keep=144",
    "pictures": "?show=overlay&format=jpg&every=25&keep=1000",
    "jsonl": "?every=25",
    "page": "?fps=10&quality=70",
}


@dataclass(frozen=True)
class Target:
    """A sink as typed.

    Attributes:
        text: What was typed.
        kind: A key in `deploy.sinks.outputs.SINKS`.
        path: File or folder, expanded; None where there is none.
        address: Host and port of a page; likewise.
        options: Option to value, those given: whole numbers and texts.
    """

    text: str
    kind: str
    path: Path | None = None
    address: tuple[str, int] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def segments(self) -> re.Pattern[str] | None:
        """Return what the names of its segments look like; None where it has none."""
        if self.path is None or "segment" not in self.options:
            return None
        return re.compile(rf"{re.escape(self.path.stem)}-\d{{5,}}{re.escape(self.path.suffix)}")


def parse_sink(text: str) -> Target:
    """Take a sink's text apart.

    Raises:
        UsageError: It means no sink, or an option does not exist, does not fit, or is out of range.
    """
    check_name(text)
    place, query = split_query(text)
    kind = _kind_of(text, place)
    known = _OPTIONS[kind]
    name = f"{place} sink"
    options: dict[str, Any] = {}
    if query and not known:
        raise UsageError(f"{name}: it takes no options, but {query[:80]!r} is given")
    try:
        given = parse_query(name, f"?{query}", known, _EXAMPLES.get(kind, ""))
    except UsageError as error:
        raise UsageError(redact(str(error))) from None
    for key, value in given.items():
        allowed = known[key]
        if isinstance(allowed, _Range):
            if not (value.isascii() and value.isdecimal() and len(value) < 10):
                raise UsageError(f"{name} option {key}={value[:40]!r}; expected {allowed.low} to {allowed.high}")
            within(f"{name} option {key}", int(value), *allowed)
            options[key] = int(value)
        else:
            if allowed is not None:
                among(f"{name} option {key}", value, allowed)
            options[key] = expand(value) if key == "token" else value
    if kind == "page":
        return Target(text, kind, None, _address(name, place, options), options)
    path = None if kind in ("null", "display") else Path(place).expanduser()
    if kind == "film":
        _check_film(name, Path(place).suffix.lower(), options)
    elif kind == "pictures" and options.get("format") == "jpg" and options.get("show", "mask") == "mask":
        raise UsageError(f"{name}: format=jpg would change label values; expected show=overlay with it, or png")
    return Target(text, kind, path, None, options)


def _kind_of(text: str, place: str) -> str:
    scheme = _SCHEME.match(place)
    if scheme:
        if place in ("null://", "display://"):
            return scheme[1]
        if _PAGE.fullmatch(place):
            return "page"
        raise UsageError(f"sink {redact(text)!r}: not a sink here; expected {FORMS}")
    if place.endswith("/") or Path(place).expanduser().is_dir():
        return "pictures"
    suffix = Path(place).suffix.lower()
    if suffix in CODECS:
        return "film"
    if suffix == ".jsonl":
        return "jsonl"
    raise UsageError(f"sink {redact(text)!r}: its suffix is none of {', '.join((*CODECS, '.jsonl'))}; expected {FORMS}")


def _address(name: str, place: str, options: Mapping[str, Any]) -> tuple[str, int]:
    match = _PAGE.fullmatch(place)
    assert match is not None  # noqa: S101 - by which it is a page
    if "token" in options and not _TOKEN.fullmatch(options["token"]):
        raise UsageError(f"{name}: a token has 16 to 128 of A-Z a-z 0-9 . _ ~ -; without one, one is made")
    within(f"{name} port", int(match[2]), 0, 65535)
    return match[1].strip("[]"), int(match[2])


def _check_film(name: str, suffix: str, options: Mapping[str, Any]) -> None:
    codec = options.get("codec", CODECS[suffix][0])
    if codec not in CODECS[suffix]:
        raise UsageError(f"{name}: codec={codec} does not go into {suffix}; expected {' or '.join(CODECS[suffix])}")
    for key in ("crf", "preset"):
        if key in options and codec != "h264":
            raise UsageError(f"{name}: {key} is an option of codec=h264, not of {codec}. Fix: FILE.mp4?codec=h264")
    if "keep" in options and "segment" not in options:
        raise UsageError(f"{name}: keep counts segments; expected segment=SECONDS with it")
