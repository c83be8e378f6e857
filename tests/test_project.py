"""Rules that hold for the whole project."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "onnx", "rich", "safetensors", "tensorboard", "matplotlib")


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("lfd", (*HEAVY, "numpy", "cv2")),
        ("lfd.data", HEAVY),
        ("lfd.evaluate", HEAVY),
        ("deploy.session", HEAVY),
        ("deploy.pipeline", HEAVY),
        ("deploy.bench.benchmark", HEAVY),
        ("lfd.cli", HEAVY),
        ("lfd.fetch", HEAVY),
        ("export.cli", HEAVY),
        ("deploy.cli", (*HEAVY, "onnxruntime")),
        ("deploy.bench.cli", (*HEAVY, "onnxruntime")),
    ],
)
def test_importing_a_room_does_not_bring_the_heavy_ones(module: str, never: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(sorted(set({never!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["lfd.cli", "export.cli", "deploy.cli", "deploy.bench.cli"])
def test_every_command_has_help(command: str) -> None:
    done = subprocess.run([sys.executable, "-m", command, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage:")
