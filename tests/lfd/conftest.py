"""A network that has learnt the toy data, for all who need a teacher or a run to begin with; they leave it as it is."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def toy_run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 60 steps on `folder`, scored at 30 and 60."""
    from lfd.trainer import train
    from tests.lfd.test_trainer import QUIET, config

    out = tmp_path_factory.mktemp("toy") / "run"
    assert train(config(folder, 60, train={"eval_every": 30}), out, False, False, QUIET) > 0.6
    return out
