"""A model on its way through the benchmark: what was asked of its process, and what came back."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deploy.artifact import sha256
from deploy.auto import AUTO, choose
from deploy.bench.models import is_checkpoint, model_file
from deploy.bench.nvml import Gpu
from deploy.bench.power import Power, Recorder, Spent
from deploy.bench.probe import Probe, ProcessEndedError
from deploy.bench.record import Accuracy, Memory, Missing, ModelResult, Versus
from deploy.bench.scenarios import Offline, SingleStream, Stream, WarmUp
from deploy.timing import Ratio, Samples, samples_needed, samples_to_take
from lfd.errors import LfdError, ModelError
from lfd.metrics import ConfusionMatrix
from lfd.preprocess import Image
from lfd.spec import ModelSpec

FEWEST_ROUNDS, MOST_ROUNDS = 6, 20
"""Turns that the models take; each gives one ratio of student to teacher. Six earn an interval from the smallest to the
largest only, so that one disturbed round hides a difference; twenty may have five."""
MIN_A_ROUND = 5
"""Fewer samples make a round's median, and with it the ratio, a matter of chance."""
TRIAL = 2
"""Batches run to see how long one takes."""


@dataclass
class Entry:
    """A model on its way through the benchmark."""

    name: str
    path: Path
    probe: Probe
    error: LfdError | None = None
    spec: ModelSpec = field(init=False)
    loaded: dict[str, Any] = field(init=False)
    warm_up: WarmUp = field(init=False)
    typical_ms: float = 0.0
    wanted: int = 0
    rounds: list[Samples] = field(default_factory=list)
    offline: dict[int, list[Samples]] = field(default_factory=dict)
    batches_per_round: dict[int, int] = field(default_factory=dict)
    streams: list[Stream] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    spent: dict[str, list[Spent]] = field(default_factory=dict)
    peak_mb: float | None = None
    gpu_mb: float | None = None
    matrix: ConfusionMatrix | None = None
    agreeing: int = 0
    pixels: int = 0

    def load(
        self,
        frames: Sequence[Image],
        threads: int,
        backend: str | None = None,
        size_hw: tuple[int, int] | None = None,
    ) -> None:
        """Load the model in its process, which runs it once."""
        model_file(self.path)
        if backend == AUTO:
            backend = None if is_checkpoint(self.path) else choose(self.path, threads)
        self.loaded = self.probe.load(frames, threads, backend, size_hw)
        self.spec = ModelSpec.from_json(self.loaded["spec"], str(self.path))

    def warm(self, seconds: float) -> None:
        """Warm up, and choose how many samples are wanted of `single`."""
        reply, _ = self.probe.ask("warm_up", expected_s=seconds, seconds=seconds / 5, limit_s=seconds)
        self.warm_up = WarmUp(tuple(reply["durations_ms"]), reply["settled"])
        self.typical_ms = statistics.median(self.warm_up.thrown_away_ms[-5:])
        self.wanted = samples_to_take(self.typical_ms, seconds)

    def _measured(self, batch: int | None, count: int) -> Samples:
        expected_s = count * (batch or 1) * self.typical_ms / 1e3
        reply, _ = self.probe.ask("measure", expected_s=expected_s, count=count, batch=batch)
        return Samples(*(tuple(reply[key]) for key in ("fit_ms", "model_ms", "restore_ms")))

    def measure(self, recorder: Recorder, rounds: int) -> None:
        """Take one of the rounds of `single`, and the energy that went meanwhile."""
        count = math.ceil(self.wanted / rounds)
        begin = recorder.sample()
        samples = self._measured(None, count)
        end = recorder.sample()
        self.rounds.append(samples)
        for meter, joules in recorder.between(begin, end).items():
            # The one thrown away at the start of the round has used energy too.
            self.spent.setdefault(meter, []).append(Spent(end - begin, count + 1, joules))

    def try_batch(self, batch: int, seconds: float) -> None:
        """See how long a batch takes, and whether the model takes one of this size."""
        try:
            typical_ms = statistics.median(self._measured(batch, TRIAL).end_to_end_ms)
        except ProcessEndedError:
            raise
        except ModelError as error:
            reason = f"{self.public(error)}. Fix: lfd-export onnx --batch dynamic"
            self.missing.append(Missing(f"offline, batch {batch}", reason))
            return
        count = max(samples_needed(0.5), math.ceil(seconds * 1e3 / typical_ms))
        self.batches_per_round[batch] = math.ceil(count / FEWEST_ROUNDS)

    def measure_batches(self, batch: int) -> None:
        """Take one round of `offline`, where the model takes that batch."""
        if count := self.batches_per_round.get(batch):
            samples = self._measured(batch, count)  # before the list is made: an interruption must leave no empty one
            self.offline.setdefault(batch, []).append(samples)

    def stream(self, fps: float, seconds: float) -> None:
        """Run one stream from its first frame to its last."""
        arriving_s = samples_to_take(1e3 / fps, seconds) / fps
        reply, _ = self.probe.ask("stream", expected_s=arriving_s + seconds, fps=fps, seconds=seconds)
        samples = Samples(*(tuple(reply[key]) for key in ("fit_ms", "model_ms", "restore_ms")))
        self.streams.append(Stream.of(fps, samples, reply["wait_ms"], reply["unserved"]))

    def take_peak(self, cards: Sequence[Gpu] = ()) -> None:
        """Ask for the memory that the process has needed so far, one picture at a time, and holds on the card."""
        self.peak_mb = self.probe.ask("memory")[0]["peak_mb"]
        held = [mb for card in cards if (mb := card.memory_mb(self.probe.pid)) is not None]
        self.gpu_mb = sum(held) if held else None

    def public(self, error: LfdError) -> str:
        """Return an error's message without the model's name and the folder it is in: reports travel."""
        message = str(error)
        for said in (str(self.path.resolve()), f"{self.path.parent}/{self.path.name}"):
            message = message.replace(said, self.path.name)
        return message.removeprefix(f"{self.path.name}: ")

    def result(self, idle_w: Mapping[str, float]) -> ModelResult:
        """Return what the report holds of it."""
        build, provenance = self.loaded["build"], self.spec.provenance
        method, file = provenance.get("method"), model_file(self.path)
        power = [Power.of(name, idle_w[name], rounds) for name, rounds in self.spent.items() if rounds]
        return ModelResult(
            name=self.name,
            sha256=sha256(file),
            file_bytes=file.stat().st_size,
            model=self.spec.model,
            method=method if isinstance(method, str) else None,
            size_hw=self.spec.preprocess.size_hw,
            precision=build["precision"],
            backend=build["backend"],
            params=_count(provenance, "params"),
            macs=_count(provenance, "macs"),
            load_ms=self.loaded["load_ms"],
            first_ms=self.loaded["first_ms"],
            memory=Memory(self.peak_mb, self.loaded["baseline_mb"], self.gpu_mb),
            single=SingleStream.of(self.warm_up, self.rounds),
            accuracy=accuracy(self.matrix, self.agreeing / self.pixels) if self.matrix and self.pixels else None,
            offline=tuple(Offline.of(batch, rounds) for batch, rounds in self.offline.items() if rounds),
            streams=tuple(self.streams),
            power=tuple(power),
            missing=tuple(self.missing),
        )


def rounds_of(entries: Sequence[Entry]) -> int:
    """Return how many turns give each model as many samples a round as its median needs."""
    fewest = min((entry.wanted for entry in entries if entry.error is None), default=0)
    return min(MOST_ROUNDS, max(FEWEST_ROUNDS, fewest // MIN_A_ROUND))


def finite(value: float) -> float | None:
    """Return a number, or None for NaN, which JSON has not."""
    return None if math.isnan(value) else value


def _count(provenance: Mapping[str, Any], key: str) -> int | None:
    value = provenance.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def accuracy(matrix: ConfusionMatrix, agreement: float) -> Accuracy:
    """Return what a confusion matrix says, and which share of all pixels has the teacher's class."""
    iou = tuple(finite(float(value)) for value in matrix.iou())
    return Accuracy(finite(matrix.miou()), iou, finite(matrix.pixel_accuracy()), agreement)


def versus(student: ModelResult, teacher: ModelResult) -> Versus:
    """Hold a student against the teacher."""
    lost = kept = None
    ours, theirs = (r.accuracy.miou if r.accuracy else None for r in (student, teacher))
    if ours is not None and theirs is not None:
        lost, kept = theirs - ours, ours / theirs if theirs > 0 else None
    slow, fast = teacher.single.rounds, student.single.rounds
    return Versus(
        faster_alone=Ratio.paired([r.model_ms for r in slow], [r.model_ms for r in fast]),
        faster_end_to_end=Ratio.paired([r.end_to_end_ms for r in slow], [r.end_to_end_ms for r in fast]),
        smaller=teacher.file_bytes / student.file_bytes,
        miou_lost=lost,
        miou_kept=kept,
    )


def agreeing(ours: Image, theirs: Image) -> int:
    """Return how many pixels two class maps have in common."""
    return int(np.count_nonzero(ours == theirs))
