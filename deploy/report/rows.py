"""What a report says, as lines of a table, and circumstances; made from its record alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from deploy.bench.conditions import Condition
from deploy.bench.record import BenchmarkResult, ModelResult, SweepPoint
from deploy.bench.scenarios import Stream
from deploy.timing import Percentiles, Ratio, Timing

FASTER = "median of the rounds' ratios, range"
"""How a ratio is made: medians of all samples, as other lines have them, give another."""


class Row(NamedTuple):
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


def times(ratio: Ratio) -> str:
    """Return a ratio with its range over the rounds; "~" where the rounds do not agree which of the two is faster."""
    return f"{'' if ratio.decided else '~'}{number(ratio.median)} ({number(ratio.low)}-{number(ratio.high)})"


def _scaled(value: float | None, unit: float) -> str:
    return number(None if value is None else value / unit)


def _timing_rows(heading: str, timings: Sequence[Timing]) -> list[Row]:
    latencies = [t.latency for t in timings]
    return [
        Row(heading),
        *_latency_rows("", latencies),
        Row("slowest, ms", [number(p.max_ms) for p in latencies]),
        Row("pictures a second", [number(t.images_per_s) for t in timings]),
        Row("spread, standard deviation to mean, %", [percent(t.variation) for t in timings]),
        Row("drift, second half to first, %", [percent(t.drift) for t in timings]),
    ]


def _latency_rows(prefix: str, latencies: Sequence[Percentiles | None]) -> list[Row]:
    named = (("median (p50)", "p50_ms"), ("p90", "p90_ms"), ("p95", "p95_ms"), ("p99", "p99_ms"))
    return [
        Row(f"{prefix}{name}, ms", [number(getattr(p, key) if p else None) for p in latencies]) for name, key in named
    ]


def _stage_rows(models: Sequence[ModelResult]) -> list[Row]:
    stages = (("fit the frame", "fit_ms"), ("model", "model_ms"), ("map back", "restore_ms"))
    return [
        Row("Where the time goes, mean ms"),
        *(Row(name, [number(stage_ms(m, key)) for m in models]) for name, key in stages),
    ]


def stage_ms(model: ModelResult, stage: str) -> float:
    """Return the mean of a stage's durations in scenario `single`, in ms; `stage` is a field of `Samples`."""
    values = [ms for samples in model.single.rounds for ms in getattr(samples, stage)]
    return math.fsum(values) / len(values)


def _offline_rows(result: BenchmarkResult) -> list[Row]:
    rows = [Row("Offline: pictures a second")] if result.settings.batches else []
    for batch in result.settings.batches:
        found = [next((o for o in m.offline if o.batch == batch), None) for m in result.models]
        for what, key in (("end to end", "end_to_end"), ("model alone", "model_alone")):
            cells = [number(getattr(o, key).images_per_s if o else None) for o in found]
            rows.append(Row(f"batches of {batch}, {what}", cells))
    return rows


def _stream_rows(result: BenchmarkResult) -> list[Row]:
    rows: list[Row] = []
    for fps in result.settings.streams:
        found = [next((s for s in m.streams if s.fps == fps), None) for m in result.models]

        def cells(take: Callable[[Stream], str], found: Sequence[Stream | None] = found) -> list[str]:
            return [take(stream) if stream else "-" for stream in found]

        rows += [
            Row(f"Stream of {fps:g} frames a second, latency from the scheduled arrival, waiting counted"),
            *_latency_rows("end to end, ", [s.end_to_end if s else None for s in found]),
            *_latency_rows("model alone, ", [s.model_alone if s else None for s in found])[:1],
            Row("slowest, ms", cells(lambda s: number(s.end_to_end.max_ms if s.end_to_end else None))),
            Row("not done when the next came", cells(lambda s: f"{s.missed} of {len(s.wait_ms) + s.unserved}")),
            Row("never served", cells(lambda s: str(s.unserved))),
            Row("pictures a second", cells(lambda s: number(s.images_per_s))),
            Row("share of the time at work, %", cells(lambda s: percent(s.load))),
        ]
    return rows


def _power_rows(result: BenchmarkResult) -> list[Row]:
    meters = dict.fromkeys(power.meter for m in result.models for power in m.power)
    rows = [Row("Power, end to end" if meters else "Power")]
    for meter in meters or ["board"]:
        found = [next((p for p in m.power if p.meter == meter), None) for m in result.models]
        rows += [
            Row(f"{meter}: mean, W", [number(p.mean_w if p else None) for p in found]),
            Row(f"{meter}: energy a picture, mJ", [number(p.mj_per_frame if p else None) for p in found]),
            Row(f"{meter}: the same less idle, mJ", [number(p.above_idle_mj if p else None) for p in found]),
        ]
    return rows


def describe(point: SweepPoint, result: BenchmarkResult) -> str:
    """Return in what a sweep's point differs from the table."""
    if point.threads != result.settings.threads:
        return f"{point.threads or 'default'} thread{'' if point.threads == 1 else 's'}"
    return "input {}x{}".format(*point.size_hw or ("?", "?"))


def _sweep_rows(result: BenchmarkResult) -> list[Row]:
    if not result.sweep:
        return []
    rows = [Row("Sweep, end to end, alone in a fresh process")]
    for what in dict.fromkeys(describe(point, result) for point in result.sweep):
        by_name = {p.name: p for p in result.sweep if describe(p, result) == what}
        found = [by_name.get(m.name) for m in result.models]
        medians = [p.end_to_end.latency.p50_ms if p and p.end_to_end else None for p in found]
        rows.append(Row(f"{what}: median, ms", [number(ms) for ms in medians]))
        rows.append(Row(f"{what}: memory at its peak, MB", [number(p.peak_mb if p else None) for p in found]))
        if any(p and p.miou is not None for p in found):
            rows.append(Row(f"{what}: mIoU, %", [percent(p.miou if p else None) for p in found]))
    return rows


def rows(result: BenchmarkResult) -> list[Row]:
    """Return the table's lines; the students' columns come first, the teacher's last."""
    versus = [s.versus for s in result.students]
    models = result.models
    singles = [m.single for m in models]
    scored = [m.accuracy for m in models]
    against = [
        Row("Against the teacher"),
        Row(f"times faster, model alone ({FASTER})", [*(times(v.faster_alone) for v in versus), "1"]),
        Row(f"times faster, end to end ({FASTER})", [*(times(v.faster_end_to_end) for v in versus), "1"]),
        Row("times smaller, file", [*(number(v.smaller) for v in versus), "1"]),
    ]
    classes = []
    if any(scored):
        against += [
            Row("mIoU lost, points", [*(percent(v.miou_lost) for v in versus), "0"]),
            Row("mIoU kept, % of the teacher's", [*(percent(v.miou_kept) for v in versus), "100"]),
            Row("pixels of the same class as its, %", [percent(a.agreement if a else None) for a in scored]),
            Row("Accuracy"),
            Row("mIoU, %", [percent(a.miou if a else None) for a in scored]),
            Row("pixels right, %", [percent(a.pixel_accuracy if a else None) for a in scored]),
        ]
        named = enumerate(result.classes)
        classes = [
            Row("IoU by class, %"),
            *(Row(name, [percent(a.iou[i] if a else None) for a in scored]) for i, name in named),
        ]
    return [
        *against,
        *_timing_rows("Speed, end to end: fit the frame, run the model, map back", [s.end_to_end for s in singles]),
        *_timing_rows("Speed, model alone", [s.model_alone for s in singles]),
        *_stage_rows(models),
        *_offline_rows(result),
        *_stream_rows(result),
        Row("Samples"),
        Row("counted", [str(s.end_to_end.latency.count) for s in singles]),
        Row(
            "thrown away: warm-up + one a round",
            [f"{len(s.warm_up.thrown_away_ms)} + {len(s.rounds)}" for s in singles],
        ),
        Row("Start"),
        Row("load, ms", [number(m.load_ms) for m in models]),
        Row("first picture, ms", [number(m.first_ms) for m in models]),
        Row("Size"),
        Row("input, height x width", ["{}x{}".format(*m.size_hw) for m in models]),
        Row("precision", [m.precision for m in models]),
        Row("file, MB", [number(m.file_bytes / 1e6) for m in models]),
        Row("parameters, million", [_scaled(m.params, 1e6) for m in models]),
        Row("MACs at that input, billion", [_scaled(m.macs, 1e9) for m in models]),
        Row("memory of the process at its peak, MB", [number(m.memory.peak_mb) for m in models]),
        Row("of that the model's share, MB", [number(m.memory.model_mb) for m in models]),
        Row("memory on the GPU, MB", [number(m.memory.gpu_mb) for m in models]),
        *_power_rows(result),
        *_sweep_rows(result),
        *classes,
    ]


def _state(looks: Sequence[Condition]) -> str:
    """Return clocks, temperature, throttling and others' use of the machine over all looks."""

    def span(what: str, values: Sequence[float | None], unit: str, digits: int = 0) -> str:
        known = [value for value in values if value is not None]
        if not known:
            return f"{what} not told"
        low, high = f"{min(known):.{digits}f}", f"{max(known):.{digits}f}"
        return f"{what} {low if low == high else f'{low} to {high}'} {unit}"

    events = [look.throttle_events for look in looks if look.throttle_events is not None]
    parts = [
        span("clock", [look.clock_mhz for look in looks], "MHz"),
        span("warmest", [look.temperature_c for look in looks], "C"),
        f"held back {events[-1] - events[0]} times" if events else "throttling not told",
        span("others used", [look.others_cores for look in looks], "cores", 2),
    ]
    if any(look.gpu_clock_mhz for look in looks):
        parts.append(span("GPU clock", [look.gpu_clock_mhz for look in looks], "MHz"))
        parts.append(span("GPU", [look.gpu_temperature_c for look in looks], "C"))
    return "; ".join(parts)


def about(result: BenchmarkResult) -> list[tuple[str, str]]:
    """Return (what, text) lines on the circumstances."""
    env, frames = result.environment, result.frames
    clock = f", {env.clock_mhz:.0f} MHz" if env.clock_mhz else ""
    governor = f", governor {env.governor}" if env.governor else ""
    memory = f", {env.memory_mb / 1e3:.1f} GB" if env.memory_mb else ""
    threads = str(env.threads) if env.threads else "the runtime's choice"
    sizes = ", ".join(f"{width}x{height}" for width, height in frames.sizes_wh)
    scored = f"{frames.scored} scored" if frames.scored else "none scored"
    runtimes = " and ".join(dict.fromkeys(model.backend for model in result.models))
    board = [("Board", env.board)] if env.board else []
    cards = [("GPU", ", ".join(env.gpus))] if env.gpus else []
    return [
        ("Date", env.date_utc),
        ("Machine", f"{env.cpu}, {env.cores} cores{clock}{governor}{memory}; {env.system}"),
        *board,
        *cards,
        ("Software", ", ".join([f"Python {env.python}", *(f"{k} {v}" for k, v in env.packages.items())])),
        ("Runtime", f"{runtimes}; threads: {threads}"),
        *([("State", _state(result.conditions))] if result.conditions else []),
        ("Pictures", f"{frames.data}: {frames.timed} in turns for the clock ({sizes}), {scored}"),
    ]
