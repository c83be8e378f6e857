"""Faults of HTTP streams, against a server process on loopback."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import (
    PASSWORD,
    QUOTED,
    USER,
    Server,
    Watch,
    age_ms,
    http_command,
    make_certificate,
    nothing_left_behind,
    serving,
)

from deploy.frames import Cause, State
from deploy.sources import StreamError, open_source
from lfd.errors import SourceError, UsageError

FAST = "#open_timeout=1&read_timeout=0.5"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(http_command()) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_left(server: Server) -> Iterator[None]:
    with nothing_left_behind(3):
        yield


def url(server: Server, path: str, account: str = "", options: str = FAST) -> str:
    return f"http://{account and account + '@'}127.0.0.1:{server.port}/{path}{options}"


def no_black(watch: Watch) -> None:
    assert watch.frames and all(frame.image.any() for frame in watch.frames)
    indices = [frame.index for frame in watch.frames]
    assert indices == sorted(set(indices))


@pytest.mark.parametrize("path", ["live", "nolength", "chunked", "live?size=640x480&user=x"])
def test_pictures_come(server: Server, path: str) -> None:
    watch = Watch(open_source(url(server, path)))
    watch.until_frames(10)
    assert watch.source.info.live and watch.source.info.frames is None
    assert watch.close() < 1
    no_black(watch)
    assert watch.frames[0].image.shape == ((480, 640, 3) if "640" in path else (240, 320, 3))
    assert watch.source.info.resolution_wh == watch.frames[0].image.shape[1::-1]
    assert all(-5 <= age_ms(frame) < 5000 for frame in watch.frames)
    assert watch.statuses == [] and watch.error is None


@pytest.mark.parametrize("path", ["basic", "digest", "moved"])
def test_a_password(server: Server, path: str) -> None:
    source = open_source(url(server, path, QUOTED))
    assert next(iter(source)).image.any()
    source.close()


def test_a_password_is_not_sent_on_to_somebody_else(server: Server) -> None:
    with serving(http_command()) as other:
        for there in (f"http://127.0.0.1:{other.port}/basic", f"http://localhost:{server.port}/basic"):
            with pytest.raises(StreamError, match="wants a user name and password"):
                open_source(url(server, f"moved?to={there}", QUOTED))


@pytest.mark.parametrize(
    ("path", "account", "cause", "said"),
    [
        ("basic", "", Cause.UNAUTHORIZED, "wants a user name and password"),
        ("basic", "viewer:hunter2", Cause.UNAUTHORIZED, "401 Unauthorized: the user name or password is wrong"),
        ("digest", "viewer:hunter2", Cause.UNAUTHORIZED, "is wrong"),
        ("digest", "%E2%82%ACviewer:hunter2", Cause.UNAUTHORIZED, "is wrong"),
        ("missing", "viewer:hunter2", Cause.NOT_FOUND, "404 Not Found"),
        ("busy", "", Cause.CLOSED, "503 Service Unavailable"),
        ("page", "", Cause.UNREADABLE, "a web page"),
        ("picture", "", Cause.UNREADABLE, "a single picture"),
        ("odd", "", Cause.UNREADABLE, "a single picture"),
        ("round", "viewer:hunter2", Cause.UNREADABLE, "more than 4 times"),
        ("nofilm", "viewer:hunter2", Cause.UNREADABLE, "it sends video/mp4, which gives no picture"),
        ("garbage?after=0", "viewer:hunter2", Cause.UNREADABLE, "no boundary within"),
        ("broken", "", Cause.UNREADABLE, "100 pictures in a row are damaged"),
        ("closes?after=0", "", Cause.CLOSED, "ended the stream after 0 pictures"),
        ("stalls?after=0", "viewer:hunter2", Cause.TIMED_OUT, "no picture within 0.5 s"),
        ("trickles?after=0", "", Cause.TIMED_OUT, "no picture within 0.5 s"),
        ("loris", "viewer:hunter2", Cause.TIMED_OUT, "no answer within 1 s"),
    ],
)
def test_what_cannot_be_opened_says_why(server: Server, path: str, account: str, cause: Cause, said: str) -> None:
    begin = time.monotonic()
    with pytest.raises(StreamError, match=said) as caught:
        open_source(url(server, path, account))
    assert time.monotonic() - begin < 4
    message = str(caught.value)
    assert caught.value.cause is cause and "Fix: " in message and message.isprintable() and len(message) < 400
    assert "hunter2" not in message and "viewer" not in message


def test_nobody_there() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        for text, cause in (
            (f"http://{USER}:hunter2@127.0.0.1:{port}/x", Cause.REFUSED),
            ("http://no-such-host.invalid/x#open_timeout=1", Cause.UNREACHABLE),
        ):
            with pytest.raises(StreamError) as caught:
                open_source(text)
            assert caught.value.cause is cause and "hunter2" not in str(caught.value)


def test_a_server_that_accepts_and_is_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(StreamError) as caught:
            open_source(f"http://127.0.0.1:{silent.getsockname()[1]}/x{FAST}")
        assert caught.value.cause is Cause.TIMED_OUT


def test_what_is_no_http_server() -> None:
    def answer() -> None:
        with silent.accept()[0] as client:
            client.recv(1000)
            client.sendall(b"220 mail.example.org ESMTP\r\n")

    with socket.create_server(("127.0.0.1", 0)) as silent:
        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(StreamError, match="no HTTP server") as caught:
            open_source(f"http://127.0.0.1:{silent.getsockname()[1]}/x{FAST}")
        thread.join()
        assert caught.value.cause is Cause.UNREADABLE


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("closes", Cause.CLOSED),
        ("stalls", Cause.TIMED_OUT),
        ("trickles", Cause.TIMED_OUT),
        ("garbage", Cause.UNREADABLE),
    ],
)
def test_what_is_lost_is_said_and_comes_back(server: Server, path: str, cause: Cause) -> None:
    watch = Watch(open_source(url(server, f"{path}?after=4", QUOTED)))
    status = watch.until_state(State.LOST, 3)
    assert status.cause is cause and status.attempt == 0 and status.reconnects == 0
    assert status.retry_in_s is not None and 0.5 <= status.retry_in_s <= 1
    assert PASSWORD not in repr(status) and QUOTED not in repr(status)
    back = watch.until_state(State.LIVE)
    assert (back.reconnects, back.attempt, back.cause, back.retry_in_s) == (1, 1, None, None)
    watch.until_frames(2)
    assert watch.close() < 1
    no_black(watch)


def test_a_server_that_is_killed_and_started_again() -> None:
    with serving(http_command()) as server:
        watch = Watch(open_source(url(server, "live", QUOTED)))
        watch.until_frames(5)
        server.kill()
        killed = time.monotonic()
        assert watch.until_state(State.LOST, 1).cause is Cause.CLOSED
        watch.until(lambda: watch.statuses[-1].cause is Cause.REFUSED, 3)
        assert watch.statuses[-1].attempt == 1
        assert watch.statuses[-1].since_ns == watch.statuses[0].since_ns >= (killed - 0.1) * 1e9
        server.start()
        assert watch.until_state(State.LIVE).reconnects == 1
        watch.until_frames(5)
        assert watch.close() < 1
        no_black(watch)
        assert max(age_ms(frame) for frame in watch.frames[-4:]) < 2000


def test_an_outage_that_is_given_up() -> None:
    with serving(http_command()) as server:
        watch = Watch(open_source(url(server, "live", f"{USER}:hunter2", f"{FAST}&give_up=1.2")))
        watch.until_frames(2)
        server.kill()
        begin = time.monotonic()
        watch.until(lambda: watch.error, 5)
        assert 1.1 < time.monotonic() - begin < 3
        watch.close()
        assert isinstance(watch.error, StreamError) and watch.error.exit_code == 3
        assert "given up" in str(watch.error) and "hunter2" not in str(watch.error)
        server.start()


def test_giving_up_a_server_that_takes_connections_and_never_answers() -> None:
    with serving(http_command()) as server:
        watch = Watch(open_source(url(server, "live", options="#open_timeout=8&read_timeout=0.5&give_up=1.5")))
        watch.until_frames(2)
        server.freeze()
        watch.until_state(State.LOST, 3)
        begin = time.monotonic()
        watch.until(lambda: watch.error, 20)
        assert time.monotonic() - begin < 1.5 + 1.5
        assert isinstance(watch.error, StreamError) and "given up" in str(watch.error)
        server.thaw()
        watch.close()


def test_a_password_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAM_USER", USER)
    monkeypatch.setenv("CAM_PASSWORD", PASSWORD)
    account = "${CAM_USER}:${CAM_PASSWORD}"
    for path in ("basic", "digest"):
        source = open_source(url(server, path, account))
        assert next(iter(source)).image.any()
        source.close()
    monkeypatch.setenv("CAM_PASSWORD", "hunter2")
    with pytest.raises(StreamError, match="is wrong") as caught:
        open_source(url(server, "basic", account))
    assert "hunter2" not in str(caught.value) and USER not in str(caught.value)


def test_a_server_gets_no_variable_by_sending_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET", "hunter2")
    asked = []

    def answer() -> None:
        for reply in (b"HTTP/1.1 302 Found\r\nLocation: /${AWS_SECRET}\r\n\r\n", b"HTTP/1.1 404 Not Found\r\n\r\n"):
            with listener.accept()[0] as client:
                asked.append(client.recv(1000))
                client.sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(StreamError):
            open_source(f"http://127.0.0.1:{listener.getsockname()[1]}/x{FAST}")
        thread.join()
    assert asked[1].startswith(b"GET /${AWS_SECRET} ") and b"hunter2" not in b"".join(asked)


def test_damaged_pictures_are_passed_over(server: Server) -> None:
    watch = Watch(open_source(url(server, "damaged")))
    watch.until_frames(10)
    watch.close()
    no_black(watch)
    assert watch.statuses == [] and all(frame.image.shape == (240, 320, 3) for frame in watch.frames)
    assert {frame.index % 2 for frame in watch.frames} == {0}


def test_another_size_midway(server: Server) -> None:
    watch = Watch(open_source(url(server, "resizes")))
    watch.until(lambda: watch.frames and watch.frames[-1].image.shape == (64, 256, 3))
    watch.close()
    assert {frame.image.shape for frame in watch.frames} == {(240, 320, 3), (480, 640, 3), (64, 256, 3)}
    assert watch.statuses == []


def test_after_a_stall_the_newest_picture_counts() -> None:
    with serving(http_command()) as server:
        source = open_source(url(server, "live", options="#read_timeout=5"))
        frames = iter(source)
        for _ in range(15):
            next(frames)
        time.sleep(1.5)  # we are slow: forty-odd pictures wait in the connection by now
        got = [next(frames) for _ in range(5)]
        source.close()
        assert got[-1].index > 15 + 30
        assert age_ms(got[-1]) < 500


@pytest.mark.parametrize("path", ["live", "stalls?after=1", "trickles?after=1"])
def test_closing_while_it_is_read(server: Server, path: str) -> None:
    watch = Watch(open_source(url(server, path, options="#read_timeout=30")))
    watch.until(lambda: watch.frames)
    time.sleep(0.2)
    assert watch.close() < 1
    assert watch.error is None and watch.statuses == []
    watch.source.close()


def test_closing_between_attempts() -> None:
    with serving(http_command()) as server:
        watch = Watch(open_source(url(server, "live")))
        watch.until(lambda: watch.frames)
        server.kill()
        watch.until(lambda: watch.statuses and watch.statuses[-1].attempt == 2)
        assert watch.close() < 0.5
        assert watch.error is None
        server.start()


def test_closing_while_it_is_opened_again() -> None:
    with serving(http_command()) as server:
        watch = Watch(open_source(url(server, "live", options="#open_timeout=30")))
        watch.until(lambda: watch.frames)
        server.kill()
        watch.until_state(State.LOST)
        with socket.create_server(("127.0.0.1", server.port)) as silent, silent.accept()[0]:
            time.sleep(0.1)
            assert watch.close() < 1
        assert watch.error is None
        server.start()


def test_a_film_of_a_web_server(make_film: Callable[..., Path]) -> None:
    with serving(http_command(), {"FILM": str(make_film(frames=30))}) as server:
        source = open_source(url(server, "film.avi"))
        assert not source.info.live and source.info.frames == 30
        frames = list(source)
        source.close()
        assert [frame.index for frame in frames] == list(range(30))
        looping = iter(source := open_source(url(server, "film.avi", options="#loop=true")))
        assert [next(looping).index for _ in range(70)] == list(range(70))
        source.close()


def test_a_transport_stream_is_live_and_a_file_of_one_a_film(tmp_path: Path) -> None:
    path = tmp_path / "a.ts"
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc=s=320x240:r=25:d=4", "-f", "mpegts", str(path)]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        pytest.skip("no ffmpeg here to make an MPEG-TS stream with")
    with serving(http_command(), {"TS": str(path)}) as server:
        watch = Watch(open_source(url(server, "ts", options="#read_timeout=2")))
        assert watch.source.info.live
        status = watch.until_state(State.LOST)
        assert status.cause is Cause.CLOSED
        watch.close()
        no_black(watch)
        assert len(watch.frames) > 20
        film = open_source(url(server, "ts?file=1", options="#read_timeout=2"))
        assert not film.info.live
        assert [frame.index for frame in film] == list(range(100))
        film.close()
        watch = Watch(open_source(url(server, "ts?file=1", options="#read_timeout=1")))
        server.kill()
        watch.until(lambda: watch.error, 10)
        assert isinstance(watch.error, SourceError) and not isinstance(watch.error, StreamError)
        # A connection that comes while the server dies is taken, and cut.
        said = ("nothing listens at port", "the server ended the connection")
        assert any(text in str(watch.error) for text in said) and len(watch.frames) < 100
        watch.close()
        server.start()


def test_https(tmp_path: Path, make_film: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = make_certificate(tmp_path)
    with serving(http_command(), {"CERTIFICATE": str(certificate), "FILM": str(make_film(frames=9))}) as server:
        for path in ("live", "film.avi"):
            there = url(server, path, "viewer:hunter2").replace("http:", "https:")
            with pytest.raises(StreamError, match=r"certificate is not trusted.*#tls_verify=false") as caught:
                open_source(there)
            assert "hunter2" not in str(caught.value)
            source = open_source(there + "&tls_verify=false")
            assert next(iter(source)).image.any()
            source.close()
            with monkeypatch.context() as patch:
                patch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
                source = open_source(there)
                assert next(iter(source)).image.any()
                source.close()


def test_a_live_source_does_not_loop(server: Server) -> None:
    with pytest.raises(UsageError, match="no end to begin anew at"):
        open_source(url(server, "live"), loop=True)
