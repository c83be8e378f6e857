"""Cameras of this machine, through V4L2."""

from __future__ import annotations

import os
import re
from pathlib import Path

import cv2

from deploy.frames import Cause, VideoInfo
from deploy.sources.address import Options
from deploy.sources.capture import CAMERA_TIMEOUT_S, Capture
from deploy.sources.fault import StreamError
from deploy.sources.live import LiveSource
from deploy.sources.reconnect import Reconnecting
from lfd.errors import SourceError, UsageError

DEVICE = re.compile(r"(?:v4l2://)?/dev/video(\d+)|(\d+)")
_BY_PATH = re.compile(r"v4l2://(/.+)")
_RATE_TOLERANCE = 0.01
"""Cameras call 29.97 frames a second 30."""


def open_camera(address: str, options: Options) -> Reconnecting:
    """Open a camera of this machine; one that was unplugged comes back when it is plugged in.

    Args:
        address: Index ("0"), /dev/videoN, or v4l2:// and any device's path, such as one of /dev/v4l/by-id.
        options: What is asked of it.

    Raises:
        UsageError: It is no address of a camera.
        StreamError: It is not there, or gives no picture.
        SourceError: It does not do what is asked.
    """
    match = DEVICE.fullmatch(address)
    by_path = _BY_PATH.fullmatch(address)
    if match is None and by_path is None:
        raise UsageError(f"camera {address!r}; expected an index such as 0, or /dev/video0")
    name = f"/dev/video{int(match[1] or match[2])}" if match else str(by_path and by_path[1])
    return Reconnecting(lambda: _open(name, options), options.give_up_s)


def _open(name: str, options: Options) -> LiveSource:
    if not Path(name).exists():
        there = ", ".join(sorted(str(p) for p in Path("/dev").glob("video*"))) or "none"
        fix = "plug it in, or try the built-in scene: street:?fps=25"
        raise StreamError(Cause.NOT_FOUND, name, f"no such camera; this machine has {there}", fix)
    if not os.access(name, os.R_OK | os.W_OK):
        raise StreamError(Cause.UNAUTHORIZED, name, "you may not read it", "join the group `video`, and log in again")
    capture = Capture(name, cv2.CAP_V4L2, [])
    if options.fourcc:
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*options.fourcc))
    if options.size_wh:
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, options.size_wh[0])
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, options.size_wh[1])
    if options.fps:
        capture.set(cv2.CAP_PROP_FPS, options.fps)
    first = capture.read() if capture.is_opened() else None
    if first is None:
        capture.close()
        detail = f"gives no picture within {CAMERA_TIMEOUT_S} s; it may be in use by another program"
        fix = "close the other program, check its cable, or ask for another size and fourcc"
        raise StreamError(Cause.TIMED_OUT, name, detail, fix)

    def lost(pictures: int, waited_s: float) -> StreamError:
        fix = "check its cable and power"
        if not Path(name).exists():
            return StreamError(Cause.NOT_FOUND, name, f"was unplugged after {pictures} pictures", fix)
        if waited_s >= 0.95 * CAMERA_TIMEOUT_S:
            return StreamError(Cause.TIMED_OUT, name, f"no picture within {CAMERA_TIMEOUT_S} s", fix)
        return StreamError(Cause.CLOSED, name, f"ended after {pictures} pictures", fix)

    source = LiveSource(capture, first, CAMERA_TIMEOUT_S, lost)
    check_given(name, capture, source.info, options)
    return source


def check_given(name: str, capture: Capture, info: VideoInfo, options: Options) -> None:
    """Compare what was asked of a camera with what it gives; close it where they differ.

    Raises:
        SourceError: They differ.
    """
    code = int(capture.get(cv2.CAP_PROP_FOURCC))
    fourcc = code.to_bytes(8, "little")[:4].decode("latin-1")
    given, fps = info.resolution_wh, info.fps
    differ = []
    if options.size_wh and options.size_wh != given:
        differ.append(("size", "{}x{}".format(*options.size_wh), "{}x{}".format(*given)))
    if options.fps and abs(fps / options.fps - 1) > _RATE_TOLERANCE:
        differ.append(("fps", f"{options.fps:g}", f"{fps:g}" if fps else "an unknown rate"))
    if options.fourcc and options.fourcc != fourcc:
        differ.append(("fourcc", options.fourcc, fourcc if code and fourcc.isprintable() else "an unknown format"))
    if differ:
        capture.close()
        said = "; ".join(f"{key}={asked} was asked, the driver gives {gives}" for key, asked, gives in differ)
        raise SourceError(f"{name}: {said}. Fix: ask for what it has, which v4l2-ctl --list-formats-ext lists")
