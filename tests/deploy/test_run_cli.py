from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from doubles import picture, read_film

from deploy.cli import run_main
from deploy.sinks.pictures import PictureSink
from lfd.errors import SinkError

ROOT = Path(__file__).parents[2]


def lfd_run(*args: object) -> Result:
    return CliRunner().invoke(run_main, [str(arg) for arg in args], catch_exceptions=False)


def start(*args: object, cwd: Path, before: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", *map(str, args)],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,  # noqa: PLW1509 - sets limits only
    )


def one_error(result: Result, code: int, *parts: str) -> None:
    assert result.exit_code == code, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    for part in parts:
        assert part in lines[0]


def test_film_to_film_masks_and_json(tiny_model: Path, make_film: Callable[..., Path], tmp_path: Path) -> None:
    film = make_film(frames=12, size_hw=(240, 320))
    out, masks, record = tmp_path / "o.webm", tmp_path / "m", tmp_path / "s.json"
    result = lfd_run(tiny_model, film, out, f"{masks}/", "null://", "--json", record)
    assert result.exit_code == 0, result.output
    assert "12 captured, 12 shown, 0 dropped" in result.stdout
    assert "p99 needs 662" in result.stdout and result.stderr == ""
    assert len(read_film(out)) == 12
    assert sorted(p.name for p in masks.iterdir()) == [f"{i:06d}.png" for i in range(12)]
    mask = cv2.imread(str(masks / "000000.png"), cv2.IMREAD_UNCHANGED)
    assert mask[20, [50, 160, 270]].tolist() == [0, 1, 2]
    summary = json.loads(record.read_text())
    (stream,) = summary["streams"]
    assert summary["schema"] == 2 and stream["source"] == str(film) and len(stream["sinks"]) == 3
    assert (stream["captured"], stream["shown"], stream["dropped"], stream["skipped"]) == (12, 12, 0, 0)
    assert stream["stages"]["infer"]["count"] == 12 and stream["latency"]["p99_ms"] is None


def test_pictures_to_masks_of_the_same_names(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for index, size in enumerate([(48, 64), (60, 90)]):
        cv2.imwrite(str(folder / f"cat{index}.png"), picture(index, size))
    assert lfd_run(tiny_model, folder, f"{tmp_path}/out/", "--quiet").output == ""
    assert {p.name: cv2.imread(str(p), -1).shape for p in (tmp_path / "out").iterdir()} == {
        "cat0.png": (48, 64),
        "cat1.png": (60, 90),
    }
    one_error(lfd_run(tiny_model, folder, tmp_path / "o.avi"), 1, "a film has one size")
    assert not list(tmp_path.glob("*.avi")) and not list(tmp_path.glob(".*"))


def test_the_built_in_scene(tiny_model: Path) -> None:
    assert "3 captured, 3 shown" in lfd_run(tiny_model, "street:?size=48x64", "null://", "--max-frames", 3).stdout
    live = lfd_run(tiny_model, "street:?size=48x64&fps=100&frames=10", "null://")
    assert live.exit_code == 0 and "10 captured" in live.stdout


def test_errors(tiny_model: Path, make_film: Callable[..., Path], tmp_path: Path) -> None:
    film = make_film()
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(tiny_model.read_bytes()[:300])
    one_error(lfd_run(tmp_path / "no.onnx", film, "null://"), 4, "no.onnx: no such file")
    one_error(lfd_run(bad, film, "null://"), 4, "bad.onnx")
    one_error(lfd_run(tmp_path, film, "null://"), 4, "is a folder")
    one_error(lfd_run(tiny_model, tmp_path / "no.mp4", "null://"), 3, "no.mp4: no such file")
    one_error(lfd_run(tiny_model, "9876", "null://"), 3, "no such camera")
    one_error(lfd_run(tiny_model, "gopher://host/x", "null://"), 2, "unknown source 'gopher'")
    one_error(lfd_run(tiny_model, film, "o.mkv"), 2, "FILE.webm")
    assert lfd_run(tiny_model, film, "null://", "--max-frames", 0).exit_code == 2
    assert lfd_run(tiny_model).exit_code == 2


def test_no_sink_and_no_screen(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    one_error(lfd_run(tiny_model, "street:"), 2, "no sink given", "null://", "FILE.webm")


def test_overwrite_is_asked_before_the_model_is_loaded(make_film: Callable[..., Path], tmp_path: Path) -> None:
    film, out = make_film(), tmp_path / "o.avi"
    out.write_bytes(b"mine")
    one_error(lfd_run("no.onnx", film, out), 2, "exists", "--overwrite")
    assert out.read_bytes() == b"mine"


def test_overwrite(tiny_model: Path, make_film: Callable[..., Path], tmp_path: Path) -> None:
    film, out, record = make_film(), tmp_path / "o.avi", tmp_path / "s.json"
    out.write_bytes(b"mine")
    record.write_text("{}")
    one_error(lfd_run(tiny_model, film, "null://", "--json", record), 2, "s.json exists")
    assert lfd_run(tiny_model, film, out, "--json", record, "--overwrite").exit_code == 0
    assert len(read_film(out)) == 12


def test_of_a_cut_film_stays_what_it_gave(tiny_model: Path, make_film: Callable[..., Path], tmp_path: Path) -> None:
    film, record = make_film(frames=60), tmp_path / "s.json"
    film.write_bytes(film.read_bytes()[: film.stat().st_size // 2])
    result = lfd_run(tiny_model, film, tmp_path / "o.avi", f"{tmp_path}/m/", "--json", record)
    one_error(result, 3, "it was cut or is damaged")
    shown = json.loads(record.read_text())["streams"][0]["shown"]
    assert f"{shown} shown" in result.stdout and "it was cut" in json.loads(record.read_text())["error"]
    assert 10 < shown < 50 and len(read_film(tmp_path / "o.avi")) == shown == len(list((tmp_path / "m").iterdir()))


def test_a_broken_picture_costs_the_others_nothing(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(4):
        cv2.imwrite(str(folder / f"{index}.png"), picture(index))
    (folder / "2.png").write_bytes(b"no picture")
    result = lfd_run(tiny_model, folder, f"{tmp_path}/out/")
    one_error(result, 3, "1 of 4 pictures cannot be read, the first is ", "2.png", "replace or remove it")
    assert "3 captured, 3 shown, 0 dropped; 1 skipped" in result.stdout
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0.png", "1.png", "3.png"]


def test_a_failing_sink_costs_no_recording_of_a_live_source(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = PictureSink.write, []

    def fail(self: PictureSink, *args: object) -> None:
        written.append(args)
        if len(written) == 20:
            raise SinkError("the folder's disk is full")
        write(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(PictureSink, "write", fail)
    record = tmp_path / "s.json"
    result = lfd_run(tiny_model, "street:?size=120x160&fps=50", tmp_path / "o.mp4", f"{tmp_path}/m/", "--json", record)
    one_error(result, 1, "the folder's disk is full")
    assert "19 shown" in result.stdout and json.loads(record.read_text())["error"] == "the folder's disk is full"
    assert len(read_film(tmp_path / "o.mp4")) >= 19 and len(list((tmp_path / "m").iterdir())) == 19
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "o.mp4", "s.json"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["o.webm", "o.mp4", "o.avi"])
def test_an_interrupt_keeps_a_playable_film(tiny_model: Path, tmp_path: Path, name: str, number: int) -> None:
    process = start(tiny_model, "street:?size=120x160&fps=50", name, "masks/", cwd=tmp_path)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("masks/*.png"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert err.splitlines()[-1].startswith("interrupted and flushed") and "Traceback" not in err
    assert "captured" in out
    assert len(read_film(tmp_path / name)) >= 5
    assert len(list((tmp_path / "masks").iterdir())) >= 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["masks", name]


@pytest.mark.parametrize("sink", ["o.webm", "o.mp4", "o.avi", "m/"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tiny_model: Path, tmp_path: Path, sink: str) -> None:
    folder = tmp_path / "noise"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(12):
        cv2.imwrite(str(folder / f"{index}.png"), rng.integers(0, 256, (240, 320, 3), np.uint8))
    limit = 400 if sink == "m/" else 100_000
    out, err = (
        process := start(
            tiny_model,
            folder,
            sink,
            cwd=tmp_path,
            before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
    ).communicate(timeout=60)
    assert process.returncode == 1, (out, err)
    assert len(err.splitlines()) == 1 and err.startswith("error: ") and "Fix: free space" in err
    assert [p.name for p in tmp_path.iterdir()] == ["noise"]


def test_several_streams(tiny_model: Path, make_film: Callable[..., Path], tmp_path: Path) -> None:
    record, masks = tmp_path / "s.json", tmp_path / "m"
    result = lfd_run(
        tiny_model,
        make_film(frames=7),
        "null://",
        *("--add", "street:?size=48x64&frames=5", "null://"),
        *("--add", "street:?size=48x64&frames=3&seed=1", f"{masks}/"),
        *("--json", record),
    )
    assert result.exit_code == 0, result.output
    streams = json.loads(record.read_text())["streams"]
    assert [stream["shown"] for stream in streams] == [7, 5, 3] and streams[2]["sinks"] == [f"{masks}/"]
    assert result.stdout.count("captured") == 3 and len(list(masks.iterdir())) == 3
    same = lfd_run(tiny_model, "street:", tmp_path / "o.avi", "--add", "street:", tmp_path / "o.avi")
    one_error(same, 2, "same place")


def test_limits(tiny_model: Path, tmp_path: Path) -> None:
    def streams(*args: object) -> list[dict[str, float]]:
        record = tmp_path / "s.json"
        result = lfd_run(tiny_model, *args, "null://", "--json", record, "--overwrite", "--quiet")
        assert result.exit_code == 0 and result.output == "", result.output
        return list(json.loads(record.read_text())["streams"])

    assert [(s["shown"], s["skipped"]) for s in streams("street:?size=48x64&frames=9", "--stride", 4)] == [(3, 6)]
    assert streams("street:?size=48x64&frames=9", "--loop", "--max-frames", 20)[0]["shown"] == 20
    live = streams("street:?size=48x64&fps=50", "--duration", "1s")[0]
    assert 0 < live["shown"] < 60 and live["captured"] == live["shown"] + live["dropped"]
    thinned = streams("street:?size=48x64&fps=50", "--duration", "1s", "--fps", 5)[0]
    assert thinned["shown"] <= 7 and thinned["skipped"] > thinned["captured"]
    for bad in (
        ("--duration", "0"),
        ("--duration", "soon"),
        ("--fps", "0"),
        ("--stride", "0"),
        ("--stats-every", "-1s"),
    ):
        assert lfd_run(tiny_model, "street:", "null://", *bad).exit_code == 2
    one_error(lfd_run(tiny_model, "street:?fps=25", "null://", "--loop"), 2, "live")
    one_error(lfd_run(tiny_model, "street:", "null://", "--alpha", "nan"), 2, "--alpha = nan; expected 0 to 1")


def test_smoothing(tiny_model: Path, tmp_path: Path) -> None:
    record = tmp_path / "s.json"
    found = lfd_run(tiny_model, "street:?size=48x64&frames=5", "null://", "--smooth", "200ms", "--json", record)
    assert found.exit_code == 0 and "smooth  " in found.stdout, found.output
    (stream,) = json.loads(record.read_text())["streams"]
    assert stream["stages"]["smooth"]["count"] == 5 and stream["flicker"] is None
    for bad, parts in (
        ("soon", ("smoothing 'soon'", "expected a time above 0")),
        ("median:1s", ("unknown smoothing 'median'",)),
        ("exponential:1s", ("needs class probabilities", "Fix: take hysteresis")),
    ):
        one_error(lfd_run(tiny_model, "street:?frames=1", "null://", "--smooth", bad), 2, *parts)
    one_error(lfd_run("no.onnx", "street:", "null://", "--smooth", "0"), 2, "above 0")


def test_statistics_grow_line_by_line(tiny_model: Path, tmp_path: Path) -> None:
    stats = tmp_path / "stats.jsonl"
    done = lfd_run(
        tiny_model, "street:?size=48x64&fps=50&frames=60", "null://", "--stats", stats, "--stats-every", "0.3s"
    )
    assert done.exit_code == 0
    lines = [json.loads(line) for line in stats.read_text().splitlines()]
    shown = [line["streams"][0]["shown"] for line in lines]
    assert len(lines) >= 3 and shown == sorted(shown) and shown[-1] > 0
    assert lines[-1]["streams"][0]["captured"] == 60
    one_error(lfd_run(tiny_model, "street:", "null://", "--stats", stats), 2, "stats.jsonl exists")
    one_error(lfd_run(tiny_model, "street:", "null://", "--stats", tmp_path / "x", "--json", tmp_path / "x"), 2, "x")


def test_no_password_is_shown(tiny_model: Path, tmp_path: Path) -> None:
    source = "rtsp://admin:hunter2@127.0.0.1:9/live"
    result = lfd_run(tiny_model, source, "null://", "--json", tmp_path / "s.json", "--stats", tmp_path / "s.jsonl")
    one_error(result, 3, "127.0.0.1")
    assert "hunter2" not in result.output and "admin" not in result.output


def test_auto_says_what_it_chose(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(path: Path, threads: int, say: Callable[[str], None]) -> str:
        say("ort: the fastest of one")
        return "ort"

    monkeypatch.setattr("deploy.auto.choose", choose)
    result = lfd_run(tiny_model, "street:?size=48x64&frames=1", "null://", "--backend", "auto")
    assert result.exit_code == 0 and result.stderr == "ort: the fastest of one\n"
    assert lfd_run(tiny_model, "street:?frames=1", "null://", "--backend", "auto", "--quiet").output == ""


@pytest.mark.shared
def test_a_real_drive(tiny_model: Path, real: Path, tmp_path: Path) -> None:
    film = real / "video" / "highway.mp4"
    if not film.is_file():
        pytest.skip(f"no {film}")
    result = lfd_run(tiny_model, film, tmp_path / "o.mp4")
    assert result.exit_code == 0 and "221 captured, 221 shown, 0 dropped" in result.stdout
    assert [f.shape for f in read_film(tmp_path / "o.mp4")] == [(540, 960, 3)] * 221


@pytest.mark.parametrize("module", ["cv2", "onnxruntime"])
def test_a_missing_package_is_named_with_its_extra(tiny_model: Path, module: str) -> None:
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        f"from deploy.cli import run_main; run_main([{str(tiny_model)!r}, 'street:?frames=1', 'null://'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "lfd-toolkit[deploy]" in done.stderr and done.stderr.count("\n") == 1
