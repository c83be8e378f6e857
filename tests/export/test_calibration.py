"""Which frames int8 is calibrated on: what is taken, counted and hashed, and what is refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from export.calibration import NOISE, Frames, gate_data, likeness, open_frames
from lfd.data import open_dataset
from lfd.errors import DataError, LfdError, UsageError
from lfd.preprocess import fit_frame
from lfd.spec import Labels, ModelSpec, Preprocess

SPEC = ModelSpec("any", Labels(("a", "b"), ((0, 0, 0), (1, 1, 1))), Preprocess((24, 32), resize="letterbox"))
ITS_SPLIT = "train"


def film(path: Path, count: int, pictures: Any = None) -> Path:
    """Write an MJPG film of a bright square that walks over a gradient."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    assert writer.isOpened()
    base = np.repeat(np.linspace(40, 200, 64, dtype=np.uint8)[None, :, None], 48, 0).repeat(3, 2)
    for index in range(count):
        image = base.copy()
        image[index % 40 : index % 40 + 8, (3 * index) % 56 : (3 * index) % 56 + 8] = 255
        writer.write(image if pictures is None else pictures(index))
    writer.release()
    return path


def pictures_in(folder: Path, make: Any, count: int) -> Path:
    folder.mkdir()
    for index in range(count):
        cv2.imwrite(str(folder / f"{index}.png"), make(index))
    return folder


def scene(index: int) -> np.ndarray[Any, Any]:
    image = np.full((48, 64, 3), 60, np.uint8)
    image[index : index + 8] = 200
    return image


def test_a_labelled_set_gives_its_training_split_fitted(folder: Path) -> None:
    frames = open_frames(f"folder:{folder}", SPEC, minimum=16)
    data = open_dataset(f"folder:{folder}", ITS_SPLIT)
    assert (frames.source, frames.split, len(frames)) == ("folder", "train", 16)
    for index, frame in enumerate(frames):
        assert np.array_equal(frame, fit_frame(data[index].image, SPEC.preprocess))
    assert open_frames(f"folder:{folder}@val", SPEC, minimum=4).split == "val"


def test_the_hash_is_of_the_frames_as_fitted(folder: Path) -> None:
    frames = open_frames(f"folder:{folder}", SPEC, minimum=16)
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(repr(frame.shape).encode() + frame.tobytes())
    assert frames.sha256 == digest.hexdigest()
    assert json.loads(frames.record("minmax")) == {
        "source": "folder",
        "count": 16,
        "sha256": frames.sha256,
        "method": "minmax",
        "split": "train",
    }
    assert str(folder) not in frames.record("minmax")


def test_a_film_is_spread_evenly_and_reads_twice_alike(tmp_path: Path) -> None:
    frames = open_frames(str(film(tmp_path / "a.avi", 100)), SPEC, limit=40)
    assert (frames.source, frames.split, len(frames)) == ("film", None, 40)
    first, again = [list(frames) for _ in range(2)]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    everything = list(open_frames(str(tmp_path / "a.avi"), SPEC, limit=500))
    assert len(everything) == 100
    assert all(np.array_equal(a, everything[i * 100 // 40]) for i, a in enumerate(first))
    assert len(frames.some(8)) == 8 and np.array_equal(frames.some(8)[1], first[5])


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    frames = open_frames(str(pictures_in(tmp_path / "p", scene, 40)), SPEC)
    assert isinstance(frames, Frames) and (frames.source, len(frames)) == ("pictures", 40)


def noise(index: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(index).integers(0, 256, (48, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("make", "count", "says"),
    [
        (scene, 31, "31 frames; expected at least 32"),
        (lambda _: scene(3), 40, "only 1 of 40 frames differ"),
        (lambda index: np.full((48, 64, 3), index, np.uint8), 40, "40 of 40 frames are a single colour"),
        (noise, 40, "40 of 40 frames are random noise"),
    ],
)
def test_frames_that_stand_for_nothing_are_refused(tmp_path: Path, make: Any, count: int, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        open_frames(str(pictures_in(tmp_path / "p", make, count)), SPEC)
    assert "Fix:" in str(caught.value) and "\n" not in str(caught.value)


def enlarged(index: int, times: int, how: int) -> np.ndarray[Any, Any]:
    small = np.random.default_rng(index).integers(0, 256, (360 // times, 480 // times, 3), np.uint8)
    return np.asarray(cv2.resize(small, (480, 360), interpolation=how))


@pytest.mark.parametrize("how", [cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC])
@pytest.mark.parametrize("times", [1, 2, 3, 5, 8, 12, 16])
def test_noise_stays_noise_when_it_is_enlarged(times: int, how: int) -> None:
    """Whoever resizes random numbers to the model's input has neighbours that are alike."""
    assert max(likeness(enlarged(index, times, how)) for index in range(3)) < NOISE


def test_pictures_are_not_noise() -> None:
    drive = open_dataset("street:?size=180x240&frames=40", "train")
    assert min(likeness(drive[index].image) for index in range(0, 40, 5)) > NOISE + 0.1


def test_enlarged_noise_is_refused(tmp_path: Path) -> None:
    spec = replace(SPEC, preprocess=Preprocess((360, 480)))
    source = pictures_in(tmp_path / "p", lambda index: enlarged(index, 8, cv2.INTER_LINEAR), 32)
    with pytest.raises(DataError, match="32 of 32 frames are random noise"):
        open_frames(str(source), spec)


def test_an_unlabelled_set_serves_as_a_folder_or_a_film_does(tmp_path: Path) -> None:
    pictures_in(tmp_path / "p", scene, 40)
    film(tmp_path / "p/a.avi", 100)
    taken = open_frames(f"frames:{tmp_path}/p?stride=2", SPEC, limit=60)
    assert (taken.source, taken.split, len(taken)) == ("frames", None, 60)
    first, again = [list(taken) for _ in range(2)]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len(open_frames(f"frames:{tmp_path}/p/a.avi?stride=1", SPEC)) == 100
    with pytest.raises(UsageError, match="names a split"):
        open_frames(f"frames:{tmp_path}/p@val", SPEC)
    with pytest.raises(UsageError, match="give --data"):
        gate_data(f"frames:{tmp_path}/p", None)
    (tmp_path / "p/9.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"9\.png"):
        open_frames(f"frames:{tmp_path}/p", SPEC)


def test_unreadable_sources_are_one_clear_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a film" * 100)
    (tmp_path / "empty").mkdir()
    cut = film(tmp_path / "whole.avi", 200)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 3])
    mixed = pictures_in(tmp_path / "mixed", scene, 40)
    (mixed / "7.png").write_bytes(b"\x89PNG")
    for source, says, kind in [
        (broken, "not a film that can be decoded", DataError),
        (tmp_path / "none.mp4", "no such file", DataError),
        (tmp_path / "empty", "no pictures", DataError),
        (cut, "Fix:", DataError),
        (mixed, "7.png", DataError),
        ("folder:/none", "no such folder", DataError),
        ("0", "record a film", UsageError),
        (f"{film(tmp_path / 'round.avi', 40)}#loop=true", "leave #loop=true away", UsageError),
    ]:
        with pytest.raises(kind, match=says) as caught:
            open_frames(str(source), SPEC)
        assert isinstance(caught.value, LfdError) and "\n" not in str(caught.value)
        assert "--max-frames" not in str(caught.value), "which lfd-export does not have"


def test_a_limit_below_the_minimum_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="expected at least 32"):
        open_frames(f"folder:{folder}", SPEC, limit=8)


def test_likeness_of_noise_and_of_a_slope() -> None:
    assert abs(likeness(noise(0))) < 0.1
    slope = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None], 48, 0).repeat(3, 2)
    assert likeness(slope) > 0.9
    stripes = np.tile(np.array([0, 255], np.uint8), (48, 32))[:, :, None].repeat(3, 2)
    assert likeness(stripes) == pytest.approx(1.0), "stripes are alike downwards"


def test_the_gates_set_is_another_split() -> None:
    assert gate_data("camvid:X", None) == "camvid:X@val"
    assert gate_data("camvid:X@test", "camvid:X") == "camvid:X@val"
    assert gate_data("film.mp4", "folder:Y@test") == "folder:Y@test"
    with pytest.raises(UsageError, match="give --data"):
        gate_data("film.mp4", None)
    with pytest.raises(UsageError, match="frames:X has no labels"):
        gate_data("camvid:X", "frames:X")
    for calibration, data in [("camvid:X@val", None), ("camvid:X@val", "camvid:X"), ("camvid:X", "camvid:X@train")]:
        with pytest.raises(UsageError, match="two splits"):
            gate_data(calibration, data)
