"""Runtimes that report to their makers by themselves do not do so here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUPPRESSES = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "PYTEST_CURRENT_TEST", "ORT_DISABLE_TELEMETRY")
"""Where one of these is set, some stay silent anyway."""
CODE = """
import sys
from pathlib import Path
from deploy.session import open_session
with open_session(Path(sys.argv[1]), sys.argv[2]) as session:
    pass
"""


@pytest.mark.parametrize(("backend", "module"), [("ort", "onnxruntime"), ("openvino", "openvino")])
def test_nothing_is_noted_for_a_report(backend: str, module: str, tiny_model: Path, tmp_path: Path) -> None:
    """They keep an identifier of the machine, and what is still to be sent, in the user's home."""
    pytest.importorskip(module)
    env = {key: value for key, value in os.environ.items() if key not in SUPPRESSES and not key.startswith("XDG_")}
    env |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tiny_model), backend], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == []
