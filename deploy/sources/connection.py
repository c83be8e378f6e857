"""A connection to a server that keeps a deadline, byte by byte, and that another thread may end."""

from __future__ import annotations

import io
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from deploy.frames import Cause
from deploy.sources.address import Url
from deploy.sources.stop import Stop

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class ConnectError(Exception):  # becomes a StreamError where the source's name is known
    """No connection came about.

    Args:
        cause: Why, by type.
        detail: A line for people.
    """

    def __init__(self, cause: Cause, detail: str) -> None:
        super().__init__(detail)
        self.cause, self.detail = cause, detail


class Connection:
    """A TCP or TLS connection, with as much of a socket's interface as `http.client` asks for.

    A socket's own time-out begins anew with every byte, so that a server which trickles is waited for without end; here
    reads and writes raise TimeoutError once `deadline` has passed.

    Args:
        url: Where to connect to.
        timeout_s: Until the first deadline.
        tls_verify: Whether the certificate is checked.
        stop: Ends a wait.

    Raises:
        ConnectError: The host has no address, nothing listens, or TLS fails.
    """

    def __init__(self, url: Url, timeout_s: float, tls_verify: bool, stop: Stop) -> None:
        self.deadline = time.monotonic() + timeout_s
        self._stop = stop
        addresses = _resolve(url.host, url.port, timeout_s)
        with _failures(url, timeout_s):
            self._socket = self._connect(addresses)
            if url.secure:
                try:
                    self._socket = _context(tls_verify).wrap_socket(self._socket, server_hostname=url.host)
                    stop.watch(self._socket)
                except BaseException:
                    self.end()
                    raise

    def _connect(self, addresses: list[tuple[int, tuple[Any, ...]]]) -> socket.socket:
        failure: OSError = TimeoutError()
        for family, address in addresses:
            connection = socket.socket(family, socket.SOCK_STREAM)
            self._stop.watch(connection)
            try:
                connection.settimeout(self._remaining())
                connection.connect(address)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                self._stop.watch(None)
                connection.close()
                failure = error
                continue
            return connection
        raise failure

    def _remaining(self) -> float:
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        return remaining

    def sendall(self, data: bytes) -> None:
        self._socket.settimeout(self._remaining())
        self._socket.sendall(data)

    def recv_into(self, buffer: WriteableBuffer) -> int:
        self._socket.settimeout(self._remaining())
        return self._socket.recv_into(buffer)

    def makefile(self, mode: str = "rb") -> io.BufferedReader:
        """Return a reader of what comes; only `rb`, as http.client asks."""
        return io.BufferedReader(_Raw(self), 1 << 16)

    def close(self) -> None:
        """Do nothing: http.client closes while its answer is still read. `end` closes."""

    def abort(self) -> None:
        """Wake another thread that reads; `end` is still to follow."""
        with suppress(OSError):  # it may have ended by itself
            self._socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Close the socket."""
        self._stop.watch(None)
        self._socket.close()


class _Raw(io.RawIOBase):
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        return self._connection.recv_into(buffer)


def _resolve(host: str, port: int, timeout_s: float) -> list[tuple[int, tuple[Any, ...]]]:
    """Return a host's addresses. The system's resolver knows no time-out, so that a thread of its own waits for it."""
    found: list[tuple[int, tuple[Any, ...]]] = []
    failure: list[OSError | UnicodeError] = []

    def ask() -> None:
        try:
            entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.extend((family, address) for family, _, _, _, address in entries)
        except (OSError, UnicodeError) as error:
            failure.append(error)

    asker = threading.Thread(target=ask, name="lfd-resolve", daemon=True)
    asker.start()
    asker.join(timeout_s)
    if failure:
        raise ConnectError(Cause.UNREACHABLE, f"no host of the name {host!r} is known")
    if not found:
        raise ConnectError(Cause.UNREACHABLE, f"the name {host!r} was not found within {timeout_s:g} s")
    return found


@contextmanager
def _failures(url: Url, timeout_s: float) -> Iterator[None]:
    """Turn what connecting raises into a ConnectError."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        detail = f"its certificate is not trusted ({error.verify_message}); #tls_verify=false takes it unchecked"
        raise ConnectError(Cause.UNREADABLE, detail) from None
    except ssl.SSLError as error:
        raise ConnectError(Cause.UNREADABLE, f"TLS fails ({error.reason or 'ended early'})") from None
    except ConnectionRefusedError:
        raise ConnectError(Cause.REFUSED, f"nothing listens at port {url.port}") from None
    except TimeoutError:
        raise ConnectError(Cause.TIMED_OUT, f"no connection within {timeout_s:g} s") from None
    except ConnectionError:
        raise ConnectError(Cause.CLOSED, "the server ended the connection") from None
    except OSError as error:
        raise ConnectError(Cause.UNREACHABLE, f"no way there ({error.strerror or error})") from None


def _context(verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
