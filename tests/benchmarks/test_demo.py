"""The demo from end to end, on few and small pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from tests.conftest import ROOT


def demo(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.demo", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_demo_makes_film_picture_and_report(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    models = ["--teacher", "deeplabv3_resnet18_os16", "--student", "lraspp_mobilenet_v3_small"]
    data = ["--data", "street:?size=96x128&frames=8", "--video", "street:?size=96x128&frames=12"]
    done = demo(*models, *data, "--steps", 8, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "times faster" in done.stdout and "student, alone" in done.stdout
    film = cv2.VideoCapture(str(out / "student.webm"))
    frames = 0
    while film.read()[0]:
        frames += 1
    assert frames == 12
    picture = cv2.imread(str(out / "side-by-side.png"))
    assert picture is not None and picture.std() > 10
    bench = json.loads((out / "bench" / "bench.json").read_text())
    assert bench["teacher"]["model"] == "deeplabv3_resnet18_os16" and len(bench["students"]) == 1
    assert len(json.loads((out / "commands.json").read_text())) == 9


def test_a_folder_that_is_no_demo_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = demo("--out", tmp_path)
    assert done.returncode == 2 and "not an earlier demo" in done.stderr
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_other_data_needs_a_film(tmp_path: Path) -> None:
    done = demo("--data", f"camvid:{tmp_path}", "--out", tmp_path / "o")
    assert done.returncode == 2 and "VIDEO=FILE" in done.stderr and not (tmp_path / "o").exists()
