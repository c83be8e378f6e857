"""study.json as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.distill.record import Scores, scores


def report(record: Mapping[str, Any]) -> str:
    """Return the tables of a study: methods, equal time, ablation, classes."""
    teacher, environment = record["teacher"], record["environment"]
    where = ", ".join([*environment["gpus"], environment["cpu"]])
    teacher_miou = 100 * teacher["test"]["miou"]
    software = f"{environment['cores']} cores, torch {environment['packages'].get('torch', 'unknown')}"
    parts = [f"{record['data']}; teacher {teacher['model']}, {teacher_miou:.2f} % test mIoU; {where}, {software}."]
    for network in record["study"]["students"]:
        parts += _student(record, network["model"])
    if len({run["code"] for run in record["runs"]}) > 1:
        parts.append("These runs are of several versions of the toolkit's code (`code` in study.json).")
    if record["missing"]:
        parts.append(f"Not finished: {', '.join(record['missing'])}.")
    parts += [f"Failed: {name}: {message}" for name, message in record["failed"].items()]
    return "\n\n".join(parts) + "\n"


def _student(record: Mapping[str, Any], student: str) -> list[str]:
    matrix = scores(record, "matrix", student)
    if not matrix:
        return []
    alone = next((line for line in matrix if line.label == "none"), None)
    cost = record["cost"].get(student, {})
    steps, batch = matrix[0].runs[0]["steps"], matrix[0].runs[0]["batch"]
    title = f"### {student}, {steps} steps of {batch}"
    head = ["method", "seeds", "test mIoU, %", "over none", "s a step", "over KD", "images a second", "peak memory, MB"]
    body = [[*_line(line, alone), *_cost(cost.get(line.label), batch)] for line in _best_first(matrix)]
    parts = [title, _table(head, body)]
    timed = scores(record, "equal time", student)
    if timed:
        reference = record["study"]["matrix"]["reference"]
        lines = [line for line in matrix if line.label == reference] + timed
        body = [[*_line(line, alone), str(line.runs[0]["steps"])] for line in lines]
        parts += ["In equal time:", _table([*head[:4], "steps"], body)]
    ablation = scores(record, "ablation", student)
    if ablation:
        parts += ["LFD's parts:", _table(head[:4], [_line(line, alone) for line in ablation])]
    classes = list(matrix[0].class_iou())
    body = [[line.label, *(_number(value) for value in line.class_iou().values())] for line in _best_first(matrix)]
    return [*parts, "IoU by class, %, mean over the seeds:", _table(["method", *classes], body)]


def _best_first(lines: Sequence[Scores]) -> list[Scores]:
    return sorted(lines, key=lambda line: -line.mean)


def _line(line: Scores, alone: Scores | None) -> list[str]:
    """Return method, seeds, mean with spread, and the difference to no teacher over common seeds."""
    spread = f" ± {line.spread:.2f}" if line.spread is not None else ""
    over = line.over(alone) if alone is not None and line != alone else None
    return [line.label, str(len(line.runs)), f"{line.mean:.2f}{spread}", f"{over[0]:+.2f}" if over else ""]


def _cost(took: Mapping[str, Any] | None, batch: int) -> list[str]:
    if took is None:
        return [""] * 4
    seconds = took["step_s"]
    return [f"{seconds:.3f}", f"{took['over_kd']:.2f}", f"{batch / seconds:.1f}", f"{took['peak_bytes'] / 1e6:.0f}"]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))
