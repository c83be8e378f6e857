"""Streams that FFmpeg reads: RTSP, and what `http` hands over."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable

import cv2

from deploy.frames import Cause
from deploy.sources.address import Options, Url
from deploy.sources.capture import Capture
from deploy.sources.diagnose import diagnose_rtsp
from deploy.sources.fault import StreamError
from deploy.sources.live import LiveSource, timeouts
from deploy.sources.reconnect import Reconnecting
from deploy.sources.stop import Stop


def open_rtsp(address: str, options: Options) -> Reconnecting:
    """Open an RTSP stream; it is opened again whenever it is lost.

    Raises:
        UsageError: It is no URL.
        StreamError: It does not open, with what the server says.
    """
    url, stop = Url.typed(address), Stop()

    def open_stream() -> LiveSource:
        begin = time.monotonic()
        capture = open_capture(url, options)
        return open_live(address, capture, options, begin, lambda late: diagnose_rtsp(url, options, stop, late))

    return Reconnecting(open_stream, options.give_up_s, stop=stop)


def open_capture(url: Url, options: Options) -> Capture:
    """Open a URL with FFmpeg, for the least delay."""
    # Of all protocols at once: who asks for the same opens at the same time, see Capture. FFmpeg 8 asks for the next
    # part of a film through a connection that it has itself asked to be closed, and ends with nothing; with
    # multiple_requests connections stay open, and films come whole.
    wanted = {
        "rtsp_transport": options.transport,
        "multiple_requests": "1",
        "tls_verify": str(int(options.tls_verify)),
        "ca_file": ssl.get_default_verify_paths().cafile or "",
    }
    # FFmpeg's threads each hold a frame back: with four of them the newest picture would be the fourth newest.
    params = [*timeouts(options), cv2.CAP_PROP_N_THREADS, 1]
    return Capture(
        url.full, cv2.CAP_FFMPEG, params, "|".join(f"{key};{value}" for key, value in wanted.items() if value)
    )


def open_live(
    name: str, capture: Capture, options: Options, begin: float, diagnose: Callable[[bool], tuple[Cause, str]]
) -> LiveSource:
    """Read a capture's first picture.

    Args:
        name: The source as the user wrote it.
        capture: From `open_capture`.
        options: Its time-outs.
        begin: When opening began, s of the monotonic clock.
        diagnose: Says what is wrong when nothing came; it is told whether a time-out was used up.

    Raises:
        StreamError: It is not open, or gives no picture.
    """
    limit_s, first = options.open_timeout_s, None
    if capture.is_opened():
        limit_s, begin = options.read_timeout_s, time.monotonic()
        first = capture.read()
    if first is None:
        capture.close()
        cause, detail = diagnose(time.monotonic() - begin >= 0.95 * limit_s)
        raise StreamError(cause, name, detail)

    def lost(pictures: int, waited_s: float) -> StreamError:
        if waited_s >= 0.95 * options.read_timeout_s:
            return StreamError(Cause.TIMED_OUT, name, f"no picture within {options.read_timeout_s:g} s")
        return StreamError(Cause.CLOSED, name, f"the stream ended after {pictures} pictures")

    return LiveSource(capture, first, options.read_timeout_s, lost)
