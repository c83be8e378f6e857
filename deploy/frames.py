"""The values that travel from a source through the pipeline to the sinks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
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
        index: Position in its source, from 0; a gap is frames that a newer one has replaced.
        captured_ns: `time.monotonic_ns()` when the source had it.
        name: File-name stem where the source has one (a folder of pictures), else "".
        truth: (H, W) uint8 label values, from a source that knows them (street:), else None.
    """

    image: Image
    index: int
    captured_ns: int
    name: str = ""
    truth: Image | None = None


class State(str, Enum):  # StrEnum is of Python 3.11
    """How a stream is."""

    LIVE = "live"
    """Frames come."""
    LOST = "lost"
    """No frames come, and it is tried again. What was shown last is stale."""
    ENDED = "ended"
    """No more will come."""


class Cause(str, Enum):
    """Why a stream was lost, or could not be opened."""

    REFUSED = "refused"
    """Nothing listens there."""
    UNREACHABLE = "unreachable"
    """No such host, or no way to it."""
    UNAUTHORIZED = "unauthorized"
    """User name or password is wrong or missing."""
    NOT_FOUND = "not found"
    """The server or the machine is there, but not the stream or device."""
    TIMED_OUT = "timed out"
    """No picture within the time allowed."""
    CLOSED = "closed"
    """The other side ended it."""
    UNREADABLE = "unreadable"
    """What comes cannot be decoded."""


@dataclass(frozen=True)
class StreamStatus:
    """How a stream is, said by its source whenever it changes.

    Attributes:
        state: How it is.
        since_ns: `time.monotonic_ns()` when it became so.
        cause: Why it is lost; None while it is live.
        detail: A line for people, without credentials.
        reconnects: How often it was lost and came back.
        attempt: How often it was tried since it was lost.
        retry_in_s: Seconds from `since_ns`, or from the last attempt, to the next one; None when there is none.
    """

    state: State
    since_ns: int
    cause: Cause | None = None
    detail: str = ""
    reconnects: int = 0
    attempt: int = 0
    retry_in_s: float | None = None


class StopRequested(Exception):  # noqa: N818 - a wish, not an error
    """Raised by a sink's `write` when its viewer asks to end: what was written is kept."""


class FrameSource(Protocol):
    """A stream of frames. Its end is StopIteration; a failure that is final raises SourceError.

    One that reconnects by itself says so in between, with a StreamStatus at each change. After it came back frames
    may have another size; `info` stays what it was.
    """

    @property
    def info(self) -> VideoInfo: ...

    def __iter__(self) -> Iterator[Frame | StreamStatus]: ...

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

    def show_status(self, status: StreamStatus) -> None:
        """Hear how the stream is: at each change, and some 20 times a second while no frame comes.

        What was written last is stale while `status.state` is LOST; a sink that shows it marks it so. Never a black
        picture.

        Raises:
            StopRequested: The viewer asks to end.
        """
        ...

    def close(self, complete: bool) -> None:
        """Finish.

        Args:
            complete: False after a failure of a sink or the model. Then nothing of a file stays under the final name,
                but what a live source gave does.
        """
        ...
