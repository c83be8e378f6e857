"""`lfd-export all`: every file that this machine can make of a model, each behind its gates, and which of them to ship.

The source is scored once and timed once: files are held against its class maps, one calibration and one ranking of
layers serve all of int8, and everything is timed together at the end, in turns. A file that cannot be made does not
stop the others.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.bench.pictures import spread
from deploy.environment import Environment
from deploy.timing import Ratio
from export.bundle_advice import RUNTIMES, choose
from export.bundle_maker import Maker
from export.bundle_report import Data, Gate, Latency, Report, Source, number
from export.bundle_shelf import ENGINES, FP32, INT8, REPORT, TABLE, Shelf
from export.bundle_source import Original
from export.calibration import Frames
from export.int8_ranges import Method
from export.speed import Rounds, Timed, take_turns, timing_frames
from lfd.data import Dataset, parse_data
from lfd.errors import LfdError
from lfd.files import clear_partial, locked, to_json, write_texts

GROUP = {backend: runtime for runtime, backends in RUNTIMES.items() for backend in backends}
TimedKey = tuple[str, str]
"""A file's key, and the backend it is timed on."""


@dataclass(frozen=True)
class Wanted:
    """What to make.

    Attributes:
        out: The folder.
        data: `NAME:PATH@SPLIT` of the labelled pictures.
        max_miou_drop: Points of mIoU that a file may lose.
        method: How int8's ranges are chosen.
        pictures: At most so many are scored on; None takes all.
        threads: For one inference; 0 leaves it to the runtime.
    """

    out: Path
    data: str
    max_miou_drop: float = 1.0
    method: Method = "percentile"
    pictures: int | None = None
    threads: int = 0


def make_all(
    original: Original, data: Dataset, frames: Frames | LfdError, wanted: Wanted, say: Callable[[str], None]
) -> Report:
    """Make all there is to make; the folder then holds the report, and the files that it says are written.

    Args:
        original: What they are made of.
        data: Labelled pictures, on which it was scored.
        frames: For calibration; an error is why there are none, which only int8 needs.
        wanted: What to make.
        say: Called with a line on what is going on.

    Raises:
        UsageError: The folder is in use.
        OSError: The report cannot be written.
        KeyboardInterrupt: Ctrl-C; files that were finished stay, and the report says what is missing.
    """
    out = wanted.out
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        clear_partial(out)
        for name in (REPORT, TABLE):  # an older one never lies beside newer files
            (out / name).unlink(missing_ok=True)
        bundle = _Bundle(original, data, frames, wanted, say)
        try:
            bundle.maker.make()
            bundle.time()
        except KeyboardInterrupt:
            bundle.end(complete=False)
            done = ", ".join(f.name for f in bundle.shelf.files.values() if f.state == "written") or "nothing"
            raise KeyboardInterrupt(f"interrupted; {out} keeps {done}; {REPORT} says what is missing") from None
        except BaseException:
            bundle.end(complete=False)
            raise
        return bundle.end(complete=True)


class _Bundle:
    """A shelf, what fills it, and what is said of it."""

    def __init__(
        self,
        original: Original,
        data: Dataset,
        frames: Frames | LfdError,
        wanted: Wanted,
        say: Callable[[str], None],
    ) -> None:
        self._original, self._data, self._frames, self._wanted, self._say = original, data, frames, wanted, say
        self._load: float | None = None
        self.shelf = Shelf(wanted.out, original.stem)
        self.maker = Maker(
            self.shelf, original, data, frames, wanted.method, wanted.max_miou_drop, wanted.pictures, wanted.threads,
            say,
        )  # fmt: skip

    def time(self) -> None:
        """Time all files that hold the accuracy, and let those that are to be faster pass the gate for it."""
        entries: dict[TimedKey, Timed] = {
            (key, run.backend): Timed(self.shelf.path(key), run.backend)
            for key, file in self.shelf.files.items()
            for run in file.runs
            if run.backend is not None and run.holds and file.size is not None
        }
        self._say(f"timing {len(entries)} in turns")
        indices = spread(len(self._data), self._wanted.pictures)
        frames = timing_frames(self._data, self._original.reference.spec.preprocess, indices)
        rounds = take_turns(entries, frames, self._wanted.threads) if entries else {}
        with contextlib.suppress(OSError, AttributeError):  # a system that does not say
            self._load = os.getloadavg()[0]
        for key in self.shelf.files:
            self._take(key, rounds)
        for key in self._waiting():
            self._judge(key)

    def _take(self, key: str, rounds: dict[TimedKey, Rounds]) -> None:
        runs = []
        for run in self.shelf[key].runs:
            taken = rounds.get((key, run.backend or ""))
            if taken is not None:
                group = GROUP[run.backend or ""]
                baseline = rounds.get(("engine_fp32" if group == "trt" else FP32, RUNTIMES[group][0]))
                run = replace(run, latency=Latency.of(taken, baseline))  # noqa: PLW2901 - the same, with its latency
            runs.append(run)
        self.shelf.change(key, runs=tuple(runs))

    def _waiting(self) -> list[str]:
        """Return what lies aside and has passed all gates but the last."""
        return [k for k in (*INT8, *ENGINES) if self.shelf[k].size is not None and self.shelf[k].state == "not reached"]

    def _judge(self, key: str) -> None:
        """Place a file, unless it is in int8 and no faster than fp32."""
        file = self.shelf[key]
        latency = file.runs[0].latency
        ratio = latency.times_faster if latency is not None else None
        if file.precision == "int8":
            self.shelf.change(key, gates=(*file.gates, _speed_gate(ratio)))
            if ratio is not None and ratio.median <= 1:
                reason = f"{1 / ratio.median:.2f} times SLOWER than the fp32 file on {file.runs[0].backend}"
                self.shelf.change(key, state="refused", reason=reason)
                return
        try:
            self.shelf.place(key)
        except OSError as error:
            self.shelf.change(key, state="failed", reason=self.shelf.plain(error), size=None)

    def end(self, complete: bool) -> Report:
        """Place what was not timed any more, clear up, and write the report."""
        for key in self._waiting():
            self._judge(key)
        self.shelf.sweep()
        wanted, reference = self._wanted, self._original.reference
        files = tuple(self.shelf.files.values())
        choices, overall = choose(files, wanted.max_miou_drop)
        name, _, split = parse_data(wanted.data)
        frames = self._frames
        found = Report(
            complete=complete,
            source=Source(
                self._original.name,
                reference.spec.model,
                reference.runtime,
                reference.spec.preprocess.size_hw,
                self._original.batch,
                reference.miou,
                dict(zip(reference.spec.labels.names, map(number, reference.iou), strict=True)),
            ),
            data=Data(name, split, reference.pictures, reference.sha256),
            calibration=None
            if isinstance(frames, LfdError)
            else Data(frames.source, frames.split, len(frames), frames.sha256),
            max_miou_drop=wanted.max_miou_drop,
            runtimes=self.maker.runtimes,
            files=files,
            choices=choices,
            overall=overall,
            environment=Environment.here(wanted.threads),
            load=self._load,
        )
        write_texts({wanted.out / REPORT: to_json(found.to_dict()), wanted.out / TABLE: found.markdown()})
        return found


def _speed_gate(ratio: Ratio | None) -> Gate:
    if ratio is None:
        return Gate("speed", None, None, 1.0, "not measured: interrupted before, or there is no fp32 file beside it")
    noise = "" if ratio.decided else ", which is within the noise"
    note = f"{ratio.median:.2f} times the speed of the fp32 file on its runtime{noise}"
    return Gate("speed", ratio.median > 1, ratio.median, 1.0, note)
