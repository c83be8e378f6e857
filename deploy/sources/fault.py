"""Why a stream could not be opened, or was lost."""

from __future__ import annotations

from deploy.frames import Cause
from deploy.texts import redact
from lfd.errors import SourceError

FIXES = {
    Cause.REFUSED: "check the port, and that the server runs",
    Cause.UNREACHABLE: "check the host's name, the cable and the network",
    Cause.UNAUTHORIZED: "check the user name and password, with special characters written as %XX",
    Cause.NOT_FOUND: "check the path after the host; the camera's manual has it",
    Cause.TIMED_OUT: "check the network and the camera, or allow more: open_timeout=, read_timeout=",
    Cause.CLOSED: "look at the server's log, or start it again",
    Cause.UNREADABLE: "check that it is a video stream; a player such as ffplay shows what comes",
}


class StreamError(SourceError):
    """A stream that could not be opened or was lost, with the reason by type.

    Args:
        cause: The type.
        name: The source as the user wrote it; it is redacted here.
        detail: What happened, for people.
        fix: How to mend it; by default what its cause advises.
    """

    def __init__(self, cause: Cause, name: str, detail: str, fix: str = "") -> None:
        self.cause = cause
        self.name = redact(name)
        self.detail = redact(detail)
        self.fix = fix or FIXES[cause]
        super().__init__(f"{self.name}: {self.detail} ({cause.value}). Fix: {self.fix}")

    def with_detail(self, detail: str) -> StreamError:
        """Return the same fault in other words."""
        return StreamError(self.cause, self.name, detail, self.fix)
