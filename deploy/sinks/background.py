"""Work that a live picture must not wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """Does one thing after another in a thread beside its owner; what fails there is raised at the next call."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin something; what was begun before is waited for.

        Raises:
            BaseException: What was begun before has failed.
        """
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(work,), name="lfd-finish", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Say whether all is well so far, without waiting.

        Raises:
            BaseException: What was begun has failed.
        """
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait until what was begun has ended.

        Raises:
            BaseException: It has failed.
        """
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error
