"""From what was typed, on the command line or in a suite, to what is measured."""

from __future__ import annotations

import re
from collections.abc import Sequence

from deploy.auto import AUTO
from deploy.bench.pictures import Pictures
from deploy.environment import Settings
from deploy.session import BACKENDS
from lfd.config import within
from lfd.console import parse_size
from lfd.data import UNLABELLED, open_dataset, parse_data
from lfd.errors import UsageError, unknown
from lfd.spec import Labels

BUILT_IN = "street:"
MIN_FPS, MAX_FPS = 1, 10_000
SECONDS = (0.01, 86_400)
MAX_SWEEP = 16
NO_LABELS = Labels(("unlabelled",), ((0, 0, 0),))
"""Of pictures that only give frames."""


def whole_numbers(text: str, option: str, low: int, high: int) -> tuple[int, ...]:
    """Read "1,2,4".

    Raises:
        UsageError: Anything else, or out of range, or one of them twice.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and low <= int(part) <= high for part in parts) or not 0 < len(parts) <= MAX_SWEEP:
        raise UsageError(f"{option} {text!r}; expected whole numbers from {low} to {high}, such as {max(1, low)},4")
    if len(set(map(int, parts))) < len(parts):
        raise UsageError(f"{option} {text!r}; expected each number once")
    return tuple(map(int, parts))


def _scenarios(texts: Sequence[str]) -> tuple[bool, tuple[float, ...]]:
    """Return whether `offline` is asked for, and the rates of `stream@FPS`.

    Raises:
        UsageError: Another scenario.
    """
    rates = []
    for text in texts:
        rate = re.fullmatch(r"stream@(\d+(?:\.\d+)?)", text)
        if rate and MIN_FPS <= float(rate[1]) <= MAX_FPS:
            rates.append(float(rate[1]))
        elif text not in ("single", "offline"):
            raise UsageError(
                f"scenario {text!r}; expected single, offline, or stream@FPS, {MIN_FPS} to {MAX_FPS} frames a second"
            )
    return "offline" in texts, tuple(dict.fromkeys(rates))


def make_settings(
    seconds: float,
    max_images: int | None,
    backend: str | None,
    scenario: Sequence[str],
    threads: str,
    batch: str | None,
    size: str | None,
) -> Settings:
    """Return what was asked for; the first number of threads is the table's, those after it the sweep's.

    Raises:
        UsageError: A value that means nothing.
    """
    within("seconds", seconds, *SECONDS)  # NaN, too, which click lets through
    if backend is not None and backend not in (AUTO, *BACKENDS):
        raise unknown("backend", backend, (AUTO, *BACKENDS))
    offline, streams = _scenarios(scenario)
    if batch is not None and not offline:
        raise UsageError(f"--batch {batch!r} has no use without --scenario offline")
    counts = whole_numbers(threads, "--threads", 0, 1024)
    batches = whole_numbers(batch or "1", "--batch", 1, 4096) if offline else ()
    sizes = tuple(dict.fromkeys(parse_size(part.strip()) for part in size.split(","))) if size else ()
    return Settings(seconds, counts[0], max_images, backend, batches, streams, counts[1:], sizes)


def data_name(data: str | None) -> str:
    """Return what a report calls a data set: its name and split, if it has any, without a path.

    Raises:
        UsageError: The name or the split does not exist.
    """
    name, _, split = parse_data(data or BUILT_IN)
    return name if name in UNLABELLED else f"{name}@{split or 'test'}"


def open_pictures(data: str | None) -> Pictures:
    """Open the data set to time and score on; without one the built-in scene, which may have other classes."""
    if data is not None and parse_data(data).name in UNLABELLED:
        return Pictures(open_dataset(data, "test", NO_LABELS), data_name(data), labelled=False)
    return Pictures(open_dataset(data or BUILT_IN, "test"), data_name(data), must_score=data is not None)
