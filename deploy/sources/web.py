"""A GET request whose answer is read for as long as it comes."""

from __future__ import annotations

import http.client
import time
from contextlib import suppress
from dataclasses import replace
from urllib.parse import urljoin

from deploy.frames import Cause
from deploy.sources.address import Options, Url
from deploy.sources.authorization import answer
from deploy.sources.connection import ConnectError, Connection
from deploy.sources.fault import StreamError
from deploy.sources.stop import Stop
from lfd.errors import UsageError

MAX_REDIRECTS = 4


class _Client(http.client.HTTPConnection):
    """An HTTP client on a connection that is there already."""

    def __init__(self, url: Url, connection: Connection) -> None:
        super().__init__(url.host, url.port)
        self.sock = connection  # as much of a socket as is used


class Answer:
    """A server's answer with status 200, open until `close`.

    Args:
        name: The source as the user wrote it.
        url: What to get.
        options: Its time-outs.
        stop: Ends every wait.

    Raises:
        StreamError: No answer, or another status.
    """

    def __init__(self, name: str, url: Url, options: Options, stop: Stop) -> None:
        self._name, self._options, self._stop = name, options, stop
        self._until = time.monotonic() + options.open_timeout_s
        self.url = url
        authorization: str | None = None
        for _ in range(MAX_REDIRECTS + 1):
            self._ask(authorization)
            status = self.body.status
            if status == 200:
                return
            self.close()
            if status in (301, 302, 303, 307, 308):
                self._follow(self.body.getheader("Location", ""))
                authorization = None
            elif status == 401 and authorization is None and self.url.user:
                challenges = self.body.headers.get_all("WWW-Authenticate", [])
                authorization = answer(challenges, self.url.user, self.url.password, "GET", self.url.target)
                if authorization is None:
                    raise self._fault(Cause.UNAUTHORIZED, "the server asks in a way that is not known here")
            else:
                raise self._refusal(status, authorization is not None)
        raise self._fault(Cause.UNREADABLE, f"sends on to another address more than {MAX_REDIRECTS} times")

    @property
    def content_type(self) -> str:
        """What it says that it is, in small letters, with parameters; "" when it does not."""
        return self.body.getheader("Content-Type", "")

    @property
    def length(self) -> int | None:
        """How many bytes are still to come; None where it does not say, as of a live stream."""
        return self.body.length

    def allow(self, seconds: float) -> None:
        """Let what is read from now on take so long."""
        self._connection.deadline = time.monotonic() + seconds

    def abort(self) -> None:
        """End a read that another thread has under way; it sees the end of the stream."""
        self._connection.abort()

    def close(self) -> None:
        """End the connection. Not while it is read."""
        with suppress(OSError, http.client.HTTPException):
            self.body.close()
        self._connection.end()

    def _ask(self, authorization: str | None) -> None:
        headers: dict[str, str | bytes] = {"User-Agent": "lfd-toolkit", "Accept": "*/*", "Connection": "close"}
        if authorization:
            headers["Authorization"] = authorization.encode()  # http.client would take Latin-1 for text
        try:
            remaining = max(0.01, self._until - time.monotonic())
            self._connection = Connection(self.url, remaining, self._options.tls_verify, self._stop)
        except ConnectError as failure:
            raise self._fault(failure.cause, failure.detail) from None
        client = _Client(self.url, self._connection)
        try:
            client.request("GET", self.url.target, headers=headers)
            self.body = client.getresponse()
        except TimeoutError:
            detail = f"no answer within {self._options.open_timeout_s:g} s"
            raise self._ended(Cause.TIMED_OUT, detail) from None
        except OSError:
            raise self._ended(Cause.CLOSED, "the server ended the connection") from None
        except http.client.HTTPException:
            raise self._ended(Cause.UNREADABLE, "what answers there is no HTTP server") from None

    def _follow(self, location: str) -> None:
        target = urljoin(self.url.public, location)
        if not target.startswith(("http://", "https://")):
            raise self._fault(Cause.UNREADABLE, "sends on to an address that is not http")
        try:
            there = Url.parse(target)
        except UsageError:
            raise self._fault(Cause.UNREADABLE, "sends on to an address that is none") from None
        if there.netloc == self.url.netloc and there.secure >= self.url.secure:  # nobody else gets the password
            there = replace(there, user=self.url.user, password=self.url.password)
        self.url = there

    def _refusal(self, status: int, with_password: bool) -> StreamError:
        said = f"the server answers {status} {http.client.responses.get(status, '')}".rstrip()
        if status in (401, 403):
            why = "the user name or password is wrong" if with_password else "it wants a user name and password"
            return self._fault(Cause.UNAUTHORIZED, f"{said}: {why}" if status == 401 else said)
        if status in (404, 410):
            return self._fault(Cause.NOT_FOUND, said)
        return self._fault(Cause.CLOSED if status >= 500 or status in (408, 429) else Cause.UNREADABLE, said)

    def _ended(self, cause: Cause, detail: str) -> StreamError:
        self._connection.end()
        return self._fault(cause, detail)

    def _fault(self, cause: Cause, detail: str) -> StreamError:
        return StreamError(cause, self._name, detail)
