"""`deploy.run`: results one by one, and nothing left behind however the loop is left."""

from __future__ import annotations

import gc
import inspect
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from doubles import ListSink, ListSource, ScriptSource

import deploy
from deploy.backends.fake import FakeSession
from lfd.data.street import LABELS as STREET
from lfd.data.street import Street
from lfd.errors import ModelError, SinkError, SourceError, UsageError
from lfd.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("no_thread_left")


def test_results_of_a_film(spec: ModelSpec) -> None:
    session, source, sink = FakeSession(spec), ListSource(5, size_hw=(50, 70)), ListSink()
    run = deploy.run(session, source, [sink])
    results = list(run)
    assert [result.frame.index for result in results] == [0, 1, 2, 3, 4] == [frame.index for frame in sink.frames]
    assert {result.class_map.shape for result in results} == {(50, 70)}
    assert len({id(result.class_map) for result in results}) == 5, "each its own"
    assert all(r.labels is spec.labels and r.stream == 0 and r.latency_ms >= r.infer_ms > 0 for r in results)
    assert run.summary.shown == 5 and sink.complete == [True] and source.closed == 1
    assert not session.closed, "it was the caller's"


def test_several_sources(spec: ModelSpec) -> None:
    seen: dict[int, list[int]] = {0: [], 1: []}
    for result in deploy.run(FakeSession(spec), [ListSource(3), ListSource(6)]):
        seen[result.stream].append(result.frame.index)
    assert seen == {0: [0, 1, 2], 1: [0, 1, 2, 3, 4, 5]}


@pytest.mark.parametrize("how", ["break", "close", "with", "raise", "never begun", "forgotten"])
def test_leaving_the_loop_ends_everything(spec: ModelSpec, how: str) -> None:
    source, sink = ListSource(10**6, live=how == "with"), ListSink()
    run = deploy.run(FakeSession(spec), source, [sink])
    if how == "break":
        for _ in run:
            break
        del _  # a name that holds a result only
    elif how == "close":
        next(run)
        run.close()
        run.close()
        with pytest.raises(StopIteration):
            next(run)
    elif how == "with":
        with run as results:
            next(results)
    elif how == "raise":
        with pytest.raises(ZeroDivisionError), run:
            for result in run:
                result.frame.index / 0
    elif how == "forgotten":
        next(run)
    del run
    gc.collect()
    assert source.closed == 1 and sink.complete == [True]


@pytest.mark.parametrize("failing", ["source", "model", "sink"])
def test_a_failure_comes_out_of_the_loop(spec: ModelSpec, failing: str) -> None:
    cause = {"source": SourceError("lost"), "model": ModelError("odd"), "sink": SinkError("full")}[failing]

    def fail(index: int) -> None:
        if index >= 3:
            raise cause

    class Failing(FakeSession):
        def run(self, batch: np.ndarray) -> np.ndarray:
            if failing == "model":
                fail(self.calls)
            return super().run(batch)

    nothing = lambda index: None  # noqa: E731
    source = ListSource(9, before=fail if failing == "source" else nothing)
    sink = ListSink(before=fail if failing == "sink" else nothing)
    seen = 0
    with pytest.raises(type(cause)) as caught:
        for _ in deploy.run(Failing(spec), source, [sink]):
            seen += 1
    assert caught.value is cause and seen <= 3 and source.closed == 1
    assert sink.complete == [failing == "source"]


def test_a_slow_body_gets_fresh_frames(spec: ModelSpec) -> None:
    source = ListSource(10**6, live=True, before=lambda index: time.sleep(0.005))
    ages = []
    with deploy.run(FakeSession(spec, 0.01), source, max_frames=12) as results:
        for result in results:
            ages.append((time.monotonic_ns() - result.frame.captured_ns) / 1e9)
            time.sleep(0.15)
    assert sorted(ages)[len(ages) // 2] < 0.1, "less than the body takes"
    assert results.summary.captured == results.summary.shown + results.summary.dropped


def test_texts_are_opened_and_closed(tiny_model: Path, tmp_path: Path) -> None:
    lines = tmp_path / "out.jsonl"
    run = deploy.run(tiny_model, "street:?size=48x64&frames=3", [str(lines)], stride=2)
    assert [result.frame.index for result in run] == [0, 2]
    assert len(lines.read_text().splitlines()) >= 2
    with pytest.raises(UsageError, match="exists"):
        deploy.run(str(tiny_model), "street:", [str(lines)])
    assert len(list(deploy.run(str(tiny_model), "street:?frames=1", [str(lines)], overwrite=True))) == 1


def test_smoothing(spec: ModelSpec) -> None:
    blink = FakeSession(spec, rule=lambda image: np.full((24, 32), image.max() % 3, np.uint8))
    for smooth in (0.2, "200ms", "hysteresis:0.2s"):
        run = deploy.run(blink, ListSource(3), smooth=smooth)
        assert len(list(run)) == 3 and "smooth" in run.summary.stages
    source = ListSource(1)
    with pytest.raises(UsageError, match="smoothing 'x'"):
        deploy.run(blink, source, smooth="x")
    with pytest.raises(UsageError, match="take hysteresis"):
        deploy.run(blink, source, smooth="exponential:1s")
    assert source.closed == 1


def test_errors(spec: ModelSpec, tiny_model: Path, tmp_path: Path) -> None:
    source = ListSource(1)
    with pytest.raises(SourceError, match="no such file"):
        deploy.run(FakeSession(spec), [source, str(tmp_path / "no.mp4")])
    assert source.closed == 1, "what was open already is closed"
    source, sink = ListSource(1), ListSink()
    with pytest.raises(ModelError, match="4 frames at a time"):
        deploy.run(FakeSession(spec, batch=4), source, [sink])
    assert source.closed == 1 and sink.complete == [False]
    for bad, match in (({"stride": 0}, "stride 0"), ({"fps": -1.0}, "fps -1"), ({"duration_s": 0.0}, "duration_s 0")):
        with pytest.raises(UsageError, match=match):
            deploy.run(FakeSession(spec), ListSource(1), **bad)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no source"):
        deploy.run(FakeSession(spec), [])
    with pytest.raises(UsageError, match="sinks beside 2 sources"):
        deploy.run(FakeSession(spec), [ListSource(1), ListSource(1)], [ListSink()])


def test_a_wait_can_be_interrupted_from_another_thread(spec: ModelSpec) -> None:
    source = ScriptSource([0, threading.Event()])
    run = deploy.run(FakeSession(spec), source, duration_s=0.3)
    assert len(list(run)) == 1 and source.closed.is_set()


def example() -> str:
    """The first example in the documentation, as it stands there."""
    text = inspect.getdoc(deploy.run) or ""
    lines = text[text.index("    import cv2") : text.index("Args:")]
    return textwrap.dedent(lines)


def test_the_documented_example_counts_people(
    spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a model that knows the truth; the count is held against a flood fill of our own."""
    street = Street(0, (360, 480))
    truths = [street.render(index).mask for index in range(50)]
    known = replace(spec, labels=STREET, preprocess=replace(spec.preprocess, size_hw=(360, 480)))
    answers = iter(truths)
    session = FakeSession(known, rule=lambda image: np.where((mask := next(answers)) == 255, 0, mask).astype(np.uint8))
    real, code = deploy.run, compile(example(), "example", "exec")
    monkeypatch.setattr(deploy, "run", lambda model, *args, **kwargs: real(session, *args, **kwargs))
    exec(code, {})  # noqa: S102
    counts = [int(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    pedestrian = STREET.names.index("Pedestrian")
    assert len(counts) == 50 and max(counts) > 0
    for index in range(0, 50, 7):
        assert counts[index] == components(truths[index] == pedestrian)


def components(mask: np.ndarray) -> int:
    """Count 8-connected components by flood fill."""
    left, found = set(zip(*np.nonzero(mask), strict=True)), 0
    while left:
        found += 1
        front = [left.pop()]
        while front:
            y, x = front.pop()
            for near in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if near in left:
                    left.remove(near)
                    front.append(near)
    return found


def test_the_package_is_cheap_to_import() -> None:
    code = (
        "import sys, deploy; heavy = {'cv2', 'numpy', 'onnxruntime', 'torch'}; assert not heavy & set(sys.modules);"
        "deploy.run; assert 'cv2' in sys.modules and 'torch' not in sys.modules; assert not hasattr(deploy, 'walk')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


HELD = """
import sys, deploy
run = deploy.run(sys.argv[1], "street:?size=48x64&frames=60", sys.argv[2], max_frames=int(sys.argv[3]), overwrite=True)
for result in run:
    if result.frame.index == 19:
        break
print("left")
"""


@pytest.mark.parametrize("most", [20, 50])
def test_a_run_that_is_still_held_ends_with_the_program(tiny_model: Path, tmp_path: Path, most: int) -> None:
    """In the middle, and behind its last result: its threads must neither run nor be waited for."""
    out = tmp_path / "lines.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", HELD, str(tiny_model), str(out), str(most)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")
    assert not list(tmp_path.glob(".*"))
