from __future__ import annotations

import contextlib
import pickle
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfd import memory
from lfd.data import UNLABELLED, film, frames, open_dataset
from lfd.data.base import Dataset
from lfd.data.film import FilmInfo, ends_early
from lfd.data.frames import FrameSet, shrunk_hw
from lfd.errors import DataError, LfdError, UsageError
from lfd.spec import Labels

LABELS = Labels(("road", "sky"), ((128, 64, 128), (70, 130, 180)), ignore_index=254)
LEVEL = 6
"""Frame n of a film is a plain colour of level n * LEVEL, which JPEG keeps to a level or two."""


def write_film(path: Path, count: int, size_hw: tuple[int, int] = (48, 64)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = cv2.VideoWriter.fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, codec, 25, (size_hw[1], size_hw[0]))
    assert writer.isOpened()
    for number in range(count):
        writer.write(np.full((*size_hw, 3), number * LEVEL, np.uint8))
    writer.release()
    return path


def write_picture(path: Path, level: int, size_hw: tuple[int, int] = (48, 64)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*size_hw, 3), level, np.uint8))
    return path


def open_frames(text: str, split: str = "train") -> FrameSet:
    data = open_dataset(f"frames:{text}", split, LABELS)
    assert isinstance(data, FrameSet)
    return data


def numbers(data: Dataset) -> list[int]:
    """Return which frame of a film each sample is, by its colour."""
    return [round(float(data[index].image.mean()) / LEVEL) for index in range(len(data))]


def names(data: Dataset) -> list[str]:
    return [data[index].name for index in range(len(data))]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film of 40 frames, 48x64."""
    return write_film(tmp_path_factory.mktemp("films") / "clip.avi", 40)


def test_a_folder_with_its_subfolders_in_natural_order(tmp_path: Path) -> None:
    for name in ("10.png", "2.jpg", "a/3.png", "a/b/1.BMP", "a/b/20.webp"):
        write_picture(tmp_path / name, 100)
    (tmp_path / "notes.txt").write_text("no picture")
    write_picture(tmp_path / ".thumbnails" / "5.png", 1)
    write_picture(tmp_path / ".6.png", 1)
    assert names(open_frames(str(tmp_path))) == ["2", "10", "3", "1", "20"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["1", "2"]),
        ("?.png", ["1", "2"]),
        ("**/*.png", ["1", "2", "3"]),
        ("2.png", ["2"]),
        ("[13].png", ["1"]),
    ],
)
def test_a_pattern_or_a_picture(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    for name in ("1.png", "2.png", "more/3.png", "4.txt"):
        write_picture(tmp_path / name, 5) if name.endswith(".png") else (tmp_path / name).write_text("")
    assert names(open_frames(f"{tmp_path}/{pattern}")) == expected
    assert names(open_frames(f"{tmp_path}/{pattern}?limit=1")) == expected[:1]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_split_is_all_of_it_and_every_mask_is_void(tmp_path: Path, split: str) -> None:
    write_picture(tmp_path / "a.png", 7)
    data = open_frames(str(tmp_path), split)
    sample = data[0]
    assert data.labels == LABELS and len(data) == 1
    assert (sample.image == 7).all() and sample.image.shape == (48, 64, 3)
    assert (sample.mask == 254).all() and sample.mask.shape == (48, 64) and sample.mask.dtype == np.uint8


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", [0, 10, 20, 30]),
        ("?stride=1", list(range(40))),
        ("?stride=7", [0, 7, 14, 21, 28, 35]),
        ("?stride=39", [0, 39]),
        ("?stride=40", [0]),
        ("?stride=1&limit=4", [0, 10, 20, 30]),
        ("?stride=1&limit=3", [0, 13, 26]),
        ("?limit=99", [0, 10, 20, 30]),
    ],
)
def test_frames_of_a_film(clip: Path, query: str, expected: list[int]) -> None:
    data = open_frames(f"{clip}{query}")
    assert numbers(data) == expected
    assert names(data) == [f"clip-{number:06}" for number in expected]
    assert data.film_bytes == len(expected) * 48 * 64 * 3
    streamed = list(data.stream())
    assert all(np.array_equal(s.image, data[i].image) and s.name == data[i].name for i, s in enumerate(streamed))
    assert len(streamed) == len(data)


def test_films_and_pictures_mixed(tmp_path: Path) -> None:
    write_film(tmp_path / "b.avi", 12)
    write_film(tmp_path / "d" / "e.avi", 3)
    write_picture(tmp_path / "a.png", 0)
    write_picture(tmp_path / "c.png", 0)
    data = open_frames(f"{tmp_path}?stride=5")
    assert names(data) == ["a", "b-000000", "b-000005", "b-000010", "c", "e-000000"]
    assert [sample.name for sample in data.stream() if not isinstance(sample, DataError)] == names(data)
    assert {path.name: info for path, info in data.films.items()} == {
        "b.avi": FilmInfo(12, (48, 64)),
        "e.avi": FilmInfo(3, (48, 64)),
    }


@given(st.tuples(*[st.integers(1, 500)] * 2), st.tuples(*[st.integers(1, 500)] * 2))
def test_a_shrunk_size_covers_the_wanted_one_in_the_frames_shape(frame_hw, wanted_hw) -> None:
    height, width = shrunk_hw(frame_hw, wanted_hw)
    assert 0 < height <= frame_hw[0] and 0 < width <= frame_hw[1]
    if (height, width) != frame_hw:
        assert height >= wanted_hw[0] and width >= wanted_hw[1]
        assert height == wanted_hw[0] or width == wanted_hw[1]
        # The other side is the exact one to half a pixel.
        assert abs(height * frame_hw[1] - width * frame_hw[0]) <= max(frame_hw) / 2


@pytest.mark.parametrize(
    ("size", "expected"),
    [("24x32", (24, 32)), ("24x16", (24, 32)), ("12x30", (22, 30)), ("48x64", (48, 64)), ("99x9", (48, 64))],
)
def test_size_shrinks_films_and_pictures(clip: Path, tmp_path: Path, size: str, expected: tuple[int, int]) -> None:
    picture = write_picture(tmp_path / "a.png", 9)
    film_set, picture_set = open_frames(f"{clip}?size={size}"), open_frames(f"{picture}?size={size}")
    for data in (film_set, picture_set):
        assert data[0].image.shape == (*expected, 3) and data[0].mask.shape == expected
    assert film_set.film_bytes == 4 * expected[0] * expected[1] * 3


def test_a_film_is_decoded_once_whoever_asks_first(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    real = film.read

    def counting(path: Path, wanted):
        reads.append(path)
        return real(path, wanted)

    monkeypatch.setattr(film, "read", counting)
    data = open_frames(f"{clip}?stride=1")
    assert reads == []  # opening decodes to count, and keeps nothing
    threads = [threading.Thread(target=data.__getitem__, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    data.read_films()
    assert reads == [clip] and data[3].image is data[3].image


def test_it_travels_to_processes_that_are_not_forked(clip: Path) -> None:
    data = open_frames(str(clip))
    data.read_films()
    assert numbers(pickle.loads(pickle.dumps(data))) == numbers(data)  # noqa: S301 - our own


def test_films_too_large_for_the_memory_are_refused_before_they_are_read(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sysconf", lambda _: 100)  # 10 kB
    data = open_frames(str(clip))
    monkeypatch.setattr(film, "read", lambda *_: pytest.fail("read"))
    for read in (data.read_films, lambda: data[0]):
        with pytest.raises(UsageError, match=r"the pictures take 0\.0 GB decoded.*Fix: a larger stride=N"):
            read()


def test_a_containers_memory_is_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CONTAINER", tmp_path / "memory.max")
    for text, refused in ((None, False), ("max\n", False), ("1000\n", True)):
        if text is not None:
            (tmp_path / "memory.max").write_text(text)
        with pytest.raises(UsageError, match="Fix: less") if refused else contextlib.nullcontext():
            memory.check_memory(501, "less")


@pytest.mark.parametrize(
    ("cut", "what"), [(0.0, r"not a film.*\(0 bytes\)"), (0.5, r"ends after frame \d+ of 40"), (1e-2, "film")]
)
def test_a_cut_film_is_named(clip: Path, tmp_path: Path, cut: float, what: str) -> None:
    data = clip.read_bytes()
    broken = tmp_path / "cut.avi"
    broken.write_bytes(data[: int(cut * len(data))])
    for text in (str(broken), str(tmp_path)):
        with pytest.raises(DataError, match=rf"{broken}: .*{what}"):
            open_frames(text)


def test_a_film_that_shrinks_after_it_was_opened_is_named(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.avi", 30)
    data = open_frames(str(path))
    write_film(path, 12)
    with pytest.raises(DataError, match=r"a\.avi: ends after frame 12; it had more"):
        data[0]
    streamed = list(data.stream())
    assert [type(found) for found in streamed[2:]] == [DataError] and len(streamed) == 3


def test_a_broken_picture_does_not_end_the_stream(tmp_path: Path) -> None:
    write_picture(tmp_path / "1.png", 5)
    (tmp_path / "2.png").write_bytes(b"no")
    write_picture(tmp_path / "3.png", 5)
    data = open_frames(str(tmp_path))
    assert [isinstance(found, DataError) for found in data.stream()] == [False, True, False]
    with pytest.raises(DataError, match=r"2\.png: not a picture"):
        data[1]


@pytest.mark.parametrize(
    ("frames_read", "declared", "fps", "position_ms", "cut"),
    [
        (100, 100, 25, 3960, False),
        (60, 100, 25, 2360, True),
        (60, 100, 25, 3960, False),  # of changing rate: the count is an estimate, the clock is not
        (96, 100, 25, 100, False),
        (60, 0, 25, 100, False),
        (60, 100, 0, 100, False),
    ],
)
def test_a_cut_film_is_told_from_an_estimate(frames_read, declared, fps, position_ms, cut) -> None:
    assert ends_early(frames_read, declared, fps, position_ms) is cut


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("frames:", DataError, "names no place"),
        ("frames:{root}/nowhere", DataError, "no such file or folder"),
        ("frames:{root}/*.gif", DataError, "no pictures or films"),
        ("frames:{root}/empty", DataError, "no pictures or films"),
        ("frames:{root}/notes.txt", DataError, "notes.txt: not a film"),
        ("frames:{root}/a.png?stride=2", UsageError, "stride=2 has no effect: .* holds no films"),
        ("frames:{root}/a.png?limit=0", UsageError, "limit='0'; expected a whole number from 1"),
        ("frames:{root}/a.png?limit=-3", UsageError, "limit='-3'; expected a whole number from 1"),
        ("frames:{root}/a.png?limit=", UsageError, "limit=''; expected a whole number from 1"),
        ("frames:{root}/a.png?stride=1e3", UsageError, "stride='1e3'; expected a whole number from 1"),
        ("frames:{root}/a.png?size=10", UsageError, "size '10'; expected HEIGHTxWIDTH"),
        ("frames:{root}/a.png?limt=3", UsageError, "unknown frames option 'limt'. Did you mean 'limit'"),
        ("frames:{root}/a.png?limit=3&limit=4", UsageError, "limit is given twice"),
        ("frames:{root}@val", UsageError, "names a split; frames: has none. Fix: leave @val away"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, text: str, error: type[LfdError], message: str) -> None:
    write_picture(tmp_path / "a.png", 3)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=message) as caught:
        open_dataset(text.format(root=tmp_path), "train", LABELS)
    assert "\n" not in str(caught.value)


def test_without_classes_it_is_refused_with_where_it_is_for(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", 3)
    for name in UNLABELLED:
        with pytest.raises(UsageError, match=rf"no classes of its own.*lfd-train distill --data {name}:PATH --val D"):
            open_dataset(f"{name}:{tmp_path}", "val")


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=2, unique=True))
def test_natural_order_is_that_of_the_numbers(pair: list[int]) -> None:
    low, high = (Path(f"a/frame{number}.png") for number in sorted(pair))
    assert frames.natural(low) < frames.natural(high)
