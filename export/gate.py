"""INT8 behind a gate: it may cost so much accuracy and no speed, or it is not written."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from export.calibration import Frames
from export.cli_inputs import check_drop
from export.errors import GateError
from export.fp16 import load_source, save_checked
from export.gate_report import GateReport, Step, points
from export.int8 import Calibrated, Target, build, calibrate, report
from export.int8_ranges import Method
from export.int8_rank import RANK_FRAMES, rank_layers
from export.int8_runner import DeployRunner
from lfd.data import Dataset
from lfd.errors import DataError
from lfd.files import replacing

MAX_MIOU_DROP = 1.0
SINGLE_STEPS = 4
"""So many layers are put back one by one; from then on each step puts back twice as many as the one before."""

Say = Callable[[str], None]


class Runner(Protocol):
    """Scores and times files as deployed, beside the source they were made of."""

    def source_miou(self) -> float:
        """Return the mean IoU of the source, in [0, 1]."""
        ...

    def miou(self, path: Path) -> float:
        """Return the mean IoU in [0, 1]."""
        ...

    def latency_ms(self, path: Path) -> tuple[float, float] | None:
        """Return the median of the source and of a file, taken in turns; None where the target does not run here."""
        ...


def gated_int8(
    source: Path,
    out: Path,
    frames: Frames,
    target: Target,
    method: Method,
    evaluation: Dataset,
    max_miou_drop: float = MAX_MIOU_DROP,
    speed: bool = True,
    runner: Runner | None = None,
    say: Say | None = None,
) -> GateReport:
    """Quantise, score source and result as deployed, and write the result when it keeps to the gates.

    When it loses too much, layers are ranked by what int8 does to the logits, and the worst are put back to float until
    it holds: four one by one, then 2, 4, 8, ... at a time, so that a large network takes ten steps.

    Args:
        source: An fp32 ONNX file of ours.
        out: The file to write.
        frames: For calibration.
        target: Who is to run it.
        method: How ranges are chosen.
        evaluation: Labelled set.
        max_miou_drop: Points of mIoU that it may lose.
        speed: Whether it must be faster than its source, where the target runs here. What layers in float cost is
            measured in any case.
        runner: Scores and times; a DeployRunner by default.
        say: Called with a line on what is going on.

    Returns:
        What was done. It is false when the file is no faster than its source: then it was not written, and `ship`
        names the source.

    Raises:
        UsageError: `max_miou_drop` is negative or no number.
        DataError: The labelled set has no labelled pixel, or a picture cannot be read.
        ModelError: The source or the labels do not fit.
        GateError: Not even the last layer in int8 keeps to the accuracy.
        OSError: The result cannot be written.
    """
    check_drop(max_miou_drop)
    load_source(source)
    runner = runner or DeployRunner(source, evaluation, target)
    say = say or (lambda line: None)
    _check_miou(runner.source_miou())  # before minutes of calibration
    say(f"calibrating on {len(frames)} frames, {method}")
    return gated(calibrate(source, frames, method), source, out, target, runner, max_miou_drop, speed, say)


def gated(
    calibrated: Calibrated,
    source: Path,
    out: Path,
    target: Target,
    runner: Runner,
    max_miou_drop: float = MAX_MIOU_DROP,
    speed: bool = True,
    say: Say = lambda line: None,
    rank: Callable[[], Mapping[str, float]] | None = None,
) -> GateReport:
    """Do as `gated_int8` with a network that is calibrated already; one calibration serves all targets.

    Args:
        calibrated: Made of the source.
        source: See `gated_int8`, as for all others.
        out: See there.
        target: See there.
        runner: See there.
        max_miou_drop: See there.
        speed: See there.
        say: See there.
        rank: Returns what `rank_layers` does, which does not depend on the target either.
    """
    check_drop(max_miou_drop)
    source_miou = runner.source_miou()
    _check_miou(source_miou)
    with tempfile.TemporaryDirectory(prefix="lfd-gate-") as folder:
        rank = rank or (lambda: rank_layers(calibrated, calibrated.frames.some(RANK_FRAMES)))
        search = _Search(calibrated, target, runner, source_miou, Path(folder) / "int8.onnx", speed, say, rank)
        accurate = True
        while accurate and search.steps[-1].drop > max_miou_drop:
            accurate = search.put_back(max_miou_drop)
        faster, note = _speed(search.steps[-1], target, speed)
        found = GateReport(
            source.name, out.name, report(calibrated, target, search.kept), max_miou_drop, source_miou,
            tuple(search.steps), dict(search.ranking), accurate, faster, note,
            out.name if accurate and faster is not False else source.name,
        )  # fmt: skip
        if not accurate:
            best = max(found.steps, key=lambda step: step.miou)
            raise GateError(
                f"int8 loses {points(best.drop)} points of mIoU at best, with {best.kept_in_all} of "
                f"{len(found.ranking)} layers in float, and {max_miou_drop:g} are allowed; nothing was written. Fix: "
                f"ship {source.name} or its fp16, calibrate by another method or on more frames, or allow more",
                found.to_dict(),
            )
        if found:
            with replacing(out) as aside:
                shutil.copyfile(search.path, aside)
    return found


def _check_miou(miou: float) -> None:
    if math.isnan(miou):
        raise DataError("the labelled set of the gate has no labelled pixel; mIoU cannot be compared")


def _speed(step: Step, target: Target, wanted: bool) -> tuple[bool | None, str]:
    """Return whether a file is faster than its source, and a sentence on it."""
    if not wanted:
        return None, "speed not asked for"
    if step.source_ms is None or step.int8_ms is None:
        return None, f"speed not measured: {target} does not run here; measure it there before it ships"
    ratio = step.source_ms / step.int8_ms
    if ratio > 1:
        return True, f"{ratio:.2f} times faster than its source"
    slower = f"{1 / ratio:.2f}"
    return False, f"{slower} times SLOWER than its source" if slower != "1.00" else "no faster than its source"


class _Search:
    """The files tried so far. The last one lies at `path`."""

    def __init__(
        self,
        calibrated: Calibrated,
        target: Target,
        runner: Runner,
        source_miou: float,
        path: Path,
        speed: bool,
        say: Say,
        rank: Callable[[], Mapping[str, float]],
    ) -> None:
        self.calibrated, self.target, self.runner, self.rank = calibrated, target, runner, rank
        self.source_miou, self.path, self.speed, self.say = source_miou, path, speed, say
        self.kept: list[str] = []
        self.steps: list[Step] = []
        self.ranking: Mapping[str, float] = {}
        self._try(())

    def put_back(self, max_miou_drop: float) -> bool:
        """Put the next worst layers back to float and try again; return false when none is left in int8."""
        if not self.ranking:
            self.say(f"{points(self.steps[0].drop)} points lost, {max_miou_drop:g} allowed: ranking the layers")
            self.ranking = self.rank()
            if self.steps[0].int8_ms is None:
                self._time()
        number = len(self.steps)
        size = 1 if number <= SINGLE_STEPS else 2 ** (number - SINGLE_STEPS)
        left = [name for name in self.ranking if name not in self.kept]
        size = min(size, len(left) - 1)  # a file without anything in int8 is no int8 file
        if size < 1:
            return False
        self._try(left[:size])
        return True

    def _try(self, names: Sequence[str]) -> None:
        self.kept += names
        save_checked(build(self.calibrated, self.target, self.kept), self.path)
        miou = self.runner.miou(self.path)
        bought = (miou - self.steps[-1].miou) * 100 if self.steps else 0.0
        drop = round((self.source_miou - miou) * 100, 9)  # 0.60 - 0.59 is one point, and not a hair more
        self.steps.append(Step(tuple(names), len(self.kept), miou, drop, bought))
        if self.speed or self.kept:
            self._time()
        self.say(f"{len(self.kept)} layers in float: mIoU {miou:.2%}, {points(drop)} points lost")

    def _time(self) -> None:
        """Note how long the last file takes, and what it costs over the one before."""
        if (times := self.runner.latency_ms(self.path)) is None:
            return
        source_ms, int8_ms = times
        step, cost_ms = replace(self.steps[-1], source_ms=source_ms, int8_ms=int8_ms), None
        before = self.steps[-2] if len(self.steps) > 1 else None
        if before is not None and before.source_ms is not None and before.int8_ms is not None:
            # Both were measured beside the source: what slowed the machine meanwhile is no cost.
            cost_ms = int8_ms - before.int8_ms * source_ms / before.source_ms
        self.steps[-1] = replace(step, cost_ms=cost_ms)
