"""Viewers that are slow, hang, or come five hundred at once: the stream behind the page goes on."""

from __future__ import annotations

import contextlib
import re
import resource
import select
import socket
import statistics
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from web_doubles import Page, page, wait_for

from deploy.frames import Frame
from deploy.web.server import MAX_CONNECTIONS, REFUSED_S

SIZE_HW = (360, 640)
NOISE = np.random.default_rng(0).integers(0, 256, (4, *SIZE_HW, 3), np.uint8)
CLASSES = np.zeros(SIZE_HW, np.uint8)
FPS = 50.0


class Stream:
    """A pipeline's sinks' thread: a frame each 1 / FPS seconds, and how long each write took."""

    def __init__(self, found: Page) -> None:
        self._found = found
        self.writes_ms: list[float] = []
        self.late_ms: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="test-stream")

    def _run(self) -> None:
        due, index = time.perf_counter(), 0
        while not self._stop.is_set():
            frame = Frame(NOISE[index % 4], index, time.monotonic_ns())
            begin = time.perf_counter()
            self._found.sink.write(frame, CLASSES)
            self.writes_ms.append(1e3 * (time.perf_counter() - begin))
            self.late_ms.append(1e3 * (begin - due))
            index += 1
            due += 1 / FPS
            time.sleep(max(0.0, due - time.perf_counter()))

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fill at once what lies between the server and a viewer."""
    monkeypatch.setattr("deploy.web.server.SEND_BUFFER", 8192)
    monkeypatch.setattr("deploy.web.answers.WRITE_S", 1.5)
    return


@pytest.mark.parametrize("path", ["/stream.mjpg", "/layers", "/snapshot.jpg"])
def test_who_hangs_costs_nothing_and_is_cut_off(
    small_buffers: None, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with page(size_hw=SIZE_HW) as found, Stream(found), found.connect(path, receive_buffer=4096) as hung:
        wait_for(lambda: found.json("/stats.json")["server"]["connections"] == 2)
        time.sleep(0.5)
        encoded = sum(found.sink._server._gallery.encoded.values())
        time.sleep(0.4)
        assert (
            sum(found.sink._server._gallery.encoded.values()) == encoded <= 3
        )  # nothing is made for who takes nothing
        wait_for(lambda: found.json("/stats.json")["server"]["connections"] == 1, 4)
        with contextlib.suppress(ConnectionError):
            while hung.recv(65536):
                pass
    assert not caplog.records  # the end of a viewer is nobody's error


def test_who_asks_much_and_reads_nothing_is_cut_off(small_buffers: None, caplog: pytest.LogCaptureFixture) -> None:
    with page() as found, found.connect(receive_buffer=4096) as client:
        client.setblocking(False)
        request, began = b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50, time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - began < 12:
                if select.select([], [client], [], 0.1)[1]:
                    with contextlib.suppress(BlockingIOError):
                        client.send(request)
        wait_for(lambda: found.json("/stats.json")["server"]["connections"] == 1)
    assert not caplog.records


def test_without_descriptors_it_rests(caplog: pytest.LogCaptureFixture) -> None:
    with page() as found:
        found.write()
        found.get("/healthz")
        clients = [socket.socket() for _ in range(20)]
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        try:
            for client in clients:
                client.connect(("127.0.0.1", found.sink.port))
            begin = time.process_time()
            time.sleep(1)
            busy_s = time.process_time() - begin
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert busy_s < 0.3
        assert found.get("/healthz")[0] == 200
        for client in clients:
            client.close()
    assert not caplog.records


def told_so(found: Page) -> bool:
    """Tell whether one more is answered that there are too many."""
    with found.connect() as client:
        client.settimeout(0.5)
        with contextlib.suppress(OSError):
            return client.recv(12) == b"HTTP/1.1 503"
    return False


def test_who_is_refused_and_gone_leaves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with page() as found:
        found.write()
        held = [found.connect() for _ in range(MAX_CONNECTIONS)]
        wait_for(lambda: told_so(found))
        for _ in range(3 * MAX_CONNECTIONS):  # more than are told so at a time
            client = found.connect()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()  # with a reset
        time.sleep(REFUSED_S + 0.5)
        assert told_so(found)
        for client in held:
            client.close()
        wait_for(lambda: answers_now(found))
    assert not caplog.records


def test_the_slow_skip_and_the_quick_do_not() -> None:
    def watch(client: socket.socket, wait_s: float, seen: list[int]) -> None:
        data = b""
        while time.monotonic() < end and (part := client.recv(1 << 16)):
            data += part
            while (at := data.find(b"\xff\xd9\r\n--")) >= 0:
                seen.append(at)
                data = data[at + 4 :]
                time.sleep(wait_s)

    with page(size_hw=SIZE_HW) as found, Stream(found) as stream:
        end = time.monotonic() + 4
        seen: tuple[list[int], list[int]] = ([], [])
        clients = [found.connect("/stream.mjpg", receive_buffer=1 << 14) for _ in range(2)]
        threads = [
            threading.Thread(target=watch, args=(client, wait_s, into))
            for client, wait_s, into in zip(clients, (0.0, 0.5), seen, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for client in clients:
            client.close()
        assert len(seen[1]) < 12 and len(seen[0]) > 3 * len(seen[1])
        assert len(stream.writes_ms) > 0.97 * 4 * FPS


def answers_now(found: Page) -> bool:
    try:
        return found.get("/stats.json")[0] == 200
    except OSError:  # too many are being refused for this one to be told
        return False


def test_five_hundred_at_once() -> None:
    with page(size_hw=SIZE_HW) as found, Stream(found) as stream:
        time.sleep(1)
        before = len(stream.writes_ms)
        began = time.perf_counter()
        clients = [socket.socket() for _ in range(500)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", found.sink.port))
        answers: Counter[int] = Counter()
        waiting = dict.fromkeys(clients, b"GET /stats.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
        open_, heard = set(clients), set()
        while open_ - heard and time.perf_counter() - began < 8:
            readable, writable, _ = select.select(open_ - heard, list(waiting), [], 0.1)
            for client in writable:
                with contextlib.suppress(OSError):
                    client.send(waiting[client])
                del waiting[client]
            for client in readable:
                answer = b""
                with contextlib.suppress(OSError):
                    answer = client.recv(4096)
                match = re.match(rb"HTTP/1\.1 (\d{3})", answer)
                answers[int(match[1]) if match else 0] += 1
                heard.add(client)
        seconds = time.perf_counter() - began
        frames = len(stream.writes_ms) - before
        for client in clients:
            client.close()
        assert answers[200] == MAX_CONNECTIONS and sum(answers.values()) == 500 and answers[503] > 50, answers
        assert frames >= 0.97 * seconds * FPS - 2, (frames, seconds)
        assert statistics.median(stream.writes_ms) < 2
        wait_for(lambda: answers_now(found))
        wait_for(lambda: found.json("/stats.json")["server"]["connections"] == 1)
        assert found.json("/stats.json")["server"]["refused"] >= 400
