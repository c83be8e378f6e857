from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from lfd.contact_sheet import BOX_HW, COLUMNS, TINT, Entry, Tile, draw_sheet, draw_tile
from lfd.data import Sample, open_dataset
from lfd.data.base import PairedFiles
from lfd.data_check import QUEUE, REPORT_FILE, SHEET_FILE, check_data, check_out, write_findings
from lfd.data_cli import check_data_command
from lfd.data_report import EXAMPLES, DataReport, SplitReport, render
from lfd.errors import DataError, UsageError
from lfd.files import to_json
from lfd.spec import Labels
from tests.conftest import CLASSES, make_folder


def split_of(report: DataReport, name: str) -> SplitReport:
    return next(split for split in report.splits if split.split == name)


def write_mask(root: Path, split: str, name: str, mask: np.ndarray) -> None:
    assert cv2.imwrite(str(root / "masks" / split / f"{name}.png"), mask.astype(np.uint8))


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "toy", {"train": 6, "val": 3, "test": 2})


def test_counts_are_those_of_the_masks(toy: Path) -> None:
    """Against numpy on the files themselves."""
    write_mask(toy, "train", "001", np.kron([[0, 1], [2, 255]], np.ones((24, 32))))
    report = check_data(f"folder:{toy}").report
    assert [split.split for split in report.splits] == ["train", "val", "test"]
    assert report.failures == () and report.missing == {} and report.leaks == ()
    for split in report.splits:
        masks = [cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in sorted((toy / "masks" / split.split).iterdir())]
        assert split.pictures == len(masks) and split.pixels == sum(mask.size for mask in masks)
        assert [(size.height, size.width, size.pictures) for size in split.sizes] == [(48, 64, len(masks))]
        for value, found in enumerate(split.classes):
            assert (found.name, found.value) == (CLASSES[value][0], value)
            assert found.pixels == sum(int((mask == value).sum()) for mask in masks)
            assert found.pictures == sum(bool((mask == value).any()) for mask in masks)
            assert found.share == pytest.approx(found.pixels / split.pixels)
        void = sum(int((mask == 255).sum()) for mask in masks)
        assert split.void_value == 255 and split.void_share == pytest.approx(void / split.pixels)
        assert void + sum(found.pixels for found in split.classes) == split.pixels


def test_every_broken_pair_is_listed_with_its_reason(toy: Path) -> None:
    (toy / "images/train/000.png").write_bytes(b"")
    (toy / "images/train/001.png").write_bytes((toy / "images/train/001.png").read_bytes()[:300])
    write_mask(toy, "train", "002", np.full((48, 64), 9))
    write_mask(toy, "train", "003", np.zeros((48, 60)))
    write_mask(toy, "val", "001", np.zeros((48, 64, 3)))
    report = check_data(f"folder:{toy}").report
    train, val = split_of(report, "train"), split_of(report, "val")
    expected = [
        "images/train/000.png: not a",
        "images/train/001.png",
        "label value 9 is no class",
        "48x60 pixels, but its",
    ]
    assert len(train.broken) == len(expected) and train.pictures == 2
    assert all(text in message for text, message in zip(expected, train.broken, strict=True))
    assert len(val.broken) == 1 and "expected one 8-bit channel" in val.broken[0] and val.pictures == 2
    assert report.failures == (*train.broken, *val.broken)
    assert all("\n" not in message for message in report.failures)


def test_sizes_are_a_distribution(toy: Path) -> None:
    shutil.copytree(
        make_folder(toy.parent / "b", {"train": 2}, (40, 70)) / "images/train", toy / "images/train", dirs_exist_ok=True
    )
    shutil.copytree(toy.parent / "b/masks/train", toy / "masks/train", dirs_exist_ok=True)
    train = split_of(check_data(f"folder:{toy}@train").report, "train")
    assert [(s.height, s.width, s.pictures) for s in train.sizes] == [(48, 64, 4), (40, 70, 2)]
    assert (train.different_sizes, train.smallest_hw, train.largest_hw) == (2, (40, 64), (48, 70))
    assert "48x64 (67%) and 1 more; 40 to 48 high, 64 to 70 wide" in render(check_data(f"folder:{toy}").report)


def test_the_same_picture_in_two_splits_and_twice_in_one(toy: Path) -> None:
    images = toy / "images"
    cv2.imwrite(
        str(images / "val/001.png"), cv2.imread(str(images / "train/004.png")), [cv2.IMWRITE_PNG_COMPRESSION, 0]
    )
    shutil.copy(images / "train/002.png", images / "train/003.png")
    shutil.copy(images / "train/002.png", images / "test/000.png")
    assert (images / "val/001.png").read_bytes() != (images / "train/004.png").read_bytes()
    report = check_data(f"folder:{toy}").report
    assert report.leaks == (("train/004", "val/001"), ("train/002", "test/000"))
    assert [split.repeated for split in report.splits] == [1, 0, 0]
    assert report.failures == ()
    assert "note     the same picture in two splits: train/004 = val/001, train/002 = test/000" in render(report)


def test_classes_that_never_occur_and_pictures_without_labels(toy: Path) -> None:
    for index in range(3):
        write_mask(toy, "val", f"00{index}", np.full((48, 64), 255 if index else 1))
    report = check_data(f"folder:{toy}").report
    val = split_of(report, "val")
    assert val.never == ("ground", "thing") and split_of(report, "train").never == ()
    assert val.unlabelled == 2 and val.unlabelled_examples == ("001", "002")
    text = render(report)
    assert "note     val: never occur: ground, thing" in text
    assert "note     val: without any label: 001, 002" in text


def test_long_lists_say_how_many_more(toy: Path) -> None:
    root = make_folder(toy.parent / "many", {"train": EXAMPLES + 5, "val": 1})
    for index in range(EXAMPLES + 5):
        write_mask(root, "train", f"{index:03}", np.full((48, 64), 255))
    report = check_data(f"folder:{root}").report
    assert split_of(report, "train").unlabelled == EXAMPLES + 5
    assert "008, 009 and 5 more" in render(report)


@pytest.mark.parametrize(("absent", "fails"), [("train", True), ("val", True), ("test", False)])
def test_a_missing_split(toy: Path, absent: str, fails: bool) -> None:
    shutil.rmtree(toy / "images" / absent)
    report = check_data(f"folder:{toy}").report
    assert [split.split for split in report.splits] == [s for s in ("train", "val", "test") if s != absent]
    assert list(report.missing) == [absent] and f"images/{absent}: no such folder" in report.missing[absent]
    assert (report.failures == (f"{absent}: {report.missing[absent]}",)) is fails
    assert (f"note     {absent}: {report.missing[absent]}" in render(report)) is not fails


@pytest.mark.parametrize(
    "text", ["folder:{root}@test", "folder:{root}/nowhere", "street:?sise=3", "frames:{root}/nothing"]
)
def test_what_cannot_be_opened_at_all_is_the_error(toy: Path, text: str) -> None:
    shutil.rmtree(toy / "masks/test")
    with pytest.raises((DataError, UsageError)) as caught:
        check_data(text.format(root=toy))
    assert "\n" not in str(caught.value)


def test_street_and_one_split() -> None:
    report = check_data("street:?size=48x64&frames=5@val").report
    assert [(split.split, split.pictures) for split in report.splits] == [("val", 5)] and report.failures == ()
    assert sum(c.share for c in report.splits[0].classes) + report.splits[0].void_share == pytest.approx(1)


def write_film(path: Path, count: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    for number in range(count):
        writer.write(np.full((48, 64, 3), 5 * number, np.uint8))
    writer.release()
    return path


def test_pictures_and_films_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "in"
    root.mkdir()
    write_film(root / "a.avi", 12)
    cv2.imwrite(str(root / "b.png"), np.zeros((30, 40, 3), np.uint8))
    (root / "c.png").write_bytes(b"no")
    monkeypatch.setattr("lfd.data.frames.FrameSet.read_films", lambda _: pytest.fail("kept in memory"))
    monkeypatch.setattr("lfd.data.frames.FrameSet._film", lambda *_: pytest.fail("kept in memory"))
    (found,) = (report := check_data(f"frames:{root}?stride=4").report).splits
    assert (found.split, found.pictures, found.classes, found.void_share) == ("all", 4, (), None)
    assert found.different_sizes == 2 and len(report.failures) == 1 and "c.png" in report.failures[0]
    assert "class" not in render(report) and "48x64 (75%) and 1 more" in render(report)
    shutil.copy(root / "b.png", root / "c.png")
    (root / "a.avi").unlink()
    (found,) = check_data(f"frames:{root}").report.splits
    assert (found.pictures, found.repeated) == (2, 1)


def test_files_appear_together_and_are_not_replaced_unasked(toy: Path) -> None:
    out = toy.parent / "new" / "out"
    check_out(out, overwrite=False)
    assert not out.parent.exists()
    write_findings(found := check_data(f"folder:{toy}"), out)
    assert sorted(path.name for path in out.iterdir()) == [SHEET_FILE, REPORT_FILE]
    assert json.loads((out / REPORT_FILE).read_text()) == json.loads(to_json(found.report.to_record()))
    with pytest.raises(UsageError, match="--overwrite"):
        check_out(out, overwrite=False)
    (out / SHEET_FILE).write_bytes(b"old")
    check_out(out, overwrite=True)
    assert (out / SHEET_FILE).read_bytes() == b"old" and len(list(out.iterdir())) == 2
    write_findings(found, out)
    sheet = cv2.imread(str(out / SHEET_FILE))
    assert sheet is not None and sheet.shape[1] > COLUMNS * BOX_HW[1]


def full_disk(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_place_that_cannot_be_written_to_is_refused_before_reading(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lfd.data_check.open_dataset", lambda *_: pytest.fail("read before"))
    result = CliRunner().invoke(check_data_command, [f"folder:{toy}", "--out", "/proc/x"])
    assert result.exit_code in (1, 2) and result.output.startswith("error: /proc/x") and result.output.count("\n") == 1
    monkeypatch.setattr("lfd.data_check.tempfile.TemporaryFile", full_disk)
    result = CliRunner().invoke(check_data_command, [f"folder:{toy}", "--out", str(toy.parent / "out")])
    assert result.exit_code == 1 and "No space left on device" in result.output and "free space" in result.output
    assert not (toy.parent / "out").exists()


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_what_was_found_is_told_where_it_cannot_be_written(
    toy: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    """The disk may fill up while the set is read."""
    (toy / "images/train/001.png").write_bytes(b"no")
    out = toy.parent / "out"
    monkeypatch.setattr(Path, "write_text", full_disk)
    result = CliRunner().invoke(check_data_command, [f"folder:{toy}", "--out", str(out), *options])
    told = json.dumps(check_data(f"folder:{toy}").report.to_record(), indent=2) if options else render_of(toy)
    assert result.exit_code == 1 and told in result.stdout and "written" not in result.stdout
    first, last = result.stderr.splitlines()
    assert "001.png: not a picture" in first and last.startswith("error: ") and "No space left" in last
    assert not out.exists(), "both files or neither"


def render_of(root: Path) -> str:
    return render(check_data(f"folder:{root}").report)


def test_a_missing_label_is_a_broken_picture_among_others(toy: Path) -> None:
    """And an error wherever all files are needed."""
    (toy / "masks/train/000.png").unlink()
    (toy / "images/train/001.png").write_bytes(b"no")
    write_mask(toy, "train", "002", np.full((48, 64), 9))
    report = check_data(f"folder:{toy}").report
    train = split_of(report, "train")
    expected = [
        f"{toy}/masks/train/000.png: no such label file for {toy}/images/train/000.png",
        "001.png: not a picture",
        "label value 9 is no class",
    ]
    assert train.pictures == 3 and report.missing == {} and report.failures == train.broken
    assert all(text in message for text, message in zip(expected, train.broken, strict=True))
    with pytest.raises(DataError, match=r"masks/train/000.png: no such label file \(1 of 6 pictures have none\)"):
        open_dataset(f"folder:{toy}", "train")


def test_a_missing_picture_of_a_list_is_a_broken_one(toy: Path) -> None:
    for kind in ("images", "masks"):
        for path in list((toy / kind / "train").iterdir()):
            path.rename(toy / kind / path.name)
    (toy / "val.txt").write_text("000\n009\n001\n")
    val = split_of(check_data(f"folder:{toy}@val").report, "val")
    assert val.pictures == 2
    assert val.broken == (f"{toy}/images/009.{{png,jpg,jpeg}}: no such file; the data set lists it",)
    with pytest.raises(DataError, match=r"009.\{png,jpg,jpeg\}: no such picture \(1 of 3 listed ones are missing\)"):
        open_dataset(f"folder:{toy}@val", "val")


def test_a_split_without_any_label_file_is_one_failure(toy: Path) -> None:
    for path in (toy / "masks/train").iterdir():
        path.unlink()
    report = check_data(f"folder:{toy}").report
    (failure,) = report.failures
    assert failure.startswith("train: ") and failure.endswith("no such label file (6 of 6 pictures have none)")


def test_where_no_label_can_be_read_nothing_is_said_of_the_classes(toy: Path) -> None:
    for index in range(6):
        write_mask(toy, "train", f"{index:03}", np.full((48, 64), 9))
    found = check_data(f"folder:{toy}")
    train, text = split_of(found.report, "train"), render(found.report)
    assert (train.pictures, train.never, train.void_share, len(train.broken)) == (0, (), None, 6)
    assert "note     train: no label could be read" in text and "never occur" not in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["train"] == ["train", "0", "6", "0", "0", "-", "-"]
    assert rows["ground"][2:4] == ["-", "0"] and rows["void"][2] == "-"
    assert "0.00" not in rows["void"]


def test_workers_are_refused_for_films(tmp_path: Path) -> None:
    write_film(tmp_path / "a.avi", 12)
    with pytest.raises(UsageError, match=r"workers 2 have no effect: .* holds films"):
        check_data(f"frames:{tmp_path}", 2)
    assert check_data(f"frames:{tmp_path}").report.failures == ()


@pytest.mark.parametrize("workers", [1, 3])
def test_progress_and_the_same_report_with_any_number_of_workers(toy: Path, workers: int) -> None:
    (toy / "images/train/001.png").write_bytes(b"no")
    seen: list[tuple[str, int, int]] = []
    report = check_data(f"folder:{toy}", workers, lambda *at: seen.append(at)).report
    assert seen == [(s, n, count) for s, count in (("train", 6), ("val", 3), ("test", 2)) for n in range(1, count + 1)]
    assert report == check_data(f"folder:{toy}", 2).report


def test_few_pictures_are_under_way_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(tmp_path / "many", {"train": 40})
    ahead: list[int] = []
    done = [0]
    read = PairedFiles.__getitem__

    def counting(self: PairedFiles, index: int) -> Sample:
        ahead.append(index - done[-1])
        return read(self, index)

    def progress(_: str, number: int, __: int) -> None:
        done.append(number)

    monkeypatch.setattr(PairedFiles, "__getitem__", counting)
    check_data(f"folder:{root}@train", 2, progress)
    assert len(ahead) == 40  # each once
    assert max(ahead) <= 2 * QUEUE


def test_an_interrupt_ends_the_reading(toy: Path) -> None:
    seen = 0

    def stop(_: str, number: int, __: int) -> None:
        nonlocal seen
        seen = number
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_data(f"folder:{toy}", 1, stop)
    assert seen == 2


LABELS = Labels(("a", "b"), ((250, 0, 0), (0, 0, 250)))


@pytest.mark.parametrize("hw", [(540, 960), (960, 540), (30, 40), (270, 360), (1, 900)])
def test_a_tile_keeps_its_shape_and_mixes_in_the_class_colour(hw: tuple[int, int]) -> None:
    image = np.full((*hw, 3), 100, np.uint8)
    tile = draw_tile(image, np.ones(hw, np.uint8), LABELS, "x").picture
    assert tile is not None
    height, width = tile.shape[:2]
    assert (height, width) == pytest.approx((BOX_HW[0], width), abs=0) or width == BOX_HW[1]
    assert height <= BOX_HW[0] and width <= BOX_HW[1]
    assert abs(height * hw[1] - width * hw[0]) <= max(hw)  # to a pixel
    expected = np.array([TINT * 250 + (1 - TINT) * 100, (1 - TINT) * 100, (1 - TINT) * 100])
    assert np.abs(tile.astype(float) - expected).max() <= 1


def test_void_is_darkened_but_a_picture_without_labels_is_shown_as_it_is() -> None:
    image, mask = np.full((270, 360, 3), 100, np.uint8), np.full((270, 360), 255, np.uint8)
    plain = draw_tile(image, mask, LABELS, "x").picture
    mask[0, 0] = 0
    dark = draw_tile(image, mask, LABELS, "x").picture
    assert plain is not None and (plain == 100).all()
    assert dark is not None and (dark[9, 9] == round((1 - TINT) * 100)).all()


@pytest.mark.parametrize("classes", [0, 1, 11, 171])
def test_a_sheet_shows_every_tile_and_every_class(classes: int) -> None:
    colors = [(200, 50 + k % 200, k) for k in range(classes)]
    legend = [Entry(color, f"class number {k} " + "x" * (k % 50), "1.00 %") for k, color in enumerate(colors)]
    tiles = [Tile(np.full((100 + k, 360, 3), (k + 1, 7, 77), np.uint8), "n" * 99) for k in range(6)]
    sheet = draw_sheet([("train", tiles), ("val", [Tile(None, "broken")])], legend)
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3
    coded = sheet.astype(np.uint32) @ np.array([1, 256, 65536], np.uint32)

    def count(blue: int, green: int, red: int) -> int:
        return int((coded == blue + 256 * green + 65536 * red).sum())

    assert [count(k + 1, 7, 77) for k in range(6)] == [(100 + k) * 360 for k in range(6)]
    assert all(count(*color[::-1]) >= 200 for color in colors)
