"""Meters against files as the kernel and NVML lay them out, and energy against integrals done by hand."""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.bench import conditions, nvml
from deploy.bench.conditions import Condition, Watch, warnings
from deploy.bench.nvml import NOT_AVAILABLE, gpus
from deploy.bench.power import Meter, Power, Recorder, Spent, find_meters


def put(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


ORIN_NX = "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/"
NANO = "bus/i2c/drivers/ina3221x/6-0040/iio:device0/"
RAPL = "class/powercap/intel-rapl:0/"
JETSON = {
    f"{ORIN_NX}in1_label": "VDD_IN\n",
    f"{ORIN_NX}in1_input": "5000\n",
    f"{ORIN_NX}curr1_input": "1200\n",
    f"{ORIN_NX}in2_label": "VDD_CPU_GPU_CV\n",
    f"{ORIN_NX}in2_input": "5000\n",
    f"{ORIN_NX}curr2_input": "400\n",
    f"{ORIN_NX}in3_label": "NC\n",
    f"{ORIN_NX}in7_label": "sum of shunt voltages\n",
}


def test_the_rails_of_a_jetson(tmp_path: Path) -> None:
    put(tmp_path, JETSON)
    meters, reason = find_meters(sys=tmp_path)
    assert reason is None
    assert {m.name: m.read() for m in meters} == {"rail VDD_IN": 6.0, "rail VDD_CPU_GPU_CV": 2.0}
    assert not any(m.counts for m in meters)


def test_the_rails_of_an_old_jetson(tmp_path: Path) -> None:
    put(tmp_path, {f"{NANO}rail_name_0": "POM_5V_IN\n", f"{NANO}in_power0_input": "2345\n"})
    meters, _ = find_meters(sys=tmp_path)
    assert {m.name: m.read() for m in meters} == {"rail POM_5V_IN": 2.345}


def test_rails_that_lie_side_by_side_are_summed(tmp_path: Path) -> None:
    agx = {name.replace("VDD_IN", "x"): text.replace("VDD_IN", "VDD_GPU_SOC") for name, text in JETSON.items()}
    put(tmp_path, agx)
    meters, _ = find_meters(sys=tmp_path)
    assert {m.name: m.read() for m in meters}["sum of the rails"] == 8.0


def test_rapl_counts_on_over_its_wrap(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            f"{RAPL}name": "package-0\n",
            f"{RAPL}energy_uj": "900000\n",
            f"{RAPL}max_energy_range_uj": "1000000\n",
            "class/powercap/intel-rapl:0:0/name": "core\n",
        },
    )
    meters, _ = find_meters(sys=tmp_path)
    (meter,) = meters
    assert (meter.name, meter.counts) == ("RAPL package-0", True)
    before = meter.read()
    (tmp_path / RAPL / "energy_uj").write_text("100000\n")
    assert meter.read() - before == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "no INA3221 rails, no RAPL counters, no NVIDIA card that tells its power"),
        ({f"{RAPL}name": "package-0\n"}, r"RAPL counters cannot be read \(No such file or directory\)"),
        (
            {f"{RAPL}name": "p\n", f"{RAPL}energy_uj": "x", f"{RAPL}max_energy_range_uj": "1"},
            r"RAPL counters cannot be read \(.*energy_uj is no number\)",
        ),
    ],
)
def test_a_board_that_does_not_tell_says_why(tmp_path: Path, files: dict[str, str], reason: str) -> None:
    put(tmp_path, files)
    meters, said = find_meters(sys=tmp_path)
    assert meters == []
    assert said is not None
    assert re.search(reason, said)


class Steps:
    """A clock and a meter that tell what they are told."""

    def __init__(self) -> None:
        self.time = 0.0
        self.value = 0.0

    def now(self) -> float:
        return self.time

    def read(self) -> float:
        return self.value

    def at(self, time: float, value: float, recorder: Recorder) -> float:
        self.time, self.value = time, value
        return recorder.sample()


@given(st.lists(st.tuples(st.floats(0.01, 2), st.floats(0, 50)), min_size=3, max_size=40))
def test_energy_is_the_integral_of_power_between_two_moments(readings: list[tuple[float, float]]) -> None:
    steps = Steps()
    recorder = Recorder([Meter("rail", False, steps.read)], steps.now)
    times = [
        steps.at(sum(gap for gap, _ in readings[: i + 1]), watts, recorder) for i, (_, watts) in enumerate(readings)
    ]
    first, last = 1, len(readings) - 1
    truth = sum(
        (readings[i][1] + readings[i - 1][1]) / 2 * (times[i] - times[i - 1]) for i in range(first + 1, last + 1)
    )
    assert recorder.between(times[first], times[last])["rail"] == pytest.approx(truth, abs=1e-6)


def test_a_counter_is_read_off() -> None:
    steps = Steps()
    recorder = Recorder([Meter("package", True, steps.read)], steps.now)
    begin = steps.at(1, 500, recorder)
    steps.at(2, 510, recorder)
    end = steps.at(4, 550, recorder)
    assert recorder.between(begin, end) == {"package": 50}


def test_a_meter_that_breaks_drops_out_and_the_others_go_on() -> None:
    steps = Steps()

    def broken() -> float:
        if steps.time > 1:
            raise OSError("gone")
        return 1.0

    recorder = Recorder([Meter("bad", False, broken), Meter("good", False, steps.read)], steps.now)
    begin = steps.at(1, 10, recorder)
    end = steps.at(3, 10, recorder)
    assert recorder.between(begin, end) == {"good": 20}


def test_the_thread_samples_and_ends() -> None:
    seen = threading.Event()

    def read() -> float:
        seen.set()
        return 5.0

    with Recorder([Meter("rail", False, read)]).running() as recorder:
        assert seen.wait(10)
        assert recorder.idle_w(0.15)["rail"] == pytest.approx(5.0)
    assert [t.name for t in threading.enumerate() if t.name == "lfd-power"] == []


def test_idle_is_taken_off_as_a_second_number() -> None:
    # 10 W for 4 s over 80 frames are 500 mJ a frame; 3 W of it the board uses anyway.
    power = Power.of("rail", 3.0, [Spent(1.0, 20, 10.0), Spent(3.0, 60, 30.0)])
    assert (power.mean_w, power.mj_per_frame, power.above_idle_mj) == (10.0, 500.0, 350.0)


class FakeNvml:
    """NVML's functions as ctypes meets them; `values` is what they write, a missing one fails with code 3."""

    def __init__(self, **values: int) -> None:
        self.values = values
        self.shut = False

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return self.values.get("init", 0)

    def nvmlShutdown(self) -> int:  # noqa: N802
        self.shut = True
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        count._obj.value = 1
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:  # noqa: N802
        return 0

    def nvmlDeviceGetName(self, handle: Any, name: Any, length: Any) -> int:  # noqa: N802
        name.value = b"NVIDIA X"
        return 0

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Any, count: Any, infos: Any) -> int:  # noqa: N802
        for index, used in enumerate((100_000_000, self.values.get("used", 200_000_000), 50_000_000)):
            infos[index].pid = 42 if index < 2 else 7
            infos[index].used_gpu_memory = used
        count._obj.value = 3
        return 0

    def __getattr__(self, name: str) -> Callable[..., int]:
        if name not in self.values:
            raise AttributeError(name)

        def ask(handle: Any, *rest: Any) -> int:
            rest[-1]._obj.value = self.values[name]
            return 0

        return ask


def test_nvml_tells_power_memory_and_why_the_clock_is_low() -> None:
    library = FakeNvml(
        nvmlDeviceGetPowerUsage=75_500,
        nvmlDeviceGetTotalEnergyConsumption=9_000,
        nvmlDeviceGetTemperature=61,
        nvmlDeviceGetClockInfo=1410,
        nvmlDeviceGetCurrentClocksThrottleReasons=0x04 | 0x40,
    )
    with gpus(library) as (card,):
        assert (card.name, card.watts(), card.joules()) == ("NVIDIA X", 75.5, 9.0)
        assert (card.temperature_c(), card.clock_mhz()) == (61, 1410)
        assert card.throttled() == ("power cap", "HW thermal slowdown")
        assert (card.memory_mb(42), card.memory_mb(7), card.memory_mb(1)) == (300.0, 50.0, None)
        meters, reason = find_meters([card], Path("/nowhere"))
        assert [(m.name, m.counts, m.read()) for m in meters] == [("GPU 0 NVIDIA X", True, 9.0)]
        assert reason is None
    assert library.shut


def test_a_card_without_a_counter_gives_its_power() -> None:
    with gpus(FakeNvml(nvmlDeviceGetPowerUsage=30_000, used=NOT_AVAILABLE)) as (card,):
        meters, _ = find_meters([card], Path("/nowhere"))
        assert [(m.counts, m.read()) for m in meters] == [(False, 30.0)]
        assert (card.clock_mhz(), card.throttled(), card.memory_mb(42)) == (None, (), None)


def test_without_nvml_there_are_no_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "LIBRARY", "libthere-is-none.so")
    with gpus() as cards:
        assert cards == []
    with gpus(FakeNvml(init=999)) as cards:
        assert cards == []


def test_the_structure_is_as_large_as_nvmls() -> None:
    assert ctypes.sizeof(nvml._ProcessInfo) == 24  # nvmlProcessInfo_v2_t


def test_a_look_at_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1000000\n",
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "2000000\n",
            "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "2\n",
            "sys/class/hwmon/hwmon1/oc1_event_cnt": "3\n",
            "sys/class/thermal/thermal_zone0/temp": "45500\n",
            "sys/class/thermal/thermal_zone1/temp": "-256000\n",
            "proc/stat": "cpu  1000 0 500 9000 10 0 0 0 0 0\n",
            "proc/7/stat": "7 (a (b) c) S 1 1 1 0 -1 0 0 0 0 0 100 50 0 0 20 0\n",
        },
    )
    monkeypatch.setattr(conditions, "SYS", tmp_path / "sys")
    monkeypatch.setattr(conditions, "PROC", tmp_path / "proc")
    times = iter([0.0, 10.0])
    monkeypatch.setattr(conditions.time, "monotonic", lambda: next(times))
    monkeypatch.setattr(conditions.os, "getpid", lambda: 7)
    monkeypatch.setattr(conditions.os, "sysconf", lambda name: 100)
    watch = Watch([])
    put(tmp_path, {"proc/stat": "cpu  1600 0 600 9000 10 0 0 0 0 0\n"})
    put(tmp_path, {"proc/7/stat": "7 (a (b) c) S 1 1 1 0 -1 0 0 0 0 0 300 50 0 0 20 0\n"})
    look = watch.look()
    assert (look.seconds, look.clock_mhz, look.temperature_c, look.throttle_events) == (10.0, 1500.0, 45.5, 5)
    assert look.others_cores == pytest.approx(0.5)  # 7 s busy, 2 of them ours, in 10 s


def test_a_machine_that_tells_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(conditions, "SYS", tmp_path)
    monkeypatch.setattr(conditions, "PROC", tmp_path)
    look = Watch([]).look()
    assert (look.clock_mhz, look.temperature_c, look.throttle_events, look.others_cores) == (None,) * 4
    assert warnings([look]) == []


def test_what_spoils_times_is_warned_of() -> None:
    calm = Condition(0.0, 2000.0, 50.0, 4, 0.01, 1400.0, 60.0, ())
    assert warnings([calm, calm]) == []
    hot = Condition(9.0, 1500.0, 90.0, 6, 0.9, 700.0, 90.0, ("power cap",))
    text = "\n".join(warnings([calm, hot]))
    assert "held itself back 2 times" in text
    assert "the GPU's clock was held down: power cap" in text
    assert "the processor's clock moved between 1500 and 2000 MHz" in text
    assert "the GPU's clock moved between 700 and 1400 MHz" in text
    assert "other programs used 0.46 cores" in text
