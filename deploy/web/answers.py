"""What is answered to whom."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from tornado.iostream import StreamClosedError
from tornado.web import Application, HTTPError, RequestHandler

from deploy.web.guard import HEADERS, is_own, is_right
from deploy.web.numbers import HISTORY_S, Numbers
from deploy.web.page import Page
from deploy.web.pictures import BOUNDARY, LAYERS, BusyError, Gallery, Picture, View, parse_view
from lfd.errors import UsageError
from lfd.spec import Labels

WRITE_S = 10.0
"""Seconds in which a viewer has to take what was sent; then it is cut off."""
WAIT_S = 5.0
"""Seconds after which one who waits for a picture hears that there is none, or gets the last one again."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Site:
    """What is served, and to whom.

    Attributes:
        port: That is listened on.
        names: Those that a Host header may hold beside addresses.
        token: What viewers must know; "" for everybody.
        labels: The model's classes.
        opacity: Of overlays, unless asked otherwise.
        page: The page.
        numbers: The run's.
    """

    port: int
    names: frozenset[str]
    token: str
    labels: Labels
    opacity: float
    page: Page
    numbers: Numbers


def application(site: Site, gallery: Gallery, counts: Callable[[], dict[str, int]]) -> Application:
    """Return what answers requests; `counts` says how many connections there are."""
    shared = {"site": site, "gallery": gallery, "counts": counts}
    answers = {
        r"/": _Root,
        r"/layers": _Layers,
        r"/stream\.mjpg": _Stream,
        r"/snapshot\.jpg": _Snapshot,
        r"/stats\.json": _Stats,
        r"/healthz": _Health,
        r"/metrics": _Metrics,
    }
    return Application(
        [(path, answer, shared) for path, answer in answers.items()],
        default_handler_class=_Answer,
        default_handler_args=shared,
        log_function=lambda handler: None,  # its lines would hold tokens
    )


class _RefusedError(HTTPError):
    """A request that is answered with a line of text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status)
        self.text = text


class _Answer(RequestHandler):
    """What all answers have in common; by itself, that there is nothing here."""

    def initialize(self, site: Site, gallery: Gallery, counts: Callable[[], dict[str, int]]) -> None:
        self.site, self.gallery, self.counts = site, gallery, counts
        self.gone = False

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        for name, value in HEADERS.items():
            self.set_header(name, value)
        self.set_header("Content-Type", "text/plain; charset=utf-8")

    def prepare(self) -> None:
        headers = self.request.headers
        hosts = headers.get_list("Host")
        # Who has the token may come by any name, such as a proxy's; without one, the name tells friend from foe.
        if not self.site.token and (len(hosts) != 1 or not is_own(hosts[0], self.site.names)):
            raise _RefusedError(
                421,
                "no such host here; expected an address of this machine, or its name. "
                "Fix: to use another name, give the page a token",
            )
        if headers.get("Sec-Fetch-Site") == "cross-site" and headers.get("Sec-Fetch-Mode") != "navigate":
            raise _RefusedError(403, "asked for by another site's page")
        if self.site.token and not is_right(self._tokens(), self.site.token):
            raise _RefusedError(
                401, "a token is needed; open the address that lfd-run has printed, or this page with ?token=YOURS"
            )

    async def get(self) -> None:
        raise HTTPError(404)

    async def head(self) -> None:
        """Answer as to GET; Tornado leaves the body out."""
        await self.get()

    @property
    def cookie(self) -> str:
        """The cookie's name: cookies are of a host, whatever the port."""
        return f"lfd_token_{self.site.port}"

    def _tokens(self) -> list[str]:
        given = [value.decode("latin-1") for value in self.request.query_arguments.get("token", [])]
        cookie = self.get_cookie(self.cookie)
        scheme, _, credentials = self.request.headers.get("Authorization", "").partition(" ")
        return [*given, *([cookie] if cookie else []), *([credentials] if scheme.lower() == "bearer" else [])]

    def query(self, *known: str) -> dict[str, str]:
        """Return the query's options, without the token; only `known` ones where some are."""
        found = {}
        for key, values in self.request.query_arguments.items():
            if key == "token":
                continue
            if known and key not in known:
                raise _RefusedError(400, f"unknown option {key[:40]!r}; expected {', '.join(known)}")
            if len(values) > 1:
                raise _RefusedError(400, f"option {key[:40]!r} is given {len(values)} times; expected once")
            found[key] = values[0].decode("utf-8", "replace")
        return found

    def number(self, options: dict[str, str], key: str, most: int) -> int:
        """Return a whole number of the query; 0 where there is none."""
        text = options.get(key, "0")
        if not (text.isascii() and text.isdecimal() and len(text) < 16 and int(text) <= most):
            raise _RefusedError(400, f"{key}={text[:40]!r}; expected 0 to {most}")
        return int(text)

    async def send(self, body: str | bytes) -> None:
        """Answer, and wait until the viewer has it."""
        self.write(body)
        await self.leave(self.finish())

    async def leave(self, leaving: Awaitable[None]) -> None:
        """Wait until what was written has left; cut the viewer off who does not take it."""
        written = asyncio.ensure_future(leaving)
        done, _ = await asyncio.wait({written}, timeout=WRITE_S)
        if not done:
            self.gone = True
            self.request.connection.stream.close()  # type: ignore[union-attr]  # an HTTP1Connection has one
            done, _ = await asyncio.wait({written}, timeout=1.0)  # Tornado stumbles over a write that comes before
        if done:
            with contextlib.suppress(StreamClosedError):
                written.result()

    def compute_etag(self) -> None:
        """Return none: what is answered is new each time."""

    def on_connection_close(self) -> None:
        self.gone = True

    def write_error(self, status_code: int, **details: Any) -> None:
        error = details.get("exc_info", (None, None))[1]
        if status_code == 401:
            self.set_header("WWW-Authenticate", "Bearer")
        if status_code == 405:
            self.set_header("Allow", "GET, HEAD")
        text = error.text if isinstance(error, _RefusedError) else self._reason
        # Tornado does not wait for this; who asks much and reads nothing is cut off here too.
        self._refusal = asyncio.ensure_future(self.leave(self.finish(f"{text}\n")))

    def log_exception(
        self, typ: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Log our own defects, and never the request, which may hold the token."""
        if value is not None and not isinstance(value, HTTPError):
            _LOG.error("an answer failed", exc_info=value)


class _Root(_Answer):
    """The page. Opened with a token, it gives a cookie for it, so that the token leaves the address bar."""

    async def get(self) -> None:
        if self.site.token and "token" in self.request.query_arguments:
            # Lax: Strict would hold the cookie back where the address is opened from a message or a page.
            self.set_cookie(self.cookie, self.site.token, httponly=True, samesite="Lax")
            self.set_status(303)
            self.set_header("Location", "./")  # relative, as all of the page's: a proxy may have it in a folder
            await self.leave(self.finish())
            return
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", self.site.page.policy)
        await self.send(self.site.page.html)


class _Pictures(_Answer):
    """Answers with pictures."""

    def view(self) -> View:
        try:
            return parse_view(self.query(), self.site.labels, self.site.opacity)
        except UsageError as error:
            raise _RefusedError(400, str(error)) from error

    @contextmanager
    def viewing(self, view: View) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self.gallery.viewing(view))
            except BusyError as error:
                raise _RefusedError(503, str(error)) from error
            yield

    async def send_picture(self, picture: Picture | None, kind: str) -> None:
        if picture is None:
            self.set_status(204)
            await self.leave(self.finish())
            return
        self.set_header("Content-Type", kind)
        await self.send(picture.data)


class _Layers(_Pictures):
    async def get(self) -> None:
        after = self.number(self.query("after"), "after", 10**15)
        with self.viewing(LAYERS):
            # A page that has outlived the run before this one knows numbers that are not there yet.
            after = after if after <= self.gallery.newest else 0
            picture = await self.gallery.next(LAYERS, after, WAIT_S)
            await self.send_picture(picture, f"multipart/form-data; boundary={BOUNDARY}")


class _Snapshot(_Pictures):
    async def get(self) -> None:
        view = self.view()
        with self.viewing(view):
            picture = await self.gallery.next(view, 0, WAIT_S)
            if picture is None:
                raise _RefusedError(503, "there is no picture yet")
            await self.send_picture(picture, "image/jpeg")


class _Stream(_Pictures):
    async def head(self) -> None:
        self._begin()
        await self.leave(self.flush())  # before `finish` could say that the length is 0
        await self.leave(self.finish())

    async def get(self) -> None:
        view, picture = self._begin(), None
        with self.viewing(view):
            self.write(f"--{BOUNDARY}\r\n")
            while not self.gone and not self.gallery.closed:
                picture = await self.gallery.next(view, picture.number if picture else 0, WAIT_S) or picture
                if picture is not None:
                    # The boundary goes behind the picture: browsers show one when they have seen its end.
                    self.write(f"Content-Type: image/jpeg\r\nContent-Length: {len(picture.data)}\r\n\r\n")
                    self.write(picture.data)
                    self.write(f"\r\n--{BOUNDARY}\r\n")
                await self.leave(self.flush())

    def _begin(self) -> View:
        self.set_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY}")
        return self.view()


class _Stats(_Answer):
    async def get(self) -> None:
        seconds = self.number(self.query("history"), "history", HISTORY_S)
        self.set_header("Content-Type", "application/json")
        await self.send(json.dumps(self.site.numbers.record(seconds, self.counts()), allow_nan=False))


class _Health(_Answer):
    async def get(self) -> None:
        why = self.site.numbers.unhealthy()
        self.set_status(503 if why else 200)
        await self.send(f"{why or 'ok'}\n")


class _Metrics(_Answer):
    async def get(self) -> None:
        self.set_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        await self.send(self.site.numbers.metrics(self.counts(), self.gallery.encoded))
