"""What a reader of a report must know to judge its numbers; made from its record alone."""

from __future__ import annotations

import math

from deploy.bench.conditions import warnings
from deploy.bench.entry import MIN_A_ROUND
from deploy.bench.record import BenchmarkResult, ModelResult
from deploy.report.rows import describe, number, percent
from deploy.timing import PERCENTILES, TOLERANCE, samples_needed

LATE = 0.01
"""Share of a stream's median from which a clock's late wake-ups are told of."""


def remarks(result: BenchmarkResult) -> list[str]:
    """Return what a reader must know to judge the numbers: warnings, notes, failures."""
    found = [f"Interrupted: {result.interrupted}; what came before is whole"] if result.interrupted else []
    found += [f"Warning: {text}" for text in warnings(result.conditions)]
    for model in result.models:
        found += _about_model(model, result)
    counts = [m.single.end_to_end.latency.count for m in result.models]
    needed = {f"p{100 * p:g}": samples_needed(p) for p in PERCENTILES}
    if min(counts) < max(needed.values()):
        earned = ", ".join(f"{name} {n}" for name, n in needed.items())
        found.append(f"Note: a percentile is shown once enough samples earned it ({earned}); --seconds takes more")
    found += [
        f"Note: {point.name}, {describe(point, result)}: {point.reason}" for point in result.sweep if point.reason
    ]
    found += [f"Note: {result.no_power}"] if result.no_power else []
    if not any(m.memory.gpu_mb for m in result.models):
        found.append(
            f"Note: memory on the GPU: {'NVML gave none' if result.environment.gpus else 'no NVIDIA card here'}"
        )
    found += [f"Note: {note}" for note in result.notes]
    return found + [f"Failed: {failure.name}: {failure.message}" for failure in result.failures]


def _about_model(model: ModelResult, result: BenchmarkResult) -> list[str]:
    found = []
    timings = (model.single.model_alone, model.single.end_to_end)
    if any(t.unsteady for t in timings):
        spread, drift = (max(abs(getattr(t, key) or 0.0) for t in timings) for key in ("variation", "drift"))
        found.append(
            f"Warning: {model.name}: times spread by {percent(spread)} % and drift by {percent(drift)} % "
            f"(above {100 * TOLERANCE:g} %); smaller differences mean nothing"
        )
    if not model.single.warm_up.settled:
        found.append(f"Warning: {model.name}: its warm-up did not come to rest in {result.settings.seconds:g} s")
    if (fewest := min(len(samples.model_ms) for samples in model.single.rounds)) < MIN_A_ROUND:
        found.append(
            f"Warning: {model.name}: {fewest} samples in a round, expected {MIN_A_ROUND} at least; how many times "
            "faster is a matter of chance. Fix: --seconds"
        )
    found += [
        f"Note: {model.name}: stream@{stream.fps:g}: the clock woke up late by {number(stream.late_ms)} ms at the "
        "median, which counts as waiting"
        for stream in model.streams
        if stream.late_ms and stream.end_to_end and stream.late_ms > LATE * (stream.end_to_end.p50_ms or math.inf)
    ]
    found += [
        f"Warning: {model.name}: does not keep up with {stream.fps:g} frames a second: its queue grows for ever, and "
        "latencies would tell of the length of the run"
        for stream in model.streams
        if not stream.keeps_up
    ]
    found += [f"Note: {model.name}: no {missing.what}: {missing.reason}" for missing in model.missing]
    figures = {"parameters": model.params, "MACs": model.macs}
    if absent := [what for what, value in figures.items() if value is None]:
        found.append(f"Note: {model.name} does not say its {' and '.join(absent)}; export it again to have them")
    return found
