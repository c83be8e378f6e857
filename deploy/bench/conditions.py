"""The state of the machine while it is measured: clocks, temperature, throttling, and what others use of it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.bench.nvml import Gpu

SYS, PROC = Path("/sys"), Path("/proc")
COUNTERS = (
    "devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count",  # Intel
    "class/hwmon/hwmon*/oc[0-9]*_event_cnt",  # Jetson: over-current and under-voltage
)
BUSY_OTHERS = 0.1
"""Cores that others use; more is worth a warning."""


@dataclass(frozen=True)
class Condition:
    """One look at the machine; None for what it does not tell.

    Attributes:
        seconds: Since the first look.
        clock_mhz: Mean clock of the cores.
        temperature_c: The warmest zone.
        throttle_events: How often the processor or board has held itself back since it was switched on.
        others_cores: Cores that other programs, or the other guests of a host, used since the look before.
        gpu_clock_mhz: Of the first card.
        gpu_temperature_c: Likewise.
        gpu_throttled: Why its clock is held down.
    """

    seconds: float
    clock_mhz: float | None
    temperature_c: float | None
    throttle_events: int | None
    others_cores: float | None
    gpu_clock_mhz: float | None
    gpu_temperature_c: float | None
    gpu_throttled: tuple[str, ...]


def _numbers(pattern: str, root: Path) -> list[float]:
    values = []
    for path in root.glob(pattern):
        with contextlib.suppress(OSError, ValueError):  # a zone that is switched off cannot be read
            values.append(float(path.read_text(encoding="ascii")))
    return values


def _ticks(text: str, columns: slice) -> int:
    return sum(int(field) for field in text.split()[columns])


class Watch:
    """Takes looks at the machine.

    Args:
        pids: Our measuring processes, which are not others.
        cards: The NVIDIA cards.
    """

    def __init__(self, pids: Iterable[int], cards: Sequence[Gpu] = ()) -> None:
        self._pids, self._cards = [os.getpid(), *pids], cards
        self._begin = self._before = time.monotonic()
        self._others = self._others_s()
        self.looks: list[Condition] = []

    def _others_s(self) -> float | None:
        """Return the processor seconds of all others since the machine started; None where /proc does not tell."""
        try:
            first = (PROC / "stat").read_text(encoding="ascii").split("\n", 1)[0]
            busy = _ticks(first, slice(1, 4)) + _ticks(first, slice(6, 9))  # user nice system, irq softirq steal
            for pid in self._pids:
                # After the name, which may hold spaces; utime and stime are fields 14 and 15 (man 5 proc_pid_stat).
                busy -= _ticks((PROC / str(pid) / "stat").read_text(encoding="utf-8").rpartition(")")[2], slice(11, 13))
            return busy / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError):
            return None

    def look(self) -> Condition:
        """Take a look and keep it."""
        now, others = time.monotonic(), self._others_s()
        used = None
        if others is not None and self._others is not None and now > self._before:
            used = max(0.0, (others - self._others) / (now - self._before))
        khz = _numbers("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq", SYS)
        degrees = [t / 1e3 for t in _numbers("class/thermal/thermal_zone*/temp", SYS) if -40e3 < t < 150e3]
        events = [n for pattern in COUNTERS for n in _numbers(pattern, SYS)]
        card = self._cards[0] if self._cards else None
        self.looks.append(
            Condition(
                seconds=now - self._begin,
                clock_mhz=sum(khz) / len(khz) / 1e3 if khz else None,
                temperature_c=max(degrees, default=None),
                throttle_events=int(sum(events)) if events else None,
                others_cores=used,
                gpu_clock_mhz=card.clock_mhz() if card else None,
                gpu_temperature_c=card.temperature_c() if card else None,
                gpu_throttled=card.throttled() if card else (),
            )
        )
        self._before, self._others = now, others
        return self.looks[-1]


def warnings(looks: Sequence[Condition]) -> list[str]:
    """Return what in the machine's state spoils its times."""
    found = []
    events = [look.throttle_events for look in looks if look.throttle_events is not None]
    if events and events[-1] > events[0]:
        found.append(f"the processor or board held itself back {events[-1] - events[0]} times while it was measured")
    if reasons := sorted({reason for look in looks for reason in look.gpu_throttled}):
        found.append(f"the GPU's clock was held down: {', '.join(reasons)}")
    for what, clocks in (
        ("processor", [look.clock_mhz for look in looks if look.clock_mhz]),
        ("GPU", [look.gpu_clock_mhz for look in looks if look.gpu_clock_mhz]),
    ):
        if clocks and min(clocks) < 0.9 * max(clocks):
            found.append(f"the {what}'s clock moved between {min(clocks):.0f} and {max(clocks):.0f} MHz")
    busy = [look.others_cores for look in looks if look.others_cores is not None]
    if busy and (mean := sum(busy) / len(busy)) > BUSY_OTHERS:
        found.append(f"other programs used {mean:.2f} cores meanwhile, {max(busy):.2f} at most")
    return found
