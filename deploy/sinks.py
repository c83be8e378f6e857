"""Where frames and class maps go: an overlay film, PNG masks, a window, or nowhere.

A sink is one class here and one line in SINKS; `check_sinks` judges what the user typed before a
model is loaded, `open_sink` makes the sink. Nothing stands under a final name before it is complete.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import cv2

from deploy.film import CODECS, FilmSink
from deploy.frames import Frame, FrameSink, StopRequested, VideoInfo
from deploy.overlay import Overlay
from lfd.errors import SinkError, UsageError
from lfd.files import check_free
from lfd.preprocess import Image

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://")
_FORMS = "FILE.webm, FILE.mp4 or FILE.avi (film), DIR/ (PNG masks), display:// (window), null:// (nowhere)"


class NullSink:
    """Takes everything and keeps nothing: to measure, or to try a model."""

    def write(self, frame: Frame, class_map: Image) -> None:
        """Do nothing."""

    def close(self, complete: bool) -> None:
        """Do nothing."""


class DisplaySink:
    """A window with the overlay; q, Esc or closing it ends the run.

    Raises:
        SinkError: There is no screen, or this OpenCV has no windows.
    """

    TITLE = "lfd-run"

    def __init__(self, overlay: Overlay) -> None:
        check_display()
        self._overlay = overlay
        cv2.namedWindow(self.TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        self._sized = False

    def write(self, frame: Frame, class_map: Image) -> None:
        """Show the frame.

        Raises:
            StopRequested: The viewer has had enough.
        """
        picture = self._overlay.paint(frame, class_map)
        if not self._sized:
            cv2.resizeWindow(self.TITLE, picture.shape[1], picture.shape[0])
            self._sized = True
        cv2.imshow(self.TITLE, picture)
        key = cv2.waitKey(1) & 0xFF
        if key in (ord("q"), 27) or cv2.getWindowProperty(self.TITLE, cv2.WND_PROP_VISIBLE) < 1:
            raise StopRequested("the window was closed")

    def close(self, complete: bool) -> None:
        """Close the window."""
        with suppress(cv2.error):  # the viewer may have closed it
            cv2.destroyWindow(self.TITLE)


class MaskSink:
    """A folder with one PNG of label values a frame, named by the frame or by its number.

    The masks are collected in a hidden folder inside and moved out when the run is complete.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._aside = folder / f".{os.getpid()}.partial"
        self._made = not folder.exists()
        self._names: set[str] = set()
        self._opened = False

    def write(self, frame: Frame, class_map: Image) -> None:
        """Write one mask.

        Raises:
            SinkError: Two frames have the same name, or the disk is full.
        """
        name = f"{frame.name or f'{frame.index:06d}'}.png"
        if name in self._names:
            raise SinkError(
                f"{self._folder}: two pictures are named {frame.name!r}, and would give the same {name}. "
                "Fix: run on one folder at a time"
            )
        # Level 1: 1.4 ms for a 480x360 mask against 2.6 ms at OpenCV's default, for a slightly larger file.
        ok, data = cv2.imencode(".png", class_map, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        if not ok:
            raise SinkError(f"{self._folder}: OpenCV cannot encode {name}")
        try:
            if not self._opened:
                self._aside.mkdir(parents=True)
                self._opened = True
            (self._aside / name).write_bytes(data.tobytes())
        except OSError as error:
            raise SinkError(
                f"{self._folder / name}: cannot be written ({error.strerror}). Fix: free space, or write elsewhere"
            ) from error
        self._names.add(name)

    def close(self, complete: bool) -> None:
        """Move the masks to the folder; remove them when the run is not complete."""
        try:
            if complete and self._opened:
                for name in sorted(self._names):
                    (self._aside / name).replace(self._folder / name)
        finally:
            shutil.rmtree(self._aside, ignore_errors=True)
            if self._made:
                with suppress(OSError):  # it holds something, which is to stay
                    self._folder.rmdir()


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


def _check_nothing(text: str, overwrite: bool) -> None:
    pass


def _check_display(text: str, overwrite: bool) -> None:
    check_display()


def _check_film(text: str, overwrite: bool) -> None:
    path = Path(text).expanduser()
    if path.is_dir():
        raise UsageError(f"{path} is a folder; expected the name of a film, or {path}/ for PNG masks")
    check_free(path, overwrite)


def _check_masks(text: str, overwrite: bool) -> None:
    path = Path(text).expanduser()
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file; expected a folder for PNG masks")
    if path.is_dir() and not overwrite:
        held = next((entry.name for entry in path.iterdir() if not entry.name.endswith(".partial")), None)
        if held is not None:
            raise UsageError(
                f"{path} is not empty (it holds {held}); choose another folder, or add to it and replace masks of "
                "the same name with --overwrite"
            )
    check_free(path / "x.png", overwrite=True)


class SinkKind(NamedTuple):
    """How a kind of sink is checked and made.

    Attributes:
        check: Takes the text and --overwrite; raises UsageError or SinkError before anything is loaded.
        make: Takes the text, the overlay and the source's VideoInfo.
    """

    check: Callable[[str, bool], None]
    make: Callable[[str, Overlay, VideoInfo], FrameSink]


SINKS: dict[str, SinkKind] = {
    "null": SinkKind(_check_nothing, lambda text, overlay, info: NullSink()),
    "display": SinkKind(_check_display, lambda text, overlay, info: DisplaySink(overlay)),
    "film": SinkKind(_check_film, lambda text, overlay, info: FilmSink(Path(text).expanduser(), overlay, info)),
    "masks": SinkKind(_check_masks, lambda text, overlay, info: MaskSink(Path(text).expanduser())),
}


def kind_of(text: str) -> str:
    """Return the key in SINKS that a sink's text means.

    Raises:
        UsageError: It means none.
    """
    scheme = _SCHEME.match(text)
    if scheme:
        if text in ("null://", "display://"):
            return scheme[1]
        raise UsageError(f"sink {text!r}: not a sink here yet; expected {_FORMS}")
    if text.endswith("/") or Path(text).expanduser().is_dir():
        return "masks"
    if Path(text).suffix.lower() in CODECS:
        return "film"
    raise UsageError(f"sink {text!r}: its suffix is none of {', '.join(CODECS)}; expected {_FORMS}")


def check_outputs(texts: Sequence[str], source: str, model: Path, overwrite: bool, summary: Path | None = None) -> None:
    """Judge the sinks a user typed, before a model is loaded.

    Args:
        texts: Sinks.
        source: The source's text: output in its place is refused, whatever `overwrite` says.
        model: The model's file, likewise.
        overwrite: Whether files may be replaced.
        summary: File for the summary, which is held to the same rules.

    Raises:
        UsageError: A sink is unknown, given twice, in the way of a file, or in place of the source or the model.
        SinkError: There is no screen for display://.
    """
    seen: dict[Path | str, str] = {}
    origins = {Path(source).expanduser().resolve(): "source", model.resolve(): "model"}
    if summary is not None:
        _keep(summary.resolve(), str(summary), origins)
        check_free(summary, overwrite)
        seen[summary.resolve()] = f"--json {summary}"
    for text in texts:
        kind = kind_of(text)
        key: Path | str = Path(text).expanduser().resolve() if kind in ("film", "masks") else text
        if key in seen:
            raise UsageError(f"sink {text!r} is the same as {seen[key]!r}; give each once")
        if isinstance(key, Path):
            _keep(key, text, origins)
            if kind == "masks":
                _keep(key, text, {origin.parent: what for origin, what in origins.items() if what == "source"})
        SINKS[kind].check(text, overwrite)
        seen[key] = text


def _keep(path: Path, text: str, origins: Mapping[Path, str]) -> None:
    if path in origins:
        raise UsageError(f"output {text!r} would write over the {origins[path]} {str(path)!r}; choose another name")


def open_sink(text: str, overlay: Overlay, info: VideoInfo) -> FrameSink:
    """Make a sink that `check_sinks` has passed.

    Raises:
        UsageError: It means no kind of sink.
        SinkError: It cannot be opened.
    """
    return SINKS[kind_of(text)].make(text, overlay, info)
