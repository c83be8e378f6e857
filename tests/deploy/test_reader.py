"""What the reader's thread asks of the system; what it does with frames is in test_pipeline."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from deploy.reader import READER_NICE, _give_way


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread")
@pytest.mark.parametrize("nice", [0, READER_NICE + 5])
def test_a_reader_gives_way_and_never_takes_back(nice: int) -> None:
    seen: list[int] = []

    def read() -> None:
        me = threading.get_native_id()
        before = max(nice, os.getpriority(os.PRIO_PROCESS, me))
        os.setpriority(os.PRIO_PROCESS, me, before)
        _give_way()
        seen.extend((before, os.getpriority(os.PRIO_PROCESS, me)))

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    before, after = seen
    assert after == max(before, READER_NICE)
