from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as Pil

from lfd.data import DATASETS, open_dataset
from lfd.data.base import AS_STORED, PairedFiles
from lfd.data.camvid import LABELS
from lfd.data.folder import read_labels
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


def two_pictures(root: Path) -> None:
    cv2.imwrite(str(root / "images/train/000.jpg"), np.zeros((48, 64, 3), np.uint8))


def palette_mask(root: Path) -> None:
    grey = Pil.open(root / "masks/train/000.png")
    indices = Pil.frombytes("P", grey.size, grey.tobytes())
    indices.putpalette([value for index in range(256) for value in (index, 7, 255 - index)])
    indices.save(root / "masks/train/000.png")


def wide_mask(root: Path) -> None:
    cv2.imwrite(str(root / "masks/train/000.png"), np.zeros((48, 64), np.uint16))


def escapes(root: Path) -> None:
    (root / "train.txt").write_text("../../secret\n")


def unlisted(root: Path) -> None:
    (root / "train.txt").write_text("999\n")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (wrong_value, ["masks/train/000.png", "label value 7", "0 to 2", "255"]),
        (colour_mask, ["masks/train/000.png", "3 channels", "not colours"]),
        (other_size, ["48x60", "has 48x64", "images/train/000.png", "the same size"]),
        (cut_picture, ["images/train/000.png", "not a picture"]),
        (empty_picture, ["images/train/000.png", "0 bytes"]),
        (no_mask, ["masks/train/000.png", "no such label file"]),
        (no_pictures, ["no pictures"]),
        (no_masks_folder, ["masks/train", "no such folder"]),
        (no_labels, ["labels.toml", "no such file"]),
        (bad_toml, ["labels.toml", "not a valid list of classes"]),
        (no_colour, ["labels.toml", "class 0 has no color"]),
        (two_pictures, ["images/train: 000.jpg and 000.png have the same label file"]),
        (palette_mask, ["masks/train/000.png: a palette PNG; expected its indices as grey", "PIL"]),
        (wide_mask, ["masks/train/000.png: a label of 16 bits a pixel", "as uint8"]),
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


def test_the_fix_for_a_palette_is_one(tmp_path: Path) -> None:
    """As the message has it."""
    root = make_folder(tmp_path, {"train": 1})
    before = open_dataset(f"folder:{root}", "train")[0].mask
    palette_mask(root)
    with pytest.raises(DataError) as caught:
        open_dataset(f"folder:{root}", "train")[0]
    fix = str(caught.value).partition("with PIL: ")[2]
    exec(fix, {"Image": Pil, "np": np, "f": root / "masks/train/000.png"})  # noqa: S102 - our own text
    assert np.array_equal(open_dataset(f"folder:{root}", "train")[0].mask, before)


@pytest.mark.parametrize(("flags", "applied"), [(cv2.IMREAD_COLOR, "is applied"), (AS_STORED, "is not applied")])
def test_a_label_that_fits_a_picture_only_the_other_way_round(tmp_path: Path, flags: int, applied: str) -> None:
    root = make_folder(tmp_path, {"train": 1})
    labels = open_dataset(f"folder:{root}", "train").labels
    picture, mask = root / "a.jpg", root / "a.png"
    exif = Pil.Exif()
    exif[0x0112] = 6  # Orientation: turned by 90 degrees to be seen upright (EXIF 2.3, 4.6.4)
    Pil.new("RGB", (96, 64)).save(picture, exif=exif)
    seen_hw = (96, 64) if flags == cv2.IMREAD_COLOR else (64, 96)
    data = PairedFiles(labels, [(picture, mask)], flags=flags)
    cv2.imwrite(str(mask), np.zeros(seen_hw, np.uint8))
    assert data[0].mask.shape == seen_hw
    cv2.imwrite(str(mask), np.zeros(seen_hw[::-1], np.uint8))
    said = "{0}x{1} pixels, but its picture {2} has {1}x{0}; expected the same size. The picture's EXIF orientation {3}"
    with pytest.raises(DataError, match=re.escape(said.format(*seen_hw[::-1], picture, applied))):
        data[0]
    Pil.new("RGB", (96, 64)).save(picture)
    cv2.imwrite(str(mask), np.zeros((96, 64), np.uint8))
    with pytest.raises(DataError, match=r"96x64 pixels, but .* has 64x96; expected the same size$"):
        data[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no [[class]] in it"),
        ("class = []", "no [[class]] in it"),
        ('class = "road"', "no [[class]] in it"),
        ("class = [1]", "class 0 is 1"),
        ("[[class]]\ncolor = [1, 2, 3]", "class 0 has no name"),
        ('[[class]]\nname = "a"\ncolor = [1, 2]', "color [1, 2] of class 0; expected three whole numbers"),
        ('[[class]]\nname = "a"\ncolor = [1, 2, 256]', "color [1, 2, 256] of class 0; expected three whole"),
        ('[[class]]\nname = "a"\ncolor = [1, 2, 0.5]', "expected three whole numbers from 0 to 255"),
        ('[[class]]\nname = "a"\ncolor = "red"', "color 'red' of class 0"),
        ('[[class]]\nname = "a"\ncolor = [true, 1, 1]', "of class 0; expected three"),
        ('ignore = []\n[[class]]\nname = "a"\ncolor = [1, 2, 3]', "int()"),
    ],
)
def test_a_wrong_list_of_classes_says_what_is_expected(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "labels.toml"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_labels(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: not a valid list of classes (") and says in message and "\n" not in message
    assert message.endswith('expected for each [[class]], name = "road", color = [128, 64, 128]')


def test_two_pictures_of_one_label_in_a_list(tmp_path: Path) -> None:
    """A name with its suffix says which."""
    root = make_folder(tmp_path, {"train": 1})
    for kind in ("images", "masks"):
        (root / kind / "train/000.png").rename(root / kind / "000.png")
    cv2.imwrite(str(root / "images/000.jpg"), np.zeros((48, 64, 3), np.uint8))
    (root / "train.txt").write_text("000.jpg\n")
    assert open_dataset(f"folder:{root}", "train")[0].image.max() == 0
    (root / "train.txt").write_text("000\n")
    with pytest.raises(DataError, match=r"images: 000.png and 000.jpg have the same label file"):
        open_dataset(f"folder:{root}", "train")


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
