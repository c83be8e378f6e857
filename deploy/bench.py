"""The benchmark: students beside their teacher, each in a process of its own, measured in turns.

Scenario `single` (MLPerf's SingleStream): one picture after another. The result holds every raw
sample, and beside them what they say.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deploy.artifact import check_model_file, sha256
from deploy.environment import Environment, FramesUsed, Settings
from deploy.pictures import Pictures, hash_pixels, spread, timing_frames
from deploy.probe import Probe
from deploy.record import (
    Accuracy,
    BenchmarkResult,
    Failure,
    Memory,
    ModelResult,
    StudentResult,
    Versus,
)
from deploy.timing import Ratio, Samples, SingleStream, WarmUp, samples_to_take
from lfd.data.base import Sample
from lfd.errors import LfdError, ModelError
from lfd.evaluate import check_labels, evaluate
from lfd.metrics import ConfusionMatrix
from lfd.preprocess import Image, restore_map
from lfd.spec import Labels, ModelSpec

ROUNDS = 6
"""Turns that the models take; each gives one ratio of student to teacher."""


def run_benchmark(
    students: Sequence[Path], teacher: Path, pictures: Pictures, settings: Settings, say: Callable[[str], None]
) -> BenchmarkResult:
    """Measure students and teacher.

    Args:
        students: Model files; one that fails is reported among the failures.
        teacher: The model file they are held against.
        pictures: Where frames and labels come from.
        settings: What was asked for.
        say: Called with one line of progress at a time.

    Raises:
        LfdError: The teacher or the data failed, or every student did.
    """
    paths = [teacher, *students]
    for path in paths if len(students) == 1 else [teacher]:
        check_model_file(path)  # at once, not after the frames are decoded
    dataset = pictures.dataset
    frames, frames_sha256 = timing_frames(dataset)
    notes: list[str] = []
    with ExitStack() as stack:
        entries = [
            _Entry(n, p, stack.enter_context(Probe(p))) for n, p in zip(display_names(paths), paths, strict=True)
        ]
        first = entries[0]

        def load(entry: _Entry) -> None:
            say(f"loading {entry.name}")
            entry.load(frames, settings.threads, settings.backend)
            check_labels(entry.spec.labels, first.spec.labels, f"the teacher {first.name}")

        _each(entries, load)
        scored = _can_score(pictures, first.spec.labels, notes)
        say("warming up")
        _each(entries, lambda entry: entry.warm(settings.seconds))
        for turn in range(ROUNDS):
            say(f"measuring, round {turn + 1} of {ROUNDS}")
            _each(entries, _Entry.measure, backwards=turn % 2 == 1)  # A B, B A: a steady drift cancels out
        _each(entries, _Entry.take_peak)  # before the scoring, which is no part of running a model
        indices = spread(len(dataset), settings.max_images) if scored else []
        digest = hashlib.sha256()
        for done, index in enumerate(indices):
            say(f"scoring picture {done + 1} of {len(indices)}")
            score_one(entries, dataset[index], dataset.labels, digest)
        results = {e.name: e.result() for e in entries if e.error is None}
    return BenchmarkResult(
        environment=Environment.here(settings.threads),
        settings=settings,
        frames=FramesUsed(
            data=pictures.name,
            timed=len(frames),
            timed_sha256=frames_sha256,
            sizes_wh=tuple(sorted({(frame.shape[1], frame.shape[0]) for frame in frames})),
            scored=len(indices),
            scored_sha256=digest.hexdigest() if indices else None,
        ),
        classes=first.spec.labels.names,
        teacher=results[first.name],
        students=tuple(
            StudentResult(results[e.name], _versus(e, first, results)) for e in entries[1:] if e.error is None
        ),
        failures=tuple(Failure(e.name, _public(e), e.error.exit_code) for e in entries if e.error is not None),
        notes=tuple(notes),
    )


@dataclass
class _Entry:
    """A model on its way through the benchmark."""

    name: str
    path: Path
    probe: Probe
    error: LfdError | None = None
    spec: ModelSpec = field(init=False)
    loaded: dict[str, Any] = field(init=False)
    warm_up: WarmUp = field(init=False)
    per_round: int = 0
    rounds: list[Samples] = field(default_factory=list)
    peak_mb: float | None = None
    matrix: ConfusionMatrix | None = None
    agreeing: int = 0
    pixels: int = 0

    def load(self, frames: Sequence[Image], threads: int, backend: str | None) -> None:
        check_model_file(self.path)
        self.loaded = self.probe.load(frames, threads, backend)
        self.spec = ModelSpec.from_json(self.loaded["spec"], str(self.path))

    def warm(self, seconds: float) -> None:
        reply, _ = self.probe.ask("warm_up", seconds=seconds / 5, limit_s=seconds)
        self.warm_up = WarmUp(tuple(reply["durations_ms"]), reply["settled"])
        typical_ms = statistics.median(self.warm_up.thrown_away_ms[-5:])
        self.per_round = math.ceil(samples_to_take(typical_ms, seconds) / ROUNDS)

    def measure(self) -> None:
        reply, _ = self.probe.ask("measure", count=self.per_round)
        self.rounds.append(Samples(*(tuple(reply[key]) for key in ("fit_ms", "model_ms", "restore_ms"))))

    def take_peak(self) -> None:
        self.peak_mb = self.probe.ask("memory")[0]["peak_mb"]

    def result(self) -> ModelResult:
        build, provenance = self.loaded["build"], self.spec.provenance
        method = provenance.get("method")
        return ModelResult(
            name=self.name,
            sha256=sha256(self.path),
            file_bytes=self.path.stat().st_size,
            model=self.spec.model,
            method=method if isinstance(method, str) else None,
            size_hw=self.spec.preprocess.size_hw,
            precision=build["precision"],
            backend=build["backend"],
            params=_count(provenance, "params"),
            macs=_count(provenance, "macs"),
            load_ms=self.loaded["load_ms"],
            first_ms=self.loaded["first_ms"],
            memory=Memory(self.peak_mb, self.loaded["baseline_mb"]),
            single=SingleStream.of(self.warm_up, self.rounds),
            accuracy=_accuracy(self.matrix, self.agreeing / self.pixels) if self.matrix is not None else None,
        )


def _each(entries: Sequence[_Entry], action: Callable[[_Entry], None], backwards: bool = False) -> None:
    """Do something with every model that has not failed; a failure is kept.

    Raises:
        LfdError: The teacher failed, or there is no student left.
    """
    for entry in [e for e in entries if e.error is None][:: -1 if backwards else 1]:
        try:
            action(entry)
        except LfdError as error:  # noqa: PERF203 - one model's failure must not end the others
            entry.error = error
            if entry is entries[0] or len(entries) == 2:
                raise
            if all(e.error is not None for e in entries[1:]):
                raise type(error)("; ".join(f"{e.name}: {_public(e)}" for e in entries[1:])) from error


@dataclass(frozen=True)
class _One:
    """A data set of one picture: all models score it while it is in memory."""

    labels: Labels
    sample: Sample

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int, /) -> Sample:
        return self.sample


def score_one(entries: Sequence[_Entry], sample: Sample, labels: Labels, digest: Any) -> None:
    """Let every model see one picture: count its pixels against the labels and against the teacher's.

    Args:
        entries: The models, the teacher first.
        sample: The picture.
        labels: Its classes.
        digest: A hash of hashlib, which takes picture and labels.
    """
    hash_pixels(digest, sample.image)
    hash_pixels(digest, sample.mask)
    height, width = sample.mask.shape
    restored: list[Image] = []

    def score(entry: _Entry) -> None:
        maps: list[Image] = []

        def predict(image: Image) -> Image:
            maps.append(entry.probe.predict(image))
            return maps[0]

        matrix = evaluate(predict, _One(labels, sample), entry.spec.preprocess)
        entry.matrix = entry.matrix or ConfusionMatrix(len(labels))
        entry.matrix.counts += matrix.counts
        restored.append(restore_map(maps[0], entry.spec.preprocess, (height, width)))
        entry.agreeing += int(np.count_nonzero(restored[-1] == restored[0]))
        entry.pixels += restored[0].size

    _each(entries, score)


def _public(entry: _Entry) -> str:
    """Return why a model failed, without its name and the folder it is in: reports travel."""
    message = str(entry.error)
    for said in (str(entry.path.resolve()), f"{entry.path.parent}/{entry.path.name}"):
        message = message.replace(said, entry.path.name)
    return message.removeprefix(f"{entry.path.name}: ")


def display_names(paths: Sequence[Path]) -> list[str]:
    """Return file names, with the folder's where that tells two apart, or else a number."""
    names = [path.name for path in paths]
    full = [f"{path.resolve().parent.name}/{path.name}" for path in paths]
    names = [f if names.count(n) > 1 and full.count(f) == 1 else n for n, f in zip(names, full, strict=True)]
    return [f"{n} ({names[: i + 1].count(n)})" if names.count(n) > 1 else n for i, n in enumerate(names)]


def _can_score(pictures: Pictures, model: Labels, notes: list[str]) -> bool:
    """Tell whether the data set can score the models; a note says why not."""
    try:
        check_labels(model, pictures.dataset.labels, f"the data set {pictures.name}")
    except ModelError:
        if pictures.must_score:
            raise
        notes.append(f"no accuracy: {pictures.name} has other classes than the models; give their data with --data")
        return False
    return True


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _count(provenance: Mapping[str, Any], key: str) -> int | None:
    value = provenance.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _accuracy(matrix: ConfusionMatrix, agreement: float) -> Accuracy:
    iou = tuple(_number(float(value)) for value in matrix.iou())
    return Accuracy(_number(matrix.miou()), iou, _number(matrix.pixel_accuracy()), agreement)


def _versus(entry: _Entry, first: _Entry, results: Mapping[str, ModelResult]) -> Versus:
    student, teacher = results[entry.name], results[first.name]
    lost = kept = None
    ours, theirs = (r.accuracy.miou if r.accuracy else None for r in (student, teacher))
    if ours is not None and theirs is not None:
        lost, kept = theirs - ours, ours / theirs if theirs > 0 else None
    return Versus(
        faster_alone=Ratio.paired([r.model_ms for r in first.rounds], [r.model_ms for r in entry.rounds]),
        faster_end_to_end=Ratio.paired(
            [r.end_to_end_ms for r in first.rounds], [r.end_to_end_ms for r in entry.rounds]
        ),
        smaller=teacher.file_bytes / student.file_bytes,
        miou_lost=lost,
        miou_kept=kept,
    )
