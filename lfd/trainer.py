"""The training loop: one configuration in, one run directory out."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from rich.console import Console

from lfd.checkpoint import MODEL_FILE, STATE_FILE, check_run, clear_run, save_model
from lfd.config import Config
from lfd.distributed import group, on_first, rank, world_size
from lfd.errors import DataError, UsageError
from lfd.files import check_free, clear_partial, locked, replacing, write_text
from lfd.interrupt import Stopped, StopRequest
from lfd.job import Job, prepare, score
from lfd.loader import MicroBatches, batches
from lfd.picture import colorize, table
from lfd.preprocess import fit_frame, resize_image, restore_map
from lfd.recipe import to_toml
from lfd.resume import Progress, RunState, load_resumable
from lfd.runlog import RunLog
from lfd.schedule import learning_rate
from lfd.stepper import Stepper


def train(config: Config, out: Path, resume: bool, overwrite: bool, console: Console) -> float:
    """Run a configuration to its end and return the best validation mIoU in [0, 1].

    Under torchrun every process calls it; they train as one, and the first one writes.

    Args:
        config: What to do.
        out: The run directory; `lfd.checkpoint` says what it holds.
        resume: Go on from the state in `out`.
        overwrite: Remove what an earlier run left in `out`, once this one is sure to start.
        console: Where people read.

    Raises:
        LfdError: The run cannot start or go on.
        KeyboardInterrupt: It was asked to stop, and its state is saved.
    """
    with group(config.train.device) as own, ExitStack() as stack:
        claim = Claim(out, config, resume, overwrite)
        on_first(lambda: stack.enter_context(claim) and None)
        job = prepare(config, console, own)
        on_first(claim.begin)
        return run(job, config, out, resume, console)


class Claim:
    """Holds a run directory; a new run that fails before its first state leaves nothing in it.

    Args:
        out: The directory.
        config: Of the run.
        resume: It goes on with what is there.
        overwrite: It replaces what is there, once it is sure to start.

    Raises:
        UsageError: Another process holds the directory, it is no run, or one of another configuration.
        CheckpointError: The state to go on from is broken.
    """

    def __init__(self, out: Path, config: Config, resume: bool, overwrite: bool) -> None:
        self._out, self._config, self._resume, self._overwrite = out, config, resume, overwrite
        self._stack = ExitStack()
        self._found, self._begun = True, False

    def __enter__(self) -> Claim:
        out = self._out
        for given, what in ((self._config.distill.teacher, "teacher"), (self._config.train.init, "run to begin with")):
            if given and Path(given).resolve() in (out.resolve(), (out / MODEL_FILE).resolve()):
                raise UsageError(f"--out {out} is the {what}; choose another folder")
        if not self._resume:
            check_free(out, self._overwrite)
        self._found = out.exists()
        out.mkdir(parents=True, exist_ok=True)
        try:
            self._stack.enter_context(locked(out))
            clear_partial(out)
            if self._resume:
                load_resumable(out / STATE_FILE, self._config)
            else:
                check_run(out)
        except BaseException:
            self._leave()
            raise
        return self

    def begin(self) -> None:
        """Take the directory for a run that is sure to start."""
        if not self._resume:
            clear_run(self._out)
        self._begun = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._begun and not self._resume and not (self._out / STATE_FILE).exists():
            clear_run(self._out)  # there is nothing in it to go on from
        self._leave()

    def _leave(self) -> None:
        if not self._found:
            with suppress(OSError):  # it is a run now
                self._out.rmdir()
        self._stack.close()


def run(job: Job, config: Config, out: Path, resume: bool, console: Console) -> float:
    """Train what `prepare` made; see `train`."""
    t = config.train
    stepper = Stepper(job, config)
    state = RunState(out / STATE_FILE, config, job, stepper.optimizer, stepper.scaler)
    at = Progress(0, -math.inf, 0)
    if resume:
        at = state.restore(console)
        best = f"{at.best:.2%}" if at.best >= 0 else "none yet"
        console.print(f"resume   after step {at.step}, best val mIoU {best}")
    if rank() == 0:
        state.check_space()
        write_text(out / "config.toml", to_toml(config))  # on resuming, for what lies elsewhere now
    parts = MicroBatches(t.batch, at.step, t.steps, rank(), world_size(), t.accumulate)
    workers = min(config.data.workers, len(os.sched_getaffinity(0)))  # more only get in each other's way
    loader = batches(job.stream, parts, workers, job.device)
    with StopRequest() as stop, RunLog(out, at.step, t.steps, t.batch, t.log_every, console) as log:

        def settle(everything: bool) -> None:
            for entry in stepper.watch.settle(everything):
                log.step(entry.step, entry.terms, learning_rate(config.optimizer, entry.step - 1, t.steps))
                if entry.stop:
                    raise Stopped
            if world_size() == 1:  # several processes stop at the step that the watch agrees on
                stop.check()

        def due(every: int) -> bool:
            return every > 0 and at.step > 0 and at.step % every == 0

        def due_score() -> bool:
            return due(t.eval_every) or at.step == t.steps

        def validated() -> None:
            validate(job, out, at, log, stop)
            state.save(at)

        try:
            job.distiller.train()
            if at.step != at.scored and due_score():  # stopped before it was validated
                validated()
            while at.step < t.steps:
                stepper.step(at.step, loader, stop.asked)
                at.step += 1
                if due(t.log_every):
                    log.statistics(at.step, job.distiller.statistics(), job.spec.labels.names)
                settle(everything=due_score() or due(t.save_every))
                if due_score():
                    validated()
                elif due(t.save_every):
                    state.save(at)
        except Stopped:
            for entry in stepper.watch.settle(everything=True):  # a step that failed is not saved
                log.step(entry.step, entry.terms, learning_rate(config.optimizer, entry.step - 1, t.steps))
            state.save(at)
            raise KeyboardInterrupt(
                f"stopped after step {at.step} of {t.steps}; go on with --out {out} --resume"
            ) from None
    return at.best


def validate(job: Job, out: Path, at: Progress, log: RunLog, stop: StopRequest) -> None:
    """Score the network that is kept, and write it when it is the best so far; `at` learns both."""
    began = time.monotonic()
    matrix = score(job.predictor, job.val, job.spec.preprocess, stop.check)
    miou, iou = matrix.miou(), matrix.iou()
    if math.isnan(miou):
        raise DataError("the val split has no labelled pixel; expected labels to choose the best weights by")
    better = miou > at.best
    at.scored = at.step
    if better:
        at.best = miou
    if better and rank() == 0:
        spec = dataclasses.replace(job.spec, provenance={**job.spec.provenance, "miou": miou, "step": at.step})
        save_model(out / MODEL_FILE, job.kept, spec)
        draw_predictions(job, out / "predictions.png")
    named = {n: float(v) for n, v in zip(job.spec.labels.names, iou, strict=True) if not math.isnan(v)}
    log.validation(at.step, miou, at.best, named, time.monotonic() - began)


def draw_predictions(job: Job, path: Path, count: int = 4) -> None:
    """Write frame, truth and prediction of pictures spread over the validation split."""
    rows = []
    labels, preprocess = job.spec.labels, job.spec.preprocess
    for index in np.linspace(0, len(job.val) - 1, min(count, len(job.val))).round().astype(int):
        sample = job.val[int(index)]
        hw = (sample.mask.shape[0], sample.mask.shape[1])
        found = restore_map(job.predictor(fit_frame(sample.image, preprocess)), preprocess, hw)
        rows.append([sample.image, colorize(sample.mask, labels), colorize(found, labels)])
    cell = (240, round(240 * rows[0][0].shape[1] / rows[0][0].shape[0]))
    picture = table([[resize_image(c, cell) for c in row] for row in rows], ["frame", "truth", "prediction"], cell)
    with replacing(path) as aside:
        aside.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
