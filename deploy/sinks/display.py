"""A window."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress

import cv2

from deploy.frames import Frame, State, StopRequested, StreamStatus
from deploy.overlay import Overlay
from lfd.errors import SinkError
from lfd.preprocess import Image

TITLE = "lfd-run"
_KEYS_THAT_END = (ord("q"), 27)


class DisplaySink:
    """A window with the overlay; q, Esc or closing it ends the run. It opens with the first frame.

    Args:
        overlay: Paints the frames.
        title: Of the window; two windows of one title would be one.

    Raises:
        SinkError: There is no screen, or this OpenCV has no windows.
    """

    def __init__(self, overlay: Overlay, title: str = TITLE) -> None:
        check_display()
        self._overlay, self._title = overlay, title
        self._shown: Image | None = None

    def write(self, frame: Frame, class_map: Image) -> None:
        """Show the frame.

        Raises:
            StopRequested: The viewer has had enough.
        """
        self._show(self._overlay.paint(frame, class_map))
        self._listen()

    def show_status(self, status: StreamStatus) -> None:
        """Keep the window alive; while the stream is lost, mark the last picture as stale.

        Raises:
            StopRequested: The viewer has had enough.
        """
        if self._shown is None:
            return
        if status.state is State.LOST:
            stale = self._overlay.stale(status)
            if stale is not None and stale is not self._shown:
                self._show(stale)
        self._listen()

    def _show(self, picture: Image) -> None:
        if self._shown is None:
            cv2.namedWindow(self._title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
            cv2.resizeWindow(self._title, picture.shape[1], picture.shape[0])
        self._shown = picture
        cv2.imshow(self._title, picture)

    def _listen(self) -> None:
        key = cv2.waitKey(1) & 0xFF
        if key in _KEYS_THAT_END or cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) < 1:
            raise StopRequested("the window was closed")

    def close(self, complete: bool) -> None:
        """Close the window."""
        if self._shown is not None:
            with suppress(cv2.error):  # the viewer may have closed it
                cv2.destroyWindow(self._title)


def has_screen() -> bool:
    """Return whether a window could be shown: asked first, since Qt ends the process without a screen."""
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def check_display() -> None:
    """Raise unless a window can be shown.

    Raises:
        SinkError: There is no screen, or this OpenCV has no windows.
    """
    instead = "Fix: write to FILE.webm or null://"
    if re.search(r"GUI:\s+NONE", cv2.getBuildInformation()):
        raise SinkError(
            f"display://: this OpenCV ({cv2.__version__}) is built without windows. {instead}, "
            "or: pip uninstall opencv-python-headless && pip install 'lfd-toolkit[display]'"
        )
    if not has_screen():
        raise SinkError(f"display://: there is no screen (DISPLAY and WAYLAND_DISPLAY are not set). {instead}")
