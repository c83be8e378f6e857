"""kill -9 at random moments: a run goes on from its last checkpoint, to the bits of the run that nobody killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from lfd.config import Config
from lfd.trainer import train
from lfd.weights import load_state
from tests.lfd.test_trainer import QUIET, config

KILLS, AHEAD, SAVE_EVERY = 50, 3, 2
"""Kills; steps that a life may get ahead before its kill; steps between checkpoints."""


def _live(run: Config, out: Path) -> None:
    torch.set_num_threads(1)
    train(run, out, (out / "resume.pt").is_file(), True, QUIET)


def logged(out: Path) -> int:
    """Return the last step in the log; what follows the last line's end is being written."""
    path = out / "metrics.jsonl"
    lines = path.read_text().rpartition("\n")[0].splitlines() if path.is_file() else []
    return max((json.loads(line)["step"] for line in lines), default=0)


@pytest.mark.slow
def test_fifty_kills_lose_no_more_than_the_steps_since_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    run = config(
        folder,
        KILLS * AHEAD,
        train={"batch": 2, "ema": 0.9, "save_every": SAVE_EVERY, "eval_every": 40},
        data={"size": "32x32"},
    )
    out, rng = tmp_path / "killed", random.Random(0)
    # Each life is forked from a process that has imported everything, and has trained nothing: autograd's threads
    # do not survive a fork.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["tests.lfd.test_trainer"])
    lost = []
    for _ in range(KILLS):
        begun = int(load_state(out / "resume.pt")["step"]) if (out / "resume.pt").is_file() else 0
        wanted, moment = begun + rng.randint(1, AHEAD), rng.uniform(0, 0.03)
        life = server.Process(target=_live, args=(run, out))
        life.start()
        deadline = time.monotonic() + 60
        while logged(out) < wanted or logged(out) <= begun:
            assert life.is_alive() and time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(moment)
        os.kill(life.pid or 0, signal.SIGKILL)
        life.join()
        reached = logged(out)
        if (out / "resume.pt").is_file():  # whole, whenever the kill came
            lost.append(reached - int(load_state(out / "resume.pt")["step"]))
    # A checkpoint follows the logging of its step: a kill between the two loses that step as well.
    assert len(lost) > KILLS // 2 and 0 <= max(lost) <= SAVE_EVERY
    train(run, out, True, False, QUIET)
    assert not list(out.glob(".*partial*"))
    train(run, tmp_path / "whole", False, False, QUIET)
    a, b = (load_state(path / "resume.pt") for path in (tmp_path / "whole", out))
    assert a["step"] == b["step"] == KILLS * AHEAD and a["best"] == b["best"]
    for part in ("distiller", "average"):
        assert all(torch.equal(a[part][key], b[part][key]) for key in a[part])
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
