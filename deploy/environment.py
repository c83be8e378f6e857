"""The circumstances of a measurement, without a word on whose machine it is: no user, host or path."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "lfd-toolkit",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "opencv-python",
    "opencv-python-headless",
    "openvino",
    "tensorrt",
    "torch",
)
CPUFREQ = Path("/sys/devices/system/cpu/cpu0/cpufreq")


def usable_cores() -> int:
    """Return how many processor cores this process may use, as the system counts them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Environment:
    """The machine and the software.

    Attributes:
        date_utc: ISO 8601, seconds, such as 2026-11-22T08:50:00Z.
        cpu: The processor's name, or the board's where the processor has none.
        cores: Logical cores this process may use.
        governor: The clock's governor; None when the system does not say.
        clock_mhz: The highest clock; None likewise.
        memory_mb: Main memory in MB; None likewise.
        system: Operating system and kernel.
        python: Its version.
        packages: Package name to version, of those installed that matter to speed.
        threads: Threads asked for; 0 is the runtime's own choice.
        board: A Jetson's release and power mode, which sets its clocks; None elsewhere.
        gpus: Names of the NVIDIA cards that NVML knows.
    """

    date_utc: str
    cpu: str
    cores: int
    governor: str | None
    clock_mhz: float | None
    memory_mb: float | None
    system: str
    python: str
    packages: Mapping[str, str]
    threads: int
    board: str | None = None
    gpus: tuple[str, ...] = ()

    def alike(self, other: Environment) -> bool:
        """Whether two are of the same kind of machine with the same software, so that one table may hold both."""
        return (self.cpu, self.cores, self.board, self.packages) == (
            other.cpu,
            other.cores,
            other.board,
            other.packages,
        )

    @classmethod
    def here(cls, threads: int = 0, gpus: tuple[str, ...] = ()) -> Environment:
        """Describe this machine, now; NVML's cards are the caller's, who has it open."""
        khz = _read(CPUFREQ / "cpuinfo_max_freq")
        kib = _field(Path("/proc/meminfo"), "MemTotal")
        return cls(
            date_utc=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            cpu=_cpu(),
            cores=usable_cores(),
            governor=_read(CPUFREQ / "scaling_governor"),
            clock_mhz=int(khz) / 1e3 if khz and khz.isdecimal() else None,
            memory_mb=int(kib.split()[0]) * 1024 / 1e6 if kib else None,
            system=_system(),
            python=platform.python_version(),
            packages=_versions(),
            threads=threads,
            board=_board(),
            gpus=gpus,
        )


@dataclass(frozen=True)
class Settings:
    """What was asked for.

    Attributes:
        seconds: Measuring time per model and scenario; more samples are taken for a percentile
            that comes within three times of it, or for the median.
        threads: Threads for one inference; 0 is the runtime's own choice.
        max_images: Pictures to score on, spread over the set; None takes all.
        backend: What runs them, a name in `deploy.session.BACKENDS`; None is each file's own.
        batches: Batch sizes of the scenario `offline`; none leaves it out.
        streams: Frames a second of the scenario `stream`, one after another; none leaves it out.
        thread_sweep: Other thread counts to measure.
        size_sweep: Other input sizes (height, width) to measure.
    """

    seconds: float = 10.0
    threads: int = 0
    max_images: int | None = None
    backend: str | None = None
    batches: tuple[int, ...] = ()
    streams: tuple[float, ...] = ()
    thread_sweep: tuple[int, ...] = ()
    size_sweep: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class FramesUsed:
    """The pictures, by count and hash. `data` names the set and the split, without a path."""

    data: str
    timed: int
    timed_sha256: str
    sizes_wh: tuple[tuple[int, int], ...]
    scored: int
    scored_sha256: str | None


def _read(path: Path) -> str | None:
    """Return a small system file's text; None when there is none or it may not be read."""
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    return None


def _field(path: Path, key: str) -> str | None:
    """Return the value of the first `key : value` line in a file of such lines."""
    for line in (_read(path) or "").splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() == key:
            return value.strip()
    return None


def _cpu() -> str:
    # ARM kernels give no "model name"; boards say what they are in the device tree.
    named = _field(Path("/proc/cpuinfo"), "model name") or _read(Path("/proc/device-tree/model"))
    return " ".join((named or platform.processor() or platform.machine() or "unknown").split())


def _system() -> str:
    with contextlib.suppress(OSError, AttributeError):  # AttributeError: a system other than Linux
        name = platform.freedesktop_os_release().get("PRETTY_NAME", "")
        return f"{name}, {platform.system()} {platform.release()} {platform.machine()}"
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def _board() -> str | None:
    """Return a Jetson's release and power mode: its clocks follow from the mode, so times mean nothing without it."""
    release = _read(Path("/etc/nv_tegra_release"))
    if release is None:
        return None
    mode = _field(Path("/var/lib/nvpmodel/status"), "pmode")
    return f"L4T {', '.join(release.lstrip('# ').split(', ')[:2])}; power mode {mode or 'unknown'}"


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    if not any("opencv" in name for name in versions):
        # A Jetson has the system's own OpenCV, which pip does not know.
        with contextlib.suppress(ImportError):
            import cv2  # noqa: PLC0415

            versions["opencv (system)"] = cv2.__version__
    return versions
