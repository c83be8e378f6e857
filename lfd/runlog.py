"""What a run tells: a live line on the terminal, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from lfd.distributed import rank
from lfd.errors import CheckpointError
from lfd.files import write_text

METRICS_FILE = "metrics.jsonl"


def keep_until(path: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run will do again."""
    if path.is_file():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
        write_text(path, "".join(line + "\n" for line in lines))


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut short when the process was killed


def _key(term: str) -> str:
    return "grad_norm" if term == "gradient" else f"loss_{term}"


class RunLog:
    """Logs a run's steps and validations; a context manager. Only the first of several processes writes.

    Args:
        out: The run directory.
        first: Steps already done.
        steps: Steps in all.
        batch: Pictures a step.
        every: Steps between lines in metrics.jsonl.
        console: Where people read.
    """

    def __init__(self, out: Path, first: int, steps: int, batch: int, every: int, console: Console) -> None:
        self._writes = rank() == 0
        if self._writes:
            keep_until(out / METRICS_FILE, first)
            self._file = (out / METRICS_FILE).open("a", encoding="utf-8")
            self._board = SummaryWriter(str(out / "tensorboard"), purge_step=first + 1)
        self.console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[terms]}"),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("train", total=steps, completed=first, terms="")
        self._steps, self._batch, self._every = steps, batch, every
        self._since, self._since_step = time.monotonic(), first
        self._last, self._best = math.nan, math.nan
        self._failure: OSError | None = None

    def step(self, step: int, terms: Mapping[str, float], lr: float) -> None:
        """Log step number `step`, counted from 1."""
        self._progress.advance(self._task)
        if step % self._every and step != self._steps:
            return
        now = time.monotonic()
        rate = (step - self._since_step) * self._batch / max(1e-9, now - self._since)
        self._since, self._since_step = now, step
        self._write({"step": step, "lr": lr, **{_key(k): v for k, v in terms.items()}, "images_per_s": rate})
        text = "  ".join(f"{k} {v:.3f}" for k, v in terms.items() if k != "gradient")
        scores = f"  mIoU {self._last:.1%} best {self._best:.1%}" if not math.isnan(self._last) else ""
        self._progress.update(self._task, terms=f"{text}  {rate:.1f} img/s{scores}")

    def validation(self, step: int, miou: float, best: float, iou: Mapping[str, float], seconds: float) -> None:
        """Log a validation after `step` steps; the time it took is kept out of images a second."""
        self._last, self._best = miou, best
        self._since += seconds
        self._write({"step": step, "val_miou": miou, "val_best": best})
        self._line({"step": step, "val_iou": dict(iou)})
        self.console.print(f"step {step:>6}  val mIoU {miou:.2%}  best {best:.2%}", highlight=False)

    def statistics(self, step: int, values: Mapping[str, Tensor], names: Sequence[str]) -> None:
        """Log what a loss follows class by class: name to (K,), with the classes' names."""
        for name, value in values.items():
            self._line({"step": step, name: dict(zip(names, value.tolist(), strict=True))})

    def _write(self, record: dict[str, float]) -> None:
        finite = {k: v for k, v in record.items() if math.isfinite(v)}
        self._line(finite)
        for key, value in finite.items():
            if key != "step" and self._writes:
                self._board.add_scalar(key.replace("_", "/", 1), value, int(record["step"]))

    def _line(self, record: Mapping[str, object]) -> None:
        """Append a line to metrics.jsonl.

        Raises:
            CheckpointError: It, or TensorBoard's file, cannot be written.
        """
        if not self._writes:
            return
        try:
            if self._failure is not None:
                raise self._failure
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise CheckpointError(
                f"{self._file.name}: the log cannot be written ({error.strerror or error}). "
                "Fix: free space on that disk, then go on with --resume"
            ) from error

    def _note(self, failure: threading.ExceptHookArgs) -> None:
        """Keep an error of TensorBoard's writer thread for the next line, instead of a traceback on the terminal."""
        if isinstance(failure.exc_value, OSError):
            self._failure = failure.exc_value
        else:
            threading.__excepthook__(failure)

    def __enter__(self) -> RunLog:
        if self._writes:
            threading.excepthook = self._note
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._writes:
            return
        self._progress.stop()
        # What could not be written raises again on closing; the first error has said it.
        for close in (self._board.close, self._file.close):
            with contextlib.suppress(OSError):
                close()
        threading.excepthook = threading.__excepthook__
