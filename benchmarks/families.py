"""Every family of students in fp32, fp16 and INT8, on each runtime that is here: what it costs and what it gains.

    python -m benchmarks.families RUN ... --data camvid:PATH --out DIR [--threads 2]

`lfd-export all` for each run in turn; a folder with a finished report is kept. The reports, without their raw samples,
go to benchmarks/results/families.json, and the table is printed. Times are of an idle machine or worth nothing: each
report's load stands beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.commands import Commands
from lfd.console import guarded
from lfd.files import write_json

RESULTS = Path(__file__).parent / "results" / "families.json"
HEADS = ("student", "file", "runs on", "MB", "mIoU, %", "agrees, %", "p50, ms", "times fp32", "")


def read(folder: Path) -> dict[str, Any] | None:
    """Return the report in a folder; None where there is none that came to its end."""
    path = folder / "report.json"
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return report if report.get("complete") else None


def without_samples(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report without the milliseconds of each run, which fill megabytes; percentile and ratios stay."""
    for file in report["files"]:
        for run in file["runs"]:
            if run["latency"] is not None:
                del run["latency"]["rounds"]
    return report


def rows(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield a row of the table for each file on each runtime that it is meant for."""
    model = report["source"]["model"]
    for file in report["files"]:
        for run in file["runs"]:
            if run["backend"] is None or file["size"] is None:
                continue  # computed as it is written, for a machine that is not this one
            latency = run["latency"] or {"p50_ms": None, "times_faster": None}
            ratio = latency["times_faster"]
            told = "" if ratio is None or not ratio["low"] <= 1 <= ratio["high"] else " ~"
            kept = (
                f"{len(file['kept_float'])} layers in float"
                if file["precision"] == "int8" and file["kept_float"]
                else ""
            )
            yield (
                model,
                file["name"],
                run["backend"],
                f"{file['size'] / 1e6:.2f}",
                f"{100 * run['miou']:.2f}",
                f"{100 * run['agreement']:.2f}",
                "-" if latency["p50_ms"] is None else f"{latency['p50_ms']:.2f}",
                "-" if ratio is None else f"{ratio['median']:.2f}{told}",
                kept if file["state"] == "written" else f"refused: {file['reason']}",
            )


def table(reports: Sequence[dict[str, Any]]) -> str:
    """Return all of them as one Markdown table."""
    lines: list[tuple[str, ...]] = [HEADS, ("---", "---", "---", "--:", "--:", "--:", "--:", "--:", "---")]
    lines += [row for report in reports for row in rows(report)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--data", required=True, help="camvid:PATH; scored on its val, calibrated on its train.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the exported files.")
@click.option("--threads", default=2, show_default=True, help="Threads for one inference.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@guarded
def main(runs: tuple[Path, ...], data: str, out: Path, threads: int, results: Path) -> None:
    """Export, score and time each run; write the JSON and print the table."""
    commands, reports = Commands(), []
    for run in runs:
        folder = out / run.name
        if (report := read(folder)) is None:
            options = ["--data", data, "--threads", threads, "--overwrite"]
            commands.run(run.name, "lfd-export", "all", run, "-o", folder, *options)
            report = read(folder)
        if report is not None:
            reports.append(without_samples(report))
    write_json(results, {"schema": 1, "threads": threads, "reports": reports})
    click.echo(table(reports))


if __name__ == "__main__":
    main()
