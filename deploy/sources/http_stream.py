"""Streams and films of a web server; what it sends decides which it is."""

from __future__ import annotations

import time
from functools import partial
from pathlib import PurePosixPath

import cv2

from deploy.frames import Cause
from deploy.sources.address import Options, Url
from deploy.sources.fault import StreamError
from deploy.sources.film import FilmSource
from deploy.sources.live import LiveSource
from deploy.sources.mjpeg import MjpegSource
from deploy.sources.reconnect import Reconnecting
from deploy.sources.rtsp import open_capture, open_live
from deploy.sources.stop import Stop
from deploy.sources.web import Answer
from deploy.texts import redact
from lfd.data.film import SUFFIXES


def open_http(address: str, options: Options) -> Reconnecting:
    """Open a camera's JPEG pictures, a live stream (MPEG-TS, HLS), or a film: a stream has no end that it tells.

    Raises:
        UsageError: It is no URL.
        StreamError: It does not open, with what the server says.
    """
    url, stop = Url.typed(address), Stop()
    return Reconnecting(partial(_open, address, url, options, stop), options.give_up_s, stop=stop)


def _open(name: str, url: Url, options: Options, stop: Stop) -> MjpegSource | LiveSource | FilmSource:
    begin = time.monotonic()
    answer = Answer(name, url, options, stop)
    kind = "".join(c for c in answer.content_type.partition(";")[0].strip().lower() if c.isprintable())[:60]
    if kind.startswith("multipart/"):
        return MjpegSource(name, answer, options)
    is_film = (
        bool(answer.length) and "mpegurl" not in kind and (kind.startswith("video/") or _suffix(answer.url) in SUFFIXES)
    )
    answer.close()
    if kind.startswith("image/"):
        fix = "use the address of its stream; the camera's manual has it"
        raise StreamError(Cause.UNREADABLE, name, f"a single picture ({kind}), no stream", fix)
    if kind == "text/html":
        raise StreamError(Cause.UNREADABLE, name, "a web page, no stream", "use the address of the stream in it")

    def lost() -> str:
        """Ask for the film again: FFmpeg does not tell the end of a film from that of its server."""
        try:
            Answer(name, url, options, stop).close()
        except StreamError as fault:
            return fault.detail
        return ""

    capture = open_capture(answer.url, options)
    if capture.is_opened() and (is_film or capture.get(cv2.CAP_PROP_FRAME_COUNT) >= 1):
        return FilmSource(redact(name), capture, lost=lost)

    def diagnose(timed_out: bool) -> tuple[Cause, str]:
        sends = f"it sends {kind or 'something without a type'}"
        if timed_out:
            return Cause.TIMED_OUT, f"{sends}, but no picture came in time"
        return Cause.UNREADABLE, f"{sends}, which gives no picture"

    return open_live(name, capture, options, begin, diagnose)


def _suffix(url: Url) -> str:
    return PurePosixPath(url.target.partition("?")[0]).suffix.lower()
