"""A run's configuration: frozen dataclasses, filled from a TOML recipe, the command line and --set."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import tomli_w

from lfd.console import parse_size
from lfd.errors import UsageError, unknown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = Path(__file__).parent / "recipes"
MAX_RECIPE_BYTES = 1 << 20


@dataclass(frozen=True)
class DataConfig:
    """What is learnt from, and how pictures are varied.

    Attributes:
        source: `NAME:PATH`; its train split is learnt, its val split scored.
        size: `HxW` that the network takes; "" takes the size of the first picture.
        crop: `HxW` of the training crops out of pictures scaled to `size`; "" takes `size`.
        resize: `stretch` or `letterbox`.
        scale: Range of the random scale, log-uniform.
        flip: Mirror half of the pictures.
        jitter: Strength of the random brightness, contrast and colour, 0 for none.
        cache: Keep decoded pictures in memory.
        workers: Loader processes; 0 loads in the training process.
    """

    source: str = ""
    size: str = ""
    crop: str = ""
    resize: str = "stretch"
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    jitter: float = 0.2
    cache: bool = True
    workers: int = 0


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights move.

    Attributes:
        name: `sgd` or `adamw`.
        lr: Learning rate at its peak.
        momentum: Of SGD; AdamW's first beta.
        weight_decay: L2 for SGD, decoupled for AdamW; not on biases and norms.
        schedule: `poly` (1 - t)^power, `cosine`, or `constant`.
        power: Of poly.
        warmup: Steps of linear warm-up.
    """

    name: str = "sgd"
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "poly"
    power: float = 0.9
    warmup: int = 0


@dataclass(frozen=True)
class DistillConfig:
    """Whom to learn from, and how.

    Attributes:
        teacher: A run, or its model.safetensors; "" for none.
        method: A name in `lfd.losses.METHODS`.
        weights: Loss part to weight, in place of the method's own.
    """

    teacher: str = ""
    method: str = "none"
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainConfig:
    """One run.

    Attributes:
        model: A name in `lfd.models.MODELS`.
        weights: The backbone's: `imagenet`, `none` or a path.
        steps: Optimiser steps.
        batch: Pictures a step.
        seed: Of weights, order and augmentation.
        eval_every: Steps between validations, each with a checkpoint.
        log_every: Steps between logged lines.
        device: `auto`, `cpu` or `cuda`.
        amp: Autocast of the student: `off` or `bf16`.
        teacher_amp: Autocast of the teacher: the same, or `same`.
        channels_last: Memory format of weights and pictures.
        compile: Compile the student with torch.compile.
    """

    model: str = ""
    weights: str = "imagenet"
    steps: int = 40_000
    batch: int = 16
    seed: int = 0
    eval_every: int = 1000
    log_every: int = 20
    device: str = "auto"
    amp: str = "off"
    teacher_amp: str = "same"
    channels_last: bool = True
    compile: bool = False


@dataclass(frozen=True)
class Config:
    """The whole configuration; a section of a recipe is an attribute here."""

    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)

    def __post_init__(self) -> None:
        _within("train.steps", self.train.steps, 1, 100_000_000)
        _within("train.batch", self.train.batch, 2, 65_536)  # batch norm over a 1x1 grid needs two
        _within("train.seed", self.train.seed, 0, 2**31 - 1)
        _within("train.eval_every", self.train.eval_every, 1, 100_000_000)
        _within("train.log_every", self.train.log_every, 1, 1_000_000)
        _among("train.amp", self.train.amp, ("off", "bf16"))
        _among("train.teacher_amp", self.train.teacher_amp, ("same", "off", "bf16"))
        _among("data.resize", self.data.resize, ("stretch", "letterbox"))
        _within("data.scale[0]", self.data.scale[0], 0.05, self.data.scale[1])
        _within("data.scale[1]", self.data.scale[1], self.data.scale[0], 20)
        _within("data.jitter", self.data.jitter, 0, 1)
        _within("data.workers", self.data.workers, 0, 256)
        _among("optimizer.name", self.optimizer.name, ("sgd", "adamw"))
        _among("optimizer.schedule", self.optimizer.schedule, ("poly", "cosine", "constant"))
        _within("optimizer.lr", self.optimizer.lr, 0, 100)
        _within("optimizer.momentum", self.optimizer.momentum, 0, 0.9999)
        _within("optimizer.weight_decay", self.optimizer.weight_decay, 0, 10)
        _within("optimizer.power", self.optimizer.power, 0, 100)
        for part, weight in self.distill.weights.items():
            _within(f"distill.weights.{part}", weight, 0, 1e6)
        for key, text in (("data.size", self.data.size), ("data.crop", self.data.crop)):
            if text:
                try:
                    parse_size(text)
                except UsageError as error:
                    raise UsageError(f"{key}: {error}") from error
        if not 0 <= self.optimizer.warmup <= self.train.steps:
            raise UsageError(
                f"optimizer.warmup = {self.optimizer.warmup}; expected 0 to train.steps = {self.train.steps}. "
                "Fix: --set optimizer.warmup=N"
            )


def _within(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UsageError(f"{key} = {value}; expected {low} to {high}")


def _among(key: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise unknown(f"value of {key}", value, known)


def _convert(key: str, value: Any, kind: Any) -> Any:
    """Return the value as its field's type, or say what was expected; 1 is taken for 1.0, no more."""
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if isinstance(value, (list, tuple)) and len(value) == len(kinds):
            return tuple(_convert(key, v, k) for v, k in zip(value, kinds, strict=True))
    elif get_origin(kind) is not None:  # Mapping[str, float]
        if isinstance(value, Mapping):
            return {str(k): _convert(f"{key}.{k}", v, float) for k, v in value.items()}
    elif kind is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    expected = getattr(kind, "__name__", str(kind)).replace("str", "text")
    raise UsageError(f"{key} = {value!r}; expected {kind if get_origin(kind) else expected}")


def _section(cls: type[Any], name: str, values: Any) -> Any:
    if not isinstance(values, Mapping):
        raise UsageError(f"[{name}] = {values!r}; expected a section of keys")
    kinds = get_type_hints(cls)
    for key in values:
        if key not in kinds:
            raise unknown(f"key in [{name}]", key, kinds)
    return cls(**{key: _convert(f"{name}.{key}", value, kinds[key]) for key, value in values.items()})


def from_mapping(record: Mapping[str, Any]) -> Config:
    """Build a configuration from nested dictionaries.

    Raises:
        UsageError: An unknown section or key, or a value of another type or out of range.
    """
    sections = get_type_hints(Config)
    for name in record:
        if name not in sections:
            raise unknown("section", name, sections)
    return Config(**{name: _section(sections[name], name, values) for name, values in record.items()})


def read_recipe(name: str) -> dict[str, Any]:
    """Read a recipe by name or path as nested dictionaries.

    Raises:
        UsageError: There is no such recipe, or it is not TOML.
    """
    path = Path(name)
    if "/" not in name and not name.endswith(".toml"):
        path = RECIPES / f"{name}.toml"
        if not path.is_file():
            raise unknown("recipe", name, recipe_names())
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise UsageError(f"{path}: larger than {MAX_RECIPE_BYTES} bytes; expected a recipe")
        record: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return record
    except (OSError, ValueError) as error:
        raise UsageError(f"recipe {path}: cannot be read ({error}); expected a TOML file") from error


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the toolkit."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def apply_set(record: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Return the record with `section.key=value` assignments made; values are TOML, or plain text.

    Raises:
        UsageError: An assignment of another form.
    """
    result = {name: dict(values) if isinstance(values, Mapping) else values for name, values in record.items()}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        path = key.strip().split(".")
        if not equals or len(path) not in (2, 3) or not all(path):
            raise UsageError(f"--set {assignment!r}; expected section.key=value, such as optimizer.lr=0.01")
        try:
            value = tomllib.loads(f"v = {text}")["v"]
        except ValueError:
            value = text.strip()
        target = result
        for part in path[:-1]:
            nested = target.get(part)
            target[part] = dict(nested) if isinstance(nested, Mapping) else {}
            target = target[part]
        target[path[-1]] = value
    return result


_ELSEWHERE = ("data.source", "data.workers", "data.cache", "distill.teacher", "train.device", "train.log_every")
"""Keys that a resumed run may change: where things are, not what is done."""


def difference(before: str, after: str) -> str:
    """Return the first key in which two configurations, as TOML, would run differently; "" when none."""
    old, new = (
        {f"{section}.{key}": value for section, values in tomllib.loads(text).items() for key, value in values.items()}
        for text in (before, after)
    )
    changed = [key for key in {**old, **new} if key not in _ELSEWHERE and old.get(key) != new.get(key)]
    return changed[0] if changed else ""


def to_toml(config: Config) -> str:
    """Return the configuration as TOML that `read_recipe` and `from_mapping` read back to an equal one."""
    return tomli_w.dumps(dataclasses.asdict(config))
