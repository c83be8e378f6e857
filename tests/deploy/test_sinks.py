from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from sink_doubles import FFMPEG, STATS, classes, frame, lost, make, noise, write_script

import deploy.sinks
from deploy.frames import State, StopRequested, StreamStatus, VideoInfo
from deploy.overlay import Overlay
from deploy.sinks import SINKS, check_outputs, display, has_screen, open_sink
from deploy.sinks.options import _OPTIONS, CODECS, parse_sink
from lfd.errors import MissingDependencyError, SinkError, UsageError
from lfd.spec import ModelSpec

MODEL = Path("model.onnx")


class Screen:
    """Stands for OpenCV's windows: what was shown, and what the viewer does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.windows: list[str] = []
        self.shown: list[np.ndarray] = []
        self.key, self.visible, self.polled = -1, 1.0, 0
        monkeypatch.setenv("DISPLAY", ":0")
        for name, stand_in in {
            "getBuildInformation": lambda: "GUI: QT5",
            "namedWindow": lambda title, flags: self.windows.append(title),
            "resizeWindow": lambda title, width, height: None,
            "imshow": lambda title, picture: self.shown.append(picture.copy()),
            "waitKey": lambda ms: self._poll(),
            "getWindowProperty": lambda title, what: self.visible,
            "destroyWindow": self.windows.remove,
        }.items():
            monkeypatch.setattr(display.cv2, name, stand_in)

    def _poll(self) -> int:
        self.polled += 1
        return self.key


def test_the_window_stays_alive_and_marks_what_is_stale(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch)
    sink = make("display://?title=front", spec, live=True)
    sink.show_status(lost())
    assert screen.windows == [] and screen.shown == []  # no black window before the first picture
    sink.write(noise(0), classes(0))
    for _ in range(20):
        sink.show_status(lost(since_ns=0))
    assert screen.windows == ["front"] and screen.polled == 21
    assert 2 <= len(screen.shown) <= 4  # drawn again only when the banner's seconds change
    assert all(picture.mean() > 20 for picture in screen.shown)
    assert screen.shown[-1][120].mean(0).argmax() == 2 and (screen.shown[-1] != screen.shown[0]).any()
    sink.show_status(StreamStatus(State.LIVE, 0))
    sink.write(noise(1), classes(1))
    sink.close(True)
    assert screen.windows == [] and screen.polled == 23


@pytest.mark.parametrize("end", [{"key": ord("q")}, {"key": 27}, {"visible": 0.0}])
@pytest.mark.parametrize("when", ["write", "lost"])
def test_the_viewer_ends_the_run(
    spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, end: dict[str, float], when: str
) -> None:
    screen = Screen(monkeypatch)
    sink = make("display://", spec)
    sink.write(frame(0), classes(0))
    vars(screen).update(end)
    with pytest.raises(StopRequested):
        sink.write(frame(1), classes(1)) if when == "write" else sink.show_status(lost())
    sink.close(True)


def test_display_says_what_is_missing(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert not has_screen()
    with pytest.raises(SinkError, match=r"display://: .*Fix: write to FILE\.webm or null://"):
        make("display://", spec)
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "GUI:    QT5")
    with pytest.raises(SinkError, match="there is no screen"):
        check_outputs(["display://"], ["0"], MODEL, False)
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:                           NONE\n")
    with pytest.raises(SinkError, match="built without windows"):
        check_outputs(["display://"], ["0"], MODEL, False)


# What was typed.


@pytest.mark.parametrize(
    ("text", "kind", "options"),
    [
        ("null://", "null", {}),
        ("display://", "display", {}),
        ("display://?title=front%26back", "display", {"title": "front&back"}),
        ("a.webm", "film", {}),
        ("a.MP4", "film", {}),
        ("a.mp4?codec=h264&crf=20&preset=slow", "film", {"codec": "h264", "crf": 20, "preset": "slow"}),
        ("a.avi?segment=600&keep=144", "film", {"segment": 600, "keep": 144}),
        ("d/", "pictures", {}),
        (".", "pictures", {}),
        ("d/?show=overlay&format=jpg&every=5&keep=9", "pictures", {"show": "overlay", "format": "jpg", "every": 5, "keep": 9}),  # noqa: E501
        ("a.jsonl", "jsonl", {}),
        ("a.jsonl?every=25", "jsonl", {"every": 25}),
        ("http://127.0.0.1:8080", "page", {}),
        ("http://[::1]:8080/?fps=10&quality=70", "page", {"fps": 10, "quality": 70}),
    ],
)  # fmt: skip
def test_kinds_and_options(text: str, kind: str, options: dict[str, object]) -> None:
    target = parse_sink(text)
    assert (target.kind, target.options) == (kind, options) and kind in SINKS


@pytest.mark.parametrize(
    "text", ["out.mkv", "out", "out.png", "http://127.0.0.1", "http://u:p@h:80", "https://h:1", "null://x", "rtsp://x"]
)
def test_kinds_that_are_not_there(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected FILE\.webm, FILE\.mp4"):
        parse_sink(text)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a.webm?segmnt=5", "a.webm sink option 'segmnt'. Did you mean 'segment'"),
        ("a.webm?segment", "expected KEY=VALUE"),
        ("a.webm?segment=5&segment=6", "given twice"),
        ("a.webm?segment=0", "segment = 0; expected 1 to 86400"),
        ("a.webm?segment=1.5", "segment='1.5'; expected 1 to 86400"),
        ("a.webm?segment=-5", "expected 1 to 86400"),
        ("a.webm?segment=" + "9" * 400, "expected 1 to 86400"),
        ("a.webm?keep=5", "keep counts segments; expected segment=SECONDS"),
        ("a.webm?codec=h264", "codec=h264 does not go into .webm; expected vp8"),
        ("a.mp4?codec=h246", "'h246'. Did you mean 'h264'"),
        ("a.mp4?crf=20", "crf is an option of codec=h264, not of mp4v. Fix"),
        ("a.mp4?codec=h264&crf=52", "crf = 52; expected 0 to 51"),
        ("a.mp4?codec=h264&preset=fastest", "Did you mean 'faster'"),
        ("d/?show=overlays", "Did you mean 'overlay'"),
        ("d/?format=jpg", "format=jpg would change label values; expected show=overlay"),
        ("d/?segment=5", "'segment'"),
        ("a.jsonl?every=0", "every = 0; expected 1 to"),
        ("null://?every=2", "takes no options"),
        ("http://127.0.0.1:8080?fps=0", "fps = 0; expected 1 to 60"),
        ("http://127.0.0.1:8080?qualty=70", "Did you mean 'quality'"),
        ("http://127.0.0.1:65536", "port = 65536; expected 0 to 65535"),
        ("display://?titel=x", "Did you mean 'title'"),
    ],
)
def test_options_that_are_wrong(text: str, match: str) -> None:
    with pytest.raises(UsageError, match=re.escape(match)) as caught:
        parse_sink(text)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_every_option_is_documented() -> None:
    sinks, options = (deploy.sinks.__doc__ or "").split("    Option ")
    for kind, known in _OPTIONS.items():
        for key, allowed in known.items():
            (line,) = [line for line in options.splitlines() if line.split()[:1] == [key]]
            assert re.search(rf"\b{key}\b", sinks), kind
            if key in ("show", "format"):
                assert ", ".join(allowed) in line  # type: ignore[arg-type]
            elif key in ("crf", "segment", "every", "keep", "fps", "quality"):
                assert f"{allowed[0]}..{allowed[1]}" in line  # type: ignore[index]
    assert all(suffix in sinks for suffix in CODECS)


# What is in the way.


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    for name in ("a.webm", "a.jsonl", "s-00017.webm", "d/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    check_outputs([f"{tmp_path}/empty/", f"{tmp_path}/s.webm"], ["0"], MODEL, False)
    for sink, match in (
        ("a.webm", "exists; choose another name"),
        ("a.jsonl", "exists; choose another name"),
        ("s.webm?segment=5", r"s-00017\.webm exists; choose another name"),
        ("d/", r"is not empty \(it holds x\)"),
    ):
        with pytest.raises(UsageError, match=match):
            check_outputs([f"{tmp_path}/{sink}"], ["0"], MODEL, False)
        check_outputs([f"{tmp_path}/{sink}"], ["0"], MODEL, True)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a.avi", "./a.avi", True),
        ("a.avi", "a.avi?segment=5", False),
        ("a.avi?segment=5", "a.avi?segment=6", True),
        ("a.avi?segment=5", "a-00001.avi", True),
        ("a-00001.avi", "a.avi?segment=5", True),
        ("a-1.avi", "a.avi?segment=5", False),
        ("a.avi?segment=5", "a.webm?segment=5", False),
        ("a.jsonl", "a.jsonl?every=2", True),
        ("d/", "d/?show=overlay", True),
        ("d/", "e/", False),
        ("null://", "null://", False),
    ],
)
def test_sinks_in_each_others_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: str, other: str, same: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    if same:
        with pytest.raises(UsageError, match="give each once"):
            check_outputs([one, other], ["0", "1"], MODEL, False)
    else:
        check_outputs([one, other], ["0", "1"], MODEL, False)


def test_two_windows_have_two_titles(monkeypatch: pytest.MonkeyPatch) -> None:
    Screen(monkeypatch)
    check_outputs(["display://?title=a", "display://?title=b"], ["0", "1"], MODEL, False)
    with pytest.raises(UsageError, match="give each once"):
        check_outputs(["display://", "display://"], ["0", "1"], MODEL, False)


@pytest.mark.parametrize(
    ("sink", "source"),
    [
        ("in.avi", "in.avi"),
        ("in.avi", "in.avi#loop=true"),
        ("in-00001.avi", "./in-00001.avi"),
        ("in.avi?segment=5", "in-00001.avi"),
        ("p/", "p"),
        ("p/", "p/*.png"),
        ("p/", "p/a?.png"),
        ("p/", "p/a.png"),
        ("./", "in.avi"),
    ],
)
def test_the_source_is_never_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sink: str, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("in.avi", "in-00001.avi", "p/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UsageError, match="would write over the source"):
        check_outputs([sink], ["street:", source], MODEL, True)


@pytest.mark.parametrize("source", ["0", "street:?fps=25", "rtsp://user:secret@host/a", "p"])
def test_pictures_beside_a_source_that_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p").mkdir()
    for model in (MODEL, None):
        check_outputs(["./"], [source], model, True)


def test_a_place_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for sink, match in (
        ("file/x.avi", "is a file, not a folder"),
        ("file/x.jsonl", "is a file, not a folder"),
        ("file/", "is a file; expected a folder"),
    ):
        with pytest.raises(UsageError, match=match):
            check_outputs([f"{tmp_path}/{sink}"], ["0"], MODEL, False)


@pytest.mark.parametrize("name", ["a.webm", "a.webm?segment=5", "d/", "a.jsonl"])
def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("lfd.files.os.access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(UsageError, match="is not writable; choose another place"):
        check_outputs([f"{tmp_path}/{name}"], ["0"], MODEL, False)


@pytest.mark.parametrize("name", ["film.avi", "model.onnx", "out.webm", "s-00001.avi"])
def test_the_summary_never_replaces_source_model_or_sink(tmp_path: Path, name: str) -> None:
    source, model, sink = (tmp_path / n for n in ("film.avi", "model.onnx", "out.webm"))
    for path in (source, model):
        path.write_bytes(b"x")
    sinks = [str(sink), f"{tmp_path}/s.avi?segment=5"]
    with pytest.raises(UsageError, match=r"would write over|give each once"):
        check_outputs(sinks, [str(source)], model, True, tmp_path / name)
    with pytest.raises(UsageError, match=r"would write over|give each once"):
        check_outputs(sinks, [str(source)], model, True, None, tmp_path / name)
    with pytest.raises(UsageError, match="give each once"):
        check_outputs([], [], model, True, tmp_path / "x.json", tmp_path / "x.json")
    check_outputs(sinks, [str(source)], model, False, tmp_path / "summary.json")


def test_h264_needs_an_ffmpeg_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(MissingDependencyError, match=r"no ffmpeg on PATH\. Fix: apt install ffmpeg"):
        check_outputs([f"{tmp_path}/a.mp4?codec=h264"], ["0"], MODEL, False)
    monkeypatch.setenv("PATH", f"{write_script(tmp_path / 'bin', '').parent}:/bin:/usr/bin")
    check_outputs([f"{tmp_path}/a.mp4?codec=h264"], ["0"], MODEL, False)


@pytest.mark.parametrize(
    "text", ["null://", "o.avi", pytest.param("o.mp4?codec=h264", marks=FFMPEG), "d/", "d/?show=overlay", "o.jsonl"]
)
@pytest.mark.parametrize("live", [False, True])
def test_every_sink_hears_the_status_and_closes_twice(tmp_path: Path, spec: ModelSpec, text: str, live: bool) -> None:
    sink = make(text if "://" in text else f"{tmp_path}/{text}", spec, live)
    sink.show_status(StreamStatus(State.LIVE, 0))
    sink.show_status(lost())
    sink.write(frame(0), classes(0))
    sink.show_status(lost(attempt=2))
    sink.close(True)
    sink.close(True)


def test_the_overlay_is_shared(tmp_path: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    overlay, blended = Overlay(spec.labels), []
    blend = deploy.overlay.blend
    monkeypatch.setattr("deploy.overlay.blend", lambda *given: blended.append(1) or blend(*given))
    info = VideoInfo((320, 240), 25.0, 3, False)
    sinks = [open_sink(f"{tmp_path}/{n}", overlay, info, lambda: STATS) for n in ("a.avi", "b.avi", "d/?show=overlay")]
    for index in range(3):
        one = frame(index)
        for sink in sinks:
            sink.write(one, classes(index))
    for sink in sinks:
        sink.close(True)
    assert len(blended) == 3


def dead_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize(
    ("sink", "own", "others"),
    [
        ("a.avi", [".a.{}.partial.avi", ".a-00012.{}.partial.avi"], [".a.{}.partial.webm", ".ab.{}.partial.avi"]),
        ("a.jsonl", [".a.{}.partial.jsonl"], [".a.b.{}.partial.jsonl", ".a.{}.partial.avi"]),
        ("d/", ["d/.{}.partial/x.png"], ["d/.cat.{}.partial.png", "d/{}.partial"]),
    ],
)
def test_what_a_killed_run_left_goes(
    tmp_path: Path, spec: ModelSpec, sink: str, own: list[str], others: list[str], live: bool
) -> None:
    """Also under our own number, which in a container is always the same; not what another process still writes."""
    dead, alive = dead_process(), os.getppid()
    gone = [tmp_path / name.format(pid) for name in own for pid in (dead, os.getpid())]
    stay = [tmp_path / name.format(alive) for name in own] + [tmp_path / name.format(dead) for name in others]
    for path in gone + stay:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    made = make(f"{tmp_path}/{sink}", spec, live)
    assert not any(path.exists() for path in gone) and all(path.exists() for path in stay)
    made.write(frame(0), classes(0))
    made.close(True)
    assert all(path.exists() for path in stay)


def test_a_pages_token_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGE_TOKEN", "0123456789abcdef")
    assert parse_sink("http://127.0.0.1:8080?token=${PAGE_TOKEN}").options == {"token": "0123456789abcdef"}
    monkeypatch.setenv("PAGE_TOKEN", "hunter2")
    with pytest.raises(UsageError, match="a token has 16 to 128") as caught:
        parse_sink("http://127.0.0.1:8080?token=${PAGE_TOKEN}")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(UsageError, match="the environment has no NO_TOKEN"):
        parse_sink("http://127.0.0.1:8080?token=${NO_TOKEN}")
