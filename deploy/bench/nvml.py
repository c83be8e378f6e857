"""NVIDIA's management library through ctypes: power, memory, clocks and temperature, without another dependency.

Names and units as in NVML's API reference. Every figure is None where the library or the card does not give it; a
Jetson has no NVML for its own GPU, whose memory is the board's and whose power is on the board's rails.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
TEMPERATURE_GPU = 0
CLOCK_SM = 1
NOT_AVAILABLE = 2**64 - 1
"""What NVML puts for a process's memory that it cannot know."""
THROTTLE = {0x08: "HW slowdown", 0x20: "SW thermal slowdown", 0x40: "HW thermal slowdown", 0x80: "HW power brake"}
"""Of nvmlClocksEventReasons, those that are somebody's fault; 0x04, the power cap, is added by `Gpu.throttled`."""
POWER_CAP = 0x04


class _ProcessInfo(ctypes.Structure):
    """The nvmlProcessInfo_t of nvmlDeviceGetComputeRunningProcesses_v3."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used_gpu_memory", ctypes.c_ulonglong),
        ("gpu_instance_id", ctypes.c_uint),
        ("compute_instance_id", ctypes.c_uint),
    )


class Gpu:
    """One card.

    Args:
        library: NVML, initialised.
        index: Of the card.
    """

    def __init__(self, library: Any, index: int) -> None:
        self._library, self.index = library, index
        self._handle = ctypes.c_void_p()
        if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(self._handle)):
            raise OSError(f"NVML does not give GPU {index}")
        name = ctypes.create_string_buffer(96)
        known = not library.nvmlDeviceGetName(self._handle, name, ctypes.c_uint(len(name)))
        self.name = name.value.decode(errors="replace") if known else f"GPU {index}"

    def _ask(self, function: str, value: Any, *before: Any) -> int | None:
        """Return what a function writes to `value`, its last argument; None where it fails or is not there."""
        with contextlib.suppress(AttributeError):  # an older library
            if not getattr(self._library, function)(self._handle, *before, ctypes.byref(value)):
                return int(value.value)
        return None

    def watts(self) -> float | None:
        """Return the power drawn now; an average over the last second on cards since Ampere."""
        milliwatts = self._ask("nvmlDeviceGetPowerUsage", ctypes.c_uint())
        return None if milliwatts is None else milliwatts / 1e3

    def joules(self) -> float | None:
        """Return the energy used since the driver was loaded; cards since Volta count it."""
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong())
        return None if millijoules is None else millijoules / 1e3

    def temperature_c(self) -> float | None:
        """Return the chip's temperature."""
        return self._ask("nvmlDeviceGetTemperature", ctypes.c_uint(), ctypes.c_uint(TEMPERATURE_GPU))

    def clock_mhz(self) -> float | None:
        """Return the clock of the multiprocessors."""
        return self._ask("nvmlDeviceGetClockInfo", ctypes.c_uint(), ctypes.c_uint(CLOCK_SM))

    def throttled(self) -> tuple[str, ...]:
        """Return why the clock is held down; empty when it is not, or is only idle."""
        bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.c_ulonglong()) or 0
        return tuple(name for bit, name in {POWER_CAP: "power cap", **THROTTLE}.items() if bits & bit)

    def memory_mb(self, pid: int) -> float | None:
        """Return what a process holds on the card; None when it has no context there, or NVML cannot tell."""
        count = ctypes.c_uint(256)
        infos = (_ProcessInfo * count.value)()
        function = getattr(self._library, "nvmlDeviceGetComputeRunningProcesses_v3", None)
        if function is None or function(self._handle, ctypes.byref(count), infos):
            return None
        used = [info.used_gpu_memory for info in infos[: count.value] if info.pid == pid]
        return None if not used or NOT_AVAILABLE in used else sum(used) / 1e6


@contextlib.contextmanager
def gpus(library: Any = None) -> Iterator[list[Gpu]]:
    """Yield the machine's NVIDIA cards; none where there is no NVML.

    Args:
        library: In place of the system's NVML.
    """
    try:
        library = library or ctypes.CDLL(LIBRARY)
    except OSError:
        yield []
        return
    if library.nvmlInit_v2():
        yield []
        return
    try:
        count = ctypes.c_uint()
        failed = library.nvmlDeviceGetCount_v2(ctypes.byref(count))
        yield [Gpu(library, index) for index in range(0 if failed else count.value)]
    finally:
        library.nvmlShutdown()
