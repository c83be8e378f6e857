"""Signals as a wish: the first one ends a run in good order, a second one at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Collection
from types import FrameType, TracebackType
from typing import Any

from lfd.console import EXIT_INTERRUPTED

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
GRACE_S = 1.0
"""What a second signal leaves the main thread to end by itself, which it cannot while a library holds it."""


class Interrupts:
    """Listens to Ctrl-C, SIGTERM and a closing terminal, inside; a context manager. Called, it tells whether one came.

    Inside, the first signal is only noted, so that no write is torn. The second raises KeyboardInterrupt in the main
    thread, and where that hangs in a library's code, which no Python handler reaches, ends the process. Signals that
    this process was started to ignore, as by nohup, stay ignored. In another thread than the main one it does nothing.
    """

    def __init__(self) -> None:
        self._asked = False
        self._left = threading.Event()
        self._before: list[tuple[int, Any]] = []
        self._pipe: tuple[int, int] | None = None
        self._wakeup_before = -1

    def __call__(self) -> bool:
        """Tell whether a signal has come."""
        return self._asked

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            self._watcher = threading.Thread(target=self._watch, args=(self._pipe[0],), name="lfd-signals", daemon=True)
            self._watcher.start()
            self._wakeup_before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            numbers = [n for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
            self._before = [(number, signal.signal(number, self._note)) for number in numbers]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        for number, handler in self._before:
            signal.signal(number, handler)
        if self._pipe is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            os.close(self._pipe[1])
            self._watcher.join()
            os.close(self._pipe[0])

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def _watch(self, pipe: int) -> None:
        """Count the signals as they arrive; the process writes each one's number to the pipe."""
        came = 0
        while came < 2 and (numbers := os.read(pipe, 64)):
            came += sum(number in SIGNALS for number in numbers)
        if came >= 2 and not self._left.wait(GRACE_S):
            os._exit(EXIT_INTERRUPTED)


def leave_hung_threads(code: object, before: Collection[threading.Thread]) -> None:
    """End the process at once where one of a run's threads hangs in a library's code.

    Python's own end would unload that library under it. Buffers are flushed first.

    Args:
        code: Exit code, as of SystemExit.
        before: Threads that were there before the run, and are no concern of it.
    """
    there = (thread for thread in threading.enumerate() if thread not in before)
    if any(thread.daemon and thread.name.startswith("lfd-") for thread in there):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else code is not None)
