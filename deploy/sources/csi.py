"""Cameras on a CSI ribbon, through GStreamer: Jetson's nvarguscamerasrc, elsewhere libcamerasrc."""

from __future__ import annotations

import re
import time
from pathlib import Path

import cv2

from deploy.frames import Cause
from deploy.sources.address import Options
from deploy.sources.camera import check_given
from deploy.sources.capture import Capture
from deploy.sources.fault import StreamError
from deploy.sources.live import LiveSource, timeouts
from deploy.sources.reconnect import Reconnecting
from lfd.errors import MissingDependencyError, UsageError

TEGRA = Path("/etc/nv_tegra_release")
"""What tells a Jetson."""
DEFAULT_WH, DEFAULT_FPS = (1280, 720), 30.0


def open_csi(address: str, options: Options) -> Reconnecting:
    """Open a CSI camera.

    Args:
        address: `csi://N`, with N from 0.
        options: Its size and rate; 1280x720 at 30 by default.

    Raises:
        UsageError: It is no such address.
        MissingDependencyError: This OpenCV has no GStreamer; those from PyPI do not.
        StreamError: It gives no picture.
    """
    match = re.fullmatch(r"csi://(\d)", address)
    if match is None:
        raise UsageError(f"camera {address!r}; expected csi://0")
    is_jetson = TEGRA.exists()
    pipeline = pipeline_of(int(match[1]), options, is_jetson)
    if not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        raise MissingDependencyError(
            f"{address}: this OpenCV ({cv2.__version__}) has no GStreamer, and those from PyPI never do. Fix: "
            "pip uninstall opencv-python-headless opencv-python, and take the system's: "
            + ("JetPack brings it" if is_jetson else "apt install python3-opencv gstreamer1.0-libcamera")
            + ", in an environment made with --system-site-packages"
        )
    return Reconnecting(lambda: _open(address, pipeline, options, is_jetson), options.give_up_s)


def pipeline_of(sensor: int, options: Options, is_jetson: bool) -> str:
    """Return the GStreamer pipeline; it holds one picture, the newest.

    Raises:
        UsageError: libcamera has its cameras by name, not by number.
    """
    width, height = options.size_wh or DEFAULT_WH
    rate = f"width={width},height={height},framerate={round(1000 * (options.fps or DEFAULT_FPS))}/1000"
    if is_jetson:
        head = (
            f"nvarguscamerasrc sensor-id={sensor} ! video/x-raw(memory:NVMM),{rate},format=NV12 "
            "! nvvidconv ! video/x-raw,format=BGRx"
        )
    elif sensor == 0:
        head = f"libcamerasrc ! video/x-raw,{rate}"
    else:
        raise UsageError(f"csi://{sensor}: libcamera takes the first camera only; expected csi://0")
    return f"{head} ! videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1 sync=false"


def _open(name: str, pipeline: str, options: Options, is_jetson: bool) -> LiveSource:
    begin = time.monotonic()
    capture = Capture(pipeline, cv2.CAP_GSTREAMER, timeouts(options))
    first = capture.read() if capture.is_opened() else None
    daemon = "sudo systemctl restart nvargus-daemon" if is_jetson else "cam --list shows what libcamera finds"
    if first is None:
        capture.close()
        late = time.monotonic() - begin >= 0.95 * options.open_timeout_s
        cause = Cause.TIMED_OUT if late else Cause.NOT_FOUND
        raise StreamError(cause, name, "gives no picture", f"check the ribbon and the size; {daemon}")

    def lost(pictures: int, waited_s: float) -> StreamError:
        cause = Cause.TIMED_OUT if waited_s >= 0.95 * options.read_timeout_s else Cause.CLOSED
        return StreamError(cause, name, f"lost after {pictures} pictures", f"check the ribbon; {daemon}")

    source = LiveSource(capture, first, options.read_timeout_s, lost)
    check_given(name, capture, source.info, options)
    return source
