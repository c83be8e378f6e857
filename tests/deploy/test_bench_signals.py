"""One signal ends a benchmark in good order; those that follow do not disturb it, but for Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from deploy.bench.signals import SIGNALS, stoppable


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Put back what a test leaves: once stopped, a process ignores all but Ctrl-C."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:  # under nohup the tests themselves were started to ignore one
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(*numbers: signal.Signals) -> None:
    for number in numbers:
        signal.raise_signal(number)


@pytest.mark.parametrize("first", SIGNALS, ids=str)
def test_the_first_signal_interrupts_and_only_ctrl_c_interrupts_again(first: signal.Signals) -> None:
    with stoppable():
        with pytest.raises(KeyboardInterrupt):
            send(first)
        send(signal.SIGTERM, signal.SIGHUP)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    send(signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("first", SIGNALS, ids=str)
def test_what_is_being_written_is_written_before_the_first_signal_counts(first: signal.Signals) -> None:
    written = []

    def write() -> None:
        with stop.held():
            send(first, signal.SIGTERM)
            written.append(first)

    with stoppable() as stop:
        with pytest.raises(KeyboardInterrupt):
            write()
        assert written == [first]
        with stop.held():
            send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), stop.held():
            send(signal.SIGINT)


def test_a_failure_while_writing_is_not_hidden_by_a_signal() -> None:
    with stoppable() as stop, pytest.raises(OSError, match="full"), stop.held():
        send(signal.SIGTERM)
        raise OSError("full")


def test_a_signal_that_was_ignored_stays_so_and_handlers_come_back() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    before = signal.getsignal(signal.SIGTERM)
    with stoppable():
        send(signal.SIGHUP)
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
