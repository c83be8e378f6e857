"""`lfd-export all`: every file that this machine can make of a model, each behind its gates, and which of them to ship.

The source is scored once and timed once: files are held against its class maps, one calibration and one ranking of
layers serve all of int8, and everything is timed together at the end, in turns. A file that cannot be made does not
stop the others.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace

from deploy.bench.pictures import spread
from deploy.bench.signals import stoppable
from deploy.environment import Environment
from deploy.timing import Ratio
from export.bundle_advice import RUNTIMES, choose
from export.bundle_maker import Maker, Wanted
from export.bundle_report import Data, Gate, Latency, Report, Run, Source
from export.bundle_shelf import ENGINES, FP32, INT8, REPORT, TABLE, Shelf, check_empty
from export.bundle_source import Original
from export.bundle_table import markdown
from export.calibration import Frames
from export.parity import number
from export.speed import Rounds, Timed, take_turns, timing_frames
from lfd.data import Dataset, parse_data
from lfd.errors import LfdError
from lfd.files import clear_partial, locked, to_json, write_texts

TimedKey = tuple[str, str]
"""A file's key, and the backend it is timed on."""
BASELINES: dict[str, TimedKey] = {
    backend: ("engine_fp32" if runtime == "trt" else FP32, backends[0])
    for runtime, backends in RUNTIMES.items()
    for backend in backends
}
"""A backend to what is fp32 on the same runtime."""


def make_all(
    original: Original, data: Dataset, frames: Frames | LfdError, wanted: Wanted, say: Callable[[str], None]
) -> Report:
    """Make all there is to make; the folder then holds the report, and the files that it says are written.

    Where not even the fp32 file can be made, the folder of an earlier run stays as it was.
    A signal keeps what is finished; a second Ctrl-C gives up its report, too.

    Args:
        original: What they are made of.
        data: Labelled pictures, on which it was scored.
        frames: For calibration; an error is why there are none, which only int8 needs.
        wanted: What to make.
        say: Called with a line on what is going on.

    Raises:
        UsageError: The folder is in use, or holds something that may not be replaced.
        DataError: A picture cannot be read any more.
        ModelError: A runtime failed while it was timed.
        OSError: The report cannot be written; its table was said.
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP; files that were finished stay, and the report says what is
            missing.
    """
    out = wanted.out
    out.mkdir(parents=True, exist_ok=True)
    with locked(out), stoppable() as stop:
        check_empty(out, wanted.overwrite)  # again: another process may have been quicker
        clear_partial(out)
        bundle = _Bundle(original, data, frames, wanted, say)
        try:
            bundle.maker.make()
            bundle.time()
        except BaseException as error:
            with stop.held():
                report = bundle.end(complete=False)
            if not isinstance(error, KeyboardInterrupt):
                raise
            done = ", ".join(file.name for file in report.files if file.state == "written") or "nothing new"
            raise KeyboardInterrupt(f"interrupted; {out} keeps {done}; {REPORT} says what it has") from None
        else:
            with stop.held():
                return bundle.end(complete=True)
        finally:
            bundle.shelf.discard()  # of a second Ctrl-C, too


class _Bundle:
    """A shelf, what fills it, and what is said of it."""

    def __init__(
        self, original: Original, data: Dataset, frames: Frames | LfdError, wanted: Wanted, say: Callable[[str], None]
    ) -> None:
        self._original, self._data, self._frames, self._wanted, self._say = original, data, frames, wanted, say
        self._load: float | None = None
        self.shelf = Shelf(wanted.out, original.stem)
        self.maker = Maker(self.shelf, original, data, frames, wanted, say)

    def time(self) -> None:
        """Time all files that hold the accuracy, and let those that are to be faster pass the gate for it."""
        entries: dict[TimedKey, Timed] = {
            (key, run.backend): Timed(self.shelf.path(key), run.backend)
            for key, file in self.shelf.files.items()
            for run in file.runs
            # What others are held against is timed whatever it loses.
            if run.backend is not None
            and file.size is not None
            and (run.holds or (key, run.backend) in BASELINES.values())
        }
        if not entries:
            return
        self._say(f"timing {len(entries)} in turns")
        indices = spread(len(self._data), self._wanted.pictures)
        frames = timing_frames(self._data, self._original.reference.spec.preprocess, indices)
        rounds = take_turns(entries, frames, self._wanted.threads)
        with contextlib.suppress(OSError, AttributeError):  # a system that does not say
            self._load = os.getloadavg()[0]
        for key, file in self.shelf.files.items():
            self.shelf.change(key, runs=tuple(_timed(key, run, rounds) for run in file.runs))
        for key in self._waiting():
            self._judge(key)

    def _waiting(self) -> list[str]:
        """Return what lies aside and has passed all gates but the last."""
        return [k for k in (*INT8, *ENGINES) if self.shelf[k].size is not None and self.shelf[k].state == "not reached"]

    def _judge(self, key: str) -> None:
        """Place a file, unless it is in int8 and no faster than fp32."""
        file = self.shelf[key]
        if file.precision == "int8":
            run = file.runs[0]
            ratio = run.latency.times_faster if run.latency is not None else None
            gate = _speed_gate(ratio)
            # Without one of a judgement that was interrupted.
            self.shelf.change(key, gates=(*(g for g in file.gates if g.name != gate.name), gate))
            if ratio is not None and not gate.passed:
                slower = f"{1 / ratio.median:.2f} times SLOWER than" if ratio.decided else "no faster than"
                reason = f"{slower} the fp32 file on {run.backend}"
                self.shelf.change(key, state="refused", reason=reason)
                return
        try:
            self.shelf.place(key)
        except OSError as error:
            self.shelf.change(key, state="failed", reason=self.shelf.plain(error), size=None, sha256=None)

    def end(self, complete: bool) -> Report:
        """Place what has passed all its gates, clear up, and write the report."""
        for key in self._waiting():
            if complete or self.shelf[key].precision != "int8":
                self._judge(key)
            else:
                self.shelf.change(key, reason="its speed was not measured", size=None, sha256=None)
        earlier = (self._wanted.out / REPORT).exists()  # nothing was placed since, and nothing goes
        if not earlier:
            self.shelf.sweep(complete)
        wanted, reference = self._wanted, self._original.reference
        files = tuple(self.shelf.files.values())
        choices, overall = choose(files, wanted.max_miou_drop, self._original.batch)
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
            environment=Environment.here(wanted.threads, self.maker.gpus),
            load=self._load,
        )
        if earlier:
            return found
        table = markdown(found)
        try:
            # The last one gets its name first: should a second Ctrl-C come in between, the record is there.
            write_texts({wanted.out / TABLE: table, wanted.out / REPORT: to_json(found.to_dict())})
        except OSError:  # a full disk: what was found out in an hour is not lost with it
            self._say(table)
            raise
        return found


def _timed(key: str, run: Run, rounds: Mapping[TimedKey, Rounds]) -> Run:
    """Return a run with its latency, where it was measured."""
    if run.backend is None or (key, run.backend) not in rounds:
        return run
    return replace(run, latency=Latency.of(rounds[key, run.backend], rounds.get(BASELINES[run.backend])))


def _speed_gate(ratio: Ratio | None) -> Gate:
    if ratio is None:
        return Gate("speed", None, None, 1.0, "not measured: there is no fp32 file beside it")
    noise = "" if ratio.decided else ", which is within the noise"
    note = f"{ratio.median:.2f} times the speed of the fp32 file on its runtime{noise}"
    return Gate("speed", ratio.median > 1, ratio.median, 1.0, note)
