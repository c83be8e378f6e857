"""The way from deployment back to training, its commands and, in small, all of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import loop
from lfd.cli import main as lfd_train
from lfd.data.street import Street
from tests.conftest import ROOT

SMALL = """
import sys
from benchmarks import loop
from lfd.data import street
street.SPLIT_FRAMES["val"] = 8
loop.SIZE, loop.KEPT = "64x96", 16
loop.TRAIN_FRAMES, loop.TEST_FRAMES, loop.DRIVE_FRAMES = 24, 6, 60
loop.NEW_DRIVES, loop.OLD_DRIVES = range(201, 203), range(301, 303)
loop.ARMS = {"collected and day": loop.ARMS["collected and day"]}
loop.main(sys.argv[1:])
"""


def test_every_training_is_a_command_that_exists(tmp_path: Path) -> None:
    found = loop.commands_of(tmp_path, (8, 4, 2), 2)
    assert list(found)[:2] == ["teacher", "student"] and len(found) == 2 + 2 * len(loop.ARMS)
    for words in found.values():
        given = lfd_train.commands[words[0]].make_context(words[0], [*words[1:], "--out", str(tmp_path)]).params
        assert given["data"] and given["val"] and given["steps"] in (8, 4, 2)
    assert "light=any" in " ".join(found["teacher"]) and "light" not in " ".join(found["student"])
    for name in list(found)[2:]:
        given = lfd_train.commands["distill"].make_context("d", [*found[name][1:], "--out", str(tmp_path)]).params
        assert given["data"].startswith("frames:") and Path(str(given["init"])) == tmp_path / "student"
        assert "light" not in given["val"], "labels of the night are for the scores alone"


def test_frames_are_taken_evenly_over_the_drives(tmp_path: Path) -> None:
    sources = [loop.street(seed=seed, light="night", frames=loop.DRIVE_FRAMES) for seed in (7, 8)]
    loop.save_evenly(sources, 8, tmp_path / "even")
    paths = sorted((tmp_path / "even").iterdir())
    assert len(paths) == 8
    step = loop.DRIVE_FRAMES // 4
    for seed in (7, 8):
        for k in range(4):
            sample = Street(seed, (120, 160), "night").render(step // 2 + k * step)
            found = cv2.imread(str(tmp_path / "even" / f"{sample.name}.png"))
            assert found is not None and np.array_equal(found, sample.image)


def test_no_drive_is_driven_twice() -> None:
    drives = [*loop.NEW_DRIVES, *loop.OLD_DRIVES, *loop.TEST_DRIVES]
    assert len(set(drives)) == len(drives)


def test_scores_as_printed() -> None:
    assert loop.said([0.5]) == "50.00"
    assert loop.said([0.25, 0.75]) == "50.00 ± 35.36"


@pytest.mark.slow
def test_the_loop_is_closed_in_small_and_goes_on_where_it_was(tmp_path: Path) -> None:
    out, results = tmp_path / "loop", tmp_path / "loop.json"
    command = [sys.executable, "-c", SMALL, "--out", str(out), "--results", str(results), "--seeds", "1"]
    done = subprocess.run(
        [*command, "--steps", "50", "50", "20"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(results.read_text(encoding="utf-8"))
    assert 0 < record["collected"] <= 16
    (arm,) = record["miou"].keys() - {"teacher", "before"}
    assert len(record["miou"][arm]["night"]) == len(record["miou"][arm]["day"]) == 1
    assert len(record["miou"]["before"]["drives"]) == len(loop.TEST_DRIVES)
    assert len(list((out / "even").iterdir())) == record["collected"] // 2 * 2
    results.unlink()
    again = subprocess.run(
        [*command, "--steps", "50", "50", "20"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0 and "$ " not in again.stdout, "everything was there"
    assert json.loads(results.read_text(encoding="utf-8"))["miou"] == record["miou"]
