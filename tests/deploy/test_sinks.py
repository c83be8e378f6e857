from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import cv2
import numpy as np
import pytest
from doubles import picture, read_film

import deploy.film
from deploy.frames import Frame, FrameSink, VideoInfo
from deploy.overlay import Overlay
from deploy.sinks import SINKS, check_outputs, has_screen, kind_of, open_sink
from lfd.errors import SinkError, UsageError
from lfd.spec import ModelSpec

FILMS = ("out.webm", "out.mp4", "out.avi")

MODEL = Path("model.onnx")


def make(text: object, spec: ModelSpec, live: bool = False) -> FrameSink:
    return open_sink(str(text), Overlay(spec.labels), VideoInfo((320, 240), 25.0, None, live))


def frame(index: int, size_hw: tuple[int, int] = (240, 320), name: str = "") -> Frame:
    return Frame(picture(index, size_hw), index, 0, name)


def classes(index: int, size_hw: tuple[int, int] = (240, 320)) -> np.ndarray:
    return np.full(size_hw, index % 3, np.uint8)


@pytest.mark.parametrize("name", FILMS)
@pytest.mark.parametrize("count", [1, 2, 30])
def test_a_film_has_every_frame(tmp_path: Path, spec: ModelSpec, name: str, count: int) -> None:
    path = tmp_path / "new" / name
    sink = make(path, spec)
    for index in range(count):
        sink.write(frame(index), classes(index))
        assert not path.exists()
    sink.close(True)
    assert [f.shape for f in read_film(path)] == [(240, 320, 3)] * count
    assert [p.name for p in path.parent.iterdir()] == [name]


@pytest.mark.parametrize("name", FILMS)
def test_a_failed_film_leaves_nothing(tmp_path: Path, spec: ModelSpec, name: str) -> None:
    sink = make(tmp_path / name, spec)
    sink.write(frame(0), classes(0))
    sink.close(False)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_film_leaves_the_old_one(tmp_path: Path, spec: ModelSpec) -> None:
    path = tmp_path / "out.avi"
    path.write_bytes(b"old")
    sink = make(path, spec)
    sink.write(frame(0), classes(0))
    sink.close(False)
    assert path.read_bytes() == b"old"


def test_a_film_without_frames_is_no_film(tmp_path: Path, spec: ModelSpec) -> None:
    make(tmp_path / "out.avi", spec).close(True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FILMS)
def test_an_odd_size_loses_no_row(tmp_path: Path, spec: ModelSpec, name: str) -> None:
    sink = make(tmp_path / name, spec)
    sink.write(frame(0, (241, 321)), classes(0, (241, 321)))
    sink.close(True)
    assert read_film(tmp_path / name)[0].shape == (242, 322, 3)


def test_a_film_has_one_size(tmp_path: Path, spec: ModelSpec) -> None:
    sink = make(tmp_path / "out.avi", spec)
    sink.write(frame(0), classes(0))
    with pytest.raises(SinkError, match=r"320x240 pixels, but frame 1 'b' gives 400x300.*Fix: write masks"):
        sink.write(frame(1, (300, 400), "b"), classes(1, (300, 400)))
    sink.close(False)


def test_a_live_film_runs_at_the_cameras_pace(tmp_path: Path, spec: ModelSpec) -> None:
    sink = make(tmp_path / "out.avi", spec, live=True)
    for index in (0, 3, 4):
        sink.write(frame(index), classes(0))
    sink.close(True)
    assert len(read_film(tmp_path / "out.avi")) == 5


def test_a_full_disk_is_noticed_while_writing(tmp_path: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(deploy.film.shutil, "disk_usage", lambda path: usage(10, 10, 0))
    sink = make(tmp_path / "out.avi", spec)
    with pytest.raises(SinkError, match=r"out\.avi: only 0 MiB are free on that disk after 25 frames"):
        for index in range(100):
            sink.write(frame(index), classes(0))
    sink.close(False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FILMS)
def test_a_film_that_was_not_written_whole_is_noticed(tmp_path: Path, spec: ModelSpec, name: str) -> None:
    sink = make(tmp_path / name, spec)
    rng = np.random.default_rng(0)
    for index in range(40):
        noise = Frame(rng.integers(0, 256, (240, 320, 3), np.uint8), index, 0)
        sink.write(noise, classes(0))
    aside = next(tmp_path.iterdir())

    class Cut:
        """A writer whose disk took half of the film."""

        def __init__(self, writer: cv2.VideoWriter) -> None:
            self._writer = writer

        def release(self) -> None:
            self._writer.release()
            whole = aside.read_bytes()
            aside.write_bytes(whole[: len(whole) // 2])

    sink._writer = Cut(sink._writer)  # type: ignore[attr-defined]
    with pytest.raises(SinkError, match=r"of 40 frames written \d+ can be read back; the disk is full"):
        sink.close(True)
    assert list(tmp_path.iterdir()) == []


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


def test_failed_masks_leave_nothing(tmp_path: Path, spec: ModelSpec) -> None:
    sink = make(f"{tmp_path}/m/", spec)
    sink.write(frame(0), classes(0))
    sink.close(False)
    assert list(tmp_path.iterdir()) == []


def test_two_pictures_of_one_name(tmp_path: Path, spec: ModelSpec) -> None:
    sink = make(f"{tmp_path}/m/", spec)
    sink.write(frame(0, name="a"), classes(0))
    with pytest.raises(SinkError, match=r"two pictures are named 'a'"):
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


def test_display_says_what_is_missing(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert not has_screen()
    with pytest.raises(SinkError, match=r"display://: .*Fix: write to FILE\.webm or null://"):
        make("display://", spec)
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "GUI:    QT5")
    with pytest.raises(SinkError, match="there is no screen"):
        check_outputs(["display://"], "0", MODEL, False)
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:                           NONE\n")
    with pytest.raises(SinkError, match="built without windows"):
        check_outputs(["display://"], "0", MODEL, False)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("null://", "null"),
        ("display://", "display"),
        ("a.webm", "film"),
        ("a.MP4", "film"),
        ("d/", "masks"),
        (".", "masks"),
    ],
)
def test_kinds(text: str, kind: str) -> None:
    assert kind_of(text) == kind and kind in SINKS


@pytest.mark.parametrize("text", ["out.mkv", "out", "out.png", "http://127.0.0.1:8080", "null://x", "rtsp://x"])
def test_kinds_that_are_not_there(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected FILE\.webm, FILE\.mp4"):
        kind_of(text)


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    film, folder = tmp_path / "a.webm", tmp_path / "d"
    film.write_bytes(b"x")
    folder.mkdir()
    check_outputs([f"{folder}/"], "0", MODEL, False)
    (folder / "x").write_bytes(b"x")
    for sink, match in ((str(film), "exists; choose another name"), (f"{folder}/", r"is not empty \(it holds x\)")):
        with pytest.raises(UsageError, match=match):
            check_outputs([sink], "0", MODEL, False)
        check_outputs([sink], "0", MODEL, True)


def test_sinks_in_each_others_way(tmp_path: Path) -> None:
    (tmp_path / "in.avi").write_bytes(b"x")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.png").write_bytes(b"x")
    with pytest.raises(UsageError, match="give each once"):
        check_outputs([f"{tmp_path}/a.avi", f"{tmp_path}/./a.avi"], "0", MODEL, False)
    for sink, source in (
        (f"{tmp_path}/in.avi", f"{tmp_path}/in.avi"),
        (f"{tmp_path}/p/", f"{tmp_path}/p"),
        (f"{tmp_path}/p/", f"{tmp_path}/p/*.png"),
    ):
        with pytest.raises(UsageError, match="would write over the source"):
            check_outputs([sink], source, MODEL, True)
    with pytest.raises(UsageError, match="is a file, not a folder"):
        check_outputs([f"{tmp_path}/in.avi/x.avi"], "0", MODEL, False)
    with pytest.raises(UsageError, match="is a folder"):
        check_film_folder(tmp_path)


def check_film_folder(tmp_path: Path) -> None:
    SINKS["film"].check(str(tmp_path), False)


@pytest.mark.parametrize("name", ["film.avi", "model.onnx", "out.webm"])
def test_the_summary_never_replaces_source_model_or_sink(tmp_path: Path, name: str) -> None:
    source, model, sink = (tmp_path / n for n in ("film.avi", "model.onnx", "out.webm"))
    with pytest.raises(UsageError, match=r"would write over|give each once"):
        check_outputs([str(sink)], str(source), model, True, tmp_path / name)
    check_outputs([str(sink)], str(source), model, False, tmp_path / "summary.json")
