"""One model in a process of its own, measured when told: both ends of the pipe.

A fresh process for each model makes its memory its own; processes that live through the whole
benchmark and take turns see the same state of the machine. `python -m deploy.bench.probe` is the child
for model files, another module's for checkpoints; `Probe` is the parent's handle.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

import lfd.errors
from deploy.bench.loops import measure, measure_batches, measure_stream, warm_up
from deploy.bench.memory import memory_mb
from deploy.bench.models import is_checkpoint
from deploy.bench.pipe import receive, send
from deploy.session import ENGINES, InferenceSession, choose_backend, class_map, open_session
from lfd.errors import LfdError, ModelError
from lfd.preprocess import Image
from lfd.spec import ModelSpec

ROOT = Path(__file__).resolve().parents[2]
RUNTIMES = {
    **dict.fromkeys(("ort", "ort-cuda", "ort-trt"), "onnxruntime"),
    **dict.fromkeys(("openvino", "openvino-bf16"), "openvino"),
    "trt": "tensorrt",
}
"""Of each backend, imported before the baseline is taken: the runtime's own code is not the model's memory."""
PATIENCE_S = 600.0
"""How long a process may take beyond what is expected of it, such as to load a model; then it hangs."""
CHECKPOINT_PROBE = "export.torch_probe"
"""Measures a checkpoint. It is started by name, and only for one: nothing here may import torch."""


class Request(NamedTuple):
    """How a model is to be loaded.

    Attributes:
        path: Its file.
        backend: A name in `deploy.session.BACKENDS`, for an .onnx file; None is its own.
        threads: For one inference; 0 is the runtime's choice.
        size_hw: Input size; None is the model's own.
    """

    path: Path
    backend: str | None
    threads: int
    size_hw: tuple[int, int] | None


Prepare = Callable[[Request], Callable[[], InferenceSession]]
"""Imports what runs a model, and returns a function that loads it."""
Describe = Callable[[InferenceSession], ModelSpec]
"""Returns a loaded model's specification; called after the clock has stopped, so that it may count parameters."""


def prepare_file(request: Request) -> Callable[[], InferenceSession]:
    """Prepare for an .onnx file or an engine.

    Raises:
        ModelError: No such file, or a runtime that does not take it.
    """
    # An engine has one runtime; the backend asked for is that of the .onnx files beside it.
    backend = choose_backend(request.path, None if request.path.suffix in ENGINES else request.backend)
    with contextlib.suppress(ImportError):  # what is missing is said when the model is loaded
        importlib.import_module(RUNTIMES.get(backend, "numpy"))

    def load() -> InferenceSession:
        session = open_session(request.path, backend, request.threads)
        if request.size_hw not in (None, session.spec.preprocess.size_hw):
            own, asked = ("{}x{}".format(*size) for size in (session.spec.preprocess.size_hw, request.size_hw or ()))
            session.close()
            raise ModelError(
                f"{request.path}: its input is {own} and no other size. Fix: lfd-export onnx --size {asked}, or sweep "
                "over the checkpoint"
            )
        return session

    return load


class ProcessEndedError(ModelError):
    """A measuring process is there no more."""


class _Child:
    """The commands a measuring process obeys; each takes the message and its pictures."""

    def __init__(self, prepare: Prepare = prepare_file, describe: Describe = attrgetter("spec")) -> None:
        self.session: InferenceSession
        self.frames: list[Image] = []
        self.position = 0
        self._prepare, self._describe = prepare, describe

    def load(self, message: dict[str, Any], pictures: list[Image]) -> dict[str, Any]:
        self.frames = pictures
        size = message["size_hw"]
        request = Request(
            Path(message["path"]), message["backend"], message["threads"], (size[0], size[1]) if size else None
        )
        load = self._prepare(request)
        baseline_mb, _ = memory_mb()
        begin = time.perf_counter_ns()
        self.session = load()
        loaded = time.perf_counter_ns()
        first = measure(self.session, self.frames, 1)
        return {
            "spec": self._describe(self.session).to_json(),
            "build": asdict(self.session.build),
            "load_ms": (loaded - begin) / 1e6,
            "first_ms": first.end_to_end_ms[0],
            "baseline_mb": baseline_mb,
        }

    def warm_up(self, message: dict[str, Any], _: list[Image]) -> dict[str, Any]:
        durations, settled = warm_up(self.session, self.frames, message["seconds"], message["limit_s"])
        return {"durations_ms": durations, "settled": settled}

    def measure(self, message: dict[str, Any], _: list[Image]) -> dict[str, Any]:
        # While the others had their turn the caches went cold and the threads asleep: one is thrown away.
        run = partial(measure_batches, batch=message["batch"]) if message["batch"] else measure
        run(self.session, self.frames, count=1, start=self.position)
        samples = run(self.session, self.frames, count=message["count"], start=self.position)
        self.position += message["count"] * (message["batch"] or 1)
        return asdict(samples)

    def stream(self, message: dict[str, Any], _: list[Image]) -> dict[str, Any]:
        measure(self.session, self.frames, 1)
        found = measure_stream(self.session, self.frames, message["fps"], message["seconds"])
        return {**asdict(found.samples), "wait_ms": found.wait_ms, "unserved": found.unserved}

    def memory(self, _: dict[str, Any], __: list[Image]) -> dict[str, Any]:
        return {"peak_mb": memory_mb()[1]}

    def predict(self, _: dict[str, Any], pictures: list[Image]) -> list[Image]:
        return [class_map(self.session, picture) for picture in pictures]


def serve(incoming: IO[bytes], outgoing: IO[bytes], child: _Child) -> None:
    """Obey messages until the other end closes the pipe."""
    commands: dict[str, Callable[[dict[str, Any], list[Image]], Any]] = {
        "load": child.load,
        "warm_up": child.warm_up,
        "measure": child.measure,
        "stream": child.stream,
        "memory": child.memory,
        "predict": child.predict,
    }
    while True:
        try:
            message, pictures = receive(incoming)
        except EOFError:
            return
        try:
            result = commands[message["op"]](message, pictures)
        except LfdError as error:
            send(outgoing, {"error": str(error), "kind": type(error).__name__})
        except MemoryError:
            send(outgoing, {"error": "does not fit into this machine's memory", "kind": "ModelError"})
        else:
            send(outgoing, *(({}, result) if isinstance(result, list) else (result,)))


class Probe:
    """A model in a measuring process; a context manager that ends the process.

    Args:
        path: The model: a file, or a run directory.
        module: What is run as the child; by default this one, or CHECKPOINT_PROBE for a checkpoint.
    """

    def __init__(self, path: Path, module: str | None = None) -> None:
        self._path = path
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        # From ROOT, `-m` finds this very package, and not a folder `deploy` where the user stands. A session
        # of its own: Ctrl-C reaches the parent, which ends the child; a dead parent closes the pipe.
        self._process = subprocess.Popen(
            [sys.executable, "-m", module or (CHECKPOINT_PROBE if is_checkpoint(path) else "deploy.bench.probe")],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,
        )

    def ask(
        self, op: str, pictures: Sequence[Image] = (), expected_s: float = 0, **message: Any
    ) -> tuple[dict[str, Any], list[Image]]:
        """Send a command and wait for its result, PATIENCE_S longer than `expected_s` at most.

        Raises:
            LfdError: What the child raised, of the same class; ProcessEndedError when it died or hung.
        """
        limit_s = expected_s + PATIENCE_S
        hung = threading.Event()

        def give_up() -> None:
            hung.set()
            self._process.kill()  # the reader below wakes up from its end

        watchdog = threading.Timer(limit_s, give_up)
        watchdog.daemon = True
        watchdog.start()
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None  # noqa: S101 - both are PIPE
        try:
            send(stdin, {"op": op, **message}, pictures)
            reply, returned = receive(stdout)
        except (EOFError, BrokenPipeError) as error:
            if hung.is_set():
                raise ProcessEndedError(f"{self._path}: gave no answer to {op} in {limit_s:.0f} s") from error
            raise ProcessEndedError(self._obituary(op)) from error
        finally:
            watchdog.cancel()
        if "error" in reply:
            kind = getattr(lfd.errors, reply["kind"], LfdError)
            raise kind(reply["error"].replace(str(self._path.resolve()), str(self._path)))
        return reply, returned

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def load(
        self,
        frames: Sequence[Image],
        threads: int,
        backend: str | None = None,
        size_hw: tuple[int, int] | None = None,
    ) -> dict[str, Any]:
        """Load the model and run it once; the frames for the measurements go with it. See `Request`."""
        path = str(self._path.resolve())
        return self.ask("load", frames, path=path, threads=threads, backend=backend, size_hw=size_hw)[0]

    def predict(self, image: Image) -> Image:
        """Return the class map of a frame that has the model's size."""
        return self.ask("predict", [image])[1][0]

    def _obituary(self, op: str) -> str:
        code = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read()[-4000:].decode(errors="replace").strip().splitlines()
        how = f"killed by signal {-code}; out of memory?" if code < 0 else f"exit code {code}"
        return f"{self._path}: its measuring process ended during {op} ({how}){': ' + lines[-1] if lines else ''}"

    def close(self) -> None:
        """End the process; it holds nothing worth saving. May be called twice."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            with contextlib.suppress(OSError):  # what was not yet sent cannot be flushed
                pipe.close()  # type: ignore[union-attr]

    def __enter__(self) -> Probe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def main(prepare: Prepare = prepare_file, describe: Describe = attrgetter("spec")) -> None:
    """Serve on stdin and stdout; what libraries print goes to stderr instead."""
    outgoing = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        serve(sys.stdin.buffer, outgoing, _Child(prepare, describe))
    except BrokenPipeError:
        os._exit(0)  # the parent has gone
    except Exception:
        traceback.print_exc()
        sys.exit(1)


if __name__ == "__main__":
    main()
