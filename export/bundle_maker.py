"""Making the files of `lfd-export all`: each scored against the source on every runtime that is here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from deploy.backends.cuda import find_gpu, require_tensorrt
from export.build_line import BuildLine
from export.bundle_report import Gate, Run
from export.bundle_shelf import ENGINES, FP16, FP32, INT8, Shelf
from export.bundle_source import Original
from export.calibration import Frames
from export.errors import GateError
from export.fp16 import MIN_AGREEMENT_FP16, checked_fp16
from export.gate import Say, gated
from export.int8 import Calibrated, calibrate
from export.int8_ranges import Method
from export.int8_rank import RANK_FRAMES, rank_layers
from export.int8_runner import DeployRunner
from export.parity import MIN_AGREEMENT, Parity, compare
from export.runnable import DYNAMIC, open_file
from export.to_trt import build_engine
from export.trt_options import TrtOptions
from lfd.data import Dataset
from lfd.errors import LfdError, MissingDependencyError, UsageError

ENGINE_BATCHES = (1, 4, 8)
"""Of an engine, smallest, best and largest, where the file leaves the batch open."""
PACKAGES = {"ort": "onnxruntime", "openvino": "openvino", "openvino-bf16": "openvino"}


class Maker:
    """Makes files on a shelf, one after another.

    Args:
        shelf: Where they go.
        original: What they are made of.
        data: Labelled pictures.
        frames: For calibration; an error is why there are none, which only int8 needs.
        method: How int8's ranges are chosen.
        max_miou_drop: Points of mIoU that a file may lose.
        pictures: At most so many are scored on; None takes all.
        threads: For one inference; 0 leaves it to the runtime.
        say: Called with a line on what is going on.

    Attributes:
        runtimes: What could be run here, and for the rest why not.
    """

    def __init__(
        self,
        shelf: Shelf,
        original: Original,
        data: Dataset,
        frames: Frames | LfdError,
        method: Method,
        max_miou_drop: float,
        pictures: int | None,
        threads: int,
        say: Say,
    ) -> None:
        self._shelf, self._original, self._data, self._frames = shelf, original, data, frames
        self._method, self._max_miou_drop, self._pictures, self._threads = method, max_miou_drop, pictures, threads
        self._say = say
        self._calibration: Calibrated | LfdError | None = None
        self._labels = original.reference.spec.labels
        self.runtimes: dict[str, str] = {}

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
            self._shelf.change(key, state="refused", reason=self._shelf.plain(error), search=error.report)
        except (LfdError, OSError) as error:
            self._shelf.change(key, state="failed", reason=self._shelf.plain(error))
        file = self._shelf[key]
        if file.state in ("refused", "failed"):
            self._say(f"  {file.state}: {file.reason}")
        elif file.state == "elsewhere":
            self._say(f"  not here: {file.command}")

    # --- what a file is worth -----------------------------------------------------------------------------------------

    def _score(self, path: Path, backend: str) -> tuple[Parity, Run]:
        """Hold a file on a runtime against the source."""
        with open_file(path, backend, self._threads) as model:
            parity = compare(self._original.reference, model, self._data, self._pictures, required=0.0)
            self.runtimes[backend] = model.runtime.rpartition(",")[0]
            return parity, Run.of(backend, model.runtime, parity, self._labels, self._max_miou_drop)

    def _others(self, key: str, backends: tuple[str, ...]) -> Iterator[Run]:
        """Yield a file's runs on further runtimes, as far as they are here."""
        for backend in backends:
            if self.runtimes.get(backend, "").startswith("not"):
                continue
            if find_spec(PACKAGES[backend]) is None:
                self.runtimes[backend] = f"not here: pip install 'lfd-toolkit[{PACKAGES[backend]}]'"
                continue
            try:
                yield self._score(self._shelf.path(key), backend)[1]
            except UsageError as error:  # a processor without bf16
                self.runtimes[backend] = f"not here: {error}"

    def _accuracy(self, parity: Parity) -> Gate:
        lost = round(-100 * parity.miou_delta, 9)
        note = f"{lost:.2f} points of mIoU lost, {self._max_miou_drop:g} allowed"
        return Gate("accuracy", lost <= self._max_miou_drop, lost, self._max_miou_drop, note)

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
        path = self._shelf.path(FP32)
        self._original.write(path)
        parity, run = self._score(path, "ort")
        self._shelf.change(FP32, runs=(run,))
        self._pass(FP32, self._parity(parity, MIN_AGREEMENT))
        self._shelf.place(FP32)
        self._shelf.change(FP32, runs=(run, *self._others(FP32, ("openvino", "openvino-bf16"))))

    def _fp16(self) -> None:
        path = self._shelf.path(FP16)
        kept, parity = checked_fp16(
            self._shelf.path(FP32), path, self._data, self._pictures, 0.0, self._original.reference, self._threads
        )
        run = Run.of("ort", f"{self.runtimes['ort']}, fp16", parity, self._labels, self._max_miou_drop)
        self._shelf.change(FP16, runs=(run,), kept_float=tuple(kept))
        self._pass(FP16, self._parity(parity, MIN_AGREEMENT_FP16), self._accuracy(parity))
        self._shelf.place(FP16)
        self._shelf.change(FP16, runs=(run, *self._others(FP16, ("openvino",))))

    def _int8(self, key: str) -> None:
        target = INT8[key]
        if target != "trt" and find_spec(PACKAGES[target]) is None:
            self._shelf.change(
                key,
                state="elsewhere",
                reason=f"{target} is not installed here, and its int8 is scored and timed on it",
                command=f"pip install 'lfd-toolkit[{target}]'",
            )
            return
        runner = DeployRunner(
            self._shelf.path(FP32), self._data, target, self._pictures, self._threads, self._original.reference
        )
        found = gated(
            self._calibrated(), self._shelf.path(FP32), self._shelf.path(key), target, runner, self._max_miou_drop,
            speed=False, say=lambda line: self._say(f"  {line}"), rank=self._ranking,
        )  # fmt: skip
        parity = runner.scored()
        backend = None if target == "trt" else target
        run = Run.of(backend, runner.runtime, parity, self._labels, self._max_miou_drop)
        self._shelf.change(key, runs=(run,), kept_float=found.quantised.kept_float, search=found.to_dict())
        self._pass(key, self._accuracy(parity))
        if target == "trt":  # how fast it is only an engine tells
            self._shelf.place(key)

    def _calibrated(self) -> Calibrated:
        """Return the network with its ranges, measured once for all targets.

        Raises:
            LfdError: There are no frames, or it cannot be calibrated; the same each time.
        """
        if self._calibration is None:
            try:
                if isinstance(self._frames, LfdError):
                    raise self._frames
                self._say(f"  calibrating on {len(self._frames)} frames, {self._method}")
                self._calibration = calibrate(self._shelf.path(FP32), self._frames, self._method)
            except LfdError as error:
                self._calibration = error
        if isinstance(self._calibration, LfdError):
            raise self._calibration
        return self._calibration

    @functools.cached_property
    def _ranks(self) -> Mapping[str, float]:
        calibrated = self._calibrated()
        return rank_layers(calibrated, calibrated.frames.some(RANK_FRAMES))

    def _ranking(self) -> Mapping[str, float]:
        return self._ranks

    def _engine(self, key: str) -> None:
        source = ENGINES[key]
        if self._shelf[source].state != "written":
            self._shelf.change(key, reason=f"there is no {self._shelf[source].name} to build it from")
            return
        batches = ENGINE_BATCHES if self._original.batch == DYNAMIC else None
        try:
            find_gpu(require_tensorrt())
        except MissingDependencyError as error:
            ranged = f" --batch {':'.join(map(str, batches))}" if batches else ""
            command = f"lfd-export trt {self._shelf[source].name} -o {self._shelf[key].name}{ranged}"
            self._shelf.change(key, state="elsewhere", reason=self._shelf.plain(error), command=command)
            self.runtimes["trt"] = f"not here: {error}"
            return
        line = BuildLine()
        try:
            built = build_engine(self._shelf.path(source), self._shelf.path(key), TrtOptions(batch=batches), line)
        finally:
            line.end()
        parity, run = self._score(self._shelf.path(key), "trt")
        self._shelf.change(key, runs=(run,))
        self._pass(key, Gate("precision", True, None, None, str(built.outcome)), self._accuracy(parity))
