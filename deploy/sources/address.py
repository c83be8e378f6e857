"""What a source's text says: its kind's own part, our options, and the credentials that nobody else may read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from deploy.texts import expand, redact
from lfd.console import parse_size
from lfd.data.query import parse_flag, parse_query
from lfd.errors import UsageError

FORMS = (
    "0 or /dev/video0 (camera), csi://0, rtsp://HOST/PATH, http://HOST/PATH, FILE (film), DIR or 'GLOB' (pictures), "
    "street: (built-in scene)"
)
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "camera": ("size", "fps", "fourcc", "give_up"),
    "csi": ("size", "fps", "give_up"),
    "rtsp": ("transport", "open_timeout", "read_timeout", "give_up", "tls_verify"),
    "http": ("open_timeout", "read_timeout", "give_up", "tls_verify", "loop"),
    "film": ("loop",),
    "pictures": ("loop",),
}
"""Kind of source -> the options that it takes; `street:` has its own (lfd.data.street)."""
_EXAMPLES = {
    "camera": "size=1280x720&fps=30&fourcc=MJPG",
    "csi": "size=1280x720&fps=30",
    "rtsp": "transport=udp&give_up=60",
    "http": "read_timeout=3&give_up=60",
    "film": "loop=true",
    "pictures": "loop=true",
}
_SECONDS = {"open_timeout": (0.1, 60.0), "read_timeout": (0.1, 60.0), "give_up": (0.0, 1e6)}


@dataclass(frozen=True)
class Options:
    """The options of all kinds of source; `OPTIONS` says which kind takes which.

    Attributes:
        size_wh: Width and height asked of a camera, px; None: the driver's choice.
        fps: Frames a second asked of a camera; None likewise.
        fourcc: Pixel format asked of a camera, such as MJPG; None likewise.
        transport: Of RTSP: tcp, or udp.
        open_timeout_s: Within which a stream must open.
        read_timeout_s: Within which the next picture must come.
        give_up_s: Length of an outage, s, after which the stream is given up; None: never.
        tls_verify: Whether the server's certificate is checked.
        loop: Whether a film or pictures begin anew at their end.
    """

    size_wh: tuple[int, int] | None = None
    fps: float | None = None
    fourcc: str | None = None
    transport: str = "tcp"
    open_timeout_s: float = 5.0
    read_timeout_s: float = 5.0
    give_up_s: float | None = None
    tls_verify: bool = True
    loop: bool = False


def split_options(kind: str, text: str) -> tuple[str, Options]:
    """Take our options off a source's text.

    They stand after `?` where the address is ours (`v4l2://`, `csi://`) and after `#` where it is somebody else's: a
    URL's query belongs to its server, and a file's name may hold a `?`. A fragment is never sent (RFC 3986, 3.5).

    Returns:
        The text without them, and what they say.

    Raises:
        UsageError: An option that the kind does not have, or a value that does not fit.
    """
    if kind not in OPTIONS:
        return text, Options()
    if kind in ("film", "pictures"):
        address, query = split_file(text)
    else:
        address, _, query = text.partition("?" if kind in ("camera", "csi") else "#")
    if "@" in query:
        raise UsageError(
            f"source {_shown(text)!r}: what follows the # is no option; expected {_EXAMPLES[kind]}. "
            "Fix: write a # in a password as %23"
        )
    options = Options()
    for key, value in parse_query(kind, query, OPTIONS[kind], _EXAMPLES[kind]).items():
        options = replace(options, **_read(kind, key, value))  # type: ignore[arg-type]
    return address, options


def _shown(text: str) -> str:
    """Return a URL that may be none without its credentials, also where a password has blanks."""
    return redact(re.sub(r"\s", "_", text))


def split_file(text: str) -> tuple[str, str]:
    """Take a path or pattern and the options after its `#` apart; a file that is there may have a # in its name.

    A `file:` URL (RFC 8089) is a path too.

    Raises:
        UsageError: It is of another machine.
    """
    path, _, query = text.partition("#")
    if not query or "=" not in query or Path(text).expanduser().exists():
        path, query = text, ""
    url = re.fullmatch(r"file:(?://(?:localhost)?(?=/))?(.+)", path, re.IGNORECASE | re.DOTALL)
    if url is None or Path(path).exists():
        return path, query
    if url[1].startswith("//"):
        raise UsageError(f"source {_shown(text)!r}: is a file of another machine; expected file:///PATH")
    return unquote(url[1]), query


def _read(kind: str, key: str, value: str) -> dict[str, object]:
    """Return the field of `Options` that an option sets, as keywords for `replace`."""
    shown = f"{kind} option {key}={value[:40]!r}"
    if key in _SECONDS:
        low, high = _SECONDS[key]
        return {f"{key}_s": _number(shown, value, low, high, "seconds")}
    if key == "fps":
        return {key: _number(shown, value, 1, 1000, "frames a second")}
    if key == "size":
        try:
            return {"size_wh": parse_size(value)}
        except UsageError:
            raise UsageError(f"{shown}; expected WIDTHxHEIGHT in pixels, such as 1280x720") from None
    if key == "fourcc":
        if not re.fullmatch(r"[A-Z0-9]{3}[A-Z0-9 ]", value):
            raise UsageError(f"{shown}; expected four capital letters or digits, such as MJPG or YUYV")
        return {key: value}
    if key == "transport":
        if value not in ("tcp", "udp"):
            raise UsageError(f"{shown}; expected tcp or udp")
        return {key: value}
    return {key: parse_flag(kind, key, value)}


def _number(shown: str, value: str, low: float, high: float, unit: str) -> float:
    number = float(value) if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value, re.ASCII) else -1.0
    if not low <= number <= high:
        raise UsageError(f"{shown}; expected {low:g} to {high:g} {unit}")
    return number


@dataclass(frozen=True)
class Url:
    """The address of a stream on the network.

    Attributes:
        scheme: rtsp, rtsps, http or https.
        host: Name or address, without the brackets of IPv6.
        port: The scheme's own where the URL has none.
        target: Path and query, as sent to the server.
        user: User name, decoded; "" without.
        password: Likewise.
    """

    scheme: str
    host: str
    port: int
    target: str
    user: str = ""
    password: str = ""

    @classmethod
    def typed(cls, text: str) -> Url:
        """Read a URL that a user has typed, with environment variables as `${NAME}`; in those, all characters go.

        Raises:
            UsageError: As in `parse`, or there is no such variable.
        """
        return cls.parse(expand(text, partial(quote, safe="")), text)

    @classmethod
    def parse(cls, text: str, shown: str = "") -> Url:
        """Read a URL.

        Args:
            text: The URL.
            shown: What messages show of it; by default itself, without credentials.

        Raises:
            UsageError: It has no host, an impossible port, or characters that no URL has or no header may have.
        """
        shown = _shown(shown or text)
        try:
            if not text.isascii() or not text.isprintable() or " " in text:
                raise ValueError
            parts = urlsplit(text)
            host, port = parts.hostname, _port(parts.netloc)
        except ValueError:  # its message may hold the password
            host, port, parts = None, None, urlsplit("")
        if host and port is not None and not 0 < port < 65536:
            raise UsageError(f"source {shown!r}: there is no port {port}; expected 1 to 65535")
        if not host:
            raise UsageError(
                f"source {shown!r} is no URL; expected SCHEME://[USER:PASSWORD@]HOST[:PORT]/PATH. "
                "Fix: write special characters of a password as %XX"
            )
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        if any(ord(c) < 0x20 for c in user + password):  # they would end a header's line
            raise UsageError(f"source {shown!r}: its user name or password has control characters")
        return cls(parts.scheme, host, port or _PORTS[parts.scheme], target, user, password)

    @property
    def secure(self) -> bool:
        """Whether it goes through TLS."""
        return self.scheme in ("https", "rtsps")

    @property
    def netloc(self) -> str:
        """Host and port, as they stand in a URL, without credentials."""
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def full(self) -> str:
        """The URL with its credentials, for FFmpeg."""
        password = f":{quote(self.password, safe='')}" if self.password else ""
        account = f"{quote(self.user, safe='')}{password}@" if self.user else ""
        return f"{self.scheme}://{account}{self.netloc}{self.target}"

    @property
    def public(self) -> str:
        """The URL without credentials, as requests name it."""
        return f"{self.scheme}://{self.netloc}{self.target}"

    def __repr__(self) -> str:
        return redact(self.public)


def _port(netloc: str) -> int | None:
    """Return the port, also one that does not exist; None where there is none.

    Raises:
        ValueError: It is no number.
    """
    digits = netloc.rpartition("@")[2].rpartition("]")[2].partition(":")[2]
    if not digits:
        return None
    if not (digits.isdecimal() and len(digits) < 10):
        raise ValueError
    return int(digits)


_PORTS = {"http": 80, "https": 443, "rtsp": 554, "rtsps": 322}
