"""The values that travel from a source through the pipeline to the sinks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from lfd.preprocess import Image
from lfd.spec import Labels


@dataclass(frozen=True)
class VideoInfo:
    """What a source says of itself before the first frame.

    Attributes:
        resolution_wh: Width and height in pixels.
        fps: Frames a second it was made at or delivers; 0 when it does not know.
        frames: How many will come; None when endless or not known.
        live: True for a camera: when we are slow the newest frame counts and older ones are
            dropped. False for a file: every frame, in order.
        labels: The classes of `Frame.truth`, from a source that knows the truth, else None.
    """

    resolution_wh: tuple[int, int]
    fps: float
    frames: int | None
    live: bool
    labels: Labels | None = None


@dataclass(frozen=True)
class Frame:
    """A picture and when it was taken.

    Attributes:
        image: (H, W, 3) BGR uint8; nobody writes into it.
        index: Position in its source, from 0; a gap is a dropped frame.
        captured_ns: `time.monotonic_ns()` when the source had it.
        name: File-name stem where the source has one (a folder of pictures), else "".
        truth: (H, W) uint8 label values, from a source that knows them (street:), else None.
    """

    image: Image
    index: int
    captured_ns: int
    name: str = ""
    truth: Image | None = None


class StopRequested(Exception):  # noqa: N818 - a wish, not an error
    """Raised by a sink's `write` when its viewer asks to end: what was written is kept."""


class FrameSource(Protocol):
    """A stream of frames. Its end is StopIteration; a failure raises SourceError."""

    @property
    def info(self) -> VideoInfo: ...

    def __iter__(self) -> Iterator[Frame]: ...

    def close(self) -> None:
        """Release the device or file. May be called twice, and from another thread."""
        ...


class FrameSink(Protocol):
    """Takes frames with their class maps, in order."""

    def write(self, frame: Frame, class_map: Image) -> None:
        """Take one frame; `class_map` is (H, W) uint8 at the frame's size.

        Raises:
            SinkError: It cannot be written.
            StopRequested: The viewer asks to end.
        """
        ...

    def close(self, complete: bool) -> None:
        """Finish. `complete` is false after a failure: then nothing stays under the final name."""
        ...
