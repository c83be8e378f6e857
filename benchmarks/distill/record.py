"""study.json: what was measured, with the environment; and the figures that tables and plots are made of."""

from __future__ import annotations

import hashlib
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lfd
from benchmarks.distill.study import Run, Study
from deploy.environment import Environment
from lfd.data import open_dataset

SCHEMA = 1


def code_digest() -> str:
    """Return a hash of the toolkit's training code, which a result is of."""
    digest = hashlib.sha256()
    root = Path(lfd.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def data_identity(data: str) -> str:
    """Return a hash of classes, counts and some pictures of each split, wherever they lie.

    Raises:
        DataError: A split or picture is missing or broken.
        UsageError: There is no such data set.
    """
    digest = hashlib.sha256()
    for split in ("train", "val", "test"):
        pictures = open_dataset(data, split)
        digest.update(f"{split} {pictures.labels} {len(pictures)}".encode())
        for index in (0, len(pictures) // 2, len(pictures) - 1):
            sample = pictures[index]
            digest.update(sample.name.encode() + sample.image.tobytes() + sample.mask.tobytes())
    return digest.hexdigest()[:12]


def describe(run: Run, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a finished run as study.json has it."""
    about = {"name": run.name, "group": run.group, "label": run.label, "student": run.student, "seed": run.seed}
    return {**about, "config": _settings(run), **result}


def _settings(run: Run) -> dict[str, Any]:
    """Return the whole configuration but what says where things are."""
    config = asdict(run.config)
    for section, key in (("data", "source"), ("distill", "teacher"), ("train", "device")):
        del config[section][key]
    return config


def step_ratios(done: Iterable[tuple[Run, Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """Return student to method to its step's time over KD's: the clock's on a GPU, the processor's on a CPU.

    Others use a CPU too, and the processor's time is what they take least from.
    """
    ratios: dict[str, dict[str, float]] = {}
    for run, result in done:
        if run.group == "cost":
            key = "step_s" if result["device"] == "cuda" else "cpu_s"
            took = result["methods"]
            known = {method: values[key] / took["kd"][key] for method, values in took.items()}
            ratios[run.student] = {**known, **ratios.get(run.student, {})}
    return ratios


def study_record(
    study: Study,
    data: str,
    teacher: Mapping[str, Any],
    done: Sequence[tuple[Run, Mapping[str, Any]]],
    missing: Iterable[str],
    failed: Mapping[str, str],
    gpus: tuple[str, ...],
) -> dict[str, Any]:
    """Return study.json.

    Args:
        study: What was asked for.
        data: The data set's name, without its path.
        teacher: Its network and its scores on the test split.
        done: Finished runs with their results.
        missing: Names of those that are not finished.
        failed: Name to message of those that failed.
        gpus: Names of the cards.
    """
    ratios = step_ratios(done)
    costs: dict[str, dict[str, Any]] = {}
    for run, result in done:
        if run.group == "cost":
            group = {m: {**took, "over_kd": ratios[run.student][m]} for m, took in result["methods"].items()}
            costs[run.student] = {**group, **costs.get(run.student, {})}  # KD's own is the first group's
    return {
        "schema": SCHEMA,
        "environment": asdict(Environment.here(int(os.environ.get("OMP_NUM_THREADS") or 0), gpus)),
        "data": data,
        "study": asdict(study),
        "teacher": dict(teacher),
        "runs": [describe(run, result) for run, result in done if run.group != "cost"],
        "cost": costs,
        "missing": list(missing),
        "failed": dict(failed),
    }


@dataclass(frozen=True)
class Scores:
    """The runs that one line of a table or plot stands for.

    Attributes:
        label: Method, or row of the ablation.
        runs: Of different seeds, as study.json has them.
    """

    label: str
    runs: tuple[Mapping[str, Any], ...]

    @property
    def mious(self) -> list[float]:
        """Test mIoU of each seed, in %."""
        return [100 * run["test"]["miou"] for run in self.runs]

    @property
    def mean(self) -> float:
        """Mean test mIoU, in %."""
        return statistics.fmean(self.mious)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the seeds; None for one."""
        return statistics.stdev(self.mious) if len(self.runs) > 1 else None

    def over(self, other: Scores) -> tuple[float, int] | None:
        """Return the mean difference to another in points over the seeds that both have, and their number."""
        theirs = {run["seed"]: run["test"]["miou"] for run in other.runs}
        pairs = [100 * (run["test"]["miou"] - theirs[run["seed"]]) for run in self.runs if run["seed"] in theirs]
        return (statistics.fmean(pairs), len(pairs)) if pairs else None

    def class_iou(self) -> dict[str, float | None]:
        """Return the mean IoU of each class in %, None where no picture has it."""
        named: dict[str, float | None] = {}
        for name in self.runs[0]["test"]["iou"]:
            values = [run["test"]["iou"][name] for run in self.runs]
            named[name] = 100 * statistics.fmean(values) if None not in values else None
        return named


def scores(record: Mapping[str, Any], group: str, student: str) -> list[Scores]:
    """Return the lines of a group in study.json, in the order of the queue."""
    labels = dict.fromkeys(run["label"] for run in _in(record, group, student))
    return [Scores(label, tuple(r for r in _in(record, group, student) if r["label"] == label)) for label in labels]


def _in(record: Mapping[str, Any], group: str, student: str) -> list[Mapping[str, Any]]:
    return [run for run in record["runs"] if run["group"] == group and run["student"] == student]
