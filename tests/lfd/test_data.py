from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from lfd.data import DATASETS, open_dataset
from lfd.data.camvid import LABELS
from lfd.errors import DataError, LfdError, UsageError
from tests.conftest import make_folder


def test_every_data_set_is_an_opener() -> None:
    for opener in DATASETS.values():
        with pytest.raises(LfdError):
            opener("/nowhere/at/all", "train")


def test_folder_by_split_folders(folder: Path) -> None:
    data = open_dataset(f"folder:{folder}", "train")
    assert len(data) == 16 and data.labels.names == ("ground", "sky", "thing")
    sample = data[3]
    assert sample.image.shape == (48, 64, 3) and sample.mask.shape == (48, 64) and sample.name == "003"
    assert set(np.unique(sample.mask)) == {0, 1, 2, 255}


def test_folder_by_split_files_and_the_split_in_the_text(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "a@b", {"train": 3})
    for kind in ("images", "masks"):
        for path in list((root / kind / "train").iterdir()):
            path.rename(root / kind / path.name)
    (root / "val.txt").write_text("002\n\n000.png\n")
    data = open_dataset(f"folder:{root}@val", "train")
    assert [data[i].name for i in range(len(data))] == ["002", "000"]


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_camvid_layout(tmp_path: Path, suffix: str) -> None:
    for sub in ("train", "trainannot"):
        (tmp_path / sub).mkdir()
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    cv2.imwrite(str(tmp_path / "train" / f"0001TP{suffix}"), np.zeros((3, 4, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "trainannot" / "0001TP.png"), mask)
    (tmp_path / "train.txt").write_text("/SegNet/CamVid/train/0001TP.png /SegNet/CamVid/trainannot/0001TP.png\n")
    sample = open_dataset(f"camvid:{tmp_path}", "train")[0]
    assert sample.mask.ravel().tolist() == [*range(11), 255]


@pytest.mark.shared
def test_real_camvid_has_the_published_split_and_class_shares(real: Path) -> None:
    sets = {split: open_dataset(f"camvid:{real / 'camvid'}", split) for split in ("train", "val", "test")}
    assert {split: len(data) for split, data in sets.items()} == {"train": 367, "val": 101, "test": 233}
    counts = np.zeros(256, np.int64)
    for index in range(len(sets["train"])):
        counts += np.bincount(sets["train"][index].mask.ravel(), minlength=256)
    shares = 100 * counts / counts.sum()
    published = [16.9, 23.3, 1.0, 31.7, 4.5, 9.7, 1.2, 1.1, 5.9, 0.6, 0.3]
    assert np.allclose(shares[: len(LABELS)], published, atol=0.1) and abs(shares[255] - 4.0) < 0.1


def wrong_value(root: Path) -> None:
    cv2.imwrite(str(root / "masks/train/000.png"), np.full((48, 64), 7, np.uint8))


def colour_mask(root: Path) -> None:
    cv2.imwrite(str(root / "masks/train/000.png"), np.zeros((48, 64, 3), np.uint8))


def other_size(root: Path) -> None:
    cv2.imwrite(str(root / "masks/train/000.png"), np.zeros((48, 60), np.uint8))


def cut_picture(root: Path) -> None:
    path = root / "images/train/000.png"
    path.write_bytes(path.read_bytes()[:20])


def empty_picture(root: Path) -> None:
    (root / "images/train/000.png").write_bytes(b"")


def no_mask(root: Path) -> None:
    (root / "masks/train/000.png").unlink()


def no_pictures(root: Path) -> None:
    for path in (root / "images/train").iterdir():
        path.unlink()


def no_masks_folder(root: Path) -> None:
    (root / "masks/train").rename(root / "masks/trian")


def no_labels(root: Path) -> None:
    (root / "labels.toml").unlink()


def bad_toml(root: Path) -> None:
    (root / "labels.toml").write_text("[[class]\n")


def no_colour(root: Path) -> None:
    (root / "labels.toml").write_text('[[class]]\nname = "a"\n')


def escapes(root: Path) -> None:
    (root / "train.txt").write_text("../../secret\n")


def unlisted(root: Path) -> None:
    (root / "train.txt").write_text("999\n")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (wrong_value, ["masks/train/000.png", "label value 7", "0 to 2", "255"]),
        (colour_mask, ["masks/train/000.png", "3 channels", "not colours"]),
        (other_size, ["60x48", "64x48", "images/train/000.png"]),
        (cut_picture, ["images/train/000.png", "not a picture"]),
        (empty_picture, ["images/train/000.png", "0 bytes"]),
        (no_mask, ["masks/train/000.png", "no such label file"]),
        (no_pictures, ["no pictures"]),
        (no_masks_folder, ["masks/train", "no such folder"]),
        (no_labels, ["labels.toml", "no such file"]),
        (bad_toml, ["labels.toml", "not a valid list of classes"]),
        (no_colour, ["labels.toml", "color"]),
        (escapes, ["train.txt", "points outside"]),
        (unlisted, ["999", "no such picture"]),
    ],
)
def test_what_is_wrong_is_named_with_its_path(tmp_path: Path, spoil: Callable[[Path], None], says: list[str]) -> None:
    root = make_folder(tmp_path, {"train": 2})
    spoil(root)
    with pytest.raises(DataError) as caught:
        open_dataset(f"folder:{root}", "train")[0]
    message = str(caught.value)
    assert all(part in message for part in says), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("camvd:x", "Did you mean 'camvid'"),
        ("camvid", "NAME:PATH"),
        ("street:@trian", "Did you mean 'train'"),
    ],
)
def test_a_wrong_text_is_a_usage_error(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        open_dataset(text, "train")


def test_a_missing_camvid_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        open_dataset(f"camvid:{tmp_path / 'nowhere'}", "train")
