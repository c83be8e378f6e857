"""Stopping between steps, so that what is saved is whole."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any


class Stopped(Exception):  # noqa: N818  a request, not an error
    """Raised by `StopRequest.check` once a stop was asked for."""


class StopRequest:
    """While entered, Ctrl-C and SIGTERM are noted and acted on at the next `check`; a second Ctrl-C at once.

    Attributes:
        asked: Whether a stop was asked for.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def check(self) -> None:
        """Raise Stopped if a stop was asked for."""
        if self.asked:
            raise Stopped

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
