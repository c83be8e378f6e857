"""The report of `lfd-export all` for people, as it is printed and as report.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from export.bundle_report import File, Report, Run
from export.gate_report import points

HEADS = ("file", "runs on", "MB", "mIoU, %", "points lost", "agrees, %", "p50, ms", "times fp32", "verdict")
LEFT = {0, 1, 8}
"""Columns of words."""
NAMED = 3
"""Layers of a step that are named."""


def markdown(report: Report) -> str:
    """Return a report as Markdown."""
    height, width = report.source.size_hw
    lines = [
        f"# {report.source.name}: {report.source.model}, {height}x{width}",
        "",
        *([] if report.complete else ["**Cut short: this is what there was by then.**", ""]),
        _intro(report),
        "",
        *_table(report),
        "",
        *(f"- {line}" for file in report.files for line in _remarks(file)),
        *_elsewhere(report),
        "",
        "## Ship",
        "",
        *(f"- {name}: {choice.file}. {choice.reason}" for name, choice in report.choices.items()),
    ]
    if report.overall is not None:
        lines.append(f"- on a machine like this one: **{report.overall.file}**. {report.overall.reason}")
    elif not report.choices:
        lines.append("- nothing: no file was both made and timed")
    return "\n".join(lines) + "\n"


def _intro(report: Report) -> str:
    source, here = report.source, report.environment
    batch = source.frames_per_run
    frames = f" with {batch} frames" if isinstance(batch, int) and batch > 1 else ""
    busy = ""
    if report.load is not None and report.load > here.cores + 1:
        busy = (
            f" **The machine was busy: a load of {report.load:.1f} on {here.cores} cores. The times are "
            "longer than on an idle one, and how they compare is less sure: measure again before you choose by them.**"
        )
    return (
        f"Source on {source.runtime}: mIoU {source.miou:.2%} on {report.data.pictures} pictures of {report.data.name} "
        f"{report.data.split}; a file may lose {report.max_miou_drop:g} points. p50 is one run of the model "
        f"alone{frames}, all in turns on {' and '.join((here.cpu, *here.gpus))}; ~ is a difference within the noise."
        f"{busy}"
    )


def _table(report: Report) -> list[str]:
    rows = [_row(file, run) for file in report.files if file.size is not None for run in file.runs]
    widths = [max(map(len, column)) for column in zip(HEADS, *rows, strict=True)]

    def line(cells: tuple[str, ...]) -> str:
        padded = (
            cell.ljust(width) if at in LEFT else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = (f"{'-' * (width - 1)}{'-' if at in LEFT else ':'}" for at, width in enumerate(widths))
    return [line(HEADS), f"| {' | '.join(rule)} |", *map(line, rows)]


def _row(file: File, run: Run) -> tuple[str, ...]:
    latency = run.latency
    ms = f"{latency.p50_ms:.2f}" if latency is not None and latency.p50_ms is not None else "-"
    ratio = latency.times_faster if latency is not None else None
    times = "-" if ratio is None else f"{ratio.median:.2f}{'' if ratio.decided else ' ~'}"
    said = "holds" if run.holds else "loses too much"
    if file.state != "written":
        said = "not written"
    return (
        file.name,
        run.backend or "as written",
        f"{(file.size or 0) / 1e6:.2f}",
        f"{100 * run.miou:.2f}",
        points(run.miou_lost),
        f"{100 * run.agreement:.3f}",
        ms,
        times,
        said,
    )


def _remarks(file: File) -> Iterator[str]:
    """Yield what a row does not say: why a file is not there, what stays wider than asked, where it does not run."""
    said = {"refused": "not written", "failed": "FAILED", "not reached": "not reached"}.get(file.state)
    if said is not None:
        yield f"{file.name}: {said}{': ' if file.reason else ''}{file.reason}"
    elif file.kept_float and file.precision == "int8":
        count = f"{len(file.kept_float)} layer{'s' if len(file.kept_float) > 1 else ''}"
        yield f"{file.name}: {count} in float to hold the accuracy: {'; '.join(_bought(file.search or {}))}"
    for gate in file.gates:
        if gate.name == "precision" and gate.found:
            yield f"{file.name}: {gate.note}"
    for backend, reason in file.fails_on.items():
        yield f"{file.name} does not run on {backend}: {reason}"


def _bought(search: Mapping[str, Any]) -> Iterator[str]:
    """Yield what each step of the search put back to float, what that bought, and what it cost."""
    for step in search.get("steps", ())[1:]:
        names = ", ".join(step["kept"][:NAMED])
        more = f" and {len(step['kept']) - NAMED} more" if len(step["kept"]) > NAMED else ""
        cost = "" if step["cost_ms"] is None else f" for {step['cost_ms']:.2f} ms"
        yield f"{names}{more} bought {points(step['bought'])} points{cost}"


def _elsewhere(report: Report) -> Iterator[str]:
    """Yield what another machine is to make, and which runtimes are not here."""
    elsewhere = [file for file in report.files if file.state == "elsewhere"]
    for reason in dict.fromkeys(file.reason for file in elsewhere):
        yield f"- Not made here: {reason}. Then, in this folder:"
        yield from (f"  - {file.name}: `{file.command}`" for file in elsewhere if file.reason == reason)
    told = {file.runtime for file in elsewhere}
    for name, said in report.runtimes.items():
        if said.startswith("not") and name.partition("-")[0] not in told:  # openvino's reason is openvino-bf16's
            yield f"- {name}: {said}"
