"""What is refused before a run's first step, because it cannot work, or would have no effect."""

from __future__ import annotations

from lfd.config import Config, DataConfig, DistillConfig
from lfd.console import parse_size
from lfd.data import UNLABELLED, Dataset, parse_data
from lfd.distributed import rank, world_size
from lfd.errors import DataError, UsageError
from lfd.loader import MicroBatches
from lfd.losses import LOSSES
from lfd.methods import Plan, check_teacher, plan


def check_config(config: Config) -> Plan:
    """Refuse what cannot work, or would have no effect, before anything is read; return what is computed.

    Raises:
        UsageError: The method, its batch or its input does not fit the rest of the configuration.
    """
    t, d, method = config.train, config.data, config.distill
    check_teacher(method.method, bool(method.teacher))
    chosen = plan(method.method, method.weights, method.balance, config.loss)
    _check_distilled(method, chosen, d)
    together = MicroBatches(t.batch, 0, t.steps, rank(), world_size(), t.accumulate).size
    together *= world_size() if t.sync_bn else 1
    if together < 2:
        raise UsageError(
            f"train.batch = {t.batch} leaves {together} picture to a batch norm at a time, which has no variance over "
            "a 1x1 grid; expected at least 2. Fix: a larger --batch, or a smaller train.accumulate"
        )
    if not t.init and t.weights == "imagenet" and d.normalize != "imagenet":
        raise UsageError(
            f"data.normalize = {d.normalize!r} with train.weights = 'imagenet': torchvision's weights were trained on "
            "the input 'imagenet'. Fix: --set data.normalize=imagenet, or --weights FILE of the CIRKD family"
        )
    if parse_data(d.source).split is not None:
        raise UsageError(f"data {d.source!r} names a split; training takes the train and val splits of NAME:PATH")
    if d.val and parse_data(d.val).split not in (None, "val"):
        raise UsageError(
            f"data.val = {d.val!r}; expected a val split: scores on pictures that weights were chosen by, or learnt "
            "from, mean nothing. Fix: --val NAME:PATH"
        )
    if parse_data(d.source).name in UNLABELLED and not d.val:
        raise UsageError(
            f"data {d.source!r} has no labels to choose the best weights by. "
            "Fix: --val NAME:PATH, a labelled set whose val split is scored"
        )
    return chosen


def _check_distilled(method: DistillConfig, chosen: Plan, data: DataConfig) -> None:
    """Refuse what has no effect without a teacher, and a teacher from whom nothing would be learnt."""
    if not method.teacher:
        for key in ("teacher_size", "teacher_taps", "classes", "unlabelled"):
            value = getattr(method, key)
            if value != getattr(DistillConfig(), key):
                raise UsageError(f"distill.{key} = {value!r} has no effect without a teacher. Fix: leave it away")
        return
    film = parse_data(data.source).name in UNLABELLED
    if method.unlabelled == "teacher" and film:
        return  # its classes at least
    if film and all(LOSSES[name].needs_labels for name in chosen.losses):
        raise UsageError(
            f"data {data.source!r} has no labels, and nothing else of method {method.method!r} is learnt from with "
            "distill.unlabelled = 'nothing'. Fix: leave that away, so that the teacher's classes stand for them"
            + (", or add +kd to the method" if chosen.losses else "")
        )
    if not chosen.losses and method.unlabelled == "nothing":
        raise UsageError(
            f"method {method.method!r} with every weight but that of task at 0 learns nothing from the teacher. "
            "Fix: lfd-train teacher, for a run on labels alone"
        )


def check_crop(data: DataConfig, size_hw: tuple[int, int]) -> None:
    """Refuse crops that no picture can fill.

    Raises:
        UsageError: A side is larger than the picture at its largest scale.
    """
    largest = [round(side * data.scale[1]) for side in size_hw]
    if data.crop and any(side > most for side, most in zip(parse_size(data.crop), largest, strict=True)):
        raise UsageError(
            f"data.crop = {data.crop!r}; expected at most {largest[0]}x{largest[1]}, the input at its largest scale. "
            "Fix: --set data.crop=HxW"
        )


def check_labelled(pictures: Dataset, source: str, what: str) -> None:
    """Refuse pictures without a single label.

    Raises:
        DataError: None has a labelled pixel, or one before the first that has cannot be read.
    """
    classes = len(pictures.labels)
    if not any((pictures[index].mask < classes).any() for index in range(len(pictures))):
        raise DataError(f"{source}: no labelled pixel in its {len(pictures)} pictures for {what}. Fix: label some")
