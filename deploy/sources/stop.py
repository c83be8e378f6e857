"""The wish to end, which wakes whoever waits for the network or for the next attempt."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Stop:
    """Set once, from any thread; then waits end at once and so do reads from the watched socket."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait; return whether it was set meanwhile."""
        return self._event.wait(max(0.0, seconds))

    def watch(self, connection: socket.socket | None) -> None:
        """Take the socket to shut down when set; None when there is no more. One at a time."""
        with self._lock:
            self._socket = connection
            if self._event.is_set():
                self._shut()

    def set(self) -> None:
        """End every wait."""
        with self._lock:
            self._event.set()
            self._shut()

    def _shut(self) -> None:
        if self._socket is not None:
            with suppress(OSError):  # it was not connected yet, or the other side was faster
                self._socket.shutdown(socket.SHUT_RDWR)
