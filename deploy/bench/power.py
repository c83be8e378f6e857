"""Power and energy of the board while a model runs, where the board can tell.

Three kinds of meter are known: the INA3221 rails of a Jetson, NVML's of an NVIDIA card, and RAPL's energy counters of a
PC. Readings are taken here, often, and averaged over exactly the time in which frames ran: the averages that tools show
are of other times. https://docs.kernel.org/hwmon/ina3221.html, https://docs.kernel.org/power/powercap/powercap.html
"""

from __future__ import annotations

import bisect
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from deploy.bench.nvml import Gpu

PERIOD_S = 0.05
IDLE_S = 3.0
"""How long the machine is watched doing nothing before a model is loaded."""
INA_DRIVERS = Path("bus/i2c/drivers")
POWERCAP = Path("class/powercap")
WHOLE_BOARD = ("VDD_IN", "POM_5V_IN", "5V_IN")
"""The rail that feeds all others, by a Jetson's model; where there is none the rails lie side by side."""


@dataclass(frozen=True)
class Meter:
    """Something that tells power, in W, or counts energy, in J.

    Attributes:
        name: Such as "rail VDD_IN", "GPU 0 NVIDIA H200", "RAPL package-0".
        counts: Whether `read` gives the energy since some moment; else power now.
        read: Raises OSError where it cannot be read any more.
    """

    name: str
    counts: bool
    read: Callable[[], float]


@dataclass(frozen=True)
class Spent:
    """Energy of one round: so many joules in so many seconds, in which so many frames ran."""

    seconds: float
    frames: int
    joules: float


@dataclass(frozen=True)
class Power:
    """What one meter told while one model ran, end to end.

    Attributes:
        meter: Its name.
        idle_w: Mean power before any model was loaded.
        rounds: As measured.
        mean_w: Mean power while the model ran.
        mj_per_frame: Energy a frame, in mJ.
        above_idle_mj: The same with the idle power taken off.
    """

    meter: str
    idle_w: float
    rounds: tuple[Spent, ...]
    mean_w: float
    mj_per_frame: float
    above_idle_mj: float

    @classmethod
    def of(cls, meter: str, idle_w: float, rounds: Sequence[Spent]) -> Power:
        """Summarise rounds; at least one with a frame."""
        seconds, joules = sum(r.seconds for r in rounds), sum(r.joules for r in rounds)
        frames = sum(r.frames for r in rounds)
        above = joules - idle_w * seconds
        return cls(meter, idle_w, tuple(rounds), joules / seconds, 1e3 * joules / frames, 1e3 * above / frames)


def _number(path: Path) -> float:
    try:
        return float(path.read_text(encoding="ascii"))
    except ValueError as error:
        raise OSError(f"{path} is no number") from error


def _product(millivolts: Path, milliamperes: Path) -> float:
    return _number(millivolts) * _number(milliamperes) / 1e6


def _scaled(milliwatts: Path) -> float:
    return _number(milliwatts) / 1e3


def _rails(sys: Path) -> Iterator[tuple[str, Callable[[], float]]]:
    """Yield name and watts of each INA3221 channel: by hwmon (JetPack 5 and later), or by iio (JetPack 4)."""
    for label in sorted((sys / INA_DRIVERS).glob("ina3221/*/hwmon/hwmon*/in[123]_label")):
        channel = label.name[2]
        volt, ampere = label.with_name(f"in{channel}_input"), label.with_name(f"curr{channel}_input")
        yield label.read_text(encoding="ascii").strip(), partial(_product, volt, ampere)
    for label in sorted((sys / INA_DRIVERS).glob("ina3221x/*/iio:device*/rail_name_[012]")):
        power = label.with_name(f"in_power{label.name[-1]}_input")
        yield label.read_text(encoding="ascii").strip(), partial(_scaled, power)


def _jetson(sys: Path) -> list[Meter]:
    rails = {name: read for name, read in _rails(sys) if "NC" not in name}  # not connected
    meters = [Meter(f"rail {name}", False, read) for name, read in rails.items()]
    if len(rails) > 1 and not set(rails) & set(WHOLE_BOARD):
        meters.append(Meter("sum of the rails", False, lambda: sum(read() for read in rails.values())))
    return meters


def _rapl(sys: Path) -> list[Meter]:
    """Return a meter a package, and `psys` where the board has it; zones inside a package are part of it."""
    meters = []
    for zone in sorted((sys / POWERCAP).glob("intel-rapl:*")):
        if zone.name.count(":") == 1:
            name = (zone / "name").read_text(encoding="ascii").strip()
            meters.append(Meter(f"RAPL {name}", True, _Unwrapped(zone)))
    return meters


class _Unwrapped:
    """A RAPL counter in J that goes on where the hardware's starts again from zero."""

    def __init__(self, zone: Path) -> None:
        self._file = zone / "energy_uj"
        self._range = _number(zone / "max_energy_range_uj")
        self._last = _number(self._file)
        self._turns = 0

    def __call__(self) -> float:
        now = _number(self._file)
        self._turns += now < self._last
        self._last = now
        return (now + self._turns * self._range) / 1e6


def _card(gpu: Gpu) -> Meter | None:
    name = f"GPU {gpu.index} {gpu.name}"
    for counts, ask in ((True, gpu.joules), (False, gpu.watts)):
        if ask() is not None:

            def read(ask: Callable[[], float | None] = ask) -> float:
                if (value := ask()) is None:
                    raise OSError(f"{name} does not tell its power any more")
                return value

            return Meter(name, counts, read)
    return None


def find_meters(cards: Sequence[Gpu] = (), sys: Path = Path("/sys")) -> tuple[list[Meter], str | None]:
    """Return the meters that can be read here, and, when there is none, why.

    Args:
        cards: The NVIDIA cards.
        sys: Where the kernel's files are.
    """
    meters = [meter for gpu in cards if (meter := _card(gpu)) is not None]
    reasons = []
    for what, find in (("INA3221 rails", _jetson), ("RAPL counters", _rapl)):
        try:
            found = find(sys)
            for meter in found:
                meter.read()
            meters += found
            reasons += [] if found else [f"no {what}"]
        except OSError as error:  # noqa: PERF203 - two kinds of meter
            reasons.append(f"{what} cannot be read ({error.strerror or error})")
    reasons.append("no NVIDIA card that tells its power")
    return meters, None if meters else f"power is not known here: {', '.join(reasons)}"


class Recorder:
    """Reads meters in a thread of its own, and says how much energy went between two moments.

    Args:
        meters: What is read. One that fails while it runs drops out, and has no figures.
        now: Clock in seconds.
    """

    def __init__(self, meters: Sequence[Meter], now: Callable[[], float] = time.monotonic) -> None:
        self._meters, self._now = list(meters), now
        self._times: list[float] = []
        self._joules: dict[str, list[float]] = {meter.name: [] for meter in meters}
        self._watts: dict[str, float] = {}
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="lfd-power", daemon=True)

    def sample(self) -> float:
        """Read every meter once; return when."""
        with self._lock:
            self._times.append(self._now())
            for meter in list(self._meters):
                series = self._joules[meter.name]
                try:
                    value = meter.read()
                except OSError:
                    self._meters.remove(meter)
                    del self._joules[meter.name]
                    continue
                if meter.counts or not series:
                    series.append(value if meter.counts else 0.0)
                else:  # the trapezoid between two readings
                    mean = (value + self._watts[meter.name]) / 2
                    series.append(series[-1] + mean * (self._times[-1] - self._times[-2]))
                self._watts[meter.name] = value
            return self._times[-1]

    def between(self, begin: float, end: float) -> dict[str, float]:
        """Return the joules of each meter between two moments that `sample` returned."""
        with self._lock:
            first, last = bisect.bisect_left(self._times, begin), bisect.bisect_left(self._times, end)
            return {name: joules[last] - joules[first] for name, joules in self._joules.items()}

    def idle_w(self, seconds: float = IDLE_S) -> dict[str, float]:
        """Watch for some time; return the mean power of each meter."""
        begin = self.sample()
        self._stop.wait(seconds)
        end = self.sample()
        return {name: joules / (end - begin) for name, joules in self.between(begin, end).items()}

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            self.sample()

    @contextlib.contextmanager
    def running(self) -> Iterator[Recorder]:
        """Read in the background while inside; without a meter there is nothing to do."""
        if self._meters:
            self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            if self._thread.ident is not None:
                self._thread.join()
