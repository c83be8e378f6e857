"""The pages people read of a benchmark, a table and a Markdown page: made from its record alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from deploy.record import BenchmarkResult
from deploy.timing import PERCENTILES, TOLERANCE, Ratio, SingleStream, Timing, samples_needed
from lfd.errors import UsageError
from lfd.files import check_free, to_json, write_texts

FILES = ("bench.json", "bench.md")


def check_out(folder: Path, overwrite: bool) -> None:
    """Refuse, before anything is measured, a folder that the report cannot be written to.

    Raises:
        UsageError: It is a file, or holds a report and `overwrite` is false.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder} is a file; expected a folder for {' and '.join(FILES)}")
    for name in FILES:
        check_free(folder / name, overwrite)


def write_report(result: BenchmarkResult, folder: Path) -> None:
    """Write the record and the page into a folder, which is made; a reader never meets half a file."""
    write_texts({folder / FILES[0]: to_json(asdict(result)), folder / FILES[1]: markdown(result)})


class _Row(NamedTuple):
    """A line of the table; without cells it is the heading of those below."""

    label: str
    cells: Sequence[str] = ()


def number(value: float | None) -> str:
    """Return three significant digits without an exponent; "-" for None."""
    if value is None:
        return "-"
    rounded = float(f"{value:.3g}")
    digits = 2 - math.floor(math.log10(abs(rounded))) if rounded else 0
    return f"{value:.{max(0, digits)}f}"


def percent(value: float | None) -> str:
    """Return a share as per cent with two decimals; "-" for None."""
    return "-" if value is None else f"{100 * value:.2f}"


def _times(ratio: Ratio) -> str:
    return f"{number(ratio.median)} ({number(ratio.low)}-{number(ratio.high)})"


def _thrown_away(single: SingleStream) -> str:
    return f"{len(single.warm_up.thrown_away_ms)} + {len(single.rounds)}"


def _scaled(value: float | None, unit: float) -> str:
    return number(None if value is None else value / unit)


def _timing_rows(heading: str, timings: Sequence[Timing]) -> list[_Row]:
    latencies = [t.latency for t in timings]
    return [
        _Row(heading),
        _Row("median (p50), ms", [number(p.p50_ms) for p in latencies]),
        _Row("p90, ms", [number(p.p90_ms) for p in latencies]),
        _Row("p95, ms", [number(p.p95_ms) for p in latencies]),
        _Row("p99, ms", [number(p.p99_ms) for p in latencies]),
        _Row("slowest, ms", [number(p.max_ms) for p in latencies]),
        _Row("pictures a second", [number(t.images_per_s) for t in timings]),
        _Row("spread, standard deviation to mean, %", [percent(t.variation) for t in timings]),
        _Row("drift, second half to first, %", [percent(t.drift) for t in timings]),
    ]


def rows(result: BenchmarkResult) -> list[_Row]:
    """Return the table's lines; the students' columns come first, the teacher's last."""
    versus = [s.versus for s in result.students]
    models = [*(s.result for s in result.students), result.teacher]
    singles = [m.single for m in models]
    scored = [m.accuracy for m in models if m.accuracy is not None]
    against = [
        _Row("Against the teacher"),
        _Row("times faster, model alone (range of rounds)", [*(_times(v.faster_alone) for v in versus), "1"]),
        _Row("times faster, end to end (range of rounds)", [*(_times(v.faster_end_to_end) for v in versus), "1"]),
        _Row("times smaller, file", [*(number(v.smaller) for v in versus), "1"]),
    ]
    classes = []
    if scored:
        against += [
            _Row("mIoU lost, points", [*(percent(v.miou_lost) for v in versus), "0"]),
            _Row("mIoU kept, % of the teacher's", [*(percent(v.miou_kept) for v in versus), "100"]),
            _Row("pixels of the same class as its, %", [percent(a.agreement) for a in scored]),
            _Row("Accuracy"),
            _Row("mIoU, %", [percent(a.miou) for a in scored]),
            _Row("pixels right, %", [percent(a.pixel_accuracy) for a in scored]),
        ]
        named = enumerate(result.classes)
        classes = [_Row("IoU by class, %"), *(_Row(name, [percent(a.iou[i]) for a in scored]) for i, name in named)]
    return [
        *against,
        *_timing_rows("Speed, end to end: fit the frame, run the model, map back", [s.end_to_end for s in singles]),
        *_timing_rows("Speed, model alone", [s.model_alone for s in singles]),
        _Row("Samples"),
        _Row("counted", [str(s.end_to_end.latency.count) for s in singles]),
        _Row("thrown away: warm-up + one a round", [_thrown_away(s) for s in singles]),
        _Row("Start"),
        _Row("load, ms", [number(m.load_ms) for m in models]),
        _Row("first picture, ms", [number(m.first_ms) for m in models]),
        _Row("Size"),
        _Row("input, height x width", ["{}x{}".format(*m.size_hw) for m in models]),
        _Row("precision", [m.precision for m in models]),
        _Row("file, MB", [number(m.file_bytes / 1e6) for m in models]),
        _Row("parameters, million", [_scaled(m.params, 1e6) for m in models]),
        _Row("MACs at that input, billion", [_scaled(m.macs, 1e9) for m in models]),
        _Row("memory of the process at its peak, MB", [number(m.memory.peak_mb) for m in models]),
        _Row("of that the model's share, MB", [number(m.memory.model_mb) for m in models]),
        *classes,
    ]


def remarks(result: BenchmarkResult) -> list[str]:
    """Return what a reader must know to judge the numbers: warnings, notes, failures."""
    models = [*(s.result for s in result.students), result.teacher]
    found = []
    for model in models:
        timings = (model.single.model_alone, model.single.end_to_end)
        if any(t.unsteady for t in timings):
            spread, drift = (max(abs(getattr(t, key) or 0.0) for t in timings) for key in ("variation", "drift"))
            found.append(
                f"Warning: {model.name}: times spread by {percent(spread)} % and drift by {percent(drift)} % "
                f"(above {100 * TOLERANCE:g} %); smaller differences mean nothing"
            )
        if not model.single.warm_up.settled:
            found.append(f"Warning: {model.name}: its warm-up did not come to rest in {result.settings.seconds:g} s")
        figures = {"parameters": model.params, "MACs": model.macs}
        if absent := [what for what, value in figures.items() if value is None]:
            found.append(f"Note: {model.name} does not say its {' and '.join(absent)}; export it again to have them")
    counts = [m.single.end_to_end.latency.count for m in models]
    needed = {f"p{100 * p:g}": samples_needed(p) for p in PERCENTILES}
    if min(counts) < max(needed.values()):
        earned = ", ".join(f"{name} {n}" for name, n in needed.items())
        found.append(f"Note: a percentile is shown once enough samples earned it ({earned}); --seconds takes more")
    found += [f"Note: {note}" for note in result.notes]
    found += [f"Failed: {failure.name}: {failure.message}" for failure in result.failures]
    return found


def _about(result: BenchmarkResult) -> list[tuple[str, str]]:
    """Return (what, text) lines on the circumstances."""
    env, frames = result.environment, result.frames
    clock = f", {env.clock_mhz:.0f} MHz" if env.clock_mhz else ""
    governor = f", governor {env.governor}" if env.governor else ""
    memory = f", {env.memory_mb / 1e3:.1f} GB" if env.memory_mb else ""
    threads = str(env.threads) if env.threads else "the runtime's choice"
    sizes = ", ".join(f"{width}x{height}" for width, height in frames.sizes_wh)
    scored = f"{frames.scored} scored" if frames.scored else "none scored"
    return [
        ("Date", env.date_utc),
        ("Machine", f"{env.cpu}, {env.cores} cores{clock}{governor}{memory}; {env.system}"),
        ("Software", ", ".join([f"Python {env.python}", *(f"{k} {v}" for k, v in env.packages.items())])),
        ("Runtime", f"{result.teacher.backend}; threads: {threads}"),
        ("Pictures", f"{frames.data}: {frames.timed} in turns for the clock ({sizes}), {scored}"),
    ]


def text_table(result: BenchmarkResult) -> str:
    """Return the report for a terminal."""
    names = [*(s.result.name for s in result.students), result.teacher.name]
    head = [_Row("", names), _Row("", [*("student" for _ in names[1:]), "teacher"])]
    table = head + rows(result)
    first = max(len(row.label) for row in table if row.cells) + 2
    widths = [max(len(row.cells[i]) for row in table if row.cells) for i in range(len(names))]
    lines = [f"{what:10}{text}" for what, text in _about(result)] + [""]
    for row in table:
        cells = "".join(f"   {cell:>{width}}" for cell, width in zip(row.cells, widths, strict=False))
        lines += [f"  {row.label:{first}}{cells}".rstrip()] if row.cells else ["", row.label]
    return "\n".join([*lines, "", *remarks(result)]).rstrip() + "\n"


def markdown(result: BenchmarkResult) -> str:
    """Return the report as a Markdown page."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    models = [*(s.result for s in result.students), result.teacher]
    columns = [*(f"{m.name} (student)" for m in models[:-1]), f"{models[-1].name} (teacher)"]
    page = ["# Benchmark", "", *(f"- {what}: {text}" for what, text in _about(result)), ""]
    page += [line(["", *columns]), "| --- |" + " ---: |" * len(columns)]
    page += [line([r.label, *r.cells] if r.cells else [f"**{r.label}**", *[""] * len(columns)]) for r in rows(result)]
    page += ["", *(f"- {remark}" for remark in remarks(result)), "", "SHA-256, of what was measured:", ""]
    page += [f"- {m.name} ({m.model}): `{m.sha256}`" for m in models]
    page += [f"- frames for the clock: `{result.frames.timed_sha256}`"]
    if result.frames.scored_sha256:
        page += [f"- pictures and labels scored: `{result.frames.scored_sha256}`"]
    return "\n".join(page) + "\n"
