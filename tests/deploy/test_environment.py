"""The environment says what the machine is, and nothing on whose it is."""

from __future__ import annotations

import getpass
import json
import platform
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from deploy import environment
from deploy.environment import Environment


def test_it_describes_this_machine() -> None:
    env = Environment.here(threads=3)
    assert env.threads == 3
    assert env.cores >= 1
    assert env.python == platform.python_version()
    assert "numpy" in env.packages
    assert any("opencv" in name for name in env.packages)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", env.date_utc)
    assert env.memory_mb is None or env.memory_mb > 100


def test_it_names_no_user_host_or_path() -> None:
    text = json.dumps(asdict(Environment.here()))
    # As whole words: a host called "linux" says nothing.
    own = [str(Path.home()), str(Path.cwd()), platform.node(), getpass.getuser()]
    for word in own:
        if word.lower() not in ("", "/", "linux", "debian", "localhost"):
            assert not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text), word


def test_a_system_that_says_nothing_leaves_the_cells_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_read", lambda path: None)
    env = Environment.here()
    assert (env.governor, env.clock_mhz, env.memory_mb) == (None, None, None)
    assert env.cpu


@pytest.mark.parametrize(
    ("files", "cpu"),
    [
        ({"/proc/cpuinfo": "processor\t: 0\nmodel name\t: A  CPU\n"}, "A CPU"),
        ({"/proc/cpuinfo": "processor\t: 0\n", "/proc/device-tree/model": "Jetson Orin"}, "Jetson Orin"),
    ],
)
def test_the_processors_name(monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cpu: str) -> None:
    monkeypatch.setattr(environment, "_read", lambda path: files.get(path.as_posix()))
    assert Environment.here().cpu == cpu


def test_clock_and_governor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo_max_freq").write_text("1500000\n")
    (tmp_path / "scaling_governor").write_text("performance\n")
    monkeypatch.setattr(environment, "CPUFREQ", tmp_path)
    env = Environment.here()
    assert (env.clock_mhz, env.governor) == (1500.0, "performance")
