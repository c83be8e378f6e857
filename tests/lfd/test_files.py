"""What a killed process left half-written is removed, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lfd.files import clear_partial


def ended() -> int:
    """Return the number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("name", "stays"),
    [
        (".resume.{dead}.partial.pt", False),
        (".staging.{dead}.partial", False),
        (".a.b.{dead}.partial.onnx", False),
        (".resume.{own}.partial.pt", False),
        (".resume.{parent}.partial.pt", True),
        (".mine.partial.txt", True),
        ("resume.{dead}.partial.pt", True),
        (".resume.{dead}.pt", True),
    ],
)
def test_what_a_killed_process_left_goes(tmp_path: Path, name: str, stays: bool) -> None:
    path = tmp_path / name.format(dead=ended(), own=os.getpid(), parent=os.getppid())
    path.write_text("half")
    clear_partial(tmp_path)
    assert path.exists() == stays


def test_a_folder_goes_with_what_is_in_it_and_an_absent_one_is_no_error(tmp_path: Path) -> None:
    folder = tmp_path / f".staging.{ended()}.partial"
    folder.mkdir()
    (folder / "model.onnx").write_text("half")
    clear_partial(tmp_path)
    assert not folder.exists()
    clear_partial(tmp_path / "absent")
