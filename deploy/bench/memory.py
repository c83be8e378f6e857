"""What a process takes of the main memory, asked by itself."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path


def _status_mb(field: str) -> float | None:
    """Return a memory figure of this process from Linux's /proc, in MB of 10^6 bytes."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024 / 1e6
    return None


def memory_mb() -> tuple[float | None, float | None]:
    """Return this process's resident memory and its peak, in MB; None where the system does not say.

    getrusage is the second choice: on Linux its ru_maxrss survives exec, so that a child starts with
    the peak of the process that started it (792 MB measured for a bare child of 9 MB).
    """
    now, peak = _status_mb("VmRSS"), _status_mb("VmHWM")
    if peak is None:
        with contextlib.suppress(ImportError):
            import resource  # noqa: PLC0415 - there is none on Windows

            unit = 1 if sys.platform == "darwin" else 1024
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    return now if now is not None else peak, peak
