"""Cameras of this machine: a double stands in for cv2.VideoCapture, and a plain file for the device.

A real device node would need the kernel module v4l2loopback.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest

from deploy.frames import Cause, Frame, State, StreamStatus
from deploy.sources import StreamError, csi, open_source
from deploy.sources.address import Options
from deploy.sources.reconnect import Backoff
from lfd.errors import MissingDependencyError, SourceError, UsageError


class Driver:
    """A `cv2.VideoCapture` whose driver offers one size, rate and format; gives `frames` pictures an opening."""

    size_wh, fps, fourcc = (640, 480), 30.0, "MJPG"
    frames: ClassVar[list[int]] = [5]
    opened: ClassVar[list[tuple[Any, ...]]] = []
    asked: ClassVar[dict[int, float]] = {}
    released = 0

    def __init__(self, *args: Any) -> None:
        cls = type(self)
        cls.opened.append(args)
        self._left = cls.frames[min(len(cls.opened), len(cls.frames)) - 1]

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        return True

    def set(self, prop: int, value: float) -> bool:
        type(self).asked[prop] = value
        return True

    def get(self, prop: int) -> float:
        given = {cv2.CAP_PROP_FPS: self.fps, cv2.CAP_PROP_FOURCC: float(cv2.VideoWriter.fourcc(*self.fourcc))}
        return given.get(prop, 0.0)

    def grab(self) -> bool:
        time.sleep(0.002)
        self._left -= 1
        return self._left >= 0

    def retrieve(self) -> tuple[bool, np.ndarray]:
        return True, np.full((self.size_wh[1], self.size_wh[0], 3), 99, np.uint8)

    def release(self) -> None:
        type(self).released += 1


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> type[Driver]:
    class Fresh(Driver):
        frames: ClassVar[list[int]] = [5]
        opened: ClassVar[list[tuple[Any, ...]]] = []
        asked: ClassVar[dict[int, float]] = {}

    monkeypatch.setattr(cv2, "VideoCapture", Fresh)
    return Fresh


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "video0"
    path.touch()
    return path


def test_what_is_asked_and_given(driver: type[Driver], device: Path) -> None:
    source = open_source(f"v4l2://{device}?size=640x480&fps=29.97&fourcc=MJPG")
    assert driver.opened == [(str(device), cv2.CAP_V4L2, [])]
    assert driver.asked == {
        cv2.CAP_PROP_FOURCC: cv2.VideoWriter.fourcc(*"MJPG"),
        cv2.CAP_PROP_FRAME_WIDTH: 640,
        cv2.CAP_PROP_FRAME_HEIGHT: 480,
        cv2.CAP_PROP_FPS: 29.97,
    }
    info = source.info
    assert (info.resolution_wh, info.fps, info.frames, info.live) == ((640, 480), 30.0, None, True)
    source.close()
    assert driver.released >= 1


def test_nothing_is_asked_by_default(driver: type[Driver], device: Path) -> None:
    open_source(f"v4l2://{device}").close()
    assert driver.asked == {}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("size=1280x720", "size=1280x720 was asked, the driver gives 640x480"),
        ("fps=60", "fps=60 was asked, the driver gives 30"),
        ("fourcc=YUYV", "fourcc=YUYV was asked, the driver gives MJPG"),
        ("size=8x8&fps=1", "size=8x8 was asked, the driver gives 640x480; fps=1 was asked, the driver gives 30"),
    ],
)
def test_what_the_driver_does_not_do(driver: type[Driver], device: Path, options: str, said: str) -> None:
    with pytest.raises(SourceError, match=rf"{said}\. Fix: ask for what it has"):
        open_source(f"v4l2://{device}?{options}")
    assert driver.released == 1


def test_a_camera_that_gives_nothing(driver: type[Driver], device: Path) -> None:
    driver.frames = [0]
    with pytest.raises(StreamError, match="in use by another program") as caught:
        open_source(f"v4l2://{device}")
    assert caught.value.cause is Cause.TIMED_OUT and driver.released >= 1


def test_a_camera_that_is_not_there(tmp_path: Path) -> None:
    for text in ("9876", "/dev/video9876", f"v4l2://{tmp_path}/video1?fps=30"):
        with pytest.raises(StreamError, match=r"no such camera; this machine has .*Fix: ") as caught:
            open_source(text)
        assert caught.value.cause is Cause.NOT_FOUND
    for text in ("v4l2:nonsense", "v4l2://video0"):
        with pytest.raises(UsageError, match="expected an index such as 0"):
            open_source(text)


def test_a_camera_that_is_unplugged_and_back(
    driver: type[Driver], device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backoff, "wait_s", lambda self, attempt: 0.01)
    driver.frames = [4, 3]
    source = open_source(f"v4l2://{device}")
    frames, statuses = [], []
    for item in source:
        if isinstance(item, StreamStatus):
            statuses.append(item)
            if len(statuses) == 3:
                device.touch()
        else:
            frames.append(item)
            if item.index == 2:
                device.unlink()
            if item.index == 5:
                source.close()
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4, 5]
    assert all(isinstance(frame, Frame) and frame.image.any() for frame in frames)
    assert statuses[0].cause is Cause.NOT_FOUND and "was unplugged after 4 pictures" in statuses[0].detail
    assert "no such camera" in statuses[1].detail
    assert statuses[-1].state is State.LIVE and statuses[-1].reconnects == 1


def test_a_camera_that_is_given_up(driver: type[Driver], device: Path) -> None:
    driver.frames = [2, 0]
    source = open_source(f"v4l2://{device}?give_up=0")
    with pytest.raises(StreamError, match="given up"):
        list(source)


@pytest.mark.parametrize(
    ("sensor", "options", "is_jetson", "pipeline"),
    [
        (
            1,
            Options((1920, 1080), 59.94),
            True,
            (
                "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM),width=1920,height=1080,framerate=59940/1000,"
                "format=NV12 ! nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR "
                "! appsink drop=true max-buffers=1 sync=false"
            ),
        ),
        (
            0,
            Options(),
            False,
            (
                "libcamerasrc ! video/x-raw,width=1280,height=720,framerate=30000/1000 ! videoconvert "
                "! video/x-raw,format=BGR ! appsink drop=true max-buffers=1 sync=false"
            ),
        ),
    ],
)
def test_csi_pipelines(sensor: int, options: Options, is_jetson: bool, pipeline: str) -> None:
    assert csi.pipeline_of(sensor, options, is_jetson) == pipeline


def test_csi_without_gstreamer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2.videoio_registry, "hasBackend", lambda api: False)
    with pytest.raises(MissingDependencyError, match=r"has no GStreamer.*Fix: .*apt install python3-opencv"):
        open_source("csi://0")
    for text in ("csi://", "csi://x", "csi:0"):
        with pytest.raises(UsageError, match="expected csi://0"):
            open_source(text)
    with pytest.raises(UsageError, match="first camera only"):
        open_source("csi://1")


def test_csi_with_gstreamer(driver: type[Driver], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cv2.videoio_registry, "hasBackend", lambda api: True)
    monkeypatch.setattr(csi, "TEGRA", tmp_path)
    source = open_source("csi://2?size=640x480")
    target, api, params = driver.opened[0]
    assert api == cv2.CAP_GSTREAMER and target.startswith("nvarguscamerasrc sensor-id=2 !")
    assert params == [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 5000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 5000]
    assert next(iter(source)).index == 0  # type: ignore[union-attr]
    source.close()
    with pytest.raises(SourceError, match="size=1280x720 was asked, the driver gives 640x480"):
        open_source("csi://2?size=1280x720")
    driver.frames = [0]
    with pytest.raises(StreamError, match="check the ribbon"):
        open_source("csi://2")
