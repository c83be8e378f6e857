"""What a run needs, made and checked before its first step."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from torch import nn

from lfd.checkpoint import load_model
from lfd.config import Config
from lfd.console import parse_size
from lfd.data import Dataset, open_dataset, parse_data
from lfd.distiller import Distiller, Teacher, check_method
from lfd.distributed import all_sum, local_world_size, rank, same_buffers, world_size
from lfd.ema import Average
from lfd.errors import DataError, TrainingError, UsageError
from lfd.evaluate import check_labels, evaluate
from lfd.loader import Cached, MicroBatches, TrainStream
from lfd.metrics import ConfusionMatrix
from lfd.models import cirkd, create_model
from lfd.normalize import Predictor
from lfd.profile import count_macs, count_parameters
from lfd.spec import Labels, ModelSpec, Preprocess, Scalar
from lfd.sync_bn import synchronise

CHANCE_FACTOR = 1.5
"""A teacher below this many times the best constant prediction was not loaded, or not trained."""

AMP: dict[str, torch.dtype | None] = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Job:
    """Everything a run needs, made and checked before its first step.

    Attributes:
        device: Of this process.
        train: The pictures that are learnt.
        val: The pictures that are scored.
        distiller: The student with its losses.
        kept: The network that is scored and kept: the student, or its moving average.
        average: The moving average, where there is one.
        predictor: `kept` as a function from frame to class map.
        spec: What `kept` is.
        stream: Augmented samples by number.
    """

    device: torch.device
    train: Dataset
    val: Dataset
    distiller: Distiller
    kept: nn.Module
    average: Average | None
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


def check_config(config: Config) -> None:
    """Refuse what cannot work, or would have no effect, before anything is read.

    Raises:
        UsageError: The method, its batch or its input does not fit the rest of the configuration.
    """
    t, d, method = config.train, config.data, config.distill
    check_method(method.method, method.weights, bool(method.teacher), method.balance, config.loss)
    together = MicroBatches(t.batch, 0, t.steps, rank(), world_size(), t.accumulate).size
    together *= world_size() if t.sync_bn else 1
    if together < 2:
        raise UsageError(
            f"train.batch = {t.batch} leaves {together} picture to a batch norm at a time, which has no variance over "
            "a 1x1 grid; expected at least 2. Fix: a larger --batch, or a smaller train.accumulate"
        )
    if t.weights == "imagenet" and d.normalize != "imagenet":
        raise UsageError(
            f"data.normalize = {d.normalize!r} with train.weights = 'imagenet': torchvision's weights were trained on "
            "the input 'imagenet'. Fix: --set data.normalize=imagenet, or --weights FILE of the CIRKD family"
        )
    if parse_data(d.source).split is not None:
        raise UsageError(f"data {d.source!r} names a split; training takes the train and val splits of NAME:PATH")


def prepare(config: Config, console: Console, device: torch.device | None = None) -> Job:
    """Open the data, build the student, load and score the teacher, and say what was found.

    Args:
        config: What to do.
        console: Where people read.
        device: This process's own, where there are several processes.

    Raises:
        LfdError: Anything that would make the run fail or mean nothing.
    """
    t, d, method = config.train, config.data, config.distill
    check_config(config)
    device = device or pick_device(t.device)
    train, val = (open_dataset(d.source, split) for split in ("train", "val"))
    if len(train) < t.batch:
        raise DataError(f"{d.source}: {len(train)} training pictures; a batch has {t.batch}. Fix: --set train.batch=N")
    first = train[0].image
    size = parse_size(d.size) if d.size else (first.shape[0], first.shape[1])
    preprocess = student_input(d.normalize, size, d.resize)

    torch.manual_seed(t.seed)
    student, origin = create_model(t.model, len(train.labels), t.weights)
    params, macs = count_parameters(student), count_macs(student, size)
    console.print(
        f"data     {d.source}: {len(train)} train, {len(val)} val, {len(train.labels)} classes, "
        f"input {size[0]}x{size[1]}"
    )
    console.print(f"model    {origin}; {params / 1e6:.2f} M parameters, {macs / 1e9:.2f} GMACs")
    check_labelled(val, d.source)
    if d.cache:
        check_memory(first.nbytes * 4 // 3 * (len(train) + len(val)) * local_world_size())
        train, val = Cached(train), Cached(val)
        train.fill()
        val.fill()
    provenance: dict[str, Scalar] = {
        "data": d.source.partition(":")[0],
        "method": method.method if method.teacher else "labels",
        "weights": t.weights if t.weights in ("imagenet", "none") else "file",
        "steps": t.steps,
        "batch": t.batch,
        "seed": t.seed,
        "params": params,
        "macs": macs,
    }
    teacher = None
    if method.teacher:
        teacher, name = load_teacher(config, train.labels, preprocess, device)
        provenance |= {"teacher": name, "teacher_miou": score_teacher(teacher, val, device, console)}
    if t.channels_last:
        student.to(memory_format=torch.channels_last)
    student.to(device)
    if world_size() > 1 and t.sync_bn:
        student = synchronise(student, device)
    average = Average(student, t.ema) if t.ema else None
    distiller = Distiller(
        student,
        preprocess,
        len(train.labels),
        method.method,
        method.weights,
        teacher,
        method.balance,
        config.loss,
        t.accumulate,
    ).to(device)
    if world_size() > 1 and t.sync_bn:
        synchronise(distiller.losses, device)
    if t.compile:
        student.compile()
    if rank() > 0:  # dropout of another process is another; the weights are the first one's
        torch.manual_seed(t.seed + 7919 * rank())
    kept = average.module if average is not None else student
    spec = ModelSpec(t.model, train.labels, preprocess, provenance=provenance)
    predictor = Predictor(kept, preprocess, device, AMP[t.amp])
    stream = TrainStream(train, d, preprocess, t.seed)
    return Job(device, train, val, distiller, kept, average, predictor, spec, stream)


def student_input(normalize: str, size_hw: tuple[int, int], resize: str) -> Preprocess:
    """Return the student's preprocessing by the names that a recipe uses for it."""
    fit: Literal["stretch", "letterbox"] = "letterbox" if resize == "letterbox" else "stretch"
    return cirkd.preprocess(size_hw, fit) if normalize == "caffe" else Preprocess(size_hw, resize=fit)


def load_teacher(config: Config, labels: Labels, student: Preprocess, device: torch.device) -> tuple[Teacher, str]:
    """Load the teacher and say how it looks at pictures: by its own mean, order and, as configured, size.

    Args:
        config: Names it.
        labels: Classes of the data, which its own must be.
        student: The student's input, whose way of fitting pictures it shares.
        device: Where it goes.

    Returns:
        The teacher, and the name of its network.

    Raises:
        CheckpointError: It cannot be read.
        ModelError: Its classes are others.
    """
    t = config.train
    network, spec = load_model(Path(config.distill.teacher), (labels, student.size_hw))
    check_labels(spec.labels, labels, f"the data set {config.data.source}")
    size = student.size_hw if config.distill.teacher_size == "student" else spec.preprocess.size_hw
    network.to(device)
    if t.channels_last:
        network.to(memory_format=torch.channels_last)
    if t.compile:
        network.compile()
    seen = dataclasses.replace(spec.preprocess, size_hw=size, resize=student.resize)
    return Teacher(network, seen, AMP[t.amp if t.teacher_amp == "same" else t.teacher_amp]), spec.model


def score(predictor: Predictor, val: Dataset, preprocess: Preprocess, check: Callable[[], None]) -> ConfusionMatrix:
    """Score a network on a data set, each process its share of the pictures; all get the sum.

    Args:
        predictor: The network.
        val: Labelled pictures.
        preprocess: Its input.
        check: Called after each picture; may raise, where there is one process.
    """
    alone = world_size() == 1
    same_buffers(predictor.model)  # where batch norms are not synchronised, the first process's count
    indices = range(rank(), len(val), world_size())
    matrix = evaluate(predictor, val, preprocess, lambda *_: check() if alone else None, indices)
    if not alone:
        matrix.counts = all_sum(torch.from_numpy(matrix.counts).to(predictor.device)).cpu().numpy()
    return matrix


def check_labelled(val: Dataset, source: str) -> None:
    """Refuse a validation split that can score nothing.

    Raises:
        DataError: None of its pictures has a labelled pixel, or one before the first that has cannot be read.
    """
    classes = len(val.labels)
    if not any((val[index].mask < classes).any() for index in range(len(val))):
        raise DataError(
            f"{source}: no labelled pixel in its val split; training needs no labels, but choosing the best weights "
            "does. Fix: label some validation pictures"
        )


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


def score_teacher(teacher: Teacher, val: Dataset, device: torch.device, console: Console) -> float:
    """Return the teacher's mIoU on the validation split, having said it.

    Raises:
        TrainingError: It is no better than chance.
    """
    seen = teacher.preprocess
    matrix = score(Predictor(teacher.network, seen, device, teacher.amp), val, seen, lambda: None)
    miou, chance = matrix.miou(), matrix.chance_miou()
    height, width = seen.size_hw
    console.print(f"teacher  val mIoU {miou:.2%} at {height}x{width} (one class everywhere: {chance:.2%})")
    if not miou > CHANCE_FACTOR * chance:
        raise TrainingError(
            f"the teacher scores {miou:.2%} mIoU on the val split, where one class everywhere scores {chance:.2%}: "
            "nothing can be learnt from it. Fix: check its weights, its classes and its input size"
        )
    return miou
