"""What the gates of INT8 tried and decided, for people and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from export.int8 import QuantReport


def points(value: float) -> str:
    """Return points of mIoU as text, without a -0.00."""
    return f"{round(value, 2) + 0.0:.2f}"


@dataclass(frozen=True)
class Step:
    """One file that was tried.

    Attributes:
        kept: Layers put back to float in this step.
        kept_in_all: How many are in float by now.
        miou: Of the file, in [0, 1].
        drop: What it lost against the source, points.
        bought: What this step gained over the one before, points.
        source_ms: Median latency of the source, and `int8_ms` of the file, taken in turns; None where not measured.
        int8_ms: See there.
        cost_ms: By how much the file is slower than that of the step before, whose time is scaled by what the source
            took beside each.
    """

    kept: tuple[str, ...]
    kept_in_all: int
    miou: float
    drop: float
    bought: float
    source_ms: float | None = None
    int8_ms: float | None = None
    cost_ms: float | None = None


@dataclass(frozen=True)
class GateReport:
    """What the gates decided, and why.

    Attributes:
        source: Name of the source file, without its folder; `out` likewise.
        out: See there.
        quantised: What the last file tried is.
        max_miou_drop: What was allowed, points.
        source_miou: In [0, 1].
        steps: The files tried, in order.
        ranking: Layer to dB, the worst first; empty when nothing had to be kept in float.
        accurate: Whether the last file keeps to the accuracy.
        faster: Whether it is faster than its source; None where that was not asked for, or not measured: see
            `speed_note`.
        speed_note: See there.
        ship: Name of the file to ship.
    """

    source: str
    out: str
    quantised: QuantReport
    max_miou_drop: float
    source_miou: float
    steps: tuple[Step, ...]
    ranking: dict[str, float]
    accurate: bool
    faster: bool | None
    speed_note: str
    ship: str

    def __bool__(self) -> bool:
        """Tell whether the gates hold, and the file was written."""
        return self.accurate and self.faster is not False

    def to_dict(self) -> dict[str, Any]:
        """Return it as what JSON holds."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            str(self.quantised),
            f"source {self.source}: mIoU {self.source_miou:.2%}; at most {self.max_miou_drop:g} points may be lost",
            "step  in float    mIoU, %   lost   bought   source, ms   int8, ms   cost, ms   put back",
        ]
        for index, step in enumerate(self.steps):
            times = [
                f"{v:10.2f}" if v is not None else "         -" for v in (step.source_ms, step.int8_ms, step.cost_ms)
            ]
            put = ", ".join(f"{name} ({self.ranking[name]:.1f} dB)" for name in step.kept[:3] if name in self.ranking)
            more = f", {len(step.kept) - 3} more" if len(step.kept) > 3 else ""
            lines.append(
                f"{index:4}  {step.kept_in_all:8}  {step.miou * 100:9.2f}  {points(step.drop):>5}   "
                f"{points(step.bought):>6}   {times[0]}  {times[1]}  {times[2]}   {put}{more}".rstrip()
            )
        lines.append(f"{'written' if self else 'NOT written'}; {self.speed_note}; ship {self.ship}")
        return "\n".join(lines)
