"""Making the files of `lfd-export all`: each scored against the source on every runtime that is here."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deploy.backends.cuda import find_gpu, require_tensorrt
from export.build_line import BuildLine
from export.bundle_report import Gate, Run
from export.bundle_shelf import ENGINES, FP16, FP32, INT8, Shelf
from export.bundle_source import Original
from export.calibration import Frames
from export.errors import GateError
from export.fp16 import MIN_AGREEMENT_FP16, to_fp16
from export.gate import Say, gated
from export.gate_report import points
from export.int8 import Calibrated, calibrate, trained_for, with_trained_ranges
from export.int8_ranges import Method
from export.int8_rank import RANK_FRAMES, rank_layers
from export.int8_runner import DeployRunner
from export.parity import MIN_AGREEMENT, Parity, compare
from export.runnable import DYNAMIC, open_file
from export.to_trt import build_engine
from export.trt_layers import Outcome
from export.trt_options import TrtOptions
from lfd.data import Dataset
from lfd.errors import LfdError, MissingDependencyError, UsageError
from lfd.files import replacing

ENGINE_BATCHES = (1, 4, 8)
"""Of an engine, smallest, best and largest, where the file leaves the batch open."""
PACKAGES = {"ort": "onnxruntime", "openvino": "openvino", "openvino-bf16": "openvino"}
VERDICT = ("accurate", "faster", "speed_note", "ship")
"""Of a `GateReport`: here the gates of the file say it, and not all of them are behind it yet."""


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
        overwrite: Whether the folder may hold files already.
    """

    out: Path
    data: str
    max_miou_drop: float = 1.0
    method: Method = "percentile"
    pictures: int | None = None
    threads: int = 0
    overwrite: bool = False


class Maker:
    """Makes files on a shelf, one after another.

    Args:
        shelf: Where they go.
        original: What they are made of.
        data: Labelled pictures.
        frames: For calibration; an error is why there are none, which only int8 needs.
        wanted: What to make.
        say: Called with a line on what is going on.

    Attributes:
        runtimes: What could be run here, and for the rest why not.
        gpus: Names of the cards that engines were built on.
    """

    def __init__(
        self, shelf: Shelf, original: Original, data: Dataset, frames: Frames | LfdError, wanted: Wanted, say: Say
    ) -> None:
        self._shelf, self._original, self._data, self._frames = shelf, original, data, frames
        self._wanted, self._say = wanted, say
        self._calibration: Calibrated | LfdError | None = None
        self.runtimes: dict[str, str] = {}
        self.gpus: tuple[str, ...] = ()

    def make(self) -> None:
        """Make all there is to make; what cannot be made says so on the shelf, and does not stop the others."""
        self._attempt(FP32, self._fp32)
        if self._shelf[FP32].state != "written":
            for key in list(self._shelf.files)[1:]:
                self._shelf.change(key, reason="there is no fp32 file to make it of")
            return
        self._attempt(FP16, self._fp16)
        for key in INT8:
            self._attempt(key, functools.partial(self._int8, key))
        for key in ENGINES:
            self._attempt(key, functools.partial(self._engine, key))

    def _attempt(self, key: str, make: Callable[[], None]) -> None:
        name = self._shelf[key].name
        self._say(name)
        try:
            make()
        except GateError as error:
            self._shelf.change(key, state="refused", reason=self._shelf.plain(error), search=_tried(error.report))
        except (LfdError, OSError) as error:
            self._shelf.change(key, state="failed", reason=self._shelf.plain(error))
        file = self._shelf[key]
        if file.state in ("refused", "failed"):
            self._say(f"  {file.state}: {file.reason}")
        elif file.state == "elsewhere":
            self._say(f"  not here: {file.command}")

    # --- what a file is worth -----------------------------------------------------------------------------------------

    def _score(self, key: str, backend: str) -> tuple[Parity, Run]:
        """Hold a file on a runtime against the source."""
        wanted = self._wanted
        with open_file(self._shelf.path(key), backend, wanted.threads) as model:
            parity = compare(self._original.reference, model, self._data, wanted.pictures, required=0.0)
            return parity, self._run(backend, model.runtime, parity)

    def _run(self, backend: str | None, runtime: str, parity: Parity) -> Run:
        if backend is not None:
            self.runtimes[backend] = runtime.rpartition(",")[0]
        return Run.of(backend, runtime, parity, self._original.reference.spec.labels, self._wanted.max_miou_drop)

    def _others(self, key: str, *backends: str) -> Iterator[Run]:
        """Yield a file's runs on further runtimes, as far as they are here and take it."""
        for backend in backends:
            if self.runtimes.get(backend, "").startswith("not"):
                continue
            if find_spec(PACKAGES[backend]) is None:
                self.runtimes[backend] = f"not here: pip install 'lfd-toolkit[{PACKAGES[backend]}]'"
                continue
            try:
                yield self._score(key, backend)[1]
            except (UsageError, MissingDependencyError) as error:  # a processor without bf16
                self.runtimes[backend] = f"not here: {self._shelf.plain(error)}"
            except LfdError as error:  # no reason to throw away a file that others run
                fails_on = {**self._shelf[key].fails_on, backend: self._shelf.plain(error)}
                self._shelf.change(key, fails_on=fails_on)

    def _accuracy(self, run: Run) -> Gate:
        allowed = self._wanted.max_miou_drop
        note = f"{points(run.miou_lost)} points of mIoU lost, {allowed:g} allowed"
        return Gate("accuracy", run.holds, run.miou_lost, allowed, note)

    def _parity(self, parity: Parity, required: float) -> Gate:
        note = f"{parity.agreement:.4%} of pixels as the source, {required:.2%} required; worst {parity.worst[1]}"
        return Gate("parity", parity.agreement >= required, parity.agreement, required, note)

    def _pass(self, key: str, *gates: Gate) -> None:
        """Note a file's gates, and refuse it at the first that does not hold."""
        self._shelf.change(key, gates=gates)
        for gate in gates:
            if gate.passed is False:
                raise GateError(gate.note)
        self._shelf.weigh(key)

    # --- the files ----------------------------------------------------------------------------------------------------

    def _fp32(self) -> None:
        with replacing(self._shelf.path(FP32)) as aside:
            self._original.write(aside)
        parity, run = self._score(FP32, "ort")
        self._shelf.change(FP32, runs=(run,))
        self._pass(FP32, self._parity(parity, MIN_AGREEMENT))
        self._shelf.place(FP32)
        self._shelf.change(FP32, runs=(run, *self._others(FP32, "openvino", "openvino-bf16")))

    def _fp16(self) -> None:
        kept = to_fp16(self._shelf.path(FP32), self._shelf.path(FP16))
        parity, run = self._score(FP16, "ort")
        self._shelf.change(FP16, runs=(run,), kept_float=tuple(kept))
        self._pass(FP16, self._parity(parity, MIN_AGREEMENT_FP16), self._accuracy(run))
        self._shelf.place(FP16)
        self._shelf.change(FP16, runs=(run, *self._others(FP16, "openvino")))

    def _int8(self, key: str) -> None:
        target, wanted, source = INT8[key], self._wanted, self._shelf.path(FP32)
        trained = trained_for(source) == target
        if target != "trt" and find_spec(PACKAGES[target]) is None:
            line = ["lfd-export", "int8", source.name, "-o", self._shelf[key].name, "--target", target]
            self._shelf.change(
                key,
                state="elsewhere",
                reason=f"{target} is not installed; its int8 is scored and timed on it. Fix: pip install "
                f"'lfd-toolkit[{target}]'",
                command=f"{shlex.join(line)} {'--data' if trained else '--calib'} NAME:PATH",
            )
            return
        runner = DeployRunner(source, self._data, target, wanted.pictures, wanted.threads, self._original.reference)
        found = gated(
            with_trained_ranges(source, target) if trained else self._calibrated(), source, self._shelf.path(key),
            target, runner, wanted.max_miou_drop, speed=False, say=lambda line: self._say(f"  {line}"),
            rank=lambda: self._ranking,
        )  # fmt: skip
        run = self._run(None if target == "trt" else target, runner.runtime, runner.scored())
        self._shelf.change(key, runs=(run,), kept_float=found.quantised.kept_float, search=_tried(found.to_dict()))
        self._pass(key, self._accuracy(run))
        if target == "trt":  # how fast it is only an engine tells
            self._shelf.place(key)
        elif target == "openvino":  # what is not int8 in it may be bf16
            self._shelf.change(key, runs=(run, *self._others(key, "openvino-bf16")))

    def _calibrated(self) -> Calibrated:
        """Return the network with its ranges, measured once for all targets.

        Raises:
            LfdError: There are no frames, or it cannot be calibrated; the same each time.
        """
        if self._calibration is None:
            try:
                if isinstance(self._frames, LfdError):
                    raise self._frames
                method = self._wanted.method
                self._say(f"  calibrating on {len(self._frames)} frames, {method}")
                self._calibration = calibrate(self._shelf.path(FP32), self._frames, method)
            except LfdError as error:
                self._calibration = error
        if isinstance(self._calibration, LfdError):
            raise self._calibration
        return self._calibration

    @functools.cached_property
    def _ranking(self) -> Mapping[str, float]:
        calibrated = self._calibrated()
        return rank_layers(calibrated, calibrated.frames.some(RANK_FRAMES))

    def _engine(self, key: str) -> None:
        source = ENGINES[key]
        if self._shelf[source].state != "written":
            self._shelf.change(key, reason=f"there is no {self._shelf[source].name} to build it from")
            return
        batches = ENGINE_BATCHES if self._original.batch == DYNAMIC else None
        try:
            self.gpus = (find_gpu(require_tensorrt()).name,)
        except MissingDependencyError as error:
            line = ["lfd-export", "trt", self._shelf[source].name, "-o", self._shelf[key].name]
            line += ["--batch", ":".join(map(str, batches))] if batches else []
            reason = self._shelf.plain(error)
            self._shelf.change(key, state="elsewhere", reason=reason, command=shlex.join(line))
            self.runtimes["trt"] = f"not here: {reason}"
            return
        progress = BuildLine()
        try:
            built = build_engine(self._shelf.path(source), self._shelf.path(key), TrtOptions(batch=batches), progress)
        finally:
            progress.end()
        _, run = self._score(key, "trt")
        self._shelf.change(key, runs=(run,))
        self._pass(key, _precision(built.outcome), self._accuracy(run))


def _precision(outcome: Outcome | None) -> Gate:
    """Describe what was read back of an engine; one in which nothing runs as asked was never written."""
    if outcome is None:
        return Gate("precision", None, None, None, "not read back")
    return Gate("precision", True, len(outcome.differing), None, str(outcome))


def _tried(report: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return None if report is None else {key: value for key, value in report.items() if key not in VERDICT}
