"""What the tests of the page share: a page with a scripted stream behind it, raw HTTP clients, and a browser."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles import picture

from deploy.frames import Frame, State, StreamStatus, VideoInfo
from deploy.stats import StreamStats
from deploy.web.sink import WebSink
from lfd.spec import Labels

LABELS = Labels(("sky", "road", "car", "no, one"), ((70, 130, 180), (128, 64, 128), (0, 0, 142), (250, 170, 30)))
SIZE_HW = (90, 160)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BROWSER = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on PATH")


def class_map(index: int, size_hw: tuple[int, int] = SIZE_HW) -> np.ndarray:
    """Sky above road, and a car that moves."""
    found = np.zeros(size_hw, np.uint8)
    found[size_hw[0] // 2 :] = 1
    at = 4 * index % (size_hw[1] - 20)
    found[-30:-10, at : at + 20] = 2
    return found


class Page:
    """A page, and the stream behind it."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        size_hw: tuple[int, int] = SIZE_HW,
        fps: int = 10**6,
        labels: Labels = LABELS,
        port: int = 0,
        **options: Any,
    ) -> None:
        self.said: list[str] = []
        self.stats = StreamStats()
        self.size_hw = size_hw
        info = VideoInfo((size_hw[1], size_hw[0]), 25.0, None, True)
        about = {"model": "tiny", "backend": "fake", "source": "street:"}
        self.sink = WebSink(host, port, labels, info, self.stats.snapshot, self.said.append, about, fps=fps, **options)
        self.url = f"http://127.0.0.1:{self.sink.port}"
        self.written = self.age_ns = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def write(self, count: int = 1) -> None:
        for _ in range(count):
            index = self.written
            self.stats.capture()
            self.stats.stages["infer"].add(12.5)
            frame = Frame(picture(index, self.size_hw), index, time.monotonic_ns() - self.age_ns)
            self.sink.write(frame, class_map(index, self.size_hw))
            self.stats.show(frame.captured_ns)
            self.written += 1

    def tell(self, status: StreamStatus) -> None:
        self.stats.change(status)
        self.sink.show_status(status)

    def start(self, fps: float = 25.0) -> None:
        """Write frames at a pace until `stop`."""

        def run() -> None:
            due = time.monotonic()
            while not self._stop.is_set():
                self.write()
                due += 1 / fps
                time.sleep(max(0.0, due - time.monotonic()))

        self._stop.clear()
        self._thread = threading.Thread(target=run, name="test-stream")
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        self.stop()
        self.sink.close(True)

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, Message, bytes]:
        """Ask; redirects are not followed."""
        return exchange(self.sink.port, path, headers)

    def json(self, path: str) -> Any:
        return json.loads(self.get(path)[2])

    def connect(self, path: str = "", timeout_s: float = 10.0, receive_buffer: int | None = None) -> socket.socket:
        """Return a connection; with a path, one that has asked for it."""
        client = socket.socket()
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(timeout_s)
        client.connect(("127.0.0.1", self.sink.port))
        if path:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        return client


@contextlib.contextmanager
def page(host: str = "127.0.0.1", **options: Any) -> Iterator[Page]:
    made = Page(host, **options)
    try:
        yield made
    finally:
        made.close()


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def exchange(
    port: int, path: str, headers: dict[str, str] | None = None, method: str = "GET"
) -> tuple[int, Message, bytes]:
    opener = urllib.request.build_opener(_Stay, urllib.request.ProxyHandler({}))
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers or {}, method=method)
    try:
        with opener.open(request, timeout=15) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, answer.headers, answer.read()


def live() -> StreamStatus:
    return StreamStatus(State.LIVE, time.monotonic_ns(), reconnects=1)


def wait_for(true: Callable[[], object], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


class Tab:
    """A page in a browser, over the DevTools protocol."""

    def __init__(self, connection: Any) -> None:
        self._connection, self._numbers = connection, itertools.count(1)
        self.problems: list[str] = []

    async def call(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        await self._connection.write_message(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            text = await self._connection.read_message()
            assert text is not None, "the browser has gone"
            message = json.loads(text)
            entry = message.get("params", {}).get("entry", {})
            if message.get("method") == "Runtime.exceptionThrown" or entry.get("level") == "error":
                self.problems.append(json.dumps(message["params"])[:500])
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    async def open(self, url: str, width: int = 1280, height: int = 900) -> None:
        await self.call("Runtime.enable")
        await self.call("Log.enable")
        await self.resize(width, height)
        await self.call("Page.navigate", url=url)

    async def resize(self, width: int, height: int = 900) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def darken(self) -> None:
        dark = [{"name": "prefers-color-scheme", "value": "dark"}]
        await self.call("Emulation.setEmulatedMedia", features=dark)

    async def ask(self, script: str) -> Any:
        found = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, script: str, within_s: float = 20.0) -> Any:
        deadline = time.monotonic() + within_s
        while not (found := await self.ask(f"!!({script})")):
            assert time.monotonic() < deadline, f"never true: {script}; {self.problems}"
            await asyncio.sleep(0.05)
        return found

    async def press(self, key: str, code: int, text: str = "", shift: bool = False) -> None:
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        await self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **common)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    async def move(self, x: int, y: int) -> None:
        await self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    async def screenshot(self, path: Path, full: bool = True) -> None:
        shot = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        path.write_bytes(base64.b64decode(shot["data"]))


def browse(*scripts: Callable[[Tab], Awaitable[None]]) -> None:
    """Run scripts one after another, each in a tab of its own, in a fresh headless browser."""
    from tornado.websocket import websocket_connect

    async def run(port: int) -> None:
        for script in scripts:
            target = json.loads(exchange(port, "/json/new", method="PUT")[2])
            connection = await websocket_connect(target["webSocketDebuggerUrl"], max_message_size=1 << 26)
            await script(Tab(connection))
            connection.close()
            while await connection.read_message() is not None:
                pass

    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--hide-scrollbars"]
        options += [f"--user-data-dir={folder}", "--no-proxy-server", "--no-first-run", "--disable-quic"]
        options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        process = subprocess.Popen(
            [CHROMIUM, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            told = Path(folder) / "DevToolsActivePort"
            wait_for(lambda: told.exists() and told.read_text().strip(), 30)
            asyncio.run(run(int(told.read_text().split()[0])))
        finally:
            process.terminate()
            process.wait(20)
