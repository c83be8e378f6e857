"""A clock that only moves when told, models that take a written time on it, a probe without a process, and a record."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.artifact import BuildInfo
from deploy.bench import probe
from deploy.bench.conditions import Condition
from deploy.bench.pictures import Shown
from deploy.bench.power import Power, Spent
from deploy.bench.record import (
    Accuracy,
    BenchmarkResult,
    Failure,
    Memory,
    Missing,
    ModelResult,
    StudentResult,
    SweepPoint,
    Versus,
)
from deploy.bench.scenarios import Offline, SingleStream, Stream, WarmUp
from deploy.environment import Environment, FramesUsed, Settings
from deploy.timing import Ratio, Samples, Timing
from lfd.preprocess import Image
from lfd.spec import Labels, ModelSpec, Preprocess

LABELS = Labels(("dark", "light"), ((0, 0, 0), (255, 255, 255)))
SPEC = ModelSpec("fake", LABELS, Preprocess((8, 8)), provenance={"params": 7, "macs": True, "method": "lfd"})
FRAME: Image = np.zeros((8, 8, 3), np.uint8)


class ScriptedClock:
    """A clock in whole nanoseconds; it stands still but for `advance` and `wait_until`."""

    def __init__(self) -> None:
        self.time_ns = 1_000

    def now_ns(self) -> int:
        return self.time_ns

    def wait_until(self, at_ns: int) -> None:
        self.time_ns = max(self.time_ns, at_ns)

    def advance(self, ms: float) -> None:
        self.time_ns += round(ms * 1e6)


class ScriptedSession:
    """An `InferenceSession` whose runs take written times on a `ScriptedClock`; the last one for all that follow."""

    def __init__(self, clock: ScriptedClock, delays_ms: Sequence[float], spec: ModelSpec = SPEC) -> None:
        self.spec = spec
        self.build = BuildInfo("scripted", "fp32", "0" * 64, {}, "none")
        self.batch: int | None = None
        self._clock = clock
        self._delays = self._script(delays_ms)

    @staticmethod
    def _script(delays_ms: Sequence[float]) -> Iterator[float]:
        yield from delays_ms
        while True:
            yield delays_ms[-1]

    def run(self, batch: Image) -> Any:
        self._clock.advance(next(self._delays))
        return np.zeros((len(batch), *self.spec.preprocess.size_hw), np.uint8)

    def close(self) -> None: ...

    def __enter__(self) -> ScriptedSession:
        return self

    def __exit__(self, *_: object) -> None: ...


class Local:
    """A Probe in this process: nothing is started, so it is quick."""

    pid = os.getpid()

    def __init__(self, path: Path) -> None:
        self._path, self._child = path, probe._Child()

    def ask(
        self, op: str, pictures: Sequence[Image] = (), expected_s: float = 0, **message: Any
    ) -> tuple[dict[str, Any], list[Image]]:
        result = getattr(self._child, op)(message, list(pictures))
        return ({}, result) if isinstance(result, list) else (result, [])

    def load(
        self, frames: Sequence[Image], threads: int, backend: str | None = None, size_hw: tuple[int, int] | None = None
    ) -> dict[str, Any]:
        return self.ask("load", frames, path=str(self._path), threads=threads, backend=backend, size_hw=size_hw)[0]

    def predict(self, image: Image) -> Image:
        return self.ask("predict", [image])[1][0]

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def model(name: str, ms: float, accuracy: Accuracy | None, count: int = 20) -> ModelResult:
    rounds = [Samples((0.5,) * count, (ms,) * count, (0.25,) * count)] * 2
    return ModelResult(
        name=name,
        sha256="ab" * 32,
        file_bytes=int(ms * 1e6),
        model="lraspp",
        method=None,
        size_hw=(360, 480),
        precision="fp32",
        backend="onnxruntime CPUExecutionProvider",
        params=3_220_000,
        macs=None,
        load_ms=50.0,
        first_ms=25.5,
        memory=Memory(168.0, 89.0),
        single=SingleStream.of(WarmUp((20.0, 21.5), True), rounds),
        accuracy=accuracy,
    )


ENVIRONMENT = Environment(
    "2026-11-22T08:50:00Z", "A CPU", 2, "performance", 2400.0, 8000.0, "Linux", "3.11.7", {"numpy": "2.4.6"}, 2
)
RESULT = BenchmarkResult(
    environment=ENVIRONMENT,
    settings=Settings(5.0, 2, None),
    frames=FramesUsed("camvid@test", 32, "cd" * 32, ((480, 360),), 233, "ef" * 32),
    classes=("road", "sky|blue"),
    teacher=model("teacher.onnx", 400.0, Accuracy(0.7, (0.9, 0.5), 0.9, 1.0)),
    students=(
        StudentResult(
            model("student.onnx", 20.0, Accuracy(0.6, (0.8, None), 0.85, 0.9312)),
            Versus(Ratio(20.0, 19.5, 20.4), Ratio(19.3, 19.0, 19.8), 20.0, 0.1, 6 / 7),
        ),
    ),
    failures=(Failure("broken.onnx", "has no ModelSpec", 4),),
    notes=("a note",),
    no_power="power is not known here: no meter",
)


def full_result() -> BenchmarkResult:
    """A record with every optional part: batches, streams, power, a sweep, conditions, and an interruption."""
    from dataclasses import replace

    batches = [Samples((1.0,) * 12, (30.0,) * 12, (1.0,) * 12)] * 2
    samples = Samples((0.5,) * 40, (20.0,) * 39 + (200.0,), (0.25,) * 40)
    stream = Stream.of(30.0, samples, (0.0,) * 40, 2)
    power = Power.of("rail VDD_IN", 3.0, [Spent(2.0, 40, 20.0), Spent(2.0, 40, 24.0)])
    point = SweepPoint(
        "student.onnx", 1, (360, 480), tuple(batches), Timing.of([32.0] * 24), Timing.of([34.0] * 24), 90.0
    )
    other = replace(point, threads=2, size_hw=(180, 240), miou=0.5)
    failed = SweepPoint("teacher.onnx", 2, (180, 240), reason="its input is 360x480 and no other size")
    student = RESULT.students[0]
    rich = replace(
        student.result,
        offline=(Offline.of(4, batches),),
        streams=(stream,),
        power=(power,),
        missing=(Missing("offline, batch 8", "takes 4"),),
        memory=Memory(168.0, 89.0, 512.0),
    )
    look = Condition(1.0, 2400.0, 61.5, 0, 0.5, None, None, ())
    return replace(
        RESULT,
        settings=Settings(5.0, 2, None, None, (4, 8), (30.0,), (1,), ((180, 240),)),
        students=(replace(student, result=rich),),
        sweep=(point, other, failed),
        conditions=(look, replace(look, throttle_events=3, clock_mhz=1200.0)),
        no_power=None,
        interrupted="sweep: teacher.onnx, 4 threads",
    )


def shown(maps: Sequence[str] = ("student.onnx", "teacher.onnx")) -> list[Shown]:
    """Two pictures with the class maps of some models."""
    truth = np.zeros((48, 64), np.uint8)
    truth[:, 32:] = 1
    frame: Image = np.full((48, 64, 3), 90, np.uint8)
    return [Shown(f"p{i}", frame, truth, dict.fromkeys(maps, truth), LABELS) for i in range(2)]
