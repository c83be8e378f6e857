"""Faults of RTSP streams, against gst-rtsp-server in a process on loopback (rtsp_server.py says how to install it)."""

from __future__ import annotations

import os
import random
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest
from servers import (
    PASSWORD,
    QUOTED,
    Server,
    Watch,
    age_ms,
    make_certificate,
    nothing_left_behind,
    relaying,
    serving,
)

from deploy.frames import Cause, State
from deploy.sources import StreamError, open_source

PYTHON = "/usr/bin/python3"
PROGRAM = str(Path(__file__).with_name("rtsp_server.py"))
FAST = "#open_timeout=5&read_timeout=1"


def missing() -> bool:
    code = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst; Gst.init(None); "
    code += "assert Gst.ElementFactory.find('x264enc') and Gst.ElementFactory.find('rtph264pay')"
    try:
        return subprocess.run([PYTHON, "-c", code], capture_output=True, check=False).returncode != 0
    except FileNotFoundError:
        return True


pytestmark = pytest.mark.skipif(
    missing(), reason="no gst-rtsp-server here; tests/deploy/rtsp_server.py has the packages"
)


def rtsp(*account: str) -> AbstractContextManager[Server]:
    return serving([PYTHON, PROGRAM, "{port}", "320x240", *account])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with rtsp() as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_left(server: Server) -> Iterator[None]:
    with nothing_left_behind(5):
        yield


def url(server: Server, path: str = "live", account: str = "", options: str = FAST) -> str:
    return f"rtsp://{account and account + '@'}127.0.0.1:{server.port}/{path}{options}"


def no_black(watch: Watch) -> None:
    assert watch.frames and all(frame.image.any() for frame in watch.frames)
    indices = [frame.index for frame in watch.frames]
    assert indices == sorted(set(indices))


@pytest.mark.parametrize(("path", "transport"), [("live", "tcp"), ("live", "udp"), ("jpeg", "tcp")])
def test_pictures_come(server: Server, path: str, transport: str) -> None:
    watch = Watch(open_source(url(server, path, options=f"{FAST}&transport={transport}")))
    watch.until_frames(20)
    assert watch.close() < 1
    info = watch.source.info
    assert info.live and info.frames is None and info.resolution_wh == (320, 240) and info.fps == 30
    no_black(watch)
    assert all(-5 <= age_ms(frame) < 5000 for frame in watch.frames)
    assert watch.statuses == [] and watch.error is None


@pytest.mark.parametrize("scheme", ["basic", "digest"])
def test_a_password(scheme: str) -> None:
    with rtsp(f"viewer:{PASSWORD}:{scheme}") as server:
        source = open_source(url(server, account=QUOTED))
        assert next(iter(source)).image.any()
        source.close()
        for account, said in (("viewer:hunter2", "is wrong"), ("", "wants a user name and password")):
            with pytest.raises(StreamError, match=said) as caught:
                open_source(url(server, account=account))
            assert caught.value.cause is Cause.UNAUTHORIZED
            assert "hunter2" not in str(caught.value) and "viewer" not in str(caught.value)
        with pytest.raises(StreamError) as caught:
            open_source(url(server, "nothing", QUOTED))
        assert caught.value.cause is Cause.NOT_FOUND
        assert PASSWORD not in str(caught.value) and QUOTED not in str(caught.value)


def test_a_path_that_is_not_there(server: Server) -> None:
    begin = time.monotonic()
    with pytest.raises(StreamError, match="404") as caught:
        open_source(url(server, "nothing", "viewer:hunter2"))
    assert caught.value.cause is Cause.NOT_FOUND and "hunter2" not in str(caught.value)
    assert time.monotonic() - begin < 3


@pytest.mark.parametrize(
    ("reply", "cause"),
    [
        (b"HTTP/1.0 400 Bad Request\r\n\r\n", Cause.UNREADABLE),
        (os.urandom(4096) + b"\n", Cause.UNREADABLE),
        (b"", Cause.CLOSED),
        (b"RTSP/1.0 454 Session Not Found\r\nCSeq: 1\r\n\r\n", Cause.NOT_FOUND),
        (b"RTSP/1.0 403 Forbidden\r\nCSeq: 1\r\n\r\n", Cause.UNAUTHORIZED),
        (b"RTSP/1.0 503 Service Unavailable\r\n\r\n", Cause.CLOSED),
        (b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nContent-Length: 4\r\n\r\nv=0\n", Cause.UNREADABLE),
        (b"RTSP/1.0 200 OK\r\n" + b"X: y\r\n" * 100_000, Cause.UNREADABLE),
        (None, Cause.TIMED_OUT),
    ],
)
def test_what_answers_strangely(reply: bytes | None, cause: Cause) -> None:
    ended = threading.Event()

    def serve(listener: socket.socket) -> None:
        while not ended.is_set():
            try:
                client = listener.accept()[0]
            except OSError:
                return
            with client:
                client.settimeout(0.3)
                if reply is None:
                    ended.wait(5)
                with suppress(OSError):
                    if reply is not None and client.recv(4096) and reply:
                        client.sendall(reply)
                        client.recv(4096)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(8)
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        begin = time.monotonic()
        with pytest.raises(StreamError) as caught:
            open_source(f"rtsp://viewer:hunter2@127.0.0.1:{listener.getsockname()[1]}/x#open_timeout=1&read_timeout=1")
        assert time.monotonic() - begin < 5
        assert caught.value.cause is cause, caught.value
        assert "hunter2" not in str(caught.value)
        ended.set()
        with socket.create_connection(listener.getsockname()):
            thread.join(5)


def test_a_server_that_is_killed_and_started_again() -> None:
    with rtsp() as server:
        watch = Watch(open_source(url(server)))
        watch.until_frames(10)
        server.kill()
        assert watch.until_state(State.LOST, 1).cause is Cause.CLOSED
        watch.until(lambda: watch.statuses[-1].cause is Cause.REFUSED, 5)
        server.start()
        assert watch.until_state(State.LIVE, 20).reconnects == 1
        watch.until_frames(10)
        assert watch.close() < 1
        no_black(watch)
        assert max(age_ms(frame) for frame in watch.frames[-5:]) < 2000


def relay(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
    for end in (one, other):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def test_rtsps(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a relay that does the TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(make_certificate(tmp_path))
    workers: list[threading.Thread] = []
    open_ends: list[socket.socket] = []

    def accept(listener: socket.socket) -> None:
        while True:
            with suppress(ssl.SSLError, ConnectionError):
                try:
                    raw = listener.accept()[0]
                except OSError:
                    return
                client = context.wrap_socket(raw, server_side=True)
                inner = socket.create_connection(("127.0.0.1", server.port))
                open_ends.extend((client, inner))
                for ends in ((client, inner), (inner, client)):
                    workers.append(threading.Thread(target=relay, args=ends))
                    workers[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(6)
        workers.append(threading.Thread(target=accept, args=(listener,)))
        workers[0].start()
        there = f"rtsps://viewer:hunter2@127.0.0.1:{listener.getsockname()[1]}/live{FAST}"
        with pytest.raises(StreamError, match="certificate is not trusted") as caught:
            open_source(there)
        assert "hunter2" not in str(caught.value)
        for text, trusted in ((there + "&tls_verify=false", ""), (there, str(tmp_path / "cert.pem"))):
            with monkeypatch.context() as patch:
                if trusted:
                    patch.setenv("SSL_CERT_FILE", trusted)
                source = open_source(text)
                assert next(iter(source)).image.any()
                source.close()
        listener.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept
    for end in open_ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    for worker in workers:
        worker.join(8)
    for end in open_ends:
        end.close()


def test_a_stall() -> None:
    with rtsp() as server:
        watch = Watch(open_source(url(server)))
        watch.until_frames(10)
        server.say("stall")
        begin = time.monotonic()
        status = watch.until_state(State.LOST, 3)
        assert status.cause is Cause.TIMED_OUT and time.monotonic() - begin < 2
        server.say("go")
        watch.until_state(State.LIVE, 20)
        watch.until_frames(10)
        watch.close()
        no_black(watch)


CHANCE = random.Random(0)


def flipped(data: bytes) -> bytes:
    """One byte of two hundred is another: headers of packets, lengths, and pictures."""
    mangled = bytearray(data)
    for _ in range(1 + len(data) // 200):
        mangled[CHANCE.randrange(len(data))] = CHANCE.randrange(256)
    return bytes(mangled)


@pytest.mark.parametrize(
    ("path", "change"),
    [
        pytest.param("live", flipped, id="bytes flipped"),
        pytest.param("jpeg", flipped, id="bytes flipped in JPEG"),
        pytest.param("live", lambda data: CHANCE.randbytes(2000) + data, id="garbage between"),
        pytest.param("live", lambda data: CHANCE.randbytes(len(data)), id="garbage instead"),
        pytest.param("live", lambda data: data if CHANCE.random() < 0.8 else b"", id="pieces missing"),
        pytest.param("live", None, id="silence"),
    ],
)
def test_what_arrives_is_garbage(server: Server, path: str, change: Callable[[bytes], bytes] | None) -> None:
    """For a while. Whether pictures still come then or the stream is lost, it ends in good pictures again."""
    with relaying(server.port) as relay:
        there = f"rtsp://viewer:hunter2@127.0.0.1:{relay.port}/{path}#open_timeout=5&read_timeout=2"
        watch = Watch(open_source(there))
        watch.until_frames(10)
        plain, relay.change = relay.change, change
        time.sleep(1)
        relay.change = plain
        mended = time.monotonic_ns()
        watch.until(lambda: watch.frames[-1].captured_ns > mended + 5 * 10**8, 40)
        watch.until(lambda: -5 <= age_ms(watch.frames[-1]) < 2000, 10)
        watch.close()
        assert watch.error is None and watch.frames[-1].image.shape == (240, 320, 3)
        no_black(watch)
        said = [status for status in watch.statuses if status.state is State.LOST]
        assert all(status.cause and "hunter2" not in status.detail for status in said)


def test_giving_up_a_server_that_takes_connections_and_never_answers() -> None:
    with rtsp() as server:
        watch = Watch(open_source(url(server, options="#open_timeout=8&read_timeout=1&give_up=2")))
        watch.until_frames(2)
        server.freeze()
        watch.until_state(State.LOST, 4)
        begin = time.monotonic()
        watch.until(lambda: watch.error, 20)
        assert time.monotonic() - begin < 2 + 1.5
        assert isinstance(watch.error, StreamError) and "given up" in str(watch.error)
        server.thaw()
        watch.close()


@pytest.mark.parametrize("path", ["live", "jpeg"])
def test_another_size_midway(path: str) -> None:
    """At the first size, scaled, or at its own: neither an error nor half a picture."""
    with rtsp() as server:
        watch = Watch(open_source(url(server, path, options="#open_timeout=5&read_timeout=3")))
        watch.until_frames(10)
        server.say("size 640x480")
        changed = time.monotonic_ns()
        watch.until(lambda: watch.frames[-1].captured_ns > changed + 12 * 10**8, 30)
        watch.close()
        no_black(watch)
        assert watch.error is None
        assert {frame.image.shape for frame in watch.frames} <= {(240, 320, 3), (480, 640, 3)}
        image = watch.frames[-1].image
        assert abs(image[image.shape[0] // 2 :].astype(int) - 96).max() < 40, "grey below the clock"


def test_another_size_after_a_restart() -> None:
    with rtsp() as server:
        watch = Watch(open_source(url(server)))
        watch.until_frames(2)
        server.kill()
        server.command[3] = "640x480"
        server.start()
        watch.until(lambda: watch.frames[-1].image.shape == (480, 640, 3), 20)
        watch.close()
        no_black(watch)
        assert watch.source.info.resolution_wh == (320, 240)


def test_after_we_were_slow_the_newest_picture_counts() -> None:
    with rtsp() as server:
        source = open_source(url(server, options="#read_timeout=5"))
        frames = iter(source)
        for _ in range(30):
            next(frames)
        time.sleep(1.5)
        got = [next(frames) for _ in range(5)]
        source.close()
        assert got[-1].index > 30 + 30
        assert age_ms(got[-1]) < 500


def test_closing_in_a_stall() -> None:
    with rtsp() as server:
        watch = Watch(open_source(url(server, options="#read_timeout=2")))
        watch.until_frames(2)
        server.freeze()
        time.sleep(0.3)
        begin = time.monotonic()
        watch.source.close()
        assert time.monotonic() - begin < 1
        watch.thread.join(4)
        assert not watch.thread.is_alive()
        assert watch.error is None and all(status.state is not State.LIVE for status in watch.statuses)
        server.thaw()
