"""Ending early: the first Ctrl-C, SIGTERM or SIGHUP keeps what was measured; only a second Ctrl-C gives it up."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stop:
    """Turns signals into one KeyboardInterrupt; a signal handler.

    Attributes:
        asked: Whether a signal has come.
    """

    def __init__(self) -> None:
        self.asked = self._holding = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Interrupt the program, unless it is on its way out; `timeout` and a closing terminal send several signals.

        Raises:
            KeyboardInterrupt: At the first signal, and at every further Ctrl-C.
        """
        again, self.asked = self.asked, True
        if number == signal.SIGINT if again else not self._holding:
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let what is inside, such as writing a report, come to its end before the first signal interrupts.

        Raises:
            KeyboardInterrupt: The first signal came inside.
        """
        before, self._holding = self.asked, True
        try:
            yield
        finally:
            self._holding = False
        if self.asked and not before:
            raise KeyboardInterrupt


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Listen to the signals inside, except for those that this process was started to ignore, as by nohup.

    Once one has come the process is on its way out, and all but Ctrl-C are ignored to its end.
    """
    stop = Stop()
    before = {n: signal.signal(n, stop) for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if stop.asked and number != signal.SIGINT else handler)
