"""One model in a process of its own, measured when told: both ends of the pipe.

A fresh process for each model makes its memory its own; processes that live through the whole
benchmark and take turns see the same state of the machine. `python -m deploy.probe` is the child;
`Probe` is the parent's handle. Each message is one line of JSON, followed by the bytes of the
pictures whose shapes it lists.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

import lfd.errors
from deploy.session import InferenceSession, choose_backend, class_map, open_session
from deploy.timing import Samples, is_settled
from lfd.errors import LfdError, ModelError
from lfd.preprocess import Image, fit_frame, restore_map

ROOT = Path(__file__).resolve().parents[1]
RUNTIMES = {"ort": "onnxruntime", "openvino": "openvino", "openvino-bf16": "openvino"}
"""Of each backend, imported before the baseline is taken: the runtime's own code is not the model's memory."""

MIN_WARM_UPS = 3


def measure(session: InferenceSession, frames: Sequence[Image], count: int, start: int = 0) -> Samples:
    """Run one picture after another and time each stage.

    All stages are timed in one pass, so that "model alone" and "end to end" are the same runs. The
    frames are decoded before; `run` returns when the device has finished, and then the clock stops.

    Args:
        session: The model.
        frames: (H, W, 3) BGR uint8, taken in turns.
        count: How many inferences.
        start: Position in `frames` to begin at.
    """
    preprocess = session.spec.preprocess
    stamps = []
    for index in range(start, start + count):
        frame = frames[index % len(frames)]
        begin = time.perf_counter_ns()
        fitted = fit_frame(frame, preprocess)
        ready = time.perf_counter_ns()
        classes = class_map(session, fitted)
        done = time.perf_counter_ns()
        restore_map(classes, preprocess, (frame.shape[0], frame.shape[1]))
        stamps.append((begin, ready, done, time.perf_counter_ns()))
    fit, model, restore = (tuple((s[i + 1] - s[i]) / 1e6 for s in stamps) for i in range(3))
    return Samples(fit, model, restore)


def warm_up(
    session: InferenceSession, frames: Sequence[Image], seconds: float, limit_s: float
) -> tuple[list[float], bool]:
    """Run until the time is up and the rolling median has come to rest, or until the limit.

    Returns:
        The end-to-end durations in milliseconds, and whether the median came to rest.
    """
    durations: list[float] = []
    begin = time.monotonic()
    while True:
        durations += measure(session, frames, 1, len(durations)).end_to_end_ms
        spent, settled = time.monotonic() - begin, is_settled(durations)
        if len(durations) >= MIN_WARM_UPS and (spent >= limit_s or (settled and spent >= seconds)):
            return durations, settled


def _status_mb(field: str) -> float | None:
    """Return a memory figure of this process from Linux's /proc, in MB of 10^6 bytes."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024 / 1e6
    return None


def memory_mb() -> tuple[float | None, float | None]:
    """Return this process's resident memory and its peak, in MB; None where the system does not say.

    getrusage is the second choice: on Linux its ru_maxrss survives exec, so that a child starts with
    the peak of the process that started it (792 MB measured for a bare child of 9 MB).
    """
    now, peak = _status_mb("VmRSS"), _status_mb("VmHWM")
    if peak is None:
        with contextlib.suppress(ImportError):
            import resource  # noqa: PLC0415 - there is none on Windows

            unit = 1 if sys.platform == "darwin" else 1024
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    return now if now is not None else peak, peak


class _Child:
    """The commands a measuring process obeys; each takes the message and its pictures."""

    def __init__(self) -> None:
        self.session: InferenceSession
        self.frames: list[Image] = []
        self.position = 0

    def load(self, message: dict[str, Any], pictures: list[Image]) -> dict[str, Any]:
        self.frames = pictures
        backend = choose_backend(Path(message["path"]), message["backend"])
        with contextlib.suppress(ImportError):
            importlib.import_module(RUNTIMES[backend])
        baseline_mb, _ = memory_mb()
        begin = time.perf_counter_ns()
        self.session = open_session(Path(message["path"]), backend, message["threads"])
        loaded = time.perf_counter_ns()
        first = measure(self.session, self.frames, 1)
        return {
            "spec": self.session.spec.to_json(),
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
        measure(self.session, self.frames, 1, self.position)
        samples = measure(self.session, self.frames, message["count"], self.position)
        self.position += message["count"]
        return asdict(samples)

    def memory(self, _: dict[str, Any], __: list[Image]) -> dict[str, Any]:
        return {"peak_mb": memory_mb()[1]}

    def predict(self, _: dict[str, Any], pictures: list[Image]) -> list[Image]:
        return [class_map(self.session, picture) for picture in pictures]


def _send(pipe: IO[bytes], message: dict[str, Any], pictures: Sequence[Image] = ()) -> None:
    pipe.write(json.dumps({**message, "shapes": [p.shape for p in pictures]}).encode() + b"\n")
    for picture in pictures:
        pipe.write(np.ascontiguousarray(picture).data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[dict[str, Any], list[Image]]:
    """Read one message.

    Raises:
        EOFError: The other end has gone.
    """
    line = pipe.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    message: dict[str, Any] = json.loads(line)
    pictures = []
    for shape in message.pop("shapes"):
        picture: Image = np.empty(shape, np.uint8)
        view = picture.data.cast("B")
        while view:
            if not (read := pipe.readinto(view)):  # type: ignore[attr-defined]
                raise EOFError
            view = view[read:]
        pictures.append(picture)
    return message, pictures


def serve(incoming: IO[bytes], outgoing: IO[bytes]) -> None:
    """Obey messages until the other end closes the pipe."""
    child = _Child()
    commands: dict[str, Callable[[dict[str, Any], list[Image]], Any]] = {
        "load": child.load,
        "warm_up": child.warm_up,
        "measure": child.measure,
        "memory": child.memory,
        "predict": child.predict,
    }
    while True:
        try:
            message, pictures = _receive(incoming)
        except EOFError:
            return
        try:
            result = commands[message["op"]](message, pictures)
        except LfdError as error:
            _send(outgoing, {"error": str(error), "kind": type(error).__name__})
        except MemoryError:
            _send(outgoing, {"error": "does not fit into this machine's memory", "kind": "ModelError"})
        else:
            _send(outgoing, *(({}, result) if isinstance(result, list) else (result,)))


class Probe:
    """A model in a measuring process; a context manager that ends the process.

    Args:
        path: The model file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        # From ROOT, `-m` finds this very package, and not a folder `deploy` where the user stands. A session
        # of its own: Ctrl-C reaches the parent, which ends the child; a dead parent closes the pipe.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "deploy.probe"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,
        )

    def ask(self, op: str, pictures: Sequence[Image] = (), **message: Any) -> tuple[dict[str, Any], list[Image]]:
        """Send a command and wait for its result.

        Raises:
            LfdError: What the child raised, of the same class; ModelError when it died.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None  # noqa: S101 - both are PIPE
        try:
            _send(stdin, {"op": op, **message}, pictures)
            reply, returned = _receive(stdout)
        except (EOFError, BrokenPipeError) as error:
            raise ModelError(self._obituary(op)) from error
        if "error" in reply:
            kind = getattr(lfd.errors, reply["kind"], LfdError)
            raise kind(reply["error"].replace(str(self._path.resolve()), str(self._path)))
        return reply, returned

    def load(self, frames: Sequence[Image], threads: int, backend: str | None = None) -> dict[str, Any]:
        """Load the model and run it once; the frames for the measurements go with it."""
        return self.ask("load", frames, path=str(self._path.resolve()), threads=threads, backend=backend)[0]

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


def main() -> None:
    """Serve on stdin and stdout; what libraries print goes to stderr instead."""
    outgoing = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        serve(sys.stdin.buffer, outgoing)
    except BrokenPipeError:
        os._exit(0)  # the parent has gone
    except Exception:
        traceback.print_exc()
        sys.exit(1)


if __name__ == "__main__":
    main()
