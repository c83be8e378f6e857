"""What the tests of the sinks share: sinks made from text, frames, small disks, and what must not be left over."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from doubles import picture

from deploy.frames import Cause, Frame, FrameSink, State, StreamStatus, VideoInfo
from deploy.overlay import Overlay
from deploy.sinks import open_sink
from deploy.stats import StatsSnapshot
from lfd.spec import ModelSpec

STATS = StatsSnapshot(9, 5, 3, 1, State.LIVE, 24.0, 41.0, 19.5)
FPS = 25.0
S = 10**9
FFMPEG = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="there is no ffmpeg on PATH")


def make(
    text: object, spec: ModelSpec, live: bool = False, stats: Callable[[], StatsSnapshot] = lambda: STATS
) -> FrameSink:
    return open_sink(str(text), Overlay(spec.labels), VideoInfo((320, 240), FPS, None, live), stats)


def frame(index: int, size_hw: tuple[int, int] = (240, 320), name: str = "", at_s: float | None = None) -> Frame:
    """A frame captured `at_s` seconds after some start, by default at the film's pace."""
    captured = round((index / FPS if at_s is None else at_s) * S)
    return Frame(picture(index, size_hw), index, captured, name)


def noise(index: int, size_hw: tuple[int, int] = (240, 320)) -> Frame:
    """A frame that no codec makes small."""
    return Frame(np.random.default_rng(index).integers(0, 256, (*size_hw, 3), np.uint8), index, 0)


def classes(index: int, size_hw: tuple[int, int] = (240, 320)) -> np.ndarray:
    return np.full(size_hw, index % 3, np.uint8)


def lost(since_ns: int = 0, attempt: int = 1) -> StreamStatus:
    return StreamStatus(State.LOST, since_ns, Cause.TIMED_OUT, "no picture", 0, attempt, 2.0)


def write_script(folder: Path, body: str) -> Path:
    """Put an `ffmpeg` into a folder that says it has x264, and then does what `body` says."""
    folder.mkdir(exist_ok=True)
    script = folder / "ffmpeg"
    script.write_text(f'#!/bin/sh\nif [ "$2" = -encoders ]; then echo " V....D libx264  H.264"; exit 0; fi\n{body}\n')
    script.chmod(0o755)
    return script


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes: what a full disk or a quota is to a writer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _open_now() -> tuple[set[str], set[str], set[str]]:
    own = os.getpid()
    children = set()
    for task in Path(f"/proc/{own}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            children.update((task / "children").read_text().split())
    descriptors = set()
    for entry in Path(f"/proc/{own}/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists them
            descriptors.add(f"{entry.name} -> {entry.readlink()}")
    return children, descriptors, {thread.name for thread in threading.enumerate()}


@contextlib.contextmanager
def nothing_left(within_s: float = 10.0) -> Iterator[None]:
    """Fail when the block leaves a process, a descriptor or a thread, or takes longer than it should."""
    before, begin = _open_now(), time.monotonic()
    yield
    assert time.monotonic() - begin < within_s
    for was, now in zip(before, _open_now(), strict=True):
        assert now <= was
