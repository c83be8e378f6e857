"""Doing the runs of a study: lfd-train in processes of their own, each finished one in a small JSON."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from benchmarks.distill.study import Run
from lfd.checkpoint import MODEL_FILE, STATE_FILE
from lfd.config import Config
from lfd.errors import LfdError
from lfd.files import write_json, write_text
from lfd.methods import find_method
from lfd.recipe import to_toml
from lfd.runlog import METRICS_FILE

ROOT = Path(__file__).parents[2]


class StoppedError(Exception):
    """The run was told to stop; what it had done is saved."""


@dataclass
class Runner:
    """Trains, scores and times, where `out` is.

    Attributes:
        out: Folder of the study: `runs/` (lfd-train's run directories), `results/` (one JSON each), `logs/`.
        data: `NAME:PATH`.
        device: `auto`, `cpu` or `cuda`.
        code: Hash of the toolkit's code, kept with each result.
        teacher: The teacher's run or file, once there is one.
        stopped: Set by `stop`.
    """

    out: Path
    data: str
    device: str
    code: str
    teacher: Path | None = None
    stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()

    def folder(self, run: Run, key: str) -> Path:
        """Return the run directory of a training."""
        return self.out / "runs" / f"{run.name}.{key}"

    def result(self, key: str) -> Path | None:
        """Return the file of a finished run, whatever it was called when it was made; None when there is none."""
        return next(iter(sorted((self.out / "results").glob(f"*.{key}.json"))), None)

    def execute(self, run: Run, key: str) -> None:
        """Do a run and write its result.

        Raises:
            LfdError: It failed.
            StoppedError: It was told to stop.
        """
        kinds = {"cost": self._cost, "given teacher": self._given}
        record = kinds.get(run.group, self._train)(run, key)
        write_json(self.out / "results" / f"{run.name}.{key}.json", {**record, "code": self.code})
        (self.folder(run, key) / STATE_FILE).unlink(missing_ok=True)  # three times the weights, of use to nobody now

    def stop(self) -> None:
        """Have all processes save their state and end."""
        self.stopped.set()
        with self._lock:
            for process in self._processes:
                process.send_signal(signal.SIGTERM)

    def _config(self, config: Config) -> Config:
        taught = bool(find_method(config.distill.method).losses)
        return replace(
            config,
            data=replace(config.data, source=self.data),
            train=replace(config.train, device=self.device),
            distill=replace(config.distill, teacher=str(self.teacher) if taught else ""),
        )

    def _train(self, run: Run, key: str) -> dict[str, Any]:
        folder, config = self.folder(run, key), self._config(run.config)
        recipe, log = (self.out / "logs" / f"{run.name}.{key}{suffix}" for suffix in (".toml", ".log"))
        write_text(recipe, to_toml(config))
        command = "distill" if config.distill.teacher else "teacher"
        given = ["--resume"] if (folder / STATE_FILE).is_file() else ["--recipe", recipe, "--overwrite"]
        named = ["--teacher", config.distill.teacher] if config.distill.teacher else []
        began = time.monotonic()
        peak = self._call(["lfd.cli", command, *given, *named, "--data", self.data, "--out", folder], log)
        t = config.train
        return {
            **read_metrics(folder / METRICS_FILE, t.batch),
            "test": self._score(folder, log.with_suffix(".scores.json")),
            "steps": t.steps,
            "batch": t.batch,
            "peak_process_mb": peak,
            "last_session_s": time.monotonic() - began,
            "weights_bytes": (folder / MODEL_FILE).stat().st_size,
        }

    def _given(self, run: Run, key: str) -> dict[str, Any]:
        if self.teacher is None:
            raise LfdError("no teacher was given")
        return {"test": self._score(self.teacher, self.out / "logs" / f"{run.name}.{key}.scores.json")}

    def _score(self, model: Path, scored: Path) -> dict[str, Any]:
        test = ["lfd.cli", "eval", model, "--data", f"{self.data}@test", "--device", self.device, "--json"]
        self._call(test, scored)
        scores = json.loads(scored.read_text(encoding="utf-8").splitlines()[-1])
        scored.unlink()
        return {name: scores[name] for name in ("miou", "iou", "pixel_accuracy", "pictures")}

    def _cost(self, run: Run, key: str) -> dict[str, Any]:
        recipes = []
        for method, config in run.costed.items():
            recipes.append(self.out / "logs" / f"{run.name}.{key}" / f"{method}.toml")
            write_text(recipes[-1], to_toml(self._config(config)))
        found = recipes[0].with_name("cost.json")
        self._call(["benchmarks.distill.cost", *recipes, "--out", found], recipes[0].with_name("log"))
        record: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
        return record

    def _call(self, words: Sequence[object], log: Path) -> float:
        """Run a module; return the peak of its resident memory in MB.

        Raises:
            LfdError: It failed, with its last line.
            StoppedError: It was told to stop.
        """
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        errors = log.with_suffix(".err")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output, errors.open("wb") as said:
            with self._lock:
                if self.stopped.is_set():
                    raise StoppedError
                process = subprocess.Popen(
                    [sys.executable, "-m", *map(str, words)],
                    stdout=output,
                    stderr=said,
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, "PYTHONPATH": path},
                )
                self._processes.add(process)
            try:
                _, status, usage = os.wait4(process.pid, 0)
            finally:
                with self._lock:
                    self._processes.discard(process)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            if self.stopped.is_set():
                raise StoppedError
            lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise LfdError((lines or [f"ended with exit code {process.returncode}"])[-1].removeprefix("error: "))
        errors.unlink()
        return usage.ru_maxrss * 1024 / 1e6


def read_metrics(path: Path, batch: int) -> dict[str, Any]:
    """Read the course of a run from its metrics.jsonl.

    A step's seconds are the median over the logged intervals, without validation: a run that was paused or
    interrupted has the same. The curve's seconds are steps times that.

    Returns:
        `step_s`, `images_per_s`, and `curve`: step, seconds and validation mIoU.
    """
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rate = statistics.median(line["images_per_s"] for line in lines if "images_per_s" in line)
    points = [(line["step"], line["val_miou"]) for line in lines if "val_miou" in line]
    curve = [{"step": step, "seconds": step * batch / rate, "val_miou": miou} for step, miou in points]
    return {"step_s": batch / rate, "images_per_s": rate, "curve": curve}


def say(text: str) -> None:
    """Print a line, from whichever thread."""
    click.echo(f"{time.strftime('%H:%M:%S')}  {text}")
