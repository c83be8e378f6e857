"""The record of a benchmark, bench.json: every raw sample, the hashes of models and pictures, and the environment.

Schema 2. The JSON is `BenchmarkResult` field by field: an object a dataclass, a list a tuple, null for None, and no key
more or less. Times are in milliseconds, memory and files in MB of 10^6 bytes, shares in [0, 1]; each field's meaning is
in the docstring of its class. Raw samples are under `single.rounds`, `offline[].rounds`, `streams[].samples` and
`sweep[].rounds`, in the order they were taken; the same position in `fit_ms`, `model_ms` and `restore_ms` is the same
frame. A change of meaning, or of a key, changes `schema`, and a file of another schema is refused.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from deploy.bench.conditions import Condition
from deploy.bench.power import Power
from deploy.bench.scenarios import Offline, SingleStream, Stream
from deploy.environment import Environment, FramesUsed, Settings
from deploy.timing import Ratio, Samples, Timing
from lfd.errors import DataError

SCHEMA = 2
MAX_NUMBER = 1e19
KINDS = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}


def _check_shares(values: Iterable[float | None]) -> None:
    if wrong := [value for value in values if value is not None and not 0 <= value <= 1]:
        raise ValueError(f"share {wrong[0]}; expected 0 to 1")


@dataclass(frozen=True)
class Memory:
    """Memory in MB: the whole process at its peak, before the model was loaded, and on the GPU.

    The peak is that of loading and of scenario `single`: larger batches and scoring come after it. Before the model
    there are Python, the runtime and the frames for the clock, which are the same for all models. `gpu_mb` is what
    NVML says the process holds once it has run; None without a card that tells.
    """

    peak_mb: float | None
    baseline_mb: float | None
    gpu_mb: float | None = None

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

    def __post_init__(self) -> None:
        _check_shares((self.miou, *self.iou, self.pixel_accuracy, self.agreement))


@dataclass(frozen=True)
class Missing:
    """Something that was asked for and could not be measured, and why."""

    what: str
    reason: str


@dataclass(frozen=True)
class ModelResult:
    """One model. `params` and `macs` (at `size_hw`) are the exporter's figures, None when it left none.

    `offline` has an entry a batch size, `streams` one a frame rate, `power` one a meter; `missing` says what of them is
    not there.
    """

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
    offline: tuple[Offline, ...] = ()
    streams: tuple[Stream, ...] = ()
    power: tuple[Power, ...] = ()
    missing: tuple[Missing, ...] = ()


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
class SweepPoint:
    """One model at other threads or another input size than the table's, alone in a process after all the others.

    Attributes:
        name: The model's.
        threads: For one inference; 0 is the runtime's choice.
        size_hw: Input size; None where the model could not say.
        rounds: Raw samples.
        model_alone: What they say.
        end_to_end: Likewise.
        peak_mb: Of its process.
        miou: On the same pictures as the table's.
        reason: Why there are no figures; None when there are.
    """

    name: str
    threads: int
    size_hw: tuple[int, int] | None
    rounds: tuple[Samples, ...] = ()
    model_alone: Timing | None = None
    end_to_end: Timing | None = None
    peak_mb: float | None = None
    miou: float | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        _check_shares((self.miou,))


@dataclass(frozen=True)
class BenchmarkResult:
    """Everything a benchmark found.

    Attributes:
        environment: The machine and the software.
        settings: What was asked for.
        frames: The pictures used.
        classes: Names, in the order of every `iou`.
        teacher: What the others are held against.
        students: They, in the order given.
        failures: Models that could not be measured; or what failed after the first round, and ended it early.
        notes: What a reader must know besides.
        sweep: Other thread counts and input sizes.
        conditions: The machine's state after each round.
        no_power: Why no model has `power`; None when one has.
        interrupted: When it was ended early: how far it had come; there may be fewer rounds than asked for.
        schema: Of this record.
    """

    environment: Environment
    settings: Settings
    frames: FramesUsed
    classes: tuple[str, ...]
    teacher: ModelResult
    students: tuple[StudentResult, ...]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]
    sweep: tuple[SweepPoint, ...] = ()
    conditions: tuple[Condition, ...] = ()
    no_power: str | None = None
    interrupted: str | None = None
    schema: int = SCHEMA

    @property
    def models(self) -> tuple[ModelResult, ...]:
        """All models, the teacher last, as reports show them."""
        return (*(student.result for student in self.students), self.teacher)

    @property
    def ended_by(self) -> Failure | None:
        """The failure that ended it early, of the pictures or of a model with figures; None where a person did."""
        if self.interrupted is None:
            return None
        names = {self.frames.data, *(model.name for model in self.models)}
        return next((failure for failure in self.failures if failure.name in names), None)


def to_json(result: BenchmarkResult) -> str:
    """Return the record as JSON text, a list of numbers on one line; `from_json` reads it back to an equal value."""
    text = json.dumps(asdict(result), indent=2, allow_nan=False)
    # Line breaks within strings are escaped, so that a real one is always between values.
    return re.sub(r"\[\n\s*([-+.\deE,\s]+?)\n\s*\]", lambda found: f"[{' '.join(found[1].split())}]", text)


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
            result: BenchmarkResult = read_as(BenchmarkResult, record, "result")
            return result
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise DataError(f"{origin}: not a report of lfd-bench ({type(error).__name__}: {error})") from error
    raise DataError(f"{origin}: a report with schema {found!r}; this version reads {SCHEMA}. Fix: run lfd-bench again")


def read_as(kind: Any, value: Any, where: str) -> Any:
    """Return JSON value `value` as a value of type `kind`; ValueError names the place `where` it is not."""
    if is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        missing = {f.name for f in fields(kind) if f.default is MISSING} - set(value)
        if missing or set(value) - set(hints):
            raise ValueError(f"{where}: keys {sorted(missing | (set(value) - set(hints)))} are missing or unknown")
        return kind(**{key: read_as(hints[key], item, f"{where}.{key}") for key, item in value.items()})
    origin, args = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, Union):
        return None if value is None else read_as(args[0], value, where)
    if origin is tuple and isinstance(value, list):
        kinds = [args[0]] * len(value) if args[-1] is ... else args
        return tuple(read_as(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if isinstance(value, dict) and origin is not tuple and origin is not None:
        return {read_as(args[0], k, where): read_as(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(value, (int, float)) and not -MAX_NUMBER < value < MAX_NUMBER:  # NaN, too, which compares as equal
        raise ValueError(f"{where} is {value!r:.60}; expected a number below {MAX_NUMBER:g}")
    if not isinstance(value, kind if origin is None else ()) or isinstance(value, bool) is not (kind is bool):
        expected = KINDS.get(kind, "a list" if origin is tuple else "names and values")
        raise ValueError(f"{where} is {value!r:.60}; expected {expected}")
    return value
