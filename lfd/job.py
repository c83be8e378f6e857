"""What a run needs, made and checked before its first step."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from lfd.checkpoint import load_model
from lfd.config import Config
from lfd.console import parse_size
from lfd.data import Dataset, open_dataset, parse_data
from lfd.distiller import Distiller
from lfd.errors import DataError, TrainingError, UsageError
from lfd.evaluate import check_labels, evaluate
from lfd.loader import Cached, TrainStream
from lfd.models import create_model
from lfd.normalize import Predictor
from lfd.profile import count_macs, count_parameters
from lfd.spec import ModelSpec, Preprocess, Scalar

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
