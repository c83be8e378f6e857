"""Which file to ship: the fastest that holds the accuracy, and of those equally fast the one nearest to the source."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from deploy.timing import Ratio
from export.bundle_report import Choice, File, Latency, Run

RUNTIMES = {"ort": ("ort",), "openvino": ("openvino", "openvino-bf16"), "trt": ("trt",)}
"""A runtime to the names in `deploy.session.BACKENDS` that are its."""


class _Candidate(NamedTuple):
    file: File
    run: Run
    latency: Latency
    p50_ms: float


def choose(files: Sequence[File], max_miou_drop: float) -> tuple[dict[str, Choice], Choice | None]:
    """Return what to ship for each runtime, and overall on a machine like this one; see `Report`.

    Args:
        files: All of them.
        max_miou_drop: Points of mIoU that a file may lose.
    """
    here = list(_candidates(files))
    choices = {}
    for runtime, backends in RUNTIMES.items():
        best = _fastest([c for c in here if c.run.backend in backends], max_miou_drop)
        if best is None and runtime == "trt":
            best = _unmeasured(files)
        if best is not None:
            choices[runtime] = best
    return choices, _fastest(here, max_miou_drop)


def _candidates(files: Iterable[File]) -> Iterable[_Candidate]:
    for file in files:
        for run in file.runs if file.state == "written" else ():
            if run.holds and run.latency is not None and run.latency.p50_ms is not None:
                yield _Candidate(file, run, run.latency, run.latency.p50_ms)


def _fastest(candidates: Sequence[_Candidate], max_miou_drop: float) -> Choice | None:
    if not candidates:
        return None
    first = min(candidates, key=lambda c: c.p50_ms)
    equal = [c for c in candidates if c is first or not Ratio.paired(c.latency.rounds, first.latency.rounds).decided]
    best = max(equal, key=lambda c: (c.run.agreement, -c.p50_ms))
    lost = _lost(best.run)
    others = ", ".join(f"{c.file.name} on {c.run.backend} ({c.p50_ms:.2f} ms)" for c in equal if c is not best)
    reason = f"Fastest of {len(candidates)} that lose at most {max_miou_drop:g} points"
    if others:
        reason = f"As fast as {others} within the noise, and closest to the source"
    reason += f": {best.p50_ms:.2f} ms, {lost}"
    ratio = best.latency.times_faster
    if ratio is not None:
        reason += f", {ratio.median:.2f} times the fp32 file's speed there ({ratio.low:.2f} to {ratio.high:.2f})"
    return Choice(best.file.name, best.run.backend, f"{reason}. Run it with --backend {best.run.backend}")


def _unmeasured(files: Sequence[File]) -> Choice | None:
    """Return what to build an engine from, when none could be timed: the narrowest that holds the accuracy."""
    made = [f for f in files if f.state == "written" and f.runs and f.runs[0].holds and not f.name.endswith(".engine")]
    for precision in ("int8", "fp16"):
        for file in made:
            if file.precision == precision and (precision != "int8" or file.runtime == "trt"):
                return Choice(
                    file.name,
                    None,
                    f"Build its engine on the device: computed as it is written, {_lost(file.runs[0])}. "
                    "Its speed is not known here: build fp16 too, and measure both there with lfd-bench",
                )
    return None


def _lost(run: Run) -> str:
    return f"{run.miou_lost:.2f} points lost" if run.miou_lost > 0 else "no mIoU lost"
