"""Who may see the page: loopback addresses, Host headers, tokens, and what browsers are told."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import socket
from collections.abc import Iterable
from ipaddress import ip_address

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::\d{1,5})?")

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach a server on `host`, an address or a name."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def new_token() -> str:
    """Return a token of 192 random bits."""
    return secrets.token_urlsafe(24)


def own_names(host: str) -> frozenset[str]:
    """Return the names under which a browser may ask for a server on `host`."""
    machine = socket.gethostname().lower()
    return frozenset({"localhost", host.lower(), machine, f"{machine}.local"})


def own_address() -> str:
    """Return the address by which other machines most likely reach this one; its name where it has no network.

    It is the one from which a packet to elsewhere would leave; none is sent. Few names are known beyond their machine.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address that RFC 5737 keeps for examples
        except OSError:
            return socket.gethostname()
        return str(probe.getsockname()[0])


def is_own(header: str, names: frozenset[str]) -> bool:
    """Tell whether a Host header is an address or one of our own names.

    Any other name is one whose owner made it point here, so that a page of theirs could read ours (DNS rebinding).
    """
    match = _HOST.fullmatch(header)
    if match is None:
        return False
    name = match[1].strip("[]").rstrip(".").lower()
    try:
        ip_address(name)
    except ValueError:
        return name in names
    return True


def is_right(given: Iterable[str], token: str) -> bool:
    """Tell whether the token is among those given, in a time that does not depend on how much of it is right."""
    return sum(hmac.compare_digest(text.encode("utf-8", "replace"), token.encode()) for text in given) > 0


def policy(style: str, script: str) -> str:
    """Return a Content-Security-Policy under which a page can use its own style and script, and this server."""

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        "default-src 'none'; img-src 'self' data:; connect-src 'self'; "
        f"style-src 'sha256-{digest(style)}'; script-src 'sha256-{digest(script)}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
