"""The benchmark as one HTML page that needs nothing else: no script, no font, no request to anybody."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

import cv2

from deploy.bench.pictures import Shown
from deploy.bench.record import BenchmarkResult, StudentResult
from deploy.report.charts import (
    Chart,
    accuracy_chart,
    class_chart,
    color_of,
    distribution_chart,
    size_charts,
    stage_chart,
    sweep_charts,
)
from deploy.report.remarks import remarks
from deploy.report.rows import about, number, percent, rows
from lfd.picture import colorize
from lfd.preprocess import Image, resize_image, resize_labels

STYLE = Path(__file__).parent / "templates" / "report.css"
THUMBNAIL = 280
"""Width of a picture in the strip."""
LOUD = 3
"""Warnings shown at once; more open on a click."""


def page(result: BenchmarkResult, shown: Sequence[Shown]) -> str:
    """Return the page; without pictures to show it has no strip."""
    charts = [accuracy_chart(result), stage_chart(result), distribution_chart(result)]
    more = [*size_charts(result), class_chart(result), *sweep_charts(result)]
    count = len(result.students)
    names = " and ".join(s.result.name for s in result.students) if count < 3 else f"{count} models"
    env = result.environment
    where = f"{result.frames.data} on {env.cpu}, {env.cores} cores, {env.date_utc}"
    body = f"""<p class="soft">{escape(where)}</p>
{_callout(result)}
<div class="grid">{"".join(_card(student, result) for student in result.students)}</div>
<h2>Speed and accuracy</h2>
<div class="charts">{"".join(_figure(chart) for chart in charts if chart)}</div>
<h2>What it takes</h2>
<div class="charts">{"".join(_figure(chart) for chart in more if chart)}</div>
{_strip(shown, result)}
<h2>All numbers</h2>
<div class="card scroll">{_table(result)}</div>
<h2>How it was measured</h2>
<div class="card">{_environment(result)}</div>"""
    return document(f"{names} against {result.teacher.name}", body)


def document(title: str, body: str) -> str:
    """Return a whole page; its policy forbids the browser to fetch anything."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>
{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{body}
</main>
</body>
</html>
"""


def _callout(result: BenchmarkResult) -> str:
    loud = [text.removeprefix("Warning: ") for text in remarks(result) if not text.startswith("Note:")]
    if not loud:
        return ""
    items = [f"<li>{escape(text)}</li>" for text in loud]
    more = f"<details><summary>{len(items) - LOUD} more</summary><ul>{''.join(items[LOUD:])}</ul></details>"
    return f'<div class="warn" role="note"><ul>{"".join(items[:LOUD])}</ul>{more if len(items) > LOUD else ""}</div>'


def _card(student: StudentResult, result: BenchmarkResult) -> str:
    versus, model = student.versus, student.result
    ratio = versus.faster_end_to_end
    facts = [
        (
            f"{'' if ratio.decided else '~'}{number(ratio.median)}\u00d7",
            f"as fast, end to end ({number(ratio.low)}\u2013{number(ratio.high)})",
        ),
        (f"{number(versus.smaller)}\u00d7", "smaller file"),
    ]
    if model.accuracy and versus.miou_lost is not None:
        change = -100 * versus.miou_lost
        facts.append((f"{change:+.2f}".replace("-", "\u2212"), f"points of mIoU, now {percent(model.accuracy.miou)} %"))
        facts.append((f"{percent(model.accuracy.agreement)} %", "of pixels as the teacher says"))
    items = "".join(f"<li><b>{escape(value)}</b><span>{escape(what)}</span></li>" for value, what in facts)
    swatch = f'<span class="swatch" style="background: var({color_of(model, result)})"></span>'
    method = f" by {model.method}" if model.method else ""
    return (
        f'<section class="card"><h3>{swatch}{escape(model.name)}</h3>'
        f'<p class="soft">{escape(model.model + method)}, {escape(model.precision)}, {escape(model.backend)}</p>'
        f'<ul class="facts">{items}</ul></section>'
    )


def _figure(chart: Chart) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in chart.head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in chart.rows
    )
    return (
        f"<figure><figcaption><strong>{escape(chart.title)}</strong>{escape(chart.caption)}</figcaption>{chart.svg}"
        f'<details><summary>As a table</summary><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></details></figure>"
    )


def _picture(image: Image, suffix: str) -> str:
    options = [cv2.IMWRITE_JPEG_QUALITY, 82] if suffix == ".jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 9]
    data = base64.b64encode(cv2.imencode(suffix, image, options)[1].tobytes()).decode()
    return f"data:image/{suffix[1:].replace('jpg', 'jpeg')};base64,{data}"


def _strip(shown: Sequence[Shown], result: BenchmarkResult) -> str:
    if not shown:
        return ""
    labels = shown[0].labels
    order = [result.teacher.name, *(s.result.name for s in result.students)]
    parts = []
    for picture in shown:
        height, width = picture.truth.shape
        size_hw = (max(1, round(height * THUMBNAIL / width)), THUMBNAIL)
        cells = [("frame", _picture(resize_image(picture.frame, size_hw), ".jpg"))]
        maps = {"truth": picture.truth, **{name: picture.maps[name] for name in order if name in picture.maps}}
        for name, found in maps.items():
            cells.append((name, _picture(colorize(resize_labels(found, size_hw), labels), ".png")))
        parts += [
            f'<figure><img src="{data}" width="{size_hw[1]}" height="{size_hw[0]}" loading="lazy" '
            f'alt="{escape(name)}, picture {escape(picture.name)}"><figcaption>{escape(name)}</figcaption></figure>'
            for name, data in cells
        ]
    legend = "".join(
        f'<span><span class="swatch" style="background: rgb({r} {g} {b})"></span>{escape(name)}</span>'
        for name, (r, g, b) in zip(labels.names, labels.colors, strict=True)
    )
    return (
        f'<h2>Pictures</h2><div class="card"><div class="strip" style="grid-template-columns: repeat({2 + len(order)}, '
        f'minmax(120px, 1fr))">{"".join(parts)}</div><div class="legend">{legend}</div></div>'
    )


def _table(result: BenchmarkResult) -> str:
    models = result.models
    head = "".join(f'<th scope="col">{escape(m.name)}</th>' for m in models)
    body = []
    for row in rows(result):
        if row.cells:
            cells = "".join(f"<td>{escape(cell)}</td>" for cell in row.cells)
            body.append(f'<tr><th scope="row">{escape(row.label)}</th>{cells}</tr>')
        else:
            body.append(
                f'<tr class="head"><th scope="rowgroup" colspan="{len(models) + 1}">{escape(row.label)}</th></tr>'
            )
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _environment(result: BenchmarkResult) -> str:
    lines = "".join(f"<dt>{escape(what)}</dt><dd>{escape(text)}</dd>" for what, text in about(result))
    hashes = "".join(f"<dt>{escape(m.name)}</dt><dd><code>{m.sha256}</code></dd>" for m in result.models)
    hashes += f"<dt>frames for the clock</dt><dd><code>{result.frames.timed_sha256}</code></dd>"
    if result.frames.scored_sha256:
        hashes += f"<dt>pictures and labels scored</dt><dd><code>{result.frames.scored_sha256}</code></dd>"
    notes = "".join(f"<li>{escape(text)}</li>" for text in remarks(result))
    return (
        f"<dl>{lines}</dl><details><summary>SHA-256, of what was measured</summary><dl>{hashes}</dl></details>"
        f"{f'<ul>{notes}</ul>' if notes else ''}"
        '<p class="soft">Each model runs in a process of its own; they take turns. Percentiles are nearest rank, shown '
        "once LoadGen's early-stopping rule at 99 % confidence has enough samples. Raw samples are in bench.json.</p>"
    )
