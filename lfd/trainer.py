"""The training loop: one configuration in, one run directory out."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.console import Console
from torch import nn

from lfd.checkpoint import MODEL_FILE, STATE_FILE, clear_run, load_model, save_model
from lfd.config import Config, to_toml
from lfd.console import parse_size
from lfd.data import Dataset, open_dataset, parse_data
from lfd.distiller import Distiller
from lfd.errors import CheckpointError, DataError, TrainingError, UsageError
from lfd.evaluate import check_labels, evaluate
from lfd.files import replacing, write_text
from lfd.interrupt import Stopped, StopRequest
from lfd.loader import Cached, TrainStream, batches
from lfd.models import create_model
from lfd.normalize import Predictor
from lfd.picture import colorize, table
from lfd.preprocess import fit_frame, resize_image, restore_map
from lfd.profile import count_macs, count_parameters
from lfd.runlog import RunLog
from lfd.schedule import build_optimizer, learning_rate
from lfd.spec import ModelSpec, Preprocess, Scalar
from lfd.weights import load_state, save_state

CHANCE_FACTOR = 1.5
"""A teacher below this many times the best constant prediction was not loaded, or not trained."""

AMP: dict[str, torch.dtype | None] = {"off": None, "bf16": torch.bfloat16}


@dataclass
class Job:
    """Everything a run needs, made and checked before its first step."""

    device: torch.device
    train: Dataset
    val: Dataset
    distiller: Distiller
    predictor: Predictor
    spec: ModelSpec
    stream: TrainStream


def pick_device(name: str) -> torch.device:
    """Return the device of a name: `auto` takes the first CUDA card, else the CPU.

    Raises:
        UsageError: No such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:120]
        raise UsageError(f"device {name!r}: not here ({reason}); expected auto, cpu or cuda") from error
    return device


def prepare(config: Config, console: Console) -> Job:
    """Open the data, build the student, load and score the teacher, and say what was found.

    Raises:
        LfdError: Anything that would make the run fail or mean nothing.
    """
    t, d = config.train, config.data
    device = pick_device(t.device)
    if parse_data(d.source).split is not None:
        raise UsageError(f"data {d.source!r} names a split; training takes the train and val splits of NAME:PATH")
    train, val = (open_dataset(d.source, split) for split in ("train", "val"))
    if len(train) < t.batch:
        raise DataError(f"{d.source}: {len(train)} training pictures; a batch has {t.batch}. Fix: --set train.batch=N")
    first = train[0].image
    size = parse_size(d.size) if d.size else (first.shape[0], first.shape[1])
    labels = train.labels
    preprocess = Preprocess(size, resize="letterbox" if d.resize == "letterbox" else "stretch")

    torch.manual_seed(t.seed)
    student, origin = create_model(t.model, len(labels), t.weights)
    params, macs = count_parameters(student), count_macs(student, size)
    console.print(
        f"data     {d.source}: {len(train)} train, {len(val)} val, {len(labels)} classes, input {size[0]}x{size[1]}"
    )
    console.print(f"model    {origin}; {params / 1e6:.2f} M parameters, {macs / 1e9:.2f} GMACs")
    if d.cache:
        check_memory(first.nbytes * 4 // 3 * (len(train) + len(val)))
        train, val = Cached(train), Cached(val)
        train.fill()
        val.fill()
    provenance: dict[str, Scalar] = {
        "data": d.source.partition(":")[0],
        "method": config.distill.method if config.distill.teacher else "labels",
        "weights": t.weights if t.weights in ("imagenet", "none") else "file",
        "steps": t.steps,
        "batch": t.batch,
        "seed": t.seed,
        "params": params,
        "macs": macs,
    }
    teacher = None
    if config.distill.teacher:
        network, spec = load_model(Path(config.distill.teacher))
        check_labels(spec.labels, labels, f"the data set {d.source}")
        network.to(device)
        seen = dataclasses.replace(spec.preprocess, size_hw=size, resize=preprocess.resize)
        if t.channels_last:
            network.to(memory_format=torch.channels_last)
        amp = AMP[t.amp if t.teacher_amp == "same" else t.teacher_amp]
        provenance |= {"teacher": spec.model, "teacher_miou": score_teacher(network, seen, val, device, amp, console)}
        teacher = (network, seen, amp)

    if t.channels_last:
        student.to(memory_format=torch.channels_last)
    distiller = Distiller(student, preprocess, len(labels), config.distill.method, config.distill.weights, teacher).to(
        device
    )
    if t.compile:
        student.compile()
    predictor = Predictor(student, preprocess, device, AMP[t.amp])
    spec = ModelSpec(t.model, labels, preprocess, provenance=provenance)
    return Job(device, train, val, distiller, predictor, spec, TrainStream(train, d, preprocess, t.seed))


def check_memory(wanted: int) -> None:
    """Refuse to cache more than half of the machine's memory.

    Raises:
        UsageError: `wanted` bytes are more than that.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if wanted > memory / 2:
        raise UsageError(
            f"the pictures take {wanted / 1e9:.1f} GB decoded, and this machine has {memory / 1e9:.1f} GB. "
            "Fix: --set data.cache=false reads them anew each time"
        )


def score_teacher(
    network: nn.Module,
    preprocess: Preprocess,
    val: Dataset,
    device: torch.device,
    amp: torch.dtype | None,
    console: Console,
) -> float:
    """Return the teacher's mIoU on the validation split, having said it.

    Raises:
        TrainingError: It is no better than chance.
    """
    matrix = evaluate(Predictor(network, preprocess, device, amp), val, preprocess)
    miou, chance = matrix.miou(), matrix.chance_miou()
    console.print(f"teacher  val mIoU {miou:.2%} (one class everywhere: {chance:.2%})")
    if not miou > CHANCE_FACTOR * chance:
        raise TrainingError(
            f"the teacher scores {miou:.2%} mIoU on the val split, where one class everywhere scores {chance:.2%}: "
            "nothing can be learnt from it. Fix: check its weights, its classes and its input size"
        )
    return miou


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
    t = config.train
    optimizer = build_optimizer(config.optimizer, job.distiller)
    first, best, scored = 0, -math.inf, 0
    if resume:
        first, best, scored = restore(out / STATE_FILE, job.distiller, optimizer)
        console.print(f"resume   after step {first}, best val mIoU {best:.2%}")
    else:
        if overwrite:
            clear_run(out)
        write_text(out / "config.toml", to_toml(config))

    def save(step: int) -> None:
        rng = torch.cuda.get_rng_state_all() if job.device.type == "cuda" else []
        save_state(
            out / STATE_FILE,
            {
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


def restore(path: Path, distiller: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float, int]:
    """Load a run's state in place; return the steps done, the best mIoU, and the step last validated.

    Raises:
        CheckpointError: Missing, broken, or of another configuration.
    """
    state = load_state(path)
    try:
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
