"""Answers to a server that asks who we are: Basic (RFC 7617) and Digest (RFC 7616), for HTTP and RTSP."""

from __future__ import annotations

import hashlib
import re
import secrets
from base64 import b64encode
from collections.abc import Callable, Sequence
from urllib.request import parse_http_list

_HASHES: dict[str, Callable[[bytes], str]] = {
    # Digest's own choice, not ours: cameras know nothing else.
    "MD5": lambda data: hashlib.md5(data, usedforsecurity=False).hexdigest(),
    "SHA-256": lambda data: hashlib.sha256(data).hexdigest(),
}


def answer(
    challenges: Sequence[str], user: str, password: str, method: str, uri: str, cnonce: str | None = None
) -> str | None:
    """Return the value of an Authorization header, or None when no challenge is one that we can answer.

    Args:
        challenges: Values of WWW-Authenticate. Digest is preferred, and SHA-256 in it: the password is not sent.
        user: User name.
        password: Password.
        method: Of the request, such as GET or DESCRIBE.
        uri: As it stands in the request.
        cnonce: Our own nonce; random by default.
    """
    digests = [_parameters(c[7:]) for c in challenges if c[:7].lower() == "digest "]
    for algorithm in ("SHA-256", "MD5"):
        for fields in digests:
            if fields.get("algorithm", "MD5").upper() == algorithm and "nonce" in fields:
                return _digest(fields, algorithm, user, password, method, uri, cnonce or secrets.token_hex(8))
    if any(c[:5].lower() == "basic" for c in challenges):
        return "Basic " + b64encode(f"{user}:{password}".encode()).decode("ascii")
    return None


def _parameters(text: str) -> dict[str, str]:
    pairs = (item.partition("=") for item in parse_http_list(text))
    return {key.strip().lower(): re.sub(r"\\(.)", r"\1", value.strip().strip('"')) for key, _, value in pairs}


def _digest(
    fields: dict[str, str], algorithm: str, user: str, password: str, method: str, uri: str, cnonce: str
) -> str:
    """Answer a Digest challenge (RFC 7616, 3.4.1), without qop where the server offers none (RFC 2069)."""
    hashed = _HASHES[algorithm]
    realm, nonce = fields.get("realm", ""), fields["nonce"]
    a1 = hashed(f"{user}:{realm}:{password}".encode())
    a2 = hashed(f"{method}:{uri}".encode())
    shown = {"username": user, "realm": realm, "nonce": nonce, "uri": uri}
    with_qop = "auth" in [item.strip() for item in fields.get("qop", "").split(",")]
    middle = f"{nonce}:00000001:{cnonce}:auth" if with_qop else nonce
    shown["response"] = hashed(f"{a1}:{middle}:{a2}".encode())
    if "opaque" in fields:
        shown["opaque"] = fields["opaque"]
    parts = [f'{key}="{_escaped(value)}"' for key, value in shown.items()]
    if "algorithm" in fields:
        parts.append(f"algorithm={algorithm}")
    if with_qop:
        parts.append(f'qop=auth, nc=00000001, cnonce="{cnonce}"')
    return "Digest " + ", ".join(parts)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')
