from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from doubles import read_film
from hypothesis import given
from hypothesis import strategies as st
from sink_doubles import FFMPEG, FPS, S, classes, files_up_to, frame, lost, make, noise, nothing_left, write_script

import deploy.sinks.ffmpeg
import deploy.sinks.film
import deploy.sinks.recording
from deploy.frames import Frame, FrameSink, VideoInfo
from deploy.overlay import Overlay
from deploy.sinks.film import FilmSink
from deploy.sinks.pace import GAP_S, LEAD_S, Pace
from deploy.sinks.recording import Recording
from lfd.errors import MissingDependencyError, SinkError
from lfd.spec import ModelSpec

H264 = "out.mp4?codec=h264&preset=ultrafast"
FILMS = ("out.webm", "out.mp4", "out.avi", pytest.param(H264, marks=FFMPEG))


def write(sink: FrameSink, count: int, first: int = 0) -> None:
    for index in range(first, first + count):
        sink.write(frame(index), classes(index))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", FILMS)
@pytest.mark.parametrize("count", [1, 2, 30])
def test_a_film_has_every_frame(tmp_path: Path, spec: ModelSpec, name: str, count: int) -> None:
    path = tmp_path / "new" / name.partition("?")[0]
    sink = make(path.parent / name, spec)
    for index in range(count):
        sink.write(frame(index), classes(index))
        assert not path.exists()
    with nothing_left():
        sink.close(True)
    assert [f.shape for f in read_film(path)] == [(240, 320, 3)] * count
    assert names(path.parent) == [path.name]


@pytest.mark.parametrize("name", FILMS)
def test_a_failed_film_leaves_nothing(tmp_path: Path, spec: ModelSpec, name: str) -> None:
    with nothing_left():
        sink = make(tmp_path / name, spec)
        write(sink, 2)
        sink.close(False)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", FILMS)
def test_a_failed_film_leaves_the_old_one(tmp_path: Path, spec: ModelSpec, name: str) -> None:
    path = tmp_path / name.partition("?")[0]
    path.write_bytes(b"old")
    sink = make(tmp_path / name, spec)
    write(sink, 1)
    sink.close(False)
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("name", FILMS)
def test_a_film_without_frames_is_no_film(tmp_path: Path, spec: ModelSpec, name: str) -> None:
    make(tmp_path / name, spec).close(True)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", FILMS)
def test_an_odd_size_loses_no_row(tmp_path: Path, spec: ModelSpec, name: str) -> None:
    sink = make(tmp_path / name, spec)
    sink.write(frame(0, (241, 321)), classes(0, (241, 321)))
    sink.close(True)
    assert read_film(tmp_path / name.partition("?")[0])[0].shape == (242, 322, 3)


def test_a_film_has_one_size(tmp_path: Path, spec: ModelSpec) -> None:
    sink = make(tmp_path / "out.avi", spec)
    write(sink, 1)
    with pytest.raises(SinkError, match=r"320x240 pixels, but frame 1 'b' gives 400x300.*Fix: write masks"):
        sink.write(frame(1, (300, 400), "b"), classes(1, (300, 400)))
    sink.close(False)


def test_a_live_film_keeps_its_size_and_says_so_once(tmp_path: Path, spec: ModelSpec) -> None:
    sink = make(tmp_path / "out.avi", spec, live=True)
    write(sink, 2)
    for index in (2, 3):
        sink.write(frame(index, (300, 300)), classes(index, (300, 300)))
    sink.close(True)
    film = read_film(tmp_path / "out.avi")
    assert [f.shape for f in film] == [(240, 320, 3)] * 4
    bars = film[3][:, :24].reshape(-1, 3)
    assert bars.std(0).max() < 4 and bars.mean() > 60  # the mean's grey, not black
    assert sink.notes == [  # type: ignore[attr-defined]
        f"{tmp_path}/out.avi: frames of 300x300 pixels are fitted into the film's"
    ]


# Pace.


@pytest.mark.parametrize(
    ("at", "count"),
    [
        ((0, 3, 4), 5),  # two were dropped
        ((0, 1.2, 1.9, 3.1), 4),  # jitter
        ((0, 1, 1, 1, 2, 3), 6),  # a burst
        ((0, 10_000, 10_001), 2 + 250 + 1),  # longer than what is filled
    ],
)
def test_a_live_film_runs_at_the_clocks_pace(
    tmp_path: Path, spec: ModelSpec, at: tuple[float, ...], count: int
) -> None:
    sink = make(tmp_path / "out.avi", spec, live=True)
    for index, when in enumerate(at):
        sink.write(frame(index, (48, 64), at_s=when / FPS), classes(0, (48, 64)))
    sink.close(True)
    assert len(read_film(tmp_path / "out.avi")) == count


@given(
    fps=st.sampled_from([5.0, 25.0, 30000 / 1001, 60.0]),
    steps=st.lists(st.one_of(st.floats(0.0, 0.2), st.floats(0.0, 3600.0)), max_size=60),
)
def test_the_film_is_never_far_from_the_clock(fps: float, steps: list[float]) -> None:
    pace, now, written, allowed = Pace(fps), 0.0, 0, 0.0
    for step in [0.0, *steps]:
        now += step
        # A burst's lead is made up for in the next pause, but not in one that is not filled whole.
        allowed += step if step <= GAP_S else GAP_S + 2 / fps + LEAD_S
        copies = pace.fill(round(now * S))
        assert 0 <= copies <= math.ceil(GAP_S * fps)
        written += copies + pace.take(round(now * S))
        assert written <= (allowed + LEAD_S) * fps + 3
    if all(step <= GAP_S for step in steps):
        assert written >= now * fps - 1 and pace.shortened == 0


def test_a_source_faster_than_it_said_gives_no_slow_film() -> None:
    pace = Pace(25.0)
    taken = sum(pace.take(index * S // 50) for index in range(500))
    assert abs(taken - 250) <= 25 * LEAD_S + 1


def test_an_outage_is_filled_with_the_stale_picture(
    tmp_path: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = make(tmp_path / "out.avi", spec, live=True)
    for index in range(10):
        sink.write(frame(index), classes(0))
    clock = SimpleNamespace(monotonic_ns=lambda: clock.now)
    monkeypatch.setattr(deploy.sinks.film, "time", clock)
    for tick in range(20):  # of 50 ms
        clock.now = round((0.4 + tick * 0.05) * S)
        sink.show_status(lost(since_ns=round(0.4 * S)))
    sink.write(frame(10, at_s=1.4), classes(0))
    sink.close(True)
    film = read_film(tmp_path / "out.avi")
    assert len(film) == 36
    middle = [f[110:130].reshape(-1, 3).mean(0) for f in film]
    banners = [red > 1.4 * max(blue, green) for blue, green, red in middle]
    assert banners == [False] * 10 + [True] * 25 + [False]
    assert min(f.mean() for f in film) > 20  # never black
    assert sink.notes == []  # type: ignore[attr-defined]


def test_a_long_outage_is_shortened_and_said(tmp_path: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = make(tmp_path / "out.avi", spec, live=True)
    sink.write(frame(0, (48, 64)), classes(0, (48, 64)))
    clock = SimpleNamespace(monotonic_ns=lambda: clock.now)
    monkeypatch.setattr(deploy.sinks.film, "time", clock)
    for second in range(3600):
        clock.now = second * S
        sink.show_status(lost())
    sink.write(frame(1, (48, 64), at_s=3600), classes(0, (48, 64)))
    sink.close(True)
    assert len(read_film(tmp_path / "out.avi")) == 2 + 250
    assert sink.notes == [f"{tmp_path}/out.avi: 1 gaps are shortened to 10 s"]  # type: ignore[attr-defined]


# Segments.


@pytest.mark.parametrize("name", ["out.webm?", "out.mp4?", "out.avi?", pytest.param(f"{H264}&", marks=FFMPEG)])
def test_segments_are_finished_when_full(tmp_path: Path, spec: ModelSpec, name: str) -> None:
    sink = make(f"{tmp_path}/{name}segment=1", spec)
    suffix = Path(name.partition("?")[0]).suffix
    seen = []
    for index in range(60):
        sink.write(frame(index), classes(0))
        sink._finishing.wait()
        seen.append(sum(not n.startswith(".") for n in names(tmp_path)))
    assert seen == [0] * 25 + [1] * 25 + [2] * 10
    sink.close(True)
    assert not sink._segments, "nobody asks for their names: at a segment a second they would be a leak"
    assert names(tmp_path) == [f"out-0000{n}{suffix}" for n in (1, 2, 3)]
    films = [read_film(tmp_path / n) for n in names(tmp_path)]
    assert [len(film) for film in films] == [25, 25, 10]
    # The frame's grey is 8 times its number; class 0 is blue, and takes half of the green away.
    assert [round(float(film[0][170:200, :, 1].mean()) / 4) for film in films] == [0, 25, 50 % 30]


def test_only_the_latest_segments_stay(tmp_path: Path, spec: ModelSpec) -> None:
    (tmp_path / "out-00000.avi").write_bytes(b"somebody else's")
    sink = make(f"{tmp_path}/out.avi?segment=1&keep=2", spec, live=True)
    for index in range(110):
        sink.write(frame(index, (48, 64)), classes(0, (48, 64)))
        # Those kept, somebody else's, and one that was finished a moment ago, in another thread.
        assert len(list(tmp_path.glob("out-*.avi"))) <= 4
    sink.close(True)
    assert names(tmp_path) == ["out-00000.avi", "out-00004.avi", "out-00005.avi"]


def test_finished_segments_stay_when_the_run_fails(tmp_path: Path, spec: ModelSpec) -> None:
    sink = make(f"{tmp_path}/out.avi?segment=1", spec)
    write(sink, 30)
    sink.close(False)
    assert names(tmp_path) == ["out-00001.avi"]


def test_frames_do_not_wait_while_a_segment_is_finished(
    tmp_path: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end, begun, finish = threading.Event(), [], Recording.finish

    def slow(self: Recording) -> None:
        begun.append(self.path.name)
        assert may_end.wait(30)
        finish(self)

    monkeypatch.setattr(Recording, "finish", slow)
    with nothing_left():
        sink = make(f"{tmp_path}/out.avi?segment=1&keep=2", spec, live=True)
        write(sink, 50)
        assert begun == ["out-00001.avi"] and not list(tmp_path.glob("out-*"))
        third = threading.Thread(target=write, args=(sink, 1, 50))
        third.start()
        third.join(0.2)
        assert third.is_alive() and len(begun) == 1, "one is finished at a time, and no more wait"
        may_end.set()
        third.join(30)
        sink.close(True)
    assert begun == [f"out-0000{n}.avi" for n in (1, 2, 3)]
    assert names(tmp_path) == ["out-00002.avi", "out-00003.avi"]


@pytest.mark.parametrize("at", ["write", "close"])
def test_a_segment_that_cannot_be_finished_ends_the_run(
    tmp_path: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    finish = Recording.finish

    def fail(self: Recording) -> None:
        if self.path.name == "out-00002.avi":
            self.discard()
            raise SinkError("no room")
        finish(self)

    monkeypatch.setattr(Recording, "finish", fail)
    with nothing_left():
        sink = make(f"{tmp_path}/out.avi?segment=1", spec)
        write(sink, 51)
        with pytest.raises(SinkError, match="no room"):
            if at == "write":
                while True:
                    write(sink, 1, 51)
            else:
                sink.close(True)
        sink.close(False)
    assert names(tmp_path) == ["out-00001.avi", *(["out-00003.avi"] if at == "close" else [])]


@pytest.mark.parametrize("live", [False, True])
def test_another_size_goes_on_in_the_next_segment(tmp_path: Path, spec: ModelSpec, live: bool) -> None:
    sink = make(f"{tmp_path}/out.avi?segment=10", spec, live)
    write(sink, 3)
    sink.write(frame(3, (300, 400)), classes(3, (300, 400)))
    sink.close(True)
    shapes = [{f.shape for f in read_film(tmp_path / n)} for n in names(tmp_path)]
    assert shapes == [{(240, 320, 3)}, {(300, 400, 3)}]


# After a failure.


@pytest.mark.parametrize("name", FILMS)
def test_what_came_of_a_live_source_stays(tmp_path: Path, spec: ModelSpec, name: str) -> None:
    with nothing_left():
        sink = make(tmp_path / name, spec, live=True)
        write(sink, 30)
        sink.close(False)
        sink.close(False)
    assert names(tmp_path) == [name.partition("?")[0]]
    assert [f.shape for f in read_film(tmp_path / name.partition("?")[0])] == [(240, 320, 3)] * 30


def test_the_last_segment_of_a_live_source_stays(tmp_path: Path, spec: ModelSpec) -> None:
    sink = make(f"{tmp_path}/out.avi?segment=1", spec, live=True)
    write(sink, 30)
    sink.close(False)
    assert [len(read_film(tmp_path / name)) for name in names(tmp_path)] == [25, 5]


@pytest.mark.parametrize("name", FILMS)
def test_a_disk_that_becomes_full_costs_no_recording(
    tmp_path: Path, spec: ModelSpec, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(deploy.sinks.recording.shutil, "disk_usage", lambda path: usage(10, 10, 0))
    with nothing_left():
        sink = make(tmp_path / name, spec, live=True)
        with pytest.raises(SinkError, match="only 0 MiB are free"):
            write(sink, 100)
        sink.close(False)
    assert len(read_film(tmp_path / name.partition("?")[0])) == 25


@pytest.mark.parametrize(("name", "stays"), [("out.mp4", False), ("out.avi", True)])
def test_after_a_quota_a_live_film_stays_where_it_plays(
    tmp_path: Path, spec: ModelSpec, name: str, stays: bool
) -> None:
    """An .mp4 without its index, which comes last, is nothing to anybody."""
    with files_up_to(400_000), nothing_left():
        sink = make(tmp_path / name, spec, live=True)
        for index in range(60):
            sink.write(Frame(noise(index).image, index, round(index / FPS * S)), classes(0))
        with pytest.raises(SinkError, match="can be read back"):
            sink.close(True)
        sink = make(tmp_path / name, spec, live=True)
        for index in range(60):
            sink.write(Frame(noise(index).image, index, round(index / FPS * S)), classes(0))
        sink.close(False)
    assert names(tmp_path) == ([name] if stays else [])
    assert not stays or len(read_film(tmp_path / name)) >= 3


# Disks.


def test_a_full_disk_is_noticed_while_writing(tmp_path: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(deploy.sinks.recording.shutil, "disk_usage", lambda path: usage(10, 10, 0))
    sink = make(tmp_path / "out.avi", spec)
    with pytest.raises(SinkError, match=r"out\.avi: only 0 MiB are free on that disk after 25 frames"):
        write(sink, 100)
    sink.close(False)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["out.webm", "out.mp4", "out.avi"])
def test_a_film_that_outgrew_its_quota_is_noticed(tmp_path: Path, spec: ModelSpec, name: str) -> None:
    sink = make(tmp_path / name, spec)
    with files_up_to(200_000), nothing_left(30):
        for index in range(40):
            sink.write(noise(index), classes(0))
        with pytest.raises(SinkError, match=r"of 40 frames written \d+ can be read back; the disk is full"):
            sink.close(True)
    assert names(tmp_path) == []


@FFMPEG
def test_an_ffmpeg_that_outgrew_its_quota_is_noticed(tmp_path: Path, spec: ModelSpec) -> None:
    with files_up_to(200_000), nothing_left():
        sink = make(tmp_path / H264, spec)
        with pytest.raises(SinkError, match=r"out\.mp4: ffmpeg (was killed by SIGXFSZ|ended with code)"):
            for index in range(400):
                sink.write(noise(index), classes(0))
        sink.close(False)
    assert names(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("this user may not mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("name", FILMS[1:])  # VP8 takes 10 s to fill it
def test_a_small_disk_ends_the_film(
    small_disk: Path, spec: ModelSpec, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy.sinks.recording, "MIN_FREE_BYTES", 1 << 16)
    with nothing_left(20):
        sink = make(small_disk / name, spec)
        with pytest.raises(SinkError, match=r"only 0 MiB are free|No space left|ffmpeg ended with code"):
            for index in range(1000):
                sink.write(noise(index), classes(0))
        sink.close(False)
    assert names(small_disk) == []


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("name", FILMS)
def test_a_folder_that_goes_away_ends_the_film(tmp_path: Path, spec: ModelSpec, name: str, live: bool) -> None:
    folder = tmp_path / "d"
    with nothing_left():
        sink = make(folder / name, spec, live)
        write(sink, 2)
        shutil.rmtree(folder)
        with pytest.raises(SinkError, match="was removed while it was written"):
            write(sink, 100)
        sink.close(False)
    assert not folder.exists()


@pytest.mark.parametrize("name", FILMS)
def test_a_folder_that_cannot_be_made(tmp_path: Path, spec: ModelSpec, name: str) -> None:
    (tmp_path / "d").write_bytes(b"a file")
    sink = make(tmp_path / "d" / name, spec)
    with pytest.raises(SinkError, match="cannot be written"):
        write(sink, 1)
    sink.close(False)
    assert names(tmp_path) == ["d"]


# The ffmpeg process.


@FFMPEG
def test_a_browser_would_play_it(tmp_path: Path, spec: ModelSpec) -> None:
    sink = make(tmp_path / H264, spec)
    write(sink, 60)
    sink.close(True)
    data = (tmp_path / "out.mp4").read_bytes()
    assert data[4:8] == b"ftyp" and data.index(b"moov") < data.index(b"mdat") and b"avc1" in data
    assert len(re.findall(rb"moof", data)) >= 2
    if shutil.which("ffprobe"):
        told = subprocess.run(
            ["ffprobe", "-v", "error", "-show_entries", "stream=codec_name,pix_fmt,color_space,avg_frame_rate",
             "-of", "csv=p=0", str(tmp_path / "out.mp4")],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert told.stdout.strip() == "h264,yuv420p,smpte170m,25/1"


@FFMPEG
def test_colours_survive(tmp_path: Path, spec: ModelSpec) -> None:
    rng = np.random.default_rng(0)
    blocks = cv2.resize(rng.integers(30, 220, (6, 8, 3), np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC)
    encoder = deploy.sinks.ffmpeg.FfmpegEncoder(tmp_path / "a.mp4", tmp_path / "a.mp4", 25, (320, 240), 10, "fast")
    for _ in range(3):
        encoder.append(blocks)
    encoder.finish()
    decoded = read_film(tmp_path / "a.mp4")
    assert len(decoded) == 3
    assert np.abs(decoded[0].astype(int) - blocks).mean() < 4


def child() -> int:
    """The process id of our only ffmpeg."""
    found = [int(p.name) for p in Path("/proc").glob("[0-9]*") if _is_ours(p)]
    assert len(found) == 1
    return found[0]


def _is_ours(process: Path) -> bool:
    try:
        status = (process / "status").read_text()
        command = (process / "cmdline").read_bytes()
    except OSError:
        return False
    return f"PPid:\t{os.getpid()}\n" in status and b"libx264" in command


@FFMPEG
@pytest.mark.parametrize("at", ["write", "close"])
def test_a_killed_ffmpeg_ends_the_film_within_a_second(tmp_path: Path, spec: ModelSpec, at: str) -> None:
    with nothing_left():
        sink = make(tmp_path / H264, spec)
        write(sink, 3)
        os.kill(child(), signal.SIGKILL)
        begin = time.monotonic()
        with pytest.raises(SinkError, match=r"out\.mp4: ffmpeg was killed by SIGKILL"):
            if at == "write":
                write(sink, 1000)
            else:
                sink.close(True)
        assert time.monotonic() - begin < 1
        sink.close(False)
    assert names(tmp_path) == []


@FFMPEG
def test_what_a_crash_leaves_plays(tmp_path: Path, spec: ModelSpec) -> None:
    """As when the machine loses its power: neither we nor ffmpeg end what was begun."""
    sink = make(tmp_path / H264, spec)
    for index in range(400):
        sink.write(frame(index), classes(index))
    time.sleep(0.5)
    os.kill(child(), signal.SIGKILL)
    part = tmp_path / "part.mp4"
    shutil.copy(next(p for p in tmp_path.iterdir() if p.name.startswith(".out.")), part)
    sink.close(False)
    assert len(read_film(part)) >= 200


@FFMPEG
def test_of_a_killed_ffmpeg_a_live_film_stays(tmp_path: Path, spec: ModelSpec) -> None:
    with nothing_left():
        sink = make(tmp_path / H264, spec, live=True)
        write(sink, 400)
        time.sleep(0.5)
        os.kill(child(), signal.SIGKILL)
        with pytest.raises(SinkError, match="killed by SIGKILL"):
            write(sink, 1000, 400)
        begin = time.monotonic()
        sink.close(False)
        assert time.monotonic() - begin < 1
    assert names(tmp_path) == ["out.mp4"] and len(read_film(tmp_path / "out.mp4")) >= 200


@FFMPEG
def test_ffmpeg_gets_no_secret(tmp_path: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAM_PASSWORD", "hunter2")
    sink = make(tmp_path / H264, spec)
    write(sink, 1)
    process = Path(f"/proc/{child()}")
    assert b"PATH=" in (process / "environ").read_bytes()
    assert b"hunter2" not in (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
    sink.close(False)


@pytest.mark.parametrize("live", [False, True])
def test_an_ffmpeg_that_hangs_is_not_waited_for(
    tmp_path: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, live: bool
) -> None:
    monkeypatch.setenv("PATH", str(write_script(tmp_path / "bin", "exec sleep 60").parent), prepend=os.pathsep)
    monkeypatch.setattr(deploy.sinks.ffmpeg, "STALL_S", 0.3)
    monkeypatch.setattr(deploy.sinks.recording, "CHECK_FRAMES", 10**6)
    with nothing_left():
        sink = make(tmp_path / H264, spec, live)
        with pytest.raises(SinkError, match="takes no pictures"):
            write(sink, 100)
        begin = time.monotonic()
        sink.close(False)
        assert time.monotonic() - begin < 1
    assert names(tmp_path) == ["bin"]


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("exec sleep 60", r"ffmpeg takes no pictures for 0\.3 s"),
        ("echo 'so and so' >&2; echo 'No space left on device' >&2; exit 7", "ended with code 7: No space left on dev"),
        ("exec <&-; echo bye >&2; exec sleep 60", "ffmpeg closed its input and goes on: bye"),
        ("i=0; while [ $i -lt 9000 ]; do echo 'a long complaint' >&2; i=$((i+1)); done; exit 1", "code 1: a long com"),
    ],
)
def test_an_ffmpeg_that_misbehaves(
    tmp_path: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, body: str, match: str
) -> None:
    monkeypatch.setenv("PATH", str(write_script(tmp_path / "bin", body).parent), prepend=os.pathsep)
    monkeypatch.setattr(deploy.sinks.ffmpeg, "STALL_S", 0.3)
    monkeypatch.setattr(deploy.sinks.recording, "CHECK_FRAMES", 10**6)  # it writes no file, which would be seen first
    with nothing_left():
        sink = make(tmp_path / H264, spec)
        with pytest.raises(SinkError, match=match):
            write(sink, 100)
        sink.close(False)


def test_an_ffmpeg_that_never_ends(tmp_path: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    script = write_script(tmp_path / "bin", "cat > /dev/null; exec sleep 60")
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)
    monkeypatch.setattr(deploy.sinks.ffmpeg, "FINISH_S", 0.3)
    with nothing_left():
        sink = make(tmp_path / H264, spec)
        write(sink, 3)
        with pytest.raises(SinkError, match=r"ffmpeg does not end within 0\.3 s"):
            sink.close(True)
    assert names(tmp_path) == ["bin"]


@pytest.mark.parametrize(
    ("script", "error", "match"),
    [
        (None, MissingDependencyError, "there is no ffmpeg on PATH. Fix: apt install ffmpeg"),
        ("#!/bin/sh\necho ' V....D mpeg4  MPEG-4'\n", MissingDependencyError, "is built without libx264. Fix"),
        ("#!/bin/sh\nexit 3\n", SinkError, "does not tell its encoders .*status 3"),
        ("#!/bin/sh\nexec /bin/sleep 60\n", SinkError, r"does not tell its encoders .*timed out"),
    ],
)
def test_an_ffmpeg_that_will_not_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, error: type[Exception], match: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(deploy.sinks.ffmpeg, "ASK_S", 0.3)
    if script:
        (tmp_path / "ffmpeg").write_text(script)
        (tmp_path / "ffmpeg").chmod(0o755)
    with nothing_left(), pytest.raises(error, match=match):
        deploy.sinks.ffmpeg.find_ffmpeg()


def test_ffmpeg_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = write_script(tmp_path / "bin", "")
    script.write_text(script.read_text().replace("then echo", f"then echo x >> {tmp_path}/asked; echo"))
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)
    for _ in range(3):
        assert deploy.sinks.ffmpeg.find_ffmpeg() == str(script)
    assert (tmp_path / "asked").read_text() == "x\n"


def test_two_films_of_one_overlay_are_alike(tmp_path: Path, spec: ModelSpec) -> None:
    overlay, info = Overlay(spec.labels), VideoInfo((320, 240), FPS, None, True)
    films = [FilmSink(tmp_path / name, overlay, info) for name in ("a.avi", "b.avi")]
    for index in (0, 1, 2, 5, 6):
        one = frame(index)
        for film in films:
            film.write(one, classes(index))
    for film in films:
        film.close(True)
    a, b = (read_film(tmp_path / name) for name in names(tmp_path))
    assert len(a) == 7
    np.testing.assert_array_equal(a, b)
