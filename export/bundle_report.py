"""The report of `lfd-export all`, report.json: every file, what it is worth, and what was refused and why.

Schema 1. The JSON is `Report` field by field: an object a dataclass, a list a tuple, null for None or for a number that
cannot be counted. Files are named without their folder. Sizes are in bytes, IoU, mIoU and agreement are shares in
[0, 1], what was lost or bought is in points (of 100), times are milliseconds of one run of the model alone, frame in,
class map out; other units stand in their keys. A change of meaning, or of a key, changes `schema`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from deploy.environment import Environment
from deploy.timing import Percentiles, Ratio
from export.parity import Parity, number
from export.speed import Rounds
from lfd.spec import Labels

SCHEMA = 1

State = Literal["written", "refused", "failed", "elsewhere", "not reached"]
"""Of a file: it is there; a gate refused it; it could not be made; another machine makes it (`command`); this run did
not come to it."""


@dataclass(frozen=True)
class Latency:
    """How long one run of the model takes.

    Attributes:
        p50_ms: Median, nearest rank.
        rounds: Every sample, a list a round; round n of every file was measured beside round n of all others.
        times_faster: Than the fp32 file of the same runtime, with the interval of its rounds; None for that file.
    """

    p50_ms: float | None
    rounds: Rounds
    times_faster: Ratio | None = None

    @classmethod
    def of(cls, rounds: Rounds, baseline: Rounds | None) -> Latency:
        """Summarise rounds; `baseline` are those of the fp32 file on the same runtime."""
        found = Percentiles.of([ms for taken in rounds for ms in taken])
        ratio = None if baseline is None or baseline is rounds else Ratio.paired(baseline, rounds)
        return cls(found.p50_ms if found else None, rounds, ratio)


@dataclass(frozen=True)
class Run:
    """A file on one runtime.

    Attributes:
        backend: As `--backend` takes it; None for a file that is for another runtime and was computed as it is written.
        runtime: What ran it, and in which precision.
        miou: On the data's labels, at their own size.
        miou_lost: Against the source, points.
        iou: Class to IoU; None for a class that neither labels nor predictions have.
        agreement: Share of pixels, at the model's size, that have the source's class.
        worst: The smallest share on any one picture, and that picture's name.
        holds: Whether it keeps to the accuracy that was asked for.
        latency: None where it was not measured.
    """

    backend: str | None
    runtime: str
    miou: float
    miou_lost: float
    iou: Mapping[str, float | None]
    agreement: float
    worst: tuple[float, str]
    holds: bool
    latency: Latency | None = None

    @classmethod
    def of(cls, backend: str | None, runtime: str, parity: Parity, labels: Labels, max_miou_drop: float) -> Run:
        """Describe a file by how it compares with the source."""
        lost = round(-100 * parity.miou_delta, 9) + 0.0  # no -0.0
        iou = dict(zip(labels.names, (number(b) for _, b in parity.iou), strict=True))
        return cls(
            backend, runtime, parity.miou[1], lost, iou, parity.agreement, parity.worst, holds=lost <= max_miou_drop
        )


@dataclass(frozen=True)
class Gate:
    """A condition of being written.

    Attributes:
        name: `parity` (share of pixels), `accuracy` (points of mIoU lost), `precision` (how many convolutions run in
            another one than they ask for, as TensorRT's inspector says) or `speed` (times faster than the fp32 file of
            the same runtime).
        passed: None where it could not be measured, which is no refusal.
        found: The figure; None likewise, and where there is no single one.
        limit: What it was held against.
        note: In words.
    """

    name: str
    passed: bool | None
    found: float | None
    limit: float | None
    note: str


@dataclass(frozen=True)
class File:
    """A file that was made, or was to be.

    Attributes:
        name: Its name.
        precision: `fp32`, `fp16` or `int8`.
        runtime: Which it is for: `any`, `ort`, `openvino` or `trt`.
        state: What became of it.
        reason: Why it is not there; empty for one that is.
        command: What makes it where that can be done, for `elsewhere`.
        size: In bytes; None for a file that is not there. It is kept of one that the speed gate refused.
        sha256: Likewise.
        kept_float: Layers kept in a wider type than the rest.
        gates: In the order they were passed.
        search: What the int8 gate tried, as in `lfd-export int8 --report` without its verdict, which `state` and
            `gates` give; None for other files.
        runs: On each runtime that is here.
        fails_on: Backend to why the file does not run there, of those that are here.
    """

    name: str
    precision: str
    runtime: str
    state: State = "not reached"
    reason: str = ""
    command: str | None = None
    size: int | None = None
    sha256: str | None = None
    kept_float: tuple[str, ...] = ()
    gates: tuple[Gate, ...] = ()
    search: Mapping[str, Any] | None = None
    runs: tuple[Run, ...] = ()
    fails_on: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """What to ship.

    Attributes:
        file: Its name.
        backend: As `--backend` takes it; None for a file that an engine is to be built from.
        reason: Why.
    """

    file: str
    backend: str | None
    reason: str


@dataclass(frozen=True)
class Source:
    """What all was made of.

    Attributes:
        name: Of the run or file, without its folder.
        model: The network.
        runtime: What it was scored on.
        size_hw: Input size.
        frames_per_run: A number; or `dynamic`, which is timed with one.
        miou: Of the source; see `Run`, as for `iou`.
        iou: See there.
    """

    name: str
    model: str
    runtime: str
    size_hw: tuple[int, int]
    frames_per_run: int | str
    miou: float
    iou: Mapping[str, float | None]


@dataclass(frozen=True)
class Data:
    """Pictures: the set's name and split, how many, and their hash as fitted to the model."""

    name: str
    split: str | None
    pictures: int
    sha256: str


@dataclass(frozen=True)
class Report:
    """All of it.

    Attributes:
        complete: Whether the command came to its end.
        source: What it was made of.
        data: What was scored on.
        calibration: What int8's ranges were measured on; None when that failed, as the int8 files' reason says.
        max_miou_drop: Points of mIoU that a file may lose.
        runtimes: What could be run here, and for the rest why not.
        files: In the order they are made.
        choices: Runtime to what to ship there: `ort`, `openvino` or `trt`.
        overall: What to ship to a machine like this one.
        environment: The machine and the software.
        load: Of the machine at the end of the timing: processes that want a core, over the last minute, this one among
            them; None where nothing was timed, or the system does not say.
        schema: SCHEMA.
    """

    complete: bool
    source: Source
    data: Data
    calibration: Data | None
    max_miou_drop: float
    runtimes: Mapping[str, str]
    files: tuple[File, ...]
    choices: Mapping[str, Choice]
    overall: Choice | None
    environment: Environment
    load: float | None = None
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """Return it as what JSON holds."""
        return dataclasses.asdict(self)
