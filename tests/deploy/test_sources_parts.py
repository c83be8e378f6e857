"""The parts that live sources are made of: multipart bodies, Digest, backlogs, FFmpeg's options, connections."""

from __future__ import annotations

import io
import os
import socket
import threading
import time

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.frames import Cause
from deploy.sources.address import Url
from deploy.sources.authorization import answer
from deploy.sources.backlog import Backlog
from deploy.sources.capture import _Environment
from deploy.sources.connection import ConnectError, Connection
from deploy.sources.multipart import MAX_PREAMBLE, Parts, decode_jpeg
from deploy.sources.stop import Stop

KIND = "multipart/x-mixed-replace; boundary=frame"
VARIABLE = "OPENCV_FFMPEG_CAPTURE_OPTIONS"


def read_all(body: bytes, kind: str = KIND) -> list[bytes]:
    parts, found = Parts(io.BytesIO(body), kind), []
    with pytest.raises(EOFError):
        while True:
            found.append(parts.next())
    return found


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        (KIND, b"--frame\r\nContent-Length: 3\r\n\r\nabc\r\n--frame\r\n\r\nde\r\n--frame--\r\n", [b"abc", b"de"]),
        (KIND, b"preamble\r\n--frame\r\ncontent-length:1\r\n\r\na\r\n--frame--", [b"a"]),
        (KIND, b"--frame\nX: y\n\na\n\nb\n--frame\n", [b"a\n\nb"]),
        ('multipart/mixed; boundary="--frame"', b"--frame\r\n\r\na\r\n--frame\r\n", [b"a"]),
        ("multipart/x-mixed-replace;boundary=--frame", b"----frame\r\n\r\na\r\n----frame\r\n", [b"a"]),
        (KIND, b"--frame\r\nContent-Length: 100\r\n\r\nabc", []),
        (KIND, b"--frame\r\n\r\ncut", []),
        (KIND, b"", []),
    ],
)
def test_multipart(kind: str, body: bytes, expected: list[bytes]) -> None:
    assert read_all(body, kind) == expected


@given(st.lists(st.binary(max_size=300), max_size=6), st.booleans())
def test_parts_come_back_as_they_were(contents: list[bytes], lengths: bool) -> None:
    body = b""
    for content in contents:
        length = b"Content-Length: %d\r\n" % len(content) if lengths else b""
        body += b"--e7b0\r\n" + length + b"\r\n" + content + b"\r\n"
    assert read_all(body + b"--e7b0--\r\n", "multipart/x-mixed-replace; boundary=e7b0") == contents


@pytest.mark.parametrize(
    "body",
    [
        b"x" * (MAX_PREAMBLE + 10000),
        b"--frame\r\n" + b"X: y\r\n" * (MAX_PREAMBLE // 6 + 2000),
        b"--frame\r\nContent-Length: 99999999999\r\n\r\n",
    ],
)
def test_a_body_without_end_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"bytes|headers"):
        Parts(io.BytesIO(body), KIND).next()


def test_no_boundary() -> None:
    with pytest.raises(ValueError, match="no boundary"):
        Parts(io.BytesIO(b""), "multipart/x-mixed-replace")


@given(st.binary(max_size=2000))
def test_any_bytes_end(body: bytes) -> None:
    read_all(body)


def test_damaged_jpegs() -> None:
    data = cv2.imencode(".jpg", np.full((48, 64, 3), 90, np.uint8))[1].tobytes()
    whole = decode_jpeg(data + b"\r\n\0\0")
    assert whole is not None and whole.shape == (48, 64, 3)
    for bad in (b"", data[:-20], data[100:], b"\xff\xd8\xff\xd9", os.urandom(500)):
        assert decode_jpeg(bad) is None


MD5 = (
    'Digest realm="testrealm@host.com", qop="auth,auth-int", nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093", '
    'opaque="5ccc069c403ebaf9f0171e9517f40e41"'
)
RFC7616 = (
    'Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm={}, '
    'nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"'
)
CNONCE = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"


@pytest.mark.parametrize(
    ("challenges", "password", "cnonce", "uri", "response"),
    [
        # RFC 2617, 3.5, and RFC 7616, 3.9.1
        ([MD5], "Circle Of Life", "0a4f113b", "/dir/index.html", "6629fae49393a05397450978507c4ef1"),
        ([RFC7616.format("MD5")], "Circle of Life", CNONCE, "/dir/index.html", "8ca523f5e9506fed4657c9700eebdbec"),
        (
            ['Basic realm="x"', RFC7616.format("MD5"), RFC7616.format("SHA-256")],
            "Circle of Life",
            CNONCE,
            "/dir/index.html",
            "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1",
        ),
    ],
)
def test_digest(challenges: list[str], password: str, cnonce: str, uri: str, response: str) -> None:
    value = answer(challenges, "Mufasa", password, "GET", uri, cnonce)
    assert value is not None and value.startswith('Digest username="Mufasa"')
    assert f'response="{response}"' in value and password not in value


def test_basic_and_what_is_not_known() -> None:
    # RFC 7617, 2.1: a user name and a password beyond ASCII, as UTF-8
    assert answer(["Basic realm=x"], "test", "123\u00a3", "GET", "/") == "Basic dGVzdDoxMjPCow=="
    assert answer(["Negotiate", "Digest algorithm=SHA-512-256, nonce=x"], "a", "b", "GET", "/") is None


def arrivals(backlog: Backlog, times: list[tuple[float, float]]) -> list[bool]:
    return [backlog.is_old(asked, came) for asked, came in times]


def steady(count: int, interval: float, begin: float = 0.0) -> list[tuple[float, float]]:
    return [(begin + (n - 1) * interval + 0.002, begin + n * interval) for n in range(1, count + 1)]


@pytest.mark.parametrize("nominal", [0.0, 0.04])
def test_a_steady_stream_has_no_backlog(nominal: float) -> None:
    assert not any(arrivals(Backlog(nominal), steady(100, 0.04)))


@pytest.mark.parametrize("nominal", [0.0, 0.04])
def test_after_a_stall_only_the_newest_counts(nominal: float) -> None:
    backlog = Backlog(nominal)
    arrivals(backlog, steady(50, 0.04))
    # Nothing for a second, then 25 pictures at once: the first was waited for, the last one is the newest.
    burst = [(2.002, 3.0)] + [(3.0 + n * 0.001, 3.001 + n * 0.001) for n in range(24)]
    old = arrivals(backlog, burst)
    assert not old[0] and sum(old) in (22, 23, 24) and all(old[1:22])
    assert not any(arrivals(backlog, steady(20, 0.04, 3.04)))


def test_after_we_were_away_only_the_newest_counts() -> None:
    backlog = Backlog(0.04)
    arrivals(backlog, steady(50, 0.04))
    old = arrivals(backlog, [(3.0 + n * 0.001, 3.0005 + n * 0.001) for n in range(25)])
    assert old[:23] == [True] * 23


@pytest.mark.parametrize("nominal", [0.0, 1 / 30], ids=["two at once to begin with", "slower than it says"])
def test_the_interval_is_learned_anew(nominal: float) -> None:
    backlog = Backlog(nominal)
    arrivals(backlog, [(0.0, 0.001), (0.001, 0.0015)])
    assert not any(arrivals(backlog, steady(200, 0.2)))
    # One that comes a little early, with hardly a wait, is the newest all the same.
    assert arrivals(backlog, [(40.002, 40.2), (40.2, 40.21), (40.21, 40.4)]) == [False] * 3
    # And a stall is still seen as one.
    assert all(arrivals(backlog, [(40.41, 42.4), *((42.4, 42.401 + n / 1e3) for n in range(8))])[1:])


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5)), max_size=200))
def test_a_picture_that_was_waited_for_is_never_old(steps: list[tuple[float, float]]) -> None:
    backlog, now = Backlog(0.04), 0.0
    for away, waited in steps:
        asked = now + away
        now = asked + waited
        is_old = backlog.is_old(asked, now)
        assert not (is_old and waited >= backlog._interval / 2)


def test_ffmpeg_options_of_streams_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "max_delay;1")
    environment, seen = _Environment(), []
    inside, may_end = threading.Barrier(3), threading.Event()

    def hold(options: str) -> None:
        with environment.holding(options):
            seen.append(os.environ[VARIABLE])
            inside.wait(5)
            may_end.wait(5)

    same = [threading.Thread(target=hold, args=("a;b",)) for _ in range(2)]
    for thread in same:
        thread.start()
    inside.wait(5)  # both are in at the same time
    other_in = threading.Event()

    def other() -> None:
        with environment.holding("c;d"):
            seen.append(os.environ[VARIABLE])
            other_in.set()

    third = threading.Thread(target=other)
    third.start()
    assert not other_in.wait(0.1)
    may_end.set()
    for thread in (*same, third):
        thread.join(5)
    assert seen == ["a;b|max_delay;1", "a;b|max_delay;1", "c;d|max_delay;1"]
    assert os.environ[VARIABLE] == "max_delay;1"
    monkeypatch.delenv(VARIABLE)
    with environment.holding("a;b"):
        assert os.environ[VARIABLE] == "a;b"
    assert VARIABLE not in os.environ


def test_a_deadline_holds_for_a_server_that_trickles() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connection = Connection(Url("http", "127.0.0.1", listener.getsockname()[1], "/"), 5, True, Stop())
        client = listener.accept()[0]
        ended = threading.Event()

        def trickle() -> None:
            while not ended.wait(0.02):
                client.sendall(b"x")

        thread = threading.Thread(target=trickle)
        thread.start()
        begin = time.monotonic()
        connection.deadline = begin + 0.3
        with pytest.raises(TimeoutError):
            connection.makefile().read(1000)
        assert 0.25 < time.monotonic() - begin < 1
        ended.set()
        thread.join()
        connection.end()
        client.close()


def test_a_stop_before_the_connection_ends_it() -> None:
    stop = Stop()
    stop.set()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = Url("http", "127.0.0.1", listener.getsockname()[1], "/")
        begin = time.monotonic()
        try:
            connection = Connection(url, 5, True, stop)
            with pytest.raises(OSError):
                if not connection.makefile().read(1):
                    raise ConnectionError
            connection.end()
        except ConnectError:
            pass
        assert time.monotonic() - begin < 1


def test_tls_of_a_server_that_has_none() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client = listener.accept()[0]
            client.recv(1000)
            client.sendall(b"220 no TLS here\r\n" * 10)
            client.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(ConnectError) as caught:
            Connection(Url("https", "127.0.0.1", listener.getsockname()[1], "/"), 2, True, Stop())
        thread.join()
        assert caught.value.cause in (Cause.UNREADABLE, Cause.CLOSED)
