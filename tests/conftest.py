"""Fixtures for the whole suite: small data sets made on the spot, and the real ones where they are."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

# A shell starts its background jobs with Ctrl-C ignored, and so would be what the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
REAL = Path(os.environ.get("LFD_TEST_DATA", ROOT.parent / "shared"))
"""Folder with camvid/, video/ and refs/: real material that is not part of the project."""


@pytest.fixture
def real() -> Path:
    if not REAL.is_dir():
        pytest.skip(f"no real pictures and films in {REAL}; set LFD_TEST_DATA")
    return REAL


CLASSES = (("ground", (128, 64, 128)), ("sky", (70, 130, 180)), ("thing", (220, 20, 60)))


def make_folder(root: Path, counts: dict[str, int], size_hw: tuple[int, int] = (48, 64), seed: int = 0) -> Path:
    """Write a folder: data set of three classes that a network can tell apart by colour and place."""
    rng = np.random.default_rng(seed)
    lines = ["ignore = 255", *(f'[[class]]\nname = "{n}"\ncolor = {list(c)}' for n, c in CLASSES)]
    root.mkdir(parents=True, exist_ok=True)
    (root / "labels.toml").write_text("\n".join(lines))
    height, width = size_hw
    for split, count in counts.items():
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            mask = np.zeros((height, width), np.uint8)
            mask[: int(height * rng.uniform(0.3, 0.6))] = 1
            y, x = int(rng.integers(0, height - 12)), int(rng.integers(0, width - 12))
            mask[y : y + 12, x : x + 12] = 2
            mask[0, 0] = 255
            colors = np.array([[60, 90, 60], [200, 160, 120], [40, 40, 200], *[[0, 0, 0]] * 253], np.uint8)
            image = np.clip(colors[mask].astype(int) + rng.integers(-25, 25, (height, width, 3)), 0, 255)
            cv2.imwrite(str(root / "images" / split / f"{index:03}.png"), image.astype(np.uint8))
            cv2.imwrite(str(root / "masks" / split / f"{index:03}.png"), mask)
    return root


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: data set with 16 training, 4 validation and 4 test pictures of 48x64."""
    return make_folder(tmp_path_factory.mktemp("data") / "toy", {"train": 16, "val": 4, "test": 4})
