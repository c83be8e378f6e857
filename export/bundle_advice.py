"""Which file to ship: the fastest that holds the accuracy, and of those as fast the one nearest to the source."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from deploy.timing import TOLERANCE, Ratio
from export.bundle_report import Choice, File, Latency, Run
from export.gate_report import points

RUNTIMES = {"ort": ("ort",), "openvino": ("openvino", "openvino-bf16"), "trt": ("trt",)}
"""A runtime to the names in `deploy.session.BACKENDS` that are its; the first computes fp32 as it is."""


CLOSE = 4 * TOLERANCE
"""By how much a file may be slower and still pass for as fast, where the rounds do not tell the two apart."""


class _Candidate(NamedTuple):
    file: File
    run: Run
    latency: Latency
    p50_ms: float


def choose(
    files: Sequence[File], max_miou_drop: float, batch: int | str = 1
) -> tuple[dict[str, Choice], Choice | None]:
    """Return what to ship for each runtime, and overall on a machine like this one; see `Report`.

    Args:
        files: All of them.
        max_miou_drop: Points of mIoU that a file may lose.
        batch: Frames that one run takes.
    """
    here = list(_candidates(files))
    choices = {}
    for runtime, backends in RUNTIMES.items():
        best = _fastest([c for c in here if c.run.backend in backends], max_miou_drop, batch)
        if best is None and runtime == "trt":
            best = _to_build(files)
        if best is not None:
            choices[runtime] = best
    return choices, _fastest(here, max_miou_drop, batch)


def _candidates(files: Iterable[File]) -> Iterable[_Candidate]:
    for file in files:
        for run in file.runs if file.state == "written" else ():
            if run.holds and run.latency is not None and run.latency.p50_ms is not None:
                yield _Candidate(file, run, run.latency, run.latency.p50_ms)


def _fastest(candidates: Sequence[_Candidate], max_miou_drop: float, batch: int | str) -> Choice | None:
    if not candidates:
        return None
    front = [c for c in candidates if not any(_dominates(other, c) for other in candidates)]
    first = min(front, key=lambda c: c.p50_ms)
    equal = [c for c in front if c is first or _as_fast(c, first)]
    best = max(equal, key=lambda c: (c.run.agreement, -c.p50_ms))
    others = ", ".join(f"{c.file.name} on {c.run.backend} ({c.p50_ms:.2f} ms)" for c in equal if c is not best)
    if others:
        reason = f"Not told apart by {100 * TOLERANCE:g} % from {others}, and closest to the source"
    elif len(candidates) > 1:
        reason = f"Fastest of {len(candidates)} that lose at most {max_miou_drop:g} points"
    else:
        reason = f"The only one that loses at most {max_miou_drop:g} points"
    reason += f": {best.p50_ms:.2f} ms, {_lost(best.run)}"
    ratio = best.latency.times_faster
    if ratio is not None:
        reason += f", {ratio.median:.2f} times the speed of fp32 there ({ratio.low:.2f} to {ratio.high:.2f})"
    if str(best.run.backend).endswith("bf16"):
        reason += f"; bf16 is another arithmetic, {best.run.agreement:.2%} of the pixels are as the source's"
    how = f"Run it with --backend {best.run.backend}"
    if isinstance(batch, int) and batch > 1:
        how = f"It takes {batch} frames a run; lfd-run gives one at a time, and wants --batch 1 or dynamic"
    return Choice(best.file.name, best.run.backend, f"{reason}. {how}")


def _dominates(one: _Candidate, other: _Candidate) -> bool:
    """Tell whether one is as good in both speed and accuracy, and better in either."""
    a, b = (one.p50_ms, -one.run.agreement), (other.p50_ms, -other.run.agreement)
    return a != b and a[0] <= b[0] and a[1] <= b[1]


def _as_fast(one: _Candidate, fastest: _Candidate) -> bool:
    ratio = Ratio.paired(one.latency.rounds, fastest.latency.rounds)
    slowest = CLOSE if ratio.low <= 1 else TOLERANCE
    return ratio.median <= 1 + slowest and one.p50_ms <= (1 + CLOSE) * fastest.p50_ms


def _to_build(files: Sequence[File]) -> Choice | None:
    """Return what to build an engine from where that was not tried: the narrowest that holds the accuracy."""
    engines = {file.precision: file for file in files if file.name.endswith(".engine")}
    for precision in ("int8", "fp16", "fp32"):
        tried = precision in engines and engines[precision].state not in ("elsewhere", "not reached")
        for file in files:
            fits = file.precision == precision and file.runtime in ("any", "trt") and file is not engines.get(precision)
            if fits and not tried and file.state == "written" and file.runs and file.runs[0].holds:
                and_fp16 = "build fp16 too, and measure both there" if precision == "int8" else "measure it there"
                return Choice(
                    file.name,
                    None,
                    f"Build its engine on the device: computed as it is written, {_lost(file.runs[0])}. "
                    f"Its speed is not known here: {and_fp16} with lfd-bench",
                )
    return None


def _lost(run: Run) -> str:
    return f"{points(run.miou_lost)} points lost" if round(run.miou_lost, 2) > 0 else "no mIoU lost"
