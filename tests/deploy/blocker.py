"""Refuse the packages that an edge device does not have: with LFD_BLOCK_TORCH=1 their import fails."""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from typing import Any

BLOCKED = ("torch", "torchvision", "onnx", "onnxscript", "safetensors", "rich", "tensorboard", "matplotlib")


class Blocker:
    """A `sys.meta_path` finder that refuses what only training and export have."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.split(".", 1)[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is blocked: the runtime must do without it", name=name)
        return None


def install() -> None:
    """Put the blocker in front when the environment asks for it."""
    if os.environ.get("LFD_BLOCK_TORCH") and not any(isinstance(finder, Blocker) for finder in sys.meta_path):
        sys.meta_path.insert(0, Blocker())
