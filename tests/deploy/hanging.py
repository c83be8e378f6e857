"""`lfd-run` as a program, with a source, a model or a sink that takes for ever in one place.

    python hanging.py STATE MODEL SOURCE SINK ...

It prints the state to stderr once it is in it.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
from doubles import ListSink, ListSource, ScriptSource, lost

import deploy.opening
from deploy.backends.fake import FakeSession
from deploy.cli import run_main
from deploy.frames import Frame
from lfd.spec import Labels, ModelSpec, Preprocess

STATE = sys.argv.pop(1)
SPEC = ModelSpec("tiny", Labels(("a", "b"), ((0, 0, 0), (255, 255, 255))), Preprocess((24, 32)))
_reached = threading.Event()


def say(line: str) -> None:
    os.write(2, f"\n{line}\n".encode())  # in one piece, whatever other threads print


def reached() -> None:
    if not _reached.is_set():
        _reached.set()
        say(f"state: {STATE}")


def hang_in_c() -> None:
    """Hang in a library, where neither a signal handler nor closing helps."""
    mutex = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None)
    libc.pthread_mutex_lock(mutex)
    reached()
    libc.pthread_mutex_lock(mutex)


class Session(FakeSession):
    def run(self, batch: np.ndarray) -> np.ndarray:
        if STATE == "inferring":
            reached()
            time.sleep(0.5)
        if STATE == "model hangs" and self.calls == 2:
            hang_in_c()
        return super().run(batch)


class Source(ListSource):
    def __iter__(self) -> Iterator[Frame]:
        for frame in super().__iter__():
            yield frame
            if STATE == "device hangs" and frame.index == 2:
                hang_in_c()


def open_session(*_: object) -> FakeSession:
    if STATE == "opening the model":
        hang_in_c()
    return Session(SPEC)


def open_source(text: str, loop: bool = False) -> object:
    if STATE == "opening":
        hang_in_c()
    if STATE == "waiting":

        def script() -> Iterator[object]:
            yield 0
            yield lost()
            reached()
            yield threading.Event()

        return ScriptSource(script())  # type: ignore[arg-type]
    return Source(100_000, live="live" in text, before=lambda index: time.sleep(0.01))


def open_sink(text: str, *_: object) -> ListSink:
    def write(index: int) -> None:
        if STATE == "in a sink":
            reached()
            time.sleep(0.3)
        if STATE == "sink hangs" and index == 2:
            hang_in_c()

    class Sink(ListSink):
        def close(self, complete: bool) -> None:
            say(f"sink closed, {'complete' if complete else 'failed'}")

    return Sink(write)


deploy.opening.open_session = open_session  # type: ignore[assignment]
deploy.opening.open_source = open_source  # type: ignore[assignment]
deploy.opening.open_sink = open_sink  # type: ignore[assignment]

run_main()
