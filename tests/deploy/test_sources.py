from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from doubles import number_of, picture

from deploy.frames import Frame, FrameSource
from deploy.sources import SOURCES, kind_of, may_be_live, open_source
from lfd.data.film import measure
from lfd.errors import DataError, LfdError, SourceError, UsageError


def numbers(source: FrameSource) -> list[int]:
    frames = list(source)
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert all(frame.captured_ns > 0 for frame in frames)
    return [number_of(frame.image) for frame in frames]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("0", "camera"),
        ("12", "camera"),
        ("/dev/video3", "camera"),
        ("v4l2:///dev/video0", "camera"),
        ("street:", "street"),
        ("street:?fps=25", "street"),
        ("a.mp4", "film"),
        ("0.mp4", "film"),
        ("0?size=640x480&fps=30", "camera"),
        ("/dev/video1?fourcc=MJPG", "camera"),
        ("v4l2:///dev/v4l/by-id/usb-x-index0?fps=5", "camera"),
        ("csi://0?size=1280x720", "csi"),
        ("rtsp://u:p@host/1", "rtsp"),
        ("RTSPS://host/1#transport=udp", "rtsp"),
        ("http://host/a.png", "http"),
        ("https://host/?x=*", "http"),
        ("nothing", "film"),
        ("a.mp4#loop=true", "film"),
        ("*.png#loop=true", "pictures"),
        ("file:///a/b.mp4#loop=true", "film"),
        ("FILE:/a/b.png", "pictures"),
        ("file://localhost/a/*.png", "pictures"),
        (".#loop=true", "pictures"),
        ("*.png", "pictures"),
        ("a.jpg", "pictures"),
        (".", "pictures"),
    ],
)
def test_kinds(text: str, kind: str) -> None:
    assert kind_of(text) == kind
    assert kind in SOURCES


@pytest.mark.parametrize(
    ("text", "live"),
    [
        ("0", True),
        ("csi://0", True),
        ("rtsp://host/1", True),
        ("http://host/film.mp4", True),
        ("street:?fps=25", True),
        ("street:?fps=0&frames=3", False),
        ("street:", False),
        ("a.mp4#loop=true", False),
        ("pictures/*.png", False),
    ],
)
def test_what_may_be_live(text: str, live: bool) -> None:
    assert may_be_live(text) is live


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rtps://u:hunter2@host/1", "unknown source 'rtps'. Did you mean 'rtsps'?"),
        ("ftp://u:hunter2@x/*.png", "unknown source 'ftp'"),
        ("streat:", "Did you mean 'street'?"),
    ],
)
def test_kinds_that_are_not_there(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_source(text)
    assert said in str(caught.value) and "hunter2" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".webm"])
def test_a_film_gives_every_frame_in_order(make_film: Callable[..., Path], suffix: str) -> None:
    source = open_source(str(make_film("in" + suffix, frames=12)))
    assert (source.info.resolution_wh, source.info.fps, source.info.frames) == ((64, 48), 25.0, 12)
    assert not source.info.live
    assert numbers(source) == list(range(12))
    source.close()
    source.close()


def test_a_film_of_one_frame(make_film: Callable[..., Path]) -> None:
    assert numbers(open_source(str(make_film(frames=1)))) == [0]


def test_a_film_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"gone\.mp4: no such file; expected 0 or"):
        open_source(str(tmp_path / "gone.mp4"))


@pytest.mark.parametrize("content", [b"", b"no film", os.urandom(5000)])
def test_a_film_that_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=rf"not a film that can be decoded \({len(content)} bytes\)"):
        open_source(str(path))


def test_a_film_that_was_cut_is_not_taken_for_its_end(make_film: Callable[..., Path]) -> None:
    path = make_film("in.avi", frames=60)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    source = open_source(str(path))
    seen = 0
    with pytest.raises(
        SourceError, match=r"ends after frame \d+ of 60: it was cut or is damaged.*--max-frames"
    ) as caught:
        for _ in source:
            seen += 1
    assert 10 < seen < 50 and f"--max-frames {seen}" in str(caught.value)


def ffmpeg(*args: object) -> None:
    try:
        subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, args)], check=True)
    except FileNotFoundError:
        pytest.skip("no ffmpeg here to make such a film with")


def test_a_film_that_was_trimmed_is_whole(tmp_path: Path) -> None:
    """Of 8 s with a key frame every 4 s, the last 5 s and the part from 3 s to 6: all frames from 0 s on are inside."""
    path, end, part = (tmp_path / name for name in ("whole.mp4", "end.mp4", "part.mov"))
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=64x48:r=25:d=8", "-c:v", "mpeg4", "-g", 100, "-bf", 2, path)
    ffmpeg("-ss", 3, "-i", path, "-c", "copy", "-movflags", "+faststart", end)
    ffmpeg("-ss", 3, "-i", path, "-t", 3, "-c", "copy", part)
    for film, frames in ((path, 200), (end, 125), (part, 75)):
        held = cv2.VideoCapture(str(film)).get(cv2.CAP_PROP_FRAME_COUNT)
        assert held > frames + 20 or film is path
        source = open_source(str(film))
        assert source.info.frames is not None and abs(source.info.frames - frames) <= 1
        assert abs(len(list(source)) - frames) <= 1
        measured = measure(film)
        assert abs(measured.frames - frames) <= 1
    end.write_bytes(end.read_bytes()[: end.stat().st_size // 2])
    with pytest.raises(SourceError, match="it was cut or is damaged"):
        list(open_source(str(end)))
    with pytest.raises(DataError, match="it was cut or is damaged"):
        measure(end)


def test_closing_a_film_ends_it_without_complaint(make_film: Callable[..., Path]) -> None:
    source = open_source(str(make_film(frames=30)))
    frames = iter(source)
    next(frames)
    source.close()
    assert len(list(frames)) <= 1


def write(folder: Path, name: str, index: int, size_hw: tuple[int, int] = (48, 64)) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    assert cv2.imwrite(str(folder / name), picture(index, size_hw))


def test_pictures_come_in_natural_order(tmp_path: Path) -> None:
    for index in (0, 1, 2, 10, 11, 20):
        write(tmp_path / "p", f"frame{index}.png", index)
    (tmp_path / "p" / "notes.txt").write_text("not a picture")
    (tmp_path / "p" / ".hidden.png").write_bytes(b"")
    for text in (str(tmp_path / "p"), str(tmp_path / "p" / "*.png"), str(tmp_path / "**" / "frame*.png")):
        source = open_source(text)
        assert source.info.frames == 6 and not source.info.live
        frames = list(source)
        assert [number_of(f.image) for f in frames] == [0, 1, 2, 10, 11, 20], text
        assert frames[3].name == "frame10"


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    write(tmp_path / "a b#", "c%.png", 5)
    for scheme in ("file://", "file:", "file://localhost"):
        assert numbers(open_source(f"{scheme}{tmp_path}/a%20b%23/c%25.png")) == [5]
    with pytest.raises(UsageError, match="is a file of another machine; expected file:///PATH"):
        open_source("file://nas/films/a.mp4")


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/null", tmp_path / "pipe"):
        with pytest.raises(SourceError, match=rf"{path}: is no file; expected 0 or /dev/video0 .camera."):
            open_source(str(path))


def test_one_picture_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    write(tmp_path, "a[1].png", 5)
    assert numbers(open_source(str(tmp_path / "a[1].png"))) == [5]


def test_pictures_may_differ_in_size(tmp_path: Path) -> None:
    write(tmp_path, "a.png", 1)
    write(tmp_path, "b.jpg", 2, (60, 90))
    assert [f.image.shape[:2] for f in open_source(str(tmp_path))] == [(48, 64), (60, 90)]


def test_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no pictures in this folder; expected \.png"):
        open_source(str(tmp_path))
    for text in (str(tmp_path / "*.png"), str(tmp_path / "a.png")):
        with pytest.raises(SourceError, match="no pictures for this name or pattern"):
            open_source(text)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tif"])
def test_a_broken_picture_is_passed_over_and_named_at_the_end(tmp_path: Path, suffix: str) -> None:
    write(tmp_path, "a.png", 1)
    good = cv2.imencode(suffix, picture(2, (200, 300)))[1].tobytes()
    (tmp_path / f"b{suffix}").write_bytes(good[: len(good) // 3])
    write(tmp_path, "c.png", 3)
    (tmp_path / "d.png").write_bytes(b"")
    seen = []
    with pytest.raises(SourceError, match=rf"2 of 4 pictures cannot be read, the first is .*b\{suffix}: ") as caught:
        for frame in open_source(str(tmp_path)):
            seen += [(frame.name, frame.index, number_of(frame.image))]
    assert seen == [("a", 0, 1), ("c", 2, 3)] and "replace or remove it" in str(caught.value)


def test_the_first_picture_may_be_broken_but_not_all(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(SourceError, match=r"^[^ ]*a\.png: not a picture"):
        open_source(str(tmp_path))
    write(tmp_path, "b.png", 4)
    source = open_source(str(tmp_path))
    assert source.info.frames == 2 and next(iter(source)).name == "b"
    source.close()


def test_street_is_a_film_with_truth() -> None:
    source = open_source("street:?size=48x64&frames=3&seed=1")
    assert (source.info.resolution_wh, source.info.fps, source.info.frames) == ((64, 48), 25.0, 3)
    assert not source.info.live and source.info.labels is not None
    frames = list(source)
    assert [f.index for f in frames] == [0, 1, 2]
    assert all(f.truth is not None and f.truth.shape == (48, 64) and f.image.shape == (48, 64, 3) for f in frames)
    again = list(open_source("street:?size=48x64&frames=3&seed=1"))
    assert all((a.image == b.image).all() for a, b in zip(frames, again, strict=True))
    assert open_source("street:").info.frames == 250


def test_street_as_a_camera_keeps_its_pace() -> None:
    source = open_source("street:?size=48x64&fps=50&frames=10")
    assert source.info.live and source.info.fps == 50
    begin = time.perf_counter()
    assert len(list(source)) == 10
    assert time.perf_counter() - begin >= 9 / 50 - 0.01
    assert open_source("street:?fps=5").info.frames is None


def test_closing_a_waiting_street_camera_ends_it() -> None:
    source = open_source("street:?size=48x64&fps=1")
    frames: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: frames.extend(f.image for f in source))
    thread.start()
    source.close()
    thread.join(5)
    assert not thread.is_alive() and len(frames) <= 1


def test_street_options_that_do_not_exist() -> None:
    with pytest.raises(UsageError, match="unknown street option 'fsp'"):
        open_source("street:?fsp=25")


def test_a_film_begins_anew(make_film: Callable[..., Path]) -> None:
    path = str(make_film(frames=5))
    for source in (open_source(path, loop=True), open_source(path + "#loop=true")):
        assert source.info.frames is None and not source.info.live
        frames = iter(source)
        got = [next(frames) for _ in range(13)]
        assert all(isinstance(frame, Frame) for frame in got)
        assert [frame.index for frame in got] == list(range(13))  # type: ignore[union-attr]
        assert [number_of(frame.image) for frame in got] == [n % 5 for n in range(13)]  # type: ignore[union-attr]
        source.close()
        assert list(frames) == []


def test_pictures_and_the_scene_begin_anew(tmp_path: Path) -> None:
    write(tmp_path, "a.png", 1)
    write(tmp_path, "b.png", 2)
    for text in (f"{tmp_path}#loop=true", f"{tmp_path}/*.png#loop=true"):
        frames = iter(open_source(text))
        assert [next(frames).index for _ in range(5)] == [0, 1, 2, 3, 4]  # type: ignore[union-attr]
    scene = iter(open_source("street:?size=48x64&frames=2", loop=True))
    assert [next(scene).index for _ in range(5)] == [0, 1, 2, 3, 4]  # type: ignore[union-attr]


def test_a_camera_has_no_end_to_begin_anew_at() -> None:
    with pytest.raises(UsageError, match="is live and has no end"):
        open_source("street:?fps=25", loop=True)


def test_closing_a_loop_ends_it() -> None:
    source = open_source("street:?size=48x64&frames=3", loop=True)
    count = 0
    for _ in source:
        count += 1
        if count == 4:
            source.close()
    assert count <= 5


def test_a_file_whose_name_looks_like_options(make_film: Callable[..., Path]) -> None:
    path = make_film("a.avi", frames=2)
    odd = path.with_name("a#loop=true.avi")
    path.rename(odd)
    assert len(list(open_source(str(odd)))) == 2


def test_a_password_without_its_scheme_is_not_shown() -> None:
    for text in ("viewer:hunter2@host/stream", "v:hunter2@host/stream", "12:hunter2@host/stream.mp4#loop=true"):
        with pytest.raises(LfdError) as caught:
            open_source(text)
        assert "hunter2" not in str(caught.value)
