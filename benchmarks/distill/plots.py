"""study.json as pictures: mIoU over training time, and every run of every method."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.distill.record import Scores, scores
from lfd.files import replacing

_COLORS = ("#0072b2", "#e69f00", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")
"""Apart for the colour-blind (Okabe and Ito)."""


def draw(record: Mapping[str, Any], out: Path) -> list[Path]:
    """Draw two pictures for each student with results; return their paths."""
    written = []
    for network in record["study"]["students"]:
        student = network["model"]
        if scores(record, "matrix", student):
            for name, picture in (("curve", curve(record, student)), ("methods", methods(record, student))):
                path = out / f"{name}-{student.replace('/', '-').replace(':', '-')}.svg"
                with replacing(path) as aside:
                    picture.savefig(aside, metadata={"Date": None})
                written.append(path)
    return written


def curve(record: Mapping[str, Any], student: str) -> Figure:
    """Return validation mIoU over the minutes of training: mean over the seeds, with their range.

    A step takes what it took when the methods were timed in turn; where that was not done, what each run's log has.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    first = record["study"]["matrix"]["first"]
    colors = dict(zip(first, _COLORS, strict=False))
    for group, style in (("matrix", "-"), ("equal time", "--")):
        for line in scores(record, group, student):
            if line.label in colors:
                took = record["cost"].get(student, {}).get(line.label)
                _course(axes, line, took and took["step_s"], colors[line.label], style, group)
    axes.set(xlabel="minutes of training", ylabel="validation mIoU, %", title=student)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def _course(axes: Axes, line: Scores, step_s: float | None, color: str, style: str, group: str) -> None:
    """Draw the mean over the seeds at each step that all have, and the range between them."""
    by_seed = [{point["step"]: 100 * point["val_miou"] for point in run["curve"]} for run in line.runs]
    steps = sorted(set.intersection(*(set(points) for points in by_seed)))
    seconds = step_s or statistics.median(run["step_s"] for run in line.runs)
    minutes = [step * seconds / 60 for step in steps]
    columns = [[points[step] for points in by_seed] for step in steps]
    count = f"{len(line.runs)} seed{'s' if len(line.runs) > 1 else ''}"
    name = f"{line.label}{' for as long' if group == 'equal time' else ''}, {count}"
    axes.plot(minutes, [statistics.fmean(c) for c in columns], style, color=color, label=name)
    if style == "-":
        axes.fill_between(minutes, [min(c) for c in columns], [max(c) for c in columns], color=color, alpha=0.15, lw=0)


def methods(record: Mapping[str, Any], student: str) -> Figure:
    """Return a dot for each run's test mIoU and a bar at each method's mean, the best on top."""
    lines = sorted(scores(record, "matrix", student), key=lambda line: line.mean)
    figure = Figure(figsize=(7, 1.2 + 0.32 * len(lines)), layout="constrained")
    axes = figure.add_subplot()
    for row, line in enumerate(lines):
        color = {"lfd": _COLORS[2], "none": "#555555"}.get(line.label, _COLORS[0])
        axes.plot(line.mious, [row] * len(line.runs), "o", color=color, alpha=0.55, ms=5, mew=0)
        axes.plot([line.mean] * 2, [row - 0.3, row + 0.3], color=color, lw=2.5)
    alone = next((line for line in lines if line.label == "none"), None)
    if alone is not None:
        axes.axvline(alone.mean, color="#555555", lw=0.8, ls=":")
    axes.set_yticks(range(len(lines)), [line.label for line in lines])
    axes.set(xlabel="test mIoU, %; a dot is a seed, a bar their mean", title=student)
    axes.grid(axis="x", alpha=0.3)
    return figure
