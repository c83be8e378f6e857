"""Requests over HTTP with the standard library: what is asked, what is followed, and what an answer's failure means."""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import urllib.request
from http import HTTPStatus
from http.client import HTTPMessage
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit

from lfd.errors import CheckpointError, UsageError

_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


class TransientError(Exception):
    """A failure that another attempt may mend.

    Attributes:
        wait_s: Seconds the server asks to wait (Retry-After), 0 where it does not.
    """

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class RangeError(TransientError):
    """The file at the server is shorter than the part that is here (416)."""


class UnreachableError(Exception):
    """No connection: the name does not resolve, or nobody listens."""


def redact(url: str) -> str:
    """Return an address without user, password, query and fragment, any of which may hold a secret."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "..." if parts.query else "", ""))


def make_request(url: str) -> urllib.request.Request:
    """Return the request for a file; `user:password@` goes into a header that no redirection carries on.

    Raises:
        UsageError: Not an address of http or https.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UsageError("that address cannot be read; expected https://HOST/FILE") from None  # it may hold a password
    if parts.scheme not in ("http", "https") or not host or not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError(
            f"address {redact(url)!r}; expected http:// or https://, a host and a path, with other characters as %XX"
        )
    named = f"[{host}]" if ":" in host else host
    plain = urlunsplit((parts.scheme, named + (f":{port}" if port else ""), parts.path, parts.query, ""))
    # identity: a server that compresses on the fly would make sizes, ranges and checksums another file's.
    request = urllib.request.Request(plain, headers={"User-Agent": "lfd-toolkit", "Accept-Encoding": "identity"})  # noqa: S310
    if parts.username is not None:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(secret).decode()}")
    return request


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https, and never from https to http."""

    def http_error_302(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage
    ) -> Any:
        """Follow; see `urllib.request.HTTPRedirectHandler`, which forgets an answer whose Location it cannot read."""
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except ValueError:
            fp.close()
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """Return the next request; see `urllib.request.HTTPRedirectHandler`."""
        before, after = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if after not in ("http", "https") or (before == "https" and after == "http"):
            fp.close()
            raise CheckpointError(
                f"{redact(req.full_url)}: redirects from {before} to {after}, {redact(newurl)}, which is not followed. "
                "Fix: give the address of the file itself, if you trust it"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_response(
    request: urllib.request.Request, opener: urllib.request.OpenerDirector, timeout_s: float
) -> http.client.HTTPResponse:
    """Ask for a file.

    Args:
        request: From `make_request`.
        opener: With `Redirects`.
        timeout_s: For the connection, and then for each read.

    Raises:
        TransientError: It may work later; RangeError where the asked range does not exist.
        UnreachableError: There is no connection to be had.
        CheckpointError: It will not work: not there, not permitted, not trusted.
    """
    url = redact(request.full_url)
    try:
        response: http.client.HTTPResponse = opener.open(request, timeout=timeout_s)
        return response
    except HTTPError as error:
        error.close()
        phrase = HTTPStatus(error.code).phrase if error.code in set(HTTPStatus) else "no standard status"
        answer = f"the server answers {error.code}, {phrase}"
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and request.has_header("Range"):
            raise RangeError(answer) from error
        if error.code in _TRANSIENT:
            after = error.headers.get("Retry-After", "")
            raise TransientError(answer, float(after) if after.isdecimal() else 0.0) from error
        raise CheckpointError(f"{url}: {answer}. Fix: check the address, or open it in a browser") from error
    except (http.client.InvalidURL, ValueError) as error:  # urllib's, of a Location that it cannot take apart
        raise CheckpointError(f"{url}: is, or redirects to, no address. Fix: give that of the file itself") from error
    except (OSError, http.client.HTTPException) as error:
        cause: Any = error.reason if isinstance(error, URLError) else error
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise CheckpointError(
                f"{url}: its certificate is not trusted ({cause.verify_message}). Fix: set SSL_CERT_FILE to your "
                "organisation's certificates, or this machine's clock"
            ) from error
        if isinstance(cause, (socket.gaierror, ConnectionRefusedError)):
            raise UnreachableError(reason(cause)) from error
        raise TransientError(reason(cause)) from error


def read(response: http.client.HTTPResponse, most: int) -> bytes:
    """Return what has arrived, up to `most` bytes; b"" at the end.

    Raises:
        TransientError: The connection broke, or nothing came in time.
    """
    try:
        return response.read1(most)
    except (OSError, http.client.HTTPException) as error:
        raise TransientError(reason(error)) from error


def reason(error: object) -> str:
    """Return a failure in words that cannot hold an address, as the texts of some exceptions do."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
