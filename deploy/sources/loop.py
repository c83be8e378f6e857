"""A film or pictures that begin anew at their end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from deploy.frames import Frame, FrameSource, StreamStatus


class Looping:
    """A source that is opened again at its end, without end itself; frames are numbered on.

    Args:
        source: Open.
        reopen: Opens it again.
    """

    def __init__(self, source: FrameSource, reopen: Callable[[], FrameSource]) -> None:
        self._source, self._reopen = source, reopen
        self.info = replace(source.info, frames=None)
        self._closed = False

    def __iter__(self) -> Iterator[Frame | StreamStatus]:
        base = 0
        while not self._closed:
            count = 0
            for item in self._source:
                if isinstance(item, Frame):
                    item = replace(item, index=base + item.index)  # noqa: PLW2901
                    count = item.index + 1 - base
                yield item
            base += count
            self._source.close()
            if self._closed or not count:
                return
            self._source = self._reopen()
        self._source.close()  # closed while it was opened again

    def close(self) -> None:
        """Close the source, and open it no more."""
        self._closed = True
        self._source.close()
