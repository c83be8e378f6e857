"""The page's HTTP server, in a thread of its own.

It is Tornado's: 3 MB without dependencies (aiohttp is 12 MB in ten packages, Starlette with uvicorn seven), kept
since 2009, it bounds headers and bodies, and says when a response has left, so that slow viewers can skip pictures.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream

from deploy.web.answers import Site, application
from deploy.web.pictures import Encoder, Gallery, Shot
from lfd.errors import SinkError

MAX_CONNECTIONS = 100
SEND_BUFFER = 1 << 18
"""Bytes the system keeps for a viewer; it would take megabytes, of pictures that grow old there."""
IDLE_S = 15.0
"""Seconds for the headers of a request, and between two requests of a connection."""
STOP_S = 3.0
REST_S = 0.1
REFUSED_S = 1.0
"""How long a refused connection stays open for its answer to be read."""
_LIMITS: dict[str, Any] = {
    "max_header_size": 8192,
    "max_body_size": 0,
    "max_buffer_size": 1 << 16,
    "idle_connection_timeout": IDLE_S,
    "body_timeout": IDLE_S,
}
_BUSY = b"%d connections are open; expected fewer, or try again later\n" % MAX_CONNECTIONS
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nX-Content-Type-Options: nosniff\r\n"
    b"Retry-After: 5\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(_BUSY), _BUSY)
)
_HOSTS = "Fix: 127.0.0.1 for this machine only, 0.0.0.0 for all networks"
_FIXES = {
    errno.EADDRINUSE: "the port is taken. Fix: end the program that listens there, or choose another port",
    errno.EADDRNOTAVAIL: f"no address of this machine. {_HOSTS}",
    errno.EAFNOSUPPORT: f"no address of this machine. {_HOSTS}",
    errno.EINVAL: f"no address to listen on. {_HOSTS}",  # one of IPv6 that each network has
    errno.EACCES: "the port is not allowed. Fix: choose one from 1024 on",
}


class _Listening(socket.socket):
    """Rests where no descriptor is left for a connection: that fails again at once, a thousand times a second."""

    def accept(self) -> tuple[socket.socket, Any]:
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
            time.sleep(REST_S)  # of the server's own thread
            raise BlockingIOError from error


def listen(host: str, port: int) -> list[socket.socket]:
    """Bind a host's addresses.

    Raises:
        SinkError: The port is taken or not allowed, or the host is none of this machine.
    """
    name = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise SinkError(f"{name}: no such host. {_HOSTS}") from error
    both = host == "::" and socket.has_dualstack_ipv6()  # all networks are those of IPv4 too
    made: list[socket.socket] = []
    absent: OSError | None = None
    for family, _, _, _, address in dict.fromkeys(found):
        try:
            # A name may have an address a family; all have the port that the first was given.
            free = made[0].getsockname()[1] if made else port
            bound = socket.create_server((address[0], free), family=family, backlog=128, dualstack_ipv6=both)
            made.append(_Listening(fileno=bound.detach()))
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                absent = error  # localhost is ::1 too, also where there is no IPv6
                continue
            for one in made:
                one.close()
            raise _no_use(name, error) from error
        made[-1].setblocking(False)
    if not made and absent is not None:
        raise _no_use(name, absent) from absent
    return made


def _no_use(name: str, error: OSError) -> SinkError:
    code = error.errno or 0
    return SinkError(f"{name}: {_FIXES.get(code, f'cannot be listened on ({os.strerror(code)})')}")


class Server:
    """Serves a site until it is closed.

    Args:
        sockets: Bound and listening; closed with the server.
        site: What is served.
        encoder: Makes the pictures.
    """

    def __init__(self, sockets: Sequence[socket.socket], site: Site, encoder: Encoder) -> None:
        self._sockets, self._site, self._encoder = sockets, site, encoder
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._stopping: asyncio.Event
        self._gallery: Gallery
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="lfd-web", daemon=True)
        self._thread.start()
        self._ready.wait()
        self.check()

    def check(self) -> None:
        """Raise SinkError when the server has ended by itself."""
        if self._error is not None:
            raise SinkError(f"the page's server has failed: {self._error!r}") from self._error

    def publish(self, shot: Shot) -> None:
        """Show a new shot."""
        self._gallery.publish(shot)

    def close(self) -> None:
        """End all connections and the thread. May be called twice."""
        with contextlib.suppress(RuntimeError):  # its loop has ended
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(STOP_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            self._error = error
        finally:
            for one in self._sockets:
                one.close()
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stopping, self._gallery = asyncio.get_running_loop(), asyncio.Event(), Gallery(self._encoder)
        listener = _Listener(self._site, self._gallery)
        listener.add_sockets(self._sockets)
        self._ready.set()
        await self._stopping.wait()
        listener.stop()
        await self._gallery.close()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(listener.end(), STOP_S / 2)


class _Listener(HTTPServer):
    """Takes MAX_CONNECTIONS connections, and sends the others away before it has read anything of theirs."""

    def initialize(self, site: Site, gallery: Gallery) -> None:  # type: ignore[override]  # Tornado's way to construct
        super().initialize(application(site, gallery, self.counts), **_LIMITS)
        self._open = self._refused = 0
        self._leaving: set[IOStream] = set()

    def counts(self) -> dict[str, int]:
        return {"connections": self._open, "most_connections": MAX_CONNECTIONS, "refused": self._refused}

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        if self._open < MAX_CONNECTIONS:
            with contextlib.suppress(OSError):  # who has gone already: reading the request will tell
                stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            stream.set_nodelay(True)
            self._open += 1
            super().handle_stream(stream, address)
            return
        self._refused += 1
        if len(self._leaving) >= MAX_CONNECTIONS:
            stream.close()
            return
        # Closed at once, its request unread, the connection would be reset and the answer lost.
        self._leaving.add(stream)
        asyncio.get_running_loop().call_later(REFUSED_S, self._leave, stream)
        with contextlib.suppress(OSError):  # who has gone already needs no answer
            stream.socket.send(_REFUSAL)  # a new connection's buffer takes it whole
            stream.socket.shutdown(socket.SHUT_WR)

    def _leave(self, stream: IOStream) -> None:
        self._leaving.discard(stream)
        stream.close()

    def on_close(self, server_conn: object) -> None:
        self._open -= 1
        super().on_close(server_conn)

    async def end(self) -> None:
        """Close all connections."""
        for stream in list(self._leaving):
            self._leave(stream)
        await self.close_all_connections()
