"""What a run needs, made and checked before its first step."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from torch import nn

from lfd.checkpoint import load_model
from lfd.checks import check_config, check_crop, check_labelled
from lfd.class_map import Merged, match
from lfd.config import Config
from lfd.console import parse_size
from lfd.data import Dataset
from lfd.distiller import Distiller, Teacher
from lfd.distributed import all_sum, rank, same_buffers, world_size
from lfd.ema import Average
from lfd.errors import CheckpointError, ModelError, TrainingError, UsageError
from lfd.evaluate import check_labels, evaluate
from lfd.init import digest_of, load_start
from lfd.loader import TrainStream
from lfd.metrics import ConfusionMatrix
from lfd.models import cirkd, create_model
from lfd.models.external_outputs import check_input_size
from lfd.normalize import Predictor
from lfd.profile import count_macs, count_parameters
from lfd.quantize.observe import observe
from lfd.quantize.student import attach, checked_target, find
from lfd.spec import Labels, ModelSpec, Preprocess, Scalar
from lfd.sync_bn import synchronise
from lfd.training_data import cached, open_both

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
    chosen = check_config(config)
    device = device or pick_device(t.device)
    train, val, first = open_both(d, t.batch)
    size = parse_size(d.size) if d.size else (first.shape[0], first.shape[1])
    preprocess = student_input(d.normalize, size, d.resize)
    check_crop(d, size)

    console.print(
        f"data     {d.source}: {len(train)} train, {len(val)} val, {len(train.labels)} classes, "
        f"input {size[0]}x{size[1]} {d.normalize}"
    )
    torch.manual_seed(t.seed)
    student, params, macs = new_student(config, train, preprocess, console)
    check_labelled(val, d.val or d.source, "choosing the best weights")
    if method.method == "none":
        check_labelled(train, d.source, "training without a teacher")
    teacher, about = None, ""
    if method.teacher:
        teacher, about = load_teacher(config, val.labels, preprocess, device, console)
        if not chosen.losses:
            console.print("teacher  only labels pictures that have no labels: every weight but that of task is 0")
    if t.channels_last:
        student.to(memory_format=torch.channels_last)
    student.to(device)
    second: tuple[Teacher, float] | None = None
    if config.quantize.to:
        if config.quantize.second_teacher:
            second = Teacher(copy.deepcopy(student), preprocess, labels=False), config.quantize.second_teacher
        quantize_student(config, student, train, preprocess, console)
    elif world_size() > 1 and t.sync_bn:
        student = synchronise(student, device)
    average = Average(student, t.ema) if t.ema else None
    distiller = Distiller(
        student, preprocess, len(train.labels), chosen, teacher, t.accumulate, method.student_taps, second
    ).to(device)
    if d.cache:  # all that is quick to refuse has been looked at
        train, val = cached(train, val, first)
    provenance = origin_of(config, params, macs)
    if teacher is not None:
        provenance |= {"teacher": about, "teacher_miou": score_teacher(teacher, val, device, console)}
    if world_size() > 1 and t.sync_bn:
        synchronise(distiller.losses, device)
    if t.compile:
        student.compile()
    if rank() > 0:  # dropout of another process is another; the weights are the first one's
        torch.manual_seed(t.seed + 7919 * rank())
    kept = average.module if average is not None else student
    spec = ModelSpec(t.model, train.labels, preprocess, provenance=provenance)
    # Half precision would blur the grid of INT8 that is scored.
    predictor = Predictor(kept, preprocess, device, None if config.quantize.to else AMP[t.amp])
    stream = TrainStream(train, d, preprocess, t.seed)
    return Job(device, train, val, distiller, kept, average, predictor, spec, stream)


def new_student(config: Config, data: Dataset, preprocess: Preprocess, console: Console) -> tuple[nn.Module, int, int]:
    """Build the student and say what it is; return it with its parameters and multiply-accumulates.

    Raises:
        UsageError: There is no such network, nothing of it can be trained, it does not take the input or the crops, or
            it is not the one to begin with.
        CheckpointError: Its weights cannot be had or do not fit.
        ModelError: Those to begin with are of other classes.
    """
    t, crop, size_hw = config.train, config.data.crop, preprocess.size_hw
    if t.init:
        student, origin = load_start(config, data, preprocess)
    else:
        student, origin = create_model(t.model, len(data.labels), t.weights)
    if not any(p.requires_grad for p in student.parameters()):
        raise UsageError(f"model {t.model!r}: none of its parameters can be trained; expected some with requires_grad")
    for seen in (size_hw, parse_size(crop) if crop else size_hw):
        check_input_size(student, seen)
    params, macs = count_parameters(student), count_macs(student, size_hw)
    console.print(f"model    {origin}; {params / 1e6:.2f} M parameters, {macs / 1e9:.2f} GMACs")
    return student, params, macs


def quantize_student(
    config: Config, student: nn.Module, data: Dataset, preprocess: Preprocess, console: Console
) -> None:
    """Let a student compute as its INT8 file will, with ranges from pictures, or as it brings them.

    Raises:
        MissingDependencyError: torchao is not installed.
        UsageError: It has nothing that runs in int8.
    """
    q = config.quantize
    int8 = find(student)
    if int8 is None:
        int8 = attach(student, checked_target(q.target), preprocess)
        observe(student, int8, data, preprocess)
    int8.mode, int8.until = "simulate", q.observe
    console.print(
        f"int8     for {int8.target}: {len(int8.plan.tensors)} activations and {len(int8.plan.weights)} kernels are "
        "rounded, batch norms folded"
    )


def origin_of(config: Config, params: int, macs: int) -> dict[str, Scalar]:
    """Return what a model's specification says of how it was made."""
    t, d = config.train, config.distill
    begun = {"init": digest_of(Path(t.init))} if t.init else {}
    q = config.quantize
    quantized: dict[str, Scalar] = {}
    if q.to:
        quantized = {"quantize": q.to, "target": q.target, "second_teacher": q.second_teacher}
    return {
        "data": config.data.source.partition(":")[0],
        "method": d.method if d.teacher else "labels",
        "weights": "run" if t.init else t.weights if t.weights in ("imagenet", "none") else "file",
        **begun,
        **quantized,
        "steps": t.steps,
        "batch": t.batch,
        "seed": t.seed,
        "params": params,
        "macs": macs,
    }


def student_input(normalize: str, size_hw: tuple[int, int], resize: str) -> Preprocess:
    """Return the student's preprocessing by the names that a recipe uses for it."""
    fit: Literal["stretch", "letterbox"] = "letterbox" if resize == "letterbox" else "stretch"
    return cirkd.preprocess(size_hw, fit) if normalize == "caffe" else Preprocess(size_hw, resize=fit)


def load_teacher(
    config: Config, labels: Labels, student: Preprocess, device: torch.device, console: Console | None = None
) -> tuple[Teacher, str]:
    """Load the teacher and say how it looks at pictures: by its own mean, order and, as configured, size.

    Args:
        config: Names it.
        labels: Classes of the data, which its own must be, or be mapped to.
        student: The student's input, whose way of fitting pictures it shares.
        device: Where it goes.
        console: Where people read of its classes that stand for nothing.

    Returns:
        The teacher, and the name of its network.

    Raises:
        CheckpointError: It cannot be read.
        ModelError: Its classes are others.
        UsageError: They cannot be mapped as configured.
    """
    t, d = config.train, config.distill
    path = Path(d.teacher)
    if not path.exists():
        raise CheckpointError(f"{path}: no such run or file; --teacher RUN says where the teacher is, on --resume too")
    network, spec = load_model(path, (labels, student.size_hw))
    size = student.size_hw if d.teacher_size == "student" else spec.preprocess.size_hw
    taps = d.teacher_taps
    if d.classes:
        network = merged = Merged(network, len(spec.labels), match(spec.labels, labels, d.classes))
        taps = {name: merged.path(path) for name, path in taps.items()}
        if merged.left_out and console is not None:
            names = ", ".join(spec.labels.names[index] for index in merged.left_out)
            console.print(f"teacher  {len(merged.left_out)} of its classes stand for nothing: {names}")
    else:
        try:
            check_labels(spec.labels, labels, f"the data set {config.data.source}")
        except ModelError as error:
            how = "say which of the teacher's stand for each of the data's: --set 'distill.classes.NAME=[\"...\"]'"
            raise ModelError(f"{error}, or {how}") from error
    check_input_size(network, size)
    network.to(device)
    if t.channels_last:
        network.to(memory_format=torch.channels_last)
    if t.compile:
        network.compile()
    seen = dataclasses.replace(spec.preprocess, size_hw=size, resize=student.resize)
    amp = AMP[t.amp if t.teacher_amp == "same" else t.teacher_amp]
    return Teacher(network, seen, amp, taps, d.unlabelled == "teacher"), spec.model


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
    expected = min(CHANCE_FACTOR * chance, (1 + chance) / 2)  # where one class is nearly all, half of what is left
    if not miou >= expected:
        raise TrainingError(
            f"the teacher scores {miou:.2%} mIoU on the val split, where one class everywhere scores {chance:.2%}; "
            f"expected at least {expected:.2%}: nothing can be learnt from it. Fix: check its weights, its classes and "
            "its input size"
        )
    return miou
