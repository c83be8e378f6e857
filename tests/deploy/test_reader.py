"""What the reader's thread asks of the system; what it does with frames is in test_pipeline."""

from __future__ import annotations

import os
import sys
import threading

import pytest
from doubles import ListSource, ScriptSource

from deploy.backends.fake import FakeSession
from deploy.frames import Frame
from deploy.pipeline import run
from deploy.reader import READER_NICE, Fitted, Limits, Stream, give_way, read
from lfd.spec import ModelSpec, Preprocess


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread")
@pytest.mark.parametrize("nice", [0, READER_NICE + 5])
def test_a_reader_gives_way_and_never_takes_back(nice: int) -> None:
    seen: list[int] = []

    def read() -> None:
        me = threading.get_native_id()
        before = max(nice, os.getpriority(os.PRIO_PROCESS, me))
        os.setpriority(os.PRIO_PROCESS, me, before)
        give_way()
        seen.extend((before, os.getpriority(os.PRIO_PROCESS, me)))

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    before, after = seen
    assert after == max(before, READER_NICE)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread")
@pytest.mark.parametrize(("live", "parallel", "gives_way"), [(False, 1, True), (False, 2, False), (True, 1, False)])
def test_a_reader_gives_way_to_one_inference_of_a_file(
    spec: ModelSpec, live: bool, parallel: int, gives_way: bool
) -> None:
    seen: list[int] = []

    def look(index: int) -> None:
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    mine = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    run(FakeSession(spec, parallel=parallel), ListSource(3, live, look), [])
    assert set(seen) == {max(mine, READER_NICE) if gives_way else mine}


@pytest.mark.parametrize(("live", "counts"), [(True, (6, 2, 0)), (False, (4, 0, 2))])
def test_what_a_source_passes_over_is_counted(live: bool, counts: tuple[int, int, int]) -> None:
    """A camera for a newer frame, which drops it; a folder because it is broken."""
    stream, frames = Stream(ScriptSource([0, 2, 3, 5], live)), list[Frame]()

    def put(item: Fitted) -> None:
        frames.append(item[0])

    told = (stream, put, lambda status: None, Preprocess((24, 32)), Limits(), threading.Event())
    thread = threading.Thread(target=read, args=told)  # a file's reader gives way, for good: not this thread
    thread.start()
    thread.join()
    assert [frame.index for frame in frames] == [0, 2, 3, 5]
    assert (stream.stats.captured, stream.stats.late, stream.stats.skipped) == counts
