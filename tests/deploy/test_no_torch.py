"""The runtime on a machine that has no torch, onnx, safetensors, rich or tensorboard."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from blocker import BLOCKED

ROOT = Path(__file__).parents[2]

if os.environ.get("LFD_BLOCK_TORCH"):
    pytest.skip("this is the run without torch", allow_module_level=True)

IMPORT_ALL = """
import importlib, pkgutil, sys
import blocker
blocker.install()
import deploy
names = [m.name for m in pkgutil.walk_packages(deploy.__path__, "deploy.")]
for name in names:
    importlib.import_module(name)
bad = [name for name in sys.modules if name.split(".")[0] in blocker.BLOCKED]
assert not bad, bad
assert len(names) >= 10, names
"""


def run(*args: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"LFD_BLOCK_TORCH": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'deploy'}"}
    return subprocess.run([sys.executable, *args], cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_every_module_imports() -> None:
    done = run("-c", IMPORT_ALL)
    assert done.returncode == 0, done.stderr


def test_the_block_blocks() -> None:
    for name in BLOCKED:
        done = run("-c", f"import blocker; blocker.install()\nimport {name}")
        assert done.returncode == 1 and "is blocked" in done.stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, blocker; blocker.install()\nimport deploy.cli\n"
        "try: deploy.cli.run_main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'cv2', 'numpy', 'onnxruntime'} & set(sys.modules), 'heavy'"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert "SOURCE" in done.stdout and "null://" in done.stdout


@pytest.mark.slow
def test_the_suite_of_deploy_passes() -> None:
    done = run("-m", "pytest", "tests/deploy", "-q", "-x", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout[-4000:]
