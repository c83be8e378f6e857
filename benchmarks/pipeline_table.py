"""The cases of `benchmarks.pipeline`, and what they cost beside their sessions, as values and as a table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """What a case cost a frame: wall time, and processor time of all its threads."""

    frames: int
    wall_ms: float
    cpu_ms: float


@dataclass(frozen=True)
class Case:
    """Something to measure.

    Attributes:
        measure: Runs over the film once.
        alone: The case of its session alone; None for what has no session, or is that case.
        used: The case of its session as it uses it.
    """

    measure: Callable[[], Cost]
    alone: str | None = None
    used: str | None = None


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median and range."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summarise(cases: Mapping[str, Case], rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Hold each case against its session alone, round by round.

    Args:
        cases: The cases by name.
        rounds: What `one_round` returned, one each.

    Returns:
        Case -> quantity -> median, min and max: `wall_ms`, `cpu_ms`, and where there is a session `kept`
        (dimensionless), `outside_ms` and `cpu_outside_ms`.
    """
    summary: dict[str, Any] = {}
    for name, case in cases.items():
        rows = [{key: of[name][key] for key in ("wall_ms", "cpu_ms")} for of in rounds]
        for row, of in zip(rows, rounds, strict=True):
            if case.alone and case.used:
                row["kept"] = of[case.alone]["wall_ms"] / row["wall_ms"]
                row["outside_ms"] = row["wall_ms"] - of[case.alone]["wall_ms"]
                row["cpu_outside_ms"] = row["cpu_ms"] - of[case.used]["cpu_ms"]
        summary[name] = {key: spread([row[key] for row in rows]) for key in rows[0]}
    return summary


def markdown(summary: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return a summary as a table: medians, and the range of what was kept."""
    lines = ["| | frame ms | session / frame | outside ms | CPU outside ms |", "|---|---|---|---|---|"]
    for name, of in summary.items():
        cells = [f"{of['wall_ms']['median']:.1f}", "", "", ""]
        if "kept" in of:
            kept = of["kept"]
            cells[1] = f"{kept['median']:.2f} ({kept['min']:.2f} to {kept['max']:.2f})"
            cells[2:] = [f"{of[key]['median']:.1f}" for key in ("outside_ms", "cpu_outside_ms")]
        elif name.endswith("decode alone"):
            cells[3] = f"{of['cpu_ms']['median']:.1f}"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
