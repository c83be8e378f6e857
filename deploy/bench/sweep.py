"""Other thread counts and input sizes, one model after another, each in a fresh process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from deploy.bench.entry import FEWEST_ROUNDS, Entry, finite
from deploy.bench.power import Recorder
from deploy.bench.probe import Probe
from deploy.bench.record import SweepPoint
from deploy.environment import Settings
from deploy.timing import Timing
from lfd.data.base import Dataset
from lfd.errors import LfdError
from lfd.evaluate import evaluate
from lfd.preprocess import Image


def sweep(
    models: Sequence[tuple[str, Path]],
    frames: Sequence[Image],
    dataset: Dataset,
    indices: Sequence[int],
    settings: Settings,
    say: Callable[[str], None],
) -> Iterator[SweepPoint]:
    """Measure scenario `single` at every other thread count, then at every other size.

    Args:
        models: Name and path.
        frames: For the clock.
        dataset: What another size is scored on; another thread count gives the same class maps.
        indices: Which of its pictures; none scores nothing.
        settings: What was asked for.
        say: Called with one line of progress at a time.
    """
    asked: list[tuple[int, tuple[int, int] | None]] = [(threads, None) for threads in settings.thread_sweep]
    asked += [(settings.threads, size_hw) for size_hw in settings.size_sweep]
    for threads, size_hw in asked:
        what = f"{threads} threads" if size_hw is None else "input {}x{}".format(*size_hw)
        for name, path in models:
            say(f"sweep: {name}, {what}")
            with Probe(path) as probe:
                yield _point(Entry(name, path, probe), threads, size_hw, frames, dataset, indices, settings)


def _point(
    entry: Entry,
    threads: int,
    size_hw: tuple[int, int] | None,
    frames: Sequence[Image],
    dataset: Dataset,
    indices: Sequence[int],
    settings: Settings,
) -> SweepPoint:
    unknown = SweepPoint(entry.name, threads, size_hw)
    try:
        entry.load(frames, threads, settings.backend, size_hw)
        point = replace(unknown, size_hw=entry.spec.preprocess.size_hw)
        entry.warm(settings.seconds)
        for _ in range(FEWEST_ROUNDS):
            entry.measure(Recorder([]), FEWEST_ROUNDS)
        entry.take_peak()
        miou = None
        if size_hw is not None and indices:
            miou = finite(evaluate(entry.probe.predict, dataset, entry.spec.preprocess, indices=indices).miou())
    except LfdError as error:
        return replace(unknown, reason=entry.public(error))
    return replace(
        point,
        rounds=tuple(entry.rounds),
        model_alone=Timing.of([ms for samples in entry.rounds for ms in samples.model_ms]),
        end_to_end=Timing.of([ms for samples in entry.rounds for ms in samples.end_to_end_ms]),
        peak_mb=entry.peak_mb,
        miou=miou,
    )
