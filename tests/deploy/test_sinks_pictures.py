from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from sink_doubles import classes, files_up_to, frame, lost, make, noise, nothing_left

from lfd.errors import SinkError
from lfd.spec import ModelSpec


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_masks_are_label_values(tmp_path: Path, spec: ModelSpec) -> None:
    sink = make(f"{tmp_path}/m/", spec)
    sink.write(frame(0), classes(0))
    sink.write(frame(7), classes(1))
    sink.write(frame(8, (100, 50), "cat"), classes(2, (100, 50)))
    assert list((tmp_path / "m").glob("*.png")) == []
    sink.close(True)
    found = {p.name: cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in (tmp_path / "m").iterdir()}
    assert {name: (m.shape, set(np.unique(m).tolist())) for name, m in found.items()} == {
        "000000.png": ((240, 320), {0}),
        "000007.png": ((240, 320), {1}),
        "cat.png": ((100, 50), {2}),
    }


@pytest.mark.parametrize("live", [False, True])
def test_masks_hold_every_label_value(tmp_path: Path, spec: ModelSpec, live: bool) -> None:
    values = np.random.default_rng(0).integers(0, 256, (48, 64), np.uint8)
    sink = make(f"{tmp_path}/m/", spec, live)
    sink.write(frame(0, (48, 64), "a"), values)
    sink.close(True)
    np.testing.assert_array_equal(cv2.imread(f"{tmp_path}/m/a.png", cv2.IMREAD_UNCHANGED), values)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_overlays_are_the_painted_frames(tmp_path: Path, spec: ModelSpec, suffix: str) -> None:
    sink = make(f"{tmp_path}/o/?show=overlay&format={suffix}&every=2", spec)
    for index in range(5):
        sink.write(frame(index), classes(2))
    sink.close(True)
    assert names(tmp_path / "o") == [f"00000{n}.{suffix}" for n in (0, 2, 4)]
    painted = cv2.imread(f"{tmp_path}/o/000004.{suffix}")
    assert painted.shape == (240, 320, 3)
    np.testing.assert_allclose(painted[200, 300], (16, 16, 16 + 127.5), atol=6)  # half of grey 32 and half of red


def test_failed_masks_leave_nothing(tmp_path: Path, spec: ModelSpec) -> None:
    sink = make(f"{tmp_path}/m/", spec)
    sink.write(frame(0), classes(0))
    sink.close(False)
    assert names(tmp_path) == []


def test_two_pictures_of_one_name(tmp_path: Path, spec: ModelSpec) -> None:
    sink = make(f"{tmp_path}/m/", spec)
    sink.write(frame(0, name="a"), classes(0))
    with pytest.raises(SinkError, match=r"two pictures are named 'a'.* one folder at a time, and without loop"):
        sink.write(frame(1, name="a"), classes(0))
    sink.close(False)


def test_masks_beside_what_is_there(tmp_path: Path, spec: ModelSpec) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    (tmp_path / "000000.png").write_bytes(b"old")
    sink = make(f"{tmp_path}/", spec)
    sink.write(frame(0), classes(1))
    sink.close(True)
    assert (tmp_path / "keep.txt").read_text() == "mine"
    assert cv2.imread(str(tmp_path / "000000.png"), cv2.IMREAD_UNCHANGED).max() == 1
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("complete", [True, False])
def test_a_live_picture_is_there_at_once_and_stays(tmp_path: Path, spec: ModelSpec, complete: bool) -> None:
    sink = make(f"{tmp_path}/m/", spec, live=True)
    for index in range(3):
        sink.write(frame(index, (48, 64)), classes(index, (48, 64)))
        assert names(tmp_path / "m") == [f"00000000{n}.png" for n in range(index + 1)]
    sink.show_status(lost())
    sink.close(complete)
    assert len(names(tmp_path / "m")) == 3


@pytest.mark.parametrize("live", [False, True])
def test_only_the_latest_pictures_stay(tmp_path: Path, spec: ModelSpec, live: bool) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "other.png").write_bytes(b"somebody else's")
    sink = make(f"{tmp_path}/m/?keep=3", spec, live)
    for index in range(20):
        sink.write(frame(index, (8, 8)), classes(0, (8, 8)))
        assert len(list((tmp_path / "m").rglob("0*.png"))) <= 4
    sink.close(True)
    digits = 9 if live else 6
    assert names(tmp_path / "m") == [f"{n:0{digits}d}.png" for n in (17, 18, 19)] + ["other.png"]


@pytest.mark.parametrize("live", [False, True])
def test_a_full_disk_leaves_no_half_picture(tmp_path: Path, spec: ModelSpec, live: bool) -> None:
    sink = make(f"{tmp_path}/m/?show=overlay", spec, live)
    sink.write(frame(0, (48, 64)), classes(0, (48, 64)))
    with files_up_to(50_000), nothing_left(), pytest.raises(SinkError, match=r"1\.png: cannot be written \(File too"):
        sink.write(noise(1), classes(1))
    sink.close(False)
    assert (names(tmp_path / "m") if live else names(tmp_path)) == (["000000000.png"] if live else [])


@pytest.mark.parametrize("live", [False, True])
def test_a_folder_that_goes_away(tmp_path: Path, spec: ModelSpec, live: bool) -> None:
    sink = make(f"{tmp_path}/m/", spec, live)
    sink.write(frame(0), classes(0))
    shutil.rmtree(tmp_path / "m")
    with nothing_left(), pytest.raises(SinkError, match=r"cannot be written .No such file"):
        sink.write(frame(1), classes(1))
    sink.close(False)
    assert names(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("live", [False, True])
def test_a_folder_that_may_not_be_written(tmp_path: Path, spec: ModelSpec, live: bool) -> None:
    tmp_path.chmod(0o500)
    sink = make(f"{tmp_path}/m/", spec, live)
    with pytest.raises(SinkError, match="Permission denied"):
        sink.write(frame(0), classes(0))
    sink.close(False)
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("live", [False, True])
def test_a_folder_that_cannot_be_made(tmp_path: Path, spec: ModelSpec, live: bool) -> None:
    (tmp_path / "f").write_bytes(b"a file")
    sink = make(f"{tmp_path}/f/m/", spec, live)
    with pytest.raises(SinkError, match=r"cannot be written .Not a directory"):
        sink.write(frame(0), classes(0))
    sink.close(False)
    assert names(tmp_path) == ["f"]
