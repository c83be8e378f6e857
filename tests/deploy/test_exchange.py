"""Who may put, take and give what, and when: single-threaded, by the clock of the test, where it can be."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.exchange import FRESH_S, Ended, Exchange, Stopped
from deploy.frames import State, StreamStatus
from deploy.lane import QUEUE, RESULTS

SLACK_S = 8.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make(*live: bool, clock: Clock | None = None) -> tuple[Exchange[str, str], Counter[int]]:
    dropped: Counter[int] = Counter()
    return Exchange(live, on_drop=lambda lane, frames: dropped.update({lane: frames}), clock=clock or Clock()), dropped


def infer(exchange: Exchange[str, str], limit: int | None = None) -> list[str]:
    taken = exchange.take(limit)
    exchange.give([(lane, f"{item}!") for lane, item in taken])
    return [item for _, item in taken]


def status(state: State) -> StreamStatus:
    return StreamStatus(state, 0)


def test_a_live_lane_keeps_the_newest_before_and_after_the_inference() -> None:
    exchange, dropped = make(True)
    for item in "abc":
        exchange.put(0, item)
    assert infer(exchange) == ["c"] and dropped == {0: 2}
    exchange.put(0, "d")
    assert infer(exchange) == ["d"] and dropped == {0: 3}
    assert exchange.next(0) == (0, "d!")
    assert exchange.next(0) is None


def test_a_file_waits_for_room_on_both_sides() -> None:
    exchange, dropped = make(False)
    put = []

    def fill() -> None:
        with suppress(Stopped):
            for item in "abcdefgh":
                exchange.put(0, item)
                put.append(item)

    reader = threading.Thread(target=fill, daemon=True)
    reader.start()
    deadline = time.monotonic() + SLACK_S
    while len(put) < QUEUE and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert put == ["a", "b"], "the third waits"
    assert [infer(exchange) for _ in range(RESULTS)] == [["a"], ["b"], ["c"]]
    taker = threading.Thread(target=infer, args=(exchange,), daemon=True)
    taker.start()
    taker.join(0.05)
    assert taker.is_alive(), "no room for a fourth result"
    assert exchange.next(1) == (0, "a!")
    taker.join(SLACK_S)
    assert [exchange.next(1) for _ in range(RESULTS)] == [(0, "b!"), (0, "c!"), (0, "d!")]
    exchange.stop()
    reader.join(SLACK_S)
    assert not dropped


def test_statuses_keep_their_place_among_the_frames() -> None:
    exchange, dropped = make(True)
    lost, back, ended = status(State.LOST), status(State.LIVE), status(State.ENDED)
    exchange.put(0, "a")
    exchange.put_status(0, lost)
    exchange.put_status(0, back)
    assert exchange.next(0) is None, "not before the frame that came first"
    assert infer(exchange) == ["a"]
    exchange.put(0, "b")  # as newer than nothing: a has been given
    exchange.put_status(0, ended)
    exchange.end(0)
    assert infer(exchange) == ["b"]
    with pytest.raises(Ended):
        exchange.take(None)
    # The result of a gave way to b's; what was said in between was not lost.
    assert [exchange.next(0) for _ in range(4)] == [(0, lost), (0, back), (0, "b!"), (0, ended)]
    assert dropped == {0: 1}
    with pytest.raises(Ended):
        exchange.next(0)


def test_statuses_in_front_do_not_keep_a_files_reader_waiting() -> None:
    exchange, _ = make(False)
    exchange.put(0, "a")
    taken = exchange.take(None)
    for _ in range(QUEUE):
        exchange.put_status(0, status(State.LOST))
    reader = threading.Thread(target=exchange.put, args=(0, "b"), daemon=True)
    reader.start()
    reader.join(0.05)
    assert reader.is_alive(), "they take the frames' room until the inference has passed them on"
    exchange.give([(lane, f"{item}!") for lane, item in taken])
    found: list[list[tuple[int, str]]] = []
    taker = threading.Thread(target=lambda: found.append(exchange.take(None)), daemon=True)
    taker.start()
    reader.join(SLACK_S)
    assert not reader.is_alive()
    for _ in range(1 + QUEUE):
        assert exchange.next(1)
    taker.join(SLACK_S)
    assert found == [[(0, "b")]]


def test_what_is_in_hand_takes_room_and_keeps_its_place() -> None:
    exchange, _ = make(False)
    taken = []
    for item in "abc":
        exchange.put(0, item)
        taken.append(exchange.take(None))
    exchange.put(0, "d")
    exchange.put_status(0, status(State.ENDED))
    exchange.end(0)
    found: list[object] = []

    def take() -> None:
        try:
            while True:
                found.append(exchange.take(None))
        except Ended:
            found.append(Ended)

    taker = threading.Thread(target=take, daemon=True)
    taker.start()
    taker.join(0.05)
    assert taker.is_alive() and not found, "three are in hand"
    exchange.give([(0, "a!")])
    assert exchange.next(1) == (0, "a!")
    for item in ("b!", "c!"):
        exchange.give([(0, item)])
        assert exchange.next(1) == (0, item)
    taker.join(0.05)
    assert taker.is_alive() and found == [[(0, "d")]] and exchange.next(0) is None, "the status stays behind it"
    exchange.give([(0, "d!")])
    taker.join(SLACK_S)
    assert found == [[(0, "d")], Ended]
    assert [exchange.next(1) for _ in range(2)] == [(0, "d!"), (0, status(State.ENDED))]


def test_a_status_does_not_wait_for_a_frame() -> None:
    exchange, _ = make(False)
    exchange.put_status(0, status(State.LOST))
    assert exchange.next(0) == (0, status(State.LOST))


@pytest.mark.parametrize("limit", [1, None])
def test_lanes_take_turns(limit: int | None) -> None:
    exchange, _ = make(True, True, True)
    order = []
    for turn in range(4):
        for lane in range(3):
            exchange.put(lane, f"{lane}{turn}")
        order.append([item[0] for item in infer(exchange, limit)])
    assert order == ([["0"], ["1"], ["2"], ["0"]] if limit else [["0", "1", "2"], ["0", "1", "2"]] * 2)
    assert [found[0] for found in (exchange.next(0), exchange.next(0), exchange.next(0)) if found] == [0, 1, 2]


@given(
    lanes=st.integers(2, 4), limit=st.sampled_from([1, None]), seed=st.integers(0, 2**32), live=st.lists(st.booleans())
)
def test_no_lane_waits_for_more_turns_than_there_are_lanes(
    lanes: int, limit: int | None, seed: int, live: list[bool]
) -> None:
    """Whatever comes in whatever order, a lane with a frame is served within as many runs as there are lanes."""
    exchange, _ = make(*([*live, *[True] * lanes][:lanes]))
    chance = random.Random(seed)
    waiting = [0] * lanes
    for number in range(30):
        for lane in range(lanes):
            if waiting[lane] == 0 and (chance.random() < 0.5 or not any(waiting)):
                exchange.put(lane, f"{lane}-{number}")
                waiting[lane] = 1
        served = [int(item.split("-")[0]) for item in infer(exchange, limit)]
        assert len(served) == len(set(served)) <= (limit or lanes)
        while exchange.next(0):
            pass
        for lane in range(lanes):
            waiting[lane] = 0 if lane in served else waiting[lane] + (waiting[lane] > 0)
        assert max(waiting) <= lanes


@given(st.lists(st.tuples(st.sampled_from(["put", "infer", "next"]), st.integers(0, 2)), max_size=80))
def test_every_frame_is_shown_or_dropped_or_under_way(moves: list[tuple[str, int]]) -> None:
    live = (True, False, True)
    exchange, dropped = make(*live)
    put, shown, waiting, done = Counter[int](), Counter[int](), [0] * 3, [0] * 3
    for move, lane in moves:
        if move == "put" and (live[lane] or waiting[lane] < QUEUE):
            exchange.put(lane, f"{lane}")
            put[lane] += 1
            waiting[lane] = 1 if live[lane] else waiting[lane] + 1
        elif move == "infer" and any(w and (live[i] or done[i] < QUEUE) for i, w in enumerate(waiting)):
            for item in infer(exchange):
                index = int(item)
                waiting[index] -= 1
                done[index] = 1 if live[index] else done[index] + 1
        elif move == "next" and (found := exchange.next(0)):
            shown[found[0]] += 1
            done[found[0]] -= 1
        assert all(put[i] == shown[i] + dropped[i] + waiting[i] + done[i] for i in range(3))
        assert not dropped[1], "of a file none"


@given(write_s=st.floats(0.01, 3), infer_s=st.floats(0.01, 3))
def test_an_inference_ends_when_the_caller_is_free(write_s: float, infer_s: float) -> None:
    clock = Clock()
    exchange, _ = make(True, clock=clock)
    for _ in range(2):  # what is to be foreseen must have been seen
        assert exchange.next(0) is None
        exchange.put(0, "x")
        taken = exchange.take(None)
        clock.now += infer_s
        exchange.give(taken)
        assert exchange.next(0)
        clock.now += write_s
    assert exchange.next(0) is None, "the caller is back"
    exchange.put(0, "y")
    taken = exchange.take(None)  # nobody is away: at once
    clock.now += infer_s
    exchange.give(taken)
    exchange.put(0, "z")
    assert exchange.next(0) == (0, "y")
    ready, wait_s = exchange._ready()
    if write_s > infer_s + 1e-6:
        assert not ready and wait_s == pytest.approx(write_s - infer_s, abs=1e-6)
    elif write_s < infer_s - 1e-6:
        assert (ready, wait_s) == ([0], None)


@pytest.mark.parametrize(("newer", "kept"), [(True, False), (False, True)])
def test_a_result_that_lay_too_long_gives_way_to_a_newer_frame_only(newer: bool, kept: bool) -> None:
    clock = Clock()
    exchange, dropped = make(True, clock=clock)
    for item in "ab":
        exchange.put(0, item)
        infer(exchange)
        if item == "a":
            assert exchange.next(0) == (0, "a!")  # and the caller is away with it
    clock.now += 2 * FRESH_S
    if newer:
        exchange.put(0, "c")
    assert exchange.next(0) == ((0, "b!") if kept else None)
    assert dropped == ({} if kept else {0: 1})


def test_a_result_for_a_caller_who_waits_is_never_too_old() -> None:
    clock = Clock()
    exchange, _ = make(True, clock=clock)
    exchange.put(0, "a")
    infer(exchange)
    clock.now += 100 * FRESH_S  # the system took its time to wake the caller
    exchange.put(0, "b")
    assert exchange.next(0) == (0, "a!")


@pytest.mark.parametrize(
    ("now", "wait_s"), [(0.95, None), (0.982, 0.038), (1.0, 0.02), (1.019, 0.001), (1.03, None)], ids=str
)
def test_the_next_frame_is_waited_for_when_it_is_due(now: float, wait_s: float | None) -> None:
    """Frames came every 0.1 s, the last at 0.9: the one due at 1.0 is waited for from 0.98 to 1.02."""
    clock = Clock()
    exchange, _ = make(True, True, clock=clock)
    for step in range(10):
        clock.now = step / 10
        exchange.put(0, "a")
        if step < 9:
            infer(exchange)
            assert exchange.next(0) and exchange.next(0) is None, "and the caller is back"
    clock.now = now
    assert exchange._ready() == (([], pytest.approx(wait_s)) if wait_s else ([0], None))
    exchange.put(1, "b")
    assert exchange._ready() == ([1, 0], None), "not where another stream can be inferred meanwhile"


def test_a_closed_lane_stops_its_reader_and_not_the_others() -> None:
    exchange, _ = make(True, False)
    exchange.put(0, "a")
    exchange.close(0)
    with pytest.raises(Stopped):
        exchange.put(0, "b")
    exchange.put(1, "c")
    exchange.end(1)
    assert infer(exchange) == ["c"]
    assert exchange.next(0) == (1, "c!")
    with pytest.raises(Ended):
        exchange.next(0)


@pytest.mark.parametrize("use", ["put", "put_status", "take", "next"])
def test_stop_ends_every_wait(use: str) -> None:
    exchange, _ = make(False)
    if use == "put":
        exchange.put(0, "a")
        exchange.put(0, "b")
    stopped: list[bool] = []

    def wait() -> None:
        uses = {
            "put": lambda: exchange.put(0, "c"),
            "put_status": lambda: time.sleep(0.1) or exchange.put_status(0, status(State.LOST)),
            "take": lambda: exchange.take(None),
            "next": lambda: exchange.next(60),
        }
        try:
            uses[use]()
        except Stopped:
            stopped.append(True)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    time.sleep(0.02)
    exchange.stop()
    thread.join(SLACK_S)
    assert stopped == [True]
