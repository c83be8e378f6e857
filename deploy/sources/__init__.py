"""Where frames come from: a camera, a stream, a film, pictures, or the built-in scene.

    0, /dev/video0           camera    ?size=1280x720&fps=30&fourcc=MJPG  what the driver does not do is an error
    v4l2:///dev/v4l/by-id/X  camera    likewise, and it is found again under another number
    csi://0                  csi       ?size=1280x720&fps=30              needs the system's OpenCV, with GStreamer
    rtsp:// rtsps://         rtsp      #transport=udp                     tcp by default
    http:// https://         http      #loop=true (a film)                MJPEG, MPEG-TS, HLS are live; a file is a film
    FILE file:///FILE        film      #loop=true                         every frame, in order
    DIR, 'GLOB'              pictures  #loop=true                         in natural order
    street:                  street    ?size=240x320&seed=7&fps=25        live with fps=; size is HEIGHTxWIDTH here

    open_timeout=5          rtsp http             seconds within which it must open
    read_timeout=5          rtsp http             seconds within which the next picture must come
    give_up=SECONDS         camera csi rtsp http  an outage so long is final (exit code 3); by default none is
    tls_verify=false        rtsp http             takes a certificate that nobody vouches for

`${NAME}` in the address of a stream is the environment variable's value, whatever characters it has:
`rtsp://${CAM_USER}:${CAM_PASSWORD}@host/cam`, in quotes that the shell does not look into.

Options stand after `?` where the address is ours and after `#` where it is somebody else's, because the query of a URL
belongs to its server: `rtsp://host/cam?channel=1#transport=udp&give_up=60`.

A kind of source is one module here and one line in SOURCES; `open_source` finds the kind by the text. Live ones come
back after they were lost (`reconnect`), with a StreamStatus at each change.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable
from pathlib import Path

from deploy.frames import FrameSource
from deploy.sources.address import FORMS, Options, split_file, split_options
from deploy.sources.camera import DEVICE, open_camera
from deploy.sources.capture import silence_opencv
from deploy.sources.csi import open_csi
from deploy.sources.fault import StreamError
from deploy.sources.film import open_film
from deploy.sources.http_stream import open_http
from deploy.sources.loop import Looping
from deploy.sources.pictures import PictureSource
from deploy.sources.rtsp import open_rtsp
from deploy.sources.scene import StreetSource
from deploy.texts import check_name, redact
from lfd.data.frames import PICTURES
from lfd.errors import UsageError, unknown

__all__ = ["FORMS", "SOURCES", "StreamError", "kind_of", "may_be_live", "open_source", "redact"]

SOURCES: dict[str, Callable[[str, Options], FrameSource]] = {
    "camera": open_camera,
    "csi": open_csi,
    "rtsp": open_rtsp,
    "http": open_http,
    "film": open_film,
    "pictures": PictureSource,
    "street": StreetSource,
}
_SCHEMES = {
    "v4l2": "camera",
    "csi": "csi",
    "rtsp": "rtsp",
    "rtsps": "rtsp",
    "http": "http",
    "https": "http",
    "street": "street",
}


def kind_of(text: str) -> str:
    """Return the key in SOURCES that a source's text means.

    Raises:
        UsageError: It names a kind that does not exist.
    """
    check_name(text)
    if not text:
        raise UsageError(f"source '': is empty; expected {FORMS}")
    if DEVICE.fullmatch(text.partition("?")[0]):
        return "camera"
    address = split_file(text)[0]
    path = Path(address).expanduser()
    scheme = re.match(r"([a-z][a-z0-9+.-]{2,}):", address, re.IGNORECASE)
    if scheme and not path.exists():
        name = scheme[1].lower()
        if name not in _SCHEMES:
            raise unknown("source", name, _SCHEMES)
        return _SCHEMES[name]
    if path.is_dir() or path.suffix.lower() in PICTURES or (glob.has_magic(address) and not path.exists()):
        return "pictures"
    return "film"


def may_be_live(text: str) -> bool:
    """Tell from a source's text whether it can be live; what a web server has is seen when it is opened.

    Raises:
        UsageError: As `open_source`, as far as that is seen without opening it.
    """
    kind = kind_of(text)
    if kind == "street":
        from lfd.data import street  # noqa: PLC0415 - only who films it pays for it

        return street.parse_options(text.partition(":")[2]).fps > 0
    return kind not in ("film", "pictures")


def open_source(text: str, loop: bool = False) -> FrameSource:
    """Open a source of frames.

    Args:
        text: As in this module's table.
        loop: Begin a film or pictures anew at their end, as `#loop=true` does.

    Raises:
        UsageError: There is no such kind of source, or its options are wrong.
        SourceError: It is absent or not readable; a StreamError, with the cause, where it is live.
        MissingDependencyError: It needs what is not installed.
    """
    silence_opencv()
    kind = kind_of(text)
    address, options = split_options(kind, text)
    source = SOURCES[kind](address, options)
    if not (loop or options.loop):
        return source
    if source.info.live:
        source.close()
        raise UsageError(f"source {redact(text)!r} is live and has no end to begin anew at. Fix: leave out loop")
    return Looping(source, lambda: SOURCES[kind](address, options))
