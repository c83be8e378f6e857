"""Films by an ffmpeg process: H.264, which every browser plays and OpenCV's wheels do not write."""

from __future__ import annotations

import functools
import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections import deque
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from lfd.errors import MissingDependencyError, SinkError
from lfd.preprocess import Image

STALL_S = 5.0
"""An ffmpeg that takes no byte for so long hangs: one picture takes it a fraction of a second."""
FINISH_S = 30.0
"""How long it may take over the pictures it still holds, after the last one was given."""
ASK_S = 10.0
DEATH_S = 0.5
"""How long one that has closed its end of the pipe has to end by itself, and say why."""
KEYFRAME_S = 2.0
"""A film that was cut off plays up to its last key frame but one."""
KEPT_LINES = 20
ENVIRONMENT = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH")
"""What of ours it gets: another variable may hold a camera's password."""
_INSTALL = "Fix: apt install ffmpeg (Debian, Ubuntu), brew install ffmpeg (macOS), or write FILE.webm, which needs none"


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}


@functools.cache
def encoders(program: str) -> frozenset[str]:
    """Return the video encoders that an ffmpeg was built with; it is asked once.

    Raises:
        SinkError: It cannot be started, fails, or does not answer.
    """
    try:
        answer = subprocess.run(
            [program, "-hide_banner", "-encoders"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=ASK_S,
            env=_environment(),
            check=True,
            text=True,
            errors="replace",
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise SinkError(f"{program}: does not tell its encoders ({error}). {_INSTALL}") from error
    return frozenset(re.findall(r"^ V\S{5} (\S+)", answer.stdout, re.MULTILINE))


def find_ffmpeg() -> str:
    """Return the path of an ffmpeg on PATH that writes H.264.

    Raises:
        MissingDependencyError: There is none, or it is built without x264.
        SinkError: It does not answer.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        raise MissingDependencyError(f"codec=h264: there is no ffmpeg on PATH. {_INSTALL}")
    if "libx264" not in encoders(program):
        raise MissingDependencyError(f"codec=h264: {program} is built without libx264. {_INSTALL}")
    return program


def _command(program: str, aside: Path, fps: float, size_wh: tuple[int, int], crf: int, preset: str) -> list[str]:
    pictures = {
        "-f": "rawvideo",
        "-pix_fmt": "yuv420p",
        "-video_size": f"{size_wh[0]}x{size_wh[1]}",
        "-framerate": str(Fraction(fps).limit_denominator(1001)),
        "-i": "pipe:0",
    }
    film = {
        "-c:v": "libx264",
        "-preset": preset,
        "-crf": str(crf),
        "-pix_fmt": "yuv420p",
        "-g": str(max(1, round(KEYFRAME_S * fps))),
        "-threads": str(max(1, (os.cpu_count() or 1) // 2)),
        # What OpenCV's conversion gives; untold, players take 720p and more for BT.709, and colours shift.
        "-color_range": "tv",
        "-colorspace": "smpte170m",
        "-color_primaries": "smpte170m",
        "-color_trc": "smpte170m",
        "-movflags": "+frag_keyframe+empty_moov+default_base_moof",
        "-flush_packets": "1",
        "-f": "mp4",
    }
    options = [word for pair in (*pictures.items(), *film.items()) for word in pair]
    return [program, "-hide_banner", "-loglevel", "error", "-nostats", "-n", *options, f"file:{aside}"]


class FfmpegEncoder:
    """One film, H.264 4:2:0 in fragments: a browser plays it, and what a crash leaves plays too.

    Pictures go to the process as I420, half the bytes of BGR. Nothing here waits for ever on it.

    Args:
        path: The film's final name, for messages.
        aside: Where to write.
        fps: Pictures a second.
        size_wh: Of the pictures, even numbers.
        crf: x264's constant rate factor, 0 (lossless) to 51.
        preset: x264's.

    Raises:
        MissingDependencyError: There is no ffmpeg with x264.
        SinkError: It cannot be started.
    """

    def __init__(self, path: Path, aside: Path, fps: float, size_wh: tuple[int, int], crf: int, preset: str) -> None:
        self._path = path
        self._said: deque[str] = deque(maxlen=KEPT_LINES)
        self._rest = b""
        try:
            self._process = subprocess.Popen(
                _command(find_ffmpeg(), aside, fps, size_wh, crf, preset),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for us: we end it when all pictures are in
            )
        except OSError as error:
            raise SinkError(f"{path}: ffmpeg cannot be started ({error.strerror})") from error
        assert self._process.stdin is not None and self._process.stderr is not None  # noqa: S101 - both are PIPE
        self._stdin, self._stderr = self._process.stdin, self._process.stderr
        self._selector = selectors.DefaultSelector()
        for stream, event in ((self._stdin, selectors.EVENT_WRITE), (self._stderr, selectors.EVENT_READ)):
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, event)

    def append(self, picture: Image) -> None:
        """Give it one picture.

        Raises:
            SinkError: It has ended, or hangs.
        """
        planes = np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420), dtype=np.uint8)
        left = planes.data.cast("B")
        deadline = time.monotonic() + STALL_S
        while left:
            ready = {key.fileobj for key, _ in self._selector.select(max(0.0, deadline - time.monotonic()))}
            if self._stderr in ready:
                self._listen()
            if self._stdin in ready:
                try:
                    left = left[os.write(self._stdin.fileno(), left) :]
                except BlockingIOError:
                    continue
                except OSError as error:  # it has closed its end
                    self._selector.unregister(self._stdin)
                    raise self._dead() from error
                deadline = time.monotonic() + STALL_S
            elif time.monotonic() >= deadline:
                raise SinkError(f"{self._path}: ffmpeg takes no pictures for {STALL_S:g} s{self._last_line()}")

    def finish(self) -> None:
        """Let it write what it holds, and end.

        Raises:
            SinkError: It fails, or does not end.
        """
        self._selector.unregister(self._stdin)
        self._stdin.close()
        try:
            if not self._ends(FINISH_S):
                raise SinkError(f"{self._path}: ffmpeg does not end within {FINISH_S:g} s{self._last_line()}")
            if self._process.returncode != 0:
                raise self._dead()
        finally:
            self.abort()

    def abort(self) -> None:
        """Kill it, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._stdin, self._stderr):
            with suppress(OSError):
                stream.close()
        self._selector.close()

    def _ends(self, within_s: float) -> bool:
        """Read what it says until it ends; return whether it does in time."""
        deadline = time.monotonic() + within_s
        while self._stderr in self._selector.get_map() and time.monotonic() < deadline:
            ready = self._selector.select(max(0.0, deadline - time.monotonic()))
            if any(key.fileobj is self._stderr for key, _ in ready):
                self._listen()
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
        return True

    def _listen(self) -> None:
        """Take what it has said, so that it never waits for us."""
        said = os.read(self._stderr.fileno(), 65536)
        if not said:
            self._selector.unregister(self._stderr)
        *lines, self._rest = (self._rest + said).split(b"\n")
        self._rest = self._rest[-4096:]
        self._said += [text for line in lines if (text := line.decode(errors="replace").strip())]

    def _dead(self) -> SinkError:
        """Return the error for an ffmpeg that has ended, or closed its end of the pipe."""
        if not self._ends(DEATH_S):
            return SinkError(f"{self._path}: ffmpeg closed its input and goes on{self._last_line()}")
        code = self._process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return SinkError(f"{self._path}: ffmpeg {how}{self._last_line()}")

    def _last_line(self) -> str:
        rest = self._rest.decode(errors="replace").strip()
        line = rest or (self._said[-1] if self._said else "")
        return f": {line[:300]}" if line else ""
