"""The training loop: one configuration in, one run directory out."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.console import Console
from torch import nn

from lfd.checkpoint import MODEL_FILE, STATE_FILE, clear_run, save_model
from lfd.config import Config, difference, to_toml
from lfd.data import Dataset
from lfd.errors import CheckpointError, DataError, TrainingError, UsageError
from lfd.evaluate import evaluate
from lfd.files import check_free, locked, replacing, write_text
from lfd.interrupt import Stopped, StopRequest
from lfd.job import AMP, Job, prepare
from lfd.loader import batches
from lfd.picture import colorize, table
from lfd.preprocess import fit_frame, resize_image, restore_map
from lfd.runlog import RunLog
from lfd.schedule import build_optimizer, learning_rate
from lfd.weights import load_state, save_state


def train(config: Config, out: Path, resume: bool, overwrite: bool, console: Console) -> float:
    """Run a configuration to its end and return the best validation mIoU in [0, 1].

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
    job = prepare(config, console)
    found = out.exists()
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        if not resume:
            check_free(out / "config.toml", overwrite)  # another run may have begun while this one prepared
            if overwrite:
                clear_run(out)
        try:
            return run(job, config, out, resume, console)
        except BaseException:
            if not resume and not (out / STATE_FILE).exists():  # nothing in it to go on from
                clear_run(out)
                if not found:
                    with contextlib.suppress(OSError):  # somebody has put something there
                        out.rmdir()
            raise


def run(job: Job, config: Config, out: Path, resume: bool, console: Console) -> float:
    """Train what `prepare` made; see `train`."""
    t = config.train
    optimizer = build_optimizer(config.optimizer, job.distiller)
    first, best, scored = 0, -math.inf, 0
    if resume:
        first, best, scored = restore(out / STATE_FILE, config, job.distiller, optimizer)
        console.print(f"resume   after step {first}, best val mIoU {best:.2%}")
    else:
        write_text(out / "config.toml", to_toml(config))

    def save(step: int) -> None:
        rng = torch.cuda.get_rng_state_all() if job.device.type == "cuda" else []
        save_state(
            out / STATE_FILE,
            {
                "config": to_toml(config),
                "step": step,
                "best": best,
                "scored": scored,
                "distiller": job.distiller.state_dict(),
                "optimizer": optimizer.state_dict(),
                "rng": torch.get_rng_state(),
                "cuda_rng": rng,
            },
        )

    def due(step: int) -> bool:
        return step % t.eval_every == 0 or step == t.steps

    loader = batches(job.stream, t.batch, first, t.steps, config.data.workers, job.device.type == "cuda")
    done = first
    with StopRequest() as stop, RunLog(out, first, t.steps, t.batch, t.log_every, console) as log:
        try:
            job.distiller.train()
            if resume and first != scored and due(first):  # stopped before it was validated
                best, scored = validate(job, out, first, best, log, stop), first
                save(first)
            for step, (image, target, pictures) in enumerate(loader, first):
                lr = learning_rate(config.optimizer, step, t.steps)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                image, target = image.to(job.device, non_blocking=True), target.to(job.device, non_blocking=True)  # noqa: PLW2901
                if t.channels_last:
                    image = image.contiguous(memory_format=torch.channels_last)  # noqa: PLW2901
                with torch.autocast(job.device.type, AMP[t.amp], enabled=t.amp != "off"):
                    result = job.distiller(image, target, step / t.steps)
                terms = {name: float(value) for name, value in result.parts.items()}
                if not math.isfinite(float(result.total.detach())):
                    raise TrainingError(_not_finite(step, terms, job.train, pictures.tolist()))
                optimizer.zero_grad(set_to_none=True)
                result.total.backward()
                optimizer.step()
                done = step + 1
                log.step(done, terms, lr)
                stop.check()
                if due(done):
                    best, scored = validate(job, out, done, best, log, stop), done
                    save(done)
        except Stopped:
            save(done)
            raise KeyboardInterrupt(
                f"stopped after step {done} of {t.steps}; go on with --out {out} --resume"
            ) from None
    return best


def validate(job: Job, out: Path, step: int, best: float, log: RunLog, stop: StopRequest) -> float:
    """Score the student, keep it when it is the best so far, and return the best mIoU."""
    began = time.monotonic()
    matrix = evaluate(job.predictor, job.val, job.spec.preprocess, lambda *_: stop.check())
    miou, iou = matrix.miou(), matrix.iou()
    if math.isnan(miou):
        raise DataError("the val split has no labelled pixel; expected labels to choose the best weights by")
    better = miou > best
    if better:
        best = miou
        spec = dataclasses.replace(job.spec, provenance={**job.spec.provenance, "miou": miou, "step": step})
        save_model(out / MODEL_FILE, job.distiller.student, spec)
        draw_predictions(job, out / "predictions.png")
    named = {n: float(v) for n, v in zip(job.spec.labels.names, iou, strict=True) if not math.isnan(v)}
    log.validation(step, miou, best, named, time.monotonic() - began)
    return best


def restore(
    path: Path, config: Config, distiller: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, float, int]:
    """Load a run's state in place; return the steps done, the best mIoU, and the step last validated.

    Raises:
        CheckpointError: Missing, broken, or of another configuration.
    """
    state = load_state(path)
    try:
        check_same(config, str(state["config"]), path)
        distiller.load_state_dict(state["distiller"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        return int(state["step"]), float(state["best"]), int(state["scored"])
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{path}: is not the state of this run ({reason}); start anew with --overwrite"
        ) from error


def check_same(config: Config, saved: str, path: Path) -> None:
    """Refuse to go on with another configuration than a run began with.

    Raises:
        UsageError: They differ in something that changes the course of the run.
    """
    changed = difference(saved, to_toml(config))
    if changed:
        raise UsageError(
            f"{path} was made with another {changed}: a resumed run keeps its configuration. "
            "Fix: give --out and --resume alone, and leave config.toml as it was"
        )


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


def _not_finite(step: int, terms: dict[str, float], data: Dataset, pictures: list[int]) -> str:
    bad = [name for name, value in terms.items() if not math.isfinite(value)] or ["the sum of the terms"]
    names = ", ".join(data[i].name for i in pictures)
    return (
        f"step {step + 1}: {', '.join(bad)} is not finite, on the pictures {names}. "
        "Fix: lower optimizer.lr, set train.amp=off, or look at those pictures"
    )
