"""Signals in every state of a run, and devices, models and sinks that hang in a library's code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from deploy.interrupt import Interrupts
from deploy.opening import together

ROOT = Path(__file__).parents[2]
PROMPT_S = 5.0
"""Where a second is promised, on a machine that others keep busy."""


def start(state: str, *args: str) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'deploy'}"}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "deploy" / "hanging.py"), state, "model.onnx", "street:", *args],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    guard = threading.Timer(30, process.kill)
    guard.start()
    while (line := process.stderr.readline()) and line != f"state: {state}\n":
        pass
    guard.cancel()
    assert line, "never came into that state"
    return process


def end(process: subprocess.Popen[str], *numbers: int) -> tuple[int, str, str, float]:
    """Send signals, half a second apart; return the exit code, what was printed, and the seconds it took."""
    time.sleep(0.1)
    begin = time.monotonic()
    for index, number in enumerate(numbers):
        if index:
            time.sleep(0.5)
        process.send_signal(number)
    try:
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    return process.returncode, out, err, time.monotonic() - begin


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("state", ["opening the model", "opening"])
def test_a_signal_while_something_is_opened(state: str, number: int) -> None:
    code, out, err, seconds = end(start(state, "null://"), number)
    assert (code, out, err.splitlines()[-1]) == (130, "", "interrupted before the first frame")
    assert seconds < PROMPT_S and "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("state", ["waiting", "inferring", "in a sink", "device hangs", "model hangs"])
def test_a_signal_ends_a_run_in_good_order(state: str, number: int) -> None:
    code, out, err, seconds = end(start(state, "null://"), number)
    assert code == 130, err
    assert err.splitlines()[-1].startswith("interrupted and flushed: ") and "Traceback" not in err
    assert "captured" in out and err.count("sink closed, complete") == 1
    assert seconds < PROMPT_S


def test_a_second_signal_ends_a_run_whose_sink_hangs() -> None:
    process = start("sink hangs", "null://")
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None, "the first one waits for the sink"
    code, _, err, seconds = end(process, signal.SIGINT)
    assert code == 130 and seconds < PROMPT_S and "Traceback" not in err


def test_a_device_that_hangs_does_not_keep_a_run_that_is_over() -> None:
    process = start("device hangs", "null://", "--duration", "1s")
    begin = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0 and "3 captured, 3 shown" in out and "sink closed, complete" in err
    assert time.monotonic() - begin < 1 + PROMPT_S


def test_handlers_are_put_back_and_ignored_signals_stay_ignored() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with Interrupts() as interrupts:
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
            assert not interrupts()
            signal.raise_signal(signal.SIGINT)
            assert interrupts()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before[1])
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.set_wakeup_fd(-1) == wakeup
    signal.set_wakeup_fd(wakeup)
    assert not [thread for thread in threading.enumerate() if thread.name == "lfd-signals"]


def test_in_another_thread_signals_are_the_main_ones() -> None:
    seen: list[bool] = []

    def listen() -> None:
        with Interrupts() as interrupts:
            seen.append(interrupts())

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join(PROMPT_S)
    assert seen == [False]


class Opened:
    def __init__(self) -> None:
        self.closed = threading.Event()

    def close(self) -> None:
        self.closed.set()


def test_openings_run_side_by_side() -> None:
    meet = threading.Barrier(3, timeout=PROMPT_S)
    things = [Opened() for _ in range(3)]
    assert together([lambda thing=thing: meet.wait() * 0 or thing for thing in things], lambda: False) == things
    assert not any(thing.closed.is_set() for thing in things)


@pytest.mark.parametrize("why", ["failure", "signal"])
def test_an_opening_that_is_given_up_closes_what_was_and_what_will_be_open(why: str) -> None:
    release, early, late = threading.Event(), Opened(), Opened()

    def fail() -> Opened:
        if why == "failure":
            raise FileNotFoundError("no")
        return Opened()

    def slow() -> Opened:
        release.wait(30)
        return late

    begin = time.monotonic()
    with pytest.raises(FileNotFoundError if why == "failure" else KeyboardInterrupt):
        together([lambda: early, slow, fail], lambda: why == "signal" and time.monotonic() > begin + 0.2)
    assert time.monotonic() - begin < PROMPT_S
    release.set()
    assert late.closed.wait(PROMPT_S)
    assert why == "failure" or early.closed.is_set()
