"""Where frames and class maps go: an overlay film, PNG masks, a window, or nowhere.

A sink is one class here and one line in SINKS; `check_sinks` judges what the user typed before a
model is loaded, `open_sink` makes the sink. Nothing stands under a final name before it is complete.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import cv2

from deploy.frames import Frame, FrameSink, StopRequested, VideoInfo
from deploy.overlay import Overlay
from lfd.errors import SinkError, UsageError
from lfd.files import check_free
from lfd.preprocess import Image

CODECS = {".webm": "VP80", ".mp4": "mp4v", ".avi": "MJPG"}
"""Film suffix -> codec. The OpenCV wheels write these three; H.264 and HEVC do not open in them."""
DEFAULT_FPS = 25.0
"""Of the film when the source does not know its own rate, as a folder of pictures does not."""
MIN_FREE_BYTES = 16 << 20
FREE_CHECK_FRAMES = 25

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


class FilmSink:
    """A film of the overlay, written aside and renamed once it has been read back.

    Args:
        path: Its suffix chooses the codec; see CODECS.
        overlay: Paints the frames.
        info: The source's. A live source's dropped frames are filled with the one before, so that the
            film runs at the camera's pace.
    """

    def __init__(self, path: Path, overlay: Overlay, info: VideoInfo) -> None:
        self._path, self._overlay = path, overlay
        self._aside = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
        self._fps = info.fps or DEFAULT_FPS
        self._live = info.live
        self._writer: cv2.VideoWriter | None = None
        self._size_wh = (0, 0)
        self._written = 0
        self._last: tuple[int, Image] | None = None

    def write(self, frame: Frame, class_map: Image) -> None:
        """Append the frame.

        Raises:
            SinkError: The codec does not open, the frame has another size than the film, or the disk is full.
        """
        picture = self._overlay.paint(frame, class_map)
        size_wh = (picture.shape[1], picture.shape[0])
        if self._writer is None:
            self._open(size_wh)
        if size_wh != self._size_wh:
            raise SinkError(
                f"{self._path}: the film has {self._size_wh[0]}x{self._size_wh[1]} pixels, but frame {frame.index} "
                f"{frame.name!r} gives {size_wh[0]}x{size_wh[1]}; a film has one size. Fix: write masks to DIR/ instead"
            )
        if self._live and self._last is not None:
            missed = min(frame.index - self._last[0] - 1, round(self._fps))
            for _ in range(missed):
                self._append(self._last[1])
        self._append(picture)
        self._last = (frame.index, picture)

    def _open(self, size_wh: tuple[int, int]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        codec = CODECS[self._path.suffix.lower()]
        # FFmpeg drops the last row or column of an odd size in silence: `_append` adds one instead.
        even_wh = (size_wh[0] + size_wh[0] % 2, size_wh[1] + size_wh[1] % 2)
        with _stderr_to_null():  # it remarks that webm has no tag for VP8, which is right and of no interest
            self._writer = cv2.VideoWriter(
                str(self._aside), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), self._fps, even_wh
            )
        if not self._writer.isOpened():
            reason = "" if os.access(self._path.parent, os.W_OK) else f"{self._path.parent} is not writable; "
            raise SinkError(
                f"{self._path}: {reason}this OpenCV ({cv2.__version__}) cannot write {codec} in {self._path.suffix}. "
                f"Fix: choose another of {', '.join(CODECS)}"
            )
        self._size_wh = size_wh

    def _append(self, picture: Image) -> None:
        assert self._writer is not None  # noqa: S101 - opened by `write`
        if picture.shape[0] % 2 or picture.shape[1] % 2:
            bottom, right = picture.shape[0] % 2, picture.shape[1] % 2
            picture = cv2.copyMakeBorder(picture, 0, bottom, 0, right, cv2.BORDER_REPLICATE)  # type: ignore[assignment]
        self._writer.write(picture)  # tells nobody when the disk is full
        self._written += 1
        if self._written % FREE_CHECK_FRAMES == 0:
            free = shutil.disk_usage(self._aside.parent).free
            if free < MIN_FREE_BYTES:
                raise SinkError(
                    f"{self._path}: the disk is full ({free >> 20} MiB left after {self._written} frames). "
                    "Fix: free space, or write elsewhere"
                )

    def close(self, complete: bool) -> None:
        """Finish the film and give it its name; remove it when it is not complete.

        Raises:
            SinkError: What was written cannot be read back.
        """
        writer, self._writer = self._writer, None
        try:
            if writer is None:
                return
            writer.release()
            if complete:
                self._read_back()
                with self._aside.open("rb") as file:
                    os.fsync(file.fileno())
                self._aside.replace(self._path)
        finally:
            self._aside.unlink(missing_ok=True)

    def _read_back(self) -> None:
        """Notice a film that the disk had no room for: the writer reports nothing."""
        capture = cv2.VideoCapture(str(self._aside), cv2.CAP_FFMPEG)
        try:
            frames = round(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
            last = max(0, self._written - 1)
            readable = frames >= last and capture.set(cv2.CAP_PROP_POS_FRAMES, last) and capture.read()[0]
        finally:
            capture.release()
        if not readable:
            free = shutil.disk_usage(self._aside.parent).free
            raise SinkError(
                f"{self._path}: of {self._written} frames written {max(frames, 0)} can be read back; the disk is full "
                f"or its quota used up ({free >> 20} MiB free). Fix: free space, or write elsewhere"
            )


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


@contextmanager
def _stderr_to_null() -> Iterator[None]:
    """Drop what native code writes to file descriptor 2; where there is none, do nothing."""
    try:
        saved = os.dup(2)
    except OSError:
        yield
        return
    sys.stderr.flush()
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(null)
        os.close(saved)


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
    _check_parent(path)


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
    _check_parent(path)


def _check_parent(path: Path) -> None:
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UsageError(f"{path}: {parent} is {'not writable' if parent.is_dir() else 'a file, not a folder'}")


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


def check_sinks(texts: Sequence[str], source: str, overwrite: bool) -> None:
    """Judge the sinks a user typed, before a model is loaded.

    Args:
        texts: Sinks.
        source: The source's text: a sink in its place is refused, whatever `overwrite` says.
        overwrite: Whether files may be replaced.

    Raises:
        UsageError: A sink is unknown, given twice, in the way of a file, or in place of the source.
        SinkError: There is no screen for display://.
    """
    seen: dict[Path | str, str] = {}
    origin = Path(source).expanduser().resolve()
    for text in texts:
        kind = kind_of(text)
        key: Path | str = Path(text).expanduser().resolve() if kind in ("film", "masks") else text
        if key in seen:
            raise UsageError(f"sink {text!r} is the same as {seen[key]!r}; give each once")
        if isinstance(key, Path) and (key == origin or (kind == "masks" and key == origin.parent)):
            raise UsageError(f"sink {text!r} would write over the source {source!r}; choose another name")
        SINKS[kind].check(text, overwrite)
        seen[key] = text


def open_sink(text: str, overlay: Overlay, info: VideoInfo) -> FrameSink:
    """Make a sink that `check_sinks` has passed.

    Raises:
        UsageError: It means no kind of sink.
        SinkError: It cannot be opened.
    """
    return SINKS[kind_of(text)].make(text, overlay, info)
