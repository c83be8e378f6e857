"""The record of a benchmark: every raw sample, the hashes of models and pictures, and its JSON."""

from __future__ import annotations

import json
import types
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from deploy.environment import Environment, FramesUsed, Settings
from deploy.timing import Ratio, SingleStream
from lfd.errors import DataError

SCHEMA = 1


@dataclass(frozen=True)
class Memory:
    """Resident memory in MB: the whole process at its peak, and before the model was loaded."""

    peak_mb: float | None
    baseline_mb: float | None

    @property
    def model_mb(self) -> float | None:
        """What loading and running the model added."""
        return None if self.peak_mb is None or self.baseline_mb is None else self.peak_mb - self.baseline_mb


@dataclass(frozen=True)
class Accuracy:
    """How right the class maps are, at the labels' size, and how like the teacher's; shares in [0, 1]."""

    miou: float | None
    iou: tuple[float | None, ...]
    pixel_accuracy: float | None
    agreement: float


@dataclass(frozen=True)
class ModelResult:
    """One model. `params` and `macs` (at `size_hw`) are the exporter's figures, None when it left none."""

    name: str
    sha256: str
    file_bytes: int
    model: str
    method: str | None
    size_hw: tuple[int, int]
    precision: str
    backend: str
    params: int | None
    macs: int | None
    load_ms: float
    first_ms: float
    memory: Memory
    single: SingleStream
    accuracy: Accuracy | None


@dataclass(frozen=True)
class Versus:
    """A student against the teacher.

    Attributes:
        faster_alone: Times faster, the model alone, from paired rounds.
        faster_end_to_end: Likewise end to end.
        smaller: How many times smaller its file is.
        miou_lost: Teacher's mIoU minus its own, in [-1, 1].
        miou_kept: Its mIoU as a share of the teacher's.
    """

    faster_alone: Ratio
    faster_end_to_end: Ratio
    smaller: float
    miou_lost: float | None
    miou_kept: float | None


@dataclass(frozen=True)
class StudentResult:
    """A student and how it stands against the teacher."""

    result: ModelResult
    versus: Versus


@dataclass(frozen=True)
class Failure:
    """A model that could not be measured, and why."""

    name: str
    message: str
    exit_code: int


@dataclass(frozen=True)
class BenchmarkResult:
    """Everything a benchmark found."""

    environment: Environment
    settings: Settings
    frames: FramesUsed
    classes: tuple[str, ...]
    teacher: ModelResult
    students: tuple[StudentResult, ...]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]
    schema: int = SCHEMA


def to_json(result: BenchmarkResult) -> str:
    """Return the record as JSON text; `from_json` reads it back to an equal value."""
    return json.dumps(asdict(result), indent=2, allow_nan=False)


def from_json(text: str, origin: str) -> BenchmarkResult:
    """Read a record; every field is checked, since the file may come from anywhere.

    Args:
        text: JSON text.
        origin: The file it was found in, for the error message.

    Raises:
        DataError: It is not a record, or of another schema.
    """
    try:
        record = json.loads(text)
        found = record["schema"]
        if found == SCHEMA:
            result: BenchmarkResult = _read(BenchmarkResult, record, "result")
            return result
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{origin}: not a report of lfd-bench ({type(error).__name__}: {error})") from error
    raise DataError(f"{origin}: a report with schema {found!r}; this version reads {SCHEMA}. Fix: run lfd-bench again")


def _read(kind: Any, value: Any, where: str) -> Any:
    """Return JSON value `value` as a value of type `kind`; ValueError names the place `where` it is not."""
    if is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        missing = {f.name for f in fields(kind) if f.default is MISSING} - set(value)
        if missing or set(value) - set(hints):
            raise ValueError(f"{where}: keys {sorted(missing | (set(value) - set(hints)))} are missing or unknown")
        return kind(**{key: _read(hints[key], item, f"{where}.{key}") for key, item in value.items()})
    origin, args = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, Union):
        return None if value is None else _read(args[0], value, where)
    if origin is tuple and isinstance(value, list):
        kinds = [args[0]] * len(value) if args[-1] is ... else args
        return tuple(_read(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if isinstance(value, dict) and origin is not tuple and origin is not None:
        return {_read(args[0], k, where): _read(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind if origin is None else ()) or isinstance(value, bool) is not (kind is bool):
        raise ValueError(f"{where} is {value!r:.60}; expected {kind}")
    return value
