"""What is wrong with an RTSP stream: OpenCV only says that it is not open, so that we ask the server.

One DESCRIBE (RFC 2326, 10.2), and a second one with the password where the server wants it.
"""

from __future__ import annotations

from deploy.frames import Cause
from deploy.sources.address import Options, Url
from deploy.sources.authorization import answer
from deploy.sources.connection import ConnectError, Connection
from deploy.sources.stop import Stop

LIMIT_S = 2.0
MAX_BYTES = 1 << 16
"""Of an answer's head, and of its description."""

_NOT_FOUND = (404, 410, 454)


def diagnose_rtsp(url: Url, options: Options, stop: Stop, timed_out: bool) -> tuple[Cause, str]:
    """Ask an RTSP server why a stream could not be opened.

    Args:
        url: The stream.
        options: For its time-outs and TLS.
        stop: Ends a wait.
        timed_out: Whether opening took as long as it may.

    Returns:
        The reason by type, and a line for people.
    """
    try:
        connection = Connection(url, LIMIT_S, options.tls_verify, stop)
    except ConnectError as failure:
        return failure.cause, failure.detail
    try:
        return _ask(connection, url, options, timed_out)
    except TimeoutError:
        return Cause.TIMED_OUT, f"connected, but no answer within {LIMIT_S:g} s"
    except (OSError, EOFError):
        return Cause.CLOSED, "the server ended the connection"
    except ValueError:
        return Cause.UNREADABLE, "what answers there is no RTSP server"
    finally:
        connection.end()


def _ask(connection: Connection, url: Url, options: Options, timed_out: bool) -> tuple[Cause, str]:
    status, reason, challenges = _describe(connection, url, None, 1)
    if status == 401 and url.user:
        authorization = answer(challenges, url.user, url.password, "DESCRIBE", url.public)
        status, reason, _ = _describe(connection, url, authorization, 2)
    said = f"the server answers {status} {reason}"
    if status in (401, 403):
        why = "the user name or password is wrong" if url.user else "it wants a user name and password"
        return Cause.UNAUTHORIZED, f"{said}: {why}" if status == 401 else said
    if status in _NOT_FOUND:
        return Cause.NOT_FOUND, said
    if status != 200:
        return Cause.CLOSED if status >= 500 else Cause.UNREADABLE, said
    if timed_out:
        hint = ", which a firewall may hold back; try #transport=tcp" if options.transport == "udp" else ""
        return Cause.TIMED_OUT, f"the server is there, but no picture came by {options.transport.upper()} in time{hint}"
    return Cause.UNREADABLE, f"the server is there, but its stream gives no picture by {options.transport.upper()}"


def _describe(connection: Connection, url: Url, authorization: str | None, sequence: int) -> tuple[int, str, list[str]]:
    """Send DESCRIBE; return status, reason and the values of WWW-Authenticate.

    Raises:
        ValueError: What comes back is no RTSP.
        EOFError: Nothing comes back.
    """
    headers = [f"DESCRIBE {url.public} RTSP/1.0", f"CSeq: {sequence}", "User-Agent: lfd-toolkit"]
    headers += ["Accept: application/sdp"] + ([f"Authorization: {authorization}"] if authorization else [])
    connection.sendall("\r\n".join([*headers, "", ""]).encode("utf-8"))
    with connection.makefile() as reader:
        first = reader.readline(1024)
        if not first:
            raise EOFError
        fields = first.decode("latin-1").split(None, 2)
        if len(fields) < 2 or not fields[0].startswith("RTSP/") or not (fields[1].isdecimal() and len(fields[1]) == 3):
            raise ValueError
        challenges, length, total = [], 0, 0
        while (line := reader.readline(MAX_BYTES)).strip():
            key, _, value = line.decode("latin-1").partition(":")
            if key.lower() == "www-authenticate":
                challenges.append(value.strip())
            if key.lower() == "content-length" and value.strip().isdecimal():
                length = min(int(value), MAX_BYTES)
            total += len(line)
            if total > MAX_BYTES:
                raise ValueError
        reader.read(length)
    reason = "".join(c for c in fields[2].strip() if c.isprintable())[:60] if len(fields) > 2 else ""
    return int(fields[1]), reason, challenges
