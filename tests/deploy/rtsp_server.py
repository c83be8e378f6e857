"""An RTSP server of stamped pictures, from GStreamer's gst-rtsp-server: a program for the system's Python.

    apt install python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly

Usage: rtsp_server.py PORT WxH [USER:PASSWORD:basic|digest]. It writes `ready`, serves /live (H.264)
and /jpeg, and reads lines from stdin: `size WxH` (of streams under way too), `stall` and `go`. It ends with its stdin.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

FPS = 30
CELL, COLUMNS, ROWS = 16, 16, 2  # as servers.stamp draws it
CODECS = {
    "/live": "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=15 ! rtph264pay name=pay0 config-interval=1",
    "/jpeg": "jpegenc ! rtpjpegpay name=pay0 pt=26",
}


def caps(width: int, height: int) -> str:
    return f"video/x-raw,format=I420,width={width},height={height},framerate={FPS}/1"


def stamped(width: int, height: int) -> bytes:
    """An I420 picture of mid grey whose upper left has the monotonic clock's milliseconds in black and white cells."""
    millis = time.monotonic_ns() // 1_000_000 % 2 ** (COLUMNS * ROWS)
    bits = f"{millis:0{COLUMNS * ROWS}b}"
    luma = b""
    for row in range(ROWS):
        cells = b"".join(
            (b"\xeb" if bit == "1" else b"\x10") * CELL for bit in bits[row * COLUMNS : (row + 1) * COLUMNS]
        )
        luma += cells.ljust(width, b"\x60") * CELL
    return luma.ljust(width * height, b"\x60") + b"\x80" * (width * height // 2)


class Factory(GstRtspServer.RTSPMediaFactory):  # type: ignore[misc]
    """One pipeline for all clients, from appsrc."""

    def __init__(self, codec: str, size: list[int], running: threading.Event) -> None:
        super().__init__()
        self._codec, self._size, self._running = codec, size, running
        self.set_shared(True)

    def do_create_element(self, url: Any) -> Any:
        width, height = self._size
        return Gst.parse_launch(
            f"appsrc name=src is-live=true format=time do-timestamp=true block=true max-bytes={width * height * 3} "
            f"caps={caps(width, height)} ! {self._codec}"
        )

    def do_configure(self, media: Any) -> None:
        source = media.get_element().get_by_name("src")
        threading.Thread(target=self._feed, args=(source, *self._size), daemon=True).start()

    def _feed(self, source: Any, width: int, height: int) -> None:
        begin, number = time.monotonic(), 0
        while True:
            self._running.wait()
            time.sleep(max(0.0, begin + number / FPS - time.monotonic()))
            number += 1
            if [width, height] != self._size:
                width, height = self._size
                source.set_property("caps", Gst.Caps.from_string(caps(width, height)))
            if source.emit("push-buffer", Gst.Buffer.new_wrapped(stamped(width, height))) != Gst.FlowReturn.OK:
                return


def protect(server: Any, factories: list[Any], account: str) -> None:
    user, password, scheme = account.split(":")
    auth = GstRtspServer.RTSPAuth()
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "user")
    if scheme == "digest":
        auth.set_supported_methods(2)  # GST_RTSP_AUTH_DIGEST
        auth.add_digest(user, password, token)
    else:
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    server.set_auth(auth)
    for factory in factories:
        permissions = GstRtspServer.RTSPPermissions()
        permissions.add_permission_for_role("user", "media.factory.access", True)
        permissions.add_permission_for_role("user", "media.factory.construct", True)
        factory.set_permissions(permissions)


def main() -> None:
    Gst.init(None)
    size = [int(side) for side in sys.argv[2].split("x")]
    running = threading.Event()
    running.set()
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(sys.argv[1])
    factories = [Factory(codec, size, running) for codec in CODECS.values()]
    for path, factory in zip(CODECS, factories, strict=True):
        server.get_mount_points().add_factory(path, factory)
    if len(sys.argv) > 3:
        protect(server, factories, sys.argv[3])
    if not server.attach(None):
        sys.exit("cannot listen")
    loop = GLib.MainLoop()
    threading.Thread(target=loop.run, daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "size":
            size[:] = [int(side) for side in rest[0].split("x")]
        elif word == "stall":
            running.clear()
        elif word == "go":
            running.set()


main()
