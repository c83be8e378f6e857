"""A run's configuration: frozen dataclasses with their ranges. `lfd.recipe` fills them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lfd.console import parse_size
from lfd.errors import UsageError, unknown
from lfd.quantize.topology import TARGETS

BALANCES = ("detach", "ema", "none")
"""How terms are balanced, see `lfd.balance`."""


@dataclass(frozen=True)
class DataConfig:
    """What is learnt from, and how pictures are varied.

    Attributes:
        source: `NAME:PATH`; its train split is learnt, its val split scored.
        val: `NAME:PATH` whose val split is scored; "" takes `source`.
        size: `HxW` that the network takes; "" takes the size of the first picture.
        crop: `HxW` of the training crops out of pictures scaled to `size`; "" takes `size`.
        resize: `stretch` or `letterbox`.
        normalize: The student's input: `imagenet` (RGB, mean and deviation of torchvision's weights) or
            `caffe` (BGR, mean subtracted, not divided; what the CIRKD family's backbones were trained on).
        scale: Range of the random scale.
        scale_sampling: `log` draws the scale log-uniformly, `uniform` uniformly.
        flip: Mirror half of the pictures.
        jitter: Strength of the random brightness, contrast and colour, 0 for none.
        augment: Where crops are made: `cpu` (OpenCV, in the loader), `device` (torch), or `auto`: on the GPU
            where there is one.
        cache: Keep decoded pictures in memory: all are read and checked before the first step. Without it, a
            broken picture stops the run when its turn comes.
        workers: Loader processes; 0 loads in the training process.
    """

    source: str = ""
    val: str = ""
    size: str = ""
    crop: str = ""
    resize: str = "stretch"
    normalize: str = "imagenet"
    scale: tuple[float, float] = (0.5, 2.0)
    scale_sampling: str = "log"
    flip: bool = True
    jitter: float = 0.2
    augment: str = "auto"
    cache: bool = True
    workers: int = 0


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights move.

    Attributes:
        name: `sgd` or `adamw`.
        lr: Learning rate at its peak.
        momentum: Of SGD; AdamW's first beta.
        weight_decay: L2 for SGD, decoupled for AdamW.
        decay_norms: Decay biases and norms too, as the CIRKD family's trainer does; else filters only.
        schedule: `poly` (1 - t)^power, `cosine`, or `constant`.
        power: Of poly.
        warmup: Steps of linear warm-up.
        clip_norm: Largest L2 norm of the gradient over all parameters; 0 does not clip.
    """

    name: str = "sgd"
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_norms: bool = False
    schedule: str = "poly"
    power: float = 0.9
    warmup: int = 0
    clip_norm: float = 0.0


@dataclass(frozen=True)
class DistillConfig:
    """Whom to learn from, and how.

    Attributes:
        teacher: A run, its model.safetensors, or a checkpoint of the CIRKD family; "" for none.
        teacher_size: What the teacher sees: `own`, the picture at the scale that it was trained at, or
            `student`, the student's.
        teacher_taps: Feature name to a path in the teacher (`lfd.taps`), beside and in place of those it declares.
        student_taps: Likewise in the student.
        classes: Class of the data to the teacher's classes that it stands for, where theirs are others; those of
            one name need not be given.
        unlabelled: What stands for the labels of pictures without any: `teacher`, its classes; or `nothing`, and only
            what needs no labels is learnt from them.
        method: A name in `lfd.methods.METHODS`, or several joined by +.
        weights: Loss part to weight, in place of the method's own.
        balance: `detach`, `ema` or `none`, see `lfd.balance`; "" takes the method's own.
    """

    teacher: str = ""
    teacher_size: str = "own"
    teacher_taps: Mapping[str, str] = field(default_factory=dict)
    student_taps: Mapping[str, str] = field(default_factory=dict)
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unlabelled: str = "teacher"
    method: str = "none"
    weights: Mapping[str, float] = field(default_factory=dict)
    balance: str = ""


@dataclass(frozen=True)
class TrainConfig:
    """One run.

    Attributes:
        model: A name in `lfd.models.MODELS`, or one of the forms of `lfd.models.external`.
        weights: The backbone's: `imagenet`, `none` or a path; without a meaning beside `init`.
        init: A run, or its model.safetensors, whose weights the network begins with; "" for none.
        steps: Optimiser steps.
        batch: Pictures a step, over all processes and accumulated parts.
        accumulate: Parts that a step's batch is worked through in, one after another, to save memory. The step is
            the mean of their gradients; batch norms, means over pixels and balances are each part's own.
        seed: Of weights, order and augmentation.
        eval_every: Steps between validations, each with a checkpoint.
        save_every: Steps between further checkpoints; 0 for none but those.
        log_every: Steps between logged lines.
        device: `auto`, `cpu` or `cuda`.
        amp: Autocast of the student: `off`, `bf16` or `fp16` (with a gradient scaler).
        teacher_amp: Autocast of the teacher: the same, or `same`.
        channels_last: Memory format of weights and pictures.
        compile: Compile student and teacher with torch.compile.
        ema: Decay of a moving average of the weights, which is what is scored and kept; 0 for none.
        sync_bn: Batch norms see the batches of all processes.
    """

    model: str = ""
    weights: str = "imagenet"
    init: str = ""
    steps: int = 40_000
    batch: int = 16
    accumulate: int = 1
    seed: int = 0
    eval_every: int = 1000
    save_every: int = 0
    log_every: int = 20
    device: str = "auto"
    amp: str = "off"
    teacher_amp: str = "same"
    channels_last: bool = True
    compile: bool = False
    ema: float = 0.0
    sync_bn: bool = True


@dataclass(frozen=True)
class QuantizeConfig:
    """The student in INT8.

    Attributes:
        to: `int8`: activations and weights are rounded in training as the INT8 file for `target` rounds them, batch
            norms folded; "" trains in float.
        target: Who is to run the file: `ort`, `openvino` or `trt`.
        observe: Share of the run during which the ranges follow the activations; then they stay.
        second_teacher: Weight of KD from the student as it began, without rounding; 0 leaves it out.
    """

    to: str = ""
    target: str = "ort"
    observe: float = 0.5
    second_teacher: float = 0.0


@dataclass(frozen=True)
class Config:
    """The whole configuration; a section of a recipe is an attribute here.

    Attributes:
        train: [train]
        data: [data]
        optimizer: [optimizer]
        distill: [distill]
        quantize: [quantize]
        loss: [loss.NAME]: options of a loss by its name in `lfd.losses.LOSSES`, checked by that loss.
    """

    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    loss: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        t, d, o = self.train, self.data, self.optimizer
        within("train.steps", t.steps, 1, 100_000_000)
        within("train.batch", t.batch, 2, 65_536)  # batch norm over a 1x1 grid needs two
        within("train.accumulate", t.accumulate, 1, t.batch)
        within("train.seed", t.seed, 0, 2**31 - 1)
        within("train.eval_every", t.eval_every, 1, 100_000_000)
        within("train.save_every", t.save_every, 0, 100_000_000)
        within("train.log_every", t.log_every, 1, 1_000_000)
        among("train.amp", t.amp, ("off", "bf16", "fp16"))
        among("train.teacher_amp", t.teacher_amp, ("same", "off", "bf16", "fp16"))
        within("train.ema", t.ema, 0, 0.999999)
        among("data.resize", d.resize, ("stretch", "letterbox"))
        among("data.normalize", d.normalize, ("imagenet", "caffe"))
        among("data.augment", d.augment, ("auto", "cpu", "device"))
        within("data.scale[0]", d.scale[0], 0.05, d.scale[1])
        within("data.scale[1]", d.scale[1], d.scale[0], 20)
        among("data.scale_sampling", d.scale_sampling, ("log", "uniform"))
        within("data.jitter", d.jitter, 0, 1)
        within("data.workers", d.workers, 0, 256)
        among("optimizer.name", o.name, ("sgd", "adamw"))
        among("optimizer.schedule", o.schedule, ("poly", "cosine", "constant"))
        within("optimizer.lr", o.lr, 0, 100)
        within("optimizer.momentum", o.momentum, 0, 0.9999)
        within("optimizer.weight_decay", o.weight_decay, 0, 10)
        within("optimizer.power", o.power, 0, 100)
        within("optimizer.clip_norm", o.clip_norm, 0, 1e6)
        among("distill.teacher_size", self.distill.teacher_size, ("own", "student"))
        among("distill.unlabelled", self.distill.unlabelled, ("teacher", "nothing"))
        among("distill.balance", self.distill.balance, ("", *BALANCES))
        self._check_quantize()
        for part, weight in self.distill.weights.items():
            within(f"distill.weights.{part}", weight, 0, 1e6)
        for key, text in (("data.size", d.size), ("data.crop", d.crop)):
            if text:
                try:
                    parse_size(text)
                except UsageError as error:
                    raise UsageError(f"{key}: {error}") from error
        if t.batch % t.accumulate:
            raise UsageError(
                f"train.batch = {t.batch} is not a multiple of train.accumulate = {t.accumulate}. "
                "Fix: choose a batch that divides evenly"
            )
        if not 0 <= o.warmup <= t.steps:
            raise UsageError(
                f"optimizer.warmup = {o.warmup}; expected 0 to train.steps = {t.steps}. Fix: --set optimizer.warmup=N"
            )

    def _check_quantize(self) -> None:
        q = self.quantize
        among("quantize.to", q.to, ("", "int8"))
        among("quantize.target", q.target, TARGETS)
        within("quantize.observe", q.observe, 0, 1)
        within("quantize.second_teacher", q.second_teacher, 0, 1e6)
        if q.second_teacher and not q.to:
            raise UsageError(
                f"quantize.second_teacher = {q.second_teacher:g} has no effect without --quantize. Fix: leave it away"
            )
        if q.to and not self.train.init:
            raise UsageError("--quantize fine-tunes a trained network; give it as --init RUN")
        if q.to and self.train.compile:
            raise UsageError("--quantize does not go with --compile, which skips what it rounds; leave one away")


def within(key: str, value: float, low: float, high: float) -> None:
    """Refuse a value outside [low, high], and NaN.

    Raises:
        UsageError: It is.
    """
    if not low <= value <= high:
        raise UsageError(f"{key} = {value}; expected {low} to {high}")


def among(key: str, value: str, known: Iterable[str]) -> None:
    """Refuse a value that is not a known one.

    Raises:
        UsageError: It is not; with the nearest known one.
    """
    if value not in known:
        raise unknown(f"value of {key}", value, known)
