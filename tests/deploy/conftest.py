"""Fixtures of the runtime's tests: a tiny model, films and pictures made on the spot; no torch, no onnx.

With LFD_BLOCK_TORCH=1 every import of what an edge device does not have fails; see test_no_torch.py.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import blocker
import cv2
import pytest
from doubles import picture
from hypothesis import settings

from lfd.spec import Labels, ModelSpec, Preprocess

GOLDEN = Path(__file__).parents[1] / "golden"
blocker.install()

SLOW = (
    *("faults_http", "faults_rtsp", "run_signals", "bench_signals", "web_browser", "web_load", "web_security"),
    *("pipeline", "sinks_film"),
)
"""Minutes of servers, signals and waiting that are the same without torch, and import nothing that others do not."""
collect_ignore = [f"test_{name}.py" for name in SLOW if os.environ.get("LFD_BLOCK_TORCH")]
if os.environ.get("LFD_BLOCK_TORCH"):  # what is true of numbers is so without torch; the code shall run once
    settings.register_profile("blocked", deadline=None, max_examples=5)
    settings.load_profile("blocked")

LABELS = Labels(("blue", "green", "red"), ((0, 0, 255), (0, 255, 0), (255, 0, 0)))


@pytest.fixture
def spec() -> ModelSpec:
    """What tests/golden/tiny.onnx carries: 24x32, three classes."""
    return ModelSpec("tiny", LABELS, Preprocess((24, 32)), provenance={"data": "none"})


@pytest.fixture
def tiny_model() -> Path:
    """An .onnx whose class is the largest channel: 0 blue, 1 green, 2 red."""
    return GOLDEN / "tiny.onnx"


@pytest.fixture
def make_film(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "in.avi", frames: int = 12, size_hw: tuple[int, int] = (48, 64), fps: float = 25) -> Path:
        path = tmp_path / name
        fourcc = {".avi": "MJPG", ".mp4": "mp4v", ".webm": "VP80"}[path.suffix]
        writer = cv2.VideoWriter(
            str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*fourcc), fps, (size_hw[1], size_hw[0])
        )
        assert writer.isOpened()
        for index in range(frames):
            writer.write(picture(index, size_hw))
        writer.release()
        return path

    return make


@pytest.fixture(autouse=True)
def no_lower_priority() -> Iterator[None]:
    """Fail when a test gives way in the thread that runs the tests: only root can take that back."""
    before = os.nice(0)
    yield
    assert os.nice(0) == before


@pytest.fixture
def no_thread_left() -> Iterator[None]:
    """Fail when the test leaves one of the pipeline's threads behind."""
    yield
    assert [t.name for t in threading.enumerate() if t.name.startswith("lfd-")] == []
