"""Frames that are kept to learn from: which, how many, and that the folder stays whole whatever happens."""

from __future__ import annotations

import errno
import glob
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import LABELS
from doubles import ListSource, ScriptSource, picture
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import distance
from sink_doubles import files_up_to

import deploy
from deploy.backends.fake import FakeSession
from deploy.cli import run_main
from deploy.collect import Bounds, Collector, check_folder
from deploy.collect import collector as collector_module
from deploy.collect import judge as judge_module
from deploy.collect.folder import INDEX, SLOT_S, Folder
from deploy.collect.judge import WARM_UP, Judge, Usual, jensen_shannon
from deploy.collect.record import Kept
from deploy.frames import Frame
from lfd.data import frames as frames_data
from lfd.errors import SourceError, UsageError
from lfd.spec import ModelSpec, Preprocess

pytestmark = pytest.mark.usefixtures("no_thread_left")
ROOT = Path(__file__).parents[2]
BYTES = b"p" * 100


def kept(number: int, at_s: float, score: float = 0.0, source: str = "a", size: int = len(BYTES)) -> Kept:
    name = f"20260101T{number:09d}Z-0.png"
    return Kept(
        name,
        "2026-01-01T00:00:00.000Z",
        source,
        at_s,
        number,
        "drift",
        score,
        None,
        "flips",
        0.5,
        "m",
        "0",
        (4, 6),
        size,
    )


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / INDEX).read_text().splitlines()]


def pictures(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {INDEX}


def lfd_run(*args: object) -> Result:
    return CliRunner().invoke(run_main, [str(arg) for arg in args], catch_exceptions=False)


# What is measured


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=9))
def test_the_distance_is_scipys(pairs: list[tuple[float, float]]) -> None:
    p, q = (np.array(side) + 1e-6 for side in zip(*pairs, strict=True))
    p, q = p / p.sum(), q / q.sum()
    with np.errstate(invalid="ignore"):  # the root of a rounding error below 0
        expected = np.nan_to_num(distance.jensenshannon(p, q, base=2))
    assert jensen_shannon(p, q) == pytest.approx(expected, abs=1e-6)


def test_the_distance_at_its_ends() -> None:
    one, other = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert jensen_shannon(one, one) == 0 and jensen_shannon(one, other) == 1


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=60))
def test_what_is_usual_at_first_is_the_mean_of_all(values: list[float]) -> None:
    usual = Usual()
    for index, value in enumerate(values):
        usual.add(value, index / 1000)
    assert usual.mean == pytest.approx(np.mean(values), abs=1e-9)
    if len(values) >= WARM_UP:
        deviation = max(float(np.std(values)), judge_module.LEAST_DEVIATION)
        assert usual.deviations(9.0) == pytest.approx((9.0 - np.mean(values)) / deviation, rel=1e-4, abs=1e-3)
    else:
        assert usual.deviations(9.0) == 0.0, "nothing stands out yet"


def test_what_is_usual_fades_by_time_and_never_at_once() -> None:
    usual = Usual()
    for index in range(5000):
        usual.add(0.0, float(index))
    for index in range(3600):
        usual.add(1.0, 5000.0 + index)
    assert usual.mean == pytest.approx(1 - np.exp(-1), abs=0.01), "the time constant is an hour"
    usual.add(1e6, 1e9)
    assert usual.mean == pytest.approx(1e6 / WARM_UP, rel=0.01), "after years without a result"


def test_the_margin_against_its_definition(spec: ModelSpec) -> None:
    logits = np.random.default_rng(0).normal(0, 3, (3, 24, 32)).astype(np.float32)
    frame = Frame(picture(0), 0, 0)
    judge = Judge(replace(spec, output="logits"))
    sight = judge.see(frame, logits, 1.0)
    odds = np.exp(logits[:, ::4, ::4].astype(np.float64))
    odds /= odds.sum(0)
    ordered = np.sort(odds, 0)
    assert sight is not None and sight.frame is frame and judge.measure == "margin"
    assert sight.unsure == pytest.approx(1 - (ordered[-1] - ordered[-2]).mean(), abs=1e-6)
    assert judge.last() is None


@given(st.lists(st.sampled_from([0.04, 0.5, 3.0]), min_size=4, max_size=8), st.integers(0, 2**32))
def test_flips_against_their_definition(gaps: list[float], seed: int) -> None:
    spec = ModelSpec("m", LABELS, Preprocess((24, 32)))
    maps = np.random.default_rng(seed).integers(0, 3, (len(gaps), 24, 32), np.uint8)
    times = np.cumsum(gaps)
    frames = [Frame(picture(index), index, 0) for index in range(len(maps))]
    judge = Judge(spec)
    seen = [judge.see(*args) for args in zip(frames, maps, times, strict=True)]
    assert seen[0] is None
    sights = [*seen[1:], judge.last()]
    for index, sight in enumerate(sights):
        assert sight is not None and sight.frame is frames[index] and sight.at_s == times[index]
        inside = 0 < index < len(maps) - 1 and times[index + 1] - times[index - 1] <= 1.0
        if not inside:
            assert sight.unsure is None
            continue
        before, now, after = maps[index - 1 : index + 2]
        assert sight.unsure == pytest.approx(float(((before == after) & (now != before)).mean()))


def test_bars_of_a_letterbox_are_not_looked_at() -> None:
    spec = ModelSpec("m", LABELS, Preprocess((24, 32), resize="letterbox"))
    frame = Frame(picture(0, (24, 96)), 0, 0)  # covers the rows 8 to 16
    found = np.full((24, 32), 2, np.uint8)
    found[8:16] = 1
    judge = Judge(spec)
    judge.see(frame, found, 0.0)
    other = found.copy()
    other[8:16] = 0
    judge.see(frame, other, 0.04)
    sight = judge.see(frame, found, 0.08)
    assert sight is not None and sight.unsure == 1.0 and sight.drift == 1.0


@pytest.mark.parametrize("what", ["unsure", "drift"])
@pytest.mark.parametrize("output", ["class_map", "logits"])
def test_what_stands_out_is_kept_and_why(spec: ModelSpec, tmp_path: Path, what: str, output: str) -> None:
    """A model that is quite sure of a scene that hardly changes, but for one frame."""
    chance, odd = np.random.default_rng(0), 130

    class Odd(FakeSession):
        def run(self, batch: np.ndarray) -> np.ndarray:
            index = self.calls
            self.calls += 1
            classes = np.repeat([0, 1, 2, 0], 6)[:, None].repeat(32, 1)
            if index >= odd and what == "drift":
                classes[:] = 2
            classes.reshape(-1)[chance.integers(0, classes.size, 3)] = 1
            if what == "unsure" and output == "class_map" and index == odd:
                classes = np.roll(classes, 2, 0)
            if output == "class_map":
                return classes[None].astype(np.uint8)
            sure = 0.2 if what == "unsure" and index == odd else 4 + chance.normal(0, 0.05)
            return (sure * (classes == np.arange(3)[:, None, None]))[None].astype(np.float32)

    session = Odd(replace(spec, output=output))  # type: ignore[arg-type]
    list(deploy.run(session, ListSource(250), collect=tmp_path / "c"))
    best = max(lines(tmp_path / "c"), key=lambda line: float(str(line["score"])))
    assert (best["index"], best["why"]) == (odd, what) and float(str(best["score"])) > 10
    assert best["unsure_by"] == {"class_map": "flips", "logits": "margin"}[output]
    image = cv2.imread(str(tmp_path / "c" / str(best["file"])))
    np.testing.assert_array_equal(image, picture(odd % 30), "as captured")


# The folder


OFFERS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]), st.floats(0, 40).map(lambda t: round(t, 3)), st.integers(0, 5), st.integers(1, 300)
    ),
    max_size=25,
)


@given(offers=OFFERS, most=st.integers(1, 8), kilobytes=st.sampled_from([0.2, 0.6, 1e6]))
@settings(max_examples=60)
def test_bounds_hold_under_any_sequence(offers: list[tuple[str, float, int, int]], most: int, kilobytes: float) -> None:
    """And each source and slot keeps its best, unless only one of each is left."""
    bounds = Bounds(most, kilobytes / 1e3)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "c"
        folder = Folder(path, bounds)
        for number, (source, at_s, score, size) in enumerate(offers):
            if folder.wants(source, at_s, score):
                folder.add(kept(number, at_s, score, source, size), b"p" * size)
            now = folder.kept
            assert len(now) <= most and sum(one.bytes for one in now) <= 1e3 * kilobytes
            assert pictures(path) == {one.file for one in now}
        best: dict[tuple[str, int], tuple[str, float, int, int]] = {}
        for offer in offers:
            key = offer[0], int(offer[1] // folder.slot_s)
            if key not in best or offer[2] > best[key][2]:
                best[key] = offer
        found = {(one.source, int(one.at_s // folder.slot_s)): one.score for one in folder.kept}
        assert len(found) == len(folder.kept)
        assert all(score == best[key][2] for key, score in found.items() if len(best) <= most and kilobytes == 1e6)
        assert kilobytes < 1e6 or len(best) > most or set(found) == set(best)
        before = folder.kept
        folder.close()
        again = Folder(path, bounds)
        assert again.kept == before, "continued as it was"
        again.close()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_equals_the_older_stays(tmp_path: Path, order: tuple[int, int]) -> None:
    folder = Folder(tmp_path / "c", Bounds(1))
    for number in order:
        folder.add(kept(number, number * SLOT_S), BYTES)
    assert [one.index for one in folder.kept] == [0]
    folder.close()


def test_a_long_run_is_covered_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten hours, ten frames a second that do not stand out, room for 32: the first hour has not used it up."""
    monkeypatch.setattr(Folder, "_write", lambda self: None)
    folder = Folder(tmp_path / "c", Bounds(32))
    chance, written = np.random.default_rng(0), 0
    for number in range(36_000):
        at_s, score = float(number), float(chance.normal())
        if folder.wants("a", at_s, score):
            folder.add(kept(number, at_s, score), b"")
            written += 1
    times = np.array([one.at_s for one in folder.kept])
    folder.close()
    assert 16 <= len(times) <= 32 and times[0] < 2048 and times[-1] > 36_000 - 2048
    assert np.diff(times).max() < 2 * 2048
    assert folder.slot_s == SLOT_S * 2**12 and written < 3000


def test_what_is_expected_of_bounds() -> None:
    for bad in (0, -1, 10**9):
        with pytest.raises(UsageError, match=rf"at most {bad} frames; expected a number above 0"):
            Bounds(frames=bad)
    with pytest.raises(UsageError, match="megabytes"):
        Bounds(mb=float("nan"))
    assert Bounds.of(None, 3.0) == Bounds(500, 3.0) and Bounds.of(7, None) == Bounds(7, 1000.0)


def test_who_weeds_out_pictures_need_not_mend_the_lines(tmp_path: Path) -> None:
    folder = Folder(tmp_path, Bounds())
    for number in range(3):
        folder.add(kept(number, float(number)), BYTES)
    folder.close()
    (tmp_path / folder.kept[1].file).unlink()
    (tmp_path / "notes.txt").write_text("mine")
    again = Folder(tmp_path, Bounds())
    assert [one.index for one in again.kept] == [0, 2] and len(lines(tmp_path)) == 2
    again.close()
    fewer = Folder(tmp_path, Bounds(1))
    assert len(fewer.kept) == 1 and pictures(tmp_path) == {fewer.kept[0].file, "notes.txt"}
    fewer.close()


def broken(**changes: object) -> str:
    return json.dumps({**asdict(kept(0, 0.0)), **changes})


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[1]",
        "{",
        "[" * 100_000,
        '{"file": "x.png"}',
        broken(file="../../etc/passwd"),
        broken(file="/etc/passwd"),
        broken(file="a.png"),
        broken(more=1),
        broken(at_s=10**400),
        broken(at_s=1e308),
        broken(score=-(10**400)),
        broken(score="high"),
        broken(at_s=float("nan")),
        broken(at_s=-1.0),
        broken(bytes=True),
        broken(bytes=-5),
        broken(size_hw=[1]),
        broken(size_hw=["a", "b"]),
        broken(unsure=[]),
    ],
)
def test_an_index_of_somebody_else_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / INDEX).write_text(f"{json.dumps(asdict(kept(0, 0.0)))}\n{line}\n")
    (tmp_path / kept(0, 0.0).file).write_bytes(BYTES)
    with pytest.raises(UsageError, match=r"collect\.jsonl:2: is no line of a collected frame .*Fix: ") as caught:
        Folder(tmp_path, Bounds())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert (tmp_path / kept(0, 0.0).file).exists(), "nothing is touched"


def test_one_run_at_a_time(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "c", Bounds())
    with pytest.raises(UsageError, match="another process is at work in it"):
        Folder(tmp_path / "c", Bounds())
    folder.close()
    assert not (tmp_path / "c").exists(), "made for nothing"


def test_a_defect_of_ours_is_not_hidden(spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_add(self: Folder, kept_: Kept, data: bytes) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(Folder, "add", broken_add)
    with pytest.raises(ZeroDivisionError, match="ours"):
        list(deploy.run(FakeSession(spec), ListSource(40), collect=tmp_path / "c"))


def test_an_overflow_of_the_network_is_no_figure(spec: ModelSpec) -> None:
    judge = Judge(replace(spec, output="logits"))
    for value in (0.0, np.nan, np.inf):
        sight = judge.see(Frame(picture(0), 0, 0), np.full((3, 24, 32), value, np.float32), 1.0)
        assert sight is not None and sight.unsure == 1.0 and 0 <= sight.drift <= 1


def test_where_frames_may_be_kept(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    check_folder(mine, [], [], False)
    check_folder(tmp_path / "new" / "c", ["rtsp://u:p@host/x", "street:"], ["null://", f"{tmp_path}/o.mp4"], False)
    (mine / "cat.png").write_bytes(b"")
    for folder, sources, sinks, match in (
        (mine, [], [], r"holds cat\.png and no collect\.jsonl; choose a new folder, or add to it with --overwrite"),
        (mine / "cat.png", [], [], "is a file"),
        (mine, [str(mine)], [], "the source .* is in it"),
        (mine, [f"{mine}/*.png"], [], "the source .* is in it"),
        (tmp_path, [str(mine)], [], "the source .* is in it"),
        (mine, [], [f"{mine}/"], "is written there too"),
        (mine, [], [f"{mine}/masks/"], "is written there too"),
        (mine / "cat.png" / "c", [], [], "a file, not a folder"),
    ):
        with pytest.raises(UsageError, match=match):
            check_folder(folder, sources, sinks, folder == mine and bool(sources or sinks))
    with pytest.raises(UsageError, match=r"collect\.jsonl' is written there too"):
        check_folder(mine, [], [], True, [tmp_path / "s.json", mine / INDEX])
    check_folder(mine, [], [], True)
    (mine / INDEX).write_text("")
    check_folder(mine, [], [], False)
    (tmp_path / "link").symlink_to(mine)
    check_folder(tmp_path / "link", [], [], False)
    (tmp_path / "dangling").symlink_to(tmp_path / "not mounted")
    with pytest.raises(UsageError, match=r"is a link to .*not mounted, which is not there"):
        check_folder(tmp_path / "dangling", [], [], False)


@pytest.mark.parametrize("text", ["http://127.0.0.1:8080", "null://", "street:", "rtsp://host/path"])
def test_an_address_is_no_folder(text: str) -> None:
    with pytest.raises(UsageError, match="is an address; expected a folder"):
        check_folder(Path(text), [], [], False)


@pytest.mark.parametrize(
    ("pattern", "folder"),
    [
        ("pics/**/*.png", "pics/kept"),
        ("pics/**", "pics/kept"),
        ("pics/**/f*.png", "pics/a/b/kept"),
        ("pics/*/*.png", "pics/kept"),
        ("pics/[ak]*/*", "pics/kept"),
        ("**/*.png", "pics/a/kept"),
        ("pics/**/kept/*.png", "pics/kept"),
        ("pics/*.png", "pics/kept"),
        ("pics/*/*.png", "pics/kept/frames"),
        ("pics/*/*.png", "other"),
        ("pics/**/a/*.png", "pics/kept"),
        ("pics/a*/*.png", "pics/kept"),
        ("pics/a/*.png", "pics/a/kept"),
    ],
)
def test_a_pattern_that_would_find_what_is_collected(
    pattern: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against what glob itself finds when a frame lies there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "f.png").touch()
    found = {Path(name).resolve() for name in glob.glob(pattern, recursive=True)}  # noqa: PTH207 - as the source does
    (tmp_path / folder / "f.png").unlink()
    if tmp_path / folder / "f.png" in found:
        with pytest.raises(UsageError, match="reads there too"):
            check_folder(Path(folder), [pattern], [], False)
    else:
        check_folder(Path(folder), [pattern], [], False)


WRITER = """
import sys
from pathlib import Path
from deploy.collect.folder import Bounds, Folder
from deploy.collect.record import Kept
import cv2, numpy as np
folder = Folder(Path(sys.argv[1]), Bounds(5))
start = max([one.index for one in folder.kept], default=-1) + 1
print("go", flush=True)
for n in range(start, 10**9):
    data = cv2.imencode(".png", np.full((64, 64, 3), n % 256, np.uint8))[1].tobytes()
    name = f"20260101T{n:09d}Z-0.png"
    if folder.wants("a", float(n), 0.0):
        line = name, "t", "a", float(n), n, "drift", 0.0, None, "flips", 0.0, "m", "0", (64, 64), len(data)
        folder.add(Kept(*line), data)
"""


def test_a_killed_process_leaves_whole_files_only(tmp_path: Path) -> None:
    """Killed at odd moments, it goes on where it was; every picture is whole and has its line, within the bounds."""
    path = tmp_path / "c"
    for round_ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert process.stdout is not None and process.stdout.readline() == b"go\n"
        time.sleep(0.05 + 0.013 * round_)
        process.kill()
        process.communicate()
        said = {str(line["file"]): int(str(line["index"])) for line in lines(path)}
        visible = {p.name for p in path.iterdir() if not p.name.startswith(".")} - {INDEX}
        assert visible <= set(said) and len(visible) <= 5
        for name in visible:
            image = cv2.imread(str(path / name))
            assert image is not None and (image == said[name] % 256).all()
    folder = Folder(path, Bounds(5))
    folder.close()
    assert {one.file for one in folder.kept} == pictures(path), "what was half written is cleared away"
    assert 0 < len(lines(path)) == len(folder.kept) <= 5


STEPS = ["write_bytes", "write_text", "replace", "unlink"]


@pytest.mark.parametrize("step", range(12))
def test_wherever_it_is_killed_the_bounds_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """A frame that takes the place of others, with the process gone before each of its steps on the disk in turn."""

    class Killed(BaseException):
        pass

    path = tmp_path / "c"
    folder = Folder(path, Bounds(4))
    for number in range(4):
        folder.add(kept(number, number * SLOT_S, score=number), BYTES)
    left = [step]

    def dying(name: str) -> Callable[..., object]:
        real = getattr(Path, name)

        def call(self: Path, *args: object, **kwargs: object) -> object:
            if left[0] <= 0:  # dead: what is done by those that tidy up does not happen
                raise Killed
            left[0] -= 1
            return real(self, *args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in STEPS:
            patch.setattr(Path, name, dying(name))
        with suppress(Killed):
            folder.add(kept(4, 4 * SLOT_S, score=9.0), BYTES)
    folder.close()
    there = {p.name for p in path.iterdir() if not p.name.startswith(".")} - {INDEX}
    assert len(there) <= 4 and there <= {str(line["file"]) for line in lines(path)}
    again = Folder(path, Bounds(4))
    assert {one.file for one in again.kept} == there == pictures(path) and len(there) >= 2
    again.close()


def test_a_disk_that_refuses_leaves_the_folder_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c"
    folder = Folder(path, Bounds(4))
    for number in range(4):
        folder.add(kept(number, number * SLOT_S), BYTES)
    before, index = folder.kept, (path / INDEX).read_bytes()

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("deploy.collect.folder.write_text", full)
        with pytest.raises(OSError, match="No space left"):
            folder.add(kept(4, 4 * SLOT_S), BYTES)
        assert folder.kept == before and folder.slot_s == SLOT_S
        assert pictures(path) == {one.file for one in before} and (path / INDEX).read_bytes() == index
        folder.close()
        (path / before[3].file).unlink()
        fewer = Folder(path, Bounds(2))  # a run starts all the same, within its bounds
        assert pictures(path) == {one.file for one in fewer.kept} and 1 <= len(fewer.kept) <= 2
        fewer.close()


def test_bytes_are_those_of_the_files(tmp_path: Path) -> None:
    """Of an index that was edited, and of pictures that were."""
    folder = Folder(tmp_path, Bounds())
    for number in range(4):
        folder.add(kept(number, number * SLOT_S), BYTES)
    folder.close()
    (tmp_path / folder.kept[3].file).write_bytes(b"p" * 1000)
    bounded = Folder(tmp_path, Bounds(mb=0.0005))
    assert sum((tmp_path / name).stat().st_size for name in pictures(tmp_path)) <= 500
    assert all(one.bytes == (tmp_path / one.file).stat().st_size for one in bounded.kept) and bounded.kept
    bounded.close()


# In a run


def test_it_is_ready_for_training(spec: ModelSpec, tmp_path: Path) -> None:
    path = tmp_path / "c"
    run = deploy.run(FakeSession(spec), ListSource(100, size_hw=(50, 70)), collect=path, collect_max=6)
    assert len(list(run)) == 100
    data = frames_data.open_all(str(path), spec.labels)
    found = lines(path)
    assert 3 <= len(data) == len(found) <= 6
    for index, line in enumerate(found):
        image = data[index].image
        np.testing.assert_array_equal(image, picture(int(str(line["index"])) % 30, (50, 70)))
        assert line["size_hw"] == [50, 70] and line["bytes"] == (path / str(line["file"])).stat().st_size
        assert line["model"] == "tiny" and line["source"] == "stream 0"
    summary = run.summary
    assert summary.collected is not None and (summary.collected.kept, summary.collected.failure) == (len(found), None)
    assert summary.stages["score"] is not None and summary.stages["score"].count == 100
    assert list(summary.stages) == ["read", "fit", "infer", "score", "restore", "write"]


def test_streams_and_runs_share_a_folder(spec: ModelSpec, tmp_path: Path) -> None:
    path = tmp_path / "c"
    for _ in range(2):
        with deploy.run(FakeSession(spec), [ListSource(40), ListSource(40, size_hw=(30, 40))], collect=path) as run:
            list(run)
        found = lines(path)
        assert {line["source"] for line in found} == {"stream 0", "stream 1"}
        assert len(found) == 8, "a film that is run again competes with itself"
        assert {str(line["file"])[-6:] for line in found} == {"-0.png", "-1.png"}
    live = deploy.run(FakeSession(spec), ListSource(60, live=True, before=lambda i: time.sleep(0.02)), collect=path)
    list(live)
    times = [float(str(line["at_s"])) for line in lines(path)]
    assert abs(max(times) - time.time()) < 60, "of a live source by the clock on the wall"


def test_a_full_disk_ends_the_collecting_only(spec: ModelSpec, tmp_path: Path) -> None:
    path = tmp_path / "c"
    chance = np.random.default_rng(0)

    class Noise(ListSource):
        def __iter__(self):  # type: ignore[no-untyped-def]
            for frame in super().__iter__():
                side = 8 if frame.index < 20 else 90
                yield replace(frame, image=chance.integers(0, 256, (side, side, 3), np.uint8))

    with files_up_to(12_000):
        run = deploy.run(FakeSession(spec), Noise(60), collect=path)
        assert len(list(run)) == 60
    collected = run.summary.collected
    assert collected is not None and collected.failure is not None and collected.kept == 2
    assert "cannot be written" in collected.failure and "nothing more is collected" in collected.failure
    assert len(lines(path)) == 2 and len(list(path.iterdir())) == 3, "what was kept stays, nothing half is left"


def test_a_slow_disk_holds_up_a_file_and_no_camera(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Folder.add

    def slow(self: Folder, kept_: Kept, data: bytes) -> None:
        time.sleep(0.25)
        add(self, kept_, data)

    monkeypatch.setattr(Folder, "add", slow)
    monkeypatch.setattr("deploy.collect.folder.SLOT_S", 0.02)
    live = deploy.run(
        FakeSession(spec), ListSource(60, True, lambda i: time.sleep(0.02)), collect=tmp_path / "a", collect_max=50
    )
    list(live)
    score = live.summary.stages["score"]
    assert score is not None and score.max_ms < 200
    assert live.summary.collected is not None and live.summary.collected.missed > 0
    film = deploy.run(FakeSession(spec), ListSource(8), collect=tmp_path / "b")
    list(film)
    assert film.summary.collected is not None and film.summary.collected.missed == 0
    assert film.summary.collected.kept == 8


@pytest.mark.parametrize("held_s", [0.1, 1e9])
def test_a_long_slot_is_written_before_it_ends(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_s: float
) -> None:
    monkeypatch.setattr(collector_module, "HOLD_S", held_s)
    monkeypatch.setattr("deploy.collect.folder.SLOT_S", 1e6)
    collector = Collector(tmp_path / "c", Bounds(), spec, FakeSession(spec).build, ["a"], [False])
    for index in range(20):
        collector.see(0, Frame(picture(index), index, 0), np.full((24, 32), index % 3, np.uint8), index / 25)
    deadline = time.monotonic() + 5
    while not (tmp_path / "c" / INDEX).exists() and held_s < 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (tmp_path / "c" / INDEX).exists() == (held_s < 1)
    collector.close()
    collector.close()
    assert len(lines(tmp_path / "c")) == 1


def test_what_was_kept_stays_when_the_run_fails(spec: ModelSpec, tmp_path: Path) -> None:
    script = [*range(40), SourceError("damaged")]
    with pytest.raises(SourceError, match="damaged"):
        list(deploy.run(FakeSession(spec), ScriptSource(script, live=False), collect=tmp_path / "c"))
    assert len(lines(tmp_path / "c")) >= 1
    with pytest.raises(SourceError, match="no such file"):
        deploy.run(FakeSession(spec), str(tmp_path / "no.mp4"), collect=tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_on_the_command_line(tiny_model: Path, make_film: Callable[..., Path], tmp_path: Path) -> None:
    film, path, record = make_film(frames=60), tmp_path / "c", tmp_path / "s.json"
    args = (tiny_model, film, "null://", "--add", "street:?size=48x64&frames=30", "null://", "--collect", path)
    result = lfd_run(*args, "--collect-max", 5, "--json", record)
    assert result.exit_code == 0 and f"kept     {len(lines(path))} frames" in result.stdout
    assert "warning" not in result.stderr
    assert {line["source"] for line in lines(path)} == {str(film), "street:?size=48x64&frames=30"}
    summary = json.loads(record.read_text())
    assert summary["collected"]["kept"] == len(lines(path)) <= 5 and summary["collected"]["folder"] == str(path)
    assert summary["streams"][0]["stages"]["score"]["count"] == 60
    assert lfd_run(*args, "--quiet").output == "", "continued"
    for bad, match in (
        (("--collect-max", 0), "at most 0 frames"),
        (("--collect-mb", "nan"), "at most nan megabytes"),
        (("--collect", tmp_path), "is in it"),
        (("--json", path / "collect.jsonl", "--overwrite"), "is written there too"),
        (("--collect", "~nobody-of-this-name/c"), "there is no such user"),
    ):
        found = lfd_run(*args, *bad)
        assert found.exit_code == 2 and match in found.stderr and found.stderr.count("\n") == 1, found.output
    alone = lfd_run(tiny_model, film, "null://", "--collect-max", 5)
    assert alone.exit_code == 2 and "Fix: --collect DIR" in alone.stderr


def test_a_full_disk_is_a_warning(tiny_model: Path, make_film: Callable[..., Path], tmp_path: Path) -> None:
    film = make_film(frames=30, size_hw=(240, 320))
    with files_up_to(300):
        result = lfd_run(tiny_model, film, "null://", "--collect", tmp_path / "c", "--quiet")
    assert result.exit_code == 0 and result.stderr.startswith("warning: ") and result.stderr.count("\n") == 1
    assert not (tmp_path / "c").exists()


def test_bounds_below_one_picture_are_a_warning(
    tiny_model: Path, make_film: Callable[..., Path], tmp_path: Path
) -> None:
    film = make_film(frames=30, size_hw=(240, 320))
    result = lfd_run(tiny_model, film, "null://", "--collect", tmp_path / "c", "--collect-mb", 0.0005, "--quiet")
    assert result.exit_code == 0 and "nothing is collected, as one picture takes" in result.stderr
    assert not (tmp_path / "c").exists()


def test_no_password_is_kept(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = (tiny_model, "rtsp://admin:hunter2@127.0.0.1:9/live", "null://", "--collect", tmp_path / "c")
    result = lfd_run(*args)
    assert result.exit_code == 3 and "hunter2" not in result.output and not (tmp_path / "c").exists()
    monkeypatch.setattr("deploy.opening.open_source", lambda text, loop: ListSource(40))
    result = lfd_run(*args)
    assert result.exit_code == 0 and "hunter2" not in result.output
    assert {line["source"] for line in lines(tmp_path / "c")} == {"rtsp://***@127.0.0.1:9/live"}


def test_an_interrupt_keeps_what_is_held(tiny_model: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "deploy.cli",
        tiny_model,
        "street:?size=120x160&fps=50",
        "null://",
        "--collect",
        "c",
    ]
    process = subprocess.Popen(
        list(map(str, command)), cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "c" / INDEX).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    before = len(lines(tmp_path / "c"))
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and b"Traceback" not in said
    found = lines(tmp_path / "c")
    assert len(found) > before and len(found) == len(pictures(tmp_path / "c"))
