"""The benchmark: students beside their teacher, each in a process of its own, measured in turns."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from deploy.bench.conditions import Watch
from deploy.bench.entry import FEWEST_ROUNDS, Entry, agreeing, rounds_of, versus
from deploy.bench.models import display_names, model_file
from deploy.bench.nvml import Gpu, gpus
from deploy.bench.pictures import Pictures, Shown, hash_pixels, spread, timing_frames
from deploy.bench.power import Recorder, find_meters
from deploy.bench.probe import Probe
from deploy.bench.record import BenchmarkResult, Failure, StudentResult, SweepPoint
from deploy.bench.sweep import sweep
from deploy.environment import Environment, FramesUsed, Settings
from lfd.data.base import Sample
from lfd.errors import LfdError, ModelError
from lfd.evaluate import check_labels, evaluate
from lfd.metrics import ConfusionMatrix
from lfd.preprocess import Image, restore_map
from lfd.spec import Labels

SHOWN = 4
"""Pictures that the report shows."""

Say = Callable[[str], None]


@dataclass
class _Progress:
    """What is being done, said and remembered: an interrupted report tells how far it came."""

    tell: Say
    last: str = ""

    def say(self, text: str) -> None:
        self.last = text
        self.tell(text)


@dataclass
class _Scores:
    """The pictures scored so far; one counts when every model has seen it."""

    digest: Any = field(default_factory=hashlib.sha256)
    count: int = 0
    shown: list[Shown] = field(default_factory=list)


def run_benchmark(
    students: Sequence[Path], teacher: Path, pictures: Pictures, settings: Settings, say: Say
) -> tuple[BenchmarkResult, list[Shown]]:
    """Measure students and teacher.

    Interrupted once every model has been through a round, it returns what there is, marked. So it does when the
    teacher, the last student or a picture fails that late: the cause is among the failures.

    Args:
        students: Models; one that fails is reported among the failures.
        teacher: The model they are held against.
        pictures: Where frames and labels come from.
        settings: What was asked for.
        say: Called with one line of progress at a time.

    Returns:
        The record, and some pictures with every model's class map.

    Raises:
        LfdError: The teacher or the data failed, or every student did, before there was anything to keep.
        KeyboardInterrupt: Interrupted before there was anything to keep.
    """
    paths = [teacher, *students]
    for path in paths if len(students) == 1 else [teacher]:
        model_file(path)  # at once, not after the frames are decoded
    frames, frames_sha256 = timing_frames(pictures.dataset)
    progress, scores, notes = _Progress(say), _Scores(), list[str]()
    points: list[SweepPoint] = []
    interrupted, ended, failures = None, False, list[Failure]()
    with ExitStack() as stack:
        cards = stack.enter_context(gpus())
        meters, no_power = find_meters(cards)
        recorder = stack.enter_context(Recorder(meters).running())
        progress.say("measuring the idle power" if meters else "starting")
        idle_w = recorder.idle_w() if meters else {}
        processes = stack.enter_context(ExitStack())
        probes = [processes.enter_context(Probe(path)) for path in paths]
        entries = [Entry(*named) for named in zip(display_names(paths), paths, probes, strict=True)]
        watch = Watch([probe.pid for probe in probes], cards)
        try:
            _load(entries, frames, settings, progress)
            can_score = _can_score(pictures, entries[0].spec.labels, notes)
            _measure(entries, settings, recorder, watch, cards, progress)
            chosen = spread(len(pictures.dataset), settings.max_images) if can_score else []
            _score(entries, pictures, chosen, scores, progress)
            processes.close()  # the sweep has the memory for itself
            alive = [(entry.name, entry.path) for entry in entries if entry.error is None]
            for point in sweep(alive, frames, pictures.dataset, chosen, settings, progress.say):
                points.append(point)  # noqa: PERF402 - an interruption must leave those that are done
        except KeyboardInterrupt:
            if not all(entry.rounds for entry in entries if entry.error is None):
                raise
            interrupted = progress.last
        except LfdError as error:
            if not entries[0].rounds or not any(entry.rounds for entry in entries[1:]):
                raise
            interrupted, ended = progress.last, True
            if entries[0].error is None and not all(entry.error for entry in entries[1:]):
                failures.append(Failure(pictures.name, _without_folder(str(error)), error.exit_code))
        failures += [Failure(e.name, e.public(e.error), e.error.exit_code) for e in entries if e.error is not None]
        kept = [entry for entry in entries if entry.rounds and (ended or entry.error is None)]
        results = {entry.name: entry.result(idle_w) for entry in kept}
        environment = Environment.here(settings.threads, tuple(card.name for card in cards))
    first = results[entries[0].name]
    record = BenchmarkResult(
        environment=environment,
        settings=settings,
        frames=FramesUsed(
            data=pictures.name,
            timed=len(frames),
            timed_sha256=frames_sha256,
            sizes_wh=tuple(sorted({(frame.shape[1], frame.shape[0]) for frame in frames})),
            scored=scores.count,
            scored_sha256=scores.digest.hexdigest() if scores.count else None,
        ),
        classes=entries[0].spec.labels.names,
        teacher=first,
        students=tuple(
            StudentResult(results[e.name], versus(results[e.name], first)) for e in kept if e is not entries[0]
        ),
        failures=tuple(failures),
        notes=tuple(notes),
        sweep=tuple(points),
        conditions=tuple(watch.looks),
        no_power=no_power,
        interrupted=interrupted,
    )
    return record, scores.shown


def _load(entries: Sequence[Entry], frames: Sequence[Image], settings: Settings, progress: _Progress) -> None:
    first = entries[0]

    def load(entry: Entry) -> None:
        progress.say(f"loading {entry.name}")
        entry.load(frames, settings.threads, settings.backend)
        check_labels(entry.spec.labels, first.spec.labels, f"the teacher {first.name}")

    _each(entries, load)


def _measure(
    entries: Sequence[Entry],
    settings: Settings,
    recorder: Recorder,
    watch: Watch,
    cards: Sequence[Gpu],
    progress: _Progress,
) -> None:
    """Take turns: A B, B A, so that a steady drift cancels out."""
    progress.say("warming up")
    _each(entries, partial(Entry.warm, seconds=settings.seconds))
    watch.look()
    rounds = rounds_of(entries)
    for turn in range(rounds):
        progress.say(f"measuring, round {turn + 1} of {rounds}")
        _each(entries, partial(Entry.measure, recorder=recorder, rounds=rounds), backwards=turn % 2 == 1)
        watch.look()
    _each(entries, partial(Entry.take_peak, cards=cards))  # before batches, which not every model takes
    for batch in settings.batches:
        _each(entries, partial(Entry.try_batch, batch=batch, seconds=settings.seconds))
        for turn in range(FEWEST_ROUNDS):
            progress.say(f"offline in batches of {batch}, round {turn + 1} of {FEWEST_ROUNDS}")
            _each(entries, partial(Entry.measure_batches, batch=batch), backwards=turn % 2 == 1)
        watch.look()
    for fps in settings.streams:
        progress.say(f"streams of {fps:g} frames a second")
        _each(entries, partial(Entry.stream, fps=fps, seconds=settings.seconds))
        watch.look()


def _score(
    entries: Sequence[Entry], pictures: Pictures, chosen: Sequence[int], scores: _Scores, progress: _Progress
) -> None:
    show = {chosen[index] for index in spread(len(chosen), SHOWN)}
    for done, index in enumerate(chosen):
        progress.say(f"scoring picture {done + 1} of {len(chosen)}")
        sample = pictures.dataset[index]
        maps = score_one(entries, sample, pictures.dataset.labels)
        hash_pixels(scores.digest, sample.image)
        hash_pixels(scores.digest, sample.mask)
        scores.count += 1
        if index in show:
            scores.shown.append(Shown(sample.name, sample.image, sample.mask, maps, pictures.dataset.labels))


def _each(entries: Sequence[Entry], action: Callable[[Entry], None], backwards: bool = False) -> None:
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
                raise type(error)(
                    "; ".join(f"{e.name}: {e.public(e.error)}" for e in entries[1:] if e.error)
                ) from error


@dataclass(frozen=True)
class _One:
    """A data set of one picture: all models score it while it is in memory."""

    labels: Labels
    sample: Sample

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int, /) -> Sample:
        return self.sample


def score_one(entries: Sequence[Entry], sample: Sample, labels: Labels) -> dict[str, Image]:
    """Let every model see one picture: count its pixels against the labels and against the teacher's.

    Nothing is counted before all have seen it.

    Args:
        entries: The models, the teacher first.
        sample: The picture.
        labels: Its classes.

    Returns:
        Name to class map, at the size of the labels.
    """
    height, width = sample.mask.shape
    restored: dict[str, Image] = {}
    counted: list[tuple[Entry, ConfusionMatrix]] = []

    def score(entry: Entry) -> None:
        maps: list[Image] = []

        def predict(image: Image) -> Image:
            maps.append(entry.probe.predict(image))
            return maps[0]

        counted.append((entry, evaluate(predict, _One(labels, sample), entry.spec.preprocess)))
        restored[entry.name] = restore_map(maps[0], entry.spec.preprocess, (height, width))

    _each(entries, score)
    for entry, matrix in counted:
        entry.matrix = entry.matrix or ConfusionMatrix(len(labels))
        entry.matrix.counts += matrix.counts
        entry.agreeing += agreeing(restored[entry.name], restored[entries[0].name])
        entry.pixels += height * width
    return restored


def _without_folder(message: str) -> str:
    """Return a message that begins with a file's path with its name in place of it: reports travel."""
    where, colon, what = message.partition(": ")
    return f"{Path(where).name}: {what}" if colon else message


def _can_score(pictures: Pictures, model: Labels, notes: list[str]) -> bool:
    """Tell whether the data set can score the models; a note says why not."""
    if not pictures.labelled:
        notes.append(f"no accuracy: {pictures.name} has no labels")
        return False
    try:
        check_labels(model, pictures.dataset.labels, f"the data set {pictures.name}")
    except ModelError:
        if pictures.must_score:
            raise
        notes.append(f"no accuracy: {pictures.name} has other classes than the models; give their data with --data")
        return False
    return True
