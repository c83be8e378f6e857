"""The summary of a suite: a row a model and report, as Markdown, CSV and HTML."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

from deploy.bench.record import BenchmarkResult
from deploy.report.page import document
from deploy.report.pages import FILES, csv_records, csv_text, md_line, md_text
from deploy.report.rows import about, number, percent, times
from lfd.errors import LfdError
from lfd.files import write_texts

SUMMARY = ("suite.md", "suite.csv", "suite.html")
HEAD = (
    "report",
    "model",
    "runtime",
    "threads",
    "median, ms",
    "p99, ms",
    "model alone, ms",
    "pictures a second",
    "times faster (range)",
    "mIoU, %",
    "as the teacher, %",
    "memory, MB",
    "file, MB",
    "mJ a picture",
)
TEXTS = 3
"""Columns of HEAD that hold words."""


def summary_rows(results: Mapping[str, BenchmarkResult]) -> list[list[str]]:
    """Return a row a model: the cells of HEAD; "-" for what is not known."""
    found = []
    for name, result in results.items():
        faster = {s.result.name: times(s.versus.faster_end_to_end) for s in result.students}
        for model in (result.teacher, *(student.result for student in result.students)):
            whole, alone = model.single.end_to_end, model.single.model_alone
            found.append(
                [
                    name,
                    f"{model.name} (teacher)" if model is result.teacher else model.name,
                    f"{model.backend.replace('ExecutionProvider', '')}, {model.precision}",
                    str(result.settings.threads or "default"),
                    number(whole.latency.p50_ms),
                    number(whole.latency.p99_ms),
                    number(alone.latency.p50_ms),
                    number(whole.images_per_s),
                    faster.get(model.name, "1") if model is not result.teacher else "1",
                    percent(model.accuracy.miou if model.accuracy else None),
                    percent(model.accuracy.agreement if model.accuracy else None),
                    number(model.memory.peak_mb),
                    number(model.file_bytes / 1e6),
                    number(model.power[0].mj_per_frame if model.power else None),
                ]
            )
    return found


def _troubles(results: Mapping[str, BenchmarkResult], failures: Mapping[str, LfdError]) -> list[str]:
    found = [f"{name}: interrupted: {r.interrupted}" for name, r in results.items() if r.interrupted]
    found += [f"{name}: {f.name}: {f.message}" for name, r in results.items() for f in r.failures]
    return found + [f"{name}: {error}" for name, error in failures.items()]


def summary_text(results: Mapping[str, BenchmarkResult], failures: Mapping[str, LfdError]) -> str:
    """Return the summary for a terminal."""
    table = [list(HEAD), *summary_rows(results)]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEAD))]
    lines = [
        "  ".join(
            cell.ljust(w) if i < TEXTS else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]
    return "\n".join([*(line.rstrip() for line in lines), "", *_troubles(results, failures)]).rstrip() + "\n"


def write_summary(
    title: str, results: Mapping[str, BenchmarkResult], failures: Mapping[str, LfdError], folder: Path
) -> None:
    """Write the summary beside the reports' folders."""
    texts = (
        _markdown(title, results, failures),
        _csv(results),
        _html(title, results, failures),
    )
    write_texts({folder / name: text for name, text in zip(SUMMARY, texts, strict=True)})


def circumstances(results: Mapping[str, BenchmarkResult]) -> list[tuple[str, str]]:
    """Return what is the same for all reports, and from when to when they were made."""
    told = [dict(about(result)) for result in results.values()]
    dates = sorted({lines["Date"] for lines in told})
    shared = [
        (what, text)
        for what, text in (told[0].items() if told else ())
        if what != "Date" and all(lines.get(what) == text for lines in told)
    ]
    return [("Date", " to ".join(dict.fromkeys((dates[0], dates[-1])))), *shared] if told else []


def _markdown(title: str, results: Mapping[str, BenchmarkResult], failures: Mapping[str, LfdError]) -> str:
    text = [md_text(f"# {title}"), "", *(md_text(f"- {what}: {said}") for what, said in circumstances(results)), ""]
    text += [md_line(HEAD), "|" + " --- |" * TEXTS + " ---: |" * (len(HEAD) - TEXTS)]
    text += [*map(md_line, summary_rows(results)), ""]
    text += [md_text(f"- {trouble}") for trouble in _troubles(results, failures)]
    return "\n".join(text).rstrip() + "\n"


def _csv(results: Mapping[str, BenchmarkResult]) -> str:
    records = [{"report": name, **record} for name, result in results.items() for record in csv_records(result)]
    return csv_text(records) if records else ""


def _html(title: str, results: Mapping[str, BenchmarkResult], failures: Mapping[str, LfdError]) -> str:
    kinds = [' class="text"' if index < TEXTS else "" for index in range(len(HEAD))]
    head = "".join(f'<th scope="col"{kind}>{escape(cell)}</th>' for cell, kind in zip(HEAD, kinds, strict=True))
    body = []
    for report, *row in summary_rows(results):
        cells = "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row, kinds[1:], strict=True))
        link = f'<a href="{escape(report)}/{FILES[3]}">{escape(report)}</a>'
        body.append(f'<tr><th scope="row">{link}</th>{cells}</tr>')
    troubles = "".join(f"<li>{escape(text)}</li>" for text in _troubles(results, failures))
    lines = "".join(f"<dt>{escape(what)}</dt><dd>{escape(text)}</dd>" for what, text in circumstances(results))
    return document(
        title,
        f'{f"""<div class="warn"><ul>{troubles}</ul></div>""" if troubles else ""}'
        f'<div class="card scroll"><table class="dense"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
        f'<h2>How it was measured</h2><div class="card"><dl>{lines}</dl></div>',
    )
