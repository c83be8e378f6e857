"""The one error that export has of its own."""

from __future__ import annotations

from typing import Any

from lfd.errors import ExportError


class GateError(ExportError):
    """A gate's decision: the file could be made, and is not good enough to be written.

    Args:
        message: The line for the user.
        report: What the gate found, as JSON holds it.
    """

    def __init__(self, message: str, report: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.report = report
