"""The charts of a report, each drawn from the record alone: a caption, a picture, and its numbers as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from deploy.bench.record import BenchmarkResult, ModelResult
from deploy.report.rows import describe, number, percent, stage_ms
from deploy.report.svg import WIDTH, Scale, Svg, axis_x, place_labels
from deploy.timing import Percentiles

COLORS = tuple(f"--c{i}" for i in range(1, 7))
TEACHER = "--teacher"
BINS = 72


class Chart(NamedTuple):
    """A picture with its caption, and the same as a table for those who cannot see it."""

    title: str
    caption: str
    svg: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def color_of(model: ModelResult, result: BenchmarkResult) -> str:
    """Return the name of a model's colour in the page's style."""
    return TEACHER if model is result.teacher else COLORS[result.models.index(model) % len(COLORS)]


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return which (latency, accuracy) points no other beats in both, from the fastest to the slowest."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    best, front = -math.inf, []
    for index in order:
        if points[index][1] > best:
            best = points[index][1]
            front.append(index)
    return front


def accuracy_chart(result: BenchmarkResult) -> Chart | None:
    """Accuracy against latency, with the front of those that nothing beats in both."""
    models = [m for m in result.models if m.accuracy and m.accuracy.miou is not None and median(m) is not None]
    if len(models) < 2:
        return None
    points = [(median(m) or 0.0, 100 * (m.accuracy.miou or 0.0) if m.accuracy else 0.0) for m in models]
    front = pareto(points)
    top, bottom = 30.0, 240.0
    x = Scale.over([p[0] for p in points], 44, WIDTH - 12, log=True)
    y = Scale.over([p[1] for p in points], bottom, top, least=1.0)
    svg = Svg(
        bottom + 40, "mIoU against latency", "One point a model; a broken line joins those that none beats in both"
    )
    axis_x(svg, x, top, bottom, "median ms a picture, end to end; less is better")
    taken = []
    for tick in y.ticks():
        taken.append((0.0, y(tick) - 9, 42.0, y(tick) + 7))
        svg.line(44, y(tick), WIDTH - 12, y(tick))
        svg.text(38, y(tick) + 4, f"{tick:g}", "end", "soft")
    steps = [(x(points[front[0]][0]), bottom)]
    for before, after in zip([front[0], *front], front, strict=False):
        steps += [(x(points[after][0]), y(points[before][1])), (x(points[after][0]), y(points[after][1]))]
    svg.path([*steps, (WIDTH - 12, y(points[front[-1]][1]))], "front")
    places = [(x(ms), y(miou)) for ms, miou in points]
    labels = place_labels(places, [m.name for m in models], [*taken, (0.0, bottom, float(WIDTH), bottom + 40)])
    for model, (ms, miou), (across, down), label in zip(models, points, places, labels, strict=True):
        tip = f"{model.name}: {number(ms)} ms, {miou:.2f} % mIoU"
        svg.dot(across, down, color_of(model, result), tip, diamond=model is result.teacher)
        svg.text(*label, model.name)
    rows = [
        [m.name, number(p[0]), f"{p[1]:.2f}", "yes" if i in front else "no"]
        for i, (m, p) in enumerate(zip(models, points, strict=True))
    ]
    return Chart(
        "Accuracy against latency",
        "mIoU in %, up is better; left is faster. The broken line is the Pareto front; the diamond is the teacher.",
        svg.render(),
        ("model", "median, ms", "mIoU, %", "on the front"),
        rows,
    )


def median(model: ModelResult) -> float | None:
    """Return the median of a picture end to end, in ms."""
    return model.single.end_to_end.latency.p50_ms


def _series(result: BenchmarkResult) -> list[tuple[str, str, list[float], Percentiles | None]]:
    """Return label, colour, durations in ms and summary of everything that has a distribution to show."""
    found: list[tuple[str, str, list[float], Percentiles | None]] = []
    for model in result.models:
        single = [ms for samples in model.single.rounds for ms in samples.end_to_end_ms]
        found.append((model.name, color_of(model, result), single, model.single.end_to_end.latency))
        for stream in (s for s in model.streams if s.keeps_up):
            pairs = zip(stream.wait_ms, stream.samples.end_to_end_ms, strict=True)
            latencies = [wait + service for wait, service in pairs]
            found.append(
                (f"{model.name}, stream@{stream.fps:g}", color_of(model, result), latencies, stream.end_to_end)
            )
    return found


def distribution_chart(result: BenchmarkResult) -> Chart:
    """Every sample, in rows on one axis."""
    series = _series(result)
    values = [ms for _, _, samples, _ in series for ms in samples]
    row, top = 62.0, 8.0
    bottom = top + row * len(series)
    x = Scale.over([min(values), max(values)], 8, WIDTH - 8, log=True)
    svg = Svg(bottom + 40, "Distribution of latencies", "A row a model; the height of a bar is the root of its share")
    axis_x(svg, x, top, bottom, "ms a picture, end to end")
    step = (x.end - x.begin) / BINS
    rows = []
    for index, (name, color, samples, summary) in enumerate(series):
        base = top + row * (index + 1) - 6
        counts = [0] * BINS
        for ms in samples:
            counts[min(BINS - 1, int((x(ms) - x.begin) / step))] += 1
        for place, n in enumerate(counts):
            if n:
                # The root lets one slow picture in a thousand be seen beside the others.
                height = max(1.5, 34 * math.sqrt(n / max(counts)))
                svg.rect(
                    x.begin + place * step,
                    base - height,
                    step - 0.4,
                    height,
                    color,
                    tip=f"{name}: {n} of {len(samples)}",
                )
        svg.line(x.begin, base, x.end, base)
        svg.text(x.begin, base - 42, name)
        known = [(key, getattr(summary, f"{key}_ms")) for key in ("p50", "p90", "p95", "p99")] if summary else []
        earned = [(key, ms) for key, ms in known if ms is not None]
        for _, ms in earned:
            svg.line(x(ms), base, x(ms), base + 5, "mark")
        said = ", ".join(f"{key} {number(ms)}" for key, ms in earned[:1] + earned[1:][-1:])
        svg.text(x.end, base - 42, said, "end", "soft")
        rows.append([name, str(len(samples)), *(number(ms) for _, ms in known), number(max(samples))])
    return Chart(
        "Latency, every sample",
        "Nothing is clipped. Ticks below a row are p50, p90, p95 and p99, as far as the samples earned them; "
        "a stream's latency counts from the scheduled arrival.",
        svg.render(),
        ("", "samples", "p50, ms", "p90, ms", "p95, ms", "p99, ms", "slowest, ms"),
        rows,
    )


class Bar(NamedTuple):
    """A bar of one or more pieces, of which `said` is written at its end."""

    name: str
    color: str
    pieces: Sequence[float]
    said: str


def bars(title: str, caption: str, unit: str, found: Sequence[Bar], names: Sequence[str]) -> Chart:
    """Draw horizontal bars; `names` are the pieces', from the left and the darkest."""
    row, top = 42.0, 4.0
    bottom = top + row * len(found)
    x = Scale.over([sum(bar.pieces) for bar in found], 8, WIDTH - 8, zero=True)
    svg = Svg(bottom + 40, title, f"Bars in {unit}, a row a model")
    axis_x(svg, x, top, bottom, unit)
    for index, bar in enumerate(found):
        y, at = top + row * index, 0.0
        svg.text(8, y + 15, bar.name)
        svg.text(WIDTH - 8, y + 15, bar.said, "end", "soft")
        for kind, name, piece in zip(("", "second", "third"), names, bar.pieces, strict=False):
            svg.rect(x(at), y + 20, x(at + piece) - x(at), 14, bar.color, kind, f"{bar.name}, {name}: {number(piece)}")
            at += piece
    rows = [[bar.name, *(number(piece) for piece in bar.pieces)] for bar in found]
    return Chart(title, caption, svg.render(), ("", *(f"{name}, {unit}" for name in names)), rows)


def _bars_of(
    result: BenchmarkResult, pieces: Callable[[ModelResult], Sequence[float | None]], said: Callable[[float], str]
) -> list[Bar]:
    found = []
    for model in result.models:
        values = [value for value in pieces(model) if value is not None]
        if values:
            found.append(Bar(model.name, color_of(model, result), values, said(sum(values))))
    return found


def stage_chart(result: BenchmarkResult) -> Chart:
    """Where the time goes."""
    stages = ("model_ms", "fit_ms", "restore_ms")
    found = _bars_of(result, lambda m: [stage_ms(m, stage) for stage in stages], lambda v: f"{number(v)} ms")
    caption = (
        "Mean time a picture. Full colour: the model; fainter: fitting the frame; faintest: the map back to its size."
    )
    return bars("Where the time goes", caption, "ms", found, ("model", "fit the frame", "map back"))


def size_charts(result: BenchmarkResult) -> list[Chart]:
    """Memory, file and energy."""
    memory = _bars_of(result, lambda m: (m.memory.model_mb, m.memory.baseline_mb), lambda v: f"{number(v)} MB")
    files = _bars_of(result, lambda m: (m.file_bytes / 1e6,), lambda v: f"{number(v)} MB")
    charts = []
    if memory:
        caption = "Of a fresh process. Full colour: what the model added; fainter: Python, the runtime and the frames."
        charts.append(bars("Memory at its peak", caption, "MB", memory, ("the model's share", "before it")))
    charts.append(bars("Size of the file", "Weights and graph as stored.", "MB", files, ("file",)))
    for meter in dict.fromkeys(power.meter for m in result.models for power in m.power):

        def energy(model: ModelResult, meter: str = meter) -> Sequence[float | None]:
            power = next((p for p in model.power if p.meter == meter), None)
            above = max(0.0, power.above_idle_mj) if power else None
            return (above, power.mj_per_frame - above if power and above is not None else None)

        found = _bars_of(result, energy, lambda v: f"{number(v)} mJ")
        caption = f"{meter}, end to end. Full colour: above idle; fainter: what the idle machine uses in that time."
        charts.append(bars("Energy a picture", caption, "mJ", found, ("above idle", "idle")))
    return charts


def class_chart(result: BenchmarkResult) -> Chart | None:
    """IoU of each class, a dot a model."""
    models = [(m, m.accuracy) for m in result.models if m.accuracy]
    if not models:
        return None
    row, top = 22.0, 8.0
    bottom = top + row * len(result.classes)
    x = Scale(0, 100, 116, WIDTH - 14)
    svg = Svg(bottom + 40, "IoU by class", "A row a class, a dot a model")
    axis_x(svg, x, top, bottom, "IoU, %")
    for index, name in enumerate(result.classes):
        y = top + row * (index + 0.5)
        svg.text(108, y + 4, name if len(name) < 17 else f"{name[:15]}…", "end")
        found = [(m, a.iou[index]) for m, a in models]
        known = [iou for _, iou in found if iou is not None]
        if known:
            svg.line(x(100 * min(known)), y, x(100 * max(known)), y)
        for model, iou in found:
            if iou is not None:
                tip = f"{model.name}, {name}: {100 * iou:.2f} %"
                svg.dot(x(100 * iou), y, color_of(model, result), tip, model is result.teacher, 5)
    rows = [[name, *(percent(a.iou[i]) for _, a in models)] for i, name in enumerate(result.classes)]
    caption = "The teacher is the diamond. A class that neither labels nor predictions have is left out."
    return Chart("IoU by class", caption, svg.render(), ("class, %", *(m.name for m, _ in models)), rows)


def sweep_charts(result: BenchmarkResult) -> list[Chart]:
    """Other threads and sizes, and batches."""
    charts = []
    for what in dict.fromkeys(describe(p, result) for p in result.sweep if p.end_to_end):
        points = {
            p.name: p.end_to_end.latency.p50_ms for p in result.sweep if p.end_to_end and describe(p, result) == what
        }
        found = [
            Bar(m.name, color_of(m, result), [ms], f"{number(ms)} ms")
            for m in result.models
            if (ms := points.get(m.name))
        ]
        charts.append(bars(f"With {what}", "Median end to end, alone in a fresh process.", "ms", found, ("median",)))
    for batch in result.settings.batches:
        rates = {m.name: o.end_to_end.images_per_s for m in result.models for o in m.offline if o.batch == batch}
        found = [
            Bar(m.name, color_of(m, result), [rates[m.name]], number(rates[m.name]))
            for m in result.models
            if m.name in rates
        ]
        if found:
            caption = "End to end, as fast as they go; longer is better."
            charts.append(
                bars(f"Offline, batches of {batch}", caption, "pictures a second", found, ("pictures a second",))
            )
    return charts
