"""How fast files are beside each other: in turns, so that all see the same state of the machine."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, TypeVar

from deploy.bench.loops import measure, measure_batches
from deploy.bench.pictures import spread
from deploy.session import InferenceSession, open_session
from deploy.timing import samples_to_take
from export.runnable import BATCH_KEY, DYNAMIC, frames_per_run
from lfd.data import Dataset
from lfd.preprocess import Image, fit_frame
from lfd.spec import Preprocess

ROUNDS = 6
"""Each gives one ratio to `deploy.timing.Ratio`. Turns are
dealt out to rounds like cards, so that each round is spread over the whole time, and sees all that the machine does in
it: rounds of one piece each differed by a factor of two on a machine that others used."""
TURNS = 4
"""In each round, of each file."""
SETTLE_MS = 20.0
"""At the beginning of a turn, while the caches are those of another file: with one run thrown away and turns of three,
two threads, int8 DeepLabV3-R18 180x240 was 2.37 times as fast as fp32, so 2.52 times, alone with it in turns of 25 runs
2.55 times."""
SECONDS = 1.5
"""Measuring time for each file; longer where that earns a higher percentile, or the median."""
WARM_UP = 3
TIMING_FRAMES = 8

Key = TypeVar("Key", bound=Hashable)
Rounds = tuple[tuple[float, ...], ...]
"""Milliseconds of each run of the model alone, a tuple a round."""


class Timed(NamedTuple):
    """A file, and the name in `deploy.session.BACKENDS` of what runs it."""

    path: Path
    backend: str | None


def timing_frames(dataset: Dataset, preprocess: Preprocess, indices: Sequence[int] | None = None) -> list[Image]:
    """Return a few frames of a data set at the model's size, spread evenly over it, or over some of its places."""
    places = list(range(len(dataset))) if indices is None else indices
    return [fit_frame(dataset[places[i]].image, preprocess) for i in spread(len(places), TIMING_FRAMES)]


def take_turns(
    files: Mapping[Key, Timed],
    frames: Sequence[Image],
    threads: int = 0,
    seconds: float = SECONDS,
) -> dict[Key, Rounds]:
    """Time files on the same frames, one after another in several turns.

    All are in memory at once. The first runs of each turn are thrown away (SETTLE_MS).

    Args:
        files: What to time.
        frames: (H, W, 3) BGR uint8 at the models' size, taken in turns.
        threads: For one inference; 0 leaves it to the runtime.
        seconds: For each file.

    Raises:
        ModelError: A file does not fit, or its runtime failed.
    """
    taken: dict[Key, list[tuple[float, ...]]] = {key: [()] * ROUNDS for key in files}
    with ExitStack() as stack:
        runs = {
            key: _Run(stack.enter_context(open_session(file.path, file.backend, threads)), file.path, frames)
            for key, file in files.items()
        }
        typical = {key: run.warm_up() for key, run in runs.items()}
        turns, keys = ROUNDS * TURNS, list(files)
        for turn in range(turns):
            begin = turn % max(1, len(keys))
            for key in keys[begin:] + keys[:begin]:
                settle = math.ceil(SETTLE_MS / typical[key])
                count = math.ceil(samples_to_take(typical[key], seconds) / turns)
                taken[key][turn % ROUNDS] += runs[key].take(settle + count)[settle:]
    return {key: tuple(rounds) for key, rounds in taken.items()}


class _Run:
    """A session on its frames, in batches where it takes no single ones."""

    def __init__(self, session: InferenceSession, path: Path, frames: Sequence[Image]) -> None:
        self._session, self._frames, self._at = session, frames, 0
        # A file that takes any number is timed with the one frame of a camera.
        self._batch = 1 if session.spec.provenance.get(BATCH_KEY) == DYNAMIC else frames_per_run(path, session.spec)

    def take(self, count: int) -> tuple[float, ...]:
        if self._batch == 1:
            taken = measure(self._session, self._frames, count, self._at)
        else:
            taken = measure_batches(self._session, self._frames, self._batch, count, self._at)
        self._at += count * self._batch
        return taken.model_ms

    def warm_up(self) -> float:
        """Run a few times and return what one takes, ms."""
        return max(1e-3, sorted(self.take(WARM_UP))[WARM_UP // 2])
