"""Servers on loopback, each a process of its own: HTTP (this file is its program) and RTSP (rtsp_server.py).

The HTTP server's path says how it behaves, see `Handler`. Its pictures have the clock in them.
"""

from __future__ import annotations

import hashlib
import os
import queue
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import cv2
import numpy as np
import pytest

from deploy.frames import Frame, FrameSource, State, StreamStatus
from deploy.run_summary import open_descriptors

FPS = 30
CELL, COLUMNS, ROWS = 16, 16, 2
USER, PASSWORD = "viewer", "p@ss/w#rd?"
QUOTED = "viewer:p%40ss%2Fw%23rd%3F"


def millis() -> int:
    """The system's monotonic clock, which all processes share."""
    return time.monotonic_ns() // 1_000_000 % 2 ** (COLUMNS * ROWS)


def stamp(size_wh: tuple[int, int]) -> np.ndarray:
    """A grey picture with the clock's milliseconds in black and white cells; 256x32 px at least."""
    image = np.full((size_wh[1], size_wh[0], 3), 96, np.uint8)
    bits = np.array([int(b) for b in f"{millis():0{COLUMNS * ROWS}b}"], np.uint8).reshape(ROWS, COLUMNS)
    cells = np.kron(bits * 255, np.ones((CELL, CELL), np.uint8))
    image[: ROWS * CELL, : COLUMNS * CELL] = cells[..., None]
    return image


def age_ms(frame: Frame) -> int:
    """How long before it was captured a picture was made."""
    cells = frame.image[: ROWS * CELL, : COLUMNS * CELL, 1].reshape(ROWS, CELL, COLUMNS, CELL)
    bits = cells[:, 4:12, :, 4:12].mean((1, 3)).ravel() > 128
    made = int("".join("1" if bit else "0" for bit in bits), 2)
    return frame.captured_ns // 1_000_000 % 2 ** (COLUMNS * ROWS) - made


class Handler(BaseHTTPRequestHandler):
    """`/live`, and likewise with a fault; `?after=N` pictures, of `?size=WxH`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.after = int(self.query.get("after", "5"))
        width, height = self.query.get("size", "320x240").split("x")
        self.size = int(width), int(height)
        with suppress(ConnectionError):
            getattr(self, "serve_" + parts.path.strip("/").partition(".")[0], self.serve_missing)()

    def serve_live(self) -> None:
        self.head()
        self.pictures(None)

    def serve_closes(self) -> None:
        """Ends after some pictures."""
        self.head()
        self.pictures(self.after)

    def serve_stalls(self) -> None:
        """Goes silent in the middle of a picture."""
        self.head()
        self.pictures(self.after)
        data = self.jpeg()
        self.wfile.write(self.part(data)[: len(data) // 2])
        time.sleep(60)

    def serve_trickles(self) -> None:
        """Sends a picture byte by byte."""
        self.head()
        self.pictures(self.after)
        for byte in self.part(self.jpeg()):
            self.wfile.write(bytes([byte]))
            time.sleep(0.05)

    def serve_garbage(self) -> None:
        """Sends anything but pictures, after some."""
        self.head()
        self.pictures(self.after)
        while True:
            self.wfile.write(os.urandom(1 << 16))

    def serve_damaged(self) -> None:
        """Every other picture is cut, or no picture."""
        self.head()
        for number in range(100):
            data = self.jpeg()
            bad = data[: len(data) // 2] if number % 4 == 1 else b"no picture"
            self.wfile.write(self.part(data if number % 2 == 0 else bad))
            time.sleep(1 / FPS)

    def serve_broken(self) -> None:
        """Pictures that are none, without end."""
        self.head()
        while True:
            self.wfile.write(self.part(b"no picture"))
            time.sleep(0.001)

    def serve_resizes(self) -> None:
        self.head()
        for size in ((320, 240), (640, 480), (256, 64)):
            self.size = size
            self.pictures(self.after)
        self.pictures(None)

    def serve_nolength(self) -> None:
        """As some cameras do: no lengths, dashes in the declared boundary."""
        self.head("multipart/x-mixed-replace; boundary=--frame")
        while True:
            self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + self.jpeg() + b"\r\n")
            time.sleep(1 / FPS)

    def serve_chunked(self) -> None:
        self.head(chunked=True)
        while True:
            data = self.part(self.jpeg())
            for piece in (data[:100], data[100:]):
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            time.sleep(1 / FPS)

    def serve_basic(self) -> None:
        expected = "Basic " + b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        self.guard('Basic realm="camera"', lambda sent: sent == expected)

    def serve_digest(self) -> None:
        def md5(text: str) -> str:
            return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()

        def matches(sent: str) -> bool:
            fields = dict(item.strip().split("=", 1) for item in sent.partition(" ")[2].split(","))
            f = {key: value.strip('"') for key, value in fields.items()}
            a1, a2 = md5(f"{USER}:camera:{PASSWORD}"), md5(f"GET:{self.path}")
            return f["uri"] == self.path and f["response"] == md5(
                ":".join([a1, "abc", f["nc"], f["cnonce"], f["qop"], a2])
            )

        self.guard('Digest realm="camera", nonce="abc", qop="auth"', matches)

    def guard(self, challenge: str, accepts: Callable[[str], bool]) -> None:
        sent = self.headers.get("Authorization", "")
        if sent and accepts(sent):
            self.serve_live()
        else:
            self.answer(401, {"WWW-Authenticate": challenge})

    def serve_missing(self) -> None:
        self.answer(404, {})

    def serve_busy(self) -> None:
        self.answer(503, {})

    def serve_page(self) -> None:
        self.answer(200, {"Content-Type": "text/html"}, b"<html></html>")

    def serve_picture(self) -> None:
        self.answer(200, {"Content-Type": "image/jpeg"}, self.jpeg())

    def serve_odd(self) -> None:
        """Names its type so that it does something to a terminal."""
        self.answer(200, {"Content-Type": "image/\x1b[2J" + 900 * "x"}, self.jpeg())

    def serve_nofilm(self) -> None:
        self.answer(200, {"Content-Type": "video/mp4"}, b"no film" * 100)

    def serve_moved(self) -> None:
        self.answer(302, {"Location": self.query.get("to", "/basic")})

    def serve_round(self) -> None:
        self.answer(302, {"Location": "/round"})

    def serve_loris(self) -> None:
        """Sends headers without end, slowly."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            self.wfile.write(b"X: y\r\n")
            time.sleep(0.05)

    def serve_film(self) -> None:
        data = Path(os.environ["FILM"]).read_bytes()
        begin = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0])
        headers = {"Content-Type": "video/x-msvideo", "Accept-Ranges": "bytes"}
        if "Range" in self.headers:
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        self.answer(206 if "Range" in self.headers else 200, headers, data[begin:])

    def serve_ts(self) -> None:
        """A film as a camera sends it: at its pace, without a length; with `?file=1` as a file, without ranges."""
        self.send_response(200)
        data = Path(os.environ["TS"]).read_bytes()
        self.send_header("Content-Type", "video/mp2t")
        self.send_header("Connection", "close")
        if "file" in self.query:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        for begin in range(0, len(data), 1880):
            self.wfile.write(data[begin : begin + 1880])
            time.sleep(0.002)

    def head(self, kind: str = 'multipart/x-mixed-replace; boundary="frame"', chunked: bool = False) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Connection", "close")
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def pictures(self, count: int | None) -> None:
        begin, number = time.monotonic(), 0
        while count is None or number < count:
            self.wfile.write(self.part(self.jpeg()))
            number += 1
            time.sleep(max(0.0, begin + number / FPS - time.monotonic()))

    def jpeg(self) -> bytes:
        return cv2.imencode(".jpg", stamp(self.size))[1].tobytes()

    @staticmethod
    def part(data: bytes) -> bytes:
        return b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%b\r\n" % (len(data), data)

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


class Server:
    """A server's process: it can be killed, started again at the same port, and frozen."""

    def __init__(self, command: list[str], env: dict[str, str] | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.command, self._env = command, os.environ | (env or {})
        self.start()

    def start(self) -> None:
        command = [part.format(port=self.port) for part in self.command]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=self._env
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def serving(command: list[str], env: dict[str, str] | None = None) -> Iterator[Server]:
    server = Server(command, env)
    try:
        yield server
    finally:
        server.kill()


def http_command() -> list[str]:
    return [sys.executable, __file__, "{port}"]


class Relay:
    """Stands between a client and a server on loopback, and may change what the server sends.

    Attributes:
        port: Where it listens.
        change: Takes what the server sends, and returns what the client gets; None holds it all back.
    """

    def __init__(self, port: int) -> None:
        self._server = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.1)
        self.port = int(self._listener.getsockname()[1])
        self.change: Callable[[bytes], bytes] | None = lambda data: data
        self._ends: list[socket.socket] = []
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while not self._closed.is_set():
            with suppress(TimeoutError, ConnectionError):
                client = self._listener.accept()[0]
                client.settimeout(None)
                server = socket.create_connection(("127.0.0.1", self._server))
                self._ends += [client, server]
                for ends in ((client, server), (server, client)):
                    self._threads.append(threading.Thread(target=self._pump, args=(*ends, ends[0] is server)))
                    self._threads[-1].start()

    def _pump(self, one: socket.socket, other: socket.socket, may_change: bool) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                while may_change and self.change is None and not self._closed.wait(0.01):
                    pass
                other.sendall(self.change(data) if may_change and self.change else data)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._closed.set()
        self._threads[0].join()
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in (self._listener, *self._ends):
            end.close()


@contextmanager
def relaying(port: int) -> Iterator[Relay]:
    relay = Relay(port)
    try:
        yield relay
    finally:
        relay.close()


@contextmanager
def nothing_left_behind(patience_s: float) -> Iterator[None]:
    """No thread and no descriptor stays behind, once what ends has had its time."""
    threads, before = set(threading.enumerate()), open_descriptors()
    yield
    end = time.monotonic() + patience_s
    while time.monotonic() < end and (set(threading.enumerate()) - threads or open_descriptors() > before):
        time.sleep(0.02)
    assert set(threading.enumerate()) - threads == set()
    assert open_descriptors() <= before


def make_certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1 that nobody vouches for, and its key, in one file; skips without openssl."""
    path = folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl here to make a certificate with")
    path.write_bytes((folder / "key.pem").read_bytes() + (folder / "cert.pem").read_bytes())
    return path


class Watch:
    """Reads a source in a thread, and keeps what came."""

    def __init__(self, source: FrameSource) -> None:
        self.source = source
        self.frames: list[Frame] = []
        self.statuses: list[StreamStatus] = []
        self.error: Exception | None = None
        self._news: queue.Queue[None] = queue.Queue()
        self.thread = threading.Thread(target=self._read, name="lfd-test", daemon=True)
        self.thread.start()

    def _read(self) -> None:
        try:
            for item in self.source:
                if isinstance(item, Frame):
                    self.frames.append(item)
                else:
                    self.statuses.append(item)
                self._news.put(None)
        except Exception as error:
            self.error = error
        self._news.put(None)

    def until(self, condition: Callable[[], object], seconds: float = 10) -> None:
        """Wait until something is so; fail when it does not become so."""
        end = time.monotonic() + seconds
        while not condition():
            left = end - time.monotonic()
            assert left > 0, (len(self.frames), self.statuses[-3:], self.error)
            with suppress(queue.Empty):
                self._news.get(timeout=min(left, 0.1))

    def until_frames(self, more: int, seconds: float = 10) -> None:
        wanted = len(self.frames) + more
        self.until(lambda: len(self.frames) >= wanted, seconds)

    def until_state(self, state: State, seconds: float = 10) -> StreamStatus:
        self.until(lambda: self.statuses and self.statuses[-1].state is state, seconds)
        return self.statuses[-1]

    def close(self) -> float:
        """Close the source; return how long that took until its reader ended, s."""
        begin = time.monotonic()
        self.source.close()
        self.thread.join(10)
        assert not self.thread.is_alive()
        return time.monotonic() - begin


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.daemon_threads = True
    if "CERTIFICATE" in os.environ:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(os.environ["CERTIFICATE"])
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    server.serve_forever()
