"""The pages of a benchmark: JSON, Markdown, CSV and HTML in a folder, and a table for a terminal."""

from __future__ import annotations

import contextlib
import csv
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.bench.pictures import Shown
from deploy.bench.record import BenchmarkResult, ModelResult, to_json
from deploy.report.page import page
from deploy.report.remarks import remarks
from deploy.report.rows import Row, about, rows
from deploy.timing import Percentiles
from lfd.errors import LfdError, SinkError, UsageError
from lfd.files import check_free, write_text, write_texts

FORMULAS = ("=", "+", "-", "@", "\t", "\r")
FILES = ("bench.json", "bench.md", "bench.csv", "bench.html")


def check_out(folder: Path, overwrite: bool) -> None:
    """Refuse, before anything is measured, a folder that the report cannot be written to.

    Raises:
        UsageError: It is a file, nothing can be written there, or it holds a report and `overwrite` is false.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder} is a file; expected a folder for {FILES[0]} and its pages")
    for name in FILES:
        check_free(folder / name, overwrite)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:  # permissions do not tell of a file system that takes nothing
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UsageError(f"--out {folder}: cannot be written to ({error.strerror}); choose another place") from error
    finally:
        for path in made:
            with contextlib.suppress(OSError):  # somebody else has put something there meanwhile
                path.rmdir()


def write_report(result: BenchmarkResult, shown: Sequence[Shown], folder: Path, overwrite: bool) -> None:
    """Write record and pages into a folder, which is made; a reader never meets half a file.

    Raises:
        UsageError: Somebody has put a report there meanwhile, and `overwrite` is false.
        SinkError: Nothing can be written there any more.
    """
    texts = (to_json(result) + "\n", markdown(result), table_csv(result), page(result, shown))
    try:
        for name in FILES:
            check_free(folder / name, overwrite)
        write_texts({folder / name: text for name, text in zip(FILES, texts, strict=True)})
    except (OSError, LfdError) as error:
        said = f"--out {folder}: {error.strerror}" if isinstance(error, OSError) else str(error)
        kind = SinkError if isinstance(error, OSError) else UsageError
        saved = Path(tempfile.mkdtemp(prefix="lfd-bench-")) / FILES[0]
        write_text(saved, texts[0])
        raise kind(f"{said}. The record is in {saved}") from error


def text_table(result: BenchmarkResult) -> str:
    """Return the report for a terminal."""
    names = [m.name for m in result.models]
    head = [Row("", names), Row("", [*("student" for _ in names[1:]), "teacher"])]
    table = head + rows(result)
    first = max(len(row.label) for row in table if row.cells) + 2
    widths = [max(len(row.cells[i]) for row in table if row.cells) for i in range(len(names))]
    lines = [f"{what:10}{text}" for what, text in about(result)] + [""]
    for row in table:
        cells = "".join(f"   {cell:>{width}}" for cell, width in zip(row.cells, widths, strict=False))
        lines += [f"  {row.label:{first}}{cells}".rstrip()] if row.cells else ["", row.label]
    return "\n".join([*lines, "", *remarks(result)]).rstrip() + "\n"


def markdown(result: BenchmarkResult) -> str:
    """Return the report as a Markdown page."""
    models = result.models
    columns = [*(f"{m.name} (student)" for m in models[:-1]), f"{models[-1].name} (teacher)"]
    lines = [[r.label, *r.cells] if r.cells else [f"**{r.label}**", *[""] * len(columns)] for r in rows(result)]
    text = ["# Benchmark", "", *(md_text(f"- {what}: {said}") for what, said in about(result)), ""]
    text += [md_line(["", *columns]), "| --- |" + " ---: |" * len(columns), *map(md_line, lines)]
    text += ["", *(md_text(f"- {remark}") for remark in remarks(result)), "", "SHA-256, of what was measured:", ""]
    text += [md_text(f"- {m.name} ({m.model}): `{m.sha256}`") for m in models]
    text += [f"- frames for the clock: `{result.frames.timed_sha256}`"]
    if result.frames.scored_sha256:
        text += [f"- pictures and labels scored: `{result.frames.scored_sha256}`"]
    return "\n".join(text) + "\n"


def md_text(text: str) -> str:
    """Return text that Markdown takes for one line without HTML: names come from files of others."""
    return " ".join(text.split()).replace("<", "&lt;")


def md_line(cells: Sequence[str]) -> str:
    """Return a line of a Markdown table."""
    return "| " + " | ".join(md_text(cell).replace("|", "\\|") for cell in cells) + " |"


def table_csv(result: BenchmarkResult) -> str:
    """Return one line a model, scenario and part as CSV (RFC 4180), numbers in full; an empty cell is not known."""
    return csv_text(csv_records(result))


def csv_text(records: Sequence[Mapping[str, Any]]) -> str:
    """Return lines as CSV; the first has all columns. An apostrophe keeps a spreadsheet from running text."""

    def inert(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and value.startswith(FORMULAS) else value

    with io.StringIO(newline="") as text:
        writer = csv.DictWriter(text, fieldnames=list(records[0]))
        writer.writeheader()
        writer.writerows({key: inert(value) for key, value in record.items()} for record in records)
        return text.getvalue()


def csv_records(result: BenchmarkResult) -> list[dict[str, Any]]:
    """Return the lines of the CSV, column to value."""
    return [record for model in result.models for record in _csv_lines(model, result)]


def _csv_lines(model: ModelResult, result: BenchmarkResult) -> list[dict[str, Any]]:
    height, width = model.size_hw
    base: dict[str, Any] = {
        "model": model.name,
        "role": "teacher" if model is result.teacher else "student",
        "network": model.model,
        "precision": model.precision,
        "backend": model.backend,
    }
    power = model.power[0] if model.power else None
    facts: dict[str, Any] = {
        "miou": model.accuracy.miou if model.accuracy else None,
        "agreement": model.accuracy.agreement if model.accuracy else None,
        "file_mb": model.file_bytes / 1e6,
        "params": model.params,
        "macs": model.macs,
    }
    once: dict[str, Any] = {  # measured with scenario `single`, at the table's threads and size
        "peak_mb": model.memory.peak_mb,
        "gpu_mb": model.memory.gpu_mb,
        "load_ms": model.load_ms,
        "first_ms": model.first_ms,
        "power_meter": power.meter if power else None,
        "mean_w": power.mean_w if power else None,
        "mj_per_picture": power.mj_per_frame if power else None,
        "mj_above_idle": power.above_idle_mj if power else None,
    }
    lines = []

    def add(scenario: str, part: str, latency: Percentiles | None, images_per_s: float | None, **changed: Any) -> None:
        setting = {"threads": result.settings.threads, "batch": 1, "height": height, "width": width}
        numbers = {key: getattr(latency, key) if latency else None for key in Percentiles.__dataclass_fields__}
        line = {**base, "scenario": scenario, "part": part, **setting, **numbers, "images_per_s": images_per_s, **facts}
        lines.append({**line, **changed})

    for part in ("end_to_end", "model_alone"):
        timing = getattr(model.single, part)
        add("single", part, timing.latency, timing.images_per_s, **once)
        for offline in model.offline:
            timing = getattr(offline, part)
            add("offline", part, timing.latency, timing.images_per_s, batch=offline.batch)
        for stream in model.streams:
            rate = stream.images_per_s if part == "end_to_end" else None
            add(f"stream@{stream.fps:g}", part, getattr(stream, part), rate)
        for point in result.sweep:
            timing = getattr(point, part)
            if point.name == model.name and timing is not None and point.size_hw is not None:
                size = {"height": point.size_hw[0], "width": point.size_hw[1]}
                moved = {"threads": point.threads, **size, "peak_mb": point.peak_mb}
                if point.size_hw != model.size_hw:
                    moved |= {"miou": point.miou, "agreement": None, "macs": None}
                add("single", part, timing.latency, timing.images_per_s, **moved)
    return lines
